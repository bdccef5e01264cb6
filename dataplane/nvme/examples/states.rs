//! Prints the target connection's transition table (Markdown).

#![allow(clippy::print_stdout, reason = "printing is what it is for")]

fn main() {
    print!("{}", voute_nvme::transition_table());
}
