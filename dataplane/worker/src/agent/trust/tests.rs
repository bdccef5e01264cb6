use super::*;
use voute_events::{MerkleTree, Signer};
use voute_schemas::commit::{Actor, Commit, Origin, Outcome};
use voute_schemas::contract::{GroupSpec, NodeFacts, SideSpec};
use voute_schemas::event::{DetachCause, MoveKind};
use voute_schemas::place::Portals;
use voute_schemas::proof::{CommitProof, HandOver};
use voute_schemas::*;

/// A log of one group, as a control process would show it.
struct Log {
    cluster: ClusterId,
    signers: Vec<Signer>,
    origin: &'static str,
    tree: MerkleTree,
    commits: Vec<Vec<u8>>,
    head: Epoch,
    /// Hand-overs so far, but for the founding.
    hand_overs: Vec<HandOver>,
    group: GroupSpec,
    node: NodeId,
    peer: NodeId,
}

fn site_of(group: &GroupSpec, node: NodeId) -> SiteId {
    group.sides.iter().find(|side| side.node == node).unwrap().site
}

impl Log {
    fn new() -> Self {
        let (node, peer) = (NodeId::generate(), NodeId::generate());
        let side = |node| SideSpec { site: SiteId::generate(), node, in_sync: true };
        let group = GroupSpec {
            group: GroupId::generate(),
            epoch: Epoch::ZERO,
            owner: node,
            sides: vec![side(node), side(peer)],
            last_common: Epoch::ZERO,
            volumes: vec![],
        };
        let mut log = Log {
            cluster: ClusterId::generate(),
            signers: vec![Signer::generate("a").unwrap()],
            origin: "log",
            tree: MerkleTree::new(),
            commits: vec![],
            head: Epoch::ZERO,
            hand_overs: vec![],
            group,
            node,
            peer,
        };
        let (cluster, log_site) = (log.cluster, log.signers[0].verifier());
        log.commit(Event::ClusterCreated { cluster, name: Name::new("c").unwrap(), log_site });
        log.group.epoch = log.commit(Event::VolumeCreated {
            volume: VolumeId::generate(),
            name: Name::new("v").unwrap(),
            group: log.group.group,
            number: 1,
            size_bytes: 1 << 20,
            block_bytes: 512,
            legs: vec![],
            owner: node,
            policy: None,
        });
        log
    }

    fn commit(&mut self, event: Event) -> Epoch {
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
            outcome: Outcome::Accepted(vec![event]),
        };
        let bytes = commit.encode();
        let hash = Hash::of_commit(&bytes);
        self.tree.push(hash);
        self.commits.push(bytes);
        self.head = Epoch { sequence: commit.sequence, hash };
        self.head
    }

    fn detach_peer(&mut self) {
        let (group, site) = (self.group.group, site_of(&self.group, self.peer));
        let cause = DetachCause::Unreachable;
        self.group.epoch = self.commit(Event::LegDetached { group, site, cause });
        self.group.sides[1].in_sync = false;
    }

    fn verifiers(&self) -> Vec<Verifier> {
        self.signers.iter().map(Signer::verifier).collect()
    }

    /// What the log says now, signed by these.
    fn signed_by<'a>(&self, signers: impl IntoIterator<Item = &'a Signer>) -> Checkpoint {
        let size = self.tree.size();
        let mut signers = signers.into_iter();
        let first = signers.next().unwrap();
        let checkpoint = first.sign(self.origin, size, self.tree.root(size).unwrap());
        signers.fold(checkpoint, |checkpoint, signer| signer.cosign(&checkpoint).unwrap())
    }

    fn proof(&self, sequence: Sequence) -> CommitProof {
        let at = sequence.0 - 1;
        CommitProof {
            sequence,
            commit: self.commits[at as usize].clone(),
            path: self.tree.inclusion_proof(at, self.tree.size()).unwrap(),
        }
    }

    /// Others sign from here on; those before and they sign that.
    fn hand_over(&mut self, to: Vec<Signer>) {
        let sites = to.iter().map(Signer::verifier).collect();
        self.commit(Event::LogSitesChanged { sites });
        let before = std::mem::replace(&mut self.signers, to);
        let checkpoint = self.signed_by(before.iter().chain(&self.signers));
        let named = self.proof(self.head.sequence);
        self.hand_overs.push(HandOver { checkpoint, named });
    }

    fn spec(&self) -> NodeSpec {
        let checkpoint = self.signed_by(&self.signers);
        let size = self.tree.size();
        let founding = HandOver { checkpoint: checkpoint.clone(), named: self.proof(Sequence(1)) };
        NodeSpec {
            as_of: self.head,
            full: true,
            cluster: self.cluster,
            facts: Some(self.facts()),
            checkpoint,
            as_of_path: self.tree.inclusion_proof(size - 1, size).unwrap(),
            hand_overs: match self.hand_overs.is_empty() {
                true => vec![founding],
                false => self.hand_overs.clone(),
            },
            proofs: vec![self.proof(self.group.epoch.sequence)],
            groups: vec![self.group.clone()],
            removed_groups: vec![],
        }
    }

    fn facts(&self) -> NodeFacts {
        let address = "127.0.0.1:1".parse().unwrap();
        NodeFacts {
            node: self.node,
            name: Name::new("n").unwrap(),
            site: SiteId::generate(),
            number: 1,
            verifiers: self.verifiers(),
            times: Default::default(),
            portals: Portals { nvme: address, iscsi: address, link: address },
            link_secret: "00".repeat(32),
            nodes: vec![],
            devices: vec![],
            retired_legs: vec![],
            hosts: vec![],
            subsystem_nqn: "nqn.x".into(),
            target_iqn: "iqn.x".into(),
            serial: "S".into(),
        }
    }

    fn check(
        &self,
        spec: &NodeSpec,
        trust: Option<&Trust>,
        obeyed: Epoch,
    ) -> Result<Trust, SpecError> {
        check(spec, self.node, trust, obeyed, &Proven::new())
    }
}

#[test]
fn a_proven_spec_is_obeyed_and_its_signers_are_kept() {
    let log = Log::new();
    let trust = log.check(&log.spec(), None, Epoch::ZERO).unwrap();
    assert_eq!((trust.cluster, trust.origin.as_str()), (log.cluster, "log"));
    log.check(&log.spec(), Some(&trust), log.head).unwrap();
}

#[test]
fn an_epoch_without_its_proof_is_refused() {
    let mut log = Log::new();
    let mut spec = log.spec();
    spec.proofs.clear();
    let refused = log.check(&spec, None, Epoch::ZERO);
    assert!(matches!(refused, Err(SpecError::Unproven { .. })), "{refused:?}");
    let proven = Proven::from([(log.group.group, log.group.epoch)]);
    check(&spec, log.node, None, Epoch::ZERO, &proven).expect("it was proven before");

    // A commit that is in the log, but decides nothing about this group.
    log.commit(Event::ClusterLevelRaised { level: 1 });
    log.group.epoch = log.head;
    let refused = log.check(&log.spec(), None, Epoch::ZERO);
    assert!(matches!(refused, Err(SpecError::Unproven { .. })), "{refused:?}");
}

#[test]
fn a_spec_that_contradicts_its_commit_is_refused() {
    let mut log = Log::new();
    let mut spec = log.spec();
    spec.groups[0].owner = log.peer;
    let refused = log.check(&spec, None, Epoch::ZERO);
    assert!(matches!(refused, Err(SpecError::Contradiction { .. })), "{refused:?}");

    log.detach_peer();
    let mut spec = log.spec();
    log.check(&spec, None, Epoch::ZERO).unwrap();
    spec.groups[0].sides[1].in_sync = true;
    let refused = log.check(&spec, None, Epoch::ZERO);
    assert!(matches!(refused, Err(SpecError::Contradiction { .. })), "{refused:?}");
}

#[test]
fn a_moved_owner_must_be_the_one_that_the_commit_names() {
    let mut log = Log::new();
    let (group, from, to) = (log.group.group, log.node, log.peer);
    log.group.epoch = log.commit(Event::OwnerMoved { group, from, to, kind: MoveKind::Planned });
    let refused = log.check(&log.spec(), None, Epoch::ZERO);
    assert!(matches!(refused, Err(SpecError::Contradiction { .. })), "{refused:?}");
    log.group.owner = to;
    log.check(&log.spec(), None, Epoch::ZERO).unwrap();
}

#[test]
fn an_older_or_forked_position_is_refused() {
    let mut log = Log::new();
    let trust = log.check(&log.spec(), None, Epoch::ZERO).unwrap();
    let older = log.spec();
    log.detach_peer();
    let refused = log.check(&older, Some(&trust), log.head);
    assert!(matches!(refused, Err(SpecError::Older { .. })), "{refused:?}");
    let forked = Epoch { hash: Hash([9; 32]), ..log.head };
    let refused = log.check(&log.spec(), Some(&trust), forked);
    assert!(matches!(refused, Err(SpecError::Forked { .. })), "{refused:?}");
    // The same for a single group: its epoch must not go back either.
    let proven = Proven::from([(log.group.group, log.group.epoch)]);
    let refused = check(&older, log.node, Some(&trust), Epoch::ZERO, &proven);
    assert!(matches!(refused, Err(SpecError::Older { .. })), "{refused:?}");
}

#[test]
fn unknown_signers_are_not_believed() {
    let log = Log::new();
    let trust = log.check(&log.spec(), None, Epoch::ZERO).unwrap();
    let mut other = Log::new();
    (other.cluster, other.node) = (log.cluster, log.node);
    let mut spec = other.spec();
    let refused = other.check(&spec, Some(&trust), Epoch::ZERO);
    assert_eq!(refused, Err(SpecError::SitesUnproven));
    spec.facts = None;
    let refused = other.check(&spec, Some(&trust), Epoch::ZERO);
    assert!(matches!(refused, Err(SpecError::Checkpoint(_))), "{refused:?}");
}

fn signers(names: &[&str]) -> Vec<Signer> {
    let named = |name: &&str| Signer::from_seed(name, [name.as_bytes()[0]; 32]).unwrap();
    names.iter().map(named).collect()
}

/// A log whose first signer handed over to these, and whom a node trusts since.
fn log_of(names: &[&str]) -> (Log, Trust) {
    let mut log = Log::new();
    log.hand_over(signers(names));
    let trust = log.check(&log.spec(), None, Epoch::ZERO).unwrap();
    assert_eq!((&trust.verifiers, trust.named_at), (&log.verifiers(), log.head.sequence));
    (log, trust)
}

#[test]
fn new_signers_are_taken_on_by_the_commit_that_names_them() {
    let mut log = Log::new();
    let trust = log.check(&log.spec(), None, Epoch::ZERO).unwrap();
    log.hand_over(signers(&["a", "b", "c"]));
    let trust = log.check(&log.spec(), Some(&trust), Epoch::ZERO).unwrap();
    assert_eq!((&trust.verifiers, trust.named_at), (&log.verifiers(), log.head.sequence));
    log.signers.truncate(1);
    let mut spec = log.spec();
    spec.facts.as_mut().unwrap().verifiers = trust.verifiers.clone();
    let refused = log.check(&spec, Some(&trust), Epoch::ZERO);
    assert!(matches!(refused, Err(SpecError::Checkpoint(_))), "one of three is no majority");
}

/// A control process was taken over. What the log's sites really signed lies before it.
#[test]
fn one_control_process_alone_cannot_replace_whom_a_node_trusts() {
    let (log, trust) = log_of(&["a", "b", "c"]);
    let own = signers(&["k"]).pop().unwrap();
    let honest = log.spec();
    let mut spec = log.spec();
    spec.facts.as_mut().unwrap().verifiers = vec![own.verifier()];
    spec.checkpoint = own.cosign(&honest.checkpoint).unwrap();
    let refused = log.check(&spec, Some(&trust), Epoch::ZERO);
    assert_eq!(refused, Err(SpecError::SitesUnproven), "no commit names it");
    // With a commit of its own making that does, which no majority covers.
    let mut forged = Log { commits: log.commits.clone(), ..Log::new() };
    (forged.cluster, forged.node, forged.head) = (log.cluster, log.node, log.head);
    for commit in &log.commits {
        forged.tree.push(Hash::of_commit(commit));
    }
    forged.hand_over(vec![own]);
    spec.hand_overs.push(forged.hand_overs.last().unwrap().clone());
    let refused = log.check(&spec, Some(&trust), Epoch::ZERO);
    assert!(matches!(refused, Err(SpecError::Checkpoint(_))), "{refused:?}");
    // With its proof put under the majority's checkpoint.
    spec.hand_overs.last_mut().unwrap().checkpoint = honest.checkpoint;
    let refused = log.check(&spec, Some(&trust), Epoch::ZERO);
    assert!(matches!(refused, Err(SpecError::Proof(_))), "{refused:?}");
}

#[test]
fn nobody_goes_back_to_signers_of_an_earlier_commit() {
    let (mut log, trust) = log_of(&["a", "b", "c"]);
    let earlier = log.spec();
    log.hand_over(signers(&["a", "b", "d"]));
    let trust = log.check(&log.spec(), Some(&trust), Epoch::ZERO).unwrap();
    assert_eq!(trust.verifiers, log.verifiers());
    // Those whom the old spec names are two of three that are trusted, and sign what is new.
    let mut spec = log.spec();
    spec.facts.as_mut().unwrap().verifiers = earlier.facts.unwrap().verifiers;
    spec.hand_overs = earlier.hand_overs;
    let refused = log.check(&spec, Some(&trust), Epoch::ZERO);
    assert_eq!(refused, Err(SpecError::SitesUnproven));
}

#[test]
fn who_was_away_follows_every_step() {
    let (mut log, trust) = log_of(&["a", "b", "c"]);
    let steps: [&[&str]; 5] = [
        &["a", "b", "c", "d"],
        &["a", "b", "d"],
        &["a", "b", "d", "e"],
        &["b", "d", "e"],
        &["d", "e"],
    ];
    for names in steps {
        log.hand_over(signers(names));
    }
    let followed = log.check(&log.spec(), Some(&trust), Epoch::ZERO).unwrap();
    assert_eq!((&followed.verifiers, followed.named_at), (&log.verifiers(), log.head.sequence));
    // The last step alone: of the three that are trusted only one signed it.
    let mut spec = log.spec();
    spec.hand_overs.drain(..5);
    let refused = log.check(&spec, Some(&trust), Epoch::ZERO);
    assert!(matches!(refused, Err(SpecError::Checkpoint(_))), "{refused:?}");
    spec.hand_overs.clear();
    let refused = log.check(&spec, Some(&trust), Epoch::ZERO);
    assert_eq!(refused, Err(SpecError::SitesUnproven));
}

#[test]
fn who_is_named_but_did_not_sign_is_not_trusted() {
    let (mut log, trust) = log_of(&["a", "b", "c"]);
    let before = signers(&["a", "b", "c"]);
    log.hand_over(signers(&["d", "e", "f"]));
    let only_before = log.signed_by(&before);
    log.hand_overs.last_mut().unwrap().checkpoint = only_before;
    let refused = log.check(&log.spec(), Some(&trust), Epoch::ZERO);
    assert!(matches!(refused, Err(SpecError::Checkpoint(_))), "{refused:?}");
}

/// A number far ahead, once noted, would end a node's control for good.
#[test]
fn a_position_that_no_checkpoint_covers_is_refused() {
    let log = Log::new();
    let trust = log.check(&log.spec(), None, Epoch::ZERO).unwrap();
    for as_of in [
        Epoch { sequence: Sequence(1 << 63), hash: log.head.hash },
        Epoch { sequence: log.head.sequence.next(), hash: log.head.hash },
        Epoch { hash: Hash([9; 32]), ..log.head },
        Epoch::ZERO,
    ] {
        let mut spec = log.spec();
        spec.as_of = as_of;
        for trust in [None, Some(&trust)] {
            let refused = log.check(&spec, trust, Epoch::ZERO);
            assert!(matches!(refused, Err(SpecError::Nowhere { .. })), "{refused:?}");
        }
    }
}

#[test]
fn another_cluster_log_or_node_is_refused() {
    let mut log = Log::new();
    let trust = log.check(&log.spec(), None, Epoch::ZERO).unwrap();
    let mut spec = log.spec();
    spec.cluster = ClusterId::generate();
    let refused = log.check(&spec, Some(&trust), Epoch::ZERO);
    assert!(matches!(refused, Err(SpecError::OtherCluster { .. })), "{refused:?}");
    let spec = log.spec();
    log.origin = "other";
    let refused = log.check(&log.spec(), Some(&trust), Epoch::ZERO);
    assert!(matches!(refused, Err(SpecError::OtherLog { .. })), "{refused:?}");
    let refused = check(&spec, log.peer, None, Epoch::ZERO, &Proven::new());
    assert!(matches!(refused, Err(SpecError::OtherNode { .. })), "{refused:?}");
}
