//! Secrets in their textual form, `DHHC-1:hh:base64(key and its CRC-32):` (NVMe Base 2.0 §8.13.5.8).

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use crc_fast::CrcAlgorithm;

use super::Hash;

/// A key, and the hash by which it is bound to a name. Not shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    key: Vec<u8>,
    transformation: Option<Hash>,
}

/// Why a text is no secret. The text itself is not told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// Not of the form.
    #[error(
        "a DH-HMAC-CHAP secret is written DHHC-1:hh:base64: (make one with `nvme gen-dhchap-key`)"
    )]
    Form,
    /// Not base64.
    #[error("the secret's middle part is not base64")]
    Base64,
    /// A length that the form does not allow.
    #[error("the key has {0} bytes: 32, 48 or 64 are allowed, and as many as its hash gives")]
    Length(usize),
    /// Mistyped.
    #[error("the secret's check sum does not match: it was mistyped or cut")]
    CheckSum,
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Secret(..)")
    }
}

impl FromStr for Secret {
    type Err = SecretError;

    fn from_str(text: &str) -> Result<Self, SecretError> {
        let rest = text.strip_prefix("DHHC-1:").ok_or(SecretError::Form)?;
        let (hash, rest) = rest.split_once(':').ok_or(SecretError::Form)?;
        let encoded = rest.strip_suffix(':').ok_or(SecretError::Form)?;
        let transformation = match hash {
            "00" => None,
            "01" => Some(Hash::Sha256),
            "02" => Some(Hash::Sha384),
            "03" => Some(Hash::Sha512),
            _ => return Err(SecretError::Form),
        };
        let mut key = STANDARD.decode(encoded).map_err(|_| SecretError::Base64)?;
        let length = key.len().saturating_sub(4);
        let fits = transformation.is_none_or(|hash| hash.length() == length);
        if !matches!(length, 32 | 48 | 64) || !fits {
            return Err(SecretError::Length(length));
        }
        let check_sum = key.split_off(length);
        if check_sum != check_sum_of(&key) {
            return Err(SecretError::CheckSum);
        }
        Ok(Secret { key, transformation })
    }
}

fn check_sum_of(key: &[u8]) -> [u8; 4] {
    (crc_fast::checksum(CrcAlgorithm::Crc32IsoHdlc, key) as u32).to_le_bytes()
}

impl Secret {
    /// The text that reads back as this secret. It is as secret as the key.
    #[must_use]
    pub fn to_text(&self) -> String {
        let bytes = [self.key.as_slice(), &check_sum_of(&self.key)].concat();
        let hash = self.transformation.map_or(0, Hash::code);
        format!("DHHC-1:{hash:02}:{}:", STANDARD.encode(bytes))
    }

    /// The key as it is used for `name`, the NQN of whose secret it is (§8.13.5.7).
    pub(super) fn transformed(&self, name: &str) -> Vec<u8> {
        match self.transformation {
            None => self.key.clone(),
            Some(hash) => hash.hmac(&self.key, &[name.as_bytes(), b"NVMe-over-Fabrics"]),
        }
    }
}

/// What a host must prove, and what is proven to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostKeys {
    /// The host's secret.
    pub host: Secret,
    /// Ours towards this host; `None` if the host cannot ask for a proof.
    pub controller: Option<Secret>,
}
