//! Bad input at every door, while a verifying host writes: each is answered with a clear error or a
//! closed connection, nothing is lost, every process lives.

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use voute::demo::cluster::{CONTROL, SITES, VOLUME};
use voute_control::api::answers::{DeviceView, NodeView, StatusView};
use voute_schemas::CorrelationId;
use voute_schemas::contract::PATH as NODE_STREAM;
use voute_schemas::place::Locator;
use voute_tests::chance::Chance;
use voute_tests::cluster::{Log, TwoSites, alone, nats_server};
use voute_tests::harm::{must_flow, must_keep, must_not_fail};
use voute_tests::program;

const REGIONS: u32 = 2;
const FLOWING: u64 = 20;
/// How long a listener may leave us without an answer before we go.
const LISTEN_MAX: Duration = Duration::from_millis(50);
/// Within this a process that cannot start has said why and ended.
const END_MAX: Duration = Duration::from_secs(30);

/// Sends bytes, listens a moment, and goes.
fn throw(address: SocketAddr, bytes: &[u8]) -> anyhow::Result<()> {
    let mut stream = TcpStream::connect(address).context("a listener is gone")?;
    stream.set_read_timeout(Some(LISTEN_MAX))?;
    // The other side may well close before it has read all of it.
    let _ = stream.write_all(bytes);
    let mut answer = [0; 4096];
    while stream.read(&mut answer).is_ok_and(|length| length > 0) {}
    Ok(())
}

/// What a well-meaning and an ill-meaning client begin with, for each kind of listener.
fn openings() -> Vec<Vec<u8>> {
    let mut ic_request = vec![0; 128];
    ic_request[..8].copy_from_slice(&[0, 0, 128, 0, 128, 0, 0, 0]);
    let mut endless = ic_request.clone();
    endless[4..8].fill(0xff);
    // A capsule that claims to hold 4 GiB, after a handshake that holds.
    let mut long_capsule = ic_request.clone();
    long_capsule.extend([4, 0, 72, 72, 0xff, 0xff, 0xff, 0xff]);
    long_capsule.extend([0; 64]);
    let mut connect = ic_request.clone();
    connect.extend([4, 0, 72, 72, 0x48, 4, 0, 0, 0x7f, 0x40, 0, 0, 1]);
    connect.extend([0xa5; 1024 + 59]);
    let mut login = vec![0; 48];
    login[..8].copy_from_slice(&[0x43, 0x87, 0, 0, 0, 0, 0, 200]);
    login.extend(b"InitiatorName=iqn.2026-11.io.voute:nobody\0SessionType=Normal\0".iter());
    login.resize(48 + 200, 0);
    let mut endless_login = login.clone();
    endless_login[5..8].fill(0xff);
    let mut headers_login = login.clone();
    headers_login[4] = 0xff;
    let requests = [
        "GET /v1/status HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(),
        "POST /v1/volumes HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999999\r\n\r\n{"
            .to_owned(),
        "POST /v1/volumes HTTP/1.1\r\ncontent-length: -1\r\n\r\n".to_owned(),
        format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(1 << 20)),
        format!("GET /{} HTTP/1.1\r\n\r\n", "%00".repeat(100_000)),
        format!("GET {NODE_STREAM} HTTP/1.1\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\u{0}\u{0}\u{0}".to_owned(),
    ];
    let binary = [ic_request, endless, long_capsule, connect, login, endless_login, headers_login];
    binary.into_iter().chain(requests.map(String::into_bytes)).collect()
}

/// An HTTP exchange without any client's good manners.
fn exchange(
    address: SocketAddr,
    head: &str,
    token: Option<&str>,
    body: &[u8],
) -> anyhow::Result<(u16, Value)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(END_MAX))?;
    let authorization =
        token.map_or_else(String::new, |token| format!("authorization: Bearer {token}\r\n"));
    let length = body.len();
    let head = format!(
        "{head} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{authorization}content-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes())?;
    // A body that is too long may be refused before it is read.
    let _ = stream.write_all(body);
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => return Err(error.into()),
        _ => {}
    }
    let text = String::from_utf8_lossy(&answer);
    let status = text.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.with_context(|| format!("no HTTP answer to {head}: {text:?}"))?;
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((status, serde_json::from_str(body).unwrap_or(Value::Null)))
}

/// Checks that a request is refused with one of these statuses, and told what to do about it.
fn refused(answer: (u16, Value), statuses: &[u16], what: &str) -> anyhow::Result<()> {
    let (status, problem) = answer;
    ensure!(statuses.contains(&status), "{what}: {status} {problem}");
    let words = |field: &str| problem[field].as_str().unwrap_or_default().len();
    ensure!(
        words("code") > 2 && words("message") > 10,
        "{what} is refused without words: {problem}"
    );
    Ok(())
}

fn api_address(sites: &TwoSites) -> anyhow::Result<SocketAddr> {
    let api = sites.cluster.client.api();
    Ok(api.strip_prefix("http://").context("it is plain HTTP here")?.parse()?)
}

fn bad_bytes(sites: &TwoSites, chance: &mut Chance) -> anyhow::Result<()> {
    let nodes = sites.cluster.nodes.iter();
    let portals = nodes.flat_map(|node| [node.portals.nvme, node.portals.iscsi, node.portals.link]);
    let mut doors: Vec<SocketAddr> = portals.collect();
    doors.push(api_address(sites)?);
    let openings = openings();
    for door in &doors {
        for opening in &openings {
            throw(*door, opening)?;
            let cut = chance.below(opening.len() as u64) as usize;
            throw(*door, &opening[..cut])?;
            let mut spoiled = opening.clone();
            let at = chance.below(spoiled.len().min(160) as u64) as usize;
            spoiled[at] ^= 1 << chance.below(8);
            throw(*door, &spoiled)?;
        }
        for _ in 0..8 {
            let mut noise = vec![0; chance.below(20_000) as usize];
            chance.fill(&mut noise);
            throw(*door, &noise)?;
        }
    }
    Ok(())
}

fn bad_requests(sites: &TwoSites) -> anyhow::Result<()> {
    let address = api_address(sites)?;
    let token = sites.stage.token(&sites.cluster.token_file).context("the administrator's")?;
    let ask = |head: &str, body: &Value| {
        exchange(address, head, Some(&token), body.to_string().as_bytes())
    };
    let volume = |name: &str, size: Value, pools: &[&str]| json!({ "name": name, "size_bytes": size, "pools": pools });
    let (mib, both) = (1u64 << 20, SITES.as_slice());
    let long_name = "n".repeat(100_000);
    let bad_volumes = [
        ("no size at all", volume("v", json!(0), both)),
        ("more than any disk", volume("v", json!(u64::MAX), both)),
        ("the largest multiple of 1 MiB", volume("v", json!(u64::MAX - (mib - 1)), both)),
        ("half a sector", volume("v", json!(mib + 1), both)),
        ("less than nothing", volume("v", json!(-1), both)),
        ("a size in words", volume("v", json!("big"), both)),
        ("more than the pools have", volume("v", json!(4096 * mib), both)),
        ("the same pool twice", volume("v", json!(16 * mib), &[SITES[0], SITES[0]])),
        ("no pool", volume("v", json!(16 * mib), &[])),
        ("an unknown pool", volume("v", json!(16 * mib), &["nowhere"])),
        ("a name that is there", volume(VOLUME, json!(16 * mib), both)),
        ("a name that is none", volume("a/b", json!(16 * mib), both)),
        ("an endless name", volume(&long_name, json!(16 * mib), both)),
        (
            "a block of 1 byte",
            json!({"name": "v", "size_bytes": mib, "pools": both, "block_bytes": 1}),
        ),
        (
            "an unknown field",
            json!({"name": "v", "size_bytes": mib, "pools": both, "colour": "red"}),
        ),
        (
            "an unknown policy",
            json!({"name": "v", "size_bytes": mib, "pools": both, "policy": "x"}),
        ),
    ];
    for (what, body) in &bad_volumes {
        refused(ask("POST /v1/volumes", body)?, &[400, 404, 409, 422], what)?;
    }
    let nobody = CorrelationId::generate();
    let grow = json!({ "size_bytes": 1u64 << 60 });
    let others = [
        ("GET /v1/volumes/nothing".to_owned(), json!(null)),
        (format!("GET /v1/volumes/{nobody}"), json!(null)),
        (format!("DELETE /v1/nodes/{nobody}"), json!(null)),
        (format!("POST /v1/groups/{nobody}/move"), json!({ "to": SITES[0] })),
        ("POST /v1/groups/%00/move".to_owned(), json!({ "to": SITES[0] })),
        (format!("PUT /v1/volumes/{VOLUME}/size"), grow),
        (format!("PUT /v1/volumes/{VOLUME}/size"), json!({ "size_bytes": mib })),
        (format!("DELETE /v1/volumes/{VOLUME}"), json!(null)),
        ("POST /v1/sites".to_owned(), json!({ "name": SITES[0], "kind": "Data" })),
        ("POST /v1/pools".to_owned(), json!({ "name": SITES[0], "site": SITES[0] })),
        ("POST /v1/pools".to_owned(), json!({ "name": "p", "site": SITES[0], "extent_bytes": 7 })),
        (
            "POST /v1/mappings".to_owned(),
            json!({ "volume": VOLUME, "host": "nobody", "read_only": false }),
        ),
        ("POST /v1/hosts".to_owned(), json!({ "name": "h", "nqns": ["not an nqn"], "iqns": [] })),
        ("POST /v1/hosts".to_owned(), json!({ "name": "h", "nqns": [], "iqns": [] })),
        (format!("DELETE /v1/sites/{}", SITES[0]), json!(null)),
        ("GET /v1/audit?from=x".to_owned(), json!(null)),
        ("GET /v2/nothing".to_owned(), json!(null)),
        ("PATCH /v1/volumes".to_owned(), json!(null)),
    ];
    for (head, body) in &others {
        let statuses = [400, 404, 405, 409, 422];
        refused(ask(head, body)?, &statuses, head)?;
    }
    let deep = "[".repeat(100_000);
    let huge = "x".repeat(64 << 20);
    for (what, body) in [("not JSON", "{\"name\":"), ("deep", &deep), ("huge", &huge)] {
        let answer = exchange(address, "POST /v1/volumes", Some(&token), body.as_bytes())?;
        refused(answer, &[400, 413, 422], what)?;
    }
    for token in [None, Some("wrong"), Some("Ünicode"), Some(&*"t".repeat(8_000))] {
        let answer = exchange(address, "GET /v1/status", token, b"")?;
        refused(answer, &[401, 431], &format!("token {token:?}"))?;
    }
    Ok(())
}

/// Devices that cannot be used are rejected with the cause, and stay out of their pool.
fn bad_devices(sites: &TwoSites) -> anyhow::Result<()> {
    let folder = sites.stage.folder();
    let file = |name: &str, size_bytes| Locator::File {
        path: folder.join(name).display().to_string(),
        size_bytes,
    };
    let mut with_ext4 = vec![0; 64 << 20];
    // The magic number of an ext4 superblock, at its place.
    with_ext4[0x438..0x43a].copy_from_slice(&[0x53, 0xef]);
    std::fs::write(folder.join("ext4.img"), &with_ext4)?;
    std::fs::create_dir(folder.join("folder.img"))?;
    let devices = [
        ("small", file("small.img", 1 << 20), "are needed"),
        ("foreign", file("ext4.img", 0), "ext"),
        ("folder", file("folder.img", 1 << 30), ""),
        ("missing", Locator::Block { path: "/dev/voute-has-no-such-device".into() }, ""),
        ("null", Locator::Block { path: "/dev/null".into() }, ""),
        ("endless", file("endless.img", u64::MAX), ""),
        ("memory", Locator::Memory { size_bytes: u64::MAX }, ""),
        (
            "closed",
            Locator::RemoteNamespace {
                address: "127.0.0.1:1".parse()?,
                subsystem: "nqn.2026-11.io.voute:nothing".into(),
                namespace: "00".repeat(16),
            },
            "",
        ),
    ];
    for (name, locator, words) in devices {
        // Either the control plane sees at once that it cannot be, or the node finds out.
        if let Err(error) = sites.add_device(name, SITES[0], locator, false) {
            ensure!(error.to_string().len() > 20, "{name} is refused without words: {error}");
            continue;
        }
        let detail = sites.wait(&format!("device {name} is rejected"), || {
            let path = format!("/v1/devices/{name}");
            let view: DeviceView = sites.cluster.client.get(&path).ok()?;
            (view.state == "rejected").then_some(view.detail)
        })?;
        ensure!(detail.len() > 10 && detail.to_lowercase().contains(words), "{name}: {detail:?}");
    }
    ensure!(std::fs::read(folder.join("ext4.img"))? == with_ext4, "foreign data was touched");
    Ok(())
}

/// A process that was started to end by itself: its end and what it said.
fn ends(mut child: Child) -> anyhow::Result<(ExitStatus, String)> {
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if began.elapsed() > END_MAX {
            child.kill()?;
            child.wait()?;
            anyhow::bail!("it should have ended by itself: {}", said_by(&mut child)?);
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    Ok((status, said_by(&mut child)?))
}

fn said_by(child: &mut Child) -> anyhow::Result<String> {
    let mut said = String::new();
    child.stderr.take().context("it is piped")?.read_to_string(&mut said)?;
    Ok(said)
}

fn start(arguments: &[&str]) -> anyhow::Result<Child> {
    Command::new(program::voute()?)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("voute cannot be started")
}

/// It ends with 1, not by a panic or signal, and says these words.
fn ends_with_words(child: Child, words: &[&str]) -> anyhow::Result<()> {
    let (status, said) = ends(child)?;
    ensure!(status.code() == Some(1), "{status}: {said}");
    for word in words {
        ensure!(said.contains(word), "{word:?} is not in: {said}");
    }
    Ok(())
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary folders have names in UTF-8")
}

/// A second process of a node that runs, and one with a wrong secret.
fn bad_processes(sites: &TwoSites) -> anyhow::Result<()> {
    let node = &sites.cluster.nodes[0];
    let folder = sites.stage.folder();
    let (id, api) = (node.node.to_string(), sites.cluster.client.api());
    let secret = folder.join(format!("{}.secret", node.name()));
    let run = |secret: &Path, data: &Path| {
        start(&[
            "node",
            "--no-pin",
            "--id",
            &id,
            "--secret-file",
            text(secret),
            "--control",
            api,
            "--data-dir",
            text(data),
        ])
    };
    ends_with_words(run(&secret, &folder.join(node.name()))?, &["in use"])?;
    ends_with_words(
        start(&["control", "--data-dir", text(&folder.join(CONTROL)), "--listen", "127.0.0.1:0"])?,
        &["in use"],
    )?;
    let wrong = folder.join("wrong.secret");
    std::fs::write(&wrong, "0".repeat(64))?;
    let mut impostor = run(&wrong, &folder.join("impostor"))?;
    let said = wait_for_words(&mut impostor, "secret");
    // It tries again for ever, as a node whose admission is still to come would.
    let _ = impostor.kill();
    impostor.wait()?;
    said?;
    let view: NodeView = sites.cluster.client.get(&format!("/v1/nodes/{}", node.node))?;
    ensure!(view.observed.is_some_and(|observed| observed.heard), "the real node is not heard");
    Ok(())
}

/// Reads what a process says until these words come, or it ends.
fn wait_for_words(child: &mut Child, words: &str) -> anyhow::Result<()> {
    use std::io::{BufRead, BufReader};
    let stderr = child.stderr.take().context("it is piped")?;
    let (found, heard) = std::sync::mpsc::channel();
    let words = words.to_owned();
    std::thread::spawn(move || {
        let said = BufReader::new(stderr).lines().map_while(Result::ok);
        let mut all = String::new();
        for line in said {
            all.push_str(&line);
            if line.contains(&words) {
                let _ = found.send(Ok(()));
                return;
            }
        }
        let _ = found.send(Err(anyhow::anyhow!("it ended without {words:?}: {all}")));
    });
    heard.recv_timeout(END_MAX).context("it says nothing of it")?
}

#[test]
fn bad_input_at_every_door_gets_a_clear_error_and_harms_nothing() -> anyhow::Result<()> {
    let seed = Chance::seed_or(7);
    let mut chance = Chance::new(seed);
    let sites = TwoSites::start_with_pools(Log::Embedded)?;
    let host = sites.add_host(REGIONS)?;
    let load = sites.begin_load(&host);
    let flows = |after: &str| {
        must_flow(&host, FLOWING, &sites.stage, &format!("after {after}, seed {seed}"));
        assert!(
            sites.stage.children().ended().is_none(),
            "seed {seed}: a process ended after {after}\n{}",
            sites.stage.tails()
        );
    };
    flows("the start");
    bad_bytes(&sites, &mut chance).with_context(|| format!("seed {seed}"))?;
    flows("bad bytes");
    bad_requests(&sites)?;
    flows("bad requests");
    bad_devices(&sites)?;
    flows("bad devices");
    bad_processes(&sites)?;
    flows("bad processes");
    sites.runtime.block_on(load.stop());
    must_keep(&sites.runtime, &host, &sites.stage);
    must_not_fail(&host, &sites.stage);
    sites.wait_whole()?;
    sites.verify_log().map(|_| ())
}

/// A server that says that it is an old nats-server, to whoever connects.
fn old_nats_server() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            std::thread::spawn(move || answer_as_old(&mut stream));
        }
    });
    Ok(address)
}

fn answer_as_old(stream: &mut TcpStream) {
    let info = "INFO {\"server_id\":\"A\",\"server_name\":\"old\",\"version\":\"2.10.29\",\"proto\":1,\"go\":\"go1\",\"host\":\"127.0.0.1\",\"port\":4222,\"headers\":true,\"max_payload\":1048576,\"jetstream\":true,\"client_id\":1}\r\n";
    let mut bytes = [0; 4096];
    if stream.write_all(info.as_bytes()).is_err() {
        return;
    }
    while let Ok(length) = stream.read(&mut bytes) {
        let asked = String::from_utf8_lossy(&bytes[..length]).contains("PING\r\n");
        if length == 0 || (asked && stream.write_all(b"PONG\r\n").is_err()) {
            return;
        }
    }
}

fn control_on(log: &str, folder: &Path) -> anyhow::Result<Child> {
    let data = folder.join("control");
    start(&["control", "--data-dir", text(&data), "--listen", "127.0.0.1:0", "--log", log])
}

#[test]
fn a_nats_server_that_is_too_old_is_refused_by_its_version() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let address = old_nats_server()?;
    let child = control_on(&format!("nats://{address}"), folder.path())?;
    ends_with_words(child, &["2.10.29", "2.15.1"])
}

#[test]
fn a_log_that_is_not_there_is_named() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    ends_with_words(control_on("nats://127.0.0.1:1", folder.path())?, &["127.0.0.1:1"])
}

/// A nats-server with this configuration on a free port, ended when dropped.
struct Nats {
    process: Child,
    address: SocketAddr,
    monitoring: SocketAddr,
}

impl Nats {
    fn start(program: &Path, folder: &Path, settings: &str) -> anyhow::Result<Self> {
        let addresses = voute::demo::stage::free_addresses(2)?;
        let (address, monitoring) = (addresses[0], addresses[1]);
        let configuration = folder.join("nats.conf");
        let port = address.port();
        std::fs::write(
            &configuration,
            format!("host: 127.0.0.1\nport: {port}\nhttp: \"{monitoring}\"\n{settings}\n"),
        )?;
        let process = Command::new(program)
            .arg("--config")
            .arg(&configuration)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let server = Nats { process, address, monitoring };
        let began = Instant::now();
        while TcpStream::connect(address).is_err() {
            ensure!(began.elapsed() < END_MAX, "nats-server does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_nats_server_with_wrong_settings_is_refused_or_arms_no_failover() -> anyhow::Result<()> {
    let Some(program) = nats_server() else { return Ok(()) };
    let _alone = alone();
    let folder = tempfile::tempdir()?;
    {
        let server = Nats::start(&program, folder.path(), "")?;
        let child = control_on(&format!("nats://{}", server.address), folder.path())?;
        ends_with_words(child, &["JetStream"])?;
    }
    let store = |more: &str| format!("jetstream {{ store_dir: {:?} }}\n{more}", folder.path());
    {
        let server = Nats::start(&program, folder.path(), &store("max_payload: 65536"))?;
        let child = control_on(&format!("nats://{}", server.address), folder.path())?;
        ends_with_words(child, &["max_payload"])?;
    }
    let server = Nats::start(&program, folder.path(), &store(""))?;
    says_that_the_log_may_lose(&server, folder.path())
}

/// Without `sync_interval: always` it serves, but says that nothing fails over by itself, and why.
fn says_that_the_log_may_lose(server: &Nats, folder: &Path) -> anyhow::Result<()> {
    let listen = voute::demo::stage::free_addresses(1)?[0];
    let data = folder.join("control");
    let mut control = start(&[
        "control",
        "--data-dir",
        text(&data),
        "--listen",
        &listen.to_string(),
        "--log",
        &format!("nats://{}", server.address),
        "--log-monitoring",
        &format!("http://{}", server.monitoring),
    ])?;
    let began = Instant::now();
    let problems = loop {
        let token = voute::api::token::read_token(&data.join("admin.token")).ok();
        let client = voute::api::client::Client::new(&format!("http://{listen}"), token);
        if let Ok(status) = client.get::<StatusView>("/v1/status")
            && !status.problems.is_empty()
        {
            break status.problems.join("; ");
        }
        if began.elapsed() > END_MAX {
            break String::new();
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let _ = control.kill();
    control.wait()?;
    ensure!(problems.contains("sync"), "problems: {problems:?}, {}", said_by(&mut control)?);
    Ok(())
}
