//! Proof that a commit is in a log that its sites vouch for (docs/mirror-rules.md rule 12).

use crate::position::{Hash, Sequence};
use serde::{Deserialize, Serialize};

/// A signed note (C2SP signed-note and tlog-checkpoint): origin, number of commits, root hash, and
/// one Ed25519 signature line per site.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(transparent)]
pub struct Checkpoint(pub String);

/// Who may sign checkpoints.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Verifier {
    /// Key name in the note, e.g. the site's name.
    pub name: String,
    /// Ed25519 public key.
    pub key: Hash,
}

/// That the log names its sites: the commit that does, and a checkpoint that covers it, signed by a
/// majority of the sites before and by one of those that it names. Who trusted the former may trust
/// the latter.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct HandOver {
    /// By which the sites before handed over.
    pub checkpoint: Checkpoint,
    /// `ClusterCreated` or `LogSitesChanged`, with its path to that checkpoint.
    pub named: CommitProof,
}

/// Most hand-overs in one message: who was away for more is given its trust anew.
pub const HAND_OVERS_MAX: usize = 64;

/// A commit and its path to a checkpoint's root (RFC 6962 §2.1.1).
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct CommitProof {
    /// Number of the commit.
    pub sequence: Sequence,
    /// The commit's bytes.
    pub commit: Vec<u8>,
    /// Audit path from the leaf to the root, lowest first.
    pub path: Vec<Hash>,
}
