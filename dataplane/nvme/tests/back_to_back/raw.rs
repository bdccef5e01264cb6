//! Bytes laid out by hand after the specification's figures, independent of the crate's own writer.

use std::sync::Arc;
use std::time::Duration;

use voute_nvme::*;

use crate::world::*;

/// ICReq: type 0, HLEN and PLEN 128, PFV 0, HPDA, DGST, MAXR2T.
pub(crate) fn icreq(alignment: u8, digests: u8) -> Vec<u8> {
    let mut pdu = vec![0; 128];
    pdu[2] = 128;
    pdu[4] = 128;
    pdu[10] = alignment;
    pdu[11] = digests;
    pdu
}

pub(crate) fn capsule(entry: &[u8; 64], data: &[u8]) -> Vec<u8> {
    let mut pdu = vec![4, 0, 72, if data.is_empty() { 0 } else { 72 }];
    pdu.extend((72 + data.len() as u32).to_le_bytes());
    pdu.extend(entry);
    pdu.extend(data);
    pdu
}

/// A Connect capsule as Linux sends it.
pub(crate) fn connect(queue: u16, controller: u16, subsystem: &str, host: &str) -> Vec<u8> {
    let mut entry = [0; 64];
    entry[0] = 0x7F;
    entry[1] = 0x40;
    entry[4] = 0x01;
    entry[32..36].copy_from_slice(&1024u32.to_le_bytes());
    entry[39] = 0x01;
    entry[42..44].copy_from_slice(&queue.to_le_bytes());
    entry[44..46].copy_from_slice(&31u16.to_le_bytes());
    entry[48..52].copy_from_slice(&5000u32.to_le_bytes());
    let mut data = vec![0; 1024];
    data[..16].copy_from_slice(&HOST_ID);
    data[16..18].copy_from_slice(&controller.to_le_bytes());
    data[256..256 + subsystem.len()].copy_from_slice(subsystem.as_bytes());
    data[512..512 + host.len()].copy_from_slice(host.as_bytes());
    capsule(&entry, &data)
}

pub(crate) fn fresh(target: &Arc<Target>) -> TargetConnection {
    TargetConnection::new(target.clone(), PORTAL, Duration::ZERO)
}

/// Feeds bytes, returns what came out.
pub(crate) fn feed(connection: &mut TargetConnection, bytes: &[u8]) -> Vec<u8> {
    connection.receive(bytes, Duration::ZERO);
    std::mem::take(connection.output())
}

#[test]
fn the_handshake_has_the_bytes_of_the_specification() {
    let mut connection = fresh(&target());
    let mut expected = vec![0; 128];
    (expected[0], expected[2], expected[4]) = (1, 128, 128);
    expected[11] = 3;
    expected[12..16].copy_from_slice(&(256u32 << 10).to_le_bytes());
    assert_eq!(feed(&mut connection, &icreq(0, 3)), expected);

    let mut connection = fresh(&target());
    feed(&mut connection, &icreq(0, 0));
    let answer = feed(&mut connection, &connect(0, 0xFFFF, SUBSYSTEM, HOST));
    let mut expected = vec![5, 0, 24, 0, 24, 0, 0, 0];
    expected.extend([1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(answer, expected, "controller 1, queue head 1, success");
}

#[test]
fn an_initiator_has_the_bytes_of_the_specification() {
    let options = ConnectionOptions { queue_depth: 32, flow_control: true, ..options(SUBSYSTEM) };
    let mut host = InitiatorConnection::connect_admin(options, Duration::ZERO);
    assert_eq!(*host.output(), icreq(0, 0));
    host.output().clear();
    let mut response = icreq(0, 0);
    response[0] = 1;
    response[12..16].copy_from_slice(&4096u32.to_le_bytes());
    host.receive(&response, Duration::ZERO);
    assert_eq!(*host.output(), connect(0, 0xFFFF, SUBSYSTEM, HOST));
    host.output().clear();
    host.receive(
        &[5, 0, 24, 0, 24, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0],
        Duration::ZERO,
    );
    assert!(matches!(host.next_event(), Some(InitiatorEvent::Connected { controller: 9 })));
    host.submit(Command::property_get(0, true), Duration::ZERO).expect("room");
    let mut expected = vec![4, 0, 72, 0, 72, 0, 0, 0, 0x7F, 0x40, 0, 0, 4, 0, 0, 0];
    expected.resize(72, 0);
    (expected[8 + 39], expected[8 + 40]) = (0x5A, 1);
    assert_eq!(*host.output(), expected);
}

#[test]
fn a_write_by_r2t_has_the_bytes_of_the_specification() {
    let mut disk = Disk::new();
    let (_controller, mut io) = host(&target(), &mut disk, options(SUBSYSTEM));
    let mut entry = [0; 64];
    (entry[0], entry[1], entry[2], entry[4]) = (1, 0x40, 0x34, 1);
    entry[32..36].copy_from_slice(&512u32.to_le_bytes());
    entry[39] = 0x5A;
    let r2t = feed(&mut io.target, &capsule(&entry, &[]));
    assert_eq!(r2t, [9, 0, 24, 0, 24, 0, 0, 0, 0x34, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0]);
    let mut data =
        vec![6, 4, 24, 24, 24, 2, 0, 0, 0x34, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0];
    data.extend([0xAB; 512]);
    assert!(feed(&mut io.target, &data).is_empty());
    let request = io.target.next_request().expect("the write is whole");
    assert!(matches!(&request.operation, Operation::Write { data, .. } if data[..] == [0xAB; 512]));
    io.target.complete(request.tag, Outcome::Done);
    let answer = std::mem::take(io.target.output());
    assert_eq!(
        answer,
        [5, 0, 24, 0, 24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0x34, 0, 0, 0]
    );
}

#[test]
fn digests_and_alignment_are_where_the_specification_says() {
    let target = target();
    let mut connection = fresh(&target);
    feed(&mut connection, &icreq(15, 1));
    let mut capsule = connect(0, 0xFFFF, SUBSYSTEM, HOST);
    (capsule[1], capsule[3], capsule[4]) = (1, 76, 76);
    let digest = crc_of(&capsule[..72]);
    capsule.splice(72..72, digest.to_le_bytes());
    let answer = feed(&mut connection, &capsule);
    assert_eq!((answer.len(), answer[1], answer[4]), (28, 1, 28));
    assert_eq!(answer[24..28], crc_of(&answer[..24]).to_le_bytes());
    // Set CC.EN, then Identify: C2HData begins at the next multiple of 64 after header and digest.
    let mut send = |entry: [u8; 64]| {
        let mut pdu = crate::raw::capsule(&entry, &[]);
        (pdu[1], pdu[4]) = (1, 76);
        pdu.extend(crc_of(&pdu).to_le_bytes());
        feed(&mut connection, &pdu)
    };
    let mut enable = [0; 64];
    (enable[0], enable[1], enable[39], enable[44]) = (0x7F, 0x40, 0x5A, 0x14);
    enable[48..52].copy_from_slice(&0x0046_0061u32.to_le_bytes());
    send(enable);
    let mut identify = [0; 64];
    (identify[0], identify[1], identify[39], identify[40]) = (6, 0x40, 0x5A, 1);
    identify[32..36].copy_from_slice(&4096u32.to_le_bytes());
    let answer = send(identify);
    assert_eq!((answer[0], answer[3]), (7, 64));
    assert_eq!(answer.len(), 64 + 4096 + 28);
}

/// CRC32C, bit by bit, from its definition.
pub(crate) fn crc_of(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0x82F6_3B78 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

#[test]
fn crc32c_of_the_check_string() {
    assert_eq!(crc_of(b"123456789"), 0xE306_9283);
}
