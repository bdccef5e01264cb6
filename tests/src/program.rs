//! Where the `voute` binary is that whole-system tests run.

use anyhow::{Context, ensure};
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// The binary: the one that `VOUTE_PROGRAM` names, else the one beside the running test, which cargo
/// is asked to bring up to date first.
///
/// # Errors
/// If it cannot be built.
pub fn voute() -> anyhow::Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| find().map_err(|error| format!("{error:#}")));
    built.clone().map_err(anyhow::Error::msg)
}

fn find() -> anyhow::Result<PathBuf> {
    if let Some(named) = std::env::var_os("VOUTE_PROGRAM").map(PathBuf::from) {
        ensure!(named.is_file(), "VOUTE_PROGRAM={} is no file", named.display());
        return Ok(named);
    }
    let test = std::env::current_exe().context("cannot tell where this test is")?;
    // A test lies in PROFILE/deps, a program of this package in PROFILE.
    let folder = test
        .ancestors()
        .skip(1)
        .find(|folder| folder.file_name().is_none_or(|name| name != "deps"))
        .context("this test lies in no folder")?;
    build(folder.ends_with("release"))?;
    let program = folder.join("voute");
    ensure!(program.is_file(), "cargo built no {}; name one in VOUTE_PROGRAM", program.display());
    Ok(program)
}

fn build(release: bool) -> anyhow::Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        // The same selection as `tests/run` has built, or dependencies would be built twice.
        .args(["build", "--quiet", "--locked", "--workspace", "--bins"])
        .args(release.then_some("--release"))
        .arg("--manifest-path")
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"))
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "cargo could not build voute");
    Ok(())
}
