//! Seeds for the guest that talks to the metadata service ([`crate::mmds`]).

use super::{Script, Seeds};

// Operations.
const SEGMENT: u8 = 0;
const TAKE: u8 = 7;
const OPEN: u8 = 9;
const PASS: u8 = 10;
const ARP: u8 = 11;
const PACKET: u8 = 12;
const FLOOD: u8 = 13;
const HOST: u8 = 14;

// How a segment is: its flags, and what is wrong with it.
const ACK: u8 = 0;
const FIN: u8 = 4;
const RST: u8 = 5;
const SYN: u8 = 6;
const LATER: u8 = 1 << 3;
const EARLIER: u8 = 2 << 3;
const OLD_ACK: u8 = 3 << 3;
const NEW_ACK: u8 = 4 << 3;
const WINDOW: u8 = 5 << 3;
const OPTIONS: u8 = 7 << 3;

// What is in it: nothing, a whole request of a number, the beginning or the rest of one, so many bytes,
// these bytes.
const NOTHING: u8 = 0;
const REQUEST: u8 = 2 << 5;
const BEGINNING: u8 = 4 << 5;
const REST: u8 = 4 << 5 | 8;
const MANY: u8 = 5 << 5;
const BYTES: u8 = 6 << 5;

impl Script {
    fn service(shape: u8) -> Self {
        let mut script = Self::default();
        script.u8(shape);
        script
    }

    fn say(&mut self, port: u8, shape: u8, kind: u8) -> &mut Self {
        self.u8(SEGMENT).u8(port).u8(shape).u8(kind)
    }

    fn all(&mut self) -> &mut Self {
        self.u8(TAKE).u8(255)
    }
}

pub(super) fn mmds() -> Seeds {
    let mut requests = Script::service(0);
    requests.u8(ARP).u8(0).all().u8(OPEN).u8(1);
    for number in 0..4 {
        requests
            .say(1, ACK, REQUEST | number)
            .all()
            .say(1, ACK, NOTHING);
    }
    let mut closing = Script::service(0);
    for (port, kind) in [(1, 3), (2, 4), (3, 5), (4, 7)] {
        closing
            .u8(OPEN)
            .u8(port)
            .say(port, ACK, REQUEST | kind)
            .all();
        closing
            .say(port, ACK, NOTHING)
            .say(port, FIN, NOTHING)
            .all();
    }
    let mut tokens = Script::service(1);
    tokens.u8(OPEN).u8(1);
    for number in [2, 0, 4, 6] {
        tokens
            .say(1, ACK, REQUEST | number)
            .all()
            .say(1, ACK, NOTHING);
    }
    let mut pieces = Script::service(0);
    pieces.u8(OPEN).u8(1);
    for at in [1, 10, 17] {
        pieces
            .say(1, ACK, BEGINNING)
            .u8(at)
            .say(1, ACK, REST)
            .u8(at)
            .all();
    }
    pieces
        .say(1, LATER, REST)
        .u16(9)
        .u8(9)
        .say(1, ACK, BEGINNING)
        .u8(9)
        .all();
    pieces.say(1, EARLIER, REQUEST).u16(9).all();
    pieces
        .say(1, ACK, BYTES)
        .u8(5)
        .bytes(b"GET /")
        .u8(PASS)
        .u8(0x80 | 40)
        .all();
    let mut too_long = Script::service(0);
    too_long
        .u8(OPEN)
        .u8(1)
        .say(1, ACK, MANY)
        .u16(2499)
        .say(1, ACK, MANY)
        .u16(2)
        .all();
    too_long.u8(OPEN).u8(2).say(2, ACK, MANY).u16(50_000).all();
    too_long
        .u8(OPEN)
        .u8(3)
        .say(3, ACK, BYTES)
        .u8(4)
        .bytes(b"\0\x01\r\n")
        .all();
    let mut slow = Script::service(0);
    slow.u8(OPEN).u8(1).say(1, WINDOW, REQUEST | 1).u8(0).all();
    slow.u8(PASS)
        .u8(0x80 | 3)
        .all()
        .say(1, WINDOW, NOTHING)
        .u8(200)
        .all();
    slow.u8(PASS).u8(0x80 | 60).all();
    let mut lost = Script::service(0);
    lost.u8(OPEN).u8(1).say(1, ACK, REQUEST | 1).all();
    for _ in 0..4 {
        lost.say(1, OLD_ACK, NOTHING).u16(500).all();
    }
    lost.say(1, NEW_ACK, NOTHING)
        .u16(500)
        .u8(PASS)
        .u8(100)
        .all()
        .u8(PASS)
        .u8(0x80 | 10)
        .all();
    let mut flood = Script::service(0);
    flood
        .u8(OPEN)
        .u8(1)
        .u8(FLOOD)
        .u16(1000)
        .all()
        .u8(FLOOD)
        .u16(2000)
        .say(1, ACK, REQUEST)
        .all();
    for port in 0..40 {
        flood.u8(OPEN).u8(port);
    }
    flood
        .say(2, RST, NOTHING)
        .say(3, SYN, NOTHING)
        .say(50, ACK, NOTHING)
        .all();
    let mut options = Script::service(8 | 0x60);
    options
        .say(1, SYN | OPTIONS, NOTHING)
        .u8(2)
        .bytes(&[2, 4, 0, 1, 3, 3, 14, 0])
        .all();
    options
        .say(1, ACK, REQUEST | 1)
        .all()
        .say(1, ACK | 0xc0 | LATER, NOTHING)
        .u16(0)
        .all();
    let mut packets = Script::service(0);
    packets
        .u8(PACKET)
        .u8(18)
        .u8(8)
        .bytes(&[0, 1, 0, 80, 0, 8, 0, 0]);
    packets.u8(PACKET).u8(1).u8(20).bytes(&[
        0x45, 0, 0, 20, 0, 1, 0x20, 0, 64, 6, 0, 0, 10, 0, 2, 15, 169, 254, 169, 254,
    ]);
    packets
        .u8(ARP)
        .u8(1)
        .u8(ARP)
        .u8(2)
        .u8(PACKET)
        .u8(0)
        .u8(3)
        .bytes(b"abc")
        .all();
    let mut changing = Script::service(4);
    let document = br#"{"small":"v","a":{"b":1}}"#;
    changing.u8(HOST).u8(1).u8(2).bytes(b"{}");
    changing
        .u8(HOST)
        .u8(0)
        .u8(document.len() as u8)
        .bytes(document)
        .u8(OPEN)
        .u8(1);
    changing.say(1, ACK, REQUEST).all().say(1, ACK, NOTHING);
    changing
        .u8(HOST)
        .u8(1)
        .u8(13)
        .bytes(br#"{"small":[1]}"#)
        .say(1, ACK, REQUEST | 3)
        .all();
    changing
        .u8(HOST)
        .u8(1)
        .u8(1)
        .bytes(b"x")
        .u8(OPEN)
        .u8(2)
        .say(2, ACK, REQUEST)
        .all();
    vec![
        ("requests", requests.0),
        ("closing", closing.0),
        ("tokens", tokens.0),
        ("pieces", pieces.0),
        ("too-long", too_long.0),
        ("slow", slow.0),
        ("lost", lost.0),
        ("flood", flood.0),
        ("options", options.0),
        ("packets", packets.0),
        ("changing", changing.0),
    ]
}
