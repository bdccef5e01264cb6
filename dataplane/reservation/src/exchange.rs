//! A request that reaches a node which does not own the volume, and its answer, as they travel to the
//! owner and back: postcard, after a byte of version.

use crate::{Nexus, Refusal, Request, Reservations};
use serde::{Deserialize, Serialize};

const VERSION: u8 = 1;

/// Bytes that are no request or answer of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the other node speaks of reservations in another way; run the same version at both")]
pub struct BadExchange;

/// A request, and on whose behalf.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asking {
    /// The asker.
    pub nexus: Nexus,
    /// What it asks.
    pub request: Request,
}

/// What the owner says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Told {
    /// It is done, and on every leg.
    Done,
    /// To a report: the record, see [`Reservations::encode`].
    Report(Vec<u8>),
    /// It changes nothing.
    Refused(Refusal),
    /// The volume could not be asked now; another try, perhaps by another path, may succeed.
    Unavailable,
    /// Too much is being asked; the same again soon.
    Busy,
}

impl Asking {
    /// As it travels.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads one.
    ///
    /// # Errors
    /// [`BadExchange`] if the bytes are no request.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadExchange> {
        decode(bytes)
    }
}

impl Told {
    /// A report of these reservations.
    #[must_use]
    pub fn report(state: &Reservations) -> Self {
        Told::Report(state.encode())
    }

    /// As it travels.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads one.
    ///
    /// # Errors
    /// [`BadExchange`] if the bytes are no answer.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadExchange> {
        decode(bytes)
    }
}

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(&(VERSION, value)).expect("neither has an unserialisable field")
}

fn decode<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> Result<T, BadExchange> {
    match postcard::from_bytes::<(u8, T)>(bytes) {
        Ok((VERSION, value)) => Ok(value),
        Ok(_) | Err(_) => Err(BadExchange),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Expected, InitiatorPort, Kind};

    fn asking(request: Request) -> Asking {
        let port = InitiatorPort::new("iqn.2026-11.io.example:a", [1, 2, 3, 4, 5, 6]).unwrap();
        Asking { nexus: Nexus::Scsi { port, relative_port: 2 }, request }
    }

    #[test]
    fn requests_and_answers_survive_the_way() {
        let also = vec![InitiatorPort::new("iqn.2026-11.io.example:b", [0; 6]).unwrap()];
        let requests = [
            Request::Register {
                expected: Expected::Key(u64::MAX),
                key: 7,
                all_ports: true,
                also,
                persists: Some(true),
            },
            Request::Preempt { key: 1, victim: 2, kind: Kind::ExclusiveAccess, aborts: true },
            Request::Report,
        ];
        for request in requests {
            let asking = asking(request);
            assert_eq!(Asking::decode(&asking.encode()), Ok(asking));
        }
        let told = [Told::Done, Told::Refused(Refusal::Conflict), Told::Report(vec![1, 2])];
        for told in told {
            assert_eq!(Told::decode(&told.encode()), Ok(told));
        }
    }

    #[test]
    fn bytes_that_are_no_request_are_refused() {
        let good = asking(Request::ReserveLegacy).encode();
        for end in 0..good.len() {
            assert_eq!(Asking::decode(&good[..end]), Err(BadExchange), "cut at {end}");
        }
        let mut other = good.clone();
        other[0] = VERSION + 1;
        assert_eq!(Asking::decode(&other), Err(BadExchange));
        // A name that no initiator can have.
        let nameless = postcard::to_stdvec(&(VERSION, 0u32, "", [0u8; 6], 1u16, 6u32)).unwrap();
        assert_eq!(Asking::decode(&nameless), Err(BadExchange));
    }
}
