//! What a site remembers of the checkpoints that it signed (docs/mirror-rules.md rule 12): never two
//! roots for one size, never a lower size, and never a history that does not extend the one before.
//!
//! The file has two slots with the same content, written and flushed one after the other: a power
//! cut harms at most the one being written, and then the signature was not yet given.
//!
//! ```text
//! slot (512 bytes): magic "VOUTEREG" | version u32 | size u64 | root 32 | SHA-256 of all before
//! ```

use crate::checkpoint::{CheckpointError, Signer, claim};
use crate::merkle::{MerkleTree, OutOfTree};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use voute_schemas::Hash;
use voute_schemas::proof::Checkpoint;

const MAGIC: &[u8; 8] = b"VOUTEREG";
const VERSION: u32 = 1;
const SLOT_BYTES: usize = 512;
const SLOTS: u64 = 2;
/// Bytes of a slot before its hash.
const CONTENT_BYTES: usize = 8 + 4 + 8 + 32;

/// The register of one site, locked for this process.
#[derive(Debug)]
pub struct SignedRegister {
    file: File,
    path: PathBuf,
    signed: Signed,
}

/// What was signed last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Signed {
    /// Commits covered.
    pub size: u64,
    /// Their root.
    pub root: Hash,
}

/// Why a register is not used, or does not sign.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// Another process has it.
    #[error("the register {path} is in use by another process; a site has one signer")]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// Neither slot is whole.
    #[error(
        "the register {path} is damaged; this site must not sign until it was re-seeded from the registers of the other sites"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// The log is shorter than what was signed.
    #[error(
        "the log has {size} commits, but {signed} were signed for: it was shortened; restore it before anything else is signed"
    )]
    Shorter {
        /// Commits now.
        size: u64,
        /// Commits signed.
        signed: u64,
    },
    /// The log has another history than the one signed.
    #[error(
        "the log's first {size} commits have root {found}, but {signed} was signed: it was replaced by another branch"
    )]
    Forked {
        /// Commits signed.
        size: u64,
        /// Their root in the signed log.
        signed: Hash,
        /// Their root now.
        found: Hash,
    },
    /// The tree is not read that far.
    #[error(transparent)]
    OutOfTree(#[from] OutOfTree),
    /// A checkpoint to be cosigned says otherwise.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The system refuses.
    #[error("the register {path} cannot be used: {source}")]
    System {
        /// The file.
        path: PathBuf,
        /// What it says.
        source: io::Error,
    },
}

impl SignedRegister {
    /// Opens a register; creates one that signed nothing if the file is not there. A site that lost
    /// its register must be re-seeded ([`SignedRegister::seed`]) instead. Blocks on the disk.
    ///
    /// # Errors
    /// [`RegisterError`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, RegisterError> {
        let path = path.as_ref();
        let nothing = Signed { size: 0, root: Hash::of(&[]) };
        match Self::open_existing(path) {
            Err(RegisterError::System { source, .. })
                if source.kind() == io::ErrorKind::NotFound =>
            {
                Self::seed(path, nothing)
            }
            opened => opened,
        }
    }

    /// Creates a register that begins with what other registers say was signed.
    ///
    /// # Errors
    /// [`RegisterError::System`] if the file exists, among others.
    pub fn seed(path: impl AsRef<Path>, signed: Signed) -> Result<Self, RegisterError> {
        let path = path.as_ref();
        let slot = encode_slot(signed);
        write_new_file(path, &[slot, slot].concat())
            .map_err(|source| RegisterError::System { path: path.into(), source })?;
        Self::open_existing(path)
    }

    fn open_existing(path: &Path) -> Result<Self, RegisterError> {
        let system = |source| RegisterError::System { path: path.into(), source };
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(system)?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => RegisterError::Locked { path: path.into() },
            TryLockError::Error(source) => system(source),
        })?;
        let slots = [read_slot(&file, 0).map_err(system)?, read_slot(&file, 1).map_err(system)?];
        let signed = slots.into_iter().flatten().max_by_key(|signed| signed.size);
        let Some(signed) = signed else { return Err(RegisterError::Damaged { path: path.into() }) };
        let mut register = SignedRegister { file, path: path.into(), signed };
        if slots[0] != slots[1] {
            register.write(signed)?;
        }
        Ok(register)
    }

    /// What was signed last.
    #[must_use]
    pub fn signed(&self) -> Signed {
        self.signed
    }

    /// Signs a checkpoint over the first `size` commits of the log that this site read and
    /// verified; what is signed is on disk before this returns. Blocks for up to two flushes.
    ///
    /// # Errors
    /// [`RegisterError::Shorter`] and [`RegisterError::Forked`] call for an alarm; after
    /// [`RegisterError::System`] nothing was signed.
    pub fn sign(
        &mut self,
        signer: &Signer,
        origin: &str,
        tree: &MerkleTree,
        size: u64,
    ) -> Result<Checkpoint, RegisterError> {
        let root = self.record(tree, size)?;
        Ok(signer.sign(origin, size, root))
    }

    /// Adds this site's signature to another site's checkpoint, if it says what this site's own
    /// copy of the log says.
    ///
    /// # Errors
    /// As [`SignedRegister::sign`]; [`CheckpointError::Different`] if it says otherwise.
    pub fn cosign(
        &mut self,
        signer: &Signer,
        origin: &str,
        tree: &MerkleTree,
        checkpoint: &Checkpoint,
    ) -> Result<Checkpoint, RegisterError> {
        let said = claim(checkpoint)?;
        if said.origin != origin || tree.root(said.size)? != said.root {
            return Err(CheckpointError::Different.into());
        }
        self.record(tree, said.size)?;
        Ok(signer.cosign(checkpoint)?)
    }

    /// Commits this site to the first `size` leaves of `tree`.
    fn record(&mut self, tree: &MerkleTree, size: u64) -> Result<Hash, RegisterError> {
        let signed = self.signed;
        if size < signed.size || tree.size() < signed.size {
            let size = size.min(tree.size());
            return Err(RegisterError::Shorter { size, signed: signed.size });
        }
        let found = tree.root(signed.size)?;
        if found != signed.root {
            return Err(RegisterError::Forked { size: signed.size, signed: signed.root, found });
        }
        let root = tree.root(size)?;
        if size > signed.size {
            self.write(Signed { size, root })?;
        }
        Ok(root)
    }

    fn write(&mut self, signed: Signed) -> Result<(), RegisterError> {
        let slot = encode_slot(signed);
        for index in 0..SLOTS {
            self.file
                .write_all_at(&slot, index * SLOT_BYTES as u64)
                .and_then(|()| self.file.sync_data())
                .map_err(|source| RegisterError::System { path: self.path.clone(), source })?;
            // From the first slot on it may be what a restart finds.
            self.signed = signed;
        }
        Ok(())
    }
}

fn encode_slot(signed: Signed) -> [u8; SLOT_BYTES] {
    let mut slot = [0; SLOT_BYTES];
    slot[..8].copy_from_slice(MAGIC);
    slot[8..12].copy_from_slice(&VERSION.to_le_bytes());
    slot[12..20].copy_from_slice(&signed.size.to_le_bytes());
    slot[20..52].copy_from_slice(&signed.root.0);
    let hash = Hash::of(&slot[..CONTENT_BYTES]);
    slot[CONTENT_BYTES..CONTENT_BYTES + 32].copy_from_slice(&hash.0);
    slot
}

/// `None` for a slot that is not whole.
fn read_slot(file: &File, index: u64) -> io::Result<Option<Signed>> {
    let mut slot = [0; SLOT_BYTES];
    match file.read_exact_at(&mut slot, index * SLOT_BYTES as u64) {
        Ok(()) => Ok(decode_slot(&slot)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

fn decode_slot(slot: &[u8; SLOT_BYTES]) -> Option<Signed> {
    let size = u64::from_le_bytes(*slot[12..].first_chunk()?);
    let root = Hash(*slot[20..].first_chunk()?);
    let signed = Signed { size, root };
    // Encoding again compares magic, version, hash and the zeros behind it in one go.
    (encode_slot(signed) == *slot).then_some(signed)
}

/// Writes a file (mode 0600) that must not exist yet; whole and on disk, or not there, when this
/// returns.
pub(crate) fn write_new_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut staged = path.as_os_str().to_owned();
    staged.push(format!(".{}.new", std::process::id()));
    let staged = PathBuf::from(staged);
    let written = write_synced(&staged, bytes)
        // A link, unlike a rename, fails if the name is taken.
        .and_then(|()| std::fs::hard_link(&staged, path));
    let removed = std::fs::remove_file(&staged);
    written?;
    removed?;
    sync_directory_of(path)
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // What a process of the same number left behind.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes a new name in a directory durable.
pub(crate) fn sync_directory_of(path: &Path) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests;
