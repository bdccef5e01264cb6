//! What the binary does with good and bad command lines, from the outside.

use std::process::{Command, Output};

fn voute(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_voute"))
        .args(arguments)
        .env_remove("VOUTE_API")
        .env_remove("VOUTE_TOKEN")
        .env_remove("VOUTE_TOKEN_FILE")
        .env("HOME", "/nonexistent")
        .output()
        .expect("the binary was built")
}

fn error_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_command_line_that_cannot_be_understood_ends_with_2() {
    for arguments in [
        &["volume", "create", "db"][..],
        &["volume", "create", "db", "--size", "10bananas", "--pool", "a"],
        &["device", "add", "d", "--node", "n", "--pool", "p", "/dev/sda"],
        &["node", "--id", "not-a-uuid"],
        &["site", "add", "bad name"],
        &["frobnicate"],
    ] {
        let output = voute(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", error_of(&output));
        assert!(!error_of(&output).contains("panicked"));
    }
}

#[test]
fn errors_of_arguments_say_what_to_write_instead() {
    let size = voute(&["volume", "create", "db", "--size", "10bananas", "--pool", "a"]);
    assert!(error_of(&size).contains("GiB"), "{}", error_of(&size));
    let device = voute(&["device", "add", "d", "--node", "n", "--pool", "p", "/dev/sda"]);
    assert!(error_of(&device).contains("block:/dev/disk/by-id"), "{}", error_of(&device));
    let name = voute(&["site", "add", "bad name"]);
    assert!(error_of(&name).contains("63 letters"), "{}", error_of(&name));
}

#[test]
fn nobody_at_the_api_ends_with_1_and_says_what_to_do() {
    let output = voute(&["--api", "http://127.0.0.1:1", "status"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(error_of(&output).contains("--api"), "{}", error_of(&output));
}

#[test]
fn a_missing_token_file_is_named() {
    let output = voute(&["--token-file", "/nonexistent/token", "status"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(error_of(&output).contains("/nonexistent/token"), "{}", error_of(&output));
}

#[test]
fn a_reason_that_the_log_cannot_keep_is_refused_before_anything_is_sent() {
    let reason = "x".repeat(2_000);
    let output =
        voute(&["--api", "http://127.0.0.1:1", "--reason", &reason, "site", "add", "paris"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(error_of(&output).contains("1024 bytes"), "{}", error_of(&output));
}

#[test]
fn completions_are_printed_for_each_shell() {
    for shell in ["bash", "zsh", "fish"] {
        let output = voute(&["completions", shell]);
        assert!(output.status.success());
        assert!(String::from_utf8_lossy(&output.stdout).contains("voute"), "{shell}");
    }
}

#[test]
fn a_secret_is_not_asked_for_if_its_file_could_not_be_written() {
    let output = voute(&[
        "--api",
        "http://127.0.0.1:1",
        "node",
        "add",
        "n",
        "--site",
        "s",
        "--address",
        "127.0.0.1",
        "--secret-out",
        "/nonexistent/secret",
    ]);
    assert_eq!(output.status.code(), Some(1));
    assert!(error_of(&output).contains("/nonexistent"), "{}", error_of(&output));
}
