//! A control process in a temporary directory, and a small HTTP client for it.

use serde_json::Value;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use voute_control::{ControlConfig, Running, run};
use voute_schemas::times::Times;

/// Longest that a test waits for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Times short enough for tests.
pub(crate) fn quick_times() -> Times {
    Times { node_silence_ms: 600, heartbeat_ms: 50, ..Times::default() }
}

/// A process under test.
pub(crate) struct Control {
    pub(crate) folder: TempDir,
    pub(crate) running: Running,
    pub(crate) token: String,
}

/// An HTTP answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Value,
    pub(crate) text: String,
}

pub(crate) fn config(folder: &Path) -> ControlConfig {
    let mut config = ControlConfig::new(folder);
    config.api_listen = "127.0.0.1:0".parse().unwrap();
    config.times = quick_times();
    config
}

impl Control {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self::start_in(folder).await
    }

    pub(crate) async fn start_in(folder: TempDir) -> Self {
        let running = run(config(folder.path()), std::future::pending()).await.unwrap();
        let token = std::fs::read_to_string(token_path(&folder)).unwrap().trim().to_owned();
        Control { folder, running, token }
    }

    /// Stops the process; its files stay.
    pub(crate) async fn stop(self) -> TempDir {
        self.running.stop();
        self.running.ended().await.unwrap();
        self.folder
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.running.address()
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], None).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.send("POST", path, &[], Some(body)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path, &[], None).await
    }

    /// With the administrator's token.
    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Value>,
    ) -> Answer {
        let bearer = format!("Bearer {}", self.token);
        let mut all = vec![("authorization", bearer.as_str())];
        all.extend_from_slice(headers);
        let body = body.map(|body| body.to_string()).unwrap_or_default();
        request(self.address(), method, path, &all, body.as_bytes()).await
    }

    /// Creates something and returns the whole answer, which must be a success.
    pub(crate) async fn create(&self, path: &str, body: Value) -> Value {
        let answer = self.post(path, body).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text);
        answer.body
    }

    pub(crate) async fn head(&self) -> u64 {
        self.get("/v1/cluster").await.body["head"]["sequence"].as_u64().unwrap()
    }

    /// Asks again until the answer is as wanted.
    pub(crate) async fn until(&self, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let began = Instant::now();
        loop {
            let answer = self.get(path).await;
            if wanted(&answer.body) {
                return answer.body;
            }
            assert!(
                began.elapsed() < PATIENCE,
                "{path} never became what was waited for: {}",
                answer.text
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

pub(crate) fn token_path(folder: &TempDir) -> PathBuf {
    folder.path().join("admin.token")
}

/// One HTTP/1.1 request on a connection of its own.
pub(crate) async fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Answer {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!(
        "content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    ));
    stream.write_all(head.as_bytes()).await.unwrap();
    // A server that refuses early may close before it has read the body.
    let _ = stream.write_all(body).await;
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes).await;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, text) = text.split_once("\r\n\r\n").expect("an answer has a head");
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let body = serde_json::from_str(text).unwrap_or(Value::Null);
    Answer { status, body, text: text.to_owned() }
}
