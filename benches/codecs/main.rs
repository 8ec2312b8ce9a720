//! The codecs alone: how many bytes of values are encoded and decoded in a second of processor time.
//!
//! Objects are kept in memory, so that nothing but the codecs costs time. Started by `benches/run`; see `--help`.

use std::error::Error;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use clap::Parser;
use filestorage::storage::{
    Attributes, Backend, Checksum, Codec, Compression, Encoded, Encryption, GetOptions, Key, Keyring, Kind, Memory,
    Object, PutOptions, Spool,
};
use serde_json::json;

/// Encodes and decodes values and prints how fast that was, one line of JSON for each codec and size.
#[derive(Parser)]
struct Arguments {
    /// Folder for the files of large values. Without it nothing is done.
    spool: Option<PathBuf>,
    /// Sizes of the values in bytes.
    #[arg(long, value_delimiter = ',', default_values_t = [2_000, 65_536, 8 << 20])]
    sizes: Vec<usize>,
    /// Bytes that are encoded and decoded of each size, and at most 20,000 values.
    #[arg(long, default_value_t = 128 << 20)]
    bytes: usize,
    /// Given by `cargo bench`, which is not how this program is meant to be run.
    #[arg(long, hide = true)]
    bench: bool,
}

/// The levels that are compared; the default of each codec is among them.
const LEVELS: [(Codec, &[i32]); 2] = [(Codec::Gzip, &[1, 2, 3, 4, 6, 9]), (Codec::Zstd, &[1, 3, 6, 9])];

// One thread, as the worker's loop. Large values are worked on by one more, and waited for.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    // `cargo bench` and `cargo test --benches` start every bench target bare.
    let Some(folder) = arguments.spool else {
        println!("codecs: names no folder, nothing to do; benches/run drives it");
        return Ok(());
    };
    let spool = Spool::new(folder);
    let mut stacks = vec![("encryption".to_owned(), None, true)];
    for (codec, levels) in LEVELS {
        for &level in levels {
            let rule = Compression { codec, level, threshold: 0 };
            stacks.push((format!("{codec} {level}"), Some(rule), false));
            if level == codec.default_level() {
                stacks.push((format!("{codec} {level}, encryption"), Some(rule), true));
            }
        }
    }
    for size in arguments.sizes {
        let object = object(records(size));
        for (name, rule, encrypted) in &stacks {
            let encryption = match encrypted {
                true => Encryption::on(Keyring::parse("AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=")?),
                false => Encryption::none(),
            };
            let codecs = Encoded::new(Arc::new(Memory::new()), spool.clone())
                .with_compression(*rule)
                .with_encryption(encryption);
            let times = (arguments.bytes / size).clamp(1, 20_000);
            measure(name, &codecs, &object, times).await?;
        }
    }
    Ok(())
}

async fn measure(name: &str, codecs: &Encoded, object: &Object, times: usize) -> Result<(), Box<dyn Error>> {
    let key = Key::parse("bench/codecs")?;
    let stored = codecs.put(&key, object, &PutOptions::default()).await?;
    let before = cpu_seconds()?;
    for _ in 0..times {
        codecs.put(&key, object, &PutOptions::default()).await?;
    }
    let between = cpu_seconds()?;
    for _ in 0..times {
        codecs.get(&key, GetOptions::default()).await?;
    }
    let after = cpu_seconds()?;
    let size = object.payload.len();
    let rates = |seconds: f64| {
        json!({
            "megabytes_per_cpu_second": size as f64 * times as f64 / 1e6 / seconds,
            "cpu_microseconds": seconds * 1e6 / times as f64,
        })
    };
    let (encode, decode) = (rates(between - before), rates(after - between));
    println!(
        "{}",
        json!({"codec": name, "size": size, "stored": stored.stored_size, "encode": encode, "decode": decode})
    );
    Ok(())
}

/// JSON of at least so many bytes, such as an API answers: records of numbers, times, names and words.
fn records(size: usize) -> Bytes {
    const NAMES: [&str; 8] = ["alice", "bob", "carol", "dave", "eve", "mallory", "trent", "peggy"];
    const WORDS: [&str; 12] = [
        "error", "retry", "upload", "invoice", "model", "training", "customer", "region", "bucket", "storage",
        "pending", "complete",
    ];
    let mut state = 88_172_645_463_325_252_u64;
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    let mut text = String::from("[");
    while text.len() < size {
        let mut word = || WORDS[random(12) as usize];
        let note = [word(), word(), word(), word(), word(), word()].join(" ");
        let (id, name, score) = (random(10_000_000), NAMES[random(8) as usize], random(100_000));
        let (month, day, second) = (random(12) + 1, random(28) + 1, random(60));
        // Writing to a `String` cannot fail.
        write!(
            text,
            "{{\"id\":{id},\"user\":\"{name}{}\",\"score\":{score},\"at\":\"2026-{month:02}-{day:02}T10:20:{second:02}Z\",\"note\":\"{note}\"}},",
            random(1_000)
        )
        .unwrap_or_default();
    }
    text.into()
}

fn object(bytes: Bytes) -> Object {
    let size = bytes.len() as u64;
    let attributes = Attributes::new(Kind::Bytes, "application/json".to_owned(), size, Checksum::of(&bytes));
    Object { attributes, payload: bytes.into() }
}

/// User and system time of this process.
fn cpu_seconds() -> Result<f64, Box<dyn Error>> {
    let usage = std::fs::read_to_string("/proc/self/stat")?;
    let after_name = usage.rsplit(')').next().unwrap_or_default();
    let ticks = |field: usize| after_name.split_whitespace().nth(field).and_then(|ticks| ticks.parse::<f64>().ok());
    // utime and stime, in hundredths of a second.
    Ok((ticks(11).unwrap_or_default() + ticks(12).unwrap_or_default()) / 100.0)
}
