//! Ports of the host that lead into the guest.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SocketFlags, acceptfrom_with, recvfrom};

use super::config::{Forward, Protocol};
use super::flow::Flows;
use super::host;
use super::packet::HEADROOM;
use super::shared::{Alarm, Deliver, Shared, Token};
use super::tcp::Tcp;

/// Connections that one port is given in a row.
const ACCEPTS_PER_TURN: usize = 64;
/// How long a port is left alone when the host is out of descriptors or memory.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug)]
struct Port {
    forward: Forward,
    socket: OwnedFd,
    queued: bool,
    alarm: Alarm,
}

/// All forwarded ports.
#[derive(Debug, Default)]
pub(super) struct Forwards {
    ports: Vec<Port>,
}

impl Forwards {
    /// Opens all ports. Fails with the first that cannot be had, by name.
    pub(super) fn new(shared: &Shared) -> io::Result<Self> {
        let mut ports = Vec::new();
        for (index, &forward) in shared.config.forwards.iter().enumerate() {
            let port = open(forward, index, shared).map_err(|error| {
                let Forward {
                    address, host_port, ..
                } = forward;
                let address = SocketAddr::new(address, host_port);
                let protocol = match forward.protocol {
                    Protocol::Tcp => "TCP",
                    Protocol::Udp => "UDP",
                };
                let text = format!("Cannot forward {protocol} {address} to the guest: {error}");
                io::Error::new(error.kind(), text)
            })?;
            ports.push(port);
        }
        Ok(Self { ports })
    }

    /// All, with the ports that the host has chosen.
    pub(super) fn list(&self) -> impl Iterator<Item = Forward> {
        self.ports.iter().map(|port| port.forward)
    }

    /// The socket of port `index`.
    pub(super) fn socket(&self, index: u16) -> Option<&OwnedFd> {
        let port = self.ports.get(usize::from(index))?;
        Some(&port.socket)
    }

    /// Something is there for port `index`.
    pub(super) fn event(&mut self, index: u16, tcp: &mut Tcp, shared: &mut Shared) {
        let Some(port) = self.ports.get_mut(usize::from(index)) else {
            return;
        };
        let token = Token::Forward(index);
        match port.forward.protocol {
            // It is read when the guest takes it; until then nobody need hear of it again.
            Protocol::Udp if !port.queued => {
                shared.pause_input(&port.socket, token, true);
                port.queued = true;
                shared.ready.push_back(token);
            }
            Protocol::Udp => {}
            Protocol::Tcp => {
                for _ in 0..ACCEPTS_PER_TURN {
                    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
                    match acceptfrom_with(&port.socket, flags) {
                        Ok((socket, peer)) => {
                            let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
                            if let Some(peer) = peer {
                                tcp.accept(socket, peer, port.forward.guest_port, shared);
                            }
                        }
                        Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                            shared.counters.over_limit += 1;
                            shared.pause_input(&port.socket, token, true);
                            let end = Some(shared.now + PAUSE);
                            shared.timers.set(&mut port.alarm, token, end);
                            return;
                        }
                        // None are left; or one that is gone again.
                        Err(_) => return,
                    }
                }
            }
        }
    }

    /// The pause of port `index` is over.
    pub(super) fn timer(&mut self, index: u16, shared: &mut Shared) {
        let now = shared.now;
        let token = Token::Forward(index);
        if let Some(port) = self.ports.get_mut(usize::from(index))
            && shared.timers.is_due(&mut port.alarm, token, now)
        {
            shared.pause_input(&port.socket, token, false);
        }
    }

    /// The turn of a UDP port to send. Some(false) if the guest had no room, None if there was nothing.
    pub(super) fn turn(
        &mut self,
        index: u16,
        flows: &mut Flows,
        shared: &mut Shared,
        deliver: &mut Deliver<'_>,
    ) -> Option<bool> {
        let port = self.ports.get_mut(usize::from(index))?;
        let token = Token::Forward(index);
        let mut buffer = shared.take_buffer();
        let free = &mut buffer[HEADROOM..];
        let sent = match recvfrom(&port.socket, free, RecvFlags::DONTWAIT) {
            Ok((_, len, peer)) => {
                shared.ready.push_back(token);
                let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
                peer.map(|peer| {
                    let to = (index, port.forward.guest_port);
                    flows.forwarded(to, peer, (&mut buffer, len), shared, deliver)
                })
            }
            Err(_) => {
                port.queued = false;
                shared.pause_input(&port.socket, token, false);
                None
            }
        };
        shared.give_buffer(buffer);
        sent
    }

    /// Forgets whose turn it was.
    pub(super) fn reset(&mut self, shared: &Shared) {
        for (index, port) in self.ports.iter_mut().enumerate() {
            if std::mem::take(&mut port.queued) {
                let token = Token::Forward(index as u16);
                shared.pause_input(&port.socket, token, false);
            }
        }
    }
}

fn open(mut forward: Forward, index: usize, shared: &Shared) -> io::Result<Port> {
    let index = u16::try_from(index).map_err(|_| io::Error::other("there are too many"))?;
    let address = SocketAddr::new(forward.address, forward.host_port);
    let socket = match forward.protocol {
        Protocol::Tcp => host::listen_tcp(address)?,
        Protocol::Udp => host::bind_udp(address)?,
    };
    forward.host_port = host::local_port(&socket)?;
    shared.watch_input(&socket, Token::Forward(index))?;
    Ok(Port {
        forward,
        socket,
        queued: false,
        alarm: Alarm::default(),
    })
}
