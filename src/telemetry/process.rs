//! The metrics of the process itself, determined when the metrics are read.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

/// Exposes `process_start_time_seconds`, `process_resident_memory_bytes`, `process_open_fds` and
/// `process_cpu_seconds_total`.
#[derive(Debug)]
pub(super) struct ProcessCollector {
    started: Duration,
}

impl ProcessCollector {
    pub(super) fn new() -> Self {
        Self { started: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() }
    }
}

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut gauge = |name: &str, help: &str, unit: Option<&Unit>, value: f64| {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, unit, gauge.metric_type())?)
        };
        let started = self.started.as_secs_f64();
        gauge("process_start_time", "When the process started, since 1970", Some(&Unit::Seconds), started)?;
        // Without /proc the number is unknown. The series is left out then, since a zero would be wrong.
        if let Some(bytes) = resident_bytes() {
            gauge("process_resident_memory", "Resident memory", Some(&Unit::Bytes), bytes)?;
        }
        if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
            gauge("process_open_fds", "Open file descriptors", None, open.count() as f64)?;
        }
        if let Some(used) = cpu_seconds() {
            let counter = ConstCounter::new(used);
            let help = "User and system time used";
            counter.encode(encoder.encode_descriptor(
                "process_cpu",
                help,
                Some(&Unit::Seconds),
                counter.metric_type(),
            )?)?;
        }
        Ok(())
    }
}

/// What the process has used of the machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessUsage {
    /// Time in the program.
    pub user: Duration,
    /// Time in the kernel.
    pub system: Duration,
    /// The most resident memory so far, in bytes.
    pub peak_bytes: u64,
}

/// Returns what the process has used; zeros where the system does not tell.
#[must_use]
pub fn process_usage() -> ProcessUsage {
    let [user, system] = cpu_times().unwrap_or_default().map(Duration::from_secs_f64);
    ProcessUsage { user, system, peak_bytes: status_bytes("VmHWM:").unwrap_or_default() as u64 }
}

/// Returns the user and system time of the process in seconds.
fn cpu_seconds() -> Option<f64> {
    cpu_times().map(|[user, system]| user + system)
}

/// Returns the user and the system time of the process in seconds.
///
/// The kernel writes both in hundredths of a second, independent of its own tick.
fn cpu_times() -> Option<[f64; 2]> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the name of the program in parentheses, and may hold spaces.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let (user, system): (f64, f64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some([user / 100.0, system / 100.0])
}

/// Returns the size of the resident set in bytes.
fn resident_bytes() -> Option<f64> {
    status_bytes("VmRSS:")
}

fn status_bytes(name: &str) -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: f64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes * 1024.0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_process_shows_its_own_numbers() {
        let text = crate::telemetry::Metrics::new().encode();
        let value = |name: &str| -> f64 {
            let line = text.lines().find(|line| line.split(' ').next() == Some(name));
            line.unwrap_or_else(|| panic!("{name} in\n{text}")).rsplit(' ').next().unwrap().parse().unwrap()
        };
        assert!(value("process_start_time_seconds") > 1.7e9);
        assert!(value("process_cpu_seconds_total") >= 0.0);
        if cfg!(target_os = "linux") {
            assert!(value("process_resident_memory_bytes") > 100_000.0);
            assert!(value("process_open_fds") >= 3.0);
        }
    }
}
