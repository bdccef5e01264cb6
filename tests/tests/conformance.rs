//! libiscsi's conformance tool against mirrored volumes of a running cluster, two paths at once to the
//! owning site: each result compared with the list in `conformance.txt` here. What may be skipped, and why,
//! is told in `dataplane/iscsi/tests/conformance.rs`; the one test that fails, in decision 0010.

#[path = "../../dataplane/iscsi/tests/verdicts/mod.rs"]
mod verdicts;

use anyhow::Context;
use std::process::Command;
use verdicts::{conform, judge};
use voute_schemas::place::Locator;
use voute_tests::cluster::{Log, TwoSites};

const HOST: &str = "iqn.2026-11.io.voute:conformance";
const OTHER_HOST: &str = "iqn.2026-11.io.voute:conformance-other";
/// Sees the same volume, but may not write it.
const READER: &str = "iqn.2026-11.io.voute:conformance-reader";
const VOLUME: &str = "conformance";
/// Small, since some tests of the tool write all of it.
const VOLUME_BYTES: u64 = 64 << 20;
/// Legs in memory: the tool's 80,000 checks are of answers, and wait for no disk.
const POOL: Locator = Locator::Memory { size_bytes: 256 << 20 };

#[test]
fn a_mirrored_volume_conforms_on_two_paths() -> anyhow::Result<()> {
    let sites = TwoSites::start(Log::Embedded)?;
    for node in &sites.cluster.nodes {
        sites.add_pool(node.site, POOL)?;
    }
    let hosts: [(&str, &[&str], bool); 2] =
        [("writer", &[HOST, OTHER_HOST], false), ("reader", &[READER], true)];
    let volume = sites.add_iscsi_volume(VOLUME, VOLUME_BYTES, &hosts)?;
    let owner = sites.cluster.node_at(&volume.owner_site.name)?;
    let target = sites.cluster.view()?.target_iqn;
    let path = format!("iscsi://{}/{target}/0", owner.portals.iscsi);
    // Its absence is told by `conform`.
    let is_there = Command::new("iscsi-inq").arg("--help").output().is_ok();
    for host in [HOST, OTHER_HOST, READER].into_iter().filter(|_| is_there) {
        sites.wait("the volume is offered", || {
            let inquiry = Command::new("iscsi-inq").args(["-i", host, &path]).output().ok()?;
            inquiry.status.success().then_some(())
        })?;
    }
    let paths = [path.clone(), path];

    let Some(found) = conform("mirrored", [HOST, OTHER_HOST], &paths, "ALL") else {
        return Ok(());
    };
    assert!(found.len() >= 230, "only {} tests ran", found.len());
    judge("mirrored", &found);

    let found = conform("mirrored-read-only", [READER, READER], &paths, "ALL");
    let found = found.context("the tool was there a moment ago")?;
    judge("mirrored-read-only", &found);
    sites.verify_log().map(|_| ())
}
