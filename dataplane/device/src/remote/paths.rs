//! By which addresses a subsystem is reached: the one that was given, and those that its discovery
//! service tells.

use super::session::Session;
use super::wire::Wire;
use super::{RemoteError, Target};
use crate::mailbox::wait_for;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use voute_nvme::{
    DiscoveredKind, DiscoveredPortal, Discovery, InitiatorConnection, InitiatorEvent,
};

/// Most addresses of one subsystem; more are not used.
const PATHS_MAX: usize = 16;
/// Most discovery services that are asked, referrals included.
const SERVICES_MAX: usize = 4;
/// How long one may take to answer.
const DISCOVERY_MAX: Duration = Duration::from_secs(5);
/// Where discovery services listen that do not share the port of the subsystems.
const DISCOVERY_PORT: u16 = 8009;

/// The addresses of one subsystem. The first is the one that was given.
pub(super) struct Paths {
    addresses: Mutex<Addresses>,
}

struct Addresses {
    known: Vec<SocketAddr>,
    is_asking: bool,
}

impl Paths {
    pub(super) fn new(given: SocketAddr) -> Self {
        Paths { addresses: Mutex::new(Addresses { known: vec![given], is_asking: false }) }
    }

    /// Opens the best of all paths, the first that is optimized. The one by `last`, which was just
    /// lost, comes last. Each has its part of the time.
    pub(super) fn open(
        &self,
        target: &Target,
        last: Option<SocketAddr>,
        limit: Duration,
    ) -> Result<Session, RemoteError> {
        let until = Instant::now() + limit;
        let mut candidates = self.lock().known.clone();
        candidates.sort_by_key(|address| Some(*address) == last);
        let count = candidates.len();
        let (mut best, mut reason) = (None, None);
        for (index, address) in candidates.into_iter().enumerate() {
            let left = until.saturating_duration_since(Instant::now());
            let share = left / u32::try_from(count - index).unwrap_or(1);
            match Session::open(target, address, share) {
                Ok(session) if session.is_optimized() => return Ok(session),
                Ok(session) => drop(best.get_or_insert(session)),
                Err(error) => drop(reason.get_or_insert(error)),
            }
        }
        best.ok_or(reason.unwrap_or(RemoteError::Timeout))
    }

    pub(super) fn has_other_than(&self, address: SocketAddr) -> bool {
        self.lock().known.iter().any(|known| *known != address)
    }

    /// Asks for further addresses meanwhile, unless that is being done. A target without discovery
    /// keeps those that are known.
    pub(super) fn ask_meanwhile(self: &Arc<Self>, target: &Arc<Target>, via: SocketAddr) {
        if std::mem::replace(&mut self.lock().is_asking, true) {
            return;
        }
        let (paths, target) = (Arc::clone(self), Arc::clone(target));
        let asking =
            std::thread::Builder::new().name("remote-discovery".to_owned()).spawn(move || {
                paths.ask(&target, via);
                paths.lock().is_asking = false;
            });
        if let Err(error) = asking {
            tracing::warn!(%error, "other paths of a remote device cannot be asked for");
            self.lock().is_asking = false;
        }
    }

    /// Asks the discovery service behind `via`, and those that it refers to, for further addresses.
    pub(super) fn ask(&self, target: &Target, via: SocketAddr) {
        let mut services = vec![via, SocketAddr::new(via.ip(), DISCOVERY_PORT)];
        let mut asked = 0;
        while asked < services.len().min(SERVICES_MAX) {
            let service = services[asked];
            asked += 1;
            let portals = match discover(target, service) {
                Ok(portals) => portals,
                Err(error) => {
                    tracing::debug!(%service, %error, "no discovery here");
                    continue;
                }
            };
            for portal in portals {
                match portal.kind {
                    DiscoveredKind::Referral if !services.contains(&portal.address) => {
                        services.push(portal.address);
                    }
                    DiscoveredKind::Referral => {}
                    DiscoveredKind::Subsystem => self.learn(target, &portal),
                }
            }
            if self.lock().known.len() > 1 {
                return;
            }
        }
    }

    fn learn(&self, target: &Target, portal: &DiscoveredPortal) {
        let mut addresses = self.lock();
        let is_new = !addresses.known.contains(&portal.address);
        if portal.subsystem == target.subsystem() && is_new && addresses.known.len() < PATHS_MAX {
            tracing::info!(address = %portal.address, subsystem = %portal.subsystem, "a remote device has another path");
            addresses.known.push(portal.address);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Addresses> {
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a discovery service tells the cluster's host.
fn discover(target: &Target, service: SocketAddr) -> Result<Vec<DiscoveredPortal>, RemoteError> {
    let start = Instant::now();
    let connection = InitiatorConnection::connect_admin(target.discovery_options(), Duration::ZERO);
    let mut wire = Wire::open(service, connection, DISCOVERY_MAX)?;
    let mut discovery = Discovery::new();
    loop {
        let now = start.elapsed();
        wire.exchange(now);
        discovery.tick(&mut wire.connection, now);
        while let Some(event) = wire.connection.next_event() {
            let rest = discovery.handle(&mut wire.connection, event, now);
            if let Some(InitiatorEvent::Closed { reason }) = rest {
                return Err(RemoteError::Closed(reason));
            }
        }
        if let Some(outcome) = discovery.outcome() {
            return outcome.map_err(RemoteError::Attachment);
        }
        wire.send().map_err(RemoteError::Connect)?;
        let left = DISCOVERY_MAX.saturating_sub(now);
        if left.is_zero() {
            return Err(RemoteError::Timeout);
        }
        let deadlines = [wire.connection.next_deadline(), discovery.next_deadline()];
        let due = deadlines.into_iter().flatten().min().map(|at| at.saturating_sub(now));
        let has_output = !wire.connection.output().is_empty();
        wait_for(&[(wire.stream.as_fd(), has_output)], due.unwrap_or(left).min(left));
    }
}
