//! Signatures of keys that are none of the log's sites: whoever is to become one must be heard first, or
//! the log would wait for a site that is not there.

use super::effect::SITE_SILENT_AFTER;
use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use voute_events::checkpoint::{Claim, signatures};
use voute_schemas::proof::{Checkpoint, Verifier};

/// Messages kept, the youngest.
const KEPT_MAX: usize = 64;
/// Longest message kept, bytes; a signature over a checkpoint takes some 200.
const BYTES_MAX: usize = 1_024;

/// What was heard of late. Whose it is can be told only once somebody names a key.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    heard: Mutex<VecDeque<(Instant, Checkpoint)>>,
    more: Notify,
}

impl Strangers {
    /// Keeps what somebody unknown said.
    pub(super) fn hear(&self, said: Checkpoint) {
        if said.0.len() > BYTES_MAX {
            return;
        }
        let mut heard = self.heard.lock().expect("no holder panics");
        heard.push_back((Instant::now(), said));
        while heard.len() > KEPT_MAX
            || heard.front().is_some_and(|(at, _)| at.elapsed() > SITE_SILENT_AFTER)
        {
            heard.pop_front();
        }
        self.more.notify_waiters();
    }

    /// Whether this key is heard by then with what `is_right`.
    pub(super) async fn include_within(
        &self,
        time: Duration,
        verifier: &Verifier,
        is_right: impl Fn(&Claim) -> bool,
    ) -> bool {
        let heard = async {
            loop {
                let more = self.more.notified();
                let mut more = std::pin::pin!(more);
                more.as_mut().enable();
                if self.include(verifier, &is_right) {
                    return;
                }
                more.await;
            }
        };
        tokio::time::timeout(time, heard).await.is_ok()
    }

    /// Whether this key signed of late what `is_right`.
    fn include(&self, verifier: &Verifier, is_right: impl Fn(&Claim) -> bool) -> bool {
        let heard = self.heard.lock().expect("no holder panics").clone();
        let mut young = heard.iter().filter(|(at, _)| at.elapsed() <= SITE_SILENT_AFTER);
        young.any(|(_, said)| {
            signatures(said, std::slice::from_ref(verifier))
                .is_ok_and(|(claim, signed)| !signed.is_empty() && is_right(&claim))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use voute_events::Signer;
    use voute_schemas::Hash;

    #[test]
    fn a_key_is_heard_only_by_its_own_signature_over_what_is_right() {
        let strangers = Strangers::default();
        let signer = |seed: u8| Signer::from_seed("s", [seed; 32]).unwrap();
        let is_right = |claim: &Claim| claim.origin == "log";
        let includes = |seed| strangers.include(&signer(seed).verifier(), is_right);
        assert!(!includes(1));
        strangers.hear(signer(1).sign("log", 5, Hash::of(b"root")));
        strangers.hear(signer(2).sign("another log", 5, Hash::of(b"root")));
        assert!(includes(1));
        assert!(!includes(2), "it reads another log");
        assert!(!includes(3), "a name is no key");
        for _ in 0..KEPT_MAX {
            strangers.hear(Checkpoint("noise".to_owned()));
        }
        assert!(!includes(1), "no more is kept than stated");
    }
}
