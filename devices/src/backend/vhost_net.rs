//! vhost-net: the host's kernel moves frames between a pair of rings and a tap by itself (Linux,
//! include/uapi/linux/vhost.h). The monitor's threads are not woken; neither limits nor counters of
//! ours are in the way.
//!
//! It is off unless asked for: it takes a module of the host's and permission to open a device that most
//! users have not, its thread is not accounted to the monitor before Linux 6.4, frames cannot be
//! looked at, and what it writes to guest memory shows in no log of dirty pages.
//!
//! Its own thread in the kernel reads and writes guest memory through the mappings of this process, so
//! the descriptor must be closed, or its backends taken away, before guest memory is unmapped: stopping
//! does that, and the device holds guest memory until it has stopped.
#![expect(unsafe_code, reason = "ioctls have no safe wrapper")]

use std::fs::{File, OpenOptions};
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use thiserror::Error;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::interface::{Ioctl, Request};
use crate::virtio::net::backend::{KernelError, KernelRings};
use crate::virtio::queue::Queue;

const PATH: &str = "/dev/vhost-net";
/// The feature by which vhost would make up the header itself: here the tap does.
const NET_F_VIRTIO_NET_HDR: u64 = 1 << 27;
/// The one by which it would keep a log of what it writes.
const F_LOG_ALL: u64 = 1 << 26;
/// What the transport offers whatever the kernel knows: indirect descriptors, event index, virtio 1.
const NEEDED: u64 = 1 << 28 | 1 << 29 | 1 << 32;
/// Its queues.
const RX: u32 = 0;
const TX: u32 = 1;
/// Most regions of guest memory.
const MAX_REGIONS: usize = 64;

const GET_FEATURES: Ioctl<u64> = of_vhost(READ, 0x00);
const SET_FEATURES: Ioctl<u64> = of_vhost(WRITE, 0x00);
const SET_OWNER: Ioctl<()> = of_vhost(NEITHER, 0x01);
// SAFETY: the kernel reads the header, and as many regions behind it as that says: no more than there
// are, as `MemoryTable::new` sees to.
const SET_MEM_TABLE: Ioctl<MemoryTable> =
    unsafe { Ioctl::new(number(WRITE, 0x03, size_of::<MemoryHeader>())) };
const SET_VRING_NUM: Ioctl<VringState> = of_vhost(WRITE, 0x10);
const SET_VRING_ADDR: Ioctl<VringAddress> = of_vhost(WRITE, 0x11);
const SET_VRING_BASE: Ioctl<VringState> = of_vhost(WRITE, 0x12);
const GET_VRING_BASE: Ioctl<VringState> = of_vhost(READ | WRITE, 0x12);
const SET_VRING_KICK: Ioctl<VringFile> = of_vhost(WRITE, 0x20);
const SET_VRING_CALL: Ioctl<VringFile> = of_vhost(WRITE, 0x21);
const NET_SET_BACKEND: Ioctl<VringFile> = of_vhost(WRITE, 0x30);

/// Which way an ioctl's argument goes, seen from the process.
const NEITHER: Request = 0;
const WRITE: Request = 1;
const READ: Request = 2;

/// The number of a vhost ioctl: direction, size of its argument, type, which one.
const fn number(direction: Request, which: Request, size: usize) -> Request {
    const TYPE: Request = 0xaf;
    direction << 30 | (size as Request) << 16 | TYPE << 8 | which
}

const fn of_vhost<T>(direction: Request, which: Request) -> Ioctl<T> {
    // SAFETY: the number has the size of the argument in it, so the kernel knows none with another size;
    // the only one of those here whose argument is larger than that is made above. VRING_ADDR's are
    // addresses at which vhost, once started, accesses what the driver said are its rings.
    unsafe { Ioctl::new(number(direction, which, size_of::<T>())) }
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct VringState {
    index: u32,
    num: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct VringAddress {
    index: u32,
    flags: u32,
    desc: u64,
    used: u64,
    avail: u64,
    log: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct VringFile {
    index: u32,
    fd: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct MemoryHeader {
    regions: u32,
    padding: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct MemoryRegion {
    gpa: u64,
    size: u64,
    address: u64,
    flags: u64,
}

#[repr(C)]
struct MemoryTable {
    header: MemoryHeader,
    regions: [MemoryRegion; MAX_REGIONS],
}

impl MemoryTable {
    /// Guest memory, with where it is in this process.
    fn new(memory: &GuestMemoryMmap) -> Result<Self, Error> {
        let count = memory.num_regions();
        let wrong = || Error::Regions { regions: count };
        if count > MAX_REGIONS {
            return Err(wrong());
        }
        let mut table = Self {
            header: MemoryHeader {
                regions: u32::try_from(count).map_err(|_| wrong())?,
                padding: 0,
            },
            regions: [MemoryRegion::default(); MAX_REGIONS],
        };
        for (entry, region) in table.regions.iter_mut().zip(memory.iter()) {
            *entry = MemoryRegion {
                gpa: region.start_addr().0,
                size: region.len(),
                address: region.as_ptr() as u64,
                flags: 0,
            };
        }
        Ok(table)
    }
}

/// Why the kernel does not serve the rings.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The host has none.
    #[error(
        "There is no {PATH}: load the kernel's module with `modprobe vhost_net`, or leave vhost off (vhost=off)"
    )]
    Missing,
    /// It may not be opened.
    #[error(
        "Cannot open {PATH}: the user needs permission to read and write it, or leave vhost off (vhost=off)"
    )]
    Open {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is too old.
    #[error("The host's vhost-net lacks features {missing:#x}: leave vhost off (vhost=off)")]
    Features {
        /// Bits.
        missing: u64,
    },
    /// It refuses something.
    #[error("vhost-net refuses to {what}")]
    Refused {
        /// What.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// More pieces than it takes.
    #[error("Guest memory of {regions} regions is too much for vhost-net")]
    Regions {
        /// How many.
        regions: usize,
    },
    /// Not in one piece.
    #[error("The rings of queue {index} are not in one region of guest memory")]
    Rings {
        /// The queue.
        index: u16,
    },
}

/// An instance of vhost-net: it serves one pair of rings.
#[derive(Debug)]
pub struct VhostNet {
    file: File,
    features: u64,
    /// Written to where the driver wants no interrupts; nobody reads it.
    unheard: Arc<EventFd>,
}

impl VhostNet {
    /// Opens an instance.
    pub fn open() -> Result<Self, Error> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(PATH)
            .map_err(|source| match source.raw_os_error() {
                Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => Error::Missing,
                _ => Error::Open { source },
            })?;
        let mut features: u64 = 0;
        call(&file, &GET_FEATURES, &mut features, "tell its features")?;
        let missing = NEEDED & !features;
        if missing != 0 {
            return Err(Error::Features { missing });
        }
        call(&file, &SET_OWNER, &mut (), "have an owner")?;
        let unheard =
            EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(|source| Error::Refused {
                what: "be heard",
                source,
            })?;
        Ok(Self {
            file,
            features: features & !(NET_F_VIRTIO_NET_HDR | F_LOG_ALL),
            unheard: Arc::new(unheard),
        })
    }

    fn call<T>(&self, ioctl: &Ioctl<T>, argument: &mut T, what: &'static str) -> Result<(), Error> {
        call(&self.file, ioctl, argument, what)
    }

    fn set_ring(&self, index: u32, queue: &Queue, memory: &GuestMemoryMmap) -> Result<(), Error> {
        let size = u32::from(queue.size());
        self.call(
            &SET_VRING_NUM,
            &mut VringState { index, num: size },
            "take a ring's size",
        )?;
        let (next_avail, _) = queue.position();
        let mut base = VringState {
            index,
            num: next_avail.into(),
        };
        self.call(&SET_VRING_BASE, &mut base, "take a ring's index")?;
        let size = u64::from(size);
        let [desc, avail, used] = queue.addresses();
        // As vhost goes through this process's addresses, each has to be in one piece there.
        let host = |gpa: u64, len: u64| {
            let slice = memory.get_slice(GuestAddress(gpa), usize::try_from(len).ok()?);
            Some(slice.ok()?.ptr_guard_mut().as_ptr() as u64)
        };
        let address = || {
            Some(VringAddress {
                index,
                flags: 0,
                desc: host(desc, 16 * size)?,
                used: host(used, 6 + 8 * size)?,
                avail: host(avail, 6 + 2 * size)?,
                log: 0,
            })
        };
        let mut address = address().ok_or(Error::Rings {
            index: queue.index(),
        })?;
        self.call(&SET_VRING_ADDR, &mut address, "take a ring's addresses")?;
        let call_fd = queue.interrupt().used_fd(queue.index());
        let call_fd = call_fd.unwrap_or_else(|| Arc::clone(&self.unheard));
        self.set_file(&SET_VRING_CALL, index, call_fd.as_raw_fd(), "interrupt")?;
        self.set_file(
            &SET_VRING_KICK,
            index,
            queue.kick().as_raw_fd(),
            "be kicked",
        )
    }

    fn set_file(
        &self,
        ioctl: &Ioctl<VringFile>,
        index: u32,
        fd: RawFd,
        what: &'static str,
    ) -> Result<(), Error> {
        self.call(ioctl, &mut VringFile { index, fd }, what)
    }

    /// Sets all up, and has it go.
    fn start_with(
        &self,
        features: u64,
        memory: &GuestMemoryMmap,
        queues: [&Queue; 2],
        fd: RawFd,
    ) -> Result<(), Error> {
        let mut features = features & self.features;
        self.call(&SET_FEATURES, &mut features, "take the features")?;
        let mut table = MemoryTable::new(memory)?;
        self.call(&SET_MEM_TABLE, &mut table, "take guest memory")?;
        for (index, queue) in [RX, TX].into_iter().zip(queues) {
            self.set_ring(index, queue, memory)?;
        }
        for index in [RX, TX] {
            self.set_file(&NET_SET_BACKEND, index, fd, "take the tap")?;
        }
        Ok(())
    }

    /// Takes the backend away from both rings; the kernel waits for what is in flight.
    fn take_backends(&self) -> Result<(), Error> {
        for index in [RX, TX] {
            self.set_file(&NET_SET_BACKEND, index, -1, "let the tap go")?;
        }
        Ok(())
    }
}

fn call<T>(
    file: &File,
    ioctl: &Ioctl<T>,
    argument: &mut T,
    what: &'static str,
) -> Result<(), Error> {
    ioctl
        .call(file, argument)
        .map_err(|source| Error::Refused { what, source })
}

impl KernelRings for VhostNet {
    fn features(&self) -> u64 {
        self.features
    }

    fn start(
        &mut self,
        features: u64,
        memory: &GuestMemoryMmap,
        rx: &Queue,
        tx: &Queue,
        fd: RawFd,
    ) -> Result<(), KernelError> {
        if let Err(error) = self.start_with(features, memory, [rx, tx], fd) {
            // One of the two may have started.
            let _ = self.take_backends();
            return Err(error.into());
        }
        // What was kicked before is in the eventfds, and what is in the rings is looked at anyway.
        Ok(())
    }

    fn stop(&mut self) -> Result<[u16; 2], KernelError> {
        self.take_backends()?;
        let mut next = [0; 2];
        for (index, next) in [RX, TX].into_iter().zip(&mut next) {
            let mut state = VringState { index, num: 0 };
            self.call(&GET_VRING_BASE, &mut state, "tell a ring's index")?;
            // The upper half is for packed rings.
            *next = u16::try_from(state.num & 0xffff)?;
        }
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_kernel() {
        assert_eq!(GET_FEATURES.number(), 0x8008_af00);
        assert_eq!(SET_FEATURES.number(), 0x4008_af00);
        assert_eq!(SET_OWNER.number(), 0xaf01);
        assert_eq!(SET_MEM_TABLE.number(), 0x4008_af03);
        assert_eq!(SET_VRING_NUM.number(), 0x4008_af10);
        assert_eq!(SET_VRING_ADDR.number(), 0x4028_af11);
        assert_eq!(SET_VRING_BASE.number(), 0x4008_af12);
        assert_eq!(GET_VRING_BASE.number(), 0xc008_af12);
        assert_eq!(SET_VRING_KICK.number(), 0x4008_af20);
        assert_eq!(SET_VRING_CALL.number(), 0x4008_af21);
        assert_eq!(NET_SET_BACKEND.number(), 0x4008_af30);
    }

    #[test]
    fn a_host_without_says_what_to_do() {
        if std::path::Path::new(PATH).exists() {
            eprintln!("skipped: this host has {PATH}");
            return;
        }
        let error = VhostNet::open().unwrap_err();
        assert!(matches!(error, Error::Missing));
        assert!(error.to_string().contains("modprobe vhost_net"));
    }
}
