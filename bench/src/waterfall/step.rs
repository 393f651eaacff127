//! What is known to happen in a start, and what the time until then is called.

use serde::{Deserialize, Serialize};

use super::Part;

/// Something that has happened. It ends the phase that is called after it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Step {
    /// `main` runs.
    Exec,
    /// The command line was taken apart.
    Arguments,
    /// The template was found, and is what it was.
    Template,
    /// A pool's guest was asked to run the command.
    Asked,
    /// It had the request.
    Taken,
    /// It had the command, and its console its other end.
    Given,
    /// Configuration, kernel and initial RAM disk were open.
    Files,
    /// The terminal and the console's other end were open.
    Console,
    /// The state of a snapshot was read.
    State,
    /// The kernel's headers were looked at.
    Checked,
    /// Event loop and devices were there.
    Made,
    /// Guest memory was reserved.
    Memory,
    /// That of a snapshot was mapped.
    MemoryFile,
    /// `/dev/kvm` was open.
    KvmOpen,
    /// The VM was there.
    KvmVm,
    /// It had its memory.
    KvmMemory,
    /// It had its interrupt controller.
    KvmIrqchip,
    /// The devices were on their buses.
    Buses,
    /// What KVM supports was known.
    KvmCpuid,
    /// The vCPUs were there.
    KvmVcpus,
    /// They had their features.
    KvmFeatures,
    /// The kernel was in guest memory.
    Kernel,
    /// The initial RAM disk was.
    Initrd,
    /// All that the kernel looks for was, and the boot vCPU had its registers.
    Tables,
    /// vCPUs and devices had their states.
    Restored,
    /// vCPUs had their threads.
    Threads,
    /// Signals, keys and timers had somewhere to go.
    Attended,
    /// KVM had mapped what the guest will touch first.
    PreFault,
    /// The boot vCPU was about to enter the guest for the first time.
    Entry,
    /// The guest looked at this device for the first time.
    Place(String),
    /// The driver of this virtio device was ready.
    Driver(String),
    /// The kernel opened the console for the first process.
    ConsoleOpened,
    /// The kernel printed a well-known line: its id.
    Line(String),
    /// The first process of the default guest has begun.
    Init,
    /// It was about to start the command.
    Command,
    /// The guest handed the first byte to its serial port. It may take a while until that has gone on from there.
    Printed,
    /// A restored guest read its command.
    Job,
    /// The guest marked this point of its boot.
    Mark(u8),
    /// The first byte that the kernel has not printed has gone where the console's output goes.
    Output,
    /// The last one has.
    LastOutput,
    /// There was a reason for the machine to stop.
    Ended,
    /// All that was printed had been written.
    Flushed,
    /// vCPUs and devices were gone.
    TakenDown,
    /// A pool's guest has said how it ended.
    Replied,
    /// What explains this start had been passed on: only with `--explain`.
    Reported,
    /// The exit status arrived.
    Exit,
    /// Nothing is left: KVM's VM and the guest's memory are gone.
    Gone,
}

/// Well-known lines of Linux: what is in them, their id, and what the time until then is called.
pub(super) const LINES: [(&str, &str, &str); 9] = [
    ("Memory: ", "line-memory", "memory is set up"),
    ("smp: Brought up ", "line-smp", "CPUs are up"),
    (
        "clocksource: Switched to clocksource",
        "line-clock",
        "the clock runs",
    ),
    (
        "Trying to unpack rootfs image",
        "line-unpack",
        "it unpacks the initial RAM disk",
    ),
    (
        "Unpacking initramfs",
        "line-unpack",
        "it unpacks the initial RAM disk",
    ),
    ("Freeing initrd memory", "line-unpacked", "that is unpacked"),
    (
        "Serial: 8250/16550 driver",
        "line-serial",
        "the serial driver",
    ),
    (
        "Freeing unused kernel image (initmem)",
        "line-initmem",
        "its own start is done",
    ),
    (" as init process", "line-init", "it runs init"),
];

impl Step {
    /// What it is called in scripts.
    pub(super) fn id(&self) -> String {
        let plain = match self {
            Self::Place(name) => return format!("place-{}", dashed(name)),
            Self::Driver(name) => return format!("driver-{}", dashed(name)),
            Self::Mark(value) => return format!("mark-{value}"),
            Self::Line(id) => return id.clone(),
            Self::Exec => "exec",
            Self::Arguments => "arguments",
            Self::Template => "template",
            Self::Asked => "asked",
            Self::Taken => "taken",
            Self::Given => "given",
            Self::Files => "files",
            Self::Console => "console",
            Self::State => "state",
            Self::Checked => "checked",
            Self::Made => "devices",
            Self::Memory => "memory",
            Self::MemoryFile => "memory-file",
            Self::KvmOpen => "kvm-open",
            Self::KvmVm => "kvm-vm",
            Self::KvmMemory => "kvm-memory",
            Self::KvmIrqchip => "kvm-irqchip",
            Self::Buses => "buses",
            Self::KvmCpuid => "kvm-cpuid",
            Self::KvmVcpus => "kvm-vcpus",
            Self::KvmFeatures => "kvm-features",
            Self::Kernel => "kernel",
            Self::Initrd => "initrd",
            Self::Tables => "tables",
            Self::Restored => "restored",
            Self::Threads => "threads",
            Self::Attended => "attended",
            Self::PreFault => "pre-fault",
            Self::Entry => "entry",
            Self::ConsoleOpened => "console-opened",
            Self::Init => "init",
            Self::Command => "command",
            Self::Printed => "printed",
            Self::Job => "job",
            Self::Output => "output",
            Self::LastOutput => "last-output",
            Self::Ended => "ended",
            Self::Flushed => "flushed",
            Self::TakenDown => "taken-down",
            Self::Replied => "replied",
            Self::Reported => "reported",
            Self::Exit => "exit",
            Self::Gone => "gone",
        };
        plain.to_owned()
    }

    /// What the time until then is called.
    pub(super) fn name(&self) -> String {
        let plain = match self {
            Self::Place(name) => return format!("kernel, until the {name}"),
            Self::Driver(name) => return format!("driver of {name} is ready"),
            Self::Mark(value) => return format!("until the guest's mark {value}"),
            Self::Line(id) => {
                let known = LINES.iter().find(|(_, known, _)| known == id);
                return format!("kernel, until {}", known.map_or("a line", |line| line.2));
            }
            Self::Exec => "exec, until main",
            Self::Arguments => "arguments",
            Self::Template => "template is looked up",
            Self::Asked => "a pool's guest is asked",
            Self::Taken => "it takes the request",
            Self::Given => "it gets the streams and the command",
            Self::Files => "configuration, kernel, initrd are opened",
            Self::Console => "terminal and console",
            Self::State => "state of the snapshot is read",
            Self::Checked => "kernel's headers are checked",
            Self::Made => "event loop and devices are made",
            Self::Memory => "guest memory is reserved",
            Self::MemoryFile => "memory of the snapshot is mapped",
            Self::KvmOpen => "/dev/kvm and its capabilities",
            Self::KvmVm => "KVM_CREATE_VM",
            Self::KvmMemory => "KVM memory slots",
            Self::KvmIrqchip => "KVM interrupt controller",
            Self::Buses => "devices are put on their buses",
            Self::KvmCpuid => "KVM's CPUID is asked for",
            Self::KvmVcpus => "KVM_CREATE_VCPU",
            Self::KvmFeatures => "KVM CPUID, MSRs, local APICs",
            Self::Kernel => "kernel is mapped",
            Self::Initrd => "initrd is mapped",
            Self::Tables => "tables, command line, registers",
            Self::Restored => "vCPUs and devices get their states",
            Self::Threads => "vCPU threads",
            Self::Attended => "signals, keys, timers",
            Self::PreFault => "KVM maps what is touched first",
            Self::Entry => "until the first KVM_RUN",
            Self::ConsoleOpened => "kernel, until it opens the console for init",
            Self::Init => "kernel, until init runs",
            Self::Command => "init, until it starts the command",
            Self::Job => "guest, until it reads its command",
            Self::Printed => "until the guest prints the first byte",
            Self::Output => "until the first byte of output is written",
            Self::LastOutput => "until the last byte of output is written",
            Self::Ended => "until the guest's end",
            Self::Flushed => "console's output is written",
            Self::TakenDown => "vCPUs and devices are taken down",
            Self::Replied => "until the pool's guest says how it ended",
            Self::Reported => "this report (only with --explain)",
            Self::Exit => "exit, until the status arrives",
            Self::Gone => "until nothing is left (VM, memory)",
        };
        plain.to_owned()
    }

    /// Who is at work until then; None: whoever was before.
    pub(super) fn part(&self) -> Option<Part> {
        Some(match self {
            // Where the first process was not seen to begin, nobody knows.
            Self::Mark(_) | Self::Printed | Self::Output | Self::LastOutput | Self::Ended => {
                return None;
            }
            Self::Place(_) | Self::Driver(_) | Self::ConsoleOpened | Self::Line(_) => Part::Kernel,
            Self::Init | Self::Job => Part::Kernel,
            Self::Command => Part::Init,
            Self::Flushed | Self::TakenDown | Self::Replied | Self::Reported => Part::End,
            Self::Exit | Self::Gone => Part::End,
            _ => Part::Monitor,
        })
    }
}

fn dashed(name: &str) -> String {
    let words = name.split(|letter: char| !letter.is_ascii_alphanumeric());
    let words: Vec<String> = words
        .filter(|word| !word.is_empty())
        .map(str::to_ascii_lowercase)
        .collect();
    words.join("-")
}
