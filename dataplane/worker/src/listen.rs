//! Listening sockets: one per portal and reactor, among which the kernel spreads connections.

use crate::mailbox::Service;
use crate::node::NodeError;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use voute_schemas::place::Portals;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1_024;

/// Sockets for each of `reactors` reactors.
///
/// # Errors
/// [`NodeError::Listen`] names the address.
pub(crate) fn sockets(
    portals: &Portals,
    reactors: usize,
) -> Result<Vec<Vec<(Service, OwnedFd)>>, NodeError> {
    let services = [
        (Service::Nvme, portals.nvme),
        (Service::Iscsi, portals.iscsi),
        (Service::Link, portals.link),
    ];
    let mut all = Vec::with_capacity(reactors);
    for _ in 0..reactors {
        let mut of_reactor = Vec::with_capacity(services.len());
        for (service, address) in services {
            let socket = listen(address).map_err(|source| NodeError::Listen { address, source })?;
            of_reactor.push((service, socket));
        }
        all.push(of_reactor);
    }
    Ok(all)
}

fn listen(address: SocketAddr) -> io::Result<OwnedFd> {
    let kind = Type::STREAM.cloexec();
    let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&SockAddr::from(address))?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
