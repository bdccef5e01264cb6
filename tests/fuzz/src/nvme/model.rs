//! What must become of what a host sends, written from the specification and apart from the target.

use super::wire::{
    C2H_DATA, C2H_TERM, CAPSULE, H2C_DATA, H2C_TERM, IC_REQ, IC_RESP, R2T, RESPONSE,
};

/// Where a connection stands, as the host knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    New,
    Initialized,
    Admin,
    Discovery,
    Io,
    Link,
    /// Terminated or closed.
    Over,
}

/// The fatal error status that a PDU with a sound header must get; `None` where it is taken.
pub(crate) fn fatal_error(state: State, kind: u8) -> Option<u16> {
    const HEADER_FIELD: u16 = 1;
    const SEQUENCE: u16 = 2;
    match (state, kind) {
        (State::Over, _) | (_, H2C_TERM) => None,
        (_, IC_RESP | C2H_TERM | RESPONSE | C2H_DATA | R2T) => Some(HEADER_FIELD),
        (_, 8 | 10..) => Some(HEADER_FIELD),
        (State::New, IC_REQ) => None,
        (State::New, _) | (_, IC_REQ) => Some(SEQUENCE),
        // A transfer tag that nobody gave.
        (_, H2C_DATA) => Some(HEADER_FIELD),
        (_, CAPSULE) => None,
    }
}

/// A namespace as the directory gives it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Namespace {
    pub(crate) nsid: u32,
    pub(crate) block: u32,
    pub(crate) blocks: u64,
    /// 1 optimized, 2 non-optimized, 3 inaccessible, 4 lost, 15 changing.
    pub(crate) state: u8,
    pub(crate) read_only: bool,
}

pub(crate) mod opcode {
    pub(crate) const WRITE: u8 = 1;
    pub(crate) const READ: u8 = 2;
    pub(crate) const COMPARE: u8 = 5;
    pub(crate) const WRITE_ZEROES: u8 = 8;
    pub(crate) const VERIFY: u8 = 0xC;
}

/// Status code type and code by which a command for a range must be refused before the volume hears of
/// it; `None`: the volume must hear of it. The command's data pointer must be right.
pub(crate) fn refusal(
    namespaces: &[Namespace],
    command: u8,
    nsid: u32,
    lba: u64,
    blocks: u32,
) -> Option<(u8, u8)> {
    let Some(namespace) = namespaces.iter().find(|one| one.nsid == nsid) else {
        return Some((0, 0x0B));
    };
    match namespace.state {
        3 => return Some((3, 2)),
        4 => return Some((3, 1)),
        15 => return Some((3, 3)),
        _ => {}
    }
    if lba.checked_add(blocks.into()).is_none_or(|end| end > namespace.blocks) {
        return Some((0, 0x80));
    }
    let writes = matches!(command, opcode::WRITE | opcode::WRITE_ZEROES);
    if writes && namespace.read_only {
        return Some((0, 0x20));
    }
    let moves = matches!(command, opcode::READ | opcode::WRITE | opcode::COMPARE);
    if moves && u64::from(blocks) * u64::from(namespace.block) > 1 << 20 {
        return Some((0, 2));
    }
    None
}
