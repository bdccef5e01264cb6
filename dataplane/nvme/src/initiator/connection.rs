//! One opened connection: commands in, PDUs out; PDUs in, events out.
//!
//! ```text
//! AwaitingInitialize --ICResp--> AwaitingConnect --Connect done--> Live --> Closed
//!                                      \--asked to prove a secret--> Authenticating --> Live
//! ```

use std::collections::VecDeque;
use std::time::Duration;

use voute_buffer::Buffer;

use super::command::{Command, Payload};
use crate::authentication::{Client, MESSAGE_LENGTH_MAX, Turn};
use crate::framer::{DataLimits, Frame, Framer};
use crate::little_endian::{put, put_text, u16_at, u32_at};
use crate::pdu::{
    DataPlace, FLAG_LAST, FLAG_SUCCESS, InitializeRequest, InitializeResponse, Writer,
    write_termination,
};
use crate::{
    AuthenticationFailure, CompletionEntry, Credentials, Digests, FatalError, Fault, HostKeys,
    LINK_TRANSFER_MAX, PduKind, Status, SubmissionEntry, Tag, admin_opcode, fabrics_type,
};

const CONNECT_DATA_LENGTH: usize = 1024;
const ADMIN_CAPSULE_MAX: usize = 8192;
/// New commands are refused while this much output waits, bytes.
const OUTPUT_MAX: usize = 16 << 20;
/// An admin queue takes Connect, a keep-alive, an event request and a command at least.
const ADMIN_DEPTH_MIN: u16 = 8;
const ANY_CONTROLLER: u16 = 0xFFFF;

/// Who connects to what, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionOptions {
    /// NQN of this host (or node).
    pub host_nqn: String,
    /// 128-bit identifier of this host; the same on all its connections.
    pub host_id: [u8; 16],
    /// NQN of the subsystem.
    pub subsystem_nqn: String,
    /// Digests to ask for.
    pub digests: Digests,
    /// Keep-alive time of an admin connection, at least 1 s; `None` for none.
    pub keep_alive: Option<Duration>,
    /// Entries of the submission queue, 2 to 1024 (admin queues: from 8); other values are raised or
    /// cut to that. One less commands may be outstanding.
    pub queue_depth: u16,
    /// What to prove if the target asks, and whether it must prove itself; `None` to be known by name
    /// alone.
    pub credentials: Option<Credentials>,
    /// Whether to keep submission queue flow control. Without it reads cost one PDU less.
    pub flow_control: bool,
    /// From the start until Connect must have succeeded.
    pub handshake: Duration,
    /// The connection is given up when a command takes longer; `None` for no limit.
    pub command_timeout: Option<Duration>,
}

impl ConnectionOptions {
    /// Options with common values: no digests, keep-alive 5 s, 128 entries, no flow control, 10 s for
    /// the handshake, 30 s for a command.
    #[must_use]
    pub fn new(host_nqn: &str, host_id: [u8; 16], subsystem_nqn: &str) -> Self {
        ConnectionOptions {
            host_nqn: host_nqn.to_owned(),
            host_id,
            subsystem_nqn: subsystem_nqn.to_owned(),
            digests: Digests::default(),
            keep_alive: Some(Duration::from_secs(5)),
            queue_depth: 128,
            credentials: None,
            flow_control: false,
            handshake: Duration::from_secs(10),
            command_timeout: Some(Duration::from_secs(30)),
        }
    }
}

/// Why a command was not taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// Connect has not succeeded yet, or the connection is over.
    #[error("the connection is not up")]
    NotConnected,
    /// As many commands as the queue takes are outstanding, or too much output waits.
    #[error("the queue is full; submit again after a completion")]
    QueueFull,
    /// More data than a command may move.
    #[error("{length} bytes do not fit one command, the limit is {limit}")]
    TooLong {
        /// Bytes asked for.
        length: usize,
        /// Bytes allowed.
        limit: usize,
    },
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Closed {
    /// No ICResp or no answer to Connect in time.
    #[error("the target did not answer the handshake in time")]
    HandshakeTimeout,
    /// Connect was refused.
    #[error("the target refused Connect: {status}, result {result:#x}")]
    Refused {
        /// The status.
        status: Status,
        /// Completion dword 0: for invalid parameters, which.
        result: u32,
    },
    /// The target asks for authentication, and there is no secret.
    #[error("the target requires authentication, and no secret is known for it")]
    AuthenticationRequired,
    /// The target was to prove its own secret, but asks for no authentication.
    #[error("the target does not authenticate, though it was to prove its secret")]
    AuthenticationNotOffered,
    /// The target does not believe us.
    #[error("the target refused the authentication: {0}")]
    AuthenticationRefused(AuthenticationFailure),
    /// We do not believe the target.
    #[error("the target failed to authenticate: {0}")]
    TargetNotAuthentic(AuthenticationFailure),
    /// The target broke the protocol; it was told so.
    #[error("the target broke the protocol: {0:?}")]
    TargetFault(Fault),
    /// The target says that this side broke the protocol.
    #[error("the target ended the connection with fatal error status {0:#04x}")]
    Terminated(u16),
    /// The target is silent.
    #[error("the target did not answer a keep-alive in time")]
    KeepAliveTimeout,
    /// A command took too long.
    #[error("a command was not answered in time")]
    CommandTimeout,
    /// The socket is gone.
    #[error("the connection was lost")]
    Disconnected,
    /// The owner ended it.
    #[error("the connection was closed by its owner")]
    ByOwner,
}

/// What happened on a connection.
#[derive(Debug)]
pub enum InitiatorEvent {
    /// Connect succeeded; commands may be submitted.
    Connected {
        /// The controller's identifier; FFFFh on a link.
        controller: u16,
    },
    /// A command was answered.
    Completed {
        /// Which.
        tag: Tag,
        /// How it went.
        status: Status,
        /// Completion dword 0.
        dw0: u32,
        /// Completion dword 1.
        dw1: u32,
        /// Data that came, if any and if the command succeeded.
        data: Option<Buffer>,
        /// What the command sent.
        returned: Payload,
    },
    /// The connection ended before the command was answered: whether it was executed is unknown.
    Lost {
        /// Which.
        tag: Tag,
        /// What the command sent.
        returned: Payload,
    },
    /// The connection ended; comes last, after all [`InitiatorEvent::Lost`].
    Closed {
        /// Why.
        reason: Closed,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    AwaitingInitialize,
    AwaitingConnect,
    Authenticating,
    Live,
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    Free,
    Connect,
    AuthenticationSend,
    AuthenticationReceive,
    KeepAlive,
    Owner,
}

struct Slot {
    serial: u64,
    purpose: Purpose,
    payload: Payload,
    /// Bytes of the payload that R2Ts have asked for so far.
    requested: usize,
    data: Option<Buffer>,
    data_max: usize,
    data_exact: bool,
    received: usize,
    /// A data digest did not match.
    is_damaged: bool,
}

impl Slot {
    fn free() -> Self {
        Slot {
            serial: 0,
            purpose: Purpose::Free,
            payload: Payload::None,
            requested: 0,
            data: None,
            data_max: 0,
            data_exact: false,
            received: 0,
            is_damaged: false,
        }
    }
}

/// The initiator's end of one TCP connection.
///
/// The owner sends [`output`](Self::output), feeds [`receive`](Self::receive), calls
/// [`tick`](Self::tick) at [`next_deadline`](Self::next_deadline) and pulls
/// [`next_event`](Self::next_event) until `None` after each of these. Each submitted command ends in
/// exactly one [`InitiatorEvent::Completed`] or [`InitiatorEvent::Lost`].
pub struct InitiatorConnection {
    options: ConnectionOptions,
    /// Queue identifier: 0 is the admin queue.
    queue: u16,
    controller: u16,
    capsule_max: usize,
    data_pdu_max: usize,
    phase: Phase,
    framer: Framer,
    writer: Writer,
    output: Vec<u8>,
    slots: Vec<Slot>,
    free: Vec<u16>,
    next_serial: u64,
    events: VecDeque<InitiatorEvent>,
    deadlines: VecDeque<(Duration, Tag)>,
    handshake_deadline: Duration,
    now: Duration,
    last_heard: Duration,
    keep_alive_sent: Duration,
    keep_alive_outstanding: bool,
    /// Our side of the authentication, while it goes on.
    client: Option<Box<Client>>,
    /// The slot that the data PDU being read belongs to.
    sink: Option<u16>,
}

impl InitiatorConnection {
    /// An admin queue of a new controller.
    #[must_use]
    pub fn connect_admin(options: ConnectionOptions, now: Duration) -> Self {
        Self::start(options, 0, ANY_CONTROLLER, ADMIN_CAPSULE_MAX, now)
    }

    /// I/O queue `queue` (from 1) of controller `controller`, which an admin connection made.
    /// `in_capsule_max` is what the controller's Identify data said, see
    /// [`crate::ControllerFacts::in_capsule_max`].
    #[must_use]
    pub fn connect_io(
        options: ConnectionOptions,
        controller: u16,
        queue: u16,
        in_capsule_max: usize,
        now: Duration,
    ) -> Self {
        Self::start(options, queue.max(1), controller, in_capsule_max, now)
    }

    /// A link to another node, see the crate's documentation.
    #[must_use]
    pub fn connect_link(options: ConnectionOptions, now: Duration) -> Self {
        Self::start(options, 1, ANY_CONTROLLER, LINK_TRANSFER_MAX, now)
    }

    fn start(
        options: ConnectionOptions,
        queue: u16,
        controller: u16,
        capsule_max: usize,
        now: Duration,
    ) -> Self {
        let limits = DataLimits { capsule: 0, data: LINK_TRANSFER_MAX };
        let mut output = Vec::new();
        let digests = options.digests;
        InitializeRequest { format: 0, host_alignment: 0, digests, ready_to_transfer_max: 0 }
            .write(&mut output);
        let depth = options.queue_depth.clamp(if queue == 0 { ADMIN_DEPTH_MIN } else { 2 }, 1024);
        InitiatorConnection {
            queue,
            controller,
            capsule_max,
            data_pdu_max: 4096,
            phase: Phase::AwaitingInitialize,
            framer: Framer::new(false, limits),
            writer: Writer::default(),
            output,
            slots: (1..depth).map(|_| Slot::free()).collect(),
            free: (0..depth - 1).rev().collect(),
            next_serial: 1,
            events: VecDeque::new(),
            deadlines: VecDeque::new(),
            handshake_deadline: now + options.handshake,
            now,
            last_heard: now,
            keep_alive_sent: now,
            keep_alive_outstanding: false,
            client: None,
            sink: None,
            options: ConnectionOptions { queue_depth: depth, ..options },
        }
    }

    /// Queues a command for sending. Commands reach the target in the order of submission.
    ///
    /// # Errors
    /// [`SubmitError`]; the command and its payload are dropped then.
    pub fn submit(&mut self, command: Command, now: Duration) -> Result<Tag, SubmitError> {
        self.now = now;
        let length = command.data_out.bytes().len().max(command.data_in_len);
        if self.phase != Phase::Live {
            return Err(SubmitError::NotConnected);
        }
        if length > LINK_TRANSFER_MAX {
            return Err(SubmitError::TooLong { length, limit: LINK_TRANSFER_MAX });
        }
        // The last slot of an admin queue is for keep-alives.
        let reserved = usize::from(self.queue == 0);
        if self.free.len() <= reserved || self.output.len() > OUTPUT_MAX {
            return Err(SubmitError::QueueFull);
        }
        let waits_for_ever = self.queue == 0 && command.opcode == admin_opcode::ASYNC_EVENT_REQUEST;
        let index = self.send(command, Purpose::Owner);
        let tag = self.tag(index);
        if let (Some(timeout), false) = (self.options.command_timeout, waits_for_ever) {
            self.remember_deadline(now + timeout, tag);
        }
        Ok(tag)
    }

    /// How many more commands [`submit`](Self::submit) takes now.
    #[must_use]
    pub fn room(&self) -> usize {
        if self.phase != Phase::Live || self.output.len() > OUTPUT_MAX {
            return 0;
        }
        self.free.len().saturating_sub(usize::from(self.queue == 0))
    }

    /// Takes bytes as they came, fragmented anyhow.
    pub fn receive(&mut self, bytes: &[u8], now: Duration) {
        self.now = now;
        self.last_heard = now;
        self.consume(bytes);
    }

    /// Where the next bytes of the stream rest in the end, if they are the data of a command's answer:
    /// the owner may receive them there instead of handing them to [`receive`](Self::receive), and
    /// then calls [`received_in_place`](Self::received_in_place) before anything else.
    pub fn receive_room(&mut self) -> Option<&mut [u8]> {
        let ahead = self.framer.data_ahead();
        let slot = &mut self.slots[usize::from(self.sink?)];
        let from = slot.received;
        slot.data.as_mut()?.get_mut(from..from + ahead).filter(|room| !room.is_empty())
    }

    /// The first `length` bytes of [`receive_room`](Self::receive_room) were received.
    pub fn received_in_place(&mut self, length: usize, now: Duration) {
        self.now = now;
        self.last_heard = now;
        if let Some(index) = self.sink {
            let slot = &mut self.slots[usize::from(index)];
            let (from, to) = (slot.received, slot.received + length);
            if let Some(data) = slot.data.as_ref().and_then(|buffer| buffer.get(from..to)) {
                self.framer.took_data(data);
                slot.received = to;
            }
        }
        self.consume(&[]);
    }

    fn consume(&mut self, bytes: &[u8]) {
        let mut input = bytes;
        while self.phase != Phase::Closed {
            match self.framer.next(&mut input) {
                None => break,
                Some(Frame::Header(kind)) => self.header(kind),
                Some(Frame::Data(data)) => self.store(data),
                Some(Frame::End { kind, data_digest_matches }) => {
                    self.pdu_end(kind, data_digest_matches)
                }
                Some(Frame::Fault(fault)) => self.fail(fault),
            }
        }
    }

    /// What happened, oldest first.
    pub fn next_event(&mut self) -> Option<InitiatorEvent> {
        self.events.pop_front()
    }

    /// Bytes to send. The owner takes bytes from the front as the socket accepts them.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// Lets time pass: sends keep-alives, gives up what takes too long.
    pub fn tick(&mut self, now: Duration) {
        self.now = now;
        match self.phase {
            Phase::Closed => {}
            Phase::AwaitingInitialize | Phase::AwaitingConnect | Phase::Authenticating => {
                if now >= self.handshake_deadline {
                    self.close(Closed::HandshakeTimeout);
                }
            }
            Phase::Live => {
                self.forget_met_deadlines();
                if self.deadlines.front().is_some_and(|(deadline, _)| now >= *deadline) {
                    return self.close(Closed::CommandTimeout);
                }
                self.keep_alive();
            }
        }
    }

    /// When [`tick`](Self::tick) must be called at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        match self.phase {
            Phase::Closed => None,
            Phase::AwaitingInitialize | Phase::AwaitingConnect | Phase::Authenticating => {
                Some(self.handshake_deadline)
            }
            Phase::Live => {
                let command = self.deadlines.front().map(|(deadline, _)| *deadline);
                command.into_iter().chain(self.keep_alive_deadline()).min()
            }
        }
    }

    /// Whether to read from the socket.
    #[must_use]
    pub fn wants_input(&self) -> bool {
        self.phase != Phase::Closed
    }

    /// The connection is over: send what is in [`output`](Self::output), then close the socket.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.phase == Phase::Closed
    }

    /// The socket is gone.
    pub fn disconnected(&mut self) {
        self.output.clear();
        self.close(Closed::Disconnected);
    }

    /// Ends the connection: all outstanding commands become [`InitiatorEvent::Lost`].
    pub fn shut(&mut self) {
        self.close(Closed::ByOwner);
    }

    /// Commands that were submitted and are not answered.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.slots.iter().filter(|slot| slot.purpose == Purpose::Owner).count()
    }

    // ---- sending ----------------------------------------------------------------------------

    /// Puts a command into a free slot and its capsule into the output.
    fn send(&mut self, command: Command, purpose: Purpose) -> u16 {
        let index = self.free.pop().expect("callers check that a slot is free");
        let mut entry = command.entry();
        entry.set_command_id(index);
        let length = command.data_out.bytes().len();
        let in_capsule = length > 0
            && (length <= self.capsule_max
                || matches!(purpose, Purpose::Connect | Purpose::AuthenticationSend));
        match (length, command.data_in_len) {
            (0, data_in) => entry.point_transport(data_in as u32),
            (length, _) if in_capsule => entry.point_in_capsule(length as u32),
            (length, _) => entry.point_transport(length as u32),
        }
        if length > 0 && command.data_in_len > 0
            || command.opcode & 3 == 3 && command.opcode != admin_opcode::FABRICS
        {
            entry.set_reply_length_max(command.data_in_len as u32);
            if length == 0 {
                entry.point_transport(0);
            }
        }
        if purpose == Purpose::Connect {
            entry = self.connect_entry(entry);
        }
        let data = if in_capsule { command.data_out.bytes() } else { &[] };
        self.writer.capsule_command(&mut self.output, &entry, data);
        self.slots[usize::from(index)] = Slot {
            serial: self.next_serial,
            purpose,
            requested: data.len(),
            payload: command.data_out,
            data: None,
            data_max: command.data_in_len,
            data_exact: command.data_in_exact,
            received: 0,
            is_damaged: false,
        };
        self.next_serial += 1;
        index
    }

    fn tag(&self, index: u16) -> Tag {
        Tag(self.slots[usize::from(index)].serial << 16 | u64::from(index))
    }

    fn send_connect(&mut self) {
        let mut data = Buffer::zeroed(CONNECT_DATA_LENGTH);
        put(&mut data, 0, &self.options.host_id);
        put(&mut data, 16, &self.controller.to_le_bytes());
        put_text(&mut data, 256, 256, &self.options.subsystem_nqn, 0);
        put_text(&mut data, 512, 256, &self.options.host_nqn, 0);
        let (opcode, nsid) = (admin_opcode::FABRICS, fabrics_type::CONNECT.into());
        let command =
            Command { opcode, nsid, data_out: Payload::Owned(data), ..Command::default() };
        self.send(command, Purpose::Connect);
    }

    /// The fields of Connect that stand across dwords: RECFMT 0, QID, SQSIZE, CATTR, KATO.
    fn connect_entry(&self, mut entry: SubmissionEntry) -> SubmissionEntry {
        put(&mut entry.0, 42, &self.queue.to_le_bytes());
        put(&mut entry.0, 44, &(self.options.queue_depth - 1).to_le_bytes());
        entry.0[46] = if self.options.flow_control { 0 } else { 1 << 2 };
        let keep_alive_ms = self.keep_alive_time().map_or(0, |time| time.as_millis() as u32);
        entry.set_dword(12, keep_alive_ms);
        entry
    }

    fn keep_alive_time(&self) -> Option<Duration> {
        self.options.keep_alive.filter(|_| self.queue == 0)
    }

    fn keep_alive_deadline(&self) -> Option<Duration> {
        let time = self.keep_alive_time()?;
        Some(if self.keep_alive_outstanding {
            self.keep_alive_sent + time
        } else {
            self.keep_alive_sent + time / 3
        })
    }

    fn keep_alive(&mut self) {
        if self.keep_alive_deadline().is_none_or(|deadline| self.now < deadline) {
            return;
        }
        if self.keep_alive_outstanding {
            self.close(Closed::KeepAliveTimeout);
        } else if !self.free.is_empty() {
            self.keep_alive_outstanding = true;
            self.keep_alive_sent = self.now;
            self.send(Command::keep_alive(), Purpose::KeepAlive);
        }
    }

    /// Deadlines rise with submission, so the first unmet one is the earliest. Met ones are dropped
    /// from the front, and from everywhere once they outnumber the queue.
    fn remember_deadline(&mut self, deadline: Duration, tag: Tag) {
        self.forget_met_deadlines();
        if self.deadlines.len() > 4 * self.slots.len() {
            let slots = &self.slots;
            self.deadlines.retain(|(_, tag)| is_outstanding(slots, *tag));
        }
        self.deadlines.push_back((deadline, tag));
    }

    fn forget_met_deadlines(&mut self) {
        while self.deadlines.front().is_some_and(|(_, tag)| !is_outstanding(&self.slots, *tag)) {
            self.deadlines.pop_front();
        }
    }

    // ---- receiving --------------------------------------------------------------------------

    fn header(&mut self, kind: PduKind) {
        self.sink = None;
        match (self.phase, kind) {
            (_, PduKind::C2hTermReq) => {
                let code = u16_at(self.framer.header(), 8);
                self.close(Closed::Terminated(code));
            }
            (Phase::AwaitingInitialize, PduKind::IcResp) => self.initialized(),
            (
                Phase::AwaitingConnect | Phase::Authenticating | Phase::Live,
                PduKind::CapsuleResp,
            ) => {
                let entry = CompletionEntry::from_bytes(&self.framer.header()[8..24]);
                self.completed(&entry);
            }
            (Phase::Authenticating | Phase::Live, PduKind::C2hData) => self.data_header(),
            (Phase::Authenticating | Phase::Live, PduKind::R2t) => self.ready_to_transfer(),
            _ => self.fail(Fault::of(FatalError::PduSequence)),
        }
    }

    fn initialized(&mut self) {
        let response = InitializeResponse::read(self.framer.header());
        let (asked, granted) = (self.options.digests, response.digests);
        if response.format != 0 {
            return self.fail(Fault { error: FatalError::UnsupportedParameter, information: 8 });
        }
        if response.controller_alignment > 31 {
            return self.fail(Fault::field(10));
        }
        if granted.header && !asked.header || granted.data && !asked.data {
            return self.fail(Fault::field(11));
        }
        if response.data_length_max < 4096 {
            return self.fail(Fault::field(12));
        }
        self.data_pdu_max = response.data_length_max as usize & !3;
        self.framer.set_digests(granted);
        let alignment = 4 * (usize::from(response.controller_alignment) + 1);
        self.writer = Writer { digests: granted, alignment };
        self.phase = Phase::AwaitingConnect;
        self.send_connect();
    }

    /// The slot of an outstanding command, by the identifier in a PDU.
    fn outstanding_slot(&mut self, command_id: u16) -> Option<&mut Slot> {
        self.slots.get_mut(usize::from(command_id)).filter(|slot| slot.purpose != Purpose::Free)
    }

    fn data_header(&mut self) {
        let header = self.framer.header();
        let (index, is_last) = (u16_at(header, 8), header[1] & FLAG_LAST != 0);
        let succeeds = header[1] & FLAG_SUCCESS != 0;
        let (offset, length) = (u32_at(header, 12) as usize, u32_at(header, 16) as usize);
        let present = self.framer.data_length();
        let Some(slot) = self.outstanding_slot(index) else { return self.fail(Fault::field(8)) };
        if length != present {
            return self.fail(Fault::field(16));
        }
        if offset != slot.received || length > slot.data_max - slot.received {
            return self.fail(Fault::of(FatalError::DataOutOfRange));
        }
        if succeeds && !is_last {
            return self.fail(Fault::field(1));
        }
        // One PDU most often brings it all: then the buffer has just that size.
        let room = if is_last { offset + length } else { slot.data_max };
        slot.data.get_or_insert_with(|| Buffer::for_filling(room));
        self.sink = Some(index);
    }

    fn store(&mut self, data: &[u8]) {
        let Some(index) = self.sink else { return };
        let slot = &mut self.slots[usize::from(index)];
        let (from, to) = (slot.received, slot.received + data.len());
        if let Some(room) = slot.data.as_mut().and_then(|buffer| buffer.get_mut(from..to)) {
            room.copy_from_slice(data);
            slot.received = to;
        }
    }

    fn pdu_end(&mut self, kind: PduKind, data_digest_matches: bool) {
        let Some(index) = self.sink.take().filter(|_| kind == PduKind::C2hData) else { return };
        if !data_digest_matches {
            self.slots[usize::from(index)].is_damaged = true;
        }
        if self.framer.header_flags() & FLAG_SUCCESS != 0 {
            let entry = CompletionEntry {
                dw0: 0,
                dw1: 0,
                queue_head: 0,
                command_id: index,
                status: Status::success(),
            };
            self.completed(&entry);
        }
    }

    /// Sends the data that the target is ready for. It must ask in order, so that it cannot make this
    /// side send without bound.
    fn ready_to_transfer(&mut self) {
        let header = self.framer.header();
        let (index, transfer_tag) = (u16_at(header, 8), u16_at(header, 10));
        let (offset, length) = (u32_at(header, 12) as usize, u32_at(header, 16) as usize);
        let (writer, chunk_max) = (self.writer, self.data_pdu_max);
        let Some(slot) =
            self.slots.get_mut(usize::from(index)).filter(|slot| slot.purpose != Purpose::Free)
        else {
            return self.fail(Fault::field(8));
        };
        let available = slot.payload.bytes().len() - slot.requested;
        if offset != slot.requested || length == 0 || length > available {
            return self.fail(Fault::of(FatalError::DataOutOfRange));
        }
        slot.requested += length;
        let data = &slot.payload.bytes()[offset..offset + length];
        let mut place = DataPlace { command_id: index, transfer_tag, offset: offset as u32 };
        let chunks = data.len().div_ceil(chunk_max);
        for (number, chunk) in data.chunks(chunk_max).enumerate() {
            let flags = if number + 1 == chunks { FLAG_LAST } else { 0 };
            writer.data(&mut self.output, PduKind::H2cData, flags, place, chunk);
            place.offset += chunk.len() as u32;
        }
    }

    fn completed(&mut self, entry: &CompletionEntry) {
        let index = entry.command_id;
        if self.outstanding_slot(index).is_none() {
            return self.fail(Fault::field(20));
        }
        let tag = self.tag(index);
        let slot = std::mem::replace(&mut self.slots[usize::from(index)], Slot::free());
        self.free.push(index);
        match slot.purpose {
            Purpose::Free => {}
            Purpose::KeepAlive => self.keep_alive_outstanding = false,
            Purpose::Connect => self.connected(entry),
            Purpose::AuthenticationSend | Purpose::AuthenticationReceive => {
                self.authentication_answered(entry, &slot);
            }
            Purpose::Owner => self.events.push_back(outcome(tag, entry, slot)),
        }
    }

    fn connected(&mut self, entry: &CompletionEntry) {
        let (status, result) = (entry.status, entry.dw0);
        if !status.is_success() {
            return self.close(Closed::Refused { status, result });
        }
        self.controller = result as u16;
        match (result >> 16 != 0, &self.options.credentials) {
            (true, None) => self.close(Closed::AuthenticationRequired),
            (false, Some(Credentials { keys: HostKeys { controller: Some(_), .. }, .. })) => {
                self.close(Closed::AuthenticationNotOffered);
            }
            (false, _) => self.enter_life(),
            (true, Some(Credentials { keys, seed })) => {
                let material = (*seed, self.queue.into());
                let ConnectionOptions { host_nqn, subsystem_nqn, .. } = &self.options;
                let client = Client::new(keys.clone(), host_nqn, subsystem_nqn, material);
                self.client = Some(Box::new(client));
                self.phase = Phase::Authenticating;
                self.authenticate(Client::go_on);
            }
        }
    }

    fn enter_life(&mut self) {
        self.client = None;
        self.phase = Phase::Live;
        self.keep_alive_sent = self.now;
        self.events.push_back(InitiatorEvent::Connected { controller: self.controller });
    }

    /// Takes a step of the authentication, and does what it asks for.
    fn authenticate(&mut self, step: impl FnOnce(&mut Client) -> Turn) {
        let Some(client) = &mut self.client else { return };
        match step(client) {
            Turn::Send(message) => {
                let command = Command::authentication_send(&message);
                self.send(command, Purpose::AuthenticationSend);
            }
            Turn::Receive => {
                let command = Command::authentication_receive(MESSAGE_LENGTH_MAX as u32);
                self.send(command, Purpose::AuthenticationReceive);
            }
            Turn::Done => self.enter_life(),
            Turn::Fail { message, failure, is_target } => {
                if let Some(message) = message {
                    // Nobody waits for the answer.
                    let command = Command::authentication_send(&message);
                    self.send(command, Purpose::AuthenticationSend);
                }
                self.close(match is_target {
                    true => Closed::TargetNotAuthentic(failure),
                    false => Closed::AuthenticationRefused(failure),
                });
            }
        }
    }

    fn authentication_answered(&mut self, entry: &CompletionEntry, slot: &Slot) {
        let (status, result) = (entry.status, entry.dw0);
        if !status.is_success() || slot.is_damaged {
            return self.close(Closed::Refused { status, result });
        }
        if slot.purpose == Purpose::AuthenticationSend {
            return self.authenticate(Client::go_on);
        }
        let message = slot.data.as_deref().and_then(|data| data.get(..slot.received));
        self.authenticate(|client| client.take(message.unwrap_or_default()));
    }

    // ---- ending -----------------------------------------------------------------------------

    fn fail(&mut self, fault: Fault) {
        write_termination(&mut self.output, PduKind::H2cTermReq, fault, self.framer.header());
        self.close(Closed::TargetFault(fault));
    }

    fn close(&mut self, reason: Closed) {
        if self.phase == Phase::Closed {
            return;
        }
        self.phase = Phase::Closed;
        self.deadlines.clear();
        for index in 0..self.slots.len() {
            let tag = self.tag(index as u16);
            let slot = std::mem::replace(&mut self.slots[index], Slot::free());
            if slot.purpose == Purpose::Owner {
                self.events.push_back(InitiatorEvent::Lost { tag, returned: slot.payload });
            }
        }
        self.events.push_back(InitiatorEvent::Closed { reason });
    }
}

fn is_outstanding(slots: &[Slot], tag: Tag) -> bool {
    let slot = slots.get(usize::from(tag.0 as u16));
    slot.is_some_and(|slot| slot.purpose == Purpose::Owner && slot.serial == tag.0 >> 16)
}

/// What a command's owner hears: success only with sound and sufficient data.
fn outcome(tag: Tag, entry: &CompletionEntry, slot: Slot) -> InitiatorEvent {
    let is_short = slot.data_exact && slot.received < slot.data_max;
    let status = match entry.status {
        status if !status.is_success() => status,
        _ if slot.is_damaged => Status::transient_transport_error(),
        _ if is_short => Status::data_transfer_error(),
        status => status,
    };
    let data = slot.data.filter(|_| status.is_success()).map(|data| match slot.received {
        received if received < data.len() => Buffer::copy_of(&data[..received]),
        _ => data,
    });
    InitiatorEvent::Completed {
        tag,
        status,
        dw0: entry.dw0,
        dw1: entry.dw1,
        data,
        returned: slot.payload,
    }
}
