//! Devices that fail, fill up or hang under a mirrored volume of real processes: what the host sees,
//! which leg goes out, who serves then, and that everything comes back by itself.

use std::time::{Duration, Instant};
use voute::demo::cluster::SITES;
use voute_control::api::answers::{Changed, VolumeView};
use voute_control::api::requests::VerifyVolume;
use voute_schemas::place::{DEVICE_HEADER_BYTES, LEG_METADATA_BYTES};
use voute_tests::array::Trouble;
use voute_tests::harm::{must_flow, must_keep, must_not_fail};
use voute_tests::on_arrays::OnArrays;

const REGIONS: u32 = 4;
const FLOWING: u64 = 50;
/// Longest that a host may wait when a device fails at once, or hangs.
const STALL_MAX: Duration = Duration::from_secs(3);
const HANG_STALL_MAX: Duration = Duration::from_secs(8);
/// Where data of the first leg of a device begins: after the device's header and the leg's metadata.
const DATA_FROM: u64 = DEVICE_HEADER_BYTES + LEG_METADATA_BYTES;

struct Devices(OnArrays);

impl std::ops::Deref for Devices {
    type Target = OnArrays;
    fn deref(&self) -> &OnArrays {
        &self.0
    }
}

impl Devices {
    fn start() -> anyhow::Result<Self> {
        OnArrays::start(REGIONS).map(Devices)
    }

    fn wait_flow(&self, when: &str) {
        must_flow(&self.host, FLOWING, &self.sites.stage, when);
    }

    fn check(&self) {
        must_keep(&self.sites.runtime, &self.host, &self.sites.stage);
        must_not_fail(&self.host, &self.sites.stage);
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
        self.check();
        self.array_of(site).set_trouble(Trouble::None);
        self.sites.wait_whole()?;
        self.wait_flow("with both legs again");
        self.sites.move_to_other()?;
        self.check();
        self.sites.move_to_other()?;
        eprintln!("{trouble:?} at {site}: out after {out:?}, longest stall {stall:?}");
        assert!(stall < stall_max, "{trouble:?} at {site}: the host waited {stall:?}");
        Ok(())
    }
}

fn suffer_at_both(trouble: Trouble, stall_max: Duration) -> anyhow::Result<()> {
    let all = Devices::start()?;
    let load = all.sites.begin_load(&all.host);
    let (owner, follower) = (all.sites.owner()?.site, all.sites.other()?.site);
    all.suffer(follower, trouble, stall_max)?;
    if all.sites.owner()?.site != owner {
        all.sites.move_to_other()?;
    }
    all.suffer(owner, trouble, stall_max)?;
    all.sites.runtime.block_on(load.stop());
    all.check();
    Ok(())
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
    let all = Devices::start()?;
    let load = all.sites.begin_load(&all.host);
    all.wait_flow("at first");
    let owner = all.sites.owner()?.site;
    let damaged = all.array_of(owner).damage(DATA_FROM, |block| block % 3 == 0);
    assert!(damaged > 20, "only {damaged} blocks were written");
    all.check();
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
    all.check();
    eprintln!(
        "{damaged} blocks damaged, {} bytes of them mended by the comparison",
        found.mended_bytes
    );
    Ok(())
}
