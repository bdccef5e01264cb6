//! The story: build, load, kill, survive, return, move back, explain, prove.

use crate::api::names::Names;
use crate::api::waiting::Step;
use crate::cli::quantity::show_size;
use crate::commands::trail::read_trail;
use crate::commands::{judge_moved, judge_resynced};
use crate::demo::cluster::{Cluster, READER_IQN, SITES, VOLUME, VOLUME_BYTES};
use crate::demo::figures::{Figures, Phases};
use crate::demo::host::{Host, Layout, Load};
use crate::demo::narrator::Narrator;
use crate::demo::nats::Server;
use crate::demo::path::PathConfig;
use crate::demo::reader::{Reader, ReaderConfig};
use crate::demo::stage::Stage;
use crate::print::events::outcome_words;
use crate::print::plain;
use crate::print::time::{now_unix_ms, show_clock};
use anyhow::{Context, ensure};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use voute_control::api::answers::{CommitView, FailoverView, Verification};
use voute_control::api::requests::{AuditQuery, MoveGroup, Reference};
use voute_schemas::event::ResyncEvidence;
use voute_schemas::{CorrelationId, Event};

/// The writer's slots fill this many regions of 1 MiB. What the returning site lacks is at most
/// these.
const REGIONS: u32 = 12;
const WORKERS: u32 = 8;
/// Acknowledgements that show that load flows.
const FLOWING: u64 = 1_000;
const FLOW_TIME_MAX: Duration = Duration::from_secs(30);
const CONNECT_TIME_MAX: Duration = Duration::from_secs(15);

/// One telling.
pub struct Story<'a> {
    narrator: Narrator,
    stage: &'a Stage,
    runtime: Handle,
    cluster: Option<Cluster>,
    figures: Figures,
}

/// The verifying host with everything that runs on it.
struct Workload {
    host: Arc<Host>,
    load: Load,
    reader: Reader,
}

impl<'a> Story<'a> {
    /// Not yet begun.
    #[must_use]
    pub fn new(narrator: Narrator, stage: &'a Stage, runtime: Handle) -> Self {
        Story { narrator, stage, runtime, cluster: None, figures: Figures::default() }
    }

    /// Tells it.
    ///
    /// # Errors
    /// If something does not happen that should.
    pub fn tell(&mut self, nats: Option<&Server>) -> anyhow::Result<Figures> {
        let cluster = self.build(nats)?;
        let outcome = self.play(&cluster);
        self.cluster = Some(cluster);
        outcome?;
        self.figures.seconds = self.narrator.seconds();
        Ok(self.figures.clone())
    }

    fn play(&mut self, cluster: &Cluster) -> anyhow::Result<()> {
        let workload = self.begin_load(cluster)?;
        self.kill_owner(cluster, &workload)?;
        self.bring_back(cluster)?;
        self.move_back(cluster, &workload)?;
        self.check_everything(workload)?;
        self.explain(cluster)
    }

    fn build(&mut self, nats: Option<&Server>) -> anyhow::Result<Cluster> {
        self.narrator.chapter("Two sites, one mirrored volume");
        let mut cluster = Cluster::start(self.stage, nats)?;
        self.figures.log.clone_from(&cluster.log);
        self.narrator.say(&format!(
            "control plane at {}, log {}",
            cluster.client.api(),
            cluster.log
        ));
        cluster.add_sites(self.stage)?;
        for node in &cluster.nodes {
            let portals = node.portals;
            self.narrator.say(&format!(
                "site {}: a node, NVMe/TCP at {}, iSCSI at {}",
                node.site, portals.nvme, portals.iscsi
            ));
        }
        cluster.add_pools(self.stage)?;
        self.narrator.say("a pool of one sparse file at each site");
        Ok(cluster)
    }

    fn begin_load(&mut self, cluster: &Cluster) -> anyhow::Result<Workload> {
        let host = CorrelationId::generate();
        let host_nqn = format!("nqn.2014-08.org.nvmexpress:uuid:{host}");
        let volume = cluster.add_volume(self.stage, &host_nqn)?;
        self.figures.volume_bytes = VOLUME_BYTES;
        self.narrator.say(&format!(
            "volume {VOLUME}, {}, a leg at each site, owned by {}",
            show_size(VOLUME_BYTES),
            volume.owner_site.name
        ));

        self.narrator.chapter("A verifying host, with a path to each site");
        let names = cluster.view()?;
        let path = |node: &crate::demo::cluster::SiteNode| PathConfig {
            portal: node.portals.nvme,
            host_nqn: host_nqn.clone(),
            host_id: host.bytes(),
            subsystem_nqn: names.subsystem_nqn.clone(),
            volume: volume.volume.bytes(),
        };
        let mapping = volume.mappings.iter().find(|mapping| mapping.host.name == "reader");
        let lun = mapping.context("the volume is not granted to the reader")?.lun;
        let layout = Layout {
            volume_bytes: VOLUME_BYTES,
            regions: REGIONS,
            region_bytes: volume_region_bytes(),
        };
        let _entered = self.runtime.enter();
        let host = Host::start(cluster.nodes.iter().map(path).collect(), layout, now_unix_ms());
        ensure!(
            self.runtime.block_on(host.connected(CONNECT_TIME_MAX)),
            "the host could not connect to both sites over NVMe/TCP within {} s",
            CONNECT_TIME_MAX.as_secs()
        );
        self.narrator.say("NVMe/TCP connected at both sites: one optimized path, one inaccessible");
        let load = Load::start(&host, WORKERS);
        let reader = Reader::start(
            &host,
            ReaderConfig {
                portals: cluster.nodes.iter().map(|node| node.portals.iscsi).collect(),
                initiator: READER_IQN.to_owned(),
                target: names.target_iqn,
                lun,
            },
        );
        let workload = Workload { host, load, reader };
        self.wait_flow(&workload, "before the failure")?;
        ensure!(
            workload.reader.wait_for_reads(100, FLOW_TIME_MAX),
            "the iSCSI reader reads nothing: {}",
            workload.reader.trouble()
        );
        self.narrator.say(&format!(
            "{} writes acknowledged by {WORKERS} writers, {} reads checked, {} of them over iSCSI",
            workload.host.ledger.acknowledged_writes(),
            workload.host.ledger.reads(),
            workload.reader.reads()
        ));
        Ok(workload)
    }

    fn wait_flow(&self, workload: &Workload, when: &str) -> anyhow::Result<()> {
        let flows = workload.host.pulse.wait(FLOWING, FLOW_TIME_MAX);
        ensure!(
            flows,
            "{FLOWING} writes were not acknowledged within {} s {when}; the host met: {:?}",
            FLOW_TIME_MAX.as_secs(),
            workload.host.failures()
        );
        Ok(())
    }

    fn kill_owner(&mut self, cluster: &Cluster, workload: &Workload) -> anyhow::Result<()> {
        self.narrator.chapter("The owning site dies under load");
        let before = cluster.wait_volume(self.stage, "automatic failover is armed", |view| {
            if view.armed { Step::Done } else { Step::Going(view.not_armed_because.join("; ")) }
        })?;
        let owner = cluster.node_at(&before.owner_site.name)?;
        workload.host.pulse.restart();
        let process = self.stage.children().kill(&owner.name())?;
        self.narrator.say(&format!("SIGKILL to process {process}, the node of {}", owner.site));
        self.wait_flow(workload, "after the failure")?;
        let gap = workload.host.pulse.longest_gap();
        self.figures.failover_ms = milliseconds(gap);
        let after = cluster.volume()?;
        ensure!(
            after.owner_site.name != owner.site,
            "load flows, but {} still owns the volume",
            owner.site
        );
        self.narrator.say(&format!(
            "{} took over; from the last acknowledgement before to the first after: {} ms",
            after.owner_site.name, self.figures.failover_ms
        ));
        let record: FailoverView = self.stage.wait_until("the failover is measured", || {
            let failovers: Vec<FailoverView> = cluster.client.list_of("/v1/failovers").ok()?;
            failovers.into_iter().find(|failover| failover.phases.is_some())
        })?;
        self.tell_phases(&record);
        let wrong = self.runtime.block_on(workload.host.verify_all(WORKERS));
        self.figures.lost_writes += wrong;
        self.narrator.say(&format!(
            "all {} slots read through {} meanwhile: {wrong} wrong",
            workload.host.layout().slots(),
            after.owner_site.name
        ));
        Ok(())
    }

    fn tell_phases(&mut self, record: &FailoverView) {
        let Some(phases) = record.phases else { return };
        self.figures.failover_phases = Phases {
            detection_ms: phases.detection_ms,
            commit_ms: phases.commit_ms,
            lease_wait_ms: phases.lease_wait_ms,
            open_ms: phases.open_ms,
            first_io_ms: phases.first_io_ms,
        };
        let first_io = phases
            .first_io_ms
            .map_or_else(String::new, |taken| format!(", first host I/O {taken} ms"));
        self.narrator.say(&format!(
            "by the log: detection {} ms, commit {} ms, lease wait {} ms, opening {} ms{first_io}",
            phases.detection_ms, phases.commit_ms, phases.lease_wait_ms, phases.open_ms
        ));
    }

    fn bring_back(&mut self, cluster: &Cluster) -> anyhow::Result<()> {
        self.narrator.chapter("The site comes back");
        let lost = cluster.node_at(SITES[0])?;
        cluster.start_node(self.stage, lost)?;
        cluster.wait_heard(self.stage, lost)?;
        self.narrator.say(&format!("the node of {} runs again, hosts still write", lost.site));
        cluster.wait_volume(self.stage, "the returned site is in sync", judge_resynced)?;
        let evidence = last_resync(cluster)?;
        self.figures.resync_bytes = evidence.bytes;
        self.narrator.say(&format!(
            "in sync again: {} copied of a volume of {} in {} ms{}",
            show_size(evidence.bytes),
            show_size(VOLUME_BYTES),
            evidence.duration_ms,
            if evidence.full { ", all of it" } else { ", only what it had missed" }
        ));
        Ok(())
    }

    fn move_back(&mut self, cluster: &Cluster, workload: &Workload) -> anyhow::Result<()> {
        self.narrator.chapter("The volume moves back, hosts notice nothing");
        let home = SITES[0];
        let errors_before = workload.host.io_errors();
        self.wait_flow(workload, "before the planned move")?;
        workload.host.pulse.restart();
        let group = cluster.volume()?.group;
        let client = cluster.client.because("back to its usual site");
        client.post(
            &format!("/v1/groups/{group}/move"),
            &MoveGroup { to: Reference(home.to_owned()) },
        )?;
        cluster
            .wait_volume(self.stage, "the planned move is done", |view| judge_moved(view, home))?;
        self.wait_flow(workload, "after the planned move")?;
        self.figures.planned_move_stall_ms = milliseconds(workload.host.pulse.longest_gap());
        self.figures.io_errors_during_planned_move = workload.host.io_errors() - errors_before;
        self.narrator.say(&format!(
            "{home} owns it again; {} errors reached the host, longest stall {} ms",
            self.figures.io_errors_during_planned_move, self.figures.planned_move_stall_ms
        ));
        Ok(())
    }

    fn check_everything(&mut self, workload: Workload) -> anyhow::Result<()> {
        self.narrator.chapter("Is everything there?");
        let Workload { host, load, reader } = workload;
        let wrong = self.runtime.block_on(async {
            load.stop().await;
            host.verify_all(WORKERS).await
        });
        let wrong_by_iscsi = self.runtime.block_on(reader.verify_all_and_stop());
        let iscsi = wrong_by_iscsi.context("the iSCSI reader could not read all slots")?;
        let ledger = &host.ledger;
        self.figures.lost_writes += wrong + iscsi.wrong + ledger.foreign_reads();
        self.figures.stale_reads = ledger.stale_reads();
        self.figures.acknowledged_writes = ledger.acknowledged_writes();
        self.figures.io_errors = host.io_errors();
        self.figures.path_errors = host.path_errors();
        self.figures.verified_reads = ledger.reads();
        self.figures.iscsi_reads = iscsi.reads;
        self.narrator.say(&format!(
            "{} writes were acknowledged; all {} slots read again over NVMe/TCP and iSCSI: {} lost, {} stale reads of {}",
            self.figures.acknowledged_writes,
            host.layout().slots(),
            self.figures.lost_writes,
            self.figures.stale_reads,
            self.figures.verified_reads
        ));
        for failure in host.failures() {
            self.narrator.say(&format!("the host met: {failure}"));
        }
        Ok(())
    }

    fn explain(&mut self, cluster: &Cluster) -> anyhow::Result<()> {
        self.narrator.chapter("What the log says: when, who, what, why");
        let commits = read_trail(&cluster.client, AuditQuery::default(), usize::MAX)?;
        let mut names = Names::load(&cluster.client)?;
        for view in &commits {
            names.learn(&view.commit);
            self.narrator.put(&plain(&story_line(view, &names)));
        }
        let proof: Verification = cluster.client.get("/v1/audit/verify")?;
        self.figures.commits = proof.commits;
        self.figures.chain_verified = proof.verified;
        let verdict = if proof.verified { "verified" } else { "NOT VERIFIED" };
        self.narrator.put("");
        self.narrator.say(&format!(
            "{} commits read from the first: chain of hashes, signed checkpoint and rebuilt state {verdict} {}",
            proof.commits, proof.detail
        ));
        Ok(())
    }

    /// The figures, for people.
    pub fn summarise(&mut self, figures: &Figures) {
        self.narrator.chapter("In short");
        let share = figures.resync_bytes as f64 * 100.0 / figures.volume_bytes.max(1) as f64;
        let rows = [
            ("acknowledged writes", figures.acknowledged_writes.to_string()),
            ("lost writes", figures.lost_writes.to_string()),
            ("stale reads", figures.stale_reads.to_string()),
            ("failover", format!("{} ms", figures.failover_ms)),
            (
                "resync",
                format!(
                    "{} of {} ({share:.1} %)",
                    show_size(figures.resync_bytes),
                    show_size(figures.volume_bytes)
                ),
            ),
            ("errors during the planned move", figures.io_errors_during_planned_move.to_string()),
            ("commits", figures.commits.to_string()),
            ("log verified", if figures.chain_verified { "yes" } else { "NO" }.to_owned()),
            ("time", format!("{:.1} s", figures.seconds)),
        ];
        for (name, value) in rows {
            self.narrator.put(&format!("  {name:32}{value}"));
        }
    }

    /// Leaves everything running until a signal.
    ///
    /// # Errors
    /// If signals cannot be waited for.
    pub fn keep(&mut self, runtime: &tokio::runtime::Runtime) -> anyhow::Result<()> {
        let cluster = self.cluster.as_ref().context("the cluster runs")?;
        let names = cluster.view()?;
        self.narrator.chapter("It keeps running; Ctrl-C ends it and removes everything");
        let mut lines = vec![
            format!("export VOUTE_API={}", cluster.client.api()),
            format!("export VOUTE_TOKEN_FILE={}", cluster.token_file.display()),
            "voute status".to_owned(),
            format!("voute volume show {VOLUME}"),
            format!("voute volume move {VOLUME} --to lyon --reason 'to see it move'"),
            "voute audit list".to_owned(),
            "voute event follow".to_owned(),
        ];
        for node in &cluster.nodes {
            let nvme = node.portals.nvme;
            lines.push(format!(
                "nvme connect -t tcp -a {} -s {} -n {}   # {}",
                nvme.ip(),
                nvme.port(),
                names.subsystem_nqn,
                node.site
            ));
        }
        lines.push(format!("OpenAPI: {}/v1/openapi.json", cluster.client.api()));
        lines.push(format!("logs:    {}", self.stage.folder().display()));
        for text in lines {
            self.narrator.put(&format!("  {text}"));
        }
        runtime.block_on(std::future::pending())
    }
}

/// Bytes of a region of the maps, by which resync counts.
const fn volume_region_bytes() -> u64 {
    1 << 20
}

/// The last resync that the log tells of.
fn last_resync(cluster: &Cluster) -> anyhow::Result<ResyncEvidence> {
    let commits = read_trail(&cluster.client, AuditQuery::default(), usize::MAX)?;
    let events = commits.iter().rev().flat_map(|view| view.commit.events());
    let resync = events.into_iter().find_map(|event| match event {
        Event::LegInSync { resync, .. } => Some(resync.clone()),
        _ => None,
    });
    resync.context("the returned site is in sync, but the log tells of no resync")
}

fn story_line(view: &CommitView, names: &Names) -> String {
    let commit = &view.commit;
    let why =
        if commit.reason.is_empty() { String::new() } else { format!("  [{}]", commit.reason) };
    format!(
        "  {:>3}  {}  {:<10}  {}{why}",
        commit.sequence,
        show_clock(commit.time_unix_ms),
        view.actor_name,
        outcome_words(commit, names)
    )
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
