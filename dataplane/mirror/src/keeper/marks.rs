//! What a keeper notes of its legs: dirty bits (docs/mirror-rules.md rule 4), marks and records in
//! the headers.

use super::{Client, Keeper, KeeperEvent, Leg, LegFault, Waiter};
use crate::action::RECORD_BYTES_MAX;
use crate::header::{LostRange, add_lost};
use crate::link::{Bar, Mark};
use crate::map::REGIONS_PER_PAGE;
use crate::out::Out;
use std::collections::BTreeMap;
use voute_schemas::Epoch;
use voute_schemas::mutant::{self, Mutant};

impl Keeper {
    /// Dirty regions of a volume's leg, ascending, from one on.
    pub(crate) fn dirty(&self, volume: u32, from: u64) -> impl Iterator<Item = u64> + '_ {
        let leg = self.position(volume).map(|index| &self.legs[index]);
        leg.into_iter().flat_map(|leg| leg.dirty.ones()).filter(move |region| *region >= from)
    }

    pub(crate) fn is_written(&self, volume: u32, region: u64) -> bool {
        self.position(volume).is_some_and(|index| {
            let leg = &self.legs[index];
            leg.written.get(region) || leg.preparing.contains_key(&region)
        })
    }

    /// The range in pieces that may hold data or were never written; see [`crate::Mirror::allocation`].
    pub(crate) fn allocation(
        &self,
        volume: u32,
        offset: u64,
        length: u64,
        pieces_max: usize,
    ) -> Option<Vec<(u64, u64, bool)>> {
        let leg = &self.legs[self.position(volume)?];
        let end = offset.checked_add(length).filter(|end| *end <= leg.size)?;
        let region_bytes = leg.spec.region_bytes;
        let (mut pieces, mut at): (Vec<(u64, u64, bool)>, u64) = (Vec::new(), offset);
        while at < end {
            let region = at / region_bytes;
            let next = ((region + 1) * region_bytes).min(end);
            let written = self.is_written(volume, region);
            let count = pieces.len();
            match pieces.last_mut() {
                Some(last) if last.2 == written => last.1 += next - at,
                _ if count == pieces_max => break,
                _ => pieces.push((at, next - at, written)),
            }
            at = next;
        }
        Some(pieces)
    }

    /// Sets dirty bits; one [`KeeperEvent::Done`] per page until whose write the caller must wait.
    /// Returns how many: none if all bits are on disk already.
    pub(crate) fn mark_dirty(
        &mut self,
        volume: u32,
        regions: std::ops::RangeInclusive<u64>,
        client: Client,
        out: &mut Out,
    ) -> u32 {
        let Some(index) = self.position(volume) else { return 0 };
        let leg = &mut self.legs[index];
        let mut waits: BTreeMap<u64, bool> = BTreeMap::new();
        let count = leg.dirty.len();
        for region in regions.filter(|region| *region < count) {
            let needs_another_write = if leg.dirty.set(region, true) {
                leg.not_durable.insert(region, false);
                Some(true)
            } else {
                leg.not_durable.get(&region).map(|under_way| !under_way)
            };
            if let Some(another) = needs_another_write {
                *waits.entry(region / REGIONS_PER_PAGE).or_default() |= another;
            }
        }
        for (page, another) in &waits {
            if *another {
                self.write_page(index, *page, Some(Waiter::Client(client)), out);
            } else {
                self.legs[index].pages[*page as usize].1.under_way.push(Waiter::Client(client));
            }
        }
        u32::try_from(waits.len()).expect("pages are bounded by the metadata area")
    }

    /// Clears dirty bits; reaches the disk some time.
    pub(crate) fn clear_dirty(&mut self, volume: u32, regions: &[u64], out: &mut Out) {
        let Some(index) = self.position(volume) else { return };
        let mut pages: Vec<u64> = Vec::new();
        for region in regions {
            if *region < self.legs[index].dirty.len()
                && self.legs[index].forget_dirty(*region)
                && !pages.contains(&(region / REGIONS_PER_PAGE))
            {
                pages.push(region / REGIONS_PER_PAGE);
            }
        }
        for page in pages {
            self.write_page(index, page, None, out);
        }
    }

    /// Writes a state into the headers of all legs; `keep_dirty` names the regions (of a volume)
    /// whose bits outlive the new begin of the map. One [`KeeperEvent::Done`].
    pub(crate) fn mark(
        &mut self,
        bar: Bar,
        mark: Mark,
        keep_dirty: &dyn Fn(u32, u64) -> bool,
        client: Client,
        out: &mut Out,
    ) {
        if self.bar != Some(bar) {
            return self.events.push_back(KeeperEvent::Done(client, Err(LegFault::Stale)));
        }
        let since = self.held.epoch.sequence.0;
        for index in 0..self.legs.len() {
            let leg = &mut self.legs[index];
            match mark {
                Mark::Inconsistent if mutant::is_active(Mutant::CopyOntoAWholeLeg) => {}
                Mark::Inconsistent => leg.header.consistent = false,
                Mark::Consistent => leg.header.consistent = true,
                Mark::Copied { nonce, agreed } => {
                    leg.header.consistent = true;
                    leg.header.nonce = nonce;
                    leg.header.agreed_nonce = agreed;
                }
                Mark::InSync { nonce, agreed } => {
                    leg.header.consistent = true;
                    leg.header.joining = None;
                    leg.header.map_since = Some(since);
                    leg.header.nonce = nonce;
                    leg.header.agreed_nonce = agreed;
                    let number = leg.spec.number;
                    let clean: Vec<u64> =
                        leg.dirty.ones().filter(|region| !keep_dirty(number, *region)).collect();
                    self.clear_dirty(number, &clean, out);
                }
            }
        }
        self.write_headers(client, out);
    }

    /// Notes on disk that the log was asked to take the peer in. One [`KeeperEvent::Done`].
    pub(crate) fn mark_joining(&mut self, epoch: Epoch, client: Client, out: &mut Out) {
        for leg in &mut self.legs {
            leg.header.joining = Some(epoch.sequence.0);
        }
        self.write_headers(client, out);
    }

    /// Writes a volume's record into its leg's header, unless a later one of the same bar is there.
    /// One [`KeeperEvent::Done`].
    pub(crate) fn put_record(
        &mut self,
        volume: u32,
        bar: Bar,
        number: u64,
        record: Vec<u8>,
        client: Client,
        out: &mut Out,
    ) {
        let fault = match self.position(volume) {
            None => LegFault::Unknown,
            Some(_) if self.bar != Some(bar) => LegFault::Stale,
            Some(_) if record.len() > RECORD_BYTES_MAX => LegFault::Invalid,
            Some(index) => match self.usable() {
                Err(fault) => fault,
                Ok(()) => {
                    let leg = &mut self.legs[index];
                    let is_later = |last: (Bar, u64)| last.0 != bar || last.1 < number;
                    if leg.last_put.is_none_or(is_later) {
                        leg.last_put = Some((bar, number));
                        leg.header.record = record;
                    }
                    leg.record_is_live = true;
                    return self.write_header(index, Waiter::Client(client), out);
                }
            },
        };
        self.events.push_back(KeeperEvent::Done(client, Err(fault)));
    }

    /// Notes on disk that the leg does not hold these blocks of a volume. One [`KeeperEvent::Done`].
    pub(crate) fn lose(
        &mut self,
        volume: u32,
        bar: Bar,
        (offset, length): (u64, u64),
        client: Client,
        out: &mut Out,
    ) {
        let fault = match self.position(volume) {
            None => LegFault::Unknown,
            Some(_) if self.bar != Some(bar) => LegFault::Stale,
            Some(index) => {
                let leg = &mut self.legs[index];
                let fits = offset.checked_add(length).is_some_and(|end| end <= leg.size);
                match self.usable() {
                    Err(fault) => fault,
                    Ok(()) if length == 0 || !fits => LegFault::Invalid,
                    Ok(()) if !add_lost(&mut self.legs[index].header.lost, offset, length) => {
                        LegFault::Invalid
                    }
                    Ok(()) => return self.write_header(index, Waiter::Client(client), out),
                }
            }
        };
        self.events.push_back(KeeperEvent::Done(client, Err(fault)));
    }

    /// Blocks of a volume that its leg does not hold.
    pub(crate) fn lost(&self, volume: u32) -> &[LostRange] {
        self.position(volume).map_or(&[], |index| &self.legs[index].header.lost)
    }

    pub(crate) fn record(&self, volume: u32) -> Vec<u8> {
        let leg = self.position(volume).map(|index| &self.legs[index]);
        leg.map(|leg| leg.header.record.clone()).unwrap_or_default()
    }

    /// Whether this process put the volume's record, or served by it.
    pub(crate) fn record_is_live(&self, volume: u32) -> bool {
        self.position(volume).is_some_and(|index| self.legs[index].record_is_live)
    }

    pub(crate) fn enliven_record(&mut self, volume: u32) {
        if let Some(index) = self.position(volume) {
            self.legs[index].record_is_live = true;
        }
    }
}

impl Leg {
    pub(super) fn forget_dirty(&mut self, region: u64) -> bool {
        self.not_durable.remove(&region);
        self.dirty.set(region, false)
    }
}
