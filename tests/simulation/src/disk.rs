//! A node's device: what was carried out survives a power cut; what was under way may, in part. It
//! may fail for a while, be full, lose blocks, read metadata wrongly, or forget everything.
//!
//! Each leg has a space of its own that holds somebody else's bytes before it is written.

use crate::BLOCK;
use std::collections::BTreeMap;
use voute_buffer::Buffer;
use voute_mirror::header::Header;
use voute_mirror::journal::JOURNAL_OFFSET;
use voute_mirror::{DeviceFault, DeviceKind, DeviceRequest};
use voute_schemas::mutant::{self, Mutant};
use voute_schemas::place::LEG_METADATA_BYTES;
use voute_schemas::{LegId, VolumeId};

/// What a device does not do at present.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ailment {
    /// Everything fails.
    Dead,
    /// Writes fail, of data and metadata alike.
    ReadOnly,
    /// There is no room for data.
    Full,
    /// Every third write fails.
    Flaky,
    /// Some blocks of data cannot be read.
    BadBlocks(u64),
    /// Reads of map pages return another page or a flipped bit, now and then.
    WrongReads(u64),
}

/// Bytes of header and maps that a leg of these sizes uses.
const METADATA_USED: usize = 24 << 10;
/// What lies on a device before anything is written.
const FOREIGN: u8 = 0xEE;
const HEADERS: u64 = 8 << 10;
/// Writes that a cache holds, with a mutant.
const CACHED_MAX: usize = 8;

#[derive(Clone)]
struct Space {
    metadata: Vec<u8>,
    journal: Vec<u8>,
    data: Vec<u8>,
}

#[derive(Clone, Default)]
pub(crate) struct Disk {
    spaces: BTreeMap<LegId, Space>,
    pub(crate) ailment: Option<Ailment>,
    writes: u64,
    /// What lay where the last writes went, with a mutant.
    cached: Vec<(LegId, u64, Vec<u8>)>,
}

impl Disk {
    pub(crate) fn carry_out(
        &mut self,
        request: &DeviceRequest,
    ) -> Result<Option<Buffer>, DeviceFault> {
        if let Some(fault) = self.fault(request) {
            // A write that failed may have reached some blocks.
            self.writes += 1;
            self.tear(request, self.writes % 3, self.writes.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            return Err(fault);
        }
        match &request.kind {
            DeviceKind::Read { length } => {
                let mut buffer = Buffer::zeroed(*length as usize);
                self.read(request.leg, request.offset, &mut buffer);
                self.read_wrongly(request.offset, &mut buffer);
                Ok(Some(buffer))
            }
            DeviceKind::Write { data } => {
                self.write(request.leg, request.offset, data, |_| true);
                Ok(None)
            }
            DeviceKind::Zero { length, .. } => {
                self.zero(request.leg, request.offset, *length);
                Ok(None)
            }
        }
    }

    fn fault(&mut self, request: &DeviceRequest) -> Option<DeviceFault> {
        let is_read = matches!(request.kind, DeviceKind::Read { .. });
        let is_data = request.offset >= LEG_METADATA_BYTES;
        match self.ailment? {
            Ailment::Dead => Some(DeviceFault::Failed),
            Ailment::ReadOnly => (!is_read).then_some(DeviceFault::Failed),
            Ailment::Full => (!is_read && is_data).then_some(DeviceFault::NoSpace),
            Ailment::Flaky => {
                self.writes += 1;
                (!is_read && self.writes.is_multiple_of(3)).then_some(DeviceFault::Failed)
            }
            Ailment::BadBlocks(which) => {
                let block = (request.offset - LEG_METADATA_BYTES.min(request.offset)) / BLOCK;
                (is_read && is_data && (block % 7 == which % 7)).then_some(DeviceFault::Medium)
            }
            Ailment::WrongReads(_) => None,
        }
    }

    /// Maps carry checksums and their place; data does not, so that nobody could notice there.
    fn read_wrongly(&mut self, offset: u64, buffer: &mut [u8]) {
        let Some(Ailment::WrongReads(which)) = self.ailment else { return };
        if !(HEADERS..METADATA_USED as u64).contains(&offset) || buffer.len() < 8_192 {
            return;
        }
        self.writes += 1;
        let (one, other) = buffer.split_at_mut(4_096);
        let (one, other) = (&mut one[..4_096], &mut other[..4_096]);
        let bit = (which % 4_096) as usize;
        match (which + self.writes) % 7 {
            // The read went to the other slot, or a bit is flipped, or both.
            0 => one.copy_from_slice(other),
            1 => other.copy_from_slice(one),
            2 => one[bit] ^= 1 << (which % 8),
            3 => other[bit] ^= 1 << (which % 8),
            4 => {
                one.copy_from_slice(other);
                other[bit] ^= 1 << (which % 8);
            }
            // It went somewhere else.
            5 => buffer.fill(FOREIGN),
            _ => {}
        }
    }

    /// Where a leg's headers lie, if anything of it was ever used.
    pub(crate) fn headers(&self, leg: LegId) -> Option<&[u8]> {
        self.spaces.get(&leg).map(|space| &space.metadata[..HEADERS as usize])
    }

    /// The device was replaced, or a memory's process ended.
    pub(crate) fn forget(&mut self) {
        self.spaces.clear();
    }

    /// The leg as it is now, to be restored later.
    pub(crate) fn image(&self) -> Disk {
        Disk { spaces: self.spaces.clone(), ..Disk::default() }
    }

    /// The marks that the headers of its legs have, by volume.
    pub(crate) fn marks(&self) -> Vec<(VolumeId, u64)> {
        let headers = self
            .spaces
            .iter()
            .filter_map(|(leg, space)| Header::newest(&space.metadata[..HEADERS as usize], *leg));
        headers.flat_map(|it| [(it.volume, it.nonce), (it.volume, it.agreed_nonce)]).collect()
    }

    /// Whether the log was asked at this epoch, by what its legs say, to take the peer in.
    pub(crate) fn asked_to_join(&self, epoch: u64) -> bool {
        let mut headers = self
            .spaces
            .iter()
            .filter_map(|(leg, space)| Header::newest(&space.metadata[..HEADERS as usize], *leg));
        headers.any(|header| header.joining == Some(epoch))
    }

    /// Whether no leg here has a mark in common with a leg there.
    pub(crate) fn is_foreign_to(&self, other: &Disk) -> bool {
        let there = other.marks();
        self.marks().iter().all(|mark| !there.contains(mark))
    }

    pub(crate) fn restore(&mut self, image: Disk) {
        self.spaces = image.spaces;
    }

    /// A power cut meets a request: it is lost (0), done (1), or done in some blocks.
    pub(crate) fn tear(&mut self, request: &DeviceRequest, fate: u64, which: u64) {
        match &request.kind {
            DeviceKind::Write { data } if fate > 0 => {
                let keep = |block: u64| fate == 1 || which >> (block % 64) & 1 == 1;
                self.write(request.leg, request.offset, data, keep);
            }
            DeviceKind::Zero { length, .. } if fate == 1 => {
                self.zero(request.leg, request.offset, *length);
            }
            DeviceKind::Zero { .. } | DeviceKind::Write { .. } | DeviceKind::Read { .. } => {}
        }
    }

    /// The power fails: with a mutant, the last writes were only in a cache.
    pub(crate) fn lose_cache(&mut self) {
        for (leg, offset, before) in std::mem::take(&mut self.cached).into_iter().rev() {
            let (plane, at) = self.space(leg).plane(offset, before.len());
            plane[at..at + before.len()].copy_from_slice(&before);
        }
    }

    fn space(&mut self, leg: LegId) -> &mut Space {
        self.spaces.entry(leg).or_insert_with(|| Space {
            metadata: vec![FOREIGN; METADATA_USED],
            journal: Vec::new(),
            data: Vec::new(),
        })
    }

    fn read(&mut self, leg: LegId, offset: u64, buffer: &mut [u8]) {
        let space = self.space(leg);
        let (plane, at) = space.plane(offset, buffer.len());
        buffer.copy_from_slice(&plane[at..at + buffer.len()]);
    }

    fn write(&mut self, leg: LegId, offset: u64, data: &[u8], keep: impl Fn(u64) -> bool) {
        if mutant::is_active(Mutant::CacheNotFlushed) {
            let mut before = vec![0; data.len()];
            self.read(leg, offset, &mut before);
            self.cached.push((leg, offset, before));
            let excess = self.cached.len().saturating_sub(CACHED_MAX);
            self.cached.drain(..excess);
        }
        let (plane, at) = self.space(leg).plane(offset, data.len());
        let pieces = data.chunks(BLOCK as usize).zip(plane[at..].chunks_mut(BLOCK as usize));
        for (index, (from, to)) in pieces.enumerate() {
            if keep(index as u64) {
                to[..from.len()].copy_from_slice(from);
            }
        }
    }

    fn zero(&mut self, leg: LegId, offset: u64, length: u64) {
        let (plane, at) = self.space(leg).plane(offset, length as usize);
        plane[at..at + length as usize].fill(0);
    }
}

impl Space {
    fn plane(&mut self, offset: u64, length: usize) -> (&mut Vec<u8>, usize) {
        if offset < LEG_METADATA_BYTES {
            let (plane, begin) = match offset < JOURNAL_OFFSET {
                true => (&mut self.metadata, 0),
                false => (&mut self.journal, JOURNAL_OFFSET),
            };
            let at = (offset - begin) as usize;
            if at + length > plane.len() {
                plane.resize(at + length, FOREIGN);
            }
            return (plane, at);
        }
        let at = (offset - LEG_METADATA_BYTES) as usize;
        if at + length > self.data.len() {
            self.data.resize((at + length).next_multiple_of(256 << 10), FOREIGN);
        }
        (&mut self.data, at)
    }
}
