//! The six types of reservations, and what each bars.

use serde::{Deserialize, Serialize};

/// A type (SPC-4 §6.16.3; NVMe Base 2.0 §8.19.5). The order is part of the record's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// Only the holder writes.
    WriteExclusive,
    /// Only the holder reads and writes.
    ExclusiveAccess,
    /// Only registrants write.
    WriteExclusiveRegistrantsOnly,
    /// Only registrants read and write.
    ExclusiveAccessRegistrantsOnly,
    /// Only registrants write, and each of them holds.
    WriteExclusiveAllRegistrants,
    /// Only registrants read and write, and each of them holds.
    ExclusiveAccessAllRegistrants,
}

impl Kind {
    /// All of them, in NVMe's order.
    pub const ALL: [Kind; 6] = [
        Kind::WriteExclusive,
        Kind::ExclusiveAccess,
        Kind::WriteExclusiveRegistrantsOnly,
        Kind::ExclusiveAccessRegistrantsOnly,
        Kind::WriteExclusiveAllRegistrants,
        Kind::ExclusiveAccessAllRegistrants,
    ];

    /// TYPE of SCSI.
    #[must_use]
    pub const fn scsi_code(self) -> u8 {
        match self {
            Kind::WriteExclusive => 1,
            Kind::ExclusiveAccess => 3,
            Kind::WriteExclusiveRegistrantsOnly => 5,
            Kind::ExclusiveAccessRegistrantsOnly => 6,
            Kind::WriteExclusiveAllRegistrants => 7,
            Kind::ExclusiveAccessAllRegistrants => 8,
        }
    }

    /// RTYPE of NVMe.
    #[must_use]
    pub const fn nvme_code(self) -> u8 {
        match self {
            Kind::WriteExclusive => 1,
            Kind::ExclusiveAccess => 2,
            Kind::WriteExclusiveRegistrantsOnly => 3,
            Kind::ExclusiveAccessRegistrantsOnly => 4,
            Kind::WriteExclusiveAllRegistrants => 5,
            Kind::ExclusiveAccessAllRegistrants => 6,
        }
    }

    /// The type with this TYPE of SCSI.
    #[must_use]
    pub fn of_scsi(code: u8) -> Option<Self> {
        Kind::ALL.into_iter().find(|kind| kind.scsi_code() == code)
    }

    /// The type with this RTYPE of NVMe.
    #[must_use]
    pub fn of_nvme(code: u8) -> Option<Self> {
        Kind::ALL.into_iter().find(|kind| kind.nvme_code() == code)
    }

    /// Whether those who may not write may not read either.
    #[must_use]
    pub const fn bars_reads(self) -> bool {
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
    #[must_use]
    pub const fn admits_registrants(self) -> bool {
        match self {
            Kind::WriteExclusive | Kind::ExclusiveAccess => false,
            Kind::WriteExclusiveRegistrantsOnly
            | Kind::ExclusiveAccessRegistrantsOnly
            | Kind::WriteExclusiveAllRegistrants
            | Kind::ExclusiveAccessAllRegistrants => true,
        }
    }

    /// Whether every registrant holds it.
    #[must_use]
    pub const fn is_held_by_all(self) -> bool {
        match self {
            Kind::WriteExclusiveAllRegistrants | Kind::ExclusiveAccessAllRegistrants => true,
            Kind::WriteExclusive
            | Kind::ExclusiveAccess
            | Kind::WriteExclusiveRegistrantsOnly
            | Kind::ExclusiveAccessRegistrantsOnly => false,
        }
    }
}

/// What a command does, as far as reservations care.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Tells who the unit is: never in conflict.
    Identity,
    /// Neither reads nor writes the medium: in conflict with RESERVE of SPC-2 only.
    Free,
    /// Reads: in conflict with exclusive access.
    Read,
    /// Writes: in conflict with every reservation.
    Write,
}
