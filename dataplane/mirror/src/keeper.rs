//! The keeper of a group's legs at this node: whoever owns the group, here or at the peer, reaches
//! the legs only through it.
//!
//! ```text
//! leg:   Loading ──► Ready            (header and maps read)
//!           │  └───► ContentLost      (formatted before, header gone)
//!           └─► Formatting ──► Ready  (new; LegFormatted is escalated)
//!        any ──► Failed               (device error; loading is tried again)
//!
//! token: held ──bar(higher)──► barring: refuses all, drains, writes headers ──► held
//! ```
//!
//! A request carries the *bar*, the name of the token that is held; with any other it is refused.
//! While a higher token is being taken no bar is current, and the headers are written only when
//! every request under the lower one has left the device queue (docs/mirror-rules.md rule 1).

mod journaling;
mod load;
mod marks;
mod metadata;
mod operation;
mod token;

use crate::action::{DeviceFault, DeviceKind, DeviceResult, IncomingTag, Payload};
use crate::header::{HEADER_AREA_BYTES, Header};
use crate::link::{Bar, LegReport};
use crate::map::{Bits, REGIONS_PER_PAGE};
use crate::out::{DeviceClient, Out};
use crate::owner::OwnerCall;
use crate::pending::Pending;
use crate::record::fingerprint;
use journaling::{Journaled, Replay, Slots};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::Duration;
use voute_buffer::Buffer;
use voute_schemas::contract::{GroupSpec, LegState, LegStatus, VolumeSpec};
use voute_schemas::{ClusterId, Epoch, GroupId, LegId, NodeId, Token};

/// How long after a failed load the leg is tried again.
const RELOAD_AFTER: Duration = Duration::from_millis(1_000);
/// Most requests on a group's legs at a time; more are refused.
const OPERATIONS_MAX: usize = 8_192;
/// Most bytes read or written at a time when headers and maps are loaded or formatted.
const METADATA_CHUNK_BYTES: usize = 1 << 20;

/// Who asked for something.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Client {
    /// An owner here, by its life: an answer to one that stepped down is not for its successor.
    Owner(u64, OwnerCall),
    Link(IncomingTag),
}

/// Why a leg does not do what it was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum LegFault {
    /// The bar is not current.
    Stale,
    /// Not loaded yet, or not as large yet.
    NotYet,
    /// Its content is gone.
    ContentLost,
    /// Its device failed.
    Failed,
    /// These blocks cannot be read.
    Medium(Why),
    /// No such volume.
    Unknown,
    /// Too many requests, or out of range.
    Invalid,
}

/// Why blocks cannot be read. Who can get them from the other leg need not ask.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Why {
    /// The device says that they are bad.
    Bad,
    /// The device says that the read failed, and no more: it may read nothing at all for a while.
    Unclear,
    /// The leg was made without them, and says so.
    Lost,
}

/// What a keeper tells its group.
#[derive(Clone, Debug)]
pub(crate) enum KeeperEvent {
    /// A request on a leg ended.
    Done(Client, Result<Option<Buffer>, LegFault>),
    /// A token was taken, or not.
    Barred(Client, Result<Bar, LegFault>),
    /// A new leg's header is on its device.
    Formatted(LegId),
    /// A leg can (or can no longer) be used.
    LegsChanged,
}

/// What a device request of a keeper was for.
#[derive(Clone, Debug)]
pub(crate) enum DevicePurpose {
    LoadHeader { leg: usize },
    LoadPages { leg: usize, first: u64 },
    Format { leg: usize, next: u64 },
    Header { leg: usize },
    LoadHeads { leg: usize },
    LoadRecord { leg: usize },
    CarryOut { leg: usize },
    EmptyHeads { leg: usize },
    Page { leg: usize, page: u64 },
    Prepare { leg: usize, region: u64 },
    Probe { client: Client },
    Operation { key: u64 },
}

/// What is done on a leg. `whole`: all of it or nothing survives a power cut.
#[derive(Clone, Debug)]
pub(crate) enum LegOperation {
    Read { offset: u64, length: u32 },
    Write { offset: u64, data: Payload, whole: bool },
    Zero { offset: u64, length: u64, release: bool, whole: bool },
}

#[derive(Clone, Debug)]
struct Operation {
    client: Client,
    leg: usize,
    kind: LegOperation,
    /// Preparations of regions, or parts on the device, that it waits for.
    waiting: u32,
    fault: Option<LegFault>,
    dispatched: bool,
    journaled: Option<Journaled>,
}

/// What waits for a write of metadata.
#[derive(Clone, Debug)]
enum Waiter {
    Client(Client),
    /// One of several headers, after all of which a client is answered.
    Joint(u64),
    Region(u64),
    /// A write of blocks that were lost: it ends when the header no longer says so.
    Regained(u64),
    /// The header with this token.
    Barring(Token),
    /// One of the new pages of a leg that grows.
    NewPage,
    Grown(u64),
}

/// One write at a time of a page or header; whoever comes meanwhile waits for the next.
#[derive(Clone, Default, Debug)]
struct Writer {
    writing: bool,
    under_way: Vec<Waiter>,
    next: Vec<Waiter>,
    again: bool,
}

#[derive(Clone, Debug)]
enum Condition {
    Loading,
    Formatting,
    Ready,
    ContentLost,
    Failed { retry_at: Option<Duration>, detail: &'static str },
}

#[derive(Clone, Debug)]
struct Leg {
    id: LegId,
    spec: VolumeSpec,
    formatted: bool,
    condition: Condition,
    header: Header,
    header_writer: Writer,
    /// The nonces of the header that is on disk, and of one that is being written.
    nonces_on_disk: (u64, u64),
    nonces_under_way: (u64, u64),
    slots: Slots,
    replay: Replay,
    dirty: Bits,
    written: Bits,
    pages: Vec<(u64, Writer)>,
    /// Dirty bits that are not yet on disk, and whether the write under way holds them.
    not_durable: HashMap<u64, bool>,
    /// Regions being zeroed before their first write, and who waits.
    preparing: HashMap<u64, Vec<u64>>,
    /// Size of the volume that the maps on disk cover, bytes.
    size: u64,
    growing: bool,
    /// New pages still to be written before the header may count them.
    new_pages: u64,
    /// How often a page could not be told since the leg was last usable.
    unclear_reads: u32,
    /// When `LegFormatted` is to be said again, if the log does not say so.
    tell_formatted_at: Duration,
    /// Under which bar the record was put last, and its number.
    last_put: Option<(Bar, u64)>,
    /// This process put the record, or its node served by it.
    record_is_live: bool,
}

#[derive(Clone, Debug)]
struct Barring {
    token: Token,
    client: Client,
    /// Headers still to be written; `None` until the lower token's requests are drained.
    headers: Option<usize>,
}

#[derive(Clone, Debug)]
struct Joint {
    client: Client,
    left: usize,
    fault: Option<LegFault>,
}

#[derive(Clone, Debug)]
pub(crate) struct Keeper {
    pub(crate) life: u64,
    cluster: ClusterId,
    group: GroupId,
    legs: Vec<Leg>,
    /// Legs that the spec names; others go once nothing of them is under way.
    wanted: Vec<LegId>,
    operations: Pending<Operation>,
    joints: Pending<Joint>,
    held: Token,
    held_by: Option<NodeId>,
    bar: Option<Bar>,
    barring: Option<Barring>,
    in_flight: usize,
    pub(crate) events: VecDeque<KeeperEvent>,
}

impl Keeper {
    pub(crate) fn new(cluster: ClusterId, group: GroupId, life: u64) -> Self {
        Keeper {
            life,
            cluster,
            group,
            legs: Vec::new(),
            wanted: Vec::new(),
            operations: Pending::new(),
            joints: Pending::new(),
            held: Token::default(),
            held_by: None,
            bar: None,
            barring: None,
            in_flight: 0,
            events: VecDeque::new(),
        }
    }

    /// Takes the legs that the spec gives this node.
    pub(crate) fn apply(&mut self, spec: &GroupSpec, me: NodeId, out: &mut Out) {
        let in_sync = spec.sides.iter().any(|side| side.node == me && side.in_sync);
        self.wanted =
            spec.volumes.iter().flat_map(|volume| volume.legs.iter().map(|leg| leg.leg)).collect();
        for volume in &spec.volumes {
            let Some(wanted) = volume.legs.iter().find(|leg| leg.node == me) else { continue };
            match self.legs.iter().position(|leg| leg.id == wanted.leg) {
                None => self.add_leg(spec, volume, wanted.leg, wanted.formatted, in_sync, out),
                Some(index) => {
                    self.legs[index].spec = volume.clone();
                    self.legs[index].formatted = wanted.formatted;
                    if !wanted.formatted
                        && matches!(self.legs[index].condition, Condition::ContentLost)
                    {
                        self.format(index, in_sync.then_some(spec.epoch.sequence.0), out);
                    }
                    self.grow(index, out);
                }
            }
        }
        self.drop_unwanted();
    }

    fn drop_unwanted(&mut self) {
        if self.is_idle() {
            let wanted = &self.wanted;
            self.legs.retain(|leg| wanted.contains(&leg.id));
        }
    }

    fn add_leg(
        &mut self,
        spec: &GroupSpec,
        volume: &VolumeSpec,
        id: LegId,
        formatted: bool,
        in_sync: bool,
        out: &mut Out,
    ) {
        let regions = volume.size_bytes.div_ceil(volume.region_bytes);
        let header = Header {
            generation: 0,
            cluster: self.cluster,
            group: spec.group,
            volume: volume.volume,
            leg: id,
            size_bytes: volume.size_bytes,
            block_bytes: volume.block_bytes,
            region_bytes: volume.region_bytes,
            pages: regions.div_ceil(REGIONS_PER_PAGE),
            token: Token::default(),
            consistent: in_sync,
            joining: None,
            map_since: in_sync.then_some(spec.epoch.sequence.0),
            nonce: 0,
            agreed_nonce: 0,
            record: Vec::new(),
            lost: Vec::new(),
        };
        self.legs.push(Leg {
            id,
            spec: volume.clone(),
            formatted,
            condition: Condition::Loading,
            header,
            header_writer: Writer::default(),
            nonces_on_disk: (0, 0),
            nonces_under_way: (0, 0),
            slots: Slots::default(),
            replay: Replay::default(),
            dirty: Bits::new(regions),
            written: Bits::new(regions),
            pages: Vec::new(),
            not_durable: HashMap::new(),
            preparing: HashMap::new(),
            size: volume.size_bytes,
            growing: false,
            new_pages: 0,
            unclear_reads: 0,
            tell_formatted_at: Duration::ZERO,
            last_put: None,
            record_is_live: false,
        });
        // A token that is held is not in the new leg's header.
        self.bar = None;
        self.load(self.legs.len() - 1, out);
    }

    fn device(
        &mut self,
        leg: usize,
        offset: u64,
        kind: DeviceKind,
        purpose: DevicePurpose,
        out: &mut Out,
    ) {
        self.in_flight += 1;
        let client = DeviceClient::Keeper(self.group, self.life, purpose);
        out.device(client, self.legs[leg].id, offset, kind);
    }

    /// Reads the header of a volume's leg, to learn whether its device reads anything at all. One
    /// [`KeeperEvent::Done`].
    pub(crate) fn probe(&mut self, volume: u32, client: Client, out: &mut Out) {
        let usable = self.usable();
        match self.position(volume).ok_or(LegFault::Unknown).and_then(|leg| usable.map(|()| leg)) {
            Ok(leg) => {
                let length = u32::try_from(HEADER_AREA_BYTES).expect("two pages");
                let kind = DeviceKind::Read { length };
                self.device(leg, 0, kind, DevicePurpose::Probe { client }, out);
            }
            Err(fault) => self.events.push_back(KeeperEvent::Done(client, Err(fault))),
        }
    }

    /// Whether all legs can be used.
    pub(crate) fn usable(&self) -> Result<(), LegFault> {
        if self.legs.is_empty() {
            return Err(LegFault::Unknown);
        }
        let faults = self.legs.iter().filter_map(|leg| match leg.condition {
            Condition::Ready => None,
            Condition::Loading | Condition::Formatting => Some(LegFault::NotYet),
            Condition::ContentLost => Some(LegFault::ContentLost),
            Condition::Failed { .. } => Some(LegFault::Failed),
        });
        faults
            .reduce(|worst, fault| if worst == LegFault::NotYet { fault } else { worst })
            .map_or(Ok(()), Err)
    }

    pub(crate) fn holds(&self, bar: Bar) -> bool {
        self.bar == Some(bar)
    }

    pub(crate) fn held(&self) -> Token {
        self.held
    }

    pub(crate) fn held_by(&self) -> Option<NodeId> {
        self.held_by
    }

    pub(crate) fn reports(&self) -> Vec<LegReport> {
        let reports = self.legs.iter().map(|leg| LegReport {
            volume: leg.spec.number,
            consistent: leg.header.consistent,
            map_since: leg.header.map_since,
            nonce: leg.header.nonce,
            agreed_nonce: leg.header.agreed_nonce,
            dirty: leg.dirty.any(),
            record: fingerprint(&leg.header.record),
            record_is_live: leg.record_is_live,
        });
        reports.collect()
    }

    pub(crate) fn is_consistent(&self) -> bool {
        self.legs.iter().all(|leg| leg.header.consistent)
    }

    /// Whether the log was asked, at this epoch, to take the peer in.
    pub(crate) fn is_joining(&self, epoch: Epoch) -> bool {
        self.legs.iter().any(|leg| leg.header.joining == Some(epoch.sequence.0))
    }

    /// The leg of a volume; one that was replaced stays until nothing of it is under way, but serves
    /// no more.
    fn position(&self, volume: u32) -> Option<usize> {
        self.legs.iter().position(|leg| leg.spec.number == volume && self.wanted.contains(&leg.id))
    }

    /// Whether the log knows all legs here to be formatted.
    pub(crate) fn is_formatted(&self) -> bool {
        self.legs.iter().all(|leg| leg.formatted)
    }

    // --- answers of devices, time

    pub(crate) fn device_done(
        &mut self,
        purpose: DevicePurpose,
        result: DeviceResult,
        now: Duration,
        out: &mut Out,
    ) {
        self.in_flight -= 1;
        match purpose {
            DevicePurpose::LoadHeader { leg } => match result {
                Ok(Some(area)) => self.header_loaded(leg, &area, out),
                _ => self.leg_failed(leg, Some(now + RELOAD_AFTER), "its header cannot be read"),
            },
            DevicePurpose::LoadPages { leg, first } => match result {
                Ok(Some(bytes)) => self.pages_loaded(leg, first, Some(&bytes), now, out),
                Err(DeviceFault::Medium | DeviceFault::Unclear) => {
                    self.pages_loaded(leg, first, None, now, out);
                }
                _ => self.leg_failed(leg, Some(now + RELOAD_AFTER), "its maps cannot be read"),
            },
            DevicePurpose::Format { leg, next } => match (result, next) {
                (Err(_), _) => {
                    self.leg_failed(leg, Some(now + RELOAD_AFTER), "it cannot be formatted")
                }
                (Ok(_), load::JOURNAL_NEXT) => self.format_header(leg, out),
                (Ok(_), load::HEADER_NEXT) => self.loaded(leg, out),
                (Ok(_), next) => self.format_pages(leg, next, out),
            },
            DevicePurpose::Header { leg } => {
                let fault = result.err().map(leg_fault);
                self.note_failure(leg, fault, now);
                if fault.is_some() {
                    // It may be torn. The next one goes to the same place: the other copy is sound.
                    self.legs[leg].header.generation -= 1;
                } else {
                    self.legs[leg].nonces_on_disk = self.legs[leg].nonces_under_way;
                }
                let waiters = self.legs[leg].header_writer.end();
                self.wake(leg, waiters, fault, out);
                self.start_header(leg, out);
            }
            DevicePurpose::Page { leg, page } => {
                let fault = result.err().map(leg_fault);
                self.note_failure(leg, fault, now);
                if fault.is_some() {
                    // To the same slot, but not as the same write: parts of both may lie there.
                    self.legs[leg].pages[page as usize].0 += 1;
                }
                let waiters = self.legs[leg].pages[page as usize].1.end();
                if fault.is_none() {
                    self.legs[leg].not_durable.retain(|region, under_way| {
                        region / REGIONS_PER_PAGE != page || !*under_way
                    });
                }
                self.wake(leg, waiters, fault, out);
                self.start_page(leg, page, out);
            }
            DevicePurpose::Prepare { leg, region } => self.region_zeroed(leg, region, &result, out),
            DevicePurpose::Probe { client } => {
                let result = result.map(|_| None).map_err(leg_fault);
                self.events.push_back(KeeperEvent::Done(client, result));
            }
            DevicePurpose::Operation { key } => self.operation_done(key, result, now, out),
            DevicePurpose::LoadHeads { leg } => self.heads_loaded(leg, result, now, out),
            DevicePurpose::LoadRecord { leg } => self.record_loaded(leg, result, now, out),
            DevicePurpose::CarryOut { leg } => self.carried_out(leg, result, now, out),
            DevicePurpose::EmptyHeads { leg } => self.heads_emptied(leg, result, now, out),
        }
    }

    fn note_failure(&mut self, leg: usize, fault: Option<LegFault>, now: Duration) {
        if fault.is_some() {
            self.leg_failed(leg, Some(now + RELOAD_AFTER), "its metadata cannot be written");
        }
    }

    fn leg_failed(&mut self, leg: usize, retry_at: Option<Duration>, detail: &'static str) {
        self.bar = None;
        self.legs[leg].condition = Condition::Failed { retry_at, detail };
        self.events.push_back(KeeperEvent::LegsChanged);
    }

    pub(crate) fn tick(&mut self, now: Duration, out: &mut Out) {
        self.drop_unwanted();
        for leg in 0..self.legs.len() {
            // Loading replaces what is known of the leg, so nothing of it may be under way.
            if self.is_idle()
                && matches!(self.legs[leg].condition, Condition::Failed { retry_at: Some(at), .. } if at <= now)
            {
                self.load(leg, out);
            }
            let state = &mut self.legs[leg];
            if matches!(state.condition, Condition::Ready)
                && !state.formatted
                && state.tell_formatted_at <= now
            {
                state.tell_formatted_at = now + RELOAD_AFTER;
                self.events.push_back(KeeperEvent::Formatted(state.id));
            }
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        let idle = self.is_idle();
        let retries = self.legs.iter().filter_map(|leg| match leg.condition {
            // The last of what is under way ends before it is loaded again.
            Condition::Failed { retry_at, .. } if idle => retry_at,
            Condition::Ready if !leg.formatted => Some(leg.tell_formatted_at),
            _ => None,
        });
        retries.min()
    }

    /// Nothing of this keeper is in a device queue.
    pub(crate) fn is_idle(&self) -> bool {
        self.in_flight == 0 && self.operations.len() == 0
    }

    pub(crate) fn leg_ids(&self) -> impl Iterator<Item = LegId> + '_ {
        self.legs.iter().map(|leg| leg.id)
    }

    pub(crate) fn statuses(&self) -> Vec<LegStatus> {
        let statuses = self.legs.iter().map(|leg| {
            let (state, detail) = match &leg.condition {
                Condition::Loading | Condition::Formatting => (LegState::Unformatted, "opening"),
                Condition::Ready if leg.header.consistent => (LegState::Consistent, ""),
                Condition::Ready => (LegState::Inconsistent, "being resynced"),
                Condition::ContentLost => (
                    LegState::ContentLost,
                    "its header is gone: the device was replaced or its memory ended",
                ),
                Condition::Failed { detail, .. } => (LegState::Failed, *detail),
            };
            LegStatus { leg: leg.id, state, detail: detail.to_owned() }
        });
        statuses.collect()
    }

    /// What a map of every leg says of its begin; the least of them.
    pub(crate) fn map_since(&self) -> Option<u64> {
        self.legs
            .iter()
            .map(|leg| leg.header.map_since)
            .reduce(|one, other| one.zip(other).map(|(one, other)| one.max(other)))
            .flatten()
    }

    pub(crate) fn nonces(&self) -> BTreeMap<u32, (u64, u64)> {
        self.legs
            .iter()
            .map(|leg| (leg.spec.number, (leg.header.nonce, leg.header.agreed_nonce)))
            .collect()
    }

    /// Of those, what is on the disks.
    pub(crate) fn durable_nonces(&self) -> BTreeMap<u32, (u64, u64)> {
        self.legs.iter().map(|leg| (leg.spec.number, leg.nonces_on_disk)).collect()
    }
}

fn leg_fault(fault: DeviceFault) -> LegFault {
    match fault {
        DeviceFault::Medium => LegFault::Medium(Why::Bad),
        DeviceFault::Unclear => LegFault::Medium(Why::Unclear),
        DeviceFault::Failed | DeviceFault::NoSpace => LegFault::Failed,
    }
}
