//! Makes answers of the state and what nodes say.

use super::answers::*;
use crate::domain::State;
use crate::domain::state::{Adoption, Group, Volume};
use crate::observed::Nodes;
use crate::service::unix_ms;
use crate::watcher::lease::Holder;
use std::time::Duration;
use voute_events::Safety;
use voute_schemas::command::LastUse;
use voute_schemas::contract::{GroupRole, GroupStatus};
use voute_schemas::event::{SiteCondition, SiteKind};
use voute_schemas::ids::*;

/// Most problems with volumes' content that are told one by one.
const CONTENT_PROBLEMS_MAX: usize = 32;

/// Everything that views are made of, at one moment.
pub(crate) struct Sight<'a> {
    pub(crate) state: &'a State,
    pub(crate) nodes: &'a Nodes,
    pub(crate) now: Duration,
    pub(crate) silence: Duration,
    /// Whether the log is safe enough for groups to move by themselves, as far as this process knows.
    pub(crate) safety: &'a Safety,
    /// Which control process watches the sites: what it knows counts.
    pub(crate) watch_holder: &'a Holder,
    /// Why nothing can be committed now.
    pub(crate) log_trouble: Option<String>,
}

impl Sight<'_> {
    pub(super) fn site_named(&self, id: SiteId) -> Named {
        named(id, self.state.site(id).map(|site| &site.name))
    }

    pub(super) fn node_named(&self, id: NodeId) -> Named {
        named(id, self.state.node(id).map(|node| &node.name))
    }

    fn pool_named(&self, id: PoolId) -> Named {
        named(id, self.state.pool(id).map(|pool| &pool.name))
    }

    pub(super) fn is_heard(&self, node: NodeId) -> bool {
        self.nodes.get(&node).is_some_and(|node| node.is_heard(self.now, self.silence))
    }

    /// What a node says of a group, if it can be heard now.
    pub(super) fn group_status(&self, node: NodeId, group: GroupId) -> Option<&GroupStatus> {
        let observed = self.nodes.get(&node)?;
        observed.is_heard(self.now, self.silence).then(|| observed.groups.get(&group))?
    }

    /// When a host used a volume last. Only its owner knows that nobody did, and only once it speaks of
    /// it as its owner.
    pub(super) fn last_use(&self, volume: VolumeId) -> LastUse {
        let Some(id) = self.state.volume(volume).map(|volume| volume.group) else {
            return LastUse::Unknown;
        };
        let uses = self.nodes.values().filter_map(|node| node.groups.get(&id)?.last_io_unix_ms);
        let of_owner = self.state.group(id).and_then(|group| {
            self.group_status(group.owner, id).filter(|status| status.epoch == group.epoch)
        });
        match (uses.max(), of_owner) {
            (Some(last), Some(_)) => LastUse::At(last),
            (None, Some(_)) => LastUse::Never,
            (_, None) => LastUse::Unknown,
        }
    }

    pub(crate) fn site(&self, id: SiteId) -> Option<SiteView> {
        let site = self.state.site(id)?;
        let nodes = || self.state.nodes().filter(move |(_, node)| node.site == id);
        let owned = |(node, _): (NodeId, _)| {
            self.state.groups_of_node(node).filter(|(_, group)| group.owner == node).count()
        };
        Some(SiteView {
            site: id,
            name: site.name.clone(),
            kind: site.kind,
            condition: site.condition,
            nodes: nodes().count(),
            nodes_heard: nodes().filter(|(node, _)| self.is_heard(*node)).count(),
            groups_owned: nodes().map(owned).sum(),
        })
    }

    pub(crate) fn node(&self, id: NodeId) -> Option<NodeView> {
        let node = self.state.node(id)?;
        let observed = self.nodes.get(&id).map(|observed| NodeObserved {
            heard: observed.is_heard(self.now, self.silence),
            silent_ms: milliseconds(self.now.saturating_sub(observed.heard_at)),
            incarnation: observed.incarnation,
            software: observed.software.clone(),
            engine: observed.engine.clone(),
            obeyed: observed.obeyed,
            links: observed.links.clone(),
        });
        Some(NodeView {
            node: id,
            name: node.name.clone(),
            site: self.site_named(node.site),
            number: node.number,
            portals: node.portals,
            observed,
        })
    }

    pub(crate) fn device(&self, id: DeviceId) -> Option<DeviceView> {
        let device = self.state.device(id)?;
        let (state, mut detail) = match &device.adoption {
            Adoption::Pending => ("added", String::new()),
            Adoption::Adopted { .. } => ("adopted", String::new()),
            Adoption::Rejected { cause } => ("rejected", cause.clone()),
        };
        let block_bytes = match &device.adoption {
            Adoption::Adopted { block_bytes, .. } => *block_bytes,
            Adoption::Pending | Adoption::Rejected { .. } => 0,
        };
        let status = self.nodes.get(&device.node).and_then(|node| node.devices.get(&id));
        // Why it was rejected is in the log; its node may not have told yet what it thinks now.
        let is_rejected = matches!(device.adoption, Adoption::Rejected { .. });
        if let Some(status) = status.filter(|status| !status.open && !is_rejected) {
            detail.clone_from(&status.detail);
        }
        let extents = device.extents();
        Some(DeviceView {
            device: id,
            name: device.name.clone(),
            node: self.node_named(device.node),
            pool: self.pool_named(device.pool),
            locator: device.locator.clone(),
            state: state.to_owned(),
            detail,
            extents: extents.map_or(0, |extents| extents.total()),
            extents_free: extents.map_or(0, |extents| extents.free()),
            block_bytes,
            open: status.map(|status| status.open),
        })
    }

    pub(crate) fn pool(&self, id: PoolId) -> Option<PoolView> {
        let pool = self.state.pool(id)?;
        let (capacity_bytes, free_bytes) = self.state.pool_space(id);
        Some(PoolView {
            pool: id,
            name: pool.name.clone(),
            site: self.site_named(pool.site),
            extent_bytes: pool.extent_bytes,
            devices: self.state.devices_of_pool(id).count(),
            capacity_bytes,
            free_bytes,
        })
    }

    pub(crate) fn policy(&self, id: PolicyId) -> Option<PolicyView> {
        let policy = self.state.policy(id)?;
        let groups = self.state.groups().filter(|(_, group)| group.policy == Some(id)).count();
        Some(PolicyView {
            policy: id,
            name: policy.name.clone(),
            rules: policy.rules.clone(),
            groups,
        })
    }

    pub(crate) fn host(&self, id: HostId) -> Option<HostView> {
        let host = self.state.host(id)?;
        Some(HostView {
            host: id,
            name: host.name.clone(),
            nqns: host.identity.nqns.clone(),
            iqns: host.identity.iqns.clone(),
            chap_secret: host.identity.chap_secret.clone(),
            nvme_secret: host.keys.secret.clone(),
            nvme_target_secret: host.keys.target_secret.clone(),
            mappings: self.state.mappings_of_host(id).count(),
        })
    }

    pub(crate) fn mapping(&self, volume: VolumeId, host: HostId) -> Option<MappingView> {
        let mapping = self.state.mapping(volume, host)?;
        let mapped = self.state.volume(volume);
        Some(MappingView {
            volume: named(volume, mapped.map(|volume| &volume.name)),
            host: named(host, self.state.host(host).map(|host| &host.name)),
            lun: mapping.lun,
            nsid: mapped.map_or(0, |volume| volume.number),
            read_only: mapping.read_only,
        })
    }

    pub(crate) fn failover(&self, id: FailoverId) -> Option<FailoverView> {
        let failover = self.state.failover(id)?;
        Some(FailoverView {
            failover: id,
            site: self.site_named(failover.site),
            sequence: failover.decided.0,
            evidence: failover.evidence.clone(),
            phases: failover.phases,
        })
    }

    pub(crate) fn volume(&self, id: VolumeId) -> Option<VolumeView> {
        let volume = self.state.volume(id)?;
        let group = self.state.group(volume.group)?;
        let owner_status = self.group_status(group.owner, volume.group);
        let not_armed_because = self.not_armed_because(volume.group, group);
        let owner_site = group.owner_side().map(|side| side.site);
        Some(VolumeView {
            volume: id,
            name: volume.name.clone(),
            number: volume.number,
            group: volume.group,
            size_bytes: volume.size_bytes,
            block_bytes: volume.block_bytes,
            presentation: volume.presentation,
            policy: group
                .policy
                .map(|policy| named(policy, self.state.policy(policy).map(|policy| &policy.name))),
            health: self.health(volume, group),
            owner: self.node_named(group.owner),
            owner_site: owner_site.map_or_else(unknown, |site| self.site_named(site)),
            epoch: group.epoch,
            last_common: group.last_common,
            sides: self.sides(volume.group, group),
            legs: self.legs(volume),
            mappings: self
                .state
                .mappings_of_volume(id)
                .filter_map(|(host, _)| self.mapping(id, host))
                .collect(),
            resync: owner_status.and_then(|status| status.resync),
            armed: not_armed_because.is_empty(),
            not_armed_because,
            last_io_unix_ms: owner_status.and_then(|status| status.last_io_unix_ms),
            opening: owner_status.and_then(|status| status.opening),
            verification: VerificationView {
                under_way: volume.check.under_way.map(|it| it.run.0),
                progress: owner_status
                    .and_then(|status| status.verify)
                    .filter(|progress| progress.volume == id),
                last: volume.check.last.as_ref().map(|it| it.run.0),
                found: volume.check.last.as_ref().map(|it| it.evidence.clone()),
                asked_unix_ms: volume.check.asked_unix_ms,
                lost: volume.check.lost.clone(),
            },
        })
    }

    fn sides(&self, id: GroupId, group: &Group) -> Vec<SideView> {
        let view = |side: &crate::domain::state::Side| {
            let status = self.group_status(side.node, id);
            SideView {
                site: self.site_named(side.site),
                node: self.node_named(side.node),
                in_sync: side.in_sync,
                role: status.map(|status| status.role),
                obeys: status.map(|status| status.epoch),
                token: status.map(|status| status.token),
            }
        };
        group.sides.iter().map(view).collect()
    }

    fn legs(&self, volume: &Volume) -> Vec<LegView> {
        let view = |leg: &crate::domain::state::Leg| {
            let status = self
                .group_status(leg.node, volume.group)
                .and_then(|status| status.legs.iter().find(|status| status.leg == leg.leg));
            LegView {
                leg: leg.leg,
                pool: self.pool_named(leg.pool),
                site: self.site_named(leg.site),
                node: self.node_named(leg.node),
                formatted: leg.formatted,
                state: status.map(|status| status.state),
                detail: status.map(|status| status.detail.clone()).unwrap_or_default(),
            }
        };
        volume.legs.iter().map(view).collect()
    }

    pub(crate) fn health(&self, volume: &Volume, group: &Group) -> VolumeHealth {
        let Some(owner) = self.group_status(group.owner, volume.group) else {
            return VolumeHealth::Down;
        };
        if volume.legs.iter().any(|leg| leg.node == group.owner && !leg.formatted) {
            return VolumeHealth::Preparing;
        }
        match owner.role {
            GroupRole::Serving if owner.epoch != group.epoch => VolumeHealth::Waiting,
            GroupRole::Serving if group.is_whole() => {
                let is_preparing = volume.legs.iter().any(|leg| !leg.formatted);
                if is_preparing { VolumeHealth::Preparing } else { VolumeHealth::Healthy }
            }
            GroupRole::Serving if owner.resync.is_some() => VolumeHealth::Resyncing,
            GroupRole::Serving => VolumeHealth::Degraded,
            GroupRole::Opening | GroupRole::Holding => VolumeHealth::Waiting,
            GroupRole::Following | GroupRole::Stopped => VolumeHealth::Down,
        }
    }

    /// What is known to be wrong with what volumes hold, and comparisons that do not come about.
    fn problems_of_content(&self, now_unix_ms: u64) -> Vec<String> {
        let period_ms = self.state.scrub().every_hours.map(|hours| u64::from(hours) * 3_600_000);
        let mut problems = Vec::new();
        for (_, volume) in self.state.volumes() {
            let (name, check) = (&volume.name, &volume.check);
            if check.lost_bytes() > 0 {
                problems.push(format!(
                    "volume {name}: {} bytes can be read from no leg; restore them, then compare it (`voute volume verify {name}`)",
                    check.lost_bytes()
                ));
            }
            if check.differing_regions() > 0 {
                problems.push(format!(
                    "volume {name}: {} regions differ between its legs (`voute volume verify {name} --repair`)",
                    check.differing_regions()
                ));
            }
            let is_overdue = |asked: u64, period: u64| {
                asked.saturating_add(period.saturating_mul(2)) <= now_unix_ms
            };
            if let (Some(asked), Some(period)) = (check.asked_unix_ms, period_ms)
                && volume.legs.len() > 1
                && is_overdue(asked, period)
            {
                let hours = now_unix_ms.saturating_sub(asked) / 3_600_000;
                problems.push(format!(
                    "volume {name}: its legs were to be compared every {} h, the last comparison was asked for {hours} h ago",
                    period / 3_600_000
                ));
            }
        }
        let more = problems.len().saturating_sub(CONTENT_PROBLEMS_MAX);
        problems.truncate(CONTENT_PROBLEMS_MAX);
        if more > 0 {
            problems
                .push(format!("{more} more problems with what volumes hold (`voute volume list`)"));
        }
        problems
    }

    /// What an operator should look at, most urgent first.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = self.unwatched_because();
        for own in self.safety.reasons.iter().chain(&self.safety.unasked) {
            if !problems.contains(own) {
                problems.push(own.clone());
            }
        }
        problems.extend(self.problems_of_content(unix_ms()));
        for (id, site) in self.state.sites() {
            if site.condition != SiteCondition::Normal {
                problems
                    .push(format!("site {}: {:?} ({})", site.name, site.condition, site.detail));
            } else if site.kind == SiteKind::Data
                && self.state.nodes().all(|(_, node)| node.site != id)
            {
                problems.push(format!("site {} has no node yet", site.name));
            }
        }
        for (id, node) in self.state.nodes() {
            if !self.is_heard(id) {
                problems.push(format!("node {} is not heard", node.name));
            }
        }
        for (id, device) in self.state.devices() {
            if let Some(view) = self.device(id)
                && (view.state == "rejected" || view.open == Some(false))
            {
                problems.push(format!("device {}: {}", device.name, view.detail));
            }
        }
        problems
    }
}

pub(crate) fn named(id: impl std::fmt::Display, name: Option<&voute_schemas::Name>) -> Named {
    let id = id.to_string();
    let name = name.map_or_else(|| id.clone(), ToString::to_string);
    Named { id, name }
}

fn unknown() -> Named {
    Named { id: String::new(), name: "unknown".into() }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
