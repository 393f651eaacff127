use super::*;
use crate::interrupt::test_support::{Call, MsiRecorder};

/// As many inputs as a PC has.
const PINS: u32 = 24;
const EDGE: u64 = 0x31;
const LEVEL: u64 = RTE_LEVEL | 0x40;
const EDGE_MESSAGE: MsiMessage = MsiMessage {
    address: 0xfee0_0000,
    data: 0x4031,
};
const LEVEL_MESSAGE: MsiMessage = MsiMessage {
    address: 0xfee0_0000,
    data: 0xc040,
};

struct Fixture {
    sink: Arc<MsiRecorder>,
    ioapic: Arc<Mutex<IoApic>>,
    pin: u8,
    line: Pin,
}

impl Fixture {
    fn new(pin: u8) -> Self {
        let sink = MsiRecorder::new();
        let ioapic = Arc::new(Mutex::new(IoApic::new(sink.clone(), PINS)));
        let line = Pin::new(ioapic.clone(), pin.into());
        Self {
            sink,
            ioapic,
            pin,
            line,
        }
    }

    fn write(&self, register: u8, value: u32) {
        let mut ioapic = lock(&self.ioapic);
        ioapic.write(IOREGSEL, &u32::from(register).to_le_bytes());
        ioapic.write(IOWIN, &value.to_le_bytes());
    }

    fn read(&self, register: u8) -> u32 {
        let mut data = [0; 4];
        let mut ioapic = lock(&self.ioapic);
        ioapic.write(IOREGSEL, &u32::from(register).to_le_bytes());
        ioapic.read(IOWIN, &mut data);
        u32::from_le_bytes(data)
    }

    /// Writes the entry as Linux does: the destination first.
    fn program(&self, entry: u64) {
        let (low, high) = Redirection(entry).halves();
        self.write(REG_REDIRECTION + self.pin * 2 + 1, high);
        self.write(REG_REDIRECTION + self.pin * 2, low);
    }

    fn remote_irr(&self) -> bool {
        u64::from(self.read(REG_REDIRECTION + self.pin * 2)) & RTE_REMOTE_IRR != 0
    }

    fn set(&self, asserted: bool) {
        self.line.set(asserted);
    }

    fn eoi(&self, vector: u8) {
        lock(&self.ioapic).eoi(vector);
    }

    #[track_caller]
    fn expect(&self, calls: &[Call]) {
        assert_eq!(self.sink.take(), calls);
    }
}

fn route(pin: u8, message: MsiMessage) -> Call {
    Call::Route(pin.into(), Some(message))
}

#[test]
fn a_rising_edge_sends_one_message() {
    let ioapic = Fixture::new(4);
    ioapic.program(EDGE);
    ioapic.set(false);
    ioapic.expect(&[]);
    ioapic.set(true);
    ioapic.set(true);
    ioapic.expect(&[Call::Signal(EDGE_MESSAGE)]);
    ioapic.set(false);
    ioapic.eoi(0x31);
    ioapic.expect(&[]);
    ioapic.set(true);
    ioapic.expect(&[Call::Signal(EDGE_MESSAGE)]);
    assert!(!ioapic.remote_irr());
}

#[test]
fn an_edge_on_a_masked_input_is_sent_on_unmask_while_the_line_stays_asserted() {
    let ioapic = Fixture::new(4);
    ioapic.set(true);
    ioapic.program(RTE_MASKED | EDGE);
    ioapic.expect(&[]);
    ioapic.program(EDGE);
    ioapic.expect(&[Call::Signal(EDGE_MESSAGE)]);
    ioapic.program(RTE_MASKED | EDGE);
    ioapic.program(EDGE);
    ioapic.expect(&[]);

    ioapic.program(RTE_MASKED | EDGE);
    ioapic.set(false);
    ioapic.set(true);
    ioapic.set(false);
    ioapic.program(EDGE);
    ioapic.expect(&[]);
}

#[test]
fn a_level_is_sent_again_at_its_end_as_long_as_it_lasts() {
    let ioapic = Fixture::new(9);
    ioapic.program(LEVEL);
    ioapic.expect(&[route(9, LEVEL_MESSAGE)]);
    ioapic.set(true);
    ioapic.expect(&[Call::Signal(LEVEL_MESSAGE)]);
    assert!(ioapic.remote_irr());
    ioapic.set(false);
    ioapic.set(true);
    ioapic.eoi(0x41);
    ioapic.expect(&[]);
    ioapic.eoi(0x40);
    ioapic.expect(&[Call::Signal(LEVEL_MESSAGE)]);
    ioapic.set(false);
    ioapic.eoi(0x40);
    assert!(!ioapic.remote_irr());
    ioapic.expect(&[]);
}

#[test]
fn the_eoi_register_ends_an_interrupt_too() {
    let ioapic = Fixture::new(9);
    ioapic.program(LEVEL);
    ioapic.set(true);
    ioapic.sink.take();
    lock(&ioapic.ioapic).write(EOI, &0x40u32.to_le_bytes());
    ioapic.expect(&[Call::Signal(LEVEL_MESSAGE)]);
}

#[test]
fn an_asserted_level_is_sent_on_unmask() {
    let ioapic = Fixture::new(9);
    ioapic.program(RTE_MASKED | LEVEL);
    ioapic.set(true);
    ioapic.expect(&[]);
    ioapic.program(LEVEL);
    ioapic.expect(&[route(9, LEVEL_MESSAGE), Call::Signal(LEVEL_MESSAGE)]);
}

#[test]
fn only_level_triggered_inputs_are_routed() {
    let ioapic = Fixture::new(9);
    ioapic.program(EDGE);
    ioapic.program(RTE_MASKED | EDGE);
    ioapic.program(EDGE);
    ioapic.program(RTE_MASKED | LEVEL);
    ioapic.expect(&[]);
    ioapic.program(LEVEL);
    ioapic.program(LEVEL);
    ioapic.expect(&[route(9, LEVEL_MESSAGE)]);
    ioapic.program(RTE_MASKED | LEVEL);
    ioapic.expect(&[Call::Route(9, None)]);
    ioapic.program(LEVEL);
    ioapic.program(EDGE);
    ioapic.expect(&[route(9, LEVEL_MESSAGE), Call::Route(9, None)]);
    // Levels that no local APIC ends.
    for mode in [2, 4, 5, 7] {
        ioapic.program(RTE_LEVEL | mode << 8 | 0x40);
    }
    ioapic.expect(&[]);
}

#[test]
fn an_input_masked_while_its_interrupt_is_handled_keeps_its_route_until_the_end() {
    let ioapic = Fixture::new(9);
    ioapic.program(LEVEL);
    ioapic.set(true);
    ioapic.sink.take();
    ioapic.program(RTE_MASKED | LEVEL);
    ioapic.expect(&[]);
    ioapic.set(false);
    ioapic.eoi(0x40);
    ioapic.expect(&[Call::Route(9, None)]);
    assert!(!ioapic.remote_irr());
}

#[test]
fn a_moment_as_an_edge_frees_a_stuck_level() {
    let ioapic = Fixture::new(9);
    ioapic.program(LEVEL);
    ioapic.set(true);
    ioapic.sink.take();
    ioapic.program(RTE_MASKED | EDGE);
    assert!(!ioapic.remote_irr());
    ioapic.program(LEVEL);
    ioapic.expect(&[
        Call::Route(9, None),
        route(9, LEVEL_MESSAGE),
        Call::Signal(LEVEL_MESSAGE),
    ]);
}

#[test]
fn the_message_carries_destination_and_modes() {
    let message = |entry| Redirection(entry).message();
    assert_eq!(message(0xab << 56 | EDGE).address, 0xfeea_b000);
    assert_eq!(message(RTE_LOGICAL | EDGE).address, 0xfee0_0004);
    assert_eq!(message(RTE_LOWEST_PRIORITY | EDGE).address, 0xfee0_0008);
    assert_eq!(message(RTE_LOWEST_PRIORITY | EDGE).data, 0x4131);
    assert_eq!(message(4 << 8 | RTE_LEVEL).data, 0x4400);
    assert_eq!(message(RTE_ACTIVE_LOW | LEVEL), LEVEL_MESSAGE);
}

#[test]
fn registers_read_as_the_datasheet_says() {
    let ioapic = Fixture::new(0);
    assert_eq!(ioapic.read(REG_VERSION), 0x0017_0020);
    ioapic.write(REG_VERSION, u32::MAX);
    assert_eq!(ioapic.read(REG_VERSION), 0x0017_0020);
    ioapic.write(REG_ID, u32::MAX);
    assert_eq!(ioapic.read(REG_ID), 0x0f00_0000);
    assert_eq!(ioapic.read(REG_ARBITRATION), 0x0f00_0000);
    for register in REG_REDIRECTION..REG_REDIRECTION + 48 {
        let expected = if register % 2 == 0 { 0x0001_0000 } else { 0 };
        assert_eq!(ioapic.read(register), expected);
        ioapic.write(register, u32::MAX);
        let expected = if register % 2 == 0 {
            0x0001_afff
        } else {
            0xff00_0000
        };
        assert_eq!(ioapic.read(register), expected);
    }
    assert_eq!(ioapic.read(REG_REDIRECTION + 48), 0);
    assert_eq!(ioapic.read(0xff), 0);
}

#[test]
fn other_sizes_read_and_write_nothing_they_should_not() {
    let ioapic = Fixture::new(0);
    let mut ioapic = lock(&ioapic.ioapic);
    ioapic.write(IOREGSEL, &[REG_VERSION, 0, 0, 0]);
    ioapic.write(IOREGSEL, &[REG_ID]);
    ioapic.write(IOREGSEL, &[REG_ID; 8]);
    let mut data = [0xaa; 8];
    ioapic.read(IOWIN, &mut data);
    assert_eq!(data, [0x20, 0, 0x17, 0, 0, 0, 0, 0]);
    ioapic.read(IOWIN, &mut data[..2]);
    assert_eq!(data[..2], [0x20, 0]);
    ioapic.read(IOWIN + 1, &mut data);
    assert_eq!(data, [0; 8]);
}

#[test]
#[should_panic(expected = "no input 24")]
fn a_wire_to_no_input_is_our_mistake() {
    let _ = Pin::new(Fixture::new(0).ioapic, PINS);
}

#[test]
fn an_input_that_an_eventfd_asserts_has_its_message_as_long_as_it_is_not_masked() {
    let ioapic = Fixture::new(20);
    lock(&ioapic.ioapic).assert_by_eventfd(20);
    ioapic.program(EDGE);
    ioapic.expect(&[route(20, EDGE_MESSAGE)]);
    // Moved to another CPU.
    ioapic.program(EDGE | 2 << RTE_DESTINATION_SHIFT);
    let moved = MsiMessage {
        address: 0xfee0_2000,
        ..EDGE_MESSAGE
    };
    // The high half is written first: the entry is not masked in between.
    ioapic.expect(&[route(20, moved)]);
    ioapic.program(RTE_MASKED | EDGE);
    ioapic.expect(&[route(20, EDGE_MESSAGE), Call::Route(20, None)]);
}

#[test]
fn a_level_that_an_eventfd_asserts_is_an_edge() {
    let ioapic = Fixture::new(20);
    lock(&ioapic.ioapic).assert_by_eventfd(20);
    ioapic.program(LEVEL);
    let edge = MsiMessage {
        data: 0x4040,
        ..LEVEL_MESSAGE
    };
    ioapic.expect(&[route(20, edge)]);
    ioapic.eoi(0x40);
    ioapic.expect(&[]);
}

#[test]
fn another_controller_goes_on_where_this_one_stopped() {
    let first = Fixture::new(4);
    first.program(LEVEL);
    first.line.set(true);
    assert!(first.remote_irr());
    let state = lock(&first.ioapic).save();
    let second = Fixture::new(4);
    lock(&second.ioapic).restore(&state).unwrap();
    assert_eq!(lock(&second.ioapic).save(), state);
    // Its end of interrupt is reported, and while the line is up it is sent again.
    let calls = second.sink.take();
    assert!(
        calls.contains(&Call::Route(4, Some(LEVEL_MESSAGE))),
        "{calls:?}"
    );
    assert!(!calls.contains(&Call::Signal(LEVEL_MESSAGE)), "{calls:?}");
    lock(&second.ioapic).eoi(0x40);
    assert!(second.sink.take().contains(&Call::Signal(LEVEL_MESSAGE)));
}

#[test]
fn an_edge_that_was_not_sent_is_sent() {
    let first = Fixture::new(4);
    first.line.set(true);
    let mut state = lock(&first.ioapic).save();
    state.redirections[4] = EDGE;
    let second = Fixture::new(4);
    lock(&second.ioapic).restore(&state).unwrap();
    assert!(second.sink.take().contains(&Call::Signal(EDGE_MESSAGE)));
}

#[test]
fn states_of_other_controllers_are_refused_or_cut_to_size() {
    let mut state = lock(&Fixture::new(0).ioapic).save();
    state.lines = u64::MAX;
    state.edges = u64::MAX;
    state.id = u32::MAX;
    state.redirections.fill(u64::MAX);
    let other = Fixture::new(0);
    lock(&other.ioapic).restore(&state).unwrap();
    let taken = lock(&other.ioapic).save();
    assert_eq!(taken.lines, (1 << PINS) - 1);
    assert_eq!(taken.id, ID_WRITABLE);
    assert!(
        taken
            .redirections
            .iter()
            .all(|entry| entry & !(RTE_WRITABLE | RTE_REMOTE_IRR) == 0)
    );
    state.redirections.pop();
    assert!(lock(&other.ioapic).restore(&state).is_err());
}
