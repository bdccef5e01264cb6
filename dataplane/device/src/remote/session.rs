//! One association with a target: its two connections, and orders on their way.

use super::{RemoteError, RemoteFacts, Shared, Target};
use crate::mailbox::{Order, OrderKind, Reply, wait_for};
use slab::Slab;
use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use voute_buffer::Buffer;
use voute_mirror::{DeviceFault, DeviceResult, TRANSFER_MAX};
use voute_nvme::{
    AnaState, Attachment, AttachmentUpdate, Command, ControllerFacts, InitiatorConnection,
    InitiatorEvent, Payload, RemoteNamespace, Status, Tag,
};

/// How long a TCP connection may take to open.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// How long the controller may take to come up.
const OPEN_MAX: Duration = Duration::from_secs(15);
/// How long to sleep when nothing is due.
const IDLE_MAX: Duration = Duration::from_secs(1);
/// Read from a socket at once, bytes.
const INPUT_BYTES: usize = 256 << 10;
/// Longest range of one Write Zeroes, bytes.
const ZERO_BYTES_MAX: u64 = 4 << 20;
/// Most blocks of one command.
const BLOCKS_MAX: u64 = 65_536;
/// ONCS: Write Zeroes is supported.
const HAS_WRITE_ZEROES: u16 = 1 << 3;

/// A connection and its socket.
struct Wire {
    stream: TcpStream,
    connection: InitiatorConnection,
    input: Vec<u8>,
}

/// An association that is up, or coming up.
pub(super) struct Session {
    start: Instant,
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
    /// Jobs whose next command found no room.
    waiting: VecDeque<usize>,
}

/// An order under way; at most one command of it is out.
struct Job {
    offset: u64,
    kind: OrderKind,
    /// What a read in several commands has so far.
    read: Option<Buffer>,
    done: u64,
    /// Bytes that the command which is out is about.
    out: u64,
    is_flushing: bool,
    reply: Reply,
}

impl Wire {
    fn open(target: &Target, connection: InitiatorConnection) -> Result<Self, RemoteError> {
        let open = || -> io::Result<TcpStream> {
            let stream = TcpStream::connect_timeout(&target.address, CONNECT_MAX)?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            Ok(stream)
        };
        let stream = open().map_err(RemoteError::Connect)?;
        Ok(Wire { stream, connection, input: vec![0; INPUT_BYTES] })
    }

    /// Sends and receives what is possible without waiting.
    fn exchange(&mut self, now: Duration) {
        if self.send().and_then(|()| self.receive(now)).is_err() {
            self.connection.disconnected();
        }
        self.connection.tick(now);
    }

    fn send(&mut self) -> io::Result<()> {
        while !self.connection.output().is_empty() {
            match self.stream.write(self.connection.output()) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(sent) => drop(self.connection.output().drain(..sent)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Reads once: what is left keeps the socket readable.
    fn receive(&mut self, now: Duration) -> io::Result<()> {
        if !self.connection.wants_input() {
            return Ok(());
        }
        match self.stream.read(&mut self.input) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(length) => {
                self.connection.receive(&self.input[..length], now);
                Ok(())
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

impl Session {
    /// Connects, brings the controller up and finds the namespace.
    pub(super) fn open(target: &Target) -> Result<Session, RemoteError> {
        let start = Instant::now();
        let connection = InitiatorConnection::connect_admin(target.options.clone(), Duration::ZERO);
        let mut session = Session {
            start,
            namespace_id: target.namespace,
            host: target.options.host_nqn.clone(),
            admin: Wire::open(target, connection)?,
            attachment: Attachment::new(1),
            controller: None,
            namespaces: None,
            media: None,
            is_io_connected: false,
            has_write_zeroes: false,
            jobs: Slab::new(),
            job_of: HashMap::new(),
            waiting: VecDeque::new(),
        };
        session.until(|session| session.controller.is_some() && session.namespaces.is_some())?;
        let namespace = session.find()?;
        session.connect_io(target, namespace)?;
        session.until(|session| session.is_io_connected)?;
        Ok(session)
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    fn until(&mut self, reached: impl Fn(&Session) -> bool) -> Result<(), RemoteError> {
        loop {
            self.exchange()?;
            if reached(self) {
                return Ok(());
            }
            let left = OPEN_MAX.saturating_sub(self.now());
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
    ) -> Result<(), RemoteError> {
        let Some(controller) = &self.controller else { return Err(RemoteError::Timeout) };
        let mut options = target.options.clone();
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
        self.media = Some((Wire::open(target, connection)?, namespace));
        Ok(())
    }

    pub(super) fn facts(&self) -> RemoteFacts {
        let namespace = self.media.as_ref().map(|(_, namespace)| namespace);
        let (blocks, block_bytes) = namespace.map_or((0, 512), |one| (one.blocks, one.block_size));
        RemoteFacts { size_bytes: blocks.saturating_mul(block_bytes.into()), block_bytes }
    }

    /// Carries orders out until the device ends and all are answered.
    pub(super) fn run(&mut self, shared: &Shared) -> Result<(), RemoteError> {
        loop {
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
            self.sleep(Some(shared), IDLE_MAX);
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
                    self.check_namespace()?;
                }
                AttachmentUpdate::Failed(error) => return Err(RemoteError::Attachment(error)),
            }
        }
        self.admin.send().map_err(RemoteError::Connect)
    }

    /// Whether the namespace that is served is still what it was; larger is fine.
    fn check_namespace(&mut self) -> Result<(), RemoteError> {
        let Some((_, known)) = &self.media else { return Ok(()) };
        let found = self.find()?;
        let is_same = found.nsid == known.nsid
            && found.block_size == known.block_size
            && found.blocks >= known.blocks;
        if is_same { Ok(()) } else { Err(RemoteError::Changed) }
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
                    if let Some(job) = self.job_of.remove(&tag) {
                        self.finish(job, Err(DeviceFault::Failed));
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
        let Order { offset, kind, reply } = order;
        let job = Job { offset, kind, read: None, done: 0, out: 0, is_flushing: false, reply };
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
        if wire.connection.room() == 0 {
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

    fn finish(&mut self, key: usize, result: DeviceResult) {
        self.jobs.remove(key).reply.send(result);
    }
}

/// What the controller allows.
struct Limits {
    transfer: u64,
    is_volatile: bool,
    has_write_zeroes: bool,
}

enum Progress {
    Again,
    Done(DeviceResult),
}

impl Job {
    fn length(&self) -> u64 {
        match self.kind {
            OrderKind::Read { length } => length.into(),
            OrderKind::Write { length, .. } => length as u64,
            OrderKind::Zero { length, .. } => length,
        }
    }

    fn is_of_blocks(&self, block_bytes: u32) -> bool {
        let block = u64::from(block_bytes);
        self.length() > 0
            && self.offset.is_multiple_of(block)
            && self.length().is_multiple_of(block)
    }

    fn next_command(&mut self, namespace: &RemoteNamespace, limits: &Limits) -> Command {
        let block = u64::from(namespace.block_size);
        let nsid = namespace.nsid;
        if self.is_flushing {
            return Command::flush(nsid);
        }
        let left = self.length() - self.done;
        let zeroes_in_place =
            matches!(self.kind, OrderKind::Zero { .. }) && limits.has_write_zeroes;
        let most = if zeroes_in_place { ZERO_BYTES_MAX } else { limits.transfer };
        self.out = left.min(most).min(BLOCKS_MAX * block);
        let lba = (self.offset + self.done) / block;
        let blocks = (self.out / block) as u32;
        match &self.kind {
            OrderKind::Read { .. } => Command::read(nsid, lba, blocks, namespace.block_size),
            OrderKind::Write { data, from, .. } => {
                let begin = from + self.done as usize;
                let part = begin..begin + self.out as usize;
                let payload = if part == (0..data.len()) {
                    Payload::Shared(Arc::clone(data))
                } else {
                    Payload::Owned(Buffer::copy_of(&data[part]))
                };
                Command::write(nsid, lba, blocks, payload, limits.is_volatile)
            }
            OrderKind::Zero { release, .. } if zeroes_in_place => {
                Command::write_zeroes(nsid, lba, blocks, *release)
            }
            OrderKind::Zero { .. } => {
                let payload = Payload::Owned(Buffer::zeroed(self.out as usize));
                Command::write(nsid, lba, blocks, payload, limits.is_volatile)
            }
        }
    }

    /// Takes note of a command that succeeded.
    fn progress(&mut self, data: Option<Buffer>, is_volatile: bool) -> Progress {
        if self.is_flushing {
            return Progress::Done(Ok(None));
        }
        let (length, at) = (self.length(), self.done as usize);
        self.done += self.out;
        let is_done = self.done == length;
        if !matches!(self.kind, OrderKind::Read { .. }) {
            self.is_flushing =
                is_done && is_volatile && matches!(self.kind, OrderKind::Zero { .. });
            let is_over = is_done && !self.is_flushing;
            return if is_over { Progress::Done(Ok(None)) } else { Progress::Again };
        }
        let Some(data) = data.filter(|data| data.len() as u64 == self.out) else {
            return Progress::Done(Err(DeviceFault::Failed));
        };
        if data.len() as u64 == length {
            return Progress::Done(Ok(Some(data)));
        }
        let whole = self.read.get_or_insert_with(|| Buffer::zeroed(length as usize));
        whole[at..at + data.len()].copy_from_slice(&data);
        if is_done { Progress::Done(Ok(self.read.take())) } else { Progress::Again }
    }
}

/// Media errors (type 2) of a read concern these blocks; all else the device.
fn fault_of(status: Status, kind: &OrderKind) -> DeviceFault {
    const MEDIA: u8 = 2;
    match kind {
        OrderKind::Read { .. } if status.code_type() == MEDIA => DeviceFault::Medium,
        _ if status == Status::capacity_exceeded() => DeviceFault::NoSpace,
        _ => DeviceFault::Failed,
    }
}
