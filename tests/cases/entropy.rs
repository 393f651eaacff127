//! The entropy device.

use std::time::{Duration, Instant};

use tests::guest::run_probing;
use tests::live::Live;
use vmm_sys_util::tempdir::TempDir;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("it_looks_random", it_looks_random),
    ("off", off),
    ("its_rate", its_rate),
];

fn it_looks_random() {
    let output = run_probing(
        &["--entropy", "on"],
        "cat /sys/class/misc/hw_random/rng_current
        must guest-probe random /dev/hwrng --bytes 64k
        must guest-probe random /dev/random --bytes 64k",
    );
    assert!(output.starts_with("virtio_rng.0\n"), "{output}");
}

fn off() {
    let output = run_probing(
        &["--entropy", "off"],
        "cat /sys/class/misc/hw_random/rng_available; guest-probe features",
    );
    assert!(!output.contains("virtio_rng"), "{output}");
}

fn its_rate() {
    let directory = TempDir::new().unwrap();
    let mut live = Live::probing(
        directory.as_path(),
        &["--entropy", "on,rate=4096"],
        "echo READY; read go; must guest-probe random /dev/hwrng --bytes 16k; echo READ",
    );
    live.expect("READY");
    let start = Instant::now();
    live.send("go");
    live.expect("READ");
    // 4 KiB at once, the rest in 3 seconds. The kernel may have asked for some before.
    assert!(start.elapsed() > Duration::from_millis(2000), "not limited");
    live.wait_for_success();
}
