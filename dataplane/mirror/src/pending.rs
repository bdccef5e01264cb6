//! Names for requests under way.

use std::fmt;

/// A slab whose keys are never reused for another entry: a late answer to a request that is gone
/// finds nothing.
#[derive(Clone)]
pub(crate) struct Pending<T> {
    entries: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
    length: usize,
}

impl<T> Pending<T> {
    pub(crate) fn new() -> Self {
        Pending { entries: Vec::new(), free: Vec::new(), length: 0 }
    }

    pub(crate) fn insert(&mut self, value: T) -> u64 {
        self.length += 1;
        if let Some(index) = self.free.pop() {
            let entry = &mut self.entries[index as usize];
            entry.1 = Some(value);
            return key(index, entry.0);
        }
        let index = u32::try_from(self.entries.len())
            .expect("requests under way are bounded far below this");
        self.entries.push((0, Some(value)));
        key(index, 0)
    }

    pub(crate) fn remove(&mut self, key: u64) -> Option<T> {
        let index = (key & 0xFFFF_FFFF) as u32;
        let entry = self.entries.get_mut(index as usize)?;
        if u64::from(entry.0) != key >> 32 {
            return None;
        }
        let value = entry.1.take()?;
        entry.0 = entry.0.wrapping_add(1);
        self.free.push(index);
        self.length -= 1;
        Some(value)
    }

    pub(crate) fn get_mut(&mut self, key: u64) -> Option<&mut T> {
        let entry = self.entries.get_mut((key & 0xFFFF_FFFF) as usize)?;
        if u64::from(entry.0) == key >> 32 { entry.1.as_mut() } else { None }
    }

    pub(crate) fn get(&self, key: u64) -> Option<&T> {
        let entry = self.entries.get((key & 0xFFFF_FFFF) as usize)?;
        if u64::from(entry.0) == key >> 32 { entry.1.as_ref() } else { None }
    }

    pub(crate) fn len(&self) -> usize {
        self.length
    }

    pub(crate) fn keys(&self) -> Vec<u64> {
        let living = self.entries.iter().enumerate().filter(|(_, entry)| entry.1.is_some());
        living.map(|(index, entry)| key(u32::try_from(index).expect("bounded"), entry.0)).collect()
    }
}

/// What is under way, and which slots are taken next: two slabs that look the same go on alike,
/// whatever was in them before.
impl<T: fmt::Debug> fmt::Debug for Pending<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Slab {{ free: {:?}, entries: ", self.free)?;
        let entries = self.keys().into_iter().filter_map(|key| Some((key, self.get(key)?)));
        formatter.debug_map().entries(entries).finish()?;
        write!(formatter, " }}")
    }
}

fn key(index: u32, generation: u32) -> u64 {
    u64::from(generation) << 32 | u64::from(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_key_never_finds_a_later_entry() {
        let mut pending = Pending::new();
        let first = pending.insert("first");
        assert_eq!(pending.remove(first), Some("first"));
        let second = pending.insert("second");
        assert_ne!(first, second);
        assert_eq!(pending.remove(first), None);
        assert_eq!(pending.get(second), Some(&"second"));
        assert_eq!(pending.len(), 1);
        assert_eq!(pending.keys(), vec![second]);
    }
}
