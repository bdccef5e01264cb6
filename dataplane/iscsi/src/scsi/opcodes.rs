//! The commands that are supported, their CDB usage, and what guards each: one table serves REPORT
//! SUPPORTED OPERATION CODES and the checks before execution.

use super::cdb::Cdb;
use super::sense::Sense;

/// What a reservation of another I_T nexus does to a command (SPC-4 §5.13, SPC-2 §5.5).
pub(crate) use voute_reservation::Access as Guard;

/// Whether the access state of this path matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Answered in every state.
    Always,
    /// Answered by an active path only.
    Medium,
    /// Answered by a path on standby too (SPC-4 §5.15.2.4.4), which asks the volume's owner.
    Reservations,
}

/// One row of the table.
pub(crate) struct Supported {
    pub(crate) opcode: u8,
    pub(crate) service_action: Option<u8>,
    pub(crate) guard: Guard,
    pub(crate) access: Access,
    /// CDB usage data (SPC-4 §6.35.3), with the opcode in front.
    pub(crate) usage: &'static [u8],
}

const fn row(
    usage: &'static [u8],
    service_action: Option<u8>,
    guard: Guard,
    access: Access,
) -> Supported {
    Supported { opcode: usage[0], service_action, guard, access, usage }
}

use Access::{Always, Medium, Reservations};
use Guard::{Free, Identity, Read, Write};

/// DPO and FUA.
const F: u8 = 0x18;

/// In order of opcode and service action.
pub(crate) static TABLE: &[Supported] = &[
    row(&[0x00, 0, 0, 0, 0, 0], None, Free, Medium),
    row(&[0x03, 0x01, 0, 0, 0xff, 0], None, Identity, Always),
    row(&[0x08, 0x1f, 0xff, 0xff, 0xff, 0], None, Read, Medium),
    row(&[0x0a, 0x1f, 0xff, 0xff, 0xff, 0], None, Write, Medium),
    row(&[0x12, 0x01, 0xff, 0xff, 0xff, 0], None, Identity, Always),
    row(&[0x15, 0x11, 0, 0, 0xff, 0], None, Write, Always),
    row(&[0x16, 0, 0, 0, 0, 0], None, Free, Medium),
    row(&[0x17, 0, 0, 0, 0, 0], None, Identity, Medium),
    row(&[0x1a, 0x08, 0xff, 0xff, 0xff, 0], None, Write, Always),
    row(&[0x1b, 0x01, 0, 0, 0xf3, 0], None, Free, Medium),
    row(&[0x1d, 0x04, 0, 0, 0, 0], None, Write, Always),
    row(&[0x1e, 0, 0, 0, 0x03, 0], None, Free, Medium),
    row(&[0x25, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0x01, 0], None, Free, Always),
    row(&[0x28, F, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0], None, Read, Medium),
    row(&[0x2a, F, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0], None, Write, Medium),
    row(&[0x2e, 0x16, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0], None, Write, Medium),
    row(&[0x2f, 0x16, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0], None, Read, Medium),
    row(&[0x34, 0x02, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0], None, Read, Medium),
    row(&[0x35, 0x02, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0], None, Write, Medium),
    row(&[0x37, 0, 0x1f, 0, 0, 0, 0, 0xff, 0xff, 0], None, Read, Medium),
    row(&[0x41, 0x18, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, 0], None, Write, Medium),
    row(&[0x42, 0x01, 0, 0, 0, 0, 0, 0xff, 0xff, 0], None, Write, Medium),
    row(&[0x4d, 0, 0xff, 0xff, 0, 0xff, 0xff, 0xff, 0xff, 0], None, Free, Always),
    row(&[0x55, 0x11, 0, 0, 0, 0, 0, 0xff, 0xff, 0], None, Write, Always),
    row(&[0x56, 0x10, 0, 0, 0, 0, 0, 0, 0, 0], None, Free, Medium),
    row(&[0x57, 0x10, 0, 0, 0, 0, 0, 0, 0, 0], None, Identity, Medium),
    row(&[0x5a, 0x18, 0xff, 0xff, 0, 0, 0, 0xff, 0xff, 0], None, Write, Always),
    row(&[0x5e, 0x00, 0, 0, 0, 0, 0, 0xff, 0xff, 0], Some(0), Free, Reservations),
    row(&[0x5e, 0x01, 0, 0, 0, 0, 0, 0xff, 0xff, 0], Some(1), Free, Reservations),
    row(&[0x5e, 0x02, 0, 0, 0, 0, 0, 0xff, 0xff, 0], Some(2), Free, Reservations),
    row(&[0x5e, 0x03, 0, 0, 0, 0, 0, 0xff, 0xff, 0], Some(3), Free, Reservations),
    row(&[0x5f, 0x00, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0], Some(0), Free, Reservations),
    row(&[0x5f, 0x01, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0], Some(1), Free, Reservations),
    row(&[0x5f, 0x02, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0], Some(2), Free, Reservations),
    row(&[0x5f, 0x03, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0], Some(3), Free, Reservations),
    row(&[0x5f, 0x04, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0], Some(4), Free, Reservations),
    row(&[0x5f, 0x05, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0], Some(5), Free, Reservations),
    row(&[0x5f, 0x06, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0], Some(6), Free, Reservations),
    row(&[0x5f, 0x07, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, 0], Some(7), Free, Reservations),
    row(&[0x83, 0x00, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 0, 0], Some(0), Write, Medium),
    row(&[0x84, 0x00, 255, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 0, 0], Some(0), Free, Always),
    row(&[0x84, 0x03, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 0, 0], Some(3), Free, Always),
    row(&[0x84, 0x04, 255, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 0, 0], Some(4), Free, Always),
    row(
        &[0x88, F, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0],
        None,
        Read,
        Medium,
    ),
    row(
        &[0x89, F, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 0, 0xff, 0, 0],
        None,
        Write,
        Medium,
    ),
    row(
        &[0x8a, F, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0],
        None,
        Write,
        Medium,
    ),
    row(
        &[0x8b, F, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0],
        None,
        Write,
        Medium,
    ),
    row(
        &[0x8e, 0x16, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0],
        None,
        Write,
        Medium,
    ),
    row(
        &[0x8f, 0x16, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0],
        None,
        Read,
        Medium,
    ),
    row(
        &[0x90, 0x02, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0],
        None,
        Read,
        Medium,
    ),
    row(
        &[0x91, 0x02, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0],
        None,
        Write,
        Medium,
    ),
    row(
        &[0x93, 0x19, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0],
        None,
        Write,
        Medium,
    ),
    row(
        &[0x9c, F, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0, 255, 255, 0, 0],
        None,
        Write,
        Medium,
    ),
    row(&[0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 255, 255, 0, 0], Some(0x10), Free, Always),
    row(
        &[0x9e, 0x12, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0],
        Some(0x12),
        Read,
        Medium,
    ),
    row(&[0xa0, 0, 0xff, 0, 0, 0, 255, 255, 255, 255, 0, 0], None, Identity, Always),
    row(&[0xa3, 0x0a, 0, 0, 0, 0, 255, 255, 255, 255, 0, 0], Some(0x0a), Free, Always),
    row(&[0xa3, 0x0c, 0x87, 0xff, 0xff, 0xff, 255, 255, 255, 255, 0, 0], Some(0x0c), Free, Always),
    row(&[0xa3, 0x0d, 0x80, 0, 0, 0, 255, 255, 255, 255, 0, 0], Some(0x0d), Free, Always),
    row(&[0xa4, 0x0a, 0, 0, 0, 0, 255, 255, 255, 255, 0, 0], Some(0x0a), Write, Always),
    row(&[0xa8, F, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0], None, Read, Medium),
    row(&[0xaa, F, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0], None, Write, Medium),
    row(&[0xae, 0x16, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0], None, Write, Medium),
    row(&[0xaf, 0x16, 255, 255, 255, 255, 255, 255, 255, 255, 0, 0], None, Read, Medium),
    row(&[0xb7, 0x1f, 0, 0, 0, 0, 255, 255, 255, 255, 0, 0], None, Read, Medium),
];

/// Whether the commands of this opcode differ by service action.
pub(crate) fn has_service_actions(opcode: u8) -> bool {
    TABLE.iter().any(|row| row.opcode == opcode && row.service_action.is_some())
}

/// The row of an opcode and, where it has them, service action.
pub(crate) fn find(opcode: u8, service_action: u8) -> Option<&'static Supported> {
    TABLE.iter().find(|row| {
        row.opcode == opcode && row.service_action.is_none_or(|action| action == service_action)
    })
}

/// The row of a command, or what to refuse it with.
pub(crate) fn check(cdb: &Cdb) -> Result<&'static Supported, Sense> {
    find(cdb.opcode(), cdb.service_action()).ok_or_else(|| {
        if has_service_actions(cdb.opcode()) {
            Sense::invalid_field_at(1)
        } else {
            Sense::INVALID_OPCODE
        }
    })
}

/// REPORT SUPPORTED OPERATION CODES (SPC-4 §6.35).
pub(crate) fn report(cdb: &Cdb) -> Result<Vec<u8>, Sense> {
    let with_timeouts = cdb.bit(2, 7);
    let (opcode, action) = (cdb.0[3], cdb.u16_at(4));
    match cdb.0[2] & 7 {
        0 => Ok(report_all(with_timeouts)),
        1 if has_service_actions(opcode) => Err(Sense::invalid_field_at(2)),
        2 if !has_service_actions(opcode) => Err(Sense::invalid_field_at(2)),
        1 => Ok(report_one(find(opcode, 0), with_timeouts)),
        2 | 3 => {
            let row = u8::try_from(action).ok().and_then(|action| find(opcode, action));
            Ok(report_one(row, with_timeouts))
        }
        _ => Err(Sense::invalid_field_at(2)),
    }
}

/// No timeouts are told: a descriptor of zeroes (SPC-4 §6.35.4).
const TIMEOUTS: [u8; 12] = [0, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn report_all(with_timeouts: bool) -> Vec<u8> {
    let mut data = vec![0; 4];
    for row in TABLE {
        let flags = u8::from(with_timeouts) << 1 | u8::from(row.service_action.is_some());
        let action = row.service_action.unwrap_or(0);
        data.extend_from_slice(&[row.opcode, 0, 0, action, 0, flags, 0, row.usage.len() as u8]);
        if with_timeouts {
            data.extend_from_slice(&TIMEOUTS);
        }
    }
    let length = (data.len() - 4) as u32;
    data[..4].copy_from_slice(&length.to_be_bytes());
    data
}

fn report_one(row: Option<&Supported>, with_timeouts: bool) -> Vec<u8> {
    let Some(row) = row else { return vec![0, 1, 0, 0] };
    let mut data = vec![0, u8::from(with_timeouts) << 7 | 3, 0, row.usage.len() as u8];
    data.extend_from_slice(row.usage);
    if with_timeouts {
        data.extend_from_slice(&TIMEOUTS);
    }
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_order_and_each_cdb_has_its_groups_length() {
        assert!(TABLE.windows(2).all(|pair| {
            (pair[0].opcode, pair[0].service_action) < (pair[1].opcode, pair[1].service_action)
        }));
        for row in TABLE {
            let length = match row.opcode >> 5 {
                0 => 6,
                4 => 16,
                5 => 12,
                _ => 10,
            };
            assert_eq!(row.usage.len(), length, "opcode {:02x}", row.opcode);
        }
    }
}
