//! Devices that fail, fill up or hang under a mirrored volume of real processes: what the host sees,
//! which leg goes out, who serves then, and that everything comes back by itself.

use std::sync::Arc;
use std::time::{Duration, Instant};
use voute::demo::cluster::SITES;
use voute::demo::host::Host;
use voute_control::api::answers::{Changed, VolumeView};
use voute_control::api::requests::VerifyVolume;
use voute_tests::array::{Array, Trouble};
use voute_tests::cluster::{Log, PATIENCE, TwoSites};

const REGIONS: u32 = 4;
const FLOWING: u64 = 50;
const DEVICE_BYTES: u64 = 1 << 30;
/// Longest that a host may wait when a device fails at once, or hangs.
const STALL_MAX: Duration = Duration::from_secs(3);
const HANG_STALL_MAX: Duration = Duration::from_secs(8);
/// Where data of the first leg of a device begins: after the device's header and the leg's metadata.
const DATA_FROM: u64 = (1 << 20) + (4 << 20);

struct OnArrays {
    sites: TwoSites,
    arrays: Vec<Array>,
    host: Arc<Host>,
}

impl OnArrays {
    fn start() -> anyhow::Result<Self> {
        let sites = TwoSites::start(Log::Embedded)?;
        let cluster = sites.cluster.view()?.cluster;
        let start = |_| Array::start(cluster, DEVICE_BYTES);
        let arrays = SITES.iter().map(start).collect::<anyhow::Result<Vec<_>>>()?;
        for (site, array) in SITES.into_iter().zip(&arrays) {
            sites.add_pool(site, array.locator())?;
        }
        let host = sites.add_host(REGIONS)?;
        sites.wait_whole()?;
        Ok(OnArrays { sites, arrays, host })
    }

    fn array_of(&self, site: &str) -> &Array {
        let place = SITES.iter().position(|known| *known == site).expect("one of two sites");
        &self.arrays[place]
    }

    fn wait_flow(&self, when: &str) {
        let flows = self.host.pulse.wait(FLOWING, PATIENCE);
        assert!(
            flows,
            "no writes {when}: {:?}\n{}",
            self.host.failures(),
            self.sites.stage.tails()
        );
    }

    fn check(&self) -> anyhow::Result<()> {
        let told = || format!("{:?}\n{}", self.host.failures(), self.sites.stage.tails());
        assert_eq!(self.sites.verify(&self.host), 0, "acknowledged writes are lost: {}", told());
        assert_eq!(self.host.ledger.stale_reads(), 0, "reads went back: {}", told());
        assert_eq!(self.host.ledger.foreign_reads(), 0, "torn or foreign: {}", told());
        assert_eq!(self.host.io_errors(), 0, "errors reached the host: {}", told());
        Ok(())
    }

    fn is_in_sync(view: &VolumeView, site: &str) -> bool {
        view.sides.iter().any(|side| side.site.name == site && side.in_sync)
    }

    /// A device misbehaves: its leg goes out, the other site serves, without an error to the host.
    fn suffer(
        &self,
        site: &'static str,
        trouble: Trouble,
        stall_max: Duration,
    ) -> anyhow::Result<()> {
        let other = SITES.into_iter().find(|known| *known != site).expect("two sites");
        self.wait_flow("before the trouble");
        self.host.pulse.restart();
        let began = Instant::now();
        self.array_of(site).set_trouble(trouble);
        self.sites.wait("the leg goes out", || {
            let view = self.sites.volume()?;
            (!Self::is_in_sync(&view, site) && view.owner_site.name == other).then_some(())
        })?;
        let out = began.elapsed();
        self.wait_flow("with one leg");
        let stall = self.host.pulse.longest_gap();
        self.check()?;
        self.array_of(site).set_trouble(Trouble::None);
        self.sites.wait_whole()?;
        self.wait_flow("with both legs again");
        self.sites.move_to_other()?;
        self.check()?;
        self.sites.move_to_other()?;
        eprintln!("{trouble:?} at {site}: out after {out:?}, longest stall {stall:?}");
        assert!(stall < stall_max, "{trouble:?} at {site}: the host waited {stall:?}");
        Ok(())
    }
}

fn suffer_at_both(trouble: Trouble, stall_max: Duration) -> anyhow::Result<()> {
    let all = OnArrays::start()?;
    let load = all.sites.begin_load(&all.host);
    let (owner, follower) = (all.sites.owner()?.site, all.sites.other()?.site);
    all.suffer(follower, trouble, stall_max)?;
    if all.sites.owner()?.site != owner {
        all.sites.move_to_other()?;
    }
    all.suffer(owner, trouble, stall_max)?;
    all.sites.runtime.block_on(load.stop());
    all.check()
}

#[test]
fn a_device_that_dies_costs_its_leg_and_nothing_else() -> anyhow::Result<()> {
    suffer_at_both(Trouble::Dead, STALL_MAX)
}

#[test]
fn a_device_that_cannot_be_written_costs_its_leg_and_nothing_else() -> anyhow::Result<()> {
    suffer_at_both(Trouble::ReadOnly, STALL_MAX)
}

#[test]
fn a_device_that_is_full_costs_its_leg_and_nothing_else() -> anyhow::Result<()> {
    suffer_at_both(Trouble::Full, STALL_MAX)
}

#[test]
fn a_device_that_hangs_costs_its_leg_and_a_few_seconds() -> anyhow::Result<()> {
    suffer_at_both(Trouble::Hangs, HANG_STALL_MAX)
}

#[test]
fn blocks_that_cannot_be_read_are_read_from_the_other_leg_and_mended() -> anyhow::Result<()> {
    let all = OnArrays::start()?;
    let load = all.sites.begin_load(&all.host);
    all.wait_flow("at first");
    let owner = all.sites.owner()?.site;
    let damaged = all.array_of(owner).damage(DATA_FROM, |block| block % 3 == 0);
    assert!(damaged > 20, "only {damaged} blocks were written");
    all.check()?;
    let view = all.sites.volume().expect("the control plane answers");
    assert!(view.sides.iter().all(|side| side.in_sync), "a leg went out for a bad block");
    let path = format!("/v1/volumes/{}/verification", view.volume);
    let asked: Changed = all.sites.cluster.client.post(&path, &VerifyVolume { repair: false })?;
    let run = asked.sequence.expect("a commit");
    let found = all.sites.wait("the comparison ends", || {
        let verification = all.sites.volume()?.verification;
        verification.found.filter(|_| verification.last == Some(run))
    })?;
    assert_eq!((found.differing_regions, found.lost_bytes), (0, 0), "{found:?}");
    assert_eq!(all.array_of(owner).damaged(), 0, "some blocks were not mended: {found:?}");
    all.sites.runtime.block_on(load.stop());
    all.check()?;
    eprintln!(
        "{damaged} blocks damaged, {} bytes of them mended by the comparison",
        found.mended_bytes
    );
    Ok(())
}
