use std::time::Duration;

use voute_nvme::*;

use crate::world::*;

fn link() -> (Disk, Wire) {
    let mut disk = Disk::new();
    let host = InitiatorConnection::connect_link(options(LINK), Duration::ZERO);
    let mut wire = Wire::new(&target(), host, Duration::ZERO);
    assert_eq!(wire.connected(&mut disk), 0xFFFF);
    (disk, wire)
}

#[test]
fn any_opcode_and_namespace_pass_through_a_link_untouched() {
    let (_, mut link) = link();
    for opcode in [0x00, 0x01, 0x02, 0x09, 0xC1, 0xC2, 0xC3, 0xC4, 0xFF] {
        let dwords = [1, 2, 3, 4, 5, 0xFFFF_FFFF];
        let direction = Direction::of_opcode(opcode);
        let data = if direction.sends() { pattern(4096, opcode) } else { Payload::None };
        let reply = if direction.receives() { 100 } else { 0 };
        let sent = data.bytes().to_vec();
        link.host
            .submit(Command::vendor(opcode, 0xDEAD_BEEF, dwords, data, reply), link.now)
            .expect("room");
        link.exchange();
        let request = link.target.next_request().expect("one request");
        assert_eq!(request.scope, Scope::Link { peer: HOST.into() });
        let Operation::Vendor { opcode: seen, nsid, dwords: words, data, reply_len_max } =
            request.operation
        else {
            panic!("a link surfaces vendor commands");
        };
        assert_eq!((seen, nsid, words, reply_len_max), (opcode, 0xDEAD_BEEF, dwords, reply as u32));
        assert_eq!(*data, *sent);
        link.target.complete(request.tag, Outcome::Done);
        link.exchange();
    }
}

#[test]
fn both_ways_a_link_carries_a_megabyte_at_once() {
    let (mut disk, mut link) = link();
    let length = (1 << 20) + 4096;
    let command = Command::vendor(0xC3, 7, [0, 0, 0, 0, 0, 42], pattern(length, 3), length);
    let tag = link.host.submit(command, link.now).expect("room");
    assert!(link.host.output().len() > length, "all of it travels in the capsule");
    link.pieces = [65536, 1, 9000].into();
    link.run(&mut disk);
    let answer = link.answer(tag).succeeded();
    let expected: Vec<u8> =
        pattern(length, 3).bytes().iter().map(|byte| byte.wrapping_add(1)).collect();
    assert_eq!((answer.dw0, answer.dw1), (7, 42));
    assert!(answer.data == expected);
}

#[test]
fn a_reply_shorter_than_asked_for_is_as_long_as_it_is() {
    let (mut disk, mut link) = link();
    let answer =
        link.ask(&mut disk, Command::vendor(0xC2, 1, [0; 6], Payload::None, 4096)).succeeded();
    assert_eq!(answer.data, [0xC3; 8]);
    let answer =
        link.ask(&mut disk, Command::vendor(0xC3, 1, [0; 6], Payload::None, 4096)).succeeded();
    assert_eq!(answer.data, [0xC4; 8]);
}

#[test]
fn a_link_takes_no_more_than_it_said() {
    let (_, mut link) = link();
    let command = Command::vendor(0xC1, 1, [0; 6], pattern(LINK_TRANSFER_MAX + 1, 0), 0);
    let limit = LINK_TRANSFER_MAX;
    assert_eq!(
        link.host.submit(command, link.now),
        Err(SubmitError::TooLong { length: limit + 1, limit })
    );
    let mut huge = vec![4, 0, 72, 72];
    huge.extend((72 + LINK_TRANSFER_MAX as u32 + 4).to_le_bytes());
    link.target.receive(&huge, link.now);
    assert_eq!(link.target.output()[0], 3, "C2HTermReq");
}

#[test]
fn fabrics_commands_and_fused_pairs_do_not_pass_a_link() {
    let (mut disk, mut link) = link();
    assert_eq!(
        link.ask(&mut disk, Command::property_get(0, true)).status,
        Status::invalid_opcode()
    );
    let fused = Command { fuse: Fuse::First, ..Command::vendor(0xC4, 1, [0; 6], Payload::None, 0) };
    assert_eq!(link.ask(&mut disk, fused).status, Status::invalid_field());
}

#[test]
fn a_node_without_links_accepts_none() {
    let target = Target::new(TargetConfig::default()).expect("sound");
    target.publish(directory(vec![]));
    let host = InitiatorConnection::connect_link(options(LINK), Duration::ZERO);
    let mut wire = Wire::new(&target, host, Duration::ZERO);
    wire.run(&mut Disk::new());
    assert!(matches!(wire.closed(), Closed::Refused { .. }));
}

#[test]
fn what_a_lost_connection_left_open_is_reported_once() {
    let (_, mut link) = link();
    let tags: Vec<Tag> = (0..5)
        .map(|_| {
            link.host
                .submit(Command::vendor(0xC1, 1, [0; 6], pattern(512, 0), 0), link.now)
                .expect("room")
        })
        .collect();
    link.host.disconnected();
    let mut lost = Vec::new();
    while let Some(event) = link.host.next_event() {
        match event {
            InitiatorEvent::Lost { tag, returned } => {
                assert_eq!(
                    returned.bytes(),
                    pattern(512, 0).bytes(),
                    "the data comes back for a retry"
                );
                lost.push(tag);
            }
            InitiatorEvent::Closed { reason } => assert_eq!(reason, Closed::Disconnected),
            other => panic!("unexpected {other:?}"),
        }
    }
    lost.sort_by_key(|tag| tag.to_bits());
    let mut tags = tags;
    tags.sort_by_key(|tag| tag.to_bits());
    assert_eq!(lost, tags);
    assert_eq!(link.host.submit(Command::flush(1), link.now), Err(SubmitError::NotConnected));
}

#[test]
fn a_command_that_takes_too_long_ends_the_connection() {
    let (_, mut link) = link();
    link.host.submit(Command::vendor(0xC4, 1, [0; 6], Payload::None, 0), link.now).expect("room");
    assert_eq!(link.host.next_deadline(), Some(Duration::from_secs(30)));
    link.host.tick(Duration::from_millis(29_999));
    assert!(!link.host.is_closing());
    link.host.tick(Duration::from_secs(30));
    assert_eq!(link.closed(), Closed::CommandTimeout);
}
