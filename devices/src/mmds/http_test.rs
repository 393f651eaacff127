use serde_json::json;

use super::*;

fn mmds() -> Mmds {
    let mmds = Mmds::new("test", 100_000).unwrap();
    mmds.put(json!({"a": "b", "large": "x".repeat(50_000)}))
        .unwrap();
    mmds
}

/// All answers to `bytes`, given in pieces of `size`; None once the connection is of no use.
fn talk(bytes: &[u8], size: usize) -> Option<(String, Http)> {
    let mmds = mmds();
    let mut http = Http::default();
    let mut answers = Vec::new();
    for mut piece in bytes.chunks(size) {
        while !piece.is_empty() {
            let taken = http.input(piece, &mmds, Instant::now()).ok()?;
            piece = &piece[taken..];
            // Bytes go a few at a time.
            while !http.output().is_empty() {
                let some = http.output().len().min(999);
                answers.extend_from_slice(&http.output()[..some]);
                http.advance(some);
            }
        }
    }
    Some((String::from_utf8(answers).unwrap(), http))
}

fn answers(request: &str) -> (String, Http) {
    let whole = talk(request.as_bytes(), request.len()).unwrap();
    for size in [1, 7] {
        let pieces = talk(request.as_bytes(), size).unwrap();
        assert_eq!(pieces.0, whole.0, "{request:?} in pieces of {size}");
        assert_eq!(pieces.1.is_over(), whole.1.is_over());
    }
    whole
}

#[test]
fn an_answer_has_these_bytes() {
    let (answer, http) = answers("GET /a HTTP/1.1\r\nHost: x\r\n\r\n");
    let expected = "HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Type: text/plain\r\n\
                    Content-Length: 1\r\n\r\nb";
    assert_eq!(answer, expected);
    assert!(http.is_idle() && !http.is_over());
    let (answer, _) = answers("GET /a HTTP/1.1\r\nAccept:   application/json \r\n\r\n");
    assert!(answer.ends_with("Content-Type: application/json\r\nContent-Length: 3\r\n\r\n\"b\""));
    let (answer, _) = answers("DELETE / HTTP/1.1\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 405 Method Not Allowed\r\n"));
    assert!(answer.contains("\r\nAllow: GET, PUT\r\n\r\n"), "{answer}");
    let put = "PUT /latest/api/token HTTP/1.1\r\nx-metadata-TOKEN-ttl-seconds: 60\r\n\r\n";
    let mut http = Http::default();
    http.input(put.as_bytes(), &mmds(), Instant::now()).unwrap();
    let answer = String::from_utf8(http.output().to_vec()).unwrap();
    assert!(
        answer.contains("\r\nx-metadata-TOKEN-ttl-seconds: 60\r\n\r\n"),
        "{answer}"
    );
}

#[test]
fn connections_are_kept_or_closed() {
    let cases = [
        ("GET /a HTTP/1.1\r\n\r\n", "HTTP/1.1 200", true),
        (
            "GET /a HTTP/1.1\r\nConnection: close\r\n\r\n",
            "HTTP/1.1 200",
            false,
        ),
        (
            "GET /a HTTP/1.1\r\nConnection: TE , Close\r\n\r\n",
            "HTTP/1.1 200",
            false,
        ),
        ("GET /a HTTP/1.0\r\n\r\n", "HTTP/1.0 200", false),
        (
            "GET /a HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n",
            "HTTP/1.0 200",
            true,
        ),
        ("GET /none HTTP/1.1\r\n\r\n", "HTTP/1.1 404", true),
        ("POST /a HTTP/1.1\r\n\r\n", "HTTP/1.1 501", false),
        ("HEAD /a HTTP/1.1\r\n\r\n", "HTTP/1.1 501", false),
    ];
    for (request, status, keeps) in cases {
        let (answer, http) = answers(request);
        assert!(answer.starts_with(status), "{request:?}: {answer}");
        assert_eq!(http.is_over(), !keeps, "{request:?}");
        let said = if keeps { "keep-alive" } else { "close" };
        assert!(answer.contains(&format!("\r\nConnection: {said}\r\n")));
    }
}

#[test]
fn what_is_no_request_is_refused_and_ends_the_connection() {
    let cases = [
        ("GET\r\n\r\n", 400),
        ("\0\x01\x02", 400),
        ("GET /a\r\n\r\n", 400),
        ("GET /a HTTP/2.0\r\n\r\n", 501),
        ("GET /a HTTP/0.9\r\n\r\n", 501),
        ("GET /a HTTP/1.1\r\nno colon\r\n\r\n", 400),
        ("GET /a HTTP/1.1\r\n folded: x\r\n\r\n", 400),
        ("GET /a HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400),
        ("GET /a HTTP/1.1\r\nContent-Length: +1\r\n\r\n", 400),
        ("GET /a HTTP/1.1\r\nContent-Length:\r\n\r\n", 400),
        (
            "GET /a HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
            400,
        ),
        (
            "GET /a HTTP/1.1\r\nContent-Length: 1\r\ncontent-length: 2\r\n\r\n",
            400,
        ),
        ("PUT /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 501),
    ];
    for (request, status) in cases {
        // What comes behind it is not looked at.
        let two = format!("{request}GET /a HTTP/1.1\r\n\r\n");
        let whole = talk(two.as_bytes(), two.len()).unwrap();
        let start = format!("HTTP/1.1 {status} ");
        assert!(whole.0.starts_with(&start), "{request:?}: {}", whole.0);
        assert_eq!(whole.0.matches("HTTP/1.").count(), 1, "{request:?}");
        assert!(whole.1.is_over());
        assert!(whole.0.contains("\r\nContent-Type: text/plain\r\n"));
    }
    let many = "a: b\r\n".repeat(65);
    let (answer, _) = answers(&format!("GET /a HTTP/1.1\r\n{many}\r\n"));
    assert!(answer.starts_with("HTTP/1.1 400 "));
    let binary = b"GET /a HTTP/1.1\r\nx: \xff\r\n\r\n";
    assert!(talk(binary, 100).unwrap().0.starts_with("HTTP/1.1 400 "));
}

#[test]
fn requests_that_come_at_once_are_answered_in_order() {
    let many =
        "GET /a HTTP/1.1\r\n\r\nGET /large HTTP/1.1\r\n\r\nGET /none HTTP/1.1\r\n\r\n".repeat(20);
    let (answer, http) = answers(&many);
    assert!(http.is_idle());
    let statuses: Vec<_> = answer
        .match_indices("HTTP/1.1 ")
        .map(|(at, _)| &answer[at + 9..at + 12])
        .collect();
    assert_eq!(statuses, ["200", "200", "404"].repeat(20));
    let last = "GET /a HTTP/1.1\r\nConnection: close\r\n\r\nGET /a HTTP/1.1\r\n\r\n";
    let (answer, http) = answers(last);
    assert_eq!(answer.matches("200 OK").count(), 1);
    assert!(http.is_over());
}

#[test]
fn bodies_are_skipped() {
    let body = "GET /none HTTP/1.1\r\n\r\n";
    let put = format!(
        "PUT /a HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let (answer, http) = answers(&format!(
        "{put}GET /a HTTP/1.1\r\nContent-Length: 0\r\n\r\n"
    ));
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 2, "{answer}");
    assert!(answer.starts_with("HTTP/1.1 404") && answer.ends_with("\r\n\r\nb"));
    assert!(http.is_idle());
    let waiting = "PUT /a HTTP/1.1\r\nExpect: 100-Continue\r\nContent-Length: 3\r\n\r\n";
    let (answer, http) = answers(waiting);
    assert!(answer.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 "));
    assert!(!http.is_idle());
}

#[test]
fn a_head_has_less_than_so_many_bytes() {
    let head = |len: usize| {
        let rest = len - "GET /a HTTP/1.1\r\nx: \r\n\r\n".len();
        format!("GET /a HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(rest))
    };
    for size in [1, 100, 10_000] {
        for (len, fits) in [(2499, true), (2500, true), (2501, false), (9999, false)] {
            let answer = talk(head(len).as_bytes(), size);
            assert_eq!(answer.is_some(), fits, "{len} in pieces of {size}");
        }
    }
    // Empty lines before a request are part of it.
    assert!(talk("\r\n".repeat(1300).as_bytes(), 3).is_none());
    assert!(talk(&[b'G'; 2500], 100).is_none());
    assert!(talk(&[b'G'; 2499], 100).is_some());
}
