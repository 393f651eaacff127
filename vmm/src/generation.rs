//! The VM generation ID: what a guest knows by that it goes on from a state which another one may go on from as
//! well, and makes new randomness (Microsoft, "Virtual Machine Generation ID", August 2012).
//!
//! It is 16 random bytes in guest memory, at an address that ACPI tells ([`layout::GENERATION_ID_START`]): others at
//! each boot and each restore. After a restore the generic event device says so, before the guest runs: its
//! interrupt waits for the guest.

use std::io;

use arch::layout;
use devices::random::random;
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Why a guest has no new one.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The host has no randomness.
    #[error("Cannot make a VM generation ID")]
    Random(#[source] io::Error),
    /// Guest memory refused it.
    #[error("Cannot write the VM generation ID into guest memory")]
    Write(#[source] vm_memory::GuestMemoryError),
}

/// Gives the guest a new one.
pub(crate) fn renew(memory: &GuestMemoryMmap) -> Result<(), Error> {
    let id: [u8; 16] = random().map_err(Error::Random)?;
    memory
        .write_slice(&id, GuestAddress(layout::GENERATION_ID_START))
        .map_err(Error::Write)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_another_one() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let id = || -> [u8; 16] {
            renew(&memory).unwrap();
            memory
                .read_obj(GuestAddress(layout::GENERATION_ID_START))
                .unwrap()
        };
        assert_ne!(id(), id());
        let small = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        assert!(matches!(renew(&small), Err(Error::Write(_))));
    }
}
