//! EXTENDED COPY (LID1) (SPC-4 §6.4): the parameter list, and the copy that it asks for as a sequence of
//! ordinary reads and writes.
//!
//! ```text
//!   next ─► read of a chunk ─► answered ─► write of it ─► answered ─┐
//!    ▲                                                               │ next chunk, next segment
//!    └───────────────────────────────────────────────────────────────┘
//! ```
//!
//! Block-to-block segments between volumes that the host sees through this node, named by their NAA
//! identifier; everything else is refused. A copy holds one chunk in memory. Each chunk is a request of
//! its own: other hosts' writes may come in between, as SPC-4 lets them.

use super::sense::Sense;
use crate::request::{Failure, Operation, Outcome, VolumeKey};
use voute_buffer::Buffer;

/// Most target (CSCD) descriptors of one command.
pub(crate) const TARGETS_MAX: u16 = 16;
/// Most segment descriptors of one command.
pub(crate) const SEGMENTS_MAX: u16 = 64;
/// Most bytes of all descriptors of one command.
pub(crate) const DESCRIPTORS_BYTES_MAX: u32 = 4096;
/// Length of the parameter list's header, bytes.
pub(crate) const HEADER_BYTES: u32 = 16;
/// Most bytes that one segment may copy: 65,535 blocks of the largest size.
pub(crate) const SEGMENT_BYTES_MAX: u32 = 65_535 * 4096;
/// The descriptor types that are understood, ascending: block to block, identification.
pub(crate) const DESCRIPTOR_TYPES: [u8; 2] = [BLOCK_TO_BLOCK, IDENTIFICATION];
/// The target descriptor id of the unit that the command was sent to.
pub(crate) const THIS_UNIT: u16 = 0xffff;

/// Bytes that are read and written at once, a multiple of every block size.
const CHUNK_BYTES: u32 = 1 << 20;
const BLOCK_TO_BLOCK: u8 = 0x02;
const IDENTIFICATION: u8 = 0xe4;
const TARGET_BYTES: usize = 32;
const SEGMENT_BYTES: usize = 28;

/// Whether what became of a copy can be asked for afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Results {
    /// By this list identifier.
    Kept(u8),
    /// Not at all: the list has no identifier.
    None,
}

/// How a target descriptor names a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    Naa([u8; 16]),
    /// A name of a kind that no unit here has.
    Unknown,
    /// Of something that is no disk.
    NotADisk,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Target {
    name: Name,
    /// What the host takes its block size to be, bytes; 0 if it does not say.
    block_size: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    source: u16,
    destination: u16,
    blocks: u16,
    /// DC: `blocks` are the destination's.
    counts_destination: bool,
    source_lba: u64,
    destination_lba: u64,
}

/// A parameter list that holds together; whether its targets exist is seen when it is their turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CopyList {
    pub(crate) results: Results,
    targets: Vec<Target>,
    segments: Vec<Segment>,
}

/// A unit, as a copy sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CopyUnit {
    pub(crate) volume: VolumeKey,
    pub(crate) blocks: u64,
    pub(crate) block_size: u32,
    /// Why nothing can be read or written there now.
    pub(crate) refusal: Option<Sense>,
    pub(crate) is_write_protected: bool,
}

/// Whom a copy asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whom {
    /// The unit that the command was sent to.
    This,
    /// The one of this identifier.
    Naa([u8; 16]),
}

/// Why a copy ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// CHECK CONDITION.
    Sense(Sense),
    /// What a volume said; the host may try the whole copy again, here or on another path.
    Failure(Failure),
}

/// One side of a segment.
#[derive(Clone, Copy, Debug)]
struct End {
    volume: VolumeKey,
    lba: u64,
    block_size: u32,
}

/// A segment under way.
#[derive(Debug)]
struct Transfer {
    source: End,
    destination: End,
    bytes: u64,
    done: u64,
    /// From the end to the beginning: the destination overlaps the source's later blocks.
    is_backwards: bool,
}

impl Transfer {
    /// Offset and length of the chunk that comes next, bytes.
    fn chunk(&self) -> (u64, u32) {
        let left = self.bytes - self.done;
        let length = left.min(u64::from(CHUNK_BYTES));
        let offset = if self.is_backwards { left - length } else { self.done };
        (offset, length as u32)
    }
}

/// What the volumes are asked for at present.
#[derive(Debug)]
enum Step {
    /// Nothing.
    Idle,
    Reading,
    /// Read and to be written.
    Loaded(Buffer),
    Writing,
}

/// A copy under way.
#[derive(Debug)]
pub(crate) struct Copy {
    list: CopyList,
    /// The segment that is copied, or comes next.
    segment: usize,
    transfer: Option<Transfer>,
    step: Step,
    copied_bytes: u64,
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn number(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

impl CopyList {
    /// Decodes a parameter list (SPC-4 §6.4.3) of the length that the CDB gave.
    pub(crate) fn parse(list: &[u8]) -> Result<Self, Sense> {
        let header = list.get(..HEADER_BYTES as usize).ok_or(Sense::PARAMETER_LENGTH)?;
        let results = match (header[1] >> 3 & 3, header[0]) {
            (0 | 2, id) => Results::Kept(id),
            (3, 0) => Results::None,
            (_, _) => return Err(Sense::INVALID_FIELD_IN_PARAMETERS),
        };
        let (targets, segments) = (usize::from(u16_at(header, 2)), number(&header[8..12]) as usize);
        let descriptors = targets.checked_add(segments).ok_or(Sense::PARAMETER_LENGTH)?;
        if descriptors > DESCRIPTORS_BYTES_MAX as usize || !targets.is_multiple_of(TARGET_BYTES) {
            return Err(Sense::PARAMETER_LENGTH);
        }
        let descriptors =
            list[HEADER_BYTES as usize..].get(..descriptors).ok_or(Sense::PARAMETER_LENGTH)?;
        if header[12..16] != [0; 4] {
            return Err(Sense::INLINE_DATA_LENGTH);
        }
        let (targets, segments) = descriptors.split_at(targets);
        Ok(CopyList {
            results,
            targets: parse_targets(targets)?,
            segments: parse_segments(segments)?,
        })
    }
}

fn parse_targets(list: &[u8]) -> Result<Vec<Target>, Sense> {
    if list.len() / TARGET_BYTES > usize::from(TARGETS_MAX) {
        return Err(Sense::TOO_MANY_TARGETS);
    }
    list.chunks_exact(TARGET_BYTES).map(parse_target).collect()
}

/// An identification descriptor (SPC-4 §6.4.5.4). LU ID TYPE and NUL are ignored: a unit is known by
/// its identifier alone.
fn parse_target(target: &[u8]) -> Result<Target, Sense> {
    if target[0] != IDENTIFICATION {
        return Err(Sense::UNSUPPORTED_TARGET_TYPE);
    }
    let (code_set, association, kind) = (target[4] & 15, target[5] >> 4 & 3, target[5] & 15);
    let mut naa = [0; 16];
    naa.copy_from_slice(&target[8..24]);
    let name = match (target[1] & 0x1f, code_set, association, kind, target[7]) {
        (0, 1, 0, 3, 16) => Name::Naa(naa),
        (0, ..) => Name::Unknown,
        _ => Name::NotADisk,
    };
    Ok(Target { name, block_size: number(&target[29..32]) as u32 })
}

fn parse_segments(mut list: &[u8]) -> Result<Vec<Segment>, Sense> {
    let mut segments = Vec::new();
    while let Some(kind) = list.first() {
        if *kind != BLOCK_TO_BLOCK {
            return Err(Sense::UNSUPPORTED_SEGMENT_TYPE);
        }
        let segment = list.get(..SEGMENT_BYTES).ok_or(Sense::PARAMETER_LENGTH)?;
        if usize::from(u16_at(segment, 2)) != SEGMENT_BYTES - 4 {
            return Err(Sense::INVALID_FIELD_IN_PARAMETERS);
        }
        if segments.len() == usize::from(SEGMENTS_MAX) {
            return Err(Sense::TOO_MANY_SEGMENTS);
        }
        segments.push(Segment {
            source: u16_at(segment, 4),
            destination: u16_at(segment, 6),
            blocks: u16_at(segment, 10),
            counts_destination: segment[1] & 0x02 != 0,
            source_lba: number(&segment[12..20]),
            destination_lba: number(&segment[20..28]),
        });
        list = &list[SEGMENT_BYTES..];
    }
    Ok(segments)
}

impl Copy {
    pub(crate) fn new(list: CopyList) -> Self {
        Copy { list, segment: 0, transfer: None, step: Step::Idle, copied_bytes: 0 }
    }

    /// Whether what becomes of it is kept.
    pub(crate) fn results(&self) -> Results {
        self.list.results
    }

    /// Segments copied whole, and bytes.
    pub(crate) fn progress(&self) -> (u16, u64) {
        (self.segment as u16, self.copied_bytes)
    }

    /// The next request, for this volume; none when all is copied.
    pub(crate) fn next(
        &mut self,
        find: impl Fn(Whom) -> Option<CopyUnit>,
    ) -> Result<Option<(VolumeKey, Operation)>, Stop> {
        loop {
            let Some(transfer) = &self.transfer else {
                let Some(segment) = self.list.segments.get(self.segment) else { return Ok(None) };
                let transfer = self.begin(*segment, &find).map_err(|stop| self.at_segment(stop))?;
                match transfer {
                    Some(transfer) => self.transfer = Some(transfer),
                    None => self.segment += 1,
                }
                continue;
            };
            if transfer.done == transfer.bytes {
                self.transfer = None;
                self.segment += 1;
                continue;
            }
            let (offset, length) = transfer.chunk();
            let end = match self.step {
                Step::Loaded(_) => transfer.destination,
                Step::Idle | Step::Reading | Step::Writing => transfer.source,
            };
            let lba = end.lba + offset / u64::from(end.block_size);
            let blocks = length / end.block_size;
            let operation = match std::mem::replace(&mut self.step, Step::Reading) {
                Step::Loaded(data) => {
                    self.step = Step::Writing;
                    Operation::Write { lba, blocks, data }
                }
                Step::Idle | Step::Reading | Step::Writing => Operation::Read { lba, blocks },
            };
            return Ok(Some((end.volume, operation)));
        }
    }

    /// What became of the request that [`next`](Self::next) gave.
    pub(crate) fn answered(&mut self, outcome: Outcome) -> Result<(), Stop> {
        let Some(transfer) = &mut self.transfer else { return Err(Stop::Sense(Sense::ABORTED)) };
        let (_, length) = transfer.chunk();
        self.step = match (std::mem::replace(&mut self.step, Step::Idle), outcome) {
            (Step::Reading, Outcome::Data(data)) if data.len() == length as usize => {
                Step::Loaded(data)
            }
            (Step::Writing, Outcome::Done) => {
                transfer.done += u64::from(length);
                self.copied_bytes += u64::from(length);
                Step::Idle
            }
            (_, Outcome::Failed(failure)) => return Err(self.at_segment(stop_of(failure))),
            (_, _) => return Err(self.at_segment(Stop::Sense(Sense::COPY_DEVICE_FAILED))),
        };
        Ok(())
    }

    /// Names the segment at fault in the sense data (SPC-4 §5.17.7.4).
    fn at_segment(&self, stop: Stop) -> Stop {
        match stop {
            Stop::Sense(sense) => Stop::Sense(sense.in_segment(self.segment as u16)),
            Stop::Failure(failure) => Stop::Failure(failure),
        }
    }

    /// Looks up what a segment names; nothing if it copies nothing.
    fn begin(
        &self,
        segment: Segment,
        find: &impl Fn(Whom) -> Option<CopyUnit>,
    ) -> Result<Option<Transfer>, Stop> {
        let source = self.unit(segment.source, find)?;
        let destination = self.unit(segment.destination, find)?;
        if destination.is_write_protected {
            return Err(Stop::Sense(Sense::WRITE_PROTECTED));
        }
        let counted = if segment.counts_destination { &destination } else { &source };
        let bytes = u64::from(segment.blocks) * u64::from(counted.block_size);
        let end = |unit: &CopyUnit, lba: u64| {
            let size = u64::from(unit.block_size);
            if !bytes.is_multiple_of(size) {
                return Err(Stop::Sense(Sense::INEXACT_SEGMENT));
            }
            match lba.checked_add(bytes / size) {
                Some(end) if end <= unit.blocks => {
                    Ok(End { volume: unit.volume, lba, block_size: unit.block_size })
                }
                Some(_) | None => Err(Stop::Sense(Sense::COPY_ABORTED)),
            }
        };
        let source = end(&source, segment.source_lba)?;
        let destination = end(&destination, segment.destination_lba)?;
        let is_backwards = source.volume == destination.volume && destination.lba > source.lba;
        let transfer = Transfer { source, destination, bytes, done: 0, is_backwards };
        Ok((bytes > 0).then_some(transfer))
    }

    fn unit(&self, id: u16, find: &impl Fn(Whom) -> Option<CopyUnit>) -> Result<CopyUnit, Stop> {
        let (whom, told_block_size) = if id == THIS_UNIT {
            (Whom::This, 0)
        } else {
            let target = self.list.targets.get(usize::from(id));
            let target = target.ok_or(Stop::Sense(Sense::UNREACHABLE_COPY_TARGET))?;
            let whom = match target.name {
                Name::Naa(naa) => Whom::Naa(naa),
                Name::Unknown => return Err(Stop::Sense(Sense::COPY_TARGET_NOT_REACHABLE)),
                Name::NotADisk => return Err(Stop::Sense(Sense::INCORRECT_COPY_TARGET_TYPE)),
            };
            (whom, target.block_size)
        };
        let unit = find(whom).ok_or(Stop::Sense(Sense::COPY_TARGET_NOT_REACHABLE))?;
        if told_block_size != 0 && told_block_size != unit.block_size {
            return Err(Stop::Sense(Sense::INCORRECT_COPY_TARGET_TYPE));
        }
        match unit.refusal {
            Some(sense) => Err(Stop::Sense(sense)),
            None => Ok(unit),
        }
    }
}

/// What another path, time or room may cure is told as it is; the rest is a failure of the copy. A
/// lost path is never told as a medium error.
fn stop_of(failure: Failure) -> Stop {
    match failure {
        Failure::NotReady(_)
        | Failure::Busy
        | Failure::OutOfSpace
        | Failure::WriteProtected
        | Failure::Reservation(_)
        | Failure::Aborted => Stop::Failure(failure),
        Failure::OutOfRange => Stop::Sense(Sense::COPY_ABORTED),
        Failure::UnreadableMedium { .. }
        | Failure::UnwritableMedium { .. }
        | Failure::Unsupported
        | Failure::MoveRefused => Stop::Sense(Sense::COPY_DEVICE_FAILED),
    }
}

#[cfg(test)]
mod tests;
