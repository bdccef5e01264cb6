//! What the connections of a node share: the published directory, the sessions, the state of logical
//! units that outlives a session.
//!
//! Locks are taken at login, at publication and by administrative commands; a connection's data path
//! reads one atomic to learn whether anything changed.

use crate::request::VolumeKey;
use crate::scsi::SharedUnit;
use crate::session::{Mail, Session, SessionKey};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use voute_reservation::{Effect, Nexus, Request, Reservations};

/// Most sessions on one node.
pub(crate) const SESSIONS_MAX: usize = 4096;
/// Most sessions of one host at a node: one that opens ever more of them takes none from others.
pub const SESSIONS_PER_HOST_MAX: usize = 64;

/// Names a portal of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortalId(pub u16);

/// An address where the target can be reached, at any site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Portal {
    /// Its id; a connection names the one it came in by.
    pub id: PortalId,
    /// `address:port`, IPv6 in brackets, as SendTargets tells it.
    pub address: String,
    /// Target portal group tag: one per node, since a session never spans nodes.
    pub group_tag: u16,
    /// Relative target port identifier (SPC-4), 1..=65535, unique over both sites.
    pub relative_port: u16,
}

/// One direction's CHAP name and secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    /// CHAP_N.
    pub name: String,
    /// The secret; RFC 7143 asks for at least 12 bytes.
    pub secret: Vec<u8>,
}

impl fmt::Debug for Credential {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Credential({}, secret hidden)", self.name)
    }
}

/// What a host and the target prove to each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chap {
    /// What the host must prove.
    pub host: Credential,
    /// What the target proves if the host asks; its secret must differ from the host's.
    pub target: Option<Credential>,
}

/// Whether a login must authenticate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Authentication {
    /// By its name alone.
    #[default]
    None,
    /// By CHAP.
    Chap(Chap),
}

/// Asymmetric access state of a target port group (SPC-4 §5.16.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AluaState {
    /// The owner: 0h.
    ActiveOptimized,
    /// Serves, with a detour: 1h.
    NonOptimized,
    /// The other site owns the volume: 2h.
    Standby,
    /// Cannot serve: 3h.
    Unavailable,
    /// Ownership is moving: Fh.
    Transitioning,
}

impl AluaState {
    /// Whether medium-access commands are served.
    #[must_use]
    pub fn serves(self) -> bool {
        match self {
            AluaState::ActiveOptimized | AluaState::NonOptimized => true,
            AluaState::Standby | AluaState::Unavailable | AluaState::Transitioning => false,
        }
    }
}

/// The ports of one site as a volume sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetPortGroup {
    /// Target port group, 1..=65535.
    pub id: u16,
    /// The state of its ports for this volume.
    pub state: AluaState,
    /// Its ports' relative target port identifiers.
    pub relative_ports: Vec<u16>,
}

/// A volume as one host sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LunView {
    /// 0..=16383.
    pub lun: u16,
    /// Given back with each request.
    pub volume: VolumeKey,
    /// NAA identifier, type 6 (or 3 with a locally assigned first half), equal at all sites.
    pub naa: [u8; 16],
    /// Unit serial number, printable ASCII, at most 64 characters.
    pub serial: String,
    /// Bytes, 512 or 4096.
    pub block_size: u32,
    /// Capacity in blocks, at least 1.
    pub blocks: u64,
    /// This node's access state.
    pub alua_state: AluaState,
    /// Every site's group, this node's among them; may be empty for a volume with one path.
    pub target_port_groups: Vec<TargetPortGroup>,
    /// Writes are refused with 27/00.
    pub read_only: bool,
    /// Blocks get their room when they are written, and may find none. If not, there is room for every
    /// block: resource provisioning. UNMAP is accepted of both.
    pub thin: bool,
    /// What the volume writes best, bytes: its block size, or more in powers of two. Only told.
    pub physical_block_size: u32,
    /// Most blocks that the volume writes all or not at all, also across a power cut, as long as they
    /// cross no multiple of it; at least 1.
    pub atomic_blocks: u32,
}

/// A host, by its iSCSI name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostView {
    /// For its normal sessions.
    pub authentication: Authentication,
    /// In any order; a LUN that comes twice counts once.
    pub luns: Vec<LunView>,
    /// The portals that it is told of, or all.
    pub portals: Option<Vec<PortalId>>,
}

/// Everything that a node offers, replaced as a whole by [`Target::publish`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directory {
    /// The portals of all sites.
    pub portals: Vec<Portal>,
    /// Hosts by iSCSI name, in lower case.
    pub hosts: HashMap<String, HostView>,
    /// For discovery sessions.
    pub discovery: Authentication,
}

impl Directory {
    /// The host of this iSCSI name, which is compared without regard to case (RFC 3722).
    #[must_use]
    pub fn host(&self, name: &str) -> Option<&HostView> {
        self.hosts.get(name).or_else(|| self.hosts.get(&name.to_lowercase()))
    }

    /// The portal of this id.
    #[must_use]
    pub fn portal(&self, id: PortalId) -> Option<&Portal> {
        self.portals.iter().find(|portal| portal.id == id)
    }
}

/// What does not change while a node runs.
#[derive(Clone)]
pub struct TargetConfig {
    /// The target's iSCSI name, the same at all sites.
    pub name: String,
    /// A text for people.
    pub alias: Option<String>,
    /// 32 random bytes, fresh at each start, from which CHAP challenges are made.
    pub seed: [u8; 32],
}

/// What the connections of a node share.
pub struct Target {
    pub(crate) config: TargetConfig,
    directory: Mutex<Arc<Directory>>,
    generation: AtomicU64,
    challenges: AtomicU64,
    registry: Mutex<Registry>,
    units: Mutex<HashMap<VolumeKey, Arc<SharedUnit>>>,
    wishes: Mutex<Vec<ReservationWish>>,
    has_wishes: AtomicBool,
}

/// A request about a volume's reservations that no command asks for, hence none is answered: a
/// session or a unit's state ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReservationWish {
    /// Which volume.
    pub volume: VolumeKey,
    /// On whose behalf.
    pub nexus: Nexus,
    /// What.
    pub request: Request,
}

#[derive(Default)]
struct Registry {
    sessions: HashMap<SessionKey, Arc<Session>>,
    last_tsih: u16,
}

/// A session could not be entered.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "the node has {SESSIONS_MAX} sessions, or {SESSIONS_PER_HOST_MAX} of this host; log out of one first"
)]
pub(crate) struct TooManySessions;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Target {
    /// A target that offers nothing yet.
    #[must_use]
    pub fn new(config: TargetConfig) -> Arc<Self> {
        Arc::new(Target {
            config,
            directory: Mutex::default(),
            generation: AtomicU64::new(1),
            challenges: AtomicU64::new(0),
            registry: Mutex::default(),
            units: Mutex::default(),
            wishes: Mutex::default(),
            has_wishes: AtomicBool::new(false),
        })
    }

    /// Replaces what is offered. Each connection notices by itself: at its next command, or at its
    /// next tick.
    pub fn publish(&self, directory: Arc<Directory>) {
        self.forget_units(&directory);
        *lock(&self.directory) = directory;
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Drops the state of volumes that nobody sees any more.
    fn forget_units(&self, directory: &Directory) {
        let offered: HashSet<VolumeKey> =
            directory.hosts.values().flat_map(|host| &host.luns).map(|view| view.volume).collect();
        lock(&self.units).retain(|volume, unit| {
            offered.contains(volume) || Arc::strong_count(unit) > 1 || unit.is_reserved()
        });
    }

    /// Publishes a volume's reservations and tells the sessions that a change concerns. To be called
    /// before the change is answered, and with what a new owner begins with; where the volume is owned
    /// no more, with none.
    pub fn set_reservations(
        &self,
        volume: VolumeKey,
        state: Arc<Reservations>,
        effects: &[Effect],
    ) {
        self.unit(volume).set_reservations(state);
        if effects.is_empty() {
            return;
        }
        for session in lock(&self.registry).sessions.values() {
            for effect in effects.iter().filter(|effect| effect.to.covers(session.nexus())) {
                session.post(Mail::Attention(volume, effect.notice.into()));
                if effect.aborts && session.outstanding() > 0 {
                    // Nobody waits for the token: the volume knows itself when writes have ended.
                    session.post(Mail::Abort(volume, Arc::new(())));
                }
            }
        }
    }

    /// What is wished of reservations since this was last called. To be called whenever connections
    /// were given bytes, completions or ticks; one atomic when there is nothing. There is at most one
    /// wish for each RESERVE and its end.
    pub fn take_reservation_wishes(&self) -> Vec<ReservationWish> {
        if !self.has_wishes.load(Ordering::Acquire)
            || !self.has_wishes.swap(false, Ordering::AcqRel)
        {
            return Vec::new();
        }
        std::mem::take(&mut *lock(&self.wishes))
    }

    pub(crate) fn wish(&self, volume: VolumeKey, nexus: &Nexus, request: Request) {
        lock(&self.wishes).push(ReservationWish { volume, nexus: nexus.clone(), request });
        self.has_wishes.store(true, Ordering::Release);
    }

    /// What is offered now.
    #[must_use]
    pub fn directory(&self) -> Arc<Directory> {
        lock(&self.directory).clone()
    }

    /// Number of sessions.
    #[must_use]
    pub fn sessions(&self) -> usize {
        lock(&self.registry).sessions.len()
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(crate) fn next_challenge(&self) -> [u8; crate::chap::CHALLENGE_LENGTH] {
        crate::chap::challenge(&self.config.seed, self.challenges.fetch_add(1, Ordering::Relaxed))
    }

    /// The state that a volume's sessions on this node share.
    pub(crate) fn unit(&self, volume: VolumeKey) -> Arc<SharedUnit> {
        lock(&self.units).entry(volume).or_default().clone()
    }

    /// Enters a session, ending the one of the same key (RFC 7143 §6.3.5). The predecessor is given
    /// back: its surfaced requests must end before the successor's first is surfaced.
    pub(crate) fn enter(
        &self,
        key: SessionKey,
    ) -> Result<(Arc<Session>, Option<Arc<Session>>), TooManySessions> {
        let mut registry = lock(&self.registry);
        let predecessor = registry.sessions.remove(&key);
        if predecessor.is_none() && registry.is_full(&key) {
            return Err(TooManySessions);
        }
        let tsih = registry.free_tsih();
        let session = Arc::new(Session::new(key.clone(), tsih));
        registry.sessions.insert(key, session.clone());
        drop(registry);
        if let Some(predecessor) = &predecessor {
            predecessor.end();
            self.release_legacy_reservations(predecessor);
        }
        Ok((session, predecessor))
    }

    /// Removes a session that logged out or lost its connection.
    pub(crate) fn leave(&self, session: &Arc<Session>) {
        session.end();
        let mut registry = lock(&self.registry);
        if registry.sessions.get(&session.key).is_some_and(|entered| Arc::ptr_eq(entered, session))
        {
            registry.sessions.remove(&session.key);
        }
        drop(registry);
        self.release_legacy_reservations(session);
    }

    /// Whether a session has this handle.
    pub(crate) fn has_tsih(&self, tsih: u16) -> bool {
        lock(&self.registry).sessions.values().any(|session| session.tsih == tsih)
    }

    /// Calls `each` for every session but `except`.
    pub(crate) fn for_other_sessions(
        &self,
        except: &Arc<Session>,
        mut each: impl FnMut(&Arc<Session>),
    ) {
        let registry = lock(&self.registry);
        registry
            .sessions
            .values()
            .filter(|session| !Arc::ptr_eq(session, except))
            .for_each(&mut each);
    }

    fn release_legacy_reservations(&self, session: &Session) {
        let nexus = session.nexus();
        for (volume, unit) in lock(&self.units).iter().filter(|(_, unit)| unit.is_reserved()) {
            if unit.reservations().legacy_holder() == Some(nexus) {
                self.wish(*volume, nexus, Request::NexusLost);
            }
        }
    }
}

impl Registry {
    /// Whether there is no room for another session of this host.
    fn is_full(&self, key: &SessionKey) -> bool {
        let of_host = self.sessions.keys().filter(|other| other.initiator == key.initiator);
        self.sessions.len() >= SESSIONS_MAX || of_host.count() >= SESSIONS_PER_HOST_MAX
    }

    /// The next session handle that is not zero and not in use; there are more handles than sessions.
    fn free_tsih(&mut self) -> u16 {
        loop {
            self.last_tsih = self.last_tsih.wrapping_add(1);
            let taken = self.sessions.values().any(|session| session.tsih == self.last_tsih);
            if self.last_tsih != 0 && !taken {
                return self.last_tsih;
            }
        }
    }
}
