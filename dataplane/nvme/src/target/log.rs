//! Log pages (NVMe Base 2.0 §5.16), the discovery log included.

use std::borrow::Cow;
use std::net::IpAddr;

use super::PortalId;
use super::admin::AdminState;
use super::controller::ControllerKind;
use super::events::ana_groups;
use super::features::supported_features;
use crate::little_endian::{put, put_text};
use crate::{
    DISCOVERY_NQN, Directory, HostView, PortalEntry, Status, SubmissionEntry, admin_opcode,
    io_opcode,
};

const RETURN_GROUPS_ONLY: u8 = 1;
const SUPPORTED_PAGES: u8 = 0x00;
const ERRORS: u8 = 0x01;
const HEALTH: u8 = 0x02;
const FIRMWARE: u8 = 0x03;
const CHANGED_NAMESPACES: u8 = 0x04;
const EFFECTS: u8 = 0x05;
const ANA: u8 = 0x0C;
const FEATURES: u8 = 0x12;
const DISCOVERY: u8 = 0x70;
pub(super) const RESERVATION: u8 = 0x80;

/// The parameters of Get Log Page.
pub(super) struct LogRequest {
    pub(super) page: u8,
    specific: u8,
    /// RAE: the event stays masked.
    pub(super) retain_event: bool,
    /// Bytes asked for.
    pub(super) length: usize,
    offset: u64,
    /// OT: the offset counts entries, which no page here allows.
    offset_is_index: bool,
    command_set: u8,
}

impl LogRequest {
    pub(super) fn read(entry: &SubmissionEntry) -> Self {
        let (dword10, dword11) = (entry.dword(10), entry.dword(11));
        let dwords = u64::from(dword10 >> 16) | u64::from(dword11 & 0xFFFF) << 16;
        LogRequest {
            page: dword10 as u8,
            specific: (dword10 >> 8) as u8 & 0x7F,
            retain_event: dword10 & 1 << 15 != 0,
            length: usize::try_from((dwords + 1) * 4).unwrap_or(usize::MAX),
            offset: entry.quadword(12),
            offset_is_index: entry.dword(14) & 1 << 23 != 0,
            command_set: (entry.dword(14) >> 24) as u8,
        }
    }

    /// The part of `page` that was asked for; what lies past its end reads as zero. A page of fixed
    /// length cannot be read from beyond its end; hosts read the others to the longest they can be.
    pub(super) fn cut(&self, page: &[u8]) -> Result<Vec<u8>, Status> {
        let offset = usize::try_from(self.offset).map_err(|_| Status::invalid_field())?;
        if !offset.is_multiple_of(4) || self.offset_is_index {
            return Err(Status::invalid_field());
        }
        let rest = match (page.get(offset..), self.page) {
            (Some(rest), _) => rest,
            (None, ANA | DISCOVERY) => &[],
            (None, _) => return Err(Status::invalid_field()),
        };
        let mut cut = rest[..rest.len().min(self.length)].to_vec();
        cut.resize(self.length, 0);
        Ok(cut)
    }
}

/// A whole log page.
pub(super) fn page<'a>(
    request: &LogRequest,
    admin: &'a AdminState,
    view: &HostView,
    firmware: &str,
) -> Result<Cow<'a, [u8]>, Status> {
    let page = match (admin.kind, request.page) {
        (ControllerKind::Discovery, DISCOVERY) => return Ok(Cow::Borrowed(&admin.discovery.page)),
        (kind, SUPPORTED_PAGES) => supported_pages(kind),
        (ControllerKind::Io, ERRORS) => vec![0; 64],
        (ControllerKind::Io, HEALTH) => health(),
        (ControllerKind::Io, FIRMWARE) => firmware_slots(firmware),
        (ControllerKind::Io, CHANGED_NAMESPACES) => changed_namespaces(admin),
        (ControllerKind::Io, EFFECTS) => effects(request.command_set),
        (ControllerKind::Io, ANA) => ana(admin, view, request.specific & RETURN_GROUPS_ONLY != 0),
        (ControllerKind::Io, FEATURES) => feature_effects(),
        (ControllerKind::Io, RESERVATION) => admin.notices.page(),
        (ControllerKind::Io | ControllerKind::Discovery, _) => {
            return Err(Status::invalid_log_page());
        }
    };
    Ok(Cow::Owned(page))
}

fn supported_pages(kind: ControllerKind) -> Vec<u8> {
    let pages: &[u8] = match kind {
        ControllerKind::Io => &[
            SUPPORTED_PAGES,
            ERRORS,
            HEALTH,
            FIRMWARE,
            CHANGED_NAMESPACES,
            EFFECTS,
            ANA,
            FEATURES,
            RESERVATION,
        ],
        ControllerKind::Discovery => &[SUPPORTED_PAGES, DISCOVERY],
    };
    let mut data = vec![0; 1024];
    pages.iter().for_each(|page| data[usize::from(*page) * 4] = 1);
    data
}

/// There is no sensor, wear or media behind a namespace: an unremarkable temperature, full spare.
fn health() -> Vec<u8> {
    let mut data = vec![0; 512];
    put(&mut data, 1, &300u16.to_le_bytes());
    data[3] = 100;
    data[4] = 10;
    data
}

fn firmware_slots(revision: &str) -> Vec<u8> {
    let mut data = vec![0; 512];
    data[0] = 1;
    put_text(&mut data, 8, 8, revision, b' ');
    data
}

fn changed_namespaces(admin: &AdminState) -> Vec<u8> {
    let mut list: Vec<u8> = match admin.events.changed_namespaces() {
        Some(ids) => ids.flat_map(u32::to_le_bytes).collect(),
        None => u32::MAX.to_le_bytes().to_vec(),
    };
    list.resize(4096, 0);
    list
}

/// Of other command sets than NVM's there are no I/O commands; nvme-cli asks all the same.
fn effects(command_set: u8) -> Vec<u8> {
    const SUPPORTED: u32 = 1;
    const CHANGES_CONTENT: u32 = 1 << 1;
    let mut data = vec![0; 4096];
    let admin = [
        admin_opcode::GET_LOG_PAGE,
        admin_opcode::IDENTIFY,
        admin_opcode::ABORT,
        admin_opcode::SET_FEATURES,
        admin_opcode::GET_FEATURES,
        admin_opcode::ASYNC_EVENT_REQUEST,
        admin_opcode::KEEP_ALIVE,
    ];
    let reading = [io_opcode::FLUSH, io_opcode::READ, io_opcode::COMPARE, io_opcode::VERIFY];
    let writing = [io_opcode::WRITE, io_opcode::WRITE_ZEROES, io_opcode::DATASET_MANAGEMENT];
    let reserving = [
        io_opcode::RESERVATION_REGISTER,
        io_opcode::RESERVATION_REPORT,
        io_opcode::RESERVATION_ACQUIRE,
        io_opcode::RESERVATION_RELEASE,
    ];
    let mut mark = |base: usize, opcode: u8, effect: u32| {
        put(&mut data, base + usize::from(opcode) * 4, &effect.to_le_bytes());
    };
    admin.into_iter().for_each(|opcode| mark(0, opcode, SUPPORTED));
    if command_set != 0 {
        return data;
    }
    reading.into_iter().for_each(|opcode| mark(1024, opcode, SUPPORTED));
    reserving.into_iter().for_each(|opcode| mark(1024, opcode, SUPPORTED));
    writing.into_iter().for_each(|opcode| mark(1024, opcode, SUPPORTED | CHANGES_CONTENT));
    data
}

/// Which features there are (FSUPP), and whether each is the controller's or a namespace's.
fn feature_effects() -> Vec<u8> {
    const SUPPORTED: u32 = 1;
    const OF_CONTROLLER: u32 = 1 << 21;
    const OF_NAMESPACE: u32 = 1 << 20;
    let mut data = vec![0; 1024];
    for (feature, is_of_namespace) in supported_features() {
        let scope = if is_of_namespace { OF_NAMESPACE } else { OF_CONTROLLER };
        put(&mut data, usize::from(feature) * 4, &(SUPPORTED | scope).to_le_bytes());
    }
    data
}

/// Groups ascending, namespaces within them ascending: Linux walks both in order.
fn ana(admin: &AdminState, view: &HostView, groups_only: bool) -> Vec<u8> {
    let groups = ana_groups(view);
    let mut data = vec![0; 16];
    put(&mut data, 0, &admin.events.ana_changes().to_le_bytes());
    put(&mut data, 8, &(groups.len() as u16).to_le_bytes());
    for (group, (state, namespaces)) in groups {
        let listed: &[u32] = if groups_only { &[] } else { &namespaces };
        let mut descriptor = [0; 32];
        put(&mut descriptor, 0, &group.to_le_bytes());
        put(&mut descriptor, 4, &(listed.len() as u32).to_le_bytes());
        put(&mut descriptor, 8, &admin.events.group_changes(group).to_le_bytes());
        descriptor[16] = state.code();
        data.extend_from_slice(&descriptor);
        data.extend(listed.iter().copied().flat_map(u32::to_le_bytes));
    }
    data
}

/// What one host finds by discovery through one portal.
#[derive(Default)]
pub(super) struct DiscoveryLog {
    /// The header, whose GENCTR is the publication at which this host's records last changed, and
    /// the records. Kept whole, since hosts read it in small pieces.
    page: Vec<u8>,
}

const RECORD_LENGTH: usize = 1024;

#[derive(Clone, Copy)]
enum RecordKind {
    Subsystem,
    /// The discovery subsystem that is being asked.
    Current,
}

impl DiscoveryLog {
    /// Takes a new directory; whether this host's records changed.
    pub(super) fn update(
        &mut self,
        directory: &Directory,
        host: &str,
        portal: PortalId,
        generation: u64,
    ) -> bool {
        let mut page = vec![0; RECORD_LENGTH];
        let current = directory.portals().iter().filter(|entry| entry.id == portal);
        current.for_each(|entry| page.extend(record(RecordKind::Current, DISCOVERY_NQN, entry)));
        for subsystem in directory.subsystems_of(host) {
            let portals = directory.portals().iter();
            portals.for_each(|entry| page.extend(record(RecordKind::Subsystem, subsystem, entry)));
        }
        let records = (page.len() / RECORD_LENGTH - 1) as u64;
        put(&mut page, 0, &generation.to_le_bytes());
        put(&mut page, 8, &records.to_le_bytes());
        let changed = page.get(RECORD_LENGTH..) != self.page.get(RECORD_LENGTH..);
        if changed {
            self.page = page;
        }
        changed
    }
}

/// One discovery log entry. TREQ stays "not specified": Debian 12's nvme-cli fails on anything else
/// with the kernel that it ships beside.
fn record(kind: RecordKind, subsystem: &str, portal: &PortalEntry) -> [u8; RECORD_LENGTH] {
    let mut data = [0; RECORD_LENGTH];
    data[0] = 3; // TRTYPE: TCP
    data[1] = match portal.address {
        IpAddr::V4(_) => 1,
        IpAddr::V6(_) => 2,
    };
    data[2] = match kind {
        RecordKind::Subsystem => 2,
        RecordKind::Current => 3,
    };
    put(&mut data, 4, &portal.id.to_le_bytes());
    put(&mut data, 6, &0xFFFFu16.to_le_bytes()); // CNTLID: dynamic
    put(&mut data, 8, &32u16.to_le_bytes()); // ASQSZ
    if let RecordKind::Current = kind {
        put(&mut data, 10, &(1u16 << 1).to_le_bytes()); // EFLAGS: persistent connections are supported
    }
    put_text(&mut data, 32, 32, &portal.port.to_string(), b' ');
    put_text(&mut data, 256, 256, subsystem, 0);
    put_text(&mut data, 512, 256, &portal.address.to_string(), b' ');
    data
}
