//! REPORT and SET TARGET PORT GROUPS (SPC-4 §6.37, §6.45).
//!
//! A host may ask for another group to become the active one, which is a planned move of the volume's
//! owner. Nothing else can be set: the states of a volume follow from who owns it.

use super::cdb::Cdb;
use super::opcodes::Access;
use super::sense::Sense;
use crate::target::{AluaState, LunView};

/// Longest time that a transition takes, seconds: hosts wait this long before they give up on a path.
const TRANSITION_SECONDS: u8 = 30;

/// Most bytes of SET TARGET PORT GROUPS' parameter list: every group once.
pub(super) const CHANGE_BYTES_MAX: u32 = 4 + 4 * 64;

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

/// What refuses a command in a state that does not serve it.
pub(crate) fn refusal(state: AluaState, access: Access) -> Option<Sense> {
    match (access, state) {
        (Access::Always, _)
        | (_, AluaState::ActiveOptimized | AluaState::NonOptimized)
        | (Access::Reservations, AluaState::Standby) => None,
        (Access::Medium, AluaState::Standby) => Some(Sense::STANDBY),
        (_, AluaState::Unavailable) => Some(Sense::UNAVAILABLE),
        (_, AluaState::Transitioning) => Some(Sense::IN_TRANSITION),
    }
}

/// The group that a parameter list wants to be active; none if all is so already. A list that leaves
/// no group, or more than one, active is of no state that a volume can be in.
pub(super) fn change(list: &[u8], view: &LunView) -> Result<Option<u16>, Sense> {
    let descriptors = list.get(4..).filter(|rest| rest.len().is_multiple_of(4));
    let (mut activated, mut passed_on) = (None, false);
    for descriptor in descriptors.ok_or(Sense::PARAMETER_LENGTH)?.chunks_exact(4) {
        let (asked, id) =
            (descriptor[0] & 0x0f, u16::from_be_bytes([descriptor[2], descriptor[3]]));
        let group = view.target_port_groups.iter().find(|group| group.id == id);
        let group = group.ok_or(Sense::INVALID_FIELD_IN_PARAMETERS)?;
        let is_active = group.state.serves();
        match asked {
            0x0 if activated.is_some_and(|other| other != id) => {
                return Err(Sense::INVALID_FIELD_IN_PARAMETERS);
            }
            0x0 => activated = Some(id),
            // Not active: what every group becomes but the one that is made active.
            0x1..=0x3 if asked == code(group.state) || !is_active => {}
            0x1..=0x3 => passed_on = true,
            _ => return Err(Sense::INVALID_FIELD_IN_PARAMETERS),
        }
    }
    let active = view.target_port_groups.iter().find(|group| group.state.serves());
    match activated {
        None if passed_on => Err(Sense::INVALID_FIELD_IN_PARAMETERS),
        Some(id) if active.is_some_and(|active| active.id == id) => {
            if passed_on {
                Err(Sense::INVALID_FIELD_IN_PARAMETERS)
            } else {
                Ok(None)
            }
        }
        activated => Ok(activated),
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
