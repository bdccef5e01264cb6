//! The state, and what each request does to it.

use crate::record::HOLDER_BYTES_MAX;
use crate::{
    Access, Effect, Expected, InitiatorPort, Kind, Nexus, Notice, RECORD_BYTES_MAX,
    REGISTRATIONS_MAX, Refusal, Registrant, Request,
};

/// One registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Of whom.
    pub registrant: Registrant,
    /// Its key, never 0.
    pub key: u64,
}

/// A reservation. Of the all-registrants types `by` is whoever asked, and only a name: each
/// registrant holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Who holds.
    pub by: Registrant,
    /// The type.
    pub kind: Kind,
}

/// The reservations of one volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reservations {
    pub(crate) generation: u32,
    pub(crate) persists: bool,
    pub(crate) registrations: Vec<Registration>,
    pub(crate) held: Option<Held>,
    pub(crate) legacy: Option<Nexus>,
}

impl Reservations {
    /// Whether a command of this nexus must be refused (SPC-4 table 64 f.; NVMe Base 2.0 figure
    /// "Command Behavior in the Presence of a Reservation").
    #[must_use]
    pub fn conflicts(&self, nexus: &Nexus, access: Access) -> bool {
        if access != Access::Identity && self.legacy.as_ref().is_some_and(|holder| holder != nexus)
        {
            return true;
        }
        let Some(held) = &self.held else { return false };
        let bars = match access {
            Access::Identity | Access::Free => false,
            Access::Read => held.kind.bars_reads(),
            Access::Write => true,
        };
        bars && !self.is_admitted(held, nexus)
    }

    fn is_admitted(&self, held: &Held, nexus: &Nexus) -> bool {
        let is_registered = self.registration(nexus).is_some();
        is_registered && (held.kind.admits_registrants() || held.by.covers(nexus))
    }

    /// Whether any command of anybody could be in conflict.
    #[must_use]
    pub fn is_reserved(&self) -> bool {
        self.held.is_some() || self.legacy.is_some()
    }

    /// Whether nothing was ever registered, or all of it is forgotten.
    pub(crate) fn is_blank(&self) -> bool {
        *self == Reservations { legacy: self.legacy.clone(), ..Reservations::default() }
    }

    /// Whether both say the same to a leg.
    #[must_use]
    pub fn has_same_record(&self, other: &Reservations) -> bool {
        self.generation == other.generation
            && self.persists == other.persists
            && self.registrations == other.registrations
            && self.held == other.held
    }

    /// PRGENERATION, GEN.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Whether it survives a power cycle (APTPL, PTPL).
    #[must_use]
    pub fn persists(&self) -> bool {
        self.persists
    }

    /// All registrations, oldest first.
    #[must_use]
    pub fn registrations(&self) -> &[Registration] {
        &self.registrations
    }

    /// The reservation, if there is one.
    #[must_use]
    pub fn held(&self) -> Option<&Held> {
        self.held.as_ref()
    }

    /// Whether this registrant holds the reservation.
    #[must_use]
    pub fn holds(&self, registrant: &Registrant) -> bool {
        self.held.as_ref().is_some_and(|held| held.kind.is_held_by_all() || held.by == *registrant)
    }

    /// Who holds by RESERVE of SPC-2.
    #[must_use]
    pub fn legacy_holder(&self) -> Option<&Nexus> {
        self.legacy.as_ref()
    }

    /// The registration that covers a nexus.
    #[must_use]
    pub fn registration(&self, nexus: &Nexus) -> Option<&Registration> {
        self.registrations.iter().find(|one| one.registrant.covers(nexus))
    }

    /// What is left when no process lives any more that knew of it: everything if it was asked to
    /// persist, else nothing. The generation begins anew (SPC-4 §5.13.1).
    #[must_use]
    pub fn after_power_cycle(self) -> Self {
        if self.persists {
            Reservations { generation: 0, legacy: None, ..self }
        } else {
            Reservations::default()
        }
    }

    /// Carries a request out, wholly or not at all.
    ///
    /// # Errors
    /// The [`Refusal`] says why nothing was changed.
    pub fn apply(&mut self, nexus: &Nexus, request: &Request) -> Result<Vec<Effect>, Refusal> {
        let mut next = self.clone();
        let effects = next.carry_out(nexus, request)?;
        let grew = next.registrations.len() > self.registrations.len();
        let fits = next.registrations.len() <= REGISTRATIONS_MAX
            && next.encode().len() + HOLDER_BYTES_MAX <= RECORD_BYTES_MAX;
        if grew && !fits {
            return Err(Refusal::NoRoom);
        }
        *self = next;
        Ok(effects)
    }

    fn carry_out(&mut self, nexus: &Nexus, request: &Request) -> Result<Vec<Effect>, Refusal> {
        match request {
            Request::NexusLost | Request::ReleaseLegacy => {
                self.legacy.take_if(|holder| holder == nexus);
                return Ok(Vec::new());
            }
            Request::UnitReset => {
                self.legacy = None;
                return Ok(Vec::new());
            }
            Request::ReserveLegacy => return self.reserve_legacy(nexus),
            Request::Report => {
                let is_barred = self.legacy.as_ref().is_some_and(|holder| holder != nexus);
                return match is_barred && !nexus.is_nvme() {
                    true => Err(Refusal::Conflict),
                    false => Ok(Vec::new()),
                };
            }
            Request::SetPersistence(persists) => {
                self.persists = *persists;
                return Ok(Vec::new());
            }
            Request::Register { .. }
            | Request::Reserve { .. }
            | Request::Release { .. }
            | Request::Clear { .. }
            | Request::Preempt { .. }
            | Request::Move { .. } => {}
        }
        // SPC-2 §5.5.1: while RESERVE holds, the persistent kind is refused, to its holder too.
        if self.legacy.is_some() {
            return Err(Refusal::Conflict);
        }
        match request {
            Request::Register { expected, key, all_ports, also, persists } => {
                let effects = self.register(nexus, *expected, *key, *all_ports, also)?;
                self.persists = persists.unwrap_or(self.persists);
                Ok(effects)
            }
            Request::Reserve { key, kind } => self.reserve(self.own(nexus, *key)?, *kind),
            Request::Release { key, kind } => self.release(&self.own(nexus, *key)?, *kind),
            Request::Clear { key } => Ok(self.clear(&self.own(nexus, *key)?)),
            Request::Preempt { key, victim, kind, aborts } => {
                self.preempt(self.own(nexus, *key)?, *victim, *kind, *aborts)
            }
            Request::Move { key, to_key, port, relative_port, unregisters, persists } => {
                let to =
                    Registrant::Scsi { port: port.clone(), relative_port: Some(*relative_port) };
                self.give(&self.own(nexus, *key)?, to, *to_key, *unregisters)?;
                self.persists = *persists;
                Ok(Vec::new())
            }
            Request::Report
            | Request::SetPersistence(_)
            | Request::ReserveLegacy
            | Request::ReleaseLegacy
            | Request::NexusLost
            | Request::UnitReset => Ok(Vec::new()),
        }
    }

    /// The asker's registration, if the key is right.
    fn own(&self, nexus: &Nexus, key: u64) -> Result<Registrant, Refusal> {
        let own = self.registration(nexus).filter(|registration| registration.key == key);
        own.map(|registration| registration.registrant.clone()).ok_or(Refusal::Conflict)
    }

    fn next_generation(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    /// RESERVE and persistent registrations exclude each other (SPC-4 §5.13.3).
    fn reserve_legacy(&mut self, nexus: &Nexus) -> Result<Vec<Effect>, Refusal> {
        let is_others = self.legacy.as_ref().is_some_and(|holder| holder != nexus);
        if is_others || !self.registrations.is_empty() {
            return Err(Refusal::Conflict);
        }
        self.legacy = Some(nexus.clone());
        Ok(Vec::new())
    }

    fn register(
        &mut self,
        nexus: &Nexus,
        expected: Expected,
        key: u64,
        all_ports: bool,
        also: &[InitiatorPort],
    ) -> Result<Vec<Effect>, Refusal> {
        let at = self.registrations.iter().position(|one| one.registrant.covers(nexus));
        let current = at.map(|at| self.registrations[at].key);
        let is_expected = match (expected, current) {
            (Expected::NotRegistered, None) => true,
            (Expected::NotRegistered, Some(current)) => nexus.is_nvme() && current == key,
            (Expected::Key(expected), current) => current == Some(expected),
            // NVMe has nothing to remove from a host that is not registered; SCSI does not mind.
            (Expected::Anything, None) => key != 0 || !nexus.is_nvme(),
            (Expected::Anything, Some(_)) => true,
        };
        if !is_expected {
            return Err(Refusal::Conflict);
        }
        self.register_also(nexus, key, all_ports, also)?;
        let effects = match (at, key) {
            (None, 0) => Vec::new(),
            (None, key) => {
                self.enter(nexus.registrant(all_ports), key);
                Vec::new()
            }
            (Some(at), 0) => {
                let gone = self.registrations.remove(at).registrant;
                self.unregistered(&gone)
            }
            (Some(at), key) => {
                self.registrations[at].key = key;
                Vec::new()
            }
        };
        self.next_generation();
        Ok(effects)
    }

    /// Registers other initiator ports through the same target ports (SPC-4 §5.13.7, SPEC_I_PT).
    fn register_also(
        &mut self,
        nexus: &Nexus,
        key: u64,
        all_ports: bool,
        also: &[InitiatorPort],
    ) -> Result<(), Refusal> {
        let Nexus::Scsi { relative_port, .. } = nexus else { return Ok(()) };
        for port in also {
            let relative_port = (!all_ports).then_some(*relative_port);
            let registrant = Registrant::Scsi { port: port.clone(), relative_port };
            let is_known =
                self.registrations.iter().any(|one| one.registrant.overlaps(&registrant));
            let is_asker = registrant.covers(nexus);
            if key == 0 || is_known && !is_asker {
                return Err(Refusal::BadParameter);
            }
            if !is_asker {
                self.enter(registrant, key);
            }
        }
        Ok(())
    }

    /// Adds a registration; one for all ports takes the place of those for single ports.
    fn enter(&mut self, registrant: Registrant, key: u64) {
        let mut covered = None;
        self.registrations.retain(|one| {
            let stays = !one.registrant.overlaps(&registrant);
            if !stays {
                covered = Some(one.registrant.clone());
            }
            stays
        });
        if let (Some(held), Some(covered)) = (&mut self.held, covered)
            && held.by == covered
        {
            held.by = registrant.clone();
        }
        self.registrations.push(Registration { registrant, key });
    }

    /// A holder that unregisters releases (SPC-4 §5.13.11.3); all registrants, with the last of them.
    fn unregistered(&mut self, gone: &Registrant) -> Vec<Effect> {
        let Some(held) = &self.held else { return Vec::new() };
        let kind = held.kind;
        let ends =
            if kind.is_held_by_all() { self.registrations.is_empty() } else { held.by == *gone };
        if !ends {
            return Vec::new();
        }
        self.held = None;
        self.tell_released(gone, kind)
    }

    /// Only of those types under which others had access (SPC-4 §5.13.11.2.2).
    fn tell_released(&self, own: &Registrant, kind: Kind) -> Vec<Effect> {
        match kind.admits_registrants() {
            true => self.tell_others(own, Notice::ReservationReleased),
            false => Vec::new(),
        }
    }

    fn tell_others(&self, own: &Registrant, notice: Notice) -> Vec<Effect> {
        let others = self.registrations.iter().map(|one| &one.registrant);
        others
            .filter(|registrant| *registrant != own)
            .map(|other| Effect { to: other.clone(), notice, aborts: false })
            .collect()
    }

    fn reserve(&mut self, own: Registrant, kind: Kind) -> Result<Vec<Effect>, Refusal> {
        match &self.held {
            None => {
                self.held = Some(Held { by: own, kind });
                Ok(Vec::new())
            }
            Some(held) if self.holds(&own) && held.kind == kind => Ok(Vec::new()),
            Some(_) => Err(Refusal::Conflict),
        }
    }

    fn release(&mut self, own: &Registrant, kind: Kind) -> Result<Vec<Effect>, Refusal> {
        let Some(held) = self.held.as_ref().filter(|_| self.holds(own)) else {
            return Ok(Vec::new());
        };
        if held.kind != kind {
            return Err(Refusal::OtherType);
        }
        self.held = None;
        Ok(self.tell_released(own, kind))
    }

    fn clear(&mut self, own: &Registrant) -> Vec<Effect> {
        let effects = self.tell_others(own, Notice::ReservationPreempted);
        self.registrations.clear();
        self.held = None;
        self.next_generation();
        effects
    }

    fn holder_key(&self) -> Option<u64> {
        let held = self.held.as_ref().filter(|held| !held.kind.is_held_by_all())?;
        self.registrations.iter().find(|one| one.registrant == held.by).map(|holder| holder.key)
    }

    /// SPC-4 §5.13.11.4; NVMe Base 2.0 §8.19.7.
    fn preempt(
        &mut self,
        own: Registrant,
        victim: u64,
        kind: Kind,
        aborts: bool,
    ) -> Result<Vec<Effect>, Refusal> {
        let held_by_all = self.held.as_ref().is_some_and(|held| held.kind.is_held_by_all());
        let takes_over = match victim {
            0 if !held_by_all => return Err(Refusal::BadParameter),
            0 => true,
            victim => self.holder_key() == Some(victim),
        };
        if !takes_over && self.registrations.iter().all(|one| one.key != victim) {
            return Err(Refusal::Conflict);
        }
        let goes = |one: &Registration| one.registrant != own && (victim == 0 || one.key == victim);
        let (victims, kept): (Vec<_>, Vec<_>) = self.registrations.drain(..).partition(goes);
        self.registrations = kept;
        let preempted = |one: Registration| Effect {
            to: one.registrant,
            notice: Notice::RegistrationPreempted,
            aborts,
        };
        let mut effects: Vec<Effect> = victims.into_iter().map(preempted).collect();
        if takes_over {
            let old = self.held.replace(Held { by: own.clone(), kind }).map(|held| held.kind);
            if let Some(old) = old.filter(|old| *old != kind) {
                effects.extend(self.tell_released(&own, old));
            }
        }
        self.next_generation();
        Ok(effects)
    }

    /// REGISTER AND MOVE (SPC-4 §5.13.8).
    fn give(
        &mut self,
        own: &Registrant,
        to: Registrant,
        to_key: u64,
        unregisters: bool,
    ) -> Result<(), Refusal> {
        let held = self.held.as_ref().ok_or(Refusal::NotReserved)?;
        if held.kind.is_held_by_all() || held.by != *own {
            return Err(Refusal::Conflict);
        }
        if to_key == 0 || own.overlaps(&to) {
            return Err(Refusal::BadParameter);
        }
        let kind = held.kind;
        let known = self.registrations.iter_mut().find(|one| one.registrant.overlaps(&to));
        let by = match known {
            Some(known) => {
                known.key = to_key;
                known.registrant.clone()
            }
            None => {
                self.enter(to.clone(), to_key);
                to
            }
        };
        self.held = Some(Held { by, kind });
        if unregisters {
            self.registrations.retain(|one| one.registrant != *own);
        }
        self.next_generation();
        Ok(())
    }
}
