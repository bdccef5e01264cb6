//! Hosts and mappings.

use super::*;
use voute_schemas::Name;
use voute_schemas::event::{HostIdentity, HostKeys};

/// Most names of one host, of each kind.
const NAMES_MAX: usize = 64;
/// Longest NVMe or iSCSI name, bytes (NVM Express Base 2.0, §4.5; RFC 7143, §4.2.7.2).
const NAME_BYTES_MAX: usize = 223;
/// Highest LUN of the flat addressing method (SAM-5, §4.7.7.3).
const LUN_MAX: u16 = 16_383;

pub(super) fn add(
    state: &State,
    host: HostId,
    name: &Name,
    identity: &HostIdentity,
) -> Result<Vec<Event>, Refusal> {
    must_be_new(
        Noun::Host,
        (host.0, state.host(host).is_some()),
        (name, state.host_named(name).is_some()),
    )?;
    identity_must_be_valid(state, host, identity)?;
    Ok(vec![Event::HostAdded { host, name: name.clone(), identity: identity.clone() }])
}

pub(super) fn change(
    state: &State,
    id: HostId,
    identity: &HostIdentity,
) -> Result<Vec<Event>, Refusal> {
    let host = known_host(state, id)?;
    identity_must_be_valid(state, id, identity)?;
    if identity.nqns.is_empty() && host.keys.secret.is_some() {
        let rule = "the host proves secrets over NVMe, for which it needs an NQN".to_owned();
        return Err(Refusal::Invalid { field: "the host's identity", rule });
    }
    if host.identity == *identity {
        let what = format!("host {} is recognised so already", host.name);
        return Err(Refusal::Unchanged { what });
    }
    Ok(vec![Event::HostChanged { host: id, identity: identity.clone() }])
}

/// What a host must prove over NVMe.
pub(super) fn change_keys(
    state: &State,
    id: HostId,
    keys: &HostKeys,
) -> Result<Vec<Event>, Refusal> {
    let host = known_host(state, id)?;
    let invalid = |rule: &str| Refusal::Invalid { field: "the host's keys", rule: rule.to_owned() };
    if keys.secret.is_some() && host.identity.nqns.is_empty() {
        return Err(invalid("they are for NVMe, and the host has no NQN"));
    }
    if keys.target_secret.is_some() && keys.secret.is_none() {
        return Err(invalid("the target proves itself only to a host that proves itself"));
    }
    if keys.secret.is_some() && keys.secret == keys.target_secret {
        return Err(invalid("host and target need secrets of their own"));
    }
    if host.keys == *keys {
        let what = format!("host {} has these keys already", host.name);
        return Err(Refusal::Unchanged { what });
    }
    Ok(vec![Event::HostKeysChanged { host: id, keys: keys.clone() }])
}

pub(super) fn remove(state: &State, id: HostId) -> Result<Vec<Event>, Refusal> {
    let host = known_host(state, id)?;
    if let Some((lun, volume)) = state.mappings_of_host(id).next() {
        let by = match state.volume(volume) {
            Some(volume) => format!("the mapping of volume {}", volume.name),
            None => format!("the mapping of LUN {lun}"),
        };
        return Err(Refusal::InUse { noun: Noun::Host, name: host.name.clone(), by });
    }
    Ok(vec![Event::HostRemoved { host: id }])
}

pub(super) fn map_volume(
    state: &State,
    volume_id: VolumeId,
    host_id: HostId,
    lun: Option<u16>,
    read_only: bool,
) -> Result<Vec<Event>, Refusal> {
    let volume = known_volume(state, volume_id)?;
    let host = known_host(state, host_id)?;
    if let Some(mapping) = state.mapping(volume_id, host_id) {
        return Err(Refusal::AlreadyMapped {
            volume: volume.name.clone(),
            host: host.name.clone(),
            lun: mapping.lun,
        });
    }
    let lun = match lun {
        Some(lun) => wanted_lun(state, host_id, host, lun)?,
        None => lowest_free_lun(state, host_id, host)?,
    };
    Ok(vec![Event::VolumeMapped { volume: volume_id, host: host_id, lun, read_only }])
}

pub(super) fn unmap_volume(
    state: &State,
    volume_id: VolumeId,
    host_id: HostId,
) -> Result<Vec<Event>, Refusal> {
    let volume = known_volume(state, volume_id)?;
    let host = known_host(state, host_id)?;
    if state.mapping(volume_id, host_id).is_none() {
        let (volume, host) = (volume.name.clone(), host.name.clone());
        return Err(Refusal::NotMapped { volume, host });
    }
    Ok(vec![Event::VolumeUnmapped { volume: volume_id, host: host_id }])
}

fn wanted_lun(state: &State, id: HostId, host: &Host, lun: u16) -> Result<u16, Refusal> {
    if lun > LUN_MAX {
        let rule = format!("{lun} is too high; use 0 to {LUN_MAX}");
        return Err(Refusal::Invalid { field: "the LUN", rule });
    }
    let holder = state.volume_at_lun(id, lun).and_then(|volume| state.volume(volume));
    match holder {
        Some(volume) => {
            let (host, volume) = (host.name.clone(), volume.name.clone());
            Err(Refusal::LunTaken { host, lun, volume })
        }
        None => Ok(lun),
    }
}

fn lowest_free_lun(state: &State, id: HostId, host: &Host) -> Result<u16, Refusal> {
    let mut free = 0;
    for (lun, _) in state.mappings_of_host(id) {
        if lun != free {
            break;
        }
        free += 1;
    }
    if free > LUN_MAX {
        return Err(Refusal::LunsFull { host: host.name.clone(), max: LUN_MAX });
    }
    Ok(free)
}

fn identity_must_be_valid(
    state: &State,
    id: HostId,
    identity: &HostIdentity,
) -> Result<(), Refusal> {
    let HostIdentity { nqns, iqns, chap_secret } = identity;
    if nqns.is_empty() && iqns.is_empty() {
        let rule = "name at least one NQN or iSCSI name".to_owned();
        return Err(Refusal::Invalid { field: "the host's identity", rule });
    }
    if nqns.len() > NAMES_MAX || iqns.len() > NAMES_MAX {
        let rule = format!("a host has at most {NAMES_MAX} names of each kind");
        return Err(Refusal::Invalid { field: "the host's identity", rule });
    }
    if chap_secret.is_some() && iqns.is_empty() {
        let rule = "it is for iSCSI, and the host has no iSCSI name".to_owned();
        return Err(Refusal::Invalid { field: "the CHAP secret", rule });
    }
    names_must_begin("an NQN", nqns, &["nqn."])?;
    names_must_begin("an iSCSI name", iqns, &["iqn.", "eui.", "naa."])?;
    names_must_be_its_own(state, id, identity)
}

fn names_must_begin(
    field: &'static str,
    names: &[String],
    prefixes: &[&str],
) -> Result<(), Refusal> {
    let is_valid = |name: &String| {
        name.len() <= NAME_BYTES_MAX
            && prefixes.iter().any(|prefix| name.len() > prefix.len() && name.starts_with(prefix))
            && !name.chars().any(|character| character.is_whitespace() || character.is_control())
    };
    match names.iter().find(|name| !is_valid(name)) {
        Some(name) => {
            let name = clipped(name, NAME_BYTES_MAX);
            let rule = format!(
                "{name:?}; it begins with {} and has at most {NAME_BYTES_MAX} bytes without spaces",
                prefixes.join(" or ")
            );
            Err(Refusal::Invalid { field, rule })
        }
        None => Ok(()),
    }
}

fn names_must_be_its_own(
    state: &State,
    id: HostId,
    identity: &HostIdentity,
) -> Result<(), Refusal> {
    let mut seen = std::collections::BTreeSet::new();
    for name in identity.nqns.iter().chain(&identity.iqns) {
        if !seen.insert(name) {
            let rule = format!("{name:?} is named twice");
            return Err(Refusal::Invalid { field: "the host's identity", rule });
        }
        let holder = state.host_of_identity(name).filter(|holder| *holder != id);
        if let Some(host) = holder.and_then(|holder| state.host(holder)) {
            let (host, identity) = (host.name.clone(), name.clone());
            return Err(Refusal::IdentityTaken { host, identity });
        }
    }
    Ok(())
}
