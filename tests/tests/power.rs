//! A power cut of either node, or of both at once: the process ends and whatever its device had not
//! made durable is gone, in any order and torn between any two blocks. Nothing acknowledged is lost.

use voute::demo::cluster::SITES;
use voute_tests::chance::Chance;
use voute_tests::harm::{must_flow, must_keep};
use voute_tests::on_arrays::OnArrays;

const CYCLES: u64 = 4;
const REGIONS: u32 = 3;
const FLOWING: u64 = 50;

/// Two sites whose nodes keep their legs on arrays with write caches.
struct Powered {
    on: OnArrays,
    chance: Chance,
}

impl std::ops::Deref for Powered {
    type Target = OnArrays;
    fn deref(&self) -> &OnArrays {
        &self.on
    }
}

impl Powered {
    fn start(seed: u64) -> anyhow::Result<Self> {
        Ok(Powered { on: OnArrays::start(REGIONS)?, chance: Chance::new(seed) })
    }

    /// The power of these sites fails.
    fn cut(&mut self, sites: &[&'static str]) -> anyhow::Result<()> {
        for site in sites {
            self.sites.kill(&self.sites.cluster.node_at(site)?.name())?;
        }
        for site in sites {
            let mut chance = self.chance.clone();
            self.array_of(site).cut_power(|_| chance.once_in(2));
            self.chance.any_moment(50);
        }
        Ok(())
    }

    fn restore(&mut self, sites: &[&'static str]) -> anyhow::Result<()> {
        for site in sites {
            self.chance.any_moment(500);
            self.array_of(site).restore_power();
            self.sites.start_again(&self.sites.cluster.node_at(site)?.name())?;
        }
        Ok(())
    }

    fn wait_flow(&self, when: &str) {
        must_flow(&self.host, FLOWING, &self.sites.stage, when);
    }

    fn check(&self) -> anyhow::Result<()> {
        must_keep(&self.sites.runtime, &self.host, &self.sites.stage);
        self.sites.verify_log().map(|_| ())
    }
}

fn cycles() -> u64 {
    std::env::var("VOUTE_CYCLES")
        .map_or(CYCLES, |text| text.parse().expect("VOUTE_CYCLES is a number"))
}

#[test]
fn a_power_cut_of_any_node_or_of_both_loses_nothing_acknowledged() -> anyhow::Result<()> {
    let seed = Chance::seed_or(5);
    let mut powered = Powered::start(seed)?;
    let load = powered.sites.begin_load(&powered.host);
    for number in 0..cycles() {
        powered.wait_flow("before the cut");
        let (owner, other) = (powered.sites.owner()?.site, powered.sites.other()?.site);
        let dark: &[&'static str] = match number % 3 {
            0 => &[owner, other],
            1 => &[owner],
            _ => &[other],
        };
        powered.chance.any_moment(300);
        powered.cut(dark)?;
        if dark.len() == 1 && powered.chance.once_in(2) {
            powered.wait_flow("while one site is dark");
        }
        powered.restore(dark)?;
        powered.sites.wait_whole().map_err(|error| {
            error.context(format!("seed {seed}, cycle {number}, dark: {dark:?}"))
        })?;
        powered.wait_flow("after the power came back");
        powered.check()?;
        powered.sites.move_to_other()?;
        powered.check()?;
        eprintln!("cycle {number}: {dark:?} dark, whole again");
    }
    powered.sites.runtime.block_on(load.stop());
    powered.check()?;
    assert!(powered.arrays.iter().all(|array| array.fua_writes() > FLOWING));
    eprintln!(
        "seed {seed}: {} cycles, {} writes acknowledged, {} reads checked, 0 lost, {} errors to the host",
        cycles(),
        powered.host.ledger.acknowledged_writes(),
        powered.host.ledger.reads(),
        powered.host.io_errors()
    );
    Ok(())
}

/// The control of the test above: what it would show if a leg answered from a volatile cache.
#[test]
fn devices_that_lie_about_durability_are_noticed_after_a_cut_of_both() -> anyhow::Result<()> {
    let mut powered = Powered::start(6)?;
    for array in &powered.arrays {
        // What the verifying host writes begins so; headers and maps do not.
        array.set_lie(|bytes| bytes.starts_with(b"MEDETUOV"));
    }
    let load = powered.sites.begin_load(&powered.host);
    powered.wait_flow("at first");
    powered.sites.runtime.block_on(load.stop());
    assert_eq!(powered.sites.verify(&powered.host), 0);
    powered.cut(&SITES)?;
    powered.restore(&SITES)?;
    powered.sites.wait_whole()?;
    assert!(powered.sites.verify(&powered.host) > 0, "lost writes are noticed");
    assert!(powered.host.ledger.stale_reads() > 0);
    Ok(())
}
