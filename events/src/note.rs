//! Signed notes (C2SP signed-note): a text, an empty line, and one line per signature.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use voute_schemas::Hash;
use voute_schemas::proof::Verifier;

/// Most bytes of a note that is read.
pub const NOTE_BYTES_MAX: usize = 16 << 10;
/// Most signature lines of a note that is read.
pub const SIGNATURES_MAX: usize = 64;
/// Begins each signature line.
const SIGNATURE_MARK: &str = "\u{2014} ";
/// Signature type of plain Ed25519.
pub(crate) const ED25519: u8 = 1;
const KEY_ID_BYTES: usize = 4;
const SIGNATURE_BYTES: usize = 64;

/// A note taken apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Note {
    /// What is signed: ends with a line feed.
    pub text: String,
    /// The signature lines.
    pub signatures: Vec<NoteSignature>,
}

/// One signature line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NoteSignature {
    /// Who signed.
    pub name: String,
    /// With which key ([`key_id`]).
    pub key_id: [u8; KEY_ID_BYTES],
    /// The signature; 64 bytes for Ed25519, other lengths belong to other kinds of keys.
    pub signature: Vec<u8>,
}

/// Why bytes are no note.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InvalidNote {
    /// It is too long.
    #[error("the note exceeds {NOTE_BYTES_MAX} bytes")]
    TooLong,
    /// There is no empty line before signatures, or a control character.
    #[error("the note has no signatures after an empty line, or holds control characters")]
    NoSignatures,
    /// Too many signatures.
    #[error("the note has more than {SIGNATURES_MAX} signatures")]
    TooManySignatures,
    /// A signature line is not of the form.
    #[error("signature line {line} of the note is malformed")]
    BadSignatureLine {
        /// Which, from 1.
        line: usize,
    },
}

impl Note {
    /// Takes a note apart; verifies nothing.
    ///
    /// # Errors
    /// [`InvalidNote`].
    pub fn parse(note: &str) -> Result<Self, InvalidNote> {
        if note.len() > NOTE_BYTES_MAX {
            return Err(InvalidNote::TooLong);
        }
        if note.chars().any(|character| character.is_control() && character != '\n') {
            return Err(InvalidNote::NoSignatures);
        }
        // The text keeps its last line feed; the empty line belongs to neither part.
        let end = note.rfind("\n\n").ok_or(InvalidNote::NoSignatures)?;
        let (text, lines) = (&note[..end + 1], &note[end + 2..]);
        let lines = lines.strip_suffix('\n').ok_or(InvalidNote::NoSignatures)?;
        let mut signatures = Vec::new();
        for (index, line) in lines.split('\n').enumerate() {
            if index == SIGNATURES_MAX {
                return Err(InvalidNote::TooManySignatures);
            }
            let bad = InvalidNote::BadSignatureLine { line: index + 1 };
            signatures.push(NoteSignature::parse(line).ok_or(bad)?);
        }
        Ok(Note { text: text.into(), signatures })
    }

    /// The note as text.
    #[must_use]
    pub fn render(&self) -> String {
        let mut note = format!("{}\n", self.text);
        for signature in &self.signatures {
            note.push_str(&signature.render());
            note.push('\n');
        }
        note
    }
}

impl NoteSignature {
    fn parse(line: &str) -> Option<Self> {
        let (name, encoded) = line.strip_prefix(SIGNATURE_MARK)?.split_once(' ')?;
        if !is_key_name(name) {
            return None;
        }
        let bytes = STANDARD.decode(encoded).ok()?;
        let (key_id, signature) = bytes.split_first_chunk::<KEY_ID_BYTES>()?;
        if signature.is_empty() {
            return None;
        }
        Some(NoteSignature { name: name.into(), key_id: *key_id, signature: signature.into() })
    }

    fn render(&self) -> String {
        let bytes = [self.key_id.as_slice(), &self.signature].concat();
        format!("{SIGNATURE_MARK}{} {}", self.name, STANDARD.encode(bytes))
    }

    /// The signature, if it can be one of Ed25519.
    pub(crate) fn ed25519(&self) -> Option<[u8; SIGNATURE_BYTES]> {
        self.signature.as_slice().try_into().ok()
    }
}

/// Whether a text can name a key: not empty, no spaces, no `+`, no control characters.
#[must_use]
pub fn is_key_name(name: &str) -> bool {
    !name.is_empty()
        && !name.chars().any(|character| {
            character.is_whitespace() || character.is_control() || character == '+'
        })
}

/// The short id of an Ed25519 key: the first four bytes of SHA-256(name ‖ LF ‖ 1 ‖ key).
#[must_use]
pub fn key_id(verifier: &Verifier) -> [u8; KEY_ID_BYTES] {
    let described =
        [verifier.name.as_bytes(), b"\n", &[ED25519], verifier.key.0.as_slice()].concat();
    *Hash::of(&described).0.first_chunk().expect("a hash is longer than an id")
}

/// A verifier's key as other tools of signed notes read it: `name+id+key`.
#[must_use]
pub fn verifier_text(verifier: &Verifier) -> String {
    let id = u32::from_be_bytes(key_id(verifier));
    let key = STANDARD.encode([&[ED25519], verifier.key.0.as_slice()].concat());
    format!("{}+{id:08x}+{key}", verifier.name)
}
