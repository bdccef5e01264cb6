//! The example permissions of `ops/nats/users.conf` on a real nats-server: they suffice for a control
//! process, and do not suffice to take anything from the log.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);

struct KillOnDrop(Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The program, or nothing if it cannot be had here; in CI that is a failure.
fn nats_server() -> Option<PathBuf> {
    let finder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/tools/nats-server");
    let found = Command::new(finder).output().expect("the finder is a script of this repository");
    if found.status.success() {
        return Some(PathBuf::from(String::from_utf8_lossy(&found.stdout).trim()));
    }
    let why = String::from_utf8_lossy(&found.stderr);
    assert!(std::env::var_os("CI").is_none(), "no nats-server: {why}");
    eprintln!("SKIPPED: no nats-server ({why})");
    None
}

fn free_addresses() -> [SocketAddr; 3] {
    let begin = 8_500 + (std::process::id() % 3_000) as u16;
    let bind = |port| TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], port))).ok();
    let held: Vec<TcpListener> = (begin..12_000).filter_map(bind).take(3).collect();
    let addresses = held.iter().map(|listener| listener.local_addr().expect("bound"));
    addresses.collect::<Vec<_>>().try_into().expect("three are free")
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let began = Instant::now();
    while !condition() {
        assert!(began.elapsed() < PATIENCE, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A server with the example's users; `further` are more users.
fn write_configuration(folder: &Path, server: SocketAddr, monitoring: SocketAddr, further: &str) {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("nats/users.conf");
    let users = std::fs::read_to_string(example).expect("the example");
    assert!(users.contains("$2a$11$REPLACE") && users.contains("users: ["));
    let users = users
        .replace("$2a$11$REPLACE", "secret")
        .replace("users: [", &format!("users: [\n{further}"));
    std::fs::write(folder.join("users.conf"), users).expect("writable");
    let server = format!(
        "server_name: t\nhost: 127.0.0.1\nport: {}\nhttp: \"{monitoring}\"\njetstream {{ store_dir: {:?}, sync_interval: always }}\ninclude \"users.conf\"\n",
        server.port(),
        folder.join("js")
    );
    std::fs::write(folder.join("server.conf"), server).expect("writable");
}

fn control(folder: &Path, addresses: &[SocketAddr; 3], user: &str, options: &[&str]) -> KillOnDrop {
    let child = Command::new(env!("CARGO_BIN_EXE_voute"))
        .args([
            "control",
            "--listen",
            &addresses[2].to_string(),
            "--log",
            &format!("nats://{}", addresses[0]),
        ])
        .args([
            "--log-monitoring",
            &format!("http://{}", addresses[1]),
            "--log-user",
            user,
            "--log-password-file",
        ])
        .arg(folder.join("password"))
        .arg("--data-dir")
        .arg(folder.join("control"))
        .args(options)
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary was built");
    KillOnDrop(child)
}

fn voute(folder: &Path, addresses: &[SocketAddr; 3], arguments: &[&str]) -> bool {
    let output = Command::new(env!("CARGO_BIN_EXE_voute"))
        .args(arguments)
        .env("VOUTE_API", format!("http://{}", addresses[2]))
        .env("VOUTE_TOKEN_FILE", folder.join("control/admin.token"))
        .env_remove("VOUTE_TOKEN")
        .output();
    output.is_ok_and(|output| output.status.success())
}

/// What a server answers to a publication by a user: its first line that is no greeting, over the
/// plain text protocol.
fn answer_to(server: SocketAddr, user: &str, subject: &str, payload: &str) -> String {
    let mut stream = TcpStream::connect(server).expect("it runs");
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a socket");
    let connect =
        format!("CONNECT {{\"verbose\":false,\"user\":\"{user}\",\"pass\":\"secret\"}}\r\n");
    write!(
        stream,
        "{connect}PUB {subject} _INBOX.answer {}\r\n{payload}\r\nPING\r\n",
        payload.len()
    )
    .expect("it reads");
    let lines = BufReader::new(stream).lines().map_while(Result::ok);
    lines.into_iter().find(|line| !line.starts_with("INFO")).expect("an answer")
}

#[test]
fn a_control_process_may_append_and_nobody_may_take_away() {
    let Some(program) = nats_server() else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let folder = folder.path();
    std::fs::write(folder.join("password"), "secret\n").expect("writable");
    let addresses = free_addresses();
    let setup = "{ user: \"setup\", password: \"secret\" }\n";
    write_configuration(folder, addresses[0], addresses[1], setup);
    let start = || {
        let mut command = Command::new(&program);
        command.arg("--config").arg(folder.join("server.conf")).stderr(Stdio::null());
        let server = KillOnDrop(command.spawn().expect("it is executable"));
        wait_for("nats-server's start", || TcpStream::connect(addresses[0]).is_ok());
        server
    };
    // Once, by whoever sets the cluster up: the stream is created.
    let server = start();
    let first = control(folder, &addresses, "setup", &[]);
    wait_for("the first start", || voute(folder, &addresses, &["status"]));
    drop((first, server));
    // From then on, with the example's users only.
    write_configuration(folder, addresses[0], addresses[1], "");
    let _server = start();
    let _control = control(folder, &addresses, "voute-control", &["--log-exists"]);
    wait_for("the second start", || voute(folder, &addresses, &["site", "add", "paris"]));
    assert!(voute(folder, &addresses, &["audit", "verify"]));
    for user in ["voute-control", "voute-audit"] {
        for request in ["STREAM.DELETE", "STREAM.PURGE", "STREAM.UPDATE", "STREAM.MSG.DELETE"] {
            let answer =
                answer_to(addresses[0], user, &format!("$JS.API.{request}.VOUTE_LOG"), "{}");
            assert!(answer.contains("Permissions Violation"), "{user} {request}: {answer}");
        }
    }
    let append = answer_to(addresses[0], "voute-audit", "voute.log.VOUTE_LOG", "x");
    assert!(append.contains("Permissions Violation"), "{append}");
    // What control processes tell each other is theirs alone.
    for topic in ["signatures", "watch", "secrets"] {
        let subject = format!("voute.exchange.VOUTE_LOG.{topic}");
        assert_eq!(answer_to(addresses[0], "voute-control", &subject, "x"), "PONG");
        let answer = answer_to(addresses[0], "voute-audit", &subject, "x");
        assert!(answer.contains("Permissions Violation"), "{topic}: {answer}");
    }
    assert_eq!(
        answer_to(addresses[0], "voute-control", "$JS.API.STREAM.INFO.VOUTE_LOG", ""),
        "PONG"
    );
    assert!(voute(folder, &addresses, &["audit", "verify"]));
}
