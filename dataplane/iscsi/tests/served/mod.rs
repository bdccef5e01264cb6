//! A volume in memory on two real ports, for initiators that others wrote.

#![allow(dead_code, reason = "each test file uses a part")]

#[path = "../../examples/ram_target/disk.rs"]
mod disk;
#[path = "../../examples/ram_target/server.rs"]
mod server;

use disk::Disk;
use server::Disks;
use std::collections::HashMap;
use std::io::Write as _;
use std::net::TcpListener;
use std::process::{Command, Output};
use std::sync::Arc;
use voute_iscsi::{
    AluaState, Authentication, Directory, HostView, LunView, Portal, PortalId, Target,
    TargetConfig, TargetPortGroup, VolumeKey,
};

pub(crate) const NAME: &str = "iqn.2026-01.dev.voute:tools";
pub(crate) const HOST: &str = "iqn.2026-01.dev.voute:host";
pub(crate) const OTHER_HOST: &str = "iqn.2026-01.dev.voute:host2";
pub(crate) const BYTES: usize = 64 << 20;

/// What a served volume is like.
#[derive(Clone, Default)]
pub(crate) struct Kind {
    pub(crate) thin: bool,
    pub(crate) read_only: bool,
    /// 512 if there is none.
    pub(crate) block_size: Option<usize>,
    pub(crate) physical_block_size: u32,
    pub(crate) authentication: Authentication,
}

impl Kind {
    fn block_size(&self) -> usize {
        self.block_size.unwrap_or(512)
    }
}

/// Two portals of one node, and their addresses.
pub(crate) struct Served {
    pub(crate) addresses: [String; 2],
}

impl Served {
    pub(crate) fn start(kind: &Kind) -> Self {
        let listeners =
            [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("loopback has free ports"));
        let addresses =
            [0, 1].map(|at: usize| listeners[at].local_addr().expect("is bound").to_string());
        let target = Target::new(TargetConfig { name: NAME.into(), alias: None, seed: [1; 32] });
        target.publish(Arc::new(directory(kind, &addresses)));
        let disks: Disks = Arc::new(HashMap::from([(
            VolumeKey(1),
            Disk::new(kind.block_size(), BYTES / kind.block_size()),
        )]));
        for (listener, number) in listeners.into_iter().zip(1..) {
            let (target, disks) = (target.clone(), disks.clone());
            std::thread::spawn(move || server::serve(&listener, &target, PortalId(number), &disks));
        }
        Served { addresses }
    }

    pub(crate) fn url(&self, path: usize) -> String {
        format!("iscsi://{}/{NAME}/0", self.addresses[path])
    }
}

pub(crate) fn directory(kind: &Kind, addresses: &[String; 2]) -> Directory {
    let mut naa = [0; 16];
    naa[0] = 0x60;
    let view = LunView {
        lun: 0,
        volume: VolumeKey(1),
        naa,
        serial: "TOOLS1".into(),
        block_size: kind.block_size() as u32,
        blocks: (BYTES / kind.block_size()) as u64,
        alua_state: AluaState::ActiveOptimized,
        target_port_groups: vec![TargetPortGroup {
            id: 1,
            state: AluaState::ActiveOptimized,
            relative_ports: vec![1, 2],
        }],
        read_only: kind.read_only,
        thin: kind.thin,
        physical_block_size: kind.physical_block_size.max(kind.block_size() as u32),
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
pub(crate) fn run(program: &str, arguments: &[&str]) -> Option<Output> {
    match Command::new(program).args(arguments).output() {
        Ok(output) => Some(output),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let _ = writeln!(std::io::stderr(), "SKIPPED: {program} not installed");
            None
        }
        Err(error) => panic!("{program} does not run: {error}"),
    }
}

pub(crate) fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
