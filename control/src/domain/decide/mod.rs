//! Whether a command may happen, and what then happens. One file per noun.

mod access;
mod checks;
pub mod escalations;
mod failovers;
mod hosts;
mod log_sites;
mod places;
mod policies;
mod space;
mod volumes;

use super::refusal::{Noun, Refusal};
use super::state::*;
use uuid::Uuid;
use voute_schemas::command::Command;
use voute_schemas::commit::REASON_MAX;
use voute_schemas::event::Event;
use voute_schemas::ids::*;

/// What follows from a command at a state: at least one event, all effective together. Only for
/// [`Command::Escalate`] the list may be empty: everything that it asks for is so already.
///
/// # Errors
/// [`Refusal`]: nothing may happen, and why.
pub fn decide(state: &State, command: &Command) -> Result<Vec<Event>, Refusal> {
    if let Command::CreateCluster { cluster, name, log_site } = command {
        return access::create_cluster(state, *cluster, name, log_site);
    }
    if state.cluster().is_none() {
        return Err(Refusal::NoCluster);
    }
    match command {
        Command::CreateCluster { .. } => unreachable!("handled above"),
        Command::IssueCredential { credential, name, role, verifier } => {
            access::issue_credential(state, *credential, name, *role, *verifier)
        }
        Command::RevokeCredential { credential } => access::revoke_credential(state, *credential),
        Command::ChangeLogSites { add, remove } => log_sites::change(state, add, remove),
        Command::RecordReseeding { name, size, root } => {
            log_sites::record_reseeding(state, name, *size, *root)
        }
        Command::AddSite { site, name, kind } => places::add_site(state, *site, name, *kind),
        Command::RemoveSite { site } => places::remove_site(state, *site),
        Command::ReportSiteCondition { site, condition, source, detail } => {
            places::report_site_condition(state, *site, *condition, *source, detail)
        }
        Command::AddNode { node, name, site, portals, verifier } => {
            places::add_node(state, *node, name, *site, *portals, *verifier)
        }
        Command::ChangeNodePortals { node, portals } => {
            places::change_node_portals(state, *node, *portals)
        }
        Command::RemoveNode { node } => places::remove_node(state, *node),
        Command::CreatePool { pool, name, site, extent_bytes } => {
            places::create_pool(state, *pool, name, *site, *extent_bytes)
        }
        Command::RemovePool { pool } => places::remove_pool(state, *pool),
        Command::AddDevice { device, name, node, pool, locator, overwrite } => {
            places::add_device(state, *device, name, (*node, *pool), locator, *overwrite)
        }
        Command::RemoveDevice { device } => places::remove_device(state, *device),
        Command::CreatePolicy { policy, name, rules } => {
            policies::create(state, *policy, name, rules)
        }
        Command::ChangePolicy { policy, rules } => policies::change(state, *policy, rules),
        Command::RemovePolicy { policy } => policies::remove(state, *policy),
        Command::CreateVolume { volume, group, name, size_bytes, block_bytes, legs, policy } => {
            let wanted = volumes::Wanted {
                volume: *volume,
                group: *group,
                name,
                size_bytes: *size_bytes,
                block_bytes: *block_bytes,
                legs,
                policy: *policy,
            };
            volumes::create(state, &wanted)
        }
        Command::ResizeVolume { volume, size_bytes } => {
            volumes::resize(state, *volume, *size_bytes)
        }
        Command::DeleteVolume { volume, force, last_used, now_unix_ms } => {
            volumes::delete(state, *volume, *force, *last_used, *now_unix_ms)
        }
        Command::PresentVolume { volume, presentation } => {
            volumes::present(state, *volume, *presentation)
        }
        Command::AddLeg { volume, leg } => volumes::add_leg(state, *volume, *leg),
        Command::RemoveLeg { volume, leg } => volumes::remove_leg(state, *volume, *leg),
        Command::VerifyVolume { volume, repair, now_unix_ms } => {
            checks::verify(state, *volume, *repair, *now_unix_ms)
        }
        Command::ScheduleScrub { every_hours, repair } => {
            checks::schedule(state, *every_hours, *repair)
        }
        Command::AddHost { host, name, identity } => hosts::add(state, *host, name, identity),
        Command::ChangeHost { host, identity } => hosts::change(state, *host, identity),
        Command::ChangeHostKeys { host, keys } => hosts::change_keys(state, *host, keys),
        Command::RemoveHost { host } => hosts::remove(state, *host),
        Command::MapVolume { volume, host, lun, read_only } => {
            hosts::map_volume(state, *volume, *host, *lun, *read_only)
        }
        Command::UnmapVolume { volume, host } => hosts::unmap_volume(state, *volume, *host),
        Command::MoveOwner { group, to } => failovers::move_owner(state, *group, *to),
        Command::FailOverSite { failover, site, evidence, attested } => {
            failovers::fail_over_site(state, *failover, *site, evidence, attested)
        }
        Command::RecordFailover { failover, phases } => {
            failovers::record(state, *failover, *phases)
        }
        Command::Escalate { node, requests } => {
            escalations::decide_together(state, *node, requests)
        }
    }
}

/// Lookups that refuse what is not there.
macro_rules! known {
    ($($function:ident $getter:ident: $id:ty => $entity:ty, $noun:expr;)*) => {
        $(
            fn $function(state: &State, id: $id) -> Result<&$entity, Refusal> {
                state.$getter(id).ok_or(Refusal::Unknown { noun: $noun, id: id.0 })
            }
        )*
    };
}

known! {
    known_credential credential: CredentialId => Credential, Noun::Credential;
    known_site site: SiteId => Site, Noun::Site;
    known_node node: NodeId => Node, Noun::Node;
    known_pool pool: PoolId => Pool, Noun::Pool;
    known_device device: DeviceId => Device, Noun::Device;
    known_policy policy: PolicyId => Policy, Noun::Policy;
    known_group group: GroupId => Group, Noun::Group;
    known_volume volume: VolumeId => Volume, Noun::Volume;
    known_host host: HostId => Host, Noun::Host;
    known_failover failover: FailoverId => Failover, Noun::Failover;
}

/// A new thing needs an identifier and a name of its own.
fn must_be_new(
    noun: Noun,
    (id, id_exists): (Uuid, bool),
    (name, name_exists): (&voute_schemas::Name, bool),
) -> Result<(), Refusal> {
    if id_exists {
        return Err(Refusal::DuplicateId { noun, id });
    }
    if name_exists {
        return Err(Refusal::DuplicateName { noun, name: name.clone() });
    }
    Ok(())
}

fn text_must_fit(field: &'static str, text: &str) -> Result<(), Refusal> {
    if text.len() <= REASON_MAX {
        return Ok(());
    }
    let rule = format!("it has {} bytes, use at most {REASON_MAX}", text.len());
    Err(Refusal::Invalid { field, rule })
}

/// The text, cut to `bytes_max`: for texts of machines, which no one could shorten.
fn clipped(text: &str, bytes_max: usize) -> String {
    let mut end = text.len().min(bytes_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}
