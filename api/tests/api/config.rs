//! The whole configuration.

use api::types::{ConfigError, CpuConfigSource, VmConfig};
use serde_json::{Value, json};

fn read(value: &Value) -> Result<(VmConfig, Vec<String>), ConfigError> {
    VmConfig::read(value.to_string().as_bytes())
}

/// Everything that can be in a document.
fn document() -> Value {
    json!({
        "boot-source": { "kernel_image_path": "vmlinux", "initrd_path": null, "boot_args": "quiet" },
        "drives": [{ "drive_id": "a", "is_root_device": true, "path_on_host": "disk" }],
        "machine-config": { "vcpu_count": 2, "mem_size_mib": 256 },
        "cpu-config": { "kvm_capabilities": ["!1"] },
        "network-interfaces": [{ "iface_id": "eth0", "host_dev_name": "tap0" }],
        "vsock": { "guest_cid": 3, "uds_path": "v" },
        "balloon": { "amount_mib": 0, "deflate_on_oom": true },
        "logger": { "log_path": "log", "level": "debug" },
        "metrics": { "metrics_path": "metrics" },
        "mmds-config": { "network_interfaces": ["eth0"], "version": "V2" },
        "entropy": {},
        "pmem": [{ "id": "p", "path_on_host": "pmem" }],
        "memory-hotplug": { "total_size_mib": 1024 },
        "serial": { "serial_out_path": "serial" },
    })
}

/// What `GET /vm/config` answers before anything was put.
fn empty() -> Value {
    json!({
        "balloon": null,
        "drives": [],
        "boot-source": { "kernel_image_path": "", "initrd_path": null, "boot_args": null },
        "cpu-config": null,
        "logger": null,
        "machine-config": {
            "vcpu_count": 1, "mem_size_mib": 128, "smt": false, "track_dirty_pages": false, "huge_pages": "None",
        },
        "metrics": null,
        "mmds-config": null,
        "network-interfaces": [],
        "vsock": null,
        "entropy": null,
        "pmem": [],
        "memory-hotplug": null,
    })
}

#[test]
fn what_is_answered_can_be_read() {
    let default = serde_json::to_value(VmConfig::default()).unwrap();
    assert_eq!(default, empty());
    assert_eq!(read(&empty()).unwrap(), (VmConfig::default(), Vec::new()));

    let (config, unknown) = read(&document()).unwrap();
    assert!(unknown.is_empty());
    let answered = serde_json::to_value(&config).unwrap();
    assert_eq!(
        answered.as_object().unwrap().len(),
        document().as_object().unwrap().len()
    );
    assert_eq!(answered["vsock"], document()["vsock"]);
    assert_eq!(answered["logger"]["level"], "Debug");
    assert_eq!(answered["memory-hotplug"]["slot_size_mib"], 128);
    assert_eq!(read(&answered).unwrap().0, config);
    assert_eq!(
        serde_json::from_value::<VmConfig>(answered).unwrap(),
        config
    );
}

#[test]
fn sections_may_be_absent_or_null() {
    let few = json!({ "boot-source": { "kernel_image_path": "k" } });
    let (config, _) = read(&few).unwrap();
    for section in document().as_object().unwrap().keys() {
        let mut null = few.clone();
        null[section] = Value::Null;
        let is_list = matches!(section.as_str(), "drives" | "network-interfaces" | "pmem");
        if is_list || section == "boot-source" {
            let error = read(&null).unwrap_err();
            assert!(error.to_string().contains(section), "{error}");
        } else {
            assert_eq!(read(&null).unwrap().0, config, "{section}");
        }
        let mut one = few.clone();
        one[section] = document()[section].clone();
        assert_ne!(read(&one).unwrap().0, config, "{section}");
    }
    // Whoever starts the guest says that there is nothing to boot.
    assert_eq!(read(&json!({})).unwrap().0, VmConfig::default());
}

#[test]
fn errors_say_where_they_are() {
    for (section, value, place) in [
        ("drives", json!([{ "drive_id": 1 }]), "`drives[0].drive_id`"),
        (
            "drives",
            json!([{ "drive_id": "a", "is_root_device": true }]),
            "`drives`",
        ),
        ("drives", json!({}), "`drives`"),
        (
            "machine-config",
            json!({ "vcpu_count": 1 }),
            "`machine-config`",
        ),
        (
            "machine-config",
            json!({ "vcpu_count": 0, "mem_size_mib": 128 }),
            "`machine-config`",
        ),
        ("machine-config", json!([1, 128]), "`machine-config`"),
        (
            "boot-source",
            json!({ "kernel": "x" }),
            "`boot-source.kernel`",
        ),
        (
            "network-interfaces",
            json!([{ "iface_id": "a-b", "host_dev_name": "t" }]),
            "`network-interfaces`",
        ),
        (
            "mmds-config",
            json!({ "network_interfaces": [] }),
            "`mmds-config`",
        ),
        (
            "vsock",
            json!({ "guest_cid": 1, "uds_path": "v" }),
            "`vsock`",
        ),
        (
            "memory-hotplug",
            json!({ "total_size_mib": 1 }),
            "`memory-hotplug`",
        ),
        ("pmem", json!([{ "id": "", "path_on_host": "p" }]), "`pmem`"),
        ("cpu-config", json!(7), "`cpu-config`"),
        (
            "cpu-config",
            json!({ "msr_modifiers": [{ "addr": "x", "bitmap": "1" }] }),
            "msr_modifiers",
        ),
        (
            "entropy",
            json!({ "rate_limiter": { "ops": { "size": 1 } } }),
            "entropy.rate_limiter.ops",
        ),
    ] {
        let mut wrong = document();
        wrong[section] = value;
        let error = read(&wrong).unwrap_err().to_string();
        assert!(error.contains(place), "{wrong}: {error}");
    }
    for wrong in [
        "",
        "[]",
        "null",
        "{",
        r#"{"boot-source": {"kernel_image_path": "k"}} x"#,
    ] {
        assert!(VmConfig::read(wrong.as_bytes()).is_err(), "{wrong}");
    }
    let twice = r#"{"entropy": null, "boot-source": {"kernel_image_path": "k"}, "entropy": null}"#;
    assert!(VmConfig::read(twice.as_bytes()).is_err());
}

#[test]
fn unknown_sections_are_listed() {
    let mut more = document();
    more["drive"] = json!([]);
    more["boot_source"] = json!({ "anything": [1] });
    let (config, mut unknown) = read(&more).unwrap();
    unknown.sort();
    assert_eq!(unknown, ["boot_source", "drive"]);
    assert_eq!(config, read(&document()).unwrap().0);
}

#[test]
fn a_cpu_configuration_may_be_in_a_file() {
    let mut file = document();
    file["cpu-config"] = "template.json".into();
    let (config, _) = read(&file).unwrap();
    assert_eq!(
        config.cpu_config,
        Some(CpuConfigSource::File("template.json".into()))
    );
    assert_eq!(
        serde_json::to_value(config).unwrap()["cpu-config"],
        "template.json"
    );
}
