use super::*;

fn all(line: &[u8]) -> Progress {
    Line::default().push(line)
}

#[test]
fn takes_a_port() {
    assert_eq!(all(b"CONNECT 52\n"), Progress::Connect(52));
    assert_eq!(all(b"connect 0\r\n"), Progress::Connect(0));
    assert_eq!(all(b"CONNECT 4294967295\n"), Progress::Connect(u32::MAX));
}

#[test]
fn takes_it_in_pieces() {
    let mut line = Line::default();
    for byte in b"CONNECT 1024" {
        assert_eq!(line.push(&[*byte]), Progress::Incomplete);
    }
    assert_eq!(line.push(b"\n"), Progress::Connect(1024));
}

#[test]
fn takes_nothing_else() {
    let wrong: [&[u8]; 12] = [
        b"\n",
        b"CONNECT\n",
        b"CONNECT \n",
        b"CONNECT -1\n",
        b"CONNECT +1\n",
        b"CONNECT 4294967296\n",
        b"CONNECT 1 2\n",
        b"CONNECT 0x10\n",
        b"CONNECTED 1\n",
        b"GET / HTTP/1.1\r\n",
        b"\xff\xfe 1\n",
        b"CONNECT 99999999999999999999999\n",
    ];
    for line in wrong {
        assert_eq!(all(line), Progress::Wrong, "{line:?}");
    }
}

#[test]
fn is_not_longer_than_it_can_be() {
    assert_eq!(all(&[b' '; LINE_MAX]), Progress::Wrong);
    assert_eq!(all(&[b' '; LINE_MAX + 1]), Progress::Wrong);
    let mut line = Line::default();
    assert_eq!(line.push(&[b' '; LINE_MAX - 1]), Progress::Incomplete);
    assert_eq!(line.push(b"12"), Progress::Wrong);
}

#[test]
fn leaves_what_is_behind_it() {
    let line = Line::default();
    assert_eq!(line.wanted(b"CONNECT 1\nhello\n"), 10);
    assert_eq!(line.wanted(b"CONN"), 4);
    assert_eq!(line.wanted(b""), 0);
}
