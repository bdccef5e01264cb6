//! Who owns what and when that changes; who may ask.

use super::answers::*;
use super::change::ChangeAnswer;
use super::extract::{Change, Query};
use super::failure::Failure;
use super::requests::*;
use super::views::Sight;
use super::{App, resolve};
use crate::access;
use crate::service::unix_ms;
use crate::stream;
use crate::watcher;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use voute_schemas::event::{ConditionSource, FailoverEvidence, PolicyRules, SiteCondition};
use voute_schemas::ids::*;
use voute_schemas::{Command, Name};

pub(super) async fn signal_site(
    State(app): State<App>,
    Path(site): Path<Reference>,
    change: Change<SignalSite>,
) -> ChangeAnswer {
    app.change(change, "ReportSiteCondition", None, |state, body| {
        Ok(Command::ReportSiteCondition {
            site: resolve::site(state, &site)?,
            condition: body.condition,
            source: ConditionSource::Signal,
            detail: body.detail,
        })
    })
    .await
}

pub(super) async fn fail_over_site(
    State(app): State<App>,
    Path(site): Path<Reference>,
    change: Change<FailOverSite>,
) -> ChangeAnswer {
    // Not committed as something that moves nothing, and not as a refusal either: another process, which
    // is asked next with the same key, may hear what this one does not.
    let was_done = change
        .context
        .idempotency_key
        .as_deref()
        .is_some_and(|key| app.service.state().key_use(&change.context.actor, key).is_some());
    if !was_done && app.look(|sight| hears_no_other_side(sight, &site)) {
        return Err(Failure::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "other-sides-not-heard",
            format!(
                "this control process hears none of the nodes that could take over from {}",
                site.0
            ),
            "ask another control process (`--api`), or see with `voute node list` why they are silent",
        ));
    }
    app.change(change, "FailOverSite", None, |state, body| {
        let id = resolve::site(state, &site)?;
        let reported = state.site(id).map_or(SiteCondition::Normal, |site| site.condition);
        let now = unix_ms();
        let nodes = app.observed.nodes();
        let first_sign = watcher::first_sign(state, &nodes, id);
        let age = first_sign
            .map_or(0, |sign| watcher::milliseconds(app.observed.now().saturating_sub(sign)));
        Ok(Command::FailOverSite {
            failover: FailoverId::generate(),
            site: id,
            evidence: FailoverEvidence {
                condition: body.condition.unwrap_or(reported),
                observed: body.observed,
                first_sign_unix_ms: now.saturating_sub(age),
                decided_unix_ms: now,
                left_behind: vec![],
                left_behind_total: 0,
            },
            attested: watcher::attested(
                state,
                &nodes,
                id,
                |node| watcher::speaks(node, &app.times, app.observed.now()),
                |_| true,
            ),
        })
    })
    .await
}

/// Whether there are nodes that could take over from this site, none of which is heard here.
fn hears_no_other_side(sight: &Sight<'_>, site: &Reference) -> bool {
    let Ok(site) = resolve::site(sight.state, site) else { return false };
    let owned = sight.state.nodes().filter(|(_, node)| node.site == site).flat_map(|(node, _)| {
        sight.state.groups_of_node(node).filter(move |(_, group)| group.owner == node)
    });
    let mut others = owned
        .flat_map(move |(_, group)| {
            group.sides.iter().filter(move |side| side.site != site && side.in_sync)
        })
        .map(|side| sight.is_heard(side.node))
        .peekable();
    others.peek().is_some() && !others.any(|is_heard| is_heard)
}

pub(super) async fn move_group(
    State(app): State<App>,
    Path(group): Path<Reference>,
    change: Change<MoveGroup>,
) -> ChangeAnswer {
    let may = |app: &App, id, to| {
        let times = (&app.times, app.observed.now());
        stream::may_move(&app.service.state(), &app.observed.nodes(), times, id, to)
    };
    let force = change.query.force;
    if !force {
        let state = app.service.state();
        let ids = resolve::group(&state, &group).ok();
        if let Some((id, to)) = ids.zip(resolve::site(&state, &change.body.to).ok()) {
            app.until_said(|app| may(app, id, to)).await;
        }
    }
    app.change(change, "MoveOwner", None, |state, body| {
        let id = resolve::group(state, &group)?;
        let to = resolve::site(state, &body.to)?;
        if !force && !may(&app, id, to) {
            return Err(Failure::new(
                StatusCode::CONFLICT,
                "not-vouched",
                format!("the node of group {id} at site {} does not say that its legs are open: hosts would have no path", body.to),
                "bring that node back; or insist with `--force`",
            ));
        }
        Ok(Command::MoveOwner { group: id, to })
    })
    .await
}

pub(super) async fn failovers(
    State(app): State<App>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Page<FailoverView>>, Failure> {
    app.look(|sight| {
        resolve::page(&query, sight.state.failovers().map(|(id, _)| id), |id| sight.failover(id))
    })
    .map(Json)
}

pub(super) async fn failover(
    State(app): State<App>,
    Path(failover): Path<String>,
) -> Result<Json<FailoverView>, Failure> {
    app.look(|sight| {
        let view = failover.parse().ok().and_then(|id| sight.failover(id));
        view.ok_or_else(|| Failure::not_found("failover", &failover)).map(Json)
    })
}

pub(super) async fn policies(
    State(app): State<App>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Page<PolicyView>>, Failure> {
    app.look(|sight| {
        resolve::page(&query, sight.state.policies().map(|(id, _)| id), |id| sight.policy(id))
    })
    .map(Json)
}

pub(super) async fn policy(
    State(app): State<App>,
    Path(policy): Path<Reference>,
) -> Result<Json<PolicyView>, Failure> {
    app.look(|sight| {
        let id = resolve::policy(sight.state, &policy)?;
        sight.policy(id).ok_or_else(|| Failure::not_found("policy", &policy.0)).map(Json)
    })
}

fn rules(state: &crate::domain::State, rules: &Rules) -> Result<PolicyRules, Failure> {
    let preferred = rules.preferred_site.as_ref();
    Ok(PolicyRules {
        mode: rules.mode,
        hold_down_ms: rules.hold_down_ms,
        preferred_site: preferred.map(|site| resolve::site(state, site)).transpose()?,
        failback: rules.failback,
    })
}

pub(super) async fn create_policy(
    State(app): State<App>,
    change: Change<CreatePolicy>,
) -> ChangeAnswer {
    app.change(change, "CreatePolicy", None, |state, body| {
        let rules = rules(state, &body.rules)?;
        Ok(Command::CreatePolicy { policy: PolicyId::generate(), name: body.name, rules })
    })
    .await
}

pub(super) async fn change_policy(
    State(app): State<App>,
    Path(policy): Path<Reference>,
    change: Change<ChangePolicy>,
) -> ChangeAnswer {
    app.change(change, "ChangePolicy", None, |state, body| {
        let policy = resolve::policy(state, &policy)?;
        Ok(Command::ChangePolicy { policy, rules: rules(state, &body.rules)? })
    })
    .await
}

pub(super) async fn remove_policy(
    State(app): State<App>,
    Path(policy): Path<Reference>,
    change: Change<()>,
) -> ChangeAnswer {
    app.change(change, "RemovePolicy", None, |state, ()| {
        Ok(Command::RemovePolicy { policy: resolve::policy(state, &policy)? })
    })
    .await
}

pub(super) async fn credentials(
    State(app): State<App>,
    Query(query): Query<ListQuery>,
) -> Result<Json<Page<CredentialView>>, Failure> {
    app.look(|sight| {
        resolve::page(&query, sight.state.credentials().map(|(id, _)| id), |id| {
            let credential = sight.state.credential(id)?;
            let (name, role) = (credential.name.clone(), credential.role);
            Some(CredentialView { credential: id, name, role })
        })
    })
    .map(Json)
}

pub(super) async fn issue_credential(
    State(app): State<App>,
    change: Change<CreateCredential>,
) -> ChangeAnswer {
    let token = access::fresh("vta_").map_err(|error| Failure::internal(&error))?;
    let verifier = token.verifier;
    app.change(change, "IssueCredential", Some(token.text), |_, body| {
        let credential = CredentialId::generate();
        Ok(Command::IssueCredential { credential, name: body.name, role: body.role, verifier })
    })
    .await
}

pub(super) async fn revoke_credential(
    State(app): State<App>,
    Path(credential): Path<Reference>,
    change: Change<()>,
) -> ChangeAnswer {
    app.change(change, "RevokeCredential", None, |state, ()| {
        Ok(Command::RevokeCredential { credential: resolve::credential(state, &credential)? })
    })
    .await
}

pub(super) async fn secrets(State(app): State<App>) -> Result<Json<SecretNames>, Failure> {
    in_store(&app, |secrets| secrets.names()).await.map(|names| Json(SecretNames { names }))
}

/// What to say of a secret that is not set, or not to be counted on yet.
const NOTHING_DONE: &str = "nothing was changed";
const DONE_HERE: &str = "it was changed here, and will be there once they are heard";
/// How long the other control processes have to take in a secret.
const AGREED_WITHIN: std::time::Duration = std::time::Duration::from_secs(3);

/// A secret that one process alone holds could be taken back by the others, who may know younger ones.
async fn must_agree(app: &App, what: &str) -> Result<(), Failure> {
    let sites = app.service.log_sites();
    let is_sole = matches!(sites.as_slice(), [only] if only.is_own);
    if is_sole || app.sharing.agrees(&sites, AGREED_WITHIN).await {
        return Ok(());
    }
    let message = format!(
        "no majority of the log's sites is known to hold the secrets that this control process holds: {what}"
    );
    let hint = "see who is heard (`voute log-site list`); repeating the request is safe";
    Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, "secrets-differ", message, hint))
}

pub(super) async fn put_secret(
    State(app): State<App>,
    Path(name): Path<String>,
    change: Change<PutSecret>,
) -> Result<Json<SecretNames>, Failure> {
    let name = Name::new(name).map_err(|error| {
        Failure::bad_request("bad-name", error.to_string(), "choose another name")
    })?;
    let secret = change.body.secret;
    let is_printable = secret.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
    if !(12..=255).contains(&secret.len()) || !is_printable {
        return Err(Failure::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "bad-secret",
            "a CHAP secret has 12 to 255 printable ASCII characters",
            "choose a longer one, e.g. `head -c 24 /dev/urandom | base64`",
        ));
    }
    if change.query.plan {
        return secrets(State(app)).await;
    }
    must_agree(&app, NOTHING_DONE).await?;
    tracing::info!(secret = %name, actor = ?change.context.actor, "a CHAP secret was set");
    let entry = in_store(&app, move |secrets| secrets.put(name.as_str(), &secret)).await?;
    app.sharing.tell(entry).await;
    app.streams.renew_facts();
    must_agree(&app, DONE_HERE).await?;
    secrets(State(app)).await
}

pub(super) async fn delete_secret(
    State(app): State<App>,
    Path(name): Path<String>,
    change: Change<()>,
) -> Result<Json<SecretNames>, Failure> {
    let state = app.service.state();
    let user = state.hosts().find(|(_, host)| {
        let named = [&host.identity.chap_secret, &host.keys.secret, &host.keys.target_secret];
        named.into_iter().flatten().any(|secret| secret.as_str() == name)
    });
    if let Some((_, host)) = user {
        return Err(Failure::new(
            StatusCode::CONFLICT,
            "in-use",
            format!("the secret {name} is proven by host {} or to it", host.name),
            "change the host first (`voute host change`, `voute host keys`)",
        ));
    }
    if change.query.plan {
        return secrets(State(app)).await;
    }
    must_agree(&app, NOTHING_DONE).await?;
    tracing::info!(secret = %name, actor = ?change.context.actor, "a CHAP secret was deleted");
    let key = name.clone();
    let Some(entry) = in_store(&app, move |secrets| secrets.delete(&key)).await? else {
        return Err(Failure::not_found("secret", &name));
    };
    app.sharing.tell(entry).await;
    app.streams.renew_facts();
    must_agree(&app, DONE_HERE).await?;
    secrets(State(app)).await
}

/// Uses the secret store on a thread that may block.
async fn in_store<T: Send + 'static>(
    app: &App,
    act: impl FnOnce(&crate::secrets::Secrets) -> Result<T, crate::secrets::SecretsError>
    + Send
    + 'static,
) -> Result<T, Failure> {
    let store = std::sync::Arc::clone(&app.secrets);
    let done = tokio::task::spawn_blocking(move || act(&store)).await;
    done.map_err(|error| Failure::internal(&error))?.map_err(|error| Failure::internal(&error))
}
