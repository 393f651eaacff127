//! Sockets between a guest and its host.
#![expect(
    unsafe_code,
    reason = "rustix has no type for addresses of this family, and lets others be added"
)]

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use guest_probe::stream::Stream;
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{AddressFamily, SocketType, accept, bind, connect, listen, socket};

use crate::arguments::{Arguments, Failure};
use crate::net;

/// Any CID of this machine's.
const ANY_CID: u32 = u32::MAX;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 256;

/// `struct sockaddr_vm` (Linux, include/uapi/linux/vm_sockets.h).
#[repr(C)]
struct Address {
    family: u16,
    reserved: u16,
    port: u32,
    cid: u32,
    flags: u8,
    zero: [u8; 3],
}

impl Address {
    fn new(cid: u32, port: u32) -> Self {
        Self {
            family: AddressFamily::VSOCK.as_raw(),
            reserved: 0,
            port,
            cid,
            flags: 0,
            zero: [0; 3],
        }
    }
}

// SAFETY: the pointer is to a whole `sockaddr_vm`, and so is the length.
unsafe impl SocketAddrArg for Address {
    unsafe fn with_sockaddr<R>(
        &self,
        f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R,
    ) -> R {
        let address: *const Self = self;
        f(address.cast(), size_of::<Self>() as SocketAddrLen)
    }
}

fn stream_socket() -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::VSOCK, SocketType::STREAM, None)?)
}

/// The standard library's stream of another family: all that it does goes for this one too.
fn stream(socket: OwnedFd) -> Box<dyn Stream> {
    Box::new(UnixStream::from(socket))
}

pub(crate) fn run(mut arguments: Arguments) -> Result<(), Failure> {
    let role = arguments.next("client or server")?;
    let text = arguments.next("the address")?;
    let usage = || Failure::Usage(format!("'{text}' is no CID:PORT"));
    let (cid, port) = match text.split_once(':') {
        Some((cid, port)) => (cid.parse().map_err(|_| usage())?, port),
        None => (ANY_CID, text.as_str()),
    };
    let address = Address::new(cid, port.parse().map_err(|_| usage())?);
    match role.as_str() {
        "client" => net::client(arguments, || {
            let socket = stream_socket()?;
            connect(&socket, &address)?;
            Ok(stream(socket))
        }),
        "server" => {
            let listener = stream_socket()?;
            bind(&listener, &address).map_err(io::Error::from)?;
            listen(&listener, BACKLOG).map_err(io::Error::from)?;
            net::server(arguments, || Ok(stream(accept(&listener)?)))
        }
        other => Err(Failure::Usage(format!("unknown: vsock {other}"))),
    }
}
