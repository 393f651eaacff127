//! Copies of a Linux guest: the same until they were made, and each its own from then on.

use std::collections::BTreeSet;
use std::env;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;

use guest_probe::load::serve_streams;
use tests::DEADLINE;
use tests::ctl::Host;
use tests::disk::filled;
use tests::driven::{SCRIPT, done, guest_does, tell};
use tests::guest;
use tests::live::Live;
use tests::network::{in_namespace, serve_tcp, tap};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("copies_of_linux_are_each_their_own", copies),
    ("connections_stay_with_the_first_guest", connections),
];

/// Cases that need networks of their own.
pub(crate) const NETWORK_CASES: &[Case] = &[("each_copy_has_its_own_tap", || in_namespace(taps))];

/// How many there are, unless `$TEST_COPIES` says so.
const COPIES: usize = 12;
/// What a guest of mote has in the user network for the host's loopback interface.
const HOST: &str = "10.0.2.2";

/// What a command says, in one word.
fn word_of(live: &mut Live, command: &str) -> String {
    let said = guest_does(live, &format!("echo it-says=$({command})"));
    let (_, value) = said.split_once("it-says=").unwrap();
    value.lines().next().unwrap().trim().to_owned()
}

fn copies() {
    let host = Host::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    serve_streams(listener);
    let initrd = guest::probing(host.path(), SCRIPT);
    let disk = filled(host.path(), "disk", 4 << 20, 1);
    let disk = format!("{},overlay=temp", disk.display());
    let mut command = host.command(&["run", "--id", "parent", "--api-sock", "--console", "serial"]);
    command
        .args(["--memory", "64m", "--net", "user", "--append", "ip=dhcp"])
        .args(["--disk", &disk])
        .arg("--initrd")
        .arg(initrd);
    let mut parent = Live::start(command);
    parent.expect("READY");
    guest_does(
        &mut parent,
        "mkdir /tmp/kept; dd if=/dev/urandom of=/tmp/kept/file bs=64k count=16 2>/dev/null; \
         must dd if=/tmp/kept/file of=/dev/vda bs=64k count=16 conv=fsync 2>/dev/null; dmesg -c >/dev/null",
    );
    let kept = "md5sum </tmp/kept/file";
    let random = "dd if=/dev/urandom bs=16 count=1 2>/dev/null | md5sum";
    let sum = word_of(&mut parent, kept);

    let count = env::var("TEST_COPIES").map_or(COPIES, |count| count.parse().unwrap());
    let ids = host.ask(&["fork", "parent", "-n", &count.to_string()]);
    let ids: Vec<_> = ids.lines().collect();
    assert_eq!(ids.len(), count);
    let mut all = Vec::new();
    let mut seen = BTreeSet::new();
    for id in &ids {
        let mut copy = Live::start(host.command(&["attach", id]));
        assert_eq!(word_of(&mut copy, kept), sum);
        all.push(copy);
    }
    for copy in &mut all {
        guest_does(
            copy,
            "await sh -c 'dmesg | grep \"crng reseeded due to virtual machine fork\"'",
        );
        assert!(seen.insert(word_of(copy, random)));
        // Its disk is as it was; then it has something of its own on it.
        guest_does(
            copy,
            "must sh -c 'dd if=/dev/vda bs=64k count=16 2>/dev/null | cmp - /tmp/kept/file'; \
             dd if=/dev/urandom of=/tmp/own bs=64k count=8 2>/dev/null; \
             must dd if=/tmp/own of=/dev/vda bs=64k count=8 conv=fsync 2>/dev/null; \
             echo 3 >/proc/sys/vm/drop_caches",
        );
        guest_does(
            copy,
            &format!(
                "must guest-probe load tcp {HOST}:{port} --mode send --amount 65536 | grep DONE"
            ),
        );
    }
    // After all of them have written.
    for copy in &mut all {
        guest_does(
            copy,
            "must sh -c 'dd if=/dev/vda bs=64k count=8 2>/dev/null | cmp - /tmp/own'",
        );
    }
    guest_does(
        &mut parent,
        "must sh -c 'dd if=/dev/vda bs=64k count=16 2>/dev/null | cmp - /tmp/kept/file'",
    );
    assert!(seen.insert(word_of(&mut parent, random)));
    for copy in &mut all {
        copy.send("end");
    }
    for copy in all {
        drop(copy.wait());
    }
    parent.send("end");
    guest::expect_success(&parent.wait());
    assert_eq!(host.ask(&["ps", "-q"]), "");
}

/// A connection through the user network is the first guest's, and goes on; a copy finds that it is gone, and nobody else
/// hears of that.
fn connections() {
    let host = Host::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let initrd = guest::probing(host.path(), SCRIPT);
    let mut command = host.command(&["run", "--id", "parent", "--api-sock", "--console", "serial"]);
    command
        .args(["--memory", "64m", "--net", "user", "--append", "ip=dhcp"])
        .arg("--initrd")
        .arg(initrd);
    let mut parent = Live::start(command);
    parent.expect("READY");
    guest_does(
        &mut parent,
        &format!(
            "mkfifo /tmp/in; (nc {HOST} {port} </tmp/in >/tmp/out 2>/tmp/why; echo $? >/tmp/ended) & \
             exec 3>/tmp/in; echo first >&3"
        ),
    );
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut stream = BufReader::new(stream);
    let mut line = || {
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        stream.get_ref().write_all(b"heard\n").unwrap();
        line
    };
    assert_eq!(line(), "first\n");
    guest_does(&mut parent, "await grep heard /tmp/out");

    let ids = host.ask(&["fork", "parent", "-n", "2"]);
    let mut all: Vec<_> = (ids.lines())
        .map(|id| Live::start(host.command(&["attach", id])))
        .collect();
    assert_eq!(all.len(), 2);
    for copy in &mut all {
        guest_does(copy, "echo copy >&3; await test -s /tmp/ended");
        // Nothing has come that was not for the copy; a new connection is its own.
        guest_does(copy, "must test $(wc -l </tmp/out) = 1");
        guest_does(
            copy,
            &format!("echo own | nc {HOST} {port} >/tmp/own & own=$!"),
        );
        let (own, _) = listener.accept().unwrap();
        own.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut own = BufReader::new(own);
        let mut line = String::new();
        own.read_line(&mut line).unwrap();
        assert_eq!(line, "own\n");
        own.get_ref().write_all(b"yours\n").unwrap();
        drop(own);
        guest_does(
            copy,
            "await grep yours /tmp/own; kill $own 2>/dev/null; true",
        );
    }
    // The first one has noticed nothing of it.
    guest_does(&mut parent, "echo second >&3; must_not test -e /tmp/ended");
    assert_eq!(line(), "second\n");
    guest_does(
        &mut parent,
        "await sh -c 'test $(grep -c heard /tmp/out) = 2'; must_not test -e /tmp/ended",
    );
    listener.set_nonblocking(true).unwrap();
    let none = listener.accept().unwrap_err();
    assert_eq!(none.kind(), std::io::ErrorKind::WouldBlock);
    // What waits for the connection ends with it.
    drop(stream);
    guest_does(&mut parent, "exec 3>&-; await test -s /tmp/ended");
    for copy in &mut all {
        copy.send("end");
    }
    for copy in all {
        drop(copy.wait());
    }
    parent.send("end");
    guest::expect_success(&parent.wait());
    assert_eq!(host.ask(&["ps", "-q"]), "");
}

/// Each copy has a tap of its own, where it takes an address of its own; the first guest keeps its own.
fn taps() {
    const CARD: &str = "--net=tap=tap0,id=eth0";
    let host = Host::new();
    for number in 0..=2 {
        tap(
            &format!("tap{number}"),
            1500,
            false,
            &[&format!("10.9.{number}.1/24")],
        );
    }
    let streams: Vec<_> = (0..=2)
        .map(|number| serve_tcp(&format!("10.9.{number}.1:5000"), 2))
        .collect();
    let initrd = guest::probing(host.path(), SCRIPT);
    let mut command = host.command(&["run", "--id", "parent", "--api-sock", "--console", "serial"]);
    command
        .args(["--memory", "64m", CARD, "--append"])
        .arg("ip=10.9.0.2::10.9.0.1:255.255.255.0::eth0:off")
        .arg("--initrd")
        .arg(initrd);
    let mut parent = Live::start(command);
    parent.expect("READY");
    let transfer = |number: usize| {
        format!("must guest-probe tcp client 10.9.{number}.1:5000 --bytes 1m --mode both")
    };
    guest_does(&mut parent, &transfer(0));
    let refused = host.mote(&["fork", "parent", "-n", "2"]);
    assert_eq!(refused.status, 125, "{refused:?}");
    assert!(refused.stderr.contains("tap"), "{refused:?}");
    let ids = host.ask(&["fork", "parent", "-n", "2", "--net", "eth0=tap{}"]);
    let mut all: Vec<_> = (ids.lines())
        .map(|id| Live::start(host.command(&["attach", id])))
        .collect();
    assert_eq!(all.len(), 2);
    for (number, copy) in (1..).zip(&mut all) {
        guest_does(
            copy,
            &format!("ip addr flush dev eth0; must ip addr add 10.9.{number}.2/24 dev eth0"),
        );
    }
    // All at once, each through its own.
    for (number, copy) in (1..).zip(&mut all) {
        tell(copy, &transfer(number));
    }
    guest_does(&mut parent, &transfer(0));
    for copy in &mut all {
        done(copy);
    }
    for (number, copy) in (1..).zip(&mut all) {
        guest_does(copy, &transfer(number));
    }
    for stream in streams {
        stream.join().unwrap().unwrap();
    }
    for copy in &mut all {
        copy.send("end");
    }
    for copy in all {
        drop(copy.wait());
    }
    parent.send("end");
    guest::expect_success(&parent.wait());
    assert_eq!(host.ask(&["ps", "-q"]), "");
}
