//! What a monitor uses while its guest works: CPU time by kind of thread, exits.
#![expect(unsafe_code, reason = "another process's clock")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use crate::{guest, monitor};

/// Where KVM keeps its counters.
const KVM_DEBUG: &str = "/sys/kernel/debug/kvm";
/// Ticks a second of what `/proc` tells.
const USER_HZ: u64 = 100;

/// A program that runs guests.
#[derive(Clone, Debug)]
pub enum Monitor {
    /// mote.
    Mote,
    /// A peer that takes Firecracker's configuration file.
    Peer(PathBuf),
}

/// Someone whose guest works.
#[derive(Clone, Debug)]
pub struct Subject {
    /// What it is called in tables.
    pub name: String,
    /// The program.
    pub monitor: Monitor,
    /// mote's options, as on its command line; for a peer, members of its configuration.
    pub options: Options,
}

/// How a guest is set up, in the words of either program.
#[derive(Clone, Debug)]
pub enum Options {
    /// mote's arguments.
    Mote(Vec<String>),
    /// A peer's configuration.
    Peer(serde_json::Value),
}

/// The guest of all subjects.
pub struct Guest<'a> {
    /// Its initial RAM disk.
    pub initrd: &'a Path,
    /// Its memory in MiB.
    pub memory: u32,
    /// Its CPUs.
    pub cpus: u32,
    /// What its kernel is told besides.
    pub append: &'a str,
}

impl Subject {
    /// mote with these options.
    pub fn mote(name: &str, options: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            monitor: Monitor::Mote,
            options: Options::Mote(options.iter().map(|&option| option.to_owned()).collect()),
        }
    }

    /// A peer with this in its configuration.
    pub fn peer(name: &str, path: &Path, configuration: serde_json::Value) -> Self {
        Self {
            name: name.to_owned(),
            monitor: Monitor::Peer(path.to_owned()),
            options: Options::Peer(configuration),
        }
    }

    /// What starts it. Files that it needs are written to `directory`.
    pub fn command(&self, guest: &Guest<'_>, directory: &Path) -> Command {
        let kernel = guest::tuned_kernel().join("vmlinux");
        let (memory, cpus) = (guest.memory, guest.cpus);
        match (&self.monitor, &self.options) {
            (Monitor::Peer(path), Options::Peer(configuration)) => {
                let append = guest.append;
                // Firecracker insists on XCRs, which the CPU of the emulated host does not have.
                let cpu = directory.join("cpu.json");
                fs::write(&cpu, json!({ "kvm_capabilities": ["!56"] }).to_string()).unwrap();
                let mut file = configuration.clone();
                file["cpu-config"] = json!(cpu);
                file["boot-source"] = json!({
                    "kernel_image_path": kernel,
                    "initrd_path": guest.initrd,
                    "boot_args": format!("console=ttyS0 quiet panic=-1 reboot=k pci=off noreplace-smp {append}"),
                });
                file["machine-config"] = json!({ "vcpu_count": cpus, "mem_size_mib": memory });
                let configuration = directory.join("peer.json");
                fs::write(&configuration, file.to_string()).unwrap();
                let mut command = Command::new(path);
                command.args(["--no-api", "--config-file"]);
                command.arg(configuration);
                command
            }
            (_, options) => {
                let mut command = Command::new(monitor::path());
                command.args(["run", "--kernel"]).arg(kernel);
                command.arg("--initrd").arg(guest.initrd);
                command.args([
                    "--memory",
                    &format!("{memory}m"),
                    "--cpus",
                    &cpus.to_string(),
                ]);
                if !guest.append.is_empty() {
                    command.args(["--append", guest.append]);
                }
                if let Options::Mote(options) = options {
                    command.args(options);
                }
                command
            }
        }
    }
}

/// What a monitor has used so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// CPU time of all threads, also of those that have ended, the guest's included.
    pub all: Duration,
    /// That of vCPU threads: the guest's, and what the host does for it in these threads.
    pub vcpus: Duration,
    /// The part of it that was in the guest, by the tick: exact only in the long run.
    pub guest: Duration,
    /// Exits of the guest's CPUs.
    pub exits: u64,
    /// Those that went to user space: I/O, MMIO, signals.
    pub user_exits: u64,
}

impl Usage {
    /// Looks at the process `pid`.
    pub fn of(pid: i32) -> Self {
        let mut usage = Self {
            all: process_time(pid),
            ..Self::default()
        };
        for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
            let task = task.unwrap().path();
            let read = |name: &str| fs::read_to_string(task.join(name)).unwrap_or_default();
            if !read("comm").contains("vcpu") {
                continue;
            }
            usage.vcpus += Duration::from_nanos(number(&read("schedstat"), 0));
            // Behind the name, which is in parentheses: guest_time is field 43 of all.
            let stat = read("stat");
            let rest = stat.rsplit_once(") ").map_or("", |(_, rest)| rest);
            usage.guest += Duration::from_millis(number(rest, 43 - 3) * 1000 / USER_HZ);
        }
        let counters = kvm_counters(pid);
        let counter = |name: &str| {
            let path = counters.as_ref().map(|directory| directory.join(name));
            number(
                &path
                    .and_then(|path| fs::read_to_string(path).ok())
                    .unwrap_or_default(),
                0,
            )
        };
        usage.exits = counter("exits");
        usage.user_exits = counter("io_exits") + counter("mmio_exits") + counter("signal_exits");
        usage
    }

    /// CPU time of all threads but the vCPUs'.
    pub fn others(&self) -> Duration {
        self.all.saturating_sub(self.vcpus)
    }

    /// What was used since `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            all: self.all - before.all,
            vcpus: self.vcpus - before.vcpus,
            guest: self.guest - before.guest,
            exits: self.exits - before.exits,
            user_exits: self.user_exits - before.user_exits,
        }
    }
}

/// Makes KVM's counters visible, if that is allowed.
pub fn show_kvm_counters() {
    if !Path::new(KVM_DEBUG).exists() {
        let mut mount = crate::disk::tool("mount");
        mount.args(["-t", "debugfs", "debugfs", "/sys/kernel/debug"]);
        // Without them there are zeroes.
        let _ = mount.output();
    }
}

/// The directory of a process's virtual machine: its name is the process's number and a descriptor's.
fn kvm_counters(pid: i32) -> Option<PathBuf> {
    let prefix = format!("{pid}-");
    fs::read_dir(KVM_DEBUG)
        .ok()?
        .filter_map(Result::ok)
        .find(|entry| entry.file_name().to_string_lossy().starts_with(&prefix))
        .map(|entry| entry.path())
}

/// The number at this place of a line.
fn number(text: &str, place: usize) -> u64 {
    let word = text.split_whitespace().nth(place);
    word.and_then(|word| word.parse().ok()).unwrap_or(0)
}

/// CPU time of a process, to the nanosecond.
fn process_time(pid: i32) -> Duration {
    let mut clock = 0;
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: both write to variables of ours.
    let result = unsafe {
        match libc::clock_getcpuclockid(pid, &raw mut clock) {
            0 => libc::clock_gettime(clock, &raw mut time),
            error => error,
        }
    };
    assert_eq!(result, 0, "no clock of process {pid}");
    Duration::new(
        u64::try_from(time.tv_sec).unwrap(),
        u32::try_from(time.tv_nsec).unwrap(),
    )
}

/// The one in the middle.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_uses_time() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let before = Usage::of(pid);
        let mut sum = 0_u64;
        while Usage::of(pid).all - before.all < Duration::from_millis(20) {
            sum = sum.wrapping_mul(31).wrapping_add(1);
        }
        let used = Usage::of(pid).since(&before);
        // There are no vCPUs here.
        assert_eq!(used.others(), used.all);
        assert_eq!(used.guest, Duration::ZERO);
        std::hint::black_box(sum);
    }

    #[test]
    fn the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert!(median(Vec::new()).is_nan());
    }
}
