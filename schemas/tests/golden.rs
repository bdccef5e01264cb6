//! Golden bytes: what was once written stays readable, unedited, for ever.
//!
//! `golden/<Variant>.<n>.bin` holds an event (or a commit, or a part of one) as it rests in the log,
//! the `.json` beside it what it must read as. After adding a variant and its sample to
//! `samples.rs`, run this test once with `VOUTE_WRITE_GOLDEN=1`: it writes the missing files and
//! their lines in `MANIFEST`, and touches none that is there.

#![allow(clippy::unwrap_used, reason = "a test's helpers may end it like the test itself")]

mod samples;

use samples::{COMMIT_SAMPLES, EVENT_VARIANTS, NESTED_VARIANTS, event_samples, variant_of};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use voute_schemas::{Commit, Event, Hash};

const MANIFEST: &str = "MANIFEST";

fn golden(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(file)
}

/// One sample: its file name without ending, its bytes and its JSON.
struct Sample {
    name: String,
    bytes: Vec<u8>,
    json: Value,
}

fn samples() -> Vec<Sample> {
    let mut counts = BTreeMap::new();
    let events = event_samples().into_iter().map(|event| {
        let number = counts.entry(variant_of(&event)).or_insert(0);
        *number += 1;
        Sample {
            name: format!("{}.{number}", variant_of(&event)),
            bytes: postcard::to_stdvec(&event).unwrap(),
            json: serde_json::to_value(&event).unwrap(),
        }
    });
    let mut samples: Vec<Sample> = events.collect();
    samples.extend((1..).zip(COMMIT_SAMPLES).map(|(number, sample)| {
        let commit = sample();
        Sample {
            name: format!("Commit.{number}"),
            bytes: commit.encode(),
            json: serde_json::to_value(&commit).unwrap(),
        }
    }));
    samples
}

/// What a golden file reads as, and its bytes written again.
fn read_again(name: &str, bytes: &[u8]) -> (Value, Vec<u8>) {
    if name.starts_with("Commit.") {
        let commit = Commit::decode(bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        return (serde_json::to_value(&commit).unwrap(), commit.encode());
    }
    let (event, rest): (Event, _) =
        postcard::take_from_bytes(bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(rest.is_empty(), "{name} has bytes after its end");
    assert_eq!(name.split('.').next(), Some(variant_of(&event)), "{name} holds another variant");
    (serde_json::to_value(&event).unwrap(), postcard::to_stdvec(&event).unwrap())
}

/// File names without ending of all golden bytes.
fn golden_names() -> Vec<String> {
    let mut names: Vec<String> = files()
        .into_iter()
        .filter_map(|file| file.strip_suffix(".bin").map(ToOwned::to_owned))
        .collect();
    names.sort();
    names
}

fn files() -> BTreeSet<String> {
    fs::read_dir(golden(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != MANIFEST)
        .collect()
}

fn manifest() -> BTreeMap<String, String> {
    let text = fs::read_to_string(golden(MANIFEST)).unwrap();
    text.lines()
        .map(|line| line.split_once("  ").expect("a line is a hash, two spaces, a name"))
        .map(|(hash, name)| (name.to_string(), hash.to_string()))
        .collect()
}

#[test]
fn every_sample_has_golden_bytes_and_is_still_written_so() {
    let writes = std::env::var("VOUTE_WRITE_GOLDEN").as_deref() == Ok("1");
    for sample in samples() {
        let path = golden(&format!("{}.bin", sample.name));
        if !path.exists() {
            assert!(writes, "{} is missing; run this test with VOUTE_WRITE_GOLDEN=1", sample.name);
            write(&sample);
        }
        let bytes = fs::read(path).unwrap();
        assert_eq!(bytes, sample.bytes, "{} is written in another way than before", sample.name);
    }
}

fn write(sample: &Sample) {
    let mut json = serde_json::to_vec_pretty(&sample.json).unwrap();
    json.push(b'\n');
    for (ending, content) in [("bin", &sample.bytes), ("json", &json)] {
        let name = format!("{}.{ending}", sample.name);
        let mut file = OpenOptions::new().write(true).create_new(true).open(golden(&name)).unwrap();
        file.write_all(content).unwrap();
        let mut manifest =
            OpenOptions::new().append(true).create(true).open(golden(MANIFEST)).unwrap();
        writeln!(manifest, "{}  {name}", Hash::of(content)).unwrap();
    }
}

#[test]
fn golden_bytes_read_as_they_did_and_are_written_again_the_same() {
    let names = golden_names();
    assert!(!names.is_empty());
    for name in names {
        let bytes = fs::read(golden(&format!("{name}.bin"))).unwrap();
        let text = fs::read_to_string(golden(&format!("{name}.json"))).unwrap();
        let expected: Value = serde_json::from_str(&text).unwrap();
        let (json, written) = read_again(&name, &bytes);
        assert_eq!(json, expected, "{name} reads otherwise than when it was written");
        assert_eq!(written, bytes, "{name} is written otherwise than when it was read");
    }
}

#[test]
fn every_variant_has_golden_bytes() {
    let names = golden_names();
    for variant in EVENT_VARIANTS {
        let is_there = names.iter().any(|name| name.split('.').next() == Some(variant));
        assert!(is_there, "there is no golden file of {variant}");
    }
}

#[test]
fn every_variant_inside_of_events_and_commits_is_in_some_golden_file() {
    let mut words = BTreeSet::new();
    for name in golden_names() {
        let text = fs::read_to_string(golden(&format!("{name}.json"))).unwrap();
        collect_words(&serde_json::from_str(&text).unwrap(), &mut words);
    }
    for (kind, variants) in NESTED_VARIANTS {
        for variant in *variants {
            assert!(words.contains(*variant), "{kind}::{variant} is in no golden file");
        }
    }
}

fn collect_words(value: &Value, words: &mut BTreeSet<String>) {
    match value {
        Value::String(text) => drop(words.insert(text.clone())),
        Value::Array(values) => values.iter().for_each(|value| collect_words(value, words)),
        Value::Object(fields) => {
            for (name, value) in fields {
                words.insert(name.clone());
                collect_words(value, words);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[test]
fn no_golden_file_was_edited_added_by_hand_or_removed() {
    let manifest = manifest();
    let listed: BTreeSet<String> = manifest.keys().cloned().collect();
    assert_eq!(files(), listed);
    for (name, hash) in manifest {
        let content = fs::read(golden(&name)).unwrap();
        assert_eq!(Hash::of(&content).to_string(), hash, "{name} was edited");
    }
}

#[test]
fn cut_and_extended_commits_are_errors() {
    for name in golden_names().iter().filter(|name| name.starts_with("Commit.")) {
        let bytes = fs::read(golden(&format!("{name}.bin"))).unwrap();
        for end in 0..bytes.len() {
            assert!(Commit::decode(&bytes[..end]).is_err(), "{name} cut at {end}");
        }
        assert!(Commit::decode(&[bytes.as_slice(), &[0]].concat()).is_err());
    }
}

#[test]
fn an_unknown_variant_is_an_error_that_says_what_to_do() {
    let commit = COMMIT_SAMPLES[0]();
    let event = postcard::to_stdvec(&commit.events()[0]).unwrap();
    let mut bytes = commit.encode();
    let at = bytes.windows(event.len()).position(|window| window == event).unwrap();
    bytes[at] = u8::try_from(EVENT_VARIANTS.len()).unwrap();
    let error = Commit::decode(&bytes).unwrap_err().to_string();
    assert!(error.contains("newer version"), "{error}");
}
