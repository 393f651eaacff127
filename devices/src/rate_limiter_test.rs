//! Buckets on a clock that only the test moves.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

const MIB: u64 = 1 << 20;

/// A limiter and its time.
struct Fixture {
    limiter: RateLimiter,
    now: Arc<AtomicU64>,
}

impl Fixture {
    fn new(limit: RateLimit) -> Self {
        let now = Arc::new(AtomicU64::new(12_345));
        let clock = Clock::Manual(Arc::clone(&now));
        Self {
            limiter: RateLimiter::with_clock(limit, clock).unwrap(),
            now,
        }
    }

    fn bytes(size: u64, refill_time_ms: u64, burst: u64) -> Self {
        Self::new(RateLimit {
            bandwidth: Bucket::new(size, refill_time_ms, burst),
            ops: None,
        })
    }

    fn pass(&self, time: Duration) {
        let nanos = u64::try_from(time.as_nanos()).unwrap();
        self.now.fetch_add(nanos, Ordering::Relaxed);
    }

    /// Lets the time pass that the timer is set for.
    fn expire(&mut self) -> Duration {
        let time = self.limiter.armed.take().expect("no timer runs");
        self.pass(time);
        self.limiter.on_timer();
        time
    }

    /// Takes `bytes` as soon as they are let through; says how long that took.
    fn take_waiting(&mut self, bytes: u64) -> Duration {
        let mut waited = Duration::ZERO;
        while !self.limiter.take(1, bytes) {
            waited += self.expire();
        }
        waited
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn no_limit_costs_no_descriptor_and_refuses_nothing() {
    for mut limiter in [
        RateLimiter::unlimited(),
        RateLimiter::new(RateLimit::default()).unwrap(),
    ] {
        assert!(limiter.is_unlimited());
        assert_eq!(limiter.timer_fd(), None);
        for _ in 0..3 {
            assert!(limiter.take(u64::MAX, u64::MAX));
        }
        limiter.give_back(u64::MAX, u64::MAX);
        limiter.on_timer();
        assert!(!limiter.is_blocked());
    }
}

#[test]
fn zero_is_no_limit_as_in_the_api() {
    assert_eq!(Bucket::new(0, 100, 5), None);
    assert_eq!(Bucket::new(100, 0, 5), None);
    assert!(Bucket::new(1, 1, 0).is_some());
}

#[test]
fn an_empty_bucket_refuses_takes_nothing_and_says_when() {
    let mut fixture = Fixture::bytes(1000, 1000, 0);
    assert!(fixture.limiter.take(1, 600));
    assert!(!fixture.limiter.take(1, 600));
    assert!(fixture.limiter.is_blocked());
    assert_eq!(fixture.limiter.armed, Some(Duration::from_millis(200)));
    // A small request does not overtake.
    assert!(!fixture.limiter.take(1, 1));
    assert_eq!(fixture.expire(), Duration::from_millis(200));
    assert!(!fixture.limiter.is_blocked());
    assert!(fixture.limiter.take(1, 600));
    assert!(!fixture.limiter.take(1, 1));
    assert_eq!(fixture.expire(), Duration::from_millis(1));
}

#[test]
fn a_bucket_does_not_overflow() {
    let mut fixture = Fixture::bytes(1000, 1000, 0);
    assert!(fixture.limiter.take(1, 1000));
    fixture.pass(SECOND * 1_000_000);
    assert!(fixture.limiter.take(1, 1000));
    assert!(!fixture.limiter.take(1, 1));
}

#[test]
fn the_burst_is_spent_first_and_only_once() {
    let mut fixture = Fixture::bytes(1000, 1000, 5000);
    assert!(fixture.limiter.take(1, 5500));
    assert!(fixture.limiter.take(1, 500));
    assert!(!fixture.limiter.take(1, 1000));
    fixture.expire();
    fixture.pass(SECOND * 100);
    assert!(fixture.limiter.take(1, 1000));
    assert!(!fixture.limiter.take(1, 1));
}

#[test]
fn a_request_larger_than_the_bucket_waits_for_a_full_one_and_pays_later() {
    let mut fixture = Fixture::bytes(1000, 1000, 0);
    assert!(fixture.limiter.take(1, 1));
    assert!(!fixture.limiter.take(1, 3000));
    assert_eq!(fixture.expire(), Duration::from_millis(1));
    assert!(fixture.limiter.take(1, 3000));
    // 2000 in debt.
    assert!(!fixture.limiter.take(1, 1000));
    assert_eq!(fixture.expire(), SECOND * 3);
    assert!(fixture.limiter.take(1, 1000));
}

#[test]
fn the_rate_is_exact_however_it_is_asked_for() {
    // 3 in 7 ms divides nothing evenly.
    for amounts in [&[1, 2, 3][..], &[1], &[2, 5, 1, 9], &[100]] {
        let mut fixture = Fixture::bytes(3, 7, 0);
        let (mut taken, mut waited) = (0, Duration::ZERO);
        for _ in 0..3000 {
            for &amount in amounts {
                waited += fixture.take_waiting(amount);
                taken += amount;
            }
        }
        let ideal = Duration::from_nanos((taken - 3) * 7_000_000 / 3);
        let last = Duration::from_millis(7 * amounts.iter().max().unwrap());
        assert!(waited <= ideal + last, "{amounts:?}: {waited:?} {ideal:?}");
        assert!(waited + last >= ideal, "{amounts:?}: {waited:?} {ideal:?}");
    }
}

#[test]
fn asking_often_does_not_change_the_rate() {
    let mut fixture = Fixture::bytes(1000, 1000, 0);
    assert!(fixture.limiter.take(1, 1000));
    // A third of a token at a time.
    for _ in 0..3000 {
        fixture.pass(Duration::from_nanos(333_333));
        fixture.limiter.take(1, 1_000_000);
        fixture.limiter.on_timer();
    }
    fixture.pass(Duration::from_nanos(1000));
    assert!(fixture.limiter.take(1, 1000));
}

#[test]
fn both_buckets_have_to_agree() {
    let mut fixture = Fixture::new(RateLimit {
        bandwidth: Bucket::new(1000, 1000, 0),
        ops: Bucket::new(2, 1000, 0),
    });
    assert!(fixture.limiter.take(1, 100));
    assert!(fixture.limiter.take(1, 100));
    assert!(!fixture.limiter.take(1, 100));
    assert_eq!(fixture.expire(), SECOND / 2);
    // Nothing of the refused one was taken: the bytes are full again, and the operation is there.
    assert!(fixture.limiter.take(1, 1000));
    // The slower of two decides.
    assert!(!fixture.limiter.take(1, 900));
    assert_eq!(fixture.expire(), Duration::from_millis(900));
}

#[test]
fn what_is_given_back_can_be_taken_again() {
    let mut fixture = Fixture::bytes(1000, 1000, 500);
    assert!(fixture.limiter.take(1, 1500));
    assert!(!fixture.limiter.take(1, 1000));
    assert_eq!(fixture.limiter.armed, Some(SECOND));
    fixture.limiter.give_back(1, 1500);
    assert_eq!(fixture.limiter.armed, Some(AT_ONCE));
    fixture.expire();
    assert!(fixture.limiter.take(1, 1500));
    // Never more than there was.
    fixture.limiter.give_back(u64::MAX, u64::MAX);
    assert!(fixture.limiter.take(1, 1500));
    assert!(!fixture.limiter.take(1, 1));
}

#[test]
fn an_update_lets_go_of_what_it_allows() {
    let slow = RateLimit {
        bandwidth: Bucket::new(1000, 100_000, 0),
        ops: None,
    };
    for fast in [
        RateLimit::default(),
        RateLimit {
            bandwidth: Bucket::new(5000, 1000, 0),
            ops: Bucket::new(1, 1, 0),
        },
    ] {
        let mut fixture = Fixture::new(slow);
        let fd = fixture.limiter.timer_fd();
        assert!(fd.is_some());
        assert!(fixture.limiter.take(1, 1000));
        assert!(!fixture.limiter.take(1, 1000));
        fixture.limiter.update(fast).unwrap();
        assert_eq!(fixture.limiter.limit(), fast);
        assert_eq!(fixture.limiter.armed, Some(AT_ONCE));
        fixture.expire();
        assert!(fixture.limiter.take(1, 1000));
        assert_eq!(fixture.limiter.timer_fd(), fd, "it is watched");
    }
}

#[test]
fn an_update_that_changes_nothing_is_no_refill() {
    let mut fixture = Fixture::bytes(1000, 1000, 1000);
    assert!(fixture.limiter.take(1, 2000));
    let limit = fixture.limiter.limit();
    fixture.limiter.update(limit).unwrap();
    assert!(!fixture.limiter.take(1, 1));
}

#[test]
fn the_first_limit_may_come_while_the_guest_runs() {
    let mut limiter = RateLimiter::unlimited();
    let bandwidth = Bucket::new(10, 1_000_000, 0);
    let ops = None;
    limiter.update(RateLimit { bandwidth, ops }).unwrap();
    assert!(limiter.timer_fd().is_some());
    assert!(limiter.take(1, 10));
    assert!(!limiter.take(1, 10));
}

#[test]
fn no_numbers_are_too_large() {
    let extremes = [1, 2, 1000, u64::MAX / 2, u64::MAX - 1, u64::MAX];
    for size in extremes {
        for time in extremes {
            for burst in [0, 1, u64::MAX] {
                let mut fixture = Fixture::new(RateLimit {
                    bandwidth: Bucket::new(size, time, burst),
                    ops: Bucket::new(size, time, burst),
                });
                for amount in [0, 1, u64::MAX, 7, u64::MAX - 1, u64::MAX] {
                    fixture.limiter.take(amount, amount);
                    fixture.limiter.give_back(amount / 3, amount);
                    fixture.now.store(amount, Ordering::Relaxed);
                    fixture.limiter.on_timer();
                    fixture.limiter.take(amount, amount);
                }
            }
        }
    }
}

#[test]
fn a_wait_of_ages_is_one_of_many_hours() {
    let mut fixture = Fixture::bytes(1, u64::MAX, 0);
    assert!(fixture.limiter.take(1, 1));
    for _ in 0..3 {
        assert!(!fixture.limiter.take(1, 1));
        assert_eq!(fixture.expire(), LONGEST_WAIT);
    }
}

#[test]
fn time_that_goes_backwards_gives_nothing_away() {
    let mut fixture = Fixture::bytes(1000, 1000, 0);
    assert!(fixture.limiter.take(1, 1000));
    fixture.now.store(0, Ordering::Relaxed);
    assert!(!fixture.limiter.take(1, 1));
}

#[test]
fn the_timer_expires() {
    let bandwidth = Bucket::new(1, 1, 0);
    let ops = None;
    let mut limiter = RateLimiter::new(RateLimit { bandwidth, ops }).unwrap();
    while limiter.take(1, 1) {}
    // Blocks until it has.
    limiter.timer.as_mut().unwrap().wait().unwrap();
    limiter.on_timer();
    assert!(!limiter.is_blocked());
}

#[test]
fn the_command_line_form() {
    let parse = |text| Bucket::parse(text, parse_ops);
    assert_eq!(parse("1000"), Ok(Bucket::new(125, 125, 0).unwrap()));
    assert_eq!(parse("1001/s"), Ok(Bucket::new(1001, 1000, 0).unwrap()));
    assert_eq!(parse("8/s+50"), Ok(Bucket::new(1, 125, 50).unwrap()));
    let mib = |_: &str| Ok(10 * MIB);
    let ten = Bucket::parse("10m", mib).unwrap();
    assert_eq!((ten.size(), ten.refill_time_ms()), (10 * MIB / 8, 125));
    for text in ["", "x", "-1", "1+", "+1", "0", "0+5", "1/m", "1.5"] {
        assert!(parse(text).is_err(), "{text}");
    }
}

#[test]
fn a_meter_lets_through_what_is_in_the_bucket() {
    let now = Arc::new(AtomicU64::new(7));
    let clock = Clock::Manual(Arc::clone(&now));
    let mut meter = Meter::with_clock(Bucket::new(1000, 1000, 50).unwrap(), clock);
    assert_eq!(meter.available(), 1050);
    meter.take(1000);
    assert_eq!(meter.available(), 50);
    meter.take(50);
    assert_eq!(meter.available(), 0);
    // A byte a millisecond, and no burst again.
    now.fetch_add(10_500_000, Ordering::Relaxed);
    assert_eq!(meter.available(), 10);
    meter.take(10);
    now.fetch_add(10_000_000_000, Ordering::Relaxed);
    assert_eq!(meter.available(), 1000);
}
