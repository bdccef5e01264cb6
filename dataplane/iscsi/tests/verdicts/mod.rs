//! Reads what libiscsi's conformance tool says, and compares it with the list kept in
//! `tests/conformance.txt` of the package whose test includes this.

#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

/// How one test of the tool ended; worse is less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    Fail,
    /// It wants to write, and was refused since the volume is write protected.
    Protected,
    Skip,
    Pass,
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Verdict::Fail => "fail",
            Verdict::Protected => "protected",
            Verdict::Skip => "skip",
            Verdict::Pass => "pass",
        })
    }
}

/// By `kind suite.test`.
pub(crate) type Verdicts = BTreeMap<String, Verdict>;

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
                "protected" => Verdict::Protected,
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

/// Tests that write and see no more of the answer than that it is CHECK CONDITION.
const BLIND_WRITERS: [&str; 2] = ["Write10.Async", "iSCSITMF.AbortTaskSimpleAsync"];

/// Reads what the tool says. A test is skipped if it says so anywhere, and fails by an assertion; if it was
/// told WRITE PROTECTED before, that is why.
fn verdicts(kind: &str, said: &str) -> Verdicts {
    let mut verdicts = Verdicts::new();
    let (mut suite, mut test, mut is_refused) = ("", None, false);
    for line in said.lines() {
        if let Some(name) = line.strip_prefix("Suite: ") {
            (suite, test) = (name.trim(), None);
        } else if line.starts_with("Run Summary") {
            test = None;
        } else if let Some(rest) = line.strip_prefix("  Test: ") {
            let name = format!("{suite}.{}", rest.split_whitespace().next().unwrap_or_default());
            is_refused = kind.ends_with("read-only") && BLIND_WRITERS.contains(&name.as_str());
            test = Some(format!("{kind} {name}"));
        }
        let Some(test) = &test else { continue };
        is_refused |= line.contains("(0x2700)");
        let verdict = verdicts.entry(test.clone()).or_insert(Verdict::Pass);
        if is_failure(line) {
            let worse = if is_refused { Verdict::Protected } else { Verdict::Fail };
            *verdict = (*verdict).min(worse);
        } else if line.contains("[SKIPPED]") {
            *verdict = (*verdict).min(Verdict::Skip);
        }
    }
    verdicts
}

/// Longest time that one run of the tool may take, seconds.
const SECONDS_MAX: &str = "300";

/// Runs tests of the tool as `host` (and `other_host`, where a test wants a second one) on these paths;
/// `None` when the tool is not installed, which is said past the harness's capture.
///
/// # Panics
/// If the tool is missing although `CI` is set, hangs, or says what cannot be read.
pub(crate) fn conform(
    kind: &str,
    [host, other_host]: [&str; 2],
    paths: &[String],
    tests: &str,
) -> Option<Verdicts> {
    // So that its absence is told by its own name.
    if Command::new("iscsi-test-cu").arg("--help").output().is_err() {
        assert!(
            std::env::var_os("CI").is_none(),
            "iscsi-test-cu is missing (Debian: libiscsi-bin)"
        );
        let _ = writeln!(std::io::stderr(), "SKIPPED: iscsi-test-cu not installed");
        return None;
    }
    let output = Command::new("timeout")
        .args([SECONDS_MAX, "iscsi-test-cu", "-d", "-i", host, "-I", other_host, "-t", tests])
        .args(paths)
        .output()
        .expect("timeout is of coreutils");
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    let summary = said.lines().find(|line| line.trim_start().starts_with("tests "));
    let counts: Vec<usize> = summary
        .unwrap_or_else(|| panic!("{kind} {tests}: no summary, it hung or crashed:\n{said}"))
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    let verdicts = verdicts(kind, &said);
    assert_eq!(counts[1], verdicts.len(), "{kind} {tests}: every test that ran is read:\n{said}");
    let count = |which| verdicts.values().filter(|verdict| **verdict == which).count();
    let failed = count(Verdict::Fail);
    assert_eq!(
        counts[3],
        failed + count(Verdict::Protected),
        "{kind} {tests}: every failure is read:\n{said}"
    );
    if failed > 0 {
        let _ = writeln!(std::io::stderr(), "{kind} {tests}:\n{said}");
    }
    Some(verdicts)
}

/// Serialises the change of the list by tests that run side by side.
static LIST: Mutex<()> = Mutex::new(());

/// Compares with the list, or replaces this kind's part of it.
pub(crate) fn judge(kind: &str, found: &Verdicts) {
    let _guard = LIST.lock().unwrap_or_else(PoisonError::into_inner);
    let mut list = read_list();
    let prefix = format!("{kind} ");
    if std::env::var_os("VOUTE_BLESS").is_some() {
        list.retain(|test, _| !test.starts_with(&prefix));
        list.extend(found.clone());
        let lines = list.iter().map(|(test, verdict)| format!("{test} {verdict}\n"));
        let head = "# Results of iscsi-test-cu, written by a test with VOUTE_BLESS=1: kind of volume, suite.test, result.\n";
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
