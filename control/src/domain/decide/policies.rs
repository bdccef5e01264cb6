//! Failover policies.

use super::*;
use voute_schemas::Name;
use voute_schemas::event::PolicyRules;

/// Longest hold-down, milliseconds: a day.
const HOLD_DOWN_MS_MAX: u64 = 24 * 60 * 60 * 1_000;

pub(super) fn create(
    state: &State,
    policy: PolicyId,
    name: &Name,
    rules: &PolicyRules,
) -> Result<Vec<Event>, Refusal> {
    must_be_new(
        Noun::Policy,
        (policy.0, state.policy(policy).is_some()),
        (name, state.policy_named(name).is_some()),
    )?;
    rules_must_be_valid(state, rules)?;
    Ok(vec![Event::PolicyCreated { policy, name: name.clone(), rules: rules.clone() }])
}

pub(super) fn change(
    state: &State,
    id: PolicyId,
    rules: &PolicyRules,
) -> Result<Vec<Event>, Refusal> {
    let policy = known_policy(state, id)?;
    rules_must_be_valid(state, rules)?;
    if policy.rules == *rules {
        let what = format!("policy {} has these rules already", policy.name);
        return Err(Refusal::Unchanged { what });
    }
    Ok(vec![Event::PolicyChanged { policy: id, rules: rules.clone() }])
}

pub(super) fn remove(state: &State, id: PolicyId) -> Result<Vec<Event>, Refusal> {
    let policy = known_policy(state, id)?;
    let user = state
        .groups()
        .find(|(_, group)| group.policy == Some(id))
        .and_then(|(_, group)| state.volume(*group.volumes.first()?));
    if let Some(volume) = user {
        let by = format!("volume {}", volume.name);
        return Err(Refusal::InUse { noun: Noun::Policy, name: policy.name.clone(), by });
    }
    Ok(vec![Event::PolicyRemoved { policy: id }])
}

fn rules_must_be_valid(state: &State, rules: &PolicyRules) -> Result<(), Refusal> {
    if let Some(site) = rules.preferred_site {
        known_site(state, site)?;
    }
    if rules.failback && rules.preferred_site.is_none() {
        let rule = "it has no preferred site to go back to; name one".to_owned();
        return Err(Refusal::Invalid { field: "failback", rule });
    }
    if rules.hold_down_ms > HOLD_DOWN_MS_MAX {
        let rule = format!("it is longer than a day ({HOLD_DOWN_MS_MAX} ms)");
        return Err(Refusal::Invalid { field: "the hold-down", rule });
    }
    Ok(())
}
