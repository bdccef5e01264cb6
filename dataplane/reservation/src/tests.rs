use super::*;
use proptest::prelude::*;

fn scsi(name: &str) -> Nexus {
    through(name, 1)
}

fn through(name: &str, relative_port: u16) -> Nexus {
    Nexus::Scsi { port: InitiatorPort::new(name, [0x80, 0, 0, 0, 0, 1]).unwrap(), relative_port }
}

fn nvme(number: u8) -> Nexus {
    Nexus::Nvme { host_id: [number; 16] }
}

fn register(key: u64) -> Request {
    enter(Expected::NotRegistered, key)
}

fn enter(expected: Expected, key: u64) -> Request {
    Request::Register { expected, key, all_ports: false, also: Vec::new(), persists: None }
}

/// `holder` registered with 1 and holding, `other` registered with 2.
fn reserved(kind: Kind, holder: &Nexus, other: &Nexus) -> Reservations {
    let mut state = Reservations::default();
    state.apply(holder, &register(1)).unwrap();
    state.apply(other, &register(2)).unwrap();
    state.apply(holder, &Request::Reserve { key: 1, kind }).unwrap();
    state
}

fn told(to: &Nexus, notice: Notice, aborts: bool) -> Effect {
    Effect { to: to.registrant(false), notice, aborts }
}

/// What each type lets others do: registered ones read, write; strangers read, write. SPC-4 tables
/// 64 and 65, and NVMe Base 2.0's figure, which says the same.
const TABLE: [(u8, u8, [bool; 2], [bool; 2]); 6] = [
    (1, 1, [true, false], [true, false]),
    (3, 2, [false, false], [false, false]),
    (5, 3, [true, true], [true, false]),
    (6, 4, [true, true], [false, false]),
    (7, 5, [true, true], [true, false]),
    (8, 6, [true, true], [false, false]),
];

#[test]
fn each_type_bars_what_the_tables_of_both_protocols_say() {
    let nexuses = [scsi("a"), nvme(1), scsi("b"), nvme(2), scsi("c"), nvme(3)];
    for (scsi_code, nvme_code, registered, stranger) in TABLE {
        let kind = Kind::of_scsi(scsi_code).unwrap();
        assert_eq!(Kind::of_nvme(nvme_code), Some(kind));
        assert_eq!((kind.scsi_code(), kind.nvme_code()), (scsi_code, nvme_code));
        // Whichever protocol holds, and whichever asks.
        for [holder, other] in [[0, 2], [0, 3], [1, 2], [1, 3]] {
            let state = reserved(kind, &nexuses[holder], &nexuses[other]);
            let may = |who: &Nexus| {
                [!state.conflicts(who, Access::Read), !state.conflicts(who, Access::Write)]
            };
            assert_eq!(may(&nexuses[holder]), [true, true], "holder, {kind:?}");
            assert_eq!(may(&nexuses[other]), registered, "registered, {kind:?}");
            for who in [4, 5] {
                assert_eq!(may(&nexuses[who]), stranger, "stranger, {kind:?}");
                assert!(!state.conflicts(&nexuses[who], Access::Identity));
                assert!(!state.conflicts(&nexuses[who], Access::Free));
            }
        }
    }
    assert_eq!([0, 2, 4, 9].map(Kind::of_scsi), [None; 4]);
    assert_eq!([0, 7].map(Kind::of_nvme), [None; 2]);
}

#[test]
fn a_wrong_key_changes_nothing() {
    let (a, b) = (scsi("a"), nvme(2));
    let before = reserved(Kind::WriteExclusive, &a, &b);
    let kind = Kind::WriteExclusive;
    for (who, request) in [
        (&a, enter(Expected::Key(9), 5)),
        (&a, Request::Release { key: 9, kind }),
        (&b, Request::Clear { key: 9 }),
        (&b, Request::Preempt { key: 9, victim: 1, kind, aborts: false }),
        (&scsi("c"), Request::Reserve { key: 0, kind }),
        (&nvme(9), Request::Clear { key: 0 }),
    ] {
        let mut state = before.clone();
        assert_eq!(state.apply(who, &request), Err(Refusal::Conflict), "{request:?}");
        assert_eq!(state, before);
    }
}

#[test]
fn to_register_again_is_an_error_in_scsi_and_none_with_the_same_key_in_nvme() {
    let mut state = Reservations::default();
    for who in [scsi("a"), nvme(1)] {
        state.apply(&who, &register(7)).unwrap();
    }
    assert_eq!(state.apply(&scsi("a"), &register(7)), Err(Refusal::Conflict));
    assert_eq!(state.apply(&nvme(1), &register(7)), Ok(vec![]));
    assert_eq!(state.apply(&nvme(1), &register(8)), Err(Refusal::Conflict));
    // Replacing without regard to status or key registers a host that was not.
    assert_eq!(state.apply(&nvme(2), &enter(Expected::Anything, 3)), Ok(vec![]));
    assert_eq!(state.registrations().len(), 3);
}

#[test]
fn a_stranger_cannot_unregister_in_nvme_and_may_in_scsi() {
    let mut state = Reservations::default();
    assert_eq!(state.apply(&nvme(1), &enter(Expected::Key(1), 0)), Err(Refusal::Conflict));
    assert_eq!(state.apply(&nvme(1), &enter(Expected::Anything, 0)), Err(Refusal::Conflict));
    assert_eq!(state.apply(&scsi("a"), &enter(Expected::NotRegistered, 0)), Ok(vec![]));
    assert!(state.registrations().is_empty());
}

#[test]
fn the_generation_counts_what_changes_registrations_and_nothing_else() {
    let (a, b) = (scsi("a"), nvme(2));
    let kind = Kind::WriteExclusive;
    let mut state = reserved(kind, &a, &b);
    assert_eq!(state.generation(), 2, "reserving does not count");
    for (who, request, generation) in [
        (&a, Request::Release { key: 1, kind }, 2),
        (&a, Request::Reserve { key: 1, kind }, 2),
        (&a, enter(Expected::Key(1), 5), 3),
        (&b, Request::Preempt { key: 2, victim: 5, kind, aborts: false }, 4),
        (&b, Request::Clear { key: 2 }, 5),
    ] {
        state.apply(who, &request).unwrap();
        assert_eq!(state.generation(), generation, "{request:?}");
    }
}

#[test]
fn a_preempted_holder_loses_its_registration_and_is_told() {
    for (a, b) in [(scsi("a"), nvme(2)), (nvme(1), scsi("b"))] {
        let mut state = reserved(Kind::WriteExclusive, &a, &b);
        let kind = Kind::ExclusiveAccess;
        let effects =
            state.apply(&b, &Request::Preempt { key: 2, victim: 1, kind, aborts: true }).unwrap();
        assert_eq!(effects, [told(&a, Notice::RegistrationPreempted, true)]);
        assert!(state.conflicts(&a, Access::Read));
        assert!(!state.conflicts(&b, Access::Write));
        assert_eq!(state.registrations().len(), 1);
    }
}

#[test]
fn preempting_a_key_that_holds_nothing_only_removes_it() {
    let (a, b) = (scsi("a"), nvme(2));
    let mut state = reserved(Kind::WriteExclusive, &a, &b);
    let request =
        Request::Preempt { key: 1, victim: 2, kind: Kind::ExclusiveAccess, aborts: false };
    assert_eq!(state.apply(&a, &request), Ok(vec![told(&b, Notice::RegistrationPreempted, false)]));
    assert_eq!(state.held().unwrap().kind, Kind::WriteExclusive);
    assert_eq!(state.apply(&a, &request), Err(Refusal::Conflict), "nobody has that key any more");
}

#[test]
fn the_key_zero_preempts_all_where_all_hold_and_is_refused_elsewhere() {
    let (a, b, c) = (scsi("a"), nvme(2), nvme(3));
    let all = |kind| Request::Preempt { key: 3, victim: 0, kind, aborts: false };
    for held in Kind::ALL {
        let mut state = reserved(held, &a, &b);
        state.apply(&c, &register(3)).unwrap();
        let result = state.apply(&c, &all(Kind::WriteExclusive));
        if held.is_held_by_all() {
            let notices = [&a, &b].map(|one| told(one, Notice::RegistrationPreempted, false));
            assert_eq!(result, Ok(notices.to_vec()));
            assert!(state.holds(&c.registrant(false)));
        } else {
            assert_eq!(result, Err(Refusal::BadParameter));
        }
    }
}

#[test]
fn a_preemption_that_changes_the_type_tells_the_registrants_that_lose_access() {
    let (a, b, c) = (scsi("a"), nvme(2), nvme(3));
    let mut state = reserved(Kind::WriteExclusiveRegistrantsOnly, &a, &b);
    state.apply(&c, &register(3)).unwrap();
    let request = Request::Preempt { key: 3, victim: 1, kind: Kind::WriteExclusive, aborts: false };
    let effects = state.apply(&c, &request).unwrap();
    assert_eq!(
        effects,
        [
            told(&a, Notice::RegistrationPreempted, false),
            told(&b, Notice::ReservationReleased, false)
        ]
    );
}

#[test]
fn releasing_tells_other_registrants_where_they_had_access() {
    let (a, b) = (scsi("a"), nvme(2));
    for kind in Kind::ALL {
        let mut state = reserved(kind, &a, &b);
        let expected: Vec<Effect> = kind
            .admits_registrants()
            .then(|| told(&b, Notice::ReservationReleased, false))
            .into_iter()
            .collect();
        assert_eq!(state.apply(&a, &Request::Release { key: 1, kind }), Ok(expected));
        assert!(!state.is_reserved());
    }
}

#[test]
fn only_the_holder_releases_and_only_the_type_that_it_holds() {
    let (a, b) = (scsi("a"), nvme(2));
    let mut state = reserved(Kind::WriteExclusive, &a, &b);
    let kind = Kind::WriteExclusive;
    assert_eq!(state.apply(&b, &Request::Release { key: 2, kind }), Ok(vec![]));
    assert!(state.is_reserved(), "no error, and no effect");
    let other = Request::Release { key: 1, kind: Kind::ExclusiveAccess };
    assert_eq!(state.apply(&a, &other), Err(Refusal::OtherType));
    assert_eq!(state.apply(&b, &Request::Reserve { key: 2, kind }), Err(Refusal::Conflict));
    let other = Request::Reserve { key: 1, kind: Kind::ExclusiveAccess };
    assert_eq!(state.apply(&a, &other), Err(Refusal::Conflict));
    assert_eq!(state.apply(&a, &Request::Reserve { key: 1, kind }), Ok(vec![]));
}

#[test]
fn a_holder_that_unregisters_releases_and_all_registrants_with_the_last() {
    let (a, b) = (scsi("a"), nvme(2));
    for kind in Kind::ALL {
        let mut state = reserved(kind, &a, &b);
        state.apply(&a, &enter(Expected::Key(1), 0)).unwrap();
        assert_eq!(state.is_reserved(), kind.is_held_by_all(), "{kind:?}");
        state.apply(&b, &enter(Expected::Key(2), 0)).unwrap();
        assert!(!state.is_reserved());
    }
}

#[test]
fn clearing_removes_everything_and_tells_the_others() {
    let (a, b) = (scsi("a"), nvme(2));
    let mut state = reserved(Kind::ExclusiveAccess, &a, &b);
    let effects = state.apply(&b, &Request::Clear { key: 2 }).unwrap();
    assert_eq!(effects, [told(&a, Notice::ReservationPreempted, false)]);
    assert!(state.registrations().is_empty() && !state.is_reserved());
}

#[test]
fn a_registration_is_of_its_nexus_unless_it_is_for_all_ports() {
    let mut state = Reservations::default();
    state.apply(&through("a", 1), &register(1)).unwrap();
    assert!(state.registration(&through("a", 2)).is_none());
    let all = Request::Register {
        expected: Expected::NotRegistered,
        key: 2,
        all_ports: true,
        also: Vec::new(),
        persists: None,
    };
    state.apply(&through("b", 1), &all).unwrap();
    state
        .apply(&through("b", 1), &Request::Reserve { key: 2, kind: Kind::ExclusiveAccess })
        .unwrap();
    assert!(!state.conflicts(&through("b", 7), Access::Write), "its port at the other site");
    assert!(state.conflicts(&through("a", 2), Access::Read));
}

#[test]
fn ports_named_besides_are_registered_all_or_none() {
    let ports = ["b", "c"].map(|name| InitiatorPort::new(name, [0x80, 0, 0, 0, 0, 1]).unwrap());
    let request = Request::Register {
        expected: Expected::NotRegistered,
        key: 5,
        all_ports: false,
        also: ports.to_vec(),
        persists: Some(true),
    };
    let mut state = Reservations::default();
    state.apply(&scsi("a"), &request).unwrap();
    assert!(["a", "b", "c"].iter().all(|name| state.registration(&scsi(name)).unwrap().key == 5));
    let mut state = Reservations::default();
    state.apply(&scsi("c"), &register(9)).unwrap();
    let before = state.clone();
    assert_eq!(state.apply(&scsi("a"), &request), Err(Refusal::BadParameter));
    assert_eq!(state, before);
}

#[test]
fn a_reservation_moves_to_the_nexus_that_is_named() {
    let (a, b) = (scsi("a"), nvme(2));
    let port = InitiatorPort::new("c", [0x80, 0, 0, 0, 0, 1]).unwrap();
    let give = |to_key, unregisters, port: &InitiatorPort| Request::Move {
        key: 1,
        to_key,
        port: port.clone(),
        relative_port: 1,
        unregisters,
        persists: false,
    };
    let mut state = reserved(Kind::WriteExclusive, &a, &b);
    let own = InitiatorPort::new("a", [0x80, 0, 0, 0, 0, 1]).unwrap();
    assert_eq!(state.apply(&a, &give(3, false, &own)), Err(Refusal::BadParameter));
    assert_eq!(state.apply(&a, &give(0, false, &port)), Err(Refusal::BadParameter));
    state.apply(&a, &give(3, true, &port)).unwrap();
    assert!(!state.conflicts(&scsi("c"), Access::Write));
    assert!(state.conflicts(&a, Access::Write) && state.registration(&a).is_none());
    let mut state = reserved(Kind::WriteExclusiveAllRegistrants, &a, &b);
    assert_eq!(state.apply(&a, &give(3, false, &port)), Err(Refusal::Conflict));
    state.apply(&a, &Request::Clear { key: 1 }).unwrap();
    state.apply(&a, &register(1)).unwrap();
    assert_eq!(state.apply(&a, &give(3, false, &port)), Err(Refusal::NotReserved));
}

#[test]
fn a_legacy_reservation_bars_all_others_until_its_nexus_is_gone() {
    let (a, b) = (scsi("a"), scsi("b"));
    let mut state = Reservations::default();
    state.apply(&a, &Request::ReserveLegacy).unwrap();
    assert_eq!(state.apply(&b, &Request::ReserveLegacy), Err(Refusal::Conflict));
    assert_eq!(state.apply(&b, &Request::ReleaseLegacy), Ok(vec![]));
    for who in [&b, &nvme(1)] {
        assert!(state.conflicts(who, Access::Free) && state.conflicts(who, Access::Read));
        assert_eq!(state.apply(who, &register(1)), Err(Refusal::Conflict));
    }
    assert!(!state.conflicts(&a, Access::Write) && !state.conflicts(&b, Access::Identity));
    assert_eq!(state.encode(), Vec::<u8>::new(), "it is on no leg");
    state.apply(&a, &Request::NexusLost).unwrap();
    assert!(!state.is_reserved());
    state.apply(&b, &register(1)).unwrap();
    assert_eq!(state.apply(&a, &Request::ReserveLegacy), Err(Refusal::Conflict));
}

#[test]
fn only_what_was_asked_to_persist_survives_a_power_cycle() {
    let (a, b) = (scsi("a"), nvme(2));
    let mut state = reserved(Kind::WriteExclusive, &a, &b);
    assert_eq!(state.clone().after_power_cycle(), Reservations::default());
    state.apply(&b, &Request::SetPersistence(true)).unwrap();
    let after = state.clone().after_power_cycle();
    assert_eq!(after.registrations(), state.registrations());
    assert_eq!((after.held(), after.generation()), (state.held(), 0));
}

#[test]
fn registrations_are_bounded_by_number_and_by_bytes() {
    let mut state = Reservations::default();
    for number in 0..REGISTRATIONS_MAX {
        let host_id = (number as u128).to_le_bytes();
        if let Err(refusal) = state.apply(&Nexus::Nvme { host_id }, &register(1)) {
            assert_eq!(refusal, Refusal::NoRoom);
            break;
        }
    }
    assert!(state.registrations().len() >= 100, "{} hosts fit", state.registrations().len());
    assert_eq!(state.apply(&nvme(0xEE), &register(1)), Err(Refusal::NoRoom));
    assert!(state.encode().len() <= RECORD_BYTES_MAX);
    state.apply(&nvme(0), &enter(Expected::Anything, 0)).unwrap();
    let mut state = Reservations::default();
    let longest = |number: usize| format!("{number:0>width$}", width = INITIATOR_NAME_BYTES_MAX);
    let fitting =
        (0..50).take_while(|number| state.apply(&scsi(&longest(*number)), &register(1)).is_ok());
    assert!((10..20).contains(&fitting.count()));
}

#[test]
fn the_record_is_golden_and_comes_back() {
    let mut state = reserved(Kind::ExclusiveAccessRegistrantsOnly, &scsi("iqn.a"), &nvme(2));
    state.apply(&through("iqn.a", 2), &register(1 << 40)).unwrap();
    state.apply(&nvme(2), &Request::SetPersistence(true)).unwrap();
    let mut golden = vec![1, 3, 0, 0, 0, 1, 1, 5];
    golden.extend(b"iqn.a");
    golden.extend([3, 0, 0, 0x80, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0]);
    golden.extend([1]);
    golden.extend([2; 16]);
    golden.extend([2, 0, 0, 0, 0, 0, 0, 0]);
    golden.extend([0, 0, 0x80, 0, 0, 0, 0, 1, 1, 2, 0, 0, 0, 0, 0, 1, 0, 0]);
    golden.extend([1, 3, 0]);
    assert_eq!(state.encode(), golden);
    assert_eq!(Reservations::decode(&golden), Ok(state));
    assert_eq!(Reservations::decode(&[]), Ok(Reservations::default()));
    golden[0] = 2;
    assert_eq!(Reservations::decode(&golden), Err(BadRecord));
}

#[test]
fn an_initiator_port_reads_back_from_its_text() {
    let port = InitiatorPort::new("IQN.2026-01.dev:H", [0x80, 1, 2, 3, 4, 0xff]).unwrap();
    assert_eq!(port.to_string(), "iqn.2026-01.dev:h,i,0x8001020304ff");
    assert_eq!(InitiatorPort::parse(&port.to_string()), Ok(port));
    for text in ["", "name", "name,i,0x", "name,i,0x12", ",i,0x800102030405", "n,i,0x80010203040é"]
    {
        assert_eq!(InitiatorPort::parse(text), Err(BadInitiatorPort), "{text}");
    }
}

fn any_nexus() -> impl Strategy<Value = Nexus> {
    prop_oneof![
        (0..4u8, 1..3u16).prop_map(|(name, port)| through(&format!("h{name}"), port)),
        (0..4u8).prop_map(nvme),
    ]
}

fn any_request() -> impl Strategy<Value = Request> {
    let key = 0..4u64;
    let kind = (0..6usize).prop_map(|at| Kind::ALL[at]);
    let expected = prop_oneof![
        Just(Expected::NotRegistered),
        Just(Expected::Anything),
        key.clone().prop_map(Expected::Key)
    ];
    prop_oneof![
        4 => (expected, key.clone(), any::<bool>()).prop_map(|(expected, key, all_ports)| {
            Request::Register { expected, key, all_ports, also: Vec::new(), persists: None }
        }),
        2 => (key.clone(), kind.clone()).prop_map(|(key, kind)| Request::Reserve { key, kind }),
        1 => (key.clone(), kind.clone()).prop_map(|(key, kind)| Request::Release { key, kind }),
        1 => key.clone().prop_map(|key| Request::Clear { key }),
        2 => (key.clone(), key.clone(), kind, any::<bool>()).prop_map(
            |(key, victim, kind, aborts)| Request::Preempt { key, victim, kind, aborts }
        ),
        1 => (key.clone(), key, any::<bool>()).prop_map(|(key, to_key, unregisters)| {
            let port = InitiatorPort::new("h1", [0x80, 0, 0, 0, 0, 1]).unwrap();
            Request::Move { key, to_key, port, relative_port: 1, unregisters, persists: true }
        }),
        1 => Just(Request::ReserveLegacy),
        1 => Just(Request::NexusLost),
    ]
}

proptest! {
    #[test]
    fn whatever_is_asked_the_state_stays_sound(
        history in prop::collection::vec((any_nexus(), any_request()), 1..60),
    ) {
        let mut state = Reservations::default();
        for (nexus, request) in history {
            let before = state.clone();
            if state.apply(&nexus, &request).is_err() {
                prop_assert_eq!(&state, &before);
            }
            // A holder is registered, no key is zero, and no nexus is registered twice.
            if let Some(held) = state.held() {
                prop_assert!(state.registrations().iter().any(|one| one.registrant == held.by)
                    || held.kind.is_held_by_all() && !state.registrations().is_empty());
            }
            for (at, one) in state.registrations().iter().enumerate() {
                prop_assert!(one.key != 0);
                let rest = &state.registrations()[at + 1..];
                prop_assert!(!rest.iter().any(|other| other.registrant.overlaps(&one.registrant)));
            }
            // The record tells all but RESERVE. Of all registrants any may stand for the holder.
            let back = Reservations::decode(&state.encode()).unwrap();
            let others = [scsi("h0"), through("h1", 2), nvme(0), nvme(1)];
            if state.legacy_holder().is_none() {
                for who in &others {
                    prop_assert_eq!(
                        state.conflicts(who, Access::Write), back.conflicts(who, Access::Write));
                }
            }
            prop_assert_eq!(back.registrations(), state.registrations());
        }
    }

    #[test]
    fn arbitrary_records_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Reservations::decode(&bytes);
        let mut versioned = vec![1];
        versioned.extend(bytes);
        let _ = Reservations::decode(&versioned);
    }
}
