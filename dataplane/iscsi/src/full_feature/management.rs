//! Task management and logout (RFC 7143 §11.5, §11.6, §11.14, §11.15), and what other sessions ask.
//!
//! Aborting a task that is with its volume means waiting for its end: every such task holds a clone of
//! the abort's token, and the answer goes out when none is left.

use super::FullFeature;
use crate::pdu::{Header, opcode};
use crate::request::VolumeKey;
use crate::scsi::{Attention, command};
use crate::session::Mail;
use crate::task::{Stage, Task};
use std::sync::Arc;
use voute_reservation::Request;

/// Functions (§11.5.1).
mod function {
    pub(super) const ABORT_TASK: u8 = 1;
    pub(super) const ABORT_TASK_SET: u8 = 2;
    pub(super) const CLEAR_TASK_SET: u8 = 4;
    pub(super) const LOGICAL_UNIT_RESET: u8 = 5;
    pub(super) const WARM_RESET: u8 = 6;
    pub(super) const COLD_RESET: u8 = 7;
    pub(super) const TASK_REASSIGN: u8 = 8;
}

/// Responses (§11.6.1).
mod response {
    pub(super) const COMPLETE: u8 = 0;
    pub(super) const NO_SUCH_TASK: u8 = 1;
    pub(super) const NO_SUCH_LUN: u8 = 2;
    pub(super) const NO_REASSIGN: u8 = 4;
    pub(super) const NOT_SUPPORTED: u8 = 5;
}

/// Most management requests that wait at once; a host that sends more is answered without a wait
/// being possible, and so loses its connection.
const PENDING_MAX: usize = 64;

/// An answer that waits for requests to end.
pub(super) enum PendingAnswer {
    /// To a task management request.
    Management {
        task_tag: u32,
        token: Arc<()>,
        /// A cold reset ends the connection.
        ends: bool,
    },
    /// To a logout.
    Logout { task_tag: u32 },
}

impl FullFeature {
    pub(super) fn manage(&mut self, header: &Header, output: &mut Vec<u8>) {
        self.read_mail();
        if self.pending.len() >= PENDING_MAX {
            self.is_over = true;
            return;
        }
        let (asked, lun) = (header.flags() & 0x7f, command::decode_lun(header.lun_field()));
        let volume = lun.and_then(|lun| self.units.find(lun)).map(|unit| unit.view.volume);
        let token = Arc::new(());
        let answer = match (asked, volume) {
            (function::ABORT_TASK, _) => self.abort_one(header.u32_at(20), lun, &token),
            (function::ABORT_TASK_SET, Some(_)) => {
                self.abort_own(|task| Some(task.lun) == lun, &token);
                response::COMPLETE
            }
            (function::CLEAR_TASK_SET, Some(volume)) => {
                self.abort_own(|task| task.volume == volume, &token);
                self.abort_others(volume, Attention::COMMANDS_CLEARED, &token);
                response::COMPLETE
            }
            (function::LOGICAL_UNIT_RESET, Some(volume)) => {
                self.reset_unit(volume, &token);
                response::COMPLETE
            }
            // Of the units that this host sees: others' are not its to reset.
            (function::WARM_RESET | function::COLD_RESET, _) => {
                let luns: Vec<u16> = self.units.numbers().collect();
                for lun in luns {
                    if let Some(volume) = self.units.find(lun).map(|unit| unit.view.volume) {
                        self.reset_unit(volume, &token);
                    }
                }
                response::COMPLETE
            }
            (
                function::ABORT_TASK_SET | function::CLEAR_TASK_SET | function::LOGICAL_UNIT_RESET,
                None,
            ) => response::NO_SUCH_LUN,
            (function::TASK_REASSIGN, _) => response::NO_REASSIGN,
            _ => response::NOT_SUPPORTED,
        };
        if answer == response::COMPLETE {
            self.pending.push(PendingAnswer::Management {
                task_tag: header.task_tag(),
                token,
                ends: asked == function::COLD_RESET,
            });
            self.answer_pending(output);
        } else {
            self.send_management(header.task_tag(), answer, output);
        }
    }

    fn abort_one(&mut self, task_tag: u32, lun: Option<u16>, token: &Arc<()>) -> u8 {
        let Some(slot) = self.tasks.slot_of(task_tag) else { return response::NO_SUCH_TASK };
        if self.tasks.get(slot).is_none_or(|task| Some(task.lun) != lun) {
            return response::NO_SUCH_TASK;
        }
        self.abort_slot(slot, token);
        response::COMPLETE
    }

    fn abort_own(&mut self, wanted: impl Fn(&Task) -> bool, token: &Arc<()>) {
        for slot in self.tasks.select(wanted) {
            self.abort_slot(slot, token);
        }
    }

    fn abort_slot(&mut self, slot: usize, token: &Arc<()>) {
        let Some(task) = self.tasks.get_mut(slot) else { return };
        match task.stage {
            Stage::Surfaced => {
                task.is_aborted = true;
                task.tokens.push(token.clone());
            }
            Stage::Receiving { .. }
            | Stage::Answered(_)
            | Stage::Waiting
            | Stage::Ready(_)
            | Stage::ReadyAllocation { .. } => {
                self.remove(slot);
            }
        }
    }

    fn reset_unit(&mut self, volume: VolumeKey, token: &Arc<()>) {
        self.abort_own(|task| task.volume == volume, token);
        self.abort_others(volume, Attention::RESET, token);
        let mut ends_reservation = false;
        for unit in self.units.of_volume(volume) {
            ends_reservation |= unit.shared.reset();
            unit.attend(Attention::RESET);
            self.copies.forget(unit.view.lun);
        }
        if ends_reservation {
            self.target.wish(volume, &self.nexus, Request::UnitReset);
        }
    }

    fn abort_others(&mut self, volume: VolumeKey, attention: Attention, token: &Arc<()>) {
        let Some(session) = self.session.clone() else { return };
        self.target.for_other_sessions(&session, |other| {
            other.post(Mail::Attention(volume, attention));
            // An idle session would read its mail late, and has nothing to wait for.
            if other.outstanding() > 0 {
                other.post(Mail::Abort(volume, token.clone()));
            }
        });
    }

    /// Does what other sessions asked for.
    pub(super) fn read_mail(&mut self) {
        let Some(session) = self.session.as_ref().filter(|session| session.has_mail()) else {
            return;
        };
        for message in session.take_mail() {
            match message {
                Mail::Attention(volume, attention) => {
                    self.units.of_volume(volume).for_each(|unit| unit.attend(attention));
                }
                Mail::Abort(volume, token) => self.abort_own(|task| task.volume == volume, &token),
            }
        }
    }

    pub(super) fn log_out(&mut self, header: &Header, output: &mut Vec<u8>) {
        match header.flags() & 0x7f {
            // Close the session or the connection, which here are one.
            0 | 1 => {
                self.drop_unsurfaced();
                self.pending.push(PendingAnswer::Logout { task_tag: header.task_tag() });
                self.answer_pending(output);
            }
            // Removal for recovery: not at error recovery level 0.
            _ => self.send_logout(header.task_tag(), 2, output),
        }
    }

    /// Sends the answers that wait no longer.
    pub(super) fn answer_pending(&mut self, output: &mut Vec<u8>) {
        if self.pending.is_empty() {
            return;
        }
        for pending in std::mem::take(&mut self.pending) {
            match pending {
                PendingAnswer::Management { task_tag, token, ends }
                    if Arc::strong_count(&token) == 1 =>
                {
                    self.send_management(task_tag, response::COMPLETE, output);
                    self.is_over |= ends;
                }
                PendingAnswer::Logout { task_tag } if self.surfaced == 0 => {
                    self.send_logout(task_tag, 0, output);
                    self.is_over = true;
                }
                waiting => self.pending.push(waiting),
            }
        }
    }

    fn send_management(&mut self, task_tag: u32, answer: u8, output: &mut Vec<u8>) {
        let mut header = Header::new(opcode::TASK_MANAGEMENT_RESPONSE);
        header.0[2] = answer;
        header.set_task_tag(task_tag);
        self.number(&mut header, true);
        self.append(&mut header, &[], output);
    }

    fn send_logout(&mut self, task_tag: u32, answer: u8, output: &mut Vec<u8>) {
        let mut header = Header::new(opcode::LOGOUT_RESPONSE);
        header.0[2] = answer;
        header.set_task_tag(task_tag);
        header
            .set_u16(40, self.parameters.time_to_wait)
            .set_u16(42, self.parameters.time_to_retain);
        self.number(&mut header, true);
        self.append(&mut header, &[], output);
    }
}
