//! libiscsi's conformance tool against mirrored volumes of a running cluster, two paths at once to the
//! owning site: each result compared with the list in `conformance.txt` here. What may be skipped, and why,
//! is told in `dataplane/iscsi/tests/conformance.rs`; the one test that fails, in decision 0010.

#[path = "../../dataplane/iscsi/tests/verdicts/mod.rs"]
mod verdicts;

use anyhow::Context;
use std::process::Command;
use verdicts::{conform, judge};
use voute_control::api::answers::{VolumeHealth, VolumeView};
use voute_control::api::requests::{CreateHost, CreateMapping, CreateVolume, Reference};
use voute_schemas::Name;
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

fn reference(text: &str) -> Reference {
    Reference(text.into())
}

/// Makes the volume, with blocks of 512 bytes, and grants it.
fn add_volume(sites: &TwoSites) -> anyhow::Result<VolumeView> {
    let client = sites.cluster.client.because("a volume to be tested for conformance");
    let volume = CreateVolume {
        name: Name::new(VOLUME)?,
        size_bytes: VOLUME_BYTES,
        block_bytes: Some(512),
        pools: sites.cluster.nodes.iter().map(|node| reference(node.site)).collect(),
        policy: None,
    };
    client.post("/v1/volumes", &volume)?;
    let hosts = [("writer", vec![HOST, OTHER_HOST], false), ("reader", vec![READER], true)];
    for (name, iqns, read_only) in hosts {
        let iqns = iqns.into_iter().map(str::to_owned).collect();
        let host = CreateHost { name: Name::new(name)?, nqns: vec![], iqns, chap_secret: None };
        client.post("/v1/hosts", &host)?;
        let (volume, host) = (reference(VOLUME), reference(name));
        client.post("/v1/mappings", &CreateMapping { volume, host, lun: Some(0), read_only })?;
    }
    let path = format!("/v1/volumes/{VOLUME}");
    sites.wait("the volume is served by both sites", || {
        let view: VolumeView = sites.cluster.client.get(&path).ok()?;
        (view.health == VolumeHealth::Healthy && view.sides.iter().all(|side| side.in_sync))
            .then_some(view)
    })
}

#[test]
fn a_mirrored_volume_conforms_on_two_paths() -> anyhow::Result<()> {
    let sites = TwoSites::start(Log::Embedded)?;
    for node in &sites.cluster.nodes {
        sites.add_pool(node.site, POOL)?;
    }
    let volume = add_volume(&sites)?;
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
