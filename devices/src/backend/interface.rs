//! A network interface of the host: asking and telling the kernel about it (netdevice(7)).
#![expect(unsafe_code, reason = "ioctls have no safe wrapper")]

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::mem::{transmute, zeroed};
use std::net::IpAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::str::FromStr;

use libc::{c_char, c_int, c_short, ifreq, in6_ifreq, sockaddr_in};
use thiserror::Error;

/// An ioctl's number, as the C library has it.
pub(super) type Request = libc::Ioctl;

/// An address of an interface, with the length of its network's prefix: `ADDRESS/PREFIX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterfaceAddress {
    address: IpAddr,
    prefix: u8,
}

/// What is no [`InterfaceAddress`].
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("'{text}' is no address with a prefix, such as 172.16.0.1/24")]
pub struct AddressError {
    /// What was given.
    pub text: String,
}

impl FromStr for InterfaceAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let parse = || {
            let (address, prefix) = text.split_once('/')?;
            let address: IpAddr = address.parse().ok()?;
            let prefix = prefix
                .parse()
                .ok()
                .filter(|_| prefix.bytes().all(|digit| digit.is_ascii_digit()))?;
            let longest = if address.is_ipv4() { 32 } else { 128 };
            let fits = prefix <= longest && !address.is_unspecified() && !address.is_multicast();
            fits.then_some(Self { address, prefix })
        };
        parse().ok_or_else(|| AddressError {
            text: text.to_owned(),
        })
    }
}

impl fmt::Display for InterfaceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// The name of an interface, as the kernel takes it: up to 15 bytes.
#[derive(Clone, Copy)]
pub(super) struct Name([c_char; libc::IFNAMSIZ]);

impl Name {
    /// For requests about what a descriptor stands for.
    pub(super) const NONE: Self = Self([0; libc::IFNAMSIZ]);

    /// None if the kernel takes no such name.
    pub(super) fn new(name: &str) -> Option<Self> {
        let is_good = !name.is_empty()
            && name.len() < libc::IFNAMSIZ
            && !matches!(name, "." | "..")
            && name
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && !b"/:".contains(&byte));
        if !is_good {
            return None;
        }
        let mut bytes = [0; libc::IFNAMSIZ];
        for (to, from) in bytes.iter_mut().zip(name.bytes()) {
            *to = c_char::from_ne_bytes([from]);
        }
        Some(Self(bytes))
    }

    /// What the kernel has written to `ifr_name`.
    pub(super) fn of(request: &ifreq) -> String {
        let name = request.ifr_name.iter().take_while(|byte| **byte != 0);
        let name: Vec<u8> = name.map(|byte| byte.to_ne_bytes()[0]).collect();
        String::from_utf8_lossy(&name).into_owned()
    }

    /// A request about it.
    pub(super) fn request(&self) -> ifreq {
        // SAFETY: a plain C structure, for which all zeroes are a value.
        let mut request: ifreq = unsafe { zeroed() };
        request.ifr_name = self.0;
        request
    }
}

/// An ioctl whose argument is a `T` in memory.
pub(super) struct Ioctl<T>(Request, PhantomData<fn(&mut T)>);

impl<T> Ioctl<T> {
    /// The ioctl of this number.
    ///
    /// # Safety
    /// For any value of a `T`, and any descriptor, the kernel touches no memory but the `T` itself, and
    /// leaves a value in it.
    pub(super) const unsafe fn new(request: Request) -> Self {
        Self(request, PhantomData)
    }

    /// Its number.
    #[cfg(test)]
    pub(super) fn number(&self) -> u64 {
        #[allow(clippy::useless_conversion, reason = "with musl it is another type")]
        self.0.into()
    }

    /// Makes it.
    pub(super) fn call(&self, fd: &impl AsRawFd, argument: &mut T) -> io::Result<()> {
        let argument = std::ptr::from_mut(argument);
        // SAFETY: who made `self` saw to it that the kernel keeps to the argument, which is borrowed for
        // the call; so is the descriptor.
        let result = unsafe { libc::ioctl(fd.as_raw_fd(), self.0, argument) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

/// An ioctl about an interface (netdevice(7)).
const fn of_interface(request: libc::c_ulong) -> Ioctl<ifreq> {
    // SAFETY: those that are used here, all below, take an ifreq and have no pointers in it.
    unsafe { Ioctl::new(request as Request) }
}

const GET_INDEX: Ioctl<ifreq> = of_interface(libc::SIOCGIFINDEX);
const GET_MTU: Ioctl<ifreq> = of_interface(libc::SIOCGIFMTU);
const SET_MTU: Ioctl<ifreq> = of_interface(libc::SIOCSIFMTU);
const GET_FLAGS: Ioctl<ifreq> = of_interface(libc::SIOCGIFFLAGS);
const SET_FLAGS: Ioctl<ifreq> = of_interface(libc::SIOCSIFFLAGS);
const SET_ADDRESS: Ioctl<ifreq> = of_interface(libc::SIOCSIFADDR);
const SET_NETMASK: Ioctl<ifreq> = of_interface(libc::SIOCSIFNETMASK);
// SAFETY: on a socket of IPv6, which is what it is used with, it takes this structure (ipv6(7)); on one
// of IPv4 an ifreq, which is larger, so `request` pads it.
const SET_ADDRESS6: Ioctl<Padded6> = unsafe { Ioctl::new(libc::SIOCSIFADDR as Request) };

/// An in6_ifreq that is no smaller than an ifreq.
#[repr(C)]
struct Padded6 {
    request: in6_ifreq,
    padding: [u8; 16],
}

/// An interface, by its name. All that is asked here goes through sockets made for the purpose.
pub(super) struct Interface(Name);

impl Interface {
    pub(super) fn new(name: Name) -> Self {
        Self(name)
    }

    /// Its index. `ENODEV` if there is none of that name.
    pub(super) fn index(&self) -> io::Result<c_int> {
        let mut request = self.0.request();
        GET_INDEX.call(&socket(libc::AF_INET)?, &mut request)?;
        // SAFETY: the kernel has written this field.
        Ok(unsafe { request.ifr_ifru.ifru_ifindex })
    }

    /// Its MTU in bytes.
    pub(super) fn mtu(&self) -> io::Result<c_int> {
        let mut request = self.0.request();
        GET_MTU.call(&socket(libc::AF_INET)?, &mut request)?;
        // SAFETY: the kernel has written this field.
        Ok(unsafe { request.ifr_ifru.ifru_mtu })
    }

    pub(super) fn set_mtu(&self, mtu: u16) -> io::Result<()> {
        let mut request = self.0.request();
        request.ifr_ifru.ifru_mtu = mtu.into();
        SET_MTU.call(&socket(libc::AF_INET)?, &mut request)
    }

    fn flags(&self) -> io::Result<ifreq> {
        let mut request = self.0.request();
        GET_FLAGS.call(&socket(libc::AF_INET)?, &mut request)?;
        Ok(request)
    }

    /// Whether it is up.
    pub(super) fn is_up(&self) -> io::Result<bool> {
        let request = self.flags()?;
        // SAFETY: the kernel has written this field.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        Ok(flags & libc::IFF_UP as c_short != 0)
    }

    /// Brings it up.
    pub(super) fn bring_up(&self) -> io::Result<()> {
        let mut request = self.flags()?;
        // SAFETY: the kernel has written this field.
        let flags = unsafe { request.ifr_ifru.ifru_flags };
        request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as c_short;
        SET_FLAGS.call(&socket(libc::AF_INET)?, &mut request)
    }

    /// Gives it an address.
    pub(super) fn set_address(&self, address: InterfaceAddress) -> io::Result<()> {
        let InterfaceAddress { address, prefix } = address;
        match address {
            IpAddr::V4(address) => {
                let socket = socket(libc::AF_INET)?;
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
                let requests = [
                    (SET_ADDRESS, u32::from(address)),
                    // Not before there is an address; without, the network would be that of its class.
                    (SET_NETMASK, mask),
                ];
                for (ioctl, value) in requests {
                    let mut request = self.0.request();
                    // SAFETY: a plain C structure, for which all zeroes are a value.
                    let mut address: sockaddr_in = unsafe { zeroed() };
                    address.sin_family = libc::AF_INET as libc::sa_family_t;
                    address.sin_addr.s_addr = value.to_be();
                    // SAFETY: both are 16 bytes of plain data, which is what the C library has sockets'
                    // addresses cast for.
                    request.ifr_ifru.ifru_addr =
                        unsafe { transmute::<sockaddr_in, libc::sockaddr>(address) };
                    ioctl.call(&socket, &mut request)?;
                }
                Ok(())
            }
            IpAddr::V6(address) => {
                let mut request = Padded6 {
                    request: in6_ifreq {
                        ifr6_addr: libc::in6_addr {
                            s6_addr: address.octets(),
                        },
                        ifr6_prefixlen: prefix.into(),
                        ifr6_ifindex: self.index()?,
                    },
                    padding: [0; 16],
                };
                SET_ADDRESS6.call(&socket(libc::AF_INET6)?, &mut request)
            }
        }
    }
}

/// A socket to ask the kernel by.
fn socket(family: c_int) -> io::Result<OwnedFd> {
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::socket(family, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was just made, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        for text in ["172.16.0.1/24", "10.0.0.1/0", "10.0.0.1/32", "fd00::1/64"] {
            assert_eq!(text.parse::<InterfaceAddress>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "10.0.0.1",
            "10.0.0.1/",
            "10.0.0.1/33",
            "10.0.0.1/+1",
            "10.0.0/8",
            "::/64",
            "224.0.0.1/24",
            "fd00::1/129",
            "0.0.0.0/0",
            "x/1",
        ] {
            let text = text.to_owned();
            assert_eq!(text.parse::<InterfaceAddress>(), Err(AddressError { text }));
        }
    }

    #[test]
    fn names_are_those_that_the_kernel_takes() {
        assert!(Name::new("tap0").is_some());
        assert!(Name::new("fifteen-bytes-0").is_some());
        for name in [
            "",
            "sixteen-bytes-00",
            "a b",
            "a/b",
            "a:b",
            ".",
            "..",
            "ä",
            "a\n",
        ] {
            assert!(Name::new(name).is_none(), "{name}");
        }
    }

    #[test]
    fn tells_of_the_loopback() {
        let lo = Interface::new(Name::new("lo").unwrap());
        assert!(lo.index().unwrap() > 0);
        assert!(lo.mtu().unwrap() > 0);
        let none = Interface::new(Name::new("mote-none").unwrap());
        assert_eq!(none.index().unwrap_err().raw_os_error(), Some(libc::ENODEV));
    }
}
