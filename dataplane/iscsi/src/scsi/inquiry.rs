//! INQUIRY: standard data (SPC-4 §6.6) and vital product data pages (SPC-4 §7.8, SBC-3 §6.6).

use super::cdb::Cdb;
use super::command::{Context, atomic_blocks};
use super::copy_results;
use super::sense::Sense;
use super::{
    COMPARE_AND_WRITE_BLOCKS_MAX, TRANSFER_BYTES_MAX, UNMAP_BLOCKS_MAX, UNMAP_DESCRIPTORS_MAX,
    UNMAP_GRANULARITY_BYTES, WRITE_SAME_BYTES_MAX,
};
use crate::target::LunView;

const VENDOR: &[u8; 8] = b"VOUTE   ";
const PRODUCT: &[u8; 16] = b"MIRRORED VOLUME ";
const REVISION: &[u8; 4] = b"0001";

/// Pages in ascending order (SPC-4 §7.8.14).
const PAGES: [u8; 8] = [0x00, 0x80, 0x83, 0x86, 0x8f, 0xb0, 0xb1, 0xb2];

/// Answers INQUIRY of a LUN that holds no unit: only its absence is told.
pub(super) fn answer_absent(cdb: &Cdb) -> Result<Vec<u8>, Sense> {
    match (cdb.bit(1, 0), cdb.0[2]) {
        (false, 0) => Ok(standard(None)),
        (true, 0) => Ok(vec![0x7f, 0, 0, 1, 0]),
        (_, _) => Err(Sense::INVALID_FIELD_IN_CDB),
    }
}

/// Answers INQUIRY of a volume.
pub(super) fn answer(cdb: &Cdb, context: &Context<'_>) -> Result<Vec<u8>, Sense> {
    let (is_vital, page, view) = (cdb.bit(1, 0), cdb.0[2], context.view);
    if !is_vital {
        return if page == 0 { Ok(standard(Some(view))) } else { Err(Sense::INVALID_FIELD_IN_CDB) };
    }
    let body = match page {
        0x00 => PAGES.to_vec(),
        0x80 => view.serial.as_bytes().to_vec(),
        0x83 => identification(view, context),
        0x86 => extended(),
        0x8f => copy_results::page(),
        0xb0 => block_limits(view),
        0xb1 => characteristics(),
        0xb2 => provisioning(view),
        _ => return Err(Sense::INVALID_FIELD_IN_CDB),
    };
    let mut data = vec![0, page];
    data.extend_from_slice(&(body.len() as u16).to_be_bytes());
    data.extend_from_slice(&body);
    Ok(data)
}

fn standard(view: Option<&LunView>) -> Vec<u8> {
    let mut data = vec![0; 96];
    // Peripheral qualifier 3 and type 1Fh: no unit can be here.
    data[0] = if view.is_some() { 0x00 } else { 0x7f };
    data[2] = 0x06;
    data[3] = 0x12;
    data[4] = 91;
    let has_groups = view.is_some_and(|view| !view.target_port_groups.is_empty());
    // TPGS: implicit and explicit asymmetric access; 3PC.
    data[5] = if has_groups { 0x30 } else { 0 } | if view.is_some() { 0x08 } else { 0 };
    data[6] = 0x10;
    data[7] = 0x02;
    data[8..16].copy_from_slice(VENDOR);
    data[16..32].copy_from_slice(PRODUCT);
    data[32..36].copy_from_slice(REVISION);
    // Version descriptors: SAM-5, iSCSI, SPC-4, SBC-3.
    for (at, version) in [0x00a0u16, 0x0960, 0x0460, 0x04c0].iter().enumerate() {
        data[58 + at * 2..60 + at * 2].copy_from_slice(&version.to_be_bytes());
    }
    data
}

/// Designators (SPC-4 §7.8.6): of the unit first, then of the port that asked, then of the target.
fn identification(view: &LunView, context: &Context<'_>) -> Vec<u8> {
    const BINARY: u8 = 1;
    const ASCII: u8 = 2;
    const UTF8: u8 = 3;
    // Protocol iSCSI; PIV; association.
    const OF_PORT: u8 = 0x80 | 1 << 4;
    const OF_TARGET: u8 = 0x80 | 2 << 4;
    let mut data = Vec::with_capacity(256);
    designator(&mut data, BINARY, 0x03, &view.naa);
    let mut vendor_serial = VENDOR.to_vec();
    vendor_serial.extend_from_slice(view.serial.as_bytes());
    designator(&mut data, ASCII, 0x01, &vendor_serial);
    // The unit's name as a string would only repeat the NAA designator, and with names of the usual
    // length the page would pass 255 bytes, of which some readers see the low byte alone.
    let port = context.portal;
    let [high, low] = port.relative_port.to_be_bytes();
    designator(&mut data, 0x50 | BINARY, OF_PORT | 0x04, &[0, 0, high, low]);
    let group = view
        .target_port_groups
        .iter()
        .find(|group| group.relative_ports.contains(&port.relative_port));
    if let Some(group) = group {
        let [high, low] = group.id.to_be_bytes();
        designator(&mut data, 0x50 | BINARY, OF_PORT | 0x05, &[0, 0, high, low]);
    }
    let port_name = format!("{},t,0x{:04x}", context.target_name, port.group_tag);
    designator(&mut data, 0x50 | UTF8, OF_PORT | 0x08, &name_string(&port_name));
    designator(&mut data, 0x50 | UTF8, OF_TARGET | 0x08, &name_string(context.target_name));
    data
}

fn designator(data: &mut Vec<u8>, protocol_and_code: u8, flags_and_type: u8, value: &[u8]) {
    let value = &value[..value.len().min(255)];
    data.extend_from_slice(&[protocol_and_code, flags_and_type, 0, value.len() as u8]);
    data.extend_from_slice(value);
}

/// A SCSI name string: ended by a zero byte, padded to a multiple of four (SPC-4 §7.8.6.11).
fn name_string(text: &str) -> Vec<u8> {
    let mut name = text.as_bytes().to_vec();
    name.truncate(250);
    name.resize((name.len() + 1).next_multiple_of(4), 0);
    name
}

fn extended() -> Vec<u8> {
    let mut body = vec![0; 60];
    // HEADSUP, ORDSUP, SIMPSUP.
    body[1] = 0x07;
    // V_SUP is zero: there is no volatile cache.
    body
}

fn block_limits(view: &LunView) -> Vec<u8> {
    let in_blocks = |bytes: u32| bytes / view.block_size;
    let mut body = vec![0; 60];
    // WSNZ is zero: a WRITE SAME of no number of blocks means all to the end.
    body[1] = COMPARE_AND_WRITE_BLOCKS_MAX;
    body[2..4].copy_from_slice(&(in_blocks(4096).max(1) as u16).to_be_bytes());
    body[4..8].copy_from_slice(&in_blocks(TRANSFER_BYTES_MAX).to_be_bytes());
    body[8..12].copy_from_slice(&in_blocks(256 << 10).to_be_bytes());
    body[16..20].copy_from_slice(&UNMAP_BLOCKS_MAX.to_be_bytes());
    body[20..24].copy_from_slice(&UNMAP_DESCRIPTORS_MAX.to_be_bytes());
    body[24..28].copy_from_slice(&in_blocks(UNMAP_GRANULARITY_BYTES).to_be_bytes());
    body[28..32].copy_from_slice(&0x8000_0000u32.to_be_bytes());
    body[32..40].copy_from_slice(&u64::from(in_blocks(WRITE_SAME_BYTES_MAX)).to_be_bytes());
    // Atomic writes: how long at most; of any number of blocks, at any address, as long as they cross
    // no multiple of that length, for which SBC-4 has no field. What is aligned by its own length, as
    // hosts' are, never does.
    body[40..44].copy_from_slice(&atomic_blocks(view).to_be_bytes());
    body
}

fn characteristics() -> Vec<u8> {
    let mut body = vec![0; 60];
    // Medium rotation rate 1: non-rotating.
    body[1] = 1;
    body
}

fn provisioning(view: &LunView) -> Vec<u8> {
    // LBPU, LBPWS, LBPWS10, LBPRZ; ANC_SUP and the type: 1 has room set aside for every block, 2 not.
    let ways = 0x80 | 0x40 | 0x20 | 0x04;
    if view.thin { vec![0, ways, 2, 0] } else { vec![0, ways | 0x02, 1, 0] }
}
