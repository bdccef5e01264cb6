//! The journal of a leg: what it is about to write all or not at all (docs/mirror-rules.md rule 14).
//!
//! It lies at the end of the leg's metadata, where no volume's maps reach: the heads of all slots,
//! one page each, then room for each slot's data.
//!
//! | bytes of a head | what |
//! |-|-|
//! | 0..4 | magic `VJN1` |
//! | 4..8 | length of the fields |
//! | 8..12 | CRC-32C of the fields |
//! | 12.. | fields in postcard: leg, slot, and the record, if there is one |
//!
//! All of it is in the head's first 512 bytes, which no device tears: a head is the old one or the
//! new one. Its data is written beside it at the same time and has a checksum of its own; a record of
//! which one of the two did not get to the device is none.

use crate::map::{PAGE_BYTES, REGIONS_PER_PAGE};
use serde::{Deserialize, Serialize};
use voute_schemas::place::{LEG_METADATA_BYTES, REGION_BYTES, VOLUME_BYTES_MAX};
use voute_schemas::{LegId, Token};

/// Most bytes that are written all or not at all, whatever the volume's block.
pub const ATOMIC_BYTES_MAX: u32 = 128 << 10;
/// How many records a leg may have at a time.
pub(crate) const SLOTS: usize = 3;
/// All heads, which lie one after the other.
pub(crate) const HEADS_BYTES: usize = SLOTS * PAGE_BYTES;
/// Where the journal begins in a leg's space, bytes. It goes to the end of the metadata.
pub const JOURNAL_OFFSET: u64 =
    LEG_METADATA_BYTES - HEADS_BYTES as u64 - SLOTS as u64 * ATOMIC_BYTES_MAX as u64;
/// Most pages of maps that a leg has room for before its journal.
pub(crate) const MAP_PAGES_MAX: u64 =
    (JOURNAL_OFFSET - crate::header::HEADER_AREA_BYTES) / (2 * PAGE_BYTES as u64);
const MAGIC: &[u8; 4] = b"VJN1";
const FIELDS_AT: usize = 12;

const _: () = assert!(
    VOLUME_BYTES_MAX.div_ceil(REGION_BYTES * REGIONS_PER_PAGE) <= MAP_PAGES_MAX,
    "the maps of the largest volume end before the journal"
);

/// The unit, bytes, within which a write of a volume may be all or nothing: such a write crosses no
/// multiple of it. An eighth of a region, at least a block, at most [`ATOMIC_BYTES_MAX`].
#[must_use]
pub fn atomic_unit(block_bytes: u32, region_bytes: u64) -> u64 {
    (region_bytes / 8).min(u64::from(ATOMIC_BYTES_MAX)).max(u64::from(block_bytes))
}

/// Whether a range lies within one unit.
pub(crate) fn is_within_unit(unit: u64, offset: u64, length: u64) -> bool {
    length > 0
        && offset
            .checked_add(length - 1)
            .is_some_and(|last| offset / unit.max(1) == last / unit.max(1))
}

/// What is to be on the leg whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The token under which it was written: under a higher one it is over.
    pub(crate) token: Token,
    /// Where in the volume, bytes.
    pub(crate) offset: u64,
    /// How many bytes.
    pub(crate) length: u64,
    /// Checksum of the data in the slot; `None`: the range is to read as zero.
    pub(crate) checksum: Option<u64>,
}

impl Record {
    /// Whether it is a record of a volume of this size.
    pub(crate) fn fits(&self, size_bytes: u64) -> bool {
        let in_slot = self.checksum.is_none() || self.length <= u64::from(ATOMIC_BYTES_MAX);
        let end = self.offset.checked_add(self.length);
        self.length > 0 && in_slot && end.is_some_and(|end| end <= size_bytes)
    }

    /// Whether it may still have to be carried out on a leg whose header has this token: a keeper
    /// takes a higher token only when every record under the lower one is retired.
    pub(crate) fn is_live(&self, held: &Token) -> bool {
        self.token.partial_cmp(held) != Some(std::cmp::Ordering::Less)
    }
}

#[derive(Serialize, Deserialize)]
struct Head {
    leg: LegId,
    slot: u32,
    record: Option<Record>,
}

/// Where a slot's head lies in the leg's space.
pub(crate) fn head_offset(slot: usize) -> u64 {
    JOURNAL_OFFSET + (slot * PAGE_BYTES) as u64
}

/// Where a slot's data lies in the leg's space.
pub(crate) fn data_offset(slot: usize) -> u64 {
    JOURNAL_OFFSET + HEADS_BYTES as u64 + slot as u64 * u64::from(ATOMIC_BYTES_MAX)
}

/// Writes a head; without a record it says that there is none.
pub(crate) fn encode_head(leg: LegId, slot: usize, record: Option<Record>) -> [u8; PAGE_BYTES] {
    let slot = u32::try_from(slot).expect("there are few slots");
    let fields = postcard::to_stdvec(&Head { leg, slot, record })
        .expect("heads have no unserialisable field");
    let mut bytes = [0; PAGE_BYTES];
    bytes[0..4].copy_from_slice(MAGIC);
    let length = u32::try_from(fields.len()).expect("a head is short");
    bytes[4..8].copy_from_slice(&length.to_le_bytes());
    bytes[8..12].copy_from_slice(&crate::header::crc32c(&fields).to_le_bytes());
    bytes[FIELDS_AT..FIELDS_AT + fields.len()].copy_from_slice(&fields);
    bytes
}

/// Reads a head: whether it has a record. `None`: it is no head of this slot of this leg.
pub(crate) fn decode_head(leg: LegId, slot: usize, bytes: &[u8]) -> Option<Option<Record>> {
    let word = |at: usize| {
        bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).map(u32::from_le_bytes)
    };
    if bytes.get(0..4)? != MAGIC {
        return None;
    }
    let fields = bytes.get(FIELDS_AT..FIELDS_AT.checked_add(word(4)? as usize)?)?;
    if crate::header::crc32c(fields) != word(8)? {
        return None;
    }
    let head: Head = postcard::from_bytes(fields).ok()?;
    (head.leg == leg && head.slot as usize == slot).then_some(head.record)
}

/// The heads of a leg that has no record.
pub(crate) fn empty_heads(leg: LegId) -> Vec<u8> {
    (0..SLOTS).flat_map(|slot| encode_head(leg, slot, None)).collect()
}

/// The checksum of a record's data.
pub(crate) fn checksum(data: &[u8]) -> u64 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::page_offset;
    use voute_schemas::{Epoch, Hash, Sequence};

    fn leg() -> LegId {
        "018f2b6e-0000-7000-8000-000000000004".parse().unwrap()
    }

    fn token(sequence: u64, session: u64) -> Token {
        let epoch = Epoch { sequence: Sequence(sequence), hash: Hash([9; 32]) };
        Token { epoch, incarnation: 3, session }
    }

    fn record() -> Record {
        Record { token: token(7, 4), offset: 1 << 20, length: 131_072, checksum: Some(11) }
    }

    #[test]
    fn a_head_is_read_only_where_it_was_written() {
        for record in [None, Some(record())] {
            let bytes = encode_head(leg(), 1, record);
            assert_eq!(decode_head(leg(), 1, &bytes), Some(record));
            assert_eq!(decode_head(leg(), 2, &bytes), None);
            assert_eq!(decode_head(LegId::generate(), 1, &bytes), None);
        }
        assert_eq!(decode_head(leg(), 0, &[0; PAGE_BYTES]), None);
    }

    #[test]
    fn a_head_with_a_flipped_bit_is_none() {
        let bytes = encode_head(leg(), 0, Some(record()));
        let used = FIELDS_AT + bytes[4] as usize;
        for bit in 0..used * 8 {
            let mut other = bytes;
            other[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode_head(leg(), 0, &other), None, "bit {bit}");
        }
    }

    #[test]
    fn truncated_heads_are_none() {
        let bytes = encode_head(leg(), 0, Some(record()));
        let used = FIELDS_AT + bytes[4] as usize;
        assert!((0..used).all(|length| decode_head(leg(), 0, &bytes[..length]).is_none()));
    }

    #[test]
    fn the_longest_head_fits_into_what_no_device_tears() {
        let mut longest = record();
        (longest.offset, longest.length, longest.checksum) = (u64::MAX, u64::MAX, Some(u64::MAX));
        longest.token.epoch.sequence = Sequence(u64::MAX);
        (longest.token.incarnation, longest.token.session) = (u64::MAX, u64::MAX);
        let bytes = encode_head(leg(), SLOTS - 1, Some(longest));
        assert!(bytes[512..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn the_head_format_is_golden() {
        let bytes = encode_head(leg(), 1, Some(record()));
        assert_eq!(
            voute_schemas::Hash::of(&bytes).to_string(),
            "a4a9320e46a9063511d85a0ee5d09b9024df2c9fed498eea0d42f50f4600cd2e"
        );
    }

    #[test]
    fn a_record_is_over_under_a_higher_token() {
        assert!(record().is_live(&token(7, 4)) && record().is_live(&token(7, 3)));
        assert!(!record().is_live(&token(7, 5)) && !record().is_live(&token(8, 0)));
    }

    #[test]
    fn units_are_aligned_and_bounded() {
        assert_eq!(atomic_unit(512, REGION_BYTES), 128 << 10);
        assert_eq!(atomic_unit(4096, 4096), 4096);
        assert!(is_within_unit(8, 8, 8) && is_within_unit(8, 15, 1));
        assert!(!is_within_unit(8, 7, 2) && !is_within_unit(8, 0, 0));
        assert!(!is_within_unit(8, u64::MAX, 2));
    }

    #[test]
    fn slots_lie_apart_behind_the_maps_and_before_the_data() {
        assert_eq!(page_offset(MAP_PAGES_MAX, 0).max(JOURNAL_OFFSET), JOURNAL_OFFSET);
        assert_eq!(head_offset(SLOTS), data_offset(0));
        assert_eq!(data_offset(SLOTS), LEG_METADATA_BYTES);
        assert_eq!(JOURNAL_OFFSET % 4096, 0);
    }
}
