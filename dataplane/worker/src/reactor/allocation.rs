//! Which blocks of a volume were ever written (GET LBA STATUS), as the owner's leg notes it.
//!
//! ```text
//! asked ─► Confirm: it is served here ─► what the leg notes ─► Confirm again: nobody else could
//!                                                               have written meanwhile ─► answered
//! ```
//!
//! A host may skip what it is told was never written, so the answer needs the proof that a read needs,
//! and after it was taken, as with a read (docs/mirror-rules.md rule 7).

use super::Reactor;
use super::hosts::{host_tag, of_host_tag};
use super::reservations::Step;
use crate::connection::{ConnectionId, Protocol};
use crate::mailbox::Message;
use crate::offer::Route;
use voute_iscsi as iscsi;
use voute_mirror::{HostOperation, HostOutcome, HostTag};
use voute_reservation::{Access, Nexus};
use voute_schemas::VolumeId;

/// Most bytes that one answer covers: looking at each region of more would keep the reactor from its
/// other work. Hosts ask on from where an answer ends.
const BYTES_MAX: u64 = 64 << 30;
/// Most pieces of one answer.
const PIECES_MAX: usize = 1_024;

/// A range in bytes, and whether it may hold data.
pub(crate) type Piece = (u64, u64, bool);

/// What a host asked for, on its way to the volume's home.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    asker: HostTag,
    nexus: Nexus,
    offset: u64,
    length: u64,
}

impl Asked {
    pub(super) fn asker(&self) -> HostTag {
        self.asker
    }
}

/// A host that waits.
pub(super) struct Waiting {
    connection: ConnectionId,
    tag: u64,
    block_bytes: u64,
}

impl Reactor {
    /// A host here asks how blocks are allocated.
    pub(super) fn begin_allocation(
        &mut self,
        (connection, tag): (ConnectionId, u64),
        route: Route,
        nexus: Nexus,
        (lba, blocks): (u64, u32),
    ) {
        let block_bytes = u64::from(route.block_bytes);
        let entry = self.allocations.insert(Waiting { connection, tag, block_bytes });
        let length = (u64::from(blocks) * block_bytes).min(BYTES_MAX);
        let asker = host_tag(self.parts.index, entry, 0);
        let asked = Asked { asker, nexus, offset: lba * block_bytes, length };
        let home = self.home(route.shard);
        match home == self.parts.index {
            true => self.allocation_here(route.shard, route.volume, asked),
            false => self.post(home, Message::Allocation(route.shard, route.volume, asked)),
        }
    }

    /// Asks the mirror here, first of all whether it serves.
    pub(super) fn allocation_here(&mut self, shard: u16, volume: VolumeId, asked: Asked) {
        self.confirm_allocation(shard, volume, asked, None);
    }

    fn confirm_allocation(
        &mut self,
        shard: u16,
        volume: VolumeId,
        asked: Asked,
        found: Option<Vec<Piece>>,
    ) {
        let Some(place) = self.place_of(shard) else {
            return self.answer_allocation(asked.asker, Err(HostOutcome::PathError));
        };
        let step = Step::Allocation { shard, volume, asked, found };
        self.ask(place, volume, step, HostOperation::Confirm { after_all: false });
    }

    /// The mirror serves, and did so when `found` was noted.
    pub(super) fn allocation_confirmed(
        &mut self,
        shard: u16,
        volume: VolumeId,
        asked: Asked,
        found: Option<Vec<Piece>>,
    ) {
        if let Some(found) = found {
            return self.answer_allocation(asked.asker, Ok(found));
        }
        let place = self.place_of(shard);
        let judged = match place.and_then(|place| self.shards[place].conflicts(volume, &asked)) {
            None => Err(HostOutcome::Transition),
            Some(true) => Err(HostOutcome::Conflict),
            Some(false) => Ok(()),
        };
        let (offset, length) = (asked.offset, asked.length);
        let found = judged.and_then(|()| {
            let mirror = place.map(|place| &self.shards[place].mirror);
            let found =
                mirror.and_then(|mirror| mirror.allocation(volume, offset, length, PIECES_MAX));
            found.ok_or(HostOutcome::PathError)
        });
        match found {
            Ok(found) => self.confirm_allocation(shard, volume, asked, Some(found)),
            Err(outcome) => self.answer_allocation(asked.asker, Err(outcome)),
        }
    }

    /// Answers a host here or at another reactor.
    pub(super) fn answer_allocation(
        &mut self,
        asker: HostTag,
        found: Result<Vec<Piece>, HostOutcome>,
    ) {
        let (reactor, ..) = of_host_tag(asker);
        match reactor == self.parts.index {
            true => self.allocation_found(asker, found),
            false => self.post(reactor, Message::Allocated(asker, found)),
        }
    }

    /// A home has answered a host here.
    pub(super) fn allocation_found(
        &mut self,
        asker: HostTag,
        found: Result<Vec<Piece>, HostOutcome>,
    ) {
        let (_, entry, _) = of_host_tag(asker);
        let Some(Waiting { connection: id, tag, block_bytes }) = self.allocations.try_remove(entry)
        else {
            return;
        };
        let Some(connection) = self.connection(id) else { return };
        if let Protocol::Iscsi(host) = &mut connection.protocol {
            let outcome = match found {
                Ok(pieces) => iscsi::Outcome::Allocation(extents(&pieces, block_bytes)),
                Err(outcome) => super::hosts::outcome_of_iscsi(outcome, 0, false),
            };
            host.complete(iscsi::Tag::from_raw(tag), outcome);
        }
        self.list(id.place());
    }
}

impl super::Shard {
    /// Whether a reservation forbids it; `None` if none is known here to judge by.
    fn conflicts(&self, volume: VolumeId, asked: &Asked) -> Option<bool> {
        self.reservations.get(&volume)?.conflicts(&asked.nexus, Access::Read)
    }
}

fn extents(pieces: &[Piece], block_bytes: u64) -> Vec<iscsi::AllocationExtent> {
    let extent = |&(offset, length, mapped): &Piece| iscsi::AllocationExtent {
        lba: offset / block_bytes,
        // No more than BYTES_MAX in blocks of 512 bytes.
        blocks: u32::try_from(length / block_bytes).unwrap_or(u32::MAX),
        mapped,
    };
    pieces.iter().map(extent).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_told_in_blocks() {
        let found = extents(&[(4_096, 1_048_576, true), (1_052_672, 512, false)], 512);
        let told: Vec<_> = found.iter().map(|one| (one.lba, one.blocks, one.mapped)).collect();
        assert_eq!(told, [(8, 2_048, true), (2_056, 1, false)]);
        let all = extents(&[(0, BYTES_MAX, false)], 512);
        assert_eq!(u64::from(all[0].blocks) * 512, BYTES_MAX, "it fits");
    }
}
