//! `mote run --api-sock`: the API beside a guest in the foreground; or only what writes its metrics, if a configuration
//! file wants that.

use std::iter;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use ::telemetry::{Metrics, Started};
use api::command::State;
use api::server::{Server, ServerHandle, Settings as ServerSettings};
use api::socket::{self, BoundSocket, Existing, SocketFile};
use api::types::VmConfig;
use devices::mmds::{DEFAULT_LIMIT, Mmds};
use vmm::config::{Config, DeviceKind};
use vmm::control::{Control, Settings};
use vmm::{BootMark, Console, StopReason, Vm};

use super::args::ANONYMOUS;
use super::console::Attachments;
use super::handler::{self, Submitter};
use super::{Error, GRACE, face, host, telemetry};
use crate::message::say;
use crate::rundir::{self, Entry, Kind, RunDir};

/// What there is before the machine: a name and a socket.
pub(crate) struct Beside {
    id: String,
    // In this order: the socket may be in the entry's folder.
    socket: Option<BoundSocket>,
    entry: Option<Entry>,
    console: Option<Attachments>,
}

/// Threads that serve the API. Dropping it ends them, after the machine: they may wait for its event loop.
pub(crate) struct Served {
    metrics: Arc<Metrics>,
    server: Option<ServerHandle>,
    /// Nobody asks, without a server.
    idle: Option<Submitter>,
    carrier: Option<JoinHandle<()>>,
    /// Removed before the entry.
    file: Option<SocketFile>,
    _entry: Option<Entry>,
}

impl Beside {
    /// For a guest of this name, at `path` or in the run-time directory.
    pub(crate) fn new(id: Option<&str>, path: Option<PathBuf>) -> Result<Self, Error> {
        let registered = RunDir::make().and_then(|directory| directory.register(id));
        let entry = match registered {
            Ok(entry) => Some(entry),
            Err(error) if path.is_none() || matches!(error, rundir::Error::Taken { .. }) => {
                return Err(error.into());
            }
            Err(error) => {
                super::warn_unlisted(&error);
                None
            }
        };
        let name = entry.as_ref().map(Entry::id).or(id);
        let id = name.unwrap_or(ANONYMOUS).to_owned();
        let in_entry = entry.as_ref().map(Entry::socket);
        let is_named = path.is_some();
        let path = path.or(in_entry).unwrap_or_default();
        let socket = socket::bind(&path, Existing::ReplaceIfStale)?;
        if !is_named {
            say(&format!("guest {id}: API on {}", path.display()));
        }
        Ok(Self {
            id,
            socket: Some(socket),
            entry,
            console: None,
        })
    }

    /// For a guest of this name that nobody controls.
    pub(crate) fn without_socket(id: Option<&str>) -> Self {
        Self {
            id: id.unwrap_or(ANONYMOUS).to_owned(),
            socket: None,
            entry: None,
            console: None,
        }
    }

    /// The guest's console, with room for others beside the terminal.
    pub(crate) fn console(&mut self, console: Console) -> Result<Console, Error> {
        if self.socket.is_none() {
            return Ok(console);
        }
        let attachments = Attachments::new().map_err(host("the console's other end"))?;
        let console = attachments.beside(console);
        self.console = Some(attachments);
        Ok(console)
    }

    /// Serves it for a machine that is about to start, and of which the API says `document`.
    pub(crate) fn serve(
        self,
        vm: &Vm,
        config: &Config,
        document: VmConfig,
        started: Instant,
    ) -> Result<Served, Error> {
        let Self {
            id,
            socket,
            entry,
            console,
        } = self;
        let settings = Settings {
            pci: config.pci(),
            // What is only needed to build a machine.
            boot_timer: false,
            kvm_device: PathBuf::new(),
            mmds: metadata(config, &id)?,
            id,
        };
        let (submitter, jobs) = handler::channel(
            &settings.id,
            State::Running,
            console,
            Arc::clone(&settings.mmds),
            started,
        );
        let metrics = submitter.metrics();
        if let Some(metrics_file) = &document.metrics {
            telemetry::write_to(&metrics, &metrics_file.metrics_path).map_err(Error::Metrics)?;
        }
        let face = face::Program::new(face::Terminal::default(), &submitter);
        let control = Control::of_machine(settings, document, vm, Box::new(face));
        let carrier = handler::carry_out(
            control,
            jobs,
            Arc::clone(&metrics),
            iter::empty(),
            Arc::default(),
        )
        .map_err(host("the control thread"))?;
        metrics.ready(Started::default());
        metrics.starting();
        metrics.meet(vm.insight());
        let mut served = Served {
            metrics,
            server: None,
            idle: None,
            carrier: Some(carrier),
            file: None,
            _entry: entry,
        };
        served.metrics.state_changed(State::Running);
        match socket {
            Some(BoundSocket { listener, file }) => {
                served.file = Some(file);
                served.server = Some(start(listener, submitter)?);
            }
            None => served.idle = Some(submitter),
        }
        let path = served.file.as_ref().map(SocketFile::path);
        if let Some(entry) = &served._entry
            && let Err(error) = entry.publish(Kind::Run, path, None)
        {
            super::warn_unlisted(&error);
        }
        Ok(served)
    }
}

/// The metadata that a card leads to, or what is there in its place if none does.
fn metadata(config: &Config, id: &str) -> Result<Arc<Mmds>, Error> {
    let served = config
        .devices()
        .iter()
        .find_map(|device| match &device.kind {
            DeviceKind::Net(net) => net.mmds.clone(),
            _ => None,
        });
    match served {
        Some(mmds) => Ok(mmds),
        None => Mmds::new(id, DEFAULT_LIMIT)
            .map(Arc::new)
            .map_err(host("the metadata service")),
    }
}

fn start(
    listener: std::os::unix::net::UnixListener,
    submitter: Submitter,
) -> Result<ServerHandle, Error> {
    let settings = ServerSettings {
        thread_name: "api".into(),
        ..ServerSettings::default()
    };
    Server::start(listener, Arc::new(submitter), settings).map_err(host("the API's server"))
}

impl Served {
    /// The guest has marked a point of its boot.
    pub(crate) fn marked(&self, mark: &BootMark) {
        // The time is said by who prints marks.
        let _ = self.metrics.marked(mark);
    }

    /// The guest has ended, and its devices are still there.
    pub(crate) fn ended(&self, reason: &StopReason) {
        self.metrics.ended(reason);
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            server.stop(GRACE);
        }
        drop(self.idle.take());
        // Nobody submits any more, so that it ends as soon as it has done what was asked.
        if let Some(carrier) = self.carrier.take() {
            let _ = carrier.join();
        }
    }
}
