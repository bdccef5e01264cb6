use super::*;
use std::time::Duration;
use voute_schemas::contract::{LegSpec, MappingSpec, NodeEntry, SideSpec};
use voute_schemas::place::Portals;
use voute_schemas::{Epoch, HostId, LegId, Name, SiteId};

const NQN: &str = "nqn.host";
const IQN: &str = "iqn.2026-01.test:HOST";

fn facts() -> NodeFacts {
    let node = |number: u16| NodeEntry {
        node: NodeId::generate(),
        site: SiteId::generate(),
        number,
        portals: Portals {
            nvme: format!("127.0.0.{number}:4420").parse().unwrap(),
            iscsi: format!("127.0.0.{number}:3260").parse().unwrap(),
            link: format!("127.0.0.{number}:4421").parse().unwrap(),
        },
    };
    let nodes = vec![node(1), node(2)];
    NodeFacts {
        node: nodes[0].node,
        name: Name::new("a").unwrap(),
        site: nodes[0].site,
        number: 1,
        verifiers: vec![],
        times: Default::default(),
        portals: nodes[0].portals,
        link_secret: String::new(),
        nodes,
        devices: vec![],
        retired_legs: vec![],
        hosts: vec![HostSpec {
            host: HostId::generate(),
            nqns: vec![NQN.into()],
            iqns: vec![IQN.into()],
            chap_secret: Some("long enough secret".into()),
            chap_target_secret: Some("the target's own".into()),
            dhchap_secret: None,
            dhchap_controller_secret: None,
        }],
        subsystem_nqn: "nqn.subsystem".into(),
        target_iqn: "iqn.target".into(),
        serial: "SERIAL".into(),
    }
}

fn group(facts: &NodeFacts, number: u32) -> GroupSpec {
    let legs = facts.nodes.iter().map(|node| LegSpec {
        leg: LegId::generate(),
        site: node.site,
        node: node.node,
        formatted: true,
        runs: vec![],
    });
    let side = |node: &NodeEntry| SideSpec { site: node.site, node: node.node, in_sync: true };
    GroupSpec {
        group: GroupId::generate(),
        epoch: Epoch::ZERO,
        owner: facts.nodes[1].node,
        sides: facts.nodes.iter().map(side).collect(),
        last_common: Epoch::ZERO,
        volumes: vec![VolumeSpec {
            volume: VolumeId::generate(),
            name: Name::new("v").unwrap(),
            number,
            size_bytes: 1 << 20,
            block_bytes: 4_096,
            region_bytes: 1 << 20,
            legs: legs.collect(),
            mappings: vec![MappingSpec { host: facts.hosts[0].host, lun: 7, read_only: false }],
            verify: None,
            presentation: voute_schemas::event::Presentation::default(),
        }],
    }
}

/// Both directories of one group with this access.
fn shown(
    facts: &NodeFacts,
    group: &GroupSpec,
    access: Option<Access>,
) -> (nvme::Directory, iscsi::Directory) {
    let groups = BTreeMap::from([(group.group, Arc::new(group.clone()))]);
    let access = access.map(|access| (group.group, access)).into_iter().collect();
    let view = View { facts, groups: &groups, access: &access };
    (view.nvme(&nvme::Directory::default()).unwrap(), view.iscsi())
}

#[test]
fn a_volume_has_one_identity_on_both_protocols() {
    let facts = facts();
    let group = group(&facts, 42);
    let id = group.volumes[0].volume.bytes();
    let (nvme, iscsi) = shown(&facts, &group, Some(Access::Optimized));
    let namespace = nvme.host_view("nqn.subsystem", NQN).unwrap().namespace(42).unwrap().clone();
    assert_eq!((namespace.uuid, namespace.nguid, namespace.ana_group), (id, id, 42));
    assert_eq!((namespace.block_size, namespace.blocks), (4_096, 256));
    assert_eq!(namespace.state, nvme::AnaState::Optimized);
    let lun = iscsi.host(IQN).unwrap().luns[0].clone();
    assert_eq!((lun.lun, lun.volume.0, lun.blocks), (7, key(id), 256));
    assert_eq!((lun.naa[0] >> 4, &lun.naa[1..]), (6, &id[1..]));
    assert_eq!(lun.alua_state, iscsi::AluaState::ActiveOptimized);
}

#[test]
fn a_node_that_does_not_own_says_so_and_names_who_does() {
    let facts = facts();
    let group = group(&facts, 1);
    for access in [None, Some(Access::Inaccessible)] {
        let (nvme, iscsi) = shown(&facts, &group, access);
        let view = nvme.host_view("nqn.subsystem", NQN).unwrap();
        assert_eq!(view.namespaces()[0].state, nvme::AnaState::Inaccessible);
        let groups = &iscsi.host(IQN).unwrap().luns[0].target_port_groups;
        let states: Vec<_> = groups.iter().map(|group| (group.id, group.state)).collect();
        let expected = [(1, iscsi::AluaState::Standby), (2, iscsi::AluaState::ActiveOptimized)];
        assert_eq!(states, expected);
    }
}

#[test]
fn both_nodes_portals_are_told() {
    let facts = facts();
    let (nvme, iscsi) = shown(&facts, &group(&facts, 1), None);
    assert_eq!(nvme.portals().iter().map(|portal| portal.id).collect::<Vec<_>>(), [1, 2]);
    let tags: Vec<_> = iscsi.portals.iter().map(|portal| portal.group_tag).collect();
    assert_eq!(tags, [1, 2]);
    assert_eq!(iscsi.portals[1].address, "127.0.0.2:3260");
}

#[test]
fn a_volume_is_hidden_until_every_leg_that_counts_is_formatted() {
    let facts = facts();
    let mut group = group(&facts, 1);
    group.volumes[0].legs[1].formatted = false;
    let (nvme, iscsi) = shown(&facts, &group, Some(Access::Optimized));
    assert!(nvme.host_view("nqn.subsystem", NQN).is_none() && iscsi.host(IQN).is_none());
    // A leg that was added later is not in sync yet, and hides nothing.
    group.sides[1].in_sync = false;
    let (nvme, _) = shown(&facts, &group, Some(Access::Optimized));
    assert!(nvme.host_view("nqn.subsystem", NQN).is_some());
}

#[test]
fn a_volume_that_cannot_be_shown_hides_no_other() {
    let facts = facts();
    let mut group = group(&facts, 1);
    for number in 2..2_000 {
        let mut volume = group.volumes[0].clone();
        (volume.volume, volume.number) = (VolumeId::generate(), number);
        group.volumes.push(volume);
    }
    group.volumes[4].block_bytes = 520;
    let (nvme, _) = shown(&facts, &group, Some(Access::Optimized));
    let view = nvme.host_view("nqn.subsystem", NQN).unwrap();
    assert_eq!(view.namespaces().len(), nvme::NAMESPACES_PER_HOST_MAX);
    assert!(view.namespace(1).is_some() && view.namespace(5).is_none());
}

#[test]
fn a_host_with_a_secret_must_prove_it() {
    let facts = facts();
    let (_, iscsi) = shown(&facts, &group(&facts, 1), None);
    let authentication = &iscsi.host(IQN).unwrap().authentication;
    let iscsi::Authentication::Chap(chap) = authentication else { panic!("it has a secret") };
    assert_eq!(chap.host.name, IQN);
    let target = chap.target.as_ref().expect("the target has one too");
    assert_eq!(target.secret, b"the target's own");
}

#[test]
fn shards_spread_by_number_and_agree_everywhere() {
    let facts = facts();
    let shards: BTreeSet<u16> = (1..=16).map(|number| shard(&group(&facts, number))).collect();
    assert_eq!(shards.len(), 16);
}

#[test]
fn a_change_of_access_is_published_and_counted() {
    let facts = Arc::new(facts());
    let group = group(&facts, 1);
    let nvme = nvme::Target::new(nvme::TargetConfig::default()).unwrap();
    let iscsi = iscsi::Target::new(iscsi::TargetConfig {
        name: "iqn.target".into(),
        alias: None,
        seed: [0; 32],
    });
    let offer = Offer::new();
    offer.set_facts(facts);
    offer.set_groups(std::slice::from_ref(&group), &[]);
    let (published, is_published) = std::sync::mpsc::channel();
    let (thread_offer, thread_iscsi) = (offer.clone(), iscsi.clone());
    let publisher = std::thread::spawn(move || {
        thread_offer.publish(&nvme, &thread_iscsi, || published.send(()).unwrap());
    });
    let alua = || iscsi.directory().host(IQN).map(|host| host.luns[0].alua_state);
    is_published.recv_timeout(Duration::from_secs(5)).unwrap();
    assert_eq!(alua(), Some(iscsi::AluaState::Standby));
    let before = offer.generation();
    offer.set_access(group.group, Access::Optimized);
    is_published.recv_timeout(Duration::from_secs(5)).unwrap();
    assert_eq!(alua(), Some(iscsi::AluaState::ActiveOptimized));
    assert!(offer.generation() > before);
    assert_eq!(offer.routes()[&key(group.volumes[0].volume.bytes())].shard, 1);
    offer.set_groups(&[], &[group.group]);
    is_published.recv_timeout(Duration::from_secs(5)).unwrap();
    assert_eq!(alua(), None);
    offer.end();
    publisher.join().unwrap();
}
