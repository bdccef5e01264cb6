//! What a node remembers from start to start: one small file, replaced whole, and the lock that
//! keeps two processes from being the same node.

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use voute_schemas::proof::Verifier;
use voute_schemas::{ClusterId, Epoch, NodeId, Sequence};

const FILE: &str = "node.json";
const NEW_FILE: &str = "node.json.new";
const LOCK_FILE: &str = "lock";

/// The content of the file.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
struct Content {
    node: NodeId,
    /// Rises at each start.
    incarnation: u64,
    /// The highest log position that was obeyed.
    obeyed: Epoch,
    /// Who the node trusts, from first contact on.
    trust: Option<Trust>,
}

/// What a node learnt at first contact and holds everyone to since.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Trust {
    pub(crate) cluster: ClusterId,
    /// Which log checkpoints speak of.
    pub(crate) origin: String,
    /// Who signs them.
    pub(crate) verifiers: Vec<Verifier>,
    /// Number of the commit that named them; zero in a file of an older version, which knew none.
    #[serde(default)]
    pub(crate) named_at: Sequence,
}

/// Why the memory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// Another process is this node.
    #[error("{folder} is in use by another process; stop it first: one node is one process")]
    InUse {
        /// The data folder.
        folder: PathBuf,
    },
    /// The folder belongs to another node.
    #[error(
        "{folder} belongs to node {found}, not to {wanted}; give each node a data folder of its own"
    )]
    OtherNode {
        /// The data folder.
        folder: PathBuf,
        /// Whose it is.
        found: NodeId,
        /// Who asked.
        wanted: NodeId,
    },
    /// The file cannot be understood.
    #[error(
        "{path} cannot be read ({cause}); restore it: without it the node might obey an older state"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
    /// The file system does not do it.
    #[error("{path}: {source}; check that the data folder exists and can be written")]
    System {
        /// Where.
        path: PathBuf,
        /// What.
        source: io::Error,
    },
}

/// The memory, locked for this process.
pub(crate) struct Memory {
    folder: PathBuf,
    content: Content,
    /// Held for as long as the process is this node.
    _lock: File,
}

impl Memory {
    /// Claims the folder, reads what is remembered, and raises the incarnation, on disk, before
    /// anything else is done.
    ///
    /// # Errors
    /// [`MemoryError`].
    pub(crate) fn open(folder: &Path, node: NodeId) -> Result<Self, MemoryError> {
        let system = |path: &Path, source| MemoryError::System { path: path.into(), source };
        let mut builder = fs::DirBuilder::new();
        // Whoever reads the trust could not forge it, but need not know it either.
        builder.recursive(true).mode(0o700);
        builder.create(folder).map_err(|source| system(folder, source))?;
        let path = folder.join(LOCK_FILE);
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(|source| system(&path, source))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(MemoryError::InUse { folder: folder.into() });
            }
            Err(error) => return Err(system(&path, error.into())),
        }
        let mut content = read(&folder.join(FILE))?.unwrap_or(Content {
            node,
            incarnation: 0,
            obeyed: Epoch::ZERO,
            trust: None,
        });
        if content.node != node {
            let (found, wanted) = (content.node, node);
            return Err(MemoryError::OtherNode { folder: folder.into(), found, wanted });
        }
        content.incarnation += 1;
        let memory = Memory { folder: folder.into(), content, _lock: lock };
        memory.write()?;
        Ok(memory)
    }

    pub(crate) fn incarnation(&self) -> u64 {
        self.content.incarnation
    }

    pub(crate) fn obeyed(&self) -> Epoch {
        self.content.obeyed
    }

    pub(crate) fn trust(&self) -> Option<&Trust> {
        self.content.trust.as_ref()
    }

    /// Notes, on disk, what is about to be obeyed and who vouches for it.
    ///
    /// # Errors
    /// [`MemoryError::System`]; then it must not be obeyed.
    pub(crate) fn note(&mut self, obeyed: Epoch, trust: &Trust) -> Result<(), MemoryError> {
        if self.content.obeyed == obeyed && self.content.trust.as_ref() == Some(trust) {
            return Ok(());
        }
        self.content.obeyed = obeyed;
        self.content.trust = Some(trust.clone());
        self.write()
    }

    fn write(&self) -> Result<(), MemoryError> {
        let path = self.folder.join(FILE);
        let bytes = serde_json::to_vec_pretty(&self.content).expect("it has only plain fields");
        replace(&self.folder, &path, &bytes).map_err(|source| MemoryError::System { path, source })
    }
}

fn read(path: &Path) -> Result<Option<Content>, MemoryError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(MemoryError::System { path: path.into(), source }),
    };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| MemoryError::Damaged { path: path.into(), cause: error.to_string() })
}

/// After a power cut the file is the old one or the new one, whole.
fn replace(folder: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = folder.join(NEW_FILE);
    let mut file = File::create(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use voute_schemas::Hash;

    #[test]
    fn the_incarnation_rises_at_each_start() {
        let folder = tempfile::tempdir().unwrap();
        let node = NodeId::generate();
        for incarnation in 1..4 {
            let memory = Memory::open(folder.path(), node).unwrap();
            assert_eq!(memory.incarnation(), incarnation);
        }
    }

    #[test]
    fn two_processes_cannot_be_one_node() {
        let folder = tempfile::tempdir().unwrap();
        let node = NodeId::generate();
        let _first = Memory::open(folder.path(), node).unwrap();
        assert!(matches!(Memory::open(folder.path(), node), Err(MemoryError::InUse { .. })));
    }

    #[test]
    fn what_was_obeyed_survives() {
        let folder = tempfile::tempdir().unwrap();
        let node = NodeId::generate();
        let obeyed = Epoch { sequence: Sequence(7), hash: Hash([3; 32]) };
        let cluster = ClusterId::generate();
        let trust =
            Trust { cluster, origin: "log".into(), verifiers: vec![], named_at: Sequence(1) };
        Memory::open(folder.path(), node).unwrap().note(obeyed, &trust).unwrap();
        let memory = Memory::open(folder.path(), node).unwrap();
        assert_eq!((memory.obeyed(), memory.trust()), (obeyed, Some(&trust)));
    }

    #[test]
    fn another_nodes_or_a_damaged_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        drop(Memory::open(folder.path(), NodeId::generate()).unwrap());
        let node = NodeId::generate();
        let other = Memory::open(folder.path(), node);
        assert!(matches!(other, Err(MemoryError::OtherNode { .. })));
        fs::write(folder.path().join(FILE), b"{").unwrap();
        let damaged = Memory::open(folder.path(), node);
        assert!(matches!(damaged, Err(MemoryError::Damaged { .. })));
    }
}
