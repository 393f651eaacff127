//! A protocol that moves checked data through a stream, whatever carries it.
//!
//! A client sends a [`Request`]; then bytes of a [`Pattern`] go one way, or both, and whoever gets them
//! checks each.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::pattern::Pattern;

/// Bytes a read or write.
const CHUNK: usize = 64 << 10;
const MAGIC: u32 = 0x6d6f_7465;
const REQUEST_SIZE: usize = 24;
/// Threads that do nothing but copy: a thousand of them fit into a small guest.
const STACK_SIZE: usize = 256 << 10;

/// Something with two directions.
pub trait Stream: Read + Write + Send {
    /// A second handle to the same connection.
    fn duplicate(&self) -> io::Result<Box<dyn Stream>>;
    /// Sends the end of this direction.
    fn finish(&self) -> io::Result<()>;
}

impl Stream for TcpStream {
    fn duplicate(&self) -> io::Result<Box<dyn Stream>> {
        Ok(Box::new(self.try_clone()?))
    }

    fn finish(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

impl Stream for UnixStream {
    fn duplicate(&self) -> io::Result<Box<dyn Stream>> {
        Ok(Box::new(self.try_clone()?))
    }

    fn finish(&self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The client; the server answers with how much arrived.
    Send,
    /// The server.
    Receive,
    /// Both at once.
    Both,
    /// The client, up to the end of its direction; after that the server.
    HalfClose,
}

impl Mode {
    const ALL: [(&'static str, Self); 4] = [
        ("send", Self::Send),
        ("receive", Self::Receive),
        ("both", Self::Both),
        ("half-close", Self::HalfClose),
    ];

    /// By its name on a command line.
    pub fn from_name(name: &str) -> Option<Self> {
        let found = Self::ALL.iter().find(|(known, _)| *known == name)?;
        Some(found.1)
    }
}

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Who sends.
    pub mode: Mode,
    /// What the client sends; the server sends that of the next seed.
    pub seed: u64,
    /// Bytes in each direction that has any.
    pub length: u64,
}

impl Request {
    fn encode(&self) -> [u8; REQUEST_SIZE] {
        let mut bytes = [0; REQUEST_SIZE];
        bytes[..4].copy_from_slice(&MAGIC.to_le_bytes());
        let mode = Mode::ALL.iter().position(|(_, mode)| *mode == self.mode);
        bytes[4] = mode.unwrap_or_default() as u8;
        bytes[8..16].copy_from_slice(&self.seed.to_le_bytes());
        bytes[16..].copy_from_slice(&self.length.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; REQUEST_SIZE]) -> io::Result<Self> {
        let word = |start: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[start..start + 8]);
            u64::from_le_bytes(word)
        };
        let mode = Mode::ALL.get(usize::from(bytes[4]));
        match mode {
            Some(&(_, mode)) if bytes[..4] == MAGIC.to_le_bytes() => Ok(Self {
                mode,
                seed: word(8),
                length: word(16),
            }),
            _ => Err(wrong("this is no request")),
        }
    }
}

fn wrong(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

fn send(stream: &mut dyn Stream, seed: u64, length: u64) -> io::Result<()> {
    let pattern = Pattern::new(seed);
    let mut buffer = vec![0; CHUNK];
    let mut sent = 0;
    while sent < length {
        let size = (length - sent).min(CHUNK as u64) as usize;
        pattern.fill(sent, &mut buffer[..size]);
        stream.write_all(&buffer[..size])?;
        sent += size as u64;
    }
    stream.flush()
}

fn receive(stream: &mut dyn Stream, seed: u64, length: u64) -> io::Result<()> {
    let pattern = Pattern::new(seed);
    let mut buffer = vec![0; CHUNK];
    let mut received = 0;
    while received < length {
        let size = (length - received).min(CHUNK as u64) as usize;
        let count = stream.read(&mut buffer[..size])?;
        if count == 0 {
            return Err(wrong(format!(
                "the end came after {received} of {length} bytes"
            )));
        }
        pattern
            .compare(received, &buffer[..count])
            .map_err(|mismatch| wrong(mismatch.to_string()))?;
        received += count as u64;
    }
    Ok(())
}

fn expect_end(stream: &mut dyn Stream) -> io::Result<()> {
    match stream.read(&mut [0])? {
        0 => Ok(()),
        _ => Err(wrong("there is more than was agreed on")),
    }
}

fn both(stream: &mut dyn Stream, sent: u64, received: u64, length: u64) -> io::Result<()> {
    let mut other = stream.duplicate()?;
    let sender = thread::Builder::new()
        .stack_size(STACK_SIZE)
        .spawn(move || send(&mut *other, sent, length))?;
    let result = receive(stream, received, length);
    let sender = sender.join().map_err(|_| wrong("the sender panicked"))?;
    result.and(sender)
}

fn expect_answer(stream: &mut dyn Stream, length: u64) -> io::Result<()> {
    let mut answer = [0; 8];
    stream.read_exact(&mut answer)?;
    match u64::from_le_bytes(answer) {
        count if count == length => Ok(()),
        count => Err(wrong(format!("{count} of {length} bytes arrived"))),
    }
}

/// The client's half of a transfer.
pub fn request(stream: &mut dyn Stream, request: Request) -> io::Result<()> {
    let Request { mode, seed, length } = request;
    let answered = seed.wrapping_add(1);
    stream.write_all(&request.encode())?;
    match mode {
        Mode::Send => {
            send(stream, seed, length)?;
            expect_answer(stream, length)
        }
        Mode::Receive => {
            receive(stream, answered, length)?;
            expect_end(stream)
        }
        Mode::Both => {
            both(stream, seed, answered, length)?;
            expect_answer(stream, length)
        }
        Mode::HalfClose => {
            send(stream, seed, length)?;
            stream.finish()?;
            receive(stream, answered, length)?;
            expect_end(stream)
        }
    }
}

/// The server's half.
pub fn serve(stream: &mut dyn Stream) -> io::Result<Request> {
    let mut bytes = [0; REQUEST_SIZE];
    stream.read_exact(&mut bytes)?;
    let request = Request::decode(&bytes)?;
    let Request { mode, seed, length } = request;
    let answered = seed.wrapping_add(1);
    match mode {
        Mode::Send => {
            receive(stream, seed, length)?;
            stream.write_all(&length.to_le_bytes())?;
        }
        Mode::Receive => send(stream, answered, length)?,
        Mode::Both => {
            both(stream, answered, seed, length)?;
            stream.write_all(&length.to_le_bytes())?;
        }
        Mode::HalfClose => {
            receive(stream, seed, length)?;
            expect_end(stream)?;
            send(stream, answered, length)?;
        }
    }
    stream.flush()?;
    Ok(request)
}

/// Opens so many connections, holds them all, and makes a transfer on each, on `workers` threads.
pub fn request_many<C>(
    connections: usize,
    workers: usize,
    first: Request,
    connect: C,
) -> io::Result<()>
where
    C: Fn() -> io::Result<Box<dyn Stream>> + Sync,
{
    let mut open = Vec::new();
    for number in 0..connections {
        let stream = connect().map_err(|error| {
            io::Error::new(error.kind(), format!("connection {number}: {error}"))
        })?;
        open.push(Mutex::new(Some(stream)));
    }
    let next = AtomicUsize::new(0);
    let work = || -> io::Result<()> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(slot) = open.get(number) else {
                return Ok(());
            };
            let stream = slot.lock().map_err(|_| wrong("a worker panicked"))?.take();
            let mut stream = stream.ok_or_else(|| wrong("taken twice"))?;
            let seed = first.seed.wrapping_add(2 * number as u64);
            request(&mut *stream, Request { seed, ..first }).map_err(|error| {
                io::Error::new(error.kind(), format!("connection {number}: {error}"))
            })?;
        }
    };
    thread::scope(|scope| {
        let workers = (0..workers.max(1)).map(|_| scope.spawn(work));
        let workers: Vec<_> = workers.collect();
        workers.into_iter().try_for_each(|worker| {
            worker
                .join()
                .unwrap_or_else(|_| Err(wrong("a worker panicked")))
        })
    })
}

/// Serves so many connections, each on a thread of its own, and waits for their ends.
pub fn serve_many(
    connections: usize,
    mut accept: impl FnMut() -> io::Result<Box<dyn Stream>>,
) -> io::Result<()> {
    let mut threads = Vec::new();
    for _ in 0..connections {
        let mut stream = accept()?;
        let thread = thread::Builder::new()
            .stack_size(STACK_SIZE)
            .spawn(move || serve(&mut *stream).map(drop))?;
        threads.push(thread);
    }
    threads.into_iter().try_for_each(|thread| {
        thread
            .join()
            .unwrap_or_else(|_| Err(wrong("a connection's thread panicked")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transfer(mode: Mode, length: u64) -> io::Result<Request> {
        let (mut client, mut server) = UnixStream::pair()?;
        let server = thread::spawn(move || serve(&mut server));
        let asked = Request {
            mode,
            seed: 5,
            length,
        };
        request(&mut client, asked)?;
        drop(client);
        server.join().map_err(|_| wrong("panicked"))?
    }

    #[test]
    fn every_mode() {
        for (_, mode) in Mode::ALL {
            for length in [0, 1, 511, 300_000] {
                assert_eq!(transfer(mode, length).unwrap().length, length, "{mode:?}");
            }
        }
    }

    #[test]
    fn a_changed_byte_is_seen() {
        let (client, mut server) = UnixStream::pair().unwrap();
        let asked = Request {
            mode: Mode::Send,
            seed: 1,
            length: 2000,
        };
        let mut bytes = asked.encode().to_vec();
        bytes.resize(REQUEST_SIZE + 2000, 0);
        Pattern::new(1).fill(0, &mut bytes[REQUEST_SIZE..]);
        bytes[REQUEST_SIZE + 1234] ^= 4;
        (&client).write_all(&bytes).unwrap();
        let error = serve(&mut server).unwrap_err();
        assert!(
            error.to_string().contains("sector 2 is wrong: byte 210"),
            "{error}"
        );
    }

    #[test]
    fn many_at_once() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || serve_many(50, || Ok(Box::new(listener.accept()?.0))));
        let asked = Request {
            mode: Mode::Both,
            seed: 1,
            length: 10_000,
        };
        request_many(50, 4, asked, || Ok(Box::new(TcpStream::connect(address)?))).unwrap();
        server.join().unwrap().unwrap();
    }
}
