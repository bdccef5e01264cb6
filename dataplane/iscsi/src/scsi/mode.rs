//! MODE SENSE and MODE SELECT (SPC-4 §6.11–6.14): caching, control, informational exceptions.
//!
//! Nothing is saved: D_SENSE and SWP last until a logical unit reset or a restart of the node.

use super::cdb::Cdb;
use super::command::Context;
use super::sense::Sense;

const CACHING: u8 = 0x08;
const CONTROL: u8 = 0x0a;
const EXCEPTIONS: u8 = 0x1c;
const ALL: u8 = 0x3f;

const D_SENSE: u8 = 0x04;
const SWP: u8 = 0x08;

/// Which values MODE SENSE asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Values {
    Current,
    Changeable,
    Default,
}

pub(super) fn sense(cdb: &Cdb, context: &Context<'_>) -> Result<Vec<u8>, Sense> {
    let is_long = cdb.opcode() == 0x5a;
    let (page, subpage) = (cdb.0[2] & 0x3f, cdb.0[3]);
    let values = match cdb.0[2] >> 6 {
        0 => Values::Current,
        1 => Values::Changeable,
        2 => Values::Default,
        _ => return Err(Sense::SAVING_NOT_SUPPORTED),
    };
    if subpage != 0 && subpage != 0xff {
        return Err(Sense::INVALID_FIELD_IN_CDB);
    }
    let mut pages = Vec::new();
    for known in [CACHING, CONTROL, EXCEPTIONS] {
        if page == known || page == ALL {
            pages.extend_from_slice(&mode_page(known, values, context));
        }
    }
    if pages.is_empty() {
        return Err(Sense::INVALID_FIELD_IN_CDB);
    }
    let is_protected = context.is_write_protected();
    // WP, DPOFUA.
    let device = if is_protected { 0x80 } else { 0 } | 0x10;
    let with_long_lba = is_long && cdb.bit(1, 4);
    let descriptor =
        if cdb.bit(1, 3) { Vec::new() } else { block_descriptor(context, with_long_lba) };
    let mut data = if is_long {
        let length = 6 + descriptor.len() + pages.len();
        let [high, low] = (length as u16).to_be_bytes();
        vec![high, low, 0, device, u8::from(with_long_lba), 0, 0, descriptor.len() as u8]
    } else {
        vec![(3 + descriptor.len() + pages.len()) as u8, 0, device, descriptor.len() as u8]
    };
    data.extend_from_slice(&descriptor);
    data.extend_from_slice(&pages);
    Ok(data)
}

fn block_descriptor(context: &Context<'_>, is_long: bool) -> Vec<u8> {
    let (blocks, size) = (context.view.blocks, context.view.block_size);
    let mut descriptor = Vec::with_capacity(16);
    if is_long {
        descriptor.extend_from_slice(&blocks.to_be_bytes());
        descriptor.extend_from_slice(&[0; 4]);
    } else {
        descriptor.extend_from_slice(&u32::try_from(blocks).unwrap_or(u32::MAX).to_be_bytes());
    }
    descriptor.extend_from_slice(&size.to_be_bytes());
    descriptor
}

fn mode_page(page: u8, values: Values, context: &Context<'_>) -> Vec<u8> {
    match page {
        CACHING => {
            let mut bytes = vec![0; 20];
            bytes[..2].copy_from_slice(&[CACHING, 18]);
            // WCE and RCD stay zero: acknowledged means durable.
            bytes
        }
        CONTROL => {
            let (descriptors, protect) = match values {
                Values::Current => {
                    (context.shared.descriptor_sense(), context.shared.software_write_protect())
                }
                Values::Changeable => (true, true),
                Values::Default => (false, false),
            };
            let mut bytes = vec![0; 12];
            bytes[..2].copy_from_slice(&[CONTROL, 10]);
            bytes[2] = if descriptors { D_SENSE } else { 0 };
            // Commands may be reordered without restriction.
            bytes[3] = if values == Values::Changeable { 0 } else { 0x10 };
            bytes[4] = if protect { SWP } else { 0 };
            bytes
        }
        _ => {
            let mut bytes = vec![0; 12];
            bytes[..2].copy_from_slice(&[EXCEPTIONS, 10]);
            bytes
        }
    }
}

/// The length that MODE SELECT asks for.
pub(super) fn select_length(cdb: &Cdb) -> Result<u32, Sense> {
    // SP: saving is not supported.
    if cdb.bit(1, 0) {
        return Err(Sense::INVALID_FIELD_IN_CDB);
    }
    Ok(if cdb.opcode() == 0x55 { u32::from(cdb.u16_at(7)) } else { u32::from(cdb.0[4]) })
}

/// Applies a parameter list; tells whether anything changed. Nothing changes if any page is refused.
pub(super) fn select(is_long: bool, list: &[u8], context: &Context<'_>) -> Result<bool, Sense> {
    if list.is_empty() {
        return Ok(false);
    }
    let (header, descriptor_length) = if is_long {
        let header = list.get(..8).ok_or(Sense::PARAMETER_LENGTH)?;
        (8, usize::from(u16::from_be_bytes([header[6], header[7]])))
    } else {
        (4, usize::from(*list.get(3).ok_or(Sense::PARAMETER_LENGTH)?))
    };
    let mut rest = list.get(header + descriptor_length..).ok_or(Sense::PARAMETER_LENGTH)?;
    check_descriptor(&list[header..header + descriptor_length], context)?;
    let mut control = None;
    while !rest.is_empty() {
        let length = usize::from(*rest.get(1).ok_or(Sense::PARAMETER_LENGTH)?) + 2;
        let page = rest.get(..length).ok_or(Sense::PARAMETER_LENGTH)?;
        check_page(page, context)?;
        if page[0] & 0x3f == CONTROL {
            control = Some((page[2] & D_SENSE != 0, page[4] & SWP != 0));
        }
        rest = &rest[length..];
    }
    Ok(control
        .is_some_and(|(descriptors, protect)| context.shared.set_control(descriptors, protect)))
}

/// The block size is not for a host to choose.
fn check_descriptor(descriptor: &[u8], context: &Context<'_>) -> Result<(), Sense> {
    let size = match descriptor.len() {
        0 => return Ok(()),
        8 => u32::from_be_bytes([0, descriptor[5], descriptor[6], descriptor[7]]),
        16 => u32::from_be_bytes([descriptor[12], descriptor[13], descriptor[14], descriptor[15]]),
        _ => return Err(Sense::INVALID_FIELD_IN_PARAMETERS),
    };
    if size == context.view.block_size { Ok(()) } else { Err(Sense::INVALID_FIELD_IN_PARAMETERS) }
}

/// A page may differ from the current one only in what is changeable.
fn check_page(page: &[u8], context: &Context<'_>) -> Result<(), Sense> {
    let code = page[0] & 0x3f;
    if page[0] & 0x40 != 0 || ![CACHING, CONTROL, EXCEPTIONS].contains(&code) {
        return Err(Sense::INVALID_FIELD_IN_PARAMETERS);
    }
    let current = mode_page(code, Values::Current, context);
    let changeable = mode_page(code, Values::Changeable, context);
    if page.len() != current.len() {
        return Err(Sense::PARAMETER_LENGTH);
    }
    let differs = (2..page.len()).any(|at| (page[at] ^ current[at]) & !changeable[at] != 0);
    if differs { Err(Sense::INVALID_FIELD_IN_PARAMETERS) } else { Ok(()) }
}
