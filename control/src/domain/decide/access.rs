//! Genesis and credentials.

use super::{State, known_credential, must_be_new};
use crate::domain::refusal::{Noun, Refusal};
use voute_schemas::event::{Event, Role};
use voute_schemas::ids::{ClusterId, CredentialId};
use voute_schemas::proof::Verifier;
use voute_schemas::{Hash, Name};

/// Level of events that this version writes.
const LEVEL: u32 = 1;

pub(super) fn create_cluster(
    state: &State,
    cluster: ClusterId,
    name: &Name,
    log_site: &Verifier,
) -> Result<Vec<Event>, Refusal> {
    if let Some(existing) = state.cluster() {
        return Err(Refusal::ClusterExists { name: existing.name.clone() });
    }
    let log_site = log_site.clone();
    Ok(vec![
        Event::ClusterCreated { cluster, name: name.clone(), log_site },
        Event::ClusterLevelRaised { level: LEVEL },
    ])
}

pub(super) fn issue_credential(
    state: &State,
    credential: CredentialId,
    name: &Name,
    role: Role,
    verifier: Hash,
) -> Result<Vec<Event>, Refusal> {
    must_be_new(
        Noun::Credential,
        (credential.0, state.credential(credential).is_some()),
        (name, state.credential_named(name).is_some()),
    )?;
    if state.credential_of_verifier(verifier).is_some() {
        return Err(Refusal::DuplicateSecret);
    }
    Ok(vec![Event::CredentialIssued { credential, name: name.clone(), role, verifier }])
}

pub(super) fn revoke_credential(
    state: &State,
    credential: CredentialId,
) -> Result<Vec<Event>, Refusal> {
    let revoked = known_credential(state, credential)?;
    let another_administrates =
        state.credentials().any(|(id, it)| id != credential && it.role == Role::Administrator);
    if revoked.role == Role::Administrator && !another_administrates {
        return Err(Refusal::LastAdministrator { name: revoked.name.clone() });
    }
    Ok(vec![Event::CredentialRevoked { credential }])
}
