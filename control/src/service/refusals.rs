//! How many refusals of whom are recorded: auditors want them, the log must not drown in them.

use std::collections::HashMap;
use std::time::{Duration, Instant};
use uuid::Uuid;
use voute_schemas::commit::Actor;

/// Refusals of one actor that are recorded in [`REFUSAL_WINDOW`]; more only count.
const REFUSALS_MAX: u32 = 200;
const REFUSAL_WINDOW: Duration = Duration::from_secs(10);
/// Actors whose refusals are counted at once.
const REFUSING_ACTORS_MAX: usize = 10_000;

/// Who was refused how often of late.
#[derive(Default)]
pub(super) struct RefusalBudget {
    since: Option<Instant>,
    taken: HashMap<Uuid, u32>,
}

impl RefusalBudget {
    /// Whether one more refusal of this actor is recorded.
    pub(super) fn take(&mut self, actor: &Actor, now: Instant) -> bool {
        let window_over = self.since.is_none_or(|since| now - since > REFUSAL_WINDOW);
        if window_over || self.taken.len() >= REFUSING_ACTORS_MAX {
            self.since = Some(now);
            self.taken.clear();
        }
        let actor = match actor {
            Actor::System => Uuid::nil(),
            Actor::Credential { id, .. } => id.0,
            Actor::Node(node) => node.0,
        };
        let taken = self.taken.entry(actor).or_default();
        *taken += 1;
        *taken <= REFUSALS_MAX
    }
}
