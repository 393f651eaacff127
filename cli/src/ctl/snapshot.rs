//! `mote snapshot`: a guest as files, and what is in them.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Subcommand;
use serde_json::{Value, json};
use vmm::Faults;
use vmm::snapshot::format::{self, StateFile};
use vmm::snapshot::load::{self, Obstacle};
use vmm::snapshot::memory::name_of;
use vmm::snapshot::merge;
use vmm::snapshot::restored::{ReplyKind, Restored, Taken};
use vmm::snapshot::state::{VirtioState, VmState};
use vmm::snapshot::working_set::WorkingSet;
use vmm::snapshot::{Pages, directory};

use super::guest::Guest;
use super::{ANSWER_LIMIT, Error, host, pause, print};
use crate::message::chain;
use crate::process;
use crate::status::Status;

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

    /// Only what changed since the last snapshot, which it is to be merged into before it is restored
    #[arg(long)]
    diff: bool,
}

/// What else there is to snapshots.
#[derive(Debug, Subcommand)]
enum Other {
    /// Print what is in a snapshot
    Info(InfoArgs),
    /// Make a whole snapshot of one and what changed since
    Merge(MergeArgs),
}

/// `mote snapshot merge`.
#[derive(Debug, clap::Args)]
struct MergeArgs {
    /// Directory of a whole snapshot
    #[arg(value_name = "BASE_DIR")]
    base: PathBuf,

    /// Directory of what changed since (--diff)
    #[arg(value_name = "DIFF_DIR")]
    differential: PathBuf,

    /// Directory of the result [default: BASE_DIR]
    #[arg(long, value_name = "DIR")]
    into: Option<PathBuf>,
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
        (Some(Other::Merge(args)), _, _) => {
            let into = args.into.as_ref().unwrap_or(&args.base);
            process::outlive_file_limit();
            merge::merge(&args.base, &args.differential, into)
                .map_err(|error| Error::Usage(chain(&error)))?;
            print(&format!("{}\n", into.display()));
            Ok(Status::Success)
        }
        (None, Some(id), Some(directory)) => {
            let guest = Guest::find(id)?;
            take(&guest, directory, args.resume, args.diff)?;
            print(&format!("{}\n", guest.id()));
            Ok(Status::Success)
        }
        (None, _, _) => Err(Error::Usage("Name a guest and a directory".into())),
    }
}

/// Writes the snapshot. If that fails, the guest is as it was.
fn take(guest: &Guest, directory: &Path, resume: bool, differential: bool) -> Result<(), Error> {
    let made = make(directory)?;
    let name = directory.display().to_string();
    let directory = fs::canonicalize(directory).map_err(host("use the directory", name.clone()))?;
    let done = write(guest, &directory, &name, resume, differential);
    if done.is_err() && made {
        // It is as empty as it was made.
        let _ = fs::remove_dir(&directory);
    }
    done
}

fn write(
    guest: &Guest,
    directory: &Path,
    name: &str,
    resume: bool,
    differential: bool,
) -> Result<(), Error> {
    let _lock = directory::lock(directory).map_err(host("write to", name))?;
    let state = directory::state(directory);
    if differential && state.exists() {
        return Err(Error::Usage(format!(
            "There is a snapshot in {name} already: write what changed since to a directory of its own"
        )));
    }
    directory::tidy(directory);
    let memory = directory::new_memory(directory).map_err(host("write to", name))?;
    let runs = guest.state(ANSWER_LIMIT)? == "Running";
    let done = (|| {
        if runs && !resume {
            pause::change(guest, "Paused")?;
        }
        let order = json!({
            "snapshot_path": state, "mem_file_path": memory,
            "snapshot_type": if differential { "Diff" } else { "Full" }, "resume_vm": resume,
        });
        guest.request("PUT", "/snapshot/create", Some(&order), WRITE_LIMIT)
    })();
    if done.is_err() {
        // There may be one without the other.
        let _ = fs::remove_file(&memory);
        if runs && !resume {
            pause::change(guest, "Resumed")?;
        }
    }
    directory::tidy(directory);
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
    let path = directory::state(&args.directory);
    let name = path.display().to_string();
    let mut file = File::open(&path).map_err(host("open", name.clone()))?;
    let of = |error: vmm::snapshot::format::Error| {
        Error::Usage(format!("{name} cannot be used: {}", chain(&error)))
    };
    let file = StateFile::read(&mut file).map_err(of)?;
    let state: VmState = file.state().map_err(of)?;
    let config: Value = serde_json::from_str(&file.config)
        .map_err(|error| Error::Usage(format!("{name} cannot be used: {error}")))?;
    let memory_path = directory::memory(&args.directory);
    let memory = fs::metadata(&memory_path).ok();
    let restored = Restored::find(&memory_path, &state.memory_id);
    let pages = WorkingSet::find(&memory_path, &state.memory_id, &state.memory);
    let pages = pages.map(|set| set.pages());
    let ram: u64 = state.memory.iter().map(|region| region.bytes).sum();
    // A CPU that was asked for.
    let is_custom = config
        .get("cpu-config")
        .is_some_and(|value| !value.is_null());
    let kvm = Path::new(vmm::DEFAULT_DEVICE);
    let obstacles = load::obstacles(&state, &memory_path, kvm, is_custom);
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
            "format_version": format::VERSION,
            "taken_ns": state.taken,
            "host": { "cpu": state.host.cpu.to_string(), "kernel": state.host.kernel },
            "obstacles": obstacles.iter().map(|obstacle| json!({
                "why": chain(&obstacle.why), "risky": obstacle.is_risky,
            })).collect::<Vec<_>>(),
            "vcpus": state.vcpus.len(),
            "memory_bytes": ram,
            "memory_file_bytes": stored,
            "memory_id": name_of(&state.memory_id),
            "base_memory_id": state.memory_base.as_ref().map(name_of),
            "state_bytes": file.header.config_size + file.header.state_size,
            "transport": transport,
            "devices": devices,
            "working_set": pages,
            "last_restore": restored,
            "config": config,
        });
        print(&format!("{all}\n"));
        return Ok(Status::Success);
    }
    let kind = match &state.memory_base {
        None => String::new(),
        Some(base) => format!(
            "snapshot    {}, differential: what changed since {}\n",
            name_of(&state.memory_id),
            name_of(base)
        ),
    };
    let stored = stored.map_or("there is no memory file".into(), |bytes| {
        format!("{} stored", mebibytes(bytes))
    });
    print(&format!(
        "written by  mote {}, format {}\n{kind}vCPUs       {}\nmemory      {}, {stored}\ndevices     {} ({transport})\n\
         host        {}, Linux {}\n{}{}",
        file.header.writer,
        format::VERSION,
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
        history(pages, restored.as_ref()),
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

/// What is known of guests that have gone on from it, a line each.
fn history(pages: Option<Pages>, restored: Option<&Restored>) -> String {
    let mut text = pages.map_or_else(String::new, |Pages { all, written }| {
        format!("working set {all} pages, {written} of them written to\n")
    });
    let Some(restored) = restored else {
        return text;
    };
    let used = restored.working_set.map_or_else(
        || "without a working set".into(),
        |Pages { all, .. }| format!("with a working set of {all} pages"),
    );
    text += &format!(
        "last time   ran after {}; {used}\n",
        took(&restored.running)
    );
    let Some(reply) = &restored.reply else {
        return text + "first reply none\n";
    };
    let kind = match reply.kind {
        ReplyKind::Console => "console",
        ReplyKind::Network => "network",
        ReplyKind::Vsock => "vsock",
        ReplyKind::JobStatus => "status of a job",
    };
    let Faults { minor, major } = reply.vcpus.threads;
    text += &format!(
        "first reply {kind}, after {}, {} of them its vCPUs'",
        took(&reply.taken),
        minor + major
    );
    if let Some(faults) = reply.vcpus.kvm {
        text += &format!("; {faults} in KVM");
    }
    text + "\n"
}

fn took(taken: &Taken) -> String {
    let Faults { minor, major } = taken.faults;
    format!(
        "{:.2} ms, {} page faults ({major} read)",
        taken.ms,
        minor + major
    )
}

fn mebibytes(bytes: u64) -> String {
    let number = bytes as f64 / f64::from(1 << 20);
    format!("{number:.1} MiB")
}
