//! Load that is measured: as many operations as one asks for, and how long they took. Nothing of the data
//! is checked, as that would take longer than what is measured.

#![expect(unsafe_code, reason = "operations are given to io_uring by address")]

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, types};
use rustix::fs::OFlags;

use crate::pattern::Random;

/// O_DIRECT wants buffers aligned like this at most.
const ALIGNMENT: usize = 4096;
/// Bytes a read or write of a stream.
const CHUNK: usize = 128 << 10;
/// What a client of a stream asks for: a kind, and how much.
const REQUEST_SIZE: usize = 9;

/// What was done.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Blocks, or round trips.
    pub operations: u64,
    /// Bytes in all.
    pub bytes: u64,
    /// From the first to the last of them.
    pub time: Duration,
}

/// Load for a disk or file.
#[derive(Clone, Debug)]
pub struct DiskLoad {
    /// The disk.
    pub path: PathBuf,
    /// Writes, or reads.
    pub write: bool,
    /// One block after the other, or in any order.
    pub sequential: bool,
    /// Without the page cache.
    pub direct: bool,
    /// Bytes of a block.
    pub block: usize,
    /// Operations at a time. A single one is an ordinary system call, more are io_uring's.
    pub depth: usize,
    /// Operations in all.
    pub operations: u64,
}

impl DiskLoad {
    /// Makes ready, calls `start`, and works.
    pub fn run(&self, start: impl FnOnce() -> io::Result<()>) -> io::Result<Outcome> {
        let flags = if self.direct {
            OFlags::DIRECT
        } else {
            OFlags::empty()
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(self.write)
            .custom_flags(flags.bits().cast_signed())
            .open(&self.path)?;
        let blocks = file.seek(SeekFrom::End(0))? / self.block as u64;
        if blocks == 0 || self.depth == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut memory = vec![0x5a_u8; self.block * self.depth + ALIGNMENT];
        let aligned = memory.as_ptr().align_offset(ALIGNMENT);
        let buffers = &mut memory[aligned..aligned + self.block * self.depth];
        let mut random = Random::new(1);
        let block = self.block as u64;
        let sequential = self.sequential;
        let mut number = 0;
        let offset = || {
            let next = if sequential {
                number
            } else {
                random.below(blocks)
            };
            number = (number + 1) % blocks;
            next * block
        };
        let begin;
        if self.depth == 1 {
            start()?;
            begin = Instant::now();
            self.one_at_a_time(&file, buffers, offset)?;
        } else {
            let depth = u32::try_from(self.depth).map_err(io::Error::other)?;
            let ring = IoUring::new(depth.next_power_of_two())?;
            start()?;
            begin = Instant::now();
            self.many(&file, ring, buffers, offset)?;
        }
        Ok(Outcome {
            operations: self.operations,
            bytes: self.operations * block,
            time: begin.elapsed(),
        })
    }

    fn one_at_a_time(
        &self,
        file: &File,
        buffer: &mut [u8],
        mut offset: impl FnMut() -> u64,
    ) -> io::Result<()> {
        for _ in 0..self.operations {
            if self.write {
                file.write_all_at(buffer, offset())?;
            } else {
                file.read_exact_at(buffer, offset())?;
            }
        }
        Ok(())
    }

    fn many(
        &self,
        file: &File,
        mut ring: IoUring,
        buffers: &mut [u8],
        mut offset: impl FnMut() -> u64,
    ) -> io::Result<()> {
        let fd = types::Fd(file.as_raw_fd());
        let length = u32::try_from(self.block).map_err(io::Error::other)?;
        let mut free: Vec<u64> = (0..self.depth as u64).collect();
        let mut left = self.operations;
        let mut in_flight = 0_u64;
        while left + in_flight > 0 {
            while left > 0
                && let Some(slot) = free.pop()
            {
                let buffer = buffers[slot as usize * self.block..].as_mut_ptr();
                let entry = if self.write {
                    opcode::Write::new(fd, buffer, length)
                        .offset(offset())
                        .build()
                } else {
                    opcode::Read::new(fd, buffer, length)
                        .offset(offset())
                        .build()
                };
                // SAFETY: the slot's part of `buffers` is nobody else's until the operation has ended,
                // and all have when this function returns, but for an error, which ends the process.
                let pushed = unsafe { ring.submission().push(&entry.user_data(slot)) };
                pushed.map_err(io::Error::other)?;
                left -= 1;
                in_flight += 1;
            }
            ring.submit_and_wait(1)?;
            for completion in ring.completion() {
                if completion.result() != length.cast_signed() {
                    eprintln!("a block ended with {}", completion.result());
                    std::process::abort();
                }
                in_flight -= 1;
                free.push(completion.user_data());
            }
        }
        Ok(())
    }
}

/// What happens on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamKind {
    /// The client sends so many bytes.
    Send,
    /// The server does.
    Receive,
    /// A byte goes to and fro so many times.
    RoundTrip,
}

impl StreamKind {
    /// All of them, by their names.
    pub const ALL: [(&'static str, Self); 3] = [
        ("send", Self::Send),
        ("receive", Self::Receive),
        ("round-trip", Self::RoundTrip),
    ];
}

/// Does the client's half on `stream`; `amount` is bytes or round trips.
pub fn stream_client(
    stream: &mut TcpStream,
    kind: StreamKind,
    amount: u64,
    start: impl FnOnce() -> io::Result<()>,
) -> io::Result<Outcome> {
    stream.set_nodelay(true)?;
    start()?;
    let begin = Instant::now();
    let mut request = [0; REQUEST_SIZE];
    request[0] = kind as u8;
    request[1..].copy_from_slice(&amount.to_le_bytes());
    stream.write_all(&request)?;
    let (operations, bytes) = match kind {
        StreamKind::Send => {
            send(stream, amount)?;
            // All of it has arrived.
            stream.read_exact(&mut [0])?;
            (1, amount)
        }
        StreamKind::Receive => {
            receive(stream, amount)?;
            (1, amount)
        }
        StreamKind::RoundTrip => {
            for _ in 0..amount {
                stream.write_all(&[1])?;
                stream.read_exact(&mut [0])?;
            }
            (amount, 2 * amount)
        }
    };
    Ok(Outcome {
        operations,
        bytes,
        time: begin.elapsed(),
    })
}

/// Serves clients on threads, for as long as the process lives.
pub fn serve_streams(listener: TcpListener) {
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            // A client that went away is no matter.
            thread::spawn(move || serve(&mut stream));
        }
    });
}

fn serve(stream: &mut TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut request = [0; REQUEST_SIZE];
    stream.read_exact(&mut request)?;
    let mut amount = [0; 8];
    amount.copy_from_slice(&request[1..]);
    let amount = u64::from_le_bytes(amount);
    match StreamKind::ALL.get(usize::from(request[0])) {
        Some((_, StreamKind::Send)) => {
            receive(stream, amount)?;
            stream.write_all(&[1])
        }
        Some((_, StreamKind::Receive)) => send(stream, amount),
        Some((_, StreamKind::RoundTrip)) => {
            for _ in 0..amount {
                stream.read_exact(&mut [0])?;
                stream.write_all(&[1])?;
            }
            Ok(())
        }
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn send(stream: &mut TcpStream, amount: u64) -> io::Result<()> {
    let chunk = vec![0x5a; CHUNK];
    let mut left = amount;
    while left > 0 {
        let now = left.min(CHUNK as u64);
        stream.write_all(&chunk[..now as usize])?;
        left -= now;
    }
    Ok(())
}

fn receive(stream: &mut TcpStream, amount: u64) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    let mut left = amount;
    while left > 0 {
        let now = left.min(CHUNK as u64);
        match stream.read(&mut chunk[..now as usize])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => left -= count as u64,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        serve_streams(listener);
        for (_, kind) in StreamKind::ALL {
            let mut stream = TcpStream::connect(address).unwrap();
            let outcome = stream_client(&mut stream, kind, 1000, || Ok(())).unwrap();
            assert!(outcome.bytes >= 1000, "{outcome:?}");
        }
    }

    #[test]
    fn disks() {
        let path = std::env::temp_dir().join(format!("load-{}", std::process::id()));
        std::fs::write(&path, [0; 64 << 10]).unwrap();
        for (depth, sequential) in [(1, true), (1, false), (8, true), (8, false)] {
            for write in [true, false] {
                let load = DiskLoad {
                    path: path.clone(),
                    write,
                    sequential,
                    direct: false,
                    block: 4096,
                    depth,
                    operations: 100,
                };
                // A host without io_uring.
                let Ok(outcome) = load.run(|| Ok(())) else {
                    assert!(depth > 1);
                    continue;
                };
                assert_eq!(outcome.bytes, 100 * 4096);
            }
        }
        // Every block was written.
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(bytes.iter().all(|&byte| byte == 0x5a));
    }
}
