//! What the log's sites have signed: gathered until a majority vouches for one size of the log
//! (docs/mirror-rules.md rule 12). Pure: what is heard goes in, checkpoints come out.
//!
//! Sites sign what they have read, each at its own pace, so the sizes that they sign differ while
//! commits come fast. A writer waits for its own commits to be vouched for before it appends more;
//! hence after as many appends as there are writers all stand at the same size.

use std::collections::{BTreeMap, HashMap};
use voute_events::checkpoint::{CheckpointError, merge, signatures};
use voute_schemas::Hash;
use voute_schemas::proof::{Checkpoint, Verifier};

/// Signatures kept of one site, the youngest.
const KEPT_MAX: usize = 64;

/// Signatures by key, then by size.
#[derive(Debug, Default)]
pub(super) struct Board {
    signed: HashMap<Hash, BTreeMap<u64, Signed>>,
}

#[derive(Clone, Debug)]
struct Signed {
    root: Hash,
    /// With this one signature.
    checkpoint: Checkpoint,
}

/// A size of the log that enough sites vouch for.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Vouched {
    pub(super) size: u64,
    /// With all signatures that are known.
    pub(super) checkpoint: Checkpoint,
}

/// Whether these keys are more than half of the sites; of no sites they never are.
pub(super) fn is_majority(sites: &[Verifier], keys: &[Hash]) -> bool {
    let signed = sites.iter().filter(|site| keys.contains(&site.key)).count();
    signed > sites.len() / 2
}

impl Board {
    /// Takes in what others say that they signed; keys of nobody in `sites` are passed over. The
    /// sites that signed anything new.
    ///
    /// # Errors
    /// [`CheckpointError`] for what is no checkpoint, or false.
    pub(super) fn hear(
        &mut self,
        checkpoint: &Checkpoint,
        origin: &str,
        sites: &[Verifier],
    ) -> Result<Vec<Hash>, CheckpointError> {
        let (claim, signed) = signatures(checkpoint, sites)?;
        if claim.origin != origin {
            return Err(CheckpointError::Different);
        }
        let mut heard = Vec::new();
        for (verifier, checkpoint) in signed {
            self.add(verifier.key, claim.size, claim.root, checkpoint);
            heard.push(verifier.key);
        }
        Ok(heard)
    }

    /// Takes in one signature that is known to be valid. What a site said first of a size stays.
    pub(super) fn add(&mut self, key: Hash, size: u64, root: Hash, checkpoint: Checkpoint) {
        let of_site = self.signed.entry(key).or_default();
        of_site.entry(size).or_insert(Signed { root, checkpoint });
        while of_site.len() > KEPT_MAX {
            of_site.pop_first();
        }
    }

    /// The highest size that a site signed.
    pub(super) fn highest(&self, key: &Hash) -> Option<(u64, Hash)> {
        let (size, signed) = self.signed.get(key)?.last_key_value()?;
        Some((*size, signed.root))
    }

    /// The largest size from `sizes` that enough sites vouch for, with the very history that was
    /// read here (`root_of`).
    pub(super) fn best(
        &self,
        sizes: std::ops::RangeInclusive<u64>,
        root_of: impl Fn(u64) -> Option<Hash>,
        is_enough: impl Fn(u64, &[Hash]) -> bool,
    ) -> Option<Vouched> {
        let mut by_size: BTreeMap<u64, Vec<(Hash, &Signed)>> = BTreeMap::new();
        for (key, of_site) in &self.signed {
            for (size, signed) in of_site.range(sizes.clone()) {
                by_size.entry(*size).or_default().push((*key, signed));
            }
        }
        for (size, mut signed) in by_size.into_iter().rev() {
            let root = root_of(size)?;
            signed.retain(|(_, signed)| signed.root == root);
            // The same order each time, so that nothing is told anew for its order alone.
            signed.sort_by_key(|(key, _)| *key);
            let keys: Vec<Hash> = signed.iter().map(|(key, _)| *key).collect();
            if !is_enough(size, &keys) {
                continue;
            }
            let mut notes = signed.into_iter().map(|(_, signed)| signed.checkpoint.clone());
            let first = notes.next()?;
            let joined = notes.try_fold(first, |joined, note| merge(&joined, &note));
            return joined.ok().map(|checkpoint| Vouched { size, checkpoint });
        }
        None
    }

    /// Keys that signed another history than the one that was read here.
    pub(super) fn contradicting(
        &self,
        read: u64,
        root_of: impl Fn(u64) -> Option<Hash>,
    ) -> Vec<Hash> {
        let contradicts = |of_site: &BTreeMap<u64, Signed>| {
            let mut signed = of_site.range(..=read);
            signed.any(|(size, signed)| root_of(*size).is_some_and(|root| root != signed.root))
        };
        let mut keys: Vec<Hash> = self
            .signed
            .iter()
            .filter(|(_, of_site)| contradicts(of_site))
            .map(|(key, _)| *key)
            .collect();
        keys.sort_unstable();
        keys
    }

    /// Drops what is settled: sizes below this one, but each site's youngest.
    pub(super) fn forget_below(&mut self, size: u64) {
        for of_site in self.signed.values_mut() {
            while of_site.len() > 1
                && of_site.first_key_value().is_some_and(|(first, _)| *first < size)
            {
                of_site.pop_first();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use voute_events::{Signer, verify};

    fn signers() -> Vec<Signer> {
        (1..=3).map(|seed| Signer::from_seed(&format!("s{seed}"), [seed; 32]).unwrap()).collect()
    }

    fn verifiers() -> Vec<Verifier> {
        signers().iter().map(Signer::verifier).collect()
    }

    /// The history of the tests: the root at a size.
    fn root(size: u64) -> Hash {
        Hash::of(&size.to_le_bytes())
    }

    fn sign(board: &mut Board, signer: usize, size: u64) {
        let checkpoint = signers()[signer].sign("log", size, root(size));
        board.hear(&checkpoint, "log", &verifiers()).unwrap();
    }

    fn best(board: &Board, above: u64, read: u64) -> Option<u64> {
        let enough = |_: u64, keys: &[Hash]| is_majority(&verifiers(), keys);
        board.best(above + 1..=read, |size| Some(root(size)), enough).map(|vouched| {
            assert!(verify(&vouched.checkpoint, &verifiers(), 2).is_ok());
            vouched.size
        })
    }

    #[test]
    fn a_majority_must_sign_the_same_size() {
        let mut board = Board::default();
        sign(&mut board, 0, 5);
        sign(&mut board, 0, 7);
        assert_eq!(best(&board, 0, 9), None);
        sign(&mut board, 1, 6);
        assert_eq!(best(&board, 0, 9), None, "different sizes are no majority");
        sign(&mut board, 2, 7);
        assert_eq!(best(&board, 0, 9), Some(7));
        assert_eq!(best(&board, 0, 6), None, "what was not read here has no effect here");
        assert_eq!(best(&board, 7, 9), None);
        board.forget_below(7);
        assert_eq!(board.highest(&verifiers()[1].key), Some((6, root(6))));
    }

    #[test]
    fn who_signs_twice_counts_once_and_strangers_count_nothing() {
        let mut board = Board::default();
        sign(&mut board, 0, 5);
        sign(&mut board, 0, 5);
        let stranger = Signer::from_seed("s9", [9; 32]).unwrap().sign("log", 5, root(5));
        assert_eq!(board.hear(&stranger, "log", &verifiers()), Ok(vec![]));
        assert_eq!(best(&board, 0, 9), None);
        let elsewhere = signers()[1].sign("another log", 5, root(5));
        assert!(board.hear(&elsewhere, "log", &verifiers()).is_err());
        assert_eq!(best(&board, 0, 9), None);
    }

    #[test]
    fn another_history_counts_nothing_and_is_noticed() {
        let mut board = Board::default();
        sign(&mut board, 0, 5);
        let other = signers()[1].sign("log", 5, Hash::of(b"another branch"));
        board.hear(&other, "log", &verifiers()).unwrap();
        assert_eq!(best(&board, 0, 9), None);
        let key = verifiers()[1].key;
        assert_eq!(board.contradicting(9, |size| Some(root(size))), [key]);
        assert!(board.contradicting(4, |size| Some(root(size))).is_empty(), "not read that far");
        // It cannot take it back by signing the right one later.
        sign(&mut board, 1, 5);
        assert_eq!(best(&board, 0, 9), None);
    }

    #[test]
    fn no_more_is_kept_of_a_site_than_stated() {
        let mut board = Board::default();
        for size in 1..=200 {
            sign(&mut board, 0, size);
        }
        assert_eq!(board.signed[&verifiers()[0].key].len(), KEPT_MAX);
        assert_eq!(board.highest(&verifiers()[0].key), Some((200, root(200))));
    }

    #[test]
    fn half_of_the_sites_are_no_majority() {
        let sites = verifiers();
        let keys: Vec<Hash> = sites.iter().map(|site| site.key).collect();
        assert!(!is_majority(&[], &keys));
        assert!(is_majority(&sites[..1], &keys[..1]));
        assert!(!is_majority(&sites[..2], &keys[..1]));
        assert!(is_majority(&sites, &keys[1..]));
    }
}
