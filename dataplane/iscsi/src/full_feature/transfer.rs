//! Data from the host: immediate, unsolicited, and asked for by R2T (RFC 7143 §4.2.5, §11.7, §11.8).

use super::{FullFeature, HELD_BYTES_MAX};
use crate::connection::{Fatal, Sink};
use crate::pdu::{Header, RESERVED_TAG, opcode};
use crate::scsi::{Sense, status};
use crate::task::{Answer, Stage, Transfer};
use voute_buffer::Buffer;

impl FullFeature {
    /// Sets room aside for a task that will receive data: for all of it if the bound allows, else for
    /// what comes without being asked for.
    pub(super) fn make_room(&mut self, slot: usize) {
        let room = HELD_BYTES_MAX.saturating_sub(self.held_bytes);
        let first_burst = self.parameters.first_burst as usize;
        let Some(task) = self.tasks.get_mut(slot) else { return };
        if !matches!(task.stage, Stage::Receiving { .. }) || task.wanted == 0 {
            return;
        }
        let wanted = task.wanted as usize;
        let length = if wanted <= room { wanted } else { wanted.min(first_burst) };
        task.held_bytes = length;
        self.held_bytes += length;
    }

    /// Makes a first-burst buffer whole; false if there is no room yet.
    fn grow(&mut self, slot: usize) -> bool {
        let Some(task) = self.tasks.get_mut(slot) else { return false };
        let wanted = task.wanted as usize;
        let more = wanted.saturating_sub(task.held_bytes);
        if more == 0 {
            return true;
        }
        // One task may always have its room, or none ever would.
        let is_alone = self.held_bytes == task.held_bytes;
        if self.held_bytes + more > HELD_BYTES_MAX && !is_alone {
            return false;
        }
        let mut whole = Buffer::zeroed(wanted);
        if let Some(part) = &task.buffer {
            whole[..part.len()].copy_from_slice(part);
        }
        task.buffer = Some(whole);
        task.held_bytes = wanted;
        self.held_bytes += more;
        true
    }

    /// Sends R2Ts to the tasks in line, as far as there is room.
    pub(super) fn ask_for_data(&mut self, output: &mut Vec<u8>) {
        while let Some(tag) = self.asking.front().copied() {
            let Some(slot) = self.tasks.slot(tag) else {
                self.asking.pop_front();
                continue;
            };
            let is_receiving = self
                .tasks
                .get(slot)
                .is_some_and(|task| matches!(task.stage, Stage::Receiving { .. }));
            if is_receiving && !self.grow(slot) {
                return;
            }
            self.asking.pop_front();
            if is_receiving {
                while self.ask_once(slot, output) {}
            }
        }
    }

    /// Asks for the next part, if there is one and another transfer may be open.
    fn ask_once(&mut self, slot: usize, output: &mut Vec<u8>) -> bool {
        let (most, burst) =
            (usize::from(self.parameters.max_outstanding_r2t), self.parameters.max_burst);
        let tag = self.next_transfer_tag;
        let Some(task) = self.tasks.get_mut(slot) else { return false };
        if task.requested >= task.wanted || task.transfers.len() >= most {
            return false;
        }
        let transfer = Transfer {
            tag,
            offset: task.requested,
            length: burst.min(task.wanted - task.requested),
            received: 0,
            data_number: 0,
        };
        task.requested += transfer.length;
        task.transfers.push_back(transfer);
        let mut header = Header::new(opcode::R2T);
        header
            .set_lun_field(crate::scsi::command::encode_lun(task.lun))
            .set_task_tag(task.task_tag)
            .set_transfer_tag(tag)
            .set_u32(36, task.transfer_number)
            .set_u32(40, transfer.offset)
            .set_u32(44, transfer.length);
        task.transfer_number += 1;
        // The reserved tag is never given out.
        self.next_transfer_tag = if tag + 1 == RESERVED_TAG { 1 } else { tag + 1 };
        self.number(&mut header, false);
        self.append(&mut header, &[], output);
        true
    }

    /// Fails a task some of whose data is lost. The answer waits until the host has sent the rest.
    pub(super) fn lose_data(&mut self, slot: usize) {
        let Some(task) = self.tasks.get_mut(slot) else { return };
        if matches!(task.stage, Stage::Receiving { .. }) {
            task.stage =
                Stage::Answered(Answer::Status(status::CHECK_CONDITION, Some(Sense::DATA_LOST)));
            task.buffer = None;
        }
    }

    /// Where a Data-Out's data goes. Data of a task that is gone is dropped; data out of order means
    /// that some was lost, which fails the task (§7.9); data beyond what was asked ends the connection.
    pub(super) fn begin_data_out(&mut self, header: &Header) -> Result<Sink, Fatal> {
        let Some(slot) = self.tasks.slot_of(header.task_tag()) else { return Ok(Sink::Ignore) };
        let first_burst = self.parameters.first_burst;
        let (offset, length) = (header.buffer_offset(), header.data_length() as u32);
        let Some(task) = self.tasks.get_mut(slot) else { return Ok(Sink::Ignore) };
        if header.transfer_tag() == RESERVED_TAG {
            let end = offset.checked_add(length).ok_or(Fatal::Protocol)?;
            if !task.unsolicited_open || end > first_burst.min(task.expected_out) {
                return Err(Fatal::Protocol);
            }
            if offset != task.received || header.data_number() != task.data_number {
                self.lose_data(slot);
            }
            return Ok(Sink::Task { slot, offset });
        }
        let Some(transfer) = task.transfers.front() else {
            // A late answer to an R2T of an aborted task of the same tag.
            return Ok(Sink::Ignore);
        };
        if transfer.tag != header.transfer_tag() {
            return Ok(Sink::Ignore);
        }
        let end = u64::from(offset) + u64::from(length);
        if offset < transfer.offset || end > u64::from(transfer.offset) + u64::from(transfer.length)
        {
            return Err(Fatal::Protocol);
        }
        if offset != transfer.offset + transfer.received
            || header.data_number() != transfer.data_number
        {
            self.lose_data(slot);
        }
        Ok(Sink::Task { slot, offset })
    }

    pub(super) fn finish_data_out(
        &mut self,
        header: &Header,
        output: &mut Vec<u8>,
    ) -> Result<(), Fatal> {
        let Some(slot) = self.tasks.slot_of(header.task_tag()) else { return Ok(()) };
        let Some(task) = self.tasks.get_mut(slot) else { return Ok(()) };
        let length = header.data_length() as u32;
        if header.transfer_tag() == RESERVED_TAG {
            task.received = task.received.saturating_add(length);
            task.requested = task.received;
            task.data_number = task.data_number.wrapping_add(1);
            if header.is_final() {
                task.unsolicited_open = false;
                self.advance(slot, output);
            }
            return Ok(());
        }
        let has_failed = matches!(task.stage, Stage::Answered(_));
        let Some(transfer) = task.transfers.front_mut() else { return Ok(()) };
        if has_failed {
            if header.is_final() {
                task.transfers.pop_front();
                self.advance(slot, output);
            }
            return Ok(());
        }
        transfer.received += length;
        transfer.data_number = transfer.data_number.wrapping_add(1);
        let (is_whole, end) =
            (transfer.received == transfer.length, transfer.offset + transfer.length);
        if header.is_final() != is_whole {
            return Err(Fatal::Protocol);
        }
        if is_whole {
            task.transfers.pop_front();
            task.received = end;
            if task.received >= task.wanted {
                self.advance(slot, output);
            } else {
                self.asking.push_back(self.tasks.tag(slot));
                self.ask_for_data(output);
            }
        }
        Ok(())
    }
}
