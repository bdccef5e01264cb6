//! How much a resync copies: what was written while a leg was out, and little more; after the loss of
//! an owner no more than the regions that may differ.
//!
//! `VOUTE_OUTAGE_S` says how long a leg is out (60 for the figures in docs/safety.md).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use voute::demo::host::Host;
use voute_control::api::answers::AuditPage;
use voute_schemas::Event;
use voute_schemas::event::ResyncEvidence;
use voute_schemas::place::REGION_BYTES;
use voute_tests::cluster::{Log, TwoSites};
use voute_tests::harm::{must_flow, must_keep, must_not_fail};

const VOLUME_BYTES: u64 = 100 << 30;
const DEVICE_BYTES: u64 = 102 << 30;
/// Regions that the host writes to: a quarter of a hundredth of the volume's, or, for the figures, one
/// in a hundred.
const REGIONS: u32 = 256;
const REGIONS_OF_FIGURES: u32 = (VOLUME_BYTES / REGION_BYTES / 100) as u32;
const FLOWING: u64 = 500;
/// `HOT_REGIONS_MAX` of the mirror: dirty regions of a healthy pair, and the workers' own writes.
const HOT_REGIONS_MAX: u64 = 128 + 8;

struct Large {
    sites: TwoSites,
    host: Arc<Host>,
}

impl Large {
    fn start() -> anyhow::Result<Self> {
        let sites = TwoSites::start(Log::Embedded)?;
        sites.cluster.add_pools_of(&sites.stage, DEVICE_BYTES)?;
        let is_for_figures = std::env::var_os("VOUTE_OUTAGE_S").is_some();
        let regions = if is_for_figures { REGIONS_OF_FIGURES } else { REGIONS };
        let host = sites.add_host_of(regions, VOLUME_BYTES)?;
        sites.wait_whole()?;
        Ok(Large { sites, host })
    }

    fn begun(&self) -> Vec<u64> {
        (0..self.host.ledger.slots()).map(|slot| self.host.ledger.begun(slot)).collect()
    }

    /// Regions in which a slot was written since.
    fn touched_since(&self, before: &[u64]) -> u64 {
        let layout = self.host.layout();
        let now = self.begun();
        let written = (0..self.host.ledger.slots())
            .filter(|slot| now[*slot as usize] > before[*slot as usize])
            .map(|slot| layout.block_of(slot) * 4_096 / REGION_BYTES);
        written.collect::<BTreeSet<u64>>().len() as u64
    }

    fn head(&self) -> anyhow::Result<u64> {
        Ok(self.sites.verify_log()?.commits)
    }

    /// What the resyncs since a commit took.
    fn resyncs_since(&self, from: u64) -> anyhow::Result<Vec<ResyncEvidence>> {
        let path = format!("/v1/audit?from={from}&limit=1000");
        let page: AuditPage = self.sites.cluster.client.get(&path)?;
        let commits = page.commits.into_iter().map(|view| view.commit);
        Ok(commits
            .flat_map(|commit| commit.events().to_vec())
            .filter_map(|event| match event {
                Event::LegInSync { resync, .. } => Some(resync),
                _ => None,
            })
            .collect())
    }

    fn check(&self) {
        must_keep(&self.sites.runtime, &self.host, &self.sites.stage);
        must_not_fail(&self.host, &self.sites.stage);
    }
}

fn outage() -> Duration {
    let given = std::env::var("VOUTE_OUTAGE_S").map(|text| text.parse().expect("a number"));
    Duration::from_secs(given.unwrap_or(3))
}

#[test]
fn a_resync_copies_what_was_written_while_the_leg_was_out() -> anyhow::Result<()> {
    let all = Large::start()?;
    let load = all.sites.begin_load(&all.host);
    must_flow(&all.host, FLOWING, &all.sites.stage, "at first");
    let (follower, from) = (all.sites.other()?, all.head()?);
    let before = all.begun();
    all.sites.kill(&follower.name())?;
    std::thread::sleep(outage());
    all.sites.start_again(&follower.name())?;
    all.sites.wait_whole()?;
    // Writes of the resync itself went to both legs; they count as touched, too.
    let touched = all.touched_since(&before);
    all.sites.runtime.block_on(load.stop());
    let resyncs = all.resyncs_since(from)?;
    let copied: u64 = resyncs.iter().map(|resync| resync.regions).sum();
    let took: u64 = resyncs.iter().map(|resync| resync.duration_ms).sum();
    eprintln!(
        "out for {:?}: {touched} regions of {} touched, {copied} copied ({:.2}), {} bytes in {took} ms",
        outage(),
        VOLUME_BYTES / REGION_BYTES,
        copied as f64 / touched as f64,
        resyncs.iter().map(|resync| resync.bytes).sum::<u64>(),
    );
    assert!(!resyncs.is_empty() && resyncs.iter().all(|resync| !resync.full), "{resyncs:?}");
    assert!(touched > 100, "only {touched} regions were written");
    assert!(copied * 10 <= touched * 12, "{copied} regions copied for {touched} touched");
    all.check();
    all.sites.move_to_other()?;
    all.check();
    Ok(())
}

#[test]
fn the_loss_of_an_owner_costs_no_more_than_its_hot_regions() -> anyhow::Result<()> {
    let all = Large::start()?;
    let load = all.sites.begin_load(&all.host);
    // Spread over every region, so that what is hot is bounded by the mirror and not by the load.
    must_flow(&all.host, 8 * FLOWING, &all.sites.stage, "at first");
    let (owner, heir, from) = (all.sites.owner()?, all.sites.other()?.site, all.head()?);
    all.sites.kill(&owner.name())?;
    let before = all.begun();
    all.sites.runtime.block_on(load.stop());
    all.sites.wait_served_by(heir)?;
    let touched = all.touched_since(&before);
    all.sites.start_again(&owner.name())?;
    all.sites.wait_whole()?;
    let resyncs = all.resyncs_since(from)?;
    let copied: u64 = resyncs.iter().map(|resync| resync.regions).sum();
    eprintln!("{copied} regions copied after the loss of the owner; {touched} written since");
    assert!(!resyncs.is_empty() && resyncs.iter().all(|resync| !resync.full), "{resyncs:?}");
    assert!(copied <= HOT_REGIONS_MAX + touched, "{copied} regions copied");
    all.check();
    all.sites.move_to_other()?;
    all.check();
    Ok(())
}
