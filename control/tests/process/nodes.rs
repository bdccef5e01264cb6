//! The node contract: from the first device to a failover.

use crate::client::{Control, PATIENCE};
use crate::fake_node::{FakeNode, hello, open, text};
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio_tungstenite::tungstenite::Message;
use voute_schemas::command::Escalation;
use voute_schemas::contract::{EscalationOutcome, ToNode};
use voute_schemas::event::DetachCause;
use voute_schemas::{EscalationId, SiteId};

/// A node with a pool and a device, all of this name; with its id and secret.
async fn admit(control: &Control, name: &str, site: &str) -> (FakeNode, (String, String)) {
    let nodes = control.get("/v1/nodes").await.body["items"].as_array().unwrap().len();
    let base = 20_000 + nodes * 10;
    let node = json!({
        "name": format!("node-{name}"), "site": site,
        "nvme": format!("127.0.0.1:{base}"),
        "iscsi": format!("127.0.0.1:{}", base + 1),
        "link": format!("127.0.0.1:{}", base + 2),
    });
    let admitted = control.create("/v1/nodes", node).await;
    let id = admitted["created"].as_str().unwrap().to_owned();
    let secret = admitted["secret"].as_str().unwrap().to_owned();
    let node = FakeNode::connect(control.address(), &id, &secret, 1).await;
    let pool = format!("pool-{name}");
    control.create("/v1/pools", json!({"name": pool, "site": site})).await;
    let device = json!({
        "name": format!("disk-{name}"), "node": format!("node-{name}"), "pool": pool,
        "locator": {"Memory": {"size_bytes": 4u64 << 30}},
    });
    control.create("/v1/devices", device).await;
    let adopted = |body: &Value| body["state"] == "adopted";
    control.until(&format!("/v1/devices/disk-{name}"), adopted).await;
    (node, (id, secret))
}

struct Pair {
    control: Control,
    a: FakeNode,
    b: FakeNode,
    secrets: [(String, String); 2],
}

impl Pair {
    /// Two sites with a node and a pool each.
    async fn start() -> Self {
        let control = Control::start().await;
        let mut nodes = Vec::new();
        let mut secrets = Vec::new();
        for site in ["north", "south"] {
            control.create("/v1/sites", json!({"name": site, "kind": "Data"})).await;
            let (node, secret) = admit(&control, site, site).await;
            nodes.push(node);
            secrets.push(secret);
        }
        let b = nodes.pop().unwrap();
        let a = nodes.pop().unwrap();
        let secrets = secrets.try_into().unwrap();
        Pair { control, a, b, secrets }
    }

    async fn volume(&self, name: &str) -> Value {
        self.volume_in(name, "pool-north").await
    }

    /// Owned where this pool is, with its other leg in the south.
    async fn volume_in(&self, name: &str, pool: &str) -> Value {
        let body = json!({
            "name": name, "size_bytes": 64 << 20, "pools": [pool, "pool-south"],
            "policy": "automatic",
        });
        self.control.create("/v1/volumes", body).await;
        self.until_volume(name, |volume| volume["health"] == "healthy" && volume["armed"] == true)
            .await
    }

    async fn until_volume(&self, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        self.control.until(&format!("/v1/volumes/{name}"), wanted).await
    }

    /// The only cause why `v1` is not armed.
    async fn until_not_armed(&self, why: &str) {
        self.until_volume("v1", |it| {
            let causes = it["not_armed_because"].as_array();
            it["armed"] == false
                && causes.is_some_and(|it| it.len() == 1 && it[0].as_str().unwrap().contains(why))
        })
        .await;
    }

    async fn set_policy(&self, mode: &str) {
        let body = json!({"rules": {"mode": mode}});
        let answer = self.control.send("PUT", "/v1/policies/automatic", &[], Some(body)).await;
        assert_eq!(answer.status, 200, "{}", answer.text);
    }

    async fn reconnect(&self, index: usize, incarnation: u64) -> FakeNode {
        let (id, secret) = &self.secrets[index];
        FakeNode::connect(self.control.address(), id, secret, incarnation).await
    }

    async fn commands(&self) -> Vec<String> {
        let audit = self.control.get("/v1/audit?limit=1000").await.body;
        let commits = audit["commits"].as_array().unwrap();
        commits.iter().map(|it| it["commit"]["command"].as_str().unwrap().to_owned()).collect()
    }
}

#[tokio::test]
async fn a_volume_is_created_formatted_and_served_through_the_stream() {
    let pair = Pair::start().await;
    let volume = pair.volume("v1").await;
    assert_eq!(volume["owner"]["name"], "node-north");
    assert_eq!(volume["not_armed_because"], json!([]));
    assert!(volume["legs"].as_array().unwrap().iter().all(|leg| leg["formatted"] == true));
    // Each node knows extents of its own leg only.
    for node in [&pair.a, &pair.b] {
        let inside = node.inside();
        let group = inside.groups.values().next().unwrap();
        for leg in &group.volumes[0].legs {
            assert_eq!(leg.runs.is_empty(), leg.node != node.node);
        }
    }
    let free = pair.control.get("/v1/pools/pool-north").await.body["free_bytes"].clone();
    assert_eq!(pair.control.delete("/v1/volumes/v1").await.status, 200);
    // The legs are released by their nodes, and only then are their extents free again.
    pair.control
        .until("/v1/pools/pool-north", |pool| pool["free_bytes"].as_u64() > free.as_u64())
        .await;
    pair.a.until("no group", |inside| inside.groups.is_empty().then_some(())).await;
}

#[tokio::test]
async fn a_killed_site_fails_over_in_one_commit_and_the_log_tells_how() {
    let pair = Pair::start().await;
    for name in ["v1", "v2", "v3"] {
        pair.volume(name).await;
    }
    let began = Instant::now();
    let Pair { control, a, b, secrets } = pair;
    a.kill();
    b.inside().owner_silent = true;
    for name in ["v1", "v2", "v3"] {
        control
            .until(&format!("/v1/volumes/{name}"), |volume| {
                volume["owner"]["name"] == "node-south" && volume["health"] != "down"
            })
            .await;
    }
    assert!(began.elapsed().as_millis() < 3_000, "{:?}", began.elapsed());
    let failovers =
        control.until("/v1/failovers", |body| !body["items"][0]["phases"].is_null()).await;
    assert_eq!(failovers["items"].as_array().unwrap().len(), 1, "{failovers}");
    let failover = &failovers["items"][0];
    assert_eq!(failover["site"]["name"], "north");
    assert_eq!(failover["evidence"]["condition"], "Lost");
    let phases = &failover["phases"];
    assert_eq!(phases["groups"], 3);
    assert!(phases["detection_ms"].as_u64().unwrap() >= 500, "{phases}");
    assert_eq!((&phases["lease_wait_ms"], &phases["open_ms"]), (&json!(3), &json!(7)));
    assert_eq!(phases["first_io_ms"], 15);
    let sequence = failover["sequence"].as_u64().unwrap();
    let audit = control.get(&format!("/v1/audit?from={sequence}&limit=1")).await.body;
    let events = audit["commits"][0]["commit"]["outcome"]["Accepted"].as_array().unwrap().clone();
    let moves = events.iter().filter(|event| event.get("OwnerMoved").is_some()).count();
    assert_eq!(moves, 3, "one commit moves all");
    assert_eq!(control.get("/v1/sites/north").await.body["condition"], "Lost");
    // Back again: the site counts as normal, its side follows without being in sync.
    let pair = Pair {
        a: FakeNode::connect(control.address(), &secrets[0].0, &secrets[0].1, 2).await,
        control,
        b,
        secrets,
    };
    pair.control.until("/v1/sites/north", |site| site["condition"] == "Normal").await;
    let volume = pair.until_volume("v1", |volume| volume["health"] == "degraded").await;
    assert_eq!(volume["armed"], false);
}

#[tokio::test]
async fn a_dead_node_loses_its_groups_while_its_sibling_keeps_its_own() {
    let pair = Pair::start().await;
    let (sibling, _) = admit(&pair.control, "north-2", "north").await;
    for name in ["v1", "v2"] {
        pair.volume(name).await;
    }
    assert_eq!(pair.volume_in("v3", "pool-north-2").await["owner"]["name"], "node-north-2");
    // Its control stream alone is silent: the other side hears it, so that nothing moves.
    pair.a.inside().mute = true;
    pair.control.until("/v1/nodes/node-north", |it| it["observed"]["heard"] == false).await;
    let head = pair.control.head().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(pair.control.head().await, head, "nothing was committed");
    // Now it dies.
    let Pair { control, a, b, .. } = pair;
    b.inside().silent_owners.insert(a.node);
    a.kill();
    for name in ["v1", "v2"] {
        control
            .until(&format!("/v1/volumes/{name}"), |volume| {
                volume["owner"]["name"] == "node-south" && volume["health"] != "down"
            })
            .await;
    }
    let failovers =
        control.until("/v1/failovers", |body| !body["items"][0]["phases"].is_null()).await;
    assert_eq!(failovers["items"].as_array().unwrap().len(), 1, "{failovers}");
    let failover = &failovers["items"][0];
    assert_eq!(
        (&failover["phases"]["groups"], &failover["evidence"]["left_behind_total"]),
        (&json!(2), &json!(0))
    );
    assert_eq!(
        (&failover["site"]["name"], &failover["evidence"]["condition"]),
        (&json!("north"), &json!("Normal"))
    );
    let observed = failover["evidence"]["observed"].as_str().unwrap();
    assert!(observed.starts_with("node node-north silent"), "{observed}");
    let site = control.get("/v1/sites/north").await.body;
    assert_eq!((&site["condition"], &site["nodes_heard"]), (&json!("Normal"), &json!(1)));
    let volume = control.get("/v1/volumes/v3").await.body;
    assert_eq!(
        (&volume["owner"]["name"], &volume["health"]),
        (&json!("node-north-2"), &json!("healthy"))
    );
    assert!(!sibling.inside().groups.is_empty());
}

#[tokio::test]
async fn a_volume_says_whether_it_would_fail_over_and_if_not_why() {
    let pair = Pair::start().await;
    pair.b.inside().formats_later = true;
    let body = json!({
        "name": "v1", "size_bytes": 64 << 20, "pools": ["pool-north", "pool-south"],
        "policy": "automatic",
    });
    pair.control.create("/v1/volumes", body).await;
    pair.until_not_armed("its legs at south are not formatted").await;
    pair.b.inside().formats_later = false;
    pair.until_volume("v1", |it| it["armed"] == true).await;
    for (mode, why) in [("Manual", "only when told"), ("OnSignal", "only on signals")] {
        pair.set_policy(mode).await;
        pair.until_not_armed(why).await;
    }
    pair.set_policy("Automatic").await;
    pair.b.inside().legs_closed = true;
    pair.until_not_armed("its legs on node node-south cannot serve").await;
    pair.b.inside().legs_closed = false;
    pair.until_volume("v1", |it| it["armed"] == true).await;
    let signal = |condition: &str| json!({"condition": condition, "detail": "new cables"});
    pair.control.create("/v1/sites/north/signal", signal("Maintenance")).await;
    pair.until_not_armed("in maintenance").await;
    pair.control.create("/v1/sites/north/signal", signal("Normal")).await;
    let volume = pair.until_volume("v1", |it| it["armed"] == true).await;
    let south: SiteId = volume["sides"][1]["site"]["id"].as_str().unwrap().parse().unwrap();
    let (group, epoch) = {
        let inside = pair.a.inside();
        let group = inside.groups.values().next().unwrap();
        (group.group, group.epoch)
    };
    let cause = DetachCause::Unreachable;
    let detach = Escalation::DetachSide { group, epoch, site: south, cause };
    pair.a.escalate(EscalationId::generate(), vec![detach]);
    pair.until_not_armed("its side at south is not in sync").await;
    let Pair { control, b, .. } = pair;
    b.kill();
    control
        .until("/v1/volumes/v1", |it| {
            it["not_armed_because"].to_string().contains("node node-south is not heard")
        })
        .await;
}

#[tokio::test]
async fn silence_without_an_attestation_moves_nothing() {
    let pair = Pair::start().await;
    pair.volume("v1").await;
    // The control link of north is cut, the mirror is healthy: south still hears its owner.
    pair.a.inside().mute = true;
    pair.control.until("/v1/sites/north", |site| site["condition"] == "Lost").await;
    // Nor is a volume deleted that hosts may be using over there.
    let refused = pair.control.delete("/v1/volumes/v1").await;
    assert_eq!(refused.body["code"], "use-unknown", "{}", refused.text);
    let looks_later = pair.control.head().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(pair.control.head().await, looks_later, "nothing was committed since");
    assert!(!pair.commands().await.contains(&"FailOverSite".to_owned()));
    pair.a.inside().mute = false;
    pair.control.until("/v1/sites/north", |site| site["condition"] == "Normal").await;
    assert_eq!(
        pair.until_volume("v1", |it| it["health"] == "healthy").await["owner"]["name"],
        "node-north"
    );
}

#[tokio::test]
async fn a_group_without_a_policy_moves_only_when_told() {
    let pair = Pair::start().await;
    let body = json!({"name": "v1", "size_bytes": 64 << 20, "pools": ["pool-north", "pool-south"]});
    pair.control.create("/v1/volumes", body).await;
    let volume = pair.until_volume("v1", |it| it["health"] == "healthy").await;
    assert_eq!(volume["armed"], false);
    assert!(volume["not_armed_because"][0].as_str().unwrap().contains("policy"));
    let Pair { control, a, b, .. } = pair;
    a.kill();
    b.inside().owner_silent = true;
    control.until("/v1/sites/north", |site| site["condition"] == "Lost").await;
    let owner = |volume: &Value| volume["owner"]["name"].clone();
    assert_eq!(owner(&control.get("/v1/volumes/v1").await.body), "node-north");
    // The attestation has reached this process once its node's status was taken in.
    let told = tokio::time::timeout(PATIENCE, async {
        loop {
            let body = json!({"observed": "smoke"});
            let answer = control.post("/v1/sites/north/failover", body).await;
            if answer.status == 200
                && answer.body["events"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .any(|it| it.get("OwnerMoved").is_some())
            {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    told.await.unwrap();
    assert_eq!(owner(&control.get("/v1/volumes/v1").await.body), "node-south");
}

#[tokio::test]
async fn a_signal_from_outside_evacuates_a_site_that_still_serves() {
    let pair = Pair::start().await;
    pair.volume("v1").await;
    let signal = json!({"condition": "PowerLost", "detail": "UPS at 20 %"});
    pair.control.create("/v1/sites/north/signal", signal).await;
    let volume = pair.until_volume("v1", |it| it["owner"]["name"] == "node-south").await;
    // A planned move: both sides stay in sync.
    assert!(volume["sides"].as_array().unwrap().iter().all(|side| side["in_sync"] == true));
    assert!(pair.commands().await.contains(&"MoveOwner".to_owned()));
}

#[tokio::test]
async fn a_signal_fails_over_a_silent_site_without_waiting_for_the_silence() {
    let pair = Pair::start().await;
    let policy = json!({"name": "signals", "rules": {"mode": "OnSignal"}});
    pair.control.create("/v1/policies", policy).await;
    let body = json!({
        "name": "v1", "size_bytes": 64 << 20, "pools": ["pool-north", "pool-south"],
        "policy": "signals",
    });
    pair.control.create("/v1/volumes", body).await;
    pair.until_volume("v1", |it| it["health"] == "healthy").await;
    pair.a.inside().mute = true;
    pair.b.inside().owner_silent = true;
    // What south vouches for has arrived once a failover could be planned.
    let began = Instant::now();
    loop {
        let path = "/v1/sites/north/failover?plan=true";
        let plan = pair.control.post(path, json!({"condition": "Lost"})).await.body;
        if plan["events"].as_array().is_some_and(|events| events.len() == 2) {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "{plan}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    pair.control.create("/v1/sites/north/signal", json!({"condition": "Fire"})).await;
    pair.until_volume("v1", |it| it["owner"]["name"] == "node-south").await;
    let failover = pair.control.until("/v1/failovers", |it| !it["items"][0].is_null()).await;
    assert_eq!(failover["items"][0]["evidence"]["condition"], "Fire");
}

#[tokio::test]
async fn a_planned_move_goes_to_the_other_side_and_back() {
    let pair = Pair::start().await;
    pair.volume("v1").await;
    for (to, node) in [("south", "node-south"), ("north", "node-north")] {
        pair.control.create("/v1/groups/v1/move", json!({"to": to})).await;
        let volume = pair
            .until_volume("v1", |it| it["owner"]["name"] == node && it["health"] == "healthy")
            .await;
        assert_eq!(volume["owner_site"]["name"], to);
    }
    let answer = pair.control.post("/v1/groups/v1/move", json!({"to": "north"})).await;
    assert_eq!((answer.status, &answer.body["code"]), (409, &json!("already-owner")));
}

#[tokio::test]
async fn escalations_are_answered_one_by_one_and_once() {
    let pair = Pair::start().await;
    let volume = pair.volume("v1").await;
    let south: SiteId = volume["sides"][1]["site"]["id"].as_str().unwrap().parse().unwrap();
    let (group, epoch) = {
        let inside = pair.a.inside();
        let group = inside.groups.values().next().unwrap();
        (group.group, group.epoch)
    };
    let detach =
        Escalation::DetachSide { group, epoch, site: south, cause: DetachCause::Unreachable };
    let id = EscalationId::generate();
    pair.a.escalate(id, vec![detach.clone(), detach.clone()]);
    let outcomes = pair.a.answer(id).await;
    let EscalationOutcome::Committed { sequence } = outcomes[0] else { panic!("{outcomes:?}") };
    assert!(
        matches!(&outcomes[1], EscalationOutcome::Refused { code, .. } if code == "stale-epoch")
    );
    let head = pair.control.head().await;
    assert_eq!(head, sequence.0);
    // The same batch again: the same answer, no commit.
    pair.a.inside().answers.clear();
    pair.a.escalate(id, vec![detach.clone(), detach.clone()]);
    assert_eq!(pair.a.answer(id).await, outcomes);
    assert_eq!(pair.control.head().await, head);
    // Only the owner may ask.
    let id = EscalationId::generate();
    pair.b.escalate(id, vec![detach]);
    assert!(matches!(&pair.b.answer(id).await[0], EscalationOutcome::Refused { .. }));
    pair.b
        .until("the new epoch", |inside| {
            (inside.groups[&group].epoch.sequence == sequence).then_some(())
        })
        .await;
}

#[tokio::test]
async fn a_hand_over_goes_only_to_a_side_that_vouches_for_its_legs_now() {
    let pair = Pair::start().await;
    pair.volume("v1").await;
    let (group, epoch) = {
        let inside = pair.a.inside();
        let group = inside.groups.values().next().unwrap();
        (group.group, group.epoch)
    };
    let hand_over = Escalation::HandOver { group, epoch, cause: "read error".to_owned() };
    let Pair { control, a, b, secrets } = pair;
    b.kill();
    let closed = |node: &Value| node["observed"]["heard"] == false;
    control.until("/v1/nodes/node-south", closed).await;
    let id = EscalationId::generate();
    a.escalate(id, vec![hand_over.clone()]);
    let outcome = a.answer(id).await.remove(0);
    assert!(
        matches!(&outcome, EscalationOutcome::Refused { code, .. } if code == "not-vouched"),
        "{outcome:?}"
    );
    let owner = |volume: &Value| volume["owner"]["name"].clone();
    assert_eq!(owner(&control.get("/v1/volumes/v1").await.body), "node-north");
    let (node, secret) = &secrets[1];
    let _b = FakeNode::connect(control.address(), node, secret, 2).await;
    let moved = tokio::time::timeout(PATIENCE, async {
        loop {
            let id = EscalationId::generate();
            a.escalate(id, vec![hand_over.clone()]);
            if let EscalationOutcome::Committed { .. } = a.answer(id).await[0] {
                return;
            }
        }
    });
    moved.await.unwrap();
    assert_eq!(owner(&control.get("/v1/volumes/v1").await.body), "node-south");
}

#[tokio::test]
async fn a_newer_stream_of_a_node_replaces_the_old_and_an_older_start_is_turned_away() {
    let pair = Pair::start().await;
    let newer = pair.reconnect(0, 2).await;
    newer.until("a spec", |inside| (inside.specs > 0).then_some(())).await;
    let cause = pair.a.until("goodbye", |inside| inside.goodbye.clone()).await;
    assert!(cause.contains("newer"), "{cause}");
    let older = pair.reconnect(0, 1).await;
    let cause = older.until("goodbye", |inside| inside.goodbye.clone()).await;
    assert!(cause.contains("start 2"), "{cause}");
    assert_eq!(older.inside().specs, 0);
    // The one that is live still gets what changes.
    let specs = newer.inside().specs;
    pair.control.create("/v1/sites", json!({"name": "west", "kind": "Data"})).await;
    pair.volume("v9").await;
    newer.until("news", |inside| (inside.specs > specs).then_some(())).await;
}

#[tokio::test]
async fn only_a_known_node_with_its_secret_gets_a_stream() {
    let pair = Pair::start().await;
    let address = pair.control.address();
    let (id, secret) = &pair.secrets[0];
    let other = &pair.secrets[1].0;
    assert_eq!(open(address, id, "wrong").await.err(), Some(401));
    assert_eq!(open(address, other, secret).await.err(), Some(401));
    assert_eq!(open(address, "nobody", secret).await.err(), Some(401));
    // A Hello in another's name, and rubbish, end the stream with a cause.
    let other_hello = text(&hello(other.parse().unwrap(), 1));
    for first in [other_hello, Message::Text("rubbish".into()), Message::Text("{}".into())] {
        let mut socket = open(address, id, secret).await.unwrap();
        socket.send(first).await.unwrap();
        let goodbye = loop {
            match socket.next().await.expect("a goodbye comes first").unwrap() {
                Message::Text(text) => break serde_json::from_str::<ToNode>(&text).unwrap(),
                _ => continue,
            }
        };
        assert!(matches!(goodbye, ToNode::Goodbye { .. }), "{goodbye:?}");
    }
    // The real stream was not disturbed.
    pair.volume("v1").await;
}

#[tokio::test]
async fn a_host_with_a_secret_reaches_the_nodes_with_it_resolved() {
    let pair = Pair::start().await;
    pair.volume("v1").await;
    let secret = json!({"secret": "twelve characters"});
    pair.control.send("PUT", "/v1/secrets/town", &[], Some(secret)).await;
    let host = json!({"name": "town", "iqns": ["iqn.2026-11.test:town"], "chap_secret": "town"});
    pair.control.create("/v1/hosts", host).await;
    pair.control.create("/v1/mappings", json!({"volume": "v1", "host": "town"})).await;
    let resolved = |secret: &'static str| {
        move |inside: &crate::fake_node::Inside| {
            let hosts = &inside.facts.as_ref()?.hosts;
            (hosts.len() == 1 && hosts[0].chap_secret.as_deref() == Some(secret)).then_some(())
        }
    };
    pair.b.until("the secret", resolved("twelve characters")).await;
    let changed = json!({"secret": "other characters"});
    pair.control.send("PUT", "/v1/secrets/town", &[], Some(changed)).await;
    pair.b.until("the changed secret", resolved("other characters")).await;
    let mapping = pair.control.get("/v1/mappings").await.body["items"][0].clone();
    assert_eq!((&mapping["lun"], &mapping["nsid"]), (&json!(0), &json!(1)));
    assert_eq!(pair.control.delete("/v1/mappings/v1/town").await.status, 200);
}

#[tokio::test]
async fn a_host_with_nvme_keys_reaches_the_nodes_with_them_resolved() {
    const KEY: &str = "DHHC-1:00:ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj/jBqb2:";
    let pair = Pair::start().await;
    pair.volume("v1").await;
    for (name, secret) in [("town", KEY), ("ours", KEY), ("plain", "twelve characters")] {
        let path = format!("/v1/secrets/{name}");
        pair.control.send("PUT", &path, &[], Some(json!({"secret": secret}))).await;
    }
    let host = json!({"name": "town", "nqns": ["nqn.2026-11.test:town"]});
    pair.control.create("/v1/hosts", host).await;
    pair.control.create("/v1/mappings", json!({"volume": "v1", "host": "town"})).await;
    for (secret, status) in [("plain", 422), ("nobody", 404)] {
        let keys = json!({ "secret": secret, "target_secret": null });
        let answer = pair.control.send("PUT", "/v1/hosts/town/keys", &[], Some(keys)).await;
        assert_eq!(answer.status, status, "{secret}");
    }
    let keys = json!({"secret": "town", "target_secret": "ours"});
    let answer = pair.control.send("PUT", "/v1/hosts/town/keys", &[], Some(keys)).await;
    assert_eq!(answer.status, 200);
    pair.b
        .until("the keys", |inside| {
            let hosts = &inside.facts.as_ref()?.hosts;
            let host = hosts.first()?;
            let keys = [&host.dhchap_secret, &host.dhchap_controller_secret];
            keys.iter().all(|key| key.as_deref() == Some(KEY)).then_some(())
        })
        .await;
    // Nothing is taken away by leaving it out.
    for body in [json!({}), json!({"secret": "town"})] {
        let answer =
            pair.control.send("PUT", "/v1/hosts/town/keys?plan=true", &[], Some(body)).await;
        assert!((400..500).contains(&answer.status), "{}", answer.text);
    }
    let nothing = json!({"secret": null, "target_secret": null});
    let answer =
        pair.control.send("PUT", "/v1/hosts/town/keys?plan=true", &[], Some(nothing)).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let warnings = answer.body["warnings"].to_string();
    assert!(warnings.contains("by its name alone") && warnings.contains("ours"), "{warnings}");
    let shown = pair.control.get("/v1/hosts/town").await.body;
    assert_eq!(
        (&shown["nvme_secret"], &shown["nvme_target_secret"]),
        (&json!("town"), &json!("ours"))
    );
    for name in ["town", "ours"] {
        assert_eq!(pair.control.delete(&format!("/v1/secrets/{name}")).await.status, 409);
    }
}
