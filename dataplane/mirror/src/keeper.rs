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

use crate::action::{
    DeviceFault, DeviceKind, DeviceResult, IncomingTag, Payload, RECORD_BYTES_MAX,
};
use crate::header::{HEADER_AREA_BYTES, Header};
use crate::link::{Bar, LegReport, Mark};
use crate::map::{self, Bits, PAGE_BYTES, REGIONS_PER_PAGE};
use crate::out::{DeviceClient, Out};
use crate::owner::OwnerCall;
use crate::pending::Pending;
use crate::record::fingerprint;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use voute_buffer::Buffer;
use voute_schemas::contract::{GroupSpec, LegState, LegStatus, VolumeSpec};
use voute_schemas::place::LEG_METADATA_BYTES;
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
    Medium,
    /// No such volume.
    Unknown,
    /// Too many requests, or out of range.
    Invalid,
}

/// What a keeper tells its group.
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
pub(crate) enum DevicePurpose {
    LoadHeader { leg: usize },
    LoadPages { leg: usize, first: u64 },
    Format { leg: usize, next: u64 },
    Header { leg: usize },
    Page { leg: usize, page: u64 },
    Prepare { leg: usize, region: u64 },
    Operation { key: u64 },
}

/// What is done on a leg.
pub(crate) enum LegOperation {
    Read { offset: u64, length: u32 },
    Write { offset: u64, data: Payload },
    Zero { offset: u64, length: u64, release: bool },
}

struct Operation {
    client: Client,
    leg: usize,
    kind: LegOperation,
    /// Preparations of regions, or parts on the device, that it waits for.
    waiting: u32,
    fault: Option<LegFault>,
    dispatched: bool,
}

/// What waits for a write of metadata.
enum Waiter {
    Client(Client),
    /// One of several headers, after all of which a client is answered.
    Joint(u64),
    Region(u64),
    /// The header with this token.
    Barring(Token),
    /// One of the new pages of a leg that grows.
    NewPage,
    Grown(u64),
}

/// One write at a time of a page or header; whoever comes meanwhile waits for the next.
#[derive(Default)]
struct Writer {
    writing: bool,
    under_way: Vec<Waiter>,
    next: Vec<Waiter>,
    again: bool,
}

enum Condition {
    Loading,
    Formatting,
    Ready,
    ContentLost,
    Failed { retry_at: Option<Duration>, detail: &'static str },
}

struct Leg {
    id: LegId,
    spec: VolumeSpec,
    formatted: bool,
    condition: Condition,
    header: Header,
    header_writer: Writer,
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
    /// When `LegFormatted` is to be said again, if the log does not say so.
    tell_formatted_at: Duration,
    /// Under which bar the record was put last, and its number.
    last_put: Option<(Bar, u64)>,
    /// This process put the record, or its node served by it.
    record_is_live: bool,
}

struct Barring {
    token: Token,
    client: Client,
    /// Headers still to be written; `None` until the lower token's requests are drained.
    headers: Option<usize>,
}

struct Joint {
    client: Client,
    left: usize,
    fault: Option<LegFault>,
}

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
        };
        self.legs.push(Leg {
            id,
            spec: volume.clone(),
            formatted,
            condition: Condition::Loading,
            header,
            header_writer: Writer::default(),
            dirty: Bits::new(regions),
            written: Bits::new(regions),
            pages: Vec::new(),
            not_durable: HashMap::new(),
            preparing: HashMap::new(),
            size: volume.size_bytes,
            growing: false,
            new_pages: 0,
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

    // --- loading and formatting

    fn load(&mut self, leg: usize, out: &mut Out) {
        self.legs[leg].condition = Condition::Loading;
        let length = u32::try_from(HEADER_AREA_BYTES).expect("two pages");
        self.device(leg, 0, DeviceKind::Read { length }, DevicePurpose::LoadHeader { leg }, out);
    }

    fn header_loaded(&mut self, leg: usize, area: &[u8], out: &mut Out) {
        let id = self.legs[leg].id;
        let found = Header::newest(area, id).filter(|header| {
            header.cluster == self.cluster && header.volume == self.legs[leg].spec.volume
        });
        let Some(header) = found else {
            if self.legs[leg].formatted {
                self.legs[leg].condition = Condition::ContentLost;
                self.events.push_back(KeeperEvent::LegsChanged);
            } else {
                let since = self.legs[leg].header.map_since;
                self.format(leg, since, out);
            }
            return;
        };
        let regions = header.size_bytes.div_ceil(header.region_bytes.max(1));
        let leg_state = &mut self.legs[leg];
        leg_state.growing = false;
        leg_state.new_pages = 0;
        leg_state.preparing.clear();
        leg_state.not_durable.clear();
        leg_state.size = header.size_bytes;
        leg_state.dirty = Bits::new(regions);
        leg_state.written = Bits::new(regions);
        leg_state.pages = (0..header.pages).map(|_| (0, Writer::default())).collect();
        if header.token > self.held {
            self.held = header.token;
        }
        leg_state.header = header;
        self.load_pages(leg, 0, out);
    }

    fn load_pages(&mut self, leg: usize, first: u64, out: &mut Out) {
        let pages = self.legs[leg].pages.len() as u64;
        if first >= pages {
            return self.loaded(leg, out);
        }
        let count = (pages - first).min((METADATA_CHUNK_BYTES / PAGE_BYTES / 2) as u64);
        let length = u32::try_from(count * 2 * PAGE_BYTES as u64).expect("at most a chunk");
        self.device(
            leg,
            map::page_offset(first, 0),
            DeviceKind::Read { length },
            DevicePurpose::LoadPages { leg, first },
            out,
        );
    }

    fn pages_loaded(&mut self, index: usize, first: u64, bytes: &[u8], out: &mut Out) {
        let leg = &mut self.legs[index];
        let mut page = first;
        for slots in bytes.chunks_exact(2 * PAGE_BYTES) {
            let newest = slots
                .chunks_exact(PAGE_BYTES)
                .filter_map(|slot| {
                    map::decode_page(leg.id, page, slot).map(|generation| (generation, slot))
                })
                .max_by_key(|(generation, _)| *generation);
            match newest {
                Some((generation, slot)) => {
                    map::take_page(page, slot, &mut leg.dirty, &mut leg.written);
                    leg.pages[page as usize].0 = generation;
                }
                None => {
                    for region in page * REGIONS_PER_PAGE
                        ..((page + 1) * REGIONS_PER_PAGE).min(leg.dirty.len())
                    {
                        leg.dirty.set(region, true);
                        leg.written.set(region, true);
                    }
                }
            }
            page += 1;
        }
        self.load_pages(index, page, out);
    }

    fn loaded(&mut self, leg: usize, out: &mut Out) {
        self.legs[leg].condition = Condition::Ready;
        if !self.legs[leg].formatted {
            // Said at the next tick, and again until the log says so.
            self.legs[leg].tell_formatted_at = Duration::ZERO;
        }
        self.events.push_back(KeeperEvent::LegsChanged);
        self.grow(leg, out);
    }

    fn format(&mut self, leg: usize, map_since: Option<u64>, out: &mut Out) {
        let state = &mut self.legs[leg];
        let regions = state.spec.size_bytes.div_ceil(state.spec.region_bytes);
        state.condition = Condition::Formatting;
        state.size = state.spec.size_bytes;
        state.dirty = Bits::new(regions);
        state.written = Bits::new(regions);
        state.header.size_bytes = state.spec.size_bytes;
        state.header.pages = regions.div_ceil(REGIONS_PER_PAGE);
        state.header.generation = 2;
        state.header.map_since = map_since;
        state.header.consistent = map_since.is_some();
        state.header.nonce = 0;
        state.header.agreed_nonce = 0;
        state.header.joining = None;
        state.header.record = Vec::new();
        state.header.token = self.held;
        state.pages = (0..state.header.pages).map(|_| (1, Writer::default())).collect();
        self.format_pages(leg, 0, out);
    }

    /// Writes both slots of every page, the header last: a leg with a header is wholly formatted.
    fn format_pages(&mut self, leg: usize, first: u64, out: &mut Out) {
        let state = &self.legs[leg];
        let pages = state.pages.len() as u64;
        if first >= pages {
            return self.format_header(leg, out);
        }
        let count = (pages - first).min((METADATA_CHUNK_BYTES / PAGE_BYTES / 2) as u64);
        let mut chunk = Buffer::zeroed(count as usize * 2 * PAGE_BYTES);
        for (page, slots) in (first..first + count).zip(chunk.chunks_exact_mut(2 * PAGE_BYTES)) {
            for (slot, bytes) in slots.chunks_exact_mut(PAGE_BYTES).enumerate() {
                bytes.copy_from_slice(&map::encode_page(
                    state.id,
                    page,
                    slot as u64,
                    &state.dirty,
                    &state.written,
                ));
            }
        }
        let purpose = DevicePurpose::Format { leg, next: first + count };
        self.device(
            leg,
            map::page_offset(first, 0),
            DeviceKind::Write { data: Arc::new(chunk) },
            purpose,
            out,
        );
    }

    fn format_header(&mut self, leg: usize, out: &mut Out) {
        let mut older = self.legs[leg].header.clone();
        older.generation = 1;
        let mut area = Buffer::zeroed(HEADER_AREA_BYTES as usize);
        for header in [&older, &self.legs[leg].header] {
            area[header.offset() as usize..][..crate::header::HEADER_BYTES]
                .copy_from_slice(&header.encode());
        }
        let purpose = DevicePurpose::Format { leg, next: u64::MAX };
        self.device(leg, 0, DeviceKind::Write { data: Arc::new(area) }, purpose, out);
    }

    /// Follows a volume that grew: new pages first, then the header that counts them.
    fn grow(&mut self, index: usize, out: &mut Out) {
        let leg = &mut self.legs[index];
        let size = leg.spec.size_bytes;
        if !matches!(leg.condition, Condition::Ready)
            || leg.growing
            || leg.size >= size
            || size > voute_schemas::place::VOLUME_BYTES_MAX
        {
            return;
        }
        leg.growing = true;
        let regions = size.div_ceil(leg.spec.region_bytes);
        leg.dirty.grow(regions);
        leg.written.grow(regions);
        let old = leg.pages.len() as u64;
        let pages = regions.div_ceil(REGIONS_PER_PAGE);
        leg.pages.extend((old..pages).map(|_| (0, Writer::default())));
        leg.new_pages = pages.saturating_sub(old);
        if leg.new_pages == 0 {
            return self.count_pages(index, out);
        }
        // A page that was never written counts as all dirty and all written, and would show what
        // lay on the device before: the header counts the new ones only when all are there.
        for page in old..pages {
            self.write_page(index, page, Some(Waiter::NewPage), out);
        }
    }

    fn count_pages(&mut self, index: usize, out: &mut Out) {
        let leg = &mut self.legs[index];
        let size = leg.dirty.len().saturating_mul(leg.spec.region_bytes).min(leg.spec.size_bytes);
        leg.header.pages = leg.pages.len() as u64;
        leg.header.size_bytes = size;
        self.write_header(index, Waiter::Grown(size), out);
    }

    // --- metadata writes

    fn write_header(&mut self, leg: usize, waiter: Waiter, out: &mut Out) {
        let writer = &mut self.legs[leg].header_writer;
        writer.next.push(waiter);
        writer.again = true;
        self.start_header(leg, out);
    }

    fn start_header(&mut self, index: usize, out: &mut Out) {
        let leg = &mut self.legs[index];
        if leg.header_writer.writing || !leg.header_writer.again {
            return;
        }
        leg.header_writer.begin();
        leg.header.generation += 1;
        let bytes = Buffer::copy_of(&leg.header.encode());
        let offset = leg.header.offset();
        self.device(
            index,
            offset,
            DeviceKind::Write { data: Arc::new(bytes) },
            DevicePurpose::Header { leg: index },
            out,
        );
    }

    fn write_page(&mut self, leg: usize, page: u64, waiter: Option<Waiter>, out: &mut Out) {
        let writer = &mut self.legs[leg].pages[page as usize].1;
        writer.next.extend(waiter);
        writer.again = true;
        self.start_page(leg, page, out);
    }

    fn start_page(&mut self, index: usize, page: u64, out: &mut Out) {
        let leg = &mut self.legs[index];
        let entry = &mut leg.pages[page as usize];
        if entry.1.writing || !entry.1.again {
            return;
        }
        entry.1.begin();
        entry.0 += 1;
        let generation = entry.0;
        leg.not_durable
            .iter_mut()
            .filter(|(region, _)| *region / REGIONS_PER_PAGE == page)
            .for_each(|(_, under_way)| *under_way = true);
        let bytes =
            Buffer::copy_of(&map::encode_page(leg.id, page, generation, &leg.dirty, &leg.written));
        let purpose = DevicePurpose::Page { leg: index, page };
        self.device(
            index,
            map::page_offset(page, generation % 2),
            DeviceKind::Write { data: Arc::new(bytes) },
            purpose,
            out,
        );
    }

    fn wake(&mut self, leg: usize, waiters: Vec<Waiter>, fault: Option<LegFault>, out: &mut Out) {
        for waiter in waiters {
            match waiter {
                Waiter::Client(client) => {
                    self.events.push_back(KeeperEvent::Done(client, fault.map_or(Ok(None), Err)))
                }
                Waiter::Region(region) => self.region_prepared(leg, region, fault, out),
                Waiter::Barring(token) => self.header_barred(token, fault, out),
                Waiter::Joint(key) => self.joint_written(key, fault),
                Waiter::NewPage => {
                    let left = &mut self.legs[leg].new_pages;
                    *left = left.saturating_sub(1);
                    if fault.is_none() && *left == 0 && self.legs[leg].growing {
                        self.count_pages(leg, out);
                    }
                }
                Waiter::Grown(size) => {
                    self.legs[leg].growing = false;
                    if fault.is_none() {
                        self.legs[leg].size = size;
                    }
                    self.grow(leg, out);
                }
            }
        }
    }

    // --- tokens

    /// Takes a token if it is higher than what is held; answers by [`KeeperEvent::Barred`].
    pub(crate) fn bar(&mut self, token: Token, by: NodeId, client: Client, out: &mut Out) {
        if let Err(fault) = self.usable() {
            return self.events.push_back(KeeperEvent::Barred(client, Err(fault)));
        }
        let highest = self.barring.as_ref().map_or(self.held, |barring| barring.token);
        if token == self.held
            && self.held_by == Some(by)
            && self.barring.is_none()
            && let Some(bar) = self.bar
        {
            return self.events.push_back(KeeperEvent::Barred(client, Ok(bar)));
        }
        if !matches!(token.partial_cmp(&highest), Some(std::cmp::Ordering::Greater)) {
            return self.events.push_back(KeeperEvent::Barred(client, Err(LegFault::Stale)));
        }
        if let Some(earlier) = self.barring.take() {
            self.events.push_back(KeeperEvent::Barred(earlier.client, Err(LegFault::Stale)));
        }
        self.bar = None;
        self.held_by = Some(by);
        self.barring = Some(Barring { token, client, headers: None });
        self.drained(out);
    }

    /// Refuses every token that is held, until a higher one comes. Nothing needs to be written: to
    /// refuse more is always safe.
    pub(crate) fn revoke(&mut self) {
        self.bar = None;
    }

    fn drained(&mut self, out: &mut Out) {
        let Some(barring) = &mut self.barring else { return };
        if self.operations.len() > 0 || barring.headers.is_some() {
            return;
        }
        barring.headers = Some(self.legs.len());
        let token = barring.token;
        for leg in 0..self.legs.len() {
            self.legs[leg].header.token = token;
            self.write_header(leg, Waiter::Barring(token), out);
        }
    }

    fn header_barred(&mut self, token: Token, fault: Option<LegFault>, out: &mut Out) {
        // A later token may have replaced the one that this header was written for.
        let Some(barring) = self.barring.as_mut().filter(|barring| barring.token == token) else {
            return;
        };
        let Some(left) = &mut barring.headers else { return };
        if let Some(fault) = fault {
            let client = barring.client;
            self.barring = None;
            return self.events.push_back(KeeperEvent::Barred(client, Err(fault)));
        }
        *left -= 1;
        if *left == 0 {
            let client = barring.client;
            self.held = barring.token;
            self.barring = None;
            let bar = out.next_bar();
            self.bar = Some(bar);
            self.events.push_back(KeeperEvent::Barred(client, Ok(bar)));
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

    // --- maps

    /// Dirty regions of a volume's leg, ascending, from one on.
    pub(crate) fn dirty(&self, volume: u32, from: u64) -> impl Iterator<Item = u64> + '_ {
        let leg = self.position(volume).map(|index| &self.legs[index]);
        leg.into_iter().flat_map(|leg| leg.dirty.ones()).filter(move |region| *region >= from)
    }

    pub(crate) fn is_written(&self, volume: u32, region: u64) -> bool {
        self.position(volume).is_some_and(|index| {
            let leg = &self.legs[index];
            leg.written.get(region) || leg.preparing.contains_key(&region)
        })
    }

    /// Sets dirty bits; one [`KeeperEvent::Done`] per page until whose write the caller must wait.
    /// Returns how many: none if all bits are on disk already.
    pub(crate) fn mark_dirty(
        &mut self,
        volume: u32,
        regions: std::ops::RangeInclusive<u64>,
        client: Client,
        out: &mut Out,
    ) -> u32 {
        let Some(index) = self.position(volume) else { return 0 };
        let leg = &mut self.legs[index];
        let mut waits: BTreeMap<u64, bool> = BTreeMap::new();
        let count = leg.dirty.len();
        for region in regions.filter(|region| *region < count) {
            let needs_another_write = if leg.dirty.set(region, true) {
                leg.not_durable.insert(region, false);
                Some(true)
            } else {
                leg.not_durable.get(&region).map(|under_way| !under_way)
            };
            if let Some(another) = needs_another_write {
                *waits.entry(region / REGIONS_PER_PAGE).or_default() |= another;
            }
        }
        for (page, another) in &waits {
            if *another {
                self.write_page(index, *page, Some(Waiter::Client(client)), out);
            } else {
                self.legs[index].pages[*page as usize].1.under_way.push(Waiter::Client(client));
            }
        }
        u32::try_from(waits.len()).expect("pages are bounded by the metadata area")
    }

    /// Clears dirty bits; reaches the disk some time.
    pub(crate) fn clear_dirty(&mut self, volume: u32, regions: &[u64], out: &mut Out) {
        let Some(index) = self.position(volume) else { return };
        let mut pages: Vec<u64> = Vec::new();
        for region in regions {
            if *region < self.legs[index].dirty.len()
                && self.legs[index].forget_dirty(*region)
                && !pages.contains(&(region / REGIONS_PER_PAGE))
            {
                pages.push(region / REGIONS_PER_PAGE);
            }
        }
        for page in pages {
            self.write_page(index, page, None, out);
        }
    }

    /// Writes a state into the headers of all legs; `keep_dirty` names the regions (of a volume)
    /// whose bits outlive the new begin of the map. One [`KeeperEvent::Done`].
    pub(crate) fn mark(
        &mut self,
        bar: Bar,
        mark: Mark,
        keep_dirty: &dyn Fn(u32, u64) -> bool,
        client: Client,
        out: &mut Out,
    ) {
        if self.bar != Some(bar) {
            return self.events.push_back(KeeperEvent::Done(client, Err(LegFault::Stale)));
        }
        let since = self.held.epoch.sequence.0;
        for index in 0..self.legs.len() {
            let leg = &mut self.legs[index];
            match mark {
                Mark::Inconsistent => leg.header.consistent = false,
                Mark::Consistent => leg.header.consistent = true,
                Mark::Copied { nonce, agreed } => {
                    leg.header.consistent = true;
                    leg.header.nonce = nonce;
                    leg.header.agreed_nonce = agreed;
                }
                Mark::InSync { nonce, agreed } => {
                    leg.header.consistent = true;
                    leg.header.joining = None;
                    leg.header.map_since = Some(since);
                    leg.header.nonce = nonce;
                    leg.header.agreed_nonce = agreed;
                    let number = leg.spec.number;
                    let clean: Vec<u64> =
                        leg.dirty.ones().filter(|region| !keep_dirty(number, *region)).collect();
                    self.clear_dirty(number, &clean, out);
                }
            }
        }
        self.write_headers(client, out);
    }

    /// Notes on disk that the log was asked to take the peer in. One [`KeeperEvent::Done`].
    pub(crate) fn mark_joining(&mut self, epoch: Epoch, client: Client, out: &mut Out) {
        for leg in &mut self.legs {
            leg.header.joining = Some(epoch.sequence.0);
        }
        self.write_headers(client, out);
    }

    /// Writes a volume's record into its leg's header, unless a later one of the same bar is there.
    /// One [`KeeperEvent::Done`].
    pub(crate) fn put_record(
        &mut self,
        volume: u32,
        bar: Bar,
        number: u64,
        record: Vec<u8>,
        client: Client,
        out: &mut Out,
    ) {
        let fault = match self.position(volume) {
            None => LegFault::Unknown,
            Some(_) if self.bar != Some(bar) => LegFault::Stale,
            Some(_) if record.len() > RECORD_BYTES_MAX => LegFault::Invalid,
            Some(index) => match self.usable() {
                Err(fault) => fault,
                Ok(()) => {
                    let leg = &mut self.legs[index];
                    let is_later = |last: (Bar, u64)| last.0 != bar || last.1 < number;
                    if leg.last_put.is_none_or(is_later) {
                        leg.last_put = Some((bar, number));
                        leg.header.record = record;
                    }
                    leg.record_is_live = true;
                    return self.write_header(index, Waiter::Client(client), out);
                }
            },
        };
        self.events.push_back(KeeperEvent::Done(client, Err(fault)));
    }

    pub(crate) fn record(&self, volume: u32) -> Vec<u8> {
        let leg = self.position(volume).map(|index| &self.legs[index]);
        leg.map(|leg| leg.header.record.clone()).unwrap_or_default()
    }

    /// Whether this process put the volume's record, or served by it.
    pub(crate) fn record_is_live(&self, volume: u32) -> bool {
        self.position(volume).is_some_and(|index| self.legs[index].record_is_live)
    }

    pub(crate) fn enliven_record(&mut self, volume: u32) {
        if let Some(index) = self.position(volume) {
            self.legs[index].record_is_live = true;
        }
    }

    fn write_headers(&mut self, client: Client, out: &mut Out) {
        let key = self.joints.insert(Joint { client, left: self.legs.len(), fault: None });
        for leg in 0..self.legs.len() {
            self.write_header(leg, Waiter::Joint(key), out);
        }
    }

    fn joint_written(&mut self, key: u64, fault: Option<LegFault>) {
        let Some(joint) = self.joints.get_mut(key) else { return };
        joint.left -= 1;
        joint.fault = joint.fault.or(fault);
        if joint.left == 0 {
            let joint = self.joints.remove(key).expect("looked up above");
            self.events
                .push_back(KeeperEvent::Done(joint.client, joint.fault.map_or(Ok(None), Err)));
        }
    }

    // --- reads and writes

    /// Starts a request; answers by [`KeeperEvent::Done`].
    pub(crate) fn start(
        &mut self,
        volume: u32,
        bar: Bar,
        kind: LegOperation,
        client: Client,
        out: &mut Out,
    ) {
        match self.admit(volume, bar, &kind) {
            Err(fault) => self.events.push_back(KeeperEvent::Done(client, Err(fault))),
            Ok(leg) => {
                let key = self.operations.insert(Operation {
                    client,
                    leg,
                    kind,
                    waiting: 0,
                    fault: None,
                    dispatched: false,
                });
                self.prepare(key, out);
            }
        }
    }

    fn admit(&self, volume: u32, bar: Bar, kind: &LegOperation) -> Result<usize, LegFault> {
        let index = self.position(volume).ok_or(LegFault::Unknown)?;
        self.usable()?;
        if self.bar != Some(bar) {
            return Err(LegFault::Stale);
        }
        let (offset, length) = kind.range();
        let end = offset.checked_add(length).ok_or(LegFault::Invalid)?;
        let block = u64::from(self.legs[index].spec.block_bytes);
        if length == 0
            || offset % block != 0
            || length % block != 0
            || self.operations.len() >= OPERATIONS_MAX
        {
            return Err(LegFault::Invalid);
        }
        if end > self.legs[index].size {
            return Err(LegFault::NotYet);
        }
        Ok(index)
    }

    /// A region is zeroed and noted as written before the first write to a part of it.
    fn prepare(&mut self, key: u64, out: &mut Out) {
        let Some(operation) = self.operations.get(key) else { return };
        let index = operation.leg;
        if let LegOperation::Write { offset, data } = &operation.kind {
            let region_bytes = self.legs[index].spec.region_bytes;
            let regions = offset / region_bytes..=(offset + data.len() as u64 - 1) / region_bytes;
            let mut waiting = 0;
            for region in regions {
                if let Some(waiters) = self.legs[index].preparing.get_mut(&region) {
                    waiters.push(key);
                    waiting += 1;
                } else if !self.legs[index].written.get(region) {
                    self.legs[index].preparing.insert(region, vec![key]);
                    waiting += 1;
                    let begin = region * region_bytes;
                    let length = region_bytes
                        .min(self.legs[index].size.next_multiple_of(region_bytes) - begin);
                    let purpose = DevicePurpose::Prepare { leg: index, region };
                    self.device(
                        index,
                        LEG_METADATA_BYTES + begin,
                        DeviceKind::Zero { length, release: false },
                        purpose,
                        out,
                    );
                }
            }
            self.operations.get_mut(key).expect("looked up above").waiting = waiting;
        }
        self.dispatch(key, out);
    }

    fn region_zeroed(&mut self, leg: usize, region: u64, result: &DeviceResult, out: &mut Out) {
        if let Err(fault) = result {
            let fault = leg_fault(*fault);
            return self.region_prepared(leg, region, Some(fault), out);
        }
        self.legs[leg].written.set(region, true);
        self.write_page(leg, region / REGIONS_PER_PAGE, Some(Waiter::Region(region)), out);
    }

    fn region_prepared(&mut self, leg: usize, region: u64, fault: Option<LegFault>, out: &mut Out) {
        for key in self.legs[leg].preparing.remove(&region).unwrap_or_default() {
            if let Some(operation) = self.operations.get_mut(key) {
                operation.waiting -= 1;
                operation.fault = operation.fault.or(fault);
            }
            self.dispatch(key, out);
        }
        if fault.is_some() {
            self.legs[leg].written.set(region, false);
        }
    }

    fn dispatch(&mut self, key: u64, out: &mut Out) {
        let Some(operation) = self.operations.get_mut(key) else { return };
        if operation.waiting > 0 || operation.dispatched {
            return;
        }
        if operation.fault.is_some() {
            return self.finish(key, None, out);
        }
        operation.dispatched = true;
        let index = operation.leg;
        let purpose = || DevicePurpose::Operation { key };
        match &operation.kind {
            LegOperation::Write { offset, data } => {
                let (offset, data) = (*offset, data.clone());
                operation.waiting = 1;
                self.device(
                    index,
                    LEG_METADATA_BYTES + offset,
                    DeviceKind::Write { data },
                    purpose(),
                    out,
                );
            }
            LegOperation::Read { offset, length } => {
                let (offset, length) = (*offset, *length);
                if self.runs(index, offset, u64::from(length)).iter().any(|run| run.2) {
                    self.operations.get_mut(key).expect("looked up above").waiting = 1;
                    self.device(
                        index,
                        LEG_METADATA_BYTES + offset,
                        DeviceKind::Read { length },
                        purpose(),
                        out,
                    );
                } else {
                    self.finish(key, Some(Buffer::zeroed(length as usize)), out);
                }
            }
            LegOperation::Zero { offset, length, release } => {
                let (offset, length, release) = (*offset, *length, *release);
                let runs: Vec<_> =
                    self.runs(index, offset, length).into_iter().filter(|run| run.2).collect();
                self.operations.get_mut(key).expect("looked up above").waiting =
                    u32::try_from(runs.len()).expect("runs are bounded by the regions");
                if runs.is_empty() {
                    return self.finish(key, None, out);
                }
                for (begin, length, _) in runs {
                    self.device(
                        index,
                        LEG_METADATA_BYTES + begin,
                        DeviceKind::Zero { length, release },
                        purpose(),
                        out,
                    );
                }
            }
        }
    }

    /// A range cut where regions begin to be, or to be no longer, written: (offset, length, written).
    fn runs(&self, leg: usize, offset: u64, length: u64) -> Vec<(u64, u64, bool)> {
        let leg = &self.legs[leg];
        let mut runs: Vec<(u64, u64, bool)> = Vec::new();
        let mut at = offset;
        while at < offset + length {
            let region = at / leg.spec.region_bytes;
            let end = ((region + 1) * leg.spec.region_bytes).min(offset + length);
            let written = leg.written.get(region);
            match runs.last_mut() {
                Some(last) if last.2 == written => last.1 += end - at,
                _ => runs.push((at, end - at, written)),
            }
            at = end;
        }
        runs
    }

    fn operation_done(&mut self, key: u64, result: DeviceResult, out: &mut Out) {
        let Some(operation) = self.operations.get_mut(key) else { return };
        operation.waiting -= 1;
        let buffer = match result {
            Ok(buffer) => buffer,
            Err(fault) => {
                operation.fault = operation.fault.or(Some(leg_fault(fault)));
                None
            }
        };
        if operation.waiting > 0 {
            return;
        }
        let buffer = match (&operation.kind, buffer) {
            (LegOperation::Read { offset, length }, Some(mut buffer)) => {
                let (index, offset, length) = (operation.leg, *offset, u64::from(*length));
                for (begin, length, _) in
                    self.runs(index, offset, length).into_iter().filter(|run| !run.2)
                {
                    let from = (begin - offset) as usize;
                    buffer[from..from + length as usize].fill(0);
                }
                Some(buffer)
            }
            (_, buffer) => buffer,
        };
        self.finish(key, buffer, out);
    }

    fn finish(&mut self, key: u64, buffer: Option<Buffer>, out: &mut Out) {
        let Some(operation) = self.operations.remove(key) else { return };
        self.events.push_back(KeeperEvent::Done(
            operation.client,
            operation.fault.map_or(Ok(buffer), Err),
        ));
        self.drained(out);
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
                Ok(Some(bytes)) => self.pages_loaded(leg, first, &bytes, out),
                // Unreadable pages count as all dirty and all written.
                Err(DeviceFault::Medium) => {
                    let count = (self.legs[leg].pages.len() as u64 - first)
                        .min((METADATA_CHUNK_BYTES / PAGE_BYTES / 2) as u64);
                    self.pages_loaded(leg, first, &vec![0; count as usize * 2 * PAGE_BYTES], out);
                }
                _ => self.leg_failed(leg, Some(now + RELOAD_AFTER), "its maps cannot be read"),
            },
            DevicePurpose::Format { leg, next } => match (result, next) {
                (Err(_), _) => {
                    self.leg_failed(leg, Some(now + RELOAD_AFTER), "it cannot be formatted")
                }
                (Ok(_), u64::MAX) => self.loaded(leg, out),
                (Ok(_), next) => self.format_pages(leg, next, out),
            },
            DevicePurpose::Header { leg } => {
                let fault = result.err().map(leg_fault);
                self.note_failure(leg, fault, now);
                let waiters = self.legs[leg].header_writer.end();
                self.wake(leg, waiters, fault, out);
                self.start_header(leg, out);
            }
            DevicePurpose::Page { leg, page } => {
                let fault = result.err().map(leg_fault);
                self.note_failure(leg, fault, now);
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
            DevicePurpose::Operation { key } => self.operation_done(key, result, out),
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
}

impl Leg {
    fn forget_dirty(&mut self, region: u64) -> bool {
        self.not_durable.remove(&region);
        self.dirty.set(region, false)
    }
}

impl Writer {
    fn begin(&mut self) {
        self.writing = true;
        self.again = false;
        self.under_way = std::mem::take(&mut self.next);
    }

    fn end(&mut self) -> Vec<Waiter> {
        self.writing = false;
        std::mem::take(&mut self.under_way)
    }
}

impl LegOperation {
    fn range(&self) -> (u64, u64) {
        match self {
            LegOperation::Read { offset, length } => (*offset, u64::from(*length)),
            LegOperation::Write { offset, data } => (*offset, data.len() as u64),
            LegOperation::Zero { offset, length, .. } => (*offset, *length),
        }
    }
}

fn leg_fault(fault: DeviceFault) -> LegFault {
    match fault {
        DeviceFault::Medium => LegFault::Medium,
        DeviceFault::Failed | DeviceFault::NoSpace => LegFault::Failed,
    }
}
