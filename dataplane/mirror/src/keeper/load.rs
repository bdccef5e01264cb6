//! How a keeper reads a leg when it opens it, formats a new one, and follows one that grows.

use super::journaling::Slots;
use super::{
    Condition, DevicePurpose, Keeper, KeeperEvent, METADATA_CHUNK_BYTES, RELOAD_AFTER, Waiter,
    Writer,
};
use crate::action::DeviceKind;
use crate::header::{HEADER_AREA_BYTES, Header};
use crate::journal::{JOURNAL_OFFSET, MAP_PAGES_MAX, empty_heads};
use crate::map::{self, Bits, PAGE_BYTES, REGIONS_PER_PAGE};
use crate::out::Out;
use std::sync::Arc;
use std::time::Duration;
use voute_buffer::Buffer;

/// Stands for what follows the last page when a leg is formatted: its journal is there, then its
/// header too.
pub(super) const JOURNAL_NEXT: u64 = u64::MAX - 1;
pub(super) const HEADER_NEXT: u64 = u64::MAX;
/// Why a leg is not used whose maps would overlap its journal. No volume is so large.
const TOO_MANY_PAGES: &str = "its maps are larger than a leg has room for";

/// Most pages read at a time.
const PAGES_READ_MAX: u64 = (METADATA_CHUNK_BYTES / PAGE_BYTES / 2) as u64;
/// How often a page that cannot be told is read again at once, and how often a second later.
const READS_AT_ONCE: u32 = 3;
const READS_LATER: u32 = 10;
const UNCLEAR_MAP: &str = "a page of its maps cannot be read; it is tried again for ten seconds, then the page counts as changed everywhere";

/// Why a leg is not used whose header is sound by its checksum, but cannot be of its volume. Nothing is
/// guessed: formatting it would end what may be the only copy.
const SENSELESS_HEADER: &str = "its header does not fit the volume: replace the leg";

impl Keeper {
    pub(super) fn load(&mut self, leg: usize, out: &mut Out) {
        self.legs[leg].condition = Condition::Loading;
        let length = u32::try_from(HEADER_AREA_BYTES).expect("two pages");
        self.device(leg, 0, DeviceKind::Read { length }, DevicePurpose::LoadHeader { leg }, out);
    }

    pub(super) fn header_loaded(&mut self, leg: usize, area: &[u8], out: &mut Out) {
        let id = self.legs[leg].id;
        let found = Header::newest(area, id).filter(|header| {
            header.cluster == self.cluster && header.volume == self.legs[leg].spec.volume
        });
        let Some(header) = found else {
            if self.legs[leg].formatted {
                self.legs[leg].condition = Condition::ContentLost;
                self.events.push_back(KeeperEvent::LegsChanged);
            } else {
                let since = self.legs[leg].header.map_since;
                self.format(leg, since, out);
            }
            return;
        };
        if !header.fits(&self.legs[leg].spec) {
            return self.leg_failed(leg, None, SENSELESS_HEADER);
        }
        if header.pages > MAP_PAGES_MAX {
            return self.leg_failed(leg, None, TOO_MANY_PAGES);
        }
        let regions = header.size_bytes.div_ceil(header.region_bytes.max(1));
        let leg_state = &mut self.legs[leg];
        leg_state.growing = false;
        leg_state.new_pages = 0;
        leg_state.preparing.clear();
        leg_state.slots = Slots::default();
        leg_state.not_durable.clear();
        leg_state.size = header.size_bytes;
        leg_state.dirty = Bits::new(regions);
        leg_state.written = Bits::new(regions);
        leg_state.pages = (0..header.pages).map(|_| (0, Writer::default())).collect();
        if header.token > self.held {
            self.held = header.token;
        }
        leg_state.nonces_on_disk = (header.nonce, header.agreed_nonce);
        leg_state.header = header;
        self.load_pages(leg, 0, out);
    }

    pub(super) fn load_pages(&mut self, leg: usize, first: u64, out: &mut Out) {
        let pages = self.legs[leg].pages.len() as u64;
        if first >= pages {
            return self.load_journal(leg, out);
        }
        let count = (pages - first).min(PAGES_READ_MAX);
        let length = u32::try_from(count * 2 * PAGE_BYTES as u64).expect("at most a chunk");
        self.device(
            leg,
            map::page_offset(first, 0),
            DeviceKind::Read { length },
            DevicePurpose::LoadPages { leg, first },
            out,
        );
    }

    /// `None`: the device could not read them. A page that may be in a slot which cannot be read is
    /// read again, at once and then for some seconds, in which the other side may take over; after
    /// that it counts as all dirty and all written.
    pub(super) fn pages_loaded(
        &mut self,
        index: usize,
        first: u64,
        bytes: Option<&[u8]>,
        now: Duration,
        out: &mut Out,
    ) {
        let leg = &mut self.legs[index];
        let end = (leg.pages.len() as u64).min(first + PAGES_READ_MAX);
        for page in first..end {
            let at = (page - first) as usize * 2 * PAGE_BYTES;
            let slots = bytes.and_then(|bytes| bytes.get(at..at + 2 * PAGE_BYTES));
            match slots.and_then(|slots| map::newest(leg.id, page, slots)) {
                Some(newest) => {
                    newest.take(page, &mut leg.dirty, &mut leg.written);
                    leg.pages[page as usize].0 = newest.generation;
                }
                None if leg.unclear_reads < READS_AT_ONCE => {
                    leg.unclear_reads += 1;
                    return self.load_pages(index, page, out);
                }
                None if leg.unclear_reads < READS_AT_ONCE + READS_LATER => {
                    leg.unclear_reads += 1;
                    return self.leg_failed(index, Some(now + RELOAD_AFTER), UNCLEAR_MAP);
                }
                None => {
                    let last = ((page + 1) * REGIONS_PER_PAGE).min(leg.dirty.len());
                    for region in page * REGIONS_PER_PAGE..last {
                        leg.dirty.set(region, true);
                        leg.written.set(region, true);
                    }
                }
            }
        }
        self.load_pages(index, end, out);
    }

    pub(super) fn loaded(&mut self, leg: usize, out: &mut Out) {
        self.legs[leg].condition = Condition::Ready;
        self.legs[leg].unclear_reads = 0;
        if !self.legs[leg].formatted {
            // Said at the next tick, and again until the log says so.
            self.legs[leg].tell_formatted_at = Duration::ZERO;
        }
        self.events.push_back(KeeperEvent::LegsChanged);
        self.grow(leg, out);
    }

    pub(super) fn format(&mut self, leg: usize, map_since: Option<u64>, out: &mut Out) {
        let state = &mut self.legs[leg];
        let regions = state.spec.size_bytes.div_ceil(state.spec.region_bytes);
        if regions.div_ceil(REGIONS_PER_PAGE) > MAP_PAGES_MAX {
            return self.leg_failed(leg, None, TOO_MANY_PAGES);
        }
        state.condition = Condition::Formatting;
        state.slots = Slots::default();
        state.size = state.spec.size_bytes;
        state.dirty = Bits::new(regions);
        state.written = Bits::new(regions);
        state.header.size_bytes = state.spec.size_bytes;
        state.header.pages = regions.div_ceil(REGIONS_PER_PAGE);
        state.header.generation = 2;
        state.header.map_since = map_since;
        state.header.consistent = map_since.is_some();
        state.header.nonce = 0;
        state.header.agreed_nonce = 0;
        state.nonces_on_disk = (0, 0);
        state.header.joining = None;
        state.header.record = Vec::new();
        state.header.lost = Vec::new();
        state.header.token = self.held;
        state.pages = (0..state.header.pages).map(|_| (1, Writer::default())).collect();
        self.format_pages(leg, 0, out);
    }

    /// Writes both slots of every page, the header last: a leg with a header is wholly formatted.
    pub(super) fn format_pages(&mut self, leg: usize, first: u64, out: &mut Out) {
        let state = &self.legs[leg];
        let pages = state.pages.len() as u64;
        if first >= pages {
            return self.format_journal(leg, out);
        }
        let count = (pages - first).min((METADATA_CHUNK_BYTES / PAGE_BYTES / 2) as u64);
        let mut chunk = Buffer::zeroed(count as usize * 2 * PAGE_BYTES);
        for (page, slots) in (first..first + count).zip(chunk.chunks_exact_mut(2 * PAGE_BYTES)) {
            for (slot, bytes) in slots.chunks_exact_mut(PAGE_BYTES).enumerate() {
                bytes.copy_from_slice(&map::encode_page(
                    state.id,
                    page,
                    slot as u64,
                    &state.dirty,
                    &state.written,
                ));
            }
        }
        let purpose = DevicePurpose::Format { leg, next: first + count };
        self.device(
            leg,
            map::page_offset(first, 0),
            DeviceKind::Write { data: Arc::new(chunk) },
            purpose,
            out,
        );
    }

    fn format_journal(&mut self, leg: usize, out: &mut Out) {
        let heads = Arc::new(Buffer::copy_of(&empty_heads(self.legs[leg].id)));
        let purpose = DevicePurpose::Format { leg, next: JOURNAL_NEXT };
        self.device(leg, JOURNAL_OFFSET, DeviceKind::Write { data: heads }, purpose, out);
    }

    pub(super) fn format_header(&mut self, leg: usize, out: &mut Out) {
        let mut older = self.legs[leg].header.clone();
        older.generation = 1;
        let mut area = Buffer::zeroed(HEADER_AREA_BYTES as usize);
        for header in [&older, &self.legs[leg].header] {
            area[header.offset() as usize..][..crate::header::HEADER_BYTES]
                .copy_from_slice(&header.encode());
        }
        let purpose = DevicePurpose::Format { leg, next: HEADER_NEXT };
        self.device(leg, 0, DeviceKind::Write { data: Arc::new(area) }, purpose, out);
    }

    /// Follows a volume that grew: new pages first, then the header that counts them.
    pub(super) fn grow(&mut self, index: usize, out: &mut Out) {
        let leg = &mut self.legs[index];
        let size = leg.spec.size_bytes;
        if !matches!(leg.condition, Condition::Ready)
            || leg.growing
            || leg.size >= size
            || size > voute_schemas::place::VOLUME_BYTES_MAX
            || size.div_ceil(leg.spec.region_bytes).div_ceil(REGIONS_PER_PAGE) > MAP_PAGES_MAX
        {
            return;
        }
        leg.growing = true;
        let regions = size.div_ceil(leg.spec.region_bytes);
        leg.dirty.grow(regions);
        leg.written.grow(regions);
        let old = leg.pages.len() as u64;
        let pages = regions.div_ceil(REGIONS_PER_PAGE);
        leg.pages.extend((old..pages).map(|_| (0, Writer::default())));
        leg.new_pages = 2 * pages.saturating_sub(old);
        if leg.new_pages == 0 {
            return self.count_pages(index, out);
        }
        // A page that was never written counts as all dirty and all written, and would show what
        // lay on the device before: the header counts the new ones only when all are there.
        // Both slots are written: of one that was not, nobody could tell that nothing newer was there.
        for page in (old..pages).flat_map(|page| [page, page]) {
            self.write_page(index, page, Some(Waiter::NewPage), out);
        }
    }

    pub(super) fn count_pages(&mut self, index: usize, out: &mut Out) {
        let leg = &mut self.legs[index];
        let size = leg.dirty.len().saturating_mul(leg.spec.region_bytes).min(leg.spec.size_bytes);
        leg.header.pages = leg.pages.len() as u64;
        leg.header.size_bytes = size;
        self.write_header(index, Waiter::Grown(size), out);
    }
}
