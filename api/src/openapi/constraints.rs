//! What is known of values beyond their types: the ranges that [`crate::types::Validate`] checks.

use serde_json::{Value, json};

use crate::types::{MAX_COPIES, MAX_VCPUS, MIN_MEMORY_MIB};

/// Letters of other scripts are allowed too; few programs that read a schema know how to say so.
pub(super) const ID: &str = "^[A-Za-z0-9_]+$";

/// Type, field (`""` is the type itself), and what its schema is overwritten with; `null` takes away.
pub(super) fn constraints() -> Vec<(&'static str, &'static str, Value)> {
    let id = || json!({ "pattern": ID, "examples": ["root"] });
    let cpus = || json!({ "minimum": 1, "maximum": MAX_VCPUS });
    let memory = || json!({ "minimum": MIN_MEMORY_MIB });
    vec![
        ("Drive", "drive_id", id()),
        (
            "Drive",
            "path_on_host",
            json!({ "type": "string", "minLength": 1, "default": null }),
        ),
        ("Drive", "partuuid", json!({ "pattern": "^[!-~]*$" })),
        ("Drive", "serial", json!({ "maxLength": 20 })),
        (
            "Drive",
            "queues",
            json!({ "minimum": 1, "maximum": 8, "default": 1 }),
        ),
        ("Drive", "format", json!({ "default": "raw" })),
        ("Drive", "overlay", json!({ "default": "none" })),
        ("Drive", "iothread", json!({ "default": false })),
        ("DrivePatch", "drive_id", id()),
        ("NetworkInterface", "iface_id", id()),
        ("NetworkInterface", "mtu", json!({ "minimum": 68 })),
        ("NetworkInterface", "backend", json!({ "default": "tap" })),
        (
            "NetworkInterface",
            "queues",
            json!({ "minimum": 1, "maximum": 16, "default": 1 }),
        ),
        ("NetworkInterface", "vhost", json!({ "default": false })),
        ("NetworkInterface", "iothread", json!({ "default": false })),
        ("NetworkInterfacePatch", "iface_id", id()),
        ("Pmem", "id", id()),
        ("Pmem", "iothread", json!({ "default": false })),
        ("Balloon", "iothread", json!({ "default": false })),
        ("Entropy", "iothread", json!({ "default": false })),
        ("Serial", "iothread", json!({ "default": false })),
        ("PmemPatch", "id", id()),
        ("ConsolePatch", "columns", json!({ "minimum": 1 })),
        ("ConsolePatch", "rows", json!({ "minimum": 1 })),
        ("MachineConfig", "vcpu_count", cpus()),
        ("MachineConfig", "mem_size_mib", memory()),
        ("MachineConfigPatch", "", json!({ "minProperties": 1 })),
        ("MachineConfigPatch", "vcpu_count", cpus()),
        ("MachineConfigPatch", "mem_size_mib", memory()),
        (
            "MemoryHotplug",
            "total_size_mib",
            json!({ "minimum": 128, "maximum": u64::MAX >> 20 }),
        ),
        ("MemoryHotplug", "slot_size_mib", json!({ "minimum": 128 })),
        ("MemoryHotplug", "block_size_mib", json!({ "minimum": 2 })),
        ("MmdsConfig", "network_interfaces", json!({ "minItems": 1 })),
        (
            "MmdsConfig",
            "ipv4_address",
            json!({ "default": "169.254.169.254", "pattern": r"^169\.254\.[0-9]{1,3}\.[0-9]{1,3}$" }),
        ),
        ("TokenBucket", "one_time_burst", json!({ "default": 0 })),
        ("Logger", "level", json!({ "default": "Info" })),
        (
            "Vsock",
            "guest_cid",
            json!({ "minimum": 3, "maximum": u32::MAX - 1 }),
        ),
        ("Vsock", "uds_path", json!({ "minLength": 1 })),
        ("Vsock", "iothread", json!({ "default": false })),
        (
            "Fork",
            "count",
            json!({ "minimum": 1, "maximum": MAX_COPIES, "default": 1 }),
        ),
        (
            "Fork",
            "ids",
            json!({ "maxItems": MAX_COPIES, "items": { "type": "string", "pattern": "^[A-Za-z0-9-]{1,64}$" } }),
        ),
        ("CpuidModifier", "flags", json!({ "examples": [0, 1] })),
    ]
}
