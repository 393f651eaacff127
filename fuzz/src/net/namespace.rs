//! A network of this process's own, in which there is nothing but the loopback interface: whatever a
//! fuzzer's guest wants of the world, it gets nowhere.

use std::io;
use std::sync::Once;

/// To be called before the first socket is made, and before there are threads.
pub(super) fn enter() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        cut_off().expect("Cannot be cut off from the host's network, so nothing is run");
        // Pings of anyone, and no addresses that wait for a minute.
        let _ = std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0");
        let _ = std::fs::write("/proc/sys/net/ipv4/tcp_max_tw_buckets", "0");
    });
}

fn cut_off() -> io::Result<()> {
    // SAFETY: takes flags, and there is one thread only.
    let done = unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0
        // SAFETY: the same, for who is not root.
        || unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET) } == 0;
    if !done {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: takes numbers.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    // SAFETY: integers and arrays of them.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: reads an ifreq, which lives during the call.
    if unsafe { libc::ioctl(socket, libc::SIOCSIFFLAGS, &raw const request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is ours.
    unsafe { libc::close(socket) };
    Ok(())
}
