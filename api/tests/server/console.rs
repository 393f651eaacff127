//! `GET /console`.

use std::io::{Read, Write};

use api::client;

use crate::support::{Client, Fixture, LONG, until};

const ATTACH: &str =
    "GET /console HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: mote-console\r\n\r\n";

fn open(fixture: &Fixture, room: usize) {
    fixture.monitor.typed.lock().expect("the console").room = room;
}

fn typed(fixture: &Fixture) -> Vec<u8> {
    fixture
        .monitor
        .typed
        .lock()
        .expect("the console")
        .bytes
        .clone()
}

fn attached(fixture: &Fixture) -> usize {
    fixture.monitor.typed.lock().expect("the console").attached
}

fn attach(fixture: &Fixture) -> Client {
    let mut client = fixture.client();
    client.send(ATTACH);
    let head = client.head();
    assert_eq!(head.status, 101);
    assert_eq!(head.header("Upgrade"), Some("mote-console"));
    client
}

#[test]
fn bytes_go_both_ways_after_what_was_printed_before() {
    let fixture = Fixture::new();
    open(&fixture, 1000);
    fixture.monitor.console.publish(b"before\r\n");
    let mut clients = [attach(&fixture), attach(&fixture)];
    fixture.monitor.console.publish(b"\x00\xff after");
    for client in &mut clients {
        assert_eq!(client.read(16), b"before\r\n\x00\xff after");
    }
    clients[0].send(b"ls\r\x03");
    until(|| typed(&fixture) == b"ls\r\x03");

    // One that types no more still watches; one that goes is detached.
    clients[0].half_close();
    fixture.monitor.console.publish(b"more");
    assert_eq!(clients[0].read(4), b"more");
    assert_eq!(attached(&fixture), 2);
    drop(clients);
    until(|| attached(&fixture) == 0);
}

#[test]
fn what_is_sent_with_the_request_is_typed_too() {
    let fixture = Fixture::new();
    open(&fixture, 1000);
    let mut client = fixture.client();
    client.send(format!("GET / HTTP/1.1\r\n\r\n{ATTACH}early"));
    assert_eq!(client.answer().status, 200);
    assert_eq!(client.head().status, 101);
    until(|| typed(&fixture) == b"early");
    client.send("late");
    until(|| typed(&fixture) == b"earlylate");
}

#[test]
fn a_guest_that_takes_no_input_holds_its_client_back_and_nobody_else() {
    let fixture = Fixture::new();
    open(&fixture, 3);
    let mut client = attach(&fixture);
    client.send("abcdef");
    until(|| typed(&fixture) == b"abc");
    fixture.check();
    fixture.monitor.console.publish(b"out");
    assert_eq!(client.read(3), b"out");
    open(&fixture, 100);
    until(|| typed(&fixture) == b"abcdef");
    // One that goes while it waits is detached as well.
    open(&fixture, 1);
    client.send("ghi");
    drop(client);
    until(|| attached(&fixture) == 0);
}

#[test]
fn a_client_that_does_not_read_misses_output_and_holds_nobody_up() {
    let fixture = Fixture::new();
    open(&fixture, 1);
    let mut client = attach(&fixture);
    for _ in 0..10_000 {
        fixture.monitor.console.publish(&[b'x'; 1000]);
    }
    fixture.check();
    fixture.monitor.console.publish(b"end");
    let mut count = 0;
    while client.read(1) != b"e" {
        count += 1;
    }
    assert!(count < 10_000_000, "{count}");
    assert_eq!(client.read(2), b"nd");
}

#[test]
fn without_its_headers_or_against_the_state_it_is_a_fault() {
    let fixture = Fixture::new();
    open(&fixture, 1000);
    let mut client = fixture.client();
    for headers in [
        "",
        "Connection: Upgrade\r\n",
        "Upgrade: mote-console\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket\r\n",
        "Connection: keep-alive\r\nUpgrade: mote-console\r\n",
    ] {
        client.send(format!("GET /console HTTP/1.1\r\n{headers}\r\n"));
        let answer = client.answer();
        assert_eq!(answer.status, 400, "{headers}");
        assert!(answer.fault().contains("mote-console"));
    }
    open(&fixture, 0);
    client.send(ATTACH);
    assert_eq!(client.answer().fault(), "The console is closed.");

    // In whatever case, and among others.
    open(&fixture, 1000);
    client.send("GET /console HTTP/1.1\r\nConnection: keep-alive, upgrade\r\nUpgrade: x, Mote-Console\r\n\r\n");
    assert_eq!(client.head().status, 101);
}

#[test]
fn it_ends_with_the_output_and_with_the_server() {
    let mut fixture = Fixture::new();
    open(&fixture, 1000);
    let mut client = attach(&fixture);
    let mut other = attach(&fixture);
    fixture.monitor.console.publish(b"bye");
    fixture.stop();
    for client in [&mut client, &mut other] {
        assert_eq!(client.rest(), b"bye");
    }
    assert_eq!(attached(&fixture), 0);

    let fixture = Fixture::new();
    open(&fixture, 1000);
    let mut client = attach(&fixture);
    fixture.monitor.console.publish(b"bye");
    fixture.monitor.console.close();
    assert_eq!(client.rest(), b"bye");
}

#[test]
fn the_client_of_the_crate_attaches() {
    let fixture = Fixture::new();
    let refused = client::upgrade(&fixture.path, "/console", "mote-console", LONG);
    match refused {
        Err(client::Error::Refused(answer)) => {
            assert_eq!(answer.fault().as_deref(), Some("The console is closed."));
        }
        other => panic!("{other:?}"),
    }
    open(&fixture, 1000);
    fixture.monitor.console.publish(b"before");
    let upgraded = client::upgrade(&fixture.path, "/console", "mote-console", LONG);
    let client::Upgraded {
        mut stream,
        early,
        backlog,
    } = upgraded.expect("a console");
    assert_eq!(backlog, 6);
    let mut bytes = early;
    while bytes.len() < 6 {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("what was printed");
        bytes.extend(byte);
    }
    assert_eq!(bytes, b"before");
    stream.write_all(b"x").expect("a key");
    until(|| typed(&fixture) == b"x");
}
