//! The maps of a leg: which regions its peer may lack (*dirty*), and which were ever written
//! (*written*; the others read as zero).
//!
//! On disk a page of 4096 bytes holds both planes for [`REGIONS_PER_PAGE`] regions, in two slots
//! that are written in turn. Each of its eight sectors says of itself what it is:
//!
//! | bytes of a sector | what |
//! |-|-|
//! | 0..504 | its part of the planes: all of the dirty one, then all of the written one, bit 0 of byte 0 first |
//! | 504..508 | the low half of the generation |
//! | 508..512 | CRC-32C of `VMP2`, leg, page, slot, number of the sector, generation, and its part |
//!
//! So a write that was torn, of which nothing was answered, can be told from damage or from a read
//! that went elsewhere: its sectors are all sound, of two generations. A slot of which no sector is
//! readable may have been the newer one, and the other is not taken in its place: [`newest`].
//!
//! Before, a page began with `VMP1`, its number (4..8), leg (8..24), generation (24..32) and a
//! CRC-32C of it all (32..36); the planes lay at 64 and 2080. Such pages are still read.

use std::fmt;
use voute_schemas::LegId;
use voute_schemas::mutant::{self, Mutant};

/// Size of a page, bytes.
pub(crate) const PAGE_BYTES: usize = 4096;
/// Bytes of one plane in a page.
const PLANE_BYTES: usize = 2016;
/// What a power cut leaves as it was or writes whole, bytes.
const SECTOR_BYTES: usize = 512;
const SECTORS: usize = PAGE_BYTES / SECTOR_BYTES;
const PART_BYTES: usize = SECTOR_BYTES - 8;
const _: () = assert!(SECTORS * PART_BYTES == 2 * PLANE_BYTES);
/// Where the first form of a page had its planes.
const OLD_DIRTY_AT: usize = 64;
/// Regions that a page covers.
pub(crate) const REGIONS_PER_PAGE: u64 = PLANE_BYTES as u64 * 8;

/// One bit per region.
#[derive(Clone, Default)]
pub(crate) struct Bits {
    words: Vec<u64>,
    length: u64,
}

impl Bits {
    pub(crate) fn new(length: u64) -> Self {
        Bits {
            words: vec![
                0;
                usize::try_from(length.div_ceil(64))
                    .expect("regions are bounded by the metadata area")
            ],
            length,
        }
    }

    pub(crate) fn grow(&mut self, length: u64) {
        if length > self.length {
            self.words.resize(usize::try_from(length.div_ceil(64)).expect("bounded as in new"), 0);
            self.length = length;
        }
    }

    pub(crate) fn get(&self, index: u64) -> bool {
        index < self.length && self.words[(index / 64) as usize] & 1 << (index % 64) != 0
    }

    /// Returns whether it changed.
    pub(crate) fn set(&mut self, index: u64, value: bool) -> bool {
        assert!(
            index < self.length,
            "region {index} is beyond the volume's {} regions",
            self.length
        );
        let word = &mut self.words[(index / 64) as usize];
        let old = *word;
        if value {
            *word |= 1 << (index % 64)
        } else {
            *word &= !(1 << (index % 64))
        }
        *word != old
    }

    pub(crate) fn ones(&self) -> impl Iterator<Item = u64> + '_ {
        self.words.iter().enumerate().filter(|(_, word)| **word != 0).flat_map(|(index, word)| {
            let word = *word;
            (0..64).filter(move |bit| word & 1 << bit != 0).map(move |bit| index as u64 * 64 + bit)
        })
    }

    pub(crate) fn any(&self) -> bool {
        self.words.iter().any(|word| *word != 0)
    }

    pub(crate) fn len(&self) -> u64 {
        self.length
    }
}

impl fmt::Debug for Bits {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} of ", self.length)?;
        formatter.debug_set().entries(self.ones()).finish()
    }
}

/// Offset of a page's slot in the leg's space, bytes.
pub(crate) fn page_offset(page: u64, slot: u64) -> u64 {
    let slot = if mutant::is_active(Mutant::OneMapSlot) { 0 } else { slot };
    crate::header::HEADER_AREA_BYTES + (page * 2 + slot) * PAGE_BYTES as u64
}

/// Writes a page for the slot of this generation.
pub(crate) fn encode_page(
    leg: LegId,
    page: u64,
    generation: u64,
    dirty: &Bits,
    written: &Bits,
) -> [u8; PAGE_BYTES] {
    let mut planes = [0; 2 * PLANE_BYTES];
    copy_plane(dirty, page, &mut planes[..PLANE_BYTES]);
    copy_plane(written, page, &mut planes[PLANE_BYTES..]);
    let generation_low = generation as u32;
    let mut bytes = [0; PAGE_BYTES];
    let sectors = bytes.chunks_exact_mut(SECTOR_BYTES).zip(planes.chunks_exact(PART_BYTES));
    for (index, (sector, part)) in sectors.enumerate() {
        let checksum = checksum(leg, page, generation % 2, index, generation_low, part);
        sector[..PART_BYTES].copy_from_slice(part);
        sector[PART_BYTES..PART_BYTES + 4].copy_from_slice(&generation_low.to_le_bytes());
        sector[PART_BYTES + 4..].copy_from_slice(&checksum.to_le_bytes());
    }
    bytes
}

fn copy_plane(bits: &Bits, page: u64, plane: &mut [u8]) {
    // REGIONS_PER_PAGE is a multiple of 64, so that pages begin at whole words.
    let first = (page * REGIONS_PER_PAGE / 64) as usize;
    for (word, bytes) in bits.words.iter().skip(first).zip(plane.chunks_exact_mut(8)) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
}

/// What a slot holds.
#[derive(Clone, Debug)]
enum Slot {
    /// A page, wholly written.
    Whole(u32, Box<[u8; 2 * PLANE_BYTES]>),
    /// Not that; of some generations there are sectors.
    Parts(Vec<u32>),
}

impl Slot {
    fn read(leg: LegId, page: u64, slot: u64, bytes: &[u8]) -> Slot {
        if let Some((generation, planes)) = read_old(leg, page, bytes) {
            return Slot::Whole(generation, planes);
        }
        let mut planes = Box::new([0; 2 * PLANE_BYTES]);
        let mut found = Vec::with_capacity(SECTORS);
        let sectors = bytes.chunks_exact(SECTOR_BYTES).zip(planes.chunks_exact_mut(PART_BYTES));
        for (index, (sector, part)) in sectors.enumerate() {
            let generation = word(sector, PART_BYTES);
            let sum = checksum(leg, page, slot, index, generation, &sector[..PART_BYTES]);
            if word(sector, PART_BYTES + 4) == sum {
                part.copy_from_slice(&sector[..PART_BYTES]);
                found.push(generation);
            }
        }
        match found.first() {
            Some(first) if found.len() == SECTORS && found.iter().all(|it| it == first) => {
                Slot::Whole(*first, planes)
            }
            _ => Slot::Parts(found),
        }
    }

    /// Whether it cannot be a page that was wholly written after another of this generation: a
    /// sector of it is older, or two are of two writes.
    fn is_surely_older(&self, than: u32) -> bool {
        match self {
            Slot::Whole(generation, _) => !is_newer(*generation, than),
            Slot::Parts(found) => found.iter().any(|generation| {
                !is_newer(*generation, than) || Some(generation) != found.first()
            }),
        }
    }
}

/// The newest page that was wholly written, of the two slots in `bytes`.
#[derive(Clone, Debug)]
pub(crate) struct Newest {
    pub(crate) generation: u64,
    planes: Box<[u8; 2 * PLANE_BYTES]>,
}

/// Finds it; `None` if it may be in a slot that cannot be read, or if `bytes` are not two slots.
pub(crate) fn newest(leg: LegId, page: u64, bytes: &[u8]) -> Option<Newest> {
    if bytes.len() != 2 * PAGE_BYTES {
        return None;
    }
    let (one, other) = bytes.split_at(PAGE_BYTES);
    let slots = [Slot::read(leg, page, 0, one), Slot::read(leg, page, 1, other)];
    let guesses = mutant::is_active(Mutant::OtherSlotTaken);
    let found = match slots {
        [Slot::Whole(one, planes), Slot::Whole(other, _)] if is_newer(one, other) => (one, planes),
        [Slot::Whole(..), Slot::Whole(other, planes)] => (other, planes),
        [Slot::Whole(found, planes), rest] | [rest, Slot::Whole(found, planes)]
            if rest.is_surely_older(found) || guesses =>
        {
            (found, planes)
        }
        [_, _] => return None,
    };
    Some(Newest { generation: u64::from(found.0), planes: found.1 })
}

impl Newest {
    /// Takes its bits into the maps.
    pub(crate) fn take(&self, page: u64, dirty: &mut Bits, written: &mut Bits) {
        let first = page * REGIONS_PER_PAGE;
        let last = (first + REGIONS_PER_PAGE).min(dirty.len());
        let (theirs_dirty, theirs_written) = self.planes.split_at(PLANE_BYTES);
        for region in first..last {
            let at = (region - first) as usize;
            dirty.set(region, theirs_dirty[at / 8] & 1 << (at % 8) != 0);
            written.set(region, theirs_written[at / 8] & 1 << (at % 8) != 0);
        }
    }
}

/// Generations of the two slots of a page are close to each other, so that their low halves tell.
fn is_newer(one: u32, other: u32) -> bool {
    let ahead = one.wrapping_sub(other);
    ahead != 0 && ahead < 1 << 31
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn checksum(leg: LegId, page: u64, slot: u64, sector: usize, generation: u32, part: &[u8]) -> u32 {
    let mut bytes = [0; 40 + PART_BYTES];
    bytes[0..4].copy_from_slice(b"VMP2");
    bytes[4..20].copy_from_slice(&leg.bytes());
    bytes[20..28].copy_from_slice(&page.to_le_bytes());
    bytes[28..32].copy_from_slice(&(slot as u32).to_le_bytes());
    bytes[32..36].copy_from_slice(&(sector as u32).to_le_bytes());
    bytes[36..40].copy_from_slice(&generation.to_le_bytes());
    bytes[40..].copy_from_slice(part);
    crate::header::crc32c(&bytes)
}

/// A page of the first form: its generation, and its planes.
fn read_old(leg: LegId, page: u64, bytes: &[u8]) -> Option<(u32, Box<[u8; 2 * PLANE_BYTES]>)> {
    let is_this_page =
        bytes[0..4] == *b"VMP1" && u64::from(word(bytes, 4)) == page && bytes[8..24] == leg.bytes();
    let sum = || {
        let mut copy = bytes.to_vec();
        copy[32..36].fill(0);
        crate::header::crc32c(&copy)
    };
    if !is_this_page || word(bytes, 32) != sum() {
        return None;
    }
    let mut planes = Box::new([0; 2 * PLANE_BYTES]);
    planes.copy_from_slice(&bytes[OLD_DIRTY_AT..]);
    Some((word(bytes, 24), planes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leg() -> LegId {
        "018f2b6e-0000-7000-8000-0000000000aa".parse().unwrap()
    }

    /// A page whose dirty bits are these.
    fn page(generation: u64, regions: &[u64]) -> [u8; PAGE_BYTES] {
        let mut dirty = Bits::new(100);
        for region in regions {
            dirty.set(*region, true);
        }
        encode_page(leg(), 0, generation, &dirty, &Bits::new(100))
    }

    /// What is read of two slots: generation and dirty bits.
    fn read(one: &[u8], other: &[u8]) -> Option<(u64, Vec<u64>)> {
        let newest = newest(leg(), 0, &[one, other].concat())?;
        let (mut dirty, mut written) = (Bits::new(100), Bits::new(100));
        newest.take(0, &mut dirty, &mut written);
        Some((newest.generation, dirty.ones().collect()))
    }

    #[test]
    fn a_page_read_back_holds_what_was_written() {
        let mut dirty = Bits::new(REGIONS_PER_PAGE + 100);
        let mut written = dirty.clone();
        for region in [0, 63, 64, REGIONS_PER_PAGE - 1, REGIONS_PER_PAGE, REGIONS_PER_PAGE + 99] {
            dirty.set(region, true);
        }
        written.set(7, true);
        let mut again = (Bits::new(dirty.len()), Bits::new(dirty.len()));
        for page in 0..2 {
            let slots = [8, 9].map(|it| encode_page(leg(), page, it, &dirty, &written));
            let newest = newest(leg(), page, &slots.concat()).expect("both slots are whole");
            assert_eq!(newest.generation, 9);
            newest.take(page, &mut again.0, &mut again.1);
        }
        assert_eq!(again.0.ones().collect::<Vec<_>>(), dirty.ones().collect::<Vec<_>>());
        assert_eq!(again.1.ones().collect::<Vec<_>>(), vec![7]);
    }

    #[test]
    fn a_torn_write_leaves_the_other_slot() {
        let (older, newer, torn) = (page(4, &[1]), page(5, &[2]), page(6, &[3]));
        for sectors in 1..SECTORS {
            let mut slot = older;
            slot[..sectors * SECTOR_BYTES].copy_from_slice(&torn[..sectors * SECTOR_BYTES]);
            assert_eq!(read(&slot, &newer), Some((5, vec![2])), "{sectors} sectors");
        }
        // A write that failed, and the next to the same place, which was torn.
        let mut slot = torn;
        slot[SECTOR_BYTES..].copy_from_slice(&page(8, &[3])[SECTOR_BYTES..]);
        assert_eq!(read(&slot, &newer), Some((5, vec![2])));
        assert_eq!(read(&torn, &newer), Some((6, vec![3])));
    }

    #[test]
    fn a_damaged_newer_slot_does_not_make_the_older_one_count() {
        let (older, newer) = (page(4, &[1]), page(5, &[2]));
        for position in [0, 70, 505, 510, 4095] {
            let mut damaged = newer;
            damaged[position] ^= 1;
            assert_eq!(read(&older, &damaged), None, "byte {position}");
        }
        assert_eq!(read(&older, &[0; PAGE_BYTES]), None, "nothing is left of it");
        assert_eq!(read(&older, &older), None, "the read went to the other slot");
        assert_eq!(read(&newer, &newer), None, "the read went to the other slot");
    }

    #[test]
    fn a_damaged_older_slot_harms_nothing() {
        let (mut older, newer) = (page(4, &[1]), page(5, &[2]));
        older[700] ^= 1;
        assert_eq!(read(&older, &newer), Some((5, vec![2])));
        // Torn, and damaged too.
        older[..SECTOR_BYTES].copy_from_slice(&page(6, &[3])[..SECTOR_BYTES]);
        assert_eq!(read(&older, &newer), Some((5, vec![2])));
    }

    #[test]
    fn a_page_of_another_leg_or_place_is_not_taken() {
        let (one, other) = (page(4, &[1]), page(5, &[2]));
        let slots = [one, other].concat();
        assert!(newest(leg(), 0, &slots).is_some());
        assert!(newest(leg(), 1, &slots).is_none());
        assert!(newest(LegId::generate(), 0, &slots).is_none());
        assert!(newest(leg(), 0, &slots[..5_000]).is_none());
    }

    #[test]
    fn generations_are_compared_by_their_low_halves_across_the_end() {
        let end = u64::from(u32::MAX);
        assert_eq!(read(&page(end + 1, &[1]), &page(end, &[2])), Some((0, vec![1])));
    }

    #[test]
    fn the_page_format_is_golden() {
        let mut dirty = Bits::new(100);
        dirty.set(3, true);
        let mut written = Bits::new(100);
        written.set(65, true);
        let bytes = encode_page(leg(), 0, 0x0102, &dirty, &written);
        assert_eq!(bytes[0], 8);
        // 2016 bytes of a plane are four parts of 504.
        assert_eq!(bytes[4 * SECTOR_BYTES + 8], 2);
        assert_eq!(bytes[504..508], [2, 1, 0, 0]);
        assert_eq!(
            voute_schemas::Hash::of(&bytes).to_string(),
            "c349e8ff11190110d654ef046d7d275fbccabff38df410a06a6e137b3fd888fa"
        );
    }

    #[test]
    fn a_page_of_the_first_form_is_still_read() {
        let old = |generation: u64, dirty_byte: u8| {
            let mut bytes = [0; PAGE_BYTES];
            bytes[0..4].copy_from_slice(b"VMP1");
            bytes[8..24].copy_from_slice(&leg().bytes());
            bytes[24..32].copy_from_slice(&generation.to_le_bytes());
            bytes[OLD_DIRTY_AT] = dirty_byte;
            bytes[2080 + 8] = 2;
            let sum = crate::header::crc32c(&bytes);
            bytes[32..36].copy_from_slice(&sum.to_le_bytes());
            bytes
        };
        assert_eq!(old(0x0102, 8)[32..36], 0x0413_8FE3_u32.to_le_bytes(), "as it was written");
        assert_eq!(read(&old(4, 2), &old(5, 4)), Some((5, vec![2])));
        assert_eq!(read(&page(6, &[3]), &old(5, 4)), Some((6, vec![3])));
        let mut damaged = old(5, 4);
        damaged[99] ^= 1;
        assert_eq!(read(&old(4, 2), &damaged), None);
    }
}
