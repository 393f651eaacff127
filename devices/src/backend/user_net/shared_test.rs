use std::time::Duration;

use super::*;

#[test]
fn keys_of_entries_that_ended_lead_nowhere() {
    let mut slab = Slab::new();
    let first = slab.insert(1);
    assert_eq!(slab.remove(first), Some(1));
    assert_eq!(slab.remove(first), None);
    let second = slab.insert(2);
    assert_eq!(second.index, first.index);
    assert_eq!(slab.get_mut(first), None);
    assert_eq!(slab.get_mut(second), Some(&mut 2));
    assert_eq!((slab.len(), slab.keys()), (1, vec![second]));
}

#[test]
fn tokens_come_back_from_epoll() {
    let key = Key {
        index: 0xdead_beef,
        generation: GENERATION_MASK,
    };
    let tokens = [
        Token::Tcp(key),
        Token::Flow(key),
        Token::Forward(u16::MAX),
        Token::Router,
    ];
    for token in tokens {
        assert_eq!(Token::unpack(token.pack()), token);
    }
}

#[test]
fn timers_that_were_moved_go_off_when_they_should() {
    let mut timers = Timers::default();
    let mut alarm = Alarm::default();
    let token = Token::Router;
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    timers.set(&mut alarm, token, Some(at(10)));
    // Later: the old one goes off, and is set again.
    timers.set(&mut alarm, token, Some(at(20)));
    assert_eq!(timers.pop(at(9)), None);
    assert_eq!(timers.pop(at(10)), Some(token));
    assert!(!timers.is_due(&mut alarm, token, at(10)));
    assert_eq!(timers.next(), Some(at(20)));
    // Sooner: at once.
    timers.set(&mut alarm, token, Some(at(15)));
    assert_eq!(timers.next(), Some(at(15)));
    assert_eq!(timers.pop(at(15)), Some(token));
    assert!(timers.is_due(&mut alarm, token, at(15)));
    assert_eq!(timers.next(), None);
    // Not at all.
    timers.set(&mut alarm, token, Some(at(30)));
    timers.set(&mut alarm, token, None);
    assert_eq!(timers.pop(at(30)), Some(token));
    assert!(!timers.is_due(&mut alarm, token, at(30)));
    timers.set(&mut alarm, token, Some(at(40)));
    timers.cancel(&mut alarm, token);
    assert_eq!(timers.next(), None);
}

#[test]
fn refusals_are_counted_each_time_and_logged_for_a_bounded_number_of_destinations() {
    let rules = vec!["allow=none".parse().unwrap()];
    let config = Config {
        policy: policy::Policy::new(rules),
        ..Config::default()
    };
    let mut shared = Shared::new(config).unwrap();
    for round in 1..=3 {
        for index in 0..1000 {
            let destination = SocketAddr::new(Ipv4Addr::new(8, 8, 8, 8).into(), 1 + index);
            let route = shared.route(destination, Some(Protocol::Tcp));
            assert_eq!(route, Route::Refused);
        }
        assert_eq!(shared.counters.refused, round * 1000);
        assert_eq!(shared.logged.len(), MAX_LOGGED);
    }
}
