//! Each field of each request, over the socket: present, absent, `null`, of a wrong type, out of its range. Which
//! fields there are, and what is wrong in them, is read from the description of the API.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::{Value, json};
use tests::description::{DESCRIPTION, allows, operation, resolved};
use tests::disk::sparse;
use tests::service::{Answer, Service};
use vmm_sys_util::tempdir::TempDir;

use super::idle_kernel;

/// A request with as many of its fields as it can have at once.
struct Row {
    method: &'static str,
    path: &'static str,
    body: Value,
    /// Why it is refused though all in it is right; None: it is done.
    refused: Option<&'static str>,
    /// Fields that may be absent, but not from this body, and what is missed then.
    needed: &'static [(&'static str, &'static str)],
}

fn row(method: &'static str, path: &'static str, body: Value) -> Row {
    Row {
        method,
        path,
        body,
        refused: None,
        needed: &[],
    }
}

impl Row {
    fn refused(self, why: &'static str) -> Self {
        Self {
            refused: Some(why),
            ..self
        }
    }

    fn needing(self, needed: &'static [(&'static str, &'static str)]) -> Self {
        Self { needed, ..self }
    }
}

fn limiter() -> Value {
    json!({ "bandwidth": bucket(), "ops": bucket() })
}

fn bucket() -> Value {
    json!({ "size": 1 << 20, "refill_time": 100, "one_time_burst": 10 })
}

/// What can be asked before the start. Later rows need what earlier ones have put.
fn before(directory: &Path) -> Vec<Row> {
    let path = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    let (kernel, disk, memory) = (path("idle"), path("disk"), path("memory"));
    let not_yet = "not supported before starting the microVM";
    let configured = "has been configured already";
    let vsock =
        || json!({ "guest_cid": 3, "uds_path": path("v.sock"), "vsock_id": "v", "iothread": true });
    vec![
        row(
            "PUT",
            "/logger",
            json!({ "log_path": path("log"), "level": "Debug", "show_level": true, "show_log_origin": true,
                    "module": "api" }),
        ),
        row("PUT", "/metrics", json!({ "metrics_path": path("metrics") })),
        row(
            "PUT",
            "/boot-source",
            json!({ "kernel_image_path": kernel, "initrd_path": disk, "boot_args": "quiet" }),
        ),
        row(
            "PUT",
            "/machine-config",
            json!({ "vcpu_count": 2, "mem_size_mib": 64, "smt": true, "cpu_template": "T2",
                    "track_dirty_pages": true, "huge_pages": "2M" }),
        ),
        row(
            "PATCH",
            "/machine-config",
            json!({ "vcpu_count": 1, "mem_size_mib": 32, "smt": false, "cpu_template": "None",
                    "track_dirty_pages": false, "huge_pages": "None" }),
        ),
        row(
            "PUT",
            "/cpu-config",
            json!({
                "kvm_capabilities": ["!171"],
                "cpuid_modifiers": [{ "leaf": "0x1", "subleaf": "0x0", "flags": 0,
                                      "modifiers": [{ "register": "eax", "bitmap": "0bx" }] }],
                "msr_modifiers": [{ "addr": "0x10a", "bitmap": "0bx" }],
            }),
        ),
        row(
            "PUT",
            "/drives/a",
            json!({ "drive_id": "a", "is_root_device": false, "path_on_host": disk, "partuuid": "0eaa91a0-01",
                    "is_read_only": true, "cache_type": "Writeback", "io_engine": "Async",
                    "rate_limiter": limiter(), "format": "raw", "overlay": "none", "serial": "one",
                    "queues": 2, "iothread": true }),
        )
        .needing(&[("path_on_host", "path_on_host")]),
        row(
            "PUT",
            "/drives/a",
            json!({ "drive_id": "a", "is_root_device": false, "socket": "/tmp/s" }),
        )
        .refused("vhost-user")
        .needing(&[("socket", "path_on_host")]),
        row(
            "PUT",
            "/network-interfaces/e",
            json!({ "iface_id": "e", "backend": "user", "guest_mac": "06:00:AC:10:00:02", "mtu": 1400,
                    "rx_rate_limiter": limiter(), "tx_rate_limiter": limiter(),
                    "forwards": ["127.0.0.1:0:22"], "allow": ["10.0.0.0/8:80"], "deny": ["10.1.0.0/16"],
                    "hostname": "guest", "queues": 1, "vhost": false, "iothread": true }),
        )
        .needing(&[("backend", "host_dev_name")]),
        row(
            "PUT",
            "/network-interfaces/t",
            json!({ "iface_id": "t", "host_dev_name": "nosuchtap0", "queues": 16, "vhost": true }),
        )
        .refused("nosuchtap0")
        .needing(&[("host_dev_name", "host_dev_name")]),
        row(
            "PUT",
            "/pmem/p",
            json!({ "id": "p", "path_on_host": memory, "root_device": false, "read_only": true,
                    "rate_limiter": limiter(), "iothread": true }),
        ),
        row("PUT", "/vsock/v", vsock()),
        row("PUT", "/vsock", vsock()),
        row(
            "PUT",
            "/balloon",
            json!({ "amount_mib": 1, "deflate_on_oom": true, "stats_polling_interval_s": 1,
                    "free_page_hinting": true, "free_page_reporting": true, "iothread": true }),
        ),
        row(
            "PUT",
            "/entropy",
            json!({ "rate_limiter": limiter(), "iothread": true }),
        ),
        row(
            "PUT",
            "/serial",
            json!({ "serial_out_path": path("serial"), "rate_limiter": bucket(), "iothread": true }),
        ),
        row(
            "PUT",
            "/hotplug/memory",
            json!({ "total_size_mib": 512, "slot_size_mib": 256, "block_size_mib": 4 }),
        ),
        row(
            "PUT",
            "/mmds/config",
            json!({ "version": "V2", "network_interfaces": ["e"], "ipv4_address": "169.254.7.7",
                    "imds_compat": true }),
        ),
        row(
            "PUT",
            "/snapshot/create",
            json!({ "snapshot_path": path("s"), "mem_file_path": path("m"), "snapshot_type": "Diff",
                    "resume_vm": true }),
        )
        .refused(not_yet),
        row(
            "PUT",
            "/fork",
            json!({ "count": 2, "ids": ["a-1", "b"], "paused": true,
                    "network_overrides": [{ "iface_id": "e", "host_dev_name": "tap{}", "vhost": true }],
                    "vsock_override": { "uds_path": path("w{}.sock") } }),
        )
        .refused(not_yet),
        row(
            "PUT",
            "/snapshot/load",
            json!({ "snapshot_path": path("s"),
                    "mem_backend": { "backend_type": "Uffd", "backend_path": path("m") },
                    "track_dirty_pages": true, "resume_vm": true, "clock_realtime": true, "force": true,
                    "network_overrides": [{ "iface_id": "e", "host_dev_name": "tap0", "vhost": true }],
                    "vsock_override": { "uds_path": path("w.sock") } }),
        )
        .refused(configured)
        .needing(&[("mem_backend", "mem_backend")]),
        row(
            "PUT",
            "/snapshot/load",
            json!({ "snapshot_path": path("s"), "mem_file_path": path("m"), "enable_diff_snapshots": true }),
        )
        .refused(configured)
        .needing(&[("mem_file_path", "mem_file_path")]),
    ]
}

/// What can be asked of a guest that runs, which has what [`before`] has put.
fn after(directory: &Path) -> Vec<Row> {
    let path = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    vec![
        row("PUT", "/actions", json!({ "action_type": "FlushMetrics" })),
        row("PATCH", "/vm", json!({ "state": "Resumed" })),
        row(
            "PATCH",
            "/drives/a",
            json!({ "drive_id": "a", "path_on_host": path("disk"), "rate_limiter": limiter() }),
        ),
        row(
            "PATCH",
            "/network-interfaces/e",
            json!({ "iface_id": "e", "rx_rate_limiter": limiter(), "tx_rate_limiter": limiter() }),
        ),
        row(
            "PATCH",
            "/pmem/p",
            json!({ "id": "p", "rate_limiter": limiter() }),
        ),
        row("PATCH", "/balloon", json!({ "amount_mib": 2 })),
        row(
            "PATCH",
            "/balloon/statistics",
            json!({ "stats_polling_interval_s": 2 }),
        ),
        row(
            "PATCH",
            "/balloon/hinting/start",
            json!({ "acknowledge_on_stop": true }),
        )
        .refused("not active"),
        row(
            "PATCH",
            "/hotplug/memory",
            json!({ "requested_size_mib": 256 }),
        )
        .refused("has no driver for it"),
        row("PATCH", "/console", json!({ "columns": 80, "rows": 24 })).refused("serial"),
    ]
}

/// A field, somewhere in the body of a request.
#[derive(Clone)]
struct Field {
    /// Where it is, of lists in the first element.
    pointer: String,
    schema: &'static Value,
    is_required: bool,
}

impl Field {
    fn name(&self) -> &str {
        self.pointer.rsplit('/').next().unwrap()
    }

    /// Where the object is that it is in.
    fn parent(&self) -> &str {
        self.pointer.rsplit_once('/').unwrap().0
    }
}

/// All fields of a schema.
fn fields(schema: &'static Value) -> Vec<Field> {
    let mut all = Vec::new();
    collect(schema, "", &mut all);
    all
}

fn collect(schema: &'static Value, pointer: &str, all: &mut Vec<Field>) {
    let schema = resolved(schema);
    if let Some(choices) = schema.get("anyOf").and_then(Value::as_array) {
        for choice in choices {
            collect(choice, pointer, all);
        }
    }
    if let Some(items) = schema.get("items") {
        collect(items, &format!("{pointer}/0"), all);
    }
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else {
        return;
    };
    let required = schema.get("required").and_then(Value::as_array);
    for (name, schema) in properties {
        let pointer = format!("{pointer}/{name}");
        all.push(Field {
            pointer: pointer.clone(),
            schema,
            is_required: required.is_some_and(|names| names.iter().any(|found| found == name)),
        });
        collect(schema, &pointer, all);
    }
}

fn body_schema(method: &str, path: &str) -> &'static Value {
    let operation = operation(method, path).unwrap_or_else(|| panic!("no {method} {path}"));
    &operation["requestBody"]["content"]["application/json"]["schema"]
}

/// Values of all kinds: what of them a schema does not allow is wrong.
fn candidates(schema: &Value) -> Vec<Value> {
    let mut candidates = vec![
        json!(null),
        json!(true),
        json!("x"),
        json!(""),
        json!("a b"),
        json!("-1"),
        json!(-1),
        json!(0),
        json!(1),
        json!(1.5),
        json!(u64::MAX),
        json!({}),
        json!({ "unknown": 1 }),
        json!([]),
        json!([null]),
        json!([1]),
        json!([""]),
        json!([{}]),
        json!([[]]),
    ];
    for schema in choices(schema) {
        if let Some(minimum) = schema["minimum"].as_u64().filter(|minimum| *minimum > 0) {
            candidates.push(json!(minimum - 1));
        }
        if let Some(maximum) = schema["maximum"].as_u64().filter(|most| *most < u64::MAX) {
            candidates.push(json!(maximum + 1));
        }
        if let Some(length) = schema["maxLength"].as_u64() {
            candidates.push(json!("x".repeat(usize::try_from(length).unwrap() + 1)));
        }
        // Names are told apart by case.
        let names = schema["enum"].as_array().into_iter().flatten();
        candidates.extend(names.filter_map(Value::as_str).map(|name| {
            let other = name.to_lowercase();
            json!(if other == name {
                name.to_uppercase()
            } else {
                other
            })
        }));
    }
    candidates.retain(|candidate| allows(schema, candidate).is_err());
    candidates
}

/// A schema, or those of which it is one.
fn choices(schema: &Value) -> Vec<&Value> {
    let schema = resolved(schema);
    match schema["anyOf"].as_array() {
        Some(choices) => choices.iter().map(resolved).collect(),
        None => vec![schema],
    }
}

fn with(body: &Value, pointer: &str, value: Value) -> Value {
    let mut body = body.clone();
    *body.pointer_mut(pointer).unwrap() = value;
    body
}

fn without(body: &Value, field: &Field) -> Value {
    let mut body = body.clone();
    let object = body.pointer_mut(field.parent()).unwrap();
    object.as_object_mut().unwrap().remove(field.name());
    body
}

#[track_caller]
fn expect_done(row: &Row, body: &Value, answer: &Answer) {
    let what = format!("{} {} {body}: {answer:?}", row.method, row.path);
    match row.refused {
        None => assert_eq!(answer.status, 204, "{what}"),
        Some(why) => {
            assert_eq!(answer.status, 400, "{what}");
            let message = answer.body["fault_message"].as_str().unwrap();
            assert!(message.contains(why), "no {why:?} in {what}");
        }
    }
}

fn try_row(service: &Service, row: &Row) -> usize {
    let Row {
        method,
        path,
        body,
        needed,
        ..
    } = row;
    let is_once = *path == "/metrics";
    let ask = |body: &Value| service.request(method, path, Some(body));
    expect_done(row, body, &ask(body));
    let config = service.get("/vm/config");
    let schema = body_schema(method, path);
    allows(schema, body).unwrap_or_else(|why| panic!("{method} {path} {body}: {why}"));
    let mut count = 1;
    let mut refuse = |name: &str, body: &Value| {
        let answer = ask(body);
        assert_eq!(answer.status, 400, "{method} {path} {body}: {answer:?}");
        let message = answer.body["fault_message"].as_str().unwrap();
        // An id that is not the one in the path is named as that.
        let is_named = message.contains(name) || message.contains("ID in the path");
        assert!(
            is_named,
            "{method} {path} {body}: {message:?} does not name {name}"
        );
        count += 1;
    };
    let fields: Vec<Field> = fields(schema)
        .into_iter()
        .filter(|field| body.pointer(&field.pointer).is_some())
        .collect();
    let mut optional = Vec::new();
    for field in &fields {
        for wrong in candidates(field.schema) {
            refuse(field.name(), &with(body, &field.pointer, wrong));
        }
        let absent = without(body, field);
        let missed = needed.iter().find(|(name, _)| *name == field.name());
        match missed {
            Some((_, missed)) => refuse(missed, &absent),
            None if field.is_required => refuse(field.name(), &absent),
            None => optional.push((field, absent)),
        }
        // A field that does not exist, beside it.
        let mut unknown = body.clone();
        let parent = unknown.pointer_mut(field.parent()).unwrap();
        parent["such_a_field"] = 1.into();
        refuse("unknown field `such_a_field`", &unknown);
    }
    assert_eq!(service.get("/vm/config"), config, "{method} {path}");
    for (field, absent) in optional.into_iter().filter(|_| !is_once) {
        expect_done(row, &absent, &ask(&absent));
        if allows(field.schema, &Value::Null).is_ok() {
            let null = with(body, &field.pointer, Value::Null);
            expect_done(row, &null, &ask(&null));
        }
        count += 2;
    }
    if !is_once {
        expect_done(row, body, &ask(body));
    }
    count
}

pub(super) fn each_field() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let kernel = idle_kernel(directory);
    sparse(directory, "disk", 1 << 20);
    sparse(directory, "memory", 2 << 20);
    let service = Service::start(directory, &[""; 0]);
    let mut count = 0;
    for row in before(directory) {
        count += try_row(&service, &row);
    }
    service.put("/boot-source", json!({ "kernel_image_path": kernel }));
    service.put("/cpu-config", json!({}));
    service.act("InstanceStart");
    for row in after(directory) {
        count += try_row(&service, &row);
    }
    assert!(count > 1500, "{count} requests only");
    assert_eq!(service.terminate().status, 143);
}

/// No field of the description is forgotten.
pub(super) fn all_fields() {
    let directory = Path::new("/tmp");
    let mut tried = BTreeSet::new();
    for row in before(directory).into_iter().chain(after(directory)) {
        for field in fields(body_schema(row.method, row.path)) {
            if row.body.pointer(&field.pointer).is_some() {
                let id = path_in_description(row.path);
                tried.insert(format!("{} {id} {}", row.method, field.pointer));
            }
        }
    }
    let mut count = 0;
    for (path, item) in DESCRIPTION["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let method = method.to_uppercase();
            let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
            for field in fields(schema) {
                let field = format!("{method} {path} {}", field.pointer);
                assert!(tried.contains(&field), "no row has {field}");
                count += 1;
            }
        }
    }
    assert_eq!(count, tried.len());
}

/// `/drives/{drive_id}` of `/drives/a`.
fn path_in_description(path: &str) -> String {
    let paths = DESCRIPTION["paths"].as_object().unwrap();
    if paths.contains_key(path) {
        return path.to_owned();
    }
    let (folder, _) = path.rsplit_once('/').unwrap();
    let folder = format!("{folder}/{{");
    let found = paths.keys().find(|path| path.starts_with(&folder));
    found.unwrap_or_else(|| panic!("no {path}")).clone()
}
