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
const SESSIONS: [&str; 7] =
    ["session", "sessions", "barring", "life", "round", "number", "last_put"];

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Class {
    Commit,
    Session,
    Connection,
    Value,
    /// A nonce, hash or bar; a host's tag.
    Name,
    /// A key of a table of a node; those of links are known to both.
    Key(u8, Table),
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Table {
    Devices,
    Links,
    Works,
    Copies,
    Operations,
    Joints,
}

impl Class {
    fn is_ranked(self) -> bool {
        match self {
            Class::Commit | Class::Session | Class::Connection | Class::Value => true,
            Class::Name | Class::Key(..) => false,
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
    digest(&Reader { text, at: 0, now: 0, node: 0 }.items())
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
    let mut digest = Digest::default();
    for item in items {
        match item {
            Item::Number(class, number) if class.is_ranked() => {
                let numbers = ranked.get(class).map_or(&[][..], Vec::as_slice);
                let rank = numbers.binary_search(number).unwrap_or(usize::MAX);
                digest.add(1, rank as u64);
            }
            Item::Number(class, number) => {
                let next = named.len();
                digest.add(2, *named.entry((*class, *number)).or_insert(next) as u64);
            }
            Item::Plain(number) => digest.add(3, *number as u64),
            Item::Time(ago) => digest.add(4, *ago as u64),
            Item::Text(text) => digest.add(5, *text),
        }
    }
    digest.0
}

/// Folded multiplication: 64 bits, of which each depends on everything that went in.
#[derive(Default)]
struct Digest(u64);

impl Digest {
    fn add(&mut self, kind: u64, value: u64) {
        let one = u128::from(self.0 ^ value ^ 0x9E37_79B9_7F4A_7C15);
        let other = u128::from(self.0.rotate_left(29) ^ 0xD1B5_4A32_D192_ED03 ^ kind << 48);
        let product = one.wrapping_mul(other | 1);
        self.0 = (product as u64) ^ (product >> 64) as u64 ^ value.rotate_left(32);
    }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    now: i128,
    /// Whose clock was set last: the nodes describe themselves one after the other.
    node: u8,
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
        self.node = self.node.saturating_add(1);
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
            Ok(number) => Some(number_item(number, self.node, top, frames)),
            Err(_) => Some(match time(run) {
                Some(time) => Item::Time((time - self.now).max(-PAST)),
                None => Item::Text(digest_of(run)),
            }),
        }
    }
}

fn number_item(number: u128, node: u8, top: Frame<'_>, frames: &[Frame<'_>]) -> Item {
    let class = match (top.name, top.index) {
        ("Sequence", _) => Some(Class::Commit),
        ("Bar", _) => Some(Class::Session),
        ("Owner" | "Keeper", _) if !top.is_struct => Some(Class::Session),
        _ if COMMITS.contains(&top.field) => Some(Class::Commit),
        _ if top.field == "connection" => Some(Class::Connection),
        _ if SESSIONS.contains(&top.field) => Some(Class::Session),
        _ => None,
    };
    match (class, table(number, top, frames)) {
        (Some(class), _) if number < NAMES => Item::Number(class, number),
        (None, Some(Table::Links)) => Item::Number(Class::Key(0, Table::Links), number),
        (None, Some(table)) => Item::Number(Class::Key(node, table), number & !COPY_BIT),
        // The generation of a page, with its writer.
        (None, None) if top.index == 0 && is_page(frames) => Item::Plain(0),
        (None, None) if number < NAMES => Item::Plain(number),
        (Some(_), _) | (None, None) => Item::Number(Class::Name, number),
    }
}

/// Marks the claims of copies among those of works.
const COPY_BIT: u128 = 1 << 63;

/// Of which table a number is a key, if it is one.
fn table(number: u128, top: Frame<'_>, frames: &[Frame<'_>]) -> Option<Table> {
    match (top.name, top.field) {
        ("DeviceTag", _) => return Some(Table::Devices),
        ("LinkTag", _) | ("IncomingTag", "command") => return Some(Table::Links),
        ("Work" | "Intent" | "PeerRead", _) if !top.is_struct => return Some(Table::Works),
        ("Copy", _) if !top.is_struct => return Some(Table::Copies),
        ("Joint", _) if !top.is_struct => return Some(Table::Joints),
        ("Operation", "key") | (_, "preparing") => return Some(Table::Operations),
        ("Range", "key") if number & COPY_BIT != 0 => return Some(Table::Copies),
        ("Range", "key") => return Some(Table::Works),
        _ => {}
    }
    // A key itself: in the map of the entries of a slab.
    let [.., of, slab, map] = frames else { return None };
    if slab.name != "Slab" || slab.field != "entries" || map.name != "entries" {
        return None;
    }
    match of.field {
        "devices" => Some(Table::Devices),
        "links" => Some(Table::Links),
        "works" => Some(Table::Works),
        "copies" => Some(Table::Copies),
        "operations" => Some(Table::Operations),
        "joints" => Some(Table::Joints),
        _ => None,
    }
}

fn is_page(frames: &[Frame<'_>]) -> bool {
    matches!(frames, [.., list, tuple] if list.field == "pages" && tuple.name.is_empty())
}

fn digest_of(text: &str) -> u64 {
    let mut digest = Digest::default();
    for chunk in text.as_bytes().chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        digest.add(chunk.len() as u64, u64::from_le_bytes(word));
    }
    digest.0
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
