use super::world::*;
use voute_schemas::Hash;
use voute_schemas::command::Command;
use voute_schemas::event::{Event, Role};
use voute_schemas::ids::{ClusterId, CredentialId};
use voute_schemas::proof::Verifier;

fn issue(number: u8, role: Role) -> Command {
    Command::IssueCredential {
        credential: CredentialId(uuid(number.into())),
        name: name(&format!("credential-{number}")),
        role,
        verifier: Hash([number; 32]),
    }
}

fn revoke(number: u8) -> Command {
    Command::RevokeCredential { credential: CredentialId(uuid(number.into())) }
}

#[test]
fn a_log_begins_with_its_cluster_and_has_only_one() {
    let log_site = Verifier { name: "w".to_owned(), key: Hash([7; 32]) };
    let create =
        Command::CreateCluster { cluster: ClusterId(uuid(9)), name: name("town"), log_site };
    let mut world = World::default();
    assert_eq!(world.refuses(issue(1, Role::Viewer)).0, "no-cluster");
    let events = world.must(create.clone());
    assert!(matches!(
        events[..],
        [Event::ClusterCreated { .. }, Event::ClusterLevelRaised { level: 1 }]
    ));
    assert_eq!(world.state.cluster().unwrap().level, 1);
    assert_eq!(world.refuses(create).0, "cluster-exists");
}

#[test]
fn a_credential_is_found_by_the_hash_of_its_secret() {
    let mut world = World::founded();
    world.must(issue(1, Role::Administrator));
    let (id, credential) = world.state.credential_of_verifier(Hash([1; 32])).unwrap();
    assert_eq!((id, credential.role), (CredentialId(uuid(1)), Role::Administrator));
    assert!(world.state.credential_of_verifier(Hash([2; 32])).is_none());
}

#[test]
fn two_credentials_share_neither_name_nor_id_nor_secret() {
    let mut world = World::founded();
    world.must(issue(1, Role::Viewer));
    assert_eq!(world.refuses(issue(1, Role::Viewer)).0, "duplicate-id");
    let same = |credential, text: &str, secret| Command::IssueCredential {
        credential: CredentialId(uuid(credential)),
        name: name(text),
        role: Role::Viewer,
        verifier: Hash([secret; 32]),
    };
    assert_eq!(world.refuses(same(2, "credential-1", 2)).0, "duplicate-name");
    assert_eq!(world.refuses(same(2, "credential-2", 1)).0, "duplicate-secret");
}

#[test]
fn the_last_administrator_cannot_be_revoked() {
    let mut world = World::founded();
    world.must(issue(1, Role::Administrator));
    world.must(issue(2, Role::Operator));
    assert_eq!(world.refuses(revoke(1)).0, "last-administrator");
    assert_eq!(world.refuses(revoke(9)).0, "unknown-id");
    world.must(issue(3, Role::Administrator));
    let events = world.must(revoke(1));
    assert_eq!(events, [Event::CredentialRevoked { credential: CredentialId(uuid(1)) }]);
    assert!(world.state.credential_of_verifier(Hash([1; 32])).is_none());
    assert_eq!(world.refuses(revoke(3)).0, "last-administrator");
    world.must(issue(1, Role::Viewer)); // its name and id are free again
}

fn log_site(name: &str, key: u8) -> Verifier {
    Verifier { name: name.to_owned(), key: Hash([key; 32]) }
}

#[test]
fn log_sites_come_and_go_one_by_one() {
    let mut world = World::founded();
    let first = world.state.cluster().unwrap().log_sites.clone();
    let change = |add: &[Verifier], remove: &[&str]| Command::ChangeLogSites {
        add: add.to_vec(),
        remove: remove.iter().map(|name| (*name).to_owned()).collect(),
    };
    let (b, c) = (log_site("b", 21), log_site("c", 22));
    for at_once in [
        change(&[b.clone(), c.clone()], &[]),
        change(std::slice::from_ref(&b), &[&first[0].name]),
        change(&[], &[]),
    ] {
        assert_eq!(world.refuses(at_once).0, "log-sites-at-once");
    }
    world.must(change(std::slice::from_ref(&b), &[]));
    world.must(change(std::slice::from_ref(&c), &[]));
    let all = [first.clone(), vec![b, c]].concat();
    assert_eq!(world.state.cluster().unwrap().log_sites, all);
    // The same key under another name would be the same site to some and another to others.
    assert_eq!(world.refuses(change(&[log_site("d", 22)], &[])).0, "log-site-taken");
    world.must(change(&[log_site("d", 23)], &[]));
    let events = world.must(change(&[], &["c"]));
    assert!(matches!(&events[..], [Event::LogSitesChanged { sites }] if sites.len() == 3));
    // Each set stays known with the commit that named it.
    let named = &world.state.cluster().unwrap().log_sites_named;
    assert_eq!(named.iter().map(|it| it.sites.len()).collect::<Vec<_>>(), [1, 2, 3, 4, 3]);
    assert_eq!(named.last().unwrap().sequence, world.state.position().sequence);
    let reseeding = |name: &str| Command::RecordReseeding {
        name: name.to_owned(),
        size: 3,
        root: Hash([3; 32]),
    };
    assert_eq!(world.refuses(reseeding("e")).0, "unknown-log-site");
    world.must(reseeding("b"));
    assert_eq!(world.state.cluster().unwrap().log_sites.len(), 3);
}

#[test]
fn log_sites_share_neither_name_nor_key_and_the_last_one_stays() {
    let world = World::founded();
    let only = world.state.cluster().unwrap().log_sites[0].clone();
    let add = |site: Verifier| Command::ChangeLogSites { add: vec![site], remove: vec![] };
    assert_eq!(world.refuses(add(log_site(&only.name, 30))).0, "log-site-taken");
    assert_eq!(
        world.refuses(add(Verifier { name: "x".into(), key: only.key })).0,
        "log-site-taken"
    );
    for bad in ["", "two words", "a+b"] {
        assert_eq!(world.refuses(add(log_site(bad, 31))).0, "invalid", "{bad:?}");
    }
    let remove =
        |name: &str| Command::ChangeLogSites { add: vec![], remove: vec![name.to_owned()] };
    assert_eq!(world.refuses(remove("nobody")).0, "unknown-log-site");
    assert_eq!(world.refuses(remove(&only.name)).0, "invalid");
}
