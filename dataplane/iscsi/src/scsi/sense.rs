//! Sense data (SPC-4 §4.5) and unit attentions.

use voute_reservation::{Notice, Refusal};

use crate::request::{Failure, NotReady};

/// Sense keys.
mod key {
    pub(super) const NO_SENSE: u8 = 0x0;
    pub(super) const NOT_READY: u8 = 0x2;
    pub(super) const MEDIUM_ERROR: u8 = 0x3;
    pub(super) const HARDWARE_ERROR: u8 = 0x4;
    pub(super) const ILLEGAL_REQUEST: u8 = 0x5;
    pub(super) const UNIT_ATTENTION: u8 = 0x6;
    pub(super) const DATA_PROTECT: u8 = 0x7;
    pub(super) const COPY_ABORTED: u8 = 0xa;
    pub(super) const ABORTED_COMMAND: u8 = 0xb;
    pub(super) const MISCOMPARE: u8 = 0xe;
}

/// Sense key specific data: valid, and of the CDB (SPC-4 §4.5.2.4.2).
const FIELD_IN_CDB: u8 = 0xc0;

/// Why a command ended with CHECK CONDITION.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sense {
    key: u8,
    /// Additional sense code and qualifier.
    code: u16,
    information: Option<u64>,
    /// The segment of a copy that is at fault.
    segment: Option<u16>,
    /// The byte of the CDB that is at fault.
    field: Option<u8>,
}

/// A unit attention: additional sense code and qualifier (SPC-4 §5.14).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attention(u16);

impl Attention {
    pub(crate) const POWER_ON: Attention = Attention(0x2900);
    pub(crate) const RESET: Attention = Attention(0x2903);
    pub(crate) const NEXUS_LOSS: Attention = Attention(0x2907);
    pub(crate) const MODE_CHANGED: Attention = Attention(0x2a01);
    pub(crate) const RESERVATIONS_PREEMPTED: Attention = Attention(0x2a03);
    pub(crate) const RESERVATIONS_RELEASED: Attention = Attention(0x2a04);
    pub(crate) const REGISTRATIONS_PREEMPTED: Attention = Attention(0x2a05);
    pub(crate) const ALUA_CHANGED: Attention = Attention(0x2a06);
    pub(crate) const CAPACITY_CHANGED: Attention = Attention(0x2a09);
    pub(crate) const INQUIRY_CHANGED: Attention = Attention(0x3f03);
    pub(crate) const LUNS_CHANGED: Attention = Attention(0x3f0e);
    pub(crate) const COMMANDS_CLEARED: Attention = Attention(0x2f00);
}

impl From<Notice> for Attention {
    fn from(notice: Notice) -> Self {
        match notice {
            Notice::RegistrationPreempted => Attention::REGISTRATIONS_PREEMPTED,
            Notice::ReservationReleased => Attention::RESERVATIONS_RELEASED,
            Notice::ReservationPreempted => Attention::RESERVATIONS_PREEMPTED,
        }
    }
}

impl Sense {
    pub(crate) const NONE: Sense = Sense::new(key::NO_SENSE, 0x0000);
    pub(crate) const INVALID_OPCODE: Sense = Sense::new(key::ILLEGAL_REQUEST, 0x2000);
    pub(crate) const INVALID_FIELD_IN_CDB: Sense = Sense::new(key::ILLEGAL_REQUEST, 0x2400);
    pub(crate) const LBA_OUT_OF_RANGE: Sense = Sense::new(key::ILLEGAL_REQUEST, 0x2100);
    pub(crate) const LUN_NOT_SUPPORTED: Sense = Sense::new(key::ILLEGAL_REQUEST, 0x2500);
    pub(crate) const PARAMETER_LENGTH: Sense = Sense::new(key::ILLEGAL_REQUEST, 0x1a00);
    pub(crate) const INVALID_FIELD_IN_PARAMETERS: Sense = Sense::new(key::ILLEGAL_REQUEST, 0x2600);
    pub(crate) const INVALID_RELEASE: Sense = Sense::new(key::ILLEGAL_REQUEST, 0x2604);
    pub(crate) const INSUFFICIENT_REGISTRATION_RESOURCES: Sense =
        Sense::new(key::ILLEGAL_REQUEST, 0x5504);
    pub(crate) const SAVING_NOT_SUPPORTED: Sense = Sense::new(key::ILLEGAL_REQUEST, 0x3900);
    pub(crate) const WRITE_PROTECTED: Sense = Sense::new(key::DATA_PROTECT, 0x2700);
    pub(crate) const OUT_OF_SPACE: Sense = Sense::new(key::DATA_PROTECT, 0x2707);
    pub(crate) const IN_TRANSITION: Sense = Sense::new(key::NOT_READY, 0x040a);
    pub(crate) const STANDBY: Sense = Sense::new(key::NOT_READY, 0x040b);
    pub(crate) const UNAVAILABLE: Sense = Sense::new(key::NOT_READY, 0x040c);
    /// Protocol service CRC error: data was lost on the way (RFC 7143 §7.8, §7.9).
    pub(crate) const DATA_LOST: Sense = Sense::new(key::ABORTED_COMMAND, 0x4705);
    pub(crate) const ABORTED: Sense = Sense::new(key::ABORTED_COMMAND, 0x0000);
    pub(crate) const SET_GROUPS_FAILED: Sense = Sense::new(key::HARDWARE_ERROR, 0x670a);
    pub(crate) const OPERATION_IN_PROGRESS: Sense = Sense::new(key::ILLEGAL_REQUEST, 0x0016);
    pub(crate) const TOO_MANY_TARGETS: Sense = Sense::new(key::ILLEGAL_REQUEST, 0x2606);
    pub(crate) const UNSUPPORTED_TARGET_TYPE: Sense = Sense::new(key::ILLEGAL_REQUEST, 0x2607);
    pub(crate) const TOO_MANY_SEGMENTS: Sense = Sense::new(key::ILLEGAL_REQUEST, 0x2608);
    pub(crate) const UNSUPPORTED_SEGMENT_TYPE: Sense = Sense::new(key::ILLEGAL_REQUEST, 0x2609);
    pub(crate) const INLINE_DATA_LENGTH: Sense = Sense::new(key::ILLEGAL_REQUEST, 0x260b);
    pub(crate) const COPY_ABORTED: Sense = Sense::new(key::COPY_ABORTED, 0x0000);
    pub(crate) const UNREACHABLE_COPY_TARGET: Sense = Sense::new(key::COPY_ABORTED, 0x0804);
    pub(crate) const COPY_DEVICE_FAILED: Sense = Sense::new(key::COPY_ABORTED, 0x0d01);
    pub(crate) const COPY_TARGET_NOT_REACHABLE: Sense = Sense::new(key::COPY_ABORTED, 0x0d02);
    pub(crate) const INCORRECT_COPY_TARGET_TYPE: Sense = Sense::new(key::COPY_ABORTED, 0x0d03);
    pub(crate) const INEXACT_SEGMENT: Sense = Sense::new(key::COPY_ABORTED, 0x260a);

    const fn new(key: u8, code: u16) -> Self {
        Sense { key, code, information: None, segment: None, field: None }
    }

    /// An invalid field that begins in this byte of the CDB.
    pub(crate) const fn invalid_field_at(byte: u8) -> Self {
        Sense { field: Some(byte), ..Sense::INVALID_FIELD_IN_CDB }
    }

    pub(crate) fn miscompare(offset: u32) -> Self {
        Sense::new(key::MISCOMPARE, 0x1d00).about(u64::from(offset))
    }

    /// The segment of a copy that is at fault.
    pub(crate) fn in_segment(self, segment: u16) -> Self {
        Sense { segment: Some(segment), ..self }
    }

    fn about(self, information: u64) -> Self {
        Sense { information: Some(information), ..self }
    }

    /// What a failure of the volume means to the host; None if it is a status of its own.
    pub(crate) fn of_failure(failure: Failure) -> Option<Self> {
        Some(match failure {
            Failure::NotReady(NotReady::Transition) => Sense::IN_TRANSITION,
            Failure::NotReady(NotReady::Standby) => Sense::STANDBY,
            Failure::NotReady(NotReady::Unavailable) => Sense::UNAVAILABLE,
            Failure::Busy => return None,
            Failure::OutOfRange => Sense::LBA_OUT_OF_RANGE,
            Failure::OutOfSpace => Sense::OUT_OF_SPACE,
            Failure::WriteProtected => Sense::WRITE_PROTECTED,
            Failure::UnreadableMedium { lba } => Sense::new(key::MEDIUM_ERROR, 0x1100).about(lba),

            Failure::UnwritableMedium { lba } => Sense::new(key::MEDIUM_ERROR, 0x0c00).about(lba),

            Failure::Reservation(Refusal::Conflict) => return None,
            Failure::Reservation(Refusal::NoRoom) => Sense::INSUFFICIENT_REGISTRATION_RESOURCES,
            Failure::Reservation(Refusal::OtherType) => Sense::INVALID_RELEASE,
            Failure::Reservation(Refusal::BadParameter) => Sense::INVALID_FIELD_IN_PARAMETERS,
            Failure::Reservation(Refusal::NotReserved) => Sense::INVALID_FIELD_IN_CDB,
            Failure::Unsupported => Sense::INVALID_OPCODE,
            Failure::MoveRefused => Sense::SET_GROUPS_FAILED,
            Failure::Aborted => Sense::ABORTED,
        })
    }

    /// The sense data, in fixed or descriptor format.
    pub(crate) fn encode(self, as_descriptors: bool) -> Vec<u8> {
        if as_descriptors { self.encode_descriptors() } else { self.encode_fixed() }
    }

    fn encode_fixed(self) -> Vec<u8> {
        let mut sense = vec![0; 18];
        sense[0] = 0x70;
        // The fixed format holds 32 bits; a larger value is left out (SPC-4 §4.5.3).
        if let Some(information) =
            self.information.and_then(|information| u32::try_from(information).ok())
        {
            sense[0] |= 0x80;
            sense[3..7].copy_from_slice(&information.to_be_bytes());
        }
        sense[2] = self.key;
        sense[7] = 10;
        // Of the command-specific information the third and fourth byte (SPC-4 §5.17.7.4).
        if let Some(segment) = self.segment {
            sense[10..12].copy_from_slice(&segment.to_be_bytes());
        }
        sense[12..14].copy_from_slice(&self.code.to_be_bytes());
        if let Some(field) = self.field {
            sense[15..18].copy_from_slice(&[FIELD_IN_CDB, 0, field]);
        }
        sense
    }

    fn encode_descriptors(self) -> Vec<u8> {
        let [code, qualifier] = self.code.to_be_bytes();
        let mut sense = vec![0x72, self.key, code, qualifier, 0, 0, 0, 0];
        if let Some(information) = self.information {
            sense.extend_from_slice(&[0x00, 0x0a, 0x80, 0]);
            sense.extend_from_slice(&information.to_be_bytes());
        }
        if let Some(segment) = self.segment {
            let [high, low] = segment.to_be_bytes();
            sense.extend_from_slice(&[0x01, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, high, low]);
        }
        if let Some(field) = self.field {
            sense.extend_from_slice(&[0x02, 0x06, 0, 0, FIELD_IN_CDB, 0, field, 0]);
        }
        sense[7] = (sense.len() - 8) as u8;
        sense
    }
}

impl From<Attention> for Sense {
    fn from(attention: Attention) -> Self {
        Sense::new(key::UNIT_ATTENTION, attention.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_path_is_never_told_as_a_medium_error() {
        for reason in [NotReady::Transition, NotReady::Standby, NotReady::Unavailable] {
            let sense =
                Sense::of_failure(Failure::NotReady(reason)).expect("has sense").encode(false);
            assert_eq!((sense[2], sense[12]), (key::NOT_READY, 0x04));
        }
    }

    #[test]
    fn a_miscompare_tells_the_offset_in_both_formats() {
        let fixed = Sense::miscompare(0x1234).encode(false);
        assert_eq!(fixed[..8], [0xf0, 0, 0x0e, 0, 0, 0x12, 0x34, 10]);
        assert_eq!(fixed[12..14], [0x1d, 0]);
        let descriptors = Sense::miscompare(0x1234).encode(true);
        assert_eq!(descriptors[..8], [0x72, 0x0e, 0x1d, 0, 0, 0, 0, 12]);
        assert_eq!(descriptors[12..], [0, 0, 0, 0, 0, 0, 0x12, 0x34]);
    }
}
