//! MSI-X vectors: an eventfd and a GSI for each. KVM listens to the eventfd while the guest wants to be
//! interrupted, so that an interrupt does not pass through a vCPU thread.

use std::io;
use std::sync::Arc;

use devices::interrupt::MsiMessage;
use devices::pci::msix::MsiVectors;
use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::interrupts::Interrupts;

/// Why a function cannot have its vectors.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// KVM's table is full.
    #[error("There are no interrupts left for the device's {count} vectors")]
    NoInterrupts {
        /// How many it needs.
        count: usize,
    },
    /// The host refused an eventfd.
    #[error("Cannot make an eventfd")]
    EventFd(#[source] io::Error),
}

/// The vectors of a function.
pub(crate) struct Vectors {
    interrupts: Arc<Interrupts>,
    /// GSI and eventfd of each.
    vectors: Vec<(u32, Arc<EventFd>)>,
}

impl Vectors {
    /// `count` vectors that deliver nothing yet.
    pub(crate) fn new(interrupts: &Arc<Interrupts>, count: usize) -> Result<Self, Error> {
        let mut vectors = Self {
            interrupts: Arc::clone(interrupts),
            vectors: Vec::with_capacity(count),
        };
        for _ in 0..count {
            match vectors.reserve(count) {
                Ok(vector) => vectors.vectors.push(vector),
                Err(error) => {
                    vectors.release();
                    return Err(error);
                }
            }
        }
        Ok(vectors)
    }

    fn reserve(&self, count: usize) -> Result<(u32, Arc<EventFd>), Error> {
        let fd = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(Error::EventFd)?;
        let fd = Arc::new(fd);
        let gsi = self.interrupts.reserve(Arc::clone(&fd));
        Ok((gsi.ok_or(Error::NoInterrupts { count })?, fd))
    }
}

impl MsiVectors for Vectors {
    fn set(&self, vector: usize, message: Option<MsiMessage>) {
        if let Some((gsi, _)) = self.vectors.get(vector) {
            self.interrupts.set(*gsi, message);
        }
    }

    fn fd(&self, vector: usize) -> Option<&Arc<EventFd>> {
        self.vectors.get(vector).map(|(_, fd)| fd)
    }

    fn release(&self) {
        for (gsi, _) in &self.vectors {
            self.interrupts.release(*gsi);
        }
    }
}
