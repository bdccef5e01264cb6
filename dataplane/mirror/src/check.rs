//! Comparing the legs of a volume region by region, and mending blocks that one leg cannot read.
//!
//! ```text
//!            both read                  equal
//! Claiming ──────────► Reading ───────────────────────────────────────────► next piece, or done
//!                         │ one leg cannot: smaller pieces, down to a block, then the other's block
//!                         │      ├─ to the own leg:  Mending ─────────────► next piece
//!                         │      └─ to the peer's:   Writing ─────────────► next piece
//!                         │ neither can: the block is lost, and is reported ─► next piece
//!                         └ they differ, twice read: counted; if told to, the own leg's to the peer: Writing
//! ```
//!
//! A disk may try for many seconds to read a bad sector. Nobody is to wait for that: the claim is given
//! back meanwhile, and taken again when the disk has answered. That it cannot read a piece then holds
//! as before; what it did read is too old.
//!
//! The claim of a copy keeps writes out, so that two legs in sync must be equal under it: whatever
//! differs is a fault of a device or of ours. There are no checksums that would tell which leg is
//! right; a repair takes the owner's, since that is what hosts have read (docs/decisions/0011).

use crate::claims::Claim;
use crate::copy::{COPY_BIT, smaller_piece};
use crate::header::{LostRange, add_lost};
use crate::keeper::{Client, Keeper, LegFault, LegOperation};
use crate::link::{LinkRefusal, LinkReply, LinkRequest};
use crate::out::LinkClient;
use crate::owner::{Asked, Context, LinkPurpose, Owner, OwnerCall, Stage, to_ms};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use voute_buffer::Buffer;
use voute_schemas::command::Escalation;
use voute_schemas::contract::{EscalationOutcome, GroupSpec, VerifyOrder, VerifyProgress};
use voute_schemas::event::{BlockRange, VerifyEvidence};

/// The one claim of a check.
pub(crate) const CHECK_CLAIM: u64 = COPY_BIT | !COPY_BIT;
/// Pause after each region while hosts are served: 20 MiB/s with regions of 1 MiB.
const PAUSE_BUSY_MS: u64 = 50;
/// How long hosts wait for a leg that reads a piece slowly, and how often it may: then the region is
/// left out.
const SLOW_READ_MS: u64 = 1_000;
const SLOW_READS_MAX: u32 = 3;
/// Most regions that wait to be mended; what does not fit is mended when it is read again.
const MENDS_MAX: usize = 64;
/// Most ranges that a report names, and most reports of lost blocks that wait for the log. Of more than
/// that only the number of bytes is told.
const RANGES_MAX: usize = 32;
const REPORTS_MAX: usize = 256;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Claiming,
    Reading,
    /// From the beginning, once the legs can be reached.
    Again,
    /// The peer's block goes to the own leg. The claim is kept until it is there.
    Mending,
    /// The own blocks go to the peer's leg.
    Writing,
}

/// What a leg says of a piece; `None`: it cannot read it.
type Piece = Option<Buffer>;

/// One region under way.
#[derive(Clone, Debug)]
struct Job {
    volume: usize,
    region: u64,
    length: u64,
    step: Step,
    done: u64,
    piece: u64,
    /// The piece differed and is read a second time.
    is_second: bool,
    own: Option<Piece>,
    peer: Option<Piece>,
    /// Names what was sent last to each leg: other answers are not for this job.
    sent_own: u64,
    sent_peer: u64,
    sent_at: Duration,
    is_claimed: bool,
    /// It was claimed before: what is known of the piece holds.
    goes_on: bool,
    /// Times that the legs read a piece, but slowly.
    slow: u32,
    /// Part of a comparison, not of a mending.
    is_compared: bool,
    is_orphan: bool,
    found: VerifyEvidence,
    is_repaired: bool,
}

/// A comparison of a volume.
#[derive(Clone, Debug)]
struct Verify {
    volume: usize,
    order: VerifyOrder,
    next: u64,
    evidence: VerifyEvidence,
    began: Option<Duration>,
    not_before: Duration,
    asked: Asked,
}

/// What an owner checks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Checks {
    verify: Option<Verify>,
    /// The highest run that the log has the end of.
    ended: u64,
    mends: VecDeque<(usize, u64)>,
    job: Option<Job>,
    /// Lost blocks that are to be reported: of which volume, and at most [`RANGES_MAX`] at a time.
    lost: Vec<(usize, Vec<LostRange>, Asked)>,
}

impl Checks {
    /// When there is something to do, if nothing else happens.
    pub(crate) fn next_deadline(&self, now: Duration) -> Option<Duration> {
        let soon = now + Duration::from_millis(20);
        let waits = !self.mends.is_empty() || !self.lost.is_empty() || self.job.is_some();
        let verify = self.verify.as_ref().map(|verify| verify.not_before.max(soon));
        verify.into_iter().chain(waits.then_some(soon)).min()
    }

    /// How far a comparison is. `may_go_on`: both legs are in sync and can be reached.
    pub(crate) fn progress(&self, owner: &Owner, may_go_on: bool) -> Option<VerifyProgress> {
        let verify = self.verify.as_ref()?;
        let volume = owner.volumes.get(verify.volume)?;
        Some(VerifyProgress {
            volume: volume.spec.volume,
            run: verify.order.run,
            compared_regions: verify.evidence.regions,
            total_regions: volume.regions(),
            differing_regions: verify.evidence.differing_regions,
            waits: !may_go_on,
        })
    }
}

impl Owner {
    /// Follows what the spec says is to be compared.
    pub(crate) fn follow_verify(&mut self, spec: &GroupSpec) {
        let ended = self.checks.ended;
        let orders = spec.volumes.iter().enumerate();
        let wanted = orders
            .filter_map(|(volume, it)| it.verify.map(|order| (volume, order)))
            .find(|(_, order)| order.run > ended);
        let known = self.checks.verify.as_ref().map(|it| (it.volume, it.order));
        if wanted == known {
            return;
        }
        self.checks.verify = wanted.map(|(volume, order)| Verify {
            volume,
            order,
            next: 0,
            evidence: VerifyEvidence::default(),
            began: None,
            not_before: Duration::ZERO,
            asked: Asked::default(),
        });
        if self.checks.job.as_ref().is_some_and(|job| job.is_compared) {
            self.abandon_check(false);
        }
    }

    /// A region has blocks that the own leg cannot read and the peer's can.
    pub(crate) fn mend_soon(&mut self, volume: usize, begin: u64, end: u64) {
        let region_bytes = self.volumes[volume].spec.region_bytes;
        let regions = begin / region_bytes..=(end.max(begin + 1) - 1) / region_bytes;
        for region in regions.take(MENDS_MAX) {
            let mends = &mut self.checks.mends;
            if mends.len() < MENDS_MAX && !mends.contains(&(volume, region)) {
                mends.push_back((volume, region));
            }
        }
    }

    /// Blocks that the own leg was made without: a peer that is in sync may have them.
    pub(crate) fn mend_lost(&mut self, keeper: &Keeper) {
        if !self.peer.as_ref().is_some_and(|peer| peer.is_in_sync()) {
            return;
        }
        for volume in 0..self.volumes.len() {
            for range in keeper.lost(self.volumes[volume].spec.number) {
                self.mend_soon(volume, range.offset, range.offset + range.length);
            }
        }
    }

    /// No copy of these blocks can be read: the log is told.
    pub(crate) fn note_lost(&mut self, volume: usize, offset: u64, length: u64) {
        let lost = &mut self.checks.lost;
        for (_, ranges, asked) in lost.iter_mut().filter(|(of, ..)| *of == volume) {
            let mut all = ranges.clone();
            if add_lost(&mut all, offset, length) && all.len() <= RANGES_MAX {
                if all != *ranges {
                    (*ranges, *asked) = (all, Asked::default());
                }
                return;
            }
        }
        if lost.len() < REPORTS_MAX {
            lost.push((volume, vec![LostRange { offset, length }], Asked::default()));
        }
    }

    pub(crate) fn may_check(&self) -> bool {
        self.stage == Stage::Serving
            && self.bar.is_some()
            && self.copier.is_none()
            && self
                .peer
                .as_ref()
                .is_some_and(|peer| peer.is_in_sync() && !peer.is_leaving() && peer.bar().is_some())
    }

    /// Begins or goes on with what is to be checked.
    pub(crate) fn drive_checks(&mut self, keeper: &mut Keeper, context: &mut Context<'_>) {
        if !self.may_check() {
            return;
        }
        match &self.checks.job {
            Some(job) if job.step != Step::Again => {}
            Some(job) if job.is_claimed => self.check_claimed(keeper, context),
            Some(_) => self.claim_check(keeper, context),
            None => self.begin_check(keeper, context),
        }
    }

    fn begin_check(&mut self, keeper: &mut Keeper, context: &mut Context<'_>) {
        let Some((volume, region, is_compared)) = self.next_check(context.now) else { return };
        let spec = &self.volumes[volume].spec;
        let begin = region * spec.region_bytes;
        let Some(rest) = spec.size_bytes.checked_sub(begin).filter(|rest| *rest > 0) else {
            return;
        };
        let length = rest.min(spec.region_bytes);
        self.checks.job = Some(Job {
            volume,
            region,
            length,
            step: Step::Claiming,
            done: 0,
            piece: length,
            is_second: false,
            own: None,
            peer: None,
            sent_own: 0,
            sent_peer: 0,
            sent_at: context.now,
            is_claimed: false,
            goes_on: false,
            slow: 0,
            is_compared,
            is_orphan: false,
            found: VerifyEvidence::default(),
            is_repaired: false,
        });
        self.claim_check(keeper, context);
    }

    fn claim_check(&mut self, keeper: &mut Keeper, context: &mut Context<'_>) {
        let Some(job) = &mut self.checks.job else { return };
        job.step = Step::Claiming;
        let (volume, length) = (&mut self.volumes[job.volume], job.length);
        let begin = job.region * volume.spec.region_bytes;
        if volume.claims.claim(CHECK_CLAIM, Claim::Copy, begin, begin + length) {
            self.check_claimed(keeper, context);
        }
    }

    fn next_check(&mut self, now: Duration) -> Option<(usize, u64, bool)> {
        if let Some((volume, region)) = self.checks.mends.pop_front() {
            return Some((volume, region, false));
        }
        let verify = self.checks.verify.as_mut().filter(|verify| verify.not_before <= now)?;
        let regions = self.volumes.get(verify.volume)?.regions();
        verify.began.get_or_insert(now);
        (verify.next < regions).then_some((verify.volume, verify.next, true))
    }

    pub(crate) fn check_claimed(&mut self, keeper: &mut Keeper, context: &mut Context<'_>) {
        let Some(job) = &mut self.checks.job else { return };
        job.is_claimed = true;
        if std::mem::take(&mut job.goes_on) {
            return self.read_missing(keeper, context);
        }
        (job.done, job.piece, job.is_second) = (0, job.length, false);
        (job.found, job.is_repaired) = (VerifyEvidence::default(), false);
        self.read_both(keeper, context);
    }

    /// Where the present piece lies in the volume.
    fn checked_piece(&self) -> Option<(usize, u64, u64)> {
        let job = self.checks.job.as_ref()?;
        let offset = job.region * self.volumes[job.volume].spec.region_bytes + job.done;
        Some((job.volume, offset, job.piece.min(job.length - job.done)))
    }

    fn read_both(&mut self, keeper: &mut Keeper, context: &mut Context<'_>) {
        if let Some(job) = &mut self.checks.job {
            (job.own, job.peer) = (None, None);
        }
        self.read_missing(keeper, context);
    }

    /// Reads the piece at each leg of which nothing is known.
    fn read_missing(&mut self, keeper: &mut Keeper, context: &mut Context<'_>) {
        let peer = self.peer.as_ref().and_then(|peer| Some((peer.node, peer.round, peer.bar()?)));
        let Some((volume, offset, length)) = self.checked_piece() else { return };
        let volume = self.volumes[volume].spec.number;
        let Some(job) = &mut self.checks.job else { return };
        let (Some((node, round, bar)), Some(own_bar)) = (peer, self.bar) else {
            job.step = Step::Again;
            return;
        };
        job.step = Step::Reading;
        (job.sent_own, job.sent_peer) = (context.out.next_session(), context.out.next_session());
        job.sent_at = context.now;
        let (own, at_peer) = (job.sent_own, job.sent_peer);
        let (own_is_known, peer_is_known) = (job.own.is_some(), job.peer.is_some());
        let length = u32::try_from(length).expect("a region is at most a transfer");
        if !peer_is_known {
            context.out.link(
                LinkClient::Owner(self.group, round, LinkPurpose::Check(at_peer)),
                node,
                LinkRequest::Read { volume, bar, offset, length },
            );
        }
        if !own_is_known {
            let client = Client::Owner(self.life, OwnerCall::Check(own));
            let operation = LegOperation::Read { offset, length };
            keeper.start(volume, own_bar, operation, client, context.out);
        }
        self.judge(keeper, context);
    }

    /// Hosts do not wait for a leg that takes long to read a piece.
    pub(crate) fn yield_to_hosts(&mut self, keeper: &mut Keeper, context: &mut Context<'_>) {
        let Some(job) = &mut self.checks.job else { return };
        let is_slow = job.sent_at + Duration::from_millis(SLOW_READ_MS) <= context.now;
        if job.step != Step::Reading || !job.is_claimed || !is_slow {
            return;
        }
        job.is_claimed = false;
        let volume = job.volume;
        self.release_claim(volume, CHECK_CLAIM, keeper, context);
    }

    /// Both legs have answered, but hosts may have written meanwhile.
    fn slow_read_ended(&mut self, keeper: &mut Keeper, context: &mut Context<'_>) {
        let Some((volume, _, length)) = self.checked_piece() else { return };
        let block = u64::from(self.volumes[volume].spec.block_bytes);
        let Some(job) = &mut self.checks.job else { return };
        // Whoever wrote to a block that one leg cannot read wrote it to both: the other's is as good.
        job.own.take_if(|piece| piece.is_some());
        job.peer.take_if(|piece| piece.is_some());
        if job.own.is_none() && job.peer.is_none() {
            job.slow += 1;
            if job.slow >= SLOW_READS_MAX {
                return self.end_region(keeper, context);
            }
        } else if length > block {
            (job.own, job.peer) = (None, None);
            job.piece = smaller_piece(length, block);
        }
        job.goes_on = true;
        self.claim_check(keeper, context);
    }

    pub(crate) fn check_at_own(
        &mut self,
        sent: u64,
        result: Result<Option<Buffer>, LegFault>,
        keeper: &mut Keeper,
        context: &mut Context<'_>,
    ) {
        let Some(job) = self.checks.job.as_mut().filter(|job| job.sent_own == sent) else { return };
        if job.is_orphan {
            return self.end_check(keeper, context);
        }
        match (job.step, result) {
            (Step::Reading, Ok(data)) => job.own = Some(data),
            (Step::Reading, Err(LegFault::Medium(_))) => job.own = Some(None),
            (Step::Mending, Ok(_)) => return self.checked(keeper, context),
            (
                _,
                Err(
                    LegFault::Failed
                    | LegFault::ContentLost
                    | LegFault::Unknown
                    | LegFault::Medium(_),
                ),
            ) => {
                job.step = Step::Again;
                return self.give_up("its leg can be neither read nor mended", context);
            }
            (_, Err(LegFault::Stale | LegFault::NotYet | LegFault::Invalid) | Ok(_)) => {
                job.step = Step::Again;
                return;
            }
        }
        self.judge(keeper, context);
    }

    pub(crate) fn check_at_peer(
        &mut self,
        sent: u64,
        reply: Option<LinkReply>,
        keeper: &mut Keeper,
        context: &mut Context<'_>,
    ) {
        let Some((_, _, length)) = self.checked_piece() else { return };
        let Some(job) = self.checks.job.as_mut().filter(|job| job.sent_peer == sent) else {
            return;
        };
        if job.is_orphan {
            return self.orphan_ended(reply, keeper, context);
        }
        match (job.step, reply) {
            (Step::Reading, Some(LinkReply::Data(data))) if data.len() as u64 == length => {
                job.peer = Some(Some(data));
            }
            (Step::Reading, Some(LinkReply::Refused(LinkRefusal::Medium))) => {
                job.peer = Some(None);
            }
            (Step::Writing, Some(LinkReply::Done)) => return self.checked(keeper, context),
            (_, Some(LinkReply::Refused(refusal))) => {
                job.step = Step::Again;
                return self.peer_refused(refusal, context);
            }
            (_, Some(LinkReply::Data(_) | LinkReply::Control(_) | LinkReply::Done) | None) => {
                job.step = Step::Again;
                return;
            }
        }
        self.judge(keeper, context);
    }

    /// What an abandoned check had on its way to the peer is there, or was refused.
    fn orphan_ended(
        &mut self,
        reply: Option<LinkReply>,
        keeper: &mut Keeper,
        context: &mut Context<'_>,
    ) {
        match reply {
            Some(LinkReply::Refused(refusal)) => self.peer_refused(refusal, context),
            Some(LinkReply::Done | LinkReply::Data(_) | LinkReply::Control(_)) => {}
            // With the channel the bar is lost, and the check with it.
            None => return,
        }
        self.end_check(keeper, context);
    }

    /// Both legs have answered for a piece, or one has and the other's answer is waited for.
    fn judge(&mut self, keeper: &mut Keeper, context: &mut Context<'_>) {
        let Some((volume, offset, length)) = self.checked_piece() else { return };
        let block = u64::from(self.volumes[volume].spec.block_bytes);
        let repair = self.checks.verify.as_ref().is_some_and(|verify| verify.order.repair);
        let Some(job) = self.checks.job.as_mut() else { return };
        if job.step != Step::Reading || job.own.is_none() || job.peer.is_none() {
            return;
        }
        if !job.is_claimed {
            return self.slow_read_ended(keeper, context);
        }
        let (Some(own), Some(peer)) = (job.own.take(), job.peer.take()) else { return };
        if (own.is_none() || peer.is_none()) && length > block {
            job.piece = smaller_piece(length, block);
            return self.read_both(keeper, context);
        }
        match (own, peer) {
            (Some(own), Some(peer)) => {
                let Some(range) = difference(&own, &peer) else {
                    return self.checked(keeper, context);
                };
                if !job.is_second {
                    // A fault on the way is no difference on the legs.
                    job.is_second = true;
                    return self.read_both(keeper, context);
                }
                job.found.differing_regions = 1;
                if job.found.differing.len() < RANGES_MAX {
                    let (begin, length) = range;
                    job.found.differing.push(BlockRange { offset: offset + begin, length });
                }
                if repair && job.is_compared {
                    job.is_repaired = true;
                    return self.write_to_peer(own, context);
                }
                self.checked(keeper, context);
            }
            (None, Some(peer)) => {
                job.found.mended_bytes += length;
                self.write_to_own(peer, keeper, context);
            }
            (Some(own), None) => {
                job.found.mended_bytes += length;
                self.write_to_peer(own, context);
            }
            (None, None) => {
                job.found.lost_bytes += length;
                // Otherwise it is known that the block was lost, or a host learnt it.
                if job.is_compared {
                    self.note_lost(volume, offset, length);
                }
                self.checked(keeper, context);
            }
        }
    }

    fn write_to_peer(&mut self, data: Buffer, context: &mut Context<'_>) {
        let peer = self.peer.as_ref().and_then(|peer| Some((peer.node, peer.round, peer.bar()?)));
        let Some((volume, offset, _)) = self.checked_piece() else { return };
        let volume = self.volumes[volume].spec.number;
        let Some(job) = &mut self.checks.job else { return };
        let Some((node, round, bar)) = peer else {
            job.step = Step::Again;
            return;
        };
        job.step = Step::Writing;
        (job.sent_peer, job.sent_at) = (context.out.next_session(), context.now);
        let client = LinkClient::Owner(self.group, round, LinkPurpose::Check(job.sent_peer));
        let data = Arc::new(data);
        context.out.link(
            client,
            node,
            LinkRequest::Write { volume, bar, offset, data, whole: false },
        );
    }

    fn write_to_own(&mut self, data: Buffer, keeper: &mut Keeper, context: &mut Context<'_>) {
        let Some((volume, offset, _)) = self.checked_piece() else { return };
        let number = self.volumes[volume].spec.number;
        let Some(job) = &mut self.checks.job else { return };
        let Some(bar) = self.bar else {
            job.step = Step::Again;
            return;
        };
        job.step = Step::Mending;
        (job.sent_own, job.sent_at) = (context.out.next_session(), context.now);
        let client = Client::Owner(self.life, OwnerCall::Check(job.sent_own));
        let operation = LegOperation::Write { offset, data: Arc::new(data), whole: false };
        keeper.start(number, bar, operation, client, context.out);
    }

    /// A piece is done.
    fn checked(&mut self, keeper: &mut Keeper, context: &mut Context<'_>) {
        let Some((_, _, length)) = self.checked_piece() else { return };
        let Some(job) = &mut self.checks.job else { return };
        job.done += length;
        job.is_second = false;
        if job.done < job.length {
            return self.read_both(keeper, context);
        }
        if job.is_compared
            && let Some(verify) = &mut self.checks.verify
        {
            verify.add(job);
        }
        self.end_region(keeper, context);
    }

    /// A region was compared, or is left out.
    fn end_region(&mut self, keeper: &mut Keeper, context: &mut Context<'_>) {
        let Some(job) = &self.checks.job else { return };
        if job.is_compared
            && let Some(verify) = &mut self.checks.verify
        {
            verify.next = job.region + 1;
            let pause = if self.works.len() > 0 { PAUSE_BUSY_MS } else { 0 };
            verify.not_before = context.after_ms(pause);
            if verify.next >= self.volumes[job.volume].regions() {
                let began = verify.began.unwrap_or(context.now);
                verify.evidence.duration_ms = to_ms(context.now.saturating_sub(began));
            }
        }
        self.end_check(keeper, context);
    }

    fn end_check(&mut self, keeper: &mut Keeper, context: &mut Context<'_>) {
        let Some(job) = self.checks.job.take() else { return };
        self.release_claim(job.volume, CHECK_CLAIM, keeper, context);
        self.drive_checks(keeper, context);
    }

    /// The peer, or what is to be checked, is another: the region is begun anew, if at all. What is on
    /// its way to a leg must be there before anything else may go to these blocks; but not what went
    /// to the peer under a bar that is lost, since the peer drains that before it takes another.
    pub(crate) fn abandon_check(&mut self, bar_is_lost: bool) {
        let Some(job) = &mut self.checks.job else { return };
        let is_under_way = match job.step {
            Step::Mending => true,
            Step::Writing => !bar_is_lost,
            Step::Claiming | Step::Reading | Step::Again => false,
        };
        if is_under_way {
            job.is_orphan = true;
            return;
        }
        let volume = job.volume;
        self.checks.job = None;
        let woken = self.volumes[volume].claims.release(CHECK_CLAIM);
        self.woken.extend(woken);
    }

    /// Tells the log what has ended, and what is lost, until it has it.
    pub(crate) fn report_checks(&mut self, context: &mut Context<'_>) {
        let every_ms = context.times.escalation_retry_ms;
        let (group, epoch) = (self.group, self.epoch);
        if let Some(verify) = &mut self.checks.verify
            && let Some(volume) = self.volumes.get(verify.volume)
            && verify.next >= volume.regions()
            && verify.asked.again(context.now, every_ms)
        {
            let evidence = verify.evidence.clone();
            let (volume, run) = (volume.spec.volume, verify.order.run);
            context.escalate(Escalation::Verified { group, epoch, volume, run, evidence });
        }
        for (volume, ranges, asked) in &mut self.checks.lost {
            if let Some(volume) = self.volumes.get(*volume)
                && asked.again(context.now, every_ms)
            {
                let volume = volume.spec.volume;
                let ranges = block_ranges(ranges);
                context.escalate(Escalation::BlocksLost { group, epoch, volume, ranges });
            }
        }
    }

    pub(crate) fn report_answered(&mut self, asked: &Escalation, outcome: &EscalationOutcome) {
        // At another epoch it is asked again.
        if !matches!(outcome, EscalationOutcome::Committed { .. }) {
            return;
        }
        match asked {
            Escalation::Verified { run, .. } => {
                self.checks.ended = self.checks.ended.max(*run);
                self.checks.verify.take_if(|verify| verify.order.run <= *run);
            }
            Escalation::BlocksLost { volume, ranges, .. } => {
                let volumes = &self.volumes;
                self.checks.lost.retain(|(at, known, _)| {
                    let is_it = volumes.get(*at).is_some_and(|it| it.spec.volume == *volume);
                    !is_it || block_ranges(known) != *ranges
                });
            }
            Escalation::DeviceReady { .. }
            | Escalation::DeviceRefused { .. }
            | Escalation::LegFormatted { .. }
            | Escalation::LegReleased { .. }
            | Escalation::DetachSide { .. }
            | Escalation::JoinSide { .. }
            | Escalation::HandOver { .. }
            | Escalation::ConfirmOwner { .. }
            | Escalation::WantOwner { .. } => {}
        }
    }

    /// Whether the peer keeps a check waiting for so long with a write, for which hosts wait too.
    pub(crate) fn peer_check_is_late(&self, now: Duration, deadline: Duration) -> bool {
        let job = self.checks.job.as_ref().filter(|job| job.step == Step::Writing);
        job.is_some_and(|job| job.sent_at + deadline <= now)
    }

    /// Whether the own leg does.
    pub(crate) fn own_check_is_late(&self, now: Duration, deadline: Duration) -> bool {
        let job = self.checks.job.as_ref().filter(|job| job.step == Step::Mending);
        job.is_some_and(|job| job.sent_at + deadline <= now)
    }
}

impl Verify {
    fn add(&mut self, job: &Job) {
        let evidence = &mut self.evidence;
        evidence.regions += 1;
        evidence.bytes += job.length;
        evidence.differing_regions += job.found.differing_regions;
        evidence.repaired_regions += u64::from(job.is_repaired);
        evidence.mended_bytes += job.found.mended_bytes;
        evidence.lost_bytes += job.found.lost_bytes;
        let room = RANGES_MAX - evidence.differing.len().min(RANGES_MAX);
        evidence.differing.extend(job.found.differing.iter().take(room));
    }
}

fn block_ranges(ranges: &[LostRange]) -> Vec<BlockRange> {
    ranges.iter().map(|it| BlockRange { offset: it.offset, length: it.length }).collect()
}

/// From the first byte that differs to the last: where, and how many.
fn difference(own: &[u8], peer: &[u8]) -> Option<(u64, u64)> {
    if own == peer {
        return None;
    }
    let first = own.iter().zip(peer).position(|(own, peer)| own != peer)?;
    let last = own.iter().zip(peer).rposition(|(own, peer)| own != peer)?;
    Some((first as u64, (last - first + 1) as u64))
}
