//! What only the kernel sees of a start: its trace points (Linux, Documentation/trace/events.rst), in an instance of their own, so that whoever
//! else uses them is not disturbed. Needs root; what cannot be traced is left out.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where they may be mounted.
const PLACES: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
/// A start has some ten thousand entries into the guest; the first ones are kept.
const BUFFER_KIB: &str = "8192";
/// KVM_CREATE_VCPU (linux/kvm.h).
const CREATE_VCPU: &str = "0xae41";
/// Each, with the filter it has.
const EVENTS: [(&str, Option<&str>); 4] = [
    ("sched/sched_process_fork", None),
    ("cgroup/cgroup_mkdir", None),
    ("syscalls/sys_enter_ioctl", Some("cmd == 0xae41")),
    ("kvm/kvm_entry", None),
];

/// An instance of the trace points. It is removed when it is dropped.
#[derive(Debug)]
pub struct Tracer {
    directory: PathBuf,
    /// Those that this kernel has.
    events: Vec<&'static str>,
}

/// What was seen, from the start on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// The container's control group, or the virtual machine's first vCPU, was made.
    pub environment: Option<Duration>,
    /// A vCPU entered the guest.
    pub guest: Option<Duration>,
}

impl Tracer {
    /// Makes one; none where this process may not.
    pub fn make() -> Option<Self> {
        let mounted = |place: &&str| Path::new(place).join("instances").is_dir();
        let place = PLACES.iter().find(|place| mounted(place))?;
        let directory = Path::new(place)
            .join("instances")
            .join(format!("mote-bench-{}", std::process::id()));
        fs::create_dir(&directory).ok()?;
        let mut tracer = Self {
            directory,
            events: Vec::new(),
        };
        tracer.write("trace_clock", "mono").ok()?;
        tracer.write("buffer_size_kb", BUFFER_KIB).ok()?;
        tracer.write("options/overwrite", "0").ok()?;
        tracer.write("tracing_on", "0").ok()?;
        for (event, filter) in EVENTS {
            let filtered = match filter {
                Some(filter) => tracer
                    .write(&format!("events/{event}/filter"), filter)
                    .is_ok(),
                None => true,
            };
            if filtered && tracer.directory.join("events").join(event).is_dir() {
                tracer.events.push(event);
            }
        }
        Some(tracer)
    }

    fn write(&self, file: &str, text: &str) -> io::Result<()> {
        fs::write(self.directory.join(file), text)
    }

    fn switch(&self, on: &str) -> io::Result<()> {
        for event in &self.events {
            self.write(&format!("events/{event}/enable"), on)?;
        }
        self.write("tracing_on", on)
    }

    /// Begins to note.
    pub fn begin(&self) -> io::Result<()> {
        self.write("trace", "")?;
        self.switch("1")
    }

    /// Ends that, as there is nothing to be found.
    pub fn give_up(&self) {
        // What is still on is switched off by whoever begins next, or with the instance.
        let _ = self.switch("0");
    }

    /// Ends that, and finds what has come of `process`, which was made at `began` of the monotonic clock and whose control groups are below `group`.
    pub fn end(&self, process: u32, began: Duration, group: Option<&str>) -> io::Result<Seen> {
        self.switch("0")?;
        let trace = fs::read_to_string(self.directory.join("trace"))?;
        Ok(find(&trace, process, began, group))
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let _ = self.switch("0");
        // The kernel removes what is in it.
        let _ = fs::remove_dir(&self.directory);
    }
}

/// Looks through a trace as the kernel writes it: `COMMAND-PID [CPU] FLAGS SECONDS: EVENT: WHAT`.
fn find(trace: &str, process: u32, began: Duration, group: Option<&str>) -> Seen {
    let mut seen = Seen::default();
    let mut family = BTreeSet::from([process]);
    for line in trace.lines().filter(|line| !line.starts_with('#')) {
        let Some((pid, at, event)) = take_apart(line) else {
            continue;
        };
        let Some(at) = at.checked_sub(began) else {
            continue;
        };
        let is_of_it = family.contains(&pid);
        if let Some(what) = event.strip_prefix("sched_process_fork: ") {
            let number = |name: &str| {
                what.split(' ')
                    .find_map(|word| word.strip_prefix(name)?.parse().ok())
            };
            if let (Some(parent), Some(child)) = (number("pid="), number("child_pid="))
                && family.contains(&parent)
            {
                family.insert(child);
            }
        } else if let Some(what) = event.strip_prefix("cgroup_mkdir: ") {
            let path = what.split_once("path=").map(|(_, path)| path);
            if let (Some(path), Some(group)) = (path, group)
                && path
                    .strip_prefix(group)
                    .is_some_and(|rest| rest.starts_with('/'))
            {
                seen.environment.get_or_insert(at);
            }
        } else if event.starts_with("sys_ioctl(") {
            if is_of_it && event.contains(&CREATE_VCPU[2..]) {
                seen.environment.get_or_insert(at);
            }
        } else if event.starts_with("kvm_entry: ") && is_of_it {
            seen.guest.get_or_insert(at);
        }
    }
    seen
}

fn take_apart(line: &str) -> Option<(u32, Duration, &str)> {
    // A command's name may have anything in it, but no more than 16 bytes of it.
    let (command, rest) = line.split_once(" [")?;
    let pid = command.trim_end().rsplit_once('-')?.1.parse().ok()?;
    let (_, rest) = rest.split_once("] ")?;
    let (head, event) = rest.split_once(": ")?;
    let seconds: f64 = head.rsplit(' ').next()?.parse().ok()?;
    Some((pid, Duration::try_from_secs_f64(seconds).ok()?, event))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "\
# tracer: nop
            mote-100     [000] d..1.    10.000100: sched_process_fork: comm=mote pid=100 child_comm=mote child_pid=101
            qemu-50      [000] d..1.    10.000200: kvm_entry: vcpu 0, rip 0xfff0
            mote-101     [001] .....    10.000300: sys_ioctl(fd: 5, cmd: ae41, arg: 0)
       a [x] b-c-101     [001] .....    10.000400: kvm_entry: vcpu 0, rip 0x1000000
            mote-101     [001] .....    10.000500: kvm_entry: vcpu 0, rip 0x1000000
            crun-100     [001] .....    10.000600: cgroup_mkdir: root=0 id=3 level=2 path=/mote-bench-1/a-1/box
";

    #[test]
    fn what_is_of_the_process_is_found() {
        let seen = find(TRACE, 100, Duration::from_secs(10), None);
        assert_eq!(seen.environment, Some(Duration::from_micros(300)));
        assert_eq!(seen.guest, Some(Duration::from_micros(500)));
        let none = find(TRACE, 7, Duration::from_secs(10), Some("/mote-bench-1/a"));
        assert_eq!(none, Seen::default());
        let container = find(TRACE, 7, Duration::from_secs(10), Some("/mote-bench-1/a-1"));
        assert_eq!(container.environment, Some(Duration::from_micros(600)));
        assert_eq!(
            find(TRACE, 100, Duration::from_secs(11), None),
            Seen::default()
        );
    }
}
