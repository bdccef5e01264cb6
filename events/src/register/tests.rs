use super::*;
use crate::checkpoint::verify;

fn tree(size: u64, branch: u8) -> MerkleTree {
    // Branches share their first five leaves.
    let leaf = |number: u64| {
        let branch = if number < 5 { 0 } else { branch };
        Hash::of_commit(&[number as u8, branch])
    };
    (0..size).map(leaf).collect()
}

fn signer() -> Signer {
    Signer::from_seed("a", [1; 32]).unwrap()
}

fn temporary() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("register");
    (directory, path)
}

#[test]
fn it_signs_growth_and_repeats_itself() {
    let (_directory, path) = temporary();
    let mut register = SignedRegister::open(&path).unwrap();
    let tree = tree(9, 0);
    let first = register.sign(&signer(), "o", &tree, 7).unwrap();
    assert_eq!(register.sign(&signer(), "o", &tree, 7).unwrap(), first);
    let second = register.sign(&signer(), "o", &tree, 9).unwrap();
    assert_eq!(verify(&second, &[signer().verifier()], 1).unwrap().size(), 9);
}

#[test]
fn a_restarted_site_never_signs_a_lower_size() {
    let (_directory, path) = temporary();
    let mut register = SignedRegister::open(&path).unwrap();
    register.sign(&signer(), "o", &tree(9, 0), 9).unwrap();
    drop(register);
    let mut register = SignedRegister::open(&path).unwrap();
    assert_eq!(register.signed().size, 9);
    let shorter = register.sign(&signer(), "o", &tree(8, 0), 8);
    assert!(matches!(shorter, Err(RegisterError::Shorter { size: 8, signed: 9 })));
    let lower = register.sign(&signer(), "o", &tree(9, 0), 8);
    assert!(matches!(lower, Err(RegisterError::Shorter { size: 8, signed: 9 })));
}

#[test]
fn a_restarted_site_never_signs_another_branch_of_any_size() {
    let (_directory, path) = temporary();
    let mut register = SignedRegister::open(&path).unwrap();
    register.sign(&signer(), "o", &tree(9, 0), 9).unwrap();
    drop(register);
    let mut register = SignedRegister::open(&path).unwrap();
    for size in [9, 12] {
        let forked = register.sign(&signer(), "o", &tree(size, 1), size);
        assert!(matches!(forked, Err(RegisterError::Forked { size: 9, .. })));
    }
    assert!(register.sign(&signer(), "o", &tree(12, 0), 12).is_ok());
}

#[test]
fn only_what_the_own_copy_says_is_cosigned() {
    let (_directory, path) = temporary();
    let mut register = SignedRegister::open(&path).unwrap();
    let other = Signer::from_seed("b", [2; 32]).unwrap();
    let own = tree(9, 0);
    let lie = other.sign("o", 9, tree(9, 1).root(9).unwrap());
    assert!(register.cosign(&signer(), "o", &own, &lie).is_err());
    let elsewhere = other.sign("p", 9, own.root(9).unwrap());
    assert!(register.cosign(&signer(), "o", &own, &elsewhere).is_err());
    assert_eq!(register.signed().size, 0);
    let truth = other.sign("o", 9, own.root(9).unwrap());
    let both = register.cosign(&signer(), "o", &own, &truth).unwrap();
    assert!(verify(&both, &[signer().verifier(), other.verifier()], 2).is_ok());
    assert_eq!(register.signed().size, 9);
}

#[test]
fn a_torn_slot_loses_nothing_that_was_signed() {
    let (_directory, path) = temporary();
    let mut register = SignedRegister::open(&path).unwrap();
    register.sign(&signer(), "o", &tree(9, 0), 9).unwrap();
    drop(register);
    let whole = std::fs::read(&path).unwrap();
    for slot in 0..2 {
        let mut torn = whole.clone();
        torn[slot * SLOT_BYTES + 16..][..20].fill(0xee);
        std::fs::write(&path, torn).unwrap();
        assert_eq!(SignedRegister::open(&path).unwrap().signed().size, 9);
        assert_eq!(std::fs::read(&path).unwrap(), whole, "it is repaired from the other");
    }
}

#[test]
fn a_damaged_register_is_never_taken_for_a_new_one() {
    let (_directory, path) = temporary();
    for content in [vec![], vec![0; 1_024], vec![7; 100]] {
        std::fs::write(&path, content).unwrap();
        assert!(matches!(SignedRegister::open(&path), Err(RegisterError::Damaged { .. })));
    }
    let nothing = Signed { size: 0, root: Hash::of(&[]) };
    assert!(SignedRegister::seed(&path, nothing).is_err(), "nor overwritten");
}

#[test]
fn a_site_has_one_signer() {
    let (_directory, path) = temporary();
    let _register = SignedRegister::open(&path).unwrap();
    assert!(matches!(SignedRegister::open(&path), Err(RegisterError::Locked { .. })));
}
