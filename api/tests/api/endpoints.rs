//! The bodies of all requests, field by field.

use serde_json::{Value, json};

use crate::kinds::{Field, Kind, default, optional, required};

/// A request with a body.
pub(crate) struct Endpoint {
    pub(crate) method: &'static str,
    pub(crate) path: &'static str,
    pub(crate) fields: Vec<Field>,
    /// Fields that exclude others, and so are not in a body with all the rest.
    pub(crate) apart: Vec<Field>,
}

fn endpoint(method: &'static str, path: &'static str, fields: Vec<Field>) -> Endpoint {
    Endpoint {
        method,
        path,
        fields,
        apart: Vec::new(),
    }
}

fn bucket() -> Kind {
    Kind::Object(vec![
        required("size", Kind::U64, json!(1000)).good(&[json!(0), json!(u64::MAX)]),
        required("refill_time", Kind::U64, json!(100)).good(&[json!(0), json!(u64::MAX)]),
        optional("one_time_burst", Kind::U64, json!(10)).good(&[json!(0), json!(u64::MAX)]),
    ])
}

fn bucket_value() -> Value {
    json!({ "size": 1000, "refill_time": 100, "one_time_burst": 10 })
}

fn limiter(name: &'static str) -> Field {
    let kind = Kind::Object(vec![
        optional("bandwidth", bucket(), bucket_value()),
        optional("ops", bucket(), bucket_value()),
    ]);
    let value = json!({ "bandwidth": bucket_value(), "ops": bucket_value() });
    optional(name, kind, value).good(&[json!({}), json!({ "bandwidth": null })])
}

fn iothread() -> Field {
    optional("iothread", Kind::Bool, json!(true))
}

fn id(name: &'static str) -> Field {
    required(name, Kind::Text, json!("a_1")).bad(&[
        json!(""),
        json!("b"),
        json!("a-1"),
        json!("a/1"),
        json!("a 1"),
    ])
}

fn machine_config(of: fn(&'static str, Kind, Value) -> Field, fields: [Field; 2]) -> Vec<Field> {
    let templates = &["C3", "T2", "T2S", "T2CL", "T2A", "None"];
    let mut all = Vec::from(fields);
    all.extend([
        of("smt", Kind::Bool, json!(true)),
        optional("cpu_template", Kind::Name(templates), json!("T2")).bad(&[json!("V1N1")]),
        of("track_dirty_pages", Kind::Bool, json!(true)),
        of("huge_pages", Kind::Name(&["None", "2M"]), json!("2M")),
    ]);
    all
}

fn cpus(of: fn(&'static str, Kind, Value) -> Field) -> [Field; 2] {
    [
        of("vcpu_count", Kind::U8, json!(2))
            .good(&[json!(1), json!(64)])
            .bad(&[json!(0), json!(65), json!(3), json!(255)]),
        of("mem_size_mib", Kind::U64, json!(256))
            .good(&[json!(16), json!(u64::MAX - 1)])
            .bad(&[json!(0), json!(14), json!(257)]),
    ]
}

fn machine() -> Vec<Endpoint> {
    let number = |name| {
        required(name, Kind::Text, json!("0x80000001"))
            .good(&[
                json!("0x0"),
                json!("0b101"),
                json!("17"),
                json!("0xFFffFFff"),
            ])
            .bad(&[
                json!(""),
                json!("0x"),
                json!("x"),
                json!("+1"),
                json!("-1"),
                json!("0x100000000"),
            ])
    };
    let bitmap = |digits: usize| {
        required("bitmap", Kind::Text, json!("0b1x0_0001"))
            .good(&[json!("x"), json!("x".repeat(digits)), json!("_1_")])
            .bad(&[json!("2"), json!("1b0"), json!("1".repeat(digits + 1))])
    };
    let register = || {
        Kind::Object(vec![
            required(
                "register",
                Kind::Name(&["eax", "ebx", "ecx", "edx"]),
                json!("ebx"),
            ),
            bitmap(32),
        ])
    };
    let leaf = Kind::Object(vec![
        number("leaf"),
        number("subleaf"),
        required("flags", Kind::U32, json!(1)),
        required(
            "modifiers",
            Kind::List(Box::new(register())),
            json!([{ "register": "ebx", "bitmap": "0b1" }]),
        ),
    ]);
    let msr = Kind::Object(vec![number("addr"), bitmap(64)]);
    vec![
        endpoint(
            "PUT",
            "/boot-source",
            vec![
                required("kernel_image_path", Kind::Text, json!("vmlinux")),
                optional("initrd_path", Kind::Text, json!("initrd")),
                optional("boot_args", Kind::Text, json!("quiet")).good(&[json!("")]),
            ],
        ),
        endpoint(
            "PUT",
            "/machine-config",
            machine_config(default, cpus(required)),
        ),
        endpoint(
            "PATCH",
            "/machine-config",
            machine_config(optional, cpus(optional)),
        ),
        endpoint(
            "PUT",
            "/cpu-config",
            vec![
                optional(
                    "kvm_capabilities",
                    Kind::List(Box::new(Kind::Text)),
                    json!(["171", "!172"]),
                )
                .good(&[json!([]), json!(["0"])])
                .bad(&[
                    json!(["x"]),
                    json!(["!"]),
                    json!(["!!1"]),
                    json!(["-1"]),
                    json!(["+1"]),
                ]),
                optional(
                    "cpuid_modifiers",
                    Kind::List(Box::new(leaf)),
                    json!([{ "leaf": "0x1", "subleaf": "0x0", "flags": 0,
                             "modifiers": [{ "register": "eax", "bitmap": "1" }] }]),
                ),
                optional(
                    "msr_modifiers",
                    Kind::List(Box::new(msr)),
                    json!([{ "addr": "0x10a", "bitmap": "0b1" }]),
                ),
            ],
        ),
        endpoint("PUT", "/entropy", vec![limiter("rate_limiter"), iothread()]),
        endpoint(
            "PUT",
            "/serial",
            vec![
                optional("serial_out_path", Kind::Text, json!("out")),
                optional("rate_limiter", bucket(), bucket_value()),
                iothread(),
            ],
        ),
    ]
}

fn drives() -> Vec<Endpoint> {
    vec![
        Endpoint {
            apart: vec![optional("socket", Kind::Text, json!("s")).bad(&[json!("s")])],
            ..endpoint(
                "PUT",
                "/drives/a_1",
                vec![
                    id("drive_id"),
                    required("is_root_device", Kind::Bool, json!(true)),
                    required("path_on_host", Kind::Text, json!("disk")).bad(&[json!("")]),
                    optional("is_read_only", Kind::Bool, json!(true)),
                    optional("partuuid", Kind::Text, json!("0eaa91a0-01"))
                        .bad(&[json!("a b"), json!("a\n")]),
                    default(
                        "cache_type",
                        Kind::Name(&["Unsafe", "Writeback"]),
                        json!("Writeback"),
                    ),
                    limiter("rate_limiter"),
                    optional("io_engine", Kind::Name(&["Sync", "Async"]), json!("Async")),
                    optional(
                        "format",
                        Kind::Name(&["raw", "qcow2", "auto"]),
                        json!("qcow2"),
                    ),
                    optional("overlay", Kind::Text, json!("temp"))
                        .good(&[json!("none"), json!("file")])
                        .bad(&[json!("")]),
                    optional("serial", Kind::Text, json!("A".repeat(20)))
                        .bad(&[json!("A".repeat(21)), json!("ä".repeat(11))]),
                    optional("queues", Kind::U16, json!(2))
                        .good(&[json!(1), json!(8)])
                        .bad(&[json!(0), json!(9)]),
                    iothread(),
                ],
            )
        },
        endpoint(
            "PATCH",
            "/drives/a_1",
            vec![
                id("drive_id"),
                optional("path_on_host", Kind::Text, json!("other")),
                limiter("rate_limiter"),
            ],
        ),
        endpoint(
            "PUT",
            "/pmem/a_1",
            vec![
                id("id"),
                required("path_on_host", Kind::Text, json!("file")),
                default("root_device", Kind::Bool, json!(true)),
                default("read_only", Kind::Bool, json!(true)),
                limiter("rate_limiter"),
                iothread(),
            ],
        ),
        endpoint(
            "PATCH",
            "/pmem/a_1",
            vec![id("id"), limiter("rate_limiter")],
        ),
    ]
}

fn network() -> Vec<Endpoint> {
    let mac = || {
        optional("guest_mac", Kind::Text, json!("06:00:ac:10:00:02"))
            .good(&[json!("06:00:AC:10:00:02")])
            .bad(&[
                json!(""),
                json!("06:00:ac:10:00"),
                json!("06:00:ac:10:00:02:03"),
                json!("06-00-ac-10-00-02"),
                json!("6:0:ac:10:0:2"),
                json!("06:00:ac:10:00:0g"),
                json!("+6:00:ac:10:00:02"),
            ])
    };
    let common = || {
        vec![
            id("iface_id"),
            mac(),
            optional("mtu", Kind::U16, json!(1400))
                .good(&[json!(68), json!(65535)])
                .bad(&[json!(0), json!(67)]),
            limiter("rx_rate_limiter"),
            limiter("tx_rate_limiter"),
            iothread(),
        ]
    };
    let queues = |value: u16| {
        optional("queues", Kind::U16, json!(value))
            .good(&[json!(1)])
            .bad(&[json!(0), json!(17)])
    };
    let list = |name| optional(name, Kind::List(Box::new(Kind::Text)), json!(["x"]));
    let with = |fields: Vec<Field>| common().into_iter().chain(fields).collect();
    vec![
        Endpoint {
            apart: vec![
                list("forwards").good(&[json!([])]).bad(&[json!(["x"])]),
                list("allow").good(&[json!([])]).bad(&[json!(["x"])]),
                list("deny").good(&[json!([])]).bad(&[json!(["x"])]),
                optional("hostname", Kind::Text, json!("box")).bad(&[json!("box")]),
                optional("backend", Kind::Name(&["tap"]), json!("tap")).bad(&[json!("user")]),
            ],
            ..endpoint(
                "PUT",
                "/network-interfaces/a_1",
                with(vec![
                    required("host_dev_name", Kind::Text, json!("tap0")),
                    queues(2).good(&[json!(16)]),
                    optional("vhost", Kind::Bool, json!(true)),
                ]),
            )
        },
        Endpoint {
            apart: vec![
                optional("host_dev_name", Kind::Text, json!("tap0")).bad(&[json!("tap0")]),
                queues(1).bad(&[json!(2)]),
                optional("vhost", Kind::Bool, json!(false))
                    .good(&[json!(false)])
                    .bad(&[json!(true)]),
            ],
            ..endpoint(
                "PUT",
                "/network-interfaces/a_1",
                with(vec![
                    required("backend", Kind::Name(&["user"]), json!("user")),
                    list("forwards"),
                    list("allow"),
                    list("deny"),
                    optional("hostname", Kind::Text, json!("box")),
                ]),
            )
        },
        endpoint(
            "PATCH",
            "/network-interfaces/a_1",
            vec![
                id("iface_id"),
                limiter("rx_rate_limiter"),
                limiter("tx_rate_limiter"),
            ],
        ),
        endpoint(
            "PUT",
            "/vsock",
            vec![
                required("guest_cid", Kind::U32, json!(3))
                    .good(&[json!(4_294_967_294_u32)])
                    .bad(&[json!(0), json!(2), json!(u32::MAX)]),
                required("uds_path", Kind::Text, json!("v.sock")).bad(&[json!("")]),
                optional("vsock_id", Kind::Text, json!("old")),
                iothread(),
            ],
        ),
        endpoint(
            "PUT",
            "/mmds/config",
            vec![
                required(
                    "network_interfaces",
                    Kind::List(Box::new(Kind::Text)),
                    json!(["eth0"]),
                )
                .bad(&[json!([])]),
                default("version", Kind::Name(&["V1", "V2"]), json!("V2")),
                optional("ipv4_address", Kind::Text, json!("169.254.170.2"))
                    .good(&[json!("169.254.1.0"), json!("169.254.254.255")])
                    .bad(&[
                        json!(""),
                        json!("x"),
                        json!("169.254.0.255"),
                        json!("169.254.255.0"),
                        json!("10.0.0.1"),
                        json!("169.254.1"),
                        json!("fe80::1"),
                    ]),
                default("imds_compat", Kind::Bool, json!(true)),
            ],
        ),
    ]
}

fn memory() -> Vec<Endpoint> {
    vec![
        endpoint(
            "PUT",
            "/balloon",
            vec![
                required("amount_mib", Kind::U32, json!(64)),
                required("deflate_on_oom", Kind::Bool, json!(true)),
                default("stats_polling_interval_s", Kind::U16, json!(1)),
                default("free_page_hinting", Kind::Bool, json!(true)),
                default("free_page_reporting", Kind::Bool, json!(true)),
                iothread(),
            ],
        ),
        endpoint(
            "PATCH",
            "/balloon",
            vec![required("amount_mib", Kind::U32, json!(64))],
        ),
        endpoint(
            "PATCH",
            "/balloon/statistics",
            vec![required("stats_polling_interval_s", Kind::U16, json!(1))],
        ),
        endpoint(
            "PATCH",
            "/balloon/hinting/start",
            vec![default("acknowledge_on_stop", Kind::Bool, json!(false))],
        ),
        endpoint(
            "PUT",
            "/hotplug/memory",
            vec![
                required("total_size_mib", Kind::U64, json!(1024))
                    .good(&[json!(256)])
                    .bad(&[json!(0), json!(128), json!(1025), json!(1_u64 << 44)]),
                default("slot_size_mib", Kind::U64, json!(256))
                    .good(&[json!(128)])
                    .bad(&[json!(0), json!(64), json!(130), json!(384)]),
                default("block_size_mib", Kind::U64, json!(4))
                    .good(&[json!(2), json!(128)])
                    .bad(&[json!(0), json!(1), json!(3)]),
            ],
        ),
        endpoint(
            "PATCH",
            "/hotplug/memory",
            vec![required("requested_size_mib", Kind::U64, json!(256))],
        ),
    ]
}

fn instance() -> Vec<Endpoint> {
    let actions = &[
        "InstanceStart",
        "SendCtrlAltDel",
        "FlushMetrics",
        "PowerButton",
        "Stop",
        "Reset",
    ];
    let load = |memory: Field| {
        let tap = Kind::Object(vec![
            required("iface_id", Kind::Text, json!("eth0")),
            required("host_dev_name", Kind::Text, json!("tap1")),
            optional("vhost", Kind::Bool, json!(false)),
        ]);
        let socket = Kind::Object(vec![required("uds_path", Kind::Text, json!("v"))]);
        endpoint(
            "PUT",
            "/snapshot/load",
            vec![
                required("snapshot_path", Kind::Text, json!("state")),
                memory,
                default("enable_diff_snapshots", Kind::Bool, json!(true)),
                default("track_dirty_pages", Kind::Bool, json!(true)),
                default("resume_vm", Kind::Bool, json!(true)),
                default(
                    "network_overrides",
                    Kind::List(Box::new(tap)),
                    json!([{ "iface_id": "eth0", "host_dev_name": "tap1", "vhost": false }]),
                ),
                optional("vsock_override", socket, json!({ "uds_path": "v" })),
                default("clock_realtime", Kind::Bool, json!(true)),
                default("force", Kind::Bool, json!(true)),
            ],
        )
    };
    let backend = Kind::Object(vec![
        required("backend_type", Kind::Name(&["File", "Uffd"]), json!("Uffd")),
        required("backend_path", Kind::Text, json!("memory")),
    ]);
    let backend_value = json!({ "backend_type": "File", "backend_path": "memory" });
    vec![
        endpoint(
            "PUT",
            "/actions",
            vec![required("action_type", Kind::Name(actions), json!("Stop"))],
        ),
        endpoint(
            "PATCH",
            "/console",
            vec![
                required("columns", Kind::U16, json!(80))
                    .good(&[json!(1), json!(u16::MAX)])
                    .bad(&[json!(0)]),
                required("rows", Kind::U16, json!(24))
                    .good(&[json!(1), json!(u16::MAX)])
                    .bad(&[json!(0)]),
            ],
        ),
        endpoint(
            "PATCH",
            "/vm",
            vec![required(
                "state",
                Kind::Name(&["Paused", "Resumed"]),
                json!("Resumed"),
            )],
        ),
        endpoint(
            "PUT",
            "/logger",
            vec![
                optional("log_path", Kind::Text, json!("log")),
                optional("level", Kind::Text, json!("Debug"))
                    .good(&[
                        json!("off"),
                        json!("TRACE"),
                        json!("warning"),
                        json!("Warn"),
                        json!("eRRor"),
                    ])
                    .bad(&[json!(""), json!("loud"), json!("info ")]),
                optional("show_level", Kind::Bool, json!(true)),
                optional("show_log_origin", Kind::Bool, json!(true)),
                optional("module", Kind::Text, json!("api")),
            ],
        ),
        endpoint(
            "PUT",
            "/metrics",
            vec![required("metrics_path", Kind::Text, json!("metrics"))],
        ),
        endpoint(
            "PUT",
            "/snapshot/create",
            vec![
                required("snapshot_path", Kind::Text, json!("state")),
                required("mem_file_path", Kind::Text, json!("memory")),
                default(
                    "snapshot_type",
                    Kind::Name(&["Full", "Diff"]),
                    json!("Diff"),
                ),
                default("resume_vm", Kind::Bool, json!(true)),
            ],
        ),
        endpoint(
            "PUT",
            "/fork",
            vec![
                optional("count", Kind::U32, json!(2)).bad(&[json!(0), json!(3), json!(1001)]),
                default("ids", Kind::List(Box::new(Kind::Text)), json!(["a-1", "b"])).bad(&[
                    json!(["a"]),
                    json!(["a", "a"]),
                    json!(["a", ""]),
                    json!(["a", "b_c"]),
                ]),
                optional(
                    "vsock_override",
                    Kind::Object(vec![required("uds_path", Kind::Text, json!("v{}"))]),
                    json!({ "uds_path": "v{}" }),
                )
                .bad(&[json!({ "uds_path": "" }), json!({ "uds_path": "v" })]),
                default("paused", Kind::Bool, json!(true)),
            ],
        ),
        Endpoint {
            apart: vec![optional("mem_file_path", Kind::Text, json!("m")).bad(&[json!("m")])],
            ..load(required("mem_backend", backend, backend_value.clone()))
        },
        Endpoint {
            apart: vec![
                optional(
                    "mem_backend",
                    Kind::Object(Vec::new()),
                    backend_value.clone(),
                )
                .bad(&[backend_value]),
            ],
            ..load(required("mem_file_path", Kind::Text, json!("memory")))
        },
    ]
}

/// All requests whose body is an object of a known shape.
pub(crate) fn endpoints() -> Vec<Endpoint> {
    let parts = [machine(), drives(), network(), memory(), instance()];
    parts.into_iter().flatten().collect()
}
