//! The description of the API, in OpenAPI 3.1.

#[cfg(test)]
pub(crate) mod schemas;

/// JSON, as answered by `GET /openapi.json`.
pub const DESCRIPTION: &str = include_str!("../openapi.json");
#[cfg(test)]
mod tests {
    #[test]
    fn x() {
        let g = schemars::generate::SchemaSettings::draft2020_12()
            .with(|s| s.contract = schemars::generate::Contract::Serialize)
            .into_generator();
        let s = g.into_root_schema_for::<crate::types::VmConfig>();
        println!("{}", serde_json::to_string_pretty(&s).unwrap());
        let g = schemars::generate::SchemaSettings::draft2020_12().into_generator();
        let s = g.into_root_schema_for::<crate::types::Drive>();
        println!("{}", serde_json::to_string_pretty(&s).unwrap());
    }
}
