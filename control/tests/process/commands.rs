//! Commands, refusals, idempotency, plans, roles, bad input.

use crate::client::{Control, request, token_path};
use serde_json::json;
use std::os::unix::fs::PermissionsExt;

async fn with_sites() -> Control {
    let control = Control::start().await;
    control.create("/v1/sites", json!({"name": "north", "kind": "Data"})).await;
    control.create("/v1/sites", json!({"name": "south", "kind": "Data"})).await;
    control
}

#[tokio::test]
async fn the_first_start_founds_a_cluster_with_an_administrator_and_a_policy() {
    let control = Control::start().await;
    let mode = token_path(&control.folder).metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(control.running.token_file().is_some());
    let policies = control.get("/v1/policies").await.body;
    assert_eq!(policies["items"][0]["name"], "automatic");
    assert_eq!(policies["items"][0]["rules"]["mode"], "Automatic");
    let audit = control.get("/v1/audit").await.body;
    let commands: Vec<_> = audit["commits"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| it["commit"]["command"].clone())
        .collect();
    assert_eq!(commands, ["CreateCluster", "IssueCredential", "CreatePolicy"]);
    assert!(!control.get("/v1/audit").await.text.contains(&control.token));
    let folder = control.stop().await;
    let again = Control::start_in(folder).await;
    assert!(again.running.token_file().is_none(), "the second start makes no token");
    assert_eq!(again.head().await, 3);
}

#[tokio::test]
async fn requests_without_a_valid_token_get_nothing() {
    let control = Control::start().await;
    let address = control.address();
    for headers in [vec![], vec![("authorization", "Bearer wrong")], vec![("authorization", "x")]] {
        let answer = request(address, "GET", "/v1/volumes", &headers, b"").await;
        assert_eq!(answer.status, 401, "{headers:?}");
        assert_eq!(answer.body["code"], "unauthenticated");
    }
    assert_eq!(request(address, "GET", "/v1/health", &[], b"").await.status, 200);
}

#[tokio::test]
async fn a_command_becomes_one_commit_with_who_when_and_why() {
    let control = Control::start().await;
    let headers = [("x-voute-reason", "we open a second room"), ("x-voute-origin", "cli")];
    let body = json!({"name": "north", "kind": "Data"});
    let answer = control.send("POST", "/v1/sites", &headers, Some(body)).await;
    assert_eq!(answer.status, 200, "{}", answer.text);
    let sequence = answer.body["sequence"].as_u64().unwrap();
    let audit = control.get(&format!("/v1/audit?from={sequence}")).await.body;
    let commit = &audit["commits"][0]["commit"];
    assert_eq!(commit["command"], "AddSite");
    assert_eq!(commit["reason"], "we open a second room");
    assert_eq!(commit["origin"], "CommandLine");
    assert_eq!(commit["source"], "127.0.0.1");
    assert_eq!(audit["commits"][0]["actor_name"], "admin");
    let site = control.get("/v1/sites/north").await.body;
    assert_eq!(site["site"], answer.body["created"]);
}

#[tokio::test]
async fn refused_commands_are_committed_with_their_reason_and_change_nothing() {
    let control = with_sites().await;
    let digest = |body: &serde_json::Value| body["items"].clone();
    let before = digest(&control.get("/v1/sites").await.body);
    let answer = control.post("/v1/sites", json!({"name": "north", "kind": "Data"})).await;
    assert_eq!(answer.status, 409);
    assert_eq!(answer.body["code"], "duplicate-name");
    let sequence = answer.body["sequence"].as_u64().expect("the refusal is in the log");
    let unknown = control.post("/v1/pools", json!({"name": "p", "site": "nowhere"})).await;
    assert_eq!((unknown.status, &unknown.body["code"]), (404, &json!("unknown-site")));
    let audit = control.get("/v1/audit?outcome=refused").await.body;
    let refused = audit["commits"].as_array().unwrap();
    assert_eq!(refused.len(), 2);
    assert_eq!(refused[0]["commit"]["sequence"], sequence);
    assert_eq!(refused[0]["commit"]["outcome"]["Refused"]["code"], "duplicate-name");
    assert_eq!(refused[1]["commit"]["command"], "CreatePool");
    assert_eq!(digest(&control.get("/v1/sites").await.body), before);
}

#[tokio::test]
async fn a_repeated_request_gets_the_first_answer_and_has_no_second_effect() {
    let control = Control::start().await;
    let key = [("idempotency-key", "room-1")];
    let body = json!({"name": "north", "kind": "Data"});
    let first = control.send("POST", "/v1/sites", &key, Some(body.clone())).await;
    let second = control.send("POST", "/v1/sites", &key, Some(body.clone())).await;
    assert_eq!((first.status, second.status), (200, 200));
    for field in ["sequence", "commit", "created", "events"] {
        assert_eq!(first.body[field], second.body[field], "{field}");
    }
    assert_eq!((&first.body["repeated"], &second.body["repeated"]), (&json!(false), &json!(true)));
    let head = control.head().await;
    let other = json!({"name": "south", "kind": "Data"});
    let conflict = control.send("POST", "/v1/sites", &key, Some(other)).await;
    assert_eq!(conflict.status, 409);
    assert_eq!(conflict.body["code"], "idempotency-key-reused");
    assert_eq!(control.head().await, head);
    // The key outlives the process.
    let again = Control::start_in(control.stop().await).await;
    let third = again.send("POST", "/v1/sites", &key, Some(body)).await;
    assert_eq!(third.body["sequence"], first.body["sequence"]);
}

#[tokio::test]
async fn a_repeated_removal_gets_the_first_answer_though_the_thing_is_gone() {
    let control = with_sites().await;
    let key = [("idempotency-key", "away")];
    let first = control.send("DELETE", "/v1/sites/north", &key, None).await;
    let second = control.send("DELETE", "/v1/sites/north", &key, None).await;
    assert_eq!((first.status, second.status), (200, 200), "{}", second.text);
    assert_eq!(first.body["sequence"], second.body["sequence"]);
    // One that named nothing stays refused under its key, even if the thing comes to be.
    let key = [("idempotency-key", "early")];
    let first = control.send("DELETE", "/v1/sites/west", &key, None).await;
    control.create("/v1/sites", json!({"name": "west", "kind": "Data"})).await;
    let second = control.send("DELETE", "/v1/sites/west", &key, None).await;
    assert_eq!((first.status, second.status), (404, 404));
    assert_eq!(first.body["sequence"], second.body["sequence"]);
}

#[tokio::test]
async fn a_repeated_refusal_is_the_same_refusal() {
    let control = with_sites().await;
    let key = [("idempotency-key", "twice")];
    let body = json!({"name": "north", "kind": "Data"});
    let first = control.send("POST", "/v1/sites", &key, Some(body.clone())).await;
    let second = control.send("POST", "/v1/sites", &key, Some(body)).await;
    assert_eq!((first.status, second.status), (409, 409));
    assert_eq!(first.body["sequence"], second.body["sequence"]);
}

#[tokio::test]
async fn a_plan_shows_events_and_commits_nothing() {
    let control = with_sites().await;
    let head = control.head().await;
    let plan = control.post("/v1/sites?plan=true", json!({"name": "west", "kind": "Data"})).await;
    assert_eq!(plan.status, 200);
    assert_eq!(plan.body["plan"], true);
    assert_eq!(plan.body["events"][0]["SiteAdded"]["name"], "west");
    let refused =
        control.post("/v1/sites?plan=true", json!({"name": "north", "kind": "Data"})).await;
    assert_eq!((refused.status, &refused.body["code"]), (409, &json!("duplicate-name")));
    assert_eq!(control.head().await, head);
    assert_eq!(control.get("/v1/sites/west").await.status, 404);
}

#[tokio::test]
async fn roles_bound_what_a_token_may_do_and_attempts_are_recorded() {
    let control = with_sites().await;
    let answer =
        control.create("/v1/credentials", json!({"name": "watch", "role": "Viewer"})).await;
    let token = answer["secret"].as_str().unwrap();
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", bearer.as_str())];
    let address = control.address();
    assert_eq!(request(address, "GET", "/v1/sites", &headers, b"").await.status, 200);
    assert_eq!(request(address, "GET", "/v1/audit", &headers, b"").await.status, 403);
    let body = br#"{"name":"west","kind":"Data"}"#;
    let forbidden = request(address, "POST", "/v1/sites", &headers, body).await;
    assert_eq!((forbidden.status, &forbidden.body["code"]), (403, &json!("forbidden")));
    let audit = control.get("/v1/audit?actor=watch").await.body;
    assert_eq!(audit["commits"][0]["commit"]["outcome"]["Refused"]["code"], "forbidden");
    let id = answer["created"].as_str().unwrap();
    assert_eq!(control.delete(&format!("/v1/credentials/{id}")).await.status, 200);
    assert_eq!(request(address, "GET", "/v1/sites", &headers, b"").await.status, 401);
}

#[tokio::test]
async fn bad_input_gets_a_clear_error_and_the_process_lives() {
    let control = with_sites().await;
    let cases: Vec<(&str, &str, Vec<u8>, u16, &str)> = vec![
        ("POST", "/v1/sites", b"{".to_vec(), 422, "bad-body"),
        ("POST", "/v1/sites", vec![0xff, 0xfe, 0x00], 422, "bad-body"),
        ("POST", "/v1/sites", b"".to_vec(), 422, "bad-body"),
        (
            "POST",
            "/v1/sites",
            br#"{"name":"x","kind":"Data","colour":1}"#.to_vec(),
            422,
            "bad-body",
        ),
        ("POST", "/v1/sites", br#"{"name":"no good","kind":"Data"}"#.to_vec(), 422, "bad-body"),
        ("POST", "/v1/sites", vec![b' '; (1 << 20) + 1], 413, "body-too-large"),
        (
            "POST",
            "/v1/sites?plan=maybe",
            br#"{"name":"x","kind":"Data"}"#.to_vec(),
            400,
            "bad-query",
        ),
        ("GET", "/v1/sites?limit=0", vec![], 400, "bad-query"),
        ("GET", "/v1/sites?limit=1001", vec![], 400, "bad-query"),
        ("GET", "/v1/sites?after=x", vec![], 400, "bad-query"),
        ("GET", "/v1/audit?colour=x", vec![], 400, "bad-query"),
        ("GET", "/v1/audit?outcome=x", vec![], 400, "bad-query"),
        ("GET", "/v1/volumes/none", vec![], 404, "unknown-volume"),
        ("GET", "/v1/nothing", vec![], 404, "unknown-route"),
        ("PATCH", "/v1/sites", vec![], 405, "unknown-method"),
        (
            "POST",
            "/v1/volumes",
            br#"{"name":"v","size_bytes":18446744073709551615,"pools":["p"]}"#.to_vec(),
            404,
            "unknown-pool",
        ),
    ];
    let bearer = format!("Bearer {}", control.token);
    let headers = [("authorization", bearer.as_str())];
    for (method, path, body, status, code) in cases {
        let answer = request(control.address(), method, path, &headers, &body).await;
        assert_eq!(
            (answer.status, &answer.body["code"]),
            (status, &json!(code)),
            "{method} {path}: {}",
            answer.text
        );
        assert!(!answer.body["message"].as_str().unwrap().is_empty());
        assert!(!answer.body["hint"].as_str().unwrap().is_empty(), "{method} {path}");
    }
    let long = "x".repeat(1025);
    let body = json!({"name": "x", "kind": "Data"});
    let answer = control.send("POST", "/v1/sites", &[("x-voute-reason", &long)], Some(body)).await;
    assert_eq!((answer.status, &answer.body["code"]), (400, &json!("bad-header")));
    assert_eq!(control.get("/v1/status").await.status, 200);
}

#[tokio::test]
async fn every_route_that_answers_is_in_the_document_and_the_other_way_round() {
    let control = Control::start().await;
    let document = request(control.address(), "GET", "/v1/openapi.json", &[], b"").await.body;
    assert_eq!(document["openapi"], "3.1.0");
    let paths = document["paths"].as_object().unwrap();
    let mut operations = 0;
    for (path, item) in paths {
        for method in ["get", "post", "put", "delete"] {
            let concrete = path.replace(['{', '}'], "");
            if path == "/v1/feed" {
                continue;
            }
            let documented = item.get(method).is_some();
            let answer =
                request(control.address(), &method.to_uppercase(), &concrete, &[], b"").await;
            let routed = answer.status != 405;
            assert_eq!(documented, routed, "{method} {path}: {}", answer.status);
            operations += usize::from(documented);
        }
    }
    assert!(operations > 50, "{operations}");
    // Every schema that is referred to is there.
    let text = document.to_string();
    for reference in text.split("\"#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(document["components"]["schemas"].get(name).is_some(), "no schema {name}");
    }
}

#[tokio::test]
async fn secrets_never_enter_the_log_or_an_answer() {
    let control = with_sites().await;
    let secret = "a very private thing";
    let stored =
        control.send("PUT", "/v1/secrets/town", &[], Some(json!({"secret": secret}))).await;
    assert_eq!(stored.status, 200, "{}", stored.text);
    let host = json!({"name": "town", "iqns": ["iqn.2026-11.test:town"], "chap_secret": "town"});
    control.create("/v1/hosts", host).await;
    let missing = json!({"name": "village", "iqns": ["iqn.2026-11.test:v"], "chap_secret": "none"});
    assert_eq!(control.post("/v1/hosts", missing).await.body["code"], "unknown-secret");
    assert_eq!(control.delete("/v1/secrets/town").await.body["code"], "in-use");
    for path in ["/v1/audit?limit=1000", "/v1/hosts", "/v1/secrets", "/v1/metrics"] {
        let answer = control.get(path).await;
        assert_eq!(answer.status, 200, "{path}");
        assert!(!answer.text.contains(secret), "{path}");
    }
    let log = std::fs::read(control.folder.path().join("log.redb")).unwrap();
    assert!(!log.windows(secret.len()).any(|window| window == secret.as_bytes()));
    assert_eq!(control.delete("/v1/hosts/town").await.status, 200);
    assert_eq!(control.delete("/v1/secrets/town").await.status, 200);
}

#[tokio::test]
async fn long_lists_come_page_by_page() {
    let control = Control::start().await;
    for index in 0..7 {
        let host =
            json!({"name": format!("h{index}"), "nqns": [format!("nqn.2026-11.test:h{index}")]});
        control.create("/v1/hosts", host).await;
    }
    let mut names = Vec::new();
    let mut path = "/v1/hosts?limit=3".to_owned();
    loop {
        let page = control.get(&path).await.body;
        let items = page["items"].as_array().unwrap().clone();
        assert!(items.len() <= 3);
        names.extend(items.iter().map(|item| item["name"].as_str().unwrap().to_owned()));
        let Some(next) = page["next"].as_str() else { break };
        path = format!("/v1/hosts?limit=3&after={next}");
    }
    assert_eq!(names, ["h0", "h1", "h2", "h3", "h4", "h5", "h6"]);
}

#[tokio::test]
async fn rubbish_on_the_listener_ends_its_own_connection_only() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let control = Control::start().await;
    let whole = format!(
        "POST /v1/sites HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: 27\r\n\r\n",
        control.token
    );
    let mut cases: Vec<Vec<u8>> =
        (1..whole.len()).step_by(7).map(|cut| whole.as_bytes()[..cut].to_vec()).collect();
    let mut seed = 0x2545_F491_4F6C_DD1D_u64;
    for length in [1, 16, 1_000, 100_000] {
        let noise = (0..length).map(|_| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed.to_le_bytes()[0]
        });
        cases.push(noise.collect());
    }
    cases.push(format!("{}{}", "GET / HTTP/1.1\r\nx: ", "y".repeat(1 << 20)).into_bytes());
    for case in cases {
        let mut stream = tokio::net::TcpStream::connect(control.address()).await.unwrap();
        let _ = stream.write_all(&case).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(crate::client::PATIENCE, stream.read_to_end(&mut answer))
            .await
            .expect("the connection ends");
        assert!(!answer.starts_with(b"HTTP/1.1 2"), "{}", String::from_utf8_lossy(&answer));
    }
    assert_eq!(control.head().await, 3, "nothing was committed");
}
