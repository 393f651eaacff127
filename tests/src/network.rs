//! Networks of a test's own: namespaces, taps, servers.
#![expect(unsafe_code, reason = "moves a thread into namespaces of its own")]

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::thread::{self, JoinHandle};

use guest_probe::stream::{Request, request_many, serve_many};
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use rustix::process::{Resource, getrlimit, setrlimit};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::disk::{run, tool};

/// Whether this process may make networks and taps; otherwise why not.
pub fn can_make_networks() -> Result<(), String> {
    if !rustix::process::geteuid().is_root() {
        return Err("not root: no networks".into());
    }
    if !Path::new("/dev/net/tun").exists() {
        return Err("no /dev/net/tun".into());
    }
    let found = tool("ip").arg("-Version").output();
    match found {
        Ok(output) if output.status.success() => Ok(()),
        _ => Err("no iproute2".into()),
    }
}

/// Lets this process have as many open files as it may.
pub fn allow_many_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // With the old limit only cases of many connections fail, and say so.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// Runs this where there is no network but an own loopback interface, and mounts are not seen outside.
/// Threads and processes that it starts are in there too; what is in there goes away with them.
pub fn in_namespace<R: Send>(call: impl FnOnce() -> R + Send) -> R {
    let result = thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let own = UnshareFlags::NEWNET | UnshareFlags::NEWNS;
            // SAFETY: only descriptors that are unshared can surprise anybody, and those are not.
            unsafe { unshare_unsafe(own) }.unwrap();
            let propagation = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            mount_change("/", propagation).unwrap();
            ip("link set lo up");
            call()
        });
        thread.join()
    });
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Puts a file in the place of another one, in a namespace.
pub fn replace_file(place: &str, contents: &Path) {
    // Nothing can be put where nothing is.
    if !Path::new(place).exists() {
        fs::write(place, "").unwrap();
    }
    mount_bind(contents, place).unwrap();
}

/// Runs iproute2 with these words.
#[track_caller]
pub fn ip(arguments: &str) -> String {
    let mut command = tool("ip");
    command.args(arguments.split_whitespace());
    run(command)
}

/// A tap that stays, with these addresses on this side.
#[track_caller]
pub fn tap(name: &str, mtu: u32, multi_queue: bool, addresses: &[&str]) {
    let queues = if multi_queue { "multi_queue" } else { "" };
    ip(&format!("tuntap add dev {name} mode tap vnet_hdr {queues}"));
    ip(&format!("link set {name} mtu {mtu} up"));
    for address in addresses {
        // The guest's side is not up yet, and nobody else is there.
        let no_check = if address.contains(':') { "nodad" } else { "" };
        ip(&format!("addr add {address} dev {name} {no_check}"));
    }
}

/// Serves so many TCP connections of the probe.
pub fn serve_tcp(address: &str, connections: usize) -> JoinHandle<io::Result<()>> {
    let listener = TcpListener::bind(address).unwrap();
    thread::spawn(move || serve_many(connections, || Ok(Box::new(listener.accept()?.0))))
}

/// Makes so many connections to the probe's server.
#[track_caller]
pub fn request_tcp(address: &str, connections: usize, request: Request) {
    let address: SocketAddr = address.parse().unwrap();
    let connect = || Ok(Box::new(TcpStream::connect(address)?) as _);
    request_many(connections, 4, request, connect).unwrap();
}

/// Echoes datagrams, for as long as anything in this process's namespace lives.
pub fn echo_udp(address: &str) {
    let socket = UdpSocket::bind(address).unwrap();
    thread::spawn(move || {
        let mut buffer = vec![0; 65536];
        while let Ok((size, peer)) = socket.recv_from(&mut buffer) {
            // The other side sends it again.
            let _ = socket.send_to(&buffer[..size], peer);
        }
    });
}

/// A DNS server that has one answer to every question for an IPv4 address.
pub fn serve_dns(address: &str, answer: [u8; 4]) {
    const HEADER: usize = 12;
    let socket = UdpSocket::bind(address).unwrap();
    thread::spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok((size, peer)) = socket.recv_from(&mut buffer) {
            let Some(question) = buffer[..size].get(HEADER..).and_then(question) else {
                continue;
            };
            let is_ipv4 = question.ends_with(&[0, 1, 0, 1]);
            let mut reply = buffer[..2].to_vec();
            // A response, recursion; one question, one answer or none.
            reply.extend([0x81, 0x80, 0, 1, 0, u8::from(is_ipv4), 0, 0, 0, 0]);
            reply.extend(question);
            if is_ipv4 {
                // The name of the question; A, IN, a minute.
                reply.extend([0xc0, HEADER as u8, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
                reply.extend(answer);
            }
            let _ = socket.send_to(&reply, peer);
        }
    });
}

/// The first question of a query: name, type, class.
fn question(bytes: &[u8]) -> Option<&[u8]> {
    let mut end = 0;
    loop {
        match bytes.get(end)? {
            0 => break,
            length => end += 1 + usize::from(*length),
        }
    }
    bytes.get(..end + 5)
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_probe::stream::Mode;

    #[test]
    fn the_name_server_answers() {
        serve_dns("127.0.0.53:5353", [10, 0, 2, 2]);
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect("127.0.0.53:5353").unwrap();
        for (kind, answers) in [(1, 1), (28, 0)] {
            let mut query = vec![7, 8, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            query.extend(b"\x04host\x04test\0");
            query.extend([0, kind, 0, 1]);
            // An option (EDNS) that is not part of the question.
            let question_end = query.len();
            query.extend([0, 0, 41, 4, 0, 0, 0, 0, 0, 0, 0]);
            socket.send(&query).unwrap();
            let mut reply = [0; 512];
            let length = socket.recv(&mut reply).unwrap();
            assert_eq!(reply[..2], [7, 8]);
            assert_eq!(reply[7], answers);
            assert_eq!(reply[12..question_end], query[12..question_end]);
            assert_eq!(length, question_end + usize::from(answers) * 16);
        }
    }

    #[test]
    fn a_namespace_is_empty_and_goes_away() {
        if can_make_networks().is_err() {
            return;
        }
        in_namespace(|| {
            assert_eq!(ip("-br link").lines().count(), 1);
            tap("tap0", 9000, true, &["10.9.0.1/24", "fd09::1/64"]);
            let addresses = ip("-o addr show dev tap0");
            assert!(addresses.contains("10.9.0.1/24"), "{addresses}");
            assert!(addresses.contains("fd09::1/64"), "{addresses}");
            let server = serve_tcp("10.9.0.1:5000", 10);
            let request = Request {
                mode: Mode::Both,
                seed: 1,
                length: 10_000,
            };
            request_tcp("10.9.0.1:5000", 10, request);
            server.join().unwrap().unwrap();
        });
        assert!(!ip("-br link").contains("tap0"));
    }
}
