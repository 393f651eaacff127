//! In which state of the guest each request is legal: the one table of it.

use std::fmt::Write;

use crate::command::{Command, Fault, State};
use crate::types::{ActionType, VmState};

/// What a state says to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Legal {
    /// It is carried out.
    Yes,
    /// It is carried out if this holds too, which whoever does it has to find out.
    If(&'static str),
    /// It is for guests that were started.
    NotBefore,
    /// It is for guests that were not started.
    NotAfter,
    /// It is for guests that are paused.
    OnlyPaused,
}

use Legal::{If, NotAfter, NotBefore, OnlyPaused, Yes};

impl Legal {
    fn check(self) -> Result<(), Fault> {
        Err(Fault::bad(match self {
            Yes | If(_) => return Ok(()),
            NotBefore => "The requested operation is not supported before starting the microVM.",
            NotAfter => "The requested operation is not supported after starting the microVM.",
            OnlyPaused => {
                "The requested operation is not supported while the microVM runs: pause it first."
            }
        }))
    }

    pub(crate) fn cell(self) -> String {
        match self {
            Yes => "yes".into(),
            If(condition) => format!("yes, {condition}"),
            NotBefore | NotAfter => "no".into(),
            OnlyPaused => "no: pause first".into(),
        }
    }
}

/// A line a request: its name, method and path, and what the states say to it.
macro_rules! requests {
    ($($name:ident, $request:literal: $not_started:expr, $running:expr, $paused:expr;)+) => {
        /// All requests. Those whose legality depends on what they ask for are several here.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Request {
            $(#[doc = concat!("`", $request, "`.")] $name,)+
        }

        impl Request {
            /// Each of them, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// Method and path, and what is asked for where that matters.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $request,)+
                }
            }

            /// What a state says to it.
            pub fn legal(self, state: State) -> Legal {
                let (not_started, running, paused) = match self {
                    $(Self::$name => ($not_started, $running, $paused),)+
                };
                match state {
                    State::NotStarted => not_started,
                    State::Running => running,
                    State::Paused => paused,
                }
            }
        }
    };
}

const BALLOON: Legal = If("with a balloon");
const CONSOLE: Legal = If("with a virtio console");
const PCI: Legal = If("with PCI");
const MMDS: Legal = If("with MMDS on an interface");
const FRESH: Legal = If("if nothing was configured");

requests! {
    // Request                                                                Not started, Running, Paused
    GetInstance, "GET /":                                                     Yes, Yes, Yes;
    GetVersion, "GET /version":                                               Yes, Yes, Yes;
    GetConfig, "GET /vm/config":                                              Yes, Yes, Yes;
    GetOpenApi, "GET /openapi.json":                                          Yes, Yes, Yes;
    GetMetrics, "GET /metrics":                                               Yes, Yes, Yes;
    GetEvents, "GET /events":                                                 Yes, Yes, Yes;
    GetConsole, "GET /console":                                               NotBefore, Yes, Yes;
    PatchConsole, "PATCH /console":                                           NotBefore, CONSOLE, CONSOLE;
    InstanceStart, "PUT /actions InstanceStart":                              Yes, NotAfter, NotAfter;
    SendCtrlAltDel, "PUT /actions SendCtrlAltDel":                            NotBefore, Yes, Yes;
    FlushMetrics, "PUT /actions FlushMetrics":                                NotBefore, Yes, Yes;
    PowerButton, "PUT /actions PowerButton":                                  NotBefore, Yes, Yes;
    Stop, "PUT /actions Stop":                                                Yes, Yes, Yes;
    Reset, "PUT /actions Reset":                                              NotBefore, Yes, Yes;
    Pause, "PATCH /vm Paused":                                                NotBefore, Yes, Yes;
    Resume, "PATCH /vm Resumed":                                              NotBefore, Yes, Yes;
    PutBootSource, "PUT /boot-source":                                        Yes, NotAfter, NotAfter;
    GetMachineConfig, "GET /machine-config":                                  Yes, Yes, Yes;
    PutMachineConfig, "PUT /machine-config":                                  Yes, NotAfter, NotAfter;
    PatchMachineConfig, "PATCH /machine-config":                              Yes, NotAfter, NotAfter;
    PutCpuConfig, "PUT /cpu-config":                                          Yes, NotAfter, NotAfter;
    PutDrive, "PUT /drives/{drive_id}":                                       Yes, PCI, PCI;
    PatchDrive, "PATCH /drives/{drive_id}":                                   NotBefore, Yes, Yes;
    DeleteDrive, "DELETE /drives/{drive_id}":                                 NotBefore, PCI, PCI;
    PutInterface, "PUT /network-interfaces/{iface_id}":                       Yes, PCI, PCI;
    PatchInterface, "PATCH /network-interfaces/{iface_id}":                   NotBefore, Yes, Yes;
    DeleteInterface, "DELETE /network-interfaces/{iface_id}":                 NotBefore, PCI, PCI;
    PutPmem, "PUT /pmem/{id}":                                                Yes, PCI, PCI;
    PatchPmem, "PATCH /pmem/{id}":                                            NotBefore, Yes, Yes;
    DeletePmem, "DELETE /pmem/{id}":                                          NotBefore, PCI, PCI;
    PutVsock, "PUT /vsock":                                                   Yes, NotAfter, NotAfter;
    PutBalloon, "PUT /balloon":                                               Yes, NotAfter, NotAfter;
    GetBalloon, "GET /balloon":                                               BALLOON, BALLOON, BALLOON;
    PatchBalloon, "PATCH /balloon":                                           NotBefore, BALLOON, BALLOON;
    GetBalloonStatistics, "GET /balloon/statistics":                          NotBefore, BALLOON, BALLOON;
    PatchBalloonStatistics, "PATCH /balloon/statistics":                      NotBefore, BALLOON, BALLOON;
    StartHinting, "PATCH /balloon/hinting/start":                             NotBefore, BALLOON, BALLOON;
    GetHinting, "GET /balloon/hinting/status":                                NotBefore, BALLOON, BALLOON;
    StopHinting, "PATCH /balloon/hinting/stop":                               NotBefore, BALLOON, BALLOON;
    PutEntropy, "PUT /entropy":                                               Yes, NotAfter, NotAfter;
    PutSerial, "PUT /serial":                                                 Yes, NotAfter, NotAfter;
    PutMemoryHotplug, "PUT /hotplug/memory":                                  Yes, NotAfter, NotAfter;
    GetMemoryHotplug, "GET /hotplug/memory":                                  NotBefore, Yes, Yes;
    PatchMemoryHotplug, "PATCH /hotplug/memory":                              NotBefore, Yes, Yes;
    PutLogger, "PUT /logger":                                                 Yes, NotAfter, NotAfter;
    PutMetrics, "PUT /metrics":                                               If("once"), NotAfter, NotAfter;
    PutMmdsConfig, "PUT /mmds/config":                                        Yes, NotAfter, NotAfter;
    PutMmds, "PUT /mmds":                                                     Yes, MMDS, MMDS;
    PatchMmds, "PATCH /mmds":                                                 If("after a PUT"), MMDS, MMDS;
    GetMmds, "GET /mmds":                                                     Yes, MMDS, MMDS;
    CreateSnapshot, "PUT /snapshot/create resume_vm:false":                   NotBefore, OnlyPaused, Yes;
    SnapshotRunning, "PUT /snapshot/create resume_vm:true":                   NotBefore, Yes, Yes;
    LoadSnapshot, "PUT /snapshot/load":                                       FRESH, NotAfter, NotAfter;
    Fork, "PUT /fork":                                                         NotBefore, Yes, Yes;
}

impl Request {
    /// Whether it is legal in `state`, as far as the state says.
    pub fn check(self, state: State) -> Result<(), Fault> {
        self.legal(state).check()
    }
}

impl From<&Command> for Request {
    fn from(command: &Command) -> Self {
        match command {
            Command::GetInstance => Self::GetInstance,
            Command::GetVersion => Self::GetVersion,
            Command::GetConfig => Self::GetConfig,
            Command::GetMetrics => Self::GetMetrics,
            Command::PutBootSource(_) => Self::PutBootSource,
            Command::GetMachineConfig => Self::GetMachineConfig,
            Command::PutMachineConfig(_) => Self::PutMachineConfig,
            Command::PatchMachineConfig(_) => Self::PatchMachineConfig,
            Command::PutCpuConfig(_) => Self::PutCpuConfig,
            Command::PutDrive(_) => Self::PutDrive,
            Command::PatchDrive(_) => Self::PatchDrive,
            Command::DeleteDrive(_) => Self::DeleteDrive,
            Command::PutInterface(_) => Self::PutInterface,
            Command::PatchInterface(_) => Self::PatchInterface,
            Command::DeleteInterface(_) => Self::DeleteInterface,
            Command::PutPmem(_) => Self::PutPmem,
            Command::PatchPmem(_) => Self::PatchPmem,
            Command::DeletePmem(_) => Self::DeletePmem,
            Command::PutVsock(_) => Self::PutVsock,
            Command::PutBalloon(_) => Self::PutBalloon,
            Command::GetBalloon => Self::GetBalloon,
            Command::PatchBalloon(_) => Self::PatchBalloon,
            Command::GetBalloonStatistics => Self::GetBalloonStatistics,
            Command::PatchBalloonStatistics(_) => Self::PatchBalloonStatistics,
            Command::StartHinting(_) => Self::StartHinting,
            Command::GetHinting => Self::GetHinting,
            Command::StopHinting => Self::StopHinting,
            Command::PutEntropy(_) => Self::PutEntropy,
            Command::PutSerial(_) => Self::PutSerial,
            Command::PutMemoryHotplug(_) => Self::PutMemoryHotplug,
            Command::GetMemoryHotplug => Self::GetMemoryHotplug,
            Command::PatchMemoryHotplug(_) => Self::PatchMemoryHotplug,
            Command::PutLogger(_) => Self::PutLogger,
            Command::PutMetrics(_) => Self::PutMetrics,
            Command::PutMmdsConfig(_) => Self::PutMmdsConfig,
            Command::PutMmds(_) => Self::PutMmds,
            Command::PatchMmds(_) => Self::PatchMmds,
            Command::GetMmds => Self::GetMmds,
            Command::CreateSnapshot(snapshot) if snapshot.resume_vm => Self::SnapshotRunning,
            Command::CreateSnapshot(_) => Self::CreateSnapshot,
            Command::LoadSnapshot(_) => Self::LoadSnapshot,
            Command::Fork(_) => Self::Fork,
            Command::PatchConsole(_) => Self::PatchConsole,
            Command::PatchVm(patch) => match patch.state {
                VmState::Paused => Self::Pause,
                VmState::Resumed => Self::Resume,
            },
            Command::Act(action) => match action.action_type {
                ActionType::InstanceStart => Self::InstanceStart,
                ActionType::SendCtrlAltDel => Self::SendCtrlAltDel,
                ActionType::FlushMetrics => Self::FlushMetrics,
                ActionType::PowerButton => Self::PowerButton,
                ActionType::Stop => Self::Stop,
                ActionType::Reset => Self::Reset,
            },
        }
    }
}

/// The table as Markdown, as it is in `docs/api.md`.
pub fn markdown() -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = writeln!(text, "| request | Not started | Running | Paused |");
    let _ = writeln!(text, "| --- | --- | --- | --- |");
    for request in Request::ALL {
        let cell = |state| request.legal(state).cell();
        let _ = writeln!(
            text,
            "| `{}` | {} | {} | {} |",
            request.name(),
            cell(State::NotStarted),
            cell(State::Running),
            cell(State::Paused),
        );
    }
    text
}

#[cfg(test)]
#[path = "states_test.rs"]
mod tests;
