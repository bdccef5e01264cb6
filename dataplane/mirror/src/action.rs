//! What goes in and out of a mirror.

use crate::link::{LinkReply, LinkRequest};
use std::sync::Arc;
use voute_buffer::Buffer;
use voute_schemas::command::Escalation;
use voute_schemas::{GroupId, LegId, NodeId, VolumeId};

/// Data on its way to one or more legs: shared, never changed after it was wholly received.
pub type Payload = Arc<Buffer>;

/// A request of a host, by whatever protocol. Offsets and lengths in bytes, multiples of the
/// volume's block; checked against the volume's size by the mirror too.
#[derive(Clone, Debug)]
pub struct HostRequest {
    /// Chosen by the caller, unique among those not yet answered.
    pub id: HostTag,
    /// Which volume.
    pub volume: VolumeId,
    /// What.
    pub operation: HostOperation,
}

/// The caller's name for a request of a host.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct HostTag(pub u64);

/// What a host wants. A write that was submitted is never cancelled.
#[derive(Clone, Debug)]
pub enum HostOperation {
    /// Read `length` bytes.
    Read {
        /// From here.
        offset: u64,
        /// At most [`TRANSFER_MAX`].
        length: u32,
    },
    /// Write all of `data`.
    Write {
        /// To here.
        offset: u64,
        /// What; at most [`TRANSFER_MAX`].
        data: Payload,
    },
    /// Write all of `data` or nothing of it, whatever power is lost meanwhile.
    WriteWhole {
        /// To here.
        offset: u64,
        /// What; it crosses no multiple of the volume's [`atomic_unit`](crate::atomic_unit).
        data: Payload,
    },
    /// Make a range read as zero. Any length.
    Zero {
        /// From here.
        offset: u64,
        /// How much.
        length: u64,
        /// The host no longer needs the space.
        deallocate: bool,
    },
    /// Write only if the range holds `expected` (as long as `data`), in one step for everybody else.
    /// What is longer than a block and within an atomic unit is written as by `WriteWhole`.
    CompareAndWrite {
        /// Where.
        offset: u64,
        /// What must be there.
        expected: Payload,
        /// What to write.
        data: Payload,
    },
    /// Everything acknowledged is durable already; answered in order of arrival.
    Flush,
    /// Keep this record in the headers of the volume's legs. Answered `Done` when every leg that
    /// counts has it durably, `Busy` or `OutOfRange` if nothing was done, `PathError` if the
    /// outcome is not known: another node owns by now, or the legs are opened anew and
    /// [`Action::Record`] will tell. It is never given up before.
    PutRecord {
        /// What; at most [`RECORD_BYTES_MAX`].
        record: Vec<u8>,
    },
    /// Answered `Done` while nobody else can own the volume: the same proof as a read needs.
    Confirm {
        /// Only once every request that is under way on the volume now has ended, on every leg.
        after_all: bool,
    },
}

/// Most bytes of a volume's record: what a header has room for.
pub const RECORD_BYTES_MAX: usize = 3_000;

/// Most bytes that one read or write may carry.
pub const TRANSFER_MAX: u32 = 1 << 20;

/// What became of a request of a host.
#[derive(Clone, Debug)]
pub enum HostOutcome {
    /// Done, durable on every in-sync leg.
    Done,
    /// What was read.
    Data(Buffer),
    /// The range held something else, first differing at this byte of it.
    Miscompare {
        /// Offset of the first difference within `expected`.
        at: u32,
    },
    /// This node cannot serve the volume (any more): another path may. Never a media error.
    PathError,
    /// This node will soon know: another path may, or the same one later.
    Transition,
    /// Not whole blocks, longer than a transfer may be, or across a unit that an atomic write must lie in.
    OutOfRange,
    /// The volume is not known here.
    NoSuchVolume,
    /// Too many requests are held, or the volume's growth is not known here yet.
    Busy,
    /// No copy of these blocks can be read.
    MediumError,
    /// A reservation forbids it. Never a mirror's answer: reservations are judged before.
    Conflict,
}

/// Something that the reactor must do for a mirror.
#[derive(Clone, Debug)]
pub enum Action {
    /// Do I/O on a local leg; answer with `Mirror::device_done` exactly once per tag, in any order.
    Device(DeviceRequest),
    /// Send a request over the channel to a peer; answer with `Mirror::link_reply` exactly once per
    /// tag: also (with an error) when the channel is down or goes down.
    Link {
        /// To whom.
        peer: NodeId,
        /// The mirror's name for it.
        tag: LinkTag,
        /// What.
        request: LinkRequest,
    },
    /// Answer a request that came in by `Mirror::link_request`.
    LinkReply {
        /// Which.
        request: IncomingTag,
        /// With what.
        reply: LinkReply,
    },
    /// Answer a host.
    HostReply {
        /// Which request.
        id: HostTag,
        /// How.
        outcome: HostOutcome,
    },
    /// Ask the log; repeated by the mirror itself until a spec shows it done. Batched by the node.
    Escalate(Escalation),
    /// The access state of a group changed ([`Access`]): tell hosts (ANA, ALUA).
    AccessChanged {
        /// Which group.
        group: GroupId,
        /// Its state from here on.
        access: Access,
    },
    /// This node begins to serve a volume (again): its record, as the legs have it. Comes before the
    /// access state does.
    Record {
        /// Its group.
        group: GroupId,
        /// Which volume.
        volume: VolumeId,
        /// What was last put; empty if nothing was.
        record: Vec<u8>,
        /// No process lives that knew it: all of the volume's nodes were restarted since.
        is_cold: bool,
    },
    /// Keep (or stop keeping) a channel to this peer: connect, authenticate, then call
    /// `Mirror::channel_up`; reconnect with bounded back-off (100 ms) while wanted.
    Channel {
        /// To whom.
        peer: NodeId,
        /// Whether a channel is wanted.
        wanted: bool,
    },
}

/// How hosts may reach a group's volumes through this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Served here.
    Optimized,
    /// Served elsewhere.
    Inaccessible,
    /// About to be known.
    Transition,
    /// Served here by the last that was heard, but neither peer nor log has answered for a while:
    /// another node may own by now. Requests get path errors at once until one of them answers.
    CutOff,
}

/// I/O on a local leg, in the leg's own space (its header and maps come first).
#[derive(Clone, Debug)]
pub struct DeviceRequest {
    /// The mirror's name for it.
    pub tag: DeviceTag,
    /// Which leg.
    pub leg: LegId,
    /// Where, bytes; a multiple of the volume's block (of 4096 for header and maps).
    pub offset: u64,
    /// What.
    pub kind: DeviceKind,
}

/// What to do on a device. Writes and zeroes complete only when they survive a power cut.
#[derive(Clone, Debug)]
pub enum DeviceKind {
    /// Read this many bytes.
    Read {
        /// How many.
        length: u32,
    },
    /// Write, durably.
    Write {
        /// What.
        data: Payload,
    },
    /// Make a range read as zero, durably; `release` if the space may be given back.
    Zero {
        /// How many bytes.
        length: u64,
        /// Whether the device may deallocate it.
        release: bool,
    },
}

/// The mirror's name for an I/O on a local leg.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct DeviceTag(pub u64);

/// The mirror's name for a request to a peer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct LinkTag(pub u64);

/// The reactor's name for a request of a peer: connection and command.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct IncomingTag {
    /// The connection on which it came.
    pub connection: u64,
    /// The command on that connection.
    pub command: u64,
}

/// What came of an I/O on a local leg.
pub type DeviceResult = Result<Option<Buffer>, DeviceFault>;

/// Why an I/O on a local leg failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DeviceFault {
    /// These blocks cannot be read; others may be.
    #[error("the device cannot read these blocks")]
    Medium,
    /// A read failed, and the device does not say whether these blocks are bad or it works no more.
    #[error("the device answered a read with an I/O error")]
    Unclear,
    /// The device does not work.
    #[error("the device failed")]
    Failed,
    /// The device has no room (a sparse file on a full file system).
    #[error("the device has no space left")]
    NoSpace,
}

/// Why a request to a peer has no reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LinkFault {
    /// The channel is down or went down: it may or may not have been carried out.
    #[error("the channel to the peer is down")]
    Down,
    /// The peer answered with something unreadable.
    #[error("the peer's answer cannot be read")]
    Unreadable,
}
