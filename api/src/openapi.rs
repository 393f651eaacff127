//! The description of the API, in OpenAPI 3.1.
//!
//! It is checked in, and a test makes it anew of the types, of the state table and of what `operations` and
//! `constraints` add, and compares. To write it: `UPDATE=1 cargo test -p api openapi`.

#[cfg(test)]
mod constraints;
#[cfg(test)]
mod generate;
#[cfg(test)]
mod operations;
#[cfg(test)]
pub(crate) mod schemas;

/// JSON, as answered by `GET /openapi.json`.
pub const DESCRIPTION: &str = include_str!("../openapi.json");
