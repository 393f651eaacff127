//! A 16550A UART (National Semiconductor PC16550D datasheet): the guest's serial port.
//!
//! The line has no speed. What the guest sends has left at once, for a buffer that the worker on the
//! I/O thread (`serial_worker`) empties; what the host sends arrives as fast as the guest reads. A
//! guest that heeds the flags loses nothing:
//!
//! - Above [`OUTPUT_HIGH_WATER`] the transmitter is not empty: neither LSR nor an interrupt says so
//!   until the worker has made room. A guest that goes on writing fills the buffer to [`OUTPUT_MAX`];
//!   after that what it writes is dropped, and counted.
//! - A byte is only delivered when the receiver has room for it, and while the guest listens: with the
//!   receive interrupt enabled, which drivers do when they open the port and after they have cleared
//!   the FIFO of what was in there; and with RTS up, if it uses RTS at all. Until then it waits at the
//!   worker. A guest that only ever polls the receiver gets no input.
//!
//! The interrupt line is not gated by MCR.OUT2, as on other monitors' ports: there are guests that
//! never set it.

mod state;

use std::collections::VecDeque;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::bus::{BusDevice, byte_offsets};
use crate::interrupt::InterruptLine;
pub use state::SerialState;

/// Bytes of output from which on the transmitter is busy.
pub const OUTPUT_HIGH_WATER: usize = 48 << 10;
/// Bytes of output that are held at most. The distance is for what drivers write without looking
/// again: 16 bytes each time the transmitter is empty.
pub const OUTPUT_MAX: usize = 64 << 10;
/// Bytes in the receiver's FIFO.
const FIFO_SIZE: usize = 16;
/// The worker brings more input once the FIFO has drained to this: the guest reads the rest while it
/// is on its way.
const REFILL_LEVEL: usize = FIFO_SIZE / 2;

// Registers, as offsets; the first two are the divisor latch while LCR.DLAB is set.
const RBR_THR: u64 = 0;
const IER: u64 = 1;
const IIR_FCR: u64 = 2;
const LCR: u64 = 3;
const MCR: u64 = 4;
const LSR: u64 = 5;
const MSR: u64 = 6;
const SCR: u64 = 7;

// Interrupt enable: received data, transmitter empty, line status, modem status.
const IER_RDI: u8 = 1 << 0;
const IER_THRI: u8 = 1 << 1;
const IER_RLSI: u8 = 1 << 2;
const IER_MSI: u8 = 1 << 3;
const IER_WRITABLE: u8 = 0x0f;

// Interrupt identification.
const IIR_NONE: u8 = 0x01;
const IIR_LINE_STATUS: u8 = 0x06;
const IIR_RECEIVED: u8 = 0x04;
/// Fewer bytes than the trigger level, and no more have come for a while.
const IIR_RECEIVE_TIMEOUT: u8 = 0x0c;
const IIR_TRANSMITTER_EMPTY: u8 = 0x02;
const IIR_MODEM_STATUS: u8 = 0x00;
const IIR_FIFO_ENABLED: u8 = 0xc0;

// FIFO control.
const FCR_ENABLE: u8 = 1 << 0;
const FCR_CLEAR_RECEIVER: u8 = 1 << 1;
const FCR_TRIGGER_SHIFT: u8 = 6;
/// Bytes for which the receiver interrupts, by the two topmost bits of FCR.
const TRIGGER_LEVELS: [usize; 4] = [1, 4, 8, 14];

const LCR_DLAB: u8 = 1 << 7;

const MCR_DTR: u8 = 1 << 0;
const MCR_RTS: u8 = 1 << 1;
const MCR_OUT1: u8 = 1 << 2;
const MCR_OUT2: u8 = 1 << 3;
const MCR_LOOP: u8 = 1 << 4;
const MCR_WRITABLE: u8 = 0x1f;

const LSR_DATA_READY: u8 = 1 << 0;
const LSR_OVERRUN: u8 = 1 << 1;
const LSR_THRE: u8 = 1 << 5;
const LSR_TEMT: u8 = 1 << 6;

// Modem status: the lines, and below each the bit that says it has changed since the last read.
const MSR_CTS: u8 = 1 << 4;
const MSR_DSR: u8 = 1 << 5;
const MSR_RI: u8 = 1 << 6;
const MSR_DCD: u8 = 1 << 7;
const MSR_DELTA_SHIFT: u8 = 4;

/// 9600 baud, as firmware leaves it. Linux divides by what it finds here.
const RESET_DIVISOR: [u8; 2] = 12u16.to_le_bytes();
/// 8 bits, no parity, 1 stop bit.
const RESET_LCR: u8 = 0x03;

/// What the port has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SerialCounters {
    /// Bytes of input that the guest has read.
    pub reads: u64,
    /// Times that the guest read where there was nothing.
    pub missed_reads: u64,
    /// Bytes that the guest has sent.
    pub writes: u64,
    /// Bytes that it sent though the transmitter was busy, and lost.
    pub missed_writes: u64,
    /// Bytes that were dropped as they were beyond the limit.
    pub rate_limited: u64,
    /// Bytes that were lost as the host took no more and the guest is not to wait for it.
    pub lost: u64,
    /// Times that output was written to the host.
    pub flushes: u64,
    /// Errors of the host that ended the output: 0 or 1.
    pub errors: u64,
}

/// The UART: 8 ports.
///
/// Every access takes the same short time, whatever is buffered: Linux's console polls LSR and writes
/// THR for each character, and each of those stops a vCPU.
pub struct Serial {
    // Runtime glue.
    line: Arc<dyn InterruptLine>,
    /// Wakes the worker.
    wake: EventFd,

    // Volatile state, as the guest sees it.
    ier: u8,
    lcr: u8,
    mcr: u8,
    scr: u8,
    divisor: [u8; 2],
    fifo_enabled: bool,
    /// Bytes for which the receiver interrupts.
    trigger: usize,
    received: VecDeque<u8>,
    /// What was in the receiver when it was cleared, at most its capacity: comes before new input.
    returned: VecDeque<u8>,
    overrun: bool,
    /// Changes of the modem lines, as the low half of MSR.
    modem_changes: u8,
    /// The transmitter became empty, or the guest enabled that interrupt while it was, and the guest
    /// has not been told.
    transmitter_interrupt: bool,
    line_asserted: bool,
    /// RTS has been up: the guest means something by it when it is down.
    uses_rts: bool,

    // Volatile state, as the worker sees it.
    output: VecDeque<u8>,
    /// The worker's part of it is counted by the worker.
    pub(super) counters: SerialCounters,
    /// The worker waits to be woken for output.
    worker_rests: bool,
    /// The worker has input that there was no room for.
    input_waits: bool,
}

impl Serial {
    /// A UART after reset, which interrupts by `line`. It writes to `wake` when there is output for a
    /// worker at rest, and when there is room for input that was refused before.
    pub fn new(line: Arc<dyn InterruptLine>, wake: EventFd) -> Self {
        Self {
            line,
            wake,
            ier: 0,
            lcr: RESET_LCR,
            mcr: 0,
            scr: 0,
            divisor: RESET_DIVISOR,
            fifo_enabled: false,
            trigger: TRIGGER_LEVELS[0],
            received: VecDeque::with_capacity(FIFO_SIZE),
            returned: VecDeque::new(),
            overrun: false,
            modem_changes: 0,
            transmitter_interrupt: false,
            line_asserted: false,
            uses_rts: false,
            output: VecDeque::new(),
            counters: SerialCounters::default(),
            worker_rests: true,
            input_waits: false,
        }
    }

    /// What the guest has sent and the worker has not consumed, oldest first, at most [`OUTPUT_MAX`]
    /// bytes in two parts.
    pub fn output(&self) -> (&[u8], &[u8]) {
        self.output.as_slices()
    }

    /// Removes the `count` oldest bytes of the output, which the host has taken.
    pub fn consume_output(&mut self, count: usize) {
        let was_busy = !self.transmitter_empty();
        self.output.drain(..count.min(self.output.len()));
        if was_busy && self.transmitter_empty() {
            self.transmitter_interrupt = true;
            self.update();
        }
    }

    /// The worker has nothing more to do: it is woken for the next byte of output. False, and it is
    /// not, if there is output now.
    pub fn rest(&mut self) -> bool {
        self.worker_rests = self.output.is_empty();
        self.worker_rests
    }

    /// What it has done so far.
    pub fn counters(&self) -> SerialCounters {
        self.counters
    }

    /// How many bytes of input would be taken now.
    pub fn input_room(&self) -> usize {
        if !self.listens() || !self.returned.is_empty() {
            return 0;
        }
        self.capacity().saturating_sub(self.received.len())
    }

    fn listens(&self) -> bool {
        let ready = self.mcr & MCR_RTS != 0 || !self.uses_rts;
        self.ier & IER_RDI != 0 && ready && !self.is_looped()
    }

    /// Takes as much input as there is room for, and says how much that was. If that was not all, the
    /// worker is woken when there is room again.
    pub fn receive(&mut self, input: &[u8]) -> usize {
        let taken = input.len().min(self.input_room());
        self.received.extend(&input[..taken]);
        self.input_waits = taken < input.len();
        self.update();
        taken
    }

    /// Bytes that the receiver holds.
    fn capacity(&self) -> usize {
        if self.fifo_enabled { FIFO_SIZE } else { 1 }
    }

    fn is_looped(&self) -> bool {
        self.mcr & MCR_LOOP != 0
    }

    fn transmitter_empty(&self) -> bool {
        self.output.len() < OUTPUT_HIGH_WATER
    }

    /// Brings the interrupt line and the worker up to date, after anything has changed.
    fn update(&mut self) {
        if !self.returned.is_empty() && self.listens() {
            let room = self.capacity().saturating_sub(self.received.len());
            let count = room.min(self.returned.len());
            self.received.extend(self.returned.drain(..count));
        }
        let asserted = self.interrupt() != IIR_NONE;
        if asserted != self.line_asserted {
            self.line_asserted = asserted;
            self.line.set(asserted);
        }
        if self.input_waits && self.received.len() <= REFILL_LEVEL && self.input_room() > 0 {
            self.input_waits = false;
            self.wake_worker();
        }
    }

    fn wake_worker(&self) {
        // Fails only when the counter is at its maximum, and then the worker is being woken anyway.
        let _ = self.wake.write(1);
    }

    /// The most urgent interrupt that is enabled and pending, as IIR gives it (datasheet section 8.6).
    fn interrupt(&self) -> u8 {
        let enabled = |interrupt| self.ier & interrupt != 0;
        if enabled(IER_RLSI) && self.overrun {
            IIR_LINE_STATUS
        } else if enabled(IER_RDI) && !self.received.is_empty() {
            // There is no clock that bytes could come by: a pause is over at once.
            if self.fifo_enabled && self.received.len() < self.trigger {
                IIR_RECEIVE_TIMEOUT
            } else {
                IIR_RECEIVED
            }
        } else if enabled(IER_THRI) && self.transmitter_interrupt {
            IIR_TRANSMITTER_EMPTY
        } else if enabled(IER_MSI) && self.modem_changes != 0 {
            IIR_MODEM_STATUS
        } else {
            IIR_NONE
        }
    }

    /// The modem lines, as the high half of MSR: the other end is always there and ready.
    fn modem_lines(&self) -> u8 {
        if !self.is_looped() {
            return MSR_CTS | MSR_DSR | MSR_DCD;
        }
        [
            (MCR_RTS, MSR_CTS),
            (MCR_DTR, MSR_DSR),
            (MCR_OUT1, MSR_RI),
            (MCR_OUT2, MSR_DCD),
        ]
        .into_iter()
        .filter(|(output, _)| self.mcr & output != 0)
        .fold(0, |lines, (_, input)| lines | input)
    }

    fn set_modem_control(&mut self, value: u8) {
        let before = self.modem_lines();
        self.mcr = value & MCR_WRITABLE;
        self.uses_rts |= self.mcr & MCR_RTS != 0;
        let after = self.modem_lines();
        // The ring indicator's bit says that it went down, the others that their line changed.
        let changes = (before ^ after) & !(MSR_RI & after);
        self.modem_changes |= changes >> MSR_DELTA_SHIFT;
    }

    fn transmit(&mut self, byte: u8) {
        if self.is_looped() {
            if self.received.len() < self.capacity() {
                self.received.push_back(byte);
            } else {
                self.overrun = true;
            }
        } else if self.output.len() < OUTPUT_MAX {
            self.counters.writes += 1;
            self.output.push_back(byte);
            if std::mem::take(&mut self.worker_rests) {
                self.wake_worker();
            }
        } else {
            self.counters.missed_writes += 1;
        }
        self.transmitter_interrupt = self.transmitter_empty();
    }

    /// What came over the line comes again, once the guest listens: drivers that probe for a UART
    /// enable every interrupt to see whether they can, and then clear what that let in.
    fn clear_receiver(&mut self) {
        if self.is_looped() {
            self.received.clear();
        } else {
            self.received.append(&mut self.returned);
            std::mem::swap(&mut self.received, &mut self.returned);
        }
    }

    fn set_fifo_control(&mut self, value: u8) {
        let enabled = value & FCR_ENABLE != 0;
        // The transmitter's FIFO needs no clearing: what was written has left.
        if value & FCR_CLEAR_RECEIVER != 0 {
            self.clear_receiver();
        }
        // The datasheet has a change of mode clear the receiver too. Linux enables the receive
        // interrupt first and then the FIFO: a byte that came in between would be lost.
        self.fifo_enabled = enabled;
        if enabled {
            self.trigger = TRIGGER_LEVELS[usize::from(value >> FCR_TRIGGER_SHIFT)];
        }
    }

    fn identify_interrupt(&mut self) -> u8 {
        let interrupt = self.interrupt();
        if interrupt == IIR_TRANSMITTER_EMPTY {
            self.transmitter_interrupt = false;
        }
        interrupt
            | if self.fifo_enabled {
                IIR_FIFO_ENABLED
            } else {
                0
            }
    }

    fn line_status(&mut self) -> u8 {
        let mut status = 0;
        if !self.received.is_empty() {
            status |= LSR_DATA_READY;
        }
        if std::mem::take(&mut self.overrun) {
            status |= LSR_OVERRUN;
        }
        if self.transmitter_empty() {
            status |= LSR_THRE | LSR_TEMT;
        }
        status
    }

    fn read_received(&mut self) -> u8 {
        let byte = self.received.pop_front();
        if byte.is_some() {
            self.counters.reads += 1;
        } else {
            self.counters.missed_reads += 1;
        }
        byte.unwrap_or(0)
    }

    fn read_register(&mut self, register: u64) -> u8 {
        let divisor_latch = self.lcr & LCR_DLAB != 0;
        match register {
            RBR_THR if divisor_latch => self.divisor[0],
            IER if divisor_latch => self.divisor[1],
            RBR_THR => self.read_received(),
            IER => self.ier,
            IIR_FCR => self.identify_interrupt(),
            LCR => self.lcr,
            MCR => self.mcr,
            LSR => self.line_status(),
            MSR => self.modem_lines() | std::mem::take(&mut self.modem_changes),
            SCR => self.scr,
            _ => 0,
        }
    }

    fn write_register(&mut self, register: u64, value: u8) {
        let divisor_latch = self.lcr & LCR_DLAB != 0;
        match register {
            RBR_THR if divisor_latch => self.divisor[0] = value,
            IER if divisor_latch => self.divisor[1] = value,
            RBR_THR => self.transmit(value),
            IER => {
                let newly_enabled = value & !self.ier;
                self.ier = value & IER_WRITABLE;
                if newly_enabled & IER_THRI != 0 {
                    self.transmitter_interrupt = self.transmitter_empty();
                }
            }
            IIR_FCR => self.set_fifo_control(value),
            LCR => self.lcr = value,
            MCR => self.set_modem_control(value),
            SCR => self.scr = value,
            // LSR and MSR are read-only.
            _ => {}
        }
    }
}

impl BusDevice for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (offset, byte) in byte_offsets(offset).zip(data) {
            *byte = self.read_register(offset);
        }
        self.update();
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (offset, &byte) in byte_offsets(offset).zip(data) {
            self.write_register(offset, byte);
        }
        self.update();
    }
}

#[cfg(test)]
#[path = "serial_test.rs"]
mod tests;
