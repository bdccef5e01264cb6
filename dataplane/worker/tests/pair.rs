//! Two node engines in one process, a scripted control plane, and a host: written, failed over, read
//! back, resynced.

#![allow(clippy::unwrap_used, reason = "a test fails where it panics")]

#[path = "pair/control.rs"]
mod control;
#[path = "pair/host.rs"]
mod host;

use control::Control;
use host::{BLOCK, Path, PathError};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use voute_buffer::Buffer;
use voute_nvme::{AnaState, Command, Payload};
use voute_schemas::GroupId;
use voute_schemas::event::{Attestation, MoveKind};
use voute_worker::{Metrics, NodeConfig, NodeError, Stop, run};

const VOLUME: u64 = 16 << 20;

/// A running engine; dropping it ends it as abruptly as a process can end from inside.
struct Engine {
    stop: Stop,
    thread: Option<JoinHandle<Result<(), NodeError>>>,
    metrics: Arc<Metrics>,
}

impl Engine {
    fn start(control: &Control, folder: &std::path::Path, node: usize, reactors: usize) -> Self {
        let id = control.lock().nodes[node].id;
        let data = folder.join(format!("node-{node}"));
        let config = NodeConfig::new(id, "secret".into(), vec![control.url.clone()], data);
        let config = NodeConfig { reactors: Some(reactors), pin: false, ..config };
        let (stop, metrics) = (Stop::new(), config.metrics.clone());
        let stopping = stop.clone();
        let thread = Some(std::thread::spawn(move || run(config, stopping)));
        Engine { stop, thread, metrics }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop.stop();
        let result = self.thread.take().unwrap().join().expect("an engine does not panic");
        assert!(result.is_ok() || std::thread::panicking(), "{result:?}");
    }
}

struct Pair {
    control: Control,
    folder: tempfile::TempDir,
    engines: Vec<Option<Engine>>,
    reactors: usize,
}

impl Pair {
    fn start(reactors: usize) -> Self {
        // A second call in one process finds it set.
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init();
        let folder = tempfile::tempdir().unwrap();
        let control = Control::start(folder.path());
        let mut pair = Pair { control, folder, engines: vec![None, None], reactors };
        (0..2).for_each(|node| pair.restart(node));
        let adopted = |state: &control::State| state.nodes.iter().all(|node| node.device.adopted);
        pair.control.wait("both devices are adopted", adopted);
        pair
    }

    fn restart(&mut self, node: usize) {
        let engine = Engine::start(&self.control, self.folder.path(), node, self.reactors);
        self.engines[node] = Some(engine);
    }

    fn kill(&mut self, node: usize) {
        self.engines[node] = None;
    }

    fn path(&self, node: usize, nsid: u32, state: AnaState) -> Path {
        let address = self.control.lock().nodes[node].portals.nvme;
        Path::connect_until(address, nsid, state)
    }

    /// Connects until a connection came in by another reactor than its volume's.
    fn await_forwarding(&self, node: usize, nsid: u32, written: &[(u64, Vec<u8>)]) {
        let forwarded = &self.engines[node].as_ref().unwrap().metrics.forwarded_requests;
        for _ in 0..100 {
            check(&mut self.path(node, nsid, AnaState::Optimized), nsid, written);
            if forwarded.load(Ordering::Relaxed) > 0 {
                return;
            }
        }
        panic!("no connection of a hundred met another reactor");
    }

    /// Waits for what a control plane would wait for, and moves the group to the other node.
    fn fail_over(&self, group: GroupId, to: usize) {
        let attests = |state: &control::State| {
            let status = state.nodes[to].groups.get(&group);
            status.and_then(|status| status.attestation).filter(|attestation| {
                attestation.legs_open && attestation.owner_silent && attestation.lease_expired
            })
        };
        self.control.wait("the other side attests", |state| attests(state).is_some());
        self.control.change(|state| {
            let attestation: Attestation = attests(state).unwrap();
            state.move_owner(group, to, MoveKind::Unplanned { attestation });
        });
        self.control.wait("the other side serves", |state| state.serves(to, group));
    }
}

fn block(value: u64) -> Vec<u8> {
    value.to_le_bytes().repeat(BLOCK / 8)
}

/// Writes many scattered blocks and longer runs, and returns what was acknowledged.
fn fill(path: &mut Path, nsid: u32, seed: u64) -> Vec<(u64, Vec<u8>)> {
    let mut acknowledged = Vec::new();
    for round in 0..8 {
        let writes: Vec<_> = (0..16)
            .map(|slot| (round * 2_048 + slot * 96, block(seed + round * 16 + slot)))
            .collect();
        path.write_all(nsid, &writes).expect("writes are acknowledged");
        acknowledged.extend(writes);
    }
    // Beyond in-capsule data, and as long as one command can be.
    for (lba, length) in [(1_600, 64 << 10), (20_000, 1 << 20)] {
        let data: Vec<u8> = (0..length).map(|at: usize| (at as u64 * 31 + seed) as u8).collect();
        path.write(nsid, lba, &data).expect("long writes are acknowledged");
        acknowledged.push((lba, data));
    }
    acknowledged
}

fn check(path: &mut Path, nsid: u32, acknowledged: &[(u64, Vec<u8>)]) {
    for (lba, data) in acknowledged {
        let found = path.read(nsid, *lba, data.len()).expect("it is readable");
        assert!(found == *data, "block {lba} is not what was acknowledged");
    }
}

fn survives_failover_and_resync(reactors: usize) {
    let mut pair = Pair::start(reactors);
    let groups = [pair.control.create_volume(1, VOLUME), pair.control.create_volume(2, VOLUME)];
    let mut at_a: Vec<Path> = (1..3).map(|nsid| pair.path(0, nsid, AnaState::Optimized)).collect();
    let mut at_b: Vec<Path> =
        (1..3).map(|nsid| pair.path(1, nsid, AnaState::Inaccessible)).collect();
    let mut written = Vec::new();
    for (nsid, path) in (1..3).zip(&mut at_a) {
        assert!(path.read(nsid, 30_000, 4_096).unwrap().iter().all(|byte| *byte == 0));
        written.push(fill(path, nsid, u64::from(nsid) * 1_000));
        check(path, nsid, &written[nsid as usize - 1]);
    }
    let refused = at_b[0].read(1, 0, BLOCK);
    assert!(matches!(refused, Err(PathError::Status(status)) if status.is_path_related()));

    pair.kill(0);
    for (nsid, path) in (1..3).zip(&mut at_b) {
        let place = nsid as usize - 1;
        pair.fail_over(groups[place], 1);
        path.await_state(nsid, AnaState::Optimized);
        check(path, nsid, &written[place]);
        let more = fill(path, nsid, u64::from(nsid) * 7_000);
        written[place] = more;
    }

    pair.restart(0);
    for (place, group) in groups.into_iter().enumerate() {
        let in_sync = |state: &control::State| {
            state.groups[&group].sides.iter().all(|side| side.in_sync) && state.serves(1, group)
        };
        pair.control.wait("the old side is in sync again", in_sync);
        pair.control.change(|state| state.move_owner(group, 0, MoveKind::Planned));
        pair.control.wait("the first node serves again", |state| state.serves(0, group));
        let nsid = place as u32 + 1;
        check(&mut pair.path(0, nsid, AnaState::Optimized), nsid, &written[place]);
    }
    let joined = pair.control.lock().joined.clone();
    assert!(joined.iter().all(|resync| !resync.full), "maps sufficed: {joined:?}");
    let incarnations: Vec<u64> =
        pair.control.lock().nodes[0].hellos.iter().map(|hello| hello.incarnation).collect();
    assert_eq!(incarnations, [1, 2]);
    if reactors > 1 {
        pair.await_forwarding(0, 1, &written[0]);
    }
}

#[test]
fn what_was_acknowledged_survives_failover_and_resync() {
    survives_failover_and_resync(1);
}

#[test]
fn it_does_so_with_shards_and_connections_on_different_reactors() {
    survives_failover_and_resync(3);
}

#[test]
fn volumes_go_on_without_the_control_plane() {
    let pair = Pair::start(1);
    pair.control.create_volume(5, VOLUME);
    let mut path = pair.path(0, 5, AnaState::Optimized);
    let hellos = |state: &control::State| state.nodes[0].hellos.len();
    let before = hellos(&pair.control.lock());
    pair.control.change(|state| state.hang_up(0));
    let acknowledged = fill(&mut path, 5, 3);
    check(&mut path, 5, &acknowledged);
    pair.control.wait("the node is back by itself", |state| hellos(state) > before);
}

#[test]
fn compare_and_write_and_zeroes_reach_both_legs() {
    let mut pair = Pair::start(2);
    let group = pair.control.create_volume(3, VOLUME);
    let mut path = pair.path(0, 3, AnaState::Optimized);
    path.write(3, 8, &block(1)).unwrap();
    path.write(3, 9, &block(2)).unwrap();
    let compare = |value| Command::compare(3, 8, 1, Payload::Owned(Buffer::copy_of(&block(value))));
    path.command(compare(1)).expect("it holds what was written");
    let different = path.command(compare(9));
    assert!(matches!(different, Err(PathError::Status(status)) if status.code() == 0x85));
    path.command(Command::write_zeroes(3, 9, 1, true)).unwrap();
    path.command(Command::deallocate(3, &[(100, 8), (300, 16)])).unwrap();
    path.command(Command::verify(3, 0, 4_096)).unwrap();
    path.command(Command::flush(3)).unwrap();
    pair.kill(0);
    pair.fail_over(group, 1);
    let mut path = pair.path(1, 3, AnaState::Optimized);
    assert_eq!(path.read(3, 8, BLOCK).unwrap(), block(1));
    assert_eq!(path.read(3, 9, BLOCK).unwrap(), vec![0; BLOCK]);
}

#[test]
fn losing_the_peer_stops_writes_only_until_the_log_detached_it() {
    let mut pair = Pair::start(1);
    let group = pair.control.create_volume(4, VOLUME);
    let mut path = pair.path(0, 4, AnaState::Optimized);
    path.write(4, 0, &block(1)).unwrap();
    pair.kill(1);
    path.write(4, 0, &block(2)).expect("it is held, then acknowledged");
    let state = pair.control.lock();
    let side = state.groups[&group].sides.iter().find(|side| side.node == state.nodes[1].id);
    assert!(!side.unwrap().in_sync, "nothing was acknowledged before the log said so");
}
