//! Copies: each asks its volumes for one chunk after the other and is answered when all are copied.

use super::FullFeature;
use super::respond::status_of;
use crate::request::{Outcome, VolumeKey};
use crate::scsi::command::Work;
use crate::scsi::copy::{Copy, CopyList, CopyUnit, Results, Stop, Whom};
use crate::scsi::copy_results::State;
use crate::scsi::opcodes::Access;
use crate::scsi::{Sense, alua, status};
use crate::task::{Answer, Stage};

/// The copy of a task.
#[derive(Debug)]
pub(crate) struct CopyTask {
    copy: Copy,
    /// Whom its next request is for.
    volume: VolumeKey,
}

impl CopyTask {
    pub(super) fn volume(&self) -> VolumeKey {
        self.volume
    }
    pub(super) fn results(&self) -> Results {
        self.copy.results()
    }
}

impl FullFeature {
    /// Begins a copy.
    pub(super) fn begin_copy(&mut self, slot: usize, list: CopyList) {
        let Some(task) = self.tasks.get_mut(slot) else { return };
        if let Err(sense) = self.copies.begin(task.lun, list.results) {
            let answer = Answer::Status(status::CHECK_CONDITION, Some(sense));
            task.stage = Stage::Answered(answer);
            return;
        }
        task.copy = Some(Box::new(CopyTask { copy: Copy::new(list), volume: task.volume }));
        self.step_copy(slot);
    }

    /// Goes on with what became of a copy's request.
    pub(super) fn continue_copy(&mut self, slot: usize, outcome: Outcome, output: &mut Vec<u8>) {
        self.tasks.renew(slot);
        let Some(task) = self.tasks.get_mut(slot) else { return };
        let Some(under_way) = &mut task.copy else { return };
        match under_way.copy.answered(outcome) {
            Ok(()) => self.step_copy(slot),
            Err(stop) => self.end_copy(slot, Some(stop)),
        }
        self.advance(slot, output);
    }

    /// Ends a copy one of whose volumes the host sees no longer.
    pub(super) fn strand_copy(&mut self, slot: usize, output: &mut Vec<u8>) {
        self.end_copy(slot, Some(Stop::Sense(Sense::COPY_TARGET_NOT_REACHABLE)));
        self.advance(slot, output);
    }

    fn step_copy(&mut self, slot: usize) {
        let Some(task) = self.tasks.get_mut(slot) else { return };
        let Some(under_way) = &mut task.copy else { return };
        let (units, lun) = (&self.units, task.lun);
        let next = under_way.copy.next(|whom| {
            let unit = match whom {
                Whom::This => units.find(lun),
                Whom::Naa(naa) => units.of_naa(naa),
            }?;
            Some(CopyUnit {
                volume: unit.view.volume,
                blocks: unit.view.blocks,
                block_size: unit.view.block_size,
                refusal: alua::refusal(unit.view.alua_state, Access::Medium),
                is_write_protected: unit.view.read_only || unit.shared.software_write_protect(),
            })
        });
        self.copies.advance(lun, under_way.copy.results(), under_way.copy.progress());
        match next {
            Ok(Some((volume, operation))) => {
                under_way.volume = volume;
                task.stage = Stage::Ready(Work::Operation(operation));
            }
            Ok(None) => self.end_copy(slot, None),
            Err(stop) => self.end_copy(slot, Some(stop)),
        }
    }

    /// Answers a copy that is over, and keeps the answer for whoever asks later.
    fn end_copy(&mut self, slot: usize, stop: Option<Stop>) {
        let Some(task) = self.tasks.get_mut(slot) else { return };
        let results = task.copy.take().map_or(Results::None, |ended| ended.copy.results());
        let (code, sense) = match stop {
            None => (status::GOOD, None),
            Some(Stop::Sense(sense)) => (status::CHECK_CONDITION, Some(sense)),
            Some(Stop::Failure(failure)) => status_of(failure),
        };
        let state = match code {
            status::GOOD => State::Done,
            _ => State::Failed(code, sense.map_or_else(Vec::new, |sense| sense.encode(false))),
        };
        task.stage = Stage::Answered(Answer::Status(code, sense));
        self.copies.end(task.lun, results, state);
    }
}
