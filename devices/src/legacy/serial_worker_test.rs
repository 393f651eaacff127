//! The worker between a driver that acts like Linux's and pipes, sockets, terminals and files.
#![expect(unsafe_code, reason = "openpty")]

use std::fs::File;
use std::io::{ErrorKind, PipeReader, Read, Write, pipe};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread::{JoinHandle, spawn};

use event_manager::{EventManager, SubscriberOps};

use super::*;
use crate::console_beside::{Keyboard, Listener, TYPED_MAX};
use crate::console_io::{HELD_MAX, TAIL_SIZE};
use crate::legacy::serial::OUTPUT_HIGH_WATER;
use crate::legacy::test_support::{Driver, noise};

const MIB: usize = 1 << 20;
/// Longer than anything takes unless it hangs.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Everything is for the guest, except Ctrl-A.
#[derive(Default)]
struct CountCtrlA(Arc<Mutex<usize>>);

impl InputFilter for CountCtrlA {
    fn filter(&mut self, input: &[u8], to_guest: &mut Vec<u8>) {
        let keys = input.iter().filter(|&&byte| byte == 1).count();
        *lock(&self.0) += keys;
        to_guest.extend(input.iter().filter(|&&byte| byte != 1));
    }
}

struct Transparent;

impl InputFilter for Transparent {
    fn filter(&mut self, input: &[u8], to_guest: &mut Vec<u8>) {
        to_guest.extend_from_slice(input);
    }
}

/// An event loop with a worker on it, and the guest's driver.
struct Fixture {
    manager: EventManager<Arc<Mutex<SerialWorker>>>,
    worker: Arc<Mutex<SerialWorker>>,
    serial: Arc<Mutex<Serial>>,
    driver: Option<Driver>,
}

impl Fixture {
    fn new(input: Option<OwnedFd>, output: Output) -> Self {
        Self::with_filter(input, output, Box::new(Transparent))
    }

    fn with_filter(input: Option<OwnedFd>, output: Output, filter: Box<dyn InputFilter>) -> Self {
        Self::with_ends(input.map(Input::new), output, filter)
    }

    fn with_ends(input: Option<Input>, output: Output, filter: Box<dyn InputFilter>) -> Self {
        let (driver, serial, wake) = Driver::new();
        let worker = SerialWorker::new(serial.clone(), wake, input, output, filter).unwrap();
        let worker = Arc::new(Mutex::new(worker));
        let mut manager = EventManager::new().unwrap();
        manager.add_subscriber(worker.clone());
        Self {
            manager,
            worker,
            serial,
            driver: Some(driver),
        }
    }

    /// Runs the guest's part on a thread of its own, like a vCPU.
    fn guest<T: Send + 'static>(
        &mut self,
        part: impl FnOnce(&mut Driver) -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let mut driver = self.driver.take().unwrap();
        spawn(move || part(&mut driver))
    }

    fn serve_until(&mut self, mut done: impl FnMut(&Self) -> bool) {
        let start = Instant::now();
        while !done(self) {
            assert!(start.elapsed() < TIMEOUT, "it hangs");
            self.manager.run_with_timeout(10).unwrap();
        }
    }

    /// Serves until nothing has happened for a while, and says how many events there were.
    fn serve_until_quiet(&mut self) -> usize {
        let mut events = 0;
        loop {
            match self.manager.run_with_timeout(50).unwrap() {
                0 => return events,
                count => events += count,
            }
            assert!(events < 10_000, "it spins");
        }
    }

    fn join<T>(&mut self, thread: JoinHandle<T>) -> T {
        self.serve_until(|_| thread.is_finished());
        thread.join().unwrap()
    }

    fn worker(&self) -> std::sync::MutexGuard<'_, SerialWorker> {
        lock(&self.worker)
    }
}

fn writer(mut to: impl Write + Send + 'static, bytes: Vec<u8>) -> JoinHandle<()> {
    spawn(move || to.write_all(&bytes).unwrap())
}

fn reader(mut from: impl Read + Send + 'static, len: usize) -> JoinHandle<Vec<u8>> {
    spawn(move || {
        let mut bytes = vec![0; len];
        from.read_exact(&mut bytes).unwrap();
        bytes
    })
}

/// Sends `len` bytes each way at once and compares them.
fn exchange(
    mut fixture: Fixture,
    host_writes: impl Write + Send + 'static,
    host_reads: impl Read + Send + 'static,
    len: usize,
) {
    let (to_guest, to_host) = (noise(len, 1), noise(len, 2));
    let host_writer = writer(host_writes, to_guest.clone());
    let host_reader = reader(host_reads, len);
    let sent = to_host.clone();
    let guest = fixture.guest(move |driver| {
        driver.open();
        driver.start_sending(sent);
        driver.run_until_received(len);
        driver.received.clone()
    });
    // Not assert_eq: nobody wants to see them.
    assert!(fixture.join(guest) == to_guest);
    assert!(fixture.join(host_reader) == to_host);
    host_writer.join().unwrap();
    assert!(fixture.worker().tail() == to_host[len - TAIL_SIZE..]);
    assert_eq!(lock(&fixture.serial).counters().missed_writes, 0);
}

#[test]
fn a_mebibyte_goes_both_ways_through_pipes() {
    let (guest_reads, host_writes) = pipe().unwrap();
    let (host_reads, guest_writes) = pipe().unwrap();
    let output = Output::new(guest_writes.into()).unwrap();
    let fixture = Fixture::new(Some(guest_reads.into()), output);
    exchange(fixture, host_writes, host_reads, MIB);
}

#[test]
fn a_socket_is_used_for_both_ways() {
    let (guest, host) = UnixStream::pair().unwrap();
    let output = Output::new(guest.try_clone().unwrap().into()).unwrap();
    let fixture = Fixture::new(Some(guest.into()), output);
    exchange(fixture, host.try_clone().unwrap(), host, MIB / 8);
}

#[test]
fn the_other_end_comes_later() {
    let (guest, host) = UnixStream::pair().unwrap();
    let mut fixture = Fixture::new(None, Output::discard());
    fixture.serve_until_quiet();
    let connect = |guest: UnixStream| {
        let output = Output::new(guest.try_clone().unwrap().into()).unwrap();
        let input = Some(Input::new(guest.into()));
        fixture
            .worker()
            .connect(input, output, Box::new(Transparent))
    };
    connect(guest.try_clone().unwrap()).unwrap();
    // There is one now.
    assert_eq!(connect(guest).unwrap_err().kind(), ErrorKind::AlreadyExists);
    exchange(fixture, host.try_clone().unwrap(), host, MIB / 8);
}

/// A pseudoterminal in raw mode: master and terminal.
fn terminal() -> (File, File) {
    let (mut master, mut slave) = (-1, -1);
    let null = std::ptr::null_mut();
    // SAFETY: the first two point to integers; the other arguments may be null.
    let result = unsafe {
        libc::openpty(
            &raw mut master,
            &raw mut slave,
            null,
            null.cast(),
            null.cast(),
        )
    };
    assert_eq!(result, 0);
    // SAFETY: openpty has just opened them.
    let (master, slave) = unsafe { (File::from_raw_fd(master), File::from_raw_fd(slave)) };
    // SAFETY: a zeroed termios is valid, and both calls get one; the descriptor is open.
    unsafe {
        let mut termios = std::mem::zeroed();
        assert_eq!(libc::tcgetattr(slave.as_raw_fd(), &raw mut termios), 0);
        libc::cfmakeraw(&raw mut termios);
        assert_eq!(
            libc::tcsetattr(slave.as_raw_fd(), libc::TCSANOW, &raw const termios),
            0
        );
    }
    (master, slave)
}

fn duplicate(fd: &impl AsFd) -> OwnedFd {
    fd.as_fd().try_clone_to_owned().unwrap()
}

fn is_nonblocking(fd: &impl AsRawFd) -> bool {
    let path = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
    let info = std::fs::read_to_string(path).unwrap();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = i32::from_str_radix(flags.unwrap().trim(), 8).unwrap();
    flags & libc::O_NONBLOCK != 0
}

#[test]
fn a_terminal_is_used_for_both_ways_and_stays_blocking_for_others() {
    let (master, slave) = terminal();
    let output = Output::new(duplicate(&slave)).unwrap();
    let fixture = Fixture::new(Some(duplicate(&slave)), output);
    // A terminal forgets what was typed when the last master is closed.
    let keep = master.try_clone().unwrap();
    exchange(fixture, master.try_clone().unwrap(), master, MIB / 16);
    drop(keep);
    assert!(!is_nonblocking(&slave));
}

#[test]
fn a_description_that_cannot_be_had_again_is_polled() {
    // The master's side is such a one.
    let (master, slave) = terminal();
    let output = Output::new(duplicate(&master)).unwrap();
    let fixture = Fixture::new(Some(duplicate(&master)), output);
    let keep = slave.try_clone().unwrap();
    exchange(fixture, slave.try_clone().unwrap(), slave, MIB / 16);
    drop(keep);
    assert!(!is_nonblocking(&master));
}

#[test]
fn a_reader_that_does_not_read_holds_the_guest_and_nothing_else() {
    const LEN: usize = 200_000;
    let (host_reads, guest_writes) = pipe().unwrap();
    let keep = guest_writes.try_clone().unwrap();
    let mut fixture = Fixture::new(None, Output::new(guest_writes.into()).unwrap());
    let guest = fixture.guest(|driver| driver.print(&noise(LEN, 3)));
    fixture.serve_until(|fixture| {
        let serial = lock(&fixture.serial);
        let (front, back) = serial.output();
        front.len() + back.len() == OUTPUT_HIGH_WATER
    });
    assert!(!guest.is_finished());
    assert!(!is_nonblocking(&keep));
    assert_eq!(
        fixture.serve_until_quiet(),
        0,
        "a host that blocks is waited for"
    );

    let host = reader(host_reads, LEN);
    fixture.join(guest);
    assert!(fixture.join(host) == noise(LEN, 3));
    assert!(fixture.worker().take_error().is_none());
}

#[test]
fn a_reader_that_goes_away_is_reported_once_and_the_guest_goes_on() {
    let (host_reads, guest_writes) = pipe().unwrap();
    let mut fixture = Fixture::new(None, Output::new(guest_writes.into()).unwrap());
    let guest = fixture.guest(|driver| driver.print(&noise(200_000, 4)));
    fixture.serve_until(|fixture| fixture.worker().sink.is_watched());
    drop(host_reads);
    fixture.join(guest);
    fixture.serve_until_quiet();
    let error = fixture.worker().take_error().unwrap();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    assert!(fixture.worker().take_error().is_none());
    assert_eq!(
        fixture.worker().tail(),
        noise(200_000, 4)[200_000 - TAIL_SIZE..]
    );
}

#[test]
fn a_full_disk_is_reported() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut fixture = Fixture::new(None, Output::new(full.into()).unwrap());
    let guest = fixture.guest(|driver| driver.print(b"hello"));
    fixture.join(guest);
    fixture.serve_until_quiet();
    let error = fixture.worker().take_error().unwrap();
    assert_eq!(error.kind(), ErrorKind::StorageFull);
}

/// A file that goes away when it is closed.
fn temporary_file(content: &[u8]) -> File {
    let file = vmm_sys_util::tempfile::TempFile::new().unwrap();
    std::fs::write(file.as_path(), content).unwrap();
    File::options()
        .read(true)
        .write(true)
        .open(file.as_path())
        .unwrap()
}

#[test]
fn files_are_read_to_the_end_and_written_in_order() {
    let (input, output) = (noise(100_000, 5), noise(100_000, 6));
    let log = temporary_file(b"");
    let mut fixture = Fixture::new(
        Some(temporary_file(&input).into()),
        Output::new(duplicate(&log)).unwrap(),
    );
    let sent = output.clone();
    let guest = fixture.guest(move |driver| {
        driver.open();
        driver.start_sending(sent);
        driver.run_until_received(100_000);
        driver.received.clone()
    });
    assert!(fixture.join(guest) == input);
    fixture.serve_until_quiet();
    assert!(fixture.worker().source.has_ended());
    let mut written = Vec::new();
    std::io::Seek::rewind(&mut &log).unwrap();
    (&log).read_to_end(&mut written).unwrap();
    assert!(written == output);
}

#[test]
fn an_endless_file_is_read_as_the_guest_takes_it() {
    for (path, len) in [("/dev/null", 0), ("/dev/zero", 50_000)] {
        let input = File::open(path).unwrap();
        let mut fixture = Fixture::new(Some(input.into()), Output::discard());
        assert_eq!(fixture.serve_until_quiet(), 0);
        let guest = fixture.guest(move |driver| {
            driver.open();
            driver.run_until_received(len);
            driver.received.len()
        });
        assert!(fixture.join(guest) >= len);
        assert!(fixture.worker().source.held() <= HELD_MAX);
    }
}

#[test]
fn input_waits_for_the_guest_to_open_its_port() {
    const LEN: usize = 100_000;
    let (guest_reads, host_writes) = pipe().unwrap();
    let mut fixture = Fixture::new(Some(guest_reads.into()), Output::discard());
    let host = writer(host_writes, noise(LEN, 7));
    fixture.serve_until(|fixture| fixture.worker().source.held() == HELD_MAX);
    assert_eq!(
        fixture.serve_until_quiet(),
        0,
        "not watched while there is no room"
    );
    assert!(!host.is_finished());
    let guest = fixture.guest(|driver| {
        driver.open();
        driver.run_until_received(LEN);
        driver.received.clone()
    });
    assert!(fixture.join(guest) == noise(LEN, 7));
    host.join().unwrap();
}

#[test]
fn the_filter_sees_keys_while_the_guest_hangs() {
    let (guest_reads, mut host_writes) = pipe().unwrap();
    let keys = Arc::new(Mutex::new(0));
    let filter = Box::new(CountCtrlA(keys.clone()));
    let mut fixture = Fixture::with_filter(Some(guest_reads.into()), Output::discard(), filter);
    for _ in 0..100 {
        host_writes.write_all(b"help me\r\x01").unwrap();
        fixture.serve_until_quiet();
    }
    assert_eq!(*lock(&keys), 100);
    assert_eq!(fixture.worker().source.held(), 800);
}

#[test]
fn the_end_of_input_is_the_end_of_watching_it() {
    let (guest_reads, mut host_writes) = pipe().unwrap();
    let mut fixture = Fixture::new(Some(guest_reads.into()), Output::discard());
    host_writes.write_all(b"last words").unwrap();
    drop(host_writes);
    fixture.serve_until(|fixture| fixture.worker().source.has_ended());
    assert_eq!(fixture.serve_until_quiet(), 0);
    let guest = fixture.guest(|driver| {
        driver.open();
        driver.run_until_received(10);
        driver.received.clone()
    });
    assert_eq!(fixture.join(guest), b"last words");
}

#[test]
fn a_hang_up_of_the_terminal_is_the_end_of_input() {
    let (master, slave) = terminal();
    let output = Output::new(duplicate(&slave)).unwrap();
    let mut fixture = Fixture::new(Some(duplicate(&slave)), output);
    drop(master);
    fixture.serve_until(|fixture| fixture.worker().source.has_ended());
    assert_eq!(fixture.serve_until_quiet(), 0);
    let guest = fixture.guest(|driver| driver.print(&noise(100_000, 8)));
    fixture.join(guest);
}

fn print_and_flush(driver: &mut Driver, worker: &mut SerialWorker, timeout: Duration) -> Duration {
    driver.print(&noise(40_000, 9));
    let start = Instant::now();
    worker.flush_blocking(start + timeout);
    start.elapsed()
}

#[test]
fn a_flush_waits_for_a_slow_reader_but_not_for_a_stuck_one() {
    let (mut host_reads, guest_writes) = pipe().unwrap();
    let (mut driver, serial, wake) = Driver::new();
    let output = Output::new(guest_writes.into()).unwrap();
    let filter = Box::new(Transparent);
    let mut worker = SerialWorker::new(serial.clone(), wake, None, output, filter).unwrap();
    // The pipe takes 64 KiB.
    print_and_flush(&mut driver, &mut worker, TIMEOUT);
    assert!(is_empty(&lock(&serial)));
    let timeout = Duration::from_millis(100);
    assert!(print_and_flush(&mut driver, &mut worker, timeout) >= timeout);
    assert!(!is_empty(&lock(&serial)));
    assert_eq!(worker.tail(), noise(40_000, 9)[40_000 - TAIL_SIZE..]);

    let slow = spawn(move || {
        let mut received = vec![0; 80_000];
        for chunk in received.chunks_mut(8192) {
            std::thread::sleep(Duration::from_millis(5));
            PipeReader::read_exact(&mut host_reads, chunk).unwrap();
        }
        received
    });
    worker.flush_blocking(Instant::now() + TIMEOUT);
    assert!(slow.join().unwrap() == [noise(40_000, 9), noise(40_000, 9)].concat());
}

#[test]
fn a_flush_ends_even_while_the_guest_goes_on() {
    let mut fixture = Fixture::new(None, Output::discard());
    let stop = Arc::new(Mutex::new(false));
    let stopped = stop.clone();
    let guest = fixture.guest(move |driver| {
        while !*lock(&stopped) {
            driver.print(&[b'x'; 100]);
        }
    });
    let start = Instant::now();
    fixture
        .worker()
        .flush_blocking(start + Duration::from_millis(50));
    assert!(start.elapsed() < TIMEOUT);
    *lock(&stop) = true;
    fixture.join(guest);
}

/// Keeps what it hears.
#[derive(Clone, Debug, Default)]
struct Heard(Arc<Mutex<Vec<u8>>>);

impl Listener for Heard {
    fn printed(&mut self, bytes: &[u8]) {
        lock(&self.0).extend(bytes);
    }
}

#[test]
fn someone_beside_the_terminal_hears_all_and_types() {
    const TYPED: usize = 10 * TYPED_MAX;
    let (guest_reads, mut host_writes) = pipe().unwrap();
    let heard = Heard::default();
    let keyboard = Keyboard::new().unwrap();
    let input = Input::new(guest_reads.into()).with_keyboard(keyboard.clone());
    let output = Output::discard().with_listener(Box::new(heard.clone()));
    let mut fixture = Fixture::with_ends(Some(input), output, Box::new(Transparent));
    host_writes.write_all(b"from the pipe").unwrap();
    let typist = spawn(move || {
        let text = noise(TYPED, 3);
        let mut left = &text[..];
        while !left.is_empty() {
            left = &left[keyboard.type_in(left)..];
            std::thread::yield_now();
        }
        text
    });
    let sent = noise(MIB / 16, 4);
    let to_host = sent.clone();
    let guest = fixture.guest(move |driver| {
        driver.open();
        driver.start_sending(to_host);
        driver.run_until_received(TYPED + 13);
        driver.received.clone()
    });
    let mut received = fixture.join(guest);
    let typed = typist.join().unwrap();
    // The two are not mixed in the midst of a read.
    let at = received
        .windows(13)
        .position(|text| text == b"from the pipe");
    received.drain(at.unwrap()..at.unwrap() + 13);
    assert!(received == typed);
    fixture.serve_until(|_| lock(&heard.0).len() == sent.len());
    assert!(*lock(&heard.0) == sent);
    assert!(fixture.serve_until_quiet() < 10);
}

#[test]
fn a_keyboard_is_enough_and_holds_so_much_for_a_guest_that_does_not_listen() {
    let keyboard = Keyboard::new().unwrap();
    let input = Input::keyboard(keyboard.clone());
    let mut fixture = Fixture::with_ends(Some(input), Output::discard(), Box::new(Transparent));
    for _ in 0..10 {
        keyboard.type_in(&[b'x'; TYPED_MAX]);
        fixture.serve_until_quiet();
    }
    // All is full, and nothing spins.
    assert_eq!(keyboard.type_in(b"y"), 0);
    assert_eq!(fixture.worker().source.held(), HELD_MAX);
    let guest = fixture.guest(|driver| {
        driver.open();
        driver.run_until_received(HELD_MAX + TYPED_MAX);
        driver.received.clone()
    });
    assert!(fixture.join(guest).iter().all(|&byte| byte == b'x'));
}

/// Has a guest send this, and serves until all of it is gone.
fn send(fixture: &mut Fixture, bytes: Vec<u8>) {
    let guest = fixture.guest(move |driver| {
        driver.open();
        driver.start_sending(bytes);
        driver.run_until_received(0);
    });
    fixture.join(guest);
    fixture.serve_until(|fixture| is_empty(&lock(&fixture.serial)));
}

#[test]
fn what_is_beyond_the_limit_is_dropped_and_counted() {
    let (host_reads, guest_writes) = pipe().unwrap();
    let mut fixture = Fixture::new(None, Output::new(guest_writes.into()).unwrap());
    // A bucket that is not refilled while this test lasts.
    let bucket = Bucket::new(5000, 1_000_000_000, 1000);
    fixture.worker().meter = bucket.map(Meter::new);
    let sent = noise(100_000, 3);
    send(&mut fixture, sent.clone());
    let counters = lock(&fixture.serial).counters();
    assert_eq!((counters.writes, counters.rate_limited), (100_000, 94_000));
    assert_eq!((counters.missed_writes, counters.lost), (0, 0));
    assert!(counters.flushes > 0);
    assert!(reader(host_reads, 6000).join().unwrap() == sent[..6000]);
    // The end of what it sent is known all the same: it may say why the guest ended.
    assert!(fixture.worker().tail() == sent[100_000 - TAIL_SIZE..]);
}

#[test]
fn a_fifo_needs_no_reader_and_holds_no_guest_back() {
    let directory = vmm_sys_util::tempdir::TempDir::new().unwrap();
    let path = directory.as_path().join("fifo");
    let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: the pointer is to a string with its end.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    let mut fixture = Fixture::new(None, Output::lossy(&path).unwrap());
    let sent = noise(300_000, 4);
    send(&mut fixture, sent.clone());
    let counters = lock(&fixture.serial).counters();
    assert_eq!((counters.writes, counters.missed_writes), (300_000, 0));
    assert_eq!(counters.errors, 0);
    let kept = sent.len() - usize::try_from(counters.lost).unwrap();
    assert!((4096..sent.len()).contains(&kept), "{kept}");
    // Whoever comes late reads what there was room for, and then what comes now.
    let mut late = File::open(&path).unwrap();
    let mut bytes = vec![0; kept];
    late.read_exact(&mut bytes).unwrap();
    // At the end, small pieces may have fitted where large ones did not.
    assert!(bytes[..4096] == sent[..4096]);
    for byte in b"more" {
        crate::bus::BusDevice::write(&mut *lock(&fixture.serial), 0, &[*byte]);
    }
    let mut bytes = [0; 4];
    fixture.serve_until(|fixture| is_empty(&lock(&fixture.serial)));
    late.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, *b"more");
}

#[test]
fn a_lossy_file_is_made_and_appended_to() {
    let directory = vmm_sys_util::tempdir::TempDir::new().unwrap();
    let path = directory.as_path().join("log");
    for _ in 0..2 {
        let mut fixture = Fixture::new(None, Output::lossy(&path).unwrap());
        send(&mut fixture, b"line\n".to_vec());
        assert_eq!(lock(&fixture.serial).counters().lost, 0);
    }
    assert_eq!(std::fs::read(&path).unwrap(), b"line\nline\n");
    assert!(Output::lossy(directory.as_path()).is_err());
}
