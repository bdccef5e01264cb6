//! Access states that a host asks for or that change under it; atomic writes; provisioning.

mod harness;

use harness::*;
use std::sync::Arc;
use voute_iscsi::{
    AluaState, Authentication, CompletionStatus, Failure, LunView, NotReady, Operation, Outcome,
    TargetPortGroup,
};

/// As seen from the first site, which is in this state and the other in that.
fn seen(mine: AluaState, other: AluaState) -> LunView {
    let group = |id, state| TargetPortGroup { id, state, relative_ports: vec![id] };
    let groups = vec![group(1, mine), group(2, other)];
    LunView { alua_state: mine, target_port_groups: groups, ..view(0, VOLUME) }
}

fn wire_on(view: LunView) -> Wire {
    let target = target_with(directory(Authentication::None, vec![view]));
    let mut wire = Wire::new(&target, config(), 3);
    // The one that a new nexus has; TEST UNIT READY would go on to tell the access state.
    let task = wire.initiator.test_unit_ready(0).expect("window is open");
    assert_eq!(sense(&wire.wait(task).status).0, 6);
    wire
}

/// SET TARGET PORT GROUPS of (state, group) pairs.
fn set_groups(wire: &mut Wire, groups: &[(u8, u16)]) -> u32 {
    let mut list = vec![0; 4];
    for (state, group) in groups {
        list.extend_from_slice(&[*state, 0]);
        list.extend_from_slice(&group.to_be_bytes());
    }
    let mut cdb = [0; 16];
    cdb[..2].copy_from_slice(&[0xa4, 0x0a]);
    cdb[6..10].copy_from_slice(&(list.len() as u32).to_be_bytes());
    wire.initiator.command(0, cdb, 0, &list).expect("window is open")
}

const OWNED: (AluaState, AluaState) = (AluaState::ActiveOptimized, AluaState::Standby);
const PEER: (AluaState, AluaState) = (AluaState::Standby, AluaState::ActiveOptimized);

#[test]
fn setting_the_groups_as_they_are_changes_nothing_and_succeeds() {
    for (mine, other) in [OWNED, PEER] {
        let mut wire = wire_on(seen(mine, other));
        wire.keeps = true;
        let active = if mine == AluaState::ActiveOptimized { 1 } else { 2 };
        for groups in [&[(0, active)][..], &[(0, active), (2, 3 - active)], &[(2, 3 - active)], &[]]
        {
            let task = set_groups(&mut wire, groups);
            assert_eq!(wire.wait(task).status, CompletionStatus::Good, "{groups:?}");
        }
        assert!(wire.kept.is_empty());
    }
}

#[test]
fn asking_for_another_active_group_is_a_move_that_the_volumes_server_decides() {
    for (mine, other, wanted) in [(OWNED.0, OWNED.1, 2), (PEER.0, PEER.1, 1)] {
        let mut wire = wire_on(seen(mine, other));
        wire.keeps = true;
        let outcomes =
            [(Outcome::Done, None), (Outcome::Failed(Failure::MoveRefused), Some((4, 0x670a)))];
        for (outcome, expected) in outcomes {
            let task = set_groups(&mut wire, &[(2, 3 - wanted), (0, wanted)]);
            wire.run();
            let request = wire.kept.pop_front().expect("surfaced");
            let Operation::ActivateGroup { group } = request.operation else {
                panic!("{:?}", request.operation)
            };
            assert_eq!(group, wanted);
            wire.connection.complete(request.tag, outcome);
            let status = wire.wait(task).status;
            match expected {
                None => assert_eq!(status, CompletionStatus::Good),
                Some(expected) => assert_eq!(sense(&status), expected),
            }
        }
    }
}

#[test]
fn states_that_no_volume_can_be_in_are_refused() {
    let mut wire = wire_on(seen(OWNED.0, OWNED.1));
    wire.keeps = true;
    for groups in [
        // Nobody, or both; offline; in transition; a group that does not exist.
        &[(2, 1)][..],
        &[(0, 1), (0, 2)],
        &[(0xe, 2)],
        &[(0xf, 2)],
        &[(0, 7)],
        &[(0, 1), (2, 1)],
    ] {
        let task = set_groups(&mut wire, groups);
        assert_eq!(sense(&wire.wait(task).status), (5, 0x2600), "{groups:?}");
    }
    assert!(wire.kept.is_empty());
    let inquiry = wire.initiator.inquiry(0, None).expect("window is open");
    assert_eq!(wire.wait(inquiry).data[5] >> 4 & 3, 3, "TPGS: implicit and explicit");
}

#[test]
fn a_planned_move_is_told_by_attentions_and_path_conditions_alone() {
    let target = target_with(directory(Authentication::None, vec![seen(OWNED.0, OWNED.1)]));
    let mut wire = Wire::ready(&target, config(), 3);
    wire.keeps = true;
    let write = wire.initiator.write(0, 0, &[1; 512], 512).expect("window is open");
    let read = wire.initiator.read(0, 0, 1, 512).expect("window is open");
    wire.run();
    wire.connection.ask_logout(3);
    wire.run();
    assert!(wire.initiator.is_asked_to_log_out());
    // What was under way ends as the mirror has it: the write is through, the read is not.
    let moving = seen(AluaState::Transitioning, AluaState::Transitioning);
    target.publish(Arc::new(directory(Authentication::None, vec![moving])));
    let (first, second) =
        (wire.kept.pop_front().expect("kept"), wire.kept.pop_front().expect("kept"));
    wire.execute(first);
    let moved = Outcome::Failed(Failure::NotReady(NotReady::Transition));
    wire.connection.complete(second.tag, moved);
    assert_eq!(wire.wait(write).status, CompletionStatus::Good);
    assert_eq!(sense(&wire.wait(read).status), (2, 0x040a));
    wire.keeps = false;
    assert_eq!(sense(&wire.read(0, 1).status), (6, 0x2a06));
    assert_eq!(sense(&wire.read(0, 1).status), (2, 0x040a));
    target.publish(Arc::new(directory(Authentication::None, vec![seen(PEER.0, PEER.1)])));
    assert_eq!(sense(&wire.read(0, 1).status), (6, 0x2a06), "each change is told once");
    assert_eq!(sense(&wire.read(0, 1).status), (2, 0x040b));
    // Both changes before the host looks again: one attention.
    for (mine, other) in [(AluaState::Transitioning, AluaState::Transitioning), OWNED] {
        target.publish(Arc::new(directory(Authentication::None, vec![seen(mine, other)])));
        wire.connection.tick(wire.now);
    }
    assert_eq!(sense(&wire.read(0, 1).status), (6, 0x2a06));
    assert_eq!(wire.read(0, 1).data, [1; 512]);
}

fn write_atomic(
    wire: &mut Wire,
    lba: u64,
    blocks: u16,
    boundary: u16,
    data: &[u8],
) -> CompletionStatus {
    let mut cdb = vec![0x9c, 0];
    cdb.extend_from_slice(&lba.to_be_bytes());
    cdb.extend_from_slice(&boundary.to_be_bytes());
    cdb.extend_from_slice(&blocks.to_be_bytes());
    cdb.extend_from_slice(&[0, 0]);
    wire.command(&cdb, 0, data).status
}

#[test]
fn an_atomic_write_is_one_request_of_no_more_than_the_volume_promises() {
    for promised in [1, 8] {
        let mut wire = wire_on(LunView { atomic_blocks: promised, ..view(0, VOLUME) });
        let inquiry = wire.initiator.inquiry(0, Some(0xb0)).expect("window is open");
        assert_eq!(wire.wait(inquiry).data[44..48], promised.to_be_bytes());
        let whole = vec![7; 512 * promised as usize];
        assert_eq!(write_atomic(&mut wire, 16, promised as u16, 0, &whole), CompletionStatus::Good);
        assert_eq!(wire.read(16, promised).data, whole);
        let more = vec![8; whole.len() + 512];
        let refused = write_atomic(&mut wire, 16, promised as u16 + 1, 0, &more);
        assert_eq!(sense(&refused), (5, 0x2400));
        // Not all of the data, or more of it; a boundary; beyond the end.
        for (blocks, boundary, data) in [(1, 0, &[9; 256][..]), (1, 0, &more), (1, 1, &[9; 512])] {
            let refused = write_atomic(&mut wire, 16, blocks, boundary, data);
            assert_eq!(sense(&refused), (5, 0x2400));
        }
        assert_eq!(sense(&write_atomic(&mut wire, BLOCKS, 1, 0, &[9; 512])), (5, 0x2100));
        // No longer than promised, but from one unit into the next.
        if promised > 1 {
            let crossing = write_atomic(&mut wire, 23, 2, 0, &[9; 1024]);
            assert_eq!(sense(&crossing), (5, 0x2400));
        }
        assert_eq!(wire.read(16, promised).data, whole);
    }
}

#[test]
fn an_allocation_is_told_from_the_block_that_was_asked_for() {
    let mut wire = wire_on(view(0, VOLUME));
    wire.keeps = true;
    let mut cdb = [0; 16];
    (cdb[0], cdb[1], cdb[9], cdb[13]) = (0x9e, 0x12, 9, 24);
    let task = wire.initiator.command(0, cdb, 24, &[]).expect("window is open");
    wire.run();
    let request = wire.kept.pop_front().expect("surfaced");
    // A volume that knows of no allocation says so: all is mapped.
    wire.connection.complete(request.tag, Outcome::Done);
    let data = wire.wait(task).data;
    assert_eq!(data[8..16], 9u64.to_be_bytes());
    assert_eq!((&data[16..20], data[20]), (&(BLOCKS as u32 - 9).to_be_bytes()[..], 0));
}

/// What GET LBA STATUS tells of the first blocks.
fn first_status(wire: &mut Wire) -> u8 {
    wire.command(&[0x9e, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 24, 0, 0], 24, &[]).data[20]
}

#[test]
fn provisioning_tells_whether_there_is_room_for_every_block() {
    for (thin, page, unmapped) in [(true, [0, 0xe4, 2], 1), (false, [0, 0xe6, 1], 2)] {
        let mut wire = wire_on(LunView { thin, ..view(0, VOLUME) });
        let inquiry = wire.initiator.inquiry(0, Some(0xb2)).expect("window is open");
        assert_eq!(wire.wait(inquiry).data[4..7], page);
        assert_eq!(wire.write(0, &[1; 512]), CompletionStatus::Good);
        assert_eq!(first_status(&mut wire), 0);
        let mut list = vec![0, 22, 0, 16, 0, 0, 0, 0];
        list.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0]);
        // ANCHOR asks that room stays set aside.
        let anchored = wire.command(&[0x42, 1, 0, 0, 0, 0, 0, 0, 24, 0], 0, &list).status;
        if thin {
            assert_eq!(sense(&anchored), (5, 0x2400));
            wire.command(&[0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], 0, &list);
        } else {
            assert_eq!(anchored, CompletionStatus::Good);
        }
        assert_eq!(first_status(&mut wire), unmapped);
        assert_eq!(wire.read(0, 1).data, [0; 512]);
    }
}

#[test]
fn a_pattern_is_written_even_where_room_may_be_freed() {
    let mut wire = wire_on(view(0, VOLUME));
    let same = [0x41, 0x08, 0, 0, 0, 0, 0, 0, 4, 0];
    assert_eq!(wire.command(&same, 0, &[0xff; 512]).status, CompletionStatus::Good);
    assert_eq!(wire.read(0, 4).data, [0xff; 2048]);
    assert_eq!(wire.command(&same, 0, &[0; 512]).status, CompletionStatus::Good);
    assert_eq!((wire.read(0, 4).data, first_status(&mut wire)), (vec![0; 2048], 1));
}

#[test]
fn a_write_same_of_no_number_of_blocks_goes_to_the_end() {
    let (mut wire, from) = (wire_on(view(0, VOLUME)), BLOCKS - 8);
    let same = |flags: u8, lba: u64| {
        let [.., a, b, c, d] = lba.to_be_bytes();
        [0x41, flags, a, b, c, d, 0, 0, 0, 0]
    };
    assert_eq!(wire.command(&same(0, from), 0, &[0xa6; 512]).status, CompletionStatus::Good);
    assert_eq!(wire.read(from, 8).data, [0xa6; 8 * 512]);
    // With UNMAP it means to free the rest, whatever block comes along (decision 0009).
    assert_eq!(wire.command(&same(8, from + 4), 0, &[0xff; 512]).status, CompletionStatus::Good);
    assert_eq!(wire.read(from + 4, 4).data, [0; 4 * 512]);
    assert_eq!(wire.read(from, 4).data, [0xa6; 4 * 512]);
    let beyond = wire.command(&same(0, BLOCKS), 0, &[0; 512]).status;
    assert_eq!(sense(&beyond), (5, 0x2100));
}

#[test]
fn larger_physical_blocks_are_told() {
    for (physical, exponent) in [(512, 0), (4096, 3)] {
        let mut wire = wire_on(LunView { physical_block_size: physical, ..view(0, VOLUME) });
        let capacity =
            wire.command(&[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0], 32, &[]);
        assert_eq!(capacity.data[13], exponent);
    }
}
