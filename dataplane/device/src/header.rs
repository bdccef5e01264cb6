//! What a device says of itself: whose it is and how it is divided.
//!
//! Two copies of 4096 bytes, written in turn and each durable before the other is touched, so that
//! one survives a torn write. All numbers little-endian: magic `VOUTEDEV`, version (4 bytes), length
//! of the fields (4), CRC-32C of the fields (4), the fields in postcard, zeroes. The fields fit the
//! first 512 bytes, the least that a drive writes whole.

use serde::{Deserialize, Serialize};
use voute_schemas::{ClusterId, DeviceId};

/// Size of one copy, bytes.
pub(crate) const COPY_BYTES: usize = 4096;
/// Size of both copies, bytes.
pub(crate) const AREA_BYTES: usize = 2 * COPY_BYTES;

const MAGIC: &[u8; 8] = b"VOUTEDEV";
const VERSION: u32 = 1;
const FIELDS_AT: usize = 20;
const FIELDS_MAX: usize = 512 - FIELDS_AT;

/// The header of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DeviceHeader {
    /// Rises with each write; chooses the copy.
    pub generation: u64,
    /// The cluster that the device belongs to.
    pub cluster: ClusterId,
    /// The device.
    pub device: DeviceId,
    /// Unit of allocation, bytes.
    pub extent_bytes: u64,
    /// Size of the whole device when the header was written, bytes.
    pub size_bytes: u64,
    /// Logical block, bytes.
    pub block_bytes: u32,
}

/// What one copy of a header holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Copy {
    /// A good header.
    Valid(DeviceHeader),
    /// Our magic, but of a version that this software does not know.
    Newer(u32),
    /// Our magic, damaged.
    Damaged,
    /// Not our magic.
    Absent,
}

/// What both copies hold together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Area {
    /// The newer good header; `whole` if the other copy is good too.
    Valid { header: DeviceHeader, whole: bool },
    /// No good copy, and at least one of a newer version.
    Newer(u32),
    /// No good copy, and at least one damaged.
    Damaged,
    /// No trace of a header of ours.
    Absent,
}

impl DeviceHeader {
    /// The bytes of one copy.
    pub(crate) fn encode(&self) -> [u8; COPY_BYTES] {
        let fields = postcard::to_stdvec(self).expect("headers have no unserialisable field");
        assert!(fields.len() <= FIELDS_MAX, "the fields of a device header fit one sector");
        let length = u32::try_from(fields.len()).expect("FIELDS_MAX fits 32 bits");
        let mut bytes = [0; COPY_BYTES];
        bytes[0..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&length.to_le_bytes());
        bytes[16..20].copy_from_slice(&crc32c(&fields).to_le_bytes());
        bytes[FIELDS_AT..FIELDS_AT + fields.len()].copy_from_slice(&fields);
        bytes
    }

    /// Where the copy of this generation lies, bytes from the device's begin.
    pub(crate) fn offset(&self) -> u64 {
        if self.generation.is_multiple_of(2) { COPY_BYTES as u64 } else { 0 }
    }
}

impl Copy {
    /// Reads one copy.
    pub(crate) fn decode(bytes: &[u8]) -> Copy {
        if bytes.get(0..8) != Some(MAGIC) {
            return Copy::Absent;
        }
        match word(bytes, 8) {
            Some(VERSION) => Self::decode_fields(bytes).map_or(Copy::Damaged, Copy::Valid),
            Some(version) if version > VERSION => Copy::Newer(version),
            _ => Copy::Damaged,
        }
    }

    fn decode_fields(bytes: &[u8]) -> Option<DeviceHeader> {
        let length = word(bytes, 12)? as usize;
        let fields = bytes.get(FIELDS_AT..FIELDS_AT.checked_add(length)?)?;
        if length > FIELDS_MAX || crc32c(fields) != word(bytes, 16)? {
            return None;
        }
        postcard::from_bytes(fields).ok()
    }
}

impl Area {
    /// Reads both copies.
    pub(crate) fn decode(area: &[u8]) -> Area {
        let copies = [0, COPY_BYTES].map(|at| Copy::decode(area.get(at..).unwrap_or_default()));
        match copies {
            [Copy::Valid(a), Copy::Valid(b)] => {
                Area::Valid { header: if a.generation > b.generation { a } else { b }, whole: true }
            }
            [Copy::Valid(header), _] | [_, Copy::Valid(header)] => {
                Area::Valid { header, whole: false }
            }
            [Copy::Newer(version), _] | [_, Copy::Newer(version)] => Area::Newer(version),
            [Copy::Damaged, _] | [_, Copy::Damaged] => Area::Damaged,
            [Copy::Absent, Copy::Absent] => Area::Absent,
        }
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).map(u32::from_le_bytes)
}

fn crc32c(bytes: &[u8]) -> u32 {
    u32::try_from(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes))
        .expect("CRC-32C has 32 bits")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(generation: u64) -> DeviceHeader {
        DeviceHeader {
            generation,
            cluster: "018f2b6e-0000-7000-8000-000000000001".parse().unwrap(),
            device: "018f2b6e-0000-7000-8000-000000000002".parse().unwrap(),
            extent_bytes: 16 << 20,
            size_bytes: 1 << 40,
            block_bytes: 512,
        }
    }

    fn area(a: &[u8], b: &[u8]) -> Vec<u8> {
        let mut area = vec![0; AREA_BYTES];
        area[..a.len()].copy_from_slice(a);
        area[COPY_BYTES..COPY_BYTES + b.len()].copy_from_slice(b);
        area
    }

    #[test]
    fn the_bytes_of_a_header_never_change() {
        let bytes = header(3).encode();
        let hex: String = bytes[..80].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, include_str!("../golden/device_header_v1.hex").trim());
        assert!(bytes[80..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn the_newer_good_copy_counts() {
        let both = area(&header(5).encode(), &header(4).encode());
        assert_eq!(Area::decode(&both), Area::Valid { header: header(5), whole: true });
        let both = area(&header(5).encode(), &header(6).encode());
        assert_eq!(Area::decode(&both), Area::Valid { header: header(6), whole: true });
    }

    #[test]
    fn one_torn_copy_leaves_the_other() {
        let mut torn = header(6).encode();
        torn[30] ^= 1;
        let both = area(&header(5).encode(), &torn);
        assert_eq!(Area::decode(&both), Area::Valid { header: header(5), whole: false });
        assert_eq!(Area::decode(&area(&torn, &torn)), Area::Damaged);
    }

    #[test]
    fn a_version_that_is_not_known_is_told_from_damage() {
        let mut newer = header(1).encode();
        newer[8] = 9;
        assert_eq!(Area::decode(&area(&newer, &[])), Area::Newer(9));
        assert_eq!(Area::decode(&area(&[], &[])), Area::Absent);
    }

    #[test]
    fn copies_alternate() {
        assert_ne!(header(1).offset(), header(2).offset());
        assert_eq!(header(1).offset(), 0);
    }

    proptest! {
        #[test]
        fn any_bytes_decode_without_a_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let _ = Copy::decode(&bytes);
            for (at, value) in MAGIC.iter().enumerate() {
                if let Some(byte) = bytes.get_mut(at) { *byte = *value; }
            }
            if bytes.len() > 12 { bytes[8..12].copy_from_slice(&1u32.to_le_bytes()); }
            let valid = matches!(Area::decode(&bytes), Area::Valid { .. });
            prop_assert!(!valid, "random fields pass the checksum");
        }
    }
}
