//! The virtio console, as the serial one is tested.

use std::thread::sleep;
use std::time::Duration;

use tests::guest;
use tests::monitor::{mote, mote_with_input};
use tests::terminal::Session;
use vmm_sys_util::tempdir::TempDir;

use crate::Case;
use crate::console::{
    COUNT, MEBIBYTE, check_printed, hash, noise, print, type_when_ready, use_shell,
};

pub(crate) const CASES: &[Case] = &[
    ("a_mebibyte_out", a_mebibyte_out),
    ("a_mebibyte_in", a_mebibyte_in),
    ("it_is_the_guests_console", it_is_the_console),
    ("a_shell_on_a_terminal_that_changes_its_size", a_shell),
    ("keys_one_by_one", keys_one_by_one),
    ("a_shell_on_a_terminal", a_shell_as_on_the_serial_port),
    ("packaged_kernel", packaged_kernel),
    ("panic", panic),
];

const VIRTIO: [&str; 2] = ["--console", "virtio"];

fn a_mebibyte_out() {
    check_printed(&guest::run(&VIRTIO, &print(MEBIBYTE)), MEBIBYTE);
}

fn a_mebibyte_in() {
    let input = noise(3, MEBIBYTE);
    let ended = type_when_ready("virtio", COUNT, &input).expect_status(0);
    assert!(ended.text().contains(&hash(&input)), "{ended:#?}");
}

fn it_is_the_console() {
    let arguments = ["run", "--console", "virtio"];
    let script = b"tty; cat /proc/consoles | cut -d' ' -f 1; echo $((6 * 7))\nexit\n";
    let ended = mote_with_input(arguments, script).expect_status(0);
    let output = guest::output(&ended);
    assert!(output.contains("/dev/hvc0\nhvc0\n42\n"), "{ended:#?}");
}

fn a_shell_as_on_the_serial_port() {
    use_shell("virtio");
}

fn a_shell() {
    let mut session = Session::mote(&["run", "--console", "virtio"]);
    session.expect("~ # ");
    assert!(session.is_raw());
    session.resize(33, 101);
    session.type_in(
        "until [ \"$(stty size)\" = '33 101' ]; do sleep 0.1; done; echo now $((1 + 1))\r",
    );
    session.expect("\nnow 2");
    session.resize(44, 55);
    session.type_in(
        "until [ \"$(stty size)\" = '44 55' ]; do sleep 0.1; done; echo then $((2 + 2))\r",
    );
    session.expect("\nthen 4");
    session.type_in("sh -c 'echo it $((1 + 1)); sleep 1000'\r");
    session.expect("\nit 2");
    session.type_in("\x03");
    session.expect("~ # ");
    session.type_in("exit\r");
    session.expect_end(0);
}

/// Each key is a buffer of its own, and many come while the guest's driver looks at the one before.
fn keys_one_by_one() {
    const KEYS: usize = 2000;
    let keys = String::from_utf8(noise(5, KEYS)).unwrap();
    let mut session = Session::mote(&["run", "--console", "virtio"]);
    session.expect("~ # ");
    session.type_in(&format!(
        "stty raw -echo; echo READY; head -c {KEYS} | sha256sum; stty sane\r"
    ));
    session.expect("\nREADY");
    for (number, key) in (0_u64..).zip(keys.chars()) {
        session.type_in(key.encode_utf8(&mut [0; 4]));
        // From at once to after it was taken.
        sleep(Duration::from_micros(number % 40 * 50));
    }
    session.expect(&hash(keys.as_bytes()));
    session.expect("~ # ");
    session.type_in("exit\r");
    session.expect_end(0);
}

/// Its console appears with a module.
fn packaged_kernel() {
    let directory = TempDir::new().unwrap();
    let cache = directory.as_path().join("mote/kernel");
    std::fs::create_dir_all(&cache).unwrap();
    std::os::unix::fs::symlink(guest::packaged_kernel(), cache.join("packaged")).unwrap();
    let mut command = std::process::Command::new(tests::monitor::path());
    command
        .args([
            "run",
            "--memory",
            "256m",
            "--console",
            "virtio",
            "--",
            "tty",
        ])
        .env("XDG_CACHE_HOME", directory.as_path())
        .stdin(std::process::Stdio::null());
    let ended = tests::monitor::Running::start(command)
        .wait()
        .expect_status(0);
    assert!(ended.text().contains("/dev/hvc0\n"), "{ended:#?}");
}

fn panic() {
    let directory = TempDir::new().unwrap();
    let initrd = guest::initrd(directory.as_path(), "exit 1");
    let arguments = ["run", "--console", "virtio", "--initrd"];
    let initrd = initrd.to_str().unwrap();
    let ended = mote(arguments.iter().copied().chain([initrd]));
    assert!(
        ended.text().contains("Attempted to kill init"),
        "{ended:#?}"
    );
    ended.expect_error(134, &["kernel panic"]);
}
