//! The host's sockets. None of them ever blocks.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Protocol, SendFlags, SocketFlags, SocketType, bind, connect, getsockname,
    ipproto, listen, recv, send, socket_with, sockopt,
};

/// Connections that the kernel holds for a forwarded port until they are accepted.
const BACKLOG: i32 = 128;

fn new(address: IpAddr, kind: SocketType, protocol: Option<Protocol>) -> Result<OwnedFd, Errno> {
    let family = match address {
        IpAddr::V4(_) => AddressFamily::INET,
        IpAddr::V6(_) => AddressFamily::INET6,
    };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    socket_with(family, kind, flags, protocol)
}

/// Begins a TCP connection.
pub(super) fn connect_tcp(address: SocketAddr) -> Result<OwnedFd, Errno> {
    let socket = new(address.ip(), SocketType::STREAM, None)?;
    prepare_tcp(&socket);
    match connect(&socket, &address) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error),
    }
}

/// Has a TCP socket send what it is given at once: the guest has decided how long to wait for more.
pub(super) fn prepare_tcp(socket: &OwnedFd) {
    // Only costs time if it fails.
    let _ = sockopt::set_tcp_nodelay(socket, true);
}

/// Has the peer see a reset rather than an end when a TCP socket is closed.
pub(super) fn close_with_reset(socket: OwnedFd) {
    // If it fails the peer sees an end.
    let _ = sockopt::set_socket_linger(&socket, Some(Duration::ZERO));
    drop(socket);
}

/// A UDP socket that talks to one address.
pub(super) fn connect_udp(address: SocketAddr) -> Result<OwnedFd, Errno> {
    let socket = new(address.ip(), SocketType::DGRAM, None)?;
    connect(&socket, &address)?;
    Ok(socket)
}

/// A socket that sends pings to one address, if the host lets its user have one.
pub(super) fn connect_ping(address: IpAddr) -> Result<OwnedFd, Errno> {
    let protocol = match address {
        IpAddr::V4(_) => ipproto::ICMP,
        IpAddr::V6(_) => ipproto::ICMPV6,
    };
    let socket = new(address, SocketType::DGRAM, Some(protocol))?;
    connect(&socket, &SocketAddr::new(address, 0))?;
    Ok(socket)
}

/// Waits for TCP connections.
pub(super) fn listen_tcp(address: SocketAddr) -> Result<OwnedFd, Errno> {
    let socket = new(address.ip(), SocketType::STREAM, None)?;
    // A port whose last connections have just ended can be had again at once.
    sockopt::set_socket_reuseaddr(&socket, true)?;
    bind_socket(&socket, address)?;
    listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Waits for UDP datagrams.
pub(super) fn bind_udp(address: SocketAddr) -> Result<OwnedFd, Errno> {
    let socket = new(address.ip(), SocketType::DGRAM, None)?;
    bind_socket(&socket, address)?;
    Ok(socket)
}

fn bind_socket(socket: &OwnedFd, address: SocketAddr) -> Result<(), Errno> {
    if address.is_ipv6() {
        // The same port of IPv4 is another forward's.
        sockopt::set_ipv6_v6only(socket, true)?;
    }
    bind(socket, &address)
}

/// The port that a socket is bound to.
pub(super) fn local_port(socket: impl AsFd) -> io::Result<u16> {
    let address = SocketAddr::try_from(getsockname(socket)?)?;
    Ok(address.port())
}

/// Receives; a signal in between is none of the caller's business.
pub(super) fn receive(socket: impl AsFd, buffer: &mut [u8]) -> Result<usize, Errno> {
    rustix::io::retry_on_intr(|| {
        recv(&socket, &mut *buffer, rustix::net::RecvFlags::DONTWAIT).map(|(count, _)| count)
    })
}

/// Sends.
pub(super) fn transmit(socket: impl AsFd, bytes: &[u8]) -> Result<usize, Errno> {
    rustix::io::retry_on_intr(|| send(&socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL))
}
