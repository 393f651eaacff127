//! TCP and UDP.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use guest_probe::pattern::Pattern;
use guest_probe::stream::{Mode, Request, Stream, request_many, serve_many};

use crate::arguments::{Arguments, Failure};

/// A datagram is taken for lost after this time.
const ECHO_TIMEOUT: Duration = Duration::from_millis(500);

fn address(arguments: &mut Arguments) -> Result<SocketAddr, Failure> {
    let text = arguments.next("the address")?;
    text.parse()
        .map_err(|_| Failure::Usage(format!("'{text}' is no address and port")))
}

/// The client of any kind of stream.
pub(crate) fn client(
    mut arguments: Arguments,
    connect: impl Fn() -> io::Result<Box<dyn Stream>> + Sync,
) -> Result<(), Failure> {
    let connections = arguments.number("connections", 1)?;
    let workers = arguments.number("workers", 4)?;
    let mode = arguments.text("mode").unwrap_or_else(|| "send".into());
    let request = Request {
        mode: Mode::from_name(&mode).ok_or_else(|| Failure::Usage(format!("no mode '{mode}'")))?,
        seed: arguments.number("seed", 1)?,
        length: arguments.number("bytes", 1 << 20)?,
    };
    arguments.end()?;
    request_many(connections, workers, request, connect)?;
    println!(
        "moved {} bytes on {connections} connections",
        request.length
    );
    Ok(())
}

/// The server of any kind of stream.
pub(crate) fn server(
    mut arguments: Arguments,
    accept: impl FnMut() -> io::Result<Box<dyn Stream>>,
) -> Result<(), Failure> {
    let connections = arguments.number("connections", 1)?;
    arguments.end()?;
    println!("LISTENING");
    serve_many(connections, accept)?;
    println!("served {connections} connections");
    Ok(())
}

pub(crate) fn tcp(mut arguments: Arguments) -> Result<(), Failure> {
    let role = arguments.next("client or server")?;
    let address = address(&mut arguments)?;
    match role.as_str() {
        "client" => client(arguments, || Ok(Box::new(TcpStream::connect(address)?))),
        "server" => {
            let listener = TcpListener::bind(address)?;
            server(arguments, || Ok(Box::new(listener.accept()?.0)))
        }
        other => Err(Failure::Usage(format!("unknown: tcp {other}"))),
    }
}

pub(crate) fn udp(mut arguments: Arguments) -> Result<(), Failure> {
    let role = arguments.next("client or server")?;
    let address = address(&mut arguments)?;
    let count = arguments.number("count", 100)?;
    match role.as_str() {
        "client" => {
            let size = arguments.number("size", 1200)?;
            let attempts = arguments.number("attempts", 40)?;
            arguments.end()?;
            udp_client(address, count, size, attempts)
        }
        "server" => {
            arguments.end()?;
            let socket = UdpSocket::bind(address)?;
            println!("LISTENING");
            let mut buffer = vec![0; 65536];
            for _ in 0..count {
                let (size, peer) = socket.recv_from(&mut buffer)?;
                socket.send_to(&buffer[..size], peer)?;
            }
            Ok(())
        }
        other => Err(Failure::Usage(format!("unknown: udp {other}"))),
    }
}

fn udp_client(address: SocketAddr, count: u64, size: usize, attempts: u32) -> Result<(), Failure> {
    let any: SocketAddr = match address {
        SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        SocketAddr::V6(_) => ([0_u16; 8], 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(address)?;
    socket.set_read_timeout(Some(ECHO_TIMEOUT))?;
    let pattern = Pattern::new(3);
    let mut sent = vec![0; size];
    let mut echo = vec![0; 65536];
    let mut again = 0;
    for number in 0..count {
        pattern.fill(number * size as u64, &mut sent);
        let mut attempt = 0;
        loop {
            socket.send(&sent)?;
            match socket.recv(&mut echo) {
                Ok(length) if echo[..length] == sent[..] => break,
                // The echo of one that was sent twice.
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
            attempt += 1;
            again += 1;
            if attempt == attempts {
                let what = format!("datagram {number} of {size} bytes has no echo");
                return Err(Failure::Check(what));
            }
        }
    }
    println!("echoed {count} datagrams of {size} bytes, {again} sent again");
    Ok(())
}
