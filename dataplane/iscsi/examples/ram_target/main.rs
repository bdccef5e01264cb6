//! An iSCSI target over memory, to be tried with `iscsi-ls`, `iscsi-test-cu`, `iscsi-perf`, `qemu-img`.
//!
//! ```text
//! cargo run -p voute-iscsi --example ram_target -- --listen 127.0.0.1:3260 --thin
//! iscsi-test-cu -d -t ALL iscsi://127.0.0.1/iqn.2026-01.dev.voute:ram/0
//! ```

mod disk;
mod server;

use anyhow::{Context as _, bail};
use disk::Disk;
use server::Disks;
use std::collections::HashMap;
use std::net::TcpListener;
use std::sync::Arc;
use voute_iscsi::{
    AluaState, Authentication, Chap, Credential, Directory, HostView, LunView, Portal, PortalId,
    Target, TargetConfig, TargetPortGroup, VolumeKey,
};

const NAME: &str = "iqn.2026-01.dev.voute:ram";

/// The names that well-known tools log in by.
const HOSTS: [&str; 5] = [
    "iqn.2007-10.com.github:sahlberg:libiscsi:iscsi-test",
    "iqn.2007-10.com.github:sahlberg:libiscsi:iscsi-test-2",
    "iqn.2007-10.com.github:sahlberg:libiscsi:iscsi-ls",
    "iqn.2010-11.libiscsi:iscsi-perf",
    "iqn.2008-11.org.linux-kvm",
];

struct Options {
    listen: Vec<String>,
    hosts: Vec<String>,
    mib: usize,
    block_size: u32,
    physical_block_size: u32,
    thin: bool,
    read_only: bool,
    chap: Authentication,
}

fn options() -> anyhow::Result<Options> {
    let mut options = Options {
        listen: Vec::new(),
        hosts: HOSTS.map(String::from).to_vec(),
        mib: 100,
        block_size: 512,
        physical_block_size: 512,
        thin: false,
        read_only: false,
        chap: Authentication::None,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--listen" => options.listen.push(value()?),
            "--host" => options.hosts.push(value()?),
            "--mib" => options.mib = value()?.parse()?,
            "--block-size" => options.block_size = value()?.parse()?,
            "--physical-block-size" => options.physical_block_size = value()?.parse()?,
            "--thin" => options.thin = true,
            "--read-only" => options.read_only = true,
            "--chap" => options.chap = chap(&value()?)?,
            _ => bail!(
                "unknown argument {argument}; known: --listen ADDRESS:PORT --host IQN --mib N --block-size N \
                 --physical-block-size N --thin --read-only --chap NAME:SECRET[:TARGETNAME:TARGETSECRET]"
            ),
        }
    }
    if options.listen.is_empty() {
        options.listen.push("127.0.0.1:3260".into());
    }
    Ok(options)
}

fn chap(text: &str) -> anyhow::Result<Authentication> {
    let credential = |name: &str, secret: &str| Credential {
        name: name.into(),
        secret: secret.as_bytes().to_vec(),
    };
    Ok(Authentication::Chap(match text.split(':').collect::<Vec<_>>()[..] {
        [name, secret] => Chap { host: credential(name, secret), target: None },
        [name, secret, target, other] => {
            Chap { host: credential(name, secret), target: Some(credential(target, other)) }
        }
        _ => bail!("--chap takes NAME:SECRET or NAME:SECRET:TARGETNAME:TARGETSECRET"),
    }))
}

fn main() -> anyhow::Result<()> {
    let options = options()?;
    let blocks = (options.mib << 20) / options.block_size as usize;
    let volume = VolumeKey(1);
    let disks: Disks =
        Arc::new(HashMap::from([(volume, Disk::new(options.block_size as usize, blocks))]));
    let ports: Vec<u16> = (1..=options.listen.len() as u16).collect();
    let portals = options.listen.iter().zip(&ports).map(|(address, port)| Portal {
        id: PortalId(*port),
        address: address.clone(),
        group_tag: *port,
        relative_port: *port,
    });
    let mut naa = [0; 16];
    naa[..9].copy_from_slice(&[0x60, 0, 0, 0, 0, 0, 0, 0, 0x01]);
    let view = LunView {
        lun: 0,
        volume,
        naa,
        serial: "RAM0001".into(),
        block_size: options.block_size,
        blocks: blocks as u64,
        alua_state: AluaState::ActiveOptimized,
        target_port_groups: vec![TargetPortGroup {
            id: 1,
            state: AluaState::ActiveOptimized,
            relative_ports: ports.clone(),
        }],
        read_only: options.read_only,
        thin: options.thin,
        physical_block_size: options.physical_block_size,
        // One operation after the other, in memory that no power cut leaves half written.
        atomic_blocks: 256,
    };
    let host = HostView { authentication: options.chap, luns: vec![view], portals: None };
    let directory = Directory {
        portals: portals.collect(),
        hosts: options.hosts.into_iter().map(|name| (name, host.clone())).collect(),
        discovery: Authentication::None,
    };
    let mut seed = [0; 32];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut seed)?;
    let target = Target::new(TargetConfig { name: NAME.into(), alias: None, seed });
    target.publish(Arc::new(directory));
    let mut threads = Vec::new();
    for (address, port) in options.listen.iter().zip(ports) {
        let listener =
            TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
        let (target, disks) = (target.clone(), disks.clone());
        threads.push(std::thread::spawn(move || {
            server::serve(&listener, &target, PortalId(port), &disks)
        }));
    }
    for thread in threads {
        let _ = thread.join();
    }
    Ok(())
}
