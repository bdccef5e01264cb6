//! Commands that an initiator submits.

use std::sync::Arc;

use voute_buffer::Buffer;

use crate::little_endian::put;
use crate::{Fuse, SubmissionEntry, admin_opcode, fabrics_type, io_opcode};

/// Data that goes to the controller. It stays with the connection until the command's outcome is
/// known, which gives it back.
#[derive(Debug, Default)]
pub enum Payload {
    /// No data.
    #[default]
    None,
    /// The command's own buffer.
    Owned(Buffer),
    /// A buffer that several commands send, such as both legs' copies of one write.
    Shared(Arc<Buffer>),
}

impl Payload {
    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        match self {
            Payload::None => &[],
            Payload::Owned(buffer) => buffer,
            Payload::Shared(buffer) => buffer,
        }
    }
}

/// A command to submit. The connection fills in the identifier and the data pointer.
#[derive(Debug, Default)]
pub struct Command {
    /// Opcode.
    pub opcode: u8,
    /// Whether it is half of a fused pair; submit both halves one after the other.
    pub fuse: Fuse,
    /// Namespace identifier; for Fabrics commands the command type.
    pub nsid: u32,
    /// Command dwords 10 to 15.
    pub dwords: [u32; 6],
    /// Data to the controller.
    pub data_out: Payload,
    /// Longest data from the controller, bytes; 0 if none.
    pub data_in_len: usize,
    /// Less data than `data_in_len` is an error.
    pub data_in_exact: bool,
}

impl Command {
    /// Reads `blocks` blocks of `block_size` bytes. `blocks` is 1 to 65536.
    #[must_use]
    pub fn read(nsid: u32, lba: u64, blocks: u32, block_size: u32) -> Self {
        let data_in_len = blocks as usize * block_size as usize;
        Command {
            data_in_len,
            data_in_exact: true,
            ..Self::ranged(io_opcode::READ, nsid, lba, blocks, 0)
        }
    }

    /// Writes `blocks` blocks; `data` holds exactly those.
    #[must_use]
    pub fn write(nsid: u32, lba: u64, blocks: u32, data: Payload, fua: bool) -> Self {
        let control = u32::from(fua) << 30;
        Command { data_out: data, ..Self::ranged(io_opcode::WRITE, nsid, lba, blocks, control) }
    }

    /// Compares `blocks` blocks with `data`.
    #[must_use]
    pub fn compare(nsid: u32, lba: u64, blocks: u32, data: Payload) -> Self {
        Command { data_out: data, ..Self::ranged(io_opcode::COMPARE, nsid, lba, blocks, 0) }
    }

    /// Makes `blocks` blocks read as zero.
    #[must_use]
    pub fn write_zeroes(nsid: u32, lba: u64, blocks: u32, deallocate: bool) -> Self {
        Self::ranged(io_opcode::WRITE_ZEROES, nsid, lba, blocks, u32::from(deallocate) << 25)
    }

    /// Checks that `blocks` blocks are readable.
    #[must_use]
    pub fn verify(nsid: u32, lba: u64, blocks: u32) -> Self {
        Self::ranged(io_opcode::VERIFY, nsid, lba, blocks, 0)
    }

    /// Gives up the data of 1 to 256 ranges of (first block, blocks).
    ///
    /// # Panics
    /// If there are no ranges or more than 256.
    #[must_use]
    pub fn deallocate(nsid: u32, ranges: &[(u64, u32)]) -> Self {
        assert!(
            (1..=256).contains(&ranges.len()),
            "{} ranges do not fit one command",
            ranges.len()
        );
        let mut data = Buffer::zeroed(ranges.len() * 16);
        for (raw, (lba, blocks)) in data.chunks_exact_mut(16).zip(ranges) {
            put(raw, 4, &blocks.to_le_bytes());
            put(raw, 8, &lba.to_le_bytes());
        }
        let dwords = [ranges.len() as u32 - 1, 4, 0, 0, 0, 0];
        let data_out = Payload::Owned(data);
        Command {
            opcode: io_opcode::DATASET_MANAGEMENT,
            nsid,
            dwords,
            data_out,
            ..Command::default()
        }
    }

    /// Waits until everything acknowledged is durable.
    #[must_use]
    pub fn flush(nsid: u32) -> Self {
        Command { opcode: io_opcode::FLUSH, nsid, ..Command::default() }
    }

    /// Reservation Register: `action` is RREGA (0 register, 1 unregister, 2 replace), `persists` is
    /// CPTPL.
    #[must_use]
    pub fn reservation_register(
        nsid: u32,
        action: u8,
        ignores_key: bool,
        persists: Option<bool>,
        [current, new]: [u64; 2],
    ) -> Self {
        let change = persists.map_or(0, |persists| 2 | u32::from(persists));
        let control = u32::from(action) | u32::from(ignores_key) << 3 | change << 30;
        Self::reserving(io_opcode::RESERVATION_REGISTER, nsid, control, &[current, new])
    }

    /// Reservation Acquire: `action` is RACQA (0 acquire, 1 preempt, 2 preempt and abort), `kind` is
    /// RTYPE, the second key the one that is preempted.
    #[must_use]
    pub fn reservation_acquire(nsid: u32, action: u8, kind: u8, keys: [u64; 2]) -> Self {
        let control = u32::from(action) | u32::from(kind) << 8;
        Self::reserving(io_opcode::RESERVATION_ACQUIRE, nsid, control, &keys)
    }

    /// Reservation Release: `action` is RRELA (0 release, 1 clear), `kind` is RTYPE.
    #[must_use]
    pub fn reservation_release(nsid: u32, action: u8, kind: u8, key: u64) -> Self {
        let control = u32::from(action) | u32::from(kind) << 8;
        Self::reserving(io_opcode::RESERVATION_RELEASE, nsid, control, &[key])
    }

    /// Reservation Report of the extended data structure, `length` bytes, a multiple of 4.
    #[must_use]
    pub fn reservation_report(nsid: u32, length: u32) -> Self {
        let dwords = [(length / 4).max(1) - 1, 1, 0, 0, 0, 0];
        let data_in_len = length as usize;
        Command {
            opcode: io_opcode::RESERVATION_REPORT,
            nsid,
            dwords,
            data_in_len,
            ..Command::default()
        }
    }

    fn reserving(opcode: u8, nsid: u32, control: u32, keys: &[u64]) -> Self {
        let keys: Vec<u8> = keys.iter().flat_map(|key| key.to_le_bytes()).collect();
        let data_out = Payload::Owned(Buffer::copy_of(&keys));
        Command { opcode, nsid, dwords: [control, 0, 0, 0, 0, 0], data_out, ..Command::default() }
    }

    /// A command on a link; opcode bits 1:0 must agree with which data there is.
    #[must_use]
    pub fn vendor(
        opcode: u8,
        nsid: u32,
        dwords: [u32; 6],
        data_out: Payload,
        reply_len_max: usize,
    ) -> Self {
        Command { opcode, nsid, dwords, data_out, data_in_len: reply_len_max, ..Command::default() }
    }

    /// Identify: `structure` is the CNS value.
    #[must_use]
    pub fn identify(structure: u8, nsid: u32) -> Self {
        let dwords = [structure.into(), 0, 0, 0, 0, 0];
        Command {
            opcode: admin_opcode::IDENTIFY,
            nsid,
            dwords,
            data_in_len: 4096,
            ..Command::default()
        }
    }

    /// Get Log Page: `length` bytes, a multiple of 4, from `offset`.
    #[must_use]
    pub fn log_page(page: u8, offset: u64, length: u32) -> Self {
        let dwords_less_one = (length / 4).max(1) - 1;
        let dword10 = u32::from(page) | dwords_less_one << 16;
        let dwords = [dword10, dwords_less_one >> 16, offset as u32, (offset >> 32) as u32, 0, 0];
        let data_in_len = length as usize;
        Command {
            opcode: admin_opcode::GET_LOG_PAGE,
            nsid: u32::MAX,
            dwords,
            data_in_len,
            ..Command::default()
        }
    }

    /// Set Features without data.
    #[must_use]
    pub fn set_feature(feature: u8, value: u32) -> Self {
        let dwords = [feature.into(), value, 0, 0, 0, 0];
        Command { opcode: admin_opcode::SET_FEATURES, dwords, ..Command::default() }
    }

    /// Get Features without data.
    #[must_use]
    pub fn get_feature(feature: u8) -> Self {
        Command {
            opcode: admin_opcode::GET_FEATURES,
            dwords: [feature.into(), 0, 0, 0, 0, 0],
            ..Command::default()
        }
    }

    /// Asynchronous Event Request; has no time limit.
    #[must_use]
    pub fn async_event_request() -> Self {
        Command { opcode: admin_opcode::ASYNC_EVENT_REQUEST, ..Command::default() }
    }

    /// Keep Alive.
    #[must_use]
    pub fn keep_alive() -> Self {
        Command { opcode: admin_opcode::KEEP_ALIVE, ..Command::default() }
    }

    /// Property Get; `wide` for 8-byte properties.
    #[must_use]
    pub fn property_get(offset: u32, wide: bool) -> Self {
        let (nsid, dwords) = (fabrics_type::PROPERTY_GET.into(), [wide.into(), offset, 0, 0, 0, 0]);
        Command { opcode: admin_opcode::FABRICS, nsid, dwords, ..Command::default() }
    }

    /// Property Set of a 4-byte property.
    #[must_use]
    pub fn property_set(offset: u32, value: u32) -> Self {
        let (nsid, dwords) = (fabrics_type::PROPERTY_SET.into(), [0, offset, value, 0, 0, 0]);
        Command { opcode: admin_opcode::FABRICS, nsid, dwords, ..Command::default() }
    }

    /// Authentication Send of a DH-HMAC-CHAP message.
    pub(crate) fn authentication_send(message: &[u8]) -> Self {
        let data_out = Payload::Owned(Buffer::copy_of(message));
        let kind = fabrics_type::AUTHENTICATION_SEND;
        Command { data_out, ..Self::authentication(kind, message.len() as u32) }
    }

    /// Authentication Receive of a message of at most `length` bytes.
    pub(crate) fn authentication_receive(length: u32) -> Self {
        let data_in_len = length as usize;
        let kind = fabrics_type::AUTHENTICATION_RECEIVE;
        Command { data_in_len, ..Self::authentication(kind, length) }
    }

    fn authentication(kind: u8, length: u32) -> Self {
        // SPSP0 and SPSP1 are 1, SECP is that of DH-HMAC-CHAP.
        let dwords = [0xE901_0100, length, 0, 0, 0, 0];
        Command { opcode: admin_opcode::FABRICS, nsid: kind.into(), dwords, ..Command::default() }
    }

    /// Disconnect, which ends the I/O queue that it is sent on.
    #[must_use]
    pub fn disconnect() -> Self {
        let nsid = fabrics_type::DISCONNECT.into();
        Command { opcode: admin_opcode::FABRICS, nsid, ..Command::default() }
    }

    fn ranged(opcode: u8, nsid: u32, lba: u64, blocks: u32, control: u32) -> Self {
        let count = blocks.max(1) - 1;
        let dwords = [lba as u32, (lba >> 32) as u32, count & 0xFFFF | control, 0, 0, 0];
        Command { opcode, nsid, dwords, ..Command::default() }
    }

    /// The entry without identifier and data pointer.
    pub(super) fn entry(&self) -> SubmissionEntry {
        let mut entry = SubmissionEntry::new(self.opcode, self.nsid);
        entry.set_fuse(self.fuse);
        for (index, dword) in self.dwords.into_iter().enumerate() {
            entry.set_dword(10 + index, dword);
        }
        entry
    }
}
