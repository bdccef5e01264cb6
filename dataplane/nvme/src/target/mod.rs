//! The target: what all connections of a node share.

mod admin;
mod authentication;
mod connect;
mod connection;
mod controller;
mod events;
mod features;
mod identify;
mod io;
mod log;
mod reservation;
mod slots;
mod states;
mod transfer;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

pub use connection::TargetConnection;
use controller::{Controller, ControllerKind};
pub use states::transition_table;

use crate::directory::is_nqn;
use voute_reservation::{Effect, Nexus};

use crate::{Association, Directory, Seed};

/// Which listener a connection came in by: [`crate::PortalEntry::id`] of this node's portals. An I/O
/// queue must come by its admin queue's portal.
pub type PortalId = u16;

/// Bounds of one node's target. Every value is enforced per connection unless it says otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetLimits {
    /// Entries of an I/O submission queue, 2 to 1024 (CAP.MQES + 1).
    pub queue_depth_max: u16,
    /// Controllers of one host, each kind counted by itself, 1 to 1024. A host has one per portal; what
    /// it leaves behind without a word lives until its keep-alive runs out.
    pub controllers_per_host_max: u16,
    /// I/O queues of one controller, 1 to 63.
    pub io_queues_max: u16,
    /// Data in an I/O capsule, bytes, a multiple of 16 from 8192 to 65536.
    pub in_capsule_max: u32,
    /// Data of one H2CData PDU, bytes, a multiple of 4 from 4096 (MAXH2CDATA).
    pub h2c_data_max: u32,
    /// Bytes that requests in the hands of the volume layer, undelivered output, and received writes
    /// may hold together before the connection stops reading; one more request of any size may join.
    pub held_bytes_max: usize,
    /// Bytes that R2Ts in progress may have asked for; one transfer of any size is always let through.
    pub requested_bytes_max: usize,
    /// From accept to ICReq, and from ICReq to Connect.
    pub handshake: Duration,
    /// From our termination request until the connection is dropped (§3.5: up to 30 s).
    pub termination: Duration,
    /// How long a discovery controller without keep-alive may be idle.
    pub discovery_idle: Duration,
    /// Blocks of a fused compare and write (ACWU), 1 to 128.
    pub compare_and_write_blocks_max: u16,
}

impl Default for TargetLimits {
    fn default() -> Self {
        TargetLimits {
            queue_depth_max: 256,
            controllers_per_host_max: 32,
            io_queues_max: 63,
            in_capsule_max: 16 << 10,
            h2c_data_max: 256 << 10,
            held_bytes_max: 8 << 20,
            requested_bytes_max: 4 << 20,
            handshake: Duration::from_secs(10),
            termination: Duration::from_secs(10),
            discovery_idle: Duration::from_secs(120),
            compare_and_write_blocks_max: 1,
        }
    }
}

/// What identifies a node's target. Serial numbers come with the subsystems: model and firmware must
/// be the same at both nodes, controller identifiers must not meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetConfig {
    /// Model number, up to 40 ASCII characters.
    pub model: String,
    /// Firmware revision, up to 8 ASCII characters.
    pub firmware: String,
    /// Serial of the discovery controller, up to 20 ASCII characters.
    pub serial: String,
    /// Lowest controller identifier of this node, at least 1.
    pub controller_min: u16,
    /// Highest controller identifier of this node, at most FFEFh.
    pub controller_max: u16,
    /// How far above the lowest identifier to begin, modulo the range. Give another value at each
    /// start of the process: a host that is still reconnecting to controllers of the last one refuses
    /// a new controller whose identifier it knows.
    pub controller_offset: u16,
    /// Name of the subsystem by which other nodes link to this one; `None` to accept no links.
    pub link_nqn: Option<String>,
    /// Whether a write without FUA may be answered before it is durable, as an array with a write
    /// cache does (VWC); hosts then use FUA and Flush. A node's target never has one.
    pub has_volatile_cache: bool,
    /// Where challenges of hosts that must authenticate come from: 32 random bytes, new at each start.
    pub seed: Seed,
    /// Bounds.
    pub limits: TargetLimits,
}

impl Default for TargetConfig {
    fn default() -> Self {
        TargetConfig {
            model: "Voute".to_owned(),
            firmware: env!("CARGO_PKG_VERSION").to_owned(),
            serial: "VOUTE".to_owned(),
            controller_min: 1,
            controller_max: 0x7FFF,
            controller_offset: 0,
            link_nqn: None,
            has_volatile_cache: false,
            seed: Seed::default(),
            limits: TargetLimits::default(),
        }
    }
}

/// Why a configuration was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetConfigError {
    /// The range of controller identifiers is empty or too wide.
    #[error("controller ids {0}..={1} are not a range inside 1..=65519")]
    ControllerRange(u16, u16),
    /// A limit out of its documented range.
    #[error("the limit {name} is {value}, which is outside {range}")]
    Limit {
        /// Which.
        name: &'static str,
        /// Its value.
        value: u64,
        /// What is allowed.
        range: &'static str,
    },
    /// The link's name is not an NQN.
    #[error("{0:?} cannot be the link's NQN")]
    LinkNqn(String),
}

impl TargetConfig {
    fn check(&self) -> Result<(), TargetConfigError> {
        let (low, high) = (self.controller_min, self.controller_max);
        if low == 0 || low > high || high > 0xFFEF {
            return Err(TargetConfigError::ControllerRange(low, high));
        }
        let limits = &self.limits;
        let limit = |name, value: u64, sound: bool, range| match sound {
            true => Ok(()),
            false => Err(TargetConfigError::Limit { name, value, range }),
        };
        let (depth, capsule, data) =
            (limits.queue_depth_max, limits.in_capsule_max, limits.h2c_data_max);
        limit("queue_depth_max", depth.into(), (2..=1024).contains(&depth), "2..=1024")?;
        limit(
            "io_queues_max",
            limits.io_queues_max.into(),
            (1..=63).contains(&limits.io_queues_max),
            "1..=63",
        )?;
        let per_host = limits.controllers_per_host_max;
        limit(
            "controllers_per_host_max",
            per_host.into(),
            (1..=1024).contains(&per_host),
            "1..=1024",
        )?;
        let capsule_is_sound = (8192..=65536).contains(&capsule) && capsule.is_multiple_of(16);
        limit("in_capsule_max", capsule.into(), capsule_is_sound, "8192..=65536 in steps of 16")?;
        let data_is_sound = (4096..=1 << 24).contains(&data) && data.is_multiple_of(4);
        limit("h2c_data_max", data.into(), data_is_sound, "4096..=16777216 in steps of 4")?;
        let pair = limits.compare_and_write_blocks_max;
        limit("compare_and_write_blocks_max", pair.into(), (1..=128).contains(&pair), "1..=128")?;
        match &self.link_nqn {
            Some(nqn) if !is_nqn(nqn) || nqn == crate::DISCOVERY_NQN => {
                Err(TargetConfigError::LinkNqn(nqn.clone()))
            }
            _ => Ok(()),
        }
    }
}

/// How many connections were refused, by cause.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Refusals {
    /// Those that were accepted and said nothing in time.
    pub handshakes: u64,
    /// Connects that were refused.
    pub connects: u64,
    /// Those that were ended because the host broke the protocol.
    pub faults: u64,
    /// Hosts that did not prove their secret.
    pub authentications: u64,
    /// The last host that was refused by name, and why; the name is what it said, anything.
    pub last: Option<String>,
}

/// What all connections of a node share: configuration, directory, controllers.
///
/// # Telling other connections
/// A publish, or the death or reset of a controller, concerns connections that may be polled by
/// other threads. Each such event raises [`Target::attention`] and calls the waker: every reactor
/// that finds the number changed calls [`TargetConnection::tick`] on *all* its connections and then
/// sends their output. The I/O path itself takes no lock: a connection looks at one atomic per
/// `receive` and fetches the new directory under a lock only when that changed.
pub struct Target {
    config: TargetConfig,
    published: Mutex<Published>,
    generation: AtomicU64,
    attention: AtomicU64,
    /// Authentications begun.
    authentications: AtomicU64,
    refusals: Mutex<Refusals>,
    controllers: Mutex<Controllers>,
    waker: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

#[derive(Clone)]
struct Published {
    directory: Option<Arc<Directory>>,
    generation: u64,
}

#[derive(Default)]
struct Controllers {
    by_id: HashMap<u16, Arc<Controller>>,
    /// Those of the discovery subsystem, whose identifiers are a range of their own: whoever comes may
    /// have one, and must not take those of hosts with volumes.
    discovery: HashMap<u16, Arc<Controller>>,
    next: u16,
    next_discovery: u16,
    /// How many each host has, of each kind; without those whose host has yet to prove itself, as
    /// anybody can say a name.
    of_host: HashMap<(ControllerKind, Arc<str>), u16>,
}

impl Controllers {
    fn forget(&mut self, controller: &Controller) {
        let id = controller.association().controller;
        match controller.kind() {
            ControllerKind::Io => self.by_id.remove(&id),
            ControllerKind::Discovery => self.discovery.remove(&id),
        };
        let key = (controller.kind(), Arc::from(controller.association().host.as_str()));
        if controller.is_counted()
            && let Some(count) = self.of_host.get_mut(&key)
        {
            *count -= 1;
            if *count == 0 {
                self.of_host.remove(&key);
            }
        }
    }
}

/// Discovery controllers of one node at most: one each for as many persistent hosts.
const DISCOVERY_CONTROLLERS_MAX: usize = 4096;
/// Their identifiers.
const DISCOVERY_IDS: (u16, u16) = (1, 0x7FFF);

impl Target {
    /// A target that offers nothing until [`Target::publish`]; until then Connect is answered "busy,
    /// try again".
    ///
    /// # Errors
    /// [`TargetConfigError`] names the first value that is out of range.
    pub fn new(config: TargetConfig) -> Result<Arc<Self>, TargetConfigError> {
        config.check()?;
        let (low, high) = (config.controller_min, config.controller_max);
        let next = low + config.controller_offset % (high - low + 1);
        Ok(Arc::new(Target {
            config,
            published: Mutex::new(Published { directory: None, generation: 0 }),
            generation: AtomicU64::new(0),
            attention: AtomicU64::new(0),
            authentications: AtomicU64::new(0),
            refusals: Mutex::default(),
            controllers: Mutex::new(Controllers {
                next,
                next_discovery: 1,
                ..Controllers::default()
            }),
            waker: OnceLock::new(),
        }))
    }

    /// What the target was made with.
    #[must_use]
    pub fn config(&self) -> &TargetConfig {
        &self.config
    }

    /// Replaces what is offered. Live controllers compare at their next `receive` or `tick` and
    /// raise events; controllers of hosts that are no longer admitted fail and close.
    pub fn publish(&self, directory: Arc<Directory>) {
        let mut published = lock(&self.published);
        published.generation += 1;
        published.directory = Some(directory);
        self.generation.store(published.generation, Ordering::Release);
        drop(published);
        self.raise_attention();
    }

    /// Rises whenever all connections should be ticked; see the type's documentation.
    #[must_use]
    pub fn attention(&self) -> u64 {
        self.attention.load(Ordering::Acquire)
    }

    /// Sets what is called, from whichever thread, after [`Target::attention`] rose: to wake reactors
    /// that sleep. It must not call back into the target's connections. Only the first call counts.
    pub fn set_waker(&self, waker: Box<dyn Fn() + Send + Sync>) {
        // A second waker is refused by design, there is nothing to report.
        let _ = self.waker.set(waker);
    }

    /// Fails every controller whose association `chosen` picks: its connections close at their next
    /// tick without a word, which is what a fenced owner owes its hosts. Returns how many.
    pub fn fail_controllers(&self, chosen: impl Fn(&Association) -> bool) -> usize {
        let controllers = lock(&self.controllers);
        let all = controllers.by_id.values().chain(controllers.discovery.values());
        let failed: Vec<_> = all.filter(|c| chosen(c.association())).cloned().collect();
        failed.iter().for_each(|controller| controller.kill());
        if !failed.is_empty() {
            self.raise_attention();
        }
        failed.len()
    }

    /// Tells hosts of a change to the reservations of the namespace with this UUID: those of their
    /// registrations that it concerns. To be called before the change is answered.
    pub fn notify_reservation(&self, uuid: [u8; 16], effects: &[Effect]) {
        let mut notified = false;
        let controllers = lock(&self.controllers);
        let living = controllers.by_id.values();
        for controller in living.filter(|c| c.is_alive() && c.kind() == ControllerKind::Io) {
            let nexus = Nexus::Nvme { host_id: controller.association().host_id };
            for effect in effects.iter().filter(|effect| effect.to.covers(&nexus)) {
                controller.notify(uuid, effect.notice);
                notified = true;
            }
        }
        drop(controllers);
        if notified {
            self.raise_attention();
        }
    }

    /// Associations of the controllers that live now, in no order.
    #[must_use]
    pub fn associations(&self) -> Vec<Arc<Association>> {
        let controllers = lock(&self.controllers);
        controllers
            .by_id
            .values()
            .filter(|c| c.is_alive())
            .map(|c| c.association().clone())
            .collect()
    }

    fn raise_attention(&self) {
        self.attention.fetch_add(1, Ordering::Release);
        if let Some(waker) = self.waker.get() {
            waker();
        }
    }

    fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    fn published(&self) -> Published {
        lock(&self.published).clone()
    }

    /// A number that no authentication of this target had before.
    fn next_authentication(&self) -> u64 {
        self.authentications.fetch_add(1, Ordering::Relaxed)
    }

    /// Counts something that was refused.
    fn note_refusal(&self, note: impl FnOnce(&mut Refusals)) {
        note(&mut lock(&self.refusals));
    }

    /// What was refused since the target was made.
    #[must_use]
    pub fn refusals(&self) -> Refusals {
        lock(&self.refusals).clone()
    }

    /// Identifiers of the living controllers of a subsystem, ascending.
    fn controllers_of(&self, subsystem: &str) -> Vec<u16> {
        let controllers = lock(&self.controllers);
        let living = controllers.by_id.values().filter(|controller| controller.is_alive());
        let named = living.map(|controller| controller.association());
        let mut ids: Vec<u16> =
            named.filter(|one| one.subsystem == subsystem).map(|one| one.controller).collect();
        ids.sort_unstable();
        ids
    }

    /// Registers a controller of `host` under a free identifier; `None` when all are taken, or the host
    /// has as many as one may. `is_proven`: it is known that it is this host; otherwise
    /// [`Self::count_controller`] is to follow.
    fn create_controller(
        &self,
        kind: ControllerKind,
        host: &str,
        is_proven: bool,
        make: impl FnOnce(u16) -> Controller,
    ) -> Option<Arc<Controller>> {
        let mut controllers = lock(&self.controllers);
        let Controllers { by_id, discovery, next, next_discovery, of_host } = &mut *controllers;
        let key = (kind, Arc::from(host));
        let has = of_host.get(&key).copied().unwrap_or(0);
        let ((low, high), known, next) = match kind {
            ControllerKind::Io => {
                ((self.config.controller_min, self.config.controller_max), by_id, next)
            }
            ControllerKind::Discovery => (DISCOVERY_IDS, discovery, next_discovery),
        };
        let is_full = kind == ControllerKind::Discovery && known.len() >= DISCOVERY_CONTROLLERS_MAX;
        let has_all = is_proven && has >= self.config.limits.controllers_per_host_max;
        if has_all || is_full {
            return None;
        }
        let id = free_id(known, (low, high), *next)?;
        *next = if id == high { low } else { id + 1 };
        let controller = Arc::new(make(id));
        known.insert(id, controller.clone());
        if is_proven {
            controller.count();
            of_host.insert(key, has + 1);
        }
        Some(controller)
    }

    /// The host of a controller has proven itself; whether it may have one more.
    fn count_controller(&self, controller: &Controller) -> bool {
        let mut controllers = lock(&self.controllers);
        if controller.is_counted() {
            return true;
        }
        let key = (controller.kind(), Arc::from(controller.association().host.as_str()));
        let count = controllers.of_host.entry(key).or_insert(0);
        if *count >= self.config.limits.controllers_per_host_max {
            return false;
        }
        *count += 1;
        controller.count();
        true
    }
}

/// The first identifier from `start` on, round the range, that nobody has.
fn free_id(
    known: &HashMap<u16, Arc<Controller>>,
    (low, high): (u16, u16),
    start: u16,
) -> Option<u16> {
    if known.len() > usize::from(high - low) {
        return None;
    }
    let after = (start..=high).chain(low..start);
    after.into_iter().find(|id| !known.contains_key(id))
}

/// A panic elsewhere cannot leave these maps half changed, so a poisoned lock is still sound.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
