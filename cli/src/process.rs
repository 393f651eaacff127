//! What a monitor needs of its process.
#![expect(unsafe_code, reason = "signal dispositions and resource limits")]

/// Sets it up, before there are threads.
pub(crate) fn set_up() {
    // A disk image that may not grow further is an I/O error of the guest, not the end of mote.
    outlive_file_limit();
    raise_descriptor_limit();
}

/// Makes an error of it that a file may not grow further.
pub(crate) fn outlive_file_limit() {
    // SAFETY: no handler is installed.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Connections of a user network and of vsock are descriptors: as many as are allowed at all. The
/// lower, soft limit is for programs that use select(2).
fn raise_descriptor_limit() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: both calls only access the structure.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            // Where it fails there are fewer connections.
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}
