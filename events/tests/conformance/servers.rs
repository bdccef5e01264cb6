//! Real nats-servers, started for a test on free loopback ports and ended with it.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use voute_events::JetStreamOptions;

const START_DEADLINE: Duration = Duration::from_secs(60);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The path of a usable nats-server; `None`, said loudly, if none can be had outside of CI.
pub(crate) fn find() -> Option<PathBuf> {
    let tool = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/tools/nats-server");
    let output = Command::new(tool).stderr(Stdio::inherit()).output();
    let found = output
        .ok()
        .filter(|output| output.status.success())
        .map(|output| PathBuf::from(String::from_utf8(output.stdout).expect("a path").trim_end()));
    if found.is_none() {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "CI must have a nats-server");
        eprintln!("SKIPPED: {tool} finds no nats-server; nothing of JetStream was tested");
    }
    found
}

/// How a server flushes.
#[derive(Clone, Copy)]
pub(crate) enum Sync {
    /// Before it acknowledges.
    Always,
    /// Every other minute, as servers do by default.
    Default,
}

/// One server, or a cluster of three.
pub(crate) struct Servers {
    binary: PathBuf,
    directory: tempfile::TempDir,
    servers: Vec<Server>,
}

struct Server {
    port: u16,
    monitoring_port: u16,
    configuration: PathBuf,
    child: Option<Child>,
}

impl Servers {
    /// Starts `count` servers, a cluster if more than one.
    pub(crate) async fn start(binary: &Path, count: usize, sync: Sync) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let ports = free_ports(count * 3);
        let routes: Vec<String> =
            (0..count).map(|index| format!("nats://127.0.0.1:{}", ports[index * 3 + 2])).collect();
        let mut servers = Vec::new();
        for (index, ports) in ports.chunks(3).enumerate() {
            let configuration = directory.path().join(format!("{index}.conf"));
            let text = configuration_text(directory.path(), index, ports, &routes, sync);
            std::fs::write(&configuration, text).expect("a written configuration");
            let (port, monitoring_port) = (ports[0], ports[1]);
            servers.push(Server { port, monitoring_port, configuration, child: None });
        }
        let mut started = Servers { binary: binary.into(), directory, servers };
        for index in 0..count {
            started.start_one(index);
        }
        started.ready().await;
        started
    }

    /// How many.
    pub(crate) fn count(&self) -> usize {
        self.servers.len()
    }

    /// How to reach a stream on them.
    pub(crate) fn options(&self, stream: &str) -> JetStreamOptions {
        let mut options = JetStreamOptions::new("", stream);
        options.servers =
            self.servers.iter().map(|server| format!("nats://127.0.0.1:{}", server.port)).collect();
        options.monitoring = self
            .servers
            .iter()
            .map(|server| format!("http://127.0.0.1:{}", server.monitoring_port))
            .collect();
        options.replicas = self.servers.len();
        options
    }

    /// The address of one.
    pub(crate) fn address(&self, index: usize) -> String {
        format!("127.0.0.1:{}", self.servers[index].port)
    }

    /// Which one has this name.
    pub(crate) fn index_of(name: &str) -> usize {
        name.strip_prefix("server-").expect("a name of ours").parse().expect("a number")
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self, index: usize) {
        let mut child = self.servers[index].child.take().expect("a server that runs");
        child.kill().expect("a process of ours");
        child.wait().expect("a process of ours");
    }

    /// Starts a killed one again, on the same store and port.
    pub(crate) fn start_one(&mut self, index: usize) {
        let log = std::fs::File::create(self.directory.path().join(format!("{index}.log")))
            .expect("a log file");
        let child = Command::new(&self.binary)
            .arg("-c")
            .arg(&self.servers[index].configuration)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("nats-server runs");
        self.servers[index].child = Some(child);
    }

    /// Returns once all servers that run answer, and can tell about their streams.
    pub(crate) async fn ready(&mut self) {
        let deadline = Instant::now() + START_DEADLINE;
        for index in 0..self.servers.len() {
            if self.servers[index].child.is_none() {
                continue;
            }
            while !self.is_ready(index).await {
                let child = self.servers[index].child.as_mut().expect("checked above");
                let ended = child.try_wait().expect("a process of ours");
                assert!(
                    ended.is_none() && Instant::now() < deadline,
                    "server {index} did not start:\n{}",
                    std::fs::read_to_string(self.directory.path().join(format!("{index}.log")))
                        .unwrap_or_default()
                );
                tokio::time::sleep(POLL_INTERVAL).await;
            }
        }
    }

    async fn is_ready(&self, index: usize) -> bool {
        let connect = async_nats::connect(self.address(index)).await;
        let Ok(client) = connect else { return false };
        let mut context = async_nats::jetstream::new(client);
        context.set_timeout(Duration::from_millis(500));
        // Asks the leader of the cluster, so that there is one.
        context.get_stream("none").await.is_err_and(|error| {
            matches!(
                error.kind(),
                async_nats::jetstream::context::GetStreamErrorKind::JetStream(error)
                    if error.error_code().0 == 10_059
            )
        })
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        for child in self.servers.iter_mut().filter_map(|server| server.child.as_mut()) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn configuration_text(
    directory: &Path,
    index: usize,
    ports: &[u16],
    routes: &[String],
    sync: Sync,
) -> String {
    let store = directory.join(format!("store-{index}"));
    let sync = match sync {
        Sync::Always => "sync_interval: always",
        Sync::Default => "",
    };
    let cluster = if routes.len() > 1 {
        format!(
            "cluster {{ name: test, listen: \"127.0.0.1:{}\", routes: {routes:?} }}\n",
            ports[2]
        )
    } else {
        String::new()
    };
    format!(
        "server_name: server-{index}\nserver_tags: [\"site:{index}\"]\nlisten: \"127.0.0.1:{}\"\nhttp: \"127.0.0.1:{}\"\n\
         jetstream {{ store_dir: {store:?}, max_file_store: 1GB, {sync} }}\n{cluster}",
        ports[0], ports[1]
    )
}

/// Ports that were free a moment ago; all are held until the last is known, so that none repeats.
fn free_ports(count: usize) -> Vec<u16> {
    let listeners: Vec<TcpListener> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0").expect("a free loopback port"))
        .collect();
    listeners.iter().map(|held| held.local_addr().expect("a bound address").port()).collect()
}
