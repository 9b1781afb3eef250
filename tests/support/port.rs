//! Ports for peers that must be told one, because they can't say which they were given.

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Mutex;

use rustix::net::sockopt::set_socket_reuseaddr;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, getsockname, socket_with};

/// What keeps each of them from being anybody else's.
static HELD: Mutex<Vec<OwnedFd>> = Mutex::new(Vec::new());

/// A loopback port that nothing listens on, and that nobody is given until this process ends: a socket that is bound and does
/// not listen keeps it, beside which a peer that is told of it can still listen.
pub(crate) fn free() -> u16 {
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
    set_socket_reuseaddr(&socket, true).unwrap();
    bind(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("a loopback port is free");
    let address = SocketAddr::try_from(getsockname(&socket).unwrap()).expect("it is bound to an address");
    HELD.lock().unwrap().push(socket);
    address.port()
}
