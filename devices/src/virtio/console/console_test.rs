use std::io::{ErrorKind, PipeReader, Read, Write, pipe};
use std::thread::spawn;
use std::time::Duration;

use super::port::EMERGENCY_MAX;
use super::worker::OUTPUT_MAX;
use super::*;
use crate::console_beside::{Keyboard, Listener};
use crate::console_io::{HELD_MAX, TAIL_SIZE};
use crate::legacy::test_support::noise;
use crate::rate_limiter::Bucket;
use crate::virtio::state::CoreState;
use crate::virtio::test_support::{Driver, ScratchBuffer, TestLoop, lifecycle_suite};

const PIPE_SIZE: usize = 64 << 10;
/// Longer than anything takes unless it hangs.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Everything is for the guest, except Ctrl-A.
#[derive(Clone, Default)]
struct CountCtrlA(Arc<Mutex<usize>>);

impl InputFilter for CountCtrlA {
    fn filter(&mut self, input: &[u8], to_guest: &mut Vec<u8>) {
        *lock(&self.0) += input.iter().filter(|&&byte| byte == 1).count();
        to_guest.extend(input.iter().filter(|&&byte| byte != 1));
    }
}

fn config(input: Option<Input>, output: Output) -> Config {
    Config {
        input,
        output,
        filter: Box::new(CountCtrlA::default()),
        rate_limit: RateLimit::default(),
        size: (80, 25),
    }
}

fn console(config: Config) -> Console {
    let mut console = Console::new(TestLoop::start(), config).unwrap();
    console.attach().unwrap();
    console
}

/// With a driver that has connected its console, as Linux's shows by this.
fn start(config: Config) -> (Driver, ConsoleControl) {
    let (driver, control) = start_with(config, u64::MAX);
    read_config(&driver, 0, 4);
    (driver, control)
}

fn start_with(config: Config, features: u64) -> (Driver, ConsoleControl) {
    let console = console(config);
    let control = console.control();
    let mut driver = Driver::new(console);
    driver.start(features);
    (driver, control)
}

/// A console that writes into a pipe.
fn piped() -> (Driver, ConsoleControl, PipeReader) {
    let (host_reads, guest_writes) = pipe().unwrap();
    let (driver, control) = start(config(None, Output::new(guest_writes.into()).unwrap()));
    (driver, control, host_reads)
}

fn read(mut from: impl Read, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    from.read_exact(&mut bytes).unwrap();
    bytes
}

/// Sends `bytes` in pieces of `piece`, each when the one before was used: as Linux's driver does.
fn send(driver: &mut Driver, bytes: &[u8], piece: usize) {
    let buffer = driver.buffer(piece as u32);
    for part in bytes.chunks(piece) {
        driver.write(buffer.gpa, part);
        let mut desc = buffer.readable();
        desc.len = part.len() as u32;
        assert_eq!(driver.request(TRANSMIT, &[desc]), 0);
    }
}

fn read_config(driver: &Driver, offset: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0xaa; len];
    driver.core.read_config(offset, &mut data);
    data
}

lifecycle_suite!(console(config(None, Output::discard())));

mod with_limits {
    use super::*;

    fn limited() -> Console {
        let mut config = config(None, Output::discard());
        config.rate_limit = RateLimit {
            bandwidth: Bucket::new(100, 5, 0),
            ops: Bucket::new(3, 5, 0),
        };
        console(config)
    }

    lifecycle_suite!(limited());
}

#[test]
fn output_reaches_the_host() {
    let (mut driver, control, host) = piped();
    assert!(!control.has_printed());
    send(&mut driver, b"hello\n", 16);
    assert_eq!(read(host, 6), b"hello\n");
    assert!(control.has_printed());
    assert_eq!(control.tail(), b"hello\n");
    assert!(control.take_error().is_none());
}

#[test]
fn input_reaches_the_guest() {
    let (guest_reads, mut host) = pipe().unwrap();
    let input = Some(Input::new(guest_reads.into()));
    let (mut driver, _) = start(config(input, Output::discard()));
    let buffers = [driver.buffer(4), driver.buffer(100)];
    for buffer in &buffers {
        driver.submit(RECEIVE, &[buffer.writable()]);
    }
    host.write_all(b"hello").unwrap();
    let used = driver.wait_used(RECEIVE, 2);
    assert_eq!([used[0].1, used[1].1], [4, 1]);
    assert_eq!(driver.contents(buffers[0]), b"hell");
    assert_eq!(driver.read(buffers[1].gpa, 2), b"o\xaa");
    assert!(driver.interrupts.used(0) >= 1);
}

#[test]
fn the_other_end_comes_later() {
    let (mut driver, control) = start(config(None, Output::discard()));
    let buffer = driver.buffer(100);
    driver.submit(RECEIVE, &[buffer.writable()]);
    send(&mut driver, b"lost", 16);
    let ((guest_reads, mut host_writes), (host_reads, guest_writes)) =
        (pipe().unwrap(), pipe().unwrap());
    let changes = driver.interrupts.config();
    control
        .connect(
            Some(Input::new(guest_reads.into())),
            Output::new(guest_writes.into()).unwrap(),
            Box::new(CountCtrlA::default()),
            (7, 9),
        )
        .unwrap();
    assert_eq!(read_config(&driver, 0, 4), [7, 0, 9, 0]);
    assert_eq!(driver.interrupts.config(), changes + 1);
    host_writes.write_all(b"hel\x01lo").unwrap();
    assert_eq!(driver.wait_used(RECEIVE, 1)[0].1, 5);
    assert_eq!(driver.read(buffer.gpa, 5), b"hello");
    send(&mut driver, b"printed", 16);
    assert_eq!(read(host_reads, 7), b"printed");
    assert_eq!(control.tail(), b"lostprinted");
    // There is one now.
    let error = control
        .connect(
            None,
            Output::discard(),
            Box::new(CountCtrlA::default()),
            (0, 0),
        )
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
}

#[test]
fn keys_are_seen_before_the_guest_opens_it_and_after_it_has_gone() {
    let (guest_reads, mut host) = pipe().unwrap();
    let keys = CountCtrlA::default();
    let mut config = config(Some(Input::new(guest_reads.into())), Output::discard());
    config.filter = Box::new(keys.clone());
    let mut driver = Driver::new(console(config));
    let mut press = |driver: &mut Driver, total| {
        host.write_all(b"x\x01").unwrap();
        driver.wait_until("a key", |_| *lock(&keys.0) == total);
    };
    press(&mut driver, 1);
    driver.start(u64::MAX);
    press(&mut driver, 2);
    driver.reset();
    press(&mut driver, 3);
    driver.start(1 << 32);
    // What was typed meanwhile is there.
    let buffer = driver.buffer(10);
    assert_eq!(driver.request(RECEIVE, &[buffer.writable()]), 3);
    assert_eq!(driver.read(buffer.gpa, 3), b"xxx");
    press(&mut driver, 4);
}

#[test]
fn keys_are_seen_when_its_driver_has_broken_it() {
    let (guest_reads, mut host) = pipe().unwrap();
    let keys = CountCtrlA::default();
    let mut config = config(Some(Input::new(guest_reads.into())), Output::discard());
    config.filter = Box::new(keys.clone());
    let (mut driver, _) = start(config);
    driver.queues[TRANSMIT].set_avail_index(5000);
    driver.kick(TRANSMIT);
    driver.wait_broken();
    host.write_all(b"\x01").unwrap();
    driver.wait_until("a key", |_| *lock(&keys.0) == 1);
}

/// It can take its console out of its slot.
#[test]
fn keys_are_seen_when_the_guest_has_given_it_up() {
    let event_loop = TestLoop::start();
    for started in [false, true] {
        let (guest_reads, mut host) = pipe().unwrap();
        let keys = CountCtrlA::default();
        let mut config = config(Some(Input::new(guest_reads.into())), Output::discard());
        config.filter = Box::new(keys.clone());
        let mut console = Console::new(event_loop.clone(), config).unwrap();
        console.attach().unwrap();
        let mut driver = Driver::new(console);
        if started {
            driver.start(u64::MAX);
        }
        drop(driver);
        host.write_all(b"\x01").unwrap();
        let deadline = Instant::now() + TIMEOUT;
        while *lock(&keys.0) == 0 {
            assert!(Instant::now() < deadline, "the key was not seen");
            std::thread::yield_now();
        }
    }
}

#[test]
fn nothing_is_lost_when_both_ways_are_flooded() {
    const LEN: usize = 300_000;
    let (guest_reads, mut host_writes) = pipe().unwrap();
    let (host_reads, guest_writes) = pipe().unwrap();
    let (mut driver, control) = start(config(
        Some(Input::new(guest_reads.into())),
        Output::new(guest_writes.into()).unwrap(),
    ));
    let mut typed = noise(LEN, 1);
    typed.iter_mut().for_each(|byte| *byte |= 0x80);
    let printed = noise(LEN, 2);
    let to_type = typed.clone();
    let writer = spawn(move || host_writes.write_all(&to_type).unwrap());
    let reader = spawn(move || read(host_reads, LEN));
    let out = driver.buffer(3000);
    let into = driver.buffer(777);
    let mut parts = printed.chunks(3000);
    let mut received = Vec::new();
    let (mut sending, mut receiving) = (false, false);
    driver.wait_until("end of the flood", |driver| {
        if !sending && let Some(part) = parts.next() {
            driver.write(out.gpa, part);
            driver.submit(TRANSMIT, &[out.readable()]);
            sending = true;
        }
        if !receiving {
            driver.submit(RECEIVE, &[into.writable()]);
            receiving = true;
        }
        sending &= driver.queues[TRANSMIT].take_used().is_empty();
        for (_, len) in driver.queues[RECEIVE].take_used() {
            received.extend(driver.read(into.gpa, len));
            receiving = false;
        }
        received.len() >= LEN && parts.len() == 0 && !sending
    });
    assert!(received == typed);
    assert!(reader.join().unwrap() == printed);
    assert!(control.tail() == printed[LEN - 4096..]);
    writer.join().unwrap();
}

#[test]
fn a_host_that_does_not_read_holds_the_guest_and_nothing_is_lost() {
    let (mut driver, control, host) = piped();
    let printed = noise(300_000, 3);
    let buffers: Vec<_> = printed
        .chunks(10_000)
        .map(|part| driver.buffer_with(part))
        .collect();
    for buffer in &buffers {
        driver.submit(TRANSMIT, &[buffer.readable()]);
    }
    driver.wait_until("full buffer", |_| control.holds_output() == OUTPUT_MAX);
    let used = driver.queues[TRANSMIT].take_used().len();
    assert!(used < buffers.len(), "the guest is held back");
    assert!(used * 10_000 <= OUTPUT_MAX + PIPE_SIZE);
    assert!(read(host, printed.len()) == printed);
    driver.wait_used(TRANSMIT, buffers.len() - used);
}

#[test]
fn a_reset_loses_nothing_that_was_accepted() {
    let (mut driver, control, host) = piped();
    let printed = noise(160_000, 4);
    let buffer = driver.buffer_with(&printed);
    driver.submit(TRANSMIT, &[buffer.readable()]);
    driver.wait_until("full buffer", |_| control.holds_output() == OUTPUT_MAX);
    driver.reset();
    driver.start(u64::MAX);
    assert!(read(host, printed.len()) == printed);
}

#[test]
fn a_reset_while_the_host_is_stuck_does_not_grow_without_limit() {
    let (mut driver, control, _host) = piped();
    let buffer = driver.buffer(1 << 20);
    for _ in 0..10 {
        driver.submit(TRANSMIT, &[buffer.readable()]);
        driver.wait_until("full buffer", |_| control.holds_output() >= OUTPUT_MAX);
        driver.reset();
        driver.start(u64::MAX);
    }
    assert!(control.holds_output() <= 2 * OUTPUT_MAX);
}

#[test]
fn a_reader_that_goes_away_is_reported_and_the_guest_goes_on() {
    let (mut driver, control, host) = piped();
    drop(host);
    send(&mut driver, &noise(200_000, 5), 5000);
    driver.wait_until("end", |_| control.holds_output() == 0);
    assert_eq!(control.take_error().unwrap().kind(), ErrorKind::BrokenPipe);
    assert!(control.take_error().is_none());
    assert_eq!(control.tail(), noise(200_000, 5)[200_000 - 4096..]);
}

#[test]
fn its_size_is_told() {
    let (driver, control) = start(config(None, Output::discard()));
    assert_eq!(read_config(&driver, 0, 8), [80, 0, 25, 0, 1, 0, 0, 0]);
    let before = (driver.interrupts.config(), driver.core.config_generation());
    control.resize(300, 50);
    assert_eq!(read_config(&driver, 0, 4), [44, 1, 50, 0]);
    assert_eq!(driver.interrupts.config(), before.0 + 1);
    assert_ne!(driver.core.config_generation(), before.1);
    control.resize(300, 50);
    assert_eq!(driver.interrupts.config(), before.0 + 1, "nothing changed");
}

#[test]
fn a_size_that_changes_while_it_is_idle_is_there_later() {
    let console = console(config(None, Output::discard()));
    let control = console.control();
    let mut driver = Driver::new(console);
    control.resize(132, 43);
    driver.start(u64::MAX);
    assert_eq!(read_config(&driver, 0, 4), [132, 0, 43, 0]);
}

#[test]
fn emergency_output_needs_no_driver_and_has_a_limit() {
    let (host, guest_writes) = pipe().unwrap();
    let console = console(config(None, Output::new(guest_writes.into()).unwrap()));
    let control = console.control();
    let mut driver = Driver::new(console);
    driver.negotiate(u64::MAX);
    for byte in b"panic" {
        driver.core.write_config(EMERG_WR, &[*byte, 0, 0, 0]);
    }
    assert_eq!(read(&host, 5), b"panic");
    assert_eq!(control.tail(), b"panic");
    assert!(control.has_printed());
    // Elsewhere it is not.
    driver.core.write_config(0, &[b'x'; 12]);
    driver.core.write_config(u64::MAX, b"x");
    for _ in 0..200_000 {
        driver.core.write_config(EMERG_WR, b"y");
    }
    assert!(control.holds_output() <= OUTPUT_MAX + EMERGENCY_MAX);
}

/// As little as there can be: the rest would take longer than anybody waits.
fn hardly_any() -> RateLimit {
    RateLimit {
        bandwidth: Bucket::new(1000, 1_000_000_000, 0),
        ops: None,
    }
}

#[test]
fn a_limit_holds_the_guest_until_it_is_lifted() {
    let (host, guest_writes) = pipe().unwrap();
    let mut config = config(None, Output::new(guest_writes.into()).unwrap());
    config.rate_limit = hardly_any();
    let (mut driver, control) = start(config);
    let printed = noise(3000, 6);
    for part in printed.chunks(300) {
        let buffer = driver.buffer_with(part);
        driver.submit(TRANSMIT, &[buffer.readable()]);
    }
    driver.wait_used(TRANSMIT, 3);
    assert!(read(&host, 900) == printed[..900]);
    assert!(driver.queues[TRANSMIT].take_used().is_empty());
    control.set_rate_limit(RateLimit::default()).unwrap();
    driver.wait_used(TRANSMIT, 7);
    assert!(read(&host, 2100) == printed[900..]);
}

#[test]
fn the_first_limit_may_come_while_it_runs() {
    let (mut driver, control, host) = piped();
    send(&mut driver, &noise(5000, 7), 500);
    control.set_rate_limit(hardly_any()).unwrap();
    for part in noise(2000, 8).chunks(500) {
        let buffer = driver.buffer_with(part);
        driver.submit(TRANSMIT, &[buffer.readable()]);
    }
    driver.wait_used(TRANSMIT, 2);
    control
        .set_rate_limit(RateLimit {
            bandwidth: None,
            ops: Bucket::new(1, 1, 0),
        })
        .unwrap();
    driver.wait_used(TRANSMIT, 2);
    assert!(read(host, 7000)[5000..] == noise(2000, 8));
}

#[test]
fn a_flush_takes_all_that_the_guest_has_sent_whatever_the_limit() {
    let (host, guest_writes) = pipe().unwrap();
    let mut config = config(None, Output::new(guest_writes.into()).unwrap());
    config.rate_limit = hardly_any();
    let (mut driver, control) = start(config);
    let printed = noise(150_000, 9);
    for part in printed.chunks(10_000) {
        let buffer = driver.buffer_with(part);
        driver.submit(TRANSMIT, &[buffer.readable()]);
    }
    let slow = spawn(move || read(host, printed.len()) == printed);
    control.flush_blocking(Instant::now() + TIMEOUT);
    assert_eq!(control.holds_output(), 0);
    assert!(slow.join().unwrap());
    assert_eq!(driver.wait_used(TRANSMIT, 15).len(), 15);
}

#[test]
fn a_flush_does_not_wait_for_a_stuck_reader_for_ever() {
    let (mut driver, control, _host) = piped();
    let buffer = driver.buffer(1 << 20);
    driver.submit(TRANSMIT, &[buffer.readable()]);
    control.flush_blocking(Instant::now() + Duration::from_millis(20));
    assert_eq!(control.holds_output(), OUTPUT_MAX);
}

#[test]
fn output_goes_to_a_terminal_and_comes_from_it() {
    let pty = crate::console_io::Pty::open().unwrap();
    let (mut driver, _) = start(config(
        Some(Input::pty(&pty).unwrap()),
        Output::pty(&pty).unwrap(),
    ));
    // Nobody is there: the guest goes on.
    send(&mut driver, &noise(200_000, 10), 4096);
    for _ in 0..3 {
        let mut terminal = std::fs::File::options()
            .read(true)
            .write(true)
            .open(pty.path())
            .unwrap();
        send(&mut driver, b"<login:>", 16);
        let mut seen = Vec::new();
        while !seen.ends_with(b"<login:>") {
            let mut byte = [0];
            terminal.read_exact(&mut byte).unwrap();
            seen.push(byte[0]);
        }
        let buffer = driver.buffer(16);
        driver.submit(RECEIVE, &[buffer.writable()]);
        terminal.write_all(b"root").unwrap();
        driver.wait_used(RECEIVE, 1);
        assert!(driver.contents(buffer).starts_with(b"r"));
    }
}

fn typed_early(features: u64) -> (Driver, ScratchBuffer) {
    let (reader, mut keyboard) = pipe().unwrap();
    keyboard.write_all(b"early").unwrap();
    // Its end is not the end of what came before.
    drop(keyboard);
    let config = config(Some(Input::new(reader.into())), Output::discard());
    let (mut driver, _control) = start_with(config, features);
    let buffer = driver.buffer(16);
    driver.submit(RECEIVE, &[buffer.writable()]);
    (driver, buffer)
}

fn expect_early(driver: &mut Driver, buffer: ScratchBuffer) {
    assert_eq!(driver.wait_used(RECEIVE, 1)[0].1, 5);
    assert_eq!(&driver.contents(buffer)[..5], b"early");
}

#[test]
fn what_was_typed_before_its_driver_came_waits_until_that_has_settled() {
    let began = std::time::Instant::now();
    let (mut driver, buffer) = typed_early(!F_SIZE);
    expect_early(&mut driver, buffer);
    // A lower bound, whatever the machine does.
    assert!(began.elapsed() >= Duration::from_millis(500));
}

#[test]
fn what_was_typed_before_its_driver_came_is_there_when_that_looks_at_the_size() {
    let (mut driver, buffer) = typed_early(u64::MAX);
    read_config(&driver, 2, 2);
    expect_early(&mut driver, buffer);
}

#[test]
fn what_was_typed_before_its_driver_came_is_there_when_the_guest_prints() {
    let (mut driver, buffer) = typed_early(u64::MAX);
    let prompt = driver.buffer_with(b"> ");
    driver.submit(TRANSMIT, &[prompt.readable()]);
    expect_early(&mut driver, buffer);
}

#[derive(Clone, Debug, Default)]
struct Heard(Arc<Mutex<Vec<u8>>>);

impl Listener for Heard {
    fn printed(&mut self, bytes: &[u8]) {
        lock(&self.0).extend(bytes);
    }
}

#[test]
fn someone_beside_it_hears_all_and_types_as_the_driver_comes_and_goes() {
    let heard = Heard::default();
    let keyboard = Keyboard::new().unwrap();
    let input = Input::keyboard(keyboard.clone());
    let output = Output::discard().with_listener(Box::new(heard.clone()));
    let mut driver = Driver::new(console(config(Some(input), output)));
    let mut all: Vec<u8> = Vec::new();
    for round in [b"one", b"two"] {
        // What is typed too early is there later. Ctrl-A is not the filter's.
        assert_eq!(keyboard.type_in(b"a\x01"), 2);
        driver.start(u64::MAX);
        read_config(&driver, 0, 4);
        let buffer = driver.buffer(10);
        assert_eq!(driver.request(RECEIVE, &[buffer.writable()]), 2);
        assert_eq!(driver.read(buffer.gpa, 2), b"a\x01");
        driver.submit(RECEIVE, &[buffer.writable()]);
        assert_eq!(keyboard.type_in(b"key"), 3);
        assert_eq!(driver.wait_used(RECEIVE, 1)[0].1, 3);
        send(&mut driver, round, 16);
        all.extend(round);
        driver.wait_until("the listener", |_| *lock(&heard.0) == all);
        driver.reset();
    }
}

/// The state of a console after `typed` was typed, with a driver that has no room for that.
fn typed_ahead(typed: &[u8]) -> (Driver, CoreState) {
    let keyboard = Keyboard::new().unwrap();
    let input = Input::keyboard(keyboard.clone());
    let (mut driver, control) = start(config(Some(input), Output::discard()));
    send(&mut driver, b"half a li", 4);
    assert_eq!(keyboard.type_in(typed), typed.len());
    driver.wait_until("what was typed", |_| lock(&control.worker).holds() == typed);
    driver.core.pause();
    let state = driver.core.save().unwrap();
    (driver, state)
}

#[test]
fn what_was_typed_and_not_read_goes_on_with_the_guest_and_so_does_half_a_line() {
    for size in [(80, 25), (100, 30), (0, 0)] {
        let (mut driver, state) = typed_ahead(b"ls\n");
        let mut new = config(None, Output::discard());
        new.size = size;
        let new = console(new);
        let control = new.control();
        let mut other = Driver::in_memory(new, Arc::clone(&driver.memory));
        other.core.restore(&state).unwrap();
        assert_eq!(control.tail(), b"half a li");
        assert!(!control.has_printed());
        other.queues = std::mem::take(&mut driver.queues);
        other.core.resume();
        // The driver settled long ago: it need not show it again.
        let buffer = other.buffer(16);
        assert_eq!(other.request(RECEIVE, &[buffer.writable()]), 3);
        assert_eq!(&other.contents(buffer)[..3], b"ls\n");
        send(&mut other, b"ne\n", 4);
        assert_eq!(control.tail(), b"half a line\n");
        assert!(control.has_printed());
        // A terminal of another size, and none.
        let is_other = size == (100, 30);
        assert_eq!(other.interrupts.config(), usize::from(is_other));
        let known = if is_other {
            [100, 0, 30, 0]
        } else {
            [80, 0, 25, 0]
        };
        assert_eq!(read_config(&other, 0, 4), known);
        assert!(!other.is_broken());
    }
}

#[test]
fn a_state_with_more_than_a_console_holds_is_refused() {
    let (_driver, good) = typed_ahead(b"x");
    let changed = |change: &dyn Fn(&mut ConsoleState)| {
        let mut state = good.clone();
        let DeviceState::Console(of_console) = &mut state.device else {
            panic!("{state:?}");
        };
        change(of_console);
        let mut other = Driver::new(console(config(None, Output::discard())));
        other
            .core
            .restore(&state)
            .map_err(|error| error.to_string())
    };
    changed(&|state| state.input = vec![b'x'; HELD_MAX]).unwrap();
    let input = changed(&|state| state.input = vec![b'x'; HELD_MAX + 1]).unwrap_err();
    assert!(input.contains("bytes of input"), "{input}");
    let tail = changed(&|state| state.tail = vec![b'x'; TAIL_SIZE + 1]).unwrap_err();
    assert!(tail.contains("bytes of output"), "{tail}");
}
