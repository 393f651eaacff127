//! vsock: streams between programs in the guest and Unix sockets of the host.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;

use guest_probe::stream::{Mode, Request};
use tests::guest::run_probing;
use tests::live::Live;
use tests::vsock::{connect, path_of, request, serve};
use vmm_sys_util::tempdir::TempDir;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("streams_both_ways", streams_both_ways),
    ("a_gibibyte", a_gibibyte),
    ("ends_of_every_kind", ends_of_every_kind),
];

const MIB: u64 = 1 << 20;

/// Many at once, each way.
fn streams_both_ways() {
    let directory = TempDir::new().unwrap();
    let path = directory.as_path().join("vsock");
    let servers = [serve(&path, 2000, 100), serve(&path, 2001, 20)];
    let option = format!("3:{}", path.display());
    let mut live = Live::probing(
        directory.as_path(),
        &["--cpus", "2", "--memory", "256m", "--vsock", &option],
        "must guest-probe vsock client 2:2000 --bytes 100k --mode both --connections 100
        must guest-probe vsock client 2:2001 --bytes 100k --mode half-close --connections 20
        must_not guest-probe vsock client 2:2002 2>/dev/null
        guest-probe vsock server 1001 --connections 20 &
        must guest-probe vsock server 1000 --connections 100",
    );
    live.expect("LISTENING");
    live.expect("LISTENING");
    for (port, mode, connections) in [(1000, Mode::Both, 100), (1001, Mode::HalfClose, 20)] {
        let asked = Request {
            mode,
            seed: 5,
            length: 100_000,
        };
        request(&path, port, connections, asked);
    }
    live.wait_for_success();
    for server in servers {
        server.join().unwrap().unwrap();
    }
    // The socket goes away with the guest.
    assert!(!path.exists());
}

/// Half of it each way, every byte checked.
fn a_gibibyte() {
    let directory = TempDir::new().unwrap();
    let path = directory.as_path().join("vsock");
    let server = serve(&path, 2000, 2);
    run_probing(
        &["--vsock", &format!("cid=7,path={}", path.display())],
        "must guest-probe vsock client 2:2000 --bytes 512m --mode send
        must guest-probe vsock client 2:2000 --bytes 512m --mode receive",
    );
    server.join().unwrap().unwrap();
}

/// Nobody there, programs killed on either side in the middle of it, and the monitor itself.
fn ends_of_every_kind() {
    let directory = TempDir::new().unwrap();
    let path = directory.as_path().join("vsock");
    let listener = UnixListener::bind(path_of(&path, 2000)).unwrap();
    let option = format!("3:{}", path.display());
    let mut live = Live::probing(
        directory.as_path(),
        &["--vsock", &option],
        "guest-probe vsock server 1000 --connections 1000 & server=$!
        read go; kill -9 $server; wait $server
        guest-probe vsock client 2:2000 --bytes 100m & client=$!
        read go; kill -9 $client; wait $client
        guest-probe vsock client 2:2000 --bytes 100m
        echo RESET
        guest-probe vsock server 1002 --connections 1 &
        wait; read go",
    );
    live.expect("LISTENING");
    // No program at this port.
    assert!(connect(&path, 999).is_err());
    // Something else than a request.
    let mut stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
    stream.write_all(b"HELLO 1000\n").unwrap();
    assert_eq!(stream.read(&mut [0; 16]).unwrap_or(0), 0);
    // Connections that are dropped at once, or in the middle.
    for _ in 0..50 {
        drop(connect(&path, 1000).unwrap());
        let mut stream = connect(&path, 1000).unwrap();
        stream.write_all(&[0; 10]).unwrap();
    }
    // A server that is killed while it is connected: the end is seen.
    let mut held = connect(&path, 1000).unwrap();
    live.send("kill the server");
    assert_eq!(held.read(&mut [0; 16]).unwrap_or(0), 0);
    // A client that is killed: its end is seen, after what it sent.
    let (mut stream, _) = listener.accept().unwrap();
    stream.read_exact(&mut [0; 100_000]).unwrap();
    live.send("kill the client");
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert!((rest.len() as u64) < 100 * MIB);
    // A host's program that goes away: the guest's sees that.
    let (mut stream, _) = listener.accept().unwrap();
    stream.read_exact(&mut [0; 100_000]).unwrap();
    drop(stream);
    live.expect("RESET");
    // It all still works; and when the monitor is killed, the end is seen.
    live.expect("LISTENING");
    let mut last = connect(&path, 1002).unwrap();
    live.kill();
    assert_eq!(last.read(&mut [0; 16]).unwrap_or(0), 0);
    // A killed monitor leaves its socket: the next one takes its place, or says what to do.
    let ended = tests::monitor::mote(["run", "--vsock", &option, "--", "true"]);
    if ended.status != 0 {
        ended.expect_error(125, &["vsock"]);
    }
}
