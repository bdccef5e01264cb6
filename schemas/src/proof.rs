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
