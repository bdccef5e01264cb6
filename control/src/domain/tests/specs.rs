use super::world::*;
use crate::domain::{NodeContent, SpecInputs, State, Touched, node_changes, node_spec, touched};
use voute_schemas::command::{Command, LastUse};
use voute_schemas::contract::*;
use voute_schemas::event::*;
use voute_schemas::ids::*;
use voute_schemas::place::Locator;
use voute_schemas::times::Times;

pub(super) fn inputs() -> SpecInputs<'static> {
    let chap_secret = &|name: &voute_schemas::Name| match name.as_str() {
        "known" => Some("twelve chars".to_owned()),
        "known.target" => Some("other twelve".to_owned()),
        _ => None,
    };
    SpecInputs { times: Times::default(), link_secret: "00", chap_secret }
}

pub(super) fn full(state: &State, node: NodeId) -> NodeContent {
    node_spec(state, node, &inputs()).unwrap()
}

fn after(world: &mut World, command: Command) -> Touched {
    let before = world.state.clone();
    let events = world.must(command);
    touched(&before, &world.state, &events)
}

fn changes(world: &World, node: NodeId, touched: &Touched) -> NodeContent {
    node_changes(&world.state, node, touched, &inputs()).unwrap()
}

fn map() -> Command {
    Command::MapVolume { volume: VOLUME, host: HOST, lun: Some(3), read_only: true }
}

#[test]
fn a_node_sees_its_own_runs_and_only_the_existence_of_its_peers() {
    let mut world = World::with_host();
    world.must(map());
    let spec = full(&world.state, NODE_B);
    let leg = |leg, site, node, runs| LegSpec { leg, site, node, formatted: true, runs };
    let side = |site, node| SideSpec { site, node, in_sync: true };
    let volume = VolumeSpec {
        volume: VOLUME,
        name: name("vol"),
        number: 1,
        size_bytes: 100 * MIB,
        block_bytes: 512,
        region_bytes: MIB,
        legs: vec![
            leg(LEG_A, SITE_A, NODE_A, vec![]),
            leg(LEG_B, SITE_B, NODE_B, vec![run(DEVICE_B, 0, 7)]),
        ],
        mappings: vec![MappingSpec { host: HOST, lun: 3, read_only: true }],
        verify: None,
        presentation: Presentation::default(),
    };
    let group = GroupSpec {
        group: GROUP,
        epoch: world.epoch(),
        owner: NODE_A,
        sides: vec![side(SITE_A, NODE_A), side(SITE_B, NODE_B)],
        last_common: world.epoch(),
        volumes: vec![volume],
    };
    assert_eq!(spec.groups, [group]);
    let facts = spec.facts.unwrap();
    assert_eq!((facts.node, facts.site, facts.number), (NODE_B, SITE_B, 2));
    assert_eq!(facts.subsystem_nqn, "nqn.2026-11.io.voute:00000000-0000-0000-0000-000000000009");
    assert_eq!(facts.target_iqn, "iqn.2026-11.io.voute:00000000-0000-0000-0000-000000000009");
    assert_eq!(facts.serial, "00000000000000000000");
    assert_eq!(facts.nodes.len(), 2);
    assert_eq!(facts.devices.len(), 1);
    assert!(facts.devices[0].adopted);
    assert_eq!(facts.hosts.len(), 1);
}

#[test]
fn an_unknown_node_has_no_spec() {
    assert_eq!(node_spec(&World::with_pools().state, NodeId(uuid(99)), &inputs()), None);
    assert_eq!(node_spec(&State::default(), NODE_A, &inputs()), None);
}

#[test]
fn a_host_whose_secret_is_missing_cannot_log_in_without_it() {
    let mut world = World::with_host();
    world.must(map());
    let with_secret = |text: &str| Command::ChangeHost {
        host: HOST,
        identity: HostIdentity {
            nqns: vec!["nqn.h".to_owned()],
            iqns: vec!["iqn.2020-01.h:1".to_owned()],
            chap_secret: Some(name(text)),
        },
    };
    let touched = after(&mut world, with_secret("known"));
    let host = changes(&world, NODE_A, &touched).facts.unwrap().hosts.remove(0);
    assert_eq!(host.chap_secret.as_deref(), Some("twelve chars"));
    assert_eq!(host.chap_target_secret.as_deref(), Some("other twelve"), "known.target");
    assert_eq!(host.iqns, ["iqn.2020-01.h:1"]);
    let touched = after(&mut world, with_secret("unknown"));
    let host = changes(&world, NODE_A, &touched).facts.unwrap().hosts.remove(0);
    assert_eq!((host.chap_secret, host.iqns), (None, vec![]));
    assert_eq!(host.nqns, ["nqn.h"]);
}

#[test]
fn a_host_whose_key_is_missing_cannot_connect_over_nvme_without_it() {
    let mut world = World::with_host();
    world.must(map());
    let keys = |secret: Option<&str>, target_secret: Option<&str>| Command::ChangeHostKeys {
        host: HOST,
        keys: HostKeys { secret: secret.map(name), target_secret: target_secret.map(name) },
    };
    let mut told = |command| {
        let touched = after(&mut world, command);
        changes(&world, NODE_A, &touched).facts.unwrap().hosts.remove(0)
    };
    let host = told(keys(Some("known"), Some("known.target")));
    assert_eq!(host.dhchap_secret.as_deref(), Some("twelve chars"));
    assert_eq!(host.dhchap_controller_secret.as_deref(), Some("other twelve"));
    assert!(!host.nqns.is_empty());
    for command in [keys(Some("unknown"), None), keys(Some("known"), Some("unknown"))] {
        assert!(told(command).nqns.is_empty());
    }
    let host = told(keys(None, None));
    assert_eq!((host.dhchap_secret, host.nqns.len()), (None, 1));
}

#[test]
fn a_rejected_device_is_left_alone() {
    let mut world = World::with_pools();
    let device = DeviceId(uuid(100));
    world.given(vec![
        Event::DeviceAdded {
            device,
            name: name("foreign"),
            node: NODE_A,
            pool: POOL_A,
            locator: Locator::Block { path: "/dev/sda".to_owned() },
            overwrite: false,
        },
        Event::DeviceRejected { device, cause: "it holds a file system".to_owned() },
    ]);
    assert_eq!(full(&world.state, NODE_A).facts.unwrap().devices.len(), 1);
}

#[test]
fn a_change_of_authority_concerns_both_sides_and_not_their_facts() {
    let mut world = World::with_volume();
    let touched = after(&mut world, Command::MoveOwner { group: GROUP, to: SITE_B });
    for node in [NODE_A, NODE_B] {
        let content = changes(&world, node, &touched);
        assert_eq!((content.facts, content.groups.len()), (None, 1));
        assert_eq!(content.groups[0].owner, NODE_B);
    }
    assert!(!touched.concerns(NodeId(uuid(99))));
}

#[test]
fn facts_follow_only_the_first_mapping_of_a_host() {
    let mut world = World::with_host();
    let other = VolumeId(uuid(10_001));
    world.must(create_other(1, MIB, &[POOL_A]));
    let touched = after(&mut world, map());
    assert!(changes(&world, NODE_A, &touched).facts.is_some());
    let second = Command::MapVolume { volume: other, host: HOST, lun: None, read_only: false };
    let touched = after(&mut world, second);
    assert!(changes(&world, NODE_A, &touched).facts.is_none());
    assert_eq!(node_changes(&world.state, NODE_B, &touched, &inputs()), None);
}

#[test]
fn a_deleted_volume_is_a_removed_group_and_a_leg_to_wipe() {
    let mut world = World::with_volume();
    let delete = Command::DeleteVolume {
        volume: VOLUME,
        force: false,
        last_used: LastUse::Never,
        now_unix_ms: 0,
    };
    let touched = after(&mut world, delete);
    let content = changes(&world, NODE_A, &touched);
    assert_eq!((content.groups.len(), content.removed_groups), (0, vec![GROUP]));
    let retired = content.facts.unwrap().retired_legs;
    assert_eq!(retired, [RetiredLeg { leg: LEG_A, runs: vec![run(DEVICE_A, 0, 7)] }]);
}

#[test]
fn what_concerns_no_node_is_silent() {
    let mut world = World::with_volume();
    let report = Command::ReportSiteCondition {
        site: SITE_A,
        condition: SiteCondition::Fire,
        source: ConditionSource::Signal,
        detail: String::new(),
    };
    assert!(after(&mut world, report).is_empty());
}

#[test]
fn merged_changes_show_the_last_state() {
    let mut world = World::with_volume();
    let mut all = after(&mut world, Command::MoveOwner { group: GROUP, to: SITE_B });
    all.merge(after(&mut world, create_other(1, MIB, &[POOL_A])));
    all.merge(after(&mut world, Command::MoveOwner { group: GROUP, to: SITE_A }));
    let content = changes(&world, NODE_A, &all);
    assert_eq!(content.groups, full(&world.state, NODE_A).groups);
}
