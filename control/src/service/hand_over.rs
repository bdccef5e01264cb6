//! How one set of log sites hands over to the next (docs/mirror-rules.md rule 12). Pure.
//!
//! ```text
//! in force ──named──▶ C1 ──named──▶ C2      a checkpoint over all three commits takes effect when the
//!    C0                                     majorities of C0, C1 and C2 signed it
//!    C0 ──────▶ C1 ──────▶ C0 again         taken back: C1 need not sign, it may never have been there
//! ```
//!
//! No set on the way may be passed over: it may already have handed over elsewhere, in another history.
//! That C1 may be when it was taken back rests on the majorities of neighbours having a site in common:
//! what C1's majority made effective beyond that, C0's majority cannot contradict without a site that
//! signs both, and registers keep sites from that.

use super::board::is_majority;
use crate::domain::state::NamedSites;
use std::collections::BTreeMap;
use voute_events::verify;
use voute_schemas::proof::{Checkpoint, HAND_OVERS_MAX, Verifier};
use voute_schemas::{Hash, Sequence};

/// By the number of the commit that named sites: the checkpoint by which those before handed over.
pub(crate) type HandOvers = BTreeMap<Sequence, Checkpoint>;

/// Whether any majority of the one and any of the other have a site in common.
pub(crate) fn majorities_meet(one: &[Verifier], other: &[Verifier]) -> bool {
    let of_both = other.iter().filter(|site| !one.iter().any(|it| it.key == site.key)).count();
    let majority = |sites: &[Verifier]| sites.len() / 2 + 1;
    majority(one) + majority(other) > one.len() + of_both
}

/// Whether the same sites sign, in whatever order they are named.
pub(crate) fn same_sites(one: &[Verifier], other: &[Verifier]) -> bool {
    one.len() == other.len() && one.iter().all(|site| other.contains(site))
}

/// Who must sign `size` commits so that they take effect where `in_force` is: each set that is named
/// up to there, but for those that were taken back. Nothing if that cannot be told any more: more
/// changes lie between than are remembered.
pub(super) fn on_the_way<'a>(
    in_force: &'a NamedSites,
    named: &'a [NamedSites],
    size: u64,
) -> Option<Vec<&'a NamedSites>> {
    let covered = || named.iter().filter(|sites| sites.sequence.0 <= size);
    if in_force.sequence == Sequence(0) {
        // Nothing was ever known here: who reads a log for the first time believes whom it names.
        return Some(covered().next_back().into_iter().collect());
    }
    let is_forgotten = named.len() >= HAND_OVERS_MAX
        && named.first().is_some_and(|oldest| oldest.sequence > in_force.sequence);
    if is_forgotten {
        return None;
    }
    let later = covered().filter(|sites| sites.sequence > in_force.sequence);
    let all: Vec<_> = std::iter::once(in_force).chain(later).collect();
    let is_taken_back = |index: usize| {
        let neighbours =
            index.checked_sub(1).and_then(|before| all.get(before)).zip(all.get(index + 1));
        neighbours.is_some_and(|(before, after)| {
            same_sites(&before.sites, &after.sites)
                && majorities_meet(&before.sites, &all[index].sites)
        })
    };
    let kept = all.iter().enumerate().filter(|(index, _)| !is_taken_back(*index));
    Some(kept.map(|(_, sites)| *sites).collect())
}

/// Whether these keys are a majority of each set.
pub(super) fn are_enough(sets: &[&NamedSites], keys: &[Hash]) -> bool {
    !sets.is_empty() && sets.iter().all(|set| is_majority(&set.sites, keys))
}

/// Whether a checkpoint bears the majority of each set.
pub(super) fn bears_all(sets: &[&NamedSites], checkpoint: &Checkpoint) -> bool {
    let bears = |set: &&NamedSites| verify(checkpoint, &set.sites, set.sites.len() / 2 + 1).is_ok();
    !sets.is_empty() && sets.iter().all(bears)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: char) -> Hash {
        Hash([name as u8; 32])
    }

    fn keys(names: &str) -> Vec<Hash> {
        names.chars().map(key).collect()
    }

    fn sites(names: &str) -> Vec<Verifier> {
        names.chars().map(|name| Verifier { name: name.into(), key: key(name) }).collect()
    }

    fn named(sequence: u64, names: &str) -> NamedSites {
        NamedSites { sequence: Sequence(sequence), sites: sites(names) }
    }

    fn takes_effect(in_force: &NamedSites, all: &[NamedSites], size: u64, by: &str) -> bool {
        on_the_way(in_force, all, size).is_some_and(|sets| are_enough(&sets, &keys(by)))
    }

    /// C0 = abc. Commit 10 names ade, which a and d make effective elsewhere, together with another
    /// commit 11; here 11 names bcf.
    #[test]
    fn no_set_on_the_way_is_passed_over() {
        let in_force = named(1, "abc");
        let all = [in_force.clone(), named(10, "ade"), named(11, "bcf")];
        assert!(!takes_effect(&in_force, &all, 11, "bc"), "ade may have handed over elsewhere");
        assert!(!takes_effect(&in_force, &all, 11, "bcd"), "half of ade but one");
        assert!(takes_effect(&in_force, &all, 11, "bcde"));
        assert!(takes_effect(&in_force, &all, 10, "abd"), "11 is not asked of 10");
        assert!(!takes_effect(&in_force, &all, 10, "ad"), "abc hands over, nobody else");
    }

    #[test]
    fn what_was_taken_back_need_not_sign() {
        let in_force = named(1, "a");
        let all = [named(1, "abc"), named(10, "bc"), named(12, "bca")];
        assert!(takes_effect(&all[0], &all, 12, "ac"), "in whatever order it is named again");
        let all = [in_force.clone(), named(10, "ab"), named(12, "a")];
        assert!(!takes_effect(&in_force, &all, 11, "a"));
        assert!(takes_effect(&in_force, &all, 12, "a"));
        // Where it came into force, it must hand back.
        assert!(!takes_effect(&all[1], &all, 12, "a"));
        assert!(takes_effect(&all[1], &all, 12, "ab"));
        // A set that has nobody in common with its neighbour may have gone its own way.
        let all = [in_force.clone(), named(10, "bcd"), named(12, "a")];
        assert!(!takes_effect(&in_force, &all, 12, "a"));
    }

    #[test]
    fn taking_back_twice_needs_those_between() {
        let in_force = named(1, "abc");
        let all = [
            in_force.clone(),
            named(2, "abcd"),
            named(3, "bcd"),
            named(4, "abcd"),
            named(5, "abc"),
        ];
        // bcd was taken back, abcd was left by bcd: what bcd made effective abcd's majority knows.
        assert!(!takes_effect(&in_force, &all, 5, "ab"));
        assert!(takes_effect(&in_force, &all, 5, "abc"));
    }

    #[test]
    fn majorities_of_neighbours_meet_when_one_site_comes_or_goes() {
        for (one, other, meet) in [
            ("a", "ab", true),
            ("ab", "abc", true),
            ("abc", "abcd", true),
            ("abcd", "abd", true),
            ("abc", "abd", false),
            ("a", "b", false),
            ("a", "abc", false),
            ("abcd", "abce", true),
        ] {
            assert_eq!(majorities_meet(&sites(one), &sites(other)), meet, "{one} {other}");
            assert_eq!(majorities_meet(&sites(other), &sites(one)), meet, "{other} {one}");
        }
    }

    #[test]
    fn who_lags_behind_all_that_is_remembered_believes_nobody() {
        let count = HAND_OVERS_MAX as u64;
        let all: Vec<_> = (0..count).map(|number| named(100 + number, "abc")).collect();
        assert!(on_the_way(&named(50, "abc"), &all, 1_000).is_none());
        assert!(on_the_way(&named(100, "abc"), &all, 1_000).is_some());
        // Who never knew anyone believes the last.
        assert_eq!(on_the_way(&named(0, ""), &all, 1_000).unwrap().len(), 1);
        assert!(!are_enough(&[], &keys("abc")));
    }
}
