//! Requests on a leg, from the check of their bar to the last part of them on the device.

use super::{
    Client, DevicePurpose, Keeper, KeeperEvent, LegFault, LegOperation, OPERATIONS_MAX, Operation,
    Waiter, Why, leg_fault,
};
use crate::action::{DeviceKind, DeviceResult};
use crate::header::{is_lost, remove_lost};
use crate::journal::ATOMIC_BYTES_MAX;
use crate::link::Bar;
use crate::map::REGIONS_PER_PAGE;
use crate::out::Out;
use std::time::Duration;
use voute_buffer::Buffer;
use voute_schemas::mutant::{self, Mutant};
use voute_schemas::place::LEG_METADATA_BYTES;

impl Keeper {
    /// Starts a request; answers by [`KeeperEvent::Done`].
    pub(crate) fn start(
        &mut self,
        volume: u32,
        bar: Bar,
        kind: LegOperation,
        client: Client,
        out: &mut Out,
    ) {
        match self.admit(volume, bar, &kind) {
            Err(fault) => self.events.push_back(KeeperEvent::Done(client, Err(fault))),
            Ok(leg) => {
                let key = self.operations.insert(Operation {
                    client,
                    leg,
                    kind,
                    waiting: 0,
                    fault: None,
                    dispatched: false,
                    journaled: None,
                });
                self.prepare(key, out);
            }
        }
    }

    pub(super) fn admit(
        &self,
        volume: u32,
        bar: Bar,
        kind: &LegOperation,
    ) -> Result<usize, LegFault> {
        let index = self.position(volume).ok_or(LegFault::Unknown)?;
        self.usable()?;
        if self.bar != Some(bar) && !mutant::is_active(Mutant::StaleBarsServed) {
            return Err(LegFault::Stale);
        }
        let (offset, length) = kind.range();
        let end = offset.checked_add(length).ok_or(LegFault::Invalid)?;
        let block = u64::from(self.legs[index].spec.block_bytes);
        if length == 0
            || offset % block != 0
            || length % block != 0
            || self.operations.len() >= OPERATIONS_MAX
            || kind.is_too_long_to_be_whole()
        {
            return Err(LegFault::Invalid);
        }
        if end > self.legs[index].size {
            return Err(LegFault::NotYet);
        }
        Ok(index)
    }

    /// A region is zeroed and noted as written before the first write to a part of it.
    pub(super) fn prepare(&mut self, key: u64, out: &mut Out) {
        let Some(operation) = self.operations.get(key) else { return };
        let index = operation.leg;
        if let LegOperation::Write { offset, data, .. } = &operation.kind {
            let region_bytes = self.legs[index].spec.region_bytes;
            let regions = offset / region_bytes..=(offset + data.len() as u64 - 1) / region_bytes;
            let mut waiting = 0;
            for region in regions {
                if let Some(waiters) = self.legs[index].preparing.get_mut(&region) {
                    waiters.push(key);
                    waiting += 1;
                } else if mutant::is_active(Mutant::FirstWriteZeroesNothing) {
                    self.legs[index].written.set(region, true);
                } else if !self.legs[index].written.get(region) {
                    self.legs[index].preparing.insert(region, vec![key]);
                    waiting += 1;
                    let begin = region * region_bytes;
                    let length = region_bytes
                        .min(self.legs[index].size.next_multiple_of(region_bytes) - begin);
                    let purpose = DevicePurpose::Prepare { leg: index, region };
                    self.device(
                        index,
                        LEG_METADATA_BYTES + begin,
                        DeviceKind::Zero { length, release: false },
                        purpose,
                        out,
                    );
                }
            }
            self.operations.get_mut(key).expect("looked up above").waiting = waiting;
        }
        self.dispatch(key, out);
    }

    pub(super) fn region_zeroed(
        &mut self,
        leg: usize,
        region: u64,
        result: &DeviceResult,
        out: &mut Out,
    ) {
        if let Err(fault) = result {
            let fault = leg_fault(*fault);
            return self.region_prepared(leg, region, Some(fault), out);
        }
        self.legs[leg].written.set(region, true);
        if mutant::is_active(Mutant::WrittenBitNotAwaited) {
            return self.region_prepared(leg, region, None, out);
        }
        self.write_page(leg, region / REGIONS_PER_PAGE, Some(Waiter::Region(region)), out);
    }

    pub(super) fn region_prepared(
        &mut self,
        leg: usize,
        region: u64,
        fault: Option<LegFault>,
        out: &mut Out,
    ) {
        for key in self.legs[leg].preparing.remove(&region).unwrap_or_default() {
            if let Some(operation) = self.operations.get_mut(key) {
                operation.waiting -= 1;
                operation.fault = operation.fault.or(fault);
            }
            self.dispatch(key, out);
        }
        if fault.is_some() {
            self.legs[leg].written.set(region, false);
        }
    }

    pub(super) fn dispatch(&mut self, key: u64, out: &mut Out) {
        let Some(operation) = self.operations.get_mut(key) else { return };
        if operation.waiting > 0 || operation.dispatched {
            return;
        }
        if operation.fault.is_some() {
            return self.finish(key, None, out);
        }
        operation.dispatched = true;
        let index = operation.leg;
        let purpose = || DevicePurpose::Operation { key };
        match &operation.kind {
            LegOperation::Write { whole: true, .. } => self.journal(key, out),
            LegOperation::Write { offset, data, whole: false } => {
                let (offset, data) = (*offset, data.clone());
                operation.waiting = 1;
                self.device(
                    index,
                    LEG_METADATA_BYTES + offset,
                    DeviceKind::Write { data },
                    purpose(),
                    out,
                );
            }
            LegOperation::Read { offset, length } => {
                let (offset, length) = (*offset, *length);
                if is_lost(&self.legs[index].header.lost, offset, u64::from(length)) {
                    let operation = self.operations.get_mut(key).expect("looked up above");
                    operation.fault = Some(LegFault::Medium(Why::Lost));
                    return self.finish(key, None, out);
                }
                if self.runs(index, offset, u64::from(length)).iter().any(|run| run.2) {
                    self.operations.get_mut(key).expect("looked up above").waiting = 1;
                    self.device(
                        index,
                        LEG_METADATA_BYTES + offset,
                        DeviceKind::Read { length },
                        purpose(),
                        out,
                    );
                } else {
                    self.finish(key, Some(Buffer::zeroed(length as usize)), out);
                }
            }
            LegOperation::Zero { offset, length, release, whole } => {
                let (offset, length, release, whole) = (*offset, *length, *release, *whole);
                let runs: Vec<_> =
                    self.runs(index, offset, length).into_iter().filter(|run| run.2).collect();
                self.operations.get_mut(key).expect("looked up above").waiting =
                    u32::try_from(runs.len()).expect("runs are bounded by the regions");
                if runs.is_empty() {
                    if self.regains(key, out) {
                        return;
                    }
                    return self.finish(key, None, out);
                }
                if whole {
                    return self.journal(key, out);
                }
                for (begin, length, _) in runs {
                    self.device(
                        index,
                        LEG_METADATA_BYTES + begin,
                        DeviceKind::Zero { length, release },
                        purpose(),
                        out,
                    );
                }
            }
        }
    }

    /// A range cut where regions begin to be, or to be no longer, written: (offset, length, written).
    pub(super) fn runs(&self, leg: usize, offset: u64, length: u64) -> Vec<(u64, u64, bool)> {
        let leg = &self.legs[leg];
        let mut runs: Vec<(u64, u64, bool)> = Vec::new();
        let mut at = offset;
        while at < offset + length {
            let region = at / leg.spec.region_bytes;
            let end = ((region + 1) * leg.spec.region_bytes).min(offset + length);
            let written =
                leg.written.get(region) || mutant::is_active(Mutant::UnwrittenReadsTheDevice);
            match runs.last_mut() {
                Some(last) if last.2 == written => last.1 += end - at,
                _ => runs.push((at, end - at, written)),
            }
            at = end;
        }
        runs
    }

    pub(super) fn operation_done(
        &mut self,
        key: u64,
        result: DeviceResult,
        now: Duration,
        out: &mut Out,
    ) {
        let Some(operation) = self.operations.get_mut(key) else { return };
        operation.waiting -= 1;
        let buffer = match result {
            Ok(buffer) => buffer,
            Err(fault) => {
                operation.fault = operation.fault.or(Some(leg_fault(fault)));
                None
            }
        };
        if operation.waiting > 0 {
            return;
        }
        if let Some(journaled) = operation.journaled {
            return self.journaled(key, journaled, now, out);
        }
        let buffer = match (&operation.kind, buffer) {
            (LegOperation::Read { offset, length }, Some(mut buffer)) => {
                let (index, offset, length) = (operation.leg, *offset, u64::from(*length));
                for (begin, length, _) in
                    self.runs(index, offset, length).into_iter().filter(|run| !run.2)
                {
                    let from = (begin - offset) as usize;
                    buffer[from..from + length as usize].fill(0);
                }
                Some(buffer)
            }
            (_, buffer) => buffer,
        };
        if self.regains(key, out) {
            return;
        }
        self.finish(key, buffer, out);
    }

    /// Whether a write that is on the device gave lost blocks a content again: then it ends only when
    /// the header says so, or a crash would take back what was acknowledged.
    pub(super) fn regains(&mut self, key: u64, out: &mut Out) -> bool {
        let Some(operation) = self.operations.get_mut(key) else { return false };
        let (offset, length) = operation.kind.range();
        let lost = &mut self.legs[operation.leg].header.lost;
        let is_written =
            operation.fault.is_none() && !matches!(operation.kind, LegOperation::Read { .. });
        if !is_written || !is_lost(lost, offset, length) {
            return false;
        }
        if !remove_lost(lost, offset, length) {
            operation.fault = Some(LegFault::Medium(Why::Bad));
            return false;
        }
        let leg = operation.leg;
        self.write_header(leg, Waiter::Regained(key), out);
        true
    }

    pub(super) fn finish(&mut self, key: u64, buffer: Option<Buffer>, out: &mut Out) {
        let Some(operation) = self.operations.remove(key) else { return };
        self.events.push_back(KeeperEvent::Done(
            operation.client,
            operation.fault.map_or(Ok(buffer), Err),
        ));
        self.drained(out);
    }
}

impl LegOperation {
    /// A slot of the journal has room for so much data, and for one range to be zeroed.
    fn is_too_long_to_be_whole(&self) -> bool {
        match self {
            LegOperation::Write { data, whole, .. } => {
                *whole && data.len() > ATOMIC_BYTES_MAX as usize
            }
            LegOperation::Zero { .. } | LegOperation::Read { .. } => false,
        }
    }

    pub(super) fn range(&self) -> (u64, u64) {
        match self {
            LegOperation::Read { offset, length } => (*offset, u64::from(*length)),
            LegOperation::Write { offset, data, .. } => (*offset, data.len() as u64),
            LegOperation::Zero { offset, length, .. } => (*offset, *length),
        }
    }
}
