//! What the machine is made of, as Linux sees it: keyboard, threads, huge pages, changes to the CPU, places
//! for disks.

use std::fs::{self, File};
use std::path::Path;

use arch::cpu_config::{CpuConfig, CpuidModifier, CpuidRegister};
use arch::kernel::Protocol;
use devices::rate_limiter::RateLimit;
use tests::disk::filled;
use tests::driven::Driven;
use tests::guest;
use tests::monitor::mote;
use tests::tiny::Machine;
use vmm::StopReason;
use vmm::config::{Config, Payload};
use vmm_sys_util::tempdir::TempDir;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("ctrl_alt_del_restarts", ctrl_alt_del_restarts),
    ("ctrl_alt_del_is_for_init", ctrl_alt_del_is_for_init),
    ("two_threads_a_core", two_threads_a_core),
    ("huge_pages", huge_pages),
    ("a_cpu_without_a_feature", a_cpu_without_a_feature),
    ("a_disk_comes_into_its_place", a_disk_comes_into_its_place),
];

/// What has VTs, and a driver for keyboards.
fn debian_kernel() -> String {
    let kernel = guest::packaged_kernel().join("vmlinuz");
    kernel.to_str().unwrap().to_owned()
}

const KEYBOARD_IS_THERE: &str = "await grep -q AT.*keyboard /proc/bus/input/devices";

fn ctrl_alt_del_restarts() {
    let directory = TempDir::new().unwrap();
    let kernel = debian_kernel();
    let options = ["--kernel", &kernel, "--memory", "256m", "--keyboard"];
    let mut guest = Driven::start(directory.as_path(), &options);
    guest.guest(KEYBOARD_IS_THERE);
    guest.ask("ctrl-alt-del");
    guest.live().expect("Restarting system");
    let ended = guest.wait();
    assert_eq!(ended.status, 0, "{ended:#?}");
}

/// Linux hands it on if it is told to; the keys are let go, so they can be pressed again.
fn ctrl_alt_del_is_for_init() {
    let directory = TempDir::new().unwrap();
    let kernel = debian_kernel();
    let options = ["--kernel", &kernel, "--memory", "256m", "--keyboard"];
    let mut guest = Driven::start(directory.as_path(), &options);
    guest.guest(KEYBOARD_IS_THERE);
    guest.guest("echo 0 > /proc/sys/kernel/ctrl-alt-del");
    // The signal comes while it waits for it: one that comes while it reads a command would end it.
    guest.guest("signals=0; trap 'signals=$((signals + 1))' INT");
    for count in 1..=2 {
        guest.tell(&format!(
            "echo WAITING; tries=0; while [ $signals -lt {count} ] && [ $tries -lt 600 ]; do usleep 100000; tries=$((tries + 1)); done; must [ $signals = {count} ]"
        ));
        guest.live().expect("WAITING");
        guest.ask("ctrl-alt-del");
        guest.done();
    }
    let counters = guest.numbers("counters keyboard");
    assert!(counters["reads"] >= 22, "{counters:?}");
    assert_eq!(counters["errors"], 0);
    // An interrupt for each byte of a key.
    let interrupts = guest.guest("grep i8042 /proc/interrupts");
    let count = interrupts.split_whitespace().nth(1).unwrap();
    assert!(count.parse::<u32>().unwrap() >= 22, "{interrupts}");
    guest.end();
}

fn two_threads_a_core() {
    let script = "cd /sys/devices/system/cpu; cat cpu?/topology/thread_siblings_list; \
        cat cpu?/topology/core_id; cat smt/active";
    for append in ["", "acpi=off"] {
        let output = guest::run(&["--cpus", "4", "--smt", "--append", append], script);
        let lines: Vec<&str> = output.lines().collect();
        assert_eq!(lines[..4], ["0-1", "0-1", "2-3", "2-3"], "{output}");
        let cores = &lines[4..8];
        assert!(cores[0] == cores[1] && cores[2] == cores[3], "{output}");
        assert_ne!(cores[0], cores[2], "{output}");
        assert_eq!(lines[8], "1", "{output}");
    }
    let output = guest::run(&["--cpus", "4"], script);
    assert!(output.starts_with("0\n1\n2\n3\n"), "{output}");
    mote(["run", "--cpus", "3", "--smt"]).expect_error(125, &["--cpus 3", "an even number"]);
}

/// Some of what the host has in all, and a guest that has it.
fn huge_pages() {
    const PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
    fs::write(PAGES, "0").unwrap();
    mote(["run", "--huge-pages", "--", "true"]).expect_error(
        125,
        &["takes 64 huge pages", "0 of the host's 0 are free", PAGES],
    );
    mote(["run", "--huge-pages", "--memory", "17m", "--", "true"])
        .expect_error(125, &["--memory", "multiple of 2 MiB"]);
    fs::write(PAGES, "64").unwrap();
    for options in [&["--huge-pages"][..], &["--huge-pages", "--boot", "pvh"]] {
        // It touches most of what it has.
        let script = "mount -t tmpfs -o size=64m tmp /mnt; \
            dd if=/dev/zero of=/mnt/file bs=1M count=60 2>/dev/null; sha256sum /mnt/file; \
            grep MemTotal /proc/meminfo";
        let output = guest::run(options, script);
        assert!(output.contains("MemTotal"), "{output}");
    }
    // A balloon takes single pages of them, which the host cannot take back: it says so and goes on.
    guest::run(&["--huge-pages", "--balloon", "32m"], "sleep 1");
    fs::write(PAGES, "0").unwrap();
}

/// Boots the tuned kernel in this process, as there is no flag for it; returns what the script printed.
fn boot(config: &Config, directory: &Path, script: &str) -> String {
    let kernel = File::open(guest::tuned_kernel().join("vmlinux")).unwrap();
    let initrd = File::open(guest::probing(directory, script)).unwrap();
    let payload = Payload::Kernel {
        kernel,
        initrd: Some(initrd),
        cmdline: "console=ttyS0 quiet panic=-1 reboot=k".to_owned(),
        protocol: Protocol::Linux64,
    };
    let machine = Machine::try_build(config, payload, RateLimit::default()).unwrap();
    let ended = machine.run();
    let output = String::from_utf8(ended.output).unwrap();
    assert!(matches!(ended.reason, StopReason::PowerOff), "{output}");
    output
}

fn a_cpu_without_a_feature() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let script = "grep -m1 ^flags /proc/cpuinfo";
    let config = Config::new(1, 128 << 20).unwrap();
    let before = boot(&config, directory, script);
    assert!(before.contains(" popcnt "), "{before}");
    // Leaf 1, ECX bit 23.
    let popcnt = CpuidModifier {
        leaf: 1,
        subleaf: 0,
        flags: 0,
        register: CpuidRegister::Ecx,
        mask: 1 << 23,
        value: 0,
    };
    let config = config.with_cpu_config(CpuConfig {
        cpuid: vec![popcnt],
        ..CpuConfig::default()
    });
    let after = boot(&config, directory, script);
    assert!(!after.contains(" popcnt "), "{after}");
    assert!(after.contains(" sse2 "), "{after}");
}

fn a_disk_comes_into_its_place() {
    const MIB: u64 = 1 << 20;
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let empty = directory.join("empty");
    File::create(&empty).unwrap();
    let disk = format!("{},any-size", empty.display());
    mote(["run", "--disk", empty.to_str().unwrap(), "--", "true"]).expect_error(125, &["is empty"]);
    let options = ["--disk", &disk];
    let other = directory.join("other");
    fs::create_dir(&other).unwrap();
    let mut guest = Driven::start(directory, &options);
    // Another guest has the same one.
    let mut other = Driven::start(&other, &options);
    assert_eq!(guest.guest("cat /sys/block/vda/size"), "0\n");
    assert_eq!(other.guest("cat /sys/block/vda/size"), "0\n");
    let image = filled(directory, "image", 4 * MIB, 1);
    let replace = format!("replace disk0 {}", image.display());
    assert_eq!(guest.ask(&replace), (4 * MIB).to_string());
    other.refused(&replace, &["in use"]);
    guest.guest(&format!("await is /sys/block/vda/size {}", 4 * MIB / 512));
    guest.guest("must guest-probe block check /dev/vda --seed 1 --generation 1");
    guest.end();
    other.end();
}
