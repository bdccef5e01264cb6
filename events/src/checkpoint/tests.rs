use super::*;
use crate::merkle::MerkleTree;
use crate::sample::{chain, position};
use voute_schemas::{Commit, Sequence};

fn signer(name: &str, number: u8) -> Signer {
    Signer::from_seed(name, [number; 32]).unwrap()
}

fn root() -> Hash {
    Hash::of(b"root")
}

#[test]
fn a_checkpoint_reads_as_the_specification_says() {
    let site = signer("site-a", 1);
    let note = site.sign("voute/demo", 7, root()).0;
    let (text, signatures) = note.split_once("\n\n").unwrap();
    assert_eq!(text, format!("voute/demo\n7\n{}", STANDARD.encode(root().0)));
    let line = signatures.strip_suffix('\n').unwrap();
    let encoded = line.strip_prefix("\u{2014} site-a ").unwrap();
    let bytes = STANDARD.decode(encoded).unwrap();
    assert_eq!(bytes.len(), 4 + 64);
    assert_eq!(bytes[..4], key_id(&site.verifier()));
}

#[test]
fn the_key_and_note_of_the_signed_note_package_verify() {
    // Key and note of the example in the documentation of golang.org/x/mod/sumdb/note.
    let verifier = Verifier {
        name: "PeterNeumann".into(),
        key: Hash(
            STANDARD.decode("ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW").unwrap()[1..]
                .try_into()
                .unwrap(),
        ),
    };
    assert_eq!(
        crate::note::verifier_text(&verifier),
        "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    );
    let note = "If you think cryptography is the answer to your problem,\n\
         then you don't know what your problem is.\n\
         \n\
         \u{2014} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";
    let note = Note::parse(note).unwrap();
    assert_eq!(bears_signature_of(&note, &verifier), Ok(true));
}

#[test]
fn a_majority_of_sites_makes_it_believed_and_a_minority_does_not() {
    let sites = [signer("a", 1), signer("b", 2), signer("c", 3)];
    let verifiers = sites.each_ref().map(Signer::verifier);
    let one = sites[0].sign("voute/x", 9, root());
    assert_eq!(
        verify(&one, &verifiers, 2),
        Err(CheckpointError::TooFewSignatures { found: 1, needed: 2 })
    );
    let two = sites[2].cosign(&one).unwrap();
    let believed = verify(&two, &verifiers, 2).unwrap();
    assert_eq!((believed.origin(), believed.size(), believed.root()), ("voute/x", 9, root()));
    assert_eq!(merge(&one, &sites[2].sign("voute/x", 9, root())).unwrap(), two);
    let other = sites[1].sign("voute/x", 10, root());
    assert_eq!(merge(&one, &other), Err(CheckpointError::Different));
}

#[test]
fn one_site_counts_once_however_often_it_signed_or_is_listed() {
    let site = signer("a", 1);
    let mut same_key = site.verifier();
    same_key.name = "b".into();
    let renamed = Signer::from_seed("b", [1; 32]).unwrap();
    let note = site.cosign(&renamed.cosign(&site.sign("o", 1, root())).unwrap()).unwrap();
    let verifiers = [site.verifier(), site.verifier(), same_key];
    assert_eq!(
        verify(&note, &verifiers, 2),
        Err(CheckpointError::TooFewSignatures { found: 1, needed: 2 })
    );
}

#[test]
fn zero_signatures_never_suffice() {
    let note = signer("a", 1).sign("o", 1, root());
    assert!(verify(&note, &[], 0).is_err());
}

#[test]
fn a_changed_text_or_signature_is_refused() {
    let site = signer("a", 1);
    let verifiers = [site.verifier()];
    let note = site.sign("voute/x", 41, root()).0;
    let changed = Checkpoint(note.replace("\n41\n", "\n42\n"));
    assert_eq!(
        verify(&changed, &verifiers, 1),
        Err(CheckpointError::FalseSignature { name: "a".into() })
    );
    let bytes = note.as_bytes();
    for at in 0..bytes.len() {
        let mut flipped = bytes.to_vec();
        flipped[at] ^= 1;
        let Ok(flipped) = String::from_utf8(flipped) else { continue };
        assert!(verify(&Checkpoint(flipped), &verifiers, 1).is_err(), "byte {at}");
    }
}

#[test]
fn malformed_notes_are_errors() {
    let long = "x".repeat(crate::note::NOTE_BYTES_MAX + 1);
    let many = format!("o\n1\nAA==\n\n{}", "\u{2014} a AAAAAAA=\n".repeat(65));
    for note in ["", "\n", "\n\n", "a\n\n", "a\n\nb\n", "a\n\n\u{2014} a b\n", &long, &many] {
        assert!(claim(&Checkpoint(note.into())).is_err(), "{note:.40?}");
    }
    let site = signer("a", 1);
    for text in ["o\n01\n", "o\n-1\n", "o\n18446744073709551616\n", "\n1\n"] {
        let text = format!("{text}{}\n", STANDARD.encode(root().0));
        let signatures = vec![site.sign_text(&text)];
        let note = Checkpoint(Note { text, signatures }.render());
        assert_eq!(verify(&note, &[site.verifier()], 1), Err(CheckpointError::Body));
    }
}

fn proven(size: usize) -> (VerifiedCheckpoint, Vec<Commit>, MerkleTree) {
    let commits = chain(Epoch::ZERO, size);
    let tree: MerkleTree = commits.iter().map(|commit| position(commit).hash).collect();
    let site = signer("a", 1);
    let note = site.sign("o", size as u64, tree.root(size as u64).unwrap());
    (verify(&note, &[site.verifier()], 1).unwrap(), commits, tree)
}

fn proof(commits: &[Commit], tree: &MerkleTree, number: u64) -> CommitProof {
    CommitProof {
        sequence: Sequence(number),
        commit: commits[number as usize - 1].encode(),
        path: tree.inclusion_proof(number - 1, commits.len() as u64).unwrap(),
    }
}

#[test]
fn each_commit_is_proven_with_its_position() {
    let (checkpoint, commits, tree) = proven(13);
    for number in 1..=13 {
        let (commit, epoch) = verify_commit(&checkpoint, &proof(&commits, &tree, number)).unwrap();
        assert_eq!((&commit, epoch), (&commits[number as usize - 1], position(&commit)));
    }
}

#[test]
fn a_commit_is_not_proven_under_another_number_or_content() {
    let (checkpoint, commits, tree) = proven(13);
    let good = proof(&commits, &tree, 5);
    for sequence in [0, 4, 6, 14, u64::MAX] {
        let moved = CommitProof { sequence: Sequence(sequence), ..good.clone() };
        assert!(verify_commit(&checkpoint, &moved).is_err());
    }
    let mut edited = good.clone();
    edited.commit[30] ^= 1;
    assert!(verify_commit(&checkpoint, &edited).is_err());
}

#[test]
fn a_key_survives_its_file_and_its_file_is_private() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("site.key");
    let made = Signer::load_or_create(&path, "site-a").unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let loaded = Signer::load_or_create(&path, "site-a").unwrap();
    assert_eq!(made.verifier(), loaded.verifier());
    assert!(matches!(Signer::load(&path, "site-b"), Err(SignerError::Unreadable { .. })));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(Signer::load(&path, "site-a"), Err(SignerError::Exposed { .. })));
}

#[test]
fn a_key_is_never_printed() {
    let site = signer("a", 7);
    let secret = STANDARD.encode([7; 32]);
    let shown = format!("{site:?}");
    assert!(!shown.contains(&secret[..20]) && !shown.contains("7, 7, 7"), "{shown}");
}

#[test]
fn names_that_break_a_note_are_refused() {
    for name in ["", "a b", "a+b", "a\nb", "a\u{a0}b"] {
        assert!(matches!(Signer::from_seed(name, [0; 32]), Err(SignerError::BadName { .. })));
    }
}

#[test]
fn each_sites_signature_can_be_taken_out_alone_and_joined_again() {
    let sites: Vec<Signer> =
        (1..=3).map(|seed| Signer::from_seed(&format!("s{seed}"), [seed; 32]).unwrap()).collect();
    let verifiers: Vec<Verifier> = sites.iter().map(Signer::verifier).collect();
    let both = sites[1].cosign(&sites[0].sign("log", 4, Hash([5; 32]))).unwrap();
    let (claim, signed) = signatures(&both, &verifiers).unwrap();
    assert_eq!((claim.size, signed.len()), (4, 2));
    assert_eq!(signed[0].0, verifiers[0]);
    assert!(verify(&signed[0].1, &verifiers, 2).is_err());
    let joined = merge(&signed[0].1, &signed[1].1).unwrap();
    assert!(verify(&joined, &verifiers, 2).is_ok());
    assert!(signatures(&both, &verifiers[2..]).unwrap().1.is_empty());
    let forged = Checkpoint(both.0.replace("\n4\n", "\n5\n"));
    assert!(matches!(signatures(&forged, &verifiers), Err(CheckpointError::FalseSignature { .. })));
}

#[test]
fn a_verifiers_text_reads_back_and_a_mistyped_one_does_not() {
    let verifier = Signer::from_seed("paris", [7; 32]).unwrap().verifier();
    let text = crate::note::verifier_text(&verifier);
    assert_eq!(parse_verifier(&format!(" {text}\n")), Some(verifier));
    assert_eq!(parse_verifier(&text.replace("paris", "lyon")), None);
    assert_eq!(parse_verifier(&text[..text.len() - 3]), None);
    assert_eq!(parse_verifier("paris"), None);
}
