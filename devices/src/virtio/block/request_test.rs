use std::sync::Arc;

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::backend::disk::test_support::Random;
use crate::virtio::test_support::{Desc, GuestQueue, memory};

const QUEUE: u64 = 0x10_0000;
const HEADER: u64 = 0x20_0000;
const DATA: u64 = 0x21_0000;
const ANSWER: u64 = 0x40_0000;
const LIMITS: Limits = Limits {
    size: 1 << 20,
    read_only: false,
};

struct Guest {
    memory: Arc<GuestMemoryMmap>,
}

impl Guest {
    fn new() -> Self {
        Self { memory: memory() }
    }

    fn header(&self, kind: u32, sector: u64) {
        self.memory
            .write_obj(kind.to_le(), GuestAddress(HEADER))
            .unwrap();
        self.memory
            .write_obj(sector.to_le(), GuestAddress(HEADER + 8))
            .unwrap();
    }

    fn ranges(&self, ranges: &[(u64, u32, u32)]) {
        for (at, (sector, sectors, flags)) in (DATA..).step_by(16).zip(ranges) {
            self.memory.write_obj(*sector, GuestAddress(at)).unwrap();
            self.memory
                .write_obj(*sectors, GuestAddress(at + 8))
                .unwrap();
            self.memory
                .write_obj(*flags, GuestAddress(at + 12))
                .unwrap();
        }
    }

    fn parse_with(&self, limits: Limits, descs: &[Desc]) -> Option<Request> {
        let mut queue = GuestQueue::new(Arc::clone(&self.memory), QUEUE, 256);
        let head = queue.add(descs);
        let table = GuestAddress(QUEUE);
        let chain = Chain::read(&self.memory, table, 256, head).unwrap();
        Request::parse(chain, &self.memory, limits)
    }

    fn command(&self, descs: &[Desc]) -> Result<Command, Status> {
        self.parse_with(LIMITS, descs).unwrap().command
    }

    /// A request with a header, data for the device and an answer.
    fn send(&self, kind: u32, sector: u64, len: u32) -> Result<Command, Status> {
        self.header(kind, sector);
        self.command(&[
            Desc::readable(HEADER, 16),
            Desc::readable(DATA, len),
            Desc::writable(ANSWER, 1),
        ])
    }

    /// A request with a header, and room for data and an answer.
    fn receive(&self, kind: u32, sector: u64, len: u32) -> Result<Command, Status> {
        self.header(kind, sector);
        self.command(&[Desc::readable(HEADER, 16), Desc::writable(DATA, len + 1)])
    }
}

#[test]
fn transfers_are_within_the_disk() {
    let guest = Guest::new();
    assert_eq!(
        guest.receive(IN, 2, 512),
        Ok(Command::Read { offset: 1024 })
    );
    assert_eq!(
        guest.send(OUT, 2047, 512),
        Ok(Command::Write { offset: 2047 * 512 })
    );
    assert_eq!(
        guest.receive(IN, 2048, 0),
        Ok(Command::Read { offset: 1 << 20 })
    );
    for (sector, len) in [
        (2048, 512),
        (2047, 1024),
        (2049, 0),
        (u64::MAX, 512),
        (u64::MAX / 512, 512),
        (1 << 55, 512),
        (1 << 63, 512),
        (0, 511),
        (0, 513),
        (0, 1),
    ] {
        let error = Err(Status::IoError);
        assert_eq!(guest.receive(IN, sector, len), error, "{sector} {len}");
        assert_eq!(guest.send(OUT, sector, len), error, "{sector} {len}");
    }
}

#[test]
fn a_request_may_be_split_anywhere() {
    let guest = Guest::new();
    guest.header(OUT, 3);
    let whole = [(HEADER, 16), (DATA, 1024)];
    for cut in 1..16 {
        // The header in three pieces, the last one with nothing else than a part of it.
        let request = guest
            .parse_with(
                LIMITS,
                &[
                    Desc::readable(HEADER, 1),
                    Desc::readable(HEADER + 1, cut - 1),
                    Desc::readable(HEADER + u64::from(cut), 16 - cut),
                    Desc::readable(whole[1].0, 700),
                    Desc::readable(whole[1].0 + 700, 324),
                    Desc::writable(ANSWER, 1),
                ],
            )
            .unwrap();
        assert_eq!(request.command, Ok(Command::Write { offset: 1536 }));
        assert_eq!(request.data.len(), 1024);
        assert_eq!(request.status.0, ANSWER);
    }
    // Header and data in one buffer; data and answer in one.
    guest.header(OUT, 0);
    let request = guest
        .parse_with(
            LIMITS,
            &[Desc::readable(HEADER, 16 + 512), Desc::writable(ANSWER, 1)],
        )
        .unwrap();
    assert_eq!(request.data.segments()[0].gpa.0, HEADER + 16);
    assert_eq!(request.data.len(), 512);
    guest.header(IN, 0);
    let request = guest
        .parse_with(
            LIMITS,
            &[
                Desc::readable(HEADER, 16),
                Desc::writable(DATA, 500),
                Desc::writable(DATA + 500, 13),
            ],
        )
        .unwrap();
    assert_eq!(request.data.len(), 512);
    assert_eq!(request.status.0, DATA + 512);
}

#[test]
fn without_room_for_an_answer_there_is_none() {
    let guest = Guest::new();
    guest.header(IN, 0);
    let descs = [Desc::readable(HEADER, 16), Desc::readable(DATA, 512)];
    assert!(guest.parse_with(LIMITS, &descs).is_none());
    let descs = [Desc::readable(HEADER, 16), Desc::writable(ANSWER, 0)];
    assert!(guest.parse_with(LIMITS, &descs).is_none());
    assert!(guest.parse_with(LIMITS, &[]).is_none());
}

#[test]
fn half_a_header_is_an_error() {
    let guest = Guest::new();
    guest.header(IN, 0);
    for len in [0, 1, 15] {
        let descs = [Desc::readable(HEADER, len), Desc::writable(DATA, 513)];
        assert_eq!(guest.command(&descs), Err(Status::IoError));
    }
}

#[test]
fn other_requests() {
    let guest = Guest::new();
    assert_eq!(guest.send(FLUSH, 0, 0), Ok(Command::Flush));
    assert_eq!(guest.receive(GET_ID, 0, 20), Ok(Command::GetId));
    for kind in [2, 3, 5, 6, 7, 9, 10, 12, 14, 15, 16, 1 << 31, u32::MAX] {
        assert_eq!(guest.send(kind, 0, 0), Err(Status::Unsupported));
    }
}

#[test]
fn ranges_are_checked() {
    let guest = Guest::new();
    let send = |kind, ranges: &[(u64, u32, u32)]| {
        guest.ranges(ranges);
        guest.send(kind, 0, 16 * ranges.len() as u32)
    };
    let range = |offset, len, unmap| Range { offset, len, unmap };
    assert_eq!(
        send(DISCARD, &[(1, 2, 0), (2047, 1, 0)]),
        Ok(Command::Discard(
            [range(512, 1024, false), range(2047 * 512, 512, false)]
                .into_iter()
                .collect()
        ))
    );
    assert_eq!(
        send(WRITE_ZEROES, &[(0, 2048, 1)]),
        Ok(Command::WriteZeroes(
            [range(0, 1 << 20, true)].into_iter().collect()
        ))
    );
    for kind in [DISCARD, WRITE_ZEROES] {
        for bad in [
            (2048, 1, 0),
            (2047, 2, 0),
            (0, u32::MAX, 0),
            (u64::MAX, 1, 0),
            (u64::MAX / 512, u32::MAX, 0),
        ] {
            assert_eq!(send(kind, &[(0, 1, 0), bad]), Err(Status::IoError));
        }
        assert_eq!(send(kind, &[(0, 1, 2)]), Err(Status::Unsupported));
        assert_eq!(send(kind, &[(0, 1, 1 << 31)]), Err(Status::Unsupported));
        assert_eq!(send(kind, &[]), Err(Status::IoError));
        assert_eq!(send(kind, &[(0, 1, 0); 17]), Err(Status::IoError));
        for len in [1, 15, 17] {
            assert_eq!(guest.send(kind, 0, len), Err(Status::IoError));
        }
    }
    assert_eq!(send(DISCARD, &[(0, 1, 1)]), Err(Status::Unsupported));
    assert_eq!(send(WRITE_ZEROES, &[(0, 1, 0); 5]), Err(Status::IoError));
    let large = Limits {
        size: u64::MAX - 511,
        ..LIMITS
    };
    guest.ranges(&[(0, DISCARD_SECTORS_MAX + 1, 0)]);
    guest.header(DISCARD, 0);
    let descs = [
        Desc::readable(HEADER, 16),
        Desc::readable(DATA, 16),
        Desc::writable(ANSWER, 1),
    ];
    let request = guest.parse_with(large, &descs).unwrap();
    assert_eq!(request.command, Err(Status::IoError));
}

#[test]
fn a_read_only_disk_is_only_read() {
    let guest = Guest::new();
    let limits = Limits {
        read_only: true,
        ..LIMITS
    };
    guest.ranges(&[(0, 1, 0)]);
    let descs = [
        Desc::readable(HEADER, 16),
        Desc::readable(DATA, 16),
        Desc::writable(ANSWER, 1),
    ];
    for (kind, wanted) in [
        (OUT, Err(Status::IoError)),
        (DISCARD, Err(Status::IoError)),
        (WRITE_ZEROES, Err(Status::IoError)),
        (FLUSH, Ok(Command::Flush)),
    ] {
        guest.header(kind, 0);
        let request = guest.parse_with(limits, &descs).unwrap();
        assert_eq!(request.command, wanted);
    }
}

#[test]
fn any_chain_is_parsed_to_something_within_the_disk() {
    let guest = Guest::new();
    let mut random = Random(9);
    for _ in 0..20_000 {
        guest.header(random.below(16) as u32, random.below(4096));
        guest.ranges(&[(
            random.below(4096),
            random.below(4096) as u32,
            random.below(3) as u32,
        )]);
        let mut descs = Vec::new();
        for _ in 0..random.below(4) {
            let at = [HEADER, DATA][random.below(2) as usize] + random.below(4);
            descs.push(Desc::readable(at, random.below(40) as u32));
        }
        for _ in 0..random.below(4) {
            descs.push(Desc::writable(
                ANSWER + random.below(9),
                random.below(1026) as u32,
            ));
        }
        let Some(request) = guest.parse_with(LIMITS, &descs) else {
            continue;
        };
        let (offset, len) = match request.command {
            Ok(Command::Read { offset } | Command::Write { offset }) => {
                (offset, u64::from(request.data.len()))
            }
            Ok(Command::Discard(ranges) | Command::WriteZeroes(ranges)) => {
                assert!(
                    ranges
                        .iter()
                        .all(|range| range.offset + range.len <= LIMITS.size)
                );
                continue;
            }
            _ => continue,
        };
        assert!(offset + len <= LIMITS.size && len.is_multiple_of(512));
    }
}
