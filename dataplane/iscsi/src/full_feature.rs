//! Full-feature phase: numbering, dispatch of PDUs, the way of a command from its header to the
//! volume and back.
//!
//! ```text
//!   command ─► receiving ─► ready ─► surfaced ─► answered, gone
//!        └───────┴────────────┴──────────────────────▲
//! ```
//!
//! A surfaced task is never cancelled: an abort waits for its end and only withholds the answer.

mod copying;
mod management;
mod respond;
mod text_request;
mod transfer;
mod units;

use crate::connection::{Fatal, OUTPUT_HIGH, Sink};
use crate::login::Entered;
use crate::negotiation::Parameters;
use crate::pdu::{self, Digests, Header, RESERVED_TAG, opcode, reject, serial_before};
use crate::request::{BlockRange, Operation, Outcome, Request, Tag};
use crate::scsi::cdb::Cdb;
use crate::scsi::command::{self, Context, Plan, Refusal, Work};
use crate::scsi::copy_results::{CopyResults, State};
use crate::scsi::{Attention, Sense, status};
use crate::session::{self, Mail, Session};
use crate::target::{Directory, Portal, Target};
use crate::task::{Answer, Stage, Task, Tasks};
pub(crate) use copying::CopyTask;
use management::PendingAnswer;
use std::collections::VecDeque;
use std::sync::Arc;
use text_request::TextAnswer;
use units::Units;
use voute_buffer::{Buffer, Inset};
use voute_reservation::Nexus;

/// Commands that a host may have under way.
pub(crate) const COMMAND_WINDOW: u32 = 128;
/// Immediate commands beyond the window.
const IMMEDIATE_MAX: usize = 16;
/// Bytes of write data awaited or held, beyond each command's first burst.
const HELD_BYTES_MAX: usize = 32 << 20;
/// Bytes of data with the volume at once; one request may exceed it alone.
const SURFACED_BYTES_MAX: usize = 32 << 20;

pub(crate) struct FullFeature {
    target: Arc<Target>,
    portal: Portal,
    initiator: Arc<str>,
    session: Option<Arc<Session>>,
    predecessor: Option<Arc<Session>>,
    nexus: Nexus,
    parameters: Parameters,
    digests: Digests,
    status_number: u32,
    expected_command: u32,
    tasks: Tasks,
    immediate_tasks: usize,
    ready: VecDeque<Tag>,
    /// Receiving tasks that must ask for data once there is room.
    asking: VecDeque<Tag>,
    next_transfer_tag: u32,
    held_bytes: usize,
    surfaced: usize,
    surfaced_bytes: usize,
    units: Units,
    pending: Vec<PendingAnswer>,
    copies: CopyResults,
    text: Option<TextAnswer>,
    insets: Insets,
    is_over: bool,
}

/// Read data that goes out between the output's bytes without being copied there.
#[derive(Debug)]
pub(crate) struct Insets {
    /// Data of at least so many bytes does.
    pub(crate) from: usize,
    /// In order of where they belong in the output.
    pub(crate) waiting: VecDeque<Inset>,
    /// Sum of their lengths.
    pub(crate) bytes: usize,
}

impl Default for Insets {
    /// None until somebody asks for them.
    fn default() -> Self {
        Insets { from: usize::MAX, waiting: VecDeque::new(), bytes: 0 }
    }
}

impl FullFeature {
    pub(crate) fn new(target: Arc<Target>, portal: Portal, entered: Entered) -> Self {
        let nexus = match &entered.session {
            Some(session) => session.nexus().clone(),
            None => session::nexus(&entered.initiator, [0; 6], portal.relative_port),
        };
        let mut full = FullFeature {
            digests: entered.parameters.digests(),
            units: Units::default(),
            target,
            portal,
            initiator: entered.initiator,
            session: entered.session,
            predecessor: entered.predecessor,
            nexus,
            parameters: entered.parameters,
            status_number: entered.status_number,
            expected_command: entered.expected_command_number,
            tasks: Tasks::default(),
            immediate_tasks: 0,
            ready: VecDeque::new(),
            asking: VecDeque::new(),
            next_transfer_tag: 1,
            held_bytes: 0,
            surfaced: 0,
            surfaced_bytes: 0,
            pending: Vec::new(),
            copies: CopyResults::default(),
            text: None,
            insets: Insets::default(),
            is_over: false,
        };
        full.load_units();
        full
    }

    pub(crate) fn digests(&self) -> Digests {
        self.digests
    }
    pub(crate) fn initiator(&self) -> &str {
        &self.initiator
    }
    pub(crate) fn outstanding(&self) -> usize {
        self.surfaced
    }
    /// The connection has nothing more to do.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over
    }
    pub(crate) fn has_ended(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.has_ended())
    }
    /// Whether the requests of the session that this one replaces are still with their volumes.
    pub(crate) fn is_held(&self) -> bool {
        self.predecessor.as_ref().is_some_and(|predecessor| predecessor.outstanding() > 0)
    }
    /// Whether an answer waits for other sessions' requests.
    pub(crate) fn waits_for_others(&self) -> bool {
        !self.pending.is_empty()
    }

    pub(crate) fn insets(&mut self) -> &mut Insets {
        &mut self.insets
    }
    /// Bytes that are to be sent and not yet taken.
    pub(crate) fn unsent(&self, output: &[u8]) -> usize {
        output.len() + self.insets.bytes
    }

    /// The session is over; what is surfaced goes on.
    pub(crate) fn end(&mut self) {
        if let Some(session) = &self.session {
            self.target.leave(session);
        }
        self.drop_unsurfaced();
        self.pending.clear();
    }

    fn drop_unsurfaced(&mut self) {
        for slot in self.tasks.select(|task| !matches!(task.stage, Stage::Surfaced)) {
            self.remove(slot);
        }
        self.ready.clear();
        self.asking.clear();
    }

    /// What time or other sessions have changed.
    pub(crate) fn poll(&mut self, output: &mut Vec<u8>) {
        if !self.is_held() {
            self.predecessor = None;
        }
        self.read_mail();
        self.refresh_units(output);
        self.answer_pending(output);
    }

    /// A PDU's header is there; tells where its data goes.
    pub(crate) fn begin(&mut self, header: &Header, output: &mut Vec<u8>) -> Result<Sink, Fatal> {
        match header.opcode() {
            opcode::DATA_OUT => return self.begin_data_out(header),
            opcode::NOP_OUT
            | opcode::SCSI_COMMAND
            | opcode::TASK_MANAGEMENT
            | opcode::TEXT
            | opcode::LOGOUT => {}
            // Refused once the PDU is whole; unknown opcodes carry no command number that counts.
            _ => return Ok(Sink::Collect),
        }
        if !self.admit(header)? {
            return Ok(Sink::Ignore);
        }
        if header.opcode() == opcode::SCSI_COMMAND {
            return self.begin_command(header, output);
        }
        Ok(Sink::Collect)
    }

    /// Takes data for a task. Its memory is taken with the first of it: data that comes as one, as most
    /// small writes do, needs no zeroes first.
    pub(crate) fn place(&mut self, slot: usize, offset: u32, bytes: &[u8]) {
        let Some(task) = self.tasks.get_mut(slot) else { return };
        if !matches!(task.stage, Stage::Receiving { .. }) {
            return;
        }
        if task.buffer.is_none() && offset == 0 && bytes.len() == task.held_bytes {
            task.buffer = Some(Buffer::copy_of(bytes));
            return;
        }
        let buffer = task.buffer.get_or_insert_with(|| Buffer::zeroed(task.held_bytes));
        let offset = offset as usize;
        if offset < buffer.len() {
            let length = bytes.len().min(buffer.len() - offset);
            buffer[offset..offset + length].copy_from_slice(&bytes[..length]);
        }
    }

    /// A PDU is whole, and its digests hold.
    pub(crate) fn finish(
        &mut self,
        header: &Header,
        data: &[u8],
        output: &mut Vec<u8>,
    ) -> Result<(), Fatal> {
        match header.opcode() {
            opcode::SCSI_COMMAND => self.finish_immediate_data(header, output),
            opcode::DATA_OUT => self.finish_data_out(header, output)?,
            opcode::NOP_OUT => self.answer_nop(header, data, output),
            opcode::TASK_MANAGEMENT => self.manage(header, output),
            opcode::TEXT => self.answer_text(header, data, output)?,
            opcode::LOGOUT => self.log_out(header, output),
            opcode::LOGIN => return Err(Fatal::Protocol),
            _ => self.reject(header, reject::COMMAND_NOT_SUPPORTED, output),
        }
        Ok(())
    }

    /// A PDU whose data digest does not hold: told, its data dropped, its task failed (§7.8).
    pub(crate) fn finish_corrupt(
        &mut self,
        header: &Header,
        output: &mut Vec<u8>,
    ) -> Result<(), Fatal> {
        self.reject(header, reject::DATA_DIGEST, output);
        match header.opcode() {
            opcode::SCSI_COMMAND => {
                if let Some(slot) = self.tasks.slot_of(header.task_tag()) {
                    self.lose_data(slot);
                }
                self.finish_immediate_data(header, output);
            }
            opcode::DATA_OUT => {
                if let Some(slot) = self.tasks.slot_of(header.task_tag()) {
                    self.lose_data(slot);
                }
                self.finish_data_out(header, output)?;
            }
            _ => {}
        }
        Ok(())
    }

    /// Checks the command number (RFC 7143 §4.2.2.1). Outside the window: silently ignored. A gap
    /// inside it cannot close on the one connection of the session.
    fn admit(&mut self, header: &Header) -> Result<bool, Fatal> {
        let number = header.command_number();
        if header.is_immediate() {
            return Ok(true);
        }
        if serial_before(number, self.expected_command) || serial_before(self.max_command(), number)
        {
            return Ok(false);
        }
        if number != self.expected_command {
            return Err(Fatal::Protocol);
        }
        self.expected_command = self.expected_command.wrapping_add(1);
        Ok(true)
    }

    /// MaxCmdSN: the window less the tasks that fill it. It never falls, since a task enters as its
    /// number is used up.
    fn max_command(&self) -> u32 {
        let used = (self.tasks.len() - self.immediate_tasks) as u32;
        self.expected_command.wrapping_add(COMMAND_WINDOW.saturating_sub(used)).wrapping_sub(1)
    }

    fn begin_command(&mut self, header: &Header, output: &mut Vec<u8>) -> Result<Sink, Fatal> {
        if self.session.is_none() {
            return Err(Fatal::Protocol);
        }
        if self.tasks.contains(header.task_tag()) || header.task_tag() == RESERVED_TAG {
            return Err(Fatal::Protocol);
        }
        if header.is_immediate() && self.immediate_tasks >= IMMEDIATE_MAX {
            self.reject(header, reject::TOO_MANY_IMMEDIATE, output);
            return Ok(Sink::Ignore);
        }
        let mut task = self.new_task(header)?;
        self.read_mail();
        self.refresh_units(output);
        if self.is_over {
            return Ok(Sink::Ignore);
        }
        let cdb = Cdb(header.cdb());
        let plan = self.plan(&cdb, &mut task, header.lun_field());
        if let Ok(Plan::Take { length, .. }) = &plan {
            task.length_out = *length;
            task.wanted = (*length).min(task.expected_out);
        }
        self.immediate_tasks += usize::from(task.is_immediate);
        let slot = self.tasks.insert(task);
        self.carry_out(slot, plan);
        self.make_room(slot);
        Ok(Sink::Task { slot, offset: 0 })
    }

    fn new_task(&self, header: &Header) -> Result<Task, Fatal> {
        let (reads, writes) = (header.flags() & 0x40 != 0, header.flags() & 0x20 != 0);
        let expected = header.expected_length();
        let expected_out = if writes { expected } else { 0 };
        let data_length = header.data_length() as u32;
        let limit = expected_out.min(self.parameters.first_burst);
        let may_continue = writes && !self.parameters.initial_r2t;
        if data_length > limit
            || data_length > 0 && !self.parameters.immediate_data
            || !header.is_final() && !may_continue
        {
            return Err(Fatal::Protocol);
        }
        Ok(Task {
            task_tag: header.task_tag(),
            is_immediate: header.is_immediate(),
            lun: command::decode_lun(header.lun_field()).unwrap_or(u16::MAX),
            volume: crate::VolumeKey(0),
            stage: Stage::Waiting,
            expected_in: if reads { expected } else { 0 },
            expected_out,
            length_out: 0,
            wanted: 0,
            allocation: 0,
            asked: None,
            report: None,
            reserves: false,
            copy: None,
            buffer: None,
            received: 0,
            requested: 0,
            unsolicited_open: !header.is_final(),
            data_number: 0,
            transfers: VecDeque::new(),
            transfer_number: 0,
            held_bytes: 0,
            surfaced_bytes: 0,
            is_aborted: false,
            tokens: Vec::new(),
        })
    }

    /// Unit attentions and absent units, then the command itself.
    fn plan(&mut self, cdb: &Cdb, task: &mut Task, lun: [u8; 8]) -> Result<Plan, Refusal> {
        let (is_inquiry, is_report_luns, is_request_sense) =
            (cdb.opcode() == 0x12, cdb.opcode() == 0xa0, cdb.opcode() == 0x03);
        let number = command::decode_lun(lun);
        if is_report_luns
            && (number == Some(0) || number.is_some_and(|number| self.units.find(number).is_some()))
        {
            return command::report_luns(cdb, self.units.numbers());
        }
        let Some(unit) = number.and_then(|number| self.units.find_mut(number)) else {
            if is_inquiry {
                return command::inquire_absent(cdb);
            }
            if is_request_sense {
                let sense = Sense::LUN_NOT_SUPPORTED.encode(cdb.bit(1, 0));
                return Ok(Plan::Respond(sense[..sense.len().min(usize::from(cdb.0[4]))].to_vec()));
            }
            return Err(Sense::LUN_NOT_SUPPORTED.into());
        };
        task.volume = unit.view.volume;
        if !is_inquiry && let Some(attention) = unit.attentions.pop_front() {
            if is_request_sense {
                let sense = Sense::from(attention).encode(cdb.bit(1, 0));
                return Ok(Plan::Respond(sense[..sense.len().min(usize::from(cdb.0[4]))].to_vec()));
            }
            return Err(Sense::from(attention).into());
        }
        let context = Context {
            view: &unit.view,
            shared: &unit.shared,
            nexus: &self.nexus,
            portal: &self.portal,
            target_name: &self.target.config.name,
            copies: &self.copies,
            announced_out: task.expected_out,
        };
        command::plan(cdb, &context)
    }

    /// Moves a task on by what its command came to.
    fn carry_out(&mut self, slot: usize, plan: Result<Plan, Refusal>) {
        let mut told = None;
        let plan = match plan {
            Ok(Plan::Copy(list)) => return self.begin_copy(slot, list),
            plan => plan,
        };
        let Some(task) = self.tasks.get_mut(slot) else { return };
        task.stage = match plan {
            Ok(Plan::Good) => Stage::Answered(Answer::Status(status::GOOD, None)),
            Ok(Plan::Respond(data)) => Stage::Answered(Answer::Data(data)),
            Ok(Plan::TellOthers(attention)) => {
                told = Some((task.volume, attention));
                Stage::Answered(Answer::Status(status::GOOD, None))
            }
            Ok(Plan::SubmitReport { action, allocation }) => {
                (task.report, task.allocation) = (Some(action), allocation);
                let report = Operation::Reservation(voute_reservation::Request::Report);
                Stage::Ready(Work::Operation(report))
            }
            Ok(Plan::Submit(work)) => Stage::Ready(work),
            Ok(Plan::Copy(_)) => Stage::Waiting,
            Ok(Plan::SubmitAllocation { lba, blocks, allocation }) => {
                (task.allocation, task.asked) = (allocation, Some(BlockRange { lba, blocks }));
                Stage::ReadyAllocation { lba, blocks }
            }
            Ok(Plan::Take { then, .. }) => Stage::Receiving { then },
            Err(Refusal::Sense(sense)) => {
                Stage::Answered(Answer::Status(status::CHECK_CONDITION, Some(sense)))
            }
            Err(Refusal::Conflict) => {
                Stage::Answered(Answer::Status(status::RESERVATION_CONFLICT, None))
            }
        };
        if let Some((volume, attention)) = told {
            self.tell_others(volume, attention);
        }
    }

    fn tell_others(&self, volume: crate::VolumeKey, attention: Attention) {
        let Some(session) = &self.session else { return };
        self.target
            .for_other_sessions(session, |other| other.post(Mail::Attention(volume, attention)));
    }

    /// Moves a task on that has its data, or needs none.
    fn advance(&mut self, slot: usize, output: &mut Vec<u8>) {
        let Some(task) = self.tasks.get_mut(slot) else { return };
        // A host that owes data would take the answer for a new command's: it comes after the data.
        let owes_data = matches!(task.stage, Stage::Answered(_)) && !task.transfers.is_empty();
        if task.unsolicited_open || owes_data {
            return;
        }
        match &task.stage {
            Stage::Receiving { then } if task.received >= task.wanted => {
                let then = *then;
                let mut data = task.buffer.take().unwrap_or_else(|| Buffer::zeroed(0));
                if data.len() > task.wanted as usize {
                    data = Buffer::copy_of(&data[..task.wanted as usize]);
                }
                let plan = self.resume(slot, then, data);
                self.carry_out(slot, plan);
                self.advance(slot, output);
            }
            Stage::Receiving { .. } => {
                self.asking.push_back(self.tasks.tag(slot));
                self.ask_for_data(output);
            }
            Stage::Answered(_) => self.answer(slot, output),
            Stage::Ready(_) | Stage::ReadyAllocation { .. } => {
                self.ready.push_back(self.tasks.tag(slot))
            }
            Stage::Waiting | Stage::Surfaced => {}
        }
    }

    fn resume(&mut self, slot: usize, then: command::Then, data: Buffer) -> Result<Plan, Refusal> {
        let (lun, volume) =
            self.tasks.get(slot).map(|task| (task.lun, task.volume)).ok_or(Sense::ABORTED)?;
        let unit = self
            .units
            .find(lun)
            .filter(|unit| unit.view.volume == volume)
            .ok_or(Sense::LUN_NOT_SUPPORTED)?;
        let context = Context {
            view: &unit.view,
            shared: &unit.shared,
            nexus: &self.nexus,
            portal: &self.portal,
            target_name: &self.target.config.name,
            copies: &self.copies,
            announced_out: data.len() as u32,
        };
        command::finish(then, data, &context)
    }

    fn finish_immediate_data(&mut self, header: &Header, output: &mut Vec<u8>) {
        let Some(slot) = self.tasks.slot_of(header.task_tag()) else { return };
        if let Some(task) = self.tasks.get_mut(slot) {
            task.received = header.data_length() as u32;
            task.requested = task.received;
        }
        self.advance(slot, output);
    }

    pub(crate) fn next_request(&mut self, output: &mut Vec<u8>) -> Option<Request> {
        self.read_mail();
        while let Some(tag) = self.ready.front().copied() {
            let slot = self.tasks.slot(tag);
            let Some((slot, task)) = slot.and_then(|slot| Some((slot, self.tasks.get(slot)?)))
            else {
                self.ready.pop_front();
                continue;
            };
            let unit = self.units.find(task.lun).filter(|unit| unit.view.volume == task.volume);
            let Some(unit) = unit else {
                self.ready.pop_front();
                self.answer_status(
                    slot,
                    status::CHECK_CONDITION,
                    Some(Sense::LUN_NOT_SUPPORTED),
                    output,
                );
                continue;
            };
            let block_size = match &task.copy {
                None => Some(unit.view.block_size),
                Some(copy) => self.units.block_size_of(copy.volume()),
            };
            let Some(block_size) = block_size else {
                self.ready.pop_front();
                self.strand_copy(slot, output);
                continue;
            };
            let bytes = cost(&task.stage, block_size as usize);
            let unsent = self.unsent(output);
            let is_full =
                self.surfaced_bytes + bytes + unsent > SURFACED_BYTES_MAX.max(OUTPUT_HIGH);
            if is_full && self.surfaced > 0 || unsent >= OUTPUT_HIGH {
                return None;
            }
            let session = self.session.as_ref()?;
            if !session.begin_request() {
                return None;
            }
            self.ready.pop_front();
            return self.surface(slot, bytes);
        }
        None
    }

    fn surface(&mut self, slot: usize, bytes: usize) -> Option<Request> {
        let tag = self.tasks.tag(slot);
        let block_size = self.units.find(self.tasks.get(slot)?.lun)?.view.block_size as usize;
        let task = self.tasks.get_mut(slot)?;
        let operation = match std::mem::replace(&mut task.stage, Stage::Surfaced) {
            Stage::Ready(Work::Operation(operation)) => operation,
            Stage::Ready(Work::Repeat { lba, blocks, block, compares }) => {
                let mut data = Buffer::zeroed(blocks as usize * block_size);
                data.chunks_exact_mut(block_size)
                    .for_each(|chunk| chunk.copy_from_slice(&block[..block_size]));
                if compares {
                    Operation::Compare { lba, blocks, data }
                } else {
                    Operation::Write { lba, blocks, data }
                }
            }
            Stage::ReadyAllocation { lba, blocks } => Operation::AllocationStatus { lba, blocks },
            Stage::Receiving { .. } | Stage::Answered(_) | Stage::Waiting | Stage::Surfaced => {
                return None;
            }
        };
        task.reserves =
            matches!(operation, Operation::Reservation(voute_reservation::Request::ReserveLegacy));
        task.surfaced_bytes = bytes;
        self.surfaced_bytes += bytes;
        self.surfaced += 1;
        let (host, nexus) = (self.initiator.clone(), self.nexus.clone());
        let volume = task.copy.as_ref().map_or(task.volume, |copy| copy.volume());
        Some(Request { tag, volume, host, nexus, operation })
    }

    pub(crate) fn complete(
        &mut self,
        tag: Tag,
        outcome: Outcome,
        output: &mut Vec<u8>,
        is_closing: bool,
    ) {
        let Some(slot) = self.tasks.surfaced(tag) else { return };
        let Some(task) = self.tasks.get_mut(slot) else { return };
        if let Some(session) = &self.session {
            session.end_request();
        }
        self.surfaced -= 1;
        self.surfaced_bytes -= task.surfaced_bytes;
        let task_is_aborted = task.is_aborted;
        let has_ended = self.session.as_ref().is_none_or(|session| session.has_ended());
        if task.reserves && (is_closing || has_ended) {
            self.target.wish(task.volume, &self.nexus, voute_reservation::Request::NexusLost);
        }
        task.surfaced_bytes = 0;
        if task_is_aborted || is_closing {
            self.remove(slot);
        } else if task.copy.is_some() {
            self.continue_copy(slot, outcome, output);
        } else {
            self.answer_outcome(slot, outcome, output);
        }
        self.read_mail();
        self.answer_pending(output);
        self.ask_for_data(output);
    }

    /// Removes a task and gives back what it counted for.
    fn remove(&mut self, slot: usize) -> Option<Task> {
        let task = self.tasks.remove(slot)?;
        self.held_bytes -= task.held_bytes;
        self.immediate_tasks -= usize::from(task.is_immediate);
        if let Some(copy) = &task.copy {
            self.copies.end(
                task.lun,
                copy.results(),
                State::Failed(status::TASK_ABORTED, Vec::new()),
            );
        }
        Some(task)
    }

    fn append(&mut self, header: &mut Header, data: &[u8], output: &mut Vec<u8>) {
        pdu::append(output, header, data, self.digests);
    }

    /// Fills in StatSN, ExpCmdSN and MaxCmdSN. `counts` tells whether the PDU uses up a StatSN.
    fn number(&mut self, header: &mut Header, counts: bool) {
        header.set_u32(24, self.status_number);
        if counts {
            self.status_number = self.status_number.wrapping_add(1);
        }
        header.set_u32(28, self.expected_command).set_u32(32, self.max_command());
    }

    fn directory(&self) -> Arc<Directory> {
        self.target.directory()
    }
}

/// Bytes that a task's operation takes while surfaced.
fn cost(stage: &Stage, block_size: usize) -> usize {
    match stage {
        Stage::Ready(Work::Operation(Operation::Read { blocks, .. })) => {
            *blocks as usize * block_size
        }
        Stage::Ready(Work::Repeat { blocks, .. }) => *blocks as usize * block_size,
        Stage::Ready(Work::Operation(_))
        | Stage::ReadyAllocation { .. }
        | Stage::Receiving { .. }
        | Stage::Answered(_)
        | Stage::Waiting
        | Stage::Surfaced => 0,
    }
}
