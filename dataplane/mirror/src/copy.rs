//! Copying regions from the owner's leg to the peer's: settling what a crash left open, and resync.
//!
//! Each region is claimed, read, written, released: a host's write either came before and is
//! copied, or waits and goes to both legs itself.

use crate::claims::Claim;
use crate::keeper::{Client, Keeper, LegFault, LegOperation};
use crate::link::{LinkReply, LinkRequest};
use crate::out::LinkClient;
use crate::owner::{Context, LinkPurpose, Owner, OwnerCall, to_ms};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use voute_buffer::Buffer;
use voute_schemas::SiteId;
use voute_schemas::contract::ResyncProgress;
use voute_schemas::event::ResyncEvidence;

/// Regions copied at a time when no host waits, and when some do: the floor.
const WINDOW_IDLE: usize = 4;
const WINDOW_BUSY: usize = 1;
/// Marks the claim of a copy among those of works.
const COPY_BIT: u64 = 1 << 63;

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
}

#[derive(Clone, Debug)]
pub(crate) struct Job {
    volume: usize,
    region: u64,
    step: Step,
    length: u64,
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
            let Some(job) = self.copies.remove(key) else { continue };
            // Whoever waited behind the copy is woken by the next drive.
            let woken = self.volumes[job.volume].claims.release(key | COPY_BIT);
            self.woken.extend(woken);
        }
    }

    /// The resync that this copier made is over; one that settles goes on.
    pub(crate) fn end_resync(&mut self) {
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
            if let Some(job) = self.copies.get_mut(key).filter(|job| job.step == Step::Writing) {
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
        let Some(copier) = self
            .copier
            .as_mut()
            .filter(|copier| !copier.finished && copier.queue.is_empty() && self.copies.len() == 0)
        else {
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
        let key = claim & !COPY_BIT;
        let Some(job) = self.copies.get_mut(key) else {
            return;
        };
        let Some(bar) = self.bar else {
            job.step = Step::Again;
            return;
        };
        let spec = &self.volumes[job.volume].spec;
        let (number, offset) = (spec.number, job.region * spec.region_bytes);
        if keeper.is_written(number, job.region) {
            job.step = Step::Reading;
            let length = u32::try_from(job.length).expect("a region is at most a transfer");
            keeper.start(
                number,
                bar,
                LegOperation::Read { offset, length },
                Client::Owner(self.life, OwnerCall::Copy(key)),
                context.out,
            );
        } else {
            self.send_copy(key, None, context);
        }
    }

    pub(crate) fn copy_read(
        &mut self,
        key: u64,
        result: Result<Option<Buffer>, LegFault>,
        context: &mut Context<'_>,
    ) {
        let Some(job) = self.copies.get_mut(key).filter(|job| job.step == Step::Reading) else {
            return;
        };
        match result {
            Ok(data) => self.send_copy(key, data, context),
            Err(LegFault::Stale | LegFault::NotYet | LegFault::Invalid) => job.step = Step::Again,
            Err(
                LegFault::Medium | LegFault::Failed | LegFault::ContentLost | LegFault::Unknown,
            ) => {
                // The only copy cannot be read: resync cannot end; it begins anew later. Settling
                // falls back to taking the peer's, which is for the other side to serve.
                job.step = Step::Again;
                if self.peer.as_ref().is_some_and(|peer| peer.is_in_sync()) {
                    self.give_up("its leg cannot be read", context);
                } else {
                    self.abort_resync(context);
                }
            }
        }
    }

    fn send_copy(&mut self, key: u64, data: Option<Buffer>, context: &mut Context<'_>) {
        let peer = self.peer.as_ref().and_then(|peer| Some((peer.node, peer.round, peer.bar()?)));
        let Some(job) = self.copies.get_mut(key) else {
            return;
        };
        let Some((node, round, bar)) = peer else {
            job.step = Step::Again;
            return;
        };
        job.step = Step::Writing;
        job.sent = context.now;
        let spec = &self.volumes[job.volume].spec;
        let (volume, offset) = (spec.number, job.region * spec.region_bytes);
        let request = match data {
            Some(data) => LinkRequest::Write { volume, bar, offset, data: Arc::new(data) },
            None => LinkRequest::Zero { volume, bar, offset, length: job.length, release: true },
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
        let Some(job) = self.copies.get_mut(key).filter(|job| job.step == Step::Writing) else {
            return;
        };
        match reply {
            Some(LinkReply::Done) => {
                let job = self.copies.remove(key).expect("looked up above");
                self.region_copied(job.volume, job.region, job.length);
                self.release_claim(job.volume, key | COPY_BIT, keeper, context);
                self.advance_settled(keeper, context);
            }
            Some(LinkReply::Refused(refusal)) => {
                job.step = Step::Again;
                self.peer_refused(refusal, context);
            }
            Some(LinkReply::Data(_) | LinkReply::Control(_)) | None => job.step = Step::Again,
        }
        self.drive_copier(keeper, context);
    }

    /// Whether the peer has kept any copy waiting beyond its deadline.
    pub(crate) fn copies_are_late(&self, context: &Context<'_>) -> bool {
        let deadline = Duration::from_millis(context.times.leg_deadline_ms);
        self.copies
            .keys()
            .into_iter()
            .filter_map(|key| self.copies.get(key))
            .any(|job| job.step == Step::Writing && job.sent + deadline <= context.now)
    }

    fn region_copied(&mut self, volume: usize, region: u64, length: u64) {
        self.volumes[volume].unsettled.remove(&region);
        if let Some(copier) = &mut self.copier {
            copier.copied_bytes += length;
            copier.copied_regions += 1;
        }
    }
}
