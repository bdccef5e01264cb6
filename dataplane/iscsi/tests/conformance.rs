//! libiscsi's conformance tool against volumes of every kind, each result compared with the list in
//! `conformance.txt`. A result that got worse fails; one that is better or new is told, and becomes part of
//! the list by `VOUTE_BLESS=1 cargo test -p voute-iscsi --test conformance`.
//!
//! What the list says to be skipped, and why it stays so:
//!
//! - `PreventAllow`, `StartStopUnit.Simple`: media that can be removed. `NoMedia` needs them too, and says so
//!   without counting as skipped. `Sanitize`: not asked for (`-S`), and the mirror has no such command.
//! - `ReadOnly` on volumes that may be written, and the writing suites on the one that may not.
//! - `WriteSame.ZeroBlocks`: WSNZ tells that zero blocks are refused. Without WSNZ, the tool's
//!   `WriteSame10.UnmapUntilEnd` sends a pattern of ones with UNMAP and takes reading back zeroes for the only
//!   right thing, where SBC-3 has the pattern written: obeying it would lose data.
//! - `InvalidDataOutSize`, `UnmapUnaligned`: need physical blocks larger than logical ones. They pass on the
//!   volume that has them; on that one `GetLBAStatus.UnmapSingle` asks for the block after a freed range and
//!   wants to hear of the next physical one, which SBC-3 forbids, so not every suite is run there.

mod served;

use served::{HOST, Kind, OTHER_HOST, Served, run, text};
use std::collections::BTreeMap;
use std::fmt;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// How one test of the tool ended; worse is less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Fail,
    Skip,
    Pass,
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Verdict::Fail => "fail",
            Verdict::Skip => "skip",
            Verdict::Pass => "pass",
        })
    }
}

/// By `kind suite.test`.
type Verdicts = BTreeMap<String, Verdict>;

fn list_path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/conformance.txt")
}

fn read_list() -> Verdicts {
    let text = std::fs::read_to_string(list_path()).unwrap_or_default();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| {
            let (test, verdict) = line.rsplit_once(' ')?;
            let verdict = match verdict {
                "pass" => Verdict::Pass,
                "skip" => Verdict::Skip,
                _ => Verdict::Fail,
            };
            Some((test.to_owned(), verdict))
        })
        .collect()
}

/// Whether a line tells a failed assertion: its number, file and line.
fn is_failure(line: &str) -> bool {
    let mut words = line.split_whitespace();
    let number = words.next().and_then(|word| word.strip_suffix('.'));
    let place = words.next().and_then(|word| word.rsplit_once(':'));
    number.is_some_and(|number| number.parse::<u32>().is_ok())
        && place.is_some_and(|(file, line)| file.ends_with(".c") && line.parse::<u32>().is_ok())
}

/// Reads what the tool says. A test is skipped if it says so anywhere, and fails by an assertion.
fn verdicts(kind: &str, said: &str) -> Verdicts {
    let mut verdicts = Verdicts::new();
    let (mut suite, mut test) = ("", None);
    for line in said.lines() {
        if let Some(name) = line.strip_prefix("Suite: ") {
            (suite, test) = (name.trim(), None);
        } else if line.starts_with("Run Summary") {
            test = None;
        } else if let Some(rest) = line.strip_prefix("  Test: ") {
            let name = rest.split_whitespace().next().unwrap_or_default();
            test = Some(format!("{kind} {suite}.{name}"));
        }
        if let Some(test) = &test {
            let verdict = verdicts.entry(test.clone()).or_insert(Verdict::Pass);
            if is_failure(line) {
                *verdict = Verdict::Fail;
            } else if line.contains("[SKIPPED]") {
                *verdict = (*verdict).min(Verdict::Skip);
            }
        }
    }
    verdicts
}

/// Runs the tool on two paths; what it found out, and the tests that its summary counts.
fn conform(kind: &str, served: &Served, tests: &str) -> Option<Verdicts> {
    let paths = [served.url(0), served.url(1)];
    let arguments = [
        "300",
        "iscsi-test-cu",
        "-d",
        "-i",
        HOST,
        "-I",
        OTHER_HOST,
        "-t",
        tests,
        &paths[0],
        &paths[1],
    ];
    // So that its absence is told by its own name.
    run("iscsi-test-cu", &["--help"])?;
    let said = text(&run("timeout", &arguments)?);
    let summary = said.lines().find(|line| line.trim_start().starts_with("tests "));
    let counts: Vec<usize> = summary
        .unwrap_or_else(|| panic!("{kind} {tests}: no summary, it hung or crashed:\n{said}"))
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    let verdicts = verdicts(kind, &said);
    assert_eq!(counts[1], verdicts.len(), "{kind} {tests}: every test that ran is read:\n{said}");
    let failed = verdicts.values().filter(|verdict| **verdict == Verdict::Fail).count();
    assert_eq!(counts[3], failed, "{kind} {tests}: every failure is read:\n{said}");
    if failed > 0 {
        let _ = writeln!(std::io::stderr(), "{kind} {tests}:\n{said}");
    }
    Some(verdicts)
}

/// Serialises the change of the list by tests that run side by side.
static LIST: Mutex<()> = Mutex::new(());

/// Compares with the list, or replaces this kind's part of it.
fn judge(kind: &str, found: &Verdicts) {
    let _guard = LIST.lock().unwrap_or_else(PoisonError::into_inner);
    let mut list = read_list();
    let prefix = format!("{kind} ");
    if std::env::var_os("VOUTE_BLESS").is_some() {
        list.retain(|test, _| !test.starts_with(&prefix));
        list.extend(found.clone());
        let lines = list.iter().map(|(test, verdict)| format!("{test} {verdict}\n"));
        let head = "# Results of iscsi-test-cu, written by tests/conformance.rs: kind of volume, suite.test, result.\n";
        let text: String = std::iter::once(head.to_owned()).chain(lines).collect();
        std::fs::write(list_path(), text).expect("the list is writable");
        return;
    }
    let known = list.iter().filter(|(test, _)| test.starts_with(&prefix));
    let worse: Vec<String> = known
        .filter_map(|(test, before)| match found.get(test) {
            Some(now) if now >= before => None,
            Some(now) => Some(format!("{test}: was {before}, is {now}")),
            None => Some(format!("{test}: was {before}, is not run")),
        })
        .collect();
    for (test, now) in
        found.iter().filter(|(test, now)| list.get(*test).is_none_or(|was| was < *now))
    {
        let _ = writeln!(std::io::stderr(), "better or new: {test} {now}; bless it");
    }
    assert_eq!(worse, Vec::<String>::new());
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
    let served = Served::start(&Kind { read_only: true, ..Kind::default() });
    let suites = [
        "ReadOnly",
        "Inquiry",
        "Mandatory",
        "ModeSense6",
        "Read6",
        "Read10",
        "Read12",
        "Read16",
        "ReadCapacity10",
        "ReadCapacity16",
        "ReportSupportedOpcodes",
        "TestUnitReady",
        "Prefetch10",
        "Prefetch16",
        "PrinReadKeys",
        "ProutRegister",
        "Reserve6",
        "Verify10",
        "Verify12",
        "Verify16",
    ];
    some("read-only", &served, &suites);
}

#[test]
fn a_volume_of_larger_physical_blocks_conforms() {
    let served = Served::start(&Kind { physical_block_size: 4096, ..Kind::default() });
    some("512e", &served, &["CompareAndWrite", "WriteSame10", "WriteSame16", "Unmap", "Inquiry"]);
}
