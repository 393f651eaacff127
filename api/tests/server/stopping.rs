//! How a server ends.

use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use api::Command;

use crate::support::{Fixture, LONG};

#[test]
fn what_is_in_flight_is_answered_and_the_rest_is_closed() {
    let mut fixture = Fixture::new();
    fixture.monitor.hold(true);
    let mut idle = fixture.client();
    let mut kept = fixture.client();
    kept.get("/openapi.json");
    assert_eq!(kept.answer().status, 200);
    let mut half = fixture.client();
    half.send("PUT /mmds HTTP/1.1\r\nContent-Length: 10\r\n\r\n{");
    let mut pipelined = fixture.client();
    pipelined.get("/");
    pipelined.get("/");
    let mut waiting = fixture.client();
    waiting.get("/");
    // All of it has been read: a later client is served.
    let mut last = fixture.client();
    last.get("/openapi.json");
    assert_eq!(last.answer().status, 200);

    let server = fixture.server.take().expect("the server");
    let stopping = thread::spawn(move || server.stop(LONG));
    for client in [&mut idle, &mut kept, &mut half, &mut last] {
        client.expect_end();
    }
    // It accepts no more while it waits.
    assert!(UnixStream::connect(&fixture.path).is_err());
    assert!(!stopping.is_finished());
    fixture.monitor.hold(false);
    let answer = waiting.answer();
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("Connection"), Some("close"));
    waiting.expect_end();
    assert_eq!(pipelined.answer().status, 200);
    pipelined.expect_end();
    stopping.join().expect("the stop");
}

#[test]
fn its_time_is_bounded() {
    let mut fixture = Fixture::new();
    // One that does not read its answer, which is more than a socket holds.
    let mut deaf = fixture.client();
    deaf.get("/metrics");
    assert_eq!(fixture.monitor.next_done(), Command::GetMetrics);
    fixture.monitor.hold(true);
    let mut waiting = fixture.client();
    waiting.get("/");
    let mut last = fixture.client();
    last.get("/openapi.json");
    assert_eq!(last.answer().status, 200);
    // The monitor never answers, and this returns all the same.
    let server = fixture.server.take().expect("the server");
    server.stop(Duration::from_millis(50));
    waiting.expect_end();
    fixture.monitor.hold(false);
}

#[test]
fn a_handle_that_is_dropped_stops_the_server() {
    let mut fixture = Fixture::new();
    fixture.check();
    let mut idle = fixture.client();
    drop(fixture.server.take());
    idle.expect_end();
    assert!(UnixStream::connect(&fixture.path).is_err());
}
