//! Hosts that mean ill or are broken, at the iSCSI door of two real nodes, while a verifying host writes
//! by the other protocol and one that keeps to this protocol reads: limits hold, each is answered as RFC
//! 7143 has it or its connection ends, and whoever keeps to the protocol is not disturbed.

use anyhow::{Context, ensure};
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use voute_iscsi::{
    CompletionStatus, Initiator, InitiatorConfig, InitiatorError, SESSIONS_PER_HOST_MAX,
};
use voute_tests::cluster::{Log, TwoSites};
use voute_tests::harm::{must_flow, must_keep, must_not_fail};

const HOST: &str = "iqn.2026-11.io.voute:honest";
const HOSTILE: &str = "iqn.2026-11.io.voute:hostile";
const REGIONS: u32 = 2;
/// Writes that must get through while an attack goes on.
const FLOWING: u64 = 20;
/// A node gives a login this long (15 s), and we some more.
const LOGIN_MAX: Duration = Duration::from_secs(25);
const SILENT: usize = 200;
const STORM: Duration = Duration::from_secs(4);
/// Less than this a second would be no storm.
const STORM_RATE_MIN: u64 = 200;
/// Bytes that a host asks for and never reads: more than sockets hold.
const UNREAD_BYTES: usize = 96 << 20;

fn dial(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(address).context("a listener is gone")?;
    stream.set_read_timeout(Some(LOGIN_MAX))?;
    Ok(stream)
}

/// Waits until the other side closes.
fn until_closed(stream: &mut TcpStream) -> anyhow::Result<()> {
    match std::io::copy(stream, &mut std::io::sink()) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => {
            Err(error).context("the connection stays open")
        }
        _ => Ok(()),
    }
}

/// A PDU of this opcode with a data segment.
fn pdu(opcode: u8, flags: u8, data: &[u8]) -> Vec<u8> {
    let mut pdu = vec![0; 48];
    (pdu[0], pdu[1]) = (opcode, flags);
    pdu[5..8].copy_from_slice(&(data.len() as u32).to_be_bytes()[1..]);
    (pdu[8], pdu[13]) = (0x80, 1);
    pdu.extend_from_slice(data);
    pdu.resize(pdu.len().next_multiple_of(4), 0);
    pdu
}

/// A login request for the full-feature phase at once; `continues`: the text goes on.
fn login(name: &str, target: &str, continues: bool) -> Vec<u8> {
    let text = format!("InitiatorName={name}\0TargetName={target}\0SessionType=Normal\0");
    pdu(0x43, if continues { 0x44 } else { 0x87 }, text.as_bytes())
}

/// Status class and detail of a login response.
fn login_status(stream: &mut TcpStream) -> anyhow::Result<(u8, u8)> {
    let mut header = [0; 48];
    stream.read_exact(&mut header).context("a login was not answered")?;
    ensure!(header[0] & 0x3f == 0x23, "a login was answered by PDU {:02x}", header[0]);
    let length = u32::from_be_bytes([0, header[5], header[6], header[7]]) as u64;
    std::io::copy(&mut stream.take(length.next_multiple_of(4)), &mut std::io::sink())?;
    Ok((header[36], header[37]))
}

/// Many connections that say nothing, or too little, for ever.
fn silence(door: SocketAddr, target: &str) -> anyhow::Result<()> {
    let began = Instant::now();
    let whole = login(HOSTILE, target, false);
    let mut silent = Vec::new();
    for index in 0..SILENT {
        let mut stream = dial(door)?;
        let said: &[u8] = match index % 4 {
            0 => &[],
            1 => &whole[..7],
            2 => &whole[..48],
            _ => &whole[..whole.len() - 1],
        };
        stream.write_all(said)?;
        silent.push(stream);
    }
    silent.iter_mut().try_for_each(until_closed)?;
    ensure!(began.elapsed() < LOGIN_MAX + Duration::from_secs(20), "closed much too late");
    Ok(())
}

/// A byte at a time: the time that a login may take is that of the whole.
fn drip(door: SocketAddr, target: &str) -> anyhow::Result<()> {
    let mut stream = dial(door)?;
    let began = Instant::now();
    for byte in login(HOSTILE, target, true).into_iter().cycle() {
        if began.elapsed() > LOGIN_MAX || stream.write_all(&[byte]).is_err() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50)); // to be slow is the point
    }
    ensure!(began.elapsed() < LOGIN_MAX, "a slow sender may log in for ever");
    until_closed(&mut stream)
}

/// What cannot be said before a login, and lengths that no PDU may have then: each ends its connection.
fn out_of_turn(door: SocketAddr) -> anyhow::Result<()> {
    let mut long = pdu(0x43, 0x87, &[]);
    long[5..8].fill(0xff);
    let mut additional = pdu(0x43, 0x87, &[]);
    additional[4] = 0xff;
    let wrong = [pdu(0x01, 0x80, &[]), pdu(0x05, 0x80, &[]), pdu(0x3e, 0, &[]), long, additional];
    for (index, pdu) in wrong.iter().enumerate() {
        let mut stream = dial(door)?;
        stream.write_all(pdu)?;
        // What comes after the header, if anything is waited for.
        let _ = stream.write_all(&[0; 4096]);
        let began = Instant::now();
        until_closed(&mut stream).with_context(|| format!("PDU {index}"))?;
        ensure!(began.elapsed() < Duration::from_secs(5), "PDU {index} is waited for");
    }
    Ok(())
}

/// A login whose text never ends.
fn endless_login(door: SocketAddr, target: &str) -> anyhow::Result<()> {
    let mut stream = dial(door)?;
    for _ in 0..200 {
        if stream.write_all(&login(HOSTILE, target, true)).is_err() {
            break;
        }
    }
    let mut status = (0, 0);
    while status == (0, 0) {
        status = login_status(&mut stream).context("it was never refused")?;
    }
    ensure!(status.0 == 2 || status.0 == 3, "{status:?}");
    until_closed(&mut stream)
}

/// A host on one path.
struct Session {
    socket: TcpStream,
    initiator: Initiator,
}

impl Session {
    fn open(door: SocketAddr, name: &str, target: &str, number: u32) -> anyhow::Result<Self> {
        let [_, _, high, low] = number.to_be_bytes();
        let isid = [0x80, 0, 0, 0, high, low];
        let config = InitiatorConfig { isid, ..InitiatorConfig::new(name, Some(target)) };
        let mut session = Session { socket: dial(door)?, initiator: Initiator::new(config) };
        while !session.initiator.is_ready() {
            session.step()?;
        }
        Ok(session)
    }

    fn step(&mut self) -> anyhow::Result<()> {
        let output = std::mem::take(self.initiator.output());
        self.socket.write_all(&output)?;
        let mut bytes = vec![0; 256 << 10];
        match self.socket.read(&mut bytes)? {
            0 => anyhow::bail!("the target closed the connection"),
            length => Ok(self.initiator.receive(&bytes[..length])?),
        }
    }

    fn run(
        &mut self,
        command: impl FnOnce(&mut Initiator) -> Result<u32, InitiatorError>,
    ) -> anyhow::Result<CompletionStatus> {
        let task = command(&mut self.initiator)?;
        loop {
            if let Some(completion) = self.initiator.next_completion() {
                ensure!(completion.task == task, "an answer to nothing");
                return Ok(completion.status);
            }
            self.step()?;
        }
    }
}

/// More sessions than one host may have; then the others' still work.
fn crowd(door: SocketAddr, target: &str) -> anyhow::Result<()> {
    let mut sessions = Vec::new();
    for number in 0..SESSIONS_PER_HOST_MAX as u32 {
        let session = Session::open(door, HOSTILE, target, 100 + number);
        sessions.push(session.with_context(|| format!("session {number}"))?);
    }
    let mut stream = dial(door)?;
    stream.write_all(&login(HOSTILE, target, false))?;
    ensure!(login_status(&mut stream)? == (3, 2), "one more session than may be");
    Session::open(door, HOST, target, 9).context("another host's session").map(drop)
}

/// A host that asks for much and reads nothing.
fn deafness(door: SocketAddr, target: &str) -> anyhow::Result<()> {
    let mut session = Session::open(door, HOSTILE, target, 50)?;
    for _ in 0..UNREAD_BYTES >> 20 {
        session.initiator.read(0, 0, 2048, 512)?;
    }
    let output = std::mem::take(session.initiator.output());
    session.socket.write_all(&output)?;
    std::thread::sleep(Duration::from_secs(3)); // not to read is the point
    drop(session);
    let mut next = Session::open(door, HOSTILE, target, 50).context("the same session anew")?;
    next.run(|initiator| initiator.test_unit_ready(0)).map(drop)
}

/// As many logins as two threads can, each by a name that nobody knows. Returns how many.
fn storm(door: SocketAddr, target: &str) -> anyhow::Result<u64> {
    let (count, is_over, began) = (AtomicU64::new(0), AtomicBool::new(false), Instant::now());
    let attack = || -> anyhow::Result<()> {
        let whole = login("iqn.2026-11.io.voute:nobody", target, false);
        while !is_over.load(Ordering::Relaxed) {
            let mut stream = dial(door)?;
            // Gone at once: a reset rather than a port in TIME_WAIT, of which there are too few.
            rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
            stream.write_all(&whole)?;
            ensure!(login_status(&mut stream)? == (2, 2), "an unknown host is let in");
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

#[test]
fn hostile_initiators_are_refused_and_the_others_notice_nothing() -> anyhow::Result<()> {
    let sites = TwoSites::start_with_pools(Log::Embedded)?;
    let hosts: [(&str, &[&str], bool); 2] =
        [("honest", &[HOST], false), ("hostile", &[HOSTILE], false)];
    let volume = sites.add_iscsi_volume("shared", 16 << 20, &hosts)?;
    let door = sites.cluster.node_at(&volume.owner_site.name)?.portals.iscsi;
    let target = sites.cluster.view()?.target_iqn;
    let target = target.as_str();
    let mut honest = sites.wait("the volume is offered", || {
        let mut session = Session::open(door, HOST, target, 1).ok()?;
        session.run(|initiator| initiator.test_unit_ready(0)).ok()?;
        (session.run(|initiator| initiator.read(0, 0, 8, 512)).ok()? == CompletionStatus::Good)
            .then_some(session)
    })?;
    let host = sites.add_host(REGIONS)?;
    let load = sites.begin_load(&host);
    let mut during = |what: &'static str, attack: &(dyn Fn() -> anyhow::Result<()> + Sync)| {
        std::thread::scope(|scope| {
            let attack = scope.spawn(attack);
            loop {
                must_flow(&host, FLOWING, &sites.stage, &format!("during {what}"));
                let ended = sites.stage.children().ended();
                assert!(ended.is_none(), "{ended:?} during {what}\n{}", sites.stage.tails());
                let read = honest.run(|initiator| initiator.read(0, 8, 8, 512))?;
                ensure!(read == CompletionStatus::Good, "a read {what}: {read:?}");
                if attack.is_finished() {
                    return attack.join().expect("an attack does not panic").context(what);
                }
            }
        })
    };
    during("silence, slow senders, PDUs out of turn, logins without end", &|| {
        std::thread::scope(|scope| {
            let silent = scope.spawn(|| silence(door, target));
            let slow = scope.spawn(|| drip(door, target).context("a slow sender"));
            out_of_turn(door).context("out of turn")?;
            endless_login(door, target).context("a login without end")?;
            [silent, slow]
                .into_iter()
                .try_for_each(|thread| thread.join().expect("it does not panic"))
        })
    })?;
    during("more sessions than one host may have", &|| crowd(door, target))?;
    during("a host that reads nothing", &|| deafness(door, target))?;
    let refused = AtomicU64::new(0);
    during("a storm of logins", &|| {
        refused.fetch_add(storm(door, target)?, Ordering::Relaxed);
        Ok(())
    })?;
    let rate = refused.load(Ordering::Relaxed) / STORM.as_secs();
    assert!(rate >= STORM_RATE_MIN, "{rate} logins a second are no storm");
    sites.runtime.block_on(load.stop());
    must_keep(&sites.runtime, &host, &sites.stage);
    must_not_fail(&host, &sites.stage);
    Ok(())
}
