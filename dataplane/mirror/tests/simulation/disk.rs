//! A disk: what was carried out survives a crash; what was under way may, in part. It may fail for a
//! while, be full, lose blocks, or forget everything.

use super::BLOCK;
use std::collections::{BTreeSet, HashMap};
use std::time::Duration;
use voute_buffer::Buffer;
use voute_mirror::{DeviceFault, DeviceKind, DeviceRequest};

/// What a disk does not do at present.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ailment {
    /// Everything fails.
    Dead,
    /// Writes fail, of data and metadata alike.
    ReadOnly,
    /// There is no room for data.
    Full,
    /// Every third write fails.
    Flaky,
    /// Some blocks of data cannot be read until they are written.
    BadBlocks(u64),
    /// Every read fails, and nothing says why: a device without a path to it.
    NoReads,
}

#[derive(Default)]
pub struct Disk {
    blocks: HashMap<u64, Vec<u8>>,
    pub ailment: Option<Ailment>,
    /// Blocks that cannot be read until they are written.
    pub bad: BTreeSet<u64>,
    /// Blocks that it reads slowly, and how slowly.
    pub slow: (BTreeSet<u64>, Duration),
    /// It says of bad blocks only that the read failed.
    pub is_terse: bool,
    writes: u64,
}

/// Where data begins: after header and maps.
const DATA_BEGIN: u64 = voute_schemas::place::LEG_METADATA_BYTES;

impl Disk {
    pub fn carry_out(&mut self, request: DeviceRequest) -> Result<Option<Buffer>, DeviceFault> {
        if let Some(fault) = self.fault(&request) {
            // A write that failed may have reached some blocks.
            self.writes += 1;
            self.tear(&request, self.writes % 3, self.writes.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            return Err(fault);
        }
        match request.kind {
            DeviceKind::Read { length } if self.is_bad(request.offset, length) => {
                Err(if self.is_terse { DeviceFault::Unclear } else { DeviceFault::Medium })
            }
            DeviceKind::Read { length } => Ok(Some(self.read(request.offset, length as usize))),
            DeviceKind::Write { data } => {
                self.write(request.offset, &data, |_| true);
                Ok(None)
            }
            DeviceKind::Zero { length, .. } => {
                self.zero(request.offset, length);
                Ok(None)
            }
        }
    }

    /// How much longer a request takes than others do.
    pub fn delay_of(&self, request: &DeviceRequest) -> Duration {
        let DeviceKind::Read { length } = request.kind else { return Duration::ZERO };
        let end = request.offset + u64::from(length);
        let mut slow = self.slow.0.range(request.offset / BLOCK..end.div_ceil(BLOCK));
        if slow.next().is_some() { self.slow.1 } else { Duration::ZERO }
    }

    /// A block of data takes long to read.
    pub fn slow_down(&mut self, block: u64, by: Duration) {
        self.slow.0.insert(DATA_BEGIN / BLOCK + block);
        self.slow.1 = by;
    }

    fn is_bad(&self, offset: u64, length: u32) -> bool {
        let end = offset + u64::from(length);
        self.bad.range(offset / BLOCK..end.div_ceil(BLOCK)).next().is_some()
    }

    /// Turns a bit of a block of data around, if it was ever written; whether it was.
    pub fn spoil(&mut self, block: u64) -> bool {
        let found = self.blocks.get_mut(&(DATA_BEGIN / BLOCK + block));
        found.map(|bytes| bytes[4_000] ^= 16).is_some()
    }

    /// How many bad blocks ever held something.
    pub fn damaged_and_written(&self) -> u64 {
        self.bad.iter().filter(|block| self.blocks.contains_key(block)).count() as u64
    }

    /// A block of data can be read no more.
    pub fn damage(&mut self, block: u64) {
        self.bad.insert(DATA_BEGIN / BLOCK + block);
    }

    fn fault(&mut self, request: &DeviceRequest) -> Option<DeviceFault> {
        let is_read = matches!(request.kind, DeviceKind::Read { .. });
        let is_data = request.offset >= DATA_BEGIN;
        match self.ailment? {
            Ailment::Dead => Some(DeviceFault::Failed),
            Ailment::ReadOnly => (!is_read).then_some(DeviceFault::Failed),
            Ailment::Full => (!is_read && is_data).then_some(DeviceFault::NoSpace),
            Ailment::Flaky => {
                self.writes += 1;
                (!is_read && self.writes.is_multiple_of(3)).then_some(DeviceFault::Failed)
            }
            Ailment::NoReads => is_read.then_some(DeviceFault::Unclear),
            Ailment::BadBlocks(which) => {
                let block = request.offset / BLOCK;
                (is_read && is_data && (block % 7 == which % 7)).then_some(DeviceFault::Medium)
            }
        }
    }

    /// A memory's process ended.
    pub fn forget(&mut self) {
        self.blocks.clear();
    }

    /// A crash meets a request: it is lost (0), done (1), or done in some blocks.
    pub fn tear(&mut self, request: &DeviceRequest, fate: u64, which: u64) {
        match &request.kind {
            DeviceKind::Write { data } if fate > 0 => self
                .write(request.offset, data, |block| fate == 1 || which >> (block % 64) & 1 == 1),
            DeviceKind::Zero { length, .. } if fate == 1 => self.zero(request.offset, *length),
            DeviceKind::Zero { .. } | DeviceKind::Write { .. } | DeviceKind::Read { .. } => {}
        }
    }

    pub fn read(&self, offset: u64, length: usize) -> Buffer {
        assert_eq!(offset % BLOCK, 0);
        let mut buffer = Buffer::zeroed(length);
        for (index, chunk) in buffer.chunks_mut(BLOCK as usize).enumerate() {
            match self.blocks.get(&(offset / BLOCK + index as u64)) {
                Some(block) => chunk.copy_from_slice(block),
                // What was never written holds another tenant's bytes.
                None => chunk.fill(0xEE),
            }
        }
        buffer
    }

    pub fn write(&mut self, offset: u64, data: &[u8], keep: impl Fn(u64) -> bool) {
        assert_eq!(offset % BLOCK, 0);
        for (index, chunk) in
            data.chunks(BLOCK as usize).enumerate().filter(|(index, _)| keep(*index as u64))
        {
            self.blocks.insert(offset / BLOCK + index as u64, chunk.to_vec());
            self.bad.remove(&(offset / BLOCK + index as u64));
        }
    }

    fn zero(&mut self, offset: u64, length: u64) {
        for block in offset / BLOCK..(offset + length) / BLOCK {
            self.blocks.insert(block, vec![0; BLOCK as usize]);
            self.bad.remove(&block);
        }
    }
}
