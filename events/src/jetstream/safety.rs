//! Whether the servers keep through a power cut what they acknowledged: asked of each server's
//! monitoring address (`/varz`).

use super::connection::is_new_enough;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
const SITE_TAG: &str = "site:";
const ANSWER_BYTES_MAX: u64 = 4 << 20;

/// Whether automatic failover may be armed on this log, as far as the servers' durability goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Safety {
    /// Why not; empty if it may.
    pub reasons: Vec<String>,
}

impl Safety {
    /// Whether every server is known to flush before it acknowledges.
    #[must_use]
    pub fn is_armed(&self) -> bool {
        self.reasons.is_empty()
    }
}

#[derive(Deserialize)]
struct Varz {
    server_name: String,
    version: String,
    #[serde(default)]
    jetstream: JetStream,
    #[serde(default)]
    tags: Vec<String>,
}

#[derive(Deserialize, Default)]
struct JetStream {
    #[serde(default)]
    config: Option<JetStreamConfig>,
}

#[derive(Deserialize)]
struct JetStreamConfig {
    #[serde(default)]
    sync_always: bool,
}

pub(super) async fn check(monitoring: &[String], replicas: usize) -> Safety {
    let mut reasons = Vec::new();
    if monitoring.is_empty() {
        reasons.push(
            "no monitoring address was given, so sync_interval: always could not be checked".into(),
        );
        return Safety { reasons };
    }
    let mut names = BTreeSet::new();
    let mut sites = BTreeSet::new();
    for address in monitoring {
        match ask(address).await {
            Ok(varz) => {
                reasons.extend(faults(&varz));
                if replicas > 1 {
                    reasons.extend(misplaced(&varz, &mut sites));
                }
                names.insert(varz.server_name);
            }
            Err(cause) => reasons.push(format!("{address} could not be asked: {cause}")),
        }
    }
    if names.len() < replicas {
        reasons.push(format!("{} of {replicas} servers were checked", names.len()));
    }
    Safety { reasons }
}

/// Copies at one site would be lost with it: each server names a site of its own, and the servers'
/// `unique_tag` spreads the copies over them.
fn misplaced(varz: &Varz, sites: &mut BTreeSet<String>) -> Option<String> {
    let name = &varz.server_name;
    let Some(site) = varz.tags.iter().find(|tag| tag.starts_with(SITE_TAG)) else {
        return Some(format!(
            "{name} does not tell its site: set server_tags: [\"{SITE_TAG}NAME\"]"
        ));
    };
    let is_new = sites.insert(site.clone());
    (!is_new).then(|| format!("{name} is at {site} like another server: have one server a site"))
}

fn faults(varz: &Varz) -> Vec<String> {
    let name = &varz.server_name;
    let mut faults = Vec::new();
    if !is_new_enough(&varz.version) {
        faults.push(format!("{name} is nats-server {}, which is too old", varz.version));
    }
    if !varz.jetstream.config.as_ref().is_some_and(|config| config.sync_always) {
        faults.push(format!("{name} acknowledges before it flushes: set sync_interval: always"));
    }
    faults
}

async fn ask(address: &str) -> Result<Varz, String> {
    let host = address
        .strip_prefix("http://")
        .ok_or("a monitoring address begins with http://")?
        .trim_end_matches('/');
    let answer = timeout(ANSWER_TIMEOUT, get(host))
        .await
        .map_err(|_| "no answer".to_string())?
        .map_err(|error| error.to_string())?;
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text.split_once("\r\n\r\n").ok_or("the answer is not HTTP")?;
    if head.split(' ').nth(1) != Some("200") {
        return Err(format!("it answered {:.80}", head.lines().next().unwrap_or_default()));
    }
    serde_json::from_str(body).map_err(|error| error.to_string())
}

/// HTTP/1.0, so that the answer ends with the connection.
async fn get(host: &str) -> std::io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(host).await?;
    let request = format!("GET /varz HTTP/1.0\r\nHost: {host}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
    Ok(answer)
}
