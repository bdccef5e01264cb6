//! What nodes say of themselves: kept in memory only, never in the log.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use voute_schemas::contract::{DeviceStatus, GroupStatus, Hello, LinkStatus, NodeStatus};
use voute_schemas::{DeviceId, Epoch, GroupId, NodeId};

/// What is known of one node. Times count from the start of this process.
#[derive(Clone, Debug)]
pub struct ObservedNode {
    /// Since when its stream is open; nothing while it is closed.
    pub connected_since: Option<Duration>,
    /// When its stream closed last.
    pub closed_at: Option<Duration>,
    /// When its last message came.
    pub heard_at: Duration,
    /// What it reported last was so after this: when the heartbeat was sent that it answers. A message
    /// may be long on its way, through a network that is being mended.
    pub so_since: Option<Duration>,
    /// Its start.
    pub incarnation: u64,
    /// Its software.
    pub software: String,
    /// Its engine.
    pub engine: String,
    /// The position that it obeys.
    pub obeyed: Epoch,
    /// Its devices.
    pub devices: BTreeMap<DeviceId, DeviceStatus>,
    /// Its links.
    pub links: Vec<LinkStatus>,
    /// Its groups.
    pub groups: HashMap<GroupId, GroupStatus>,
}

impl ObservedNode {
    /// Whether it was heard within `silence`.
    #[must_use]
    pub fn is_heard(&self, now: Duration, silence: Duration) -> bool {
        now.saturating_sub(self.heard_at) < silence
    }

    /// The first sign that it may be lost: its stream closed, or fell silent.
    #[must_use]
    pub fn first_sign(&self) -> Duration {
        match self.closed_at {
            Some(closed) if self.connected_since.is_none() => closed,
            _ => self.heard_at,
        }
    }
}

/// When the heartbeat was sent that a status answers; `None` if it answers none.
#[must_use]
pub fn so_since(answers_us: u64, now: Duration) -> Option<Duration> {
    // Nothing can be answered before it is sent.
    (answers_us > 0).then(|| Duration::from_micros(answers_us).min(now))
}

/// All nodes by id.
pub type Nodes = BTreeMap<NodeId, ObservedNode>;

/// What all nodes say.
#[derive(Debug)]
pub struct Observed {
    began: Instant,
    nodes: Mutex<Nodes>,
    changed: Notify,
}

impl Default for Observed {
    fn default() -> Self {
        Observed { began: Instant::now(), nodes: Mutex::default(), changed: Notify::new() }
    }
}

impl Observed {
    /// Time since the start of this process.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// All nodes. Held only for as long as a reading takes.
    pub fn nodes(&self) -> MutexGuard<'_, Nodes> {
        self.nodes.lock().expect("no holder of the nodes panics")
    }

    /// Returns after something changed that may call for a decision.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// A node opened a stream.
    pub fn opened(&self, hello: &Hello) {
        let now = self.now();
        let mut nodes = self.nodes();
        // What its last process said of its groups no longer holds; it will say everything anew.
        let node = ObservedNode {
            connected_since: Some(now),
            closed_at: None,
            heard_at: now,
            so_since: None,
            incarnation: hello.incarnation,
            software: hello.software.clone(),
            engine: hello.engine.clone(),
            obeyed: hello.obeyed,
            devices: BTreeMap::new(),
            links: Vec::new(),
            groups: HashMap::new(),
        };
        nodes.insert(hello.node, node);
        drop(nodes);
        self.changed.notify_one();
    }

    /// Anything came from a node.
    pub fn heard(&self, node: NodeId) {
        let now = self.now();
        if let Some(node) = self.nodes().get_mut(&node) {
            node.heard_at = now;
        }
    }

    /// A node reported.
    pub fn reported(&self, node: NodeId, status: NodeStatus) {
        let now = self.now();
        let mut nodes = self.nodes();
        let Some(node) = nodes.get_mut(&node) else { return };
        node.heard_at = now;
        node.so_since = so_since(status.answers_us, now);
        node.obeyed = status.obeyed;
        node.devices = status.devices.into_iter().map(|device| (device.device, device)).collect();
        node.links = status.links;
        let is_news = !status.groups.is_empty();
        node.groups.extend(status.groups.into_iter().map(|group| (group.group, group)));
        drop(nodes);
        if is_news {
            self.changed.notify_one();
        }
    }

    /// A node's stream closed.
    pub fn closed(&self, node: NodeId) {
        let now = self.now();
        if let Some(node) = self.nodes().get_mut(&node) {
            node.connected_since = None;
            node.closed_at = Some(now);
        }
        self.changed.notify_one();
    }

    /// A node no longer holds these groups.
    pub fn forget_groups(&self, node: NodeId, groups: &[GroupId]) {
        if let Some(node) = self.nodes().get_mut(&node) {
            for group in groups {
                node.groups.remove(group);
            }
        }
    }
}
