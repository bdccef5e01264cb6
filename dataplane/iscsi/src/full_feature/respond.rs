//! Answers: Data-In with phase-collapsed status, SCSI responses, residuals, NOP, Reject (RFC 7143
//! §11.4, §11.7, §11.17–11.19).

use super::FullFeature;
use crate::pdu::{self, Header, RESERVED_TAG, opcode};
use crate::request::{AllocationExtent, BlockRange, Failure, Outcome};
use crate::scsi::command::{allocation_data, cut};
use crate::scsi::reservation;
use crate::scsi::{Sense, status};
use crate::task::{Answer, Stage, Task};
use voute_buffer::Buffer;

/// Residual flags: overflow, underflow.
const OVERFLOW: u8 = 0x04;
const UNDERFLOW: u8 = 0x02;
/// Data-In: status is included.
const HAS_STATUS: u8 = 0x01;

/// The residual flag and count of a transfer of `actual` bytes where `expected` were announced.
fn residual(expected: u32, actual: u32) -> (u8, u32) {
    match actual.cmp(&expected) {
        std::cmp::Ordering::Greater => (OVERFLOW, actual - expected),
        std::cmp::Ordering::Less => (UNDERFLOW, expected - actual),
        std::cmp::Ordering::Equal => (0, 0),
    }
}

/// The status that tells a volume's failure, and the sense data if it needs any.
pub(super) fn status_of(failure: Failure) -> (u8, Option<Sense>) {
    match (failure, Sense::of_failure(failure)) {
        (_, Some(sense)) => (status::CHECK_CONDITION, Some(sense)),
        (Failure::Reservation(_), None) => (status::RESERVATION_CONFLICT, None),
        (_, None) => (status::BUSY, None),
    }
}

impl FullFeature {
    /// Sends the answer that a task holds.
    pub(super) fn answer(&mut self, slot: usize, output: &mut Vec<u8>) {
        let Some(task) = self.tasks.get_mut(slot) else { return };
        match std::mem::replace(&mut task.stage, Stage::Waiting) {
            Stage::Answered(Answer::Data(data)) => self.answer_data(slot, &data, output),
            Stage::Answered(Answer::Status(code, sense)) => {
                self.answer_status(slot, code, sense, output)
            }
            other => task.stage = other,
        }
    }

    pub(super) fn answer_outcome(&mut self, slot: usize, outcome: Outcome, output: &mut Vec<u8>) {
        let Some(task) = self.tasks.get(slot) else { return };
        match outcome {
            Outcome::Data(data) => self.answer_read(slot, data, output),
            Outcome::Done if let Some(BlockRange { lba, blocks }) = task.asked => {
                let all = AllocationExtent { lba, blocks, mapped: true };
                let data = allocation_data(&[all], true, task.allocation);
                self.answer_data(slot, &data, output);
            }
            Outcome::Done => self.answer_status(slot, status::GOOD, None, output),
            Outcome::Reservations(state) => match task.report {
                Some(action) => {
                    let data = cut(reservation::report(action, &state), task.allocation);
                    self.answer_data(slot, &data, output);
                }
                None => self.answer_status(slot, status::GOOD, None, output),
            },
            Outcome::Allocation(extents) => {
                let is_thin = self.units.find(task.lun).is_none_or(|unit| unit.view.thin);
                let data = allocation_data(&extents, is_thin, task.allocation);
                self.answer_data(slot, &data, output);
            }
            Outcome::Miscompare { offset } => {
                self.answer_status(
                    slot,
                    status::CHECK_CONDITION,
                    Some(Sense::miscompare(offset)),
                    output,
                );
            }
            Outcome::Failed(failure) => {
                let (code, sense) = status_of(failure);
                self.answer_status(slot, code, sense, output);
            }
        }
    }

    /// Sends what was read: by itself if that is wanted, and one PDU holds it all.
    fn answer_read(&mut self, slot: usize, data: Buffer, output: &mut Vec<u8>) {
        let Some(task) = self.tasks.get(slot) else { return };
        let (segment, burst) = (self.parameters.peer_receive_length, self.parameters.max_burst);
        let most = segment.min(burst).min(task.expected_in) as usize;
        if data.len() < self.insets.from || data.is_empty() || data.len() > most {
            return self.answer_data(slot, &data, output);
        }
        let Some(task) = self.remove(slot) else { return };
        let (flag, count) = residual(task.expected_in, data.len() as u32);
        let mut header = Header::new(opcode::DATA_IN);
        header
            .set_flags(0x80 | flag | HAS_STATUS)
            .set_task_tag(task.task_tag)
            .set_transfer_tag(RESERVED_TAG)
            .set_u32(44, count);
        self.number(&mut header, true);
        self.insets.bytes += data.len();
        let inset = pdu::append_around(output, &mut header, data, self.digests);
        self.insets.waiting.push_back(inset);
    }

    /// Sends data and GOOD, cut to what the host expects.
    pub(super) fn answer_data(&mut self, slot: usize, data: &[u8], output: &mut Vec<u8>) {
        let Some(task) = self.remove(slot) else { return };
        let actual = data.len() as u32;
        let sent = &data[..data.len().min(task.expected_in as usize)];
        if sent.is_empty() {
            return self.respond(
                &task,
                status::GOOD,
                &[],
                residual(task.expected_in, actual),
                0,
                output,
            );
        }
        let segment = self.parameters.peer_receive_length as usize;
        let burst = self.parameters.max_burst as usize;
        let (mut offset, mut number) = (0, 0);
        output.reserve(sent.len() + sent.len().div_ceil(segment) * 56);
        while offset < sent.len() {
            let burst_end = (offset / burst + 1) * burst;
            let end = (offset + segment).min(burst_end).min(sent.len());
            let mut header = Header::new(opcode::DATA_IN);
            let is_last = end == sent.len();
            let is_final = is_last || end == burst_end;
            let (flag, count) = if is_last { residual(task.expected_in, actual) } else { (0, 0) };
            header
                .set_flags(u8::from(is_final) << 7 | flag | if is_last { HAS_STATUS } else { 0 })
                .set_task_tag(task.task_tag)
                .set_transfer_tag(RESERVED_TAG)
                .set_u32(36, number)
                .set_u32(40, offset as u32)
                .set_u32(44, count);
            self.number(&mut header, is_last);
            if !is_last {
                // StatSN is reserved without status.
                header.set_u32(24, 0);
            }
            pdu::append(output, &mut header, &sent[offset..end], self.digests);
            number += 1;
            offset = end;
        }
    }

    /// Sends a SCSI response.
    pub(super) fn answer_status(
        &mut self,
        slot: usize,
        code: u8,
        sense: Option<Sense>,
        output: &mut Vec<u8>,
    ) {
        let Some(task) = self.remove(slot) else { return };
        let mut data = Vec::new();
        if let Some(sense) = sense {
            let as_descriptors =
                self.units.find(task.lun).is_some_and(|unit| unit.shared.descriptor_sense());
            let sense = sense.encode(as_descriptors);
            data.extend_from_slice(&(sense.len() as u16).to_be_bytes());
            data.extend_from_slice(&sense);
        }
        let (expected, actual) = if task.expected_out > 0 {
            (task.expected_out, task.length_out)
        } else {
            (task.expected_in, task.length_out)
        };
        let sent_count = task.transfer_number;
        self.respond(&task, code, &data, residual(expected, actual), sent_count, output);
    }

    fn respond(
        &mut self,
        task: &Task,
        code: u8,
        data: &[u8],
        (flag, count): (u8, u32),
        data_number: u32,
        output: &mut Vec<u8>,
    ) {
        let mut header = Header::new(opcode::SCSI_RESPONSE);
        header
            .set_flags(0x80 | flag)
            .set_task_tag(task.task_tag)
            .set_u32(36, data_number)
            .set_u32(44, count);
        header.0[3] = code;
        self.number(&mut header, true);
        self.append(&mut header, data, output);
    }

    /// Answers a NOP-Out that asks for it; another one is itself an answer to our ping (§11.18).
    pub(super) fn answer_nop(&mut self, request: &Header, data: &[u8], output: &mut Vec<u8>) {
        if request.task_tag() == RESERVED_TAG {
            return;
        }
        let mut header = Header::new(opcode::NOP_IN);
        header
            .set_lun_field(request.lun_field())
            .set_task_tag(request.task_tag())
            .set_transfer_tag(RESERVED_TAG);
        self.number(&mut header, true);
        let echoed = data.len().min(self.parameters.peer_receive_length as usize);
        self.append(&mut header, &data[..echoed], output);
    }

    /// Asks for a sign of life.
    pub(crate) fn ping(&mut self, output: &mut Vec<u8>) {
        let mut header = Header::new(opcode::NOP_IN);
        header.set_task_tag(RESERVED_TAG).set_transfer_tag(self.next_transfer_tag);
        self.next_transfer_tag =
            if self.next_transfer_tag + 1 == RESERVED_TAG { 1 } else { self.next_transfer_tag + 1 };
        self.number(&mut header, false);
        self.append(&mut header, &[], output);
    }

    /// Sends back the header of a PDU that is refused.
    pub(super) fn reject(&mut self, refused: &Header, reason: u8, output: &mut Vec<u8>) {
        let mut header = Header::new(opcode::REJECT);
        header.0[2] = reason;
        header.set_task_tag(RESERVED_TAG);
        self.number(&mut header, true);
        self.append(&mut header, &refused.0, output);
    }

    /// An asynchronous message (§11.9): 1 asks for a logout, 3 announces the end of the session.
    pub(super) fn send_async(&mut self, event: u8, seconds: u16, output: &mut Vec<u8>) {
        let mut header = Header::new(opcode::ASYNC_MESSAGE);
        header.set_task_tag(RESERVED_TAG);
        header.0[36] = event;
        header.set_u16(42, seconds);
        self.number(&mut header, true);
        self.append(&mut header, &[], output);
    }

    pub(crate) fn ask_logout(&mut self, seconds: u16, output: &mut Vec<u8>) {
        self.send_async(1, seconds, output);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn residuals_tell_what_was_announced_too_little_or_too_much() {
        assert_eq!(residual(512, 512), (0, 0));
        assert_eq!(residual(0, 512), (OVERFLOW, 512));
        assert_eq!(residual(200, 512), (OVERFLOW, 312));
        assert_eq!(residual(10_000, 512), (UNDERFLOW, 9488));
    }
}
