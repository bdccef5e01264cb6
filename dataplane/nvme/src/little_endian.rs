//! Reading and writing little-endian fields at fixed offsets of structures whose length the caller
//! has already established (NVMe and NVMe/TCP are little-endian throughout).

pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, offset))
}

pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, offset))
}

pub(crate) fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, offset))
}

/// `N` bytes at `offset`; what lies past the end of `bytes` reads as zero, so that a short
/// structure from a peer can never panic.
pub(crate) fn array_at<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    let mut field = [0; N];
    if let Some(rest) = bytes.get(offset..) {
        let length = rest.len().min(N);
        field[..length].copy_from_slice(&rest[..length]);
    }
    field
}

/// Writes `field` at `offset`. Only for structures that this crate itself lays out.
pub(crate) fn put(bytes: &mut [u8], offset: usize, field: &[u8]) {
    bytes[offset..offset + field.len()].copy_from_slice(field);
}

/// Writes `text` at `offset`, padded to `length` with `padding` and cut there.
pub(crate) fn put_text(bytes: &mut [u8], offset: usize, length: usize, text: &str, padding: u8) {
    let field = &mut bytes[offset..offset + length];
    field.fill(padding);
    let text = text.as_bytes();
    let kept = text.len().min(length);
    field[..kept].copy_from_slice(&text[..kept]);
}

/// The text of a zero-terminated field; `None` when it is not UTF-8.
pub(crate) fn text_of(field: &[u8]) -> Option<&str> {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    std::str::from_utf8(&field[..end]).ok()
}
