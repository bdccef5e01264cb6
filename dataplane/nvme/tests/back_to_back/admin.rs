use std::time::Duration;

use voute_nvme::*;

use crate::world::*;

fn admin() -> (Disk, Controller) {
    let mut disk = Disk::new();
    let controller = enabled_controller(&target(), &mut disk, options(SUBSYSTEM));
    (disk, controller)
}

fn discovery() -> (Disk, Controller) {
    let mut disk = Disk::new();
    let controller = enabled_controller(&target(), &mut disk, options(DISCOVERY_NQN));
    (disk, controller)
}

fn text(data: &[u8]) -> &str {
    std::str::from_utf8(data).expect("text").trim_end_matches(['\0', ' '])
}

#[test]
fn properties_say_what_the_controller_can() {
    let mut disk = Disk::new();
    let host = InitiatorConnection::connect_admin(options(SUBSYSTEM), Duration::ZERO);
    let mut wire = Wire::new(&target(), host, Duration::ZERO);
    wire.connected(&mut disk);
    let early = wire.ask(&mut disk, Command::identify(1, 0));
    assert_eq!(early.status, Status::command_sequence_error(), "not before CC.EN");
    let capabilities = wire.ask(&mut disk, Command::property_get(0, true)).succeeded();
    assert_eq!(capabilities.dw0 & 0xFFFF, 255, "MQES");
    assert_eq!(
        capabilities.dw1 & (1 << 5 | 1 << 11),
        1 << 5 | 1 << 11,
        "CSS: NVM, and command sets selectable"
    );
    assert_eq!(wire.ask(&mut disk, Command::property_get(8, false)).succeeded().dw0, 0x0002_0000);
    assert_eq!(wire.ask(&mut disk, Command::property_get(0x1C, false)).succeeded().dw0, 0);
    for (value, status) in [(0x0046_0061, 1), (0, 0), (0x0046_0001, 1), (0, 0), (0x0044_0001, 2)] {
        wire.ask(&mut disk, Command::property_set(0x14, value)).succeeded();
        assert_eq!(wire.ask(&mut disk, Command::property_get(0x14, false)).succeeded().dw0, value);
        assert_eq!(
            wire.ask(&mut disk, Command::property_get(0x1C, false)).succeeded().dw0,
            status,
            "{value:x}"
        );
    }
    for wrong in [
        Command::property_get(0, false),
        Command::property_get(0x20, true),
        Command::property_set(0x20, 0x4E56_4D65),
        Command::property_set(8, 1),
    ] {
        assert_eq!(wire.ask(&mut disk, wrong).status, Status::invalid_field());
    }
}

#[test]
fn identify_controller_satisfies_a_linux_host() {
    let (mut disk, mut controller) = admin();
    let id = controller.admin.ask(&mut disk, Command::identify(1, 0)).succeeded();
    assert_eq!(text(&id.data[4..24]), "VOUTE0001");
    assert_eq!(text(&id.data[24..64]), "Voute");
    assert_eq!(id.data[76] & 0b1011, 0b1011, "CMIC: ports, controllers, ANA");
    assert_eq!(4096 << id.data[77], HOST_TRANSFER_MAX, "MDTS");
    assert_eq!(id.u16_at(78), controller.id, "Linux compares it with Connect's answer");
    assert_eq!(id.u32_at(80), 0x0002_0000);
    assert_eq!(id.u32_at(92), 1 << 8 | 1 << 11, "OAES: namespaces, ANA");
    assert_eq!(id.u32_at(96) & 1, 1, "CTRATT: 128-bit host id");
    assert_eq!(id.data[111], 1, "CNTRLTYPE: I/O");
    assert_ne!(id.u16_at(320), 0, "KAS: Linux refuses fabrics controllers without");
    assert_eq!((id.data[342], id.data[343]), (10, 0x1F), "ANATT, ANACAP");
    let (groups, namespaces, highest) = (id.u32_at(348), id.u32_at(540), id.u32_at(516));
    assert!(
        namespaces > 0 && namespaces <= highest,
        "MNAN in 1..=NN, else Linux disables multipath"
    );
    let log = 16 + groups as usize * 32 + namespaces as usize * 4;
    assert!(log <= HOST_TRANSFER_MAX, "an ANA log over MDTS makes Linux disable ANA");
    assert!(id.u32_at(344) >= groups, "ANAGRPMAX");
    assert_eq!((id.data[512], id.data[513]), (0x66, 0x44), "SQES, CQES");
    assert_eq!(
        id.u16_at(520),
        0b1010_1101,
        "ONCS: compare, DSM, write zeroes, reservations, verify"
    );
    assert_eq!((id.u16_at(522), id.data[525], id.u16_at(532)), (1, 4, 0), "FUSES, VWC, ACWU");
    assert_eq!(id.data[260], 0b011, "FRMW: one read-only slot");
    assert_eq!(id.u32_at(536) & 0b11, 1, "SGLS");
    assert_eq!(text(&id.data[768..1024]), SUBSYSTEM);
    assert_eq!(id.u32_at(1792) * 16, 64 + (16 << 10), "IOCCSZ");
    assert_eq!((id.u32_at(1796), id.u16_at(1800)), (1, 0), "IORCSZ, ICDOFF");
    assert!(id.u16_at(514) >= 128, "MAXCMD");
}

#[test]
fn both_nodes_answer_as_one_subsystem() {
    let mut answers = Vec::new();
    for (controller_min, controller_max) in [(1, 0x7FFF), (0x8000, 0xFFEF)] {
        let config = TargetConfig { controller_min, controller_max, ..TargetConfig::default() };
        let target = Target::new(config).expect("sound");
        target.publish(directory(vec![namespace(1)]));
        let mut disk = Disk::new();
        let mut controller = enabled_controller(&target, &mut disk, options(SUBSYSTEM));
        let mut id = controller.admin.ask(&mut disk, Command::identify(1, 0)).succeeded().data;
        assert_eq!(id[78..80], controller_min.to_le_bytes());
        id[78..80].fill(0);
        let namespace = controller.admin.ask(&mut disk, Command::identify(0, 1)).succeeded().data;
        let descriptors = controller.admin.ask(&mut disk, Command::identify(3, 1)).succeeded().data;
        answers.push((id, namespace, descriptors));
    }
    assert!(answers[0] == answers[1]);
}

#[test]
fn identify_describes_namespaces() {
    let target = target();
    let large = NamespaceView { block_size: 4096, ana_group: 77, read_only: true, ..namespace(9) };
    target.publish(directory(vec![namespace(4), large]));
    let mut disk = Disk::new();
    let mut controller = enabled_controller(&target, &mut disk, options(SUBSYSTEM));
    let admin = &mut controller.admin;
    let list = admin.ask(&mut disk, Command::identify(2, 0)).succeeded();
    assert_eq!([list.u32_at(0), list.u32_at(4), list.u32_at(8)], [4, 9, 0]);
    let list = admin.ask(&mut disk, Command::identify(7, 4)).succeeded();
    assert_eq!([list.u32_at(0), list.u32_at(4)], [9, 0]);

    let small = admin.ask(&mut disk, Command::identify(0, 4)).succeeded();
    assert_eq!([small.u64_at(0), small.u64_at(8), small.u64_at(16)], [BLOCKS; 3]);
    assert_eq!((small.data[30], small.data[33], small.u32_at(92), small.data[99]), (1, 9, 4, 0));
    assert_eq!((small.data[104..120].to_vec(), small.data[130]), (vec![0x84; 16], 9));
    assert_eq!(small.u16_at(68), 7, "NPDG: 4 KiB in 512-byte blocks");
    let large = admin.ask(&mut disk, Command::identify(0, 9)).succeeded();
    assert_eq!(
        (large.data[130], large.u32_at(92), large.data[99], large.u16_at(68)),
        (12, 77, 1, 0)
    );

    let names = admin.ask(&mut disk, Command::identify(3, 4)).succeeded();
    // EUI-64: FNV-1a of the UUID, locally administered; the same in the other structure.
    let mut expected = vec![1, 8, 0, 0];
    expected.extend([226, 22, 216, 129, 20, 215, 212, 165]);
    assert_eq!(small.data[120..128], expected[4..]);
    expected.extend([2, 16, 0, 0]);
    expected.extend([0x84; 16]);
    expected.extend([3, 16, 0, 0]);
    expected.extend([4; 16]);
    expected.extend([4, 1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(names.data[..expected.len()], expected);

    let independent = admin.ask(&mut disk, Command::identify(8, 9)).succeeded();
    assert_eq!(
        (independent.data[1], independent.u32_at(4), independent.data[8], independent.data[14]),
        (1, 77, 1, 1)
    );
    assert_eq!(
        admin.ask(&mut disk, Command::identify(0x1C, 0)).succeeded().data[..8],
        [1, 0, 0, 0, 0, 0, 0, 0]
    );
    for zeroed in [Command::identify(5, 4), Command::identify(6, 0), Command::identify(0, 5)] {
        assert_eq!(admin.ask(&mut disk, zeroed).succeeded().data, vec![0; 4096]);
    }
    for (command, status) in [
        (Command::identify(3, 5), Status::invalid_namespace()),
        (Command::identify(0, 0), Status::invalid_namespace()),
        (Command::identify(0, u32::MAX), Status::invalid_namespace()),
        (Command::identify(2, u32::MAX), Status::invalid_namespace()),
        (Command::identify(0x77, 0), Status::invalid_field()),
        (
            Command { dwords: [6, 2 << 24, 0, 0, 0, 0], ..Command::identify(6, 0) },
            Status::invalid_command_set(),
        ),
    ] {
        assert_eq!(admin.ask(&mut disk, command).status, status);
    }
}

#[test]
fn log_pages_have_their_shapes() {
    let (mut disk, mut controller) = admin();
    let admin = &mut controller.admin;
    let supported = admin.ask(&mut disk, Command::log_page(0, 0, 1024)).succeeded();
    let pages: Vec<usize> = (0..256).filter(|page| supported.u32_at(page * 4) != 0).collect();
    assert_eq!(pages, [0, 1, 2, 3, 4, 5, 0x0C, 0x12, 0x80]);
    for (page, length) in [(1, 64), (2, 512), (3, 512), (4, 4096), (5, 4096), (0x0C, 4096)] {
        assert_eq!(
            admin.ask(&mut disk, Command::log_page(page, 0, length)).succeeded().data.len(),
            length as usize
        );
    }
    let effects = admin.ask(&mut disk, Command::log_page(5, 0, 4096)).succeeded();
    assert_eq!(
        (effects.u32_at(6 * 4), effects.u32_at(1024 + 4), effects.u32_at(1024 + 2 * 4)),
        (1, 3, 1)
    );
    let mut zoned = Command::log_page(5, 0, 4096);
    zoned.dwords[4] = 2 << 24;
    assert_eq!(admin.ask(&mut disk, zoned).succeeded().data[1024..2048], [0; 1024]);
    let part = admin.ask(&mut disk, Command::log_page(5, 1024, 12)).succeeded();
    assert_eq!(part.data, effects.data[1024..1036]);
    for (command, status) in [
        (Command::log_page(0x70, 0, 1024), Status::invalid_log_page()),
        (Command::log_page(0x81, 0, 64), Status::invalid_log_page()),
        (Command::log_page(2, 2, 64), Status::invalid_field()),
        (Command::log_page(2, 516, 64), Status::invalid_field()),
        (Command::log_page(2, u64::MAX - 3, 64), Status::invalid_field()),
        (
            Command { dwords: [0xFFFF_0002, 0xFFFF, 0, 0, 0, 0], ..Command::log_page(2, 0, 64) },
            Status::invalid_field(),
        ),
        (Command { data_in_len: 60, ..Command::log_page(2, 0, 64) }, Status::sgl_length_invalid()),
    ] {
        assert_eq!(admin.ask(&mut disk, command).status, status);
    }
}

#[test]
fn the_ana_log_lists_groups_and_namespaces_in_order() {
    let target = target();
    let grouped = |nsid, ana_group, state| NamespaceView { ana_group, state, ..namespace(nsid) };
    target.publish(directory(vec![
        grouped(9, 3, AnaState::Inaccessible),
        grouped(2, 3, AnaState::Inaccessible),
        grouped(5, 1, AnaState::NonOptimized),
    ]));
    let mut disk = Disk::new();
    let mut controller = enabled_controller(&target, &mut disk, options(SUBSYSTEM));
    let log = controller.admin.ask(&mut disk, Command::log_page(0x0C, 0, 92)).succeeded();
    assert_eq!((log.u64_at(0), log.u16_at(8)), (0, 2));
    assert_eq!((log.u32_at(16), log.u32_at(20), log.data[32], log.u32_at(48)), (1, 1, 2, 5));
    assert_eq!(
        (log.u32_at(52), log.u32_at(56), log.data[68], log.u32_at(84), log.u32_at(88)),
        (3, 2, 3, 2, 9)
    );
    // nvme-cli reads the longest possible log in pieces of 4 KiB.
    let past = controller.admin.ask(&mut disk, Command::log_page(0x0C, 32 << 10, 4096)).succeeded();
    assert_eq!(past.data, vec![0; 4096]);
    let mut groups_only = Command::log_page(0x0C, 0, 80);
    groups_only.dwords[0] |= 1 << 8;
    let log = controller.admin.ask(&mut disk, groups_only).succeeded();
    assert_eq!((log.u32_at(16), log.u32_at(20), log.u32_at(48), log.u32_at(52)), (1, 0, 3, 0));
}

#[test]
fn features_read_back_what_was_set() {
    let (mut disk, mut controller) = admin();
    let admin = &mut controller.admin;
    assert_eq!(
        admin.ask(&mut disk, Command::set_feature(7, 0x0007_0003)).succeeded().dw0,
        0x0003_0003
    );
    assert_eq!(
        admin.ask(&mut disk, Command::set_feature(7, 0x00FF_00FF)).succeeded().dw0,
        62 << 16 | 62
    );
    assert_eq!(admin.ask(&mut disk, Command::get_feature(7)).succeeded().dw0, 62 << 16 | 62);
    assert_eq!(
        admin.ask(&mut disk, Command::set_feature(7, 0xFFFF)).status,
        Status::invalid_field()
    );
    admin.ask(&mut disk, Command::set_feature(0x0B, u32::MAX)).succeeded();
    assert_eq!(admin.ask(&mut disk, Command::get_feature(0x0B)).succeeded().dw0, 0x900);
    for (asked, granted) in [(5000, 5000), (1, 1000), (1950, 2000), (0, 0), (u32::MAX, u32::MAX)] {
        admin.ask(&mut disk, Command::set_feature(0x0F, asked)).succeeded();
        assert_eq!(admin.ask(&mut disk, Command::get_feature(0x0F)).succeeded().dw0, granted);
    }
    for feature in [1, 4, 5, 8, 9, 0x0A] {
        admin.ask(&mut disk, Command::set_feature(feature, 5)).succeeded();
        assert_eq!(admin.ask(&mut disk, Command::get_feature(feature)).succeeded().dw0, 5);
    }
    assert_eq!(
        admin.ask(&mut disk, Command::set_feature(6, 1)).status,
        Status::invalid_field(),
        "no write cache"
    );
    assert_eq!(admin.ask(&mut disk, Command::get_feature(6)).succeeded().dw0, 0);
    assert_eq!(
        admin.ask(&mut disk, Command::set_feature(0x81, 0)).status,
        Status::command_sequence_error()
    );
    let host_id = Command { data_in_len: 16, ..Command::get_feature(0x81) };
    let host_id = Command { dwords: [0x81, 1, 0, 0, 0, 0], ..host_id };
    assert_eq!(admin.ask(&mut disk, host_id).succeeded().data, HOST_ID);
    let behavior = Command { data_out: pattern(512, 1), ..Command::set_feature(0x16, 0) };
    admin.ask(&mut disk, behavior).succeeded();
    let behavior = Command { data_in_len: 512, ..Command::get_feature(0x16) };
    assert_eq!(admin.ask(&mut disk, behavior).succeeded().data, pattern(512, 1).bytes());
    let mut saved = Command::set_feature(1, 0);
    saved.dwords[0] |= 1 << 31;
    assert_eq!(admin.ask(&mut disk, saved).status, Status::feature_not_saveable());
    for unknown in [0x84, 0xC0] {
        assert_eq!(
            admin.ask(&mut disk, Command::get_feature(unknown)).status,
            Status::invalid_field()
        );
    }
    assert_eq!(
        admin.ask(&mut disk, Command { opcode: 0x0D, ..Command::default() }).status,
        Status::invalid_opcode()
    );
}

#[test]
fn connect_refuses_what_it_cannot_serve() {
    let target = target();
    let mut disk = Disk::new();
    let (controller, _io) = host(&target, &mut disk, options(SUBSYSTEM));
    let refusal = |connection: InitiatorConnection| {
        let mut wire = Wire::new(&target, connection, Duration::ZERO);
        wire.run(&mut Disk::new());
        match wire.closed() {
            Closed::Refused { status, result } => (status, result),
            other => panic!("{other:?}"),
        }
    };
    let admin = |options| refusal(InitiatorConnection::connect_admin(options, Duration::ZERO));
    let io = |options, id, queue| {
        refusal(InitiatorConnection::connect_io(options, id, queue, 0, Duration::ZERO))
    };
    let invalid = Status::connect_invalid_parameters;
    let (in_data, id) = (1 << 16, controller.id);

    assert_eq!(admin(options("nqn.nowhere")), (invalid(), in_data | 256));
    let stranger = ConnectionOptions { host_nqn: "nqn.stranger".into(), ..options(SUBSYSTEM) };
    assert_eq!(admin(stranger.clone()), (Status::connect_invalid_host(), 0));
    assert_eq!(
        admin(ConnectionOptions { queue_depth: 1024, ..options(SUBSYSTEM) }),
        (invalid(), 44)
    );
    assert_eq!(io(options(SUBSYSTEM), id + 1, 2), (invalid(), in_data | 16));
    assert_eq!(io(options(SUBSYSTEM), id, 5), (invalid(), 42), "more queues than were granted");
    for queue in [64, 65, u16::MAX] {
        assert_eq!(io(options(SUBSYSTEM), id, queue), (invalid(), 42), "queue {queue}");
    }
    assert_eq!(io(options(SUBSYSTEM), id, 1), (invalid(), 42), "the queue exists");
    let other = ConnectionOptions { host_id: [1; 16], ..options(SUBSYSTEM) };
    assert_eq!(io(other, id, 2), (invalid(), in_data | 512));
    let elsewhere = InitiatorConnection::connect_io(options(SUBSYSTEM), id, 2, 0, Duration::ZERO);
    let mut wire = Wire::new(&target, elsewhere, Duration::ZERO);
    wire.target = TargetConnection::new(target.clone(), PORTAL + 1, Duration::ZERO);
    wire.run(&mut Disk::new());
    assert_eq!(
        wire.closed(),
        Closed::Refused { status: invalid(), result: in_data | 16 },
        "another portal"
    );
    assert_eq!(target.associations().len(), 1, "nothing was left behind");
}

#[test]
fn before_the_first_publish_hosts_are_told_to_come_again() {
    let target = Target::new(TargetConfig::default()).expect("sound");
    let host = InitiatorConnection::connect_admin(options(SUBSYSTEM), Duration::ZERO);
    let mut wire = Wire::new(&target, host, Duration::ZERO);
    wire.run(&mut Disk::new());
    let Closed::Refused { status, .. } = wire.closed() else { panic!("refused") };
    assert!(status == Status::connect_controller_busy() && !status.do_not_retry());
}

#[test]
fn an_io_queue_needs_an_enabled_controller() {
    let target = target();
    let mut disk = Disk::new();
    let admin = InitiatorConnection::connect_admin(options(SUBSYSTEM), Duration::ZERO);
    let mut admin = Wire::new(&target, admin, Duration::ZERO);
    let id = admin.connected(&mut disk);
    let io = InitiatorConnection::connect_io(options(SUBSYSTEM), id, 1, 0, Duration::ZERO);
    let mut io = Wire::new(&target, io, Duration::ZERO);
    io.run(&mut disk);
    assert_eq!(
        io.closed(),
        Closed::Refused { status: Status::command_sequence_error(), result: 0 }
    );
}

#[test]
fn controllers_are_listed_ascending_from_the_one_asked_for() {
    let (target, mut disk) = (target(), Disk::new());
    let mut first = enabled_controller(&target, &mut disk, options(SUBSYSTEM));
    let others = [(); 2].map(|()| enabled_controller(&target, &mut disk, options(SUBSYSTEM)));
    let mut ask = |structure: u8, from: u16, nsid| {
        let dwords = [u32::from(structure) | u32::from(from) << 16, 0, 0, 0, 0, 0];
        let command = Command { dwords, ..Command::identify(structure, nsid) };
        let answer = first.admin.ask(&mut disk, command);
        (answer.status, answer.data.chunks(2).take(4).map(|id| id[0]).collect::<Vec<_>>())
    };
    let success = Status::success();
    assert_eq!(ask(0x13, 0, 0), (success, vec![3, 1, 2, 3]));
    assert_eq!(ask(0x13, 3, 0), (success, vec![1, 3, 0, 0]));
    assert_eq!(ask(0x13, 4, 0), (success, vec![0, 0, 0, 0]));
    assert_eq!(ask(0x12, 0, 1), (success, vec![1, 1, 0, 0]), "of a namespace: this one");
    assert_eq!(ask(0x12, 0, 99).0, Status::invalid_namespace());
    assert_eq!(others.map(|other| other.id), [2, 3]);
}

#[test]
fn features_and_their_scope_are_told() {
    let (mut disk, mut controller) = admin();
    let admin = &mut controller.admin;
    let told = admin.ask(&mut disk, Command::log_page(0x12, 0, 1024)).succeeded();
    for feature in 0..=255u8 {
        let command = Command { nsid: 1, ..Command::get_feature(feature) };
        let answer = match feature {
            // Only in its long form, and with room for it.
            0x81 => Status::success(),
            0x16 => Status::success(),
            // For the volume, which this disk answers.
            0x83 => Status::success(),
            _ => admin.ask(&mut disk, command).status,
        };
        let is_told = told.u32_at(usize::from(feature) * 4) & 1 == 1;
        assert_eq!(is_told, answer.is_success(), "feature {feature:#04x}: {answer}");
    }
    assert_eq!(told.u32_at(0x82 * 4), 1 | 1 << 20, "a namespace's");
    assert_eq!(told.u32_at(0x07 * 4), 1 | 1 << 21, "the controller's");
}

#[test]
fn a_host_gives_an_io_queue_up_by_disconnect() {
    let (target, mut disk) = (target(), Disk::new());
    let (mut controller, mut io) = host(&target, &mut disk, options(SUBSYSTEM));
    let identify = controller.admin.ask(&mut disk, Command::identify(1, 0)).succeeded();
    assert_eq!(identify.data[1804], 1, "OFCS says so");
    let answer = controller.admin.ask(&mut disk, Command::disconnect());
    assert_eq!(answer.status, Status::invalid_queue_type());
    io.ask(&mut disk, Command::disconnect()).succeeded();
    assert!(io.target.is_closing());
    drop(io);
    // The queue's identifier is free again.
    let again =
        InitiatorConnection::connect_io(options(SUBSYSTEM), controller.id, 1, 0, Duration::ZERO);
    let mut again = Wire::new(&target, again, Duration::ZERO);
    assert_eq!(again.connected(&mut disk), controller.id);
}

#[test]
fn one_host_cannot_have_every_controller() {
    let limits = TargetLimits { controllers_per_host_max: 2, ..TargetLimits::default() };
    let target = target_with(limits);
    let mut disk = Disk::new();
    let busy = |options| {
        let host = InitiatorConnection::connect_admin(options, Duration::ZERO);
        let mut wire = Wire::new(&target, host, Duration::ZERO);
        wire.run(&mut Disk::new());
        wire.closed() == Closed::Refused { status: Status::connect_controller_busy(), result: 0 }
    };
    let stranger = |index: u32, nqn| {
        let host_nqn = format!("nqn.stranger:{index}");
        ConnectionOptions { host_nqn, ..options(nqn) }
    };
    // Strangers may look for what there is, which takes nothing from hosts with volumes.
    let lookers: Vec<Controller> = (0..400)
        .map(|index| enabled_controller(&target, &mut disk, stranger(index, DISCOVERY_NQN)))
        .collect();
    let first = enabled_controller(&target, &mut disk, options(SUBSYSTEM));
    assert_eq!(first.id, 1, "discovery has identifiers of its own");
    let second = enabled_controller(&target, &mut disk, options(SUBSYSTEM));
    assert!(busy(options(SUBSYSTEM)), "a third one");
    drop(second);
    let _third = enabled_controller(&target, &mut disk, options(SUBSYSTEM));
    drop(lookers);
    assert_eq!(target.associations().len(), 2);
}

#[test]
fn discovery_lists_both_nodes_portals() {
    let (mut disk, mut controller) = discovery();
    let admin = &mut controller.admin;
    let id = admin.ask(&mut disk, Command::identify(1, 0)).succeeded();
    assert_eq!((id.data[111], id.data[76], id.u32_at(92)), (2, 0, 1 << 31));
    assert_eq!(text(&id.data[768..1024]), DISCOVERY_NQN);
    let header = admin.ask(&mut disk, Command::log_page(0x70, 0, 1024)).succeeded();
    let records = header.u64_at(8);
    assert_eq!(records, 3);
    let log = admin.ask(&mut disk, Command::log_page(0x70, 0, 1024 * 4)).succeeded();
    let mut found = Vec::new();
    for record in log.data[1024..].chunks_exact(1024) {
        assert_eq!((record[0], record[1], record[3]), (3, 1, 0), "TCP, IPv4, TREQ not specified");
        let fields = (text(&record[256..512]), text(&record[512..768]), text(&record[32..64]));
        found.push((record[2], fields.0.to_owned(), fields.1.to_owned(), fields.2.to_owned()));
    }
    let record = |kind, nqn: &str, address: &str| {
        (kind, nqn.to_owned(), address.to_owned(), "4420".to_owned())
    };
    let expected = [
        record(3, DISCOVERY_NQN, "10.0.0.1"),
        record(2, SUBSYSTEM, "10.0.0.1"),
        record(2, SUBSYSTEM, "10.0.1.1"),
    ];
    assert_eq!(found, expected);
    for command in [Command::identify(2, 0), Command::set_feature(7, 0)] {
        assert_eq!(admin.ask(&mut disk, command).status, Status::invalid_field());
    }
    assert_eq!(
        admin.ask(&mut disk, Command::log_page(2, 0, 64)).status,
        Status::invalid_log_page()
    );
}

#[test]
fn discovery_shows_a_host_only_what_it_may_use() {
    let mut disk = Disk::new();
    let stranger = ConnectionOptions { host_nqn: "nqn.stranger".into(), ..options(DISCOVERY_NQN) };
    let mut controller = enabled_controller(&target(), &mut disk, stranger);
    let log = controller.admin.ask(&mut disk, Command::log_page(0x70, 0, 1024)).succeeded();
    assert_eq!(log.u64_at(8), 1, "only the discovery subsystem itself");
}

#[test]
fn the_sequence_of_a_debian_12_host_works() {
    let target = target();
    let mut disk = Disk::new();
    let linux = ConnectionOptions { queue_depth: 32, flow_control: true, ..options(SUBSYSTEM) };
    let host = InitiatorConnection::connect_admin(linux.clone(), Duration::ZERO);
    let mut admin = Wire::new(&target, host, Duration::ZERO);
    let id = admin.connected(&mut disk);
    let mut ask = |command| admin.ask(&mut disk, command).succeeded();
    ask(Command::property_get(0, true));
    ask(Command::property_set(0x14, 0));
    ask(Command::property_get(0x14, false));
    ask(Command::property_get(0, true));
    ask(Command::property_set(0x14, 0x0046_0061));
    assert_eq!(ask(Command::property_get(0x1C, false)).dw0, 1);
    ask(Command::property_get(8, false));
    ask(Command::identify(1, 0));
    ask(Command::log_page(5, 0, 4096));
    ask(Command::log_page(0x0C, 0, 16 + 1024 * 32 + 1024 * 4));
    ask(Command::log_page(2, 0, 512));
    ask(Command::set_feature(7, 0x0001_0001));
    let io = InitiatorConnection::connect_io(
        ConnectionOptions { queue_depth: 128, ..linux },
        id,
        1,
        16384,
        Duration::ZERO,
    );
    let mut io = Wire::new(&target, io, Duration::ZERO);
    io.connected(&mut Disk::new());
    ask(Command::set_feature(0x0B, 0x900));
    ask(Command::identify(6, 0));
    ask(Command::identify(2, 0));
    ask(Command::identify(3, 1));
    ask(Command::identify(0, 1));
    ask(Command::keep_alive());
    // Linux describes 4096 bytes of DSM ranges, however few it fills in.
    let mut discard = Command::deallocate(1, &[(8, 8)]);
    let Payload::Owned(range) = &discard.data_out else { panic!("owned") };
    let mut page = voute_buffer::Buffer::zeroed(4096);
    page[..16].copy_from_slice(range);
    discard.data_out = Payload::Owned(page);
    io.ask(&mut disk, discard).succeeded();
    assert_eq!(disk.seen, ["Deallocate { ranges: [(8, 8)] }"]);
    // Shutdown: SHN, then CSTS until complete; I/O queues end.
    admin.ask(&mut disk, Command::property_set(0x14, 0x0046_4061)).succeeded();
    assert_eq!(admin.ask(&mut disk, Command::property_get(0x1C, false)).succeeded().dw0 & 0xC, 8);
    io.target.tick(Duration::ZERO);
    assert!(io.target.is_closing());
}

#[test]
fn a_host_that_fetches_no_answers_cannot_pile_them_up() {
    let limits = TargetLimits { held_bytes_max: 1 << 20, ..TargetLimits::default() };
    let mut disk = Disk::new();
    let mut admin = enabled_controller(&target_with(limits), &mut disk, options(SUBSYSTEM)).admin;
    let asked = 120;
    for _ in 0..asked {
        let longest = Command::log_page(0x0C, 0, HOST_TRANSFER_MAX as u32);
        admin.host.submit(longest, admin.now).expect("room");
    }
    let flood = std::mem::take(admin.host.output());
    admin.target.receive(&flood, admin.now);
    while admin.target.next_request().is_some() {}
    assert!(admin.target.output().len() < 3 << 20, "{} bytes wait", admin.target.output().len());
    assert!(!admin.target.wants_input());
    admin.run(&mut disk);
    let mut answered = 0;
    while let Some(event) = admin.host.next_event() {
        assert!(
            matches!(event, InitiatorEvent::Completed { status, .. } if status.is_success()),
            "{event:?}"
        );
        answered += 1;
    }
    assert_eq!(answered, asked);
}

#[test]
fn controller_ids_begin_where_they_are_told_and_stay_in_range() {
    let range = TargetConfig { controller_min: 10, controller_max: 12, ..TargetConfig::default() };
    for (controller_offset, expected) in [(1, [11, 12, 10]), (0, [10, 11, 12]), (3, [10, 11, 12])] {
        let target =
            Target::new(TargetConfig { controller_offset, ..range.clone() }).expect("sound");
        target.publish(directory(vec![namespace(1)]));
        let mut disk = Disk::new();
        let controllers: Vec<Controller> =
            (0..3).map(|_| enabled_controller(&target, &mut disk, options(SUBSYSTEM))).collect();
        assert_eq!(
            controllers.iter().map(|controller| controller.id).collect::<Vec<_>>(),
            expected
        );
    }
}

#[test]
fn a_configuration_out_of_range_is_refused() {
    let with = |change: fn(&mut TargetConfig)| {
        let mut config = TargetConfig::default();
        change(&mut config);
        Target::new(config).map(|_| ()).expect_err("out of range")
    };
    assert_eq!(with(|c| c.controller_min = 0), TargetConfigError::ControllerRange(0, 0x7FFF));
    assert_eq!(with(|c| c.controller_max = 0xFFF0), TargetConfigError::ControllerRange(1, 0xFFF0));
    assert_eq!(
        with(|c| c.link_nqn = Some(String::new())),
        TargetConfigError::LinkNqn(String::new())
    );
    for change in [
        (|c: &mut TargetConfig| c.limits.queue_depth_max = 1) as fn(&mut TargetConfig),
        |c| c.limits.io_queues_max = 64,
        |c| c.limits.in_capsule_max = 4096,
        |c| c.limits.h2c_data_max = 4095,
        |c| c.limits.compare_and_write_blocks_max = 0,
    ] {
        assert!(matches!(with(change), TargetConfigError::Limit { .. }));
    }
}

#[test]
fn an_array_with_a_write_cache_says_so_and_cannot_turn_it_off() {
    let config = TargetConfig { has_volatile_cache: true, ..TargetConfig::default() };
    let target = Target::new(config).expect("the configuration is sound");
    target.publish(directory(vec![namespace(1)]));
    let mut disk = Disk::new();
    let mut controller = enabled_controller(&target, &mut disk, options(SUBSYSTEM));
    let id = controller.admin.ask(&mut disk, Command::identify(1, 0)).succeeded();
    assert_eq!(id.data[525] & 1, 1, "VWC");
    let cache = controller.admin.ask(&mut disk, Command::get_feature(6)).succeeded();
    assert_eq!(cache.dw0, 1, "enabled");
    let refused = controller.admin.ask(&mut disk, Command::set_feature(6, 0));
    assert_eq!(refused.status, Status::feature_not_changeable());
}
