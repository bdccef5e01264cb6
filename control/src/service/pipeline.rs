//! The task that decides, appends and evolves.
//!
//! ```text
//! wait for jobs or for the log ─▶ draft ─▶ append ─┬─ done ────▶ read back, verify, evolve,
//!        ▲                                         │             sign, publish, answer
//!        │                                         ├─ conflict ▶ catch up, draft again
//!        └─────────────────────────────────────────┴─ unknown ─▶ the same append again
//! ```
//!
//! One append is in flight at a time, and the next waits until what it appended has taken effect
//! ([`super::effect`]). The state is only what reading the log gave: an own commit, too, is read back
//! and verified before it has an effect.

use super::board::Board;
use super::draft::{Draft, draft, reply};
use super::effect::last_named;
use super::hand_over::same_sites;
use super::queue::{Answer, JOBS_MAX, Job, Unanswered, Work};
use super::refusals::RefusalBudget;
use super::seat::Seat;
use super::snapshots::Snapshots;
use super::strangers::Strangers;
use super::{Changes, Condition, Counters, Service, Shared, View, unix_ms};
use crate::domain::state::NamedSites;
use crate::domain::{State, decide, evolve};
use crate::projection::{Projection, Snapshot};
use crate::rebuild::replay;
use crate::sparing::Sparing;
use futures_util::FutureExt;
use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Interval;
use voute_events::exchange::Listening;
use voute_events::register::RegisterError;
use voute_events::{
    AppendError, Exchange, Log, MerkleTree, Position, ReadError, StoredCommit, Topic,
    VerifiedReader,
};
use voute_schemas::commit::Outcome;
use voute_schemas::proof::Checkpoint;
use voute_schemas::{ClusterId, Commit, Event, Sequence};

/// Most jobs decided for one append.
const BATCH_MAX: usize = 512;
/// Most changes of the log's sites that wait.
const SITES_JOBS_MAX: usize = 16;
/// Most messages of other sites taken in while something else waits.
const HEARD_IN_TURN_MAX: usize = 32;
/// Most commits read and evolved at once.
const READ_MAX: usize = 8_192;
/// Waits between attempts at a log that does not answer, from and to.
const RETRY_FIRST: Duration = Duration::from_millis(20);
const RETRY_LAST: Duration = Duration::from_secs(1);
/// How often a site repeats its last signature: others may have missed it.
const REPEAT_SIGNATURE_EVERY: Duration = Duration::from_millis(500);
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
    /// A majority signed another history than the one that this process reads.
    #[error(
        "projection stopped: a majority of the log's sites signed another history than the log shows here; the log was replaced by another branch, compare it with the other sites"
    )]
    Outvoted,
}

/// What a pipeline needs beside its log.
#[derive(Debug)]
pub struct PipelineConfig {
    /// Key and register, if this process signs for a site.
    pub seat: Option<Seat>,
    /// How the sites hear of each other's signatures.
    pub exchange: Exchange,
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

/// Reads the log to its end, publishes what is vouched for, then serves jobs in a task of its own.
/// The state that was read comes too: it may be ahead of what is published.
///
/// # Errors
/// [`Fault`] if the log is damaged, or is not the one that the snapshot or register came from.
pub async fn start<L: Log>(
    log: Arc<L>,
    config: PipelineConfig,
) -> Result<(Service, State, JoinHandle<Result<(), Fault>>), Fault> {
    let (safety, safety_jobs) = mpsc::channel(JOBS_MAX);
    let (ordinary, ordinary_jobs) = mpsc::channel(JOBS_MAX);
    let (sites, sites_jobs) = mpsc::channel(SITES_JOBS_MAX);
    let Snapshot { state, tree, checkpoint, hand_overs } = config.snapshot;
    let known = state.clone();
    let mut stop = config.stop;
    let heard = config.exchange.listen(Topic::Signatures);
    let (reader, state, tree) = read_all(&log, state, tree, &mut stop).await?;
    // What was known before can be looked at, but is not told to nodes as if it were new.
    let view = View { state: known.clone(), ..View::default() };
    let shared = Arc::new(Shared {
        view: RwLock::new(view),
        tree: RwLock::new(tree),
        head: watch::Sender::new(known.position()),
        condition: watch::Sender::new(Condition::default()),
        changes: config.changes,
        counters: Counters::default(),
        unmeasured: Mutex::default(),
        log_sites: Mutex::default(),
        reseeded: watch::Sender::new(None),
        strangers: Strangers::default(),
        hand_overs: Mutex::new(hand_overs),
        hand_overs_proven: Mutex::default(),
    });
    let mut pipeline = Pipeline {
        reader,
        log: Arc::clone(&log),
        state: state.clone(),
        pending: VecDeque::new(),
        shared: Arc::clone(&shared),
        seat: config.seat,
        board: Board::default(),
        in_force: last_named(&known),
        hand_over_said: Sequence(0),
        exchange: config.exchange,
        heard,
        repeat: tokio::time::interval(REPEAT_SIGNATURE_EVERY),
        heard_in_turn: 0,
        spare: Sparing::default(),
        said: None,
        unanswered: Vec::new(),
        safety: safety_jobs,
        ordinary: ordinary_jobs,
        sites: sites_jobs,
        left: VecDeque::new(),
        refusals: RefusalBudget::default(),
        snapshots: Snapshots::new(config.projection, known.position().sequence),
        stop,
    };
    pipeline.begin(&checkpoint).await?;
    let service = Service { shared, log: Arc::new(log), safety, ordinary, sites };
    let task = tokio::spawn(pipeline.run());
    Ok((service, state, task))
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

pub(super) struct Pipeline<L: Log> {
    reader: VerifiedReader<Arc<L>>,
    log: Arc<L>,
    /// All that was read.
    pub(super) state: State,
    /// What was read and is not published yet, in order.
    pub(super) pending: VecDeque<Pending>,
    pub(super) shared: Arc<Shared>,
    pub(super) seat: Option<Seat>,
    pub(super) board: Board,
    /// The log sites whose signatures count; nobody at the first start, until a majority signed.
    pub(super) in_force: NamedSites,
    /// Which hand-over others were told last.
    pub(super) hand_over_said: Sequence,
    pub(super) exchange: Exchange,
    heard: Listening,
    repeat: Interval,
    /// Messages of other sites that were taken in since anything else was done.
    heard_in_turn: usize,
    /// Of lines about what others say wrongly.
    pub(super) spare: Sparing,
    /// The last own signature.
    pub(super) said: Option<Checkpoint>,
    /// Answers that wait for a commit to take effect.
    pub(super) unanswered: Vec<Waiting>,
    safety: mpsc::Receiver<Job>,
    ordinary: mpsc::Receiver<Job>,
    sites: mpsc::Receiver<Job>,
    /// Jobs that the last append had no room for.
    left: VecDeque<Job>,
    refusals: RefusalBudget,
    pub(super) snapshots: Snapshots,
    stop: watch::Receiver<bool>,
}

/// A state that was read, and what led to it.
pub(super) struct Pending {
    pub(super) state: State,
    pub(super) events: Vec<Event>,
    pub(super) since: Instant,
}

/// An answer that is given once this commit has taken effect.
pub(super) struct Waiting {
    pub(super) sequence: Sequence,
    pub(super) to: oneshot::Sender<Answer>,
    pub(super) answer: Answer,
}

/// What woke the pipeline.
enum Wake {
    Job(Box<Job>),
    Sites(Box<Job>),
    Log,
    Heard(Vec<u8>),
    Repeat,
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
        for waiting in self.unanswered.drain(..) {
            // It is in the log; whether it takes effect, others will know.
            let answer = if ended.is_ok() { Unanswered::Late } else { Unanswered::Stopped };
            reply(waiting.to, Err(answer));
        }
        self.snapshots.save_last(&self.shared).await;
        ended
    }

    async fn serve(&mut self) -> Result<(), Fault> {
        loop {
            match self.wake().await {
                Wake::Job(first) => {
                    let jobs = self.gather(*first);
                    self.commit(jobs).await?;
                }
                Wake::Sites(change) => self.change_sites(*change).await?,
                Wake::Log => self.follow().await?,
                Wake::Heard(message) => {
                    if self.hear(&message) {
                        if self.lags_behind_others() {
                            // The log's own word of it may be late, e.g. from a server that died.
                            self.follow().await?;
                        }
                        self.advance().await?;
                    }
                }
                Wake::Repeat => self.repeat_signature().await,
                Wake::Snapshot => {}
                Wake::Stop => return Ok(()),
            }
            self.snapshots.save_if_due(&self.shared);
        }
    }

    async fn wake(&mut self) -> Wake {
        if *self.stop.borrow() {
            return Wake::Stop;
        }
        // Nothing more is decided while answers wait for the other sites: they need the time to
        // stand where this process stands, and whoever asks waits no longer than for its own commit.
        let may_decide = self.unanswered.is_empty();
        if may_decide && let Some(job) = self.left.pop_front() {
            return Wake::Job(Box::new(job));
        }
        let may_change_sites = may_decide || (self.hands_over() && self.left.len() < BATCH_MAX);
        if self.heard_in_turn >= HEARD_IN_TURN_MAX {
            // Whoever speaks without pause must not keep all else waiting.
            self.heard_in_turn = 0;
            return self.wake_unheard(may_decide);
        }
        let wake = tokio::select! {
            biased;
            _ = self.stop.changed() => Wake::Stop,
            Some(job) = self.sites.recv(), if may_change_sites => Wake::Sites(Box::new(job)),
            message = self.heard.next() => Wake::Heard(message),
            Some(job) = self.safety.recv(), if may_decide => Wake::Job(Box::new(job)),
            Some(job) = self.ordinary.recv(), if may_decide => Wake::Job(Box::new(job)),
            () = self.reader.wait() => Wake::Log,
            () = self.snapshots.due() => Wake::Snapshot,
            _ = self.repeat.tick() => Wake::Repeat,
        };
        self.heard_in_turn = match wake {
            Wake::Heard(_) => self.heard_in_turn + 1,
            _ => 0,
        };
        wake
    }

    /// What is there beside what other sites say; the log may have grown, too.
    fn wake_unheard(&mut self, may_decide: bool) -> Wake {
        if self.repeat.tick().now_or_never().is_some() {
            return Wake::Repeat;
        }
        let job = || self.safety.try_recv().or_else(|_| self.ordinary.try_recv()).ok();
        let job = may_decide.then(job).flatten();
        job.map_or(Wake::Log, |job| Wake::Job(Box::new(job)))
    }

    /// A change of the log's sites. While answers wait for sites that are to come into force, perhaps
    /// in vain, only what goes back to those that are in force is decided.
    async fn change_sites(&mut self, change: Job) -> Result<(), Fault> {
        if self.unanswered.is_empty() {
            let jobs = self.gather(change);
            return self.commit(jobs).await;
        }
        if !self.takes_back(&change.work) {
            self.left.push_back(change);
            return Ok(());
        }
        tracing::warn!("a change of the log's sites that has not come into force is taken back");
        let waiting = std::mem::take(&mut self.left);
        let committed = self.commit(VecDeque::from([change])).await;
        self.left.extend(waiting);
        committed
    }

    fn takes_back(&self, work: &Work) -> bool {
        let Work::Command(command) = work else { return false };
        let named = decide(&self.state, command).ok().and_then(|events| match events.first() {
            Some(Event::LogSitesChanged { sites }) => Some(sites.clone()),
            _ => None,
        });
        named.is_some_and(|sites| same_sites(&sites, &self.in_force.sites))
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
                    for (index, job, then) in waiting {
                        let (sequence, to) = (positions[index].sequence, job.answer);
                        let answer = Ok(then.answer(positions[index], &commits[index]));
                        self.unanswered.push(Waiting { sequence, to, answer });
                    }
                    return self.follow_to(position).await;
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
        // Such an answer rests on what was read, which may yet lack effect.
        let sequence = self.state.position().sequence;
        for (job, answer) in drafted.answered.drain(..) {
            if sequence <= self.shared.head.borrow().sequence {
                reply(job.answer, answer);
            } else {
                self.unanswered.push(Waiting { sequence, to: job.answer, answer });
            }
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
            self.await_signatures(events);
            self.sign().await?;
            self.advance().await?;
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
}

/// Why an append has no position.
enum Failed {
    Conflict,
    Answered(Unanswered),
}
