//! Requests of the control API, one of each kind.

use super::Seeds;

const REQUESTS: [(&str, &str); 38] = [
    ("instance", "GET /"),
    ("config", "GET /vm/config"),
    ("openapi", "GET /openapi.json"),
    ("pause", "PATCH /vm\n{\"state\": \"Paused\"}"),
    (
        "start",
        "PUT /actions\n{\"action_type\": \"InstanceStart\"}",
    ),
    (
        "boot-source",
        "PUT /boot-source\n{\"kernel_image_path\": \"vmlinux\", \"initrd_path\": \"i\", \"boot_args\": \"quiet\"}",
    ),
    (
        "machine-config",
        "PUT /machine-config\n{\"vcpu_count\": 2, \"mem_size_mib\": 256, \"smt\": true, \"cpu_template\": \"T2\", \
         \"track_dirty_pages\": true, \"huge_pages\": \"2M\"}",
    ),
    (
        "machine-config-patch",
        "PATCH /machine-config\n{\"cpu_template\": \"None\"}",
    ),
    (
        "cpu-config",
        "PUT /cpu-config\n{\"kvm_capabilities\": [\"171\", \"!172\"], \"cpuid_modifiers\": [{\"leaf\": \"0x1\", \
         \"subleaf\": \"0b1\", \"flags\": 1, \"modifiers\": [{\"register\": \"eax\", \"bitmap\": \"0b1x_0\"}]}], \
         \"msr_modifiers\": [{\"addr\": \"0x10a\", \"bitmap\": \"0b1\"}]}",
    ),
    (
        "drive",
        "PUT /drives/a\n{\"drive_id\": \"a\", \"is_root_device\": true, \"path_on_host\": \"d\", \"is_read_only\": true, \
         \"partuuid\": \"0eaa91a0-01\", \"cache_type\": \"Writeback\", \"io_engine\": \"Async\", \"rate_limiter\": \
         {\"bandwidth\": {\"size\": 1, \"refill_time\": 1, \"one_time_burst\": 1}, \"ops\": null}}",
    ),
    (
        "drive-extended",
        "PUT /drives/a\n{\"drive_id\": \"a\", \"is_root_device\": false, \"path_on_host\": \"d\", \"format\": \"qcow2\", \
         \"overlay\": \"temp\", \"serial\": \"s\", \"queues\": 2, \"iothread\": true}",
    ),
    (
        "drive-patch",
        "PATCH /drives/a\n{\"drive_id\": \"a\", \"path_on_host\": \"d\", \"rate_limiter\": {}}",
    ),
    ("drive-delete", "DELETE /drives/a"),
    (
        "interface",
        "PUT /network-interfaces/a\n{\"iface_id\": \"a\", \"host_dev_name\": \"t\", \"guest_mac\": \
         \"06:00:ac:10:00:02\", \"mtu\": 1400, \"rx_rate_limiter\": {\"ops\": {\"size\": 1, \"refill_time\": 1}}}",
    ),
    (
        "interface-extended",
        "PUT /network-interfaces/a\n{\"iface_id\": \"a\", \"host_dev_name\": \"t\", \"queues\": 2, \"vhost\": true, \
         \"iothread\": true}",
    ),
    (
        "interface-user",
        "PUT /network-interfaces/a\n{\"iface_id\": \"a\", \"backend\": \"user\", \"forwards\": [\"80:80\"], \"allow\": \
         [\"*\"], \"deny\": [\"10.0.0.0/8\"], \"hostname\": \"h\"}",
    ),
    (
        "interface-patch",
        "PATCH /network-interfaces/a\n{\"iface_id\": \"a\", \"tx_rate_limiter\": {}}",
    ),
    ("interface-delete", "DELETE /network-interfaces/a"),
    (
        "pmem",
        "PUT /pmem/a\n{\"id\": \"a\", \"path_on_host\": \"p\", \"root_device\": true, \"read_only\": true}",
    ),
    ("pmem-patch", "PATCH /pmem/a\n{\"id\": \"a\"}"),
    (
        "vsock",
        "PUT /vsock/root\n{\"guest_cid\": 3, \"uds_path\": \"v\", \"vsock_id\": \"root\"}",
    ),
    (
        "balloon",
        "PUT /balloon\n{\"amount_mib\": 1, \"deflate_on_oom\": true, \"stats_polling_interval_s\": 1, \
         \"free_page_hinting\": true, \"free_page_reporting\": true}",
    ),
    ("balloon-patch", "PATCH /balloon\n{\"amount_mib\": 1}"),
    (
        "statistics-patch",
        "PATCH /balloon/statistics\n{\"stats_polling_interval_s\": 1}",
    ),
    (
        "hinting-start",
        "PATCH /balloon/hinting/start\n{\"acknowledge_on_stop\": false}",
    ),
    ("hinting-stop", "PATCH /balloon/hinting/stop"),
    ("entropy", "PUT /entropy\n{\"rate_limiter\": {}}"),
    (
        "serial",
        "PUT /serial\n{\"serial_out_path\": \"s\", \"rate_limiter\": {\"size\": 1, \"refill_time\": 1}}",
    ),
    (
        "memory",
        "PUT /hotplug/memory\n{\"total_size_mib\": 1024, \"slot_size_mib\": 128, \"block_size_mib\": 2}",
    ),
    (
        "memory-patch",
        "PATCH /hotplug/memory\n{\"requested_size_mib\": 128}",
    ),
    (
        "logger",
        "PUT /logger\n{\"log_path\": \"l\", \"level\": \"Warning\", \"show_level\": true, \"show_log_origin\": true, \
         \"module\": \"m\"}",
    ),
    ("metrics", "PUT /metrics\n{\"metrics_path\": \"m\"}"),
    (
        "mmds-config",
        "PUT /mmds/config\n{\"network_interfaces\": [\"a\"], \"version\": \"V2\", \"ipv4_address\": \"169.254.1.1\", \
         \"imds_compat\": true}",
    ),
    (
        "mmds",
        "PATCH /mmds\n{\"a\": {\"b\": [1, 1.5, null, true, \"\\u00e4\"]}}",
    ),
    (
        "snapshot-create",
        "PUT /snapshot/create\n{\"snapshot_path\": \"s\", \"mem_file_path\": \"m\", \"snapshot_type\": \"Diff\"}",
    ),
    (
        "snapshot-load",
        "PUT /snapshot/load\n{\"snapshot_path\": \"s\", \"mem_backend\": {\"backend_type\": \"Uffd\", \"backend_path\": \
         \"m\"}, \"network_overrides\": [{\"iface_id\": \"a\", \"host_dev_name\": \"t\", \"vhost\": false}], \"vsock_override\": \
         {\"uds_path\": \"v\"}, \"resume_vm\": true, \"track_dirty_pages\": true, \"clock_realtime\": true}",
    ),
    (
        "snapshot-load-old",
        "PUT /snapshot/load\n{\"snapshot_path\": \"s\", \"mem_file_path\": \"m\", \"enable_diff_snapshots\": true}",
    ),
    (
        "document",
        "PUT /\n{\"boot-source\": {\"kernel_image_path\": \"k\"}, \"drives\": [], \"machine-config\": {\"vcpu_count\": 1, \
         \"mem_size_mib\": 128}, \"cpu-config\": \"file\", \"network-interfaces\": [], \"vsock\": null, \"balloon\": null, \
         \"logger\": {}, \"metrics\": {\"metrics_path\": \"m\"}, \"mmds-config\": {\"network_interfaces\": [\"a\"]}, \
         \"entropy\": {}, \"pmem\": [], \"memory-hotplug\": {\"total_size_mib\": 1024}, \"serial\": {}, \"more\": 1}",
    ),
];

/// As they are.
pub(super) fn api_request() -> Seeds {
    REQUESTS
        .into_iter()
        .map(|(name, request)| (name, request.as_bytes().to_vec()))
        .collect()
}
