//! A device that misbehaves on demand, for tests of what stands on devices.
//!
//! It has a durable content and a volatile cache. An honest one moves what it is told to write to the
//! durable content before it answers, as a drive does with FUA; [`Faults::lies`] makes it answer
//! early, and [`FaultyDevice::cut_power`] then loses what was answered.

use crate::mailbox::{Detached, Order, OrderKind};
use crate::memory::MemoryDisk;
use crate::open::{Backend, OpenDevice};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use voute_buffer::Buffer;
use voute_mirror::{DeviceFault, DeviceResult};
use voute_schemas::DeviceId;

/// How a device misbehaves. The default is well-behaved.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Reads that touch `range` fail so.
    pub read: Option<DeviceFault>,
    /// Writes and zeroes that touch `range` fail so, and change nothing.
    pub write: Option<DeviceFault>,
    /// Where `read` and `write` apply, bytes of the device; everywhere if `None`.
    pub range: Option<Range<u64>>,
    /// Each operation takes at least so long.
    pub latency: Duration,
    /// Nothing is carried out or answered until this is false again.
    pub hangs: bool,
    /// Writes are answered while they are only in the volatile cache.
    pub lies: bool,
}

/// Outside of a faulty device: what a test turns.
pub struct FaultyDevice {
    id: DeviceId,
    size_bytes: u64,
    extent_bytes: u64,
    block_bytes: u32,
    life: Arc<Life>,
}

/// Ends the device's thread when the last user is gone.
struct Life {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    disk: MemoryDisk,
    /// What the durable content has where the cache holds something newer, oldest first.
    undo: Vec<(u64, Vec<u8>)>,
    queue: VecDeque<(Instant, Order)>,
    faults: Faults,
    /// Rises with each power cut; orders of earlier handles fail.
    power: u64,
    ended: bool,
}

/// What a queue sees, until the next power cut.
struct Handle {
    life: Arc<Life>,
    power: u64,
}

impl FaultyDevice {
    /// An empty device of `size_bytes`.
    #[must_use]
    pub fn new(id: DeviceId, size_bytes: u64, extent_bytes: u64, block_bytes: u32) -> Self {
        let state = State {
            disk: MemoryDisk::new(size_bytes),
            undo: Vec::new(),
            queue: VecDeque::new(),
            faults: Faults::default(),
            power: 0,
            ended: false,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let life = Arc::new(Life { shared: Arc::clone(&shared) });
        std::thread::spawn(move || shared.serve());
        FaultyDevice { id, size_bytes, extent_bytes, block_bytes, life }
    }

    /// Opens it, after a power cut again.
    #[must_use]
    pub fn open(&self) -> Arc<OpenDevice> {
        let power = self.life.shared.lock().power;
        let handle = Handle { life: Arc::clone(&self.life), power };
        Arc::new(OpenDevice {
            device: self.id,
            size_bytes: self.size_bytes,
            block_bytes: self.block_bytes,
            extent_bytes: self.extent_bytes,
            backend: Backend::Detached(Box::new(handle)),
        })
    }

    /// Changes how it misbehaves, for what it carries out from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.life.shared.lock().faults = faults;
        self.life.shared.changed.notify_all();
    }

    /// Cuts its power: the volatile cache is lost, what waits fails undone, handles opened before
    /// are dead. [`open`](Self::open) gives power again.
    pub fn cut_power(&self) {
        let mut state = self.life.shared.lock();
        state.power += 1;
        let State { disk, undo, .. } = &mut *state;
        for (offset, bytes) in undo.drain(..).rev() {
            disk.write(offset, &bytes);
        }
        let waiting = std::mem::take(&mut state.queue);
        drop(state);
        // Unanswered replies answer that the device failed.
        drop(waiting);
    }

    /// Makes durable what the volatile cache holds.
    pub fn flush_cache(&self) {
        self.life.shared.lock().undo.clear();
    }

    /// Operations that wait to be carried out.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.life.shared.lock().queue.len()
    }
}

impl Detached for Handle {
    fn start(&self, order: Order) {
        let mut state = self.life.shared.lock();
        if state.power != self.power {
            drop(state);
            order.reply.send(Err(DeviceFault::Failed));
            return;
        }
        let due = Instant::now() + state.faults.latency;
        state.queue.push_back((due, order));
        self.life.shared.changed.notify_all();
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The device's own thread: carries out what is due.
    fn serve(&self) {
        let mut state = self.lock();
        while !state.ended {
            let now = Instant::now();
            let due = state.queue.front().map(|(due, _)| *due).filter(|_| !state.faults.hangs);
            state = match due {
                Some(due) if due <= now => {
                    if let Some((_, Order { offset, kind, reply })) = state.queue.pop_front() {
                        let result = state.carry_out(offset, kind);
                        reply.send(result);
                    }
                    state
                }
                Some(due) => {
                    let wait = self.changed.wait_timeout(state, due - now);
                    wait.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }
}

impl State {
    fn carry_out(&mut self, offset: u64, kind: OrderKind) -> DeviceResult {
        match kind {
            OrderKind::Read { length } => {
                self.check(self.faults.read, offset, length.into())?;
                let mut buffer = Buffer::zeroed(length as usize);
                self.disk.read(offset, &mut buffer);
                Ok(Some(buffer))
            }
            OrderKind::Write { data, from, length } => {
                self.check(self.faults.write, offset, length as u64)?;
                self.remember(offset, length as u64);
                self.disk.write(offset, &data[from..from + length]);
                Ok(None)
            }
            OrderKind::Zero { length, .. } => {
                self.check(self.faults.write, offset, length)?;
                self.remember(offset, length);
                self.disk.zero(offset, length);
                Ok(None)
            }
        }
    }

    fn check(
        &self,
        fault: Option<DeviceFault>,
        offset: u64,
        length: u64,
    ) -> Result<(), DeviceFault> {
        let touched = self
            .faults
            .range
            .as_ref()
            .is_none_or(|range| range.start < offset + length && offset < range.end);
        fault.filter(|_| touched).map_or(Ok(()), Err)
    }

    /// Keeps what a power cut would bring back.
    fn remember(&mut self, offset: u64, length: u64) {
        if self.faults.lies {
            let mut before = vec![0; length as usize];
            self.disk.read(offset, &mut before);
            self.undo.push((offset, before));
        } else if !self.undo.is_empty() {
            // Durable now, whatever an earlier lie left behind there: it must not come back.
            self.forget(offset, length);
        }
    }

    fn forget(&mut self, offset: u64, length: u64) {
        let end = offset + length;
        let cut = |(at, bytes): (u64, Vec<u8>)| {
            let before = offset.saturating_sub(at).min(bytes.len() as u64) as usize;
            let after = end.saturating_sub(at).min(bytes.len() as u64) as usize;
            let mut kept = vec![(at, bytes[..before].to_vec())];
            if after > before {
                kept.push((at + after as u64, bytes[after..].to_vec()));
            } else {
                kept = vec![(at, bytes)];
            }
            kept
        };
        let undo = std::mem::take(&mut self.undo);
        self.undo = undo.into_iter().flat_map(cut).filter(|(_, bytes)| !bytes.is_empty()).collect();
    }
}
