//! The messages of DH-HMAC-CHAP (NVMe Base 2.0 §8.13.5.2 to §8.13.5.6).

use super::{Group, Hash};
use crate::little_endian::{put, u16_at, u32_at};

const COMMON: u8 = 0;
const DH_HMAC_CHAP: u8 = 1;
const NEGOTIATE: u8 = 0x00;
const CHALLENGE: u8 = 0x01;
const REPLY: u8 = 0x02;
const SUCCESS1: u8 = 0x03;
const SUCCESS2: u8 = 0x04;
const FAILURE2: u8 = 0xF0;
const FAILURE1: u8 = 0xF1;
/// Of every message that has variable parts.
const HEADER_LENGTH: usize = 16;
/// AUTHID of DH-HMAC-CHAP in a protocol descriptor.
const PROTOCOL: u8 = 1;
const DESCRIPTOR_LENGTH: usize = 64;
/// Most entries of each list in a descriptor.
const LIST_MAX: usize = 30;

/// Why authentication failed (RESCODE 1, figure "Authentication failure reason code explanations").
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// 01h: the proof is wrong.
    #[error("the proof of the secret is wrong")]
    Failed,
    /// 02h: no protocol in common.
    #[error("no authentication protocol in common")]
    NotUsable,
    /// 03h: a secure channel was asked for.
    #[error("a secure channel was asked for")]
    Channel,
    /// 04h: no hash in common.
    #[error("no hash function in common")]
    HashNotUsable,
    /// 05h: no group in common.
    #[error("no Diffie-Hellman group in common")]
    GroupNotUsable,
    /// 06h: a message with wrong contents.
    #[error("a message with wrong contents")]
    Payload,
    /// 07h: a message out of its place.
    #[error("a message out of its place")]
    Message,
    /// Another code.
    #[error("reason {0:#04x}")]
    Other(u8),
}

impl Failure {
    const fn code(self) -> u8 {
        match self {
            Failure::Failed => 1,
            Failure::NotUsable => 2,
            Failure::Channel => 3,
            Failure::HashNotUsable => 4,
            Failure::GroupNotUsable => 5,
            Failure::Payload => 6,
            Failure::Message => 7,
            Failure::Other(code) => code,
        }
    }

    const fn from_code(code: u8) -> Self {
        match code {
            1 => Failure::Failed,
            2 => Failure::NotUsable,
            3 => Failure::Channel,
            4 => Failure::HashNotUsable,
            5 => Failure::GroupNotUsable,
            6 => Failure::Payload,
            7 => Failure::Message,
            other => Failure::Other(other),
        }
    }
}

/// A message as it was received.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Message<'a> {
    Negotiate { wants_channel: bool, offers: Vec<Offer> },
    Challenge(Challenge<'a>),
    Reply(Reply<'a>),
    Success1 { response: Option<&'a [u8]> },
    Success2,
    Failure1(Failure),
    Failure2(Failure),
}

/// What the host takes: codes, known or not.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Offer {
    pub(super) hashes: Vec<u8>,
    pub(super) groups: Vec<u8>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Challenge<'a> {
    pub(super) hash: u8,
    pub(super) group: u8,
    pub(super) sequence: u32,
    pub(super) value: &'a [u8],
    pub(super) public: &'a [u8],
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Reply<'a> {
    pub(super) response: &'a [u8],
    /// C2 and S2, if the controller is to prove itself.
    pub(super) challenge: Option<(&'a [u8], u32)>,
    pub(super) public: &'a [u8],
}

/// Reads a message: its transaction, and what it says; `None` if it is not whole or unknown.
pub(super) fn read(bytes: &[u8]) -> Option<(u16, Message<'_>)> {
    let [kind, id, ..] = *bytes else { return None };
    let transaction = u16_at(bytes.get(..6)?, 4);
    let header = bytes.get(..8)?;
    let message = match (kind, id) {
        (COMMON, NEGOTIATE) => negotiate(header, &bytes[8..])?,
        (COMMON, FAILURE1) => Message::Failure1(Failure::from_code(header[7])),
        (COMMON, FAILURE2) => Message::Failure2(Failure::from_code(header[7])),
        (DH_HMAC_CHAP, CHALLENGE) => Message::Challenge(challenge(bytes)?),
        (DH_HMAC_CHAP, REPLY) => Message::Reply(reply(bytes)?),
        (DH_HMAC_CHAP, SUCCESS1) => success1(bytes)?,
        (DH_HMAC_CHAP, SUCCESS2) => Message::Success2,
        _ => return None,
    };
    Some((transaction, message))
}

fn negotiate<'a>(header: &[u8], rest: &[u8]) -> Option<Message<'a>> {
    let count = usize::from(header[7]);
    let descriptors = rest.get(..count * DESCRIPTOR_LENGTH)?;
    let offers = descriptors.chunks_exact(DESCRIPTOR_LENGTH).filter(|one| one[0] == PROTOCOL);
    let offer = |one: &[u8]| {
        let list = |at: usize, count: u8| Some(one.get(at..at + usize::from(count))?.to_vec());
        if usize::from(one[2].max(one[3])) > LIST_MAX {
            return None;
        }
        Some(Offer { hashes: list(4, one[2])?, groups: list(4 + LIST_MAX, one[3])? })
    };
    let offers = offers.map(offer).collect::<Option<Vec<_>>>()?;
    Some(Message::Negotiate { wants_channel: header[6] != 0, offers })
}

fn challenge(bytes: &[u8]) -> Option<Challenge<'_>> {
    let (header, rest) = bytes.split_at_checked(HEADER_LENGTH)?;
    let (value, rest) = rest.split_at_checked(header[6].into())?;
    let public = rest.get(..u16_at(header, 10).into())?;
    Some(Challenge {
        hash: header[8],
        group: header[9],
        sequence: u32_at(header, 12),
        value,
        public,
    })
}

fn reply(bytes: &[u8]) -> Option<Reply<'_>> {
    let (header, rest) = bytes.split_at_checked(HEADER_LENGTH)?;
    let length = usize::from(header[6]);
    let (response, rest) = rest.split_at_checked(length)?;
    // The second challenge has its place even when it says nothing.
    let (value, rest) = rest.split_at_checked(length)?;
    let public = rest.get(..u16_at(header, 10).into())?;
    let challenge = (header[8] & 1 != 0).then_some((value, u32_at(header, 12)));
    Some(Reply { response, challenge, public })
}

fn success1(bytes: &[u8]) -> Option<Message<'_>> {
    let header = bytes.get(..HEADER_LENGTH)?;
    if header[8] & 1 == 0 {
        return Some(Message::Success1 { response: None });
    }
    let response = bytes.get(HEADER_LENGTH..HEADER_LENGTH + usize::from(header[6]))?;
    Some(Message::Success1 { response: Some(response) })
}

fn header(kind: u8, id: u8, transaction: u16) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_LENGTH];
    (bytes[0], bytes[1]) = (kind, id);
    put(&mut bytes, 4, &transaction.to_le_bytes());
    bytes
}

/// AUTH_Negotiate with everything that this side takes.
pub(super) fn write_negotiate(transaction: u16) -> Vec<u8> {
    let mut bytes = header(COMMON, NEGOTIATE, transaction);
    bytes.truncate(8);
    bytes[7] = 1;
    let mut descriptor = [0; DESCRIPTOR_LENGTH];
    let (hashes, groups) = (Hash::PREFERRED.map(Hash::code), Group::PREFERRED.map(Group::code));
    (descriptor[0], descriptor[2], descriptor[3]) =
        (PROTOCOL, hashes.len() as u8, groups.len() as u8);
    put(&mut descriptor, 4, &hashes);
    put(&mut descriptor, 4 + LIST_MAX, &groups);
    bytes.extend(descriptor);
    bytes
}

/// DH-HMAC-CHAP_Challenge.
pub(super) fn write_challenge(
    transaction: u16,
    (hash, group): (Hash, Group),
    (value, sequence): (&[u8], u32),
    public: &[u8],
) -> Vec<u8> {
    let mut bytes = header(DH_HMAC_CHAP, CHALLENGE, transaction);
    (bytes[6], bytes[8], bytes[9]) = (value.len() as u8, hash.code(), group.code());
    put(&mut bytes, 10, &(public.len() as u16).to_le_bytes());
    put(&mut bytes, 12, &sequence.to_le_bytes());
    bytes.extend(value);
    bytes.extend(public);
    bytes
}

/// DH-HMAC-CHAP_Reply; `challenge` if the controller is to prove itself.
pub(super) fn write_reply(
    transaction: u16,
    response: &[u8],
    challenge: Option<(&[u8], u32)>,
    public: &[u8],
) -> Vec<u8> {
    let mut bytes = header(DH_HMAC_CHAP, REPLY, transaction);
    (bytes[6], bytes[8]) = (response.len() as u8, challenge.is_some().into());
    put(&mut bytes, 10, &(public.len() as u16).to_le_bytes());
    bytes.extend(response);
    match challenge {
        Some((value, sequence)) => {
            put(&mut bytes, 12, &sequence.to_le_bytes());
            bytes.extend(value);
        }
        None => bytes.resize(bytes.len() + response.len(), 0),
    }
    bytes.extend(public);
    bytes
}

/// DH-HMAC-CHAP_Success1. HL names the hash's length whether or not there is a response.
pub(super) fn write_success1(transaction: u16, hash: Hash, response: Option<&[u8]>) -> Vec<u8> {
    let mut bytes = header(DH_HMAC_CHAP, SUCCESS1, transaction);
    (bytes[6], bytes[8]) = (hash.length() as u8, response.is_some().into());
    bytes.extend(response.unwrap_or_default());
    bytes
}

/// DH-HMAC-CHAP_Success2.
pub(super) fn write_success2(transaction: u16) -> Vec<u8> {
    header(DH_HMAC_CHAP, SUCCESS2, transaction)
}

/// AUTH_Failure1 (from the controller).
pub(super) fn write_failure1(transaction: u16, failure: Failure) -> Vec<u8> {
    write_failure(FAILURE1, transaction, failure)
}

/// AUTH_Failure2 (from the host).
pub(super) fn write_failure2(transaction: u16, failure: Failure) -> Vec<u8> {
    write_failure(FAILURE2, transaction, failure)
}

fn write_failure(id: u8, transaction: u16, failure: Failure) -> Vec<u8> {
    let mut bytes = header(COMMON, id, transaction);
    (bytes[6], bytes[7]) = (1, failure.code());
    bytes
}
