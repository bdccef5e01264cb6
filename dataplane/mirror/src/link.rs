//! What crosses the mirror link, and how it is written into NVMe vendor commands.
//!
//! | opcode | direction | use |
//! |-|-|-|
//! | C1h | to controller | write: NSID = volume number, CDW10-11 = byte offset, CDW12 = length, CDW13 = bar, CDW15 bit 0 = whole |
//! | C2h | from controller | read: likewise |
//! | C4h | none | zero: CDW12 and CDW14 = length (low, high), CDW15 bit 0 = release, bit 1 = whole |
//! | C3h | both | a control message ([`Control`]) in postcard; the reply's data is a [`ControlReply`] |
//!
//! The first C3h on a connection must be [`Control::Hello`], the second [`Control::Prove`]; until
//! then everything else is refused. A *bar* is the short name that a keeper gives to the token that
//! it holds: requests carry it in place of the token and are refused when it is no longer current.

use crate::action::Payload;
use serde::{Deserialize, Serialize};
use voute_buffer::Buffer;
use voute_schemas::{GroupId, NodeId, Token, VolumeId};

/// Opcode of a write.
pub const OPCODE_WRITE: u8 = 0xC1;
/// Opcode of a read.
pub const OPCODE_READ: u8 = 0xC2;
/// Opcode of a control message.
pub const OPCODE_CONTROL: u8 = 0xC3;
/// Opcode of a zero.
pub const OPCODE_ZERO: u8 = 0xC4;
/// Longest control message, bytes.
pub const CONTROL_BYTES_MAX: usize = 8_192;
/// Longest reply to a control message, bytes.
pub const CONTROL_REPLY_BYTES_MAX: usize = 1 << 20;

/// Short name that a keeper gives to the token it holds; unique for the life of its process.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Bar(pub u32);

/// A request to a peer's keeper.
#[derive(Clone, Debug)]
pub enum LinkRequest {
    /// Write to the peer's leg, durably.
    Write {
        /// Number of the volume.
        volume: u32,
        /// Under which token.
        bar: Bar,
        /// Where in the volume, bytes.
        offset: u64,
        /// What.
        data: Payload,
        /// All of it or nothing is to survive a power cut.
        whole: bool,
    },
    /// Read from the peer's leg.
    Read {
        /// Number of the volume.
        volume: u32,
        /// Under which token.
        bar: Bar,
        /// Where in the volume, bytes.
        offset: u64,
        /// How many bytes.
        length: u32,
    },
    /// Make a range of the peer's leg read as zero, durably.
    Zero {
        /// Number of the volume.
        volume: u32,
        /// Under which token.
        bar: Bar,
        /// Where in the volume, bytes.
        offset: u64,
        /// How many bytes.
        length: u64,
        /// Whether the space may be given back.
        release: bool,
        /// All of it or nothing is to survive a power cut.
        whole: bool,
    },
    /// Everything else.
    Control(Control),
}

/// A control message.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Control {
    /// Who I am; handled by the worker. The reply is a [`ControlReply::Challenge`].
    Hello {
        /// The sender.
        node: NodeId,
        /// Its start.
        incarnation: u64,
        /// For which of the receiver's reactors this channel is.
        reactor: u32,
        /// Whom it means to reach.
        to: NodeId,
        /// Random bytes that the receiver must answer to.
        nonce: [u8; 32],
    },
    /// HMAC-SHA-256 with the link secret over both nonces and both ids, for the sender; handled by
    /// the worker.
    Prove {
        /// The code.
        code: [u8; 32],
    },
    /// Take this token for a group: drain what is lower, keep it on disk, then answer.
    Bar {
        /// Which group.
        group: GroupId,
        /// The token.
        token: Token,
    },
    /// Regions that the peer's leg may lack or that ours may: the peer's map of a volume, from a region on.
    FetchMap {
        /// Which group.
        group: GroupId,
        /// Under which token.
        bar: Bar,
        /// Number of the volume.
        volume: u32,
        /// First region asked for.
        from: u64,
    },
    /// Write down the state of the peer's legs of a group.
    Mark {
        /// Which group.
        group: GroupId,
        /// Under which token.
        bar: Bar,
        /// The state.
        mark: Mark,
    },
    /// Ask for a lease for this channel.
    Grant {
        /// Revocations that the asker has seen.
        seen: u64,
    },
    /// Keep a volume's record in its leg's header.
    PutRecord {
        /// Which group.
        group: GroupId,
        /// Under which token.
        bar: Bar,
        /// Number of the volume.
        volume: u32,
        /// Rises with each that is sent under the bar: a lower one that comes later changes nothing.
        number: u64,
        /// The record, at most [`RECORD_BYTES_MAX`](crate::RECORD_BYTES_MAX) bytes.
        record: Vec<u8>,
    },
    /// No copy of these blocks can be read any more: the peer's leg is to say so when it is read,
    /// until they are written.
    Lose {
        /// Which group.
        group: GroupId,
        /// Under which token.
        bar: Bar,
        /// Number of the volume.
        volume: u32,
        /// Where in the volume, bytes.
        offset: u64,
        /// How many bytes.
        length: u64,
    },
    /// A host asks about the reservations of a volume at a node that does not own it; to the owner, and
    /// handled by the worker. The reply is a [`ControlReply::Reserved`].
    Reserve {
        /// Which volume.
        volume: VolumeId,
        /// Who asks what; the worker's own form, at most [`ASKING_BYTES_MAX`] bytes.
        asking: Vec<u8>,
    },
}

/// Most bytes of a host's request about reservations that is passed on.
pub const ASKING_BYTES_MAX: usize = CONTROL_BYTES_MAX - 64;

/// States that an owner writes into its peer's (and its own) leg headers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Mark {
    /// The leg is about to be overwritten by a resync.
    Inconsistent,
    /// The resync copied everything: the leg is whole again, if not yet in sync.
    Consistent,
    /// The leg equals the owner's; its map starts anew at the token's epoch.
    InSync {
        /// Written by this start of the owner on every leg; a clone or restored image has another.
        nonce: u64,
        /// The one before that both legs had.
        agreed: u64,
    },
    /// The resync copied everything: the leg is whole again and comes from the owner's, whose nonces
    /// it takes over; it is not in sync before the log says so.
    Copied {
        /// The owner's nonce.
        nonce: u64,
        /// The owner's one before.
        agreed: u64,
    },
}

/// Reply to a control message.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum ControlReply {
    /// To `Hello`: the receiver's nonce and its own proof.
    Challenge {
        /// Random bytes that the sender must answer to.
        nonce: [u8; 32],
        /// HMAC over both nonces and both ids, for the receiver.
        code: [u8; 32],
        /// How many reactors the receiver has.
        reactors: u32,
    },
    /// Done.
    Done,
    /// To `Bar`: taken.
    Barred {
        /// Its short name.
        bar: Bar,
        /// The keeper's process; a lease counts only together with a bar of the same.
        session: u64,
        /// What each of its legs says, in order of volumes.
        legs: Vec<LegReport>,
    },
    /// To `FetchMap`.
    Map {
        /// Whether the map can be trusted; if not, everything is dirty.
        readable: bool,
        /// Dirty regions from the asked one on, ascending, at most [`MAP_REGIONS_MAX`].
        regions: Vec<u64>,
        /// Where to ask on.
        next: Option<u64>,
    },
    /// To `Grant`: yes, from when it was asked for.
    Granted {
        /// The keeper's process.
        session: u64,
        /// Revocations so far.
        counter: u64,
        /// Groups revoked since those that the asker had seen; `None`: too many, take all as revoked.
        revoked: Option<Vec<GroupId>>,
    },
    /// No.
    Refused(LinkRefusal),
    /// To `Reserve`: the owner's answer, in the worker's own form.
    Reserved {
        /// The answer.
        told: Vec<u8>,
    },
}

/// Most regions in one reply.
pub const MAP_REGIONS_MAX: usize = 100_000;

/// Why a peer does not do what it was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
pub enum LinkRefusal {
    /// A higher token is held, or the bar is no longer current.
    #[error("a newer token is held")]
    Stale,
    /// The epoch is not yet known there; ask again.
    #[error("the epoch is not yet known at the peer")]
    NotYet,
    /// The group or volume is not known there.
    #[error("the group is not known at the peer")]
    Unknown,
    /// Its leg is not there any more.
    #[error("the peer's leg lost its content")]
    ContentLost,
    /// Its leg cannot be used.
    #[error("the peer's device failed")]
    Failed,
    /// These blocks cannot be read there.
    #[error("the peer's device cannot read these blocks")]
    Medium,
    /// Out of range or malformed.
    #[error("the request makes no sense")]
    Invalid,
    /// Not authenticated.
    #[error("the channel is not authenticated")]
    NotAuthenticated,
}

/// What a leg says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LegReport {
    /// Number of the volume.
    pub volume: u32,
    /// Whether it was whole when its token was last raised.
    pub consistent: bool,
    /// Number of the commit at which its map starts; `None` if its map cannot be trusted.
    pub map_since: Option<u64>,
    /// The nonce last written while in sync.
    pub nonce: u64,
    /// The one before that both legs had.
    pub agreed_nonce: u64,
    /// Whether any region of its map is dirty.
    pub dirty: bool,
    /// Names its record's content.
    pub record: u64,
    /// Whether the process there put that record, or served by it.
    pub record_is_live: bool,
}

/// A peer's answer.
#[derive(Clone, Debug)]
pub enum LinkReply {
    /// A write or zero is durable there.
    Done,
    /// What was read.
    Data(Buffer),
    /// Reply to a control message.
    Control(ControlReply),
    /// No.
    Refused(LinkRefusal),
}
