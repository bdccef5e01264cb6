//! SCSI: what a command descriptor block means for a volume, without any transport in it.
//!
//! [`plan`](command::plan) turns a CDB into an answer, an operation for the volume, or a wish for
//! data; [`finish`](command::finish) goes on once the data is there.

pub(crate) mod alua;
pub(crate) mod cdb;
pub(crate) mod command;
pub(crate) mod copy;
pub(crate) mod copy_results;
mod inquiry;
mod log;
mod mode;
pub(crate) mod opcodes;
pub(crate) mod reservation;
mod reservation_out;
mod sense;
mod unit;

pub(crate) use sense::{Attention, Sense};
pub(crate) use unit::SharedUnit;

/// Most bytes of one READ, WRITE or VERIFY; told in the block limits page.
pub const TRANSFER_BYTES_MAX: u32 = 8 << 20;
/// Most bytes that one WRITE SAME covers; told in the block limits page.
pub const WRITE_SAME_BYTES_MAX: u32 = 16 << 20;
/// Most blocks of COMPARE AND WRITE: what a power cut cannot tear.
pub const COMPARE_AND_WRITE_BLOCKS_MAX: u8 = 1;
/// Most ranges of one UNMAP.
pub const UNMAP_DESCRIPTORS_MAX: u32 = 256;
/// Most blocks over all ranges of one UNMAP.
pub const UNMAP_BLOCKS_MAX: u32 = 1 << 20;
/// What UNMAP frees best, bytes: below one MiB, so that ESXi unmaps by itself.
pub const UNMAP_GRANULARITY_BYTES: u32 = 64 << 10;

/// Status codes (SAM-5 §5.3.1).
pub mod status {
    /// Done.
    pub const GOOD: u8 = 0x00;
    /// Sense data tells what happened.
    pub const CHECK_CONDITION: u8 = 0x02;
    /// Try again soon.
    pub const BUSY: u8 = 0x08;
    /// Another I_T nexus holds a reservation.
    pub const RESERVATION_CONFLICT: u8 = 0x18;
    /// Try again when a command has ended.
    pub const TASK_SET_FULL: u8 = 0x28;
    /// Ended by another session or by task management.
    pub const TASK_ABORTED: u8 = 0x40;
}
