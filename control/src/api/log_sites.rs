//! Who signs for the log.

use super::App;
use super::answers::{Changed, LogSiteView, Page};
use super::change::ChangeAnswer;
use super::extract::Change;
use super::failure::Failure;
use super::requests::{ChangeLogSites, ChangeQuery};
use crate::service::hand_over::same_sites;
use crate::service::{Context, LogSiteSeen};
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use std::time::Duration;
use voute_events::checkpoint::parse_verifier;
use voute_events::note::verifier_text;
use voute_schemas::proof::Verifier;
use voute_schemas::{Command, Event, Hash};

/// A site that was not heard for this long does not take part.
pub(super) const SILENT_AFTER: Duration = Duration::from_secs(3);

/// Whoever is to become a site is waited for so long: it speaks twice a second.
const SPEAKS_WITHIN: Duration = Duration::from_secs(2);

pub(super) async fn list(State(app): State<App>) -> Json<Page<LogSiteView>> {
    let items = app.service.log_sites().iter().map(view).collect();
    Json(Page { items, next: None })
}

pub(super) fn view(site: &LogSiteSeen) -> LogSiteView {
    let ago = site.heard_at.map(|at| at.elapsed());
    LogSiteView {
        name: site.verifier.name.clone(),
        key: verifier_text(&site.verifier),
        signed: site.signed,
        heard_ms_ago: ago.map(|ago| u64::try_from(ago.as_millis()).unwrap_or(u64::MAX)),
        // Whoever answers this takes part.
        heard: site.is_own || ago.is_some_and(|ago| ago < SILENT_AFTER),
    }
}

/// Adds and removes sites, each by a commit of its own that takes effect before the next is asked for:
/// first those that come, so that no majority gets smaller than it must.
pub(super) async fn change(State(app): State<App>, change: Change<ChangeLogSites>) -> ChangeAnswer {
    let Change { body, query, context } = change;
    let now: Vec<Verifier> =
        app.service.log_sites().into_iter().map(|site| site.verifier).collect();
    let key = context.idempotency_key.clone();
    let state = app.service.state();
    if let Some(key) = key.as_deref().filter(|_| !query.plan)
        && state.key_use(&context.actor, key).is_some()
    {
        // It is answered as it was.
        let change = Change { body: (), query, context };
        return app.change(change, "ChangeLogSites", None, |_, ()| Err(nothing())).await;
    }
    // Of a request that was cut short, what was done is not done again.
    let is_done = |step: &Step| {
        let key = key.as_deref().map(|key| step.key(key));
        key.is_some_and(|key| state.key_use(&context.actor, &key).is_some())
    };
    let steps = async {
        let mut steps = steps(&body)?;
        steps.retain(|step| !is_done(step));
        if !query.force {
            check(&app, &state, &now, &steps).await?;
        }
        let last = steps.pop().ok_or_else(nothing)?;
        Ok((steps, last))
    };
    let (before, last) = match steps.await {
        Ok(steps) => steps,
        Err(failure) => {
            let refused = |_: &crate::domain::State, ()| Err(failure);
            let change = Change { body: (), query, context };
            return app.change(change, "ChangeLogSites", None, refused).await;
        }
    };
    if query.plan {
        return plan(&app, now, before, last, (query, context)).await;
    }
    for step in before {
        let mut context = context.clone();
        context.idempotency_key = key.as_deref().map(|key| step.key(key));
        let change = Change { body: step, query, context };
        let _ = app.change(change, "ChangeLogSites", None, |_, step| Ok(step.command())).await?;
    }
    let change = Change { body: last, query, context };
    app.change(change, "ChangeLogSites", None, |_, step| Ok(step.command())).await
}

/// One site that comes or goes.
#[derive(Clone, Debug)]
enum Step {
    Add(Verifier),
    Remove(String),
}

impl Step {
    fn command(self) -> Command {
        match self {
            Step::Add(site) => Command::ChangeLogSites { add: vec![site], remove: vec![] },
            Step::Remove(name) => Command::ChangeLogSites { add: vec![], remove: vec![name] },
        }
    }

    /// The key of this step, where the whole request has `key`.
    fn key(&self, key: &str) -> String {
        let own = match self {
            Step::Add(site) => format!("{key} +{}", verifier_text(site)),
            Step::Remove(name) => format!("{key} -{name}"),
        };
        Hash::of(own.as_bytes()).to_string()
    }

    fn apply(&self, sites: &mut Vec<Verifier>) {
        match self {
            Step::Add(site) => sites.push(site.clone()),
            Step::Remove(name) => sites.retain(|site| site.name != *name),
        }
    }
}

fn steps(body: &ChangeLogSites) -> Result<Vec<Step>, Failure> {
    let parse = |text: &String| {
        let site = parse_verifier(text).ok_or_else(|| {
            Failure::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "bad-key",
                format!("{text:?} is no key of a log site"),
                "take it from `voute control --data-dir DIR --show-key` on that machine",
            )
        })?;
        Ok(Step::Add(site))
    };
    let removed = body.remove.iter().map(|name| Ok(Step::Remove(name.clone())));
    body.add.iter().map(parse).chain(removed).collect()
}

fn nothing() -> Failure {
    let hint = "name sites to add or to remove";
    Failure::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", "no log site is named", hint)
}

/// Whether the log would go on after each step: whoever comes is heard, and a majority of those named
/// is there. Going back to those in force is always allowed.
async fn check(
    app: &App,
    state: &crate::domain::State,
    now: &[Verifier],
    steps: &[Step],
) -> Result<(), Failure> {
    let mut sites = now.to_vec();
    steps.iter().for_each(|step| step.apply(&mut sites));
    let in_force = state.cluster().map_or(&[][..], |cluster| &cluster.log_sites);
    if same_sites(&sites, in_force) {
        return Ok(());
    }
    let refused = |code: &str, message: String, hint: &str| {
        Err(Failure::new(StatusCode::CONFLICT, code, message, hint))
    };
    if sites.len() == 2 {
        let hint = "add two at once, so that there are three; or insist with `--force`";
        let message = "with two log sites both must sign: losing either stops every change";
        return refused("two-log-sites", message.to_owned(), hint);
    }
    let heard = app.service.log_sites();
    let is_heard = async |site: &Verifier, time| match heard.iter().find(|it| it.verifier == *site)
    {
        Some(known) => view(known).heard,
        None => app.service.hears(site, time).await,
    };
    let mut sites = now.to_vec();
    for step in steps {
        if let Step::Add(site) = step
            && !is_heard(site, SPEAKS_WITHIN).await
        {
            let hint = "start its control process on this log, and see that NATS lets it use voute.exchange.>; or insist with `--force`";
            let message = format!("log site {} is not heard: the log would wait for it", site.name);
            return refused("log-site-silent", message, hint);
        }
        step.apply(&mut sites);
        let mut there = 0;
        for site in &sites {
            there += usize::from(is_heard(site, Duration::ZERO).await);
        }
        if there <= sites.len() / 2 {
            let hint = "bring the silent ones back first (`voute log-site list`); or insist with `--force`";
            let message = format!("of {} log sites only {there} would be heard", sites.len());
            return refused("log-sites-silent", message, hint);
        }
    }
    Ok(())
}

/// What all steps would do.
async fn plan(
    app: &App,
    mut sites: Vec<Verifier>,
    before: Vec<Step>,
    last: Step,
    (query, context): (ChangeQuery, Context),
) -> ChangeAnswer {
    let mut events = Vec::new();
    for step in &before {
        step.apply(&mut sites);
        events.push(Event::LogSitesChanged { sites: sites.clone() });
    }
    if before.is_empty() {
        let change = Change { body: last, query, context };
        return app.change(change, "ChangeLogSites", None, |_, step| Ok(step.command())).await;
    }
    let first = before.into_iter().next().expect("it was seen not to be empty");
    let change = Change { body: first, query, context };
    let planned = app.change(change, "ChangeLogSites", None, |_, step| Ok(step.command())).await?;
    last.apply(&mut sites);
    events.push(Event::LogSitesChanged { sites });
    Ok(Json(Changed { events, ..planned.0 }))
}
