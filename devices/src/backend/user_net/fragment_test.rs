use std::net::Ipv4Addr;

use super::*;

fn packet(payload: &[u8]) -> IpPacket<'_> {
    IpPacket {
        source: Ipv4Addr::new(10, 0, 2, 15).into(),
        destination: Ipv4Addr::new(10, 0, 2, 2).into(),
        protocol: 17,
        payload,
        fragment: None,
    }
}

fn piece(id: u32, offset: usize, more: bool) -> Fragment {
    Fragment { id, offset, more }
}

#[test]
fn pieces_make_a_whole_in_any_order() {
    let bytes: Vec<u8> = (0..50).collect();
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
        let mut reassembly = Reassembly::default();
        let now = Instant::now();
        let pieces = [(0, 16, true), (16, 40, true), (40, 50, false)];
        for (count, index) in order.into_iter().enumerate() {
            let (from, to, more) = pieces[index];
            let result = reassembly.add(&packet(&bytes[from..to]), piece(1, from, more), now);
            match count {
                2 => assert_eq!(result, Piece::Complete(bytes.clone())),
                _ => assert_eq!(result, Piece::Held),
            }
        }
        assert!(reassembly.partial.is_empty());
    }
}

#[test]
fn what_makes_no_sense_ends_the_packet() {
    let now = Instant::now();
    let bytes = [0; 64];
    let cases: [&[(usize, usize, bool)]; 7] = [
        // Overlaps.
        &[(0, 16, true), (8, 16, true)],
        &[(0, 16, true), (0, 16, true)],
        // Beyond the end, and two ends.
        &[(16, 8, false), (24, 8, true)],
        &[(24, 8, true), (8, 8, false)],
        &[(16, 8, false), (32, 8, false)],
        // Not a multiple of 8 bytes; nothing at all.
        &[(0, 7, true)],
        &[(8, 0, false)],
    ];
    for case in cases {
        let mut reassembly = Reassembly::default();
        for (index, &(offset, len, more)) in case.iter().enumerate() {
            let result = reassembly.add(&packet(&bytes[..len]), piece(1, offset, more), now);
            let expected = if index + 1 == case.len() {
                Piece::Dropped
            } else {
                Piece::Held
            };
            assert_eq!(result, expected, "{case:?}");
        }
        assert!(reassembly.partial.is_empty(), "{case:?}");
    }
    let mut reassembly = Reassembly::default();
    let late = piece(1, 65528, false);
    assert_eq!(reassembly.add(&packet(&bytes), late, now), Piece::Dropped);
}

#[test]
fn incomplete_packets_are_bounded_and_end() {
    let mut reassembly = Reassembly::default();
    let now = Instant::now();
    for id in 0..1000 {
        reassembly.add(&packet(&[0; 8]), piece(id, 0, true), now);
        assert!(reassembly.partial.len() <= MAX_PACKETS);
    }
    for index in 0..1000 {
        reassembly.add(&packet(&[0; 8]), piece(5000, index * 16, true), now);
        let pieces = reassembly
            .partial
            .iter()
            .map(|partial| partial.pieces.len());
        assert!(pieces.max() <= Some(MAX_PIECES));
    }
    reassembly.add(&packet(&[0; 8]), piece(9999, 0, true), now + TIMEOUT);
    assert_eq!(reassembly.partial.len(), 1);
}
