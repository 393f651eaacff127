//! `mote run`: a guest in the foreground.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::bench::waterfall::step::Step;
use ::devices::mmds::Mmds;
use api::types::{BootSource, HugePages, Serial, VmConfig};
use arch::boot;
use arch::kernel::Protocol;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use image::initramfs::Purpose;
use thiserror::Error;
use vmm::config::{self, Config, DeviceKind, Payload};
use vmm::{BootMark, BuildError, CrashReport, Remains, StopReason, StopRequest, Stopper, Vm};
use vmm_sys_util::timerfd::TimerFd;

use crate::args::{Boot, RunArgs};
use crate::config_file::{self, Unknown};
use crate::console::{self, ConsoleKind, ConsoleOption};
use crate::devices;
use crate::explain;
use crate::footprint::Trim;
use crate::guest::{self, Guest};
use crate::keys::{Target, Targets};
use crate::logger;
use crate::message::{run_failed, say};
use crate::pool;
use crate::process;
use crate::service;
use crate::service::args::ANONYMOUS;
use crate::service::beside::Beside;
use crate::signals::{SignalWatch, WindowWatch};
use crate::status::Status;
use crate::template;

/// What every Linux prints when it gives up.
const PANIC_MESSAGE: &[u8] = b"Kernel panic - not syncing";

/// Why a guest could not be run.
#[derive(Debug, Error)]
pub(crate) enum Error {
    /// `--config-file`.
    #[error(transparent)]
    ConfigFile(#[from] config_file::Error),
    /// Kernel or initrd.
    #[error(transparent)]
    Guest(#[from] guest::Error),
    /// The log.
    #[error(transparent)]
    Log(#[from] logger::Error),
    /// A setting out of range.
    #[error("Cannot use {setting}")]
    Config {
        /// Its name and value.
        setting: String,
        /// What would be in range.
        #[source]
        source: config::Error,
    },
    /// The file does not suit the machine.
    #[error("Cannot boot {path:?}")]
    File {
        /// The kernel or initrd.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: BuildError,
    },
    /// A flag about a device.
    #[error("{0}")]
    Device(String),
    /// A template.
    #[error(transparent)]
    Template(#[from] template::Error),
    /// A guest of a pool.
    #[error(transparent)]
    Pool(#[from] pool::Error),
    /// The console's other end.
    #[error(transparent)]
    Console(#[from] console::Error),
    /// The API.
    #[error(transparent)]
    Api(#[from] service::Error),
    /// The machine could not be built.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The machine could not be served.
    #[error(transparent)]
    Run(#[from] vmm::Error),
    /// The host refused a signal handler, timer or terminal setting.
    #[error("Cannot set up {what}")]
    Host {
        /// What.
        what: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

pub(crate) fn host(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Host { what, source }
}

/// Boots a guest and stays with it until it ends. `meet` gets the machine before it starts. What is left
/// of it in the end is the caller's to free.
pub(crate) fn run(
    args: &RunArgs,
    started: Instant,
    meet: impl FnOnce(&mut Vm),
) -> Result<(Status, Remains), Error> {
    let file = read_file(args)?;
    logger::start(args.verbose, args.id.as_deref().unwrap_or(ANONYMOUS));
    if let Some(logger) = &file.logger {
        logger::change(logger)?;
    }
    if args.verbose > 0 {
        logger::set_verbose(args.verbose);
    }
    process::set_up();
    // A flag is in the place of what the file says.
    let serial = file.serial.as_ref().filter(|_| args.console.is_none());
    let option = match &args.console {
        Some(text) => ConsoleOption::parse(text).map_err(Error::Device)?,
        None => ConsoleOption {
            kind: serial.map(|_| ConsoleKind::Serial),
            ..ConsoleOption::default()
        },
    };
    let (config, guest) = prepare(args, &file, &option, Purpose::Shell)?;
    explain::mark(Step::Files);
    explain::booting(args, &config, &guest);
    if args.verbose > 0 {
        describe(&config, &guest);
    }
    let symbols = guest
        .kernel
        .file
        .try_clone()
        .ok()
        .filter(|_| args.verbose > 0);
    let id = args.id.as_deref();
    let mut api = match (&args.api_sock, &file.metrics) {
        (Some(path), _) => Some(Beside::new(id, path.clone())?),
        // Somebody has to write them.
        (None, Some(_)) => Some(Beside::without_socket(id)),
        (None, None) => None,
    };
    let document = api
        .is_some()
        .then(|| document(args, &config, &guest, &file, &option));
    let console_kind = guest.console;
    let (payload, files) = payload(args, guest);

    let targets = Targets::default();
    let (mut console, terminal) = match console_kind {
        ConsoleKind::Serial | ConsoleKind::Virtio => {
            let (console, terminal) = match serial {
                Some(serial) => console::open_serial(Some(serial), targets.clone())?,
                None => console::open(&option, targets.clone())?,
            };
            (Some(console), terminal)
        }
        ConsoleKind::Off => (None, None),
    };
    if let Some(api) = &mut api {
        console = console.map(|console| api.console(console)).transpose()?;
    }
    let console = console.map(explain::listen);
    explain::mark(Step::Console);
    // Ends after the machine, for which it may wait.
    let mut served = None;
    let mut vm = Vm::build(&config, payload, console).map_err(|source| files.name_in(source))?;
    attend(&mut vm, &targets, terminal.is_some(), args.timeout)?;
    explain::built(&vm);

    meet(&mut vm);
    if let (Some(api), Some(document)) = (api, document) {
        served = Some(api.serve(&vm, &config, document, started)?);
    }
    vm.start();
    let reason = vm.run(|mark| {
        if explain::marked(&mark) {
            return;
        }
        report_mark(&mark, started);
        if let Some(served) = &served {
            served.marked(&mark);
        }
    })?;
    if let Some(served) = &served {
        served.ended(&reason);
    }
    explain::ended(&vm);
    drop(terminal);
    let status = report_end(&reason, &vm.console_tail(), id, symbols.as_ref());
    let remains = vm.take_down();
    explain::mark(Step::TakenDown);
    Ok((status, remains))
}

/// Connects a machine in the foreground to keys, signals, the size of the terminal if there is one, and the clock.
pub(crate) fn attend(
    vm: &mut Vm,
    targets: &Targets,
    has_terminal: bool,
    timeout: Option<Duration>,
) -> Result<(), Error> {
    let _ = targets.set(Target {
        stopper: vm.stopper(),
        power_button: vm.power_button(),
        keyboard: vm.keyboard(),
    });
    let signals = SignalWatch::new(vm.stopper()).map_err(host("signal handlers"))?;
    vm.add_subscriber(Box::new(signals));
    if let Some(console) = vm.controls().console()
        && has_terminal
    {
        let window = WindowWatch::new(console).map_err(host("signal handlers"))?;
        vm.add_subscriber(Box::new(window));
    }
    vm.add_subscriber(Box::new(Trim::new().map_err(host("a timer"))?));
    if let Some(timeout) = timeout {
        let timeout = Timeout::new(timeout, vm.stopper()).map_err(host("the timeout"))?;
        vm.add_subscriber(Box::new(timeout));
    }
    Ok(())
}

/// What `--config-file` has.
pub(crate) fn read_file(args: &RunArgs) -> Result<VmConfig, Error> {
    Ok(match &args.config_file {
        Some(path) => config_file::read(path, Unknown::Refuse)?,
        None => VmConfig::default(),
    })
}

/// The machine that flags and file describe, and what it boots.
pub(crate) fn prepare(
    args: &RunArgs,
    file: &VmConfig,
    console: &ConsoleOption,
    purpose: Purpose,
) -> Result<(Config, Guest), Error> {
    let metadata = devices::metadata(args, file).map_err(Error::Device)?;
    let config = configure(args, file, metadata.as_ref())?;
    check_root(args, file)?;
    let guest = guest::choose(args, file, console, purpose)?;
    let device_error = |error: config::Error| Error::Device(error.to_string());
    let mut config = config
        .with_pci(args.pci)
        .and_then(|config| config.with_console(console_of(guest.console)))
        .map_err(device_error)?;
    let flags = devices::devices(args, file, metadata, config.cpus());
    for device in flags.map_err(Error::Device)? {
        config = config.with_device(device).map_err(device_error)?;
    }
    Ok((config, guest))
}

/// What a guest boots, for the machine; and the names of the files.
pub(crate) fn payload(args: &RunArgs, guest: Guest) -> (Payload, Files) {
    let (initrd, initrd_path) = guest.initrd.unzip();
    let payload = Payload::Kernel {
        kernel: guest.kernel.file,
        initrd,
        cmdline: guest.cmdline,
        protocol: match args.boot {
            Boot::Linux => Protocol::Linux64,
            Boot::Pvh => Protocol::Pvh,
        },
    };
    let files = Files {
        kernel: guest.kernel_path,
        initrd: initrd_path,
    };
    (payload, files)
}

/// Names of the files that a guest boots.
pub(crate) struct Files {
    kernel: PathBuf,
    initrd: Option<PathBuf>,
}

/// What the API says of the machine.
pub(crate) fn document(
    args: &RunArgs,
    config: &Config,
    guest: &Guest,
    file: &VmConfig,
    console: &ConsoleOption,
) -> VmConfig {
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let boot_source = BootSource {
        kernel_image_path: text(&guest.kernel_path),
        initrd_path: guest.initrd.as_ref().map(|(_, path)| text(path)),
        boot_args: Some(guest.cmdline.clone()),
    };
    // The first disk, if --rootfs is there.
    let root = config
        .devices()
        .iter()
        .find_map(|device| match &device.kind {
            DeviceKind::Block(disk) => Some(disk.id.as_str()),
            _ => None,
        });
    let root = root.filter(|_| args.rootfs.is_some());
    VmConfig {
        logger: file.logger.clone(),
        metrics: file.metrics.clone(),
        serial: match &args.console {
            None => file.serial.clone(),
            // Where it leads to is no matter of the API's.
            Some(_) => console.iothread.then(|| Serial {
                iothread: true,
                ..Serial::default()
            }),
        },
        ..vmm::control::document(config, boot_source, root)
    }
}

fn console_of(kind: ConsoleKind) -> config::ConsoleKind {
    match kind {
        ConsoleKind::Virtio => config::ConsoleKind::Virtio,
        ConsoleKind::Serial | ConsoleKind::Off => config::ConsoleKind::Serial,
    }
}

impl Files {
    /// Says which file an error is about.
    pub(crate) fn name_in(self, source: BuildError) -> Error {
        let path = match &source {
            BuildError::Kernel(_) | BuildError::Boot(boot::Error::KernelTooLarge { .. }) => {
                Some(self.kernel)
            }
            BuildError::Boot(boot::Error::InitrdTooLarge { .. }) => self.initrd,
            _ => None,
        };
        match path {
            Some(path) => Error::File { path, source },
            None => source.into(),
        }
    }
}

/// A guest has one root file system.
fn check_root(args: &RunArgs, file: &VmConfig) -> Result<(), Error> {
    let flag = args.rootfs.is_some() || devices::pmem::root(args).is_some();
    if flag && vmm::control::root_words(file).is_some() {
        return Err(Error::Device(
            "There are two root file systems, one of the configuration file and one of a flag: choose one"
                .into(),
        ));
    }
    Ok(())
}

fn configure(
    args: &RunArgs,
    file: &VmConfig,
    metadata: Option<&Arc<Mmds>>,
) -> Result<Config, Error> {
    let machine = &file.machine_config;
    let cpus = args.cpus.unwrap_or(machine.vcpu_count.into());
    // More than a host can have is more than a host can have, in whole MiB.
    let memory = args
        .memory
        .unwrap_or(machine.mem_size_mib.min(u64::MAX >> 20) << 20);
    let config = Config::new(cpus, memory)
        .and_then(|config| config.with_smt(args.smt || machine.smt))
        .and_then(|config| {
            // Here for the name of the setting, if it is wrong.
            let is_huge = args.huge_pages || machine.huge_pages == HugePages::M2;
            config.with_huge_pages(if is_huge {
                config::HugePages::TwoMiB
            } else {
                config::HugePages::None
            })
        })
        .map_err(|source| {
            let setting = match (&source, args.cpus, args.memory) {
                (config::Error::Cpus { cpus } | config::Error::OddCpus { cpus }, given, _) => {
                    let name = given.map_or("vcpu_count", |_| "--cpus");
                    format!("{name} {cpus}")
                }
                (_, _, None) => format!("mem_size_mib {}", memory >> 20),
                (_, _, Some(_)) => format!("--memory {memory}"),
            };
            Error::Config { setting, source }
        })?;
    let mut document = file.clone();
    document.machine_config.smt |= args.smt;
    if args.huge_pages {
        document.machine_config.huge_pages = HugePages::M2;
    }
    let config = vmm::control::configure(config, &document, metadata)
        .map_err(|fault| Error::Device(fault.message))?;
    Ok(config
        .with_boot_timer(args.boot_timer)
        .with_keyboard(args.keyboard))
}

fn describe(config: &Config, guest: &Guest) {
    say(&format!("kernel {}", guest.kernel.path.display()));
    if let Some(why) = &guest.kernel.fallback {
        say(&format!("the kernel unpacks itself in the guest: {why}"));
    }
    if let Some((_, path)) = &guest.initrd {
        say(&format!("initrd {}", path.display()));
    }
    say(&format!("command line {}", guest.cmdline));
    say(&format!(
        "{} CPUs, {} bytes of memory",
        config.cpus(),
        config.memory()
    ));
}

pub(crate) fn report_mark(mark: &BootMark, started: Instant) {
    say(&format!(
        "boot timer: mark {} at {:.3} ms after start, {:.3} ms after the first KVM_RUN",
        mark.value,
        millis(mark.at.saturating_duration_since(started)),
        millis(mark.since_first_run)
    ));
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Says how it ended, in one line unless it ended well.
pub(crate) fn report_end(
    reason: &StopReason,
    console_tail: &[u8],
    id: Option<&str>,
    symbols: Option<&std::fs::File>,
) -> Status {
    let guest = id.map_or_else(|| "the guest".into(), |id| format!("guest {id}"));
    let panicked = || {
        console_tail
            .windows(PANIC_MESSAGE.len())
            .any(|text| text == PANIC_MESSAGE)
    };
    match reason {
        StopReason::Panicked => {
            say(&format!("{guest} crashed: kernel panic"));
            Status::GuestCrashed
        }
        StopReason::PowerOff | StopReason::Reset if panicked() => {
            say(&format!(
                "{guest} crashed: kernel panic, see the console output above"
            ));
            Status::GuestCrashed
        }
        StopReason::PowerOff | StopReason::Reset => Status::Success,
        StopReason::TripleFault { cpu } => {
            say(&format!("{guest} crashed: triple fault on vCPU {cpu}"));
            Status::GuestCrashed
        }
        StopReason::Crashed(report) => {
            report_crash(&guest, report, symbols);
            Status::GuestCrashed
        }
        StopReason::RunFailed { cpu, error } => {
            say(&run_failed(&guest, *cpu, error, error.errno()));
            Status::MoteError
        }
        StopReason::Done(status) => Status::Other((*status).into()),
        // There is a port to say so only where a template is made.
        StopReason::Waits => Status::Success,
        StopReason::MemoryLost => {
            say(&format!("what serves the memory of {guest} has ended"));
            Status::MoteError
        }
        StopReason::Requested(StopRequest::Quit) => Status::Success,
        StopReason::Requested(StopRequest::Timeout) => {
            say(&format!(
                "{guest} was stopped: it did not end within --timeout"
            ));
            Status::Timeout
        }
        StopReason::Requested(StopRequest::Signal(number)) => {
            say(&format!("{guest} was stopped by signal {number}"));
            Status::Signal(*number)
        }
    }
}

fn report_crash(guest: &str, report: &CrashReport, symbols: Option<&std::fs::File>) {
    say(&format!("{guest} crashed: {report}"));
    let rip = report.regs.map(|regs| regs.rip);
    if let (Some(rip), Some(kernel)) = (rip, symbols) {
        match arch::symbols::nearest(kernel, rip) {
            Some((name, offset)) => say(&format!("  RIP is in {name}+{offset:#x}")),
            None => say(&"  RIP is near no symbol of the kernel image"),
        }
    }
    let hint = if symbols.is_some() {
        ""
    } else {
        " (run with -v for the kernel symbol at RIP)"
    };
    say(&format!(
        "what to do: `mote doctor` tells whether this host's KVM can run Linux; if it can, the guest \
         has executed something that KVM does not know{hint}"
    ));
}

/// Stops the machine when its time is up.
pub(crate) struct Timeout {
    timer: TimerFd,
    stopper: Stopper,
}

impl Timeout {
    pub(crate) fn new(after: Duration, stopper: Stopper) -> io::Result<Self> {
        let mut timer = TimerFd::new()?;
        timer.reset(after, None)?;
        Ok(Self { timer, stopper })
    }
}

impl MutEventSubscriber for Timeout {
    fn process(&mut self, _: Events, ops: &mut EventOps) {
        self.stopper.stop(StopRequest::Timeout);
        // Once is enough; unread, the timer would be reported for ever.
        let _ = ops.remove(Events::empty(&self.timer));
    }

    fn init(&mut self, ops: &mut EventOps) {
        // Fails only for a descriptor that is already there.
        let _ = ops.add(Events::new(&self.timer, EventSet::IN));
    }
}
