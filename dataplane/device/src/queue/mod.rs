//! One reactor's way to the devices of its node.
//!
//! A request on a leg is cut at the borders of the leg's runs into *operations* on devices, each with
//! at most one entry in the ring; the request completes once, when its last operation has.
//!
//! ```text
//! submit ─► backlog of a device ─► operation ─► ring ─► completion ─┬─► short, or next step: ring
//!              (when DEPTH are out)   │                             └─► last one: ready ─► complete
//!                                     ├─► memory: done at once ─────────────────────────┘
//!                                     └─► order ─► mailbox ─────────────────────────────┘
//! ```
//!
//! Bounds: [`REQUESTS_MAX`] requests; `depth` operations out per device, so that a device that hangs
//! takes nothing from the others; the read buffer of a request exists only while it is out.

mod operation;
mod ring;
#[cfg(test)]
mod tests;

use crate::mailbox::{Mailbox, Order, OrderKind, Reply};
use crate::open::{Backend, OpenDevice};
use operation::{Operation, Step, Work};
use ring::Ring;
use slab::Slab;
use std::collections::{HashMap, VecDeque};
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use voute_buffer::{Buffer, LENGTH_MAX};
use voute_mirror::{
    DeviceFault, DeviceKind, DeviceRequest, DeviceResult, DeviceTag, Payload, TRANSFER_MAX,
};
use voute_schemas::place::{DEVICE_HEADER_BYTES, ExtentRun};
use voute_schemas::{DeviceId, LegId};

/// Most requests that a queue holds; one more completes as [`DeviceFault::Failed`]. See
/// [`DeviceQueue::has_room`].
pub const REQUESTS_MAX: usize = 65_536;
/// Largest `depth` of [`DeviceQueue::new`].
pub const DEPTH_MAX: u32 = 4_096;

/// The devices of a node, as one reactor uses them. Stays on the thread that made it: its ring
/// accepts no other.
///
/// The reactor's duties: [`submit`](Self::submit) what there is, then
/// [`flush_submissions`](Self::flush_submissions); call [`complete`](Self::complete) until `None`
/// before it sleeps, for memory answers at once and nothing else says so; sleep with a poll on
/// [`as_fd`](AsFd::as_fd) for readability, then call `complete` again. `complete` enters the kernel
/// only when the ring says that completions wait to be posted, or to submit what completions gave
/// rise to, so that spinning on it costs no system call.
pub struct DeviceQueue {
    ring: Ring,
    depth: usize,
    slots: Vec<Slot>,
    slot_of: HashMap<DeviceId, usize>,
    legs: HashMap<LegId, Leg>,
    requests: Slab<Request>,
    operations: Slab<Operation>,
    ready: VecDeque<(DeviceTag, DeviceResult)>,
    mailbox: Arc<Mailbox>,
    /// Submitted, and not yet given out by `complete`.
    pending: usize,
    zeroes: Option<Payload>,
    _stays_on_its_thread: PhantomData<*const ()>,
}

/// A device's place in a queue.
struct Slot {
    id: DeviceId,
    /// `None` before it is added and after it is removed.
    device: Option<Arc<OpenDevice>>,
    /// Operations out.
    out: usize,
    /// Requests that begin on this device and wait for operations to end.
    backlog: VecDeque<DeviceRequest>,
    /// Faults so far.
    faults: u64,
}

struct Leg {
    length: u64,
    runs: Rc<[Run]>,
}

/// Part of a leg's space that is consecutive on a device.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// Where in the leg it begins, bytes.
    begin: u64,
    length: u64,
    slot: usize,
    /// Where on the device it begins, bytes.
    position: u64,
}

/// A request under way.
struct Request {
    tag: DeviceTag,
    memory: Memory,
    /// Operations not done, and one while they are still being made.
    parts: usize,
    fault: Option<DeviceFault>,
}

/// What the kernel reads from or writes to while operations are out.
enum Memory {
    Read(Buffer),
    Write(Payload),
    Zero,
}

impl DeviceQueue {
    /// A queue that has at most `depth` operations out per device.
    ///
    /// # Errors
    /// If the kernel gives no ring: `ENOSYS` or `EPERM` where io_uring is switched off,
    /// `ENOMEM` under a too small memlock limit.
    ///
    /// # Panics
    /// If `depth` is 0 or over [`DEPTH_MAX`].
    pub fn new(depth: u32) -> io::Result<Self> {
        assert!((1..=DEPTH_MAX).contains(&depth), "a depth of {depth} is not in 1..={DEPTH_MAX}");
        Ok(DeviceQueue {
            ring: Ring::new(depth)?,
            depth: depth as usize,
            slots: Vec::new(),
            slot_of: HashMap::new(),
            legs: HashMap::new(),
            requests: Slab::new(),
            operations: Slab::new(),
            ready: VecDeque::new(),
            mailbox: Arc::new(Mailbox::new()?),
            pending: 0,
            zeroes: None,
            _stays_on_its_thread: PhantomData,
        })
    }

    /// Lets legs use a device; replaces an earlier one of the same id, whose operations end by
    /// themselves. Legs may be attached before or after.
    pub fn add_device(&mut self, id: DeviceId, device: Arc<OpenDevice>) {
        if matches!(device.backend, Backend::Detached(_)) {
            self.ring.watch(self.mailbox.as_fd().as_raw_fd());
        }
        let slot = self.slot(id);
        self.slots[slot].device = Some(device);
    }

    /// Drops this queue's reference to a device. Operations that are out end by themselves; new ones
    /// complete as [`DeviceFault::Failed`].
    pub fn remove_device(&mut self, id: DeviceId) {
        if let Some(slot) = self.slot_of.get(&id).copied() {
            self.slots[slot].device = None;
        }
    }

    fn slot(&mut self, id: DeviceId) -> usize {
        *self.slot_of.entry(id).or_insert_with(|| {
            let backlog = VecDeque::new();
            self.slots.push(Slot { id, device: None, out: 0, backlog, faults: 0 });
            self.slots.len() - 1
        })
    }

    /// Says where a leg lies, or, when it has grown, where it lies now.
    pub fn attach_leg(&mut self, leg: LegId, extent_bytes: u64, runs: &[ExtentRun]) {
        let mut length = 0u64;
        let runs = runs
            .iter()
            .map(|run| {
                let slot = self.slot(run.device);
                // A run beyond any device saturates, and is refused when it is used.
                let run = Run {
                    begin: length,
                    length: run.count.saturating_mul(extent_bytes),
                    slot,
                    position: run
                        .first
                        .saturating_mul(extent_bytes)
                        .saturating_add(DEVICE_HEADER_BYTES),
                };
                length = length.saturating_add(run.length);
                run
            })
            .collect();
        self.legs.insert(leg, Leg { length, runs });
    }

    /// Forgets a leg. Requests that are out complete as if it were there; those that wait in a
    /// device's backlog, and new ones, as [`DeviceFault::Failed`].
    pub fn detach_leg(&mut self, leg: LegId) {
        self.legs.remove(&leg);
    }

    /// Takes a request. It is given back exactly once by [`complete`](Self::complete), whatever
    /// becomes of it; overlapping requests are carried out in no particular order.
    pub fn submit(&mut self, request: DeviceRequest) {
        self.pending += 1;
        if self.pending > REQUESTS_MAX {
            tracing::error!(leg = %request.leg, "over {REQUESTS_MAX} requests wait for devices");
            self.ready.push_back((request.tag, Err(DeviceFault::Failed)));
            return;
        }
        let Some(slot) = self.first_slot(&request) else {
            self.refuse(&request, "is not in the leg");
            return;
        };
        if self.slots[slot].out < self.depth && self.slots[slot].backlog.is_empty() {
            self.begin(request);
        } else {
            self.slots[slot].backlog.push_back(request);
        }
    }

    /// Whether [`submit`](Self::submit) will take another request. While it is false a reactor takes
    /// no more requests from its mirror.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.pending < REQUESTS_MAX
    }

    /// The next finished request; pull until `None`, which also submits what completions gave rise
    /// to.
    pub fn complete(&mut self) -> Option<(DeviceTag, DeviceResult)> {
        if self.ready.is_empty() {
            self.reap();
        }
        let done = self.ready.pop_front();
        self.pending -= usize::from(done.is_some());
        done
    }

    /// Hands queued entries to the kernel: one system call if there are any.
    pub fn flush_submissions(&mut self) {
        self.ring.flush();
    }

    /// Requests submitted and not yet given out by [`complete`](Self::complete).
    #[must_use]
    pub fn pending(&self) -> usize {
        self.pending
    }

    /// The slot of the device on which a request begins, if the leg has all of its range.
    fn first_slot(&self, request: &DeviceRequest) -> Option<usize> {
        let leg = self.legs.get(&request.leg)?;
        let end = request.offset.checked_add(length_of(&request.kind))?;
        (end <= leg.length).then(|| run_at(&leg.runs, request.offset)).flatten().map(|run| run.slot)
    }

    fn refuse(&mut self, request: &DeviceRequest, why: &str) {
        let (offset, length) = (request.offset, length_of(&request.kind));
        tracing::error!(leg = %request.leg, offset, length, "a request on a device {why}");
        self.ready.push_back((request.tag, Err(DeviceFault::Failed)));
    }

    /// Cuts a request into operations and starts them.
    fn begin(&mut self, request: DeviceRequest) {
        // Looked up again: the leg may have gone while the request waited.
        let Some(leg) = self.legs.get(&request.leg) else {
            self.refuse(&request, "is on a leg that was detached");
            return;
        };
        let runs = Rc::clone(&leg.runs);
        let length = length_of(&request.kind);
        let (memory, work) = match request.kind {
            DeviceKind::Read { length } if length as usize > LENGTH_MAX => {
                self.refuse(&request, "reads too much at once");
                return;
            }
            DeviceKind::Read { length } => {
                (Memory::Read(Buffer::for_filling(length as usize)), Work::Read)
            }
            DeviceKind::Write { data } => (Memory::Write(data), Work::Write),
            DeviceKind::Zero { release, .. } => (Memory::Zero, Work::Zero { release }),
        };
        let key = self.requests.insert(Request { tag: request.tag, memory, parts: 1, fault: None });
        for piece in pieces(&runs, request.offset, length) {
            self.requests[key].parts += 1;
            self.start(key, work, piece);
        }
        self.part_done(key, Ok(()));
    }

    /// Starts one operation of a request.
    fn start(&mut self, request: usize, work: Work, piece: Piece) {
        let Some(device) = self.usable(&piece) else {
            self.part_done(request, Err(DeviceFault::Failed));
            return;
        };
        match &device.backend {
            Backend::Memory(disk) => {
                match &mut self.requests[request].memory {
                    Memory::Read(buffer) => disk.read(piece.position, &mut buffer[piece.range()]),
                    Memory::Write(data) => disk.write(piece.position, &data[piece.range()]),
                    Memory::Zero => disk.zero(piece.position, piece.length),
                }
                self.part_done(request, Ok(()));
            }
            Backend::Kernel(disk) => {
                let step = Step::first(work, disk);
                self.slots[piece.slot].out += 1;
                let operation = Operation::new(request, Arc::clone(&device), piece, step);
                let key = self.operations.insert(operation);
                self.push(key);
            }
            Backend::Detached(detached) => {
                let kind = match &self.requests[request].memory {
                    Memory::Read(_) => OrderKind::Read { length: piece.length_32() },
                    Memory::Write(data) => OrderKind::Write {
                        data: Arc::clone(data),
                        from: piece.range().start,
                        length: piece.range().len(),
                    },
                    Memory::Zero => OrderKind::Zero {
                        length: piece.length,
                        release: matches!(work, Work::Zero { release: true }),
                    },
                };
                self.slots[piece.slot].out += 1;
                let operation = Operation::new(request, Arc::clone(&device), piece, Step::Ordered);
                let key = self.operations.insert(operation);
                let reply = Reply::new(Arc::clone(&self.mailbox), key);
                detached.start(Order { offset: piece.position, kind, reply });
            }
        }
    }

    fn usable(&self, piece: &Piece) -> Option<Arc<OpenDevice>> {
        let device = self.slots[piece.slot].device.as_ref()?;
        let end = piece.position.checked_add(piece.length)?;
        (end <= device.size_bytes).then(|| Arc::clone(device))
    }

    /// Puts the next entry of an operation into the ring.
    fn push(&mut self, key: usize) {
        let operation = &self.operations[key];
        let Backend::Kernel(disk) = &operation.device.backend else {
            unreachable!("only operations on files and block devices use the ring");
        };
        let zeroes = &mut self.zeroes;
        let entry = match &mut self.requests[operation.request].memory {
            Memory::Read(buffer) => operation.entry(disk, buffer.as_mut_ptr()),
            Memory::Write(data) => operation.entry(disk, data.as_ptr().cast_mut()),
            Memory::Zero => {
                let make = || Arc::new(Buffer::zeroed(TRANSFER_MAX as usize));
                operation.entry(disk, zeroes.get_or_insert_with(make).as_ptr().cast_mut())
            }
        };
        // SAFETY: the memory that the entry names belongs to the request (or is `self.zeroes`), is
        // as long as the operation says, and neither moves nor is freed before the operation's
        // completion was reaped: `part_done` is the only place that removes a request, `drop` waits
        // for what is out. The descriptor is kept open by the operation's reference to the device.
        unsafe { self.ring.push(entry.user_data(key as u64)) };
    }

    /// Takes completions from the ring and from the mailbox.
    fn reap(&mut self) {
        while let Some((key, result)) = self.ring.next_completion() {
            match key {
                ring::MAILBOX => self.take_mail(),
                key => self.kernel_done(key as usize, result),
            }
        }
        self.ring.flush();
    }

    fn take_mail(&mut self) {
        for (key, result) in self.mailbox.take() {
            let operation = &self.operations[key];
            let range = operation.range();
            let result = match (result, &mut self.requests[operation.request].memory) {
                (Ok(Some(data)), Memory::Read(buffer)) if data.len() == range.len() => {
                    if data.len() == buffer.len() {
                        *buffer = data;
                    } else {
                        buffer[range].copy_from_slice(&data);
                    }
                    Ok(())
                }
                (Ok(_), Memory::Read(_)) => Err(DeviceFault::Failed),
                (Ok(_), Memory::Write(_) | Memory::Zero) => Ok(()),
                (Err(fault), _) => Err(fault),
            };
            self.operation_done(key, result);
        }
    }

    fn kernel_done(&mut self, key: usize, result: i32) {
        match self.operations[key].advance(result) {
            operation::Next::Again => self.push(key),
            operation::Next::Done(outcome) => self.operation_done(key, outcome),
        }
    }

    fn operation_done(&mut self, key: usize, outcome: Result<(), DeviceFault>) {
        let operation = self.operations.remove(key);
        let slot = &mut self.slots[operation.slot()];
        slot.out -= 1;
        if let Err(fault) = outcome {
            slot.faults += 1;
            if slot.faults.is_power_of_two() {
                let (device, faults) = (slot.id, slot.faults);
                tracing::warn!(%device, faults, offset = operation.offset(), %fault, "device fault");
            }
        }
        let slot = operation.slot();
        self.part_done(operation.request, outcome);
        while self.slots[slot].out < self.depth
            && let Some(request) = self.slots[slot].backlog.pop_front()
        {
            self.begin(request);
        }
    }

    /// One part of a request is done; after the last, the request is.
    fn part_done(&mut self, key: usize, outcome: Result<(), DeviceFault>) {
        let request = &mut self.requests[key];
        request.parts -= 1;
        if let Err(fault) = outcome {
            request.fault = Some(request.fault.map_or(fault, |earlier| worse(earlier, fault)));
        }
        if request.parts > 0 {
            return;
        }
        let request = self.requests.remove(key);
        let result = match (request.fault, request.memory) {
            (Some(fault), _) => Err(fault),
            (None, Memory::Read(buffer)) => Ok(Some(buffer)),
            (None, Memory::Write(_) | Memory::Zero) => Ok(None),
        };
        self.ready.push_back((request.tag, result));
    }
}

impl AsFd for DeviceQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl AsRawFd for DeviceQueue {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_fd().as_raw_fd()
    }
}

impl Drop for DeviceQueue {
    /// Waits for what the kernel was given: it reads and writes memory of ours.
    fn drop(&mut self) {
        if self.ring.drain() {
            return;
        }
        tracing::error!("a device does not answer: its buffers are given up, not freed");
        std::mem::forget(std::mem::take(&mut self.requests));
        std::mem::forget(std::mem::take(&mut self.operations));
        std::mem::forget(self.zeroes.take());
    }
}

fn length_of(kind: &DeviceKind) -> u64 {
    match kind {
        DeviceKind::Read { length } => u64::from(*length),
        DeviceKind::Write { data } => data.len() as u64,
        DeviceKind::Zero { length, .. } => *length,
    }
}

/// Of two faults, the one that says more about the whole device.
fn worse(one: DeviceFault, other: DeviceFault) -> DeviceFault {
    let rank = |fault| match fault {
        DeviceFault::Medium => 0,
        DeviceFault::Unclear => 1,
        DeviceFault::NoSpace => 2,
        DeviceFault::Failed => 3,
    };
    if rank(one) >= rank(other) { one } else { other }
}

/// Part of a request that is consecutive on a device.
#[derive(Clone, Copy, Debug)]
struct Piece {
    slot: usize,
    /// Where on the device, bytes.
    position: u64,
    length: u64,
    /// Where in the request, bytes.
    at: u64,
}

impl Piece {
    /// Its part of the request's memory. Only for requests that have memory, which is at most
    /// `LENGTH_MAX` long.
    fn range(&self) -> std::ops::Range<usize> {
        self.at as usize..(self.at + self.length) as usize
    }

    fn length_32(&self) -> u32 {
        u32::try_from(self.length).expect("a buffer is shorter than 4 GiB")
    }
}

/// The run that holds this offset; for the very end of a leg its last run.
fn run_at(runs: &[Run], offset: u64) -> Option<&Run> {
    runs.get(runs.partition_point(|run| run.begin <= offset).checked_sub(1)?)
}

/// Cuts a range of a leg at the borders of its runs. The range lies within them.
fn pieces(runs: &[Run], offset: u64, length: u64) -> impl Iterator<Item = Piece> {
    let mut at = 0;
    std::iter::from_fn(move || {
        if at == length {
            return None;
        }
        let run = run_at(runs, offset + at)?;
        let within = offset + at - run.begin;
        let piece_length = (run.length - within).min(length - at);
        let position = run.position.saturating_add(within);
        let piece = Piece { slot: run.slot, position, length: piece_length, at };
        at += piece_length;
        Some(piece)
    })
}
