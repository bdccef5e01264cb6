//! CHAP (RFC 1994, RFC 7143 §12.1.3): challenges and responses with MD5, SHA1, SHA-256, SHA3-256.

use md5::Digest as _;
use subtle::ConstantTimeEq as _;

/// Length of the challenges that we make, bytes.
pub const CHALLENGE_LENGTH: usize = 32;
/// Longest challenge that we answer, bytes (RFC 7143 §12.1.3).
pub const CHALLENGE_LENGTH_MAX: usize = 1024;

/// A digest algorithm, by its number in CHAP_A.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// 5
    Md5,
    /// 6
    Sha1,
    /// 7
    Sha256,
    /// 8
    Sha3_256,
}

impl Algorithm {
    /// The algorithm of a CHAP_A value, if it is one of ours.
    #[must_use]
    pub fn from_number(number: &str) -> Option<Self> {
        match number {
            "5" => Some(Algorithm::Md5),
            "6" => Some(Algorithm::Sha1),
            "7" => Some(Algorithm::Sha256),
            "8" => Some(Algorithm::Sha3_256),
            _ => None,
        }
    }

    /// Its number in CHAP_A.
    #[must_use]
    pub fn number(self) -> &'static str {
        match self {
            Algorithm::Md5 => "5",
            Algorithm::Sha1 => "6",
            Algorithm::Sha256 => "7",
            Algorithm::Sha3_256 => "8",
        }
    }
}

/// The response: digest of identifier, secret and challenge (RFC 1994 §4.1).
#[must_use]
pub fn response(algorithm: Algorithm, identifier: u8, secret: &[u8], challenge: &[u8]) -> Vec<u8> {
    fn digest<D: md5::Digest>(identifier: u8, secret: &[u8], challenge: &[u8]) -> Vec<u8> {
        let mut digest = D::new();
        digest.update([identifier]);
        digest.update(secret);
        digest.update(challenge);
        digest.finalize().to_vec()
    }
    match algorithm {
        Algorithm::Md5 => digest::<md5::Md5>(identifier, secret, challenge),
        Algorithm::Sha1 => digest::<sha1::Sha1>(identifier, secret, challenge),
        Algorithm::Sha256 => digest::<sha2::Sha256>(identifier, secret, challenge),
        Algorithm::Sha3_256 => digest::<sha3::Sha3_256>(identifier, secret, challenge),
    }
}

/// Compares without telling by its duration where the first difference is.
#[must_use]
pub fn equal(a: &[u8], b: &[u8]) -> bool {
    a.ct_eq(b).into()
}

/// A challenge nobody else can foresee, from a secret seed and values that never repeat together.
#[must_use]
pub fn challenge(seed: &[u8; 32], count: u64) -> [u8; CHALLENGE_LENGTH] {
    let mut digest = sha2::Sha256::new();
    digest.update(b"voute iscsi chap challenge");
    digest.update(seed);
    digest.update(count.to_be_bytes());
    digest.finalize().into()
}

/// Hexadecimal with the `0x` prefix (RFC 7143 §6.1).
#[must_use]
pub fn to_hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::from("0x"), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A binary value: `0x` hexadecimal or `0b` base64 (RFC 7143 §6.1), at most
/// [`CHALLENGE_LENGTH_MAX`] bytes.
#[must_use]
pub fn from_text(text: &str) -> Option<Vec<u8>> {
    let (prefix, body) = text.split_at_checked(2)?;
    let bytes = match prefix {
        "0x" | "0X" => from_hex(body)?,
        "0b" | "0B" => from_base64(body)?,
        _ => return None,
    };
    (!bytes.is_empty() && bytes.len() <= CHALLENGE_LENGTH_MAX).then_some(bytes)
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    if text.len() > CHALLENGE_LENGTH_MAX * 2 {
        return None;
    }
    let digits: Option<Vec<u8>> =
        text.chars().map(|c| c.to_digit(16).map(|digit| digit as u8)).collect();
    let mut digits = digits?;
    if digits.len() % 2 == 1 {
        digits.insert(0, 0);
    }
    Some(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

fn from_base64(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('=');
    let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
    let (mut bits, mut count) = (0u32, 0);
    for character in text.bytes() {
        let six = match character {
            b'A'..=b'Z' => character - b'A',
            b'a'..=b'z' => character - b'a' + 26,
            b'0'..=b'9' => character - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(six);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
            bits &= (1 << count) - 1;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed with `printf '\x01secretchallenge' | md5sum`, sha1sum, sha256sum and Python's hashlib.sha3_256.
    #[test]
    fn responses_match_digests_made_by_other_tools() {
        for (algorithm, expected) in [
            (Algorithm::Md5, "46e47770030e2b4e26a0db72a7efec00"),
            (Algorithm::Sha1, "011f25d29fe1baaced569c0d7e4878e40ddb7d7e"),
            (Algorithm::Sha256, "2dfa0526f4764864b7c3c5bc6596bcead3d8dbd984f4fc1d9f330299f0beced4"),
            (
                Algorithm::Sha3_256,
                "9444877c4dff778ed2add0f102dcd561e11944e7e948ee1b89508451a9e680ad",
            ),
        ] {
            let made = to_hex(&response(algorithm, 1, b"secret", b"challenge"));
            assert_eq!(made, format!("0x{expected}"), "{algorithm:?}");
        }
    }

    #[test]
    fn binary_values_come_in_hexadecimal_or_base64() {
        assert_eq!(from_text("0x0aFF"), Some(vec![0x0a, 0xff]));
        assert_eq!(from_text("0xaff"), Some(vec![0x0a, 0xff]));
        assert_eq!(from_text("0bSGVsbG8="), Some(b"Hello".to_vec()));
        assert_eq!(from_text("0bSGVsbG8h"), Some(b"Hello!".to_vec()));
        assert_eq!(from_text("ff"), None);
        assert_eq!(from_text("0xzz"), None);
        assert_eq!(from_text("0x"), None);
        assert_eq!(from_text(&format!("0x{}", "ab".repeat(1025))), None);
        assert_eq!(from_text("é0"), None);
    }

    #[test]
    fn challenges_differ_by_seed_and_count() {
        assert_ne!(challenge(&[1; 32], 1), challenge(&[1; 32], 2));
        assert_ne!(challenge(&[1; 32], 1), challenge(&[2; 32], 1));
    }
}
