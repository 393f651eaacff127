use super::*;

fn says(buf_alloc: u32, fwd_cnt: u32) -> Header {
    Header {
        buf_alloc,
        fwd_cnt,
        ..Header::default()
    }
}

#[test]
fn the_guest_gets_what_it_has_room_for() {
    let mut outgoing = Outgoing::new(100, 0);
    assert_eq!(outgoing.room(), 100);
    outgoing.send(60);
    assert_eq!(outgoing.room(), 40);
    assert!(!outgoing.has_to_ask());
    outgoing.send(40);
    assert_eq!(outgoing.room(), 0);
    assert!(outgoing.has_to_ask());
    outgoing.ask();
    assert!(!outgoing.has_to_ask(), "once is enough");
    assert!(outgoing.update(&says(100, 0)));
    assert!(!outgoing.has_to_ask(), "no news");
    assert!(outgoing.update(&says(100, 30)));
    assert_eq!(outgoing.room(), 30);
    outgoing.send(30);
    assert!(outgoing.has_to_ask(), "again");
}

#[test]
fn counters_wrap() {
    let mut outgoing = Outgoing::new(100, u32::MAX - 9);
    outgoing.send(20);
    assert_eq!(outgoing.room(), 80);
    assert!(outgoing.update(&says(100, 10)));
    assert_eq!(outgoing.room(), 100);
    let mut incoming = Incoming::new(256);
    for _ in 0..(1 << 24) / 16 {
        incoming.receive(4096);
        incoming.forward(4096);
        assert_eq!(incoming.room(), 256);
    }
    assert_eq!(incoming.tell(), 0);
}

#[test]
fn the_guest_may_shrink_its_buffer() {
    let mut outgoing = Outgoing::new(100, 0);
    outgoing.send(80);
    assert!(outgoing.update(&says(50, 0)));
    assert_eq!(outgoing.room(), 0);
    assert!(outgoing.update(&says(50, 40)));
    assert_eq!(outgoing.room(), 10);
    assert!(outgoing.update(&says(0, 80)));
    assert_eq!(outgoing.room(), 0);
}

#[test]
fn the_guest_cannot_have_taken_what_it_was_not_sent() {
    let mut outgoing = Outgoing::new(100, 0);
    outgoing.send(10);
    assert!(!outgoing.update(&says(100, 11)));
    assert!(!outgoing.update(&says(100, 1 << 31)));
    assert!(!outgoing.update(&says(100, u32::MAX - CREDIT_MAX)));
    assert!(outgoing.update(&says(100, 10)));
    assert_eq!(outgoing.room(), 100);
}

#[test]
fn old_packets_take_nothing_back() {
    let mut outgoing = Outgoing::new(100, 0);
    outgoing.send(60);
    assert!(outgoing.update(&says(100, 60)));
    assert!(outgoing.update(&says(100, 20)));
    assert_eq!(outgoing.room(), 100);
}

#[test]
fn room_has_a_limit_whatever_the_guest_says() {
    let mut outgoing = Outgoing::new(u32::MAX, 0);
    assert_eq!(outgoing.room(), CREDIT_MAX);
    outgoing.send(CREDIT_MAX as usize);
    assert_eq!(outgoing.room(), 0);
    assert!(outgoing.update(&says(u32::MAX, 0)));
    assert_eq!(outgoing.room(), 0);
}

#[test]
fn the_guest_is_told_when_it_has_little_left() {
    let mut incoming = Incoming::new(100);
    incoming.receive(50);
    incoming.forward(50);
    assert!(!incoming.has_news(), "it has half");
    incoming.receive(1);
    assert!(incoming.has_news());
    assert_eq!(incoming.room(), 99);
    assert_eq!(incoming.tell(), 50);
    assert!(!incoming.has_news());
    incoming.receive(99);
    assert_eq!(incoming.room(), 0);
    assert!(!incoming.has_news(), "nothing has left");
    incoming.forward(1);
    assert!(incoming.has_news());
}
