//! The cluster at a glance: for people, load balancers and monitoring.

use super::answers::*;
use super::failure::Failure;
use super::views::Sight;
use super::{App, OPENMETRICS};
use crate::domain::spec::{subsystem_nqn, target_iqn};
use crate::service::Condition;
use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::Ordering::Relaxed;

pub(super) async fn cluster(State(app): State<App>) -> Result<Json<ClusterView>, Failure> {
    let view = app.service.read(Clone::clone);
    let cluster = view.state.cluster();
    let cluster = cluster.ok_or_else(|| Failure::unavailable("there is no cluster yet"))?.clone();
    let state = view.state.clone();
    let digest = tokio::task::spawn_blocking(move || state.digest()).await;
    Ok(Json(ClusterView {
        cluster: cluster.id,
        level: cluster.level,
        head: view.state.position(),
        digest: digest.map_err(|error| Failure::internal(&error))?,
        verifiers: cluster.log_sites,
        checkpoint: view.checkpoint.0,
        subsystem_nqn: subsystem_nqn(cluster.id),
        target_iqn: target_iqn(cluster.id),
        name: cluster.name,
    }))
}

/// Volumes by health, and how many would fail over by themselves.
fn tally(sight: &Sight<'_>) -> (BTreeMap<String, usize>, usize) {
    let mut by_health = BTreeMap::new();
    let mut armed = 0;
    for (_, volume) in sight.state.volumes() {
        let Some(group) = sight.state.group(volume.group) else { continue };
        let health = health_word(sight.health(volume, group));
        *by_health.entry(health.to_owned()).or_default() += 1;
        armed += usize::from(sight.not_armed_because(volume.group, group).is_empty());
    }
    (by_health, armed)
}

fn health_word(health: VolumeHealth) -> &'static str {
    match health {
        VolumeHealth::Healthy => "healthy",
        VolumeHealth::Degraded => "degraded",
        VolumeHealth::Resyncing => "resyncing",
        VolumeHealth::Preparing => "preparing",
        VolumeHealth::Waiting => "waiting",
        VolumeHealth::Down => "down",
    }
}

pub(super) async fn status(State(app): State<App>) -> Json<StatusView> {
    let condition = app.service.condition().borrow().clone();
    Json(app.look(|sight| {
        let (by_health, armed) = tally(sight);
        let mut problems: Vec<String> = condition
            .stopped
            .iter()
            .map(|cause| format!("this control process has stopped projecting: {cause}"))
            .chain(condition.log_trouble.iter().map(|trouble| format!("the log: {trouble}")))
            .chain(condition.unsigned.clone())
            .chain(condition.disputed.clone())
            .collect();
        let down = by_health.get("down").copied().unwrap_or(0);
        if down > 0 {
            problems.push(format!("{down} volume(s) are served by nobody"));
        }
        problems.extend(sight.problems());
        let healthy = by_health.get("healthy").copied().unwrap_or(0);
        let health = if down > 0 || condition.stopped.is_some() {
            "down"
        } else if problems.is_empty() && healthy == sight.state.volume_count() {
            "healthy"
        } else {
            "degraded"
        };
        StatusView {
            health: health.to_owned(),
            problems,
            head: sight.state.position(),
            sites: sight.state.sites().filter_map(|(id, _)| sight.site(id)).collect(),
            volumes: sight.state.volume_count(),
            volumes_by_health: by_health,
            volumes_armed: armed,
            software: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }))
}

pub(super) async fn health(State(app): State<App>) -> Response {
    let condition = app.service.condition().borrow().clone();
    let (status, text) = health_of(&condition);
    (status, text).into_response()
}

/// A dispute keeps nothing from being committed here, and needs a person all the same.
fn health_of(condition: &Condition) -> (StatusCode, String) {
    match (condition.trouble(), &condition.disputed) {
        (Some(cause), _) => (StatusCode::SERVICE_UNAVAILABLE, format!("{cause}\n")),
        (None, Some(dispute)) => (StatusCode::OK, format!("ok, but {dispute}\n")),
        (None, None) => (StatusCode::OK, "ok\n".to_owned()),
    }
}

pub(super) async fn openapi(State(app): State<App>) -> Response {
    let (_, document) = super::router(&app);
    Json(document).into_response()
}

pub(super) async fn metrics(State(app): State<App>) -> Response {
    let text = app.look(|sight| metrics_text(&app, sight));
    let content_type = format!("{OPENMETRICS}; version=1.0.0; charset=utf-8");
    ([(header::CONTENT_TYPE, content_type)], text).into_response()
}

/// OpenMetrics 1.0 text.
struct Metrics(String);

impl Metrics {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# TYPE {name} {kind}\n# HELP {name} {help}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        let labels: Vec<String> =
            labels.iter().map(|(label, value)| format!("{label}=\"{}\"", escape(value))).collect();
        let labels =
            if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, "gauge", help);
        self.sample(name, &[], value);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.family(name, "counter", help);
        self.sample(&format!("{name}_total"), &[], value);
    }
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn metrics_of_log_sites(metrics: &mut Metrics, app: &App) {
    let sites: Vec<_> = app.service.log_sites().iter().map(super::log_sites::view).collect();
    metrics.family("voute_log_site_heard", "gauge", "1 while a site of the log is heard");
    for site in &sites {
        metrics.sample("voute_log_site_heard", &[("site", &site.name)], u64::from(site.heard));
    }
    metrics.family("voute_log_site_signed", "gauge", "Commits that a site of the log vouches for");
    for site in &sites {
        metrics.sample("voute_log_site_signed", &[("site", &site.name)], site.signed);
    }
}

fn metrics_of_condition(metrics: &mut Metrics, condition: &Condition) {
    let trouble = u64::from(condition.log_trouble.is_some());
    metrics.gauge("voute_log_trouble", "1 while the log does not answer", trouble);
    let help = "1 while this is so: the log does not answer, this process has stopped projecting, commits wait for signatures, other sites signed another history";
    metrics.family("voute_condition", "gauge", help);
    for (kind, words) in [
        ("log-trouble", &condition.log_trouble),
        ("stopped", &condition.stopped),
        ("unsigned", &condition.unsigned),
        ("disputed", &condition.disputed),
    ] {
        metrics.sample("voute_condition", &[("kind", kind)], u64::from(words.is_some()));
    }
}

/// Of volumes that were compared or lost something.
fn metrics_of_content(metrics: &mut Metrics, sight: &Sight<'_>) {
    let checked = || {
        let volumes = sight.state.volumes().map(|(_, volume)| volume);
        volumes.filter(|it| it.check.last.is_some() || !it.check.lost.is_empty())
    };
    let help = "Regions that differed between a volume's legs when compared last, not repaired";
    metrics.family("voute_volume_differing_regions", "gauge", help);
    for volume in checked() {
        let labels = [("volume", volume.name.as_str())];
        metrics.sample("voute_volume_differing_regions", &labels, volume.check.differing_regions());
    }
    metrics.family("voute_volume_lost_bytes", "gauge", "Bytes that no leg of a volume can read");
    for volume in checked() {
        let labels = [("volume", volume.name.as_str())];
        metrics.sample("voute_volume_lost_bytes", &labels, volume.check.lost_bytes());
    }
}

fn metrics_text(app: &App, sight: &Sight<'_>) -> String {
    let mut metrics = Metrics(String::new());
    let counters = app.service.counters();
    let head = sight.state.position().sequence.0;
    metrics.gauge("voute_log_head", "Number of the last commit", head);
    metrics.counter("voute_commits", "Commits by this process", counters.commits.load(Relaxed));
    metrics.counter("voute_appends", "Appends by this process", counters.appends.load(Relaxed));
    metrics.counter(
        "voute_append_conflicts",
        "Appends that another control process overtook",
        counters.conflicts.load(Relaxed),
    );
    metrics.counter(
        "voute_refusals_unrecorded",
        "Refusals not committed because one actor caused too many",
        counters.refusals_unrecorded.load(Relaxed),
    );
    metrics_of_condition(&mut metrics, &app.service.condition().borrow());
    metrics.gauge(
        "voute_watches",
        "1 while this process watches the sites",
        u64::from(*app.watches.borrow()),
    );
    metrics.gauge(
        "voute_watcher_may_act",
        "1 while a control process watches the sites and may fail them over",
        u64::from(sight.unwatched_because().is_empty()),
    );

    metrics_of_log_sites(&mut metrics, app);
    metrics.gauge("voute_node_streams", "Live node streams", app.streams.count() as u64);
    let (by_health, armed) = tally(sight);
    metrics.family("voute_volumes", "gauge", "Volumes by health");
    for (health, count) in &by_health {
        metrics.sample("voute_volumes", &[("health", health)], *count as u64);
    }
    metrics.gauge(
        "voute_volumes_armed",
        "Volumes that would fail over by themselves",
        armed as u64,
    );
    metrics_of_content(&mut metrics, sight);
    metrics.family("voute_node_heard", "gauge", "1 while a node is heard");
    for (id, node) in sight.state.nodes() {
        let heard = sight.node(id).and_then(|view| view.observed).is_some_and(|it| it.heard);
        metrics.sample("voute_node_heard", &[("node", node.name.as_str())], u64::from(heard));
    }
    metrics.family("voute_pool_capacity_bytes", "gauge", "Bytes of a pool");
    for (id, pool) in sight.state.pools() {
        let (capacity, _) = sight.state.pool_space(id);
        metrics.sample("voute_pool_capacity_bytes", &[("pool", pool.name.as_str())], capacity);
    }
    metrics.family("voute_pool_free_bytes", "gauge", "Bytes of a pool that no leg has");
    for (id, pool) in sight.state.pools() {
        let (_, free) = sight.state.pool_space(id);
        metrics.sample("voute_pool_free_bytes", &[("pool", pool.name.as_str())], free);
    }
    metrics.0.push_str("# EOF\n");
    metrics.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thing_that_can_be_wrong_with_a_process_has_a_metric_and_shows_in_its_health() {
        let words = || Some("it is so".to_owned());
        let none = Condition::default();
        let conditions = [
            ("log-trouble", Condition { log_trouble: words(), ..none.clone() }),
            ("stopped", Condition { stopped: words(), ..none.clone() }),
            ("unsigned", Condition { unsigned: words(), ..none.clone() }),
            ("disputed", Condition { disputed: words(), ..none.clone() }),
        ];
        for (wrong, condition) in conditions {
            let mut metrics = Metrics(String::new());
            metrics_of_condition(&mut metrics, &condition);
            for kind in ["log-trouble", "stopped", "unsigned", "disputed"] {
                let line =
                    format!("voute_condition{{kind=\"{kind}\"}} {}\n", u8::from(kind == wrong));
                assert!(metrics.0.contains(&line), "{wrong}: {}", metrics.0);
            }
            let (status, text) = health_of(&condition);
            assert!(text.contains("it is so"));
            assert_eq!(status == StatusCode::OK, wrong == "disputed");
        }
        assert_eq!(health_of(&none), (StatusCode::OK, "ok\n".to_owned()));
    }
}
