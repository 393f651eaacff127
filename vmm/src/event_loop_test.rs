use std::sync::atomic::AtomicUsize;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;

/// Counts what it is woken for.
struct Counter {
    wake: EventFd,
    count: Arc<AtomicUsize>,
}

impl MutEventSubscriber for Counter {
    fn process(&mut self, _: Events, _: &mut EventOps) {
        self.wake.read().unwrap();
        self.count.fetch_add(1, Ordering::SeqCst);
    }

    fn init(&mut self, ops: &mut EventOps) {
        ops.add(Events::new(&self.wake, EventSet::IN)).unwrap();
    }
}

fn counter() -> (Counter, EventFd, Arc<AtomicUsize>) {
    let wake = EventFd::new(EFD_NONBLOCK).unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counter = Counter {
        wake: wake.try_clone().unwrap(),
        count: Arc::clone(&count),
    };
    (counter, wake, count)
}

fn wait_for(count: &AtomicUsize, wanted: usize) {
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while count.load(Ordering::SeqCst) != wanted {
        assert!(std::time::Instant::now() < deadline, "it was not woken");
        std::thread::yield_now();
    }
}

#[test]
fn a_worker_works_from_attach_to_detach() {
    let io_thread = IoThread::start("io-test".into()).unwrap();
    let (worker, wake, count) = counter();
    let id = io_thread.attach(Box::new(worker)).unwrap();
    wake.write(1).unwrap();
    wait_for(&count, 1);
    io_thread.detach(id).unwrap();
    wake.write(1).unwrap();
    // Another worker's turn comes after that would have been.
    let (other, wake, other_count) = counter();
    io_thread.attach(Box::new(other)).unwrap();
    wake.write(1).unwrap();
    wait_for(&other_count, 1);
    assert_eq!(count.load(Ordering::SeqCst), 1);
}

#[test]
fn a_thread_ends_with_its_last_user() {
    let io_thread = IoThread::start("io-test".into()).unwrap();
    let (worker, ..) = counter();
    io_thread.attach(Box::new(worker)).unwrap();
    // Waits for it.
    drop(io_thread);
}

#[test]
fn nobody_waits_for_a_loop_that_has_ended() {
    let manager = Manager::new().unwrap();
    let ended = Arc::new(AtomicBool::new(false));
    let remote = Remote::new(&manager, Arc::clone(&ended));
    let waiter = std::thread::spawn(move || {
        let (worker, ..) = counter();
        (remote.attach(Box::new(worker)).is_err(), remote)
    });
    // Whether it waits by now or not.
    drop(EndOnDrop::new(ended));
    let (failed, remote) = waiter.join().unwrap();
    assert!(failed);
    let (worker, ..) = counter();
    assert!(remote.attach(Box::new(worker)).is_err());
}
