//! How each kind of thing is a row.

use crate::cli::locator::show_locator;
use crate::cli::quantity::show_size;
use crate::print::table::Row;
use crate::print::time::show_time;
use voute_control::api::answers::{
    CredentialView, DeviceView, FailoverView, HostView, LegView, LogSiteView, MappingView,
    NodeView, PolicyView, PoolView, SideView, SiteView, VolumeHealth, VolumeView,
};
use voute_schemas::Name;

impl Row for SiteView {
    const HEADINGS: &'static [&'static str] =
        &["name", "kind", "condition", "nodes", "heard", "owns", "id"];
    fn cells(&self) -> Vec<String> {
        vec![
            self.name.to_string(),
            format!("{:?}", self.kind),
            format!("{:?}", self.condition),
            self.nodes.to_string(),
            self.nodes_heard.to_string(),
            self.groups_owned.to_string(),
            self.site.to_string(),
        ]
    }
}

impl Row for NodeView {
    const HEADINGS: &'static [&'static str] =
        &["name", "site", "state", "nvme", "iscsi", "link", "obeys", "id"];
    fn cells(&self) -> Vec<String> {
        let (state, obeys) = match &self.observed {
            Some(observed) if observed.heard => ("heard".to_owned(), observed.obeyed.to_string()),
            Some(observed) => {
                (format!("silent {} s", observed.silent_ms / 1_000), observed.obeyed.to_string())
            }
            None => ("never heard".to_owned(), "-".to_owned()),
        };
        vec![
            self.name.to_string(),
            self.site.name.clone(),
            state,
            self.portals.nvme.to_string(),
            self.portals.iscsi.to_string(),
            self.portals.link.to_string(),
            obeys,
            self.node.to_string(),
        ]
    }
}

impl Row for DeviceView {
    const HEADINGS: &'static [&'static str] =
        &["name", "node", "pool", "state", "free", "extents", "where", "detail"];
    fn cells(&self) -> Vec<String> {
        let state = match self.open {
            Some(false) if self.state == "adopted" => "adopted, not open".to_owned(),
            _ => self.state.clone(),
        };
        vec![
            self.name.to_string(),
            self.node.name.clone(),
            self.pool.name.clone(),
            state,
            self.extents_free.to_string(),
            self.extents.to_string(),
            show_locator(&self.locator),
            self.detail.clone(),
        ]
    }
}

impl Row for PoolView {
    const HEADINGS: &'static [&'static str] =
        &["name", "site", "devices", "capacity", "free", "extent", "id"];
    fn cells(&self) -> Vec<String> {
        vec![
            self.name.to_string(),
            self.site.name.clone(),
            self.devices.to_string(),
            show_size(self.capacity_bytes),
            show_size(self.free_bytes),
            show_size(self.extent_bytes),
            self.pool.to_string(),
        ]
    }
}

impl Row for VolumeView {
    const HEADINGS: &'static [&'static str] =
        &["name", "size", "health", "served by", "sides", "policy", "fails over", "nsid", "id"];
    fn cells(&self) -> Vec<String> {
        vec![
            self.name.to_string(),
            show_size(self.size_bytes),
            health_words(self),
            self.owner_site.name.clone(),
            self.sides.iter().map(side_words).collect::<Vec<_>>().join(", "),
            self.policy.as_ref().map_or_else(|| "-".to_owned(), |policy| policy.name.clone()),
            if self.armed { "yes" } else { "no" }.to_owned(),
            self.number.to_string(),
            self.volume.to_string(),
        ]
    }
}

/// A volume's health in words, with the progress of a resync.
#[must_use]
pub fn health_words(volume: &VolumeView) -> String {
    let word = match volume.health {
        VolumeHealth::Healthy => "healthy",
        VolumeHealth::Degraded => "degraded",
        VolumeHealth::Resyncing => "resyncing",
        VolumeHealth::Preparing => "preparing",
        VolumeHealth::Waiting => "waiting",
        VolumeHealth::Down => "down",
    };
    match &volume.resync {
        Some(progress) if progress.total_bytes > 0 => {
            format!("{word} {} %", progress.copied_bytes.saturating_mul(100) / progress.total_bytes)
        }
        _ => word.to_owned(),
    }
}

fn side_words(side: &SideView) -> String {
    format!("{}{}", side.site.name, if side.in_sync { "" } else { " (not in sync)" })
}

impl Row for LegView {
    const HEADINGS: &'static [&'static str] =
        &["site", "pool", "node", "formatted", "state", "detail", "id"];
    fn cells(&self) -> Vec<String> {
        vec![
            self.site.name.clone(),
            self.pool.name.clone(),
            self.node.name.clone(),
            if self.formatted { "yes" } else { "no" }.to_owned(),
            self.state.map_or_else(|| "not heard".to_owned(), |state| format!("{state:?}")),
            self.detail.clone(),
            self.leg.to_string(),
        ]
    }
}

impl Row for SideView {
    const HEADINGS: &'static [&'static str] =
        &["site", "node", "in sync", "role", "obeys", "token"];
    fn cells(&self) -> Vec<String> {
        let known = |text: Option<String>| text.unwrap_or_else(|| "not heard".to_owned());
        vec![
            self.site.name.clone(),
            self.node.name.clone(),
            if self.in_sync { "yes" } else { "no" }.to_owned(),
            known(self.role.map(|role| format!("{role:?}"))),
            known(self.obeys.map(|epoch| epoch.to_string())),
            known(self.token.map(|token| token.to_string())),
        ]
    }
}

impl Row for MappingView {
    const HEADINGS: &'static [&'static str] = &["volume", "host", "lun", "nsid", "access"];
    fn cells(&self) -> Vec<String> {
        vec![
            self.volume.name.clone(),
            self.host.name.clone(),
            self.lun.to_string(),
            self.nsid.to_string(),
            if self.read_only { "read only" } else { "read, write" }.to_owned(),
        ]
    }
}

impl Row for HostView {
    const HEADINGS: &'static [&'static str] =
        &["name", "volumes", "chap", "nvme secret", "nvme target secret", "names", "id"];
    fn cells(&self) -> Vec<String> {
        let shown = |secret: &Option<Name>| {
            secret.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string)
        };
        vec![
            self.name.to_string(),
            self.mappings.to_string(),
            shown(&self.chap_secret),
            shown(&self.nvme_secret),
            shown(&self.nvme_target_secret),
            self.nqns.iter().chain(&self.iqns).cloned().collect::<Vec<_>>().join(" "),
            self.host.to_string(),
        ]
    }
}

impl Row for PolicyView {
    const HEADINGS: &'static [&'static str] =
        &["name", "mode", "hold down", "preferred site", "failback", "volumes", "id"];
    fn cells(&self) -> Vec<String> {
        vec![
            self.name.to_string(),
            format!("{:?}", self.rules.mode),
            format!("{} ms", self.rules.hold_down_ms),
            self.rules.preferred_site.map_or_else(|| "-".to_owned(), |site| site.to_string()),
            if self.rules.failback { "yes" } else { "no" }.to_owned(),
            self.groups.to_string(),
            self.policy.to_string(),
        ]
    }
}

impl Row for FailoverView {
    const HEADINGS: &'static [&'static str] = &[
        "commit",
        "decided",
        "site",
        "condition",
        "left behind",
        "detection ms",
        "commit ms",
        "lease ms",
        "open ms",
        "first io ms",
        "id",
    ];
    fn cells(&self) -> Vec<String> {
        let phase = |pick: fn(&voute_schemas::event::FailoverPhases) -> Option<u64>| {
            self.phases
                .as_ref()
                .and_then(pick)
                .map_or_else(|| "-".to_owned(), |milliseconds| milliseconds.to_string())
        };
        vec![
            self.sequence.to_string(),
            show_time(self.evidence.decided_unix_ms),
            self.site.name.clone(),
            format!("{:?}", self.evidence.condition),
            self.evidence.left_behind_total.to_string(),
            phase(|phases| Some(phases.detection_ms)),
            phase(|phases| Some(phases.commit_ms)),
            phase(|phases| Some(phases.lease_wait_ms)),
            phase(|phases| Some(phases.open_ms)),
            phase(|phases| phases.first_io_ms),
            self.failover.to_string(),
        ]
    }
}

impl Row for CredentialView {
    const HEADINGS: &'static [&'static str] = &["name", "role", "id"];
    fn cells(&self) -> Vec<String> {
        vec![self.name.to_string(), format!("{:?}", self.role), self.credential.to_string()]
    }
}

impl Row for LogSiteView {
    const HEADINGS: &'static [&'static str] = &["name", "heard", "signed to", "key"];
    fn cells(&self) -> Vec<String> {
        let heard = match (self.heard, self.heard_ms_ago) {
            (true, _) => "yes".to_owned(),
            (false, Some(ago)) => format!("{} s ago", ago / 1_000),
            (false, None) => "no".to_owned(),
        };
        vec![self.name.clone(), heard, self.signed.to_string(), self.key.clone()]
    }
}
