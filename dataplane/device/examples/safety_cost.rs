//! What the dirty map and the lease check cost: two real mirrors with real device queues in one thread,
//! the link a call between them, with one safeguard on and off in turn.
//!
//! `cargo run --release -p voute-device --features mutants --example safety_cost [FOLDER|-] [SECONDS] [ROUNDS]`
//!
//! Without a folder the legs are memory, so that only computing is measured; in one they are files.

#![allow(clippy::print_stdout, reason = "it prints figures")]

use anyhow::{Context, bail};
use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use voute_buffer::Buffer;
use voute_device::{DeviceQueue, adopt};
use voute_mirror::link::{LinkReply, LinkRequest};
use voute_mirror::{
    Access, Action, HostOperation, HostOutcome, HostRequest, HostTag, Identity, IncomingTag,
    LinkTag, Mirror,
};
use voute_schemas::command::Escalation;
use voute_schemas::contract::{DeviceSpec, GroupSpec, LegSpec, SideSpec, VolumeSpec};
use voute_schemas::mutant::{Mutant, activate};
use voute_schemas::place::{ExtentRun, Locator, REGION_BYTES};
use voute_schemas::times::Times;
use voute_schemas::{
    ClusterId, DeviceId, Epoch, GroupId, Hash, LegId, Name, NodeId, Sequence, SiteId, VolumeId,
};

const BLOCK: u64 = 4_096;
const REGIONS: u64 = 1_024;
/// Regions of the hot set: half of what the map keeps dirty.
const HOT_REGIONS: u64 = 64;
const VOLUME_BYTES: u64 = REGIONS * REGION_BYTES;
const EXTENT_BYTES: u64 = 16 << 20;
const DEPTH: usize = 32;

struct Node {
    id: NodeId,
    mirror: Mirror,
    devices: DeviceQueue,
    /// Writes and zeroes that went to the device.
    writes: u64,
}

struct Pair {
    nodes: [Node; 2],
    spec: GroupSpec,
    began: Instant,
    /// Messages on their way: to whom, and what.
    requests: VecDeque<(usize, LinkTag, LinkRequest)>,
    replies: VecDeque<(usize, LinkTag, LinkReply)>,
    incoming: HashMap<u64, LinkTag>,
    commands: u64,
    outcomes: Vec<(HostTag, HostOutcome)>,
    serves: bool,
    random: u64,
    payload: Arc<Buffer>,
}

/// What is asked for again and again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Load {
    WriteHot,
    WriteAnywhere,
    ReadHot,
}

impl Pair {
    fn start(folder: Option<PathBuf>) -> anyhow::Result<Self> {
        let cluster = ClusterId::generate();
        let epoch = Epoch { sequence: Sequence(1), hash: Hash::of(b"first") };
        let ids = [NodeId::generate(), NodeId::generate()];
        let sites = [SiteId::generate(), SiteId::generate()];
        let legs = [LegId::generate(), LegId::generate()];
        let node = |index: usize| -> anyhow::Result<Node> {
            let size_bytes = VOLUME_BYTES + (64 << 20);
            let locator = match &folder {
                None => Locator::Memory { size_bytes },
                Some(folder) => {
                    let path = folder.join(format!("leg-{index}-{}", legs[index]));
                    Locator::File { path: path.display().to_string(), size_bytes }
                }
            };
            let device = DeviceId::generate();
            let spec = DeviceSpec {
                device,
                locator,
                extent_bytes: EXTENT_BYTES,
                adopted: false,
                overwrite: false,
            };
            let adopted = adopt(&spec, cluster)?;
            let mut devices = DeviceQueue::new(256)?;
            devices.add_device(device, adopted.device);
            let count = (VOLUME_BYTES + (16 << 20)) / EXTENT_BYTES;
            let run = ExtentRun { device, first: 0, count };
            devices.attach_leg(legs[index], EXTENT_BYTES, &[run]);
            let identity = Identity {
                cluster,
                node: ids[index],
                incarnation: 1,
                session: index as u64 + 1,
                times: Times::default(),
            };
            let mirror = Mirror::new(identity, Duration::ZERO);
            Ok(Node { id: ids[index], mirror, devices, writes: 0 })
        };
        let leg = |index: usize| LegSpec {
            leg: legs[index],
            site: sites[index],
            node: ids[index],
            formatted: false,
            runs: vec![],
        };
        let side = |index: usize| SideSpec { site: sites[index], node: ids[index], in_sync: true };
        let volume = VolumeSpec {
            volume: VolumeId::generate(),
            name: Name::new("cost")?,
            number: 1,
            size_bytes: VOLUME_BYTES,
            block_bytes: BLOCK as u32,
            region_bytes: REGION_BYTES,
            legs: vec![leg(0), leg(1)],
            mappings: vec![],
            verify: None,
            presentation: voute_schemas::event::Presentation::default(),
        };
        let spec = GroupSpec {
            group: GroupId::generate(),
            epoch,
            owner: ids[0],
            sides: vec![side(0), side(1)],
            last_common: epoch,
            volumes: vec![volume],
        };
        let mut payload = Buffer::zeroed(BLOCK as usize);
        payload.fill(0xA5);
        let mut pair = Pair {
            nodes: [node(0)?, node(1)?],
            spec,
            began: Instant::now(),
            requests: VecDeque::new(),
            replies: VecDeque::new(),
            incoming: HashMap::new(),
            commands: 0,
            outcomes: Vec::new(),
            serves: false,
            random: 42,
            payload: Arc::new(payload),
        };
        pair.publish();
        let until = Instant::now() + Duration::from_secs(30);
        while !pair.serves {
            if Instant::now() > until {
                bail!("the pair does not serve: {:?}", pair.nodes[0].mirror.status(pair.now(), 0));
            }
            pair.turn()?;
        }
        Ok(pair)
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn publish(&mut self) {
        let now = self.now();
        for node in &mut self.nodes {
            node.mirror.apply(vec![self.spec.clone()], vec![], now);
        }
    }

    /// One turn of what two reactors and a wire between them do.
    fn turn(&mut self) -> anyhow::Result<()> {
        for index in 0..2 {
            self.perform(index)?;
            self.nodes[index].devices.flush_submissions();
            while let Some((tag, result)) = self.nodes[index].devices.complete() {
                let now = self.now();
                self.nodes[index].mirror.device_done(tag, result, now);
            }
            let now = self.now();
            let mirror = &mut self.nodes[index].mirror;
            if mirror.next_deadline().is_some_and(|at| at <= now) {
                mirror.tick(now);
            }
        }
        while let Some((to, tag, request)) = self.requests.pop_front() {
            self.commands += 1;
            self.incoming.insert(self.commands, tag);
            let id = IncomingTag { connection: 1, command: self.commands };
            let (from, now) = (self.nodes[1 - to].id, self.now());
            self.nodes[to].mirror.link_request(from, id, request, now);
        }
        while let Some((to, tag, reply)) = self.replies.pop_front() {
            let now = self.now();
            self.nodes[to].mirror.link_reply(tag, Ok(reply), now);
        }
        Ok(())
    }

    fn perform(&mut self, index: usize) -> anyhow::Result<()> {
        while let Some(action) = self.nodes[index].mirror.next_action() {
            match action {
                Action::Device(request) => {
                    let is_read = matches!(request.kind, voute_mirror::DeviceKind::Read { .. });
                    self.nodes[index].writes += u64::from(!is_read);
                    self.nodes[index].devices.submit(request);
                }
                Action::Link { tag, request, .. } => {
                    self.requests.push_back((1 - index, tag, request));
                }
                Action::LinkReply { request, reply } => {
                    let tag = self.incoming.remove(&request.command).context("a lost request")?;
                    self.replies.push_back((1 - index, tag, reply));
                }
                Action::HostReply { id, outcome } => self.outcomes.push((id, outcome)),
                Action::Escalate(Escalation::LegFormatted { leg }) => {
                    let legs = &mut self.spec.volumes[0].legs;
                    legs.iter_mut().filter(|it| it.leg == leg).for_each(|it| it.formatted = true);
                    self.publish();
                }
                Action::Escalate(other) => bail!("node {index} asks for {other:?}"),
                Action::AccessChanged { access, .. } if index == 0 => {
                    self.serves = access == Access::Optimized;
                }
                Action::Channel { peer, wanted: true } => {
                    let now = self.now();
                    self.nodes[index].mirror.channel_up(peer, now);
                }
                Action::AccessChanged { .. } | Action::Record { .. } | Action::Channel { .. } => {}
            }
        }
        Ok(())
    }

    fn draw(&mut self, limit: u64) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.random >> 33) % limit
    }

    fn submit(&mut self, number: u64, offset: u64, is_read: bool) {
        let operation = if is_read {
            HostOperation::Read { offset, length: BLOCK as u32 }
        } else {
            HostOperation::Write { offset, data: Arc::clone(&self.payload) }
        };
        let volume = self.spec.volumes[0].volume;
        let now = self.now();
        let request = HostRequest { id: HostTag(number), volume, operation };
        self.nodes[0].mirror.submit(request, now);
    }

    fn take_outcomes(&mut self) -> anyhow::Result<usize> {
        let outcomes = std::mem::take(&mut self.outcomes);
        for (_, outcome) in &outcomes {
            if !matches!(outcome, HostOutcome::Done | HostOutcome::Data(_)) {
                bail!("a host got {outcome:?}");
            }
        }
        Ok(outcomes.len())
    }

    /// Writes to every region once, so that none is written for the first time later.
    fn prepare(&mut self) -> anyhow::Result<()> {
        let (mut next, mut done) = (0, 0);
        while done < REGIONS {
            while next < REGIONS && next < done + DEPTH as u64 {
                self.submit(next, next * REGION_BYTES, false);
                next += 1;
            }
            self.turn()?;
            done += self.take_outcomes()? as u64;
        }
        Ok(())
    }

    /// Requests a second, and writes of devices for each.
    fn measure(
        &mut self,
        load: Load,
        mutant: Option<Mutant>,
        time: Duration,
    ) -> anyhow::Result<(f64, f64)> {
        activate(mutant);
        let regions = if load == Load::WriteAnywhere { REGIONS } else { HOT_REGIONS };
        let blocks = regions * REGION_BYTES / BLOCK;
        let writes = self.nodes[0].writes + self.nodes[1].writes;
        let began = Instant::now();
        let (mut out, mut done, mut number) = (0, 0_u64, 1_u64 << 32);
        while began.elapsed() < time {
            while out < DEPTH {
                let offset = self.draw(blocks) * BLOCK;
                number += 1;
                self.submit(number, offset, load == Load::ReadHot);
                out += 1;
            }
            self.turn()?;
            let ended = self.take_outcomes()?;
            out -= ended;
            done += ended as u64;
        }
        let rate = done as f64 / began.elapsed().as_secs_f64();
        while out > 0 {
            self.turn()?;
            let ended = self.take_outcomes()?;
            out -= ended;
            done += ended as u64;
        }
        activate(None);
        let written = self.nodes[0].writes + self.nodes[1].writes - writes;
        Ok((rate, written as f64 / done as f64))
    }
}

/// The quarter-th quartile; 2 is the median.
fn quantile(values: &mut [f64], quarter: usize) -> f64 {
    values.sort_by(f64::total_cmp);
    values[(values.len() - 1) * quarter / 4]
}

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().filter(|text| text != "-").map(PathBuf::from);
    let seconds = arguments.next().map_or(Ok(2.0), |text| text.parse())?;
    let time = Duration::from_secs_f64(seconds);
    let rounds = arguments.next().map_or(Ok(7), |text| text.parse())?;
    let kind = if folder.is_some() { "files" } else { "memory" };
    let mut pair = Pair::start(folder)?;
    pair.prepare()?;
    for (load, mutant) in [
        (Load::WriteHot, Mutant::NoIntent),
        (Load::WriteAnywhere, Mutant::NoIntent),
        (Load::ReadHot, Mutant::NoLease),
    ] {
        pair.measure(load, None, time / 2)?;
        let (mut with, mut without, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        let (mut writes_with, mut writes_without) = (0.0, 0.0);
        for round in 0..rounds {
            // Which comes first changes, so that a drift of the machine favours neither.
            let order = if round % 2 == 0 { [None, Some(mutant)] } else { [Some(mutant), None] };
            for which in order {
                let (rate, writes) = pair.measure(load, which, time)?;
                if which.is_none() {
                    with.push(rate);
                    writes_with = writes;
                } else {
                    without.push(rate);
                    writes_without = writes;
                }
            }
            ratios.push(with[round] / without[round]);
        }
        println!(
            "{kind}: {load:?}, with the safeguard / {mutant:?}: {:.0} / {:.0} a second, ratio {:.3} (quartiles {:.3} to {:.3}), device writes for each {writes_with:.2} / {writes_without:.2}",
            quantile(&mut with, 2),
            quantile(&mut without, 2),
            quantile(&mut ratios, 2),
            quantile(&mut ratios, 1),
            quantile(&mut ratios, 3),
        );
    }
    Ok(())
}
