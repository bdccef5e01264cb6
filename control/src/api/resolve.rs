//! From what people write to identifiers, and pages of lists.

use super::answers::Page;
use super::failure::Failure;
use super::requests::{LIST_MAX, ListQuery, Reference};
use crate::domain::State;
use std::str::FromStr;
use voute_schemas::Name;
use voute_schemas::ids::*;

/// Finds by name, else by identifier.
fn find<I: FromStr>(
    noun: &str,
    reference: &str,
    by_name: impl FnOnce(&Name) -> Option<I>,
    exists: impl FnOnce(&I) -> bool,
) -> Result<I, Failure> {
    let named = Name::new(reference).ok().and_then(|name| by_name(&name));
    let found = named.or_else(|| reference.parse().ok().filter(exists));
    found.ok_or_else(|| Failure::not_found(noun, reference))
}

macro_rules! resolvers {
    ($($function:ident: $id:ty, $named:ident, $get:ident, $noun:literal;)*) => {
        $(
            pub(super) fn $function(state: &State, reference: &Reference) -> Result<$id, Failure> {
                find($noun, &reference.0, |name| state.$named(name), |id| state.$get(*id).is_some())
            }
        )*
    };
}

resolvers! {
    site: SiteId, site_named, site, "site";
    node: NodeId, node_named, node, "node";
    pool: PoolId, pool_named, pool, "pool";
    device: DeviceId, device_named, device, "device";
    policy: PolicyId, policy_named, policy, "policy";
    volume: VolumeId, volume_named, volume, "volume";
    host: HostId, host_named, host, "host";
    credential: CredentialId, credential_named, credential, "credential";
}

/// A group by its identifier, or by a volume in it.
pub(super) fn group(state: &State, reference: &Reference) -> Result<GroupId, Failure> {
    let by_volume = |name: &Name| {
        let volume = state.volume_named(name)?;
        Some(state.volume(volume)?.group)
    };
    find("group", &reference.0, by_volume, |id| state.group(*id).is_some()).or_else(|failure| {
        let volume = volume(state, reference).map_err(|_| failure)?;
        Ok(state.volume(volume).expect("it was found just now").group)
    })
}

/// A leg of a volume, by its identifier or its site.
pub(super) fn leg(state: &State, of: VolumeId, reference: &Reference) -> Result<LegId, Failure> {
    let volume = state.volume(of).ok_or_else(|| Failure::not_found("volume", &of.to_string()))?;
    if let Ok(site) = site(state, reference)
        && let Some(leg) = volume.legs.iter().find(|leg| leg.site == site)
    {
        return Ok(leg.leg);
    }
    let parsed = reference.0.parse().ok();
    let found = volume.legs.iter().find(|leg| Some(leg.leg) == parsed);
    found.map(|leg| leg.leg).ok_or_else(|| Failure::not_found("leg", &reference.0))
}

/// One page of things ordered by identifier.
pub(super) fn page<I, T>(
    query: &ListQuery,
    ids: impl Iterator<Item = I>,
    view: impl Fn(I) -> Option<T>,
) -> Result<Page<T>, Failure>
where
    I: Copy + Ord + FromStr + ToString,
{
    let limit = query.limit.unwrap_or(LIST_MAX);
    if !(1..=LIST_MAX).contains(&limit) {
        return Err(Failure::bad_request(
            "bad-query",
            format!("limit {limit} is not in 1..={LIST_MAX}"),
            "leave it out, or ask page by page",
        ));
    }
    let after = match &query.after {
        None => None,
        Some(text) => Some(text.parse::<I>().map_err(|_| {
            Failure::bad_request(
                "bad-query",
                "`after` is no identifier",
                "pass `next` of the page before",
            )
        })?),
    };
    let mut left = ids.filter(|id| after.is_none_or(|after| *id > after)).peekable();
    let mut items = Vec::new();
    let mut last = None;
    while items.len() < limit
        && let Some(id) = left.next()
    {
        items.extend(view(id));
        last = Some(id);
    }
    let next = if left.peek().is_some() { last.map(|id| id.to_string()) } else { None };
    Ok(Page { items, next })
}
