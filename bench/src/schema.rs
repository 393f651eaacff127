//! Schemas of what is written and read: docs/bench-record.schema.json, docs/bench-comparison.schema.json and docs/bench-adapter.schema.json.
//!
//! They are made of the types, and a test compares. To write them: `UPDATE=1 cargo test -p bench`.

use schemars::Schema;
use schemars::generate::SchemaSettings;

use crate::adapter::Adapter;
use crate::compare::Comparison;
use crate::record::Record;

/// Of a [`Record`].
#[must_use]
pub fn record() -> Schema {
    of::<Record>("Record of a measurement by mote bench")
}

/// Of a [`Comparison`].
#[must_use]
pub fn comparison() -> Schema {
    of::<Comparison>("Comparison of two measurements by mote bench report")
}

/// Of an [`Adapter`]: what is in its file, as JSON.
#[must_use]
pub fn adapter() -> Schema {
    // It is only read: what has a default may be left out.
    let generator = SchemaSettings::draft2020_12()
        .for_deserialize()
        .into_generator();
    titled(
        generator.into_root_schema_for::<Adapter>(),
        "Adapter of a runtime for mote bench",
    )
}

fn of<T: schemars::JsonSchema>(title: &str) -> Schema {
    let generator = SchemaSettings::draft2020_12()
        .for_serialize()
        .into_generator();
    titled(generator.into_root_schema_for::<T>(), title)
}

fn titled(mut schema: Schema, title: &str) -> Schema {
    schema.insert("title".into(), title.into());
    schema
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::compare::compare;
    use crate::sample;

    fn is_published(name: &str, schema: &Schema) {
        let text = serde_json::to_string_pretty(schema).unwrap() + "\n";
        sample::golden(&format!("../docs/{name}"), &text);
    }

    #[test]
    fn published_schemas_are_up_to_date() {
        is_published("bench-record.schema.json", &record());
        is_published("bench-comparison.schema.json", &comparison());
        is_published("bench-adapter.schema.json", &adapter());
    }

    /// What is wrong with a document.
    fn faults(schema: &Schema, document: &Value) -> Vec<String> {
        let schema = jsonschema::validator_for(schema.as_value()).unwrap();
        let faults = schema.iter_errors(document);
        faults.map(|fault| fault.to_string()).collect()
    }

    #[test]
    fn records_are_as_published() {
        let mut emulated = sample::starts();
        emulated.host.emulated = Some("QEMU".into());
        emulated.host.kvm = None;
        for good in [sample::starts(), sample::crowd(), emulated] {
            let good = serde_json::to_value(good).unwrap();
            assert_eq!(faults(&record(), &good), [""; 0]);
            for (pointer, value) in [
                ("/host/cpus", json!("8")),
                ("/host/cpus", json!(-1)),
                ("/measured", json!({"other": {}})),
                ("/format", json!("mote-bench/2")),
                ("/host", json!({})),
            ] {
                let mut bad = good.clone();
                *bad.pointer_mut(pointer).unwrap() = value;
                assert_ne!(faults(&record(), &bad), [""; 0], "{pointer}");
            }
        }
    }

    #[test]
    fn comparisons_are_as_published() {
        for record in [sample::starts(), sample::crowd()] {
            let mut other = record.clone();
            other.host.cpus = 2;
            let found = compare(&record, &other).unwrap();
            let found = serde_json::to_value(found).unwrap();
            assert_eq!(faults(&comparison(), &found), [""; 0]);
        }
    }
}
