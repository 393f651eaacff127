//! What `mote run --template` and a guest of a pool say to each other, on a Unix socket.
//!
//! | from | |
//! | --- | --- |
//! | `mote run` | two lengths (u32, little-endian), and with them its standard input, output and error; a [`Request`] in JSON, so long; the job, so long |
//! | | later a byte for each signal that it gets: its number; [`RESIZED`]: the terminal has another size |
//! | the guest | a [`Reply`] in JSON, and the end |
//!
//! Nobody has taken a request whose connection was reset: what has been read is answered.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use ::bench::waterfall::build::Report;
use devices::legacy::job_port::MAX_JOB;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind, connect,
    listen, recvmsg, sendmsg, socket_with,
};
use serde::{Deserialize, Serialize};

/// In the place of a signal's number.
pub(super) const RESIZED: u8 = 0;
/// Standard input, output and error.
const STREAMS: usize = 3;
const HEADER: usize = 8;
/// Far more than a [`Request`] takes.
const MAX_REQUEST: usize = 64 << 10;

/// What a guest is asked for, besides its job.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Request {
    /// What it is called in messages.
    pub id: Option<String>,
    /// When it is stopped.
    pub timeout: Option<Duration>,
    /// Its standard input is a terminal, of which whoever asks has the foreground.
    pub is_interactive: bool,
    /// What the guest takes is to be explained.
    #[serde(default)]
    pub explain: bool,
}

/// What becomes of a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Reply {
    /// Nothing: the guest is one of a template that has been made again since.
    Outdated,
    /// The guest has ended, and this is the status for it.
    Ended(i32),
    /// The same, and what it has taken, which was asked for.
    Explained(i32, Box<Report>),
}

/// A request that has come.
#[derive(Debug)]
pub(super) struct Received {
    pub request: Request,
    pub job: Vec<u8>,
    /// Standard input, output and error of whoever asks.
    pub streams: [OwnedFd; STREAMS],
}

/// A socket for guests to take requests from, on which no more than `waiting` wait for one that does.
pub(super) fn listener(path: &Path, waiting: u32) -> io::Result<OwnedFd> {
    let socket = socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    // Linux has one more of them than it is told.
    let backlog = i32::try_from(waiting.saturating_sub(1)).unwrap_or(i32::MAX);
    listen(&socket, backlog)?;
    Ok(socket)
}

/// A connection with one of the guests behind the socket; fails at once if nobody is there, or if as many wait as may.
pub(super) fn ask(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Sends a request.
pub(super) fn send(
    mut stream: &UnixStream,
    request: &Request,
    job: &[u8],
    streams: [BorrowedFd<'_>; STREAMS],
) -> io::Result<()> {
    let request = serde_json::to_vec(request)?;
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).map_err(|_| invalid("it is too long"));
    let mut header = [0; HEADER];
    header[..4].copy_from_slice(&length(&request)?.to_le_bytes());
    header[4..].copy_from_slice(&length(job)?.to_le_bytes());
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(STREAMS))];
    let mut with = SendAncillaryBuffer::new(&mut space);
    with.push(SendAncillaryMessage::ScmRights(&streams));
    // A stream takes eight bytes whole.
    sendmsg(
        stream,
        &[IoSlice::new(&header)],
        &mut with,
        SendFlags::NOSIGNAL,
    )?;
    stream.write_all(&request)?;
    stream.write_all(job)
}

/// Receives a request. Whoever sends it may be anyone of this user's.
pub(super) fn receive(mut stream: &UnixStream) -> io::Result<Received> {
    let mut header = [0; HEADER];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(STREAMS))];
    let mut with = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(
        stream.as_fd(),
        &mut [IoSliceMut::new(&mut header)],
        &mut with,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let streams = with.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(streams) => streams.collect(),
        _ => Vec::new(),
    });
    let streams: Vec<OwnedFd> = streams.collect();
    let streams = <[OwnedFd; STREAMS]>::try_from(streams)
        .map_err(|_| invalid("there are no standard streams"))?;
    stream.read_exact(&mut header[got.bytes..])?;
    let length = |at: usize, most: usize| {
        let bytes = [header[at], header[at + 1], header[at + 2], header[at + 3]];
        let length = u32::from_le_bytes(bytes) as usize;
        if length > most {
            return Err(invalid("it is too long"));
        }
        Ok(length)
    };
    let mut request = vec![0; length(0, MAX_REQUEST)?];
    let mut job = vec![0; length(4, MAX_JOB)?];
    stream.read_exact(&mut request)?;
    stream.read_exact(&mut job)?;
    Ok(Received {
        request: serde_json::from_slice(&request)?,
        job,
        streams,
    })
}

/// Says what has become of a request.
pub(super) fn reply(mut stream: &UnixStream, reply: &Reply) -> io::Result<()> {
    stream.write_all(&serde_json::to_vec(reply)?)
}

/// Waits for what becomes of a request; nothing if whoever took it ended without a word.
pub(super) fn wait(stream: &UnixStream) -> io::Result<Option<Reply>> {
    let mut text = Vec::new();
    stream.take(MAX_REQUEST as u64).read_to_end(&mut text)?;
    if text.is_empty() {
        return Ok(None);
    }
    Ok(Some(serde_json::from_slice(&text)?))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::pipe;

    use super::*;

    fn request() -> Request {
        Request {
            id: Some("web".into()),
            timeout: Some(Duration::from_millis(1500)),
            is_interactive: true,
            explain: true,
        }
    }

    #[test]
    fn a_request_comes_as_it_was_sent() {
        let (one, other) = UnixStream::pair().unwrap();
        let (mut reader, writer) = pipe().unwrap();
        let null = File::open("/dev/null").unwrap();
        let streams = [null.as_fd(), writer.as_fd(), null.as_fd()];
        // More than a socket holds.
        let job = vec![7; MAX_JOB];
        let received = std::thread::scope(|scope| {
            let received = scope.spawn(|| receive(&other).unwrap());
            send(&one, &request(), &job, streams).unwrap();
            received.join().unwrap()
        });
        assert_eq!((received.request, received.job), (request(), job));
        File::from(received.streams[1].try_clone().unwrap())
            .write_all(b"x")
            .unwrap();
        let mut byte = [0];
        reader.read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"x");
        reply(&other, &Reply::Ended(3)).unwrap();
        drop(other);
        assert_eq!(wait(&one).unwrap(), Some(Reply::Ended(3)));
        assert_eq!(wait(&one).unwrap(), None);
    }

    #[test]
    fn what_is_no_request_is_refused() {
        for bytes in [
            &[0; 8][..],
            &[1, 0, 0],
            &[255; 8],
            &[2, 0, 0, 0, 0, 0, 0, 0, b'{', b'}'],
        ] {
            let (mut one, other) = UnixStream::pair().unwrap();
            one.write_all(bytes).unwrap();
            drop(one);
            receive(&other).unwrap_err();
        }
        let null = File::open("/dev/null").unwrap();
        let streams = [null.as_fd(); STREAMS];
        let (one, other) = UnixStream::pair().unwrap();
        std::thread::scope(|scope| {
            // More than it holds: it may end before all has been sent.
            scope.spawn(|| send(&one, &request(), &vec![7; MAX_JOB + 1], streams));
            receive(&other).unwrap_err();
            drop(other);
        });
    }

    #[test]
    fn as_many_wait_as_may() {
        let folder = vmm_sys_util::tempdir::TempDir::new().unwrap();
        let path = folder.as_path().join("socket");
        assert!(ask(&path).is_err());
        let socket = listener(&path, 2).unwrap();
        let waiting = [ask(&path).unwrap(), ask(&path).unwrap()];
        let refused = ask(&path).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        drop(socket);
        // Nobody has taken them.
        for mut stream in waiting {
            let error = stream.read(&mut [0]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        }
        assert!(ask(&path).is_err());
    }
}
