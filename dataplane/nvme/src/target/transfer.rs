//! How a command's data moves: what its data pointer says, matched with what it needs (§3.3.2).

use super::io::Demand;
use crate::{DataPointer, Direction, HOST_TRANSFER_MAX, Status, SubmissionEntry};

/// How a command's data moves.
pub(super) struct Transfer {
    /// Bytes that the host sends.
    pub(super) expected: usize,
    /// Bytes that it takes back at most.
    pub(super) reply_max: usize,
    /// They are in the command's own capsule.
    pub(super) in_capsule: bool,
}

impl Transfer {
    /// Matches the command's data pointer, and the data present in its capsule, with what it needs.
    pub(super) fn of(
        entry: &SubmissionEntry,
        demand: Demand,
        present: usize,
    ) -> Result<Self, Status> {
        let pointer = entry.data_pointer();
        let fits = |length: u32| match length as usize {
            length if length > demand.length_max && demand.length_max == HOST_TRANSFER_MAX => {
                Err(Status::invalid_field())
            }
            length if length < demand.length_min || length > demand.length_max => {
                Err(Status::sgl_length_invalid())
            }
            length => Ok(length),
        };
        match (demand.direction, pointer) {
            (Direction::None, _) => Ok(Transfer { expected: 0, reply_max: 0, in_capsule: false }),
            (Direction::ToHost, DataPointer::Transport { length }) => {
                Ok(Transfer { expected: 0, reply_max: fits(length)?, in_capsule: false })
            }
            (
                Direction::ToController | Direction::Both,
                DataPointer::InCapsule { offset, length },
            ) => {
                if offset != 0 {
                    return Err(Status::sgl_offset_invalid());
                }
                if length as usize != present {
                    return Err(Status::sgl_length_invalid());
                }
                let reply_max = reply_of(entry, demand);
                Ok(Transfer { expected: fits(length)?, reply_max, in_capsule: true })
            }
            (Direction::ToController, DataPointer::Transport { length }) if present == 0 => {
                Ok(Transfer { expected: fits(length)?, reply_max: 0, in_capsule: false })
            }
            (Direction::Both, DataPointer::Transport { length: 0 }) if present == 0 => {
                Ok(Transfer { expected: 0, reply_max: reply_of(entry, demand), in_capsule: false })
            }
            (Direction::ToController | Direction::Both, DataPointer::Transport { .. }) => {
                Err(Status::sgl_length_invalid())
            }
            (_, DataPointer::InCapsule { .. } | DataPointer::Other(_)) => {
                Err(Status::sgl_type_invalid())
            }
        }
    }
}

fn reply_of(entry: &SubmissionEntry, demand: Demand) -> usize {
    match demand.direction {
        Direction::Both => entry.reply_length_max() as usize,
        _ => 0,
    }
}
