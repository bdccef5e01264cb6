//! Reservations of a volume: who registered, who holds, and what conflicts. One model for SCSI
//! (SPC-4 §5.13, and SPC-2 §5.5 for RESERVE and RELEASE) and for NVMe (Base 2.0 §8.19).
//!
//! Nothing here does I/O. Whoever owns the volume keeps one [`Reservations`], applies a [`Request`]
//! to a copy of it, writes the copy's record to every leg, and only then answers:
//!
//! ```text
//! request ─► apply ─► record on every leg ─► answer, notices
//!              └────► refused: nothing changed
//! I/O ─────► conflicts(who, access)?
//! ```
//!
//! The two protocols name registrants differently ([`Nexus`]) and number the types differently
//! ([`Kind`]); everything else they share, so that a SCSI reservation bars an NVMe host and the other
//! way round.

mod exchange;
mod identity;
mod kind;
mod model;
mod record;
mod request;

pub use exchange::{Asking, BadExchange, Told};
pub use identity::{BadInitiatorPort, INITIATOR_NAME_BYTES_MAX, InitiatorPort, Nexus, Registrant};
pub use kind::{Access, Kind};
pub use model::{Held, Registration, Reservations};
pub use record::{BadRecord, RECORD_BYTES_MAX};
pub use request::{Effect, Expected, Notice, REGISTRATIONS_MAX, Refusal, Request};

#[cfg(test)]
mod tests;
