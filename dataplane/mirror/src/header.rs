//! What a leg says of itself on its device: enough to rebuild an inventory from devices alone.
//!
//! Two copies of 4096 bytes, written in turn: magic `VOUTELEG`, version, length, CRC-32C, then the
//! fields in postcard.

use crate::action::RECORD_BYTES_MAX;
use crate::map::REGIONS_PER_PAGE;
use serde::{Deserialize, Serialize};
use voute_schemas::contract::VolumeSpec;
use voute_schemas::mutant::{self, Mutant};
use voute_schemas::place::VOLUME_BYTES_MAX;
use voute_schemas::{ClusterId, GroupId, LegId, Token, VolumeId};

/// Size of one copy, bytes.
pub(crate) const HEADER_BYTES: usize = 4096;
/// Both copies.
pub(crate) const HEADER_AREA_BYTES: u64 = 2 * HEADER_BYTES as u64;
const MAGIC: &[u8; 8] = b"VOUTELEG";
const VERSION: u32 = 2;
/// Without [`Header::lost`], which such a leg has none of.
const VERSION_BEFORE_LOST: u32 = 1;
const FIELDS_AT: usize = 20;

/// The fields of a leg's header.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Header {
    /// Rises with each write; chooses the copy.
    pub generation: u64,
    /// Cluster.
    pub cluster: ClusterId,
    /// Group.
    pub group: GroupId,
    /// Volume.
    pub volume: VolumeId,
    /// Leg.
    pub leg: LegId,
    /// Size of the volume, bytes.
    pub size_bytes: u64,
    /// Logical block, bytes.
    pub block_bytes: u32,
    /// Region of the maps, bytes.
    pub region_bytes: u64,
    /// Map pages that exist.
    pub pages: u64,
    /// The highest token that the leg accepted.
    pub token: Token,
    /// Whether its content is whole; not while a resync overwrites it.
    pub consistent: bool,
    /// As the owner's leg: at the epoch of this commit the log was asked to take the peer in. While
    /// that is the epoch, it may still do so.
    pub joining: Option<u64>,
    /// Number of the commit since which the dirty map is complete; `None`: it cannot be used.
    pub map_since: Option<u64>,
    /// Written by the last start of an owner that reached this leg.
    pub nonce: u64,
    /// The last one before that which both legs had.
    pub agreed_nonce: u64,
    /// What the volume's owner wants to be kept, opaque; at most [`RECORD_BYTES_MAX`] bytes.
    ///
    /// [`RECORD_BYTES_MAX`]: crate::RECORD_BYTES_MAX
    pub record: Vec<u8>,
    /// Blocks of the volume that the leg does not hold, because no copy of them could be read when it
    /// was made: ascending, apart from each other, at most [`LOST_RANGES_MAX`]. They read as medium
    /// errors until they are written.
    pub lost: Vec<LostRange>,
}

/// Blocks that a leg does not hold.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LostRange {
    /// Where in the volume, bytes.
    pub offset: u64,
    /// How many bytes.
    pub length: u64,
}

/// Most ranges of lost blocks that a leg may have: what a header has room for. A device that has lost
/// more is not copied from.
pub const LOST_RANGES_MAX: usize = 40;

/// Adds a range; `false` if there would be too many.
pub(crate) fn add_lost(lost: &mut Vec<LostRange>, offset: u64, length: u64) -> bool {
    let mut begin = offset;
    let mut end = offset + length;
    let mut kept: Vec<LostRange> = Vec::with_capacity(lost.len() + 1);
    for range in lost.iter() {
        if range.offset > end || range.offset + range.length < begin {
            kept.push(*range);
        } else {
            begin = begin.min(range.offset);
            end = end.max(range.offset + range.length);
        }
    }
    kept.push(LostRange { offset: begin, length: end - begin });
    kept.sort_unstable_by_key(|range| range.offset);
    let fits = kept.len() <= LOST_RANGES_MAX;
    if fits {
        *lost = kept;
    }
    fits
}

/// Whether any block of a range is lost.
pub(crate) fn is_lost(lost: &[LostRange], offset: u64, length: u64) -> bool {
    let end = offset + length;
    lost.iter().any(|range| range.offset < end && offset < range.offset + range.length)
}

/// Takes out what was written. A write that cuts a range in two, when there is no room for one more,
/// leaves the ranges as they are and says so: then those blocks stay lost.
pub(crate) fn remove_lost(lost: &mut Vec<LostRange>, offset: u64, length: u64) -> bool {
    let end = offset + length;
    let parts = lost.iter().flat_map(|range| {
        let range_end = range.offset + range.length;
        let before = (range.offset, range_end.min(offset));
        let after = (range.offset.max(end), range_end);
        [before, after]
            .into_iter()
            .filter(|(begin, end)| begin < end)
            .map(|(begin, end)| LostRange { offset: begin, length: end - begin })
    });
    let kept: Vec<LostRange> = parts.collect();
    let fits = kept.len() <= LOST_RANGES_MAX;
    if fits {
        *lost = kept;
    }
    fits
}

/// Whether these are ranges of whole blocks of a volume, ascending and apart from each other.
fn are_lost_ranges(lost: &[LostRange], block_bytes: u64, size_bytes: u64) -> bool {
    let mut free_from = 0;
    lost.len() <= LOST_RANGES_MAX
        && lost.iter().all(|range| {
            let is_whole = range.length > 0
                && range.offset.is_multiple_of(block_bytes)
                && range.length.is_multiple_of(block_bytes);
            let end = range.offset.checked_add(range.length).filter(|end| *end <= size_bytes);
            let is_after = range.offset >= free_from;
            // The next one does not touch this one.
            free_from = end.map_or(u64::MAX, |end| end.saturating_add(1));
            is_whole && is_after && end.is_some()
        })
}

impl Header {
    /// Writes one copy.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let fields = postcard::to_stdvec(self).expect("headers have no unserialisable field");
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(
            &u32::try_from(fields.len()).expect("a header is short").to_le_bytes(),
        );
        bytes[16..20].copy_from_slice(&crc32c(&fields).to_le_bytes());
        bytes[FIELDS_AT..FIELDS_AT + fields.len()].copy_from_slice(&fields);
        bytes
    }

    /// Reads one copy; `None` if there is none, or a damaged one.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Header> {
        let word = |at: usize| {
            bytes.get(at..at + 4).and_then(|four| four.try_into().ok()).map(u32::from_le_bytes)
        };
        let version = word(8)?;
        if bytes.get(0..8)? != MAGIC || ![VERSION, VERSION_BEFORE_LOST].contains(&version) {
            return None;
        }
        let fields = bytes.get(FIELDS_AT..FIELDS_AT.checked_add(word(12)? as usize)?)?;
        if crc32c(fields) != word(16)? {
            return None;
        }
        let mut fields = fields.to_vec();
        if version == VERSION_BEFORE_LOST {
            // An empty list.
            fields.push(0);
        }
        postcard::from_bytes(&fields).ok()
    }

    /// The newer of the copies in a header area that belongs to this leg.
    #[must_use]
    pub fn newest(area: &[u8], leg: LegId) -> Option<Header> {
        let copies = area.chunks_exact(HEADER_BYTES).filter_map(Header::decode);
        copies.filter(|header| header.leg == leg).max_by_key(|header| header.generation)
    }

    /// Whether a mirror can have written this for a leg of the volume. What comes from a disk is not
    /// believed for its checksum alone: sizes are allocated by it, and ranges are added up.
    pub(crate) fn fits(&self, volume: &VolumeSpec) -> bool {
        let is_sized = self.region_bytes == volume.region_bytes
            && self.block_bytes == volume.block_bytes
            && (1..=VOLUME_BYTES_MAX).contains(&self.size_bytes)
            && self.pages
                == self.size_bytes.div_ceil(volume.region_bytes).div_ceil(REGIONS_PER_PAGE);
        is_sized
            && self.generation < u64::MAX / 2
            && self.record.len() <= RECORD_BYTES_MAX
            && are_lost_ranges(&self.lost, u64::from(self.block_bytes), self.size_bytes)
    }

    /// Where the copy of this generation lies, bytes from the leg's begin.
    #[must_use]
    pub fn offset(&self) -> u64 {
        if mutant::is_active(Mutant::OneHeaderCopy) {
            return 0;
        }
        self.generation % 2 * HEADER_BYTES as u64
    }
}

pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    u32::try_from(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes))
        .expect("a 32-bit checksum")
}

#[cfg(test)]
mod tests {
    use super::*;
    use voute_schemas::{Epoch, Hash, Sequence};

    fn header(generation: u64) -> Header {
        Header {
            generation,
            cluster: "018f2b6e-0000-7000-8000-000000000001".parse().unwrap(),
            group: "018f2b6e-0000-7000-8000-000000000002".parse().unwrap(),
            volume: "018f2b6e-0000-7000-8000-000000000003".parse().unwrap(),
            leg: "018f2b6e-0000-7000-8000-000000000004".parse().unwrap(),
            size_bytes: 1 << 30,
            block_bytes: 512,
            region_bytes: 1 << 20,
            pages: 1,
            token: Token {
                epoch: Epoch { sequence: Sequence(7), hash: Hash([9; 32]) },
                incarnation: 3,
                session: 4,
            },
            consistent: true,
            joining: None,
            map_since: Some(7),
            nonce: 11,
            agreed_nonce: 10,
            record: vec![0xAB; 5],
            lost: vec![],
        }
    }

    #[test]
    fn the_newer_sound_copy_is_taken() {
        let mut area = [0; HEADER_AREA_BYTES as usize];
        let leg = header(1).leg;
        assert_eq!(Header::newest(&area, leg), None);
        for generation in [4, 5] {
            let at = header(generation).offset() as usize;
            area[at..at + HEADER_BYTES].copy_from_slice(&header(generation).encode());
        }
        assert_eq!(Header::newest(&area, leg), Some(header(5)));
        area[HEADER_BYTES + 30] ^= 1;
        assert_eq!(Header::newest(&area, leg), Some(header(4)));
        assert_eq!(Header::newest(&area, LegId::generate()), None);
    }

    #[test]
    fn the_header_format_is_golden() {
        let mut with_lost = header(5);
        with_lost.lost = vec![LostRange { offset: 4096, length: 8192 }];
        let bytes = with_lost.encode();
        assert_eq!(&bytes[..12], b"VOUTELEG\x02\0\0\0");
        assert_eq!(
            voute_schemas::Hash::of(&bytes).to_string(),
            "fe620487499f4980529e6859b50d92bc3dfb6dcd99e76763645186cce7a58197"
        );
    }

    #[test]
    fn a_header_of_version_1_has_lost_nothing() {
        let golden = header(5);
        let mut fields = postcard::to_stdvec(&golden).unwrap();
        assert_eq!(fields.pop(), Some(0), "the empty list at the end");
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&1_u32.to_le_bytes());
        bytes[12..16].copy_from_slice(&u32::try_from(fields.len()).unwrap().to_le_bytes());
        bytes[16..20].copy_from_slice(&crc32c(&fields).to_le_bytes());
        bytes[FIELDS_AT..FIELDS_AT + fields.len()].copy_from_slice(&fields);
        assert_eq!(
            voute_schemas::Hash::of(&bytes).to_string(),
            "b0ea6ae7960690441dbf2093a77dc2759a155098fcd205b2451b86cbb0a4888b",
            "as version 1 wrote it"
        );
        assert_eq!(Header::decode(&bytes), Some(golden));
    }

    #[test]
    fn what_is_lost_grows_together_and_shrinks_by_what_is_written() {
        let range = |offset, length| LostRange { offset, length };
        let mut lost = Vec::new();
        assert!(
            add_lost(&mut lost, 8, 4) && add_lost(&mut lost, 0, 4) && add_lost(&mut lost, 4, 4)
        );
        assert_eq!(lost, vec![range(0, 12)]);
        assert!(is_lost(&lost, 11, 5) && !is_lost(&lost, 12, 5));
        assert!(remove_lost(&mut lost, 4, 4));
        assert_eq!(lost, vec![range(0, 4), range(8, 4)]);
        assert!(remove_lost(&mut lost, 2, 8));
        assert_eq!(lost, vec![range(0, 2), range(10, 2)]);
        assert!(remove_lost(&mut lost, 0, 100));
        assert_eq!(lost, vec![]);
    }

    #[test]
    fn ranges_from_a_disk_are_whole_blocks_ascending_and_apart() {
        let range = |offset, length| LostRange { offset, length };
        let are = |lost: &[LostRange]| are_lost_ranges(lost, 512, 1 << 20);
        assert!(are(&[]) && are(&[range(0, 512), range(1024, 1024)]));
        assert!(are(&[range((1 << 20) - 512, 512)]));
        assert!(!are(&[range(0, 512), range(512, 512)]), "they touch");
        assert!(!are(&[range(1024, 512), range(0, 512)]), "not ascending");
        assert!(!are(&[range(0, 0)]) && !are(&[range(0, 100)]) && !are(&[range(8, 512)]));
        assert!(!are(&[range(1 << 20, 512)]), "beyond the volume");
        assert!(!are(&[range(u64::MAX - 511, 1024)]), "it overflows");
        assert!(!are(&[range(512, u64::MAX - 511), range(u64::MAX - 511, 512)]));
        let many: Vec<_> = (0..=LOST_RANGES_MAX as u64).map(|at| range(at * 1024, 512)).collect();
        assert!(!are(&many) && are(&many[1..]));
    }

    #[test]
    fn more_lost_ranges_than_fit_are_refused_and_change_nothing() {
        let mut lost = Vec::new();
        assert!((0..LOST_RANGES_MAX as u64).all(|at| add_lost(&mut lost, at * 100, 10)));
        let before = lost.clone();
        assert!(!add_lost(&mut lost, 50, 10));
        assert!(!remove_lost(&mut lost, 2, 2), "it would cut one in two");
        assert_eq!(lost, before);
    }

    #[test]
    fn the_longest_record_fits() {
        let mut longest = header(u64::MAX);
        longest.lost = vec![LostRange { offset: u64::MAX, length: u64::MAX }; LOST_RANGES_MAX];
        longest.record = vec![0xFF; crate::RECORD_BYTES_MAX];
        longest.token.incarnation = u64::MAX;
        longest.token.session = u64::MAX;
        longest.token.epoch.sequence = Sequence(u64::MAX);
        for number in [
            &mut longest.size_bytes,
            &mut longest.region_bytes,
            &mut longest.pages,
            &mut longest.nonce,
            &mut longest.agreed_nonce,
        ] {
            *number = u64::MAX;
        }
        (longest.joining, longest.map_since) = (Some(u64::MAX), Some(u64::MAX));
        assert_eq!(Header::decode(&longest.encode()), Some(longest));
    }

    #[test]
    fn truncated_headers_are_none() {
        let bytes = header(5).encode();
        for length in 0..200 {
            assert_eq!(Header::decode(&bytes[..length.min(FIELDS_AT + 10)]), None);
        }
    }
}
