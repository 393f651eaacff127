use super::*;

const NOW: Duration = Duration::ZERO;
/// Longer than any test waits for a thread.
const LONG: Duration = Duration::from_secs(60);

fn data(text: &str) -> Poll<Option<Piece>> {
    Poll::Ready(Some(Piece::Data(text.as_bytes().to_vec())))
}

fn lost(count: u64) -> Poll<Option<Piece>> {
    Poll::Ready(Some(Piece::Lost(count)))
}

#[test]
fn each_reader_gets_every_line_from_where_it_starts() {
    let events = Broadcast::of_lines(1000);
    let mut first = events.subscribe(Start::Next);
    assert!(first.next_within(NOW, 100).is_pending());

    events.publish(b"one");
    events.publish(b"");
    let mut second = events.subscribe(Start::Next);
    let mut third = events.subscribe(Start::Oldest);
    events.publish(b"two");

    assert_eq!(first.next_within(NOW, 100), data("one\n\ntwo\n"));
    assert_eq!(second.next_within(NOW, 100), data("two\n"));
    assert_eq!(third.next_within(NOW, 100), data("one\n\ntwo\n"));
    assert!(third.next_within(NOW, 100).is_pending());
}

#[test]
fn lines_are_never_cut() {
    let events = Broadcast::of_lines(1000);
    let mut reader = events.subscribe(Start::Next);
    for line in ["1234", "5678", "a long line"] {
        events.publish(line.as_bytes());
    }
    // Two of five bytes fit into eleven, one into nine; the long one comes whole all the same.
    let mut other = events.subscribe(Start::Oldest);
    assert_eq!(other.next_within(NOW, 11), data("1234\n5678\n"));
    assert_eq!(reader.next_within(NOW, 9), data("1234\n"));
    assert_eq!(reader.next_within(NOW, 5), data("5678\n"));
    assert_eq!(reader.next_within(NOW, 5), data("a long line\n"));
}

#[test]
fn a_slow_reader_is_told_how_many_lines_it_lost() {
    let events = Broadcast::of_lines(10);
    let mut slow = events.subscribe(Start::Next);
    for line in ["1111", "2222", "3333", "4444"] {
        events.publish(line.as_bytes());
    }
    assert_eq!(slow.next_within(NOW, 5), lost(2));
    assert_eq!(slow.next_within(NOW, 5), data("3333\n"));
    events.publish(b"5555");
    assert_eq!(slow.next_within(NOW, 100), data("4444\n5555\n"));

    // A line for which there is no room at all takes the others with it.
    events.publish(b"123456789x");
    events.publish(b"6666");
    assert_eq!(slow.next_within(NOW, 100), lost(1));
    assert_eq!(slow.next_within(NOW, 100), data("6666\n"));
}

#[test]
fn a_stream_of_bytes_keeps_its_tail() {
    let console = Broadcast::of_bytes(8);
    let mut slow = console.subscribe(Start::Next);
    console.publish(b"abc");
    console.publish(b"defgh");
    assert_eq!(
        console.subscribe(Start::Oldest).next_within(NOW, 100),
        data("abcdefgh")
    );
    console.publish(b"ij");
    assert_eq!(slow.next_within(NOW, 3), lost(2));
    assert_eq!(slow.next_within(NOW, 3), data("cde"));
    assert_eq!(slow.next_within(NOW, 100), data("fghij"));

    console.publish(b"0123456789abcdef");
    assert_eq!(slow.next_within(NOW, 100), lost(8));
    assert_eq!(slow.next_within(NOW, 100), data("89abcdef"));
    assert!(slow.next_within(NOW, 100).is_pending());
}

#[test]
fn what_is_left_comes_before_the_end() {
    let events = Broadcast::of_lines(100);
    let mut reader = events.subscribe(Start::Next);
    events.publish(b"last");
    events.close();
    events.publish(b"too late");
    assert_eq!(reader.next_within(NOW, 100), data("last\n"));
    assert_eq!(reader.next_within(NOW, 100), Poll::Ready(None));

    let dropped = Broadcast::of_bytes(100);
    let clone = dropped.clone();
    let mut reader = dropped.subscribe(Start::Next);
    drop(dropped);
    assert!(reader.next_within(NOW, 100).is_pending());
    drop(clone);
    assert_eq!(reader.next_within(NOW, 100), Poll::Ready(None));
}

#[test]
fn a_reader_that_waits_is_woken_and_one_that_has_gone_is_forgotten() {
    let events = Broadcast::of_lines(100);
    let mut reader = events.subscribe(Start::Next);
    let waiting = thread::spawn(move || {
        let first = reader.next_within(LONG, 100);
        (first, reader.next_within(LONG, 100))
    });
    while lock(&events.publisher.ring).waiting.is_empty() {
        thread::yield_now();
    }
    events.publish(b"wake");
    while lock(&events.publisher.ring).waiting.is_empty() {
        thread::yield_now();
    }
    events.close();
    assert_eq!(
        waiting.join().expect("the reader"),
        (data("wake\n"), Poll::Ready(None))
    );
    assert!(lock(&events.publisher.ring).waiting.is_empty());
}

#[test]
fn many_publishers_lose_nothing_that_fits() {
    let events = Broadcast::of_lines(1 << 20);
    let mut reader = events.subscribe(Start::Next);
    let publishers: Vec<_> = (0..4)
        .map(|_| {
            let events = events.clone();
            thread::spawn(move || (0..1000).for_each(|_| events.publish(b"line")))
        })
        .collect();
    let mut count = 0;
    while count < 4000 {
        match reader.next_within(LONG, 4096) {
            Poll::Ready(Some(Piece::Data(data))) => count += data.len() / 5,
            other => panic!("{other:?} after {count} lines"),
        }
    }
    for publisher in publishers {
        publisher.join().expect("a publisher");
    }
    assert!(reader.next_within(NOW, 100).is_pending());
}

#[test]
fn a_reader_knows_how_much_there_is() {
    let bytes = Broadcast::of_bytes(4);
    bytes.publish(b"abcdef");
    let mut reader = bytes.subscribe(Start::Oldest);
    assert_eq!(reader.waiting(), 4);
    assert_eq!(bytes.subscribe(Start::Next).waiting(), 0);
    bytes.publish(b"gh");
    // Two of them are lost, and two have come instead.
    assert_eq!(reader.waiting(), 4);
    assert_eq!(reader.next_within(NOW, 9), lost(2));
    assert_eq!(reader.next_within(NOW, 3), data("efg"));
    assert_eq!(reader.waiting(), 1);
}
