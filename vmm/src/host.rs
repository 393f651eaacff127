//! What the host offers: the findings behind `mote doctor`.
//!
//! Everything here only looks; nothing is left behind.
#![expect(
    unsafe_code,
    reason = "asks the kernel for features by raw system calls"
)]

use std::arch::x86_64::__cpuid;
use std::fs;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use arch::regs::CpuMode;
use devices::error::chain;
use kvm_ioctls::{Cap, Kvm};

use crate::config::{Config, MIN_MEMORY, Payload};
use crate::events::{StopReason, StopRequest};
use crate::kvm::{self, REQUIRED};
use crate::vm::Vm;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// As it should be.
    Good,
    /// Something mote could use is missing.
    Warning,
    /// A Linux guest cannot boot.
    Fatal,
}

/// One thing that was looked at.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Short name, fixed: scripts look for it.
    pub check: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// What was found.
    pub found: String,
    /// What to do about it; nothing where all is well.
    pub advice: Option<&'static str>,
}

impl Finding {
    fn good(check: &'static str, found: impl Into<String>) -> Self {
        Self {
            check,
            severity: Severity::Good,
            found: found.into(),
            advice: None,
        }
    }

    fn bad(
        check: &'static str,
        severity: Severity,
        found: impl Into<String>,
        advice: &'static str,
    ) -> Self {
        Self {
            check,
            severity,
            found: found.into(),
            advice: Some(advice),
        }
    }

    fn optional(check: &'static str, present: bool, advice: &'static str) -> Self {
        if present {
            Self::good(check, "present")
        } else {
            Self::bad(check, Severity::Warning, "missing", advice)
        }
    }
}

/// What mote can use beyond what it needs.
const USEFUL: [(Cap, &str); 5] = [
    (Cap::GetTscKhz, "KVM_CAP_GET_TSC_KHZ"),
    (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK"),
    (Cap::Xsave, "KVM_CAP_XSAVE"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    (Cap::ReadonlyMem, "KVM_CAP_READONLY_MEM"),
];

/// Loop iterations a second below which KVM interprets kernel-mode code instead of executing it.
/// Software KVMs were seen at 0.8 million; an emulated machine with hardware virtualization at tens of
/// millions, real hardware at a thousand million.
const MIN_LOOP_SPEED: f64 = 5e6;
/// How long the self-test guest may take.
const SELF_TEST_TIMEOUT: Duration = Duration::from_millis(500);

/// What this host itself runs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hypervisor {
    /// The twelve letters by which it names itself (CPUID, leaf 0x4000_0000).
    pub signature: String,
    /// The emulator that it is, if it is one: its times are not those of hardware.
    pub emulator: Option<&'static str>,
}

/// Asks the CPU; none on hardware.
pub fn hypervisor() -> Option<Hypervisor> {
    const PRESENT: u32 = 1 << 31;
    if __cpuid(1).ecx & PRESENT == 0 {
        return None;
    }
    let name = __cpuid(0x4000_0000);
    let bytes: Vec<u8> = ([name.ebx, name.ecx, name.edx].into_iter())
        .flat_map(u32::to_le_bytes)
        .filter(|byte| *byte != 0)
        .collect();
    let signature = String::from_utf8_lossy(&bytes).into_owned();
    let emulator = (signature == "TCGTCGTCGTCG").then_some("QEMU's CPU emulator (TCG)");
    Some(Hypervisor {
        signature,
        emulator,
    })
}

/// Looks at everything.
pub fn examine(kvm_device: &Path) -> Vec<Finding> {
    let mut findings = Vec::new();
    match kvm::open(kvm_device) {
        Ok(kvm) => {
            findings.push(Finding::good(
                "kvm",
                format!(
                    "{} is there, API version {}",
                    kvm_device.display(),
                    kvm::API_VERSION
                ),
            ));
            findings.extend(capabilities(&kvm));
            if findings
                .iter()
                .all(|finding| finding.severity != Severity::Fatal)
            {
                findings.push(self_test(kvm_device));
            }
        }
        Err(error) => findings.push(Finding::bad(
            "kvm",
            Severity::Fatal,
            chain(&error),
            "mote needs KVM: what to do is said before",
        )),
    }
    findings.extend([
        huge_pages(),
        cgroups(),
        Finding::optional(
            "tun",
            Path::new("/dev/net/tun").exists(),
            "modprobe tun: tap interfaces need it",
        ),
        userfaultfd(),
        io_uring(),
        landlock(),
    ]);
    findings
}

fn capabilities(kvm: &Kvm) -> Vec<Finding> {
    let mut findings: Vec<_> = REQUIRED
        .into_iter()
        .map(|(cap, name)| {
            if kvm.check_extension(cap) {
                Finding::good(name, "present")
            } else {
                Finding::bad(
                    name,
                    Severity::Fatal,
                    "missing",
                    "a newer host kernel has it (4.14 or later)",
                )
            }
        })
        .collect();
    findings.extend(USEFUL.into_iter().map(|(cap, name)| {
        Finding::optional(
            name,
            kvm.check_extension(cap),
            "mote goes on without it; a newer host kernel has it",
        )
    }));
    findings.push(Finding::good(
        "vcpus",
        format!("up to {} a guest", kvm.get_max_vcpus()),
    ));
    findings
}

/// Iterations of the self-test's loop: a few milliseconds on an interpreter.
const ITERATIONS: u32 = 20_000;
/// How often the loop is run. The fastest counts: whatever else a host does only makes one slower.
const ROUNDS: u8 = 6;

/// Runs a guest of a few instructions at CPL 0 in long mode: a loop whose speed tells an interpreter
/// from a CPU, then POPCNT, which a Linux kernel uses and interpreters were seen not to know.
fn self_test(kvm_device: &Path) -> Finding {
    const CHECK: &str = "self-test";
    const ADVICE: &str = "this KVM is a software implementation that interprets kernel-mode code, or it \
         is broken: a Linux guest cannot run on it; use a host with hardware virtualization, or run \
         inside the emulated host (tests/emulated-host)";
    let fatal = |found: String| Finding::bad(CHECK, Severity::Fatal, found, ADVICE);
    let elapsed = match measure_loop(kvm_device) {
        Ok(elapsed) => elapsed,
        Err(why) => return fatal(why),
    };
    let speed = f64::from(ITERATIONS) / elapsed.as_secs_f64();
    let found = format!(
        "kernel-mode code runs at {:.1} million loop iterations a second",
        speed / 1e6
    );
    if speed < MIN_LOOP_SPEED {
        fatal(found)
    } else {
        Finding::good(CHECK, found)
    }
}

/// The shortest time that the loop took, between two boot marks of the guest.
fn measure_loop(kvm_device: &Path) -> Result<Duration, String> {
    let port = arch::layout::BOOT_TIMER_PORT.to_le_bytes();
    let count = ITERATIONS.to_le_bytes();
    let mut code = Vec::new();
    code.extend([0x66, 0xba, port[0], port[1]]); // mov dx, BOOT_TIMER_PORT
    code.extend([0xb3, ROUNDS]); // mov bl, ROUNDS
    code.extend([0xb0, 0x01, 0xee]); // again: mov al, 1; out dx, al
    code.push(0xb9);
    code.extend(count); // mov ecx, ITERATIONS
    code.extend([0xff, 0xc9, 0x75, 0xfc]); // dec ecx; jnz back
    code.extend([0xb0, 0x02, 0xee]); // mov al, 2; out dx, al
    code.extend([0xfe, 0xcb, 0x75, 0xed]); // dec bl; jnz again
    code.extend([0xf3, 0x0f, 0xb8, 0xc1]); // popcnt eax, ecx
    code.extend([0xb0, 0x03, 0xee]); // mov al, 3; out dx, al
    code.extend([0xf4, 0xeb, 0xfd]); // hlt; jmp back

    let config = Config::new(1, MIN_MEMORY)
        .map_err(|error| error.to_string())?
        .with_kvm_device(kvm_device)
        .with_boot_timer(true);
    let payload = Payload::Code {
        bytes: code,
        gpa: 0x10_0000,
        mode: CpuMode::Long,
    };
    let mut vm = Vm::build(&config, payload, None).map_err(|error| chain(&error))?;
    let stopper = vm.stopper();
    let deadline = std::thread::spawn({
        let stopper = stopper.clone();
        move || {
            std::thread::park_timeout(SELF_TEST_TIMEOUT);
            stopper.stop(StopRequest::Timeout);
        }
    });
    vm.start();
    let mut marks = Vec::new();
    let reason = vm.run(|mark| {
        if mark.value == 3 {
            stopper.stop(StopRequest::Quit);
        } else {
            marks.push(mark.at);
        }
    });
    deadline.thread().unpark();
    let _ = deadline.join();
    let fastest = marks
        .chunks_exact(2)
        .map(|mark| mark[1].saturating_duration_since(mark[0]))
        .min();
    match (reason, fastest) {
        (Ok(StopReason::Requested(StopRequest::Quit)), Some(fastest)) => {
            Ok(fastest.max(Duration::from_nanos(1)))
        }
        (Ok(StopReason::Crashed(report)), _) => Err(format!(
            "a guest of a few instructions crashed: {}",
            report.cause
        )),
        (Ok(reason), _) => Err(format!(
            "a guest of a few instructions did not finish: {reason:?}"
        )),
        (Err(error), _) => Err(chain(&error)),
    }
}

fn huge_pages() -> Finding {
    const CHECK: &str = "huge-pages";
    let enabled =
        fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    let chosen = enabled
        .split(['[', ']'])
        .nth(1)
        .unwrap_or("missing")
        .to_owned();
    let reserved = fs::read_to_string("/proc/sys/vm/nr_hugepages").unwrap_or_default();
    let reserved = reserved.trim();
    let found = format!(
        "transparent: {chosen}, reserved: {}",
        if reserved.is_empty() { "0" } else { reserved }
    );
    if matches!(chosen.as_str(), "always" | "madvise") {
        Finding::good(CHECK, found)
    } else {
        Finding::bad(
            CHECK,
            Severity::Warning,
            found,
            "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled: guests run faster on huge pages",
        )
    }
}

fn cgroups() -> Finding {
    const CHECK: &str = "cgroup";
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        Finding::good(CHECK, "version 2")
    } else {
        let found = if Path::new("/sys/fs/cgroup/memory").exists() {
            "version 1"
        } else {
            "not mounted"
        };
        Finding::bad(
            CHECK,
            Severity::Warning,
            found,
            "limits on guests need cgroup version 2",
        )
    }
}

/// The result of a system call that gives a new descriptor, which is closed again.
fn probe(result: libc::c_long) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    #[expect(clippy::cast_possible_truncation, reason = "a descriptor fits")]
    // SAFETY: the call just made this descriptor, and nobody else has it.
    drop(unsafe { OwnedFd::from_raw_fd(result as i32) });
    Ok(())
}

fn probed(check: &'static str, result: io::Result<()>, advice: &'static str) -> Finding {
    match result {
        Ok(()) => Finding::good(check, "present"),
        Err(error) => Finding::bad(
            check,
            Severity::Warning,
            format!("not usable: {error}"),
            advice,
        ),
    }
}

fn userfaultfd() -> Finding {
    /// Faults of user code only: what an unprivileged user may have.
    const UFFD_USER_MODE_ONLY: libc::c_int = 1;
    // SAFETY: takes flags only.
    let result = probe(unsafe {
        libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | UFFD_USER_MODE_ONLY)
    });
    probed(
        "userfaultfd",
        result,
        "a kernel with CONFIG_USERFAULTFD has it; lazy restore uses it",
    )
}

fn io_uring() -> Finding {
    // Large enough for struct io_uring_params, which the call fills.
    let mut params = [0u64; 15];
    // SAFETY: the buffer is 120 bytes, the size of struct io_uring_params, and outlives the call.
    let result = probe(unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, params.as_mut_ptr()) });
    probed(
        "io_uring",
        result,
        "sysctl kernel.io_uring_disabled=0; block devices are slower without it",
    )
}

fn landlock() -> Finding {
    const LANDLOCK_CREATE_RULESET_VERSION: u32 = 1;
    // SAFETY: with this flag the call takes no attributes and gives a version number.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<u8>(),
            0usize,
            LANDLOCK_CREATE_RULESET_VERSION,
        )
    };
    if version > 0 {
        Finding::good("landlock", format!("ABI version {version}"))
    } else {
        Finding::bad(
            "landlock",
            Severity::Warning,
            format!("not usable: {}", io::Error::last_os_error()),
            "boot the host with lsm=landlock,…; the monitor's own sandbox can use it",
        )
    }
}
