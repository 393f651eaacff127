//! Exit statuses, as docker and timeout(1) have them.

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The guest powered off or restarted.
    Success,
    /// `--timeout` passed.
    Timeout,
    /// An error of mote or its host.
    MoteError,
    /// The guest crashed.
    GuestCrashed,
    /// A signal ended it.
    Signal(i32),
    /// A status that clients of another monitor expect.
    Other(i32),
}

impl Status {
    /// The process's exit status.
    pub(crate) fn code(self) -> i32 {
        match self {
            Self::Success => 0,
            Self::Timeout => 124,
            Self::MoteError => 125,
            Self::GuestCrashed => 134,
            Self::Signal(number) => 128 + number,
            Self::Other(number) => number,
        }
    }
}

/// Ends the process.
pub fn exit(status: Status) -> ! {
    std::process::exit(status.code())
}
