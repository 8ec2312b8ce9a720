//! Encryption alone: how many bytes of values are encrypted and decrypted in a second of processor time.
//!
//! Nothing is stored. Small values stay in memory, large ones pass through files without a name, as they do on their way to
//! a backend. Started by `benches/run`; see `--help`.

use std::error::Error;
use std::path::PathBuf;

use bytes::Bytes;
use clap::Parser;
use filestorage::storage::{Attributes, Checksum, Key, Keyring, Kind, Object, Spool};
use serde_json::json;

/// Encrypts and decrypts values and prints how fast that was, one line of JSON a size.
#[derive(Parser)]
struct Arguments {
    /// Folder for the files of large values. Without it nothing is done.
    spool: Option<PathBuf>,
    /// Sizes of the values in bytes.
    #[arg(long, value_delimiter = ',', default_values_t = [200, 65_536, 1_000_000, 67_108_864])]
    sizes: Vec<u64>,
    /// Bytes that are encrypted and decrypted of each size, and at least 1 and at most 20,000 values.
    #[arg(long, default_value_t = 1 << 30)]
    bytes: u64,
    /// Given by `cargo bench`, which is not how this program is meant to be run.
    #[arg(long, hide = true)]
    bench: bool,
}

// One thread, as the worker's loop. Large values are worked on by one more, and waited for.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    // `cargo bench` and `cargo test --benches` start every bench target bare.
    let Some(folder) = arguments.spool else {
        println!("encryption: names no folder, nothing to do; benches/run drives it");
        return Ok(());
    };
    let (keyring, spool) = (Keyring::parse("AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=")?, Spool::new(folder));
    let name = Key::parse("bench/encryption")?;
    for size in arguments.sizes {
        let bytes = Bytes::from(vec![b'x'; usize::try_from(size)?]);
        let attributes =
            Attributes::new(Kind::Bytes, "application/octet-stream".to_owned(), size, Checksum::of(&bytes));
        let object = Object { attributes, payload: bytes.into() };
        let times = (arguments.bytes / size.max(1)).clamp(1, 20_000);
        let mut sealed = keyring.seal(&name, &object, &spool).await?;
        let before = cpu_seconds()?;
        for _ in 0..times {
            sealed = keyring.seal(&name, &object, &spool).await?;
        }
        let between = cpu_seconds()?;
        for _ in 0..times {
            let (_, data_key) = keyring.open_attributes(&name, &sealed.attributes)?;
            data_key.open(&name, &sealed.payload, 0..u64::MAX, Some(&spool)).await?;
        }
        let after = cpu_seconds()?;
        let rates = |seconds: f64| {
            json!({
                "gigabytes_per_cpu_second": (size * times) as f64 / 1e9 / seconds,
                "cpu_microseconds": seconds * 1e6 / times as f64,
            })
        };
        println!("{}", json!({"size": size, "encrypt": rates(between - before), "decrypt": rates(after - between)}));
    }
    Ok(())
}

/// User and system time of this process.
fn cpu_seconds() -> Result<f64, Box<dyn Error>> {
    let usage = std::fs::read_to_string("/proc/self/stat")?;
    let after_name = usage.rsplit(')').next().unwrap_or_default();
    let ticks = |field: usize| after_name.split_whitespace().nth(field).and_then(|ticks| ticks.parse::<f64>().ok());
    // utime and stime, in hundredths of a second.
    Ok((ticks(11).unwrap_or_default() + ticks(12).unwrap_or_default()) / 100.0)
}
