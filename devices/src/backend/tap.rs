//! Taps: network interfaces of the host whose other end is a file (Linux,
//! Documentation/networking/tuntap.rst).
//!
//! A tap that the user has made is opened and left as it was found, but for its MTU where another one is
//! asked for. One that mote makes is gone when its last file is closed, however the process ends.
#![expect(unsafe_code, reason = "readv, writev and ioctls have no safe wrapper")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use libc::{c_int, c_short, c_uint, ifreq, iovec};
use smallvec::SmallVec;
use thiserror::Error;
use vm_memory::VolatileSlice;

use super::interface::{Interface, InterfaceAddress, Ioctl, Name};
use crate::virtio::net::backend::{HEADER_LEN, NetBackend, Offloads, Support};

const TUN: &str = "/dev/net/tun";
/// What a tap that mote makes is called; the kernel fills a number in.
const NEW_NAME: &str = "mote%d";
/// Pieces of memory that the kernel takes at once.
const MAX_PIECES: usize = libc::UIO_MAXIOV as usize;
/// Flag of a tap with several queues, in its `tun_flags`.
const MULTI_QUEUE: u32 = libc::IFF_MULTI_QUEUE as u32;
/// Flag of a tap, and not a tun.
const TAP: u32 = libc::IFF_TAP as u32;

// SAFETY: these take an ifreq, of which they use name and flags, or an int (linux/if_tun.h).
const SET_IFF: Ioctl<ifreq> = unsafe { Ioctl::new(libc::TUNSETIFF) };
// SAFETY: as above.
const SET_QUEUE: Ioctl<ifreq> = unsafe { Ioctl::new(libc::TUNSETQUEUE) };
// SAFETY: as above.
const SET_HEADER_LEN: Ioctl<c_int> = unsafe { Ioctl::new(libc::TUNSETVNETHDRSZ) };

/// Why there is no tap.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// No interface can have this name.
    #[error(
        "'{name}' cannot be the name of a network interface: it has 1 to 15 letters and digits"
    )]
    Name {
        /// The name.
        name: String,
    },
    /// The host has no taps.
    #[error("There is no {TUN}: load the kernel's module with `modprobe tun`")]
    NoTun,
    /// Its device may not be opened.
    #[error("Cannot open {TUN}: the user needs permission to read and write it")]
    OpenTun {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is none.
    #[error(
        "There is no network interface {name}: make it with \
         `ip tuntap add dev {name} mode tap user $USER`, or let mote make one with tap alone"
    )]
    NoSuchTap {
        /// Its name.
        name: String,
    },
    /// It is something else.
    #[error("Network interface {name} is no tap")]
    NoTap {
        /// Its name.
        name: String,
    },
    /// Someone has opened it.
    #[error("Tap {name} is in use: another machine or program has opened it")]
    Busy {
        /// Its name.
        name: String,
    },
    /// It has one queue.
    #[error(
        "Tap {name} has one queue and not {queues}: make it with \
         `ip tuntap add dev {name} mode tap multi_queue`"
    )]
    OneQueue {
        /// Its name.
        name: String,
        /// How many were wanted.
        queues: usize,
    },
    /// It belongs to someone else.
    #[error(
        "Tap {name} belongs to another user: \
         make it with `ip tuntap add dev {name} mode tap user $USER`, or start mote as root"
    )]
    Permission {
        /// Its name.
        name: String,
    },
    /// Only root makes taps.
    #[error(
        "Only root can make a tap: have root make one with \
         `ip tuntap add dev tap0 mode tap user $USER` and give its name, or use the user network"
    )]
    CreatePermission,
    /// Its MTU is another one.
    #[error(
        "Tap {name} has an MTU of {mtu} and not {wanted}: `ip link set dev {name} mtu {wanted}`"
    )]
    Mtu {
        /// Its name.
        name: String,
        /// Its MTU.
        mtu: c_int,
        /// What was wanted.
        wanted: u16,
        /// Why it could not be changed.
        #[source]
        source: io::Error,
    },
    /// The kernel does not want it to have this address.
    #[error("Cannot give tap {name} the address {address}")]
    Address {
        /// Its name.
        name: String,
        /// The address.
        address: InterfaceAddress,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Anything else.
    #[error("Cannot set up tap {name}: {what}")]
    Setup {
        /// Its name.
        name: String,
        /// What was done.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// Which tap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TapSource {
    /// The one of this name, which is there.
    Existing(String),
    /// A new one, which is gone with the process.
    New {
        /// Its address at the host's side.
        address: Option<InterfaceAddress>,
    },
}

/// A tap to be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TapConfig {
    /// Which.
    pub source: TapSource,
    /// Its queues, at least one.
    pub queues: usize,
    /// Its MTU; as it is if None.
    pub mtu: Option<u16>,
}

/// An open tap.
#[derive(Debug)]
pub struct Tap {
    /// Its name.
    pub name: String,
    /// Its MTU in bytes.
    pub mtu: u16,
    /// Its queues: as many as were wanted.
    pub queues: Vec<TapQueue>,
}

impl Tap {
    /// Opens a tap, or makes one.
    pub fn open(config: &TapConfig) -> Result<Self, Error> {
        let queues = config.queues.max(1);
        let (name, files, multi_queue) = match &config.source {
            TapSource::Existing(name) => open_existing(name, queues)?,
            TapSource::New { .. } => create(queues)?,
        };
        let setup = |what| {
            let name = name.clone();
            move |source| Error::Setup { name, what, source }
        };
        let first = &files[0];
        let mut header_len = HEADER_LEN as c_int;
        SET_HEADER_LEN
            .call(first, &mut header_len)
            .map_err(setup("header size"))?;
        let has_uso = probe_offloads(first).map_err(setup("offloads"))?;

        let interface = Interface::new(Name::new(&name).ok_or(Error::Name { name: name.clone() })?);
        let mut mtu = interface.mtu().map_err(setup("MTU"))?;
        if let Some(wanted) = config.mtu.filter(|wanted| c_int::from(*wanted) != mtu) {
            interface.set_mtu(wanted).map_err(|source| Error::Mtu {
                name: name.clone(),
                mtu,
                wanted,
                source,
            })?;
            mtu = wanted.into();
        }
        match &config.source {
            TapSource::Existing(_) => {
                if !interface.is_up().map_err(setup("flags"))? {
                    log::warn!("Tap {name} is down: `ip link set dev {name} up`");
                }
            }
            TapSource::New { address } => {
                if let Some(address) = *address {
                    interface
                        .set_address(address)
                        .map_err(|source| Error::Address {
                            name: name.clone(),
                            address,
                            source,
                        })?;
                }
                interface.bring_up().map_err(setup("bring it up"))?;
            }
        }
        let queues = files.into_iter().map(|file| TapQueue {
            file,
            has_uso,
            multi_queue,
        });
        Ok(Self {
            queues: queues.collect(),
            // A tap has no larger one.
            mtu: u16::try_from(mtu).unwrap_or(u16::MAX),
            name,
        })
    }
}

/// The tap `name`, with its files, and whether it was made for several queues.
fn open_existing(name: &str, queues: usize) -> Result<(String, Vec<File>, bool), Error> {
    let owned = || name.to_owned();
    // A percent sign would have the kernel make up a name.
    let kernel_name = Name::new(name).filter(|_| !name.contains('%'));
    let kernel_name = kernel_name.ok_or_else(|| Error::Name { name: owned() })?;
    let interface = Interface::new(kernel_name);
    // To open one that is not there would make it.
    let index = interface
        .index()
        .map_err(|_| Error::NoSuchTap { name: owned() })?;
    let flags = flags_of(name);
    if flags.is_some_and(|flags| flags & TAP == 0) {
        return Err(Error::NoTap { name: owned() });
    }
    let multi_queue = match flags {
        Some(flags) => flags & MULTI_QUEUE != 0,
        None => queues > 1,
    };
    if queues > 1 && !multi_queue {
        let name = owned();
        return Err(Error::OneQueue { name, queues });
    }
    let files = (0..queues).map(|_| {
        attach(kernel_name, multi_queue)
            .map(|(_, file)| file)
            .map_err(|error| match error {
                Attach::Open(error) => error,
                Attach::Refused(source) => match source.raw_os_error() {
                    Some(libc::EBUSY) => Error::Busy { name: owned() },
                    Some(libc::EPERM) => Error::Permission { name: owned() },
                    Some(libc::EINVAL) => Error::NoTap { name: owned() },
                    _ => Error::Setup {
                        name: owned(),
                        what: "open it",
                        source,
                    },
                },
            })
    });
    let files = files.collect::<Result<Vec<_>, _>>()?;
    // It was taken away meanwhile, and made anew.
    if interface.index().ok() != Some(index) {
        return Err(Error::NoSuchTap { name: owned() });
    }
    Ok((owned(), files, multi_queue))
}

/// A new tap, with its files.
fn create(queues: usize) -> Result<(String, Vec<File>, bool), Error> {
    let refused = |error| match error {
        Attach::Open(error) => error,
        Attach::Refused(source) if source.raw_os_error() == Some(libc::EPERM) => {
            Error::CreatePermission
        }
        Attach::Refused(source) => Error::Setup {
            name: NEW_NAME.to_owned(),
            what: "make it",
            source,
        },
    };
    let multi_queue = queues > 1;
    let pattern = Name::new(NEW_NAME).ok_or_else(|| Error::Name {
        name: NEW_NAME.to_owned(),
    })?;
    let (name, first) = attach(pattern, multi_queue).map_err(refused)?;
    let mut files = vec![first];
    let kernel_name = Name::new(&name).ok_or_else(|| Error::Name { name: name.clone() })?;
    for _ in 1..queues {
        files.push(attach(kernel_name, multi_queue).map_err(refused)?.1);
    }
    Ok((name, files, multi_queue))
}

/// Why a queue cannot be had.
enum Attach {
    Open(Error),
    Refused(io::Error),
}

/// Opens a queue of the tap `name`, and says what it is really called.
fn attach(name: Name, multi_queue: bool) -> Result<(String, File), Attach> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(TUN)
        .map_err(|source| {
            Attach::Open(match source.raw_os_error() {
                Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => Error::NoTun,
                _ => Error::OpenTun { source },
            })
        })?;
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    if multi_queue {
        flags |= libc::IFF_MULTI_QUEUE;
    }
    let mut request = name.request();
    request.ifr_ifru.ifru_flags = flags as c_short;
    SET_IFF.call(&file, &mut request).map_err(Attach::Refused)?;
    Ok((Name::of(&request), file))
}

/// The flags of a tun or tap. None if sysfs does not tell.
fn flags_of(name: &str) -> Option<u32> {
    let class = std::path::Path::new("/sys/class/net").join(name);
    match std::fs::read_to_string(class.join("tun_flags")) {
        Ok(flags) => u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16).ok(),
        // Another kind of interface has none.
        Err(_) if class.exists() => Some(0),
        Err(_) => None,
    }
}

/// Whether the kernel cuts UDP (Linux 6.2). Leaves the offloads off.
fn probe_offloads(file: &File) -> io::Result<bool> {
    let has_uso = set_offloads(file, offload_flags(Offloads::ALL)).is_ok();
    set_offloads(file, 0)?;
    Ok(has_uso)
}

fn offload_flags(offloads: Offloads) -> c_uint {
    let Offloads {
        csum,
        tso4,
        tso6,
        ecn,
        uso,
    } = offloads;
    let flag = |wanted: bool, flag: c_uint| if wanted { flag } else { 0 };
    flag(csum, libc::TUN_F_CSUM)
        | flag(tso4, libc::TUN_F_TSO4)
        | flag(tso6, libc::TUN_F_TSO6)
        | flag(ecn, libc::TUN_F_TSO_ECN)
        // The kernel has them together or not at all.
        | flag(uso, libc::TUN_F_USO4 | libc::TUN_F_USO6)
}

fn set_offloads(file: &File, flags: c_uint) -> io::Result<()> {
    // SAFETY: the argument is a number; the file is open as long as it is borrowed.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, flags) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// A queue of a tap.
#[derive(Debug)]
pub struct TapQueue {
    file: File,
    has_uso: bool,
    multi_queue: bool,
}

impl NetBackend for TapQueue {
    fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    fn has_work(&self) -> bool {
        false
    }

    fn work(&mut self) {}

    fn support(&self) -> Support {
        let offloads = Offloads {
            uso: self.has_uso,
            ..Offloads::ALL
        };
        Support {
            from_guest: offloads,
            to_guest: offloads,
        }
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        set_offloads(&self.file, offload_flags(offloads))
    }

    fn set_enabled(&mut self, enabled: bool) -> io::Result<()> {
        if !self.multi_queue {
            return Ok(());
        }
        let flag = if enabled {
            libc::IFF_ATTACH_QUEUE
        } else {
            libc::IFF_DETACH_QUEUE
        };
        let mut request = Name::NONE.request();
        request.ifr_ifru.ifru_flags = flag as c_short;
        SET_QUEUE.call(&self.file, &mut request)
    }

    fn send(&mut self, frame: &[VolatileSlice<'_>]) -> io::Result<()> {
        let mut iovecs = IoVecs::new();
        fill(&mut iovecs, frame)?;
        // SAFETY: each element is guest memory that `frame` borrows; the kernel only reads it. What the
        // guest does to it meanwhile is the guest's own frame.
        let sent = unsafe { libc::writev(self.fd(), iovecs.as_ptr(), iovecs.len() as c_int) };
        if sent < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    fn flush(&mut self) -> bool {
        false
    }

    fn recv(&mut self, room: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let mut iovecs = IoVecs::new();
        fill(&mut iovecs, room)?;
        // SAFETY: each element is memory that `room` borrows and that may change at any time: nobody
        // has references into it. The kernel writes no more than it has room for.
        let received = unsafe { libc::readv(self.fd(), iovecs.as_ptr(), iovecs.len() as c_int) };
        usize::try_from(received).map_err(|_| io::Error::last_os_error())
    }
}

/// Pieces of memory as the kernel takes them.
type IoVecs = SmallVec<[iovec; 64]>;

/// Fills in `pieces`, for as long as they are borrowed.
fn fill(iovecs: &mut IoVecs, pieces: &[VolatileSlice<'_>]) -> io::Result<()> {
    if pieces.len() > MAX_PIECES {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    iovecs.extend(pieces.iter().map(|piece| iovec {
        iov_base: piece.ptr_guard_mut().as_ptr().cast(),
        iov_len: piece.len(),
    }));
    Ok(())
}

#[cfg(test)]
#[path = "tap_test.rs"]
mod tests;
