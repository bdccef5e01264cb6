//! What may be asked, how it may be refused, and whom a change concerns.

use crate::{InitiatorPort, Kind, RECORD_BYTES_MAX, Registrant};
use serde::{Deserialize, Serialize};

/// Most registrations of a volume. The record's size may end the room earlier where names are long.
pub const REGISTRATIONS_MAX: usize = 128;

/// What a registering nexus must be registered with already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expected {
    /// Nothing. To register the key that it has again is an error in SCSI, none in NVMe.
    NotRegistered,
    /// This key.
    Key(u64),
    /// Whatever it is: REGISTER AND IGNORE EXISTING KEY, IEKEY.
    Anything,
}

/// One request about a volume's reservations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Enters, changes or removes a registration.
    Register {
        /// What must be there before.
        expected: Expected,
        /// The new key; 0 removes.
        key: u64,
        /// SCSI: for all target ports.
        all_ports: bool,
        /// SCSI: initiator ports to register besides (SPEC_I_PT).
        also: Vec<InitiatorPort>,
        /// Whether reservations are to survive a power cycle from now on; `None` leaves it.
        persists: Option<bool>,
    },
    /// Takes the reservation.
    Reserve {
        /// The asker's key.
        key: u64,
        /// Which type.
        kind: Kind,
    },
    /// Gives it back.
    Release {
        /// The asker's key.
        key: u64,
        /// The type that it is thought to have.
        kind: Kind,
    },
    /// Removes everything.
    Clear {
        /// The asker's key.
        key: u64,
    },
    /// Removes the registrations of a key, and takes their reservation.
    Preempt {
        /// The asker's key.
        key: u64,
        /// The key of those who go; 0 means all, where all hold.
        victim: u64,
        /// The type of the reservation if it is taken.
        kind: Kind,
        /// Their commands are aborted, and done with before this is answered.
        aborts: bool,
    },
    /// SCSI: registers another nexus and gives it the reservation.
    Move {
        /// The asker's key.
        key: u64,
        /// The key of whom it is given to.
        to_key: u64,
        /// Whom.
        port: InitiatorPort,
        /// Through which target port.
        relative_port: u16,
        /// The asker's registration is removed.
        unregisters: bool,
        /// Whether reservations are to survive a power cycle from now on.
        persists: bool,
    },
    /// Tells everything.
    Report,
    /// Whether reservations survive a power cycle (NVMe feature 83h).
    SetPersistence(bool),
    /// RESERVE of SPC-2.
    ReserveLegacy,
    /// RELEASE of SPC-2.
    ReleaseLegacy,
    /// The nexus is gone: its RESERVE ends, its registration stays.
    NexusLost,
    /// The unit is reset: a RESERVE ends, whoever's it is.
    UnitReset,
}

/// Why a request changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// Not registered, another key, or somebody else's reservation.
    #[error("it conflicts with what others registered or reserved, or the key is another")]
    Conflict,
    /// No room for another registration.
    #[error(
        "the volume holds {REGISTRATIONS_MAX} registrations or {RECORD_BYTES_MAX} bytes of them; remove some first"
    )]
    NoRoom,
    /// Releasing a type that is not held.
    #[error("the reservation is of another type; release the one that is held")]
    OtherType,
    /// Preempting nobody by the key 0, or giving to the key 0 or to itself.
    #[error("the key or the nexus given makes no sense here")]
    BadParameter,
    /// Moving a reservation where there is none.
    #[error("nothing is reserved that could be moved")]
    NotReserved,
}

/// What others are told (SPC-4 §5.14, 2Ah/03h–05h; NVMe log page 80h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Your registration was removed by another.
    RegistrationPreempted,
    /// The reservation under which you had access is no more.
    ReservationReleased,
    /// All registrations and the reservation were removed by another.
    ReservationPreempted,
}

/// Whom a change concerns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effect {
    /// Every nexus of this registrant.
    pub to: Registrant,
    /// What it is told.
    pub notice: Notice,
    /// Its commands are aborted.
    pub aborts: bool,
}
