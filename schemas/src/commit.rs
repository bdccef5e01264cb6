//! The envelope of the log.

use crate::event::Event;
use crate::ids::{CommitId, CorrelationId, CredentialId, NodeId};
use crate::position::{Hash, Sequence};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// Longest reason text, bytes.
pub const REASON_MAX: usize = 1_024;
/// Longest idempotency key, bytes.
pub const IDEMPOTENCY_KEY_MAX: usize = 128;
/// Largest encoded commit, bytes: JetStream's default payload limit less its headers.
pub const COMMIT_BYTES_MAX: usize = 1_000_000;

/// One accepted command and the events that it caused, or one refused command and why.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Commit {
    /// Its own number, so that a moved commit is noticed.
    pub sequence: Sequence,
    /// Hash of the commit before it ([`Hash::ZERO`] for the first).
    pub previous: Hash,
    /// Unique; also the message id of the append.
    pub id: CommitId,
    /// Wall time at the committing process, milliseconds since 1970 UTC. Not ordered.
    pub time_unix_ms: u64,
    /// Who asked.
    pub actor: Actor,
    /// By which way.
    pub origin: Origin,
    /// From which address.
    #[schema(value_type = Option<String>)]
    pub source: Option<IpAddr>,
    /// Joins commits of one cause.
    pub correlation: CorrelationId,
    /// The commit that caused this one.
    pub causation: Option<CommitId>,
    /// Given by the client: a repeated command with the same key has no second effect.
    pub idempotency_key: Option<String>,
    /// The command in short: its name, e.g. `CreateVolume`.
    pub command: String,
    /// Why, in the words of who asked.
    pub reason: String,
    /// What came of it.
    pub outcome: Outcome,
}

/// Who asked for a commit; people by credential only, never by personal data.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub enum Actor {
    /// The control plane itself (genesis, site watcher).
    System,
    /// A holder of a credential.
    Credential {
        /// Its id.
        id: CredentialId,
        /// Its name at that time.
        name: String,
    },
    /// A node, by its escalation.
    Node(NodeId),
}

/// The way by which a command came.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub enum Origin {
    /// The `voute` command.
    CommandLine,
    /// The API, by another client.
    Api,
    /// The web console.
    Console,
    /// A node's escalation.
    Node,
    /// A failover policy.
    Policy,
    /// The control plane's own start.
    Genesis,
}

/// What came of a command.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub enum Outcome {
    /// At least one event, all effective together.
    Accepted(Vec<Event>),
    /// No effect on the state.
    Refused {
        /// Stable word for programs, e.g. `duplicate-name`.
        code: String,
        /// For people.
        message: String,
    },
}

impl Commit {
    /// The events, none for a refusal.
    #[must_use]
    pub fn events(&self) -> &[Event] {
        match &self.outcome {
            Outcome::Accepted(events) => events,
            Outcome::Refused { .. } => &[],
        }
    }

    /// The bytes that rest in the log.
    ///
    /// # Panics
    /// Never: postcard cannot fail on these types when it writes to memory.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("commits have no unserialisable field")
    }

    /// Reads one commit back; trailing bytes are an error.
    ///
    /// # Errors
    /// [`UnreadableCommit`] for damaged bytes or a variant that this version does not know: the
    /// reader stops there and says so.
    pub fn decode(bytes: &[u8]) -> Result<Self, UnreadableCommit> {
        match postcard::take_from_bytes(bytes) {
            Ok((commit, [])) => Ok(commit),
            Ok((_, rest)) => {
                Err(UnreadableCommit { cause: format!("{} bytes after its end", rest.len()) })
            }
            Err(error) => Err(UnreadableCommit { cause: error.to_string() }),
        }
    }
}

/// Bytes that are no commit for this version.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "commit cannot be read ({cause}): it is damaged, or was written by a newer version; upgrade this process or repair the log"
)]
pub struct UnreadableCommit {
    /// What the decoder met.
    pub cause: String,
}
