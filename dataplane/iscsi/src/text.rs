//! Text: `key=value` pairs, each ended by a zero byte (RFC 7143 §6.1).

/// Longest key (§6.1).
pub(crate) const KEY_LENGTH_MAX: usize = 63;
/// Longest value that is accepted (§6.1 allows 255 save for keys that say otherwise; CHAP's may be
/// 1024 bytes in hexadecimal).
pub(crate) const VALUE_LENGTH_MAX: usize = 2100;
/// Most pairs in one negotiation: a bound against floods of unknown keys.
pub(crate) const PAIRS_MAX: usize = 128;

/// Why text was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TextError {
    #[error("text is not of the form key=value")]
    NotAPair,
    #[error("a key or a value is too long")]
    TooLong,
    #[error("more than {PAIRS_MAX} pairs")]
    TooMany,
    #[error("text is not ASCII or UTF-8")]
    Encoding,
}

/// Splits a data segment into its pairs. Empty pieces (padding) are skipped.
pub(crate) fn parse(bytes: &[u8]) -> Result<Vec<(&str, &str)>, TextError> {
    let mut pairs = Vec::new();
    for piece in bytes.split(|byte| *byte == 0).filter(|piece| !piece.is_empty()) {
        let piece = std::str::from_utf8(piece).map_err(|_| TextError::Encoding)?;
        let (key, value) = piece.split_once('=').ok_or(TextError::NotAPair)?;
        if key.is_empty() {
            return Err(TextError::NotAPair);
        }
        if key.len() > KEY_LENGTH_MAX || value.len() > VALUE_LENGTH_MAX {
            return Err(TextError::TooLong);
        }
        if pairs.len() == PAIRS_MAX {
            return Err(TextError::TooMany);
        }
        pairs.push((key, value));
    }
    Ok(pairs)
}

/// Appends one pair.
pub(crate) fn push(out: &mut Vec<u8>, key: &str, value: &str) {
    out.extend_from_slice(key.as_bytes());
    out.push(b'=');
    out.extend_from_slice(value.as_bytes());
    out.push(0);
}

/// Reads a numerical value: decimal or `0x` hexadecimal (§6.1).
pub(crate) fn number(value: &str) -> Option<u64> {
    match value.strip_prefix("0x").or_else(|| value.strip_prefix("0X")) {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => value.parse().ok(),
    }
}

/// The first of a comma-separated list of offers that `accept` takes.
pub(crate) fn choose(offers: &str, accept: impl Fn(&str) -> bool) -> Option<&str> {
    offers.split(',').map(str::trim).find(|offer| accept(offer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_split_at_zero_bytes_and_padding_is_skipped() {
        let pairs = parse(b"A=1\0B=x=y\0C=\0\0\0").expect("well-formed");
        assert_eq!(pairs, [("A", "1"), ("B", "x=y"), ("C", "")]);
    }

    #[test]
    fn malformed_text_is_refused() {
        assert_eq!(parse(b"novalue\0"), Err(TextError::NotAPair));
        assert_eq!(parse(b"=1\0"), Err(TextError::NotAPair));
        assert_eq!(parse(&[b'A', b'=', 0xff, 0]), Err(TextError::Encoding));
        assert_eq!(parse(&[b"K".repeat(64), b"=1".to_vec()].concat()), Err(TextError::TooLong));
        assert_eq!(parse(&b"A=1\0".repeat(PAIRS_MAX + 1)), Err(TextError::TooMany));
    }

    #[test]
    fn numbers_are_decimal_or_hexadecimal() {
        assert_eq!(number("512"), Some(512));
        assert_eq!(number("0x200"), Some(512));
        assert_eq!(number("-1"), None);
        assert_eq!(number(""), None);
    }
}
