//! Random histories: whatever is asked for, the invariants hold.

use super::specs::{full, inputs};
use super::world::*;
use crate::domain::index::Index;
use crate::domain::{NodeContent, State, node_changes, touched};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use voute_schemas::command::{AttestedGroup, Command, Escalation, LastUse, LegRequest};
use voute_schemas::contract::{GroupSpec, NodeFacts};
use voute_schemas::event::*;
use voute_schemas::ids::*;
use voute_schemas::place::Locator;
use voute_schemas::{Epoch, Hash};

/// What to ask for: a kind and three choices.
type Step = (u8, u8, u8, u8);

const NODE_C: NodeId = NodeId(uuid::Uuid::from_u128(13));

/// Two nodes at A with a device each in one pool, one at B; little space, so that it runs out.
fn small_world() -> World {
    let mut world = World::with_pools();
    world.must(Command::AddNode {
        node: NODE_C,
        name: name("node-c"),
        site: SITE_A,
        portals: portals(4100),
        verifier: Hash([3; 32]),
    });
    let device = DeviceId(uuid(33));
    let locator = Locator::Memory { size_bytes: 1 << 30 };
    world.must(Command::AddDevice {
        device,
        name: name("device-c"),
        node: NODE_C,
        pool: POOL_A,
        locator,
        overwrite: false,
    });
    world.asks(NODE_C, Escalation::DeviceReady { device, size_bytes: 1 << 29, block_bytes: 4096 });
    world
}

fn pick<T: Copy>(from: &[T], choice: u8) -> Option<T> {
    (!from.is_empty()).then(|| from[usize::from(choice) % from.len()])
}

fn command(state: &State, (kind, a, b, c): Step, fresh: u128) -> Option<Command> {
    let volumes: Vec<VolumeId> = state.volumes().map(|(id, _)| id).collect();
    let groups: Vec<GroupId> = state.groups().map(|(id, _)| id).collect();
    let nodes: Vec<NodeId> = state.nodes().map(|(id, _)| id).collect();
    let host = HostId(uuid(700 + u128::from(b % 3)));
    let site = [SITE_A, SITE_B, SITE_W][usize::from(b) % 3];
    let pool = [POOL_A, POOL_B][usize::from(c) % 2];
    Some(match kind % 32 {
        0 | 1 => {
            let leg = |index, pool| LegRequest { leg: LegId(uuid(fresh + index)), pool };
            let mut legs = vec![leg(0, pool)];
            if b % 4 != 0 {
                let other = if pool == POOL_A { POOL_B } else { POOL_A };
                legs.push(leg(1, other));
            }
            Command::CreateVolume {
                volume: VolumeId(uuid(100_000 + u128::from(a % 12))),
                group: GroupId(uuid(200_000 + u128::from(a % 12))),
                name: name(&format!("v-{}", a % 12)),
                size_bytes: u64::from(b % 40) * 2 * MIB,
                block_bytes: if c % 3 == 0 { 4096 } else { 512 },
                legs,
                policy: None,
            }
        }
        2 => {
            let volume = pick(&volumes, a)?;
            let now = state.volume(volume)?.size_bytes;
            Command::ResizeVolume { volume, size_bytes: now + u64::from(b % 16) * MIB }
        }
        3 if c % 2 == 0 => Command::DeleteVolume {
            volume: pick(&volumes, a)?,
            force: b % 2 == 0,
            last_used: LastUse::Never,
            now_unix_ms: 0,
        },
        4 => {
            let leg = LegRequest { leg: LegId(uuid(fresh)), pool };
            Command::AddLeg { volume: pick(&volumes, a)?, leg }
        }
        5 => {
            let volume = pick(&volumes, a)?;
            let legs: Vec<LegId> = state.volume(volume)?.legs.iter().map(|leg| leg.leg).collect();
            Command::RemoveLeg { volume, leg: pick(&legs, b)? }
        }
        6 => {
            let text = format!("nqn.host-{}", c % 4);
            Command::AddHost {
                host,
                name: name(&format!("host-{}", b % 3)),
                identity: identity(&text),
            }
        }
        7 => Command::ChangeHost { host, identity: identity(&format!("nqn.host-{}", c % 4)) },
        8 => Command::RemoveHost { host },
        9 | 10 => {
            let lun = (c % 3 == 0).then_some(u16::from(c % 7));
            Command::MapVolume { volume: pick(&volumes, a)?, host, lun, read_only: c % 2 == 0 }
        }
        11 => Command::UnmapVolume { volume: pick(&volumes, a)?, host },
        12 => Command::MoveOwner { group: pick(&groups, a)?, to: site },
        13 => Command::FailOverSite {
            failover: FailoverId(uuid(fresh)),
            site,
            evidence: evidence(SiteCondition::Lost),
            attested: attest(state, c),
        },
        14 => Command::RemoveDevice { device: DeviceId(uuid(31 + u128::from(b % 3))) },
        _ => {
            let node = pick(&nodes, a)?;
            let requests = vec![escalation(state, (b, a, c), node)?];
            Command::Escalate { node, requests }
        }
    })
}

fn attest(state: &State, choice: u8) -> Vec<AttestedGroup> {
    let attested = |(group, it): (GroupId, &crate::domain::state::Group)| {
        let other = it.sides.iter().find(|side| side.node != it.owner)?;
        let mut attestation = attestation();
        attestation.lease_expired = !choice.is_multiple_of(5);
        Some(AttestedGroup { group, epoch: it.epoch, to: other.node, attestation })
    };
    state.groups().filter_map(attested).collect()
}

fn escalation(state: &State, (kind, a, c): (u8, u8, u8), node: NodeId) -> Option<Escalation> {
    let legs = |formatted: bool| -> Vec<LegId> {
        let its = state.volumes().flat_map(|(_, volume)| &volume.legs);
        its.filter(|it| it.node == node && it.formatted == formatted).map(|it| it.leg).collect()
    };
    let retired: Vec<LegId> = state.retired_of_node(node).map(|(leg, _)| leg).collect();
    Some(match kind % 16 {
        0..=3 => Escalation::LegFormatted { leg: pick(&legs(false), c).or(pick(&legs(true), a))? },
        4..=7 => Escalation::LegReleased { leg: pick(&retired, c).or(pick(&legs(true), a))? },
        kind => about_authority(state, (kind, a, c), node)?,
    })
}

/// Mostly of an owner about its peer at the present epoch, sometimes not.
fn about_authority(state: &State, (kind, a, c): (u8, u8, u8), node: NodeId) -> Option<Escalation> {
    let groups: Vec<GroupId> = state
        .groups_of_node(node)
        .filter(|(_, group)| group.owner == node || a % 5 == 0)
        .map(|(id, _)| id)
        .collect();
    let group = pick(&groups, c)?;
    let it = state.group(group)?;
    let epoch = if a % 7 == 0 { Epoch::ZERO } else { it.epoch };
    let peer = it.sides.iter().find(|side| side.node != node || a % 6 == 0);
    let site = peer.map_or(SITE_W, |side| side.site);
    let cause = if c % 3 == 0 { DetachCause::ContentLost } else { DetachCause::Unreachable };
    Some(match kind {
        8 | 9 => Escalation::DetachSide { group, epoch, site, cause },
        10..=13 => Escalation::JoinSide { group, epoch, site, resync: resync() },
        14 => Escalation::HandOver { group, epoch, cause: String::new() },
        _ => Escalation::ConfirmOwner { group, epoch, incarnation: u64::from(a) },
    })
}

/// Each extent of each device is free or belongs to exactly one leg.
fn extents_add_up(state: &State) {
    let live = state.volumes().flat_map(|(_, volume)| &volume.legs).map(|leg| &leg.runs);
    let retired = state.retired().map(|(_, retired)| &retired.runs);
    let mut taken: BTreeMap<DeviceId, Vec<(u64, u64)>> = BTreeMap::new();
    for run in live.chain(retired).flatten() {
        taken.entry(run.device).or_default().push((run.first, run.count));
    }
    for (id, device) in state.devices() {
        let extents = device.extents().unwrap();
        let mut runs = taken.remove(&id).unwrap_or_default();
        runs.extend(extents.runs());
        runs.sort_unstable();
        let mut next = 0;
        for (first, count) in runs {
            assert_eq!(first, next, "a gap or an extent twice on {}", device.name);
            assert!(count > 0);
            next = first + count;
        }
        assert_eq!(next, extents.total());
    }
    assert!(taken.is_empty(), "legs on devices that are gone: {taken:?}");
}

fn authority_is_sound(before: &State, state: &State) {
    for (id, group) in state.groups() {
        let owner = group.owner_side().expect("the owner has a side");
        assert!(owner.in_sync, "the owner of {id} is not in sync");
        assert!(group.last_common <= group.epoch && group.epoch <= state.position());
        let sites: BTreeSet<SiteId> = group.sides.iter().map(|side| side.site).collect();
        assert_eq!(sites.len(), group.sides.len());
        let legs = group.volumes.iter().flat_map(|it| &state.volume(*it).unwrap().legs);
        assert_eq!(legs.map(|leg| leg.site).collect::<BTreeSet<_>>(), sites);
        let Some(old) = before.group(id) else { continue };
        let in_sync = |group: &crate::domain::state::Group| -> Vec<NodeId> {
            group.sides.iter().filter(|side| side.in_sync).map(|side| side.node).collect()
        };
        let same = (old.owner, in_sync(old)) == (group.owner, in_sync(group));
        assert!(group.epoch >= old.epoch, "an epoch fell");
        assert!(same || group.epoch == state.position(), "authority changed within an epoch");
    }
}

fn mappings_are_sound(state: &State) {
    let mut luns = BTreeSet::new();
    for (volume, host, mapping) in state.mappings() {
        assert!(state.volume(volume).is_some() && state.host(host).is_some());
        assert!(luns.insert((host, mapping.lun)), "a LUN twice");
        assert_eq!(state.volume_at_lun(host, mapping.lun), Some(volume));
    }
}

/// What a node knows that only hears changes.
#[derive(Default)]
struct Listener {
    facts: Option<NodeFacts>,
    groups: BTreeMap<GroupId, GroupSpec>,
}

impl Listener {
    fn hear(&mut self, content: NodeContent) {
        self.facts = content.facts.or(self.facts.take());
        self.groups.extend(content.groups.into_iter().map(|group| (group.group, group)));
        for group in &content.removed_groups {
            self.groups.remove(group);
        }
    }

    fn must_know(&self, state: &State, node: NodeId) {
        let content = full(state, node);
        assert_eq!(self.facts, content.facts);
        assert_eq!(self.groups.values().cloned().collect::<Vec<_>>(), content.groups);
    }
}

fn live(steps: Vec<Step>) {
    let mut world = small_world();
    let mut listeners = BTreeMap::new();
    for node in [NODE_A, NODE_B, NODE_C] {
        let mut listener = Listener::default();
        listener.hear(full(&world.state, node));
        listeners.insert(node, listener);
    }
    let mut number_last = 0;
    for (index, step) in steps.into_iter().enumerate() {
        let fresh = 1_000_000 + 10 * index as u128;
        let Some(command) = command(&world.state, step, fresh) else { continue };
        let before = world.state.clone();
        let decided = world.run(&command);
        let events = decided.unwrap_or_default();
        if let [Event::VolumeCreated { number, .. }] = events[..] {
            assert!(number > number_last, "a volume number again");
            number_last = number;
        }
        extents_add_up(&world.state);
        authority_is_sound(&before, &world.state);
        mappings_are_sound(&world.state);
        assert_eq!(Index::of(&world.state.core), world.state.index);
        let touched = touched(&before, &world.state, &events);
        for (node, listener) in &mut listeners {
            if let Some(content) = node_changes(&world.state, *node, &touched, &inputs()) {
                assert!(touched.concerns(*node));
                listener.hear(content);
            }
            listener.must_know(&world.state, *node);
        }
    }
    let replayed = world.replayed();
    assert_eq!(replayed, world.state);
    assert_eq!(replayed.digest(), world.state.digest());
    let read = State::decode(&world.state.encode()).unwrap();
    assert_eq!((&read, &read.index), (&world.state, &world.state.index));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn every_history_keeps_the_invariants(
        steps in prop::collection::vec(any::<Step>(), 0..120)
    ) {
        live(steps);
    }
}

/// The random histories would prove little if they never reached the interesting events.
#[test]
fn random_histories_reach_every_kind_of_event() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let steps = prop::collection::vec(any::<Step>(), 8_000);
    let mut world = small_world();
    for (index, step) in steps.new_tree(&mut runner).unwrap().current().into_iter().enumerate() {
        if step.0 % 32 == 14 {
            continue; // keep the devices
        }
        if let Some(command) = command(&world.state, step, 1_000_000 + 10 * index as u128) {
            let _ = world.run(&command);
        }
    }
    let mut c = BTreeMap::new();
    for (_, commit) in &world.log {
        for e in commit.events() {
            *c.entry(format!("{e:?}").split(' ').next().unwrap().to_owned()).or_insert(0) += 1;
        }
        if let voute_schemas::commit::Outcome::Refused { code, .. } = &commit.outcome {
            *c.entry(format!("~{}-{code}", commit.command)).or_insert(0) += 1;
        }
    }
    println!("{c:#?}");
    let happened = |which: fn(&Event) -> bool| {
        world.log.iter().flat_map(|(_, commit)| commit.events()).filter(|it| which(it)).count()
    };
    assert!(happened(|it| matches!(it, Event::VolumeResized { .. })) > 5);
    assert!(happened(|it| matches!(it, Event::LegInSync { .. })) > 5);
    assert!(happened(|it| matches!(it, Event::LegReleased { .. })) > 5);
    assert!(happened(|it| matches!(it, Event::LegAdded { .. })) > 2);
    assert!(happened(|it| matches!(it, Event::VolumeUnmapped { .. })) > 5);
    let kind = |which: fn(&MoveKind) -> bool| {
        let moved = |it: &&Event| matches!(it, Event::OwnerMoved { kind, .. } if which(kind));
        world.log.iter().flat_map(|(_, commit)| commit.events()).filter(moved).count()
    };
    assert!(kind(|it| matches!(it, MoveKind::Planned)) > 5);
    assert!(kind(|it| matches!(it, MoveKind::HandedOver { .. })) > 2);
    assert!(kind(|it| matches!(it, MoveKind::Unplanned { .. })) > 2);
}
