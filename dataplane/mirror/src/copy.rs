//! Copying regions from the owner's leg to the peer's: settling what a crash left open, and resync.
//!
//! Each region is claimed, read, written, released: a host's write either came before and is
//! copied, or waits and goes to both legs itself.
//!
//! ```text
//!           own leg reads it          written there
//! Claiming ──► Reading ──────────► Writing ─────────► next piece, or done
//!                 │ medium error: smaller pieces, down to a block; then
//!                 ├─ settling: Fetching ──► Mending (the peer's block, which is as good) ──► next piece
//!                 ├─ resync, an error that says nothing of the blocks: Proving, read again, Proving; then
//!                 └─ resync, or the peer cannot either: Losing (no copy is left) ──────────► next piece
//! ```

use crate::check::CHECK_CLAIM;
use crate::claims::Claim;
use crate::journal::atomic_unit;
use crate::keeper::{Client, Keeper, LegFault, LegOperation, Why};
use crate::link::{Bar, Control, ControlReply, LinkRefusal, LinkReply, LinkRequest};
use crate::out::LinkClient;
use crate::owner::{Context, LinkPurpose, Owner, OwnerCall, to_ms};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use voute_buffer::Buffer;
use voute_schemas::SiteId;
use voute_schemas::contract::ResyncProgress;
use voute_schemas::event::ResyncEvidence;
use voute_schemas::mutant::{self, Mutant};

/// Regions copied at a time when no host waits, and when some do: the floor.
const WINDOW_IDLE: usize = 4;
const WINDOW_BUSY: usize = 1;
/// How long, and how often, blocks that the only copy cannot read are tried again.
const BAD_PATIENCE_MS: u64 = 10_000;
const BAD_RETRY_MS: u64 = 1_000;
/// Most that one resync gives up, bytes: what wears out on a device, not what a device without a
/// path cannot read.
const LOST_BYTES_MAX: u64 = 1 << 20;
/// How long a resync that cannot succeed is left alone.
const HOPELESS_RETRY_MS: u64 = 30_000;
/// Marks the claim of a copy among those of works.
pub(crate) const COPY_BIT: u64 = 1 << 63;

pub(crate) fn is_copy(claim: u64) -> bool {
    claim & COPY_BIT != 0
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Purpose {
    /// Both legs are in sync; these regions may differ.
    Settle,
    /// The peer is not in sync.
    Resync { began: Duration },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Claiming,
    Reading,
    /// To be read again, once the own leg or the peer can be reached.
    Again,
    Writing,
    /// The peer's leg is asked for what the own cannot read.
    Fetching,
    /// That goes to the own leg. The claim is kept until it is there, whatever happens meanwhile.
    Mending,
    /// The own leg's header is read, to learn whether its device reads anything.
    Proving,
    /// The peer notes that it does not have these blocks.
    Losing,
}

#[derive(Clone, Debug)]
pub(crate) struct Job {
    volume: usize,
    region: u64,
    step: Step,
    length: u64,
    /// How much of it is done, and how much is read at a time, bytes.
    done: u64,
    piece: u64,
    /// How often the device read its header since it began to fail at this piece.
    proofs: u8,
    /// Nobody waits for it any more.
    is_orphan: bool,
    /// When it was sent to the peer.
    sent: Duration,
}

#[derive(Clone, Debug)]
pub(crate) struct Copier {
    purpose: Purpose,
    full: bool,
    queue: VecDeque<(usize, u64)>,
    copied_bytes: u64,
    copied_regions: u64,
    total: u64,
    region_bytes: u64,
    finished: bool,
    /// Bytes that this resync gave up, and the regions in which no copy of some can be read.
    lost_bytes: u64,
    lost_in: BTreeSet<(usize, u64)>,
    /// Regions with blocks that the only copy could not read so far.
    bad: Vec<(usize, u64)>,
    /// Since when each of them is bad, until it is copied, and when they are tried again.
    bad_since: BTreeMap<(usize, u64), Duration>,
    bad_again_at: Duration,
}

impl Job {
    fn is_at_peer(&self) -> bool {
        match self.step {
            Step::Writing | Step::Fetching | Step::Losing => true,
            Step::Claiming | Step::Reading | Step::Again | Step::Mending | Step::Proving => false,
        }
    }
}

impl Copier {
    pub(crate) fn new(
        purpose: Purpose,
        full: bool,
        queue: Vec<(usize, u64)>,
        region_bytes: u64,
    ) -> Self {
        let total = queue.len() as u64;
        Copier {
            purpose,
            full,
            queue: queue.into(),
            copied_bytes: 0,
            copied_regions: 0,
            total,
            region_bytes,
            finished: false,
            lost_bytes: 0,
            lost_in: BTreeSet::new(),
            bad: Vec::new(),
            bad_since: BTreeMap::new(),
            bad_again_at: Duration::ZERO,
        }
    }

    /// Whether blocks of a region that cannot be read are tried again, once every other region is
    /// copied, before they are given up.
    fn is_patient(&mut self, region: (usize, u64), now: Duration) -> bool {
        let since = *self.bad_since.entry(region).or_insert(now);
        now < since + Duration::from_millis(BAD_PATIENCE_MS)
    }

    fn try_bad_again(&mut self, now: Duration) {
        if self.queue.is_empty() && self.bad_again_at <= now {
            self.queue.extend(self.bad.drain(..));
            self.bad_again_at = now + Duration::from_millis(BAD_RETRY_MS);
        }
    }

    /// Copies this region next: a host waits for it.
    pub(crate) fn prefer(&mut self, volume: usize, region: u64) {
        if let Some(index) = self.queue.iter().position(|entry| *entry == (volume, region)) {
            self.queue.remove(index);
            self.queue.push_front((volume, region));
        }
    }

    pub(crate) fn progress(&self, site: SiteId) -> ResyncProgress {
        ResyncProgress {
            site,
            full: self.full,
            copied_bytes: self.copied_bytes,
            total_bytes: self.total * self.region_bytes,
        }
    }

    pub(crate) fn evidence(&self, now: Duration) -> ResyncEvidence {
        let duration_ms = match self.purpose {
            Purpose::Resync { began } => to_ms(now.saturating_sub(began)),
            Purpose::Settle => 0,
        };
        ResyncEvidence {
            full: self.full,
            regions: self.copied_regions,
            bytes: self.copied_bytes,
            duration_ms,
        }
    }
}

impl Owner {
    pub(crate) fn region_bytes(&self) -> u64 {
        self.volumes.first().map_or(1 << 20, |volume| volume.spec.region_bytes)
    }

    pub(crate) fn drop_copier(&mut self) {
        self.copier = None;
        for key in self.copies.keys() {
            let Some(job) = self.copies.get_mut(key) else { continue };
            if job.step == Step::Mending {
                job.is_orphan = true;
                continue;
            }
            let Some(job) = self.copies.remove(key) else { continue };
            // Whoever waited behind the copy is woken by the next drive.
            let woken = self.volumes[job.volume].claims.release(key | COPY_BIT);
            self.woken.extend(woken);
        }
    }

    /// The resync that this copier made is over; one that settles goes on. What the own leg could not
    /// read, it may read by now: then the peer gets it.
    pub(crate) fn end_resync(&mut self) {
        let lost: Vec<_> = self.copier.iter().flat_map(|it| it.lost_in.iter().copied()).collect();
        for (volume, region) in lost {
            let begin = region * self.volumes[volume].spec.region_bytes;
            self.mend_soon(volume, begin, begin);
        }
        if self
            .copier
            .as_ref()
            .is_some_and(|copier| matches!(copier.purpose, Purpose::Resync { .. }))
        {
            self.drop_copier();
        }
    }

    /// The channel changed: copies in flight are done again.
    pub(crate) fn restart_copies(&mut self) {
        for key in self.copies.keys() {
            if let Some(job) = self.copies.get_mut(key).filter(|job| job.is_at_peer()) {
                job.step = Step::Again;
            }
        }
    }

    pub(crate) fn drive_copier(&mut self, keeper: &mut Keeper, context: &mut Context<'_>) {
        for woken in std::mem::take(&mut self.woken) {
            if is_copy(woken) {
                self.copy_claimed(woken, keeper, context)
            } else {
                self.claim_granted(woken, keeper, context)
            }
        }
        if self.peer.as_ref().is_none_or(|peer| peer.bar().is_none()) || self.bar.is_none() {
            return;
        }
        self.repeat_copies(keeper, context);
        if let Some(copier) = &mut self.copier {
            copier.try_bad_again(context.now);
        }
        let window = if self.works.len() > 0 { WINDOW_BUSY } else { WINDOW_IDLE };
        while let Some(copier) = self.copier.as_mut().filter(|_| self.copies.len() < window) {
            let Some((volume, region)) = copier.queue.pop_front() else { break };
            let begin = region * copier.region_bytes;
            let size = self.volumes[volume].spec.size_bytes;
            if begin >= size {
                self.region_copied(volume, region, 0);
                continue;
            }
            let length = copier.region_bytes.min(size - begin);
            let key = self.copies.insert(Job {
                volume,
                region,
                step: Step::Claiming,
                length,
                done: 0,
                piece: length,
                proofs: 0,
                is_orphan: false,
                sent: context.now,
            });
            if self.volumes[volume].claims.claim(key | COPY_BIT, Claim::Copy, begin, begin + length)
            {
                self.copy_claimed(key | COPY_BIT, keeper, context);
            }
        }
        self.finish_copier(keeper, context);
    }

    fn finish_copier(&mut self, keeper: &Keeper, context: &mut Context<'_>) {
        let Some(copier) = self.copier.as_mut().filter(|copier| {
            let is_empty = copier.queue.is_empty() && copier.bad.is_empty();
            !copier.finished && is_empty && self.copies.len() == 0
        }) else {
            return;
        };
        copier.finished = true;
        match copier.purpose {
            Purpose::Settle => self.copier = None,
            // Kept for its evidence until the log took the peer in.
            Purpose::Resync { .. } => self.copied(keeper, context),
        }
    }

    fn repeat_copies(&mut self, keeper: &mut Keeper, context: &mut Context<'_>) {
        let keys = self.copies.keys();
        for key in keys {
            let again = self.copies.get(key).is_some_and(|job| job.step == Step::Again);
            if again {
                self.copy_claimed(key | COPY_BIT, keeper, context);
            }
        }
    }

    pub(crate) fn copy_claimed(
        &mut self,
        claim: u64,
        keeper: &mut Keeper,
        context: &mut Context<'_>,
    ) {
        if claim == CHECK_CLAIM {
            return self.check_claimed(keeper, context);
        }
        let key = claim & !COPY_BIT;
        let Some(job) = self.copies.get_mut(key) else {
            return;
        };
        let Some(bar) = self.bar else {
            job.step = Step::Again;
            return;
        };
        job.done = 0;
        let (number, region) = (self.volumes[job.volume].spec.number, job.region);
        if keeper.is_written(number, region) {
            self.begin_unit(key);
            self.read_piece(key, bar, keeper, context);
        } else {
            job.piece = job.length;
            self.send_copy(key, None, context);
        }
    }

    /// Legs in sync are settled by atomic units, each of them whole: whoever takes over while that
    /// goes on must not find half of what was written whole. A leg that is out is not taken over.
    fn is_settling(&self) -> bool {
        let settles = self.copier.as_ref().is_some_and(|it| it.purpose == Purpose::Settle);
        settles && !mutant::is_active(Mutant::SettlePastTheJournal)
    }

    fn unit_of(&self, job: &Job) -> u64 {
        let spec = &self.volumes[job.volume].spec;
        if self.is_settling() {
            atomic_unit(spec.block_bytes, spec.region_bytes)
        } else {
            job.length
        }
    }

    /// Where a unit begins, all of it is tried again, though pieces of the one before were bad.
    fn begin_unit(&mut self, key: u64) {
        let Some(job) = self.copies.get(key) else { return };
        let unit = self.unit_of(job);
        if let Some(job) = self.copies.get_mut(key)
            && job.done.is_multiple_of(unit)
        {
            job.piece = unit;
        }
    }

    /// Where the next piece of a region lies in the volume, and how long it is.
    fn piece(&self, key: u64) -> Option<(usize, u64, u64)> {
        let job = self.copies.get(key)?;
        let offset = job.region * self.volumes[job.volume].spec.region_bytes + job.done;
        Some((job.volume, offset, job.piece.min(job.length - job.done)))
    }

    fn read_piece(&mut self, key: u64, bar: Bar, keeper: &mut Keeper, context: &mut Context<'_>) {
        let Some((volume, offset, length)) = self.piece(key) else { return };
        let Some(job) = self.copies.get_mut(key) else { return };
        job.step = Step::Reading;
        let length = u32::try_from(length).expect("a region is at most a transfer");
        keeper.start(
            self.volumes[volume].spec.number,
            bar,
            LegOperation::Read { offset, length },
            Client::Owner(self.life, OwnerCall::Copy(key)),
            context.out,
        );
    }

    /// The own keeper answered: what was read for a copy, or a block that was mended.
    pub(crate) fn copy_at_own(
        &mut self,
        key: u64,
        result: Result<Option<Buffer>, LegFault>,
        keeper: &mut Keeper,
        context: &mut Context<'_>,
    ) {
        let Some(job) = self.copies.get_mut(key) else { return };
        if job.step == Step::Mending {
            return self.mended(key, result.map(drop), keeper, context);
        }
        if job.step == Step::Proving {
            return self.proved(key, result.is_ok(), keeper, context);
        }
        if job.step != Step::Reading {
            return;
        }
        match result {
            Ok(data) => {
                job.proofs = 0;
                self.send_copy(key, data, context);
            }
            Err(LegFault::Stale | LegFault::NotYet | LegFault::Invalid) => job.step = Step::Again,
            Err(LegFault::Medium(why)) => self.piece_is_unreadable(key, why, keeper, context),
            Err(LegFault::Failed | LegFault::ContentLost | LegFault::Unknown) => {
                job.step = Step::Again;
                if self.peer.as_ref().is_some_and(|peer| peer.is_in_sync()) {
                    self.give_up("its leg cannot be read", context);
                } else {
                    self.abort_resync(context);
                }
            }
        }
    }

    /// The own leg cannot read a piece: smaller ones are tried, so that only the blocks that are bad
    /// are taken for bad. One block is asked of a peer that is in sync, which has as good a one; any
    /// other peer is to note that there is no such block any more.
    fn piece_is_unreadable(
        &mut self,
        key: u64,
        why: Why,
        keeper: &mut Keeper,
        context: &mut Context<'_>,
    ) {
        let in_sync = self.peer.as_ref().is_some_and(|peer| peer.is_in_sync());
        let Some((volume, _, length)) = self.piece(key) else { return };
        let block = u64::from(self.volumes[volume].spec.block_bytes);
        let settling = self.is_settling();
        let Some(unit) = self.copies.get(key).map(|job| self.unit_of(job)) else { return };
        let Some(job) = self.copies.get_mut(key) else { return };
        if in_sync && settling && length == unit && unit > block {
            // The peer's unit is as good, and whole.
            return self.ask_peer(key, Step::Fetching, context);
        }
        if length <= block {
            if in_sync {
                return self.ask_peer(key, Step::Fetching, context);
            }
            if why == Why::Lost {
                return self.piece_was_lost(key, keeper, context);
            }
            let region = (job.volume, job.region);
            let patient = self.copier.as_mut().is_some_and(|it| it.is_patient(region, context.now));
            if patient {
                return self.put_off(key, keeper, context);
            }
            return match why {
                Why::Bad | Why::Lost => self.lose_piece(key, context),
                Why::Unclear => self.prove(key, keeper, context),
            };
        }
        job.piece = smaller_piece(length, block);
        self.read_next(key, keeper, context);
    }

    /// Reads the next piece, or does the region again once the own leg can be reached.
    fn read_next(&mut self, key: u64, keeper: &mut Keeper, context: &mut Context<'_>) {
        if let Some(bar) = self.bar {
            return self.read_piece(key, bar, keeper, context);
        }
        if let Some(job) = self.copies.get_mut(key) {
            job.step = Step::Again;
        }
    }

    /// Whether a block is bad is believed of a device only that reads its header before and after it
    /// fails at the block: one without a path fails at everything, and then has everything again.
    fn prove(&mut self, key: u64, keeper: &mut Keeper, context: &mut Context<'_>) {
        let Some(job) = self.copies.get_mut(key) else { return };
        job.step = Step::Proving;
        let volume = self.volumes[job.volume].spec.number;
        let client = Client::Owner(self.life, OwnerCall::Copy(key));
        keeper.probe(volume, client, context.out);
    }

    fn proved(&mut self, key: u64, reads: bool, keeper: &mut Keeper, context: &mut Context<'_>) {
        let Some(job) = self.copies.get_mut(key) else { return };
        if !reads {
            return self.put_off(key, keeper, context);
        }
        job.proofs += 1;
        if job.proofs == 1 {
            return self.read_next(key, keeper, context);
        }
        job.proofs = 0;
        self.lose_piece(key, context);
    }

    /// The own leg was made without this block, from the target's, and nobody has written it since. A
    /// target that kept its content has what hosts wrote last, if it can read it by now; a new one has
    /// nothing.
    fn piece_was_lost(&mut self, key: u64, keeper: &mut Keeper, context: &mut Context<'_>) {
        if self.copier.as_ref().is_some_and(|copier| copier.full) {
            return self.ask_peer(key, Step::Losing, context);
        }
        self.piece_done(key, keeper, context);
        self.drive_copier(keeper, context);
    }

    /// No copy of a block is left: the peer is to note that.
    fn lose_piece(&mut self, key: u64, context: &mut Context<'_>) {
        let Some((_, _, length)) = self.piece(key) else { return };
        let Some(copier) = &mut self.copier else { return };
        if copier.lost_bytes + length > LOST_BYTES_MAX {
            return self.too_much_is_lost(context);
        }
        copier.lost_bytes += length;
        self.ask_peer(key, Step::Losing, context);
    }

    /// The region is copied again later, from its beginning.
    fn put_off(&mut self, key: u64, keeper: &mut Keeper, context: &mut Context<'_>) {
        let Some(job) = self.copies.remove(key) else { return };
        if let Some(copier) = &mut self.copier {
            copier.bad.push((job.volume, job.region));
            copier.bad_again_at = context.after_ms(BAD_RETRY_MS);
        }
        self.release_claim(job.volume, key | COPY_BIT, keeper, context);
        self.drive_copier(keeper, context);
    }

    /// Asks the peer for a block, or to note that it has it not.
    fn ask_peer(&mut self, key: u64, step: Step, context: &mut Context<'_>) {
        let peer = self.peer.as_ref().and_then(|peer| Some((peer.node, peer.round, peer.bar()?)));
        let Some((volume, offset, length)) = self.piece(key) else { return };
        let volume = self.volumes[volume].spec.number;
        let Some(job) = self.copies.get_mut(key) else { return };
        let Some((node, round, bar)) = peer else {
            job.step = Step::Again;
            return;
        };
        (job.step, job.sent) = (step, context.now);
        let request = if step == Step::Losing {
            let group = self.group;
            LinkRequest::Control(Control::Lose { group, bar, volume, offset, length })
        } else {
            let length = u32::try_from(length).expect("a piece is at most a region");
            LinkRequest::Read { volume, bar, offset, length }
        };
        let client = LinkClient::Owner(self.group, round, LinkPurpose::Copy(key));
        context.out.link(client, node, request);
    }

    fn mended(
        &mut self,
        key: u64,
        result: Result<(), LegFault>,
        keeper: &mut Keeper,
        context: &mut Context<'_>,
    ) {
        let Some(job) = self.copies.get_mut(key) else { return };
        if job.is_orphan {
            let volume = job.volume;
            self.copies.remove(key);
            self.release_claim(volume, key | COPY_BIT, keeper, context);
            return self.drive_copier(keeper, context);
        }
        match result {
            Ok(()) => {
                self.piece_done(key, keeper, context);
                self.drive_copier(keeper, context);
            }
            Err(LegFault::Stale | LegFault::NotYet | LegFault::Invalid | LegFault::Unknown) => {
                job.step = Step::Again;
            }
            Err(LegFault::Medium(_) | LegFault::Failed | LegFault::ContentLost) => {
                job.step = Step::Again;
                self.give_up("its leg cannot be written", context);
            }
        }
    }

    fn piece_done(&mut self, key: u64, keeper: &mut Keeper, context: &mut Context<'_>) {
        let Some((_, _, length)) = self.piece(key) else { return };
        let Some(job) = self.copies.get_mut(key) else { return };
        job.done += length;
        if job.done < job.length {
            self.begin_unit(key);
            return self.read_next(key, keeper, context);
        }
        let Some(job) = self.copies.remove(key) else { return };
        self.region_copied(job.volume, job.region, job.length);
        self.release_claim(job.volume, key | COPY_BIT, keeper, context);
        self.advance_settled(keeper, context);
    }

    fn send_copy(&mut self, key: u64, data: Option<Buffer>, context: &mut Context<'_>) {
        let peer = self.peer.as_ref().and_then(|peer| Some((peer.node, peer.round, peer.bar()?)));
        let Some((volume, offset, length)) = self.piece(key) else { return };
        let volume = self.volumes[volume].spec.number;
        let whole = self.is_settling();
        let Some(job) = self.copies.get_mut(key) else { return };
        let Some((node, round, bar)) = peer else {
            job.step = Step::Again;
            return;
        };
        job.step = Step::Writing;
        job.sent = context.now;
        let request = match data {
            Some(data) => LinkRequest::Write { volume, bar, offset, data: Arc::new(data), whole },
            None => LinkRequest::Zero { volume, bar, offset, length, release: true, whole },
        };
        let client = LinkClient::Owner(self.group, round, LinkPurpose::Copy(key));
        context.out.link(client, node, request);
    }

    pub(crate) fn copy_at_peer(
        &mut self,
        key: u64,
        reply: Option<LinkReply>,
        keeper: &mut Keeper,
        context: &mut Context<'_>,
    ) {
        if self.copier.is_none() {
            return;
        }
        let Some(job) = self.copies.get_mut(key).filter(|job| job.is_at_peer()) else { return };
        match (job.step, reply) {
            (Step::Writing, Some(LinkReply::Done)) => self.piece_done(key, keeper, context),
            (Step::Losing, Some(LinkReply::Control(ControlReply::Done))) => {
                self.piece_is_lost(key, keeper, context);
            }
            (Step::Fetching, Some(LinkReply::Data(data))) => {
                self.mend_own(key, data, keeper, context);
            }
            // Neither leg can read all of it: what either can read is taken.
            (Step::Fetching, Some(LinkReply::Refused(LinkRefusal::Medium))) => {
                self.fetched_nothing(key, keeper, context);
            }
            // More is lost than a header has room for: such a copy cannot be made.
            (Step::Losing, Some(LinkReply::Refused(LinkRefusal::Invalid))) => {
                self.too_much_is_lost(context);
            }
            (_, Some(LinkReply::Refused(refusal))) => {
                job.step = Step::Again;
                self.peer_refused(refusal, context);
            }
            (_, Some(LinkReply::Done | LinkReply::Data(_) | LinkReply::Control(_)) | None) => {
                job.step = Step::Again;
            }
        }
        self.drive_copier(keeper, context);
    }

    fn fetched_nothing(&mut self, key: u64, keeper: &mut Keeper, context: &mut Context<'_>) {
        let Some((volume, _, length)) = self.piece(key) else { return };
        let block = u64::from(self.volumes[volume].spec.block_bytes);
        if length <= block {
            // Neither leg can read it: they agree in that.
            return self.piece_is_lost(key, keeper, context);
        }
        let Some(job) = self.copies.get_mut(key) else { return };
        job.piece = smaller_piece(length, block);
        self.read_next(key, keeper, context);
    }

    fn piece_is_lost(&mut self, key: u64, keeper: &mut Keeper, context: &mut Context<'_>) {
        let Some((volume, offset, length)) = self.piece(key) else { return };
        if let Some(copier) = &mut self.copier {
            copier.lost_in.insert((volume, offset / self.volumes[volume].spec.region_bytes));
        }
        self.note_lost(volume, offset, length);
        self.piece_done(key, keeper, context);
    }

    /// The peer's block, as good as the own was, goes to the own leg.
    fn mend_own(&mut self, key: u64, data: Buffer, keeper: &mut Keeper, context: &mut Context<'_>) {
        let Some((volume, offset, length)) = self.piece(key) else { return };
        let number = self.volumes[volume].spec.number;
        let whole = self.is_settling();
        let Some(job) = self.copies.get_mut(key) else { return };
        let (Some(bar), true) = (self.bar, data.len() as u64 == length) else {
            job.step = Step::Again;
            return;
        };
        job.step = Step::Mending;
        keeper.start(
            number,
            bar,
            LegOperation::Write { offset, data: Arc::new(data), whole },
            Client::Owner(self.life, OwnerCall::Copy(key)),
            context.out,
        );
    }

    /// More blocks are lost than a leg can note or a resync may give up: the peer cannot be made
    /// whole. It is tried again
    /// after a while, for blocks may be written meanwhile, or read after all.
    fn too_much_is_lost(&mut self, context: &mut Context<'_>) {
        self.abort_resync(context);
        if let Some(peer) = &mut self.peer {
            peer.retry_at = Some(context.after_ms(HOPELESS_RETRY_MS));
        }
    }

    /// Whether the peer has kept any copy waiting beyond its deadline.
    pub(crate) fn copies_are_late(&self, context: &Context<'_>) -> bool {
        let deadline = Duration::from_millis(context.times.leg_deadline_ms);
        let late_copies = self
            .copies
            .keys()
            .into_iter()
            .filter_map(|key| self.copies.get(key))
            .any(|job| job.is_at_peer() && job.sent + deadline <= context.now);
        late_copies || self.peer_check_is_late(context.now, deadline)
    }

    fn region_copied(&mut self, volume: usize, region: u64, length: u64) {
        self.volumes[volume].unsettled.remove(&region);
        if let Some(copier) = &mut self.copier {
            copier.bad_since.remove(&(volume, region));
            copier.copied_bytes += length;
            copier.copied_regions += 1;
        }
    }
}

/// What to try after a piece of this length could not be read: a sixteenth, in whole blocks.
pub(crate) fn smaller_piece(length: u64, block: u64) -> u64 {
    (length / 16).next_multiple_of(block).min(length - block).max(block)
}
