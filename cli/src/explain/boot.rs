//! What a machine knows of its own making.

use std::time::Instant;

use ::bench::waterfall::step::Step;
use ::bench::waterfall::{Initrd, Kernel, KernelKind, Origin};
use devices::lock;
use vmm::Insight;
use vmm::config::{Config, HugePages};

use super::RECORDER;
use crate::args::RunArgs;
use crate::console::ConsoleKind;
use crate::guest::Guest;

/// Whether the first process is that of the default guest, and reads mote's own command line.
pub(super) fn has_default_init(args: &RunArgs) -> bool {
    let has_root = args.rootfs.is_some() || crate::devices::pmem::root(args).is_some();
    args.initrd.is_none()
        && args.cmdline.is_none()
        && args.config_file.is_none()
        && (!has_root || !args.command.is_empty())
}

/// Notes what is booted.
pub(crate) fn booting(args: &RunArgs, config: &Config, guest: &Guest) {
    let Some(recorder) = RECORDER.get() else {
        return;
    };
    let mut noted = lock(&recorder.noted);
    let facts = &mut noted.facts;
    let kind = if args.kernel.is_some() || args.config_file.is_some() {
        KernelKind::Named
    } else if guest.kernel_path.ends_with("tuned/vmlinux") {
        KernelKind::Tuned
    } else {
        KernelKind::Packaged
    };
    facts.kernel = Some(Kernel {
        path: guest.kernel_path.to_string_lossy().into_owned(),
        kind,
        unpacked: guest.kernel.is_new,
        unpacks_itself: guest.kernel.fallback.is_some(),
    });
    facts.initrd = guest.initrd.as_ref().map(|(file, _)| Initrd {
        bytes: file.metadata().map_or(0, |metadata| metadata.len()),
        default: args.initrd.is_none() && args.config_file.is_none(),
        made: guest.initrd_is_new,
    });
    facts.memory = config.memory();
    facts.huge_pages = config.huge_pages() != HugePages::None;
    facts.cpus = config.cpus();
    facts.pci = config.pci();
    let console = match guest.console {
        ConsoleKind::Serial => "serial",
        ConsoleKind::Virtio => "virtio",
        ConsoleKind::Off => "off",
    };
    facts.console = Some(console.to_owned());
}

/// When it was where. One of a pool was made before anyone asked for it.
pub(super) fn steps(
    origin: Origin,
    insight: &Insight,
    note: &mut dyn FnMut(Step, Option<Instant>),
) {
    if origin == Origin::Pool {
        return;
    }
    let times = *insight.boot_times();
    let mut all = |steps: &[(Step, Instant)]| {
        for (step, then) in steps {
            note(step.clone(), Some(*then));
        }
    };
    all(&[
        (Step::Made, times.made),
        (Step::KvmOpen, times.opened),
        (Step::KvmVm, times.vm),
        (Step::KvmMemory, times.slots),
        (Step::KvmIrqchip, times.kvm),
        (Step::Buses, times.devices),
        (Step::KvmCpuid, times.cpuid),
        (Step::KvmVcpus, times.created),
        (Step::Threads, times.built),
    ]);
    if origin == Origin::Boot {
        all(&[
            (Step::Checked, times.checked),
            (Step::Memory, times.memory),
            (Step::KvmFeatures, times.vcpus),
            (Step::Kernel, times.kernel),
            (Step::Initrd, times.initrd),
            (Step::Tables, times.loaded),
        ]);
    } else {
        all(&[
            (Step::MemoryFile, times.memory),
            (Step::Restored, times.loaded),
        ]);
        note(Step::PreFault, insight.pre_faulted());
    }
}
