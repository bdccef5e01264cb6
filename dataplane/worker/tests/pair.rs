//! Two node engines in one process, a scripted control plane, and a host: written, failed over, read
//! back, resynced.

#![allow(clippy::unwrap_used, reason = "a test fails where it panics")]

#[path = "pair/control.rs"]
mod control;
#[path = "pair/host.rs"]
mod host;
#[path = "pair/iscsi.rs"]
mod iscsi;
#[path = "pair/proxy.rs"]
mod proxy;
#[path = "pair/reservations.rs"]
mod reservations;

use host::{BLOCK, Path, PathError};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use voute_buffer::Buffer;
use voute_iscsi::CompletionStatus;
use voute_mirror::link::{Control, LinkRequest};
use voute_mirror::wire;
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
    fn start(
        control: &control::Control,
        folder: &std::path::Path,
        node: usize,
        reactors: usize,
    ) -> Self {
        let id = control.lock().nodes[node].id;
        let data = folder.join(format!("node-{node}"));
        let config = NodeConfig::new(id, "secret".into(), vec![control.url.clone()], data);
        let config = NodeConfig { reactors: Some(reactors), pin: false, ..config };
        let (stop, metrics) = (Stop::new(), config.metrics.clone());
        let stopping = stop.clone();
        let thread = std::thread::spawn(move || {
            // Else a test that waits for it in vain would not say why.
            run(config, stopping).inspect_err(|error| eprintln!("an engine ended: {error}"))
        });
        let thread = Some(thread);
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
    /// First, so that they end before their folder is removed.
    engines: Vec<Option<Engine>>,
    control: control::Control,
    folder: tempfile::TempDir,
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
        let control = control::Control::start(folder.path());
        let mut pair = Pair { engines: vec![None, None], control, folder, reactors };
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

    /// A path to a node, whatever it shows.
    fn path_as_is(&self, node: usize) -> Option<Path> {
        Path::connect(self.control.lock().nodes[node].portals.nvme)
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

#[test]
fn both_protocols_see_the_same_blocks() {
    let pair = Pair::start(2);
    pair.control.create_volume(6, VOLUME);
    let mut path = pair.path(0, 6, AnaState::Optimized);
    let [at_a, at_b] = [0, 1].map(|node| pair.control.lock().nodes[node].portals.iscsi);
    let mut session = iscsi::Session::open(at_a);
    // The first command of a session learns of its beginning (unit attention 29/00).
    session.run(|initiator| initiator.test_unit_ready(6));
    // Longer than a mirror takes at once.
    let data: Vec<u8> = (0..3 << 20).map(|at: usize| (at % 253) as u8).collect();
    let written = session.run(|initiator| initiator.write(6, 512, &data, 512));
    assert_eq!(written.status, CompletionStatus::Good);
    let read = session.run(|initiator| initiator.read(6, 512, 6_144, 512));
    assert!(read.status == CompletionStatus::Good && read.data == data);
    for piece in 0..3 {
        let found = path.read(6, 512 + piece * 2_048, 1 << 20).unwrap();
        let at = (piece as usize) << 20;
        assert!(found == data[at..at + (1 << 20)], "MiB {piece} over NVMe");
    }
    path.write(6, 512, &block(77)).unwrap();
    assert_eq!(session.run(|initiator| initiator.read(6, 512, 1, 512)).data, block(77));

    let mut session = iscsi::Session::open(at_b);
    session.run(|initiator| initiator.test_unit_ready(6));
    let refused = session.run(|initiator| initiator.read(6, 0, 1, 512));
    assert!(refused.status.is_path_condition(), "{:?}", refused.status);
}

/// GET LBA STATUS: the pieces as (first block, blocks, provisioning status).
fn lba_status(session: &mut iscsi::Session, lun: u16, lba: u64) -> Vec<(u64, u32, u8)> {
    let mut cdb = [0; 16];
    (cdb[0], cdb[1], cdb[12]) = (0x9e, 0x12, 4);
    cdb[2..10].copy_from_slice(&lba.to_be_bytes());
    let told = session.run(|initiator| initiator.command(lun, cdb, 1024, &[]));
    assert_eq!(told.status, CompletionStatus::Good);
    let piece = |bytes: &[u8]| {
        let (lba, blocks) = (bytes[..8].try_into().unwrap(), bytes[8..12].try_into().unwrap());
        (u64::from_be_bytes(lba), u32::from_be_bytes(blocks), bytes[12])
    };
    told.data[8..].chunks_exact(16).map(piece).collect()
}

#[test]
fn blocks_that_nobody_wrote_are_told_and_a_written_one_is_known_after_a_failover() {
    const MAPPED: u8 = 0;
    const ANCHORED: u8 = 2;
    let mut pair = Pair::start(2);
    let group = pair.control.create_volume(16, VOLUME);
    drop(pair.path(0, 16, AnaState::Optimized));
    let open = |pair: &Pair, node: usize| {
        let mut session = iscsi::Session::open(pair.control.lock().nodes[node].portals.iscsi);
        session.run(|initiator| initiator.test_unit_ready(16));
        session
    };
    let mut session = open(&pair, 0);
    let all = (VOLUME / 512) as u32;
    let region = (voute_schemas::place::REGION_BYTES / 512) as u32;
    assert_eq!(lba_status(&mut session, 16, 0), [(0, all, ANCHORED)]);
    let written =
        session.run(|initiator| initiator.write(16, u64::from(region) + 5, &block(1), 512));
    assert_eq!(written.status, CompletionStatus::Good);
    let (first, second) = (u64::from(region), u64::from(2 * region));
    let expected =
        [(0, region, ANCHORED), (first, region, MAPPED), (second, all - 2 * region, ANCHORED)];
    assert_eq!(lba_status(&mut session, 16, 0), expected);
    assert_eq!(lba_status(&mut session, 16, first + 1)[0], (first + 1, region - 1, MAPPED));

    let mut standby = open(&pair, 1);
    let mut cdb = [0; 16];
    (cdb[0], cdb[1], cdb[12]) = (0x9e, 0x12, 4);
    let refused = standby.run(|initiator| initiator.command(16, cdb, 1024, &[]));
    assert!(refused.status.is_path_condition(), "who does not own cannot know");

    pair.kill(0);
    pair.fail_over(group, 1);
    drop(pair.path(1, 16, AnaState::Optimized));
    let mut session = open(&pair, 1);
    assert_eq!(lba_status(&mut session, 16, 0), expected, "the other leg notes the same");
}

#[test]
fn requests_that_waited_behind_answers_go_on_once_those_are_sent() {
    let pair = Pair::start(1);
    pair.control.create_volume(6, VOLUME);
    let address = pair.control.lock().nodes[0].portals.iscsi;
    let mut session = iscsi::Session::open(address);
    session.run(|initiator| initiator.test_unit_ready(6));
    // Many times what a session may have read and not yet sent. Nothing else happens meanwhile that
    // would have the node look after the session, but its clock.
    let came = loop {
        let read = session.read_at_once(6, 8_192, 32);
        let came: Vec<_> = read.into_iter().map(|one| (one.status, one.data.len())).collect();
        // It may have to tell first that its port began to serve (2A/06).
        match came[0].0 {
            CompletionStatus::CheckCondition { key: 6, code: 0x2a06, .. } => {}
            _ => break came,
        }
    };
    assert_eq!(came, vec![(CompletionStatus::Good, 4 << 20); 32]);
}

/// SET TARGET PORT GROUPS: the ports of this group are to be active and optimized.
fn activate(session: &mut iscsi::Session, lun: u16, port_group: u16) -> CompletionStatus {
    let [high, low] = port_group.to_be_bytes();
    let (mut cdb, list) = ([0; 16], [0, 0, 0, 0, 0, 0, high, low]);
    (cdb[0], cdb[1], cdb[9]) = (0xa4, 0x0a, 8);
    session.run(|initiator| initiator.command(lun, cdb, 0, &list)).status
}

#[test]
fn a_host_moves_its_volume_to_the_site_that_it_reaches() {
    let pair = Pair::start(2);
    let group = pair.control.create_volume(6, VOLUME);
    drop(pair.path(0, 6, AnaState::Optimized));
    let (at_b, number) = {
        let state = pair.control.lock();
        (state.nodes[1].portals.iscsi, state.nodes[1].number)
    };
    let mut session = iscsi::Session::open(at_b);
    session.run(|initiator| initiator.test_unit_ready(6));
    let refused = activate(&mut session, 6, 9);
    assert!(matches!(refused, CompletionStatus::CheckCondition { key: 5, .. }), "no such group");

    assert_eq!(activate(&mut session, 6, number), CompletionStatus::Good);
    let owner = pair.control.lock().groups[&group].owner;
    assert_eq!(owner, pair.control.lock().nodes[1].id, "the log says so");
    // The states of the ports have changed (unit attention 2A/06); then it serves.
    session.run(|initiator| initiator.test_unit_ready(6));
    let written = session.run(|initiator| initiator.write(6, 0, &block(5), 512));
    assert_eq!(written.status, CompletionStatus::Good);
    assert_eq!(activate(&mut session, 6, number), CompletionStatus::Good, "it is so already");

    // What another moved back meanwhile is not taken from it at once.
    pair.control.lock().move_owner(group, 0, MoveKind::Planned);
    drop(pair.path(0, 6, AnaState::Optimized));
    session.run(|initiator| initiator.test_unit_ready(6));
    let refused = activate(&mut session, 6, number);
    assert!(
        matches!(refused, CompletionStatus::CheckCondition { key: 4, code: 0x670a, .. }),
        "{refused:?}"
    );
}

#[test]
fn a_planned_move_under_load_loses_no_acknowledged_write() {
    let pair = Pair::start(2);
    let group = pair.control.create_volume(7, VOLUME);
    let addresses = [0, 1].map(|node| pair.control.lock().nodes[node].portals.nvme);
    let stop = Arc::new(AtomicBool::new(false));
    let stopping = stop.clone();
    let mut paths = [
        Path::connect_until(addresses[0], 7, AnaState::Optimized),
        Path::connect_until(addresses[1], 7, AnaState::Inaccessible),
    ];
    let (tell, told) = std::sync::mpsc::channel();
    // A host with both paths: it goes to the other one when one refuses with a path error.
    let host = std::thread::spawn(move || {
        let (mut active, mut acknowledged, mut switches) = (0, vec![0; 512], 0);
        let mut value = 0;
        while !stopping.load(Ordering::Relaxed) {
            value += 1;
            let lba = value % 512;
            let until = Instant::now() + Duration::from_secs(10);
            loop {
                match paths[active].write(7, lba, &block(value)) {
                    Ok(()) => break,
                    Err(PathError::Status(status)) if status.is_path_related() => {
                        assert!(Instant::now() < until, "no path takes the write: {status}");
                        (active, switches) = (1 - active, switches + 1);
                    }
                    Err(error) => panic!("not a path error: {error:?}"),
                }
            }
            acknowledged[lba as usize] = value;
            // Nobody listens any more at the end.
            let _ = tell.send(active);
        }
        (paths, active, acknowledged, switches)
    });
    let written_at = |node: usize| {
        let patience = Duration::from_secs(10);
        while told.recv_timeout(patience).expect("the host goes on") != node {}
    };
    written_at(0);
    for to in [1, 0, 1] {
        pair.control.change(|state| state.move_owner(group, to, MoveKind::Planned));
        pair.control.wait("the other side serves", |state| state.serves(to, group));
        written_at(to);
    }
    stop.store(true, Ordering::Relaxed);
    let (mut paths, active, acknowledged, switches) = host.join().unwrap();
    assert!(switches >= 3, "the host was moved");
    for (lba, value) in acknowledged.into_iter().enumerate().filter(|(_, value)| *value > 0) {
        let found = paths[active].read(7, lba as u64, BLOCK).unwrap();
        assert!(found == block(value), "block {lba} is not what was acknowledged last");
    }
    let joined = pair.control.lock().joined.clone();
    assert!(joined.is_empty(), "both sides stay in sync: {joined:?}");
}

#[test]
fn a_grown_volume_shows_its_new_size_and_serves_it() {
    let pair = Pair::start(1);
    let group = pair.control.create_volume(8, VOLUME);
    let mut path = pair.path(0, 8, AnaState::Optimized);
    let beyond = VOLUME / BLOCK as u64;
    assert!(path.read(8, beyond, BLOCK).is_err());
    pair.control.change(|state| state.grow(group, 2 * VOLUME));
    path.await_blocks(8, 2 * beyond);
    // The node may be told of it a moment before its mirror: then the host tries again.
    while let Err(error) = path.write(8, beyond, &block(5)) {
        assert!(matches!(error, PathError::Status(status) if status.code_type() == 3), "{error:?}");
    }
    assert_eq!(path.read(8, beyond, BLOCK).unwrap(), block(5));
}

#[test]
fn a_link_that_proves_nothing_is_served_nothing() {
    let pair = Pair::start(1);
    pair.control.create_volume(9, VOLUME);
    let link = pair.control.lock().nodes[1].portals.link;
    let (me, peer) = {
        let state = pair.control.lock();
        (state.nodes[0].id, state.nodes[1].id)
    };
    let zero = Command::vendor(0xC4, 9, [0, 0, 4_096, 0, 0, 0], Payload::None, 0);
    let status = host::link_command(link, control::SUBSYSTEM, vec![zero]).pop().unwrap();
    assert_eq!(status.unwrap().code_type(), 7, "a refusal of our own");

    // One that knows every name but not the secret gets a challenge, and no further.
    let message = |control: Control| {
        let command = wire::encode_request(&LinkRequest::Control(control));
        let data = Payload::Shared(command.data.unwrap());
        Command::vendor(command.opcode, 0, command.dwords, data, command.reply_len_max as usize)
    };
    let hello = Control::Hello { node: me, incarnation: 1, reactor: 9, to: peer, nonce: [1; 32] };
    let commands = vec![message(hello), message(Control::Prove { code: [2; 32] })];
    let statuses = host::link_command(link, control::SUBSYSTEM, commands);
    assert!(statuses[0].unwrap().is_success(), "the greeting is challenged");
    assert_eq!(statuses[1].map(|status| status.code_type()), Some(7));
    let refused = &pair.engines[1].as_ref().unwrap().metrics.refused_links;
    assert_eq!(refused.load(Ordering::Relaxed), 1);
}

#[test]
fn an_owner_that_is_cut_off_serves_nothing_stale_and_acknowledges_nothing() {
    let pair = Pair::start(1);
    let group = pair.control.create_volume(10, VOLUME);
    let mut at_a = pair.path(0, 10, AnaState::Optimized);
    let mut at_b = pair.path(1, 10, AnaState::Inaccessible);
    at_a.write(10, 0, &block(1)).unwrap();
    assert_eq!(at_a.read(10, 0, BLOCK).unwrap(), block(1));

    pair.control.change(|state| state.isolate(0, true));
    pair.fail_over(group, 1);
    at_b.await_state(10, AnaState::Optimized);
    at_b.write(10, 0, &block(2)).expect("the new owner goes on alone");
    // The old owner knows nothing of it, and must have stopped by itself.
    let stale = at_a.read(10, 0, BLOCK);
    assert!(stale.is_err(), "it served {stale:?}");
    let fork = pair.path_as_is(0).and_then(|mut path| path.write(10, 8, &block(3)).ok());
    assert_eq!(fork, None, "it acknowledged a write that the other side does not have");

    pair.control.change(|state| state.isolate(0, false));
    let in_sync =
        |state: &control::State| state.groups[&group].sides.iter().all(|side| side.in_sync);
    pair.control.wait("the old owner follows and is in sync again", in_sync);
    pair.control.change(|state| state.move_owner(group, 0, MoveKind::Planned));
    pair.control.wait("it serves again", |state| state.serves(0, group));
    let mut at_a = pair.path(0, 10, AnaState::Optimized);
    assert_eq!(at_a.read(10, 0, BLOCK).unwrap(), block(2));
    assert_eq!(at_a.read(10, 8, BLOCK).unwrap(), vec![0; BLOCK]);
}
