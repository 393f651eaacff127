//! Settings of virtio devices that are wrong.

use std::fs;
use std::os::unix::net::UnixListener;

use tests::sandbox::Sandbox;

use crate::Case;

use super::run;

/// Cases that do not come to use KVM.
pub(crate) const CASES: &[Case] = &[
    ("disk_files", disk_files),
    ("disk_settings", disk_settings),
    ("networks", networks),
    ("vsocks", vsocks),
    ("balloons_and_others", balloons_and_others),
];

/// Fails unless `mote run` with these arguments fails, says these parts, and leaves nothing behind. What
/// is wrong with the words themselves takes several lines to say, anything else one.
#[track_caller]
fn fails(sandbox: &Sandbox, arguments: &[&str], parts: &[&str]) {
    let ended = sandbox.run(sandbox.mote(run(sandbox, arguments)));
    for part in parts {
        let said = ended.stderr.to_lowercase();
        assert!(
            said.contains(&part.to_lowercase()),
            "no {part:?} in {ended:#?}"
        );
    }
    let usage = ended.stderr.starts_with("error: ");
    let one_line = ended.stderr.starts_with("mote: ") && ended.stderr.lines().count() == 1;
    assert!(usage || one_line, "{ended:#?}");
    ended.expect_status(125);
}

fn disk_files() {
    let sandbox = Sandbox::new();
    let missing = sandbox.path("missing");
    fails(&sandbox, &["--disk", &missing], &[&missing, "No such file"]);
    fails(
        &sandbox,
        &["--rootfs", &missing],
        &[&missing, "No such file"],
    );
    let directory = sandbox.path("directory");
    fs::create_dir(&directory).unwrap();
    fails(&sandbox, &["--disk", &directory], &[&directory]);
    let empty = sandbox.file("empty", "");
    fails(&sandbox, &["--disk", &empty], &[&empty, "empty"]);
    let unaligned = sandbox.file("unaligned", [0; 1000]);
    fails(&sandbox, &["--disk", &unaligned], &[&unaligned, "512"]);
    let no_qcow2 = sandbox.file("no_qcow2", [0; 4096]);
    let disk = format!("{no_qcow2},format=qcow2");
    fails(&sandbox, &["--disk", &disk], &[&no_qcow2, "qcow2"]);
    // Of all that it says about itself, nothing is believed.
    let mut hostile = b"QFI\xfb\0\0\0\x03".to_vec();
    hostile.resize(4096, 0xff);
    let hostile = sandbox.file("hostile", hostile);
    let disk = format!("{hostile},format=qcow2");
    fails(&sandbox, &["--disk", &disk], &[&hostile]);
    // Two writers of one file in one guest.
    let disk = sandbox.file("disk", [0; 4096]);
    fails(&sandbox, &["--disk", &disk, "--disk", &disk], &[&disk]);
    let overlay = format!("{disk},overlay={}", sandbox.path("no/such/overlay"));
    fails(
        &sandbox,
        &["--disk", &overlay],
        &["overlay", "No such file"],
    );
}

fn disk_settings() {
    let sandbox = Sandbox::new();
    let disk = sandbox.file("disk", [0; 4096]);
    for (settings, part) in [
        ("colour=red", "colour"),
        ("engine=fast", "engine"),
        ("cache=none-such", "cache"),
        ("format=vmdk", "format"),
        ("rate=much", "rate"),
        ("iops=-1", "iops"),
        ("iothread=maybe", "iothread"),
        ("serial=this-is-longer-than-20-bytes", "serial"),
        ("ro,overlay=temp", "overlay"),
        ("ro,ro", "ro"),
    ] {
        let disk = format!("{disk},{settings}");
        fails(&sandbox, &["--disk", &disk], &[part]);
    }
    fails(&sandbox, &["--disk", ""], &["disk"]);
    fails(
        &sandbox,
        &["--rootfs", &disk, "--rootfs", &disk],
        &["rootfs"],
    );
    let named = format!("{disk},ro,id=same");
    fails(&sandbox, &["--disk", &named, "--disk", &named], &["same"]);
}

fn networks() {
    let sandbox = Sandbox::new();
    for (network, part) in [
        ("", "net"),
        ("bridge", "bridge"),
        ("tap=", "interface"),
        ("tap=a-name-that-is-too-long", "interface"),
        ("tap=a/b", "interface"),
        ("tap=tap0,mac=red", "mac"),
        ("tap=tap0,mac=01:00:00:00:00:01", "mac"),
        ("tap=tap0,mtu=1", "mtu"),
        ("tap=tap0,queues=0", "queues"),
        ("tap=tap0,queues=1000", "queues"),
        ("tap=tap0,vhost=maybe", "vhost"),
        ("user,forward=80", "forward"),
        ("user,forward=99999:80", "forward"),
        ("user,forward=80:80/sctp", "forward"),
        ("user,allow=example", "allow"),
        ("user,deny=10.0.0.0/33", "deny"),
        ("user,colour=red", "colour"),
    ] {
        fails(&sandbox, &["--net", network], &[part]);
    }
}

fn vsocks() {
    let sandbox = Sandbox::new();
    let path = sandbox.path("vsock");
    for cid in ["0", "1", "2", "4294967295", "x", ""] {
        let vsock = format!("{cid}:{path}");
        fails(&sandbox, &["--vsock", &vsock], &["context id"]);
    }
    let long = sandbox.path(&"x".repeat(120));
    fails(&sandbox, &["--vsock", &format!("3:{long}")], &["107"]);
    let missing = sandbox.path("no/such/directory");
    fails(&sandbox, &["--vsock", &format!("3:{missing}")], &[&missing]);
    let _listener = UnixListener::bind(&path).unwrap();
    fails(
        &sandbox,
        &["--vsock", &format!("3:{path}")],
        &[&path, "in use"],
    );
    let both = [
        "--vsock",
        &format!("3:{path}a"),
        "--vsock",
        &format!("4:{path}b"),
    ];
    fails(&sandbox, &both, &["vsock"]);
}

fn balloons_and_others() {
    let sandbox = Sandbox::new();
    fails(
        &sandbox,
        &["--memory", "64m", "--balloon", "65m"],
        &["balloon", "memory"],
    );
    for (flag, value) in [
        ("--balloon", "much"),
        ("--balloon", "8m,reporting=maybe"),
        ("--balloon", "8m,stats=never"),
        ("--entropy", "maybe"),
        ("--entropy", "on,rate=much"),
        ("--console", "pigeon"),
        ("--console", "off,pty"),
        ("--console", "serial,file=log,pty"),
        ("--console", "serial,file=/nowhere/to/be/found"),
        ("--console", "virtio,max-size=1m"),
    ] {
        fails(&sandbox, &[flag, value], &[&flag[2..]]);
    }
}
