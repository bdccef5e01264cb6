//! One sample or more of every variant. Append; what is here is written in `golden/` for ever.

use std::net::{IpAddr, Ipv6Addr};
use uuid::Uuid;
use voute_schemas::commit::{Actor, Origin, Outcome};
use voute_schemas::event::*;
use voute_schemas::place::{ExtentRun, LegPlacement, Locator, Portals};
use voute_schemas::proof::Verifier;
use voute_schemas::*;

/// Lists an enum's variants, and fails to compile when one is missing.
macro_rules! variants {
    ($list:ident, $name:ident, $kind:ident: $($variant:ident)*) => {
        pub(crate) const $list: &[&str] = &[$(stringify!($variant)),*];

        #[allow(dead_code, reason = "its match is what counts")]
        pub(crate) fn $name(value: &$kind) -> &'static str {
            match value {
                $($kind::$variant { .. } => stringify!($variant),)*
            }
        }
    };
}

variants!(EVENT_VARIANTS, variant_of, Event:
    ClusterCreated ClusterLevelRaised CredentialIssued CredentialRevoked SiteAdded SiteRemoved
    SiteConditionReported NodeAdded NodePortalsChanged NodeRemoved PoolCreated PoolRemoved
    DeviceAdded DeviceAdopted DeviceRejected DeviceRemoved PolicyCreated PolicyChanged
    PolicyRemoved VolumeCreated VolumeResized VolumeDeleted LegFormatted LegAdded LegRemoved
    LegReleased LegDetached LegInSync OwnerMoved OwnerConfirmed HostAdded HostChanged HostRemoved
    VolumeMapped VolumeUnmapped FailoverDecided FailoverMeasured
    LogSitesChanged LogSiteReseeded
    VerifyRequested VolumeVerified BlocksLost ScrubScheduled HostKeysChanged
    VolumePresented);
variants!(ROLES, role, Role: Viewer Auditor Operator Administrator);
variants!(SITE_KINDS, site_kind, SiteKind: Data Witness);
variants!(SITE_CONDITIONS, site_condition, SiteCondition:
    Normal Lost PowerLost Fire CoolingLost Maintenance LinkDegraded);
variants!(CONDITION_SOURCES, condition_source, ConditionSource: Watcher Signal);
variants!(FAILOVER_MODES, failover_mode, FailoverMode: Automatic OnSignal Manual);
variants!(DETACH_CAUSES, detach_cause, DetachCause:
    Unreachable DeviceError ContentLost Requested);
variants!(MOVE_KINDS, move_kind, MoveKind: Planned Unplanned HandedOver AskedByHost);
variants!(LOCATORS, locator, Locator: Memory File Block RemoteNamespace);
variants!(ACTORS, actor, Actor: System Credential Node);
variants!(ORIGINS, origin, Origin: CommandLine Api Console Node Policy Genesis);
variants!(OUTCOMES, outcome, Outcome: Accepted Refused);

/// Every enum that stands inside of an event or a commit.
pub(crate) const NESTED_VARIANTS: &[(&str, &[&str])] = &[
    ("Role", ROLES),
    ("SiteKind", SITE_KINDS),
    ("SiteCondition", SITE_CONDITIONS),
    ("ConditionSource", CONDITION_SOURCES),
    ("FailoverMode", FAILOVER_MODES),
    ("DetachCause", DETACH_CAUSES),
    ("MoveKind", MOVE_KINDS),
    ("Locator", LOCATORS),
    ("Actor", ACTORS),
    ("Origin", ORIGINS),
    ("Outcome", OUTCOMES),
];

fn id(number: u128) -> Uuid {
    Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0000 + number)
}

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

fn hash(byte: u8) -> Hash {
    Hash([byte; 32])
}

fn portals(last: u8) -> Portals {
    Portals {
        nvme: ([192, 0, 2, last], 4_420).into(),
        iscsi: ([192, 0, 2, last], 3_260).into(),
        link: (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last.into()), 4_421).into(),
    }
}

fn placement(number: u128) -> LegPlacement {
    LegPlacement {
        leg: LegId(id(700 + number)),
        pool: PoolId(id(500 + number)),
        site: SiteId(id(200 + number)),
        node: NodeId(id(300 + number)),
        runs: vec![
            ExtentRun { device: DeviceId(id(400 + number)), first: 0, count: 16 },
            ExtentRun { device: DeviceId(id(410 + number)), first: 1_000_000, count: 1 },
        ],
    }
}

fn rules(mode: FailoverMode, preferred_site: Option<SiteId>) -> PolicyRules {
    PolicyRules { mode, hold_down_ms: 30_000, preferred_site, failback: preferred_site.is_some() }
}

fn attestation() -> Attestation {
    Attestation { legs_open: true, owner_silent: true, lease_expired: false, silent_ms: 1_930 }
}

fn device_added(number: u128, locator: Locator) -> Event {
    Event::DeviceAdded {
        device: DeviceId(id(400 + number)),
        name: name(&format!("device-{number}")),
        node: NodeId(id(301)),
        pool: PoolId(id(501)),
        locator,
        overwrite: number == 3,
    }
}

fn moved(kind: MoveKind) -> Event {
    Event::OwnerMoved { group: GroupId(id(800)), from: NodeId(id(301)), to: NodeId(id(302)), kind }
}

fn credential_issued(number: u128, role: Role) -> Event {
    Event::CredentialIssued {
        credential: CredentialId(id(100 + number)),
        name: name(&format!("credential-{number}")),
        role,
        verifier: hash(3),
    }
}

fn condition_reported(condition: SiteCondition, source: ConditionSource) -> Event {
    Event::SiteConditionReported {
        site: SiteId(id(201)),
        condition,
        source,
        detail: "2 of 2 nodes silent for 2.1 s, été compris".into(),
    }
}

fn detached(cause: DetachCause) -> Event {
    Event::LegDetached { group: GroupId(id(800)), site: SiteId(id(202)), cause }
}

fn volume_created() -> Event {
    Event::VolumeCreated {
        volume: VolumeId(id(600)),
        name: name("vol-01"),
        group: GroupId(id(800)),
        number: 7,
        size_bytes: 1 << 40,
        block_bytes: 4_096,
        legs: vec![placement(1), placement(2)],
        owner: NodeId(id(301)),
        policy: Some(PolicyId(id(900))),
    }
}

/// All samples, in the order of their numbers within a variant.
pub(crate) fn event_samples() -> Vec<Event> {
    let mut samples = vec![
        Event::ClusterCreated {
            cluster: ClusterId(id(1)),
            name: name("town-hall"),
            log_site: Verifier { name: "site-a".into(), key: hash(9) },
        },
        Event::ClusterLevelRaised { level: 2 },
        credential_issued(1, Role::Viewer),
        credential_issued(2, Role::Auditor),
        credential_issued(3, Role::Operator),
        credential_issued(4, Role::Administrator),
        Event::CredentialRevoked { credential: CredentialId(id(101)) },
        Event::SiteAdded { site: SiteId(id(201)), name: name("north"), kind: SiteKind::Data },
        Event::SiteAdded { site: SiteId(id(203)), name: name("third"), kind: SiteKind::Witness },
        Event::SiteRemoved { site: SiteId(id(203)) },
        Event::NodeAdded {
            node: NodeId(id(301)),
            name: name("node-a"),
            site: SiteId(id(201)),
            portals: portals(1),
            number: 300,
            verifier: hash(4),
        },
        Event::NodePortalsChanged { node: NodeId(id(301)), portals: portals(2) },
        Event::NodeRemoved { node: NodeId(id(301)) },
        Event::PoolCreated {
            pool: PoolId(id(501)),
            name: name("fast.1"),
            site: SiteId(id(201)),
            extent_bytes: 1 << 30,
        },
        Event::PoolRemoved { pool: PoolId(id(501)) },
        Event::DeviceAdopted { device: DeviceId(id(401)), extents: 3_575, block_bytes: 512 },
        Event::DeviceRejected {
            device: DeviceId(id(401)),
            cause: "it holds an ext4 file system".into(),
        },
        Event::DeviceRemoved { device: DeviceId(id(401)) },
        Event::PolicyCreated {
            policy: PolicyId(id(900)),
            name: name("gold"),
            rules: rules(FailoverMode::Automatic, Some(SiteId(id(201)))),
        },
        Event::PolicyCreated {
            policy: PolicyId(id(901)),
            name: name("silver"),
            rules: rules(FailoverMode::OnSignal, None),
        },
        Event::PolicyChanged {
            policy: PolicyId(id(900)),
            rules: rules(FailoverMode::Manual, None),
        },
        Event::PolicyRemoved { policy: PolicyId(id(900)) },
        volume_created(),
        Event::VolumeCreated {
            volume: VolumeId(id(601)),
            name: name("single"),
            group: GroupId(id(801)),
            number: u32::MAX,
            size_bytes: 1 << 20,
            block_bytes: 512,
            legs: vec![placement(1)],
            owner: NodeId(id(301)),
            policy: None,
        },
        Event::VolumeResized {
            volume: VolumeId(id(600)),
            size_bytes: 2 << 40,
            legs: vec![placement(1), placement(2)],
        },
        Event::VolumeDeleted { volume: VolumeId(id(600)) },
        Event::LegFormatted { leg: LegId(id(701)) },
        Event::LegAdded { volume: VolumeId(id(600)), placement: placement(3) },
        Event::LegRemoved { volume: VolumeId(id(600)), leg: LegId(id(702)) },
        Event::LegReleased { leg: LegId(id(702)) },
        Event::LegInSync {
            group: GroupId(id(800)),
            site: SiteId(id(202)),
            resync: ResyncEvidence {
                full: false,
                regions: 812,
                bytes: 812 << 20,
                duration_ms: 4_711,
            },
        },
        Event::OwnerConfirmed {
            group: GroupId(id(800)),
            node: NodeId(id(302)),
            incarnation: u64::MAX,
        },
        Event::HostAdded {
            host: HostId(id(1_000)),
            name: name("esx-1"),
            identity: HostIdentity {
                nqns: vec!["nqn.2014-08.org.nvmexpress:uuid:1".into()],
                iqns: vec!["iqn.1994-05.com.example:1".into(), "iqn.1994-05.com.example:2".into()],
                chap_secret: Some(name("esx-1-chap")),
            },
        },
        Event::HostChanged { host: HostId(id(1_000)), identity: HostIdentity::default() },
        Event::HostRemoved { host: HostId(id(1_000)) },
        Event::VolumeMapped {
            volume: VolumeId(id(600)),
            host: HostId(id(1_000)),
            lun: 255,
            read_only: true,
        },
        Event::VolumeUnmapped { volume: VolumeId(id(600)), host: HostId(id(1_000)) },
        Event::FailoverDecided {
            failover: FailoverId(id(1_100)),
            site: SiteId(id(201)),
            evidence: FailoverEvidence {
                condition: SiteCondition::Lost,
                observed: "no heartbeat of node-a since 12:00:03.120".into(),
                first_sign_unix_ms: 1_764_000_003_120,
                decided_unix_ms: 1_764_000_005_250,
                left_behind: vec![LeftBehind {
                    group: GroupId(id(802)),
                    cause: "its other side is resyncing".into(),
                }],
                left_behind_total: 1,
            },
        },
        Event::FailoverMeasured {
            failover: FailoverId(id(1_100)),
            phases: FailoverPhases {
                detection_ms: 2_130,
                commit_ms: 4,
                lease_wait_ms: 0,
                open_ms: 210,
                first_io_ms: Some(35),
                groups: 5_000,
            },
        },
        Event::FailoverMeasured {
            failover: FailoverId(id(1_101)),
            phases: FailoverPhases {
                detection_ms: 0,
                commit_ms: 1,
                lease_wait_ms: 1_875,
                open_ms: 90,
                first_io_ms: None,
                groups: 0,
            },
        },
        Event::LogSitesChanged {
            sites: vec![
                Verifier { name: "site-a".into(), key: hash(9) },
                Verifier { name: "site-b".into(), key: hash(10) },
                Verifier { name: "witness".into(), key: hash(11) },
            ],
        },
        Event::LogSiteReseeded { name: "site-b".into(), size: 4_711, root: hash(12) },
        Event::HostKeysChanged {
            host: HostId(id(1_000)),
            keys: HostKeys {
                secret: Some(name("esx-1-nvme")),
                target_secret: Some(name("esx-1-nvme-target")),
            },
        },
        Event::HostKeysChanged { host: HostId(id(1_000)), keys: HostKeys::default() },
        Event::VolumePresented {
            volume: VolumeId(id(600)),
            presentation: Presentation { thin: true, physical_block_bytes: Some(4_096) },
        },
        Event::VolumePresented { volume: VolumeId(id(600)), presentation: Presentation::default() },
        Event::VerifyRequested {
            volume: VolumeId(id(600)),
            repair: true,
            requested_unix_ms: 1_764_000_000_000,
        },
        Event::VolumeVerified {
            volume: VolumeId(id(600)),
            run: 4_712,
            evidence: VerifyEvidence {
                regions: 1_024,
                bytes: 1 << 30,
                differing_regions: 2,
                differing: vec![
                    BlockRange { offset: 4_096, length: 512 },
                    BlockRange { offset: 5 << 20, length: 1 << 20 },
                ],
                repaired_regions: 1,
                mended_bytes: 8_192,
                lost_bytes: 4_096,
                duration_ms: 90_061,
            },
        },
        Event::BlocksLost {
            volume: VolumeId(id(600)),
            ranges: vec![BlockRange { offset: 7 << 30, length: 4_096 }],
        },
        Event::ScrubScheduled { every_hours: Some(720), repair: false },
        Event::ScrubScheduled { every_hours: None, repair: true },
    ];
    samples.extend([
        condition_reported(SiteCondition::Normal, ConditionSource::Watcher),
        condition_reported(SiteCondition::Lost, ConditionSource::Watcher),
        condition_reported(SiteCondition::PowerLost, ConditionSource::Signal),
        condition_reported(SiteCondition::Fire, ConditionSource::Signal),
        condition_reported(SiteCondition::CoolingLost, ConditionSource::Signal),
        condition_reported(SiteCondition::Maintenance, ConditionSource::Signal),
        condition_reported(SiteCondition::LinkDegraded, ConditionSource::Signal),
        device_added(1, Locator::Memory { size_bytes: 1 << 30 }),
        device_added(2, Locator::File { path: "/srv/voute/a.img".into(), size_bytes: 1 << 32 }),
        device_added(3, Locator::Block { path: "/dev/disk/by-id/nvme-1".into() }),
        device_added(
            4,
            Locator::RemoteNamespace {
                address: ([198, 51, 100, 7], 4_420).into(),
                subsystem: "nqn.2014-08.org.example:array".into(),
                namespace: "00112233445566778899aabbccddeeff".into(),
            },
        ),
        detached(DetachCause::Unreachable),
        detached(DetachCause::DeviceError { detail: "write error at 4096".into() }),
        detached(DetachCause::ContentLost),
        detached(DetachCause::Requested),
        moved(MoveKind::Planned),
        moved(MoveKind::Unplanned { attestation: attestation() }),
        moved(MoveKind::HandedOver { cause: "its own device failed".into() }),
        moved(MoveKind::AskedByHost { host: Some(HostId(id(1_000))) }),
    ]);
    samples
}

fn commit(actor: Actor, origin: Origin, outcome: Outcome) -> Commit {
    Commit {
        sequence: Sequence(300),
        previous: hash(5),
        id: CommitId(id(2_000)),
        time_unix_ms: 1_764_000_000_123,
        actor,
        origin,
        source: None,
        correlation: CorrelationId(id(2_100)),
        causation: None,
        idempotency_key: None,
        command: "MoveOwner".into(),
        reason: String::new(),
        outcome,
    }
}

fn credential() -> Actor {
    Actor::Credential { id: CredentialId(id(101)), name: "credential-1".into() }
}

/// Commits, in the order of their numbers; between them every actor, origin and outcome.
pub(crate) const COMMIT_SAMPLES: &[fn() -> Commit] = &[
    || Commit {
        source: Some(IpAddr::from([192, 0, 2, 77])),
        causation: Some(CommitId(id(1_999))),
        idempotency_key: Some("key-1".into()),
        reason: "maintenance of the north site".into(),
        ..commit(
            credential(),
            Origin::CommandLine,
            Outcome::Accepted(vec![moved(MoveKind::Planned), volume_created()]),
        )
    },
    || Commit {
        source: Some(Ipv6Addr::LOCALHOST.into()),
        ..commit(
            credential(),
            Origin::Api,
            Outcome::Refused {
                code: "duplicate-name".into(),
                message: "a volume vol-01 exists".into(),
            },
        )
    },
    || {
        let event = detached(DetachCause::Unreachable);
        commit(Actor::Node(NodeId(id(301))), Origin::Node, Outcome::Accepted(vec![event]))
    },
    || {
        let event = Event::ClusterLevelRaised { level: 1 };
        let first = commit(Actor::System, Origin::Genesis, Outcome::Accepted(vec![event]));
        Commit { sequence: Sequence(1), previous: Hash::ZERO, ..first }
    },
    || {
        let attestation = attestation();
        let event = moved(MoveKind::Unplanned { attestation });
        commit(Actor::System, Origin::Policy, Outcome::Accepted(vec![event]))
    },
    || {
        let event = Event::HostRemoved { host: HostId(id(1_000)) };
        commit(credential(), Origin::Console, Outcome::Accepted(vec![event]))
    },
];
