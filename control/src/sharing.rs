//! Keeps the secrets of a cluster's control processes the same: each tells the others, sealed, what
//! changed, and from time to time the digest of what it has; whoever hears another digest than its own
//! tells all that it has.

use crate::secrets::{Entry, Purpose, Secrets, SecretsError};
use crate::service::LogSiteSeen;
use crate::sparing::Sparing;
use crate::stream::Streams;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use voute_events::{Exchange, Topic};
use voute_schemas::Hash;

/// How often the digest is told.
const DIGEST_EVERY: Duration = Duration::from_secs(2);
/// Least time between two tellings of everything.
const ALL_EVERY: Duration = Duration::from_millis(500);
/// Secrets in one message: some 64 KiB at most.
const ENTRIES_MAX: usize = 128;
/// What another process told of its digest holds so long.
const STANDS_FOR: Duration = Duration::from_secs(5);
/// Most processes whose digests are kept.
const PROCESSES_MAX: usize = 64;

#[derive(Serialize, Deserialize)]
enum Message {
    /// Of all that the sender has; said by older versions.
    Digest(Hash),
    /// What it has.
    Entries(Vec<Entry>),
    /// The key by which others know the sender, and the digest of all that it has.
    Standing { key: Hash, digest: Hash },
}

/// The secrets of this process, and the way to the others'.
#[derive(Debug)]
pub(crate) struct Sharing {
    pub(crate) secrets: Arc<Secrets>,
    exchange: Exchange,
    /// By which others know this process.
    key: Hash,
    standings: Mutex<Standings>,
    news: Notify,
    spare: Sparing,
}

/// Who holds what, as far as is known here.
#[derive(Debug, Default)]
struct Standings {
    own: Option<Hash>,
    others: HashMap<Hash, (Hash, Instant)>,
    /// Whether a majority was ever seen to hold what this process holds.
    is_settled: bool,
}

impl Standings {
    fn hear(&mut self, key: Hash, digest: Hash, now: Instant) {
        self.others.retain(|_, (_, at)| now.duration_since(*at) < STANDS_FOR);
        if self.others.len() < PROCESSES_MAX || self.others.contains_key(&key) {
            self.others.insert(key, (digest, now));
        }
    }

    /// Whether more than half of the log's sites hold the same as this process does.
    fn agrees(&self, key: Hash, sites: &[LogSiteSeen], now: Instant) -> bool {
        let holds_the_same = |site: &&LogSiteSeen| {
            let told = self.others.get(&site.verifier.key);
            let same = told.is_some_and(|(digest, at)| {
                Some(*digest) == self.own && now.duration_since(*at) < STANDS_FOR
            });
            site.verifier.key == key || same
        };
        self.own.is_some() && sites.iter().filter(holds_the_same).count() > sites.len() / 2
    }
}

impl Sharing {
    pub(crate) fn new(secrets: Arc<Secrets>, exchange: Exchange, key: Hash) -> Self {
        Sharing {
            secrets,
            exchange,
            key,
            standings: Mutex::default(),
            news: Notify::new(),
            spare: Sparing::default(),
        }
    }

    fn standings(&self) -> MutexGuard<'_, Standings> {
        self.standings.lock().expect("no holder panics")
    }

    /// Whether nodes may be told secrets: what this process holds, a majority of the log's sites held
    /// too, at least once since it started.
    pub(crate) fn is_settled(&self, sites: &[LogSiteSeen]) -> bool {
        let mut standings = self.standings();
        let is_settled = standings.is_settled
            || self.exchange.is_alone()
            || standings.agrees(self.key, sites, Instant::now());
        standings.is_settled = is_settled;
        is_settled
    }

    /// Whether a majority of the log's sites holds what this process holds, now or within some time.
    pub(crate) async fn agrees(&self, sites: &[LogSiteSeen], within: Duration) -> bool {
        if self.exchange.is_alone() {
            return true;
        }
        let agreed = async {
            loop {
                let news = self.news.notified();
                let mut news = std::pin::pin!(news);
                news.as_mut().enable();
                let own = self.in_store(Secrets::digest).await;
                {
                    let mut standings = self.standings();
                    standings.own = own;
                    if standings.agrees(self.key, sites, Instant::now()) {
                        return;
                    }
                }
                news.await;
            }
        };
        tokio::time::timeout(within, agreed).await.is_ok()
    }

    /// Tells the others of a change.
    pub(crate) async fn tell(&self, entry: Entry) {
        self.say(Message::Entries(vec![entry])).await;
    }

    async fn say(&self, message: Message) {
        let message = postcard::to_stdvec(&message).expect("plain fields serialise");
        match self.secrets.seal(Purpose::Secrets, &message) {
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

    async fn say_standing(&self) {
        if let Some(digest) = self.in_store(Secrets::digest).await {
            self.standings().own = Some(digest);
            self.news.notify_waiters();
            self.say(Message::Standing { key: self.key, digest }).await;
        }
    }

    /// Whether the message told of anything else than what is here.
    async fn hear(&self, sealed: &[u8], streams: &Streams) -> bool {
        let message = self.secrets.unseal(Purpose::Secrets, sealed);
        match message.map(|message| postcard::from_bytes(&message)) {
            Some(Ok(Message::Standing { key, digest })) => {
                let own = self.in_store(Secrets::digest).await;
                self.standings().hear(key, digest, Instant::now());
                self.news.notify_waiters();
                own.is_some_and(|own| own != digest)
            }
            Some(Ok(Message::Digest(theirs))) => {
                self.in_store(Secrets::digest).await.is_some_and(|own| own != theirs)
            }
            Some(Ok(Message::Entries(entries))) => {
                let merged = self.in_store(move |secrets| secrets.merge(&entries)).await;
                if merged == Some(true) {
                    streams.renew_facts();
                    self.say_standing().await;
                }
                false
            }
            Some(Err(error)) => {
                if let Some(unsaid) = self.spare.may_say(Instant::now().into_std()) {
                    tracing::warn!(%error, unsaid, "a message about secrets cannot be read; is that process newer?");
                }
                false
            }
            None => {
                if let Some(unsaid) = self.spare.may_say(Instant::now().into_std()) {
                    tracing::warn!(
                        unsaid,
                        "a message about secrets was not sealed by a process of this cluster"
                    );
                }
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

    /// Listens and tells until told to stop; has nothing to do where there are no others.
    pub(crate) async fn run(&self, streams: Arc<Streams>, mut stop: watch::Receiver<bool>) {
        if self.exchange.is_alone() {
            return;
        }
        let mut heard = self.exchange.listen(Topic::Secrets);
        let mut standing = tokio::time::interval(DIGEST_EVERY);
        let mut all_not_before = Instant::now();
        loop {
            tokio::select! {
                _ = stop.changed() => return,
                _ = standing.tick() => self.say_standing().await,
                message = heard.next() => {
                    let differs = self.hear(&message, &streams).await;
                    if differs && Instant::now() >= all_not_before {
                        all_not_before = Instant::now() + ALL_EVERY;
                        self.say_all().await;
                        self.say_standing().await;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use voute_schemas::proof::Verifier;

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
        let key = |index: usize| Hash([index as u8; 32]);
        let site = |index: usize| LogSiteSeen {
            verifier: Verifier { name: format!("s{index}"), key: key(index) },
            signed: 0,
            heard_at: None,
            is_own: false,
        };
        let sites: Vec<LogSiteSeen> = (0..3).map(site).collect();
        let begin = |index: usize| {
            let (store, exchange) = (Arc::clone(&stores[index]), ring[index].clone());
            let sharing = Arc::new(Sharing::new(store, exchange, key(index)));
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
        assert!(one.agrees(&sites, PATIENCE).await);
        assert!(one.is_settled(&sites));
        // Cut off from the others it serves nobody, however long that takes, and sets nothing.
        ring[2].cut(true);
        let late = begin(2);
        assert!(!late.agrees(&sites, Duration::from_secs(4)).await);
        assert!(!late.is_settled(&sites));
        assert!(late.is_settled(&sites[2..]), "who alone signs for the log waits for nobody");
        let late = {
            ring[2].cut(false);
            begin(2)
        };
        tokio::time::timeout(PATIENCE, equal(&stores[2])).await.expect("the late one has it");
        assert_eq!(stores[2].get("a").unwrap().as_deref(), Some("secret of a"));
        assert!(late.agrees(&sites, PATIENCE).await);
        assert!(late.is_settled(&sites));
        // Two others that hold something else are the majority.
        ring[0].cut(true);
        one.secrets.put("c", "set where nobody hears").unwrap();
        assert!(!one.agrees(&sites, Duration::from_millis(500)).await);
        assert!(one.is_settled(&sites), "it was, and nodes that it serves keep being served");
    }
}
