//! A load generator for any NVMe/TCP target, over our own initiator: one thread, one I/O queue, any
//! depth; random or sequential; every block verified if asked for.

use crate::pace::{Pace, Report, pin, ready};
use anyhow::{Context, bail};
use std::io::{ErrorKind, IoSliceMut, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};
use voute_buffer::Buffer;
use voute_nvme::{
    Attachment, AttachmentUpdate, Command, ConnectionOptions, InitiatorConnection, InitiatorEvent,
    Payload, RemoteNamespace,
};
use voute_nvme::{Credentials, Digests, HostKeys, Secret, Seed, Tag};

/// Bytes read from a socket at a time.
const INPUT_BYTES: usize = 128 << 10;
/// Least data of one answer that is received apart from what else comes.
const IN_PLACE_MIN: usize = 8_192;
/// What is received along with such data.
const BEYOND_BYTES: usize = 4_096;
/// Least time between two looks at the admin connection and the deadlines.
const TICK_EVERY: Duration = Duration::from_millis(10);

/// Time between two looks at connections that are only held: a small part of the keep-alive time.
const HOLD_EVERY: Duration = Duration::from_millis(250);

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Workload {
    /// Random reads.
    RandomRead,
    /// Random writes.
    RandomWrite,
    /// Half of each.
    RandomMixed,
    /// Reads one after the other.
    SequentialRead,
    /// Writes one after the other.
    SequentialWrite,
}

/// How to do it.
#[derive(Clone, Debug)]
pub struct Load {
    /// The target.
    pub address: SocketAddr,
    /// Its subsystem.
    pub subsystem: String,
    /// Who we are.
    pub host_nqn: String,
    /// Namespace; the first one if `None`.
    pub nsid: Option<u32>,
    /// What.
    pub workload: Workload,
    /// Bytes of a request.
    pub request_bytes: u32,
    /// Requests under way.
    pub depth: u16,
    /// For how long.
    pub duration: Duration,
    /// Only this many bytes from the namespace's begin; all if `None`.
    pub span_bytes: Option<u64>,
    /// Check what is read against what this run wrote there.
    pub verify: bool,
    /// Header and data digests.
    pub digests: bool,
    /// Key that the host proves (DH-HMAC-CHAP).
    pub key: Option<Secret>,
    /// Time from the end of a request to the next one.
    pub pause: Duration,
    /// Processor to run on.
    pub processor: Option<usize>,
}

/// One socket and the state machine that speaks through it.
struct Wire {
    stream: TcpStream,
    connection: InitiatorConnection,
    input: Vec<u8>,
    output: Vec<u8>,
    /// How much of it is sent.
    sent: usize,
    begin: Instant,
}

impl Wire {
    fn open(
        address: SocketAddr,
        connection: InitiatorConnection,
        begin: Instant,
    ) -> anyhow::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))
            .with_context(|| format!("{address} cannot be reached"))?;
        ready(&stream)?;
        let (input, output) = (vec![0; INPUT_BYTES], Vec::new());
        Ok(Wire { stream, connection, input, output, sent: 0, begin })
    }

    /// Sends what waits, takes what came. Never blocks.
    fn poll(&mut self) -> anyhow::Result<()> {
        self.send()?;
        self.receive()
    }

    fn send(&mut self) -> anyhow::Result<()> {
        loop {
            if self.sent == self.output.len() {
                self.sent = 0;
                self.output.clear();
                std::mem::swap(&mut self.output, self.connection.output());
            }
            if self.output.is_empty() {
                return Ok(());
            }
            match self.stream.write(&self.output[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("the target closed the connection"),
            }
        }
    }

    /// Data goes straight into the command's buffer where that is known already.
    fn receive(&mut self) -> anyhow::Result<()> {
        let room = self.connection.receive_room().filter(|room| room.len() >= IN_PLACE_MIN);
        let in_place = room.as_ref().map_or(0, |room| room.len());
        let received = match room {
            Some(room) => {
                let beyond = &mut self.input[..BEYOND_BYTES];
                self.stream.read_vectored(&mut [IoSliceMut::new(room), IoSliceMut::new(beyond)])
            }
            None => self.stream.read(&mut self.input),
        };
        let now = self.begin.elapsed();
        match received {
            Ok(0) => bail!("the target closed the connection"),
            Ok(count) => {
                if in_place > 0 {
                    self.connection.received_in_place(count.min(in_place), now);
                }
                let beyond = count.saturating_sub(in_place);
                self.connection.receive(&self.input[..beyond], now);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("the connection failed"),
        }
        Ok(())
    }
}

/// A namespace with an admin and an I/O queue.
struct Attached {
    admin: Wire,
    attachment: Attachment,
    io: Wire,
    namespace: RemoteNamespace,
}

fn attach(load: &Load, begin: Instant) -> anyhow::Result<Attached> {
    let digests = Digests { header: load.digests, data: load.digests };
    let host_id = *b"voute load gener";
    // Whoever measures speed with it hides nothing: the numbers may be foreseen.
    let credentials = load
        .key
        .clone()
        .map(|host| Credentials { keys: HostKeys { host, controller: None }, seed: Seed([7; 32]) });
    let options = ConnectionOptions {
        digests,
        credentials,
        queue_depth: load.depth.saturating_add(1).max(2),
        ..ConnectionOptions::new(&load.host_nqn, host_id, &load.subsystem)
    };
    let admin = InitiatorConnection::connect_admin(
        ConnectionOptions { queue_depth: 32, ..options.clone() },
        begin.elapsed(),
    );
    let mut admin = Wire::open(load.address, admin, begin)?;
    let mut attachment = Attachment::new(1);
    let (mut facts, mut namespaces) = (None, None);
    let deadline = Instant::now() + Duration::from_secs(10);
    while namespaces.is_none() {
        poll_admin(&mut admin, &mut attachment)?;
        while let Some(update) = attachment.next_update() {
            match update {
                AttachmentUpdate::Ready(ready) => facts = Some(ready),
                AttachmentUpdate::Namespaces(list) => namespaces = Some(list),
                AttachmentUpdate::Failed(error) => {
                    return Err(error).context("the target cannot be attached");
                }
            }
        }
        if Instant::now() > deadline {
            bail!("{} did not finish attaching within 10 s", load.address);
        }
    }
    let wanted = |namespace: &RemoteNamespace| load.nsid.is_none_or(|nsid| namespace.nsid == nsid);
    let namespace = namespaces
        .into_iter()
        .flatten()
        .find(wanted)
        .context("the subsystem shows no such namespace to this host")?;
    let facts = facts.context("the target never became ready")?;
    let (controller, in_capsule_max) = (facts.controller, facts.in_capsule_max);
    let mut io = Wire::open(
        load.address,
        InitiatorConnection::connect_io(options, controller, 1, in_capsule_max, begin.elapsed()),
        begin,
    )?;
    loop {
        io.poll()?;
        match io.connection.next_event() {
            Some(InitiatorEvent::Connected { .. }) => {
                return Ok(Attached { admin, attachment, io, namespace });
            }
            Some(InitiatorEvent::Closed { reason }) => bail!("the I/O queue was refused: {reason}"),
            _ if Instant::now() > deadline => bail!("the I/O queue did not connect within 10 s"),
            _ => {}
        }
    }
}

fn poll_admin(admin: &mut Wire, attachment: &mut Attachment) -> anyhow::Result<()> {
    admin.poll()?;
    let now = admin.begin.elapsed();
    admin.connection.tick(now);
    attachment.tick(&mut admin.connection, now);
    while let Some(event) = admin.connection.next_event() {
        if let Some(InitiatorEvent::Closed { reason }) =
            attachment.handle(&mut admin.connection, event, now)
        {
            bail!("the admin queue ended: {reason}");
        }
    }
    Ok(())
}

struct UnderWay {
    slot: u64,
    write: Option<u64>,
    at: Instant,
}

/// What a slot holds: the value of its last write that finished, and of one under way.
#[derive(Clone, Copy, Default)]
struct Slot {
    known: Option<u64>,
    busy: bool,
}

/// Attaches `count` times one after the other and returns how long each took: two connections, and what
/// is read about the namespace. All stay attached without requests, for [`Load::duration`] after the
/// last.
///
/// # Errors
/// If the target cannot be reached, refuses, or ends a connection.
pub fn attach_and_hold(load: &Load, count: usize) -> anyhow::Result<Vec<Duration>> {
    let (mut held, mut took) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let begin = Instant::now();
        held.push(attach(load, begin)?);
        took.push(begin.elapsed());
        keep_alive(&mut held)?;
    }
    let until = Instant::now() + load.duration;
    while Instant::now() < until {
        keep_alive(&mut held)?;
        std::thread::sleep(HOLD_EVERY);
    }
    Ok(took)
}

fn keep_alive(held: &mut [Attached]) -> anyhow::Result<()> {
    for one in held {
        one.io.poll()?;
        one.io.connection.tick(one.io.begin.elapsed());
        poll_admin(&mut one.admin, &mut one.attachment)?;
    }
    Ok(())
}

/// Runs a load and reports it.
///
/// # Errors
/// If the target cannot be reached, ends a connection, fails a request, or returns other data than
/// was written (with `verify`).
pub fn run(load: &Load) -> anyhow::Result<Report> {
    if let Some(processor) = load.processor {
        pin(processor)?;
    }
    let begin = Instant::now();
    let mut attached = attach(load, begin)?;
    let block = attached.namespace.block_size;
    if load.request_bytes == 0 || !load.request_bytes.is_multiple_of(block) {
        bail!(
            "requests of {} bytes are no multiple of the namespace's {block}-byte blocks",
            load.request_bytes
        );
    }
    let size = attached.namespace.blocks * u64::from(block);
    let slots = load.span_bytes.unwrap_or(size).min(size) / u64::from(load.request_bytes);
    if slots < u64::from(load.depth) {
        bail!(
            "the namespace has room for {slots} requests only; use a smaller depth or larger span"
        );
    }
    let mut run = Run {
        load,
        blocks: load.request_bytes / block,
        slots: vec![Slot::default(); usize::try_from(slots)?],
        under_way: Vec::new(),
        outstanding: 0,
        resume_at: begin,
        random: 0x9E37_79B9_7F4A_7C15,
        sequential: 0,
        value: 0,
        pace: Pace::default(),
    };
    let started = Instant::now();
    let mut admin_at = started;
    let mut now = started;
    while now.duration_since(started) < load.duration {
        now = Instant::now();
        while run.outstanding < usize::from(load.depth)
            && now >= run.resume_at
            && attached.io.connection.room() > 0
        {
            run.submit(&mut attached, now)?;
        }
        attached.io.poll()?;
        if let Some(event) = attached.io.connection.next_event() {
            let now = Instant::now();
            run.completed(event, now)?;
            while let Some(event) = attached.io.connection.next_event() {
                run.completed(event, now)?;
            }
        }
        if now.duration_since(admin_at) > TICK_EVERY {
            admin_at = now;
            attached.io.connection.tick(attached.io.begin.elapsed());
            poll_admin(&mut attached.admin, &mut attached.attachment)?;
        }
    }
    Ok(run.pace.report(started.elapsed(), u64::from(load.request_bytes)))
}

struct Run<'a> {
    load: &'a Load,
    blocks: u32,
    slots: Vec<Slot>,
    /// By the low 16 bits of the tag, which are the command's identifier.
    under_way: Vec<Option<(Tag, UnderWay)>>,
    outstanding: usize,
    /// No request is sent earlier.
    resume_at: Instant,
    random: u64,
    sequential: u64,
    value: u64,
    pace: Pace,
}

impl Run<'_> {
    fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn choose(&mut self) -> (u64, bool) {
        let count = self.slots.len() as u64;
        let (slot, write) = match self.load.workload {
            Workload::RandomRead => (self.next_random() % count, false),
            Workload::RandomWrite => (self.next_random() % count, true),
            Workload::RandomMixed => {
                (self.next_random() % count, self.next_random() >> 32 & 1 == 0)
            }
            Workload::SequentialRead | Workload::SequentialWrite => {
                self.sequential += 1;
                ((self.sequential - 1) % count, self.load.workload == Workload::SequentialWrite)
            }
        };
        (slot, write)
    }

    fn submit(&mut self, attached: &mut Attached, now: Instant) -> anyhow::Result<()> {
        let (mut slot, write) = self.choose();
        while self.load.verify && self.slots[slot as usize].busy {
            slot = (slot + 1) % self.slots.len() as u64;
        }
        self.slots[slot as usize].busy = true;
        let (nsid, lba) = (attached.namespace.nsid, slot * u64::from(self.blocks));
        let (command, value) = if write {
            self.value += 1;
            let mut data = Buffer::for_filling(self.load.request_bytes as usize);
            if self.load.verify {
                fill(&mut data, slot, self.value);
            }
            (Command::write(nsid, lba, self.blocks, Payload::Owned(data), false), Some(self.value))
        } else {
            (Command::read(nsid, lba, self.blocks, attached.namespace.block_size), None)
        };
        let since = now.saturating_duration_since(attached.io.begin);
        let tag = attached.io.connection.submit(command, since)?;
        let place = place_of(tag);
        if place >= self.under_way.len() {
            self.under_way.resize_with(place + 1, || None);
        }
        self.under_way[place] = Some((tag, UnderWay { slot, write: value, at: now }));
        self.outstanding += 1;
        Ok(())
    }

    fn completed(&mut self, event: InitiatorEvent, now: Instant) -> anyhow::Result<()> {
        let (tag, status, data) = match event {
            InitiatorEvent::Completed { tag, status, data, .. } => (tag, status, data),
            InitiatorEvent::Closed { reason } => bail!("the I/O queue ended: {reason}"),
            InitiatorEvent::Connected { .. } | InitiatorEvent::Lost { .. } => return Ok(()),
        };
        let place = self.under_way.get_mut(place_of(tag));
        let under_way = place.and_then(|place| place.take_if(|(known, _)| *known == tag));
        let Some((_, done)) = under_way else { return Ok(()) };
        self.outstanding -= 1;
        self.resume_at = now + self.load.pause;
        self.pace.note(done.at, now);
        if !status.is_success() {
            bail!("a request at slot {} failed: {status}", done.slot);
        }
        let slot = &mut self.slots[done.slot as usize];
        slot.busy = false;
        match (done.write, data, slot.known) {
            (Some(value), _, _) => slot.known = Some(value),
            (None, Some(data), Some(known)) if self.load.verify => {
                let mut expected = Buffer::zeroed(data.len());
                fill(&mut expected, done.slot, known);
                if data[..] != expected[..] {
                    bail!("slot {} does not hold what was written there", done.slot);
                }
            }
            (None, _, _) => {}
        }
        Ok(())
    }
}

fn place_of(tag: Tag) -> usize {
    (tag.to_bits() & 0xFFFF) as usize
}

fn fill(data: &mut [u8], slot: u64, value: u64) {
    for (index, word) in data.chunks_exact_mut(8).enumerate() {
        let mixed =
            (slot ^ value.rotate_left(32) ^ index as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        word.copy_from_slice(&mixed.to_le_bytes());
    }
}
