//! A client of the API: one request over the socket, waited for.
//!
//! [`request`] is for all that is answered at once, [`stream`] for lines that keep coming, [`upgrade`] for the console.
//! A connection serves one request. The head of an answer is parsed by `httparse`.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde_json::Value;

/// Bytes of an answer before its body.
const MAX_HEAD: usize = 64 << 10;
/// Headers of an answer.
const MAX_HEADERS: usize = 64;
/// Bytes of a body that [`request`] reads.
const MAX_BODY: u64 = 64 << 20;
/// Bytes of a line of [`stream`].
const MAX_EVENT: usize = 1 << 20;
/// Bytes of the line before a chunk, and of trailers.
const MAX_LINE: u64 = 4 << 10;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody is there.
    #[error("Cannot connect to {}", .path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The connection broke.
    #[error("The connection to the monitor broke")]
    Broken {
        /// How.
        #[source]
        source: io::Error,
    },
    /// There was no answer in time.
    #[error("The monitor did not answer in time")]
    TimedOut,
    /// What came is not HTTP, or more than anyone wants.
    #[error("The monitor's answer cannot be read: {reason}")]
    Unreadable {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The method or path cannot be sent.
    #[error("Not a method and a path: {method:?} {path:?}")]
    NotARequest {
        /// The method.
        method: String,
        /// The path.
        path: String,
    },
    /// A stream or another protocol was asked for, and this was answered instead.
    #[error("The monitor refused with status {}: {}", .0.status, .0.fault().unwrap_or_default())]
    Refused(Answer),
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Status.
    pub status: u16,
    /// Names, as they were sent, and values.
    pub headers: Vec<(String, String)>,
    /// The body; empty if there is none.
    pub body: Vec<u8>,
}

impl Answer {
    /// The first header of this name, in whatever case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        let (_, value) = headers.find(|(found, _)| found.eq_ignore_ascii_case(name))?;
        Some(value)
    }

    /// Whether the request succeeded.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// Its `fault_message`, if it has one.
    pub fn fault(&self) -> Option<String> {
        let body: Value = serde_json::from_slice(&self.body).ok()?;
        Some(body.get("fault_message")?.as_str()?.to_owned())
    }
}

/// Makes a request and waits for the whole answer, `timeout` at most.
pub fn request(
    socket: &Path,
    method: &str,
    path: &str,
    body: Option<&[u8]>,
    timeout: Duration,
) -> Result<Answer, Error> {
    let mut connection = Connection::open(socket, timeout)?;
    connection.send(method, path, "Connection: close\r\n", body)?;
    let mut answer = connection.head()?;
    connection.read_body(method, &mut answer)?;
    Ok(answer)
}

/// Asks for a stream of lines; `timeout` is for its beginning. What is answered instead is [`Error::Refused`].
pub fn stream(socket: &Path, path: &str, timeout: Duration) -> Result<Lines, Error> {
    let mut connection = Connection::open(socket, timeout)?;
    connection.send("GET", path, "Connection: close\r\n", None)?;
    let mut answer = connection.head()?;
    if answer.status != 200 {
        connection.read_body("GET", &mut answer)?;
        return Err(Error::Refused(answer));
    }
    let framing = Framing::of("GET", &answer)?;
    connection.reader.get_mut().deadline = None;
    Ok(Lines {
        body: Body {
            reader: connection.reader,
            framing,
        },
        is_over: false,
    })
}

/// Asks for a change of protocol; `timeout` is for the answer. One that is no change is [`Error::Refused`].
pub fn upgrade(
    socket: &Path,
    path: &str,
    protocol: &str,
    timeout: Duration,
) -> Result<Upgraded, Error> {
    let mut connection = Connection::open(socket, timeout)?;
    let headers = format!("Connection: Upgrade\r\nUpgrade: {protocol}\r\n");
    connection.send("GET", path, &headers, None)?;
    let mut answer = connection.head()?;
    if answer.status != 101 {
        connection.read_body("GET", &mut answer)?;
        return Err(Error::Refused(answer));
    }
    let early = connection.reader.buffer().to_vec();
    let backlog = answer.header("Mote-Backlog").map(str::parse);
    let backlog = backlog.and_then(Result::ok).unwrap_or(0);
    let stream = connection.reader.into_inner().stream;
    let no_timeout = |stream: &UnixStream| {
        stream.set_read_timeout(None)?;
        stream.set_write_timeout(None)
    };
    no_timeout(&stream).map_err(broken)?;
    Ok(Upgraded {
        stream,
        early,
        backlog,
    })
}

/// A connection that speaks another protocol now.
#[derive(Debug)]
pub struct Upgraded {
    /// The socket, blocking and without time limits.
    pub stream: UnixStream,
    /// What came after the answer, to be read before the socket.
    pub early: Vec<u8>,
    /// So many bytes, `early` included, are of before, and come in any case.
    pub backlog: u64,
}

/// Lines as they come. It ends with the monitor, or after an error.
#[derive(Debug)]
pub struct Lines {
    body: Body,
    is_over: bool,
}

impl Lines {
    /// A second handle of the socket, by which another thread can poll it, or shut it down to end this.
    pub fn try_clone_socket(&self) -> io::Result<UnixStream> {
        self.body.reader.get_ref().stream.try_clone()
    }

    /// The next line, without its line feed.
    fn read_line(&mut self) -> Result<Option<String>, Error> {
        let mut line = Vec::new();
        let mut byte = [0];
        loop {
            // The body has a buffer.
            match self.body.read(&mut byte).map_err(broken)? {
                0 if line.is_empty() => return Ok(None),
                0 => break,
                _ if byte == *b"\n" => break,
                _ if line.len() >= MAX_EVENT => return unreadable("a line is too long"),
                _ => line.push(byte[0]),
            }
        }
        Ok(Some(String::from_utf8_lossy(&line).into_owned()))
    }
}

impl Iterator for Lines {
    type Item = Result<String, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_over {
            return None;
        }
        let line = self.read_line().transpose();
        self.is_over = !matches!(line, Some(Ok(_)));
        line
    }
}

/// A connection with a time limit.
struct Connection {
    reader: BufReader<Timed>,
}

/// A socket that is read until a deadline.
#[derive(Debug)]
struct Timed {
    stream: UnixStream,
    deadline: Option<Instant>,
}

impl Timed {
    /// What is left of the time.
    fn left(&self) -> io::Result<Option<Duration>> {
        let Some(deadline) = self.deadline else {
            return Ok(None);
        };
        match deadline.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(ErrorKind::TimedOut.into()),
            left => Ok(Some(left)),
        }
    }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.left()?;
        self.stream.set_read_timeout(left)?;
        self.stream.read(buffer)
    }
}

impl Connection {
    fn open(path: &Path, timeout: Duration) -> Result<Self, Error> {
        let connect = || -> Result<UnixStream, Errno> {
            let address = SocketAddrUnix::new(path)?;
            let socket = rustix::net::socket_with(
                AddressFamily::UNIX,
                SocketType::STREAM,
                SocketFlags::CLOEXEC,
                None,
            )?;
            // Also of connecting, to one whose queue is full.
            let limit = timeout.max(Duration::from_millis(1));
            set_socket_timeout(&socket, Timeout::Send, Some(limit))?;
            rustix::net::connect(&socket, &address)?;
            Ok(socket.into())
        };
        let stream = connect().map_err(|errno| match errno {
            Errno::AGAIN => Error::TimedOut,
            errno => Error::Connect {
                path: path.to_owned(),
                source: errno.into(),
            },
        })?;
        let deadline = Instant::now().checked_add(timeout);
        Ok(Self {
            reader: BufReader::new(Timed { stream, deadline }),
        })
    }

    fn send(
        &mut self,
        method: &str,
        path: &str,
        headers: &str,
        body: Option<&[u8]>,
    ) -> Result<(), Error> {
        let is_plain =
            |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        if !is_plain(method) || !is_plain(path) {
            return Err(Error::NotARequest {
                method: method.to_owned(),
                path: path.to_owned(),
            });
        }
        let mut text = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}");
        if let Some(body) = body {
            let length = body.len();
            text += &format!("Content-Type: application/json\r\nContent-Length: {length}\r\n");
        }
        let mut bytes = (text + "\r\n").into_bytes();
        bytes.extend_from_slice(body.unwrap_or_default());
        let mut stream = &self.reader.get_ref().stream;
        match stream.write_all(&bytes) {
            // It may have refused the body without reading it: the answer says so.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
            result => result.map_err(broken),
        }
    }

    /// The head of the answer, without those that only say that another will come.
    fn head(&mut self) -> Result<Answer, Error> {
        loop {
            let head = self.read_head()?;
            let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
            let mut parsed = httparse::Response::new(&mut headers);
            match parsed.parse(&head) {
                Ok(httparse::Status::Complete(_)) => {}
                Ok(httparse::Status::Partial) | Err(_) => return unreadable("it is not HTTP"),
            }
            let status = parsed.code.unwrap_or_default();
            if matches!(status, 100 | 102..200) {
                continue;
            }
            let text = |header: &httparse::Header<'_>| {
                let value = String::from_utf8_lossy(header.value).into_owned();
                (header.name.to_owned(), value)
            };
            return Ok(Answer {
                status,
                headers: parsed.headers.iter().map(text).collect(),
                body: Vec::new(),
            });
        }
    }

    /// Lines up to an empty one.
    fn read_head(&mut self) -> Result<Vec<u8>, Error> {
        let mut head = Vec::new();
        loop {
            let before = head.len();
            let room = (MAX_HEAD - before) as u64;
            let mut reader = (&mut self.reader).take(room);
            reader.read_until(b'\n', &mut head).map_err(broken)?;
            if !head.ends_with(b"\n") {
                return unreadable("its head is cut off, or too long");
            }
            if matches!(&head[before..], b"\r\n" | b"\n") {
                return Ok(head);
            }
        }
    }

    fn read_body(self, method: &str, answer: &mut Answer) -> Result<(), Error> {
        let body = Body {
            framing: Framing::of(method, answer)?,
            reader: self.reader,
        };
        let mut limited = body.take(MAX_BODY + 1);
        let length = limited.read_to_end(&mut answer.body).map_err(broken)?;
        if length as u64 > MAX_BODY {
            return unreadable("its body is too large");
        }
        Ok(())
    }
}

/// How the end of a body is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    /// So many bytes are left.
    Length(u64),
    /// The next line says how long the next chunk is; the flag is whether another one has just ended.
    NextChunk(bool),
    /// So many bytes are left of a chunk.
    Chunk(u64),
    /// By the end of the connection.
    Connection,
}

impl Framing {
    fn of(method: &str, answer: &Answer) -> Result<Self, Error> {
        if method == "HEAD" || matches!(answer.status, 204 | 304) {
            return Ok(Self::Length(0));
        }
        if let Some(coding) = answer.header("Transfer-Encoding") {
            if !coding.eq_ignore_ascii_case("chunked") {
                return unreadable("its body is coded in an unknown way");
            }
            return Ok(Self::NextChunk(false));
        }
        match answer.header("Content-Length").map(str::parse) {
            Some(Ok(length)) => Ok(Self::Length(length)),
            Some(Err(_)) => unreadable("its length is not a number"),
            None => Ok(Self::Connection),
        }
    }
}

/// A body, without its chunks' lengths.
#[derive(Debug)]
struct Body {
    reader: BufReader<Timed>,
    framing: Framing,
}

impl Body {
    fn line(&mut self) -> io::Result<Vec<u8>> {
        let mut line = Vec::new();
        let mut reader = (&mut self.reader).take(MAX_LINE);
        reader.read_until(b'\n', &mut line)?;
        if line.ends_with(b"\n") {
            return Ok(line);
        }
        Err(ErrorKind::UnexpectedEof.into())
    }

    fn next_chunk(&mut self, has_ended: bool) -> io::Result<Framing> {
        if has_ended && self.line()? != b"\r\n" {
            return Err(ErrorKind::InvalidData.into());
        }
        let line = self.line()?;
        let Ok(httparse::Status::Complete((_, length))) = httparse::parse_chunk_size(&line) else {
            return Err(ErrorKind::InvalidData.into());
        };
        if length > 0 {
            return Ok(Framing::Chunk(length));
        }
        // Trailers, of which nobody wants to know.
        while self.line()? != b"\r\n" {}
        Ok(Framing::Length(0))
    }
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Framing::NextChunk(has_ended) = self.framing {
            self.framing = self.next_chunk(has_ended)?;
        }
        let left = match self.framing {
            Framing::Length(left) | Framing::Chunk(left) => left,
            Framing::Connection | Framing::NextChunk(_) => return self.reader.read(buffer),
        };
        let room = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        if room == 0 {
            return Ok(0);
        }
        let count = self.reader.read(&mut buffer[..room])?;
        if count == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let left = left - count as u64;
        self.framing = match self.framing {
            Framing::Chunk(_) if left == 0 => Framing::NextChunk(true),
            Framing::Chunk(_) => Framing::Chunk(left),
            _ => Framing::Length(left),
        };
        Ok(count)
    }
}

fn broken(source: io::Error) -> Error {
    match source.kind() {
        ErrorKind::TimedOut | ErrorKind::WouldBlock => Error::TimedOut,
        _ => Error::Broken { source },
    }
}

fn unreadable<T>(reason: &'static str) -> Result<T, Error> {
    Err(Error::Unreadable { reason })
}

#[cfg(test)]
#[path = "client_test.rs"]
mod tests;
