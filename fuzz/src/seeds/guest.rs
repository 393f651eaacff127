//! Seeds for the guest that knows no device in particular ([`crate::run`]).

use super::{Script, Seeds};

/// A buffer of a request.
enum Buffer<'a> {
    /// At an address of the guest's own, with this in it.
    Read(&'a [u8]),
    /// At an address of the guest's own, of this length.
    Write(u8),
    /// To be written, at this address and of this length.
    WriteAt(u32, u32),
    /// An indirect table, which is whatever is at this address.
    Table(u32, u32),
}

impl Script {
    /// A driver that gets through the handshake; with bit 0, it accepts some features only.
    fn started(features: u8) -> Self {
        let mut script = Self::default();
        script.u8(1).u8(features);
        script
    }

    fn register(&mut self, offset: u16, value: u32) -> &mut Self {
        self.u8(0).u16(offset).u32(value)
    }

    fn look(&mut self, offset: u16) -> &mut Self {
        self.u8(1).u16(offset)
    }

    fn config(&mut self, offset: u8, bytes: &[u8]) -> &mut Self {
        self.u8(2).u8(offset).u8(bytes.len() as u8).bytes(bytes)
    }

    /// What the host does.
    fn have_host(&mut self, what: &[u8]) -> &mut Self {
        self.config(0xf0, what)
    }

    fn memory(&mut self, gpa: u32, bytes: &[u8]) -> &mut Self {
        self.u8(3).u32(gpa).u8(bytes.len() as u8).bytes(bytes)
    }

    fn again(&mut self) -> &mut Self {
        self.u8(4)
    }

    fn turn(&mut self) -> &mut Self {
        self.u8(5)
    }

    fn request(&mut self, queue: u8, head: u8, buffers: &[Buffer<'_>]) -> &mut Self {
        self.u8(6).u8(queue).u8(buffers.len() as u8 - 1).u8(head);
        for buffer in buffers {
            match *buffer {
                Buffer::Read(bytes) => {
                    // What is beyond is what is there.
                    let given = &bytes[..bytes.len().min(64)];
                    self.u8(0).u8(bytes.len() as u8).bytes(given)
                }
                Buffer::Write(length) => {
                    let filler = usize::from(length.min(64));
                    self.u8(8).u8(length).bytes(&vec![0; filler])
                }
                Buffer::WriteAt(gpa, length) => self.u8(8 | 4 | 1).u32(length).u32(gpa),
                Buffer::Table(gpa, length) => self.u8(0xf0 | 4 | 1).u32(length).u32(gpa),
            };
        }
        self
    }
}

pub(super) fn transport() -> Seeds {
    use Buffer::{Table, Write, WriteAt};
    let mut registers = Script::started(0);
    for offset in (0..=0x104).step_by(4) {
        registers.look(offset);
    }
    let mut requests = Script::started(0);
    for head in 0..20 {
        requests.request(0, head, &[Write(200)]);
    }
    let mut chains = Script::started(0);
    for head in [0, 4, 8] {
        chains.request(0, head, &[Write(1), Write(64), Write(255), Write(0)]);
    }
    // A table with two buffers, the first of which leads to the second.
    let mut table = Vec::new();
    table.extend_from_slice(&0x8_1000u64.to_le_bytes());
    table.extend_from_slice(&[64, 0, 0, 0, 3, 0, 1, 0]);
    table.extend_from_slice(&0x8_2000u64.to_le_bytes());
    table.extend_from_slice(&[64, 0, 0, 0, 2, 0, 0, 0]);
    let mut indirect = Script::started(0);
    indirect.memory(0x4_0000, &table);
    indirect.request(0, 0, &[Table(0x4_0000, 32)]);
    indirect.request(0, 1, &[Write(8)]);
    let mut large = Script::started(0);
    large.request(
        0,
        0,
        &[WriteAt(0x1000_0000, 0x1_0000), WriteAt(0x10_0000, 0x8_0000)],
    );
    large.turn().turn().request(0, 2, &[Write(100)]);
    let mut reset = Script::started(0);
    reset.request(0, 0, &[Write(10)]).register(0x70, 0);
    reset.again().request(0, 0, &[Write(20)]).again().turn();
    // RING_RESET of queue 0, and its way back.
    let mut ring = Script::started(0);
    ring.request(0, 0, &[Write(10)]).register(0x30, 0);
    ring.register(0xc0, 1).look(0xc0).look(0x44);
    for (offset, value) in [
        (0x38, 32),
        (0x80, 0x1_0000),
        (0x84, 0),
        (0x90, 0x1_1000),
        (0x94, 0),
        (0xa0, 0x1_2000),
        (0xa4, 0),
        (0x44, 1),
    ] {
        ring.register(offset, value);
    }
    ring.memory(0x1_1002, &[0, 0]).request(0, 0, &[Write(10)]);
    let mut interrupt = Script::started(1);
    interrupt.request(0, 0, &[Write(10)]).look(0x60);
    interrupt.register(0x64, 1).look(0x60).look(0xfc);
    // A driver without events: it does not want interrupts.
    let mut quiet = Script::started(0x81);
    quiet.memory(0x1_1000, &[1, 0]).request(0, 0, &[Write(1)]);
    // By hand, from the start.
    let mut by_hand = Script::default();
    by_hand.u8(0);
    for (offset, value) in [
        (0x70, 1),
        (0x70, 3),
        (0x14, 1),
        (0x24, 1),
        (0x20, 1),
        (0x70, 11),
    ] {
        by_hand.register(offset, value).look(0x70);
    }
    for (offset, value) in [
        (0x30, 0),
        (0x38, 64),
        (0x80, 0x1_0000),
        (0x90, 0x1_1000),
        (0xa0, 0x1_2000),
        (0x44, 1),
    ] {
        by_hand.register(offset, value);
    }
    by_hand.register(0x70, 15).request(0, 0, &[Write(10)]);
    // The index of the available ring jumps.
    let mut jump = Script::started(0);
    jump.memory(0x1_1002, &[0xff, 0x7f]).register(0x50, 0);
    jump.turn().look(0x70).again().request(0, 0, &[Write(4)]);
    vec![
        ("registers", registers.0),
        ("requests", requests.0),
        ("chains", chains.0),
        ("indirect", indirect.0),
        ("large", large.0),
        ("reset", reset.0),
        ("ring-reset", ring.0),
        ("interrupt", interrupt.0),
        ("quiet", quiet.0),
        ("by-hand", by_hand.0),
        ("jump", jump.0),
    ]
}

pub(super) fn balloon() -> Seeds {
    use Buffer::{Read, Write, WriteAt};
    const INFLATE: u8 = 0;
    const DEFLATE: u8 = 1;
    const STATS: u8 = 2;
    const REPORTING: u8 = 4;
    let pfns =
        |pages: &[u32]| -> Vec<u8> { pages.iter().flat_map(|page| page.to_le_bytes()).collect() };
    let near = pfns(&[0x100, 0x101, 0x102, 0x110, 0x105, 0x104]);
    let far = pfns(&[0x1_0000, 0x1_0001, 0x1_01ff, 0x1ff, 0xf_ffff, u32::MAX]);
    let mut inflate = Script::started(0);
    inflate.look(0x100).request(INFLATE, 0, &[Read(&near)]);
    inflate
        .request(INFLATE, 1, &[Read(&far)])
        .config(4, &[6, 0, 0, 0])
        .look(0x104);
    inflate.request(INFLATE, 2, &[Read(&near), Read(&near), Read(&far)]);
    let mut deflate = inflate.clone();
    deflate
        .request(DEFLATE, 0, &[Read(&near)])
        .request(DEFLATE, 1, &[Read(&far)]);
    deflate.config(4, &[0; 4]);
    let stats = |tags: std::ops::Range<u16>| -> Vec<u8> {
        let entry = |tag: u16| [tag.to_le_bytes().to_vec(), vec![tag as u8; 8]].concat();
        tags.flat_map(entry).collect()
    };
    let mut statistics = Script::started(0);
    statistics.request(
        STATS,
        0,
        &[
            Read(&stats(0..6)),
            Read(&stats(6..12)),
            Read(&stats(12..18)),
        ],
    );
    statistics
        .turn()
        .request(STATS, 4, &[Read(&stats(0..5))])
        .turn()
        .turn();
    statistics
        .request(STATS, 8, &[Read(&stats(9..10))])
        .again()
        .turn();
    let mut reporting = Script::started(0);
    reporting.request(
        REPORTING,
        0,
        &[WriteAt(0x10_0000, 0x4_0000), WriteAt(0x18_0000, 0x1000)],
    );
    reporting.request(REPORTING, 2, &[WriteAt(0x1000_0000, 0x20_0000)]);
    reporting.request(REPORTING, 4, &[WriteAt(0x10_0800, 0x1000), Write(255)]);
    let mut few = Script::started(1);
    few.request(INFLATE, 0, &[Read(&near)])
        .request(DEFLATE, 0, &[Read(&near)]);
    few.register(0x30, 0).register(0xc0, 1).again().turn();
    let mut host = Script::started(0);
    host.have_host(&[0x20, 0xff, 1, 0x41, 3, 2]).look(0x100);
    host.request(INFLATE, 0, &[Read(&near)])
        .request(STATS, 0, &[Read(&stats(0..6))])
        .turn();
    host.have_host(&[0x41, 3, 1, 0])
        .register(0x70, 0)
        .have_host(&[0x40, 2])
        .again()
        .turn();
    vec![
        ("host", host.0),
        ("inflate", inflate.0),
        ("deflate", deflate.0),
        ("statistics", statistics.0),
        ("reporting", reporting.0),
        ("few-features", few.0),
    ]
}

pub(super) fn console() -> Seeds {
    use Buffer::{Read, Write, WriteAt};
    const RECEIVE: u8 = 0;
    const TRANSMIT: u8 = 1;
    let mut output = Script::started(0);
    for head in 0..14 {
        output.request(TRANSMIT, head, &[Read(b"A line of text, and its end\r\n")]);
    }
    let mut pieces = Script::started(0);
    pieces.request(
        TRANSMIT,
        0,
        &[Read(b"In "), Read(b"four "), Read(b""), Read(b"pieces\n")],
    );
    pieces.request(TRANSMIT, 4, &[Read(&[b'x'; 64]), Read(&[b'y'; 64])]);
    let mut input = Script::started(0);
    input
        .request(RECEIVE, 0, &[Write(1)])
        .request(RECEIVE, 1, &[Write(80)])
        .turn();
    input
        .request(RECEIVE, 2, &[Write(10), Write(200), Write(0), Write(1)])
        .turn();
    input
        .request(RECEIVE, 8, &[WriteAt(0x10_0000, 0x1000)])
        .turn()
        .turn();
    let mut both = Script::started(0);
    for head in 0..6 {
        both.request(RECEIVE, head, &[Write(40)])
            .request(TRANSMIT, head, &[Read(b"echo")]);
    }
    both.register(0x70, 0)
        .again()
        .request(TRANSMIT, 0, &[Read(b"again")])
        .turn();
    let mut config = Script::started(0);
    config
        .look(0x100)
        .look(0x104)
        .config(8, b"!\0\0\0")
        .look(0xfc);
    // A boot loader's emergency output, before there is a driver.
    let mut emergency = Script::default();
    emergency
        .u8(0)
        .config(8, b"H\0\0\0")
        .config(8, b"i\0\0\0")
        .config(8, b"\n");
    emergency.again().request(TRANSMIT, 0, &[Read(b"up\n")]);
    // More than there is room for, to each kind of output: what it is, the last byte says.
    let filled = |last: u8| {
        let mut script = Script::started(0);
        script.have_host(&[0xf1]);
        for head in 0..50 {
            script.request(TRANSMIT, head, &[Read(&[b'x'; 250])]);
        }
        for head in 0..4 {
            script.request(
                TRANSMIT,
                4 * head,
                &[Read(&[b'y'; 250]), Read(&[b'z'; 250])],
            );
            script.have_host(&[2, 3, 10, 0x11]).turn();
        }
        script.have_host(&[4]).turn().turn().u8(last);
        script.0
    };
    let (nowhere, full_disk, nobody, slow) = (filled(4), filled(5), filled(14), filled(15));
    vec![
        ("nowhere", nowhere),
        ("full-disk", full_disk),
        ("nobody", nobody),
        ("slow-reader", slow),
        ("output", output.0),
        ("pieces", pieces.0),
        ("input", input.0),
        ("both", both.0),
        ("config", config.0),
        ("emergency", emergency.0),
    ]
}

pub(super) fn pmem() -> Seeds {
    use Buffer::{Read, Write, WriteAt};
    const START: u32 = 0x4000_0000;
    const FLUSH: [u8; 4] = [0; 4];
    let flushes = || {
        let mut script = Script::started(0);
        script.look(0x100).look(0x104).look(0x108).look(0x10c);
        for head in [0, 2, 4] {
            script.request(0, head, &[Read(&FLUSH), Write(4)]);
        }
        script
    };
    let ending = |mut script: Script, last: u8| {
        script.u8(last);
        script.0
    };
    let mut others = Script::started(0);
    others.request(0, 0, &[Read(&[1, 0, 0, 0]), Write(4)]);
    others
        .request(0, 2, &[Read(&FLUSH)])
        .request(0, 3, &[Write(4)]);
    others.request(0, 4, &[Read(&FLUSH), Write(3)]);
    others.request(0, 6, &[Read(&[0, 0]), Read(&[0, 0]), Write(1), Write(255)]);
    // The answer is to be in the file, and behind its end.
    let mut inside = Script::started(0);
    for (head, gpa) in [(0, START), (2, START + 0x20_1000), (4, START + 0x3f_fffc)] {
        inside.request(0, head, &[Read(&FLUSH), WriteAt(gpa, 4)]);
    }
    let mut cut = inside.clone();
    cut.have_host(&[0x80, 3]);
    cut.request(0, 6, &[Read(&FLUSH), WriteAt(START + 0x1f_0000, 4)]);
    cut.have_host(&[0, 3])
        .request(0, 8, &[Read(&FLUSH), Write(4)]);
    cut.have_host(&[0xfc, 3]).again();
    cut.request(0, 0, &[Read(&FLUSH), WriteAt(START, 4)]);
    // Its rings are in there.
    let mut rings = Script::started(0);
    rings.register(0x70, 0).register(0x70, 3);
    for (offset, value) in [
        (0x14, 1),
        (0x24, 1),
        (0x20, 1),
        (0x70, 11),
        (0x30, 0),
        (0x38, 64),
        (0x80, START),
        (0x90, START + 0x1000),
        (0xa0, START + 0x2000),
        (0x44, 1),
        (0x70, 15),
        (0x50, 0),
    ] {
        rings.register(offset, value);
    }
    rings.turn().have_host(&[0]).register(0x50, 0).turn();
    let mut limits = flushes();
    limits.have_host(&[0x21, 3]).again();
    for head in [0, 2, 4] {
        limits.request(0, head, &[Read(&FLUSH), Write(4)]);
    }
    limits.turn().have_host(&[2]).turn();
    vec![
        ("flushes", ending(flushes(), 4)),
        ("limited", ending(flushes(), 6)),
        ("others", ending(others, 4)),
        ("inside", ending(inside.clone(), 4)),
        ("inside-read-only", ending(inside, 5)),
        ("cut", ending(cut.clone(), 4)),
        ("cut-read-only", ending(cut, 5)),
        ("rings", ending(rings.clone(), 4)),
        ("rings-read-only", ending(rings, 5)),
        ("limits", ending(limits, 4)),
    ]
}

pub(super) fn mem() -> Seeds {
    use Buffer::{Read, Write, WriteAt};
    const START: u64 = 0x4000_0000;
    const BLOCK: u64 = 2 << 20;
    const PLUG: u16 = 0;
    const UNPLUG: u16 = 1;
    const UNPLUG_ALL: u16 = 2;
    const STATE: u16 = 3;
    let message = |kind: u16, block: u64, blocks: u16| {
        let mut bytes = [0; 24];
        bytes[..2].copy_from_slice(&kind.to_le_bytes());
        bytes[8..16].copy_from_slice(&(START + block * BLOCK).to_le_bytes());
        bytes[16..18].copy_from_slice(&blocks.to_le_bytes());
        bytes
    };
    let ask = |script: &mut Script, requests: &[(u16, u64, u16)]| {
        for (number, &(kind, block, blocks)) in (0..).zip(requests) {
            let bytes = message(kind, block, blocks);
            script.request(0, 2 * number, &[Read(&bytes), Write(10)]);
            script.have_host(&[3]);
        }
    };
    // 64 blocks or more, and a look at the configuration.
    let mut plugged = Script::started(0);
    plugged.have_host(&[0x2c, 3]);
    for offset in (0x100..0x138).step_by(4) {
        plugged.look(offset);
    }
    ask(
        &mut plugged,
        &[(PLUG, 0, 1), (PLUG, 60, 6), (STATE, 0, 66), (STATE, 60, 6)],
    );
    let mut unplugged = plugged.clone();
    ask(
        &mut unplugged,
        &[
            (UNPLUG, 64, 2),
            (UNPLUG, 60, 4),
            (UNPLUG, 0, 1),
            (STATE, 0, 66),
        ],
    );
    let mut all = plugged.clone();
    all.have_host(&[0]);
    ask(
        &mut all,
        &[(UNPLUG_ALL, 0, 0), (UNPLUG_ALL, 0, 0), (PLUG, 0, 1)],
    );
    all.have_host(&[0xa8, 3]);
    ask(
        &mut all,
        &[(PLUG, 0, 250), (STATE, 0, 256), (UNPLUG_ALL, 0, 0)],
    );
    let mut wrong = plugged.clone();
    ask(
        &mut wrong,
        &[
            (PLUG, 0, 2),
            (UNPLUG, 1, 1),
            (PLUG, 0, 0),
            (PLUG, 300, 1),
            (STATE, 0, u16::MAX),
            (4, 0, 1),
            (PLUG, u64::MAX >> 22, 1),
        ],
    );
    wrong.request(0, 20, &[Read(&message(PLUG, 9, 1)), Write(9)]);
    wrong.request(0, 22, &[Read(&[0; 23]), Write(10)]);
    // The host has one slot only.
    let mut busy = Script::started(0);
    busy.have_host(&[0xa8, 0x22]);
    ask(&mut busy, &[(PLUG, 0, 250), (PLUG, 0, 64), (PLUG, 64, 1)]);
    busy.have_host(&[0xe2]);
    ask(&mut busy, &[(PLUG, 64, 1)]);
    // Answers into memory that is plugged, and that is not.
    let mut inside = plugged.clone();
    let (near, far) = (START as u32, (START + 200 * BLOCK) as u32);
    inside.request(0, 20, &[Read(&message(UNPLUG, 0, 1)), WriteAt(near, 10)]);
    inside.request(0, 22, &[Read(&message(UNPLUG_ALL, 0, 0)), WriteAt(far, 10)]);
    inside.have_host(&[3]);
    let mut reset = plugged.clone();
    reset.register(0x70, 0).have_host(&[0x20, 3]).again();
    ask(&mut reset, &[(STATE, 0, 1), (PLUG, 1, 1), (UNPLUG, 0, 1)]);
    let mut no_promise = Script::started(1);
    ask(&mut no_promise, &[(PLUG, 0, 1)]);
    vec![
        ("plugged", plugged.0),
        ("unplugged", unplugged.0),
        ("all", all.0),
        ("wrong", wrong.0),
        ("busy", busy.0),
        ("inside", inside.0),
        ("reset", reset.0),
        ("no-promise", no_promise.0),
    ]
}
