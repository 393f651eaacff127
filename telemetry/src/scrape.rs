//! What `GET /metrics` says.

use std::time::{Duration, Instant};

use api::command::State;
use devices::virtio::block::{BOUNDS_US, Latency};
use vmm::{BootMark, Controls, DeviceId, ExitCounts, Insight};

use crate::program::{Process, Program, micros};
use crate::requests::Requests;
use crate::text::{Kind, Text, float};

/// What there is to tell.
pub(crate) struct Sources<'a> {
    pub(crate) process: &'a Process,
    pub(crate) program: &'a dyn Program,
    pub(crate) requests: &'a Requests,
    pub(crate) insight: Option<&'a Insight>,
    pub(crate) state: State,
    /// The first one that the guest has set.
    pub(crate) mark: Option<BootMark>,
}

const STATES: [State; 3] = [State::NotStarted, State::Running, State::Paused];

/// The whole text.
pub(crate) fn scrape(sources: &Sources<'_>) -> String {
    let mut text = Text::default();
    process(&mut text, sources);
    boot(&mut text, sources);
    memory(&mut text, sources);
    requests(&mut text, sources.requests);
    if let Some(insight) = sources.insight {
        exits(&mut text, insight);
        consoles(&mut text, insight);
        let controls = insight.controls();
        disks(&mut text, controls);
        cards(&mut text, controls);
        persistent_memory(&mut text, controls);
        plugged_memory(&mut text, controls);
        others(&mut text, controls);
    }
    text.finish()
}

fn process(text: &mut Text, sources: &Sources<'_>) {
    text.family(
        "mote_build",
        Kind::Info,
        "Versions of mote and of the API that it speaks.",
    )
    .sample(
        &[
            ("version", env!("CARGO_PKG_VERSION")),
            ("firecracker_version", api::types::FIRECRACKER_VERSION),
        ],
        1,
    );
    let mut states = text.family("mote_state", Kind::StateSet, "State of the microVM.");
    for state in STATES {
        states.state(&state.to_string(), state == sources.state);
    }
    let seconds = |since: Instant| float(since.elapsed().as_secs_f64());
    text.family(
        "mote_uptime_seconds",
        Kind::Gauge,
        "Time since the monitor began.",
    )
    .sample(&[], seconds(sources.process.main));
    if let Some(first_run) = sources.insight.and_then(Insight::first_run) {
        text.family(
            "mote_guest_uptime_seconds",
            Kind::Gauge,
            "Time since the guest's first instruction, with the time that it was paused.",
        )
        .sample(&[], seconds(first_run));
    }
    let mut lost = text.family(
        "mote_lost_lines",
        Kind::Counter,
        "Lines of the log and the metrics that nobody took.",
    );
    lost.sample(&[("of", "log")], sources.program.missed_log_lines());
    lost.sample(&[("of", "metrics")], sources.process.missed_lines());
}

fn boot(text: &mut Text, sources: &Sources<'_>) {
    let mut phases = text.family(
        "mote_boot_phase_microseconds",
        Kind::Gauge,
        "How long each step of the boot took.",
    );
    let ready = sources.process.ready();
    if let Some(since_main) = ready.since_main {
        phases.sample(&[("phase", "api")], micros(since_main));
    }
    let Some(insight) = sources.insight else {
        return;
    };
    let times = insight.boot_times();
    let mut before = times.asked;
    for (phase, at) in [
        ("memory", Some(times.memory)),
        ("kvm", Some(times.kvm)),
        ("devices", Some(times.devices)),
        ("vcpus", Some(times.vcpus)),
        ("load", Some(times.loaded)),
        ("threads", Some(times.built)),
        ("first_run", insight.first_run()),
        ("mark", sources.mark.map(|mark| mark.at)),
    ] {
        let Some(at) = at else { continue };
        let took = micros(at.saturating_duration_since(before));
        phases.sample(&[("phase", phase)], took);
        before = at;
    }
    let mut since = text.family(
        "mote_boot_since_start_microseconds",
        Kind::Gauge,
        "Time from InstanceStart to a milestone of the boot.",
    );
    for (milestone, at) in [
        ("first_run", insight.first_run()),
        ("mark", sources.mark.map(|mark| mark.at)),
    ] {
        if let Some(at) = at {
            let took = micros(at.saturating_duration_since(times.asked));
            since.sample(&[("milestone", milestone)], took);
        }
    }
}

/// Pages of this process, as `/proc/self/statm` has them: it costs the kernel nothing, unlike what walks page
/// tables.
fn resident() -> Option<(u64, u64)> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let mut pages = statm.split_ascii_whitespace().skip(1);
    let mut next = || pages.next()?.parse::<u64>().ok();
    let page = rustix::param::page_size() as u64;
    Some((next()? * page, next()? * page))
}

fn memory(text: &mut Text, sources: &Sources<'_>) {
    let mut memory = text.family(
        "mote_memory_bytes",
        Kind::Gauge,
        "Memory: the guest's, what the process has in RAM, and what of that it shares with files and others.",
    );
    if let Some(insight) = sources.insight {
        memory.sample(&[("kind", "guest")], insight.controls().memory());
    }
    if let Some((resident, shared)) = resident() {
        memory.sample(&[("kind", "resident")], resident);
        memory.sample(&[("kind", "shared")], shared);
    }
    let Some(balloon) = sources.insight.and_then(|it| it.controls().balloon()) else {
        return;
    };
    let mut sizes = text.family("mote_balloon_bytes", Kind::Gauge, "The balloon's size.");
    sizes.sample(&[("kind", "target")], balloon.target());
    sizes.sample(&[("kind", "actual")], balloon.actual());
    let counters = balloon.counters();
    let mut moved = text.family(
        "mote_balloon_moved_bytes",
        Kind::Counter,
        "Memory that the guest gave up, took back, and told of as free, and what went back to the host.",
    );
    moved.sample(&[("what", "inflated")], counters.inflated);
    moved.sample(&[("what", "deflated")], counters.deflated);
    moved.sample(&[("what", "reported")], counters.reported);
    moved.sample(&[("what", "hinted")], counters.hinted);
    moved.sample(&[("what", "discarded")], counters.discarded);
    text.family(
        "mote_balloon_errors",
        Kind::Counter,
        "Requests of which something was not given back.",
    )
    .sample(&[], counters.failed);
}

fn requests(text: &mut Text, requests: &Requests) {
    let all = requests.by_path();
    let seen = || all.iter().filter(|(_, tally)| tally.all > 0);
    let mut counts = text.family("mote_api_requests", Kind::Counter, "Requests of the API.");
    for (path, tally) in seen() {
        counts.sample(&[("request", path)], tally.all);
    }
    let mut failures = text.family(
        "mote_api_failures",
        Kind::Counter,
        "Requests of the API that were refused, or failed.",
    );
    for (path, tally) in seen() {
        failures.sample(&[("request", path)], tally.failed);
    }
    failures.sample(&[("request", "unknown")], requests.unknown_count());
}

fn exits(text: &mut Text, insight: &Insight) {
    let mut exits = text.family(
        "mote_vcpu_exits",
        Kind::Counter,
        "Returns from the guest to the monitor, by vCPU and cause.",
    );
    for (vcpu, counts) in insight.exits().per_vcpu().enumerate() {
        let vcpu = vcpu.to_string();
        let ExitCounts {
            io_in,
            io_out,
            mmio_read,
            mmio_write,
            halt,
            irq_window,
            eoi,
            system_event,
            interrupted,
            failure,
        } = counts;
        for (cause, count) in [
            ("io_in", io_in),
            ("io_out", io_out),
            ("mmio_read", mmio_read),
            ("mmio_write", mmio_write),
            ("halt", halt),
            ("irq_window", irq_window),
            ("eoi", eoi),
            ("system_event", system_event),
            ("interrupted", interrupted),
            ("failure", failure),
        ] {
            exits.sample(&[("vcpu", &vcpu), ("cause", cause)], count);
        }
    }
}

fn consoles(text: &mut Text, insight: &Insight) {
    let Some(counters) = insight.serial() else {
        return;
    };
    let mut bytes = text.family(
        "mote_serial_bytes",
        Kind::Counter,
        "Bytes of the serial port: read and written by the guest, dropped beyond the limit, lost for want of a reader.",
    );
    bytes.sample(&[("what", "read")], counters.reads);
    bytes.sample(&[("what", "written")], counters.writes);
    bytes.sample(&[("what", "limited")], counters.rate_limited);
    bytes.sample(&[("what", "lost")], counters.lost + counters.missed_writes);
}

fn disks(text: &mut Text, controls: &Controls) {
    let ids = controls.ids();
    let disks: Vec<_> = ids
        .iter()
        .filter_map(|id| match id {
            DeviceId::Disk(id) => {
                let disk = controls.disk(id)?;
                Some((id.as_str(), disk.counters(), disk.latencies()))
            }
            _ => None,
        })
        .collect();
    let mut operations = text.family(
        "mote_block_operations",
        Kind::Counter,
        "Requests that went well.",
    );
    for (device, counters, _) in &disks {
        for (operation, count) in [
            ("read", counters.reads),
            ("write", counters.writes),
            ("flush", counters.flushes),
            ("discard", counters.discards),
            ("write_zeroes", counters.write_zeroes),
        ] {
            operations.sample(&[("device", device), ("operation", operation)], count);
        }
    }
    let mut bytes = text.family(
        "mote_block_bytes",
        Kind::Counter,
        "Data that was read and written.",
    );
    for (device, counters, _) in &disks {
        bytes.sample(
            &[("device", device), ("operation", "read")],
            counters.read_bytes,
        );
        bytes.sample(
            &[("device", device), ("operation", "write")],
            counters.write_bytes,
        );
    }
    let mut errors = text.family(
        "mote_block_errors",
        Kind::Counter,
        "Requests that the host failed, and those that are wrong.",
    );
    for (device, counters, _) in &disks {
        errors.sample(
            &[("device", device), ("cause", "host")],
            counters.host_errors,
        );
        errors.sample(
            &[("device", device), ("cause", "guest")],
            counters.bad_requests,
        );
    }
    let mut throttled = text.family(
        "mote_block_throttled",
        Kind::Counter,
        "Times that requests waited for the rate limit.",
    );
    for (device, counters, _) in &disks {
        throttled.sample(&[("device", device)], counters.throttled);
    }
    let bounds = BOUNDS_US.map(|bound| Duration::from_micros(bound).as_secs_f64());
    let mut took = text.family(
        "mote_block_latency_seconds",
        Kind::Histogram,
        "Time from a request's way out of the queue to its way back, if it went well.",
    );
    for (device, _, latencies) in &disks {
        for (operation, latency) in [
            ("read", &latencies.reads),
            ("write", &latencies.writes),
            ("flush", &latencies.flushes),
        ] {
            let Latency {
                buckets, sum_ns, ..
            } = latency;
            let sum = Duration::from_nanos(*sum_ns).as_secs_f64();
            let labels = [("device", *device), ("operation", operation)];
            took.histogram(&labels, &bounds, buckets, sum);
        }
    }
}

fn cards(text: &mut Text, controls: &Controls) {
    let ids = controls.ids();
    let cards: Vec<_> = ids
        .iter()
        .filter_map(|id| match id {
            DeviceId::Card(id) => Some((id.as_str(), controls.card(id)?.counters())),
            _ => None,
        })
        .collect();
    type Get = fn(&devices::virtio::net::DirectionCounters) -> u64;
    let families: [(&'static str, &'static str, Get); 5] = [
        (
            "mote_net_frames",
            "Frames to the guest and from it.",
            |it| it.frames,
        ),
        (
            "mote_net_bytes",
            "Bytes of them, without virtio's headers.",
            |it| it.bytes,
        ),
        (
            "mote_net_dropped",
            "Frames that were malformed, or came while the link was down.",
            |it| it.dropped,
        ),
        (
            "mote_net_errors",
            "Frames that the host did not take or give.",
            |it| it.errors,
        ),
        (
            "mote_net_throttled",
            "Times that frames waited for the rate limit.",
            |it| it.throttled,
        ),
    ];
    for (name, help, get) in families {
        let mut family = text.family(name, Kind::Counter, help);
        for (device, counters) in &cards {
            family.sample(
                &[("device", device), ("direction", "rx")],
                get(&counters.rx),
            );
            family.sample(
                &[("device", device), ("direction", "tx")],
                get(&counters.tx),
            );
        }
    }
    let networks: Vec<_> = cards
        .iter()
        .filter_map(|(id, _)| Some((*id, controls.user_network(id)?.counters())))
        .collect();
    let mut connections = text.family(
        "mote_user_net_connections",
        Kind::Counter,
        "TCP connections of a user network, by who made them, and its UDP flows and pings.",
    );
    for (device, counters) in &networks {
        connections.sample(
            &[("device", device), ("kind", "out")],
            counters.connections_out,
        );
        connections.sample(
            &[("device", device), ("kind", "in")],
            counters.connections_in,
        );
        connections.sample(&[("device", device), ("kind", "flow")], counters.flows);
    }
    let mut refused = text.family(
        "mote_user_net_refused",
        Kind::Counter,
        "What a user network refused: by its rules, or as there were too many.",
    );
    for (device, counters) in &networks {
        refused.sample(&[("device", device), ("cause", "rule")], counters.refused);
        refused.sample(
            &[("device", device), ("cause", "limit")],
            counters.over_limit,
        );
    }
}

fn persistent_memory(text: &mut Text, controls: &Controls) {
    let ids = controls.ids();
    let memories: Vec<_> = ids
        .iter()
        .filter_map(|id| match id {
            DeviceId::Pmem(id) => Some((id.as_str(), controls.pmem(id)?.counters())),
            _ => None,
        })
        .collect();
    let mut flushes = text.family(
        "mote_pmem_flushes",
        Kind::Counter,
        "Flushes of persistent memory that went well.",
    );
    for (device, counters) in &memories {
        flushes.sample(&[("device", device)], counters.flushes);
    }
    let mut errors = text.family(
        "mote_pmem_errors",
        Kind::Counter,
        "Flushes that the host failed, and requests that are wrong.",
    );
    for (device, counters) in &memories {
        errors.sample(
            &[("device", device), ("cause", "host")],
            counters.host_errors,
        );
        errors.sample(
            &[("device", device), ("cause", "guest")],
            counters.bad_requests,
        );
    }
    let mut throttled = text.family(
        "mote_pmem_throttled",
        Kind::Counter,
        "Times that flushes waited for the rate limit.",
    );
    for (device, counters) in &memories {
        throttled.sample(&[("device", device)], counters.throttled);
    }
}

fn plugged_memory(text: &mut Text, controls: &Controls) {
    let Some(memory) = controls.memory_hotplug() else {
        return;
    };
    let (status, counters) = (memory.status(), memory.counters());
    let mut sizes = text.family(
        "mote_hotplug_memory_bytes",
        Kind::Gauge,
        "Memory that can be plugged, that the guest is to plug, and that it has plugged.",
    );
    sizes.sample(&[("kind", "total")], status.total);
    sizes.sample(&[("kind", "requested")], status.requested);
    sizes.sample(&[("kind", "plugged")], status.plugged);
    let operations = [
        ("plug", &counters.plug),
        ("unplug", &counters.unplug),
        ("unplug_all", &counters.unplug_all),
        ("state", &counters.state),
    ];
    let mut counts = text.family(
        "mote_hotplug_memory_operations",
        Kind::Counter,
        "What the guest asked for: blocks to plug and to unplug, all to unplug, which are plugged.",
    );
    for (operation, counted) in operations {
        counts.sample(&[("operation", operation)], counted.count);
    }
    let mut failures = text.family(
        "mote_hotplug_memory_failures",
        Kind::Counter,
        "Requests of those that did not get what they asked for.",
    );
    for (operation, counted) in operations {
        failures.sample(&[("operation", operation)], counted.failed);
    }
    let mut moved = text.family(
        "mote_hotplug_memory_moved_bytes",
        Kind::Counter,
        "Memory that was plugged and unplugged.",
    );
    moved.sample(&[("what", "plugged")], counters.plug.bytes);
    let unplugged = counters.unplug.bytes + counters.unplug_all.bytes;
    moved.sample(&[("what", "unplugged")], unplugged);
    let mut errors = text.family(
        "mote_hotplug_memory_errors",
        Kind::Counter,
        "Memory that did not go back to the host, and requests that are wrong.",
    );
    errors.sample(&[("cause", "host")], counters.discard_errors);
    errors.sample(&[("cause", "guest")], counters.bad_requests);
}

fn others(text: &mut Text, controls: &Controls) {
    if let Some(entropy) = controls.entropy() {
        let counters = entropy.counters();
        text.family(
            "mote_entropy_bytes",
            Kind::Counter,
            "Randomness that the guest got.",
        )
        .sample(&[], counters.bytes);
        text.family(
            "mote_entropy_errors",
            Kind::Counter,
            "Requests that got none.",
        )
        .sample(&[], counters.failed);
        text.family(
            "mote_entropy_throttled",
            Kind::Counter,
            "Times that requests waited for the rate limit.",
        )
        .sample(&[], counters.throttled);
    }
    let Some(vsock) = controls.vsock() else {
        return;
    };
    let counters = vsock.counters();
    let mut bytes = text.family(
        "mote_vsock_bytes",
        Kind::Counter,
        "Data to the guest and from it.",
    );
    bytes.sample(&[("direction", "rx")], counters.rx_bytes);
    bytes.sample(&[("direction", "tx")], counters.tx_bytes);
    let mut packets = text.family(
        "mote_vsock_packets",
        Kind::Counter,
        "Packets to the guest and from it.",
    );
    packets.sample(&[("direction", "rx")], counters.rx_packets);
    packets.sample(&[("direction", "tx")], counters.tx_packets);
    let mut connections = text.family(
        "mote_vsock_connections",
        Kind::Counter,
        "Connections that were made, that have ended, and resets.",
    );
    connections.sample(&[("what", "made")], counters.connections);
    connections.sample(&[("what", "ended")], counters.ended);
    connections.sample(&[("what", "reset")], counters.resets);
}
