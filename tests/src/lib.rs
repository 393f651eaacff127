//! What the cases share: tiny guests, the `mote` binary as a process, guests that are talked to, disks,
//! networks, terminals.
//!
//! A case is a function in `tests/cases`; it fails by panicking. Nothing here asserts how long
//! something takes: deadlines only end what hangs.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

pub mod bench;
pub mod ctl;
pub mod description;
pub mod disk;
pub mod driven;
pub mod executable;
pub mod guest;
pub mod live;
pub mod measure;
pub mod monitor;
pub mod network;
pub mod openmetrics;
pub mod page_server;
pub mod process;
pub mod python;
pub mod sandbox;
pub mod service;
pub mod terminal;
pub mod times;
pub mod tiny;
pub mod vsock;

use std::time::Duration;

/// After so long a case takes it that something hangs. Emulated hosts are slow.
pub const DEADLINE: Duration = Duration::from_secs(600);
