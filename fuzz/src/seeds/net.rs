//! Seeds for the guest with a network card ([`crate::net`]).

mod user;

use super::{Script, Seeds};

// What is behind the card.
const USER: u8 = 0;
const CLOCKED: u8 = 3;
const WIRE: u8 = 6;
const TWO_WIRES: u8 = 7;
/// It has an MTU.
const MTU: u8 = 8;

// Ends of what the guest sends.
const V6: u8 = 1;
const TO_DNS: u8 = 2 << 1;
const RESOLVER: u8 = 1 << 3;
const CLOSED: u8 = 2 << 3;
/// The guest's port, which is this times its number.
const PORT: u8 = 1 << 5;
/// To whoever has sent a datagram.
const ASKED: u8 = 7 * PORT;

// Segments.
const SYN: u8 = 0;
const SYN_ACK: u8 = 1;
const ACK: u8 = 2;
const DATA: u8 = 3;
const FIN: u8 = 5;
const RST: u8 = 6;
const KNOWN: u8 = 0x80;
/// Before what was sent already.
const OLD: u8 = 2 << 3;
/// That has not come yet.
const EARLIER: u8 = 3 << 3;
const SMALL_WINDOW: u8 = 4 << 3;

// How a frame is sent: complete, without a checksum, large.
const PLAIN: u8 = 0;
const PARTIAL: u8 = 0xc0;
const LARGE: u8 = 0xb0;

// What the host does.
const ACCEPT: u8 = 0;
const CONNECT: u8 = 1;
const WRITE: u8 = 2;
const READ: u8 = 4;
const SHUTDOWN: u8 = 5;
const CLOSE: u8 = 6;
const ANSWER: u8 = 7;
// Servers, by their number.
const DNS_V4: u8 = 0;
const SERVED_V4: u8 = 2;
const SERVED_V6: u8 = 3;

impl Script {
    fn card(kind: u8, shape: u8) -> Self {
        let mut script = Self::default();
        script.u8(kind).u8(shape).u8(0).buffers().buffers();
        script
    }

    /// Eight receive buffers of a page.
    fn buffers(&mut self) -> &mut Self {
        self.u8(0).u8(7 << 5 | 6)
    }

    fn arp(&mut self) -> &mut Self {
        self.u8(15).u8(0).u8(PLAIN)
    }

    fn dhcp(&mut self, kind: u8, options: &[u8]) -> &mut Self {
        self.u8(16)
            .u8(kind)
            .u8(options.len() as u8)
            .bytes(options)
            .u8(PLAIN)
    }

    fn udp(&mut self, ends: u8, data: &[u8], how: u8) -> &mut Self {
        self.u8(14)
            .u8(ends)
            .u8(data.len() as u8)
            .bytes(data)
            .u8(how)
    }

    fn echo(&mut self, ends: u8) -> &mut Self {
        self.u8(17)
            .u8(ends)
            .u8(1)
            .u8(8)
            .bytes(b"ping-pon")
            .u8(PLAIN)
    }

    fn neighbour(&mut self, ends: u8, kind: u8) -> &mut Self {
        self.u8(19).u8(ends).u8(kind).u8(PLAIN)
    }

    /// A segment of connection `which`, or of one with these ends if it is new.
    fn tcp(&mut self, shape: u8, which: u8, extra: &[u8]) -> &mut Self {
        self.u8(23).u8(shape).u8(which).bytes(extra).u8(PLAIN)
    }

    fn host(&mut self, what: u8, which: u8) -> &mut Self {
        self.u8(8).u8(what).u8(which)
    }

    fn wire(&mut self, which: u8, header: &[u8], len: u16) -> &mut Self {
        self.u8(8)
            .u8(which)
            .u8(0)
            .u8(header.len() as u8)
            .bytes(header)
            .u16(len)
    }

    /// So many of 64 milliseconds, 50 milliseconds, seconds or minutes.
    fn time(&mut self, unit: u8, count: u8) -> &mut Self {
        self.u8(5).u8(unit << 6 | count)
    }

    fn pause(&mut self) -> &mut Self {
        self.u8(5).u8(0)
    }

    fn connect(&mut self, ends: u8, server: u8) -> &mut Self {
        self.tcp(SYN, 0, &[ends])
            .pause()
            .host(ACCEPT, server)
            .tcp(KNOWN | ACK, 0, &[])
    }
}

pub(super) fn net() -> Seeds {
    let mut seeds = Seeds::new();
    for kind in [USER, CLOCKED] {
        seeds.extend(user::connections(kind));
        seeds.extend(user::packets(kind));
    }
    // Large frames of the guest, and such for it.
    let mut offloads = Script::card(USER | MTU, 0);
    offloads
        .connect(0, SERVED_V4)
        .u8(23)
        .u8(KNOWN | 4)
        .u8(0)
        .u16(6000)
        .u8(LARGE)
        .u16(1400);
    offloads
        .pause()
        .host(0x80 | WRITE, 0)
        .u16(8000)
        .pause()
        .tcp(KNOWN | ACK, 0, &[]);
    offloads.u8(14).u8(0).u8(0xc1).u16(3000).u8(LARGE).u16(999);
    offloads
        .udp(0, b"half a checksum", PARTIAL)
        .host(ANSWER, SERVED_V4)
        .pause();
    offloads
        .u8(4)
        .u8(3)
        .u16(0x83)
        .u8(0)
        .udp(0, b"x", PLAIN)
        .host(ANSWER, SERVED_V4)
        .pause();
    // Retransmission, until it is given up; and nothing at all for hours.
    let mut timers = Script::card(CLOCKED, 0);
    timers.connect(0, SERVED_V4).host(WRITE, 0).u16(100).pause();
    for seconds in [1, 1, 2, 4, 8, 10, 10, 10, 10, 10, 10, 10, 10, 10] {
        timers.time(2, seconds).buffers();
    }
    timers
        .connect(PORT, SERVED_V4)
        .time(3, 60)
        .time(3, 63)
        .buffers()
        .time(2, 60);
    timers
        .host(CONNECT, 0)
        .pause()
        .time(2, 1)
        .time(2, 3)
        .time(2, 60)
        .buffers();
    timers
        .neighbour(V6, 133)
        .time(3, 11)
        .time(3, 11)
        .udp(0, b"x", PLAIN)
        .time(3, 4)
        .pause();
    let mut idle = Script::card(CLOCKED, 0);
    idle.connect(0, SERVED_V4)
        .time(3, 63)
        .time(3, 63)
        .tcp(KNOWN | ACK, 0, &[]);
    idle.time(3, 63)
        .time(3, 63)
        .time(2, 60)
        .time(2, 60)
        .time(3, 10)
        .buffers();
    let mut wire = Script::card(WIRE, 0);
    for len in [0, 100, 1500, 9000, 40_000] {
        wire.wire(0, &[1, 1, 54, 0, 0xb4, 5, 34, 0, 16, 0], len)
            .pause();
    }
    wire.buffers()
        .udp(0, b"out", PARTIAL)
        .arp()
        .u8(8)
        .u8(0)
        .u8(2);
    // The cable is pulled, and plugged in again.
    wire.u8(7)
        .u8(0x80)
        .udp(0, b"lost", PLAIN)
        .wire(0, &[], 50)
        .pause()
        .u8(7)
        .u8(0)
        .pause();
    wire.u8(7)
        .u8(4)
        .u8(7)
        .u8(8)
        .u8(4)
        .u8(3)
        .u16(0xffff)
        .u8(7)
        .u8(4)
        .u8(7)
        .u8(2)
        .u8(9)
        .u8(9);
    let mut small = Script::card(WIRE, 0);
    // Small buffers, which one frame needs many of.
    small
        .u8(6)
        .u8(0)
        .u8(0)
        .u8(7 << 5 | 3)
        .u8(0)
        .u8(7 << 5 | 3)
        .wire(0, &[], 500)
        .pause();
    small
        .u8(0)
        .u8(7 << 5 | 3)
        .wire(0, &[], 60_000)
        .pause()
        .buffers()
        .pause();
    let mut no_merging = Script::default();
    no_merging
        .u8(WIRE)
        .u8(0)
        .u8(0x81)
        .u8(0)
        .u8(7 << 5 | 4)
        .wire(0, &[], 700)
        .pause();
    no_merging
        .wire(0, &[], 5000)
        .pause()
        .u8(0)
        .u8(7)
        .wire(0, &[], 5000)
        .pause();
    let mut two = Script::card(TWO_WIRES, 0);
    two.u8(4)
        .u8(0)
        .u8(2)
        .u8(0)
        .u8(7 << 5 | 8 | 6)
        .wire(1, &[], 200)
        .pause();
    two.udp(0, b"by the second", 8)
        .udp(0, b"by the first", PLAIN)
        .u8(4)
        .u8(0)
        .u8(1);
    two.wire(1, &[], 200)
        .pause()
        .u8(4)
        .u8(0)
        .u8(9)
        .u8(4)
        .u8(0)
        .u8(0);
    let mut failing = Script::card(TWO_WIRES, 0);
    failing
        .u8(8)
        .u8(0)
        .u8(3)
        .u8(0)
        .udp(0, b"lost", PLAIN)
        .pause()
        .u8(8)
        .u8(1)
        .u8(3)
        .u8(0);
    failing
        .u8(4)
        .u8(0)
        .u8(2)
        .u8(8)
        .u8(1)
        .u8(3)
        .u8(1)
        .u8(6)
        .u8(0)
        .udp(0, b"lost", PLAIN);
    let mut limits = Script::card(WIRE | 0xf0, 0);
    for len in 0..8 {
        limits.wire(0, &[], 1000 + len).udp(0, b"limited", PLAIN);
    }
    limits
        .pause()
        .pause()
        .u8(7)
        .u8(0xa1)
        .udp(0, b"limited", PLAIN)
        .pause()
        .u8(7)
        .u8(1)
        .pause();
    let mut pieces = Script::card(WIRE, 0);
    pieces
        .udp(0, b"two buffers", 4)
        .udp(0, b"two", 6)
        .udp(0, b"later", 1)
        .udp(0, b"now", PLAIN);
    pieces
        .u8(14)
        .u8(0)
        .u8(1)
        .u8(1)
        .u8(5)
        .u8(3)
        .u8(22)
        .u8(5)
        .bytes(b"short")
        .u8(PLAIN);
    let mut rings = Script::card(USER, 0);
    rings
        .connect(0, SERVED_V4)
        .host(WRITE, 0)
        .u16(2000)
        .u8(7)
        .u8(3)
        .buffers()
        .pause();
    rings
        .u8(7)
        .u8(1 << 2 | 3)
        .tcp(KNOWN | DATA, 0, &[50])
        .pause()
        .u8(7)
        .u8(2 << 2 | 3);
    rings
        .u8(4)
        .u8(3)
        .u16(0x83)
        .u8(0)
        .u8(7)
        .u8(0x83)
        .buffers()
        .u8(6)
        .u8(0)
        .buffers()
        .arp();
    seeds.extend([
        ("rings", rings.0),
        ("offloads", offloads.0),
        ("timers", timers.0),
        ("idle", idle.0),
        ("wire", wire.0),
        ("small-buffers", small.0),
        ("no-merging", no_merging.0),
        ("two-wires", two.0),
        ("failing", failing.0),
        ("limits", limits.0),
        ("pieces", pieces.0),
    ]);
    seeds
}
