//! Whether the servers keep through a power cut what they acknowledged: asked of each server's
//! monitoring address (`/varz`).
//!
//! Three answers: a server is good, bad, or cannot be asked. Only a bad one speaks against failing over:
//! one that cannot be asked is most likely lost, with its site, and that is what a failover is for. What it
//! said last still holds; where one never said anything, a majority of good copies will do.

use super::connection::is_new_enough;
use futures_util::future::join_all;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
const SITE_TAG: &str = "site:";
const ANSWER_BYTES_MAX: u64 = 4 << 20;

/// Whether automatic failover may be armed on this log, as far as the servers' durability goes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Safety {
    /// Why not; empty if it may.
    pub reasons: Vec<String>,
    /// Servers that could not be asked now, with the cause: they speak neither for nor against.
    pub unasked: Vec<String>,
}

impl Safety {
    /// Whether nothing speaks against it.
    #[must_use]
    pub fn is_armed(&self) -> bool {
        self.reasons.is_empty()
    }
}

/// What each server said last, by monitoring address.
#[derive(Default)]
pub(super) struct Known(BTreeMap<String, Varz>);

#[derive(Clone, Deserialize)]
pub(super) struct Varz {
    server_name: String,
    version: String,
    #[serde(default)]
    jetstream: JetStream,
    #[serde(default)]
    tags: Vec<String>,
}

#[derive(Clone, Deserialize, Default)]
struct JetStream {
    #[serde(default)]
    config: Option<JetStreamConfig>,
}

#[derive(Clone, Deserialize)]
struct JetStreamConfig {
    #[serde(default)]
    sync_always: bool,
}

/// Asks all servers at once. `known` is held by nobody meanwhile: see [`Known::judge`].
pub(super) async fn ask_all(monitoring: &[String]) -> Vec<(String, Result<Varz, String>)> {
    let asked =
        monitoring.iter().map(|address| async move { (address.clone(), ask(address).await) });
    join_all(asked).await
}

impl Known {
    /// Takes what the servers of a log of so many copies said, and judges by all that is known.
    pub(super) fn judge(
        &mut self,
        answers: Vec<(String, Result<Varz, String>)>,
        replicas: usize,
    ) -> Safety {
        if answers.is_empty() {
            let reason =
                "no monitoring address was given, so sync_interval: always could not be checked";
            return Safety { reasons: vec![reason.into()], unasked: vec![] };
        }
        let addresses = answers.len();
        let mut unasked = Vec::new();
        for (address, answer) in answers {
            match answer {
                Ok(varz) => {
                    self.0.insert(address, varz);
                }
                Err(cause) => {
                    let before = self.0.get(&address).map_or("never was", |_| "was before");
                    unasked.push(format!(
                        "nats-server at {address} could not be asked how it flushes ({cause}); it {before}"
                    ));
                }
            }
        }
        Safety { reasons: self.reasons(addresses, replicas), unasked }
    }

    fn reasons(&self, addresses: usize, replicas: usize) -> Vec<String> {
        let mut sites = BTreeSet::new();
        let mut reasons = Vec::new();
        for varz in self.0.values() {
            reasons.extend(faults(varz));
            if replicas > 1 {
                reasons.extend(misplaced(varz, &mut sites));
            }
        }
        let names: BTreeSet<&str> = self.0.values().map(|varz| &*varz.server_name).collect();
        let never_asked = addresses - self.0.len();
        if names.len() + never_asked < replicas || names.len() * 2 <= replicas {
            reasons.push(format!("{} of {replicas} servers were checked", names.len()));
        }
        reasons
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn says(index: usize, sync_always: bool) -> (String, Result<Varz, String>) {
        let varz = Varz {
            server_name: format!("server-{index}"),
            version: "2.15.1".into(),
            jetstream: JetStream { config: Some(JetStreamConfig { sync_always }) },
            tags: vec![format!("site:{index}")],
        };
        (address(index), Ok(varz))
    }

    fn silent(index: usize) -> (String, Result<Varz, String>) {
        (address(index), Err("no answer".into()))
    }

    fn address(index: usize) -> String {
        format!("http://192.0.2.{index}:8222")
    }

    #[test]
    fn a_server_that_cannot_be_asked_any_more_does_not_disarm() {
        let mut known = Known::default();
        assert!(known.judge(vec![says(0, true), says(1, true), says(2, true)], 3).is_armed());
        let safety = known.judge(vec![silent(0), says(1, true), says(2, true)], 3);
        assert!(safety.is_armed(), "{safety:?}");
        assert!(safety.unasked.len() == 1 && safety.unasked[0].contains("192.0.2.0"), "{safety:?}");
        let safety = known.judge(vec![silent(0), silent(1), silent(2)], 3);
        assert!(safety.is_armed() && safety.unasked.len() == 3, "a switch before them: {safety:?}");
    }

    #[test]
    fn who_starts_after_the_loss_of_one_server_is_content_with_a_majority() {
        let safety = Known::default().judge(vec![silent(0), says(1, true), says(2, true)], 3);
        assert!(safety.is_armed(), "{safety:?}");
        let safety = Known::default().judge(vec![silent(0), silent(1), says(2, true)], 3);
        assert_eq!(safety.reasons, ["1 of 3 servers were checked"]);
        let safety = Known::default().judge(vec![silent(0)], 1);
        assert_eq!(safety.reasons, ["0 of 1 servers were checked"]);
    }

    #[test]
    fn a_server_known_to_be_bad_disarms_until_it_says_otherwise() {
        let mut known = Known::default();
        assert!(!known.judge(vec![says(0, false), says(1, true), says(2, true)], 3).is_armed());
        assert!(!known.judge(vec![silent(0), says(1, true), says(2, true)], 3).is_armed());
        assert!(known.judge(vec![says(0, true), says(1, true), says(2, true)], 3).is_armed());
    }

    #[test]
    fn an_address_missing_or_given_twice_disarms() {
        let safety = Known::default().judge(vec![says(0, true), says(1, true)], 3);
        assert_eq!(safety.reasons, ["2 of 3 servers were checked"]);
        let twice = (address(7), says(1, true).1);
        let safety = Known::default().judge(vec![says(0, true), says(1, true), twice], 3);
        assert!(!safety.is_armed(), "{safety:?}");
        assert!(!Known::default().judge(vec![], 1).is_armed());
    }
}
