//! The description of the API, in OpenAPI 3.1.

/// JSON, as answered by `GET /openapi.json`.
pub const DESCRIPTION: &str = include_str!("../openapi.json");
