//! An entry of the muxer's table: a connection, or what may become one.

use std::time::Instant;

use super::connection::{Connection, Key};
use super::handshake::Line;
use super::unix::UnixSocket;

/// What a slot of the table is used for.
pub(super) enum Peer {
    /// A client that has not said yet what it wants.
    Client {
        line: Line,
        socket: UnixSocket,
    },
    /// A request of the guest, to a server that has too many clients waiting.
    Server {
        key: Key,
        credit: (u32, u32),
        give_up: Instant,
    },
    Connected(Connection<UnixSocket>),
}

pub(super) struct Slot {
    pub(super) peer: Peer,
    /// For the first two kinds; a connection has its own.
    pub(super) deadline: Option<Instant>,
    /// In the queue of those with something for the guest.
    pub(super) is_ready: bool,
    /// It is told when the stream takes more.
    pub(super) watches_writable: bool,
}

impl Slot {
    pub(super) fn new(peer: Peer, deadline: Option<Instant>) -> Self {
        Self {
            peer,
            deadline,
            is_ready: false,
            watches_writable: false,
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.peer {
            Peer::Connected(connection) => connection.deadline(),
            Peer::Client { .. } | Peer::Server { .. } => self.deadline,
        }
    }
}
