//! The rings of a network card, as ethtool's -g and -G have them.
#![expect(unsafe_code, reason = "rustix has no call for it")]

use std::io;

use rustix::ioctl::{Updater, ioctl};
use rustix::net::{AddressFamily, SocketType, socket};

use crate::arguments::{Arguments, Failure};

// Linux, include/uapi/linux/sockios.h and ethtool.h.
const SIOCETHTOOL: rustix::ioctl::Opcode = 0x8946;
const ETHTOOL_GRINGPARAM: u32 = 0x10;
const ETHTOOL_SRINGPARAM: u32 = 0x11;
const NAME_SIZE: usize = 16;

/// `struct ethtool_ringparam`.
#[repr(C)]
#[derive(Default)]
struct Rings {
    command: u32,
    rx_max: u32,
    rx_mini_max: u32,
    rx_jumbo_max: u32,
    tx_max: u32,
    rx: u32,
    rx_mini: u32,
    rx_jumbo: u32,
    tx: u32,
}

/// `struct ifreq`: a name, and a union of which this is one part.
#[repr(C)]
struct Request {
    name: [u8; NAME_SIZE],
    data: *mut Rings,
    rest: [u64; 2],
}

fn call(name: &str, command: u32, rings: &mut Rings) -> Result<(), Failure> {
    let usage = || Failure::Usage(format!("'{name}' is no interface"));
    let mut request = Request {
        name: [0; NAME_SIZE],
        data: rings,
        rest: [0; 2],
    };
    // With a zero behind it.
    if name.len() >= NAME_SIZE {
        return Err(usage());
    }
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    rings.command = command;
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None).map_err(io::Error::from)?;
    // SAFETY: the kernel reads and writes a whole `ifreq`, and the whole structure for these commands
    // that it leads to; both live until after the call.
    unsafe { ioctl(&socket, Updater::<SIOCETHTOOL, Request>::new(&mut request)) }
        .map_err(io::Error::from)?;
    Ok(())
}

pub(crate) fn run(mut arguments: Arguments) -> Result<(), Failure> {
    let name = arguments.next("the interface")?;
    let mut rings = Rings::default();
    call(&name, ETHTOOL_GRINGPARAM, &mut rings)?;
    let (rx, tx) = (
        arguments.number("rx", rings.rx)?,
        arguments.number("tx", rings.tx)?,
    );
    arguments.end()?;
    if (rx, tx) != (rings.rx, rings.tx) {
        (rings.rx, rings.tx) = (rx, tx);
        call(&name, ETHTOOL_SRINGPARAM, &mut rings)?;
        call(&name, ETHTOOL_GRINGPARAM, &mut rings)?;
    }
    println!("RING {} {}", rings.rx, rings.tx);
    if (rings.rx, rings.tx) == (rx, tx) {
        Ok(())
    } else {
        Err(Failure::Check(format!("not {rx} and {tx}")))
    }
}
