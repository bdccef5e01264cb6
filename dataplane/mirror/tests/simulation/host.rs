//! A host with two paths: writers that each own some blocks, readers of all of them, and the check
//! of what they see. A block is a register with one writer, whose values rise.

use super::{BLOCK, BLOCKS, Event, Simulation};
use std::sync::Arc;
use std::time::Duration;
use voute_buffer::Buffer;
use voute_mirror::{Access, HostOperation, HostOutcome, HostRequest, HostTag};

pub const WORKERS: usize = 8;
const WRITERS: usize = 5;

#[derive(Default)]
struct Block {
    issued: u64,
    acknowledged: u64,
    /// The highest value that a finished read returned.
    seen: u64,
}

#[derive(Clone)]
enum Task {
    Idle,
    Write {
        block: u64,
        value: u64,
    },
    /// `least`: what it must at least return.
    Read {
        block: u64,
        least: u64,
    },
}

pub struct Host {
    blocks: Vec<Block>,
    tasks: Vec<Task>,
    attempts: Vec<u64>,
    preferred: usize,
    tags: u64,
    stopped: bool,
    pub acknowledged: u64,
}

impl Default for Host {
    fn default() -> Self {
        Host {
            blocks: (0..BLOCKS).map(|_| Block::default()).collect(),
            tasks: vec![Task::Idle; WORKERS],
            attempts: vec![0; WORKERS],
            preferred: 0,
            tags: 0,
            stopped: false,
            acknowledged: 0,
        }
    }
}

impl Host {
    pub fn stop(&mut self) {
        self.stopped = true;
    }
}

impl Simulation {
    pub fn host_issue(&mut self, worker: usize) {
        if self.host.stopped || !matches!(self.host.tasks[worker], Task::Idle) {
            return;
        }
        let task = if worker < WRITERS {
            let block = self.random.below(BLOCKS / WRITERS as u64) * WRITERS as u64 + worker as u64;
            self.host.blocks[block as usize].issued += 1;
            Task::Write { block, value: self.host.blocks[block as usize].issued }
        } else {
            let block = self.random.below(BLOCKS);
            self.read_task(block)
        };
        self.host.tasks[worker] = task;
        self.host_send(worker);
    }

    fn read_task(&self, block: u64) -> Task {
        let state = &self.host.blocks[block as usize];
        Task::Read { block, least: state.acknowledged.max(state.seen) }
    }

    fn host_send(&mut self, worker: usize) {
        self.host.attempts[worker] += 1;
        self.host.tags += 1;
        let (attempt, id) = (self.host.attempts[worker], HostTag(self.host.tags));
        let serving = (0..2).find(|node| {
            self.nodes[*node].access == Access::Optimized && self.nodes[*node].mirror.is_some()
        });
        // A host's knowledge is old: now and then it tries the other path.
        let node = if self.random.chance(5) {
            self.random.below(2) as usize
        } else {
            serving.unwrap_or(self.host.preferred)
        };
        if self.nodes[node].mirror.is_none() {
            self.host.preferred = 1 - node;
            return self.after(Duration::from_millis(5), Event::HostRetry { worker, attempt });
        }
        let operation = match &self.host.tasks[worker] {
            Task::Idle => return,
            Task::Write { block, value } => {
                HostOperation::Write { offset: block * BLOCK, data: Arc::new(content(*value)) }
            }
            Task::Read { block, .. } => {
                HostOperation::Read { offset: block * BLOCK, length: BLOCK as u32 }
            }
        };
        let volume = self.log.volume();
        self.submit(node, worker, attempt, HostRequest { id, volume, operation });
    }

    pub fn host_retry(&mut self, worker: usize, attempt: u64) {
        if self.host.attempts[worker] == attempt && !matches!(self.host.tasks[worker], Task::Idle) {
            self.host_send(worker);
        }
    }

    pub fn host_answered(&mut self, worker: usize, attempt: u64, outcome: HostOutcome) {
        if self.host.attempts[worker] != attempt {
            return;
        }
        match (self.host.tasks[worker].clone(), outcome) {
            (Task::Write { block, value }, HostOutcome::Done) => {
                let state = &mut self.host.blocks[block as usize];
                state.acknowledged = state.acknowledged.max(value);
                self.host.acknowledged += 1;
                self.host_next(worker);
            }
            (Task::Read { block, least }, HostOutcome::Data(data)) => {
                self.check(block, least, &data);
                self.host_next(worker);
            }
            (
                _,
                HostOutcome::PathError
                | HostOutcome::Transition
                | HostOutcome::Busy
                | HostOutcome::NoSuchVolume,
            ) => {
                self.after(Duration::from_millis(5), Event::HostRetry { worker, attempt });
            }
            (_, outcome) => panic!("seed {}: the host got {outcome:?}", self.seed),
        }
    }

    fn host_next(&mut self, worker: usize) {
        self.host.tasks[worker] = Task::Idle;
        let delay = self.random.micros(100, 10_000);
        self.after(delay, Event::HostIssue { worker });
    }

    fn check(&mut self, block: u64, least: u64, data: &[u8]) {
        let value = u64::from_le_bytes(data[..8].try_into().expect("eight bytes"));
        let expected = content(value);
        assert!(
            data == &expected[..],
            "seed {}: block {block} holds foreign or torn bytes at {:?}",
            self.seed,
            self.now
        );
        let state = &mut self.host.blocks[block as usize];
        assert!(
            value >= least && value <= state.issued,
            "seed {}: block {block} read as {value} at {:?}, but {least} had been acknowledged or read ({} issued)",
            self.seed,
            self.now,
            state.issued
        );
        state.seen = state.seen.max(value);
    }

    /// Lets what is under way end.
    pub fn settle_host(&mut self) {
        let deadline = self.now + Duration::from_secs(60);
        while self.host.tasks.iter().any(|task| !matches!(task, Task::Idle)) {
            assert!(
                self.now < deadline,
                "seed {}: a request of the host never ends: {}",
                self.seed,
                self.describe()
            );
            self.run_quietly(20);
        }
    }

    pub fn read_all(&mut self) {
        for block in 0..BLOCKS {
            self.host.tasks[0] = self.read_task(block);
            self.host_send(0);
            self.settle_host();
        }
    }
}

fn content(value: u64) -> Buffer {
    let mut buffer = Buffer::zeroed(BLOCK as usize);
    if value > 0 {
        buffer.chunks_mut(8).for_each(|word| word.copy_from_slice(&value.to_le_bytes()));
    }
    buffer
}
