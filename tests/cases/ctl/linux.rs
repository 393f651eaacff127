//! A guest that is one.

use tests::ctl::Host;
use tests::live::Live;
use tests::terminal::Session;

/// A shell on a virtio console, from two sides; then its power button.
pub(super) fn shell() {
    let host = Host::new();
    let options = ["run", "--console", "virtio", "--id", "shell", "--api-sock"];
    let mut guest = Live::start(host.command(&options));
    guest.send("echo $((40 + 1))");
    guest.expect("41");
    let mut session = Session::start(host.command(&["attach", "shell"]));
    session.expect("41");
    session.type_in("echo $((6 * 7))\r");
    session.expect("42");
    guest.expect("42");
    host.ask(&["pause", "shell"]);
    session.type_in("echo $((6 * 8))\r");
    assert_eq!(host.state("shell"), "Paused");
    host.ask(&["resume", "shell"]);
    session.expect("48");
    // The last terminal that says its size is the one that counts.
    session.resize(33, 101);
    session.type_in(
        "until [ \"$(stty size)\" = '33 101' ]; do sleep 0.1; done; echo now $((50 + 1))\r",
    );
    session.expect("now 51");
    session.type_in("\x10\x11");
    session.expect_end(0);
    assert!(host.ask(&["logs", "shell"]).contains("48"));
    assert_eq!(host.ask(&["stop", "--time", "500", "shell"]), "shell\n");
    assert_eq!(guest.wait().status, 0);
}
