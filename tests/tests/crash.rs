//! kill -9 of any process at any moment, alone or with others: nothing acknowledged is lost, no read
//! goes back, everything comes back in sync by itself, and the log still gives the state.
//!
//! `VOUTE_CYCLES` says how often (a campaign takes hundreds), `VOUTE_SEED` with which choices.

use std::sync::Arc;
use std::time::{Duration, Instant};
use voute::demo::cluster::CONTROL;
use voute::demo::host::Host;
use voute::demo::nats;
use voute_tests::chance::Chance;
use voute_tests::cluster::{Log, TwoSites, nats_server};
use voute_tests::harm::{must_flow, must_keep, must_not_fail};

const CYCLES: u64 = 4;
/// Regions that the host writes to.
const REGIONS: u32 = 4;
/// Acknowledgements that show that load flows.
const FLOWING: u64 = 50;

/// How often processes are killed, and what came of it.
struct Campaign<'a> {
    sites: &'a TwoSites,
    host: &'a Arc<Host>,
    chance: Chance,
    kills: u64,
    longest_gap: Duration,
    slowest_return: Duration,
}

/// What dies together.
#[derive(Clone, Copy, Debug)]
enum Victims {
    Control,
    Owner,
    Other,
    Nodes,
    ControlAndOwner,
    ControlAndOther,
    Everything,
    Log,
    LogAndOwner,
}

const ON_BOTH: [Victims; 7] = [
    Victims::Owner,
    Victims::Other,
    Victims::Control,
    Victims::Everything,
    Victims::ControlAndOwner,
    Victims::ControlAndOther,
    Victims::Nodes,
];
const ON_NATS: [Victims; 2] = [Victims::Log, Victims::LogAndOwner];

impl Victims {
    fn names(self, sites: &TwoSites) -> anyhow::Result<Vec<String>> {
        let (control, log) = (CONTROL.to_owned(), nats::PROCESS.to_owned());
        let (owner, other) = (sites.owner()?.name(), sites.other()?.name());
        Ok(match self {
            Victims::Control => vec![control],
            Victims::Owner => vec![owner],
            Victims::Other => vec![other],
            Victims::Nodes => vec![owner, other],
            Victims::ControlAndOwner => vec![control, owner],
            Victims::ControlAndOther => vec![control, other],
            Victims::Everything => sites.processes(),
            Victims::Log => vec![log],
            Victims::LogAndOwner => vec![log, owner],
        })
    }

    /// Whether hosts are served on while these stay dead.
    fn are_survived(self) -> bool {
        match self {
            Victims::Control | Victims::Owner | Victims::Other | Victims::Log => true,
            Victims::Nodes
            | Victims::ControlAndOwner
            | Victims::ControlAndOther
            | Victims::Everything
            | Victims::LogAndOwner => false,
        }
    }
}

impl Campaign<'_> {
    fn wait_flow(&self, when: &str) {
        must_flow(self.host, FLOWING, &self.sites.stage, when);
    }

    fn cycle(&mut self, number: u64, victims: Victims) -> anyhow::Result<()> {
        self.wait_flow("before the kill");
        self.host.pulse.restart();
        let mut dead = victims.names(self.sites)?;
        for name in &dead {
            self.chance.any_moment(300);
            self.sites.kill(name)?;
            self.kills += 1;
        }
        let outlived = victims.are_survived() && self.chance.once_in(2);
        if outlived {
            self.wait_flow("while they are dead");
        }
        let began = Instant::now();
        self.start_in_any_order(&mut dead)?;
        if self.chance.once_in(3) {
            self.kill_while_it_comes_back()?;
        }
        self.sites.wait_whole()?;
        self.slowest_return = self.slowest_return.max(began.elapsed());
        self.wait_flow("after the return");
        self.longest_gap = self.longest_gap.max(self.host.pulse.longest_gap());
        self.check()?;
        if self.chance.once_in(2) {
            self.sites.move_to_other()?;
            self.check()?;
        }
        eprintln!(
            "cycle {number}: {victims:?}{}, whole after {} ms",
            if outlived { " outlived" } else { "" },
            began.elapsed().as_millis()
        );
        Ok(())
    }

    fn start_in_any_order(&mut self, dead: &mut Vec<String>) -> anyhow::Result<()> {
        while !dead.is_empty() {
            let next = dead.swap_remove(self.chance.below(dead.len() as u64) as usize);
            self.chance.any_moment(300);
            self.sites.start_again(&next)?;
        }
        Ok(())
    }

    fn kill_while_it_comes_back(&mut self) -> anyhow::Result<()> {
        self.chance.any_moment(4_000);
        let again = self.chance.pick(&self.sites.processes()).clone();
        self.sites.kill(&again)?;
        self.kills += 1;
        self.chance.any_moment(1_000);
        self.sites.start_again(&again)
    }

    fn check(&self) -> anyhow::Result<()> {
        must_keep(&self.sites.runtime, self.host, &self.sites.stage);
        must_not_fail(self.host, &self.sites.stage);
        self.sites.verify_log().map(|_| ())
    }
}

fn cycles() -> u64 {
    std::env::var("VOUTE_CYCLES")
        .map_or(CYCLES, |text| text.parse().expect("VOUTE_CYCLES is a number"))
}

fn survive(log: Log, kinds: &[Victims], usual_seed: u64) -> anyhow::Result<()> {
    let seed = Chance::seed_or(usual_seed);
    let sites = TwoSites::start_with_pools(log)?;
    let host = sites.add_host(REGIONS)?;
    let load = sites.begin_load(&host);
    let mut campaign = Campaign {
        sites: &sites,
        host: &host,
        chance: Chance::new(seed),
        kills: 0,
        longest_gap: Duration::ZERO,
        slowest_return: Duration::ZERO,
    };
    sites.wait_whole()?;
    for number in 0..cycles() {
        // Each kind in turn, so that a short run still has many.
        let victims = kinds[(number as usize) % kinds.len()];
        campaign
            .cycle(number, victims)
            .map_err(|error| error.context(format!("seed {seed}, cycle {number}: {victims:?}")))?;
    }
    sites.runtime.block_on(load.stop());
    campaign.check()?;
    eprintln!(
        "{log:?}, seed {seed}: {} cycles, {} kills, {} writes acknowledged, {} reads checked, 0 lost, 0 stale; longest gap {} ms, slowest return {} ms",
        cycles(),
        campaign.kills,
        host.ledger.acknowledged_writes(),
        host.ledger.reads(),
        campaign.longest_gap.as_millis(),
        campaign.slowest_return.as_millis()
    );
    Ok(())
}

#[test]
fn kills_at_any_moment_lose_nothing_on_the_embedded_log() -> anyhow::Result<()> {
    survive(Log::Embedded, &ON_BOTH, 2)
}

#[test]
fn kills_at_any_moment_lose_nothing_on_a_nats_server() -> anyhow::Result<()> {
    if nats_server().is_none() {
        return Ok(());
    }
    let kinds: Vec<Victims> = ON_NATS.into_iter().chain(ON_BOTH).collect();
    survive(Log::Nats, &kinds, 3)
}
