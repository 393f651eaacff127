//! The host's end of a guest's vsock: Unix sockets.

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use guest_probe::stream::{Request, request_many, serve_many};

use crate::DEADLINE;

/// Connects to a port in the guest: `CONNECT port`, and the answer `OK port`.
pub fn connect(path: &Path, port: u32) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
    let mut answer = Vec::new();
    while answer.last() != Some(&b'\n') {
        let mut byte = [0];
        // What follows is the guest's.
        if stream.read(&mut byte)? == 0 {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        answer.push(byte[0]);
    }
    match answer.strip_prefix(b"OK ") {
        Some(_) => Ok(stream),
        None => Err(io::Error::other(format!(
            "the answer is {:?}",
            String::from_utf8_lossy(&answer)
        ))),
    }
}

/// Where the guest's connections to a port of the host arrive.
pub fn path_of(path: &Path, port: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!("_{port}"));
    name.into()
}

/// Serves so many connections that the guest makes to this port.
pub fn serve(path: &Path, port: u32, connections: usize) -> JoinHandle<io::Result<()>> {
    let listener = UnixListener::bind(path_of(path, port)).unwrap();
    thread::spawn(move || serve_many(connections, || Ok(Box::new(listener.accept()?.0))))
}

/// Makes so many connections to a server in the guest.
#[track_caller]
pub fn request(path: &Path, port: u32, connections: usize, asked: Request) {
    let connect = || Ok(Box::new(connect(path, port)?) as _);
    request_many(connections, 4, asked, connect).unwrap();
}
