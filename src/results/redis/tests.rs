//! What is kept, under which key, as which text.

use super::*;
use crate::celery::error::Exception;
use crate::celery::message::Field;
use crate::celery::read::read;
use crate::celery::request::ReadOptions;
use crate::redis_url::ResultUrl;

fn redis() -> Redis {
    let Ok(ResultUrl::Redis(url)) = ResultUrl::parse("redis://127.0.0.1:1/0") else { panic!("a URL of a Redis") };
    Redis::new("w@h", SharedUrl::new(url), Duration::from_secs(60), "filestorage", 1 << 20)
}

/// A command in a group, of a producer that has no reply queue.
fn request(ignore_result: bool) -> TaskRequest {
    let properties = Properties {
        content_type: Some("application/json".to_owned()),
        content_encoding: Some("utf-8".to_owned()),
        ..Properties::default()
    };
    let mut headers = Headers::default();
    headers.set("id", "id".into());
    headers.set("task", "filestorage.exists".into());
    headers.set("group", "g".into());
    headers.set("parent_id", "p".into());
    headers.set("ignore_result", Field::Bool(ignore_result));
    read(&Message { properties, headers, body: r#"[["k"], {}, {}]"#.into() }, &ReadOptions::default()).unwrap()
}

fn text(publication: &Publication) -> String {
    String::from_utf8(publication.message.body.to_vec()).unwrap()
}

#[test]
fn results_are_what_celery_keeps() {
    let (redis, now) = (redis(), Timestamp::UNIX_EPOCH);
    let answer = redis.success(&request(false), r#"["é",1]"#.to_owned(), &[], None, now).unwrap();
    assert_eq!(key(&answer), "celery-task-meta-id");
    assert_eq!(
        text(&answer),
        "{\"status\": \"SUCCESS\", \"result\": [\"\\u00e9\", 1], \"traceback\": null, \"children\": [], \
         \"date_done\": \"1970-01-01T00:00:00.000000+00:00\", \"group_id\": \"g\", \"parent_id\": \"p\", \"task_id\": \"id\"}"
    );
    assert!(text(&answer).starts_with(SUCCESS));
    let started = redis.answer(&request(false), &State::Started, None, now).unwrap();
    assert!(text(&started).starts_with("{\"status\": \"STARTED\", \"result\": {\"pid\": "), "{}", text(&started));
    let exception = Exception::value_error("x");
    let failure = State::Failure(&exception);
    let failed = redis.answer(&request(false), &failure, None, now).unwrap();
    assert!(
        text(&failed)
            .contains("{\"exc_type\": \"ValueError\", \"exc_message\": [\"x\"], \"exc_module\": \"builtins\"}")
    );
    let to = redis.recipient(&request(false)).unwrap();
    assert_eq!(redis.answer_to(&to, &failure, None, now), failed, "the answer that replaces a refused one is the same");
}

#[test]
fn all_answers_have_the_address_of_the_store() {
    let (redis, now) = (redis(), Timestamp::UNIX_EPOCH);
    let answer = redis.success(&request(false), "1".to_owned(), &[], None, now).unwrap();
    assert!(is_kept_here(&answer));
    let queue = Publication { address: Address::queue("replies"), message: Message::default() };
    assert!(!is_kept_here(&queue));
}

#[test]
fn nobody_is_answered_who_ignores_the_result() {
    let (redis, now) = (redis(), Timestamp::UNIX_EPOCH);
    assert_eq!(redis.recipient(&request(true)), None);
    assert_eq!(redis.answer(&request(true), &State::Started, None, now), None);
    assert_eq!(redis.success(&request(true), "1".to_owned(), &[], None, now), None);
}

#[test]
fn what_no_redis_keeps_is_refused_for_good() {
    let (redis, now) = (redis(), Timestamp::UNIX_EPOCH);
    let answer = redis.success(&request(false), "1".to_owned(), &[], None, now).unwrap();
    assert_eq!(fits(&answer), Kept::Unknown);
    let nameless = Publication { message: Message::default(), ..answer };
    assert!(matches!(fits(&nameless), Kept::Never(_)));
}

/// A broker that confirms what it gets, but not before it is told.
#[derive(Debug)]
struct Slow(Duration);

#[async_trait]
impl Publish for Slow {
    fn patience(&self) -> Duration {
        Duration::from_secs(20)
    }

    async fn publish_within(
        &self,
        _limit: Duration,
        batch: Vec<Publication>,
        _mandatory: bool,
        early: Option<Early>,
    ) -> Vec<Result<Confirmation, PublishError>> {
        if let Some(early) = early
            && early.after < self.0
        {
            tokio::time::sleep(early.after).await;
            let open = batch.iter().map(|publication| publication.address.clone()).collect();
            early.word.send(crate::broker::EarlyWord { confirmed: Vec::new(), open }).unwrap();
            tokio::time::sleep(self.0 - early.after).await;
        } else {
            tokio::time::sleep(self.0).await;
        }
        batch.iter().map(|_| Ok(Confirmation::Routed)).collect()
    }
}

/// A batch of an event, an answer and a callback.
fn batch(redis: &Redis) -> Parts {
    let queue = |name: &str| Publication { address: Address::queue(name), message: Message::default() };
    let answer = redis.success(&request(false), "1".to_owned(), &[], None, Timestamp::UNIX_EPOCH).unwrap();
    Parts::of(vec![queue("events"), answer, queue("callback")], |at, publication| at == 1 && is_kept_here(publication))
}

/// Sends a batch over a broker and a Redis that take so long; returns the early word, how long the batch took, and its answers.
async fn sent(
    broker: Duration,
    store: Duration,
    cut_after: Option<Duration>,
) -> (Option<crate::broker::EarlyWord>, Duration, Vec<bool>) {
    let redis = redis();
    let mut parts = batch(&redis);
    let rest = parts.take_rest();
    let (word, mut told) = tokio::sync::oneshot::channel();
    let (cut_now, cut) = tokio::sync::oneshot::channel();
    let early = Some(Early { after: Duration::from_secs(1), word, cut });
    let keeping = async {
        tokio::time::sleep(store).await;
        vec![Kept::Yes]
    };
    let begun = tokio::time::Instant::now();
    let broker = Slow(broker);
    let sending = parts.send(&broker, rest, keeping, Duration::from_secs(20), early);
    let cutting = async {
        match cut_after {
            Some(after) => tokio::time::sleep(after).await,
            None => std::future::pending().await,
        }
        cut_now.send(()).unwrap();
        std::future::pending::<()>().await;
    };
    let (sent, kept) = tokio::select! {
        answers = sending => answers,
        () = cutting => unreachable!("it never ends"),
    };
    let took = begun.elapsed();
    let joined = parts.joined(sent, kept, outcome);
    (told.try_recv().ok(), took, joined.iter().map(Result::is_ok).collect())
}

const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[tokio::test(start_paused = true)]
async fn both_ways_are_waited_for_at_once() {
    let (word, took, all) = sent(Duration::from_millis(500), Duration::from_millis(700), None).await;
    assert!(word.is_none(), "all is known in time");
    assert_eq!((took, all), (Duration::from_millis(700), vec![true, true, true]));
}

#[tokio::test(start_paused = true)]
async fn a_slow_redis_holds_up_nothing_of_the_broker() {
    let (word, took, all) = sent(Duration::from_millis(500), seconds(3), None).await;
    let word = word.unwrap();
    assert_eq!(word.confirmed.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [0, 2]);
    assert_eq!(word.open, [Address::queue(PLACE)]);
    assert_eq!((took, all), (seconds(3), vec![true, true, true]));
}

#[tokio::test(start_paused = true)]
async fn a_slow_broker_holds_up_no_answer() {
    let (word, _, all) = sent(seconds(3), Duration::from_millis(500), None).await;
    let word = word.unwrap();
    assert_eq!(word.confirmed, [(1, Confirmation::Routed)]);
    assert_eq!(word.open, [Address::queue("events"), Address::queue("callback")]);
    assert_eq!(all, [true, true, true]);
}

#[tokio::test(start_paused = true)]
async fn an_end_of_the_wait_leaves_answers_unconfirmed() {
    let (word, took, all) = sent(Duration::from_millis(500), seconds(15), Some(seconds(2))).await;
    assert!(word.is_some());
    assert_eq!((took, all), (seconds(2), vec![true, false, true]));
}

#[tokio::test(start_paused = true)]
async fn a_silent_redis_is_waited_for_no_longer_than_a_broker() {
    let (_, took, all) = sent(Duration::from_millis(500), seconds(3600), None).await;
    assert_eq!((took, all), (seconds(20), vec![true, false, true]));
}

/// Serves one connection after another: answers as many commands of each as a real Redis would a client that says who it is, and
/// says nothing more.
async fn reticent(listener: tokio::net::TcpListener, answers: usize) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut open = Vec::new();
    loop {
        let (mut peer, _) = listener.accept().await.unwrap();
        let mut buffer = vec![0; 4096];
        for _ in 0..answers {
            let read = peer.read(&mut buffer).await.unwrap();
            let commands = buffer[..read].iter().filter(|byte| **byte == b'*').count();
            peer.write_all("+OK\r\n".repeat(commands).as_bytes()).await.unwrap();
        }
        open.push(peer);
    }
}

/// Returns how long a Redis was waited for that answers so many times.
async fn waited(answers: usize) -> Duration {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("redis://{}/0", listener.local_addr().unwrap());
    let serving = tokio::spawn(reticent(listener, answers));
    let Ok(ResultUrl::Redis(url)) = ResultUrl::parse(&url) else { panic!("a URL of a Redis") };
    let store = Store::new(SharedUrl::new(url), "touched".to_owned());
    let mut pipeline = Pipeline::new();
    pipeline.cmd("PING");
    let begun = tokio::time::Instant::now();
    store.run(&pipeline).await.unwrap_err();
    serving.abort();
    begun.elapsed()
}

#[tokio::test]
async fn a_redis_that_does_not_greet_has_four_seconds() {
    let waited = waited(0).await;
    assert!((seconds(4)..Duration::from_millis(4900)).contains(&waited), "{waited:?}");
}

#[tokio::test]
async fn a_redis_that_does_not_answer_has_five_seconds() {
    let waited = waited(1).await;
    assert!((seconds(5)..Duration::from_millis(6900)).contains(&waited), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn an_idle_redis_is_checked_every_five_seconds() {
    // Nobody listens there: each check fails, and tells the next one.
    let redis = redis();
    let times = std::sync::Mutex::new(Vec::new());
    let begun = tokio::time::Instant::now();
    let report = |found: Result<(), String>| {
        assert!(found.is_err());
        times.lock().unwrap().push(begun.elapsed().as_secs());
    };
    tokio::time::timeout(Duration::from_millis(3500), redis.watch(report)).await.unwrap_err();
    assert_eq!(*times.lock().unwrap(), [0, 1, 2, 3], "in trouble");
    redis.store.faulted().await;
    let idle = async {
        let mut checks = 0;
        loop {
            redis.pause().await;
            checks += 1;
            if checks == 3 {
                return;
            }
        }
    };
    let begun = tokio::time::Instant::now();
    idle.await;
    assert_eq!(begun.elapsed(), seconds(15));
}
