//! The JetStream engine: one stream, one subject, each message one append.
//!
//! The server compares the number of the stream's last message, not its content. Hence an append
//! first reads the message that ends at the expected commit and compares number and hash, so that a
//! stream which was shortened and regrown refuses; then it publishes, expecting that message to be
//! the last. A lost answer is asked for again with the same message id until it is definite.
//!
//! ```text
//! place after expected ──► publish ──► stored: done
//!                             │ ▲
//!              no answer, or  └─┘ same id again, until the deadline: unknown
//!              still in flight
//!                             │
//!                      wrong last sequence ──► what lies there? ours: done; another's: conflict
//! ```

mod append;
mod connection;
mod fetch;
mod record;
mod safety;
mod settings;
mod watch;

pub use connection::{Credentials, JetStreamOptions, OpenError, Tls};
pub use safety::Safety;

use crate::{AppendError, Exchange, Log, Position, ReadError, StoredCommit};
use async_nats::Client;
use fetch::Anchors;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use voute_schemas::{Commit, Sequence};

/// Oldest nats-server that may carry the log: older ones let several writers win, or are too slow
/// when they flush always.
pub const SERVER_VERSION_MIN: (u64, u64, u64) = (2, 15, 1);
/// How long a read may come from a leader that was deposed: the longest election, and some.
const SETTLE: Duration = Duration::from_secs(10);

/// A log in a JetStream stream. Clones are handles to the same connection.
#[derive(Clone)]
pub struct JetStreamLog {
    shared: Arc<Shared>,
}

struct Shared {
    client: Client,
    stream: String,
    subject: String,
    anchors: Mutex<Anchors>,
    watch: watch::Watch,
    monitoring: Vec<String>,
    replicas: usize,
    known: Mutex<safety::Known>,
    safety: Safety,
}

impl JetStreamLog {
    /// Connects, refuses servers that are too old, and creates the stream or checks its settings.
    ///
    /// # Errors
    /// [`OpenError`], which says what to change.
    pub async fn open(options: JetStreamOptions) -> Result<Self, OpenError> {
        let client = connection::connect(&options).await?;
        let context = async_nats::jetstream::new(client.clone());
        let subject = settings::subject_of(&options.stream);
        let state = settings::prepare(&context, &options).await?;
        let answers = safety::ask_all(&options.monitoring).await;
        let mut known = safety::Known::default();
        let safety = known.judge(answers, options.replicas);
        let watch = watch::Watch::start(context, options.stream.clone(), state.last_sequence);
        let shared = Shared {
            client,
            stream: options.stream,
            subject,
            anchors: Mutex::default(),
            watch,
            monitoring: options.monitoring,
            replicas: options.replicas,
            known: Mutex::new(known),
            safety,
        };
        Ok(JetStreamLog { shared: Arc::new(shared) })
    }

    /// How the control processes of this log speak to each other: core messages beside the stream.
    #[must_use]
    pub fn exchange(&self) -> Exchange {
        Exchange::nats(self.shared.client.clone(), self.shared.stream.clone())
    }

    /// Whether the servers keep what they acknowledged through a power cut, as found at opening.
    #[must_use]
    pub fn safety(&self) -> &Safety {
        &self.shared.safety
    }

    /// Asks the servers again what [`JetStreamLog::safety`] tells; of one that cannot be asked now,
    /// what it said last holds.
    ///
    /// # Panics
    /// Never: nobody panics holding what the servers said.
    pub async fn check_safety(&self) -> Safety {
        let answers = safety::ask_all(&self.shared.monitoring).await;
        let mut known = self.shared.known.lock().expect("no holder panics");
        known.judge(answers, self.shared.replicas)
    }
}

impl Log for JetStreamLog {
    async fn append(
        &self,
        expected: Position,
        commits: &[Commit],
    ) -> Result<Position, AppendError> {
        self.shared.append(expected, commits).await
    }

    async fn read(&self, from: Sequence, limit: usize) -> Result<Vec<StoredCommit>, ReadError> {
        self.shared.read(from, limit).await
    }

    async fn wait(&self, from: Sequence) {
        self.shared.watch.wait(from).await;
    }

    fn settle(&self) -> Duration {
        SETTLE
    }
}
