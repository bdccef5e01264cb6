use super::*;
use voute_events::{MerkleTree, Signer};
use voute_schemas::commit::{Actor, Commit, Origin, Outcome};
use voute_schemas::contract::{GroupSpec, NodeFacts, SideSpec};
use voute_schemas::event::{DetachCause, MoveKind};
use voute_schemas::place::Portals;
use voute_schemas::proof::CommitProof;
use voute_schemas::*;

/// A log of one group, as a control process would show it.
struct Log {
    cluster: ClusterId,
    signers: Vec<Signer>,
    origin: &'static str,
    tree: MerkleTree,
    commits: Vec<Vec<u8>>,
    head: Epoch,
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
            group,
            node,
            peer,
        };
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

    fn spec(&self) -> NodeSpec {
        let size = self.tree.size();
        let at = self.group.epoch.sequence.0 - 1;
        let mut checkpoint = self.signers[0].sign(self.origin, size, self.tree.root(size).unwrap());
        for signer in &self.signers[1..] {
            checkpoint = signer.cosign(&checkpoint).unwrap();
        }
        NodeSpec {
            as_of: self.head,
            full: true,
            cluster: self.cluster,
            facts: Some(self.facts()),
            checkpoint,
            proofs: vec![CommitProof {
                sequence: self.group.epoch.sequence,
                commit: self.commits[at as usize].clone(),
                path: self.tree.inclusion_proof(at, size).unwrap(),
            }],
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
            verifiers: self.signers.iter().map(Signer::verifier).collect(),
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
    let refused = other.check(&other.spec(), Some(&trust), Epoch::ZERO);
    assert!(matches!(refused, Err(SpecError::Checkpoint(_))), "{refused:?}");
}

#[test]
fn new_signers_are_taken_on_when_the_old_majority_signs_too() {
    let mut log = Log::new();
    let trust = log.check(&log.spec(), None, Epoch::ZERO).unwrap();
    log.signers.extend(["b", "c"].map(|name| Signer::generate(name).unwrap()));
    let trust = log.check(&log.spec(), Some(&trust), Epoch::ZERO).unwrap();
    assert_eq!(trust.verifiers.len(), 3);
    log.signers.truncate(1);
    let mut spec = log.spec();
    spec.facts.as_mut().unwrap().verifiers = trust.verifiers.clone();
    let refused = log.check(&spec, Some(&trust), Epoch::ZERO);
    assert!(matches!(refused, Err(SpecError::Checkpoint(_))), "one of three is no majority");
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
