use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use voute_nvme::*;

use crate::world::*;

const NAMESPACES: u32 = 2 | 0x04 << 16;
const ANA: u32 = 2 | 0x03 << 8 | 0x0C << 16;
const DISCOVERY: u32 = 2 | 0xF0 << 8 | 0x70 << 16;

fn watching(target: &Arc<Target>, disk: &mut Disk, subsystem: &str) -> (Controller, Tag) {
    let mut controller = enabled_controller(target, disk, options(subsystem));
    controller.admin.ask(disk, Command::set_feature(0x0B, u32::MAX)).succeeded();
    let request = arm(&mut controller.admin, disk);
    (controller, request)
}

fn arm(admin: &mut Wire, disk: &mut Disk) -> Tag {
    let tag = admin.host.submit(Command::async_event_request(), admin.now).expect("room");
    admin.run(disk);
    tag
}

fn tick(wire: &mut Wire, disk: &mut Disk) {
    wire.target.tick(wire.now);
    wire.run(disk);
}

#[test]
fn a_resize_raises_one_event_until_its_log_is_read() {
    let target = target();
    let mut disk = Disk::new();
    let (mut controller, request) = watching(&target, &mut disk, SUBSYSTEM);
    let resized = |blocks| directory(vec![NamespaceView { blocks, ..namespace(1) }, namespace(2)]);
    target.publish(resized(9000));
    tick(&mut controller.admin, &mut disk);
    assert_eq!(controller.admin.answer(request).dw0, NAMESPACES);
    let second = arm(&mut controller.admin, &mut disk);
    target.publish(resized(10_000));
    tick(&mut controller.admin, &mut disk);
    assert!(controller.admin.host.next_event().is_none(), "masked until log 04h is read");
    let mut retained = Command::log_page(4, 0, 4096);
    retained.dwords[0] |= 1 << 15;
    assert_eq!(controller.admin.ask(&mut disk, retained).succeeded().u32_at(0), 1);
    let log = controller.admin.ask(&mut disk, Command::log_page(4, 0, 4096)).succeeded();
    assert_eq!((log.u32_at(0), log.u32_at(4)), (1, 0));
    assert_eq!(
        controller.admin.ask(&mut disk, Command::identify(0, 1)).succeeded().u64_at(0),
        10_000
    );
    let log = controller.admin.ask(&mut disk, Command::log_page(4, 0, 4096)).succeeded();
    assert_eq!(log.u32_at(0), 0, "reading cleared it");
    target.publish(directory(vec![namespace(2), namespace(3)]));
    tick(&mut controller.admin, &mut disk);
    assert_eq!(controller.admin.answer(second).dw0, NAMESPACES);
    let log = controller.admin.ask(&mut disk, Command::log_page(4, 0, 4096)).succeeded();
    assert_eq!((log.u32_at(0), log.u32_at(4), log.u32_at(8)), (1, 3, 0), "one gone, one new");
}

#[test]
fn an_ana_change_raises_its_event_and_counts() {
    let target = target();
    let mut disk = Disk::new();
    let (mut controller, mut request) = watching(&target, &mut disk, SUBSYSTEM);
    for (count, state) in [(1, AnaState::Change), (2, AnaState::Inaccessible)] {
        target.publish(directory(vec![namespace(1), NamespaceView { state, ..namespace(2) }]));
        tick(&mut controller.admin, &mut disk);
        assert_eq!(controller.admin.answer(request).dw0, ANA);
        let log = controller.admin.ask(&mut disk, Command::log_page(0x0C, 0, 4096)).succeeded();
        assert_eq!((log.u64_at(0), log.u16_at(8)), (count, 2));
        assert_eq!((log.u64_at(24), log.data[32]), (0, 1), "group 1 did not change");
        assert_eq!((log.u32_at(52), log.u64_at(60), log.data[68]), (2, count, state.code()));
        request = arm(&mut controller.admin, &mut disk);
    }
    let same = directory(vec![
        namespace(1),
        NamespaceView { state: AnaState::Inaccessible, ..namespace(2) },
    ]);
    target.publish(same);
    tick(&mut controller.admin, &mut disk);
    assert!(controller.admin.host.next_event().is_none(), "publishing the same again is no news");
}

#[test]
fn what_happened_before_the_host_asked_is_not_lost() {
    let target = target();
    let mut disk = Disk::new();
    let mut controller = enabled_controller(&target, &mut disk, options(SUBSYSTEM));
    target.publish(directory(vec![
        namespace(1),
        NamespaceView { state: AnaState::NonOptimized, ..namespace(2) },
    ]));
    tick(&mut controller.admin, &mut disk);
    let request = arm(&mut controller.admin, &mut disk);
    assert!(controller.admin.host.next_event().is_none(), "not enabled yet");
    controller.admin.host.submit(Command::set_feature(0x0B, 0x800), Duration::ZERO).expect("room");
    controller.admin.run(&mut disk);
    let mut results = Vec::new();
    while let Some(InitiatorEvent::Completed { tag, dw0, .. }) = controller.admin.host.next_event()
    {
        results.push((tag == request, dw0));
    }
    assert_eq!(results, [(false, 0), (true, ANA)]);
}

#[test]
fn discovery_tells_of_a_new_mapping() {
    let target = target();
    let mut disk = Disk::new();
    let (mut controller, request) = watching(&target, &mut disk, DISCOVERY_NQN);
    let generation = |controller: &mut Controller, disk: &mut Disk| {
        let log = controller.admin.ask(disk, Command::log_page(0x70, 0, 1024)).succeeded();
        (log.u64_at(0), log.u64_at(8))
    };
    let before = generation(&mut controller, &mut disk);
    target.publish(directory(vec![namespace(1)]));
    tick(&mut controller.admin, &mut disk);
    assert_eq!(
        generation(&mut controller, &mut disk),
        before,
        "namespaces are not discovery's concern"
    );
    target.publish(Arc::new(Directory::default()));
    tick(&mut controller.admin, &mut disk);
    assert_eq!(controller.admin.answer(request).dw0, DISCOVERY);
    let after = generation(&mut controller, &mut disk);
    assert!(after.0 > before.0 && after.1 == 0, "{before:?} {after:?}");
}

#[test]
fn a_fifth_event_request_is_refused_and_abort_gives_one_back() {
    let target = target();
    let mut disk = Disk::new();
    let (mut controller, first) = watching(&target, &mut disk, SUBSYSTEM);
    for _ in 0..3 {
        arm(&mut controller.admin, &mut disk);
    }
    let fifth = controller.admin.ask(&mut disk, Command::async_event_request());
    assert_eq!(fifth.status, Status::event_request_limit_exceeded());
    let command_id = (first.to_bits() & 0xFFFF) as u32;
    let abort =
        Command { opcode: 8, dwords: [command_id << 16, 0, 0, 0, 0, 0], ..Command::default() };
    let tag = controller.admin.host.submit(abort, Duration::ZERO).expect("room");
    controller.admin.run(&mut disk);
    assert_eq!(controller.admin.answer(first).status, Status::abort_requested());
    assert_eq!(controller.admin.answer(tag).succeeded().dw0, 0);
    let unknown =
        Command { opcode: 8, dwords: [999 << 16 | 1, 0, 0, 0, 0, 0], ..Command::default() };
    assert_eq!(controller.admin.ask(&mut disk, unknown).succeeded().dw0, 1, "not aborted");
}

#[test]
fn a_host_that_is_no_longer_admitted_loses_its_controller() {
    let target = target();
    let mut disk = Disk::new();
    let (mut controller, mut io) = host(&target, &mut disk, options(SUBSYSTEM));
    target.publish(Arc::new(Directory::default()));
    let attention = target.attention();
    controller.admin.target.tick(Duration::ZERO);
    assert!(controller.admin.target.is_closing());
    assert!(target.attention() > attention, "other reactors are told");
    io.target.tick(Duration::ZERO);
    assert!(io.target.is_closing());
}

#[test]
fn keep_alive_expiry_ends_all_connections_of_the_controller() {
    let target = target();
    let mut disk = Disk::new();
    let options =
        ConnectionOptions { keep_alive: Some(Duration::from_millis(2000)), ..options(SUBSYSTEM) };
    let (mut controller, mut io) = host(&target, &mut disk, options);
    let seconds = Duration::from_secs;
    let admin = &mut controller.admin;
    admin.now = seconds(1);
    admin.ask(&mut disk, Command::keep_alive()).succeeded();
    assert_eq!(admin.target.next_deadline(), Some(seconds(3)));
    admin.target.tick(seconds(3) - Duration::from_millis(1));
    assert!(!admin.target.is_closing());
    let woken = Arc::new(AtomicUsize::new(0));
    let counter = woken.clone();
    target.set_waker(Box::new(move || {
        counter.fetch_add(1, Ordering::Relaxed);
    }));
    admin.target.tick(seconds(3));
    assert!(admin.target.is_closing() && woken.load(Ordering::Relaxed) > 0);
    io.target.receive(&[], seconds(3));
    assert!(io.target.is_closing(), "the I/O queue learns of it at its next turn");
    assert!(target.associations().is_empty());
}

#[test]
fn an_initiator_keeps_alive_and_notices_silence() {
    let target = target();
    let mut disk = Disk::new();
    let options =
        ConnectionOptions { keep_alive: Some(Duration::from_secs(3)), ..options(SUBSYSTEM) };
    let mut controller = enabled_controller(&target, &mut disk, options);
    let admin = &mut controller.admin;
    for second in 1..=20 {
        admin.now = Duration::from_secs(second);
        admin.host.tick(admin.now);
        admin.run(&mut disk);
        admin.target.tick(admin.now);
        assert!(!admin.target.is_closing() && !admin.host.is_closing());
    }
    for second in 21..=25 {
        admin.host.tick(Duration::from_secs(second));
    }
    assert_eq!(admin.closed(), Closed::KeepAliveTimeout);
}

#[test]
fn a_reset_ends_io_queues_and_keeps_the_admin_queue() {
    let target = target();
    let mut disk = Disk::new();
    let (mut controller, mut io) = host(&target, &mut disk, options(SUBSYSTEM));
    arm(&mut controller.admin, &mut disk);
    controller.admin.ask(&mut disk, Command::property_set(0x14, 0)).succeeded();
    io.target.tick(Duration::ZERO);
    assert!(io.target.is_closing());
    drop(io);
    controller.admin.ask(&mut disk, Command::property_set(0x14, 0x0046_0061)).succeeded();
    controller.admin.ask(&mut disk, Command::set_feature(7, 0)).succeeded();
    let again =
        InitiatorConnection::connect_io(options(SUBSYSTEM), controller.id, 1, 0, Duration::ZERO);
    let mut again = Wire::new(&target, again, Duration::ZERO);
    again.connected(&mut disk);
    again.ask(&mut disk, Command::flush(1)).succeeded();
}

#[test]
fn a_fenced_node_drops_its_hosts_at_once() {
    let target = target();
    let mut disk = Disk::new();
    let (mut controller, mut io) = host(&target, &mut disk, options(SUBSYSTEM));
    assert_eq!(target.fail_controllers(|association| association.host != HOST), 0);
    assert_eq!(target.fail_controllers(|association| association.host == HOST), 1);
    for wire in [&mut controller.admin, &mut io] {
        wire.target.tick(Duration::ZERO);
        assert!(wire.target.is_closing() && wire.target.output().is_empty());
    }
}

#[test]
fn a_discovery_controller_without_keep_alive_goes_when_idle() {
    let target = target();
    let mut disk = Disk::new();
    let options = ConnectionOptions { keep_alive: None, ..options(DISCOVERY_NQN) };
    let mut controller = enabled_controller(&target, &mut disk, options);
    controller.admin.target.tick(Duration::from_secs(119));
    assert!(!controller.admin.target.is_closing());
    controller.admin.target.tick(Duration::from_secs(120));
    assert!(controller.admin.target.is_closing());
}

/// An attachment with its admin wire, run to rest.
struct Attached {
    wire: Wire,
    attachment: Attachment,
    disk: Disk,
}

impl Attached {
    fn new(target: &Arc<Target>) -> Self {
        let host = InitiatorConnection::connect_admin(options(SUBSYSTEM), Duration::ZERO);
        let wire = Wire::new(target, host, Duration::ZERO);
        Attached { wire, attachment: Attachment::new(2), disk: Disk::new() }
    }

    fn run(&mut self) -> Vec<AttachmentUpdate> {
        self.wire.target.tick(Duration::ZERO);
        loop {
            self.wire.run(&mut self.disk);
            let Some(event) = self.wire.host.next_event() else { break };
            self.attachment.handle(&mut self.wire.host, event, Duration::ZERO);
        }
        std::iter::from_fn(|| self.attachment.next_update()).collect()
    }
}

#[test]
fn an_attachment_finds_the_namespaces_and_follows_them() {
    let target = target();
    let mut attached = Attached::new(&target);
    let updates = attached.run();
    let [AttachmentUpdate::Ready(facts), AttachmentUpdate::Namespaces(found)] = &updates[..] else {
        panic!("{updates:?}");
    };
    assert_eq!((facts.serial.as_str(), facts.model.as_str()), ("VOUTE0001", "Voute"));
    assert_eq!((facts.transfer_max, facts.in_capsule_max, facts.io_queues), (1 << 20, 16 << 10, 2));
    assert!(facts.reports_ana && !facts.has_volatile_cache && facts.queue_depth_max == 256);
    let expected = |nsid: u8, state| RemoteNamespace {
        nsid: nsid.into(),
        uuid: Some([nsid; 16]),
        nguid: Some([0x80 | nsid; 16]),
        block_size: 512,
        blocks: BLOCKS,
        ana_group: nsid.into(),
        state,
        read_only: false,
    };
    assert_eq!(*found, [expected(1, AnaState::Optimized), expected(2, AnaState::Optimized)]);

    target.publish(directory(vec![
        NamespaceView { state: AnaState::Inaccessible, ..namespace(1) },
        namespace(2),
    ]));
    let followed = [expected(1, AnaState::Inaccessible), expected(2, AnaState::Optimized)];
    assert_eq!(attached.run(), [AttachmentUpdate::Namespaces(followed.to_vec())]);

    target
        .publish(directory(vec![NamespaceView { state: AnaState::NonOptimized, ..namespace(3) }]));
    let updates = attached.run();
    assert_eq!(
        updates.last(),
        Some(&AttachmentUpdate::Namespaces(vec![expected(3, AnaState::NonOptimized)]))
    );

    target.publish(directory(vec![NamespaceView { blocks: 99, ..namespace(3) }]));
    let resized = RemoteNamespace { blocks: 99, ..expected(3, AnaState::Optimized) };
    assert_eq!(attached.run().last(), Some(&AttachmentUpdate::Namespaces(vec![resized])));
}

#[test]
fn an_attachment_copes_with_many_namespaces() {
    let target = target();
    target.publish(directory(
        (1..=1024).map(|nsid| NamespaceView { nguid: [9; 16], ..namespace(nsid) }).collect(),
    ));
    let updates = Attached::new(&target).run();
    assert!(
        matches!(&updates[1], AttachmentUpdate::Namespaces(found) if found.len() == 1024),
        "{updates:?}"
    );
}

/// The discovery service as an initiator reads it, with news in between at the `change_at`th look.
fn discovered(
    target: &Arc<Target>,
    change_at: usize,
    change: Arc<Directory>,
) -> Vec<DiscoveredPortal> {
    let host = InitiatorConnection::connect_admin(options(DISCOVERY_NQN), Duration::ZERO);
    let (mut wire, mut disk) = (Wire::new(target, host, Duration::ZERO), Disk::new());
    let mut discovery = Discovery::new();
    for look in 0..200 {
        wire.run(&mut disk);
        if look == change_at {
            target.publish(change.clone());
            wire.target.tick(Duration::ZERO);
        }
        let Some(event) = wire.host.next_event() else { break };
        discovery.handle(&mut wire.host, event, Duration::ZERO);
    }
    discovery.outcome().expect("it came to an end").expect("it could be read")
}

/// What the host finds by so many portals.
fn portals(count: u16) -> Arc<Directory> {
    let view = Arc::new(HostView::new(vec![namespace(1)]).expect("sound"));
    let hosts = BTreeMap::from([(HOST.to_owned(), view)]);
    let subsystem = Subsystem { serial: "S".to_owned(), hosts, keys: BTreeMap::new() };
    let entry = |id| PortalEntry { id, address: [192, 0, 2, 1].into(), port: 4000 + id };
    let subsystems = BTreeMap::from([(SUBSYSTEM.to_owned(), subsystem)]);
    Arc::new(Directory::new(subsystems, (1..=count).map(entry).collect()).expect("sound"))
}

#[test]
fn an_initiator_finds_every_portal_of_the_subsystem() {
    let target = target();
    target.publish(portals(11));
    let found = discovered(&target, usize::MAX, portals(11));
    assert_eq!(found.len(), 11, "the service itself is none: {found:?}");
    assert!(
        found
            .iter()
            .all(|one| { one.subsystem == SUBSYSTEM && one.kind == DiscoveredKind::Subsystem })
    );
    let ports: Vec<u16> = found.iter().map(|one| one.address.port()).collect();
    assert_eq!(ports, (4001..=4011).collect::<Vec<u16>>());
}

#[test]
fn a_discovery_log_that_changes_while_it_is_read_is_read_anew() {
    for change_at in 0..8 {
        let target = target();
        target.publish(portals(11));
        let found = discovered(&target, change_at, portals(3));
        assert!([3, 11].contains(&found.len()), "a mixture: {found:?}");
        let ends: Vec<u16> = found.iter().map(|one| one.address.port()).collect();
        assert_eq!(ends, (4001..4001 + found.len() as u16).collect::<Vec<u16>>(), "{change_at}");
    }
}
