use super::world::*;
use voute_schemas::command::Command;
use voute_schemas::event::{Event, HostIdentity, HostKeys};
use voute_schemas::ids::*;

const NQN: &str = "nqn.2014-08.org.nvmexpress:uuid:1";

fn add(number: u128, identity: HostIdentity) -> Command {
    let host = HostId(uuid(number));
    Command::AddHost { host, name: name(&format!("host-{number}")), identity }
}

fn map(volume: VolumeId, lun: Option<u16>) -> Command {
    Command::MapVolume { volume, host: HOST, lun, read_only: false }
}

fn names(nqns: &[&str], iqns: &[&str], chap_secret: Option<&str>) -> HostIdentity {
    HostIdentity {
        nqns: nqns.iter().map(|&it| it.to_owned()).collect(),
        iqns: iqns.iter().map(|&it| it.to_owned()).collect(),
        chap_secret: chap_secret.map(name),
    }
}

#[test]
fn a_host_has_valid_names_that_no_other_has() {
    let mut world = World::with_host();
    for bad in [
        names(&[], &[], None),
        names(&["iqn.2020-01.x:y"], &[], None),
        names(&["nqn."], &[], None),
        names(&["nqn.with space"], &[], None),
        names(&[], &["nqn.2020-01.x:y"], None),
        names(&[&format!("nqn.{}", "x".repeat(220))], &[], None),
        names(&["nqn.a", "nqn.a"], &[], None),
        names(&["nqn.a"], &[], Some("secret")),
        names(&["nqn.a"; 65], &[], None),
    ] {
        assert_eq!(world.refuses(add(100, bad)).0, "invalid");
    }
    assert_eq!(world.refuses(add(100, names(&[NQN], &[], None))).0, "identity-taken");
    let good = names(&["nqn.b"], &["iqn.2020-01.x:y", "eui.02004567a425678d"], Some("secret"));
    world.must(add(100, good));
    assert_eq!(world.refuses(add(100, names(&["nqn.c"], &[], None))).0, "duplicate-id");
    assert_eq!(world.state.host_of_identity("iqn.2020-01.x:y"), Some(HostId(uuid(100))));
}

#[test]
fn a_changed_host_gives_up_its_old_names() {
    let mut world = World::with_host();
    let change = |host, nqn: &str| Command::ChangeHost { host, identity: identity(nqn) };
    assert_eq!(world.refuses(change(HOST, NQN)).0, "unchanged");
    assert_eq!(world.refuses(change(HostId(uuid(99)), NQN)).0, "unknown-id");
    world.must(change(HOST, "nqn.new"));
    assert_eq!(world.state.host_of_identity(NQN), None);
    world.must(add(100, identity(NQN)));
    assert_eq!(world.refuses(change(HOST, NQN)).0, "identity-taken");
}

#[test]
fn a_volume_is_mapped_to_a_host_once_at_the_lowest_free_lun() {
    let mut world = World::with_host();
    let other = |number: u128| VolumeId(uuid(10_000 + number));
    for number in 0..4 {
        world.must(create_other(number, MIB, &[POOL_A]));
    }
    let lun_of = |events: Vec<Event>| match events[..] {
        [Event::VolumeMapped { lun, .. }] => lun,
        _ => panic!("{events:?}"),
    };
    assert_eq!(lun_of(world.must(map(other(0), Some(1)))), 1);
    assert_eq!(lun_of(world.must(map(VOLUME, None))), 0);
    assert_eq!(lun_of(world.must(map(other(1), None))), 2);
    let (code, text) = world.refuses(map(VOLUME, None));
    assert_eq!((code, text.contains("LUN 0")), ("already-mapped", true));
    assert_eq!(world.refuses(map(other(2), Some(1))).0, "lun-taken");
    assert_eq!(world.refuses(map(other(2), Some(16_384))).0, "invalid");
    assert_eq!(world.refuses(map(other(9), None)).0, "unknown-id");
    world.must(Command::UnmapVolume { volume: VOLUME, host: HOST });
    assert_eq!(lun_of(world.must(map(other(2), None))), 0, "the lowest is free again");
    assert_eq!(lun_of(world.must(map(other(3), Some(16_383)))), 16_383);
}

#[test]
fn a_host_runs_out_of_luns() {
    let mut world = World::with_host();
    let mapped = |lun: u16| Event::VolumeMapped {
        volume: VolumeId(uuid(50_000 + u128::from(lun))),
        host: HOST,
        lun,
        read_only: false,
    };
    world.given((0..=16_383).map(mapped).collect());
    assert_eq!(world.refuses(map(VOLUME, None)).0, "luns-full");
}

#[test]
fn only_what_is_mapped_is_unmapped() {
    let mut world = World::with_host();
    let unmap = |volume, host| Command::UnmapVolume { volume, host };
    assert_eq!(world.refuses(unmap(VOLUME, HOST)).0, "not-mapped");
    assert_eq!(world.refuses(unmap(VOLUME, HostId(uuid(99)))).0, "unknown-id");
    world.must(map(VOLUME, None));
    assert_eq!(
        world.must(unmap(VOLUME, HOST)),
        [Event::VolumeUnmapped { volume: VOLUME, host: HOST }]
    );
}

#[test]
fn a_host_with_mappings_stays() {
    let mut world = World::with_host();
    world.must(map(VOLUME, None));
    let (code, text) = world.refuses(Command::RemoveHost { host: HOST });
    assert_eq!((code, text.contains("volume vol")), ("in-use", true));
    world.must(Command::UnmapVolume { volume: VOLUME, host: HOST });
    world.must(Command::RemoveHost { host: HOST });
    assert_eq!(world.state.host_of_identity(NQN), None);
    assert_eq!(world.refuses(Command::RemoveHost { host: HOST }).0, "unknown-id");
}

#[test]
fn keys_are_for_nvme_and_each_side_has_its_own() {
    let mut world = World::with_host();
    let keys = |secret: Option<&str>, target_secret: Option<&str>| Command::ChangeHostKeys {
        host: HOST,
        keys: HostKeys { secret: secret.map(name), target_secret: target_secret.map(name) },
    };
    assert_eq!(world.refuses(keys(None, None)).0, "unchanged");
    assert_eq!(world.refuses(keys(None, Some("ours"))).0, "invalid");
    assert_eq!(world.refuses(keys(Some("one"), Some("one"))).0, "invalid");
    world.must(keys(Some("theirs"), Some("ours")));
    assert_eq!(world.refuses(keys(Some("theirs"), Some("ours"))).0, "unchanged");
    let by_iscsi =
        |nqns| Command::ChangeHost { host: HOST, identity: names(nqns, &["iqn.h"], None) };
    assert_eq!(world.refuses(by_iscsi(&[])).0, "invalid", "the keys would be for nothing");
    world.must(keys(None, None));
    world.must(by_iscsi(&[]));
    assert_eq!(world.refuses(keys(Some("theirs"), None)).0, "invalid");
}
