//! Typed identifiers. Each is a UUID (version 7, RFC 9562) chosen by whoever issues the command
//! that creates the thing, so that a retried command names the same thing.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use uuid::Uuid;

macro_rules! identifier {
    ($(#[$documentation:meta])* $name:ident) => {
        $(#[$documentation])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, utoipa::ToSchema)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new identifier that sorts by its time of creation.
            #[must_use]
            pub fn generate() -> Self {
                Self(Uuid::now_v7())
            }

            /// The sixteen bytes, in network order.
            #[must_use]
            pub fn bytes(self) -> [u8; 16] {
                self.0.into_bytes()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(formatter)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, uuid::Error> {
                text.parse().map(Self)
            }
        }
    };
}

identifier!(
    /// One installation: its log, its sites and everything in them.
    ClusterId
);
identifier!(
    /// What fails together: a room, a building.
    SiteId
);
identifier!(
    /// A machine that serves volumes.
    NodeId
);
identifier!(
    /// What bytes rest on at one node: a drive, a file, memory.
    DeviceId
);
identifier!(
    /// A site's devices from which legs are allocated.
    PoolId
);
identifier!(
    /// A disk as a host sees it. Also its NVMe NGUID and UUID.
    VolumeId
);
identifier!(
    /// One copy of a volume, in one pool.
    LegId
);
identifier!(
    /// Volumes that have one owner and fail over together.
    GroupId
);
identifier!(
    /// Who uses volumes.
    HostId
);
identifier!(
    /// Rules for failing over, shared by groups.
    PolicyId
);
identifier!(
    /// A bearer credential of the API.
    CredentialId
);
identifier!(
    /// One failover of one site, from its detection to the first I/O.
    FailoverId
);
identifier!(
    /// One commit; also the message id that makes a retried append idempotent.
    CommitId
);
identifier!(
    /// Joins the commits that came from one cause.
    CorrelationId
);
identifier!(
    /// One escalation of a node; repeated until it is answered.
    EscalationId
);
