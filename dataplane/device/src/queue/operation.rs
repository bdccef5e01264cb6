//! One operation on consecutive bytes of a file or block device, step by step.

use super::Piece;
use crate::kernel::{KernelDisk, ZeroStage, is_passing, is_refusal, read_fault, write_fault};
use crate::open::{Backend, OpenDevice};
use io_uring::squeue;
use std::sync::Arc;
use voute_mirror::{DeviceFault, TRANSFER_MAX};

/// How often an operation that was interrupted is asked for again.
const RETRIES_MAX: u8 = 64;
/// Longest range that one `fallocate` is asked for, bytes: bounds how long it holds a file's lock.
const ZERO_STEP_BYTES_MAX: u64 = 1 << 30;

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Work {
    Read,
    Write,
    Zero { release: bool },
}

/// What an operation waits for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Step {
    Read,
    Write,
    Zero(ZeroStage),
    /// A mailbox's answer.
    Ordered,
}

/// What follows a completion.
pub(super) enum Next {
    /// Another entry.
    Again,
    Done(Result<(), DeviceFault>),
}

pub(super) struct Operation {
    pub(super) request: usize,
    /// Keeps the device open, and claimed, while the kernel may touch it.
    pub(super) device: Arc<OpenDevice>,
    /// All of it.
    piece: Piece,
    /// How much of it is done, bytes.
    done: u64,
    step: Step,
    retries: u8,
}

impl Step {
    pub(super) fn first(work: Work, disk: &KernelDisk) -> Step {
        match work {
            Work::Read => Step::Read,
            Work::Write => Step::Write,
            Work::Zero { release } => Step::Zero(disk.first_stage(release)),
        }
    }
}

impl Operation {
    pub(super) fn new(request: usize, device: Arc<OpenDevice>, piece: Piece, step: Step) -> Self {
        Operation { request, device, piece, done: 0, step, retries: 0 }
    }

    pub(super) fn slot(&self) -> usize {
        self.piece.slot
    }

    /// Where on the device it begins, bytes.
    pub(super) fn offset(&self) -> u64 {
        self.piece.position
    }

    /// Its part of the request's memory.
    pub(super) fn range(&self) -> std::ops::Range<usize> {
        self.piece.range()
    }

    /// Bytes that the next entry is about.
    fn next_length(&self) -> u64 {
        let left = self.piece.length - self.done;
        match self.step {
            Step::Zero(ZeroStage::Punch | ZeroStage::Range) => left.min(ZERO_STEP_BYTES_MAX),
            Step::Zero(ZeroStage::Fill) => left.min(u64::from(TRANSFER_MAX)),
            Step::Read | Step::Write | Step::Zero(ZeroStage::Sync) | Step::Ordered => left,
        }
    }

    /// The next entry for the ring. `memory` is where the request's memory begins, or, for zeroes,
    /// `TRANSFER_MAX` zero bytes.
    pub(super) fn entry(&self, disk: &KernelDisk, memory: *mut u8) -> squeue::Entry {
        let position = self.piece.position + self.done;
        let length = self.next_length();
        let length_32 = || u32::try_from(length).expect("reads and writes are bounded by a buffer");
        let from = (self.piece.at + self.done) as usize;
        match self.step {
            Step::Read => disk.read_entry(memory.wrapping_add(from), length_32(), position),
            Step::Write => disk.write_entry(memory.wrapping_add(from), length_32(), position),
            Step::Zero(ZeroStage::Fill) => disk.write_entry(memory, length_32(), position),
            Step::Zero(ZeroStage::Punch) => disk.fallocate_entry(true, length, position),
            Step::Zero(ZeroStage::Range) => disk.fallocate_entry(false, length, position),
            Step::Zero(ZeroStage::Sync) => disk.sync_entry(),
            Step::Ordered => unreachable!("an order never enters the ring"),
        }
    }

    /// Takes the result of the last entry: bytes or a negative error number.
    pub(super) fn advance(&mut self, result: i32) -> Next {
        if result >= 0 {
            self.retries = 0;
            return self.progress(result.unsigned_abs().into());
        }
        let errno = -result;
        if is_passing(errno) && self.retries < RETRIES_MAX {
            self.retries += 1;
            return Next::Again;
        }
        let Backend::Kernel(disk) = &self.device.backend else {
            return Next::Done(Err(DeviceFault::Failed));
        };
        match self.step {
            Step::Zero(stage @ (ZeroStage::Punch | ZeroStage::Range)) if is_refusal(errno) => {
                self.step = Step::Zero(disk.stage_after_refusal(stage));
                Next::Again
            }
            Step::Read => Next::Done(Err(read_fault(errno))),
            Step::Write | Step::Zero(_) | Step::Ordered => Next::Done(Err(write_fault(errno))),
        }
    }

    fn progress(&mut self, bytes: u64) -> Next {
        self.done += match self.step {
            // Continuing inside a block would break direct I/O: a block cut short is done again.
            Step::Read | Step::Write | Step::Zero(ZeroStage::Fill) => {
                let left = self.piece.length - self.done;
                if bytes >= left {
                    left
                } else {
                    bytes - bytes % u64::from(self.device.block_bytes)
                }
            }
            Step::Zero(ZeroStage::Punch | ZeroStage::Range) => self.next_length(),
            Step::Zero(ZeroStage::Sync) | Step::Ordered => return Next::Done(Ok(())),
        };
        if self.done < self.piece.length {
            // Nothing at all read or written: the file was cut short, or the device shrank.
            let stuck = bytes < u64::from(self.device.block_bytes)
                && matches!(self.step, Step::Read | Step::Write | Step::Zero(ZeroStage::Fill));
            return if stuck { Next::Done(Err(DeviceFault::Failed)) } else { Next::Again };
        }
        match (self.step, &self.device.backend) {
            (Step::Zero(ZeroStage::Punch | ZeroStage::Range), Backend::Kernel(disk))
                if disk.volatile =>
            {
                self.step = Step::Zero(ZeroStage::Sync);
                Next::Again
            }
            _ => Next::Done(Ok(())),
        }
    }
}
