//! What every device goes through, whatever it does: [`lifecycle_suite!`] makes the tests.

use std::sync::Arc;

use super::{Desc, Driver, GuestQueue, HOLE, MEMORY_SIZE};
use crate::virtio::VirtioDevice;
use crate::virtio::block::BlockState;
use crate::virtio::state::{CoreState, DeviceState};
use crate::virtio::transport::core::{Half, Ring, feature, status};

/// Makes a module of tests for the device that `$make` makes: an expression that gives a new one each
/// time. `$features`: those without which it does not work.
macro_rules! lifecycle_suite {
    ($make:expr) => {
        $crate::virtio::test_support::lifecycle_suite!($make, 0);
    };
    ($make:expr, $features:expr) => {
        mod lifecycle {
            #[allow(unused_imports, reason = "the expression may need them")]
            use super::*;
            use $crate::virtio::test_support::suite;

            #[test]
            fn comes_and_goes() {
                suite::comes_and_goes($make, $features);
            }
            #[test]
            fn is_reset_with_requests_in_flight() {
                suite::is_reset_with_requests_in_flight($make);
            }
            #[test]
            fn wants_features_it_offers() {
                suite::wants_features_it_offers($make);
            }
            #[test]
            fn wants_queues_of_a_size_it_allows() {
                suite::wants_queues_of_a_size_it_allows($make);
            }
            #[test]
            fn wants_rings_in_memory() {
                suite::wants_rings_in_memory($make);
            }
            #[test]
            fn does_without_queues() {
                suite::does_without_queues($make);
            }
            #[test]
            fn has_queues_reset_one_by_one() {
                suite::has_queues_reset_one_by_one($make);
            }
            #[test]
            fn is_paused_with_requests_in_flight() {
                suite::is_paused_with_requests_in_flight($make);
            }
            #[test]
            fn goes_on_as_another_one() {
                suite::goes_on_as_another_one(|| $make);
            }
            #[test]
            fn survives_hostile_states() {
                suite::survives_hostile_states(|| $make);
            }
            #[test]
            fn survives_hostile_rings() {
                suite::survives_hostile_rings(|| $make);
            }
            #[test]
            fn takes_any_access_to_its_configuration() {
                suite::takes_any_access_to_its_configuration($make);
            }
            #[test]
            fn goes_away_while_active() {
                drop($crate::virtio::test_support::Driver::started($make));
            }
        }
    };
}
pub(crate) use lifecycle_suite;

/// The tests themselves.
pub(crate) mod suite {
    use super::*;

    pub(crate) fn comes_and_goes(device: impl VirtioDevice + 'static, needed: u64) {
        let mut driver = Driver::new(device);
        for _ in 0..3 {
            driver.start(u64::MAX);
            assert!(!driver.is_broken());
            driver.reset();
            driver.start(1 << feature::VERSION_1 | needed);
            assert!(!driver.is_broken());
            // A device may be taken down by FAILED as well.
            driver
                .core
                .set_status(driver.core.status() | status::FAILED);
            driver.reset();
        }
    }

    /// Every queue full of requests of a few shapes; what a device makes of them is its own tests'.
    fn flood(driver: &mut Driver) {
        let readable = driver.buffer(64);
        let writable = driver.buffer(64);
        for index in 0..driver.queues.len() {
            for number in 0..driver.queues[index].size() / 2 {
                if number % 2 == 0 {
                    driver.queues[index].add(&[writable.writable()]);
                } else {
                    driver.queues[index].add(&[readable.readable(), writable.writable()]);
                }
            }
            driver.kick(index);
        }
    }

    pub(crate) fn is_reset_with_requests_in_flight(device: impl VirtioDevice + 'static) {
        let mut driver = Driver::new(device);
        for _ in 0..5 {
            driver.start(u64::MAX);
            flood(&mut driver);
            driver.reset();
            // Nothing touches the rings any more.
            let _: Vec<_> = driver
                .queues
                .iter_mut()
                .map(GuestQueue::take_used)
                .collect();
            std::thread::sleep(std::time::Duration::from_millis(2));
            for queue in &mut driver.queues {
                assert_eq!(queue.take_used(), []);
            }
        }
        driver.start(u64::MAX);
        assert!(!driver.is_broken());
    }

    /// What a device that stands still has done so far: nothing more happens in its rings.
    fn stands_still(driver: &mut Driver) -> CoreState {
        let state = driver.core.save().unwrap();
        for queue in &mut driver.queues {
            queue.take_used();
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
        for queue in &mut driver.queues {
            assert_eq!(queue.take_used(), []);
        }
        assert_eq!(driver.core.save().unwrap(), state);
        state
    }

    pub(crate) fn is_paused_with_requests_in_flight(device: impl VirtioDevice + 'static) {
        let mut driver = Driver::new(device);
        // Before there is a driver there is nothing to pause.
        driver.core.pause();
        driver.core.resume();
        driver.start(u64::MAX);
        flood(&mut driver);
        for _ in 0..3 {
            driver.core.pause();
            driver.core.pause();
            let state = stands_still(&mut driver);
            assert!(state.active);
            driver.core.resume();
            driver.core.resume();
        }
        // A driver may reset a device that is paused, if it comes to that.
        driver.core.pause();
        driver.reset();
        driver.core.resume();
        assert!(!driver.core.save().unwrap().active);
        driver.start(u64::MAX);
        assert!(!driver.is_broken());
    }

    pub(crate) fn goes_on_as_another_one<D: VirtioDevice + 'static>(make: impl Fn() -> D) {
        let mut driver = Driver::started(make());
        flood(&mut driver);
        driver.core.pause();
        let state = stands_still(&mut driver);
        for _ in 0..3 {
            let memory = Arc::clone(&driver.memory);
            let mut other = Driver::in_memory(make(), memory);
            other.core.restore(&state).unwrap();
            assert_eq!(other.core.save().unwrap(), state);
            other.core.interrupt_again();
            other.core.resume();
            assert_eq!(other.is_broken(), state.needs_reset);
            other.core.pause();
        }
        // One that nobody drives yet.
        driver.reset();
        let state = driver.core.save().unwrap();
        let mut other = Driver::new(make());
        other.core.restore(&state).unwrap();
        other.core.resume();
        other.start(u64::MAX);
        assert!(!other.is_broken());
    }

    pub(crate) fn survives_hostile_states<D: VirtioDevice + 'static>(make: impl Fn() -> D) {
        let mut driver = Driver::started(make());
        driver.core.pause();
        let good = driver.core.save().unwrap();
        let restore = |state: &CoreState| {
            let mut other = Driver::in_memory(make(), Arc::clone(&driver.memory));
            let restored = other.core.restore(state);
            if restored.is_ok() {
                other.core.interrupt_again();
                other.core.resume();
                for index in 0..other.core.queue_count() {
                    other.kick(index);
                }
                other.core.pause();
                other.core.resume();
            }
            (restored.is_ok(), other.is_broken())
        };
        let changed = |change: &dyn Fn(&mut CoreState)| {
            let mut state = good.clone();
            change(&mut state);
            restore(&state)
        };
        let (refused, taken, broken) = ((false, false), (true, false), (true, true));
        assert_eq!(restore(&good), taken);
        assert_eq!(changed(&|state| state.queues.clear()), refused);
        assert_eq!(
            changed(&|state| state.queues.push(state.queues[0])),
            refused
        );
        assert_eq!(changed(&|state| state.accepted = u64::MAX), refused);
        assert_eq!(changed(&|state| state.status = 0), refused);
        assert_eq!(changed(&|state| state.queues[0].size = 3), broken);
        assert_eq!(changed(&|state| state.queues[0].size = u16::MAX), broken);
        assert_eq!(changed(&|state| state.queues[0].desc = HOLE.0), broken);
        assert_eq!(
            changed(&|state| state.queues[0].used = u64::MAX - 1),
            broken
        );
        // A position is not wrong in itself: what is in the ring there may be.
        changed(&|state| state.queues[0].next_avail ^= 0x8000);
        changed(&|state| state.queues[0].next_used ^= 0x5555);
        let other_kinds = [
            DeviceState::Stateless,
            DeviceState::Block(BlockState { writeback: true }),
        ];
        for kind in other_kinds {
            let same = std::mem::discriminant(&kind) == std::mem::discriminant(&good.device);
            let (restored, _) = changed(&|state| state.device = kind.clone());
            assert_eq!(restored, same);
        }
    }

    pub(crate) fn wants_features_it_offers(device: impl VirtioDevice + 'static) {
        let mut driver = Driver::new(device);
        let negotiated = |driver: &mut Driver, low: u32, high: u32| {
            driver.core.set_status(0);
            driver.core.set_status(status::ACKNOWLEDGE | status::DRIVER);
            driver.core.accept_features(Half::Low, low);
            driver.core.accept_features(Half::High, high);
            driver
                .core
                .set_status(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
            driver.core.status() & status::FEATURES_OK != 0
        };
        let version_1 = 1 << (feature::VERSION_1 - 32);
        assert!(negotiated(&mut driver, 0, version_1));
        // Without VERSION_1, and with a bit that is reserved.
        assert!(!negotiated(&mut driver, 0, 0));
        assert!(!negotiated(&mut driver, 0, version_1 | 1 << 31));
        let not_offered = !driver.core.offered_features(Half::Low);
        assert!(!negotiated(&mut driver, not_offered, version_1));
        // DRIVER_OK without FEATURES_OK.
        driver.core.set_status(status::DRIVER_OK);
        assert!(driver.is_broken());
        // Features are settled with FEATURES_OK.
        assert!(negotiated(&mut driver, 0, version_1));
        driver.core.accept_features(Half::Low, u32::MAX);
        assert_eq!(driver.core.accepted_features(Half::Low), 0);
    }

    fn start_with_queue(driver: &mut Driver, change: impl Fn(&mut Driver)) -> bool {
        driver.start(u64::MAX);
        driver.reset();
        driver.negotiate(u64::MAX);
        for index in 0..driver.core.queue_count() {
            driver.set_up_queue(index);
        }
        driver.core.set_status(0);
        driver.negotiate(u64::MAX);
        change(driver);
        driver.core.set_queue_ready(0, true);
        driver
            .core
            .set_status(driver.core.status() | status::DRIVER_OK);
        !driver.is_broken()
    }

    fn describe(driver: &mut Driver, addresses: [u64; 3]) {
        for (ring, address) in [Ring::Desc, Ring::Avail, Ring::Used]
            .into_iter()
            .zip(addresses)
        {
            let halves = [
                (Half::Low, address as u32),
                (Half::High, (address >> 32) as u32),
            ];
            for (half, value) in halves {
                driver.core.set_queue_address(0, ring, half, value);
            }
        }
    }

    const GOOD: [u64; 3] = [0x10_0000, 0x10_8000, 0x10_a000];

    pub(crate) fn wants_queues_of_a_size_it_allows(device: impl VirtioDevice + 'static) {
        let mut driver = Driver::new(device);
        let max = driver.core.queue_max_size(0);
        let sizes = [0, 3, max - 1, max + 1, max.saturating_mul(2), u16::MAX];
        for size in sizes
            .into_iter()
            .filter(|size| *size > max || !size.is_power_of_two())
        {
            let started = start_with_queue(&mut driver, |driver| {
                driver.core.set_queue_size(0, size);
                describe(driver, GOOD);
            });
            assert!(!started, "size {size}");
        }
        assert!(start_with_queue(&mut driver, |driver| {
            driver.core.set_queue_size(0, max);
            describe(driver, GOOD);
        }));
    }

    pub(crate) fn wants_rings_in_memory(device: impl VirtioDevice + 'static) {
        let mut driver = Driver::new(device);
        let end = MEMORY_SIZE + HOLE.1;
        for bad in [
            u64::MAX - 15,
            !0xfff,
            end,
            end - 16,
            HOLE.0,
            HOLE.0 - 16,
            0x10_0001,
        ] {
            for ring in 0..3 {
                let mut addresses = GOOD;
                addresses[ring] = bad;
                if bad & 1 == 1 && ring == 0 {
                    addresses[ring] = 0x10_0008;
                }
                let started = start_with_queue(&mut driver, |driver| {
                    driver.core.set_queue_size(0, 16);
                    describe(driver, addresses);
                });
                assert!(!started, "{addresses:x?}");
            }
        }
    }

    pub(crate) fn does_without_queues(device: impl VirtioDevice + 'static) {
        let mut driver = Driver::new(device);
        driver.negotiate(u64::MAX);
        driver
            .core
            .set_status(driver.core.status() | status::DRIVER_OK);
        for index in 0..driver.core.queue_count() {
            driver.kick(index);
        }
        driver.reset();
        driver.start(u64::MAX);
        assert!(!driver.is_broken());
    }

    pub(crate) fn has_queues_reset_one_by_one(device: impl VirtioDevice + 'static) {
        let mut driver = Driver::started(device);
        for index in 0..driver.core.queue_count() {
            driver.core.reset_queue(index);
            assert!(!driver.core.queue(index).ready);
            driver.kick(index);
            let queue = GuestQueue::new(
                driver.memory.clone(),
                driver.queues[index].config().desc,
                driver.queues[index].size(),
            );
            driver.queues[index] = queue;
            driver.set_up_queue(index);
            assert!(!driver.is_broken());
            assert!(driver.core.queue(index).ready);
        }
    }

    /// Rings and chains that no driver makes. The device has to survive, and to work again after a
    /// reset.
    pub(crate) fn survives_hostile_rings<D: VirtioDevice + 'static>(make: impl Fn() -> D) {
        let mut driver = Driver::new(make());
        for break_it in HOSTILE {
            for queue in 0..driver.core.queue_count() {
                driver.start(u64::MAX);
                break_it(&mut driver.queues[queue]);
                driver.kick(queue);
                std::thread::sleep(std::time::Duration::from_millis(1));
                driver.reset();
            }
        }
        driver.start(u64::MAX);
        assert!(!driver.is_broken());
    }

    const IN_RAM: u64 = 0x80_0000;

    const HOSTILE: [fn(&mut GuestQueue); 16] = [
        // A loop.
        |queue| {
            let looped = |next| Desc {
                flags: Desc::NEXT,
                next,
                ..Desc::readable(IN_RAM, 16)
            };
            queue.set_desc(0, looped(1));
            queue.set_desc(1, looped(0));
            queue.make_available(0);
        },
        // A loop of writable buffers, which would be filled again and again.
        |queue| {
            let flags = Desc::NEXT | Desc::WRITE;
            queue.set_desc(
                0,
                Desc {
                    flags,
                    next: 0,
                    ..Desc::writable(IN_RAM, 4096)
                },
            );
            queue.make_available(0);
        },
        // A head and a next beyond the table.
        |queue| queue.make_available(u16::MAX),
        |queue| {
            queue.set_desc(
                0,
                Desc {
                    flags: Desc::NEXT,
                    next: u16::MAX,
                    ..Desc::readable(IN_RAM, 16)
                },
            );
            queue.make_available(0);
        },
        // No bytes at all.
        |queue| _ = queue.add(&[Desc::readable(IN_RAM, 0), Desc::writable(IN_RAM, 0)]),
        // Outside memory, in the hole, across its edge, and around the end of the address space.
        |queue| {
            _ = queue.add(&[
                Desc::readable(MEMORY_SIZE * 4, 64),
                Desc::writable(IN_RAM, 64),
            ]);
        },
        |queue| _ = queue.add(&[Desc::readable(IN_RAM, 64), Desc::writable(HOLE.0, 64)]),
        |queue| _ = queue.add(&[Desc::readable(HOLE.0 - 8, 64), Desc::writable(IN_RAM, 64)]),
        |queue| {
            _ = queue.add(&[
                Desc::readable(u64::MAX - 7, 64),
                Desc::writable(u64::MAX, u32::MAX),
            ]);
        },
        // 4 GiB and more in a chain.
        |queue| _ = queue.add(&[Desc::writable(0, u32::MAX), Desc::writable(0, u32::MAX)]),
        // Writable first.
        |queue| _ = queue.add(&[Desc::writable(IN_RAM, 64), Desc::readable(IN_RAM, 64)]),
        // The same memory to read and to write, and the rings themselves.
        |queue| _ = queue.add(&[Desc::readable(IN_RAM, 64), Desc::writable(IN_RAM, 64)]),
        |queue| {
            let ring = queue.config().used;
            queue.add(&[Desc::readable(ring, 64), Desc::writable(ring, 64)]);
        },
        // An indirect table in an indirect table, one that is cut off, and one outside memory.
        |queue| {
            let inner = Desc {
                flags: Desc::INDIRECT,
                ..Desc::readable(IN_RAM, 32)
            };
            queue.write_table(IN_RAM, &[inner, inner]);
            queue.add(&[Desc {
                flags: Desc::INDIRECT,
                ..Desc::readable(IN_RAM, 32)
            }]);
        },
        |queue| {
            for (gpa, len) in [(IN_RAM, 17), (IN_RAM, 0), (u64::MAX - 8, 32), (HOLE.0, 16)] {
                queue.add(&[Desc {
                    flags: Desc::INDIRECT,
                    ..Desc::readable(gpa, len)
                }]);
            }
        },
        // An index that jumps.
        |queue| queue.set_avail_index(queue.size() + 1),
    ];

    pub(crate) fn takes_any_access_to_its_configuration(device: impl VirtioDevice + 'static) {
        let mut driver = Driver::started(device);
        let offsets = (0..80).chain([0xeff, 0x1000, u64::MAX - 3, u64::MAX]);
        for offset in offsets {
            for len in [0, 1, 2, 3, 4, 8, 64] {
                let mut data = vec![0xaa; len];
                driver.core.read_config(offset, &mut data);
                driver.core.write_config(offset, &data);
            }
        }
        driver.reset();
        driver.start(u64::MAX);
        assert!(!driver.is_broken());
    }
}
