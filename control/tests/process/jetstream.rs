//! The same process over NATS JetStream, on a real server.

use crate::client::{Control, PATIENCE, config};
use serde_json::json;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use voute_control::{ControlConfig, LogConfig, Running, StartError, run};
use voute_events::JetStreamOptions;

/// A server that ends with the test.
struct Server {
    child: Child,
    port: u16,
    monitoring: u16,
    _folder: tempfile::TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn binary() -> Option<PathBuf> {
    let tool = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/tools/nats-server");
    let output = Command::new(tool).stderr(Stdio::inherit()).output();
    let found = output.ok().filter(|output| output.status.success());
    if found.is_none() {
        assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "CI must have a nats-server");
        eprintln!("SKIPPED: {tool} finds no nats-server; nothing of JetStream was tested");
    }
    found.map(|output| PathBuf::from(String::from_utf8(output.stdout).unwrap().trim_end()))
}

impl Server {
    fn start(binary: PathBuf, sync: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let held =
            [TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap()];
        let [port, monitoring] = held.map(|held| held.local_addr().unwrap().port());
        let configuration = folder.path().join("nats.conf");
        let store = folder.path().join("store");
        let text = format!(
            "listen: \"127.0.0.1:{port}\"\nhttp: \"127.0.0.1:{monitoring}\"\n\
             jetstream {{ store_dir: {store:?}, max_file_store: 1GB, {sync} }}\n"
        );
        std::fs::write(&configuration, text).unwrap();
        let mut command = Command::new(binary);
        command.arg("-c").arg(&configuration).stdout(Stdio::null()).stderr(Stdio::null());
        Server { child: command.spawn().unwrap(), port, monitoring, _folder: folder }
    }

    fn options(&self) -> JetStreamOptions {
        let mut options = JetStreamOptions::new(format!("nats://127.0.0.1:{}", self.port), "test");
        options.monitoring = vec![format!("http://127.0.0.1:{}", self.monitoring)];
        options
    }

    /// Starts a control process over it, once it answers.
    async fn control(&self, config: ControlConfig) -> Running {
        let log = LogConfig::JetStream(Box::new(self.options()));
        let config = ControlConfig { log, ..config };
        let began = Instant::now();
        loop {
            match run(config.clone(), std::future::pending()).await {
                Ok(running) => return running,
                Err(error) => assert!(began.elapsed() < PATIENCE, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn start_in(&self, folder: tempfile::TempDir) -> Control {
        let running = self.control(config(folder.path())).await;
        let path = crate::client::token_path(&folder);
        let token = std::fs::read_to_string(path).unwrap().trim().to_owned();
        Control { folder, running, token }
    }
}

#[tokio::test]
async fn a_process_over_jetstream_commits_restarts_and_verifies() {
    let Some(binary) = binary() else { return };
    let server = Server::start(binary, "sync_interval: always");
    let control = server.start_in(tempfile::tempdir().unwrap()).await;
    for index in 0..5 {
        control.create("/v1/sites", json!({"name": format!("s{index}"), "kind": "Data"})).await;
    }
    let refused = control.post("/v1/sites", json!({"name": "s1", "kind": "Data"})).await;
    assert_eq!(refused.body["code"], "duplicate-name");
    let before = control.get("/v1/cluster").await.body;
    assert_eq!(before["head"]["sequence"], 9);
    let control = server.start_in(control.stop().await).await;
    assert_eq!(control.get("/v1/cluster").await.body["digest"], before["digest"]);
    let verified = control.get("/v1/audit/verify").await.body;
    assert_eq!(verified["verified"], true, "{verified}");
    let status = control.get("/v1/status").await.body;
    assert!(!status["problems"].to_string().contains("sync"), "{status}");
    // A log that cannot be read is not a broken one.
    drop(server);
    let answer = control.get("/v1/audit/verify").await;
    assert_eq!((answer.status, &answer.body["code"]), (503, &json!("not-provable")));
}

#[tokio::test]
async fn a_log_that_may_forget_what_it_acknowledged_arms_nothing() {
    let Some(binary) = binary() else { return };
    let server = Server::start(binary, "");
    let control = server.start_in(tempfile::tempdir().unwrap()).await;
    let status = control.get("/v1/status").await.body;
    assert_eq!(status["health"], "degraded");
    assert!(status["problems"].to_string().contains("sync"), "{status}");
}

#[tokio::test]
async fn a_second_process_joins_with_the_first_ones_file_and_serves_nodes_the_same_secrets() {
    let Some(binary) = binary() else { return };
    let server = Server::start(binary, "sync_interval: always");
    let first = server.start_in(tempfile::tempdir().unwrap()).await;
    let folder = tempfile::tempdir().unwrap();
    let mut other = config(folder.path());
    other.log_site_name = voute_schemas::Name::new("log-2").unwrap();
    // Not without the file: it would make up secrets of its own.
    let log = LogConfig::JetStream(Box::new(server.options()));
    let stray = run(ControlConfig { log, ..other.clone() }, std::future::pending()).await;
    assert!(matches!(stray, Err(StartError::NotJoined)), "{stray:?}");
    other.join = Some(first.folder.path().join("join.secret"));
    let running = server.control(other.clone()).await;
    assert!(running.token_file().is_none(), "the administrator is in the log already");
    let second = Control { folder, running, token: first.token.clone() };
    // Before it signs, it takes commands and serves nodes on the first one's word.
    first.create("/v1/sites", json!({"name": "north", "kind": "Data"})).await;
    second.until("/v1/sites/north", |site| site["name"] == "north").await;
    let secret = json!({"secret": "correct horse battery"});
    let put = first.send("PUT", "/v1/secrets/chap-a", &[], Some(secret)).await;
    assert_eq!(put.status, 200, "{}", put.text);
    let has_secret = |names: &serde_json::Value| names["names"][0] == "chap-a";
    second.until("/v1/secrets", has_secret).await;
    let node = json!({
        "name": "n", "site": "north", "nvme": "127.0.0.1:1", "iscsi": "127.0.0.1:2",
        "link": "127.0.0.1:3",
    });
    let admitted = second.create("/v1/nodes", node).await;
    let (id, secret) =
        (admitted["created"].as_str().unwrap(), admitted["secret"].as_str().unwrap());
    first.until("/v1/nodes/n", |node| node["name"] == "n").await;
    let mut links = Vec::new();
    for process in [&first, &second] {
        crate::fake_node::until_let_in(process.address(), id, secret).await;
        let node = crate::fake_node::FakeNode::connect(process.address(), id, secret, 1).await;
        let facts = node.until("a proven spec", |inside| inside.facts.clone()).await;
        links.push(facts.link_secret);
    }
    assert_eq!(links[0], links[1], "one cluster, one secret between its nodes");
    // It becomes a site of the log, as does a third that is not there yet; then both sign.
    let sites = json!({"add": [key_of(&second), "log-3+b2d6f09d+AQ=="]});
    let refused = first.post("/v1/log-sites", sites).await;
    assert_eq!(refused.status, 422, "a mistyped key is refused: {}", refused.text);
    // Nor is one that is not heard: the log would wait for it for ever.
    let absent = voute_events::Signer::generate("log-3").unwrap().verifier();
    let absent = voute_events::note::verifier_text(&absent);
    let sites = json!({"add": [key_of(&second), absent]});
    let refused = first.post("/v1/log-sites", sites).await;
    assert_eq!((refused.status, &refused.body["code"]), (409, &json!("log-site-silent")));
    // And two sites are worse than one: that must be meant.
    let sites = json!({"add": [key_of(&second)]});
    let refused = first.post("/v1/log-sites", sites.clone()).await;
    assert_eq!((refused.status, &refused.body["code"]), (409, &json!("two-log-sites")));
    let changed = first.post("/v1/log-sites?force=true", sites).await;
    assert_eq!(changed.status, 200, "{}", changed.text);
    let both_sign = |list: &serde_json::Value| {
        let items = list["items"].as_array().unwrap();
        items.len() == 2 && items.iter().all(|site| site["signed"] == items[0]["signed"])
    };
    second.until("/v1/log-sites", both_sign).await;
    let verified = second.get("/v1/audit/verify").await.body;
    assert_eq!(verified["verified"], true, "{verified}");
    // Two of two must sign: without the first, a command has no outcome and nodes are not told.
    let before = second.head().await;
    first.running.stop();
    let waiting = second.post("/v1/sites", json!({"name": "south", "kind": "Data"}));
    let waited = tokio::time::timeout(Duration::from_secs(1), waiting).await;
    assert!(waited.is_err(), "{waited:?}");
    assert_eq!(second.head().await, before);
}

#[tokio::test]
async fn the_file_of_another_cluster_leaves_nothing_of_that_cluster_behind() {
    let Some(binary) = binary() else { return };
    let server = Server::start(binary, "sync_interval: always");
    let ours = server.start_in(tempfile::tempdir().unwrap()).await;
    let elsewhere = tempfile::tempdir().unwrap();
    let options = JetStreamOptions { stream: "other".into(), ..server.options() };
    let log = LogConfig::JetStream(Box::new(options));
    let config_of_other = ControlConfig { log, ..config(elsewhere.path()) };
    let other = run(config_of_other, std::future::pending()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let start = |join: Option<PathBuf>| {
        let log = LogConfig::JetStream(Box::new(server.options()));
        let config = ControlConfig { log, join, ..config(folder.path()) };
        run(config, std::future::pending())
    };
    let wrong = start(Some(elsewhere.path().join("join.secret"))).await;
    assert!(matches!(wrong, Err(StartError::OtherCluster { .. })), "{wrong:?}");
    // The next start, by a unit that gives `--join` once only, is not let in with what the first kept.
    let again = start(None).await;
    assert!(matches!(again, Err(StartError::NotJoined)), "{again:?}");
    let right = start(Some(ours.folder.path().join("join.secret"))).await;
    assert!(right.is_ok(), "{right:?}");
    other.stop();
}

/// What a control process's log site is known by, as `voute control --show-key` prints it.
fn key_of(control: &Control) -> String {
    let key = control.folder.path().join(voute_control::KEY_FILE);
    let signer = voute_events::Signer::load_or_create(key, "log-2").unwrap();
    voute_events::note::verifier_text(&signer.verifier())
}
