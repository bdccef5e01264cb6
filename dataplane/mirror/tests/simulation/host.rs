//! A host with two paths: writers that each own some blocks, readers of all of them, and the check
//! of what they see. A block is a register with one writer, whose values rise; a discard is a write
//! of a value that reads as zero.

use super::{BLOCK, BLOCKS_MAX, Event, Simulation};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use voute_buffer::Buffer;
use voute_mirror::{Access, HostOperation, HostOutcome, HostRequest, HostTag};

pub const WORKERS: usize = 9;
/// Puts records, and asks for confirmations.
const PUTTER: usize = WORKERS - 1;
const WRITERS: usize = 5;
/// Blocks in a row that one writer owns, in turn.
const STRETCH: u64 = 8;

#[derive(Default)]
struct Block {
    issued: u64,
    acknowledged: u64,
    /// The highest value that a finished read returned.
    seen: u64,
    /// Values that read as zero.
    zeros: BTreeSet<u64>,
    /// The value that is surely there, if no write is open.
    settled: Option<u64>,
}

#[derive(Clone)]
enum Task {
    Idle,
    Write {
        begin: u64,
        values: Vec<u64>,
    },
    Zero {
        begin: u64,
        values: Vec<u64>,
        deallocate: bool,
    },
    Swap {
        block: u64,
        expected: u64,
        value: u64,
    },
    /// `least`: what it must at least return.
    Read {
        block: u64,
        least: u64,
    },
    Put {
        value: u64,
    },
    Confirm,
}

/// The volume's record, a register with one writer.
#[derive(Default)]
struct Record {
    issued: u64,
    acknowledged: u64,
    acknowledged_at: Duration,
    /// What an owner was told when it began to serve.
    seen: u64,
}

pub struct Host {
    blocks: Vec<Block>,
    tasks: Vec<Task>,
    attempts: Vec<u64>,
    tries: Vec<u64>,
    preferred: usize,
    tags: u64,
    stopped: bool,
    pub acknowledged: u64,
    record: Record,
    pub confirmed: u64,
    pub medium_errors: u64,
    /// What the last reading of everything returned.
    pub found: Vec<Vec<u8>>,
}

impl Default for Host {
    fn default() -> Self {
        Host {
            blocks: (0..BLOCKS_MAX)
                .map(|_| Block { settled: Some(0), ..Block::default() })
                .collect(),
            tasks: vec![Task::Idle; WORKERS],
            attempts: vec![0; WORKERS],
            tries: vec![0; WORKERS],
            preferred: 0,
            tags: 0,
            stopped: false,
            acknowledged: 0,
            record: Record::default(),
            confirmed: 0,
            medium_errors: 0,
            found: Vec::new(),
        }
    }
}

impl Host {
    pub fn is_idle(&self) -> bool {
        self.tasks.iter().all(|task| matches!(task, Task::Idle))
    }

    /// What is asked for again and again is asked for no more.
    pub fn forget_tasks(&mut self) {
        self.tasks.fill(Task::Idle);
        self.attempts.iter_mut().for_each(|attempt| *attempt += 1);
    }

    pub fn stop(&mut self) {
        self.stopped = true;
    }

    fn issue(&mut self, begin: u64, count: u64, zero: bool) -> Vec<u64> {
        (begin..begin + count)
            .map(|block| {
                let state = &mut self.blocks[block as usize];
                state.issued += 1;
                state.settled = None;
                if zero {
                    state.zeros.insert(state.issued);
                }
                state.issued
            })
            .collect()
    }
}

impl Simulation {
    pub fn host_issue(&mut self, worker: usize) {
        if self.host.stopped || !matches!(self.host.tasks[worker], Task::Idle) {
            return;
        }
        let blocks = self.log.blocks();
        let task = if worker < WRITERS {
            let stretches = blocks / STRETCH / WRITERS as u64;
            let stretch = self.random.below(stretches) * WRITERS as u64 + worker as u64;
            let first = self.random.below(STRETCH);
            let begin = stretch * STRETCH + first;
            let count =
                if self.random.chance(70) { 1 } else { 1 + self.random.below(STRETCH - first) };
            match self.random.below(10) {
                0 => Task::Zero {
                    begin,
                    values: self.host.issue(begin, count, true),
                    deallocate: self.random.chance(50),
                },
                1 if self.host.blocks[begin as usize].settled.is_some() => {
                    let expected = self.host.blocks[begin as usize].settled.expect("just seen");
                    let value = self.host.issue(begin, 1, false)[0];
                    Task::Swap { block: begin, expected, value }
                }
                _ => Task::Write { begin, values: self.host.issue(begin, count, false) },
            }
        } else if worker == PUTTER && self.random.chance(30) {
            Task::Confirm
        } else if worker == PUTTER {
            self.host.record.issued += 1;
            Task::Put { value: self.host.record.issued }
        } else {
            let block = self.random.below(blocks);
            self.read_task(block)
        };
        self.host.tasks[worker] = task;
        self.host.tries[worker] = 0;
        self.host_send(worker);
    }

    pub fn begin_read(&mut self, block: u64) {
        self.host.tasks[0] = self.read_task(block);
        self.host_send(0);
    }

    pub fn begin_write(&mut self, block: u64) {
        self.host.tasks[0] = Task::Write { begin: block, values: self.host.issue(block, 1, false) };
        self.host_send(0);
    }

    pub fn begin_swap(&mut self, block: u64) {
        let expected = self.host.blocks[block as usize].settled.expect("nothing is under way");
        let value = self.host.issue(block, 1, false)[0];
        self.host.tasks[0] = Task::Swap { block, expected, value };
        self.host.tries[0] = 0;
        self.host_send(0);
    }

    /// Compares and writes through this node, once; what is answered is nobody's matter.
    pub fn swap_once(&mut self, node: usize, block: u64) {
        let settled = self.host.blocks[block as usize].settled;
        let expected = settled.expect("nothing is under way");
        let value = self.host.issue(block, 1, false)[0];
        self.host.blocks[block as usize].settled = settled;
        self.host.tags += 1;
        let (id, volume) = (HostTag(self.host.tags), self.log.volume());
        let operation = HostOperation::CompareAndWrite {
            offset: block * BLOCK,
            expected: Arc::new(self.content(block, expected)),
            data: Arc::new(self.content(block, value)),
        };
        self.submit(node, 0, u64::MAX, HostRequest { id, volume, operation });
    }

    fn read_task(&self, block: u64) -> Task {
        let state = &self.host.blocks[block as usize];
        Task::Read { block, least: state.acknowledged.max(state.seen) }
    }

    fn host_send(&mut self, worker: usize) {
        self.host.attempts[worker] += 1;
        self.host.tries[worker] += 1;
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
        let content = |block: u64, value: u64| self.content(block, value);
        let operation = match &self.host.tasks[worker] {
            Task::Idle => return,
            Task::Write { begin, values } => {
                let mut data = Buffer::zeroed(values.len() * BLOCK as usize);
                for (index, chunk) in data.chunks_mut(BLOCK as usize).enumerate() {
                    chunk.copy_from_slice(&content(begin + index as u64, values[index]));
                }
                HostOperation::Write { offset: begin * BLOCK, data: Arc::new(data) }
            }
            Task::Zero { begin, values, deallocate } => HostOperation::Zero {
                offset: begin * BLOCK,
                length: values.len() as u64 * BLOCK,
                deallocate: *deallocate,
            },
            Task::Swap { block, expected, value } => HostOperation::CompareAndWrite {
                offset: block * BLOCK,
                expected: Arc::new(content(*block, *expected)),
                data: Arc::new(content(*block, *value)),
            },
            Task::Read { block, .. } => {
                HostOperation::Read { offset: block * BLOCK, length: BLOCK as u32 }
            }
            Task::Put { value } => HostOperation::PutRecord { record: record_of(*value) },
            Task::Confirm => HostOperation::Confirm { after_all: true },
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
        let first_try = self.host.tries[worker] == 1;
        match (self.host.tasks[worker].clone(), outcome) {
            (
                Task::Write { begin, values } | Task::Zero { begin, values, .. },
                HostOutcome::Done,
            ) => {
                for (block, value) in (begin..).zip(values) {
                    self.host_acknowledged(block, value);
                }
                self.host_next(worker);
            }
            (Task::Swap { block, value, .. }, HostOutcome::Done) => {
                self.host_acknowledged(block, value);
                self.host_next(worker);
            }
            // The first try may have been carried out although its path was lost.
            (Task::Swap { .. }, HostOutcome::Miscompare { .. }) if !first_try => {
                self.host_next(worker);
            }
            (Task::Put { value }, HostOutcome::Done) => {
                let record = &mut self.host.record;
                (record.acknowledged, record.acknowledged_at) = (value, self.now);
                self.host_next(worker);
            }
            (Task::Confirm, HostOutcome::Done) => {
                self.host.confirmed += 1;
                self.host_next(worker);
            }
            (Task::Read { block, least }, HostOutcome::Data(data)) => {
                self.check(block, least, &data);
                if let Some(found) = self.host.found.get_mut(block as usize) {
                    *found = data.to_vec();
                }
                self.host_next(worker);
            }
            (
                _,
                HostOutcome::PathError
                | HostOutcome::Transition
                | HostOutcome::Busy
                | HostOutcome::NoSuchVolume
                // A node that has not heard of a new size.
                | HostOutcome::OutOfRange,
            ) => {
                self.after(Duration::from_millis(5), Event::HostRetry { worker, attempt });
            }
            (_, HostOutcome::MediumError) if self.medium_error_is_possible() => {
                self.host.medium_errors += 1;
                self.after(Duration::from_millis(50), Event::HostRetry { worker, attempt });
            }
            (_, outcome) => panic!("seed {}: the host got {outcome:?} at {:?}", self.seed, self.now),
        }
    }

    pub fn is_confirmed(&self, worker: usize, outcome: &HostOutcome) -> bool {
        matches!((&self.host.tasks[worker], outcome), (Task::Confirm, HostOutcome::Done))
    }

    /// Puts a record through this node, once; what comes of it is nobody's matter any more.
    pub fn put_once(&mut self, node: usize) {
        self.host.record.issued += 1;
        self.host.tags += 1;
        let (id, volume) = (HostTag(self.host.tags), self.log.volume());
        let record = record_of(self.host.record.issued);
        let operation = HostOperation::PutRecord { record };
        self.submit(node, PUTTER, u64::MAX, HostRequest { id, volume, operation });
    }

    /// The last record that was put, and the last that an owner served by.
    pub fn records(&self) -> (u64, u64) {
        (self.host.record.issued, self.host.record.seen)
    }

    pub fn records_acknowledged(&self) -> (u64, u64) {
        (self.host.record.acknowledged, self.host.confirmed)
    }

    /// An owner that begins to serve was told the record.
    pub fn record_told(&mut self, node: usize, record: &[u8], is_cold: bool) {
        let value = record
            .get(..8)
            .map_or(0, |first| u64::from_le_bytes(first.try_into().expect("eight bytes")));
        let known = &mut self.host.record;
        assert_eq!(record, record_of(value), "seed {}: a torn record", self.seed);
        let least = known.acknowledged.max(known.seen);
        assert!(
            (least..=known.issued).contains(&value),
            "seed {}: node {node} serves by record {value} at {:?}, but {least} was acknowledged or served by",
            self.seed,
            self.now
        );
        known.seen = value;
        assert!(
            !is_cold || known.acknowledged_at <= self.nodes[node].started,
            "seed {}: node {node} knew the record, but was told that nobody does",
            self.seed
        );
    }

    fn host_acknowledged(&mut self, block: u64, value: u64) {
        let state = &mut self.host.blocks[block as usize];
        state.acknowledged = state.acknowledged.max(value);
        state.settled = Some(value);
        self.host.acknowledged += 1;
    }

    fn host_next(&mut self, worker: usize) {
        self.host.tasks[worker] = Task::Idle;
        let delay = self.random.micros(100, 10_000);
        self.after(delay, Event::HostIssue { worker });
    }

    fn content(&self, block: u64, value: u64) -> Buffer {
        let mut buffer = Buffer::zeroed(BLOCK as usize);
        if value > 0 && !self.host.blocks[block as usize].zeros.contains(&value) {
            let word = value << 16 | block;
            buffer.chunks_mut(8).for_each(|bytes| bytes.copy_from_slice(&word.to_le_bytes()));
        }
        buffer
    }

    fn check(&mut self, block: u64, least: u64, data: &[u8]) {
        let word = u64::from_le_bytes(data[..8].try_into().expect("eight bytes"));
        let state = &self.host.blocks[block as usize];
        let value = if word == 0 {
            // The least of the discards (or the beginning) that may be seen.
            let none = if least == 0 { Some(0) } else { None };
            none.or_else(|| state.zeros.range(least..).next().copied()).unwrap_or_default()
        } else {
            word >> 16
        };
        let sound =
            (word == 0 || word & 0xFFFF == block) && data == &self.content(block, value)[..];
        assert!(
            sound,
            "seed {}: block {block} holds foreign or torn bytes at {:?}",
            self.seed, self.now
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

    pub fn read_all(&mut self) -> Vec<Vec<u8>> {
        self.host.found = vec![Vec::new(); BLOCKS_MAX as usize];
        let blocks = self.log.blocks();
        let mut next = 0;
        while next < blocks {
            for worker in 0..WORKERS {
                if next < blocks {
                    self.host.tasks[worker] = self.read_task(next);
                    self.host_send(worker);
                    next += 1;
                }
            }
            self.settle_host();
        }
        std::mem::take(&mut self.host.found)
    }
}

fn record_of(value: u64) -> Vec<u8> {
    if value == 0 { Vec::new() } else { value.to_le_bytes().repeat(1 + value as usize % 40) }
}
