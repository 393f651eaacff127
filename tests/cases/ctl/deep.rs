//! Guests that come from guests that come from guests.

use std::fs;

use tests::ctl::Host;
use tests::executable::churning_kernel;
use tests::live::Live;

use super::fork::{Leftovers, attach, guests, nothing_left};
use super::snapshot::start;

const GENERATIONS: usize = 10;
/// Bytes of the memory that the guest goes through, and finds as it has left it, again and again.
const TOUCHED: u32 = 32 << 20;

/// Each is written, ends, and goes on in another process; every third time it is written as what changed.
pub(super) fn restored() {
    for options in [&[][..], &["--enable-pci"]] {
        let host = Host::new();
        let mut guest = start(&host, "g-0", options, &churning_kernel(TOUCHED), false);
        guest.expect("=0");
        let mut last = String::new();
        for generation in 1..=GENERATIONS {
            let id = format!("g-{}", generation - 1);
            let next = host.path().join(format!("saved-{generation}"));
            let next = next.to_str().unwrap().to_owned();
            if generation % 3 == 0 {
                let diff = host.path().join("diff");
                let diff = diff.to_str().unwrap();
                host.ask(&["snapshot", &id, diff, "--diff"]);
                let info = host.ask_json(&["snapshot", "info", diff, "--json"]);
                assert!(info["base_memory_id"].is_string(), "{info}");
                host.ask(&["snapshot", "merge", &last, diff, "--into", &next]);
                fs::remove_dir_all(diff).unwrap();
            } else {
                host.ask(&["snapshot", &id, &next]);
            }
            host.ask(&["kill", &id]);
            assert_eq!(guest.wait().status, 0);
            if !last.is_empty() {
                fs::remove_dir_all(&last).unwrap();
            }
            let id = format!("g-{generation}");
            guest = Live::start(host.command(&["restore", &next, "--id", &id]));
            assert_eq!(guest.count(), 1, "generation {generation}");
            last = next;
        }
        host.ask(&["kill", &format!("g-{GENERATIONS}")]);
        assert_eq!(guest.wait().status, 0);
    }
}

/// Each has a copy and ends.
pub(super) fn forked() {
    let host = Host::new();
    let _leftovers = Leftovers(&host);
    let mut parent = start(&host, "g-0", &[], &churning_kernel(TOUCHED), false);
    parent.expect("=0");
    for generation in 1..=GENERATIONS {
        let (before, id) = (format!("g-{}", generation - 1), format!("g-{generation}"));
        assert_eq!(host.ask(&["fork", &before, "--id", &id]), format!("{id}\n"));
        host.ask(&["kill", &before]);
        let mut copy = attach(&host, &id);
        assert_eq!(copy.count(), 1, "generation {generation}");
        drop(copy.kill());
    }
    assert_eq!(parent.wait().status, 0);
    assert_eq!(guests(&host).len(), 1);
    host.ask(&["kill", &format!("g-{GENERATIONS}")]);
    nothing_left(&host, &["kernel"]);
}
