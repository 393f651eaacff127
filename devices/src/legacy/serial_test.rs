//! The UART as a driver sees it.

use std::sync::Mutex;

use vmm_sys_util::eventfd::EFD_NONBLOCK;

use super::*;

/// A line that counts its rising edges.
#[derive(Default)]
pub(crate) struct Line(Mutex<(bool, u32)>);

impl InterruptLine for Line {
    fn set(&self, asserted: bool) {
        let mut state = self.0.lock().unwrap();
        state.1 += u32::from(asserted && !state.0);
        state.0 = asserted;
    }
}

impl Line {
    fn is_high(&self) -> bool {
        self.0.lock().unwrap().0
    }

    fn edges(&self) -> u32 {
        self.0.lock().unwrap().1
    }
}

fn uart() -> (Arc<Line>, EventFd, Serial) {
    let line = Arc::new(Line::default());
    let ready = EventFd::new(EFD_NONBLOCK).unwrap();
    let serial = Serial::new(line.clone(), ready.try_clone().unwrap());
    (line, ready, serial)
}

fn read(serial: &mut Serial, register: u64) -> u8 {
    let mut data = [0];
    serial.read(register, &mut data);
    data[0]
}

/// What Linux's driver does when a process opens the port.
fn open(serial: &mut Serial) {
    serial.write(IIR_FCR, &[FCR_ENABLE | FCR_CLEAR_RECEIVER]);
    serial.write(MCR, &[MCR_DTR | MCR_RTS | MCR_OUT2]);
    serial.write(IER, &[IER_RECEIVED]);
}

#[test]
fn input_waits_until_the_port_is_open_and_rts_is_raised() {
    let (line, _, mut serial) = uart();
    assert_eq!(serial.receive(b"early"), 5);
    assert_eq!(read(&mut serial, LSR) & LSR_DATA_READY, 0);
    assert!(!line.is_high());
    open(&mut serial);
    assert!(line.is_high());
    let mut got = Vec::new();
    while read(&mut serial, LSR) & LSR_DATA_READY != 0 {
        assert_eq!(read(&mut serial, IIR_FCR), IIR_RECEIVED | IIR_FIFO_ENABLED);
        got.push(read(&mut serial, DATA));
    }
    assert_eq!(got, b"early");
    assert!(!line.is_high());
    serial.write(MCR, &[MCR_DTR | MCR_OUT2]);
    serial.receive(b"x");
    assert_eq!(read(&mut serial, LSR) & LSR_DATA_READY, 0);
    serial.write(MCR, &[MCR_DTR | MCR_RTS | MCR_OUT2]);
    assert_eq!(read(&mut serial, DATA), b'x');
}

#[test]
fn a_paste_is_taken_in_pieces_and_the_worker_is_woken_for_more() {
    let (_, ready, mut serial) = uart();
    open(&mut serial);
    let paste: Vec<u8> = (0..20_000u32).map(|byte| byte as u8).collect();
    let (mut sent, mut got, mut wakes) = (0, Vec::new(), 0);
    sent += serial.receive(&paste);
    while got.len() < paste.len() {
        assert_ne!(read(&mut serial, LSR) & LSR_DATA_READY, 0);
        got.push(read(&mut serial, DATA));
        if ready.read().is_ok() {
            wakes += 1;
            sent += serial.receive(&paste[sent..]);
        }
    }
    assert_eq!(got, paste);
    assert!((4..=20).contains(&wakes), "{wakes} wake-ups");
}

#[test]
fn the_transmitter_interrupt_comes_once_for_each_time_it_becomes_empty() {
    let (line, _, mut serial) = uart();
    serial.write(IER, &[IER_TRANSMITTER_EMPTY]);
    assert_eq!(line.edges(), 1);
    assert_eq!(read(&mut serial, IIR_FCR), IIR_TRANSMITTER_EMPTY);
    assert_eq!(read(&mut serial, IIR_FCR), IIR_NONE);
    assert!(!line.is_high());
    for byte in b"sixteen bytes ok" {
        serial.write(DATA, &[*byte]);
    }
    assert_eq!(line.edges(), 2, "one edge for a burst");
    serial.write(IER, &[0]);
    assert!(!line.is_high());
}

#[test]
fn output_is_bounded_and_a_driver_that_looks_loses_nothing() {
    let (line, ready, mut serial) = uart();
    serial.write(IER, &[IER_TRANSMITTER_EMPTY]);
    let (mut sent, mut got) = (0u32, Vec::new());
    while sent < 200_000 {
        if read(&mut serial, LSR) & LSR_THR_EMPTY == 0 {
            read(&mut serial, IIR_FCR);
            assert!(!line.is_high(), "no interrupt while it is full");
            assert_eq!(ready.read().ok(), Some(1), "one wake-up for a burst");
            serial.take_output(&mut got);
            assert!(line.is_high(), "an interrupt when there is room again");
        }
        serial.write(DATA, &[sent as u8]);
        sent += 1;
    }
    serial.take_output(&mut got);
    assert_eq!(got.len(), 200_000);
    assert!(
        got.iter()
            .enumerate()
            .all(|(index, byte)| *byte == index as u8)
    );
    assert_eq!(serial.overrun(), 0);
    for _ in 0..OUTPUT_MAX + 5 {
        serial.write(DATA, b"x");
    }
    assert_eq!(serial.overrun(), 5);
}

#[test]
fn loopback_is_what_a_probing_driver_expects() {
    let (_, _, mut serial) = uart();
    serial.write(IIR_FCR, &[FCR_ENABLE]);
    serial.write(MCR, &[MCR_LOOP | MCR_OUT2 | MCR_RTS]);
    assert_eq!(read(&mut serial, MSR) & 0xf0, MSR_DCD | MSR_CTS);
    serial.write(DATA, &[0x5a]);
    assert_eq!(read(&mut serial, DATA), 0x5a);
    let mut output = Vec::new();
    serial.take_output(&mut output);
    assert!(output.is_empty());
    serial.write(SCR, &[0xa5]);
    assert_eq!(read(&mut serial, SCR), 0xa5);
    serial.write(LCR, &[LCR_DIVISOR_LATCH | 3]);
    serial.write(DATA, &[1]);
    serial.write(IER, &[2]);
    assert_eq!((read(&mut serial, DATA), read(&mut serial, IER)), (1, 2));
}

#[test]
fn any_access_is_harmless_and_memory_is_bounded() {
    let (_, _, mut serial) = uart();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for _ in 0..200_000 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let (offset, length) = (state % 8, (state >> 8) as usize % 5);
        let value = (state >> 16) as u8;
        match state >> 61 {
            0 => serial.read(offset, &mut vec![0; length]),
            1 => {
                serial.receive(&[value; 300]);
            }
            _ => serial.write(offset, &vec![value; length]),
        }
        assert!(serial.output.len() <= OUTPUT_MAX);
        assert!(serial.fifo.len() <= FIFO_SIZE && serial.backlog.len() <= BACKLOG_SIZE);
    }
}
