//! PERSISTENT RESERVE OUT (SPC-4 §6.16): from its CDB and parameter list to a request.

use super::cdb::Cdb;
use super::reservation::read_transport_id;
use super::sense::Sense;
use voute_reservation::{Expected, InitiatorPort, Kind, Request};

/// Length of the parameter list without additional data, and of REGISTER AND MOVE's before its
/// TransportID, bytes.
const LIST_LENGTH: u32 = 24;
/// Longest list with TransportIDs, bytes.
const LIST_LENGTH_MAX: u32 = 8 << 10;

/// Service actions.
mod action {
    pub(super) const REGISTER: u8 = 0;
    pub(super) const RESERVE: u8 = 1;
    pub(super) const RELEASE: u8 = 2;
    pub(super) const CLEAR: u8 = 3;
    pub(super) const PREEMPT: u8 = 4;
    pub(super) const PREEMPT_AND_ABORT: u8 = 5;
    pub(super) const REGISTER_AND_IGNORE_EXISTING: u8 = 6;
    pub(super) const REGISTER_AND_MOVE: u8 = 7;
}

const SPEC_I_PT: u8 = 1 << 3;
const ALL_TG_PT: u8 = 1 << 2;
const APTPL: u8 = 1 << 0;

/// The length of the list that the CDB announces, if it may have that.
pub(super) fn list_length(cdb: &Cdb) -> Result<u32, Sense> {
    let length = cdb.u32_at(5);
    let fits = match cdb.service_action() {
        action::REGISTER => (LIST_LENGTH..=LIST_LENGTH_MAX).contains(&length),
        action::REGISTER_AND_MOVE => (LIST_LENGTH + 1..=LIST_LENGTH_MAX).contains(&length),
        _ => length == LIST_LENGTH,
    };
    if fits { Ok(length) } else { Err(Sense::PARAMETER_LENGTH) }
}

/// Reads a list, which is as long as [`list_length`] said or shorter if the host sent less.
pub(super) fn request(service: u8, scope_and_type: u8, list: &[u8]) -> Result<Request, Sense> {
    if list.len() < LIST_LENGTH as usize {
        return Err(Sense::PARAMETER_LENGTH);
    }
    let (key, action_key) = (number(list, 0), number(list, 8));
    if service == action::REGISTER_AND_MOVE {
        return move_request(key, action_key, list);
    }
    let flags = list[20];
    let names_ports = flags & SPEC_I_PT != 0;
    if names_ports && service != action::REGISTER {
        return Err(Sense::INVALID_FIELD_IN_PARAMETERS);
    }
    let registers = |expected, also| Request::Register {
        expected,
        key: action_key,
        all_ports: flags & ALL_TG_PT != 0,
        also,
        persists: Some(flags & APTPL != 0),
    };
    Ok(match service {
        action::REGISTER => {
            let also = if names_ports { named_ports(list)? } else { Vec::new() };
            if !names_ports && list.len() != LIST_LENGTH as usize {
                return Err(Sense::PARAMETER_LENGTH);
            }
            match key {
                0 => registers(Expected::NotRegistered, also),
                // SPEC_I_PT is for registering anew (SPC-4 §6.16.3).
                _ if names_ports => return Err(Sense::INVALID_FIELD_IN_PARAMETERS),
                key => registers(Expected::Key(key), also),
            }
        }
        action::REGISTER_AND_IGNORE_EXISTING => registers(Expected::Anything, Vec::new()),
        action::RESERVE => Request::Reserve { key, kind: kind(scope_and_type)? },
        action::RELEASE => Request::Release { key, kind: kind(scope_and_type)? },
        action::CLEAR => Request::Clear { key },
        action::PREEMPT | action::PREEMPT_AND_ABORT => Request::Preempt {
            key,
            victim: action_key,
            kind: kind(scope_and_type)?,
            aborts: service == action::PREEMPT_AND_ABORT,
        },
        _ => return Err(Sense::INVALID_FIELD_IN_CDB),
    })
}

fn number(list: &[u8], at: usize) -> u64 {
    list[at..at + 8].iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// The scope must be the logical unit's.
fn kind(scope_and_type: u8) -> Result<Kind, Sense> {
    Kind::of_scsi(scope_and_type & 15)
        .filter(|_| scope_and_type >> 4 == 0)
        .ok_or(Sense::INVALID_FIELD_IN_CDB)
}

/// The TransportIDs behind a REGISTER's list (SPC-4 §6.16.4).
fn named_ports(list: &[u8]) -> Result<Vec<InitiatorPort>, Sense> {
    let length = list.get(24..28).ok_or(Sense::PARAMETER_LENGTH)?;
    let length = length.iter().fold(0, |number, byte| number << 8 | usize::from(*byte));
    let mut rest = list.get(28..28 + length).ok_or(Sense::PARAMETER_LENGTH)?;
    let mut ports = Vec::new();
    while !rest.is_empty() {
        let (port, used) = read_transport_id(rest)?;
        rest = &rest[used..];
        if !ports.contains(&port) {
            ports.push(port);
        }
    }
    Ok(ports)
}

/// REGISTER AND MOVE's list (SPC-4 §6.16.5).
fn move_request(key: u64, to_key: u64, list: &[u8]) -> Result<Request, Sense> {
    let relative_port = u16::from_be_bytes([list[18], list[19]]);
    let length = u32::from_be_bytes([list[20], list[21], list[22], list[23]]) as usize;
    let id = list.get(24..).filter(|rest| rest.len() == length).ok_or(Sense::PARAMETER_LENGTH)?;
    let (port, _) = read_transport_id(id)?;
    Ok(Request::Move {
        key,
        to_key,
        port,
        relative_port,
        unregisters: list[17] & 2 != 0,
        persists: list[17] & 1 != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(key: u64, action_key: u64, flags: u8) -> Vec<u8> {
        let mut list = [key.to_be_bytes(), action_key.to_be_bytes()].concat();
        list.extend([0, 0, 0, 0, flags, 0, 0, 0]);
        list
    }

    #[test]
    fn each_service_action_asks_for_what_it_means() {
        let register = |expected, all_ports, persists| Request::Register {
            expected,
            key: 2,
            all_ports,
            also: Vec::new(),
            persists: Some(persists),
        };
        let kind = Kind::ExclusiveAccess;
        let preempt = |aborts| Request::Preempt { key: 1, victim: 2, kind, aborts };
        for (service, list, expected) in [
            (0, list(0, 2, 0), register(Expected::NotRegistered, false, false)),
            (0, list(1, 2, APTPL), register(Expected::Key(1), false, true)),
            (6, list(1, 2, ALL_TG_PT), register(Expected::Anything, true, false)),
            (1, list(1, 2, 0), Request::Reserve { key: 1, kind }),
            (2, list(1, 2, 0), Request::Release { key: 1, kind }),
            (3, list(1, 2, 0), Request::Clear { key: 1 }),
            (4, list(1, 2, 0), preempt(false)),
            (5, list(1, 2, 0), preempt(true)),
        ] {
            assert_eq!(request(service, 3, &list), Ok(expected));
        }
        assert_eq!(request(1, 2, &list(1, 2, 0)), Err(Sense::INVALID_FIELD_IN_CDB));
        assert_eq!(request(1, 0x13, &list(1, 2, 0)), Err(Sense::INVALID_FIELD_IN_CDB));
        assert_eq!(request(6, 3, &list(1, 2, SPEC_I_PT)), Err(Sense::INVALID_FIELD_IN_PARAMETERS));
    }

    #[test]
    fn a_list_that_ends_early_or_late_is_refused() {
        let mut long = list(0, 2, 0);
        long.push(0);
        assert_eq!(request(0, 0, &long), Err(Sense::PARAMETER_LENGTH));
        assert_eq!(request(0, 0, &long[..23]), Err(Sense::PARAMETER_LENGTH));
        let mut named = list(0, 2, SPEC_I_PT);
        assert_eq!(request(0, 0, &named), Err(Sense::PARAMETER_LENGTH));
        named.extend([0, 0, 0, 4]);
        assert_eq!(request(0, 0, &named), Err(Sense::PARAMETER_LENGTH));
        named.extend([0x45, 0, 0, 0]);
        assert_eq!(request(0, 0, &named), Err(Sense::INVALID_FIELD_IN_PARAMETERS));
        let cdb = |service: u8, length: u8| {
            Cdb([0x5f, service, 0, 0, 0, 0, 0, 0, length, 0, 0, 0, 0, 0, 0, 0])
        };
        assert_eq!(list_length(&cdb(0, 60)), Ok(60));
        assert_eq!(list_length(&cdb(1, 60)), Err(Sense::PARAMETER_LENGTH));
        assert_eq!(list_length(&cdb(7, 24)), Err(Sense::PARAMETER_LENGTH));
    }
}
