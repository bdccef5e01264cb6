//! The commands that a connection has not answered yet.

use voute_buffer::Buffer;

use crate::{Fuse, Status, SubmissionEntry, Tag};

/// How far a command has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Free,
    /// Its capsule is being read.
    Arriving,
    /// Waits until an R2T may be sent.
    AwaitingCredit,
    /// An R2T is out.
    Requested,
    /// Half of a fused pair, complete, the other half is not.
    AwaitingPartner,
    /// Complete, not yet surfaced.
    Ready,
    /// In the hands of the volume layer.
    Surfaced,
    /// An asynchronous event request.
    AwaitingEvent,
}

pub(super) struct Slot {
    serial: u64,
    pub(super) stage: Stage,
    pub(super) entry: SubmissionEntry,
    pub(super) payload: Option<Buffer>,
    /// Bytes of data that the host sends.
    pub(super) expected: usize,
    pub(super) received: usize,
    /// Bytes that the host takes back at most.
    pub(super) reply_max: usize,
    /// Answered so once its data is in.
    pub(super) defect: Option<Status>,
    pub(super) fuse: Fuse,
    pub(super) partner: Option<u16>,
    /// Bytes counted while the request is surfaced.
    pub(super) charge: usize,
    owns_id: bool,
}

/// All commands of a connection, at most `limit` at a time.
pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<u16>,
    limit: usize,
    next_serial: u64,
    /// One bit per command identifier in use.
    ids: Box<[u64; 1024]>,
}

impl Slots {
    pub(super) fn new(limit: usize) -> Self {
        Slots {
            slots: Vec::new(),
            free: Vec::new(),
            limit,
            next_serial: 1,
            ids: Box::new([0; 1024]),
        }
    }

    pub(super) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// A slot for `entry`, or `None` when the queue is full. A command whose identifier is already in
    /// use gets a slot too, with a defect.
    pub(super) fn claim(&mut self, entry: SubmissionEntry) -> Option<u16> {
        if self.in_use() >= self.limit {
            return None;
        }
        let owns_id = self.take_id(entry.command_id());
        let slot = Slot {
            serial: self.next_serial,
            stage: Stage::Arriving,
            entry,
            payload: None,
            expected: 0,
            received: 0,
            reply_max: 0,
            defect: (!owns_id).then(Status::command_id_conflict),
            fuse: Fuse::Normal,
            partner: None,
            charge: 0,
            owns_id,
        };
        self.next_serial += 1;
        if let Some(index) = self.free.pop() {
            self.slots[usize::from(index)] = slot;
            return Some(index);
        }
        self.slots.push(slot);
        Some((self.slots.len() - 1) as u16)
    }

    pub(super) fn release(&mut self, index: u16) {
        let slot = &mut self.slots[usize::from(index)];
        slot.stage = Stage::Free;
        slot.payload = None;
        if slot.owns_id {
            let id = usize::from(slot.entry.command_id());
            self.ids[id / 64] &= !(1 << (id % 64));
        }
        self.free.push(index);
    }

    pub(super) fn in_use(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn get(&self, index: u16) -> Option<&Slot> {
        self.slots.get(usize::from(index)).filter(|slot| slot.stage != Stage::Free)
    }

    pub(super) fn at(&mut self, index: u16) -> &mut Slot {
        &mut self.slots[usize::from(index)]
    }

    pub(super) fn tag(&self, index: u16) -> Tag {
        Tag(self.slots[usize::from(index)].serial << 16 | u64::from(index))
    }

    /// The surfaced command that `tag` names.
    pub(super) fn surfaced(&self, tag: Tag) -> Option<u16> {
        let index = tag.0 as u16;
        let slot = self.get(index)?;
        (slot.serial == tag.0 >> 16 && slot.stage == Stage::Surfaced).then_some(index)
    }

    /// Frees everything that the volume layer does not hold.
    pub(super) fn abandon_all_but_surfaced(&mut self) {
        for index in 0..self.slots.len() as u16 {
            let slot = self.at(index);
            match slot.stage {
                Stage::Free => {}
                Stage::Surfaced => slot.partner = None,
                _ => self.release(index),
            }
        }
    }

    /// Slots in a given stage.
    pub(super) fn in_stage(&self, stage: Stage) -> impl Iterator<Item = u16> + '_ {
        self.slots
            .iter()
            .enumerate()
            .filter(move |(_, slot)| slot.stage == stage)
            .map(|(index, _)| index as u16)
    }

    /// Whether the identifier was free.
    fn take_id(&mut self, id: u16) -> bool {
        let (word, bit) = (usize::from(id) / 64, 1 << (id % 64));
        let was_free = self.ids[word] & bit == 0;
        self.ids[word] |= bit;
        was_free
    }
}
