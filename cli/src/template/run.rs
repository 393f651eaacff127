//! `mote run --template`: a guest from a template, in the foreground, with a job.
//!
//! What is done here is in the way of each start: what can wait is done once the guest runs, or not at all.

use std::env;
use std::fs::File;
use std::io::{IsTerminal, stdin};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use ::bench::waterfall::step::Step;
use agent::Job;
use api::command::State;
use api::types::{
    Logger, MemBackend, MemBackendType, Metrics, Serial, SnapshotLoad, VsockOverride,
};
use devices::mmds::{DEFAULT_LIMIT, Mmds};
use vmm::control::{Control, Copies, Face, Settings};
use vmm::snapshot::directory;
use vmm::snapshot::load::Purpose;
use vmm::snapshot::save::Taken;
use vmm::{Console, Remains, Stage, Vm};

use super::Error;
use super::create::rebuild;
use super::store::Store;
use crate::args::RunArgs;
use crate::console::{self, ConsoleOption};
use crate::keys::Targets;
use crate::message::say;
use crate::run::{self, host};
use crate::status::Status;
use crate::{disaster, explain, logger, pool, process, terminal};

/// Name of a guest that has none.
const HOSTNAME: &str = "mote";

/// Runs a job in a guest from the template of this name, and stays with it until it ends.
pub(crate) fn run(
    args: &RunArgs,
    name: &str,
    started: Instant,
) -> Result<(Status, Option<Remains>), run::Error> {
    logger::start(args.verbose, args.id.as_deref().unwrap_or(name));
    process::set_up();
    let store = Store::from_env()?;
    let mut template = store.find(name)?;
    if let Some(why) = template.outdated() {
        say(&format!("template {name} is made again: {why}"));
        rebuild(name)?;
        template = store.find(name)?;
    }
    explain::mark(Step::Template);
    let job = job(args).ok_or_else(|| Error::Job("there is a zero byte in it".into()))?;
    if let Some(status) = pool::client::run(args, name, &job)? {
        return Ok((status, None));
    }
    let option = match &args.console {
        Some(text) => ConsoleOption::parse(text).map_err(run::Error::Device)?,
        None => ConsoleOption::default(),
    };
    let targets = Targets::default();
    let (console, terminal) = console::open(&option, targets.clone())?;
    let console = explain::listen(console);
    explain::mark(Step::Console);

    let load = load(template.directory(), args.vsock.clone());
    let mut vm = build(name, &load, Purpose::Job, console)?;
    give(&vm, job)?;
    explain::built(&vm);
    vm.go_on(true)?;
    run::attend(&mut vm, &targets, terminal.is_some(), args.timeout)?;
    let reason = vm.run(|mark| run::report_mark(&mark, started))?;
    explain::ended(&vm);
    drop(terminal);
    let status = run::report_end(&reason, &vm.console_tail(), args.id.as_deref(), None);
    let remains = vm.take_down();
    explain::mark(Step::TakenDown);
    Ok((status, Some(remains)))
}

/// Builds the machine of a template. It stands still.
pub(crate) fn build(
    name: &str,
    load: &SnapshotLoad,
    purpose: Purpose,
    console: Console,
) -> Result<Vm, run::Error> {
    let stage = Stage::new()?;
    let settings = Settings {
        id: name.to_owned(),
        pci: false,
        boot_timer: false,
        kvm_device: vmm::DEFAULT_DEVICE.into(),
        mmds: Arc::new(Mmds::new(name, DEFAULT_LIMIT).map_err(host("the metadata service"))?),
    };
    let (orders, queue) = stage.orders();
    drop(queue);
    let face = Foreground(Some(console));
    let mut control = Control::new(settings, stage.maker(), orders, Box::new(face));
    let order = control
        .load(load, purpose)
        .map_err(|fault| run::Error::Device(fault.message))?;
    explain::mark(Step::State);
    let vm = stage.build(order)?;
    // Somebody may cut the file of its memory.
    disaster::handle();
    Ok(vm)
}

/// Gives it a job.
pub(crate) fn give(vm: &Vm, job: Vec<u8>) -> Result<(), Error> {
    let is_there = vm
        .set_job(job)
        .map_err(|error| Error::Job(error.to_string()))?;
    if is_there {
        Ok(())
    } else {
        Err(Error::Job("its template takes none".into()))
    }
}

/// The snapshot in this folder.
pub(crate) fn load(folder: &Path, vsock: Option<String>) -> SnapshotLoad {
    let path = |path: PathBuf| path.to_string_lossy().into_owned();
    SnapshotLoad {
        snapshot_path: path(directory::state(folder)),
        mem_backend: Some(MemBackend {
            backend_type: MemBackendType::File,
            backend_path: path(directory::memory(folder)),
        }),
        mem_file_path: None,
        enable_diff_snapshots: false,
        track_dirty_pages: false,
        resume_vm: true,
        network_overrides: Vec::new(),
        vsock_override: vsock.map(|uds_path| VsockOverride { uds_path }),
        clock_realtime: true,
        force: false,
    }
}

/// What the guest is to run; none if there is a zero in it.
fn job(args: &RunArgs) -> Option<Vec<u8>> {
    let mut job = Job {
        arguments: args
            .command
            .iter()
            .map(|word| word.clone().into_bytes())
            .collect(),
        hostname: args.id.as_deref().unwrap_or(HOSTNAME).into(),
        ..Job::default()
    };
    if stdin().is_terminal() {
        job.window = terminal::size().unwrap_or_default();
        if let Some(kind) = env::var_os("TERM") {
            job.environment
                .push([b"TERM=", &kind.into_vec()[..]].concat());
        }
    }
    job.encode()
}

/// What a machine without an API needs of this program: its console, once.
#[derive(Default)]
pub(super) struct Foreground(Option<Console>);

impl Face for Foreground {
    fn kernel(&mut self, _: &Path) -> Result<File, String> {
        Err("There is a guest already".into())
    }

    fn console(&mut self, _: Option<&Serial>) -> Result<Option<Console>, String> {
        Ok(self.0.take())
    }

    fn set_logger(&mut self, _: &Logger) -> Result<(), String> {
        Ok(())
    }

    fn set_metrics(&mut self, _: &Metrics) -> Result<(), String> {
        Ok(())
    }

    fn flush_metrics(&mut self) -> Result<(), String> {
        Ok(())
    }

    fn metrics(&mut self) -> String {
        String::new()
    }

    fn state_changed(&mut self, _: State) {}

    fn snapshot_taken(&mut self, _: &Taken) {}

    fn copies(&mut self) -> Result<Copies, String> {
        Err("There is no API to ask for copies".into())
    }
}
