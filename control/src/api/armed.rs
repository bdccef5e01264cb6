//! Whether a volume would fail over by itself, and if not, why.

use super::views::Sight;
use crate::domain::state::{Group, Side};
use crate::watcher::lease::Holder;
use voute_schemas::contract::{GroupStatus, LegState, ResyncProgress};
use voute_schemas::event::{FailoverMode, SiteCondition};
use voute_schemas::ids::*;

impl Sight<'_> {
    /// Why a group would not fail over by itself if its owner's node or site were lost now. It asks
    /// for what the site watcher and the log would ask for.
    pub(crate) fn not_armed_because(&self, id: GroupId, group: &Group) -> Vec<String> {
        let mut causes = self.unwatched_because();
        causes.extend(self.log_trouble.iter().map(|cause| format!("the log: {cause}")));
        causes.extend(self.not_allowed_because(group));
        let Some(other) = group.sides.iter().find(|side| side.node != group.owner) else {
            causes.push("it has one leg only (`voute leg add` gives it a second)".into());
            return causes;
        };
        causes.extend(self.not_current_because(id, group, other));
        causes.extend(self.not_attested_because(id, group, other));
        causes
    }

    /// Why no site would fail over: what hinders the control process that watches, or that none does.
    pub(crate) fn unwatched_because(&self) -> Vec<String> {
        match self.watch_holder {
            Holder::Own => self.safety.reasons.clone(),
            Holder::Other(reasons) => reasons.clone(),
            Holder::Nobody => vec!["no control process watches the sites".into()],
        }
    }

    /// What the policy and the condition of the owner's site say.
    fn not_allowed_because(&self, group: &Group) -> Vec<String> {
        let mut causes = Vec::new();
        match group.policy.and_then(|policy| self.state.policy(policy)) {
            None => causes.push("it has no failover policy, so it moves only when told".into()),
            Some(policy) => match policy.rules.mode {
                FailoverMode::Automatic => {}
                FailoverMode::OnSignal => causes.push(format!(
                    "its policy {} moves it only on signals from outside",
                    policy.name
                )),
                FailoverMode::Manual => {
                    causes.push(format!("its policy {} moves it only when told", policy.name));
                }
            },
        }
        let owner_site = group.owner_side().and_then(|side| self.state.site(side.site));
        if let Some(site) = owner_site.filter(|it| it.condition == SiteCondition::Maintenance) {
            causes.push(format!(
                "its site {} is in maintenance, so that its silence is no sign (`voute site signal {} normal` ends it)",
                site.name, site.name
            ));
        }
        causes
    }

    /// What the log says of the other side.
    fn not_current_because(&self, id: GroupId, group: &Group, other: &Side) -> Option<String> {
        let site = self.site_named(other.site).name;
        if !other.in_sync {
            let resync = self.group_status(group.owner, id).and_then(|status| status.resync);
            let progress = resync.filter(|it| it.site == other.site).map(progress);
            return Some(format!(
                "its side at {site} is not in sync{}",
                progress.unwrap_or_default()
            ));
        }
        let is_formatted = self.state.side_is_formatted(group, other.site);
        (!is_formatted).then(|| format!("its legs at {site} are not formatted yet"))
    }

    /// What the other side's node says.
    fn not_attested_because(&self, id: GroupId, group: &Group, other: &Side) -> Option<String> {
        let node = self.node_named(other.node).name;
        let is_connected =
            self.nodes.get(&other.node).is_some_and(|node| node.connected_since.is_some());
        let Some(status) = self.group_status(other.node, id).filter(|_| is_connected) else {
            let is_heard = is_connected && self.is_heard(other.node);
            let what = if is_heard { "says nothing of it yet" } else { "is not heard" };
            return Some(format!("its node {node} {what}"));
        };
        if status.epoch != group.epoch {
            return Some(format!("its node {node} does not obey epoch {} yet", group.epoch));
        }
        match status.attestation {
            // Whether the owner is silent and its lease has run out shows once it is lost.
            Some(attestation) if attestation.legs_open => None,
            Some(_) => Some(format!("its legs on node {node} cannot serve{}", trouble(status))),
            None if other.in_sync => Some(format!("its node {node} does not vouch for it yet")),
            // That it is not in sync is said already.
            None => None,
        }
    }
}

fn progress(resync: ResyncProgress) -> String {
    let ResyncProgress { copied_bytes, total_bytes, .. } = resync;
    format!(" ({} of {} MiB copied)", copied_bytes >> 20, total_bytes >> 20)
}

/// The first leg that is not as it should be.
fn trouble(status: &GroupStatus) -> String {
    let leg = status.legs.iter().find(|leg| leg.state != LegState::Consistent);
    leg.map(|leg| match leg.detail.as_str() {
        "" => format!(" ({:?})", leg.state),
        detail => format!(" ({:?}: {detail})", leg.state),
    })
    .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::State;
    use crate::observed::Nodes;
    use std::time::Duration;
    use voute_events::Safety;
    use voute_schemas::{Epoch, Sequence};

    #[test]
    fn a_log_that_is_unsafe_or_does_not_answer_disarms_every_group() {
        let owner = NodeId::generate();
        let side = |node, in_sync| Side {
            site: SiteId::generate(),
            node,
            in_sync,
            since: Sequence::default(),
        };
        let group = Group {
            owner,
            epoch: Epoch::ZERO,
            last_common: Epoch::ZERO,
            sides: vec![side(owner, true), side(NodeId::generate(), true)],
            volumes: vec![],
            policy: None,
            confirmed_incarnation: None,
            owner_since_unix_ms: None,
            moved_when_asked: false,
        };
        let safety = Safety {
            reasons: vec!["it does not flush before it acknowledges".to_owned()],
            unasked: vec!["a server that is lost says nothing against failing over".to_owned()],
        };
        let sight = Sight {
            state: &State::default(),
            nodes: &Nodes::new(),
            now: Duration::ZERO,
            silence: Duration::from_secs(2),
            safety: &safety,
            watch_holder: &Holder::Own,
            log_trouble: Some("it does not answer".to_owned()),
        };
        let causes = sight.not_armed_because(GroupId::generate(), &group);
        assert_eq!(causes[0], "it does not flush before it acknowledges");
        assert_eq!(causes[1], "the log: it does not answer");
        assert_eq!(causes.len(), 4, "no policy, and a node that is not heard: {causes:?}");
        // What the control process that watches says counts, not what this one thinks of the log.
        let other = Holder::Other(vec!["no monitoring address was given".to_owned()]);
        let sight = Sight { watch_holder: &other, safety: &Safety::default(), ..sight };
        assert_eq!(sight.unwatched_because(), ["no monitoring address was given"]);
        assert!(sight.problems().iter().any(|it| it.contains("monitoring")));
        let sight = Sight { watch_holder: &Holder::Nobody, ..sight };
        assert_eq!(sight.unwatched_because(), ["no control process watches the sites"]);
    }
}
