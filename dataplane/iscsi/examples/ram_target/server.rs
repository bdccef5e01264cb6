//! A target on real sockets with volumes in memory: a thread per connection, for tests and trials.

use super::disk::Disk;
use std::collections::HashMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};
use voute_iscsi::{Failure, Outcome, PortalId, Target, TargetConnection, VolumeKey};

/// The volumes of a server.
pub(crate) type Disks = Arc<HashMap<VolumeKey, Disk>>;

/// Serves connections of one portal until the process ends.
pub(crate) fn serve(listener: &TcpListener, target: &Arc<Target>, portal: PortalId, disks: &Disks) {
    for stream in listener.incoming().flatten() {
        let (target, disks) = (target.clone(), disks.clone());
        std::thread::spawn(move || {
            let _ = serve_one(stream, target, portal, &disks);
        });
    }
}

fn serve_one(
    mut stream: TcpStream,
    target: Arc<Target>,
    portal: PortalId,
    disks: &Disks,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let started = Instant::now();
    let mut connection = TargetConnection::new(target.clone(), portal, Duration::ZERO);
    let mut bytes = vec![0; 256 << 10];
    while !connection.is_closing() {
        let wait =
            connection.next_deadline().map(|deadline| deadline.saturating_sub(started.elapsed()));
        if wait.is_some_and(|wait| wait.is_zero()) || !connection.wants_input() {
            std::thread::sleep(if connection.wants_input() {
                Duration::ZERO
            } else {
                Duration::from_millis(1)
            });
            connection.tick(started.elapsed());
        } else {
            stream.set_read_timeout(wait)?;
            match stream.read(&mut bytes) {
                Ok(0) => break,
                Ok(length) => connection.receive(&bytes[..length], started.elapsed()),
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
                {
                    connection.tick(started.elapsed());
                }
                Err(error) => {
                    connection.disconnected();
                    follow(&target, disks);
                    return Err(error);
                }
            }
        }
        pump(&mut connection, &mut stream, &target, disks)?;
    }
    let rest = std::mem::take(connection.output());
    stream.write_all(&rest)?;
    connection.disconnected();
    follow(&target, disks);
    Ok(())
}

/// Does what is wished of reservations without a command.
fn follow(target: &Target, disks: &Disks) {
    for wish in target.take_reservation_wishes() {
        if let Some(disk) = disks.get(&wish.volume) {
            disk.follow(target, &wish);
        }
    }
}

/// Carries out what is asked until nothing more is, sending along the way.
fn pump(
    connection: &mut TargetConnection,
    stream: &mut TcpStream,
    target: &Target,
    disks: &Disks,
) -> std::io::Result<()> {
    loop {
        follow(target, disks);
        while let Some(request) = connection.next_request() {
            let tag = request.tag;
            let outcome = match disks.get(&request.volume) {
                Some(disk) => disk.serve(target, request),
                None => Outcome::Failed(Failure::Aborted),
            };
            connection.complete(tag, outcome);
        }
        if connection.output().is_empty() {
            return Ok(());
        }
        stream.write_all(connection.output())?;
        connection.output().clear();
    }
}
