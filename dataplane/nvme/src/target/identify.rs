//! Identify data structures (NVMe Base 2.0 §5.17, NVM Command Set 1.0 §4.1.5).

use super::TargetConfig;
use super::admin::VERSION;
use super::controller::ControllerKind;
use super::events::EVENT_REQUEST_LIMIT;
use super::features::reportable;
use super::reservation;
use crate::little_endian::{put, put_text};
use crate::{
    ANA_GROUP_MAX, ANA_TRANSITION_SECONDS_MAX, Association, HOST_TRANSFER_MAX, HostView,
    NAMESPACE_ID_MAX, NAMESPACES_PER_HOST_MAX, NamespaceView, SUBMISSION_ENTRY_LENGTH, Status,
    SubmissionEntry,
};

const LENGTH: usize = 4096;
/// MDTS counts in powers of two of the smallest page, 4 KiB.
const TRANSFER_SIZE_EXPONENT: u8 = (HOST_TRANSFER_MAX / 4096).trailing_zeros() as u8;
/// Deallocation and preferred writes are in pieces of this, bytes.
const GRANULARITY: u32 = 4096;
const NVM_COMMAND_SET: u8 = 0;

/// Everything that Identify reports about.
pub(super) struct Identity<'a> {
    pub(super) config: &'a TargetConfig,
    pub(super) kind: ControllerKind,
    pub(super) association: &'a Association,
    pub(super) view: &'a HostView,
    pub(super) serial: &'a str,
    /// Identifiers of the subsystem's controllers on this node, ascending.
    pub(super) controllers: &'a dyn Fn() -> Vec<u16>,
}

impl Identity<'_> {
    pub(super) fn answer(&self, entry: &SubmissionEntry) -> Result<Vec<u8>, Status> {
        let structure = entry.dword(10) as u8;
        let command_set = (entry.dword(11) >> 24) as u8;
        let nsid = entry.namespace();
        if structure == 0x01 {
            return Ok(self.controller());
        }
        if self.kind == ControllerKind::Discovery {
            return Err(Status::invalid_field());
        }
        if matches!(structure, 0x05..=0x07) && command_set != NVM_COMMAND_SET {
            return Err(Status::invalid_command_set());
        }
        match structure {
            0x00 | 0x11 => self.of_namespace(nsid, namespace),
            0x02 | 0x07 | 0x10 => self.namespace_list(nsid),
            0x03 => self.active(nsid).map(descriptors),
            0x05 => self.of_namespace(nsid, |_| vec![0; LENGTH]),
            0x06 => Ok(nvm_controller()),
            0x08 => self.of_namespace(nsid, independent_namespace),
            // Which host sees a namespace is no other host's business: what is attached to one is told
            // of the asking controller alone.
            0x12 => {
                self.active(nsid)?;
                Ok(controller_list(entry, &[self.association.controller]))
            }
            0x13 => Ok(controller_list(entry, &(self.controllers)())),
            0x1C => Ok(command_sets()),
            _ => Err(Status::invalid_field()),
        }
    }

    fn active(&self, nsid: u32) -> Result<&NamespaceView, Status> {
        self.view.namespace(nsid).ok_or(Status::invalid_namespace())
    }

    /// A valid but inactive identifier reads as zeroes.
    fn of_namespace(
        &self,
        nsid: u32,
        fill: fn(&NamespaceView) -> Vec<u8>,
    ) -> Result<Vec<u8>, Status> {
        match self.view.namespace(nsid) {
            Some(namespace) => Ok(fill(namespace)),
            None if (1..=NAMESPACE_ID_MAX).contains(&nsid) => Ok(vec![0; LENGTH]),
            None => Err(Status::invalid_namespace()),
        }
    }

    /// Up to 1024 active identifiers above `after`, ascending.
    fn namespace_list(&self, after: u32) -> Result<Vec<u8>, Status> {
        if after >= 0xFFFF_FFFE {
            return Err(Status::invalid_namespace());
        }
        let ids = self
            .view
            .namespaces()
            .iter()
            .map(|namespace| namespace.nsid)
            .filter(|nsid| *nsid > after);
        let mut list: Vec<u8> = ids.take(LENGTH / 4).flat_map(u32::to_le_bytes).collect();
        list.resize(LENGTH, 0);
        Ok(list)
    }

    fn controller(&self) -> Vec<u8> {
        let mut data = vec![0; LENGTH];
        let limits = &self.config.limits;
        put_text(&mut data, 4, 20, self.serial, b' ');
        put_text(&mut data, 24, 40, &self.config.model, b' ');
        put_text(&mut data, 64, 8, &self.config.firmware, b' ');
        data[77] = TRANSFER_SIZE_EXPONENT;
        put(&mut data, 78, &self.association.controller.to_le_bytes());
        put(&mut data, 80, &VERSION.to_le_bytes());
        put(&mut data, 92, &reportable(self.kind).to_le_bytes());
        let host_id_is_128_bits = 1u32;
        put(&mut data, 96, &host_id_is_128_bits.to_le_bytes());
        data[258] = 3; // ACL: four aborts at once
        data[259] = EVENT_REQUEST_LIMIT;
        data[261] = 1 << 1 | 1 << 2; // LPA: effects log, extended offsets and lengths
        put(&mut data, 320, &1u16.to_le_bytes()); // KAS: 100 ms
        put(&mut data, 514, &limits.queue_depth_max.to_le_bytes());
        let sgl_supported = 1u32 | 1 << 20 | 1 << 21; // offsets in capsules, transport data blocks
        put(&mut data, 536, &sgl_supported.to_le_bytes());
        put_text(&mut data, 768, 256, &self.association.subsystem, 0);
        let capsule = (SUBMISSION_ENTRY_LENGTH as u32 + limits.in_capsule_max) / 16;
        put(&mut data, 1792, &capsule.to_le_bytes());
        put(&mut data, 1796, &1u32.to_le_bytes()); // IORCSZ: 16 bytes
        data[1803] = 1; // MSDBD: one descriptor
        match self.kind {
            ControllerKind::Io => self.io_controller(&mut data),
            ControllerKind::Discovery => {
                data[111] = 2; // CNTRLTYPE: discovery
                data[1806] = 1; // DCTYPE: direct discovery controller
            }
        }
        data
    }

    fn io_controller(&self, data: &mut [u8]) {
        data[76] = 1 << 0 | 1 << 1 | 1 << 3; // CMIC: many ports, many controllers, ANA
        data[111] = 1; // CNTRLTYPE: I/O
        data[260] = 1 | 1 << 1; // FRMW: one firmware slot, which is read-only
        data[1804] = 1; // OFCS: Disconnect
        put(data, 266, &343u16.to_le_bytes()); // WCTEMP, kelvin: there is no sensor, the field is mandatory
        put(data, 268, &353u16.to_le_bytes()); // CCTEMP
        data[342] = ANA_TRANSITION_SECONDS_MAX;
        data[343] = 0x1F; // ANACAP: every state may be reported
        put(data, 344, &ANA_GROUP_MAX.to_le_bytes());
        put(data, 348, &(NAMESPACES_PER_HOST_MAX as u32).to_le_bytes());
        data[512] = 0x66; // SQES: 64 bytes
        data[513] = 0x44; // CQES: 16 bytes
        let flush_is_per_namespace = 2 << 1;
        data[525] = u8::from(self.config.has_volatile_cache) | flush_is_per_namespace; // VWC
        put(data, 516, &NAMESPACE_ID_MAX.to_le_bytes());
        let optional_commands = 1u16 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 7; // compare, DSM, write zeroes, reservations, verify
        put(data, 520, &optional_commands.to_le_bytes());
        put(data, 522, &1u16.to_le_bytes()); // FUSES: compare and write
        let pair = self.config.limits.compare_and_write_blocks_max - 1;
        put(data, 532, &pair.to_le_bytes()); // ACWU
        put(data, 540, &(NAMESPACES_PER_HOST_MAX as u32).to_le_bytes());
    }
}

/// The NVM command set's own limits: DSM ranges per command, none on their lengths.
fn nvm_controller() -> Vec<u8> {
    let mut data = vec![0; LENGTH];
    data[3] = 0; // DMRL 0: 256 ranges, as the command's field allows
    data
}

/// Up to 2047 identifiers from CDW10's CNTID up, ascending, after their number.
fn controller_list(entry: &SubmissionEntry, controllers: &[u16]) -> Vec<u8> {
    let from = (entry.dword(10) >> 16) as u16;
    let mut data = vec![0; LENGTH];
    let listed = controllers.iter().filter(|id| **id >= from).take(LENGTH / 2 - 1);
    let mut count = 0u16;
    for id in listed {
        count += 1;
        put(&mut data, usize::from(count) * 2, &id.to_le_bytes());
    }
    put(&mut data, 0, &count.to_le_bytes());
    data
}

/// An EUI-64 made of the volume's UUID (FNV-1a), the same on every node, marked as locally
/// administered and not a group's.
fn eui64(namespace: &NamespaceView) -> [u8; 8] {
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let hash = namespace
        .uuid
        .iter()
        .fold(OFFSET, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(PRIME));
    let mut bytes = hash.to_be_bytes();
    bytes[0] = bytes[0] & !1 | 2;
    bytes
}

fn command_sets() -> Vec<u8> {
    let mut data = vec![0; LENGTH];
    data[0] = 1; // one combination: the NVM command set
    data
}

fn namespace(namespace: &NamespaceView) -> Vec<u8> {
    let mut data = vec![0; LENGTH];
    for offset in [0, 8, 16] {
        put(&mut data, offset, &namespace.blocks.to_le_bytes());
    }
    data[24] = 1 << 4; // NSFEAT: the granularities below are set
    data[30] = 1; // NMIC: shared between controllers
    data[31] = reservation::CAPABILITIES;
    data[33] = 1 | 1 << 3; // DLFEAT: deallocated blocks read zero, write zeroes may deallocate
    let granularity = (GRANULARITY / namespace.block_size - 1) as u16;
    for offset in [64, 66, 68, 70, 72] {
        put(&mut data, offset, &granularity.to_le_bytes());
    }
    put(&mut data, 92, &namespace.ana_group.to_le_bytes());
    data[99] = namespace.read_only.into();
    put(&mut data, 104, &namespace.nguid);
    put(&mut data, 120, &eui64(namespace));
    data[130] = namespace.block_size.trailing_zeros() as u8;
    data
}

fn independent_namespace(namespace: &NamespaceView) -> Vec<u8> {
    let mut data = vec![0; LENGTH];
    data[1] = 1; // NMIC: shared
    data[2] = reservation::CAPABILITIES;
    put(&mut data, 4, &namespace.ana_group.to_le_bytes());
    data[8] = namespace.read_only.into();
    data[14] = 1; // NSTAT: ready
    data
}

fn descriptors(namespace: &NamespaceView) -> Vec<u8> {
    let mut data = Vec::with_capacity(LENGTH);
    let mut descriptor = |kind: u8, value: &[u8]| {
        data.extend_from_slice(&[kind, value.len() as u8, 0, 0]);
        data.extend_from_slice(value);
    };
    descriptor(1, &eui64(namespace));
    descriptor(2, &namespace.nguid);
    descriptor(3, &namespace.uuid);
    descriptor(4, &[NVM_COMMAND_SET]);
    data.resize(LENGTH, 0);
    data
}
