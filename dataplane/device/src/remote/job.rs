//! An order under way: the commands that it becomes, one after the other.

use crate::mailbox::{Order, OrderKind, Reply};
use std::sync::Arc;
use voute_buffer::Buffer;
use voute_mirror::{DeviceFault, DeviceResult};
use voute_nvme::{Command, Payload, RemoteNamespace, Status};

/// Longest range of one Write Zeroes, bytes.
const ZERO_BYTES_MAX: u64 = 4 << 20;
/// Most blocks of one command.
const BLOCKS_MAX: u64 = 65_536;

/// An order under way; at most one command of it is out.
pub(super) struct Job {
    pub(super) offset: u64,
    pub(super) kind: OrderKind,
    /// What a read in several commands has so far.
    read: Option<Buffer>,
    done: u64,
    /// Bytes that the command which is out is about.
    out: u64,
    pub(super) is_flushing: bool,
    pub(super) reply: Reply,
}

/// What the controller allows.
pub(super) struct Limits {
    pub(super) transfer: u64,
    pub(super) is_volatile: bool,
    pub(super) has_write_zeroes: bool,
}

pub(super) enum Progress {
    Again,
    Done(DeviceResult),
}

impl Job {
    pub(super) fn of(order: Order) -> Self {
        let Order { offset, kind, reply } = order;
        Job { offset, kind, read: None, done: 0, out: 0, is_flushing: false, reply }
    }

    /// Whether it changes nothing, so that it may be carried out twice.
    pub(super) fn is_read(&self) -> bool {
        matches!(self.kind, OrderKind::Read { .. })
    }

    /// Another controller goes on with it, which may hold what the first one cached: what is to be
    /// written is written from the start.
    pub(super) fn handed_over(mut self) -> Self {
        if !self.is_read() {
            (self.done, self.is_flushing) = (0, false);
        }
        self
    }

    fn length(&self) -> u64 {
        match self.kind {
            OrderKind::Read { length } => length.into(),
            OrderKind::Write { length, .. } => length as u64,
            OrderKind::Zero { length, .. } => length,
        }
    }

    pub(super) fn is_of_blocks(&self, block_bytes: u32) -> bool {
        let block = u64::from(block_bytes);
        self.length() > 0
            && self.offset.is_multiple_of(block)
            && self.length().is_multiple_of(block)
    }

    pub(super) fn next_command(&mut self, namespace: &RemoteNamespace, limits: &Limits) -> Command {
        let block = u64::from(namespace.block_size);
        let nsid = namespace.nsid;
        if self.is_flushing {
            return Command::flush(nsid);
        }
        let left = self.length() - self.done;
        let zeroes_in_place =
            matches!(self.kind, OrderKind::Zero { .. }) && limits.has_write_zeroes;
        let most = if zeroes_in_place { ZERO_BYTES_MAX } else { limits.transfer };
        self.out = left.min(most).min(BLOCKS_MAX * block);
        let lba = (self.offset + self.done) / block;
        let blocks = (self.out / block) as u32;
        match &self.kind {
            OrderKind::Read { .. } => Command::read(nsid, lba, blocks, namespace.block_size),
            OrderKind::Write { data, from, .. } => {
                let begin = from + self.done as usize;
                let part = begin..begin + self.out as usize;
                let payload = if part == (0..data.len()) {
                    Payload::Shared(Arc::clone(data))
                } else {
                    Payload::Owned(Buffer::copy_of(&data[part]))
                };
                Command::write(nsid, lba, blocks, payload, limits.is_volatile)
            }
            OrderKind::Zero { release, .. } if zeroes_in_place => {
                Command::write_zeroes(nsid, lba, blocks, *release)
            }
            OrderKind::Zero { .. } => {
                let payload = Payload::Owned(Buffer::zeroed(self.out as usize));
                Command::write(nsid, lba, blocks, payload, limits.is_volatile)
            }
        }
    }

    /// Takes note of a command that succeeded.
    pub(super) fn progress(&mut self, data: Option<Buffer>, is_volatile: bool) -> Progress {
        if self.is_flushing {
            return Progress::Done(Ok(None));
        }
        let (length, at) = (self.length(), self.done as usize);
        self.done += self.out;
        let is_done = self.done == length;
        if !matches!(self.kind, OrderKind::Read { .. }) {
            self.is_flushing =
                is_done && is_volatile && matches!(self.kind, OrderKind::Zero { .. });
            let is_over = is_done && !self.is_flushing;
            return if is_over { Progress::Done(Ok(None)) } else { Progress::Again };
        }
        let Some(data) = data.filter(|data| data.len() as u64 == self.out) else {
            return Progress::Done(Err(DeviceFault::Failed));
        };
        if data.len() as u64 == length {
            return Progress::Done(Ok(Some(data)));
        }
        let whole = self.read.get_or_insert_with(|| Buffer::zeroed(length as usize));
        whole[at..at + data.len()].copy_from_slice(&data);
        if is_done { Progress::Done(Ok(self.read.take())) } else { Progress::Again }
    }
}

/// Media errors (type 2) of a read concern these blocks; all else the device.
pub(super) fn fault_of(status: Status, kind: &OrderKind) -> DeviceFault {
    const MEDIA: u8 = 2;
    match kind {
        OrderKind::Read { .. } if status.code_type() == MEDIA => DeviceFault::Medium,
        _ if status == Status::capacity_exceeded() => DeviceFault::NoSpace,
        _ => DeviceFault::Failed,
    }
}
