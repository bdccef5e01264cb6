//! Whatever is linked in may be given away under our own licences, and comes from the registry.

use serde_json::Value;
use std::process::Command;

/// Licences that ask for no more than to be named. One not listed here is a decision to take.
const ALLOWED: [&str; 10] = [
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-1-Clause",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
];

fn packages() -> Vec<Value> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--locked", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    match metadata["packages"].take() {
        Value::Array(packages) => packages,
        other => panic!("a list of packages was expected, not {other}"),
    }
}

fn text<'a>(package: &'a Value, field: &str) -> &'a str {
    package[field].as_str().unwrap_or_default()
}

/// Whether an SPDX expression can be met by allowed licences alone. `/` is an old way to write `OR`.
fn is_allowed(expression: &str) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    let allowed = any(&mut rest);
    assert!(rest.is_empty(), "{expression:?} is no SPDX expression");
    allowed
}

fn any(words: &mut &[&str]) -> bool {
    let mut allowed = all(words);
    while take(words, "OR") {
        // Read on, whatever is known already.
        allowed |= all(words);
    }
    allowed
}

fn all(words: &mut &[&str]) -> bool {
    let mut allowed = one(words);
    while take(words, "AND") {
        allowed &= one(words);
    }
    allowed
}

fn one(words: &mut &[&str]) -> bool {
    if take(words, "(") {
        let allowed = any(words);
        assert!(take(words, ")"), "a parenthesis is not closed");
        return allowed;
    }
    let Some((name, rest)) = words.split_first() else { return false };
    *words = rest;
    match *words {
        ["WITH", exception, rest @ ..] => {
            *words = rest;
            ALLOWED.contains(&format!("{name} WITH {exception}").as_str())
        }
        _ => ALLOWED.contains(name),
    }
}

fn take(words: &mut &[&str], word: &str) -> bool {
    match words.split_first() {
        Some((first, rest)) if *first == word => {
            *words = rest;
            true
        }
        _ => false,
    }
}

#[test]
fn expressions_are_read_as_spdx_says() {
    for fine in ["MIT", "MIT/Apache-2.0", "GPL-3.0 OR MIT", "(MIT OR GPL-2.0) AND ISC"] {
        assert!(is_allowed(fine), "{fine}");
    }
    for wrong in
        ["GPL-3.0", "MIT AND GPL-3.0", "Apache-2.0 WITH Other", "", "(GPL-2.0) OR SSPL-1.0"]
    {
        assert!(!is_allowed(wrong), "{wrong}");
    }
}

#[test]
fn every_dependency_has_a_licence_that_ours_permit() {
    let packages = packages();
    assert!(packages.len() > 50, "all dependencies are looked at");
    for package in &packages {
        let licence = text(package, "license");
        assert!(
            is_allowed(licence),
            "{} {} is licensed {licence:?}, which is not in ALLOWED",
            text(package, "name"),
            text(package, "version")
        );
    }
}

#[test]
fn every_dependency_comes_from_the_registry_or_this_workspace() {
    for package in &packages() {
        // None for what is in the workspace.
        let source = text(package, "source");
        let is_ours = source.is_empty() && text(package, "name").starts_with("voute");
        assert!(
            is_ours || source == "registry+https://github.com/rust-lang/crates.io-index",
            "{} comes from {source:?}: depend on a released version",
            text(package, "name")
        );
        if is_ours {
            assert_eq!(text(package, "license"), "Apache-2.0 OR MIT", "{}", text(package, "name"));
        }
    }
}
