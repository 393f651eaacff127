//! The boot order. [`build`] is a recipe, read from top to bottom; its order was chosen by measurement
//! (docs/start-up.md): a memory slot added after the irqchip or the vCPUs costs milliseconds.

pub(crate) mod virtio;

use std::fs::File;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use arch::boot::BootInfo;
use arch::kernel::{KernelImage, Protocol};
use arch::regs::{CpuMode, Entry};
use arch::{acpi, boot, cpuid, kernel, layout, mptable, msr, regs};
use devices::bus::{self, Bus};
use devices::console_io::{Input, InputFilter, Output};
use devices::event::EventSink;
use devices::interrupt::MsiSink;
use devices::ioapic::{IoApic, Pin};
use devices::legacy::acpi_pm::AcpiPm;
use devices::legacy::boot_timer::BootTimer;
use devices::legacy::ged::Ged;
use devices::legacy::i8042::I8042;
use devices::legacy::pci_config::PciConfig;
use devices::legacy::pic::Pic;
use devices::legacy::pvpanic::PvPanic;
use devices::legacy::serial::Serial;
use devices::legacy::serial_worker::SerialWorker;
use devices::rate_limiter::RateLimit;
use devices::virtio::worker::EventLoop;
use event_manager::SubscriberOps;
use kvm_bindings::CpuId;
use kvm_ioctls::{VcpuFd, VmFd};
use thiserror::Error;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::above_ram::{self, AboveRam};
use crate::config::{Config, ConsoleKind, Payload};
use crate::controls::{Controls, Registered};
use crate::event_loop::{EndOnDrop, Manager, Remote};
use crate::events::Events;
use crate::interrupts::Interrupts;
use crate::pci::{self, Pci};
use crate::vcpu::{Buses, Vcpu};
use crate::vm::{PowerButton, SharedSerialWorker, Vm, Wake};
use crate::{kvm, memory};

/// Why a machine could not be built.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The host's KVM.
    #[error(transparent)]
    Kvm(#[from] kvm::Error),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] memory::Error),
    /// Guest memory above RAM.
    #[error(transparent)]
    AboveRam(#[from] above_ram::Error),
    /// The kernel image.
    #[error(transparent)]
    Kernel(#[from] kernel::Error),
    /// What the kernel is told.
    #[error(transparent)]
    Boot(#[from] boot::Error),
    /// ACPI tables.
    #[error("Cannot write the ACPI tables")]
    Acpi(#[from] acpi::Error),
    /// The MP table.
    #[error("Cannot write the MP table")]
    MpTable(#[from] mptable::Error),
    /// CPUID.
    #[error("Cannot make up the guest's CPUID")]
    Cpuid(#[from] cpuid::Error),
    /// Registers.
    #[error(transparent)]
    Registers(#[from] regs::Error),
    /// Two devices at one address: a mistake in the layout.
    #[error("Cannot put a device on the bus")]
    Bus(#[from] bus::Error),
    /// A device on the PCI bus.
    #[error("Cannot put a device on the PCI bus")]
    Pci(#[from] pci::Error),
    /// A virtio device.
    #[error(transparent)]
    Device(#[from] virtio::Error),
    /// The host refused a thread, an eventfd or an epoll.
    #[error("Cannot make {what}")]
    Host {
        /// What was to be made.
        what: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The event loop.
    #[error("Cannot make the event loop")]
    EventLoop(#[source] event_manager::Error),
}

/// Where the console leads to: a serial port or a virtio console.
pub struct Console {
    /// What is typed; none when there is nothing to read.
    pub input: Option<Input>,
    /// Where the guest's output goes.
    pub output: Output,
    /// Looks at what is typed before the guest does.
    pub filter: Box<dyn InputFilter>,
    /// Columns and rows of a terminal, for a virtio console; 0 where they are not known.
    pub size: (u16, u16),
    /// Limits what a virtio console puts out.
    pub rate_limit: RateLimit,
    /// A virtio console has a thread of its own.
    pub iothread: bool,
}

fn host(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Host { what, source }
}

/// Builds a machine from its configuration. The vCPUs are paused.
pub(crate) fn build(
    config: &Config,
    payload: Payload,
    console: Option<Console>,
) -> Result<Vm, Error> {
    let image = check_payload(&payload, config)?;
    // Until it is served, nobody is to wait for it: least of all a device that goes as the next one fails.
    let ended = Arc::new(AtomicBool::new(true));
    let mut event_manager = Manager::new().map_err(Error::EventLoop)?;
    let event_loop: Arc<dyn EventLoop> = Arc::new(Remote::new(&event_manager, Arc::clone(&ended)));
    let controls = Controls::new(config.memory());
    let mut devices = virtio::make_all(config.devices(), &event_loop, &controls)?;
    let (mut serial, mut virtio_console) = (None, None);
    match (console, config.console()) {
        (Some(console), ConsoleKind::Virtio) => {
            let (console, control) =
                virtio::make_console(console, &event_loop, &mut event_manager, &controls)?;
            virtio_console = Some(control);
            devices.insert(0, console);
        }
        (console, _) => serial = console,
    }
    let mut above_ram = AboveRam::map(config, &controls)?;
    let regions = std::mem::take(&mut above_ram.regions);
    let memory = Arc::new(memory::allocate(config.memory(), regions)?);

    let kvm = kvm::open(config.kvm_device())?;
    kvm::check_capabilities(&kvm, config.cpus())?;
    let vm = Arc::new(kvm::create_vm(&kvm)?);
    let slots = kvm::set_memory(&vm, &memory, above_ram.hotplug_start())?;
    above_ram.connect(&vm, &memory, slots, kvm.get_nr_memslots())?;
    kvm::set_intel_addresses(&vm)?;
    kvm::split_irqchip(&vm, layout::ioapic_pins(config.virtio_slots()))?;

    let events = Arc::new(Events::new().map_err(host("an eventfd"))?);
    let machine = Machine::new(config, serial, devices, &vm, &memory, &events)?;
    above_ram.guard(&machine.buses.mmio)?;
    let cpuid = kvm::supported_cpuid(&kvm)?;
    above_ram.check_room(cpuid::physical_address_bits(&cpuid))?;
    let vcpus = create_vcpus(config, &vm, &cpuid)?;

    let entry = load(config, payload, image, &memory, machine.console.is_some())?;
    regs::write_tables(&memory, entry.mode)?;
    if let Some(boot_vcpu) = vcpus.first() {
        regs::set_up(boot_vcpu, &entry)?;
    }

    event_manager.add_subscriber(Box::new(Wake(Arc::clone(&events))));
    if let Some(worker) = &machine.console {
        event_manager.add_subscriber(Box::new(Arc::clone(worker)));
    }
    let Machine {
        buses,
        console,
        power_button,
        pci,
    } = machine;
    let vcpus = spawn(vcpus, &buses, &events, &memory)?;
    Ok(Vm {
        _event_loop_ends: EndOnDrop::new(ended),
        vcpus,
        event_manager,
        console,
        virtio_console,
        power_button,
        pci,
        controls,
        event_loop,
        events,
        vm,
        memory,
    })
}

/// Everything that can be known to be wrong before the host is asked for anything.
fn check_payload(payload: &Payload, config: &Config) -> Result<Option<(KernelImage, u64)>, Error> {
    let ram = config.memory();
    let Payload::Kernel {
        kernel,
        initrd,
        cmdline,
        protocol,
    } = payload
    else {
        return Ok(None);
    };
    boot::check_cmdline(&complete_cmdline(config, cmdline))?;
    let image = kernel::parse(kernel, *protocol)?;
    boot::check_kernel_fits(&image, ram)?;
    let initrd_size = match initrd {
        Some(file) => initrd_size(file)?,
        None => 0,
    };
    if initrd_size > 0 {
        boot::place_initrd(&image, initrd_size, ram)?;
    }
    Ok(Some((image, initrd_size)))
}

fn is_acpi_off(cmdline: &str) -> bool {
    cmdline
        .split_ascii_whitespace()
        .any(|word| word == "acpi=off")
}

/// The command line as the guest gets it: one that is told not to use ACPI finds its devices there.
fn complete_cmdline(config: &Config, cmdline: &str) -> String {
    let mut cmdline = cmdline.to_owned();
    if is_acpi_off(&cmdline) {
        for slot in 0..config.virtio_slots() {
            cmdline.push_str(&layout::virtio_mmio_parameter(slot));
        }
    }
    cmdline
}

fn initrd_size(file: &File) -> Result<u64, Error> {
    let metadata = file.metadata().map_err(|source| memory::Error::Read {
        what: "initrd",
        source,
    })?;
    Ok(metadata.len())
}

/// The buses with all devices on them.
struct Machine {
    buses: Arc<Buses>,
    console: Option<SharedSerialWorker>,
    power_button: PowerButton,
    pci: Option<Arc<Pci>>,
}

impl Machine {
    fn new(
        config: &Config,
        console: Option<Console>,
        virtio: Vec<Registered>,
        vm: &Arc<VmFd>,
        memory: &Arc<GuestMemoryMmap>,
        events: &Arc<Events>,
    ) -> Result<Self, Error> {
        let interrupts = Arc::new(Interrupts::new(Arc::clone(vm)));
        let ioapic = Arc::new(Mutex::new(IoApic::new(
            Arc::clone(&interrupts) as Arc<dyn MsiSink>,
            layout::ioapic_pins(config.virtio_slots()),
        )));
        let line = |gsi| Arc::new(Pin::new(Arc::clone(&ioapic), gsi));
        let sink = || Arc::clone(events) as Arc<dyn EventSink>;

        let io = Bus::new();
        let console = match console {
            Some(console) => Some(add_serial_port(&io, console, line(layout::SERIAL_GSI))?),
            None => None,
        };
        let ged = Arc::new(Mutex::new(Ged::new(line(layout::GED_GSI))));
        io.insert(layout::GED_PORT.into(), 4, ged.clone())?;
        let acpi_pm = Arc::new(Mutex::new(AcpiPm::new(sink())));
        io.insert(layout::ACPI_SLEEP_CONTROL_PORT.into(), 3, acpi_pm)?;
        let i8042 = Arc::new(Mutex::new(I8042::new(sink())));
        io.insert(layout::I8042_DATA_PORT.into(), 5, i8042)?;
        io.insert(
            layout::PVPANIC_PORT.into(),
            1,
            Arc::new(Mutex::new(PvPanic::new(sink()))),
        )?;
        io.insert(
            layout::PIC_PRIMARY_PORT.into(),
            2,
            Arc::new(Mutex::new(Pic::default())),
        )?;
        io.insert(
            layout::PIC_SECONDARY_PORT.into(),
            2,
            Arc::new(Mutex::new(Pic::default())),
        )?;
        if config.boot_timer() {
            let timer = Arc::new(Mutex::new(BootTimer::new(sink())));
            io.insert(layout::BOOT_TIMER_PORT.into(), 1, timer)?;
        }

        let mmio = Arc::new(Bus::new());
        mmio.insert(layout::IOAPIC_START, layout::IOAPIC_SIZE, ioapic.clone())?;
        let pci = if config.pci() {
            let pci = Pci::new(&io, &mmio, &ged, &interrupts, vm, memory)?;
            for device in virtio {
                pci.insert(device)?;
            }
            Some(Arc::new(pci))
        } else {
            io.insert(
                layout::PCI_CONFIG_PORT.into(),
                layout::PCI_CONFIG_SIZE.into(),
                Arc::new(Mutex::new(PciConfig::default())),
            )?;
            for (slot, device) in (0..).zip(virtio) {
                virtio::insert(device, slot, &mmio, vm, &interrupts, &ioapic, memory)?;
            }
            None
        };
        Ok(Self {
            buses: Arc::new(Buses { io, mmio, ioapic }),
            console,
            power_button: PowerButton(ged),
            pci,
        })
    }
}

fn add_serial_port(
    io: &Bus,
    console: Console,
    line: Arc<Pin>,
) -> Result<SharedSerialWorker, Error> {
    let ready = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(host("an eventfd"))?;
    let port = Serial::new(line, ready.try_clone().map_err(host("an eventfd"))?);
    let port = Arc::new(Mutex::new(port));
    io.insert(
        layout::SERIAL_PORT.into(),
        layout::SERIAL_SIZE.into(),
        port.clone(),
    )?;
    let Console {
        input,
        output,
        filter,
        size: _,
        rate_limit: _,
        iothread: _,
    } = console;
    let worker = SerialWorker::new(port, ready, input, output, filter)
        .map_err(host("the console's worker"))?;
    Ok(Arc::new(Mutex::new(worker)))
}

fn create_vcpus(config: &Config, vm: &VmFd, supported: &CpuId) -> Result<Vec<VcpuFd>, Error> {
    let mut vcpus = Vec::with_capacity(config.cpus() as usize);
    let mut template = None;
    for index in 0..config.cpus() {
        let vcpu = vm
            .create_vcpu(index.into())
            .map_err(kvm::refused("KVM_CREATE_VCPU"))?;
        let template = match &mut template {
            Some(template) => template,
            empty => empty.insert(cpuid::Template::new(
                supported,
                &cpuid::Settings {
                    cpus: config.cpus(),
                    tsc_khz: vcpu.get_tsc_khz().ok(),
                },
            )),
        };
        vcpu.set_cpuid2(&template.for_vcpu(index)?)
            .map_err(kvm::refused("KVM_SET_CPUID2"))?;
        msr::set_up(&vcpu).map_err(kvm::refused("KVM_SET_MSRS"))?;
        regs::set_up_lapic(&vcpu)?;
        vcpus.push(vcpu);
    }
    Ok(vcpus)
}

/// Puts the payload into guest memory, with all that it will look for there.
fn load(
    config: &Config,
    payload: Payload,
    image: Option<(KernelImage, u64)>,
    memory: &GuestMemoryMmap,
    serial: bool,
) -> Result<Entry, Error> {
    let (
        Payload::Kernel {
            kernel,
            initrd,
            cmdline,
            ..
        },
        Some((image, initrd_size)),
    ) = (&payload, image)
    else {
        let Payload::Code { bytes, gpa, mode } = payload else {
            unreachable!("check_payload gives an image for every kernel");
        };
        memory::load_code(memory, &bytes, gpa)?;
        return Ok(Entry {
            mode,
            instruction: gpa,
            boot_info: 0,
        });
    };
    memory::load_kernel(memory, kernel, &image.segments)?;
    let initrd = match initrd {
        Some(file) if initrd_size > 0 => {
            let gpa = boot::place_initrd(&image, initrd_size, config.memory())?;
            memory::load_initrd(memory, file, gpa, initrd_size)?;
            Some((gpa, initrd_size))
        }
        _ => None,
    };
    mptable::write(
        memory,
        config.cpus(),
        layout::ioapic_pins(config.virtio_slots()),
    )?;
    let rsdp = if is_acpi_off(cmdline) {
        None
    } else {
        let tables = acpi::Config {
            cpus: config.cpus(),
            virtio_slots: config.virtio_slots(),
            pci_slots: config.pci_slots(),
            serial,
        };
        Some(acpi::write_tables(memory, &tables)?)
    };
    let info = BootInfo {
        kernel: &image,
        cmdline: &complete_cmdline(config, cmdline),
        initrd,
        ram_size: config.memory(),
        rsdp,
    };
    let boot_info = boot::write(memory, &info)?;
    let mode = match image.protocol {
        Protocol::Linux64 => CpuMode::Long,
        Protocol::Pvh => CpuMode::Protected,
    };
    Ok(Entry {
        mode,
        instruction: image.entry,
        boot_info: boot_info.0,
    })
}

fn spawn(
    vcpus: Vec<VcpuFd>,
    buses: &Arc<Buses>,
    events: &Arc<Events>,
    memory: &Arc<GuestMemoryMmap>,
) -> Result<Vec<crate::vcpu::VcpuHandle>, Error> {
    (0..)
        .zip(vcpus)
        .map(|(index, fd)| {
            let vcpu = Vcpu {
                index,
                fd,
                buses: Arc::clone(buses),
                events: Arc::clone(events),
                memory: Arc::clone(memory),
            };
            vcpu.spawn().map_err(host("a vCPU thread"))
        })
        .collect()
}
