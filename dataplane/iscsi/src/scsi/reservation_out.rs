//! PERSISTENT RESERVE OUT (SPC-4 §6.16): what each service action changes, and whom it must tell.

use super::command::Refusal;
use super::reservation::{
    Held, Kind, Nexus, REGISTRATIONS_MAX, Registrant, Registration, Reservations,
};
use super::sense::{Attention, Sense};

/// Length of the parameter list without additional data, bytes.
pub(super) const LIST_LENGTH: usize = 24;

/// What a command does to other sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// A unit attention for all other sessions on the unit.
    AttendOthers(Attention),
    /// A unit attention for a registrant.
    Attend(Registrant, Attention),
    /// Abort a registrant's tasks.
    Abort(Registrant),
}

/// A decoded request.
pub(super) struct Change {
    action: u8,
    kind: u8,
    key: u64,
    action_key: u64,
    for_all_ports: bool,
}

impl Change {
    pub(super) fn parse(action: u8, scope_and_type: u8, list: &[u8]) -> Result<Self, Sense> {
        if list.len() != LIST_LENGTH {
            return Err(Sense::PARAMETER_LENGTH);
        }
        let number = |at: usize| {
            list[at..at + 8].iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte))
        };
        let flags = list[20];
        // SPEC_I_PT and APTPL: neither is among the reported capabilities.
        if flags & 0x09 != 0 {
            return Err(Sense::INVALID_FIELD_IN_PARAMETERS);
        }
        let names_a_type = matches!(action, 1 | 2 | 4 | 5);
        if names_a_type
            && (scope_and_type >> 4 != 0 || Kind::from_code(scope_and_type & 15).is_none())
        {
            return Err(Sense::INVALID_FIELD_IN_CDB);
        }
        Ok(Change {
            action,
            kind: scope_and_type & 15,
            key: number(0),
            action_key: number(8),
            for_all_ports: flags & 0x04 != 0,
        })
    }

    fn kind(&self) -> Result<Kind, Refusal> {
        Kind::from_code(self.kind).ok_or(Refusal::Sense(Sense::INVALID_FIELD_IN_CDB))
    }
}

impl Reservations {
    /// Carries out a change that `nexus` asks for.
    pub(super) fn change(
        &mut self,
        nexus: &Nexus,
        change: &Change,
    ) -> Result<Vec<Effect>, Refusal> {
        if matches!(change.action, 0 | 6) {
            return self.register(nexus, change);
        }
        let own = self.registration(nexus).filter(|registration| registration.key == change.key);
        let own = own.ok_or(Refusal::Conflict)?.registrant.clone();
        match change.action {
            1 => self.reserve(own, change.kind()?).map(|()| Vec::new()),
            2 => self.release(&own, change.kind()?),
            3 => Ok(self.clear(&own)),
            4 => self.preempt(own, change, false),
            5 => self.preempt(own, change, true),
            _ => Err(Refusal::Sense(Sense::INVALID_FIELD_IN_CDB)),
        }
    }

    fn register(&mut self, nexus: &Nexus, change: &Change) -> Result<Vec<Effect>, Refusal> {
        let at =
            self.registrations.iter().position(|registration| registration.registrant.is(nexus));
        let current_key = at.map_or(0, |at| self.registrations[at].key);
        if change.action == 0 && current_key != change.key {
            return Err(Refusal::Conflict);
        }
        let effects = match (at, change.action_key) {
            (None, 0) => Vec::new(),
            (None, key) => {
                if self.registrations.len() >= REGISTRATIONS_MAX {
                    return Err(Refusal::Sense(Sense::INSUFFICIENT_REGISTRATION_RESOURCES));
                }
                let relative_port = (!change.for_all_ports).then_some(nexus.relative_port);
                let registrant =
                    Registrant { initiator_port: nexus.initiator_port.clone(), relative_port };
                // One for all ports takes the place of those for single ports.
                self.registrations.retain(|registration| {
                    relative_port.is_some()
                        || registration.registrant.initiator_port != registrant.initiator_port
                });
                self.registrations.push(Registration { registrant, key });
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
        self.generation = self.generation.wrapping_add(1);
        Ok(effects)
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
        if kind.admits_registrants() {
            self.attend_all_but(gone, Attention::RESERVATIONS_RELEASED)
        } else {
            Vec::new()
        }
    }

    fn attend_all_but(&self, own: &Registrant, attention: Attention) -> Vec<Effect> {
        let others = self.registrations.iter().map(|registration| &registration.registrant);
        others
            .filter(|registrant| *registrant != own)
            .map(|other| Effect::Attend(other.clone(), attention))
            .collect()
    }

    fn reserve(&mut self, own: Registrant, kind: Kind) -> Result<(), Refusal> {
        match &self.held {
            None => {
                self.held = Some(Held { by: own, kind });
                Ok(())
            }
            Some(held) if self.holds(&own) && held.kind == kind => Ok(()),
            Some(_) => Err(Refusal::Conflict),
        }
    }

    fn release(&mut self, own: &Registrant, kind: Kind) -> Result<Vec<Effect>, Refusal> {
        let Some(held) = &self.held else { return Ok(Vec::new()) };
        if !self.holds(own) {
            return Ok(Vec::new());
        }
        if held.kind != kind {
            return Err(Refusal::Sense(Sense::INVALID_RELEASE));
        }
        self.held = None;
        let tells = kind.admits_registrants();
        Ok(if tells {
            self.attend_all_but(own, Attention::RESERVATIONS_RELEASED)
        } else {
            Vec::new()
        })
    }

    fn clear(&mut self, own: &Registrant) -> Vec<Effect> {
        let effects = self.attend_all_but(own, Attention::RESERVATIONS_PREEMPTED);
        self.registrations.clear();
        self.held = None;
        self.generation = self.generation.wrapping_add(1);
        effects
    }

    fn preempt(
        &mut self,
        own: Registrant,
        change: &Change,
        aborts: bool,
    ) -> Result<Vec<Effect>, Refusal> {
        let kind = change.kind()?;
        let held_by_all = self.held.as_ref().is_some_and(|held| held.kind.is_held_by_all());
        let holder_key =
            self.held.as_ref().filter(|held| !held.kind.is_held_by_all()).and_then(|held| {
                self.registrations
                    .iter()
                    .find(|one| one.registrant == held.by)
                    .map(|holder| holder.key)
            });
        let takes_over = if change.action_key == 0 {
            if !held_by_all {
                return Err(Refusal::Sense(Sense::INVALID_FIELD_IN_PARAMETERS));
            }
            true
        } else {
            holder_key == Some(change.action_key)
        };
        let is_victim = |one: &Registration| {
            one.registrant != own && (change.action_key == 0 || one.key == change.action_key)
        };
        let matches_any =
            takes_over || self.registrations.iter().any(|one| one.key == change.action_key);
        if !matches_any {
            return Err(Refusal::Conflict);
        }
        let (victims, kept): (Vec<_>, Vec<_>) = self.registrations.drain(..).partition(is_victim);
        self.registrations = kept;
        let mut effects = Vec::new();
        for victim in victims {
            effects.push(Effect::Attend(
                victim.registrant.clone(),
                Attention::REGISTRATIONS_PREEMPTED,
            ));
            if aborts {
                effects.push(Effect::Abort(victim.registrant));
            }
        }
        if takes_over {
            let old_kind = self.held.replace(Held { by: own.clone(), kind }).map(|held| held.kind);
            if old_kind.is_some_and(|old| old != kind && old.admits_registrants()) {
                effects.extend(self.attend_all_but(&own, Attention::RESERVATIONS_RELEASED));
            }
        }
        self.generation = self.generation.wrapping_add(1);
        Ok(effects)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::opcodes::Guard;

    fn nexus(name: &str) -> Nexus {
        Nexus { initiator_port: name.into(), relative_port: 1 }
    }

    fn out(
        unit: &mut Reservations,
        who: &Nexus,
        action: u8,
        kind: u8,
        key: u64,
        action_key: u64,
    ) -> Result<Vec<Effect>, Refusal> {
        let mut list = [key.to_be_bytes(), action_key.to_be_bytes()].concat();
        list.resize(24, 0);
        unit.change(who, &Change::parse(action, kind, &list).map_err(Refusal::Sense)?)
    }

    fn two_registered(kind: u8) -> (Reservations, Nexus, Nexus) {
        let (mut unit, a, b) = (Reservations::default(), nexus("a"), nexus("b"));
        out(&mut unit, &a, 0, 0, 0, 1).expect("registers");
        out(&mut unit, &b, 0, 0, 0, 2).expect("registers");
        out(&mut unit, &a, 1, kind, 1, 0).expect("reserves");
        (unit, a, b)
    }

    #[test]
    fn each_type_bars_what_its_table_says() {
        // Type, others registered may read, write; strangers may read, write.
        for (kind, registered, stranger) in [
            (1, [true, false], [true, false]),
            (3, [false, false], [false, false]),
            (5, [true, true], [true, false]),
            (6, [true, true], [false, false]),
            (7, [true, true], [true, false]),
            (8, [true, true], [false, false]),
        ] {
            let (unit, a, b) = two_registered(kind);
            let may = |who: &Nexus| {
                [!unit.conflicts(who, Guard::Read), !unit.conflicts(who, Guard::Write)]
            };
            assert_eq!(may(&a), [true, true], "holder, type {kind}");
            assert_eq!(may(&b), registered, "registered, type {kind}");
            assert_eq!(may(&nexus("c")), stranger, "stranger, type {kind}");
            assert!(!unit.conflicts(&nexus("c"), Guard::Identity));
        }
    }

    #[test]
    fn a_wrong_key_changes_nothing() {
        let (mut unit, a, b) = two_registered(1);
        for (who, action, key) in
            [(&a, 0, 9), (&a, 2, 9), (&b, 3, 9), (&b, 4, 9), (&nexus("c"), 1, 0)]
        {
            assert_eq!(out(&mut unit, who, action, 1, key, 1), Err(Refusal::Conflict));
        }
        assert_eq!(unit.generation, 2);
    }

    #[test]
    fn a_preempted_holder_loses_its_registration_and_is_told() {
        let (mut unit, a, b) = two_registered(1);
        let effects = out(&mut unit, &b, 5, 3, 2, 1).expect("preempts");
        let victim = Registrant { initiator_port: "a".into(), relative_port: Some(1) };
        assert_eq!(
            effects,
            [
                Effect::Attend(victim.clone(), Attention::REGISTRATIONS_PREEMPTED),
                Effect::Abort(victim)
            ]
        );
        assert!(unit.conflicts(&a, Guard::Read));
        assert!(!unit.conflicts(&b, Guard::Write));
    }

    #[test]
    fn releasing_tells_the_other_registrants_only() {
        let (mut unit, a, _) = two_registered(5);
        let effects = out(&mut unit, &a, 2, 5, 1, 0).expect("releases");
        let other = Registrant { initiator_port: "b".into(), relative_port: Some(1) };
        assert_eq!(effects, [Effect::Attend(other, Attention::RESERVATIONS_RELEASED)]);
        assert!(!unit.is_reserved());
    }

    #[test]
    fn the_last_registrant_releases_an_all_registrants_reservation() {
        let (mut unit, a, b) = two_registered(7);
        out(&mut unit, &a, 0, 0, 1, 0).expect("unregisters");
        assert!(unit.is_reserved());
        out(&mut unit, &b, 0, 0, 2, 0).expect("unregisters");
        assert!(!unit.is_reserved());
    }

    #[test]
    fn registrations_are_bounded() {
        let mut unit = Reservations::default();
        for number in 0..REGISTRATIONS_MAX {
            out(&mut unit, &nexus(&number.to_string()), 6, 0, 0, 7).expect("registers");
        }
        assert!(out(&mut unit, &nexus("more"), 6, 0, 0, 7).is_err());
    }

    #[test]
    fn a_legacy_reservation_ends_with_its_nexus() {
        let (mut unit, a, b) = (Reservations::default(), nexus("a"), nexus("b"));
        assert!(unit.reserve_legacy(&a));
        assert!(!unit.reserve_legacy(&b));
        unit.release_legacy(&b);
        assert!(unit.conflicts(&b, Guard::Free));
        unit.nexus_lost(&a);
        assert!(!unit.conflicts(&b, Guard::Free));
    }
}
