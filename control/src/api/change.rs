//! How every changing request goes: resolve, plan or commit, answer.

use super::App;
use super::answers::Changed;
use super::extract::Change;
use super::failure::Failure;
use crate::domain::State;
use crate::service::{Context, Done, Unanswered};
use axum::Json;
use axum::http::StatusCode;
use voute_schemas::commit::Outcome;
use voute_schemas::event::HostKeys;
use voute_schemas::{Command, Commit, CorrelationId, Event, Name, Sequence};

/// What changing handlers answer.
pub(super) type ChangeAnswer = Result<Json<Changed>, Failure>;

impl App {
    /// Makes a command of a request, plans or commits it. `name` is the command's name, for what
    /// is refused before there is a command.
    pub(super) async fn change<B>(
        &self,
        change: Change<B>,
        name: &'static str,
        secret: Option<String>,
        command: impl FnOnce(&State, B) -> Result<Command, Failure>,
    ) -> ChangeAnswer {
        let Change { body, query, context } = change;
        let state = self.service.state();
        // Before anything is looked up: what the request names may be gone because it succeeded.
        if let Some(key) = context.idempotency_key.as_deref().filter(|_| !query.plan)
            && let Some(used) = state.key_use(&context.actor, key)
        {
            return self.repeat(used.sequence, context.correlation, key).await;
        }
        let command = match command(&state, body) {
            Ok(command) => command,
            Err(failure) if query.plan => return Err(failure),
            Err(failure) => return Err(self.refuse(context, name, failure).await),
        };
        if query.plan {
            return self.plan(&command);
        }
        let warnings = warnings(&state, &command);
        let (key, correlation) = (context.idempotency_key.clone(), context.correlation);
        match self.service.submit(command, context).await {
            Ok(Done::Committed { position, commit }) => {
                Ok(Json(changed(position.sequence, &commit, secret, warnings)))
            }
            Ok(Done::Refused { code, message, position }) => {
                let sequence = position.map(|position| position.sequence.0);
                Err(refused(code, message, sequence))
            }
            Ok(Done::Repeated { sequence }) => {
                self.repeat(sequence, correlation, &key.unwrap_or_default()).await
            }
            Ok(Done::Escalated { .. }) => {
                Err(Failure::internal(&"a command was answered as an escalation"))
            }
            Err(unanswered) => Err(failed(&unanswered)),
        }
    }

    /// Answers a key that was used by this commit, if it was by the same request.
    async fn repeat(
        &self,
        sequence: Sequence,
        correlation: CorrelationId,
        key: &str,
    ) -> ChangeAnswer {
        let commit = self.commit(sequence).await?;
        if commit.correlation == correlation {
            repeated(sequence, commit)
        } else {
            Err(key_reused(key, sequence))
        }
    }

    fn plan(&self, command: &Command) -> ChangeAnswer {
        match self.service.plan(command) {
            Ok(events) => Ok(Json(Changed {
                plan: true,
                sequence: None,
                commit: None,
                created: events.first().and_then(created),
                events,
                secret: None,
                repeated: false,
                warnings: warnings(&self.service.state(), command),
            })),
            Err(refusal) => Err(refused(refusal.code().to_owned(), refusal.to_string(), None)),
        }
    }

    /// Records a request that named what is not there.
    async fn refuse(&self, context: Context, name: &str, mut failure: Failure) -> Failure {
        let (code, message) = (failure.problem.code.clone(), failure.problem.message.clone());
        failure.problem.sequence =
            self.service.record_refusal(context, name.to_owned(), &code, message).await;
        failure
    }

    /// Reads one commit.
    async fn commit(&self, sequence: Sequence) -> Result<Commit, Failure> {
        let stored = self.service.commits(sequence, 1).await;
        let stored = stored.map_err(|error| Failure::unavailable(error.to_string()))?;
        let stored = stored.first().filter(|stored| stored.position.sequence == sequence);
        let stored = stored
            .ok_or_else(|| Failure::unavailable(format!("commit {sequence} cannot be read")))?;
        Commit::decode(&stored.bytes).map_err(|error| Failure::internal(&error))
    }
}

fn changed(
    sequence: Sequence,
    commit: &Commit,
    secret: Option<String>,
    warnings: Vec<String>,
) -> Changed {
    Changed {
        plan: false,
        sequence: Some(sequence.0),
        commit: Some(commit.id),
        events: commit.events().to_vec(),
        created: commit.events().first().and_then(created),
        secret,
        repeated: false,
        warnings,
    }
}

/// The first answer again.
fn repeated(sequence: Sequence, commit: Commit) -> ChangeAnswer {
    if let Outcome::Refused { code, message } = commit.outcome {
        return Err(refused(code, message, Some(sequence.0)));
    }
    let had_secret = matches!(
        commit.events().first(),
        Some(Event::NodeAdded { .. } | Event::CredentialIssued { .. })
    );
    let warnings = if had_secret {
        vec!["the secret was in the first answer and cannot be shown again; remove this and make another if it was lost".into()]
    } else {
        Vec::new()
    };
    let answer = changed(sequence, &commit, None, warnings);
    Ok(Json(Changed { repeated: true, ..answer }))
}

/// What to know about a change that is allowed.
fn warnings(state: &State, command: &Command) -> Vec<String> {
    match command {
        Command::CreateVolume { legs, .. } if legs.len() == 1 => {
            vec![
                "the volume has one leg: it is lost with its site; `voute leg add` mirrors it"
                    .into(),
            ]
        }
        Command::CreateVolume { policy: None, .. } => {
            vec!["the volume has no failover policy: it moves only when told".into()]
        }
        Command::AddDevice { overwrite: true, .. } => {
            vec!["whatever the device holds will be lost".into()]
        }
        Command::ChangeHost { host, identity }
            if identity.chap_secret.is_none()
                && state.host(*host).is_some_and(|it| it.identity.chap_secret.is_some()) =>
        {
            vec![
                "the host's CHAP secret is taken away: it proves its iSCSI name by no secret from now on"
                    .into(),
            ]
        }
        Command::AddHost { identity, .. } | Command::ChangeHost { identity, .. }
            if !identity.iqns.is_empty() && identity.chap_secret.is_none() =>
        {
            vec![
                "the host proves its iSCSI name by no secret: anyone on the network can claim it"
                    .into(),
            ]
        }
        Command::ChangeHostKeys { host, keys } => {
            let host = state.host(*host);
            host.map_or_else(Vec::new, |host| warnings_of_keys(&host.name, &host.keys, keys))
        }
        Command::RemoveLeg { volume, .. } if state.volume(*volume).is_some() => {
            vec!["the volume is then no longer mirrored".into()]
        }
        _ => Vec::new(),
    }
}

/// What a host need not prove any more, or is no longer proven to it.
fn warnings_of_keys(host: &Name, before: &HostKeys, after: &HostKeys) -> Vec<String> {
    let mut warnings = Vec::new();
    if after.secret.is_none() {
        warnings.push(format!(
            "host {host} is known over NVMe by its name alone from now on: anyone on the network can claim it"
        ));
    }
    if let (Some(dropped), None) = (&before.target_secret, &after.target_secret) {
        warnings.push(format!(
            "{dropped} is not proven to host {host} any more: if it asks for that, it is shut out"
        ));
    }
    warnings
}

/// Identifier of what an event created.
fn created(event: &Event) -> Option<String> {
    Some(match event {
        Event::CredentialIssued { credential, .. } => credential.to_string(),
        Event::SiteAdded { site, .. } => site.to_string(),
        Event::NodeAdded { node, .. } => node.to_string(),
        Event::PoolCreated { pool, .. } => pool.to_string(),
        Event::DeviceAdded { device, .. } => device.to_string(),
        Event::PolicyCreated { policy, .. } => policy.to_string(),
        Event::VolumeCreated { volume, .. } => volume.to_string(),
        Event::LegAdded { placement, .. } => placement.leg.to_string(),
        Event::HostAdded { host, .. } => host.to_string(),
        Event::FailoverDecided { failover, .. } => failover.to_string(),
        _ => return None,
    })
}

fn refused(code: String, message: String, sequence: Option<u64>) -> Failure {
    let status = if code.starts_with("unknown-") {
        StatusCode::NOT_FOUND
    } else if matches!(code.as_str(), "invalid" | "leg-count" | "volume-size") {
        StatusCode::UNPROCESSABLE_ENTITY
    } else {
        StatusCode::CONFLICT
    };
    // Refusals say themselves what to do, after a colon.
    let hint = message.rsplit_once(": ").map_or("", |(_, hint)| hint).to_owned();
    let mut failure = Failure::new(status, code, message, hint);
    failure.problem.sequence = sequence;
    failure
}

fn key_reused(key: &str, sequence: Sequence) -> Failure {
    Failure::new(
        StatusCode::CONFLICT,
        "idempotency-key-reused",
        format!("the idempotency key {key:?} was used for another request (commit {sequence})"),
        "use a new key for each request, and the same key only to repeat one",
    )
}

fn failed(unanswered: &Unanswered) -> Failure {
    Failure::unavailable(unanswered.to_string())
}
