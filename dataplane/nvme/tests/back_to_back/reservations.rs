//! Reservations as hosts see them.

use std::sync::Arc;
use std::time::Duration;

use voute_nvme::*;

use crate::world::*;

const OTHER: [u8; 16] = [0xA5; 16];
const EVENT: u32 = 6 | 0x80 << 16;

/// Two hosts on one namespace, by their I/O queues, and their admin connections.
struct Hosts {
    target: Arc<Target>,
    disk: Disk,
    io: [Wire; 2],
    admin: [Controller; 2],
}

impl Hosts {
    fn new() -> Self {
        let target = target();
        let mut disk = Disk::new();
        let mut join = |host_id| {
            let options = ConnectionOptions { host_id, ..options(SUBSYSTEM) };
            host(&target, &mut disk, options)
        };
        let ((first, io_of_first), (second, io_of_second)) = (join(HOST_ID), join(OTHER));
        Hosts { target, disk, io: [io_of_first, io_of_second], admin: [first, second] }
    }

    fn ask(&mut self, who: usize, command: Command) -> Answer {
        let answer = self.io[who].ask(&mut self.disk, command);
        let effects = std::mem::take(&mut self.disk.effects);
        self.target.notify_reservation([1; 16], &effects);
        answer
    }

    fn status(&mut self, who: usize, command: Command) -> Status {
        self.ask(who, command).status
    }

    fn admin(&mut self, who: usize, command: Command) -> Answer {
        self.admin[who].admin.ask(&mut self.disk, command)
    }

    /// Both registered, with the keys 1 and 2.
    fn registered() -> Self {
        let mut hosts = Hosts::new();
        for who in [0, 1] {
            let keys = [0, who as u64 + 1];
            hosts.ask(who, Command::reservation_register(1, 0, false, None, keys)).succeeded();
        }
        hosts
    }

    fn may(&mut self, who: usize) -> [bool; 2] {
        let read = self.status(who, Command::read(1, 0, 1, 512));
        let write = self.status(who, Command::write(1, 0, 1, pattern(512, 1), false));
        [read, write].map(|status| {
            assert!(status.is_success() || status == Status::reservation_conflict(), "{status}");
            status.is_success()
        })
    }
}

#[test]
fn each_type_bars_what_its_table_says() {
    for (kind, registered, stranger) in [
        (1, [true, false], [true, false]),
        (2, [false, false], [false, false]),
        (3, [true, true], [true, false]),
        (4, [true, true], [false, false]),
        (5, [true, true], [true, false]),
        (6, [true, true], [false, false]),
    ] {
        let mut hosts = Hosts::registered();
        hosts.ask(0, Command::reservation_acquire(1, 0, kind, [1, 0])).succeeded();
        assert_eq!(hosts.may(0), [true, true], "type {kind}");
        assert_eq!(hosts.may(1), registered, "type {kind}");
        hosts.ask(1, Command::reservation_register(1, 1, false, None, [2, 0])).succeeded();
        assert_eq!(hosts.may(1), stranger, "type {kind}");
        hosts.ask(0, Command::reservation_release(1, 0, kind, 1)).succeeded();
        assert_eq!(hosts.may(1), [true, true]);
    }
}

#[test]
fn a_report_has_the_layout_of_the_extended_structure() {
    let mut hosts = Hosts::registered();
    hosts.ask(1, Command::reservation_acquire(1, 0, 4, [2, 0])).succeeded();
    let report = hosts.ask(0, Command::reservation_report(1, 256)).succeeded();
    assert_eq!(report.data.len(), 256);
    assert_eq!((report.u32_at(0), report.data[4], report.data[5], report.data[9]), (2, 4, 2, 0));
    for (at, held, key, host_id) in [(64, 0, 1, HOST_ID), (128, 1, 2, OTHER)] {
        assert_eq!((report.u16_at(at), report.data[at + 2]), (0xFFFF, held));
        assert_eq!(report.u64_at(at + 8), key);
        assert_eq!(report.data[at + 16..at + 32], host_id);
    }
    let short = hosts.ask(0, Command::reservation_report(1, 24)).succeeded();
    assert_eq!(short.data, report.data[..24]);
    let mut of_64_bits = Command::reservation_report(1, 64);
    of_64_bits.dwords[1] = 0;
    assert_eq!(hosts.status(0, of_64_bits), Status::host_identifier_inconsistent());
}

#[test]
fn wrong_keys_and_fields_are_refused_and_change_nothing() {
    let mut hosts = Hosts::registered();
    let conflict = Status::reservation_conflict();
    let register = Command::reservation_register;
    for (command, expected) in [
        (register(1, 0, false, None, [0, 9]), conflict),
        (register(1, 2, false, None, [9, 5]), conflict),
        (register(1, 1, false, None, [9, 0]), conflict),
        (register(1, 0, false, None, [0, 0]), Status::invalid_field()),
        (register(1, 3, false, None, [1, 5]), Status::invalid_field()),
        (Command::reservation_acquire(1, 0, 1, [9, 0]), conflict),
        (Command::reservation_acquire(1, 0, 7, [1, 0]), Status::invalid_field()),
        (Command::reservation_acquire(1, 3, 1, [1, 0]), Status::invalid_field()),
        (Command::reservation_acquire(1, 8, 1, [1, 0]), Status::invalid_field()),
        (Command::reservation_acquire(1, 1, 1, [1, 0]), Status::invalid_field()),
        (Command::reservation_release(1, 1, 1, 9), conflict),
        (Command::reservation_release(1, 2, 1, 1), Status::invalid_field()),
        (Command::reservation_release(9, 0, 1, 1), Status::invalid_namespace()),
    ] {
        let described = format!("{command:?}");
        assert_eq!(hosts.status(0, command), expected, "{described}");
    }
    hosts.ask(0, register(1, 0, false, None, [0, 1])).succeeded();
    hosts.ask(0, register(1, 2, true, None, [99, 7])).succeeded();
    let report = hosts.ask(0, Command::reservation_report(1, 192)).succeeded();
    assert_eq!((report.u32_at(0), report.u64_at(72)), (4, 7));
}

#[test]
fn a_preempted_host_is_told_by_an_event_and_log_page_80() {
    let mut hosts = Hosts::registered();
    let armed = {
        let wire = &mut hosts.admin[1].admin;
        let tag = wire.host.submit(Command::async_event_request(), Duration::ZERO).expect("room");
        wire.run(&mut hosts.disk);
        tag
    };
    hosts.ask(0, Command::reservation_acquire(1, 0, 3, [1, 0])).succeeded();
    hosts.ask(0, Command::reservation_release(1, 0, 3, 1)).succeeded();
    hosts.ask(0, Command::reservation_acquire(1, 2, 1, [1, 2])).succeeded();
    let wire = &mut hosts.admin[1].admin;
    wire.target.tick(Duration::ZERO);
    wire.run(&mut hosts.disk);
    assert_eq!(wire.answer(armed).dw0, EVENT);
    // Released, then preempted; the page counts what is left.
    let log = |hosts: &mut Hosts| hosts.admin(1, Command::log_page(0x80, 0, 64)).succeeded();
    let page = log(&mut hosts);
    assert_eq!((page.u64_at(0), page.data[8], page.data[9], page.u32_at(12)), (1, 2, 1, 1));
    let page = log(&mut hosts);
    assert_eq!((page.u64_at(0), page.data[8], page.data[9], page.u32_at(12)), (2, 1, 0, 1));
    assert_eq!(log(&mut hosts).data, [0; 64]);
    assert_eq!(hosts.admin(0, Command::log_page(0x80, 0, 64)).succeeded().data, [0; 64]);
}

#[test]
fn a_masked_notice_is_not_told() {
    let mut hosts = Hosts::registered();
    let mask = |value, nsid| Command { nsid, ..Command::set_feature(0x82, value) };
    hosts.admin(1, mask(1 << 2, 1)).succeeded();
    let get = |nsid| Command { nsid, ..Command::get_feature(0x82) };
    assert_eq!(hosts.admin(1, get(1)).succeeded().dw0, 1 << 2);
    assert_eq!(hosts.admin(1, get(2)).succeeded().dw0, 0);
    assert_eq!(hosts.admin(1, get(u32::MAX)).status, Status::invalid_namespace());
    assert_eq!(hosts.admin(1, mask(0, 77)).status, Status::invalid_namespace());
    hosts.ask(0, Command::reservation_acquire(1, 0, 3, [1, 0])).succeeded();
    hosts.ask(0, Command::reservation_release(1, 0, 3, 1)).succeeded();
    hosts.admin[1].admin.target.tick(Duration::ZERO);
    assert_eq!(hosts.admin(1, Command::log_page(0x80, 0, 64)).succeeded().data, [0; 64]);
    hosts.admin(1, mask(0, u32::MAX)).succeeded();
    hosts.ask(0, Command::reservation_release(1, 1, 0, 1)).succeeded();
    let page = hosts.admin(1, Command::log_page(0x80, 0, 64)).succeeded();
    assert_eq!(page.data[8], 3, "cleared");
}

#[test]
fn persistence_is_asked_of_the_volume() {
    let mut hosts = Hosts::registered();
    let get = || Command { nsid: 1, ..Command::get_feature(0x83) };
    assert_eq!(hosts.admin(0, get()).succeeded().dw0, 0);
    hosts.admin(0, Command { nsid: 1, ..Command::set_feature(0x83, 1) }).succeeded();
    assert_eq!(hosts.admin(1, get()).succeeded().dw0, 1);
    assert_eq!(hosts.ask(1, Command::reservation_report(1, 64)).succeeded().data[9], 1);
    hosts.ask(1, Command::reservation_register(1, 2, false, Some(false), [2, 2])).succeeded();
    assert_eq!(hosts.admin(0, get()).succeeded().dw0, 0);
    let saved = Command { nsid: 1, ..Command::set_feature(0x83, 1) };
    let saved = Command { dwords: [0x83 | 1 << 31, 1, 0, 0, 0, 0], ..saved };
    assert_eq!(hosts.admin(0, saved).status, Status::feature_not_saveable());
    let unknown = Command { nsid: 77, ..Command::get_feature(0x83) };
    assert_eq!(hosts.admin(0, unknown).status, Status::invalid_namespace());
}

#[test]
fn what_reservations_can_do_is_announced() {
    let mut hosts = Hosts::new();
    let controller = hosts.admin(0, Command::identify(1, 0)).succeeded();
    assert_eq!(controller.u16_at(520) >> 5 & 1, 1, "ONCS");
    assert_eq!(hosts.admin(0, Command::identify(0, 1)).succeeded().data[31], 0xFF);
    assert_eq!(hosts.admin(0, Command::identify(8, 1)).succeeded().data[2], 0xFF);
    let pages = hosts.admin(0, Command::log_page(0, 0, 1024)).succeeded();
    assert_eq!(pages.u32_at(0x80 * 4), 1);
}

#[test]
fn hosts_without_an_identifier_have_no_reservations() {
    let target = target();
    let mut disk = Disk::new();
    let options = ConnectionOptions { host_id: [0; 16], ..options(SUBSYSTEM) };
    let (_controller, mut io) = host(&target, &mut disk, options);
    for command in [
        Command::reservation_register(1, 0, false, None, [0, 1]),
        Command::reservation_acquire(1, 0, 1, [1, 0]),
        Command::reservation_release(1, 0, 1, 1),
        Command::reservation_report(1, 64),
    ] {
        assert_eq!(io.ask(&mut disk, command).status, Status::operation_denied());
    }
    io.ask(&mut disk, Command::read(1, 0, 1, 512)).succeeded();
}
