//! The `voute` command.

fn main() {}
