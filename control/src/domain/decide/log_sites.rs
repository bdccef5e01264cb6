//! Who signs checkpoints.

use super::State;
use crate::domain::refusal::Refusal;
use voute_schemas::Hash;
use voute_schemas::event::Event;
use voute_schemas::proof::Verifier;

/// Most log sites: each of them is asked for every commit.
const LOG_SITES_MAX: usize = 7;
/// Longest name of one, bytes.
const NAME_BYTES_MAX: usize = 64;

/// One site comes or one goes. Then the majorities of the sites before and after have a site in common,
/// and a change that cannot come into force can be taken back (`service/hand_over.rs`).
pub(super) fn change(
    state: &State,
    add: &[Verifier],
    remove: &[String],
) -> Result<Vec<Event>, Refusal> {
    let mut sites = log_sites(state).to_vec();
    match (add, remove) {
        ([added], []) => {
            check_name(&added.name)?;
            if sites.iter().any(|site| site.name == added.name || site.key == added.key) {
                return Err(Refusal::LogSiteTaken { name: added.name.clone() });
            }
            sites.push(added.clone());
        }
        ([], [name]) => {
            let before = sites.len();
            sites.retain(|site| site.name != *name);
            if sites.len() == before {
                return Err(Refusal::NoSuchLogSite { name: name.clone() });
            }
        }
        _ => return Err(Refusal::LogSitesAtOnce { count: add.len() + remove.len() }),
    }
    if sites.is_empty() || sites.len() > LOG_SITES_MAX {
        let rule =
            format!("a log has 1 to {LOG_SITES_MAX} sites, this would leave {}", sites.len());
        return Err(Refusal::Invalid { field: "log sites", rule });
    }
    Ok(vec![Event::LogSitesChanged { sites }])
}

/// Names stand in signed notes (C2SP signed-note): no spaces, no `+`, no control characters.
fn check_name(name: &str) -> Result<(), Refusal> {
    let is_name = !name.is_empty()
        && name.len() <= NAME_BYTES_MAX
        && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'+');
    let rule = || {
        format!(
            "{name:?} must have 1 to {NAME_BYTES_MAX} printable characters, no '+' and no spaces"
        )
    };
    if is_name { Ok(()) } else { Err(Refusal::Invalid { field: "log site", rule: rule() }) }
}

pub(super) fn record_reseeding(
    state: &State,
    name: &str,
    size: u64,
    root: Hash,
) -> Result<Vec<Event>, Refusal> {
    if !log_sites(state).iter().any(|site| site.name == name) {
        return Err(Refusal::NoSuchLogSite { name: name.to_owned() });
    }
    Ok(vec![Event::LogSiteReseeded { name: name.to_owned(), size, root }])
}

fn log_sites(state: &State) -> &[Verifier] {
    state.cluster().map_or(&[], |cluster| cluster.log_sites.as_slice())
}
