//! What the initiator sends in full-feature phase.

use super::{Initiator, InitiatorError, Pending, Phase, READ_LENGTH_MAX};
use crate::pdu::{self, Header, RESERVED_TAG, opcode, serial_before};
use crate::scsi::command::encode_lun;
use crate::text;

impl Initiator {
    /// Sends a SCSI command that reads up to `expected_in` bytes or sends `data_out`, not both.
    ///
    /// # Errors
    /// The session is not ready, the window is full, or the command too long; nothing was sent.
    pub fn command(
        &mut self,
        lun: u16,
        cdb: [u8; 16],
        expected_in: u32,
        data_out: &[u8],
    ) -> Result<u32, InitiatorError> {
        let length_out = u32::try_from(data_out.len()).unwrap_or(u32::MAX);
        if expected_in.max(length_out) > READ_LENGTH_MAX {
            return Err(InitiatorError::TooLong);
        }
        self.check_window()?;
        let task = self.enter(lun, expected_in, data_out);
        let first_burst = (self.parameters.first_burst).min(length_out);
        let segment = self.parameters.peer_receive_length;
        let immediate = if self.parameters.immediate_data { first_burst.min(segment) } else { 0 };
        let unsolicited_end = if self.parameters.initial_r2t { immediate } else { first_burst };
        let has_more = unsolicited_end > immediate;
        let mut header = Header::new(opcode::SCSI_COMMAND);
        let direction = if length_out > 0 {
            0x20
        } else if expected_in > 0 {
            0x40
        } else {
            0
        };
        // SIMPLE task attribute.
        header
            .set_flags(u8::from(!has_more) << 7 | direction | 1)
            .set_lun_field(encode_lun(lun))
            .set_task_tag(task)
            .set_u32(20, length_out.max(expected_in));
        header.0[32..48].copy_from_slice(&cdb);
        self.number(&mut header);
        self.command_number = self.command_number.wrapping_add(1);
        pdu::append(&mut self.output, &mut header, &data_out[..immediate as usize], self.digests);
        if has_more {
            self.send_data(task, RESERVED_TAG, immediate, unsolicited_end - immediate);
        }
        Ok(task)
    }

    /// TEST UNIT READY.
    ///
    /// # Errors
    /// As [`command`](Self::command).
    pub fn test_unit_ready(&mut self, lun: u16) -> Result<u32, InitiatorError> {
        self.command(lun, [0; 16], 0, &[])
    }

    /// INQUIRY: standard data, or a vital product data page.
    ///
    /// # Errors
    /// As [`command`](Self::command).
    pub fn inquiry(&mut self, lun: u16, page: Option<u8>) -> Result<u32, InitiatorError> {
        let mut cdb = [0; 16];
        cdb[0] = 0x12;
        cdb[1] = u8::from(page.is_some());
        cdb[2] = page.unwrap_or(0);
        cdb[3..5].copy_from_slice(&1024u16.to_be_bytes());
        self.command(lun, cdb, 1024, &[])
    }

    /// REPORT LUNS.
    ///
    /// # Errors
    /// As [`command`](Self::command).
    pub fn report_luns(&mut self) -> Result<u32, InitiatorError> {
        let mut cdb = [0; 16];
        cdb[0] = 0xa0;
        cdb[6..10].copy_from_slice(&(1u32 << 18).to_be_bytes());
        self.command(0, cdb, 1 << 18, &[])
    }

    /// READ CAPACITY (16); see [`parse_capacity`](crate::parse_capacity).
    ///
    /// # Errors
    /// As [`command`](Self::command).
    pub fn read_capacity(&mut self, lun: u16) -> Result<u32, InitiatorError> {
        let mut cdb = [0; 16];
        cdb[..2].copy_from_slice(&[0x9e, 0x10]);
        cdb[13] = 32;
        self.command(lun, cdb, 32, &[])
    }

    /// REPORT TARGET PORT GROUPS.
    ///
    /// # Errors
    /// As [`command`](Self::command).
    pub fn report_target_port_groups(&mut self, lun: u16) -> Result<u32, InitiatorError> {
        let mut cdb = [0; 16];
        cdb[..2].copy_from_slice(&[0xa3, 0x0a]);
        cdb[6..10].copy_from_slice(&4096u32.to_be_bytes());
        self.command(lun, cdb, 4096, &[])
    }

    /// READ (16).
    ///
    /// # Errors
    /// As [`command`](Self::command).
    pub fn read(
        &mut self,
        lun: u16,
        lba: u64,
        blocks: u32,
        block_size: u32,
    ) -> Result<u32, InitiatorError> {
        let length = blocks.checked_mul(block_size).ok_or(InitiatorError::TooLong)?;
        self.command(lun, block_command(0x88, lba, blocks), length, &[])
    }

    /// WRITE (16) of whole blocks.
    ///
    /// # Errors
    /// As [`command`](Self::command).
    pub fn write(
        &mut self,
        lun: u16,
        lba: u64,
        data: &[u8],
        block_size: u32,
    ) -> Result<u32, InitiatorError> {
        let blocks = u32::try_from(data.len() / block_size.max(1) as usize)
            .map_err(|_| InitiatorError::TooLong)?;
        self.command(lun, block_command(0x8a, lba, blocks), 0, data)
    }

    /// SYNCHRONIZE CACHE (16) of everything.
    ///
    /// # Errors
    /// As [`command`](Self::command).
    pub fn flush(&mut self, lun: u16) -> Result<u32, InitiatorError> {
        self.command(lun, block_command(0x91, 0, 0), 0, &[])
    }

    /// SendTargets; see [`parse_targets`](crate::parse_targets).
    ///
    /// # Errors
    /// As [`command`](Self::command).
    pub fn send_targets(&mut self) -> Result<u32, InitiatorError> {
        self.check_window()?;
        let task = self.enter(0, READ_LENGTH_MAX, &[]);
        let mut keys = Vec::new();
        text::push(&mut keys, "SendTargets", "All");
        let mut header = Header::new(opcode::TEXT);
        header.set_task_tag(task).set_transfer_tag(RESERVED_TAG);
        self.number(&mut header);
        self.command_number = self.command_number.wrapping_add(1);
        pdu::append(&mut self.output, &mut header, &keys, self.digests);
        Ok(task)
    }

    /// NOP-Out whose data comes back.
    ///
    /// # Errors
    /// As [`command`](Self::command).
    pub fn ping(&mut self, data: &[u8]) -> Result<u32, InitiatorError> {
        self.check_window()?;
        let task = self.enter(0, READ_LENGTH_MAX, &[]);
        let mut header = Header::new(opcode::NOP_OUT);
        header.set_task_tag(task).set_transfer_tag(RESERVED_TAG);
        self.number(&mut header);
        self.command_number = self.command_number.wrapping_add(1);
        let length = data.len().min(self.parameters.peer_receive_length as usize);
        pdu::append(&mut self.output, &mut header, &data[..length], self.digests);
        Ok(task)
    }

    /// A task management function: 1 abort task (of `referenced`), 2 abort task set, 5 logical unit
    /// reset (RFC 7143 §11.5.1). Immediate, so that a full window does not hold it up.
    ///
    /// # Errors
    /// The session is not ready.
    pub fn manage(
        &mut self,
        function: u8,
        lun: u16,
        referenced: Option<u32>,
    ) -> Result<u32, InitiatorError> {
        self.check_ready()?;
        let task = self.enter(lun, 0, &[]);
        let mut header = Header::new(opcode::TASK_MANAGEMENT);
        header
            .set_immediate()
            .set_flags(0x80 | function & 0x7f)
            .set_lun_field(encode_lun(lun))
            .set_task_tag(task)
            .set_u32(20, referenced.unwrap_or(RESERVED_TAG));
        self.number(&mut header);
        pdu::append(&mut self.output, &mut header, &[], self.digests);
        Ok(task)
    }

    /// Logs out: the session's end.
    ///
    /// # Errors
    /// The session is not ready.
    pub fn log_out(&mut self) -> Result<u32, InitiatorError> {
        self.check_ready()?;
        let task = self.enter(0, 0, &[]);
        let mut header = Header::new(opcode::LOGOUT);
        header.set_immediate().set_task_tag(task);
        self.number(&mut header);
        pdu::append(&mut self.output, &mut header, &[], self.digests);
        Ok(task)
    }

    /// Whether the target admits another command.
    #[must_use]
    pub fn may_submit(&self) -> bool {
        self.is_ready() && !serial_before(self.max_command, self.command_number)
    }

    fn check_ready(&self) -> Result<(), InitiatorError> {
        match self.phase {
            Phase::Full => Ok(()),
            Phase::Login(_) | Phase::Over => Err(InitiatorError::NotReady),
        }
    }

    fn check_window(&self) -> Result<(), InitiatorError> {
        self.check_ready()?;
        if self.may_submit() { Ok(()) } else { Err(InitiatorError::WindowFull) }
    }

    fn enter(&mut self, lun: u16, expected_in: u32, data_out: &[u8]) -> u32 {
        let task = self.next_task;
        self.next_task = if task + 1 == RESERVED_TAG { 1 } else { task + 1 };
        let pending =
            Pending { lun, expected_in, data_in: Vec::new(), data_out: data_out.to_vec() };
        self.pending.insert(task, pending);
        task
    }

    /// Sends what an R2T asks for.
    pub(super) fn send_asked(&mut self, header: &Header) -> Result<(), InitiatorError> {
        let (offset, length) = (header.buffer_offset(), header.u32_at(44));
        let pending = self.pending.get(&header.task_tag());
        let pending = pending.ok_or(InitiatorError::Protocol("data is asked for no command"))?;
        let end = u64::from(offset) + u64::from(length);
        if length == 0 || end > pending.data_out.len() as u64 {
            return Err(InitiatorError::Protocol("data is asked for beyond the command's"));
        }
        self.send_data(header.task_tag(), header.transfer_tag(), offset, length);
        Ok(())
    }

    /// Sends a sequence of Data-Out.
    fn send_data(&mut self, task: u32, transfer_tag: u32, offset: u32, length: u32) {
        let Some(pending) = self.pending.get(&task) else { return };
        let segment = self.parameters.peer_receive_length;
        let (mut at, end, mut data_number) = (offset, offset + length, 0);
        while at < end {
            let upto = at.saturating_add(segment).min(end);
            let mut header = Header::new(opcode::DATA_OUT);
            header
                .set_flags(u8::from(upto == end) << 7)
                .set_lun_field(encode_lun(pending.lun))
                .set_task_tag(task)
                .set_transfer_tag(transfer_tag)
                .set_u32(28, self.expected_status)
                .set_u32(36, data_number)
                .set_u32(40, at);
            let data = &pending.data_out[at as usize..upto as usize];
            pdu::append(&mut self.output, &mut header, data, self.digests);
            data_number += 1;
            at = upto;
        }
    }
}

fn block_command(opcode: u8, lba: u64, blocks: u32) -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = opcode;
    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
    cdb[10..14].copy_from_slice(&blocks.to_be_bytes());
    cdb
}

/// Blocks and block size of a READ CAPACITY (16) answer; None if it is too short or absurd.
#[must_use]
pub fn parse_capacity(data: &[u8]) -> Option<(u64, u32)> {
    let last = data.get(..8)?.iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
    let size = data.get(8..12)?.iter().fold(0u32, |number, byte| number << 8 | u32::from(*byte));
    Some((last.checked_add(1)?, size)).filter(|(_, size)| *size > 0)
}
