//! At a guest's console, beside whoever else is there.

use std::process::Stdio;

use rustix::process::{Signal, kill_process};
use tests::ctl::Host;
use tests::driven::until;
use tests::executable::{echo_kernel, idle_kernel};
use tests::live::{Live, stop};
use tests::monitor::{self, Running};
use tests::terminal::Session;

pub(super) fn pipes() {
    let host = Host::new();
    // One with a console on pipes, which has no less of it for that.
    let mut guest = host.run("echo", &echo_kernel(), &[]);
    guest.expect("ready");
    let mut attached = Live::start(host.command(&["attach", "echo"]));
    // What was printed before it came.
    attached.expect("ready");
    attached.send("from the one");
    attached.expect("from the one");
    guest.expect("from the one");
    guest.send("from the other");
    attached.expect("from the other");
    guest.expect("from the other");
    // One that only watches, and one whose input has an end.
    let mut watching = Live::start(host.command(&["attach", "--no-stdin", "echo"]));
    watching.expect("ready");
    watching.send("nobody hears this");
    let mut command = host.command(&["attach", "echo"]);
    command.stdin(Stdio::null());
    let silent = Running::start(command);
    // More than there is room for at once.
    let long = "x".repeat(20_000);
    attached.send(&long);
    guest.expect(&long);
    watching.expect(&long);
    attached.send("q");
    assert_eq!(guest.wait().status, 0);
    for ended in [attached.wait(), watching.wait(), silent.wait()] {
        assert_eq!((ended.status, &*ended.stderr), (0, ""));
        let text = ended.text();
        assert!(text.trim_end().ends_with(&format!("{long}\nq")));
        assert!(!ended.text().contains("nobody hears"));
    }

    // One without any input of its own, and with its output in a file.
    let out = host.path().join("out");
    let out = format!("serial,file={}", out.display());
    let kernel = host.write("kernel", echo_kernel());
    let initrd = host.write("initrd", "none");
    let mut command = host.command(&["run", "--id", "file", "--kernel", &kernel]);
    command.args(["--initrd", &initrd, "--api-sock", "--console", &out]);
    command.stdin(Stdio::null());
    let guest = Running::start(command);
    until("the guest", || {
        host.ask(&["ps", "-q"]).contains("file").then_some(())
    });
    let mut attached = Live::start(host.command(&["attach", "file"]));
    attached.expect("ready");
    attached.send("written");
    attached.expect("written");
    attached.send("q");
    guest.wait().expect_status(0);
    assert_eq!(attached.wait().status, 0);
    let text = std::fs::read_to_string(host.path().join("out")).unwrap();
    assert_eq!(text, "ready\r\nwritten\nq");
}

pub(super) fn terminal() {
    let host = Host::new();
    let mut guest = host.run("echo", &echo_kernel(), &[]);
    let mut session = Session::start(host.command(&["attach", "echo"]));
    session.expect("Ctrl-P Ctrl-Q detaches");
    session.expect("ready");
    assert!(session.is_raw());
    session.type_in("typed\r");
    session.expect("typed");
    // All keys but two in a row are the guest's: also those of `mote run`.
    session.type_in("\x01x\x03\x10z\n");
    guest.expect("typed\r\x01x\x03\x10z");
    session.type_in("\x10\x11");
    session.expect("detached from guest echo");
    session.expect_end(0);
    assert_eq!(host.state("echo"), "Running");

    // A signal ends it, and leaves the terminal as it was.
    let mut session = Session::start(host.command(&["attach", "echo"]));
    session.expect("ready");
    session.signal(Signal::TERM);
    session.expect_end(143);
    // So does the guest.
    let mut session = Session::start(host.command(&["attach", "echo"]));
    session.expect("ready");
    session.type_in("q");
    session.expect("guest echo has ended");
    session.expect_end(0);
    assert_eq!(guest.wait().status, 0);

    // A guest that takes nothing does not keep anyone.
    let idle = host.run("idle", &idle_kernel(), &[]);
    let mut session = Session::start(host.command(&["attach", "idle"]));
    session.expect("detaches");
    for _ in 0..100 {
        session.type_in(&"x".repeat(1000));
    }
    session.type_in("\x10\x11");
    session.expect("detached");
    session.expect_end(0);
    host.ask(&["kill", "idle"]);
    assert_eq!(idle.wait().status, 0);
}

pub(super) fn many() {
    const MANY: usize = 20;
    let host = Host::new();
    let mut guest = host.vmm("echo", &[]);
    let kernel = host.write("kernel", echo_kernel());
    let boot = serde_json::json!({ "kernel_image_path": kernel }).to_string();
    host.ask(&["api", "--id", "echo", "PUT", "/boot-source", &boot]);
    let start = r#"{"action_type": "InstanceStart"}"#;
    host.ask(&["api", "--id", "echo", "PUT", "/actions", start]);
    guest.expect("ready");
    let mut attached: Vec<Live> = (0..MANY)
        .map(|_| Live::start(host.command(&["attach", "echo"])))
        .collect();
    for one in &mut attached {
        one.expect("ready");
    }
    for index in 0..MANY {
        let text = format!("this is number {index}.");
        attached[index].send(&text);
        for one in &mut attached {
            one.expect(&text);
        }
        guest.expect(&text);
    }
    // Some that leave the hard way.
    for one in attached.drain(..MANY / 2) {
        kill_process(one.pid(), Signal::KILL).unwrap();
        assert_eq!(one.wait().status, 128 + 9);
    }
    guest.send("q");
    assert_eq!(guest.wait().status, 0);
    for one in attached {
        assert_eq!(one.wait().status, 0);
    }
}

/// One that is stopped for a while misses what there is no room for, and says so.
pub(super) fn lost() {
    // Much more than all the buffers in between have room for.
    const LINES: usize = 20_000;
    let host = Host::new();
    let mut guest = host.run("echo", &echo_kernel(), &[]);
    guest.expect("ready");
    let mut attached = Live::start(host.command(&["attach", "echo"]));
    attached.expect("ready");
    stop(attached.pid());
    for number in 0..LINES {
        guest.send(&format!("line {number} of what nobody reads just now"));
    }
    guest.expect(&format!("line {} of", LINES - 1));
    kill_process(attached.pid(), Signal::CONT).unwrap();
    attached.expect(&format!("line {} of", LINES - 1));
    guest.send("q");
    assert_eq!(guest.wait().status, 0);
    let ended = attached.wait();
    assert_eq!(ended.status, 0);
    assert!(
        ended.stderr.contains("output are missing here"),
        "{}",
        ended.stderr
    );
}

/// Only a virtio console has a size.
pub(super) fn size() {
    let host = Host::new();
    let serial = host.run("serial", &idle_kernel(), &[]);
    let virtio = host.run("virtio", &idle_kernel(), &["--console", "virtio"]);
    let ask = |id: &str, size: &str| host.mote(&["api", "--id", id, "PATCH", "/console", size]);
    let size = r#"{"columns": 100, "rows": 30}"#;
    ask("virtio", size).expect_status(0);
    let refused = ask("serial", size).expect_status(22);
    assert!(refused.text().contains("no virtio console"), "{refused:?}");
    let refused = ask("virtio", r#"{"columns": 100, "rows": 0}"#).expect_status(22);
    assert!(refused.text().contains("`rows`"), "{refused:?}");
    host.ask(&["kill", "serial", "virtio"]);
    for live in [serial, virtio] {
        assert_eq!(live.wait().status, 0);
    }
}

pub(super) fn refused() {
    let host = Host::new();
    let waiting = host.vmm("waiting", &[]);
    for command in ["attach", "logs"] {
        host.mote(&[command, "waiting"])
            .expect_error(125, &["'waiting' refuses", "before starting the microVM"]);
    }
    let off = host.run("off", &idle_kernel(), &["--console", "off"]);
    host.mote(&["attach", "off"])
        .expect_error(125, &["'off' refuses", "has no console"]);
    host.mote(&["attach", "nobody"])
        .expect_error(125, &["no guest 'nobody'"]);
    host.ask(&["kill", "waiting", "off"]);
    for live in [waiting, off] {
        assert_eq!(live.wait().status, 0);
    }
    assert_eq!(monitor::files(host.run_dir()), [""; 0]);
}
