//! Start-up and density of virtual machines beside those of containers: what `mote bench` measures, and how it tells it.
//!
//! Reading order: `record` (what a measurement is: the JSON document that everything else makes or reads), `adapter` (how a runtime is
//! started), `run` (one start, watched from exec until nothing is left of it), `startup` and `density` (whole measurements), then what is made of a record:
//! `document` (a record from a file), `stats`, `summary`, `table`, `compare`, `plot`, `page`; and `live`, what is shown meanwhile.

pub mod adapter;
pub mod compare;
pub mod density;
pub mod document;
pub mod host;
pub mod live;
pub mod page;
pub mod plot;
pub mod record;
pub mod run;
pub mod schema;
pub mod session;
pub mod startup;
pub mod stats;
pub mod summary;
pub mod table;
pub mod waterfall;
pub mod workload;

#[cfg(test)]
mod sample;
