//! What one message holds: the commits of one append.
//!
//! postcard of (version u8 = 1, number of the first commit u64, list of commits' bytes).

use crate::{APPEND_COMMITS_MAX, Position, StoredCommit};
use voute_schemas::{Hash, Sequence};

const VERSION: u8 = 1;

/// One append as it rests in the stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Record {
    /// Number of its first commit, from 1.
    pub(super) first: u64,
    /// Its commits' bytes, at least one.
    pub(super) commits: Vec<Vec<u8>>,
}

impl Record {
    pub(super) fn encode(sealed: &[StoredCommit]) -> Vec<u8> {
        let first = sealed.first().map_or(0, |commit| commit.position.sequence.0);
        let commits: Vec<&[u8]> = sealed.iter().map(|commit| commit.bytes.as_slice()).collect();
        postcard::to_stdvec(&(VERSION, first, commits)).expect("bytes and numbers serialise")
    }

    /// Takes a message apart; its commits are not looked at.
    pub(super) fn decode(payload: &[u8]) -> Result<Self, String> {
        let ((version, first, commits), rest): ((u8, u64, Vec<&[u8]>), _) =
            postcard::take_from_bytes(payload).map_err(|error| error.to_string())?;
        if version != VERSION {
            return Err(format!("its record version is {version}, this program reads {VERSION}"));
        }
        if !rest.is_empty() || first == 0 || commits.is_empty() {
            return Err("it is malformed".into());
        }
        if commits.len() > APPEND_COMMITS_MAX || first.checked_add(commits.len() as u64).is_none() {
            return Err("it has too many commits".into());
        }
        Ok(Record { first, commits: commits.into_iter().map(<[u8]>::to_vec).collect() })
    }

    /// Number of its last commit.
    pub(super) fn last(&self) -> u64 {
        self.first + self.commits.len() as u64 - 1
    }

    pub(super) fn contains(&self, number: u64) -> bool {
        (self.first..=self.last()).contains(&number)
    }

    /// Its commits from number `from` on, hashed.
    pub(super) fn into_commits(self, from: u64) -> impl Iterator<Item = StoredCommit> {
        (self.first..).zip(self.commits).skip_while(move |(number, _)| *number < from).map(
            |(number, bytes)| StoredCommit {
                position: Position { sequence: Sequence(number), hash: Hash::of_commit(&bytes) },
                bytes,
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::chain;
    use crate::sealing::seal;
    use proptest::prelude::*;

    #[test]
    fn a_record_reads_back_what_was_appended() {
        let sealed = seal(Position::ZERO, &chain(Position::ZERO, 3)).unwrap();
        let record = Record::decode(&Record::encode(&sealed)).unwrap();
        assert_eq!((record.first, record.last()), (1, 3));
        assert_eq!(record.into_commits(2).collect::<Vec<_>>(), sealed[1..]);
    }

    #[test]
    fn malformed_records_are_errors() {
        let good = Record::encode(&seal(Position::ZERO, &chain(Position::ZERO, 2)).unwrap());
        for end in 0..good.len() {
            assert!(Record::decode(&good[..end]).is_err());
        }
        assert!(Record::decode(&[good.as_slice(), &[0]].concat()).is_err());
        let encode = |first: u64, commits: Vec<&[u8]>| {
            postcard::to_stdvec(&(VERSION, first, commits)).unwrap()
        };
        assert!(Record::decode(&encode(0, vec![b"x"])).is_err());
        assert!(Record::decode(&encode(1, vec![])).is_err());
        assert!(Record::decode(&encode(u64::MAX, vec![b"x"])).is_err());
        assert!(Record::decode(&encode(1, vec![b""; APPEND_COMMITS_MAX + 1])).is_err());
    }

    proptest! {
        #[test]
        fn noise_never_panics(noise: Vec<u8>) {
            let _ = Record::decode(&noise);
        }
    }
}
