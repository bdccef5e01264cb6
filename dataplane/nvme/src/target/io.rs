//! Decoding of NVM commands against the namespaces that the host sees (NVM Command Set 1.0 §3).

use voute_buffer::Buffer;

use super::TargetLimits;
use super::reservation;
use crate::little_endian::{u32_at, u64_at};
use crate::{
    AnaState, Direction, HOST_TRANSFER_MAX, HostView, LINK_TRANSFER_MAX, NamespaceView, Operation,
    Status, SubmissionEntry, admin_opcode, io_opcode,
};

/// The data that a command needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Demand {
    pub(super) direction: Direction,
    pub(super) length_min: usize,
    pub(super) length_max: usize,
}

impl Demand {
    pub(super) const NONE: Demand =
        Demand { direction: Direction::None, length_min: 0, length_max: 0 };

    pub(super) const fn exactly(direction: Direction, length: usize) -> Self {
        Demand { direction, length_min: length, length_max: length }
    }

    /// Anything from `length` up: for commands whose host buffer may be longer than what they use.
    pub(super) const fn at_least(direction: Direction, length: usize) -> Self {
        Demand { direction, length_min: length, length_max: HOST_TRANSFER_MAX }
    }
}

/// A range of blocks that lies inside its namespace.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Blocks {
    lba: u64,
    blocks: u32,
}

#[derive(Clone, Copy)]
enum Decoded {
    Read(Blocks),
    Write(Blocks, bool),
    Flush,
    WriteZeroes(Blocks, bool),
    Compare(Blocks),
    Verify(Blocks),
    /// Number of ranges, and whether they are to be deallocated.
    Ranges(usize, bool),
}

const RANGE_LENGTH: usize = 16;
const FUA: u32 = 1 << 30;
const DEALLOCATE: u32 = 1 << 25;

/// What data the command moves, or why it is refused.
pub(super) fn demand(view: &HostView, entry: &SubmissionEntry) -> Result<Demand, Status> {
    // Where a command has its namespace, these have their type.
    if entry.opcode() == admin_opcode::FABRICS {
        return Err(Status::invalid_opcode());
    }
    let namespace = served_namespace(view, entry)?;
    if reservation::is_reservation(entry.opcode()) {
        return Ok(reservation::demand(entry));
    }
    let bytes = |range: Blocks| range.blocks as usize * namespace.block_size as usize;
    let demand = match decode(namespace, entry)? {
        Decoded::Read(range) => Demand::exactly(Direction::ToHost, bytes(range)),
        Decoded::Write(range, _) | Decoded::Compare(range) => {
            Demand::exactly(Direction::ToController, bytes(range))
        }
        Decoded::Ranges(count, _) => {
            // Linux always describes a full page, however few ranges it fills in.
            let length_max = 256 * RANGE_LENGTH;
            Demand {
                direction: Direction::ToController,
                length_min: count * RANGE_LENGTH,
                length_max,
            }
        }
        Decoded::Flush | Decoded::WriteZeroes(..) | Decoded::Verify(_) => Demand::NONE,
    };
    if demand.length_min > HOST_TRANSFER_MAX {
        return Err(Status::invalid_field());
    }
    Ok(demand)
}

/// The request for the volume layer; `None` when there is nothing to do.
pub(super) fn operation(
    view: &HostView,
    entry: &SubmissionEntry,
    data: Buffer,
) -> Result<Option<Operation>, Status> {
    let namespace = served_namespace(view, entry)?;
    if reservation::is_reservation(entry.opcode()) {
        return reservation::request(entry, &data).map(Operation::Reservation).map(Some);
    }
    let operation = match decode(namespace, entry)? {
        Decoded::Read(Blocks { lba, blocks }) => Operation::Read { lba, blocks },
        Decoded::Write(Blocks { lba, blocks }, fua) => Operation::Write { lba, blocks, data, fua },
        Decoded::Flush => Operation::Flush,
        Decoded::WriteZeroes(Blocks { lba, blocks }, deallocate) => {
            Operation::WriteZeroes { lba, blocks, deallocate }
        }
        Decoded::Compare(Blocks { lba, blocks }) => Operation::Compare { lba, blocks, data },
        Decoded::Verify(Blocks { lba, blocks }) => Operation::Verify { lba, blocks },
        Decoded::Ranges(_, false) => return Ok(None),
        Decoded::Ranges(count, true) => {
            let ranges = ranges(namespace, &data, count)?;
            if ranges.is_empty() {
                return Ok(None);
            }
            Operation::Deallocate { ranges }
        }
    };
    Ok(Some(operation))
}

/// Whether this command may be one half of a compare-and-write pair (FUSES bit 0).
pub(super) fn check_fused(
    view: &HostView,
    entry: &SubmissionEntry,
    opcode: u8,
    limits: &TargetLimits,
) -> Result<(), Status> {
    if entry.opcode() != opcode {
        return Err(Status::invalid_field());
    }
    match decode(served_namespace(view, entry)?, entry)? {
        Decoded::Write(range, _) | Decoded::Compare(range)
            if range.blocks > u32::from(limits.compare_and_write_blocks_max) =>
        {
            Err(Status::atomic_write_unit_exceeded())
        }
        _ => Ok(()),
    }
}

/// The pair as one request; the halves must name the same blocks.
pub(super) fn fused_operation(
    view: &HostView,
    halves: [&SubmissionEntry; 2],
    data: [Buffer; 2],
) -> Result<Operation, Status> {
    let [first, second] = halves;
    let [compare, write] = data;
    let namespace = served_namespace(view, first)?;
    let (Decoded::Compare(range), Decoded::Write(other, _)) =
        (decode(namespace, first)?, decode(namespace, second)?)
    else {
        return Err(Status::invalid_field());
    };
    if first.namespace() != second.namespace() || range != other {
        return Err(Status::invalid_field());
    }
    Ok(Operation::CompareAndWrite { lba: range.lba, blocks: range.blocks, compare, write })
}

/// What data a command on a link moves; see the crate's documentation.
pub(super) fn link_demand(entry: &SubmissionEntry) -> Result<Demand, Status> {
    if entry.opcode() == admin_opcode::FABRICS {
        return Err(Status::invalid_opcode());
    }
    if entry.fuse() != Some(crate::Fuse::Normal) {
        return Err(Status::invalid_field());
    }
    let direction = Direction::of_opcode(entry.opcode());
    if direction == Direction::Both && entry.reply_length_max() as usize > LINK_TRANSFER_MAX {
        return Err(Status::sgl_length_invalid());
    }
    Ok(Demand { direction, length_min: 0, length_max: LINK_TRANSFER_MAX })
}

pub(super) fn served_namespace<'a>(
    view: &'a HostView,
    entry: &SubmissionEntry,
) -> Result<&'a NamespaceView, Status> {
    let namespace = view.namespace(entry.namespace()).ok_or(Status::invalid_namespace())?;
    match namespace.state {
        AnaState::Optimized | AnaState::NonOptimized => Ok(namespace),
        AnaState::Inaccessible => Err(Status::ana_inaccessible()),
        AnaState::PersistentLoss => Err(Status::ana_persistent_loss()),
        AnaState::Change => Err(Status::ana_transition()),
    }
}

fn decode(namespace: &NamespaceView, entry: &SubmissionEntry) -> Result<Decoded, Status> {
    let control = entry.dword(12);
    let decoded = match entry.opcode() {
        io_opcode::FLUSH => return Ok(Decoded::Flush),
        io_opcode::READ => Decoded::Read(range(namespace, entry)?),
        io_opcode::COMPARE => Decoded::Compare(range(namespace, entry)?),
        io_opcode::VERIFY => Decoded::Verify(range(namespace, entry)?),
        io_opcode::WRITE => Decoded::Write(range(namespace, entry)?, control & FUA != 0),
        io_opcode::WRITE_ZEROES => {
            Decoded::WriteZeroes(range(namespace, entry)?, control & DEALLOCATE != 0)
        }
        io_opcode::DATASET_MANAGEMENT => {
            let count = (entry.dword(10) as usize & 0xFF) + 1;
            Decoded::Ranges(count, entry.dword(11) & 4 != 0)
        }
        _ => return Err(Status::invalid_opcode()),
    };
    let writes =
        matches!(decoded, Decoded::Write(..) | Decoded::WriteZeroes(..) | Decoded::Ranges(_, true));
    if writes && namespace.read_only {
        return Err(Status::write_protected());
    }
    Ok(decoded)
}

fn range(namespace: &NamespaceView, entry: &SubmissionEntry) -> Result<Blocks, Status> {
    let lba = entry.quadword(10);
    let blocks = (entry.dword(12) & 0xFFFF) + 1;
    within(namespace, lba, blocks)
}

fn within(namespace: &NamespaceView, lba: u64, blocks: u32) -> Result<Blocks, Status> {
    match lba.checked_add(blocks.into()) {
        Some(end) if end <= namespace.blocks => Ok(Blocks { lba, blocks }),
        _ => Err(Status::lba_out_of_range()),
    }
}

fn ranges(namespace: &NamespaceView, data: &[u8], count: usize) -> Result<Vec<(u64, u32)>, Status> {
    let mut ranges = Vec::with_capacity(count);
    for raw in data.chunks_exact(RANGE_LENGTH).take(count) {
        let Blocks { lba, blocks } = within(namespace, u64_at(raw, 8), u32_at(raw, 4))?;
        if blocks > 0 {
            ranges.push((lba, blocks));
        }
    }
    Ok(ranges)
}
