//! A host on one NVMe/TCP path: an admin connection and one I/O queue over blocking sockets.

use super::control::{HOST_NQN, SUBSYSTEM};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};
use voute_buffer::Buffer;
use voute_nvme::*;

const PATIENCE: Duration = Duration::from_secs(10);
pub(crate) const BLOCK: usize = 512;

pub(crate) struct Path {
    admin: Wire,
    attachment: Attachment,
    pub(crate) namespaces: Vec<RemoteNamespace>,
    io: Wire,
    start: Instant,
}

struct Wire {
    socket: TcpStream,
    connection: InitiatorConnection,
}

#[derive(Debug)]
pub(crate) enum PathError {
    Status(Status),
    /// The connection is gone, or nothing comes.
    Gone,
}

impl Wire {
    fn open(address: SocketAddr, connection: InitiatorConnection) -> Option<Self> {
        let socket = TcpStream::connect(address).ok()?;
        socket.set_nodelay(true).ok()?;
        socket.set_read_timeout(Some(Duration::from_millis(2))).ok()?;
        Some(Wire { socket, connection })
    }

    /// Sends what is to be sent and takes what has come; `None` when the peer is gone.
    fn turn(&mut self, now: Duration) -> Option<()> {
        let output = std::mem::take(self.connection.output());
        self.socket.write_all(&output).ok()?;
        let mut bytes = [0; 64 << 10];
        match self.socket.read(&mut bytes) {
            Ok(0) => return None,
            Ok(length) => self.connection.receive(&bytes[..length], now),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return None,
        }
        self.connection.tick(now);
        // A refused Connect ends here, not by the peer.
        (!self.connection.is_closing()).then_some(())
    }
}

impl Path {
    /// Connects to a node; `None` if it does not take the host.
    pub(crate) fn connect(address: SocketAddr) -> Option<Self> {
        Path::connect_by(address, [0x11; 16])
    }

    fn connect_by(address: SocketAddr, host_id: [u8; 16]) -> Option<Self> {
        let start = Instant::now();
        let options = ConnectionOptions::new(HOST_NQN, host_id, SUBSYSTEM);
        let now = Duration::ZERO;
        let mut admin =
            Wire::open(address, InitiatorConnection::connect_admin(options.clone(), now))?;
        let mut attachment = Attachment::new(1);
        let mut facts: Option<ControllerFacts> = None;
        let mut namespaces = None;
        while namespaces.is_none() || facts.is_none() {
            admin.turn(start.elapsed())?;
            while let Some(event) = admin.connection.next_event() {
                attachment.handle(&mut admin.connection, event, start.elapsed());
            }
            attachment.tick(&mut admin.connection, start.elapsed());
            match attachment.next_update() {
                Some(AttachmentUpdate::Ready(ready)) => facts = Some(ready),
                Some(AttachmentUpdate::Namespaces(found)) => namespaces = Some(found),
                Some(AttachmentUpdate::Failed(_)) => return None,
                None if start.elapsed() > PATIENCE => return None,
                None => {}
            }
        }
        let facts = facts?;
        let (controller, capsule) = (facts.controller, facts.in_capsule_max);
        let connection =
            InitiatorConnection::connect_io(options, controller, 1, capsule, start.elapsed());
        let mut io = Wire::open(address, connection)?;
        loop {
            io.turn(start.elapsed())?;
            match io.connection.next_event() {
                Some(InitiatorEvent::Connected { .. }) => break,
                Some(_) => return None,
                None if start.elapsed() > PATIENCE => return None,
                None => {}
            }
        }
        Some(Path { admin, attachment, namespaces: namespaces?, io, start })
    }

    /// Connects, trying again until the node takes the host and shows the namespace in this state.
    pub(crate) fn connect_until(address: SocketAddr, nsid: u32, state: AnaState) -> Self {
        Path::connect_as(address, [0x11; 16], nsid, state)
    }

    /// Likewise as a host of this identifier.
    pub(crate) fn connect_as(
        address: SocketAddr,
        host_id: [u8; 16],
        nsid: u32,
        state: AnaState,
    ) -> Self {
        let until = Instant::now() + PATIENCE;
        loop {
            assert!(
                Instant::now() < until,
                "{address} does not show namespace {nsid} as {state:?}"
            );
            let path = Path::connect_by(address, host_id);
            if let Some(path) = path.filter(|path| path.state(nsid) == Some(state)) {
                return path;
            }
        }
    }

    pub(crate) fn state(&self, nsid: u32) -> Option<AnaState> {
        let found = self.namespaces.iter().find(|namespace| namespace.nsid == nsid);
        found.map(|namespace| namespace.state)
    }

    /// Follows events until the namespace is in this state.
    pub(crate) fn await_state(&mut self, nsid: u32, state: AnaState) {
        self.follow_until("it changes state", |path| path.state(nsid) == Some(state));
    }

    fn follow_until(&mut self, what: &str, holds: impl Fn(&Path) -> bool) {
        let until = Instant::now() + PATIENCE;
        while !holds(self) {
            assert!(Instant::now() < until, "in vain until {what}: {:?}", self.namespaces);
            let now = self.start.elapsed();
            self.admin.turn(now).expect("the admin connection lives");
            while let Some(event) = self.admin.connection.next_event() {
                self.attachment.handle(&mut self.admin.connection, event, now);
            }
            self.attachment.tick(&mut self.admin.connection, now);
            if let Some(AttachmentUpdate::Namespaces(found)) = self.attachment.next_update() {
                self.namespaces = found;
            }
        }
    }

    /// Follows events until the namespace has this many blocks.
    pub(crate) fn await_blocks(&mut self, nsid: u32, blocks: u64) {
        let has = |path: &Path| {
            path.namespaces.iter().any(|found| found.nsid == nsid && found.blocks == blocks)
        };
        self.follow_until("it has its new size", has);
    }

    fn run(&mut self, commands: Vec<Command>) -> Result<Vec<Option<Buffer>>, PathError> {
        let until = Instant::now() + PATIENCE;
        let count = commands.len();
        let mut tags = Vec::new();
        for command in commands {
            let tag = self.io.connection.submit(command, self.start.elapsed());
            tags.push(tag.map_err(|_| PathError::Gone)?);
        }
        let mut results: Vec<Option<Option<Buffer>>> = (0..count).map(|_| None).collect();
        while results.iter().any(Option::is_none) {
            if Instant::now() > until {
                return Err(PathError::Gone);
            }
            self.io.turn(self.start.elapsed()).ok_or(PathError::Gone)?;
            while let Some(event) = self.io.connection.next_event() {
                match event {
                    InitiatorEvent::Completed { tag, status, data, .. } => {
                        if !status.is_success() {
                            return Err(PathError::Status(status));
                        }
                        let place = tags.iter().position(|other| *other == tag).unwrap();
                        results[place] = Some(data);
                    }
                    _ => return Err(PathError::Gone),
                }
            }
        }
        Ok(results.into_iter().flatten().collect())
    }

    pub(crate) fn write(&mut self, nsid: u32, lba: u64, data: &[u8]) -> Result<(), PathError> {
        let blocks = (data.len() / BLOCK) as u32;
        let payload = Payload::Owned(Buffer::copy_of(data));
        self.run(vec![Command::write(nsid, lba, blocks, payload, false)]).map(drop)
    }

    /// Many writes of one block pattern each, all at once.
    pub(crate) fn write_all(
        &mut self,
        nsid: u32,
        writes: &[(u64, Vec<u8>)],
    ) -> Result<(), PathError> {
        let commands = writes.iter().map(|(lba, data)| {
            let payload = Payload::Owned(Buffer::copy_of(data));
            Command::write(nsid, *lba, (data.len() / BLOCK) as u32, payload, false)
        });
        self.run(commands.collect()).map(drop)
    }

    pub(crate) fn read(
        &mut self,
        nsid: u32,
        lba: u64,
        length: usize,
    ) -> Result<Vec<u8>, PathError> {
        let command = Command::read(nsid, lba, (length / BLOCK) as u32, BLOCK as u32);
        let data = self.run(vec![command])?.pop().flatten();
        data.map(|data| data.to_vec()).ok_or(PathError::Gone)
    }

    pub(crate) fn command(&mut self, command: Command) -> Result<Option<Buffer>, PathError> {
        Ok(self.run(vec![command])?.pop().flatten())
    }
}

/// Sends commands one after the other on a link of its own; the status of each, `None` when the peer
/// hung up instead.
pub(crate) fn link_command(
    address: SocketAddr,
    subsystem: &str,
    commands: Vec<Command>,
) -> Vec<Option<Status>> {
    let start = Instant::now();
    let options = ConnectionOptions {
        keep_alive: None,
        ..ConnectionOptions::new("nqn.stranger", [7; 16], &format!("{subsystem}:link"))
    };
    let connection = InitiatorConnection::connect_link(options, Duration::ZERO);
    let mut wire = Wire::open(address, connection).unwrap();
    let next = |wire: &mut Wire| {
        loop {
            assert!(start.elapsed() < PATIENCE, "the peer does not answer");
            if let Some(event) = wire.connection.next_event() {
                return Some(event);
            }
            wire.turn(start.elapsed())?;
        }
    };
    assert!(matches!(next(&mut wire), Some(InitiatorEvent::Connected { .. })));
    let mut statuses = Vec::new();
    for command in commands {
        wire.connection.submit(command, start.elapsed()).unwrap();
        statuses.push(match next(&mut wire) {
            Some(InitiatorEvent::Completed { status, .. }) => Some(status),
            _ => None,
        });
    }
    statuses
}
