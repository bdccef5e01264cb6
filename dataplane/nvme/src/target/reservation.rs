//! Reservation commands (NVMe Base 2.0 §7.2–7.5) and notices (§5.16.1.22, log page 80h).
//!
//! What is registered and held is for the volume to know (`voute-reservation`): commands become
//! requests for it, and what comes back is written here.

use std::collections::{BTreeMap, VecDeque};

use voute_reservation::{Expected, Kind, Notice, Registrant, Request, Reservations};

use super::io::Demand;
use crate::little_endian::{put, u64_at};
use crate::{Association, Direction, HostView, Status, SubmissionEntry, io_opcode};

const REGISTER_LENGTH: usize = 16;
const ACQUIRE_LENGTH: usize = 16;
const RELEASE_LENGTH: usize = 8;
/// Bit 3 of CDW10: the current key is not looked at.
const IGNORE_EXISTING_KEY: u32 = 1 << 3;
/// Bit 0 of Report's CDW11: the extended data structure, with 128-bit host identifiers.
const EXTENDED: u32 = 1;
/// The header of the extended data structure, and each registered controller in it, bytes.
const ENTRY_LENGTH: usize = 64;
/// Which controller of a host registered says nothing in the dynamic controller model.
const ANY_CONTROLLER: u16 = 0xFFFF;
/// RESCAP: persistence, the six types, and IEKEY as Base 1.3 and later define it.
pub(super) const CAPABILITIES: u8 = 0xFF;

/// Whether this is one of the commands here.
pub(super) fn is_reservation(opcode: u8) -> bool {
    matches!(
        opcode,
        io_opcode::RESERVATION_REGISTER
            | io_opcode::RESERVATION_REPORT
            | io_opcode::RESERVATION_ACQUIRE
            | io_opcode::RESERVATION_RELEASE
    )
}

/// What data a command moves.
pub(super) fn demand(entry: &SubmissionEntry) -> Demand {
    let sends = |length| Demand::at_least(Direction::ToController, length);
    match entry.opcode() {
        io_opcode::RESERVATION_REGISTER => sends(REGISTER_LENGTH),
        io_opcode::RESERVATION_ACQUIRE => sends(ACQUIRE_LENGTH),
        io_opcode::RESERVATION_RELEASE => sends(RELEASE_LENGTH),
        _ => Demand::at_least(Direction::ToHost, 0),
    }
}

/// Hosts whose identifier is zero cannot be told apart, and would share their registrations: they
/// have no reservations (Base 2.0 §8.19).
pub(super) fn check_host(host: &Association, entry: &SubmissionEntry) -> Result<(), Status> {
    match is_reservation(entry.opcode()) && host.host_id == [0; 16] {
        true => Err(Status::operation_denied()),
        false => Ok(()),
    }
}

/// What a command asks of the volume.
pub(super) fn request(entry: &SubmissionEntry, data: &[u8]) -> Result<Request, Status> {
    let dword10 = entry.dword(10);
    let ignores_key = dword10 & IGNORE_EXISTING_KEY != 0;
    let (key, other_key) = (u64_at(data, 0), u64_at(data, 8));
    let kind = || Kind::of_nvme((dword10 >> 8) as u8).ok_or(Status::invalid_field());
    match entry.opcode() {
        io_opcode::RESERVATION_REGISTER => register(dword10, key, other_key),
        io_opcode::RESERVATION_REPORT if entry.dword(11) & EXTENDED == 0 => {
            Err(Status::host_identifier_inconsistent())
        }
        io_opcode::RESERVATION_REPORT => Ok(Request::Report),
        // Acquire and Release do not support IEKEY (Base 1.3 on).
        _ if ignores_key => Err(Status::invalid_field()),
        io_opcode::RESERVATION_ACQUIRE => match dword10 & 7 {
            0 => Ok(Request::Reserve { key, kind: kind()? }),
            action @ (1 | 2) => {
                Ok(Request::Preempt { key, victim: other_key, kind: kind()?, aborts: action == 2 })
            }
            _ => Err(Status::invalid_field()),
        },
        _ => match dword10 & 7 {
            0 => Ok(Request::Release { key, kind: kind()? }),
            1 => Ok(Request::Clear { key }),
            _ => Err(Status::invalid_field()),
        },
    }
}

fn register(dword10: u32, current: u64, new: u64) -> Result<Request, Status> {
    let of_current = match dword10 & IGNORE_EXISTING_KEY {
        0 => Expected::Key(current),
        _ => Expected::Anything,
    };
    let persists = match dword10 >> 30 {
        0 => None,
        2 => Some(false),
        3 => Some(true),
        _ => return Err(Status::invalid_field()),
    };
    let (expected, key) = match (dword10 & 7, of_current) {
        (0, Expected::Anything) => (Expected::Anything, new),
        (0, _) => (Expected::NotRegistered, new),
        (1, expected) => (expected, 0),
        (2, expected) => (expected, new),
        _ => return Err(Status::invalid_field()),
    };
    if key == 0 && dword10 & 7 != 1 {
        return Err(Status::invalid_field());
    }
    Ok(Request::Register { expected, key, all_ports: false, also: Vec::new(), persists })
}

/// The extended data structure of Reservation Report, as long as the host asked for.
pub(super) fn report(entry: &SubmissionEntry, state: &Reservations, longest: usize) -> Vec<u8> {
    let mut data = vec![0; ENTRY_LENGTH];
    let kind = state.held().map_or(0, |held| held.kind.nvme_code());
    put(&mut data, 0, &state.generation().to_le_bytes());
    data[4] = kind;
    put(&mut data, 5, &(state.registrations().len() as u16).to_le_bytes());
    data[9] = state.persists().into();
    for registration in state.registrations() {
        let mut registered = [0; ENTRY_LENGTH];
        put(&mut registered, 0, &ANY_CONTROLLER.to_le_bytes());
        registered[2] = state.holds(&registration.registrant).into();
        put(&mut registered, 8, &registration.key.to_le_bytes());
        put(&mut registered, 16, &host_id(&registration.registrant));
        data.extend_from_slice(&registered);
    }
    let asked = (entry.dword(10) as usize).saturating_add(1).saturating_mul(4);
    data.resize(asked.min(longest), 0);
    data
}

/// A SCSI port has no host identifier: it is told by a number made of its name (FNV-1a, 128 bits),
/// the same each time.
fn host_id(registrant: &Registrant) -> [u8; 16] {
    let (port, relative_port) = match registrant {
        Registrant::Nvme { host_id } => return *host_id,
        Registrant::Scsi { port, relative_port } => (port.to_string(), relative_port.unwrap_or(0)),
    };
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let bytes = port.into_bytes().into_iter().chain(relative_port.to_be_bytes());
    bytes.fold(OFFSET, |hash, byte| (hash ^ u128::from(byte)).wrapping_mul(PRIME)).to_be_bytes()
}

/// Most notices that wait for the host to read log page 80h; older ones are lost beyond.
const NOTICES_MAX: usize = 255;
/// NSID that means all.
const ALL_NAMESPACES: u32 = u32::MAX;

/// The notices of one controller: feature 82h and log page 80h.
#[derive(Default)]
pub(super) struct Notices {
    /// Masks that are not zero, by namespace.
    masks: BTreeMap<u32, u32>,
    /// Number, what, of which namespace.
    waiting: VecDeque<(u64, Notice, u32)>,
    count: u64,
}

const fn code(notice: Notice) -> u8 {
    match notice {
        Notice::RegistrationPreempted => 1,
        Notice::ReservationReleased => 2,
        Notice::ReservationPreempted => 3,
    }
}

impl Notices {
    /// Sets feature 82h of one namespace or of all that the host sees.
    pub(super) fn set_mask(&mut self, nsid: u32, mask: u32, view: &HostView) -> Result<(), Status> {
        let named = view.namespace(nsid).map(|namespace| namespace.nsid);
        let of_all = view.namespaces().iter().map(|namespace| namespace.nsid);
        let namespaces: Vec<u32> = match (nsid, named) {
            (ALL_NAMESPACES, _) => of_all.collect(),
            (_, Some(named)) => vec![named],
            (_, None) => return Err(Status::invalid_namespace()),
        };
        // What is not seen any more needs no mask: the map stays as short as the view.
        self.masks.retain(|nsid, _| view.namespace(*nsid).is_some());
        for nsid in namespaces {
            self.masks.insert(nsid, mask & 0b1110);
        }
        Ok(())
    }

    pub(super) fn mask(&self, nsid: u32, view: &HostView) -> Result<u32, Status> {
        view.namespace(nsid).ok_or(Status::invalid_namespace())?;
        Ok(self.masks.get(&nsid).copied().unwrap_or(0))
    }

    /// Something happened; whether the host is to be told.
    pub(super) fn add(&mut self, nsid: u32, notice: Notice) -> bool {
        if self.masks.get(&nsid).is_some_and(|mask| mask >> code(notice) & 1 != 0) {
            return false;
        }
        self.count += 1;
        self.waiting.push_back((self.count, notice, nsid));
        if self.waiting.len() > NOTICES_MAX {
            self.waiting.pop_front();
        }
        true
    }

    /// The oldest notice as a log page; zeroes if there is none.
    pub(super) fn page(&self) -> Vec<u8> {
        let mut page = vec![0; 64];
        if let Some((number, notice, nsid)) = self.waiting.front() {
            put(&mut page, 0, &number.to_le_bytes());
            page[8] = code(*notice);
            page[9] = (self.waiting.len() - 1) as u8;
            put(&mut page, 12, &nsid.to_le_bytes());
        }
        page
    }

    /// The host has read the oldest; whether there are more.
    pub(super) fn was_read(&mut self) -> bool {
        self.waiting.pop_front();
        !self.waiting.is_empty()
    }
}
