//! Writes that are on a leg whole or not at all, also after a power cut (docs/mirror-rules.md rule 14).
//!
//! ```text
//! waits for a slot ──► Recording ──► InPlace ──► Retiring ──► done
//!                          └────────────┴───────────┴─ a fault: the leg failed, and is loaded anew
//!
//! loading: heads ──► each live record: its data ──► in place ──► heads emptied ──► Ready
//! ```
//!
//! Each step begins when the one before is durable, and all of them are one request: a token is
//! drained, a claim is held and a host waits until the record is retired. So nothing overlaps a record
//! that is on the device, and a record that is on the device when a leg is loaded is the last thing
//! that was written there. After a fault nobody knows what is on the device; the leg serves nothing
//! until it was read.

use super::{Condition, DevicePurpose, Keeper, LegFault, LegOperation, RELOAD_AFTER, leg_fault};
use crate::action::{DeviceFault, DeviceKind, DeviceResult};
use crate::journal::{
    HEADS_BYTES, JOURNAL_OFFSET, Record, SLOTS, checksum, data_offset, decode_head, empty_heads,
    encode_head, head_offset,
};
use crate::map::PAGE_BYTES;
use crate::out::Out;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use voute_buffer::Buffer;
use voute_schemas::mutant::{self, Mutant};
use voute_schemas::place::LEG_METADATA_BYTES;

/// How often heads or data that make no sense are read: what was torn stays so, what came wrongly
/// from the device does not.
const READS_MAX: u32 = 8;

/// How far an operation is with its record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Journaled {
    Recording { slot: usize },
    InPlace { slot: usize },
    Retiring { slot: usize },
}

/// The slots of a leg's journal. Waiting requests are among the keeper's, and bounded with them.
#[derive(Clone, Default, Debug)]
pub(super) struct Slots {
    taken: [bool; SLOTS],
    waiting: VecDeque<u64>,
}

/// What a leg's journal says while the leg is being loaded.
#[derive(Clone, Default, Debug)]
pub(super) struct Replay {
    /// Records to be carried out, and their slots.
    records: Vec<(usize, Record)>,
    reads: u32,
}

impl Keeper {
    /// Begins a request that is to be whole: its record first.
    pub(super) fn journal(&mut self, key: u64, out: &mut Out) {
        let Some(operation) = self.operations.get_mut(key) else { return };
        let leg = &mut self.legs[operation.leg];
        if !matches!(leg.condition, Condition::Ready) {
            operation.fault = Some(LegFault::Failed);
            return self.finish(key, None, out);
        }
        match leg.slots.taken.iter().position(|taken| !taken) {
            Some(slot) => self.write_record(key, slot, out),
            None => leg.slots.waiting.push_back(key),
        }
    }

    fn write_record(&mut self, key: u64, slot: usize, out: &mut Out) {
        let token = self.held;
        let Some(operation) = self.operations.get_mut(key) else { return };
        let index = operation.leg;
        let leg = &mut self.legs[index];
        leg.slots.taken[slot] = true;
        operation.journaled = Some(Journaled::Recording { slot });
        let (offset, length) = operation.kind.range();
        let data = match &operation.kind {
            LegOperation::Write { data, .. } => Some(Arc::clone(data)),
            LegOperation::Zero { .. } | LegOperation::Read { .. } => None,
        };
        operation.waiting = if data.is_some() { 2 } else { 1 };
        let checksum = data.as_deref().map(|data| checksum(data));
        let head = encode_head(leg.id, slot, Some(Record { token, offset, length, checksum }));
        let purpose = || DevicePurpose::Operation { key };
        if let Some(data) = data {
            self.device(index, data_offset(slot), DeviceKind::Write { data }, purpose(), out);
        }
        let data = Arc::new(Buffer::copy_of(&head));
        self.device(index, head_offset(slot), DeviceKind::Write { data }, purpose(), out);
        if mutant::is_active(Mutant::RecordNotAwaited) {
            self.put_in_place(key, slot, out);
        }
    }

    fn put_in_place(&mut self, key: u64, slot: usize, out: &mut Out) {
        let Some(operation) = self.operations.get_mut(key) else { return };
        operation.journaled = Some(Journaled::InPlace { slot });
        operation.waiting += 1;
        let index = operation.leg;
        let (offset, kind) = match &operation.kind {
            LegOperation::Write { offset, data, .. } => {
                (*offset, DeviceKind::Write { data: Arc::clone(data) })
            }
            LegOperation::Zero { offset, length, release, .. } => {
                (*offset, DeviceKind::Zero { length: *length, release: *release })
            }
            LegOperation::Read { .. } => return self.finish(key, None, out),
        };
        let purpose = DevicePurpose::Operation { key };
        self.device(index, LEG_METADATA_BYTES + offset, kind, purpose, out);
    }

    /// A step of a journaled request is durable, or failed.
    pub(super) fn journaled(
        &mut self,
        key: u64,
        journaled: Journaled,
        now: Duration,
        out: &mut Out,
    ) {
        let Some(operation) = self.operations.get_mut(key) else { return };
        let leg = operation.leg;
        if operation.fault.is_some() {
            return self.journal_failed(key, leg, now, out);
        }
        match journaled {
            Journaled::Recording { slot } => self.put_in_place(key, slot, out),
            Journaled::InPlace { slot } if mutant::is_active(Mutant::RecordNotRetired) => {
                self.slot_is_free(leg, slot, out);
                self.finish(key, None, out);
            }
            Journaled::InPlace { slot } => {
                operation.journaled = Some(Journaled::Retiring { slot });
                operation.waiting = 1;
                let head = encode_head(self.legs[leg].id, slot, None);
                let data = Arc::new(Buffer::copy_of(&head));
                let purpose = DevicePurpose::Operation { key };
                self.device(leg, head_offset(slot), DeviceKind::Write { data }, purpose, out);
            }
            Journaled::Retiring { slot } => {
                self.slot_is_free(leg, slot, out);
                if !self.regains(key, out) {
                    self.finish(key, None, out);
                }
            }
        }
    }

    fn slot_is_free(&mut self, leg: usize, slot: usize, out: &mut Out) {
        let slots = &mut self.legs[leg].slots;
        slots.taken[slot] = false;
        if let Some(next) = slots.waiting.pop_front() {
            self.write_record(next, slot, out);
        }
    }

    /// The record may be on the device, and half of the blocks. The slot stays taken: what is in it
    /// is carried out, or found torn, when the leg is loaded anew, before anything else is written.
    fn journal_failed(&mut self, key: u64, leg: usize, now: Duration, out: &mut Out) {
        self.leg_failed(leg, Some(now + RELOAD_AFTER), "its journal cannot be written");
        for waiting in std::mem::take(&mut self.legs[leg].slots.waiting) {
            if let Some(operation) = self.operations.get_mut(waiting) {
                operation.fault = Some(LegFault::Failed);
            }
            self.finish(waiting, None, out);
        }
        self.finish(key, None, out);
    }

    // --- loading

    /// Looks for records that were not retired, before the leg can be used.
    pub(super) fn load_journal(&mut self, leg: usize, out: &mut Out) {
        self.legs[leg].replay = Replay::default();
        self.read_heads(leg, out);
    }

    fn read_heads(&mut self, leg: usize, out: &mut Out) {
        let length = u32::try_from(HEADS_BYTES).expect("a few pages");
        let purpose = DevicePurpose::LoadHeads { leg };
        self.device(leg, JOURNAL_OFFSET, DeviceKind::Read { length }, purpose, out);
    }

    pub(super) fn heads_loaded(
        &mut self,
        index: usize,
        result: DeviceResult,
        now: Duration,
        out: &mut Out,
    ) {
        let area = match result {
            Ok(area) => area,
            Err(DeviceFault::Medium) => None,
            Err(DeviceFault::Unclear | DeviceFault::Failed | DeviceFault::NoSpace) => {
                return self.leg_failed(
                    index,
                    Some(now + RELOAD_AFTER),
                    "its journal cannot be read",
                );
            }
        };
        let leg = &mut self.legs[index];
        let pages = area.as_deref().unwrap_or_default().chunks(PAGE_BYTES);
        let heads: Vec<_> =
            pages.enumerate().map(|(slot, head)| decode_head(leg.id, slot, head)).collect();
        let is_whole = heads.len() == SLOTS && heads.iter().all(Option::is_some);
        leg.replay.reads += 1;
        if !is_whole && leg.replay.reads < READS_MAX {
            return self.read_heads(index, out);
        }
        // A leg that was formatted before there were journals has no heads at all.
        if is_whole && heads.iter().flatten().all(Option::is_none) {
            return self.loaded(index, out);
        }
        let held = leg.header.token;
        let records = heads.into_iter().enumerate();
        let records = records.filter_map(|(slot, head)| Some((slot, head??)));
        let may_be = |record: &Record| record.is_live(&held) && record.fits(leg.header.size_bytes);
        leg.replay.records = records.filter(|(_, record)| may_be(record)).collect();
        if mutant::is_active(Mutant::RecordsForgotten) {
            leg.replay.records.clear();
        }
        self.next_record(index, out);
    }

    fn next_record(&mut self, leg: usize, out: &mut Out) {
        self.legs[leg].replay.reads = 0;
        match self.legs[leg].replay.records.last() {
            None => {
                let data = Arc::new(Buffer::copy_of(&empty_heads(self.legs[leg].id)));
                let purpose = DevicePurpose::EmptyHeads { leg };
                self.device(leg, JOURNAL_OFFSET, DeviceKind::Write { data }, purpose, out);
            }
            Some((_, Record { checksum: None, offset, length, .. })) => {
                let (at, kind) = (*offset, DeviceKind::Zero { length: *length, release: false });
                let purpose = DevicePurpose::CarryOut { leg };
                self.device(leg, LEG_METADATA_BYTES + at, kind, purpose, out);
            }
            Some(_) => self.read_record(leg, out),
        }
    }

    fn read_record(&mut self, leg: usize, out: &mut Out) {
        let Some((slot, record)) = self.legs[leg].replay.records.last() else { return };
        let length = u32::try_from(record.length).expect("it was checked to fit a slot");
        let purpose = DevicePurpose::LoadRecord { leg };
        self.device(leg, data_offset(*slot), DeviceKind::Read { length }, purpose, out);
    }

    pub(super) fn record_loaded(
        &mut self,
        index: usize,
        result: DeviceResult,
        now: Duration,
        out: &mut Out,
    ) {
        let data = match result {
            Ok(data) => data,
            Err(DeviceFault::Medium) => None,
            Err(DeviceFault::Unclear | DeviceFault::Failed | DeviceFault::NoSpace) => {
                return self.leg_failed(
                    index,
                    Some(now + RELOAD_AFTER),
                    "its journal cannot be read",
                );
            }
        };
        let replay = &mut self.legs[index].replay;
        let Some((_, record)) = replay.records.last() else { return };
        let offset = record.offset;
        match data.filter(|data| Some(checksum(data)) == record.checksum) {
            Some(data) => {
                let purpose = DevicePurpose::CarryOut { leg: index };
                let kind = DeviceKind::Write { data: Arc::new(data) };
                self.device(index, LEG_METADATA_BYTES + offset, kind, purpose, out);
            }
            None if replay.reads < READS_MAX => {
                replay.reads += 1;
                self.read_record(index, out);
            }
            // Torn: its blocks were not touched.
            None => {
                replay.records.pop();
                self.next_record(index, out);
            }
        }
    }

    pub(super) fn carried_out(
        &mut self,
        leg: usize,
        result: DeviceResult,
        now: Duration,
        out: &mut Out,
    ) {
        if result.map_err(leg_fault).is_err() {
            let detail = "what its journal holds cannot be carried out";
            return self.leg_failed(leg, Some(now + RELOAD_AFTER), detail);
        }
        self.legs[leg].replay.records.pop();
        self.next_record(leg, out);
    }

    pub(super) fn heads_emptied(
        &mut self,
        leg: usize,
        result: DeviceResult,
        now: Duration,
        out: &mut Out,
    ) {
        match result {
            Ok(_) => self.loaded(leg, out),
            Err(_) => {
                self.leg_failed(leg, Some(now + RELOAD_AFTER), "its journal cannot be emptied");
            }
        }
    }
}
