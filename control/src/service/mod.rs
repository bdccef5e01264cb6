//! The service: commands go in, commits come out, and everyone else reads what they gave.
//!
//! ```text
//! API, streams, watcher ──Job──▶ pipeline ──append──▶ log
//!        ▲                          │ ◀──read, verified──┘
//!        └──── View ◀──publish──────┘  (state and the checkpoint that covers it, together)
//! ```
//!
//! The pipeline is one task; it alone decides, appends and evolves. What it publishes, and answers, is
//! never ahead of a checkpoint that a majority of the log's sites signed, so a node spec made from it
//! can carry proofs, and no answer is taken back when the log falls back.

mod board;
#[cfg(test)]
mod cluster_tests;
mod draft;
mod effect;
pub(crate) mod hand_over;
mod pipeline;
mod queue;
mod refusals;
mod seat;
mod snapshots;
mod strangers;
#[cfg(test)]
mod tests;

pub use pipeline::{Fault, PipelineConfig, checkpoint_origin, start};
pub use queue::{Answer, Done, Unanswered};
pub use seat::{Seat, SeatError};

use crate::domain::state::NamedSites;
use crate::domain::{Refusal, State, decide};
use hand_over::HandOvers;
use queue::{Job, Work};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use strangers::Strangers;
use tokio::sync::{mpsc, oneshot, watch};
use voute_events::checkpoint::{Claim, claim};
use voute_events::register::Signed;
use voute_events::{MerkleTree, Position, ReadError, StoredCommit};
use voute_schemas::command::Escalation;
use voute_schemas::commit::{Actor, Origin};
use voute_schemas::proof::{Checkpoint, CommitProof, HandOver, Verifier};
use voute_schemas::{Command, CommitId, CorrelationId, Event, Hash, NodeId, Sequence};

/// Longest time that an asker waits for an answer before it is told that the outcome is unknown.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Most committed failovers that wait to be measured; more go unmeasured, the oldest first.
const UNMEASURED_MAX: usize = 64;

/// Most neighbouring commits read at once for proofs.
const PROOF_READ_MAX: u64 = 256;

/// Who asks, by which way and why.
#[derive(Clone, Debug)]
pub struct Context {
    /// Who.
    pub actor: Actor,
    /// By which way.
    pub origin: Origin,
    /// From where.
    pub source: Option<IpAddr>,
    /// Joins commits of one cause.
    pub correlation: CorrelationId,
    /// The commit that caused this one.
    pub causation: Option<CommitId>,
    /// Against repetition.
    pub idempotency_key: Option<String>,
    /// In words.
    pub reason: String,
}

impl Context {
    /// For a request of the API.
    #[must_use]
    pub fn api(actor: Actor, source: Option<IpAddr>) -> Self {
        Context {
            actor,
            origin: Origin::Api,
            source,
            correlation: CorrelationId::generate(),
            causation: None,
            idempotency_key: None,
            reason: String::new(),
        }
    }

    /// For the control plane itself.
    #[must_use]
    pub fn system(origin: Origin, reason: impl Into<String>) -> Self {
        Context { origin, reason: reason.into(), ..Context::api(Actor::System, None) }
    }

    /// For a node's escalation.
    #[must_use]
    pub fn node(node: NodeId, source: Option<IpAddr>) -> Self {
        Context { origin: Origin::Node, ..Context::api(Actor::Node(node), source) }
    }
}

/// What is published: a state and the checkpoint that covers it.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The state.
    pub state: State,
    /// Covers `state.position()` and bears a majority's signatures. Empty just after a start: then
    /// the state is the last that this process knew, and not to be told to nodes.
    pub checkpoint: Checkpoint,
    /// Commits that the checkpoint covers.
    pub checkpoint_size: u64,
}

/// How the log and the projection are.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Condition {
    /// The log does not answer, or refuses; in words.
    pub log_trouble: Option<String>,
    /// Projection has stopped for good; in words. Node streams are dropped then.
    pub stopped: Option<String>,
    /// Commits wait for signatures of other log sites; in words.
    pub unsigned: Option<String>,
    /// Other log sites signed another history; in words. A person must look.
    pub disputed: Option<String>,
}

impl Condition {
    /// What keeps this process from getting anything committed.
    #[must_use]
    pub fn trouble(&self) -> Option<&String> {
        self.stopped.as_ref().or(self.log_trouble.as_ref()).or(self.unsigned.as_ref())
    }
}

/// What is known of a log site.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogSiteSeen {
    /// Its name and key.
    pub verifier: Verifier,
    /// Commits that it vouches for, as far as was heard.
    pub signed: u64,
    /// When it was heard last; `None`: not since this process started.
    pub heard_at: Option<Instant>,
    /// Whether this process signs for it.
    pub is_own: bool,
}

/// What the pipeline shares with all others.
#[derive(Debug)]
pub(crate) struct Shared {
    view: RwLock<View>,
    tree: RwLock<MerkleTree>,
    head: watch::Sender<Position>,
    condition: watch::Sender<Condition>,
    changes: Arc<dyn Changes>,
    pub(crate) counters: Counters,
    unmeasured: Mutex<VecDeque<FailoverCommitted>>,
    log_sites: Mutex<Vec<LogSiteSeen>>,
    /// What a lost register began anew with.
    reseeded: watch::Sender<Option<Signed>>,
    /// What was signed by keys that are none of the log's sites.
    strangers: Strangers,
    /// How the log's sites handed over, as far as this process knows.
    hand_overs: Mutex<HandOvers>,
    /// The same, with their proofs, as far as these were asked for.
    hand_overs_proven: Mutex<BTreeMap<Sequence, HandOver>>,
}

impl Shared {
    /// Keeps by which checkpoint these sites came into force, and forgets what the state does not
    /// remember either.
    fn keep_hand_overs(&self, new: &[Sequence], checkpoint: &Checkpoint, named: &[NamedSites]) {
        let is_remembered = |it: &Sequence| named.iter().any(|sites| sites.sequence == *it);
        let mut hand_overs = self.hand_overs.lock().expect("no holder panics");
        hand_overs.extend(new.iter().map(|sequence| (*sequence, checkpoint.clone())));
        hand_overs.retain(|sequence, _| is_remembered(sequence));
        let mut proven = self.hand_overs_proven.lock().expect("no holder panics");
        proven.retain(|sequence, _| is_remembered(sequence));
    }

    fn published(&self) -> View {
        self.view.read().expect("no reader or writer panics holding the view").clone()
    }
}

/// A failover that this process got committed.
#[derive(Clone, Debug)]
pub(crate) struct FailoverCommitted {
    /// Its commit.
    pub(crate) sequence: Sequence,
    /// The commit's events.
    pub(crate) events: Vec<Event>,
    /// From asking until it was effective.
    pub(crate) took: Duration,
}

/// What the service counts.
#[derive(Debug, Default)]
pub struct Counters {
    /// Commits appended by this process.
    pub commits: std::sync::atomic::AtomicU64,
    /// Appends.
    pub appends: std::sync::atomic::AtomicU64,
    /// Appends that another writer overtook.
    pub conflicts: std::sync::atomic::AtomicU64,
    /// Refusals not recorded because one actor caused too many.
    pub refusals_unrecorded: std::sync::atomic::AtomicU64,
}

/// Who is told what changed, before and after: the node streams.
pub trait Changes: Send + Sync + std::fmt::Debug + 'static {
    /// These states were published one after the other by these events. Nobody can read the second
    /// before this returns; nor can this.
    fn changed(&self, before: &State, after: &State, events: &[Event]);
}

/// Reads of the log, whatever its engine.
trait AnyLogReader: Send + Sync {
    fn read(
        &self,
        from: Sequence,
        limit: usize,
    ) -> futures_util::future::BoxFuture<'_, Result<Vec<StoredCommit>, ReadError>>;
}

impl<L: voute_events::Log> AnyLogReader for Arc<L> {
    fn read(
        &self,
        from: Sequence,
        limit: usize,
    ) -> futures_util::future::BoxFuture<'_, Result<Vec<StoredCommit>, ReadError>> {
        Box::pin(L::read(self, from, limit))
    }
}

/// Handle of a running pipeline.
#[derive(Clone)]
pub struct Service {
    shared: Arc<Shared>,
    log: Arc<dyn AnyLogReader>,
    safety: mpsc::Sender<Job>,
    ordinary: mpsc::Sender<Job>,
    /// Changes of the log's sites: one may have to go before an answer that waits for them.
    sites: mpsc::Sender<Job>,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Service").finish_non_exhaustive()
    }
}

impl Service {
    /// Asks for a command and waits for its commit.
    ///
    /// # Errors
    /// [`Unanswered`]: nothing was committed, or it is not known whether.
    pub async fn submit(&self, command: Command, context: Context) -> Answer {
        let queue = match &command {
            Command::ChangeLogSites { .. } => &self.sites,
            command if goes_first(command) => &self.safety,
            _ => &self.ordinary,
        };
        let began = Instant::now();
        let answer = self.ask(queue, Work::Command(Box::new(command)), context).await;
        if let Ok(Done::Committed { position, commit }) = &answer
            && let Some(Event::FailoverDecided { .. }) = commit.events().first()
        {
            self.is_to_be_measured(FailoverCommitted {
                sequence: position.sequence,
                events: commit.events().to_vec(),
                took: began.elapsed(),
            });
        }
        answer
    }

    fn is_to_be_measured(&self, failover: FailoverCommitted) {
        let mut unmeasured = self.shared.unmeasured.lock().expect("no holder panics");
        unmeasured.push_back(failover);
        let surplus = unmeasured.len().saturating_sub(UNMEASURED_MAX);
        unmeasured.drain(..surplus);
    }

    /// Failovers that this process got committed since this was asked last.
    pub(crate) fn take_unmeasured(&self) -> VecDeque<FailoverCommitted> {
        std::mem::take(&mut self.shared.unmeasured.lock().expect("no holder panics"))
    }

    /// Asks for a batch of a node's escalations, as one commit.
    ///
    /// # Errors
    /// [`Unanswered`]: nothing was committed, or it is not known whether.
    pub async fn escalate(
        &self,
        node: NodeId,
        requests: Vec<Escalation>,
        context: Context,
    ) -> Answer {
        self.ask(&self.safety, Work::Escalations { node, requests }, context).await
    }

    /// Records a command that was refused before it could be decided; its commit's number, unless
    /// it could not be recorded.
    pub async fn record_refusal(
        &self,
        context: Context,
        command: String,
        code: &str,
        message: String,
    ) -> Option<u64> {
        let work = Work::Refusal { command, code: code.to_owned(), message };
        match self.ask(&self.ordinary, work, context).await {
            Ok(Done::Refused { position, .. }) => position.map(|position| position.sequence.0),
            _ => None,
        }
    }

    async fn ask(&self, queue: &mpsc::Sender<Job>, work: Work, context: Context) -> Answer {
        let (answer, answered) = oneshot::channel();
        let job = Job { work, context, asked_at: Instant::now(), answer };
        let wait = async {
            queue.send(job).await.map_err(|_| Unanswered::Stopped)?;
            answered.await.map_err(|_| Unanswered::Stopped)?
        };
        tokio::time::timeout(ANSWER_TIMEOUT, wait).await.unwrap_or(Err(Unanswered::Late))
    }

    /// What a command would do now. Commits nothing.
    ///
    /// # Errors
    /// The refusal that it would meet.
    pub fn plan(&self, command: &Command) -> Result<Vec<Event>, Refusal> {
        decide(&self.state(), command)
    }

    /// The published state; costs nothing, and stays as it is.
    #[must_use]
    pub fn state(&self) -> State {
        self.read(|view| view.state.clone())
    }

    /// Reads what is published. The closure must be short: publishing waits for it.
    pub fn read<T>(&self, read: impl FnOnce(&View) -> T) -> T {
        read(&self.shared.view.read().expect("no reader or writer panics holding the view"))
    }

    /// The last published position, and a way to wait for the next.
    #[must_use]
    pub fn head(&self) -> watch::Receiver<Position> {
        self.shared.head.subscribe()
    }

    /// How log and projection are.
    #[must_use]
    pub fn condition(&self) -> watch::Receiver<Condition> {
        self.shared.condition.subscribe()
    }

    /// The log's sites, as far as they are heard.
    #[must_use]
    pub fn log_sites(&self) -> Vec<LogSiteSeen> {
        self.shared.log_sites.lock().expect("no holder panics").clone()
    }

    /// Whether a key that is none of the log's sites signed of late what is read here, or does so
    /// within some time.
    pub(crate) async fn hears(&self, verifier: &Verifier, time: Duration) -> bool {
        let Some(cluster) = self.read(|view| view.state.cluster().map(|it| it.id)) else {
            return false;
        };
        let is_of_here = |claim: &Claim| {
            let tree = self.shared.tree.read().expect("no holder of the tree panics");
            claim.origin == checkpoint_origin(cluster)
                && (claim.size > tree.size() || tree.root(claim.size).ok() == Some(claim.root))
        };
        self.shared.strangers.include_within(time, verifier, is_of_here).await
    }

    /// Tells when a lost register began anew, and with what.
    pub(crate) fn reseeded(&self) -> watch::Receiver<Option<Signed>> {
        self.shared.reseeded.subscribe()
    }

    /// What was counted.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Reads commits of the log, chain not verified, at most `limit`.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn commits(
        &self,
        from: Sequence,
        limit: usize,
    ) -> Result<Vec<StoredCommit>, ReadError> {
        self.log.read(from, limit).await
    }

    /// Commits with their paths to the root of a checkpoint of `size` commits.
    ///
    /// # Errors
    /// [`ReadError`] if a commit cannot be read, or lies outside the checkpoint.
    pub async fn prove_all(
        &self,
        sequences: &BTreeSet<Sequence>,
        size: u64,
    ) -> Result<Vec<CommitProof>, ReadError> {
        let mut proofs = Vec::with_capacity(sequences.len());
        let mut wanted = sequences.iter().copied().peekable();
        while let Some(&first) = wanted.peek() {
            // Neighbours are read together: a node's epochs often come from one burst of commits.
            let reach = first.0 + PROOF_READ_MAX;
            let last = sequences.range(first..Sequence(reach)).next_back().unwrap_or(&first);
            let limit = usize::try_from(last.0 - first.0 + 1).expect("at most PROOF_READ_MAX");
            let stored = self.log.read(first, limit).await?;
            let before = proofs.len();
            for commit in stored {
                if wanted.next_if_eq(&commit.position.sequence).is_some() {
                    proofs.push(self.prove(commit, size)?);
                }
            }
            if proofs.len() == before {
                let cause = "it is not there".to_owned();
                return Err(ReadError::Damaged { sequence: first, cause });
            }
        }
        Ok(proofs)
    }

    fn prove(&self, stored: StoredCommit, size: u64) -> Result<CommitProof, ReadError> {
        let path = self.path_of(stored.position, size)?;
        Ok(CommitProof { sequence: stored.position.sequence, commit: stored.bytes, path })
    }

    /// Path of a commit to the root of a checkpoint of `size` commits.
    ///
    /// # Errors
    /// [`ReadError::Damaged`] if it lies outside the checkpoint.
    pub(crate) fn path_of(&self, position: Position, size: u64) -> Result<Vec<Hash>, ReadError> {
        let sequence = position.sequence;
        let tree = self.shared.tree.read().expect("no holder of the tree panics");
        tree.inclusion_proof(sequence.0.saturating_sub(1), size)
            .map_err(|error| ReadError::Damaged { sequence, cause: error.to_string() })
    }

    /// How the log came by the sites that a published state names last, for those who trust earlier
    /// ones: in order, as far as this process knows.
    ///
    /// # Errors
    /// [`ReadError`] if a commit cannot be read.
    pub(crate) async fn hand_overs(&self, view: &View) -> Result<Vec<HandOver>, ReadError> {
        let named = view.state.cluster().map_or(&[][..], |cluster| &cluster.log_sites_named);
        let Some(last) = named.last() else { return Ok(Vec::new()) };
        let known: Vec<(Sequence, Checkpoint)> = {
            let kept = self.shared.hand_overs.lock().expect("no holder panics");
            kept.range(..=last.sequence).map(|(at, by)| (*at, by.clone())).collect()
        };
        let has_last = known.last().is_some_and(|(sequence, _)| *sequence == last.sequence);
        let mut all = self.prove_hand_overs(known).await?;
        if !has_last {
            // Founded so, or from before this process knew anyone: at least it is so now.
            let last = BTreeSet::from([last.sequence]);
            for named in self.prove_all(&last, view.checkpoint_size).await? {
                all.push(HandOver { checkpoint: view.checkpoint.clone(), named });
            }
        }
        Ok(all)
    }

    async fn prove_hand_overs(
        &self,
        known: Vec<(Sequence, Checkpoint)>,
    ) -> Result<Vec<HandOver>, ReadError> {
        let proven = || self.shared.hand_overs_proven.lock().expect("no holder panics");
        let mut all = Vec::with_capacity(known.len());
        for (sequence, checkpoint) in known {
            let cached = proven().get(&sequence).cloned();
            if let Some(hand_over) = cached.filter(|it| it.checkpoint == checkpoint) {
                all.push(hand_over);
                continue;
            }
            let size = claim(&checkpoint).map_or(0, |claim| claim.size);
            for named in self.prove_all(&BTreeSet::from([sequence]), size).await? {
                let hand_over = HandOver { checkpoint: checkpoint.clone(), named };
                proven().insert(sequence, hand_over.clone());
                all.push(hand_over);
            }
        }
        Ok(all)
    }

    /// Root of the Merkle tree over the first `size` commits, if there are so many.
    #[must_use]
    pub fn root(&self, size: u64) -> Option<voute_schemas::Hash> {
        self.shared.tree.read().expect("no holder of the tree panics").root(size).ok()
    }
}

/// Commands that go before all others: lives depend on them.
fn goes_first(command: &Command) -> bool {
    matches!(
        command,
        Command::FailOverSite { .. }
            | Command::ReportSiteCondition { .. }
            | Command::Escalate { .. }
    )
}

/// Wall time, milliseconds since 1970.
#[must_use]
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
