//! Clients that do not behave.

use std::thread;
use std::time::Duration;

use crate::support::{Client, Fixture, until};

/// What is not HTTP is answered with a fault, and the connection ends.
#[track_caller]
fn expect_refusal(client: &mut Client, statuses: &[u16]) {
    let answer = client.answer();
    assert!(statuses.contains(&answer.status), "{answer:?}");
    assert!(!answer.fault().is_empty());
    assert_eq!(answer.header("Connection"), Some("close"));
    client.expect_end();
}

#[test]
fn what_is_not_http_is_refused_in_words() {
    let fixture = Fixture::new();
    let cases: [&[u8]; 14] = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"hello\r\n\r\n",
        b"GET /\r\n\r\n",
        b"GET / HTTP/7.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon here\r\n\r\n",
        b"GET / HTTP/1.1\r\nBad\x01Name: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nName: x\x00y\r\n\r\n",
        b"GET /\xff\xfe\xfd HTTP/1.1\r\n\r\n",
        b"GET /drives/\xc3\x28 HTTP/1.1\r\n\r\n",
        b"PUT /mmds HTTP/1.1\r\nContent-Length: two\r\n\r\n{}",
        b"PUT /mmds HTTP/1.1\r\nContent-Length: -2\r\n\r\n{}",
        b"PUT /mmds HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n{}",
        b"PUT /mmds HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ];
    for case in cases {
        let mut client = fixture.client();
        client.send(case);
        eprintln!("{:?}", String::from_utf8_lossy(case));
        expect_refusal(&mut client, &[400]);
    }
    // Answers before it are given first.
    let mut client = fixture.client();
    client.send("GET / HTTP/1.1\r\n\r\nGET /balloon HTTP/1.1\r\n\r\nhello\r\n\r\n");
    assert_eq!(client.answer().status, 200);
    assert_eq!(client.answer().fault(), "There is no balloon.");
    expect_refusal(&mut client, &[400]);
    fixture.check();
}

#[test]
fn broken_chunks_are_refused() {
    let fixture = Fixture::new();
    for chunks in [
        "x\r\n",
        "-1\r\n",
        "2\r\n{}xx0\r\n\r\n",
        "fffffffffffffffff\r\n",
    ] {
        let mut client = fixture.client();
        client.send(format!(
            "PUT /mmds HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}"
        ));
        expect_refusal(&mut client, &[400]);
    }
    // With both lengths the chunks count, so that nobody smuggles the rest in as a request.
    let mut client = fixture.client();
    client.send(
        "PUT /mmds HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    );
    let status = client.answer().status;
    assert!(status == 204 || status == 400, "{status}");
    fixture.check();
}

#[test]
fn heads_have_a_limit() {
    let fixture = Fixture::new();

    let mut client = fixture.client();
    client.send("GET / HTTP/1.1\r\n");
    for number in 0..200 {
        client.send(format!("Name-{number}: x\r\n"));
    }
    client.send("\r\n");
    expect_refusal(&mut client, &[431]);

    // Without an end, in one header or many, or in the path.
    for (start, more) in [
        ("GET / HTTP/1.1\r\nName: ", "x".repeat(1024)),
        ("GET / HTTP/1.1\r\n", "Name: x\r\n".repeat(100)),
        ("GET /", "x".repeat(1024)),
    ] {
        let mut client = fixture.client();
        client.send(start);
        for _ in 0..100 {
            client.send(&more);
        }
        expect_refusal(&mut client, &[414, 431]);
    }
    fixture.check();
}

#[test]
fn a_request_has_a_time_limit_and_idleness_has_none() {
    let fixture = Fixture::with(|settings| settings.request_limit = Duration::from_millis(200));
    let mut idle = fixture.client();
    let mut kept = fixture.client();
    kept.get("/");
    assert_eq!(kept.answer().status, 200);

    for start in [
        "G",
        "GET / HTTP/1.1\r\nName: ",
        "PUT /mmds HTTP/1.1\r\nContent-Length: 10\r\n\r\n{",
        "PUT /mmds HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n",
    ] {
        let mut client = fixture.client();
        client.send(start);
        // A byte from time to time does not help.
        let mut drip = Client::new(&fixture.path);
        let dripping = thread::spawn(move || {
            drip.send("GET / HTTP/1.1\r\nName: ");
            for _ in 0..30 {
                drip.send("x");
                thread::sleep(Duration::from_millis(20));
            }
            drip
        });
        let answer = client.answer();
        assert_eq!(answer.status, 400, "{start}");
        assert!(answer.fault().contains("0.2 seconds"), "{}", answer.fault());
        client.expect_end();
        expect_refusal(&mut dripping.join().expect("a client"), &[400]);
    }

    // A command may take longer than its request.
    fixture.monitor.hold(true);
    let mut waiting = fixture.client();
    waiting.get("/");
    thread::sleep(Duration::from_millis(400));
    fixture.monitor.hold(false);
    for client in [&mut idle, &mut kept] {
        client.get("/");
        assert_eq!(client.answer().status, 200);
    }
    assert_eq!(waiting.answer().status, 200);
}

#[test]
fn a_lying_length_is_a_request_too_little_or_too_much() {
    let fixture = Fixture::with(|settings| settings.request_limit = Duration::from_millis(200));
    // Too long: it is never complete.
    let mut client = fixture.client();
    client.send("PUT /mmds HTTP/1.1\r\nContent-Length: 3\r\n\r\n{}");
    expect_refusal(&mut client, &[400]);
    // Too short: the rest is no request.
    let mut client = fixture.client();
    client.send("PUT /mmds HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}}\r\n\r\n");
    assert_eq!(client.answer().status, 204);
    expect_refusal(&mut client, &[400]);
    fixture.check();
}

#[test]
fn deep_json_is_a_fault() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    for body in ["[".repeat(50_000), "{\"a\":".repeat(10_000)] {
        client.put("/mmds", &body);
        assert_eq!(client.answer().status, 400);
    }
    client.get("/");
    assert_eq!(client.answer().status, 200);
}

#[test]
fn clients_that_die_cost_nothing() {
    let fixture = Fixture::with(|settings| settings.max_connections = 4);
    let partial: [&str; 6] = [
        "",
        "GET / HT",
        "PUT /mmds HTTP/1.1\r\nContent-Length: 10\r\n\r\n{",
        "GET / HTTP/1.1\r\n\r\n",
        "GET /metrics HTTP/1.1\r\n\r\n",
        "GET /events HTTP/1.1\r\n\r\n",
    ];
    for _ in 0..20 {
        for sent in partial {
            // There is room again after each, though sometimes only after a moment.
            until(|| {
                let mut client = fixture.client();
                client.get("/openapi.json");
                client.answer().status == 200
            });
            fixture.client().send(sent);
        }
    }
    until(|| {
        let mut client = fixture.client();
        client.get("/");
        client.answer().status == 200
    });
}

#[test]
fn a_client_that_reads_nothing_stops_nobody() {
    let fixture = Fixture::new();
    let mut deaf = fixture.client();
    for _ in 0..20 {
        deaf.get("/metrics");
    }
    for _ in 0..20 {
        fixture.check();
    }
}

#[test]
fn beyond_the_bound_clients_are_told_so() {
    let fixture = Fixture::with(|settings| settings.max_connections = 8);
    let mut clients: Vec<Client> = (0..8)
        .map(|_| {
            let mut client = fixture.client();
            client.get("/");
            assert_eq!(client.answer().status, 200);
            client
        })
        .collect();
    for _ in 0..200 {
        let mut refused = fixture.client();
        refused.get("/");
        let answer = refused.answer();
        assert_eq!(answer.status, 503);
        assert!(answer.fault().contains('8'));
        refused.expect_end();
    }
    clients[0].get("/");
    assert_eq!(clients[0].answer().status, 200);
    drop(clients.pop());
    until(|| {
        let mut client = fixture.client();
        client.get("/");
        client.answer().status == 200
    });
}
