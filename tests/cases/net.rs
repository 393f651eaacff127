//! Networks: taps in a namespace of the test's own, and the user network as a user without rights.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use guest_probe::stream::{Mode, Request};
use tests::guest::{run_probing, tuned_kernel};
use tests::live::Live;
use tests::network::{
    echo_udp, in_namespace, ip, replace_file, request_tcp, serve_dns, serve_tcp, tap,
};
use tests::sandbox::Sandbox;
use vmm_sys_util::tempdir::TempDir;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("tap", || in_namespace(|| traffic("vhost=off"))),
    ("tap_made_by_mote", || in_namespace(tap_made_by_mote)),
    ("tap_rate", || in_namespace(tap_rate)),
    ("user_network", || in_namespace(user_network)),
    ("user_network_that_allows_nothing", || {
        in_namespace(user_network_that_allows_nothing);
    }),
];

/// Cases that need `/dev/vhost-net`.
pub(crate) const VHOST_CASES: &[Case] =
    &[("tap_with_vhost", || in_namespace(|| traffic("vhost=on")))];

/// What has the guest's kernel configure its first interface.
const ADDRESS: &str = "ip=10.9.0.2::10.9.0.1:255.255.255.0::eth0:off";

/// Whether vhost-net can be used; otherwise why not.
pub(crate) fn can_use_vhost() -> Result<(), String> {
    let device = Path::new("/dev/vhost-net");
    if !device.exists() {
        // Without a program that loads it, or the right to, the device is missing.
        let _ = tests::disk::tool("modprobe").arg("vhost_net").output();
    }
    match fs::File::open(device) {
        Ok(_) => Ok(()),
        Err(error) => Err(format!("no /dev/vhost-net: {error}")),
    }
}

/// Everything at once between a guest with two network devices and its host.
fn traffic(vhost: &str) {
    let directory = TempDir::new().unwrap();
    tap("tap0", 1500, true, &["10.9.0.1/24", "fd09::1/64"]);
    tap("tap1", 9000, false, &["10.9.1.1/24"]);
    let streams = [
        serve_tcp("10.9.0.1:5000", 3),
        serve_tcp("10.9.0.1:5001", 1000),
        serve_tcp("[fd09::1]:5002", 1),
        serve_tcp("10.9.1.1:5003", 2),
    ];
    echo_udp("10.9.0.1:5004");
    echo_udp("10.9.1.1:5005");
    let first = format!("tap=tap0,mac=06:00:00:00:00:01,queues=2,{vhost}");
    let second = format!("tap=tap1,mac=06:00:00:00:00:02,mtu=9000,{vhost}");
    let mut live = Live::probing(
        directory.as_path(),
        &[
            "--cpus", "2", "--memory", "256m", "--net", &first, "--net", &second, "--append",
            ADDRESS,
        ],
        "echo $(cat /sys/class/net/eth0/address) $(cat /sys/class/net/eth1/address)
        echo mtu $(cat /sys/class/net/eth0/mtu) $(cat /sys/class/net/eth1/mtu)
        echo queues $(ls -d /sys/class/net/eth0/queues/rx-* | wc -l)
        guest-probe features | grep ' 0x0001 '
        ip addr add 10.9.1.2/24 dev eth1; ip link set eth1 up
        echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad; ip -6 addr add fd09::2/64 dev eth0
        must ping -c 2 -W 10 10.9.0.1 >/dev/null
        must ping -c 1 -W 10 -s 8000 10.9.1.1 >/dev/null
        must guest-probe tcp client 10.9.0.1:5000 --bytes 8m --mode send
        must guest-probe tcp client 10.9.0.1:5000 --bytes 8m --mode receive
        must guest-probe tcp client 10.9.0.1:5000 --bytes 4m --mode both
        must guest-probe tcp client 10.9.0.1:5001 --bytes 3000 --mode both --connections 1000
        must guest-probe tcp client [fd09::1]:5002 --bytes 1m --mode half-close
        must guest-probe tcp client 10.9.1.1:5003 --bytes 8m --mode both --connections 2
        must guest-probe udp client 10.9.0.1:5004 --count 100 --size 1400
        must guest-probe udp client 10.9.0.1:5004 --count 20 --size 20000
        must guest-probe udp client 10.9.1.1:5005 --count 100 --size 8900
        must guest-probe tcp server 0.0.0.0:6000 --connections 100",
    );
    let line = live.expect("06:00:");
    assert_eq!(line, "06:00:00:00:00:01 06:00:00:00:00:02");
    assert_eq!(live.expect("mtu "), "mtu 1500 9000");
    assert_eq!(live.expect("queues "), "queues 2");
    let features = live.expect(" 0x0001 ");
    let features: Vec<&str> = features.rsplit(' ').next().unwrap().split(',').collect();
    // Checksums and segmentation both ways, mergeable buffers, several queues, version 1.
    for feature in ["0", "1", "7", "8", "11", "12", "15", "22", "32"] {
        assert!(features.contains(&feature), "no {feature} in {features:?}");
    }
    live.expect("LISTENING");
    let asked = Request {
        mode: Mode::Both,
        seed: 1,
        length: 50_000,
    };
    request_tcp("10.9.0.2:6000", 100, asked);
    live.wait_for_success();
    for stream in streams {
        stream.join().unwrap().unwrap();
    }
    // The taps are still there, and free.
    assert!(ip("-br link").contains("tap0"));
}

/// mote makes a tap, and takes it away.
fn tap_made_by_mote() {
    let output = run_probing(
        &["--net", "tap,ip=10.9.0.1/24", "--append", ADDRESS],
        "must ping -c 2 -W 10 10.9.0.1",
    );
    assert!(output.contains("2 packets received"), "{output}");
    let left = ip("-br link");
    assert_eq!(left.lines().count(), 1, "{left}");
}

/// No faster than its rate.
fn tap_rate() {
    let directory = TempDir::new().unwrap();
    tap("tap0", 1500, false, &["10.9.0.1/24"]);
    let stream = serve_tcp("10.9.0.1:5000", 2);
    let mut live = Live::probing(
        directory.as_path(),
        &["--net", "tap=tap0,rate=1048576", "--append", ADDRESS],
        "echo READY; read go
        must guest-probe tcp client 10.9.0.1:5000 --bytes 4m --mode send
        echo SENT; read go
        must guest-probe tcp client 10.9.0.1:5000 --bytes 4m --mode receive
        echo RECEIVED",
    );
    live.expect("READY");
    for what in ["SENT", "RECEIVED"] {
        // The first MiB at once, three more in 3 seconds.
        let start = Instant::now();
        live.send("go");
        live.expect(what);
        assert!(start.elapsed() > Duration::from_millis(2500), "not limited");
    }
    live.wait_for_success();
    stream.join().unwrap().unwrap();
}

/// The kernel and an initial RAM disk where a user without rights finds them.
fn for_nobody(sandbox: &Sandbox, script: &str) -> [String; 5] {
    let directory = TempDir::new().unwrap();
    let initrd = tests::guest::probing(directory.as_path(), script);
    let initrd = sandbox.file("initrd", fs::read(initrd).unwrap());
    let kernel = tuned_kernel().join("vmlinux");
    let kernel = sandbox.file("vmlinux", fs::read(kernel).unwrap());
    ["run", "--kernel", &kernel, "--initrd", &initrd].map(str::to_owned)
}

/// The host as a guest in the user network sees it: the gateway is its loopback interface.
fn user_network() {
    let sandbox = Sandbox::new();
    let resolvers = sandbox.file("resolv.conf", "nameserver 127.0.0.1\n");
    replace_file("/etc/resolv.conf", Path::new(&resolvers));
    serve_dns("127.0.0.1:53", [10, 0, 2, 2]);
    // Everybody may ping.
    fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647").unwrap();
    let streams = [
        serve_tcp("127.0.0.1:5000", 3),
        serve_tcp("127.0.0.1:5001", 200),
        serve_tcp("[::1]:5002", 1),
    ];
    let refused = std::net::TcpListener::bind("127.0.0.1:5003").unwrap();
    refused.set_nonblocking(true).unwrap();
    echo_udp("127.0.0.1:5004");
    let arguments = for_nobody(
        &sandbox,
        "cat /proc/net/pnp
        grep '^nameserver' /proc/net/pnp >/etc/resolv.conf
        ip -4 -o addr show eth0
        must ping -c 2 -W 10 10.0.2.2 >/dev/null
        must nslookup -type=a host.test
        must guest-probe tcp client 10.0.2.2:5000 --bytes 4m --mode send
        must guest-probe tcp client 10.0.2.2:5000 --bytes 4m --mode receive
        must guest-probe tcp client 10.0.2.2:5000 --bytes 1m --mode half-close
        must guest-probe tcp client 10.0.2.2:5001 --bytes 3000 --mode both --connections 200
        must guest-probe udp client 10.0.2.2:5004 --count 100 --size 1400
        must_not guest-probe tcp client 10.0.2.2:5003 2>/dev/null
        tries=0; until ip -6 route | grep -q default || [ $tries = 100 ]; do usleep 100000; tries=$((tries + 1)); done
        must guest-probe tcp client [fd00:6d6f:7465::2]:5002 --bytes 1m --mode both
        guest-probe udp server 0.0.0.0:7001 --count 50 &
        must guest-probe tcp server 0.0.0.0:7000 --connections 50",
    );
    let network = "user,forward=9000:7000,forward=9001:7001/udp,deny=10.0.2.2:5003";
    let options = ["--memory", "256m", "--net", network, "--append", "ip=dhcp"];
    let arguments = arguments.iter().map(String::as_str).chain(options);
    let mut live = Live::start(sandbox.mote_as_nobody(None, arguments));
    live.expect("nameserver 10.0.2.3");
    live.expect("10.0.2.15/24");
    live.expect("10.0.2.2");
    live.expect("LISTENING");
    live.expect("LISTENING");
    let asked = Request {
        mode: Mode::Both,
        seed: 1,
        length: 50_000,
    };
    request_tcp("127.0.0.1:9000", 50, asked);
    udp_through_forward("127.0.0.1:9001", 50);
    live.wait_for_success();
    for stream in streams {
        stream.join().unwrap().unwrap();
    }
    let error = refused.accept().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
}

/// Datagrams to the guest's echo server.
fn udp_through_forward(address: &str, count: u8) {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(address).unwrap();
    socket.set_read_timeout(Some(tests::DEADLINE)).unwrap();
    for number in 0..count {
        let sent = [number; 900];
        socket.send(&sent).unwrap();
        let mut echo = [0; 1000];
        let length = socket.recv(&mut echo).unwrap();
        assert_eq!(echo[..length], sent);
    }
}

/// An address, and nothing behind it; what is refused is counted once a destination.
fn user_network_that_allows_nothing() {
    let sandbox = Sandbox::new();
    let listener = std::net::TcpListener::bind("127.0.0.1:5000").unwrap();
    listener.set_nonblocking(true).unwrap();
    let arguments = for_nobody(
        &sandbox,
        "must ip -4 -o addr show eth0
        for round in 1 2 3; do
            must_not guest-probe tcp client 10.0.2.2:5000 2>/dev/null
        done
        must_not guest-probe udp client 10.0.2.2:5004 --count 1 --attempts 2 2>/dev/null
        must_not nslookup -type=a -timeout=1 -retry=1 host.test >/dev/null 2>&1",
    );
    let options = ["--net", "user,allow=none", "--append", "ip=dhcp"];
    let arguments = arguments.iter().map(String::as_str).chain(options);
    let live = Live::start(sandbox.mote_as_nobody(None, arguments));
    let ended = live.wait();
    let output = tests::guest::expect_success(&ended);
    assert!(output.contains("10.0.2.15/24"), "{output}");
    let error = listener.accept().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    let lines = ended.stderr.matches("10.0.2.2:5000").count();
    assert_eq!(lines, 1, "{ended:#?}");
}
