//! What a monitor counts and tells.

use std::fs;
use std::io::BufRead;
use std::path::Path;

use arch::layout;
use rustix::process::Signal;
use serde_json::{Value, json};
use tests::driven::until;
use tests::executable;
use tests::openmetrics::{self, Samples};
use tests::service::{self, Service};
use tests::tiny::code_asm::{byte_ptr, dword_ptr, eax, ebx, ecx, qword_ptr, rax, rbx};
use tests::tiny::{out, reset};
use vmm_sys_util::tempdir::TempDir;

use super::{idle_kernel, put_kernel, short_kernel};

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    let lines = text.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// At the start, when it is asked for, and at the end.
pub(super) fn file() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let path = directory.join("metrics");
    let service = Service::start(
        directory,
        &["--start-time-us", "1", "--start-time-cpu-us", "0"],
    );
    let refused = json!({"metrics_path": "/nowhere/metrics"});
    service.refused(
        "PUT",
        "/metrics",
        Some(&refused),
        &["metrics_path", "No such file or directory (os error 2)"],
    );
    service.put("/metrics", json!({ "metrics_path": path }));
    let again = json!({ "metrics_path": path });
    service.refused(
        "PUT",
        "/metrics",
        Some(&again),
        &["Reinitialization of metrics not allowed."],
    );
    let disk = tests::disk::sparse(directory, "disk", 1 << 20);
    service.put(
        "/drives/data",
        json!({"drive_id": "data", "is_root_device": false, "path_on_host": disk}),
    );
    put_kernel(&service, &idle_kernel(directory));
    assert!(lines(&path).is_empty());
    service.act("InstanceStart");
    assert_eq!(lines(&path).len(), 1);
    service.request("PUT", "/drives/data", Some(&json!({"no": "drive"})));
    service.patch("/vm", json!({"state": "Paused"}));
    service.patch("/vm", json!({"state": "Resumed"}));
    until("the guest's mark", || {
        service.act("FlushMetrics");
        let exits = |line: &Value| line["vcpu"]["exit_io_out"].as_u64().unwrap();
        // Once, whichever line it is in.
        (lines(&path).iter().map(exits).sum::<u64>() == 1).then_some(())
    });
    assert_eq!(service.terminate().status, 143);

    let lines = lines(&path);
    let number = |line: &Value, path: &str| line.pointer(path).unwrap().as_u64().unwrap();
    let first = &lines[0];
    assert_eq!(number(first, "/put_api_requests/metrics_count"), 3);
    assert_eq!(number(first, "/put_api_requests/metrics_fails"), 2);
    assert_eq!(number(first, "/put_api_requests/drive_count"), 1);
    assert_eq!(number(first, "/block_data/read_count"), 0);
    assert!(number(first, "/api_server/process_startup_time_us") > 0);
    assert!(number(first, "/api_server/process_startup_time_cpu_us") > 0);
    assert!(number(first, "/utc_timestamp_ms") > 1 << 40);
    let second = &lines[1];
    assert_eq!(number(second, "/put_api_requests/metrics_count"), 0);
    assert_eq!(number(second, "/put_api_requests/drive_fails"), 1);
    assert!(
        number(second, "/latencies_us/pause_vm") >= number(second, "/latencies_us/vmm_pause_vm")
    );
    assert!(number(second, "/latencies_us/vmm_pause_vm") > 0);
    // The end has a line of its own.
    let all: u64 = lines
        .iter()
        .map(|line| number(line, "/put_api_requests/actions_count"))
        .sum();
    assert_eq!(all, lines.len() as u64 - 1);

    // From the command line, and the path is the one there can be.
    let path = directory.join("other");
    let service = Service::start(directory, &["--metrics-path", path.to_str().unwrap()]);
    service.refused("PUT", "/metrics", Some(&again), &["Reinitialization"]);
    put_kernel(&service, &short_kernel(directory));
    service.act("InstanceStart");
    assert_eq!(service.wait().status, 0);
    assert_eq!(self::lines(&path).len(), 2);
}

/// The last line before a crash, and the signals that are survived.
pub(super) fn crashes() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let kernel = idle_kernel(directory);
    for (number, signal, key) in [
        (11, Signal::SEGV, "sigsegv"),
        (7, Signal::BUS, "sigbus"),
        (4, Signal::ILL, "sigill"),
        (24, Signal::XCPU, "sigxcpu"),
        (6, Signal::ABORT, ""),
    ] {
        let path = directory.join(format!("metrics{number}"));
        let log = directory.join(format!("log{number}"));
        let options = [
            "--metrics-path",
            path.to_str().unwrap(),
            "--log-path",
            log.to_str().unwrap(),
        ];
        let service = Service::start(directory, &options);
        put_kernel(&service, &kernel);
        service.act("InstanceStart");
        for survived in [Signal::PIPE, Signal::XFSZ] {
            rustix::process::kill_process(service.pid(), survived).unwrap();
        }
        until("the guest's mark", || {
            let samples = scrape(&service);
            let exits = samples["mote_vcpu_exits_total"].iter();
            exits
                .filter(|(labels, _)| labels["cause"] == "io_out")
                .any(|(_, count)| *count == 1.0)
                .then_some(())
        });
        service.patch("/vm", json!({"state": "Paused"}));
        let ended = service.hit(signal);
        assert_eq!(ended.status, 128 + number, "{ended:?}");
        let lines = lines(&path);
        assert_eq!(lines.len(), 2, "{number}");
        let last = &lines[1];
        for signal in ["sigsegv", "sigbus", "sigill", "sigxcpu"] {
            assert_eq!(last["signals"][signal], u64::from(signal == key), "{key}");
        }
        assert_eq!(last["signals"]["sigpipe"], 1);
        assert_eq!(last["signals"]["sigxfsz"], 1);
        assert_eq!(last["patch_api_requests"]["machine_cfg_count"], 0);
        // With what devices and vCPUs have counted.
        let exits: u64 = (lines.iter())
            .map(|line| line["vcpu"]["exit_io_out"].as_u64().unwrap())
            .sum();
        assert_eq!(exits, 1, "{key}");
        let log = fs::read_to_string(&log).unwrap();
        let said = format!("Shutting down VM after intercepting signal {number}.");
        assert!(log.contains(&said), "{log}");
    }
}

/// A driver that makes the same mistake again and again is heard for a while, and then counted.
pub(super) fn log_limit() {
    const TIMES: u32 = 1000;
    const SECOND_LARGE_PAGE: u32 = layout::PAGE_TABLES_START as u32 + 2 * 4096 + 8;
    const PRESENT_WRITABLE_LARGE: u32 = 0x83;
    // virtio-mmio: status, the features, a queue that is nowhere in memory, and the driver is ready.
    const MISTAKE: [(u32, u32); 10] = [
        (0x70, 0),
        (0x70, 0b0011),
        (0x24, 1),
        (0x20, 1),
        (0x70, 0b1011),
        (0x30, 0),
        (0x38, 8),
        (0x84, 0xff),
        (0x44, 1),
        (0x70, 0b1111),
    ];
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let kernel = directory.join("kernel");
    let code = executable::program(|a| {
        // The first slot is at 2 MiB then, which the tables reach.
        let page = u32::try_from(layout::VIRTIO_MMIO_START).unwrap() | PRESENT_WRITABLE_LARGE;
        a.mov(ebx, SECOND_LARGE_PAGE)?;
        a.mov(eax, page)?;
        a.mov(qword_ptr(rbx), rax)?;
        a.mov(ecx, TIMES)?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        for (register, value) in MISTAKE {
            a.mov(ebx, (2 << 20) + register)?;
            a.mov(dword_ptr(rbx), value)?;
        }
        a.dec(ecx)?;
        a.jnz(again)?;
        reset(a)
    });
    fs::write(&kernel, code).unwrap();
    let (log, metrics) = (directory.join("log"), directory.join("metrics"));
    let options = [
        "--log-path",
        log.to_str().unwrap(),
        "--metrics-path",
        metrics.to_str().unwrap(),
    ];
    let service = Service::start(directory, &options);
    service.put("/entropy", json!({}));
    put_kernel(&service, &kernel);
    service.act("InstanceStart");
    assert_eq!(service.wait().status, 0);
    let log = fs::read_to_string(&log).unwrap();
    let said = log.lines().filter(|line| line.contains(" device: "));
    let said = u64::try_from(said.count()).unwrap();
    let left_out: u64 = lines(&metrics)
        .iter()
        .map(|line| line["logger"]["rate_limited_log_count"].as_u64().unwrap())
        .sum();
    assert!(said >= 10 && left_out > 0, "{said} and {left_out}: {log}");
    assert_eq!(said + left_out, u64::from(TIMES), "{log}");
}

#[track_caller]
fn scrape(service: &Service) -> Samples {
    let answer = service.request("GET", "/metrics", None);
    assert_eq!(answer.status, 200);
    let kind = answer.header("content-type").unwrap();
    assert!(kind.starts_with("application/openmetrics-text"), "{kind}");
    let text = answer.body.as_str().unwrap();
    openmetrics::parse(text).unwrap_or_else(|why| panic!("{why}\n{text}"))
}

pub(super) fn text() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let service = Service::start(directory, &["--boot-timer"]);
    let samples = scrape(&service);
    assert!(!samples.contains_key("mote_vcpu_exits_total"));
    let disk = tests::disk::sparse(directory, "disk", 1 << 20);
    service.put(
        "/drives/data",
        json!({"drive_id": "data", "is_root_device": false, "path_on_host": disk}),
    );
    service.put(
        "/network-interfaces/net0",
        json!({"iface_id": "net0", "backend": "user"}),
    );
    service.put("/entropy", json!({}));
    service.put(
        "/balloon",
        json!({"amount_mib": 8, "deflate_on_oom": false}),
    );
    let memory = tests::disk::sparse(directory, "memory", 2 << 20);
    service.put("/pmem/log", json!({"id": "log", "path_on_host": memory}));
    service.put("/hotplug/memory", json!({"total_size_mib": 256}));
    let socket = directory.join("v.sock");
    service.put("/vsock", json!({"guest_cid": 3, "uds_path": socket}));
    service.put(
        "/machine-config",
        json!({"vcpu_count": 2, "mem_size_mib": 32}),
    );
    put_kernel(&service, &idle_kernel(directory));
    service.act("InstanceStart");
    let samples = until("the guest's mark", || {
        let samples = scrape(&service);
        let since = samples.get("mote_boot_since_start_microseconds")?;
        let is_mark = |(labels, _): &(_, f64)| {
            let labels: &std::collections::BTreeMap<String, String> = labels;
            labels["milestone"] == "mark"
        };
        since.iter().any(is_mark).then_some(samples)
    });
    let value = |name: &str, labels: &[(&str, &str)]| {
        let found = samples[name].iter().find(|(those, _)| {
            labels
                .iter()
                .all(|(label, value)| those.get(*label).map(String::as_str) == Some(value))
        });
        found.unwrap_or_else(|| panic!("{name} {labels:?}")).1
    };
    assert_eq!(value("mote_state", &[("mote_state", "Running")]), 1.0);
    assert_eq!(
        value(
            "mote_vcpu_exits_total",
            &[("vcpu", "0"), ("cause", "io_out")]
        ),
        1.0
    );
    assert_eq!(
        value(
            "mote_vcpu_exits_total",
            &[("vcpu", "1"), ("cause", "io_out")]
        ),
        0.0
    );
    assert_eq!(
        value("mote_memory_bytes", &[("kind", "guest")]),
        f64::from(32 << 20)
    );
    assert_eq!(
        value("mote_balloon_bytes", &[("kind", "target")]),
        f64::from(8 << 20)
    );
    assert_eq!(
        value(
            "mote_block_operations_total",
            &[("device", "data"), ("operation", "read")]
        ),
        0.0
    );
    assert_eq!(
        value(
            "mote_net_bytes_total",
            &[("device", "net0"), ("direction", "tx")]
        ),
        0.0
    );
    for (name, labels, wanted) in [
        ("mote_pmem_flushes_total", &[("device", "log")][..], 0),
        (
            "mote_pmem_errors_total",
            &[("device", "log"), ("cause", "guest")],
            0,
        ),
        ("mote_pmem_throttled_total", &[("device", "log")], 0),
        ("mote_hotplug_memory_bytes", &[("kind", "total")], 256 << 20),
        ("mote_hotplug_memory_bytes", &[("kind", "plugged")], 0),
        (
            "mote_hotplug_memory_operations_total",
            &[("operation", "plug")],
            0,
        ),
        (
            "mote_hotplug_memory_failures_total",
            &[("operation", "unplug_all")],
            0,
        ),
        (
            "mote_hotplug_memory_moved_bytes_total",
            &[("what", "unplugged")],
            0,
        ),
        ("mote_hotplug_memory_errors_total", &[("cause", "host")], 0),
    ] {
        assert_eq!(value(name, labels), f64::from(wanted), "{name}");
    }
    assert_eq!(
        value("mote_api_requests_total", &[("request", "PUT /actions")]),
        1.0
    );
    for phase in [
        "api",
        "memory",
        "kvm",
        "devices",
        "vcpus",
        "load",
        "threads",
        "first_run",
        "mark",
    ] {
        assert!(value("mote_boot_phase_microseconds", &[("phase", phase)]) >= 0.0);
    }
    assert_eq!(service.terminate().status, 143);
}

/// The events of a monitor, from now on to its end.
fn listen(service: &Service) -> impl Iterator<Item = Value> + use<> {
    let (_, stream) = service::open(service.socket(), "/events", "");
    // A chunk has its size on a line before it, which is no object.
    let lines = stream.lines().map_while(Result::ok);
    lines
        .filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str(&line).unwrap())
}

pub(super) fn events() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let service = Service::start(directory, &["--boot-timer"]);
    let events = listen(&service);
    put_kernel(&service, &short_kernel(directory));
    service.act("InstanceStart");
    assert_eq!(service.wait().status, 0);
    let events: Vec<Value> = events.collect();
    let named = |name: &str| {
        events
            .iter()
            .filter(|event| event["event"] == name)
            .collect::<Vec<_>>()
    };
    assert_eq!(named("state")[0]["state"], "Running");
    let milestone = |name: &str| {
        named("boot")
            .iter()
            .filter(|event| event["milestone"] == name)
            .count()
    };
    assert_eq!(
        (milestone("started"), milestone("mark")),
        (1, 1),
        "{events:?}"
    );
    let end = named("end");
    assert_eq!(end.len(), 1, "{events:?}");
    assert_eq!(end[0]["reason"], "reset");
    for event in &events {
        let time = event["time"].as_str().unwrap();
        assert!(time.len() == 27 && time.ends_with('Z'), "{event}");
    }

    // Who stopped it, and which devices came and went.
    let service = Service::start(directory, &["--enable-pci"]);
    let events = listen(&service);
    put_kernel(&service, &idle_kernel(directory));
    service.act("InstanceStart");
    let disk = tests::disk::sparse(directory, "disk", 1 << 20);
    service.put(
        "/drives/late",
        json!({"drive_id": "late", "is_root_device": false, "path_on_host": disk}),
    );
    assert_eq!(service.terminate().status, 143);
    let events: Vec<Value> = events.collect();
    let added = events
        .iter()
        .find(|event| event["event"] == "device_added")
        .unwrap();
    assert_eq!(
        (&added["device"], &added["id"]),
        (&json!("drive"), &json!("late"))
    );
    // It goes with the machine: that is no news.
    assert!(
        !events
            .iter()
            .any(|event| event["event"] == "device_removed")
    );
    let end = events.last().unwrap();
    assert_eq!(
        (&end["reason"], &end["by"]),
        (&json!("stopped"), &json!("signal 15"))
    );
}

/// A byte at the port, and the same at the address where guests of Firecracker put it.
pub(super) fn boot_timer() {
    const SECOND_LARGE_PAGE: u32 = layout::PAGE_TABLES_START as u32 + 2 * 4096 + 8;
    const PRESENT_WRITABLE_LARGE: u32 = 0x83;
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let kernel = directory.join("kernel");
    let code = executable::program(|a| {
        out(a, layout::BOOT_TIMER_PORT, 5)?;
        // The tables that it starts with map the first GiB only: what is at 2 MiB is to be there.
        a.mov(ebx, SECOND_LARGE_PAGE)?;
        a.mov(eax, 0xc000_0000_u32 | PRESENT_WRITABLE_LARGE)?;
        a.mov(qword_ptr(rbx), rax)?;
        a.mov(ebx, 2 << 20)?;
        a.mov(byte_ptr(rbx), 123)?;
        reset(a)
    });
    fs::write(&kernel, code).unwrap();
    let log = directory.join("log");
    let options = [
        "--boot-timer",
        "--level",
        "Info",
        "--log-path",
        log.to_str().unwrap(),
    ];
    let service = Service::start(directory, &options);
    let events = listen(&service);
    put_kernel(&service, &kernel);
    service.act("InstanceStart");
    let ended = service.wait();
    assert_eq!(
        ended.status,
        0,
        "{ended:?}\n{}",
        fs::read_to_string(&log).unwrap()
    );
    let marks: Vec<Value> = events
        .filter(|event| event["milestone"] == "mark")
        .map(|event| event["value"].clone())
        .collect();
    assert_eq!(marks, [5, 123]);
    let log = fs::read_to_string(&log).unwrap();
    let line = log
        .lines()
        .find(|line| line.contains("Guest-boot-time ="))
        .unwrap();
    let words: Vec<&str> = line
        .split_once("Guest-boot-time =")
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    let [micros, "us", millis, "ms,", _, "CPU", "us", _, "CPU", "ms"] = words[..] else {
        panic!("{line}");
    };
    assert_eq!(
        micros.parse::<u64>().unwrap() / 1000,
        millis.parse::<u64>().unwrap()
    );
}
