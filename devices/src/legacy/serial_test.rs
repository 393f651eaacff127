use vmm_sys_util::eventfd::EFD_NONBLOCK;

use super::*;
use crate::interrupt::test_support::Line;

struct Fixture {
    line: Arc<Line>,
    wake: EventFd,
    serial: Serial,
}

impl Fixture {
    fn new() -> Self {
        let line = Line::new();
        let wake = EventFd::new(EFD_NONBLOCK).unwrap();
        let serial = Serial::new(line.clone(), wake.try_clone().unwrap());
        Self { line, wake, serial }
    }

    /// As a driver opens it: FIFO on, listening.
    fn opened() -> Self {
        let mut port = Self::new();
        port.write(IIR_FCR, FCR_ENABLE | 2 << FCR_TRIGGER_SHIFT);
        port.write(MCR, MCR_DTR | MCR_RTS | MCR_OUT2);
        port.write(IER, IER_RDI | IER_RLSI);
        port
    }

    fn read(&mut self, register: u64) -> u8 {
        let mut data = [0xaa];
        self.serial.read(register, &mut data);
        data[0]
    }

    fn write(&mut self, register: u64, value: u8) {
        self.serial.write(register, &[value]);
    }

    /// How often the worker was woken since the last call.
    fn wakes(&self) -> u64 {
        self.wake.read().unwrap_or(0)
    }

    fn take_output(&mut self) -> Vec<u8> {
        let (front, back) = self.serial.output();
        let output = [front, back].concat();
        self.serial.consume_output(output.len());
        output
    }
}

#[test]
fn linux_autoconfig_finds_a_16550a() {
    let mut port = Fixture::new();
    // The interrupt enable register has four bits, and no other register of the chip's descendants
    // answers in its place (autoconfig(), autoconfig_16550a()).
    port.write(IER, 0);
    assert_eq!(port.read(IER) & 0x0f, 0);
    port.write(IER, 0xff);
    assert_eq!(port.read(IER), 0x0f);
    port.write(IER, 0);
    port.write(MCR, MCR_LOOP | MCR_OUT2 | MCR_RTS);
    assert_eq!(port.read(MSR) & 0xf0, MSR_DCD | MSR_CTS);
    port.write(MCR, 0);
    port.write(LCR, 0xbf);
    port.write(IIR_FCR, 0);
    port.write(LCR, 0);
    port.write(IIR_FCR, FCR_ENABLE);
    assert_eq!(port.read(IIR_FCR) >> 6, 3);
    for lcr in [0x80, 0xbf] {
        port.write(LCR, lcr);
        assert_ne!(port.read(IIR_FCR), 0, "not a 16650");
    }
    port.write(LCR, 0);
    port.write(IIR_FCR, FCR_ENABLE | 0x20);
    assert_eq!(port.read(IIR_FCR) >> 5, 6, "not a 16750");
    assert_eq!(port.take_output(), b"");
}

#[test]
fn linux_startup_finds_no_bugs() {
    let mut port = Fixture::opened();
    assert_eq!(port.read(LSR), LSR_THRE | LSR_TEMT);
    // UART_BUG_THRE: the interrupt has to come again when it is enabled again.
    for _ in 0..2 {
        port.write(IER, IER_THRI);
        assert_eq!(port.read(IIR_FCR), IIR_TRANSMITTER_EMPTY | IIR_FIFO_ENABLED);
        assert_eq!(port.read(IIR_FCR), IIR_NONE | IIR_FIFO_ENABLED);
        port.write(IER, 0);
    }
    // UART_BUG_TXEN: an empty transmitter that does not interrupt.
    port.write(IER, IER_THRI);
    assert_ne!(port.read(LSR) & LSR_TEMT, 0);
    assert_eq!(port.read(IIR_FCR) & IIR_NONE, 0);
}

#[test]
fn plain_registers_read_back() {
    let mut port = Fixture::new();
    port.write(LCR, 0x1b | LCR_DLAB);
    assert_eq!((port.read(RBR_THR), port.read(IER)), (12, 0), "9600 baud");
    port.write(RBR_THR, 0x34);
    port.write(IER, 0x12);
    assert_eq!((port.read(RBR_THR), port.read(IER)), (0x34, 0x12));
    port.write(LCR, 0x1b);
    assert_eq!((port.read(LCR), port.read(IER)), (0x1b, 0));
    port.write(SCR, 0xa5);
    assert_eq!(port.read(SCR), 0xa5);
    port.write(MCR, 0xef);
    assert_eq!(port.read(MCR), 0x0f);
    port.write(LSR, 0xff);
    port.write(MSR, 0xff);
    assert_eq!(port.read(LSR), LSR_THRE | LSR_TEMT);
    assert_eq!(port.read(MSR), MSR_CTS | MSR_DSR | MSR_DCD);
    assert_eq!(port.read(8), 0);
    assert_eq!(port.take_output(), b"");
}

#[test]
fn the_transmitter_interrupts_each_time_it_becomes_empty() {
    let mut port = Fixture::new();
    port.write(IER, IER_THRI);
    assert_eq!(port.line.take_edges(), 1);
    port.write(IER, IER_THRI);
    assert_eq!(port.line.take_edges(), 0);
    assert_eq!(port.read(IIR_FCR), IIR_TRANSMITTER_EMPTY);
    assert!(!port.line.is_asserted());
    for byte in b"16 bytes, 1 edge" {
        port.write(RBR_THR, *byte);
    }
    assert_eq!(port.line.take_edges(), 1);
    port.write(IER, 0);
    assert!(!port.line.is_asserted());
    assert_eq!(port.take_output(), b"16 bytes, 1 edge");
}

#[test]
fn a_full_output_buffer_holds_the_guest_back() {
    let mut port = Fixture::new();
    port.write(IER, IER_THRI);
    let mut sent = 0;
    while port.read(LSR) & LSR_THRE != 0 {
        assert_eq!(port.read(IIR_FCR), IIR_TRANSMITTER_EMPTY);
        for _ in 0..16 {
            port.write(RBR_THR, b'x');
        }
        sent += 16;
    }
    assert_eq!(sent, OUTPUT_HIGH_WATER);
    assert_eq!(port.read(LSR), 0);
    assert_eq!(port.read(IIR_FCR), IIR_NONE);
    port.write(IER, 0);
    port.write(IER, IER_THRI);
    assert!(
        !port.line.is_asserted(),
        "enabling it does not make it empty"
    );

    port.line.take_edges();
    port.serial.consume_output(1);
    assert_eq!(port.line.take_edges(), 1);
    assert_eq!(port.read(LSR), LSR_THRE | LSR_TEMT);
    port.serial.consume_output(1);
    assert_eq!(port.read(IIR_FCR), IIR_TRANSMITTER_EMPTY);
    port.serial.consume_output(1);
    assert_eq!(port.line.take_edges(), 0, "it was not full any more");
    assert_eq!(port.serial.counters().missed_writes, 0);
}

#[test]
fn a_guest_that_ignores_the_flags_loses_the_newest() {
    let mut port = Fixture::new();
    for index in 0..OUTPUT_MAX + 100 {
        port.write(RBR_THR, if index < OUTPUT_MAX { b'a' } else { b'b' });
    }
    assert_eq!(port.serial.counters().missed_writes, 100);
    assert_eq!(port.take_output(), vec![b'a'; OUTPUT_MAX]);
    port.write(RBR_THR, b'c');
    assert_eq!(port.take_output(), b"c");
}

#[test]
fn a_burst_wakes_the_worker_once() {
    let mut port = Fixture::new();
    for _ in 0..100 {
        port.write(RBR_THR, b'x');
    }
    assert_eq!(port.wakes(), 1);
    assert!(!port.serial.rest(), "there is output");
    port.take_output();
    port.write(RBR_THR, b'x');
    assert_eq!(port.wakes(), 0, "the worker looks by itself until it rests");
    port.take_output();
    assert!(port.serial.rest());
    port.write(RBR_THR, b'x');
    assert_eq!(port.wakes(), 1);
}

#[test]
fn input_waits_until_the_guest_listens() {
    let mut port = Fixture::new();
    assert_eq!(port.serial.receive(b"early"), 0);
    port.write(IIR_FCR, FCR_ENABLE | FCR_CLEAR_RECEIVER);
    port.write(MCR, MCR_DTR | MCR_RTS);
    assert_eq!(port.wakes(), 0);
    port.write(IER, IER_RDI);
    assert_eq!(port.wakes(), 1);
    assert_eq!(port.serial.receive(b"early"), 5);
    port.write(IER, 0);
    assert_eq!(port.serial.input_room(), 0);
    assert_eq!(
        port.read(LSR) & LSR_DATA_READY,
        LSR_DATA_READY,
        "what is there stays"
    );
    port.write(IER, IER_RDI);
    let got: Vec<u8> = (0..5).map(|_| port.read(RBR_THR)).collect();
    assert_eq!(got, b"early");
    assert_eq!(port.read(RBR_THR), 0);
}

#[test]
fn rts_holds_input_back_once_it_was_used() {
    let mut port = Fixture::new();
    port.write(IER, IER_RDI);
    assert_eq!(
        port.serial.input_room(),
        1,
        "a guest that never heard of RTS"
    );
    port.write(MCR, MCR_RTS);
    assert_eq!(port.serial.input_room(), 1);
    port.write(MCR, 0);
    assert_eq!(port.serial.receive(b"x"), 0);
    port.write(MCR, MCR_RTS);
    assert_eq!(port.wakes(), 1);
    assert_eq!(port.serial.receive(b"x"), 1);
}

#[test]
fn the_receiver_interrupts_by_its_trigger_level() {
    let mut port = Fixture::opened();
    assert_eq!(port.serial.receive(&[1; 7]), 7);
    assert_eq!(port.line.take_edges(), 1);
    assert_eq!(port.read(IIR_FCR) & 0x0f, IIR_RECEIVE_TIMEOUT);
    assert_eq!(port.serial.receive(&[1; 1]), 1);
    assert_eq!(port.read(IIR_FCR) & 0x0f, IIR_RECEIVED);
    assert_eq!(port.serial.receive(&[1; 20]), 8);
    assert_eq!(port.serial.input_room(), 0);
    for _ in 0..16 {
        assert!(port.line.is_asserted());
        port.read(RBR_THR);
    }
    assert!(!port.line.is_asserted());
    assert_eq!(port.read(IIR_FCR) & 0x0f, IIR_NONE);
    assert_eq!(port.wakes(), 1, "there was more input");
    assert_eq!(port.line.take_edges(), 0);
}

#[test]
fn without_fifo_there_is_room_for_one_byte() {
    let mut port = Fixture::new();
    port.write(IER, IER_RDI);
    assert_eq!(port.serial.receive(b"ab"), 1);
    assert_eq!(port.read(IIR_FCR), IIR_RECEIVED);
    assert_eq!(port.read(RBR_THR), b'a');
    assert_eq!(port.wakes(), 1);
    assert_eq!(port.serial.receive(b"b"), 1);
    assert_eq!(port.read(RBR_THR), b'b');
    assert_eq!(port.serial.input_room(), 1);
}

#[test]
fn a_probe_that_clears_the_receiver_loses_nothing() {
    let mut port = Fixture::new();
    port.write(IER, IER_WRITABLE);
    assert_eq!(port.serial.receive(b"a"), 1);
    port.write(IER, 0);
    port.write(IIR_FCR, FCR_ENABLE);
    port.write(IIR_FCR, FCR_ENABLE | FCR_CLEAR_RECEIVER);
    port.write(IIR_FCR, 0);
    assert_eq!(port.read(LSR) & LSR_DATA_READY, 0);
    assert_eq!(port.read(RBR_THR), 0);

    port.write(IER, IER_RDI);
    port.write(IIR_FCR, FCR_ENABLE);
    assert_eq!(port.serial.receive(b"bc"), 2);
    port.write(IIR_FCR, FCR_ENABLE | FCR_CLEAR_RECEIVER);
    port.serial.receive(b"d");
    for byte in b"abcd" {
        assert_eq!(port.read(RBR_THR), *byte);
    }
    assert_eq!(port.read(LSR) & LSR_DATA_READY, 0);
}

#[test]
fn a_change_of_fifo_mode_loses_nothing() {
    let mut port = Fixture::new();
    port.write(IER, IER_RDI);
    port.serial.receive(b"a");
    port.write(IIR_FCR, FCR_ENABLE);
    assert_eq!(port.serial.receive(b"bc"), 2);
    port.write(IIR_FCR, 0);
    assert_eq!(port.serial.input_room(), 0);
    for byte in b"abc" {
        assert!(port.line.is_asserted());
        assert_eq!(port.read(RBR_THR), *byte);
    }
    assert!(!port.line.is_asserted());
}

#[test]
fn interrupts_come_by_urgency() {
    let mut port = Fixture::opened();
    port.write(MCR, MCR_LOOP);
    port.write(IER, IER_WRITABLE);
    for byte in 0..17 {
        port.write(RBR_THR, byte);
    }
    assert_eq!(port.read(IIR_FCR) & 0x0f, IIR_LINE_STATUS);
    assert_eq!(
        port.read(LSR) & (LSR_OVERRUN | LSR_DATA_READY),
        LSR_OVERRUN | LSR_DATA_READY
    );
    assert_eq!(port.read(LSR) & LSR_OVERRUN, 0);
    assert_eq!(port.read(IIR_FCR) & 0x0f, IIR_RECEIVED);
    let got: Vec<u8> = (0..16).map(|_| port.read(RBR_THR)).collect();
    assert_eq!(got, Vec::from_iter(0..16));
    assert_eq!(port.read(IIR_FCR) & 0x0f, IIR_TRANSMITTER_EMPTY);
    assert_eq!(port.read(IIR_FCR) & 0x0f, IIR_MODEM_STATUS);
    port.read(MSR);
    assert_eq!(port.read(IIR_FCR) & 0x0f, IIR_NONE);
    assert!(!port.line.is_asserted());
}

#[test]
fn loopback_leads_back_and_nowhere_else() {
    let mut port = Fixture::opened();
    assert_eq!(port.read(MSR), MSR_CTS | MSR_DSR | MSR_DCD);
    port.write(MCR, MCR_LOOP | MCR_OUT1 | MCR_RTS);
    assert_eq!(
        port.read(MSR),
        MSR_RI | MSR_CTS | (MSR_DSR | MSR_DCD) >> MSR_DELTA_SHIFT
    );
    port.write(MCR, MCR_LOOP | MCR_RTS);
    assert_eq!(port.read(MSR), MSR_CTS | MSR_RI >> MSR_DELTA_SHIFT);
    assert_eq!(port.serial.receive(b"host"), 0);
    port.write(RBR_THR, b'x');
    assert_eq!(port.read(RBR_THR), b'x');
    assert_eq!(port.take_output(), b"");
    port.write(MCR, MCR_DTR | MCR_RTS | MCR_OUT2);
    assert_eq!(port.wakes(), 1, "the host's turn again");
}

#[test]
fn a_wide_access_is_one_to_each_register() {
    let mut port = Fixture::new();
    port.serial
        .write(RBR_THR, &[b'x', IER_RDI, FCR_ENABLE, 0x03]);
    assert_eq!(port.take_output(), b"x");
    let mut data = [0xaa; 9];
    port.serial.read(IER, &mut data);
    assert_eq!(data, [IER_RDI, 0xc1, 0x03, 0, 0x60, 0xb0, 0, 0, 0]);
}

#[test]
fn another_port_goes_on_where_this_one_stopped() {
    let mut port = Fixture::opened();
    port.write(SCR, 0x5a);
    assert_eq!(port.serial.receive(b"typed"), 5);
    port.write(RBR_THR, b'x');
    let state = port.serial.save();
    let mut other = Fixture::new();
    other.serial.restore(&state).unwrap();
    assert_eq!(other.serial.save(), state);
    assert_eq!(other.read(SCR), 0x5a);
    let typed: Vec<u8> = (0..5).map(|_| other.read(RBR_THR)).collect();
    assert_eq!(typed, b"typed");
    // What was sent was sent by the first one.
    assert_eq!(other.take_output(), b"");
    assert_eq!(port.take_output(), b"x");
}

#[test]
fn a_driver_that_waited_for_the_transmitter_is_told() {
    let mut port = Fixture::opened();
    port.write(IER, IER_THRI);
    for _ in 0..OUTPUT_MAX {
        port.write(RBR_THR, b'x');
    }
    assert_eq!(port.read(LSR) & LSR_THRE, 0);
    let state = port.serial.save();
    let mut other = Fixture::new();
    other.serial.restore(&state).unwrap();
    assert_eq!(other.read(IIR_FCR) & 0xf, IIR_TRANSMITTER_EMPTY);
}

#[test]
fn states_that_no_port_has_are_refused() {
    let mut port = Fixture::opened();
    port.serial.receive(b"0123456789");
    let good = serde_json::to_value(port.serial.save()).unwrap();
    for (field, value) in [
        ("received", serde_json::json!(vec![0; FIFO_SIZE + 1])),
        ("returned", serde_json::json!(vec![0; FIFO_SIZE + 1])),
        ("trigger", serde_json::json!(usize::MAX)),
    ] {
        let mut bad = good.clone();
        bad[field] = value;
        let bad: SerialState = serde_json::from_value(bad).unwrap();
        assert!(Fixture::new().serial.restore(&bad).is_err(), "{field}");
    }
}
