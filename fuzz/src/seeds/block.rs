//! Seeds for the guest with a disk ([`crate::block`]), and for damaged images ([`crate::qcow2`]).

use super::{Script, Seeds};

const IN: u8 = 0;
const OUT: u8 = 1;
const FLUSH: u8 = 2;
const GET_ID: u8 = 3;
const DISCARD: u8 = 4;
const WRITE_ZEROES: u8 = 5;
/// The queue of a request, in its kind.
const SECOND_QUEUE: u8 = 1 << 4;
/// In the shape of a request: it waits for the next kick.
const NO_KICK: u8 = 4;

// What a disk is.
const QCOW2: u8 = 1;
const TEMPORARY: u8 = 2 << 1;
const OVERLAY: u8 = 3 << 1;
const IO_URING: u8 = 3 << 3;
const UNSAFE: u8 = 1 << 5;
const READ_ONLY: u8 = 3 << 6;

impl Script {
    /// Data from or to the disk, in pieces of so many sectors.
    fn transfer(&mut self, kind: u8, shape: u8, sector: u16, pieces: &[u8]) -> &mut Self {
        self.u8(0)
            .u8(kind)
            .u8(shape | (pieces.len() as u8 - 1))
            .u16(sector)
            .bytes(pieces)
    }

    /// Ranges: first sector, sectors, flags.
    fn ranges(&mut self, kind: u8, ranges: &[(u16, u16, u8)]) -> &mut Self {
        self.u8(0).u8(kind).u8(ranges.len() as u8 - 1).u16(0);
        for &(sector, sectors, flags) in ranges {
            self.u16(sector).u16(sectors).u8(flags);
        }
        self
    }

    fn flush(&mut self, shape: u8) -> &mut Self {
        self.u8(0).u8(FLUSH).u8(shape).u16(0)
    }

    fn wait(&mut self) -> &mut Self {
        self.u8(9)
    }

    fn restart(&mut self, shape: u8) -> &mut Self {
        self.u8(10).u8(shape)
    }

    fn reset_queue(&mut self, queue: u8) -> &mut Self {
        self.u8(11).u8(1).u8(queue)
    }

    fn limit(&mut self, shape: u8) -> &mut Self {
        self.u8(12).u8(shape << 4)
    }

    /// To so many quarters of KiB.
    fn resize(&mut self, size: u16) -> &mut Self {
        self.u8(12).u8(1).u16(size)
    }

    fn replace(&mut self) -> &mut Self {
        self.u8(12).u8(2)
    }

    fn writeback(&mut self, value: u8) -> &mut Self {
        self.u8(13).u8(value)
    }

    /// What a driver does with any disk.
    fn use_disk(&mut self) -> &mut Self {
        self.transfer(IN, 0, 0, &[8, 8])
            .transfer(OUT, 0, 8, &[8])
            .transfer(IN, 0, 8, &[1, 2, 5]);
        self.u8(0).u8(GET_ID).u8(0).u16(0).u8(1).flush(0);
        // Several at a time, some of them to the same place.
        for sector in [16, 17, 100, 1000, 16, 17] {
            self.transfer(OUT, NO_KICK, sector, &[2]);
        }
        self.transfer(IN, 0, 16, &[8, 1]).wait().flush(0).wait();
        self.ranges(DISCARD, &[(8, 8, 0), (128, 128, 0)]);
        self.ranges(WRITE_ZEROES, &[(0, 16, 0), (256, 256, 1), (1000, 1, 0)]);
        self.transfer(IN, 0, 0, &[16, 16, 16]).flush(0).wait()
    }
}

/// A disk of this kind; `rest` has the number of queues less one, and limits from bit 6 on.
fn disk(kind: u8, shape: u8, rest: u8) -> Script {
    let mut script = Script::default();
    script.u8(kind).u8(shape).u8(rest).u8(0);
    script
}

pub(super) fn block() -> Seeds {
    let used = |kind, shape| {
        let mut script = disk(kind, shape, 0);
        script.use_disk();
        script.0
    };
    let mut queues = disk(0, 0, 3);
    for queue in 0..4 {
        queues.transfer(OUT | queue << 4, NO_KICK, 8, &[4]);
    }
    queues
        .transfer(IN | SECOND_QUEUE, 0, 8, &[4])
        .reset_queue(1)
        .wait();
    queues
        .transfer(IN | SECOND_QUEUE, 0, 8, &[4])
        .reset_queue(0x82)
        .wait();
    // Reset with requests in flight.
    let mut in_flight = disk(IO_URING, 0, 0);
    for sector in 0..7 {
        in_flight.transfer(OUT, NO_KICK, sector * 8, &[63]);
    }
    in_flight.transfer(IN, 0, 0, &[63]).restart(0).use_disk();
    in_flight
        .transfer(OUT, NO_KICK, 0, &[63])
        .transfer(OUT, 0, 8, &[8])
        .restart(0);
    let mut limits = disk(0, 0, 0xc0);
    for sector in 0..8 {
        limits.transfer(OUT, 0, sector, &[4]);
    }
    limits
        .wait()
        .wait()
        .limit(4)
        .transfer(IN, 0, 0, &[63, 63])
        .wait()
        .limit(0)
        .wait();
    limits.restart(0).transfer(IN, 0, 0, &[2]);
    let mut host = disk(IO_URING, 0, 0);
    host.resize(0x1800)
        .transfer(IN, 0, 2047, &[2])
        .resize(0x800)
        .transfer(IN, 0, 1000, &[63]);
    host.replace()
        .transfer(IN, 0, 0, &[4])
        .transfer(OUT, NO_KICK, 8, &[4])
        .replace()
        .wait();
    host.u8(12).u8(6);
    let mut short = disk(0, 0, 0);
    short.u8(12).u8(3).u16(0x100).use_disk();
    let mut write_through = disk(0, 0, 0);
    write_through
        .writeback(0)
        .use_disk()
        .writeback(1)
        .use_disk();
    let mut wrong = disk(0, 0, 0);
    // No answer, a wrong address, a length that is too long, a buffer of the wrong kind, a header that
    // is too short, no whole sectors, a sector beyond the end.
    wrong.u8(0).u8(IN).u8(0x20).u16(0).u8(4).u8(0x50);
    wrong
        .u8(0)
        .u8(OUT)
        .u8(0x20)
        .u16(0)
        .u8(4)
        .u8(0x7d)
        .u32(0x8000);
    wrong
        .u8(0)
        .u8(OUT)
        .u8(0x20)
        .u16(0)
        .u8(4)
        .u8(0x81)
        .u32(0x80_0000);
    wrong.u8(0).u8(IN).u8(0x20).u16(0).u8(4).u8(1);
    wrong.u8(0).u8(IN).u8(0x30).u16(0).u8(12).u8(4);
    wrong.u8(0).u8(IN).u8(8).u16(0).u8(77);
    wrong.u8(0).u8(IN).u8(0xc0).u32(0x1000_0000).u8(30).u8(8);
    vec![
        ("raw", used(0, 0)),
        ("raw-io-uring", used(IO_URING, 0)),
        ("raw-unsafe", used(UNSAFE, 0)),
        ("raw-read-only", used(READ_ONLY, 0)),
        ("raw-temporary-overlay", used(TEMPORARY, 0)),
        ("raw-overlay", used(OVERLAY | IO_URING, 0)),
        ("qcow2", used(QCOW2, 1 | 4 << 1 | 0x70)),
        ("qcow2-old", used(QCOW2, 0x30)),
        ("qcow2-io-uring", used(QCOW2 | IO_URING, 1 | 0x30)),
        ("qcow2-zstd", used(QCOW2, 1 | 5 << 1 | 0x30)),
        ("qcow2-bits", used(QCOW2 | UNSAFE, 1)),
        (
            "qcow2-read-only",
            used(QCOW2 | READ_ONLY, 1 | 4 << 1 | 0x30),
        ),
        ("qcow2-overlay", used(QCOW2 | OVERLAY, 1 | 4 << 1 | 0x30)),
        ("queues", queues.0),
        ("in-flight", in_flight.0),
        ("limits", limits.0),
        ("host", host.0),
        ("short", short.0),
        ("write-through", write_through.0),
        ("wrong", wrong.0),
    ]
}

/// An image of this layout, a disk of so many KiB, before changes.
fn image(what: u8, kind: u8, shape: u8, size: u16) -> Script {
    let mut script = Script::default();
    script.u8(what).u8(kind).u8(shape).u16(size);
    script
}

pub(super) fn qcow2() -> Seeds {
    let good = |what, kind, shape| {
        let mut script = image(what, kind, shape, 1024);
        script.u8(0).u8(0).use_disk();
        script.0
    };
    // One number of eight bytes at the start of a cluster: in a table, its entry `index`.
    let damaged = |table: u8, index: u8, how: u8, value: &[u8]| {
        let mut script = image(0, 0, 1 | 4 << 1 | 0x30, 1024);
        script
            .u8(1)
            .u8(1 | how << 2)
            .u8(index)
            .u8(table)
            .bytes(value);
        script.u8(0).use_disk();
        script.0
    };
    let mut header = image(0, 0, 1 | 4 << 1 | 0x30, 1024);
    // The size of the disk, one cluster more.
    header.u8(1).u8(0).u8(24).u8(0x10).u8(0).use_disk();
    let mut short = image(0, 0, 1 | 4 << 1 | 0x30, 1024);
    short.u8(1).u8(7 << 2).u8(0).u16(0x800).u8(0).use_disk();
    // All of two MiB, with as many reference counts as there can be bytes for: their table has to grow.
    let mut full = image(0, 0, 1 | 6 << 1, 2048);
    full.u8(0).u8(0);
    for sector in (0..4096).step_by(252) {
        full.u8(0)
            .u8(OUT)
            .u8(0xc3)
            .u32(sector)
            .u8(0)
            .bytes(&[63, 63, 63, 63]);
    }
    full.u8(0)
        .u8(OUT)
        .u8(0xc0)
        .u32(4032)
        .u8(0)
        .u8(63)
        .flush(0)
        .use_disk();
    let mut overlay = Script::default();
    overlay.u8(3).u8(0).u16(0).u8(0).use_disk();
    let mut bad_overlay = Script::default();
    let mut claim = b"moteCOW\0".to_vec();
    claim.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0]);
    claim.resize(64, 0);
    bad_overlay
        .u8(3)
        .u8(0)
        .u16(64)
        .bytes(&claim)
        .u8(0)
        .use_disk();
    vec![
        ("good-512", good(0, 0, 1 | 4 << 1)),
        ("good-4k", good(0, 0, 1 | 6 << 1 | 0x30)),
        ("good-64k", good(0, 0, 0x70)),
        ("good-2m", good(0, 0, 1 | 3 << 1 | 0xc0)),
        ("good-zstd", good(4, 0, 1 | 4 << 1 | 0x30)),
        ("good-bits", good(0, 0, 1 | 0x30)),
        ("good-overlay", good(8, IO_URING, 1 | 4 << 1 | 0x30)),
        ("header", header.0),
        ("short", short.0),
        ("full", full.0),
        // Nowhere, at the header, at the reference counts, at itself.
        ("l1-nowhere", damaged(3, 0, 2, &[0x80])),
        ("l1-header", damaged(3, 0, 6, &[])),
        ("l1-reference-counts", damaged(3, 0, 2, &[2])),
        ("l1-itself", damaged(3, 0, 2, &[3])),
        ("l2-itself", damaged(4, 0, 2, &[4])),
        ("l2-nowhere", damaged(4, 1, 4, &[0xff, 0xff, 0xff, 0])),
        (
            "l2-compressed",
            damaged(4, 2, 5, &[0, 0, 0, 0, 0, 0, 0x50, 0]),
        ),
        ("reftable-nowhere", damaged(1, 0, 1, &[0x77])),
        ("reftable-itself", damaged(1, 0, 1, &[1])),
        ("refcounts", damaged(2, 0, 6, &[])),
        ("refcounts-zero", damaged(2, 1, 0, &[0])),
        ("overlay", overlay.0),
        ("overlay-header", bad_overlay.0),
    ]
}
