use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{self, JoinHandle};

use super::*;

/// Longer than anything takes.
const LONG: Duration = Duration::from_secs(60);

/// A server that hears one request, answers these bytes and hangs up.
struct Canned {
    path: PathBuf,
    server: Option<JoinHandle<Vec<u8>>>,
}

impl Canned {
    fn new(answer: impl Into<Vec<u8>>) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("mote-client-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let listener = UnixListener::bind(&path).expect("a socket");
        let answer = answer.into();
        let server = thread::spawn(move || {
            let (mut socket, _) = listener.accept().expect("a client");
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                socket.read_exact(&mut byte).expect("a head");
                request.extend(byte);
            }
            // The client may have seen enough.
            let _ = socket.write_all(&answer);
            request
        });
        Self {
            path,
            server: Some(server),
        }
    }

    fn get(&self) -> Result<Answer, Error> {
        request(&self.path, "GET", "/x", None, LONG)
    }

    fn heard(&mut self) -> String {
        let server = self.server.take().expect("the server");
        let request = server.join().expect("a request");
        String::from_utf8(request).expect("text")
    }
}

impl Drop for Canned {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn body(answer: &str) -> String {
    let answer = Canned::new(answer).get().expect("an answer");
    String::from_utf8(answer.body).expect("text")
}

#[test]
fn bodies_end_in_three_ways() {
    assert_eq!(
        body("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcdef"),
        "abc"
    );
    assert_eq!(body("HTTP/1.1 200 OK\r\n\r\nabcdef"), "abcdef");
    assert_eq!(body("HTTP/1.1 204 No Content\r\n\r\nabcdef"), "");
    let chunked = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n\
                   3;note\r\nabc\r\nA\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\nrest";
    assert_eq!(body(chunked), "abc0123456789");
}

#[test]
fn the_request_is_as_it_should_be() {
    let mut canned = Canned::new("HTTP/1.1 204 \r\n\r\n");
    canned.get().expect("an answer");
    assert_eq!(
        canned.heard(),
        "GET /x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    );
}

#[test]
fn broken_answers_are_errors() {
    let head = "HTTP/1.1 200 OK\r\n";
    for answer in [
        String::new(),
        "nonsense\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-".to_owned(),
        format!("{head}Content-Length: x\r\n\r\n"),
        format!("{head}Content-Length: 10\r\n\r\nabc"),
        format!("{head}Transfer-Encoding: gzip\r\n\r\n"),
        format!("{head}Transfer-Encoding: chunked\r\n\r\nx\r\n"),
        format!("{head}Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n"),
        format!("{head}Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"),
        format!("{head}Name: {}", "x".repeat(MAX_HEAD)),
        format!("{head}{}\r\n", "Name: x\r\n".repeat(MAX_HEADERS + 1)),
        "HTTP/1.1 100 Continue\r\n\r\n".repeat(10),
    ] {
        let result = Canned::new(answer.as_str()).get();
        assert!(
            matches!(result, Err(Error::Unreadable { .. } | Error::Broken { .. })),
            "{answer:.100}: {result:?}"
        );
    }
}

#[test]
fn nobody_there_and_no_answer_are_told_apart() {
    let missing = request(Path::new("/nowhere/at/all"), "GET", "/", None, LONG);
    assert!(matches!(missing, Err(Error::Connect { .. })), "{missing:?}");

    // A listener that never accepts; with room for no more, connecting has its limit too.
    let path = std::env::temp_dir().join(format!("mote-client-deaf-{}", std::process::id()));
    let deaf =
        rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None).expect("a socket");
    let address = SocketAddrUnix::new(&path).expect("an address");
    rustix::net::bind(&deaf, &address).expect("a file");
    rustix::net::listen(&deaf, 0).expect("a queue");
    // The first ones wait for an answer, the others in vain for a place in the queue.
    for _ in 0..3 {
        let result = request(&path, "GET", "/", None, Duration::from_millis(20));
        assert!(matches!(result, Err(Error::TimedOut)), "{result:?}");
    }
    std::fs::remove_file(&path).expect("its end");
}

#[test]
fn a_stream_ends_whole_or_with_an_error() {
    let lines = |answer: &str| {
        let canned = Canned::new(answer);
        let lines = stream(&canned.path, "/events", LONG).expect("a stream");
        lines.map(|line| line.ok()).collect::<Vec<_>>()
    };
    let some = |text: &str| Some(text.to_owned());
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    // A line in two chunks, two in one, and one without its end.
    let whole = format!("{head}2\r\na\n\r\n1\r\nb\r\n5\r\nc\nd\ne\r\n0\r\n\r\n");
    assert_eq!(lines(&whole), [some("a"), some("bc"), some("d"), some("e")]);
    let cut = format!("{head}2\r\na\n\r\n5\r\nb");
    assert_eq!(lines(&cut), [some("a"), None]);
}
