//! Runs every kept seed, and as many made of chance, as an ordinary test.

use std::path::Path;

/// Inputs made of chance per target.
const RANDOM: u64 = 2000;

fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    let files =
        std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    files
        .map(|file| {
            let path = file.expect("the folder is readable").path();
            (path.display().to_string(), std::fs::read(&path).expect("a seed is a file"))
        })
        .collect()
}

/// xorshift64*, so that a failure can be repeated.
fn random(seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_F491_4F6C_DD1D)
    };
    let length = next() % 1500;
    (0..length).map(|_| (next() >> 32) as u8).collect()
}

#[test]
fn every_seed_and_much_chance_pass() {
    for (name, target) in voute_fuzz::TARGETS {
        let kept = seeds(name);
        assert!(!kept.is_empty(), "{name} has no seeds");
        let chance = (0..RANDOM).map(|seed| (format!("{name}: chance {seed}"), random(seed)));
        for (what, bytes) in kept.into_iter().chain(chance) {
            let told = std::panic::catch_unwind(|| target(&bytes));
            assert!(told.is_ok(), "{what} fails");
        }
    }
}
