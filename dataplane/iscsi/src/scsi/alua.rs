//! REPORT TARGET PORT GROUPS (SPC-4 §6.37).

use super::cdb::Cdb;
use super::sense::Sense;
use crate::target::{AluaState, LunView};

/// Longest time that a transition takes, seconds: hosts wait this long before they give up on a path.
const TRANSITION_SECONDS: u8 = 30;

/// The asymmetric access state code.
fn code(state: AluaState) -> u8 {
    match state {
        AluaState::ActiveOptimized => 0x0,
        AluaState::NonOptimized => 0x1,
        AluaState::Standby => 0x2,
        AluaState::Unavailable => 0x3,
        AluaState::Transitioning => 0xf,
    }
}

/// What refuses a medium command in a state that does not serve.
pub(crate) fn refusal(state: AluaState) -> Option<Sense> {
    match state {
        AluaState::ActiveOptimized | AluaState::NonOptimized => None,
        AluaState::Standby => Some(Sense::STANDBY),
        AluaState::Unavailable => Some(Sense::UNAVAILABLE),
        AluaState::Transitioning => Some(Sense::IN_TRANSITION),
    }
}

pub(super) fn report(cdb: &Cdb, view: &LunView) -> Result<Vec<u8>, Sense> {
    let mut data = match cdb.0[1] >> 5 {
        0 => vec![0; 4],
        // Extended header: format type and implicit transition time.
        1 => vec![0, 0, 0, 0, 0x10, TRANSITION_SECONDS, 0, 0],
        _ => return Err(Sense::INVALID_FIELD_IN_CDB),
    };
    for group in &view.target_port_groups {
        // All states but logical-block-dependent and offline are supported: T U S AN AO.
        let supported = 0b1000_1111;
        // Status 2: changed by implicit behaviour.
        data.extend_from_slice(&[code(group.state), supported]);
        data.extend_from_slice(&group.id.to_be_bytes());
        data.extend_from_slice(&[0, 2, 0, group.relative_ports.len().min(255) as u8]);
        for port in group.relative_ports.iter().take(255) {
            data.extend_from_slice(&[0, 0]);
            data.extend_from_slice(&port.to_be_bytes());
        }
    }
    let length = (data.len() - 4) as u32;
    data[..4].copy_from_slice(&length.to_be_bytes());
    Ok(data)
}
