//! The I/O APIC (Intel 82093AA datasheet): interrupt lines become messages to local APICs.
//!
//! It announces version 0x11, which has no EOI register: a guest then ends level-triggered interrupts
//! at the local APIC alone, and KVM reports that.

use std::sync::{Arc, Mutex};

use crate::bus::BusDevice;
use crate::interrupt::{InterruptLine, MsiMessage, MsiSink};
use crate::lock;

/// Inputs.
pub const PINS: u32 = 24;
const VERSION: u32 = 0x11;

/// Register windows, as offsets.
const IOREGSEL: u64 = 0x00;
const IOWIN: u64 = 0x10;

/// Indirect registers.
const REG_ID: u8 = 0x00;
const REG_VERSION: u8 = 0x01;
const REG_ARBITRATION: u8 = 0x02;
const REG_REDIRECTION: u8 = 0x10;

/// Redirection entry (datasheet section 3.2.4).
const RTE_VECTOR: u64 = 0xff;
const RTE_DELIVERY_MODE: u64 = 7 << 8;
const RTE_LOGICAL: u64 = 1 << 11;
const RTE_REMOTE_IRR: u64 = 1 << 14;
const RTE_LEVEL: u64 = 1 << 15;
const RTE_MASKED: u64 = 1 << 16;
const RTE_DESTINATION_SHIFT: u32 = 56;
/// What a guest can change; delivery status and remote IRR are the controller's.
const RTE_WRITABLE: u64 = 0xff << RTE_DESTINATION_SHIFT
    | RTE_MASKED
    | RTE_LEVEL
    | 1 << 13
    | RTE_LOGICAL
    | RTE_DELIVERY_MODE
    | RTE_VECTOR;
const DELIVERY_LOWEST_PRIORITY: u64 = 1 << 8;

/// Where local APICs take messages.
const MSI_BASE: u64 = 0xfee0_0000;
const MSI_REDIRECTION_HINT: u64 = 1 << 3;
const MSI_LOGICAL: u64 = 1 << 2;
const MSI_LEVEL: u32 = 1 << 15;
const MSI_ASSERT: u32 = 1 << 14;

/// The controller.
pub struct IoApic {
    // Runtime glue.
    sink: Arc<dyn MsiSink>,
    // Volatile state.
    id: u32,
    selected: u8,
    redirection: [u64; PINS as usize],
    /// Lines that are asserted, one bit a pin.
    lines: u32,
    /// Edges that came while their pin was masked: sent when it is unmasked, as KVM's own IOAPIC
    /// does and guests rely on.
    pending_edges: u32,
}

impl IoApic {
    /// A controller after reset: everything masked.
    pub fn new(sink: Arc<dyn MsiSink>) -> Self {
        Self {
            sink,
            id: 0,
            selected: 0,
            redirection: [RTE_MASKED; PINS as usize],
            lines: 0,
            pending_edges: 0,
        }
    }

    /// Changes a line.
    pub fn set_line(&mut self, pin: u32, asserted: bool) {
        if pin >= PINS {
            return;
        }
        let bit = 1 << pin;
        let was_asserted = self.lines & bit != 0;
        if asserted == was_asserted {
            return;
        }
        self.lines ^= bit;
        if !asserted {
            return;
        }
        if self.redirection[pin as usize] & RTE_LEVEL == 0 {
            self.pending_edges |= bit;
        }
        self.service(pin);
    }

    /// A local APIC ended the interrupt with this vector, which was level-triggered.
    pub fn eoi(&mut self, vector: u8) {
        for pin in 0..PINS {
            let entry = &mut self.redirection[pin as usize];
            let level = RTE_LEVEL | RTE_REMOTE_IRR;
            if *entry & RTE_VECTOR == u64::from(vector) && *entry & level == level {
                *entry &= !RTE_REMOTE_IRR;
                self.service(pin);
            }
        }
    }

    /// Sends what is due for a pin.
    fn service(&mut self, pin: u32) {
        let bit = 1 << pin;
        let entry = &mut self.redirection[pin as usize];
        if *entry & RTE_MASKED != 0 {
            return;
        }
        let due = if *entry & RTE_LEVEL == 0 {
            self.pending_edges & bit != 0
        } else {
            self.lines & bit != 0 && *entry & RTE_REMOTE_IRR == 0
        };
        if !due {
            return;
        }
        self.pending_edges &= !bit;
        if *entry & RTE_LEVEL != 0 {
            *entry |= RTE_REMOTE_IRR;
        }
        let message = message(*entry);
        self.sink.signal(message);
    }

    fn write_register(&mut self, value: u32) {
        match self.selected {
            REG_ID => self.id = value & 0x0f00_0000,
            register => {
                if let Some((pin, high)) = redirection_of(register) {
                    self.write_redirection(pin, high, value);
                }
            }
        }
    }

    fn write_redirection(&mut self, pin: u32, high: bool, value: u32) {
        let entry = &mut self.redirection[pin as usize];
        let before = *entry;
        let shift = if high { 32 } else { 0 };
        let half = 0xffff_ffff << shift;
        let writable = RTE_WRITABLE & half;
        *entry = before & !writable | u64::from(value) << shift & writable;
        if *entry & RTE_LEVEL == 0 {
            *entry &= !RTE_REMOTE_IRR;
        }
        let entry = *entry;
        let routed =
            |entry: u64| (entry & (RTE_LEVEL | RTE_MASKED) == RTE_LEVEL).then(|| message(entry));
        if routed(before) != routed(entry) {
            self.sink.route(pin, routed(entry));
        }
        self.service(pin);
    }

    fn read_register(&self) -> u32 {
        match self.selected {
            REG_ID | REG_ARBITRATION => self.id,
            REG_VERSION => VERSION | (PINS - 1) << 16,
            register => redirection_of(register).map_or(0, |(pin, high)| {
                let entry = self.redirection[pin as usize];
                #[expect(clippy::cast_possible_truncation, reason = "one half of it")]
                if high {
                    (entry >> 32) as u32
                } else {
                    entry as u32
                }
            }),
        }
    }
}

/// Pin and half that an indirect register belongs to.
fn redirection_of(register: u8) -> Option<(u32, bool)> {
    let index = u32::from(register.checked_sub(REG_REDIRECTION)?);
    (index / 2 < PINS).then_some((index / 2, index % 2 == 1))
}

/// The message that a redirection entry sends (Intel SDM volume 3, section 11.11).
fn message(entry: u64) -> MsiMessage {
    let destination = entry >> RTE_DESTINATION_SHIFT;
    let mut address = MSI_BASE | destination << 12;
    if entry & RTE_LOGICAL != 0 {
        address |= MSI_LOGICAL;
    }
    if entry & RTE_DELIVERY_MODE == DELIVERY_LOWEST_PRIORITY {
        address |= MSI_REDIRECTION_HINT;
    }
    #[expect(clippy::cast_possible_truncation, reason = "the low 11 bits")]
    let mut data = (entry & (RTE_VECTOR | RTE_DELIVERY_MODE)) as u32;
    if entry & RTE_LEVEL != 0 {
        data |= MSI_LEVEL | MSI_ASSERT;
    }
    MsiMessage { address, data }
}

impl BusDevice for IoApic {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let value = match offset {
            IOREGSEL => u32::from(self.selected),
            IOWIN => self.read_register(),
            _ => return,
        };
        for (to, from) in data.iter_mut().zip(value.to_le_bytes()) {
            *to = from;
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let Some(&first) = data.first() else {
            return;
        };
        match offset {
            IOREGSEL => self.selected = first,
            IOWIN => {
                // Registers are 32 bits wide and written as a whole.
                if let Ok(bytes) = data.try_into() {
                    self.write_register(u32::from_le_bytes(bytes));
                }
            }
            _ => {}
        }
    }
}

/// The wire to one pin.
pub struct Pin {
    ioapic: Arc<Mutex<IoApic>>,
    pin: u32,
}

impl Pin {
    /// A wire to `pin`, which is below [`PINS`].
    pub fn new(ioapic: Arc<Mutex<IoApic>>, pin: u32) -> Self {
        Self { ioapic, pin }
    }
}

impl InterruptLine for Pin {
    fn set(&self, asserted: bool) {
        lock(&self.ioapic).set_line(self.pin, asserted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Recorder {
        sent: Mutex<Vec<MsiMessage>>,
        routes: Mutex<Vec<(u32, Option<MsiMessage>)>>,
    }

    impl MsiSink for Recorder {
        fn signal(&self, message: MsiMessage) {
            self.sent.lock().unwrap().push(message);
        }
        fn route(&self, pin: u32, message: Option<MsiMessage>) {
            self.routes.lock().unwrap().push((pin, message));
        }
    }

    fn ioapic() -> (Arc<Recorder>, IoApic) {
        let recorder = Arc::new(Recorder::default());
        (recorder.clone(), IoApic::new(recorder))
    }

    fn program(ioapic: &mut IoApic, pin: u8, entry: u64) {
        for (half, value) in [(1, (entry >> 32) as u32), (0, entry as u32)] {
            ioapic.write(IOREGSEL, &[REG_REDIRECTION + pin * 2 + half]);
            ioapic.write(IOWIN, &value.to_le_bytes());
        }
    }

    fn sent(recorder: &Recorder) -> usize {
        recorder.sent.lock().unwrap().len()
    }

    #[test]
    fn an_edge_is_sent_once_and_kept_while_masked() {
        let (recorder, mut ioapic) = ioapic();
        program(&mut ioapic, 4, 3 << 56 | 0x31);
        ioapic.set_line(4, true);
        ioapic.set_line(4, true);
        assert_eq!(
            *recorder.sent.lock().unwrap(),
            [MsiMessage {
                address: 0xfee0_3000,
                data: 0x31
            }]
        );
        ioapic.set_line(4, false);
        program(&mut ioapic, 4, RTE_MASKED | 0x31);
        ioapic.set_line(4, true);
        assert_eq!(sent(&recorder), 1);
        program(&mut ioapic, 4, 0x31);
        assert_eq!(sent(&recorder), 2);
        assert!(recorder.routes.lock().unwrap().is_empty());
    }

    #[test]
    fn a_level_is_sent_again_after_its_end_while_it_lasts() {
        let (recorder, mut ioapic) = ioapic();
        program(&mut ioapic, 9, RTE_LEVEL | 0x40);
        ioapic.set_line(9, true);
        assert_eq!(sent(&recorder), 1);
        ioapic.eoi(0x41);
        assert_eq!(sent(&recorder), 1);
        ioapic.eoi(0x40);
        assert_eq!(sent(&recorder), 2);
        ioapic.set_line(9, false);
        ioapic.eoi(0x40);
        assert_eq!(sent(&recorder), 2);
        let routes = recorder.routes.lock().unwrap();
        let message = MsiMessage {
            address: 0xfee0_0000,
            data: 0xc040,
        };
        assert_eq!(*routes, [(9, Some(message))]);
    }

    #[test]
    fn registers_read_as_the_datasheet_says() {
        let (_, mut ioapic) = ioapic();
        let mut value = [0; 4];
        ioapic.write(IOREGSEL, &[REG_VERSION]);
        ioapic.read(IOWIN, &mut value);
        assert_eq!(u32::from_le_bytes(value), 0x0017_0011);
        ioapic.write(IOREGSEL, &[REG_REDIRECTION + 46]);
        ioapic.read(IOWIN, &mut value);
        assert_eq!(u32::from_le_bytes(value), 0x0001_0000);
        ioapic.write(IOREGSEL, &[REG_REDIRECTION + 48]);
        ioapic.read(IOWIN, &mut value);
        assert_eq!(u32::from_le_bytes(value), 0);
    }

    #[test]
    fn any_access_is_harmless() {
        let (_, mut ioapic) = ioapic();
        for offset in 0..0x50 {
            for length in [0, 1, 2, 3, 4, 8, 16] {
                ioapic.write(offset, &vec![0xff; length]);
                ioapic.read(offset, &mut vec![0; length]);
            }
        }
        for pin in 0..64 {
            ioapic.set_line(pin, true);
        }
    }
}
