//! The API of `mote vmm`, over its socket. Guests are kernels of a few instructions, so that this runs wherever
//! there is a /dev/kvm; [`super::api_linux`] has Linux.

mod cards;
mod described;
mod fields;
mod generations;
mod hostile;
mod process;
mod resources;
mod served;
mod snapshots;
mod snapshots_writing;
mod states;
mod telemetry;

use std::path::{Path, PathBuf};

use serde_json::json;
use tests::executable;
use tests::service::Service;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("a_guest_from_start_to_end", states::from_start_to_end),
    ("each_command_in_each_state", states::each_command),
    ("all_requests_are_in_the_table", states::all_requests),
    ("devices_are_plugged_in_each_state", states::with_pci),
    ("each_field_of_each_request", fields::each_field),
    ("all_fields_are_in_the_table", fields::all_fields),
    ("a_start_that_fails_changes_nothing", states::failed_start),
    ("a_device_that_stays_delays_nobody", states::waiting),
    ("what_was_put_reads_back", resources::reads_back),
    ("what_cannot_be_is_refused", resources::refused),
    (
        "devices_are_made_when_they_are_put",
        resources::made_at_once,
    ),
    ("the_guests_metadata", resources::metadata),
    ("a_guest_goes_on_in_another_process", snapshots::goes_on),
    ("what_is_noted_of_guests_that_go_on", snapshots::noted),
    ("snapshots_that_cannot_be", snapshots::refused),
    ("snapshots_of_what_has_changed", snapshots::differential),
    (
        "all_goes_on_while_a_snapshot_is_written",
        snapshots_writing::while_it_is_written,
    ),
    ("snapshots_of_what_has_moved", snapshots::of_what_has_moved),
    (
        "snapshots_of_temporary_overlays",
        snapshots::of_temporary_overlays,
    ),
    ("devices_keep_their_threads", cards::own_threads),
    ("cards_of_several_pairs_go_on", cards::of_several_pairs),
    ("a_guest_that_goes_on_is_another_one", generations::differ),
    ("metadata_and_snapshots", generations::metadata),
    ("memory_from_another_process", served::goes_on),
    ("a_page_server_that_ends", served::ends),
    ("a_page_server_that_stands_still", served::stands_still),
    ("the_monitor_as_a_process", process::ends),
    ("under_the_name_firecracker", process::firecracker),
    ("a_configuration_file", process::config_file),
    ("wrong_flags", process::wrong_flags),
    ("the_metrics_file", telemetry::file),
    ("a_guest_that_fills_the_log", telemetry::log_limit),
    ("metrics_of_a_crash", telemetry::crashes),
    ("metrics_as_text", telemetry::text),
    ("what_happens_is_told", telemetry::events),
    ("a_boot_is_timed", telemetry::boot_timer),
    ("clients_that_send_nonsense", hostile::nonsense),
    ("clients_that_lie_about_lengths", hostile::lies),
    ("clients_that_die", hostile::deaths),
    ("ten_thousand_clients", hostile::crowd),
    ("clients_of_a_byte_a_second", hostile::slowness),
    ("schemathesis_before_the_start", described::before_start),
    ("schemathesis_while_it_runs", described::running),
    ("schemathesis_while_it_is_paused", described::paused),
];

/// A kernel in `directory` that halts for good.
fn idle_kernel(directory: &Path) -> PathBuf {
    let path = directory.join("idle");
    std::fs::write(&path, executable::idle_kernel()).unwrap();
    path
}

/// A kernel that resets the machine at once.
fn short_kernel(directory: &Path) -> PathBuf {
    let path = directory.join("short");
    std::fs::write(&path, executable::tiny_kernel()).unwrap();
    path
}

/// Gives a monitor a kernel.
fn put_kernel(service: &Service, kernel: &Path) {
    service.put("/boot-source", json!({ "kernel_image_path": kernel }));
}
