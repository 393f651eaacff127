//! A 16550A UART (National Semiconductor PC16550D datasheet): the guest's serial port.
//!
//! The line has no speed: what the guest sends is out at once, what the host sends comes as fast as
//! the guest reads. Nothing is lost either way. Towards the host, a bounded buffer holds the guest
//! back by not reporting an empty transmitter. Towards the guest, bytes are delivered only while it
//! has its receiver's interrupt on and RTS raised: a guest that has not opened the port yet, or whose
//! buffers are full (with hardware flow control), gets them later.

use std::collections::VecDeque;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;
use crate::interrupt::InterruptLine;

/// Registers, as offsets.
const DATA: u64 = 0;
const IER: u64 = 1;
const IIR_FCR: u64 = 2;
const LCR: u64 = 3;
const MCR: u64 = 4;
const LSR: u64 = 5;
const MSR: u64 = 6;
const SCR: u64 = 7;

const IER_RECEIVED: u8 = 1 << 0;
const IER_TRANSMITTER_EMPTY: u8 = 1 << 1;
const IER_MODEM_STATUS: u8 = 1 << 3;
const IER_WRITABLE: u8 = 0x0f;

const IIR_NONE: u8 = 0x01;
const IIR_MODEM_STATUS: u8 = 0x00;
const IIR_TRANSMITTER_EMPTY: u8 = 0x02;
const IIR_RECEIVED: u8 = 0x04;
const IIR_FIFO_ENABLED: u8 = 0xc0;

const FCR_ENABLE: u8 = 1 << 0;
const FCR_CLEAR_RECEIVER: u8 = 1 << 1;

const LCR_DIVISOR_LATCH: u8 = 1 << 7;

const MCR_DTR: u8 = 1 << 0;
const MCR_RTS: u8 = 1 << 1;
const MCR_OUT1: u8 = 1 << 2;
const MCR_OUT2: u8 = 1 << 3;
const MCR_LOOP: u8 = 1 << 4;
const MCR_WRITABLE: u8 = 0x1f;

const LSR_DATA_READY: u8 = 1 << 0;
const LSR_THR_EMPTY: u8 = 1 << 5;
const LSR_TRANSMITTER_EMPTY: u8 = 1 << 6;

/// The other end is always there and always ready.
const MSR_CTS: u8 = 1 << 4;
const MSR_DSR: u8 = 1 << 5;
const MSR_RI: u8 = 1 << 6;
const MSR_DCD: u8 = 1 << 7;

/// Bytes of the receiver's FIFO.
const FIFO_SIZE: usize = 16;
/// Bytes that wait behind the FIFO, so that a paste does not wake the I/O thread for every 16 bytes.
const BACKLOG_SIZE: usize = 4096;
/// Above so many bytes of output the transmitter is not reported empty.
const OUTPUT_HIGH_WATER: usize = 48 << 10;
/// A guest that writes in spite of that loses what goes beyond this.
const OUTPUT_MAX: usize = 64 << 10;

/// The UART.
pub struct Serial {
    // Runtime glue.
    line: Arc<dyn InterruptLine>,
    /// Wakes the worker: there is output, or room for input that it waits for.
    ready: EventFd,
    // Volatile state.
    ier: u8,
    fifo_enabled: bool,
    lcr: u8,
    mcr: u8,
    scr: u8,
    divisor: [u8; 2],
    fifo: VecDeque<u8>,
    backlog: VecDeque<u8>,
    output: VecDeque<u8>,
    /// The transmitter-empty interrupt is due: set when the transmitter becomes empty or the
    /// interrupt is switched on, cleared by reading IIR.
    transmitter_interrupt: bool,
    /// The worker has input for which there was no room.
    input_waits: bool,
    /// Output bytes that were lost because the guest ignored the transmitter's state.
    overrun: u64,
}

impl Serial {
    /// A UART after reset, which interrupts by `line` and tells its worker by `ready`.
    pub fn new(line: Arc<dyn InterruptLine>, ready: EventFd) -> Self {
        Self {
            line,
            ready,
            ier: 0,
            fifo_enabled: false,
            lcr: 0x03,
            mcr: MCR_OUT2,
            scr: 0,
            // 9600 baud, as a BIOS leaves it.
            divisor: [0x0c, 0x00],
            fifo: VecDeque::with_capacity(FIFO_SIZE),
            backlog: VecDeque::new(),
            output: VecDeque::new(),
            transmitter_interrupt: false,
            input_waits: false,
            overrun: 0,
        }
    }

    /// Moves all output to the end of `into`, at most 64 KiB.
    pub fn take_output(&mut self, into: &mut Vec<u8>) {
        let was_full = !self.transmitter_empty();
        let (front, back) = self.output.as_slices();
        into.extend_from_slice(front);
        into.extend_from_slice(back);
        self.output.clear();
        if was_full {
            self.transmitter_interrupt = true;
            self.update_line();
        }
    }

    /// Takes as much input as there is room for, and says how much that was. If it was not all, the
    /// worker is woken when there is room again.
    pub fn receive(&mut self, input: &[u8]) -> usize {
        let room = BACKLOG_SIZE - self.backlog.len();
        let taken = input.len().min(room);
        self.backlog.extend(&input[..taken]);
        self.input_waits = taken < input.len();
        self.refill();
        self.update_line();
        taken
    }

    /// Bytes lost to a guest that wrote without looking whether the transmitter is empty.
    pub fn overrun(&self) -> u64 {
        self.overrun
    }

    fn looped(&self) -> bool {
        self.mcr & MCR_LOOP != 0
    }

    fn transmitter_empty(&self) -> bool {
        self.output.len() < OUTPUT_HIGH_WATER
    }

    /// Moves bytes from the backlog to the FIFO, if the guest is ready for them.
    fn refill(&mut self) {
        let listening = self.ier & IER_RECEIVED != 0 && self.mcr & MCR_RTS != 0 && !self.looped();
        if !listening {
            return;
        }
        let size = if self.fifo_enabled { FIFO_SIZE } else { 1 };
        while self.fifo.len() < size {
            let Some(byte) = self.backlog.pop_front() else {
                break;
            };
            self.fifo.push_back(byte);
        }
        if self.input_waits && self.backlog.len() <= BACKLOG_SIZE / 2 {
            self.input_waits = false;
            self.wake_worker();
        }
    }

    fn wake_worker(&self) {
        // Fails only when the counter is full, and then the worker is being woken anyway.
        let _ = self.ready.write(1);
    }

    fn transmit(&mut self, byte: u8) {
        if self.looped() {
            if self.fifo.len() < FIFO_SIZE {
                self.fifo.push_back(byte);
            }
        } else if self.output.len() < OUTPUT_MAX {
            if self.output.is_empty() {
                self.wake_worker();
            }
            self.output.push_back(byte);
        } else {
            self.overrun += 1;
        }
        self.transmitter_interrupt = self.transmitter_empty();
    }

    /// The most urgent reason for an interrupt, as IIR has it.
    fn interrupt_reason(&self) -> u8 {
        if self.ier & IER_RECEIVED != 0 && !self.fifo.is_empty() {
            IIR_RECEIVED
        } else if self.ier & IER_TRANSMITTER_EMPTY != 0 && self.transmitter_interrupt {
            IIR_TRANSMITTER_EMPTY
        } else if self.ier & IER_MODEM_STATUS != 0
            && self.looped()
            && self.modem_status() & 0x0f != 0
        {
            IIR_MODEM_STATUS
        } else {
            IIR_NONE
        }
    }

    fn update_line(&self) {
        self.line.set(self.interrupt_reason() != IIR_NONE);
    }

    fn modem_status(&self) -> u8 {
        if !self.looped() {
            return MSR_CTS | MSR_DSR | MSR_DCD;
        }
        let wire = |output: u8, input: u8| if self.mcr & output != 0 { input } else { 0 };
        wire(MCR_RTS, MSR_CTS)
            | wire(MCR_DTR, MSR_DSR)
            | wire(MCR_OUT1, MSR_RI)
            | wire(MCR_OUT2, MSR_DCD)
    }

    fn read_register(&mut self, register: u64) -> u8 {
        let divisor_latch = self.lcr & LCR_DIVISOR_LATCH != 0;
        match register {
            DATA if divisor_latch => self.divisor[0],
            IER if divisor_latch => self.divisor[1],
            DATA => {
                let byte = self.fifo.pop_front().unwrap_or(0);
                self.refill();
                self.update_line();
                byte
            }
            IER => self.ier,
            IIR_FCR => {
                let reason = self.interrupt_reason();
                if reason == IIR_TRANSMITTER_EMPTY {
                    self.transmitter_interrupt = false;
                    self.update_line();
                }
                reason
                    | if self.fifo_enabled {
                        IIR_FIFO_ENABLED
                    } else {
                        0
                    }
            }
            LCR => self.lcr,
            MCR => self.mcr,
            LSR => {
                let mut status = 0;
                if !self.fifo.is_empty() {
                    status |= LSR_DATA_READY;
                }
                if self.transmitter_empty() {
                    status |= LSR_THR_EMPTY | LSR_TRANSMITTER_EMPTY;
                }
                status
            }
            MSR => self.modem_status(),
            SCR => self.scr,
            _ => 0,
        }
    }

    fn write_register(&mut self, register: u64, value: u8) {
        let divisor_latch = self.lcr & LCR_DIVISOR_LATCH != 0;
        match register {
            DATA if divisor_latch => self.divisor[0] = value,
            IER if divisor_latch => self.divisor[1] = value,
            DATA => self.transmit(value),
            IER => {
                let value = value & IER_WRITABLE;
                let switched_on = value & !self.ier;
                self.ier = value;
                if switched_on & IER_TRANSMITTER_EMPTY != 0 {
                    self.transmitter_interrupt = self.transmitter_empty();
                }
                self.refill();
            }
            IIR_FCR => {
                let enabled = value & FCR_ENABLE != 0;
                if value & FCR_CLEAR_RECEIVER != 0 || enabled != self.fifo_enabled {
                    self.fifo.clear();
                }
                self.fifo_enabled = enabled;
                self.refill();
            }
            LCR => self.lcr = value,
            MCR => {
                self.mcr = value & MCR_WRITABLE;
                self.refill();
            }
            SCR => self.scr = value,
            // LSR and MSR are read-only.
            _ => {}
        }
        self.update_line();
    }
}

impl BusDevice for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let [value] = data {
            *value = self.read_register(offset);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let [value] = *data {
            self.write_register(offset, value);
        }
    }
}

#[cfg(test)]
#[path = "serial_test.rs"]
mod tests;
