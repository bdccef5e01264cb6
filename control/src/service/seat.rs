//! With what a process signs for a site of the log.

use std::path::{Path, PathBuf};
use voute_events::checkpoint::SignerError;
use voute_events::register::{RegisterError, Signed};
use voute_events::{MerkleTree, SignedRegister, Signer};
use voute_schemas::proof::{Checkpoint, Verifier};

/// Key and register of a log site.
#[derive(Debug)]
pub struct Seat {
    signer: Signer,
    register: Register,
}

#[derive(Debug)]
enum Register {
    Open(SignedRegister),
    /// It is gone or damaged although its key is there: what was signed is not known. Nothing is
    /// signed until the other sites have said what they signed.
    Lost(PathBuf),
}

/// Why a seat cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum SeatError {
    /// The key.
    #[error(transparent)]
    Key(#[from] SignerError),
    /// The register.
    #[error(transparent)]
    Register(#[from] RegisterError),
}

impl Seat {
    /// A key and its register.
    #[must_use]
    pub fn new(signer: Signer, register: SignedRegister) -> Self {
        Seat { signer, register: Register::Open(register) }
    }

    /// Opens or makes key and register. A register that is missing beside a key that is there, or
    /// is damaged, was lost: the seat then stays mute until it is re-seeded.
    ///
    /// # Errors
    /// [`SeatError`].
    pub fn open(key: &Path, register: &Path, name: &str) -> Result<Self, SeatError> {
        let had_key = key.exists();
        let signer = Signer::load_or_create(key, name)?;
        if had_key && !register.exists() {
            tracing::error!(
                register = %register.display(),
                "ALARM: the register of what this site signed is gone; it signs nothing until the other log sites have told what they signed"
            );
            return Ok(Seat { signer, register: Register::Lost(register.to_owned()) });
        }
        match SignedRegister::open(register) {
            Ok(register) => Ok(Seat::new(signer, register)),
            Err(RegisterError::Damaged { path }) => {
                let aside = path.with_extension("damaged");
                let moved = std::fs::rename(&path, &aside);
                moved.map_err(|source| RegisterError::System { path: path.clone(), source })?;
                tracing::error!(
                    register = %path.display(), aside = %aside.display(),
                    "ALARM: the register of what this site signed is damaged; it signs nothing until the other log sites have told what they signed"
                );
                Ok(Seat { signer, register: Register::Lost(path) })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// What others know the site by.
    #[must_use]
    pub fn verifier(&self) -> Verifier {
        self.signer.verifier()
    }

    /// Whether its register was lost.
    pub(super) fn is_mute(&self) -> bool {
        matches!(self.register, Register::Lost(_))
    }

    /// Begins a new register in place of a lost one. Blocks on the disk.
    pub(super) fn seed(&mut self, signed: Signed) -> Result<(), RegisterError> {
        if let Register::Lost(path) = &self.register {
            self.register = Register::Open(SignedRegister::seed(path, signed)?);
        }
        Ok(())
    }

    /// Signs the first `size` commits; nothing while mute. Blocks on the disk.
    pub(super) fn sign(
        &mut self,
        origin: &str,
        tree: &MerkleTree,
        size: u64,
    ) -> Result<Option<Checkpoint>, RegisterError> {
        match &mut self.register {
            Register::Open(register) => register.sign(&self.signer, origin, tree, size).map(Some),
            Register::Lost(_) => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(folder: &Path) -> Seat {
        Seat::open(&folder.join("key"), &folder.join("register"), "north").unwrap()
    }

    #[test]
    fn a_seat_that_lost_its_register_signs_nothing_until_it_is_seeded() {
        let folder = tempfile::tempdir().unwrap();
        let mut tree = MerkleTree::new();
        tree.push(voute_schemas::Hash::of(b"one"));
        let mut seat = open(folder.path());
        let key = seat.verifier();
        assert!(!seat.is_mute(), "a new key has signed nothing");
        assert!(seat.sign("log", &tree, 1).unwrap().is_some());
        drop(seat);
        for lose in ["remove", "damage"] {
            match lose {
                "remove" => std::fs::remove_file(folder.path().join("register")).unwrap(),
                _ => std::fs::write(folder.path().join("register"), b"nonsense").unwrap(),
            }
            let mut seat = open(folder.path());
            assert_eq!(seat.verifier(), key);
            assert!(seat.is_mute());
            assert_eq!(seat.sign("log", &tree, 1).unwrap(), None);
            seat.seed(Signed { size: 1, root: tree.root(1).unwrap() }).unwrap();
            assert!(seat.sign("log", &tree, 1).unwrap().is_some());
            assert!(seat.sign("log", &MerkleTree::new(), 0).is_err(), "never lower");
        }
        assert!(!open(folder.path()).is_mute());
    }
}
