//! libiscsi's conformance tool against mirrored volumes of a running cluster, two paths at once to the
//! owning site: each result compared with the list in `conformance.txt` here. Which volumes:
//!
//! - `mirrored`: as it is made (thick), both as a host may write it and read-only.
//! - `mirrored-thin`: told to be thin.
//! - `mirrored-512e`: told to have larger physical blocks, with the suites that only then are not skipped
//!   (why not all of them, is told in `dataplane/iscsi/tests/conformance.rs`).
//!
//! What none of these passes is only what needs a medium that can be removed, or SANITIZE.

#[path = "../../dataplane/iscsi/tests/verdicts/mod.rs"]
mod verdicts;

use anyhow::Context;
use std::process::Command;
use verdicts::{Verdict, Verdicts, conform, judge};
use voute_control::api::requests::PresentVolume;
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
/// Suites that have tests for larger physical blocks.
const ALIGNED_SUITES: [&str; 6] =
    ["CompareAndWrite", "WriteSame10", "WriteSame16", "Unmap", "Inquiry", "ReadCapacity16"];

/// Whether a test may be skipped: of media that can be removed, or of SANITIZE, which nobody asked for.
fn may_be_skipped(test: &str) -> bool {
    let suite = test.split('.').next().unwrap_or_default();
    matches!(suite, "PreventAllow" | "NoMedia" | "Sanitize") || test == "StartStopUnit.Simple"
}

/// Tests that pass on none of the volumes.
fn never_passed(found: &Verdicts) -> Vec<&str> {
    let name = |test: &'_ str| test.split_once(' ').map(|(_, name)| name.to_owned());
    let passed = |wanted: &str| {
        found.iter().any(|(test, verdict)| {
            *verdict == Verdict::Pass && name(test).as_deref() == Some(wanted)
        })
    };
    let names = found.keys().filter_map(|test| test.split_once(' ')).map(|(_, name)| name);
    let mut never: Vec<&str> =
        names.filter(|name| !may_be_skipped(name) && !passed(name)).collect();
    never.sort_unstable();
    never.dedup();
    never
}

struct Array {
    sites: TwoSites,
    path: String,
}

impl Array {
    /// The volume at its owner, seen by all hosts.
    fn start() -> anyhow::Result<Self> {
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
        Ok(Array { sites, path })
    }

    /// Has the volume told so to hosts, and waits until a host is told.
    fn present(&self, thin: bool, physical_block_bytes: Option<u32>) -> anyhow::Result<()> {
        let body = PresentVolume { thin, physical_block_bytes };
        self.sites.cluster.client.put(&format!("/v1/volumes/{VOLUME}/presentation"), &body)?;
        let (kind, exponent) =
            (if thin { 2 } else { 1 }, if physical_block_bytes.is_some() { 3 } else { 0 });
        self.sites.wait("hosts are told of the volume anew", || {
            let told = |tool: &str, arguments: &[&str]| {
                let mut tool = Command::new(tool);
                let output =
                    tool.args(["-i", HOST]).args(arguments).arg(&self.path).output().ok()?;
                Some(String::from_utf8_lossy(&output.stdout).into_owned())
            };
            let page = told("iscsi-inq", &["-e", "1", "-c", "178"])?;
            let capacity = told("iscsi-readcapacity16", &[])?;
            let is_kind = page.contains(&format!("provisioning type:{kind}"));
            let is_aligned = capacity.contains(&format!("PHYSICAL BLOCK EXPONENT:{exponent}"));
            (is_kind && is_aligned).then_some(())
        })
    }

    fn run(&self, kind: &str, hosts: [&str; 2], tests: &str) -> Option<Verdicts> {
        conform(kind, hosts, &[self.path.clone(), self.path.clone()], tests)
    }
}

#[test]
fn a_mirrored_volume_conforms_on_two_paths_however_it_is_presented() -> anyhow::Result<()> {
    let array = Array::start()?;
    let hosts = [HOST, OTHER_HOST];
    let Some(thick) = array.run("mirrored", hosts, "ALL") else { return Ok(()) };
    let read_only = array.run("mirrored-read-only", [READER, READER], "ALL");
    let read_only = read_only.context("the tool was there a moment ago")?;

    array.present(true, None)?;
    let thin = array.run("mirrored-thin", hosts, "ALL").context("likewise")?;
    array.present(false, Some(4096))?;
    let mut aligned = Verdicts::new();
    for suite in ALIGNED_SUITES {
        aligned.extend(
            array.run("mirrored-512e", hosts, &format!("ALL.{suite}")).context("likewise")?,
        );
    }
    let mut all = Verdicts::new();
    for (kind, found) in [
        ("mirrored", thick),
        ("mirrored-read-only", read_only),
        ("mirrored-thin", thin),
        ("mirrored-512e", aligned),
    ] {
        assert!(kind == "mirrored-512e" || found.len() >= 230, "{kind}: {} tests", found.len());
        judge(kind, &found);
        all.extend(found);
    }
    assert_eq!(never_passed(&all), Vec::<&str>::new(), "what no volume passes");
    array.sites.verify_log().map(|_| ())
}
