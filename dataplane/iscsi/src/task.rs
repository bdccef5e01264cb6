//! The tasks of a connection: what each waits for, found by slot, tag or initiator task tag.

use crate::full_feature::CopyTask;
use crate::request::{BlockRange, Tag, VolumeKey};
use crate::scsi::command::{Then, Work};
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use voute_buffer::Buffer;

/// A transfer that the host was asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transfer {
    pub(crate) tag: u32,
    pub(crate) offset: u32,
    pub(crate) length: u32,
    pub(crate) received: u32,
    pub(crate) data_number: u32,
}

/// An answer that waits for unsolicited data to end.
#[derive(Debug)]
pub(crate) enum Answer {
    Data(Vec<u8>),
    Status(u8, Option<crate::scsi::Sense>),
}

/// Where a task stands.
#[derive(Debug)]
pub(crate) enum Stage {
    /// Receives data.
    Receiving { then: Then },
    /// The answer is known; the host still sends.
    Answered(Answer),
    /// In the queue to the volume.
    Ready(Work),
    /// In the queue to the volume, to be answered with extents.
    ReadyAllocation { lba: u64, blocks: u32 },
    /// Its answer waits for other sessions.
    Waiting,
    /// With the volume.
    Surfaced,
}

/// A command under way.
pub(crate) struct Task {
    pub(crate) task_tag: u32,
    pub(crate) is_immediate: bool,
    pub(crate) lun: u16,
    pub(crate) volume: VolumeKey,
    pub(crate) stage: Stage,
    /// Expected data transfer length in the direction that the flags name, bytes.
    pub(crate) expected_in: u32,
    pub(crate) expected_out: u32,
    /// What the CDB asks to be sent, bytes.
    pub(crate) length_out: u32,
    /// What of it is received, at most `expected_out`, bytes.
    pub(crate) wanted: u32,
    /// Allocation length of an answer made of extents.
    pub(crate) allocation: u32,
    /// The range whose allocation is asked for.
    pub(crate) asked: Option<BlockRange>,
    /// The service action of PERSISTENT RESERVE IN.
    pub(crate) report: Option<u8>,
    /// It is a RESERVE: should its session end before its answer comes, the reservation must too.
    pub(crate) reserves: bool,
    /// The copy that it is, while it goes on.
    pub(crate) copy: Option<Box<CopyTask>>,
    pub(crate) buffer: Option<Buffer>,
    /// Data received in order up to here.
    pub(crate) received: u32,
    /// Asked for up to here, or expected unsolicited.
    pub(crate) requested: u32,
    pub(crate) unsolicited_open: bool,
    pub(crate) data_number: u32,
    pub(crate) transfers: VecDeque<Transfer>,
    pub(crate) transfer_number: u32,
    /// Bytes counted against the connection's bounds.
    pub(crate) held_bytes: usize,
    pub(crate) surfaced_bytes: usize,
    /// Aborted while with the volume: its end is awaited, not answered. Each abort waits on its token.
    pub(crate) is_aborted: bool,
    pub(crate) tokens: Vec<Arc<()>>,
}

/// Spreads initiator task tags. A host that picks them to collide only slows down its own few tasks.
#[derive(Default)]
pub(crate) struct TagHasher(u64);

impl Hasher for TagHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32(u32::from(*byte)));
    }
    fn write_u32(&mut self, number: u32) {
        let mixed = (self.0 ^ u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        // The map looks at the low and the highest bits.
        self.0 = mixed ^ mixed >> 32;
    }
}

struct Slot {
    generation: u32,
    task: Option<Task>,
}

/// The tasks of a connection.
#[derive(Default)]
pub(crate) struct Tasks {
    slots: Vec<Slot>,
    free: Vec<usize>,
    by_task_tag: HashMap<u32, usize, BuildHasherDefault<TagHasher>>,
}

impl Tasks {
    pub(crate) fn len(&self) -> usize {
        self.by_task_tag.len()
    }

    pub(crate) fn contains(&self, task_tag: u32) -> bool {
        self.by_task_tag.contains_key(&task_tag)
    }

    pub(crate) fn insert(&mut self, task: Task) -> usize {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, task: None });
            self.slots.len() - 1
        });
        self.by_task_tag.insert(task.task_tag, slot);
        self.slots[slot].task = Some(task);
        slot
    }

    pub(crate) fn get(&self, slot: usize) -> Option<&Task> {
        self.slots.get(slot)?.task.as_ref()
    }

    pub(crate) fn get_mut(&mut self, slot: usize) -> Option<&mut Task> {
        self.slots.get_mut(slot)?.task.as_mut()
    }

    pub(crate) fn slot_of(&self, task_tag: u32) -> Option<usize> {
        self.by_task_tag.get(&task_tag).copied()
    }

    pub(crate) fn tag(&self, slot: usize) -> Tag {
        let generation = self.slots.get(slot).map_or(0, |slot| slot.generation);
        Tag(u64::from(generation) << 32 | slot as u64)
    }

    /// Makes the tags given out for a slot unknown, since its task goes on with a further request.
    pub(crate) fn renew(&mut self, slot: usize) {
        if let Some(slot) = self.slots.get_mut(slot) {
            slot.generation = slot.generation.wrapping_add(1);
        }
    }

    /// The slot of a task, unless it is gone and the slot another's.
    pub(crate) fn slot(&self, tag: Tag) -> Option<usize> {
        let slot = (tag.0 & 0xffff_ffff) as usize;
        let found = self.slots.get(slot)?;
        (u64::from(found.generation) == tag.0 >> 32 && found.task.is_some()).then_some(slot)
    }

    /// The slot of a surfaced task.
    pub(crate) fn surfaced(&self, tag: Tag) -> Option<usize> {
        let slot = self.slot(tag)?;
        self.get(slot).is_some_and(|task| matches!(task.stage, Stage::Surfaced)).then_some(slot)
    }

    pub(crate) fn remove(&mut self, slot: usize) -> Option<Task> {
        let found = self.slots.get_mut(slot)?;
        let task = found.task.take()?;
        found.generation = found.generation.wrapping_add(1);
        self.free.push(slot);
        self.by_task_tag.remove(&task.task_tag);
        Some(task)
    }

    /// Slots of the tasks that `wanted` picks.
    pub(crate) fn select(&self, wanted: impl Fn(&Task) -> bool) -> Vec<usize> {
        (0..self.slots.len()).filter(|slot| self.get(*slot).is_some_and(&wanted)).collect()
    }
}
