//! Snapshots: a machine as files, from which another process makes it again.
//!
//! Reading order: `state` (what there is of a machine besides its memory), `format` (the state file), `memory`
//! (the memory file), `uffd` (memory that another process serves), `host` (where it ran), `images` (other files that the guest uses), `overlays` (what else was written to disks), `places`
//! (which device and which memory is where), `file` (how files come to be whole or not at all), `save` (from a machine to
//! files), `load` (back). How memory is written while the guest goes on: `pages` (which there are), `writer` (what
//! writes them), `fork` (the process that does), `collapse` (why that is quick); `history` and `tracking` (what changed
//! since), `scan` (how the host is asked). `working_set` (what of it is mapped before it is asked for), `restored` (how it went), `hints` (where both are). `directory` (both files in one place), `merge` (a whole snapshot and what changed since).
//!
//! A snapshot is two files. What is in them is not trusted: `format` checks sizes and checksums, each device and
//! vCPU checks its own state, and `memory` checks that the memory file has what the state says.

pub mod directory;
pub mod format;
pub mod host;
pub mod images;
pub mod load;
pub mod memory;
pub mod merge;
pub(crate) mod overlays;
mod places;
pub mod restored;
pub mod save;
pub mod state;
pub mod working_set;

mod collapse;
mod file;
mod fork;
mod hints;
pub(crate) mod history;
mod pages;
mod scan;
#[cfg(test)]
mod test_support;
mod tracking;
mod tripwires;
mod uffd;
mod writer;

pub use hints::Pages;
pub use uffd::Error as UffdError;
pub(crate) use uffd::{Ending, Served};

use std::time::{SystemTime, UNIX_EPOCH};

pub(crate) fn nanoseconds_since_1970() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod golden_test;
