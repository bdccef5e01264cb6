//! A node's device: metadata as bytes, data as one number per block. What was carried out survives.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use voute_buffer::Buffer;
use voute_mirror::header::Header;
use voute_mirror::{DeviceKind, DeviceRequest};
use voute_schemas::place::LEG_METADATA_BYTES;

/// Logical block, and region of the maps: the volume is one of them.
pub(crate) const BLOCK: u64 = 4096;
const HEADERS: u64 = 2;
/// Where the dirty plane begins in a page of a map, and where the written plane.
const PLANES: [usize; 2] = [0, 2048];

/// A block that holds a number.
pub(crate) fn block_of(value: u64) -> Buffer {
    let mut block = Buffer::zeroed(BLOCK as usize);
    block[..8].copy_from_slice(&value.to_le_bytes());
    block
}

/// The number that a block holds; `None` if it is no block of this model.
pub(crate) fn value_of(block: &[u8]) -> Option<u64> {
    let (number, rest) = block.split_at_checked(8)?;
    let number = u64::from_le_bytes(number.try_into().ok()?);
    rest.iter().all(|byte| *byte == 0).then_some(number)
}

/// What a block holds that was never written: another tenant's bytes.
const FOREIGN: u64 = u64::MAX;

#[derive(Clone, Debug, Default)]
pub(crate) struct Disk {
    metadata: BTreeMap<u64, Arc<[u8]>>,
    data: BTreeMap<u64, u64>,
}

impl Disk {
    pub(crate) fn carry_out(&mut self, request: &DeviceRequest) -> Option<Buffer> {
        let first = request.offset / BLOCK;
        match &request.kind {
            DeviceKind::Read { length } => Some(self.read(first, *length as usize)),
            DeviceKind::Write { data } => {
                for (block, bytes) in (first..).zip(data.chunks(BLOCK as usize)) {
                    self.write(block, bytes);
                }
                None
            }
            DeviceKind::Zero { length, .. } => {
                for block in first..first + length / BLOCK {
                    self.write(block, &[0; BLOCK as usize]);
                }
                None
            }
        }
    }

    fn write(&mut self, block: u64, bytes: &[u8]) {
        if block < LEG_METADATA_BYTES / BLOCK {
            self.metadata.insert(block, bytes.into());
        } else {
            self.data.insert(block, value_of(bytes).unwrap_or(FOREIGN));
        }
    }

    fn read(&self, first: u64, length: usize) -> Buffer {
        let mut buffer = Buffer::zeroed(length);
        for (block, bytes) in (first..).zip(buffer.chunks_mut(BLOCK as usize)) {
            if let Some(stored) = self.metadata.get(&block) {
                bytes.copy_from_slice(&stored[..bytes.len()]);
            } else {
                let value = self.data.get(&block).copied().unwrap_or(FOREIGN);
                bytes[..8].copy_from_slice(&value.to_le_bytes());
            }
        }
        buffer
    }

    /// What the volume's block holds.
    pub(crate) fn value(&self) -> u64 {
        self.data.get(&(LEG_METADATA_BYTES / BLOCK)).copied().unwrap_or(FOREIGN)
    }

    /// The header that a process that starts would read.
    pub(crate) fn header(&self) -> Option<Header> {
        let copies = (0..HEADERS).filter_map(|slot| self.metadata.get(&slot));
        copies.filter_map(|bytes| Header::decode(bytes)).max_by_key(|header| header.generation)
    }

    /// What matters of it: of the two slots of a header or page only the newer is ever read, since no
    /// write is torn within a page.
    pub(crate) fn describe(&self, text: &mut String) {
        let _ = write!(text, "disk {:?} V{} ", self.header(), self.value());
        let pages: Vec<_> =
            (HEADERS..HEADERS + 2).filter_map(|at| self.metadata.get(&at)).collect();
        let newest = pages.into_iter().max_by_key(|page| generation_of(page));
        if let Some(page) = newest {
            describe_page(page, text);
        }
    }
}

/// A page's first sector says its generation: nothing is torn here, so the others say the same.
fn generation_of(page: &[u8]) -> Option<u32> {
    page.get(504..508)?.try_into().ok().map(u32::from_le_bytes)
}

fn describe_page(page: &[u8], text: &mut String) {
    for plane in PLANES {
        let _ = write!(text, "plane {} ", page.get(plane).copied().unwrap_or(0xFF));
    }
}

/// What a request on its way to the device would change.
pub(crate) fn describe_request(request: &DeviceRequest, text: &mut String) {
    let DeviceRequest { tag, leg: _, offset, kind } = request;
    let _ = write!(text, "{tag:?} at {offset} ");
    match kind {
        DeviceKind::Write { data } if *offset < HEADERS * BLOCK => {
            let _ = write!(text, "header {:?} ", Header::decode(data));
        }
        DeviceKind::Write { data } if *offset < LEG_METADATA_BYTES => describe_page(data, text),
        DeviceKind::Write { data } => {
            let _ = write!(text, "V{} ", value_of(data).unwrap_or(FOREIGN));
        }
        DeviceKind::Read { .. } | DeviceKind::Zero { .. } => {
            let _ = write!(text, "{kind:?} ");
        }
    }
}
