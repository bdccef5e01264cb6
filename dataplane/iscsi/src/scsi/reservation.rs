//! Reservations of a logical unit (SPC-4 §5.13; SPC-2 §5.5 for the legacy ones): who registered, who
//! holds, and what conflicts. `reservation_out` changes it, PERSISTENT RESERVE IN tells it.

use super::cdb::Cdb;
use super::opcodes::Guard;
use super::sense::Sense;

/// Most registrations of one unit.
pub(super) const REGISTRATIONS_MAX: usize = 256;

/// An I_T nexus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Nexus {
    /// Initiator port name, with the ISID.
    pub(crate) initiator_port: String,
    /// Relative target port identifier.
    pub(crate) relative_port: u16,
}

/// Whom a registration is of: an initiator port through one target port, or through all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Registrant {
    pub(super) initiator_port: String,
    /// None: all target ports (ALL_TG_PT).
    pub(super) relative_port: Option<u16>,
}

impl Registrant {
    pub(crate) fn is(&self, nexus: &Nexus) -> bool {
        self.initiator_port == nexus.initiator_port
            && self.relative_port.is_none_or(|port| port == nexus.relative_port)
    }
}

#[derive(Clone, Debug)]
pub(super) struct Registration {
    pub(super) registrant: Registrant,
    pub(super) key: u64,
}

/// Reservation types (SPC-4 §6.16.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    WriteExclusive = 1,
    ExclusiveAccess = 3,
    WriteExclusiveRegistrantsOnly = 5,
    ExclusiveAccessRegistrantsOnly = 6,
    WriteExclusiveAllRegistrants = 7,
    ExclusiveAccessAllRegistrants = 8,
}

impl Kind {
    pub(super) fn from_code(code: u8) -> Option<Self> {
        Some(match code {
            1 => Kind::WriteExclusive,
            3 => Kind::ExclusiveAccess,
            5 => Kind::WriteExclusiveRegistrantsOnly,
            6 => Kind::ExclusiveAccessRegistrantsOnly,
            7 => Kind::WriteExclusiveAllRegistrants,
            8 => Kind::ExclusiveAccessAllRegistrants,
            _ => return None,
        })
    }

    pub(super) fn bars_reads(self) -> bool {
        match self {
            Kind::ExclusiveAccess
            | Kind::ExclusiveAccessRegistrantsOnly
            | Kind::ExclusiveAccessAllRegistrants => true,
            Kind::WriteExclusive
            | Kind::WriteExclusiveRegistrantsOnly
            | Kind::WriteExclusiveAllRegistrants => false,
        }
    }

    /// Whether every registrant may do what the holder may.
    pub(super) fn admits_registrants(self) -> bool {
        match self {
            Kind::WriteExclusive | Kind::ExclusiveAccess => false,
            Kind::WriteExclusiveRegistrantsOnly
            | Kind::ExclusiveAccessRegistrantsOnly
            | Kind::WriteExclusiveAllRegistrants
            | Kind::ExclusiveAccessAllRegistrants => true,
        }
    }

    pub(super) fn is_held_by_all(self) -> bool {
        match self {
            Kind::WriteExclusiveAllRegistrants | Kind::ExclusiveAccessAllRegistrants => true,
            Kind::WriteExclusive
            | Kind::ExclusiveAccess
            | Kind::WriteExclusiveRegistrantsOnly
            | Kind::ExclusiveAccessRegistrantsOnly => false,
        }
    }
}

/// A persistent reservation. For the all-registrants types `by` is whoever asked, and only a name.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) by: Registrant,
    pub(super) kind: Kind,
}

/// The reservations of one unit.
#[derive(Debug, Default)]
pub(crate) struct Reservations {
    /// PRGENERATION.
    pub(super) generation: u32,
    pub(super) registrations: Vec<Registration>,
    pub(super) held: Option<Held>,
    legacy: Option<Nexus>,
}

impl Reservations {
    /// Whether any command could be in conflict.
    pub(crate) fn is_reserved(&self) -> bool {
        self.held.is_some() || self.legacy.is_some()
    }

    pub(crate) fn conflicts(&self, nexus: &Nexus, guard: Guard) -> bool {
        if self.legacy.as_ref().is_some_and(|holder| holder != nexus) && guard != Guard::Identity {
            return true;
        }
        let Some(held) = &self.held else { return false };
        let is_registered = self.registration(nexus).is_some();
        if is_registered && (held.by.is(nexus) || held.kind.admits_registrants()) {
            return false;
        }
        match guard {
            Guard::Identity | Guard::Free => false,
            Guard::Read => held.kind.bars_reads(),
            Guard::Write => true,
        }
    }

    pub(super) fn registration(&self, nexus: &Nexus) -> Option<&Registration> {
        self.registrations.iter().find(|registration| registration.registrant.is(nexus))
    }

    /// Whether this registrant holds the reservation.
    pub(super) fn holds(&self, registrant: &Registrant) -> bool {
        self.held.as_ref().is_some_and(|held| held.kind.is_held_by_all() || held.by == *registrant)
    }

    /// RESERVE: false is a conflict. Persistent registrations and legacy reservations exclude each
    /// other (SPC-4 §5.13.3).
    pub(crate) fn reserve_legacy(&mut self, nexus: &Nexus) -> bool {
        if !self.registrations.is_empty()
            || self.legacy.as_ref().is_some_and(|holder| holder != nexus)
        {
            return false;
        }
        self.legacy = Some(nexus.clone());
        true
    }

    /// RELEASE: of somebody else's reservation it does nothing (SPC-2 §7.17).
    pub(crate) fn release_legacy(&mut self, nexus: &Nexus) {
        self.legacy.take_if(|holder| holder == nexus);
    }

    /// The nexus is gone: its legacy reservation goes, its registration stays.
    pub(crate) fn nexus_lost(&mut self, nexus: &Nexus) {
        self.release_legacy(nexus);
    }

    /// A logical unit reset ends a legacy reservation.
    pub(crate) fn unit_reset(&mut self) {
        self.legacy = None;
    }

    /// PERSISTENT RESERVE IN (SPC-4 §6.15).
    pub(crate) fn report(&self, cdb: &Cdb) -> Result<Vec<u8>, Sense> {
        let mut data = self.generation.to_be_bytes().to_vec();
        match cdb.service_action() {
            0 => {
                data.extend_from_slice(&((self.registrations.len() * 8) as u32).to_be_bytes());
                for registration in &self.registrations {
                    data.extend_from_slice(&registration.key.to_be_bytes());
                }
            }
            1 => self.report_reservation(&mut data),
            2 => return Ok(capabilities()),
            3 => self.report_full_status(&mut data),
            _ => return Err(Sense::INVALID_FIELD_IN_CDB),
        }
        Ok(data)
    }

    fn report_reservation(&self, data: &mut Vec<u8>) {
        let Some(held) = &self.held else {
            data.extend_from_slice(&[0; 4]);
            return;
        };
        let holder =
            self.registrations.iter().find(|registration| registration.registrant == held.by);
        // The all-registrants types have no one key (SPC-4 §6.15.3.2).
        let key = if held.kind.is_held_by_all() {
            0
        } else {
            holder.map_or(0, |registration| registration.key)
        };
        data.extend_from_slice(&16u32.to_be_bytes());
        data.extend_from_slice(&key.to_be_bytes());
        data.extend_from_slice(&[0, 0, 0, 0, 0, held.kind as u8, 0, 0]);
    }

    fn report_full_status(&self, data: &mut Vec<u8>) {
        let mut body = Vec::new();
        for registration in &self.registrations {
            let registrant = &registration.registrant;
            let transport = transport_id(&registrant.initiator_port);
            let is_holder = self.holds(registrant);
            let kind = self.held.as_ref().filter(|_| is_holder).map_or(0, |held| held.kind as u8);
            let through_all = registrant.relative_port.is_none();
            body.extend_from_slice(&registration.key.to_be_bytes());
            body.extend_from_slice(&[
                0,
                0,
                0,
                0,
                u8::from(through_all) << 1 | u8::from(is_holder),
                kind,
                0,
                0,
                0,
                0,
            ]);
            body.extend_from_slice(&registrant.relative_port.unwrap_or(0).to_be_bytes());
            body.extend_from_slice(&(transport.len() as u32).to_be_bytes());
            body.extend_from_slice(&transport);
        }
        data.extend_from_slice(&(body.len() as u32).to_be_bytes());
        data.extend_from_slice(&body);
    }
}

/// REPORT CAPABILITIES (SPC-4 §6.15.4): ALL_TG_PT, all six types; no persistence through power loss
/// and no SPEC_I_PT.
fn capabilities() -> Vec<u8> {
    vec![0, 8, 0x04, 0x80, 0xea, 0x01, 0, 0]
}

/// An iSCSI TransportID with the ISID (SPC-4 §7.6.4.6).
fn transport_id(initiator_port: &str) -> Vec<u8> {
    let mut name = initiator_port.as_bytes().to_vec();
    name.resize((name.len() + 1).next_multiple_of(4), 0);
    let mut id = vec![0x45, 0];
    id.extend_from_slice(&(name.len() as u16).to_be_bytes());
    id.extend_from_slice(&name);
    id
}
