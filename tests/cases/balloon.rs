//! The balloon: memory that the guest gives up, and the monitor's own word for what is left of it.

use std::thread;
use std::time::{Duration, Instant};

use tests::DEADLINE;
use tests::guest::run_probing;
use tests::live::Live;
use vmm_sys_util::tempdir::TempDir;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("inflated_memory_is_the_hosts", inflated),
    ("free_pages_are_reported", reported),
    ("out_of_memory_deflates_it", out_of_memory),
];

const MIB: u64 = 1 << 20;
/// How often memory is looked at that is on its way.
const INTERVAL: Duration = Duration::from_millis(100);

/// Waits until less than this is resident.
#[track_caller]
fn shrinks_below(live: &Live, limit: u64) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let resident = live.resident();
        if resident < limit {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{} MiB are resident, not less than {}",
            resident / MIB,
            limit / MIB
        );
        thread::sleep(INTERVAL);
    }
}

/// Waits in the guest until so much of its memory is taken.
const WAIT: &str = "free() { awk '/^MemFree/ { print $2 }' /proc/meminfo; }
    until [ $(free) -lt $LIMIT ]; do usleep 100000; done";

fn inflated() {
    let directory = TempDir::new().unwrap();
    let mut live = Live::probing(
        directory.as_path(),
        &["--memory", "256m", "--balloon", "128m,stats=1"],
        &format!(
            "LIMIT=110000; {WAIT}
            cat /sys/bus/virtio/devices/*/device | grep -x 0x0005
            echo INFLATED; read go
            must guest-probe memory 40m"
        ),
    );
    live.expect("INFLATED");
    // What the balloon has cannot be resident, whatever was touched before.
    shrinks_below(&live, (256 - 128 + 24) * MIB);
    live.send("go");
    live.wait_for_success();
}

fn reported() {
    let directory = TempDir::new().unwrap();
    let mut live = Live::probing(
        directory.as_path(),
        &["--memory", "512m", "--balloon", "0,reporting=on"],
        "for round in 1 2; do
            echo READY; read go
            must guest-probe memory 300m --wait
        done
        read go",
    );
    for _ in 0..2 {
        live.expect("READY");
        live.send("go");
        live.expect("FILLED");
        let filled = live.resident();
        assert!(filled > 300 * MIB, "{} MiB are resident", filled / MIB);
        live.send("free it");
        live.expect("FREED");
        // Some blocks have a page that is in use.
        shrinks_below(&live, filled - 220 * MIB);
    }
    live.send("end");
    live.wait_for_success();
}

/// A guest that needs the memory gets it back where that was agreed on, and else runs out of it.
fn out_of_memory() {
    let script = format!(
        "LIMIT=90000; {WAIT}
        guest-probe memory 150m && echo GOT IT || echo DID NOT"
    );
    let output = run_probing(
        &["--memory", "256m", "--balloon", "160m,deflate-on-oom=on"],
        &script,
    );
    assert!(output.contains("GOT IT\n"), "{output}");
    let output = run_probing(&["--memory", "256m", "--balloon", "160m"], &script);
    assert!(output.contains("DID NOT\n"), "{output}");
}
