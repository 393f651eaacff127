//! Requests and answers of clients that behave.

use std::io::{Read, Write};
use std::thread;

use api::Command;
use api::client;

use crate::support::{Client, Fixture, LONG, METRICS};

#[test]
fn answers_have_the_headers_that_clients_know() {
    let fixture = Fixture::new();
    let mut client = fixture.client();

    client.get("/");
    let answer = client.answer();
    assert!(
        answer.head.starts_with("HTTP/1.1 200 OK\r\n"),
        "{}",
        answer.head
    );
    assert_eq!(answer.header("Server"), Some("Firecracker API"));
    assert_eq!(answer.header("Content-Type"), Some("application/json"));
    assert_eq!(answer.header("Date"), None);
    let body: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
    assert_eq!(body["state"], "Running");

    client.put("/mmds", "{}");
    let answer = client.answer();
    assert!(answer.head.starts_with("HTTP/1.1 204 "), "{}", answer.head);
    assert_eq!(answer.header("Server"), Some("Firecracker API"));
    assert_eq!(answer.header("Content-Length"), None);
    assert_eq!(answer.header("Content-Type"), None);
    assert_eq!(answer.header("Transfer-Encoding"), None);

    client.get("/balloon");
    let answer = client.answer();
    assert_eq!(answer.status, 400);
    assert_eq!(answer.fault(), "There is no balloon.");

    client.get("/openapi.json");
    assert_eq!(client.answer().status, 200);
    client.get("/metrics");
    let answer = client.answer();
    assert_eq!(answer.body.len(), METRICS);
    assert_ne!(answer.header("Content-Type"), Some("application/json"));
}

#[test]
fn methods_and_paths_that_there_are_not_are_a_fault() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    for request in [
        "POST /",
        "OPTIONS *",
        "OPTIONS /",
        "TRACE /",
        "get /",
        "BREW /",
        "GET /nowhere",
        "GET /?x=1",
        "GET //x//",
    ] {
        client.send(format!("{request} HTTP/1.1\r\n\r\n"));
        let answer = client.answer();
        assert_eq!(answer.status, 400, "{request}");
        assert!(!answer.fault().is_empty(), "{request}");
    }
    client.send("HEAD / HTTP/1.1\r\n\r\n");
    assert_eq!(client.head().status, 400);
    // It had no body, or this would be read in its place.
    client.send("GET http://localhost/ HTTP/1.1\r\n\r\n");
    assert_eq!(client.answer().status, 200);
    client.send("CONNECT host:1 HTTP/1.1\r\n\r\n");
    assert_eq!(client.answer().status, 400);
}

#[test]
fn old_clients_are_served() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    client.send("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    assert_eq!(client.answer().status, 200);
    client.send("GET / HTTP/1.0\r\n\r\n");
    assert_eq!(client.answer().status, 200);
    client.expect_end();
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let fixture = Fixture::new();
    fixture.monitor.hold(true);
    let mut client = fixture.client();
    let mut requests = String::new();
    for number in 0..50 {
        let body = format!("{{\"n\":{number}}}");
        requests += &format!(
            "PUT /mmds HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        requests +=
            "GET /balloon HTTP/1.1\r\n\r\nGET /nowhere HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n";
    }
    client.send(requests);
    fixture.monitor.hold(false);
    for _ in 0..50 {
        assert_eq!(client.answer().status, 204);
        assert_eq!(client.answer().fault(), "There is no balloon.");
        assert_ne!(client.answer().fault(), "There is no balloon.");
        assert_eq!(client.answer().status, 200);
    }
    for number in 0..50 {
        let expected = serde_json::json!({ "n": number });
        assert_eq!(fixture.monitor.next_done(), Command::PutMmds(expected));
        assert_eq!(fixture.monitor.next_done(), Command::GetBalloon);
        assert_eq!(fixture.monitor.next_done(), Command::GetInstance);
    }
}

#[test]
fn one_client_does_not_wait_for_another() {
    let fixture = Fixture::new();
    let mut clients: Vec<Client> = (0..100).map(|_| fixture.client()).collect();
    fixture.monitor.hold(true);
    clients[0].get("/");
    // Answered without the monitor, which is busy.
    for client in &mut clients[1..] {
        client.get("/openapi.json");
    }
    for client in &mut clients[1..] {
        assert_eq!(client.answer().status, 200);
    }
    fixture.monitor.hold(false);
    assert_eq!(clients[0].answer().status, 200);
}

#[test]
fn bodies_come_fixed_and_in_chunks() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    client.send(
        "PUT /mmds HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n\
         4\r\n{\"a\"\r\n1;note=x\r\n:\r\n2\r\n1}\r\n0\r\nTrailer: x\r\n\r\n",
    );
    assert_eq!(client.answer().status, 204);
    let expected = Command::PutMmds(serde_json::json!({ "a": 1 }));
    assert_eq!(fixture.monitor.next_done(), expected);

    // Byte by byte, and the connection is good for more.
    for byte in "PUT /mmds HTTP/1.1\r\nContent-Length: 7\r\n\r\n{\"a\":1}".bytes() {
        client.send([byte]);
        thread::yield_now();
    }
    assert_eq!(client.answer().status, 204);
    assert_eq!(fixture.monitor.next_done(), expected);

    client.put("/mmds", "");
    assert_eq!(client.answer().status, 400);
    client.put("/mmds", "\u{fffd}{");
    assert_eq!(client.answer().status, 400);
    client.send(b"PUT /mmds HTTP/1.1\r\nContent-Length: 4\r\n\r\n\"\xff\xfe\"");
    assert_eq!(client.answer().status, 400);
    client.get("/");
    assert_eq!(client.answer().status, 200);
}

#[test]
fn who_asks_whether_to_go_on_is_told_so_at_once() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    client.send("PUT /mmds HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(client.head().status, 100);
    client.send("{}");
    assert_eq!(client.answer().status, 204);

    client.send("PUT /mmds HTTP/1.1\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(client.head().status, 100);
    client.send("2\r\n{}\r\n0\r\n\r\n");
    assert_eq!(client.answer().status, 204);
}

#[test]
fn a_body_at_the_limit_passes_and_one_beyond_is_refused_by_its_length() {
    let fixture = Fixture::with(|settings| settings.max_body = 1000);
    let string = |length: usize| format!("{{\"a\":\"{}\"}}", "x".repeat(length - 8));

    let mut client = fixture.client();
    client.put("/mmds", &string(1000));
    assert_eq!(client.answer().status, 204);

    // At once: none of the body is there, and 100 is not said.
    for expect in ["", "Expect: 100-continue\r\n"] {
        let mut client = fixture.client();
        client.send(format!(
            "PUT /mmds HTTP/1.1\r\nContent-Length: 1001\r\n{expect}\r\n"
        ));
        let answer = client.answer();
        assert_eq!(answer.status, 400);
        let fault = answer.fault();
        assert!(fault.contains("1001") && fault.contains("1000"), "{fault}");
        assert_eq!(answer.header("Connection"), Some("close"));
        client.expect_end();
    }

    // One who sends all the same, much more than a socket holds, reads the answer afterwards.
    let mut client = fixture.client();
    client.put("/mmds", "");
    assert_eq!(client.answer().status, 400);
    let head = format!("PUT /mmds HTTP/1.1\r\nContent-Length: {}\r\n\r\n", 4 << 20);
    let request = head + &string(4 << 20);
    let sent = client.socket().write_all(request.as_bytes());
    sent.expect("it is heard to its end");
    assert_eq!(client.answer().status, 400);
    client.expect_end();
}

#[test]
fn chunks_beyond_the_limit_are_refused_when_they_come() {
    let fixture = Fixture::with(|settings| settings.max_body = 1000);
    let mut client = fixture.client();
    client.send("PUT /mmds HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n");
    for _ in 0..100 {
        client.send(format!("64\r\n{}\r\n", " ".repeat(100)));
    }
    let answer = client.answer();
    assert_eq!(answer.status, 413);
    assert!(answer.fault().contains("1000"));
    client.expect_end();
    fixture.check();
}

#[test]
fn a_client_that_sends_no_more_gets_its_answers() {
    let fixture = Fixture::new();
    fixture.monitor.hold(true);
    let mut client = fixture.client();
    client.get("/");
    client.put("/mmds", "{}");
    client.half_close();
    fixture.monitor.hold(false);
    assert_eq!(client.answer().status, 200);
    assert_eq!(client.answer().status, 204);
    client.expect_end();
}

#[test]
fn a_large_answer_reaches_a_slow_reader_whole_also_if_it_is_the_last() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    client.send("GET /metrics HTTP/1.1\r\nConnection: close\r\n\r\n");
    let head = client.head();
    let mut count = 0;
    while count < METRICS {
        count += client.read(4096.min(METRICS - count)).len();
        thread::yield_now();
    }
    assert_eq!(head.header("Content-Length"), Some("1048576"));
    client.expect_end();
}

#[test]
fn a_command_is_carried_out_though_its_client_is_gone() {
    let fixture = Fixture::new();
    fixture.monitor.hold(true);
    let mut first = fixture.client();
    first.get("/");
    // The monitor stands before the first command, so the second is only queued.
    let mut client = fixture.client();
    client.put("/mmds", "{\"a\":1}");
    // Seen by the server, as what comes later on another connection is.
    fixture.client().get("/openapi.json");
    let mut other = fixture.client();
    other.get("/openapi.json");
    assert_eq!(other.answer().status, 200);
    drop(client);
    fixture.monitor.hold(false);
    assert_eq!(first.answer().status, 200);
    assert_eq!(fixture.monitor.next_done(), Command::GetInstance);
    let expected = Command::PutMmds(serde_json::json!({ "a": 1 }));
    assert_eq!(fixture.monitor.next_done(), expected);
    fixture.check();
}

#[test]
fn a_command_that_nobody_answers_is_answered() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    client.get("/machine-config");
    let answer = client.answer();
    assert_eq!(answer.status, 503);
    assert!(!answer.fault().is_empty());
}

#[test]
fn a_half_sent_request_gets_an_answer_when_its_client_ends_it() {
    let fixture = Fixture::new();
    for half in [
        "GET / HT",
        "GET / HTTP/1.1\r\nHost: x\r\n",
        "PUT /mmds HTTP/1.1\r\nContent-Length: 10\r\n\r\n{",
        "PUT /mmds HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
    ] {
        let mut client = fixture.client();
        client.send(half);
        client.half_close();
        let answer = client.answer();
        assert_eq!(answer.status, 400, "{half}");
        assert!(!answer.fault().is_empty(), "{half}");
        client.expect_end();
    }
    // One that sends nothing is told nothing.
    let mut client = fixture.client();
    client.half_close();
    client.expect_end();
}

#[test]
fn the_client_of_the_crate_asks_and_is_answered() {
    let fixture = Fixture::with(|settings| settings.max_body = 1000);
    let request = |method: &str, path: &str, body: Option<&[u8]>| {
        client::request(&fixture.path, method, path, body, LONG).expect("an answer")
    };
    let answer = request("GET", "/", None);
    assert!(answer.is_success());
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.fault(), None);

    let answer = request("PUT", "/mmds", Some(b"{}"));
    assert_eq!((answer.status, answer.body.len()), (204, 0));
    let answer = request("GET", "/balloon", None);
    assert_eq!(answer.fault().as_deref(), Some("There is no balloon."));
    assert_eq!(request("GET", "/metrics", None).body.len(), METRICS);
    assert_eq!(request("HEAD", "/", None).status, 400);

    let large = vec![b' '; 1 << 20];
    let answer = request("PUT", "/mmds", Some(&large));
    assert_eq!(answer.status, 400);
    assert!(
        answer
            .fault()
            .is_some_and(|fault| fault.contains("1048576"))
    );

    for (method, path) in [
        ("GET", "/ HTTP/1.1\r\n"),
        ("", "/"),
        ("G T", "/"),
        ("GET", ""),
    ] {
        let result = client::request(&fixture.path, method, path, None, LONG);
        assert!(
            matches!(result, Err(client::Error::NotARequest { .. })),
            "{result:?}"
        );
    }
}

#[test]
fn curl_is_served_if_it_is_there() {
    let fixture = Fixture::new();
    let mut curl = std::process::Command::new("curl");
    curl.args(["-s", "-S", "-i", "--max-time", "60", "--unix-socket"])
        .arg(&fixture.path);
    curl.args([
        "-X",
        "PUT",
        "http://localhost/mmds",
        "-H",
        "Expect: 100-continue",
        "-d",
        "{\"a\":1}",
    ]);
    curl.args(["--next", "-s", "-S", "--max-time", "60", "--unix-socket"])
        .arg(&fixture.path);
    curl.arg("http://localhost/");
    let Ok(mut child) = curl.stdout(std::process::Stdio::piped()).spawn() else {
        eprintln!("skipped: there is no curl");
        return;
    };
    let mut text = String::new();
    child
        .stdout
        .take()
        .expect("its output")
        .read_to_string(&mut text)
        .expect("text");
    assert!(child.wait().expect("its end").success());
    assert!(text.contains("HTTP/1.1 100 Continue"), "{text}");
    assert!(text.contains("HTTP/1.1 204 "), "{text}");
    assert!(text.contains("\"state\":\"Running\""), "{text}");
}
