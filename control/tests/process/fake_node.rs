//! A node that honours the contract without storing a byte: it verifies what it is told, adopts
//! devices, formats and releases legs, and reports what a test lets it see.

use crate::client::PATIENCE;
use base64::Engine as _;
use futures_util::{SinkExt, StreamExt};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::{WebSocketStream, client_async};
use voute_control::service::checkpoint_origin;
use voute_schemas::command::Escalation;
use voute_schemas::contract::*;
use voute_schemas::event::Attestation;
use voute_schemas::proof::Verifier;
use voute_schemas::{DeviceId, Epoch, EscalationId, GroupId, LegId, NodeId, Token};

/// What a test sees and sets.
#[derive(Default)]
pub(crate) struct Inside {
    pub(crate) as_of: Epoch,
    answers_us: u64,
    pub(crate) facts: Option<NodeFacts>,
    pub(crate) groups: BTreeMap<GroupId, GroupSpec>,
    pub(crate) specs: u64,
    pub(crate) answers: BTreeMap<EscalationId, Vec<EscalationOutcome>>,
    pub(crate) goodbye: Option<String>,
    /// Whether it hears no owner any more, with its grants run out.
    pub(crate) owner_silent: bool,
    /// Owners that it alone does not hear any more, likewise.
    pub(crate) silent_owners: BTreeSet<NodeId>,
    /// Whether its legs cannot be used.
    pub(crate) legs_closed: bool,
    /// Whether it puts off formatting legs.
    pub(crate) formats_later: bool,
    /// Whether it says nothing, its stream open.
    pub(crate) mute: bool,
    asked: BTreeSet<String>,
    verifiers: Vec<Verifier>,
    outbox: Vec<FromNode>,
}

pub(crate) struct FakeNode {
    pub(crate) node: NodeId,
    pub(crate) inside: Arc<Mutex<Inside>>,
    task: JoinHandle<()>,
}

impl Drop for FakeNode {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) async fn open(
    address: SocketAddr,
    node: &str,
    secret: &str,
) -> Result<WebSocketStream<TcpStream>, u16> {
    let mut request = format!("ws://{address}{PATH}").into_client_request().unwrap();
    let credentials = base64::engine::general_purpose::STANDARD.encode(format!("{node}:{secret}"));
    request.headers_mut().insert("authorization", format!("Basic {credentials}").parse().unwrap());
    let stream = TcpStream::connect(address).await.unwrap();
    match client_async(request, stream).await {
        Ok((socket, _)) => Ok(socket),
        Err(tokio_tungstenite::tungstenite::Error::Http(response)) => {
            Err(response.status().as_u16())
        }
        Err(error) => panic!("{error}"),
    }
}

/// Waits until a process lets this node in: one that just started asks the others for secrets first.
pub(crate) async fn until_let_in(address: SocketAddr, node: &str, secret: &str) {
    let asks = async {
        while open(address, node, secret).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asks).await.expect("it lets the node in");
}

pub(crate) fn hello(node: NodeId, incarnation: u64) -> FromNode {
    FromNode::Hello(Hello {
        contract: CONTRACT_VERSION,
        node,
        incarnation,
        software: "test".into(),
        engine: "fake".into(),
        obeyed: Epoch::ZERO,
    })
}

pub(crate) fn text(message: &FromNode) -> Message {
    Message::Text(serde_json::to_string(message).unwrap().into())
}

impl FakeNode {
    pub(crate) async fn connect(
        address: SocketAddr,
        node: &str,
        secret: &str,
        incarnation: u64,
    ) -> Self {
        let socket = open(address, node, secret).await.expect("the node may connect");
        let node: NodeId = node.parse().unwrap();
        let inside = Arc::new(Mutex::new(Inside::default()));
        let task = tokio::spawn(live(socket, node, incarnation, Arc::clone(&inside)));
        FakeNode { node, inside, task }
    }

    pub(crate) fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap()
    }

    /// Ends like a killed process: the connection just breaks.
    pub(crate) fn kill(self) {}

    pub(crate) fn escalate(&self, id: EscalationId, requests: Vec<Escalation>) {
        self.inside().outbox.push(FromNode::Escalate { id, requests });
    }

    pub(crate) async fn until<T>(&self, what: &str, see: impl Fn(&Inside) -> Option<T>) -> T {
        let began = Instant::now();
        loop {
            if let Some(seen) = see(&self.inside()) {
                return seen;
            }
            assert!(began.elapsed() < PATIENCE, "never: {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) async fn answer(&self, id: EscalationId) -> Vec<EscalationOutcome> {
        self.until("an answer", |inside| inside.answers.get(&id).cloned()).await
    }
}

async fn live(
    mut socket: WebSocketStream<TcpStream>,
    node: NodeId,
    incarnation: u64,
    inside: Arc<Mutex<Inside>>,
) {
    socket.send(text(&hello(node, incarnation))).await.unwrap();
    let mut heartbeat = tokio::time::interval(Duration::from_millis(30));
    loop {
        tokio::select! {
            message = socket.next() => match message {
                Some(Ok(Message::Text(text))) => {
                    let message = serde_json::from_str(&text).expect("the contract's messages parse");
                    inside.lock().unwrap().take(node, message);
                }
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return,
            },
            _ = heartbeat.tick() => {
                let messages = inside.lock().unwrap().speak(node);
                for message in messages {
                    if socket.send(text(&message)).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

impl Inside {
    fn take(&mut self, node: NodeId, message: ToNode) {
        match message {
            ToNode::Spec(spec) => self.obey(node, *spec),
            ToNode::Answer { id, outcomes } => {
                self.answers.insert(id, outcomes);
            }
            ToNode::Heartbeat { sent_us } => self.answers_us = sent_us,
            ToNode::Goodbye { cause } => self.goodbye = Some(cause),
        }
    }

    fn obey(&mut self, node: NodeId, spec: NodeSpec) {
        assert!(spec.as_of.sequence >= self.as_of.sequence, "specs never go back");
        if let Some(facts) = &spec.facts {
            self.verifiers.clone_from(&facts.verifiers);
        }
        self.verify(&spec);
        if spec.full {
            self.groups.clear();
        }
        for group in spec.removed_groups {
            self.groups.remove(&group);
        }
        for group in spec.groups {
            assert!(group.sides.iter().any(|side| side.node == node), "only own groups");
            self.groups.insert(group.group, group);
        }
        if spec.facts.is_some() {
            self.facts = spec.facts;
        }
        self.as_of = spec.as_of;
        self.specs += 1;
        self.ask();
    }

    /// What every node must check before it obeys (docs/mirror-rules.md rule 12).
    fn verify(&self, spec: &NodeSpec) {
        let needed = self.verifiers.len() / 2 + 1;
        let checkpoint = voute_events::verify(&spec.checkpoint, &self.verifiers, needed).unwrap();
        assert_eq!(checkpoint.origin(), checkpoint_origin(spec.cluster));
        let proven: BTreeSet<_> = spec
            .proofs
            .iter()
            .map(|proof| voute_events::verify_commit(&checkpoint, proof).unwrap().1.sequence)
            .collect();
        for group in &spec.groups {
            assert!(proven.contains(&group.epoch.sequence), "epoch {} is proven", group.epoch);
            let proof =
                spec.proofs.iter().find(|proof| proof.sequence == group.epoch.sequence).unwrap();
            let (_, epoch) = voute_events::verify_commit(&checkpoint, proof).unwrap();
            assert_eq!(epoch, group.epoch);
        }
    }

    /// Asks for what follows from the spec, once each.
    fn ask(&mut self) {
        let mut requests = Vec::new();
        for device in self.facts.iter().flat_map(|facts| &facts.devices) {
            if !device.adopted && self.asked.insert(format!("{:?}", device.device)) {
                requests.push(ready(device.device));
            }
        }
        let own = self.facts.as_ref().map(|facts| facts.node);
        let unformatted: Vec<LegId> = self
            .groups
            .values()
            .flat_map(|group| &group.volumes)
            .flat_map(|volume| &volume.legs)
            .filter(|leg| Some(leg.node) == own && !leg.formatted)
            .map(|leg| leg.leg)
            .collect();
        for leg in unformatted {
            if !self.formats_later && self.asked.insert(format!("{leg:?}")) {
                requests.push(Escalation::LegFormatted { leg });
            }
        }
        for retired in self.facts.iter().flat_map(|facts| &facts.retired_legs) {
            if self.asked.insert(format!("retired {:?}", retired.leg)) {
                requests.push(Escalation::LegReleased { leg: retired.leg });
            }
        }
        if !requests.is_empty() {
            self.outbox.push(FromNode::Escalate { id: EscalationId::generate(), requests });
        }
    }

    fn speak(&mut self, node: NodeId) -> Vec<FromNode> {
        if self.mute {
            return Vec::new();
        }
        self.ask();
        let mut messages = std::mem::take(&mut self.outbox);
        messages.push(FromNode::Status(self.status(node)));
        messages
    }

    fn status(&self, node: NodeId) -> NodeStatus {
        NodeStatus {
            obeyed: self.as_of,
            answers_us: self.answers_us,
            devices: vec![],
            links: vec![],
            groups: self.groups.values().map(|group| self.group_status(node, group)).collect(),
        }
    }

    fn group_status(&self, node: NodeId, group: &GroupSpec) -> GroupStatus {
        let owns = group.owner == node;
        let legs = group.volumes.iter().flat_map(|volume| &volume.legs);
        let own_legs = legs.filter(|leg| leg.node == node);
        let silent = self.owner_silent || self.silent_owners.contains(&group.owner);
        GroupStatus {
            group: group.group,
            epoch: group.epoch,
            role: if owns { GroupRole::Serving } else { GroupRole::Following },
            token: Token { epoch: group.epoch, incarnation: 1, session: 1 },
            legs: own_legs
                .map(|leg| LegStatus {
                    leg: leg.leg,
                    state: if leg.formatted { LegState::Consistent } else { LegState::Unformatted },
                    detail: String::new(),
                })
                .collect(),
            attestation: (!owns).then_some(Attestation {
                legs_open: !self.legs_closed,
                owner_silent: silent,
                lease_expired: silent,
                silent_ms: if silent { 2_000 } else { 0 },
            }),
            resync: None,
            last_io_unix_ms: None,
            opening: owns.then_some(OpeningReport {
                barred_ms: 2,
                lease_wait_ms: 3,
                serving_ms: 10,
                first_io_ms: Some(25),
            }),
            verify: None,
        }
    }
}

fn ready(device: DeviceId) -> Escalation {
    Escalation::DeviceReady { device, size_bytes: 4 << 30, block_bytes: 512 }
}
