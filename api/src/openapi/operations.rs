//! What each request is for, what it is sent with and what it answers when it succeeds.

use crate::states::Request;

/// A request's part of the description.
pub(super) struct Operation {
    pub(super) tag: &'static str,
    pub(super) summary: &'static str,
    pub(super) description: &'static str,
    pub(super) body: Body,
    pub(super) success: Success,
    /// Whether Firecracker does not have it.
    pub(super) is_extension: bool,
}

/// What a request is sent with.
#[derive(Clone, Copy)]
pub(super) enum Body {
    None,
    /// This schema.
    Object(&'static str),
    /// This schema, or nothing.
    Optional(&'static str),
    /// Whatever is sent, which is not looked at.
    Ignored,
    /// Any JSON.
    Any,
}

/// What it answers.
#[derive(Clone, Copy)]
pub(super) enum Success {
    /// 204.
    Empty,
    /// 200, and this schema.
    Object(&'static str),
    /// 200, and any JSON.
    Any,
    /// 200, and text of this type.
    Text(&'static str),
    /// 101: bytes in both directions.
    Upgrade,
}

use Body::{Any, Ignored, Object, Optional};
use Success::Empty;

/// The description of a request. Of those that share a method and a path, the first one's counts.
pub(super) fn operation(request: Request) -> Operation {
    match request {
        Request::GetInstance => get("instance", "Name and state of the instance", "InstanceInfo"),
        Request::GetVersion => get("instance", "Versions", "Version"),
        Request::GetConfig => get("instance", "The whole configuration", "VmConfig").more(
            "What was put, with what was changed since. It has the form of a configuration file.",
        ),
        Request::GetOpenApi => Operation {
            success: Success::Any,
            ..get("instance", "This description", "").extension()
        },
        Request::GetMetrics => text(
            "metrics",
            "Metrics of now",
            "application/openmetrics-text",
        )
        .more("OpenMetrics text: exits, devices, memory, phases of the start. Counters only go up.")
        .extension(),
        Request::GetEvents => text("instance", "What happens, as it happens", "application/x-ndjson")
            .more(
                "A stream that ends with the monitor: one JSON object a line for each change of state, \
                 crash of the guest, fault of a device and phase of the start.",
            )
            .extension(),
        Request::GetConsole => Operation {
            success: Success::Upgrade,
            ..get("instance", "Attaches to the guest's console", "")
        }
        .more(
            "To be asked with `Connection: Upgrade` and `Upgrade: mote-console`. After the answer, the \
             connection carries bytes: what the guest prints, and what is typed. With `Upgrade: \
             mote-console-frames` what the guest prints comes in frames: a byte 0, a length of 4 bytes, least \
             significant first, and so many bytes; or a byte 1 and how many bytes were lost, as the client was too \
             slow.",
        )
        .extension(),
        Request::PatchConsole => send(
            "instance",
            "Says how large the console's terminal is",
            Object("ConsolePatch"),
        )
        .more("A virtio console's driver is told, and with it whoever runs on that terminal in the guest.")
        .extension(),
        Request::InstanceStart
        | Request::SendCtrlAltDel
        | Request::FlushMetrics
        | Request::PowerButton
        | Request::Stop
        | Request::Reset => send("instance", "Does something at once", Object("Action")).more(
            "A start is answered when the vCPUs run. If it fails, the configuration stays and can be \
             corrected.",
        ),
        Request::Pause | Request::Resume => {
            send("instance", "Pauses or resumes the guest", Object("VmPatch")).more(
                "Answered when all vCPUs stand, or run. To ask for what is so already changes nothing.",
            )
        }
        Request::PutBootSource => {
            send("machine", "Says what is booted", Object("BootSource")).more("Both files are opened at once.")
        }
        Request::GetMachineConfig => get("machine", "vCPUs and memory", "MachineConfig"),
        Request::PutMachineConfig => send("machine", "Sets vCPUs and memory", Object("MachineConfig")).more(
            "A field that is absent gets its default, but for `cpu_template`, which stays.",
        ),
        Request::PatchMachineConfig => send(
            "machine",
            "Changes vCPUs and memory",
            Object("MachineConfigPatch"),
        )
        .more("A field that is absent stays. There must be one at least."),
        Request::PutCpuConfig => send("machine", "Changes CPUID and MSRs", Object("CpuConfig"))
            .more("Checked against the host's CPU when the guest starts. Takes the place of a CPU template."),
        Request::PutDrive => send("drives", "Adds a drive, or another one in its place", Object("Drive")).more(
            "The file is opened at once. On a running guest it is a hot-plug, and the id must be free.",
        ),
        Request::PatchDrive => send("drives", "Changes a drive's file or limits", Object("DrivePatch"))
            .more("One of both must be there. The guest is told of another size."),
        Request::DeleteDrive => remove("drives", "Takes a drive away"),
        Request::PutInterface => send(
            "network",
            "Adds a network card, or another one in its place",
            Object("NetworkInterface"),
        )
        .more("The tap is opened at once. On a running guest it is a hot-plug, and the id must be free."),
        Request::PatchInterface => send(
            "network",
            "Changes a network card's limits",
            Object("NetworkInterfacePatch"),
        ),
        Request::DeleteInterface => remove("network", "Takes a network card away"),
        Request::PutPmem => send("drives", "Adds persistent memory", Object("Pmem"))
            .more("On a running guest it is a hot-plug: the id must be free, and it is not the root device."),
        Request::PatchPmem => send("drives", "Changes the limits of persistent memory", Object("PmemPatch")),
        Request::DeletePmem => remove("drives", "Takes persistent memory away"),
        Request::PutVsock => send("network", "Sets the socket device", Object("Vsock"))
            .more("The socket exists when this is answered."),
        Request::PutBalloon => send("memory", "Sets the balloon", Object("Balloon")),
        Request::GetBalloon => get("memory", "The balloon", "Balloon")
            .more("`amount_mib` is what the guest was last asked for."),
        Request::PatchBalloon => send("memory", "Changes the balloon's size", Object("BalloonPatch")),
        Request::GetBalloonStatistics => {
            get("memory", "What the guest says of its memory", "BalloonStatistics")
                .more("Fields that the guest never reported are absent.")
        }
        Request::PatchBalloonStatistics => send(
            "memory",
            "Changes the interval of the statistics",
            Object("BalloonStatisticsPatch"),
        )
        .more("Not from 0 and not to 0: without statistics at the start there are none."),
        Request::StartHinting => send(
            "memory",
            "Asks the guest which memory it does not use",
            Optional("HintingStart"),
        ),
        Request::GetHinting => get("memory", "How far the hints are", "HintingStatus"),
        Request::StopHinting => send("memory", "Ends the hints", Ignored),
        Request::PutEntropy => send("machine", "Gives the guest the host's randomness", Object("Entropy")),
        Request::PutSerial => send("machine", "Says where the serial port's output goes", Object("Serial"))
            .more("The file is opened when the guest starts."),
        Request::PutMemoryHotplug => send("memory", "Sets memory that can be plugged", Object("MemoryHotplug")),
        Request::GetMemoryHotplug => get("memory", "What is plugged", "MemoryHotplugStatus"),
        Request::PatchMemoryHotplug => send("memory", "Plugs and unplugs memory", Object("MemoryHotplugPatch"))
            .more("The guest does it in its own time."),
        Request::PutLogger => send("metrics", "Sets the log", Object("Logger"))
            .more("In force at once. A field that is absent stays, but for `level`."),
        Request::PutMetrics => send("metrics", "Sets the file of the metrics", Object("Metrics"))
            .more("A JSON object a line, each minute and when it is asked for. Only once."),
        Request::PutMmdsConfig => send("metadata", "Sets the metadata service", Object("MmdsConfig")),
        Request::PutMmds => send("metadata", "Sets the metadata", Any).more("Takes the place of all of it."),
        Request::PatchMmds => send("metadata", "Changes the metadata", Any)
            .more("As a JSON merge patch (RFC 7396)."),
        Request::GetMmds => Operation {
            success: Success::Any,
            ..get("metadata", "The metadata", "")
        },
        Request::CreateSnapshot | Request::SnapshotRunning => {
            send("snapshots", "Writes a snapshot", Object("SnapshotCreate")).more(
                "The guest has to be paused, or runs on as soon as its state has been taken (`resume_vm`, an \
                 extension). Answered when the files are there.",
            )
        }
        Request::LoadSnapshot => send("snapshots", "Loads a snapshot", Object("SnapshotLoad"))
            .more("Before any device was configured."),
        Request::Fork => Operation {
            success: Success::Object("ForkedGuests"),
            ..send("snapshots", "Makes copies of the guest", Object("Fork"))
        }
        .more(
            "Each goes on from here in a process of its own, with an API of its own. Answered when all of them have \
             been loaded; if one cannot be, there is none.",
        )
        .extension(),
    }
}

impl Operation {
    fn more(self, description: &'static str) -> Self {
        Self {
            description,
            ..self
        }
    }

    fn extension(self) -> Self {
        Self {
            is_extension: true,
            ..self
        }
    }
}

fn get(tag: &'static str, summary: &'static str, schema: &'static str) -> Operation {
    Operation {
        tag,
        summary,
        description: "",
        body: Body::None,
        success: Success::Object(schema),
        is_extension: false,
    }
}

fn text(tag: &'static str, summary: &'static str, kind: &'static str) -> Operation {
    Operation {
        success: Success::Text(kind),
        ..get(tag, summary, "")
    }
}

fn send(tag: &'static str, summary: &'static str, body: Body) -> Operation {
    Operation {
        body,
        success: Empty,
        ..get(tag, summary, "")
    }
}

fn remove(tag: &'static str, summary: &'static str) -> Operation {
    send(tag, summary, Body::None).more(
        "The guest is asked to let go of it. Answered when it has, or with 400 after 5 s: it may still do so then. \
         Requests for other resources are served meanwhile. The root device cannot go.",
    )
}
