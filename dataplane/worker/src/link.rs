//! Mirror links: who the peers are, how both ends prove it, and the two ends' states.
//!
//! ```text
//! connector                                   acceptor
//!   Connecting ── NVMe Connect ──────────────►  New
//!   Greeting   ── Hello{who, shard, nonce} ──►  Challenged      (moves to the shard's reactor)
//!              ◄─ Challenge{nonce, code} ─────
//!   Proving    ── Prove{code} ───────────────►  Proven
//!              ◄─ Done ───────────────────────
//!   Up         ── requests ──────────────────►
//! ```
//!
//! Each code is HMAC-SHA-256 under the cluster's link secret over a label of its direction, both
//! ids, the connector's incarnation and shard, and both nonces: neither end learns a code that would
//! serve elsewhere, in the other direction, or again. A node that fails is closed, counted, and
//! logged once.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;
use voute_mirror::LinkTag;
use voute_mirror::link::{Control, ControlReply, LinkRefusal, LinkReply, LinkRequest};
use voute_mirror::wire::{self, WireReply};
use voute_nvme::{Command, InitiatorConnection, Outcome, Payload, Status, Tag, TargetConnection};
use voute_schemas::NodeId;
use voute_schemas::contract::NodeFacts;

/// In how many parts a node keeps its mirrors; the same at every node, whatever its cores. A group
/// lives in the shard of its lowest volume number; a shard has one mirror, and one channel to each
/// peer's same shard, since a lease is good only for what the mirror that granted it holds.
pub(crate) const SHARDS: u16 = 16;
/// First pause before a link is connected again; doubles up to [`RETRY_MAX`].
pub(crate) const RETRY_MIN: Duration = Duration::from_millis(100);
/// Longest pause.
pub(crate) const RETRY_MAX: Duration = Duration::from_millis(1_000);
/// How long a connection may take to prove that it is a node of the cluster.
const PROVE_WITHIN: Duration = Duration::from_secs(10);
/// Most requests that wait for room in a channel's queue; more are answered as if it were down.
pub(crate) const WAITING_MAX: usize = 16_384;
/// Submission queue of a link.
pub(crate) const LINK_QUEUE_DEPTH: u16 = 256;

const NONCE_BYTES: usize = 32;

/// The other nodes, and what all nodes prove to each other.
pub(crate) struct Peers {
    pub(crate) me: NodeId,
    secret: [u8; 32],
    /// Where each listens for links.
    pub(crate) links: HashMap<NodeId, SocketAddr>,
    /// Subsystem of the links.
    pub(crate) link_nqn: String,
}

/// Facts that do not make peers.
#[derive(Debug, thiserror::Error)]
#[error("the link secret in the node's facts is not 32 bytes in hexadecimal")]
pub(crate) struct InvalidSecret;

impl Peers {
    pub(crate) fn new(facts: &NodeFacts) -> Result<Self, InvalidSecret> {
        let secret: voute_schemas::Hash = facts.link_secret.parse().map_err(|_| InvalidSecret)?;
        let others = facts.nodes.iter().filter(|entry| entry.node != facts.node);
        Ok(Peers {
            me: facts.node,
            secret: secret.0,
            links: others.map(|entry| (entry.node, entry.portals.link)).collect(),
            link_nqn: link_nqn(&facts.subsystem_nqn),
        })
    }
}

/// The subsystem by which nodes link, from that by which hosts connect.
pub(crate) fn link_nqn(subsystem: &str) -> String {
    format!("{subsystem}:link")
}

/// Who wants to link to whom, for what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Greeting {
    connector: NodeId,
    acceptor: NodeId,
    incarnation: u64,
    shard: u32,
    nonce: [u8; NONCE_BYTES],
}

#[derive(Clone, Copy)]
enum Side {
    Connector,
    Acceptor,
}

fn mac(peers: &Peers, side: Side, greeting: &Greeting, answer: &[u8; NONCE_BYTES]) -> Hmac<Sha256> {
    let label: &[u8] = match side {
        Side::Connector => b"voute link 1 connector\0",
        Side::Acceptor => b"voute link 1 acceptor\0",
    };
    let mut mac = Hmac::<Sha256>::new_from_slice(&peers.secret).expect("any key length will do");
    mac.update(label);
    mac.update(&greeting.connector.bytes());
    mac.update(&greeting.acceptor.bytes());
    mac.update(&greeting.incarnation.to_le_bytes());
    mac.update(&greeting.shard.to_le_bytes());
    mac.update(&greeting.nonce);
    mac.update(answer);
    mac
}

fn code(peers: &Peers, side: Side, greeting: &Greeting, answer: &[u8; NONCE_BYTES]) -> [u8; 32] {
    mac(peers, side, greeting, answer).finalize().into_bytes().into()
}

fn is_proven(
    peers: &Peers,
    side: Side,
    greeting: &Greeting,
    answer: &[u8; NONCE_BYTES],
    code: &[u8; 32],
) -> bool {
    // Compares in constant time.
    mac(peers, side, greeting, answer).verify_slice(code).is_ok()
}

fn nonce() -> Option<[u8; NONCE_BYTES]> {
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce).ok()?;
    Some(nonce)
}

/// The accepting end.
pub(crate) struct LinkIn {
    pub(crate) connection: TargetConnection,
    state: Incoming,
    /// When it must have proven itself.
    prove_by: Duration,
}

enum Incoming {
    New,
    /// Its greeting, a request of this tag, waits for the connection to reach its shard's reactor.
    Held {
        tag: Tag,
        greeting: Greeting,
    },
    Challenged {
        greeting: Greeting,
        nonce: [u8; NONCE_BYTES],
    },
    Proven {
        peer: NodeId,
        shard: u16,
    },
}

/// What an accepting end makes of a control message before the peer has proven itself.
#[derive(Debug, PartialEq)]
pub(crate) enum Admission {
    /// Answer so.
    Answer(ControlReply),
    /// It is proven; answer so.
    Proven(ControlReply),
    /// Refuse and close; why.
    Refuse(&'static str),
}

impl LinkIn {
    /// A link that was just accepted.
    pub(crate) fn new(connection: TargetConnection, now: Duration) -> Self {
        LinkIn { connection, state: Incoming::New, prove_by: now + PROVE_WITHIN }
    }

    /// Until when it is let be without having proven itself; `None` once it has.
    pub(crate) fn prove_by(&self) -> Option<Duration> {
        self.peer().is_none().then_some(self.prove_by)
    }

    /// Who is at the other end, and for which shard, once proven.
    pub(crate) fn peer(&self) -> Option<(NodeId, u16)> {
        match self.state {
            Incoming::Proven { peer, shard } => Some((peer, shard)),
            Incoming::New | Incoming::Held { .. } | Incoming::Challenged { .. } => None,
        }
    }

    /// Keeps the greeting in a first message, and tells the shard that it is for; `None` if it is none.
    pub(crate) fn hold(&mut self, tag: Tag, control: &Control) -> Option<u16> {
        let Control::Hello { node, incarnation, reactor, to, nonce } = control else { return None };
        let shard = u16::try_from(*reactor).ok().filter(|shard| *shard < SHARDS)?;
        let (connector, acceptor) = (*node, *to);
        let greeting = Greeting {
            connector,
            acceptor,
            incarnation: *incarnation,
            shard: *reactor,
            nonce: *nonce,
        };
        matches!(self.state, Incoming::New).then(|| {
            self.state = Incoming::Held { tag, greeting };
            shard
        })
    }

    /// The greeting that was kept, to be answered once.
    pub(crate) fn take_held(&mut self) -> Option<(Tag, Greeting)> {
        let Incoming::Held { tag, greeting } = self.state else { return None };
        self.state = Incoming::New;
        Some((tag, greeting))
    }

    /// The connection is gone: nobody answers what was kept any more.
    pub(crate) fn disconnected(&mut self) {
        if let Some((tag, _)) = self.take_held() {
            self.connection
                .complete(tag, outcome(LinkReply::Refused(LinkRefusal::NotAuthenticated)));
        }
        self.connection.disconnected();
    }

    /// Answers a greeting, at the shard's reactor.
    pub(crate) fn challenge(&mut self, greeting: Greeting, peers: &Peers) -> Admission {
        if greeting.acceptor != peers.me {
            return Admission::Refuse("it looks for another node; check the portals");
        }
        if !peers.links.contains_key(&greeting.connector) {
            return Admission::Refuse("it is no node of this cluster");
        }
        let Some(nonce) = nonce() else { return Admission::Refuse("no random bytes to be had") };
        let code = code(peers, Side::Acceptor, &greeting, &nonce);
        self.state = Incoming::Challenged { greeting, nonce };
        Admission::Answer(ControlReply::Challenge { nonce, code, reactors: u32::from(SHARDS) })
    }

    /// Takes the second message.
    pub(crate) fn admit(&mut self, control: &Control, peers: &Peers) -> Admission {
        let (Incoming::Challenged { greeting, nonce }, Control::Prove { code }) =
            (&self.state, control)
        else {
            return Admission::Refuse("it spoke out of turn");
        };
        if !is_proven(peers, Side::Connector, greeting, nonce, code) {
            return Admission::Refuse("it does not know the cluster's link secret");
        }
        let shard = u16::try_from(greeting.shard).expect("checked when it was greeted");
        self.state = Incoming::Proven { peer: greeting.connector, shard };
        Admission::Proven(ControlReply::Done)
    }
}

/// Who sent a request over a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum LinkAsker {
    /// The shard's mirror, by this tag.
    Mirror(LinkTag),
    /// A host here that asks about reservations of a volume that the peer owns.
    Host(usize),
}

/// The connecting end.
pub(crate) struct LinkOut {
    pub(crate) connection: InitiatorConnection,
    pub(crate) peer: NodeId,
    pub(crate) shard: u16,
    greeting: Greeting,
    state: Outgoing,
    /// Requests on their way: who asked, and the opcode.
    pub(crate) pending: HashMap<Tag, (LinkAsker, u8)>,
}

enum Outgoing {
    Connecting,
    Greeting,
    Proving,
    Up,
}

/// What a connecting end makes of an answer before it is up.
pub(crate) enum Progress {
    /// Send this.
    Send(Control),
    /// Requests may be sent.
    Up,
    /// Close; why.
    Refuse(&'static str),
}

impl LinkOut {
    /// A link about to connect; `None` if the system has no random bytes.
    pub(crate) fn new(
        connection: InitiatorConnection,
        peer: NodeId,
        shard: u16,
        me: NodeId,
        incarnation: u64,
    ) -> Option<Self> {
        let shard32 = u32::from(shard);
        let greeting = Greeting {
            connector: me,
            acceptor: peer,
            incarnation,
            shard: shard32,
            nonce: nonce()?,
        };
        let (state, pending) = (Outgoing::Connecting, HashMap::new());
        Some(LinkOut { connection, peer, shard, greeting, state, pending })
    }

    pub(crate) fn is_up(&self) -> bool {
        matches!(self.state, Outgoing::Up)
    }

    /// The transport is there: the first message.
    pub(crate) fn hello(&mut self) -> Control {
        self.state = Outgoing::Greeting;
        Control::Hello {
            node: self.greeting.connector,
            incarnation: self.greeting.incarnation,
            reactor: self.greeting.shard,
            to: self.greeting.acceptor,
            nonce: self.greeting.nonce,
        }
    }

    /// An answer came before the link is up.
    pub(crate) fn answered(&mut self, reply: Option<ControlReply>, peers: &Peers) -> Progress {
        match (&self.state, reply) {
            (
                Outgoing::Greeting,
                Some(ControlReply::Challenge { nonce, code: theirs, reactors }),
            ) => {
                if reactors != u32::from(SHARDS) {
                    return Progress::Refuse(
                        "it keeps its mirrors in another number of shards; run the same version at both",
                    );
                }
                if !is_proven(peers, Side::Acceptor, &self.greeting, &nonce, &theirs) {
                    return Progress::Refuse("it does not know the cluster's link secret");
                }
                self.state = Outgoing::Proving;
                Progress::Send(Control::Prove {
                    code: code(peers, Side::Connector, &self.greeting, &nonce),
                })
            }
            (Outgoing::Proving, Some(ControlReply::Done)) => {
                self.state = Outgoing::Up;
                Progress::Up
            }
            _ => Progress::Refuse(
                "it does not accept this node; check the cluster's nodes and link secret",
            ),
        }
    }
}

/// A request as the initiator takes it, and its opcode.
pub(crate) fn command(request: &LinkRequest) -> (Command, u8) {
    let wire::Command { opcode, nsid, dwords, data, reply_len_max } = wire::encode_request(request);
    let data = data.map_or(Payload::None, Payload::Shared);
    (Command::vendor(opcode, nsid, dwords, data, reply_len_max as usize), opcode)
}

/// An answer as the target takes it.
pub(crate) fn outcome(reply: LinkReply) -> Outcome {
    match wire::encode_reply(reply) {
        WireReply::Done => Outcome::Done,
        WireReply::Data(data) => Outcome::Data(data),
        WireReply::Refused(code) => Outcome::Failed(Status::vendor(code, true)),
    }
}

/// A shard's channel to one peer.
pub(crate) struct Channel {
    /// Place of its connection in the reactor's table.
    pub(crate) connection: Option<usize>,
    pub(crate) is_up: bool,
    /// When to connect, while there is no connection.
    pub(crate) retry_at: Duration,
    pub(crate) pause: Duration,
    /// The mirror wants it, and is told how it stands. Otherwise it was opened for what hosts ask here
    /// that the peer is to answer.
    pub(crate) is_mirrors: bool,
    /// Requests that found the queue full, in order.
    pub(crate) waiting: VecDeque<(LinkAsker, LinkRequest)>,
}

impl Channel {
    /// A channel to be connected at once.
    pub(crate) fn new(now: Duration, is_mirrors: bool) -> Self {
        Channel {
            connection: None,
            is_up: false,
            retry_at: now,
            pause: RETRY_MIN,
            is_mirrors,
            waiting: VecDeque::new(),
        }
    }

    /// Its connection is gone.
    pub(crate) fn down(&mut self, now: Duration) {
        (self.connection, self.is_up) = (None, false);
        self.retry_at = now + self.pause;
        self.pause = (self.pause * 2).min(RETRY_MAX);
    }

    /// Whether it is being connected for the first time, or again after it was up.
    pub(crate) fn is_fresh(&self) -> bool {
        !self.is_up && self.pause == RETRY_MIN
    }

    /// Its connection is proven.
    pub(crate) fn up(&mut self) {
        (self.is_up, self.pause) = (true, RETRY_MIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use voute_nvme::{ConnectionOptions, Target, TargetConfig};

    const TAG: Tag = Tag::from_bits(1);

    fn peers(me: NodeId, other: NodeId, secret: u8) -> Peers {
        let address = "127.0.0.1:1".parse().unwrap();
        Peers {
            me,
            secret: [secret; 32],
            links: [(other, address)].into(),
            link_nqn: link_nqn("nqn.2026-01.example:a"),
        }
    }

    fn ends(connector: NodeId, acceptor: NodeId) -> (LinkOut, LinkIn) {
        let link_nqn = link_nqn("nqn.2026-01.example:a");
        let options = ConnectionOptions::new("nqn.2026-01.example:b", [1; 16], &link_nqn);
        let config = TargetConfig { link_nqn: Some(link_nqn), ..TargetConfig::default() };
        let target: Arc<Target> = Target::new(config).unwrap();
        let out = InitiatorConnection::connect_link(options, Duration::ZERO);
        let link_in = LinkIn::new(TargetConnection::new(target, 1, Duration::ZERO), Duration::ZERO);
        (LinkOut::new(out, acceptor, 3, connector, 9).unwrap(), link_in)
    }

    fn reply(admission: Admission) -> ControlReply {
        match admission {
            Admission::Answer(reply) | Admission::Proven(reply) => reply,
            Admission::Refuse(why) => panic!("refused: {why}"),
        }
    }

    #[test]
    fn two_nodes_that_know_the_secret_admit_each_other() {
        let (a, b) = (NodeId::generate(), NodeId::generate());
        let (mut out, mut link_in) = ends(a, b);
        assert_eq!(link_in.hold(TAG, &out.hello()), Some(3));
        let (_, greeting) = link_in.take_held().unwrap();
        let challenge = reply(link_in.challenge(greeting, &peers(b, a, 7)));
        let Progress::Send(prove) = out.answered(Some(challenge), &peers(a, b, 7)) else {
            panic!("the acceptor proved itself")
        };
        assert_eq!((link_in.peer(), link_in.prove_by()), (None, Some(PROVE_WITHIN)));
        let done = reply(link_in.admit(&prove, &peers(b, a, 7)));
        assert_eq!((link_in.peer(), link_in.prove_by()), (Some((a, 3)), None));
        assert!(matches!(out.answered(Some(done), &peers(a, b, 7)), Progress::Up));
        assert!(out.is_up());
    }

    #[test]
    fn an_acceptor_with_another_secret_is_not_trusted() {
        let (a, b) = (NodeId::generate(), NodeId::generate());
        let (mut out, mut link_in) = ends(a, b);
        link_in.hold(TAG, &out.hello()).unwrap();
        let (_, greeting) = link_in.take_held().unwrap();
        let challenge = reply(link_in.challenge(greeting, &peers(b, a, 8)));
        let progress = out.answered(Some(challenge), &peers(a, b, 7));
        assert!(matches!(progress, Progress::Refuse(_)));
    }

    #[test]
    fn a_reflected_or_forged_code_proves_nothing() {
        let (a, b) = (NodeId::generate(), NodeId::generate());
        let (mut out, mut link_in) = ends(a, b);
        let ours = peers(b, a, 7);
        link_in.hold(TAG, &out.hello()).unwrap();
        let (_, greeting) = link_in.take_held().unwrap();
        let ControlReply::Challenge { code, .. } = reply(link_in.challenge(greeting, &ours)) else {
            panic!("a greeting is challenged")
        };
        for code in [code, [0; 32]] {
            let admission = link_in.admit(&Control::Prove { code }, &ours);
            assert!(matches!(admission, Admission::Refuse(_)), "{admission:?}");
        }
        assert_eq!(link_in.peer(), None);
    }

    #[test]
    fn nothing_is_admitted_out_of_turn_or_from_strangers() {
        let (a, b, stranger) = (NodeId::generate(), NodeId::generate(), NodeId::generate());
        let (mut out, mut link_in) = ends(stranger, b);
        let ours = peers(b, a, 7);
        assert!(matches!(link_in.admit(&Control::Grant { seen: 0 }, &ours), Admission::Refuse(_)));
        assert_eq!(link_in.hold(TAG, &Control::Grant { seen: 0 }), None);
        link_in.hold(TAG, &out.hello()).unwrap();
        let (_, greeting) = link_in.take_held().unwrap();
        assert!(matches!(link_in.challenge(greeting, &ours), Admission::Refuse(_)));
    }

    /// Carries bytes between both ends until neither has any.
    fn pump(out: &mut LinkOut, link_in: &mut LinkIn) {
        loop {
            let (there, back) = (
                std::mem::take(out.connection.output()),
                std::mem::take(link_in.connection.output()),
            );
            if there.is_empty() && back.is_empty() {
                return;
            }
            link_in.connection.receive(&there, Duration::ZERO);
            out.connection.receive(&back, Duration::ZERO);
        }
    }

    #[test]
    fn a_link_that_greets_twice_and_goes_away_leaves_nothing_behind() {
        let (a, b) = (NodeId::generate(), NodeId::generate());
        let (mut out, mut link_in) = ends(a, b);
        pump(&mut out, &mut link_in);
        let hello = out.hello();
        for _ in 0..2 {
            let (command, _) = command(&LinkRequest::Control(hello.clone()));
            out.connection.submit(command, Duration::ZERO).unwrap();
        }
        pump(&mut out, &mut link_in);
        let tags: Vec<Tag> = std::iter::from_fn(|| link_in.connection.next_request())
            .map(|asked| asked.tag)
            .collect();
        assert_eq!((tags.len(), link_in.connection.outstanding()), (2, 2));
        assert_eq!(link_in.hold(tags[0], &hello), Some(3));
        assert_eq!(link_in.hold(tags[1], &hello), None, "one greeting at a time");
        assert!(matches!(link_in.admit(&hello, &peers(b, a, 7)), Admission::Refuse(_)));
        let refused = LinkReply::Refused(LinkRefusal::NotAuthenticated);
        link_in.connection.complete(tags[1], outcome(refused));
        link_in.disconnected();
        assert_eq!(link_in.connection.outstanding(), 0);
    }

    #[test]
    fn a_channel_is_tried_again_with_growing_pauses() {
        let mut channel = Channel::new(Duration::ZERO, true);
        let mut now = Duration::ZERO;
        let pauses: Vec<u128> = (0..5)
            .map(|_| {
                channel.down(now);
                let pause = (channel.retry_at - now).as_millis();
                now = channel.retry_at;
                pause
            })
            .collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1_000]);
        channel.up();
        channel.down(now);
        assert_eq!((channel.retry_at - now).as_millis(), 100);
    }
}
