//! Who is lost: sites of which every node is silent, and single nodes whose siblings are heard.

use super::SETTLING;
use crate::domain::State;
use crate::domain::state::Group;
use crate::observed::Nodes;
use std::collections::BTreeMap;
use std::time::Duration;
use voute_schemas::event::FailoverMode;
use voute_schemas::ids::{NodeId, SiteId};

/// How groups may leave a site.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Leaving {
    /// All its nodes fell silent, for so long beyond detection.
    Site { silent_for: Duration },
    /// These nodes fell silent, for so long beyond detection, while others of the site are heard:
    /// only their groups leave.
    Nodes { silent: BTreeMap<NodeId, Duration> },
    /// A signal from outside says that it is going.
    Signal,
}

impl Leaving {
    /// Whether a group's policy lets it move by itself now.
    pub(super) fn lets(&self, state: &State, group: &Group) -> bool {
        let Some(policy) = group.policy.and_then(|policy| state.policy(policy)) else {
            return false;
        };
        let silent_for = match self {
            Leaving::Signal => return policy.rules.mode != FailoverMode::Manual,
            Leaving::Site { silent_for } => Some(silent_for),
            Leaving::Nodes { silent } => silent.get(&group.owner),
        };
        let hold_down = Duration::from_millis(policy.rules.hold_down_ms);
        policy.rules.mode == FailoverMode::Automatic
            && silent_for.is_some_and(|silent_for| *silent_for >= hold_down)
    }
}

/// The nodes of a site, as far as they were ever there: one that was admitted and never came, with
/// no adopted device, holds nothing that could be lost.
#[derive(Debug, Default)]
pub(super) struct Presence {
    /// When the least recently heard of those that are heard said its last word; nothing if none is
    /// heard.
    heard_at: Option<Duration>,
    /// Whether one may yet come: this process has only just started.
    settling: bool,
    /// Since when the silent ones say nothing, and for how long beyond detection.
    silent: BTreeMap<NodeId, (Duration, Duration)>,
}

impl Presence {
    pub(super) fn of(
        (state, nodes): (&State, &Nodes),
        site: SiteId,
        (silence, serves_since): (Duration, Duration),
        now: Duration,
    ) -> Self {
        let mut presence = Presence::default();
        for (id, _) in state.nodes().filter(|(_, node)| node.site == site) {
            let (heard_at, limit) = match nodes.get(&id) {
                Some(observed) => (observed.heard_at, observed.heard_at + silence),
                None if holds_devices(state, id) => {
                    (serves_since, serves_since + SETTLING.max(silence))
                }
                None => continue,
            };
            match now.checked_sub(limit) {
                Some(silent_for) => {
                    presence.silent.insert(id, (heard_at, silent_for));
                }
                None if nodes.contains_key(&id) => {
                    let least = presence.heard_at.map_or(heard_at, |least| least.min(heard_at));
                    presence.heard_at = Some(least);
                }
                None => presence.settling = true,
            }
        }
        presence
    }

    /// Whether a node of the site is heard.
    pub(super) fn is_heard(&self) -> bool {
        self.heard_at.is_some()
    }

    /// Whether every node that was ever there is heard, or may yet come.
    pub(super) fn is_complete(&self) -> bool {
        self.silent.is_empty()
    }

    /// How long the whole site has been silent beyond detection.
    pub(super) fn site_silent_for(&self) -> Option<Duration> {
        let is_gone = self.heard_at.is_none() && !self.settling;
        self.silent.values().map(|(_, silent_for)| *silent_for).min().filter(|_| is_gone)
    }

    /// The nodes that are lost while their siblings go on. A site that falls silent falls silent
    /// node by node: as long as a sibling has said nothing for `apart` after a node's last word, the
    /// two may belong to one loss, which is to be one failover.
    pub(super) fn silent_nodes(&self, apart: Duration) -> BTreeMap<NodeId, Duration> {
        let Some(sibling_heard_at) = self.heard_at else { return BTreeMap::new() };
        let is_alone = |last_word: Duration| sibling_heard_at >= last_word + apart;
        let alone = self.silent.iter().filter(|(_, (last_word, _))| is_alone(*last_word));
        alone.map(|(node, (_, silent_for))| (*node, *silent_for)).collect()
    }
}

/// Whether a node was ever there: it adopted a device.
pub(super) fn holds_devices(state: &State, node: NodeId) -> bool {
    state.devices().any(|(_, device)| device.node == node && device.extents().is_some())
}

/// The first sign that these nodes may be lost, the earliest of each one's: one that was not heard
/// since this process started gave it then at the latest.
pub(super) fn first_sign_of(
    state: &State,
    nodes: &Nodes,
    lost: impl Iterator<Item = NodeId>,
) -> Option<Duration> {
    let sign = |id: NodeId| match nodes.get(&id) {
        Some(observed) => Some(observed.first_sign()),
        None => holds_devices(state, id).then_some(Duration::ZERO),
    };
    lost.filter_map(sign).min()
}
