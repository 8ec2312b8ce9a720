//! Upload sessions that break off in the middle: a server that does exactly that.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use filestorage::storage::{Backend, Checksum, ErrorKind, Gcs, GcsOptions, PutOptions, Spool};
use futures_util::StreamExt as _;
use serde_json::json;

use crate::support::{key, noise, object};

/// What happens to each upload of bytes, one after another; the last goes through.
#[derive(Clone, Copy, Debug)]
enum Fate {
    /// So many of its bytes are kept, then the server fails.
    Broken(usize),
    /// So many of its bytes are kept, and the server says so.
    Short(usize),
    /// All of it is kept, and nobody hears of it.
    Unheard,
}

#[derive(Debug, Default)]
struct Server {
    url: String,
    kept: Vec<u8>,
    fates: VecDeque<Fate>,
    /// First byte of each upload.
    begun: Vec<usize>,
}

type Shared = Arc<Mutex<Server>>;

fn stored(server: &Server) -> Response {
    let checksum = Checksum::of(&server.kept).to_string();
    let crc32c = checksum.strip_prefix("crc32c:").unwrap();
    let stored = json!({
        "kind": "storage#object", "bucket": "sessions", "name": "it", "generation": "1",
        "size": server.kept.len().to_string(), "crc32c": crc32c,
    });
    stored.to_string().into_response()
}

fn reached(server: &Server) -> Response {
    match server.kept.len() {
        0 => StatusCode::PERMANENT_REDIRECT.into_response(),
        some => (StatusCode::PERMANENT_REDIRECT, [("range", format!("bytes=0-{}", some - 1))], "").into_response(),
    }
}

async fn answer(State(shared): State<Shared>, request: Request) -> Response {
    let range = |headers: &HeaderMap| headers.get("content-range").unwrap().to_str().unwrap().to_owned();
    if request.method() == "POST" {
        let location = format!("{}/session", shared.lock().unwrap().url);
        return ([("location", location)], "").into_response();
    }
    let range = range(request.headers());
    let total: usize = range.split_once('/').unwrap().1.parse().unwrap();
    if range.starts_with("bytes */") {
        let server = shared.lock().unwrap();
        return if server.kept.len() == total { stored(&server) } else { reached(&server) };
    }
    let from: usize = range.trim_start_matches("bytes ").split_once('-').unwrap().0.parse().unwrap();
    let fate = {
        let mut server = shared.lock().unwrap();
        server.begun.push(from);
        assert!(from <= server.kept.len(), "nothing is left out");
        server.kept.truncate(from);
        server.fates.pop_front()
    };
    let most = match fate {
        Some(Fate::Broken(most) | Fate::Short(most)) => most,
        Some(Fate::Unheard) | None => usize::MAX,
    };
    let (mut pieces, mut taken) = (request.into_body().into_data_stream(), 0);
    while taken < most
        && let Some(Ok(piece)) = pieces.next().await
    {
        let piece = &piece[..piece.len().min(most - taken)];
        shared.lock().unwrap().kept.extend_from_slice(piece);
        taken += piece.len();
    }
    match fate {
        None => stored(&shared.lock().unwrap()),
        Some(Fate::Short(_)) => reached(&shared.lock().unwrap()),
        Some(Fate::Broken(_) | Fate::Unheard) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

/// Uploads through a server with these fates; returns the outcome, and what the server saw.
async fn upload(content: &[u8], fates: &[Fate]) -> (Result<(), ErrorKind>, Vec<usize>, Vec<u8>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = Server { url: url.clone(), fates: fates.iter().copied().collect(), ..Server::default() };
    let shared = Arc::new(Mutex::new(server));
    let app = axum::Router::new().fallback(answer).with_state(Arc::clone(&shared));
    let serving = tokio::spawn(async move { axum::serve(listener, app).await });
    let options = GcsOptions {
        bucket: "sessions".to_owned(),
        project: None,
        location: "EU".to_owned(),
        credentials: None,
        endpoint: Some(url),
        proxy: None,
        timeout: Duration::from_secs(10),
        spool: Spool::new(std::env::temp_dir()),
    };
    let gcs = Gcs::open(options).await.unwrap().with_resumable_from(1);
    let outcome = gcs.put(&key("it"), &object(content.to_vec()), &PutOptions::default()).await;
    serving.abort();
    let server = shared.lock().unwrap();
    (outcome.map(|_| ()).map_err(|error| error.kind), server.begun.clone(), server.kept.clone())
}

#[tokio::test]
async fn an_upload_session_resumes_while_it_makes_progress() {
    let content = noise(1 << 20, 9);
    let whole = content.clone();
    for (fates, outcome, begun) in [
        (vec![], Ok(()), vec![0]),
        (vec![Fate::Broken(300_000)], Ok(()), vec![0, 300_000]),
        (vec![Fate::Broken(1), Fate::Broken(700_000), Fate::Broken(1)], Ok(()), vec![0, 1, 700_001, 700_002]),
        (vec![Fate::Short(262_144), Fate::Short(1)], Ok(()), vec![0, 262_144, 262_145]),
        (vec![Fate::Unheard], Ok(()), vec![0]),
        (vec![Fate::Broken(5), Fate::Unheard], Ok(()), vec![0, 5]),
        // Nothing was gained: whoever tries again begins anew.
        (vec![Fate::Short(0)], Err(ErrorKind::Unavailable), vec![0]),
        (vec![Fate::Broken(0)], Err(ErrorKind::Unavailable), vec![0]),
        (vec![Fate::Broken(5), Fate::Broken(0)], Err(ErrorKind::Unavailable), vec![0, 5]),
    ] {
        let (found, at, kept) = upload(&content, &fates).await;
        assert_eq!((found, at), (outcome, begun), "{fates:?}");
        assert!(outcome.is_err() || kept == whole, "{fates:?}");
    }
}
