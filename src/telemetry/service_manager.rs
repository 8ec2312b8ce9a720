//! Reports the state of this process to the service manager, by systemd's `sd_notify` protocol.
//!
//! The protocol is written here on the standard library, because the existing crate connects to paths only. The manager of
//! a container may use an abstract socket.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::pin::pin;
use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior, interval};

use super::readiness::ReadinessState;
use super::{ComponentState, Readiness};

/// The longest time that a datagram waits for a manager that does not read; the worker stands still meanwhile.
const SEND_TIMEOUT: Duration = Duration::from_millis(100);
/// The longest status line, in characters.
const STATUS_LENGTH: usize = 400;

/// The reason why nothing can be reported to the service manager; the worker runs nevertheless.
#[derive(Debug, thiserror::Error)]
pub enum NotifyError {
    /// `NOTIFY_SOCKET` is neither a path nor the name of an abstract socket.
    #[error("NOTIFY_SOCKET is {0:?}, neither an absolute path nor @ and the name of an abstract socket")]
    Address(OsString),
    /// `WATCHDOG_USEC` is not a positive number.
    #[error("WATCHDOG_USEC is {0:?}, not a number of microseconds above 0")]
    Watchdog(OsString),
    /// No socket could be opened to send from.
    #[error("no socket for NOTIFY_SOCKET: {0}")]
    Socket(#[from] io::Error),
}

/// The connection to the service manager that started this process and asked for reports.
pub struct ServiceManager {
    socket: UnixDatagram,
    address: SocketAddr,
    /// The manager takes a process for stuck when it sends no `WATCHDOG=1` for this time.
    watchdog: Option<Duration>,
    /// The last message could not be sent, and that was logged.
    failing: bool,
}

impl fmt::Debug for ServiceManager {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("ServiceManager")
            .field("address", &self.address)
            .field("watchdog", &self.watchdog)
            .finish_non_exhaustive()
    }
}

impl ServiceManager {
    /// Finds the manager by the environment variables that it sets, or returns `None` without `NOTIFY_SOCKET`.
    ///
    /// `WATCHDOG_USEC` and `WATCHDOG_PID` describe the manager's watchdog.
    ///
    /// # Errors
    ///
    /// [`NotifyError`] when a variable cannot be understood.
    pub fn find(variable: impl Fn(&str) -> Option<OsString>) -> Result<Option<Self>, NotifyError> {
        let Some(name) = variable("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else { return Ok(None) };
        let address = match name.as_bytes() {
            [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest)?,
            [b'/', ..] => SocketAddr::from_pathname(&name)?,
            _ => return Err(NotifyError::Address(name)),
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(SEND_TIMEOUT))?;
        Ok(Some(Self { socket, address, watchdog: watchdog(variable)?, failing: false }))
    }

    /// Runs `work` to its end, and reports the state of the worker to the manager meanwhile.
    ///
    /// Sent are `READY=1` once the start is over ([`Readiness::set_started`]), `STATUS=` at each change of readiness, and
    /// `STOPPING=1` when `stopping` is ready. `WATCHDOG=1` is sent twice in each period of the watchdog, by the task that
    /// runs `work`: when `work` blocks that task, no `WATCHDOG=1` is sent, and the manager restarts the process.
    pub async fn accompany<T>(
        mut self,
        work: impl Future<Output = T>,
        readiness: &Readiness,
        stopping: impl Future<Output = ()>,
    ) -> T {
        let (mut work, mut stopping) = (pin!(work), pin!(stopping));
        let mut standing = readiness.follow();
        standing.mark_changed();
        let mut pings = self.watchdog.map(|period| {
            let mut pings = interval(period / 2);
            pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
            pings
        });
        let (mut started, mut stopped) = (false, false);
        loop {
            tokio::select! {
                biased;
                () = &mut stopping, if !stopped => {
                    stopped = true;
                    self.send("STOPPING=1\nSTATUS=stopping: what runs is finished");
                }
                done = &mut work => {
                    if !stopped {
                        self.send("STOPPING=1");
                    }
                    return done;
                }
                Ok(()) = standing.changed(), if !stopped => {
                    let standing = standing.borrow_and_update().clone();
                    let ready = if standing.started && !started { "READY=1\n" } else { "" };
                    started = standing.started;
                    self.send(&format!("{ready}STATUS={}", status(&standing)));
                }
                () = next(&mut pings) => self.send("WATCHDOG=1"),
            }
        }
    }

    fn send(&mut self, message: &str) {
        let sent = self.socket.send_to_addr(message.as_bytes(), &self.address);
        if let Err(error) = &sent
            && !self.failing
        {
            tracing::warn!(%error, "the state of the worker cannot be reported to the service manager");
        }
        self.failing = sent.is_err();
    }
}

/// Returns the period of the watchdog, when the watchdog is meant for this process.
fn watchdog(variable: impl Fn(&str) -> Option<OsString>) -> Result<Option<Duration>, NotifyError> {
    let number = |text: &OsString| text.to_str()?.parse::<u64>().ok().filter(|number| *number > 0);
    let Some(period) = variable("WATCHDOG_USEC") else { return Ok(None) };
    let ours = variable("WATCHDOG_PID").is_none_or(|pid| number(&pid) == Some(u64::from(std::process::id())));
    match number(&period) {
        Some(period) => Ok(ours.then(|| Duration::from_micros(period))),
        None => Err(NotifyError::Watchdog(period)),
    }
}

async fn next(pings: &mut Option<Interval>) {
    match pings {
        Some(pings) => {
            pings.tick().await;
        }
        None => std::future::pending().await,
    }
}

/// Describes the state of the process in one line, with the reasons for not being ready first.
fn status(standing: &ReadinessState) -> String {
    let (mut unready, mut degraded) = (Vec::new(), Vec::new());
    for (component, condition) in &standing.conditions {
        match condition {
            ComponentState::Ready => {}
            ComponentState::Degraded(reason) => degraded.push(format!("{component}: {reason}")),
            ComponentState::Unready(reason) => unready.push(format!("{component}: {reason}")),
        }
    }
    let state = match (standing.started, unready.is_empty()) {
        (false, _) => "starting",
        (true, true) => "ready",
        (true, false) => "not ready",
    };
    let line = [vec![state.to_owned()], unready, degraded].concat().join("; ");
    // A line break would begin another variable of the message.
    let line: String = line.chars().map(|character| if character.is_control() { ' ' } else { character }).collect();
    match line.char_indices().nth(STATUS_LENGTH) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::sync::oneshot;

    use super::*;
    use crate::telemetry::Component;

    /// The manager's end of the socket.
    struct Manager {
        socket: UnixDatagram,
        folder: tempfile::TempDir,
    }

    impl Manager {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
            socket.set_nonblocking(true).unwrap();
            Self { socket, folder }
        }

        fn variables(&self, watchdog: Option<&str>) -> impl Fn(&str) -> Option<OsString> {
            let (path, watchdog) = (self.folder.path().join("notify").into_os_string(), watchdog.map(OsString::from));
            move |name| match name {
                "NOTIFY_SOCKET" => Some(path.clone()),
                "WATCHDOG_USEC" => watchdog.clone(),
                _ => None,
            }
        }

        /// All messages so far.
        fn heard(&self) -> Vec<String> {
            let mut buffer = [0; 4096];
            std::iter::from_fn(|| self.socket.recv(&mut buffer).ok().map(|length| buffer[..length].to_vec()))
                .map(|bytes| String::from_utf8(bytes).unwrap())
                .collect()
        }
    }

    async fn turn() {
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_worker_is_reported_from_start_to_stop() {
        let manager = Manager::new();
        let told = ServiceManager::find(manager.variables(None)).unwrap().unwrap();
        let readiness = Readiness::new(&[Component::Broker]);
        let ((finish, work), (stop, stopping)) = (oneshot::channel::<()>(), oneshot::channel::<()>());
        let life = tokio::spawn({
            let readiness = readiness.clone();
            async move { told.accompany(async { work.await.is_ok() }, &readiness, async { stopping.await.unwrap() }).await }
        });
        turn().await;
        assert_eq!(manager.heard(), ["STATUS=starting; broker: starting"]);
        readiness.set_started();
        readiness.set(Component::Broker, ComponentState::Unready("no session:\nrefused".to_owned()));
        turn().await;
        assert_eq!(manager.heard(), ["READY=1\nSTATUS=not ready; broker: no session: refused"]);
        readiness.set(Component::Broker, ComponentState::Ready);
        turn().await;
        assert_eq!(manager.heard(), ["STATUS=ready"]);
        readiness.set(Component::Storage, ComponentState::Degraded("the bucket is away".to_owned()));
        turn().await;
        assert_eq!(manager.heard(), ["STATUS=ready; storage: the bucket is away"]);
        stop.send(()).unwrap();
        turn().await;
        assert_eq!(manager.heard(), ["STOPPING=1\nSTATUS=stopping: what runs is finished"]);
        readiness.set(Component::Worker, ComponentState::Unready("draining".to_owned()));
        turn().await;
        finish.send(()).unwrap();
        assert!(life.await.unwrap());
        assert!(manager.heard().is_empty());
    }

    #[tokio::test]
    async fn an_unexpected_end_is_reported() {
        let manager = Manager::new();
        let told = ServiceManager::find(manager.variables(None)).unwrap().unwrap();
        told.accompany(async {}, &Readiness::new(&[]), std::future::pending()).await;
        assert_eq!(manager.heard().last().unwrap(), "STOPPING=1");
    }

    /// This test uses real time: it blocks the thread, which a paused clock would not notice.
    #[tokio::test]
    async fn pings_end_with_a_loop_that_stands_still() {
        const PERIOD: Duration = Duration::from_millis(100);
        let manager = Manager::new();
        let told = ServiceManager::find(manager.variables(Some("100000"))).unwrap().unwrap();
        let readiness = Readiness::new(&[]);
        let work = async {
            let mut pings = 0;
            while pings < 3 {
                tokio::time::sleep(PERIOD / 10).await;
                pings += manager.heard().iter().filter(|message| *message == "WATCHDOG=1").count();
            }
            let stuck = Instant::now();
            while stuck.elapsed() < 3 * PERIOD {
                std::hint::spin_loop();
            }
            manager.heard()
        };
        let meanwhile = told.accompany(work, &readiness, std::future::pending()).await;
        assert!(meanwhile.is_empty(), "{meanwhile:?}");
    }

    #[test]
    fn variables_are_understood_or_named() {
        let find = |socket: &'static str, watchdog: Option<&'static str>, pid: Option<String>| {
            ServiceManager::find(move |name| match name {
                "NOTIFY_SOCKET" => Some(socket.into()),
                "WATCHDOG_USEC" => watchdog.map(OsString::from),
                _ => pid.clone().map(OsString::from),
            })
        };
        let period = |watchdog, pid| find("@a", watchdog, pid).unwrap().unwrap().watchdog;
        assert!(ServiceManager::find(|_| None).unwrap().is_none());
        assert!(find("", None, None).unwrap().is_none());
        assert_eq!(period(None, None), None);
        assert_eq!(period(Some("3000000"), None), Some(Duration::from_secs(3)));
        assert_eq!(period(Some("3000000"), Some(std::process::id().to_string())), Some(Duration::from_secs(3)));
        assert_eq!(period(Some("3000000"), Some("1".to_owned())), None);
        for (socket, watchdog, named) in [
            ("vsock:2:1234", None, "vsock:2:1234"),
            ("relative", None, "NOTIFY_SOCKET"),
            ("@a", Some("soon"), "WATCHDOG_USEC is \"soon\""),
            ("@a", Some("0"), "above 0"),
        ] {
            let words = find(socket, watchdog, None).unwrap_err().to_string();
            assert!(words.contains(named), "{words}");
        }
    }

    #[test]
    fn a_long_reason_is_cut() {
        let readiness = Readiness::new(&[]);
        readiness.set(Component::Broker, ComponentState::Unready("é".repeat(1000)));
        let line = status(&readiness.follow().borrow());
        assert_eq!(line.chars().count(), STATUS_LENGTH + 1);
        assert!(line.ends_with("é…"), "{line}");
    }
}
