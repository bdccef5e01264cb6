//! The log's Merkle tree (RFC 6962 §2.1, RFC 9162 §2.1): leaf i is the hash of commit i + 1.
//!
//! Every complete subtree's root is kept, level by level: 64 bytes per commit in all, and any root
//! or proof, also of an earlier size, takes O(log n) hashes.

use voute_schemas::Hash;

/// An append-only tree over leaf hashes.
#[derive(Clone, Default, Debug)]
pub struct MerkleTree {
    /// `levels[k][i]` is the root of leaves `i·2^k` to `(i + 1)·2^k - 1`.
    levels: Vec<Vec<Hash>>,
}

/// Why a proof cannot be made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the tree has {size} leaves; {asked} was asked for")]
pub struct OutOfTree {
    /// Leaves in the tree (or in the size that was asked for).
    pub size: u64,
    /// What was asked for.
    pub asked: u64,
}

impl MerkleTree {
    /// A tree without leaves.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of leaves.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.levels.first().map_or(0, |leaves| leaves.len() as u64)
    }

    /// The hash of leaf `index`, from 0.
    #[must_use]
    pub fn leaf(&self, index: u64) -> Option<Hash> {
        self.levels.first()?.get(usize::try_from(index).ok()?).copied()
    }

    /// Appends a leaf hash ([`Hash::of_commit`]).
    pub fn push(&mut self, leaf: Hash) {
        let mut node = leaf;
        for level in 0.. {
            if level == self.levels.len() {
                self.levels.push(Vec::new());
            }
            let nodes = &mut self.levels[level];
            grow_gently(nodes);
            nodes.push(node);
            if !nodes.len().is_multiple_of(2) {
                return;
            }
            node = Hash::of_children(nodes[nodes.len() - 2], nodes[nodes.len() - 1]);
        }
    }

    /// The root over the first `size` leaves; SHA-256 of nothing for none.
    ///
    /// # Errors
    /// [`OutOfTree`] for more leaves than there are.
    pub fn root(&self, size: u64) -> Result<Hash, OutOfTree> {
        if size > self.size() {
            return Err(OutOfTree { size: self.size(), asked: size });
        }
        Ok(if size == 0 { Hash::of(&[]) } else { self.subtree(0, size) })
    }

    /// The audit path of leaf `index` (from 0) in the tree of the first `size` leaves, lowest node
    /// first (RFC 6962 §2.1.1).
    ///
    /// # Errors
    /// [`OutOfTree`] unless `index < size` and `size` leaves are there.
    pub fn inclusion_proof(&self, index: u64, size: u64) -> Result<Vec<Hash>, OutOfTree> {
        if size > self.size() {
            return Err(OutOfTree { size: self.size(), asked: size });
        }
        if index >= size {
            return Err(OutOfTree { size, asked: index });
        }
        let (mut first, mut end) = (0, size);
        let mut path = Vec::new();
        while end - first > 1 {
            let middle = first + split(end - first);
            if index < middle {
                path.push(self.subtree(middle, end));
                end = middle;
            } else {
                path.push(self.subtree(first, middle));
                first = middle;
            }
        }
        path.reverse();
        Ok(path)
    }

    /// Proof that the tree of the first `new` leaves extends that of the first `old`
    /// (RFC 6962 §2.1.2); empty for `old` = 0 or `old` = `new`.
    ///
    /// # Errors
    /// [`OutOfTree`] unless `old ≤ new` and `new` leaves are there.
    pub fn consistency_proof(&self, old: u64, new: u64) -> Result<Vec<Hash>, OutOfTree> {
        if new > self.size() {
            return Err(OutOfTree { size: self.size(), asked: new });
        }
        if old > new {
            return Err(OutOfTree { size: new, asked: old });
        }
        if old == 0 || old == new {
            return Ok(Vec::new());
        }
        let (mut first, mut end, mut rest) = (0, new, old);
        let mut is_old_root = true;
        let mut path = Vec::new();
        while rest != end - first {
            let left = split(end - first);
            if rest <= left {
                path.push(self.subtree(first + left, end));
                end = first + left;
            } else {
                path.push(self.subtree(first, first + left));
                first += left;
                rest -= left;
                is_old_root = false;
            }
        }
        if !is_old_root {
            path.push(self.subtree(first, end));
        }
        path.reverse();
        Ok(path)
    }

    /// Root of leaves `first` to `end - 1`, where `first` is a multiple of the largest power of two
    /// below their number, as every subtree of RFC 6962 is.
    fn subtree(&self, first: u64, end: u64) -> Hash {
        let leaves = end - first;
        if leaves.is_power_of_two() {
            let level = leaves.trailing_zeros();
            let index = usize::try_from(first >> level).expect("nodes are in memory");
            return self.levels[level as usize][index];
        }
        let middle = first + split(leaves);
        Hash::of_children(self.subtree(first, middle), self.subtree(middle, end))
    }
}

impl FromIterator<Hash> for MerkleTree {
    fn from_iter<I: IntoIterator<Item = Hash>>(leaves: I) -> Self {
        let mut tree = MerkleTree::new();
        tree.extend(leaves);
        tree
    }
}

impl Extend<Hash> for MerkleTree {
    fn extend<I: IntoIterator<Item = Hash>>(&mut self, leaves: I) {
        leaves.into_iter().for_each(|leaf| self.push(leaf));
    }
}

/// Grows by an eighth instead of doubling, so that a large tree keeps near 64 bytes per commit.
fn grow_gently(nodes: &mut Vec<Hash>) {
    if nodes.len() == nodes.capacity() {
        nodes.reserve_exact((nodes.len() / 8).max(32));
    }
}

/// Largest power of two below `leaves`, which is at least 2.
fn split(leaves: u64) -> u64 {
    1 << (leaves - 1).ilog2()
}

/// Whether `path` leads from leaf `index` (from 0) to `root` in a tree of `size` leaves
/// (RFC 9162 §2.1.3.2). Bytes from outside may be anything.
#[must_use]
pub fn verify_inclusion(leaf: Hash, index: u64, size: u64, path: &[Hash], root: Hash) -> bool {
    if index >= size {
        return false;
    }
    let (mut first, mut last, mut node) = (index, size - 1, leaf);
    for sibling in path {
        if last == 0 {
            return false;
        }
        if first & 1 == 1 || first == last {
            node = Hash::of_children(*sibling, node);
            if first & 1 == 0 {
                while first & 1 == 0 && first != 0 {
                    first >>= 1;
                    last >>= 1;
                }
            }
        } else {
            node = Hash::of_children(node, *sibling);
        }
        first >>= 1;
        last >>= 1;
    }
    last == 0 && node == root
}

/// Whether `path` shows that a tree of `new` leaves and root `new_root` extends one of `old` leaves
/// and root `old_root` (RFC 9162 §2.1.4.2).
#[must_use]
pub fn verify_consistency(
    old: u64,
    old_root: Hash,
    new: u64,
    new_root: Hash,
    path: &[Hash],
) -> bool {
    if old > new {
        return false;
    }
    if old == 0 {
        return path.is_empty() && old_root == Hash::of(&[]);
    }
    if old == new {
        return path.is_empty() && old_root == new_root;
    }
    let (mut first, mut last) = (old - 1, new - 1);
    while first & 1 == 1 {
        first >>= 1;
        last >>= 1;
    }
    let mut path = path.iter();
    // A complete old tree is itself the first node of the path.
    let begin = if old.is_power_of_two() { Some(&old_root) } else { path.next() };
    let Some(begin) = begin else { return false };
    let (mut old_node, mut new_node) = (*begin, *begin);
    for sibling in path {
        if last == 0 {
            return false;
        }
        if first & 1 == 1 || first == last {
            old_node = Hash::of_children(*sibling, old_node);
            new_node = Hash::of_children(*sibling, new_node);
            while first & 1 == 0 && first != 0 {
                first >>= 1;
                last >>= 1;
            }
        } else {
            new_node = Hash::of_children(new_node, *sibling);
        }
        first >>= 1;
        last >>= 1;
    }
    last == 0 && old_node == old_root && new_node == new_root
}

#[cfg(test)]
mod tests;
