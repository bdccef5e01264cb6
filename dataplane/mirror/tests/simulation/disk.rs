//! A disk: what was carried out survives a crash; what was under way may, in part.

use super::BLOCK;
use std::collections::HashMap;
use voute_buffer::Buffer;
use voute_mirror::{DeviceKind, DeviceRequest};

#[derive(Default)]
pub struct Disk {
    blocks: HashMap<u64, Vec<u8>>,
}

impl Disk {
    pub fn carry_out(&mut self, request: DeviceRequest) -> Result<Option<Buffer>, ()> {
        match request.kind {
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

    /// A crash meets a request: it is lost (0), done (1), or done in some blocks.
    pub fn tear(&mut self, request: &DeviceRequest, fate: u64, which: u64) {
        match &request.kind {
            DeviceKind::Write { data } if fate > 0 => self
                .write(request.offset, data, |block| fate == 1 || which >> (block % 64) & 1 == 1),
            DeviceKind::Zero { length, .. } if fate == 1 => self.zero(request.offset, *length),
            DeviceKind::Zero { .. } | DeviceKind::Write { .. } | DeviceKind::Read { .. } => {}
        }
    }

    fn read(&self, offset: u64, length: usize) -> Buffer {
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

    fn write(&mut self, offset: u64, data: &[u8], keep: impl Fn(u64) -> bool) {
        assert_eq!(offset % BLOCK, 0);
        for (index, chunk) in
            data.chunks(BLOCK as usize).enumerate().filter(|(index, _)| keep(*index as u64))
        {
            self.blocks.insert(offset / BLOCK + index as u64, chunk.to_vec());
        }
    }

    fn zero(&mut self, offset: u64, length: u64) {
        for block in offset / BLOCK..(offset + length) / BLOCK {
            self.blocks.insert(block, vec![0; BLOCK as usize]);
        }
    }
}
