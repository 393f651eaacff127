//! Start-up and density of virtual machines beside those of containers: what `mote bench` measures, and how it tells it.
//!
//! Reading order: `record` (what a measurement is: the JSON document that everything else makes or reads), `adapter` (how a runtime is
//! started), `run` (one start, watched from exec until nothing is left of it), `startup` and `density` (whole measurements), then what is made of a record:
//! `stats`, `summary`, `table`, `compare`, `plot`, `page`.

pub mod record;
pub mod waterfall;
