//! Every `voute …` line in the documents and in the command's own examples is a command line that
//! this version understands.

use clap::error::ErrorKind;
use clap::{Command, CommandFactory, Parser};
use std::path::{Path, PathBuf};
use voute::cli::Cli;

/// The words of one command line, as a shell would split it. It ends at an unquoted `#`, `|`, `>`, `;`.
fn shell_words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match (quote, character) {
            (Some(open), _) if character == open => quote = None,
            (None, '"' | '\'') => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (None, '\\') => word.get_or_insert_default().extend(characters.next()),
            (None, ' ' | '\t') => words.extend(word.take()),
            (None, '|' | '>' | ';') => break,
            (None, '#') if word.is_none() => break,
            _ => word.get_or_insert_default().push(character),
        }
    }
    words.extend(word);
    words
}

/// Command lines of the fenced blocks of a Markdown document; `\` at an end joins lines.
fn commands_of_document(text: &str) -> Vec<String> {
    let mut inside = false;
    let mut block = Vec::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            inside = !inside;
        } else if inside {
            block.push(line);
        }
    }
    commands_of_lines(&block.join("\n"))
}

fn commands_of_lines(text: &str) -> Vec<String> {
    let pieces: Vec<&str> = text.split("\\\n").map(str::trim_end).collect();
    let joined = pieces
        .iter()
        .skip(1)
        .fold(pieces[0].to_owned(), |line, rest| line + " " + rest.trim_start());
    let lines =
        joined.lines().map(|line| line.trim().trim_start_matches("$ ").trim_start_matches("sudo "));
    let after_pipe = lines.flat_map(|line| line.split(" | ").map(str::trim).collect::<Vec<_>>());
    let begin =
        |line: &&str| line.starts_with("voute ") || line.starts_with("cargo run --release -- ");
    after_pipe
        .filter(begin)
        .map(|line| line.replacen("cargo run --release --", "voute", 1))
        .filter(|line| !line.contains('<') && !line.contains('…'))
        .collect()
}

fn understood(line: &str) -> Result<(), String> {
    // A description of the demonstration's or status' meaning may follow after two spaces.
    let command = line.split("   ").next().unwrap_or(line);
    match Cli::try_parse_from(shell_words(command)) {
        // It would run, and never fail anything over.
        Ok(Cli { command: voute::cli::Command::Control(arguments), .. })
            if arguments.log != "embedded" && arguments.log_monitoring.is_none() =>
        {
            Err(format!("{line}\nneeds --log-monitoring"))
        }
        Ok(_) => Ok(()),
        Err(error)
            if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) =>
        {
            Ok(())
        }
        Err(error) => Err(format!("{line}\n{error}")),
    }
}

fn markdown_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            markdown_below(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
}

#[test]
fn every_command_in_the_documents_is_understood() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("ops has a parent");
    let mut documents = vec![root.join("README.md")];
    markdown_below(&root.join("docs"), &mut documents);
    let mut seen = 0;
    let mut wrong = Vec::new();
    for document in documents {
        let Ok(text) = std::fs::read_to_string(&document) else { continue };
        for line in commands_of_document(&text) {
            seen += 1;
            wrong.extend(
                understood(&line).err().map(|error| format!("{}: {error}", document.display())),
            );
        }
    }
    assert!(seen > 50, "only {seen} commands were found in the documents");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_example_in_the_help_is_understood() {
    let mut examples = Vec::new();
    gather_examples(&Cli::command(), &mut examples);
    assert!(examples.len() > 30, "only {} examples were found", examples.len());
    let wrong: Vec<String> = examples.iter().filter_map(|line| understood(line).err()).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn gather_examples(command: &Command, found: &mut Vec<String>) {
    if let Some(text) = command.get_after_help() {
        found.extend(commands_of_lines(&text.to_string()));
    }
    command.get_subcommands().for_each(|below| gather_examples(below, found));
}

#[test]
fn a_wrong_command_in_a_document_is_noticed() {
    let found = commands_of_document(
        "text\n```sh\nvoute volume create x --size 10bananas --pool a\n$ voute stauts\n```\n",
    );
    assert_eq!(found.len(), 2);
    assert!(found.iter().all(|line| understood(line).is_err()));
    assert!(understood("voute control --data-dir /x --log nats://192.0.2.1:4222").is_err());
}

#[test]
fn the_command_line_does_not_contradict_itself() {
    Cli::command().debug_assert();
}
