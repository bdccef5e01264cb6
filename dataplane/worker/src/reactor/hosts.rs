//! Requests of hosts: from their protocols to the mirror where their volume lives, and back.

use super::{Guarded, Reactor};
use crate::connection::{ConnectionId, Protocol};
use crate::judge::Proof;
use crate::mailbox::Message;
use crate::metrics::count;
use crate::offer::{Route, key};
use crate::translation::{Translation, Work};
use voute_iscsi as iscsi;
use voute_mirror::{HostOutcome, HostRequest, HostTag};
use voute_nvme as nvme;
use voute_reservation::{Access, Nexus, Request};

/// An operation of a host under way.
pub(super) struct HostWork {
    connection: ConnectionId,
    /// The protocol's tag.
    tag: u64,
    lba: u64,
    is_write: bool,
    route: Route,
    nexus: Nexus,
    access: Access,
    translation: Translation,
}

/// One operation as a protocol surfaced it.
struct Surfaced {
    tag: u64,
    volume: u128,
    lba: u64,
    is_write: bool,
    nexus: Nexus,
    access: Access,
    /// From the block size to what is to be done.
    work: ProtocolOperation,
}

enum ProtocolOperation {
    Reservation(Request),
    Allocation { blocks: u32 },
    Nvme(nvme::Operation),
    Iscsi(iscsi::Operation),
}

const PART_BITS: u32 = 16;
const ENTRY_BITS: u32 = 32;

/// Reactor, part and entry in one tag.
pub(super) fn host_tag(reactor: usize, entry: usize, part: u16) -> HostTag {
    HostTag(
        (reactor as u64) << (PART_BITS + ENTRY_BITS) | u64::from(part) << ENTRY_BITS | entry as u64,
    )
}

pub(super) fn of_host_tag(tag: HostTag) -> (usize, usize, u16) {
    let entry = tag.0 & ((1 << ENTRY_BITS) - 1);
    (
        (tag.0 >> (PART_BITS + ENTRY_BITS)) as usize,
        entry as usize,
        (tag.0 >> ENTRY_BITS & ((1 << PART_BITS) - 1)) as u16,
    )
}

impl Reactor {
    /// Takes what the protocols have surfaced on the connections that something happened to.
    pub(super) fn pull_requests(&mut self) -> bool {
        let mut worked = false;
        let mut next = 0;
        while let Some(place) = self.listed.get(next).copied() {
            next += 1;
            worked |= self.pull(place);
        }
        worked
    }

    /// Takes what one connection has surfaced.
    pub(super) fn pull(&mut self, place: usize) -> bool {
        let mut worked = false;
        while let Some(connection) = self.connections.get_mut(place) {
            let id = connection.id;
            let surfaced = match &mut connection.protocol {
                Protocol::Nvme(connection) => match connection.next_request() {
                    Some(nvme::Request {
                        tag,
                        operation: nvme::Operation::Authenticate(work),
                        ..
                    }) => {
                        self.begin_authentication(id, tag.to_bits(), work);
                        Some(None)
                    }
                    request => request.map(of_nvme),
                },
                Protocol::Iscsi(connection) => match connection.next_request() {
                    Some(iscsi::Request {
                        tag,
                        volume,
                        operation: iscsi::Operation::ActivateGroup { group },
                        ..
                    }) => {
                        self.begin_move(id, tag.get(), volume.0, group);
                        Some(None)
                    }
                    request => request.map(of_iscsi).map(Some),
                },
                Protocol::LinkIn(_) => return worked | self.pull_link_in(place),
                Protocol::LinkOut(_) => return worked | self.pull_link_out(place),
            };
            match surfaced {
                None => break,
                // Answered already; or a link's request on a host's connection, which the target
                // does not surface.
                Some(None) => {}
                Some(Some(surfaced)) => self.begin(id, surfaced),
            }
            worked = true;
        }
        worked
    }

    /// Has a host's proof judged elsewhere.
    fn begin_authentication(
        &mut self,
        connection: ConnectionId,
        tag: u64,
        work: nvme::Authentication,
    ) {
        let reactor = self.parts.index;
        let origin = self.connection(connection).and_then(|connection| connection.origin());
        let proof = Proof { reactor, connection, tag, work };
        let takes = self.setup.as_ref().is_some_and(|setup| setup.judge.submit(origin, proof));
        if !takes {
            let busy = nvme::Outcome::Failed(nvme::Status::connect_controller_busy());
            self.judged(connection, tag, busy);
        }
    }

    /// A host's proof has been judged.
    pub(super) fn judged(&mut self, id: ConnectionId, tag: u64, outcome: nvme::Outcome) {
        let now = self.clock.now();
        let Some(connection) = self.connection(id) else { return };
        if let Protocol::Nvme(nvme) = &mut connection.protocol {
            nvme.tick(now);
            nvme.complete(nvme::Tag::from_bits(tag), outcome);
        }
        self.list(id.place());
    }

    fn begin(&mut self, connection: ConnectionId, surfaced: Surfaced) {
        let Surfaced { tag, volume, lba, is_write, nexus, access, work } = surfaced;
        count(&self.parts.metrics.requests, 1);
        let Some(route) = self.routes.get(&volume).copied() else {
            return self.complete(connection, tag, lba, is_write, HostOutcome::PathError);
        };
        let work = match work {
            ProtocolOperation::Reservation(request) => {
                return self.begin_reservation(connection, tag, route, nexus, request);
            }
            ProtocolOperation::Allocation { blocks } => {
                return self.begin_allocation((connection, tag), route, nexus, (lba, blocks));
            }
            ProtocolOperation::Nvme(operation) => nvme_work(operation, route.block_bytes),
            ProtocolOperation::Iscsi(operation) => iscsi_work(operation, route.block_bytes),
        };
        if let Work::Write { data, .. } | Work::WriteWhole { data, .. } = &work {
            count(&self.parts.metrics.written_bytes, data.len() as u64);
        }
        let Some(translation) = Translation::begin(work, &mut self.requests) else {
            return self.complete(connection, tag, lba, is_write, HostOutcome::Done);
        };
        let work = HostWork { connection, tag, lba, is_write, route, nexus, access, translation };
        let entry = self.host_work.insert(work);
        self.submit_parts(entry);
    }

    /// Sends the requests of one step. All are taken out first: one that is refused at once is
    /// answered while the others still wait, and its operation's answer waits for them.
    fn submit_parts(&mut self, entry: usize) {
        let mut parts = std::mem::take(&mut self.requests);
        while let Some((part, operation)) = parts.pop_front() {
            let Some(work) = self.host_work.get(entry) else { break };
            let (route, nexus, access) = (work.route, work.nexus.clone(), work.access);
            let id = host_tag(self.parts.index, entry, part);
            let request = HostRequest { id, volume: route.volume, operation };
            self.submit(route.shard, Guarded { request, nexus, access });
        }
        // The queue's memory is used again.
        if self.requests.is_empty() {
            parts.clear();
            self.requests = parts;
        }
    }

    fn submit(&mut self, shard: u16, guarded: Guarded) {
        let home = self.home(shard);
        if home != self.parts.index {
            count(&self.parts.metrics.forwarded_requests, 1);
            return self.post(home, Message::Host(shard, guarded));
        }
        self.submit_here(shard, guarded);
    }

    /// A mirror here has answered: to a connection here or at another reactor.
    pub(super) fn host_reply(&mut self, id: HostTag, outcome: HostOutcome) {
        if self.step_answered(id, &outcome) {
            return;
        }
        let (reactor, ..) = of_host_tag(id);
        match reactor == self.parts.index {
            true => self.host_done(id, outcome),
            false if reactor < self.parts.mailboxes.len() => {
                self.post(reactor, Message::HostDone(id, outcome));
            }
            false => {}
        }
    }

    /// One part of an operation of a host here has been answered.
    pub(super) fn host_done(&mut self, id: HostTag, outcome: HostOutcome) {
        let (_, entry, part) = of_host_tag(id);
        let Some(work) = self.host_work.get_mut(entry) else { return };
        match work.translation.answered(part, outcome, &mut self.requests) {
            Some(outcome) => {
                let HostWork { connection, tag, lba, is_write, .. } = self.host_work.remove(entry);
                self.complete(connection, tag, lba, is_write, outcome);
            }
            None => self.submit_parts(entry),
        }
    }

    fn complete(
        &mut self,
        id: ConnectionId,
        tag: u64,
        lba: u64,
        is_write: bool,
        outcome: HostOutcome,
    ) {
        match &outcome {
            HostOutcome::Data(data) => count(&self.parts.metrics.read_bytes, data.len() as u64),
            HostOutcome::Done | HostOutcome::Miscompare { .. } => {}
            _ => count(&self.parts.metrics.failed_requests, 1),
        }
        let Some(connection) = self.connection(id) else { return };
        match &mut connection.protocol {
            Protocol::Nvme(nvme) => {
                nvme.complete(nvme::Tag::from_bits(tag), outcome_of_nvme(outcome, is_write));
            }
            Protocol::Iscsi(iscsi) => {
                iscsi.complete(iscsi::Tag::from_raw(tag), outcome_of_iscsi(outcome, lba, is_write));
            }
            Protocol::LinkIn(_) | Protocol::LinkOut(_) => {}
        }
        self.list(id.place());
    }
}

fn of_nvme(request: nvme::Request) -> Option<Surfaced> {
    let nvme::Scope::Host { uuid, association, .. } = request.scope else { return None };
    let nexus = Nexus::Nvme { host_id: association.host_id };
    let access = request.operation.access();
    let (lba, is_write) = match &request.operation {
        nvme::Operation::Read { lba, .. }
        | nvme::Operation::Compare { lba, .. }
        | nvme::Operation::Verify { lba, .. } => (*lba, false),
        nvme::Operation::Write { lba, .. }
        | nvme::Operation::WriteZeroes { lba, .. }
        | nvme::Operation::CompareAndWrite { lba, .. } => (*lba, true),
        nvme::Operation::Deallocate { .. } => (0, true),
        nvme::Operation::Flush | nvme::Operation::Reservation(_) => (0, false),
        // Proofs are not for volumes, and were taken out before.
        nvme::Operation::Vendor { .. } | nvme::Operation::Authenticate(_) => return None,
    };
    let (tag, volume) = (request.tag.to_bits(), key(uuid));
    let work = match request.operation {
        nvme::Operation::Reservation(request) => ProtocolOperation::Reservation(request),
        operation => ProtocolOperation::Nvme(operation),
    };
    Some(Surfaced { tag, volume, lba, is_write, nexus, access, work })
}

fn of_iscsi(request: iscsi::Request) -> Surfaced {
    let lba = match &request.operation {
        iscsi::Operation::Read { lba, .. }
        | iscsi::Operation::Write { lba, .. }
        | iscsi::Operation::WriteAtomic { lba, .. }
        | iscsi::Operation::WriteZeroes { lba, .. }
        | iscsi::Operation::Verify { lba, .. }
        | iscsi::Operation::Compare { lba, .. }
        | iscsi::Operation::WriteAndCompare { lba, .. }
        | iscsi::Operation::CompareAndWrite { lba, .. }
        | iscsi::Operation::OrWrite { lba, .. }
        | iscsi::Operation::AllocationStatus { lba, .. } => *lba,
        iscsi::Operation::Flush
        | iscsi::Operation::Deallocate { .. }
        | iscsi::Operation::Reservation(_)
        | iscsi::Operation::ActivateGroup { .. } => 0,
    };
    Surfaced {
        tag: request.tag.get(),
        volume: request.volume.0,
        lba,
        is_write: request.operation.changes_data(),
        nexus: request.nexus,
        access: request.operation.access(),
        work: match request.operation {
            iscsi::Operation::Reservation(request) => ProtocolOperation::Reservation(request),
            iscsi::Operation::AllocationStatus { blocks, .. } => {
                ProtocolOperation::Allocation { blocks }
            }
            operation => ProtocolOperation::Iscsi(operation),
        },
    }
}

fn nvme_work(operation: nvme::Operation, block: u32) -> Work {
    use nvme::Operation;
    let block = u64::from(block);
    let bytes = |blocks: u32| u64::from(blocks) * block;
    match operation {
        Operation::Read { lba, blocks } => {
            Work::Read { offset: lba * block, length: bytes(blocks) }
        }
        Operation::Write { lba, data, .. } => Work::Write { offset: lba * block, data },
        Operation::WriteZeroes { lba, blocks, deallocate } => {
            Work::Zero { ranges: vec![(lba * block, bytes(blocks))], deallocate }
        }
        Operation::Deallocate { ranges } => {
            let ranges = ranges.into_iter().map(|(lba, blocks)| (lba * block, bytes(blocks)));
            Work::Zero { ranges: ranges.collect(), deallocate: true }
        }
        Operation::Compare { lba, data, .. } => Work::Compare { offset: lba * block, data },
        Operation::CompareAndWrite { lba, compare, write, .. } => {
            Work::CompareAndWrite { offset: lba * block, expected: compare, data: write }
        }
        Operation::Verify { lba, blocks } => {
            Work::Verify { offset: lba * block, length: bytes(blocks) }
        }
        // Links and reservations do not get here, see `of_nvme`.
        Operation::Flush
        | Operation::Reservation(_)
        | Operation::Authenticate(_)
        | Operation::Vendor { .. } => Work::Flush,
    }
}

fn iscsi_work(operation: iscsi::Operation, block: u32) -> Work {
    use iscsi::Operation;
    let block = u64::from(block);
    let bytes = |blocks: u32| u64::from(blocks) * block;
    match operation {
        Operation::Read { lba, blocks } => {
            Work::Read { offset: lba * block, length: bytes(blocks) }
        }
        Operation::Write { lba, data, .. } => Work::Write { offset: lba * block, data },
        Operation::WriteAtomic { lba, data, .. } => Work::WriteWhole { offset: lba * block, data },
        // Allocations, reservations and moves do not get here.
        Operation::Flush
        | Operation::AllocationStatus { .. }
        | Operation::Reservation(_)
        | Operation::ActivateGroup { .. } => Work::Flush,
        Operation::WriteZeroes { lba, blocks, deallocate } => {
            Work::Zero { ranges: vec![(lba * block, bytes(blocks))], deallocate }
        }
        Operation::Deallocate { ranges } => {
            let ranges = ranges.into_iter().map(|range| (range.lba * block, bytes(range.blocks)));
            Work::Zero { ranges: ranges.collect(), deallocate: true }
        }
        Operation::Verify { lba, blocks } => {
            Work::Verify { offset: lba * block, length: bytes(blocks) }
        }
        Operation::Compare { lba, data, .. } => Work::Compare { offset: lba * block, data },
        Operation::WriteAndCompare { lba, data, .. } => {
            Work::WriteAndCompare { offset: lba * block, data }
        }
        Operation::CompareAndWrite { lba, compare, write, .. } => {
            Work::CompareAndWrite { offset: lba * block, expected: compare, data: write }
        }
        Operation::OrWrite { lba, data, .. } => Work::OrWrite { offset: lba * block, data },
    }
}

/// Only a copy that cannot be read anywhere is a media error. Everything that another path may cure
/// has a path status (type 3h): on any other, Linux tries a few times on the same path and gives up.
pub(super) fn outcome_of_nvme(outcome: HostOutcome, is_write: bool) -> nvme::Outcome {
    use nvme::{Outcome, Status};
    match outcome {
        HostOutcome::Done => Outcome::Done,
        HostOutcome::Data(data) => Outcome::Data(data),
        HostOutcome::Miscompare { .. } => Outcome::Failed(Status::compare_failure()),
        HostOutcome::PathError | HostOutcome::NoSuchVolume => {
            Outcome::Failed(Status::ana_inaccessible())
        }
        HostOutcome::Transition => Outcome::Failed(Status::ana_transition()),
        HostOutcome::Busy => Outcome::Failed(Status::path_error()),
        HostOutcome::OutOfRange => Outcome::Failed(Status::lba_out_of_range()),
        HostOutcome::Conflict => Outcome::Failed(Status::reservation_conflict()),
        HostOutcome::MediumError if is_write => Outcome::Failed(Status::write_fault()),
        HostOutcome::MediumError => Outcome::Failed(Status::unrecovered_read_error()),
    }
}

pub(super) fn outcome_of_iscsi(outcome: HostOutcome, lba: u64, is_write: bool) -> iscsi::Outcome {
    use iscsi::{Failure, NotReady, Outcome};
    match outcome {
        HostOutcome::Done => Outcome::Done,
        HostOutcome::Data(data) => Outcome::Data(data),
        HostOutcome::Miscompare { at } => Outcome::Miscompare { offset: at },
        HostOutcome::PathError => Outcome::Failed(Failure::NotReady(NotReady::Standby)),
        HostOutcome::NoSuchVolume => Outcome::Failed(Failure::NotReady(NotReady::Unavailable)),
        HostOutcome::Transition => Outcome::Failed(Failure::NotReady(NotReady::Transition)),
        HostOutcome::Busy => Outcome::Failed(Failure::Busy),
        HostOutcome::OutOfRange => Outcome::Failed(Failure::OutOfRange),
        HostOutcome::Conflict => {
            Outcome::Failed(Failure::Reservation(voute_reservation::Refusal::Conflict))
        }
        HostOutcome::MediumError if is_write => Outcome::Failed(Failure::UnwritableMedium { lba }),
        HostOutcome::MediumError => Outcome::Failed(Failure::UnreadableMedium { lba }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_names_reactor_entry_and_part() {
        for (reactor, entry, part) in [(0, 0, 0), (3, 17, 255), (255, u32::MAX as usize, u16::MAX)]
        {
            assert_eq!(of_host_tag(host_tag(reactor, entry, part)), (reactor, entry, part));
        }
    }

    #[test]
    fn what_another_path_may_cure_is_a_path_error_without_do_not_retry() {
        let curable = [
            HostOutcome::PathError,
            HostOutcome::NoSuchVolume,
            HostOutcome::Transition,
            HostOutcome::Busy,
        ];
        for outcome in curable {
            let text = format!("{outcome:?}");
            let nvme::Outcome::Failed(status) = outcome_of_nvme(outcome, true) else {
                panic!("{text} is no success")
            };
            assert!(status.is_path_related() && !status.do_not_retry(), "{text}");
        }
        let medium = outcome_of_nvme(HostOutcome::MediumError, false);
        assert!(matches!(medium, nvme::Outcome::Failed(status) if !status.is_path_related()));
    }

    #[test]
    fn blocks_become_bytes() {
        let work = nvme_work(nvme::Operation::Read { lba: 8, blocks: 2 }, 4096);
        assert!(matches!(work, Work::Read { offset: 32_768, length: 8_192 }), "{work:?}");
        let ranges = vec![iscsi::BlockRange { lba: 1, blocks: 3 }];
        let work = iscsi_work(iscsi::Operation::Deallocate { ranges }, 512);
        let Work::Zero { ranges, deallocate: true } = work else { panic!("{work:?}") };
        assert_eq!(ranges, [(512, 1536)]);
    }
}
