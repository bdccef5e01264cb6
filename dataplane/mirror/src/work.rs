//! Requests of hosts on their way through the owner.
//!
//! ```text
//! read:   Held → Settling → Claiming → Reading → (Repairing) → AwaitingLease → answered
//! write:  Held → Settling → Claiming → Intent → Writing (own leg, peer) → answered
//! compare-and-write: as a read up to the comparison, then as a write
//! ```
//!
//! A write goes to the legs only when wholly received, holds its claim until every leg that counts
//! has it durably, and is never cancelled, whatever its host was told meanwhile.

use crate::action::{HostOperation, HostOutcome, HostRequest, HostTag, Payload, TRANSFER_MAX};
use crate::claims::{Claim, Claims};
use crate::journal::{atomic_unit, is_within_unit};
use crate::keeper::{Client, Keeper, LegFault, LegOperation};
use crate::link::{LinkRefusal, LinkReply, LinkRequest};
use crate::out::LinkClient;
use crate::owner::{Context, LinkPurpose, Owner, OwnerCall, Stage, to_ms};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;
use voute_buffer::Buffer;
use voute_schemas::contract::VolumeSpec;
use voute_schemas::mutant::{self, Mutant};

/// Most requests of hosts under way on a group.
const WORKS_MAX: usize = 4_096;
/// Regions of a healthy peer that may be dirty at a time, per volume: what a crash of the owner
/// costs to settle. Cold ones are cleared, a quarter at a time, when there are more.
pub(crate) const HOT_REGIONS_MAX: usize = 128;
/// Zeroing goes in steps of so many bytes, each with a claim of its own: others need not wait for all
/// of a large discard.
const ZERO_STEP_BYTES: u64 = 16 << 20;

#[derive(Clone, Debug)]
pub(crate) struct VolumeState {
    pub(crate) spec: VolumeSpec,
    pub(crate) claims: Claims,
    /// Regions in which the legs may differ: neither read nor written until copied.
    pub(crate) unsettled: BTreeSet<u64>,
    /// Regions with a dirty bit that this owner set: writes not yet confirmed by every leg, and
    /// when it was last used.
    hot: HashMap<u64, Hot>,
    clock: u64,
    /// No process lives that knew the record; `None`: not judged yet.
    pub(crate) record_is_cold: Option<bool>,
    /// It was told since the last opening began.
    pub(crate) record_is_told: bool,
}

#[derive(Clone, Default, Debug)]
struct Hot {
    unconfirmed: u32,
    used: u64,
}

impl VolumeState {
    pub(crate) fn new(spec: &VolumeSpec) -> Self {
        VolumeState {
            spec: spec.clone(),
            claims: Claims::default(),
            unsettled: BTreeSet::new(),
            hot: HashMap::new(),
            clock: 0,
            record_is_cold: None,
            record_is_told: false,
        }
    }

    pub(crate) fn regions(&self) -> u64 {
        self.spec.size_bytes.div_ceil(self.spec.region_bytes)
    }

    fn regions_of(&self, begin: u64, end: u64) -> std::ops::RangeInclusive<u64> {
        begin / self.spec.region_bytes..=(end.max(begin + 1) - 1) / self.spec.region_bytes
    }

    pub(crate) fn is_unconfirmed(&self, region: u64) -> bool {
        self.unsettled.contains(&region)
            || self.hot.get(&region).is_some_and(|hot| hot.unconfirmed > 0)
    }

    /// Regions whose bit this owner set and whose writes every leg confirmed.
    pub(crate) fn clean_regions(&self) -> Vec<u64> {
        let clean = self
            .hot
            .iter()
            .filter(|(region, hot)| hot.unconfirmed == 0 && !self.unsettled.contains(region));
        clean.map(|(region, _)| *region).collect()
    }

    fn begin_write(&mut self, regions: std::ops::RangeInclusive<u64>) {
        self.clock += 1;
        for region in regions {
            let hot = self.hot.entry(region).or_default();
            hot.unconfirmed += u32::from(!mutant::is_active(Mutant::ClearBeforeConfirmed));
            hot.used = self.clock;
        }
    }

    fn end_write(&mut self, regions: std::ops::RangeInclusive<u64>) {
        for region in regions {
            if let Some(hot) = self.hot.get_mut(&region) {
                hot.unconfirmed = hot.unconfirmed.saturating_sub(1);
            }
        }
    }

    /// The coldest clean regions, if there are more hot ones than may be.
    fn take_cold(&mut self) -> Vec<u64> {
        if self.hot.len() <= HOT_REGIONS_MAX {
            return Vec::new();
        }
        let mut clean: Vec<(u64, u64)> = self
            .clean_regions()
            .into_iter()
            .map(|region| (self.hot[&region].used, region))
            .collect();
        clean.sort_unstable();
        let excess = self.hot.len() - HOT_REGIONS_MAX * 3 / 4;
        let cold: Vec<u64> = clean.into_iter().take(excess).map(|(_, region)| region).collect();
        for region in &cold {
            self.hot.remove(region);
        }
        cold
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Held,
    Settling,
    Claiming,
    Intent(u32),
    /// The bit is to be set (again) when this owner serves. Whether it was counted already.
    IntentAgain(bool),
    Reading,
    Repairing,
    AwaitingLease,
    Writing,
}

/// How far a write is at one leg.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum AtLeg {
    NotNeeded,
    Needed,
    /// In which round, if it is the peer's leg.
    Sent {
        round: u64,
    },
    Done,
}

#[derive(Clone, Debug)]
enum Kind {
    Read { offset: u64, length: u32 },
    Write { offset: u64, data: Payload, whole: bool },
    Zero { offset: u64, length: u64, deallocate: bool, done: u64 },
    CompareAndWrite { offset: u64, expected: Payload, data: Payload },
}

#[derive(Clone, Debug)]
pub(crate) struct Work {
    /// `None` once answered.
    host: Option<HostTag>,
    volume: usize,
    kind: Kind,
    step: Step,
    arrived: Duration,
    own: AtLeg,
    peer: AtLeg,
    /// Since when the legs are at it.
    since: Duration,
    data: Option<Buffer>,
}

impl Work {
    fn range(&self) -> (u64, u64) {
        match &self.kind {
            Kind::Read { offset, length } => (*offset, *offset + u64::from(*length)),
            Kind::Write { offset, data, .. } | Kind::CompareAndWrite { offset, data, .. } => {
                (*offset, *offset + data.len() as u64)
            }
            Kind::Zero { offset, length, .. } => (*offset, *offset + *length),
        }
    }

    /// The part that is being written now.
    fn part(&self) -> (u64, u64) {
        match &self.kind {
            Kind::Zero { offset, length, done, .. } => {
                (*offset + *done, *offset + (*done + ZERO_STEP_BYTES).min(*length))
            }
            _ => self.range(),
        }
    }

    /// Whether all of it or nothing is to survive a power cut. One block is written so in any case.
    fn is_whole(&self, spec: &VolumeSpec) -> bool {
        match &self.kind {
            Kind::Write { whole, .. } => *whole,
            Kind::CompareAndWrite { offset, data, .. } => {
                let unit = atomic_unit(spec.block_bytes, spec.region_bytes);
                let length = data.len() as u64;
                length > u64::from(spec.block_bytes) && is_within_unit(unit, *offset, length)
            }
            Kind::Read { .. } | Kind::Zero { .. } => false,
        }
    }

    fn claim(&self) -> Claim {
        match self.kind {
            Kind::Read { .. } => Claim::Read,
            Kind::Write { .. } | Kind::Zero { .. } | Kind::CompareAndWrite { .. } => Claim::Write,
        }
    }
}

impl Owner {
    /// Takes a request of a host.
    pub(crate) fn submit(
        &mut self,
        request: HostRequest,
        keeper: &mut Keeper,
        context: &mut Context<'_>,
    ) {
        let Some(volume) =
            self.volumes.iter().position(|volume| volume.spec.volume == request.volume)
        else {
            return reply(request.id, HostOutcome::NoSuchVolume, context);
        };
        let kind = match request.operation {
            HostOperation::Read { offset, length } => Kind::Read { offset, length },
            HostOperation::Write { offset, data } => Kind::Write { offset, data, whole: false },
            HostOperation::WriteWhole { offset, data } => Kind::Write { offset, data, whole: true },
            HostOperation::Zero { offset, length, deallocate } => {
                Kind::Zero { offset, length, deallocate, done: 0 }
            }
            HostOperation::CompareAndWrite { offset, expected, data }
                if expected.len() == data.len() =>
            {
                Kind::CompareAndWrite { offset, expected, data }
            }
            HostOperation::CompareAndWrite { .. } => {
                return reply(request.id, HostOutcome::OutOfRange, context);
            }
            HostOperation::Flush => return reply(request.id, HostOutcome::Done, context),
            HostOperation::PutRecord { record } => {
                return self.submit_record(request.id, volume, record, context);
            }
            HostOperation::Confirm { after_all } => {
                return self.submit_confirm(request.id, volume, after_all, context);
            }
        };
        if let Some(outcome) = self.check(volume, &kind) {
            return reply(request.id, outcome, context);
        }
        if self.is_cut_off {
            return reply(request.id, HostOutcome::PathError, context);
        }
        let work = Work {
            host: Some(request.id),
            volume,
            kind,
            step: Step::Held,
            arrived: context.now,
            own: AtLeg::NotNeeded,
            peer: AtLeg::NotNeeded,
            since: context.now,
            data: None,
        };
        let key = self.works.insert(work);
        self.admit(key, keeper, context);
    }

    fn check(&self, volume: usize, kind: &Kind) -> Option<HostOutcome> {
        let spec = &self.volumes[volume].spec;
        let (offset, length) = match kind {
            Kind::Read { offset, length } => (*offset, u64::from(*length)),
            Kind::Write { offset, data, .. } | Kind::CompareAndWrite { offset, data, .. } => {
                (*offset, data.len() as u64)
            }
            Kind::Zero { offset, length, .. } => (*offset, *length),
        };
        let block = u64::from(spec.block_bytes);
        let blocks = length > 0 && offset % block == 0 && length % block == 0;
        let fits = offset.checked_add(length).is_some_and(|end| end <= spec.size_bytes);
        let short = matches!(kind, Kind::Zero { .. }) || length <= u64::from(TRANSFER_MAX);
        let unit = atomic_unit(spec.block_bytes, spec.region_bytes);
        let in_unit = !matches!(kind, Kind::Write { whole: true, .. })
            || is_within_unit(unit, offset, length);
        if !(blocks && short && in_unit) {
            return Some(HostOutcome::OutOfRange);
        }
        if !fits {
            // The protocols refuse what lies beyond the end that hosts were told of: the volume has grown,
            // and the spec that says so is on its way here. "Out of range" would be an error for good.
            return Some(HostOutcome::Busy);
        }
        (self.works.len() >= WORKS_MAX).then_some(HostOutcome::Busy)
    }

    pub(crate) fn answer(&mut self, key: u64, outcome: HostOutcome, context: &mut Context<'_>) {
        let Some(host) = self.works.get_mut(key).and_then(|work| work.host.take()) else { return };
        if matches!(
            outcome,
            HostOutcome::Done | HostOutcome::Data(_) | HostOutcome::Miscompare { .. }
        ) {
            self.served_one(context.now);
        }
        reply(host, outcome, context);
    }

    fn admit(&mut self, key: u64, keeper: &mut Keeper, context: &mut Context<'_>) {
        let serving = self.stage == Stage::Serving;
        let Some(work) = self.works.get_mut(key) else { return };
        let volume = &mut self.volumes[work.volume];
        let (begin, end) = work.part();
        let unsettled = volume.unsettled.range(volume.regions_of(begin, end)).next().copied();
        let unsettled = unsettled.filter(|_| !mutant::is_active(Mutant::ServeUnsettled));
        if !serving {
            work.step = Step::Held;
        } else if let Some(region) = unsettled {
            work.step = Step::Settling;
            if let Some(copier) = &mut self.copier {
                copier.prefer(work.volume, region);
            }
        } else {
            work.step = Step::Claiming;
            if volume.claims.claim(key, work.claim(), begin, end) {
                self.claimed(key, keeper, context);
            }
        }
    }

    fn claimed(&mut self, key: u64, keeper: &mut Keeper, context: &mut Context<'_>) {
        let Some(work) = self.works.get(key) else { return };
        match work.kind {
            Kind::Read { .. } | Kind::CompareAndWrite { .. } => self.read_own(key, keeper, context),
            Kind::Write { .. } | Kind::Zero { .. } => self.note_intent(key, keeper, context),
        }
    }

    /// Gives the claim back and starts whoever waited for it.
    fn end(
        &mut self,
        key: u64,
        outcome: HostOutcome,
        keeper: &mut Keeper,
        context: &mut Context<'_>,
    ) {
        self.answer(key, outcome, context);
        let Some(work) = self.works.remove(key) else { return };
        self.release_claim(work.volume, key, keeper, context);
    }

    pub(crate) fn release_claim(
        &mut self,
        volume: usize,
        key: u64,
        keeper: &mut Keeper,
        context: &mut Context<'_>,
    ) {
        for woken in self.volumes[volume].claims.release(key) {
            if crate::copy::is_copy(woken) {
                self.copy_claimed(woken, keeper, context)
            } else {
                self.claimed(woken, keeper, context)
            }
        }
    }

    // --- reading

    fn read_own(&mut self, key: u64, keeper: &mut Keeper, context: &mut Context<'_>) {
        let Some(work) = self.works.get_mut(key) else { return };
        let (begin, end) = work.range();
        work.step = Step::Reading;
        work.own = AtLeg::Needed;
        let (Some(bar), Stage::Serving) = (self.bar, self.stage) else { return };
        if mutant::is_active(Mutant::LeaseBeforeRead) && !self.lease_is_valid(context) {
            return;
        }
        let Some(work) = self.works.get_mut(key) else { return };
        work.own = AtLeg::Sent { round: 0 };
        work.since = context.now;
        let length = u32::try_from(end - begin).expect("transfers are bounded");
        let number = self.volumes[work.volume].spec.number;
        keeper.start(
            number,
            bar,
            LegOperation::Read { offset: begin, length },
            Client::Owner(self.life, OwnerCall::Work(key)),
            context.out,
        );
    }

    fn read_done(
        &mut self,
        key: u64,
        result: Result<Option<Buffer>, LegFault>,
        keeper: &mut Keeper,
        context: &mut Context<'_>,
    ) {
        let Some(work) = self.works.get_mut(key) else { return };
        match result {
            Ok(data) => {
                work.own = AtLeg::Done;
                work.data = data;
                work.step = Step::AwaitingLease;
                work.since = context.now;
                self.complete_read(key, keeper, context);
            }
            Err(LegFault::Stale | LegFault::NotYet) => work.own = AtLeg::Needed,
            Err(LegFault::Medium(_) | LegFault::Failed | LegFault::ContentLost) => {
                self.repair_read(key, keeper, context)
            }
            Err(LegFault::Unknown | LegFault::Invalid) => {
                self.end(key, HostOutcome::Busy, keeper, context)
            }
        }
    }

    /// The own leg cannot read these blocks: the peer's can, if it is in sync.
    fn repair_read(&mut self, key: u64, keeper: &mut Keeper, context: &mut Context<'_>) {
        let peer = self.peer.as_ref().filter(|peer| peer.counts());
        let Some(work) = self.works.get_mut(key) else { return };
        let Some(peer) = peer else {
            return match work.step {
                // It was waited for and has left meanwhile: the own leg may do better by now.
                Step::Repairing => self.read_own(key, keeper, context),
                _ => self.end(key, HostOutcome::MediumError, keeper, context),
            };
        };
        work.step = Step::Repairing;
        // A peer that cannot be asked just now is waited for: it has what the host wants.
        work.peer = AtLeg::Needed;
        let (node, round, Some(bar)) = (peer.node, peer.round, peer.bar()) else { return };
        work.peer = AtLeg::Sent { round };
        let (offset, end) = work.range();
        let length = u32::try_from(end - offset).expect("transfers are bounded");
        let volume = self.volumes[work.volume].spec.number;
        context.out.link(
            LinkClient::Owner(self.group, round, LinkPurpose::PeerRead(key)),
            node,
            LinkRequest::Read { volume, bar, offset, length },
        );
    }

    pub(crate) fn read_at_peer(
        &mut self,
        key: u64,
        round: u64,
        reply: Option<LinkReply>,
        keeper: &mut Keeper,
        context: &mut Context<'_>,
    ) {
        let Some(work) = self
            .works
            .get_mut(key)
            .filter(|work| work.step == Step::Repairing && work.peer == AtLeg::Sent { round })
        else {
            return;
        };
        let (begin, end) = work.range();
        match reply {
            Some(LinkReply::Data(data)) if data.len() as u64 == end - begin => {
                work.data = Some(data);
                work.step = Step::AwaitingLease;
                let volume = work.volume;
                self.mend_soon(volume, begin, end);
                self.complete_read(key, keeper, context);
            }
            Some(LinkReply::Refused(
                LinkRefusal::Medium | LinkRefusal::Failed | LinkRefusal::ContentLost,
            )) => self.end(key, HostOutcome::MediumError, keeper, context),
            // Asked again when time passes.
            _ => work.peer = AtLeg::Needed,
        }
    }

    /// The data is in hand; it may go to the host only under a lease
    /// (docs/mirror-rules.md rule 7).
    fn complete_read(&mut self, key: u64, keeper: &mut Keeper, context: &mut Context<'_>) {
        if !self.lease_is_valid(context) && !mutant::is_active(Mutant::LeaseBeforeRead) {
            return;
        }
        let Some(work) = self.works.get_mut(key) else { return };
        let Some(data) = work.data.take() else { return };
        if work.host.is_none() {
            return self.end(key, HostOutcome::PathError, keeper, context);
        }
        let difference = match &work.kind {
            Kind::CompareAndWrite { expected, .. } => {
                expected.iter().zip(data.iter()).position(|(wanted, found)| wanted != found)
            }
            Kind::Read { .. } | Kind::Write { .. } | Kind::Zero { .. } => {
                return self.end(key, HostOutcome::Data(data), keeper, context);
            }
        };
        match difference {
            Some(at) => self.end(
                key,
                HostOutcome::Miscompare { at: u32::try_from(at).expect("transfers are bounded") },
                keeper,
                context,
            ),
            None => self.note_intent(key, keeper, context),
        }
    }

    pub(crate) fn lease_is_valid(&self, context: &Context<'_>) -> bool {
        self.stage == Stage::Serving && self.has_lease(context)
    }

    /// Whether each peer that counts has vouched of late that nobody else owns.
    pub(crate) fn has_lease(&self, context: &Context<'_>) -> bool {
        let Some(peer) = self.peer.as_ref().filter(|peer| peer.counts()) else { return true };
        if mutant::is_active(Mutant::NoLease) {
            return true;
        }
        let lease = context.leases.get(&peer.node);
        peer.session()
            .zip(lease)
            .is_some_and(|(session, lease)| lease.is_valid(session, context.now, context.times))
    }

    // --- writing

    /// The map says where the peer may differ, durably, before any leg is written (rule 4).
    fn note_intent(&mut self, key: u64, keeper: &mut Keeper, context: &mut Context<'_>) {
        let notes_nothing = self.mutant_notes_nothing();
        let Some(work) = self.works.get_mut(key) else { return };
        let (begin, end) = work.part();
        let volume = &mut self.volumes[work.volume];
        if self.stage != Stage::Serving {
            // The own leg, with its map, may be about to be loaded anew.
            work.step = Step::IntentAgain(false);
            return;
        }
        work.since = context.now;
        if self.peer.is_none() || notes_nothing {
            return self.write(key, keeper, context);
        }
        let regions = volume.regions_of(begin, end);
        volume.begin_write(regions.clone());
        let number = volume.spec.number;
        let waits = keeper.mark_dirty(
            number,
            regions,
            Client::Owner(self.life, OwnerCall::Intent(key)),
            context.out,
        );
        work.step = Step::Intent(waits);
        if waits == 0 || mutant::is_active(Mutant::IntentNotAwaited) {
            self.write(key, keeper, context);
        }
        self.clear_cold(keeper, context);
    }

    fn clear_cold(&mut self, keeper: &mut Keeper, context: &mut Context<'_>) {
        if self.peer.as_ref().is_some_and(|peer| peer.is_in_sync()) {
            for volume in &mut self.volumes {
                let cold = volume.take_cold();
                if !cold.is_empty() {
                    keeper.clear_dirty(volume.spec.number, &cold, context.out);
                }
            }
        }
    }

    /// With some mutants, writes leave no trace in the map.
    fn mutant_notes_nothing(&self) -> bool {
        let counts = self.peer.as_ref().is_some_and(|peer| peer.counts());
        mutant::is_active(Mutant::NoIntent) || mutant::is_active(Mutant::NoIntentAlone) && !counts
    }

    pub(crate) fn intent_noted(
        &mut self,
        key: u64,
        result: Result<(), LegFault>,
        keeper: &mut Keeper,
        context: &mut Context<'_>,
    ) {
        let Some(work) = self.works.get_mut(key) else { return };
        let Step::Intent(waits) = &mut work.step else { return };
        if result.is_err() {
            // The write stays held; it goes on at the other side, or when the leg is back.
            work.step = Step::IntentAgain(true);
            return self.give_up("its map cannot be written", context);
        }
        *waits -= 1;
        if *waits == 0 {
            self.write(key, keeper, context);
        }
    }

    /// Ends a compare-and-write whose host was told meanwhile that it failed: nothing of it was sent to a
    /// leg, and the host's next attempt is not to find its own first one there. Whether it did.
    fn withdraw(&mut self, key: u64, keeper: &mut Keeper, context: &mut Context<'_>) -> bool {
        let Some(work) = self.works.get(key) else { return false };
        let compares = matches!(work.kind, Kind::CompareAndWrite { .. });
        if !compares || work.host.is_some() || work.step == Step::Writing {
            return false;
        }
        let ((begin, end), volume) = (work.part(), &mut self.volumes[work.volume]);
        if matches!(work.step, Step::Intent(_)) {
            volume.end_write(volume.regions_of(begin, end));
        }
        self.end(key, HostOutcome::PathError, keeper, context);
        true
    }

    fn write(&mut self, key: u64, keeper: &mut Keeper, context: &mut Context<'_>) {
        if self.withdraw(key, keeper, context) {
            return;
        }
        let to_peer = self.peer.as_ref().is_some_and(|peer| peer.takes_writes());
        let Some(work) = self.works.get_mut(key) else { return };
        work.step = Step::Writing;
        work.own = AtLeg::Needed;
        work.peer = if to_peer { AtLeg::Needed } else { AtLeg::NotNeeded };
        work.since = context.now;
        self.send_write(key, keeper, context);
    }

    /// Sends a write to every leg that still needs it and can be reached.
    fn send_write(&mut self, key: u64, keeper: &mut Keeper, context: &mut Context<'_>) {
        let peer = self.peer.as_ref().and_then(|peer| Some((peer.node, peer.round, peer.bar()?)));
        let (stage, own_bar) = (self.stage, self.bar);
        let Some(work) = self.works.get_mut(key).filter(|work| work.step == Step::Writing) else {
            return;
        };
        let (begin, end) = work.part();
        let spec = &self.volumes[work.volume].spec;
        let number = spec.number;
        let whole = work.is_whole(spec);
        if let (AtLeg::Needed, Some((node, round, bar)), Stage::Serving) = (work.peer, peer, stage)
        {
            work.peer = AtLeg::Sent { round };
            let request = match &work.kind {
                Kind::Zero { deallocate, .. } => LinkRequest::Zero {
                    volume: number,
                    bar,
                    offset: begin,
                    length: end - begin,
                    release: *deallocate,
                    whole: false,
                },
                Kind::Write { data, .. } | Kind::CompareAndWrite { data, .. } => {
                    LinkRequest::Write {
                        volume: number,
                        bar,
                        offset: begin,
                        data: Arc::clone(data),
                        whole,
                    }
                }
                Kind::Read { .. } => return,
            };
            let client = LinkClient::Owner(self.group, round, LinkPurpose::Work(key));
            context.out.link(client, node, request);
        }
        if let (AtLeg::Needed, Some(bar), Stage::Serving) = (work.own, own_bar, stage) {
            work.own = AtLeg::Sent { round: 0 };
            let operation = match &work.kind {
                Kind::Zero { deallocate, .. } => {
                    let (length, release) = (end - begin, *deallocate);
                    LegOperation::Zero { offset: begin, length, release, whole: false }
                }
                Kind::Write { data, .. } | Kind::CompareAndWrite { data, .. } => {
                    LegOperation::Write { offset: begin, data: Arc::clone(data), whole }
                }
                Kind::Read { .. } => return,
            };
            keeper.start(
                number,
                bar,
                operation,
                Client::Owner(self.life, OwnerCall::Work(key)),
                context.out,
            );
        }
    }

    pub(crate) fn work_at_own(
        &mut self,
        key: u64,
        result: Result<Option<Buffer>, LegFault>,
        keeper: &mut Keeper,
        context: &mut Context<'_>,
    ) {
        let Some(work) = self.works.get_mut(key) else { return };
        if work.step == Step::Reading {
            return self.read_done(key, result, keeper, context);
        }
        match result {
            Ok(_) => work.own = AtLeg::Done,
            // Tried again when time passes, not at once: the keeper would answer the same at once.
            Err(LegFault::Stale | LegFault::NotYet | LegFault::Invalid | LegFault::Unknown) => {
                work.own = AtLeg::Needed;
                return;
            }
            Err(LegFault::ContentLost | LegFault::Failed | LegFault::Medium(_)) => {
                work.own = AtLeg::Needed;
                return self.own_write_failed(key, keeper, context);
            }
        }
        self.complete_write(key, keeper, context);
    }

    fn own_write_failed(&mut self, key: u64, keeper: &mut Keeper, context: &mut Context<'_>) {
        let role = self.peer.as_ref().map(|peer| (peer.is_in_sync(), peer.counts()));
        match role {
            Some((true, _)) => self.give_up("its leg cannot be written", context),
            // It is in sync, or not, by the log: then the first holds or the last. Until that is
            // known the write is tried again.
            Some((false, true)) => {}
            // No other copy: the host learns that this write failed; the blocks' content is
            // undefined, as on a disk. What a resync has sent to the peer it sends again from the
            // beginning: the region stays dirty, since this write never ends as confirmed.
            Some((false, false)) | None => {
                self.abort_resync(context);
                self.end(key, HostOutcome::MediumError, keeper, context);
            }
        }
    }

    pub(crate) fn work_at_peer(
        &mut self,
        key: u64,
        round: u64,
        reply: Option<LinkReply>,
        keeper: &mut Keeper,
        context: &mut Context<'_>,
    ) {
        let is_current = self.peer.as_ref().is_some_and(|peer| peer.round == round);
        let resyncing =
            self.copier.is_some() && self.peer.as_ref().is_some_and(|peer| !peer.counts());
        let Some(work) = self.works.get_mut(key).filter(|work| work.peer == AtLeg::Sent { round })
        else {
            return;
        };
        match reply {
            Some(LinkReply::Done) => work.peer = AtLeg::Done,
            Some(LinkReply::Refused(refusal)) => {
                work.peer = AtLeg::Needed;
                // A leg that has not grown yet is not a failed one; it is asked again when time
                // passes.
                if is_current && (refusal != LinkRefusal::NotYet || resyncing) {
                    self.peer_refused(refusal, context);
                }
                return;
            }
            Some(LinkReply::Data(_) | LinkReply::Control(_)) | None => {
                work.peer = AtLeg::Needed;
                return;
            }
        }
        self.complete_write(key, keeper, context);
    }

    fn complete_write(&mut self, key: u64, keeper: &mut Keeper, context: &mut Context<'_>) {
        let Some(work) = self.works.get_mut(key).filter(|work| work.step == Step::Writing) else {
            return;
        };
        let at_own = work.own == AtLeg::Done || mutant::is_active(Mutant::AcknowledgeBeforeOwn);
        let leaves = self.peer.as_ref().is_some_and(|peer| peer.is_leaving());
        let at_peer = matches!(work.peer, AtLeg::Done | AtLeg::NotNeeded)
            || mutant::is_active(Mutant::AcknowledgeBeforePeer)
            || mutant::is_active(Mutant::AcknowledgeBeforeDetach) && leaves;
        let durable = at_own && at_peer;
        if !durable {
            return self.send_write(key, keeper, context);
        }
        let (begin, end) = work.part();
        let volume = &mut self.volumes[work.volume];
        let regions = volume.regions_of(begin, end);
        volume.end_write(regions);
        if let Kind::Zero { length, done, offset, .. } = &mut work.kind {
            *done = end - *offset;
            if *done < *length {
                let volume = work.volume;
                self.release_claim(volume, key, keeper, context);
                return self.admit(key, keeper, context);
            }
        }
        self.end(key, HostOutcome::Done, keeper, context);
    }

    // --- what changes around them

    /// Requests under way on a volume.
    pub(crate) fn works_of(&self, volume: usize) -> Vec<u64> {
        let of_volume = |key: &u64| self.works.get(*key).is_some_and(|work| work.volume == volume);
        self.works.keys().into_iter().filter(of_volume).collect()
    }

    /// The peer does not count any more.
    pub(crate) fn forget_peer_in_works(&mut self) {
        self.forget_peer_in_records();
        for key in self.works.keys() {
            if let Some(work) = self.works.get_mut(key) {
                work.peer = AtLeg::NotNeeded;
            }
        }
    }

    /// The channel went down: what was sent may or may not have arrived, and is sent again.
    pub(crate) fn unsend_works(&mut self) {
        for key in self.works.keys() {
            if let Some(work) = self.works.get_mut(key)
                && matches!(work.peer, AtLeg::Sent { .. })
            {
                work.peer = AtLeg::Needed;
            }
        }
    }

    /// Starts again what could not go on.
    pub(crate) fn retry_works(&mut self, keeper: &mut Keeper, context: &mut Context<'_>) {
        for key in self.works.keys() {
            let Some(work) = self.works.get(key) else { continue };
            match work.step {
                Step::Reading if work.own == AtLeg::Needed => self.read_own(key, keeper, context),
                Step::Writing => self.complete_write(key, keeper, context),
                Step::AwaitingLease => self.complete_read(key, keeper, context),
                Step::Held | Step::Settling => self.admit(key, keeper, context),
                Step::Repairing if !matches!(work.peer, AtLeg::Sent { .. }) => {
                    self.repair_read(key, keeper, context)
                }
                Step::IntentAgain(counted) if self.stage == Stage::Serving => {
                    let (volume, (begin, end)) = (work.volume, work.part());
                    if counted {
                        let volume = &mut self.volumes[volume];
                        volume.end_write(volume.regions_of(begin, end));
                    }
                    self.note_intent(key, keeper, context);
                }
                Step::Reading
                | Step::Claiming
                | Step::Intent(_)
                | Step::IntentAgain(_)
                | Step::Repairing => {}
            }
        }
    }

    /// Whether the peer has kept any request waiting beyond its deadline.
    pub(crate) fn oldest_unanswered(&self, context: &Context<'_>) -> bool {
        let deadline = context.times.leg_deadline_ms;
        let late = |since: Duration| to_ms(context.now.saturating_sub(since)) >= deadline;
        let late_works =
            self.works.keys().into_iter().filter_map(|key| self.works.get(key)).any(|work| {
                let serving = self.stage == Stage::Serving;
                match (work.step, work.peer) {
                    (Step::Writing, AtLeg::Sent { .. } | AtLeg::Needed) => {
                        serving && late(work.since)
                    }
                    (Step::AwaitingLease, _) => serving && late(work.since),
                    _ => false,
                }
            });
        late_works || self.peer_record_is_late(late)
    }

    /// Whether the own leg has kept any request waiting for so long.
    pub(crate) fn own_leg_is_late(&self, now: Duration, deadline: Duration) -> bool {
        let late_works =
            self.works.keys().into_iter().filter_map(|key| self.works.get(key)).any(|work| {
                let at_it = match work.step {
                    Step::Reading | Step::Writing => matches!(work.own, AtLeg::Sent { .. }),
                    Step::Intent(_) => true,
                    _ => false,
                };
                at_it && work.since + deadline <= now
            });
        late_works
            || self.own_check_is_late(now, deadline)
            || self.own_record_is_late(|since| since + deadline <= now)
    }

    /// This owner begins to serve: what was held meanwhile is nobody's delay.
    pub(crate) fn restart_deadlines(&mut self, now: Duration) {
        for key in self.works.keys() {
            if let Some(work) = self.works.get_mut(key) {
                work.since = now;
            }
        }
    }

    /// A host is not left waiting for ever: after the hold time, or at once while this owner is cut
    /// off, it gets a path error, whatever becomes of its write. One that waits for its turn is
    /// forgotten, and a compare-and-write as soon as it has been read, if nothing was written yet;
    /// every other goes on to its end, in its place in the order: the host's next attempt, here or at
    /// another owner, comes after it.
    pub(crate) fn check_held(&mut self, keeper: &mut Keeper, context: &mut Context<'_>) {
        for key in self.works.keys() {
            let Some(work) = self.works.get(key).filter(|work| work.host.is_some()) else {
                continue;
            };
            let held_ms = to_ms(context.now.saturating_sub(work.arrived));
            if !self.is_cut_off && held_ms < context.times.hold_ms {
                continue;
            }
            let step = work.step;
            let outcome =
                if self.is_cut_off { HostOutcome::PathError } else { HostOutcome::Transition };
            match step {
                Step::Held | Step::Settling => {
                    self.answer(key, outcome, context);
                    self.works.remove(key);
                }
                Step::Claiming | Step::AwaitingLease => self.end(key, outcome, keeper, context),
                Step::Intent(_)
                | Step::IntentAgain(_)
                | Step::Reading
                | Step::Repairing
                | Step::Writing => self.answer(key, outcome, context),
            }
        }
    }

    /// A claim that was waited for is held now.
    pub(crate) fn claim_granted(
        &mut self,
        key: u64,
        keeper: &mut Keeper,
        context: &mut Context<'_>,
    ) {
        self.claimed(key, keeper, context);
    }

    /// Requests that waited for a region to be settled go on.
    pub(crate) fn advance_settled(&mut self, keeper: &mut Keeper, context: &mut Context<'_>) {
        for key in self.works.keys() {
            if self.works.get(key).is_some_and(|work| work.step == Step::Settling) {
                self.admit(key, keeper, context);
            }
        }
    }
}

fn reply(id: HostTag, outcome: HostOutcome, context: &mut Context<'_>) {
    context.out.actions.push_back(crate::action::Action::HostReply { id, outcome });
}
