//! A controller as its connections share it, and their membership in it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use voute_reservation::Notice;

use super::{PortalId, Target, lock};
use crate::{Association, Status};

/// What a controller is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum ControllerKind {
    /// Namespaces of one subsystem.
    Io,
    /// The discovery log.
    Discovery,
}

/// Made by an admin Connect; dead once that connection ends or its keep-alive expires.
pub(crate) struct Controller {
    association: Arc<Association>,
    kind: ControllerKind,
    portal: PortalId,
    alive: AtomicBool,
    enabled: AtomicBool,
    /// Rises at each reset: I/O queues of an earlier one close.
    session: AtomicU64,
    io_queues_granted: AtomicU16,
    /// Bit per queue identifier that a connection has.
    queues: AtomicU64,
    /// Connections that belong to it; changed under the target's controller lock.
    members: AtomicUsize,
    /// Among those of its host; changed under the target's controller lock.
    counted: AtomicBool,
    /// A connection went away while the volume layer still held requests of it.
    abandoned: AtomicBool,
    has_notices: AtomicBool,
    /// Of which namespace, by UUID.
    notices: Mutex<VecDeque<([u8; 16], Notice)>>,
}

/// Most notices that wait for the admin connection; the newest are dropped beyond.
const NOTICES_MAX: usize = 1024;

impl Controller {
    pub(crate) fn new(
        association: Arc<Association>,
        kind: ControllerKind,
        portal: PortalId,
    ) -> Self {
        Controller {
            association,
            kind,
            portal,
            alive: AtomicBool::new(true),
            enabled: AtomicBool::new(false),
            session: AtomicU64::new(0),
            io_queues_granted: AtomicU16::new(0),
            queues: AtomicU64::new(1),
            members: AtomicUsize::new(1),
            counted: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            has_notices: AtomicBool::new(false),
            notices: Mutex::default(),
        }
    }

    pub(crate) fn association(&self) -> &Arc<Association> {
        &self.association
    }

    pub(crate) fn kind(&self) -> ControllerKind {
        self.kind
    }

    /// Leaves a notice for the admin connection.
    pub(crate) fn notify(&self, uuid: [u8; 16], notice: Notice) {
        let mut notices = lock(&self.notices);
        if notices.len() < NOTICES_MAX {
            notices.push_back((uuid, notice));
            self.has_notices.store(true, Ordering::Release);
        }
    }

    pub(crate) fn take_notices(&self) -> VecDeque<([u8; 16], Notice)> {
        if !self.has_notices.swap(false, Ordering::AcqRel) {
            return VecDeque::new();
        }
        std::mem::take(&mut *lock(&self.notices))
    }

    /// It counts among the controllers of its host. Under the target's controller lock.
    pub(super) fn count(&self) {
        self.counted.store(true, Ordering::Release);
    }

    pub(super) fn is_counted(&self) -> bool {
        self.counted.load(Ordering::Acquire)
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Acquire)
    }

    pub(crate) fn kill(&self) {
        self.alive.store(false, Ordering::Release);
    }

    pub(crate) fn enable(&self) {
        self.enabled.store(true, Ordering::Release);
    }

    /// Ends every I/O queue of the controller (reset or shutdown).
    pub(crate) fn disable(&self) {
        self.enabled.store(false, Ordering::Release);
        self.session.fetch_add(1, Ordering::AcqRel);
    }

    pub(crate) fn grant_io_queues(&self, count: u16) {
        self.io_queues_granted.store(count, Ordering::Release);
    }

    pub(crate) fn io_queues_granted(&self) -> u16 {
        self.io_queues_granted.load(Ordering::Acquire)
    }

    pub(crate) fn has_io_queues(&self) -> bool {
        self.queues.load(Ordering::Acquire) & !1 != 0
    }
}

/// A connection's part in a controller. As long as any exists, or requests of one were abandoned,
/// the controller's identifier is not given out again.
pub(crate) struct Membership {
    target: Arc<Target>,
    controller: Arc<Controller>,
    queue: u16,
    /// Whether the queue identifier is its own; not yet while its host has to prove itself.
    holds_queue: bool,
    session: u64,
    /// Requests in the hands of the volume layer.
    pub(crate) surfaced: usize,
}

impl Membership {
    /// The admin queue's membership of the controller that its Connect made.
    pub(crate) fn of_admin(target: Arc<Target>, controller: Arc<Controller>) -> Self {
        Membership { target, controller, queue: 0, holds_queue: true, session: 0, surfaced: 0 }
    }

    /// An I/O queue joins controller `id`.
    ///
    /// # Errors
    /// The status for Connect, and the offset of the offending field if it is a parameter.
    pub(crate) fn join(target: &Arc<Target>, request: &JoinRequest<'_>) -> Result<Self, JoinError> {
        let controllers = lock(&target.controllers);
        let controller =
            controllers.by_id.get(&request.controller).ok_or(JoinError::ControllerId)?;
        let association = controller.association();
        if !controller.is_alive()
            || controller.kind != ControllerKind::Io
            || controller.portal != request.portal
        {
            return Err(JoinError::ControllerId);
        }
        if association.subsystem != request.subsystem {
            return Err(JoinError::Subsystem);
        }
        if association.host != request.host || association.host_id != request.host_id {
            return Err(JoinError::Host);
        }
        if !controller.enabled.load(Ordering::Acquire) {
            return Err(JoinError::Refused(Status::command_sequence_error()));
        }
        if request.queue > controller.io_queues_granted() {
            return Err(JoinError::QueueId);
        }
        // At most 63 are granted.
        let bit = 1 << request.queue;
        if controller.queues.load(Ordering::Acquire) & bit != 0 {
            return Err(JoinError::QueueId);
        }
        if request.is_proven {
            controller.queues.fetch_or(bit, Ordering::AcqRel);
        }
        controller.members.fetch_add(1, Ordering::AcqRel);
        let session = controller.session.load(Ordering::Acquire);
        let (target, controller) = (target.clone(), controller.clone());
        let (queue, holds_queue) = (request.queue, request.is_proven);
        Ok(Membership { target, controller, queue, holds_queue, session, surfaced: 0 })
    }

    /// Its host has proven itself; whether it may stay: a host has so many controllers, and a controller
    /// each queue once.
    pub(crate) fn prove(&mut self) -> bool {
        if self.is_admin() {
            return self.target.count_controller(&self.controller);
        }
        if !self.holds_queue {
            let bit = 1 << self.queue;
            self.holds_queue = self.controller.queues.fetch_or(bit, Ordering::AcqRel) & bit == 0;
        }
        self.holds_queue
    }

    pub(crate) fn controller(&self) -> &Arc<Controller> {
        &self.controller
    }

    pub(crate) fn is_admin(&self) -> bool {
        self.queue == 0
    }

    /// Whether the controller lives and was not reset since this queue joined.
    pub(crate) fn is_current(&self) -> bool {
        let same_session =
            self.is_admin() || self.controller.session.load(Ordering::Acquire) == self.session;
        same_session && self.controller.is_alive()
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        if self.surfaced > 0 {
            self.controller.abandoned.store(true, Ordering::Release);
        }
        if self.is_admin() && self.controller.is_alive() {
            self.controller.kill();
            self.target.raise_attention();
        }
        let mut controllers = lock(&self.target.controllers);
        if self.holds_queue {
            self.controller.queues.fetch_and(!(1 << self.queue), Ordering::AcqRel);
        }
        let was_last = self.controller.members.fetch_sub(1, Ordering::AcqRel) == 1;
        if was_last && !self.controller.abandoned.load(Ordering::Acquire) {
            controllers.forget(&self.controller);
        }
    }
}

/// What an I/O Connect says.
pub(crate) struct JoinRequest<'a> {
    pub(crate) controller: u16,
    pub(crate) queue: u16,
    pub(crate) portal: PortalId,
    pub(crate) subsystem: &'a str,
    pub(crate) host: &'a str,
    pub(crate) host_id: [u8; 16],
    /// Whether it is known that it is this host.
    pub(crate) is_proven: bool,
}

/// Why an I/O queue may not join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JoinError {
    ControllerId,
    Subsystem,
    Host,
    QueueId,
    Refused(Status),
}
