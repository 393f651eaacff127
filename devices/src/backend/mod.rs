//! What devices stand on at the host's side.

pub mod user_net;
