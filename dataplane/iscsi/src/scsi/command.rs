//! What each command does: a pure function of the CDB, the LUN's view and the unit's shared state.

use super::cdb::Cdb;
use super::copy::{self, CopyList};
use super::copy_results::CopyResults;
use super::opcodes;
use super::reservation;
use super::reservation_out;
use super::sense::{Attention, Sense};
use super::unit::SharedUnit;
use super::{
    COMPARE_AND_WRITE_BLOCKS_MAX, TRANSFER_BYTES_MAX, UNMAP_BLOCKS_MAX, UNMAP_DESCRIPTORS_MAX,
    WRITE_SAME_BYTES_MAX, alua, inquiry, log, mode,
};
use crate::request::{BlockRange, Operation};
use crate::target::{LunView, Portal};
use voute_buffer::Buffer;
use voute_reservation::{Nexus, Request};

/// Most bytes of UNMAP's parameter list that are read.
const UNMAP_LIST_MAX: u32 = 8 + 16 * UNMAP_DESCRIPTORS_MAX;
/// Most bytes of MODE SELECT's parameter list.
const MODE_LIST_MAX: u32 = 4096;

/// Where a command stands.
pub(crate) struct Context<'a> {
    pub(crate) view: &'a LunView,
    pub(crate) shared: &'a SharedUnit,
    pub(crate) nexus: &'a Nexus,
    pub(crate) portal: &'a Portal,
    pub(crate) target_name: &'a str,
    /// The session's copies.
    pub(crate) copies: &'a CopyResults,
    /// Bytes that the host announces to send.
    pub(crate) announced_out: u32,
}

impl Context<'_> {
    pub(super) fn is_write_protected(&self) -> bool {
        self.view.read_only || self.shared.software_write_protect()
    }
}

/// Why a command is not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// CHECK CONDITION.
    Sense(Sense),
    /// RESERVATION CONFLICT.
    Conflict,
}

impl From<Sense> for Refusal {
    fn from(sense: Sense) -> Self {
        Refusal::Sense(sense)
    }
}

/// Work for the volume.
#[derive(Debug)]
pub(crate) enum Work {
    Operation(Operation),
    /// One block, to be repeated when the operation is surfaced: memory is taken late.
    Repeat {
        lba: u64,
        blocks: u32,
        block: Buffer,
        compares: bool,
    },
}

/// What a command comes to.
#[derive(Debug)]
pub(crate) enum Plan {
    /// GOOD.
    Good,
    /// GOOD with data, already cut to the allocation length.
    Respond(Vec<u8>),
    /// GOOD, and all other sessions on the unit must learn of it.
    TellOthers(Attention),
    /// To the volume. `GET LBA STATUS` keeps its allocation length.
    Submit(Work),
    /// To the volume, which answers with extents, cut to this allocation length.
    SubmitAllocation { lba: u64, blocks: u32, allocation: u32 },
    /// To the volume, whose reservations this service action tells, cut to this allocation length.
    SubmitReport { action: u8, allocation: u32 },
    /// A copy, which is several requests to its volumes.
    Copy(CopyList),
    /// So many bytes of data first.
    Take { length: u32, then: Then },
}

/// What goes on when the data is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Then {
    Write { lba: u64 },
    WriteAtomic { lba: u64, blocks: u32 },
    WriteAndCompare { lba: u64 },
    Compare { lba: u64 },
    CompareRepeated { lba: u64, blocks: u32 },
    CompareAndWrite { lba: u64, blocks: u32 },
    OrWrite { lba: u64 },
    WriteSame { lba: u64, blocks: u32, deallocate: bool, frees_the_rest: bool },
    Unmap,
    Copy,
    SetGroups,
    ModeSelect { is_long: bool },
    Reserve { action: u8, scope_and_type: u8 },
}

/// Checks what is the same for all commands, then plans this one.
pub(crate) fn plan(cdb: &Cdb, context: &Context<'_>) -> Result<Plan, Refusal> {
    let supported = opcodes::check(cdb)?;
    if let Some(sense) = alua::refusal(context.view.alua_state, supported.access) {
        return Err(sense.into());
    }
    if context.shared.conflicts(context.nexus, supported.guard) {
        return Err(Refusal::Conflict);
    }
    decode(cdb, context)
}

fn decode(cdb: &Cdb, context: &Context<'_>) -> Result<Plan, Refusal> {
    Ok(match (cdb.opcode(), cdb.service_action()) {
        // TEST UNIT READY; PREVENT ALLOW MEDIUM REMOVAL, of a medium that cannot be removed.
        (0x00, _) => Plan::Good,
        (0x1e, _) => Plan::Good,
        (0x03, _) => Plan::Respond(cut(Sense::NONE.encode(cdb.bit(1, 0)), u32::from(cdb.0[4]))),
        (0x12, _) => Plan::Respond(cut(inquiry::answer(cdb, context)?, u32::from(cdb.u16_at(3)))),
        (0x08 | 0x28 | 0xa8 | 0x88, _) => read(cdb, context)?,
        (0x0a | 0x2a | 0xaa | 0x8a, _) => write(cdb, context, false)?,
        (0x2e | 0xae | 0x8e, _) => write(cdb, context, true)?,
        (0x2f | 0xaf | 0x8f, _) => verify(cdb, context)?,
        (0x34 | 0x90, _) => {
            checked_range(cdb.range(), context)?;
            Plan::Good
        }
        (0x35 | 0x91, _) => {
            checked_range(cdb.range(), context)?;
            Plan::Submit(Work::Operation(Operation::Flush))
        }
        (0x1b, _) => start_stop(cdb)?,
        (0x1d, _) => send_diagnostic(cdb)?,
        (0x4d, _) => Plan::Respond(cut(log::sense(cdb)?, u32::from(cdb.u16_at(7)))),
        (0x15, _) | (0x55, _) => mode_select(cdb)?,
        (0x1a, _) => Plan::Respond(cut(mode::sense(cdb, context)?, u32::from(cdb.0[4]))),
        (0x5a, _) => Plan::Respond(cut(mode::sense(cdb, context)?, u32::from(cdb.u16_at(7)))),
        (0x25, _) => Plan::Respond(read_capacity_10(cdb, context)?),
        (0x9e, 0x10) => Plan::Respond(cut(read_capacity_16(context), cdb.u32_at(10))),
        (0x9e, _) => allocation_status(cdb, context)?,
        (0x37, _) => Plan::Respond(cut(vec![0, cdb.0[2] & 0x1f, 0, 0], u32::from(cdb.u16_at(7)))),
        (0xb7, _) => Plan::Respond(cut(vec![0, cdb.0[1] & 0x1f, 0, 0, 0, 0, 0, 0], cdb.u32_at(6))),
        (0x41 | 0x93, _) => write_same(cdb, context)?,
        (0x42, _) => unmap(cdb, context)?,
        (0x9c, _) => write_atomic(cdb, context)?,
        (0x83, _) => extended_copy(cdb)?,
        (0x84, _) => {
            Plan::Respond(cut(context.copies.answer(cdb, context.view.lun)?, cdb.u32_at(10)))
        }
        (0x89, _) => compare_and_write(cdb, context)?,
        (0x8b, _) => or_write(cdb, context)?,
        (0x16 | 0x56, _) => submit(Operation::Reservation(Request::ReserveLegacy)),
        (0x17 | 0x57, _) => submit(Operation::Reservation(Request::ReleaseLegacy)),
        (0x5e, action) => report_reservations(cdb, action)?,
        (0x5f, action) => reserve_out(cdb, action)?,
        (0xa3, 0x0a) => Plan::Respond(cut(alua::report(cdb, context.view)?, cdb.u32_at(6))),
        (0xa4, _) => set_groups(cdb)?,
        (0xa3, 0x0c) => Plan::Respond(cut(opcodes::report(cdb)?, cdb.u32_at(6))),
        (0xa3, _) => Plan::Respond(cut(task_functions(cdb), cdb.u32_at(6))),
        _ => return Err(Sense::INVALID_OPCODE.into()),
    })
}

/// Goes on once the data is there; `data` may be shorter than asked if the host sent less.
pub(crate) fn finish(then: Then, data: Buffer, context: &Context<'_>) -> Result<Plan, Refusal> {
    let size = context.view.block_size as usize;
    // A host that announced less than its CDB asks for gets its whole blocks written (RFC 7143
    // §11.4.5.1: the residual tells the rest).
    let blocks = (data.len() / size) as u32;
    if let Then::Write { .. }
    | Then::WriteAndCompare { .. }
    | Then::Compare { .. }
    | Then::OrWrite { .. } = then
        && blocks == 0
    {
        return Ok(Plan::Good);
    }
    Ok(match then {
        Then::Write { lba } => {
            submit(Operation::Write { lba, blocks, data: whole_blocks(data, size) })
        }
        Then::WriteAtomic { lba, blocks } => {
            require(data.len() >= blocks as usize * size)?;
            submit(Operation::WriteAtomic { lba, blocks, data: whole_blocks(data, size) })
        }
        Then::WriteAndCompare { lba } => {
            submit(Operation::WriteAndCompare { lba, blocks, data: whole_blocks(data, size) })
        }
        Then::Compare { lba } => {
            submit(Operation::Compare { lba, blocks, data: whole_blocks(data, size) })
        }
        Then::OrWrite { lba } => {
            submit(Operation::OrWrite { lba, blocks, data: whole_blocks(data, size) })
        }
        Then::CompareRepeated { lba, blocks } => {
            require(data.len() >= size)?;
            Plan::Submit(Work::Repeat { lba, blocks, block: data, compares: true })
        }
        Then::CompareAndWrite { lba, blocks } => {
            let half = blocks as usize * size;
            require(data.len() >= 2 * half)?;
            let compare = Buffer::copy_of(&data[..half]);
            let write = Buffer::copy_of(&data[half..2 * half]);
            submit(Operation::CompareAndWrite { lba, blocks, compare, write })
        }
        Then::WriteSame { lba, blocks, deallocate, frees_the_rest } => {
            require(data.len() >= size)?;
            // UNMAP asks for room to be freed only where reading it back gives what was sent.
            if frees_the_rest || data.iter().all(|byte| *byte == 0) {
                submit(Operation::WriteZeroes { lba, blocks, deallocate })
            } else {
                Plan::Submit(Work::Repeat { lba, blocks, block: data, compares: false })
            }
        }
        Then::Unmap => submit(Operation::Deallocate { ranges: unmap_ranges(&data, context)? }),
        Then::SetGroups => match alua::change(&data, context.view)? {
            Some(group) => submit(Operation::ActivateGroup { group }),
            None => Plan::Good,
        },
        Then::Copy => Plan::Copy(CopyList::parse(&data)?),
        Then::ModeSelect { is_long } => {
            let changed = mode::select(is_long, &data, context)?;
            if changed { Plan::TellOthers(Attention::MODE_CHANGED) } else { Plan::Good }
        }
        Then::Reserve { action, scope_and_type } => {
            submit(Operation::Reservation(reservation_out::request(action, scope_and_type, &data)?))
        }
    })
}

fn submit(operation: Operation) -> Plan {
    Plan::Submit(Work::Operation(operation))
}

fn require(holds: bool) -> Result<(), Sense> {
    if holds { Ok(()) } else { Err(Sense::PARAMETER_LENGTH) }
}

/// The data without a torn last block, which only a host with a wrong expected length leaves.
fn whole_blocks(data: Buffer, size: usize) -> Buffer {
    let whole = data.len() / size * size;
    if whole == data.len() { data } else { Buffer::copy_of(&data[..whole]) }
}

pub(crate) fn cut(mut data: Vec<u8>, allocation: u32) -> Vec<u8> {
    data.truncate(allocation as usize);
    data
}

fn checked_range((lba, blocks): (u64, u32), context: &Context<'_>) -> Result<(u64, u32), Sense> {
    let end = lba.checked_add(u64::from(blocks)).ok_or(Sense::LBA_OUT_OF_RANGE)?;
    if end > context.view.blocks { Err(Sense::LBA_OUT_OF_RANGE) } else { Ok((lba, blocks)) }
}

/// A range within the volume and within one transfer, without protection information, and its bytes.
fn transfer(cdb: &Cdb, context: &Context<'_>) -> Result<(u64, u32, u32), Sense> {
    // In the 6-byte forms the same bits belong to the LBA.
    if cdb.opcode() >> 5 != 0 && cdb.protection() != 0 {
        return Err(Sense::INVALID_FIELD_IN_CDB);
    }
    let (lba, blocks) = checked_range(cdb.range(), context)?;
    let most = TRANSFER_BYTES_MAX / context.view.block_size;
    if blocks > most {
        return Err(Sense::INVALID_FIELD_IN_CDB);
    }
    Ok((lba, blocks, blocks * context.view.block_size))
}

/// Whether the host announces just the data that the CDB asks for. Where a part of it, or of what it
/// meant, would do harm.
fn announced(length: u32, context: &Context<'_>) -> Result<(), Sense> {
    if context.announced_out == length { Ok(()) } else { Err(Sense::INVALID_FIELD_IN_CDB) }
}

fn writable(context: &Context<'_>) -> Result<(), Sense> {
    if context.is_write_protected() { Err(Sense::WRITE_PROTECTED) } else { Ok(()) }
}

fn read(cdb: &Cdb, context: &Context<'_>) -> Result<Plan, Sense> {
    let (lba, blocks, _) = transfer(cdb, context)?;
    Ok(if blocks == 0 { Plan::Good } else { submit(Operation::Read { lba, blocks }) })
}

fn write(cdb: &Cdb, context: &Context<'_>, verifies: bool) -> Result<Plan, Sense> {
    let (lba, blocks, length) = transfer(cdb, context)?;
    writable(context)?;
    if blocks == 0 {
        return Ok(Plan::Good);
    }
    // BYTCHK of WRITE AND VERIFY: 0 and 1; the written data is compared in both.
    if verifies && cdb.0[1] >> 1 & 3 > 1 {
        return Err(Sense::INVALID_FIELD_IN_CDB);
    }
    let then = if verifies { Then::WriteAndCompare { lba } } else { Then::Write { lba } };
    Ok(Plan::Take { length, then })
}

fn verify(cdb: &Cdb, context: &Context<'_>) -> Result<Plan, Sense> {
    let (lba, blocks, length) = transfer(cdb, context)?;
    let byte_check = cdb.0[1] >> 1 & 3;
    if byte_check == 2 {
        return Err(Sense::INVALID_FIELD_IN_CDB);
    }
    if blocks == 0 {
        return Ok(Plan::Good);
    }
    Ok(match byte_check {
        0 => submit(Operation::Verify { lba, blocks }),
        1 => Plan::Take { length, then: Then::Compare { lba } },
        _ => Plan::Take {
            length: context.view.block_size,
            then: Then::CompareRepeated { lba, blocks },
        },
    })
}

fn start_stop(cdb: &Cdb) -> Result<Plan, Sense> {
    // A volume that other hosts use is not stopped or ejected for one of them; power conditions are
    // not supported.
    let (condition, loads, starts) = (cdb.0[4] >> 4, cdb.bit(4, 1), cdb.bit(4, 0));
    if condition != 0 || loads || !starts {
        Err(Sense::INVALID_FIELD_IN_CDB)
    } else {
        Ok(Plan::Good)
    }
}

/// SEND DIAGNOSTIC (SPC-4 §6.42): the default self-test, which a volume that answers has passed. No page
/// is taken.
fn send_diagnostic(cdb: &Cdb) -> Result<Plan, Sense> {
    let is_default = cdb.bit(1, 2);
    let (code, takes_page, length) = (cdb.0[1] >> 5, cdb.bit(1, 4), cdb.u16_at(3));
    if code != 0 || takes_page || length != 0 || !is_default {
        Err(Sense::INVALID_FIELD_IN_CDB)
    } else {
        Ok(Plan::Good)
    }
}

fn mode_select(cdb: &Cdb) -> Result<Plan, Sense> {
    let length = mode::select_length(cdb)?;
    if length > MODE_LIST_MAX {
        return Err(Sense::PARAMETER_LENGTH);
    }
    Ok(match length {
        0 => Plan::Good,
        _ => Plan::Take { length, then: Then::ModeSelect { is_long: cdb.opcode() == 0x55 } },
    })
}

fn read_capacity_10(cdb: &Cdb, context: &Context<'_>) -> Result<Vec<u8>, Sense> {
    // PMI is obsolete: an LBA without it is an error (SBC-3 §5.15).
    if !cdb.bit(8, 0) && cdb.u32_at(2) != 0 {
        return Err(Sense::INVALID_FIELD_IN_CDB);
    }
    let last = u32::try_from(context.view.blocks - 1).unwrap_or(u32::MAX);
    Ok([last.to_be_bytes(), context.view.block_size.to_be_bytes()].concat())
}

fn read_capacity_16(context: &Context<'_>) -> Vec<u8> {
    let mut data = vec![0; 32];
    data[..8].copy_from_slice(&(context.view.blocks - 1).to_be_bytes());
    data[8..12].copy_from_slice(&context.view.block_size.to_be_bytes());
    let per_physical = context.view.physical_block_size / context.view.block_size;
    data[13] = per_physical.max(1).ilog2().min(15) as u8;
    // LBPME, LBPRZ.
    data[14] = 0xc0;
    data
}

fn allocation_status(cdb: &Cdb, context: &Context<'_>) -> Result<Plan, Sense> {
    let (lba, allocation) = (cdb.u64_at(2), cdb.u32_at(10));
    if lba >= context.view.blocks {
        return Err(Sense::LBA_OUT_OF_RANGE);
    }
    let blocks = u32::try_from(context.view.blocks - lba).unwrap_or(u32::MAX);
    Ok(Plan::SubmitAllocation { lba, blocks, allocation })
}

fn write_same(cdb: &Cdb, context: &Context<'_>) -> Result<Plan, Sense> {
    let (deallocate, anchors, without_data) = (cdb.bit(1, 3), cdb.bit(1, 4), cdb.bit(1, 0));
    // NDOB exists in the 16-byte form only; LBDATA and PBDATA (bits 1, 2) are obsolete.
    let has_ndob = cdb.opcode() == 0x93;
    let may_anchor = deallocate && !context.view.thin;
    if cdb.protection() != 0
        || anchors && !may_anchor
        || cdb.0[1] & 0x06 != 0
        || without_data && !has_ndob
    {
        return Err(Sense::INVALID_FIELD_IN_CDB);
    }
    let (lba, asked) = cdb.range();
    let blocks = same_blocks(lba, asked, context)?;
    writable(context)?;
    if without_data {
        return Ok(submit(Operation::WriteZeroes { lba, blocks, deallocate }));
    }
    announced(context.view.block_size, context)?;
    // To free all that follows is asked for without a number of blocks; the block that comes with it is
    // not looked at (decision 0009).
    let frees_the_rest = deallocate && asked == 0;
    Ok(Plan::Take {
        length: context.view.block_size,
        then: Then::WriteSame { lba, blocks, deallocate, frees_the_rest },
    })
}

/// How many blocks WRITE SAME is for: none named means all from `lba` to the end (SBC-3 §5.43, WSNZ is
/// zero), within the MAXIMUM WRITE SAME LENGTH as any other number.
fn same_blocks(lba: u64, asked: u32, context: &Context<'_>) -> Result<u32, Sense> {
    let most = u64::from(WRITE_SAME_BYTES_MAX / context.view.block_size);
    let blocks = match asked {
        0 => context.view.blocks.checked_sub(lba).filter(|rest| *rest > 0),
        asked => {
            checked_range((lba, asked), context)?;
            Some(u64::from(asked))
        }
    };
    match blocks {
        None => Err(Sense::LBA_OUT_OF_RANGE),
        Some(blocks) if blocks > most => Err(Sense::INVALID_FIELD_IN_CDB),
        Some(blocks) => Ok(blocks as u32),
    }
}

fn unmap(cdb: &Cdb, context: &Context<'_>) -> Result<Plan, Sense> {
    // ANCHOR.
    if cdb.bit(1, 0) && context.view.thin {
        return Err(Sense::INVALID_FIELD_IN_CDB);
    }
    writable(context)?;
    match u32::from(cdb.u16_at(7)) {
        0 => Ok(Plan::Good),
        length if length > UNMAP_LIST_MAX => Err(Sense::PARAMETER_LENGTH),
        length => Ok(Plan::Take { length, then: Then::Unmap }),
    }
}

/// UNMAP's parameter list (SBC-3 §5.28.2).
fn unmap_ranges(list: &[u8], context: &Context<'_>) -> Result<Vec<BlockRange>, Sense> {
    let header = list.get(..8).ok_or(Sense::PARAMETER_LENGTH)?;
    let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
    let descriptors = list.get(8..8 + length / 16 * 16).ok_or(Sense::PARAMETER_LENGTH)?;
    if descriptors.len() / 16 > UNMAP_DESCRIPTORS_MAX as usize {
        return Err(Sense::INVALID_FIELD_IN_PARAMETERS);
    }
    let mut ranges = Vec::with_capacity(descriptors.len() / 16);
    let mut total = 0u64;
    for descriptor in descriptors.chunks_exact(16) {
        let number = |range: std::ops::Range<usize>| {
            descriptor[range].iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte))
        };
        let (lba, blocks) = checked_range((number(0..8), number(8..12) as u32), context)?;
        total += u64::from(blocks);
        if blocks > 0 {
            ranges.push(BlockRange { lba, blocks });
        }
    }
    if total > u64::from(UNMAP_BLOCKS_MAX) {
        Err(Sense::INVALID_FIELD_IN_PARAMETERS)
    } else {
        Ok(ranges)
    }
}

fn compare_and_write(cdb: &Cdb, context: &Context<'_>) -> Result<Plan, Sense> {
    if cdb.protection() != 0 || cdb.0[13] > COMPARE_AND_WRITE_BLOCKS_MAX {
        return Err(Sense::INVALID_FIELD_IN_CDB);
    }
    let (lba, blocks) = checked_range((cdb.u64_at(2), u32::from(cdb.0[13])), context)?;
    writable(context)?;
    let length = 2 * blocks * context.view.block_size;
    announced(length, context)?;
    Ok(match blocks {
        0 => Plan::Good,
        _ => Plan::Take { length, then: Then::CompareAndWrite { lba, blocks } },
    })
}

/// WRITE ATOMIC (16) (SBC-4 §5.48): all or nothing of what lies within one unit of the atomic length.
/// Boundaries within a command are not supported.
fn write_atomic(cdb: &Cdb, context: &Context<'_>) -> Result<Plan, Sense> {
    if cdb.protection() != 0 || cdb.u16_at(10) != 0 {
        return Err(Sense::INVALID_FIELD_IN_CDB);
    }
    let range = (cdb.u64_at(2), u32::from(cdb.u16_at(12)));
    let (lba, blocks) = checked_range(range, context)?;
    let unit = u64::from(atomic_blocks(context.view));
    if u64::from(blocks) > unit {
        return Err(Sense::invalid_field_at(12));
    }
    if blocks > 0 && lba / unit != (lba + u64::from(blocks) - 1) / unit {
        return Err(Sense::invalid_field_at(2));
    }
    writable(context)?;
    let length = blocks * context.view.block_size;
    // A part of it would not be all.
    announced(length, context)?;
    Ok(match blocks {
        0 => Plan::Good,
        _ => Plan::Take { length, then: Then::WriteAtomic { lba, blocks } },
    })
}

/// Most blocks that are written all or not at all, within one transfer.
pub(super) fn atomic_blocks(view: &LunView) -> u32 {
    view.atomic_blocks.clamp(1, TRANSFER_BYTES_MAX / view.block_size)
}

fn set_groups(cdb: &Cdb) -> Result<Plan, Sense> {
    match cdb.u32_at(6) {
        0 => Ok(Plan::Good),
        length if length > alua::CHANGE_BYTES_MAX => Err(Sense::PARAMETER_LENGTH),
        length => Ok(Plan::Take { length, then: Then::SetGroups }),
    }
}

fn extended_copy(cdb: &Cdb) -> Result<Plan, Sense> {
    match cdb.u32_at(10) {
        0 => Ok(Plan::Good),
        length if length > copy::HEADER_BYTES + copy::DESCRIPTORS_BYTES_MAX => {
            Err(Sense::PARAMETER_LENGTH)
        }
        length => Ok(Plan::Take { length, then: Then::Copy }),
    }
}

fn or_write(cdb: &Cdb, context: &Context<'_>) -> Result<Plan, Sense> {
    let (lba, blocks, length) = transfer(cdb, context)?;
    writable(context)?;
    Ok(if blocks == 0 { Plan::Good } else { Plan::Take { length, then: Then::OrWrite { lba } } })
}

fn reserve_out(cdb: &Cdb, action: u8) -> Result<Plan, Sense> {
    let length = reservation_out::list_length(cdb)?;
    Ok(Plan::Take { length, then: Then::Reserve { action, scope_and_type: cdb.0[2] } })
}

fn report_reservations(cdb: &Cdb, action: u8) -> Result<Plan, Sense> {
    if !(reservation::READ_KEYS..=reservation::READ_FULL_STATUS).contains(&action) {
        return Err(Sense::INVALID_FIELD_IN_CDB);
    }
    Ok(Plan::SubmitReport { action, allocation: u32::from(cdb.u16_at(7)) })
}

/// REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS (SPC-4 §6.36): abort task, abort task set, clear task
/// set, logical unit reset.
fn task_functions(cdb: &Cdb) -> Vec<u8> {
    let mut data = vec![0; if cdb.bit(2, 7) { 16 } else { 4 }];
    data[0] = 0x80 | 0x40 | 0x10 | 0x08;
    if data.len() == 16 {
        data[3] = 12;
    }
    data
}

/// GET LBA STATUS's answer (SBC-3 §5.6.2) from extents.
pub(crate) fn allocation_data(
    extents: &[crate::AllocationExtent],
    is_thin: bool,
    allocation: u32,
) -> Vec<u8> {
    // Where room is set aside for every block, one that is not mapped is anchored.
    let unmapped = if is_thin { 1 } else { 2 };
    let mut data = vec![0; 8];
    for extent in extents {
        data.extend_from_slice(&extent.lba.to_be_bytes());
        data.extend_from_slice(&extent.blocks.to_be_bytes());
        let state = if extent.mapped { 0 } else { unmapped };
        data.extend_from_slice(&[state, 0, 0, 0]);
    }
    let length = (data.len() - 4) as u32;
    data[..4].copy_from_slice(&length.to_be_bytes());
    cut(data, allocation)
}

/// INQUIRY of a LUN that holds no unit.
pub(crate) fn inquire_absent(cdb: &Cdb) -> Result<Plan, Refusal> {
    Ok(Plan::Respond(cut(inquiry::answer_absent(cdb)?, u32::from(cdb.u16_at(3)))))
}

/// REPORT LUNS (SPC-4 §6.33) for LUNs in ascending order.
pub(crate) fn report_luns(cdb: &Cdb, luns: impl Iterator<Item = u16>) -> Result<Plan, Refusal> {
    let allocation = cdb.u32_at(6);
    let mut data = vec![0; 8];
    match cdb.0[2] {
        0 | 2 => luns.for_each(|lun| data.extend_from_slice(&encode_lun(lun))),
        // Well-known units only: there are none.
        1 => {}
        _ => return Err(Sense::INVALID_FIELD_IN_CDB.into()),
    }
    let length = (data.len() - 8) as u32;
    data[..4].copy_from_slice(&length.to_be_bytes());
    Ok(Plan::Respond(cut(data, allocation)))
}

/// A LUN of one level: peripheral addressing below 256, flat above (SAM-5 §4.7).
pub(crate) fn encode_lun(lun: u16) -> [u8; 8] {
    let [high, low] =
        if lun < 256 { lun.to_be_bytes() } else { (lun & 0x3fff | 0x4000).to_be_bytes() };
    [high, low, 0, 0, 0, 0, 0, 0]
}

/// The number of a one-level LUN.
pub(crate) fn decode_lun(field: [u8; 8]) -> Option<u16> {
    if field[2..].iter().any(|byte| *byte != 0) {
        return None;
    }
    match field[0] >> 6 {
        0 if field[0] == 0 => Some(u16::from(field[1])),
        1 => Some(u16::from_be_bytes([field[0] & 0x3f, field[1]])),
        _ => None,
    }
}
