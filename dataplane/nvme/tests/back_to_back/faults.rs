use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use voute_nvme::*;

use crate::raw::{capsule, connect, crc_of, feed, fresh, icreq};
use crate::world::*;

/// The fatal error status and information of a C2HTermReq.
#[track_caller]
fn termination(out: &[u8]) -> (u16, u32) {
    assert!(out.len() >= 24 && out[0] == 3, "no C2HTermReq: {out:?}");
    assert_eq!(u32::from_le_bytes([out[4], out[5], out[6], out[7]]) as usize, out.len());
    (u16::from_le_bytes([out[8], out[9]]), u32::from_le_bytes([out[10], out[11], out[12], out[13]]))
}

/// A connection with an I/O queue, and its controller, which must stay.
fn io() -> (Controller, TargetConnection) {
    let (controller, io) = host(&target(), &mut Disk::new(), options(SUBSYSTEM));
    (controller, io.target)
}

fn write_by_r2t(id: u8, length: u32) -> Vec<u8> {
    let mut entry = [0; 64];
    (entry[0], entry[1], entry[2], entry[4]) = (1, 0x40, id, 1);
    entry[32..36].copy_from_slice(&length.to_le_bytes());
    entry[39] = 0x5A;
    entry[48..50].copy_from_slice(&((length / 512 - 1) as u16).to_le_bytes());
    capsule(&entry, &[])
}

fn h2c_data(id: u16, tag: u16, offset: u32, declared: u32, data: &[u8], last: bool) -> Vec<u8> {
    let mut pdu = vec![6, if last { 4 } else { 0 }, 24, 24];
    pdu.extend((24 + data.len() as u32).to_le_bytes());
    pdu.extend(id.to_le_bytes());
    pdu.extend(tag.to_le_bytes());
    pdu.extend(offset.to_le_bytes());
    pdu.extend(declared.to_le_bytes());
    pdu.extend([0; 4]);
    pdu.extend(data);
    pdu
}

#[test]
fn a_bad_header_field_ends_the_connection_naming_it() {
    let cases: [(&str, usize, u8, u32); 6] = [
        ("unknown type", 0, 0x55, 0),
        ("a controller's PDU", 0, 0x01, 0),
        ("header length", 2, 24, 2),
        ("PDU length", 4, 129, 4),
        ("host alignment", 10, 32, 10),
        ("protocol version", 8, 1, 8),
    ];
    for (what, offset, value, information) in cases {
        let mut pdu = icreq(0, 0);
        pdu[offset] = value;
        let mut connection = fresh(&target());
        let found = termination(&feed(&mut connection, &pdu));
        let code = if what == "protocol version" { 6 } else { 1 };
        assert_eq!(found, (code, information), "{what}");
        assert!(!connection.is_closing(), "the peer is given time to read it");
        connection.tick(Duration::from_secs(10));
        assert!(connection.is_closing());
    }
}

#[test]
fn a_termination_carries_the_offending_header() {
    let mut connection = fresh(&target());
    let mut pdu = icreq(0, 0);
    pdu[10] = 99;
    let out = feed(&mut connection, &pdu);
    assert_eq!(out[24..], pdu[..], "128 bytes of it");
    assert!(feed(&mut connection, &icreq(0, 0)).is_empty(), "nothing more is answered");
}

#[test]
fn pdus_out_of_sequence_end_the_connection() {
    let capsule = connect(0, 0xFFFF, SUBSYSTEM, HOST);
    let data = h2c_data(0, 0, 0, 4, &[0; 4], true);
    for early in [&capsule, &data] {
        assert_eq!(termination(&feed(&mut fresh(&target()), early)), (2, 0));
    }
    for (late, expected) in [(&icreq(0, 0), (2, 0)), (&data, (1, 10))] {
        let mut connection = fresh(&target());
        feed(&mut connection, &icreq(0, 0));
        assert_eq!(termination(&feed(&mut connection, late)), expected);
    }
    let (_controller, mut io) = io();
    assert_eq!(termination(&feed(&mut io, &icreq(0, 0))), (2, 0));
}

#[test]
fn connect_may_leave_its_data_to_an_r2t() {
    let mut connection = fresh(&target());
    feed(&mut connection, &icreq(0, 0));
    let whole = connect(0, 0xFFFF, SUBSYSTEM, HOST);
    let mut entry = [0; 64];
    entry.copy_from_slice(&whole[8..72]);
    entry[39] = 0x5A;
    let r2t = feed(&mut connection, &capsule(&entry, &[]));
    assert_eq!((r2t.len(), r2t[0]), (24, 9));
    let answer = feed(&mut connection, &h2c_data(0, 0, 0, 1024, &whole[72..], true));
    assert_eq!((answer[0], answer[22..24].to_vec()), (5, vec![0, 0]), "Connect succeeds");
}

#[test]
fn a_termination_by_the_host_closes_without_an_answer() {
    let mut connection = fresh(&target());
    let out = feed(
        &mut connection,
        &[2, 0, 24, 0, 24, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    );
    assert!(out.is_empty() && connection.is_closing());
}

#[test]
fn a_header_digest_error_is_fatal() {
    let mut connection = fresh(&target());
    feed(&mut connection, &icreq(0, 1));
    let mut capsule = connect(0, 0xFFFF, SUBSYSTEM, HOST);
    (capsule[1], capsule[3], capsule[4]) = (1, 76, 76);
    let digest = crc_of(&capsule[..72]) ^ 1;
    capsule.splice(72..72, digest.to_le_bytes());
    assert_eq!(termination(&feed(&mut connection, &capsule)), (3, digest));

    let mut connection = fresh(&target());
    feed(&mut connection, &icreq(0, 1));
    let undigested = connect(0, 0xFFFF, SUBSYSTEM, HOST);
    assert_eq!(termination(&feed(&mut connection, &undigested)), (1, 1), "the flag is missing");
}

#[test]
fn a_data_digest_error_fails_only_its_command() {
    let mut disk = Disk::new();
    let digests = Digests { header: false, data: true };
    let (_controller, mut io) =
        host(&target(), &mut disk, ConnectionOptions { digests, ..options(SUBSYSTEM) });
    for blocks in [2u32, 200] {
        let tag = io
            .host
            .submit(Command::write(1, 0, blocks, pattern(blocks as usize * 512, 1), false), io.now);
        let tag = tag.expect("room");
        let mut sent = std::mem::take(io.host.output());
        if blocks == 200 {
            io.target.receive(&sent, io.now);
            io.exchange_to_host();
            sent = std::mem::take(io.host.output());
        }
        let last = sent.len() - 1;
        sent[last] ^= 0x40;
        io.target.receive(&sent, io.now);
        io.run(&mut disk);
        let answer = io.answer(tag);
        assert_eq!(answer.status, Status::transient_transport_error());
        assert!(!answer.status.do_not_retry());
    }
    assert!(disk.seen.is_empty());
    io.ask(&mut disk, Command::write(1, 0, 2, pattern(1024, 1), false)).succeeded();

    let tag = io.host.submit(Command::read(1, 0, 2, 512), io.now).expect("room");
    io.exchange();
    let request = io.target.next_request().expect("the read");
    let outcome = disk.execute(&request);
    io.target.complete(request.tag, outcome);
    let mut sent = std::mem::take(io.target.output());
    sent[100] ^= 1;
    io.host.receive(&sent, io.now);
    assert_eq!(io.answer(tag).status, Status::transient_transport_error());
}

#[test]
fn data_outside_its_transfer_ends_the_connection() {
    let cases: [(&str, Vec<u8>, (u16, u32)); 9] = [
        ("an unknown tag", h2c_data(9, 3, 0, 512, &[0; 512], false), (1, 10)),
        ("an absurd tag", h2c_data(9, 0xFFFF, 0, 512, &[0; 512], false), (1, 10)),
        ("another command", h2c_data(8, 0, 0, 512, &[0; 512], false), (1, 8)),
        ("a wrong length", h2c_data(9, 0, 0, 508, &[0; 512], false), (1, 16)),
        ("a gap", h2c_data(9, 0, 4, 512, &[0; 512], false), (4, 0)),
        ("an absurd offset", h2c_data(9, 0, 0xFFFF_FFFC, 512, &[0; 512], false), (4, 0)),
        ("too much", h2c_data(9, 0, 0, 1536, &[0; 1536], true), (4, 0)),
        ("last too early", h2c_data(9, 0, 0, 512, &[0; 512], true), (1, 1)),
        ("last missing", h2c_data(9, 0, 0, 1024, &[0; 1024], false), (1, 1)),
    ];
    for (what, pdu, expected) in cases {
        let (_controller, mut io) = io();
        assert_eq!(feed(&mut io, &write_by_r2t(9, 1024))[0], 9, "R2T");
        assert_eq!(termination(&feed(&mut io, &pdu)), expected, "{what}");
        assert!(io.next_request().is_none());
    }
}

#[test]
fn a_data_pdu_over_the_announced_limit_ends_the_connection() {
    let (_controller, mut io) = io();
    feed(&mut io, &write_by_r2t(9, 1 << 20));
    let mut pdu = vec![6, 0, 24, 24];
    pdu.extend((24u32 + (256 << 10) + 4).to_le_bytes());
    assert_eq!(termination(&feed(&mut io, &pdu)), (5, 0));
}

#[test]
fn data_must_not_begin_inside_the_header() {
    for start in [0, 71, 74, 255] {
        let mut connection = fresh(&target());
        feed(&mut connection, &icreq(0, 0));
        let mut pdu = connect(0, 0xFFFF, SUBSYSTEM, HOST);
        pdu[3] = start;
        assert_eq!(termination(&feed(&mut connection, &pdu)), (1, 3), "PDO {start}");
    }
}

#[test]
fn an_sgl_that_the_transport_does_not_use_fails_the_command_alone() {
    let (_controller, mut io) = io();
    for (descriptor, address, status) in [
        (0x00, 0, Status::sgl_type_invalid()),
        (0x40, 0, Status::sgl_type_invalid()),
        (0x01, 4, Status::sgl_offset_invalid()),
    ] {
        let mut entry = [0; 64];
        (entry[0], entry[1], entry[2], entry[4]) = (1, 0x40, 5, 1);
        entry[24] = address;
        entry[32..36].copy_from_slice(&512u32.to_le_bytes());
        entry[39] = descriptor;
        let out = feed(&mut io, &capsule(&entry, &[0; 512]));
        assert_eq!((out[0], CompletionEntry::from_bytes(&out[8..24]).status), (5, status));
    }
}

#[test]
fn only_connect_is_allowed_before_connect() {
    let mut connection = fresh(&target());
    feed(&mut connection, &icreq(0, 0));
    let mut entry = [0; 64];
    (entry[0], entry[39]) = (6, 0x5A);
    let out = feed(&mut connection, &capsule(&entry, &[]));
    assert_eq!(CompletionEntry::from_bytes(&out[8..24]).status, Status::command_sequence_error());
    let out = feed(&mut connection, &connect(0, 0xFFFF, SUBSYSTEM, HOST));
    assert!(CompletionEntry::from_bytes(&out[8..24]).status.is_success());
    let out = feed(&mut connection, &connect(0, 0xFFFF, SUBSYSTEM, HOST));
    assert_eq!(
        CompletionEntry::from_bytes(&out[8..24]).status,
        Status::command_sequence_error(),
        "nor twice"
    );
}

#[test]
fn connect_data_that_is_not_text_is_refused() {
    let target = target();
    for (offset, byte, result) in
        [(72 + 256, 0xFF, 1 << 16 | 256), (72 + 512, 0, 1 << 16 | 512), (8 + 44, 0, 44)]
    {
        let mut connection = fresh(&target);
        feed(&mut connection, &icreq(0, 0));
        let mut pdu = connect(0, 0xFFFF, SUBSYSTEM, HOST);
        pdu[offset] = byte;
        let out = feed(&mut connection, &pdu);
        let entry = CompletionEntry::from_bytes(&out[8..24]);
        assert_eq!((entry.status, entry.dw0), (Status::connect_invalid_parameters(), result));
    }
    let mut connection = fresh(&target);
    feed(&mut connection, &icreq(0, 0));
    let mut pdu = connect(0, 0xFFFF, SUBSYSTEM, HOST);
    pdu[8 + 40] = 1;
    let out = feed(&mut connection, &pdu);
    assert_eq!(
        CompletionEntry::from_bytes(&out[8..24]).status,
        Status::connect_incompatible_format()
    );
}

#[test]
fn an_idle_handshake_is_dropped() {
    let mut connection = fresh(&target());
    assert_eq!(connection.next_deadline(), Some(Duration::from_secs(10)));
    connection.receive(&icreq(0, 0), Duration::from_secs(9));
    connection.tick(Duration::from_secs(18));
    assert!(!connection.is_closing(), "Connect has its own ten seconds");
    connection.tick(Duration::from_secs(19));
    assert!(connection.is_closing());
}

#[test]
fn the_transition_table_names_every_state_and_pdu() {
    let table = transition_table();
    assert_eq!(table.lines().count(), 2 + 10 * 9);
    assert!(
        table.contains("| AwaitingInitialize | IcReq | answer ICResp, go to AwaitingConnect |")
    );
    assert!(table.contains("| Live(Io) | H2cData | store |"));
    assert!(table.contains("| Terminating | CapsuleCmd | discard |"));
}

#[test]
fn an_initiator_refuses_a_target_that_breaks_the_protocol() {
    let linked = || {
        let mut link = Wire::new(
            &target(),
            InitiatorConnection::connect_link(options(LINK), Duration::ZERO),
            Duration::ZERO,
        );
        link.connected(&mut Disk::new());
        let data = pattern(64, 0);
        link.host.submit(Command::vendor(0xC3, 0, [0; 6], data, 64), Duration::ZERO).expect("room");
        link.host.output().clear();
        link.host
    };
    let pdu = |kind: u8, flags: u8, id: u16, offset: u32, declared: u32, data: usize| {
        let mut pdu = vec![kind, flags, 24, if data > 0 { 24 } else { 0 }];
        pdu.extend((24 + data as u32).to_le_bytes());
        pdu.extend(id.to_le_bytes());
        pdu.extend([0; 2]);
        pdu.extend(offset.to_le_bytes());
        pdu.extend(declared.to_le_bytes());
        pdu.resize(24 + data, 0);
        pdu
    };
    let answer_to = |id: u16| {
        let mut answer = pdu(5, 0, 0, 0, 0, 0);
        answer[20..22].copy_from_slice(&id.to_le_bytes());
        answer
    };
    let cases = [
        ("data for no command", pdu(7, 4, 77, 0, 64, 64), 1),
        ("too much data", pdu(7, 4, 0, 0, 68, 68), 4),
        ("data at an offset", pdu(7, 4, 0, 4, 8, 8), 4),
        ("a false length", pdu(7, 4, 0, 0, 4, 8), 1),
        ("success without last", pdu(7, 8, 0, 0, 8, 8), 1),
        ("R2T for what was sent", pdu(9, 0, 0, 0, 64, 0), 4),
        ("R2T for no command", pdu(9, 0, 900, 0, 64, 0), 1),
        ("an answer to no command", answer_to(500), 1),
        (
            "ICResp again",
            {
                let mut response = icreq(0, 0);
                response[0] = 1;
                response
            },
            2,
        ),
        ("a host's PDU", icreq(0, 0), 1),
    ];
    for (what, bytes, code) in cases {
        let mut host = linked();
        host.receive(&bytes, Duration::ZERO);
        let out = std::mem::take(host.output());
        assert_eq!((out[0], out[8]), (2, code), "{what}: H2CTermReq");
        assert!(host.is_closing());
        assert!(matches!(host.next_event(), Some(InitiatorEvent::Lost { .. })), "{what}");
        assert!(matches!(host.next_event(), Some(InitiatorEvent::Closed { .. })), "{what}");
    }
}

#[test]
fn an_initiator_gives_up_a_silent_target() {
    let mut host = InitiatorConnection::connect_admin(options(SUBSYSTEM), Duration::ZERO);
    assert_eq!(host.next_deadline(), Some(Duration::from_secs(10)));
    host.tick(Duration::from_secs(10));
    let closed = InitiatorEvent::Closed { reason: Closed::HandshakeTimeout };
    assert_eq!(format!("{:?}", host.next_event()), format!("{:?}", Some(closed)));
}

/// Valid PDUs with a few bytes changed: what a fuzzer finds in an hour, found in a second.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let pieces = prop_oneof![
        Just(icreq(0, 0)),
        Just(icreq(3, 3)),
        Just(connect(0, 0xFFFF, SUBSYSTEM, HOST)),
        Just(connect(1, 0xFFFF, LINK, HOST)),
        Just(connect(1, 1, SUBSYSTEM, HOST)),
        any::<[u8; 32]>().prop_map(|fields| {
            let mut entry = [0; 64];
            entry[..8].copy_from_slice(&fields[..8]);
            entry[32..56].copy_from_slice(&fields[8..]);
            (entry[39], entry[35]) = (0x5A, 0);
            capsule(&entry, &[])
        }),
        (0u16..4, 0u16..4, 0u32..2048)
            .prop_map(|(id, tag, offset)| h2c_data(id, tag, offset, 512, &[7; 512], true)),
        Just(write_by_r2t(1, 1024)),
        proptest::collection::vec(any::<u8>(), 0..200),
    ];
    let changes = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3);
    (proptest::collection::vec(pieces, 0..8), changes).prop_map(|(pieces, changes)| {
        let mut stream = pieces.concat();
        for (index, value) in changes {
            if !stream.is_empty() {
                let at = index.index(stream.len());
                stream[at] = value;
            }
        }
        stream
    })
}

/// Everything a reactor does with a connection, with a volume that answers nonsense.
fn exercise(connection: &mut TargetConnection, bytes: &[u8], piece: usize) {
    for (turn, piece) in bytes.chunks(piece).enumerate() {
        let now = Duration::from_millis(turn as u64);
        connection.receive(piece, now);
        while let Some(request) = connection.next_request() {
            let outcome = match turn % 3 {
                0 => Outcome::Done,
                1 => Outcome::Data(voute_buffer::Buffer::zeroed(512)),
                _ => Outcome::Failed(Status::ana_inaccessible()),
            };
            connection.complete(request.tag, outcome);
        }
        connection.tick(now);
        assert!(connection.output().len() < 4 << 20);
        connection.output().clear();
    }
    connection.complete(Tag::from_bits(u64::MAX), Outcome::Done);
    connection.disconnected();
    assert_eq!(connection.outstanding(), 0);
}

fn live(kind: usize) -> (Arc<Target>, Vec<Controller>, TargetConnection) {
    let (target, mut disk) = (target(), Disk::new());
    match kind {
        0 => (target.clone(), Vec::new(), fresh(&target)),
        1 => {
            let controller = enabled_controller(&target, &mut disk, options(SUBSYSTEM));
            (target, Vec::new(), controller.admin.target)
        }
        2 => {
            let controller = enabled_controller(&target, &mut disk, options(DISCOVERY_NQN));
            (target, Vec::new(), controller.admin.target)
        }
        3 => {
            let mut link = Wire::new(
                &target,
                InitiatorConnection::connect_link(options(LINK), Duration::ZERO),
                Duration::ZERO,
            );
            link.connected(&mut disk);
            (target, Vec::new(), link.target)
        }
        _ => {
            let (controller, io) = host(&target, &mut disk, options(SUBSYSTEM));
            (target, vec![controller], io.target)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_a_target_panic(kind in 0usize..5, stream in damaged(), piece in 1usize..700) {
        let (_target, _controllers, mut connection) = live(kind);
        exercise(&mut connection, &stream, piece);
    }

    #[test]
    fn no_bytes_make_an_initiator_panic(stream in damaged(), kinds in proptest::collection::vec(0u8..10, 8), piece in 1usize..700) {
        let mut host = InitiatorConnection::connect_link(options(LINK), Duration::ZERO);
        let mut response = icreq(0, 0);
        response[0] = 1;
        response[13] = 0x10;
        host.receive(&response, Duration::ZERO);
        host.receive(&[5, 0, 24, 0, 24, 0, 0, 0, 255, 255, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], Duration::ZERO);
        for _ in 0..4 {
            host.submit(Command::vendor(0xC3, 0, [0; 6], pattern(64, 0), 2048), Duration::ZERO).expect("room");
        }
        // Turn host PDUs into a controller's by their type.
        let mut stream = stream;
        let length = stream.len();
        if length > 0 {
            for (at, kind) in [0, 128, 200, 224, 256, 300, 600, 900].into_iter().zip(kinds) {
                stream[at % length] = kind;
            }
        }
        for piece in stream.chunks(piece) {
            host.receive(piece, Duration::ZERO);
            host.tick(Duration::ZERO);
        }
        host.disconnected();
        let mut ended = 0;
        while let Some(event) = host.next_event() {
            ended += usize::from(matches!(event, InitiatorEvent::Lost { .. } | InitiatorEvent::Completed { .. }));
        }
        prop_assert_eq!(ended, 4, "each command ends exactly once");
    }
}

#[test]
fn every_refusal_is_counted_by_its_cause() {
    let target = target();
    let mut silent = fresh(&target);
    silent.tick(Duration::from_secs(10));
    let mut broken = fresh(&target);
    feed(&mut broken, &[0x55; 128]);
    let mut stranger = fresh(&target);
    feed(&mut stranger, &icreq(0, 0));
    feed(&mut stranger, &connect(0, 0xFFFF, SUBSYSTEM, "nqn.stranger"));
    let expected = Refusals {
        handshakes: 1,
        connects: 1,
        faults: 1,
        authentications: 0,
        last: Some(format!("nqn.stranger: {}", Status::connect_invalid_host())),
    };
    assert_eq!(target.refusals(), expected);
}
