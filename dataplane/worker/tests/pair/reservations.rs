//! Reservations: one for both protocols, kept on the legs.

use super::host::Path;
use super::iscsi::Session;
use super::{BLOCK, Pair, PathError, VOLUME, block};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use voute_iscsi::CompletionStatus;
use voute_nvme::{AnaState, Command, Payload, Status};

const STRANGER: [u8; 16] = [0x22; 16];
const CONFLICT: CompletionStatus = CompletionStatus::Status(0x18);

/// The path of another host, by its host identifier.
fn stranger(pair: &Pair, node: usize, nsid: u32) -> Path {
    let address = pair.control.lock().nodes[node].portals.nvme;
    Path::connect_as(address, STRANGER, nsid, AnaState::Optimized)
}

fn session(pair: &Pair, node: usize, lun: u16) -> Session {
    let address = pair.control.lock().nodes[node].portals.iscsi;
    let mut session = Session::open(address);
    session.run(|initiator| initiator.test_unit_ready(lun));
    session
}

fn register(nsid: u32, key: u64, persists: Option<bool>) -> Command {
    Command::reservation_register(nsid, 0, false, persists, [0, key])
}

fn status(outcome: Result<impl Sized, PathError>) -> Status {
    match outcome {
        Ok(_) => Status::success(),
        Err(PathError::Status(status)) => status,
        Err(PathError::Gone) => panic!("the path is gone"),
    }
}

/// PERSISTENT RESERVE OUT.
fn reserve_out(
    session: &mut Session,
    lun: u16,
    action: u8,
    kind: u8,
    keys: [u64; 2],
) -> CompletionStatus {
    let mut list = [keys[0].to_be_bytes(), keys[1].to_be_bytes()].concat();
    list.resize(24, 0);
    let mut cdb = [0; 16];
    cdb[..3].copy_from_slice(&[0x5f, action, kind]);
    cdb[8] = 24;
    session.run(|initiator| initiator.command(lun, cdb, 0, &list)).status
}

fn read_keys(session: &mut Session, lun: u16) -> Vec<u8> {
    let mut cdb = [0; 16];
    cdb[0] = 0x5e;
    cdb[7] = 4;
    let keys = session.run(|initiator| initiator.command(lun, cdb, 1024, &[]));
    assert_eq!(keys.status, CompletionStatus::Good);
    keys.data
}

#[test]
fn a_reservation_survives_its_owner_and_bars_the_other_protocol() {
    let mut pair = Pair::start(2);
    let group = pair.control.create_volume(10, VOLUME);
    let mut holder = pair.path(0, 10, AnaState::Optimized);
    let mut other = stranger(&pair, 0, 10);
    let mut scsi = session(&pair, 0, 10);
    holder.command(register(10, 0xA1, None)).expect("registers");
    holder.command(Command::reservation_acquire(10, 0, 2, [0xA1, 0])).expect("acquires");
    holder.write(10, 0, &block(1)).expect("the holder writes");
    assert_eq!(status(other.write(10, 0, &block(9))), Status::reservation_conflict());
    assert_eq!(status(other.read(10, 0, BLOCK)), Status::reservation_conflict());
    assert_eq!(scsi.run(|initiator| initiator.read(10, 0, 1, 512)).status, CONFLICT);
    assert_eq!(read_keys(&mut scsi, 10)[..16], [0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0xA1]);

    pair.kill(0);
    pair.fail_over(group, 1);
    let mut holder = pair.path(1, 10, AnaState::Optimized);
    let mut other = stranger(&pair, 1, 10);
    let mut scsi = session(&pair, 1, 10);
    assert_eq!(status(other.write(10, 0, &block(9))), Status::reservation_conflict());
    let written = scsi.run(|initiator| initiator.write(10, 0, &block(9), 512));
    assert_eq!(written.status, CONFLICT);
    assert_eq!(holder.read(10, 0, BLOCK).expect("the holder reads"), block(1));
    assert_eq!(read_keys(&mut scsi, 10)[15], 0xA1);

    // SCSI takes it over; the NVMe host is out.
    assert_eq!(reserve_out(&mut scsi, 10, 0, 0, [0, 0xB2]), CompletionStatus::Good);
    assert_eq!(reserve_out(&mut scsi, 10, 5, 1, [0xB2, 0xA1]), CompletionStatus::Good);
    assert_eq!(status(holder.write(10, 0, &block(2))), Status::reservation_conflict());
    assert_eq!(holder.read(10, 0, BLOCK).expect("write exclusive admits reads"), block(1));
    let written = scsi.run(|initiator| initiator.write(10, 0, &block(3), 512));
    assert_eq!(written.status, CompletionStatus::Good);

    // The old owner comes back as the peer, and gets what it missed.
    pair.restart(0);
    let in_sync = |state: &super::control::State| {
        state.groups[&group].sides.iter().all(|side| side.in_sync) && state.serves(1, group)
    };
    pair.control.wait("the old side is in sync again", in_sync);
    pair.control.change(|state| {
        state.move_owner(group, 0, voute_schemas::event::MoveKind::Planned);
    });
    pair.control.wait("the first node serves again", |state| state.serves(0, group));
    let mut holder = pair.path(0, 10, AnaState::Optimized);
    assert_eq!(status(holder.write(10, 0, &block(2))), Status::reservation_conflict());
}

#[test]
fn only_what_was_asked_to_persist_survives_a_power_cycle_of_both_nodes() {
    let mut pair = Pair::start(1);
    let groups = [11, 12].map(|number| pair.control.create_volume(number, VOLUME));
    for (nsid, persists) in [(11, Some(true)), (12, None)] {
        let mut holder = pair.path(0, nsid, AnaState::Optimized);
        holder.command(register(nsid, 7, persists)).expect("registers");
        holder.command(Command::reservation_acquire(nsid, 0, 1, [7, 0])).expect("acquires");
        let mut other = stranger(&pair, 0, nsid);
        assert_eq!(status(other.write(nsid, 0, &block(1))), Status::reservation_conflict());
    }
    // Nobody decides anything while one lives without the other.
    pair.control.change(|state| (0..2).for_each(|node| state.isolate(node, true)));
    (0..2).for_each(|node| pair.kill(node));
    pair.control.change(|state| (0..2).for_each(|node| state.isolate(node, false)));
    (0..2).for_each(|node| pair.restart(node));
    for group in groups {
        pair.control.wait("it is served again", |state| state.serves(0, group));
    }
    let mut kept = stranger(&pair, 0, 11);
    assert_eq!(status(kept.write(11, 0, &block(1))), Status::reservation_conflict());
    let mut dropped = stranger(&pair, 0, 12);
    assert_eq!(status(dropped.write(12, 0, &block(1))), Status::success());
    let report = dropped.command(Command::reservation_report(12, 64)).expect("reports");
    let report = report.expect("a report has data");
    assert_eq!((report[0], report[4], report[5], report[9]), (0, 0, 0, 0));
}

#[test]
fn a_preempted_host_has_no_write_left_when_that_is_answered() {
    let pair = Pair::start(3);
    pair.control.create_volume(13, VOLUME);
    let mut winner = pair.path(0, 13, AnaState::Optimized);
    let mut victim = stranger(&pair, 0, 13);
    winner.command(register(13, 1, None)).expect("registers");
    victim.command(register(13, 2, None)).expect("registers");
    victim.command(Command::reservation_acquire(13, 0, 3, [2, 0])).expect("acquires");
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let mut written = 0u64;
            loop {
                match victim.write(13, written % 64, &block(0xBAD)) {
                    Ok(()) => written += 1,
                    Err(PathError::Status(status)) => {
                        assert_eq!(status, Status::reservation_conflict());
                        return written;
                    }
                    Err(PathError::Gone) => panic!("the victim's path is gone"),
                }
                assert!(!is_over.load(Ordering::SeqCst) || written < 1_000_000, "it never ends");
            }
        });
        while winner.read(13, 8, BLOCK).expect("registrants read") != block(0xBAD) {}
        winner.command(Command::reservation_acquire(13, 2, 3, [1, 2])).expect("preempts");
        let writes: Vec<_> = (0..64).map(|lba| (lba, block(1))).collect();
        winner.write_all(13, &writes).expect("the winner writes");
        is_over.store(true, Ordering::SeqCst);
        assert!(writing.join().expect("the victim ends by a conflict") > 8);
    });
    for lba in 0..64 {
        assert_eq!(winner.read(13, lba, BLOCK).expect("reads"), block(1), "block {lba}");
    }
}

#[test]
fn what_is_reserved_by_scsi_bars_nvme_until_its_session_ends() {
    let pair = Pair::start(2);
    pair.control.create_volume(14, VOLUME);
    let mut path = pair.path(0, 14, AnaState::Optimized);
    path.write(14, 0, &block(1)).expect("nothing is reserved");
    let mut scsi = session(&pair, 0, 14);
    let mut reserve = [0; 16];
    reserve[0] = 0x16;
    let reserved = scsi.run(|initiator| initiator.command(14, reserve, 0, &[]));
    assert_eq!(reserved.status, CompletionStatus::Good);
    assert_eq!(status(path.read(14, 0, BLOCK)), Status::reservation_conflict());
    assert_eq!(status(path.command(register(14, 1, None))), Status::reservation_conflict());
    drop(scsi);
    let until = std::time::Instant::now() + Duration::from_secs(10);
    while status(path.read(14, 0, BLOCK)) == Status::reservation_conflict() {
        assert!(std::time::Instant::now() < until, "its session ended, and it still bars");
    }
    // A write that is refused changes nothing, however many parts it has.
    path.command(register(14, 1, None)).expect("registers");
    path.command(Command::reservation_acquire(14, 0, 1, [1, 0])).expect("acquires");
    let mut scsi = session(&pair, 0, 14);
    let long = vec![9; 3 << 20];
    let written = scsi.run(|initiator| initiator.write(14, 0, &long, 512));
    assert_eq!(written.status, CONFLICT);
    assert_eq!(path.read(14, 0, BLOCK).expect("reads"), block(1));
    let compared =
        Command::compare(14, 0, 1, Payload::Owned(voute_buffer::Buffer::copy_of(&block(1))));
    path.command(compared).expect("the holder compares");
}

/// Asks until the answer is no BUSY: that the nodes connect first.
fn settled(mut ask: impl FnMut() -> CompletionStatus) -> CompletionStatus {
    let until = std::time::Instant::now() + Duration::from_secs(10);
    loop {
        match ask() {
            CompletionStatus::Status(0x08) => {
                assert!(std::time::Instant::now() < until, "it stays busy");
                std::thread::sleep(Duration::from_millis(20));
            }
            other => return other,
        }
    }
}

#[test]
fn a_host_registers_by_its_standby_path_and_may_write_there_after_a_move() {
    let mut pair = Pair::start(2);
    let group = pair.control.create_volume(15, VOLUME);
    drop(pair.path(0, 15, AnaState::Optimized));
    let (mut active, mut standby) = (session(&pair, 0, 15), session(&pair, 1, 15));
    let busy_or_done = settled(|| reserve_out(&mut standby, 15, 0, 0, [0, 0xB1]));
    assert_eq!(busy_or_done, CompletionStatus::Good, "registered by the path on standby");
    assert_eq!(read_keys(&mut active, 15)[15], 0xB1, "the owner has it");
    assert_eq!(reserve_out(&mut active, 15, 0, 0, [0, 0xA1]), CompletionStatus::Good);
    // Write exclusive, registrants only; another nexus cannot give it back.
    assert_eq!(reserve_out(&mut active, 15, 1, 5, [0xA1, 0]), CompletionStatus::Good);
    assert_eq!(read_keys(&mut standby, 15)[..8], [0, 0, 0, 2, 0, 0, 0, 16]);
    assert_eq!(reserve_out(&mut standby, 15, 1, 5, [0xBAD, 0]), CONFLICT, "another key");
    let read = standby.run(|initiator| initiator.read(15, 0, 1, 512));
    assert!(read.status.is_path_condition(), "data is not passed on: {:?}", read.status);

    pair.control.change(|state| {
        state.move_owner(group, 1, voute_schemas::event::MoveKind::Planned);
    });
    pair.control.wait("the second node serves", |state| state.serves(1, group));
    drop(pair.path(1, 15, AnaState::Optimized));
    standby.run(|initiator| initiator.test_unit_ready(15));
    let written = standby.run(|initiator| initiator.write(15, 0, &block(4), 512));
    assert_eq!(written.status, CompletionStatus::Good, "it is registered");
    let mut other = stranger(&pair, 1, 15);
    assert_eq!(status(other.write(15, 0, &block(9))), Status::reservation_conflict());
    // Now the first path is on standby, and its registration can be taken back there.
    active.run(|initiator| initiator.test_unit_ready(15));
    let gone = settled(|| reserve_out(&mut active, 15, 0, 0, [0xA1, 0]));
    assert_eq!(gone, CompletionStatus::Good);
    // The holder went, and with it what it held: registrants are told.
    let mut told = Vec::new();
    while let CompletionStatus::CheckCondition { key: 6, code, .. } =
        standby.run(|initiator| initiator.test_unit_ready(15)).status
    {
        told.push(code);
    }
    assert!(told.contains(&0x2a04), "{told:04x?}");
    assert_eq!(read_keys(&mut standby, 15)[..8], [0, 0, 0, 3, 0, 0, 0, 8]);

    // Nobody answers for an owner that is gone.
    pair.kill(1);
    let refused = settled(|| reserve_out(&mut active, 15, 0, 0, [0, 0xA2]));
    assert!(refused.is_path_condition(), "{refused:?}");
}
