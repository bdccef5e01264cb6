//! The maps of a leg: which regions its peer may lack (*dirty*), and which were ever written
//! (*written*; the others read as zero).
//!
//! On disk a page of 4096 bytes holds both planes for [`REGIONS_PER_PAGE`] regions, in two slots
//! that are written in turn, so that a torn write leaves the older one. A page of which no slot can
//! be read counts as all dirty and all written.
//!
//! | bytes | what |
//! |-|-|
//! | 0..4 | magic `VMP1` |
//! | 4..8 | page number |
//! | 8..24 | leg |
//! | 24..32 | generation |
//! | 32..36 | CRC-32C of the page with these four bytes zero |
//! | 64..2080 | dirty plane, bit 0 of byte 0 first |
//! | 2080..4096 | written plane |

use std::fmt;
use voute_schemas::LegId;
use voute_schemas::mutant::{self, Mutant};

/// Size of a page, bytes.
pub(crate) const PAGE_BYTES: usize = 4096;
/// Bytes of one plane in a page.
const PLANE_BYTES: usize = 2016;
const DIRTY_AT: usize = 64;
const WRITTEN_AT: usize = DIRTY_AT + PLANE_BYTES;
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

/// Writes a page.
pub(crate) fn encode_page(
    leg: LegId,
    page: u64,
    generation: u64,
    dirty: &Bits,
    written: &Bits,
) -> [u8; PAGE_BYTES] {
    let mut bytes = [0; PAGE_BYTES];
    bytes[0..4].copy_from_slice(b"VMP1");
    bytes[4..8].copy_from_slice(
        &u32::try_from(page).expect("pages are bounded by the metadata area").to_le_bytes(),
    );
    bytes[8..24].copy_from_slice(&leg.bytes());
    bytes[24..32].copy_from_slice(&generation.to_le_bytes());
    copy_plane(dirty, page, &mut bytes[DIRTY_AT..WRITTEN_AT]);
    copy_plane(written, page, &mut bytes[WRITTEN_AT..]);
    let checksum = checksum(&bytes);
    bytes[32..36].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

fn copy_plane(bits: &Bits, page: u64, plane: &mut [u8]) {
    // REGIONS_PER_PAGE is a multiple of 64, so that pages begin at whole words.
    let first = (page * REGIONS_PER_PAGE / 64) as usize;
    for (word, bytes) in bits.words.iter().skip(first).zip(plane.chunks_exact_mut(8)) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
}

/// Reads a page's bits into the planes and returns its generation; `None` if it is not this page of
/// this leg, or damaged.
pub(crate) fn decode_page(leg: LegId, page: u64, bytes: &[u8]) -> Option<u64> {
    let array: &[u8; PAGE_BYTES] = bytes.try_into().ok()?;
    let number = u32::from_le_bytes(array[4..8].try_into().ok()?);
    let sound = &array[0..4] == b"VMP1"
        && u64::from(number) == page
        && array[8..24] == leg.bytes()
        && array[32..36] == checksum(array).to_le_bytes();
    sound.then(|| u64::from_le_bytes(array[24..32].try_into().expect("eight bytes")))
}

/// Takes the planes of a page that [`decode_page`] found sound.
pub(crate) fn take_page(page: u64, bytes: &[u8], dirty: &mut Bits, written: &mut Bits) {
    let first = page * REGIONS_PER_PAGE;
    let last = (first + REGIONS_PER_PAGE).min(dirty.len());
    for region in first..last {
        let at = (region - first) as usize;
        dirty.set(region, bytes[DIRTY_AT + at / 8] & 1 << (at % 8) != 0);
        written.set(region, bytes[WRITTEN_AT + at / 8] & 1 << (at % 8) != 0);
    }
}

fn checksum(bytes: &[u8; PAGE_BYTES]) -> u32 {
    let mut copy = *bytes;
    copy[32..36].fill(0);
    crate::header::crc32c(&copy)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leg() -> LegId {
        "018f2b6e-0000-7000-8000-0000000000aa".parse().unwrap()
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
            let bytes = encode_page(leg(), page, 9, &dirty, &written);
            assert_eq!(decode_page(leg(), page, &bytes), Some(9));
            take_page(page, &bytes, &mut again.0, &mut again.1);
        }
        assert_eq!(again.0.ones().collect::<Vec<_>>(), dirty.ones().collect::<Vec<_>>());
        assert_eq!(again.1.ones().collect::<Vec<_>>(), vec![7]);
    }

    #[test]
    fn a_damaged_or_foreign_page_is_not_taken() {
        let bits = Bits::new(10);
        let good = encode_page(leg(), 0, 1, &bits, &bits);
        for position in [0, 5, 9, 25, 33, 70, 4095] {
            let mut bad = good;
            bad[position] ^= 1;
            assert_eq!(decode_page(leg(), 0, &bad), None, "byte {position}");
        }
        assert_eq!(decode_page(leg(), 1, &good), None);
        assert_eq!(decode_page(leg(), 0, &good[..100]), None);
    }

    #[test]
    fn the_page_format_is_golden() {
        let mut dirty = Bits::new(100);
        dirty.set(3, true);
        let mut written = Bits::new(100);
        written.set(65, true);
        let bytes = encode_page(leg(), 0, 0x0102, &dirty, &written);
        assert_eq!(&bytes[..8], b"VMP1\0\0\0\0");
        assert_eq!(&bytes[24..32], &[2, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[64], 8);
        assert_eq!(bytes[2080 + 8], 2);
        assert_eq!(bytes[32..36], 0x0413_8FE3_u32.to_le_bytes());
    }
}
