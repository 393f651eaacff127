//! What devices stand on at the host's side.

pub mod interface;
pub mod tap;
pub mod user_backend;
pub mod user_net;
pub mod vhost_net;
