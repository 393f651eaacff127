//! The schemas that are published in docs/ are those of the types.

use std::path::Path;
use std::{env, fs};

use schemars::JsonSchema;

/// Compares docs/NAME.schema.json with the type's; with the variable WRITE_SCHEMAS set, writes it.
pub(crate) fn check<T: JsonSchema>(name: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../docs/{name}.schema.json"));
    let text = serde_json::to_string_pretty(&schemars::schema_for!(T)).unwrap() + "\n";
    if env::var_os("WRITE_SCHEMAS").is_some() {
        fs::write(&path, &text).unwrap();
    }
    let published = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        published == text,
        "{} is not that of the type: run WRITE_SCHEMAS=1 cargo test -p bench",
        path.display()
    );
}
