//! What a target connection asks of the volume layer, and the answers.

use std::sync::Arc;

use voute_buffer::Buffer;
use voute_reservation::{Access, Reservations};

use crate::Status;

/// Names one request of one connection until it is completed. Never reused on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tag(pub(crate) u64);

impl Tag {
    /// The tag as a number, for completion records that carry 64 bits.
    #[must_use]
    pub const fn to_bits(self) -> u64 {
        self.0
    }

    /// The tag that [`Self::to_bits`] gave.
    #[must_use]
    pub const fn from_bits(bits: u64) -> Self {
        Tag(bits)
    }
}

/// One host's association with one controller.
#[derive(Debug, PartialEq, Eq)]
pub struct Association {
    /// NQN of the subsystem.
    pub subsystem: String,
    /// NQN of the host.
    pub host: String,
    /// The host's 128-bit identifier.
    pub host_id: [u8; 16],
    /// The controller's identifier.
    pub controller: u16,
}

/// On whose behalf a request comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// A host's, for one of its namespaces.
    Host {
        /// Which host, by which controller.
        association: Arc<Association>,
        /// The namespace.
        nsid: u32,
        /// The UUID that the directory gave that namespace.
        uuid: [u8; 16],
    },
    /// Another node's. Not authenticated by this crate: that is the layer above's first command.
    Link {
        /// The NQN that the peer gave.
        peer: Arc<str>,
    },
}

/// One request. It is to be completed exactly once.
#[derive(Debug)]
pub struct Request {
    /// To complete it with.
    pub tag: Tag,
    /// Who asks.
    pub scope: Scope,
    /// What for.
    pub operation: Operation,
}

/// What is asked for. Ranges of host requests lie inside the namespace, lengths within MDTS, and
/// data is wholly received.
#[derive(Debug)]
pub enum Operation {
    /// Answer with [`Outcome::Data`] of exactly `blocks` blocks.
    Read {
        /// First block.
        lba: u64,
        /// Blocks, at least 1.
        blocks: u32,
    },
    /// Durable when done, whatever `fua` says: hosts see no volatile cache.
    Write {
        /// First block.
        lba: u64,
        /// Blocks, at least 1.
        blocks: u32,
        /// Exactly `blocks` blocks.
        data: Buffer,
        /// The host's FUA bit.
        fua: bool,
    },
    /// Everything acknowledged is durable.
    Flush,
    /// The range reads as zero afterwards.
    WriteZeroes {
        /// First block.
        lba: u64,
        /// Blocks, at least 1, up to 65536.
        blocks: u32,
        /// The blocks may be unmapped (DEAC).
        deallocate: bool,
    },
    /// The host no longer needs these ranges; they read as zero afterwards.
    Deallocate {
        /// (first block, blocks), at most 256.
        ranges: Vec<(u64, u32)>,
    },
    /// Done if equal, else [`Status::compare_failure`].
    Compare {
        /// First block.
        lba: u64,
        /// Blocks, at least 1.
        blocks: u32,
        /// Exactly `blocks` blocks.
        data: Buffer,
    },
    /// A fused pair, to be executed atomically: write if equal, else [`Status::compare_failure`].
    CompareAndWrite {
        /// First block.
        lba: u64,
        /// Blocks, up to the announced ACWU.
        blocks: u32,
        /// What must be there.
        compare: Buffer,
        /// What is written then.
        write: Buffer,
    },
    /// Readable without returning the data.
    Verify {
        /// First block.
        lba: u64,
        /// Blocks, at least 1.
        blocks: u32,
    },
    /// Ask for, change or tell the volume's reservations. A change is to be on every in-sync leg before
    /// it is answered, by [`Outcome::Done`] or, for a report, [`Outcome::Reservations`]; a preemption
    /// that aborts, when no write of its victims is under way any more. Comes on admin queues too
    /// (feature 83h).
    Reservation(voute_reservation::Request),
    /// Judge what a host proves: [`crate::Authentication::perform`], off the data path if possible, and
    /// complete with what it gives. A failure ends the connection.
    Authenticate(crate::Authentication),
    /// Any I/O command on a link, opcode and fields untouched. Low opcode bits say which way data
    /// goes (see [`crate::Direction`]).
    Vendor {
        /// Opcode, 00h to 7Eh and 80h to FFh.
        opcode: u8,
        /// Namespace identifier field, any value.
        nsid: u32,
        /// Command dwords 10 to 15.
        dwords: [u32; 6],
        /// What the peer sent; empty if nothing.
        data: Buffer,
        /// The longest reply that the peer takes, bytes; 0 if none.
        reply_len_max: u32,
    },
}

impl Operation {
    /// By what reservations of others forbid the operation (NVMe Base 2.0, figure "Command Behavior in
    /// the Presence of a Reservation"). Requests about reservations themselves are judged by what they
    /// ask for.
    #[must_use]
    pub fn access(&self) -> Access {
        match self {
            Operation::Read { .. } | Operation::Compare { .. } | Operation::Verify { .. } => {
                Access::Read
            }
            Operation::Write { .. }
            | Operation::Flush
            | Operation::WriteZeroes { .. }
            | Operation::Deallocate { .. }
            | Operation::CompareAndWrite { .. } => Access::Write,
            Operation::Reservation(_) | Operation::Authenticate(_) | Operation::Vendor { .. } => {
                Access::Identity
            }
        }
    }
}

/// How a request went.
#[derive(Debug)]
pub enum Outcome {
    /// Success without data.
    Done,
    /// Success with the data that was read, or a vendor reply of at most `reply_len_max` bytes.
    Data(Buffer),
    /// Success with a command-specific result.
    Result {
        /// Completion dword 0.
        dw0: u32,
        /// Completion dword 1.
        dw1: u32,
    },
    /// Success with data and a command-specific result.
    DataWithResult {
        /// The reply.
        data: Buffer,
        /// Completion dword 0.
        dw0: u32,
        /// Completion dword 1.
        dw1: u32,
    },
    /// Success; the volume's reservations, to a report.
    Reservations(Arc<Reservations>),
    /// What [`crate::Authentication::perform`] gave.
    Authenticated(crate::AuthenticationState),
    /// Failure.
    Failed(Status),
}
