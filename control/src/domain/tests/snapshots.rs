use super::world::*;
use crate::domain::index::Index;
use crate::domain::state::{KEYS_MAX, State};
use voute_schemas::command::Command;
use voute_schemas::commit::{Actor, Outcome};
use voute_schemas::event::{Event, SiteKind};
use voute_schemas::ids::*;

#[test]
fn a_snapshot_gives_the_same_state_index_and_digest() {
    let mut world = World::with_host();
    world.must(Command::MapVolume { volume: VOLUME, host: HOST, lun: None, read_only: true });
    world.key = Some("once".to_owned());
    world.must(create_other(1, MIB, &[POOL_B]));
    let read = State::decode(&world.state.encode()).unwrap();
    assert_eq!(read, world.state);
    assert_eq!(read.index, world.state.index);
    assert_eq!(read.digest(), world.state.digest());
}

#[test]
fn a_damaged_or_foreign_snapshot_is_refused() {
    let world = World::with_host();
    let bytes = world.state.encode();
    for length in 0..bytes.len() {
        assert!(State::decode(&bytes[..length]).is_err(), "cut to {length}");
    }
    assert!(State::decode(&[&bytes[..], &[0]].concat()).is_err());
    let mut foreign = bytes;
    foreign[0] += 1;
    assert!(State::decode(&foreign).unwrap_err().to_string().contains("layout"));
}

#[test]
fn a_clone_keeps_its_moment() {
    let mut world = World::with_volume();
    let before = world.state.clone();
    let digest = before.digest();
    world.detach_b();
    world.must(create_other(1, MIB, &[POOL_A]));
    assert_eq!(before.digest(), digest);
    assert!(before.group(GROUP).unwrap().is_whole());
    assert_ne!(world.state.digest(), digest);
}

#[test]
fn a_refused_commit_moves_only_the_position_and_its_key() {
    let mut world = World::with_volume();
    let before = world.state.clone();
    world.key = Some("once".to_owned());
    assert!(world.run(&create_volume(MIB)).is_err());
    let used = world.state.key_use(&Actor::System, "once").unwrap();
    assert_eq!(
        (used.sequence, used.command.as_str()),
        (world.state.position().sequence, "CreateVolume")
    );
    let mut expected = before;
    expected.core.position = world.state.position();
    expected.core.keys = world.state.core.keys.clone();
    assert_eq!(expected, world.state);
}

#[test]
fn the_first_use_of_a_key_counts_and_each_actor_has_its_own() {
    let mut world = World::with_pools();
    world.key = Some("once".to_owned());
    world.must(create_volume(MIB));
    let first = world.state.key_use(&Actor::System, "once").unwrap().clone();
    world.key = Some("once".to_owned());
    world.must(create_other(1, MIB, &[POOL_A]));
    assert_eq!(world.state.key_use(&Actor::System, "once"), Some(&first));
    assert_eq!(world.state.key_use(&Actor::Node(NODE_A), "once"), None);
}

#[test]
fn only_the_youngest_keys_are_remembered() {
    let mut world = World::default();
    let refused = || Outcome::Refused { code: "no-cluster".to_owned(), message: String::new() };
    for number in 0..KEYS_MAX + 3 {
        world.key = Some(format!("key-{}", KEYS_MAX + 3 - number)); // order is not by name
        world.append("Test", refused());
    }
    let used = |number: usize| world.state.key_use(&Actor::System, &format!("key-{number}"));
    assert_eq!(world.state.core.keys.len(), KEYS_MAX);
    assert!(used(KEYS_MAX + 3).is_none() && used(KEYS_MAX + 1).is_none());
    assert!(used(KEYS_MAX).is_some() && used(1).is_some());
    assert_eq!(Index::of(&world.state.core), world.state.index);
}

/// Processes of two versions on one log compare digests: whoever changes this one must raise
/// `SNAPSHOT_FORMAT` and say so in the change log.
#[test]
fn the_digest_of_a_history_is_frozen() {
    let mut world = World::with_host();
    world.must(Command::MapVolume { volume: VOLUME, host: HOST, lun: Some(3), read_only: false });
    world.detach_b();
    world.given(vec![Event::SiteAdded {
        site: SiteId(uuid(77)),
        name: name("c"),
        kind: SiteKind::Data,
    }]);
    assert_eq!(
        world.state.digest().to_string(),
        "8eee79ddffcc7696185e70ac824045ffcfbfe2bb5f5af76f7fb14a8d30cbe2d7"
    );
}
