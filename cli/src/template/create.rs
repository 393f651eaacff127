//! `mote template create`: boots a guest to where it waits for a job, and writes it.

use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{env, fs, io, thread};

use agent::Job;
use api::Command;
use api::types::{SnapshotCreate, SnapshotType, VmConfig, VmPatch, VmState};
use devices::backend::disk::Overlay;
use devices::console_io::FileOutput;
use devices::mmds::{DEFAULT_LIMIT, Mmds};
use image::initramfs::Purpose;
use vmm::config::{Config, DeviceKind};
use vmm::control::{Control, Settings};
use vmm::snapshot::{self, directory, working_set};
use vmm::{Remains, Start, StopReason, StopRequest, Vm};

use super::Error;
use super::run::{Foreground, build, give, load};
use super::store::{CONSOLE_LOG, Draft, Manifest, Source, Store};
use crate::args::RunArgs;
use crate::console::{self, ConsoleEnd, ConsoleKind, ConsoleOption};
use crate::ctl::print;
use crate::guest::{BUSYBOX, Guest};
use crate::keys::Targets;
use crate::message::{chain, say};
use crate::run::{self, Timeout};
use crate::signals::SignalWatch;
use crate::status::Status;
use crate::{logger, pool, process};

/// How long a guest may take to where it waits, unless `--timeout` says it.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often is looked whether it has been written.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// What is run first, and what that prints.
const FIRST_JOB: &str = "true";
const FIRST_JOB_LOG: &str = "first-job.log";
/// How much of what it printed is shown if it does not get there.
const SHOWN: usize = 2000;

/// `mote template create`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The guest is what `mote run` with the same flags would boot. A COMMAND behind -- is run before the
template is taken: what it has set up or loaded, and each daemon that it has started, is there in
each guest.")]
pub(crate) struct Args {
    /// Its name: letters, digits and - _ .
    #[arg(value_name = "NAME")]
    pub name: String,

    /// In the place of the one that has this name
    #[arg(long)]
    pub replace: bool,

    /// Make the one of this name again, as it was made
    #[arg(long, conflicts_with = "replace")]
    pub again: bool,

    /// The guest.
    #[command(flatten)]
    pub run: RunArgs,
}

/// Makes it.
pub(super) fn execute(args: &Args) -> Status {
    let made = match args.again {
        true => again(&args.name),
        false => create(args),
    };
    match made {
        Ok((status, remains)) => {
            if let Some(remains) = remains {
                remains.leave_to_reaper();
            }
            status
        }
        Err(error) => {
            say(&chain(&*error));
            Status::MoteError
        }
    }
}

type Made = Result<(Status, Option<Remains>), Box<dyn std::error::Error>>;

/// Has a template made again, by another process.
pub(crate) fn rebuild(name: &str) -> Result<(), Error> {
    let status = Process::new("/proc/self/exe")
        .args(["template", "create", "--again", name])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status();
    match status {
        Ok(status) if status.success() => Ok(()),
        // It has said why.
        _ => Err(Error::Again { name: name.into() }),
    }
}

fn again(name: &str) -> Made {
    let Manifest {
        arguments,
        directory,
        ..
    } = Store::from_env()?.find(name)?.manifest;
    env::set_current_dir(directory)?;
    create(&Args {
        name: name.into(),
        replace: true,
        again: false,
        run: arguments,
    })
}

fn create(args: &Args) -> Made {
    let RunArgs { verbose, .. } = args.run;
    check(&args.run)?;
    logger::start(verbose, &args.name);
    process::set_up();
    let draft = Store::from_env()?.begin(&args.name, args.replace)?;
    let started = Instant::now();
    let log = draft.directory().join(CONSOLE_LOG);
    let console = console(&args.run, &log)?;
    let file = run::read_file(&args.run)?;
    let (config, guest) = run::prepare(&args.run, &file, &console, Purpose::Jobs)?;
    let config = config.with_job_port(true);
    check_files(&config)?;
    let sources = sources(&args.run, &config, &guest)?;
    let document = run::document(&args.run, &config, &guest, &file, &console);
    let kind = guest.console;
    let (payload, files) = run::payload(&args.run, guest);
    let console = match kind {
        ConsoleKind::Off => None,
        ConsoleKind::Serial | ConsoleKind::Virtio => {
            Some(console::open(&console, Targets::default())?.0)
        }
    };
    let mut vm = Vm::build(&config, payload, console).map_err(|error| files.name_in(error))?;
    let signals = SignalWatch::new(vm.stopper())?;
    vm.add_subscriber(Box::new(signals));
    let patience = args.run.timeout.unwrap_or(PATIENCE);
    vm.add_subscriber(Box::new(Timeout::new(patience, vm.stopper())?));
    vm.start();
    match vm.run(|_| {})? {
        StopReason::Waits => {}
        StopReason::Requested(StopRequest::Signal(number)) => {
            return Ok((Status::Signal(number), Some(vm.take_down())));
        }
        StopReason::Requested(_) => {
            return Err(Error::Slow {
                seconds: patience.as_secs(),
            }
            .into());
        }
        reason => return Err(ended(&reason, &log).into()),
    }
    let ready_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    write(&mut vm, &config, document, &draft)?;
    drop(vm.take_down());
    let remains = record(&draft, &args.name)?;
    draft.finish(&Manifest::new(args.run.clone(), sources, ready_ms)?)?;
    pool::renew(&args.name);
    print(&format!("{}\n", args.name));
    Ok((Status::Success, Some(remains)))
}

/// Runs a first job, and notes which pages of the guest's memory that takes.
fn record(draft: &Draft, name: &str) -> Result<Remains, Box<dyn std::error::Error>> {
    let folder = draft.directory();
    working_set::forget(&directory::memory(folder))?;
    let option = ConsoleOption {
        end: ConsoleEnd::File(FileOutput {
            path: folder.join(FIRST_JOB_LOG),
            max_size: 0,
            keep: 0,
        }),
        ..ConsoleOption::default()
    };
    let (console, _) = console::open(&option, Targets::default())?;
    let job = Job {
        arguments: vec![FIRST_JOB.into()],
        ..Job::default()
    };
    let job = job.encode().unwrap_or_default();
    let purpose = snapshot::load::Purpose::FirstJob(Start::now());
    let mut vm = build(name, &load(folder, None), purpose, console)?;
    give(&vm, job)?;
    vm.add_subscriber(Box::new(SignalWatch::new(vm.stopper())?));
    vm.add_subscriber(Box::new(Timeout::new(PATIENCE, vm.stopper())?));
    vm.go_on(true)?;
    match vm.run(|_| {})? {
        // A root file system need not have that program.
        StopReason::Done(_) => {}
        reason => return Err(ended(&reason, &folder.join(FIRST_JOB_LOG)).into()),
    }
    vm.note_status()?;
    Ok(vm.take_down())
}

/// Flags that are for one guest, not for many.
fn check(args: &RunArgs) -> Result<(), Error> {
    let wrong = [
        (args.template.is_some(), "--template"),
        (args.id.is_some(), "--id"),
        (args.api_sock.is_some(), "--api-sock"),
        (args.vsock.is_some(), "--vsock"),
        (args.boot_timer, "--boot-timer"),
    ];
    match wrong.iter().find(|(is_given, _)| *is_given) {
        Some((_, flag)) => Err(Error::Flag(format!(
            "{flag} is for one guest: give it to mote run --template"
        ))),
        None => Ok(()),
    }
}

/// Where the guest prints until it waits.
fn console(args: &RunArgs, log: &Path) -> Result<ConsoleOption, Error> {
    let option = args.console.as_deref().map(ConsoleOption::parse);
    let option = option.transpose().map_err(Error::Flag)?.unwrap_or_default();
    if option.end != ConsoleEnd::Stdio {
        return Err(Error::Flag(
            "A template's console leads nowhere yet: say where by mote run --template NAME --console".into(),
        ));
    }
    Ok(ConsoleOption {
        end: ConsoleEnd::File(FileOutput {
            path: log.to_owned(),
            max_size: 0,
            keep: 0,
        }),
        ..option
    })
}

/// Whether no guest of it could write to what another one reads.
fn check_files(config: &Config) -> Result<(), Error> {
    let shared = |path: &Path, or| Error::Shared {
        path: path.to_owned(),
        or,
    };
    for device in config.devices() {
        match &device.kind {
            DeviceKind::Block(disk) if !disk.read_only && disk.overlay != Overlay::Temporary => {
                return Err(shared(&disk.path, ", or overlay=temp"));
            }
            DeviceKind::Pmem(pmem) if !pmem.read_only => return Err(shared(&pmem.path, "")),
            _ => {}
        }
    }
    Ok(())
}

/// All files that the guest is made of.
fn sources(args: &RunArgs, config: &Config, guest: &Guest) -> io::Result<Vec<Source>> {
    let devices = config
        .devices()
        .iter()
        .filter_map(|device| match &device.kind {
            DeviceKind::Block(disk) => Some(&disk.path),
            DeviceKind::Pmem(pmem) => Some(&pmem.path),
            _ => None,
        });
    let mut paths: Vec<&Path> = devices.map(PathBuf::as_path).collect();
    paths.push(&guest.kernel_path);
    paths.extend(args.config_file.as_deref());
    match &guest.initrd {
        // It is made of that.
        Some(_) if args.initrd.is_none() && args.config_file.is_none() => {
            paths.push(Path::new(BUSYBOX));
        }
        Some((_, path)) => paths.push(path),
        None => {}
    }
    paths.into_iter().map(Source::of).collect()
}

/// Says how it ended, with what it printed last.
fn ended(reason: &StopReason, log: &Path) -> Error {
    let how = match reason {
        StopReason::PowerOff | StopReason::Reset => "it powered off".into(),
        StopReason::Panicked => "its kernel panicked".into(),
        StopReason::Done(status) => format!("it said that a job has ended, with status {status}"),
        reason => format!("{reason:?}"),
    };
    let printed = fs::read(log).unwrap_or_default();
    let last = &printed[printed.len().saturating_sub(SHOWN)..];
    let last = String::from_utf8_lossy(last);
    Error::Ended {
        why: if last.trim().is_empty() {
            how
        } else {
            format!("{how}, and it printed:\n{}", last.trim_end())
        },
    }
}

/// Writes the guest, as the API would.
fn write(
    vm: &mut Vm,
    config: &Config,
    document: VmConfig,
    draft: &Draft,
) -> Result<(), Box<dyn std::error::Error>> {
    let settings = Settings {
        id: String::new(),
        pci: config.pci(),
        boot_timer: false,
        kvm_device: config.kvm_device().to_owned(),
        mmds: Arc::new(Mmds::new("", DEFAULT_LIMIT)?),
    };
    let path = |path: PathBuf| path.to_string_lossy().into_owned();
    let create = SnapshotCreate {
        snapshot_path: path(directory::state(draft.directory())),
        mem_file_path: path(directory::new_memory(draft.directory())?),
        snapshot_type: SnapshotType::Full,
        resume_vm: false,
    };
    let mut control = Control::of_machine(settings, document, vm, Box::new(Foreground::default()));
    let pause = VmPatch {
        state: VmState::Paused,
    };
    let written = vm.serve_while(move || {
        control.execute(Command::PatchVm(pause))?;
        control.execute(Command::CreateSnapshot(create))?;
        loop {
            if let Some((_, written)) = control.take_answer() {
                return written;
            }
            thread::sleep(LOOK_AGAIN);
        }
    })?;
    match written {
        Some(written) => Ok(written.map(drop)?),
        None => Err("The thread that writes the template has panicked".into()),
    }
}
