//! What goes wrong, when, and how it is put right.

use crate::disk::Ailment;
use crate::network::Place;
use crate::stream::SERVING;
use crate::world::{Event, World};
use std::time::Duration;
use uuid::Uuid;
use voute_schemas::command::{Command, LegRequest};
use voute_schemas::event::{ConditionSource, SiteCondition};
use voute_schemas::{LegId, SiteId};

/// What ends a fault.
#[derive(Clone, Debug)]
pub(crate) enum Repair {
    Network {
        one: Place,
        other: Place,
    },
    OneWay {
        from: Place,
        to: Place,
    },
    /// Not a repair: the second half of a fault.
    Cut {
        from: Place,
        to: Place,
    },
    Alarm {
        site: SiteId,
    },
    Device {
        node: usize,
    },
    LogUp,
    LogReached {
        control: usize,
    },
    LogCalm,
    Signal {
        site: SiteId,
    },
}

/// What people ask for.
#[derive(Clone, Debug)]
pub(crate) enum Order {
    Move { volume: usize },
    Grow { volume: usize },
    RemoveLeg { volume: usize },
    AddLeg { volume: usize },
}

/// Around a fault, hosts are busy for so long.
const BUSY: Duration = Duration::from_millis(400);

impl World {
    /// Injects one, and plans the next.
    pub(crate) fn fault(&mut self) {
        self.check_time();
        if self.now >= self.faults_until || self.is_healing {
            return;
        }
        self.hosts.busy_until = self.now + BUSY;
        for worker in 0..6 * self.founded.volumes.len() {
            if self.random.chance(50) {
                let delay = self.random.millis(1, 30);
                self.after(delay, Event::HostIssue { worker });
            }
        }
        // It comes while hosts are at it.
        match self.random.below(100) {
            0..=17 => self.fail_node(),
            18..=39 => self.fail_network(),
            40..=54 => self.fail_device(),
            55..=64 => self.fail_log(),
            65..=70 => self.fail_control(),
            71..=85 => self.give_order(),
            86..=88 => self.signal(),
            89..=91 => self.fail_site(),
            _ => self.break_connections(),
        }
        let pause = match self.random.below(4) {
            0 => self.random.millis(1, 100),
            1 => self.random.millis(50, 1_000),
            _ => self.random.millis(200, 4_000),
        };
        self.after(pause, Event::Fault);
    }

    /// Whether a node's process may end: what is lost with a memory must be at the other side, and
    /// what another node lost must be here until the log knows.
    fn may_end(&mut self, node: usize) -> bool {
        (!self.founded.is_memory[node] || self.others_suffice(node)) && self.may_ail(node)
    }

    /// Whether a node's device may fail for a while: not while it has the only copy of something
    /// that the log takes for mirrored.
    fn may_ail(&mut self, node: usize) -> bool {
        let other = self.founded.nodes[1 - node];
        let is_counted = (0..self.founded.volumes.len()).any(|volume| {
            let group = self.group(volume);
            group.is_none_or(|group| group.side_of(other).is_some_and(|side| side.in_sync))
        });
        if !is_counted {
            self.emptied[1 - node] = false;
        }
        !self.emptied[1 - node]
    }

    /// A memory's process ends, or a device is replaced.
    fn empty(&mut self, node: usize) {
        self.emptied[node] = true;
        self.checks.maps_are_lost();
    }

    fn fail_node(&mut self) {
        let node = self.random.index(2);
        if !self.nodes[node].is_up() || !self.may_end(node) {
            return;
        }
        if self.founded.is_memory[node] {
            self.empty(node);
        }
        if self.random.chance(50) {
            self.note_fault("process killed");
            self.kill_node(node);
        } else {
            self.note_fault("power cut");
            self.cut_power(node);
        }
        let quick = self.random.chance(40);
        let delay = if quick { self.random.millis(1, 300) } else { self.random.millis(300, 8_000) };
        self.after(delay, Event::StartNode { node });
    }

    fn fail_network(&mut self) {
        if self.random.chance(25) {
            let node = self.random.index(2);
            return self.isolate(node);
        }
        let (one, other) = match self.random.below(10) {
            0..=4 => (Place::Node(0), Place::Node(1)),
            5..=7 => (Place::Node(self.random.index(2)), Place::Control(SERVING)),
            _ => (Place::Hosts, Place::Node(self.random.index(2))),
        };
        let now = self.now;
        match self.random.below(10) {
            0 | 1 => {
                self.note_fault("link slow");
                let until = now + self.random.millis(10, 4_000);
                self.network.slow_down(one, other, until);
                self.network.slow_down(other, one, until);
                return;
            }
            2..=4 => {
                self.note_fault("link cut one way");
                let (from, to) = if self.random.chance(50) { (one, other) } else { (other, one) };
                self.tell(|| format!("nothing gets from {from:?} to {to:?}"));
                self.network.set_cut(from, to, true);
            }
            _ => {
                self.note_fault("link cut");
                self.tell(|| format!("nothing gets between {one:?} and {other:?}"));
                self.network.set_cut(one, other, true);
                self.network.set_cut(other, one, true);
            }
        }
        self.feel_cut(one, other);
        let delay = self.random.millis(20, 9_000);
        self.after(delay, Event::Mend { repair: Repair::Network { one, other } });
    }

    /// A node hears neither its peer nor the control process, but hosts still reach it: what it may
    /// still answer is what leases are for. What was on its way to it may come late.
    fn isolate(&mut self, node: usize) {
        let (here, peer) = (Place::Node(node), Place::Node(1 - node));
        let control = Place::Control(SERVING);
        self.note_fault("node isolated");
        self.tell(|| format!("node {node} reaches its hosts alone"));
        for other in [peer, control] {
            self.network.set_cut(here, other, true);
            self.network.set_cut(other, here, true);
        }
        if self.random.chance(40) {
            // What it asked last is heard, the answers are not.
            self.network.set_cut(here, peer, false);
            let delay = self.random.millis(50, 400);
            self.after(delay, Event::Mend { repair: Repair::Cut { from: here, to: peer } });
        }
        if self.random.chance(35) {
            let site = self.founded.sites[node];
            let delay = self.random.millis(50, 1_200);
            self.after(delay, Event::Mend { repair: Repair::Alarm { site } });
            let repair = Repair::Signal { site };
            self.after(Duration::from_secs(10), Event::Mend { repair });
        }
        if self.random.chance(25) && self.nodes[1 - node].is_up() && self.may_end(1 - node) {
            if self.founded.is_memory[1 - node] {
                self.empty(1 - node);
            }
            self.kill_node(1 - node);
            let delay = self.random.millis(1, 200);
            self.after(delay, Event::StartNode { node: 1 - node });
        }
        self.doubt_streams();
        if self.random.chance(50) {
            self.doubt_channels();
        }
        if self.random.chance(40) {
            let delay = self.random.millis(1_000, 4_000);
            let repair = Repair::OneWay { from: peer, to: here };
            self.after(delay, Event::Mend { repair });
        }
        let lasts = self.random.millis(2_500, 9_000);
        for other in [peer, control] {
            let early = self.random.millis(0, 500);
            let repair = Repair::Network { one: here, other };
            self.after(lasts + early, Event::Mend { repair });
        }
        self.hosts.busy_until = self.now + lasts;
    }

    fn feel_cut(&mut self, one: Place, other: Place) {
        match (one, other) {
            (Place::Node(_), Place::Node(_)) => self.doubt_channels(),
            (Place::Hosts, Place::Node(node)) => self.doubt_path(node),
            _ => self.doubt_streams(),
        }
    }

    fn break_connections(&mut self) {
        self.note_fault("connection broken");
        match self.random.below(3) {
            0 => {
                self.disconnect(0);
                self.disconnect(1);
            }
            1 => {
                let node = self.random.index(2);
                self.reset_path(node);
            }
            _ => {
                let node = self.random.index(2);
                self.reset_streams(|it| it == node);
            }
        }
    }

    fn fail_device(&mut self) {
        let node = self.random.index(2);
        let now = self.now;
        if !self.may_ail(node) {
            return;
        }
        match self.random.below(10) {
            0 | 1 => {
                self.note_fault("device hangs");
                self.nodes[node].hung_until = now + self.random.millis(10, 8_000);
                self.tell(|| format!("node {node}'s device hangs"));
            }
            2 => {
                self.note_fault("device slow");
                self.nodes[node].slow_until = now + self.random.millis(10, 4_000);
            }
            3 => self.lose_content(node),
            4 => self.restore_image(node),
            _ => self.ail(node),
        }
    }

    /// A device fails in some way for a while; only one at a time.
    fn ail(&mut self, node: usize) {
        if self.nodes.iter().any(|node| node.disk.ailment.is_some()) {
            return;
        }
        let (ailment, name) = match self.random.below(8) {
            0 => (Ailment::Dead, "device dead"),
            1 => (Ailment::ReadOnly, "device read-only"),
            2 => (Ailment::Full, "device full"),
            3 | 4 => (Ailment::Flaky, "device flaky"),
            5 => (Ailment::WrongReads(self.random.next()), "wrong reads of maps"),
            _ => (Ailment::BadBlocks(self.random.next()), "bad blocks"),
        };
        self.note_fault(name);
        self.tell(|| format!("node {node}'s device: {ailment:?}"));
        self.nodes[node].disk.ailment = Some(ailment);
        let delay = self.random.millis(10, 6_000);
        self.after(delay, Event::Mend { repair: Repair::Device { node } });
    }

    /// A device comes back empty, with its node: only where another side has everything.
    fn lose_content(&mut self, node: usize) {
        if !self.others_suffice(node) || !self.nodes[node].is_up() {
            return;
        }
        self.note_fault("device replaced");
        self.cut_power(node);
        self.nodes[node].disk.forget();
        self.empty(node);
        let delay = self.random.millis(100, 4_000);
        self.after(delay, Event::StartNode { node });
    }

    /// Whether every group has an in-sync side elsewhere that owns it and is up.
    fn others_suffice(&self, node: usize) -> bool {
        let other = &self.nodes[1 - node];
        other.is_up()
            // The log would move to what is about to be lost if it did not hear who has it too.
            && other.stream.is_some()
            && self.network.connects(Place::Node(1 - node), Place::Control(SERVING))
            && self.controls[SERVING].serves()
            && !self.emptied[1 - node]
            && other.disk.ailment.is_none()
            && other.hung_until.max(other.slow_until) <= self.now
            // No move or removal is on its way into the log: what was vouched for is a second old by
            // the time that it gets there (docs/safety.md, what cannot be prevented).
            && self.ordered_at.max(other.asked_move_at) + Duration::from_secs(3) < self.now
            && self.controls.iter().all(|control| !control.has_orders() && !control.has_moves())
            && self.controls.iter().all(|control| {
                let groups = self.founded.volumes.iter().map(|it| control.state().group(it.group));
                groups.into_iter().all(|group| group.is_some_and(|it| it.owner == other.id))
            })
    }

    /// A leg comes back as it was some time ago. Only where it is out by the log, and not on its way in
    /// either, and by its marks
    /// from before the last two times that both legs were equal: else nobody could tell
    /// (docs/mirror-rules.md rule 9).
    fn restore_image(&mut self, node: usize) {
        let id = self.nodes[node].id;
        let is_out = (0..self.founded.volumes.len()).all(|volume| {
            self.group(volume).is_some_and(|group| {
                group.owner != id
                    && group.side_of(id).is_some_and(|side| !side.in_sync)
                    && !self.nodes[1 - node].disk.asked_to_join(group.epoch.sequence.0)
            })
        });
        match self.images[node].take() {
            Some(image)
                if is_out
                    && !self.nodes[node].is_up()
                    && !self.founded.is_memory[node]
                    && !self.nodes[node].kernel_is_busy()
                    && image.is_foreign_to(&self.nodes[1 - node].disk) =>
            {
                self.note_fault("old image restored");
                let marks = (image.marks(), self.nodes[1 - node].disk.marks());
                self.tell(|| format!("an old image is restored at node {node}: {marks:?}"));
                self.nodes[node].disk.restore(image);
                self.checks.maps_are_lost();
            }
            Some(image) => self.images[node] = Some(image),
            None => self.images[node] = Some(self.nodes[node].disk.image()),
        }
    }

    fn fail_log(&mut self) {
        let delay = self.random.millis(20, 8_000);
        match self.random.below(8) {
            0 | 1 => {
                self.note_fault("log down");
                self.tell(|| "the log does not answer".to_owned());
                self.log.inner().is_up = false;
                self.after(delay, Event::Mend { repair: Repair::LogUp });
            }
            2 => {
                let control = self.random.index(2);
                self.note_fault("log not reached");
                self.log.inner().reached[control] = false;
                self.after(delay, Event::Mend { repair: Repair::LogReached { control } });
            }
            3 | 4 => {
                self.note_fault("log loses acknowledgements");
                self.log.inner().lost_acks = 60;
                self.after(delay, Event::Mend { repair: Repair::LogCalm });
            }
            5 if self.seed % 8 == 5 => {
                self.note_fault("log forgets its end");
                let count = 1 + self.random.index(3);
                self.tell(|| format!("the log forgets its last {count} commits"));
                self.log.inner().forget(count);
                self.tell_followers();
            }
            _ => {
                let control = self.random.index(2);
                self.note_fault("log shows less");
                self.log.inner().lag[control] = 1 + self.random.index(4);
                self.after(delay, Event::Mend { repair: Repair::LogCalm });
            }
        }
    }

    fn fail_control(&mut self) {
        let control = if self.random.chance(70) { SERVING } else { 1 };
        self.note_fault("control process killed");
        self.kill_control(control);
        let delay = self.random.millis(10, 5_000);
        self.after(delay, Event::StartControl { control });
    }

    /// A site goes dark: its node, and its links with it. The witness site has the log's third vote
    /// and the control process that signs.
    fn fail_site(&mut self) {
        match self.random.index(3) {
            2 => {
                self.note_fault("witness site lost");
                self.kill_control(SERVING);
                self.log.inner().is_up = false;
                let delay = self.random.millis(100, 6_000);
                self.after(delay, Event::StartControl { control: SERVING });
                self.after(delay, Event::Mend { repair: Repair::LogUp });
            }
            node if self.nodes[node].is_up() && self.may_end(node) => {
                self.note_fault("site lost");
                if self.founded.is_memory[node] {
                    self.empty(node);
                }
                self.cut_power(node);
                for other in [Place::Node(1 - node), Place::Control(SERVING), Place::Hosts] {
                    let one = Place::Node(node);
                    self.network.set_cut(one, other, true);
                    self.network.set_cut(other, one, true);
                    let delay = self.random.millis(1_000, 8_000);
                    self.after(delay, Event::Mend { repair: Repair::Network { one, other } });
                }
                let delay = self.random.millis(2_000, 9_000);
                self.after(delay, Event::StartNode { node });
            }
            _ => {}
        }
    }

    /// Somebody outside says that a site is going: sometimes it does.
    fn signal(&mut self) {
        let node = self.random.index(2);
        let site = self.founded.sites[node];
        self.note_fault("signal of power loss");
        self.tell(|| format!("site {node} is said to lose power"));
        self.report_condition(site, SiteCondition::PowerLost);
        if self.random.chance(50) && self.nodes[node].is_up() && self.may_end(node) {
            if self.founded.is_memory[node] {
                self.empty(node);
            }
            self.cut_power(node);
            let delay = self.random.millis(500, 6_000);
            self.after(delay, Event::StartNode { node });
        }
        let delay = self.random.millis(500, 6_000);
        self.after(delay, Event::Mend { repair: Repair::Signal { site } });
    }

    fn report_condition(&mut self, site: SiteId, condition: SiteCondition) {
        // The other site has just lost what the log still counts: with both going, there is nothing
        // left to be moved to.
        let other = self.founded.sites.iter().position(|other| *other != site);
        let loses = condition != SiteCondition::Normal;
        if loses && other.is_some_and(|other| !self.may_ail(1 - other)) {
            return;
        }
        let (source, detail) = (ConditionSource::Signal, String::new());
        let command = Command::ReportSiteCondition { site, condition, source, detail };
        self.ask(SERVING, command, None);
    }

    /// Something goes wrong just when a node asked the log for something.
    pub(crate) fn strike(&mut self, node: usize, joined: Option<usize>) {
        if self.is_healing || self.now >= self.faults_until {
            return;
        }
        self.hosts.busy_until = self.now + BUSY;
        self.tell(|| format!("a blow while node {node} waits for the log"));
        if let Some(volume) = joined
            && self.random.chance(40)
        {
            return self.swap_leg(node, volume);
        }
        match self.random.below(5) {
            0 | 1 => self.isolate(node),
            2 if self.nodes[node].is_up()
                && self.may_end(node)
                && !self.founded.is_memory[node] =>
            {
                self.note_fault("process killed");
                self.kill_node(node);
                let delay = self.random.millis(1, 2_000);
                self.after(delay, Event::StartNode { node });
            }
            3 => self.fail_control(),
            _ => self.fail_log(),
        }
    }

    /// What a node asked is stuck on its way, and meanwhile people give the volume another leg there.
    fn swap_leg(&mut self, node: usize, volume: usize) {
        self.note_fault("leg swapped under a join");
        let (here, control) = (Place::Node(node), Place::Control(SERVING));
        self.network.set_cut(here, control, true);
        let lasts = self.random.millis(300, 3_000);
        self.after(lasts, Event::Mend { repair: Repair::OneWay { from: here, to: control } });
        self.admin(Order::RemoveLeg { volume });
        let delay = self.random.millis(10, 60);
        self.after(delay, Event::Admin { order: Order::AddLeg { volume } });
    }

    /// While a node is down, its device may be replaced by an older image of it.
    pub(crate) fn tamper(&mut self, node: usize) {
        if !self.is_healing && self.now < self.faults_until && self.random.chance(30) {
            self.restore_image(node);
        }
    }

    // ---- people --------------------------------------------------------------------------------

    fn give_order(&mut self) {
        let volume = self.random.index(self.founded.volumes.len());
        match self.random.below(12) {
            0 => self.admin(Order::Grow { volume }),
            1 | 2 => {
                self.admin(Order::RemoveLeg { volume });
                let delay = self.random.millis(5, 3_000);
                self.after(delay, Event::Admin { order: Order::AddLeg { volume } });
            }
            _ => {
                let moves = if self.random.chance(30) { 1 + self.random.below(5) } else { 1 };
                let mut delay = Duration::ZERO;
                for _ in 0..moves {
                    self.after(delay, Event::Admin { order: Order::Move { volume } });
                    delay += self.random.micros(100, 40_000);
                }
            }
        }
    }

    pub(crate) fn admin(&mut self, order: Order) {
        let control = self.random.index(2);
        let volume = match &order {
            Order::Move { volume }
            | Order::Grow { volume }
            | Order::RemoveLeg { volume }
            | Order::AddLeg { volume } => *volume,
        };
        let founded = self.founded.volumes[volume];
        let state = self.controls[control].state();
        let (Some(group), Some(known)) = (state.group(founded.group), state.volume(founded.volume))
        else {
            return;
        };
        let other = group.sides.iter().find(|side| side.node != group.owner);
        let command = match order {
            Order::Move { .. } => {
                // People look first whether the other side has anything.
                let is_empty = (0..2).any(|node| self.emptied[node]);
                let Some(to) = other.map(|side| side.site).filter(|_| !is_empty) else { return };
                Command::MoveOwner { group: founded.group, to }
            }
            Order::Grow { .. } => {
                let size_bytes = known.size_bytes + (1 << 20);
                if size_bytes > crate::host::BLOCKS_MAX * crate::BLOCK {
                    return;
                }
                Command::ResizeVolume { volume: founded.volume, size_bytes }
            }
            Order::RemoveLeg { .. } => {
                // People look first whether what stays is served.
                let is_served = self.is_served(volume);
                let leg = known.legs.iter().find(|leg| leg.node != group.owner);
                let Some(leg) = leg.map(|leg| leg.leg).filter(|_| is_served) else { return };
                Command::RemoveLeg { volume: founded.volume, leg }
            }
            Order::AddLeg { .. } => {
                let Some(there) = known.legs.first().filter(|_| known.legs.len() == 1) else {
                    return;
                };
                let there = self.founded.nodes.iter().position(|node| *node == there.node);
                let pool = self.founded.pools[1 - there.unwrap_or(0)];
                let leg = LegId(Uuid::from_u128((1 << 100) + u128::from(self.names) + 1));
                self.names += 1;
                Command::AddLeg { volume: founded.volume, leg: LegRequest { leg, pool } }
            }
        };
        self.ordered_at = self.now;
        self.note_fault(command.name());
        self.tell(|| format!("a person asks control {control}: {command:?}"));
        self.ask(control, command, None);
    }

    // ---- repairs -------------------------------------------------------------------------------

    pub(crate) fn mend(&mut self, repair: Repair) {
        match repair {
            Repair::Network { one, other } => {
                self.tell(|| format!("{one:?} and {other:?} reach each other"));
                self.network.set_cut(one, other, false);
                self.network.set_cut(other, one, false);
            }
            Repair::OneWay { from, to } => self.network.set_cut(from, to, false),
            Repair::Cut { from, to } if self.is_healing => self.network.set_cut(from, to, false),
            Repair::Cut { from, to } => self.network.set_cut(from, to, true),
            Repair::Alarm { site } => self.report_condition(site, SiteCondition::PowerLost),
            Repair::Device { node } => {
                self.nodes[node].disk.ailment = None;
                self.tell(|| format!("node {node}'s device works again"));
            }
            Repair::LogUp => {
                self.log.inner().is_up = true;
                self.tell(|| "the log answers again".to_owned());
                self.tell_followers();
            }
            Repair::LogReached { control } => {
                self.log.inner().reached[control] = true;
                self.tell_followers();
            }
            Repair::LogCalm => {
                {
                    let mut log = self.log.inner();
                    log.lost_acks = 0;
                    log.lag = [0, 0];
                }
                self.tell_followers();
            }
            Repair::Signal { site } => self.report_condition(site, SiteCondition::Normal),
        }
    }

    /// Ends all faults. What a log forgot is put back by people, from what sites hold.
    pub(crate) fn heal(&mut self) {
        self.tell(|| "all faults end".to_owned());
        self.is_healing = true;
        self.network.heal();
        let forgot = self.log.inner().forgot();
        let signed = self.controls[SERVING].signed();
        {
            let mut log = self.log.inner();
            log.is_up = true;
            log.reached = [true; 2];
            log.lost_acks = 0;
            log.lag = [0; 2];
            log.recover(signed);
        }
        for control in 0..2 {
            if forgot || self.controls[control].stopped.is_some() {
                self.kill_control(control);
            }
            self.start_control(control);
        }
        self.tell_followers();
        for node in 0..2 {
            self.nodes[node].disk.ailment = None;
            self.nodes[node].slow_until = Duration::ZERO;
            self.nodes[node].hung_until = self.now;
            self.start_node(node);
        }
        self.run_for(Duration::from_millis(2_000));
        for site in self.founded.sites {
            self.report_condition(site, SiteCondition::Normal);
        }
        for volume in 0..self.founded.volumes.len() {
            self.admin(Order::AddLeg { volume });
        }
        self.hosts.busy_until = self.now + Duration::from_millis(100);
    }
}
