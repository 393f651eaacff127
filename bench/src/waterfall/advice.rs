//! Options that would remove or shrink some of a start. Each is about milliseconds that were measured in this one.

use super::{Advice, KernelKind, Origin, Part, Waterfall};

/// What is about less of a start than this part of it is left out.
const LEAST: f64 = 0.01;
/// Bytes on a serial port from which on they are worth a word.
const MANY_BYTES: u64 = 256;
/// Memory of a guest that asks for nothing else.
const DEFAULT_MEMORY: u64 = 128 << 20;
/// Page faults from which on huge pages would spare many.
const MANY_FAULTS: u64 = 10_000;

/// All that there is to be said.
pub(super) fn of(waterfall: &Waterfall) -> Vec<Advice> {
    let mut all = Vec::new();
    let mut say = |option: &str, ms: f64, why: String| {
        if ms > waterfall.total * LEAST {
            let option = option.to_owned();
            all.push(Advice { option, ms, why });
        }
    };
    about_templates(waterfall, &mut say);
    about_kernel(waterfall, &mut say);
    about_initrd(waterfall, &mut say);
    about_machine(waterfall, &mut say);
    about_console(waterfall, &mut say);
    all.sort_by(|one, other| other.ms.total_cmp(&one.ms));
    all
}

/// Takes an option, how many milliseconds it is about, and what it does.
type Say<'a> = &'a mut dyn FnMut(&str, f64, String);

fn ms_of(waterfall: &Waterfall, ids: &[&str]) -> f64 {
    let phases = ids.iter().filter_map(|id| waterfall.phase(id));
    phases.map(|phase| phase.ms).sum()
}

/// Kernel and first process together.
fn boot(waterfall: &Waterfall) -> f64 {
    waterfall.part(Part::Kernel) + waterfall.part(Part::Init)
}

fn about_templates(waterfall: &Waterfall, say: Say<'_>) {
    match waterfall.origin {
        Origin::Boot => {
            let default = waterfall.facts.initrd.is_some_and(|initrd| initrd.default);
            // A guest of one's own has to be made for that.
            if default && waterfall.phase("entry").is_some() {
                say(
                    "mote template create NAME, mote run --template NAME",
                    boot(waterfall),
                    "would skip kernel and init: the guest goes on from where it waits for a command".into(),
                );
            }
        }
        Origin::Template => {
            let ids = [
                "console",
                "state",
                "devices",
                "memory-file",
                "kvm-open",
                "kvm-vm",
                "kvm-memory",
                "kvm-irqchip",
                "buses",
                "kvm-cpuid",
                "kvm-vcpus",
                "restored",
                "threads",
                "pre-fault",
                "entry",
            ];
            say(
                "mote pool start NAME",
                ms_of(waterfall, &ids),
                "would have this done before the guest is asked for".into(),
            );
        }
        Origin::Pool => {}
    }
}

fn about_kernel(waterfall: &Waterfall, say: Say<'_>) {
    let Some(kernel) = &waterfall.facts.kernel else {
        return;
    };
    let guest = waterfall.part(Part::Kernel);
    if kernel.kind == KernelKind::Packaged {
        let why = "this is the packaged kernel; mote's own has what a guest needs built in, and looks for little else";
        say("resources/kernel/build.sh", boot(waterfall), why.into());
    }
    let made = waterfall.facts.initrd.is_some_and(|initrd| initrd.made);
    let what = match (kernel.unpacked, made) {
        (true, true) => Some("the bzImage was unpacked and the default initial RAM disk made"),
        (true, false) => Some("the bzImage was unpacked"),
        (false, true) => Some("the default initial RAM disk was made"),
        (false, false) => None,
    };
    if let Some(what) = what {
        let why = format!("{what} in this one; later ones find that if the cache can be written");
        say("the next start", ms_of(waterfall, &["files"]), why);
    }
    if kernel.unpacks_itself {
        let why = "the bzImage unpacked itself in the guest, as mote could not (-v says why): a vmlinux need not";
        say("--kernel VMLINUX", guest, why.into());
    }
    if waterfall.facts.pci {
        let looked = waterfall
            .facts
            .places
            .iter()
            .find(|place| place.name == "PCI configuration");
        if let Some(looked) = looked {
            let why = format!(
                "without it the kernel would not look at PCI functions {} times",
                looked.accesses
            );
            say("no --pci", looked.busy, why);
        }
    }
    let virtio = |prefix: &str| {
        let of_devices = waterfall.phases.iter().filter(|phase| {
            let name = phase.id.strip_prefix(prefix);
            name.is_some_and(|name| prefix != "place-" || name.starts_with("virtio-"))
        });
        let all: Vec<f64> = of_devices.map(|phase| phase.ms).collect();
        (all.len(), all.iter().sum::<f64>())
    };
    let ((_, probed), (count, ready)) = (virtio("place-"), virtio("driver-"));
    if count > 1 {
        let why = format!(
            "the kernel looks for {count} virtio devices and starts their drivers one by one"
        );
        say("fewer devices", probed + ready, why);
    }
}

fn about_initrd(waterfall: &Waterfall, say: Say<'_>) {
    let Some(initrd) = waterfall.facts.initrd else {
        return;
    };
    let mib = initrd.bytes as f64 / f64::from(1 << 20);
    let unpacking = ms_of(waterfall, &["line-unpacked"]);
    if unpacking > 0.0 {
        let why = format!("the kernel unpacks {mib:.1} MiB of initial RAM disk, or waits for that");
        say("a smaller --initrd", unpacking, why);
    }
    let init = waterfall.part(Part::Init);
    if initrd.default && init > 0.0 {
        let why =
            "an initial RAM disk whose /init is the program needs no shell that sets things up";
        say("--initrd", init, why.into());
    }
}

fn about_machine(waterfall: &Waterfall, say: Say<'_>) {
    let facts = &waterfall.facts;
    if facts.memory > DEFAULT_MEMORY {
        let why = format!(
            "reserving {} MiB and telling KVM of them",
            facts.memory >> 20
        );
        say(
            "a smaller --memory",
            ms_of(waterfall, &["memory", "kvm-memory"]),
            why,
        );
    }
    if facts.cpus > 1 {
        let made = ms_of(
            waterfall,
            &["kvm-vcpus", "kvm-features", "threads", "line-smp"],
        );
        let others = made * f64::from(facts.cpus - 1) / f64::from(facts.cpus);
        let why = format!("{} vCPUs are made, and started by the kernel", facts.cpus);
        say("fewer --cpus", others, why);
    }
    if !facts.huge_pages && facts.guest_faults > MANY_FAULTS {
        let why = format!(
            "the host took {} page faults for memory that the guest touched first",
            facts.guest_faults
        );
        say(
            "--huge-pages",
            boot(waterfall) + waterfall.part(Part::Program),
            why,
        );
    }
}

fn about_console(waterfall: &Waterfall, say: Say<'_>) {
    let facts = &waterfall.facts;
    let Some(port) = facts
        .places
        .iter()
        .find(|place| place.name == "serial port")
    else {
        return;
    };
    if facts.printed.bytes < MANY_BYTES {
        return;
    }
    let printed = facts.printed.bytes;
    if facts.printed.kernel_bytes > printed / 2 {
        let why = format!(
            "{printed} bytes on the serial port, most of them the kernel's messages, are {} exits",
            port.accesses
        );
        say("quiet, as mote's own command line has it", port.busy, why);
    }
    let why = format!(
        "{printed} bytes on the serial port are {} exits",
        port.accesses
    );
    say("--console virtio", port.busy, why);
}
