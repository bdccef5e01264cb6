//! In-band authentication: DH-HMAC-CHAP (NVMe Base 2.0 §8.13), both ends.
//!
//! The host proves its secret, and may ask the controller to prove one too. Nothing here is encrypted
//! afterwards: the exchange says who speaks, once, at the beginning of each connection.
//!
//! ```text
//! host                             controller
//! AUTH_Send  NEGOTIATE        ──►            hashes and groups that the host takes
//! AUTH_Recv                   ◄──  CHALLENGE C1, S1, g^y
//! AUTH_Send  REPLY R1, C2, g^x ──►           R1 proves the host's secret
//! AUTH_Recv                   ◄──  SUCCESS1 R2   R2 proves the controller's, if it was asked
//! AUTH_Send  SUCCESS2         ──►            only if it was
//! ```

mod client;
mod group;
mod message;
mod secret;
mod server;

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256, Sha384, Sha512};

pub(crate) use client::{Client, Turn};
pub use group::Group;
pub use message::Failure as AuthenticationFailure;
pub use secret::{HostKeys, Secret, SecretError};
pub use server::{Authentication, AuthenticationState};
pub(crate) use server::{Server, Verdict};

/// Longest message of either side, bytes; Linux gives buffers of this length.
pub(crate) const MESSAGE_LENGTH_MAX: usize = 4096;

/// A hash function, of secrets and of responses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hash {
    /// 32 bytes.
    Sha256,
    /// 48 bytes.
    Sha384,
    /// 64 bytes.
    Sha512,
}

impl Hash {
    /// In the order in which this side prefers them.
    const PREFERRED: [Hash; 3] = [Hash::Sha512, Hash::Sha384, Hash::Sha256];

    const fn code(self) -> u8 {
        match self {
            Hash::Sha256 => 1,
            Hash::Sha384 => 2,
            Hash::Sha512 => 3,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        Self::PREFERRED.into_iter().find(|hash| hash.code() == code)
    }

    /// Length of what it gives, bytes.
    #[must_use]
    pub const fn length(self) -> usize {
        match self {
            Hash::Sha256 => 32,
            Hash::Sha384 => 48,
            Hash::Sha512 => 64,
        }
    }

    fn digest(self, data: &[u8]) -> Vec<u8> {
        match self {
            Hash::Sha256 => Sha256::digest(data).to_vec(),
            Hash::Sha384 => Sha384::digest(data).to_vec(),
            Hash::Sha512 => Sha512::digest(data).to_vec(),
        }
    }

    fn hmac(self, key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
        fn of<M: Mac + KeyInit>(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
            let mut mac = <M as KeyInit>::new_from_slice(key)
                .unwrap_or_else(|_| unreachable!("HMAC takes keys of any length"));
            parts.iter().for_each(|part| mac.update(part));
            mac.finalize().into_bytes().to_vec()
        }
        match self {
            Hash::Sha256 => of::<Hmac<Sha256>>(key, parts),
            Hash::Sha384 => of::<Hmac<Sha384>>(key, parts),
            Hash::Sha512 => of::<Hmac<Sha512>>(key, parts),
        }
    }
}

/// Where a connection's unforeseeable values come from; give each process another. Not shown by
/// `Debug`.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Seed(pub [u8; 32]);

impl fmt::Debug for Seed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Seed(..)")
    }
}

/// What an initiator authenticates itself with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Our secret as a host, and the target's if it is to prove one.
    pub keys: HostKeys,
    /// 32 random bytes, others for each connection.
    pub seed: Seed,
}

/// Values that nobody can foresee who does not know the seed. `serial` never comes twice with one seed.
struct Random {
    seed: Seed,
    serial: u64,
    drawn: u64,
}

impl Random {
    fn new(seed: Seed, serial: u64) -> Self {
        Random { seed, serial, drawn: 0 }
    }

    /// `length` bytes, at most 64.
    fn draw(&mut self, length: usize) -> Vec<u8> {
        self.drawn += 1;
        let (serial, drawn) = (self.serial.to_le_bytes(), self.drawn.to_le_bytes());
        let parts: [&[u8]; 3] = [b"voute dh-hmac-chap", &serial, &drawn];
        let mut bytes = Hash::Sha512.hmac(&self.seed.0, &parts);
        bytes.truncate(length);
        bytes
    }

    /// A sequence number; 0 has a meaning of its own.
    fn sequence(&mut self) -> u32 {
        let bytes = self.draw(4);
        crate::little_endian::u32_at(&bytes, 0).max(1)
    }
}

/// What both ends know when a response is made.
struct Exchange<'a> {
    hash: Hash,
    /// The secret that both made by Diffie-Hellman; `None` with the null group.
    shared: Option<&'a [u8]>,
    transaction: u16,
    host: &'a str,
    subsystem: &'a str,
}

impl Exchange<'_> {
    /// R1, what the host answers to challenge C1 with sequence number S1 (§8.13.5.4).
    fn host_response(&self, key: &Secret, challenge: &[u8], sequence: u32) -> Vec<u8> {
        let key = key.transformed(self.host);
        self.response(&key, challenge, sequence, b"HostHost", [self.host, self.subsystem])
    }

    /// R2, what the controller answers to C2 with S2 (§8.13.5.5).
    fn controller_response(&self, key: &Secret, challenge: &[u8], sequence: u32) -> Vec<u8> {
        let key = key.transformed(self.subsystem);
        self.response(&key, challenge, sequence, b"Controller", [self.subsystem, self.host])
    }

    fn response(
        &self,
        key: &[u8],
        challenge: &[u8],
        sequence: u32,
        label: &[u8],
        names: [&str; 2],
    ) -> Vec<u8> {
        let augmented = self.shared.map(|shared| {
            let key = self.hash.digest(shared);
            self.hash.hmac(&key, &[challenge])
        });
        let challenge = augmented.as_deref().unwrap_or(challenge);
        let (sequence, transaction) = (sequence.to_le_bytes(), self.transaction.to_le_bytes());
        let no_channel = [0];
        let [first, second] = names.map(str::as_bytes);
        self.hash.hmac(
            key,
            &[challenge, &sequence, &transaction, &no_channel, label, first, &[0], second],
        )
    }
}

#[cfg(test)]
mod tests;
