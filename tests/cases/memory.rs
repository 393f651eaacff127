//! Memory that is plugged and unplugged while the guest runs: by Debian's kernel, which has a driver for
//! that.

use tests::driven::{Driven, until};
use vmm_sys_util::tempdir::TempDir;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("plugged_memory_is_the_guests", plugged),
    ("a_guest_without_a_driver_is_not_asked", no_driver),
];

const MIB: u64 = 1 << 20;
/// What is plugged can be unplugged only if the guest's kernel keeps nothing of its own in it.
const ONLINE: &str = "memhp_default_state=online_movable";
/// What the guest has in all, in KiB.
const TOTAL: &str = "awk '/^MemTotal/ { print $2 }' /proc/meminfo";

fn total(guest: &mut Driven) -> u64 {
    guest.guest(TOTAL).trim().parse::<u64>().unwrap() << 10
}

/// Waits until so much is plugged.
#[track_caller]
fn has_plugged(guest: &mut Driven, size: u64) {
    until("the memory", || {
        (guest.numbers("memory-status")["plugged"] == size).then_some(())
    });
}

fn plugged() {
    let directory = TempDir::new().unwrap();
    for pci in [false, true] {
        let mut options = vec!["--memory", "256m", "--memory-hotplug", "total=512m"];
        options.extend(["--balloon", "0", "--append", ONLINE]);
        options.extend(pci.then_some("--pci"));
        let mut guest = Driven::start_packaged(directory.as_path(), &options);
        let status = guest.numbers("memory-status");
        assert_eq!(
            (status["total"], status["slot"], status["block"]),
            (512 * MIB, 128 * MIB, 2 * MIB)
        );
        assert_eq!((status["plugged"], status["requested"]), (0, 0));
        let before = total(&mut guest);
        guest.refused("memory 1m", &["block size"]);
        guest.refused("memory 1g", &["more than"]);
        guest.refused("balloon 300m", &["leaves the guest nothing"]);
        guest.ask("memory 384m");
        has_plugged(&mut guest, 384 * MIB);
        guest.guest(&format!(
            "more() {{ [ $({TOTAL}) -gt {} ]; }}; await more",
            (before + 300 * MIB) >> 10
        ));
        // More than it had at first, all of it its own.
        guest.tell("must guest-probe memory 400m --wait");
        guest.live().expect("FILLED");
        let filled = guest.live().resident();
        assert!(filled > 400 * MIB, "{} MiB are resident", filled / MIB);
        guest.tell("");
        guest.done();
        guest.ask("memory 128m");
        has_plugged(&mut guest, 128 * MIB);
        guest.ask("memory 0");
        has_plugged(&mut guest, 0);
        assert!(total(&mut guest) <= before);
        until("the memory to go back", || {
            (guest.live().resident() < filled - 200 * MIB).then_some(())
        });
        // Once more, with what was there before.
        guest.ask("memory 256m");
        has_plugged(&mut guest, 256 * MIB);
        guest.guest("must guest-probe memory 300m");
        guest.end();
    }
}

fn no_driver() {
    let directory = TempDir::new().unwrap();
    let options = ["--memory-hotplug", "total=1g,slot=256m,block=4m"];
    let mut guest = Driven::start(directory.as_path(), &options);
    guest.refused("memory 256m", &["no driver"]);
    let status = guest.numbers("memory-status");
    assert_eq!((status["plugged"], status["requested"]), (0, 0));
    assert_eq!((status["slot"], status["block"]), (256 * MIB, 4 * MIB));
    guest.end();
}
