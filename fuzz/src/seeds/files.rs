//! What lies beside state files: differential memory files with what they are merged into, and lists of pages.

use super::{Script, Seeds};

/// One way of merging each.
pub(super) fn merge() -> Seeds {
    let mut seeds = Vec::new();
    for (into, name) in [(0, "into-base"), (1, "into-changed"), (2, "into-third")] {
        let mut script = Script::default();
        // Two regions; nothing is wrong.
        script.u8(into).u8(1).u8(9).u8(19).u8(0);
        contents(&mut script);
        // Three ranges: the first pages, some behind, and the other region's.
        script.u8(3);
        script.u8(1).u8(1).u8(0x21).u8(7).u8(0x11).u8(3);
        seeds.push((name, script.0));
    }
    for (bit, name) in [
        (0, "other-regions"),
        (1, "other-ids"),
        (2, "other-count"),
        (3, "cut"),
        (4, "damaged"),
        (5, "cut-base"),
        (6, "other-kind"),
    ] {
        let mut script = Script::default();
        script.u8(2).u8(0).u8(9).u8(0x80 | 1 << bit).u8(1);
        contents(&mut script);
        script.u8(1).u8(1).u8(1);
        script.u8(0).u32(0x8000).u8(0);
        seeds.push((name, script.0));
    }
    let mut script = Script::default();
    script.u8(2).u8(0).u8(9).u8(0);
    contents(&mut script);
    // A range that is said in full.
    script.u8(1).u8(0).u32(0x1000).u8(0).u32(0x2000).u8(0);
    seeds.push(("in-full", script.0));
    seeds
}

fn contents(script: &mut Script) {
    script.u8(4);
    for page in [0, 3, 9, 12] {
        script.u8(page).u8(0xb0);
    }
    script.u8(3);
    for page in [1, 3, 11] {
        script.u8(page).u8(0xc0);
    }
}

/// Lists that fit, and some that do not.
pub(super) fn working_set() -> Seeds {
    let list = |how: u8| {
        let mut script = Script::default();
        // Two regions of 768 and 512 pages.
        script.u8(how).u8(2).u16(768).u16(512);
        script.u8(0x05).u8(9).u8(0x34).u8(0).u8(0xf5).u8(200);
        // The first pages of the second region.
        script.u8(0).u32(1024).u32(512);
        script.0
    };
    let mut changed = Script::default();
    changed
        .u8(0)
        .u8(0x80 | 0x20 | 1)
        .u16(768)
        .u8(0)
        .u32(0x1000)
        .u8(0);
    changed.u8(0x04).u8(0);
    let mut raw = Script::default();
    raw.u8(1).u8(1).u16(768).bytes(b"0123456789abcdef");
    raw.bytes(&[2, 0, 4, 1, 8, 1, 0]);
    vec![
        ("fits", list(0)),
        ("of-another", list(2)),
        ("damaged", list(0xac)),
        ("other-regions", changed.0),
        ("raw", raw.0),
    ]
}
