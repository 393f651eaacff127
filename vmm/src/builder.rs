//! The boot order. [`build`] is a recipe, read from top to bottom; its order was chosen by measurement
//! (docs/start-up.md): a memory slot added after the irqchip or the vCPUs costs milliseconds.

mod checked;
mod cpus;
mod payload;
mod serial;
pub(crate) mod virtio;

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use arch::{acpi, boot, cpu_config, cpuid, kernel, layout, mptable, regs};
use devices::backend::lost_pages::Replaced;
use devices::bus::{self, Bus};
use devices::console_io::{Input, InputFilter, Output};
use devices::event::EventSink;
use devices::interrupt::MsiSink;
use devices::ioapic::{IoApic, Pin};
use devices::legacy::acpi_pm::AcpiPm;
use devices::legacy::boot_timer::BootTimer;
use devices::legacy::ged::Ged;
use devices::legacy::i8042::I8042;
use devices::legacy::job_port::{self, JobPort};
use devices::legacy::pci_config::PciConfig;
use devices::legacy::pic::Pic;
use devices::legacy::pvpanic::PvPanic;
use devices::legacy::reset_line::ResetLine;
use devices::pci::root::Slot;
use devices::rate_limiter::RateLimit;
use devices::virtio::console;
use devices::virtio::worker::{EventLoop, WorkerId};
use event_manager::SubscriberOps;
use kvm_ioctls::{VcpuFd, VmFd};
use thiserror::Error;
use vm_memory::GuestMemoryMmap;

use crate::above_ram::{self, AboveRam, Window};
use crate::config::{Config, ConsoleKind, Payload};
use crate::controls::Registered;
use crate::events::Events;
use crate::faults::MeterSlot;
use crate::handles::{Keyboard, PowerButton, SerialPort};
use crate::hardware::{Hardware, Virtio};
use crate::insight::BootTimes;
use crate::interrupts::Interrupts;
use crate::pci::{self, Pci};
use crate::snapshot::Served;
use crate::snapshot::history::History;
use crate::snapshot::load::{self, MemoryFile};
use crate::snapshot::working_set::{Populating, PreFault};
use crate::stage::{Origin, Stage};
use crate::vcpu::{Buses, ExitCounters, Exits, Vcpu, Vcpus};
use crate::vm::{SharedSerialWorker, Vm};
use crate::{generation, kvm, memory};
use checked::Checked;

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
    /// Changes to the host's CPU.
    #[error(transparent)]
    CpuConfig(#[from] cpu_config::Error),
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
    /// The VM generation ID.
    #[error(transparent)]
    Generation(#[from] generation::Error),
    /// A snapshot.
    #[error(transparent)]
    Snapshot(#[from] load::Error),
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
    /// Limits what is put out. A virtio console is held back; of a serial port, what is beyond the
    /// bandwidth is dropped.
    pub rate_limit: RateLimit,
    /// It has a thread of its own.
    pub iothread: bool,
}

fn host(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Host { what, source }
}

/// Builds a machine from its configuration, with devices that are made for it. The vCPUs are paused.
pub(crate) fn build(
    config: &Config,
    payload: Payload,
    console: Option<Console>,
) -> Result<Vm, Error> {
    let asked = Instant::now();
    let origin = Checked::new(Origin::Boot(payload), config)?;
    let checked = Instant::now();
    let mut stage = Stage::new()?;
    let devices = stage.maker.make_all(config.devices())?;
    let mut parts = assemble(&mut stage, config, origin, console, devices, &mut None)?;
    (parts.times.asked, parts.times.checked) = (asked, checked);
    Ok(Vm::new(stage, parts))
}

/// Builds a machine on a stage, from devices that have been made there. The vCPUs are paused; the virtio
/// devices of one that was saved stand still too. If that fails, the stage is as it was, and the devices are
/// gone.
pub(crate) fn build_on(
    stage: &mut Stage,
    config: &Config,
    origin: Origin,
    console: Option<Console>,
    devices: Vec<Registered>,
) -> Result<Parts, Error> {
    let origin = Checked::new(origin, config)?;
    let mut on_loop = None;
    let assembled = assemble(stage, config, origin, console, devices, &mut on_loop);
    if assembled.is_err()
        && let Some(id) = on_loop
    {
        // Fails only for what is not there.
        let _ = stage.manager.remove_subscriber(id);
    }
    assembled
}

/// What a machine consists of, besides its stage.
pub(crate) struct Parts {
    pub(crate) vcpus: Vcpus,
    pub(crate) exits: Exits,
    pub(crate) times: BootTimes,
    pub(crate) buses: Weak<Buses>,
    pub(crate) console: Option<SharedSerialWorker>,
    pub(crate) console_thread: Option<Arc<dyn EventLoop>>,
    pub(crate) serial_port: Option<SerialPort>,
    pub(crate) virtio_console: Option<console::ConsoleControl>,
    pub(crate) keyboard: Option<Keyboard>,
    pub(crate) power_button: PowerButton,
    pub(crate) hardware: Arc<Hardware>,
    pub(crate) history: History,
    pub(crate) kvm_device: PathBuf,
    pub(crate) memory_file: Option<MemoryFile>,
    pub(crate) meters: Vec<MeterSlot>,
    pub(crate) vm: Arc<VmFd>,
    pub(crate) memory: Arc<GuestMemoryMmap>,
    pub(crate) served: Option<Served>,
    pub(crate) populating: Populating,
}

/// `on_loop` becomes what is on the stage's event loop for this machine.
fn assemble(
    stage: &mut Stage,
    config: &Config,
    origin: Checked,
    console: Option<Console>,
    mut devices: Vec<Registered>,
    on_loop: &mut Option<WorkerId>,
) -> Result<Parts, Error> {
    let mut times = BootTimes::start();
    stage.maker.controls.set_memory(config.memory());
    let (mut serial, mut virtio_console) = (None, None);
    match (console, config.console()) {
        (Some(console), ConsoleKind::Virtio) => {
            let (console, control, id) = virtio::make_console(console, stage)?;
            *on_loop = id;
            virtio_console = Some(control);
            devices.insert(0, console);
        }
        (console, _) => serial = console,
    }
    let has_thread = serial.as_ref().is_some_and(|console| console.iothread);
    memory::check_size(config.memory())?;
    let controls = &stage.maker.controls;
    let mut above_ram = match &origin {
        Checked::Boot { .. } => AboveRam::map(config, controls)?,
        Checked::Saved(saved) => AboveRam::map_saved(config, controls, saved.above_ram())?,
    };
    let regions = std::mem::take(&mut above_ram.regions);
    let memory = memory::allocate(config.memory(), config.huge_pages(), regions)?;
    let memory = Arc::new(memory);
    let (loaded, served) = match &origin {
        Checked::Saved(saved) => (
            saved.base(),
            saved.map_memory(&memory, config.huge_pages(), &stage.events)?,
        ),
        Checked::Boot { .. } => (None, None),
    };
    let populating = match &origin {
        Checked::Saved(saved) => saved.populate(&memory, config.huge_pages()),
        Checked::Boot { .. } => Populating::default(),
    };
    let history = History::new(config.track_dirty_pages(), loaded);
    times.memory = Instant::now();

    let kvm = kvm::open(config.kvm_device())?;
    kvm::check_capabilities(&kvm, config.cpus(), config.cpu_config())?;
    cpus::check_capabilities(&kvm, config.cpu_config())?;
    times.opened = Instant::now();
    let vm = Arc::new(kvm::create_vm(&kvm)?);
    times.vm = Instant::now();
    let slots = kvm::set_memory(&vm, &memory, |start| above_ram.is_later(start))?;
    above_ram.connect(&vm, &memory, slots, kvm.get_nr_memslots())?;
    for device in &mut devices {
        device.set_place(|id, control| above_ram.place(id, control));
    }
    times.slots = Instant::now();
    kvm::set_intel_addresses(&vm)?;
    kvm::split_irqchip(&vm, layout::ioapic_pins(config.virtio_slots()))?;
    times.kvm = Instant::now();

    let events = &stage.events;
    let window = above_ram.window();
    let devices = match &origin {
        Checked::Boot { .. } => devices.into_iter().map(|device| (device, None)).collect(),
        Checked::Saved(saved) => saved.place(devices)?,
    };
    let mut machine = Machine::new(config, serial, devices, &vm, &memory, window, events)?;
    machine.hardware.has_generation_id = origin.has_generation_id();
    above_ram.guard(&machine.buses.mmio)?;
    times.devices = Instant::now();
    let (supported, address_bits) = cpus::known(config, &kvm, &origin)?;
    above_ram.check_room(address_bits)?;
    times.cpuid = Instant::now();
    let vcpus = cpus::create(config, &vm)?;
    times.created = Instant::now();
    if let Some(supported) = supported {
        cpus::set_up(config, &vcpus, supported)?;
    }
    times.vcpus = Instant::now();
    (times.kernel, times.initrd) = (times.vcpus, times.vcpus);

    let (mut memory_file, mut pre_fault) = (None, None);
    match origin {
        Checked::Boot { payload, image } => {
            let entry = payload::load(
                config,
                payload,
                image.map(|image| *image),
                &memory,
                machine.console.is_some(),
                &mut times,
            )?;
            regs::write_tables(&memory, entry.mode)?;
            if let Some(boot_vcpu) = vcpus.first() {
                regs::set_up(boot_vcpu, &entry)?;
            }
        }
        Checked::Saved(saved) => {
            saved.restore(&vm, &vcpus, &machine.hardware, &memory)?;
            pre_fault = saved.pre_fault();
            memory_file = saved.into_memory_file(config.huge_pages());
        }
    }
    times.loaded = Instant::now();

    let Machine {
        buses,
        console,
        serial_port,
        keyboard,
        power_button,
        hardware,
    } = machine;
    let counters: Vec<Arc<ExitCounters>> = vcpus.iter().map(|_| Arc::default()).collect();
    let exits = Exits(counters.into());
    let meters = meters(&vcpus, memory_file.as_ref());
    let vcpus = spawn(vcpus, &exits, &buses, events, &memory, pre_fault, &meters)?;
    // Last: a machine that could not be built leaves nothing on the event loop.
    let console_thread = match &console {
        Some(worker) => serial::attach(worker, has_thread, &mut stage.manager)?,
        None => None,
    };
    times.built = Instant::now();
    Ok(Parts {
        vcpus,
        exits,
        times,
        buses: Arc::downgrade(&buses),
        console,
        console_thread,
        serial_port,
        virtio_console,
        keyboard,
        power_button,
        hardware: Arc::new(hardware),
        history,
        kvm_device: config.kvm_device().to_owned(),
        memory_file,
        meters,
        vm,
        memory,
        served,
        populating,
    })
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
    serial_port: Option<SerialPort>,
    keyboard: Option<Keyboard>,
    power_button: PowerButton,
    hardware: Hardware,
}

impl Machine {
    fn new(
        config: &Config,
        console: Option<Console>,
        virtio: Vec<(Registered, Option<Slot>)>,
        vm: &Arc<VmFd>,
        memory: &Arc<GuestMemoryMmap>,
        window: Option<&Arc<Window>>,
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
        let (console, serial_port) = match console {
            Some(console) => {
                let (worker, port) = serial::add_port(&io, console, line(layout::SERIAL_GSI))?;
                (Some(worker), Some(port))
            }
            None => (None, None),
        };
        let ged = Arc::new(Mutex::new(Ged::new(line(layout::GED_GSI))));
        io.insert(layout::GED_PORT.into(), 4, ged.clone())?;
        let acpi_pm = Arc::new(Mutex::new(AcpiPm::new(sink())));
        io.insert(layout::ACPI_SLEEP_CONTROL_PORT.into(), 3, acpi_pm.clone())?;
        let keyboard = if config.keyboard() {
            let i8042 = I8042::new(line(layout::KEYBOARD_GSI), sink());
            let i8042 = Arc::new(Mutex::new(i8042));
            io.insert(layout::I8042_DATA_PORT.into(), 5, i8042.clone())?;
            Some(Keyboard(i8042))
        } else {
            let reset_line = Arc::new(Mutex::new(ResetLine::new(sink())));
            io.insert(layout::I8042_DATA_PORT.into(), 5, reset_line)?;
            None
        };
        io.insert(
            layout::PVPANIC_PORT.into(),
            1,
            Arc::new(Mutex::new(PvPanic::new(sink()))),
        )?;
        let pics = [(); 2].map(|()| Arc::new(Mutex::new(Pic::default())));
        let ports = [layout::PIC_PRIMARY_PORT, layout::PIC_SECONDARY_PORT];
        for (pic, port) in pics.iter().zip(ports) {
            io.insert(port.into(), 2, pic.clone())?;
        }
        let mut job_port = None;
        if config.job_port() {
            let port = Arc::new(Mutex::new(JobPort::new(sink())));
            io.insert(layout::JOB_PORT.into(), job_port::SIZE, port.clone())?;
            job_port = Some(port);
        }
        let mut boot_timer = None;
        if config.boot_timer() {
            let timer = Arc::new(Mutex::new(BootTimer::new(sink())));
            io.insert(layout::BOOT_TIMER_PORT.into(), 1, timer.clone())?;
            boot_timer = Some(timer);
        }

        let mmio = Arc::new(Bus::new());
        mmio.insert(layout::IOAPIC_START, layout::IOAPIC_SIZE, ioapic.clone())?;
        let (pci_config, virtio) = if config.pci() {
            let pci = Pci::new(&io, &mmio, &ged, &interrupts, vm, memory, window)?;
            for (device, slot) in virtio {
                pci.insert(device, slot)?;
            }
            (pci.ports(), Virtio::Pci(Arc::new(pci)))
        } else {
            let pci_config = Arc::new(Mutex::new(PciConfig::default()));
            let (start, size) = (layout::PCI_CONFIG_PORT, layout::PCI_CONFIG_SIZE);
            io.insert(start.into(), size.into(), pci_config.clone())?;
            if let Some(timer) = boot_timer {
                mmio.insert(layout::BOOT_TIMER_START, layout::BOOT_TIMER_SIZE, timer)?;
            }
            let mut devices = Vec::new();
            for (slot, (device, _)) in (0..).zip(virtio) {
                let made = virtio::insert(device, slot, &mmio, vm, &interrupts, &ioapic, memory)?;
                devices.push(made);
            }
            (pci_config, Virtio::Mmio(devices))
        };
        let hardware = Hardware {
            ioapic: Arc::clone(&ioapic),
            serial: serial_port.as_ref().map(|port| Arc::clone(&port.0)),
            i8042: keyboard.as_ref().map(|keyboard| Arc::clone(&keyboard.0)),
            ged: Arc::clone(&ged),
            acpi_pm,
            pics,
            job_port,
            pci_config,
            has_generation_id: false,
            virtio,
        };
        Ok(Self {
            hardware,
            buses: Arc::new(Buses { io, mmio, ioapic }),
            console,
            serial_port,
            keyboard,
            power_button: PowerButton(ged),
        })
    }
}

/// Where faults of vCPUs are looked at, if what a restore takes is to be noted.
fn meters(vcpus: &[VcpuFd], memory_file: Option<&MemoryFile>) -> Vec<MeterSlot> {
    match memory_file.and_then(MemoryFile::awaited) {
        Some(_) => vcpus.iter().map(|_| MeterSlot::default()).collect(),
        None => Vec::new(),
    }
}

fn spawn(
    vcpus: Vec<VcpuFd>,
    exits: &Exits,
    buses: &Arc<Buses>,
    events: &Arc<Events>,
    memory: &Arc<GuestMemoryMmap>,
    mut pre_fault: Option<PreFault>,
    meters: &[MeterSlot],
) -> Result<Vcpus, Error> {
    let handles = (0..)
        .zip(vcpus)
        .zip(exits.0.iter())
        .map(|((index, fd), exits)| {
            let meter = meters.get(index as usize).map(Arc::clone);
            let vcpu = Vcpu {
                index,
                fd,
                buses: Arc::clone(buses),
                events: Arc::clone(events),
                memory: Arc::clone(memory),
                exits: Arc::clone(exits),
                // The first one's: they have one memory.
                pre_fault: pre_fault.take(),
                meter,
                lost_pages: Replaced::default(),
            };
            vcpu.spawn().map_err(host("a vCPU thread"))
        })
        .collect::<Result<_, _>>()?;
    Ok(Vcpus::new(handles))
}
