//! How long the target takes for a read and a write of 4 KiB, without sockets and without a volume:
//! what a host sends is received, surfaced, completed, and the answer dropped.
//!
//! ```text
//! cargo run --release -p voute-iscsi --example hot_path
//! perf record target/release/examples/hot_path && perf report
//! ```

use anyhow::{Context as _, ensure};
use std::collections::HashMap;
use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};
use voute_buffer::Buffer;
use voute_iscsi::{
    AluaState, Authentication, Directory, HostView, LunView, Operation, Outcome, Portal, PortalId,
    Target, TargetConfig, TargetConnection, VolumeKey,
};

const TARGET: &str = "iqn.2026-01.dev.voute:hot";
const HOST: &str = "iqn.2026-01.dev.voute:host";
const BYTES: usize = 4096;
const ROUNDS: u32 = 20_000;
const DEPTH: u32 = 32;

fn target() -> Arc<Target> {
    let unit = LunView {
        lun: 0,
        volume: VolumeKey(1),
        naa: [0x60; 16],
        serial: "HOT".into(),
        block_size: 512,
        blocks: 1 << 20,
        alua_state: AluaState::ActiveOptimized,
        target_port_groups: Vec::new(),
        read_only: false,
        thin: false,
        physical_block_size: 512,
        atomic_blocks: 1,
    };
    let host = HostView { authentication: Authentication::None, luns: vec![unit], portals: None };
    let portal = Portal {
        id: PortalId(1),
        address: "192.0.2.1:3260".into(),
        group_tag: 1,
        relative_port: 1,
    };
    let target = Target::new(TargetConfig { name: TARGET.into(), alias: None, seed: [1; 32] });
    target.publish(Arc::new(Directory {
        portals: vec![portal],
        hosts: HashMap::from([(HOST.to_owned(), host)]),
        discovery: Authentication::None,
    }));
    target
}

/// A PDU of `data` (whose length is a multiple of four), without digests.
fn pdu(opcode: u8, flags: u8, task: u32, fields: &[(usize, u32)], data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 48];
    (bytes[0], bytes[1]) = (opcode, flags);
    bytes[4..8].copy_from_slice(&(data.len() as u32).to_be_bytes());
    bytes[16..20].copy_from_slice(&task.to_be_bytes());
    for (at, value) in fields {
        bytes[*at..*at + 4].copy_from_slice(&value.to_be_bytes());
    }
    bytes.extend_from_slice(data);
    bytes
}

fn log_in(connection: &mut TargetConnection) -> anyhow::Result<()> {
    let mut text = format!(
        "InitiatorName={HOST}\0TargetName={TARGET}\0SessionType=Normal\0InitialR2T=No\0ImmediateData=Yes\0\
         MaxRecvDataSegmentLength=262144\0"
    );
    while !text.len().is_multiple_of(4) {
        text.push('\0');
    }
    let bytes = pdu(0x43, 0x87, 0, &[(8, 0x8000_0000), (24, 1)], text.as_bytes());
    connection.receive(&bytes, Duration::ZERO);
    ensure!(connection.host().is_some(), "the login was refused");
    connection.output().clear();
    Ok(())
}

/// A SCSI command of one transfer at block `task`.
fn command(task: u32, number: u32, opcode: u8, flags: u8, data: &[u8]) -> Vec<u8> {
    let fields = [
        (20, BYTES as u32),
        (24, number),
        (32, u32::from(opcode) << 24),
        (34, task % 1000),
        (39, (BYTES as u32 / 512) << 16),
    ];
    pdu(0x01, flags, task, &fields, data)
}

/// Nanoseconds for one command, at the given depth.
fn measure(writes: bool, depth: u32) -> anyhow::Result<f64> {
    let mut connection = TargetConnection::new(target(), PortalId(1), Duration::ZERO);
    log_in(&mut connection)?;
    // The unit attention of a new session.
    connection.receive(&pdu(0x01, 0x81, 1, &[(24, 1)], &[]), Duration::ZERO);
    connection.output().clear();
    let data = vec![7; BYTES];
    let mut number = 2;
    let mut spent = Duration::ZERO;
    // Of the round before: with nothing left at its top, the heap would be given back each time.
    let mut kept: Vec<Buffer> = Vec::new();
    for _ in 0..ROUNDS / depth {
        let mut bytes = Vec::new();
        for at in 0..depth {
            let (opcode, flags, sent) =
                if writes { (0x2a, 0xa1, &data[..]) } else { (0x28, 0xc1, &[][..]) };
            bytes.extend(command(at + 1, number, opcode, flags, sent));
            number += 1;
        }
        // What the volume would hand over.
        let mut read: Vec<Buffer> =
            (0..if writes { 0 } else { depth }).map(|_| Buffer::zeroed(BYTES)).collect();
        let mut written = Vec::new();
        let began = Instant::now();
        connection.receive(&bytes, Duration::ZERO);
        let mut done = 0;
        while let Some(request) = connection.next_request() {
            let outcome = match request.operation {
                Operation::Read { .. } => Outcome::Data(read.pop().context("one for each")?),
                Operation::Write { data, .. } => {
                    written.push(data);
                    Outcome::Done
                }
                other => anyhow::bail!("surfaced {other:?}"),
            };
            connection.complete(request.tag, outcome);
            done += 1;
        }
        spent += began.elapsed();
        ensure!(done == depth, "{done} of {depth} were surfaced");
        connection.output().clear();
        kept.clear();
        kept.append(&mut written);
    }
    Ok(spent.as_nanos() as f64 / f64::from(ROUNDS / depth * depth))
}

fn main() -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    for (name, writes) in [("read", false), ("write", true)] {
        for depth in [1, DEPTH] {
            measure(writes, depth)?;
            writeln!(out, "4 KiB {name}, depth {depth}: {:.0} ns", measure(writes, depth)?)?;
        }
    }
    Ok(())
}
