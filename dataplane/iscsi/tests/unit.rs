//! The logical unit as a host sees it: access states, attentions, reservations, provisioning.

mod harness;

use harness::*;
use std::sync::Arc;
use voute_iscsi::{
    AluaState, Authentication, CompletionStatus, Failure, InitiatorConfig, LunView, NotReady,
    Outcome, Target, TargetConfig, VolumeKey, parse_capacity,
};

fn publish(target: &Target, luns: Vec<LunView>) {
    target.publish(Arc::new(directory(Authentication::None, luns)));
}

#[test]
fn a_path_that_does_not_serve_refuses_by_a_path_condition_only() {
    let target = target();
    let mut wire = Wire::ready(&target, config(), 2);
    for (state, code) in [
        (AluaState::Transitioning, 0x040a),
        (AluaState::Standby, 0x040b),
        (AluaState::Unavailable, 0x040c),
    ] {
        publish(&target, vec![LunView { alua_state: state, ..view(0, VOLUME) }]);
        let changed = wire.read(0, 1).status;
        assert_eq!(sense(&changed), (6, 0x2a06), "the change is told once");
        for status in [wire.read(0, 1).status, wire.write(0, &[0; 512])] {
            assert_eq!(sense(&status), (2, code));
            assert!(status.is_path_condition());
        }
        // What a host needs to see the path stays answered.
        let tasks = [
            wire.initiator.inquiry(0, Some(0x83)),
            wire.initiator.report_target_port_groups(0),
            wire.initiator.read_capacity(0),
            wire.initiator.report_luns(),
        ];
        for task in tasks {
            assert_eq!(wire.wait(task.expect("window is open")).status, CompletionStatus::Good);
        }
    }
    publish(&target, vec![view(0, VOLUME)]);
    wire.clear_attentions();
    assert_eq!(wire.write(0, &[1; 512]), CompletionStatus::Good);
}

#[test]
fn a_failure_of_the_volume_reaches_the_host_as_what_it_is() {
    let mut wire = Wire::ready(&target(), config(), 2);
    wire.keeps = true;
    for (failure, expected) in [
        (Failure::NotReady(NotReady::Transition), (2, 0x040a)),
        (Failure::NotReady(NotReady::Standby), (2, 0x040b)),
        (Failure::NotReady(NotReady::Unavailable), (2, 0x040c)),
        (Failure::OutOfSpace, (7, 0x2707)),
        (Failure::WriteProtected, (7, 0x2700)),
        (Failure::UnreadableMedium { lba: 5 }, (3, 0x1100)),
        (Failure::UnwritableMedium { lba: 5 }, (3, 0x0c00)),
        (Failure::OutOfRange, (5, 0x2100)),
        (Failure::Unsupported, (5, 0x2000)),
        (Failure::Aborted, (0xb, 0x0000)),
    ] {
        let task = wire.initiator.write(0, 0, &[0; 512], 512).expect("window is open");
        wire.run();
        let request = wire.kept.pop_front().expect("surfaced");
        wire.connection.complete(request.tag, Outcome::Failed(failure));
        assert_eq!(sense(&wire.wait(task).status), expected, "{failure:?}");
    }
    let task = wire.initiator.write(0, 0, &[0; 512], 512).expect("window is open");
    wire.run();
    let request = wire.kept.pop_front().expect("surfaced");
    wire.connection.complete(request.tag, Outcome::Failed(Failure::Busy));
    assert_eq!(wire.wait(task).status, CompletionStatus::Status(8));
}

#[test]
fn growth_and_new_luns_are_told_by_attentions() {
    let target = target();
    let mut wire = Wire::ready(&target, config(), 2);
    publish(&target, vec![LunView { blocks: BLOCKS * 2, ..view(0, VOLUME) }]);
    assert_eq!(sense(&wire.read(0, 1).status), (6, 0x2a09));
    let task = wire.initiator.read_capacity(0).expect("window is open");
    assert_eq!(parse_capacity(&wire.wait(task).data), Some((BLOCKS * 2, 512)));
    publish(
        &target,
        vec![LunView { blocks: BLOCKS * 2, ..view(0, VOLUME) }, view(300, VolumeKey(8))],
    );
    // INQUIRY and REPORT LUNS neither report nor clear it.
    let task = wire.initiator.report_luns().expect("window is open");
    let luns = wire.wait(task).data;
    assert_eq!(luns[..4], 16u32.to_be_bytes());
    assert_eq!(luns[8..24], [0, 0, 0, 0, 0, 0, 0, 0, 0x41, 0x2c, 0, 0, 0, 0, 0, 0]);
    assert_eq!(sense(&wire.read(0, 1).status), (6, 0x3f0e));
    assert_eq!(wire.read(0, 1).status, CompletionStatus::Good);
    let task = wire.initiator.test_unit_ready(300).expect("window is open");
    assert_eq!(sense(&wire.wait(task).status), (6, 0x2900));
    publish(&target, vec![view(300, VolumeKey(8))]);
    assert_eq!(sense(&wire.read(0, 1).status), (5, 0x2500));
}

#[test]
fn lun_zero_answers_even_if_nothing_is_there() {
    let target = target_with(directory(Authentication::None, Vec::new()));
    let mut wire = Wire::new(&target, config(), 2);
    let task = wire.initiator.inquiry(0, None).expect("window is open");
    assert_eq!(wire.wait(task).data[0], 0x7f);
    let task = wire.initiator.report_luns().expect("window is open");
    assert_eq!(wire.wait(task).data, [0; 8]);
    assert_eq!(sense(&wire.read(0, 1).status), (5, 0x2500));
}

#[test]
fn both_sites_answer_as_one_device() {
    let target = target();
    let mut wire = Wire::ready(&target, config(), 2);
    let task = wire.initiator.inquiry(0, Some(0x83)).expect("window is open");
    let page = wire.wait(task).data;
    assert_eq!(page[4..8], [0x01, 0x03, 0, 16]);
    assert_eq!(page[8..24], view(0, VOLUME).naa);
    let task = wire.initiator.report_target_port_groups(0).expect("window is open");
    let groups = wire.wait(task).data;
    assert_eq!(groups[..4], 24u32.to_be_bytes());
    assert_eq!((groups[4], &groups[6..8], groups[15]), (0, &[0, 1][..], 1));
    assert_eq!((groups[16], &groups[18..20], groups[27]), (2, &[0, 2][..], 2));
}

#[test]
fn the_identification_page_stays_within_what_one_length_byte_can_say() {
    // Names as a cluster gives them: 57 characters of target, 32 of serial.
    let name = format!("iqn.2026-11.io.voute:{}", "01234567-89ab-cdef-0123-456789abcdef");
    let unit = LunView { serial: "0123456789abcdef".repeat(2), ..view(0, VOLUME) };
    let target = Target::new(TargetConfig { name: name.clone(), alias: None, seed: [9; 32] });
    target.publish(Arc::new(directory(Authentication::None, vec![unit])));
    let mut wire = Wire::ready(&target, InitiatorConfig::new(HOST, Some(&name)), 2);
    let task = wire.initiator.inquiry(0, Some(0x83)).expect("window is open");
    let page = wire.wait(task).data;
    assert_eq!(usize::from(u16::from_be_bytes([page[2], page[3]])), page.len() - 4);
    assert!(page.len() <= 252, "{} bytes", page.len());
}

#[test]
fn compare_and_write_writes_only_over_what_is_expected() {
    let mut wire = Wire::ready(&target(), config(), 2);
    let mut cdb = [0u8; 16];
    cdb[0] = 0x89;
    cdb[13] = 1;
    let pair = |old: u8, new: u8| [vec![old; 512], vec![new; 512]].concat();
    assert_eq!(wire.command(&cdb, 0, &pair(0, 7)).status, CompletionStatus::Good);
    let mut other = pair(7, 9);
    other[300] = 8;
    let expected =
        CompletionStatus::CheckCondition { key: 0xe, code: 0x1d00, information: Some(300) };
    assert_eq!(wire.command(&cdb, 0, &other).status, expected);
    assert_eq!(wire.read(0, 1).data, [7; 512]);
    cdb[13] = 2;
    assert_eq!(sense(&wire.command(&cdb, 0, &[0; 2048]).status), (5, 0x2400));
}

#[test]
fn unmapped_blocks_read_as_zero_and_are_told() {
    let mut wire = Wire::ready(&target(), config(), 2);
    assert_eq!(wire.write(0, &[1; 512 * 32]), CompletionStatus::Good);
    let mut list = vec![0, 22, 0, 16, 0, 0, 0, 0];
    list.extend_from_slice(&8u64.to_be_bytes());
    list.extend_from_slice(&[0, 0, 0, 8, 0, 0, 0, 0]);
    assert_eq!(
        wire.command(&[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], 0, &list).status,
        CompletionStatus::Good
    );
    assert_eq!(wire.read(8, 8).data, [0; 512 * 8]);
    assert_eq!(wire.read(7, 1).data, [1; 512]);
    let mut cdb = [0u8; 16];
    cdb[..2].copy_from_slice(&[0x9e, 0x12]);
    cdb[9] = 8;
    cdb[13] = 24;
    let status = wire.command(&cdb, 24, &[]).data;
    assert_eq!(status[8..21], [0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 8, 1]);
}

#[test]
fn a_read_only_mapping_refuses_writes_alone() {
    let target = target_with(directory(
        Authentication::None,
        vec![LunView { read_only: true, ..view(0, VOLUME) }],
    ));
    let mut wire = Wire::ready(&target, config(), 2);
    assert_eq!(sense(&wire.write(0, &[1; 512])), (7, 0x2700));
    assert_eq!(wire.read(0, 1).status, CompletionStatus::Good);
}

#[test]
fn a_short_or_long_expected_length_is_told_by_the_residual() {
    let mut wire = Wire::ready(&target(), config(), 2);
    let read = [0x28, 0, 0, 0, 0, 0, 0, 0, 2, 0];
    let short = wire.command(&read, 512, &[]);
    assert_eq!((short.data.len(), short.residual), (512, -512));
    let long = wire.command(&read, 4096, &[]);
    assert_eq!((long.data.len(), long.residual), (1024, 3072));
    let write = [0x2a, 0, 0, 0, 0, 0, 0, 0, 2, 0];
    let short = wire.command(&write, 0, &[1; 512]);
    assert_eq!((short.status, short.residual), (CompletionStatus::Good, -512));
    let long = wire.command(&write, 0, &[1; 2048]);
    assert_eq!((long.status, long.residual), (CompletionStatus::Good, 1024));
}

fn reserve(wire: &mut Wire, action: u8, kind: u8, key: u64, action_key: u64) -> u32 {
    let mut list = [key.to_be_bytes(), action_key.to_be_bytes()].concat();
    list.resize(24, 0);
    let mut cdb = [0; 16];
    cdb[..3].copy_from_slice(&[0x5f, action, kind]);
    cdb[8] = 24;
    wire.initiator.command(0, cdb, 0, &list).expect("window is open")
}

fn other() -> InitiatorConfig {
    InitiatorConfig { isid: [0x80, 0, 0, 0, 0, 2], ..config() }
}

/// Two sessions on one volume, registered with the keys 1 and 2.
fn registered() -> [Wire; 2] {
    let (target, disk) = (target(), Arc::new(Disk::new(512, BLOCKS as usize)));
    let mut wires =
        [Wire::ready_on(&target, config(), 1, &disk), Wire::ready_on(&target, other(), 2, &disk)];
    for (wire, key) in wires.iter_mut().zip(1..) {
        let task = reserve(wire, 0, 0, 0, key);
        assert_eq!(wire.wait(task).status, CompletionStatus::Good);
    }
    wires
}

#[test]
fn what_a_preempted_session_has_not_yet_sent_to_the_volume_never_gets_there() {
    let [mut one, mut two] = registered();
    let task = reserve(&mut two, 1, 5, 2, 0);
    assert_eq!(two.wait(task).status, CompletionStatus::Good);
    two.keeps = true;
    let aborted = two.initiator.write(0, 0, &[1; 512], 512).expect("window is open");
    two.run();
    // One more write is received and planned, but not yet with its volume.
    two.initiator.write(0, 1, &[1; 512], 512).expect("window is open");
    let bytes = std::mem::take(two.initiator.output());
    two.connection.receive(&bytes, two.now);

    let preempt = reserve(&mut one, 5, 5, 1, 2);
    assert_eq!(one.wait(preempt).status, CompletionStatus::Good);
    two.run();
    assert_eq!(two.kept.len(), 1, "the write that was not yet surfaced never is");
    two.release();
    let unanswered = std::iter::from_fn(|| two.initiator.next_completion());
    assert!(unanswered.into_iter().all(|completion| completion.task != aborted), "it was aborted");
    let task = two.initiator.test_unit_ready(0).expect("window is open");
    assert_eq!(sense(&two.wait(task).status), (6, 0x2a05));
    assert_eq!(two.write(0, &[2; 512]), CompletionStatus::Status(0x18));
    assert_eq!(one.write(0, &[3; 512]), CompletionStatus::Good);
}

#[test]
fn a_legacy_reservation_ends_with_its_session_or_a_reset() {
    let (target, disk) = (target(), Arc::new(Disk::new(512, BLOCKS as usize)));
    let mut one = Wire::ready_on(&target, config(), 1, &disk);
    let mut two = Wire::ready_on(&target, other(), 2, &disk);
    let reserve = [0x16, 0, 0, 0, 0, 0];
    assert_eq!(one.command(&reserve, 0, &[]).status, CompletionStatus::Good);
    assert_eq!(two.read(0, 1).status, CompletionStatus::Status(0x18));
    assert_eq!(two.command(&reserve, 0, &[]).status, CompletionStatus::Status(0x18));
    let reset = two.initiator.manage(5, 0, None).expect("window is open");
    two.wait(reset);
    two.clear_attentions();
    assert_eq!(two.read(0, 1).status, CompletionStatus::Good);
    one.clear_attentions();
    assert_eq!(one.command(&reserve, 0, &[]).status, CompletionStatus::Good);
    one.connection.disconnected();
    assert_eq!(two.read(0, 1).status, CompletionStatus::Good);
}

#[test]
fn a_reservation_that_comes_too_late_for_its_session_ends_with_it() {
    let (target, disk) = (target(), Arc::new(Disk::new(512, BLOCKS as usize)));
    let mut one = Wire::ready_on(&target, config(), 1, &disk);
    let mut two = Wire::ready_on(&target, other(), 2, &disk);
    one.keeps = true;
    let mut cdb = [0; 16];
    cdb[0] = 0x16;
    one.initiator.command(0, cdb, 0, &[]).expect("window is open");
    one.run();
    one.connection.disconnected();
    let request = one.kept.pop_front().expect("surfaced");
    one.execute(request);
    assert_eq!(two.read(0, 1).status, CompletionStatus::Good);
}

fn reserve_in(wire: &mut Wire, action: u8) -> Vec<u8> {
    let answer = wire.command(&[0x5e, action, 0, 0, 0, 0, 0, 4, 0, 0], 1024, &[]);
    assert_eq!(answer.status, CompletionStatus::Good);
    answer.data
}

#[test]
fn persistent_reserve_in_tells_what_was_asked_for() {
    let [mut one, mut two] = registered();
    assert_eq!(reserve_in(&mut one, 2), [0, 8, 0x0d, 0x80, 0xea, 1, 0, 0]);
    let mut keys = vec![0, 0, 0, 2, 0, 0, 0, 16];
    keys.extend([0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2]);
    assert_eq!(reserve_in(&mut two, 0), keys);
    assert_eq!(reserve_in(&mut two, 1), [0, 0, 0, 2, 0, 0, 0, 0]);
    let task = reserve(&mut one, 1, 6, 1, 0);
    assert_eq!(one.wait(task).status, CompletionStatus::Good);
    let held = reserve_in(&mut two, 1);
    assert_eq!(held[4..], [0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 6, 0, 0]);
    let full = reserve_in(&mut two, 3);
    let text = String::from_utf8_lossy(&full).into_owned();
    assert!(text.contains(&format!("{HOST},i,0x800000000002")), "{text}");
    assert_eq!((full[8 + 12], full[8 + 13], full[8 + 19]), (1, 6, 1), "holder, type, port");
    // Persistence is told where it was asked for.
    let mut list = [2u64.to_be_bytes(), 3u64.to_be_bytes()].concat();
    list.extend([0, 0, 0, 0, 1, 0, 0, 0]);
    let status = two.command(&[0x5f, 0, 0, 0, 0, 0, 0, 0, 24, 0], 0, &list).status;
    assert_eq!(status, CompletionStatus::Good);
    assert_eq!(reserve_in(&mut one, 2)[3], 0x81);
}

#[test]
fn a_reservation_is_moved_to_the_port_that_is_named() {
    let [mut one, mut two] = registered();
    let task = reserve(&mut one, 1, 1, 1, 0);
    assert_eq!(one.wait(task).status, CompletionStatus::Good);
    assert_eq!(two.write(0, &[1; 512]), CompletionStatus::Status(0x18));
    let mut name = format!("{HOST},i,0x800000000002").into_bytes();
    name.resize((name.len() + 1).next_multiple_of(4), 0);
    let mut list = [1u64.to_be_bytes(), 9u64.to_be_bytes()].concat();
    list.extend([0, 0, 0, 1]);
    list.extend((name.len() as u32 + 4).to_be_bytes());
    list.extend([0x45, 0, 0, name.len() as u8]);
    list.extend(name);
    let cdb = [0x5f, 7, 0, 0, 0, 0, 0, 0, list.len() as u8, 0];
    assert_eq!(one.command(&cdb, 0, &list).status, CompletionStatus::Good);
    assert_eq!(two.write(0, &[1; 512]), CompletionStatus::Good);
    assert_eq!(one.write(0, &[1; 512]), CompletionStatus::Status(0x18));
    assert_eq!(sense(&two.command(&cdb[..9], 0, &[]).status), (5, 0x1a00), "a list cut short");
}

#[test]
fn ports_that_are_named_are_registered_with_the_asker() {
    let (target, disk) = (target(), Arc::new(Disk::new(512, BLOCKS as usize)));
    let mut one = Wire::ready_on(&target, config(), 1, &disk);
    let mut two = Wire::ready_on(&target, other(), 2, &disk);
    let mut name = format!("{HOST},i,0x800000000002").into_bytes();
    name.resize((name.len() + 1).next_multiple_of(4), 0);
    let mut list = [0u64.to_be_bytes(), 7u64.to_be_bytes()].concat();
    list.extend([0, 0, 0, 0, 8, 0, 0, 0]);
    list.extend((name.len() as u32 + 4).to_be_bytes());
    list.extend([0x45, 0, 0, name.len() as u8]);
    list.extend(name);
    let cdb = [0x5f, 0, 0, 0, 0, 0, 0, 0, list.len() as u8, 0];
    assert_eq!(one.command(&cdb, 0, &list).status, CompletionStatus::Good);
    let task = reserve(&mut two, 1, 3, 7, 0);
    assert_eq!(two.wait(task).status, CompletionStatus::Good, "it is registered already");
    assert_eq!(one.read(0, 1).status, CompletionStatus::Status(0x18));
}

#[test]
fn every_command_that_is_reported_is_answered_and_no_other() {
    let mut wire = Wire::ready(&target(), config(), 2);
    let mut cdb = [0u8; 12];
    cdb[..2].copy_from_slice(&[0xa3, 0x0c]);
    cdb[6..10].copy_from_slice(&8192u32.to_be_bytes());
    let report = wire.command(&cdb, 8192, &[]).data;
    let reported: Vec<(u8, Option<u8>)> = report[4..]
        .chunks_exact(8)
        .map(|entry| (entry[0], (entry[5] & 1 != 0).then_some(entry[3])))
        .collect();
    assert!(reported.len() > 40);
    for opcode in 0..=255u8 {
        let actions: Vec<Option<u8>> = reported
            .iter()
            .filter(|(code, _)| *code == opcode)
            .map(|(_, action)| *action)
            .collect();
        if actions.is_empty() {
            let mut cdb = [0; 16];
            cdb[0] = opcode;
            assert_eq!(sense(&wire.command(&cdb, 0, &[]).status), (5, 0x2000), "{opcode:#04x}");
        }
        for action in actions {
            let mut cdb = [0; 16];
            cdb[..2].copy_from_slice(&[opcode, action.unwrap_or(0)]);
            let status = wire.command(&cdb, 0, &[]).status;
            let is_unknown =
                matches!(status, CompletionStatus::CheckCondition { code: 0x2000, .. });
            assert!(!is_unknown, "{opcode:#04x}: {status:?}");
            wire.clear_attentions();
        }
    }
}

#[test]
fn a_path_on_standby_passes_reservations_on_and_nothing_else() {
    let target = target();
    let mut wire = Wire::ready(&target, config(), 2);
    wire.keeps = true;
    let mut report = [0; 16];
    (report[0], report[8]) = (0x5e, 0xff);
    for (state, refused) in [
        (AluaState::Standby, None),
        (AluaState::Transitioning, Some(0x040a)),
        (AluaState::Unavailable, Some(0x040c)),
    ] {
        publish(&target, vec![LunView { alua_state: state, ..view(0, VOLUME) }]);
        wire.clear_attentions();
        let task = wire.initiator.command(0, report, 255, &[]).expect("window is open");
        match refused {
            Some(code) => assert_eq!(sense(&wire.wait(task).status), (2, code)),
            None => {
                wire.run();
                let request = wire.kept.pop_front().expect("to the volume's owner");
                wire.connection.complete(request.tag, Outcome::Reservations(Arc::default()));
                assert_eq!(wire.wait(task).status, CompletionStatus::Good);
            }
        }
        let mut reserve = [0; 16];
        reserve[0] = 0x16;
        let task = wire.initiator.command(0, reserve, 0, &[]).expect("window is open");
        assert_eq!(sense(&wire.wait(task).status).0, 2, "RESERVE is of the active path's session");
    }
}
