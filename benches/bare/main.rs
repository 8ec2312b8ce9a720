//! A bare client: stores small values in a bucket by Google's own crate and nothing else.
//!
//! What the worker adds to a store in the bucket is measured against it: the same crate, the same number of stores under
//! way, one thread, one pool of connections. Started by `benches/run`; see `--help`.

use std::error::Error;
use std::time::{Duration, Instant};

use clap::Parser;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use google_cloud_auth::credentials::anonymous;
use google_cloud_storage::client::Storage;
use serde_json::json;

/// Stores values in a bucket of an emulator and prints how fast that was.
#[derive(Parser)]
struct Arguments {
    /// The emulator, as `http://127.0.0.1:4443`. Without it nothing is done.
    endpoint: Option<String>,
    /// The bucket, which must be there.
    #[arg(long, default_value = "bench")]
    bucket: String,
    /// Begin of the objects' names.
    #[arg(long, default_value = "bare")]
    prefix: String,
    /// Stores to make.
    #[arg(long, default_value_t = 5_000)]
    stores: usize,
    /// Stores under way at once.
    #[arg(long, default_value_t = 64)]
    parallel: usize,
    /// Bytes of a value.
    #[arg(long, default_value_t = 200)]
    size: usize,
    /// Given by `cargo bench`, which is not how this program is meant to be run.
    #[arg(long, hide = true)]
    bench: bool,
}

// One thread, as the worker's loop.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    // `cargo bench` and `cargo test --benches` start every bench target bare.
    let Some(endpoint) = &arguments.endpoint else {
        println!("bare: names no emulator, nothing to do; benches/run drives it");
        return Ok(());
    };
    let client =
        Storage::builder().with_endpoint(endpoint).with_credentials(anonymous::Builder::new().build()).build().await?;
    // The first requests open the connections.
    store(&client, &arguments, "warm", arguments.parallel * 4).await?;
    let (begin, cpu) = (Instant::now(), cpu_seconds()?);
    let mut latencies = store(&client, &arguments, "run", arguments.stores).await?;
    let (seconds, cpu) = (begin.elapsed().as_secs_f64(), cpu_seconds()? - cpu);
    latencies.sort_unstable();
    let milliseconds = |share: f64| {
        let place = (latencies.len().saturating_sub(1) as f64 * share).round() as usize;
        latencies.get(place).map(|latency| latency.as_secs_f64() * 1e3)
    };
    println!(
        "{}",
        json!({
            "commands": arguments.stores,
            "commands_per_second": arguments.stores as f64 / seconds,
            "p50_ms": milliseconds(0.5),
            "p99_ms": milliseconds(0.99),
            "cpu_seconds_per_1000": cpu * 1e3 / arguments.stores as f64,
        })
    );
    Ok(())
}

/// Stores so many values; returns how long each took.
async fn store(
    client: &Storage,
    arguments: &Arguments,
    part: &str,
    stores: usize,
) -> Result<Vec<Duration>, Box<dyn Error>> {
    let bucket = format!("projects/_/buckets/{}", arguments.bucket);
    let value = bytes::Bytes::from(vec![b'x'; arguments.size]);
    let one = |number: usize| {
        let name = format!("{}/{part}/{number}", arguments.prefix);
        let write = client.write_object(&bucket, name, value.clone()).set_content_type("text/plain");
        async move {
            let begin = Instant::now();
            write.send_buffered().await.map(|_| begin.elapsed())
        }
    };
    Ok(stream::iter(0..stores).map(one).buffer_unordered(arguments.parallel).try_collect().await?)
}

/// User and system time of this process.
fn cpu_seconds() -> Result<f64, Box<dyn Error>> {
    let usage = std::fs::read_to_string("/proc/self/stat")?;
    let after_name = usage.rsplit(')').next().unwrap_or_default();
    let ticks = |field: usize| after_name.split_whitespace().nth(field).and_then(|ticks| ticks.parse::<f64>().ok());
    // utime and stime, in hundredths of a second.
    Ok((ticks(11).unwrap_or_default() + ticks(12).unwrap_or_default()) / 100.0)
}
