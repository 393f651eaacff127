//! Where each number of the metrics file comes from.

use api::states::Request;
use api::types::VmState;
use devices::mmds;
use devices::virtio::balloon::BalloonControl;
use devices::virtio::block::{BlockControl, Latency};
use devices::virtio::mem::{MemControl, MemOperation};
use devices::virtio::net::NetControl;
use devices::virtio::pmem::PmemControl;
use vmm::{DeviceId, ExitCounts, Insight};

use crate::program::{Process, Program};
use crate::requests::Requests;
use crate::tree::{
    ApiServer, Balloon, Block, Count, DeprecatedApi, Entropy, GetRequests, I8042, Latencies,
    Logger, MemoryHotplug, Mmds, Net, PatchRequests, Pmem, PutRequests, Signals, Took, Totals,
    Uart, Value, Vcpu, Vmm, Vsock,
};

/// All that there is now.
pub(crate) fn totals(
    insight: Option<&Insight>,
    requests: &Requests,
    process: &Process,
    program: &dyn Program,
) -> Totals {
    let mut totals = Totals {
        deprecated_api: DeprecatedApi {
            deprecated_http_api_calls: Count(requests.deprecated_count()),
        },
        get_api_requests: get_requests(requests),
        patch_api_requests: patch_requests(requests),
        put_api_requests: put_requests(requests),
        latencies_us: latencies(requests),
        ..Totals::default()
    };
    of_process(&mut totals, process, program);
    totals.mmds = metadata(&program.metadata());
    if let Some(insight) = insight {
        of_machine(&mut totals, insight);
    }
    totals
}

fn of_process(totals: &mut Totals, process: &Process, program: &dyn Program) {
    let ready = process.ready();
    totals.api_server = ApiServer {
        process_startup_time_us: Value(ready.since_start_us),
        process_startup_time_cpu_us: Value(ready.cpu_us),
    };
    totals.logger = Logger {
        missed_metrics_count: Count(process.missed_lines()),
        metrics_fails: Count(process.failed_writes()),
        missed_log_count: Count(program.missed_log_lines()),
        rate_limited_log_count: Count(program.limited_log_lines()),
    };
    totals.vmm = Vmm {
        panic_count: Value(process.panics()),
    };
    let signals = program.signals();
    totals.signals = Signals {
        sigbus: Value(signals.bus),
        sigsegv: Value(signals.segv),
        sigxfsz: Value(signals.xfsz),
        sigxcpu: Value(signals.xcpu),
        sigpipe: Count(signals.pipe),
        sighup: Value(u64::from(process.was_hung_up())),
        sigill: Value(signals.ill),
    };
}

fn of_machine(totals: &mut Totals, insight: &Insight) {
    let controls = insight.controls();
    for id in controls.ids() {
        let number = controls.number(&id).unwrap_or(0);
        match &id {
            DeviceId::Disk(name) => {
                if let Some(disk) = controls.disk(name) {
                    totals.blocks.insert(name.clone(), number, block(&disk));
                }
            }
            DeviceId::Card(name) => {
                if let Some(card) = controls.card(name) {
                    totals.cards.insert(name.clone(), number, net(&card));
                }
            }
            DeviceId::Pmem(name) => {
                if let Some(memory) = controls.pmem(name) {
                    totals.pmems.insert(name.clone(), number, pmem(&memory));
                }
            }
            _ => {}
        }
    }
    totals.memory_hotplug = controls
        .memory_hotplug()
        .map(|it| memory_hotplug(&it))
        .unwrap_or_default();
    totals.balloon = controls
        .balloon()
        .map(|it| balloon(&it))
        .unwrap_or_default();
    totals.entropy = controls
        .entropy()
        .map(|it| entropy(&it))
        .unwrap_or_default();
    totals.vsock = controls.vsock().map(|it| vsock(&it)).unwrap_or_default();
    totals.vcpu = vcpu(&insight.exits().total());
    totals.uart = insight.serial().map(|it| uart(&it)).unwrap_or_default();
    totals.i8042 = insight.keyboard().map(|it| i8042(&it)).unwrap_or_default();
}

fn metadata(counters: &mmds::Counters) -> Mmds {
    let mmds::Counters {
        rx_accepted,
        rx_accepted_err,
        rx_accepted_unusual,
        rx_bad_eth,
        rx_invalid_token,
        rx_no_token,
        rx_count,
        tx_bytes,
        tx_count,
        tx_errors,
        tx_frames,
        connections_created,
        connections_destroyed,
    } = *counters;
    Mmds {
        rx_accepted: Count(rx_accepted),
        rx_accepted_err: Count(rx_accepted_err),
        rx_accepted_unusual: Count(rx_accepted_unusual),
        rx_bad_eth: Count(rx_bad_eth),
        rx_invalid_token: Count(rx_invalid_token),
        rx_no_token: Count(rx_no_token),
        rx_count: Count(rx_count),
        tx_bytes: Count(tx_bytes),
        tx_count: Count(tx_count),
        tx_errors: Count(tx_errors),
        tx_frames: Count(tx_frames),
        connections_created: Count(connections_created),
        connections_destroyed: Count(connections_destroyed),
    }
}

fn pmem(memory: &PmemControl) -> Pmem {
    let counters = memory.counters();
    Pmem {
        event_fails: Count(counters.host_errors),
        queue_event_count: Count(counters.queue_events),
        rate_limiter_throttled_events: Count(counters.throttled),
        rate_limiter_event_count: Count(counters.limit_events),
        ..Pmem::default()
    }
}

fn memory_hotplug(memory: &MemControl) -> MemoryHotplug {
    let took = |operation: &MemOperation| Took {
        min_us: Value(operation.min_us),
        max_us: Value(operation.max_us),
        sum_us: Count(operation.sum_us),
    };
    let counters = memory.counters();
    let (plug, unplug) = (&counters.plug, &counters.unplug);
    let (all, state) = (&counters.unplug_all, &counters.state);
    MemoryHotplug {
        queue_event_fails: Count(counters.bad_requests),
        queue_event_count: Count(counters.queue_events),
        plug_agg: took(plug),
        plug_count: Count(plug.count),
        plug_bytes: Count(plug.bytes),
        plug_fails: Count(plug.failed),
        unplug_agg: took(unplug),
        unplug_count: Count(unplug.count),
        unplug_bytes: Count(unplug.bytes),
        unplug_fails: Count(unplug.failed),
        unplug_discard_fails: Count(counters.discard_errors),
        unplug_all_agg: took(all),
        unplug_all_count: Count(all.count),
        unplug_all_fails: Count(all.failed),
        state_agg: took(state),
        state_count: Count(state.count),
        state_fails: Count(state.failed),
        ..MemoryHotplug::default()
    }
}

fn took(latency: &Latency) -> Took {
    Took {
        min_us: Value(latency.min_ns / 1000),
        max_us: Value(latency.max_ns / 1000),
        sum_us: Count(latency.sum_ns / 1000),
    }
}

fn block(disk: &BlockControl) -> Block {
    let counters = disk.counters();
    let latencies = disk.latencies();
    Block {
        no_avail_buffer: Count(counters.empty_kicks),
        execute_fails: Count(counters.host_errors),
        invalid_reqs_count: Count(counters.bad_requests),
        flush_count: Count(counters.flushes),
        queue_event_count: Count(counters.kicks),
        rate_limiter_event_count: Count(counters.limit_timers),
        update_count: Count(counters.updates),
        update_fails: Count(counters.failed_updates),
        read_bytes: Count(counters.read_bytes),
        write_bytes: Count(counters.write_bytes),
        read_count: Count(counters.reads),
        write_count: Count(counters.writes),
        read_agg: took(&latencies.reads),
        write_agg: took(&latencies.writes),
        rate_limiter_throttled_events: Count(counters.throttled),
        ..Block::default()
    }
}

fn net(card: &NetControl) -> Net {
    let counters = card.counters();
    let (rx, tx) = (counters.rx, counters.tx);
    Net {
        no_rx_avail_buffer: Count(rx.starved),
        rx_queue_event_count: Count(rx.kicks),
        rx_event_rate_limiter_count: Count(rx.limit_timers),
        rx_rate_limiter_throttled: Count(rx.throttled),
        rx_tap_event_count: Count(counters.host_events),
        rx_bytes_count: Count(rx.bytes),
        rx_packets_count: Count(rx.frames),
        rx_fails: Count(rx.dropped + rx.errors),
        rx_count: Count(rx.frames),
        tap_read_fails: Count(rx.errors),
        tap_write_fails: Count(tx.errors),
        tx_bytes_count: Count(tx.bytes),
        tx_malformed_frames: Count(tx.dropped),
        tx_fails: Count(tx.dropped + tx.errors),
        tx_count: Count(tx.frames),
        tx_packets_count: Count(tx.frames),
        tx_queue_event_count: Count(tx.kicks),
        tx_rate_limiter_event_count: Count(tx.limit_timers),
        tx_rate_limiter_throttled: Count(tx.throttled),
        ..Net::default()
    }
}

fn balloon(balloon: &BalloonControl) -> Balloon {
    let counters = balloon.counters();
    Balloon {
        inflate_count: Count(counters.inflations),
        deflate_count: Count(counters.deflations),
        stats_updates_count: Count(counters.statistics),
        event_fails: Count(counters.failed),
        free_page_report_count: Count(counters.reports),
        free_page_report_freed: Count(counters.reported),
        free_page_hint_count: Count(counters.hints),
        free_page_hint_freed: Count(counters.hinted),
        ..Balloon::default()
    }
}

fn entropy(entropy: &devices::virtio::rng::RngControl) -> Entropy {
    let counters = entropy.counters();
    Entropy {
        entropy_event_count: Count(counters.kicks),
        entropy_bytes: Count(counters.bytes),
        host_rng_fails: Count(counters.failed),
        entropy_rate_limiter_throttled: Count(counters.throttled),
        rate_limiter_event_count: Count(counters.limit_timers),
        ..Entropy::default()
    }
}

fn vsock(vsock: &devices::virtio::vsock::VsockControl) -> Vsock {
    let counters = vsock.counters();
    Vsock {
        rx_queue_event_count: Count(counters.rx_kicks),
        tx_queue_event_count: Count(counters.tx_kicks),
        rx_bytes_count: Count(counters.rx_bytes),
        tx_bytes_count: Count(counters.tx_bytes),
        rx_packets_count: Count(counters.rx_packets),
        tx_packets_count: Count(counters.tx_packets),
        conns_added: Count(counters.connections),
        conns_killed: Count(counters.resets),
        conns_removed: Count(counters.ended),
        ..Vsock::default()
    }
}

fn vcpu(exits: &ExitCounts) -> Vcpu {
    Vcpu {
        exit_io_in: Count(exits.io_in),
        exit_io_out: Count(exits.io_out),
        exit_mmio_read: Count(exits.mmio_read),
        exit_mmio_write: Count(exits.mmio_write),
        failures: Count(exits.failure),
        ..Vcpu::default()
    }
}

fn uart(counters: &devices::legacy::serial::SerialCounters) -> Uart {
    Uart {
        error_count: Count(counters.errors),
        flush_count: Count(counters.flushes),
        missed_read_count: Count(counters.missed_reads),
        missed_write_count: Count(counters.missed_writes + counters.lost),
        read_count: Count(counters.reads),
        write_count: Count(counters.writes),
        rate_limiter_dropped_bytes: Count(counters.rate_limited),
    }
}

fn i8042(counters: &devices::legacy::i8042::I8042Counters) -> I8042 {
    I8042 {
        error_count: Count(counters.errors),
        missed_read_count: Count(counters.missed_reads),
        missed_write_count: Count(counters.missed_writes),
        read_count: Count(counters.reads),
        reset_count: Count(counters.resets),
        write_count: Count(counters.writes),
    }
}

fn latencies(requests: &Requests) -> Latencies {
    let (pause_vm, vmm_pause_vm) = requests.took(VmState::Paused);
    let (resume_vm, vmm_resume_vm) = requests.took(VmState::Resumed);
    Latencies {
        pause_vm: Value(pause_vm),
        resume_vm: Value(resume_vm),
        vmm_pause_vm: Value(vmm_pause_vm),
        vmm_resume_vm: Value(vmm_resume_vm),
        ..Latencies::default()
    }
}

fn get_requests(requests: &Requests) -> GetRequests {
    let all = |request| Count(requests.tally(&[request]).all);
    GetRequests {
        instance_info_count: all(Request::GetInstance),
        machine_cfg_count: all(Request::GetMachineConfig),
        mmds_count: all(Request::GetMmds),
        vmm_version_count: all(Request::GetVersion),
        hotplug_memory_count: all(Request::GetMemoryHotplug),
    }
}

fn patch_requests(requests: &Requests) -> PatchRequests {
    let all = |request| Count(requests.tally(&[request]).all);
    let failed = |request| Count(requests.tally(&[request]).failed);
    PatchRequests {
        drive_count: all(Request::PatchDrive),
        drive_fails: failed(Request::PatchDrive),
        network_count: all(Request::PatchInterface),
        network_fails: failed(Request::PatchInterface),
        machine_cfg_count: all(Request::PatchMachineConfig),
        machine_cfg_fails: failed(Request::PatchMachineConfig),
        mmds_count: all(Request::PatchMmds),
        mmds_fails: failed(Request::PatchMmds),
        hotplug_memory_count: all(Request::PatchMemoryHotplug),
        hotplug_memory_fails: failed(Request::PatchMemoryHotplug),
        pmem_count: all(Request::PatchPmem),
        pmem_fails: failed(Request::PatchPmem),
    }
}

/// What `PUT /actions` can ask for.
const ACTIONS: [Request; 6] = [
    Request::InstanceStart,
    Request::SendCtrlAltDel,
    Request::FlushMetrics,
    Request::PowerButton,
    Request::Stop,
    Request::Reset,
];
/// Firecracker counts both as one.
const MMDS: [Request; 2] = [Request::PutMmds, Request::PutMmdsConfig];

fn put_requests(requests: &Requests) -> PutRequests {
    let all = |kinds: &[Request]| Count(requests.tally(kinds).all);
    let failed = |kinds: &[Request]| Count(requests.tally(kinds).failed);
    PutRequests {
        actions_count: all(&ACTIONS),
        actions_fails: failed(&ACTIONS),
        boot_source_count: all(&[Request::PutBootSource]),
        boot_source_fails: failed(&[Request::PutBootSource]),
        drive_count: all(&[Request::PutDrive]),
        drive_fails: failed(&[Request::PutDrive]),
        logger_count: all(&[Request::PutLogger]),
        logger_fails: failed(&[Request::PutLogger]),
        machine_cfg_count: all(&[Request::PutMachineConfig]),
        machine_cfg_fails: failed(&[Request::PutMachineConfig]),
        cpu_cfg_count: all(&[Request::PutCpuConfig]),
        cpu_cfg_fails: failed(&[Request::PutCpuConfig]),
        metrics_count: all(&[Request::PutMetrics]),
        metrics_fails: failed(&[Request::PutMetrics]),
        network_count: all(&[Request::PutInterface]),
        network_fails: failed(&[Request::PutInterface]),
        mmds_count: all(&MMDS),
        mmds_fails: failed(&MMDS),
        vsock_count: all(&[Request::PutVsock]),
        vsock_fails: failed(&[Request::PutVsock]),
        pmem_count: all(&[Request::PutPmem]),
        pmem_fails: failed(&[Request::PutPmem]),
        serial_count: all(&[Request::PutSerial]),
        serial_fails: failed(&[Request::PutSerial]),
        hotplug_memory_count: all(&[Request::PutMemoryHotplug]),
        hotplug_memory_fails: failed(&[Request::PutMemoryHotplug]),
    }
}
