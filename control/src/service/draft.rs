//! Turns jobs into commits that follow a state: the pure part of the pipeline.
//!
//! Order within one append: what goes first, the rest, then refusals, which change nothing.

use super::queue::{Answer, Done, Job, Work};
use crate::domain::{Refusal, State, decide, decide_escalations_at, evolve};
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::oneshot;
use voute_events::{APPEND_BYTES_MAX, Position};
use voute_schemas::command::Escalation;
use voute_schemas::commit::{COMMIT_BYTES_MAX, Commit, Outcome, REASON_MAX};
use voute_schemas::contract::EscalationOutcome;
use voute_schemas::{Command, CommitId, Event, Hash};

/// Commits to append, and who waits for them.
pub(super) struct Draft {
    /// Numbered and chained after the state that it was drafted against.
    pub(super) commits: Vec<Arc<Commit>>,
    /// Their positions.
    pub(super) positions: Vec<Position>,
    /// Jobs that the commits answer, by index of the commit.
    pub(super) waiting: Vec<(usize, Job, OnCommit)>,
    /// Jobs that have no commit and are answered now.
    pub(super) answered: Vec<(Job, Answer)>,
    /// Jobs for which the append has no room.
    pub(super) left: VecDeque<Job>,
}

/// What to answer once a commit is in.
pub(super) enum OnCommit {
    Committed,
    Refused { code: String, message: String },
    Escalated(Vec<Result<(), (String, String)>>),
}

impl OnCommit {
    pub(super) fn answer(self, position: Position, commit: &Arc<Commit>) -> Done {
        match self {
            OnCommit::Committed => Done::Committed { position, commit: Arc::clone(commit) },
            OnCommit::Refused { code, message } => {
                Done::Refused { code, message, position: Some(position) }
            }
            OnCommit::Escalated(results) => {
                Done::Escalated { outcomes: escalation_outcomes(results, position) }
            }
        }
    }
}

fn escalation_outcomes(
    results: Vec<Result<(), (String, String)>>,
    position: Position,
) -> Vec<EscalationOutcome> {
    let outcome = |result| match result {
        Ok(()) => EscalationOutcome::Committed { sequence: position.sequence },
        Err((code, message)) => EscalationOutcome::Refused { code, message },
    };
    results.into_iter().map(outcome).collect()
}

/// What deciding one job gave.
enum Decided {
    Commit { events: Vec<Event>, note: Option<String>, then: OnCommit },
    Refuse { code: String, message: String, then: OnCommit },
    Answer(Answer),
}

/// Decides jobs one after the other, each against what those before it give.
pub(super) fn draft(
    base: &State,
    jobs: impl IntoIterator<Item = Job>,
    time_unix_ms: u64,
    may_record_refusal: &mut dyn FnMut(&Job) -> bool,
) -> Draft {
    let mut drafting = Drafting::new(base, time_unix_ms);
    let mut refusals = Vec::new();
    for job in jobs.into_iter().filter(|job| !job.is_given_up()) {
        if !drafting.draft.left.is_empty() {
            drafting.draft.left.push_back(job);
            continue;
        }
        if let Some(done) = drafting.repeated(&job) {
            drafting.draft.answered.push((job, Ok(done)));
            continue;
        }
        match drafting.decide(&job) {
            Decided::Commit { events, note, then } => drafting.accept(job, events, note, then),
            Decided::Refuse { code, message, then } => refusals.push((job, code, message, then)),
            Decided::Answer(answer) => drafting.draft.answered.push((job, answer)),
        }
    }
    for (job, code, message, then) in refusals {
        if let Some(done) = drafting.repeated(&job) {
            drafting.draft.answered.push((job, Ok(done)));
        } else if may_record_refusal(&job) {
            drafting.refuse(job, code, message, then);
        } else {
            let done = unrecorded(then, base.position());
            drafting.draft.answered.push((job, Ok(done)));
        }
    }
    drafting.draft
}

/// The answer to a refusal that is not recorded.
fn unrecorded(then: OnCommit, position: Position) -> Done {
    match then {
        OnCommit::Refused { code, message } => Done::Refused { code, message, position: None },
        OnCommit::Escalated(results) => {
            Done::Escalated { outcomes: escalation_outcomes(results, position) }
        }
        OnCommit::Committed => unreachable!("a refusal is never answered as committed"),
    }
}

struct Drafting {
    state: State,
    head: Position,
    bytes: usize,
    time_unix_ms: u64,
    draft: Draft,
}

impl Drafting {
    fn new(base: &State, time_unix_ms: u64) -> Self {
        Drafting {
            state: base.clone(),
            head: base.position(),
            bytes: 0,
            time_unix_ms,
            draft: Draft {
                commits: Vec::new(),
                positions: Vec::new(),
                waiting: Vec::new(),
                answered: Vec::new(),
                left: VecDeque::new(),
            },
        }
    }

    fn repeated(&self, job: &Job) -> Option<Done> {
        let key = job.context.idempotency_key.as_deref()?;
        let used = self.state.key_use(&job.context.actor, key)?;
        Some(Done::Repeated { sequence: used.sequence })
    }

    fn decide(&self, job: &Job) -> Decided {
        match &job.work {
            Work::Command(command)
                if job.is_vouched_long_ago()
                    && matches!(**command, Command::FailOverSite { .. }) =>
            {
                let refusal = Refusal::VouchedLongAgo;
                refused(refusal.code().to_owned(), refusal.to_string())
            }
            Work::Command(command) => match decide(&self.state, command) {
                Ok(events) => Decided::Commit { events, note: None, then: OnCommit::Committed },
                Err(refusal) => refused(refusal.code().to_owned(), refusal.to_string()),
            },
            Work::Escalations { node, requests } => {
                let mut results =
                    decide_escalations_at(&self.state, *node, requests, self.time_unix_ms);
                if job.is_vouched_long_ago() {
                    let vouched = results.iter_mut().zip(requests);
                    vouched
                        .filter(|(_, request)| matches!(request, Escalation::HandOver { .. }))
                        .for_each(|(result, _)| *result = Err(Refusal::VouchedLongAgo));
                }
                self.gather(results)
            }
            Work::Refusal { code, message, .. } => refused(code.clone(), message.clone()),
        }
    }

    /// One commit of all that a node may have; the rest of its requests stands in the reason.
    fn gather(&self, results: Vec<Result<Vec<Event>, Refusal>>) -> Decided {
        let mut events = Vec::new();
        let mut outcomes = Vec::with_capacity(results.len());
        let mut first_refusal = None;
        let mut refused_count = 0;
        for result in results {
            match result {
                Ok(more) => {
                    events.extend(more);
                    outcomes.push(Ok(()));
                }
                Err(refusal) => {
                    let refusal = (refusal.code().to_owned(), refusal.to_string());
                    refused_count += 1;
                    first_refusal.get_or_insert_with(|| refusal.clone());
                    outcomes.push(Err(refusal));
                }
            }
        }
        let Some((code, message)) = first_refusal else {
            if events.is_empty() {
                let outcomes = escalation_outcomes(outcomes, self.head);
                return Decided::Answer(Ok(Done::Escalated { outcomes }));
            }
            return Decided::Commit { events, note: None, then: OnCommit::Escalated(outcomes) };
        };
        let note =
            format!("{refused_count} of {} requests refused, the first: {message}", outcomes.len());
        let then = OnCommit::Escalated(outcomes);
        if events.is_empty() {
            Decided::Refuse { code, message: note, then }
        } else {
            Decided::Commit { events, note: Some(note), then }
        }
    }

    fn accept(&mut self, job: Job, events: Vec<Event>, note: Option<String>, then: OnCommit) {
        let reason = note.unwrap_or_else(|| job.context.reason.clone());
        let commit = self.commit(&job, reason, Outcome::Accepted(events));
        let bytes = commit.encode();
        if bytes.len() > COMMIT_BYTES_MAX {
            let message = format!(
                "its commit would have {} bytes, more than the {COMMIT_BYTES_MAX} that the log takes; ask for less at once",
                bytes.len()
            );
            let done = match then {
                OnCommit::Escalated(results) => {
                    let refusal = || Err(("commit-too-large".to_owned(), message.clone()));
                    let results = results.iter().map(|_| refusal()).collect();
                    Done::Escalated { outcomes: escalation_outcomes(results, self.head) }
                }
                _ => Done::Refused { code: "commit-too-large".into(), message, position: None },
            };
            self.draft.answered.push((job, Ok(done)));
            return;
        }
        self.push(job, commit, &bytes, then);
    }

    fn refuse(&mut self, job: Job, code: String, message: String, then: OnCommit) {
        let reason = job.context.reason.clone();
        let commit = self.commit(&job, reason, Outcome::Refused { code, message });
        let bytes = commit.encode();
        self.push(job, commit, &bytes, then);
    }

    fn push(&mut self, job: Job, commit: Commit, bytes: &[u8], then: OnCommit) {
        if self.bytes + bytes.len() > APPEND_BYTES_MAX {
            self.draft.left.push_back(job);
            return;
        }
        self.bytes += bytes.len();
        self.head = Position { sequence: commit.sequence, hash: Hash::of_commit(bytes) };
        evolve(&mut self.state, self.head, &commit);
        self.draft.waiting.push((self.draft.commits.len(), job, then));
        self.draft.commits.push(Arc::new(commit));
        self.draft.positions.push(self.head);
    }

    fn commit(&self, job: &Job, mut reason: String, outcome: Outcome) -> Commit {
        truncate(&mut reason, REASON_MAX);
        let context = &job.context;
        Commit {
            sequence: self.head.sequence.next(),
            previous: self.head.hash,
            id: CommitId::generate(),
            time_unix_ms: self.time_unix_ms,
            actor: context.actor.clone(),
            origin: context.origin,
            source: context.source,
            correlation: context.correlation,
            causation: context.causation,
            idempotency_key: context.idempotency_key.clone(),
            command: job.work.name().to_owned(),
            reason,
            outcome,
        }
    }
}

fn refused(code: String, message: String) -> Decided {
    let then = OnCommit::Refused { code: code.clone(), message: message.clone() };
    Decided::Refuse { code, message, then }
}

/// Cuts a text at a character's border.
fn truncate(text: &mut String, length_max: usize) {
    if text.len() > length_max {
        let mut end = length_max;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
}

/// Answers a job; whoever asked may have gone.
pub(super) fn reply(answer: oneshot::Sender<Answer>, with: Answer) {
    if answer.send(with).is_err() {
        tracing::debug!("whoever asked did not wait for the answer");
    }
}
