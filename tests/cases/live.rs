//! What changes while Linux runs: devices that come and go, sizes, limits, the balloon.

mod change;
mod hotplug;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("disks_come_and_go", hotplug::disks),
    ("a_disk_comes_before_linux_looks", hotplug::early),
    ("disks_go_while_they_are_busy", hotplug::busy_disks),
    ("a_guest_gives_devices_up_unasked", hotplug::unasked),
    ("persistent_memory_comes_and_goes", hotplug::pmem),
    ("nothing_comes_that_cannot", hotplug::bad_input),
    ("no_bus_no_hot_plug", hotplug::no_bus),
    ("a_disk_changes_its_size", change::sizes),
    ("a_disk_gets_another_file", change::other_files),
    ("wrong_sizes_change_nothing", change::wrong_sizes),
    ("the_balloon_goes_up_and_down", change::balloon),
    ("reported_memory_goes_with_the_switch", change::reporting),
    ("a_disks_limits_change", change::disk_limits),
    ("the_entropy_devices_limit_changes", change::entropy_limit),
    ("every_device_on_a_thread_of_its_own", change::own_threads),
];

/// Cases that make networks.
pub(crate) const NETWORK_CASES: &[Case] = &[
    ("cards_come_and_go", || {
        tests::network::in_namespace(hotplug::cards);
    }),
    ("cards_go_while_they_are_busy", || {
        tests::network::in_namespace(hotplug::busy_cards);
    }),
    ("twenty_rounds_leave_nothing_behind", || {
        tests::network::in_namespace(hotplug::twenty_rounds);
    }),
    ("a_cards_limits_change", || {
        tests::network::in_namespace(change::card_limits);
    }),
    ("a_cable_is_pulled", || {
        tests::network::in_namespace(change::cable);
    }),
    ("rings_are_reset", || {
        tests::network::in_namespace(|| change::rings(""));
    }),
];

/// Cases that need `/dev/vhost-net`.
pub(crate) const VHOST_CASES: &[Case] = &[
    ("vhost_cards_come_and_go", || {
        tests::network::in_namespace(hotplug::cards_with_vhost);
    }),
    ("vhost_rings_are_reset", || {
        tests::network::in_namespace(|| change::rings("vhost=on"));
    }),
];

/// The virtio console's case.
pub(crate) const CONSOLE_CASES: &[Case] = &[("the_consoles_limit_changes", change::console_limit)];
