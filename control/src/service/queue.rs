//! What waits for the pipeline, and what it answers.

use super::Context;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;
use voute_events::Position;
use voute_schemas::command::Escalation;
use voute_schemas::contract::EscalationOutcome;
use voute_schemas::{Command, Commit, NodeId, Sequence};

/// Most jobs that wait in each queue; further askers wait before it.
pub(crate) const JOBS_MAX: usize = 1_024;

/// What sides vouched for holds so long after a command was asked for because of it.
pub(crate) const VOUCHED_FOR_MAX: Duration = Duration::from_secs(2);

/// One thing asked of the pipeline.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) work: Work,
    pub(crate) context: Context,
    pub(crate) asked_at: Instant,
    pub(crate) answer: oneshot::Sender<Answer>,
}

impl Job {
    /// Whether nobody waits for the answer any more: whoever asked gave up, and may have done
    /// otherwise since.
    pub(crate) fn is_given_up(&self) -> bool {
        self.answer.is_closed()
    }

    /// Whether what it rests on was said too long ago.
    pub(crate) fn is_vouched_long_ago(&self) -> bool {
        self.asked_at.elapsed() > VOUCHED_FOR_MAX
    }
}

/// What is asked.
#[derive(Debug)]
pub(crate) enum Work {
    /// To decide and commit.
    Command(Box<Command>),
    /// To decide one by one and commit as one.
    Escalations { node: NodeId, requests: Vec<Escalation> },
    /// To commit as refused.
    Refusal { command: String, code: String, message: String },
}

impl Work {
    /// The command's name in the commit.
    pub(crate) fn name(&self) -> &str {
        match self {
            Work::Command(command) => command.name(),
            Work::Escalations { .. } => "Escalate",
            Work::Refusal { command, .. } => command,
        }
    }
}

/// What the pipeline answers.
pub type Answer = Result<Done, Unanswered>;

/// A definite outcome.
#[derive(Clone, Debug)]
pub enum Done {
    /// Committed and effective.
    Committed {
        /// Where.
        position: Position,
        /// What.
        commit: Arc<Commit>,
    },
    /// It has no effect.
    Refused {
        /// Stable word.
        code: String,
        /// For people.
        message: String,
        /// The commit that records it, if one does.
        position: Option<Position>,
    },
    /// The idempotency key was used before.
    Repeated {
        /// By this commit.
        sequence: Sequence,
    },
    /// One outcome per escalation.
    Escalated {
        /// In order.
        outcomes: Vec<EscalationOutcome>,
    },
}

/// No definite outcome.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unanswered {
    /// This process is stopping, or had to stop projecting.
    #[error(
        "this control process is stopping or has stopped projecting; ask another one, or see its status"
    )]
    Stopped,
    /// The log has not answered in time; the command may still be committed.
    #[error("the log did not answer in time; the command may still be committed")]
    Late,
    /// The log refuses; nothing was committed.
    #[error("nothing was committed: {cause}")]
    LogRefused {
        /// In its words.
        cause: String,
    },
}
