//! What a connection asks of the volume behind a LUN, and what it is told back.

use std::sync::Arc;
use voute_buffer::Buffer;
use voute_reservation::{Access, Nexus, Refusal, Reservations};

/// Names a volume to whoever serves it; opaque here, taken from the LUN's view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VolumeKey(pub u128);

/// Names a surfaced request within its connection; never used twice by one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tag(pub(crate) u64);

impl Tag {
    /// The tag as a number, to be carried through a kernel queue.
    #[must_use]
    pub fn get(self) -> u64 {
        self.0
    }

    /// The tag that [`Tag::get`] gave out. A forged one is harmless: unknown tags are ignored.
    #[must_use]
    pub fn from_raw(raw: u64) -> Self {
        Tag(raw)
    }
}

/// One operation on one volume. It must be answered by exactly one
/// [`complete`](crate::TargetConnection::complete) with its tag, also after the socket has gone.
#[derive(Debug)]
pub struct Request {
    /// To be given back with the outcome.
    pub tag: Tag,
    /// The volume behind the LUN.
    pub volume: VolumeKey,
    /// The initiator's iSCSI name.
    pub host: Arc<str>,
    /// By which reservations know the asker.
    pub nexus: Nexus,
    /// What to do.
    pub operation: Operation,
}

/// A range of logical blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRange {
    /// First block.
    pub lba: u64,
    /// Number of blocks, at least 1.
    pub blocks: u32,
}

/// An operation within the volume's bounds: ranges were checked against the LUN's view. Blocks are of
/// the LUN's block size; data lengths are `blocks × block_size`. A success of any operation that
/// changes data means that the change is durable on every in-sync leg.
#[derive(Debug)]
pub enum Operation {
    /// Read; answered by [`Outcome::Data`].
    Read {
        /// First block.
        lba: u64,
        /// Number of blocks, at least 1.
        blocks: u32,
    },
    /// Write, all data received.
    Write {
        /// First block.
        lba: u64,
        /// Number of blocks, at least 1.
        blocks: u32,
        /// `blocks × block_size` bytes.
        data: Buffer,
    },
    /// Write all of it or nothing, whatever power is lost meanwhile (WRITE ATOMIC).
    WriteAtomic {
        /// First block.
        lba: u64,
        /// Number of blocks, at least 1; they cross no multiple of the unit's `atomic_blocks`.
        blocks: u32,
        /// `blocks × block_size` bytes.
        data: Buffer,
    },
    /// Make all acknowledged writes durable.
    Flush,
    /// Make a range read as zeroes.
    WriteZeroes {
        /// First block.
        lba: u64,
        /// Number of blocks, at least 1.
        blocks: u32,
        /// The host allows the range to be deallocated.
        deallocate: bool,
    },
    /// Deallocate ranges, which read as zeroes afterwards. May be empty, never over
    /// [`UNMAP_DESCRIPTORS_MAX`](crate::scsi::UNMAP_DESCRIPTORS_MAX) long.
    Deallocate {
        /// The ranges; they may overlap.
        ranges: Vec<BlockRange>,
    },
    /// Read a range from the medium without returning it.
    Verify {
        /// First block.
        lba: u64,
        /// Number of blocks, at least 1.
        blocks: u32,
    },
    /// Compare a range with `data`; a difference is [`Outcome::Miscompare`].
    Compare {
        /// First block.
        lba: u64,
        /// Number of blocks, at least 1.
        blocks: u32,
        /// `blocks × block_size` bytes.
        data: Buffer,
    },
    /// Write, then compare what the medium holds with `data` (WRITE AND VERIFY, BYTCHK 1).
    WriteAndCompare {
        /// First block.
        lba: u64,
        /// Number of blocks, at least 1.
        blocks: u32,
        /// `blocks × block_size` bytes.
        data: Buffer,
    },
    /// Atomically against every other operation on the volume: compare, and if equal write.
    CompareAndWrite {
        /// First block.
        lba: u64,
        /// Number of blocks, at least 1.
        blocks: u32,
        /// What must be there.
        compare: Buffer,
        /// What to write in its place.
        write: Buffer,
    },
    /// Atomically replace a range by itself OR `data`.
    OrWrite {
        /// First block.
        lba: u64,
        /// Number of blocks, at least 1.
        blocks: u32,
        /// `blocks × block_size` bytes.
        data: Buffer,
    },
    /// Tell how a range is allocated; answered by [`Outcome::Allocation`], or [`Outcome::Done`] for
    /// "all of it is mapped".
    AllocationStatus {
        /// First block.
        lba: u64,
        /// Number of blocks that the answer may cover, at least 1.
        blocks: u32,
    },
    /// Ask for, change or tell the volume's reservations. A change is to be on every in-sync leg before
    /// it is answered, by [`Outcome::Done`] or, for a report, [`Outcome::Reservations`]; a preemption
    /// that aborts, when no write of its victims is under way any more.
    Reservation(voute_reservation::Request),
    /// Make the ports of another group the active ones (SET TARGET PORT GROUPS): a planned move of the
    /// volume's owner. Done once the move is; [`Failure::MoveRefused`] if it is not to be had this way.
    ActivateGroup {
        /// A target port group of the LUN's view, not active in it.
        group: u16,
    },
}

impl Operation {
    /// By what reservations of others forbid the operation. Requests about reservations themselves
    /// are judged by what they ask for.
    #[must_use]
    pub fn access(&self) -> Access {
        match self {
            // Judged when the command came.
            Operation::Reservation(_) | Operation::ActivateGroup { .. } => Access::Identity,
            // As a write: SPC-4 table 64 names SYNCHRONIZE CACHE among them.
            Operation::Flush => Access::Write,
            other if other.changes_data() => Access::Write,
            _ => Access::Read,
        }
    }

    /// Whether the operation may change what the volume holds.
    #[must_use]
    pub fn changes_data(&self) -> bool {
        match self {
            Operation::Write { .. }
            | Operation::WriteAtomic { .. }
            | Operation::WriteZeroes { .. }
            | Operation::Deallocate { .. }
            | Operation::WriteAndCompare { .. }
            | Operation::CompareAndWrite { .. }
            | Operation::OrWrite { .. } => true,
            Operation::Read { .. }
            | Operation::Flush
            | Operation::Verify { .. }
            | Operation::Compare { .. }
            | Operation::AllocationStatus { .. }
            | Operation::Reservation(_)
            | Operation::ActivateGroup { .. } => false,
        }
    }
}

/// A piece of an allocation map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllocationExtent {
    /// First block.
    pub lba: u64,
    /// Number of blocks.
    pub blocks: u32,
    /// Whether the blocks are mapped; if not, they read as zeroes.
    pub mapped: bool,
}

/// How an operation ended.
#[derive(Debug)]
pub enum Outcome {
    /// Done.
    Done,
    /// Done; the data read, exactly `blocks × block_size` bytes.
    Data(Buffer),
    /// Done; extents in ascending order, adjoining, the first of which holds the asked block.
    Allocation(Vec<AllocationExtent>),
    /// Done; the volume's reservations, to a report.
    Reservations(Arc<Reservations>),
    /// The comparison found a difference; nothing was written by a compare-and-write.
    Miscompare {
        /// Byte offset of the first difference in the compared data.
        offset: u32,
    },
    /// Not done, or not known to be done.
    Failed(Failure),
}

/// Why this path cannot reach the medium now; hosts answer each by trying another path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotReady {
    /// Ownership is moving: 04/0A.
    Transition,
    /// The other site owns the volume: 04/0B.
    Standby,
    /// This node cannot serve the volume: 04/0C.
    Unavailable,
}

/// Why an operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// A path condition, never the medium's: NOT READY 04/0A–0C.
    NotReady(NotReady),
    /// Nothing was done, the host should try again soon: status BUSY.
    Busy,
    /// A range lies beyond the volume: 21/00.
    OutOfRange,
    /// A thin pool is full: 27/07.
    OutOfSpace,
    /// The volume may not be written: 27/00.
    WriteProtected,
    /// No in-sync leg could read this block: 11/00 with the block's address.
    UnreadableMedium {
        /// The first unreadable block.
        lba: u64,
    },
    /// A write could not be made durable on any leg: 0C/00. Never used for one lost leg.
    UnwritableMedium {
        /// The first block concerned.
        lba: u64,
    },
    /// The volume's server does not do this operation: 20/00.
    Unsupported,
    /// The owner is not moved on a host's demand, or could not be: HARDWARE ERROR 67/0A, after which a
    /// host asks for the groups' states again.
    MoveRefused,
    /// A reservation forbids it, or a request about reservations was refused.
    Reservation(Refusal),
    /// The outcome is unknown; the host must retry: ABORTED COMMAND 0B/00.
    Aborted,
}
