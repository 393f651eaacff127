//! Threads, descriptors and crowds: one test, as it counts what belongs to the whole process.

#[path = "server/support.rs"]
#[expect(dead_code, reason = "shared with the other tests")]
mod support;

use std::fs;
use std::os::unix::net::UnixStream;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::{Client, Fixture, until};

/// More than any machine serves at a time.
const CROWD: u64 = 10_000;

fn count(folder: &str) -> usize {
    fs::read_dir(folder).expect("a folder of /proc").count()
}

fn descriptors() -> usize {
    count("/proc/self/fd")
}

fn threads() -> usize {
    count("/proc/self/task")
}

fn names() -> Vec<String> {
    let tasks = fs::read_dir("/proc/self/task").expect("the threads");
    tasks
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok())
        .map(|name| name.trim_end().to_owned())
        .collect()
}

/// Whether a signal reaches the thread of this name.
fn is_blocked(thread: &str, signal: u32) -> bool {
    let tasks = fs::read_dir("/proc/self/task").expect("the threads");
    let status = tasks
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("status")).ok())
        .find(|status| status.starts_with(&format!("Name:\t{thread}\n")))
        .expect("the thread");
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigBlk:\t"));
    let mask = u64::from_str_radix(mask.expect("a mask"), 16).expect("a number");
    mask & (1 << (signal - 1)) != 0
}

#[test]
fn a_server_is_one_thread_and_leaves_nothing() {
    // The test's own monitor has a thread that ends with its fixture.
    let before = (descriptors(), threads());
    let leaves_nothing = || until(|| (descriptors(), threads()) == before);

    let mut fixture = Fixture::with(|settings| settings.thread_name = "fc_api".to_owned());
    fixture.check();
    until(|| threads() == before.1 + 2);
    assert!(names().contains(&"fc_api".to_owned()), "{:?}", names());
    // SIGTERM, SIGINT, SIGCHLD, SIGPIPE and a real-time signal; but not SIGSEGV.
    for signal in [15, 2, 17, 13, 40] {
        assert!(is_blocked("fc_api", signal), "{signal}");
    }
    assert!(!is_blocked("fc_api", 11));

    let clients: Vec<Client> = (0..100).map(|_| fixture.client()).collect();
    fixture.check();
    drop(clients);
    fixture.stop();
    drop(fixture);
    leaves_nothing();

    crowd();
    leaves_nothing();
    starvation();
    leaves_nothing();
}

/// Far more clients than there may be.
fn crowd() {
    let limit = getrlimit(Resource::Nofile);
    let maximum = limit.maximum.unwrap_or(u64::MAX);
    let crowd = CROWD.min(maximum.saturating_sub(2000));
    assert!(crowd > 1000, "too few descriptors for this test: {maximum}");
    set_limit(limit.maximum);
    let fixture = Fixture::new();
    let mut served = fixture.client();
    served.get("/");
    assert_eq!(served.answer().status, 200);

    let clients: Vec<UnixStream> = (0..crowd)
        .map(|_| UnixStream::connect(&fixture.path).expect("a connection"))
        .collect();
    // Those that came first are served, and nobody else costs anything.
    served.get("/");
    assert_eq!(served.answer().status, 200);
    until(|| descriptors() < clients.len() + 1024 + 100);
    drop(clients);
    until(|| {
        let mut client = fixture.client();
        client.get("/");
        client.answer().status == 200
    });
    set_limit(limit.current);
}

/// No descriptors left.
fn starvation() {
    let limit = getrlimit(Resource::Nofile);
    let fixture = Fixture::new();
    let mut served = fixture.client();
    served.get("/");
    assert_eq!(served.answer().status, 200);

    let mut waiting = fixture.client();
    waiting.get("/");
    assert_eq!(waiting.answer().status, 200);
    // Sockets for two clients are made while there may be some, and connected when there may not.
    let unconnected: Vec<_> = (0..2)
        .map(|_| {
            rustix::net::socket(
                rustix::net::AddressFamily::UNIX,
                rustix::net::SocketType::STREAM,
                None,
            )
            .expect("a socket")
        })
        .collect();
    let address = rustix::net::SocketAddrUnix::new(&fixture.path).expect("an address");
    set_limit(Some(3));
    for socket in &unconnected {
        rustix::net::connect(socket, &address).expect("a place in the queue");
    }
    for _ in 0..100 {
        served.get("/");
        assert_eq!(served.answer().status, 200);
    }
    set_limit(limit.current);
    // They are accepted when it is possible again.
    for socket in unconnected {
        let mut client = Client::from(UnixStream::from(socket));
        client.get("/");
        assert_eq!(client.answer().status, 200);
    }
}

fn set_limit(current: Option<u64>) {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current, maximum }).expect("a limit");
}
