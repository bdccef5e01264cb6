//! Events, commands and outcomes in words.

use crate::api::names::Names;
use crate::cli::locator::show_locator;
use crate::cli::quantity::show_size;
use voute_events::note::verifier_text;
use voute_schemas::Event;
use voute_schemas::commit::{Commit, Outcome};
use voute_schemas::event::{DetachCause, HostIdentity, MoveKind, Presentation, VerifyEvidence};
use voute_schemas::proof::Verifier;

/// What came of a commit, in one line.
#[must_use]
pub fn outcome_words(commit: &Commit, names: &Names) -> String {
    match &commit.outcome {
        Outcome::Accepted(events) => {
            events.iter().map(|event| event_words(event, names)).collect::<Vec<_>>().join("; ")
        }
        Outcome::Refused { message, .. } => format!("refused: {message}"),
    }
}

/// One event in words.
#[must_use]
pub fn event_words(event: &Event, names: &Names) -> String {
    let of = |id: &dyn std::fmt::Display| names.of(id);
    match event {
        Event::ClusterCreated { name, .. } => format!("cluster {name} created"),
        Event::ClusterLevelRaised { level } => format!("events of level {level} allowed"),
        Event::CredentialIssued { name, role, .. } => {
            format!("credential {name} issued as {role:?}")
        }
        Event::CredentialRevoked { credential } => format!("credential {} revoked", of(credential)),
        Event::SiteAdded { name, .. } => format!("site {name} added"),
        Event::SiteRemoved { site } => format!("site {} removed", of(site)),
        Event::SiteConditionReported { site, condition, source, detail } => {
            format!("site {} is {condition:?}, says the {source:?}{}", of(site), because(detail))
        }
        Event::NodeAdded { name, site, .. } => format!("node {name} admitted at {}", of(site)),
        Event::NodePortalsChanged { node, portals } => {
            format!(
                "node {} listens at {}, {} and {}",
                of(node),
                portals.nvme,
                portals.iscsi,
                portals.link
            )
        }
        Event::NodeRemoved { node } => format!("node {} removed", of(node)),
        Event::PoolCreated { name, site, .. } => format!("pool {name} created at {}", of(site)),
        Event::PoolRemoved { pool } => format!("pool {} removed", of(pool)),
        Event::DeviceAdded { name, pool, locator, .. } => {
            format!("device {name} added to pool {} ({})", of(pool), show_locator(locator))
        }
        Event::DeviceAdopted { device, extents, .. } => {
            format!("device {} adopted, {extents} extents", of(device))
        }
        Event::DeviceRejected { device, cause } => {
            format!("device {} rejected{}", of(device), because(cause))
        }
        Event::DeviceRemoved { device } => format!("device {} removed", of(device)),
        Event::PolicyCreated { name, rules, .. } => {
            format!("policy {name} created, {:?}", rules.mode)
        }
        Event::PolicyChanged { policy, rules } => {
            format!("policy {} changed, {:?}", of(policy), rules.mode)
        }
        Event::PolicyRemoved { policy } => format!("policy {} removed", of(policy)),
        Event::VolumeCreated { name, size_bytes, legs, owner, .. } => {
            let sites: Vec<String> = legs.iter().map(|leg| of(&leg.site)).collect();
            format!(
                "volume {name} of {} created on {}, owned by {}",
                show_size(*size_bytes),
                sites.join(" and "),
                of(owner)
            )
        }
        Event::VolumeResized { volume, size_bytes, .. } => {
            format!("volume {} grown to {}", of(volume), show_size(*size_bytes))
        }
        Event::VolumePresented { volume, presentation } => {
            format!("volume {} is presented as {}", of(volume), presentation_words(presentation))
        }
        Event::VolumeDeleted { volume } => format!("volume {} deleted", of(volume)),
        Event::LegFormatted { leg } => format!("leg {} formatted", of(leg)),
        Event::LegAdded { volume, placement } => {
            format!("leg added to {} at {}", of(volume), of(&placement.site))
        }
        Event::LegRemoved { volume, leg } => format!("leg {} taken from {}", of(leg), of(volume)),
        Event::LegReleased { leg } => format!("leg {} wiped and released", of(leg)),
        Event::LegDetached { group, site, cause } => {
            format!("{} left the in-sync set of {}: {}", of(site), of(group), detach_words(cause))
        }
        Event::LegInSync { group, site, resync } => format!(
            "{} is in sync again for {}: {} copied in {} ms{}",
            of(site),
            of(group),
            show_size(resync.bytes),
            resync.duration_ms,
            if resync.full { " (all of it)" } else { "" }
        ),
        Event::OwnerMoved { group, from, to, kind } => {
            format!(
                "{} moved from {} to {}, {}",
                of(group),
                of(from),
                of(to),
                move_words(kind, names)
            )
        }
        Event::OwnerConfirmed { group, node, .. } => {
            format!("{} confirmed as owner of {}", of(node), of(group))
        }
        Event::HostAdded { name, identity, .. } => {
            format!("host {name} added ({})", identity_words(identity))
        }
        Event::HostChanged { host, identity } => {
            format!("host {} is now {}", of(host), identity_words(identity))
        }
        Event::HostKeysChanged { host, keys } => match (&keys.secret, &keys.target_secret) {
            (None, _) => format!("host {} proves nothing over NVMe", of(host)),
            (Some(secret), None) => format!("host {} must prove {secret} over NVMe", of(host)),
            (Some(secret), Some(ours)) => {
                format!("host {} must prove {secret} over NVMe, and is proven {ours}", of(host))
            }
        },
        Event::HostRemoved { host } => format!("host {} removed", of(host)),
        Event::VolumeMapped { volume, host, lun, .. } => {
            format!("{} granted to {} as LUN {lun}", of(volume), of(host))
        }
        Event::VolumeUnmapped { volume, host } => {
            format!("{} no longer granted to {}", of(volume), of(host))
        }
        Event::FailoverDecided { site, evidence, .. } => {
            format!(
                "failover of {} decided, {:?}{}",
                of(site),
                evidence.condition,
                because(&evidence.observed)
            )
        }
        Event::FailoverMeasured { phases, .. } => format!(
            "failover measured: detection {} ms, commit {} ms, lease wait {} ms, opening {} ms",
            phases.detection_ms, phases.commit_ms, phases.lease_wait_ms, phases.open_ms
        ),
        Event::VerifyRequested { volume, repair, .. } => format!(
            "the legs of {} are to be compared{}",
            of(volume),
            if *repair { " and repaired" } else { "" }
        ),
        Event::VolumeVerified { volume, evidence, .. } => verified_words(&of(volume), evidence),
        Event::BlocksLost { volume, ranges } => {
            let bytes: u64 = ranges.iter().map(|range| range.length).sum();
            format!("{} bytes of {} cannot be read from any leg", bytes, of(volume))
        }
        Event::ScrubScheduled { every_hours: Some(hours), repair } => format!(
            "mirrored volumes are compared every {hours} hours{}",
            if *repair { " and repaired" } else { "" }
        ),
        Event::ScrubScheduled { every_hours: None, .. } => {
            "mirrored volumes are compared only when told".to_owned()
        }
        Event::LogSitesChanged { sites } => {
            // With the key's number: another key under the same name is another signer.
            let names: Vec<String> = sites.iter().map(signer_words).collect();
            format!("checkpoints are signed by {}", names.join(", "))
        }
        Event::LogSiteReseeded { name, size, .. } => format!(
            "log site {name} lost its register and began anew at commit {size}, which the others had signed"
        ),
    }
}

/// What a comparison found, in one line.
#[must_use]
pub fn verified_words(volume: &str, evidence: &VerifyEvidence) -> String {
    let found = match evidence.differing_regions {
        0 => "equal".to_owned(),
        count => format!("{count} regions differ, {} repaired", evidence.repaired_regions),
    };
    let mut words = format!(
        "the legs of {volume} were compared: {} in {} ms, {found}",
        show_size(evidence.bytes),
        evidence.duration_ms
    );
    if evidence.mended_bytes > 0 {
        words.push_str(&format!(", {} bytes mended", evidence.mended_bytes));
    }
    if evidence.lost_bytes > 0 {
        words.push_str(&format!(", {} bytes lost", evidence.lost_bytes));
    }
    words
}

fn because(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {text}") }
}

/// A log site's name and its key's number, as in `lyon+2b4b7c2d`.
fn signer_words(site: &Verifier) -> String {
    verifier_text(site).splitn(3, '+').take(2).collect::<Vec<_>>().join("+")
}

fn detach_words(cause: &DetachCause) -> String {
    match cause {
        DetachCause::Unreachable => "unreachable".to_owned(),
        DetachCause::DeviceError { detail } => format!("device error ({detail})"),
        DetachCause::ContentLost => "its content is gone".to_owned(),
        DetachCause::Requested => "requested".to_owned(),
    }
}

fn move_words(kind: &MoveKind, names: &Names) -> String {
    match kind {
        MoveKind::Planned => "planned".to_owned(),
        MoveKind::Unplanned { attestation } => {
            format!("unplanned, after {} ms of silence of the old owner", attestation.silent_ms)
        }
        MoveKind::HandedOver { cause } => format!("handed over{}", because(cause)),
        MoveKind::AskedByHost { host: Some(host) } => {
            format!("planned, asked for by host {}", names.of(host))
        }
        MoveKind::AskedByHost { host: None } => "planned, asked for by a host".to_owned(),
    }
}

/// What a volume tells hosts of how it keeps its blocks.
pub fn presentation_words(presentation: &Presentation) -> String {
    let kind = if presentation.thin { "thin" } else { "thick" };
    match presentation.physical_block_bytes {
        None => kind.to_owned(),
        Some(bytes) => format!("{kind}, physical block {bytes} B"),
    }
}

fn identity_words(identity: &HostIdentity) -> String {
    identity.nqns.iter().chain(&identity.iqns).cloned().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use voute_schemas::Hash;

    #[test]
    fn another_key_under_the_same_name_is_shown_as_another_signer() {
        let words = |key: u8| {
            let sites = vec![Verifier { name: "lyon".into(), key: Hash([key; 32]) }];
            event_words(&Event::LogSitesChanged { sites }, &Names::default())
        };
        assert!(words(1).contains("signed by lyon+"), "{}", words(1));
        assert_ne!(words(1), words(2));
    }
}
