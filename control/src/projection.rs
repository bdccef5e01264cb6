//! The projection on disk: a snapshot of the state with the position and digest it stands at, and
//! the hashes of all commits up to there (the leaves of the Merkle tree), in one redb file and one
//! transaction. A restart reads it and replays only the tail.
//!
//! It is a cache: a file that cannot be read, or whose digest does not fit, is set aside and the
//! log is replayed from the first commit.

use crate::domain::State;
use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use voute_events::MerkleTree;
use voute_schemas::proof::Checkpoint;
use voute_schemas::{Epoch, Hash, Sequence};

const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const LEAVES: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("leaves");

const STATE: &str = "state";
const DIGEST: &str = "digest";
/// The checkpoint that covers the state.
const CHECKPOINT: &str = "checkpoint";
/// How the log's sites handed over.
const HAND_OVERS: &str = "hand_overs";
/// Leaves of one row.
const LEAVES_PER_ROW: usize = 4_096;
const HASH_BYTES: usize = 32;

/// The file.
#[derive(Clone, Debug)]
pub struct Projection {
    database: Arc<Database>,
    path: PathBuf,
}

/// What a snapshot holds.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// The state, with its position.
    pub state: State,
    /// Hashes of all commits up to there.
    pub tree: MerkleTree,
    /// Covers the state; empty if it is not known any more. To be verified.
    pub checkpoint: Checkpoint,
    /// By the commits that named log sites: the checkpoints by which those before handed over.
    pub hand_overs: BTreeMap<Sequence, Checkpoint>,
}

/// Why the projection cannot be used. The log is not affected.
#[derive(Debug, thiserror::Error)]
pub enum ProjectionError {
    /// Its file.
    #[error(
        "the projection {path} cannot be used ({cause}); stop whatever else has it open, or remove it: it is rebuilt from the log"
    )]
    Storage {
        /// The file.
        path: PathBuf,
        /// In words.
        cause: String,
    },
    /// Its content.
    #[error("the snapshot in {path} is not whole ({cause}); it will be rebuilt from the log")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// In words.
        cause: String,
    },
}

impl Projection {
    /// Opens the file, creates it if it is not there.
    ///
    /// # Errors
    /// [`ProjectionError::Storage`].
    pub fn open(path: &Path) -> Result<Self, ProjectionError> {
        let database = Database::create(path).map_err(|error| ProjectionError::Storage {
            path: path.to_owned(),
            cause: error.to_string(),
        })?;
        let projection = Projection { database: Arc::new(database), path: path.to_owned() };
        projection.make_tables()?;
        Ok(projection)
    }

    fn storage(&self, error: impl std::fmt::Display) -> ProjectionError {
        ProjectionError::Storage { path: self.path.clone(), cause: error.to_string() }
    }

    fn unreadable(&self, cause: impl std::fmt::Display) -> ProjectionError {
        ProjectionError::Unreadable { path: self.path.clone(), cause: cause.to_string() }
    }

    fn make_tables(&self) -> Result<(), ProjectionError> {
        let transaction = self.database.begin_write().map_err(|error| self.storage(error))?;
        transaction.open_table(META).map_err(|error| self.storage(error))?;
        transaction.open_table(LEAVES).map_err(|error| self.storage(error))?;
        transaction.commit().map_err(|error| self.storage(error))
    }

    /// Reads the snapshot; none in a new file. Blocks for as long as reading the file takes.
    ///
    /// # Errors
    /// [`ProjectionError::Unreadable`] if it is not what was written.
    pub fn load(&self) -> Result<Option<Snapshot>, ProjectionError> {
        let transaction = self.database.begin_read().map_err(|error| self.storage(error))?;
        let meta = transaction.open_table(META).map_err(|error| self.storage(error))?;
        let bytes = |key| -> Result<Option<Vec<u8>>, ProjectionError> {
            let row = meta.get(key).map_err(|error| self.storage(error))?;
            Ok(row.map(|row| row.value().to_vec()))
        };
        let (Some(encoded), Some(digest)) = (bytes(STATE)?, bytes(DIGEST)?) else {
            return Ok(None);
        };
        let checkpoint = bytes(CHECKPOINT)?.and_then(|bytes| String::from_utf8(bytes).ok());
        let checkpoint = Checkpoint(checkpoint.unwrap_or_default());
        let hand_overs = bytes(HAND_OVERS)?.map_or(Ok(BTreeMap::new()), |bytes| {
            postcard::from_bytes(&bytes).map_err(|error| self.unreadable(error))
        })?;
        let leaves = transaction.open_table(LEAVES).map_err(|error| self.storage(error))?;
        // A start waits for this: what costs time is done side by side.
        std::thread::scope(|scope| {
            let tree = scope.spawn(|| self.read_tree(&leaves));
            let fits = scope.spawn(|| Hash::of(&encoded).0.as_slice() == digest.as_slice());
            let state = State::decode(&encoded).map_err(|error| self.unreadable(error));
            if !fits.join().expect("hashing does not panic") {
                return Err(self.unreadable("its digest does not fit"));
            }
            let (state, tree) = (state?, tree.join().expect("reading does not panic")?);
            let Epoch { sequence, hash } = state.position();
            let last = sequence.0.checked_sub(1).and_then(|index| tree.leaf(index));
            if tree.size() != sequence.0 || last.unwrap_or(Hash::ZERO) != hash {
                return Err(self.unreadable("its commit hashes do not lead to its position"));
            }
            Ok(Some(Snapshot { state, tree, checkpoint, hand_overs }))
        })
    }

    fn read_tree(
        &self,
        rows: &impl ReadableTable<u64, &'static [u8]>,
    ) -> Result<MerkleTree, ProjectionError> {
        let mut tree = MerkleTree::new();
        for row in rows.iter().map_err(|error| self.storage(error))? {
            let (_, hashes) = row.map_err(|error| self.storage(error))?;
            for hash in hashes.value().chunks_exact(HASH_BYTES) {
                tree.push(Hash(hash.try_into().expect("chunks have this length")));
            }
        }
        Ok(tree)
    }

    /// Writes a state, the checkpoint that covers it and how its log's sites handed over, durably. `leaves` are the hashes of commits `first_leaf` on (counted from
    /// zero), at least from a multiple of the row length that was written before, and up to the
    /// state's position. Blocks; meant for a thread of its own.
    ///
    /// # Errors
    /// [`ProjectionError::Storage`]; the snapshot before it stays.
    pub fn save(
        &self,
        state: &State,
        first_leaf: u64,
        leaves: &[Hash],
        (checkpoint, hand_overs): (&Checkpoint, &BTreeMap<Sequence, Checkpoint>),
    ) -> Result<(), ProjectionError> {
        let encoded = state.encode();
        let digest = Hash::of(&encoded);
        let mut transaction = self.database.begin_write().map_err(|error| self.storage(error))?;
        transaction.set_durability(Durability::Immediate).map_err(|error| self.storage(error))?;
        transaction.set_quick_repair(true);
        {
            let mut rows = transaction.open_table(LEAVES).map_err(|error| self.storage(error))?;
            let first_row = first_leaf / LEAVES_PER_ROW as u64;
            for (row, hashes) in (first_row..).zip(leaves.chunks(LEAVES_PER_ROW)) {
                let bytes: Vec<u8> = hashes.iter().flat_map(|hash| hash.0).collect();
                rows.insert(row, bytes.as_slice()).map_err(|error| self.storage(error))?;
            }
            let mut meta = transaction.open_table(META).map_err(|error| self.storage(error))?;
            meta.insert(CHECKPOINT, checkpoint.0.as_bytes())
                .map_err(|error| self.storage(error))?;
            let hand_overs = postcard::to_stdvec(hand_overs).expect("plain fields serialise");
            meta.insert(HAND_OVERS, hand_overs.as_slice()).map_err(|error| self.storage(error))?;
            meta.insert(STATE, encoded.as_slice()).map_err(|error| self.storage(error))?;
            let digest = digest.0;
            meta.insert(DIGEST, digest.as_slice()).map_err(|error| self.storage(error))?;
        }
        transaction.commit().map_err(|error| self.storage(error))
    }

    /// Where to begin the `leaves` of [`Projection::save`] when this many were saved before.
    #[must_use]
    pub fn first_leaf(saved: u64) -> u64 {
        saved - saved % LEAVES_PER_ROW as u64
    }

    /// Forgets the snapshot.
    ///
    /// # Errors
    /// [`ProjectionError::Storage`].
    pub fn clear(&self) -> Result<(), ProjectionError> {
        let transaction = self.database.begin_write().map_err(|error| self.storage(error))?;
        transaction.delete_table(META).map_err(|error| self.storage(error))?;
        transaction.delete_table(LEAVES).map_err(|error| self.storage(error))?;
        transaction.commit().map_err(|error| self.storage(error))?;
        self.make_tables()
    }
}
