//! A thousand namespaces and a thousand connections on one node.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use voute_nvme::*;

use crate::world::*;

const NAMESPACES: u32 = 1000;
const HOSTS: u16 = 25;
/// Controllers of each host, and I/O queues of each controller: with the admin queue 1,000 connections.
const CONTROLLERS: u16 = 10;
const IO_QUEUES: u16 = 3;
/// What all of it may take in a debug build on a busy machine; one look at all namespaces for each
/// namespace would take many times that.
const TIME_MAX: Duration = Duration::from_secs(60);

fn nqn(host: u16) -> String {
    format!("nqn.2026-11.io.voute:host:{host}")
}

/// Every namespace in a group of its own, the even ones in `state`.
fn publish(target: &Target, state: AnaState, blocks: u64) {
    let one = |nsid: u32| NamespaceView {
        uuid: u128::from(nsid).to_be_bytes(),
        nguid: u128::from(nsid).to_be_bytes(),
        state: if nsid.is_multiple_of(2) { state } else { AnaState::Optimized },
        blocks,
        ..namespace(nsid)
    };
    let view = Arc::new(HostView::new((1..=NAMESPACES).map(one).collect()).expect("sound"));
    let hosts = (0..HOSTS).map(|host| (nqn(host), view.clone())).collect();
    let subsystem = Subsystem { serial: "1".into(), hosts, keys: BTreeMap::new() };
    let subsystems = BTreeMap::from([(SUBSYSTEM.to_owned(), subsystem)]);
    target.publish(Arc::new(Directory::new(subsystems, vec![]).expect("sound")));
}

fn options_of(host: u16) -> ConnectionOptions {
    let host_nqn = nqn(host);
    ConnectionOptions { host_nqn, host_id: [host as u8 + 1; 16], ..options(SUBSYSTEM) }
}

#[test]
fn a_thousand_namespaces_and_connections_have_no_slow_admin_path() {
    let began = Instant::now();
    let target = target();
    publish(&target, AnaState::Optimized, BLOCKS);
    let mut disk = Disk::new();
    let (mut admins, mut queues) = (Vec::new(), Vec::new());
    for index in 0..HOSTS * CONTROLLERS {
        let options = options_of(index % HOSTS);
        let mut controller = enabled_controller(&target, &mut disk, options.clone());
        let zero_based = u32::from(IO_QUEUES - 1);
        let ask = |controller: &mut Controller, disk: &mut Disk, command| {
            controller.admin.ask(disk, command).succeeded()
        };
        ask(&mut controller, &mut disk, Command::set_feature(7, zero_based << 16 | zero_based));
        ask(&mut controller, &mut disk, Command::set_feature(0x0B, 0x900));
        for queue in 1..=IO_QUEUES {
            let io = InitiatorConnection::connect_io(
                options.clone(),
                controller.id,
                queue,
                16 << 10,
                Duration::ZERO,
            );
            let mut io = Wire::new(&target, io, Duration::ZERO);
            io.connected(&mut disk);
            queues.push(io);
        }
        let request = Command::async_event_request();
        let tag = controller.admin.host.submit(request, Duration::ZERO).expect("room");
        controller.admin.run(&mut disk);
        admins.push((controller, tag));
    }
    assert_eq!(admins.len() + queues.len(), 1000);
    // Half of the namespaces move away, all grow: each controller is told, and finds out.
    publish(&target, AnaState::Inaccessible, 2 * BLOCKS);
    for io in &mut queues {
        io.target.tick(Duration::ZERO);
        assert!(!io.target.is_closing());
    }
    for (controller, tag) in &mut admins {
        let admin = &mut controller.admin;
        admin.target.tick(Duration::ZERO);
        admin.run(&mut disk);
        let event = admin.answer(*tag);
        assert_eq!(event.dw0, 2 | 0x04 << 16, "namespace attributes first");
        let changed = admin.ask(&mut disk, Command::log_page(4, 0, 4096)).succeeded();
        assert_eq!([changed.u32_at(0), changed.u32_at(999 * 4)], [1, 1000]);
        let length = 16 + NAMESPACES * (32 + 4);
        let ana = admin.ask(&mut disk, Command::log_page(0x0C, 0, length)).succeeded();
        assert_eq!((ana.u16_at(8), ana.data[16 + 16], ana.data[16 + 36 + 16]), (1000, 1, 3));
    }
    // Each is served or refused by the new state.
    for io in queues.iter_mut().step_by(100) {
        let read = |nsid| Command::read(nsid, 0, 1, 512);
        io.ask(&mut disk, read(999)).succeeded();
        assert_eq!(io.ask(&mut disk, read(1000)).status, Status::ana_inaccessible());
    }
    let took = began.elapsed();
    assert!(took < TIME_MAX, "{took:?}");
}
