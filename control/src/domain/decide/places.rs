//! Sites, nodes, pools and devices.

use super::*;
use std::net::SocketAddr;
use voute_schemas::event::{ConditionSource, SiteCondition, SiteKind};
use voute_schemas::place::{Locator, Portals};
use voute_schemas::{Hash, Name};

/// Smallest extent and unit of extent sizes, bytes.
const EXTENT_BYTES_UNIT: u64 = 1 << 20;
/// Largest extent, bytes.
const EXTENT_BYTES_MAX: u64 = 1 << 30;
/// Longest path of a device, bytes (Linux: PATH_MAX).
const PATH_BYTES_MAX: usize = 4_095;
/// Longest NVMe qualified name, bytes (NVM Express Base 2.0, §4.5).
const NQN_BYTES_MAX: usize = 223;

pub(super) fn add_site(
    state: &State,
    site: SiteId,
    name: &Name,
    kind: SiteKind,
) -> Result<Vec<Event>, Refusal> {
    must_be_new(
        Noun::Site,
        (site.0, state.site(site).is_some()),
        (name, state.site_named(name).is_some()),
    )?;
    Ok(vec![Event::SiteAdded { site, name: name.clone(), kind }])
}

pub(super) fn remove_site(state: &State, id: SiteId) -> Result<Vec<Event>, Refusal> {
    let site = known_site(state, id)?;
    let node = state.nodes().find(|(_, node)| node.site == id);
    let pool = state.pools().find(|(_, pool)| pool.site == id);
    let policy = state.policies().find(|(_, policy)| policy.rules.preferred_site == Some(id));
    let user = node
        .map(|(_, node)| format!("node {}", node.name))
        .or_else(|| pool.map(|(_, pool)| format!("pool {}", pool.name)))
        .or_else(|| policy.map(|(_, policy)| format!("policy {}", policy.name)));
    must_be_unused(Noun::Site, &site.name, user)?;
    Ok(vec![Event::SiteRemoved { site: id }])
}

pub(super) fn report_site_condition(
    state: &State,
    id: SiteId,
    condition: SiteCondition,
    source: ConditionSource,
    detail: &str,
) -> Result<Vec<Event>, Refusal> {
    let site = known_site(state, id)?;
    text_must_fit("the detail", detail)?;
    if site.condition == condition && site.source == source && site.detail == detail {
        let what = format!("this was already reported of site {}", site.name);
        return Err(Refusal::Unchanged { what });
    }
    Ok(vec![Event::SiteConditionReported {
        site: id,
        condition,
        source,
        detail: detail.to_owned(),
    }])
}

pub(super) fn add_node(
    state: &State,
    node: NodeId,
    name: &Name,
    site: SiteId,
    portals: Portals,
    verifier: Hash,
) -> Result<Vec<Event>, Refusal> {
    must_be_new(
        Noun::Node,
        (node.0, state.node(node).is_some()),
        (name, state.node_named(name).is_some()),
    )?;
    must_hold_data(known_site(state, site)?)?;
    portals_must_be_usable(state, node, portals)?;
    let number = lowest_free_number(state)?;
    Ok(vec![Event::NodeAdded { node, name: name.clone(), site, portals, number, verifier }])
}

pub(super) fn change_node_portals(
    state: &State,
    id: NodeId,
    portals: Portals,
) -> Result<Vec<Event>, Refusal> {
    let node = known_node(state, id)?;
    if node.portals == portals {
        let what = format!("node {} listens there already", node.name);
        return Err(Refusal::Unchanged { what });
    }
    portals_must_be_usable(state, id, portals)?;
    Ok(vec![Event::NodePortalsChanged { node: id, portals }])
}

pub(super) fn remove_node(state: &State, id: NodeId) -> Result<Vec<Event>, Refusal> {
    let node = known_node(state, id)?;
    let device = state.devices().find(|(_, device)| device.node == id);
    let user = device.map(|(_, device)| format!("device {}", device.name));
    must_be_unused(Noun::Node, &node.name, user)?;
    Ok(vec![Event::NodeRemoved { node: id }])
}

pub(super) fn create_pool(
    state: &State,
    pool: PoolId,
    name: &Name,
    site: SiteId,
    extent_bytes: u64,
) -> Result<Vec<Event>, Refusal> {
    must_be_new(
        Noun::Pool,
        (pool.0, state.pool(pool).is_some()),
        (name, state.pool_named(name).is_some()),
    )?;
    must_hold_data(known_site(state, site)?)?;
    let in_range = (EXTENT_BYTES_UNIT..=EXTENT_BYTES_MAX).contains(&extent_bytes);
    if !in_range || !extent_bytes.is_multiple_of(EXTENT_BYTES_UNIT) {
        let rule = format!(
            "{extent_bytes} bytes; use a multiple of {EXTENT_BYTES_UNIT} up to {EXTENT_BYTES_MAX}"
        );
        return Err(Refusal::Invalid { field: "the extent size", rule });
    }
    Ok(vec![Event::PoolCreated { pool, name: name.clone(), site, extent_bytes }])
}

pub(super) fn remove_pool(state: &State, id: PoolId) -> Result<Vec<Event>, Refusal> {
    let pool = known_pool(state, id)?;
    let device = state.devices_of_pool(id).next();
    let user = device.map(|(_, device)| format!("device {}", device.name));
    must_be_unused(Noun::Pool, &pool.name, user)?;
    Ok(vec![Event::PoolRemoved { pool: id }])
}

pub(super) fn add_device(
    state: &State,
    device: DeviceId,
    name: &Name,
    (node_id, pool_id): (NodeId, PoolId),
    locator: &Locator,
    overwrite: bool,
) -> Result<Vec<Event>, Refusal> {
    must_be_new(
        Noun::Device,
        (device.0, state.device(device).is_some()),
        (name, state.device_named(name).is_some()),
    )?;
    let node = known_node(state, node_id)?;
    let pool = known_pool(state, pool_id)?;
    if node.site != pool.site {
        let (node, pool) = (node.name.clone(), pool.name.clone());
        return Err(Refusal::PoolElsewhere { node, pool });
    }
    locator_must_be_valid(locator)?;
    if let Some((_, holder)) = state.devices().find(|(_, it)| same_place(it, node_id, locator)) {
        let place = place_of(locator).unwrap_or_default();
        return Err(Refusal::LocatorTaken { device: holder.name.clone(), place });
    }
    Ok(vec![Event::DeviceAdded {
        device,
        name: name.clone(),
        node: node_id,
        pool: pool_id,
        locator: locator.clone(),
        overwrite,
    }])
}

/// A device that only holds retired legs may go: it may be dead and never wipe them.
pub(super) fn remove_device(state: &State, id: DeviceId) -> Result<Vec<Event>, Refusal> {
    let device = known_device(state, id)?;
    let all_free = device.extents().is_none_or(|extents| extents.free() == extents.total());
    let holds = |leg: &Leg| leg.runs.iter().any(|run| run.device == id);
    let volume = state
        .groups_of_node(device.node)
        .filter(|_| !all_free)
        .flat_map(|(_, group)| group.volumes.iter().filter_map(|volume| state.volume(*volume)))
        .find(|volume| volume.legs.iter().any(holds));
    let user = volume.map(|volume| format!("a leg of volume {}", volume.name));
    must_be_unused(Noun::Device, &device.name, user)?;
    Ok(vec![Event::DeviceRemoved { device: id }])
}

fn must_be_unused(noun: Noun, name: &Name, user: Option<String>) -> Result<(), Refusal> {
    match user {
        Some(by) => Err(Refusal::InUse { noun, name: name.clone(), by }),
        None => Ok(()),
    }
}

fn must_hold_data(site: &Site) -> Result<(), Refusal> {
    match site.kind {
        SiteKind::Data => Ok(()),
        SiteKind::Witness => Err(Refusal::WitnessHoldsNoData { site: site.name.clone() }),
    }
}

fn lowest_free_number(state: &State) -> Result<u16, Refusal> {
    let mut taken: Vec<u16> = state.nodes().map(|(_, node)| node.number).collect();
    taken.sort_unstable();
    (1..=NODES_MAX)
        .find(|number| taken.binary_search(number).is_err())
        .ok_or(Refusal::NodesFull { max: NODES_MAX })
}

fn addresses(portals: Portals) -> [SocketAddr; 3] {
    [portals.nvme, portals.iscsi, portals.link]
}

fn portals_must_be_usable(state: &State, id: NodeId, portals: Portals) -> Result<(), Refusal> {
    let ours = addresses(portals);
    if let Some(address) = ours.iter().find(|it| it.port() == 0 || it.ip().is_unspecified()) {
        let rule = format!("nobody could connect to {address}; name an address and a port");
        return Err(Refusal::Invalid { field: "a portal", rule });
    }
    if ours[0] == ours[1] || ours[1] == ours[2] || ours[0] == ours[2] {
        let rule = "two of its portals are the same; give each listener its own".to_owned();
        return Err(Refusal::Invalid { field: "a portal", rule });
    }
    for (_, other) in state.nodes().filter(|(other, _)| *other != id) {
        if let Some(address) = addresses(other.portals).into_iter().find(|it| ours.contains(it)) {
            return Err(Refusal::AddressTaken { node: other.name.clone(), address });
        }
    }
    Ok(())
}

fn locator_must_be_valid(locator: &Locator) -> Result<(), Refusal> {
    let broken = match locator {
        Locator::Memory { size_bytes } => (*size_bytes == 0).then(|| "its size is zero".to_owned()),
        Locator::File { path, size_bytes: _ } | Locator::Block { path } => broken_path(path),
        Locator::RemoteNamespace { address, subsystem, namespace } => {
            broken_namespace(address, subsystem, namespace)
        }
    };
    match broken {
        Some(rule) => Err(Refusal::Invalid { field: "the device's place", rule }),
        None => Ok(()),
    }
}

fn broken_path(path: &str) -> Option<String> {
    if !path.starts_with('/') || path.contains('\0') {
        return Some(format!("{:?} is no absolute path", clipped(path, 200)));
    }
    (path.len() > PATH_BYTES_MAX).then(|| format!("its path is longer than {PATH_BYTES_MAX} bytes"))
}

fn broken_namespace(address: &SocketAddr, subsystem: &str, namespace: &str) -> Option<String> {
    if address.port() == 0 {
        return Some(format!("{address} has no port"));
    }
    if subsystem.is_empty() || subsystem.len() > NQN_BYTES_MAX {
        return Some(format!("a subsystem's name has 1 to {NQN_BYTES_MAX} bytes"));
    }
    let is_hex = namespace.len() == 32 && namespace.bytes().all(|byte| byte.is_ascii_hexdigit());
    (!is_hex).then(|| "a namespace is named by 32 hexadecimal digits".to_owned())
}

fn same_place(device: &Device, node: NodeId, locator: &Locator) -> bool {
    let is_remote = matches!(locator, Locator::RemoteNamespace { .. });
    let place = place_of(locator);
    place.is_some() && place == place_of(&device.locator) && (is_remote || device.node == node)
}

/// What no two devices can share; nothing for memory.
fn place_of(locator: &Locator) -> Option<String> {
    match locator {
        Locator::Memory { .. } => None,
        Locator::File { path, size_bytes: _ } | Locator::Block { path } => Some(path.clone()),
        Locator::RemoteNamespace { address: _, subsystem, namespace } => {
            Some(format!("namespace {} of {subsystem}", namespace.to_ascii_lowercase()))
        }
    }
}
