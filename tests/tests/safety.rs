//! What docs/safety.md claims has a test: every name that it gives in its tables exists, and every row
//! of its fault table gives one.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder of the workspace") {
        let path = entry.expect("a folder can be listed").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Names of functions that a line with `test]` precedes.
fn tests() -> BTreeSet<String> {
    let mut files = Vec::new();
    sources(&root(), &mut files);
    let mut names = BTreeSet::new();
    for file in files {
        let text = std::fs::read_to_string(&file).expect("sources are text");
        let mut is_test = false;
        for line in text.lines().map(str::trim) {
            if line.starts_with("#[") {
                is_test |= line.contains("test]") || line.contains("test(");
            } else if let Some((_, rest)) = line.split_once("fn ") {
                let name: String =
                    rest.chars().take_while(|it| it.is_alphanumeric() || *it == '_').collect();
                if is_test {
                    names.insert(name);
                }
                is_test = false;
            }
        }
    }
    names
}

/// Cells of the tables under a heading.
fn rows<'a>(page: &'a str, heading: &str) -> Vec<Vec<&'a str>> {
    let section = page.split("\n## ").find(|part| part.starts_with(heading));
    let section = section.unwrap_or_else(|| panic!("docs/safety.md has no section {heading:?}"));
    let lines = section.lines().filter(|line| line.starts_with('|'));
    lines.skip(2).map(|line| line.trim_matches('|').split('|').collect()).collect()
}

/// Words between backticks that look like the name of a test.
fn named(cell: &str) -> Vec<&str> {
    let quoted = cell.split('`').skip(1).step_by(2);
    quoted.filter(|word| word.matches('_').count() >= 2 && !word.contains(['/', '.'])).collect()
}

#[test]
fn every_fault_names_a_test_that_exists() {
    let page = std::fs::read_to_string(root().join("docs/safety.md")).expect("docs/safety.md");
    let known = tests();
    assert!(known.len() > 500, "only {} tests were found", known.len());
    for (heading, columns) in [("Faults", 5), ("Bugs found", 3)] {
        let rows = rows(&page, heading);
        assert!(rows.len() >= 5, "{heading}: {} rows", rows.len());
        for row in rows {
            assert_eq!(row.len(), columns, "{heading}: a row of {} columns: {row:?}", row.len());
            let names = named(row[columns - 1]);
            assert!(!names.is_empty(), "{heading}: no test in the row {:?}", row[0]);
            let missing: Vec<_> = names.iter().filter(|name| !known.contains(**name)).collect();
            assert!(missing.is_empty(), "{heading}, {:?}: there is no test {missing:?}", row[0]);
        }
    }
}
