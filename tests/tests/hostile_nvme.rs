//! Hosts that mean ill or are broken, at the NVMe/TCP door of two real nodes, while a verifying host
//! writes: limits hold, whoever keeps to the protocol is not disturbed, each refusal is counted once, and
//! many are told in one line.

use anyhow::{Context, ensure};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use voute_nvme::{
    Closed, Command, ConnectionOptions, DISCOVERY_NQN, InitiatorConnection, InitiatorEvent, Status,
};
use voute_tests::cluster::{Log, TwoSites};
use voute_tests::harm::{must_flow, must_keep, must_not_fail};

const REGIONS: u32 = 2;
/// Writes that must get through while an attack goes on.
const FLOWING: u64 = 20;
/// A node gives a connection this long to greet it (`TargetLimits::handshake`), and we some more.
const GREETING_MAX: Duration = Duration::from_secs(20);
const SILENT: usize = 300;
/// More Connects than this are not refused to a host that means well.
const STRAY_MAX: u64 = 20;
/// How many connections of [`wrong_lengths`] a door ends.
const WRONG_LENGTHS: u64 = 6;
const STORM: Duration = Duration::from_secs(5);
/// Less than this a second would be no storm.
const STORM_RATE_MIN: u64 = 500;

/// ICReq without digests.
fn greeting() -> [u8; 128] {
    let mut pdu = [0; 128];
    (pdu[2], pdu[4]) = (128, 128);
    pdu
}

/// A command capsule without data, for a transfer of `length` bytes.
fn capsule(opcode: u8, id: u16, length: u32) -> Vec<u8> {
    let mut pdu = vec![0; 72];
    (pdu[0], pdu[2], pdu[4]) = (4, 72, 72);
    (pdu[8], pdu[9]) = (opcode, 0x40);
    pdu[10..12].copy_from_slice(&id.to_le_bytes());
    pdu[12] = 1;
    pdu[40..44].copy_from_slice(&length.to_le_bytes());
    pdu[47] = 0x5A;
    pdu
}

/// Connect to queue 0 as `host`.
fn connect(subsystem: &str, host: &str, depth: u16) -> Vec<u8> {
    let mut pdu = capsule(0x7F, 0, 1024);
    pdu[3] = 72;
    pdu[4..8].copy_from_slice(&(72u32 + 1024).to_le_bytes());
    pdu[47] = 0x01;
    pdu[52..54].copy_from_slice(&(depth - 1).to_le_bytes());
    let mut data = vec![0; 1024];
    data[16..18].fill(0xFF);
    data[256..256 + subsystem.len()].copy_from_slice(subsystem.as_bytes());
    data[512..512 + host.len()].copy_from_slice(host.as_bytes());
    pdu.extend(data);
    pdu
}

fn dial(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(address).context("a listener is gone")?;
    stream.set_read_timeout(Some(GREETING_MAX))?;
    Ok(stream)
}

/// Everything until the other side closes.
fn until_closed(stream: &mut TcpStream) -> anyhow::Result<Vec<u8>> {
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => {
            Err(error).context("the connection stays open")
        }
        _ => Ok(answer),
    }
}

/// Types of the PDUs in an answer.
fn kinds(mut bytes: &[u8]) -> Vec<u8> {
    let mut kinds = Vec::new();
    while bytes.len() >= 8 {
        kinds.push(bytes[0]);
        let length = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]) as usize;
        bytes = bytes.get(length.max(8)..).unwrap_or_default();
    }
    kinds
}

/// Many connections that say nothing, or too little, for ever.
fn silence(door: SocketAddr) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut silent = Vec::new();
    for index in 0..SILENT {
        let mut stream = dial(door)?;
        let said: &[u8] = match index % 4 {
            0 => &[],
            1 => &greeting()[..7],
            2 => &greeting(),
            _ => &[&greeting()[..], &connect("nqn.nowhere", "nqn.nobody", 32)[..700]].concat(),
        };
        stream.write_all(said)?;
        silent.push(stream);
    }
    for stream in &mut silent {
        until_closed(stream)?;
    }
    ensure!(began.elapsed() < GREETING_MAX + Duration::from_secs(20), "closed much too late");
    Ok(())
}

/// A byte at a time: the time that a greeting may take is that of the whole.
fn drip(door: SocketAddr) -> anyhow::Result<()> {
    let mut stream = dial(door)?;
    let began = Instant::now();
    let whole = [&greeting()[..], &connect("nqn.nowhere", "nqn.nobody", 32)].concat();
    for byte in whole {
        if began.elapsed() > GREETING_MAX || stream.write_all(&[byte]).is_err() {
            break;
        }
        std::thread::sleep(Duration::from_millis(25)); // to be slow is the point
    }
    ensure!(began.elapsed() < GREETING_MAX, "a slow sender may greet for ever");
    until_closed(&mut stream).map(drop)
}

/// More commands than the queue holds.
fn overflow(door: SocketAddr) -> anyhow::Result<()> {
    let mut stream = dial(door)?;
    let mut bytes = greeting().to_vec();
    bytes.extend(connect(DISCOVERY_NQN, "nqn.2026-11.io.voute:hostile", 4));
    // CC.EN, so that event requests are taken: they stay, and fill the queue.
    let mut enable = capsule(0x7F, 1, 0);
    enable[12] = 0;
    enable[52] = 0x14;
    enable[56..60].copy_from_slice(&0x0046_0001u32.to_le_bytes());
    bytes.extend(enable);
    (2..40).for_each(|id| bytes.extend(capsule(0x0C, id, 0)));
    // The other side may close before all of it is sent.
    let _ = stream.write_all(&bytes);
    let answer = until_closed(&mut stream)?;
    let kinds = kinds(&answer);
    ensure!(kinds.first() == Some(&1) && kinds.last() == Some(&3), "no termination: {kinds:?}");
    let fatal = answer.len() - 24 - 72 + 8;
    ensure!(answer[fatal] == 5, "FES {} is not `limit exceeded`", answer[fatal]);
    Ok(())
}

/// PDUs whose lengths cannot be: shorter than their header, longer than anything may be, data beyond the
/// PDU, padding before it that nobody asked for. Each ends its connection with a termination request.
fn wrong_lengths(door: SocketAddr) -> anyhow::Result<()> {
    let with = |change: fn(&mut [u8])| {
        let mut pdu = capsule(0x7F, 0, 1024);
        change(&mut pdu);
        pdu
    };
    let wrong: [Vec<u8>; WRONG_LENGTHS as usize] = [
        with(|pdu| pdu[4] = 71),
        with(|pdu| pdu[2] = 71),
        with(|pdu| pdu[4..8].fill(0xFF)),
        with(|pdu| pdu[4..8].fill(0)),
        // Data that starts within the header, and data that starts beyond the PDU.
        with(|pdu| (pdu[3], pdu[5]) = (64, 1)),
        with(|pdu| (pdu[3], pdu[4]) = (200, 100)),
    ];
    for (index, pdu) in wrong.iter().enumerate() {
        let mut stream = dial(door)?;
        stream.write_all(&greeting())?;
        // The other side may close before all of it is sent.
        let _ = stream.write_all(pdu);
        let mut answer = [0; 128 + 24];
        stream.read_exact(&mut answer).with_context(|| format!("wrong length {index}"))?;
        ensure!(answer[128] == 3, "wrong length {index} was answered by PDU {}", answer[128]);
    }
    Ok(())
}

/// A host that is mapped nothing: what it may see is that discovery has nothing for it.
fn unmapped(door: SocketAddr, subsystem: &str) -> anyhow::Result<()> {
    let options = ConnectionOptions::new("nqn.2026-11.io.voute:unmapped", [7; 16], subsystem);
    let mut host = InitiatorConnection::connect_admin(options, Duration::ZERO);
    let reason = converse(door, &mut host, |_| ())?;
    let refused = Closed::Refused { status: Status::connect_invalid_host(), result: 0 };
    ensure!(reason == refused, "{reason}");
    let options = ConnectionOptions::new("nqn.2026-11.io.voute:unmapped", [7; 16], DISCOVERY_NQN);
    let mut host = InitiatorConnection::connect_admin(options, Duration::ZERO);
    let mut records = None;
    let asks = |host: &mut InitiatorConnection| {
        let enable = Command::property_set(0x14, 0x0046_0001);
        host.submit(enable, Duration::ZERO).expect("connected");
        host.submit(Command::log_page(0x70, 0, 1024), Duration::ZERO).expect("connected");
    };
    let mut stream = dial(door)?;
    while records.is_none() {
        step(&mut stream, &mut host)?;
        while let Some(event) = host.next_event() {
            match event {
                InitiatorEvent::Connected { .. } => asks(&mut host),
                InitiatorEvent::Completed { data: Some(data), .. } => {
                    records = Some(u64::from(data[8]));
                }
                InitiatorEvent::Closed { reason } => anyhow::bail!("discovery: {reason}"),
                _ => {}
            }
        }
    }
    ensure!(records == Some(1), "it sees more than discovery itself: {records:?}");
    Ok(())
}

fn step(stream: &mut TcpStream, host: &mut InitiatorConnection) -> anyhow::Result<()> {
    let output = std::mem::take(host.output());
    stream.write_all(&output)?;
    let mut bytes = [0; 4096];
    match stream.read(&mut bytes) {
        Ok(0) => host.disconnected(),
        Ok(length) => host.receive(&bytes[..length], Duration::ZERO),
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// Until the connection ends; says why it did.
fn converse(
    door: SocketAddr,
    host: &mut InitiatorConnection,
    mut connected: impl FnMut(&mut InitiatorConnection),
) -> anyhow::Result<Closed> {
    let mut stream = dial(door)?;
    loop {
        step(&mut stream, host)?;
        while let Some(event) = host.next_event() {
            match event {
                InitiatorEvent::Connected { .. } => connected(host),
                InitiatorEvent::Closed { reason } => return Ok(reason),
                _ => {}
            }
        }
    }
}

/// As many connects as two threads can, each with a Connect that is refused. Returns how many.
fn storm(door: SocketAddr, subsystem: &str) -> anyhow::Result<u64> {
    let count = AtomicU64::new(0);
    let is_over = AtomicBool::new(false);
    let began = Instant::now();
    let attack = || -> anyhow::Result<()> {
        let whole =
            [&greeting()[..], &connect(subsystem, "nqn.2026-11.io.voute:storm", 32)].concat();
        while !is_over.load(Ordering::Relaxed) {
            let mut stream = dial(door)?;
            // Gone at once: a reset rather than a port in TIME_WAIT, of which there are too few.
            rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
            stream.write_all(&whole)?;
            let mut answer = [0; 152];
            stream.read_exact(&mut answer).context("a Connect in the storm was not answered")?;
            ensure!(answer[128] == 5, "no answer to Connect: {}", answer[128]);
            count.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads = [scope.spawn(attack), scope.spawn(attack)];
        while began.elapsed() < STORM {
            std::thread::sleep(Duration::from_millis(20));
        }
        is_over.store(true, Ordering::Relaxed);
        threads.into_iter().try_for_each(|thread| thread.join().expect("it does not panic"))
    })?;
    Ok(count.into_inner())
}

/// Lines of the nodes' logs that hold these words.
fn lines_with(sites: &TwoSites, words: &str) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for node in &sites.cluster.nodes {
        let path = sites.stage.folder().join(format!("{}.log", node.name()));
        let text = std::fs::read(&path).with_context(|| path.display().to_string())?;
        let text = without_colours(&String::from_utf8_lossy(&text));
        found.extend(text.lines().filter(|line| line.contains(words)).map(str::to_owned));
    }
    Ok(found)
}

/// A log without the sequences that colour it on a terminal.
fn without_colours(text: &str) -> String {
    let mut parts = text.split('\u{1b}');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |plain, part| plain + part.split_once('m').map_or(part, |(_, rest)| rest))
}

/// The sum of a number that those lines carry.
fn sum_of(lines: &[String], field: &str) -> u64 {
    let number = |line: &String| {
        let words = line.split(|letter: char| letter.is_whitespace() || letter == ',');
        words
            .filter_map(|word| word.strip_prefix(field)?.strip_prefix('=')?.parse::<u64>().ok())
            .sum::<u64>()
    };
    lines.iter().map(number).sum()
}

/// Ends a node as an administrator does, and waits until it has.
fn end(sites: &TwoSites, name: &str) -> anyhow::Result<()> {
    let process = sites.stage.children().process_of(name).context("the node does not run")?;
    let process = rustix::process::Pid::from_raw(process.try_into()?).context("no process id")?;
    rustix::process::kill_process(process, rustix::process::Signal::TERM)?;
    let began = Instant::now();
    let (ended, status) = loop {
        if let Some(ended) = sites.stage.children().ended() {
            break ended;
        }
        ensure!(began.elapsed() < GREETING_MAX, "{name} does not end");
        std::thread::sleep(Duration::from_millis(20));
    };
    ensure!(ended == name && status.success(), "{ended} ended: {status}");
    // Taken out of the list, so that the next is noticed.
    let _ = sites.stage.children().kill(name);
    Ok(())
}

#[test]
fn hostile_hosts_are_refused_and_the_others_notice_nothing() -> anyhow::Result<()> {
    let sites = TwoSites::start_with_pools(Log::Embedded)?;
    let host = sites.add_host(REGIONS)?;
    let load = sites.begin_load(&host);
    let began = Instant::now();
    let doors: Vec<SocketAddr> = sites.cluster.nodes.iter().map(|node| node.portals.nvme).collect();
    let subsystem: Arc<str> = sites.cluster.view()?.subsystem_nqn.into();
    let flows = |during: &str| {
        must_flow(&host, FLOWING, &sites.stage, &format!("during {during}"));
        let ended = sites.stage.children().ended();
        assert!(ended.is_none(), "{ended:?} during {during}\n{}", sites.stage.tails());
    };
    // Each attack goes on while the writes are watched.
    let during = |what: &'static str, attack: &(dyn Fn() -> anyhow::Result<()> + Sync)| {
        std::thread::scope(|scope| {
            let attack = scope.spawn(attack);
            flows(what);
            while !attack.is_finished() {
                flows(what);
            }
            attack.join().expect("an attack does not panic").context(what)
        })
    };
    flows("the start");
    let at_door = |door: SocketAddr| -> anyhow::Result<()> {
        overflow(door).context("overflow")?;
        wrong_lengths(door).context("wrong lengths")?;
        unmapped(door, &subsystem).context("a host without volumes")
    };
    during("silence, slow senders, queues that overflow, hosts without volumes", &|| {
        std::thread::scope(|scope| {
            let silent: Vec<_> = doors.iter().map(|door| scope.spawn(|| silence(*door))).collect();
            let loud: Vec<_> = doors.iter().map(|door| scope.spawn(|| at_door(*door))).collect();
            drip(doors[0]).context("a slow sender")?;
            let all = silent.into_iter().chain(loud);
            all.into_iter().try_for_each(|thread| thread.join().expect("it does not panic"))
        })
    })?;
    let refused = AtomicU64::new(0);
    during("a storm of connects", &|| {
        refused.fetch_add(storm(doors[0], &subsystem)?, Ordering::Relaxed);
        Ok(())
    })?;
    let rate = refused.load(Ordering::Relaxed) / STORM.as_secs();
    assert!(rate >= STORM_RATE_MIN, "{rate} connects a second are no storm");
    flows("the end");
    sites.runtime.block_on(load.stop());
    must_keep(&sites.runtime, &host, &sites.stage);
    must_not_fail(&host, &sites.stage);

    for node in &sites.cluster.nodes {
        end(&sites, &node.name())?;
    }
    let told = lines_with(&sites, "hosts were refused over NVMe/TCP")?;
    let most = doors.len() * (3 + began.elapsed().as_secs() as usize / 60);
    assert!((doors.len()..=most).contains(&told.len()), "told {} times: {told:#?}", told.len());
    let at_each_door = doors.len() as u64;
    assert_eq!(sum_of(&told, "silent"), at_each_door * SILENT as u64 + 1, "{told:#?}");
    // The verifying host may have come before a node knew it.
    let connects = at_each_door + refused.into_inner();
    assert!((connects..connects + STRAY_MAX).contains(&sum_of(&told, "connects")), "{told:#?}");
    assert_eq!(sum_of(&told, "faults"), at_each_door * (1 + WRONG_LENGTHS), "{told:#?}");
    assert_eq!(lines_with(&sites, "panicked")?, Vec::<String>::new());
    Ok(())
}
