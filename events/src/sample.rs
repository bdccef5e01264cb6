//! Commits for tests, chained after any position.

use voute_schemas::commit::{Actor, Origin, Outcome};
use voute_schemas::event::Event;
use voute_schemas::{ClusterId, Commit, CommitId, CorrelationId, Epoch, Hash, Name};

/// `count` commits chained after `after`, distinct from those of any other call.
pub(crate) fn chain(after: Epoch, count: usize) -> Vec<Commit> {
    let mut head = after;
    (0..count)
        .map(|_| {
            let commit = commit_after(head);
            head = position(&commit);
            commit
        })
        .collect()
}

/// Where a commit will stand.
pub(crate) fn position(commit: &Commit) -> Epoch {
    Epoch { sequence: commit.sequence, hash: Hash::of_commit(&commit.encode()) }
}

fn commit_after(head: Epoch) -> Commit {
    Commit {
        sequence: head.sequence.next(),
        previous: head.hash,
        id: CommitId::generate(),
        time_unix_ms: 1_700_000_000_000,
        actor: Actor::System,
        origin: Origin::CommandLine,
        source: Some([127, 0, 0, 1].into()),
        correlation: CorrelationId::generate(),
        causation: None,
        idempotency_key: None,
        command: "IssueCredential".into(),
        reason: "a commit of a test".into(),
        outcome: Outcome::Accepted(vec![Event::CredentialIssued {
            credential: voute_schemas::CredentialId::generate(),
            name: Name::new("tester").expect("a valid name"),
            role: voute_schemas::event::Role::Viewer,
            verifier: Hash::of(ClusterId::generate().0.as_bytes()),
        }]),
    }
}
