//! A network of this process's own, in which there is nothing but the loopback interface: whatever a
//! fuzzer's guest wants of the world, it gets nowhere.

use std::cell::OnceCell;
use std::io;

/// To be called before the first socket is made. It is for this thread, and those that it starts.
pub(super) fn enter() {
    thread_local! {
        static ENTERED: OnceCell<()> = const { OnceCell::new() };
    }
    let make = || {
        cut_off().expect("Cannot be cut off from the host's network, so nothing is run");
        // Pings of anyone, no addresses that wait for a minute, and buffers that are full soon.
        for (name, value) in [
            ("ping_group_range", "0 0"),
            ("tcp_max_tw_buckets", "0"),
            ("tcp_wmem", "4096 8192 16384"),
            ("tcp_rmem", "4096 8192 16384"),
        ] {
            let _ = std::fs::write(format!("/proc/sys/net/ipv4/{name}"), value);
        }
    };
    ENTERED.with(|entered| *entered.get_or_init(make));
}

fn cut_off() -> io::Result<()> {
    // SAFETY: takes flags, and there is one thread only.
    let done = unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0
        // SAFETY: the same, for who is not root.
        || unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET) } == 0;
    if !done {
        return Err(io::Error::last_os_error());
    }
    let name = |name: &[u8]| {
        // SAFETY: integers and arrays of them.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name) {
            *to = *from as libc::c_char;
        }
        request
    };
    let mut up = name(b"lo");
    up.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    control(libc::AF_INET, libc::SIOCSIFFLAGS, &up)?;
    // Addresses that are neither the guest's nor the loopback interface's own.
    let mut second = name(b"lo:1");
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: libc::in_addr {
            s_addr: u32::from_ne_bytes([192, 0, 2, 1]),
        },
        sin_zero: [0; 8],
    };
    // SAFETY: both are plain, and of one size.
    second.ifr_ifru.ifru_addr =
        unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(address) };
    control(libc::AF_INET, libc::SIOCSIFADDR, &second)?;
    let mut third = In6Request {
        address: [0; 16],
        prefix: 128,
        interface: 1,
    };
    third.address[..2].copy_from_slice(&[0xfd, 0x99]);
    third.address[15] = 1;
    // A host without IPv6 has none of it.
    let _ = control(libc::AF_INET6, libc::SIOCSIFADDR, &third);
    Ok(())
}

/// `struct in6_ifreq`.
#[repr(C)]
struct In6Request {
    address: [u8; 16],
    prefix: u32,
    interface: i32,
}

/// `request` is what this request takes.
fn control<T>(family: i32, number: libc::Ioctl, request: &T) -> io::Result<()> {
    // SAFETY: takes numbers.
    let socket = unsafe { libc::socket(family, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    // SAFETY: only reads the structure that the callers have made for this, which lives meanwhile.
    let result = match unsafe { libc::ioctl(socket, number, std::ptr::from_ref(request)) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    // SAFETY: it is ours, or no descriptor at all.
    unsafe { libc::close(socket) };
    result
}
