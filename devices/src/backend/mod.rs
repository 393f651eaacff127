//! What devices stand on: the host's files, terminals, networks and memory. Here is what needs unsafe
//! code, so that devices need none.

pub mod disk;
pub mod guest_ram;
pub(crate) mod host_fd;
pub mod interface;
pub mod log_file;
pub mod lost_pages;
pub mod pty;
pub mod tap;
pub mod user_backend;
pub mod user_net;
pub mod vhost_net;
pub(crate) mod written_by_devices;
