//! Hosts that must prove a secret, on whole connections.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use voute_nvme::*;

use crate::raw::{capsule, feed};
use crate::world::*;

/// Bytes 0 to 31, bound to a name by SHA-256; the check sum is zlib's.
const FIRST: &str = "DHHC-1:01:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+KfiaR:";
/// Bytes 32 to 63, used as they are.
const SECOND: &str = "DHHC-1:00:ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj/jBqb2:";

fn secret(text: &str) -> Secret {
    text.parse().expect("a well-formed secret")
}

fn keys(host: &str, controller: Option<&str>) -> HostKeys {
    HostKeys { host: secret(host), controller: controller.map(secret) }
}

fn credentials(keys: HostKeys, seed: u8) -> Option<Credentials> {
    Some(Credentials { keys, seed: Seed([seed; 32]) })
}

/// A target whose only host must prove a secret.
fn guarded(keys: HostKeys) -> Arc<Target> {
    guarded_with(keys, TargetLimits::default())
}

fn guarded_with(keys: HostKeys, limits: TargetLimits) -> Arc<Target> {
    let target = target_with(limits);
    let view = Arc::new(HostView::new(vec![namespace(1)]).expect("sound"));
    let subsystem = Subsystem {
        serial: "1".into(),
        hosts: BTreeMap::from([(HOST.to_owned(), view)]),
        keys: BTreeMap::from([(HOST.to_owned(), Arc::new(keys))]),
    };
    let subsystems = BTreeMap::from([(SUBSYSTEM.to_owned(), subsystem)]);
    target.publish(Arc::new(Directory::new(subsystems, vec![]).expect("sound")));
    target
}

fn admin(target: &Arc<Target>, credentials: Option<Credentials>) -> Wire {
    let options = ConnectionOptions { credentials, ..options(SUBSYSTEM) };
    Wire::new(target, InitiatorConnection::connect_admin(options, Duration::ZERO), Duration::ZERO)
}

fn outcome(target: &Arc<Target>, credentials: Option<Credentials>) -> Closed {
    let mut wire = admin(target, credentials);
    wire.run(&mut Disk::new());
    let reason = wire.closed();
    wire.target.disconnected();
    drop(wire);
    assert!(target.associations().is_empty(), "nothing is left behind");
    reason
}

#[test]
fn a_host_that_proves_its_secret_is_served_on_every_queue() {
    for controller in [None, Some(SECOND)] {
        let keys = keys(FIRST, controller);
        let target = guarded(keys.clone());
        let mut disk = Disk::new();
        let options = ConnectionOptions { credentials: credentials(keys, 3), ..options(SUBSYSTEM) };
        let (mut controller, mut io) = host(&target, &mut disk, options);
        controller.admin.ask(&mut disk, Command::identify(1, 0)).succeeded();
        io.ask(&mut disk, Command::write(1, 0, 1, pattern(512, 1), false)).succeeded();
        assert_eq!(target.refusals(), Refusals::default());
    }
}

#[test]
fn without_the_right_secret_nobody_gets_in() {
    let right = keys(FIRST, Some(SECOND));
    let target = guarded(right.clone());
    assert_eq!(outcome(&target, None), Closed::AuthenticationRequired);
    let wrong = keys(SECOND, None);
    assert_eq!(
        outcome(&target, credentials(wrong, 1)),
        Closed::AuthenticationRefused(AuthenticationFailure::Failed)
    );
    assert_eq!(target.refusals().authentications, 1);
    assert_eq!(target.refusals().last, Some(format!("{HOST}: secret not proven")));
    // The target proves another secret than the host expects.
    let distrustful = keys(FIRST, Some(FIRST));
    assert_eq!(
        outcome(&target, credentials(distrustful, 1)),
        Closed::TargetNotAuthentic(AuthenticationFailure::Failed)
    );
    // A target that asks for nothing cannot be who it should be.
    assert_eq!(
        outcome(&crate::world::target(), credentials(right, 1)),
        Closed::AuthenticationNotOffered
    );
}

/// An I/O queue of an authentic controller must be proven too: else whoever knows the controller's
/// identifier could have one.
#[test]
fn an_io_queue_without_proof_reads_nothing() {
    let keys = keys(FIRST, None);
    let target = guarded(keys.clone());
    let mut disk = Disk::new();
    let options = ConnectionOptions { credentials: credentials(keys, 3), ..options(SUBSYSTEM) };
    let mut controller = enabled_controller(&target, &mut disk, options.clone());
    controller.admin.ask(&mut disk, Command::set_feature(7, 0x0003_0003)).succeeded();
    let thief = ConnectionOptions { credentials: None, ..options };
    let io = InitiatorConnection::connect_io(thief, controller.id, 1, 8192, Duration::ZERO);
    let mut wire = Wire::new(&target, io, Duration::ZERO);
    wire.run(&mut disk);
    assert_eq!(wire.closed(), Closed::AuthenticationRequired);
    // Whatever it sends now is refused with Authentication Required (1/91h), and is not executed.
    let mut read = [0; 64];
    (read[0], read[1], read[4], read[39]) = (2, 0x40, 1, 0x5A);
    read[32..36].copy_from_slice(&512u32.to_le_bytes());
    let answer = feed(&mut wire.target, &capsule(&read, &[]));
    let status = Status::from_field(u16::from_le_bytes([answer[22], answer[23]]));
    assert_eq!((answer[0], status), (5, Status::authentication_required()));
    assert!(wire.target.next_request().is_none() && disk.seen.is_empty());
}

/// A host's name is no secret.
#[test]
fn who_only_says_a_hosts_name_keeps_that_host_neither_out_nor_from_its_queues() {
    let keys = keys(FIRST, None);
    let per_host = 2;
    let limits = TargetLimits { controllers_per_host_max: per_host, ..TargetLimits::default() };
    let target = guarded_with(keys.clone(), limits);
    let mut disk = Disk::new();
    let _strangers: Vec<Wire> = (0..=per_host)
        .map(|_| {
            let mut wire = admin(&target, None);
            wire.run(&mut disk);
            wire
        })
        .collect();
    assert_eq!(target.associations().len(), usize::from(per_host) + 1);
    let options = ConnectionOptions { credentials: credentials(keys, 3), ..options(SUBSYSTEM) };
    let mut controller = enabled_controller(&target, &mut disk, options.clone());
    controller.admin.ask(&mut disk, Command::set_feature(7, 0x0003_0003)).succeeded();
    let io = |options| {
        let io = InitiatorConnection::connect_io(options, controller.id, 1, 8192, Duration::ZERO);
        Wire::new(&target, io, Duration::ZERO)
    };
    let mut thief = io(ConnectionOptions { credentials: None, ..options.clone() });
    thief.run(&mut disk);
    let mut own = io(options.clone());
    assert_eq!(own.connected(&mut disk), controller.id);
    own.ask(&mut disk, Command::write(1, 0, 1, pattern(512, 1), false)).succeeded();
    // Once it is proven the queue is taken, and stays so when the thief goes away.
    thief.target.disconnected();
    drop(thief);
    let mut second = io(options.clone());
    second.run(&mut disk);
    assert!(matches!(second.closed(), Closed::Refused { .. }), "each queue once");
    // The host's own number is bounded as ever.
    let mut rest: Vec<Controller> =
        (1..per_host).map(|_| enabled_controller(&target, &mut disk, options.clone())).collect();
    let mut beyond = admin(&target, options.credentials.clone());
    while !beyond.target.is_closing() {
        assert!(beyond.exchange(), "it is closed before all is quiet");
        while let Some(request) = beyond.target.next_request() {
            let Operation::Authenticate(proof) = request.operation else { panic!("let in") };
            beyond.target.complete(request.tag, proof.perform());
        }
    }
    drop(beyond);
    rest.pop();
    enabled_controller(&target, &mut disk, options);
}

#[test]
fn keep_alive_counts_from_when_a_host_is_in() {
    let keys = keys(FIRST, None);
    let target = guarded(keys.clone());
    let mut wire = admin(&target, credentials(keys, 1));
    let request = loop {
        assert!(wire.exchange(), "a proof is surfaced before all is quiet");
        if let Some(request) = wire.target.next_request() {
            break request;
        }
    };
    let Operation::Authenticate(proof) = request.operation else { panic!("a proof is first") };
    let judged = Duration::from_secs(9);
    wire.now = judged;
    wire.target.tick(judged);
    wire.target.complete(request.tag, proof.perform());
    wire.run(&mut Disk::new());
    let due = wire.target.next_deadline().expect("it is watched");
    assert!(due > judged, "due {due:?}");
    assert!(!wire.target.is_closing());
}

#[test]
fn a_host_that_never_proves_anything_is_dropped_in_time() {
    let target = guarded(keys(FIRST, None));
    let mut wire = admin(&target, None);
    wire.run(&mut Disk::new());
    assert_eq!(wire.target.next_deadline(), Some(Duration::from_secs(10)));
    wire.target.tick(Duration::from_secs(9));
    assert!(!wire.target.is_closing());
    wire.target.tick(Duration::from_secs(10));
    assert!(wire.target.is_closing());
}

#[test]
fn a_judgement_that_does_not_come_ends_the_connection() {
    let keys = keys(FIRST, None);
    let target = guarded(keys.clone());
    let mut wire = admin(&target, credentials(keys, 1));
    let request = loop {
        assert!(wire.exchange(), "a proof is surfaced before all is quiet");
        if let Some(request) = wire.target.next_request() {
            break request;
        }
    };
    assert!(matches!(request.operation, Operation::Authenticate(_)));
    assert_eq!(wire.target.outstanding(), 1);
    wire.target.complete(request.tag, Outcome::Failed(Status::connect_controller_busy()));
    assert!(wire.target.is_closing());
}

#[test]
fn hosts_without_a_secret_have_no_authentication_commands() {
    let mut disk = Disk::new();
    let (controller, io) = host(&target(), &mut disk, options(SUBSYSTEM));
    let (mut admin, mut io) = (controller.admin.target, io.target);
    for connection in [&mut admin, &mut io] {
        let mut entry = [0; 64];
        (entry[0], entry[1], entry[4], entry[39]) = (0x7F, 0x40, 5, 1);
        entry[32] = 16;
        entry[41..46].copy_from_slice(&[1, 1, 0xE9, 16, 0]);
        let answer = feed(connection, &capsule(&entry, &[0; 16]));
        let status = Status::from_field(u16::from_le_bytes([answer[22], answer[23]]));
        assert_eq!(status, Status::invalid_opcode());
    }
}
