//! One number for all states that behave alike.
//!
//! A state is shown as text (`Debug` of the real structures) and read again token by token, so that a
//! field that somebody adds to them counts at once, without a change here. What is read is
//! normalised: each rule keeps whatever the machines can ask about the values.
//!
//! | what | how | why it is sound |
//! |-|-|-|
//! | times | relative to their node's clock, at most [`PAST`] ago | they are only compared with now plus a delay shorter than that |
//! | numbers of commits, sessions, the host's values | by their rank among those in the state | they are only compared, and new ones are above all others |
//! | tags, bars, nonces, hashes | by their first occurrence | they are only compared for equality |
//! | generations of headers and pages | left out | of two slots the newer is read; it is always the one that was written last |
//! | counters that nothing decides by | left out | [`UNUSED`] names them |

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// Longest delay of any rule, nanoseconds: what lies further back is as if it lay there.
const PAST: i128 = 6_000_000_000;
/// Numbers from here on are names, not amounts.
const NAMES: u128 = 1 << 20;

/// Statistics, and the clock by which the oldest of 128 hot regions is found: the model has one.
const UNUSED: [&str; 10] = [
    "clock",
    "used",
    "last_io",
    "barred_ms",
    "lease_wait_ms",
    "serving_ms",
    "first_io_ms",
    "duration_ms",
    "silent_ms",
    "generation",
];
const COMMITS: [&str; 4] = ["joining", "map_since", "last_common", "since"];
const SESSIONS: [&str; 5] = ["session", "sessions", "barring", "life", "round"];

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Class {
    Commit,
    Session,
    Connection,
    Value,
    DeviceName,
    LinkName,
    Name,
}

impl Class {
    fn is_ranked(self) -> bool {
        match self {
            Class::Commit | Class::Session | Class::Connection | Class::Value => true,
            Class::DeviceName | Class::LinkName | Class::Name => false,
        }
    }
}

enum Item {
    Number(Class, u128),
    Plain(u128),
    Time(i128),
    Text(u64),
}

/// What encloses the token that is read.
#[derive(Clone, Copy)]
struct Frame<'a> {
    name: &'a str,
    field: &'a str,
    index: usize,
    is_struct: bool,
}

/// The fingerprint of a text. `@<nanoseconds>;` in it sets the clock for the times that follow.
pub(crate) fn fingerprint(text: &str) -> u64 {
    digest(&Reader { text, at: 0, now: 0 }.items())
}

fn digest(items: &[Item]) -> u64 {
    let mut ranked: HashMap<Class, Vec<u128>> = HashMap::new();
    for item in items {
        if let Item::Number(class, number) = item
            && class.is_ranked()
        {
            ranked.entry(*class).or_default().push(*number);
        }
    }
    for numbers in ranked.values_mut() {
        numbers.sort_unstable();
        numbers.dedup();
    }
    let mut named: HashMap<(Class, u128), usize> = HashMap::new();
    let mut hasher = DefaultHasher::new();
    for item in items {
        match item {
            Item::Number(class, number) if class.is_ranked() => {
                let numbers = ranked.get(class).map_or(&[][..], Vec::as_slice);
                (0_u8, numbers.binary_search(number).unwrap_or(usize::MAX)).hash(&mut hasher);
            }
            Item::Number(class, number) => {
                let next = named.len();
                (1_u8, *named.entry((*class, *number)).or_insert(next)).hash(&mut hasher);
            }
            Item::Plain(number) => (2_u8, number).hash(&mut hasher),
            Item::Time(ago) => (3_u8, ago).hash(&mut hasher),
            Item::Text(digest) => digest.hash(&mut hasher),
        }
    }
    hasher.finish()
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    now: i128,
}

impl<'a> Reader<'a> {
    fn items(mut self) -> Vec<Item> {
        let bytes = self.text.as_bytes();
        let mut items = Vec::with_capacity(self.text.len() / 6);
        let mut frames = vec![Frame { name: "", field: "", index: 0, is_struct: true }];
        let mut word = "";
        while let Some(byte) = bytes.get(self.at) {
            match byte {
                b'@' => self.set_clock(),
                b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'_' => {
                    let run = self.run();
                    let top = *frames.last().expect("the outermost frame is never popped");
                    match self.item(run, word, top, &frames) {
                        Some(item) => items.push(item),
                        None => {
                            items.push(Item::Text(digest_of(run)));
                            word = run;
                        }
                    }
                    continue;
                }
                b'(' | b'{' | b'[' => {
                    let field = frames.last().map_or("", |frame| frame.field);
                    frames.push(Frame { name: word, field, index: 0, is_struct: *byte == b'{' });
                    word = "";
                }
                b')' | b'}' | b']' => {
                    if frames.len() > 1 {
                        frames.pop();
                    }
                    word = "";
                }
                b':' => {
                    if let Some(frame) = frames.last_mut() {
                        frame.field = word;
                    }
                }
                b',' => {
                    if let Some(frame) = frames.last_mut() {
                        frame.index += 1;
                        if frame.is_struct {
                            frame.field = "";
                        }
                    }
                    word = "";
                }
                _ => {}
            }
            if !byte.is_ascii_whitespace() {
                items.push(Item::Text(u64::from(*byte)));
            }
            self.at += 1;
        }
        items
    }

    fn set_clock(&mut self) {
        let rest = &self.text[self.at + 1..];
        let end = rest.find(';').unwrap_or(0);
        self.now = rest[..end].parse().unwrap_or(0);
        self.at += end + 1;
    }

    /// A run of letters, digits, underscores and, in a number with a fraction, its point.
    fn run(&mut self) -> &'a str {
        let bytes = self.text.as_bytes();
        let begin = self.at;
        let is_number = bytes[begin].is_ascii_digit();
        while let Some(byte) = bytes.get(self.at) {
            let fraction = *byte == b'.'
                && is_number
                && bytes.get(self.at + 1).is_some_and(u8::is_ascii_digit);
            // µ
            if !(byte.is_ascii_alphanumeric() || *byte == b'_' || fraction || *byte >= 0x80) {
                break;
            }
            self.at += 1;
        }
        &self.text[begin..self.at]
    }

    fn item(&self, run: &str, word: &str, top: Frame<'_>, frames: &[Frame<'_>]) -> Option<Item> {
        if run.len() == 64 && run.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Some(Item::Number(Class::Name, u128::from(digest_of(run))));
        }
        if let Some(value) = run.strip_prefix('V').and_then(|value| value.parse().ok()) {
            return Some(Item::Number(Class::Value, value));
        }
        if top.name == "Buffer" && top.field == "bytes" && word == "bytes" && run.len() == 16 {
            let little = u64::from_str_radix(run, 16).ok()?.swap_bytes();
            return Some(Item::Number(Class::Value, u128::from(little)));
        }
        if !run.as_bytes()[0].is_ascii_digit() {
            return None;
        }
        if UNUSED.contains(&top.field) {
            return Some(Item::Plain(0));
        }
        match run.parse::<u128>() {
            Ok(number) => Some(number_item(number, top, frames)),
            Err(_) => Some(match time(run) {
                Some(time) => Item::Time((time - self.now).max(-PAST)),
                None => Item::Text(digest_of(run)),
            }),
        }
    }
}

fn number_item(number: u128, top: Frame<'_>, frames: &[Frame<'_>]) -> Item {
    let class = match (top.name, top.index) {
        ("Sequence", _) => Some(Class::Commit),
        ("Bar", _) => Some(Class::Session),
        ("Owner" | "Keeper", _) if !top.is_struct => Some(Class::Session),
        ("DeviceTag", _) => Some(Class::DeviceName),
        ("LinkTag", _) => Some(Class::LinkName),
        _ if COMMITS.contains(&top.field) => Some(Class::Commit),
        _ if top.field == "connection" => Some(Class::Connection),
        _ if SESSIONS.contains(&top.field) => Some(Class::Session),
        _ => None,
    };
    match class {
        Some(class) if number < NAMES || !class.is_ranked() => Item::Number(class, number),
        // The generation of a page, with its writer.
        None if top.index == 0 && is_page(frames) => Item::Plain(0),
        None if number < NAMES => Item::Plain(number),
        Some(_) | None => Item::Number(name_class(top, frames), number),
    }
}

fn is_page(frames: &[Frame<'_>]) -> bool {
    matches!(frames, [.., list, tuple] if list.field == "pages" && tuple.name.is_empty())
}

/// Keys of different tables are different names, even if they are the same number.
fn name_class(top: Frame<'_>, frames: &[Frame<'_>]) -> Class {
    let is_in = |field: &str| frames.iter().rev().take(2).any(|frame| frame.field == field);
    if is_in("devices") {
        Class::DeviceName
    } else if is_in("links") || top.field == "command" {
        Class::LinkName
    } else {
        Class::Name
    }
}

fn digest_of(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// Nanoseconds, from how a duration shows itself.
fn time(run: &str) -> Option<i128> {
    let unit_at = run.find(|letter: char| letter.is_alphabetic())?;
    let (number, unit) = run.split_at(unit_at);
    let scale: i128 = match unit {
        "s" => 1_000_000_000,
        "ms" => 1_000_000,
        "µs" => 1_000,
        "ns" => 1,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let mut nanos = whole.parse::<i128>().ok()? * scale;
    let mut place = scale;
    for digit in fraction.bytes() {
        place /= 10;
        nanos += i128::from(digit - b'0') * place;
    }
    Some(nanos)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn of(text: &str) -> u64 {
        fingerprint(text)
    }

    #[test]
    fn times_count_from_their_clock_and_only_so_far_back() {
        let ms = Duration::from_millis;
        let text = |now: u64, at: u64| format!("@{now};since: {:.8?}", ms(at));
        assert_eq!(of(&text(5_000_000_000, 4_500)), of(&text(6_000_000_000, 5_500)));
        assert_ne!(of(&text(5_000_000_000, 4_500)), of(&text(6_000_000_000, 4_500)));
        assert_eq!(of(&text(50_000_000_000, 4_500)), of(&text(50_000_000_000, 0)));
    }

    #[test]
    fn numbers_of_commits_count_by_their_order() {
        assert_eq!(of("Sequence(4) joining: Some(7)"), of("Sequence(40) joining: Some(41)"));
        assert_ne!(of("Sequence(4) joining: Some(7)"), of("Sequence(4) joining: Some(4)"));
        assert_ne!(of("Sequence(4) joining: Some(7)"), of("Sequence(9) joining: Some(7)"));
        assert_ne!(of("size: 4"), of("size: 5"), "an amount is no number of a commit");
    }

    #[test]
    fn an_amount_after_a_name_is_an_amount() {
        assert_ne!(of("connection: Some(3), 6"), of("connection: Some(3), 5"));
        assert_eq!(of("connection: Some(3), 6"), of("connection: Some(4), 6"));
    }

    #[test]
    fn names_count_by_where_they_occur_again() {
        let (one, other) = (1_u64 << 33, 1_u64 << 40 | 5);
        assert_eq!(of(&format!("nonce: {one} {other}")), of(&format!("nonce: {other} {one}")));
        assert_ne!(of(&format!("nonce: {one} {other}")), of(&format!("nonce: {one} {one}")));
    }

    #[test]
    fn values_in_flight_are_those_of_the_host() {
        let buffer = |value: u64| format!("{:.8?}", crate::disk::block_of(value));
        let state = |value| format!("data: {} V{}", buffer(value), 7);
        assert_ne!(of(&state(6)), of(&state(7)));
        assert_eq!(of(&format!("{} V7", buffer(6))), of(&format!("{} V9", buffer(8))));
    }
}
