//! Seeds for the guest with a socket device ([`crate::vsock`]).

use super::{Script, Seeds};

// Packets.
const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;
const RESET: u8 = 3;
const SHUTDOWN: u8 = 4;
const DATA: u8 = 5;
const CREDIT_UPDATE: u8 = 6;
const CREDIT_REQUEST: u8 = 7;

// Ports of the host: servers', and the first client's.
const SERVED: u8 = 1;
const FULL: u8 = 2;
const CLIENT: u8 = 3;

/// In the place of flags: the packet is sent many times.
const BURST: u8 = 3 << 3;

impl Script {
    /// A packet of the guest's port 1, with room for all that can be.
    fn packet(&mut self, op: u8, host: u8, flags: u8) -> &mut Self {
        self.packet_from(1, op, host, flags)
    }

    fn packet_from(&mut self, guest: u8, op: u8, host: u8, flags: u8) -> &mut Self {
        self.u8(0)
            .u8(flags << 2)
            .u8(host)
            .u8(guest)
            .u8(op)
            .u16(0xffff)
    }

    fn data(&mut self, host: u8, len: u16) -> &mut Self {
        self.u8(0)
            .u8(2)
            .u8(host)
            .u16(len)
            .u8(1)
            .u8(DATA)
            .u16(0xffff)
    }

    /// Four receive buffers.
    fn room(&mut self, length: u8) -> &mut Self {
        self.u8(4).u8(3 << 6 | length)
    }

    fn client(&mut self, port: u8) -> &mut Self {
        self.u8(6).u8(4 + port)
    }

    fn write(&mut self, stream: u8, len: u16) -> &mut Self {
        self.u8(7).u16(len).u8(stream)
    }

    fn read(&mut self, stream: u8, len: u16) -> &mut Self {
        self.u8(8).u16(len).u8(stream)
    }

    /// 0 closes, 1 ends what is written, 2 what is read.
    fn end(&mut self, stream: u8, how: u8) -> &mut Self {
        self.u8(9).u8(how).u8(stream)
    }

    fn accept(&mut self, server: u8) -> &mut Self {
        self.u8(10).u8(server)
    }

    fn events(&mut self, count: u8) -> &mut Self {
        self.u8(11).u8(7).u8(count - 1)
    }

    fn restart_driver(&mut self) -> &mut Self {
        self.u8(11).u8(0).u8(0)
    }

    fn reset_ring(&mut self, queue: u8) -> &mut Self {
        self.u8(12).u8(queue)
    }

    fn wait_for_room(&mut self) -> &mut Self {
        self.u8(15).u8(0)
    }
}

pub(super) fn vsock() -> Seeds {
    let connected = || {
        let mut script = Script::default();
        script.room(7).packet(REQUEST, SERVED, 0).accept(0).room(7);
        script
    };
    let mut guest = connected();
    guest
        .data(SERVED, 500)
        .read(0, 500)
        .write(0, 3000)
        .packet(CREDIT_UPDATE, SERVED, 0);
    guest
        .packet(CREDIT_REQUEST, SERVED, 0)
        .room(6)
        .packet(SHUTDOWN, SERVED, 3)
        .end(0, 0);
    let mut host = Script::default();
    host.room(7)
        .client(1)
        .packet(RESPONSE, CLIENT, 0)
        .write(0, 60_000)
        .room(7)
        .room(7);
    host.data(CLIENT, 100)
        .read(0, 100)
        .end(0, 1)
        .packet(SHUTDOWN, CLIENT, 2)
        .room(7)
        .end(0, 0);
    // A program that does not read, and then does.
    let mut slow = connected();
    for _ in 0..5 {
        slow.data(SERVED, 65_000);
    }
    for _ in 0..6 {
        slow.read(0, 65_000).room(7);
    }
    slow.data(SERVED, 100)
        .packet(SHUTDOWN, SERVED, 3)
        .read(0, 1000);
    // The same, which the guest does not wait for.
    let mut draining = connected();
    for _ in 0..5 {
        draining.data(SERVED, 65_000);
    }
    draining
        .packet(SHUTDOWN, SERVED, 3)
        .read(0, 65_000)
        .read(0, 65_000)
        .end(0, 0)
        .room(7);
    let mut gone = connected();
    for _ in 0..5 {
        gone.data(SERVED, 65_000);
    }
    gone.end(0, 0).room(7).packet(RESET, SERVED, 0);
    // A server with no room, for a while.
    let mut full = Script::default();
    full.room(7)
        .packet_from(0, REQUEST, FULL, 0)
        .packet_from(1, REQUEST, FULL, 0);
    full.packet_from(2, REQUEST, FULL, 0)
        .wait_for_room()
        .accept(1)
        .wait_for_room()
        .accept(1);
    full.packet_from(2, RESET, FULL, 0).wait_for_room().room(7);
    let mut rings = connected();
    rings
        .write(0, 100)
        .reset_ring(0)
        .events(2)
        .room(7)
        .write(0, 100)
        .reset_ring(1)
        .room(7);
    rings
        .packet(REQUEST, SERVED, 0)
        .accept(0)
        .events(4)
        .reset_ring(0x82)
        .restart_driver()
        .room(7);
    let mut nobody = Script::default();
    nobody
        .room(7)
        .packet(REQUEST, 0, 0)
        .packet(DATA, SERVED, 0)
        .packet(RESPONSE, CLIENT, 0);
    nobody
        .packet(RESET, CLIENT, 0)
        .packet(8, SERVED, 0)
        .client(3)
        .packet(RESET, CLIENT, 0)
        .room(7);
    // A line that is none, one in pieces, and one that is too long.
    let mut lines = Script::default();
    lines
        .u8(6)
        .u8(0)
        .u8(5)
        .bytes(b"HELLO")
        .u8(6)
        .u8(0)
        .u8(9)
        .bytes(b"CONNECT 1")
        .write(1, 2);
    lines.u8(6).u8(0).u8(39).bytes(&[b'C'; 39]).room(7);
    // More than there is room for, and buffers that nothing fits into.
    let mut flood = Script::default();
    for guest in 0..6 {
        flood.packet_from(guest, DATA, SERVED, BURST);
    }
    flood
        .room(1)
        .room(2)
        .room(3)
        .room(0)
        .room(7)
        .packet(REQUEST, SERVED, 0);
    let mut broken = connected();
    broken
        .u8(14)
        .u16(0x4002)
        .u8(2)
        .bytes(&[0xff, 0x7f])
        .packet(REQUEST, SERVED, 0);
    broken
        .restart_driver()
        .room(7)
        .packet(REQUEST, SERVED, 0)
        .accept(0);
    vec![
        ("guest", guest.0),
        ("host", host.0),
        ("slow", slow.0),
        ("draining", draining.0),
        ("gone", gone.0),
        ("full", full.0),
        ("rings", rings.0),
        ("nobody", nobody.0),
        ("lines", lines.0),
        ("flood", flood.0),
        ("broken", broken.0),
    ]
}
