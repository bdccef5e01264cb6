//! The crates depend on each other only as the architecture says.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// What each crate may depend on, of ours. `ops → control, dataplane → events → schemas`; control
/// and data plane never meet but in the contract of `schemas`.
const ALLOWED: &[(&str, &[&str])] = &[
    ("voute-schemas", &[]),
    ("voute-buffer", &[]),
    ("voute-events", &["voute-schemas"]),
    ("voute-control", &["voute-schemas", "voute-events"]),
    ("voute-reservation", &[]),
    ("voute-nvme", &["voute-buffer", "voute-reservation"]),
    ("voute-iscsi", &["voute-buffer", "voute-reservation"]),
    ("voute-mirror", &["voute-buffer", "voute-schemas"]),
    ("voute-device", &["voute-buffer", "voute-schemas", "voute-mirror", "voute-nvme"]),
    (
        "voute-worker",
        &[
            "voute-buffer",
            "voute-schemas",
            "voute-events",
            "voute-reservation",
            "voute-mirror",
            "voute-nvme",
            "voute-iscsi",
            "voute-device",
        ],
    ),
    (
        "voute",
        &[
            "voute-schemas",
            "voute-events",
            "voute-control",
            "voute-buffer",
            "voute-nvme",
            "voute-iscsi",
            "voute-mirror",
            "voute-device",
            "voute-worker",
        ],
    ),
    ("voute-fuzz", &["voute-buffer", "voute-reservation", "voute-nvme", "voute-iscsi"]),
    (
        "voute-tests",
        &[
            "voute-schemas",
            "voute-events",
            "voute-control",
            "voute-buffer",
            "voute-nvme",
            "voute-iscsi",
            "voute-mirror",
            "voute-device",
            "voute-worker",
            "voute",
        ],
    ),
    (
        "voute-simulation",
        &[
            "voute-schemas",
            "voute-events",
            "voute-control",
            "voute-buffer",
            "voute-mirror",
            "voute-worker",
        ],
    ),
    ("voute-model", &["voute-buffer", "voute-schemas", "voute-control", "voute-mirror"]),
];

/// Crates of which the core must stay free: no I/O, no clock, no runtime.
const PURE: &[&str] =
    &["voute-schemas", "voute-reservation", "voute-nvme", "voute-iscsi", "voute-mirror"];
const IMPURE: &[&str] =
    &["tokio", "io-uring", "rustix", "libc", "socket2", "redb", "async-nats", "axum"];

fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline", "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let packages = metadata["packages"].as_array().expect("a list of packages");
    let named = packages.iter().map(|package| {
        let normal = package["dependencies"]
            .as_array()
            .expect("a list")
            .iter()
            .filter(|dependency| dependency["kind"].is_null());
        let names = normal
            .map(|dependency| dependency["name"].as_str().expect("a name").to_owned())
            .collect();
        (package["name"].as_str().expect("a name").to_owned(), names)
    });
    named.collect()
}

#[test]
fn crates_depend_only_where_the_arrows_point() {
    let dependencies = dependencies();
    let known: BTreeSet<&str> = ALLOWED.iter().map(|entry| entry.0).collect();
    let found: BTreeSet<&str> = dependencies.keys().map(String::as_str).collect();
    assert_eq!(found, known, "a crate was added or removed: say in ALLOWED what it may depend on");
    for (name, allowed) in ALLOWED {
        for dependency in
            dependencies[*name].iter().filter(|dependency| known.contains(dependency.as_str()))
        {
            assert!(
                allowed.contains(&dependency.as_str()),
                "{name} must not depend on {dependency}"
            );
        }
    }
}

#[test]
fn protocol_and_mirror_code_has_no_io_inside() {
    let dependencies = dependencies();
    for name in PURE {
        for dependency in &dependencies[*name] {
            assert!(
                !IMPURE.contains(&dependency.as_str()),
                "{name} is pure and must not depend on {dependency}"
            );
        }
    }
}

/// What a pure source file must not name.
const IMPURE_NAMES: &[&str] =
    &["TcpStream", "TcpListener", "UdpSocket", "std::fs", "std::thread", "Instant::", "SystemTime"];

fn sources_below(folder: &std::path::Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder of sources").flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources_below(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn protocol_and_mirror_sources_name_no_clock_file_or_socket() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = Vec::new();
    for folder in ["dataplane/nvme/src", "dataplane/iscsi/src", "dataplane/mirror/src"] {
        sources_below(&root.join(folder), &mut files);
    }
    assert!(files.len() > 40, "only {} sources were found", files.len());
    for file in files {
        let text = std::fs::read_to_string(&file).expect("a readable source");
        for name in IMPURE_NAMES {
            assert!(!text.contains(name), "{} names {name}", file.display());
        }
    }
}
