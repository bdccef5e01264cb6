use super::world::*;
use voute_schemas::Epoch;
use voute_schemas::command::{Command, Escalation, LastUse, LegRequest};
use voute_schemas::event::{DetachCause, Event, Presentation};
use voute_schemas::ids::*;
use voute_schemas::place::{Locator, VOLUME_BYTES_MAX};

const LEG_NEW: LegId = LegId(uuid_of(63));

const fn uuid_of(number: u128) -> uuid::Uuid {
    uuid::Uuid::from_u128(number)
}

fn delete(force: bool, last_used_unix_ms: Option<u64>, now_unix_ms: u64) -> Command {
    let last_used = last_used_unix_ms.map_or(LastUse::Never, LastUse::At);
    Command::DeleteVolume { volume: VOLUME, force, last_used, now_unix_ms }
}

fn free(world: &World, device: DeviceId) -> u64 {
    world.state.device(device).unwrap().extents().unwrap().free()
}

fn add_device(world: &mut World, number: u128, extents: u64, block_bytes: u32) -> DeviceId {
    let device = DeviceId(uuid(number));
    world.given(vec![
        Event::DeviceAdded {
            device,
            name: name(&format!("device-{number}")),
            node: NODE_A,
            pool: POOL_A,
            locator: Locator::Memory { size_bytes: 1 << 40 },
            overwrite: false,
        },
        Event::DeviceAdopted { device, extents, block_bytes },
    ]);
    device
}

fn with_block(mut command: Command, block: u32) -> Command {
    if let Command::CreateVolume { block_bytes, .. } = &mut command {
        *block_bytes = block;
    }
    command
}

#[test]
fn a_volume_is_created_with_a_group_of_its_own_owned_by_its_first_leg() {
    let mut world = World::with_pools();
    // 4 MiB of metadata and 100 MiB of data in extents of 16 MiB: 6.5.
    let legs = vec![
        placement(LEG_A, (POOL_A, SITE_A, NODE_A), vec![run(DEVICE_A, 0, 7)]),
        placement(LEG_B, (POOL_B, SITE_B, NODE_B), vec![run(DEVICE_B, 0, 7)]),
    ];
    let expected = Event::VolumeCreated {
        volume: VOLUME,
        name: name("vol"),
        group: GROUP,
        number: 1,
        size_bytes: 100 * MIB,
        block_bytes: 512,
        legs,
        owner: NODE_A,
        policy: None,
    };
    assert_eq!(world.must(create_volume(100 * MIB)), [expected]);
    let group = world.group();
    assert_eq!((group.epoch, group.last_common), (world.state.position(), world.state.position()));
    assert!(group.is_whole());
    assert!(!world.state.side_is_formatted(group, SITE_A));
    assert_eq!(free(&world, DEVICE_A), EXTENTS - 7);
    assert_eq!(world.state.pool_space(POOL_A), (EXTENTS * EXTENT, (EXTENTS - 7) * EXTENT));
}

#[test]
fn a_volume_number_is_never_used_again() {
    let mut world = World::with_pools();
    world.must(create_volume(MIB));
    world.must(delete(false, None, 0));
    let events = world.must(create_other(1, MIB, &[POOL_A]));
    assert!(matches!(events[..], [Event::VolumeCreated { number: 2, .. }]));
}

#[test]
fn a_volume_needs_new_ids_a_new_name_and_known_pools() {
    let mut world = World::with_volume();
    assert_eq!(world.refuses(create_volume(MIB)).0, "duplicate-id");
    let mut other = create_other(1, MIB, &[POOL_A]);
    if let Command::CreateVolume { name: text, .. } = &mut other {
        *text = name("vol");
    }
    assert_eq!(world.refuses(other).0, "duplicate-name");
    let changed = |edit: fn(&mut GroupId, &mut Vec<LegRequest>, &mut Option<PolicyId>)| {
        let mut other = create_other(1, MIB, &[POOL_A, POOL_B]);
        if let Command::CreateVolume { group, legs, policy, .. } = &mut other {
            edit(group, legs, policy);
        }
        other
    };
    let refused = |edit| world.refuses(changed(edit)).0;
    assert_eq!(refused(|group, _, _| *group = GROUP), "duplicate-id");
    assert_eq!(refused(|_, legs, _| legs[1].leg = LEG_A), "duplicate-id");
    assert_eq!(refused(|_, legs, _| legs[1].leg = legs[0].leg), "duplicate-id");
    assert_eq!(refused(|_, legs, _| legs[1].pool = PoolId(uuid_of(99))), "unknown-id");
    assert_eq!(refused(|_, _, policy| *policy = Some(PolicyId(uuid_of(99)))), "unknown-id");
    assert_eq!(refused(|_, legs, _| legs.clear()), "leg-count");
    assert_eq!(refused(|_, legs, _| legs.push(legs[0])), "leg-count");
    assert_eq!(refused(|_, legs, _| legs[1].pool = POOL_A), "sites-not-distinct");
    // A retired leg keeps its id until its node wiped it.
    world.must(delete(false, None, 0));
    let reuses = changed(|_, legs, _| legs[1].leg = LEG_A);
    assert_eq!(world.refuses(reuses.clone()).0, "duplicate-id");
    world.asks(NODE_A, Escalation::LegReleased { leg: LEG_A });
    world.must(reuses);
}

#[test]
fn sizes_and_blocks_have_limits() {
    let world = World::with_pools();
    for bad in [0, 1, MIB - 512, MIB + 512, VOLUME_BYTES_MAX + MIB, u64::MAX, !(MIB - 1)] {
        assert_eq!(world.refuses(create_volume(bad)).0, "volume-size", "{bad}");
    }
    assert_eq!(world.refuses(create_volume(VOLUME_BYTES_MAX)).0, "pool-full");
    for bad in [0, 1, 1024, 8192] {
        assert_eq!(world.refuses(with_block(create_volume(MIB), bad)).0, "invalid", "{bad}");
    }
}

#[test]
fn a_full_pool_says_what_is_needed_and_what_is_free() {
    let mut world = World::with_pools();
    let exactly = EXTENTS * EXTENT - 4 * MIB;
    let (code, text) = world.refuses(create_other(1, exactly + MIB, &[POOL_A]));
    assert_eq!(code, "pool-full");
    let (needed, had) = ((EXTENTS + 1) * EXTENT, EXTENTS * EXTENT);
    assert!(text.contains(&needed.to_string()) && text.contains(&had.to_string()), "{text}");
    world.must(create_other(1, exactly, &[POOL_A]));
    assert_eq!(free(&world, DEVICE_A), 0);
    assert_eq!(world.refuses(create_other(2, MIB, &[POOL_A])).0, "pool-full");
}

#[test]
fn no_leg_lies_on_a_device_with_larger_blocks_than_the_volume() {
    let mut world = World::with_pools();
    let large = add_device(&mut world, 100, 1_000, 4096);
    world.must(create_other(1, EXTENTS * EXTENT - 4 * MIB, &[POOL_A])); // fills the 512-byte one
    assert_eq!(free(&world, large), 1_000);
    assert_eq!(world.refuses(create_other(2, MIB, &[POOL_A])).0, "block-too-large");
    world.must(with_block(create_other(2, MIB, &[POOL_A]), 4096));
    assert_eq!(free(&world, large), 999);
}

#[test]
fn a_leg_spreads_over_devices_of_one_node_only_when_it_must() {
    let mut world = World::with_pools();
    let second = add_device(&mut world, 100, 10, 512);
    let runs_of = |events: &[Event]| match events {
        [Event::VolumeCreated { legs, .. }] => legs[0].runs.clone(),
        _ => panic!("{events:?}"),
    };
    let events = world.must(create_other(1, 60 * EXTENT - 4 * MIB, &[POOL_A]));
    assert_eq!(runs_of(&events), [run(DEVICE_A, 0, 60)]);
    let events = world.must(create_other(2, 7 * EXTENT - 4 * MIB, &[POOL_A]));
    assert_eq!(runs_of(&events), [run(second, 0, 7)]);
    let events = world.must(create_other(3, 6 * EXTENT - 4 * MIB, &[POOL_A]));
    assert_eq!(runs_of(&events), [run(DEVICE_A, 60, 4), run(second, 7, 2)]);
}

#[test]
fn a_volume_only_grows_and_keeps_its_runs() {
    let mut world = World::with_volume();
    let resize = |size_bytes| Command::ResizeVolume { volume: VOLUME, size_bytes };
    assert_eq!(world.refuses(resize(100 * MIB)).0, "not-larger");
    assert_eq!(world.refuses(resize(99 * MIB)).0, "not-larger");
    assert_eq!(world.refuses(resize(100 * MIB + 1)).0, "volume-size");
    assert_eq!(world.refuses(resize(VOLUME_BYTES_MAX + MIB)).0, "volume-size");
    assert_eq!(world.refuses(resize(2 << 40)).0, "pool-full");
    let (epoch, before) = (world.epoch(), world.volume().legs.clone());

    world.must(resize(108 * MIB)); // fits what it has
    assert_eq!(world.volume().legs, before);
    assert_eq!(world.volume().size_bytes, 108 * MIB);

    world.must(create_other(1, MIB, &[POOL_A])); // stands right behind leg A
    let events = world.must(resize(109 * MIB));
    let legs = vec![
        placement(LEG_A, (POOL_A, SITE_A, NODE_A), vec![run(DEVICE_A, 0, 7), run(DEVICE_A, 8, 1)]),
        placement(LEG_B, (POOL_B, SITE_B, NODE_B), vec![run(DEVICE_B, 0, 7), run(DEVICE_B, 7, 1)]),
    ];
    assert_eq!(events, [Event::VolumeResized { volume: VOLUME, size_bytes: 109 * MIB, legs }]);
    assert_eq!((free(&world, DEVICE_A), free(&world, DEVICE_B)), (EXTENTS - 9, EXTENTS - 8));
    assert_eq!(world.epoch(), epoch, "growing changes no authority");
}

#[test]
fn a_volume_grows_into_the_last_free_extent_and_no_further() {
    let mut world = World::with_volume();
    let resize = |size_bytes| Command::ResizeVolume { volume: VOLUME, size_bytes };
    let all = EXTENTS * EXTENT - 4 * MIB;
    assert_eq!(world.refuses(resize(all + MIB)).0, "pool-full");
    world.must(resize(all));
    assert_eq!((free(&world, DEVICE_A), free(&world, DEVICE_B)), (0, 0));
}

#[test]
fn a_mapped_volume_is_not_deleted_not_even_by_force() {
    let mut world = World::with_host();
    world.must(Command::MapVolume { volume: VOLUME, host: HOST, lun: None, read_only: false });
    for force in [false, true] {
        let (code, text) = world.refuses(delete(force, None, 0));
        assert_eq!((code, text.contains("mapping remove")), ("mapped", true));
    }
    world.must(Command::UnmapVolume { volume: VOLUME, host: HOST });
    assert_eq!(world.must(delete(false, None, 0)), [Event::VolumeDeleted { volume: VOLUME }]);
}

#[test]
fn a_volume_of_whose_use_nothing_is_known_is_deleted_only_by_force() {
    let mut world = World::with_volume();
    let delete = |force| Command::DeleteVolume {
        volume: VOLUME,
        force,
        last_used: LastUse::Unknown,
        now_unix_ms: 0,
    };
    assert_eq!(world.refuses(delete(false)).0, "use-unknown");
    world.must(delete(true));
}

#[test]
fn a_volume_used_in_the_last_15_minutes_is_deleted_only_by_force() {
    let mut world = World::with_volume();
    let minute = 60_000;
    let now = 1_000 * minute;
    assert_eq!(world.refuses(delete(false, Some(now), now)).0, "recently-used");
    assert_eq!(world.refuses(delete(false, Some(now + 5), now)).0, "recently-used");
    assert_eq!(world.refuses(delete(false, Some(now - 15 * minute + 1), now)).0, "recently-used");
    assert!(world.clone().run(&delete(true, Some(now), now)).is_ok());
    world.must(delete(false, Some(now - 15 * minute), now));
    assert_eq!(world.refuses(delete(true, None, now)).0, "unknown-id");
}

#[test]
fn extents_of_a_deleted_volume_are_free_only_when_its_node_wiped_the_leg() {
    let mut world = World::with_volume();
    world.must(delete(false, None, 0));
    assert!(world.state.group(GROUP).is_none());
    assert_eq!(free(&world, DEVICE_A), EXTENTS - 7);
    assert_eq!(world.state.retired_of_node(NODE_A).count(), 1);
    let released = Escalation::LegReleased { leg: LEG_A };
    assert_eq!(world.denies(NODE_B, released.clone()), "not-yours");
    assert_eq!(world.asks(NODE_A, released.clone()), [Event::LegReleased { leg: LEG_A }]);
    assert_eq!((free(&world, DEVICE_A), free(&world, DEVICE_B)), (EXTENTS, EXTENTS - 7));
    assert_eq!(world.asks(NODE_A, released), [], "it is so already");
}

#[test]
fn a_dead_device_goes_with_the_retired_legs_on_it() {
    let mut world = World::with_volume();
    world.must(delete(false, None, 0));
    world.must(Command::RemoveDevice { device: DEVICE_A });
    assert!(world.state.retired_leg(LEG_A).is_none());
    assert!(world.state.retired_leg(LEG_B).is_some());
    assert_eq!(world.asks(NODE_A, Escalation::LegReleased { leg: LEG_A }), []);
}

#[test]
fn a_live_leg_is_never_released() {
    let world = World::with_volume();
    assert_eq!(world.denies(NODE_A, Escalation::LegReleased { leg: LEG_A }), "leg-in-use");
}

#[test]
fn a_leg_is_formatted_by_its_own_node_once() {
    let mut world = World::with_pools();
    world.must(create_volume(MIB));
    let formatted = |leg| Escalation::LegFormatted { leg };
    assert_eq!(world.denies(NODE_B, formatted(LEG_A)), "not-yours");
    assert_eq!(world.denies(NODE_A, formatted(LEG_NEW)), "unknown-id");
    assert_eq!(world.asks(NODE_A, formatted(LEG_A)), [Event::LegFormatted { leg: LEG_A }]);
    assert_eq!(world.asks(NODE_A, formatted(LEG_A)), []);
    assert!(world.state.side_is_formatted(world.group(), SITE_A));
    world.must(delete(false, None, 0));
    assert_eq!(world.denies(NODE_B, formatted(LEG_B)), "leg-retired");
}

#[test]
fn a_second_leg_is_added_under_a_new_epoch_and_no_map_suffices_for_it() {
    let mut world = World::with_pools();
    let other = VolumeId(uuid(10_001));
    let group = GroupId(uuid(20_001));
    world.must(create_other(1, MIB, &[POOL_A]));
    let add = |pool| Command::AddLeg { volume: other, leg: LegRequest { leg: LEG_NEW, pool } };
    assert_eq!(world.refuses(add(POOL_A)).0, "leg-at-site");
    assert_eq!(world.refuses(add(PoolId(uuid(99)))).0, "unknown-id");
    let before = world.state.group(group).unwrap().epoch;
    let placed = placement(LEG_NEW, (POOL_B, SITE_B, NODE_B), vec![run(DEVICE_B, 0, 1)]);
    assert_eq!(world.must(add(POOL_B)), [Event::LegAdded { volume: other, placement: placed }]);
    let it = world.state.group(group).unwrap();
    assert!(!it.side(SITE_B).unwrap().in_sync);
    let epoch = it.epoch;
    assert_eq!((epoch, it.last_common), (world.state.position(), Epoch::ZERO));
    assert_eq!(world.refuses(add(POOL_B)).0, "duplicate-id");
    let third = Command::AddLeg { volume: other, leg: LegRequest { leg: LEG_B, pool: POOL_B } };
    assert_eq!(world.refuses(third).0, "legs-full");

    let join = |epoch| Escalation::JoinSide { group, epoch, site: SITE_B, resync: resync() };
    assert_eq!(world.denies(NODE_A, join(epoch)), "not-formatted");
    world.asks(NODE_B, Escalation::LegFormatted { leg: LEG_NEW });
    // Asked for before, of the leg that was there then.
    assert_eq!(world.denies(NODE_A, join(before)), "stale-epoch");
    world.asks(NODE_A, join(epoch));
    let it = world.state.group(group).unwrap();
    assert!(it.is_whole());
    assert_eq!((it.epoch, it.last_common), (world.state.position(), world.state.position()));
}

#[test]
fn an_in_sync_leg_is_detached_in_the_commit_that_removes_it() {
    let mut world = World::with_volume();
    let remove = |leg| Command::RemoveLeg { volume: VOLUME, leg };
    assert_eq!(world.refuses(remove(LEG_A)).0, "owners-leg");
    assert_eq!(world.refuses(remove(LEG_NEW)).0, "not-its-leg");
    let detached = Event::LegDetached { group: GROUP, site: SITE_B, cause: DetachCause::Requested };
    let removed = Event::LegRemoved { volume: VOLUME, leg: LEG_B };
    assert_eq!(world.must(remove(LEG_B)), [detached, removed]);
    let group = world.group();
    assert_eq!((group.sides.len(), group.epoch), (1, world.state.position()));
    assert_eq!(group.last_common, group.epoch);
    assert_eq!(world.state.groups_of_node(NODE_B).count(), 0);
    assert!(world.state.retired_leg(LEG_B).is_some());
    assert_eq!(world.refuses(remove(LEG_A)).0, "last-leg");
}

#[test]
fn a_leg_that_is_not_in_sync_is_removed_without_a_new_epoch() {
    let mut world = World::with_volume();
    world.detach_b();
    let epoch = world.epoch();
    let remove = |leg| Command::RemoveLeg { volume: VOLUME, leg };
    assert_eq!(world.refuses(remove(LEG_A)).0, "last-leg");
    assert_eq!(world.must(remove(LEG_B)), [Event::LegRemoved { volume: VOLUME, leg: LEG_B }]);
    assert_eq!((world.epoch(), world.group().last_common), (epoch, epoch));
}

#[test]
fn a_volume_tells_hosts_otherwise_when_it_is_told_to() {
    let mut world = World::with_volume();
    let present = |thin, physical_block_bytes| Command::PresentVolume {
        volume: VOLUME,
        presentation: Presentation { thin, physical_block_bytes },
    };
    assert_eq!(world.refuses(present(false, None)).0, "unchanged");
    for bytes in [0, 1_024, 8_192] {
        assert_eq!(world.refuses(present(true, Some(bytes))).0, "invalid", "{bytes}");
    }
    world.must(present(true, Some(4_096)));
    let told = world.state.volume(VOLUME).unwrap().presentation;
    assert_eq!(told, Presentation { thin: true, physical_block_bytes: Some(4_096) });
    assert_eq!(world.refuses(present(true, Some(4_096))).0, "unchanged");
    world.must(present(false, Some(512)));
}
