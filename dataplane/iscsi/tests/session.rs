//! Login, numbering, data transfer, management and the end of sessions, back to back in memory.

mod harness;

use harness::*;
use proptest::prelude::*;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use voute_iscsi::{
    Authentication, Chap, CompletionStatus, Credential, DigestChoice, Failure, InitiatorConfig,
    InitiatorError, Outcome, Portal, PortalId, SESSIONS_PER_HOST_MAX, TargetConnection,
    parse_targets,
};

fn chap(host_secret: &str, target_secret: Option<&str>) -> Chap {
    let credential = |name: &str, secret: &str| Credential {
        name: name.into(),
        secret: secret.as_bytes().to_vec(),
    };
    Chap {
        host: credential("host", host_secret),
        target: target_secret.map(|secret| credential("target", secret)),
    }
}

fn login(at_target: Authentication, ours: Option<Chap>) -> Result<(), InitiatorError> {
    let target = target_with(directory(at_target, vec![view(0, VOLUME)]));
    let wire = Wire::new(&target, InitiatorConfig { chap: ours, seed: [3; 32], ..config() }, 5);
    match wire.error {
        Some(error) => Err(error),
        None => {
            assert!(wire.initiator.is_ready());
            Ok(())
        }
    }
}

#[test]
fn a_host_logs_in_by_chap_only_with_its_secret() {
    let asked = || Authentication::Chap(chap("host secret 1", Some("target secret")));
    assert_eq!(login(asked(), Some(chap("host secret 1", None))), Ok(()));
    assert_eq!(login(asked(), Some(chap("host secret 1", Some("target secret")))), Ok(()));
    let refused = Err(InitiatorError::LoginRefused { class: 2, detail: 1 });
    assert_eq!(login(asked(), Some(chap("host secret 2", None))), refused);
    assert_eq!(login(asked(), None), refused);
    assert_eq!(
        login(asked(), Some(chap("host secret 1", Some("another")))),
        Err(InitiatorError::TargetNotProved)
    );
    // A target without a secret of its own cannot prove itself.
    let one_way = Authentication::Chap(chap("host secret 1", None));
    assert_eq!(login(one_way, Some(chap("host secret 1", Some("target secret")))), refused);
    // Equal secrets would let the host answer its own challenge.
    let same = Authentication::Chap(chap("host secret 1", Some("host secret 1")));
    assert_eq!(login(same, Some(chap("host secret 1", Some("host secret 1")))), refused);
}

#[test]
fn one_host_takes_no_sessions_from_others() {
    let mut offered = directory(Authentication::None, vec![view(0, VOLUME)]);
    let other = "iqn.2026-01.dev.voute:other";
    let as_host = offered.hosts[HOST].clone();
    offered.hosts.insert(other.to_owned(), as_host);
    let target = target_with(offered);
    let numbered = |number: usize| InitiatorConfig {
        isid: [0x80, 0, 0, 0, 1, u8::try_from(number).unwrap()],
        ..config()
    };
    let mut open: Vec<Wire> =
        (0..SESSIONS_PER_HOST_MAX).map(|number| Wire::new(&target, numbered(number), 1)).collect();
    assert!(open.iter().all(|wire| wire.initiator.is_ready()));
    let one_more = || Wire::new(&target, numbered(200), 1);
    let refused = Some(InitiatorError::LoginRefused { class: 3, detail: 2 });
    assert_eq!(one_more().error, refused);
    let again = Wire::new(&target, numbered(0), 1);
    assert!(again.initiator.is_ready(), "the same session anew takes its own place");
    assert!(Wire::new(&target, InitiatorConfig::new(other, Some(TARGET)), 1).initiator.is_ready());
    open.pop().expect("it was opened").connection.disconnected();
    assert!(one_more().initiator.is_ready());
}

#[test]
fn unknown_names_are_refused() {
    let refused = |config| {
        let wire = Wire::new(&target(), config, 1);
        assert!(wire.connection.is_closing());
        wire.error
    };
    assert_eq!(
        refused(InitiatorConfig::new("iqn.2026-01.dev.voute:other", Some(TARGET))),
        Some(InitiatorError::LoginRefused { class: 2, detail: 2 })
    );
    assert_eq!(
        refused(InitiatorConfig::new(HOST, Some("iqn.2026-01.dev.voute:wrong"))),
        Some(InitiatorError::LoginRefused { class: 2, detail: 3 })
    );
}

#[test]
fn discovery_lists_the_portals_of_all_sites_that_the_host_may_use() {
    let listed = |name: &str, receive_length, allowed: Option<Vec<PortalId>>, more: u16| {
        let mut directory = directory(Authentication::None, vec![view(0, VOLUME)]);
        directory.portals.extend((3..3 + more).map(|number| Portal {
            id: PortalId(number),
            address: format!("192.0.2.{}:3260", number),
            group_tag: number,
            relative_port: number,
        }));
        directory.hosts.get_mut(HOST).expect("is there").portals = allowed;
        let config = InitiatorConfig { receive_length, ..InitiatorConfig::new(name, None) };
        let mut wire = Wire::new(&target_with(directory), config, 3);
        let task = wire.initiator.send_targets().expect("logged in");
        parse_targets(&wire.wait(task).data).expect("well-formed")
    };
    let all = [
        (TARGET.to_owned(), "192.0.2.1:3260,1".to_owned()),
        (TARGET.into(), "[2001:db8::2]:3260,2".into()),
    ];
    assert_eq!(listed(HOST, 8192, None, 0), all);
    assert_eq!(listed(HOST, 8192, Some(vec![PortalId(2)]), 0), all[1..]);
    assert_eq!(listed("iqn.2026-01.dev.voute:other", 8192, None, 0), []);
    // Longer than a segment: the answer goes on in further PDUs.
    assert_eq!(listed(HOST, 512, None, 200).len(), 202);
}

#[test]
fn a_host_that_wants_to_prove_itself_for_discovery_can() {
    let asked = Authentication::Chap(chap("host secret 1", Some("target secret")));
    let target = target_with(directory(asked, vec![view(0, VOLUME)]));
    let discover = |chap| {
        let config = InitiatorConfig { chap, seed: [3; 32], ..InitiatorConfig::new(HOST, None) };
        let mut wire = Wire::new(&target, config, 5);
        if let Some(error) = wire.error {
            return Err(error);
        }
        let task = wire.initiator.send_targets().expect("logged in");
        Ok(parse_targets(&wire.wait(task).data).expect("well-formed").len())
    };
    assert_eq!(discover(None), Ok(2));
    assert_eq!(discover(Some(chap("host secret 1", None))), Ok(2));
    assert_eq!(discover(Some(chap("host secret 1", Some("target secret")))), Ok(2));
    let refused = Err(InitiatorError::LoginRefused { class: 2, detail: 1 });
    assert_eq!(discover(Some(chap("host secret 2", None))), refused);
    let impostor = discover(Some(chap("host secret 1", Some("another"))));
    assert_eq!(impostor, Err(InitiatorError::TargetNotProved));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn what_was_written_is_read_whatever_was_negotiated_and_however_bytes_are_cut(
        seed in 1u64..,
        header_crc: bool,
        data_crc: bool,
        immediate_data: bool,
        initial_r2t: bool,
        receive_length in 512u32..70_000,
        inset_from in 0usize..70_000,
        sizes in proptest::collection::vec(1usize..700, 1..5),
    ) {
        let choice = |on| if on { DigestChoice::Crc32c } else { DigestChoice::None };
        let config = InitiatorConfig {
            header_digest: choice(header_crc),
            data_digest: choice(data_crc),
            immediate_data,
            initial_r2t,
            receive_length,
            ..config()
        };
        let mut wire = Wire::ready(&target(), config, seed);
        prop_assert_eq!(wire.initiator.parameters().header_digest, choice(header_crc));
        prop_assert_eq!(wire.initiator.parameters().immediate_data, immediate_data);
        wire.connection.inset_from(inset_from);
        let mut random = Random::seeded(seed);
        for blocks in sizes {
            let data = random.bytes(blocks * 512);
            let lba = random.below(BLOCKS as usize - blocks) as u64;
            prop_assert_eq!(wire.write(lba, &data), CompletionStatus::Good);
            let read = wire.read(lba, blocks as u32);
            prop_assert_eq!(read.status, CompletionStatus::Good);
            prop_assert!(read.data == data);
        }
    }

    #[test]
    fn random_bytes_never_panic(seed in 1u64.., length in 0usize..4000) {
        let mut random = Random::seeded(seed);
        let bytes = random.bytes(length);
        let mut connection = TargetConnection::new(target(), PortalId(1), Duration::ZERO);
        connection.receive(&bytes, Duration::ZERO);
        let mut initiator = voute_iscsi::Initiator::new(config());
        let _ = initiator.receive(&bytes);
        // In full-feature phase as well, with the first bytes made a likely opcode.
        let mut wire = Wire::ready(&target(), config(), seed);
        let mut bytes = bytes;
        for (at, opcode) in [0x01u8, 0x05, 0x02, 0x04, 0x41].iter().enumerate() {
            if let Some(byte) = bytes.get_mut(at * 48) {
                *byte = *opcode;
                for length_byte in bytes.iter_mut().skip(at * 48 + 4).take(3) {
                    *length_byte = 0;
                }
            }
        }
        wire.connection.receive(&bytes, Duration::ZERO);
        wire.run();
        let _ = wire.initiator.receive(&bytes);
        complete_unknown(&mut wire.connection, seed);
    }

    #[test]
    fn a_damaged_session_never_panics(seed in 1u64.., flips in 1usize..6) {
        let mut random = Random::seeded(seed);
        let mut wire = Wire::ready(&target(), config(), seed);
        for _ in 0..8 {
            let blocks = 1 + random.below(400);
            let data = random.bytes(512 * blocks);
            let _ = wire.initiator.write(0, random.below(40_000) as u64, &data, 512);
            let _ = wire.initiator.read(0, random.below(40_000) as u64, random.below(300) as u32, 512);
            let mut cdb = [0; 16];
            cdb.copy_from_slice(&random.bytes(16));
            let _ = wire.initiator.command(random.below(2) as u16, cdb, 4096, &[]);
            let _ = wire.initiator.command(0, cdb, 0, &data[..512]);
            let _ = wire.initiator.manage(random.below(9) as u8, 0, Some(3));
        }
        for _ in 0..flips {
            let length = wire.initiator.output().len();
            let at = random.below(length);
            wire.initiator.output()[at] ^= 1 << random.below(8);
        }
        wire.run();
        prop_assert!(wire.connection.outstanding() == 0);
    }
}

#[test]
fn a_write_is_surfaced_only_when_all_its_data_is_there() {
    let mut wire = Wire::ready(&target(), config(), 11);
    wire.keeps = true;
    let task = wire.initiator.write(0, 0, &vec![1; 1 << 20], 512).expect("window is open");
    let mut received = 0;
    // All but the last byte, through as many R2Ts as it takes.
    loop {
        let bytes = std::mem::take(wire.initiator.output());
        received += bytes.len();
        let is_last = received >= 1 << 20;
        let (now, later) = bytes.split_at(bytes.len() - usize::from(is_last));
        wire.connection.receive(now, wire.now);
        assert!(wire.connection.next_request().is_none());
        let answer = std::mem::take(wire.connection.output());
        wire.initiator.receive(&answer).expect("well-formed");
        if is_last && wire.initiator.output().is_empty() {
            wire.connection.receive(later, wire.now);
            break;
        }
        if is_last {
            wire.connection.receive(later, wire.now);
        }
    }
    wire.run();
    let request = wire.kept.pop_front().expect("surfaced now");
    assert_eq!(written_bytes(&request.operation), 1 << 20);
    wire.keeps = false;
    wire.execute(request);
    assert_eq!(wire.wait(task).status, CompletionStatus::Good);
}

#[test]
fn a_new_login_of_a_session_waits_for_the_old_ones_writes() {
    let target = target();
    let disk = Arc::new(Disk::new(512, BLOCKS as usize));
    let mut old = Wire::on(&target, config(), 1, disk.clone());
    old.clear_attentions();
    old.keeps = true;
    old.initiator.write(0, 0, &[1; 512], 512).expect("window is open");
    old.initiator.write(0, 1, &[1; 512], 512).expect("window is open");
    old.run();
    assert_eq!(old.kept.len(), 2);

    let mut new = Wire::on(&target, config(), 2, disk);
    assert!(new.initiator.is_ready());
    let task = new.initiator.test_unit_ready(0).expect("window is open");
    let write = new.initiator.write(0, 0, &[2; 512], 512).expect("window is open");
    new.run();
    assert!(
        new.initiator.next_completion().is_none(),
        "nothing is answered before the old writes end"
    );
    assert!(!new.connection.wants_input());
    let first = old.kept.pop_front().expect("kept");
    old.execute(first);
    new.pass(Duration::from_millis(5));
    assert!(new.initiator.next_completion().is_none(), "one old write is still with its volume");
    old.release();
    assert!(old.connection.is_closing(), "the old session has ended");
    new.pass(Duration::from_millis(5));
    assert_eq!(sense(&new.wait(task).status), (6, 0x2907), "the loss of the nexus is told");
    new.run();
    assert_eq!(target.sessions(), 1);
    let _ = write;
    assert_eq!(new.read(0, 1).data, [2; 512], "the new session's write is the last");
}

#[test]
fn an_ended_session_surfaces_nothing_more() {
    let target = target();
    let mut old = Wire::ready(&target, config(), 1);
    old.initiator.write(0, 0, &[1; 512], 512).expect("window is open");
    let bytes = std::mem::take(old.initiator.output());
    old.connection.receive(&bytes, old.now);
    let _new = Wire::new(&target, config(), 2);
    assert!(old.connection.next_request().is_none());
    assert!(old.connection.is_closing());
}

#[test]
fn an_abort_waits_for_the_write_and_withholds_its_answer() {
    let mut wire = Wire::ready(&target(), config(), 4);
    wire.keeps = true;
    let write = wire.initiator.write(0, 0, &[5; 512], 512).expect("window is open");
    wire.run();
    let abort = wire.initiator.manage(1, 0, Some(write)).expect("logged in");
    wire.run();
    assert!(wire.initiator.next_completion().is_none());
    wire.release();
    assert_eq!(wire.wait(abort).status, CompletionStatus::Managed(0));
    assert_eq!(wire.initiator.outstanding(), 1, "the write is never answered");
    let unknown = wire.initiator.manage(1, 0, Some(9999)).expect("logged in");
    assert_eq!(wire.wait(unknown).status, CompletionStatus::Managed(1));
}

#[test]
fn a_command_in_an_aborted_ones_place_is_not_mistaken_for_it() {
    let mut wire = Wire::ready(&target(), config(), 4);
    // Received as one, before the volume is asked for anything.
    let first = wire.initiator.write(0, 0, &[5; 512], 512).expect("window is open");
    let abort = wire.initiator.manage(1, 0, Some(first)).expect("logged in");
    let second = wire.initiator.write(0, 8, &vec![6; 1 << 20], 512).expect("window is open");
    let bytes = std::mem::take(wire.initiator.output());
    wire.connection.receive(&bytes, wire.now);
    assert!(
        wire.connection.next_request().is_none(),
        "one is aborted, of the other data is missing"
    );
    assert_eq!(wire.wait(abort).status, CompletionStatus::Managed(0));
    wire.run();
    assert_eq!(wire.read(8, 1).data, [6; 512]);
    assert_eq!(wire.read(0, 1).data, [0; 512]);
    assert_eq!(wire.connection.outstanding(), 0);
    let _ = second;
}

#[test]
fn a_unit_reset_waits_for_other_sessions_and_tells_them() {
    let target = target();
    let mut one = Wire::ready(&target, config(), 1);
    let mut two =
        Wire::ready(&target, InitiatorConfig { isid: [0x80, 0, 0, 0, 0, 2], ..config() }, 2);
    two.keeps = true;
    let write = two.initiator.write(0, 0, &[5; 512], 512).expect("window is open");
    two.run();
    let reset = one.initiator.manage(5, 0, None).expect("logged in");
    one.run();
    assert!(one.initiator.next_completion().is_none());
    two.connection.tick(two.now);
    two.release();
    one.pass(Duration::from_millis(5));
    assert_eq!(one.wait(reset).status, CompletionStatus::Managed(0));
    assert!(two.initiator.next_completion().is_none(), "the aborted {write} is not answered");
    let task = two.initiator.test_unit_ready(0).expect("window is open");
    assert_eq!(sense(&two.wait(task).status), (6, 0x2903));
}

#[test]
fn damaged_data_fails_its_command_and_damaged_headers_end_the_session() {
    let config = || InitiatorConfig {
        header_digest: DigestChoice::Crc32c,
        data_digest: DigestChoice::Crc32c,
        ..config()
    };
    let mut wire = Wire::ready(&target(), config(), 8);
    wire.keeps = true;
    let task = wire.initiator.write(0, 0, &[5; 512], 512).expect("window is open");
    wire.initiator.output()[60] ^= 1;
    let outcome = wire.wait(task).status;
    assert_eq!(outcome, CompletionStatus::Rejected(2));
    assert!(wire.kept.is_empty(), "damaged data is not written");
    wire.keeps = false;
    assert_eq!(wire.write(0, &[6; 512]), CompletionStatus::Good);
    wire.initiator.write(0, 0, &[5; 512], 512).expect("window is open");
    wire.initiator.output()[20] ^= 1;
    wire.run();
    assert!(wire.connection.is_closing());
    assert_eq!(wire.connection.outstanding(), 0);
}

#[test]
fn the_command_window_bounds_what_is_under_way_and_opens_again() {
    let mut wire = Wire::ready(&target(), config(), 6);
    wire.keeps = true;
    let mut sent = 0;
    while wire.initiator.may_submit() {
        wire.initiator.write(0, sent, &[sent as u8; 512], 512).expect("window is open");
        sent += 1;
        wire.run();
    }
    assert_eq!(sent, 128);
    assert_eq!(wire.initiator.write(0, 0, &[0; 512], 512), Err(InitiatorError::WindowFull));
    assert_eq!(wire.kept.len(), 128);
    wire.release();
    assert!(wire.initiator.may_submit());
    assert_eq!(wire.read(127, 1).data, [127; 512]);
}

#[test]
fn large_writes_share_bounded_memory_and_all_end() {
    let mut wire = Wire::ready(&target(), config(), 6);
    let tasks: Vec<u32> = (0..24u8)
        .map(|number| {
            wire.initiator.write(0, 0, &vec![number; 4 << 20], 512).expect("window is open")
        })
        .collect();
    wire.keeps = true;
    wire.run();
    let held: usize = wire.kept.iter().map(|request| written_bytes(&request.operation)).sum();
    assert!(held <= 32 << 20, "{held} bytes are held");
    let mut ended = 0;
    while ended < tasks.len() {
        wire.release();
        wire.keeps = true;
        wire.run();
        while let Some(completion) = wire.initiator.next_completion() {
            assert_eq!(completion.status, CompletionStatus::Good);
            ended += 1;
        }
    }
}

#[test]
fn output_is_bounded_while_nobody_takes_it() {
    let mut wire = Wire::ready(&target(), config(), 6);
    for number in 0..64 {
        wire.initiator.read(0, number * 16, 8192, 512).expect("window is open");
    }
    let bytes = std::mem::take(wire.initiator.output());
    wire.connection.receive(&bytes, wire.now);
    while let Some(request) = wire.connection.next_request() {
        wire.execute(request);
    }
    assert!(wire.connection.output().len() <= 40 << 20);
    assert!(!wire.connection.wants_input());
    wire.run();
    assert_eq!(wire.initiator.outstanding(), 0);
}

#[test]
fn a_silent_host_is_asked_and_then_closed() {
    let mut wire = Wire::ready(&target(), config(), 6);
    wire.pass(Duration::from_secs(5));
    assert!(!wire.connection.is_closing());
    // The initiator answered the ping; now it does not.
    wire.now += Duration::from_secs(5);
    wire.connection.tick(wire.now);
    assert!(!wire.connection.output().is_empty());
    wire.now += Duration::from_secs(5);
    wire.connection.tick(wire.now);
    assert!(wire.connection.is_closing());
    let mut idle = TargetConnection::new(target(), PortalId(1), Duration::ZERO);
    assert_eq!(idle.next_deadline(), Some(Duration::from_secs(15)));
    idle.tick(Duration::from_secs(15));
    assert!(idle.is_closing(), "a login must come to an end");
}

#[test]
fn a_logout_is_answered_when_the_writes_have_ended() {
    let target = target();
    let mut wire = Wire::ready(&target, config(), 6);
    wire.keeps = true;
    wire.initiator.write(0, 0, &[1; 512], 512).expect("window is open");
    wire.run();
    let logout = wire.initiator.log_out().expect("logged in");
    wire.run();
    assert!(wire.initiator.next_completion().is_none());
    wire.release();
    assert!(wire.connection.is_closing());
    assert_eq!(wire.wait(logout).status, CompletionStatus::LoggedOut(0));
    assert_eq!(target.sessions(), 0);
}

#[test]
fn completing_after_the_end_is_harmless() {
    let mut wire = Wire::ready(&target(), config(), 6);
    wire.keeps = true;
    wire.initiator.write(0, 0, &[1; 512], 512).expect("window is open");
    wire.run();
    wire.connection.disconnected();
    assert_eq!(wire.connection.outstanding(), 1);
    let request = wire.kept.pop_front().expect("kept");
    wire.connection.complete(request.tag, Outcome::Failed(Failure::Aborted));
    wire.connection.complete(request.tag, Outcome::Done);
    assert_eq!(wire.connection.outstanding(), 0);
    assert!(wire.connection.output().is_empty());
}

#[test]
fn a_host_that_is_no_longer_published_is_logged_out() {
    let target = target();
    let mut wire = Wire::ready(&target, config(), 6);
    let mut empty = directory(Authentication::None, Vec::new());
    empty.hosts = HashMap::new();
    target.publish(Arc::new(empty));
    wire.pass(Duration::from_millis(1));
    assert!(wire.initiator.is_asked_to_log_out());
    assert!(wire.connection.is_closing());
}

#[test]
fn a_ping_comes_back() {
    let mut wire = Wire::ready(&target(), config(), 6);
    let task = wire.initiator.ping(b"are you there").expect("window is open");
    assert_eq!(wire.wait(task).data, b"are you there");
}
