//! The cluster that every run begins with, made by commands: two data sites with a node, a pool and
//! a device each, a witness, a policy, and one to three mirrored volumes.

use crate::log::SimulatedLog;
use crate::random::Random;
use std::net::SocketAddr;
use uuid::Uuid;
use voute_control::domain::{State, decide, evolve};
use voute_schemas::command::{Command, Escalation, LegRequest};
use voute_schemas::commit::{Actor, Origin, Outcome};
use voute_schemas::event::{Event, FailoverMode, PolicyRules, SiteKind};
use voute_schemas::place::{Locator, Portals};
use voute_schemas::proof::Verifier;
use voute_schemas::*;

/// A volume and its group.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FoundedVolume {
    pub(crate) volume: VolumeId,
    pub(crate) group: GroupId,
}

/// What was founded.
#[derive(Clone, Debug)]
pub(crate) struct Founded {
    pub(crate) cluster: ClusterId,
    pub(crate) sites: [SiteId; 2],
    pub(crate) nodes: [NodeId; 2],
    pub(crate) pools: [PoolId; 2],
    pub(crate) volumes: Vec<FoundedVolume>,
    /// Whose device is memory.
    pub(crate) is_memory: [bool; 2],
}

const VOLUME_BYTES: u64 = 1 << 20;
const DEVICE_BYTES: u64 = 1 << 40;

/// An identifier that is the same in every run.
pub(crate) fn uuid(kind: u32, number: u64) -> Uuid {
    Uuid::from_u128(u128::from(kind) << 64 | u128::from(number))
}

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).expect("the simulation's names are valid")
}

/// A commit that follows a position.
pub(crate) fn commit(
    after: Epoch,
    id: CommitId,
    actor: Actor,
    command: &str,
    events: Vec<Event>,
) -> Commit {
    Commit {
        sequence: after.sequence.next(),
        previous: after.hash,
        id,
        time_unix_ms: 0,
        actor,
        origin: Origin::Genesis,
        source: None,
        correlation: CorrelationId(uuid(90, 0)),
        causation: None,
        idempotency_key: None,
        command: command.to_owned(),
        reason: String::new(),
        outcome: Outcome::Accepted(events),
    }
}

struct Founding<'a> {
    state: State,
    log: &'a SimulatedLog,
}

impl Founding<'_> {
    fn give(&mut self, command: &Command) {
        let events = decide(&self.state, command).expect("the founding commands are accepted");
        let before = self.state.position();
        let id = CommitId(uuid(91, before.sequence.0));
        let commit = commit(before, id, Actor::System, command.name(), events);
        let position = Epoch { sequence: commit.sequence, hash: Hash::of_commit(&commit.encode()) };
        evolve(&mut self.state, position, &commit);
        let appended = self.log.append_now(before, &[commit]);
        assert_eq!(appended.ok(), Some(position), "a new log takes its first commits");
    }
}

/// Makes the cluster and returns what it consists of.
pub(crate) fn found(random: &mut Random, log: &SimulatedLog) -> Founded {
    let mut founding = Founding { state: State::default(), log };
    let founded = Founded {
        cluster: ClusterId(uuid(1, 1)),
        sites: [1, 2].map(|number| SiteId(uuid(2, number))),
        nodes: [1, 2].map(|number| NodeId(uuid(3, number))),
        pools: [1, 2].map(|number| PoolId(uuid(4, number))),
        volumes: (1..=1 + random.below(3))
            .map(|number| FoundedVolume {
                volume: VolumeId(uuid(6, number)),
                group: GroupId(uuid(7, number)),
            })
            .collect(),
        is_memory: [false, random.chance(20)],
    };
    let log_site = Verifier { name: "w".to_owned(), key: Hash([7; 32]) };
    let (cluster, town) = (founded.cluster, name("town"));
    founding.give(&Command::CreateCluster { cluster, name: town, log_site });
    for index in 0..2 {
        found_site(&mut founding, &founded, index);
    }
    let witness = SiteId(uuid(2, 3));
    founding.give(&Command::AddSite { site: witness, name: name("w"), kind: SiteKind::Witness });
    found_volumes(&mut founding, &founded, random);
    founded
}

fn found_site(founding: &mut Founding<'_>, founded: &Founded, index: usize) {
    let (site, node, pool) = (founded.sites[index], founded.nodes[index], founded.pools[index]);
    let device = DeviceId(uuid(5, index as u64));
    let called = |noun: &str| name(&format!("{noun}-{index}"));
    let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], 4_000 + 10 * index as u16 + port));
    let portals = Portals { nvme: at(1), iscsi: at(2), link: at(3) };
    let verifier = Hash([index as u8 + 1; 32]);
    founding.give(&Command::AddSite { site, name: called("site"), kind: SiteKind::Data });
    founding.give(&Command::AddNode { node, name: called("node"), site, portals, verifier });
    let extent_bytes = 16 << 20;
    founding.give(&Command::CreatePool { pool, name: called("pool"), site, extent_bytes });
    let locator = match founded.is_memory[index] {
        true => Locator::Memory { size_bytes: DEVICE_BYTES },
        false => Locator::File { path: format!("/device-{index}"), size_bytes: DEVICE_BYTES },
    };
    let name = called("device");
    founding.give(&Command::AddDevice { device, name, node, pool, locator, overwrite: false });
    let ready = Escalation::DeviceReady { device, size_bytes: DEVICE_BYTES, block_bytes: 512 };
    founding.give(&Command::Escalate { node, requests: vec![ready] });
}

fn found_volumes(founding: &mut Founding<'_>, founded: &Founded, random: &mut Random) {
    for (index, volume) in founded.volumes.iter().enumerate() {
        let number = index as u64;
        let policy = PolicyId(uuid(8, number));
        let preferred = random.chance(30).then(|| founded.sites[random.index(2)]);
        let rules = PolicyRules {
            mode: FailoverMode::Automatic,
            hold_down_ms: if random.chance(20) { 1_000 } else { 0 },
            preferred_site: preferred,
            failback: preferred.is_some(),
        };
        let called = name(&format!("policy-{index}"));
        founding.give(&Command::CreatePolicy { policy, name: called, rules });
        let first = random.index(2);
        let leg = |side: usize| LegRequest {
            leg: LegId(uuid(9, number * 2 + side as u64)),
            pool: founded.pools[side],
        };
        founding.give(&Command::CreateVolume {
            volume: volume.volume,
            group: volume.group,
            name: name(&format!("volume-{index}")),
            size_bytes: VOLUME_BYTES,
            block_bytes: crate::BLOCK as u32,
            legs: vec![leg(first), leg(1 - first)],
            policy: Some(policy),
        });
    }
}
