//! `mote vmm`'s flags, which are Firecracker's.

use std::path::PathBuf;

use api::socket::Existing;
use api::types::{
    LogLevel, MemBackend, MemBackendType, NetworkOverride, SnapshotLoad, VsockOverride,
};
use clap::Parser;
use vmm::snapshot::directory;

use crate::config_file::Unknown;
use crate::logger::LogSettings;
use crate::options::OptionList;
use crate::status::Status;

/// Longest name of an instance.
const MAX_ID: usize = 64;
/// The name of an instance that has none.
pub(crate) const ANONYMOUS: &str = "anonymous-instance";
/// Where clients of Firecracker look if nobody names a path.
const FIRECRACKER_SOCKET: &str = "/run/firecracker.socket";

/// What the binary was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Name {
    /// `mote vmm`.
    Mote,
    /// `firecracker`: statuses, defaults and what is printed are what clients of it expect.
    Firecracker,
}

impl Name {
    /// What a file at the socket's path means.
    pub(crate) fn existing(self) -> Existing {
        match self {
            Self::Mote => Existing::ReplaceIfStale,
            Self::Firecracker => Existing::Refuse,
        }
    }

    /// What sections of a configuration file mean that do not exist.
    pub(crate) fn unknown_sections(self) -> Unknown {
        match self {
            Self::Mote => Unknown::Refuse,
            // As it has always been there.
            Self::Firecracker => Unknown::Warn,
        }
    }

    /// The name of the thread that serves the API.
    pub(crate) fn api_thread(self) -> &'static str {
        match self {
            Self::Mote => "api",
            Self::Firecracker => "fc_api",
        }
    }

    /// Flags that are wrong.
    pub(crate) fn bad_arguments(self) -> Status {
        match self {
            Self::Mote => Status::MoteError,
            Self::Firecracker => Status::Other(153),
        }
    }

    /// An error of the monitor or its host.
    pub(crate) fn error(self) -> Status {
        match self {
            Self::Mote => Status::MoteError,
            Self::Firecracker => Status::Other(1),
        }
    }

    /// The guest crashed.
    pub(crate) fn guest_crashed(self) -> Status {
        match self {
            Self::Mote => Status::GuestCrashed,
            Self::Firecracker => Status::Other(1),
        }
    }

    /// A log level that is none.
    pub(crate) fn bad_level(self) -> Status {
        match self {
            Self::Mote => Status::MoteError,
            Self::Firecracker => Status::Other(152),
        }
    }
}

/// The command line under the name `firecracker`.
#[derive(Debug, Parser)]
#[command(
    name = "firecracker",
    about = "A microVM monitor that is configured by an API on a Unix socket",
    disable_version_flag = true
)]
pub(crate) struct FirecrackerCli {
    /// Print the version
    #[arg(long)]
    pub version: bool,

    /// The rest.
    #[command(flatten)]
    pub vmm: VmmArgs,
}

/// `mote vmm`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct VmmArgs {
    /// Unix socket of the API [default: api.sock in mote's run-time directory]
    #[arg(long, value_name = "PATH")]
    pub api_sock: Option<PathBuf>,

    /// Name of the instance: letters, digits and '-'
    #[arg(long, value_name = "ID", value_parser = parse_id)]
    pub id: Option<String>,

    /// JSON document with the machine, which is started at once
    #[arg(long, value_name = "FILE")]
    pub config_file: Option<PathBuf>,

    /// No API: only what the configuration file says
    #[arg(long, requires = "config_file", conflicts_with = "api_sock")]
    pub no_api: bool,

    /// JSON document with the guest's metadata
    #[arg(long, value_name = "FILE")]
    pub metadata: Option<PathBuf>,

    /// Where the log goes: a file or FIFO
    #[arg(long, value_name = "PATH")]
    pub log_path: Option<PathBuf>,

    /// What is logged: Off, Error, Warn, Info, Debug or Trace
    #[arg(long, value_name = "LEVEL")]
    pub level: Option<String>,

    /// The only module that is logged: the start of its path
    #[arg(long, value_name = "PREFIX")]
    pub module: Option<String>,

    /// Log lines have their level in them
    #[arg(long)]
    pub show_level: bool,

    /// Log lines have the place in the source in them
    #[arg(long)]
    pub show_log_origin: bool,

    /// Where metrics go: a file or FIFO
    #[arg(long, value_name = "PATH")]
    pub metrics_path: Option<PathBuf>,

    /// The guest can mark the end of its boot
    #[arg(long)]
    pub boot_timer: bool,

    /// Devices are on a PCI bus
    #[arg(long)]
    pub enable_pci: bool,

    /// Most bytes of a request's body
    #[arg(long, value_name = "BYTES", default_value_t = 51200)]
    pub http_api_max_payload_size: usize,

    /// Most bytes of the guest's metadata [default: as much as a request's body]
    #[arg(long, value_name = "BYTES")]
    pub mmds_size_limit: Option<usize>,

    /// When the process was asked for, in microseconds of the monotonic clock
    #[arg(long, value_name = "MICROSECONDS")]
    pub start_time_us: Option<u64>,

    /// CPU time of the process until exec, in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    pub start_time_cpu_us: Option<u64>,

    /// CPU time of the parent process, in microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    pub parent_cpu_time_us: Option<u64>,

    /// Without system call filters: there are none yet
    #[arg(long, conflicts_with = "seccomp_filter")]
    pub no_seccomp: bool,

    /// System call filters of one's own: not there yet
    #[arg(long, value_name = "FILE", value_parser = refuse_filter)]
    pub seccomp_filter: Option<PathBuf>,

    /// What `mote restore` loads first.
    #[arg(skip)]
    pub restore: Option<SnapshotLoad>,

    /// It is one of several guests from one snapshot ([`copies`](crate::copies)).
    #[arg(skip)]
    pub is_copy: bool,
}

/// `mote restore`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct RestoreArgs {
    /// Directory of the snapshot
    #[arg(value_name = "DIR", conflicts_with_all = ["config_file", "enable_pci"])]
    pub directory: PathBuf,

    /// Another tap of the host for a network card, with vhost=off or on if that is to be otherwise too; may be given
    /// several times
    #[arg(long, value_name = "CARD=TAP[,vhost=on|off]", value_parser = parse_override)]
    pub net: Vec<NetworkOverride>,

    /// Another Unix socket for the connections between guest and host
    #[arg(long, value_name = "PATH")]
    pub vsock: Option<String>,

    /// Leave the guest paused
    #[arg(long)]
    pub paused: bool,

    /// Keep account of what the guest writes to from its next snapshot on, for smaller ones after that
    #[arg(long)]
    pub track_dirty_pages: bool,

    /// What time it is in the guest
    #[arg(long, value_name = "TIME", value_enum, default_value_t = Clock::Realtime)]
    pub clock: Clock,

    /// Let pass what is merely risky: a disk that may have changed, another CPU
    #[arg(long)]
    pub force: bool,

    /// It is one of several guests from one snapshot, and whoever began it waits until it has been loaded
    #[arg(long, hide = true)]
    pub copy: bool,

    /// The rest.
    #[command(flatten)]
    pub vmm: VmmArgs,
}

/// What time it is in a guest that goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Clock {
    /// The host's: its clocks go on as if it had run
    Realtime,
    /// What it was: its clocks stood still
    Stopped,
}

impl RestoreArgs {
    /// As what `mote vmm` is to do. Fails with a sentence.
    pub(crate) fn vmm(&self) -> Result<VmmArgs, String> {
        let text = |path: PathBuf| {
            let text = path.to_str().map(str::to_owned);
            text.ok_or_else(|| format!("{} is no text", path.display()))
        };
        let state = text(directory::state(&self.directory))?;
        let memory = text(directory::memory(&self.directory))?;
        Ok(VmmArgs {
            is_copy: self.copy,
            restore: Some(SnapshotLoad {
                snapshot_path: state,
                mem_backend: Some(MemBackend {
                    backend_type: MemBackendType::File,
                    backend_path: memory,
                }),
                mem_file_path: None,
                enable_diff_snapshots: false,
                track_dirty_pages: self.track_dirty_pages,
                resume_vm: !self.paused,
                network_overrides: self.net.clone(),
                vsock_override: self
                    .vsock
                    .clone()
                    .map(|uds_path| VsockOverride { uds_path }),
                clock_realtime: self.clock == Clock::Realtime,
                force: self.force,
            }),
            ..self.vmm.clone()
        })
    }
}

pub(crate) fn parse_override(text: &str) -> Result<NetworkOverride, String> {
    let (which, options) = text.split_once(',').unwrap_or((text, ""));
    let mut options = OptionList::new("--net", options);
    let vhost = options.take_switch("vhost")?;
    options.finish()?;
    match which.split_once('=') {
        Some((card, tap)) if !card.is_empty() && !tap.is_empty() => Ok(NetworkOverride {
            iface_id: card.into(),
            host_dev_name: tap.into(),
            vhost,
        }),
        _ => Err("write it as CARD=TAP, such as eth0=tap1".into()),
    }
}

impl VmmArgs {
    /// Where the API's socket is to be, if that is not in the run-time directory.
    pub(crate) fn socket(&self, name: Name) -> Option<PathBuf> {
        match (&self.api_sock, name) {
            (Some(path), _) => Some(path.clone()),
            (None, _) if self.no_api => None,
            (None, Name::Firecracker) => Some(FIRECRACKER_SOCKET.into()),
            (None, Name::Mote) => None,
        }
    }

    /// Whether there is no place for the API's socket but the run-time directory.
    pub(crate) fn needs_run_dir(&self, name: Name) -> bool {
        !self.no_api && self.socket(name).is_none()
    }

    /// How the log of an instance of this name begins.
    pub(crate) fn log_settings(&self, name: Name, id: &str) -> LogSettings {
        let level = self.level.as_ref().and_then(|level| level.parse().ok());
        LogSettings {
            id: id.to_owned(),
            path: self.log_path.clone(),
            to_stdout: name == Name::Firecracker,
            level: level.unwrap_or(match name {
                Name::Mote => LogLevel::Warn,
                Name::Firecracker => LogLevel::Info,
            }),
            show_level: self.show_level,
            show_origin: self.show_log_origin,
            module: self.module.clone(),
        }
    }

    /// What clap does not look at.
    pub(crate) fn check(&self, name: Name) -> Result<(), (Status, String)> {
        if let Some(level) = &self.level {
            level
                .parse::<LogLevel>()
                .map_err(|error| (name.bad_level(), format!("--level: {error}")))?;
        }
        Ok(())
    }
}

pub(crate) fn parse_id(text: &str) -> Result<String, String> {
    let is_good = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if text.is_empty() || text.len() > MAX_ID || !text.chars().all(is_good) {
        return Err(format!(
            "an ID is 1 to {MAX_ID} letters, digits and '-' of ASCII"
        ));
    }
    Ok(text.into())
}

fn refuse_filter(_: &str) -> Result<PathBuf, String> {
    Err("this version of mote has no system call filters: leave it out, or say --no-seccomp".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_tap_is_said_with_what_serves_it() {
        for (text, tap, vhost) in [
            ("eth0=tap1", "tap1", None),
            ("eth0=tap{},vhost=off", "tap{}", Some(false)),
            ("eth0=tap1,vhost", "tap1", Some(true)),
        ] {
            let change = parse_override(text).unwrap();
            assert_eq!(change.iface_id, "eth0");
            assert_eq!((&*change.host_dev_name, change.vhost), (tap, vhost));
        }
        for (text, what) in [
            ("eth0", "CARD=TAP"),
            ("=tap1", "CARD=TAP"),
            ("eth0=", "CARD=TAP"),
            ("eth0=tap1,vhost=maybe", "on or off"),
            ("eth0=tap1,queues=2", "queues"),
        ] {
            let error = parse_override(text).unwrap_err();
            assert!(error.contains(what), "{text}: {error}");
        }
    }
}
