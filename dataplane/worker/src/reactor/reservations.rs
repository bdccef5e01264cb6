//! Reservations between the protocols, the volumes' homes and the mirrors; and the judgement of each
//! host's request right before its mirror gets it.
//!
//! Before a volume's record is known here (the node does not own it, or is about to), a request is
//! parked behind a confirmation: the mirror's answer to that comes only when it serves, after it has
//! told the record; or it says why it does not.
//!
//! A SCSI host may ask about reservations at a port on standby too: a node that does not own passes
//! the request on to the one that does, over the mirror link, and its answer back. The legs' record and
//! one queue stay with the owner; what is asked twice on the way is refused, not passed on again.

use super::Reactor;
use super::allocation::{Asked, Piece};
use super::hosts::{host_tag, of_host_tag, outcome_of_iscsi, outcome_of_nvme};
use crate::connection::{ConnectionId, Protocol};
use crate::link::LinkAsker;
use crate::mailbox::Message;
use crate::offer::{Route, key};
use crate::reservations::{Answer, Ask, Desk, Failed, Job, Order};
use std::sync::Arc;
use voute_iscsi as iscsi;
use voute_mirror::link::{
    ASKING_BYTES_MAX, Control, ControlReply, LinkRefusal, LinkReply, LinkRequest,
};
use voute_mirror::{HostOperation, HostOutcome, HostRequest, HostTag, LinkFault};
use voute_nvme as nvme;
use voute_reservation::{Access, Asking, Effect, Nexus, Refusal, Request, Reservations, Told};
use voute_schemas::{GroupId, VolumeId};

/// Stands for the reactor in tags of what a home asks its own mirrors.
const HOME: usize = u16::MAX as usize;

/// A request of a host on its way to a mirror.
#[derive(Debug)]
pub(crate) struct Guarded {
    pub(crate) request: HostRequest,
    pub(crate) nexus: Nexus,
    pub(crate) access: Access,
}

/// The reservations of a volume whose mirror told its record.
pub(super) struct Place {
    group: GroupId,
    /// `None`: the record cannot be read, so nothing can be judged.
    desk: Option<Desk>,
}

impl Place {
    /// Whether a command must be refused; `None`: that cannot be judged.
    pub(super) fn conflicts(&self, nexus: &Nexus, access: Access) -> Option<bool> {
        self.desk.as_ref().map(|desk| desk.conflicts(nexus, access))
    }
}

/// Something that a mirror here was asked on behalf of reservations, or of who must know that it serves.
pub(super) enum Step {
    Desk { shard: u16, volume: VolumeId, ask: Ask },
    Data { shard: u16, parked: Guarded },
    Job { shard: u16, volume: VolumeId, job: Job },
    Allocation { shard: u16, volume: VolumeId, asked: Asked, found: Option<Vec<Piece>> },
}

/// A request about reservations of a host here or, passed on, of a peer's: under way.
pub(super) struct Reserving {
    connection: ConnectionId,
    tag: u64,
}

impl Reactor {
    // --- where the host is connected

    /// A host asks something about reservations.
    pub(super) fn begin_reservation(
        &mut self,
        connection: ConnectionId,
        tag: u64,
        route: Route,
        nexus: Nexus,
        request: Request,
    ) {
        let entry = self.reserving.insert(Reserving { connection, tag });
        let asker = Some(host_tag(self.parts.index, entry, 0));
        self.send_job(route, Job { asker, nexus, request, is_passed_on: false });
    }

    fn send_job(&mut self, route: Route, job: Job) {
        let home = self.home(route.shard);
        match home == self.parts.index {
            true => self.reserve_here(route.shard, route.volume, job),
            false => self.post(home, Message::Reserve(route.shard, route.volume, Box::new(job))),
        }
    }

    /// What sessions that ended, or resets, mean for reservations.
    pub(super) fn follow_wishes(&mut self) -> bool {
        let Some(setup) = &self.setup else { return false };
        let wishes = setup.iscsi.take_reservation_wishes();
        let worked = !wishes.is_empty();
        for iscsi::ReservationWish { volume, nexus, request } in wishes {
            if let Some(route) = self.routes.get(&volume.0).copied() {
                let job = Job { asker: None, nexus, request, is_passed_on: false };
                self.send_job(route, job);
            }
        }
        worked
    }

    /// A home has answered a host here.
    pub(super) fn reserved(&mut self, asker: HostTag, answer: Answer) {
        let (_, entry, _) = of_host_tag(asker);
        let Some(Reserving { connection: id, tag }) = self.reserving.try_remove(entry) else {
            return;
        };
        let Some(connection) = self.connection(id) else { return };
        match &mut connection.protocol {
            Protocol::Nvme(nvme) => {
                nvme.complete(nvme::Tag::from_bits(tag), nvme_answer(answer));
            }
            Protocol::Iscsi(iscsi) => {
                iscsi.complete(iscsi::Tag::from_raw(tag), iscsi_answer(answer));
            }
            Protocol::LinkIn(_) => {
                let told = told(&answer).encode();
                let reply = LinkReply::Control(ControlReply::Reserved { told });
                self.answer_link(id, nvme::Tag::from_bits(tag), reply);
            }
            Protocol::LinkOut(_) => {}
        }
        self.list(id.place());
    }

    // --- between the nodes

    /// Asks the node that owns a volume what a host asked here.
    fn pass_on(&mut self, shard: u16, volume: VolumeId, job: Job) {
        let Some(asker) = job.asker else { return };
        let owner = self.setup.as_ref().and_then(|setup| {
            let owner = setup.offer.owner_of(volume)?;
            (owner != setup.identity.node).then_some(owner)
        });
        let may_pass = !job.is_passed_on && matches!(job.nexus, Nexus::Scsi { .. });
        let place = self.place_of(shard);
        let (Some(owner), Some(place), true) = (owner, place, may_pass) else {
            return self.fail_job(job, Failed::Path);
        };
        match self.channel_for_hosts(place, owner) {
            None => return self.fail_job(job, Failed::Path),
            // Hosts ask again by themselves what was answered BUSY.
            Some(false) => return self.fail_job(job, Failed::Busy),
            Some(true) => {}
        }
        let Job { nexus, request, .. } = job;
        let asking = Asking { nexus, request }.encode();
        if asking.len() > ASKING_BYTES_MAX {
            return self.answer(asker, Answer::Refused(Refusal::NoRoom));
        }
        let asker = LinkAsker::Host(self.passed_on.insert(asker));
        let request = LinkRequest::Control(Control::Reserve { volume, asking });
        self.link_send(place, owner, asker, request);
    }

    /// The owner has answered what was passed on to it, or cannot be asked.
    pub(super) fn passed_on_answered(&mut self, entry: usize, reply: Result<LinkReply, LinkFault>) {
        let Some(asker) = self.passed_on.try_remove(entry) else { return };
        let told = match reply {
            Ok(LinkReply::Control(ControlReply::Reserved { told })) => Told::decode(&told).ok(),
            _ => None,
        };
        self.answer(asker, told.map_or(Answer::Failed(Failed::Path), answer_of));
    }

    /// A peer passes on what one of its hosts asks, taking this node for the volume's owner.
    pub(super) fn reserve_for_peer(
        &mut self,
        connection: ConnectionId,
        tag: nvme::Tag,
        (shard, volume): (u16, VolumeId),
        asking: &[u8],
    ) {
        let route = self.routes.get(&key(volume.bytes())).filter(|route| route.shard == shard);
        let asking = Asking::decode(asking);
        let (Some(route), Ok(Asking { nexus, request })) = (route.copied(), asking) else {
            return self.answer_link(connection, tag, LinkReply::Refused(LinkRefusal::Invalid));
        };
        let entry = self.reserving.insert(Reserving { connection, tag: tag.to_bits() });
        let asker = Some(host_tag(self.parts.index, entry, 0));
        self.send_job(route, Job { asker, nexus, request, is_passed_on: true });
    }

    // --- where the volume lives

    pub(super) fn place_of(&self, shard: u16) -> Option<usize> {
        let place = usize::from(shard) / self.parts.mailboxes.len();
        self.shards.get(place).filter(|found| found.number == shard).map(|_| place)
    }

    /// Judges a request and hands it to its mirror.
    pub(super) fn submit_here(&mut self, shard: u16, guarded: Guarded) {
        let Some(place) = self.place_of(shard) else {
            return self.host_reply(guarded.request.id, HostOutcome::PathError);
        };
        let known = self.shards[place].reservations.get(&guarded.request.volume);
        let refused = match known {
            None => {
                let volume = guarded.request.volume;
                let step = Step::Data { shard, parked: guarded };
                return self.ask(place, volume, step, HostOperation::Confirm { after_all: false });
            }
            Some(Place { desk: None, .. }) => Some(HostOutcome::PathError),
            Some(Place { desk: Some(desk), .. }) => {
                let conflicts = desk.conflicts(&guarded.nexus, guarded.access);
                conflicts.then_some(HostOutcome::Conflict)
            }
        };
        match refused {
            Some(outcome) => self.host_reply(guarded.request.id, outcome),
            None => {
                let now = self.clock.now();
                self.with(shard, |shard| shard.mirror.submit(guarded.request, now));
            }
        }
    }

    /// Takes a request about reservations.
    pub(super) fn reserve_here(&mut self, shard: u16, volume: VolumeId, job: Job) {
        let Some(place) = self.place_of(shard) else { return self.fail_job(job, Failed::Path) };
        let mut orders = Vec::new();
        match self.shards[place].reservations.get_mut(&volume) {
            // A session's end means nothing where nothing is known of it.
            None if job.asker.is_none() => return,
            None => {
                let step = Step::Job { shard, volume, job };
                return self.ask(place, volume, step, HostOperation::Confirm { after_all: false });
            }
            Some(Place { desk: None, .. }) => return self.fail_job(job, Failed::Path),
            Some(Place { desk: Some(desk), .. }) => desk.submit(job, &mut orders),
        }
        self.carry_out(shard, volume, orders);
    }

    fn fail_job(&mut self, job: Job, failed: Failed) {
        if let Some(asker) = job.asker {
            self.answer(asker, Answer::Failed(failed));
        }
    }

    pub(super) fn ask(
        &mut self,
        place: usize,
        volume: VolumeId,
        step: Step,
        operation: HostOperation,
    ) {
        let id = host_tag(HOME, self.steps.insert(step), 0);
        let now = self.clock.now();
        let shard = &mut self.shards[place];
        shard.deadline = None;
        shard.mirror.submit(HostRequest { id, volume, operation }, now);
    }

    /// Whether a tag is of something that a home asked; then its mirror's answer is dealt with.
    pub(super) fn step_answered(&mut self, id: HostTag, outcome: &HostOutcome) -> bool {
        let (reactor, entry, _) = of_host_tag(id);
        if reactor != HOME {
            return false;
        }
        let failed = Failed::of(outcome);
        match self.steps.try_remove(entry) {
            None => {}
            Some(Step::Desk { shard, volume, ask }) => {
                let mut orders = Vec::new();
                let known = self
                    .place_of(shard)
                    .and_then(|place| self.shards[place].reservations.get_mut(&volume));
                if let Some(desk) = known.and_then(|known| known.desk.as_mut()) {
                    desk.asked(ask, outcome, &mut orders);
                }
                self.carry_out(shard, volume, orders);
            }
            Some(Step::Allocation { shard, volume, asked, found }) => match failed {
                None => self.allocation_confirmed(shard, volume, asked, found),
                Some(failed) => self.answer_allocation(asked.asker(), Err(failed.outcome())),
            },
            Some(Step::Data { shard, parked }) => {
                let failed = failed.or(self.unknown(shard, parked.request.volume));
                match failed {
                    None => self.submit_here(shard, parked),
                    Some(failed) => self.host_reply(parked.request.id, failed.outcome()),
                }
            }
            Some(Step::Job { shard, volume, job }) => {
                match failed.or(self.unknown(shard, volume)) {
                    None => self.reserve_here(shard, volume, job),
                    Some(Failed::Path) => self.pass_on(shard, volume, job),
                    Some(failed) => self.fail_job(job, failed),
                }
            }
        }
        true
    }

    /// A mirror serves whose record was not told: the next try finds it.
    fn unknown(&self, shard: u16, volume: VolumeId) -> Option<Failed> {
        let place = self.place_of(shard);
        let is_known =
            place.is_some_and(|place| self.shards[place].reservations.contains_key(&volume));
        (!is_known).then_some(Failed::Transition)
    }

    /// A mirror here is about to serve a volume, by this record.
    pub(super) fn record_told(
        &mut self,
        place: usize,
        group: GroupId,
        volume: VolumeId,
        record: &[u8],
        is_cold: bool,
    ) {
        let mut orders = Vec::new();
        let shard = self.shards[place].number;
        let known = self.shards[place].reservations.remove(&volume).and_then(|known| known.desk);
        let desk = match known {
            Some(mut desk) => desk.reopen(record, &mut orders).map(|()| desk),
            None => Desk::open(record, is_cold, &mut orders),
        };
        let desk = match desk {
            Ok(desk) => Some(desk),
            Err(error) => {
                tracing::error!(%volume, %error, "the volume is not served: nobody can tell who may use it");
                None
            }
        };
        self.shards[place].reservations.insert(volume, Place { group, desk });
        self.carry_out(shard, volume, orders);
    }

    /// Another node owns the group: what was known here is no longer so.
    pub(super) fn forget_reservations(&mut self, place: usize, group: GroupId) {
        let shard = &mut self.shards[place];
        let (number, mut closed) = (shard.number, Vec::new());
        let of_group = |_: &VolumeId, known: &mut Place| known.group == group;
        for (volume, known) in shard.reservations.extract_if(of_group) {
            let mut orders = Vec::new();
            if let Some(desk) = known.desk {
                desk.close(&mut orders);
            }
            closed.push((volume, orders));
        }
        for (volume, orders) in closed {
            self.carry_out(number, volume, orders);
        }
    }

    fn carry_out(&mut self, shard: u16, volume: VolumeId, orders: Vec<Order>) {
        for order in orders {
            match order {
                Order::Ask(ask, record) => {
                    let operation = match ask {
                        Ask::Put => HostOperation::PutRecord { record },
                        Ask::Confirm => HostOperation::Confirm { after_all: false },
                        Ask::Drain => HostOperation::Confirm { after_all: true },
                    };
                    if let Some(place) = self.place_of(shard) {
                        self.ask(place, volume, Step::Desk { shard, volume, ask }, operation);
                    }
                }
                Order::Publish(state, effects) => self.publish(volume, state, &effects),
                Order::Answer(asker, answer) => self.answer(asker, answer),
            }
        }
    }

    fn publish(&self, volume: VolumeId, state: Arc<Reservations>, effects: &[Effect]) {
        let Some(setup) = &self.setup else { return };
        let id = volume.bytes();
        setup.iscsi.set_reservations(iscsi::VolumeKey(key(id)), state, effects);
        setup.nvme.notify_reservation(id, effects);
    }

    fn answer(&mut self, asker: HostTag, answer: Answer) {
        let (reactor, ..) = of_host_tag(asker);
        match reactor == self.parts.index {
            true => self.reserved(asker, answer),
            false if reactor < self.parts.mailboxes.len() => {
                self.post(reactor, Message::Reserved(asker, answer));
            }
            false => {}
        }
    }
}

fn told(answer: &Answer) -> Told {
    match answer {
        Answer::Done => Told::Done,
        Answer::Report(state) => Told::report(state),
        Answer::Refused(refusal) => Told::Refused(*refusal),
        Answer::Failed(Failed::Busy) => Told::Busy,
        Answer::Failed(Failed::Path | Failed::Transition | Failed::NoSuchVolume) => {
            Told::Unavailable
        }
    }
}

fn answer_of(told: Told) -> Answer {
    match told {
        Told::Done => Answer::Done,
        Told::Report(record) => match Reservations::decode(&record) {
            Ok(state) => Answer::Report(Arc::new(state)),
            Err(_) => Answer::Failed(Failed::Path),
        },
        Told::Refused(refusal) => Answer::Refused(refusal),
        Told::Unavailable => Answer::Failed(Failed::Path),
        Told::Busy => Answer::Failed(Failed::Busy),
    }
}

fn nvme_answer(answer: Answer) -> nvme::Outcome {
    match answer {
        Answer::Done => nvme::Outcome::Done,
        Answer::Report(state) => nvme::Outcome::Reservations(state),
        Answer::Refused(refusal) => nvme::Outcome::Failed(refusal.into()),
        Answer::Failed(failed) => outcome_of_nvme(failed.outcome(), true),
    }
}

fn iscsi_answer(answer: Answer) -> iscsi::Outcome {
    match answer {
        Answer::Done => iscsi::Outcome::Done,
        Answer::Report(state) => iscsi::Outcome::Reservations(state),
        Answer::Refused(refusal) => iscsi::Outcome::Failed(iscsi::Failure::Reservation(refusal)),
        Answer::Failed(failed) => outcome_of_iscsi(failed.outcome(), 0, true),
    }
}
