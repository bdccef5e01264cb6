//! Who may ask: tokens, secrets of nodes, and what is kept of them.
//!
//! A token or secret is 32 random bytes in base64url. The log keeps only SHA-256 of its text; with
//! 256 bits of randomness no slow hash is needed.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use subtle::ConstantTimeEq;
use voute_schemas::{Hash, NodeId};

/// A freshly made token or secret and what the log keeps of it.
pub(crate) struct Fresh {
    /// To be shown once.
    pub(crate) text: String,
    /// SHA-256 of the text.
    pub(crate) verifier: Hash,
}

/// Makes a token or secret. `prefix` tells a person what it is, e.g. `vta_`.
pub(crate) fn fresh(prefix: &str) -> Result<Fresh, NoRandomness> {
    let text = format!("{prefix}{}", URL_SAFE_NO_PAD.encode(random_bytes()?));
    let verifier = Hash::of(text.as_bytes());
    Ok(Fresh { text, verifier })
}

/// 32 bytes from the operating system.
pub(crate) fn random_bytes() -> Result<[u8; 32], NoRandomness> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|error| NoRandomness { cause: error.to_string() })?;
    Ok(bytes)
}

/// The operating system gave no random bytes.
#[derive(Debug, thiserror::Error)]
#[error("the operating system gave no random bytes ({cause})")]
pub struct NoRandomness {
    cause: String,
}

/// Whether a text is the one that a verifier was made of; takes the same time either way.
pub(crate) fn proves(text: &str, verifier: &Hash) -> bool {
    is_same(&Hash::of(text.as_bytes()), verifier)
}

/// Compares two verifiers in the same time whether they are equal or not.
pub(crate) fn is_same(one: &Hash, other: &Hash) -> bool {
    one.0.ct_eq(&other.0).into()
}

/// The token of an `Authorization: Bearer` header (RFC 6750 §2.1).
pub(crate) fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Node and secret of an `Authorization: Basic` header (RFC 7617).
pub(crate) fn basic(header: &str) -> Option<(NodeId, String)> {
    let (scheme, encoded) = header.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let text = String::from_utf8(STANDARD.decode(encoded.trim()).ok()?).ok()?;
    let (node, secret) = text.split_once(':')?;
    Some((node.parse().ok()?, secret.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_text_itself_proves() {
        let fresh = fresh("vta_").unwrap();
        assert!(proves(&fresh.text, &fresh.verifier));
        assert!(!proves(&fresh.text[1..], &fresh.verifier));
        assert!(!proves("", &fresh.verifier));
    }

    #[test]
    fn headers_are_read_as_their_specifications_say() {
        assert_eq!(bearer("Bearer abc"), Some("abc"));
        assert_eq!(bearer("bearer  abc"), Some("abc"));
        assert_eq!(bearer("Basic abc"), None);
        assert_eq!(bearer("Bearer"), None);
        let node = NodeId::generate();
        let header = format!("Basic {}", STANDARD.encode(format!("{node}:a:b")));
        assert_eq!(basic(&header), Some((node, "a:b".into())));
        assert_eq!(basic("Basic !!!"), None);
        assert_eq!(basic(&format!("Basic {}", STANDARD.encode("no-id:x"))), None);
    }
}
