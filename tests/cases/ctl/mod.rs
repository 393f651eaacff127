//! Commands that find running guests and talk to them. Guests are kernels of a few instructions.

mod console;
mod deep;
mod entries;
mod file;
mod fork;
mod lifecycle;
mod linux;
mod pool;
mod request;
mod run;
mod snapshot;
mod snapshot_crash;
mod snapshot_diff;
mod snapshot_restored;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("guests_are_listed_and_inspected", lifecycle::listed),
    ("pause_and_resume", lifecycle::pause_and_resume),
    ("stop_and_kill", lifecycle::stop_and_kill),
    ("a_monitor_that_hangs", lifecycle::hanging),
    ("a_monitor_without_an_api", lifecycle::without_api),
    ("names_may_be_cut_short", entries::prefixes),
    ("dead_guests_leave_nothing", entries::dead),
    ("two_of_one_name", entries::same_name),
    ("many_of_one_name_at_once", entries::race),
    ("names_that_nobody_gave", entries::unnamed),
    ("no_run_time_directory", entries::no_directory),
    ("a_directory_of_someone_else", entries::foreign_directory),
    ("requests_from_the_command_line", request::api),
    ("events_are_printed", request::events),
    ("logs", request::logs),
    ("shells_take_their_scripts", request::completion),
    ("attach_through_pipes", console::pipes),
    ("attach_on_a_terminal", console::terminal),
    ("many_are_attached", console::many),
    ("who_is_too_slow_is_told", console::lost),
    ("consoles_and_their_sizes", console::size),
    ("what_cannot_be_attached_to", console::refused),
    ("a_guest_goes_on_from_a_directory", snapshot::goes_on),
    ("a_risky_snapshot_has_to_be_forced", snapshot::forced),
    (
        "foreground_guests_go_on_from_a_directory",
        snapshot::of_foreground_guests,
    ),
    ("a_memory_file_is_cut", snapshot::cut),
    (
        "snapshots_that_cannot_be_taken_or_loaded",
        snapshot::refused,
    ),
    (
        "a_guest_goes_on_from_what_has_changed",
        snapshot_diff::chain,
    ),
    (
        "what_changed_since_a_guest_was_restored",
        snapshot_diff::since_load,
    ),
    ("a_guest_writes_while_it_is_written", snapshot_diff::running),
    ("snapshots_that_cannot_be_merged", snapshot_diff::refused),
    (
        "a_monitor_is_killed_while_it_writes",
        snapshot_crash::create,
    ),
    ("a_merge_is_killed", snapshot_crash::merge),
    ("a_disk_that_is_full", snapshot_crash::full),
    (
        "a_directory_that_nobody_may_write_to",
        snapshot_crash::read_only,
    ),
    (
        "the_first_guest_that_goes_on_notes_its_pages",
        snapshot_restored::first_and_second,
    ),
    (
        "what_is_noted_of_guests_is_damaged_or_old",
        snapshot_restored::damaged,
    ),
    (
        "nothing_can_be_noted_of_a_guest",
        snapshot_restored::unwritable,
    ),
    ("many_guests_go_on_at_once", snapshot_restored::at_once),
    ("ten_generations_of_snapshots", deep::restored),
    ("ten_generations_of_copies", deep::forked),
    ("copies_go_on_by_themselves", fork::goes_on),
    ("copies_are_each_another_guest", fork::differ),
    ("a_hundred_copies_of_a_guest_in_files", fork::of_files),
    ("what_changed_since_a_fork", fork::and_what_changed),
    ("devices_of_copies", fork::devices),
    ("copies_that_cannot_be", fork::refused),
    ("guests_of_a_pool_do_jobs", pool::jobs),
    ("consoles_of_a_pools_guests", pool::console),
    ("whoever_is_of_a_pool_is_killed", pool::killed),
    ("a_pool_follows_its_template", pool::changed),
    ("a_monitor_is_killed_while_it_forks", fork::killed),
    ("the_api_beside_a_foreground_guest", run::beside),
    ("a_foreground_guest_is_changed", run::changed),
    ("a_foreground_guest_without_room", run::refused),
    ("a_file_says_what_is_logged", file::logger),
    ("a_file_says_where_metrics_go", file::metrics),
    ("a_file_says_where_the_serial_port_leads", file::serial),
    ("a_file_says_who_reads_metadata", file::metadata),
    ("a_file_asks_for_what_cannot_be", file::refused),
];

pub(crate) const LINUX_CASES: &[Case] = &[("a_shell_from_two_sides", linux::shell)];
