//! Proving the state: replays the log from its first commit, beside the live state, and compares.

use crate::api::answers::Verification;
use crate::domain::{State, evolve};
use crate::service::{Service, View};
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc;
use voute_events::checkpoint::CheckpointError;
use voute_events::{
    Log, MerkleTree, Position, ReadError, VerifiedReader, verify as verify_checkpoint,
};
use voute_schemas::{Hash, Sequence};

/// Commits read at once.
const READ_MAX: usize = 8_192;
/// Batches read ahead of evolving.
const BATCHES_AHEAD: usize = 2;

/// What a replay gave.
#[derive(Debug, Default)]
pub struct Rebuilt {
    /// The state there.
    pub state: State,
    /// Hashes of all commits.
    pub tree: MerkleTree,
}

/// Replays the first `up_to` commits of a log (all that are there, if it holds fewer), verifying
/// numbers, hashes and chain.
///
/// # Errors
/// [`ReadError`] at the first commit that is not what it should be.
pub async fn rebuild<L: Log>(log: Arc<L>, up_to: Sequence) -> Result<Rebuilt, ReadError> {
    let reader = VerifiedReader::new(log, Position::ZERO);
    let mut rebuilt = Rebuilt::default();
    let (_, ended) = replay(reader, up_to, &mut rebuilt.state, &mut rebuilt.tree).await;
    ended.map(|()| rebuilt)
}

/// Replays from where a reader stands up to a commit, or to the log's end: one task reads and
/// verifies while this one evolves. The reader comes back.
pub(crate) async fn replay<L: Log>(
    mut reader: VerifiedReader<L>,
    up_to: Sequence,
    state: &mut State,
    tree: &mut MerkleTree,
) -> (VerifiedReader<L>, Result<(), ReadError>) {
    let (read, mut batches) = mpsc::channel(BATCHES_AHEAD);
    let reading = tokio::spawn(async move {
        loop {
            let left = up_to.0.saturating_sub(reader.position().sequence.0);
            let limit = usize::try_from(left).unwrap_or(READ_MAX).min(READ_MAX);
            if limit == 0 {
                return (reader, Ok(()));
            }
            match reader.next_batch(limit).await {
                Ok(batch) if batch.is_empty() => return (reader, Ok(())),
                Ok(batch) => {
                    if read.send(batch).await.is_err() {
                        return (reader, Ok(()));
                    }
                }
                Err(error) => return (reader, Err(error)),
            }
        }
    });
    while let Some(batch) = batches.recv().await {
        for (commit, stored) in batch {
            evolve(state, stored.position, &commit);
            tree.push(stored.position.hash);
        }
        // Replaying is work without waits; others on this thread get their turn.
        tokio::task::yield_now().await;
    }
    reading.await.expect("reading does not panic")
}

/// Verifies the whole log against the live state and its checkpoint.
///
/// # Errors
/// Why that cannot be done now, in words: it says nothing against the log.
pub(crate) async fn verify(service: &Service) -> Result<Verification, String> {
    let began = Instant::now();
    let view = service.read(Clone::clone);
    let up_to = view.state.position().sequence;
    let rebuilt = rebuild(Arc::new(service.clone()), up_to).await;
    let live_digest = view.state.digest();
    let mut verification = match rebuilt {
        Ok(rebuilt) => {
            let signed_root = service.root(view.checkpoint_size);
            compare(&view, live_digest, &rebuilt, signed_root)
        }
        Err(error @ ReadError::Unavailable { .. }) => return Err(error.to_string()),
        Err(error @ ReadError::Damaged { sequence, .. }) => {
            broken(live_digest, sequence, error.to_string())
        }
    };
    if view.checkpoint.0.is_empty() && verification.chain && verification.digest {
        return Err(verification.detail);
    }
    verification.took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    Ok(verification)
}

/// `signed_root`: of the live tree where the checkpoint stands, which may be ahead of the state's
/// commits.
fn compare(
    view: &View,
    live_digest: Hash,
    rebuilt: &Rebuilt,
    signed_root: Option<Hash>,
) -> Verification {
    let replayed_digest = rebuilt.state.digest();
    let size = rebuilt.tree.size();
    let root = rebuilt.tree.root(size).expect("a tree has a root over all its leaves");
    let chain = rebuilt.state.position() == view.state.position();
    let digest = replayed_digest == live_digest;
    let is_there = view.checkpoint_size == size;
    let checkpoint = checkpoint_fits(view, if is_there { Some(root) } else { signed_root });
    let mut causes = Vec::new();
    if !chain {
        causes.push(format!(
            "the log leads to commit {}, the live state stands at {}",
            rebuilt.state.position(),
            view.state.position()
        ));
    }
    if !digest {
        causes.push("replaying the log gives another state than the live one".to_owned());
    }
    if let Err(cause) = &checkpoint {
        causes.push(cause.clone());
    }
    Verification {
        verified: causes.is_empty(),
        commits: size,
        chain,
        checkpoint: checkpoint.is_ok(),
        digest,
        replayed_digest,
        live_digest,
        root,
        took_ms: 0,
        detail: causes.join("; "),
    }
}

fn checkpoint_fits(view: &View, root: Option<Hash>) -> Result<(), String> {
    if view.checkpoint.0.is_empty() {
        return Err(
            "no majority of the log's sites has signed since this process started, so it has no checkpoint; see `voute log-site list`".into()
        );
    }
    let verifiers = view.state.cluster().map(|it| it.log_sites.clone()).unwrap_or_default();
    let needed = verifiers.len() / 2 + 1;
    let verified = verify_checkpoint(&view.checkpoint, &verifiers, needed);
    let verified = verified.map_err(|error: CheckpointError| error.to_string())?;
    let covers = verified.size() >= view.state.position().sequence.0;
    if covers && Some(verified.root()) == root {
        Ok(())
    } else {
        Err("the signed checkpoint does not fit the commits".into())
    }
}

fn broken(live_digest: Hash, at: Sequence, detail: String) -> Verification {
    Verification {
        verified: false,
        commits: at.0.saturating_sub(1),
        chain: false,
        checkpoint: false,
        digest: false,
        replayed_digest: Hash::ZERO,
        live_digest,
        root: Hash::ZERO,
        took_ms: 0,
        detail,
    }
}

/// A service reads like a log, and takes no appends: its pipeline is the only writer here.
impl Log for Service {
    async fn append(
        &self,
        _: Position,
        _: &[voute_schemas::Commit],
    ) -> Result<Position, voute_events::AppendError> {
        let cause = "commits go through the service's commands".to_owned();
        Err(voute_events::AppendError::Refused { cause })
    }

    async fn read(
        &self,
        from: Sequence,
        limit: usize,
    ) -> Result<Vec<voute_events::StoredCommit>, ReadError> {
        self.commits(from, limit).await
    }

    async fn wait(&self, from: Sequence) {
        // An ended pipeline publishes nothing more; its readers are told by their own stop.
        let _ = self.head().wait_for(|head| head.sequence >= from).await;
    }
}
