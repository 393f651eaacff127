//! The I/O APIC: interrupt lines in, messages to local APICs out.
//!
//! Registers as in the Intel 82093AA datasheet (sections 3.1, 3.2), with the EOI register and the
//! message format of its successors in the ICH (ICH9 datasheet, sections 13.5.1, 13.5.6, 13.5.9).
//!
//! It announces version 0x20, the one with an EOI register. A guest may suppress the broadcast of
//! ends of interrupts to IOAPICs, which KVM offers together with x2APIC, and then ends a
//! level-triggered interrupt at that register; with an older version it could not end it at all. For
//! all other guests the register only makes Linux's recovery of a stuck line one write instead of
//! five. An end that arrives both ways is harmless.

use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};

use crate::bus::{BusDevice, put_register};
use crate::interrupt::{InterruptLine, MsiMessage, MsiSink};
use crate::lock;
use crate::state::BadState;

/// The most inputs that one can have here: a PC's has 24, a guest takes what the version register says.
pub const MAX_PINS: u32 = 64;
const VERSION: u32 = 0x20;

// Register windows, as offsets.
const IOREGSEL: u64 = 0x00;
const IOWIN: u64 = 0x10;
const EOI: u64 = 0x40;

// Registers behind IOWIN.
const REG_ID: u8 = 0x00;
const REG_VERSION: u8 = 0x01;
const REG_ARBITRATION: u8 = 0x02;
/// Two for each input: low half, high half.
const REG_REDIRECTION: u8 = 0x10;
/// The four bits of [`REG_ID`] that there are.
const ID_WRITABLE: u32 = 0x0f00_0000;

// Redirection entry.
const RTE_VECTOR: u64 = 0xff;
const RTE_DELIVERY_MODE: u64 = 7 << 8;
const RTE_FIXED: u64 = 0 << 8;
const RTE_LOWEST_PRIORITY: u64 = 1 << 8;
const RTE_LOGICAL: u64 = 1 << 11;
/// Kept for the guest to read back: a line here is asserted or not, whatever its voltage.
const RTE_ACTIVE_LOW: u64 = 1 << 13;
const RTE_REMOTE_IRR: u64 = 1 << 14;
const RTE_LEVEL: u64 = 1 << 15;
const RTE_MASKED: u64 = 1 << 16;
const RTE_DESTINATION_SHIFT: u32 = 56;
/// What a guest can change. Delivery status and remote IRR are the controller's.
const RTE_WRITABLE: u64 = 0xff << RTE_DESTINATION_SHIFT
    | RTE_MASKED
    | RTE_LEVEL
    | RTE_ACTIVE_LOW
    | RTE_LOGICAL
    | RTE_DELIVERY_MODE
    | RTE_VECTOR;

// Message (Intel SDM volume 3, "Message Signalled Interrupts").
const MSI_ADDRESS: u64 = 0xfee0_0000;
const MSI_DESTINATION_SHIFT: u32 = 12;
const MSI_REDIRECTION_HINT: u64 = 1 << 3;
const MSI_LOGICAL: u64 = 1 << 2;
const MSI_LEVEL: u32 = 1 << 15;
/// Only assertions are sent: the bit is always set.
const MSI_ASSERT: u32 = 1 << 14;

/// One input's redirection entry, reserved bits zero.
#[derive(Clone, Copy)]
struct Redirection(u64);

impl Redirection {
    const RESET: Self = Self(RTE_MASKED);

    fn is_masked(self) -> bool {
        self.0 & RTE_MASKED != 0
    }

    /// NMI, SMI, INIT and ExtINT are edges even where they are programmed as levels: no local APIC
    /// ever reports their end.
    fn is_level(self) -> bool {
        let ends = matches!(self.0 & RTE_DELIVERY_MODE, RTE_FIXED | RTE_LOWEST_PRIORITY);
        self.0 & RTE_LEVEL != 0 && ends
    }

    fn remote_irr(self) -> bool {
        self.0 & RTE_REMOTE_IRR != 0
    }

    fn vector(self) -> u8 {
        self.0.to_le_bytes()[0]
    }

    fn halves(self) -> (u32, u32) {
        let [a, b, c, d, e, f, g, h] = self.0.to_le_bytes();
        (
            u32::from_le_bytes([a, b, c, d]),
            u32::from_le_bytes([e, f, g, h]),
        )
    }

    fn write_half(&mut self, high: bool, value: u32) {
        let shift = if high { 32 } else { 0 };
        let written = RTE_WRITABLE & u64::from(u32::MAX) << shift;
        self.0 = self.0 & !written | u64::from(value) << shift & written;
        // Linux and Xen get a stuck line going again by making it edge-triggered for a moment.
        if !self.is_level() {
            self.0 &= !RTE_REMOTE_IRR;
        }
    }

    /// The message of an input that knows no level.
    fn edge_message(self) -> MsiMessage {
        Self(self.0 & !RTE_LEVEL).message()
    }

    fn message(self) -> MsiMessage {
        let mut address = MSI_ADDRESS | self.0 >> RTE_DESTINATION_SHIFT << MSI_DESTINATION_SHIFT;
        if self.0 & RTE_LOGICAL != 0 {
            address |= MSI_LOGICAL;
        }
        if self.0 & RTE_DELIVERY_MODE == RTE_LOWEST_PRIORITY {
            address |= MSI_REDIRECTION_HINT;
        }
        let (low, _) = self.halves();
        let (mode, vector) = (low & 7 << 8, low & 0xff);
        let level = if self.is_level() { MSI_LEVEL } else { 0 };
        MsiMessage {
            address,
            data: MSI_ASSERT | level | mode | vector,
        }
    }
}

/// What the guest has made of it, and which inputs are asserted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoApicState {
    id: u32,
    selected: u8,
    redirections: Vec<u64>,
    lines: u64,
    edges: u64,
}

/// The controller.
pub struct IoApic {
    // Runtime glue.
    sink: Arc<dyn MsiSink>,

    // Volatile state.
    id: u32,
    selected: u8,
    redirections: Vec<Redirection>,
    /// Inputs that an eventfd asserts, without a call to this controller, one bit each.
    by_eventfd: u64,
    /// Asserted inputs, one bit each.
    lines: u64,
    /// Inputs with a rising edge that no message was sent for. One that comes while its input is
    /// masked is sent when it is unmasked if the line is still asserted then: the datasheet has it
    /// ignored, which loses the interrupt of a device that was quicker than its driver.
    edges: u64,
    /// What the sink was last told to route.
    routed: Vec<Option<MsiMessage>>,
}

impl IoApic {
    /// A controller with so many inputs after reset, all masked. Every input costs its guest some ten
    /// exits at boot, when Linux clears it.
    ///
    /// # Panics
    /// Unless `pins` is from 1 to [`MAX_PINS`]: a mistake in the layout.
    pub fn new(sink: Arc<dyn MsiSink>, pins: u32) -> Self {
        assert!((1..=MAX_PINS).contains(&pins), "an IOAPIC of {pins} inputs");
        Self {
            sink,
            id: 0,
            selected: 0,
            redirections: vec![Redirection::RESET; pins as usize],
            by_eventfd: 0,
            lines: 0,
            edges: 0,
            routed: vec![None; pins as usize],
        }
    }

    /// Input `pin` is asserted by an eventfd that the sink listens to: it is an edge, whatever the guest
    /// has programmed, and the sink is told of its message while it is not masked.
    pub fn assert_by_eventfd(&mut self, pin: u32) {
        self.by_eventfd |= 1 << pin;
    }

    /// See [`crate::state`].
    pub fn save(&self) -> IoApicState {
        IoApicState {
            id: self.id,
            selected: self.selected,
            redirections: self.redirections.iter().map(|entry| entry.0).collect(),
            lines: self.lines,
            edges: self.edges,
        }
    }

    /// See [`crate::state`]. Devices whose lines these are agree with their levels.
    pub fn restore(&mut self, state: &IoApicState) -> Result<(), BadState> {
        let pins = self.redirections.len();
        BadState::check_count("inputs", state.redirections.len(), pins)?;
        self.id = state.id & ID_WRITABLE;
        self.selected = state.selected;
        let exist = u64::MAX >> (u64::BITS - self.pins());
        self.lines = state.lines & exist;
        self.edges = state.edges & exist;
        for (pin, entry) in state.redirections.iter().enumerate() {
            self.redirections[pin] = Redirection(entry & (RTE_WRITABLE | RTE_REMOTE_IRR));
            self.update_route(pin);
        }
        (0..pins).for_each(|pin| self.service(pin));
        Ok(())
    }

    /// A local APIC has ended an interrupt with this vector, which may be a level-triggered input's.
    /// Each of those is sent again if its line is still asserted.
    pub fn eoi(&mut self, vector: u8) {
        for pin in 0..self.redirections.len() {
            let entry = &mut self.redirections[pin];
            if entry.remote_irr() && entry.vector() == vector {
                entry.0 &= !RTE_REMOTE_IRR;
                self.update_route(pin);
                self.service(pin);
            }
        }
    }

    fn set_line(&mut self, pin: usize, asserted: bool) {
        let bit = 1 << pin;
        if !asserted {
            self.lines &= !bit;
            self.edges &= !bit;
        } else if self.lines & bit == 0 {
            self.lines |= bit;
            self.edges |= bit;
            self.service(pin);
        }
    }

    /// Sends what is due for `pin`.
    fn service(&mut self, pin: usize) {
        let bit = 1 << pin;
        let entry = &mut self.redirections[pin];
        if entry.is_masked() {
            return;
        }
        let due = if entry.is_level() {
            self.lines & bit != 0 && !entry.remote_irr()
        } else {
            self.edges & bit != 0
        };
        if !due {
            return;
        }
        if entry.is_level() {
            entry.0 |= RTE_REMOTE_IRR;
        }
        self.edges &= !bit;
        self.sink.signal(self.redirections[pin].message());
    }

    /// Tells the sink whose end of interrupt to report for `pin`, if that has changed. An input that
    /// is masked while its interrupt is being handled, as Linux does to move it to another CPU, still
    /// needs that one's.
    fn update_route(&mut self, pin: usize) {
        let entry = self.redirections[pin];
        let by_eventfd = self.by_eventfd & 1 << pin != 0;
        let route = match (entry.is_level(), entry.is_masked()) {
            (_, false) if by_eventfd => Some(entry.edge_message()),
            (true, false) => Some(entry.message()),
            (true, true) if entry.remote_irr() => return,
            _ => None,
        };
        if self.routed[pin] != route {
            self.routed[pin] = route;
            #[expect(clippy::cast_possible_truncation, reason = "below MAX_PINS")]
            self.sink.route(pin as u32, route);
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "at most MAX_PINS")]
    fn pins(&self) -> u32 {
        self.redirections.len() as u32
    }

    fn read_register(&self) -> u32 {
        match self.selected {
            REG_ID | REG_ARBITRATION => self.id,
            REG_VERSION => VERSION | (self.pins() - 1) << 16,
            register => self.redirection_of(register).map_or(0, |(pin, high)| {
                let halves = self.redirections[pin].halves();
                if high { halves.1 } else { halves.0 }
            }),
        }
    }

    fn write_register(&mut self, value: u32) {
        if self.selected == REG_ID {
            self.id = value & ID_WRITABLE;
        } else if let Some((pin, high)) = self.redirection_of(self.selected) {
            self.redirections[pin].write_half(high, value);
            // The route comes first: the end of what is sent next has to be reported.
            self.update_route(pin);
            self.service(pin);
        }
    }

    /// The input that `register` belongs to, and whether it is the high half.
    fn redirection_of(&self, register: u8) -> Option<(usize, bool)> {
        let index = usize::from(register.checked_sub(REG_REDIRECTION)?);
        let pin = index / 2;
        (pin < self.redirections.len()).then_some((pin, index % 2 == 1))
    }
}

impl BusDevice for IoApic {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let value = match offset {
            IOREGSEL => self.selected.into(),
            IOWIN => self.read_register(),
            _ => 0,
        };
        put_register(data, value);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        // Registers are 32 bits wide, and written as a whole.
        let Ok(bytes) = <[u8; 4]>::try_from(data) else {
            return;
        };
        match offset {
            IOREGSEL => self.selected = bytes[0],
            IOWIN => self.write_register(u32::from_le_bytes(bytes)),
            EOI => self.eoi(bytes[0]),
            _ => {}
        }
    }
}

/// The wire to one input.
pub struct Pin {
    ioapic: Arc<Mutex<IoApic>>,
    pin: usize,
}

impl Pin {
    /// A wire to input `pin`. An input has one wire.
    ///
    /// # Panics
    /// If there is no such input: a mistake in the layout.
    pub fn new(ioapic: Arc<Mutex<IoApic>>, pin: u32) -> Self {
        assert!(pin < lock(&ioapic).pins(), "the IOAPIC has no input {pin}");
        Self {
            ioapic,
            pin: pin as usize,
        }
    }
}

impl InterruptLine for Pin {
    fn set(&self, asserted: bool) {
        lock(&self.ioapic).set_line(self.pin, asserted);
    }
}

#[cfg(test)]
#[path = "ioapic_test.rs"]
mod tests;
