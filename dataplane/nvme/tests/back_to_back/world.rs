//! A node with a memory disk, and wires to it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use voute_buffer::Buffer;
use voute_nvme::*;
use voute_reservation::{Effect, Nexus, Reservations};

pub(crate) const SUBSYSTEM: &str = "nqn.2026-01.io.voute:subsystem";
pub(crate) const HOST: &str =
    "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555";
pub(crate) const LINK: &str = "nqn.2026-01.io.voute:link";
pub(crate) const HOST_ID: [u8; 16] = [0x5A; 16];
pub(crate) const PORTAL: PortalId = 7;
pub(crate) const BLOCKS: u64 = 8192;

pub(crate) fn namespace(nsid: u32) -> NamespaceView {
    NamespaceView {
        nsid,
        uuid: [nsid as u8; 16],
        nguid: [0x80 | nsid as u8; 16],
        block_size: 512,
        blocks: BLOCKS,
        ana_group: nsid,
        state: AnaState::Optimized,
        read_only: false,
    }
}

pub(crate) fn directory(namespaces: Vec<NamespaceView>) -> Arc<Directory> {
    let view = Arc::new(HostView::new(namespaces).expect("the namespaces are sound"));
    let subsystem = Subsystem {
        serial: "VOUTE0001".into(),
        hosts: BTreeMap::from([(HOST.to_owned(), view)]),
        keys: BTreeMap::new(),
    };
    let portals = [(PORTAL, "10.0.0.1"), (8, "10.0.1.1")].map(|(id, address)| PortalEntry {
        id,
        address: address.parse().expect("an address"),
        port: 4420,
    });
    let subsystems = BTreeMap::from([(SUBSYSTEM.to_owned(), subsystem)]);
    Arc::new(Directory::new(subsystems, portals.to_vec()).expect("the directory is sound"))
}

pub(crate) fn target_with(limits: TargetLimits) -> Arc<Target> {
    let config =
        TargetConfig { link_nqn: Some(LINK.to_owned()), limits, ..TargetConfig::default() };
    let target = Target::new(config).expect("the configuration is sound");
    target.publish(directory(vec![namespace(1), namespace(2)]));
    target
}

pub(crate) fn target() -> Arc<Target> {
    target_with(TargetLimits::default())
}

pub(crate) fn options(subsystem: &str) -> ConnectionOptions {
    ConnectionOptions::new(HOST, HOST_ID, subsystem)
}

/// One namespace's blocks, which a real node would hold in its legs.
#[derive(Default)]
pub(crate) struct Disk {
    pub(crate) bytes: Vec<u8>,
    /// Requests that were executed, for tests that look at what was asked for.
    pub(crate) seen: Vec<String>,
    /// Answers every request so, while set.
    pub(crate) failure: Option<Status>,
    pub(crate) reservations: Reservations,
    /// What changes of reservations meant for others, until a test hands it on.
    pub(crate) effects: Vec<Effect>,
}

impl Disk {
    pub(crate) fn new() -> Self {
        Disk {
            bytes: vec![0; BLOCKS as usize * 512],
            seen: Vec::new(),
            failure: None,
            ..Disk::default()
        }
    }

    fn range(lba: u64, blocks: u32) -> std::ops::Range<usize> {
        let from = lba as usize * 512;
        from..from + blocks as usize * 512
    }

    pub(crate) fn serve(&mut self, request: Request) -> Outcome {
        match request.operation {
            Operation::Authenticate(work) => work.perform(),
            _ => self.execute(&request),
        }
    }

    pub(crate) fn execute(&mut self, request: &Request) -> Outcome {
        let described = format!("{:?}", request.operation);
        self.seen.push(described);
        if let Some(status) = self.failure {
            return Outcome::Failed(status);
        }
        let nexus = match &request.scope {
            Scope::Host { association, .. } => Nexus::Nvme { host_id: association.host_id },
            Scope::Link { .. } => Nexus::Nvme { host_id: [0; 16] },
        };
        if self.reservations.conflicts(&nexus, request.operation.access()) {
            return Outcome::Failed(Status::reservation_conflict());
        }
        match &request.operation {
            Operation::Reservation(asked) => match self.reservations.apply(&nexus, asked) {
                Ok(_) if *asked == voute_reservation::Request::Report => {
                    Outcome::Reservations(Arc::new(self.reservations.clone()))
                }
                Ok(effects) => {
                    self.effects.extend(effects);
                    Outcome::Done
                }
                Err(refusal) => Outcome::Failed(refusal.into()),
            },
            Operation::Read { lba, blocks } => {
                Outcome::Data(Buffer::copy_of(&self.bytes[Self::range(*lba, *blocks)]))
            }
            Operation::Write { lba, blocks, data, .. } => {
                self.bytes[Self::range(*lba, *blocks)].copy_from_slice(data);
                Outcome::Done
            }
            Operation::Flush => Outcome::Done,
            Operation::WriteZeroes { lba, blocks, .. } => {
                self.bytes[Self::range(*lba, *blocks)].fill(0);
                Outcome::Done
            }
            Operation::Deallocate { ranges } => {
                ranges
                    .iter()
                    .for_each(|(lba, blocks)| self.bytes[Self::range(*lba, *blocks)].fill(0));
                Outcome::Done
            }
            Operation::Compare { lba, blocks, data } => self.compared(*lba, *blocks, data),
            Operation::CompareAndWrite { lba, blocks, compare, write } => {
                let outcome = self.compared(*lba, *blocks, compare);
                if let Outcome::Done = outcome {
                    self.bytes[Self::range(*lba, *blocks)].copy_from_slice(write);
                }
                outcome
            }
            Operation::Verify { .. } => Outcome::Done,
            Operation::Authenticate(_) => panic!("not for a disk"),
            Operation::Vendor { opcode, nsid, dwords, data, reply_len_max } => {
                let kept = (*reply_len_max as usize).min(data.len().max(8));
                let mut reply = Buffer::zeroed(kept);
                for (index, byte) in reply.iter_mut().enumerate() {
                    *byte = data.get(index).copied().unwrap_or(*opcode).wrapping_add(1);
                }
                Outcome::DataWithResult { data: reply, dw0: *nsid, dw1: dwords[5] }
            }
        }
    }

    fn compared(&self, lba: u64, blocks: u32, data: &[u8]) -> Outcome {
        if self.bytes[Self::range(lba, blocks)] == *data {
            Outcome::Done
        } else {
            Outcome::Failed(Status::compare_failure())
        }
    }
}

/// One TCP connection: both ends, and pieces that bytes travel in.
pub(crate) struct Wire {
    pub(crate) target: TargetConnection,
    pub(crate) host: InitiatorConnection,
    pub(crate) now: Duration,
    pub(crate) pieces: VecDeque<usize>,
    pub(crate) to_target: Vec<u8>,
    pub(crate) to_host: Vec<u8>,
    /// Whether both ends receive data where it rests, and the target sends it from there.
    in_place: bool,
}

impl Wire {
    pub(crate) fn new(target: &Arc<Target>, host: InitiatorConnection, now: Duration) -> Self {
        let target = TargetConnection::new(target.clone(), PORTAL, now);
        Wire {
            target,
            host,
            now,
            pieces: VecDeque::new(),
            to_target: Vec::new(),
            to_host: Vec::new(),
            in_place: false,
        }
    }

    /// Does what reactors do to spare copies, for data of at least `bytes` bytes.
    pub(crate) fn spare_copies(&mut self, bytes: usize) {
        self.in_place = true;
        self.target.inset_from(bytes);
    }

    /// What the target sends, as it goes onto the wire.
    fn take_from_target(&mut self) {
        let (mut bytes, mut insets) = (Vec::new(), VecDeque::new());
        self.target.take_output(&mut bytes, &mut insets);
        let mut from = 0;
        for inset in insets {
            self.to_host.extend_from_slice(&bytes[from..inset.at]);
            self.to_host.extend_from_slice(&inset.bytes);
            from = inset.at;
        }
        self.to_host.extend_from_slice(&bytes[from..]);
    }

    /// Moves bytes both ways, without executing requests; whether anything moved.
    pub(crate) fn exchange(&mut self) -> bool {
        self.to_target.append(self.host.output());
        self.take_from_target();
        let moved = !self.to_target.is_empty() || !self.to_host.is_empty();
        let (incoming, mut from) = (std::mem::take(&mut self.to_target), 0);
        while from < incoming.len() && self.target.wants_input() {
            let to = from + self.piece(incoming.len() - from);
            from += match self.target.receive_room().filter(|_| self.in_place) {
                Some(room) => {
                    let length = room.len().min(to - from);
                    room[..length].copy_from_slice(&incoming[from..from + length]);
                    self.target.received_in_place(length, self.now);
                    length
                }
                None => {
                    self.target.receive(&incoming[from..to], self.now);
                    to - from
                }
            };
        }
        self.to_target = incoming[from..].to_vec();
        self.deliver_to_host();
        moved
    }

    /// Moves what the target put out, and nothing the other way.
    pub(crate) fn exchange_to_host(&mut self) {
        self.take_from_target();
        self.deliver_to_host();
    }

    fn deliver_to_host(&mut self) {
        let (incoming, mut from) = (std::mem::take(&mut self.to_host), 0);
        while from < incoming.len() {
            let to = from + self.piece(incoming.len() - from);
            from += match self.host.receive_room().filter(|_| self.in_place) {
                Some(room) => {
                    let length = room.len().min(to - from);
                    room[..length].copy_from_slice(&incoming[from..from + length]);
                    self.host.received_in_place(length, self.now);
                    length
                }
                None => {
                    self.host.receive(&incoming[from..to], self.now);
                    to - from
                }
            };
        }
    }

    fn piece(&mut self, available: usize) -> usize {
        let size = self.pieces.pop_front().unwrap_or(usize::MAX);
        if size != usize::MAX {
            self.pieces.push_back(size);
        }
        size.clamp(1, available)
    }

    /// Runs until nothing moves any more.
    pub(crate) fn run(&mut self, disk: &mut Disk) {
        loop {
            let mut moved = self.exchange();
            while let Some(request) = self.target.next_request() {
                let (tag, outcome) = (request.tag, disk.serve(request));
                self.target.complete(tag, outcome);
                moved = true;
            }
            if !moved && self.target.output().is_empty() {
                return;
            }
        }
    }

    /// Submits and runs to the answer.
    pub(crate) fn ask(&mut self, disk: &mut Disk, command: Command) -> Answer {
        let tag = self.host.submit(command, self.now).expect("the queue takes the command");
        self.run(disk);
        self.answer(tag)
    }

    pub(crate) fn answer(&mut self, wanted: Tag) -> Answer {
        let mut others = Vec::new();
        while let Some(event) = self.host.next_event() {
            match event {
                InitiatorEvent::Completed { tag, status, dw0, dw1, data, .. } if tag == wanted => {
                    assert!(others.is_empty(), "events before the answer: {others:?}");
                    return Answer {
                        status,
                        dw0,
                        dw1,
                        data: data.map(|data| data.to_vec()).unwrap_or_default(),
                    };
                }
                other => others.push(other),
            }
        }
        panic!("no answer to {wanted:?}; instead {others:?}");
    }

    pub(crate) fn connected(&mut self, disk: &mut Disk) -> u16 {
        self.run(disk);
        match self.host.next_event() {
            Some(InitiatorEvent::Connected { controller }) => controller,
            other => panic!("not connected: {other:?}"),
        }
    }

    pub(crate) fn closed(&mut self) -> Closed {
        while let Some(event) = self.host.next_event() {
            if let InitiatorEvent::Closed { reason } = event {
                return reason;
            }
        }
        panic!("the connection is open");
    }
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: Status,
    pub(crate) dw0: u32,
    pub(crate) dw1: u32,
    pub(crate) data: Vec<u8>,
}

impl Answer {
    #[track_caller]
    pub(crate) fn succeeded(self) -> Self {
        assert!(self.status.is_success(), "{self:?}");
        self
    }

    pub(crate) fn u16_at(&self, offset: usize) -> u16 {
        u16::from_le_bytes(self.data[offset..offset + 2].try_into().expect("two bytes"))
    }

    pub(crate) fn u32_at(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.data[offset..offset + 4].try_into().expect("four bytes"))
    }

    pub(crate) fn u64_at(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.data[offset..offset + 8].try_into().expect("eight bytes"))
    }
}

/// An enabled controller: its admin connection, and its identifier.
pub(crate) struct Controller {
    pub(crate) admin: Wire,
    pub(crate) id: u16,
}

pub(crate) fn enabled_controller(
    target: &Arc<Target>,
    disk: &mut Disk,
    options: ConnectionOptions,
) -> Controller {
    let mut admin = Wire::new(
        target,
        InitiatorConnection::connect_admin(options, Duration::ZERO),
        Duration::ZERO,
    );
    let id = admin.connected(disk);
    admin.ask(disk, Command::property_set(0x14, 0x0046_0061)).succeeded();
    assert_eq!(admin.ask(disk, Command::property_get(0x1C, false)).succeeded().dw0, 1);
    Controller { admin, id }
}

/// An enabled controller with one I/O queue.
pub(crate) fn host(
    target: &Arc<Target>,
    disk: &mut Disk,
    options: ConnectionOptions,
) -> (Controller, Wire) {
    let mut controller = enabled_controller(target, disk, options.clone());
    controller.admin.ask(disk, Command::set_feature(7, 0x0003_0003)).succeeded();
    let io = InitiatorConnection::connect_io(options, controller.id, 1, 16 << 10, Duration::ZERO);
    let mut io = Wire::new(target, io, Duration::ZERO);
    assert_eq!(io.connected(disk), controller.id);
    (controller, io)
}

pub(crate) fn pattern(length: usize, seed: u8) -> Payload {
    let mut data = Buffer::zeroed(length);
    for (index, byte) in data.iter_mut().enumerate() {
        *byte = (index as u8).wrapping_mul(31).wrapping_add((index >> 8) as u8).wrapping_add(seed);
    }
    Payload::Owned(data)
}
