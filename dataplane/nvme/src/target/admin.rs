//! Admin commands and controller properties (NVMe Base 2.0 §3.1.3, §5).

use std::sync::Arc;
use std::time::Duration;

use super::TargetLimits;
use super::connection::{Peer, TargetConnection};
use super::controller::ControllerKind;
use super::events::{Event, Events};
use super::features::Features;
use super::identify::Identity;
use super::io::{self, Demand};
use super::log::{self, DiscoveryLog, LogRequest};
use super::reservation::Notices;
use super::slots::Stage;
use voute_reservation::Request;

use crate::{
    Direction, Directory, HOST_TRANSFER_MAX, HostView, Operation, Status, SubmissionEntry,
    admin_opcode, fabrics_type,
};

/// Granularity of the keep-alive timer, milliseconds: KAS is 1.
const KEEP_ALIVE_STEP_MS: u64 = 100;
/// Shorter keep-alive times are raised to this, milliseconds.
const KEEP_ALIVE_MS_MIN: u64 = 1000;

/// What an admin connection keeps besides its queue.
pub(super) struct AdminState {
    pub(super) kind: ControllerKind,
    configuration: u32,
    status: u32,
    keep_alive: Option<Duration>,
    /// A discovery controller without keep-alive goes when idle this long.
    idle: Option<Duration>,
    last_command: Duration,
    pub(super) features: Features,
    pub(super) events: Events,
    pub(super) discovery: DiscoveryLog,
    pub(super) notices: Notices,
}

mod property {
    pub(super) const CAPABILITIES: u32 = 0x00;
    pub(super) const VERSION: u32 = 0x08;
    pub(super) const CONFIGURATION: u32 = 0x14;
    pub(super) const STATUS: u32 = 0x1C;
    pub(super) const SUBSYSTEM_RESET: u32 = 0x20;
}

/// Version that the controller conforms to: 2.0.0.
pub(super) const VERSION: u32 = 0x0002_0000;

const CONFIGURATION_ENABLE: u32 = 1;
const CONFIGURATION_SHUTDOWN: u32 = 3 << 14;
const STATUS_READY: u32 = 1;
const STATUS_FATAL: u32 = 1 << 1;
const STATUS_SHUTDOWN_COMPLETE: u32 = 2 << 2;

impl AdminState {
    pub(super) fn new(
        kind: ControllerKind,
        keep_alive_ms: u32,
        now: Duration,
        limits: &TargetLimits,
    ) -> Self {
        AdminState {
            kind,
            configuration: 0,
            status: 0,
            keep_alive: keep_alive(keep_alive_ms),
            idle: (kind == ControllerKind::Discovery).then_some(limits.discovery_idle),
            last_command: now,
            features: Features::default(),
            events: Events::default(),
            discovery: DiscoveryLog::default(),
            notices: Notices::default(),
        }
    }

    /// When the controller dies unless a command comes.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.keep_alive.or(self.idle).map(|time| self.last_command + time)
    }

    /// A command came: the controller lives on.
    pub(super) fn hear(&mut self, now: Duration) {
        self.last_command = now;
    }

    fn keep_alive_ms(&self) -> u32 {
        self.keep_alive.map_or(0, |time| u32::try_from(time.as_millis()).unwrap_or(u32::MAX))
    }
}

/// The keep-alive time that a host's request turns into; 0 means none.
fn keep_alive(requested_ms: u32) -> Option<Duration> {
    let rounded =
        u64::from(requested_ms).next_multiple_of(KEEP_ALIVE_STEP_MS).max(KEEP_ALIVE_MS_MIN);
    (requested_ms > 0).then_some(Duration::from_millis(rounded))
}

fn capabilities(limits: &TargetLimits) -> u64 {
    let queue_entries_max = u64::from(limits.queue_depth_max - 1);
    let contiguous_queues = 1 << 16;
    let ready_within_half_seconds = 20 << 24;
    let nvm_command_set = 1 << 37;
    let command_set_selection = 1 << 43;
    queue_entries_max
        | contiguous_queues
        | ready_within_half_seconds
        | nvm_command_set
        | command_set_selection
}

/// Which data an admin command moves.
pub(super) fn demand(entry: &SubmissionEntry) -> Result<Demand, Status> {
    match entry.opcode() {
        admin_opcode::FABRICS => match entry.fabrics_type() {
            fabrics_type::PROPERTY_GET | fabrics_type::PROPERTY_SET => Ok(Demand::NONE),
            fabrics_type::CONNECT => Err(Status::command_sequence_error()),
            fabrics_type::DISCONNECT => Err(Status::invalid_queue_type()),
            _ => Err(Status::invalid_opcode()),
        },
        _ if entry.fuse() != Some(crate::Fuse::Normal) => Err(Status::invalid_field()),
        admin_opcode::IDENTIFY => Ok(Demand::at_least(Direction::ToHost, 0)),
        admin_opcode::GET_LOG_PAGE => match LogRequest::read(entry).length {
            length if length > HOST_TRANSFER_MAX => Err(Status::invalid_field()),
            length => Ok(Demand::at_least(Direction::ToHost, length)),
        },
        admin_opcode::SET_FEATURES => Ok(Features::demand_to_set(entry)),
        admin_opcode::GET_FEATURES => Ok(Features::demand_to_get(entry)),
        _ => Ok(Demand::NONE),
    }
}

/// What an admin command answers.
pub(super) enum Answer {
    Result(u32),
    Wide(u64),
    Data(Vec<u8>),
    /// Event requests wait.
    Later,
}

impl TargetConnection {
    pub(super) fn execute_admin(&mut self, index: u16) {
        let entry = self.slots.at(index).entry;
        let now = self.now;
        if let Some(admin) = &mut self.admin {
            admin.hear(now);
        }
        if self.asks_volume(&entry) {
            // Surfaced by `next_request`.
            self.slots.at(index).stage = Stage::Ready;
            return self.queue_ready(index);
        }
        match self.answer(index, &entry) {
            Ok(Answer::Result(result)) => self.respond(index, Status::success(), result, 0),
            Ok(Answer::Wide(value)) => {
                self.respond(index, Status::success(), value as u32, (value >> 32) as u32)
            }
            Ok(Answer::Data(mut data)) => {
                data.truncate(self.slots.at(index).reply_max);
                self.respond_data(index, &data, 0, 0);
            }
            Ok(Answer::Later) => {}
            Err(status) => self.respond(index, status, 0, 0),
        }
        self.deliver_events();
    }

    fn answer(&mut self, index: u16, entry: &SubmissionEntry) -> Result<Answer, Status> {
        let Some(admin) = &mut self.admin else { return Err(Status::internal_error()) };
        if entry.opcode() == admin_opcode::FABRICS {
            return match entry.fabrics_type() {
                fabrics_type::PROPERTY_GET => self.property_get(entry),
                _ => self.property_set(entry),
            };
        }
        if admin.status & STATUS_READY == 0 {
            return Err(Status::command_sequence_error());
        }
        match entry.opcode() {
            admin_opcode::IDENTIFY => self.identify(entry),
            admin_opcode::GET_LOG_PAGE => self.log_page(entry),
            admin_opcode::SET_FEATURES => self.set_feature(index, entry),
            admin_opcode::GET_FEATURES => self.get_feature(entry),
            admin_opcode::ASYNC_EVENT_REQUEST => {
                admin.events.wait(index)?;
                self.slots.at(index).stage = Stage::AwaitingEvent;
                Ok(Answer::Later)
            }
            admin_opcode::KEEP_ALIVE => Ok(Answer::Result(0)),
            admin_opcode::ABORT => Ok(self.abort(entry)),
            _ => Err(Status::invalid_opcode()),
        }
    }

    fn property_get(&self, entry: &SubmissionEntry) -> Result<Answer, Status> {
        let Some(admin) = &self.admin else { return Err(Status::internal_error()) };
        let is_wide = entry.0[40] & 7 == 1;
        let value = match (entry.dword(11), is_wide) {
            (property::CAPABILITIES, true) => capabilities(&self.target.config().limits),
            (property::VERSION, false) => VERSION.into(),
            (property::CONFIGURATION, false) => admin.configuration.into(),
            (property::STATUS, false) => admin.status.into(),
            // NSSR reads as zero; CAP says that a subsystem cannot be reset.
            (property::SUBSYSTEM_RESET, false) => 0,
            _ => return Err(Status::invalid_field()),
        };
        Ok(Answer::Wide(value))
    }

    fn property_set(&mut self, entry: &SubmissionEntry) -> Result<Answer, Status> {
        let is_wide = entry.0[40] & 7 == 1;
        if entry.dword(11) != property::CONFIGURATION || is_wide {
            return Err(Status::invalid_field());
        }
        self.configure(entry.dword(12));
        Ok(Answer::Result(0))
    }

    /// Applies a new CC: enable, reset (EN 1 to 0) or shutdown (SHN).
    fn configure(&mut self, new: u32) {
        let (Some(admin), Peer::Host { membership, .. }) = (&mut self.admin, &self.peer) else {
            return;
        };
        let old = std::mem::replace(&mut admin.configuration, new);
        let rises = |bits: u32| new & bits != 0 && old & bits == 0;
        let controller = membership.controller().clone();
        if rises(CONFIGURATION_ENABLE) {
            admin.status = if is_acceptable(new) { STATUS_READY } else { STATUS_FATAL };
            if admin.status == STATUS_READY {
                controller.enable();
            }
        }
        let resets = old & CONFIGURATION_ENABLE != 0 && new & CONFIGURATION_ENABLE == 0;
        if resets {
            admin.status = 0;
            admin.features = Features::default();
            admin.events = Events::default();
            admin.notices = Notices::default();
            controller.disable();
            let waiting: Vec<u16> = self.slots.in_stage(Stage::AwaitingEvent).collect();
            waiting.into_iter().for_each(|index| self.slots.release(index));
        }
        if rises(CONFIGURATION_SHUTDOWN)
            && let Some(admin) = &mut self.admin
        {
            admin.status |= STATUS_SHUTDOWN_COMPLETE;
            controller.disable();
        }
        if resets || rises(CONFIGURATION_SHUTDOWN) {
            self.target.raise_attention();
        }
    }

    fn identify(&self, entry: &SubmissionEntry) -> Result<Answer, Status> {
        let (Some(admin), Peer::Host { membership, view }) = (&self.admin, &self.peer) else {
            return Err(Status::internal_error());
        };
        let association = membership.controller().association();
        let published = self.target.published();
        let subsystem = published
            .directory
            .as_ref()
            .and_then(|directory| directory.subsystem(&association.subsystem));
        let serial = subsystem
            .map_or(self.target.config().serial.as_str(), |subsystem| subsystem.serial.as_str());
        let controllers = || self.target.controllers_of(&association.subsystem);
        let identity = Identity {
            config: self.target.config(),
            kind: admin.kind,
            association,
            view,
            serial,
            controllers: &controllers,
        };
        identity.answer(entry).map(Answer::Data)
    }

    fn log_page(&mut self, entry: &SubmissionEntry) -> Result<Answer, Status> {
        let (Some(admin), Peer::Host { view, .. }) = (&mut self.admin, &self.peer) else {
            return Err(Status::internal_error());
        };
        let request = LogRequest::read(entry);
        let page = log::page(&request, admin, view, &self.target.config().firmware)?;
        let cut = request.cut(&page)?;
        if let (Some(event), false) = (Event::of_log(request.page), request.retain_event) {
            admin.events.log_was_read(event);
            if event == Event::Reservation && admin.notices.was_read() {
                admin.events.raise(Event::Reservation);
            }
        }
        Ok(Answer::Data(cut))
    }

    fn set_feature(&mut self, index: u16, entry: &SubmissionEntry) -> Result<Answer, Status> {
        let data = self.take_payload(index);
        let (Some(admin), Peer::Host { membership, view }) = (&mut self.admin, &self.peer) else {
            return Err(Status::internal_error());
        };
        if entry.dword(10) as u8 == super::features::KEEP_ALIVE_TIMER {
            admin.keep_alive = keep_alive(entry.dword(11));
            return Ok(Answer::Result(0));
        }
        let saves = entry.dword(10) & super::features::SAVE != 0;
        if is_notice_mask(entry, admin.kind) && !saves {
            admin.notices.set_mask(entry.namespace(), entry.dword(11), view)?;
            return Ok(Answer::Result(0));
        }
        let config = self.target.config();
        // The cache, if there is one, cannot be turned off.
        if entry.dword(10) as u8 == super::features::VOLATILE_WRITE_CACHE
            && config.has_volatile_cache
        {
            return Err(Status::feature_not_changeable());
        }
        let limit = config.limits.io_queues_max;
        let result =
            admin.features.set(entry, &data, admin.kind, membership.controller(), limit)?;
        admin.events.enable(admin.features.async_events());
        Ok(Answer::Result(result))
    }

    fn get_feature(&self, entry: &SubmissionEntry) -> Result<Answer, Status> {
        let (Some(admin), Peer::Host { membership, view }) = (&self.admin, &self.peer) else {
            return Err(Status::internal_error());
        };
        if entry.dword(10) as u8 == super::features::KEEP_ALIVE_TIMER {
            return Ok(Answer::Result(admin.keep_alive_ms()));
        }
        if is_notice_mask(entry, admin.kind) {
            return admin.notices.mask(entry.namespace(), view).map(Answer::Result);
        }
        if entry.dword(10) as u8 == super::features::VOLATILE_WRITE_CACHE
            && self.target.config().has_volatile_cache
        {
            return Ok(Answer::Result(1));
        }
        admin.features.get(entry, admin.kind, membership.controller())
    }

    /// Whether an admin command is for the volume to answer: whether reservations persist (feature
    /// 83h).
    fn asks_volume(&self, entry: &SubmissionEntry) -> bool {
        let is_ready = self.admin.as_ref().is_some_and(|admin| {
            admin.kind == ControllerKind::Io && admin.status & STATUS_READY != 0
        });
        is_ready
            && matches!(entry.opcode(), admin_opcode::SET_FEATURES | admin_opcode::GET_FEATURES)
            && entry.dword(10) as u8 == super::features::RESERVATION_PERSISTENCE
    }

    /// The request for the volume that an admin command makes; `None` for all others.
    pub(super) fn volume_request(
        &self,
        entry: &SubmissionEntry,
    ) -> Option<Result<Operation, Status>> {
        let Peer::Host { view, .. } = &self.peer else { return None };
        if !self.asks_volume(entry) {
            return None;
        }
        let saves = entry.dword(10) & super::features::SAVE != 0;
        let request = match entry.opcode() {
            admin_opcode::GET_FEATURES => Request::Report,
            _ if saves => return Some(Err(Status::feature_not_saveable())),
            _ => Request::SetPersistence(entry.dword(11) & 1 != 0),
        };
        let served = io::served_namespace(view, entry);
        Some(served.map(|_| Operation::Reservation(request)))
    }

    /// Takes what other hosts' reservations mean for this one.
    pub(super) fn take_notices(&mut self) {
        let (Some(admin), Peer::Host { membership, view }) = (&mut self.admin, &self.peer) else {
            return;
        };
        let mut tells = false;
        for (uuid, notice) in membership.controller().take_notices() {
            let seen = view.namespaces().iter().find(|namespace| namespace.uuid == uuid);
            tells |= seen.is_some_and(|seen| admin.notices.add(seen.nsid, notice));
        }
        if tells {
            admin.events.raise(Event::Reservation);
            self.deliver_events();
        }
    }

    /// Best effort: event requests are aborted, everything else runs on ("not aborted", bit 0 set).
    fn abort(&mut self, entry: &SubmissionEntry) -> Answer {
        let (queue, command_id) = (entry.dword(10) as u16, (entry.dword(10) >> 16) as u16);
        let Some(admin) = &mut self.admin else { return Answer::Result(1) };
        let waiting = self.slots.in_stage(Stage::AwaitingEvent);
        let found = waiting.into_iter().find(|index| {
            queue == 0
                && self.slots.get(*index).is_some_and(|slot| slot.entry.command_id() == command_id)
        });
        let Some(index) = found else { return Answer::Result(1) };
        admin.events.stop_waiting(index);
        self.respond(index, Status::abort_requested(), 0, 0);
        Answer::Result(0)
    }

    /// Answers event requests with what happened.
    pub(super) fn deliver_events(&mut self) {
        while let Some((index, result)) =
            self.admin.as_mut().and_then(|admin| admin.events.deliverable())
        {
            self.respond(index, Status::success(), result, 0);
        }
    }

    /// The directory gave this host other namespaces or states.
    pub(super) fn namespaces_changed(&mut self, old: &HostView, new: &HostView) {
        if let Some(admin) = &mut self.admin {
            admin.events.compare(old, new);
        }
        self.deliver_events();
    }

    /// The directory changed under a discovery controller.
    pub(super) fn discovery_changed(&mut self, directory: Arc<Directory>, generation: u64) {
        let (Some(admin), Peer::Host { membership, .. }) = (&mut self.admin, &self.peer) else {
            return;
        };
        let host = &membership.controller().association().host;
        if admin.discovery.update(&directory, host, self.portal, generation) {
            admin.events.raise(Event::Discovery);
        }
        self.deliver_events();
    }
}

fn is_notice_mask(entry: &SubmissionEntry, kind: ControllerKind) -> bool {
    kind == ControllerKind::Io && entry.dword(10) as u8 == super::features::RESERVATION_NOTICE_MASK
}

/// Whether CC asks only for what CAP offers: 64-byte and 16-byte entries, 4 KiB pages, the NVM
/// command set alone or all command sets.
fn is_acceptable(configuration: u32) -> bool {
    let field = |shift: u32, mask: u32| configuration >> shift & mask;
    let command_set = matches!(field(4, 7), 0 | 6);
    let entry_sizes = field(16, 15) == 6 && field(20, 15) == 4;
    command_set && entry_sizes && field(7, 15) == 0 && field(11, 7) == 0
}
