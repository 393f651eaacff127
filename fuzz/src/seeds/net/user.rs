//! Seeds for the user network, as it is or with a clock that the fuzzer turns.

use super::*;

pub(super) fn connections(kind: u8) -> Seeds {
    let named = |user, clocked| if kind == USER { user } else { clocked };
    let mut outgoing = Script::card(kind, 0);
    outgoing
        .arp()
        .connect(0, SERVED_V4)
        .tcp(KNOWN | DATA, 0, &[100])
        .pause();
    outgoing
        .host(READ, 0)
        .u16(100)
        .host(WRITE, 0)
        .u16(3000)
        .pause();
    for _ in 0..4 {
        outgoing.tcp(KNOWN | EARLIER | ACK, 0, &3000u16.to_le_bytes());
    }
    outgoing
        .tcp(KNOWN | EARLIER | ACK, 0, &1000u16.to_le_bytes())
        .tcp(KNOWN | ACK, 0, &[]);
    outgoing
        .buffers()
        .tcp(KNOWN | FIN, 0, &[])
        .pause()
        .host(SHUTDOWN, 0)
        .pause();
    outgoing.tcp(KNOWN | ACK, 0, &[]).pause();
    let mut over_v6 = Script::card(kind, 0);
    over_v6
        .neighbour(V6, 135)
        .connect(V6, SERVED_V6)
        .host(WRITE, 0)
        .u16(500)
        .pause();
    over_v6
        .tcp(KNOWN | ACK, 0, &[])
        .host(CLOSE, 0)
        .pause()
        .tcp(KNOWN | FIN, 0, &[])
        .pause();
    let mut incoming = Script::card(kind, 0);
    incoming
        .host(CONNECT, 0)
        .pause()
        .tcp(KNOWN | SYN_ACK, 0, &[])
        .host(WRITE, 0)
        .u16(2000)
        .pause();
    incoming
        .tcp(KNOWN | DATA, 0, &[40])
        .host(READ, 0)
        .u16(50)
        .pause()
        .host(0x80 | CLOSE, 0)
        .pause();
    incoming
        .host(CONNECT, 2)
        .pause()
        .tcp(KNOWN | SYN_ACK, 1, &[])
        .pause()
        .tcp(KNOWN | RST, 1, &[]);
    let mut refused = Script::card(kind, 0);
    refused
        .tcp(SYN, 0, &[CLOSED])
        .pause()
        .tcp(SYN, 0, &[3 << 1, 8, 8, 8])
        .pause();
    refused
        .tcp(ACK, 0, &[RESOLVER])
        .tcp(RST, 0, &[RESOLVER])
        .pause();
    // More than may be at a time, and none of them answered.
    let mut many = Script::card(kind, 0);
    for port in 0..8 {
        many.tcp(SYN, 0, &[port * PORT]).host(ACCEPT, SERVED_V4);
        many.udp(port * PORT, b"flow", PLAIN);
    }
    for _ in 0..8 {
        many.host(CONNECT, 0);
    }
    many.pause().buffers().pause().u8(6).u8(0).pause();
    // A host that does not read, and then does.
    let mut full = Script::card(kind, 0);
    full.connect(0, SERVED_V4);
    for _ in 0..10 {
        full.u8(23)
            .u8(KNOWN | 4)
            .u8(0)
            .u16(16_000)
            .u8(PLAIN)
            .buffers();
    }
    for _ in 0..10 {
        full.host(READ, 0).u16(60_000).pause();
    }
    full.tcp(KNOWN | FIN, 0, &[]).host(0x80 | CLOSE, 0).pause();
    // A window that closes and opens, with the same again and again.
    let mut slow = Script::card(kind, 0);
    slow.connect(0, SERVED_V4)
        .tcp(KNOWN | SMALL_WINDOW | ACK, 0, &[100]);
    slow.host(0x80 | WRITE, 0)
        .u16(60_000)
        .pause()
        .time(1, 10)
        .tcp(KNOWN | OLD | ACK, 0, &[50, 0]);
    slow.tcp(KNOWN | OLD | DATA, 0, &[20, 10, 0])
        .buffers()
        .tcp(KNOWN | ACK, 0, &[])
        .pause();
    slow.buffers()
        .pause()
        .tcp(KNOWN | ACK, 0, &[])
        .host(SHUTDOWN, 0)
        .pause();
    vec![
        (named("outgoing", "clocked-outgoing"), outgoing.0),
        (named("over-ipv6", "clocked-over-ipv6"), over_v6.0),
        (named("incoming", "clocked-incoming"), incoming.0),
        (named("refused", "clocked-refused"), refused.0),
        (named("many", "clocked-many"), many.0),
        (named("full", "clocked-full"), full.0),
        (named("slow", "clocked-slow"), slow.0),
    ]
}

pub(super) fn packets(kind: u8) -> Seeds {
    let named = |user, clocked| if kind == USER { user } else { clocked };
    let mut link = Script::card(kind, 16);
    link.arp()
        .dhcp(1, &[])
        .dhcp(3, &[50, 4, 10, 0, 2, 15, 54, 4, 10, 0, 2, 2]);
    link.dhcp(0x83, &[])
        .dhcp(8, &[])
        .dhcp(3, &[50, 4, 10, 9, 9, 9])
        .dhcp(7, &[]);
    link.neighbour(V6, 133)
        .neighbour(V6, 135)
        .neighbour(V6 | TO_DNS, 135);
    link.echo(0)
        .echo(V6)
        .echo(TO_DNS)
        .echo(3 << 1)
        .u8(0)
        .u8(0)
        .u8(0)
        .pause();
    let mut pings = Script::card(kind, 3);
    pings
        .u8(17)
        .u8(3 << 1)
        .bytes(&[192, 0, 1])
        .u8(1)
        .u8(8)
        .bytes(b"ping-pon")
        .u8(PLAIN)
        .pause();
    pings
        .u8(17)
        .u8(3 << 1 | V6)
        .u16(0xfd99)
        .u8(1)
        .u8(1)
        .u8(8)
        .bytes(b"ping-pon")
        .u8(PLAIN)
        .pause();
    pings
        .u8(17)
        .u8(3 << 1)
        .bytes(&[203, 0, 1])
        .u8(1)
        .u8(8)
        .bytes(b"ping-pon")
        .u8(PLAIN)
        .pause();
    let mut names = Script::card(kind, 0);
    let query = b"\x12\x34\x01\x00\x00\x01\0\0\0\0\0\0\x01a\x07example\0\0\x01\0\x01";
    names
        .udp(TO_DNS | RESOLVER, query, PLAIN)
        .host(ANSWER, DNS_V4)
        .pause();
    names
        .udp(TO_DNS | RESOLVER | V6, query, PLAIN)
        .host(ANSWER, DNS_V4)
        .pause();
    names
        .udp(TO_DNS | RESOLVER, query, PLAIN)
        .time(2, 3)
        .udp(TO_DNS | RESOLVER, query, PLAIN);
    names.time(2, 20).pause();
    names
        .connect(TO_DNS | RESOLVER, DNS_V4)
        .tcp(KNOWN | DATA, 0, &[30])
        .pause();
    let mut datagrams = Script::card(kind, 0);
    datagrams
        .udp(0, b"hello", PLAIN)
        .host(ANSWER, SERVED_V4)
        .pause();
    datagrams
        .udp(V6, b"hello", PLAIN)
        .host(ANSWER, SERVED_V6)
        .pause()
        .udp(CLOSED, b"", PLAIN)
        .pause();
    datagrams
        .host(CONNECT, 1)
        .u16(100)
        .pause()
        .udp(ASKED, b"to you", PLAIN);
    datagrams
        .host(CONNECT, 1)
        .u16(2000)
        .pause()
        .udp(3 << 1, &[8, 8, 8], PLAIN);
    let mut fragments = Script::card(kind, 0);
    for ends in [0, V6] {
        fragments
            .u8(20)
            .u8(ends)
            .u8(0xc0)
            .u16(3000)
            .u8(0x7f)
            .u8(4)
            .bytes(&[2, 0, 1, 0, 2]);
        fragments
            .u8(20)
            .u8(ends)
            .u8(40)
            .bytes(&[b'f'; 40])
            .u8(0)
            .u8(5)
            .bytes(&[0, 2, 3, 4, 5, 1]);
        fragments.host(ANSWER, SERVED_V4).time(2, 20).pause();
    }
    vec![
        (named("link", "clocked-link"), link.0),
        (named("names", "clocked-names"), names.0),
        (named("pings", "clocked-pings"), pings.0),
        (named("datagrams", "clocked-datagrams"), datagrams.0),
        (named("fragments", "clocked-fragments"), fragments.0),
    ]
}
