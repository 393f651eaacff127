//! For tests: a backend whose other end is a socket, and a card on it.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vm_memory::VolatileSlice;

use super::backend::{HEADER_LEN, NetBackend, Offloads, Pair, Support};
use super::{Net, NetConfig, NetControl};
use crate::lock;
use crate::virtio::test_support::{Driver, TestLoop};
use crate::virtio::transport::core::feature as transport;

/// The first pair's queues.
pub(super) const RX: usize = 0;
pub(super) const TX: usize = 1;
pub(super) const VERSION_1: u64 = 1 << transport::VERSION_1;

/// What was asked of a [`Double`].
#[derive(Default)]
pub(super) struct Asked {
    pub(super) offloads: Vec<Offloads>,
    pub(super) enabled: Vec<bool>,
    pub(super) fails: bool,
}

/// A backend whose other end is a socket.
pub(super) struct Double {
    socket: UnixDatagram,
    asked: Arc<Mutex<Asked>>,
    support: Support,
}

impl NetBackend for Double {
    fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    fn has_work(&self) -> bool {
        false
    }

    fn work(&mut self) {}

    fn support(&self) -> Support {
        self.support
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        lock(&self.asked).offloads.push(offloads);
        Ok(())
    }

    fn set_enabled(&mut self, enabled: bool) -> io::Result<()> {
        lock(&self.asked).enabled.push(enabled);
        Ok(())
    }

    fn send(&mut self, frame: &[VolatileSlice<'_>]) -> io::Result<()> {
        if lock(&self.asked).fails {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let mut bytes = Vec::new();
        for piece in frame {
            let mut copy = vec![0; piece.len()];
            piece.copy_to(&mut copy);
            bytes.extend(copy);
        }
        self.socket.send(&bytes).map(|_| ())
    }

    fn flush(&mut self) -> bool {
        false
    }

    fn recv(&mut self, room: &[VolatileSlice<'_>]) -> io::Result<usize> {
        if lock(&self.asked).fails {
            return Err(io::ErrorKind::NotConnected.into());
        }
        let mut frame = vec![0; 1 << 17];
        let len = self.socket.recv(&mut frame)?;
        let mut left = &frame[..len];
        for piece in room {
            let (now, later) = left.split_at(left.len().min(piece.len()));
            piece.copy_from(now);
            left = later;
        }
        Ok(len - left.len())
    }
}

/// The other end of a pair.
pub(super) struct Wire {
    socket: UnixDatagram,
    pub(super) asked: Arc<Mutex<Asked>>,
}

impl Wire {
    pub(super) fn new(support: Support) -> (Self, Pair) {
        let (here, there) = UnixDatagram::pair().unwrap();
        there.set_nonblocking(true).unwrap();
        here.set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        let asked = Arc::<Mutex<Asked>>::default();
        let backend = Double {
            socket: there,
            asked: Arc::clone(&asked),
            support,
        };
        let pair = Pair {
            backend: Box::new(backend),
            kernel: None,
        };
        (
            Self {
                socket: here,
                asked,
            },
            pair,
        )
    }

    pub(super) fn send(&self, frame: &[u8]) {
        assert_eq!(self.socket.send(frame).unwrap(), frame.len());
    }

    pub(super) fn recv(&self) -> Vec<u8> {
        let mut frame = vec![0; 1 << 17];
        let len = self.socket.recv(&mut frame).unwrap();
        frame.truncate(len);
        frame
    }

    #[track_caller]
    pub(super) fn assert_silent(&self) {
        self.socket.set_nonblocking(true).unwrap();
        let error = self.socket.recv(&mut [0; 100]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        self.socket.set_nonblocking(false).unwrap();
    }
}

pub(super) const ALL: Support = Support {
    from_guest: Offloads::ALL,
    to_guest: Offloads::ALL,
};

pub(super) fn config() -> NetConfig {
    NetConfig {
        id: "net0".to_owned(),
        mac: Some("02:00:00:00:00:01".parse().unwrap()),
        ..NetConfig::default()
    }
}

pub(super) fn card(config: NetConfig, pairs: usize) -> (Net, NetControl, Vec<Wire>) {
    let (wires, pairs) = (0..pairs).map(|_| Wire::new(ALL)).unzip();
    let (net, control) = Net::new(config, pairs, TestLoop::start()).unwrap();
    (net, control, wires)
}

/// One pair, driven with these features.
pub(super) fn driver(features: u64) -> (Driver, Wire, NetControl) {
    let (net, control, mut wires) = card(config(), 1);
    let mut driver = Driver::new(net);
    driver.start(features);
    (driver, wires.remove(0), control)
}

/// A frame with a header of zeroes, and a payload that tells `seed`.
pub(super) fn frame(len: usize, seed: u8) -> Vec<u8> {
    let payload = (0..len - HEADER_LEN).map(|at| (at as u8).wrapping_mul(7).wrapping_add(seed));
    [0; HEADER_LEN].into_iter().chain(payload).collect()
}

/// `frame` as the driver gets it, in `buffers` buffers.
pub(super) fn received(frame: &[u8], buffers: u16) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[10..12].copy_from_slice(&buffers.to_le_bytes());
    frame
}
