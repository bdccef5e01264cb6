//! A target and initiators back to back in memory, joined by wires that cut bytes at random.

#![allow(dead_code, reason = "each test file uses a part")]

#[path = "../../examples/ram_target/disk.rs"]
mod disk;

pub(crate) use disk::Disk;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use voute_iscsi::{
    AluaState, Authentication, Completion, CompletionStatus, Directory, HostView, Initiator,
    InitiatorConfig, InitiatorError, LunView, Operation, Outcome, Portal, PortalId, Request, Tag,
    Target, TargetConfig, TargetConnection, TargetPortGroup, VolumeKey,
};

pub(crate) const TARGET: &str = "iqn.2026-01.dev.voute:test";
pub(crate) const HOST: &str = "iqn.2026-01.dev.voute:host";
pub(crate) const VOLUME: VolumeKey = VolumeKey(7);
pub(crate) const BLOCKS: u64 = 32768;

/// Choices: a small generator with a seed (xorshift), or bytes that are given.
pub(crate) struct Random {
    state: u64,
    given: Option<VecDeque<u8>>,
}

impl Random {
    pub(crate) fn seeded(seed: u64) -> Self {
        Random { state: seed, given: None }
    }
    /// Past the end of the bytes every choice is the first.
    pub(crate) fn given(bytes: &[u8]) -> Self {
        Random { state: 0, given: Some(bytes.iter().copied().collect()) }
    }
    /// Whether nothing is left to choose by.
    pub(crate) fn is_used_up(&self) -> bool {
        self.given.as_ref().is_some_and(VecDeque::is_empty)
    }
    pub(crate) fn next(&mut self) -> u64 {
        if self.given.is_some() {
            return self.bytes_as_number(8);
        }
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state
    }
    fn bytes_as_number(&mut self, count: usize) -> u64 {
        let given = self.given.get_or_insert_default();
        let taken = given.drain(..count.min(given.len()));
        taken.fold(0, |number, byte| number << 8 | u64::from(byte))
    }
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        let limit = limit.max(1) as u64;
        let number = match self.given {
            None => self.next(),
            // No more bytes than the choice needs.
            Some(_) => self.bytes_as_number(limit.ilog2() as usize / 8 + 1),
        };
        (number % limit) as usize
    }
    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        match self.given {
            None => (0..length).map(|_| self.next() as u8).collect(),
            Some(_) => (0..length).map(|_| self.bytes_as_number(1) as u8).collect(),
        }
    }
}

pub(crate) fn view(lun: u16, volume: VolumeKey) -> LunView {
    let mut naa = [0; 16];
    naa[0] = 0x60;
    naa[15] = volume.0 as u8;
    LunView {
        lun,
        volume,
        naa,
        serial: format!("V{}", volume.0),
        block_size: 512,
        blocks: BLOCKS,
        alua_state: AluaState::ActiveOptimized,
        target_port_groups: vec![
            TargetPortGroup { id: 1, state: AluaState::ActiveOptimized, relative_ports: vec![1] },
            TargetPortGroup { id: 2, state: AluaState::Standby, relative_ports: vec![2] },
        ],
        read_only: false,
        thin: true,
        physical_block_size: 512,
        atomic_blocks: 1,
    }
}

pub(crate) fn portals() -> Vec<Portal> {
    let portal = |number: u16, address: &str| Portal {
        id: PortalId(number),
        address: address.into(),
        group_tag: number,
        relative_port: number,
    };
    vec![portal(1, "192.0.2.1:3260"), portal(2, "[2001:db8::2]:3260")]
}

pub(crate) fn directory(authentication: Authentication, luns: Vec<LunView>) -> Directory {
    let host = HostView { authentication, luns, portals: None };
    Directory {
        portals: portals(),
        hosts: HashMap::from([(HOST.to_owned(), host)]),
        discovery: Authentication::None,
    }
}

pub(crate) fn target_with(directory: Directory) -> Arc<Target> {
    let target = Target::new(TargetConfig {
        name: TARGET.into(),
        alias: Some("test".into()),
        seed: [9; 32],
    });
    target.publish(Arc::new(directory));
    target
}

pub(crate) fn target() -> Arc<Target> {
    target_with(directory(Authentication::None, vec![view(0, VOLUME)]))
}

pub(crate) fn config() -> InitiatorConfig {
    InitiatorConfig::new(HOST, Some(TARGET))
}

/// One session over one wire.
pub(crate) struct Wire {
    pub(crate) target: Arc<Target>,
    pub(crate) connection: TargetConnection,
    pub(crate) initiator: Initiator,
    pub(crate) disk: Arc<Disk>,
    pub(crate) random: Random,
    /// Requests kept back while `keeps` is set.
    pub(crate) kept: VecDeque<Request>,
    pub(crate) keeps: bool,
    pub(crate) now: Duration,
    pub(crate) error: Option<InitiatorError>,
}

impl Wire {
    pub(crate) fn new(target: &Arc<Target>, config: InitiatorConfig, seed: u64) -> Self {
        Wire::on(target, config, seed, Arc::new(Disk::new(512, BLOCKS as usize)))
    }

    pub(crate) fn on(
        target: &Arc<Target>,
        config: InitiatorConfig,
        seed: u64,
        disk: Arc<Disk>,
    ) -> Self {
        let mut wire = Wire {
            target: target.clone(),
            connection: TargetConnection::new(target.clone(), PortalId(1), Duration::ZERO),
            initiator: Initiator::new(config),
            disk,
            random: Random::seeded(seed.max(1)),
            kept: VecDeque::new(),
            keeps: false,
            now: Duration::ZERO,
            error: None,
        };
        wire.run();
        wire
    }

    /// A session that is logged in and has seen its first unit attention.
    pub(crate) fn ready(target: &Arc<Target>, config: InitiatorConfig, seed: u64) -> Self {
        let disk = Arc::new(Disk::new(512, BLOCKS as usize));
        Wire::ready_on(target, config, seed, &disk)
    }

    pub(crate) fn ready_on(
        target: &Arc<Target>,
        config: InitiatorConfig,
        seed: u64,
        disk: &Arc<Disk>,
    ) -> Self {
        let mut wire = Wire::on(target, config, seed, disk.clone());
        assert!(wire.initiator.is_ready(), "login failed: {:?}", wire.error);
        wire.clear_attentions();
        wire
    }

    pub(crate) fn clear_attentions(&mut self) {
        for _ in 0..16 {
            let task = self.initiator.test_unit_ready(0).expect("window is open");
            match self.wait(task).status {
                CompletionStatus::CheckCondition { key: 6, .. } => {}
                _ => return,
            }
        }
        panic!("unit attentions do not end");
    }

    /// Carries bytes and requests until nothing moves.
    pub(crate) fn run(&mut self) {
        while self.step() {}
    }

    fn step(&mut self) -> bool {
        self.follow();
        let mut moved = self.carry_up();
        self.follow();
        while let Some(request) = self.connection.next_request() {
            moved = true;
            if self.keeps { self.kept.push_back(request) } else { self.execute(request) }
        }
        self.carry_down() || moved
    }

    /// From the initiator, as far as the target wants input.
    fn carry_up(&mut self) -> bool {
        let bytes = std::mem::take(self.initiator.output());
        let mut at = 0;
        while at < bytes.len() && self.connection.wants_input() {
            let taken = 1 + self.random.below((bytes.len() - at).min(9000));
            self.connection.receive(&bytes[at..at + taken], self.now);
            at += taken;
        }
        self.initiator.output().splice(0..0, bytes[at..].iter().copied());
        at > 0
    }

    fn carry_down(&mut self) -> bool {
        let (mut around, mut insets) = (Vec::new(), VecDeque::new());
        self.connection.take_output(&mut around, &mut insets);
        let (mut bytes, mut from) = (Vec::new(), 0);
        for inset in insets {
            bytes.extend_from_slice(&around[from..inset.at]);
            bytes.extend_from_slice(&inset.bytes);
            from = inset.at;
        }
        bytes.extend_from_slice(&around[from..]);
        let mut at = 0;
        while at < bytes.len() && self.error.is_none() {
            let taken = 1 + self.random.below((bytes.len() - at).min(9000));
            self.error = self.initiator.receive(&bytes[at..at + taken]).err();
            at += taken;
        }
        !bytes.is_empty()
    }

    /// Does what is wished of reservations without a command.
    pub(crate) fn follow(&mut self) {
        for wish in self.target.take_reservation_wishes() {
            self.disk.follow(&self.target, &wish);
        }
    }

    pub(crate) fn execute(&mut self, request: Request) {
        let tag = request.tag;
        let outcome = self.disk.serve(&self.target, request);
        self.connection.complete(tag, outcome);
    }

    /// Carries out what was kept back.
    pub(crate) fn release(&mut self) {
        self.keeps = false;
        while let Some(request) = self.kept.pop_front() {
            self.execute(request);
        }
        self.run();
    }

    pub(crate) fn wait(&mut self, task: u32) -> Completion {
        self.run();
        let mut others = Vec::new();
        while let Some(completion) = self.initiator.next_completion() {
            if completion.task == task {
                return completion;
            }
            others.push(completion);
        }
        panic!("no completion of {task}; others: {others:?}, error {:?}", self.error);
    }

    pub(crate) fn write(&mut self, lba: u64, data: &[u8]) -> CompletionStatus {
        let task = self.initiator.write(0, lba, data, 512).expect("window is open");
        self.wait(task).status
    }

    pub(crate) fn read(&mut self, lba: u64, blocks: u32) -> Completion {
        let task = self.initiator.read(0, lba, blocks, 512).expect("window is open");
        self.wait(task)
    }

    pub(crate) fn command(&mut self, cdb: &[u8], expected_in: u32, data_out: &[u8]) -> Completion {
        let mut whole = [0; 16];
        whole[..cdb.len()].copy_from_slice(cdb);
        let task = self.initiator.command(0, whole, expected_in, data_out).expect("window is open");
        self.wait(task)
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        self.now += time;
        self.connection.tick(self.now);
        self.run();
    }
}

pub(crate) fn sense(status: &CompletionStatus) -> (u8, u16) {
    match status {
        CompletionStatus::CheckCondition { key, code, .. } => (*key, *code),
        other => panic!("expected sense data, got {other:?}"),
    }
}

pub(crate) fn written_bytes(operation: &Operation) -> usize {
    match operation {
        Operation::Write { data, .. } => data.len(),
        _ => 0,
    }
}

pub(crate) fn complete_unknown(connection: &mut TargetConnection, raw: u64) {
    connection.complete(Tag::from_raw(raw), Outcome::Done);
}
