use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;

use super::*;

fn attach(pty: &Pty) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK)
        .open(pty.path())
        .unwrap()
}

/// Reads until what was read ends like this. The kernel passes output on by itself, a little later.
fn read_until(mut reader: &File, end: &[u8]) -> Vec<u8> {
    let mut all = Vec::new();
    let mut buffer = [0; 4096];
    while !all.ends_with(end) {
        match reader.read(&mut buffer) {
            Ok(count) => all.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
    all
}

/// Writes as the event loop does: again when there is room again. That a reader has gone is known a
/// little later.
fn write_all(end: &PtyEnd, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match end.write(bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn bytes_go_both_ways_unchanged() {
    let pty = Pty::open().unwrap();
    let end = pty.end().unwrap();
    let mut reader = attach(&pty);
    let every: Vec<u8> = (0..=255).collect();
    write_all(&end, &every);
    assert_eq!(read_until(&reader, &[255]), every);
    reader.write_all(&every).unwrap();
    let mut received = Vec::new();
    let mut buffer = [0; 1000];
    while received.len() < 256 {
        match end.read(&mut buffer) {
            Ok(count) => received.extend_from_slice(&buffer[..count]),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
    assert_eq!(received, every);
}

#[test]
fn without_a_reader_output_goes_on_and_the_newest_is_kept() {
    let pty = Pty::open().unwrap();
    let end = pty.end().unwrap();
    for number in 0..10_000 {
        write_all(&end, format!("line {number}\n").as_bytes());
    }
    let seen = read_until(&attach(&pty), b"line 9999\n");
    assert!(seen.len() > 2000, "{}", seen.len());
    assert!(!seen.starts_with(b"line 0\n"));
}

#[test]
fn a_reader_that_does_not_read_is_waited_for_until_it_goes() {
    let pty = Pty::open().unwrap();
    let end = pty.end().unwrap();
    let reader = attach(&pty);
    let mut sent = 0;
    let error = loop {
        match end.write(&[b'x'; 1000]) {
            Ok(count) => sent += count,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    assert!(sent < 200_000);
    drop(reader);
    write_all(&end, &[b'y'; 100_000]);
    assert_eq!(
        end.read(&mut [0; 10]).unwrap_err().kind(),
        ErrorKind::WouldBlock
    );
}

#[test]
fn readers_come_and_go() {
    let pty = Pty::open().unwrap();
    let (input, output) = (pty.end().unwrap(), pty.end().unwrap());
    for number in 0..20 {
        let mut reader = attach(&pty);
        let text = format!("hello {number}\n");
        write_all(&output, text.as_bytes());
        assert!(read_until(&reader, text.as_bytes()).ends_with(text.as_bytes()));
        if number % 2 == 0 {
            // So slow that it is noticed.
            while output.write(&[b'x'; 1000]).is_ok() {}
        }
        reader.write_all(b"k").unwrap();
        let mut key = [0];
        while input.read(&mut key).is_err() {}
        assert_eq!(key, *b"k");
        drop(reader);
        // Nobody is there, and that is no error.
        assert_eq!(
            input.read(&mut key).unwrap_err().kind(),
            ErrorKind::WouldBlock
        );
        write_all(&output, &[b'z'; 50_000]);
    }
}
