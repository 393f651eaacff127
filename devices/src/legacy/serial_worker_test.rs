//! The worker between pipes and files, with a guest-side driver that acts like Linux's.

use std::io::Read;
use std::os::fd::FromRawFd;
use std::time::Duration;

use event_manager::{EventManager, SubscriberOps};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::bus::BusDevice;
use crate::interrupt::InterruptLine;

struct NoLine;

impl InterruptLine for NoLine {
    fn set(&self, _: bool) {}
}

struct Pass;

impl InputFilter for Pass {
    fn filter(&mut self, input: &[u8], to_guest: &mut Vec<u8>) {
        to_guest.extend_from_slice(input);
    }
}

fn pipe() -> (OwnedFd, OwnedFd) {
    let mut fds = [0; 2];
    // SAFETY: an array of two, whose descriptors are new.
    unsafe {
        assert_eq!(libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC), 0);
        (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1]))
    }
}

fn serial() -> (Arc<Mutex<Serial>>, EventFd) {
    let ready = EventFd::new(EFD_NONBLOCK).unwrap();
    let serial = Serial::new(Arc::new(NoLine), ready.try_clone().unwrap());
    (Arc::new(Mutex::new(serial)), ready)
}

fn pattern(size: usize) -> Vec<u8> {
    let mut state = 1u32;
    (0..size)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect()
}

/// One pass of a driver: reads all there is, writes what it may.
fn drive(serial: &Mutex<Serial>, got: &mut Vec<u8>, send: &[u8], sent: &mut usize) {
    let mut byte = [0];
    for _ in 0..256 {
        let mut port = lock(serial);
        port.read(5, &mut byte);
        let status = byte[0];
        if status & 0x01 != 0 {
            port.read(0, &mut byte);
            got.push(byte[0]);
        }
        if status & 0x20 != 0 && *sent < send.len() {
            port.write(0, &send[*sent..=*sent]);
            *sent += 1;
        }
    }
}

#[test]
fn a_megabyte_goes_both_ways_unharmed() {
    const SIZE: usize = 1 << 20;
    let (serial, ready) = serial();
    let (input, mut host_writes) = pipe();
    let (host_reads, output) = pipe();
    let worker = SerialWorker::new(
        serial.clone(),
        ready,
        Some(Input::new(input)),
        Output::new(output).unwrap(),
        Box::new(Pass),
    )
    .unwrap();
    let (to_guest, to_host) = (pattern(SIZE), pattern(SIZE + 1));

    let writer = std::thread::spawn({
        let to_guest = to_guest.clone();
        move || {
            let mut file = File::from(std::mem::replace(&mut host_writes, pipe().1));
            file.write_all(&to_guest).unwrap();
        }
    });
    let reader = std::thread::spawn(move || {
        let mut received = vec![0; SIZE + 1];
        File::from(host_reads).read_exact(&mut received).unwrap();
        received
    });
    let guest = std::thread::spawn({
        let to_host = to_host.clone();
        move || {
            {
                let mut port = lock(&serial);
                port.write(2, &[0x01]);
                port.write(4, &[0x0b]);
                port.write(1, &[0x03]);
            }
            let (mut got, mut sent) = (Vec::new(), 0);
            while got.len() < SIZE || sent < to_host.len() {
                drive(&serial, &mut got, &to_host, &mut sent);
                std::thread::yield_now();
            }
            got
        }
    });
    let mut manager = EventManager::new().unwrap();
    let id = manager.add_subscriber(worker);
    while !guest.is_finished() || !reader.is_finished() {
        manager.run_with_timeout(10).unwrap();
    }
    writer.join().unwrap();
    assert!(guest.join().unwrap() == to_guest);
    assert!(reader.join().unwrap() == to_host);
    let worker = manager.remove_subscriber(id).unwrap();
    assert_eq!(worker.tail(), &to_host[to_host.len() - TAIL_SIZE..]);
}

#[test]
fn a_reader_that_does_not_read_delays_the_end_only_up_to_the_deadline() {
    let (serial, ready) = serial();
    let (_host_reads, output) = pipe();
    for _ in 0..60_000 {
        lock(&serial).write(0, b"x");
    }
    let mut worker = SerialWorker::new(
        serial.clone(),
        ready,
        None,
        Output::new(output).unwrap(),
        Box::new(Pass),
    )
    .unwrap();
    worker.flush_blocking(Instant::now() + Duration::from_secs(5));
    for _ in 0..60_000 {
        lock(&serial).write(0, b"x");
    }
    worker.flush_blocking(Instant::now() + Duration::from_millis(20));
    assert!(worker.written < worker.to_host.len());
}

#[test]
fn a_reader_that_went_away_does_not_stop_the_guest() {
    let (serial, ready) = serial();
    let (host_reads, output) = pipe();
    drop(host_reads);
    let mut worker = SerialWorker::new(
        serial.clone(),
        ready,
        None,
        Output::new(output).unwrap(),
        Box::new(Pass),
    )
    .unwrap();
    for _ in 0..200_000 {
        lock(&serial).write(0, b"x");
        worker.write_output();
    }
    assert_eq!(lock(&serial).overrun(), 0);
}

#[test]
fn a_file_is_read_to_its_end_as_the_guest_makes_room() {
    let (serial, ready) = serial();
    let path = std::env::temp_dir().join(format!("mote-serial-{}", std::process::id()));
    let content = pattern(30_000);
    std::fs::write(&path, &content).unwrap();
    let input = File::open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let worker = SerialWorker::new(
        serial.clone(),
        ready,
        Some(Input::new(input.into())),
        Output::discard(),
        Box::new(Pass),
    )
    .unwrap();
    let mut manager = EventManager::new().unwrap();
    manager.add_subscriber(worker);
    {
        let mut port = lock(&serial);
        port.write(2, &[0x01]);
        port.write(4, &[0x0b]);
        port.write(1, &[0x01]);
    }
    let (mut got, mut sent) = (Vec::new(), 0);
    while got.len() < content.len() {
        drive(&serial, &mut got, &[], &mut sent);
        manager.run_with_timeout(0).unwrap();
    }
    assert_eq!(got, content);
}
