//! Who registers and who asks.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::sync::Arc;

/// Longest iSCSI name, bytes (RFC 7143 §4.2.7.1).
pub const INITIATOR_NAME_BYTES_MAX: usize = 223;

/// What stands between name and ISID in the text form of an initiator port.
const SEPARATOR: &str = ",i,0x";

/// A SCSI initiator port of iSCSI: the initiator's name and the ISID of its session. Names are
/// compared without regard to case, so they are kept in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "(String, [u8; 6])", into = "(String, [u8; 6])")]
pub struct InitiatorPort {
    name: Arc<str>,
    isid: [u8; 6],
}

/// Not the text or the parts of an initiator port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "an initiator port is an iSCSI name of 1 to {INITIATOR_NAME_BYTES_MAX} bytes, {SEPARATOR} and 12 hexadecimal digits"
)]
pub struct BadInitiatorPort;

impl InitiatorPort {
    /// Puts a port together.
    ///
    /// # Errors
    /// [`BadInitiatorPort`] if the name is empty or longer than [`INITIATOR_NAME_BYTES_MAX`].
    pub fn new(name: &str, isid: [u8; 6]) -> Result<Self, BadInitiatorPort> {
        let name = name.to_lowercase();
        if name.is_empty() || name.len() > INITIATOR_NAME_BYTES_MAX {
            return Err(BadInitiatorPort);
        }
        Ok(InitiatorPort { name: name.into(), isid })
    }

    /// Reads the form `name,i,0x` and twelve digits, as TransportIDs carry it (SPC-4 §7.6.4.6).
    ///
    /// # Errors
    /// [`BadInitiatorPort`] if the text has another form.
    pub fn parse(text: &str) -> Result<Self, BadInitiatorPort> {
        let (name, digits) = text.split_once(SEPARATOR).ok_or(BadInitiatorPort)?;
        if digits.len() != 12 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(BadInitiatorPort);
        }
        let number = u64::from_str_radix(digits, 16).map_err(|_| BadInitiatorPort)?;
        let [_, _, isid @ ..] = number.to_be_bytes();
        InitiatorPort::new(name, isid)
    }

    /// The initiator's name, in lower case.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The session's identifier.
    #[must_use]
    pub fn isid(&self) -> [u8; 6] {
        self.isid
    }
}

impl TryFrom<(String, [u8; 6])> for InitiatorPort {
    type Error = BadInitiatorPort;

    fn try_from((name, isid): (String, [u8; 6])) -> Result<Self, BadInitiatorPort> {
        InitiatorPort::new(&name, isid)
    }
}

impl From<InitiatorPort> for (String, [u8; 6]) {
    fn from(port: InitiatorPort) -> Self {
        (port.name().to_owned(), port.isid)
    }
}

impl fmt::Display for InitiatorPort {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}{SEPARATOR}", self.name)?;
        self.isid.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

/// On whose behalf a request comes. Cheap to clone: each request carries one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Nexus {
    /// A SCSI I_T nexus.
    Scsi {
        /// The initiator's end.
        port: InitiatorPort,
        /// The target's end: relative target port identifier, unique over all nodes.
        relative_port: u16,
    },
    /// An NVMe host, by whichever controller.
    Nvme {
        /// Its 128-bit host identifier.
        host_id: [u8; 16],
    },
}

impl Nexus {
    /// The registrant that registers through this nexus.
    #[must_use]
    pub fn registrant(&self, through_all_ports: bool) -> Registrant {
        match self {
            Nexus::Scsi { port, relative_port } => Registrant::Scsi {
                port: port.clone(),
                relative_port: (!through_all_ports).then_some(*relative_port),
            },
            Nexus::Nvme { host_id } => Registrant::Nvme { host_id: *host_id },
        }
    }

    pub(crate) fn is_nvme(&self) -> bool {
        matches!(self, Nexus::Nvme { .. })
    }
}

/// Whom a registration is of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Registrant {
    /// A SCSI initiator port through one target port, or through all.
    Scsi {
        /// The initiator port.
        port: InitiatorPort,
        /// `None`: all target ports (ALL_TG_PT), those of other nodes included.
        relative_port: Option<u16>,
    },
    /// An NVMe host, through all controllers.
    Nvme {
        /// Its 128-bit host identifier.
        host_id: [u8; 16],
    },
}

impl Registrant {
    /// Whether this nexus is one of the registrant's.
    #[must_use]
    pub fn covers(&self, nexus: &Nexus) -> bool {
        match (self, nexus) {
            (
                Registrant::Scsi { port, relative_port },
                Nexus::Scsi { port: other, relative_port: through },
            ) => port == other && relative_port.is_none_or(|own| own == *through),
            (Registrant::Nvme { host_id }, Nexus::Nvme { host_id: other }) => host_id == other,
            (Registrant::Scsi { .. }, Nexus::Nvme { .. })
            | (Registrant::Nvme { .. }, Nexus::Scsi { .. }) => false,
        }
    }

    /// Whether both name a nexus in common.
    pub(crate) fn overlaps(&self, other: &Registrant) -> bool {
        match (self, other) {
            (
                Registrant::Scsi { port, relative_port },
                Registrant::Scsi { port: other, relative_port: through },
            ) => {
                port == other
                    && relative_port.zip(*through).is_none_or(|(own, through)| own == through)
            }
            _ => self == other,
        }
    }
}
