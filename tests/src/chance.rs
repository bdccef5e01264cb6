//! Choices that follow from a seed, so that a run can be had again.

use std::time::Duration;
use voute::demo::ledger::mix;

/// A sequence of choices.
#[derive(Clone, Debug)]
pub struct Chance {
    state: u64,
}

impl Chance {
    /// The sequence of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Chance { state: mix(seed) }
    }

    /// The seed that the environment names in `VOUTE_SEED`, else `usual`.
    ///
    /// # Panics
    /// If `VOUTE_SEED` is no number.
    #[must_use]
    pub fn seed_or(usual: u64) -> u64 {
        std::env::var("VOUTE_SEED")
            .map_or(usual, |text| text.parse().expect("VOUTE_SEED is a number"))
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.state = mix(self.state);
        (self.state >> 16) % limit
    }

    /// True once in `times`.
    pub fn once_in(&mut self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// One of several.
    ///
    /// # Panics
    /// If there are none.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }

    /// Lets a time of up to `milliseconds` pass: what follows then happens at any moment of what runs.
    pub fn any_moment(&mut self, milliseconds: u64) {
        std::thread::sleep(Duration::from_millis(self.below(milliseconds)));
    }

    /// Bytes.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            *byte = self.below(256) as u8;
        }
    }
}
