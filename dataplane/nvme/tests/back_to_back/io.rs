use std::time::Duration;

use proptest::prelude::*;
use voute_nvme::*;

use crate::world::*;

fn io() -> (Disk, Controller, Wire) {
    let mut disk = Disk::new();
    let (controller, io) = host(&target(), &mut disk, options(SUBSYSTEM));
    (disk, controller, io)
}

fn refused(command: Command) -> Status {
    let (mut disk, _controller, mut io) = io();
    let status = io.ask(&mut disk, command).status;
    assert!(disk.seen.is_empty(), "a refused command reached the volume: {:?}", disk.seen);
    status
}

#[test]
fn what_was_written_is_read_by_capsule_and_by_r2t() {
    let (mut disk, _controller, mut io) = io();
    for (blocks, seed) in [(1, 1), (32, 2), (33, 3), (2048, 4)] {
        let length = blocks as usize * 512;
        let expected = pattern(length, seed);
        io.ask(&mut disk, Command::write(1, 17, blocks, pattern(length, seed), false)).succeeded();
        let read = io.ask(&mut disk, Command::read(1, 17, blocks, 512)).succeeded();
        assert_eq!(read.data, expected.bytes());
    }
}

#[test]
fn small_writes_need_no_r2t() {
    let (mut disk, _controller, mut io) = io();
    io.host.submit(Command::write(1, 0, 32, pattern(32 * 512, 0), false), io.now).expect("room");
    assert!(io.host.output().len() > 32 * 512, "16 KiB travel in the capsule");
    io.run(&mut disk);
    io.host.submit(Command::write(1, 0, 33, pattern(33 * 512, 0), false), io.now).expect("room");
    assert_eq!(io.host.output().len(), 72, "more waits for R2T");
}

#[test]
fn every_command_reaches_the_volume_as_itself() {
    let (mut disk, _controller, mut io) = io();
    io.ask(&mut disk, Command::write(1, 5, 2, pattern(1024, 9), true)).succeeded();
    io.ask(&mut disk, Command::compare(1, 5, 2, pattern(1024, 9))).succeeded();
    let differs = io.ask(&mut disk, Command::compare(1, 5, 2, pattern(1024, 8)));
    assert_eq!(differs.status, Status::compare_failure());
    io.ask(&mut disk, Command::verify(1, 5, 2)).succeeded();
    io.ask(&mut disk, Command::write_zeroes(1, 5, 1, true)).succeeded();
    io.ask(&mut disk, Command::deallocate(1, &[(6, 1), (100, 50)])).succeeded();
    io.ask(&mut disk, Command::flush(1)).succeeded();
    assert!(disk.bytes[5 * 512..7 * 512].iter().all(|byte| *byte == 0));
    let expected = [
        "Write { lba: 5, blocks: 2, data: Buffer(1024 bytes), fua: true }",
        "Compare { lba: 5, blocks: 2, data: Buffer(1024 bytes) }",
        "Compare { lba: 5, blocks: 2, data: Buffer(1024 bytes) }",
        "Verify { lba: 5, blocks: 2 }",
        "WriteZeroes { lba: 5, blocks: 1, deallocate: true }",
        "Deallocate { ranges: [(6, 1), (100, 50)] }",
        "Flush",
    ];
    assert_eq!(disk.seen, expected);
}

#[test]
fn a_request_says_who_asks() {
    let (_, controller, mut io) = io();
    io.host.submit(Command::flush(2), io.now).expect("room");
    io.exchange();
    let request = io.target.next_request().expect("the flush");
    let Scope::Host { association, nsid, uuid } = request.scope else { panic!("a host asked") };
    assert_eq!((nsid, uuid, association.controller), (2, [2; 16], controller.id));
    assert_eq!((association.host.as_str(), association.subsystem.as_str()), (HOST, SUBSYSTEM));
    assert_eq!(association.host_id, HOST_ID);
}

#[test]
fn what_lies_outside_a_namespace_is_refused() {
    assert_eq!(refused(Command::read(1, BLOCKS - 1, 2, 512)), Status::lba_out_of_range());
    assert_eq!(refused(Command::read(1, u64::MAX, 1, 512)), Status::lba_out_of_range());
    assert_eq!(
        refused(Command::write(1, BLOCKS, 1, pattern(512, 0), false)),
        Status::lba_out_of_range()
    );
    assert_eq!(refused(Command::write_zeroes(1, BLOCKS - 1, 2, false)), Status::lba_out_of_range());
    assert_eq!(refused(Command::deallocate(1, &[(0, 1), (BLOCKS, 1)])), Status::lba_out_of_range());
    assert_eq!(refused(Command::read(3, 0, 1, 512)), Status::invalid_namespace());
    assert_eq!(refused(Command::flush(u32::MAX)), Status::invalid_namespace());
    assert_eq!(refused(Command::flush(0)), Status::invalid_namespace());
    assert_eq!(
        refused(Command { opcode: 0x1C, nsid: 1, ..Command::default() }),
        Status::invalid_opcode()
    );
}

#[test]
fn data_must_fit_the_command() {
    assert_eq!(
        refused(Command::write(1, 0, 2, pattern(512, 0), false)),
        Status::sgl_length_invalid()
    );
    assert_eq!(refused(Command::read(1, 0, 2, 4096)), Status::sgl_length_invalid());
    assert_eq!(
        refused(Command { data_in_len: 0, ..Command::read(1, 0, 1, 512) }),
        Status::sgl_length_invalid()
    );
    let too_long = Command { data_in_len: 1 << 20, ..Command::read(1, 0, 2049, 512) };
    assert_eq!(refused(too_long), Status::invalid_field());
}

#[test]
fn a_namespace_that_is_not_served_here_gives_path_errors() {
    for (state, status) in [
        (AnaState::Inaccessible, Status::ana_inaccessible()),
        (AnaState::Change, Status::ana_transition()),
        (AnaState::PersistentLoss, Status::ana_persistent_loss()),
    ] {
        let target = target();
        let mut disk = Disk::new();
        let (_controller, mut io) = host(&target, &mut disk, options(SUBSYSTEM));
        target.publish(directory(vec![NamespaceView { state, ..namespace(1) }, namespace(2)]));
        let answer = io.ask(&mut disk, Command::read(1, 0, 1, 512));
        assert_eq!(answer.status, status);
        assert!(answer.status.is_path_related() && !answer.status.do_not_retry());
        io.ask(&mut disk, Command::read(2, 0, 1, 512)).succeeded();
    }
}

#[test]
fn a_read_only_namespace_refuses_writes() {
    let target = target();
    let mut disk = Disk::new();
    let (_controller, mut io) = host(&target, &mut disk, options(SUBSYSTEM));
    target.publish(directory(vec![NamespaceView { read_only: true, ..namespace(1) }]));
    for command in [
        Command::write(1, 0, 1, pattern(512, 0), false),
        Command::write_zeroes(1, 0, 1, false),
        Command::deallocate(1, &[(0, 1)]),
    ] {
        assert_eq!(io.ask(&mut disk, command).status, Status::write_protected());
    }
    io.ask(&mut disk, Command::read(1, 0, 1, 512)).succeeded();
}

#[test]
fn a_failure_of_the_volume_reaches_the_host_as_it_is() {
    let (mut disk, _controller, mut io) = io();
    disk.failure = Some(Status::ana_inaccessible());
    for command in [Command::read(1, 0, 1, 512), Command::write(1, 0, 1, pattern(512, 0), false)] {
        assert_eq!(io.ask(&mut disk, command).status, Status::ana_inaccessible());
    }
}

#[test]
fn an_outcome_that_does_not_fit_is_an_internal_error() {
    let (_, _controller, mut io) = io();
    for outcome in [Outcome::Done, Outcome::Data(voute_buffer::Buffer::zeroed(511))] {
        let tag = io.host.submit(Command::read(1, 0, 1, 512), io.now).expect("room");
        io.exchange();
        let request = io.target.next_request().expect("the read");
        io.target.complete(request.tag, outcome);
        io.target.complete(request.tag, Outcome::Done);
        io.exchange();
        assert_eq!(io.answer(tag).status, Status::internal_error());
    }
}

fn fused(io: &mut Wire, compare: Command, write: Command) -> (Tag, Tag) {
    let first = io.host.submit(Command { fuse: Fuse::First, ..compare }, io.now).expect("room");
    let second = io.host.submit(Command { fuse: Fuse::Second, ..write }, io.now).expect("room");
    (first, second)
}

#[test]
fn a_fused_pair_writes_only_if_equal() {
    let (mut disk, _controller, mut io) = io();
    let zero = || Payload::Owned(voute_buffer::Buffer::zeroed(512));
    let pair = |io: &mut Wire, disk: &mut Disk, compare: Payload, write: Payload| {
        let (first, second) =
            fused(io, Command::compare(1, 3, 1, compare), Command::write(1, 3, 1, write, false));
        io.run(disk);
        let first = io.answer(first).status;
        (first, io.answer(second).status)
    };
    let success = Status::success();
    assert_eq!(pair(&mut io, &mut disk, zero(), pattern(512, 1)), (success, success));
    let miscompare = (Status::compare_failure(), Status::failed_fused());
    assert_eq!(pair(&mut io, &mut disk, zero(), pattern(512, 2)), miscompare);
    assert_eq!(disk.bytes[3 * 512..4 * 512], *pattern(512, 1).bytes());
    assert_eq!(disk.seen.len(), 2, "each pair is one request: {:?}", disk.seen);
    disk.failure = Some(Status::ana_transition());
    let both = (Status::ana_transition(), Status::ana_transition());
    assert_eq!(pair(&mut io, &mut disk, zero(), pattern(512, 2)), both);
}

#[test]
fn half_a_fused_pair_is_never_executed() {
    let (mut disk, _controller, mut io) = io();
    let compare = || Command::compare(1, 3, 1, pattern(512, 0));
    let write = || Command::write(1, 3, 1, pattern(512, 1), false);

    let alone = io.host.submit(Command { fuse: Fuse::Second, ..write() }, io.now).expect("room");
    io.run(&mut disk);
    assert_eq!(io.answer(alone).status, Status::missing_fused());

    let first = io.host.submit(Command { fuse: Fuse::First, ..compare() }, io.now).expect("room");
    io.run(&mut disk);
    let other = io.host.submit(Command::flush(1), io.now).expect("room");
    io.run(&mut disk);
    assert_eq!(io.answer(first).status, Status::missing_fused());
    assert!(io.answer(other).status.is_success());

    let (first, second) =
        fused(&mut io, compare(), Command::write(1, 4, 1, pattern(512, 1), false));
    io.run(&mut disk);
    assert_eq!(io.answer(first).status, Status::invalid_field());
    assert_eq!(io.answer(second).status, Status::failed_fused());

    let long = Command::compare(1, 3, 2, pattern(1024, 0));
    let (first, second) = fused(&mut io, long, Command::write(1, 3, 2, pattern(1024, 1), false));
    io.run(&mut disk);
    assert_eq!(io.answer(first).status, Status::atomic_write_unit_exceeded());
    assert_eq!(io.answer(second).status, Status::atomic_write_unit_exceeded());

    let (first, second) = fused(&mut io, write(), compare());
    io.run(&mut disk);
    assert_eq!(io.answer(first).status, Status::invalid_field());
    assert_eq!(io.answer(second).status, Status::invalid_field());
    assert_eq!(disk.seen, ["Flush"]);
}

#[test]
fn data_in_flight_is_bounded_and_everything_finishes() {
    let limits = TargetLimits {
        held_bytes_max: 1 << 20,
        requested_bytes_max: 1 << 20,
        ..TargetLimits::default()
    };
    let mut disk = Disk::new();
    let (_controller, mut io) = host(&target_with(limits), &mut disk, options(SUBSYSTEM));
    let mut tags = Vec::new();
    for number in 0..60 {
        let command = match number % 2 {
            0 => Command::read(1, 0, 2048, 512),
            _ => Command::write(1, 2048, 2048, pattern(1 << 20, number), false),
        };
        tags.push(io.host.submit(command, io.now).expect("room"));
    }
    io.exchange();
    let mut held = Vec::new();
    while let Some(request) = io.target.next_request() {
        held.push(request);
    }
    assert_eq!(held.len(), 1, "the second megabyte waits for the first");
    for request in held {
        let outcome = disk.execute(&request);
        io.target.complete(request.tag, outcome);
    }
    assert!(!io.target.wants_input(), "a megabyte of output waits");
    io.run(&mut disk);
    let mut done = 0;
    while let Some(event) = io.host.next_event() {
        assert!(
            matches!(event, InitiatorEvent::Completed { status, .. } if status.is_success()),
            "{event:?}"
        );
        done += 1;
    }
    assert_eq!(done, tags.len());
}

#[test]
fn more_commands_than_the_queue_holds_end_the_connection() {
    let mut disk = Disk::new();
    let small = ConnectionOptions { queue_depth: 4, ..options(SUBSYSTEM) };
    let (_controller, mut io) = host(&target(), &mut disk, small);
    for _ in 0..3 {
        io.host.submit(Command::flush(1), io.now).expect("room");
    }
    assert_eq!(io.host.submit(Command::flush(1), io.now), Err(SubmitError::QueueFull));
    // A host that ignores its own limit sends five commands on a queue of four.
    let capsules = std::mem::take(io.host.output());
    io.target.receive(&capsules, io.now);
    for id in [100u16, 101] {
        let mut extra = capsules[..72].to_vec();
        extra[10..12].copy_from_slice(&id.to_le_bytes());
        io.target.receive(&extra, io.now);
    }
    let out = io.target.output();
    assert_eq!((out[0], out[8]), (3, 5), "C2HTermReq, limit exceeded: {out:?}");
}

#[test]
fn a_command_identifier_in_use_is_refused() {
    let (_, _controller, mut io) = io();
    io.host.submit(Command::flush(1), io.now).expect("room");
    let capsule = std::mem::take(io.host.output());
    io.target.receive(&capsule, io.now);
    io.target.receive(&capsule, io.now);
    let out = io.target.output();
    let entry = CompletionEntry::from_bytes(&out[8..24]);
    assert_eq!((out.len(), entry.status), (24, Status::command_id_conflict()));
    assert!(io.target.next_request().is_some() && io.target.next_request().is_none());
}

#[test]
fn the_success_flag_needs_a_host_without_flow_control() {
    for (flow_control, expected) in [(false, 24 + 512), (true, 24 + 512 + 24)] {
        let mut disk = Disk::new();
        let options = ConnectionOptions { flow_control, ..options(SUBSYSTEM) };
        let (_controller, mut io) = host(&target(), &mut disk, options);
        io.host.submit(Command::read(1, 0, 1, 512), io.now).expect("room");
        io.exchange();
        let request = io.target.next_request().expect("the read");
        let outcome = disk.execute(&request);
        io.target.complete(request.tag, outcome);
        let out = io.target.output();
        assert_eq!(out.len(), expected);
        assert_eq!(out[1] & 0b1100, if flow_control { 0b0100 } else { 0b1100 });
    }
}

#[test]
fn a_request_that_outlives_its_connection_keeps_the_controller_id() {
    let config = TargetConfig { controller_min: 5, controller_max: 5, ..TargetConfig::default() };
    let target = Target::new(config).expect("sound");
    target.publish(directory(vec![namespace(1)]));
    let mut disk = Disk::new();
    let (mut controller, mut io) = host(&target, &mut disk, options(SUBSYSTEM));
    assert_eq!(controller.id, 5);
    io.host.submit(Command::write(1, 0, 1, pattern(512, 0), false), io.now).expect("room");
    io.exchange();
    let request = io.target.next_request().expect("the write");
    controller.admin.target.disconnected();
    drop(controller);
    io.target.tick(Duration::ZERO);
    assert!(io.target.is_closing(), "an I/O queue follows its controller");
    assert_eq!(io.target.outstanding(), 1);

    let refused = || {
        let again = InitiatorConnection::connect_admin(options(SUBSYSTEM), Duration::ZERO);
        let mut again = Wire::new(&target, again, Duration::ZERO);
        again.run(&mut Disk::new());
        again
    };
    let status = Status::connect_controller_busy();
    assert_eq!(refused().closed(), Closed::Refused { status, result: 0 });
    io.target.complete(request.tag, Outcome::Done);
    assert_eq!((io.target.outstanding(), io.target.output().len()), (0, 0));
    drop(io);
    assert_eq!(refused().connected(&mut disk), 5);
}

fn digests() -> impl Strategy<Value = Digests> {
    (any::<bool>(), any::<bool>()).prop_map(|(header, data)| Digests { header, data })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn any_fragmentation_gives_the_same_data_copied_or_in_place(
        pieces in proptest::collection::vec(1usize..3000, 1..20),
        digests in digests(),
        flow_control in any::<bool>(),
        in_place_from in proptest::option::of(512usize..60_000),
        writes in proptest::collection::vec((0u64..4000, 1u32..300, any::<u8>()), 1..12),
    ) {
        let options = ConnectionOptions { digests, flow_control, ..options(SUBSYSTEM) };
        let mut disk = Disk::new();
        let (_controller, mut io) = host(&target(), &mut disk, options);
        io.pieces = pieces.into();
        in_place_from.into_iter().for_each(|bytes| io.spare_copies(bytes));
        let mut expected = vec![0; BLOCKS as usize * 512];
        for (lba, blocks, seed) in writes {
            let data = pattern(blocks as usize * 512, seed);
            let at = lba as usize * 512;
            expected[at..at + data.bytes().len()].copy_from_slice(data.bytes());
            io.ask(&mut disk, Command::write(1, lba, blocks, data, false)).succeeded();
            let read = io.ask(&mut disk, Command::read(1, lba, blocks, 512)).succeeded();
            prop_assert_eq!(&read.data, &expected[at..at + blocks as usize * 512]);
        }
        prop_assert!(disk.bytes == expected);
    }
}
