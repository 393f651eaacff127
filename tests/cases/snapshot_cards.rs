//! Cards with several pairs of queues, and cards that the host's kernel serves, go on in another process.

use std::fs;
use std::path::Path;

use rustix::process::Pid;
use serde_json::{Value, json};
use tests::ctl::Host;
use tests::driven::{SCRIPT, guest_does, threads, until};
use tests::guest;
use tests::live::Live;
use tests::network::{in_namespace, replace_file, serve_tcp, tap};

use crate::Case;

/// Cases that make networks.
pub(crate) const CASES: &[Case] = &[("several_pairs_of_queues_go_on", || {
    in_namespace(|| go_on("vhost=off", &[]));
})];

/// Cases that need `/dev/vhost-net`.
pub(crate) const VHOST_CASES: &[Case] = &[
    ("vhost_cards_go_on", || {
        in_namespace(|| go_on("vhost=on", &[]));
    }),
    ("vhost_cards_on_pci_go_on", || {
        in_namespace(|| go_on("vhost=on", &["--pci"]));
    }),
];

/// How many times this process has vhost-net open.
fn vhost_files(pid: Pid) -> usize {
    let files = fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())).unwrap();
    let names = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
    names
        .filter(|name| name == Path::new("/dev/vhost-net"))
        .count()
}

/// The card as the API has it.
fn card(host: &Host, id: &str) -> Value {
    let text = host.ask(&["api", "--id", id, "GET", "/vm/config"]);
    let document: Value = serde_json::from_str(&text).unwrap();
    document["network-interfaces"][0].clone()
}

/// A guest in the midst of a transfer is moved, its connection goes on, and then a copy of it is made.
fn go_on(vhost: &str, options: &[&str]) {
    tap("tap0", 1500, true, &["10.9.0.1/24"]);
    tap("tap1", 1500, true, &["10.9.1.1/24"]);
    tap("tap2", 1500, false, &[]);
    // For each move one that is moved and one after that; and two at a time in the end.
    let server = serve_tcp("10.9.0.1:5000", 6);
    let host = Host::new();
    let initrd = guest::probing(host.path(), SCRIPT);
    let network = format!("tap=tap0,queues=2,iothread=on,{vhost}");
    let vhost = vhost == "vhost=on";
    let mut command = host.command(&["run", "--id", "first", "--api-sock", "--cpus", "2"]);
    command
        .args(["--console", "serial,iothread=on", "--net", &network])
        .args(options)
        .arg("--initrd")
        .arg(initrd);
    let mut live = Live::start(command);
    live.expect("READY");
    guest_does(
        &mut live,
        "must ip addr add 10.9.0.2/24 dev eth0; must ip link set eth0 up; await ping -c 1 -W 5 10.9.0.1",
    );
    let transfer = "must guest-probe tcp client 10.9.0.1:5000 --mode both";
    let expected = if vhost { 2 } else { 0 };
    let mut dir = String::new();
    for (number, id) in ["second", "third"].into_iter().enumerate() {
        guest_does(
            &mut live,
            &format!("({transfer} --bytes 4m >/dev/null; echo $failures >/tmp/failures) & true"),
        );
        dir = host.path().join(id).to_str().unwrap().to_owned();
        host.ask(&["snapshot", ["first", "second"][number], &dir]);
        drop(live.kill());
        live = Live::start(host.command(&["restore", &dir, "--id", id]));
        until("the other one", || {
            let ids = host.ask(&["ps", "-q"]);
            (ids.contains(id) && host.state(id) == "Running").then_some(())
        });
        guest_does(&mut live, "wait; must is /tmp/failures $failures");
        guest_does(&mut live, &format!("{transfer} --bytes 1m"));
        assert_eq!(vhost_files(live.pid()), expected);
        let there = threads(live.pid());
        for name in ["io-console", "io-net0"] {
            assert!(there.iter().any(|thread| thread == name), "{there:?}");
        }
        let card = card(&host, id);
        assert_eq!(
            (&card["queues"], &card["iothread"]),
            (&json!(2), &json!(true))
        );
        assert_eq!(card.get("vhost").is_some(), vhost);
    }
    // Several streams: the guest's kernel spreads them over its queues.
    guest_does(&mut live, &format!("{transfer} --bytes 1m --connections 2"));
    server.join().unwrap().unwrap();

    let refused = |net: &str, what: &str| {
        let ended = host.mote(&["restore", &dir, "--id", "refused", "--net", net]);
        assert_ne!(ended.status, 0);
        assert!(ended.stderr.contains(what), "{ended:?}");
    };
    refused("net0=tap2,vhost=off", "tap2");
    if vhost {
        // A host without: the card can go on there if it is told to do without.
        let nothing = host.write("nothing", "");
        replace_file("/dev/vhost-net", Path::new(&nothing));
        refused("net0=tap1", "vhost-net");
    }
    let server = serve_tcp("10.9.1.1:5000", 1);
    let copies = host.ask(&[
        "fork",
        "third",
        "--id",
        "copy",
        "--net",
        "net0=tap{},vhost=off",
    ]);
    assert_eq!(copies, "copy\n");
    assert_eq!(card(&host, "copy").get("vhost"), None);
    let mut copy = Live::start(host.command(&["attach", "copy"]));
    guest_does(
        &mut copy,
        "must ip addr flush dev eth0; must ip addr add 10.9.1.2/24 dev eth0; \
         must guest-probe tcp client 10.9.1.1:5000 --bytes 2m --mode both",
    );
    server.join().unwrap().unwrap();
    // The first one goes on as it was.
    let server = serve_tcp("10.9.0.1:5000", 1);
    guest_does(&mut live, &format!("{transfer} --bytes 1m"));
    server.join().unwrap().unwrap();
    assert_eq!(vhost_files(live.pid()), expected);
    copy.send("end");
    drop(copy.wait());
    live.send("end");
    guest::expect_success(&live.wait());
}
