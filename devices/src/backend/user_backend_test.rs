use std::net::{SocketAddr, UdpSocket};

use super::*;
use crate::virtio::net::backend::Pair;
use crate::virtio::net::{Net, NetConfig};
use crate::virtio::test_support::{Driver, TestLoop, lifecycle_suite};

const RX: usize = 0;
const TX: usize = 1;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

fn card() -> (Net, UserNetControl) {
    let network = UserNet::new(user_net::Config::default()).unwrap();
    let (backend, user_control) = UserBackend::new(network).unwrap();
    let pair = Pair {
        backend: Box::new(backend),
        kernel: None,
    };
    let (net, _) = Net::new(NetConfig::default(), vec![pair], TestLoop::start()).unwrap();
    (net, user_control)
}

lifecycle_suite!(card().0);

/// Waits for a frame that is so, whatever else comes.
fn wait_for(driver: &mut Driver, is_it: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    loop {
        let buffer = driver.buffer(2000);
        driver.submit(RX, &[buffer.writable()]);
        let len = driver.wait_used(RX, 1)[0].1;
        let got = driver.read(buffer.gpa, len);
        if is_it(&got[HEADER_LEN..]) {
            return got;
        }
    }
}

fn send(driver: &mut Driver, header: [u8; HEADER_LEN], frame: &[u8]) {
    let [header, frame] = [&header[..], frame].map(|part| driver.buffer_with(part).readable());
    driver.request(TX, &[header, frame]);
}

/// Asks for the gateway, and returns its address.
fn arp(driver: &mut Driver) -> Vec<u8> {
    let mut request = vec![0xff; 6];
    request.extend(MAC);
    request.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    request.extend(MAC);
    request.extend([10, 0, 2, 15, 0, 0, 0, 0, 0, 0, 10, 0, 2, 2]);
    send(driver, [0; HEADER_LEN], &request);
    let reply = wait_for(driver, |frame| frame[12..14] == [8, 6]);
    assert_eq!(reply[10..12], [1, 0]);
    let reply = &reply[HEADER_LEN..];
    assert_eq!(reply[28..32], [10, 0, 2, 2]);
    reply[22..28].to_vec()
}

/// The one's complement sum.
fn sum(bytes: &[u8]) -> u16 {
    let words = bytes
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// A datagram to the host's loopback, by the gateway; its checksum is left to the receiver.
fn datagram(gateway: &[u8], port: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = gateway.to_vec();
    frame.extend(MAC);
    frame.extend([8, 0]);
    let len = (8 + payload.len()) as u16;
    let mut ip = vec![0x45, 0];
    ip.extend((20 + len).to_be_bytes());
    ip.extend([0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 2, 15, 10, 0, 2, 2]);
    let checksum = !sum(&ip);
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    frame.extend(&ip);
    frame.extend(1234_u16.to_be_bytes());
    frame.extend(port.to_be_bytes());
    frame.extend(len.to_be_bytes());
    let pseudo = [&ip[12..20], &[0, 17], &len.to_be_bytes()].concat();
    frame.extend(sum(&pseudo).to_be_bytes());
    frame.extend(payload);
    frame
}

#[test]
fn a_datagram_goes_to_the_host_and_comes_back() {
    let (net, control) = card();
    let mut driver = Driver::started(net);
    let gateway = arp(&mut driver);
    let host = UdpSocket::bind("127.0.0.1:0").unwrap();
    host.set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let port = host.local_addr().unwrap().port();
    let needs_checksum = [1, 0, 0, 0, 0, 0, 34, 0, 6, 0, 0, 0];
    for payload in [&b"ping"[..], &[7; 1400]] {
        let frame = datagram(&gateway, port, payload);
        send(&mut driver, needs_checksum, &frame);
        let mut got = [0; 2000];
        let (len, from): (usize, SocketAddr) = host.recv_from(&mut got).unwrap();
        assert_eq!(got[..len], *payload);
        host.send_to(&got[..len], from).unwrap();
        let back = wait_for(&mut driver, |frame| frame[12..14] == [8, 0]);
        assert_eq!(back[HEADER_LEN + 42..], *payload);
        assert_eq!(
            back[HEADER_LEN + 36..HEADER_LEN + 38],
            1234_u16.to_be_bytes()
        );
    }
    assert!(control.counters().guest_frames >= 3);
    assert_eq!(control.forwards(), []);
}

#[test]
fn headers_are_read_and_written() {
    let offload = FrameOffload {
        checksum: Some(PartialChecksum {
            start: 34,
            offset: 0x110,
        }),
        gso: Some(Gso {
            kind: GsoKind::Tcp6,
            size: 1440,
            header_len: 74,
        }),
    };
    let header = write_header(offload);
    assert_eq!(header, [1, 4, 74, 0, 0xa0, 5, 34, 0, 0x10, 1, 0, 0]);
    assert_eq!(read_header(&header), Some(offload));
    for kind in [GsoKind::Tcp4, GsoKind::Udp] {
        let gso = offload.gso.map(|gso| Gso { kind, ..gso });
        let offload = FrameOffload { gso, ..offload };
        let mut header = write_header(offload);
        assert_eq!(read_header(&header), Some(offload));
        header[1] |= GSO_ECN;
        assert_eq!(read_header(&header), Some(offload));
    }
    assert_eq!(read_header(&[0; 12]), Some(FrameOffload::default()));
    // Unknown, segments of nothing, and segments without checksums.
    for (at, value) in [(1, 3), (1, 0x7f), (4, 0), (0, 0)] {
        let mut bad = header;
        bad[5] = 0;
        bad[at] = value;
        assert_eq!(read_header(&bad), None, "{at}");
    }
}

#[test]
fn what_finds_no_room_is_cut_off() {
    let mut memory = [[0_u8; 4], [0; 4], [0; 4]];
    let [a, b, c] = &mut memory;
    let slice = |bytes| VolatileSlice::from(bytes);
    let room = [slice(&mut a[..]), slice(&mut b[..1]), slice(&mut c[..])];
    assert_eq!(scatter(&room, &[&[1, 2, 3], &[4, 5, 6], &[]]), 6);
    assert_eq!(scatter(&room[..2], &[&[7, 8], &[9; 100]]), 5);
    assert_eq!(scatter(&[], &[&[1]]), 0);
    assert_eq!(memory, [[7, 8, 9, 9], [9, 0, 0, 0], [6, 0, 0, 0]]);
}
