//! The server and the client, over real sockets, with a monitor that does what the test wants.

mod answers;
mod console;
mod events;
mod hostile;
mod stopping;
mod support;
