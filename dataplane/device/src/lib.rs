//! What bytes rest on: memory, a file, a block device, a namespace of another NVMe/TCP target.
//!
//! [`adopt`] claims a device exclusively, looks at what it holds, and gives an [`OpenDevice`] that
//! all reactors of a node share. Each reactor has one [`DeviceQueue`], which maps the space of a leg
//! to extents of devices and carries requests out over an io_uring of its own.
//!
//! # Layout of a device
//! | bytes | |
//! |-|-|
//! | 0 .. 4 KiB | header, copy A |
//! | 4 KiB .. 8 KiB | header, copy B |
//! | 1 MiB + i × extent | extent i |
//!
//! # Durability
//! A write or a zero completes only when it survives a power cut of the node: writes carry
//! `RWF_DSYNC` (on a drive that has FUA, one command), zeroes are followed by `fsync`. Both are left
//! out on a block device that says that it has no volatile cache. Memory cannot promise this; its
//! contents end with the process, and adopting it again says so ([`AdoptError::ContentLost`]).
//!
//! # Block sizes
//! A block device has its logical block. A file has 512 bytes: by direct I/O where the file system
//! allows direct I/O in units of 512, otherwise through the page cache (durable all the same, slower),
//! so that a volume of 512-byte blocks fits on any file.

mod adopt;
mod claim;
pub mod faulty;
mod header;
mod kernel;
mod mailbox;
mod memory;
mod open;
mod queue;
mod remote;
mod signature;

pub use adopt::{AdoptError, Adopted, adopt, adopt_with_keys};
pub use header::DeviceHeader;
pub use open::OpenDevice;
pub use queue::{DEPTH_MAX, DeviceQueue, REQUESTS_MAX};
pub use remote::{ArrayKeys, ArrayKeysError, RemoteError};
pub use signature::Content;
