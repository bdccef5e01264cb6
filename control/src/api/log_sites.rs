//! Who signs for the log.

use super::App;
use super::answers::{LogSiteView, Page};
use super::change::ChangeAnswer;
use super::extract::Change;
use super::failure::Failure;
use super::requests::ChangeLogSites;
use crate::service::LogSiteSeen;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use std::time::Duration;
use voute_events::checkpoint::parse_verifier;
use voute_events::note::verifier_text;
use voute_schemas::Command;

/// A site that was not heard for this long does not take part.
pub(super) const SILENT_AFTER: Duration = Duration::from_secs(3);

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

pub(super) async fn change(State(app): State<App>, change: Change<ChangeLogSites>) -> ChangeAnswer {
    app.change(change, "ChangeLogSites", None, |_, body| {
        let parse = |text: &String| {
            parse_verifier(text).ok_or_else(|| {
                Failure::new(
                    StatusCode::UNPROCESSABLE_ENTITY,
                    "bad-key",
                    format!("{text:?} is no key of a log site"),
                    "take it from `voute control --data-dir DIR --show-key` on that machine",
                )
            })
        };
        let add = body.add.iter().map(parse).collect::<Result<_, _>>()?;
        Ok(Command::ChangeLogSites { add, remove: body.remove })
    })
    .await
}
