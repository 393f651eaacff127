//! Copies of a Linux guest: the same until they were made, and each its own from then on.

use std::collections::BTreeSet;
use std::net::TcpListener;

use guest_probe::load::serve_streams;
use tests::ctl::Host;
use tests::disk::filled;
use tests::driven::{SCRIPT, guest_does};
use tests::guest;
use tests::live::Live;

use crate::Case;

pub(crate) const CASES: &[Case] = &[("copies_of_linux_are_each_their_own", copies)];

const COPIES: usize = 8;

/// What a command says, in one word.
fn tell(live: &mut Live, command: &str) -> String {
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
        .args(["--net", "user", "--append", "ip=dhcp", "--disk", &disk])
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
    let sum = tell(&mut parent, kept);

    let count = COPIES.to_string();
    let ids = host.ask(&["fork", "parent", "-n", &count]);
    let ids: Vec<_> = ids.lines().collect();
    assert_eq!(ids.len(), COPIES);
    let mut all: Vec<_> = (ids.iter())
        .map(|id| Live::start(host.command(&["attach", id])))
        .collect();
    let mut seen = BTreeSet::new();
    for copy in &mut all {
        assert_eq!(tell(copy, kept), sum);
        guest_does(
            copy,
            "await sh -c 'dmesg | grep \"crng reseeded due to virtual machine fork\"'",
        );
        assert!(seen.insert(tell(copy, random)));
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
                "must guest-probe load tcp 10.0.2.2:{port} --mode send --amount 65536 | grep DONE"
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
    assert!(seen.insert(tell(&mut parent, random)));
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
