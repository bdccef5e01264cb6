//! PERSISTENT RESERVE IN's answers (SPC-4 §6.15) and the TransportIDs in them (§7.6.4.6).
//!
//! What is registered and held is for the volume to know (`voute-reservation`): a request for it goes
//! there like any other, and what comes back is written here.

use super::sense::Sense;
use voute_reservation::{InitiatorPort, Registrant, Reservations};

/// Service actions.
pub(super) const READ_KEYS: u8 = 0;
const READ_RESERVATION: u8 = 1;
const REPORT_CAPABILITIES: u8 = 2;
pub(super) const READ_FULL_STATUS: u8 = 3;

/// Protocol identifier of iSCSI, and the formats of its TransportIDs.
const PROTOCOL: u8 = 0x05;
const FORMAT_NAME: u8 = 0x00;
const FORMAT_NAME_AND_ISID: u8 = 0x40;
/// ADDITIONAL LENGTH is at least this, bytes.
const NAME_BYTES_MIN: usize = 20;

/// The answer to a service action.
pub(crate) fn report(action: u8, state: &Reservations) -> Vec<u8> {
    let mut data = state.generation().to_be_bytes().to_vec();
    match action {
        READ_KEYS => {
            let keys = state.registrations();
            data.extend_from_slice(&((keys.len() * 8) as u32).to_be_bytes());
            keys.iter().for_each(|one| data.extend_from_slice(&one.key.to_be_bytes()));
        }
        READ_RESERVATION => reservation(state, &mut data),
        REPORT_CAPABILITIES => return capabilities(state),
        _ => full_status(state, &mut data),
    }
    data
}

fn reservation(state: &Reservations, data: &mut Vec<u8>) {
    let Some(held) = state.held() else {
        data.extend_from_slice(&[0; 4]);
        return;
    };
    let holder = state.registrations().iter().find(|one| one.registrant == held.by);
    // The all-registrants types have no one key (SPC-4 §6.15.3.2).
    let key = match held.kind.is_held_by_all() {
        true => 0,
        false => holder.map_or(0, |holder| holder.key),
    };
    data.extend_from_slice(&16u32.to_be_bytes());
    data.extend_from_slice(&key.to_be_bytes());
    data.extend_from_slice(&[0, 0, 0, 0, 0, held.kind.scsi_code(), 0, 0]);
}

fn full_status(state: &Reservations, data: &mut Vec<u8>) {
    let mut body = Vec::new();
    for one in state.registrations() {
        let (transport, relative_port) = match &one.registrant {
            Registrant::Scsi { port, relative_port } => (transport_id(port), *relative_port),
            Registrant::Nvme { host_id } => (transport_id_of_nvme(host_id), None),
        };
        let is_holder = state.holds(&one.registrant);
        let kind = state.held().filter(|_| is_holder).map_or(0, |held| held.kind.scsi_code());
        let through_all = relative_port.is_none();
        body.extend_from_slice(&one.key.to_be_bytes());
        body.extend_from_slice(&[0; 4]);
        body.extend_from_slice(&[u8::from(through_all) << 1 | u8::from(is_holder), kind]);
        body.extend_from_slice(&[0; 4]);
        body.extend_from_slice(&relative_port.unwrap_or(0).to_be_bytes());
        body.extend_from_slice(&(transport.len() as u32).to_be_bytes());
        body.extend_from_slice(&transport);
    }
    data.extend_from_slice(&(body.len() as u32).to_be_bytes());
    data.extend_from_slice(&body);
}

/// REPORT CAPABILITIES (SPC-4 §6.15.4): SPEC_I_PT, ALL_TG_PT, APTPL, all six types.
fn capabilities(state: &Reservations) -> Vec<u8> {
    vec![0, 8, 0x08 | 0x04 | 0x01, 0x80 | u8::from(state.persists()), 0xea, 0x01, 0, 0]
}

fn transport_id(port: &InitiatorPort) -> Vec<u8> {
    named(FORMAT_NAME_AND_ISID, &port.to_string())
}

/// There is no form for an NVMe host beside SCSI's own transports: it is told by the NQN that its host
/// identifier usually belongs to.
fn transport_id_of_nvme(host_id: &[u8; 16]) -> Vec<u8> {
    let mut name = String::from("nqn.2014-08.org.nvmexpress:uuid:");
    for (at, byte) in host_id.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            name.push('-');
        }
        name.push_str(&format!("{byte:02x}"));
    }
    named(FORMAT_NAME, &name)
}

fn named(format: u8, name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize((bytes.len() + 1).next_multiple_of(4).max(NAME_BYTES_MIN), 0);
    let mut id = vec![format | PROTOCOL, 0];
    id.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
    id.extend_from_slice(&bytes);
    id
}

/// Reads the TransportID at the begin of `bytes`, and tells how long it is. The ISID must be there:
/// without it, it would be unclear which sessions are meant.
pub(super) fn read_transport_id(bytes: &[u8]) -> Result<(InitiatorPort, usize), Sense> {
    let header = bytes.get(..4).ok_or(Sense::PARAMETER_LENGTH)?;
    let length = 4 + usize::from(u16::from_be_bytes([header[2], header[3]]));
    let name = bytes.get(4..length).ok_or(Sense::PARAMETER_LENGTH)?;
    if header[0] != FORMAT_NAME_AND_ISID | PROTOCOL {
        return Err(Sense::INVALID_FIELD_IN_PARAMETERS);
    }
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    let port =
        std::str::from_utf8(&name[..end]).ok().and_then(|text| InitiatorPort::parse(text).ok());
    Ok((port.ok_or(Sense::INVALID_FIELD_IN_PARAMETERS)?, length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transport_id_comes_back_and_a_broken_one_is_refused() {
        let port = InitiatorPort::new("iqn.x", [0x80, 0, 0, 0, 0, 1]).unwrap();
        let mut id = transport_id(&port);
        let length = id.len();
        assert_eq!((length, &id[..4]), (28, &[0x45, 0, 0, 24][..]));
        id.extend([9; 5]);
        assert_eq!(read_transport_id(&id), Ok((port, length)));
        assert_eq!(read_transport_id(&id[..length - 1]), Err(Sense::PARAMETER_LENGTH));
        assert_eq!(read_transport_id(&id[..3]), Err(Sense::PARAMETER_LENGTH));
        for (at, value) in [(0, 0x05), (0, 0x46), (9, b'!')] {
            let mut broken = id.clone();
            broken[at] = value;
            assert_eq!(read_transport_id(&broken), Err(Sense::INVALID_FIELD_IN_PARAMETERS));
        }
        assert_eq!(named(FORMAT_NAME, "a").len(), 24);
    }
}
