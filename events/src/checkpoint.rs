//! Checkpoints (C2SP tlog-checkpoint): how many commits the log has and their Merkle root, signed
//! by sites; and what a node needs to trust a single commit without reading the log.

use crate::merkle;
use crate::note::{ED25519, InvalidNote, Note, NoteSignature, is_key_name, key_id};
use crate::register::write_new_file;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use std::fmt;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use voute_schemas::commit::UnreadableCommit;
use voute_schemas::proof::{Checkpoint, CommitProof, Verifier};
use voute_schemas::{Commit, Epoch, Event, Hash};

const KEY_FILE_MARK: &str = "PRIVATE+KEY";
/// A key file is one line; anything longer is something else.
const KEY_FILE_BYTES_MAX: u64 = 4_096;

/// A site's Ed25519 key. Its secret is in memory and in its file, and is never printed.
///
/// A control process signs through [`crate::SignedRegister`], which never vouches for two histories.
pub struct Signer {
    name: String,
    key: SigningKey,
}

impl fmt::Debug for Signer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Signer({})", crate::note::verifier_text(&self.verifier()))
    }
}

/// Why a key cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SignerError {
    /// The name cannot stand in a note.
    #[error(
        "{name:?} cannot name a key: it must not be empty nor hold spaces, '+' or control characters"
    )]
    BadName {
        /// The name.
        name: String,
    },
    /// The file can be read by others.
    #[error(
        "{path} can be read by others (mode {mode:o}); if they may have copied the key, make a new one, else: chmod 600 {path}"
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The file holds no key of that name.
    #[error(
        "{path} holds no key named {name:?}; name the right file, or move it away to make a new key"
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// The system refuses.
    #[error("the key file {path} cannot be used: {source}")]
    System {
        /// The file.
        path: PathBuf,
        /// What it says.
        source: io::Error,
    },
}

impl Signer {
    /// Makes a new key in memory.
    ///
    /// # Errors
    /// [`SignerError::BadName`], or [`SignerError::System`] if the system gives no randomness.
    pub fn generate(name: &str) -> Result<Self, SignerError> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|error| SignerError::System {
            path: "/dev/urandom".into(),
            source: io::Error::other(error),
        })?;
        Self::from_seed(name, seed)
    }

    /// A key from its 32 secret bytes.
    ///
    /// # Errors
    /// [`SignerError::BadName`].
    pub fn from_seed(name: &str, seed: [u8; 32]) -> Result<Self, SignerError> {
        if !is_key_name(name) {
            return Err(SignerError::BadName { name: name.into() });
        }
        Ok(Signer { name: name.into(), key: SigningKey::from_bytes(&seed) })
    }

    /// Reads the key file, or makes a key and writes it (mode 0600, on disk before this returns).
    ///
    /// # Errors
    /// [`SignerError`]; a file that exists is never overwritten.
    pub fn load_or_create(path: impl AsRef<Path>, name: &str) -> Result<Self, SignerError> {
        let path = path.as_ref();
        match Self::load(path, name) {
            Err(SignerError::System { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                let signer = Self::generate(name)?;
                write_new_file(path, signer.file_text().as_bytes())
                    .map_err(|source| SignerError::System { path: path.into(), source })?;
                Ok(signer)
            }
            loaded => loaded,
        }
    }

    /// Reads a key file, which only its owner may be able to read.
    ///
    /// # Errors
    /// [`SignerError`].
    pub fn load(path: impl AsRef<Path>, name: &str) -> Result<Self, SignerError> {
        let path = path.as_ref();
        let system = |source| SignerError::System { path: path.into(), source };
        let unreadable = || SignerError::Unreadable { path: path.into(), name: name.into() };
        let metadata = std::fs::metadata(path).map_err(system)?;
        let mode = metadata.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(SignerError::Exposed { path: path.into(), mode });
        }
        if metadata.len() > KEY_FILE_BYTES_MAX {
            return Err(unreadable());
        }
        let bytes = std::fs::read(path).map_err(system)?;
        let text = std::str::from_utf8(&bytes).map_err(|_| unreadable())?;
        let seed = parse_key_file(text.trim_end(), name).ok_or_else(unreadable)?;
        let signer = Self::from_seed(name, seed)?;
        if signer.file_text().trim_end() != text.trim_end() {
            return Err(unreadable());
        }
        Ok(signer)
    }

    /// What others verify its signatures with.
    #[must_use]
    pub fn verifier(&self) -> Verifier {
        Verifier { name: self.name.clone(), key: Hash(self.key.verifying_key().to_bytes()) }
    }

    /// Signs that the log `origin` has `size` commits with this root.
    ///
    /// # Panics
    /// If `origin` is empty or holds a line feed: it is the cluster's constant, not input.
    #[must_use]
    pub fn sign(&self, origin: &str, size: u64, root: Hash) -> Checkpoint {
        assert!(
            !origin.is_empty() && !origin.chars().any(char::is_control),
            "an origin is one line of text"
        );
        let text = format!("{origin}\n{size}\n{}\n", STANDARD.encode(root.0));
        let signatures = vec![self.sign_text(&text)];
        Checkpoint(Note { text, signatures }.render())
    }

    /// Adds this key's signature to a checkpoint (once). What it says must have been checked
    /// against this site's own copy of the log before ([`crate::SignedRegister::cosign`]).
    ///
    /// # Errors
    /// [`CheckpointError`] for what is no checkpoint.
    pub fn cosign(&self, checkpoint: &Checkpoint) -> Result<Checkpoint, CheckpointError> {
        let (mut note, _) = read(checkpoint)?;
        let own = self.sign_text(&note.text);
        note.signatures.retain(|other| (&other.name, other.key_id) != (&own.name, own.key_id));
        note.signatures.push(own);
        Ok(Checkpoint(note.render()))
    }

    fn sign_text(&self, text: &str) -> NoteSignature {
        NoteSignature {
            name: self.name.clone(),
            key_id: key_id(&self.verifier()),
            signature: self.key.sign(text.as_bytes()).to_bytes().to_vec(),
        }
    }

    fn file_text(&self) -> String {
        let id = u32::from_be_bytes(key_id(&self.verifier()));
        let key = STANDARD.encode([&[ED25519], self.key.as_bytes().as_slice()].concat());
        format!("{KEY_FILE_MARK}+{}+{id:08x}+{key}\n", self.name)
    }
}

fn parse_key_file(text: &str, name: &str) -> Option<[u8; 32]> {
    let rest = text.strip_prefix(KEY_FILE_MARK)?.strip_prefix('+')?;
    let rest = rest.strip_prefix(name)?.strip_prefix('+')?;
    let (_, encoded) = rest.split_once('+')?;
    let bytes = STANDARD.decode(encoded).ok()?;
    bytes.strip_prefix(&[ED25519])?.try_into().ok()
}

/// What a checkpoint says, not yet believed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claim {
    /// Which log.
    pub origin: String,
    /// How many commits.
    pub size: u64,
    /// Their Merkle root.
    pub root: Hash,
}

/// Why a checkpoint is not believed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CheckpointError {
    /// It is no signed note.
    #[error("no checkpoint: {0}")]
    Note(#[from] InvalidNote),
    /// Its text is not origin, size and root.
    #[error("no checkpoint: its text must be an origin, a size and a root, a line each")]
    Body,
    /// A signature in the name of a known key is not of that key.
    #[error(
        "the checkpoint bears a false signature in the name of {name}: it was forged or changed"
    )]
    FalseSignature {
        /// Whose name.
        name: String,
    },
    /// Too few sites signed it.
    #[error(
        "the checkpoint bears {found} of the {needed} signatures that it needs; wait for the other sites"
    )]
    TooFewSignatures {
        /// Distinct known keys that signed.
        found: usize,
        /// How many must.
        needed: usize,
    },
    /// Two checkpoints to be merged say different things.
    #[error("the two checkpoints say different things")]
    Different,
}

/// A checkpoint that enough sites signed. Only [`verify`] makes one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VerifiedCheckpoint(Claim);

impl VerifiedCheckpoint {
    /// Which log it speaks of; to be compared with the cluster's own.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.0.origin
    }

    /// How many commits it covers.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.0.size
    }

    /// Their Merkle root.
    #[must_use]
    pub fn root(&self) -> Hash {
        self.0.root
    }

    /// Whether the commit with this number and hash is one of them, as `path` shows.
    #[must_use]
    pub fn covers(&self, position: Epoch, path: &[Hash]) -> bool {
        position.sequence.0.checked_sub(1).is_some_and(|index| {
            merkle::verify_inclusion(position.hash, index, self.size(), path, self.root())
        })
    }
}

/// Reads what a checkpoint says, without believing it.
///
/// # Errors
/// [`CheckpointError`] for what is no checkpoint.
pub fn claim(checkpoint: &Checkpoint) -> Result<Claim, CheckpointError> {
    read(checkpoint).map(|(_, claim)| claim)
}

/// Believes a checkpoint that `needed` distinct keys of `verifiers` signed; signatures of unknown
/// keys are passed over. `needed` counts from 1: zero believes nothing.
///
/// # Errors
/// [`CheckpointError`].
pub fn verify(
    checkpoint: &Checkpoint,
    verifiers: &[Verifier],
    needed: usize,
) -> Result<VerifiedCheckpoint, CheckpointError> {
    let (note, claim) = read(checkpoint)?;
    let mut signed: Vec<Hash> = Vec::new();
    for verifier in verifiers {
        if !signed.contains(&verifier.key) && bears_signature_of(&note, verifier)? {
            signed.push(verifier.key);
        }
    }
    if signed.len() < needed.max(1) {
        let needed = needed.max(1);
        return Err(CheckpointError::TooFewSignatures { found: signed.len(), needed });
    }
    Ok(VerifiedCheckpoint(claim))
}

/// Joins the signatures of two sites under the same checkpoint.
///
/// # Errors
/// [`CheckpointError::Different`] if they say different things.
pub fn merge(one: &Checkpoint, other: &Checkpoint) -> Result<Checkpoint, CheckpointError> {
    let (mut note, _) = read(one)?;
    let (added, _) = read(other)?;
    if note.text != added.text {
        return Err(CheckpointError::Different);
    }
    for signature in added.signatures {
        if !note.signatures.contains(&signature) {
            note.signatures.push(signature);
        }
    }
    Ok(Checkpoint(note.render()))
}

/// What each of these keys validly signed in a checkpoint, each as a checkpoint of its own. Other
/// signatures are left out.
///
/// # Errors
/// [`CheckpointError`] for what is no checkpoint, or bears a false signature.
pub fn signatures(
    checkpoint: &Checkpoint,
    verifiers: &[Verifier],
) -> Result<(Claim, Vec<(Verifier, Checkpoint)>), CheckpointError> {
    let (note, claim) = read(checkpoint)?;
    let mut signed: Vec<(Verifier, Checkpoint)> = Vec::new();
    for verifier in verifiers {
        let is_known = signed.iter().any(|(known, _)| known.key == verifier.key);
        if is_known || !bears_signature_of(&note, verifier)? {
            continue;
        }
        let id = key_id(verifier);
        let line = note.signatures.iter().find(|it| it.name == verifier.name && it.key_id == id);
        let line = line.expect("its signature was verified above").clone();
        let alone = Note { text: note.text.clone(), signatures: vec![line] };
        signed.push((verifier.clone(), Checkpoint(alone.render())));
    }
    Ok((claim, signed))
}

/// A verifier from the text that [`crate::note::verifier_text`] writes: `name+id+key`.
#[must_use]
pub fn parse_verifier(text: &str) -> Option<Verifier> {
    let (name, rest) = text.trim().split_once('+')?;
    let (_, encoded) = rest.split_once('+')?;
    let bytes = STANDARD.decode(encoded).ok()?;
    let key = Hash(bytes.strip_prefix(&[ED25519])?.try_into().ok()?);
    let verifier = Verifier { name: name.to_owned(), key };
    (crate::note::verifier_text(&verifier) == text.trim()).then_some(verifier)
}

fn bears_signature_of(note: &Note, verifier: &Verifier) -> Result<bool, CheckpointError> {
    // A key that is no point of the curve signs nothing.
    let Ok(key) = VerifyingKey::from_bytes(&verifier.key.0) else { return Ok(false) };
    let id = key_id(verifier);
    let mut lines =
        note.signatures.iter().filter(|line| line.name == verifier.name && line.key_id == id);
    let Some(line) = lines.next() else { return Ok(false) };
    let is_valid = |signature: [u8; 64]| {
        key.verify_strict(note.text.as_bytes(), &Signature::from_bytes(&signature)).is_ok()
    };
    // One key gives one text one signature: more are there to cost us time.
    if lines.next().is_none() && line.ed25519().is_some_and(is_valid) {
        Ok(true)
    } else {
        Err(CheckpointError::FalseSignature { name: verifier.name.clone() })
    }
}

fn read(checkpoint: &Checkpoint) -> Result<(Note, Claim), CheckpointError> {
    let note = Note::parse(&checkpoint.0)?;
    let claim = read_text(&note.text).ok_or(CheckpointError::Body)?;
    Ok((note, claim))
}

/// Reads exactly what [`Signer::sign`] writes: no extension lines, no other spelling of a number.
fn read_text(text: &str) -> Option<Claim> {
    let mut lines = text.strip_suffix('\n')?.split('\n');
    let (origin, size_text, root) = (lines.next()?, lines.next()?, lines.next()?);
    if lines.next().is_some() || origin.is_empty() {
        return None;
    }
    let size: u64 = size_text.parse().ok()?;
    if size.to_string() != size_text {
        return None;
    }
    let root = Hash(STANDARD.decode(root).ok()?.try_into().ok()?);
    Some(Claim { origin: origin.into(), size, root })
}

/// Why a commit is not proven.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProofError {
    /// The checkpoint does not reach it, or its path does not lead to the root.
    #[error("commit {sequence} is not proven to be in the log of {size} commits")]
    NotIncluded {
        /// Its claimed number.
        sequence: voute_schemas::Sequence,
        /// What the checkpoint covers.
        size: u64,
    },
    /// It is in the log, but this version cannot read it.
    #[error(transparent)]
    Unreadable(#[from] UnreadableCommit),
    /// It is in the log under another number than it claims.
    #[error("commit {claimed} lies at place {sequence} of the log")]
    Misplaced {
        /// Its place.
        sequence: voute_schemas::Sequence,
        /// The number in its bytes.
        claimed: voute_schemas::Sequence,
    },
}

/// Verifies that a commit is in the log that a checkpoint covers, and returns it with its position.
///
/// # Errors
/// [`ProofError`].
pub fn verify_commit(
    checkpoint: &VerifiedCheckpoint,
    proof: &CommitProof,
) -> Result<(Commit, Epoch), ProofError> {
    let position = Epoch { sequence: proof.sequence, hash: Hash::of_commit(&proof.commit) };
    if !checkpoint.covers(position, &proof.path) {
        return Err(ProofError::NotIncluded { sequence: proof.sequence, size: checkpoint.size() });
    }
    let commit = Commit::decode(&proof.commit)?;
    if commit.sequence != proof.sequence {
        return Err(ProofError::Misplaced { sequence: proof.sequence, claimed: commit.sequence });
    }
    Ok((commit, position))
}

/// Whom a commit names as the log's sites, if it does: the last word of its events.
#[must_use]
pub fn named_sites(commit: &Commit) -> Option<Vec<Verifier>> {
    let named = |event: &Event| match event {
        Event::ClusterCreated { log_site, .. } => Some(vec![log_site.clone()]),
        Event::LogSitesChanged { sites } => Some(sites.clone()),
        _ => None,
    };
    commit.events().iter().rev().find_map(named)
}

#[cfg(test)]
mod tests;
