use std::collections::BTreeSet;

use serde_json::Value as Json;

use super::*;

/// Every key that Firecracker 1.16.1 writes on x86, and what is in it; `a` behind a name: an object of a shortest, a
/// longest and a summed-up time.
const KEYS: &[(&str, &str)] = &[
    (
        "api_server",
        "process_startup_time_us process_startup_time_cpu_us",
    ),
    (
        "balloon",
        "activate_fails inflate_count stats_updates_count stats_update_fails deflate_count event_fails \
         free_page_report_count free_page_report_freed free_page_report_fails free_page_hint_count \
         free_page_hint_freed free_page_hint_fails",
    ),
    (
        "block",
        "activate_fails cfg_fails no_avail_buffer event_fails execute_fails invalid_reqs_count flush_count \
         queue_event_count rate_limiter_event_count update_count update_fails read_bytes write_bytes read_count \
         write_count read_agg:a write_agg:a rate_limiter_throttled_events io_engine_throttled_events \
         remaining_reqs_count",
    ),
    ("deprecated_api", "deprecated_http_api_calls"),
    (
        "get_api_requests",
        "instance_info_count machine_cfg_count mmds_count vmm_version_count hotplug_memory_count",
    ),
    (
        "i8042",
        "error_count missed_read_count missed_write_count read_count reset_count write_count",
    ),
    (
        "uart",
        "error_count flush_count missed_read_count missed_write_count read_count write_count \
         rate_limiter_dropped_bytes",
    ),
    (
        "latencies_us",
        "full_create_snapshot diff_create_snapshot load_snapshot pause_vm resume_vm vmm_full_create_snapshot \
         vmm_diff_create_snapshot vmm_load_snapshot vmm_pause_vm vmm_resume_vm",
    ),
    (
        "logger",
        "missed_metrics_count metrics_fails missed_log_count rate_limited_log_count",
    ),
    (
        "mmds",
        "rx_accepted rx_accepted_err rx_accepted_unusual rx_bad_eth rx_invalid_token rx_no_token rx_count tx_bytes \
         tx_count tx_errors tx_frames connections_created connections_destroyed",
    ),
    (
        "net",
        "activate_fails cfg_fails mac_address_updates no_rx_avail_buffer no_tx_avail_buffer event_fails \
         rx_queue_event_count rx_event_rate_limiter_count rx_rate_limiter_throttled rx_tap_event_count \
         rx_bytes_count rx_packets_count rx_fails rx_count tap_read_fails tap_write_fails tap_write_agg:a \
         tx_bytes_count tx_malformed_frames tx_fails tx_count tx_packets_count tx_queue_event_count \
         tx_rate_limiter_event_count tx_rate_limiter_throttled tx_spoofed_mac_count tx_remaining_reqs_count",
    ),
    (
        "patch_api_requests",
        "drive_count drive_fails network_count network_fails machine_cfg_count machine_cfg_fails mmds_count \
         mmds_fails hotplug_memory_count hotplug_memory_fails pmem_count pmem_fails",
    ),
    (
        "put_api_requests",
        "actions_count actions_fails boot_source_count boot_source_fails drive_count drive_fails logger_count \
         logger_fails machine_cfg_count machine_cfg_fails cpu_cfg_count cpu_cfg_fails metrics_count metrics_fails \
         network_count network_fails mmds_count mmds_fails vsock_count vsock_fails pmem_count pmem_fails \
         serial_count serial_fails hotplug_memory_count hotplug_memory_fails",
    ),
    ("seccomp", "num_faults"),
    (
        "vcpu",
        "exit_io_in exit_io_out exit_mmio_read exit_mmio_write failures kvmclock_ctrl_fails exit_io_in_agg:a \
         exit_io_out_agg:a exit_mmio_read_agg:a exit_mmio_write_agg:a",
    ),
    ("vmm", "panic_count"),
    (
        "signals",
        "sigbus sigsegv sigxfsz sigxcpu sigpipe sighup sigill",
    ),
    (
        "vsock",
        "activate_fails cfg_fails rx_queue_event_fails tx_queue_event_fails ev_queue_event_fails \
         muxer_event_fails conn_event_fails rx_queue_event_count tx_queue_event_count rx_bytes_count tx_bytes_count \
         rx_packets_count tx_packets_count conns_added conns_killed conns_removed killq_resync tx_flush_fails \
         tx_write_fails rx_read_fails",
    ),
    (
        "entropy",
        "activate_fails entropy_event_fails entropy_event_count entropy_bytes host_rng_fails \
         entropy_rate_limiter_throttled rate_limiter_event_count",
    ),
    (
        "pmem",
        "activate_fails cfg_fails event_fails queue_event_count rate_limiter_throttled_events \
         rate_limiter_event_count",
    ),
    ("interrupts", "triggers config_updates"),
    (
        "memory_hotplug",
        "activate_fails queue_event_fails queue_event_count plug_agg:a plug_count plug_bytes plug_fails unplug_agg:a \
         unplug_count unplug_bytes unplug_fails unplug_discard_fails unplug_all_agg:a unplug_all_count \
         unplug_all_fails state_agg:a state_count state_fails",
    ),
];

fn keys(object: &Json) -> BTreeSet<&str> {
    object
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}

#[track_caller]
fn check_object(name: &str, object: &Json, contents: &str) {
    let names = |word: &str| word.split(':').next().unwrap().to_owned();
    let wanted: BTreeSet<String> = contents.split_whitespace().map(names).collect();
    let wanted: BTreeSet<&str> = wanted.iter().map(String::as_str).collect();
    assert_eq!(keys(object), wanted, "{name}");
    for word in contents.split_whitespace() {
        match word.split_once(':') {
            Some((key, _)) => {
                let times = ["max_us", "min_us", "sum_us"];
                assert_eq!(keys(&object[key]), times.into(), "{name}.{key}");
            }
            None => assert!(object[word].is_u64(), "{name}.{word}"),
        }
    }
}

#[test]
fn every_key_is_always_there() {
    let mut totals = Totals::default();
    let line = serde_json::to_value(totals.since(&Totals::default(), 5)).unwrap();
    let mut wanted: BTreeSet<&str> = KEYS.iter().map(|(name, _)| *name).collect();
    wanted.insert("utc_timestamp_ms");
    assert_eq!(keys(&line), wanted);
    assert_eq!(line["utc_timestamp_ms"], 5);
    for (name, contents) in KEYS {
        check_object(name, &line[name], contents);
    }

    // Devices have a key of their own each.
    totals.blocks.insert("rootfs".into(), 1, Block::default());
    totals.cards.insert("eth0".into(), 2, Net::default());
    totals.pmems.insert("p".into(), 3, Pmem::default());
    let line = serde_json::to_value(totals.since(&Totals::default(), 5)).unwrap();
    wanted.extend(["block_rootfs", "net_eth0", "pmem_p"]);
    assert_eq!(keys(&line), wanted);
    for (name, kind) in [
        ("block_rootfs", "block"),
        ("net_eth0", "net"),
        ("pmem_p", "pmem"),
    ] {
        let (_, contents) = KEYS.iter().find(|(name, _)| *name == kind).unwrap();
        check_object(name, &line[name], contents);
    }
}

#[test]
fn counters_are_what_has_come_and_the_rest_is_what_is() {
    let disk = |reads, min, max, sum| Block {
        read_count: Count(reads),
        read_agg: Took {
            min_us: Value(min),
            max_us: Value(max),
            sum_us: Count(sum),
        },
        ..Block::default()
    };
    let mut before = Totals::default();
    before.blocks.insert("a".into(), 1, disk(10, 3, 9, 50));
    before.blocks.insert("b".into(), 2, disk(7, 1, 1, 7));
    before.latencies_us.pause_vm = Value(4);
    before.vcpu.exit_io_out = Count(100);
    let mut now = before.clone();
    now.blocks.insert("a".into(), 1, disk(15, 2, 9, 80));
    // Another disk of the same name.
    now.blocks.insert("b".into(), 3, disk(3, 5, 6, 16));
    now.latencies_us.pause_vm = Value(6);
    now.vcpu.exit_io_out = Count(130);
    let line = serde_json::to_value(now.since(&before, 0)).unwrap();
    let number = |path: &str| line.pointer(path).unwrap().as_u64().unwrap();
    assert_eq!(number("/block_a/read_count"), 5);
    assert_eq!(number("/block_b/read_count"), 3);
    assert_eq!(number("/block/read_count"), 8);
    assert_eq!(number("/block_a/read_agg/min_us"), 2);
    assert_eq!(number("/block_a/read_agg/sum_us"), 30);
    assert_eq!(number("/block/read_agg/min_us"), 2);
    assert_eq!(number("/block/read_agg/max_us"), 9);
    assert_eq!(number("/block/read_agg/sum_us"), 46);
    assert_eq!(number("/latencies_us/pause_vm"), 6);
    assert_eq!(number("/vcpu/exit_io_out"), 30);
    // Nothing has come since.
    let line = serde_json::to_value(now.since(&now, 0)).unwrap();
    assert_eq!(line["block_a"]["read_count"], 0);
    assert_eq!(line["latencies_us"]["pause_vm"], 6);
}
