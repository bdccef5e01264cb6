//! What was told to the control plane, so that only changes are told again.

use std::collections::{BTreeMap, HashMap};
use voute_schemas::contract::{GroupStatus, LinkStatus};
use voute_schemas::{GroupId, NodeId};

/// Groups as they were last told on this stream.
#[derive(Default)]
pub(crate) struct Told {
    groups: HashMap<GroupId, GroupStatus>,
}

impl Told {
    /// The groups that changed since they were told.
    pub(crate) fn changes(&mut self, groups: Vec<GroupStatus>) -> Vec<GroupStatus> {
        let before = std::mem::take(&mut self.groups);
        let mut changed = Vec::new();
        for status in groups {
            if before.get(&status.group) != Some(&status) {
                changed.push(status.clone());
            }
            self.groups.insert(status.group, status);
        }
        changed
    }
}

/// Joins what the shards say of their channels: a peer is up when every channel to it is, its lease
/// is the least of theirs.
pub(crate) fn joined(links: Vec<LinkStatus>) -> Vec<LinkStatus> {
    let mut peers: BTreeMap<NodeId, LinkStatus> = BTreeMap::new();
    for link in links {
        peers
            .entry(link.peer)
            .and_modify(|joined| {
                joined.up &= link.up;
                joined.lease_ms = joined.lease_ms.into_iter().chain(link.lease_ms).min();
            })
            .or_insert(link);
    }
    peers.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use voute_schemas::contract::GroupRole;
    use voute_schemas::{Epoch, Token};

    fn status(group: GroupId, role: GroupRole) -> GroupStatus {
        GroupStatus {
            group,
            epoch: Epoch::ZERO,
            role,
            token: Token::default(),
            legs: vec![],
            attestation: None,
            resync: None,
            last_io_unix_ms: None,
            opening: None,
            verify: None,
        }
    }

    #[test]
    fn only_what_changed_is_told() {
        let mut told = Told::default();
        let (a, b) = (GroupId::generate(), GroupId::generate());
        let all = vec![status(a, GroupRole::Opening), status(b, GroupRole::Following)];
        assert_eq!(told.changes(all.clone()).len(), 2);
        assert_eq!(told.changes(all), []);
        let later = vec![status(a, GroupRole::Serving), status(b, GroupRole::Following)];
        assert_eq!(told.changes(later), [status(a, GroupRole::Serving)]);
    }

    #[test]
    fn a_link_is_as_good_as_its_worst_channel() {
        let peer = NodeId::generate();
        let link = |up, lease_ms| LinkStatus { peer, up, lease_ms };
        let links = joined(vec![link(true, Some(900)), link(false, Some(-5)), link(true, None)]);
        assert_eq!(links, [link(false, Some(-5))]);
    }
}
