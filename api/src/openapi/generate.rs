//! Makes the description, and compares it with the one that is checked in.

use std::collections::BTreeMap;

use schemars::SchemaGenerator;
use schemars::generate::{Contract, SchemaSettings};
use serde_json::{Map, Value, json};

use super::constraints::{ID, constraints};
use super::operations::{Body, Operation, Success, operation};
use crate::command::State;
use crate::states::Request;
use crate::types;

const SCHEMAS: &str = "#/components/schemas/";

/// Answers that any request may get: name, status, when.
const FAULTS: [(&str, &str, &str); 5] = [
    (
        "BadRequest",
        "400",
        "The request is wrong, or its time is. The message names the resource, the field and the reason.",
    ),
    (
        "TooLarge",
        "413",
        "The metadata, or a body that comes in chunks, is larger than it may be.",
    ),
    (
        "PathTooLong",
        "414",
        "The path is longer than any that exists. The connection is closed.",
    ),
    (
        "HeadersTooLarge",
        "431",
        "The headers are too long, or too many. The connection is closed.",
    ),
    (
        "Unavailable",
        "503",
        "There are too many connections, or the monitor is ending. The connection is closed.",
    ),
];

#[test]
fn description_is_made_of_the_types() {
    let mut text = serde_json::to_string_pretty(&description()).unwrap();
    text.push('\n');
    if std::env::var_os("UPDATE").is_some() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/openapi.json");
        std::fs::write(path, text).unwrap();
    } else {
        assert!(
            text == super::DESCRIPTION,
            "openapi.json is not up to date: UPDATE=1 cargo test -p api openapi"
        );
    }
}

fn description() -> Value {
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "mote's control API",
            "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
            "description": format!(
                "Controls one microVM over a Unix socket. The wire format is that of Firecracker {}, so that its \
                 clients work. What mote adds is marked `x-mote-extension`. `x-mote-states` says in which state of \
                 the guest a request is carried out. `null` is the same as an absent field where it is allowed.",
                types::FIRECRACKER_VERSION,
            ),
        },
        "servers": [{ "url": "http://localhost", "description": "The host's name means nothing." }],
        "tags": tags(),
        "paths": paths(),
        "components": { "schemas": schemas(), "responses": responses() },
    })
}

fn tags() -> Value {
    json!([
        { "name": "instance", "description": "The instance and its life." },
        { "name": "machine", "description": "What the guest boots, and on what." },
        { "name": "drives", "description": "Disks and persistent memory." },
        { "name": "network", "description": "Network cards and sockets." },
        { "name": "memory", "description": "Memory that comes and goes." },
        { "name": "metadata", "description": "What the guest can ask about itself." },
        { "name": "metrics", "description": "Logs and metrics." },
        { "name": "snapshots", "description": "Snapshots, to and from files." },
    ])
}

/// `PUT /actions Stop` in its parts.
fn parts(request: Request) -> (String, &'static str, Option<&'static str>) {
    let mut words = request.name().split(' ');
    let method = words.next().unwrap().to_lowercase();
    (method, words.next().unwrap(), words.next())
}

fn paths() -> Value {
    let mut paths: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    for &request in Request::ALL {
        let (method, path, variant) = parts(request);
        let item = paths.entry(path).or_default();
        let states = states(request);
        let described = item
            .entry(method.clone())
            .or_insert_with(|| described(&method, path, &operation(request)));
        match variant {
            None => described["x-mote-states"] = states,
            Some(variant) => described["x-mote-states"][variant] = states,
        }
    }
    // Clients that are older than the path without an end.
    let mut vsock = paths["/vsock"].clone();
    vsock["put"]["operationId"] = "put_vsock_by_id".into();
    vsock["put"]["deprecated"] = true.into();
    vsock["put"]["parameters"] = json!([{
        "name": "vsock_id", "in": "path", "required": true, "schema": { "type": "string", "minLength": 1 },
        "description": "Says nothing.",
    }]);
    paths.insert("/vsock/{vsock_id}", vsock);
    json!(paths)
}

fn states(request: Request) -> Value {
    State::ALL
        .map(|state| (state.to_string(), request.legal(state).cell().into()))
        .into_iter()
        .collect::<Map<String, Value>>()
        .into()
}

fn described(method: &str, path: &str, operation: &Operation) -> Value {
    let words: Vec<&str> = path
        .split(['/', '-', '.'])
        .filter(|word| !word.is_empty() && !word.starts_with('{'))
        .collect();
    let name = if words.is_empty() {
        "instance".into()
    } else {
        words.join("_")
    };
    let mut described = json!({
        "operationId": format!("{method}_{name}"),
        "tags": [operation.tag],
        "summary": operation.summary,
    });
    if !operation.description.is_empty() {
        described["description"] = operation.description.into();
    }
    if operation.is_extension {
        described["x-mote-extension"] = true.into();
    }
    if let Some((_, id)) = path.split_once('{') {
        described["parameters"] = json!([{
            "name": id.trim_end_matches('}'), "in": "path", "required": true,
            "schema": { "type": "string", "pattern": ID }, "example": "root",
            "description": "The resource's name: letters, digits and underscores.",
        }]);
    }
    let body = |schema: Value, required: bool| json!({ "required": required, "content": { "application/json": { "schema": schema } } });
    match operation.body {
        Body::None => {}
        Body::Object(name) => described["requestBody"] = body(reference(name), true),
        Body::Optional(name) => described["requestBody"] = body(reference(name), false),
        Body::Any => described["requestBody"] = body(json!({}), true),
        Body::Ignored => described["requestBody"] = body(json!({}), false),
    }
    described["responses"] = answers(operation);
    described
}

fn answers(operation: &Operation) -> Value {
    let json = |schema: Value| json!({ "application/json": { "schema": schema } });
    let (status, mut success) = match operation.success {
        Success::Empty => ("204", json!({ "description": "Done." })),
        Success::Object(name) => (
            "200",
            json!({ "description": operation.summary, "content": json(reference(name)) }),
        ),
        Success::Any => (
            "200",
            json!({ "description": operation.summary, "content": json(json!({})) }),
        ),
        Success::Text(kind) => (
            "200",
            json!({ "description": operation.summary, "content": { kind: { "schema": { "type": "string" } } } }),
        ),
        Success::Upgrade => (
            "101",
            json!({
                "description": "The connection is the console's.",
                "headers": { "Mote-Backlog": {
                    "description": "How many of the first bytes that come were printed before.",
                    "required": true,
                    "schema": { "type": "integer", "minimum": 0 },
                } },
            }),
        ),
    };
    if matches!(
        operation.body,
        Body::Object(
            "MachineConfig" | "MachineConfigPatch" | "MmdsConfig" | "SnapshotLoad" | "Vsock"
        )
    ) {
        success["headers"] = deprecation();
    }
    let mut answers = Map::new();
    answers.insert(status.into(), success);
    for (name, status, _) in FAULTS {
        let reference = format!("#/components/responses/{name}");
        answers.insert(status.into(), json!({ "$ref": reference }));
    }
    answers.into()
}

fn deprecation() -> Value {
    json!({ "Deprecation": {
        "description": "Something was asked for that Firecracker deprecates.",
        "schema": { "type": "string", "const": "true" },
    } })
}

fn responses() -> Value {
    FAULTS
        .into_iter()
        .map(|(name, status, description)| {
            let mut response = json!({
                "description": description,
                "content": { "application/json": { "schema": reference("Fault") } },
            });
            if status == "400" {
                response["headers"] = deprecation();
            }
            (name.into(), response)
        })
        .collect::<Map<String, Value>>()
        .into()
}

fn reference(schema: &str) -> Value {
    json!({ "$ref": format!("{SCHEMAS}{schema}") })
}

/// Schemas of all types: of those that are sent, as they are read; of the others, as they are written.
fn schemas() -> Value {
    let mut schemas = definitions(Contract::Serialize, |schemas| {
        schemas.subschema_for::<types::InstanceInfo>();
        schemas.subschema_for::<types::Version>();
        schemas.subschema_for::<types::VmConfig>();
        schemas.subschema_for::<types::BalloonStatistics>();
        schemas.subschema_for::<types::HintingStatus>();
        schemas.subschema_for::<types::MemoryHotplugStatus>();
        schemas.subschema_for::<types::ForkedGuests>();
    });
    schemas.extend(definitions(Contract::Deserialize, |schemas| {
        schemas.subschema_for::<types::Action>();
        schemas.subschema_for::<types::VmPatch>();
        schemas.subschema_for::<types::ConsolePatch>();
        schemas.subschema_for::<types::BootSource>();
        schemas.subschema_for::<types::MachineConfig>();
        schemas.subschema_for::<types::MachineConfigPatch>();
        schemas.subschema_for::<types::CpuConfig>();
        schemas.subschema_for::<types::Drive>();
        schemas.subschema_for::<types::DrivePatch>();
        schemas.subschema_for::<types::NetworkInterface>();
        schemas.subschema_for::<types::NetworkInterfacePatch>();
        schemas.subschema_for::<types::Pmem>();
        schemas.subschema_for::<types::PmemPatch>();
        schemas.subschema_for::<types::Vsock>();
        schemas.subschema_for::<types::Balloon>();
        schemas.subschema_for::<types::BalloonPatch>();
        schemas.subschema_for::<types::BalloonStatisticsPatch>();
        schemas.subschema_for::<types::HintingStart>();
        schemas.subschema_for::<types::Entropy>();
        schemas.subschema_for::<types::Serial>();
        schemas.subschema_for::<types::MemoryHotplug>();
        schemas.subschema_for::<types::MemoryHotplugPatch>();
        schemas.subschema_for::<types::Logger>();
        schemas.subschema_for::<types::Metrics>();
        schemas.subschema_for::<types::MmdsConfig>();
        schemas.subschema_for::<types::SnapshotCreate>();
        schemas.subschema_for::<types::SnapshotLoad>();
        schemas.subschema_for::<types::Fork>();
    }));
    for schema in schemas.values_mut() {
        polish(schema);
    }
    schemas.insert(
        "Fault".into(),
        json!({
            "description": "Why a request was not carried out.",
            "type": "object",
            "properties": { "fault_message": { "type": "string" } },
            "required": ["fault_message"],
            "additionalProperties": false,
        }),
    );
    for (name, field, constraint) in constraints() {
        let schema = &mut schemas[name];
        let schema = match field {
            "" => schema,
            _ => schema["properties"]
                .get_mut(field)
                .unwrap_or_else(|| panic!("{name} has no {field}")),
        };
        let schema = schema.as_object_mut().unwrap();
        for (key, value) in constraint.as_object().unwrap() {
            match value {
                Value::Null => schema.remove(key),
                _ => schema.insert(key.clone(), value.clone()),
            };
        }
    }
    schemas.into()
}

fn definitions(contract: Contract, add: fn(&mut SchemaGenerator)) -> Map<String, Value> {
    let mut generator = SchemaSettings::draft2020_12()
        .with(|settings| {
            settings.contract = contract;
            settings.definitions_path = "/components/schemas".into();
        })
        .into_generator();
    add(&mut generator);
    generator.take_definitions(true)
}

/// Turns what is made of Rust into what is made for readers of a schema.
fn polish(schema: &mut Value) {
    match schema {
        Value::Array(schemas) => schemas.iter_mut().for_each(polish),
        Value::Object(schema) => {
            schema.values_mut().for_each(polish);
            join_variants(schema);
            if schema.get("default") == Some(&Value::Null) {
                schema.remove("default");
            }
            let max = match schema.get("format").and_then(Value::as_str) {
                Some("uint32") => Some(u64::from(u32::MAX)),
                Some("uint64") => Some(u64::MAX),
                _ => None,
            };
            if let Some(max) = max {
                schema.insert("maximum".into(), max.into());
            }
            describe(schema);
        }
        _ => {}
    }
}

/// Names that are each a schema, with what they mean: a list of them.
fn join_variants(schema: &mut Map<String, Value>) {
    let Some(variants) = schema.get("oneOf").and_then(Value::as_array) else {
        return;
    };
    let mut meaning = schema["description"].as_str().unwrap().to_owned();
    let mut names = Vec::new();
    let mut added = Vec::new();
    for variant in variants {
        let name = variant["const"].clone();
        let text = variant["description"].as_str().unwrap();
        meaning += &format!(" {name}: {text}").replace('"', "`");
        if variant.get("x-mote-extension").is_some() {
            added.push(name.clone());
        }
        names.push(name);
    }
    schema.remove("oneOf");
    schema.insert("type".into(), "string".into());
    schema.insert("enum".into(), names.into());
    schema.insert("description".into(), meaning.into());
    if !added.is_empty() {
        schema.insert("x-mote-extension-values".into(), added.into());
    }
}

/// Reads what comments say, and takes out what is for readers of the code.
fn describe(schema: &mut Map<String, Value>) {
    let Some(text) = schema.get("description").and_then(Value::as_str) else {
        return;
    };
    let is_extension = text.contains("An extension");
    let is_deprecated = text.contains("Deprecated");
    let text = text
        .replace(" An extension.", "")
        .replace("[`", "`")
        .replace("`]", "`")
        .replace("MemoryHotplug::", "")
        .replace("Version::", "")
        .replace('\n', " ");
    schema.insert("description".into(), text.into());
    if is_extension {
        schema.insert("x-mote-extension".into(), true.into());
    }
    if is_deprecated {
        schema.insert("deprecated".into(), true.into());
    }
}
