//! One accepted connection: PDUs in, requests out, completions in, PDUs out.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use voute_buffer::{Buffer, Inset};

use super::admin::AdminState;
use super::authentication::{self, Gate, is_authentication};
use super::controller::Membership;
use super::io::{self, Demand};
use super::reservation;
use super::slots::{Slots, Stage};
use super::states::{Phase, Role, Step, step};
use super::transfer::Transfer;
use super::{PortalId, Target, TargetLimits};
use crate::framer::{DataLimits, Frame, Framer};
use crate::little_endian::{u16_at, u32_at};
use crate::pdu::{
    DataPlace, FLAG_LAST, FLAG_SUCCESS, InitializeRequest, InitializeResponse, Writer,
    write_termination,
};
use crate::{
    Association, CompletionEntry, FatalError, Fault, Fuse, HostView, LINK_TRANSFER_MAX, Operation,
    Outcome, PduKind, Request, Scope, Status, SubmissionEntry, Tag, admin_opcode, fabrics_type,
    io_opcode,
};

/// Fabrics and admin capsules carry at most this much data, and every host may send that, bytes.
const ADMIN_CAPSULE_MAX: usize = 8192;
/// Commands accepted before Connect decides the queue's depth.
const DEPTH_BEFORE_CONNECT: usize = 2;

/// Where the data of the PDU being read goes.
#[derive(Clone, Copy)]
enum Sink {
    Discard,
    Slot(u16),
}

/// Data that answers a command.
enum Reply<'a> {
    Copied(&'a [u8]),
    Inset(Buffer),
}

/// The submission queue as flow control sees it.
pub(super) struct Queue {
    pub(super) depth: u16,
    /// Completions so far, modulo the depth. Only completed entries count as consumed, so that a host
    /// that obeys flow control never has more commands outstanding than the queue has entries.
    pub(super) head: u16,
    pub(super) flow_control: bool,
}

/// Who is connected, known once Connect succeeded.
pub(super) enum Peer {
    Unknown,
    Host { membership: Membership, view: Arc<HostView> },
    Link { name: Arc<str>, surfaced: usize },
}

/// The target's end of one TCP connection.
///
/// The owner calls [`receive`](Self::receive) with what the socket gave, then pulls
/// [`next_request`](Self::next_request) until it gives `None`, and sends
/// [`output`](Self::output). Pull again after each [`complete`](Self::complete) and each time that
/// output was sent: requests are held back while too many bytes are in flight. After the socket is
/// gone call [`disconnected`](Self::disconnected) and keep the value until
/// [`outstanding`](Self::outstanding) is 0: while it exists its controller's identifier is not
/// given to anyone else. (Dropping it earlier is safe: the identifier is then never used again.)
pub struct TargetConnection {
    pub(super) target: Arc<Target>,
    pub(super) portal: PortalId,
    pub(super) phase: Phase,
    pub(super) now: Duration,
    framer: Framer,
    writer: Writer,
    output: Vec<u8>,
    /// Read data of at least so many bytes is not copied into the output, see
    /// [`TargetConnection::inset_from`].
    inset_min: usize,
    insets: VecDeque<Inset>,
    inset_bytes: usize,
    pub(super) slots: Slots,
    pub(super) queue: Queue,
    ready: VecDeque<u16>,
    awaiting_credit: VecDeque<u16>,
    fused_first: Option<u16>,
    sink: Sink,
    capsule: Option<u16>,
    pub(super) peer: Peer,
    pub(super) admin: Option<Box<AdminState>>,
    /// What the host must pass before it is served.
    pub(super) gate: Gate,
    generation: u64,
    /// Handshake or termination deadline; `None` in live connections.
    pub(super) deadline: Option<Duration>,
    /// Bytes of received data that are not surfaced yet.
    queued_bytes: usize,
    /// Bytes that surfaced requests hold or will return.
    surfaced_bytes: usize,
    /// Bytes that R2Ts asked for and that have not all come.
    requested_bytes: usize,
}

impl TargetConnection {
    /// A connection that was just accepted on listener `portal` at time `now`.
    #[must_use]
    pub fn new(target: Arc<Target>, portal: PortalId, now: Duration) -> Self {
        let limits = DataLimits {
            capsule: ADMIN_CAPSULE_MAX,
            data: target.config().limits.h2c_data_max as usize,
        };
        let deadline = Some(now + target.config().limits.handshake);
        TargetConnection {
            target,
            portal,
            phase: Phase::AwaitingInitialize,
            now,
            framer: Framer::new(true, limits),
            writer: Writer::default(),
            output: Vec::new(),
            inset_min: usize::MAX,
            insets: VecDeque::new(),
            inset_bytes: 0,
            slots: Slots::new(DEPTH_BEFORE_CONNECT),
            queue: Queue { depth: DEPTH_BEFORE_CONNECT as u16, head: 0, flow_control: true },
            ready: VecDeque::new(),
            awaiting_credit: VecDeque::new(),
            fused_first: None,
            sink: Sink::Discard,
            capsule: None,
            peer: Peer::Unknown,
            admin: None,
            gate: Gate::Open,
            generation: 0,
            deadline,
            queued_bytes: 0,
            surfaced_bytes: 0,
            requested_bytes: 0,
        }
    }

    /// Takes bytes as they came, fragmented anyhow. Protocol errors do not surface: the connection
    /// answers with a termination request and closes.
    pub fn receive(&mut self, bytes: &[u8], now: Duration) {
        self.now = now;
        self.refresh();
        self.consume(bytes);
    }

    /// Where the next bytes of the stream rest in the end, if they are the data of a command: the
    /// owner may receive them there instead of handing them to [`receive`](Self::receive), and then
    /// calls [`received_in_place`](Self::received_in_place) before anything else.
    pub fn receive_room(&mut self) -> Option<&mut [u8]> {
        let ahead = self.framer.data_ahead();
        let Sink::Slot(index) = self.sink else { return None };
        let slot = self.slots.at(index);
        let from = slot.received;
        slot.payload.as_mut()?.get_mut(from..from + ahead).filter(|room| !room.is_empty())
    }

    /// The first `length` bytes of [`receive_room`](Self::receive_room) were received.
    pub fn received_in_place(&mut self, length: usize, now: Duration) {
        self.now = now;
        self.refresh();
        if let Sink::Slot(index) = self.sink {
            let slot = self.slots.at(index);
            let (from, to) = (slot.received, slot.received + length);
            if let Some(data) = slot.payload.as_ref().and_then(|payload| payload.get(from..to)) {
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
                Some(Frame::Fault(fault)) => self.terminate(fault),
            }
        }
    }

    /// The next thing for the volume layer to do. `None`: nothing for now.
    pub fn next_request(&mut self) -> Option<Request> {
        // Transfers may have been held back by output that is sent now.
        self.grant_credit();
        while self.surfaced_bytes + self.unsent_bytes() < self.limits().held_bytes_max {
            let index = self.ready.pop_front()?;
            if self.is_guarded() && self.is_authentication_send(index) {
                if let Some(request) = self.surface_authentication(index) {
                    return Some(request);
                }
            } else if matches!(self.phase, Phase::Live(Role::Admin | Role::Discovery)) {
                let entry = self.slots.at(index).entry;
                match self.volume_request(&entry) {
                    None => self.execute_admin(index),
                    Some(Err(status)) => self.respond(index, status, 0, 0),
                    Some(Ok(operation)) => {
                        if let Some(request) = self.surface_admin(index, operation) {
                            return Some(request);
                        }
                    }
                }
            } else if let Some(request) = self.surface(index) {
                return Some(request);
            }
        }
        None
    }

    /// Ends a request. A tag that is unknown, because it was completed before, is ignored. An outcome
    /// that does not fit (no data for a read, a reply longer than asked for) becomes Internal Error.
    pub fn complete(&mut self, tag: Tag, outcome: Outcome) {
        let Some(index) = self.slots.surfaced(tag) else { return };
        let slot = self.slots.at(index);
        let (partner, reply_max) = (slot.partner, slot.reply_max);
        self.surfaced_bytes -= std::mem::take(&mut slot.charge);
        self.count_surfaced(-1);
        if let Some(second) = partner {
            self.complete_pair(index, second, &outcome);
        } else if self.is_guarded() && self.is_authentication_send(index) {
            self.complete_authentication(index, outcome);
        } else {
            self.complete_one(index, reply_max, outcome);
        }
        self.grant_credit();
    }

    /// Bytes to send. The owner takes bytes from the front as the socket accepts them.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// From now on data of reads of at least `bytes` bytes is not copied into
    /// [`output`](Self::output): it comes as an inset. Who asks for this takes output and insets
    /// always together, by [`take_output`](Self::take_output).
    pub fn inset_from(&mut self, bytes: usize) {
        self.inset_min = bytes;
    }

    /// Moves all that is to be sent into `bytes` and `insets`, which are empty; theirs is the memory
    /// of what is to be sent next.
    pub fn take_output(&mut self, bytes: &mut Vec<u8>, insets: &mut VecDeque<Inset>) {
        std::mem::swap(&mut self.output, bytes);
        std::mem::swap(&mut self.insets, insets);
        self.inset_bytes = 0;
    }

    /// Lets time pass: deadlines, a new directory, a controller that died on another connection.
    pub fn tick(&mut self, now: Duration) {
        self.now = now;
        self.refresh();
        if self.next_deadline().is_some_and(|deadline| now >= deadline) {
            let is_greeting = matches!(
                self.phase,
                Phase::AwaitingInitialize | Phase::AwaitingConnect | Phase::Authenticating(_)
            );
            if is_greeting {
                self.target.note_refusal(|refusals| refusals.handshakes += 1);
            }
            self.close();
        }
    }

    /// When [`tick`](Self::tick) must be called at the latest, on the clock of `now`.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        match self.phase {
            Phase::Closed => None,
            Phase::Live(_) => self.admin.as_ref().and_then(|admin| admin.deadline()),
            Phase::AwaitingInitialize
            | Phase::AwaitingConnect
            | Phase::Authenticating(_)
            | Phase::Terminating => self.deadline,
        }
    }

    /// Whether to read from the socket. `false` is back-pressure: too many bytes are in flight, or the
    /// connection is over.
    #[must_use]
    pub fn wants_input(&self) -> bool {
        match self.phase {
            Phase::Closed => false,
            Phase::Terminating => true,
            _ => self.held_bytes() < self.limits().held_bytes_max,
        }
    }

    /// The connection is over: send what is in [`output`](Self::output), then close the socket.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.phase == Phase::Closed
    }

    /// The socket is gone. An admin connection takes its controller with it.
    pub fn disconnected(&mut self) {
        self.output.clear();
        self.insets.clear();
        self.inset_bytes = 0;
        self.close();
    }

    /// Requests that were surfaced and not completed.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        match &self.peer {
            Peer::Unknown => 0,
            Peer::Host { membership, .. } => membership.surfaced,
            Peer::Link { surfaced, .. } => *surfaced,
        }
    }

    /// Which host this is, by which controller; `None` before Connect and on links.
    #[must_use]
    pub fn association(&self) -> Option<&Arc<Association>> {
        match &self.peer {
            Peer::Host { membership, .. } => Some(membership.controller().association()),
            Peer::Unknown | Peer::Link { .. } => None,
        }
    }

    // ---- PDUs -------------------------------------------------------------------------------

    fn header(&mut self, kind: PduKind) {
        self.sink = Sink::Discard;
        match step(self.phase, kind) {
            Step::Initialize => self.initialize(),
            Step::Connect | Step::Authenticate | Step::Command => self.capsule_header(),
            Step::Data => self.data_header(),
            Step::Close => self.close(),
            Step::Ignore => {}
            Step::Fault(error) => self.terminate(Fault::of(error)),
        }
    }

    fn store(&mut self, data: &[u8]) {
        let Sink::Slot(index) = self.sink else { return };
        let slot = self.slots.at(index);
        let (from, to) = (slot.received, slot.received + data.len());
        if let Some(room) = slot.payload.as_mut().and_then(|payload| payload.get_mut(from..to)) {
            room.copy_from_slice(data);
            slot.received = to;
        }
    }

    fn pdu_end(&mut self, kind: PduKind, data_digest_matches: bool) {
        if let (Sink::Slot(index), false) = (self.sink, data_digest_matches) {
            self.slots.at(index).defect.get_or_insert(Status::transient_transport_error());
        }
        let sink = std::mem::replace(&mut self.sink, Sink::Discard);
        match (kind, sink) {
            (PduKind::CapsuleCmd, _) => {
                if let Some(index) = self.capsule.take() {
                    self.capsule_end(index);
                }
            }
            (PduKind::H2cData, Sink::Slot(index)) => self.data_end(index),
            _ => {}
        }
    }

    fn initialize(&mut self) {
        let request = InitializeRequest::read(self.framer.header());
        if request.format != 0 {
            return self
                .terminate(Fault { error: FatalError::UnsupportedParameter, information: 8 });
        }
        if request.host_alignment > 31 {
            return self.terminate(Fault::field(10));
        }
        let limit = self.limits().h2c_data_max;
        let response = InitializeResponse {
            format: 0,
            controller_alignment: 0,
            digests: request.digests,
            data_length_max: limit,
        };
        response.write(&mut self.output);
        self.framer.set_digests(request.digests);
        self.writer = Writer {
            digests: request.digests,
            alignment: 4 * (usize::from(request.host_alignment) + 1),
        };
        self.phase = Phase::AwaitingConnect;
        self.deadline = Some(self.now + self.limits().handshake);
    }

    fn capsule_header(&mut self) {
        let mut entry = SubmissionEntry::default();
        entry.0.copy_from_slice(&self.framer.header()[8..72]);
        let Some(index) = self.slots.claim(entry) else {
            return self.terminate(Fault::of(FatalError::LimitExceeded));
        };
        self.capsule = Some(index);
        let present = self.framer.data_length();
        let planned =
            self.plan(index, &entry).and_then(|demand| Transfer::of(&entry, demand, present));
        let slot = self.slots.at(index);
        match planned {
            _ if slot.defect.is_some() => {}
            Err(status) => slot.defect = Some(status),
            Ok(Transfer { expected, reply_max, in_capsule }) => {
                slot.reply_max = reply_max;
                slot.expected = expected;
                if in_capsule {
                    slot.payload = Some(Buffer::for_filling(expected));
                    self.queued_bytes += expected;
                    self.sink = Sink::Slot(index);
                }
            }
        }
    }

    /// What data the command moves, by the rules of this queue. Pairs up fused commands on the way,
    /// since the halves must be neighbours in the queue.
    fn plan(&mut self, index: u16, entry: &SubmissionEntry) -> Result<Demand, Status> {
        match self.phase {
            Phase::AwaitingConnect => super::connect::demand(entry),
            Phase::Authenticating(_) => authentication::demand(entry),
            Phase::Live(_) if self.is_guarded() && is_authentication(entry) => {
                authentication::demand(entry)
            }
            Phase::Live(Role::Admin | Role::Discovery) => super::admin::demand(entry),
            Phase::Live(Role::Link) => io::link_demand(entry),
            Phase::Live(Role::Io) => {
                let pairing = self.pair_up(index, entry);
                let Peer::Host { view, membership } = &self.peer else {
                    return Err(Status::internal_error());
                };
                if is_disconnect(entry) {
                    return Ok(Demand::NONE);
                }
                let demand = io::demand(view, entry)?;
                reservation::check_host(membership.controller().association(), entry)?;
                pairing?;
                match self.slots.at(index).fuse {
                    Fuse::Normal => {}
                    Fuse::First => io::check_fused(
                        view,
                        entry,
                        io_opcode::COMPARE,
                        &self.target.config().limits,
                    )?,
                    Fuse::Second => io::check_fused(
                        view,
                        entry,
                        io_opcode::WRITE,
                        &self.target.config().limits,
                    )?,
                }
                Ok(demand)
            }
            Phase::AwaitingInitialize | Phase::Terminating | Phase::Closed => {
                Err(Status::command_sequence_error())
            }
        }
    }

    fn capsule_end(&mut self, index: u16) {
        let slot = self.slots.at(index);
        if slot.defect.is_none() && slot.received < slot.expected {
            slot.stage = Stage::AwaitingCredit;
            self.awaiting_credit.push_back(index);
            self.grant_credit();
        } else {
            self.arrived(index);
        }
    }

    /// Sends R2Ts as far as the byte limits allow; the whole transfer in one, the host splits it.
    fn grant_credit(&mut self) {
        while let Some(&index) = self.awaiting_credit.front() {
            let expected = self.slots.at(index).expected;
            let (requested, limits) = (self.requested_bytes, &self.target.config().limits);
            let has_room = requested == 0 || requested + expected <= limits.requested_bytes_max;
            if !has_room || self.held_bytes() >= limits.held_bytes_max {
                break;
            }
            self.awaiting_credit.pop_front();
            self.requested_bytes += expected;
            let slot = self.slots.at(index);
            slot.stage = Stage::Requested;
            slot.payload = Some(Buffer::for_filling(expected));
            let place =
                DataPlace { command_id: slot.entry.command_id(), transfer_tag: index, offset: 0 };
            self.writer.ready_to_transfer(&mut self.output, place, expected as u32);
        }
    }

    fn data_header(&mut self) {
        let header = self.framer.header();
        let (command_id, tag) = (u16_at(header, 8), u16_at(header, 10));
        let (offset, length) = (u32_at(header, 12) as usize, u32_at(header, 16) as usize);
        let is_last = header[1] & FLAG_LAST != 0;
        let Some(slot) = self.slots.get(tag).filter(|slot| slot.stage == Stage::Requested) else {
            return self.terminate(Fault::field(10));
        };
        if slot.entry.command_id() != command_id {
            return self.terminate(Fault::field(8));
        }
        if length != self.framer.data_length() {
            return self.terminate(Fault::field(16));
        }
        if offset != slot.received || length > slot.expected - slot.received {
            return self.terminate(Fault::of(FatalError::DataOutOfRange));
        }
        if is_last != (offset + length == slot.expected) {
            return self.terminate(Fault::field(1));
        }
        self.sink = Sink::Slot(tag);
    }

    fn data_end(&mut self, index: u16) {
        let slot = self.slots.at(index);
        if slot.received == slot.expected {
            self.requested_bytes -= slot.expected;
            self.queued_bytes += slot.expected;
            self.arrived(index);
            self.grant_credit();
        }
    }

    // ---- commands ---------------------------------------------------------------------------

    /// A command is here with all its data.
    fn arrived(&mut self, index: u16) {
        let slot = self.slots.at(index);
        if slot.fuse != Fuse::Normal {
            slot.stage = Stage::AwaitingPartner;
            return self.half_arrived(index);
        }
        if let Some(status) = slot.defect {
            return self.respond(index, status, 0, 0);
        }
        let entry = slot.entry;
        match self.phase {
            Phase::AwaitingConnect => self.connect(index),
            Phase::Authenticating(_) | Phase::Live(_)
                if self.is_guarded() && is_authentication(&entry) =>
            {
                self.authentication_arrived(index);
            }
            Phase::Live(Role::Admin | Role::Discovery) if self.may_answer_now() => {
                self.execute_admin(index);
            }
            Phase::Live(Role::Io) if is_disconnect(&entry) => self.disconnect(index),
            Phase::Live(_) => {
                self.slots.at(index).stage = Stage::Ready;
                self.ready.push_back(index);
            }
            Phase::AwaitingInitialize
            | Phase::Authenticating(_)
            | Phase::Terminating
            | Phase::Closed => self.release(index),
        }
    }

    /// The host gives the I/O queue up (Base 2.0 §6.4): what is still under way is not answered.
    fn disconnect(&mut self, index: u16) {
        let format = u16_at(&self.slots.at(index).entry.0, 40);
        if format != 0 {
            return self.respond(index, Status::connect_incompatible_format(), 0, 0);
        }
        self.respond(index, Status::success(), 0, 0);
        self.close();
    }

    /// Whether an admin command is answered at once: not while answers that nobody fetched pile up.
    /// Then its slot stays taken, so that the queue's depth bounds the pile.
    fn may_answer_now(&self) -> bool {
        self.ready.is_empty() && self.unsent_bytes() < self.limits().held_bytes_max
    }

    /// Ties the second half of a fused pair to the first, which must be the command before it.
    fn pair_up(&mut self, index: u16, entry: &SubmissionEntry) -> Result<(), Status> {
        let fuse = entry.fuse().ok_or(Status::invalid_field());
        match (fuse, self.fused_first.take()) {
            (Ok(Fuse::Second), Some(first)) => {
                self.slots.at(first).partner = Some(index);
                let second = self.slots.at(index);
                (second.fuse, second.partner) = (Fuse::Second, Some(first));
                Ok(())
            }
            (other, waiting) => {
                if let Some(first) = waiting {
                    self.orphan(first);
                }
                match other? {
                    Fuse::Normal => Ok(()),
                    Fuse::Second => Err(Status::missing_fused()),
                    Fuse::First => {
                        self.slots.at(index).fuse = Fuse::First;
                        self.fused_first = Some(index);
                        Ok(())
                    }
                }
            }
        }
    }

    /// The second half did not follow.
    fn orphan(&mut self, first: u16) {
        let slot = self.slots.at(first);
        slot.fuse = Fuse::Normal;
        slot.defect.get_or_insert(Status::missing_fused());
        if slot.stage == Stage::AwaitingPartner {
            self.arrived(first);
        }
    }

    fn half_arrived(&mut self, index: u16) {
        let slot = self.slots.at(index);
        let Some(partner) = slot.partner else { return };
        let (first, second) =
            if slot.fuse == Fuse::First { (index, partner) } else { (partner, index) };
        if self.slots.at(partner).stage != Stage::AwaitingPartner {
            return;
        }
        match (self.slots.at(first).defect, self.slots.at(second).defect) {
            (None, None) => {
                self.slots.at(first).stage = Stage::Ready;
                self.ready.push_back(first);
            }
            (one, other) => {
                self.respond(first, one.unwrap_or(Status::failed_fused()), 0, 0);
                self.respond(second, other.unwrap_or(Status::failed_fused()), 0, 0);
            }
        }
    }

    fn surface(&mut self, index: u16) -> Option<Request> {
        let entry = self.slots.at(index).entry;
        let partner = self.slots.at(index).partner;
        let data = self.take_payload(index);
        let second = partner.map(|second| (self.slots.at(second).entry, self.take_payload(second)));
        let mut charge = data.len() + self.slots.at(index).reply_max;
        let (scope, operation) = match (&self.peer, second) {
            (Peer::Host { membership, view }, second) => {
                let built = match second {
                    None => io::operation(view, &entry, data),
                    Some((other, write)) => {
                        charge += write.len();
                        io::fused_operation(view, [&entry, &other], [data, write]).map(Some)
                    }
                };
                let association = membership.controller().association().clone();
                let nsid = entry.namespace();
                let uuid = view.namespace(nsid).map_or([0; 16], |namespace| namespace.uuid);
                (Scope::Host { association, nsid, uuid }, built)
            }
            (Peer::Link { name, .. }, _) => {
                let reply_len_max = self.slots.at(index).reply_max as u32;
                let (opcode, nsid, dwords) =
                    (entry.opcode(), entry.namespace(), entry.dwords_10_to_15());
                let vendor = Operation::Vendor { opcode, nsid, dwords, data, reply_len_max };
                (Scope::Link { peer: name.clone() }, Ok(Some(vendor)))
            }
            (Peer::Unknown, _) => return None,
        };
        match operation {
            Ok(Some(operation)) => {
                let slot = self.slots.at(index);
                (slot.stage, slot.charge) = (Stage::Surfaced, charge);
                self.surfaced_bytes += charge;
                self.count_surfaced(1);
                Some(Request { tag: self.slots.tag(index), scope, operation })
            }
            Ok(None) => {
                self.respond(index, Status::success(), 0, 0);
                None
            }
            Err(status) => {
                self.respond(index, status, 0, 0);
                if let Some(second) = partner {
                    self.respond(second, Status::failed_fused(), 0, 0);
                }
                None
            }
        }
    }

    /// Hands an admin command on to the volume.
    fn surface_admin(&mut self, index: u16, operation: Operation) -> Option<Request> {
        let Peer::Host { membership, view } = &self.peer else { return None };
        let nsid = self.slots.get(index)?.entry.namespace();
        let association = membership.controller().association().clone();
        let uuid = view.namespace(nsid)?.uuid;
        let scope = Scope::Host { association, nsid, uuid };
        Some(self.surfaced(index, scope, operation))
    }

    /// The request that is made of a command.
    pub(super) fn surfaced(&mut self, index: u16, scope: Scope, operation: Operation) -> Request {
        self.slots.at(index).stage = Stage::Surfaced;
        self.count_surfaced(1);
        Request { tag: self.slots.tag(index), scope, operation }
    }

    /// On behalf of the connection's host, for none of its namespaces.
    pub(super) fn scope_without_namespace(&self) -> Option<Scope> {
        let association = self.association()?.clone();
        Some(Scope::Host { association, nsid: 0, uuid: [0; 16] })
    }

    pub(super) fn queue_ready(&mut self, index: u16) {
        self.ready.push_back(index);
    }

    fn complete_one(&mut self, index: u16, reply_max: usize, outcome: Outcome) {
        let must_reply = self.phase == Phase::Live(Role::Io) && reply_max > 0;
        match outcome {
            Outcome::Failed(status) => self.respond(index, status, 0, 0),
            Outcome::Reservations(state) if self.phase == Phase::Live(Role::Io) => {
                let report = reservation::report(&self.slots.at(index).entry, &state, reply_max);
                self.respond_data(index, &report, 0, 0);
            }
            Outcome::Reservations(state) => {
                self.respond(index, Status::success(), state.persists().into(), 0);
            }
            Outcome::Data(data) => self.respond_exactly(index, data, must_reply, (0, 0)),
            Outcome::DataWithResult { data, dw0, dw1 } => {
                self.respond_exactly(index, data, must_reply, (dw0, dw1));
            }
            Outcome::Authenticated(_) => self.respond(index, Status::internal_error(), 0, 0),
            Outcome::Done | Outcome::Result { .. } if must_reply => {
                self.respond(index, Status::internal_error(), 0, 0);
            }
            Outcome::Done => self.respond(index, Status::success(), 0, 0),
            Outcome::Result { dw0, dw1 } => self.respond(index, Status::success(), dw0, dw1),
        }
    }

    fn respond_exactly(&mut self, index: u16, data: Buffer, exactly: bool, result: (u32, u32)) {
        let reply_max = self.slots.at(index).reply_max;
        if data.len() > reply_max || (exactly && data.len() != reply_max) {
            return self.respond(index, Status::internal_error(), 0, 0);
        }
        match data.len() < self.inset_min {
            true => self.respond_data(index, &data, result.0, result.1),
            false => self.respond_with(index, Reply::Inset(data), result.0, result.1),
        }
    }

    /// A miscompare is the first half's failure and takes the second with it; any other failure is
    /// both's, so that a path error reaches the host as one.
    fn complete_pair(&mut self, first: u16, second: u16, outcome: &Outcome) {
        let (compared, written) = match outcome {
            Outcome::Done | Outcome::Result { .. } => (Status::success(), Status::success()),
            Outcome::Failed(status) if *status == Status::compare_failure() => {
                (*status, Status::failed_fused())
            }
            Outcome::Failed(status) => (*status, *status),
            Outcome::Data(_)
            | Outcome::DataWithResult { .. }
            | Outcome::Authenticated(_)
            | Outcome::Reservations(_) => (Status::internal_error(), Status::internal_error()),
        };
        self.respond(first, compared, 0, 0);
        self.respond(second, written, 0, 0);
    }

    // ---- answers ----------------------------------------------------------------------------

    /// Answers a command and frees its slot; after the end of the connection only the latter.
    pub(super) fn respond(&mut self, index: u16, status: Status, dw0: u32, dw1: u32) {
        if matches!(self.phase, Phase::AwaitingConnect | Phase::Authenticating(_) | Phase::Live(_))
        {
            self.advance_head();
            self.write_completion(index, status, dw0, dw1);
        }
        self.release(index);
    }

    /// Answers with data, then the completion, in one go; or with the success flag alone where the
    /// host gave up queue flow control (NVMe/TCP §3.3.2.2).
    pub(super) fn respond_data(&mut self, index: u16, data: &[u8], dw0: u32, dw1: u32) {
        if data.is_empty() {
            return self.respond(index, Status::success(), dw0, dw1);
        }
        self.respond_with(index, Reply::Copied(data), dw0, dw1);
    }

    fn respond_with(&mut self, index: u16, reply: Reply<'_>, dw0: u32, dw1: u32) {
        if matches!(self.phase, Phase::Authenticating(_) | Phase::Live(_)) {
            self.advance_head();
            let is_plain = !self.queue.flow_control && dw0 == 0 && dw1 == 0;
            let command_id = self.slots.at(index).entry.command_id();
            let place = DataPlace { command_id, transfer_tag: 0, offset: 0 };
            let flags = FLAG_LAST | if is_plain { FLAG_SUCCESS } else { 0 };
            match reply {
                Reply::Copied(data) => {
                    self.writer.data(&mut self.output, PduKind::C2hData, flags, place, data);
                }
                Reply::Inset(data) => {
                    self.inset_bytes += data.len();
                    let inset = self.writer.data_around(
                        &mut self.output,
                        PduKind::C2hData,
                        flags,
                        place,
                        data,
                    );
                    self.insets.push_back(inset);
                }
            }
            if !is_plain {
                self.write_completion(index, Status::success(), dw0, dw1);
            }
        }
        self.release(index);
    }

    fn write_completion(&mut self, index: u16, status: Status, dw0: u32, dw1: u32) {
        let command_id = self.slots.at(index).entry.command_id();
        let entry = CompletionEntry { dw0, dw1, queue_head: self.queue.head, command_id, status };
        self.writer.capsule_response(&mut self.output, &entry);
    }

    fn advance_head(&mut self) {
        self.queue.head = (self.queue.head + 1) % self.queue.depth;
    }

    fn release(&mut self, index: u16) {
        // Payload of a slot that was not surfaced leaves with it.
        drop(self.take_payload(index));
        self.slots.release(index);
    }

    pub(super) fn take_payload(&mut self, index: u16) -> Buffer {
        let slot = self.slots.at(index);
        match slot.payload.take() {
            Some(payload) => {
                self.queued_bytes -= payload.len();
                payload
            }
            None => Buffer::zeroed(0),
        }
    }

    // ---- life -------------------------------------------------------------------------------

    /// Connect succeeded: the queue has its depth and its limits.
    pub(super) fn go_live(&mut self, role: Role) {
        let capsule = match role {
            Role::Admin | Role::Discovery => ADMIN_CAPSULE_MAX,
            Role::Io => self.limits().in_capsule_max as usize,
            Role::Link => LINK_TRANSFER_MAX,
        };
        let data = self.limits().h2c_data_max as usize;
        self.framer.set_limits(DataLimits { capsule, data });
        self.slots.set_limit(usize::from(self.queue.depth));
        if self.is_guarded() {
            self.phase = Phase::Authenticating(role);
            self.deadline = Some(self.now + self.limits().handshake);
        } else {
            self.phase = Phase::Live(role);
            self.deadline = None;
        }
    }

    /// The peer's view is that of this publication.
    pub(super) fn follow_from(&mut self, generation: u64) {
        self.generation = generation;
    }

    /// Answers Connect. Where flow control was given up, the head pointer says so.
    pub(super) fn respond_connected(&mut self, index: u16, controller: u16) {
        self.queue.head = if self.queue.flow_control { 1 } else { u16::MAX };
        let required = if self.is_guarded() { authentication::TRANSACTION_REQUIRED } else { 0 };
        self.write_completion(index, Status::success(), u32::from(controller) | required, 0);
        self.queue.head = 1;
        self.release(index);
    }

    /// Ends the connection with a termination request to the host.
    fn terminate(&mut self, fault: Fault) {
        if matches!(self.phase, Phase::Terminating | Phase::Closed) {
            return;
        }
        write_termination(&mut self.output, PduKind::C2hTermReq, fault, self.framer.header());
        self.target.note_refusal(|refusals| refusals.faults += 1);
        self.abandon_commands();
        self.phase = Phase::Terminating;
        self.deadline = Some(self.now + self.limits().termination);
    }

    pub(super) fn close(&mut self) {
        self.abandon_commands();
        self.phase = Phase::Closed;
        self.deadline = None;
    }

    /// Forgets all commands that the volume layer does not hold: what was not ordered yet never will
    /// be. An admin connection's controller dies.
    fn abandon_commands(&mut self) {
        self.sink = Sink::Discard;
        self.capsule = None;
        self.fused_first = None;
        self.ready.clear();
        self.awaiting_credit.clear();
        self.slots.abandon_all_but_surfaced();
        self.queued_bytes = 0;
        self.requested_bytes = 0;
        self.admin = None;
        if let Peer::Host { membership, .. } = &self.peer
            && membership.is_admin()
            && membership.controller().is_alive()
        {
            membership.controller().kill();
            self.target.raise_attention();
        }
    }

    /// Follows the controller's fate and the published directory.
    fn refresh(&mut self) {
        let (Phase::Live(role) | Phase::Authenticating(role)) = self.phase else { return };
        let Peer::Host { membership, .. } = &self.peer else { return };
        if !membership.is_current() {
            return self.close();
        }
        if role == Role::Admin {
            self.take_notices();
        }
        let Peer::Host { membership, view } = &self.peer else { return };
        let generation = self.target.generation();
        if generation == self.generation {
            return;
        }
        let published = self.target.published();
        self.generation = published.generation;
        let Some(directory) = published.directory else { return };
        if role == Role::Discovery {
            return self.discovery_changed(directory, published.generation);
        }
        let association = membership.controller().association();
        let Some(new) = directory.host_view(&association.subsystem, &association.host).cloned()
        else {
            return self.close();
        };
        if !Arc::ptr_eq(&new, view) {
            let old = view.clone();
            self.set_view(new.clone());
            if role == Role::Admin {
                self.namespaces_changed(&old, &new);
            }
        }
    }

    fn set_view(&mut self, new: Arc<HostView>) {
        if let Peer::Host { view, .. } = &mut self.peer {
            *view = new;
        }
    }

    fn count_surfaced(&mut self, change: isize) {
        match &mut self.peer {
            Peer::Host { membership, .. } => {
                membership.surfaced = membership.surfaced.saturating_add_signed(change)
            }
            Peer::Link { surfaced, .. } => *surfaced = surfaced.saturating_add_signed(change),
            Peer::Unknown => {}
        }
    }

    fn limits(&self) -> &TargetLimits {
        &self.target.config().limits
    }

    fn held_bytes(&self) -> usize {
        self.queued_bytes + self.surfaced_bytes + self.unsent_bytes()
    }

    fn unsent_bytes(&self) -> usize {
        self.output.len() + self.inset_bytes
    }
}

/// Whether a command ends the I/O queue that it came on.
fn is_disconnect(entry: &SubmissionEntry) -> bool {
    entry.opcode() == admin_opcode::FABRICS && entry.fabrics_type() == fabrics_type::DISCONNECT
}
