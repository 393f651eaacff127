//! What devices stand on: the host's files, terminals and memory. Here is what needs unsafe code, so
//! that devices need none.

pub mod guest_ram;
pub(crate) mod host_fd;
pub mod log_file;
pub mod pty;
