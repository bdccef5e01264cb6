//! What an append must look like before an engine stores it.

use crate::{APPEND_BYTES_MAX, APPEND_COMMITS_MAX, AppendError, Position, StoredCommit};
use voute_schemas::{Commit, Hash};

/// Encodes commits for storing, once they are numbered and chained after `expected`.
pub(crate) fn seal(
    expected: Position,
    commits: &[Commit],
) -> Result<Vec<StoredCommit>, AppendError> {
    if commits.is_empty() || commits.len() > APPEND_COMMITS_MAX {
        return refuse(format!(
            "an append carries 1 to {APPEND_COMMITS_MAX} commits, not {}",
            commits.len()
        ));
    }
    let mut bytes_total = 0;
    let mut head = expected;
    let mut sealed = Vec::with_capacity(commits.len());
    for commit in commits {
        if head.sequence.0.checked_add(1) != Some(commit.sequence.0) || commit.previous != head.hash
        {
            return refuse(format!(
                "commit {} is not chained to the commit before it (number {}, hash {}); decide again on the verified head",
                commit.sequence, head.sequence, head.hash
            ));
        }
        let bytes = commit.encode();
        bytes_total += bytes.len();
        if bytes_total > APPEND_BYTES_MAX {
            return refuse(format!(
                "the append exceeds {APPEND_BYTES_MAX} bytes at commit {}; split the command or the batch",
                commit.sequence
            ));
        }
        head = Position { sequence: commit.sequence, hash: Hash::of_commit(&bytes) };
        sealed.push(StoredCommit { position: head, bytes });
    }
    Ok(sealed)
}

fn refuse<T>(cause: String) -> Result<T, AppendError> {
    Err(AppendError::Refused { cause })
}

/// The refusal of an append that expects what the log does not hold.
pub(crate) fn diverged(expected: Position, found: Option<Hash>) -> AppendError {
    let cause = match found {
        Some(hash) => format!(
            "it holds another commit {} (hash {hash}) than the one expected ({}): the log was replaced by another branch; stop, and compare it with the signed checkpoints",
            expected.sequence, expected.hash
        ),
        None => format!(
            "it ends before commit {}, which was in it: the log was shortened; stop, and restore what the sites still hold",
            expected.sequence
        ),
    };
    AppendError::Refused { cause }
}
