use super::*;
use proptest::prelude::*;

/// The leaves of the test vectors of RFC 6962's reference implementation.
const LEAVES: [&str; 8] = [
    "",
    "00",
    "10",
    "2021",
    "3031",
    "40414243",
    "5051525354555657",
    "606162636465666768696a6b6c6d6e6f",
];

/// Roots over the first 1 to 8 of them.
const ROOTS: [&str; 8] = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
];

fn bytes(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|at| u8::from_str_radix(&text[at * 2..][..2], 16).unwrap()).collect()
}

fn hashes(texts: &[&str]) -> Vec<Hash> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn vector_tree() -> MerkleTree {
    LEAVES.iter().map(|leaf| Hash::of_commit(&bytes(leaf))).collect()
}

fn numbered_tree(size: u64) -> MerkleTree {
    (0..size).map(|number| Hash::of_commit(&number.to_be_bytes())).collect()
}

#[test]
fn roots_are_those_of_the_vectors() {
    let tree = vector_tree();
    assert_eq!(
        tree.root(0).unwrap().to_string(),
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    );
    for (size, root) in (1..).zip(ROOTS) {
        assert_eq!(tree.root(size).unwrap().to_string(), root, "size {size}");
    }
}

#[test]
fn inclusion_proofs_are_those_of_the_vectors() {
    let tree = vector_tree();
    let in_eight = hashes(&[
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ]);
    assert_eq!(tree.inclusion_proof(0, 8).unwrap(), in_eight);
    let sixth = hashes(&[
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]);
    assert_eq!(tree.inclusion_proof(5, 8).unwrap(), sixth);
    let third_of_three =
        hashes(&["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"]);
    assert_eq!(tree.inclusion_proof(2, 3).unwrap(), third_of_three);
    assert_eq!(tree.inclusion_proof(0, 1).unwrap(), []);
}

#[test]
fn consistency_proofs_are_those_of_the_vectors() {
    let tree = vector_tree();
    let one_eight = hashes(&[
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ]);
    assert_eq!(tree.consistency_proof(1, 8).unwrap(), one_eight);
    let six_eight = hashes(&[
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]);
    assert_eq!(tree.consistency_proof(6, 8).unwrap(), six_eight);
    let two_five = hashes(&[
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ]);
    assert_eq!(tree.consistency_proof(2, 5).unwrap(), two_five);
}

#[test]
fn every_proof_of_small_trees_holds_and_no_other_root_does() {
    let tree = numbered_tree(40);
    let wrong = Hash::of(b"wrong");
    for size in 1..=40 {
        let root = tree.root(size).unwrap();
        for index in 0..size {
            let path = tree.inclusion_proof(index, size).unwrap();
            let leaf = tree.leaf(index).unwrap();
            assert!(verify_inclusion(leaf, index, size, &path, root));
            assert!(!verify_inclusion(wrong, index, size, &path, root));
            assert!(!verify_inclusion(leaf, index, size, &path, wrong));
            assert!(!verify_inclusion(leaf, index + 1, size, &path, root));
        }
        for old in 0..=size {
            let path = tree.consistency_proof(old, size).unwrap();
            let old_root = tree.root(old).unwrap();
            assert!(verify_consistency(old, old_root, size, root, &path), "{old} {size}");
            assert!(!verify_consistency(old, wrong, size, root, &path), "{old} {size}");
            if old != 0 {
                assert!(!verify_consistency(old, old_root, size, wrong, &path), "{old} {size}");
            }
        }
    }
}

#[test]
fn what_lies_outside_the_tree_is_refused() {
    let tree = numbered_tree(5);
    assert_eq!(tree.root(6), Err(OutOfTree { size: 5, asked: 6 }));
    assert_eq!(tree.inclusion_proof(3, 3), Err(OutOfTree { size: 3, asked: 3 }));
    assert_eq!(tree.consistency_proof(4, 3), Err(OutOfTree { size: 3, asked: 4 }));
}

proptest! {
    #[test]
    fn a_falsified_path_proves_nothing(
        size in 2_u64..2_000, index in 0_u64..2_000, at in 0_usize..12, bit in 0_usize..256,
    ) {
        let index = index % size;
        let tree = numbered_tree(size);
        let root = tree.root(size).unwrap();
        let mut path = tree.inclusion_proof(index, size).unwrap();
        prop_assert!(verify_inclusion(tree.leaf(index).unwrap(), index, size, &path, root));
        let at = at % path.len();
        path[at].0[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(!verify_inclusion(tree.leaf(index).unwrap(), index, size, &path, root));
    }

    #[test]
    fn absurd_numbers_never_panic(index: u64, size: u64, nodes in 0_usize..70) {
        let path = vec![Hash::ZERO; nodes];
        prop_assert!(!verify_inclusion(Hash::ZERO, index, size, &path, Hash::ZERO) || nodes == 0);
        let _ = verify_consistency(index, Hash::ZERO, size, Hash::ZERO, &path);
    }
}
