//! Listening sockets: one per portal and reactor, among which the kernel spreads connections.

use crate::mailbox::Service;
use crate::node::NodeError;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use voute_schemas::place::Portals;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1_024;

/// Sockets for each of `reactors` reactors. `held`: what this node listens on already.
///
/// Sockets that share an address never refuse each other, so that two nodes given one address would
/// split their hosts' connections between them unnoticed; hence each new address is first tried alone.
///
/// # Errors
/// [`NodeError::Listen`] names the address.
pub(crate) fn sockets(
    portals: &Portals,
    reactors: usize,
    held: Option<&Portals>,
) -> Result<Vec<Vec<(Service, OwnedFd)>>, NodeError> {
    let services = [
        (Service::Nvme, portals.nvme),
        (Service::Iscsi, portals.iscsi),
        (Service::Link, portals.link),
    ];
    let held: Vec<SocketAddr> = held.map_or(vec![], |held| vec![held.nvme, held.iscsi, held.link]);
    for (_, address) in services.iter().filter(|(_, address)| !held.contains(address)) {
        let address = *address;
        listen(address, false).map_err(|source| NodeError::Listen { address, source })?;
    }
    let mut all = Vec::with_capacity(reactors);
    for _ in 0..reactors {
        let mut of_reactor = Vec::with_capacity(services.len());
        for (service, address) in services {
            let socket =
                listen(address, true).map_err(|source| NodeError::Listen { address, source })?;
            of_reactor.push((service, socket));
        }
        all.push(of_reactor);
    }
    Ok(all)
}

fn listen(address: SocketAddr, shared: bool) -> io::Result<OwnedFd> {
    let kind = Type::STREAM.cloexec();
    let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&SockAddr::from(address))?;
    send_at_once(&socket);
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Chooses CUBIC where the system's congestion control is BBR, which sends by timers of its own: bursts
/// of answers then wait for the timer, at a depth of 128 a third of the rate. Accepted connections are
/// like their listener. Whatever else the administrator chose stays.
pub(crate) fn send_at_once(socket: impl AsFd) {
    let chosen = rustix::net::sockopt::tcp_congestion(&socket);
    if chosen.is_ok_and(|name| name.starts_with("bbr")) {
        // Without it the connection is only slower.
        let _ = rustix::net::sockopt::set_tcp_congestion(&socket, "cubic");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_does_not_pace_what_it_sends() {
        let socket = listen("127.0.0.1:0".parse().unwrap(), false).unwrap();
        assert!(!rustix::net::sockopt::tcp_congestion(&socket).unwrap().starts_with("bbr"));
    }

    #[test]
    fn an_address_that_another_node_listens_on_is_refused() {
        let free = || {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.local_addr().unwrap()
        };
        let portals = Portals { nvme: free(), iscsi: free(), link: free() };
        let first = sockets(&portals, 3, None).unwrap();
        assert_eq!(first.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3, 3]);
        assert!(matches!(sockets(&portals, 1, None), Err(NodeError::Listen { .. })));
        sockets(&portals, 3, Some(&portals)).expect("its own addresses are no obstacle");
    }
}
