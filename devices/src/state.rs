//! What all states of devices have in common.
//!
//! A state is plain values, without descriptors and without guest memory: what a device has become by
//! its guest's doing, as opposed to its configuration. It is taken of a device that stands still, and given
//! to a new one of the same configuration. It may come from a file that anyone has written: whoever
//! takes it checks it like what a guest writes.

use std::io;

use thiserror::Error;

/// Why a state cannot be that of this device.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BadState {
    /// It is that of another kind of device.
    #[error("It is the state of another kind of device")]
    Kind,
    /// There are more or less of something than the device has.
    #[error("It has {found} {what}, the device has {expected}")]
    Count {
        /// What.
        what: &'static str,
        /// How many the state has.
        found: usize,
        /// How many there are to be.
        expected: usize,
    },
    /// A value that a device cannot have.
    #[error("{what} cannot be {value:#x}")]
    Value {
        /// What.
        what: &'static str,
        /// The value.
        value: u64,
    },
    /// The host refused what it stands for.
    #[error("The host refused {what}")]
    Host {
        /// What.
        what: &'static str,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

impl BadState {
    /// Unless there are as many as there have to be.
    pub(crate) fn check_count(
        what: &'static str,
        found: usize,
        expected: usize,
    ) -> Result<(), Self> {
        Self::check(found == expected, what, found, expected)
    }

    /// If there are more than there can be.
    pub(crate) fn check_limit(what: &'static str, found: usize, limit: usize) -> Result<(), Self> {
        Self::check(found <= limit, what, found, limit)
    }

    fn check(
        is_right: bool,
        what: &'static str,
        found: usize,
        expected: usize,
    ) -> Result<(), Self> {
        if is_right {
            return Ok(());
        }
        Err(Self::Count {
            what,
            found,
            expected,
        })
    }
}
