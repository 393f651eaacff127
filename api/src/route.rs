//! From method, path and body to a command.

use std::fmt::Write;

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::command::{BAD_JSON, Command, Fault};
use crate::types::{
    Drive, DrivePatch, HintingStart, NetworkInterface, NetworkInterfacePatch, Pmem, PmemPatch,
    Validate, check_id, empty_id,
};

/// Where a request goes.
#[derive(Clone, Debug, PartialEq)]
pub enum Route {
    /// To the monitor.
    Command {
        /// What it is asked.
        command: Box<Command>,
        /// Whether something was asked for that Firecracker deprecates: the answer says so.
        deprecated: bool,
    },
    /// The description of the API is asked for.
    OpenApi,
    /// The stream of events is asked for.
    Events,
    /// The console is asked for.
    Console,
}

/// Why a request goes nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What is wrong.
    pub fault: Fault,
    /// Whether something was asked for that Firecracker deprecates: the answer says so.
    pub deprecated: bool,
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Self {
            fault,
            deprecated: false,
        }
    }
}

/// Longest part of a method or path that is repeated in an error, in characters.
const MAX_REPEATED: usize = 128;

/// Finds out what a request asks for.
///
/// `path` is the target as it was sent: with a query it is a path that does not exist. What is wrong is looked for in
/// this order: method and path, the id's form, whether there is a body, its JSON, the id in it, its values.
pub fn route(method: &str, path: &str, body: &[u8]) -> Result<Route, Refusal> {
    let trimmed = path.trim_start_matches('/');
    let trimmed = trimmed.strip_suffix('/').unwrap_or(trimmed);
    let segments: Vec<&str> = match trimmed {
        "" => Vec::new(),
        _ => trimmed.splitn(MAX_SEGMENTS + 1, '/').collect(),
    };
    let request = Request {
        method,
        path: trimmed,
        body,
    };
    if path.contains('?') {
        return Err(request.unknown());
    }
    match method {
        "GET" => request.get(&segments),
        "PUT" => request.put(&segments),
        "PATCH" => request.patch(&segments),
        "DELETE" => request.delete(&segments),
        _ => Err(request.unknown()),
    }
}

/// Most segments of a path that exists.
const MAX_SEGMENTS: usize = 3;

/// What was sent.
#[derive(Clone, Copy)]
struct Request<'a> {
    method: &'a str,
    /// Without the slashes around it.
    path: &'a str,
    body: &'a [u8],
}

impl Request<'_> {
    fn get(self, path: &[&str]) -> Result<Route, Refusal> {
        let command = match path {
            [] => Command::GetInstance,
            ["version"] => Command::GetVersion,
            ["vm", "config"] => Command::GetConfig,
            ["metrics"] => Command::GetMetrics,
            ["machine-config"] => Command::GetMachineConfig,
            ["balloon"] => Command::GetBalloon,
            ["balloon", "statistics"] => Command::GetBalloonStatistics,
            ["balloon", "hinting", "status"] => Command::GetHinting,
            ["hotplug", "memory"] => Command::GetMemoryHotplug,
            ["mmds"] => Command::GetMmds,
            ["openapi.json"] => return self.bodiless(Route::OpenApi),
            ["events"] => return self.bodiless(Route::Events),
            ["console"] => return self.bodiless(Route::Console),
            _ => return Err(self.unknown()),
        };
        self.bodiless(command.into())
    }

    fn put(self, path: &[&str]) -> Result<Route, Refusal> {
        match path {
            ["actions"] => self.read(Command::Act),
            ["boot-source"] => self.read(Command::PutBootSource),
            ["machine-config"] => self.read(Command::PutMachineConfig),
            ["cpu-config"] => self.read(Command::PutCpuConfig),
            ["drives", id] => {
                self.read_named(id, |drive: &Drive| &drive.drive_id, Command::PutDrive)
            }
            ["network-interfaces", id] => self.read_named(
                id,
                |interface: &NetworkInterface| &interface.iface_id,
                Command::PutInterface,
            ),
            ["pmem", id] => self.read_named(id, |pmem: &Pmem| &pmem.id, Command::PutPmem),
            ["drives" | "network-interfaces" | "pmem"] => Err(empty_id().into()),
            ["vsock"] | ["vsock", _] => self.read(Command::PutVsock),
            ["balloon"] => self.read(Command::PutBalloon),
            ["entropy"] => self.read(Command::PutEntropy),
            ["serial"] => self.read(Command::PutSerial),
            ["hotplug", "memory"] => self.read(Command::PutMemoryHotplug),
            ["logger"] => self.read(Command::PutLogger),
            ["metrics"] => self.read(Command::PutMetrics),
            ["mmds"] => self.read(Command::PutMmds),
            ["mmds", "config"] => self.read(Command::PutMmdsConfig),
            ["snapshot", "create"] => self.read(Command::CreateSnapshot),
            ["snapshot", "load"] => self.read(Command::LoadSnapshot),
            ["fork"] => self.read(Command::Fork),
            _ => Err(self.unknown()),
        }
    }

    fn patch(self, path: &[&str]) -> Result<Route, Refusal> {
        match path {
            ["vm"] => self.read(Command::PatchVm),
            ["console"] => self.read(Command::PatchConsole),
            ["machine-config"] => self.read(Command::PatchMachineConfig),
            ["drives", id] => self.read_named(
                id,
                |patch: &DrivePatch| &patch.drive_id,
                Command::PatchDrive,
            ),
            ["network-interfaces", id] => self.read_named(
                id,
                |patch: &NetworkInterfacePatch| &patch.iface_id,
                Command::PatchInterface,
            ),
            ["pmem", id] => self.read_named(id, |patch: &PmemPatch| &patch.id, Command::PatchPmem),
            ["drives" | "network-interfaces" | "pmem"] => Err(empty_id().into()),
            ["balloon"] => self.read(Command::PatchBalloon),
            ["balloon", "statistics"] => self.read(Command::PatchBalloonStatistics),
            ["balloon", "hinting", "start"] if self.body.is_empty() => {
                Ok(Command::StartHinting(HintingStart::default()).into())
            }
            ["balloon", "hinting", "start"] => self.read(Command::StartHinting),
            // Clients send all kinds of bodies, and nothing is to be said in one.
            ["balloon", "hinting", "stop"] => Ok(Command::StopHinting.into()),
            ["hotplug", "memory"] => self.read(Command::PatchMemoryHotplug),
            ["mmds"] => self.read(Command::PatchMmds),
            _ => Err(self.unknown()),
        }
    }

    fn delete(self, path: &[&str]) -> Result<Route, Refusal> {
        let (id, command): (_, fn(String) -> Command) = match path {
            ["drives", id] => (*id, Command::DeleteDrive),
            ["network-interfaces", id] => (*id, Command::DeleteInterface),
            ["pmem", id] => (*id, Command::DeletePmem),
            ["drives" | "network-interfaces" | "pmem"] => return Err(empty_id().into()),
            _ => return Err(self.unknown()),
        };
        check_id(id)?;
        self.bodiless(command(id.into()).into())
    }

    fn unknown(self) -> Refusal {
        let mut message = String::from("Invalid request method and/or path: ");
        message.extend(self.method.chars().take(MAX_REPEATED));
        message.push(' ');
        message.extend(self.path.chars().take(MAX_REPEATED));
        message.push('.');
        Fault::bad(message).into()
    }

    fn bodiless(self, route: Route) -> Result<Route, Refusal> {
        if self.body.is_empty() {
            Ok(route)
        } else {
            let message = format!("{} request cannot have a body.", self.method);
            Err(Fault::bad(message).into())
        }
    }

    fn read<T>(self, command: fn(T) -> Command) -> Result<Route, Refusal>
    where
        T: DeserializeOwned + Validate,
    {
        self.checked(self.parse()?, command)
    }

    /// As [`Self::read`], of a resource whose id is in the path and, by `id_in`, in the body.
    fn read_named<T>(
        self,
        id: &str,
        id_in: fn(&T) -> &String,
        command: fn(T) -> Command,
    ) -> Result<Route, Refusal>
    where
        T: DeserializeOwned + Validate,
    {
        check_id(id)?;
        let value = self.parse()?;
        let other = id_in(&value);
        if other != id {
            return Err(Fault::bad(format!(
                "The ID in the path, {id:?}, is not the one in the body, {other:?}."
            ))
            .into());
        }
        self.checked(value, command)
    }

    fn checked<T: Validate>(self, value: T, command: fn(T) -> Command) -> Result<Route, Refusal> {
        let deprecated = value.is_deprecated();
        match value.validate() {
            Ok(()) => Ok(Route::Command {
                command: Box::new(command(value)),
                deprecated,
            }),
            Err(fault) => Err(Refusal { fault, deprecated }),
        }
    }

    fn parse<T: DeserializeOwned>(self) -> Result<T, Fault> {
        if self.body.is_empty() {
            return Err(Fault::bad(format!("Empty {} request.", self.method)));
        }
        let mut json = serde_json::Deserializer::from_slice(self.body);
        let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
            let path = error.path().to_string();
            self.bad_json(&path, &error.into_inner())
        })?;
        json.end().map_err(|error| self.bad_json(".", &error))?;
        Ok(value)
    }

    /// What clients match, then what they would like to know.
    fn bad_json(self, field: &str, error: &serde_json::Error) -> Fault {
        let mut message = format!("{BAD_JSON}{error}. In {} /{}", self.method, self.path);
        if field != "." {
            // Writing to a string does not fail.
            let _ = write!(message, ", field `{field}`");
        }
        message.push('.');
        Fault::bad(message)
    }
}

impl From<Command> for Route {
    fn from(command: Command) -> Self {
        Self::Command {
            command: Box::new(command),
            deprecated: false,
        }
    }
}

impl Validate for Value {}
