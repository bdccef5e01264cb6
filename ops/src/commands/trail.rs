//! Status, failovers, events, the audit trail.

use super::{Session, item};
use crate::NotYet;
use crate::api::client::{ApiError, Client, encode};
use crate::api::names::Names;
use crate::api::waiting::{Step, wait_for};
use crate::cli::OutputFormat;
use crate::cli::nouns::{AuditVerb, EventVerb, FailoverVerb, OutcomeFilter};
use crate::print::events::outcome_words;
use crate::print::table::{Row, print_csv_row, print_facts, print_json, print_rows};
use crate::print::time::show_time;
use crate::print::{line, plain};
use anyhow::{Context, bail};
use std::collections::HashMap;
use std::fmt::Write;
use std::time::Instant;
use voute_control::api::answers::{
    AuditPage, Changed, CommitView, FailoverView, StatusView, Verification, VolumeHealth,
    VolumeView,
};
use voute_control::api::requests::{AuditQuery, FailOverSite, LIST_MAX};
use voute_schemas::event::LeftBehind;
use voute_schemas::{Event, GroupId, NodeId};

/// A commit as a row of the trail.
pub struct TrailRow {
    cells: Vec<String>,
}

impl TrailRow {
    /// With names in place of identifiers.
    #[must_use]
    pub fn new(view: &CommitView, names: &Names) -> Self {
        let commit = &view.commit;
        let cells = vec![
            commit.sequence.to_string(),
            show_time(commit.time_unix_ms),
            view.actor_name.clone(),
            format!("{:?}", commit.origin),
            commit.command.clone(),
            outcome_words(commit, names),
            commit.reason.clone(),
        ];
        TrailRow { cells }
    }
}

impl Row for TrailRow {
    const HEADINGS: &'static [&'static str] =
        &["commit", "when", "who", "by", "command", "what", "why"];
    fn cells(&self) -> Vec<String> {
        self.cells.clone()
    }
}

/// What a decided failover moves, and what it leaves.
#[derive(Debug)]
struct Moves<'a> {
    moved: Vec<(GroupId, NodeId)>,
    left_behind: &'a [LeftBehind],
    left_behind_total: u64,
}

impl<'a> Moves<'a> {
    fn of(events: &'a [Event]) -> Self {
        let mut moves = Moves { moved: vec![], left_behind: &[], left_behind_total: 0 };
        for event in events {
            match event {
                Event::FailoverDecided { evidence, .. } => {
                    moves.left_behind = &evidence.left_behind;
                    moves.left_behind_total = evidence.left_behind_total;
                }
                Event::OwnerMoved { group, to, .. } => moves.moved.push((*group, *to)),
                _ => {}
            }
        }
        moves
    }
}

/// Whether a volume is served by its new owner; one that was moved on is no longer waited for.
fn judge_taken_over(view: &VolumeView, owner: &str) -> Step {
    match view.health {
        _ if view.owner.id != owner => Step::Done,
        VolumeHealth::Healthy | VolumeHealth::Degraded | VolumeHealth::Resyncing => Step::Done,
        VolumeHealth::Preparing | VolumeHealth::Waiting | VolumeHealth::Down => {
            Step::Going(format!("{} is being opened by its new owner", view.name))
        }
    }
}

impl Session<'_> {
    pub(super) fn status(&self) -> anyhow::Result<()> {
        let status: StatusView = self.client.get("/v1/status")?;
        match self.options.output {
            OutputFormat::Json => return print_json(&status),
            OutputFormat::Csv => return print_rows(&status.sites, OutputFormat::Csv),
            OutputFormat::Table => {}
        }
        let by_health: Vec<String> = status
            .volumes_by_health
            .iter()
            .map(|(health, count)| format!("{count} {health}"))
            .collect();
        print_facts(&[
            ("health", status.health.clone()),
            ("log head", status.head.to_string()),
            (
                "volumes",
                format!(
                    "{} ({})",
                    status.volumes,
                    if by_health.is_empty() { "none".to_owned() } else { by_health.join(", ") }
                ),
            ),
            ("fail over by themselves", status.volumes_armed.to_string()),
            ("software", status.software.clone()),
        ]);
        for problem in &status.problems {
            line(&format!("problem: {}", plain(problem)));
        }
        line("");
        print_rows(&status.sites, OutputFormat::Table)
    }

    pub(super) fn failover(&self, verb: FailoverVerb) -> anyhow::Result<()> {
        match verb {
            FailoverVerb::Start { site, observed, condition } => {
                let body = FailOverSite { observed, condition: condition.map(Into::into) };
                let changed =
                    self.client.post(&format!("{}/failover", item("sites", &site)), &body)?;
                if self.report(&changed, &format!("failover of {site} decided"))? {
                    self.tell_moves(&site, &changed)?;
                }
            }
            FailoverVerb::List => self.print_list::<FailoverView>("/v1/failovers")?,
            FailoverVerb::Show { failover } => self.show_failover(&failover)?,
        }
        Ok(())
    }

    /// Says what moves and what stays, and waits until what moves is served.
    fn tell_moves(&self, site: &str, changed: &Changed) -> anyhow::Result<()> {
        let Moves { moved, left_behind, left_behind_total } = Moves::of(&changed.events);
        let words = format!("{} volume(s) move, {left_behind_total} stay", moved.len());
        if self.options.output != OutputFormat::Json {
            line(&words);
            let names =
                if left_behind.is_empty() { Names::default() } else { Names::load(&self.client)? };
            for left in left_behind {
                line(&format!("left behind: {}: {}", names.of(&left.group), plain(&left.cause)));
            }
        }
        if moved.is_empty() {
            bail!(
                "nothing moved from {site}\n  See why above, or with `voute failover show`; `voute volume show` says what a volume waits for."
            );
        }
        if self.options.waits() {
            self.wait_until_served(site, &moved)?;
        }
        if left_behind_total > 0 {
            bail!("{site} was left only partly: {words}");
        }
        Ok(())
    }

    fn wait_until_served(&self, site: &str, moved: &[(GroupId, NodeId)]) -> anyhow::Result<()> {
        let began = Instant::now();
        let what = format!("failover of {site}");
        let owners: HashMap<GroupId, NodeId> = moved.iter().copied().collect();
        for volume in self.client.list_of::<VolumeView>("/v1/volumes")? {
            let Some(owner) = owners.get(&volume.group).map(ToString::to_string) else { continue };
            let patience = self.options.wait_timeout.saturating_sub(began.elapsed());
            let path = item("volumes", &volume.volume.to_string());
            wait_for(&self.client, &path, patience, &what, |view: &VolumeView| {
                judge_taken_over(view, &owner)
            })?;
        }
        if self.options.output != OutputFormat::Json {
            line(&format!("all are served again, {} ms later", began.elapsed().as_millis()));
        }
        Ok(())
    }

    fn show_failover(&self, id: &str) -> anyhow::Result<()> {
        let path = item("failovers", id);
        if self.options.output != OutputFormat::Table {
            return self.print_one::<FailoverView>(&path);
        }
        let view: FailoverView = self.client.get(&path)?;
        print_facts(&failover_facts(&view));
        let names = if view.evidence.left_behind.is_empty() {
            Names::default()
        } else {
            Names::load(&self.client)?
        };
        for left in &view.evidence.left_behind {
            line(&format!("left behind: {}: {}", names.of(&left.group), plain(&left.cause)));
        }
        Ok(())
    }

    pub(super) fn event(&self, verb: EventVerb) -> anyhow::Result<()> {
        let EventVerb::Follow { from } = verb;
        let path =
            from.map_or_else(|| "/v1/feed".to_owned(), |number| format!("/v1/feed?from={number}"));
        let mut names = if self.options.output == OutputFormat::Json {
            Names::default()
        } else {
            Names::load(&self.client)?
        };
        if self.options.output == OutputFormat::Csv {
            line(&TrailRow::HEADINGS.join(","));
        }
        self.client.follow(&path, |data| {
            follow_one(data, self.options.output, &mut names);
            true
        })?;
        bail!(
            "the control plane ended the stream\n  Follow it on with `voute event follow --from NUMBER`."
        )
    }

    pub(super) fn audit(&self, verb: AuditVerb) -> anyhow::Result<()> {
        match verb {
            AuditVerb::List { from, to, actor, command, outcome, entity, text, limit } => {
                let outcome = outcome.map(|outcome| match outcome {
                    OutcomeFilter::Accepted => "accepted".to_owned(),
                    OutcomeFilter::Refused => "refused".to_owned(),
                });
                let query =
                    AuditQuery { from, to, actor, command, outcome, entity, text, limit: None };
                self.print_commits(&read_trail(&self.client, query, limit)?)
            }
            AuditVerb::Show { number } => {
                let query =
                    AuditQuery { from: Some(number), to: Some(number), ..AuditQuery::default() };
                let found = read_trail(&self.client, query, 1)?;
                let view = found.first().with_context(|| {
                    format!("the log has no commit {number}; `voute status` tells its head")
                })?;
                match self.options.output {
                    OutputFormat::Table => {
                        print_facts(&commit_facts(view, &Names::load(&self.client)?))
                    }
                    OutputFormat::Json => print_json(view)?,
                    OutputFormat::Csv => self.print_commits(&found)?,
                }
                Ok(())
            }
            AuditVerb::Verify { all } => self.verify(all),
        }
    }

    fn print_commits(&self, commits: &[CommitView]) -> anyhow::Result<()> {
        if self.options.output == OutputFormat::Json {
            return print_json(commits);
        }
        let mut names = Names::load(&self.client)?;
        commits.iter().for_each(|view| names.learn(&view.commit));
        let rows: Vec<TrailRow> = commits.iter().map(|view| TrailRow::new(view, &names)).collect();
        print_rows(&rows, self.options.output)
    }

    /// What is broken goes before what cannot be found out.
    fn verify(&self, all: bool) -> anyhow::Result<()> {
        let clients = if all { self.client.each() } else { vec![self.client.clone()] };
        let (mut broken, mut unproven) = (Vec::new(), Vec::new());
        for client in clients {
            match client.get_patiently::<Verification>("/v1/audit/verify") {
                Ok(found) => {
                    self.print_verification(client.api(), &found)?;
                    if !found.verified {
                        broken.push(format!("{}: {}", client.api(), found.detail));
                    }
                }
                Err(
                    error @ (ApiError::Unreachable { .. } | ApiError::Refused { status: 503, .. }),
                ) => {
                    unproven.push(format!("{}: {error}", client.api()));
                }
                Err(error) => return Err(error.into()),
            }
        }
        if !broken.is_empty() {
            bail!(
                "the log is not what it should be: {}\n  Stop changing things, keep the data folders of all control processes, and compare their logs.",
                broken.join("; ")
            );
        }
        if !unproven.is_empty() {
            return Err(NotYet(unproven.join("\n")).into());
        }
        Ok(())
    }

    fn print_verification(&self, api: &str, found: &Verification) -> anyhow::Result<()> {
        match self.options.output {
            OutputFormat::Json => print_json(found),
            OutputFormat::Table | OutputFormat::Csv => {
                let asked = ("asked", api.to_owned());
                let facts: Vec<_> =
                    std::iter::once(asked).chain(verification_facts(found)).collect();
                print_facts(&facts);
                Ok(())
            }
        }
    }
}

/// Reads commits of the trail, page by page, up to `limit`.
///
/// # Errors
/// Whatever the API refuses.
pub fn read_trail(
    client: &Client,
    mut query: AuditQuery,
    limit: usize,
) -> anyhow::Result<Vec<CommitView>> {
    let mut found = Vec::new();
    while found.len() < limit {
        query.limit = Some((limit - found.len()).min(LIST_MAX));
        let page: AuditPage = client.get(&format!("/v1/audit?{}", query_string(&query)?))?;
        found.extend(page.commits);
        match page.next {
            Some(next) if Some(next) > query.from => query.from = Some(next),
            _ => break,
        }
    }
    Ok(found)
}

/// The set fields of a query, percent-encoded.
fn query_string(query: &AuditQuery) -> anyhow::Result<String> {
    let fields = serde_json::to_value(query)?;
    let mut text = String::new();
    for (name, value) in fields.as_object().into_iter().flatten() {
        let value = value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
        let joiner = if text.is_empty() { "" } else { "&" };
        write!(text, "{joiner}{name}={}", encode(&value))?;
    }
    Ok(text)
}

/// Prints one commit of the stream.
fn follow_one(data: &str, format: OutputFormat, names: &mut Names) {
    match (format, serde_json::from_str::<CommitView>(data)) {
        (OutputFormat::Json, _) | (_, Err(_)) => line(&plain(data)),
        (OutputFormat::Table, Ok(view)) => {
            names.learn(&view.commit);
            line(&plain(&trail_line(&view, names)));
        }
        (OutputFormat::Csv, Ok(view)) => {
            names.learn(&view.commit);
            print_csv_row(&TrailRow::new(&view, names).cells());
        }
    }
}

/// One line of the trail.
#[must_use]
pub fn trail_line(view: &CommitView, names: &Names) -> String {
    let commit = &view.commit;
    let why =
        if commit.reason.is_empty() { String::new() } else { format!(" [{}]", commit.reason) };
    format!(
        "{:>5}  {}  {}: {}{why}",
        commit.sequence,
        show_time(commit.time_unix_ms),
        view.actor_name,
        outcome_words(commit, names)
    )
}

fn commit_facts(view: &CommitView, names: &Names) -> Vec<(&'static str, String)> {
    let commit = &view.commit;
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    vec![
        ("commit", commit.sequence.to_string()),
        ("id", commit.id.to_string()),
        ("when", show_time(commit.time_unix_ms)),
        ("who", view.actor_name.clone()),
        ("by", format!("{:?}", commit.origin)),
        ("from", or_none(commit.source.map(|source| source.to_string()))),
        ("command", commit.command.clone()),
        ("why", commit.reason.clone()),
        ("what", outcome_words(commit, names)),
        ("correlation", commit.correlation.to_string()),
        ("caused by", or_none(commit.causation.map(|cause| cause.to_string()))),
        ("idempotency key", or_none(commit.idempotency_key.clone())),
        ("hash before", commit.previous.to_string()),
        ("hash", view.hash.to_string()),
    ]
}

fn failover_facts(view: &FailoverView) -> Vec<(&'static str, String)> {
    let mut facts = vec![
        ("failover", view.failover.to_string()),
        ("site", view.site.name.clone()),
        ("commit", view.sequence.to_string()),
        ("condition", format!("{:?}", view.evidence.condition)),
        ("observed", view.evidence.observed.clone()),
        ("first sign", show_time(view.evidence.first_sign_unix_ms)),
        ("decided", show_time(view.evidence.decided_unix_ms)),
        ("left behind", view.evidence.left_behind_total.to_string()),
    ];
    if let Some(phases) = &view.phases {
        facts.extend([
            ("groups served again", phases.groups.to_string()),
            ("detection", format!("{} ms", phases.detection_ms)),
            ("commit took", format!("{} ms", phases.commit_ms)),
            ("lease wait", format!("{} ms", phases.lease_wait_ms)),
            ("opening", format!("{} ms", phases.open_ms)),
            (
                "first host I/O",
                phases.first_io_ms.map_or_else(|| "-".to_owned(), |taken| format!("{taken} ms")),
            ),
        ]);
    }
    facts
}

fn verification_facts(found: &Verification) -> Vec<(&'static str, String)> {
    let good = |holds: bool| if holds { "holds" } else { "BROKEN" }.to_owned();
    vec![
        ("commits read", found.commits.to_string()),
        ("chain of hashes", good(found.chain)),
        ("signed checkpoint", good(found.checkpoint)),
        ("state rebuilt from the log", good(found.digest)),
        ("digest", found.replayed_digest.to_string()),
        ("root", found.root.to_string()),
        ("took", format!("{} ms", found.took_ms)),
        ("verified", if found.verified { "yes" } else { "NO" }.to_owned()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_holds_only_what_was_asked_and_escapes_it() {
        let query =
            AuditQuery { from: Some(3), text: Some("a&b c".into()), ..AuditQuery::default() };
        assert_eq!(query_string(&query).expect("plain fields"), "from=3&text=a%26b%20c");
    }
}
