//! The node contract's server: one WebSocket per node, specs down, statuses and escalations up.
//!
//! ```text
//! opened ─Hello─▶ live ──────────────▶ closed
//!                  │  newer stream of the node, silence, stopped projection
//!                  └─ Goodbye ───────▶ closed
//! ```
//!
//! What changed for a node is gathered as a set, not as a queue: a slow node gets fewer and larger
//! specs, never a longer backlog.

pub mod answers;
mod connection;
mod spec;

pub(crate) use connection::{cannot_serve, serve};

use crate::domain::{State, Touched, touched};
use crate::observed::Nodes;
use crate::service::Changes;
use crate::watcher::speaks;
use answers::Answers;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::Notify;
use voute_schemas::command::Escalation;
use voute_schemas::contract::{GroupRole, GroupStatus, Hello, ToNode};
use voute_schemas::mutant::{self, Mutant};
use voute_schemas::times::Times;
use voute_schemas::{Epoch, Event, GroupId, NodeId, SiteId};

/// Answers that wait for one node's socket; a node that does not read them is dropped.
const OUTBOX_MAX: usize = 256;

/// Live streams by node.
#[derive(Debug, Default)]
pub struct Streams {
    live: Mutex<HashMap<NodeId, Arc<Live>>>,
    answers: Mutex<HashMap<NodeId, Answers>>,
}

/// What others can tell a live stream.
#[derive(Debug)]
pub(crate) struct Live {
    incarnation: u64,
    /// What the node was not told yet.
    news: Mutex<News>,
    has_news: Notify,
}

#[derive(Debug, Default)]
struct News {
    touched: Touched,
    outbox: Vec<ToNode>,
    /// When the heartbeat was due that is to be sent, microseconds.
    heartbeat_us: Option<u64>,
    goodbye: Option<String>,
}

impl Live {
    fn news(&self) -> MutexGuard<'_, News> {
        self.news.lock().expect("no holder of the news panics")
    }

    fn say_goodbye(&self, cause: &str) {
        self.news().goodbye.get_or_insert_with(|| cause.to_owned());
        self.has_news.notify_one();
    }

    fn send(&self, message: ToNode) {
        let mut news = self.news();
        if news.outbox.len() < OUTBOX_MAX {
            news.outbox.push(message);
        } else {
            news.goodbye.get_or_insert_with(|| "the node does not read its answers".to_owned());
        }
        drop(news);
        self.has_news.notify_one();
    }

    /// Has the node give this back with its next status.
    fn beat(&self, now: Duration) {
        self.news().heartbeat_us = Some(u64::try_from(now.as_micros()).unwrap_or(u64::MAX).max(1));
        self.has_news.notify_one();
    }

    fn take(&self) -> News {
        std::mem::take(&mut self.news())
    }
}

impl Streams {
    fn live(&self) -> MutexGuard<'_, HashMap<NodeId, Arc<Live>>> {
        self.live.lock().expect("no holder of the streams panics")
    }

    /// Nodes with a live stream to this process.
    #[must_use]
    pub fn count(&self) -> usize {
        self.live().len()
    }

    /// A node opens a stream: it replaces one of the same or an older start.
    fn open(&self, hello: &Hello) -> Result<Arc<Live>, String> {
        let mut live = self.live();
        if let Some(old) = live.get(&hello.node) {
            if old.incarnation > hello.incarnation {
                return Err(format!(
                    "start {} of this node is connected, this is start {}: a copy of the node runs",
                    old.incarnation, hello.incarnation
                ));
            }
            old.say_goodbye("a newer stream of this node replaced this one");
        }
        let opened = Arc::new(Live {
            incarnation: hello.incarnation,
            news: Mutex::default(),
            has_news: Notify::new(),
        });
        live.insert(hello.node, Arc::clone(&opened));
        Ok(opened)
    }

    /// A stream ended; whether it was the node's live one.
    fn close(&self, node: NodeId, closed: &Arc<Live>) -> bool {
        let mut live = self.live();
        let was_live = live.get(&node).is_some_and(|current| Arc::ptr_eq(current, closed));
        if was_live {
            live.remove(&node);
        }
        was_live
    }

    /// Sends a message to a node, if it has a stream.
    fn send(&self, node: NodeId, message: ToNode) {
        let live = self.live().get(&node).cloned();
        if let Some(live) = live {
            live.send(message);
        }
    }

    /// Ends all streams.
    pub fn goodbye_all(&self, cause: &str) {
        for live in self.live().values() {
            live.say_goodbye(cause);
        }
    }

    /// A secret changed: all nodes get their facts anew.
    pub(crate) fn renew_facts(&self) {
        self.tell(&Touched { all_facts: true, ..Touched::default() });
    }

    fn tell(&self, touched: &Touched) {
        let live: Vec<_> = {
            let live = self.live();
            let concerned = live.iter().filter(|(node, _)| touched.concerns(**node));
            concerned.map(|(node, live)| (*node, Arc::clone(live))).collect()
        };
        for (node, live) in live {
            let mut own = Touched { all_facts: touched.all_facts, ..Touched::default() };
            own.facts.extend(touched.facts.get(&node));
            own.groups.extend(touched.groups.get(&node).map(|groups| (node, groups.clone())));
            live.news().touched.merge(own);
            live.has_news.notify_one();
        }
    }
}

impl Changes for Streams {
    fn changed(&self, before: &State, after: &State, events: &[Event]) {
        let touched = touched(before, after, events);
        if !touched.is_empty() {
            self.tell(&touched);
        }
        for event in events {
            if let Event::NodeRemoved { node } = event
                && let Some(live) = self.live().get(node)
            {
                live.say_goodbye("this node was removed from the cluster");
            }
        }
    }
}

/// A hand-over needs, like every unplanned move, a side that vouches for its legs now
/// (docs/mirror-rules.md rule 6): what the old owner saw when it asked may be long ago, and so may be
/// the last word of the side. Every other
/// request is decided by the log alone.
#[must_use]
pub fn is_vouched(
    state: &State,
    nodes: &Nodes,
    (times, now): (&Times, Duration),
    node: NodeId,
    request: &Escalation,
) -> bool {
    let Escalation::HandOver { group: id, epoch, .. } = request else { return true };
    if mutant::is_active(Mutant::HandOverUnvouched) {
        return true;
    }
    // Decided, and refused with its reason, where the groups are known.
    let Some(group) = state.group(*id).filter(|group| group.epoch == *epoch) else { return true };
    let vouches = |side: NodeId| {
        status_of(nodes, (times, now), side, *id, group.epoch)
            .and_then(|it| it.attestation)
            .is_some_and(|attestation| attestation.legs_open)
    };
    group.sides.iter().any(|side| side.node != node && side.in_sync && vouches(side.node))
}

/// What a node that speaks now says of a group at this epoch.
fn status_of<'a>(
    nodes: &'a Nodes,
    (times, now): (&Times, Duration),
    node: NodeId,
    group: GroupId,
    epoch: Epoch,
) -> Option<&'a GroupStatus> {
    let observed = nodes.get(&node).filter(|it| speaks(it, times, now))?;
    observed.groups.get(&group).filter(|status| status.epoch == epoch)
}

/// Whether the side that a person wants to own a group says that its legs are open: a move to one
/// that does not leaves hosts without a path. What no move is possible for anyway is left to the
/// log's rules, which say why.
#[must_use]
pub fn may_move(
    state: &State,
    nodes: &Nodes,
    times: (&Times, Duration),
    id: GroupId,
    to: SiteId,
) -> bool {
    let Some(group) = state.group(id) else { return true };
    let side = group.side(to).filter(|side| side.in_sync && side.node != group.owner);
    side.is_none_or(|side| {
        let status = status_of(nodes, times, side.node, id, group.epoch);
        let attestation = status.and_then(|it| it.attestation);
        attestation.is_some_and(|attestation| attestation.legs_open)
    })
}

/// Whether a group's owner serves it: a leg that another side has may be taken away only then, or
/// it is the last good one.
#[must_use]
pub fn is_served(state: &State, nodes: &Nodes, times: (&Times, Duration), id: GroupId) -> bool {
    state.group(id).is_none_or(|group| {
        let status = status_of(nodes, times, group.owner, id, group.epoch);
        status.is_some_and(|status| status.role == GroupRole::Serving)
    })
}
