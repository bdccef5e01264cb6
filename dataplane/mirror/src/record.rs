//! The small record that a volume's legs keep for whoever owns it, opaque here: reservations.
//!
//! ```text
//! put:     Queued → (serving) → own leg's header, peer's header → answered
//! opening: the own copy wins; a peer's that differs is replaced before the owner serves
//! resync:  the peer gets the copies before it is marked as copied
//! ```
//!
//! A volume's puts go one after the other. Within a token the latest that was sent wins at a leg
//! (each carries a rising number), whatever order they arrive in; another token's are refused.
//!
//! A record is *live* while a process lives that wrote it or served by it. When none does, the whole
//! pair was without power: the owner that opens then is told so, since some of it may be meant to end
//! by that (SPC-4 §5.13.1: APTPL).

use crate::action::{Action, HostOutcome, HostTag, RECORD_BYTES_MAX};
use crate::keeper::{Client, Keeper, LegFault};
use crate::link::{Control, ControlReply, LinkRefusal, LinkReply, LinkRequest};
use crate::out::LinkClient;
use crate::owner::{Context, LinkPurpose, Owner, OwnerCall, Stage, to_ms};
use std::collections::VecDeque;
use std::time::Duration;
use voute_schemas::Hash;
use voute_schemas::mutant::{self, Mutant};

/// Most puts and confirmations of a group that wait; more are refused.
const WAITING_MAX: usize = 4_096;

/// Names a record's content: legs whose fingerprints agree need not be told it.
pub(crate) fn fingerprint(record: &[u8]) -> u64 {
    u64::from_le_bytes(Hash::of(record).0[..8].try_into().expect("eight bytes of a hash"))
}

/// How far a put is at one leg.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum AtLeg {
    NotNeeded,
    Needed,
    /// Refused: to be sent again when time has passed, not at once.
    Later,
    /// Under this number, and in which round if it is the peer's leg.
    Sent {
        number: u64,
        round: u64,
    },
    Done,
}

#[derive(Clone, Debug)]
struct Put {
    host: HostTag,
    volume: usize,
    record: Vec<u8>,
    own: AtLeg,
    /// `None` until it is begun.
    peer: Option<AtLeg>,
    since: Duration,
}

#[derive(Clone, Debug)]
struct Confirm {
    host: HostTag,
    arrived: Duration,
    /// Requests that must end before.
    after: Vec<u64>,
}

/// Puts and confirmations under way.
#[derive(Clone, Default, Debug)]
pub(crate) struct Records {
    puts: VecDeque<Put>,
    confirms: Vec<Confirm>,
}

impl Records {
    pub(crate) fn is_empty(&self) -> bool {
        self.puts.is_empty() && self.confirms.is_empty()
    }
}

impl Owner {
    /// Takes a put: answered when every leg that counts has it durably, or when another node owns.
    pub(crate) fn submit_record(
        &mut self,
        id: HostTag,
        volume: usize,
        record: Vec<u8>,
        context: &mut Context<'_>,
    ) {
        let outcome = match () {
            () if record.len() > RECORD_BYTES_MAX => HostOutcome::OutOfRange,
            () if self.records.puts.len() >= WAITING_MAX => HostOutcome::Busy,
            () => {
                return self.records.puts.push_back(Put {
                    host: id,
                    volume,
                    record,
                    own: AtLeg::Needed,
                    peer: None,
                    since: context.now,
                });
            }
        };
        context.out.actions.push_back(Action::HostReply { id, outcome });
    }

    /// Takes a confirmation: answered under a lease, if `after_all` once what is under way on the
    /// volume has ended.
    pub(crate) fn submit_confirm(
        &mut self,
        id: HostTag,
        volume: usize,
        after_all: bool,
        context: &mut Context<'_>,
    ) {
        if self.records.confirms.len() >= WAITING_MAX {
            let outcome = HostOutcome::Busy;
            return context.out.actions.push_back(Action::HostReply { id, outcome });
        }
        let after = if after_all { self.works_of(volume) } else { Vec::new() };
        self.records.confirms.push(Confirm { host: id, arrived: context.now, after });
    }

    /// Does for puts and confirmations what can be done now. Called after everything that happened.
    pub(crate) fn advance_records(&mut self, keeper: &mut Keeper, context: &mut Context<'_>) {
        if self.records.is_empty() {
            return;
        }
        self.answer_confirms(context);
        let mut at = 0;
        while at < self.records.puts.len() {
            let volume = self.records.puts[at].volume;
            if self.records.puts.iter().take(at).any(|earlier| earlier.volume == volume) {
                at += 1;
                continue;
            }
            self.send_put(at, keeper, context);
            let put = &self.records.puts[at];
            let is_done = put.own == AtLeg::Done
                && (matches!(put.peer, Some(AtLeg::Done | AtLeg::NotNeeded))
                    || mutant::is_active(Mutant::RecordsOnOneLeg));
            if !is_done {
                at += 1;
                continue;
            }
            let id = put.host;
            self.records.puts.remove(at);
            let outcome = HostOutcome::Done;
            context.out.actions.push_back(Action::HostReply { id, outcome });
        }
    }

    fn send_put(&mut self, at: usize, keeper: &mut Keeper, context: &mut Context<'_>) {
        if self.stage != Stage::Serving {
            return;
        }
        let takes = self.peer.as_ref().is_some_and(|peer| peer.takes_writes());
        let round = self.peer.as_ref().map(|peer| peer.round);
        let peer = self.peer.as_ref().and_then(|peer| Some((peer.node, peer.round, peer.bar()?)));
        let Some(put) = self.records.puts.get_mut(at) else { return };
        let number = self.volumes[put.volume].spec.number;
        let (record, group, life) = (put.record.clone(), self.group, self.life);
        let at_peer = put.peer.get_or_insert_with(|| {
            put.since = context.now;
            AtLeg::NotNeeded
        });
        *at_peer = match *at_peer {
            // A peer that came meanwhile got the own leg's copy, which may not be this one yet.
            AtLeg::NotNeeded if takes && put.own != AtLeg::Done => AtLeg::Needed,
            AtLeg::Sent { round: sent, .. } if Some(sent) != round => AtLeg::Needed,
            other => other,
        };
        if let (AtLeg::Needed, Some((node, round, bar))) = (*at_peer, peer) {
            let sent = context.out.next_session();
            *at_peer = AtLeg::Sent { number: sent, round };
            let control = Control::PutRecord {
                group,
                bar,
                volume: number,
                number: sent,
                record: record.clone(),
            };
            let client = LinkClient::Owner(group, round, LinkPurpose::Put { number: sent });
            context.out.link(client, node, LinkRequest::Control(control));
        }
        if let (AtLeg::Needed, Some(bar)) = (put.own, self.bar) {
            let sent = context.out.next_session();
            put.own = AtLeg::Sent { number: sent, round: 0 };
            let client = Client::Owner(life, OwnerCall::Record(sent));
            keeper.put_record(number, bar, sent, record, client, context.out);
        }
    }

    /// The own leg has a put's record, or not.
    pub(crate) fn record_at_own(
        &mut self,
        number: u64,
        result: Result<(), LegFault>,
        context: &mut Context<'_>,
    ) {
        let sent = AtLeg::Sent { number, round: 0 };
        let Some(put) = self.records.puts.iter_mut().find(|put| put.own == sent) else { return };
        put.own = if result.is_ok() { AtLeg::Done } else { AtLeg::Later };
        match result {
            Err(LegFault::Failed | LegFault::ContentLost | LegFault::Medium(_)) => {
                self.give_up("its header cannot be written", context);
            }
            // The bar is about to be another.
            Ok(())
            | Err(LegFault::Stale | LegFault::NotYet | LegFault::Unknown | LegFault::Invalid) => {}
        }
    }

    /// The peer has a put's record, or not.
    pub(crate) fn record_at_peer(
        &mut self,
        number: u64,
        round: u64,
        reply: Option<LinkReply>,
        context: &mut Context<'_>,
    ) {
        let sent = Some(AtLeg::Sent { number, round });
        let Some(put) = self.records.puts.iter_mut().find(|put| put.peer == sent) else { return };
        match reply {
            Some(LinkReply::Control(ControlReply::Done)) => put.peer = Some(AtLeg::Done),
            Some(LinkReply::Refused(refusal)) => self.peer_refused(refusal, context),
            _ => self.peer_refused(LinkRefusal::Invalid, context),
        }
    }

    /// The peer counts no more, or is another.
    pub(crate) fn forget_peer_in_records(&mut self) {
        for put in self.records.puts.iter_mut().filter(|put| put.peer.is_some()) {
            put.peer = Some(AtLeg::NotNeeded);
        }
    }

    fn answer_confirms(&mut self, context: &mut Context<'_>) {
        if self.records.confirms.is_empty() {
            return;
        }
        let may_answer = self.lease_is_valid(context);
        let (works, hold_ms, now) = (&self.works, context.times.hold_ms, context.now);
        let is_cut_off = self.is_cut_off;
        let actions = &mut context.out.actions;
        self.records.confirms.retain_mut(|confirm| {
            confirm.after.retain(|key| works.get(*key).is_some());
            let outcome = match () {
                () if confirm.after.is_empty() && may_answer => HostOutcome::Done,
                () if is_cut_off => HostOutcome::PathError,
                () if to_ms(now.saturating_sub(confirm.arrived)) >= hold_ms => {
                    HostOutcome::Transition
                }
                () => return true,
            };
            actions.push_back(Action::HostReply { id: confirm.host, outcome });
            false
        });
    }

    /// Another node owns: what became of a put is not known here.
    pub(crate) fn give_back_records(&mut self, context: &mut Context<'_>) {
        self.give_back_puts(context);
        for confirm in std::mem::take(&mut self.records.confirms) {
            let outcome = HostOutcome::PathError;
            context.out.actions.push_back(Action::HostReply { id: confirm.host, outcome });
        }
    }

    /// The legs are opened anew: what they hold then is what counts, and is told.
    pub(crate) fn give_back_puts(&mut self, context: &mut Context<'_>) {
        for put in std::mem::take(&mut self.records.puts) {
            let outcome = HostOutcome::PathError;
            context.out.actions.push_back(Action::HostReply { id: put.host, outcome });
        }
    }

    /// Whether the peer keeps a put waiting for so long.
    pub(crate) fn peer_record_is_late(&self, late: impl Fn(Duration) -> bool) -> bool {
        let waits = |put: &Put| matches!(put.peer, Some(AtLeg::Sent { .. } | AtLeg::Needed));
        self.stage == Stage::Serving
            && self.records.puts.iter().any(|put| waits(put) && late(put.since))
    }

    /// Whether the own leg does.
    pub(crate) fn own_record_is_late(&self, late: impl Fn(Duration) -> bool) -> bool {
        let waits = |put: &Put| matches!(put.own, AtLeg::Sent { .. });
        self.records.puts.iter().any(|put| waits(put) && late(put.since))
    }

    pub(crate) fn restart_record_deadlines(&mut self, now: Duration) {
        self.records.puts.iter_mut().for_each(|put| put.since = now);
        self.wake_records();
    }

    /// Time has passed: what an own leg refused is tried again.
    pub(crate) fn wake_records(&mut self) {
        for put in self.records.puts.iter_mut().filter(|put| put.own == AtLeg::Later) {
            put.own = AtLeg::Needed;
        }
    }

    // --- opening and resync

    /// Notes of each volume, once per opening, whether no process lives that knew its record.
    pub(crate) fn judge_records(&mut self, keeper: &Keeper) {
        let peer = self.peer.as_ref().filter(|peer| peer.counts());
        for volume in &mut self.volumes {
            let number = volume.spec.number;
            let known_there = peer.is_some_and(|peer| peer.has_live_record(number));
            volume.record_is_cold.get_or_insert(!keeper.record_is_live(number) && !known_there);
        }
    }

    /// Tells the records that were not told since this opening began: before hosts are let in.
    pub(crate) fn tell_records(&mut self, keeper: &mut Keeper, context: &mut Context<'_>) {
        self.judge_records(keeper);
        for volume in self.volumes.iter_mut().filter(|volume| !volume.record_is_told) {
            volume.record_is_told = true;
            let is_cold = volume.record_is_cold.replace(false).unwrap_or(false);
            context.out.actions.push_back(Action::Record {
                group: self.group,
                volume: volume.spec.volume,
                record: keeper.record(volume.spec.number),
                is_cold,
            });
            keeper.enliven_record(volume.spec.number);
        }
    }

    /// Sends the own copies to the peer: all, or those that it does not report. How many.
    pub(crate) fn send_records(
        &mut self,
        all: bool,
        keeper: &Keeper,
        context: &mut Context<'_>,
    ) -> usize {
        let Some(peer) = &mut self.peer else { return 0 };
        let Some(bar) = peer.held_bar() else { return 0 };
        let numbers = self.volumes.iter().map(|volume| volume.spec.number);
        let differs = |number: &u32| {
            all || !peer.has_record(*number, fingerprint(&keeper.record(*number)))
                || !peer.has_live_record(*number)
        };
        let numbers: Vec<u32> = numbers.filter(differs).collect();
        for volume in &numbers {
            let number = context.out.next_session();
            let record = keeper.record(*volume);
            let control =
                Control::PutRecord { group: self.group, bar, volume: *volume, number, record };
            let client = LinkClient::Owner(self.group, peer.round, LinkPurpose::Record);
            context.out.link(client, peer.node, LinkRequest::Control(control));
        }
        peer.expect_records(numbers.len());
        numbers.len()
    }
}
