//! Submission and completion queue entries and the numbers in them (NVMe Base 2.0 §3.3.3, Fabrics
//! command forms included).

use crate::Status;
use crate::little_endian::{put, u16_at, u32_at, u64_at};

/// Length of a submission queue entry, bytes.
pub const SUBMISSION_ENTRY_LENGTH: usize = 64;
/// Length of a completion queue entry, bytes.
pub const COMPLETION_ENTRY_LENGTH: usize = 16;

/// Admin command opcodes.
pub mod admin_opcode {
    /// Get Log Page.
    pub const GET_LOG_PAGE: u8 = 0x02;
    /// Identify.
    pub const IDENTIFY: u8 = 0x06;
    /// Abort.
    pub const ABORT: u8 = 0x08;
    /// Set Features.
    pub const SET_FEATURES: u8 = 0x09;
    /// Get Features.
    pub const GET_FEATURES: u8 = 0x0A;
    /// Asynchronous Event Request.
    pub const ASYNC_EVENT_REQUEST: u8 = 0x0C;
    /// Keep Alive.
    pub const KEEP_ALIVE: u8 = 0x18;
    /// Fabrics commands, on any queue.
    pub const FABRICS: u8 = 0x7F;
}

/// NVM command set opcodes.
pub mod io_opcode {
    /// Flush.
    pub const FLUSH: u8 = 0x00;
    /// Write.
    pub const WRITE: u8 = 0x01;
    /// Read.
    pub const READ: u8 = 0x02;
    /// Compare.
    pub const COMPARE: u8 = 0x05;
    /// Write Zeroes.
    pub const WRITE_ZEROES: u8 = 0x08;
    /// Dataset Management.
    pub const DATASET_MANAGEMENT: u8 = 0x09;
    /// Verify.
    pub const VERIFY: u8 = 0x0C;
    /// Reservation Register.
    pub const RESERVATION_REGISTER: u8 = 0x0D;
    /// Reservation Report.
    pub const RESERVATION_REPORT: u8 = 0x0E;
    /// Reservation Acquire.
    pub const RESERVATION_ACQUIRE: u8 = 0x11;
    /// Reservation Release.
    pub const RESERVATION_RELEASE: u8 = 0x15;
}

/// Fabrics command types (byte 4 of a command with opcode 7Fh).
pub mod fabrics_type {
    /// Property Set.
    pub const PROPERTY_SET: u8 = 0x00;
    /// Connect.
    pub const CONNECT: u8 = 0x01;
    /// Property Get.
    pub const PROPERTY_GET: u8 = 0x04;
    /// Authentication Send.
    pub const AUTHENTICATION_SEND: u8 = 0x05;
    /// Authentication Receive.
    pub const AUTHENTICATION_RECEIVE: u8 = 0x06;
    /// Disconnect.
    pub const DISCONNECT: u8 = 0x08;
}

/// Which way a command's data goes, from opcode bits 1:0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// No data (00b).
    None,
    /// Host to controller (01b).
    ToController,
    /// Controller to host (10b).
    ToHost,
    /// Both ways (11b); used on links only.
    Both,
}

impl Direction {
    /// The direction that an opcode's low bits state.
    #[must_use]
    pub const fn of_opcode(opcode: u8) -> Self {
        match opcode & 3 {
            0 => Direction::None,
            1 => Direction::ToController,
            2 => Direction::ToHost,
            _ => Direction::Both,
        }
    }

    /// Whether the host sends data.
    #[must_use]
    pub const fn sends(self) -> bool {
        matches!(self, Direction::ToController | Direction::Both)
    }

    /// Whether the host receives data.
    #[must_use]
    pub const fn receives(self) -> bool {
        matches!(self, Direction::ToHost | Direction::Both)
    }
}

/// The FUSE field: whether a command is half of a fused pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Fuse {
    /// A command of its own.
    #[default]
    Normal,
    /// First half.
    First,
    /// Second half.
    Second,
}

/// Where a command's data is, from its first SGL descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataPointer {
    /// In the capsule, `length` bytes at `offset` (data block descriptor, type 0h subtype 1h).
    InCapsule {
        /// Bytes from the start of the capsule's data.
        offset: u64,
        /// Bytes.
        length: u32,
    },
    /// Moved by R2T or C2HData (transport data block descriptor, type 5h subtype Ah).
    Transport {
        /// Bytes.
        length: u32,
    },
    /// A descriptor that NVMe/TCP does not use.
    Other(u8),
}

const SGL_IN_CAPSULE: u8 = 0x01;
const SGL_TRANSPORT: u8 = 0x5A;
/// PSDT 01b: SGLs are used, as every Fabrics command must say.
const FLAGS_SGL: u8 = 0x40;

/// A command as it stands in a capsule.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SubmissionEntry(pub [u8; SUBMISSION_ENTRY_LENGTH]);

impl Default for SubmissionEntry {
    fn default() -> Self {
        SubmissionEntry([0; SUBMISSION_ENTRY_LENGTH])
    }
}

impl SubmissionEntry {
    /// A command with the fields that every command has.
    #[must_use]
    pub fn new(opcode: u8, namespace: u32) -> Self {
        let mut entry = Self::default();
        entry.0[0] = opcode;
        entry.0[1] = FLAGS_SGL;
        put(&mut entry.0, 4, &namespace.to_le_bytes());
        entry
    }

    /// A Fabrics command of `kind` (see [`fabrics_type`]).
    #[must_use]
    pub fn fabrics(kind: u8) -> Self {
        let mut entry = Self::new(admin_opcode::FABRICS, 0);
        entry.0[4] = kind;
        entry
    }

    /// Opcode.
    #[must_use]
    pub fn opcode(&self) -> u8 {
        self.0[0]
    }

    /// The FUSE field; `None` for the reserved value 11b.
    #[must_use]
    pub fn fuse(&self) -> Option<Fuse> {
        match self.0[1] & 3 {
            0 => Some(Fuse::Normal),
            1 => Some(Fuse::First),
            2 => Some(Fuse::Second),
            _ => None,
        }
    }

    /// Sets the FUSE field.
    pub fn set_fuse(&mut self, fuse: Fuse) {
        let bits = match fuse {
            Fuse::Normal => 0,
            Fuse::First => 1,
            Fuse::Second => 2,
        };
        self.0[1] = self.0[1] & !3 | bits;
    }

    /// Command identifier.
    #[must_use]
    pub fn command_id(&self) -> u16 {
        u16_at(&self.0, 2)
    }

    /// Sets the command identifier.
    pub fn set_command_id(&mut self, id: u16) {
        put(&mut self.0, 2, &id.to_le_bytes());
    }

    /// Namespace identifier.
    #[must_use]
    pub fn namespace(&self) -> u32 {
        u32_at(&self.0, 4)
    }

    /// Fabrics command type; meaningful for opcode 7Fh.
    #[must_use]
    pub fn fabrics_type(&self) -> u8 {
        self.0[4]
    }

    /// Command dword `index`, 0 to 15.
    #[must_use]
    pub fn dword(&self, index: usize) -> u32 {
        u32_at(&self.0, index * 4)
    }

    /// Sets command dword `index`, 0 to 15.
    pub fn set_dword(&mut self, index: usize, value: u32) {
        put(&mut self.0, index * 4, &value.to_le_bytes());
    }

    /// Two dwords as one 64-bit number, the lower at `index`.
    #[must_use]
    pub fn quadword(&self, index: usize) -> u64 {
        u64_at(&self.0, index * 4)
    }

    /// Dwords 10 to 15.
    #[must_use]
    pub fn dwords_10_to_15(&self) -> [u32; 6] {
        std::array::from_fn(|index| self.dword(10 + index))
    }

    /// On a link, the longest reply that the sender of a two-way command takes, bytes. It stands in
    /// the low half of the metadata pointer, which no command of ours uses.
    #[must_use]
    pub fn reply_length_max(&self) -> u32 {
        self.dword(4)
    }

    /// Sets [`Self::reply_length_max`].
    pub fn set_reply_length_max(&mut self, length: u32) {
        self.set_dword(4, length);
    }

    /// Where the data is.
    #[must_use]
    pub fn data_pointer(&self) -> DataPointer {
        let length = u32_at(&self.0, 32);
        match self.0[39] {
            SGL_IN_CAPSULE => DataPointer::InCapsule { offset: u64_at(&self.0, 24), length },
            SGL_TRANSPORT => DataPointer::Transport { length },
            other => DataPointer::Other(other),
        }
    }

    /// Says that `length` bytes are in the capsule.
    pub fn point_in_capsule(&mut self, length: u32) {
        self.point(SGL_IN_CAPSULE, length);
    }

    /// Says that `length` bytes are moved by the transport.
    pub fn point_transport(&mut self, length: u32) {
        self.point(SGL_TRANSPORT, length);
    }

    fn point(&mut self, descriptor: u8, length: u32) {
        self.0[24..40].fill(0);
        put(&mut self.0, 32, &length.to_le_bytes());
        self.0[39] = descriptor;
    }
}

/// A completion as it stands in a response capsule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompletionEntry {
    /// Dword 0, command specific.
    pub dw0: u32,
    /// Dword 1, command specific.
    pub dw1: u32,
    /// Submission queue head pointer.
    pub queue_head: u16,
    /// Identifier of the command that completed.
    pub command_id: u16,
    /// How it went.
    pub status: Status,
}

impl CompletionEntry {
    /// The entry's 16 bytes; the submission queue identifier is reserved in Fabrics and stays zero.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; COMPLETION_ENTRY_LENGTH] {
        let mut bytes = [0; COMPLETION_ENTRY_LENGTH];
        put(&mut bytes, 0, &self.dw0.to_le_bytes());
        put(&mut bytes, 4, &self.dw1.to_le_bytes());
        put(&mut bytes, 8, &self.queue_head.to_le_bytes());
        put(&mut bytes, 12, &self.command_id.to_le_bytes());
        put(&mut bytes, 14, &self.status.to_field().to_le_bytes());
        bytes
    }

    /// Reads an entry; bytes past the end of a short slice count as zero.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        CompletionEntry {
            dw0: u32_at(bytes, 0),
            dw1: u32_at(bytes, 4),
            queue_head: u16_at(bytes, 8),
            command_id: u16_at(bytes, 12),
            status: Status::from_field(u16_at(bytes, 14)),
        }
    }
}
