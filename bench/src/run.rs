//! One start: a process in a control group of its own, watched from before it is made until nothing is left of it.

pub mod cgroup;
pub mod marked;
mod output;
mod requests;
mod spawn;
mod trace;
mod watch;

pub use output::Expected;
pub use requests::HttpRequest;
pub use spawn::{Program, spawn};
pub use trace::{Seen, Tracer};
pub use watch::{Goal, Trouble, Watched};
pub(crate) use watch::{is_ready, ms};
