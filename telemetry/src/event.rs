//! What happens, one JSON object a line: the stream of `GET /events`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use api::command::State;
use serde::Serialize;
use vmm::{DeviceEvent, DeviceId, StopReason, StopRequest};

/// Something that has happened. docs/metrics-and-events.md has the table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// The microVM is in another state.
    State {
        /// The one that it is in now.
        state: State,
    },
    /// A milestone of the boot.
    Boot {
        /// Which.
        milestone: Milestone,
        /// Time since InstanceStart.
        since_start_us: u64,
        /// Time since the guest's first instruction, for what comes after that.
        #[serde(skip_serializing_if = "Option::is_none")]
        since_first_run_us: Option<u64>,
        /// What the guest has written, of a mark.
        #[serde(skip_serializing_if = "Option::is_none")]
        value: Option<u8>,
    },
    /// A snapshot has been written.
    Snapshot {
        /// It has only what changed since another one.
        differential: bool,
        /// How long nothing of the guest went on.
        pause_us: u64,
        /// Bytes of guest memory in its file.
        memory_bytes: u64,
    },
    /// The guest has ended, and the monitor will.
    End {
        /// Why.
        reason: End,
        /// Who stopped it: a request, a time limit, or a signal with its number.
        #[serde(skip_serializing_if = "Option::is_none")]
        by: Option<String>,
        /// The vCPU that crashed.
        #[serde(skip_serializing_if = "Option::is_none")]
        vcpu: Option<u32>,
        /// What is known of the crash.
        #[serde(skip_serializing_if = "Option::is_none")]
        report: Option<String>,
    },
    /// The host failed a device: the first time of each kind of error.
    DeviceError {
        /// The device.
        #[serde(flatten)]
        device: Device,
        /// What it could not do.
        operation: String,
        /// What the host said.
        error: String,
    },
    /// A device was brought into the guest while it runs.
    DeviceAdded {
        /// The device.
        #[serde(flatten)]
        device: Device,
    },
    /// A device has left the guest.
    DeviceRemoved {
        /// The device.
        #[serde(flatten)]
        device: Device,
    },
    /// Metrics cannot be written: once, until they can again.
    MetricsTrouble {
        /// Why.
        error: String,
    },
    /// The log has lost lines.
    LogTrouble {
        /// How many so far.
        missed: u64,
    },
}

/// A point of the boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Milestone {
    /// The vCPUs run.
    Started,
    /// The guest has written to the boot timer.
    Mark,
}

/// Why a guest has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum End {
    /// It powered off.
    PowerOff,
    /// It asked for a restart.
    Reset,
    /// Its kernel has panicked.
    Panic,
    /// A vCPU took a fault while it handled a double fault.
    TripleFault,
    /// KVM could not go on with a vCPU.
    Crash,
    /// KVM itself failed.
    KvmError,
    /// It waits for a job, of which a template is made.
    Waits,
    /// Its job has ended.
    Done,
    /// What served its memory ended.
    MemoryLost,
    /// Someone stopped it.
    Stopped,
}

/// A device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Device {
    /// Its kind.
    device: &'static str,
    /// Its name, if there can be several.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
}

impl From<&DeviceId> for Device {
    fn from(id: &DeviceId) -> Self {
        let (device, id) = match id {
            DeviceId::Disk(id) => ("drive", Some(id)),
            DeviceId::Card(id) => ("network-interface", Some(id)),
            DeviceId::Balloon => ("balloon", None),
            DeviceId::Entropy => ("entropy", None),
            DeviceId::Vsock => ("vsock", None),
            DeviceId::Console => ("console", None),
            DeviceId::Pmem(id) => ("pmem", Some(id)),
            DeviceId::MemoryHotplug => ("memory-hotplug", None),
        };
        Self {
            device,
            id: id.cloned(),
        }
    }
}

impl From<&DeviceEvent<'_>> for Event {
    fn from(event: &DeviceEvent<'_>) -> Self {
        match event {
            DeviceEvent::Plugged(id) => Self::DeviceAdded {
                device: (*id).into(),
            },
            DeviceEvent::Gone(id) => Self::DeviceRemoved {
                device: (*id).into(),
            },
            DeviceEvent::Failed { id, what, error } => Self::DeviceError {
                device: (*id).into(),
                operation: (*what).into(),
                error: error.to_string(),
            },
        }
    }
}

impl From<&StopReason> for Event {
    fn from(reason: &StopReason) -> Self {
        let (mut by, mut vcpu, mut report) = (None, None, None);
        let reason = match reason {
            StopReason::PowerOff => End::PowerOff,
            StopReason::Reset => End::Reset,
            StopReason::Panicked => End::Panic,
            StopReason::TripleFault { cpu } => {
                vcpu = Some(*cpu);
                End::TripleFault
            }
            StopReason::Crashed(crash) => {
                vcpu = Some(crash.cpu);
                report = Some(crash.to_string());
                End::Crash
            }
            StopReason::RunFailed { cpu, error } => {
                vcpu = Some(*cpu);
                report = Some(error.to_string());
                End::KvmError
            }
            StopReason::Waits => End::Waits,
            StopReason::Done(status) => {
                report = Some(format!("status {status}"));
                End::Done
            }
            StopReason::MemoryLost => End::MemoryLost,
            StopReason::Requested(request) => {
                by = Some(match request {
                    StopRequest::Quit => "request".into(),
                    StopRequest::Timeout => "timeout".into(),
                    StopRequest::Signal(number) => format!("signal {number}"),
                });
                End::Stopped
            }
        };
        Self::End {
            reason,
            by,
            vcpu,
            report,
        }
    }
}

impl Event {
    /// The line that is sent, without its end, of something that happened at `time`.
    pub fn line(&self, time: SystemTime) -> String {
        #[derive(Serialize)]
        struct Line<'a> {
            time: String,
            #[serde(flatten)]
            event: &'a Event,
        }
        let line = Line {
            time: rfc3339(time.duration_since(UNIX_EPOCH).unwrap_or_default()),
            event: self,
        };
        // Nothing in it fails to be written.
        serde_json::to_string(&line).unwrap_or_default()
    }
}

/// `2026-11-24T23:59:59.123456Z`, of a time since 1970.
pub fn rfc3339(since: Duration) -> String {
    const DAY: u64 = 86_400;
    let (seconds, micros) = (since.as_secs(), since.subsec_micros());
    let (days, second) = (seconds / DAY, seconds % DAY);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

/// The date so many days after 1970-01-01, by the rule that years begin in March, so that the leap day is the last.
fn date(days: u64) -> (u64, u64, u64) {
    const CENTURIES: u64 = 146_097;
    // Days since 0000-03-01.
    let days = days + 719_468;
    let (era, day) = (days / CENTURIES, days % CENTURIES);
    let year = (day - day / 1460 + day / 36_524 - day / (CENTURIES - 1)) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
#[path = "event_test.rs"]
mod tests;
