//! A scripted control plane: a log in memory, signed and proven with the real code, served over the
//! real contract to the engines under test. It decides only what a test tells it to, and answers the
//! escalations that any control plane would accept.

use super::proxy::Wire;
use futures_util::{SinkExt, StreamExt};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;
use voute_events::{MerkleTree, Signer};
use voute_schemas::command::Escalation;
use voute_schemas::commit::{Actor, Commit, Origin, Outcome};
use voute_schemas::contract::*;
use voute_schemas::event::{MoveKind, ResyncEvidence, VerifyEvidence};
use voute_schemas::place::{ExtentRun, LegPlacement, Locator, Portals};
use voute_schemas::proof::{CommitProof, HandOver};
use voute_schemas::times::Times;
use voute_schemas::*;

const ORIGIN: &str = "voute-test";
pub(crate) const EXTENT: u64 = 1 << 20;
pub(crate) const HOST_NQN: &str =
    "nqn.2014-08.org.nvmexpress:uuid:11111111-1111-4111-8111-111111111111";
pub(crate) const HOST_IQN: &str = "iqn.2026-01.test:host";
pub(crate) const SUBSYSTEM: &str = "nqn.2026-11.io.voute:test";
pub(crate) const TARGET: &str = "iqn.2026-11.io.voute:test";

pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) site: SiteId,
    pub(crate) number: u16,
    pub(crate) portals: Portals,
    pub(crate) device: DeviceSpec,
    /// First extent not yet given to a leg.
    next_extent: u64,
    to_node: Option<mpsc::UnboundedSender<ToNode>>,
    /// By which other nodes reach its mirror link.
    pub(crate) wire: Wire,
    /// Whether its streams are refused.
    is_shut_out: bool,
    pub(crate) groups: BTreeMap<GroupId, GroupStatus>,
    pub(crate) links: Vec<LinkStatus>,
    pub(crate) hellos: Vec<Hello>,
}

pub(crate) struct State {
    cluster: ClusterId,
    signer: Signer,
    tree: MerkleTree,
    commits: Vec<Vec<u8>>,
    head: Epoch,
    pub(crate) nodes: Vec<Node>,
    pub(crate) groups: BTreeMap<GroupId, GroupSpec>,
    host: HostId,
    pub(crate) joined: Vec<ResyncEvidence>,
    /// What comparisons found.
    pub(crate) verified: Vec<VerifyEvidence>,
    pub(crate) escalations: Vec<Escalation>,
    link_secret: String,
}

#[derive(Clone)]
pub(crate) struct Control {
    state: Arc<(Mutex<State>, Condvar)>,
    pub(crate) url: String,
}

/// An address that no other test uses: each has a loopback network of its own.
fn free_address(network: u8, number: u16) -> SocketAddr {
    let process = (std::process::id() % 250) as u8 + 1;
    let address = Ipv4Addr::new(127, process, network, number as u8);
    TcpListener::bind((address, 0)).unwrap().local_addr().unwrap()
}

impl Control {
    /// Starts to serve, with two nodes whose devices are files in `folder`.
    pub(crate) fn start(folder: &std::path::Path) -> Self {
        static NETWORKS: AtomicU8 = AtomicU8::new(1);
        let network = NETWORKS.fetch_add(1, Ordering::Relaxed);
        let node = |number: u16| {
            let portals = Portals {
                nvme: free_address(network, number),
                iscsi: free_address(network, number),
                link: free_address(network, number),
            };
            Node {
                wire: Wire::to(portals.link),
                is_shut_out: false,
                id: NodeId::generate(),
                site: SiteId::generate(),
                number,
                portals,
                device: DeviceSpec {
                    device: DeviceId::generate(),
                    locator: Locator::File {
                        path: folder.join(format!("device-{number}")).to_str().unwrap().into(),
                        size_bytes: 256 << 20,
                    },
                    extent_bytes: EXTENT,
                    adopted: false,
                    overwrite: false,
                },
                next_extent: 0,
                to_node: None,
                groups: BTreeMap::new(),
                links: vec![],
                hellos: vec![],
            }
        };
        let state = State {
            cluster: ClusterId::generate(),
            signer: Signer::generate("log-site").unwrap(),
            tree: MerkleTree::new(),
            commits: vec![],
            head: Epoch::ZERO,
            nodes: vec![node(1), node(2)],
            groups: BTreeMap::new(),
            host: HostId::generate(),
            joined: vec![],
            verified: vec![],
            escalations: vec![],
            link_secret: "5a".repeat(32),
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let control = Control { state: Arc::new((Mutex::new(state), Condvar::new())), url };
        control.change(|state| {
            let (cluster, log_site) = (state.cluster, state.signer.verifier());
            let name = Name::new("test").unwrap();
            state.commit(vec![Event::ClusterCreated { cluster, name, log_site }]);
        });
        let serving = control.clone();
        std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(serving.serve(listener));
        });
        control
    }

    async fn serve(self, listener: TcpListener) {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let control = self.clone();
            tokio::spawn(async move { control.converse(socket).await });
        }
    }

    async fn converse(&self, socket: tokio::net::TcpStream) {
        let Ok(socket) = tokio_tungstenite::accept_async(socket).await else { return };
        let (mut to_node, mut from_node) = socket.split();
        let (sender, mut outgoing) = mpsc::unbounded_channel();
        let mut node = None;
        loop {
            tokio::select! {
                message = outgoing.recv() => {
                    let text = serde_json::to_string::<ToNode>(&message.unwrap()).unwrap();
                    if to_node.send(Message::text(text)).await.is_err() {
                        break;
                    }
                }
                message = from_node.next() => match message {
                    Some(Ok(Message::Text(text))) => {
                        let message = serde_json::from_str(&text).unwrap();
                        self.heard(&mut node, message, &sender);
                    }
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    _ => break,
                }
            }
        }
        if let Some(node) = node {
            self.change(|state| state.nodes[node].to_node = None);
        }
    }

    fn heard(
        &self,
        node: &mut Option<usize>,
        message: FromNode,
        sender: &mpsc::UnboundedSender<ToNode>,
    ) {
        self.change(|state| match message {
            FromNode::Hello(hello) => {
                let index = state.nodes.iter().position(|node| node.id == hello.node).unwrap();
                if state.nodes[index].is_shut_out {
                    let cause = "shut out".into();
                    return sender.send(ToNode::Goodbye { cause }).unwrap();
                }
                *node = Some(index);
                state.nodes[index].to_node = Some(sender.clone());
                state.nodes[index].hellos.push(hello);
                state.nodes[index].groups.clear();
                let spec = state.spec(index, true);
                sender.send(ToNode::Spec(Box::new(spec))).unwrap();
            }
            // What a node that is shut out still says.
            _ if node.is_none_or(|node| state.nodes[node].is_shut_out) => {}
            FromNode::Status(status) => {
                let node = &mut state.nodes[node.unwrap()];
                node.links = status.links;
                node.groups.extend(status.groups.into_iter().map(|group| (group.group, group)));
            }
            FromNode::Escalate { id, requests } => {
                let from = state.nodes[node.unwrap()].id;
                let outcomes =
                    requests.iter().map(|request| state.escalated(from, request)).collect();
                state.escalations.extend(requests);
                sender.send(ToNode::Answer { id, outcomes }).unwrap();
            }
        });
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.0.lock().unwrap()
    }

    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.state.1.notify_all();
        result
    }

    /// Waits until something holds; panics with `what` when it does not within 20 s.
    pub(crate) fn wait(&self, what: &str, holds: impl Fn(&State) -> bool) {
        let until = Instant::now() + Duration::from_secs(20);
        let mut state = self.lock();
        while !holds(&state) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let statuses: Vec<_> =
                    state.nodes.iter().map(|node| (&node.groups, &node.links)).collect();
                panic!("waited in vain until {what}: {statuses:#?} {:#?}", state.groups);
            }
            (state, _) = self.state.1.wait_timeout(state, left).unwrap();
        }
    }

    /// Creates a mirrored volume owned by the first node, and waits until it is served.
    pub(crate) fn create_volume(&self, number: u32, size_bytes: u64) -> GroupId {
        let group = self.change(|state| state.create_volume(number, size_bytes));
        self.wait("the volume is served", |state| state.serves(0, group));
        group
    }
}

impl State {
    pub(crate) fn serves(&self, node: usize, group: GroupId) -> bool {
        let status = self.nodes[node].groups.get(&group);
        status.is_some_and(|status| status.role == GroupRole::Serving)
            && status.is_some_and(|status| status.epoch == self.groups[&group].epoch)
    }

    pub(crate) fn commit(&mut self, events: Vec<Event>) -> Epoch {
        let commit = Commit {
            sequence: self.head.sequence.next(),
            previous: self.head.hash,
            id: CommitId::generate(),
            time_unix_ms: 0,
            actor: Actor::System,
            origin: Origin::Api,
            source: None,
            correlation: CorrelationId::generate(),
            causation: None,
            idempotency_key: None,
            command: "Test".into(),
            reason: String::new(),
            outcome: Outcome::Accepted(events),
        };
        let bytes = commit.encode();
        let hash = Hash::of_commit(&bytes);
        self.tree.push(hash);
        self.commits.push(bytes);
        self.head = Epoch { sequence: commit.sequence, hash };
        self.head
    }

    fn create_volume(&mut self, number: u32, size_bytes: u64) -> GroupId {
        let (volume, group) = (VolumeId::generate(), GroupId::generate());
        let count = voute_schemas::place::leg_bytes(size_bytes).div_ceil(EXTENT);
        let legs: Vec<LegPlacement> = self
            .nodes
            .iter_mut()
            .map(|node| {
                let first = node.next_extent;
                node.next_extent += count;
                LegPlacement {
                    leg: LegId::generate(),
                    pool: PoolId::generate(),
                    site: node.site,
                    node: node.id,
                    runs: vec![ExtentRun { device: node.device.device, first, count }],
                }
            })
            .collect();
        let name = Name::new(format!("vol-{number}")).unwrap();
        let owner = self.nodes[0].id;
        let epoch = self.commit(vec![Event::VolumeCreated {
            volume,
            name: name.clone(),
            group,
            number,
            size_bytes,
            block_bytes: 512,
            legs: legs.clone(),
            owner,
            policy: None,
        }]);
        let sides =
            legs.iter().map(|leg| SideSpec { site: leg.site, node: leg.node, in_sync: true });
        let spec = GroupSpec {
            group,
            epoch,
            owner,
            sides: sides.collect(),
            last_common: epoch,
            volumes: vec![VolumeSpec {
                volume,
                name,
                number,
                size_bytes,
                block_bytes: 512,
                region_bytes: voute_schemas::place::REGION_BYTES,
                legs: legs
                    .into_iter()
                    .map(|leg| LegSpec {
                        leg: leg.leg,
                        site: leg.site,
                        node: leg.node,
                        formatted: false,
                        runs: leg.runs,
                    })
                    .collect(),
                mappings: vec![MappingSpec {
                    host: self.host,
                    lun: number as u16,
                    read_only: false,
                }],
                verify: None,
                presentation: voute_schemas::event::Presentation::default(),
            }],
        };
        self.groups.insert(group, spec);
        self.publish();
        group
    }

    /// Moves a group to another node.
    pub(crate) fn move_owner(&mut self, group: GroupId, to: usize, kind: MoveKind) {
        let is_planned = matches!(kind, MoveKind::Planned);
        let to = self.nodes[to].id;
        let from = self.groups[&group].owner;
        let epoch = self.commit(vec![Event::OwnerMoved { group, from, to, kind }]);
        let spec = self.groups.get_mut(&group).unwrap();
        spec.owner = to;
        for side in spec.sides.iter_mut().filter(|side| side.node == from && !is_planned) {
            side.in_sync = false;
        }
        self.decided(group, epoch);
    }

    /// Grows a group's volume in place; its legs get further runs.
    pub(crate) fn grow(&mut self, group: GroupId, size_bytes: u64) {
        let spec = self.groups.get_mut(&group).unwrap();
        let volume = &mut spec.volumes[0];
        let more = (size_bytes - volume.size_bytes).div_ceil(EXTENT);
        volume.size_bytes = size_bytes;
        for leg in &mut volume.legs {
            let node = self.nodes.iter_mut().find(|node| node.id == leg.node).unwrap();
            let (device, first) = (node.device.device, node.next_extent);
            node.next_extent += more;
            leg.runs.push(ExtentRun { device, first, count: more });
        }
        let volume = volume.volume;
        self.commit(vec![Event::VolumeResized { volume, size_bytes, legs: vec![] }]);
        self.publish();
    }

    fn decided(&mut self, group: GroupId, epoch: Epoch) {
        let spec = self.groups.get_mut(&group).unwrap();
        spec.epoch = epoch;
        if spec.sides.iter().all(|side| side.in_sync) {
            spec.last_common = epoch;
        }
        self.publish();
    }

    fn escalated(&mut self, from: NodeId, request: &Escalation) -> EscalationOutcome {
        let committed =
            |state: &State| EscalationOutcome::Committed { sequence: state.head.sequence };
        let refused =
            |code: &str| EscalationOutcome::Refused { code: code.into(), message: code.into() };
        match request {
            Escalation::DeviceReady { device, .. } => {
                let node =
                    self.nodes.iter_mut().find(|node| node.device.device == *device).unwrap();
                node.device.adopted = true;
                self.publish();
                committed(self)
            }
            Escalation::LegFormatted { leg } => {
                let volumes = self.groups.values_mut().flat_map(|group| &mut group.volumes);
                let mut legs = volumes.flat_map(|volume| &mut volume.legs);
                legs.find(|found| found.leg == *leg).unwrap().formatted = true;
                self.commit(vec![Event::LegFormatted { leg: *leg }]);
                self.publish();
                committed(self)
            }
            Escalation::DetachSide { group, epoch, site, cause } => {
                let spec = &self.groups[group];
                if spec.epoch != *epoch || spec.owner != from {
                    return refused("stale-epoch");
                }
                let (group, site, cause) = (*group, *site, cause.clone());
                let epoch = self.commit(vec![Event::LegDetached { group, site, cause }]);
                self.set_in_sync(group, site, false);
                self.decided(group, epoch);
                committed(self)
            }
            Escalation::JoinSide { group, epoch, site, resync } => {
                let spec = &self.groups[group];
                if spec.epoch != *epoch || spec.owner != from {
                    return refused("stale-epoch");
                }
                self.joined.push(resync.clone());
                let (group, site, resync) = (*group, *site, resync.clone());
                let epoch = self.commit(vec![Event::LegInSync { group, site, resync }]);
                self.set_in_sync(group, site, true);
                self.decided(group, epoch);
                committed(self)
            }
            Escalation::ConfirmOwner { group, epoch, .. } => {
                let spec = &self.groups[group];
                match spec.epoch == *epoch && spec.owner == from {
                    true => committed(self),
                    false => refused("stale-epoch"),
                }
            }
            Escalation::DeviceRefused { cause, .. } => panic!("device refused: {cause}"),
            Escalation::Verified { evidence, .. } => {
                self.verified.push(evidence.clone());
                committed(self)
            }
            Escalation::WantOwner { group, epoch, host: _ } => {
                if self.groups[group].epoch != *epoch {
                    return refused("stale-epoch");
                }
                let node = self.nodes.iter().position(|node| node.id == from).unwrap();
                self.move_owner(*group, node, MoveKind::Planned);
                committed(self)
            }
            Escalation::HandOver { .. }
            | Escalation::LegReleased { .. }
            | Escalation::BlocksLost { .. } => refused("not-in-this-test"),
        }
    }

    fn set_in_sync(&mut self, group: GroupId, site: SiteId, in_sync: bool) {
        let spec = self.groups.get_mut(&group).unwrap();
        spec.sides.iter_mut().find(|side| side.site == site).unwrap().in_sync = in_sync;
    }

    /// Ends a node's stream.
    pub(crate) fn hang_up(&mut self, node: usize) {
        let cause = "as the test wants it".into();
        let stream = self.nodes[node].to_node.take();
        stream.unwrap().send(ToNode::Goodbye { cause }).unwrap();
    }

    /// Cuts a node off from everything but its hosts, or ends that.
    pub(crate) fn isolate(&mut self, node: usize, isolated: bool) {
        self.nodes.iter().for_each(|node| node.wire.cut(isolated));
        self.nodes[node].is_shut_out = isolated;
        if isolated {
            self.hang_up(node);
        }
    }

    /// Sends everyone the whole spec as it stands.
    pub(crate) fn publish(&mut self) {
        for index in 0..self.nodes.len() {
            let spec = self.spec(index, false);
            if let Some(node) = &self.nodes[index].to_node {
                // A node that has just gone misses it, and gets all of it when it is back.
                let _ = node.send(ToNode::Spec(Box::new(spec)));
            }
        }
    }

    fn spec(&self, index: usize, full: bool) -> NodeSpec {
        let size = self.tree.size();
        let mine = self.nodes[index].id;
        let proofs = self.groups.values().map(|group| {
            let at = group.epoch.sequence.0 - 1;
            CommitProof {
                sequence: group.epoch.sequence,
                commit: self.commits[at as usize].clone(),
                path: self.tree.inclusion_proof(at, size).unwrap(),
            }
        });
        let groups = self.groups.values().cloned().map(|mut group| {
            for leg in group.volumes.iter_mut().flat_map(|volume| &mut volume.legs) {
                if leg.node != mine {
                    leg.runs.clear();
                }
            }
            group
        });
        let checkpoint = self.signer.sign(ORIGIN, size, self.tree.root(size).unwrap());
        let path = |at| self.tree.inclusion_proof(at, size).unwrap();
        NodeSpec {
            as_of: self.head,
            full,
            cluster: self.cluster,
            facts: Some(self.facts(index)),
            checkpoint: checkpoint.clone(),
            as_of_path: path(self.head.sequence.0 - 1),
            hand_overs: vec![HandOver {
                checkpoint,
                named: CommitProof {
                    sequence: Sequence(1),
                    commit: self.commits[0].clone(),
                    path: path(0),
                },
            }],
            proofs: proofs.collect(),
            groups: groups.collect(),
            removed_groups: vec![],
        }
    }

    fn facts(&self, index: usize) -> NodeFacts {
        let node = &self.nodes[index];
        let entry = |node: &Node| NodeEntry {
            node: node.id,
            site: node.site,
            number: node.number,
            portals: Portals { link: node.wire.address, ..node.portals },
        };
        NodeFacts {
            node: node.id,
            name: Name::new(format!("node-{}", node.number)).unwrap(),
            site: node.site,
            number: node.number,
            verifiers: vec![self.signer.verifier()],
            times: Times::default(),
            portals: node.portals,
            link_secret: self.link_secret.clone(),
            nodes: self.nodes.iter().map(entry).collect(),
            devices: vec![node.device.clone()],
            retired_legs: vec![],
            hosts: vec![HostSpec {
                host: self.host,
                nqns: vec![HOST_NQN.into()],
                iqns: vec![HOST_IQN.into()],
                chap_secret: None,
                chap_target_secret: None,
                dhchap_secret: None,
                dhchap_controller_secret: None,
            }],
            subsystem_nqn: SUBSYSTEM.into(),
            target_iqn: TARGET.into(),
            serial: "VOUTETEST".into(),
        }
    }
}
