//! What can be asked of a machine, checked. A [`Config`] that exists is one that can be built, as far
//! as that can be known without touching the host.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use arch::cpu_config::CpuConfig;
use arch::kernel::Protocol;
use arch::regs::CpuMode;
use devices::backend::tap::TapConfig;
use devices::backend::user_net;
use devices::mmds::Mmds;
use devices::rate_limiter::RateLimit;
use devices::virtio::balloon;
use devices::virtio::block::BlockConfig;
use devices::virtio::mem::MemConfig;
use devices::virtio::net::NetConfig;
use devices::virtio::pmem::PmemConfig;
use devices::virtio::vsock::VsockConfig;
use thiserror::Error;

use crate::controls::DeviceId;
use crate::kvm::DEFAULT_DEVICE;

/// Least RAM of a guest that boots a kernel, in bytes.
pub const MIN_MEMORY: u64 = 16 << 20;
/// Most vCPUs of a guest.
pub const MAX_CPUS: u32 = 64;
/// RAM is given in units of a page.
const PAGE_SIZE: u64 = 4096;
/// Bytes of a huge page.
pub(crate) const HUGE_PAGE_SIZE: u64 = 2 << 20;

/// Which field of a configuration is wrong, and why.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// No vCPU, or too many.
    #[error("A guest has 1 to {MAX_CPUS} CPUs, not {cpus}")]
    Cpus {
        /// How many were asked for.
        cpus: u32,
    },
    /// Less memory than a kernel can start in.
    #[error("A guest needs at least 16 MiB of memory, not {bytes} bytes")]
    MemoryTooSmall {
        /// How much was asked for.
        bytes: u64,
    },
    /// Not a multiple of the page size.
    #[error("A guest's memory is a multiple of 4096 bytes, {bytes} is not")]
    MemoryNotPages {
        /// How much was asked for.
        bytes: u64,
    },
    /// Not a multiple of the size of a huge page.
    #[error("A guest's memory of huge pages is a multiple of 2 MiB, {bytes} bytes are not")]
    MemoryNotHugePages {
        /// How much was asked for.
        bytes: u64,
    },
    /// A core with one thread where all have two.
    #[error("With two threads a core, a guest has 1 CPU or an even number of them, not {cpus}")]
    OddCpus {
        /// How many were asked for.
        cpus: u32,
    },
    /// A balloon that takes all.
    #[error("A balloon of {target} bytes leaves the guest nothing of its {memory} bytes of memory")]
    Balloon {
        /// How many bytes the balloon is to have.
        target: u64,
        /// How many the guest has.
        memory: u64,
    },
    /// Two devices of one name, or two of which there can be one only.
    #[error("There are two devices of the same name: {id}")]
    SameId {
        /// The name.
        id: DeviceId,
    },
    /// More virtio devices than interrupt lines or PCI slots.
    #[error("A guest has at most {max} virtio devices")]
    TooManyDevices {
        /// How many there can be.
        max: u32,
    },
}

/// What a guest executes first.
#[derive(Debug)]
pub enum Payload {
    /// A Linux kernel.
    Kernel {
        /// ELF vmlinux or bzImage.
        kernel: File,
        /// Initial RAM disk.
        initrd: Option<File>,
        /// Kernel command line, complete.
        cmdline: String,
        /// How the kernel is entered.
        protocol: Protocol,
    },
    /// A few instructions: how mote tests itself and its host.
    Code {
        /// The instructions.
        bytes: Vec<u8>,
        /// Where they are put, and entered.
        gpa: u64,
        /// The mode they are entered in.
        mode: CpuMode,
    },
}

/// A machine, as it is to be built.
#[derive(Clone, Debug)]
pub struct Config {
    /// The KVM device.
    kvm_device: PathBuf,
    cpus: u32,
    memory: u64,
    boot_timer: bool,
    job_port: bool,
    pci: bool,
    console: ConsoleKind,
    keyboard: bool,
    smt: bool,
    huge_pages: HugePages,
    track_dirty_pages: bool,
    cpu_config: CpuConfig,
    devices: Vec<Device>,
}

/// What guest memory is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HugePages {
    /// Pages of 4 KiB, of which the host takes and gives back each on its own.
    #[default]
    None,
    /// Pages of 2 MiB, of those that the host has set aside (hugetlbfs). All of them are the guest's
    /// from the start. Kernel and initrd are copied, not mapped.
    TwoMiB,
}

/// Where the guest has its console.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConsoleKind {
    /// At a serial port, ttyS0: an exit for each character.
    #[default]
    Serial,
    /// At a virtio console, hvc0.
    Virtio,
}

/// A virtio device, as it is to be made.
#[derive(Clone, Debug)]
pub struct Device {
    /// What it is.
    pub kind: DeviceKind,
    /// It gets a thread of its own instead of the machine's event loop.
    pub iothread: bool,
}

impl Device {
    /// Its name, by which it is found while the guest runs.
    pub fn id(&self) -> DeviceId {
        match &self.kind {
            DeviceKind::Entropy(_) => DeviceId::Entropy,
            DeviceKind::Block(disk) => DeviceId::Disk(disk.id.clone()),
            DeviceKind::Net(net) => DeviceId::Card(net.card.id.clone()),
            DeviceKind::Vsock(_) => DeviceId::Vsock,
            DeviceKind::Balloon(_) => DeviceId::Balloon,
            DeviceKind::Pmem(pmem) => DeviceId::Pmem(pmem.id.clone()),
            DeviceKind::Mem(_) => DeviceId::MemoryHotplug,
        }
    }
}

/// The devices that there are.
#[derive(Clone, Debug)]
pub enum DeviceKind {
    /// Entropy, with a limit.
    Entropy(RateLimit),
    /// A disk.
    Block(BlockConfig),
    /// A network card.
    Net(NetDevice),
    /// Sockets between guest and host.
    Vsock(VsockConfig),
    /// Memory that can be given back.
    Balloon(balloon::Config),
    /// Persistent memory: a file that the guest has as memory.
    Pmem(PmemConfig),
    /// Memory that can be plugged and unplugged.
    Mem(MemConfig),
}

/// A network card, and what it is connected to.
#[derive(Clone, Debug)]
pub struct NetDevice {
    /// The card.
    pub card: NetConfig,
    /// The other end.
    pub network: Network,
    /// The metadata that its guest reads through it.
    pub mmds: Option<Arc<Mmds>>,
}

/// What a network card is connected to.
#[derive(Clone, Debug)]
pub enum Network {
    /// An interface of the host.
    Tap {
        /// Which.
        tap: TapConfig,
        /// The host's kernel serves the rings (vhost-net).
        vhost: bool,
    },
    /// A network in this process, for which nobody needs to be root.
    User(Box<user_net::Config>),
}

/// Whether a guest with `memory` bytes can do without `target` of them.
pub(crate) fn check_balloon(target: u64, memory: u64) -> Result<(), Error> {
    if target >= memory {
        return Err(Error::Balloon { target, memory });
    }
    Ok(())
}

impl Config {
    /// A machine with `cpus` vCPUs and `memory` bytes of RAM, and no virtio devices.
    pub fn new(cpus: u32, memory: u64) -> Result<Self, Error> {
        if cpus == 0 || cpus > MAX_CPUS {
            return Err(Error::Cpus { cpus });
        }
        if memory < MIN_MEMORY {
            return Err(Error::MemoryTooSmall { bytes: memory });
        }
        if !memory.is_multiple_of(PAGE_SIZE) {
            return Err(Error::MemoryNotPages { bytes: memory });
        }
        Ok(Self {
            kvm_device: DEFAULT_DEVICE.into(),
            cpus,
            memory,
            boot_timer: false,
            job_port: false,
            pci: false,
            console: ConsoleKind::default(),
            keyboard: false,
            smt: false,
            huge_pages: HugePages::default(),
            track_dirty_pages: false,
            cpu_config: CpuConfig::default(),
            devices: Vec::new(),
        })
    }

    /// Uses another KVM device than `/dev/kvm`.
    pub fn with_kvm_device(mut self, path: impl Into<PathBuf>) -> Self {
        self.kvm_device = path.into();
        self
    }

    /// With or without the port through which a guest marks a point of its boot.
    pub fn with_boot_timer(mut self, boot_timer: bool) -> Self {
        self.boot_timer = boot_timer;
        self
    }

    /// With or without the port through which the guest's first process gets a job and says how it ended.
    pub fn with_job_port(mut self, job_port: bool) -> Self {
        self.job_port = job_port;
        self
    }

    /// With a PCI bus that the virtio devices are on, or with MMIO slots for them.
    pub fn with_pci(mut self, pci: bool) -> Result<Self, Error> {
        self.pci = pci;
        self.check_devices()?;
        Ok(self)
    }

    /// With the console, if there is one, at a serial port or at a virtio console, which is the first
    /// virtio device then.
    pub fn with_console(mut self, console: ConsoleKind) -> Result<Self, Error> {
        self.console = console;
        self.check_devices()?;
        Ok(self)
    }

    /// With a keyboard, on which Ctrl-Alt-Del can be pressed, or with no more of its controller than the
    /// line that restarts the machine. A guest with drivers for it starts later by some milliseconds.
    pub fn with_keyboard(mut self, keyboard: bool) -> Self {
        self.keyboard = keyboard;
        self
    }

    /// With two threads a core, or one. With two the number of vCPUs is 1 or even.
    pub fn with_smt(mut self, smt: bool) -> Result<Self, Error> {
        if smt && self.cpus > 1 && !self.cpus.is_multiple_of(2) {
            return Err(Error::OddCpus { cpus: self.cpus });
        }
        self.smt = smt;
        Ok(self)
    }

    /// With memory of such pages.
    pub fn with_huge_pages(mut self, huge_pages: HugePages) -> Result<Self, Error> {
        if huge_pages == HugePages::TwoMiB && !self.memory.is_multiple_of(HUGE_PAGE_SIZE) {
            return Err(Error::MemoryNotHugePages { bytes: self.memory });
        }
        self.huge_pages = huge_pages;
        Ok(self)
    }

    /// Notes that writes to guest memory are to be tracked from the first snapshot on, so that there can be snapshots of
    /// what has changed since.
    pub fn with_dirty_page_tracking(mut self, track: bool) -> Self {
        self.track_dirty_pages = track;
        self
    }

    /// With these changes to the host's CPU. Whether the host can make them is known when the machine
    /// is built.
    pub fn with_cpu_config(mut self, cpu_config: CpuConfig) -> Self {
        self.cpu_config = cpu_config;
        self
    }

    /// With one more virtio device.
    pub fn with_device(mut self, device: Device) -> Result<Self, Error> {
        if let DeviceKind::Balloon(balloon::Config { target, .. }) = device.kind {
            check_balloon(target, self.memory)?;
        }
        let id = device.id();
        if self.devices.iter().any(|other| other.id() == id) {
            return Err(Error::SameId { id });
        }
        self.devices.push(device);
        self.check_devices()?;
        Ok(self)
    }

    fn check_devices(&self) -> Result<(), Error> {
        let max = if self.pci {
            arch::layout::PCI_MAX_SLOTS
        } else {
            arch::layout::VIRTIO_MMIO_MAX_SLOTS
        };
        if self.device_count() > max {
            return Err(Error::TooManyDevices { max });
        }
        Ok(())
    }

    /// Of virtio devices, with the console.
    fn device_count(&self) -> u32 {
        let console = u32::from(self.console == ConsoleKind::Virtio);
        u32::try_from(self.devices.len())
            .unwrap_or(u32::MAX)
            .saturating_add(console)
    }

    /// How memory is plugged into the guest, if it is.
    pub fn memory_hotplug(&self) -> Option<MemConfig> {
        self.devices.iter().find_map(|device| match &device.kind {
            DeviceKind::Mem(config) => Some(*config),
            _ => None,
        })
    }

    /// Where the console is, if there is one.
    pub fn console(&self) -> ConsoleKind {
        self.console
    }

    /// The KVM device.
    pub fn kvm_device(&self) -> &std::path::Path {
        &self.kvm_device
    }

    /// How many vCPUs.
    pub fn cpus(&self) -> u32 {
        self.cpus
    }

    /// Bytes of RAM.
    pub fn memory(&self) -> u64 {
        self.memory
    }

    /// Whether the boot timer's port exists.
    pub fn boot_timer(&self) -> bool {
        self.boot_timer
    }

    /// Whether the port for jobs exists.
    pub fn job_port(&self) -> bool {
        self.job_port
    }

    /// Whether there is a keyboard.
    pub fn keyboard(&self) -> bool {
        self.keyboard
    }

    /// Whether a core has two threads.
    pub fn smt(&self) -> bool {
        self.smt
    }

    /// What memory is made of.
    pub fn huge_pages(&self) -> HugePages {
        self.huge_pages
    }

    /// Whether pages that the guest writes to are to be tracked.
    pub fn track_dirty_pages(&self) -> bool {
        self.track_dirty_pages
    }

    /// Changes to the host's CPU.
    pub fn cpu_config(&self) -> &CpuConfig {
        &self.cpu_config
    }

    /// The virtio devices, in the order in which the guest finds them.
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// Whether there is a PCI bus.
    pub fn pci(&self) -> bool {
        self.pci
    }

    /// How many virtio-mmio slots they take.
    pub fn virtio_slots(&self) -> u32 {
        if self.pci { 0 } else { self.device_count() }
    }

    /// How many PCI slots the guest is told of: all that there are, as devices may come into any.
    pub fn pci_slots(&self) -> u32 {
        if self.pci {
            arch::layout::PCI_MAX_SLOTS
        } else {
            0
        }
    }
}

#[cfg(test)]
#[path = "config_test.rs"]
mod tests;
