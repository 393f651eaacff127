//! A guest's side of the serial port, after Linux's drivers/tty/serial/8250.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::serial::Serial;
use crate::bus::BusDevice;
use crate::interrupt::InterruptLine;
use crate::lock;

/// Linux's `tx_loadsz` of a 16550A.
const TX_LOAD_SIZE: usize = 16;
/// Longest wait for an interrupt: one that does not come is a bug.
const INTERRUPT_TIMEOUT: Duration = Duration::from_secs(20);

/// An edge-triggered input: passes on each rising edge.
struct EdgeLine {
    asserted: Mutex<bool>,
    edges: Sender<()>,
}

impl InterruptLine for EdgeLine {
    fn set(&self, asserted: bool) {
        let was_asserted = std::mem::replace(&mut *lock(&self.asserted), asserted);
        if asserted && !was_asserted {
            let _ = self.edges.send(());
        }
    }
}

/// A driver that works by interrupts.
pub(super) struct Driver {
    serial: Arc<Mutex<Serial>>,
    interrupts: Receiver<()>,
    ier: u8,
    to_send: Vec<u8>,
    sent: usize,
    pub(super) received: Vec<u8>,
}

impl Driver {
    /// A driver that has not opened its port, the port, and what wakes the port's worker.
    pub(super) fn new() -> (Self, Arc<Mutex<Serial>>, EventFd) {
        let (edges, interrupts) = channel();
        let line = Arc::new(EdgeLine {
            asserted: Mutex::default(),
            edges,
        });
        let wake = EventFd::new(EFD_NONBLOCK).unwrap();
        let serial = Serial::new(line, wake.try_clone().unwrap());
        let serial = Arc::new(Mutex::new(serial));
        let driver = Self {
            serial: Arc::clone(&serial),
            interrupts,
            ier: 0,
            to_send: Vec::new(),
            sent: 0,
            received: Vec::new(),
        };
        (driver, serial, wake)
    }

    /// serial8250_do_startup(), then serial8250_do_set_termios() with its order of IER and FCR.
    pub(super) fn open(&mut self) {
        self.write(2, 0x01);
        self.write(2, 0x07);
        self.write(2, 0x00);
        for register in [5, 0, 2, 6] {
            self.read(register);
        }
        self.write(3, 0x03);
        self.write(4, 0x0b);
        self.ier = 0x05;
        self.write(1, self.ier);
        self.write(3, 0x83);
        self.write(0, 0x01);
        self.write(1, 0x00);
        self.write(3, 0x03);
        self.write(2, 0x81);
    }

    /// serial8250_start_tx()
    pub(super) fn start_sending(&mut self, bytes: Vec<u8>) {
        self.to_send = bytes;
        self.sent = 0;
        self.ier |= 0x02;
        self.write(1, self.ier);
    }

    /// Handles interrupts until everything is sent and `count` bytes are received.
    pub(super) fn run_until_received(&mut self, count: usize) {
        while self.sent < self.to_send.len() || self.received.len() < count {
            self.interrupts
                .recv_timeout(INTERRUPT_TIMEOUT)
                .expect("an interrupt is lost");
            // serial8250_interrupt()
            while self.read(2) & 0x01 == 0 {
                self.handle_interrupt();
            }
        }
    }

    /// serial8250_handle_irq()
    fn handle_interrupt(&mut self) {
        let mut status = self.read(5);
        while status & 0x01 != 0 {
            let byte = self.read(0);
            self.received.push(byte);
            status = self.read(5);
        }
        if status & 0x20 != 0 && self.ier & 0x02 != 0 {
            let end = self.to_send.len().min(self.sent + TX_LOAD_SIZE);
            for index in self.sent..end {
                self.write(0, self.to_send[index]);
            }
            self.sent = end;
            if end == self.to_send.len() {
                self.ier &= !0x02;
                self.write(1, self.ier);
            }
        }
    }

    /// serial8250_console_putchar(): waits for the transmitter, without a limit.
    pub(super) fn print(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            while self.read(5) & 0x20 == 0 {
                std::thread::yield_now();
            }
            self.write(0, byte);
        }
    }

    pub(super) fn read(&mut self, register: u64) -> u8 {
        let mut data = [0xaa];
        lock(&self.serial).read(register, &mut data);
        data[0]
    }

    pub(super) fn write(&mut self, register: u64, value: u8) {
        lock(&self.serial).write(register, &[value]);
    }
}

/// Bytes without a pattern that a shift or a loss could keep.
pub(crate) fn noise(len: usize, mut seed: u32) -> Vec<u8> {
    let next = || {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        seed.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(len).collect()
}
