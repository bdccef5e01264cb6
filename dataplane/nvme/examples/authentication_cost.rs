//! How long the target computes for one host that proves itself, the host's part included (print-out in
//! microseconds). Run it in release mode, alone on the machine.

#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use voute_nvme::{
    ConnectionOptions, Credentials, Directory, HostKeys, HostView, InitiatorConnection, Operation,
    Seed, Subsystem, Target, TargetConfig, TargetConnection,
};

const ROUNDS: u32 = 200;

fn main() {
    let secret = "DHHC-1:01:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+KfiaR:";
    let keys = HostKeys { host: secret.parse().expect("a sound secret"), controller: None };
    let target = Target::new(TargetConfig::default()).expect("a sound configuration");
    let (nqn, host) = ("nqn.s".to_owned(), "nqn.h".to_owned());
    let subsystem = Subsystem {
        serial: "1".into(),
        hosts: BTreeMap::from([(host.clone(), Arc::new(HostView::default()))]),
        keys: BTreeMap::from([(host.clone(), Arc::new(keys.clone()))]),
    };
    let directory = Directory::new(BTreeMap::from([(nqn.clone(), subsystem)]), vec![]);
    target.publish(Arc::new(directory.expect("sound names")));
    let (mut judged, began) = (Duration::ZERO, Instant::now());
    for round in 0..ROUNDS {
        let credentials = Some(Credentials { keys: keys.clone(), seed: Seed([round as u8; 32]) });
        let options =
            ConnectionOptions { credentials, ..ConnectionOptions::new(&host, [1; 16], &nqn) };
        let mut initiator = InitiatorConnection::connect_admin(options, Duration::ZERO);
        let mut connection = TargetConnection::new(target.clone(), 1, Duration::ZERO);
        while initiator.room() == 0 {
            let up = std::mem::take(initiator.output());
            connection.receive(&up, Duration::ZERO);
            while let Some(request) = connection.next_request() {
                let Operation::Authenticate(work) = request.operation else { continue };
                let start = Instant::now();
                let outcome = work.perform();
                judged += start.elapsed();
                connection.complete(request.tag, outcome);
            }
            let down = std::mem::take(connection.output());
            initiator.receive(&down, Duration::ZERO);
        }
    }
    println!("target: {} us a host", (judged / ROUNDS).as_micros());
    println!("both:   {} us a host", (began.elapsed() / ROUNDS).as_micros());
}
