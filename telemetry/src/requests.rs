//! Requests of the API, counted by what they ask for, and how long some take.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use api::command::Command;
use api::states::Request;
use api::types::VmState;

/// Requests of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// All.
    pub(crate) all: u64,
    /// Those that were refused, or failed.
    pub(crate) failed: u64,
}

#[derive(Default)]
struct Counter {
    all: AtomicU64,
    failed: AtomicU64,
}

/// How long the last request of a kind took, in microseconds; 0: there was none.
#[derive(Debug, Default)]
struct Last {
    /// From its arrival to its answer.
    api: AtomicU64,
    /// To carry it out.
    vmm: AtomicU64,
}

/// The counters. Any thread may count.
pub struct Requests {
    kinds: Vec<Counter>,
    /// Those whose method and path nobody knows.
    unknown: AtomicU64,
    deprecated: AtomicU64,
    pause: Last,
    resume: Last,
}

/// A request that was submitted: what it asks for, and when it came.
#[derive(Clone, Copy, Debug)]
pub struct Submitted {
    request: Request,
    at: Instant,
}

/// Method and path of a request, without what it asks for there.
pub(crate) fn name(request: Request) -> &'static str {
    let name = request.name();
    let path = name.find(' ').map_or(0, |space| space + 1);
    match name[path..].find(' ') {
        Some(end) => &name[..path + end],
        None => name,
    }
}

/// The first request of this method and path.
fn find(method: &str, path: &str) -> Option<Request> {
    let path = path.trim_matches('/');
    // Its last part may be anything.
    let path = match path.split_once('/') {
        Some(("vsock", _)) => "vsock",
        _ => path,
    };
    let is_it = |request: &&Request| {
        let Some((known_method, known_path)) = name(**request).split_once(" /") else {
            return false;
        };
        known_method == method && matches(known_path, path)
    };
    Request::ALL.iter().find(is_it).copied()
}

fn matches(known: &str, path: &str) -> bool {
    let (mut known, mut path) = (known.split('/'), path.split('/'));
    loop {
        match (known.next(), path.next()) {
            (None, None) => return true,
            (Some(known), Some(part)) if known == part || known.starts_with('{') => {}
            // An id that is missing is refused as that.
            (Some(known), None) if known.starts_with('{') => {}
            _ => return false,
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl Default for Requests {
    fn default() -> Self {
        Self {
            kinds: Request::ALL.iter().map(|_| Counter::default()).collect(),
            unknown: AtomicU64::new(0),
            deprecated: AtomicU64::new(0),
            pause: Last::default(),
            resume: Last::default(),
        }
    }
}

impl Requests {
    fn counter(&self, request: Request) -> &Counter {
        &self.kinds[request as usize]
    }

    /// A command was submitted.
    pub fn submitted(&self, command: &Command) -> Submitted {
        let request = Request::from(command);
        self.counter(request).all.fetch_add(1, Ordering::Relaxed);
        Submitted {
            request,
            at: Instant::now(),
        }
    }

    /// It was carried out, which began at `began`; or it failed.
    pub fn done(&self, submitted: Submitted, began: Instant, is_ok: bool) {
        let Submitted { request, at } = submitted;
        if !is_ok {
            self.counter(request).failed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let last = match request {
            Request::Pause => &self.pause,
            Request::Resume => &self.resume,
            _ => return,
        };
        last.api.store(micros(at.elapsed()), Ordering::Relaxed);
        last.vmm.store(micros(began.elapsed()), Ordering::Relaxed);
    }

    /// A request was refused before there was a command.
    pub fn refused(&self, method: &str, path: &str) {
        match find(method, path) {
            Some(request) => {
                let counter = self.counter(request);
                counter.all.fetch_add(1, Ordering::Relaxed);
                counter.failed.fetch_add(1, Ordering::Relaxed);
            }
            None => _ = self.unknown.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// A request asked for something that is deprecated.
    pub fn deprecated(&self) {
        self.deprecated.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn deprecated_count(&self) -> u64 {
        self.deprecated.load(Ordering::Relaxed)
    }

    pub(crate) fn unknown_count(&self) -> u64 {
        self.unknown.load(Ordering::Relaxed)
    }

    /// Of these kinds together.
    pub(crate) fn tally(&self, requests: &[Request]) -> Tally {
        let mut tally = Tally::default();
        for request in requests {
            let counter = self.counter(*request);
            tally.all += counter.all.load(Ordering::Relaxed);
            tally.failed += counter.failed.load(Ordering::Relaxed);
        }
        tally
    }

    /// By method and path.
    pub(crate) fn by_path(&self) -> Vec<(&'static str, Tally)> {
        let mut all: Vec<(&'static str, Tally)> = Vec::new();
        for request in Request::ALL {
            let tally = self.tally(&[*request]);
            match all.iter_mut().find(|(path, _)| *path == name(*request)) {
                Some((_, sum)) => {
                    sum.all += tally.all;
                    sum.failed += tally.failed;
                }
                None => all.push((name(*request), tally)),
            }
        }
        all
    }

    /// How long the last change to `state` took, in microseconds: with its way through the API, and without.
    pub(crate) fn took(&self, state: VmState) -> (u64, u64) {
        let last = match state {
            VmState::Paused => &self.pause,
            VmState::Resumed => &self.resume,
        };
        (
            last.api.load(Ordering::Relaxed),
            last.vmm.load(Ordering::Relaxed),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_have_a_counter_of_their_own() {
        for (index, request) in Request::ALL.iter().enumerate() {
            assert_eq!(*request as usize, index);
        }
    }

    #[test]
    fn a_request_without_a_command_is_found_by_its_path() {
        for (method, path, request) in [
            ("GET", "/", Some(Request::GetInstance)),
            ("PUT", "/drives/rootfs", Some(Request::PutDrive)),
            ("PUT", "//drives/", Some(Request::PutDrive)),
            (
                "PATCH",
                "/balloon/statistics",
                Some(Request::PatchBalloonStatistics),
            ),
            ("PUT", "/vsock/1", Some(Request::PutVsock)),
            ("PUT", "/actions", Some(Request::InstanceStart)),
            ("PUT", "/drives/a/b", None),
            ("PUT", "/nothing", None),
            ("POST", "/actions", None),
        ] {
            assert_eq!(find(method, path), request, "{method} {path}");
        }
        assert_eq!(name(Request::Stop), "PUT /actions");
        assert_eq!(name(Request::GetInstance), "GET /");
    }

    #[test]
    fn failures_count_among_all() {
        let requests = Requests::default();
        let submitted = requests.submitted(&Command::GetBalloon);
        requests.done(submitted, Instant::now(), false);
        requests.done(
            requests.submitted(&Command::GetBalloon),
            Instant::now(),
            true,
        );
        requests.refused("GET", "/balloon");
        requests.refused("GET", "/x");
        let balloon = Tally { all: 3, failed: 2 };
        assert_eq!(requests.tally(&[Request::GetBalloon]), balloon);
        assert!(requests.by_path().contains(&("GET /balloon", balloon)));
        assert_eq!(requests.unknown_count(), 1);
    }
}
