//! One association with a target: its two connections, and orders on their way.

//!
//! ```text
//! open ──no access, or in transition──► barred: commands wait, none is sent ──access──► open
//!   └─────access elsewhere only─────────► leaving: once no command is out, another path goes on
//! ```

use super::job::{Job, Limits, Progress, fault_of};
use super::paths::Paths;
use super::wire::Wire;
use super::{RemoteError, RemoteFacts, Shared, Target};
use crate::mailbox::{Order, OrderKind, wait_for};
use slab::Slab;
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use voute_buffer::Buffer;
use voute_mirror::{DeviceFault, DeviceResult, TRANSFER_MAX};
use voute_nvme::{
    AnaState, Attachment, AttachmentUpdate, ControllerFacts, InitiatorConnection, InitiatorEvent,
    RemoteNamespace, Status, Tag,
};

/// How long to sleep when nothing is due.
const IDLE_MAX: Duration = Duration::from_secs(1);
/// ONCS: Write Zeroes is supported.
const HAS_WRITE_ZEROES: u16 = 1 << 3;

/// How long a namespace may be without access, in transition or told so by its commands, before the
/// session is given up; arrays say of themselves that they need some 10 s (ANATT).
const BARRED_MAX: Duration = Duration::from_secs(12);

/// Whether commands are sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Access {
    Open,
    Barred,
    Leaving,
}

/// How a session ended.
pub(super) enum Ended {
    /// The device is not wanted any more, and has answered all.
    Unwanted,
    /// Not here any more, and the outcome of all that was written is known: these go on elsewhere.
    Moved(RemoteError, Vec<Job>),
    /// It may be that something is still written.
    Lost(RemoteError),
}

/// An association that is up, or coming up.
pub(super) struct Session {
    start: Instant,
    address: SocketAddr,
    namespace_id: [u8; 16],
    /// The host that the target sees.
    host: String,
    admin: Wire,
    attachment: Attachment,
    controller: Option<ControllerFacts>,
    namespaces: Option<Vec<RemoteNamespace>>,
    /// The I/O connection and the namespace, once the controller is up.
    media: Option<(Wire, RemoteNamespace)>,
    is_io_connected: bool,
    has_write_zeroes: bool,
    jobs: Slab<Job>,
    job_of: HashMap<Tag, usize>,
    /// Jobs whose next command found no room, or no access.
    waiting: VecDeque<usize>,
    access: Access,
    /// Since when the target says that there is no access.
    barred_since: Option<Duration>,
    /// Since when commands are refused for want of access, whatever else the target says.
    refused_since: Option<Duration>,
    /// A write ended with its outcome unknown.
    has_unknown: bool,
}

impl Session {
    /// Connects, brings the controller up and finds the namespace.
    pub(super) fn open(
        target: &Target,
        address: SocketAddr,
        limit: Duration,
    ) -> Result<Session, RemoteError> {
        let start = Instant::now();
        let connection = InitiatorConnection::connect_admin(target.options()?, Duration::ZERO);
        let mut session = Session {
            start,
            address,
            namespace_id: target.namespace,
            host: target.options.host_nqn.clone(),
            admin: Wire::open(address, connection, limit)?,
            attachment: Attachment::new(1),
            controller: None,
            namespaces: None,
            media: None,
            is_io_connected: false,
            has_write_zeroes: false,
            jobs: Slab::new(),
            job_of: HashMap::new(),
            waiting: VecDeque::new(),
            access: Access::Open,
            barred_since: None,
            refused_since: None,
            has_unknown: false,
        };
        let is_up =
            |session: &Session| session.controller.is_some() && session.namespaces.is_some();
        session.until(limit, is_up)?;
        let namespace = session.find()?;
        session.connect_io(target, namespace, limit)?;
        session.until(limit, |session| session.is_io_connected)?;
        Ok(session)
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn until(
        &mut self,
        limit: Duration,
        reached: impl Fn(&Session) -> bool,
    ) -> Result<(), RemoteError> {
        loop {
            self.exchange()?;
            if reached(self) {
                return Ok(());
            }
            let left = limit.saturating_sub(self.now());
            if left.is_zero() {
                return Err(RemoteError::Timeout);
            }
            self.sleep(None, left);
        }
    }

    /// Our namespace, if it is there and good for use.
    fn find(&self) -> Result<RemoteNamespace, RemoteError> {
        let namespaces = self.namespaces.as_deref().unwrap_or_default();
        let ours = |one: &&RemoteNamespace| {
            [one.uuid, one.nguid].into_iter().flatten().any(|id| id == self.namespace_id)
        };
        let Some(found) = namespaces.iter().find(ours) else {
            return Err(RemoteError::NoNamespace {
                host: self.host.clone(),
                seen: namespaces.len(),
            });
        };
        match found {
            RemoteNamespace { read_only: true, .. } => Err(RemoteError::ReadOnly),
            RemoteNamespace { state, .. }
                if !matches!(state, AnaState::Optimized | AnaState::NonOptimized) =>
            {
                Err(RemoteError::Inaccessible(*state))
            }
            RemoteNamespace { block_size, .. } if !(512..=4096).contains(block_size) => {
                Err(RemoteError::BlockSize(*block_size))
            }
            usable => Ok(usable.clone()),
        }
    }

    fn connect_io(
        &mut self,
        target: &Target,
        namespace: RemoteNamespace,
        limit: Duration,
    ) -> Result<(), RemoteError> {
        let left = limit.saturating_sub(self.now());
        let Some(controller) = &self.controller else { return Err(RemoteError::Timeout) };
        let mut options = target.options()?;
        options.keep_alive = None;
        options.queue_depth = options.queue_depth.min(controller.queue_depth_max);
        self.has_write_zeroes = controller.optional_commands & HAS_WRITE_ZEROES != 0;
        let connection = InitiatorConnection::connect_io(
            options,
            controller.controller,
            1,
            controller.in_capsule_max,
            self.start.elapsed(),
        );
        self.media = Some((Wire::open(self.address, connection, left)?, namespace));
        Ok(())
    }

    pub(super) fn facts(&self) -> RemoteFacts {
        let namespace = self.media.as_ref().map(|(_, namespace)| namespace);
        let (blocks, block_bytes) = namespace.map_or((0, 512), |one| (one.blocks, one.block_size));
        RemoteFacts { size_bytes: blocks.saturating_mul(block_bytes.into()), block_bytes }
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether there is no better path than this.
    pub(super) fn is_optimized(&self) -> bool {
        self.state() == Some(AnaState::Optimized)
    }

    fn state(&self) -> Option<AnaState> {
        self.media.as_ref().map(|(_, namespace)| namespace.state)
    }

    /// Goes on with what another session left.
    pub(super) fn resume(&mut self, jobs: Vec<Job>) {
        for job in jobs {
            let key = self.jobs.insert(job);
            self.waiting.push_back(key);
        }
    }

    /// Carries orders out until the device ends and all are answered, or until there is no going on
    /// here.
    pub(super) fn run(mut self, shared: &Shared, paths: &Paths) -> Ended {
        match self.carry_out(shared, paths) {
            Ok(()) => Ended::Unwanted,
            Err(reason) => {
                let is_out = |key: &usize| !self.jobs[*key].is_read();
                if self.has_unknown || self.job_of.values().any(is_out) {
                    return Ended::Lost(reason);
                }
                let jobs = std::mem::take(&mut self.jobs).into_iter();
                Ended::Moved(reason, jobs.map(|(_, job)| job.handed_over()).collect())
            }
        }
    }

    fn carry_out(&mut self, shared: &Shared, paths: &Paths) -> Result<(), RemoteError> {
        loop {
            // First: what is begun on a connection that is known to be gone would be of unknown outcome.
            self.exchange()?;
            let (orders, is_ended) = {
                let mut inbox = shared.lock();
                shared.wake.clear();
                (std::mem::take(&mut inbox.orders), inbox.is_ended)
            };
            for order in orders {
                self.take(order);
            }
            self.exchange()?;
            if is_ended && self.jobs.is_empty() {
                return Ok(());
            }
            self.leave_if_due(paths)?;
            self.sleep(Some(shared), IDLE_MAX);
        }
    }

    /// Ends the session when the namespace is served elsewhere, or nowhere for too long.
    fn leave_if_due(&mut self, paths: &Paths) -> Result<(), RemoteError> {
        let state = self.state().unwrap_or(AnaState::Inaccessible);
        let now = self.now();
        let mut since = [self.barred_since, self.refused_since].into_iter().flatten();
        if since.any(|since| now.saturating_sub(since) > BARRED_MAX) {
            return Err(RemoteError::Inaccessible(state));
        }
        let serves_worse = state == AnaState::NonOptimized && paths.has_other_than(self.address);
        let leaves =
            self.access == Access::Leaving && (state != AnaState::NonOptimized || serves_worse);
        if !leaves && self.access == Access::Leaving {
            self.access = Access::Open;
        }
        match leaves && self.job_of.is_empty() {
            true => Err(RemoteError::Inaccessible(state)),
            false => Ok(()),
        }
    }

    /// Exchanges bytes with the target and handles what came.
    fn exchange(&mut self) -> Result<(), RemoteError> {
        let now = self.now();
        self.turn_admin(now)?;
        self.turn_io(now)
    }

    /// Sleeps until there is something to exchange, a deadline is due, or `shared` has orders.
    fn sleep(&mut self, shared: Option<&Shared>, most: Duration) {
        let deadlines = [
            self.admin.connection.next_deadline(),
            self.attachment.next_deadline(),
            self.media.as_ref().and_then(|(wire, _)| wire.connection.next_deadline()),
        ];
        let now = self.now();
        let due = deadlines.into_iter().flatten().min().map(|at| at.saturating_sub(now));
        let mut sources =
            vec![(self.admin.stream.as_fd(), !self.admin.connection.output().is_empty())];
        if let Some((wire, _)) = &mut self.media {
            let has_output = !wire.connection.output().is_empty();
            sources.push((wire.stream.as_fd(), has_output));
        }
        if let Some(shared) = shared {
            sources.push((shared.wake.as_fd(), false));
        }
        wait_for(&sources, due.unwrap_or(most).min(most));
    }

    fn turn_admin(&mut self, now: Duration) -> Result<(), RemoteError> {
        self.admin.exchange(now);
        self.attachment.tick(&mut self.admin.connection, now);
        while let Some(event) = self.admin.connection.next_event() {
            let rest = self.attachment.handle(&mut self.admin.connection, event, now);
            if let Some(InitiatorEvent::Closed { reason }) = rest {
                return Err(RemoteError::Closed(reason));
            }
        }
        while let Some(update) = self.attachment.next_update() {
            match update {
                AttachmentUpdate::Ready(facts) => self.controller = Some(facts),
                AttachmentUpdate::Namespaces(namespaces) => {
                    self.namespaces = Some(namespaces);
                    self.follow_namespace()?;
                }
                AttachmentUpdate::Failed(error) => return Err(RemoteError::Attachment(error)),
            }
        }
        self.admin.send().map_err(RemoteError::Connect)
    }

    /// Whether the namespace that is served is still what it was, larger is fine; and whether it is
    /// still served here.
    fn follow_namespace(&mut self) -> Result<(), RemoteError> {
        let found = match self.find() {
            Err(RemoteError::Inaccessible(state)) => {
                let now = self.now();
                let Some((_, known)) = &mut self.media else { return Ok(()) };
                known.state = state;
                self.barred_since.get_or_insert(now);
                self.access = match state {
                    AnaState::Change => Access::Barred,
                    _ => Access::Leaving,
                };
                return Ok(());
            }
            other => other?,
        };
        let Some((_, known)) = &mut self.media else { return Ok(()) };
        let is_same = found.nsid == known.nsid
            && found.block_size == known.block_size
            && found.blocks >= known.blocks;
        if !is_same {
            return Err(RemoteError::Changed);
        }
        let is_worse = (known.state, found.state) == (AnaState::Optimized, AnaState::NonOptimized);
        known.state = found.state;
        self.barred_since = None;
        self.access = if is_worse { Access::Leaving } else { Access::Open };
        Ok(())
    }

    fn turn_io(&mut self, now: Duration) -> Result<(), RemoteError> {
        let Some((wire, _)) = &mut self.media else { return Ok(()) };
        wire.exchange(now);
        while let Some((wire, _)) = &mut self.media
            && let Some(event) = wire.connection.next_event()
        {
            match event {
                InitiatorEvent::Connected { .. } => self.is_io_connected = true,
                InitiatorEvent::Completed { tag, status, data, .. } => {
                    self.completed(tag, status, data);
                }
                InitiatorEvent::Lost { tag, .. } => {
                    if let Some(key) = self.job_of.remove(&tag) {
                        self.outcome_unknown(key);
                    }
                }
                InitiatorEvent::Closed { reason } => return Err(RemoteError::Closed(reason)),
            }
        }
        for _ in 0..self.waiting.len() {
            if let Some(job) = self.waiting.pop_front() {
                self.go_on(job);
            }
        }
        match &mut self.media {
            Some((wire, _)) => wire.send().map_err(RemoteError::Connect),
            None => Ok(()),
        }
    }

    fn take(&mut self, order: Order) {
        let job = Job::of(order);
        let fits = job.is_of_blocks(self.facts().block_bytes);
        let key = self.jobs.insert(job);
        if fits {
            self.go_on(key);
        } else {
            self.finish(key, Err(DeviceFault::Failed));
        }
    }

    /// Sends the next command of a job, or puts the job in line for room.
    fn go_on(&mut self, key: usize) {
        let (Some((wire, namespace)), Some(controller)) = (&mut self.media, &self.controller)
        else {
            return self.finish(key, Err(DeviceFault::Failed));
        };
        if self.access != Access::Open || wire.connection.room() == 0 {
            self.waiting.push_back(key);
            return;
        }
        let limits = Limits {
            transfer: controller.transfer_max.min(TRANSFER_MAX as usize) as u64,
            is_volatile: controller.has_volatile_cache,
            has_write_zeroes: self.has_write_zeroes,
        };
        let command = self.jobs[key].next_command(namespace, &limits);
        match wire.connection.submit(command, self.start.elapsed()) {
            Ok(tag) => drop(self.job_of.insert(tag, key)),
            Err(_) => self.finish(key, Err(DeviceFault::Failed)),
        }
    }

    fn completed(&mut self, tag: Tag, status: Status, data: Option<Buffer>) {
        let Some(key) = self.job_of.remove(&tag) else { return };
        if status.is_access_related() {
            return self.barred(key);
        }
        self.refused_since = None;
        let job = &mut self.jobs[key];
        if !status.is_success() {
            let is_zeroing = matches!(job.kind, OrderKind::Zero { .. }) && !job.is_flushing;
            if is_zeroing && self.has_write_zeroes && !status.is_path_related() {
                // Announced but not usable for this range: zeroes are written from now on.
                self.has_write_zeroes = false;
                return self.go_on(key);
            }
            let fault = fault_of(status, &job.kind);
            return self.finish(key, Err(fault));
        }
        let is_volatile = self.controller.as_ref().is_none_or(|facts| facts.has_volatile_cache);
        match job.progress(data, is_volatile) {
            Progress::Again => self.go_on(key),
            Progress::Done(result) => self.finish(key, result),
        }
    }

    /// A command was not carried out for want of access: it is sent again, here or elsewhere.
    fn barred(&mut self, key: usize) {
        let now = self.now();
        self.waiting.push_back(key);
        self.refused_since.get_or_insert(now);
        if self.access == Access::Open {
            self.access = Access::Barred;
            self.attachment.reread_access(&mut self.admin.connection, now);
        }
    }

    /// Whether a command was carried out nobody knows: a read may be repeated, a write fails.
    fn outcome_unknown(&mut self, key: usize) {
        if self.jobs[key].is_read() {
            self.waiting.push_back(key);
        } else {
            self.has_unknown = true;
            self.finish(key, Err(DeviceFault::Failed));
        }
    }

    fn finish(&mut self, key: usize, result: DeviceResult) {
        self.jobs.remove(key).reply.send(result);
    }
}
