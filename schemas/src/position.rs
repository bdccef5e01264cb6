//! Where something stands in the log, and the authority that follows from it.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use sha2::{Digest, Sha256};
use std::fmt;
use std::str::FromStr;

/// Number of a commit in the log: dense, from 1. Zero stands before the first.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Debug,
    Default,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
)]
#[serde(transparent)]
pub struct Sequence(pub u64);

impl Sequence {
    /// The one after.
    #[must_use]
    pub fn next(self) -> Self {
        Sequence(self.0 + 1)
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// A SHA-256 hash. Hexadecimal in JSON, 32 bytes in postcard.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// What stands before the first commit.
    pub const ZERO: Hash = Hash([0; 32]);

    /// Hash of a commit's bytes as a leaf of the log's Merkle tree: SHA-256(0x00 ‖ bytes)
    /// (RFC 6962 §2.1). It is also the link of the hash chain.
    #[must_use]
    pub fn of_commit(bytes: &[u8]) -> Self {
        Hash(Sha256::new().chain_update([0]).chain_update(bytes).finalize().into())
    }

    /// Hash of an inner node: SHA-256(0x01 ‖ left ‖ right) (RFC 6962 §2.1).
    #[must_use]
    pub fn of_children(left: Hash, right: Hash) -> Self {
        Hash(
            Sha256::new()
                .chain_update([1])
                .chain_update(left.0)
                .chain_update(right.0)
                .finalize()
                .into(),
        )
    }

    /// Plain SHA-256 of some bytes (verifiers of credentials, digests of states).
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Hash(Sha256::digest(bytes).into())
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

/// Why a text is no hash.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a hash is 64 hexadecimal digits")]
pub struct InvalidHash;

impl FromStr for Hash {
    type Err = InvalidHash;
    fn from_str(text: &str) -> Result<Self, InvalidHash> {
        if text.len() != 64 || !text.is_ascii() {
            return Err(InvalidHash);
        }
        let mut bytes = [0; 32];
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte =
                u8::from_str_radix(&text[index * 2..index * 2 + 2], 16).map_err(|_| InvalidHash)?;
        }
        Ok(Hash(bytes))
    }
}

impl Serialize for Hash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if serializer.is_human_readable() {
            serializer.collect_str(self)
        } else {
            self.0.serialize(serializer)
        }
    }
}

impl<'de> Deserialize<'de> for Hash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        if deserializer.is_human_readable() {
            String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
        } else {
            <[u8; 32]>::deserialize(deserializer).map(Hash)
        }
    }
}

impl utoipa::PartialSchema for Hash {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        String::schema()
    }
}

impl utoipa::ToSchema for Hash {}

/// A commit's place and content: its number and hash. As the epoch of a group it rises with each
/// change of owner or in-sync set; two epochs of one number and different hashes come from a forked
/// log, and neither orders before the other.
#[derive(
    Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize, Deserialize, utoipa::ToSchema,
)]
pub struct Epoch {
    /// Number of the commit.
    pub sequence: Sequence,
    /// Hash of the commit.
    pub hash: Hash,
}

impl Epoch {
    /// Before the first commit.
    pub const ZERO: Epoch = Epoch { sequence: Sequence(0), hash: Hash::ZERO };
}

impl PartialOrd for Epoch {
    /// `None` for two branches of a forked log.
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        match self.sequence.cmp(&other.sequence) {
            std::cmp::Ordering::Equal if self.hash != other.hash => None,
            order => Some(order),
        }
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.sequence.fmt(formatter)
    }
}

/// What every request to a leg carries. Compared field by field in this order: a leg keeps the
/// highest that it accepted and refuses lower ones.
#[derive(
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Hash,
    Debug,
    Default,
    Serialize,
    Deserialize,
    utoipa::ToSchema,
)]
pub struct Token {
    /// The commit that made the sender owner with its in-sync set.
    pub epoch: Epoch,
    /// Rises, on disk, each time an owner's process starts.
    pub incarnation: u64,
    /// Rises each time a channel reconnects.
    pub session: u64,
}

impl fmt::Display for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}.{}", self.epoch, self.incarnation, self.session)
    }
}
