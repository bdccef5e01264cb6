//! The record of a volume's reservations as the legs keep it: postcard, names of initiators once.
//!
//! RESERVE of SPC-2 is not in it: it ends with its nexus, and no nexus outlives its node.

use crate::model::{Held, Registration};
use crate::{InitiatorPort, Kind, REGISTRATIONS_MAX, Registrant, Reservations};
use serde::{Deserialize, Serialize};

/// Longest record, bytes: what a leg's header has room for.
pub const RECORD_BYTES_MAX: usize = 3_000;
/// What a holder adds to a record at most, bytes: kept free when registrations are entered.
pub(crate) const HOLDER_BYTES_MAX: usize = 4;
const VERSION: u8 = 1;

/// A record that cannot be read: of a later version, or not ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the record of reservations on the leg cannot be read; a newer version may have written it"
)]
pub struct BadRecord;

#[derive(Serialize, Deserialize)]
struct Stored {
    version: u8,
    /// Little-endian, like the keys: a record does not grow by counting or by longer keys.
    generation: [u8; 4],
    persists: bool,
    names: Vec<String>,
    registrations: Vec<(StoredRegistrant, [u8; 8])>,
    /// Type, and which registration holds it.
    held: Option<(Kind, u16)>,
}

#[derive(Serialize, Deserialize)]
enum StoredRegistrant {
    Scsi { name: u16, isid: [u8; 6], relative_port: Option<u16> },
    Nvme { host_id: [u8; 16] },
}

impl Reservations {
    /// The record; empty where there is nothing to remember.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        if self.is_blank() {
            return Vec::new();
        }
        let mut names: Vec<String> = Vec::new();
        let mut name_of = |port: &InitiatorPort| {
            let known = names.iter().position(|name| name == port.name());
            let at = known.unwrap_or_else(|| {
                names.push(port.name().to_owned());
                names.len() - 1
            });
            u16::try_from(at).expect("there are no more names than registrations")
        };
        let registrations = self.registrations.iter().map(|registration| {
            let registrant = match &registration.registrant {
                Registrant::Scsi { port, relative_port } => StoredRegistrant::Scsi {
                    name: name_of(port),
                    isid: port.isid(),
                    relative_port: *relative_port,
                },
                Registrant::Nvme { host_id } => StoredRegistrant::Nvme { host_id: *host_id },
            };
            (registrant, registration.key.to_le_bytes())
        });
        let registrations: Vec<_> = registrations.collect();
        let holder = |held: &Held| {
            let at = self.registrations.iter().position(|one| one.registrant == held.by);
            (held.kind, at.and_then(|at| u16::try_from(at).ok()).unwrap_or(0))
        };
        let stored = Stored {
            version: VERSION,
            generation: self.generation.to_le_bytes(),
            persists: self.persists,
            names,
            registrations,
            held: self.held.as_ref().map(holder),
        };
        postcard::to_stdvec(&stored).expect("a record has no unserialisable field")
    }

    /// Reads a record.
    ///
    /// # Errors
    /// [`BadRecord`] if it is none of this version, or contradicts itself.
    pub fn decode(record: &[u8]) -> Result<Self, BadRecord> {
        if record.is_empty() {
            return Ok(Reservations::default());
        }
        if record.first() != Some(&VERSION) || record.len() > RECORD_BYTES_MAX {
            return Err(BadRecord);
        }
        let stored: Stored = postcard::from_bytes(record).map_err(|_| BadRecord)?;
        if stored.registrations.len() > REGISTRATIONS_MAX {
            return Err(BadRecord);
        }
        let registrations = stored
            .registrations
            .into_iter()
            .map(|(registrant, key)| {
                let registrant = registrant.restore(&stored.names)?;
                Ok(Registration { registrant, key: u64::from_le_bytes(key) })
            })
            .collect::<Result<Vec<_>, BadRecord>>()?;
        let held = match stored.held {
            None => None,
            Some((kind, at)) => {
                let holder = registrations.get(usize::from(at)).ok_or(BadRecord)?;
                Some(Held { by: holder.registrant.clone(), kind })
            }
        };
        Ok(Reservations {
            generation: u32::from_le_bytes(stored.generation),
            persists: stored.persists,
            registrations,
            held,
            legacy: None,
        })
    }
}

impl StoredRegistrant {
    fn restore(self, names: &[String]) -> Result<Registrant, BadRecord> {
        match self {
            StoredRegistrant::Scsi { name, isid, relative_port } => {
                let name = names.get(usize::from(name)).ok_or(BadRecord)?;
                let port = InitiatorPort::new(name, isid).map_err(|_| BadRecord)?;
                Ok(Registrant::Scsi { port, relative_port })
            }
            StoredRegistrant::Nvme { host_id } => Ok(Registrant::Nvme { host_id }),
        }
    }
}
