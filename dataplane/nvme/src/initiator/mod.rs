//! The initiator: one value per opened TCP connection, and what brings a controller up.

mod attach;
mod command;
mod connection;
mod discovery;

pub use attach::{Attachment, AttachmentError, AttachmentUpdate, ControllerFacts, RemoteNamespace};
pub use command::{Command, Payload};
pub use connection::{Closed, ConnectionOptions, InitiatorConnection, InitiatorEvent, SubmitError};
pub use discovery::{DISCOVERY_RECORDS_MAX, DiscoveredKind, DiscoveredPortal, Discovery};
