//! A private RabbitMQ for one test binary, or the shared one that the environment names.
//!
//! Without `FILESTORAGE_TEST_BROKER_URL` and `FILESTORAGE_TEST_RABBITMQCTL` a node starts on free loopback ports with its
//! data below `target/`. A shell that reads from this process ends it by its pid once this process is gone, however that
//! came about.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

static NODE: OnceLock<Node> = OnceLock::new();
static NAMES: AtomicU32 = AtomicU32::new(0);

/// The broker that the tests of this binary share.
pub(crate) struct Node {
    /// `amqp://guest:guest@127.0.0.1:port`, without a virtual host.
    pub(crate) url: String,
    /// Port of the encrypted listener and where its certificates are; the shared node has none.
    pub(crate) tls: Option<(u16, PathBuf)>,
    ctl: Vec<String>,
    environment: Vec<(&'static str, String)>,
    /// The shell that stops the node once its input, which this process holds, ends.
    _keeper: Option<Child>,
}

/// Returns the node, starting it on first use.
pub(crate) fn node() -> &'static Node {
    NODE.get_or_init(|| {
        let given = (std::env::var("FILESTORAGE_TEST_BROKER_URL"), std::env::var("FILESTORAGE_TEST_RABBITMQCTL"));
        match given {
            (Ok(url), Ok(ctl)) => Node {
                url: url.trim_end_matches('/').to_owned(),
                tls: None,
                ctl: ctl.split_whitespace().map(str::to_owned).collect(),
                environment: Vec::new(),
                _keeper: None,
            },
            _ => Node::start(),
        }
    })
}

impl Node {
    fn start() -> Self {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("target/rabbitmq-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let (port, distribution, names) = (free_port(), free_port(), free_port());
        let path = |name: &str| -> String { directory.join(name).to_string_lossy().into_owned() };
        std::fs::write(path("plugins"), "[].\n").unwrap();
        // Shared machines have full disks and busy memory; neither is what is tested here.
        let mut settings = "disk_free_limit.absolute = 1MB\n".to_owned();
        let encrypted = free_port();
        certify(&directory);
        settings.push_str(&format!("listeners.ssl.1 = 127.0.0.1:{encrypted}\n"));
        for (setting, value) in [
            ("cacertfile", path("ca.pem")),
            ("certfile", path("server.pem")),
            ("keyfile", path("server.key")),
            ("verify", "verify_peer".to_owned()),
            ("fail_if_no_peer_cert", "true".to_owned()),
        ] {
            settings.push_str(&format!("ssl_options.{setting} = {value}\n"));
        }
        std::fs::write(path("rabbitmq.conf"), settings).unwrap();
        let environment = vec![
            ("HOME", directory.to_string_lossy().into_owned()),
            ("RABBITMQ_NODENAME", format!("filestorage-{}@localhost", std::process::id())),
            ("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1".to_owned()),
            ("RABBITMQ_NODE_PORT", port.to_string()),
            ("RABBITMQ_DIST_PORT", distribution.to_string()),
            ("RABBITMQ_MNESIA_BASE", path("data")),
            ("RABBITMQ_LOG_BASE", path("log")),
            ("ERL_CRASH_DUMP", path("erl_crash.dump")),
            ("RABBITMQ_PID_FILE", path("pid")),
            ("RABBITMQ_CONFIG_FILE", path("rabbitmq.conf")),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", path("plugins")),
            ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1} +S 1:1".to_owned()),
            ("ERL_EPMD_ADDRESS", "127.0.0.1".to_owned()),
            ("ERL_EPMD_PORT", names.to_string()),
        ];
        let script = "epmd -port \"$ERL_EPMD_PORT\" & names=$!
            /usr/lib/rabbitmq/bin/rabbitmq-server >\"$HOME/out\" 2>&1 & server=$!
            read _
            [ -s \"$RABBITMQ_PID_FILE\" ] && kill -9 \"$(cat \"$RABBITMQ_PID_FILE\")\"
            kill -9 $server; kill $names; wait; rm -rf \"$HOME\"";
        let keeper = Command::new("sh")
            .args(["-c", script])
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let node = Self {
            url: format!("amqp://guest:guest@127.0.0.1:{port}"),
            tls: Some((encrypted, directory.clone())),
            ctl: vec!["/usr/lib/rabbitmq/bin/rabbitmqctl".to_owned()],
            environment,
            _keeper: Some(keeper),
        };
        for _ in 0..240 {
            std::thread::sleep(Duration::from_millis(250));
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return node;
            }
        }
        let log = std::fs::read_to_string(PathBuf::from(path("out"))).unwrap_or_default();
        panic!("rabbitmq did not start: {log}");
    }

    /// Runs `rabbitmqctl` and returns what it printed.
    pub(crate) fn ctl(&self, arguments: &[&str]) -> String {
        let output = Command::new(&self.ctl[0])
            .args(&self.ctl[1..])
            .arg("--quiet")
            .args(arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{arguments:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        text
    }

    /// Creates a virtual host for one test and returns its name; the user `guest` may do everything in it.
    pub(crate) fn vhost(&self) -> String {
        let name = format!("test-{}-{}", std::process::id(), NAMES.fetch_add(1, Ordering::Relaxed));
        self.ctl(&["add_vhost", &name]);
        self.ctl(&["set_permissions", "--vhost", &name, "guest", ".*", ".*", ".*"]);
        name
    }

    /// Returns the node's URL with another login and virtual host.
    pub(crate) fn url_for(&self, login: &str, vhost: &str) -> String {
        let (_, place) = self.url.rsplit_once('@').unwrap();
        format!("amqp://{login}@{place}/{vhost}")
    }

    /// Returns `host:port`.
    pub(crate) fn place(&self) -> &str {
        self.url.rsplit_once('@').unwrap().1
    }
}

/// Makes an authority and, signed by it, a certificate for the server and one for a client.
fn certify(directory: &Path) {
    let openssl = |arguments: &str| {
        let output = Command::new("openssl").args(arguments.split(' ')).current_dir(directory).output().unwrap();
        assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2";
    openssl(&format!("req -x509 {key} -subj /CN=authority -keyout ca.key -out ca.pem"));
    for name in ["server", "client"] {
        openssl(&format!(
            "req -x509 {key} -subj /CN={name} -addext subjectAltName=DNS:localhost -addext basicConstraints=critical,CA:FALSE \
             -CA ca.pem -CAkey ca.key -keyout {name}.key -out {name}.pem"
        ));
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
