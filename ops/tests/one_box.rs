//! `voute up` and every noun of the command against it: a real control plane, a real node.

use serde_json::Value;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

const START_TIME_MAX: Duration = Duration::from_secs(60);

/// A box that runs in a temporary folder, until dropped.
struct OneBox {
    folder: tempfile::TempDir,
    ports: [u16; 4],
    process: Option<Child>,
}

impl OneBox {
    fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut one_box = OneBox { folder, ports: free_ports(), process: None };
        one_box.run();
        one_box
    }

    fn run(&mut self) {
        let [api, nvme, iscsi, link] = self.ports.map(|port| port.to_string());
        let device = format!("file:{}:600MiB", self.folder.path().join("a.img").display());
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.path().join("up.log"))
            .expect("a log");
        let process = Command::new(env!("CARGO_BIN_EXE_voute"))
            .args([
                "up",
                "--reactors",
                "1",
                "--device",
                &device,
                "--api-port",
                &api,
                "--nvme-port",
                &nvme,
            ])
            .args(["--iscsi-port", &iscsi, "--link-port", &link])
            .arg(self.folder.path().join("box"))
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("the binary was built");
        self.process = Some(process);
        let began = Instant::now();
        while self
            .ask(&["device", "list", "-o", "json"])
            .is_none_or(|devices| devices[0]["open"] != true)
        {
            assert!(began.elapsed() < START_TIME_MAX, "{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("up.log")).unwrap_or_default()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_voute"));
        command
            .args(arguments)
            .env("VOUTE_API", format!("http://127.0.0.1:{}", self.ports[0]))
            .env("VOUTE_TOKEN_FILE", self.folder.path().join("box/control/admin.token"))
            .env_remove("VOUTE_TOKEN");
        command
    }

    fn voute(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the binary was built")
    }

    /// What a command printed; it must succeed.
    fn does(&self, arguments: &[&str]) -> String {
        let output = self.voute(arguments);
        assert!(output.status.success(), "{arguments:?}: {}\n{}", error_of(&output), self.log());
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    /// What a command printed as JSON; it must succeed.
    fn json(&self, arguments: &[&str]) -> Value {
        let text = self.does(&[arguments, &["-o", "json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {text}"))
    }

    /// What a refused command said.
    fn is_refused(&self, arguments: &[&str]) -> String {
        let output = self.voute(arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", error_of(&output));
        error_of(&output)
    }

    fn ask(&self, arguments: &[&str]) -> Option<Value> {
        let output = self.voute(arguments);
        output.status.success().then(|| serde_json::from_slice(&output.stdout).ok())?
    }

    /// Stops it as systemd would.
    fn stop(&mut self) {
        let Some(mut process) = self.process.take() else { return };
        let _ = Command::new("kill").args(["-TERM", &process.id().to_string()]).status();
        let _ = process.wait();
    }
}

impl Drop for OneBox {
    fn drop(&mut self) {
        self.stop();
    }
}

fn error_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Four free ports below what the kernel gives to outgoing connections; others for each test.
fn free_ports() -> [u16; 4] {
    static TESTS: AtomicU16 = AtomicU16::new(0);
    let test = TESTS.fetch_add(1, Ordering::Relaxed);
    let begin = 12_000 + (std::process::id() % 7_000) as u16 + 100 * test;
    let free = (begin..20_000)
        .filter_map(|port| TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).ok());
    let held: Vec<TcpListener> = free.take(4).collect();
    let ports = held.iter().map(|listener| listener.local_addr().expect("bound").port());
    ports.collect::<Vec<_>>().try_into().expect("four are free")
}

#[test]
fn every_noun_of_the_command_works_against_a_box() {
    let mut one_box = OneBox::start();
    inventory(&one_box);
    volumes_and_hosts(&one_box);
    plans_and_repeats(&one_box);
    people(&one_box);
    trail(&one_box);
    let before = one_box.json(&["volume", "show", "db"]);
    one_box.stop();
    one_box.run();
    comes_back(&one_box, &before);
}

fn inventory(one_box: &OneBox) {
    assert!(one_box.does(&["status"]).contains("health"));
    assert!(one_box.does(&["site", "list"]).contains("main"));
    assert!(one_box.does(&["node", "list"]).contains("heard"));
    assert!(one_box.does(&["pool", "show", "main"]).contains("MiB"));
    one_box.does(&["site", "add", "attic", "--reason", "why not"]);
    assert!(one_box.is_refused(&["site", "add", "attic"]).contains("attic"));
    one_box.does(&["site", "signal", "attic", "maintenance", "--detail", "painting"]);
    assert_eq!(one_box.json(&["site", "show", "attic"])["condition"], "Maintenance");
    let secret = one_box.folder.path().join("attic.secret");
    let secret_text = secret.display().to_string();
    one_box.does(&[
        "node",
        "add",
        "attic-1",
        "--site",
        "attic",
        "--address",
        "127.0.0.9",
        "--secret-out",
        &secret_text,
    ]);
    assert!(std::fs::read_to_string(&secret).expect("written").trim().len() >= 32);
    one_box.does(&["node", "portals", "attic-1", "--address", "127.0.0.8"]);
    assert_eq!(one_box.json(&["node", "show", "attic-1"])["portals"]["nvme"], "127.0.0.8:4420");
    one_box.does(&["pool", "create", "attic", "--site", "attic", "--extent", "32MiB"]);
    one_box.does(&["pool", "remove", "attic"]);
    one_box.does(&["node", "remove", "attic-1"]);
    one_box.does(&["site", "remove", "attic"]);
    refuses_foreign_data(one_box);
}

fn refuses_foreign_data(one_box: &OneBox) {
    let file = one_box.folder.path().join("foreign.img");
    let mut content = vec![0; 64 << 20];
    // An ext4 superblock's magic at its place.
    content[0x438..0x43a].copy_from_slice(&[0x53, 0xef]);
    std::fs::write(&file, content).expect("a file");
    let device = format!("file:{}:64MiB", file.display());
    let refused = one_box
        .is_refused(&["device", "add", "foreign", "--node", "main-1", "--pool", "main", &device]);
    assert!(refused.contains("--overwrite"), "{refused}");
    one_box.does(&["device", "remove", "foreign"]);
    one_box.does(&[
        "device",
        "add",
        "foreign",
        "--node",
        "main-1",
        "--pool",
        "main",
        &device,
        "--overwrite",
    ]);
    assert_eq!(one_box.json(&["device", "show", "foreign"])["state"], "adopted");
    one_box.does(&["device", "remove", "foreign"]);
}

fn volumes_and_hosts(one_box: &OneBox) {
    let created = one_box.does(&["volume", "create", "db", "--size", "64MiB", "--pool", "main"]);
    assert!(created.contains("served by main"), "{created}");
    one_box.does(&["volume", "resize", "db", "--size", "128MiB"]);
    assert_eq!(one_box.json(&["volume", "show", "db"])["size_bytes"], 128 << 20);
    assert!(one_box.is_refused(&["volume", "resize", "db", "--size", "64MiB"]).len() > 20);
    assert!(
        one_box
            .is_refused(&["volume", "create", "huge", "--size", "1TiB", "--pool", "main"])
            .contains("free")
    );
    assert!(one_box.is_refused(&["volume", "show", "nothing"]).contains("nothing"));
    put_secret(one_box);
    one_box.does(&[
        "host",
        "add",
        "app",
        "--nqn",
        "nqn.2014-08.org.nvmexpress:uuid:36f2e0a0-6f57-4d5b-8a54-2f0f2c1f0001",
    ]);
    one_box.does(&[
        "host",
        "change",
        "app",
        "--iqn",
        "iqn.2026-11.example:app",
        "--chap-secret",
        "app",
    ]);
    one_box.does(&["mapping", "add", "db", "app", "--lun", "3"]);
    assert_eq!(one_box.json(&["mapping", "list"])[0]["lun"], 3);
    assert!(one_box.does(&["host", "show", "app"]).contains("iqn.2026-11.example:app"));
    assert!(one_box.does(&["host", "list", "-o", "csv"]).starts_with("name,"));
    let head = |one_box: &OneBox| one_box.json(&["status"])["head"]["sequence"].clone();
    let before = head(one_box);
    assert!(one_box.does(&["host", "keys", "app"]).to_lowercase().contains("nvme secret"));
    assert_eq!(head(one_box), before, "and changes nothing");
    assert!(one_box.is_refused(&["volume", "delete", "db"]).contains("mapp"));
    one_box.does(&["mapping", "remove", "db", "app"]);
    one_box.does(&["host", "remove", "app"]);
    assert_eq!(one_box.json(&["leg", "list", "db"])[0]["formatted"], true);
    assert!(one_box.is_refused(&["leg", "remove", "db", "--site", "main"]).len() > 20);
    assert!(one_box.is_refused(&["leg", "add", "db", "--pool", "main"]).len() > 20);
    let observed = ["failover", "start", "main", "--observed", "a test"];
    let error = one_box.is_refused(&observed);
    assert!(error.contains("nothing moved from main"), "at once, not after a timeout: {error}");
    one_box.does(&["volume", "create", "short-lived", "--size", "16MiB", "--pool", "main"]);
    one_box.does(&["volume", "delete", "short-lived"]);
}

fn put_secret(one_box: &OneBox) {
    let mut put = one_box
        .command(&["secret", "put", "app"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("the binary was built");
    put.stdin.take().expect("piped").write_all(b"sixteen-or-more-x\n").expect("it reads");
    assert!(put.wait().expect("it ends").success());
    assert!(one_box.does(&["secret", "list"]).contains("app"));
}

fn plans_and_repeats(one_box: &OneBox) {
    let plan = one_box
        .does(&["volume", "create", "planned", "--size", "16MiB", "--pool", "main", "--plan"]);
    assert!(plan.contains("nothing is committed") && plan.contains("volume planned"), "{plan}");
    one_box.is_refused(&["volume", "show", "planned"]);
    let create = [
        "volume",
        "create",
        "once",
        "--size",
        "16MiB",
        "--pool",
        "main",
        "--idempotency-key",
        "k1",
        "--no-wait",
    ];
    let first = one_box.json(&create);
    let second = one_box.json(&create);
    assert_eq!(first["sequence"], second["sequence"]);
    assert_eq!(
        (first["repeated"].clone(), second["repeated"].clone()),
        (false.into(), true.into())
    );
    let other = [
        "volume",
        "create",
        "twice",
        "--size",
        "16MiB",
        "--pool",
        "main",
        "--idempotency-key",
        "k1",
    ];
    one_box.is_refused(&other);
}

fn people(one_box: &OneBox) {
    one_box.does(&["policy", "create", "careful", "--mode", "on-signal", "--hold-down", "5s"]);
    one_box.does(&["policy", "change", "careful", "--mode", "manual"]);
    assert_eq!(one_box.json(&["policy", "show", "careful"])["rules"]["mode"], "Manual");
    assert!(one_box.does(&["policy", "list"]).contains("automatic"));
    one_box.does(&["policy", "remove", "careful"]);
    let token = one_box.folder.path().join("viewer.token");
    let token_text = token.display().to_string();
    one_box.does(&[
        "credential",
        "issue",
        "watcher",
        "--role",
        "viewer",
        "--token-out",
        &token_text,
    ]);
    one_box.does(&["--token-file", &token_text, "volume", "list"]);
    one_box.is_refused(&[
        "--token-file",
        &token_text,
        "volume",
        "create",
        "x",
        "--size",
        "16MiB",
        "--pool",
        "main",
    ]);
    assert!(one_box.does(&["credential", "list"]).contains("Viewer"));
    one_box.does(&["credential", "revoke", "watcher"]);
    let unknown = one_box.is_refused(&["--token-file", &token_text, "volume", "list"]);
    assert!(unknown.contains("admin.token"), "{unknown}");
    one_box.does(&["secret", "remove", "app"]);
}

fn trail(one_box: &OneBox) {
    let listed = one_box.does(&["audit", "list", "--text", "why not"]);
    assert!(listed.contains("site attic added") && listed.contains("why not"), "{listed}");
    let refused = one_box.json(&["audit", "list", "--outcome", "refused"]);
    assert!(refused.as_array().is_some_and(|commits| commits.len() >= 5), "{refused}");
    assert!(one_box.does(&["audit", "show", "1"]).contains("cluster voute created"));
    assert!(one_box.is_refused(&["audit", "show", "999999"]).contains("999999"));
    assert!(one_box.does(&["audit", "list", "--entity", "db", "-o", "csv"]).contains("volume db"));
    assert!(one_box.does(&["audit", "verify"]).contains("verified"));
    assert!(one_box.does(&["failover", "list", "-o", "csv"]).starts_with("commit,"));
    follows(one_box);
}

/// `event follow` goes on for ever: its first lines suffice.
fn follows(one_box: &OneBox) {
    use std::io::{BufRead, BufReader};
    let mut follow = one_box
        .command(&["event", "follow", "--from", "1"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary was built");
    let mut lines = BufReader::new(follow.stdout.take().expect("piped")).lines();
    let first = lines.next().expect("a line").expect("UTF-8");
    assert!(first.contains("cluster voute created"), "{first}");
    follow.kill().expect("it runs");
    follow.wait().expect("it ends");
}

fn comes_back(one_box: &OneBox, before: &Value) {
    let began = Instant::now();
    loop {
        let after = one_box.json(&["volume", "show", "db"]);
        assert_eq!(after["volume"], before["volume"]);
        if after["health"] == "healthy" {
            break;
        }
        assert!(began.elapsed() < START_TIME_MAX, "{after}\n{}", one_box.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(
        one_box.json(&["device", "list"]).as_array().map(Vec::len),
        Some(1),
        "no second device"
    );
    assert_eq!(one_box.json(&["audit", "verify"])["verified"], true);
}

#[test]
fn a_second_process_on_the_same_folder_touches_nothing() {
    let one_box = OneBox::start();
    let data = one_box.folder.path().join("box/control");
    let output = Command::new(env!("CARGO_BIN_EXE_voute"))
        .args(["control", "--listen", "127.0.0.1:0", "--data-dir"])
        .arg(Path::new(&data))
        .output()
        .expect("the binary was built");
    assert_eq!(output.status.code(), Some(1), "{}", error_of(&output));
    assert!(one_box.does(&["audit", "verify"]).contains("verified"));
}
