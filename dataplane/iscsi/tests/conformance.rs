//! libiscsi's conformance tool against volumes of every kind, each result compared with the list in
//! `conformance.txt`. A result that got worse fails; one that is better or new is told, and becomes part of
//! the list by `VOUTE_BLESS=1 cargo test -p voute-iscsi --test conformance`.
//!
//! What the list says to be skipped, and why it stays so:
//!
//! - `PreventAllow`, `StartStopUnit.Simple`: media that can be removed. `NoMedia` needs them too, and says so
//!   without counting as skipped. `Sanitize`: not asked for (`-S`), and the mirror has no such command.
//! - `ReadOnly` on volumes that may be written. On the one that may not, it passes; a test that wants to
//!   write there and is told WRITE PROTECTED is listed as *protected*: the tool counts it as failed, since it
//!   knows no read-only runs of its other suites.
//! - `InvalidDataOutSize`, `UnmapUnaligned`: need physical blocks larger than logical ones. They pass on the
//!   volume that has them; on that one `GetLBAStatus.UnmapSingle` asks for the block after a freed range and
//!   wants to hear of the next physical one, which SBC-3 forbids, so not every suite is run there.

mod served;
mod verdicts;

use served::{HOST, Kind, OTHER_HOST, Served};
use verdicts::{Verdicts, judge};

fn conform(kind: &str, served: &Served, tests: &str) -> Option<Verdicts> {
    verdicts::conform(kind, [HOST, OTHER_HOST], &[served.url(0), served.url(1)], tests)
}

fn whole(kind: &str, served: &Served) {
    let Some(found) = conform(kind, served, "ALL") else { return };
    assert!(found.len() >= 230, "only {} tests ran", found.len());
    judge(kind, &found);
}

fn some(kind: &str, served: &Served, suites: &[&str]) {
    let mut found = Verdicts::new();
    for suite in suites {
        let Some(verdicts) = conform(kind, served, &format!("ALL.{suite}")) else { return };
        assert!(!verdicts.is_empty(), "{suite} exists");
        found.extend(verdicts);
    }
    judge(kind, &found);
}

#[test]
fn a_volume_with_room_for_every_block_conforms_on_two_paths() {
    whole("thick", &Served::start(&Kind::default()));
}

#[test]
fn a_thin_volume_conforms_on_two_paths() {
    whole("thin", &Served::start(&Kind { thin: true, ..Kind::default() }));
}

#[test]
fn a_volume_of_large_blocks_conforms_on_two_paths() {
    whole("4096", &Served::start(&Kind { block_size: Some(4096), ..Kind::default() }));
}

#[test]
fn a_read_only_volume_conforms_as_far_as_nothing_is_written() {
    whole("read-only", &Served::start(&Kind { read_only: true, ..Kind::default() }));
}

#[test]
fn a_volume_of_larger_physical_blocks_conforms() {
    let served = Served::start(&Kind { physical_block_size: 4096, ..Kind::default() });
    some("512e", &served, &["CompareAndWrite", "WriteSame10", "WriteSame16", "Unmap", "Inquiry"]);
}
