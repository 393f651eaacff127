//! The metrics in the shape that Firecracker's clients read: one object, every key always there.
//!
//! The names are Firecracker's. What mote does not have or does not measure stays at 0
//! (docs/metrics-and-events.md lists it). Counters are written as what has come since the line before; the
//! numbers are kept as sums here, and [`Since`] takes the differences.

use std::collections::BTreeMap;

use serde::Serialize;

/// A counter: written as what has come since the line before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Count(pub(crate) u64);

/// A number that is written as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Value(pub(crate) u64);

/// Differences.
pub(crate) trait Since {
    /// What has come since `before`.
    fn since(&self, before: &Self) -> Self;
    /// Adds another device's numbers.
    fn add(&mut self, other: &Self);
}

impl Since for Count {
    fn since(&self, before: &Self) -> Self {
        Self(self.0.saturating_sub(before.0))
    }

    fn add(&mut self, other: &Self) {
        self.0 = self.0.wrapping_add(other.0);
    }
}

impl Since for Value {
    fn since(&self, _: &Self) -> Self {
        *self
    }

    fn add(&mut self, other: &Self) {
        self.0 = self.0.wrapping_add(other.0);
    }
}

/// How long something took, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Took {
    /// The shortest time so far.
    pub(crate) min_us: Value,
    /// The longest.
    pub(crate) max_us: Value,
    /// All together.
    pub(crate) sum_us: Count,
}

impl Since for Took {
    fn since(&self, before: &Self) -> Self {
        Self {
            min_us: self.min_us,
            max_us: self.max_us,
            sum_us: self.sum_us.since(&before.sum_us),
        }
    }

    fn add(&mut self, other: &Self) {
        self.min_us.0 = match (self.min_us.0, other.min_us.0) {
            (0, min) | (min, 0) => min,
            (a, b) => a.min(b),
        };
        self.max_us.0 = self.max_us.0.max(other.max_us.0);
        self.sum_us.add(&other.sum_us);
    }
}

/// Objects of counters.
macro_rules! objects {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $kind:ty,)+ })+) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
        pub(crate) struct $name {
            $(pub(crate) $field: $kind,)+
        }

        impl Since for $name {
            fn since(&self, before: &Self) -> Self {
                Self { $($field: self.$field.since(&before.$field),)+ }
            }

            fn add(&mut self, other: &Self) {
                $(self.$field.add(&other.$field);)+
            }
        }
    )+};
}

objects! {
    /// How the process started.
    ApiServer {
        process_startup_time_us: Value,
        process_startup_time_cpu_us: Value,
    }

    /// The balloon.
    Balloon {
        activate_fails: Count,
        inflate_count: Count,
        stats_updates_count: Count,
        stats_update_fails: Count,
        deflate_count: Count,
        event_fails: Count,
        free_page_report_count: Count,
        free_page_report_freed: Count,
        free_page_report_fails: Count,
        free_page_hint_count: Count,
        free_page_hint_freed: Count,
        free_page_hint_fails: Count,
    }

    /// A disk.
    Block {
        activate_fails: Count,
        cfg_fails: Count,
        no_avail_buffer: Count,
        event_fails: Count,
        execute_fails: Count,
        invalid_reqs_count: Count,
        flush_count: Count,
        queue_event_count: Count,
        rate_limiter_event_count: Count,
        update_count: Count,
        update_fails: Count,
        read_bytes: Count,
        write_bytes: Count,
        read_count: Count,
        write_count: Count,
        read_agg: Took,
        write_agg: Took,
        rate_limiter_throttled_events: Count,
        io_engine_throttled_events: Count,
        remaining_reqs_count: Count,
    }

    /// Requests for what is deprecated.
    DeprecatedApi {
        deprecated_http_api_calls: Count,
    }

    /// Requests that only look.
    GetRequests {
        instance_info_count: Count,
        machine_cfg_count: Count,
        mmds_count: Count,
        vmm_version_count: Count,
        hotplug_memory_count: Count,
    }

    /// The keyboard's controller.
    I8042 {
        error_count: Count,
        missed_read_count: Count,
        missed_write_count: Count,
        read_count: Count,
        reset_count: Count,
        write_count: Count,
    }

    /// The serial port.
    Uart {
        error_count: Count,
        flush_count: Count,
        missed_read_count: Count,
        missed_write_count: Count,
        read_count: Count,
        write_count: Count,
        rate_limiter_dropped_bytes: Count,
    }

    /// How long the last of each took.
    Latencies {
        full_create_snapshot: Value,
        diff_create_snapshot: Value,
        load_snapshot: Value,
        pause_vm: Value,
        resume_vm: Value,
        vmm_full_create_snapshot: Value,
        vmm_diff_create_snapshot: Value,
        vmm_load_snapshot: Value,
        vmm_pause_vm: Value,
        vmm_resume_vm: Value,
    }

    /// The log and this file.
    Logger {
        missed_metrics_count: Count,
        metrics_fails: Count,
        missed_log_count: Count,
        rate_limited_log_count: Count,
    }

    /// The guest's metadata.
    Mmds {
        rx_accepted: Count,
        rx_accepted_err: Count,
        rx_accepted_unusual: Count,
        rx_bad_eth: Count,
        rx_invalid_token: Count,
        rx_no_token: Count,
        rx_count: Count,
        tx_bytes: Count,
        tx_count: Count,
        tx_errors: Count,
        tx_frames: Count,
        connections_created: Count,
        connections_destroyed: Count,
    }

    /// A network card.
    Net {
        activate_fails: Count,
        cfg_fails: Count,
        mac_address_updates: Count,
        no_rx_avail_buffer: Count,
        no_tx_avail_buffer: Count,
        event_fails: Count,
        rx_queue_event_count: Count,
        rx_event_rate_limiter_count: Count,
        rx_rate_limiter_throttled: Count,
        rx_tap_event_count: Count,
        rx_bytes_count: Count,
        rx_packets_count: Count,
        rx_fails: Count,
        rx_count: Count,
        tap_read_fails: Count,
        tap_write_fails: Count,
        tap_write_agg: Took,
        tx_bytes_count: Count,
        tx_malformed_frames: Count,
        tx_fails: Count,
        tx_count: Count,
        tx_packets_count: Count,
        tx_queue_event_count: Count,
        tx_rate_limiter_event_count: Count,
        tx_rate_limiter_throttled: Count,
        tx_spoofed_mac_count: Count,
        tx_remaining_reqs_count: Count,
    }

    /// Requests that change something.
    PatchRequests {
        drive_count: Count,
        drive_fails: Count,
        network_count: Count,
        network_fails: Count,
        machine_cfg_count: Count,
        machine_cfg_fails: Count,
        mmds_count: Count,
        mmds_fails: Count,
        hotplug_memory_count: Count,
        hotplug_memory_fails: Count,
        pmem_count: Count,
        pmem_fails: Count,
    }

    /// Requests that set something, or act.
    PutRequests {
        actions_count: Count,
        actions_fails: Count,
        boot_source_count: Count,
        boot_source_fails: Count,
        drive_count: Count,
        drive_fails: Count,
        logger_count: Count,
        logger_fails: Count,
        machine_cfg_count: Count,
        machine_cfg_fails: Count,
        cpu_cfg_count: Count,
        cpu_cfg_fails: Count,
        metrics_count: Count,
        metrics_fails: Count,
        network_count: Count,
        network_fails: Count,
        mmds_count: Count,
        mmds_fails: Count,
        vsock_count: Count,
        vsock_fails: Count,
        pmem_count: Count,
        pmem_fails: Count,
        serial_count: Count,
        serial_fails: Count,
        hotplug_memory_count: Count,
        hotplug_memory_fails: Count,
    }

    /// System call filters.
    Seccomp {
        num_faults: Value,
    }

    /// The vCPUs.
    Vcpu {
        exit_io_in: Count,
        exit_io_out: Count,
        exit_mmio_read: Count,
        exit_mmio_write: Count,
        failures: Count,
        kvmclock_ctrl_fails: Count,
        exit_io_in_agg: Took,
        exit_io_out_agg: Took,
        exit_mmio_read_agg: Took,
        exit_mmio_write_agg: Took,
    }

    /// The monitor.
    Vmm {
        panic_count: Value,
    }

    /// Signals.
    Signals {
        sigbus: Value,
        sigsegv: Value,
        sigxfsz: Value,
        sigxcpu: Value,
        sigpipe: Count,
        sighup: Value,
        sigill: Value,
    }

    /// Sockets between guest and host.
    Vsock {
        activate_fails: Count,
        cfg_fails: Count,
        rx_queue_event_fails: Count,
        tx_queue_event_fails: Count,
        ev_queue_event_fails: Count,
        muxer_event_fails: Count,
        conn_event_fails: Count,
        rx_queue_event_count: Count,
        tx_queue_event_count: Count,
        rx_bytes_count: Count,
        tx_bytes_count: Count,
        rx_packets_count: Count,
        tx_packets_count: Count,
        conns_added: Count,
        conns_killed: Count,
        conns_removed: Count,
        killq_resync: Count,
        tx_flush_fails: Count,
        tx_write_fails: Count,
        rx_read_fails: Count,
    }

    /// The entropy device.
    Entropy {
        activate_fails: Count,
        entropy_event_fails: Count,
        entropy_event_count: Count,
        entropy_bytes: Count,
        host_rng_fails: Count,
        entropy_rate_limiter_throttled: Count,
        rate_limiter_event_count: Count,
    }

    /// A persistent memory.
    Pmem {
        activate_fails: Count,
        cfg_fails: Count,
        event_fails: Count,
        queue_event_count: Count,
        rate_limiter_throttled_events: Count,
        rate_limiter_event_count: Count,
    }

    /// Interrupts of devices.
    Interrupts {
        triggers: Count,
        config_updates: Count,
    }

    /// Memory that comes and goes.
    MemoryHotplug {
        activate_fails: Count,
        queue_event_fails: Count,
        queue_event_count: Count,
        plug_agg: Took,
        plug_count: Count,
        plug_bytes: Count,
        plug_fails: Count,
        unplug_agg: Took,
        unplug_count: Count,
        unplug_bytes: Count,
        unplug_fails: Count,
        unplug_discard_fails: Count,
        unplug_all_agg: Took,
        unplug_all_count: Count,
        unplug_all_fails: Count,
        state_agg: Took,
        state_count: Count,
        state_fails: Count,
    }
}

/// Devices of one kind: each under its own key, and their sum.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Devices<T>(BTreeMap<String, Device<T>>);

/// One of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Device<T> {
    /// Tells it from another one that had its name before, which counted for itself.
    number: u64,
    counters: T,
}

impl<T: Since + Copy + Default> Devices<T> {
    /// Adds a device. `number` tells it from those that had its name before.
    pub(crate) fn insert(&mut self, id: String, number: u64, counters: T) {
        self.0.insert(id, Device { number, counters });
    }

    fn since(&self, before: &Self) -> BTreeMap<String, T> {
        let each = self.0.iter().map(|(id, now)| {
            let before = before.0.get(id);
            let before = before.filter(|before| before.number == now.number);
            let before = before.map(|before| before.counters).unwrap_or_default();
            (id.clone(), now.counters.since(&before))
        });
        each.collect()
    }
}

fn sum<T: Since + Default>(devices: &BTreeMap<String, T>) -> T {
    let mut sum = T::default();
    for device in devices.values() {
        sum.add(device);
    }
    sum
}

macro_rules! totals {
    ($($name:ident: $kind:ty,)+) => {
        /// All that is counted, since the monitor started.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub(crate) struct Totals {
            $(pub(crate) $name: $kind,)+
            pub(crate) blocks: Devices<Block>,
            pub(crate) cards: Devices<Net>,
            pub(crate) pmems: Devices<Pmem>,
        }

        /// One line of the file.
        #[derive(Clone, Debug, Default, Serialize)]
        pub(crate) struct Line {
            utc_timestamp_ms: u64,
            $($name: $kind,)+
            block: Block,
            net: Net,
            pmem: Pmem,
            #[serde(flatten)]
            blocks: BTreeMap<String, Block>,
            #[serde(flatten)]
            cards: BTreeMap<String, Net>,
            #[serde(flatten)]
            pmems: BTreeMap<String, Pmem>,
        }

        impl Totals {
            /// What has come since `before`.
            pub(crate) fn since(&self, before: &Self, utc_timestamp_ms: u64) -> Line {
                let (blocks, cards, pmems) = (
                    self.blocks.since(&before.blocks),
                    self.cards.since(&before.cards),
                    self.pmems.since(&before.pmems),
                );
                Line {
                    utc_timestamp_ms,
                    $($name: self.$name.since(&before.$name),)+
                    block: sum(&blocks),
                    net: sum(&cards),
                    pmem: sum(&pmems),
                    blocks: named("block", blocks),
                    cards: named("net", cards),
                    pmems: named("pmem", pmems),
                }
            }
        }
    };
}

totals! {
    api_server: ApiServer,
    balloon: Balloon,
    deprecated_api: DeprecatedApi,
    get_api_requests: GetRequests,
    i8042: I8042,
    uart: Uart,
    latencies_us: Latencies,
    logger: Logger,
    mmds: Mmds,
    patch_api_requests: PatchRequests,
    put_api_requests: PutRequests,
    seccomp: Seccomp,
    vcpu: Vcpu,
    vmm: Vmm,
    signals: Signals,
    vsock: Vsock,
    entropy: Entropy,
    interrupts: Interrupts,
    memory_hotplug: MemoryHotplug,
}

/// `block_rootfs` of `rootfs`.
fn named<T>(kind: &str, devices: BTreeMap<String, T>) -> BTreeMap<String, T> {
    let devices = devices.into_iter();
    devices
        .map(|(id, device)| (format!("{kind}_{id}"), device))
        .collect()
}

#[cfg(test)]
#[path = "tree_test.rs"]
mod tests;
