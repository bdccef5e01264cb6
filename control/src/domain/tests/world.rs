//! A log in memory with the state that follows it, and a small cluster to begin with.

use crate::domain::state::{Group, State, Volume};
use crate::domain::{Refusal, decide, evolve};
use std::net::SocketAddr;
use uuid::Uuid;
use voute_schemas::command::{AttestedGroup, Command, Escalation, LegRequest};
use voute_schemas::commit::{Actor, Origin, Outcome};
use voute_schemas::event::*;
use voute_schemas::ids::*;
use voute_schemas::place::{ExtentRun, LegPlacement, Locator, Portals};
use voute_schemas::proof::Verifier;
use voute_schemas::{Commit, Epoch, Hash, Name};

pub(super) const MIB: u64 = 1 << 20;
pub(super) const EXTENT: u64 = 16 * MIB;
pub(super) const EXTENTS: u64 = 64;

pub(super) const SITE_A: SiteId = SiteId(Uuid::from_u128(1));
pub(super) const SITE_B: SiteId = SiteId(Uuid::from_u128(2));
pub(super) const SITE_W: SiteId = SiteId(Uuid::from_u128(3));
pub(super) const NODE_A: NodeId = NodeId(Uuid::from_u128(11));
pub(super) const NODE_B: NodeId = NodeId(Uuid::from_u128(12));
pub(super) const POOL_A: PoolId = PoolId(Uuid::from_u128(21));
pub(super) const POOL_B: PoolId = PoolId(Uuid::from_u128(22));
pub(super) const DEVICE_A: DeviceId = DeviceId(Uuid::from_u128(31));
pub(super) const DEVICE_B: DeviceId = DeviceId(Uuid::from_u128(32));
pub(super) const VOLUME: VolumeId = VolumeId(Uuid::from_u128(41));
pub(super) const GROUP: GroupId = GroupId(Uuid::from_u128(51));
pub(super) const LEG_A: LegId = LegId(Uuid::from_u128(61));
pub(super) const LEG_B: LegId = LegId(Uuid::from_u128(62));
pub(super) const HOST: HostId = HostId(Uuid::from_u128(71));

pub(super) fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub(super) fn uuid(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

pub(super) fn portals(first_port: u16) -> Portals {
    let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
    Portals { nvme: at(first_port), iscsi: at(first_port + 1), link: at(first_port + 2) }
}

pub(super) fn identity(nqn: &str) -> HostIdentity {
    HostIdentity { nqns: vec![nqn.to_owned()], iqns: vec![], chap_secret: None }
}

pub(super) fn evidence(condition: SiteCondition) -> FailoverEvidence {
    FailoverEvidence {
        condition,
        observed: "no heartbeat for 2000 ms".to_owned(),
        first_sign_unix_ms: 1,
        decided_unix_ms: 2,
        left_behind: vec![],
        left_behind_total: 0,
    }
}

pub(super) fn attestation() -> Attestation {
    Attestation { legs_open: true, owner_silent: true, lease_expired: true, silent_ms: 2_000 }
}

pub(super) fn resync() -> ResyncEvidence {
    ResyncEvidence { full: false, regions: 3, bytes: 3 * MIB, duration_ms: 10 }
}

pub(super) fn run(device: DeviceId, first: u64, count: u64) -> ExtentRun {
    ExtentRun { device, first, count }
}

/// The log and what follows from it.
#[derive(Clone, Default)]
pub(super) struct World {
    pub(super) log: Vec<(Epoch, Commit)>,
    pub(super) state: State,
    pub(super) key: Option<String>,
}

impl World {
    /// A cluster alone.
    pub(super) fn founded() -> Self {
        let mut world = World::default();
        let log_site = Verifier { name: "w".to_owned(), key: Hash([7; 32]) };
        world.must(Command::CreateCluster {
            cluster: ClusterId(uuid(9)),
            name: name("town"),
            log_site,
        });
        world
    }

    /// Two data sites with a node, a pool and a device of [`EXTENTS`] each, and a witness.
    pub(super) fn with_pools() -> Self {
        let mut world = World::founded();
        let site = |site, text: &str, kind| Event::SiteAdded { site, name: name(text), kind };
        let node = |node, text: &str, site, number: u16| Event::NodeAdded {
            node,
            name: name(text),
            site,
            portals: portals(4000 + 10 * number),
            number,
            verifier: Hash([number as u8; 32]),
        };
        let pool = |pool, text: &str, site| Event::PoolCreated {
            pool,
            name: name(text),
            site,
            extent_bytes: EXTENT,
        };
        let device = |device, text: &str, node, pool| Event::DeviceAdded {
            device,
            name: name(text),
            node,
            pool,
            locator: Locator::Memory { size_bytes: 1 << 40 },
            overwrite: false,
        };
        let adopted = |device| Event::DeviceAdopted { device, extents: EXTENTS, block_bytes: 512 };
        world.given(vec![
            site(SITE_A, "a", SiteKind::Data),
            site(SITE_B, "b", SiteKind::Data),
            site(SITE_W, "w", SiteKind::Witness),
            node(NODE_A, "node-a", SITE_A, 1),
            node(NODE_B, "node-b", SITE_B, 2),
            pool(POOL_A, "pool-a", SITE_A),
            pool(POOL_B, "pool-b", SITE_B),
            device(DEVICE_A, "device-a", NODE_A, POOL_A),
            device(DEVICE_B, "device-b", NODE_B, POOL_B),
            adopted(DEVICE_A),
            adopted(DEVICE_B),
        ]);
        world
    }

    /// The same with one formatted mirrored volume of 100 MiB, owned at A.
    pub(super) fn with_volume() -> Self {
        let mut world = World::with_pools();
        world.must(create_volume(100 * MIB));
        let formatted = |leg| Event::LegFormatted { leg };
        world.given(vec![formatted(LEG_A), formatted(LEG_B)]);
        world
    }

    /// The same with a host.
    pub(super) fn with_host() -> Self {
        let mut world = World::with_volume();
        world.given(vec![Event::HostAdded {
            host: HOST,
            name: name("host"),
            identity: identity("nqn.2014-08.org.nvmexpress:uuid:1"),
        }]);
        world
    }

    pub(super) fn given(&mut self, events: Vec<Event>) {
        self.append("Given", Outcome::Accepted(events));
    }

    /// Decides and commits, refusals too.
    pub(super) fn run(&mut self, command: &Command) -> Result<Vec<Event>, Refusal> {
        let decided = decide(&self.state, command);
        match &decided {
            Ok(events) if events.is_empty() => {}
            Ok(events) => self.append(command.name(), Outcome::Accepted(events.clone())),
            Err(refusal) => {
                let (code, message) = (refusal.code().to_owned(), refusal.to_string());
                self.append(command.name(), Outcome::Refused { code, message });
            }
        }
        decided
    }

    /// The events of a command that must be accepted.
    #[track_caller]
    pub(super) fn must(&mut self, command: Command) -> Vec<Event> {
        match self.run(&command) {
            Ok(events) => events,
            Err(refusal) => panic!("{} was refused: {refusal}", command.name()),
        }
    }

    /// The code and text of a command that must be refused; the state stays.
    #[track_caller]
    pub(super) fn refuses(&self, command: Command) -> (&'static str, String) {
        match decide(&self.state, &command) {
            Ok(events) => panic!("{} was accepted: {events:?}", command.name()),
            Err(refusal) => (refusal.code(), refusal.to_string()),
        }
    }

    #[track_caller]
    pub(super) fn asks(&mut self, node: NodeId, request: Escalation) -> Vec<Event> {
        self.must(Command::Escalate { node, requests: vec![request] })
    }

    #[track_caller]
    pub(super) fn denies(&self, node: NodeId, request: Escalation) -> &'static str {
        self.refuses(Command::Escalate { node, requests: vec![request] }).0
    }

    pub(super) fn append(&mut self, command: &str, outcome: Outcome) {
        let before = self.state.position();
        let commit = Commit {
            sequence: before.sequence.next(),
            previous: before.hash,
            id: CommitId(uuid(u128::from(before.sequence.0) + 1)),
            time_unix_ms: 0,
            actor: Actor::System,
            origin: Origin::Api,
            source: None,
            correlation: CorrelationId(uuid(0)),
            causation: None,
            idempotency_key: self.key.take(),
            command: command.to_owned(),
            reason: String::new(),
            outcome,
        };
        let position = Epoch { sequence: commit.sequence, hash: Hash::of_commit(&commit.encode()) };
        evolve(&mut self.state, position, &commit);
        self.log.push((position, commit));
    }

    /// The state that the log alone gives.
    pub(super) fn replayed(&self) -> State {
        let mut state = State::default();
        for (position, commit) in &self.log {
            let commit = Commit::decode(&commit.encode()).unwrap();
            evolve(&mut state, *position, &commit);
        }
        state
    }

    pub(super) fn group(&self) -> &Group {
        self.state.group(GROUP).unwrap()
    }

    pub(super) fn volume(&self) -> &Volume {
        self.state.volume(VOLUME).unwrap()
    }

    pub(super) fn epoch(&self) -> Epoch {
        self.group().epoch
    }

    pub(super) fn in_sync(&self, site: SiteId) -> bool {
        self.group().side(site).unwrap().in_sync
    }

    /// B leaves the in-sync set.
    pub(super) fn detach_b(&mut self) {
        let (group, epoch) = (GROUP, self.epoch());
        let cause = DetachCause::Unreachable;
        self.asks(NODE_A, Escalation::DetachSide { group, epoch, site: SITE_B, cause });
    }

    /// B's side vouches at the present epoch.
    pub(super) fn attested_by_b(&self) -> AttestedGroup {
        AttestedGroup { group: GROUP, epoch: self.epoch(), to: NODE_B, attestation: attestation() }
    }
}

/// The mirrored volume of [`World::with_volume`].
pub(super) fn create_volume(size_bytes: u64) -> Command {
    Command::CreateVolume {
        volume: VOLUME,
        group: GROUP,
        name: name("vol"),
        size_bytes,
        block_bytes: 512,
        legs: vec![
            LegRequest { leg: LEG_A, pool: POOL_A },
            LegRequest { leg: LEG_B, pool: POOL_B },
        ],
        policy: None,
    }
}

/// Another volume, number `n`, with legs in these pools.
pub(super) fn create_other(n: u128, size_bytes: u64, pools: &[PoolId]) -> Command {
    let leg = |(index, pool): (usize, &PoolId)| LegRequest {
        leg: LegId(uuid(1_000 + 10 * n + index as u128)),
        pool: *pool,
    };
    Command::CreateVolume {
        volume: VolumeId(uuid(10_000 + n)),
        group: GroupId(uuid(20_000 + n)),
        name: name(&format!("other-{n}")),
        size_bytes,
        block_bytes: 512,
        legs: pools.iter().enumerate().map(leg).collect(),
        policy: None,
    }
}

pub(super) fn placement(
    leg: LegId,
    (pool, site, node): (PoolId, SiteId, NodeId),
    runs: Vec<ExtentRun>,
) -> LegPlacement {
    LegPlacement { leg, pool, site, node, runs }
}
