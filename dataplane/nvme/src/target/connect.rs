//! Connect: how a connection becomes a queue (NVMe over Fabrics §3.3, figure 547 of Base 2.0).

use std::sync::Arc;

use super::admin::AdminState;
use super::connection::{Peer, Queue, TargetConnection};
use super::controller::{Controller, ControllerKind, JoinError, JoinRequest, Membership};
use super::io::Demand;
use super::states::Role;
use crate::directory::is_nqn;
use crate::little_endian::{array_at, text_of, u16_at};
use crate::{
    Association, DISCOVERY_NQN, Direction, Directory, HostView, Status, SubmissionEntry,
    admin_opcode, fabrics_type,
};

const CONNECT_DATA_LENGTH: usize = 1024;
/// The controller identifier that asks for a new controller.
const ANY_CONTROLLER: u16 = 0xFFFF;
/// CATTR bit 2: the host gives up submission queue flow control.
const ATTRIBUTE_NO_FLOW_CONTROL: u8 = 1 << 2;

/// Before Connect nothing else is allowed.
pub(super) fn demand(entry: &SubmissionEntry) -> Result<Demand, Status> {
    if entry.opcode() == admin_opcode::FABRICS && entry.fabrics_type() == fabrics_type::CONNECT {
        Ok(Demand::exactly(Direction::ToController, CONNECT_DATA_LENGTH))
    } else {
        Err(Status::command_sequence_error())
    }
}

/// A refusal: the status, and for invalid parameters where the parameter stands (IATTR and IPO).
struct Refusal {
    status: Status,
    result: u32,
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Refusal { status, result: 0 }
    }
}

impl Refusal {
    fn in_command(offset: u16) -> Self {
        Refusal { status: Status::connect_invalid_parameters(), result: offset.into() }
    }

    fn in_data(offset: u16) -> Self {
        Refusal {
            status: Status::connect_invalid_parameters(),
            result: 1 << 16 | u32::from(offset),
        }
    }
}

const COMMAND_QUEUE_ID: u16 = 42;
const COMMAND_QUEUE_SIZE: u16 = 44;
const DATA_CONTROLLER: u16 = 16;
const DATA_SUBSYSTEM: u16 = 256;
const DATA_HOST: u16 = 512;

/// What a Connect command and its data say.
struct ConnectRequest<'a> {
    queue: u16,
    depth: u16,
    flow_control: bool,
    keep_alive_ms: u32,
    host_id: [u8; 16],
    controller: u16,
    subsystem: &'a str,
    host: &'a str,
}

impl<'a> ConnectRequest<'a> {
    fn read(entry: &SubmissionEntry, data: &'a [u8], depth_max: u16) -> Result<Self, Refusal> {
        if u16_at(&entry.0, 40) != 0 {
            return Err(Status::connect_incompatible_format().into());
        }
        let size = u16_at(&entry.0, usize::from(COMMAND_QUEUE_SIZE));
        if size == 0 || size >= depth_max {
            return Err(Refusal::in_command(COMMAND_QUEUE_SIZE));
        }
        let name = |offset: u16| {
            let start = usize::from(offset);
            let name = data.get(start..start + 256).and_then(text_of);
            name.filter(|name| is_nqn(name)).ok_or(Refusal::in_data(offset))
        };
        Ok(ConnectRequest {
            queue: u16_at(&entry.0, usize::from(COMMAND_QUEUE_ID)),
            depth: size + 1,
            flow_control: entry.0[46] & ATTRIBUTE_NO_FLOW_CONTROL == 0,
            keep_alive_ms: entry.dword(12),
            host_id: array_at(data, 0),
            controller: u16_at(data, usize::from(DATA_CONTROLLER)),
            subsystem: name(DATA_SUBSYSTEM)?,
            host: name(DATA_HOST)?,
        })
    }
}

/// The host's name as it stands in Connect's data, NQN or not.
fn host_of(data: &[u8]) -> &str {
    let from = usize::from(DATA_HOST);
    data.get(from..from + 256).and_then(text_of).unwrap_or("?")
}

impl TargetConnection {
    pub(super) fn connect(&mut self, index: u16) {
        let entry = self.slots.at(index).entry;
        let data = self.take_payload(index);
        let depth_max = self.target.config().limits.queue_depth_max;
        let outcome = ConnectRequest::read(&entry, &data, depth_max)
            .and_then(|request| self.establish(&request));
        match outcome {
            Ok(controller) => self.respond_connected(index, controller),
            Err(Refusal { status, result }) => {
                self.target.note_refusal(|refusals| {
                    refusals.connects += 1;
                    refusals.last = Some(format!("{}: {status}", host_of(&data)));
                });
                self.respond(index, status, result, 0);
            }
        }
    }

    /// Makes or joins the controller; returns its identifier.
    fn establish(&mut self, request: &ConnectRequest<'_>) -> Result<u16, Refusal> {
        let link = self.target.config().link_nqn.as_deref();
        if link == Some(request.subsystem) {
            return self.establish_link(request);
        }
        let published = self.target.published();
        let directory = published.directory.ok_or(Status::connect_controller_busy())?;
        self.adopt_queue(request);
        let controller = match (request.queue, request.subsystem) {
            (0, DISCOVERY_NQN) => {
                self.establish_discovery(request, &directory, published.generation)?
            }
            (0, _) => self.establish_admin(request, &directory)?,
            (_, _) => self.establish_io(request, &directory)?,
        };
        self.follow_from(published.generation);
        Ok(controller)
    }

    fn adopt_queue(&mut self, request: &ConnectRequest<'_>) {
        self.queue = Queue { depth: request.depth, head: 0, flow_control: request.flow_control };
    }

    fn establish_link(&mut self, request: &ConnectRequest<'_>) -> Result<u16, Refusal> {
        if request.queue != 1 {
            return Err(Refusal::in_command(COMMAND_QUEUE_ID));
        }
        if request.controller != ANY_CONTROLLER {
            return Err(Refusal::in_data(DATA_CONTROLLER));
        }
        self.adopt_queue(request);
        self.peer = Peer::Link { name: Arc::from(request.host), surfaced: 0 };
        self.go_live(Role::Link);
        Ok(ANY_CONTROLLER)
    }

    fn establish_admin(
        &mut self,
        request: &ConnectRequest<'_>,
        directory: &Directory,
    ) -> Result<u16, Refusal> {
        let subsystem =
            directory.subsystem(request.subsystem).ok_or(Refusal::in_data(DATA_SUBSYSTEM))?;
        let view = subsystem.hosts.get(request.host).ok_or(Status::connect_invalid_host())?.clone();
        self.guard(directory, request.subsystem, request.host);
        let controller = self.create_controller(request, ControllerKind::Io, view)?;
        let state = AdminState::new(
            ControllerKind::Io,
            request.keep_alive_ms,
            self.now,
            &self.target.config().limits,
        );
        self.admin = Some(Box::new(state));
        self.go_live(Role::Admin);
        Ok(controller)
    }

    fn establish_discovery(
        &mut self,
        request: &ConnectRequest<'_>,
        directory: &Directory,
        generation: u64,
    ) -> Result<u16, Refusal> {
        let view = Arc::new(HostView::default());
        let controller = self.create_controller(request, ControllerKind::Discovery, view)?;
        let limits = &self.target.config().limits;
        let mut state =
            AdminState::new(ControllerKind::Discovery, request.keep_alive_ms, self.now, limits);
        state.discovery.update(directory, request.host, self.portal, generation);
        self.admin = Some(Box::new(state));
        self.go_live(Role::Discovery);
        Ok(controller)
    }

    fn create_controller(
        &mut self,
        request: &ConnectRequest<'_>,
        kind: ControllerKind,
        view: Arc<HostView>,
    ) -> Result<u16, Refusal> {
        if request.controller != ANY_CONTROLLER {
            return Err(Refusal::in_data(DATA_CONTROLLER));
        }
        let portal = self.portal;
        let make = |controller| {
            let (subsystem, host) = (request.subsystem.to_owned(), request.host.to_owned());
            let association = Association { subsystem, host, host_id: request.host_id, controller };
            Controller::new(Arc::new(association), kind, portal)
        };
        let controller = self
            .target
            .create_controller(kind, request.host, !self.is_guarded(), make)
            .ok_or(Status::connect_controller_busy())?;
        let id = controller.association().controller;
        let membership = Membership::of_admin(self.target.clone(), controller);
        self.peer = Peer::Host { membership, view };
        Ok(id)
    }

    fn establish_io(
        &mut self,
        request: &ConnectRequest<'_>,
        directory: &Directory,
    ) -> Result<u16, Refusal> {
        let view = directory
            .host_view(request.subsystem, request.host)
            .ok_or(Status::connect_invalid_host())?
            .clone();
        self.guard(directory, request.subsystem, request.host);
        let join = JoinRequest {
            controller: request.controller,
            queue: request.queue,
            portal: self.portal,
            subsystem: request.subsystem,
            host: request.host,
            host_id: request.host_id,
            is_proven: !self.is_guarded(),
        };
        let membership = Membership::join(&self.target, &join).map_err(|error| match error {
            JoinError::ControllerId => Refusal::in_data(DATA_CONTROLLER),
            JoinError::Subsystem => Refusal::in_data(DATA_SUBSYSTEM),
            JoinError::Host => Refusal::in_data(DATA_HOST),
            JoinError::QueueId => Refusal::in_command(COMMAND_QUEUE_ID),
            JoinError::Refused(status) => status.into(),
        })?;
        self.peer = Peer::Host { membership, view };
        self.go_live(Role::Io);
        Ok(request.controller)
    }
}
