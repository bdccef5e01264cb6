//! Get Features and Set Features (NVMe Base 2.0 §5.27). Nothing is saved over a reset.

use super::admin::Answer;
use super::controller::{Controller, ControllerKind};
use super::events::Event;
use super::io::Demand;
use crate::{Direction, Status, SubmissionEntry};

const ARBITRATION: u8 = 0x01;
const POWER_MANAGEMENT: u8 = 0x02;
const TEMPERATURE_THRESHOLD: u8 = 0x04;
const ERROR_RECOVERY: u8 = 0x05;
pub(super) const VOLATILE_WRITE_CACHE: u8 = 0x06;
const NUMBER_OF_QUEUES: u8 = 0x07;
const INTERRUPT_COALESCING: u8 = 0x08;
const INTERRUPT_VECTOR: u8 = 0x09;
const WRITE_ATOMICITY: u8 = 0x0A;
const ASYNC_EVENTS: u8 = 0x0B;
pub(super) const KEEP_ALIVE_TIMER: u8 = 0x0F;
const HOST_BEHAVIOR: u8 = 0x16;
const COMMAND_SET_PROFILE: u8 = 0x19;
const HOST_IDENTIFIER: u8 = 0x81;
pub(super) const RESERVATION_NOTICE_MASK: u8 = 0x82;
pub(super) const RESERVATION_PERSISTENCE: u8 = 0x83;

const HOST_BEHAVIOR_LENGTH: usize = 512;
pub(super) const SAVE: u32 = 1 << 31;

/// Values that the host set. Those that change nothing here are kept so that they read back.
#[derive(Default)]
pub(super) struct Features {
    plain: [u32; 0x20],
    host_behavior: Vec<u8>,
}

impl Features {
    /// Data that Set Features brings.
    pub(super) fn demand_to_set(entry: &SubmissionEntry) -> Demand {
        match entry.dword(10) as u8 {
            HOST_BEHAVIOR => Demand::exactly(Direction::ToController, HOST_BEHAVIOR_LENGTH),
            _ => Demand::NONE,
        }
    }

    /// Data that Get Features returns.
    pub(super) fn demand_to_get(entry: &SubmissionEntry) -> Demand {
        match entry.dword(10) as u8 {
            HOST_BEHAVIOR | HOST_IDENTIFIER => Demand::at_least(Direction::ToHost, 0),
            _ => Demand::NONE,
        }
    }

    /// The value of feature 0Bh.
    pub(super) fn async_events(&self) -> u32 {
        self.plain[usize::from(ASYNC_EVENTS)]
    }

    /// Sets a feature; returns completion dword 0.
    pub(super) fn set(
        &mut self,
        entry: &SubmissionEntry,
        data: &[u8],
        kind: ControllerKind,
        controller: &Controller,
        io_queues_max: u16,
    ) -> Result<u32, Status> {
        let (feature, value) = (entry.dword(10) as u8, entry.dword(11));
        if entry.dword(10) & SAVE != 0 {
            return Err(Status::feature_not_saveable());
        }
        match (kind, feature) {
            (_, ASYNC_EVENTS) => self.plain[usize::from(ASYNC_EVENTS)] = value & reportable(kind),
            (ControllerKind::Discovery, _) => return Err(Status::invalid_field()),
            (ControllerKind::Io, NUMBER_OF_QUEUES) => {
                return set_queues(value, controller, io_queues_max);
            }
            (ControllerKind::Io, HOST_IDENTIFIER) => return Err(Status::command_sequence_error()),
            (ControllerKind::Io, HOST_BEHAVIOR) => self.host_behavior = data.to_vec(),
            (ControllerKind::Io, VOLATILE_WRITE_CACHE | COMMAND_SET_PROFILE | POWER_MANAGEMENT)
                if value == 0 => {}
            (ControllerKind::Io, feature) if is_plain(feature) => {
                self.plain[usize::from(feature)] = value
            }
            (ControllerKind::Io, _) => return Err(Status::invalid_field()),
        }
        Ok(0)
    }

    /// Reads a feature's current value.
    pub(super) fn get(
        &self,
        entry: &SubmissionEntry,
        kind: ControllerKind,
        controller: &Controller,
    ) -> Result<Answer, Status> {
        let feature = entry.dword(10) as u8;
        match (kind, feature) {
            (_, ASYNC_EVENTS) => Ok(Answer::Result(self.async_events())),
            (ControllerKind::Discovery, _) => Err(Status::invalid_field()),
            (ControllerKind::Io, NUMBER_OF_QUEUES) => {
                Ok(Answer::Result(queues_result(controller.io_queues_granted())))
            }
            (ControllerKind::Io, VOLATILE_WRITE_CACHE | COMMAND_SET_PROFILE | POWER_MANAGEMENT) => {
                Ok(Answer::Result(0))
            }
            (ControllerKind::Io, HOST_BEHAVIOR) => {
                let mut behavior = self.host_behavior.clone();
                behavior.resize(HOST_BEHAVIOR_LENGTH, 0);
                Ok(Answer::Data(behavior))
            }
            // Fabrics hosts have 128-bit identifiers and must ask for those (EXHID).
            (ControllerKind::Io, HOST_IDENTIFIER) if entry.dword(11) & 1 == 1 => {
                Ok(Answer::Data(controller.association().host_id.to_vec()))
            }
            (ControllerKind::Io, feature) if is_plain(feature) => {
                Ok(Answer::Result(self.plain[usize::from(feature)]))
            }
            (ControllerKind::Io, _) => Err(Status::invalid_field()),
        }
    }
}

/// Every feature of a controller with namespaces, and whether it is a namespace's.
pub(super) fn supported_features() -> impl Iterator<Item = (u8, bool)> {
    let of_controller = [
        ARBITRATION,
        POWER_MANAGEMENT,
        TEMPERATURE_THRESHOLD,
        ERROR_RECOVERY,
        VOLATILE_WRITE_CACHE,
        NUMBER_OF_QUEUES,
        INTERRUPT_COALESCING,
        INTERRUPT_VECTOR,
        WRITE_ATOMICITY,
        ASYNC_EVENTS,
        KEEP_ALIVE_TIMER,
        HOST_BEHAVIOR,
        COMMAND_SET_PROFILE,
        HOST_IDENTIFIER,
    ];
    let of_namespace = [RESERVATION_NOTICE_MASK, RESERVATION_PERSISTENCE];
    of_controller
        .map(|feature| (feature, false))
        .into_iter()
        .chain(of_namespace.map(|feature| (feature, true)))
}

fn is_plain(feature: u8) -> bool {
    let known = [
        ARBITRATION,
        TEMPERATURE_THRESHOLD,
        ERROR_RECOVERY,
        INTERRUPT_COALESCING,
        INTERRUPT_VECTOR,
        WRITE_ATOMICITY,
    ];
    known.contains(&feature)
}

/// Events that a controller of this kind can report.
pub(super) fn reportable(kind: ControllerKind) -> u32 {
    match kind {
        ControllerKind::Io => Event::Namespaces.enable_bit() | Event::Ana.enable_bit(),
        ControllerKind::Discovery => Event::Discovery.enable_bit(),
    }
}

fn set_queues(value: u32, controller: &Controller, limit: u16) -> Result<u32, Status> {
    let (submission, completion) = (value as u16, (value >> 16) as u16);
    if submission == u16::MAX || completion == u16::MAX {
        return Err(Status::invalid_field());
    }
    if controller.has_io_queues() {
        return Err(Status::command_sequence_error());
    }
    let granted = (submission.min(completion) + 1).min(limit);
    controller.grant_io_queues(granted);
    Ok(queues_result(granted))
}

fn queues_result(granted: u16) -> u32 {
    let zero_based = u32::from(granted.saturating_sub(1));
    zero_based << 16 | zero_based
}
