//! Link requests and replies as NVMe vendor commands (see [`crate::link`] for the table).

use crate::action::{Payload, TRANSFER_MAX};
use crate::link::*;
use voute_buffer::Buffer;

/// A request as it stands in a submission queue entry.
#[derive(Debug)]
pub struct Command {
    /// Opcode.
    pub opcode: u8,
    /// NSID: the volume's number.
    pub nsid: u32,
    /// CDW10 to CDW15.
    pub dwords: [u32; 6],
    /// Data to the peer.
    pub data: Option<Payload>,
    /// Most data that may come back, bytes.
    pub reply_len_max: u32,
}

/// A request that means nothing to us.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the peer's command cannot be read")]
pub struct UnreadableRequest;

/// Writes a request.
#[must_use]
pub fn encode_request(request: &LinkRequest) -> Command {
    let command = |opcode, nsid, dwords, data, reply_len_max| Command {
        opcode,
        nsid,
        dwords,
        data,
        reply_len_max,
    };
    match request {
        LinkRequest::Write { volume, bar, offset, data, whole } => {
            let length = u32::try_from(data.len()).expect("transfers are bounded");
            command(
                OPCODE_WRITE,
                *volume,
                dwords(*offset, u64::from(length), *bar, u32::from(*whole)),
                Some(data.clone()),
                0,
            )
        }
        LinkRequest::Read { volume, bar, offset, length } => command(
            OPCODE_READ,
            *volume,
            dwords(*offset, u64::from(*length), *bar, 0),
            None,
            *length,
        ),
        LinkRequest::Zero { volume, bar, offset, length, release, whole } => command(
            OPCODE_ZERO,
            *volume,
            dwords(*offset, *length, *bar, u32::from(*release) | u32::from(*whole) << 1),
            None,
            0,
        ),
        LinkRequest::Control(control) => {
            let bytes = postcard::to_stdvec(control)
                .expect("control messages have no unserialisable field");
            let length = u32::try_from(bytes.len()).expect("control messages are short");
            let reply = u32::try_from(CONTROL_REPLY_BYTES_MAX).expect("a constant");
            command(
                OPCODE_CONTROL,
                0,
                [0, 0, length, 0, 0, 0],
                Some(Payload::new(Buffer::copy_of(&bytes))),
                reply,
            )
        }
    }
}

fn dwords(offset: u64, length: u64, bar: Bar, flags: u32) -> [u32; 6] {
    let low = |value: u64| (value & 0xFFFF_FFFF) as u32;
    [low(offset), low(offset >> 32), low(length), bar.0, low(length >> 32), flags]
}

/// Reads a request.
///
/// # Errors
/// [`UnreadableRequest`] for an unknown opcode, a length that does not fit the data, or a control
/// message that cannot be decoded.
pub fn decode_request(
    opcode: u8,
    nsid: u32,
    dwords: [u32; 6],
    data: Buffer,
) -> Result<LinkRequest, UnreadableRequest> {
    let offset = u64::from(dwords[1]) << 32 | u64::from(dwords[0]);
    let length = u64::from(dwords[4]) << 32 | u64::from(dwords[2]);
    let bar = Bar(dwords[3]);
    match opcode {
        OPCODE_WRITE if length == data.len() as u64 && !data.is_empty() => {
            let (data, whole) = (Payload::new(data), dwords[5] & 1 != 0);
            Ok(LinkRequest::Write { volume: nsid, bar, offset, data, whole })
        }
        OPCODE_READ if (1..=u64::from(TRANSFER_MAX)).contains(&length) => {
            Ok(LinkRequest::Read { volume: nsid, bar, offset, length: dwords[2] })
        }
        OPCODE_ZERO => {
            let (release, whole) = (dwords[5] & 1 != 0, dwords[5] & 2 != 0);
            Ok(LinkRequest::Zero { volume: nsid, bar, offset, length, release, whole })
        }
        OPCODE_CONTROL => {
            let bytes = data.get(..length as usize).ok_or(UnreadableRequest)?;
            postcard::from_bytes(bytes).map(LinkRequest::Control).map_err(|_| UnreadableRequest)
        }
        _ => Err(UnreadableRequest),
    }
}

/// A reply as it goes back: data for the requester, or a refusal as a vendor status code.
#[derive(Debug)]
pub enum WireReply {
    /// Success without data.
    Done,
    /// Success with data.
    Data(Buffer),
    /// Vendor-specific status (SCT 7h) of this code.
    Refused(u8),
}

/// Writes a reply.
#[must_use]
pub fn encode_reply(reply: LinkReply) -> WireReply {
    match reply {
        LinkReply::Done => WireReply::Done,
        LinkReply::Data(data) => WireReply::Data(data),
        LinkReply::Control(ControlReply::Refused(refusal)) | LinkReply::Refused(refusal) => {
            WireReply::Refused(refusal_code(refusal))
        }
        LinkReply::Control(reply) => {
            let bytes =
                postcard::to_stdvec(&reply).expect("control replies have no unserialisable field");
            WireReply::Data(Buffer::copy_of(&bytes))
        }
    }
}

/// Reads a reply to a request of this opcode. `refused` is the code of a vendor-specific status.
/// `None`: it makes no sense.
#[must_use]
pub fn decode_reply(opcode: u8, refused: Option<u8>, data: Option<Buffer>) -> Option<LinkReply> {
    if let Some(code) = refused {
        return refusal_of(code).map(LinkReply::Refused);
    }
    match (opcode, data) {
        (OPCODE_WRITE | OPCODE_ZERO, _) => Some(LinkReply::Done),
        (OPCODE_READ, Some(data)) => Some(LinkReply::Data(data)),
        (OPCODE_CONTROL, Some(data)) => {
            postcard::take_from_bytes(&data).ok().map(|(reply, _)| LinkReply::Control(reply))
        }
        _ => None,
    }
}

const REFUSALS: [(u8, LinkRefusal); 8] = [
    (0xC1, LinkRefusal::Stale),
    (0xC2, LinkRefusal::NotYet),
    (0xC3, LinkRefusal::Unknown),
    (0xC4, LinkRefusal::ContentLost),
    (0xC5, LinkRefusal::Failed),
    (0xC6, LinkRefusal::Medium),
    (0xC7, LinkRefusal::Invalid),
    (0xC8, LinkRefusal::NotAuthenticated),
];

fn refusal_code(refusal: LinkRefusal) -> u8 {
    REFUSALS.iter().find(|entry| entry.1 == refusal).map_or(0xC7, |entry| entry.0)
}

fn refusal_of(code: u8) -> Option<LinkRefusal> {
    REFUSALS.iter().find(|entry| entry.0 == code).map(|entry| entry.1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use voute_schemas::{GroupId, Token};

    #[test]
    fn requests_survive_the_wire() {
        let requests = [
            LinkRequest::Write {
                volume: 3,
                bar: Bar(9),
                offset: 1 << 40,
                data: Payload::new(Buffer::copy_of(&[7; 4096])),
                whole: true,
            },
            LinkRequest::Read { volume: 3, bar: Bar(9), offset: 512, length: 1 << 20 },
            LinkRequest::Zero {
                volume: 3,
                bar: Bar(9),
                offset: 0,
                length: 1 << 33,
                release: true,
                whole: false,
            },
            LinkRequest::Zero {
                volume: 3,
                bar: Bar(9),
                offset: 0,
                length: 512,
                release: false,
                whole: true,
            },
            LinkRequest::Control(Control::Bar {
                group: GroupId::generate(),
                token: Token::default(),
            }),
        ];
        for request in requests {
            let command = encode_request(&request);
            let data =
                command.data.map_or_else(|| Buffer::zeroed(0), |data| Buffer::copy_of(&data));
            let again = decode_request(command.opcode, command.nsid, command.dwords, data).unwrap();
            assert_eq!(format!("{again:?}"), format!("{request:?}"));
        }
    }

    #[test]
    fn absurd_requests_are_refused() {
        assert!(
            decode_request(OPCODE_WRITE, 1, [0, 0, 512, 0, 0, 0], Buffer::zeroed(4096)).is_err()
        );
        assert!(
            decode_request(OPCODE_READ, 1, [0, 0, u32::MAX, 0, 0, 0], Buffer::zeroed(0)).is_err()
        );
        assert!(
            decode_request(OPCODE_CONTROL, 1, [0, 0, 100, 0, 0, 0], Buffer::zeroed(4)).is_err()
        );
        assert!(
            decode_request(OPCODE_CONTROL, 1, [0, 0, 4, 0, 0, 0], Buffer::copy_of(&[0xFF; 4]))
                .is_err()
        );
        assert!(decode_request(0x55, 1, [0; 6], Buffer::zeroed(0)).is_err());
    }

    #[test]
    fn every_refusal_has_a_code_of_its_own() {
        for (code, refusal) in REFUSALS {
            assert_eq!(refusal_of(refusal_code(refusal)), Some(refusal));
            assert_eq!(refusal_code(refusal), code);
        }
    }
}
