//! An NVMe/TCP array with a write cache that a power cut loses: our own target over real sockets,
//! before memory. Nodes use its namespace as a device.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use voute_buffer::Buffer;
use voute_nvme::{
    AnaState, Directory, HostView, NamespaceView, Operation, Outcome, Status, Subsystem, Target,
    TargetConfig, TargetConnection,
};
use voute_schemas::place::Locator;
use voute_schemas::{ClusterId, CorrelationId};

const SUBSYSTEM: &str = "nqn.2026-11.io.voute:test-array";
/// Logical block of the namespace, and what survives or is lost as one.
const BLOCK_BYTES: usize = 4096;
/// How long a connection waits for bytes before it looks at its timers.
const TICK: Duration = Duration::from_millis(50);

/// NVM Express Base 2.0, figure 101: media errors.
const WRITE_FAULT: Status = Status::new(2, 0x80, false);
const UNRECOVERED_READ_ERROR: Status = Status::new(2, 0x81, false);

/// What a write holds decides whether the array wrongly treats it as cached though it was to be
/// durable.
pub type Lie = fn(&[u8]) -> bool;

/// What an array does wrong. Blocks that cannot be read are apart: see [`Array::damage`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Trouble {
    /// Nothing.
    #[default]
    None,
    /// Every command fails.
    Dead,
    /// Every write fails.
    ReadOnly,
    /// There is no room for writes.
    Full,
    /// Commands are taken, and answered only once the trouble is over; connections stay up.
    Hangs,
}

/// An array. Ends when dropped.
pub struct Array {
    address: SocketAddr,
    namespace: CorrelationId,
    shared: Arc<Shared>,
}

struct Shared {
    target: Arc<Target>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    durable: HashMap<u64, Box<[u8]>>,
    /// Written and answered, not durable.
    cached: HashMap<u64, Box<[u8]>>,
    /// Rises with each cut; connections of earlier power are dead.
    power: u64,
    is_off: bool,
    is_over: bool,
    lie: Option<Lie>,
    connections: Vec<TcpStream>,
    fua_writes: u64,
    trouble: Trouble,
    /// Blocks that cannot be read until they are written.
    bad: BTreeSet<u64>,
}

impl Array {
    /// Starts an array of one namespace that admits the nodes of a cluster.
    ///
    /// # Errors
    /// If no loopback port is free.
    ///
    /// # Panics
    /// If our own target refuses its configuration.
    pub fn start(cluster: ClusterId, size_bytes: u64) -> anyhow::Result<Self> {
        let config = TargetConfig { has_volatile_cache: true, ..TargetConfig::default() };
        let target = Target::new(config).expect("the defaults are sound");
        // One place holds one device: each array has a namespace of its own.
        let namespace = CorrelationId::generate();
        target.publish(Arc::new(directory(cluster, namespace, size_bytes)));
        let shared = Arc::new(Shared { target, state: Mutex::default() });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let accepting = Arc::clone(&shared);
        std::thread::spawn(move || accepting.accept(&listener));
        Ok(Array { address, namespace, shared })
    }

    /// Where nodes find its namespace.
    #[must_use]
    pub fn locator(&self) -> Locator {
        Locator::RemoteNamespace {
            address: self.address,
            subsystem: SUBSYSTEM.to_owned(),
            namespace: self.namespace.to_string().replace('-', ""),
        }
    }

    /// Treats writes of which `lie` says so as cached, whatever was asked for; to show that a test
    /// notices such a device.
    pub fn set_lie(&self, lie: Lie) {
        self.shared.lock().lie = Some(lie);
    }

    /// Cuts the power: connections end, whatever is not durable is lost but for the blocks that
    /// `survives` picks, since a cache may have been written back in any order.
    pub fn cut_power(&self, mut survives: impl FnMut(u64) -> bool) {
        let mut state = self.shared.lock();
        state.power += 1;
        state.is_off = true;
        let cached = std::mem::take(&mut state.cached);
        state.durable.extend(cached.into_iter().filter(|(block, _)| survives(*block)));
        for connection in state.connections.drain(..) {
            // It may have ended by itself.
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    /// Does this wrong from now on.
    pub fn set_trouble(&self, trouble: Trouble) {
        self.shared.lock().trouble = trouble;
    }

    /// Makes blocks from this byte on unreadable until they are written: of those that were written,
    /// each that `picks`. How many.
    pub fn damage(&self, from: u64, mut picks: impl FnMut(u64) -> bool) -> usize {
        let mut state = self.shared.lock();
        let first = from / BLOCK_BYTES as u64;
        let written = state.durable.keys().filter(|block| **block >= first && picks(**block));
        let bad: BTreeSet<u64> = written.copied().collect();
        let count = bad.len();
        state.bad.extend(bad);
        count
    }

    /// How many blocks cannot be read.
    #[must_use]
    pub fn damaged(&self) -> usize {
        self.shared.lock().bad.len()
    }

    /// Gives power again.
    pub fn restore_power(&self) {
        self.shared.lock().is_off = false;
    }

    /// Writes that asked to be durable when answered.
    #[must_use]
    pub fn fua_writes(&self) -> u64 {
        self.shared.lock().fua_writes
    }
}

impl Drop for Array {
    fn drop(&mut self) {
        self.shared.lock().is_over = true;
        self.cut_power(|_| false);
        // Wakes the accepting thread.
        let _ = TcpStream::connect(self.address);
    }
}

fn directory(cluster: ClusterId, namespace: CorrelationId, size_bytes: u64) -> Directory {
    let namespace = NamespaceView {
        nsid: 1,
        uuid: namespace.bytes(),
        nguid: namespace.bytes(),
        block_size: BLOCK_BYTES as u32,
        blocks: size_bytes / BLOCK_BYTES as u64,
        ana_group: 1,
        state: AnaState::Optimized,
        read_only: false,
    };
    let view = Arc::new(HostView::new(vec![namespace]).expect("one namespace"));
    let host = format!("nqn.2014-08.org.nvmexpress:uuid:{cluster}");
    let hosts = BTreeMap::from([(host, view)]);
    let subsystem = Subsystem { serial: "1".to_owned(), hosts, keys: BTreeMap::new() };
    Directory::new(BTreeMap::from([(SUBSYSTEM.to_owned(), subsystem)]), Vec::new())
        .expect("one subsystem")
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(self: &Arc<Self>, listener: &TcpListener) {
        for stream in listener.incoming() {
            let mut state = self.lock();
            if state.is_over {
                return;
            }
            let (Ok(stream), false) = (stream, state.is_off) else { continue };
            let Ok(known) = stream.try_clone() else { continue };
            state.connections.push(known);
            let (shared, power) = (Arc::clone(self), state.power);
            std::thread::spawn(move || shared.serve(stream, power));
        }
    }

    /// One connection, until it ends or the power does.
    fn serve(&self, mut stream: TcpStream, power: u64) {
        let start = Instant::now();
        let mut connection = TargetConnection::new(Arc::clone(&self.target), 1, start.elapsed());
        let mut input = vec![0; 256 << 10];
        let is_ready = stream.set_read_timeout(Some(TICK)).and_then(|()| stream.set_nodelay(true));
        while is_ready.is_ok() && self.lock().power == power {
            match stream.read(&mut input) {
                Ok(0) => break,
                Ok(length) => connection.receive(&input[..length], start.elapsed()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
            connection.tick(start.elapsed());
            while self.lock().trouble != Trouble::Hangs
                && let Some(request) = connection.next_request()
            {
                let outcome = self.carry_out(request.operation, power);
                connection.complete(request.tag, outcome);
            }
            let output = std::mem::take(connection.output());
            if stream.write_all(&output).is_err() || connection.is_closing() {
                break;
            }
        }
        connection.disconnected();
    }

    /// Each block under a lock of its own: a power cut may tear an operation between any two.
    fn carry_out(&self, operation: Operation, power: u64) -> Outcome {
        let (trouble, is_read) = (self.lock().trouble, matches!(operation, Operation::Read { .. }));
        match trouble {
            Trouble::Dead => return Outcome::Failed(Status::internal_error()),
            Trouble::ReadOnly if !is_read => return Outcome::Failed(WRITE_FAULT),
            Trouble::Full if !is_read => return Outcome::Failed(Status::capacity_exceeded()),
            Trouble::ReadOnly | Trouble::Full | Trouble::None | Trouble::Hangs => {}
        }
        let done = match operation {
            Operation::Read { lba, blocks } => return self.read(lba, blocks),
            Operation::Write { lba, data, fua, .. } => (lba..)
                .zip(data.chunks_exact(BLOCK_BYTES))
                .all(|(block, bytes)| self.write(block, bytes, fua, power)),
            Operation::WriteZeroes { lba, blocks, .. } => {
                let zeroes = vec![0; BLOCK_BYTES];
                (lba..lba + u64::from(blocks)).all(|block| self.write(block, &zeroes, false, power))
            }
            Operation::Flush => self.flush(power),
            other => {
                eprintln!("the array was asked for something that it has not: {other:?}");
                false
            }
        };
        if done { Outcome::Done } else { Outcome::Failed(Status::internal_error()) }
    }

    fn read(&self, lba: u64, blocks: u32) -> Outcome {
        let state = self.lock();
        if state.bad.range(lba..lba + u64::from(blocks)).next().is_some() {
            return Outcome::Failed(UNRECOVERED_READ_ERROR);
        }
        let mut data = Buffer::zeroed(blocks as usize * BLOCK_BYTES);
        for (block, part) in (lba..).zip(data.chunks_exact_mut(BLOCK_BYTES)) {
            if let Some(bytes) = state.cached.get(&block).or_else(|| state.durable.get(&block)) {
                part.copy_from_slice(bytes);
            }
        }
        Outcome::Data(data)
    }

    fn write(&self, block: u64, bytes: &[u8], fua: bool, power: u64) -> bool {
        let mut state = self.lock();
        if state.power != power {
            return false;
        }
        state.fua_writes += u64::from(fua);
        state.bad.remove(&block);
        let is_durable = fua && !state.lie.is_some_and(|lie| lie(bytes));
        if is_durable {
            state.cached.remove(&block);
            state.durable.insert(block, bytes.into());
        } else {
            state.cached.insert(block, bytes.into());
        }
        true
    }

    fn flush(&self, power: u64) -> bool {
        let mut state = self.lock();
        if state.power != power {
            return false;
        }
        let cached = std::mem::take(&mut state.cached);
        let lie = state.lie;
        for (block, bytes) in cached {
            let is_kept_back = lie.is_some_and(|lie| lie(&bytes));
            let place = if is_kept_back { &mut state.cached } else { &mut state.durable };
            place.insert(block, bytes);
        }
        true
    }
}
