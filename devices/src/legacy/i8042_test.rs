//! The controller, and a driver that acts like Linux's.

use super::*;
use crate::event::test_support::Recorder;
use crate::interrupt::test_support::Line;

struct Fixture {
    i8042: I8042,
    line: Arc<Line>,
    events: Arc<Recorder>,
}

impl Fixture {
    fn new() -> Self {
        let (line, events) = (Line::new(), Recorder::new());
        Self {
            i8042: I8042::new(line.clone(), events.clone()),
            line,
            events,
        }
    }

    fn status(&mut self) -> u8 {
        let mut data = [0xaa];
        self.i8042.read(STATUS_COMMAND, &mut data);
        data[0]
    }

    fn has_output(&mut self) -> bool {
        self.status() & 1 != 0
    }

    fn data(&mut self) -> u8 {
        let mut data = [0xaa];
        self.i8042.read(DATA, &mut data);
        data[0]
    }

    fn command(&mut self, command: u8) {
        assert_eq!(self.status() & 2, 0, "it always takes a command");
        self.i8042.write(STATUS_COMMAND, &[command]);
    }

    fn send(&mut self, byte: u8) {
        self.i8042.write(DATA, &[byte]);
    }

    /// All that is there.
    fn drain(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.has_output() {
            bytes.push(self.data());
            assert!(bytes.len() < 100, "it never ends");
        }
        bytes
    }

    /// What an interrupt handler reads: a byte for each edge, and none without.
    fn handle_interrupts(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.line.take_edges() > 0 {
            assert!(self.has_output(), "an interrupt for nothing");
            bytes.push(self.data());
        }
        assert!(!self.has_output(), "a byte without an interrupt");
        bytes
    }
}

const PRESSED: [u8; 4] = [0x14, 0x11, 0xe0, 0x71];
const RELEASED: [u8; 7] = [0xe0, 0xf0, 0x71, 0xf0, 0x11, 0xf0, 0x14];

#[test]
fn linux_finds_a_controller_and_no_mouse() {
    let mut fixture = Fixture::new();
    // i8042_flush(): there is nothing.
    assert!(!fixture.has_output());
    assert_eq!(fixture.status() & 0x10, 0x10, "not locked");
    // i8042_controller_init(): twice the same control byte.
    for _ in 0..2 {
        fixture.command(0x20);
        assert_eq!(fixture.drain(), [0x05]);
    }
    // Keyboard and its interrupt off for now.
    fixture.command(0x60);
    assert_eq!(fixture.status() & 0x08, 0x08, "a parameter is awaited");
    fixture.send(0x14);
    fixture.line.take_edges();
    // i8042_check_aux(): what is looped did not come from the mouse, and its port does not work.
    fixture.command(0xd3);
    fixture.send(0x5a);
    assert_eq!(fixture.status() & 0x21, 0x01, "no mouse's byte");
    assert_eq!(fixture.drain(), [0x5a]);
    fixture.command(0xa9);
    assert!(!matches!(fixture.data(), 0 | 0xfa | 0xff));
    // i8042_controller_selftest(), and the keyboard's line.
    fixture.command(0xaa);
    assert_eq!(fixture.drain(), [0x55]);
    fixture.command(0xab);
    assert_eq!(fixture.drain(), [0x00]);
    assert_eq!(fixture.line.take_edges(), 0, "interrupts are off");
    fixture.command(0x20);
    assert_eq!(fixture.drain(), [0x14]);
}

#[test]
fn commands_switch_bits_of_the_control_byte() {
    let mut fixture = Fixture::new();
    for (command, control) in [(0xad, 0x15), (0xa7, 0x35), (0xae, 0x25), (0xa8, 0x05)] {
        fixture.command(command);
        fixture.command(0x20);
        assert_eq!(fixture.drain(), [control], "{command:#x}");
    }
    fixture.command(0xc0);
    assert_eq!(fixture.drain(), [0x80]);
    fixture.command(0xd0);
    assert_eq!(fixture.drain(), [0x03]);
    fixture.command(0xd1);
    fixture.send(0xdd);
    fixture.command(0xd0);
    assert_eq!(fixture.drain(), [0xdd]);
    assert_eq!(fixture.events.take(), []);
}

#[test]
fn a_keyboard_answers_with_an_interrupt_for_each_byte() {
    let mut fixture = Fixture::new();
    fixture.send(0xf2);
    assert_eq!(fixture.handle_interrupts(), [0xfa, 0xab, 0x83]);
    // An answer that nobody has read makes room for the next.
    fixture.send(0xf2);
    fixture.send(0xee);
    assert_eq!(fixture.handle_interrupts(), [0xee]);
    // What comes from the keyboard, says the guest itself.
    fixture.command(0xd2);
    fixture.send(0x1c);
    assert_eq!(fixture.handle_interrupts(), [0x1c]);
}

#[test]
fn ctrl_alt_del_is_pressed_and_let_go() {
    let mut fixture = Fixture::new();
    fixture.i8042.send_ctrl_alt_del().unwrap();
    assert!(fixture.line.is_asserted());
    let keys = fixture.handle_interrupts();
    assert_eq!(keys, [&PRESSED[..], &RELEASED[..]].concat());
    assert!(!fixture.line.is_asserted());
    // Without interrupts, by polling.
    fixture.command(0x60);
    fixture.send(0x04);
    fixture.i8042.send_ctrl_alt_del().unwrap();
    assert_eq!(fixture.drain(), keys);
    assert_eq!(fixture.line.take_edges(), 0);
}

#[test]
fn keys_come_in_set_1_if_they_are_translated() {
    let mut fixture = Fixture::new();
    fixture.command(0x60);
    fixture.send(0x45);
    fixture.i8042.send_ctrl_alt_del().unwrap();
    let keys = fixture.handle_interrupts();
    assert_eq!(keys, [0x1d, 0x38, 0xe0, 0x53, 0xe0, 0xd3, 0xb8, 0x9d]);
}

#[test]
fn interrupts_that_are_switched_on_late_come() {
    let mut fixture = Fixture::new();
    fixture.command(0x60);
    fixture.send(0x04);
    fixture.i8042.send_ctrl_alt_del().unwrap();
    assert_eq!(fixture.line.take_edges(), 0);
    fixture.command(0x60);
    fixture.send(0x05);
    assert!(fixture.handle_interrupts().starts_with(&PRESSED));
}

#[test]
fn a_guest_that_does_not_read_has_room_for_four() {
    let mut fixture = Fixture::new();
    for _ in 0..4 {
        assert_eq!(fixture.i8042.send_ctrl_alt_del(), Ok(()));
    }
    assert_eq!(fixture.i8042.send_ctrl_alt_del(), Err(NoRoom));
    assert_eq!(fixture.i8042.counters().errors, 1);
    let keys = fixture.handle_interrupts();
    assert_eq!(keys, [&PRESSED.repeat(4)[..], &RELEASED[..]].concat());
    assert_eq!(fixture.i8042.send_ctrl_alt_del(), Ok(()));
}

#[test]
fn keys_are_not_let_go_within_a_command() {
    let mut fixture = Fixture::new();
    fixture.i8042.send_ctrl_alt_del().unwrap();
    fixture.data();
    fixture.send(0xed);
    fixture.line.take_edges();
    assert_eq!(fixture.drain(), [0xfa]);
    fixture.send(0x02);
    assert_eq!(fixture.drain(), [&[0xfa], &RELEASED[..]].concat());
}

#[test]
fn the_reset_line_restarts_the_machine() {
    let mut fixture = Fixture::new();
    fixture.command(0xfe);
    assert_eq!(fixture.events.take(), [GuestEvent::Reset]);
    // Other lines are not wired.
    fixture.command(0xfd);
    fixture.command(0xff);
    assert_eq!(fixture.events.take(), []);
    fixture.command(0xd1);
    fixture.send(0xfe);
    assert_eq!(fixture.events.take(), [GuestEvent::Reset]);
    assert_eq!(fixture.i8042.counters().resets, 2);
}

#[test]
fn accesses_are_counted_and_the_ports_in_between_are_not_mapped() {
    let mut fixture = Fixture::new();
    let mut data = [0; 5];
    fixture.i8042.read(DATA, &mut data);
    assert_eq!(data, [0, 0xff, 0xff, 0xff, 0x14]);
    fixture.i8042.write(DATA, &[0xee, 1]);
    let counters = I8042Counters {
        reads: 2,
        writes: 1,
        missed_reads: 3,
        missed_writes: 1,
        errors: 0,
        resets: 0,
    };
    assert_eq!(fixture.i8042.counters(), counters);
}

/// Whatever it writes and reads, its buffer is bounded and it ends.
#[test]
fn a_hostile_driver_gets_no_further() {
    let mut fixture = Fixture::new();
    let mut random = 0x1234_5678u32;
    for _ in 0..200_000 {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let byte = (random >> 24) as u8;
        match random >> 16 & 7 {
            0 | 1 => fixture.send(byte),
            2 | 3 => fixture.i8042.write(STATUS_COMMAND, &[byte]),
            4 => drop(fixture.i8042.send_ctrl_alt_del()),
            5 => drop(fixture.status()),
            _ => drop(fixture.data()),
        }
        assert!(fixture.i8042.output.len() <= OUTPUT_SIZE);
        let wanted = !fixture.i8042.output.is_empty() && fixture.i8042.control & 1 != 0;
        assert_eq!(fixture.line.is_asserted(), wanted);
    }
}

#[test]
fn another_controller_goes_on_where_this_one_stopped() {
    let mut first = Fixture::new();
    first.i8042.send_ctrl_alt_del().unwrap();
    first.send(0xed);
    let state = first.i8042.save();
    let mut second = Fixture::new();
    second.i8042.restore(&state).unwrap();
    assert_eq!(second.i8042.save(), state);
    assert_eq!(first.drain(), second.drain());
    let mut bad = serde_json::to_value(&state).unwrap();
    bad["output"] = serde_json::json!(vec![0; OUTPUT_SIZE + 1]);
    let bad: I8042State = serde_json::from_value(bad).unwrap();
    assert!(Fixture::new().i8042.restore(&bad).is_err());
    let mut bad = serde_json::to_value(&state).unwrap();
    bad["keyboard"]["last"] = serde_json::json!(vec![0; ANSWER_MAX + 1]);
    let bad: I8042State = serde_json::from_value(bad).unwrap();
    assert!(Fixture::new().i8042.restore(&bad).is_err());
}
