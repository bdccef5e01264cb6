//! Measures how a control process bears many volumes: cold rebuild, warm restart, memory, spec and
//! failover of one site.
//!
//! `cargo run --release -p voute-control --example scale -- [volumes] [commits]`
//! (100,000 volumes in a log of 1,000,000 commits unless told otherwise).

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use voute_control::domain::{SpecInputs, State, decide, evolve, node_spec};
use voute_control::projection::{Projection, Snapshot};
use voute_control::rebuild::rebuild;
use voute_control::service::{Changes, PipelineConfig, Seat, start};
use voute_events::{
    EmbeddedLog, Exchange, Log, MerkleTree, SignedRegister, Signer, VerifiedReader,
};
use voute_schemas::command::{AttestedGroup, Command, Escalation, LegRequest};
use voute_schemas::commit::{Actor, Commit, Origin, Outcome};
use voute_schemas::event::*;
use voute_schemas::place::{Locator, Portals};
use voute_schemas::proof::Verifier;
use voute_schemas::*;

#[derive(Debug)]
struct NoStreams;

impl Changes for NoStreams {
    fn changed(&self, _: &State, _: &State, _: &[Event]) {}
}

/// Decides and evolves like the pipeline, and hands out what to append.
struct Author {
    state: State,
    pending: Vec<Commit>,
    pending_bytes: usize,
}

impl Author {
    fn give(&mut self, command: Command) -> anyhow::Result<()> {
        let events = decide(&self.state, &command)?;
        let before = self.state.position();
        let commit = Commit {
            sequence: before.sequence.next(),
            previous: before.hash,
            id: CommitId::generate(),
            time_unix_ms: 1_790_000_000_000,
            actor: Actor::System,
            origin: Origin::Api,
            source: None,
            correlation: CorrelationId::generate(),
            causation: None,
            idempotency_key: None,
            command: command.name().to_owned(),
            reason: "measured".to_owned(),
            outcome: Outcome::Accepted(events),
        };
        let bytes = commit.encode();
        let position = Epoch { sequence: commit.sequence, hash: Hash::of_commit(&bytes) };
        evolve(&mut self.state, position, &commit);
        self.pending_bytes += bytes.len();
        self.pending.push(commit);
        Ok(())
    }

    async fn flush(&mut self, log: &EmbeddedLog, least: usize) -> anyhow::Result<()> {
        if self.pending.len() < least && self.pending_bytes < 800_000 {
            return Ok(());
        }
        let Some(first) = self.pending.first() else { return Ok(()) };
        let expected = Epoch { sequence: Sequence(first.sequence.0 - 1), hash: first.previous };
        log.append(expected, &self.pending).await?;
        self.pending.clear();
        self.pending_bytes = 0;
        Ok(())
    }
}

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
}

/// Processor time of all threads so far: on a busy machine it tells more than the clock.
fn processor_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> =
        stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    // Fields 14 and 15 of proc(5), in hundredths of a second; two stand before the ')'.
    let ticks = |index: usize| fields.get(index).and_then(|it| it.parse::<f64>().ok());
    (ticks(11).unwrap_or(0.0) + ticks(12).unwrap_or(0.0)) / 100.0
}

fn report(what: &str, took: Duration, detail: &str) {
    let mut out = std::io::stdout().lock();
    let seconds = took.as_secs_f64();
    let _ = std::io::Write::write_fmt(
        &mut out,
        format_args!(
            "{what:<44} {seconds:>8.3} s   {detail} (resident {} MiB, processor {:.2} s so far)\n",
            resident_mib(),
            processor_seconds()
        ),
    );
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let volumes: usize = arguments.next().map_or(Ok(100_000), |text| text.parse())?;
    let commits: u64 = arguments.next().map_or(Ok(1_000_000), |text| text.parse())?;
    let folder = tempfile::tempdir()?;
    let log = EmbeddedLog::open(folder.path().join("log.redb"))?;
    let signer = Signer::load_or_create(folder.path().join("site.key"), "log-1")?;
    let began = Instant::now();
    let nodes = write_log(&log, &signer, volumes, commits).await?;
    report("writing the log", began.elapsed(), &format!("{volumes} volumes, {commits} commits"));

    let log = Arc::new(log);
    let began = Instant::now();
    let mut reader = VerifiedReader::new(Arc::clone(&log), Epoch::ZERO);
    while !reader.next_batch(8_192).await?.is_empty() {}
    report("reading and verifying alone", began.elapsed(), "");
    let began = Instant::now();
    let rebuilt = rebuild(Arc::clone(&log), Sequence(u64::MAX)).await?;
    let replayed = rebuilt.tree.size();
    report("cold rebuild (read, verify, evolve)", began.elapsed(), &format!("{replayed} commits"));
    measure_state(&rebuilt.state, &nodes)?;
    save(folder.path(), &rebuilt.state, &rebuilt.tree)?;
    let expected = rebuilt.state.digest();
    drop(rebuilt);

    let began = Instant::now();
    let projection = Projection::open(&folder.path().join("projection.redb"))?;
    let snapshot = projection.load()?.unwrap_or_else(Snapshot::default);
    report("  reading the snapshot", began.elapsed(), "");
    let register = SignedRegister::open(folder.path().join("signed.register"))?;
    let (_stop, stop) = tokio::sync::watch::channel(false);
    let config = PipelineConfig {
        seat: Some(Seat::new(signer, register)),
        exchange: Exchange::alone(),
        projection: Some(projection),
        snapshot,
        changes: Arc::new(NoStreams),
        stop,
    };
    let (service, ..) = start(log, config).await?;
    report("warm restart to a signed, serving state", began.elapsed(), "");
    anyhow::ensure!(service.state().digest() == expected, "the restarted state differs");
    Ok(())
}

fn save(folder: &Path, state: &State, tree: &MerkleTree) -> anyhow::Result<()> {
    let began = Instant::now();
    let projection = Projection::open(&folder.join("projection.redb"))?;
    let leaves: Vec<Hash> = (0..tree.size()).filter_map(|index| tree.leaf(index)).collect();
    projection.save(state, 0, &leaves, (&Default::default(), &Default::default()))?;
    let bytes = state.encode().len();
    report("writing the first snapshot", began.elapsed(), &format!("{} MiB of state", bytes >> 20));
    Ok(())
}

fn measure_state(state: &State, nodes: &[(SiteId, NodeId)]) -> anyhow::Result<()> {
    let began = Instant::now();
    let digest = state.digest();
    report("digest of the state", began.elapsed(), &digest.to_string()[..8]);
    let inputs =
        SpecInputs { times: times::Times::default(), link_secret: "", chap_secret: &|_| None };
    let began = Instant::now();
    let spec = node_spec(state, nodes[0].1, &inputs);
    let groups = spec.as_ref().map_or(0, |spec| spec.groups.len());
    report("full spec of a node, without proofs", began.elapsed(), &format!("{groups} groups"));
    let began = Instant::now();
    let attestation =
        Attestation { legs_open: true, owner_silent: true, lease_expired: true, silent_ms: 2_000 };
    let attested: Vec<_> = state
        .groups_of_node(nodes[0].1)
        .filter(|(_, group)| group.owner == nodes[0].1)
        .map(|(group, it)| AttestedGroup { group, epoch: it.epoch, to: nodes[1].1, attestation })
        .collect();
    let failover = Command::FailOverSite {
        failover: FailoverId::generate(),
        site: nodes[0].0,
        evidence: FailoverEvidence {
            condition: SiteCondition::Lost,
            observed: String::new(),
            first_sign_unix_ms: 0,
            decided_unix_ms: 0,
            left_behind: vec![],
            left_behind_total: 0,
        },
        attested,
    };
    let events = decide(state, &failover)?;
    report("deciding a site's failover", began.elapsed(), &format!("{} events", events.len()));
    Ok(())
}

/// A cluster of two sites, many volumes, and, up to the asked number of commits, what happens over
/// the years: mappings come and go.
async fn write_log(
    log: &EmbeddedLog,
    signer: &Signer,
    volumes: usize,
    commits: u64,
) -> anyhow::Result<Vec<(SiteId, NodeId)>> {
    let mut author = Author { state: State::default(), pending: Vec::new(), pending_bytes: 0 };
    let log_site: Verifier = signer.verifier();
    let (cluster, name) = (ClusterId::generate(), Name::new("scale")?);
    author.give(Command::CreateCluster { cluster, name, log_site })?;
    let mut nodes = Vec::new();
    let mut pools = Vec::new();
    let size = (volumes as u64 + 1) * (32 << 20) + (1 << 30);
    for index in 0..2u8 {
        let called = |noun: &str| Name::new(format!("{noun}-{index}"));
        let address =
            |port: u16| std::net::SocketAddr::from(([127, 0, 0, 1], port + u16::from(index)));
        let portals = Portals { nvme: address(4000), iscsi: address(5000), link: address(6000) };
        let (site, node) = (SiteId::generate(), NodeId::generate());
        let (pool, device) = (PoolId::generate(), DeviceId::generate());
        let (kind, verifier) = (SiteKind::Data, Hash::of(&[index]));
        author.give(Command::AddSite { site, name: called("site")?, kind })?;
        author.give(Command::AddNode { node, name: called("node")?, site, portals, verifier })?;
        author.give(Command::CreatePool {
            pool,
            name: called("pool")?,
            site,
            extent_bytes: 16 << 20,
        })?;
        let locator = Locator::Memory { size_bytes: size };
        let (name, overwrite) = (called("device")?, false);
        author.give(Command::AddDevice { device, name, node, pool, locator, overwrite })?;
        let ready = Escalation::DeviceReady { device, size_bytes: size, block_bytes: 512 };
        author.give(Command::Escalate { node, requests: vec![ready] })?;
        nodes.push((site, node));
        pools.push(pool);
    }
    let host = HostId::generate();
    let identity = HostIdentity { nqns: vec!["nqn.2026-11.test:h".into()], ..Default::default() };
    author.give(Command::AddHost { host, name: Name::new("host")?, identity })?;
    let mut created = Vec::with_capacity(volumes);
    for index in 0..volumes {
        let legs: Vec<_> =
            pools.iter().map(|pool| LegRequest { leg: LegId::generate(), pool: *pool }).collect();
        let volume = VolumeId::generate();
        author.give(Command::CreateVolume {
            volume,
            group: GroupId::generate(),
            name: Name::new(format!("volume-{index}"))?,
            size_bytes: 16 << 20,
            block_bytes: 4_096,
            legs: legs.clone(),
            policy: None,
        })?;
        for (leg, (_, node)) in legs.iter().zip(&nodes) {
            let requests = vec![Escalation::LegFormatted { leg: leg.leg }];
            author.give(Command::Escalate { node: *node, requests })?;
        }
        created.push(volume);
        author.flush(log, 2_000).await?;
    }
    let mut turn = 0;
    while author.state.position().sequence.0 < commits {
        let volume = created[turn / 2 % created.len().max(1)];
        let command = if turn % 2 == 0 {
            Command::MapVolume { volume, host, lun: None, read_only: false }
        } else {
            Command::UnmapVolume { volume, host }
        };
        author.give(command)?;
        turn += 1;
        author.flush(log, 2_000).await?;
    }
    author.flush(log, 0).await?;
    Ok(nodes)
}
