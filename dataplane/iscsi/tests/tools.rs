//! Initiators that others wrote, against volumes in memory over loopback: libiscsi's conformance tool,
//! its load generator, qemu-img. A tool that is not installed is told and skipped.

#[path = "../examples/ram_target/disk.rs"]
mod disk;
#[path = "../examples/ram_target/server.rs"]
mod server;

use disk::Disk;
use server::Disks;
use std::collections::HashMap;
use std::io::Write as _;
use std::net::TcpListener;
use std::process::{Command, Output};
use std::sync::Arc;
use voute_iscsi::{
    AluaState, Authentication, Chap, Credential, Directory, HostView, LunView, Portal, PortalId,
    Target, TargetConfig, TargetPortGroup, VolumeKey,
};

const NAME: &str = "iqn.2026-01.dev.voute:tools";
const HOST: &str = "iqn.2026-01.dev.voute:host";
const OTHER_HOST: &str = "iqn.2026-01.dev.voute:host2";
const BLOCKS: usize = 64 << 11;

/// What a served volume is like.
#[derive(Clone, Default)]
struct Kind {
    thin: bool,
    read_only: bool,
    physical_block_size: u32,
    authentication: Authentication,
}

/// Two portals of one node, and their addresses.
struct Served {
    addresses: [String; 2],
}

impl Served {
    fn start(kind: &Kind) -> Self {
        let listeners =
            [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("loopback has free ports"));
        let addresses =
            [0, 1].map(|at: usize| listeners[at].local_addr().expect("is bound").to_string());
        let target = Target::new(TargetConfig { name: NAME.into(), alias: None, seed: [1; 32] });
        target.publish(Arc::new(directory(kind, &addresses)));
        let disks: Disks = Arc::new(HashMap::from([(VolumeKey(1), Disk::new(512, BLOCKS))]));
        for (listener, number) in listeners.into_iter().zip(1..) {
            let (target, disks) = (target.clone(), disks.clone());
            std::thread::spawn(move || server::serve(&listener, &target, PortalId(number), &disks));
        }
        Served { addresses }
    }

    fn url(&self, path: usize) -> String {
        format!("iscsi://{}/{NAME}/0", self.addresses[path])
    }
}

fn directory(kind: &Kind, addresses: &[String; 2]) -> Directory {
    let mut naa = [0; 16];
    naa[0] = 0x60;
    let view = LunView {
        lun: 0,
        volume: VolumeKey(1),
        naa,
        serial: "TOOLS1".into(),
        block_size: 512,
        blocks: BLOCKS as u64,
        alua_state: AluaState::ActiveOptimized,
        target_port_groups: vec![TargetPortGroup {
            id: 1,
            state: AluaState::ActiveOptimized,
            relative_ports: vec![1, 2],
        }],
        read_only: kind.read_only,
        thin: kind.thin,
        physical_block_size: kind.physical_block_size.max(512),
        // One operation after the other, in memory that no power cut leaves half written.
        atomic_blocks: 256,
    };
    let host =
        HostView { authentication: kind.authentication.clone(), luns: vec![view], portals: None };
    Directory {
        portals: addresses
            .iter()
            .zip(1..)
            .map(|(address, number)| Portal {
                id: PortalId(number),
                address: address.clone(),
                group_tag: number,
                relative_port: number,
            })
            .collect(),
        hosts: [HOST, OTHER_HOST].map(|name| (name.to_owned(), host.clone())).into(),
        discovery: Authentication::None,
    }
}

/// Runs a tool; None if it is not installed, which is said past the test harness's capture.
fn run(program: &str, arguments: &[&str]) -> Option<Output> {
    match Command::new(program).args(arguments).output() {
        Ok(output) => Some(output),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let _ = writeln!(std::io::stderr(), "SKIPPED: {program} not installed");
            None
        }
        Err(error) => panic!("{program} does not run: {error}"),
    }
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Runs the conformance tool; its output, after nothing in it failed and at least `least` tests ran.
fn conform(family: &str, allow_data_loss: bool, paths: &[String], least: u32) -> Option<String> {
    let mut arguments = vec!["-i", HOST, "-I", OTHER_HOST, "-t", family];
    if allow_data_loss {
        arguments.push("-d");
    }
    arguments.extend(paths.iter().map(String::as_str));
    let said = text(&run("iscsi-test-cu", &arguments)?);
    let summary = said.lines().find(|line| line.trim_start().starts_with("tests "));
    let counts: Vec<u32> = summary
        .unwrap_or_else(|| panic!("no summary in:\n{said}"))
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    assert!(counts[1] >= least, "only {} tests ran:\n{said}", counts[1]);
    assert_eq!(counts[3], 0, "tests failed:\n{said}");
    Some(said)
}

/// Skips that are known, each for what it needs: hardware that we are not, or what is not built yet.
fn unexpected_skips<'a>(said: &'a str, known: &[&str]) -> Vec<&'a str> {
    said.lines()
        .filter(|line| {
            line.contains("[SKIPPED]") && !known.iter().any(|reason| line.contains(reason))
        })
        .collect()
}

const NEVER: [&str; 3] = ["removable", "sanitize", "write-protected"];
const NOT_BUILT: [&str; 4] =
    ["EXTENDEDCOPY", "RECEIVECOPYRESULT", "RECEIVE_COPY_RESULTS", "WRITEATOMIC16"];
/// The tool's own: it wants physical blocks larger than logical ones, but its test of GET LBA STATUS
/// fails on these; and WRITE SAME of zero blocks, which we refuse as WSNZ tells.
const BY_CHOICE: [&str; 2] = ["LBPPB < 2", "does not support 0-blocks"];

#[test]
fn the_conformance_tool_finds_nothing_wrong_with_a_thin_volume_on_two_paths() {
    let served = Served::start(&Kind { thin: true, ..Kind::default() });
    let Some(said) = conform("ALL", true, &[served.url(0), served.url(1)], 230) else { return };
    let known = [&NEVER[..], &NOT_BUILT, &BY_CHOICE].concat();
    assert_eq!(unexpected_skips(&said, &known), Vec::<&str>::new());
}

#[test]
fn the_conformance_tool_finds_nothing_wrong_with_a_thick_volume() {
    let served = Served::start(&Kind::default());
    let Some(said) = conform("ALL", true, &[served.url(0)], 230) else { return };
    let of_thin = ["fully provisioned", "UNMAP is not implemented", "Multipath unavailable"];
    let known = [&NEVER[..], &NOT_BUILT, &BY_CHOICE, &of_thin].concat();
    assert_eq!(unexpected_skips(&said, &known), Vec::<&str>::new());
}

#[test]
fn the_conformance_tool_finds_a_read_only_volume_protected() {
    let served = Served::start(&Kind { read_only: true, thin: true, ..Kind::default() });
    let Some(said) = conform("ALL.ReadOnly", true, &[served.url(0)], 1) else { return };
    assert_eq!(unexpected_skips(&said, &[]), Vec::<&str>::new());
}

#[test]
fn qemu_img_writes_an_image_and_finds_it_unchanged() {
    let served = Served::start(&Kind { thin: true, ..Kind::default() });
    let folder = std::env::temp_dir().join(format!("voute-iscsi-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("the temporary folder is writable");
    let image = folder.join("image.raw");
    let mut bytes = vec![0u8; BLOCKS * 512];
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    // Half of it is not zero, in pieces.
    for piece in bytes.chunks_mut(200_000).step_by(2) {
        for byte in piece {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            *byte = (state >> 56) as u8;
        }
    }
    std::fs::write(&image, bytes).expect("the image fits");
    let image = image.to_str().expect("the folder's name is text");
    let options = |digest: &str| {
        format!(
            "driver=iscsi,transport=tcp,portal={},target={NAME},lun=0,initiator-name={HOST},header-digest={digest}",
            served.addresses[0]
        )
    };
    for digest in ["none", "crc32c"] {
        let there = options(digest);
        let raw = format!("driver=raw,file.filename={image}");
        let convert = ["convert", "-n", "--image-opts", "--target-image-opts", &raw, &there];
        let Some(converted) = run("qemu-img", &convert) else { break };
        let said = text(&converted);
        if said.contains("Unknown driver 'iscsi'") || said.contains("Unknown protocol 'iscsi'") {
            let _ = writeln!(
                std::io::stderr(),
                "SKIPPED: qemu-img has no iSCSI driver, install qemu-block-extra"
            );
            break;
        }
        assert!(converted.status.success(), "{said}");
        let compared =
            run("qemu-img", &["compare", "--image-opts", &raw, &there]).expect("it just ran");
        assert!(compared.status.success(), "{}", text(&compared));
    }
    std::fs::remove_dir_all(&folder).expect("it was made above");
}

#[test]
fn the_load_generator_runs_without_an_error() {
    let served = Served::start(&Kind::default());
    for (depth, blocks) in [("1", "8"), ("32", "8"), ("8", "256")] {
        let arguments = ["-i", HOST, "-m", depth, "-b", blocks, "-r", "-t", "1", &served.url(0)];
        let Some(output) = run("iscsi-perf", &arguments) else { return };
        let said = text(&output);
        assert!(output.status.success() && said.contains("iops average"), "{said}");
    }
}

#[test]
fn libiscsi_logs_in_by_mutual_chap_with_digests_only_with_the_right_secrets() {
    let credential = |name: &str, secret: &str| Credential {
        name: name.into(),
        secret: secret.as_bytes().to_vec(),
    };
    let chap = Chap {
        host: credential("host", "secret of host"),
        target: Some(credential("target", "secret of target")),
    };
    let served =
        Served::start(&Kind { authentication: Authentication::Chap(chap), ..Kind::default() });
    let inquire = |host_secret: &str, target_secret: &str| {
        let url = format!(
            "iscsi://host%{host_secret}@{}/{NAME}/0?target_user=target&target_password={target_secret}\
             &header_digest=crc32c",
            served.addresses[0]
        );
        run("iscsi-inq", &["-i", HOST, &url]).map(|output| text(&output))
    };
    let Some(said) = inquire("secret of host", "secret of target") else { return };
    assert!(said.contains("Peripheral Qualifier:CONNECTED"), "{said}");
    for (host, target) in
        [("wrong secret 1", "secret of target"), ("secret of host", "wrong secret 1")]
    {
        let said = inquire(host, target).expect("it just ran");
        assert!(said.contains("Authentication fail"), "{said}");
    }
}
