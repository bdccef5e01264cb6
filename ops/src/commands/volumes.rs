//! Volumes, legs, hosts, mappings.

use super::{Session, item, reference};
use crate::api::client::encode;
use crate::api::waiting::{Step, wait_for};
use crate::cli::OutputFormat;
use crate::cli::nouns::{HostVerb, LegVerb, MappingVerb, Provisioning, VolumeVerb};
use crate::cli::quantity::show_size;
use crate::print::events::{presentation_words, verified_words};
use crate::print::line;
use crate::print::rows::health_words;
use crate::print::table::{print_facts, print_json, print_rows};
use crate::print::time::show_time;
use anyhow::{Context, ensure};
use voute_control::api::answers::{HostView, MappingView, ScrubView, VolumeHealth, VolumeView};
use voute_control::api::requests::{
    AddLeg, ChangeHost, ChangeHostKeys, CreateHost, CreateMapping, CreateVolume, MoveGroup,
    PresentVolume, ResizeVolume, ScheduleScrub, VerifyVolume,
};
use voute_schemas::contract::GroupRole;
use voute_schemas::event::{Presentation, VerifyEvidence};

impl Session<'_> {
    pub(super) fn volume(&self, verb: VolumeVerb) -> anyhow::Result<()> {
        match verb {
            VolumeVerb::Create { name, size, pool, policy, block } => {
                let body = CreateVolume {
                    name: name.clone(),
                    size_bytes: size,
                    block_bytes: block,
                    pools: pool.iter().map(|pool| reference(pool)).collect(),
                    policy: policy.as_deref().map(reference),
                };
                let changed = self.client.post("/v1/volumes", &body)?;
                let committed = self
                    .report(&changed, &format!("volume {name} of {} created", show_size(size)))?;
                if committed && self.options.waits() {
                    let which = changed.created.unwrap_or_else(|| name.to_string());
                    self.wait_volume(&which, &format!("volume {name}"), judge_served)?;
                }
            }
            VolumeVerb::List => self.print_list::<VolumeView>("/v1/volumes")?,
            VolumeVerb::Show { volume } => self.show_volume(&volume)?,
            VolumeVerb::Resize { volume, size } => {
                let changed = self.client.put(
                    &format!("{}/size", item("volumes", &volume)),
                    &ResizeVolume { size_bytes: size },
                )?;
                self.report(&changed, &format!("volume {volume} grown to {}", show_size(size)))?;
            }
            VolumeVerb::Present { volume, kind, physical_block } => {
                let thin = kind == Provisioning::Thin;
                let body = PresentVolume { thin, physical_block_bytes: physical_block };
                let path = format!("{}/presentation", item("volumes", &volume));
                let changed = self.client.put(&path, &body)?;
                let words = presentation_words(&Presentation {
                    thin,
                    physical_block_bytes: physical_block,
                });
                self.report(&changed, &format!("volume {volume} is presented as {words}"))?;
            }
            VolumeVerb::Verify { volume, repair } => {
                let path = format!("{}/verification", item("volumes", &volume));
                let changed = self.client.post(&path, &VerifyVolume { repair })?;
                let committed =
                    self.report(&changed, &format!("the legs of {volume} are being compared"))?;
                if let (true, Some(run)) = (committed && self.options.waits(), changed.sequence) {
                    self.wait_verified(&volume, run)?;
                }
            }
            VolumeVerb::Scrub { every_hours, never, repair } => {
                self.scrub(every_hours, never, repair)?;
            }
            VolumeVerb::Delete { volume, force } => {
                let query = if force { "?force=true" } else { "" };
                let changed =
                    self.client.delete(&format!("{}{query}", item("volumes", &volume)))?;
                self.report(&changed, &format!("volume {volume} deleted"))?;
            }
            VolumeVerb::Move { volume, to, force } => {
                let view: VolumeView = self.client.get(&item("volumes", &volume))?;
                let query = if force { "?force=true" } else { "" };
                let path = format!("{}/move{query}", item("groups", &view.group.to_string()));
                let changed = self.client.post(&path, &MoveGroup { to: reference(&to) })?;
                let committed = self.report(&changed, &format!("volume {volume} moves to {to}"))?;
                if committed && self.options.waits() {
                    self.wait_volume(&volume, &format!("move of {volume}"), |view| {
                        judge_moved(view, &to)
                    })?;
                }
            }
        }
        Ok(())
    }

    fn wait_volume(
        &self,
        which: &str,
        what: &str,
        judge: impl FnMut(&VolumeView) -> Step,
    ) -> anyhow::Result<()> {
        let view = wait_for(
            &self.client,
            &item("volumes", which),
            self.options.wait_timeout,
            what,
            judge,
        )?;
        if self.options.output != OutputFormat::Json {
            line(&format!(
                "volume {} is {}, served by {}",
                view.name,
                health_words(&view),
                view.owner_site.name
            ));
        }
        Ok(())
    }

    fn wait_verified(&self, volume: &str, run: u64) -> anyhow::Result<()> {
        let view: VolumeView = wait_for(
            &self.client,
            &item("volumes", volume),
            self.options.wait_timeout,
            &format!("comparison of {volume}"),
            |view| judge_verified(view, run),
        )?;
        let found = view.verification.found.unwrap_or_default();
        let left = found.differing_regions.saturating_sub(found.repaired_regions);
        if self.options.output != OutputFormat::Json {
            line(&verified_words(&view.name.to_string(), &found));
            for range in &found.differing {
                line(&format!("  differs: {} bytes at {}", range.length, range.offset));
            }
        }
        ensure!(
            left == 0,
            "{left} regions of {volume} differ between its legs\n  The owner's leg is what hosts have read; `voute volume verify {volume} --repair` gives its content to the other."
        );
        ensure!(
            found.lost_bytes == 0,
            "{} bytes of {volume} cannot be read from either leg\n  They can be written again, from a backup.",
            found.lost_bytes
        );
        Ok(())
    }

    fn scrub(&self, every_hours: Option<u32>, never: bool, repair: bool) -> anyhow::Result<()> {
        if every_hours.is_some() || never {
            let changed = self.client.put("/v1/scrub", &ScheduleScrub { every_hours, repair })?;
            self.report(&changed, "the schedule of comparisons is changed")?;
            return Ok(());
        }
        let view: ScrubView = self.client.get("/v1/scrub")?;
        match (self.options.output, view.every_hours) {
            (OutputFormat::Json, _) => print_json(&view)?,
            (_, None) => line("volumes are compared only when told"),
            (_, Some(hours)) => line(&format!(
                "mirrored volumes are compared every {hours} hours{}",
                if view.repair { "; legs that differ are repaired" } else { "" }
            )),
        }
        Ok(())
    }

    fn show_volume(&self, volume: &str) -> anyhow::Result<()> {
        let path = item("volumes", volume);
        if self.options.output != OutputFormat::Table {
            return self.print_one::<VolumeView>(&path);
        }
        let view: VolumeView = self.client.get(&path)?;
        print_facts(&volume_facts(&view));
        line("\nsides");
        print_rows(&view.sides, OutputFormat::Table)?;
        line("\nlegs");
        print_rows(&view.legs, OutputFormat::Table)?;
        if !view.mappings.is_empty() {
            line("\nmappings");
            print_rows(&view.mappings, OutputFormat::Table)?;
        }
        Ok(())
    }

    pub(super) fn leg(&self, verb: LegVerb) -> anyhow::Result<()> {
        match verb {
            LegVerb::Add { volume, pool } => {
                let path = format!("{}/legs", item("volumes", &volume));
                let changed = self.client.post(&path, &AddLeg { pool: reference(&pool) })?;
                let committed =
                    self.report(&changed, &format!("leg of {volume} added in {pool}"))?;
                if committed && self.options.waits() {
                    self.wait_volume(&volume, &format!("resync of {volume}"), judge_resynced)?;
                }
            }
            LegVerb::List { volume } => {
                let view: VolumeView = self.client.get(&item("volumes", &volume))?;
                match self.options.output {
                    OutputFormat::Json => print_json(&view.legs)?,
                    format => print_rows(&view.legs, format)?,
                }
            }
            LegVerb::Remove { volume, site, leg, force } => {
                let which = leg.or(site).context("give --site or --leg")?;
                let query = if force { "?force=true" } else { "" };
                let path = format!("{}/legs/{}{query}", item("volumes", &volume), encode(&which));
                let changed = self.client.delete(&path)?;
                self.report(&changed, &format!("leg taken from {volume}; its node wipes it"))?;
            }
        }
        Ok(())
    }

    pub(super) fn host(&self, verb: HostVerb) -> anyhow::Result<()> {
        match verb {
            HostVerb::Add { name, identity } => {
                let body = CreateHost {
                    name: name.clone(),
                    nqns: identity.nqn,
                    iqns: identity.iqn,
                    chap_secret: identity.chap_secret,
                };
                let changed = self.client.post("/v1/hosts", &body)?;
                self.report(&changed, &format!("host {name} added"))?;
            }
            HostVerb::Change { host, identity } => {
                let body = ChangeHost {
                    nqns: identity.nqn,
                    iqns: identity.iqn,
                    chap_secret: identity.chap_secret,
                };
                let changed = self.client.put(&item("hosts", &host), &body)?;
                self.report(&changed, &format!("host {host} changed"))?;
            }
            HostVerb::Keys { host, secret: None, none: false, .. } => {
                self.print_one::<HostView>(&item("hosts", &host))?;
            }
            HostVerb::Keys { host, secret, target_secret, no_target_secret, none } => {
                let target_secret = if none || no_target_secret || target_secret.is_some() {
                    target_secret
                } else {
                    self.client.get::<HostView>(&item("hosts", &host))?.nvme_target_secret
                };
                let body = ChangeHostKeys { secret, target_secret };
                let path = format!("{}/keys", item("hosts", &host));
                let changed = self.client.put(&path, &body)?;
                self.report(&changed, &format!("keys of host {host} changed"))?;
            }
            HostVerb::List => self.print_list::<HostView>("/v1/hosts")?,
            HostVerb::Show { host } => self.print_one::<HostView>(&item("hosts", &host))?,
            HostVerb::Remove { host } => {
                let changed = self.client.delete(&item("hosts", &host))?;
                self.report(&changed, &format!("host {host} removed"))?;
            }
        }
        Ok(())
    }

    pub(super) fn mapping(&self, verb: MappingVerb) -> anyhow::Result<()> {
        match verb {
            MappingVerb::Add { volume, host, lun, read_only } => {
                let body = CreateMapping {
                    volume: reference(&volume),
                    host: reference(&host),
                    lun,
                    read_only,
                };
                let changed = self.client.post("/v1/mappings", &body)?;
                self.report(&changed, &format!("{volume} granted to {host}"))?;
            }
            MappingVerb::List => self.print_list::<MappingView>("/v1/mappings")?,
            MappingVerb::Remove { volume, host } => {
                let path = format!("{}/{}", item("mappings", &volume), encode(&host));
                let changed = self.client.delete(&path)?;
                self.report(&changed, &format!("{volume} no longer granted to {host}"))?;
            }
        }
        Ok(())
    }
}

fn volume_facts(view: &VolumeView) -> Vec<(&'static str, String)> {
    let armed = if view.armed {
        "yes".to_owned()
    } else {
        format!("no: {}", view.not_armed_because.join("; "))
    };
    vec![
        ("name", view.name.to_string()),
        ("id", view.volume.to_string()),
        ("size", show_size(view.size_bytes)),
        ("block", format!("{} B", view.block_bytes)),
        ("told to hosts", presentation_words(&view.presentation)),
        ("health", health_words(view)),
        ("served by", format!("{} ({})", view.owner_site.name, view.owner.name)),
        (
            "policy",
            view.policy.as_ref().map_or_else(|| "none".to_owned(), |policy| policy.name.clone()),
        ),
        ("fails over", armed),
        ("epoch", view.epoch.to_string()),
        ("nsid", view.number.to_string()),
        ("compared", compared_words(view)),
        ("lost", lost_words(view)),
        ("last used", view.last_io_unix_ms.map_or_else(|| "not known".to_owned(), show_time)),
    ]
}

fn compared_words(view: &VolumeView) -> String {
    match (&view.verification.found, view.verification.under_way) {
        (_, Some(_)) if view.verification.progress.is_some() => "just now, by its owner".to_owned(),
        (_, Some(_)) => {
            let when = view.verification.asked_unix_ms.map_or_else(String::new, show_time);
            format!("asked for {when}, its owner has not begun (both legs must be in sync)")
        }
        (None, None) => "never".to_owned(),
        (Some(found), None) => {
            let when = view.verification.asked_unix_ms.map_or_else(String::new, show_time);
            format!("{when}, {}", found_words(found))
        }
    }
}

fn found_words(found: &VerifyEvidence) -> String {
    let mut words = Vec::new();
    match found.differing_regions.saturating_sub(found.repaired_regions) {
        0 if found.repaired_regions > 0 => {
            words.push(format!("{} regions differed and were repaired", found.repaired_regions));
        }
        0 => {}
        count => words.push(format!("{count} regions differed")),
    }
    if found.mended_bytes > 0 {
        words.push(format!("{} bytes that one leg could not read were mended", found.mended_bytes));
    }
    if found.lost_bytes > 0 {
        words.push(format!("{} bytes can be read from no leg", found.lost_bytes));
    }
    if words.is_empty() { "equal".to_owned() } else { words.join(", ") }
}

/// Where lost blocks are, the first of them.
fn lost_words(view: &VolumeView) -> String {
    let lost = &view.verification.lost;
    if lost.is_empty() {
        return "nothing".to_owned();
    }
    let first: Vec<String> = lost
        .iter()
        .take(4)
        .map(|range| format!("{} bytes at {}", range.length, range.offset))
        .collect();
    match lost.len() - first.len() {
        0 => first.join(", "),
        more => format!("{} and {more} more ranges", first.join(", ")),
    }
}

/// How far a new volume is.
pub(crate) fn judge_served(view: &VolumeView) -> Step {
    let formatted = view.legs.iter().filter(|leg| leg.formatted).count();
    match view.health {
        VolumeHealth::Healthy | VolumeHealth::Degraded | VolumeHealth::Resyncing => Step::Done,
        VolumeHealth::Preparing => {
            Step::Going(format!("{formatted} of {} legs formatted", view.legs.len()))
        }
        VolumeHealth::Waiting => Step::Going(format!("node {} is opening it", view.owner.name)),
        VolumeHealth::Down => {
            Step::Going(format!("node {} does not serve it yet", view.owner.name))
        }
    }
}

/// How far a comparison is.
pub(crate) fn judge_verified(view: &VolumeView, run: u64) -> Step {
    let verification = &view.verification;
    if verification.last.is_some_and(|last| last >= run) {
        return Step::Done;
    }
    match &verification.progress {
        Some(progress) if progress.waits => {
            Step::Going("waiting until both legs are in sync".to_owned())
        }
        Some(progress) => Step::Going(format!(
            "{} of {} regions, {} differ",
            progress.compared_regions, progress.total_regions, progress.differing_regions
        )),
        None => Step::Going("waiting for the owner to begin".to_owned()),
    }
}

/// How far a resync is.
pub(crate) fn judge_resynced(view: &VolumeView) -> Step {
    if view.sides.len() > 1 && view.sides.iter().all(|side| side.in_sync) {
        return match view.health {
            VolumeHealth::Healthy => Step::Done,
            _ => Step::Going("in sync, its nodes take note".to_owned()),
        };
    }
    match &view.resync {
        Some(progress) => Step::Going(format!(
            "{} of {} copied",
            show_size(progress.copied_bytes),
            show_size(progress.total_bytes)
        )),
        None => Step::Going("waiting for the copy to begin".to_owned()),
    }
}

/// How far a move to a site, by name or id, is.
pub(crate) fn judge_moved(view: &VolumeView, site: &str) -> Step {
    let there = |named: &voute_control::api::answers::Named| named.name == site || named.id == site;
    if !there(&view.owner_site) {
        return Step::Going("waiting for the commit".to_owned());
    }
    let role = view.sides.iter().find(|side| there(&side.site)).and_then(|side| side.role);
    match role {
        Some(GroupRole::Serving) => Step::Done,
        Some(GroupRole::Stopped) => Step::Failed(format!(
            "node {} cannot serve it\n  `voute volume show {}` says what is wrong.",
            view.owner.name, view.name
        )),
        Some(GroupRole::Following | GroupRole::Opening | GroupRole::Holding) | None => {
            Step::Going(format!("node {} is opening it", view.owner.name))
        }
    }
}
