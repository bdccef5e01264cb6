//! Hosts with a path to each node: what they ask, how they retry, and what they make of answers.
//!
//! A worker does one thing at a time on one volume. Own blocks belong to one worker; shared ones are
//! written by several at once, with a value of its own for each attempt. What was asked over a path
//! that the host gave up is forgotten before it is asked again elsewhere, as a session's end does.

use crate::founding::Founded;
use crate::history::{Own, Shared, Stamp};
use crate::network::Place;
use crate::random::Random;
use crate::world::{Event, World};
use crate::{BLOCK, REGION};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use voute_buffer::Buffer;
use voute_mirror::{Access, HostOperation, HostOutcome, HostRequest, HostTag};
use voute_schemas::VolumeId;

/// Workers of a volume that write own blocks; one more puts records.
const WRITERS: usize = 3;
const WORKERS: usize = WRITERS + 3;
const PUTTER: usize = WORKERS - 1;
/// How long a host waits for an answer.
const PATIENCE_MS: (u64, u64) = (100, 4_000);
const REGION_BLOCKS: u64 = REGION / BLOCK;
/// What may be written whole, blocks.
const UNIT_BLOCKS: u64 = REGION / 8 / BLOCK;
/// How many of a writer's tasks are that.
const WHOLE_PERCENT: u64 = 25;
/// The most that a volume grows to, blocks.
pub(crate) const BLOCKS_MAX: u64 = (3 << 20) / BLOCK;
/// Where the shared blocks of a region lie in it.
const SHARED: std::ops::Range<u64> = 16..24;
/// Of those, the ones that only compare-and-writes change.
const SWAPPED: u64 = 22;

#[derive(Clone, Debug)]
enum Task {
    Idle,
    /// `whole`: all of it or nothing.
    Write {
        begin: u64,
        values: Vec<u64>,
        whole: bool,
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
    /// One block or several that are shared; values and begin are of the present attempt.
    WriteShared {
        begin: u64,
        values: Vec<u64>,
    },
    SwapShared {
        block: u64,
        expected: u64,
        value: u64,
    },
    /// `least`: what each block must at least return, if it is an own one.
    Read {
        begin: u64,
        least: Vec<u64>,
    },
    Put {
        value: u64,
    },
    Confirm,
}

struct Worker {
    volume: usize,
    role: usize,
    task: Task,
    attempt: u64,
    tries: u64,
    /// When the task, and when the present attempt of it began.
    began: Stamp,
    attempted: Stamp,
}

/// A volume's record, a register with one writer.
#[derive(Default)]
struct Record {
    issued: u64,
    acknowledged: u64,
    /// What an owner was told when it began to serve.
    seen: u64,
}

struct Disk {
    id: VolumeId,
    own: Vec<Own>,
    shared: BTreeMap<u64, Shared>,
    /// Regions that are worked on for now.
    hot: Vec<u64>,
    record: Record,
    /// What the last reading of everything returned.
    found: Vec<u8>,
    size_blocks: u64,
    /// What each writer last wrote whole.
    whole: [Option<(u64, Vec<u64>)>; WRITERS],
}

#[derive(Clone, Default)]
struct Path {
    /// Rises each time the host connects anew.
    number: u64,
    /// Not before the host found out that it is gone.
    down_until: Duration,
    access: BTreeMap<VolumeId, Access>,
}

pub(crate) struct Hosts {
    disks: Vec<Disk>,
    workers: Vec<Worker>,
    paths: [Path; 2],
    tags: u64,
    stamp: Stamp,
    pub(crate) is_stopped: bool,
    /// Requests come thick until then.
    pub(crate) busy_until: Duration,
    pub(crate) medium_errors: u64,
    reading_all: bool,
}

impl Hosts {
    pub(crate) fn new(founded: &Founded, random: &mut Random) -> Self {
        let disks = founded.volumes.iter().map(|volume| Disk {
            id: volume.volume,
            own: (0..BLOCKS_MAX).map(|_| Own::new()).collect(),
            shared: BTreeMap::new(),
            hot: (0..6).map(|_| random.below(60)).collect(),
            record: Record::default(),
            found: Vec::new(),
            size_blocks: (1 << 20) / BLOCK,
            whole: Default::default(),
        });
        let disks: Vec<Disk> = disks.collect();
        let worker = |volume, role| Worker {
            volume,
            role,
            task: Task::Idle,
            attempt: 0,
            tries: 0,
            began: 0,
            attempted: 0,
        };
        let workers = (0..disks.len())
            .flat_map(|volume| (0..WORKERS).map(move |role| worker(volume, role)))
            .collect();
        Hosts {
            disks,
            workers,
            paths: [Path::default(), Path::default()],
            tags: 0,
            stamp: 0,
            is_stopped: false,
            busy_until: Duration::ZERO,
            medium_errors: 0,
            reading_all: false,
        }
    }

    fn stamp(&mut self) -> Stamp {
        self.stamp += 1;
        self.stamp
    }

    pub(crate) fn forget_access(&mut self, node: usize) {
        self.paths[node].access.clear();
    }

    fn is_shared(block: u64) -> bool {
        SHARED.contains(&(block % REGION_BLOCKS))
    }

    fn volume_index(&self, id: VolumeId) -> Option<usize> {
        self.disks.iter().position(|disk| disk.id == id)
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.workers.iter().all(|worker| matches!(worker.task, Task::Idle))
    }

    /// Volumes only grow: who says less has not heard of it.
    pub(crate) fn resized(&mut self, volume: usize, blocks: u64) {
        let known = &mut self.disks[volume].size_blocks;
        *known = blocks.min(BLOCKS_MAX).max(*known);
    }

    pub(crate) fn shared_blocks(&self) -> impl Iterator<Item = (usize, u64, &Shared)> {
        self.disks.iter().enumerate().flat_map(|(volume, disk)| {
            disk.shared.iter().map(move |(block, shared)| (volume, *block, shared))
        })
    }
}

impl Disk {
    /// Of what a writer wrote whole a read shows all or nothing.
    fn judge_whole(&self, first: u64, data: &[u8]) -> Result<(), (u64, String)> {
        let end = first + data.len() as u64 / BLOCK;
        for (begin, values) in self.whole.iter().flatten() {
            let blocks = (*begin..).zip(values).filter(|(block, _)| (first..end).contains(block));
            let shown = blocks.filter_map(|(block, value)| {
                let at = (block - first) as usize;
                let bytes = &data[at * BLOCK as usize..][..8];
                let found = u64::from_le_bytes(bytes.try_into().expect("eight bytes")) >> 24;
                self.own[block as usize].shows((found != 0).then_some(found), *value)
            });
            let shown: Vec<bool> = shown.collect();
            if shown.contains(&true) && shown.contains(&false) {
                let text =
                    format!("half of {values:?}, written whole from here on, is shown: {shown:?}");
                return Err((*begin, text));
            }
        }
        Ok(())
    }
}

fn word(volume: usize, block: u64, value: u64) -> u64 {
    value << 24 | (volume as u64 + 1) << 20 | block
}

fn fill(bytes: &mut [u8], word: u64) {
    bytes.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&word.to_le_bytes()));
}

fn record_of(value: u64) -> Vec<u8> {
    if value == 0 { Vec::new() } else { value.to_le_bytes().repeat(1 + value as usize * 37 % 300) }
}

impl World {
    pub(crate) fn hosts_begin(&mut self) {
        for worker in 0..self.hosts.workers.len() {
            let delay = self.random.millis(1, 200);
            self.after(delay, Event::HostIssue { worker });
        }
    }

    // ---- what is asked -------------------------------------------------------------------------

    pub(crate) fn host_issue(&mut self, worker: usize) {
        if self.hosts.is_stopped || !matches!(self.hosts.workers[worker].task, Task::Idle) {
            return;
        }
        let role = self.hosts.workers[worker].role;
        let volume = self.hosts.workers[worker].volume;
        let began = self.hosts.stamp();
        let task = match role {
            PUTTER => self.record_task(volume),
            _ if role < WRITERS && self.random.chance(60) => self.own_task(volume, role),
            _ => self.any_task(volume),
        };
        let it = &mut self.hosts.workers[worker];
        (it.task, it.tries, it.began) = (task, 0, began);
        self.host_send(worker);
    }

    fn region(&mut self, volume: usize) -> u64 {
        let disk = &self.hosts.disks[volume];
        let regions = disk.size_blocks / REGION_BLOCKS;
        if self.random.chance(85) {
            let hot = self.random.index(disk.hot.len());
            self.hosts.disks[volume].hot[hot] % regions
        } else {
            self.random.below(regions)
        }
    }

    fn record_task(&mut self, volume: usize) -> Task {
        if self.random.chance(30) {
            return Task::Confirm;
        }
        let record = &mut self.hosts.disks[volume].record;
        record.issued += 1;
        Task::Put { value: record.issued }
    }

    /// The own blocks of a stretch go from the end of one region into the next.
    fn own_task(&mut self, volume: usize, role: usize) -> Task {
        let size = self.hosts.disks[volume].size_blocks;
        let region = self.region(volume);
        let mine = region - region % WRITERS as u64 + role as u64;
        let first = (mine * REGION_BLOCKS).saturating_sub(8).min(size - REGION_BLOCKS);
        let first = if mine * REGION_BLOCKS >= size { role as u64 * REGION_BLOCKS } else { first };
        let length = if first % REGION_BLOCKS == 0 { 16 } else { 24 };
        let offset = self.random.below(length);
        let count = if self.random.chance(70) { 1 } else { 1 + self.random.below(length - offset) };
        let begin = first + offset;
        let unit = UNIT_BLOCKS - begin % UNIT_BLOCKS;
        let whole = unit.min(length - offset) > 1 && self.random.chance(WHOLE_PERCENT);
        let count =
            if whole { 2 + self.random.below(unit.min(length - offset) - 1) } else { count };
        let zero = !whole && self.random.chance(12);
        let deallocate = self.random.chance(50);
        let swap = !zero && !whole && self.random.chance(12);
        let own = &mut self.hosts.disks[volume].own;
        if swap && let Some(expected) = own[begin as usize].settled {
            return Task::Swap { block: begin, expected, value: own[begin as usize].issue(false) };
        }
        let values = (begin..begin + count).map(|block| own[block as usize].issue(zero)).collect();
        match zero {
            true => Task::Zero { begin, values, deallocate },
            false => {
                let values: Vec<u64> = values;
                if whole {
                    self.hosts.disks[volume].whole[role] = Some((begin, values.clone()));
                }
                Task::Write { begin, values, whole }
            }
        }
    }

    fn any_task(&mut self, volume: usize) -> Task {
        let region = self.region(volume);
        let shared = region * REGION_BLOCKS + SHARED.start;
        match self.random.below(10) {
            0..=3 => {
                let first = self.random.below(SWAPPED - SHARED.start);
                let count = 1 + self.random.below(SWAPPED - SHARED.start - first);
                let count = if self.random.chance(60) { 1 } else { count };
                // The values are chosen by each attempt.
                Task::WriteShared { begin: shared + first, values: vec![0; count as usize] }
            }
            4 => {
                let block = region * REGION_BLOCKS + SWAPPED + self.random.below(2);
                let expected =
                    self.hosts.disks[volume].shared.get(&block).map_or(0, |it| it.latest());
                Task::SwapShared { block, expected, value: 0 }
            }
            5 => match &self.hosts.disks[volume].whole[self.random.index(WRITERS)] {
                Some((begin, values)) => self.read_task(volume, *begin, values.len() as u64),
                None => self.read_task(volume, region * REGION_BLOCKS, 1),
            },
            _ => {
                let first = self.random.below(REGION_BLOCKS);
                let count = 1 + self.random.below((REGION_BLOCKS - first).min(12));
                self.read_task(volume, region * REGION_BLOCKS + first, count)
            }
        }
    }

    fn read_task(&self, volume: usize, begin: u64, count: u64) -> Task {
        let own = &self.hosts.disks[volume].own;
        let least = (begin..begin + count).map(|block| own[block as usize].least()).collect();
        Task::Read { begin, least }
    }

    // ---- how it is asked -----------------------------------------------------------------------

    fn choose_path(&mut self, volume: VolumeId) -> usize {
        // A host's knowledge is old: now and then it tries the other path.
        if self.random.chance(4) {
            return self.random.index(2);
        }
        let is_optimized = |path: &Path| path.access.get(&volume) == Some(&Access::Optimized);
        let now = self.now;
        let usable = |path: &Path| path.down_until <= now;
        let paths = &self.hosts.paths;
        // Two nodes may say so while one has not heard that it owns no more.
        let first = self.random.index(2);
        [first, 1 - first]
            .into_iter()
            .find(|node| is_optimized(&paths[*node]) && usable(&paths[*node]))
            .unwrap_or_else(|| self.random.index(2))
    }

    fn host_send(&mut self, worker: usize) {
        let stamp = self.hosts.stamp();
        let it = &mut self.hosts.workers[worker];
        it.attempt += 1;
        it.tries += 1;
        it.attempted = stamp;
        let (attempt, volume) = (it.attempt, it.volume);
        let id = self.hosts.disks[volume].id;
        let node = self.choose_path(id);
        if self.hosts.paths[node].down_until > self.now {
            let delay = self.random.millis(5, 60);
            return self.after(delay, Event::HostRetry { worker, attempt });
        }
        let Some(operation) = self.operation(worker, stamp) else { return };
        self.hosts.tags += 1;
        let request = HostRequest { id: HostTag(self.hosts.tags), volume: id, operation };
        let path = self.hosts.paths[node].number;
        let delay = self.travel(Place::Hosts, Place::Node(node));
        self.after(delay, Event::HostRequest { node, path, worker, attempt, request });
        // A host gives up what takes too long, and asks again, maybe elsewhere.
        let patience = self.random.millis(PATIENCE_MS.0, PATIENCE_MS.1);
        self.after(patience, Event::HostRetry { worker, attempt });
    }

    /// The request of an attempt. Attempts on shared blocks write values of their own.
    fn operation(&mut self, worker: usize, stamp: Stamp) -> Option<HostOperation> {
        let volume = self.hosts.workers[worker].volume;
        let disk = &mut self.hosts.disks[volume];
        let content = |block: u64, value: u64, disk: &Disk| {
            let mut buffer = Buffer::zeroed(BLOCK as usize);
            let is_zero =
                value == 0 || !Hosts::is_shared(block) && disk.own[block as usize].is_zero(value);
            if !is_zero {
                fill(&mut buffer, word(volume, block, value));
            }
            Arc::new(buffer)
        };
        let write = |begin: u64, values: &[u64]| {
            let mut data = Buffer::zeroed(values.len() * BLOCK as usize);
            let blocks = (begin..).zip(values).zip(data.chunks_mut(BLOCK as usize));
            for ((block, value), bytes) in blocks {
                fill(bytes, word(volume, block, *value));
            }
            HostOperation::Write { offset: begin * BLOCK, data: Arc::new(data) }
        };
        Some(match &mut self.hosts.workers[worker].task {
            Task::Idle => return None,
            Task::Write { begin, values, whole: false } => write(*begin, values),
            Task::Write { begin, values, whole: true } => match write(*begin, values) {
                HostOperation::Write { offset, data } => HostOperation::WriteWhole { offset, data },
                other => other,
            },
            Task::WriteShared { begin, values } => {
                for (block, value) in (*begin..).zip(values.iter_mut()) {
                    *value = disk.shared.entry(block).or_default().begin(stamp);
                }
                write(*begin, values)
            }
            Task::Zero { begin, values, deallocate } => HostOperation::Zero {
                offset: *begin * BLOCK,
                length: values.len() as u64 * BLOCK,
                deallocate: *deallocate,
            },
            Task::Swap { block, expected, value } => HostOperation::CompareAndWrite {
                offset: *block * BLOCK,
                expected: content(*block, *expected, disk),
                data: content(*block, *value, disk),
            },
            Task::SwapShared { block, expected, value } => {
                *value = disk.shared.entry(*block).or_default().begin(stamp);
                HostOperation::CompareAndWrite {
                    offset: *block * BLOCK,
                    expected: content(*block, *expected, disk),
                    data: content(*block, *value, disk),
                }
            }
            Task::Read { begin, least } => HostOperation::Read {
                offset: *begin * BLOCK,
                length: (least.len() as u64 * BLOCK) as u32,
            },
            Task::Put { value } => HostOperation::PutRecord { record: record_of(*value) },
            Task::Confirm => HostOperation::Confirm { after_all: true },
        })
    }

    pub(crate) fn host_retry(&mut self, worker: usize, attempt: u64) {
        let it = &self.hosts.workers[worker];
        if it.attempt != attempt || matches!(it.task, Task::Idle) {
            return;
        }
        // Now and then a host looks what became of what it wrote whole, and leaves it at that.
        if let Task::Write { begin, values, whole: true } = &it.task {
            let (volume, begin, count) = (it.volume, *begin, values.len() as u64);
            if self.random.chance(40) {
                let task = self.read_task(volume, begin, count);
                let began = self.hosts.stamp();
                let it = &mut self.hosts.workers[worker];
                (it.task, it.began) = (task, began);
            }
        }
        self.host_send(worker);
    }

    // ---- at the node ---------------------------------------------------------------------------

    pub(crate) fn host_request(
        &mut self,
        node: usize,
        path: u64,
        (worker, attempt): (usize, u64),
        request: HostRequest,
    ) {
        // What a host gave up is not carried out later.
        if self.hosts.paths[node].number != path || self.hosts.workers[worker].attempt != attempt {
            return;
        }
        if self.network.is_cut(Place::Hosts, Place::Node(node)) {
            return self.doubt_path(node);
        }
        let state = &mut self.nodes[node];
        if !state.is_up() {
            return self.doubt_path(node);
        }
        let arrived = self.names;
        self.names += 1;
        state.requests.insert(request.id.0, (path, worker, attempt, arrived));
        let is_write = matches!(
            request.operation,
            HostOperation::Write { .. }
                | HostOperation::WriteWhole { .. }
                | HostOperation::Zero { .. }
                | HostOperation::CompareAndWrite { .. }
        );
        if is_write {
            self.note_touched(&request);
        }
        self.with_mirror(node, |mirror, now| mirror.submit(request, now));
    }

    pub(crate) fn reply_to_host(&mut self, node: usize, id: HostTag, outcome: HostOutcome) {
        let request = self.nodes[node].requests.remove(&id.0);
        let Some((path, worker, attempt, confirmed)) = request else { return };
        let is_confirmed = matches!(outcome, HostOutcome::Done)
            && matches!(self.hosts.workers[worker].task, Task::Confirm)
            && self.hosts.workers[worker].attempt == attempt;
        if is_confirmed {
            let volume = self.hosts.workers[worker].volume;
            let workers = &self.hosts.workers;
            let earlier = self.nodes[node].requests.values().any(|(_, worker, _, arrived)| {
                *arrived < confirmed && workers[*worker].volume == volume
            });
            if earlier {
                self.violated(|| format!("request {} was confirmed before an earlier one", id.0));
            }
        }
        let delay = self.travel(Place::Node(node), Place::Hosts);
        self.after(delay, Event::HostReply { node, path, worker, attempt, outcome });
    }

    pub(crate) fn access_shown(&mut self, node: usize, volume: VolumeId, access: Access) {
        if !self.network.is_cut(Place::Node(node), Place::Hosts) {
            self.hosts.paths[node].access.insert(volume, access);
        }
    }

    // ---- paths ---------------------------------------------------------------------------------

    /// A node's kernel closed its connections: hosts know at once.
    pub(crate) fn reset_path(&mut self, node: usize) {
        let path = self.hosts.paths[node].number;
        self.after(Duration::from_millis(1), Event::PathLost { node, path });
    }

    /// A path is silent: hosts find out by their own timers.
    pub(crate) fn doubt_path(&mut self, node: usize) {
        let path = self.hosts.paths[node].number;
        let delay = self.random.millis(500, 6_000);
        self.after(delay, Event::PathLost { node, path });
    }

    /// A host gives a path up: what was asked over it is asked again.
    pub(crate) fn path_lost(&mut self, node: usize, number: u64) {
        let pause = self.random.millis(1, 300);
        let path = &mut self.hosts.paths[node];
        if path.number != number {
            return;
        }
        path.number += 1;
        path.down_until = self.now + pause;
        path.access = self.nodes[node].access.clone();
        self.nodes[node].requests.clear();
        for worker in 0..self.hosts.workers.len() {
            let attempt = self.hosts.workers[worker].attempt;
            if !matches!(self.hosts.workers[worker].task, Task::Idle) {
                let delay = self.random.millis(2, 60);
                self.after(delay, Event::HostRetry { worker, attempt });
            }
        }
    }

    // ---- what is made of answers ---------------------------------------------------------------

    pub(crate) fn host_reply_arrives(
        &mut self,
        node: usize,
        path: u64,
        (worker, attempt): (usize, u64),
        outcome: HostOutcome,
    ) {
        let is_current = self.hosts.paths[node].number == path
            && self.hosts.workers[worker].attempt == attempt
            && !matches!(self.hosts.workers[worker].task, Task::Idle);
        if !is_current {
            return;
        }
        if self.network.is_cut(Place::Node(node), Place::Hosts) {
            return self.doubt_path(node);
        }
        match outcome {
            HostOutcome::PathError
            | HostOutcome::Transition
            | HostOutcome::Busy
            | HostOutcome::NoSuchVolume => {
                let delay = self.random.millis(2, 60);
                self.after(delay, Event::HostRetry { worker, attempt });
            }
            HostOutcome::OutOfRange => {
                self.violated(|| "a request within the volume was refused for good".to_owned());
            }
            HostOutcome::MediumError => {
                self.hosts.medium_errors += 1;
                let volume = self.hosts.workers[worker].volume;
                self.check_medium_error(volume);
                let delay = self.random.millis(20, 80);
                self.after(delay, Event::HostRetry { worker, attempt });
            }
            HostOutcome::Done => self.done(worker),
            HostOutcome::Data(data) => self.read(worker, &data),
            HostOutcome::Miscompare { .. } => self.miscompared(worker),
            HostOutcome::Conflict => self.violated(|| "a mirror judged a reservation".to_owned()),
        }
    }

    fn done(&mut self, worker: usize) {
        let stamp = self.hosts.stamp();
        let attempted = self.hosts.workers[worker].attempted;
        let volume = self.hosts.workers[worker].volume;
        let task = std::mem::replace(&mut self.hosts.workers[worker].task, Task::Idle);
        let disk = &mut self.hosts.disks[volume];
        let mut wrong = None;
        match task {
            Task::Write { begin, values, .. } | Task::Zero { begin, values, .. } => {
                for (block, value) in (begin..).zip(values) {
                    disk.own[block as usize].acknowledge(value);
                }
            }
            Task::Swap { block, value, .. } => disk.own[block as usize].acknowledge(value),
            Task::WriteShared { begin, values } => {
                for (block, value) in (begin..).zip(values) {
                    let shared = disk.shared.entry(block).or_default();
                    wrong = wrong.or(shared.show(value, attempted, stamp).err());
                }
            }
            Task::SwapShared { block, expected, value } => {
                let shared = disk.shared.entry(block).or_default();
                let shown = shared
                    .show(expected, attempted, stamp)
                    .and_then(|()| shared.show(value, attempted, stamp))
                    .and_then(|()| shared.replace(expected, value));
                wrong = shown.err().map(|text| format!("block {block}: {text}"));
            }
            Task::Put { value } => {
                disk.record.acknowledged = value;
            }
            Task::Confirm => {}
            Task::Read { .. } | Task::Idle => {
                wrong = Some("a read was answered without data".to_owned());
            }
        }
        if let Some(wrong) = wrong {
            self.violated(|| format!("volume {volume}: {wrong}"));
        }
        self.tally.acknowledged += 1;
        self.host_next(worker);
    }

    fn miscompared(&mut self, worker: usize) {
        let it = &mut self.hosts.workers[worker];
        let is_first = it.tries == 1;
        let task = std::mem::replace(&mut it.task, Task::Idle);
        match task {
            // The first try may have been carried out although its path was lost.
            Task::Swap { .. } if !is_first => {}
            Task::SwapShared { .. } => {}
            other => self.violated(|| format!("{other:?} found something else there")),
        }
        self.host_next(worker);
    }

    fn read(&mut self, worker: usize, data: &[u8]) {
        let stamp = self.hosts.stamp();
        let it = &mut self.hosts.workers[worker];
        let (volume, began) = (it.volume, it.began);
        let Task::Read { begin, least } = std::mem::replace(&mut it.task, Task::Idle) else {
            return self.violated(|| "data came for what was no read".to_owned());
        };
        if data.len() != least.len() * BLOCK as usize {
            return self
                .violated(|| format!("{} bytes came for {} blocks", data.len(), least.len()));
        }
        let disk = &mut self.hosts.disks[volume];
        let mut wrong = disk.judge_whole(begin, data).err();
        for ((block, least), bytes) in (begin..).zip(least).zip(data.chunks(BLOCK as usize)) {
            let judged = judge_block(disk, volume, block, least, bytes, (began, stamp));
            wrong = wrong.or(judged.err().map(|text| (block, text)));
        }
        if self.hosts.reading_all {
            let at = (begin * BLOCK) as usize;
            let found = &mut self.hosts.disks[volume].found;
            found.resize(found.len().max(at + data.len()), 0);
            found[at..at + data.len()].copy_from_slice(data);
        }
        if let Some((block, text)) = wrong {
            self.violated(|| format!("volume {volume} block {block}: {text}"));
        }
        self.tally.reads += 1;
        self.host_next(worker);
    }

    fn host_next(&mut self, worker: usize) {
        let busy = self.now < self.hosts.busy_until;
        let delay = match busy {
            true => self.random.micros(100, 12_000),
            false => self.random.millis(100, 1_500),
        };
        self.after(delay, Event::HostIssue { worker });
    }

    // ---- records -------------------------------------------------------------------------------

    /// An owner that begins to serve was told the record.
    pub(crate) fn record_told(
        &mut self,
        node: usize,
        volume: VolumeId,
        record: &[u8],
        is_cold: bool,
    ) {
        let Some(index) = self.hosts.volume_index(volume) else { return };
        let first = record.get(..8).and_then(|first| first.try_into().ok());
        let value = first.map_or(0, u64::from_le_bytes);
        let known = &mut self.hosts.disks[index].record;
        let least = known.acknowledged.max(known.seen);
        let issued = known.issued;
        known.seen = known.seen.max(value);
        if record != record_of(value) {
            self.violated(|| format!("node {node} serves volume {index} by a torn record"));
        }
        if !(least..=issued).contains(&value) {
            self.violated(|| format!(
                "node {node} serves volume {index} by record {value}, but {least} was acknowledged or served by"
            ));
        }
        let group = self.founded.volumes[index].group;
        if !self.nodes[node].knows_record.insert(group) && is_cold {
            self.violated(|| {
                format!(
                    "node {node} knew the record of volume {index}, but was told that nobody does"
                )
            });
        }
    }

    // ---- the end -------------------------------------------------------------------------------

    /// Reads every block of a volume, and returns what was found.
    pub(crate) fn read_all(&mut self, volume: usize) -> Vec<u8> {
        const PIECE: u64 = 128;
        self.hosts.reading_all = true;
        self.hosts.disks[volume].found.clear();
        let size = self.hosts.disks[volume].size_blocks;
        let mut next = 0;
        while next < size && self.violation.is_none() {
            for worker in volume * WORKERS..(volume + 1) * WORKERS {
                if next < size {
                    let task = self.read_task(volume, next, PIECE.min(size - next));
                    let began = self.hosts.stamp();
                    let it = &mut self.hosts.workers[worker];
                    (it.task, it.tries, it.began) = (task, 0, began);
                    self.host_send(worker);
                    next += PIECE;
                }
            }
            self.settle_hosts();
        }
        self.hosts.reading_all = false;
        std::mem::take(&mut self.hosts.disks[volume].found)
    }

    /// Lets what is under way end.
    pub(crate) fn settle_hosts(&mut self) {
        let deadline = self.now + Duration::from_secs(60);
        while !self.hosts.is_idle() && self.violation.is_none() {
            if self.now >= deadline {
                let stuck = self.hosts.workers.iter().find(|it| !matches!(it.task, Task::Idle));
                let stuck = format!("{:?}", stuck.map(|it| (&it.task, it.volume)));
                let state = self.describe();
                return self
                    .violated(|| format!("a request of a host never ends: {stuck}\n{state}"));
            }
            self.run_for(Duration::from_millis(5));
        }
    }
}

fn judge_block(
    disk: &mut Disk,
    volume: usize,
    block: u64,
    least: u64,
    bytes: &[u8],
    (began, ended): (Stamp, Stamp),
) -> Result<(), String> {
    let first = u64::from_le_bytes(bytes[..8].try_into().expect("a block has eight bytes"));
    let value = first >> 24;
    let mut expected = [0; BLOCK as usize];
    if first != 0 {
        fill(&mut expected, word(volume, block, value));
    }
    if bytes != expected {
        return Err(format!("it holds foreign or torn bytes ({first:#x} first)"));
    }
    if Hosts::is_shared(block) {
        let shared = disk.shared.entry(block).or_default();
        return shared.show(value, began, ended);
    }
    disk.own[block as usize].check((first != 0).then_some(value), least)
}
