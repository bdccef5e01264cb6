//! The status of a completed command (NVMe Base 2.0, figure 92 onwards).

use std::fmt;
use voute_reservation::Refusal;

/// Status code type, status code and "do not retry" of one completion.
///
/// Linux multipath fails over to another path only for the path-related type (3h) without DNR; a
/// lost leg or lost ownership must therefore be one of the `ana_*`/`path_*` values, never a media
/// error.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Status {
    code_type: u8,
    code: u8,
    do_not_retry: bool,
}

const GENERIC: u8 = 0;
const COMMAND_SPECIFIC: u8 = 1;
const MEDIA: u8 = 2;
const PATH: u8 = 3;
const VENDOR: u8 = 7;

macro_rules! named_statuses {
    ($($(#[$doc:meta])* $name:ident = $kind:ident $code:literal $dnr:literal;)*) => {
        impl Status {
            $($(#[$doc])*
            #[must_use]
            pub const fn $name() -> Self {
                Status { code_type: $kind, code: $code, do_not_retry: $dnr }
            })*
        }

        /// Every status that has a name here, for messages and tests.
        const NAMED: &[(Status, &str)] = &[$((Status::$name(), stringify!($name))),*];
    };
}

named_statuses! {
    /// 0/00h: success.
    success = GENERIC 0x00 false;
    /// 0/01h: no such opcode on this queue.
    invalid_opcode = GENERIC 0x01 true;
    /// 0/02h: a reserved or unsupported value in the command.
    invalid_field = GENERIC 0x02 true;
    /// 0/03h: the command identifier is in use by another command of the queue.
    command_id_conflict = GENERIC 0x03 true;
    /// 0/04h: data could not be moved over the transport; the host may retry.
    data_transfer_error = GENERIC 0x04 false;
    /// 0/06h: a fault inside the target.
    internal_error = GENERIC 0x06 false;
    /// 0/07h: aborted at the host's request.
    abort_requested = GENERIC 0x07 false;
    /// 0/09h: the other half of a fused pair failed.
    failed_fused = GENERIC 0x09 false;
    /// 0/0Ah: the other half of a fused pair did not follow.
    missing_fused = GENERIC 0x0A false;
    /// 0/0Bh: the namespace identifier is invalid or the namespace is not attached.
    invalid_namespace = GENERIC 0x0B true;
    /// 0/0Ch: the command is out of sequence.
    command_sequence_error = GENERIC 0x0C true;
    /// 0/0Fh: the SGL length does not fit the command.
    sgl_length_invalid = GENERIC 0x0F true;
    /// 0/11h: an SGL descriptor of a type that the transport does not use.
    sgl_type_invalid = GENERIC 0x11 true;
    /// 0/14h: longer than the atomic (compare and) write unit.
    atomic_write_unit_exceeded = GENERIC 0x14 true;
    /// 0/15h: reservations, to a host without an identifier.
    operation_denied = GENERIC 0x15 true;
    /// 0/18h: a host identifier of the other length was asked for.
    host_identifier_inconsistent = GENERIC 0x18 true;
    /// 0/16h: an in-capsule offset that is not zero.
    sgl_offset_invalid = GENERIC 0x16 true;
    /// 0/82h: the namespace is not ready yet; the host may retry.
    namespace_not_ready = GENERIC 0x82 false;
    /// 0/20h: the namespace is write protected.
    write_protected = GENERIC 0x20 true;
    /// 0/22h: a data digest did not match; the host may retry.
    transient_transport_error = GENERIC 0x22 false;
    /// 0/2Ch: the command set is not supported by the controller or the namespace.
    invalid_command_set = GENERIC 0x2C true;
    /// 0/80h: the range lies outside the namespace.
    lba_out_of_range = GENERIC 0x80 true;
    /// 0/81h: the namespace's pool is full.
    capacity_exceeded = GENERIC 0x81 true;
    /// 0/83h: a reservation forbids the command.
    reservation_conflict = GENERIC 0x83 true;
    /// 1/05h: more event requests than AERL+1.
    event_request_limit_exceeded = COMMAND_SPECIFIC 0x05 true;
    /// 1/09h: no such log page.
    invalid_log_page = COMMAND_SPECIFIC 0x09 true;
    /// 1/0Dh: the feature cannot be saved.
    feature_not_saveable = COMMAND_SPECIFIC 0x0D true;
    /// 1/0Eh: the feature cannot be changed.
    feature_not_changeable = COMMAND_SPECIFIC 0x0E true;
    /// 1/80h: Connect with a record format other than 0.
    connect_incompatible_format = COMMAND_SPECIFIC 0x80 true;
    /// 1/81h: the node is not ready to serve yet; try again.
    connect_controller_busy = COMMAND_SPECIFIC 0x81 false;
    /// 1/82h: a Connect parameter is invalid; the result says which.
    connect_invalid_parameters = COMMAND_SPECIFIC 0x82 true;
    /// 1/84h: the host is not mapped to anything in the subsystem.
    connect_invalid_host = COMMAND_SPECIFIC 0x84 true;
    /// 1/85h: Disconnect on a queue that is not an I/O queue.
    invalid_queue_type = COMMAND_SPECIFIC 0x85 true;
    /// 1/91h: the host must authenticate itself first.
    authentication_required = COMMAND_SPECIFIC 0x91 true;
    /// 2/80h: a write failed on the medium.
    write_fault = MEDIA 0x80 false;
    /// 2/81h: unrecovered read error.
    unrecovered_read_error = MEDIA 0x81 false;
    /// 2/85h: a compare found a difference.
    compare_failure = MEDIA 0x85 true;
    /// 3/00h: a path-related error inside the target.
    path_error = PATH 0x00 false;
    /// 3/01h: the namespace will not come back on this path.
    ana_persistent_loss = PATH 0x01 false;
    /// 3/02h: the namespace is not served on this path now.
    ana_inaccessible = PATH 0x02 false;
    /// 3/03h: the namespace's access state is changing.
    ana_transition = PATH 0x03 false;
    /// 3/60h: the controller cannot reach what is behind it.
    controller_path_error = PATH 0x60 false;
}

impl Status {
    /// Any status: `code_type` 0 to 7, `code` as the specification numbers them.
    #[must_use]
    pub const fn new(code_type: u8, code: u8, do_not_retry: bool) -> Self {
        Status { code_type: code_type & 7, code, do_not_retry }
    }

    /// A vendor-specific status (type 7h), used on links between nodes.
    #[must_use]
    pub const fn vendor(code: u8, do_not_retry: bool) -> Self {
        Status { code_type: VENDOR, code, do_not_retry }
    }

    /// The same status with the DNR bit as given.
    #[must_use]
    pub const fn with_do_not_retry(self, do_not_retry: bool) -> Self {
        Status { do_not_retry, ..self }
    }

    /// Status code type, 0 to 7.
    #[must_use]
    pub const fn code_type(self) -> u8 {
        self.code_type
    }

    /// Status code within its type.
    #[must_use]
    pub const fn code(self) -> u8 {
        self.code
    }

    /// The DNR bit: a retry will fail too.
    #[must_use]
    pub const fn do_not_retry(self) -> bool {
        self.do_not_retry
    }

    /// Whether the command succeeded.
    #[must_use]
    pub const fn is_success(self) -> bool {
        self.code_type == GENERIC && self.code == 0
    }

    /// Whether this is a path error, on which a multipath host tries another path.
    #[must_use]
    pub const fn is_path_related(self) -> bool {
        self.code_type == PATH
    }

    /// Whether this is an answer of asymmetric access (3/01h to 3/03h): the command was not carried
    /// out, and by another path, or here later, it may be.
    #[must_use]
    pub const fn is_access_related(self) -> bool {
        self.code_type == PATH && matches!(self.code, 1..=3)
    }

    /// The 16-bit status field of a completion entry, phase bit zero.
    #[must_use]
    pub const fn to_field(self) -> u16 {
        (self.code as u16) << 1 | (self.code_type as u16) << 9 | (self.do_not_retry as u16) << 15
    }

    /// Reads a completion entry's status field; CRD and "more" are ignored.
    #[must_use]
    pub const fn from_field(field: u16) -> Self {
        Status {
            code_type: (field >> 9 & 7) as u8,
            code: (field >> 1) as u8,
            do_not_retry: field >> 15 != 0,
        }
    }

    fn name(self) -> Option<&'static str> {
        let same = |known: &Status| (known.code_type, known.code) == (self.code_type, self.code);
        NAMED.iter().find(|(known, _)| same(known)).map(|(_, name)| *name)
    }
}

/// What a request about reservations is refused with (NVMe Base 2.0 §7.2–7.5).
impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Conflict => Status::reservation_conflict(),
            Refusal::OtherType | Refusal::BadParameter | Refusal::NotReserved => {
                Status::invalid_field()
            }
            // There is no status for a registrant too many.
            Refusal::NoRoom => Status::internal_error().with_do_not_retry(true),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let retry = if self.do_not_retry { ", do not retry" } else { "" };
        match self.name() {
            Some(name) => write!(
                formatter,
                "{} ({:x}/{:02X}h{retry})",
                name.replace('_', " "),
                self.code_type,
                self.code
            ),
            None => write!(formatter, "status {:x}/{:02X}h{retry}", self.code_type, self.code),
        }
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_survives_the_wire() {
        for (status, name) in NAMED {
            assert_eq!(Status::from_field(status.to_field()), *status, "{name}");
        }
        assert_eq!(Status::ana_inaccessible().to_field(), 0x0604);
        assert_eq!(Status::lba_out_of_range().to_field(), 0x8100);
        assert_eq!(Status::ana_inaccessible().to_string(), "ana inaccessible (3/02h)");
    }
}
