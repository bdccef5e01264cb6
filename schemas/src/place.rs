//! Where things are: addresses, devices, extents.

use crate::ids::{DeviceId, LegId, NodeId, PoolId, SiteId};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;

/// Unit of the mirror's maps, bytes: one bit says whether a peer may lack something of it.
pub const REGION_BYTES: u64 = 1 << 20;
/// Space at the head of a leg for its header copies and maps, bytes, whatever the volume's size, so
/// that a volume can grow in place: 8 KiB of headers and 511 pairs of 4 KiB map pages, each of
/// which covers 16,128 regions: 7.8 TiB in all.
pub const LEG_METADATA_BYTES: u64 = 4 << 20;
/// Largest volume, bytes: what [`LEG_METADATA_BYTES`] of maps cover, with some to spare.
pub const VOLUME_BYTES_MAX: u64 = 7 << 40;
/// Smallest volume, and unit of volume sizes, bytes.
pub const VOLUME_BYTES_UNIT: u64 = 1 << 20;
/// Space at the head of a device for its header copies, bytes. Extents follow it.
pub const DEVICE_HEADER_BYTES: u64 = 1 << 20;

/// Bytes that a leg of a volume of this size takes in its pool: metadata, then data.
#[must_use]
pub const fn leg_bytes(volume_bytes: u64) -> u64 {
    LEG_METADATA_BYTES + volume_bytes
}

/// What a device is made of, and where its node finds it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub enum Locator {
    /// Memory of the node's process. Contents end with the process.
    Memory {
        /// Its size.
        size_bytes: u64,
    },
    /// A regular file, by absolute path at its node; created with this size if it is not there.
    File {
        /// Absolute path.
        path: String,
        /// Size to create it with; an existing file keeps its own.
        size_bytes: u64,
    },
    /// A block device, by absolute path at its node.
    Block {
        /// Absolute path, best one under `/dev/disk/by-id/`.
        path: String,
    },
    /// A namespace of another NVMe/TCP target.
    RemoteNamespace {
        /// Where the target listens.
        #[schema(value_type = String)]
        address: SocketAddr,
        /// Its subsystem.
        subsystem: String,
        /// The namespace's UUID or NGUID, as 32 hexadecimal digits.
        namespace: String,
    },
}

/// Consecutive extents of one device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ExtentRun {
    /// The device.
    pub device: DeviceId,
    /// First extent.
    pub first: u64,
    /// How many, at least 1.
    pub count: u64,
}

/// Where one leg lies. Runs in order form the leg's space: its header, maps, then data.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct LegPlacement {
    /// The leg.
    pub leg: LegId,
    /// Its pool.
    pub pool: PoolId,
    /// The pool's site.
    pub site: SiteId,
    /// The one node that holds all its extents.
    pub node: NodeId,
    /// Its extents.
    pub runs: Vec<ExtentRun>,
}

/// Where a node listens.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Portals {
    /// NVMe/TCP for hosts.
    #[schema(value_type = String)]
    pub nvme: SocketAddr,
    /// iSCSI for hosts.
    #[schema(value_type = String)]
    pub iscsi: SocketAddr,
    /// Mirror link for other nodes.
    #[schema(value_type = String)]
    pub link: SocketAddr,
}
