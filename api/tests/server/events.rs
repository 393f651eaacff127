//! `GET /events`.

use std::thread;

use api::client;

use crate::support::{Client, Fixture, LONG, until};

/// A client whose stream has begun.
fn listen(fixture: &Fixture) -> Client {
    let mut client = fixture.client();
    client.get("/events");
    let head = client.head();
    assert_eq!(head.status, 200);
    assert_eq!(head.header("Content-Type"), Some("application/x-ndjson"));
    assert_eq!(head.header("Transfer-Encoding"), Some("chunked"));
    client
}

/// The next chunk, as text.
fn chunk(client: &mut Client) -> String {
    let length = usize::from_str_radix(client.line().trim_end(), 16).expect("a length");
    let data = client.read(length);
    assert_eq!(client.read(2), b"\r\n");
    String::from_utf8(data).expect("text")
}

#[test]
fn events_come_as_they_are_published() {
    let mut fixture = Fixture::new();
    let mut clients = [listen(&fixture), listen(&fixture), listen(&fixture)];
    for number in 0..3 {
        let line = format!("{{\"n\":{number}}}");
        fixture.monitor.events.publish(line.as_bytes());
        for client in &mut clients {
            assert_eq!(chunk(client), format!("{line}\n"));
        }
    }
    // The last one is seen though the server is about to stop.
    fixture.monitor.events.publish(b"{\"last\":true}");
    fixture.stop();
    for client in &mut clients {
        assert_eq!(chunk(client), "{\"last\":true}\n");
        assert_eq!(chunk(client), "");
        client.expect_end();
    }
}

#[test]
fn a_slow_listener_is_told_what_it_missed_and_holds_nobody_up() {
    let fixture = Fixture::new();
    let mut client = listen(&fixture);
    // Far more than the socket and the ring hold.
    let line = format!("{{\"text\":\"{}\"}}", "x".repeat(1000));
    let mut published = 0_u64;
    for _ in 0..20_000 {
        fixture.monitor.events.publish(line.as_bytes());
        published += 1;
    }
    fixture.monitor.events.publish(b"{\"end\":true}");
    let mut seen = 0;
    let mut lost = 0;
    'all: loop {
        for found in chunk(&mut client).lines() {
            let value: serde_json::Value = serde_json::from_str(found).expect("a whole line");
            if value.get("end").is_some() {
                break 'all;
            }
            match value.get("event").and_then(|event| event.as_str()) {
                Some("lost") => lost += value["lines"].as_u64().expect("a number"),
                _ => seen += 1,
            }
        }
    }
    assert!(lost > 0);
    assert_eq!(seen + lost, published);
}

#[test]
fn a_listener_that_sends_no_more_still_listens() {
    let fixture = Fixture::new();
    let mut client = listen(&fixture);
    client.half_close();
    thread::sleep(std::time::Duration::from_millis(100));
    fixture.monitor.events.publish(b"{}");
    assert_eq!(chunk(&mut client), "{}\n");
}

#[test]
fn a_listener_that_goes_leaves_its_place() {
    let fixture = Fixture::with(|settings| settings.max_connections = 1);
    drop(listen(&fixture));
    until(|| {
        let mut client = fixture.client();
        client.get("/");
        client.answer().status == 200
    });
}

#[test]
fn the_client_of_the_crate_listens() {
    let mut fixture = Fixture::new();
    let mut lines = client::stream(&fixture.path, "/events", LONG).expect("a stream");
    let next = |lines: &mut client::Lines| lines.next().expect("a line").expect("text");
    fixture.monitor.events.publish(b"{\"n\":1}");
    assert_eq!(next(&mut lines), "{\"n\":1}");
    fixture.monitor.events.publish(b"{\"n\":2}");
    fixture.monitor.events.publish(b"{\"n\":3}");
    assert_eq!(next(&mut lines), "{\"n\":2}");
    assert_eq!(next(&mut lines), "{\"n\":3}");
    fixture.stop();
    assert!(lines.next().is_none());

    let fixture = Fixture::new();
    match client::stream(&fixture.path, "/balloon", LONG) {
        Err(client::Error::Refused(answer)) => assert_eq!(answer.status, 400),
        other => panic!("{other:?}"),
    }
}
