//! What devices stand on at the host's side.

pub mod interface;
pub mod tap;
pub mod vhost_net;
