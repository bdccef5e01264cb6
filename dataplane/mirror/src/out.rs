//! Where the machines of a mirror put what they want done, and find again what it was for.

use crate::action::{Action, DeviceKind, DeviceRequest, DeviceTag, LinkTag};
use crate::keeper::DevicePurpose;
use crate::link::LinkRequest;
use crate::owner::LinkPurpose;
use crate::pending::Pending;
use std::collections::VecDeque;
use voute_schemas::{GroupId, LegId, NodeId};

/// For whom an I/O on a local leg is done.
#[derive(Clone, Debug)]
pub(crate) enum DeviceClient {
    /// The keeper of a group, by its life: a group that went and came back has another keeper.
    Keeper(GroupId, u64, DevicePurpose),
    /// The wiping of a retired leg.
    Wipe(LegId),
}

/// For whom a request to a peer is sent.
#[derive(Clone, Debug)]
pub(crate) enum LinkClient {
    /// The owner of a group, and the round (see [`crate::peer::Peer`]) in which it was sent.
    Owner(GroupId, u64, LinkPurpose),
    /// The lease of a channel, asked for at this time.
    Grant(NodeId, std::time::Duration),
}

#[derive(Clone, Debug)]
pub(crate) struct Out {
    pub(crate) actions: VecDeque<Action>,
    pub(crate) devices: Pending<DeviceClient>,
    pub(crate) links: Pending<LinkClient>,
    bars: u32,
    sessions: u64,
}

impl Out {
    pub(crate) fn new(first_bar: u32) -> Self {
        Out {
            actions: VecDeque::new(),
            devices: Pending::new(),
            links: Pending::new(),
            bars: first_bar,
            sessions: 0,
        }
    }

    pub(crate) fn device(
        &mut self,
        client: DeviceClient,
        leg: LegId,
        offset: u64,
        kind: DeviceKind,
    ) {
        let tag = DeviceTag(self.devices.insert(client));
        self.actions.push_back(Action::Device(DeviceRequest { tag, leg, offset, kind }));
    }

    pub(crate) fn link(&mut self, client: LinkClient, peer: NodeId, request: LinkRequest) {
        let tag = LinkTag(self.links.insert(client));
        self.actions.push_back(Action::Link { peer, tag, request });
    }

    /// A bar that this process never gave out before.
    pub(crate) fn next_bar(&mut self) -> crate::link::Bar {
        self.bars = self.bars.wrapping_add(1);
        crate::link::Bar(self.bars)
    }

    /// A number above all before: sessions of tokens, lives of owners and keepers, rounds.
    pub(crate) fn next_session(&mut self) -> u64 {
        self.sessions += 1;
        self.sessions
    }
}
