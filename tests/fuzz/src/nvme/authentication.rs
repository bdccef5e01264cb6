//! A host that must prove a secret and does not have it, and a target that asks for one and lies: no
//! order of messages lets the first in, none makes the second trusted.

use super::wire::{C2H_DATA, CAPSULE, Format, IC_REQ, IC_RESP, LAST, RESPONSE, Reader, encode};
use crate::Input;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use voute_nvme::{
    ConnectionOptions, Credentials, Directory, HostKeys, HostView, InitiatorConnection,
    InitiatorEvent, Operation, Secret, Seed, Subsystem, Target, TargetConfig, TargetConnection,
};

const SUBSYSTEM: &str = "nqn.s";
const HOST: &str = "nqn.h";
/// Bytes 0 to 31 and 32 to 63.
const SECRETS: [&str; 2] = [
    "DHHC-1:01:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh+KfiaR:",
    "DHHC-1:00:ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj/jBqb2:",
];
const NOW: Duration = Duration::from_secs(1);

fn keys() -> HostKeys {
    let [host, controller] = SECRETS.map(|text| text.parse::<Secret>().expect("a sound secret"));
    HostKeys { host, controller: Some(controller) }
}

/// A message that is nearly one of the protocol's.
fn message(input: &mut Input<'_>, seen: &[u8]) -> Vec<u8> {
    let mut bytes = match input.below(6) {
        // NEGOTIATE, seldom with a group that costs time.
        0 | 1 => {
            let group = if input.one_in(64) { 1 } else { 0 };
            let mut bytes = vec![0, 0, 0, 0, 7, 0, 0, 1];
            let hash = 1 + input.below(3) as u8;
            bytes.extend([1, 0, 1, 1, hash]);
            bytes.resize(8 + 34, 0);
            bytes.push(group);
            bytes.resize(8 + 64, 0);
            bytes
        }
        // REPLY, with what was sent before as response or second challenge.
        2 | 3 => {
            let length = input.pick(&[32usize, 48, 64, 0, 255]);
            let mut bytes = vec![1, 2, 0, 0, 7, 0, length as u8, 0, input.byte() & 1, 0];
            bytes.resize(16, 0);
            let echo = seen.get(16..).unwrap_or_default();
            for _ in 0..2 {
                let mut value = match input.below(3) {
                    0 => echo.to_vec(),
                    1 => input.take(length).to_vec(),
                    _ => vec![0; length],
                };
                value.resize(length, 0);
                bytes.extend(value);
            }
            bytes
        }
        4 => vec![input.pick(&[0, 1]), input.pick(&[4, 3, 1, 0xF0, 0xF1]), 0, 0, 7, 0, 1, 1],
        _ => {
            let length = input.below(200);
            input.take(length).to_vec()
        }
    };
    if input.one_in(6) && !bytes.is_empty() {
        let at = usize::from(input.half()) % bytes.len();
        bytes[at] ^= input.byte();
    }
    if input.one_in(8) {
        bytes.truncate(usize::from(input.byte()));
    }
    bytes.resize(bytes.len().clamp(8, 4096), 0);
    bytes
}

fn entry(kind: u8, id: u16, length: usize, in_capsule: bool) -> [u8; 64] {
    let mut entry = [0; 64];
    (entry[0], entry[1], entry[4]) = (0x7F, 0x40, kind);
    entry[2..4].copy_from_slice(&id.to_le_bytes());
    entry[32..36].copy_from_slice(&(length as u32).to_le_bytes());
    entry[39] = if in_capsule { 0x01 } else { 0x5A };
    entry
}

fn authentication_entry(kind: u8, id: u16, length: usize) -> [u8; 64] {
    let mut entry = entry(kind, id, length, kind == 5);
    entry[41..44].copy_from_slice(&[1, 1, 0xE9]);
    entry[44..48].copy_from_slice(&(length as u32).to_le_bytes());
    entry
}

/// A host without the secret.
struct Stranger {
    connection: TargetConnection,
    reader: Reader,
    next_id: u16,
    /// The last message of the target.
    seen: Vec<u8>,
}

impl Stranger {
    fn send(&mut self, kind: u8, specific: &[u8], data: &[u8]) {
        let bytes = encode(kind, 0, specific, data, Format::default());
        self.connection.receive(&bytes, NOW);
        while let Some(request) = self.connection.next_request() {
            match request.operation {
                Operation::Authenticate(work) => {
                    let outcome = work.perform();
                    self.connection.complete(request.tag, outcome);
                }
                other => panic!("served without a proof: {other:?}"),
            }
        }
        let output = std::mem::take(self.connection.output());
        self.reader.feed(&output);
        while let Some(pdu) = self.reader.next() {
            if pdu.kind == C2H_DATA {
                self.seen = pdu.data;
            }
        }
    }

    fn id(&mut self) -> u16 {
        self.next_id = self.next_id.wrapping_add(1);
        self.next_id
    }

    /// Whatever it tried, it is not served.
    fn ask_for_service(&mut self) {
        let id = self.id();
        let mut identify = entry(0, id, 4096, false);
        (identify[0], identify[40]) = (6, 1);
        self.seen.clear();
        self.send(CAPSULE, &identify, &[]);
        assert!(self.seen.is_empty(), "a host without the secret is served");
    }
}

fn strange_host(input: &mut Input<'_>) {
    let config = TargetConfig { seed: Seed([input.byte(); 32]), ..TargetConfig::default() };
    let target = Target::new(config).expect("a sound configuration");
    let view = Arc::new(HostView::default());
    let subsystem = Subsystem {
        serial: "1".into(),
        hosts: BTreeMap::from([(HOST.to_owned(), view)]),
        keys: BTreeMap::from([(HOST.to_owned(), Arc::new(keys()))]),
    };
    let subsystems = BTreeMap::from([(SUBSYSTEM.to_owned(), subsystem)]);
    target.publish(Arc::new(Directory::new(subsystems, vec![]).expect("sound names")));
    let connection = TargetConnection::new(target.clone(), 0, NOW);
    let mut host = Stranger { connection, reader: Reader::default(), next_id: 0, seen: Vec::new() };
    host.send(IC_REQ, &[], &[]);
    let mut connect = entry(1, 0, 1024, true);
    connect[44] = 31;
    let mut data = vec![0; 1024];
    data[16..18].fill(0xFF);
    data[256..256 + SUBSYSTEM.len()].copy_from_slice(SUBSYSTEM.as_bytes());
    data[512..512 + HOST.len()].copy_from_slice(HOST.as_bytes());
    host.send(CAPSULE, &connect, &data);
    while !input.is_empty() && !host.connection.is_closing() {
        let id = host.id();
        match input.below(8) {
            0..=3 => {
                let message = message(input, &host.seen);
                let entry = authentication_entry(5, id, message.len());
                host.send(CAPSULE, &entry, &message);
            }
            4..=6 => {
                let length = input.pick(&[4096usize, 16, 80, 200]);
                host.send(CAPSULE, &authentication_entry(6, id, length), &[]);
            }
            _ => host.ask_for_service(),
        }
    }
    if !host.connection.is_closing() {
        host.ask_for_service();
    }
}

/// A target that does not know our secrets.
fn lying_target(input: &mut Input<'_>) {
    let credentials = Some(Credentials { keys: keys(), seed: Seed([input.byte(); 32]) });
    let options =
        ConnectionOptions { credentials, ..ConnectionOptions::new(HOST, [1; 16], SUBSYSTEM) };
    let mut connection = InitiatorConnection::connect_admin(options, NOW);
    let mut initialize = [0; 120];
    initialize[4..8].copy_from_slice(&4096u32.to_le_bytes());
    let mut reader = Reader::default();
    let mut ids = Vec::new();
    let mut last = Vec::new();
    connection.receive(&encode(IC_RESP, 0, &initialize, &[], Format::default()), NOW);
    let mut asks = 1u32 << 17;
    loop {
        let output = std::mem::take(connection.output());
        reader.feed(&output);
        while let Some(pdu) = reader.next() {
            if pdu.kind == CAPSULE {
                ids.push((pdu.half(10), pdu.header[12] == 6));
                last = pdu.data;
            }
        }
        while let Some(event) = connection.next_event() {
            let is_trusted = matches!(event, InitiatorEvent::Connected { .. });
            assert!(!is_trusted, "a target without the secret is trusted");
        }
        if connection.is_closing() || input.is_empty() {
            return;
        }
        let Some((id, receives)) = ids.pop() else { return };
        let mut bytes = Vec::new();
        if receives {
            let mut data = match input.below(3) {
                0 => {
                    let length = input.pick(&[32u8, 48, 64]);
                    let hash = length / 16 - 1;
                    let mut data = vec![1, 1, 0, 0, 0, 0, length, 0, hash, 0, 0, 0, 1, 0, 0, 0];
                    data.resize(16 + usize::from(length), input.byte());
                    data
                }
                1 => {
                    let length = input.pick(&[32u8, 48, 64]);
                    let mut data = vec![1, 3, 0, 0, 0, 0, length, 0, input.byte() & 1];
                    data.resize(16, 0);
                    data.extend(last.iter().skip(16).take(length.into()));
                    data
                }
                _ => message(input, &last),
            };
            if input.one_in(10) {
                let at = usize::from(input.half()) % data.len();
                data[at] ^= input.byte();
            }
            let mut specific = [0; 16];
            specific[..2].copy_from_slice(&id.to_le_bytes());
            specific[8..12].copy_from_slice(&(data.len() as u32).to_le_bytes());
            bytes = encode(C2H_DATA, LAST, &specific, &data, Format::default());
        }
        let mut specific = [0; 16];
        specific[..4].copy_from_slice(&(asks | 1).to_le_bytes());
        specific[12..14].copy_from_slice(&id.to_le_bytes());
        asks = 0;
        bytes.extend(encode(RESPONSE, 0, &specific, &[], Format::default()));
        connection.receive(&bytes, NOW);
    }
}

/// Runs one session, and reads the input as a secret's text.
pub fn authentication(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(secret) = text.parse::<Secret>()
    {
        assert_eq!(secret.to_text().parse(), Ok(secret), "a secret reads back");
    }
    let mut input = Input::new(bytes);
    match input.below(3) {
        0 | 1 => strange_host(&mut input),
        _ => lying_target(&mut input),
    }
}
