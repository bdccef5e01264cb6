//! One list of rows, printed three ways.

use crate::cli::OutputFormat;
use crate::print::{line, plain};
use anyhow::Context;
use comfy_table::{Table, presets};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Something that is one row of a table.
pub trait Row {
    /// Column headings.
    const HEADINGS: &'static [&'static str];
    /// One text per heading.
    fn cells(&self) -> Vec<String>;
}

/// Prints a list that the API answered.
///
/// # Errors
/// If an item is not what this version expects.
pub fn print_list<T: Row + DeserializeOwned>(
    items: Vec<Value>,
    format: OutputFormat,
) -> anyhow::Result<()> {
    if format == OutputFormat::Json {
        return print_json(&items);
    }
    let rows: Vec<T> = items
        .into_iter()
        .map(serde_json::from_value)
        .collect::<Result<_, _>>()
        .context("the control plane answered with a list that this version does not understand; do the versions match?")?;
    print_rows(&rows, format)
}

/// Prints rows.
///
/// # Errors
/// If JSON cannot be written.
pub fn print_rows<T: Row>(rows: &[T], format: OutputFormat) -> anyhow::Result<()> {
    let cells: Vec<Vec<String>> = rows.iter().map(Row::cells).collect();
    match format {
        OutputFormat::Table => print_table(T::HEADINGS, &cells),
        OutputFormat::Csv => print_csv(T::HEADINGS, &cells),
        OutputFormat::Json => print_json(&cells)?,
    }
    Ok(())
}

/// Prints something as JSON.
///
/// # Errors
/// If it cannot be written as JSON.
pub fn print_json(value: &(impl Serialize + ?Sized)) -> anyhow::Result<()> {
    line(&serde_json::to_string_pretty(value)?);
    Ok(())
}

/// Prints a table for people; says so if it is empty.
pub fn print_table(headings: &[&str], rows: &[Vec<String>]) {
    if rows.is_empty() {
        eprintln!("none");
        return;
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(headings.iter().map(|heading| heading.to_uppercase()));
    for row in rows {
        table.add_row(row.iter().map(|cell| plain(cell)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    line(&trim_lines(&table.to_string()));
}

fn trim_lines(text: &str) -> String {
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

fn print_csv(headings: &[&str], rows: &[Vec<String>]) {
    line(&headings.join(","));
    rows.iter().for_each(|row| print_csv_row(row));
}

/// Prints one row as CSV.
pub fn print_csv_row(cells: &[String]) {
    line(&cells.iter().map(|cell| quote(cell)).collect::<Vec<_>>().join(","));
}

/// RFC 4180: what holds a comma, quote or line break is quoted, quotes are doubled.
fn quote(cell: &str) -> String {
    if cell.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", cell.replace('"', "\"\""))
    } else {
        cell.to_owned()
    }
}

/// Prints names and values, one a line, aligned.
pub fn print_facts(facts: &[(&str, String)]) {
    let width = facts.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    for (name, value) in facts {
        line(&format!("{name:width$}  {}", plain(value)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_quotes_what_would_break_it() {
        assert_eq!(quote("plain"), "plain");
        assert_eq!(quote("a,b"), "\"a,b\"");
        assert_eq!(quote("say \"x\""), "\"say \"\"x\"\"\"");
    }
}
