use super::group::{PrivateValue, prime};
use super::*;
use crate::Outcome;
use std::sync::Arc;
use voute_buffer::Buffer;

const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:0f7a1c9e-0000-4000-8000-000000000001";
const SUBSYSTEM: &str = "nqn.2026-01.io.voute:subsystem";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn secret(hash: u8, fill: u8) -> Secret {
    let length = [48, 32, 48, 64][usize::from(hash)];
    let mut key: Vec<u8> = (0..length).map(|index| index ^ fill).collect();
    let sum = crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32IsoHdlc, &key) as u32;
    key.extend(sum.to_le_bytes());
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(key);
    format!("DHHC-1:{hash:02}:{text}:").parse().expect("made by the rules")
}

/// First and last digits as RFC 7919 prints them, and Fermat's little theorem: 2^(p-1) is 1.
#[test]
fn the_primes_are_those_of_rfc_7919() {
    let last = [
        (2048, 560_316, "886b423861285c97ffffffffffffffff"),
        (3072, 2_625_351, "25e41d2b66c62e37ffffffffffffffff"),
        (4096, 5_736_041, "c68a007e5e655f6affffffffffffffff"),
        (6144, 15_705_020, "a41d570d7938dad4a40e329cd0e40e65ffffffffffffffff"),
        (8192, 10_965_728, "d68c8bb7c5c6424cffffffffffffffff"),
    ];
    for (bits, addend, end) in last {
        let prime = prime(bits, addend);
        let digits = hex(&prime);
        assert!(digits.starts_with("ffffffffffffffffadf85458a2bb4a9aafdc5620273d3cf1"), "{bits}");
        assert!(digits.ends_with(end), "{bits} ends with {}", &digits[digits.len() - 48..]);
        use crypto_bigint::modular::{BoxedMontyForm, BoxedMontyParams};
        use crypto_bigint::{BoxedUint, Odd};
        let modulus = BoxedUint::from_be_slice(&prime, bits as u32).expect("fits");
        let one = BoxedUint::one_with_precision(bits as u32);
        let exponent = modulus.wrapping_sub(&one);
        let field = BoxedMontyParams::new_vartime(Odd::new(modulus).into_option().expect("odd"));
        let two = BoxedMontyForm::new(one.wrapping_add(&one), &field);
        assert_eq!(two.pow(&exponent).retrieve(), one, "{bits}");
    }
}

#[test]
fn both_sides_of_an_exchange_share_a_secret() {
    let groups = Group::PREFERRED.into_iter().filter(|group| *group != Group::Null);
    for group in groups {
        let [a, b] = [3u8, 77].map(|fill| PrivateValue::new(group, &[fill; 64]).expect("a group"));
        let (to_a, to_b) = (b.public(), a.public());
        assert_eq!(to_a.len(), group.length());
        assert_eq!(a.shared(&to_a), b.shared(&to_b), "{group:?}");
        let mut one = vec![0; group.length()];
        assert_eq!(a.shared(&one), None, "zero is no public value");
        *one.last_mut().expect("not empty") = 1;
        assert_eq!(a.shared(&one), None, "one is none either");
        assert_eq!(a.shared(&vec![0xFF; group.length()]), None, "beyond the prime");
        assert_eq!(a.shared(&to_a[1..]), None, "too short");
    }
}

#[test]
fn a_secret_reads_back_and_a_spoiled_one_does_not() {
    for hash in 0..4 {
        let whole = secret(hash, 0x51);
        let text = whole.to_text();
        assert_eq!(text.parse(), Ok(whole.clone()));
        assert_eq!(format!("{whole:?}"), "Secret(..)");
        let at = text.len() - 9;
        let other = if text.as_bytes()[at] == b'A' { "B" } else { "A" };
        let mut spoiled = text.clone();
        spoiled.replace_range(at..=at, other);
        assert_eq!(spoiled.parse::<Secret>(), Err(SecretError::CheckSum));
    }
    for (text, error) in [
        ("DHHC-1:00:AAAA:", SecretError::Length(0)),
        ("DHHC-1:09:AAAA:", SecretError::Form),
        ("DHHC-1:00:AAAA", SecretError::Form),
        ("DHHC-2:00:AAAA:", SecretError::Form),
        ("DHHC-1:00:!!!!:", SecretError::Base64),
        ("", SecretError::Form),
    ] {
        assert_eq!(text.parse::<Secret>(), Err(error), "{text}");
    }
    // A key of 32 bytes that is to be transformed by SHA-512.
    let short = secret(1, 0).to_text().replace("DHHC-1:01", "DHHC-1:03");
    assert_eq!(short.parse::<Secret>(), Err(SecretError::Length(32)));
}

/// Runs a whole exchange; what the host thinks of it, and what the controller thinks.
fn run(of_host: HostKeys, of_target: HostKeys) -> (Turn, Verdict) {
    let mut client = Client::new(of_host, HOST, SUBSYSTEM, (Seed([1; 32]), 9));
    let seed = (Seed([2; 32]), 5);
    let mut server = Box::new(Server::new(Arc::new(of_target), HOST, SUBSYSTEM, seed));
    let mut turn = client.go_on();
    for _ in 0..10 {
        turn = match turn {
            Turn::Send(message) => {
                let message = Buffer::copy_of(&message);
                let work = Authentication { server, message };
                server = match work.perform() {
                    Outcome::Authenticated(state) => state.0,
                    other => panic!("{other:?}"),
                };
                client.go_on()
            }
            Turn::Receive => match server.give(MESSAGE_LENGTH_MAX) {
                Ok(message) => client.take(&message),
                Err(status) => panic!("{status}"),
            },
            end => return (end, server.verdict()),
        };
    }
    panic!("it does not end");
}

#[test]
fn the_right_secrets_are_accepted_one_way_and_both_ways() {
    for hash in 0..4 {
        let one_way = HostKeys { host: secret(hash, 1), controller: None };
        assert_eq!(run(one_way.clone(), one_way.clone()), (Turn::Done, Verdict::Authentic));
        let both = HostKeys { controller: Some(secret(3 - hash, 2)), ..one_way.clone() };
        assert_eq!(run(both.clone(), both.clone()), (Turn::Done, Verdict::Authentic));
        // A host need not ask for a proof.
        assert_eq!(run(one_way, both), (Turn::Done, Verdict::Authentic));
    }
}

#[test]
fn a_wrong_secret_of_the_host_is_refused() {
    let right = HostKeys { host: secret(1, 1), controller: None };
    let wrong = HostKeys { host: secret(1, 2), controller: None };
    let (turn, verdict) = run(wrong, right);
    let failure = super::message::Failure::Failed;
    assert_eq!(turn, Turn::Fail { message: None, failure, is_target: false });
    assert_eq!(verdict, Verdict::Failed);
}

#[test]
fn a_wrong_secret_of_the_controller_is_noticed() {
    let host = secret(2, 1);
    let ours = HostKeys { host: host.clone(), controller: Some(secret(1, 7)) };
    let theirs = HostKeys { host: host.clone(), controller: Some(secret(1, 8)) };
    let (turn, verdict) = run(ours.clone(), theirs);
    assert!(matches!(turn, Turn::Fail { message: Some(_), is_target: true, .. }), "{turn:?}");
    assert_eq!(verdict, Verdict::Pending, "nothing is served before the host is content");
    let none = HostKeys { host, controller: None };
    let (turn, verdict) = run(ours, none);
    assert!(matches!(turn, Turn::Fail { message: None, is_target: false, .. }), "{turn:?}");
    assert_eq!(verdict, Verdict::Failed);
}

#[test]
fn values_differ_by_seed_serial_and_draw() {
    let mut seen = std::collections::HashSet::new();
    for (seed, serial) in [(1, 1), (1, 2), (2, 1)] {
        let mut random = Random::new(Seed([seed; 32]), serial);
        assert!((0..3).all(|_| seen.insert(random.draw(64))));
    }
}
