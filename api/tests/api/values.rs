//! What values mean, and how they read back.

use api::types::{
    Bitmap, CpuConfig, Drive, Entropy, KvmCapability, LogLevel, Logger, MachineConfig,
    MachineConfigPatch, MmdsConfig, NetworkInterface, RateLimiter, Serial, Vsock,
};
use api::{Command, Fault, Response, State, answer};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::refused;

const JSON: &str = "An error occurred when deserializing the json body of a request: ";

fn read<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// What `value` reads back as.
fn again<T: DeserializeOwned + Serialize>(value: Value) -> Value {
    let back = serde_json::to_value(read::<T>(value)).unwrap();
    // And it stays so.
    assert_eq!(serde_json::to_value(read::<T>(back.clone())).unwrap(), back);
    back
}

#[test]
fn drives_read_back_with_all_that_firecracker_has_and_no_more() {
    let put = json!({ "drive_id": "a", "is_root_device": false, "path_on_host": "p" });
    assert_eq!(
        again::<Drive>(put.clone()),
        json!({
            "drive_id": "a", "partuuid": null, "is_root_device": false, "cache_type": "Unsafe",
            "is_read_only": false, "path_on_host": "p", "rate_limiter": null, "io_engine": "Sync",
            "socket": null,
        })
    );
    let mut extended = put;
    extended["format"] = "qcow2".into();
    extended["overlay"] = "o".into();
    extended["queues"] = 2.into();
    extended["serial"] = "s".into();
    extended["iothread"] = true.into();
    let back = again::<Drive>(extended.clone());
    for (key, value) in extended.as_object().unwrap() {
        assert_eq!(&back[key], value);
    }
}

#[test]
fn interfaces_read_back_in_lower_case() {
    assert_eq!(
        again::<NetworkInterface>(
            json!({ "iface_id": "a", "host_dev_name": "t", "guest_mac": "0A:00:AC:10:00:FF" })
        ),
        json!({
            "iface_id": "a", "host_dev_name": "t", "guest_mac": "0a:00:ac:10:00:ff", "mtu": null,
            "rx_rate_limiter": null, "tx_rate_limiter": null,
        })
    );
    assert_eq!(
        again::<NetworkInterface>(
            json!({ "iface_id": "a", "backend": "user", "forwards": ["80:80"] })
        ),
        json!({
            "iface_id": "a", "host_dev_name": null, "guest_mac": null, "mtu": null,
            "rx_rate_limiter": null, "tx_rate_limiter": null, "backend": "user", "forwards": ["80:80"],
        })
    );
    let extended = json!({
        "iface_id": "a", "host_dev_name": "t", "queues": 4, "vhost": true, "iothread": true,
    });
    let back = again::<NetworkInterface>(extended.clone());
    for (key, value) in extended.as_object().unwrap() {
        assert_eq!(&back[key], value);
    }
}

#[test]
fn limits_that_limit_nothing_are_none() {
    let bucket = |size, refill_time| json!({ "size": size, "refill_time": refill_time });
    let limiter = |bandwidth: Value, ops: Value| {
        again::<Entropy>(json!({ "rate_limiter": { "bandwidth": bandwidth, "ops": ops } }))
    };
    let none = json!({ "rate_limiter": null });
    assert_eq!(again::<Entropy>(json!({})), none);
    assert_eq!(again::<Entropy>(json!({ "rate_limiter": {} })), none);
    assert_eq!(limiter(bucket(0, 100), bucket(100, 0)), none);
    assert_eq!(
        limiter(bucket(1, 2), bucket(0, 0)),
        json!({ "rate_limiter": {
            "bandwidth": { "size": 1, "refill_time": 2, "one_time_burst": null },
            "ops": null,
        } })
    );
    let serial = json!({ "rate_limiter": { "size": 1, "refill_time": 2, "one_time_burst": 0 } });
    assert_eq!(
        again::<Serial>(serial),
        json!({
            "serial_out_path": null,
            "rate_limiter": { "size": 1, "refill_time": 2, "one_time_burst": null },
        })
    );
}

#[test]
fn a_patch_changes_the_buckets_that_it_has() {
    let one = json!({ "size": 1, "refill_time": 1, "one_time_burst": 5 });
    let other = json!({ "size": 2, "refill_time": 2 });
    let off = json!({ "size": 0, "refill_time": 0 });
    let limiter = |value: Value| -> RateLimiter { read(value) };
    let former = limiter(json!({ "bandwidth": one, "ops": one }));
    let patched = |patch: Value| RateLimiter::patched(Some(former.clone()), &limiter(patch));
    assert_eq!(patched(json!({})), Some(former.clone()));
    assert_eq!(
        patched(json!({ "ops": other })),
        Some(limiter(json!({ "bandwidth": one, "ops": other })))
    );
    assert_eq!(
        patched(json!({ "ops": off })),
        Some(limiter(json!({ "bandwidth": one })))
    );
    assert_eq!(patched(json!({ "ops": off, "bandwidth": off })), None);
    assert_eq!(
        RateLimiter::patched(None, &limiter(json!({ "ops": off }))),
        None
    );
}

#[test]
fn the_machine_reads_back_without_a_template_that_is_none() {
    let defaults = json!({
        "vcpu_count": 1, "mem_size_mib": 128, "smt": false, "track_dirty_pages": false, "huge_pages": "None",
    });
    assert_eq!(
        serde_json::to_value(MachineConfig::default()).unwrap(),
        defaults
    );
    let mut put = defaults.clone();
    put["cpu_template"] = "None".into();
    assert_eq!(again::<MachineConfig>(put.clone()), defaults);
    put["cpu_template"] = "T2".into();
    assert_eq!(again::<MachineConfig>(put.clone()), put);
}

#[test]
fn a_machine_is_changed_as_a_whole() {
    let machine = |value: Value| -> MachineConfig { read(value) };
    let patch = |value: Value| -> MachineConfigPatch { read(value) };
    let smt = machine(json!({ "vcpu_count": 4, "mem_size_mib": 127, "smt": true }));
    let message = |value: Value| smt.patched(&patch(value)).unwrap_err().message;
    assert!(message(json!({ "vcpu_count": 3 })).contains("vcpu_count"));
    assert!(message(json!({ "huge_pages": "2M" })).contains(
        "The memory size (MiB) is either 0, or not a multiple of the configured page size."
    ));
    let changed = smt
        .patched(&patch(json!({ "vcpu_count": 3, "smt": false })))
        .unwrap();
    assert_eq!(
        changed,
        machine(json!({ "vcpu_count": 3, "mem_size_mib": 127 }))
    );

    // A template stays until it is named.
    let template = machine(json!({ "vcpu_count": 1, "mem_size_mib": 128, "cpu_template": "T2" }));
    let plain = machine(json!({ "vcpu_count": 1, "mem_size_mib": 128 }));
    assert_eq!(plain.clone().in_place_of(&template), template);
    let none = template
        .patched(&patch(json!({ "cpu_template": "None" })))
        .unwrap();
    assert_eq!(
        serde_json::to_value(&none).unwrap(),
        serde_json::to_value(&plain).unwrap()
    );
    assert_eq!(none.clone().in_place_of(&template), none);
}

#[test]
fn bits_are_read_from_the_highest() {
    let bits = |text: &str| text.parse::<Bitmap<8>>();
    let bitmap = bits("0b1x_0_1").unwrap();
    assert_eq!(
        bitmap,
        Bitmap {
            mask: 0b1011,
            value: 0b1001
        }
    );
    assert_eq!(bitmap.apply(0b1111_0110), 0b1111_1101);
    assert_eq!(bitmap.to_string(), "0bxxxx1x01");
    assert_eq!(bitmap.to_string().parse(), Ok(bitmap));
    assert_eq!(
        "1".repeat(64).parse::<Bitmap<64>>().unwrap().value,
        u64::MAX
    );
    for wrong in ["111111111", "12", "1b0"] {
        assert!(bits(wrong).unwrap_err().contains(wrong));
    }
    let leaf = json!({ "leaf": "17", "subleaf": "0b11", "flags": 1, "modifiers": [] });
    assert_eq!(
        again::<CpuConfig>(json!({ "cpuid_modifiers": [leaf], "kvm_capabilities": ["1", "!2"] })),
        json!({
            "kvm_capabilities": ["1", "!2"],
            "cpuid_modifiers": [{ "leaf": "0x11", "subleaf": "0x3", "flags": 1, "modifiers": [] }],
        })
    );
    assert_eq!("!2".parse(), Ok(KvmCapability::Waive(2)));
}

#[test]
fn the_rest_reads_back() {
    assert_eq!(
        again::<Vsock>(json!({ "guest_cid": 3, "uds_path": "v", "vsock_id": "x" })),
        json!({ "guest_cid": 3, "uds_path": "v" })
    );
    let own_thread = json!({ "rate_limiter": null, "iothread": true });
    assert_eq!(again::<Entropy>(own_thread.clone()), own_thread);
    assert_eq!(
        again::<MmdsConfig>(json!({ "network_interfaces": ["a"] })),
        json!({
            "network_interfaces": ["a"], "version": "V1", "ipv4_address": "169.254.169.254",
            "imds_compat": false,
        })
    );
    let logger: Logger = read(json!({ "level": "WARNING" }));
    assert_eq!(logger.level, Some(LogLevel::Warn));
    for state in State::ALL {
        assert_eq!(
            serde_json::to_value(state).unwrap(),
            json!(state.to_string())
        );
    }
}

#[test]
fn texts_that_clients_match() {
    for (method, path, body, text) in [
        (
            "PUT",
            "/machine-config",
            "{}",
            "missing field `vcpu_count` at line 1 column 2.",
        ),
        (
            "PUT",
            "/machine-config",
            r#"{"ht_enabled": true}"#,
            "unknown field `ht_enabled`, expected",
        ),
        (
            "PATCH",
            "/drives/a",
            r#"{"drive_id": "a", "is_read_only": true}"#,
            "unknown field `is_read_only`",
        ),
        (
            "PUT",
            "/mmds/config",
            r#"{"network_interfaces": [], "version": "foo"}"#,
            "unknown variant `foo`, expected `V1` or `V2`",
        ),
        (
            "PUT",
            "/snapshot/load",
            r#"{"snapshot_path": "s"}"#,
            "missing field: either `mem_backend` or `mem_file_path` is required.",
        ),
        (
            "PUT",
            "/snapshot/load",
            r#"{"snapshot_path": "s", "mem_file_path": "m", "mem_backend": {"backend_type": "File", "backend_path": "m"}}"#,
            "too many fields: either `mem_backend` or `mem_file_path` exclusively is required.",
        ),
    ] {
        let message = refused(method, path, body);
        assert!(message.starts_with(&format!("{JSON}{text}")), "{message}");
    }
    for (method, path, body, text) in [
        (
            "PUT",
            "/machine-config",
            r#"{"vcpu_count": 1, "mem_size_mib": 0}"#,
            "The memory size (MiB) is either 0, or not a multiple of the configured page size.",
        ),
        (
            "PUT",
            "/mmds/config",
            r#"{"network_interfaces": []}"#,
            "The list of network interface IDs that allow forwarding MMDS requests is empty.",
        ),
        (
            "PATCH",
            "/drives/a",
            r#"{"drive_id": "a"}"#,
            "Running method expected different backend.",
        ),
        ("PATCH", "/machine-config", "{}", "Empty PATCH request."),
        (
            "PUT",
            "/network-interfaces/a",
            r#"{"iface_id": "a"}"#,
            "missing field `host_dev_name`",
        ),
    ] {
        let message = refused(method, path, body);
        assert!(message.contains(text), "{message}");
    }
}

#[test]
fn wrong_types_name_request_and_field() {
    let body = r#"{"drive_id": "a", "is_root_device": true, "rate_limiter": {"ops": {"size": -1, "refill_time": 1}}}"#;
    let message = refused("PUT", "/drives/a", body);
    assert!(
        message.ends_with("In PUT /drives/a, field `rate_limiter.ops.size`."),
        "{message}"
    );
    for number in ["1.0", "1e3", "18446744073709551616"] {
        let body = format!(r#"{{"vcpu_count": 1, "mem_size_mib": {number}}}"#);
        let message = refused("PUT", "/machine-config", &body);
        assert!(message.ends_with("field `mem_size_mib`."), "{message}");
    }
    // What was sent is repeated, but not without end.
    let long = format!("{{\"{}\": 1}}", "x".repeat(50_000));
    assert!(refused("PUT", "/vsock", &long).len() < 3000);
}

#[test]
fn results_become_answers() {
    let empty = answer(&Ok(Response::Empty), true);
    assert_eq!((empty.status, empty.body.len()), (204, 0));
    assert_eq!(empty.headers, [("Deprecation", "true")]);

    let machine = answer(
        &Ok(Response::MachineConfig(MachineConfig::default())),
        false,
    );
    assert_eq!(machine.status, 200);
    assert_eq!(machine.headers, [("Content-Type", "application/json")]);
    assert!(machine.body.starts_with(br#"{"vcpu_count":1,"#));

    let text = answer(&Ok(Response::Text("# EOF\n".into())), false);
    assert_eq!(text.body, b"# EOF\n");
    assert!(
        text.headers[0]
            .1
            .starts_with("application/openmetrics-text")
    );

    for (fault, status) in [
        (Fault::bad("a \"b\""), 400),
        (Fault::too_large("a \"b\""), 413),
    ] {
        let fault = answer(&Err(fault), true);
        assert_eq!(fault.status, status);
        assert_eq!(fault.body, br#"{"fault_message":"a \"b\""}"#);
        assert_eq!(fault.headers.len(), 2);
    }
    assert_eq!(Command::GetMmds.name(), "GET /mmds");
    let description: Value = serde_json::from_slice(&api::Answer::openapi().body).unwrap();
    assert_eq!(description["openapi"], "3.1.0");
}
