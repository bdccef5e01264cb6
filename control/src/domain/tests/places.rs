use super::world::*;
use voute_schemas::Hash;
use voute_schemas::command::{Command, Escalation, LastUse};
use voute_schemas::event::*;
use voute_schemas::ids::*;
use voute_schemas::place::{Locator, Portals};

fn add_node(number: u128, site: SiteId, portals: Portals) -> Command {
    Command::AddNode {
        node: NodeId(uuid(number)),
        name: name(&format!("node-{number}")),
        site,
        portals,
        verifier: Hash([1; 32]),
    }
}

fn add_device(number: u128, node: NodeId, pool: PoolId, locator: Locator) -> Command {
    Command::AddDevice {
        device: DeviceId(uuid(number)),
        name: name(&format!("device-{number}")),
        node,
        pool,
        locator,
        overwrite: false,
    }
}

fn file(path: &str) -> Locator {
    Locator::File { path: path.to_owned(), size_bytes: 1 << 30 }
}

#[test]
fn names_and_ids_of_places_are_unique() {
    let world = World::with_pools();
    let site =
        |id, text: &str| Command::AddSite { site: id, name: name(text), kind: SiteKind::Data };
    let other = SiteId(uuid(99));
    assert_eq!(world.refuses(site(SITE_A, "new")).0, "duplicate-id");
    assert_eq!(world.refuses(site(other, "a")).0, "duplicate-name");
    let pool = |id, text: &str| Command::CreatePool {
        pool: id,
        name: name(text),
        site: SITE_A,
        extent_bytes: EXTENT,
    };
    assert_eq!(world.refuses(pool(POOL_A, "new")).0, "duplicate-id");
    assert_eq!(world.refuses(pool(PoolId(uuid(99)), "pool-a")).0, "duplicate-name");
    let node = add_node(11, SITE_A, portals(5000));
    assert_eq!(world.refuses(node).0, "duplicate-id");
    let device = add_device(31, NODE_A, POOL_A, file("/x"));
    assert_eq!(world.refuses(device).0, "duplicate-id");
}

#[test]
fn a_node_gets_the_lowest_free_number() {
    let mut world = World::with_pools();
    let events = world.must(add_node(100, SITE_A, portals(5000)));
    assert!(matches!(events[..], [Event::NodeAdded { number: 3, .. }]));
    world.must(add_node(101, SITE_A, portals(5010)));
    world.must(Command::RemoveNode { node: NodeId(uuid(100)) });
    let events = world.must(add_node(102, SITE_B, portals(5000)));
    assert!(matches!(events[..], [Event::NodeAdded { number: 3, .. }]));
}

#[test]
fn a_cluster_has_at_most_200_nodes() {
    let mut world = World::with_pools();
    for number in 0..198 {
        world.must(add_node(1_000 + u128::from(number), SITE_A, portals(5_000 + 10 * number)));
    }
    assert_eq!(world.refuses(add_node(9_999, SITE_A, portals(9_000))).0, "nodes-full");
}

#[test]
fn a_witness_holds_neither_nodes_nor_pools() {
    let world = World::with_pools();
    assert_eq!(world.refuses(add_node(99, SITE_W, portals(5000))).0, "witness-holds-no-data");
    let pool = Command::CreatePool {
        pool: PoolId(uuid(99)),
        name: name("new"),
        site: SITE_W,
        extent_bytes: EXTENT,
    };
    assert_eq!(world.refuses(pool).0, "witness-holds-no-data");
}

#[test]
fn a_node_listens_where_others_can_reach_it_and_nobody_else_does() {
    let mut world = World::with_pools();
    assert_eq!(world.refuses(add_node(99, SITE_A, portals(4010))).0, "address-taken");
    assert_eq!(world.refuses(add_node(99, SITE_A, portals(4008))).0, "address-taken");
    let mut broken = portals(5000);
    broken.link.set_port(0);
    assert_eq!(world.refuses(add_node(99, SITE_A, broken)).0, "invalid");
    broken = portals(5000);
    broken.nvme.set_ip([0, 0, 0, 0].into());
    assert_eq!(world.refuses(add_node(99, SITE_A, broken)).0, "invalid");
    broken = portals(5000);
    broken.nvme = broken.link;
    assert_eq!(world.refuses(add_node(99, SITE_A, broken)).0, "invalid");

    let change = |portals| Command::ChangeNodePortals { node: NODE_A, portals };
    assert_eq!(world.refuses(change(portals(4010))).0, "unchanged");
    assert_eq!(world.refuses(change(portals(4020))).0, "address-taken");
    world.must(change(portals(4011))); // overlaps its own old ones
    assert_eq!(world.state.node(NODE_A).unwrap().portals, portals(4011));
}

#[test]
fn what_is_in_use_is_not_removed_and_says_by_what() {
    let mut world = World::with_volume();
    let rules = PolicyRules {
        mode: FailoverMode::Automatic,
        hold_down_ms: 0,
        preferred_site: Some(SITE_W),
        failback: true,
    };
    let policy = PolicyId(uuid(81));
    world.must(Command::CreatePolicy { policy, name: name("automatic"), rules });
    let in_use = |command, by: &str| {
        let (code, text) = world.refuses(command);
        assert_eq!(code, "in-use");
        assert!(text.contains(by), "{text}");
    };
    in_use(Command::RemoveSite { site: SITE_A }, "node node-a");
    in_use(Command::RemoveSite { site: SITE_W }, "policy automatic");
    in_use(Command::RemoveNode { node: NODE_A }, "device device-a");
    in_use(Command::RemovePool { pool: POOL_A }, "device device-a");
    in_use(Command::RemoveDevice { device: DEVICE_A }, "a leg of volume vol");
}

#[test]
fn unused_places_are_removed_from_the_inside_out() {
    let mut world = World::with_pools();
    for device in [DEVICE_A, DEVICE_B] {
        world.must(Command::RemoveDevice { device });
    }
    world.must(Command::RemovePool { pool: POOL_A });
    world.must(Command::RemoveNode { node: NODE_A });
    let events = world.must(Command::RemoveSite { site: SITE_A });
    assert_eq!(events, [Event::SiteRemoved { site: SITE_A }]);
    for command in [
        Command::RemoveDevice { device: DEVICE_A },
        Command::RemovePool { pool: POOL_A },
        Command::RemoveNode { node: NODE_A },
        Command::RemoveSite { site: SITE_A },
    ] {
        assert_eq!(world.refuses(command).0, "unknown-id");
    }
    assert_eq!(world.state.site_named(&name("a")), None);
}

#[test]
fn extents_are_whole_mebibytes() {
    let mut world = World::with_pools();
    let pool = |extent_bytes| Command::CreatePool {
        pool: PoolId(uuid(99)),
        name: name("new"),
        site: SITE_A,
        extent_bytes,
    };
    for bad in [0, 1, MIB - 1, MIB + 512, 1025 * MIB, u64::MAX] {
        assert_eq!(world.refuses(pool(bad)).0, "invalid", "{bad}");
    }
    world.must(pool(MIB));
}

#[test]
fn a_device_belongs_to_a_pool_of_its_nodes_site() {
    let world = World::with_pools();
    let device = add_device(99, NODE_A, POOL_B, file("/d"));
    assert_eq!(world.refuses(device).0, "pool-elsewhere");
    let device = add_device(99, NodeId(uuid(98)), POOL_B, file("/d"));
    assert_eq!(world.refuses(device).0, "unknown-id");
    let device = add_device(99, NODE_A, PoolId(uuid(98)), file("/d"));
    assert_eq!(world.refuses(device).0, "unknown-id");
}

#[test]
fn one_place_holds_one_device() {
    let mut world = World::with_pools();
    world.must(add_device(100, NODE_A, POOL_A, file("/d")));
    let again = Locator::Block { path: "/d".to_owned() };
    assert_eq!(world.refuses(add_device(101, NODE_A, POOL_A, again)).0, "locator-taken");
    world.must(add_device(101, NODE_B, POOL_B, file("/d"))); // another machine's path
    let remote = |port: u16, namespace: &str| Locator::RemoteNamespace {
        address: ([10, 0, 0, 1], port).into(),
        subsystem: "nqn.array".to_owned(),
        namespace: namespace.repeat(32),
    };
    world.must(add_device(102, NODE_A, POOL_A, remote(4420, "a")));
    let same = remote(4421, "A");
    assert_eq!(world.refuses(add_device(103, NODE_B, POOL_B, same)).0, "locator-taken");
    world.must(add_device(103, NODE_B, POOL_B, remote(4420, "b")));
}

#[test]
fn a_place_that_cannot_be_is_refused() {
    let world = World::with_pools();
    let remote = |port: u16, subsystem: &str, namespace: &str| Locator::RemoteNamespace {
        address: ([10, 0, 0, 1], port).into(),
        subsystem: subsystem.to_owned(),
        namespace: namespace.to_owned(),
    };
    let digits = "0".repeat(32);
    for broken in [
        Locator::Memory { size_bytes: 0 },
        file("relative"),
        file("/with\0nul"),
        Locator::Block { path: format!("/{}", "x".repeat(5_000)) },
        remote(0, "nqn.array", &digits),
        remote(4420, "", &digits),
        remote(4420, "nqn.array", "12"),
        remote(4420, "nqn.array", &"g".repeat(32)),
    ] {
        let (code, text) = world.refuses(add_device(99, NODE_A, POOL_A, broken));
        assert_eq!(code, "invalid");
        assert!(text.len() < 600, "{text}");
    }
}

#[test]
fn a_device_is_adopted_with_the_extents_behind_its_header() {
    let mut world = World::with_pools();
    world.must(add_device(100, NODE_A, POOL_A, file("/d")));
    let device = DeviceId(uuid(100));
    let ready = |size_bytes| Escalation::DeviceReady { device, size_bytes, block_bytes: 512 };
    assert_eq!(world.denies(NODE_B, ready(100 * MIB)), "not-yours");
    let events = world.asks(NODE_A, ready(MIB + 3 * EXTENT - 1));
    assert_eq!(events, [Event::DeviceAdopted { device, extents: 2, block_bytes: 512 }]);
    assert_eq!(world.asks(NODE_A, ready(MIB + 3 * EXTENT - 1)), [], "it is so already");
    assert_eq!(world.denies(NODE_A, ready(MIB + 3 * EXTENT)), "device-changed");
    let refused = Escalation::DeviceRefused { device, cause: "gone".to_owned() };
    assert_eq!(world.denies(NODE_A, refused), "device-changed");
}

#[test]
fn a_device_that_is_too_small_or_strange_is_rejected_with_the_reason() {
    let mut world = World::with_pools();
    world.must(add_device(100, NODE_A, POOL_A, file("/d")));
    let device = DeviceId(uuid(100));
    let ready =
        |size_bytes, block_bytes| Escalation::DeviceReady { device, size_bytes, block_bytes };
    let events = world.asks(NODE_A, ready(EXTENT, 512));
    assert!(
        matches!(&events[..], [Event::DeviceRejected { cause, .. }] if cause.contains("17825792"))
    );
    assert_eq!(world.asks(NODE_A, ready(EXTENT, 512)), []);
    for block in [0, 256, 520, 8192] {
        let events = world.asks(NODE_A, ready(1 << 30, block));
        assert!(matches!(&events[..], [Event::DeviceRejected { .. }]), "{block}");
    }
    let cause = "é".repeat(500);
    let events = world.asks(NODE_A, Escalation::DeviceRefused { device, cause });
    assert!(matches!(&events[..], [Event::DeviceRejected { cause, .. }] if cause.len() <= 160));
    // Its node may think better of it.
    let events = world.asks(NODE_A, ready(1 << 30, 4096));
    assert_eq!(events, [Event::DeviceAdopted { device, extents: 63, block_bytes: 4096 }]);
}

#[test]
fn a_condition_is_reported_once() {
    let mut world = World::with_pools();
    let report = |source, detail: &str| Command::ReportSiteCondition {
        site: SITE_A,
        condition: SiteCondition::Fire,
        source,
        detail: detail.to_owned(),
    };
    world.must(report(ConditionSource::Signal, "smoke"));
    assert_eq!(world.refuses(report(ConditionSource::Signal, "smoke")).0, "unchanged");
    world.must(report(ConditionSource::Watcher, "smoke"));
    assert_eq!(world.refuses(report(ConditionSource::Signal, &"x".repeat(2_000))).0, "invalid");
    assert_eq!(world.state.site(SITE_A).unwrap().condition, SiteCondition::Fire);
}

#[test]
fn a_policy_goes_only_back_to_a_site_that_it_names() {
    let mut world = World::with_pools();
    let rules = |preferred_site, failback, hold_down_ms| PolicyRules {
        mode: FailoverMode::Automatic,
        hold_down_ms,
        preferred_site,
        failback,
    };
    let policy = PolicyId(uuid(81));
    let create = |rules| Command::CreatePolicy { policy, name: name("automatic"), rules };
    let change = |rules| Command::ChangePolicy { policy, rules };
    assert_eq!(world.refuses(create(rules(None, true, 0))).0, "invalid");
    assert_eq!(world.refuses(create(rules(Some(SiteId(uuid(99))), true, 0))).0, "unknown-id");
    assert_eq!(world.refuses(create(rules(None, false, u64::MAX))).0, "invalid");
    assert_eq!(world.refuses(change(rules(None, false, 0))).0, "unknown-id");
    world.must(create(rules(None, false, 0)));
    assert_eq!(world.refuses(create(rules(None, false, 0))).0, "duplicate-id");
    assert_eq!(world.refuses(change(rules(None, false, 0))).0, "unchanged");
    world.must(change(rules(Some(SITE_A), true, 5)));

    let mut volume = create_volume(MIB);
    if let Command::CreateVolume { policy: wanted, .. } = &mut volume {
        *wanted = Some(policy);
    }
    world.must(volume);
    let (code, text) = world.refuses(Command::RemovePolicy { policy });
    assert_eq!((code, text.contains("volume vol")), ("in-use", true));
    world.must(Command::DeleteVolume {
        volume: VOLUME,
        force: false,
        last_used: LastUse::Never,
        now_unix_ms: 0,
    });
    world.must(Command::RemovePolicy { policy });
}
