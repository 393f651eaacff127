//! `mote snapshot`: a guest as files, and what is in them.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Subcommand;
use serde_json::{Value, json};
use vmm::snapshot::format::StateFile;
use vmm::snapshot::load::{self, Obstacle};
use vmm::snapshot::state::{VirtioState, VmState};

use super::guest::Guest;
use super::{ANSWER_LIMIT, Error, host, pause, print};
use crate::message::chain;
use crate::status::Status;

/// The state file in a snapshot's directory.
pub(crate) const STATE: &str = "state";
/// The memory file there.
pub(crate) const MEMORY: &str = "memory";
/// How long all of a guest's memory may take to be written.
const WRITE_LIMIT: Duration = Duration::from_secs(600);

/// `mote snapshot`.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    other: Option<Other>,

    /// Name of a guest, or how it begins
    #[arg(required = true, value_name = "ID")]
    id: Option<String>,

    /// Directory of the snapshot, which is made; one that is there already is replaced
    #[arg(required = true, value_name = "DIR")]
    directory: Option<PathBuf>,

    /// Have the guest run on; otherwise it stays paused
    #[arg(long)]
    resume: bool,
}

/// What else there is to snapshots.
#[derive(Debug, Subcommand)]
enum Other {
    /// Print what is in a snapshot
    Info(InfoArgs),
}

/// `mote snapshot info`.
#[derive(Debug, clap::Args)]
struct InfoArgs {
    /// Directory of the snapshot
    #[arg(value_name = "DIR")]
    directory: PathBuf,

    /// Print JSON for scripts
    #[arg(long)]
    json: bool,
}

pub(super) fn snapshot(args: &Args) -> Result<Status, Error> {
    match (&args.other, &args.id, &args.directory) {
        (Some(Other::Info(args)), _, _) => info(args),
        (None, Some(id), Some(directory)) => {
            let guest = Guest::find(id)?;
            take(&guest, directory, args.resume)?;
            print(&format!("{}\n", guest.id()));
            Ok(Status::Success)
        }
        (None, _, _) => Err(Error::Usage("Name a guest and a directory".into())),
    }
}

/// Writes the snapshot. If that fails, the guest is as it was.
fn take(guest: &Guest, directory: &Path, resume: bool) -> Result<(), Error> {
    let made = make(directory)?;
    let directory = fs::canonicalize(directory)
        .map_err(host("use the directory", directory.display().to_string()))?;
    let runs = guest.state(ANSWER_LIMIT)? == "Running";
    let done = (|| {
        if runs {
            pause::change(guest, "Paused")?;
        }
        let files = json!({
            "snapshot_path": directory.join(STATE), "mem_file_path": directory.join(MEMORY),
        });
        guest.request("PUT", "/snapshot/create", Some(&files), WRITE_LIMIT)
    })();
    let failed = done.is_err();
    if resume || failed && runs {
        pause::change(guest, "Resumed")?;
    }
    if failed && made {
        // It is as empty as it was made.
        let _ = fs::remove_dir(&directory);
    }
    done.map(|_| ())
}

/// Makes the directory, for nobody else to look into; whether it was not there.
fn make(directory: &Path) -> Result<bool, Error> {
    match fs::DirBuilder::new().mode(0o700).create(directory) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => {
            Ok(false)
        }
        Err(error) => Err(host("make the directory", directory.display().to_string())(
            error,
        )),
    }
}

fn info(args: &InfoArgs) -> Result<Status, Error> {
    let path = args.directory.join(STATE);
    let name = path.display().to_string();
    let mut file = File::open(&path).map_err(host("open", name.clone()))?;
    let of = |error: vmm::snapshot::format::Error| {
        Error::Usage(format!("{name} cannot be used: {}", chain(&error)))
    };
    let file = StateFile::read(&mut file).map_err(of)?;
    let state: VmState = file.state().map_err(of)?;
    let config: Value = serde_json::from_str(&file.config)
        .map_err(|error| Error::Usage(format!("{name} cannot be used: {error}")))?;
    let memory = fs::metadata(args.directory.join(MEMORY)).ok();
    let ram: u64 = state.memory.iter().map(|region| region.bytes).sum();
    // A CPU that was asked for.
    let is_custom = config
        .get("cpu-config")
        .is_some_and(|value| !value.is_null());
    let kvm = Path::new(vmm::DEFAULT_DEVICE);
    let obstacles = load::obstacles(&state, &args.directory.join(MEMORY), kvm, is_custom);
    let stored = memory.map(|memory| std::os::unix::fs::MetadataExt::blocks(&memory) * 512);
    let (transport, devices): (_, Vec<&str>) = match &state.virtio {
        VirtioState::Mmio(devices) => (
            "mmio",
            devices.iter().map(|(name, _)| name.as_str()).collect(),
        ),
        VirtioState::Pci { functions, .. } => (
            "pci",
            functions.iter().map(|(name, _, _)| name.as_str()).collect(),
        ),
    };
    if args.json {
        let all = json!({
            "mote_version": file.header.writer,
            "taken_ns": state.taken,
            "host": { "cpu": state.host.cpu.to_string(), "kernel": state.host.kernel },
            "obstacles": obstacles.iter().map(|obstacle| json!({
                "why": chain(&obstacle.why), "risky": obstacle.is_risky,
            })).collect::<Vec<_>>(),
            "vcpus": state.vcpus.len(),
            "memory_bytes": ram,
            "memory_file_bytes": stored,
            "state_bytes": file.header.config_size + file.header.state_size,
            "transport": transport,
            "devices": devices,
            "config": config,
        });
        print(&format!("{all}\n"));
        return Ok(Status::Success);
    }
    let stored = stored.map_or("there is no memory file".into(), |bytes| {
        format!("{} stored", mebibytes(bytes))
    });
    print(&format!(
        "written by  mote {}\nvCPUs       {}\nmemory      {}, {stored}\ndevices     {} ({transport})\n\
         host        {}, Linux {}\n{}",
        file.header.writer,
        state.vcpus.len(),
        mebibytes(ram),
        if devices.is_empty() {
            "none".into()
        } else {
            devices.join(", ")
        },
        state.host.cpu,
        state.host.kernel.escape_debug(),
        verdict(&obstacles),
    ));
    Ok(Status::Success)
}

/// Whether it could be loaded here, a line each.
fn verdict(obstacles: &[Obstacle]) -> String {
    if obstacles.is_empty() {
        return "restore     possible here\n".into();
    }
    let line = |obstacle: &Obstacle| {
        let how = if obstacle.is_risky {
            "only with --force"
        } else {
            "impossible here"
        };
        format!("restore     {how}: {}\n", chain(&obstacle.why))
    };
    obstacles.iter().map(line).collect()
}

fn mebibytes(bytes: u64) -> String {
    let number = bytes as f64 / f64::from(1 << 20);
    format!("{number:.1} MiB")
}
