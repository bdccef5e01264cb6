//! Keeps the secrets of a cluster's control processes the same: each tells the others, sealed, what
//! changed, and from time to time the digest of what it has; whoever hears another digest than its own
//! tells all that it has.

use crate::secrets::{Entry, Secrets, SecretsError};
use crate::stream::Streams;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use voute_events::{Exchange, Topic};
use voute_schemas::Hash;

/// How often the digest is told.
const DIGEST_EVERY: Duration = Duration::from_secs(2);
/// Least time between two tellings of everything.
const ALL_EVERY: Duration = Duration::from_millis(500);
/// Secrets in one message: some 64 KiB at most.
const ENTRIES_MAX: usize = 128;
/// After its start a process waits this long for the others before it serves nodes: what it would tell
/// of secrets may be old.
const SETTLE_WITHIN: Duration = Duration::from_secs(3);

#[derive(Serialize, Deserialize)]
enum Message {
    /// Of all that the sender has.
    Digest(Hash),
    /// What it has.
    Entries(Vec<Entry>),
}

/// The secrets of this process, and the way to the others'.
#[derive(Debug)]
pub(crate) struct Sharing {
    pub(crate) secrets: Arc<Secrets>,
    exchange: Exchange,
    /// Whether another process is known to have the same, or need not be waited for.
    settled: watch::Sender<bool>,
}

impl Sharing {
    pub(crate) fn new(secrets: Arc<Secrets>, exchange: Exchange) -> Self {
        let settled = watch::Sender::new(exchange.is_alone());
        Sharing { secrets, exchange, settled }
    }

    /// Whether nodes may be told secrets.
    pub(crate) fn is_settled(&self) -> bool {
        *self.settled.borrow()
    }

    /// Tells the others of a change.
    pub(crate) async fn tell(&self, entry: Entry) {
        self.say(Message::Entries(vec![entry])).await;
    }

    async fn say(&self, message: Message) {
        let message = postcard::to_stdvec(&message).expect("plain fields serialise");
        match self.secrets.seal(&message) {
            Ok(sealed) => self.exchange.say(Topic::Secrets, sealed).await,
            Err(error) => {
                tracing::error!(%error, "other control processes are not told of secrets")
            }
        }
    }

    async fn in_store<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Secrets) -> Result<T, SecretsError> + Send + 'static,
    ) -> Option<T> {
        let secrets = Arc::clone(&self.secrets);
        let done = tokio::task::spawn_blocking(move || work(&secrets)).await;
        match done.expect("the store does not panic") {
            Ok(done) => Some(done),
            Err(error) => {
                tracing::error!(%error, "secrets are not kept the same");
                None
            }
        }
    }

    async fn say_digest(&self) {
        if let Some(digest) = self.in_store(Secrets::digest).await {
            self.say(Message::Digest(digest)).await;
        }
    }

    /// Whether the message told of anything else than what is here.
    async fn hear(&self, sealed: &[u8], streams: &Streams) -> bool {
        let Some(message) = self.secrets.unseal(sealed) else {
            tracing::warn!("a message about secrets was not sealed by a process of this cluster");
            return false;
        };
        match postcard::from_bytes(&message) {
            Ok(Message::Digest(theirs)) => {
                let own = self.in_store(Secrets::digest).await;
                if own == Some(theirs) {
                    self.settled.send_replace(true);
                }
                own.is_some_and(|own| own != theirs)
            }
            Ok(Message::Entries(entries)) => {
                let merged = self.in_store(move |secrets| secrets.merge(&entries)).await;
                if merged == Some(true) {
                    streams.renew_facts();
                    self.say_digest().await;
                }
                false
            }
            Err(error) => {
                tracing::warn!(%error, "a message about secrets cannot be read; is that process newer?");
                false
            }
        }
    }

    async fn say_all(&self) {
        let Some(entries) = self.in_store(Secrets::entries).await else { return };
        for part in entries.chunks(ENTRIES_MAX) {
            self.say(Message::Entries(part.to_vec())).await;
        }
    }

    /// Listens and tells until told to stop.
    pub(crate) async fn run(&self, streams: Arc<Streams>, mut stop: watch::Receiver<bool>) {
        let mut heard = self.exchange.listen(Topic::Secrets);
        let mut digest = tokio::time::interval(DIGEST_EVERY);
        let settle_by = Instant::now() + SETTLE_WITHIN;
        let mut all_not_before = Instant::now();
        loop {
            tokio::select! {
                _ = stop.changed() => return,
                _ = digest.tick() => self.say_digest().await,
                () = tokio::time::sleep_until(settle_by), if !self.is_settled() => {
                    self.settled.send_replace(true);
                }
                message = heard.next() => {
                    let differs = self.hear(&message, &streams).await;
                    if differs && Instant::now() >= all_not_before {
                        all_not_before = Instant::now() + ALL_EVERY;
                        self.say_all().await;
                        self.say_digest().await;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_secret_put_at_one_process_comes_to_all_even_to_one_that_was_away() {
        let folder = tempfile::tempdir().unwrap();
        let ring = Exchange::ring(3);
        let join = folder.path().join("join.secret");
        let first = Arc::new(Secrets::open(&folder.path().join("0"), None).unwrap());
        first.write_join_file(&join, voute_schemas::ClusterId::generate()).unwrap();
        let file = crate::secrets::JoinFile::read(&join).unwrap();
        let open = |name: &str| {
            Arc::new(Secrets::open(&folder.path().join(name), Some((&join, &file))).unwrap())
        };
        let stores = [first, open("1"), open("2")];
        let (stop, _) = watch::channel(false);
        let begin = |index: usize| {
            let sharing = Arc::new(Sharing::new(Arc::clone(&stores[index]), ring[index].clone()));
            let stopping = stop.subscribe();
            let running = Arc::clone(&sharing);
            tokio::spawn(async move { running.run(Arc::default(), stopping).await });
            sharing
        };
        let (one, _two) = (begin(0), begin(1));
        one.tell(one.secrets.put("a", "secret of a").unwrap()).await;
        one.secrets.put("b", "told to nobody at first").unwrap();
        let equal = async |with: &Secrets| {
            while with.digest().unwrap() != stores[0].digest().unwrap() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, equal(&stores[1])).await.expect("the second has it");
        let late = begin(2);
        assert!(!late.is_settled());
        tokio::time::timeout(PATIENCE, equal(&stores[2])).await.expect("the late one has it");
        assert_eq!(stores[2].get("a").unwrap().as_deref(), Some("secret of a"));
        let settled = async { late.settled.subscribe().wait_for(|it| *it).await.map(|_| ()) };
        tokio::time::timeout(PATIENCE, settled).await.unwrap().unwrap();
    }
}
