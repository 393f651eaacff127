use super::*;

#[test]
fn forwards_are_parsed() {
    let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let cases = [
        ("8080:80", Protocol::Tcp, local, 8080, 80),
        ("0:80/tcp", Protocol::Tcp, local, 0, 80),
        ("5353:53/udp", Protocol::Udp, local, 5353, 53),
        (
            "0.0.0.0:1:2",
            Protocol::Tcp,
            Ipv4Addr::UNSPECIFIED.into(),
            1,
            2,
        ),
        (
            "[::1]:1:2/udp",
            Protocol::Udp,
            Ipv6Addr::LOCALHOST.into(),
            1,
            2,
        ),
    ];
    for (text, protocol, address, host_port, guest_port) in cases {
        let expected = Forward {
            protocol,
            address,
            host_port,
            guest_port,
        };
        assert_eq!(text.parse(), Ok(expected), "{text}");
        assert_eq!(expected.to_string().parse(), Ok(expected), "{text}");
    }
}

#[test]
fn what_is_no_forward_is_refused() {
    let bad = [
        "",
        "80",
        ":80",
        "80:",
        "80:0",
        "1:2/sctp",
        "1:2/",
        "65536:1",
        "1:65536",
        "+1:2",
        "1:+2",
        "::1:1:2",
        "[127.0.0.1]:1:2",
        "localhost:1:2",
        "1:2:3",
        "[::1]1:2",
    ];
    for text in bad {
        let error = text.parse::<Forward>().unwrap_err();
        assert!(error.to_string().contains("HOSTPORT:GUESTPORT"), "{text}");
    }
}
