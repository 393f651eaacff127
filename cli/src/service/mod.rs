//! `mote vmm`: a monitor that does what its API is told. Under the name `firecracker` the binary is this and
//! nothing else (`args`).
//!
//! Reading order: this file (threads, start and end), `args`, `handler` (from the API's thread to the one that
//! carries commands out), `face` (what that one needs of this program), `console` (who is attached to it), `fork` (copies of
//! its guest), `beside`
//! (the same API beside `mote run`).
//!
//! | thread | does |
//! | --- | --- |
//! | main | serves the devices' event loop, builds the machine when it is told to |
//! | `control` | carries out one command after the other; may wait for event loops |
//! | `api` | speaks HTTP; waits for nobody |

pub(crate) mod args;
pub(crate) mod beside;
mod console;
mod face;
mod fork;
mod handler;
mod telemetry;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use ::telemetry::Metrics;
use api::State;
use api::server::{self, Server};
use api::socket;
use api::types::SnapshotLoad;
use api::{Command, Fault};
use devices::mmds::Mmds;
use thiserror::Error;
use vmm::control::{Control, Settings};
use vmm::snapshot::load::Purpose;
use vmm::{BuildError, OrderQueue, Outcome, Remains, Stage, StopReason, StopRequest, Vm};

use crate::config_file;
use crate::copies;
use crate::footprint::Trim;
use crate::logger;
use crate::message::{chain, run_failed, say};
use crate::process;
use crate::rundir::{self, Entry, Kind, RunDir};
use crate::signals::{SignalWatch, WindowWatch};
use crate::status::Status;
use crate::{disaster, terminal};
use args::{ANONYMOUS, Name, VmmArgs};
use console::Attachments;
use handler::Submitter;

/// How long answers may take to be read after the guest has ended.
const GRACE: Duration = Duration::from_millis(100);

/// Why there is no monitor, or why it ended.
#[derive(Debug, Error)]
pub(crate) enum Error {
    /// The log.
    #[error(transparent)]
    Log(#[from] logger::Error),
    /// A file that was named.
    #[error(transparent)]
    File(#[from] config_file::Error),
    /// The metadata is no JSON.
    #[error("The metadata {path:?} cannot be used")]
    Metadata {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// What files ask for cannot be done.
    #[error("{} cannot be carried out: {fault}", describe(.files))]
    Refused {
        /// The configuration file, or that of the metadata, or both.
        files: Vec<PathBuf>,
        /// Why.
        fault: Fault,
    },
    /// `--metrics-path`.
    #[error("{0}")]
    Metrics(String),
    /// The run-time directory.
    #[error(transparent)]
    RunDir(#[from] rundir::Error),
    /// The API's socket.
    #[error(transparent)]
    Socket(#[from] socket::Error),
    /// The API's server, a thread or a signal handler.
    #[error("Cannot start {what}")]
    Host {
        /// What.
        what: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The event loop.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// The machine could not be served.
    #[error(transparent)]
    Run(#[from] vmm::Error),
}

fn describe(files: &[PathBuf]) -> String {
    let names: Vec<_> = files.iter().map(|file| format!("{file:?}")).collect();
    format!("What is asked for by {}", names.join(" and "))
}

fn host(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Host { what, source }
}

/// Serves the API until the guest ends or someone asks for the end. What is left of a machine is the caller's
/// to free.
pub(crate) fn vmm(
    args: &VmmArgs,
    name: Name,
    started: Instant,
) -> Result<(Status, Option<Remains>), Error> {
    process::set_up();
    if args.is_copy {
        copies::leave();
    }
    let (entry, unlisted) = register(args, name)?;
    let listed = entry.as_ref().map(Entry::id);
    let id = listed.or(args.id.as_deref()).unwrap_or(ANONYMOUS);
    logger::serve(&args.log_settings(name, id))?;
    if let Some(error) = unlisted {
        warn_unlisted(&error);
    }
    let file = match &args.config_file {
        Some(path) => Some(config_file::read(path, name.unknown_sections())?),
        None => None,
    };
    let metadata = match &args.metadata {
        Some(path) => Some(read_metadata(path)?),
        None => None,
    };
    let mut stage = Stage::new()?;
    let signals = SignalWatch::new(stage.stopper()).map_err(host("signal handlers"))?;
    stage.add_subscriber(Box::new(signals));
    stage.add_subscriber(Box::new(Trim::new().map_err(host("a timer"))?));

    let limit = (args.mmds_size_limit).unwrap_or(args.http_api_max_payload_size);
    let mmds = Arc::new(Mmds::new(id, limit).map_err(host("the metadata service"))?);
    let (orders, queue) = stage.orders();
    let settings = Settings {
        id: id.to_owned(),
        pci: args.enable_pci,
        boot_timer: args.boot_timer,
        kvm_device: vmm::DEFAULT_DEVICE.into(),
        mmds: Arc::clone(&mmds),
    };
    let terminal = face::Terminal::default();
    let attachments = if args.no_api {
        None
    } else {
        Some(Attachments::new().map_err(host("the console's other end"))?)
    };
    let (submitter, jobs) = handler::channel(id, State::NotStarted, attachments, mmds, started);
    let metrics = submitter.metrics();
    if let Some(path) = &args.metrics_path {
        telemetry::write_to(&metrics, path).map_err(Error::Metrics)?;
    }
    let face = face::Program::new(terminal.clone(), &submitter);
    let mut control = Control::new(settings, stage.maker(), orders, Box::new(face));
    // The socket comes before the guest: whoever starts this waits for it.
    let in_entry = entry.as_ref().map(Entry::socket);
    let path = args
        .socket(name)
        .or_else(|| in_entry.filter(|_| args.needs_run_dir(name)));
    let socket = match &path {
        Some(path) => Some(socket::bind(path, name.existing())?),
        None => None,
    };
    if let (Some(path), true) = (&path, args.needs_run_dir(name)) {
        say(&format!("guest {id}: API on {}", path.display()));
    }
    let mut first: Vec<Command> = metadata.map(Command::PutMmds).into_iter().collect();
    let begun = match &args.restore {
        Some(load) => {
            drop(queue);
            for command in first.drain(..) {
                control.execute(command).map_err(refused(args))?;
            }
            // On this thread, and before there are others: the guest waits for none of them.
            let purpose = if args.is_copy {
                Purpose::Copy
            } else {
                Purpose::Guest(vmm::Start::of_process(started))
            };
            let vm =
                restore(&mut control, stage, load, purpose, &metrics).map_err(refused(args))?;
            Begun::Restored(Box::new(vm))
        }
        None => Begun::Empty(Box::new(stage), queue),
    };
    let failed = Arc::new(OnceLock::new());
    first.extend(file.into_iter().flat_map(handler::commands_of));
    let carrier = handler::carry_out(
        control,
        jobs,
        Arc::clone(&metrics),
        first.into_iter(),
        Arc::clone(&failed),
    )
    .map_err(host("the control thread"))?;
    let (server, idle) = match socket {
        Some(socket) => (Some(serve(socket, submitter, args, name)?), None),
        // Nobody submits anything, but there are metrics to be written.
        None => (None, Some(submitter)),
    };
    metrics.ready(telemetry::started(args));
    log::info!("API server started.");
    if let Some(entry) = &entry
        && let Err(error) = entry.publish(Kind::Vmm, path.as_deref(), args.log_path.as_deref())
        && name == Name::Mote
    {
        warn_unlisted(&error);
    }
    if args.is_copy {
        copies::say_loaded(args.log_path.as_deref()).map_err(host("as a copy"))?;
    }

    let outcome = match begun {
        Begun::Restored(vm) => Outcome::Machine(vm),
        // Commands that wait for a start hear that there is none, if there is none.
        Begun::Empty(stage, queue) => stage.serve(&queue, |vm: &mut Vm| meet(vm, &metrics))?,
    };
    let (status, remains) = match outcome {
        Outcome::Stopped(reason) => {
            metrics.ended(&reason);
            (end(&reason, name), None)
        }
        Outcome::Machine(mut vm) => {
            let reason = vm.run(|mark| telemetry::mark(&metrics, &mark, name, started))?;
            metrics.ended(&reason);
            let mut status = end(&reason, name);
            if has_crashed(&reason) && vm.has_lost_memory() {
                log::error!(
                    "The memory file of the guest's snapshot was cut while the guest ran from it: it has to stay as it is"
                );
                status = name.error();
            }
            (status, Some(vm.take_down()))
        }
    };
    if let Some((server, file)) = server {
        server.stop(GRACE);
        drop(file);
    }
    drop(idle);
    // Nobody submits any more, so that it ends as soon as it has done what was asked.
    let _ = carrier.join();
    terminal.restore();
    match Arc::into_inner(failed).and_then(OnceLock::into_inner) {
        Some(fault) => Err(refused(args)(fault)),
        None => Ok((status, remains)),
    }
}

/// What the main thread has, before it serves a machine.
enum Begun {
    /// A place for one that is to be asked for.
    Empty(Box<Stage>, OrderQueue),
    /// One that was restored.
    Restored(Box<Vm>),
}

/// What files ask for was refused.
fn refused(args: &VmmArgs) -> impl Fn(Fault) -> Error + '_ {
    let named = [&args.metadata, &args.config_file].into_iter().flatten();
    let saved = args
        .restore
        .iter()
        .map(|load| PathBuf::from(&load.snapshot_path));
    let files: Vec<PathBuf> = named.cloned().chain(saved).collect();
    move |fault| Error::Refused {
        files: files.clone(),
        fault,
    }
}

/// Builds the machine of a snapshot, and lets it go on.
fn restore(
    control: &mut Control,
    stage: Stage,
    load: &SnapshotLoad,
    purpose: Purpose,
    metrics: &Arc<Metrics>,
) -> Result<Vm, Fault> {
    let failed = |error: &dyn std::error::Error| {
        Fault::bad(format!("Cannot load the snapshot: {}", chain(error)))
    };
    let order = control.load(load, purpose)?;
    let mut vm = stage.build(order).map_err(|error| failed(&error))?;
    meet(&mut vm, metrics);
    vm.go_on(load.resume_vm).map_err(|error| failed(&error))?;
    control.has_loaded(vm.handle(), load);
    Ok(vm)
}

/// There is a machine now, which is about to start.
fn meet(vm: &mut Vm, metrics: &Arc<Metrics>) {
    metrics.meet(vm.insight());
    if vm.is_restored() {
        // Somebody may cut the file of its memory.
        disaster::handle();
    }
    if let Err(error) = watch_window(vm) {
        log::warn!("The guest does not hear of its terminal's size: {error}");
    }
}

/// Tells a guest with a virtio console, which comes from a snapshot here, of the size of the terminal, if there is one.
fn watch_window(vm: &mut Vm) -> io::Result<()> {
    if let Some(console) = vm.controls().console()
        && terminal::size().is_some()
    {
        vm.add_subscriber(Box::new(WindowWatch::new(console)?));
    }
    Ok(())
}

/// An entry in the run-time directory, or why there is none if nobody needs it. Under the name `firecracker` nobody
/// does, or has to hear of it: many have the same name there.
fn register(
    args: &VmmArgs,
    name: Name,
) -> Result<(Option<Entry>, Option<rundir::Error>), rundir::Error> {
    let id = match name {
        Name::Mote => args.id.as_deref(),
        Name::Firecracker => Some(args.id.as_deref().unwrap_or(ANONYMOUS)),
    };
    let registered = RunDir::make().and_then(|directory| directory.register(id));
    match (registered, name) {
        (Ok(entry), _) => Ok((Some(entry), None)),
        (Err(_), Name::Firecracker) => Ok((None, None)),
        (Err(error), Name::Mote)
            if args.needs_run_dir(name) || matches!(error, rundir::Error::Taken { .. }) =>
        {
            Err(error)
        }
        (Err(error), Name::Mote) => Ok((None, Some(error))),
    }
}

/// A guest whose API is elsewhere can do without the run-time directory.
fn warn_unlisted(error: &rundir::Error) {
    log::warn!("`mote ps` will not show this guest: {}", chain(error));
}

fn serve(
    socket: socket::BoundSocket,
    submitter: Submitter,
    args: &VmmArgs,
    name: Name,
) -> Result<(server::ServerHandle, socket::SocketFile), Error> {
    let socket::BoundSocket { listener, file } = socket;
    log::info!("Listening on API socket ({}).", file.path().display());
    let settings = server::Settings {
        max_body: args.http_api_max_payload_size,
        thread_name: name.api_thread().into(),
        ..server::Settings::default()
    };
    let handle =
        Server::start(listener, Arc::new(submitter), settings).map_err(host("the API's server"))?;
    Ok((handle, file))
}

fn read_metadata(path: &Path) -> Result<serde_json::Value, Error> {
    let text = config_file::read_small("metadata", path)?;
    serde_json::from_slice(&text).map_err(|source| Error::Metadata {
        path: path.to_owned(),
        source,
    })
}

/// Whether it did not end as it was meant to.
fn has_crashed(reason: &StopReason) -> bool {
    match reason {
        StopReason::Panicked
        | StopReason::TripleFault { .. }
        | StopReason::Crashed(_)
        | StopReason::MemoryLost
        | StopReason::RunFailed { .. } => true,
        StopReason::PowerOff
        | StopReason::Reset
        | StopReason::Waits
        | StopReason::Done(_)
        | StopReason::Requested(_) => false,
    }
}

/// Logs how it ended, and chooses the status.
fn end(reason: &StopReason, name: Name) -> Status {
    match reason {
        StopReason::PowerOff | StopReason::Reset => {
            log::info!("The guest has ended.");
            Status::Success
        }
        StopReason::Panicked => {
            log::error!("The guest crashed: kernel panic");
            name.guest_crashed()
        }
        StopReason::TripleFault { cpu } => {
            log::error!("The guest crashed: triple fault on vCPU {cpu}");
            name.guest_crashed()
        }
        StopReason::Crashed(report) => {
            log::error!("The guest crashed: {report}");
            name.guest_crashed()
        }
        StopReason::RunFailed { cpu, error } => {
            log::error!("{}", run_failed("the guest", *cpu, error, error.errno()));
            name.error()
        }
        StopReason::Done(status) => {
            log::info!("The guest's job has ended with status {status}.");
            Status::Other((*status).into())
        }
        // There is a port to say so only where a template is made.
        StopReason::Waits => Status::Success,
        StopReason::MemoryLost => {
            log::error!("The page-fault handler, which serves the guest's memory, has ended.");
            name.error()
        }
        StopReason::Requested(StopRequest::Signal(number)) => {
            log::info!("Stopped by signal {number}.");
            Status::Signal(*number)
        }
        StopReason::Requested(StopRequest::Quit | StopRequest::Timeout) => {
            log::info!("Stopped.");
            Status::Success
        }
    }
}
