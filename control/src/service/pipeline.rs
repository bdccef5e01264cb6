//! The task that decides, appends and evolves.
//!
//! ```text
//! wait for jobs or for the log ─▶ draft ─▶ append ─┬─ done ────▶ read back, verify, evolve,
//!        ▲                                         │             sign, publish, answer
//!        │                                         ├─ conflict ▶ catch up, draft again
//!        └─────────────────────────────────────────┴─ unknown ─▶ the same append again
//! ```
//!
//! One append is in flight at a time. The state is only what reading the log gave: an own commit,
//! too, is read back and verified before it has an effect.

use super::draft::{Draft, draft, reply};
use super::queue::{JOBS_MAX, Job, Unanswered};
use super::{Changes, Condition, Counters, Service, Shared, View, unix_ms};
use crate::domain::{State, evolve};
use crate::projection::{Projection, Snapshot};
use crate::rebuild::replay;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use uuid::Uuid;
use voute_events::register::RegisterError;
use voute_events::{
    AppendError, Log, MerkleTree, Position, ReadError, SignedRegister, Signer, StoredCommit,
    VerifiedReader,
};
use voute_schemas::commit::{Actor, Outcome};
use voute_schemas::proof::Checkpoint;
use voute_schemas::{ClusterId, Commit, Event, Sequence};

/// Most jobs decided for one append.
const BATCH_MAX: usize = 512;
/// Most commits read and evolved at once.
const READ_MAX: usize = 8_192;
/// A snapshot is written after so many commits …
const SNAPSHOT_COMMITS: u64 = 10_000;
/// … or this long after the first commit that it lacks, …
const SNAPSHOT_AFTER: Duration = Duration::from_secs(5);
/// … but takes at most this part of the time.
const SNAPSHOT_DUTY: u32 = 20;
/// Waits between attempts at a log that does not answer, from and to.
const RETRY_FIRST: Duration = Duration::from_millis(20);
const RETRY_LAST: Duration = Duration::from_secs(1);
/// Refusals of one actor that are recorded in [`REFUSAL_WINDOW`]; more only count.
const REFUSALS_MAX: u32 = 200;
const REFUSAL_WINDOW: Duration = Duration::from_secs(10);
/// Actors whose refusals are counted at once.
const REFUSING_ACTORS_MAX: usize = 10_000;

/// Why the pipeline stopped.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// The log cannot be what it is; nothing is projected beyond the damage.
    #[error("projection stopped: {0}")]
    Log(#[from] ReadError),
    /// This site must not sign what the log says now.
    #[error("signing stopped: {0}")]
    Register(#[from] RegisterError),
    /// It was told to stop before it had read the log.
    #[error("stopped before the log was read")]
    Stopped,
}

/// What a pipeline needs beside its log.
#[derive(Debug)]
pub struct PipelineConfig {
    /// Key and register, if this process signs for a site.
    pub signer: Option<(Signer, SignedRegister)>,
    /// Where snapshots are kept.
    pub projection: Option<Projection>,
    /// What the projection held.
    pub snapshot: Snapshot,
    /// Who is told of changes.
    pub changes: Arc<dyn Changes>,
    /// Turns true when the process is to end.
    pub stop: watch::Receiver<bool>,
}

/// What a checkpoint of a cluster's log begins with.
#[must_use]
pub fn checkpoint_origin(cluster: ClusterId) -> String {
    format!("voute/{cluster}")
}

/// Reads the log to its end, publishes, then serves jobs in a task of its own.
///
/// # Errors
/// [`Fault`] if the log is damaged, or is not the one that the snapshot or register came from.
pub async fn start<L: Log>(
    log: Arc<L>,
    config: PipelineConfig,
) -> Result<(Service, JoinHandle<Result<(), Fault>>), Fault> {
    let (safety, safety_jobs) = mpsc::channel(JOBS_MAX);
    let (ordinary, ordinary_jobs) = mpsc::channel(JOBS_MAX);
    let Snapshot { state, tree } = config.snapshot;
    let position = state.position();
    let mut stop = config.stop;
    let (reader, state, tree) = read_all(&log, state, tree, &mut stop).await?;
    let shared = Arc::new(Shared {
        view: RwLock::new(View::default()),
        tree: RwLock::new(tree),
        head: watch::Sender::new(Position::ZERO),
        condition: watch::Sender::new(Condition::default()),
        changes: config.changes,
        counters: Counters::default(),
        unmeasured: Mutex::default(),
    });
    let mut pipeline = Pipeline {
        reader,
        log: Arc::clone(&log),
        state,
        shared: Arc::clone(&shared),
        signer: config.signer,
        safety: safety_jobs,
        ordinary: ordinary_jobs,
        left: VecDeque::new(),
        refusals: RefusalBudget::default(),
        snapshots: Snapshots::new(config.projection, position.sequence),
        stop,
    };
    pipeline.publish(&[]).await?;
    let service = Service { shared, log: Arc::new(log), safety, ordinary };
    let task = tokio::spawn(pipeline.run());
    Ok((service, task))
}

/// Replays what the snapshot lacks, however long the log does not answer.
async fn read_all<L: Log>(
    log: &Arc<L>,
    mut state: State,
    mut tree: MerkleTree,
    stop: &mut watch::Receiver<bool>,
) -> Result<(VerifiedReader<Arc<L>>, State, MerkleTree), Fault> {
    let mut reader = VerifiedReader::new(Arc::clone(log), state.position());
    let mut pause = RETRY_FIRST;
    loop {
        let (back, ended) = replay(reader, Sequence(u64::MAX), &mut state, &mut tree).await;
        reader = back;
        match ended {
            Ok(()) => return Ok((reader, state, tree)),
            Err(error @ ReadError::Unavailable { .. }) => {
                tracing::warn!(%error, "the log is asked again");
                if tokio::time::timeout(pause, stop.wait_for(|stop| *stop)).await.is_ok() {
                    return Err(Fault::Stopped);
                }
                pause = (pause * 2).min(RETRY_LAST);
            }
            Err(error @ ReadError::Damaged { .. }) => return Err(error.into()),
        }
    }
}

struct Pipeline<L: Log> {
    reader: VerifiedReader<Arc<L>>,
    log: Arc<L>,
    /// All that was read; published once signed.
    state: State,
    shared: Arc<Shared>,
    signer: Option<(Signer, SignedRegister)>,
    safety: mpsc::Receiver<Job>,
    ordinary: mpsc::Receiver<Job>,
    /// Jobs that the last append had no room for.
    left: VecDeque<Job>,
    refusals: RefusalBudget,
    snapshots: Snapshots,
    stop: watch::Receiver<bool>,
}

/// What woke the pipeline.
enum Wake {
    Job(Box<Job>),
    Log,
    Snapshot,
    Stop,
}

impl<L: Log> Pipeline<L> {
    async fn run(mut self) -> Result<(), Fault> {
        let ended = self.serve().await;
        if let Err(fault) = &ended {
            tracing::error!(%fault, "the projection has stopped; node streams are dropped");
            let stopped = Some(fault.to_string());
            self.shared.condition.send_modify(|condition| condition.stopped = stopped);
        }
        self.snapshots.save_last(&self.state, &self.shared).await;
        ended
    }

    async fn serve(&mut self) -> Result<(), Fault> {
        loop {
            match self.wake().await {
                Wake::Job(first) => {
                    let jobs = self.gather(*first);
                    self.commit(jobs).await?;
                }
                Wake::Log => self.follow().await?,
                Wake::Snapshot => {}
                Wake::Stop => return Ok(()),
            }
            self.snapshots.save_if_due(&self.state, &self.shared);
        }
    }

    async fn wake(&mut self) -> Wake {
        if *self.stop.borrow() {
            return Wake::Stop;
        }
        if let Some(job) = self.left.pop_front() {
            return Wake::Job(Box::new(job));
        }
        tokio::select! {
            biased;
            _ = self.stop.changed() => Wake::Stop,
            Some(job) = self.safety.recv() => Wake::Job(Box::new(job)),
            Some(job) = self.ordinary.recv() => Wake::Job(Box::new(job)),
            () = self.reader.wait() => Wake::Log,
            () = self.snapshots.due() => Wake::Snapshot,
        }
    }

    /// All jobs that are there, those that go first in front.
    fn gather(&mut self, first: Job) -> VecDeque<Job> {
        let mut jobs = VecDeque::new();
        while let Ok(job) = self.safety.try_recv() {
            jobs.push_back(job);
        }
        jobs.push_back(first);
        jobs.append(&mut self.left);
        while jobs.len() < BATCH_MAX
            && let Ok(job) = self.ordinary.try_recv()
        {
            jobs.push_back(job);
        }
        jobs
    }

    async fn commit(&mut self, mut jobs: VecDeque<Job>) -> Result<(), Fault> {
        while !jobs.is_empty() {
            let drafted = self.draft(std::mem::take(&mut jobs));
            if drafted.commits.is_empty() {
                self.left = drafted.left;
                return Ok(());
            }
            let Draft { commits, positions, waiting, left, .. } = drafted;
            match self.append(&commits).await {
                Ok(position) => {
                    self.shared.counters.appends.fetch_add(1, Relaxed);
                    self.shared.counters.commits.fetch_add(commits.len() as u64, Relaxed);
                    self.left = left;
                    self.follow_to(position).await?;
                    for (index, job, then) in waiting {
                        let done = then.answer(positions[index], &commits[index]);
                        reply(job.answer, Ok(done));
                    }
                    return Ok(());
                }
                Err(Failed::Conflict) => {
                    self.shared.counters.conflicts.fetch_add(1, Relaxed);
                    self.follow().await?;
                    jobs = waiting.into_iter().map(|(_, job, _)| job).chain(left).collect();
                }
                Err(Failed::Answered(unanswered)) => {
                    self.left = left;
                    for (_, job, _) in waiting {
                        reply(job.answer, Err(unanswered.clone()));
                    }
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn draft(&mut self, jobs: VecDeque<Job>) -> Draft {
        let refusals = &mut self.refusals;
        let counters = &self.shared.counters;
        let mut drafted = draft(&self.state, jobs, unix_ms(), &mut |job: &Job| {
            let granted = refusals.take(&job.context.actor, Instant::now());
            if !granted {
                counters.refusals_unrecorded.fetch_add(1, Relaxed);
            }
            granted
        });
        for (job, answer) in drafted.answered.drain(..) {
            reply(job.answer, answer);
        }
        drafted
    }

    /// Appends after the state's position until the outcome is definite.
    async fn append(&mut self, commits: &[Arc<Commit>]) -> Result<Position, Failed> {
        let commits: Vec<_> = commits.iter().map(|commit| (**commit).clone()).collect();
        let expected = self.state.position();
        let mut pause = RETRY_FIRST;
        loop {
            match self.log.append(expected, &commits).await {
                Ok(position) => {
                    self.log_trouble(None);
                    return Ok(position);
                }
                Err(AppendError::Conflict) => {
                    self.log_trouble(None);
                    return Err(Failed::Conflict);
                }
                Err(error @ AppendError::Unknown { .. }) => {
                    self.log_trouble(Some(error.to_string()));
                    if self.pause(&mut pause).await {
                        return Err(Failed::Answered(Unanswered::Late));
                    }
                }
                Err(error @ (AppendError::Full { .. } | AppendError::Refused { .. })) => {
                    self.log_trouble(Some(error.to_string()));
                    let cause = error.to_string();
                    return Err(Failed::Answered(Unanswered::LogRefused { cause }));
                }
            }
        }
    }

    /// Waits before another attempt, longer each time; whether to give up instead.
    async fn pause(&mut self, pause: &mut Duration) -> bool {
        let stopping = tokio::time::timeout(*pause, self.stop.wait_for(|stop| *stop)).await;
        *pause = (*pause * 2).min(RETRY_LAST);
        stopping.is_ok()
    }

    fn log_trouble(&self, trouble: Option<String>) {
        if let Some(trouble) = &trouble {
            tracing::warn!(%trouble, "the log");
        }
        self.shared.condition.send_if_modified(|condition| {
            let changed = condition.log_trouble != trouble;
            condition.log_trouble = trouble;
            changed
        });
    }

    /// Takes in what others appended.
    async fn follow(&mut self) -> Result<(), Fault> {
        while let Some(events) = self.read_more().await? {
            self.publish(&events).await?;
        }
        Ok(())
    }

    /// Takes in everything up to an own commit.
    async fn follow_to(&mut self, position: Position) -> Result<(), Fault> {
        self.follow().await?;
        while self.state.position().sequence < position.sequence {
            // A replica may lag behind the append that it is about to learn of.
            self.reader.wait().await;
            self.follow().await?;
        }
        Ok(())
    }

    /// Reads and evolves the next commits; their events, nothing at the log's end.
    async fn read_more(&mut self) -> Result<Option<Vec<Event>>, Fault> {
        let batch = self.read_batch().await?;
        if batch.is_empty() {
            return Ok(None);
        }
        let mut events = Vec::new();
        let mut tree = self.shared.tree.write().expect("no holder of the tree panics");
        for (commit, stored) in batch {
            evolve(&mut self.state, stored.position, &commit);
            tree.push(stored.position.hash);
            if let Outcome::Accepted(more) = commit.outcome {
                events.extend(more);
            }
        }
        Ok(Some(events))
    }

    async fn read_batch(&mut self) -> Result<Vec<(Commit, StoredCommit)>, Fault> {
        let mut pause = RETRY_FIRST;
        let mut was_unavailable = false;
        loop {
            match self.reader.next_batch(READ_MAX).await {
                Ok(batch) => {
                    if was_unavailable {
                        self.log_trouble(None);
                    }
                    return Ok(batch);
                }
                Err(error @ ReadError::Unavailable { .. }) => {
                    was_unavailable = true;
                    self.log_trouble(Some(error.to_string()));
                    if self.pause(&mut pause).await {
                        return Err(Fault::Stopped);
                    }
                }
                Err(error @ ReadError::Damaged { .. }) => return Err(error.into()),
            }
        }
    }

    /// Signs what was read and shows it to all.
    async fn publish(&mut self, events: &[Event]) -> Result<(), Fault> {
        let position = self.state.position();
        if position == *self.shared.head.borrow() {
            return Ok(());
        }
        let checkpoint = self.sign(position).await?;
        let before = {
            let mut view =
                self.shared.view.write().expect("no reader or writer panics holding the view");
            let state = self.state.clone();
            let checkpoint_size = position.sequence.0;
            let view = &mut *view;
            std::mem::replace(view, View { state, checkpoint, checkpoint_size }).state
        };
        self.shared.changes.changed(&before, &self.state, events);
        self.shared.head.send_replace(position);
        self.snapshots.note(position.sequence);
        Ok(())
    }

    /// A checkpoint over everything up to `position`, if this process signs for one of the log's
    /// sites. The register's flushes happen on another thread.
    async fn sign(&mut self, position: Position) -> Result<Checkpoint, Fault> {
        let Some(cluster) = self.state.cluster() else {
            return Ok(Checkpoint::default());
        };
        let origin = checkpoint_origin(cluster.id);
        let Some((signer, mut register)) = self.signer.take() else {
            return Ok(Checkpoint::default());
        };
        if !cluster.log_sites.contains(&signer.verifier()) {
            self.signer = Some((signer, register));
            return Ok(Checkpoint::default());
        }
        let shared = Arc::clone(&self.shared);
        let size = position.sequence.0;
        let signing = tokio::task::spawn_blocking(move || {
            let tree = shared.tree.read().expect("no holder of the tree panics");
            let signed = register.sign(&signer, &origin, &tree, size);
            (signed, signer, register)
        });
        let (signed, signer, register) = signing.await.expect("signing does not panic");
        self.signer = Some((signer, register));
        Ok(signed?)
    }
}

/// Why an append has no position.
enum Failed {
    Conflict,
    Answered(Unanswered),
}

/// How many refusals of whom are recorded: auditors want them, the log must not drown in them.
#[derive(Default)]
struct RefusalBudget {
    since: Option<Instant>,
    taken: HashMap<Uuid, u32>,
}

impl RefusalBudget {
    fn take(&mut self, actor: &Actor, now: Instant) -> bool {
        let window_over = self.since.is_none_or(|since| now - since > REFUSAL_WINDOW);
        if window_over || self.taken.len() >= REFUSING_ACTORS_MAX {
            self.since = Some(now);
            self.taken.clear();
        }
        let actor = match actor {
            Actor::System => Uuid::nil(),
            Actor::Credential { id, .. } => id.0,
            Actor::Node(node) => node.0,
        };
        let taken = self.taken.entry(actor).or_default();
        *taken += 1;
        *taken <= REFUSALS_MAX
    }
}

/// When to write snapshots, and the one being written.
struct Snapshots {
    projection: Option<Projection>,
    saved: Sequence,
    reached: Sequence,
    /// When the first commit came that the snapshot lacks.
    behind_since: Option<tokio::time::Instant>,
    not_before: tokio::time::Instant,
    writing: Option<JoinHandle<Option<(Sequence, Duration)>>>,
}

impl Snapshots {
    fn new(projection: Option<Projection>, saved: Sequence) -> Self {
        Snapshots {
            projection,
            saved,
            reached: saved,
            behind_since: None,
            not_before: tokio::time::Instant::now(),
            writing: None,
        }
    }

    fn note(&mut self, reached: Sequence) {
        self.reached = reached;
        if reached > self.saved {
            self.behind_since.get_or_insert_with(tokio::time::Instant::now);
        }
    }

    /// Returns when a snapshot should be written.
    async fn due(&mut self) {
        if let Some(writing) = &mut self.writing {
            let ended = writing.await;
            self.writing = None;
            self.written(ended.ok().flatten());
        }
        match (&self.projection, self.behind_since) {
            (Some(_), Some(since)) => {
                tokio::time::sleep_until((since + SNAPSHOT_AFTER).max(self.not_before)).await;
            }
            _ => std::future::pending().await,
        }
    }

    fn written(&mut self, result: Option<(Sequence, Duration)>) {
        let now = tokio::time::Instant::now();
        match result {
            Some((saved, took)) => {
                self.saved = saved;
                self.not_before = now + took * SNAPSHOT_DUTY;
                self.behind_since = (self.reached > saved).then_some(now);
            }
            None => self.not_before = now + SNAPSHOT_AFTER,
        }
    }

    fn save_if_due(&mut self, state: &State, shared: &Arc<Shared>) {
        let now = tokio::time::Instant::now();
        let many = self.reached.0 - self.saved.0 >= SNAPSHOT_COMMITS;
        let long = self.behind_since.is_some_and(|since| now >= since + SNAPSHOT_AFTER);
        if (many || long) && now >= self.not_before && self.writing.is_none() {
            self.writing = self.save(state, shared);
        }
    }

    fn save(
        &self,
        state: &State,
        shared: &Arc<Shared>,
    ) -> Option<JoinHandle<Option<(Sequence, Duration)>>> {
        let projection = self.projection.clone()?;
        let state = state.clone();
        let first = Projection::first_leaf(self.saved.0);
        let shared = Arc::clone(shared);
        Some(tokio::task::spawn_blocking(move || {
            let began = Instant::now();
            let sequence = state.position().sequence;
            let leaves: Vec<_> = {
                let tree = shared.tree.read().expect("no holder of the tree panics");
                (first..sequence.0).filter_map(|index| tree.leaf(index)).collect()
            };
            match projection.save(&state, first, &leaves) {
                Ok(()) => Some((sequence, began.elapsed())),
                Err(error) => {
                    tracing::warn!(%error, "no snapshot was written; the next start reads more of the log");
                    None
                }
            }
        }))
    }

    async fn save_last(&mut self, state: &State, shared: &Arc<Shared>) {
        if let Some(writing) = self.writing.take() {
            let ended = writing.await.ok().flatten();
            self.written(ended);
        }
        if state.position().sequence > self.saved
            && let Some(writing) = self.save(state, shared)
        {
            let ended = writing.await.ok().flatten();
            self.written(ended);
        }
    }
}
