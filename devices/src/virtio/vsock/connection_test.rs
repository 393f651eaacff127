use std::cell::RefCell;
use std::io::{Read, Write};
use std::rc::Rc;
use std::sync::Arc;

use super::*;
use crate::virtio::test_support::memory;
use crate::virtio::vsock::test_support::{CID, buffers, pattern};

const CAPACITY: u32 = 64 << 10;
const KEY: Key = Key {
    host: 7,
    guest: 1000,
};

/// The host's end, in the hands of the test.
#[derive(Default)]
struct End {
    /// What can be read.
    input: VecDeque<u8>,
    /// After that the stream ends.
    eof: bool,
    /// What was written.
    output: Vec<u8>,
    /// How much more is taken.
    room: usize,
    /// Nobody reads any more.
    broken: bool,
    shutdowns: Vec<Shutdown>,
}

#[derive(Clone, Default)]
struct Fake(Rc<RefCell<End>>);

impl Stream for Fake {
    fn read(&self, to: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let mut end = self.0.borrow_mut();
        if end.input.is_empty() && !end.eof {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut all = 0;
        for slice in to {
            let mut bytes = vec![0; slice.len()];
            let count = end.input.read(&mut bytes).unwrap();
            slice.copy_from(&bytes[..count]);
            all += count;
        }
        Ok(all)
    }

    fn write(&self, from: &[VolatileSlice<'_>]) -> io::Result<usize> {
        let mut end = self.0.borrow_mut();
        if end.broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        if end.room == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut all = 0;
        for slice in from {
            let mut bytes = vec![0; slice.len()];
            slice.copy_to(&mut bytes);
            let count = end.room.min(bytes.len());
            end.output.write_all(&bytes[..count]).unwrap();
            end.room -= count;
            all += count;
        }
        Ok(all)
    }

    fn shutdown(&self, how: Shutdown) {
        self.0.borrow_mut().shutdowns.push(how);
    }
}

struct Test {
    connection: Connection<Fake>,
    end: Rc<RefCell<End>>,
    memory: Arc<GuestMemoryMmap>,
    now: Instant,
}

impl Test {
    fn with(make: impl FnOnce(Fake, Instant) -> Connection<Fake>) -> Self {
        let fake = Fake::default();
        let end = Rc::clone(&fake.0);
        end.borrow_mut().room = usize::MAX;
        let now = Instant::now();
        Self {
            connection: make(fake, now),
            end,
            memory: memory(),
            now,
        }
    }

    /// The host has asked for it.
    fn requested() -> Self {
        Self::with(|fake, now| Connection::request(KEY, CID.into(), CAPACITY, fake, now))
    }

    /// The guest has asked for it, and was told that it has it.
    fn open() -> Self {
        let mut test = Self::with(|fake, now| {
            Connection::accept(KEY, CID.into(), CAPACITY, fake, (1000, 0), now)
        });
        assert_eq!(test.control().unwrap().op, op::RESPONSE);
        test
    }

    fn control(&mut self) -> Option<Header> {
        assert!(self.connection.has_packet() || !self.connection.has_control());
        self.connection.control()
    }

    /// The guest sends a packet.
    fn send(&mut self, header: Header, data: &[u8]) -> Verdict {
        let pieces: &[u32] = &[data.len() as u32];
        let data = if data.is_empty() {
            Buffers::default()
        } else {
            buffers(&self.memory, data, pieces)
        };
        self.connection
            .receive(&header, &data, &self.memory, self.now)
    }

    fn send_op(&mut self, op: u16) -> Verdict {
        self.send(packet(op), &[])
    }

    fn send_data(&mut self, data: &[u8]) -> Verdict {
        let header = Header {
            len: data.len() as u32,
            ..packet(op::RW)
        };
        self.send(header, data)
    }

    fn send_shutdown(&mut self, flags: u32) -> Verdict {
        let header = Header {
            flags,
            ..packet(op::SHUTDOWN)
        };
        self.send(header, &[])
    }

    /// What the guest gets, up to `len` bytes.
    fn read(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len.min(self.connection.credit() as usize)];
        let slice = VolatileSlice::from(bytes.as_mut_slice());
        match self.connection.read(&[slice], self.now) {
            Got::Data(count) => bytes.truncate(count),
            Got::Nothing => bytes.clear(),
        }
        bytes
    }

    fn output(&self) -> Vec<u8> {
        std::mem::take(&mut self.end.borrow_mut().output)
    }

    fn shutdowns(&self) -> Vec<Shutdown> {
        std::mem::take(&mut self.end.borrow_mut().shutdowns)
    }
}

/// A packet of the guest, which has room for 1000 bytes.
fn packet(op: u16) -> Header {
    Header {
        src_cid: CID.into(),
        dst_cid: HOST_CID,
        src_port: KEY.guest,
        dst_port: KEY.host,
        kind: kind::STREAM,
        op,
        buf_alloc: 1000,
        ..Header::default()
    }
}

#[test]
fn opens_when_the_guest_accepts() {
    let mut test = Test::requested();
    test.end.borrow_mut().input.extend(b"early");
    assert!(!test.connection.may_read());
    let request = test.control().unwrap();
    let expected = Header {
        src_cid: HOST_CID,
        dst_cid: CID.into(),
        src_port: 7,
        dst_port: 1000,
        len: 0,
        kind: kind::STREAM,
        op: op::REQUEST,
        flags: 0,
        buf_alloc: CAPACITY,
        fwd_cnt: 0,
    };
    assert_eq!(request, expected);
    assert_eq!(test.control(), None);
    assert!(test.connection.deadline().is_some());
    assert_eq!(test.send_op(op::RESPONSE), Verdict::Alive);
    assert_eq!(test.connection.deadline(), None);
    assert_eq!(test.output(), b"OK 7\n");
    assert_eq!(test.read(100), b"early");
    let header = test.connection.data_header(5);
    assert_eq!((header.op, header.len), (op::RW, 5));
}

#[test]
fn is_over_when_the_guest_refuses() {
    let mut test = Test::requested();
    test.control().unwrap();
    assert_eq!(test.send_op(op::RST), OVER);
    assert_eq!(test.output(), b"");
    assert!(!test.connection.drain(test.now));
}

#[test]
fn is_over_when_the_guest_does_not_answer() {
    let mut test = Test::requested();
    test.control().unwrap();
    let early = test.now + REQUEST_TIMEOUT - Duration::from_millis(1);
    assert_eq!(test.connection.expire(early), Verdict::Alive);
    let late = test.now + REQUEST_TIMEOUT;
    assert_eq!(test.connection.expire(late), RESET);
    // One that the guest never heard of.
    let mut test = Test::requested();
    assert_eq!(test.connection.expire(late + REQUEST_TIMEOUT), OVER);
}

#[test]
fn is_over_when_the_client_does_not_wait() {
    let mut test = Test::requested();
    assert_eq!(test.connection.hang_up(test.now), OVER);
    let mut test = Test::requested();
    test.control().unwrap();
    assert_eq!(test.connection.hang_up(test.now), RESET);
    let mut test = Test::requested();
    test.control().unwrap();
    test.end.borrow_mut().broken = true;
    assert_eq!(test.send_op(op::RESPONSE), RESET);
}

#[test]
fn wants_no_answer_to_what_it_has_not_asked() {
    let mut test = Test::requested();
    assert_eq!(test.send_op(op::RESPONSE), RESET);
    let mut test = Test::open();
    assert_eq!(test.send_op(op::RESPONSE), RESET);
}

#[test]
fn resets_what_breaks_the_rules() {
    let wrong_kind = Header {
        kind: 2,
        ..packet(op::CREDIT_UPDATE)
    };
    let wrong_count = Header {
        fwd_cnt: 1,
        ..packet(op::CREDIT_UPDATE)
    };
    let wrong_len = Header {
        len: 10,
        ..packet(op::RW)
    };
    for header in [wrong_kind, wrong_count, wrong_len] {
        assert_eq!(Test::open().send(header, b""), RESET, "{header:?}");
    }
    for op in [0, op::REQUEST, 8, u16::MAX] {
        assert_eq!(Test::open().send_op(op), RESET, "{op}");
    }
    for op in [op::RW, op::SHUTDOWN, op::CREDIT_UPDATE, op::CREDIT_REQUEST] {
        let mut test = Test::requested();
        test.control().unwrap();
        assert_eq!(test.send_op(op), RESET, "{op}");
    }
    let mut test = Test::open();
    assert_eq!(test.send_shutdown(shutdown::SEND), Verdict::Alive);
    assert_eq!(test.send_data(b"more"), RESET);
}

#[test]
fn holds_what_the_host_does_not_take_and_no_more() {
    let mut test = Test::open();
    test.end.borrow_mut().room = 10;
    let data = pattern(1, CAPACITY as usize + 10);
    for piece in data.chunks(3000) {
        assert_eq!(test.send_data(piece), Verdict::Alive);
    }
    assert_eq!(test.output(), data[..10]);
    assert!(test.connection.wants_writable());
    assert_eq!(test.connection.buffer.len(), CAPACITY as usize);
    assert_eq!(test.connection.buffer.capacity(), CAPACITY as usize);
    // In order, however much is taken at once.
    let mut output = data[..10].to_vec();
    for room in [1, 5000, 1, 30_000] {
        test.end.borrow_mut().room = room;
        test.connection.writable(test.now);
        output.extend(test.output());
    }
    assert!(test.connection.wants_writable());
    assert_eq!(test.send_data(&pattern(2, 35_000)), Verdict::Alive);
    test.end.borrow_mut().room = usize::MAX;
    test.connection.writable(test.now);
    output.extend(test.output());
    assert!(!test.connection.wants_writable());
    assert_eq!(test.connection.buffer.capacity(), 0);
    assert_eq!(output, [data, pattern(2, 35_000)].concat());
}

#[test]
fn resets_who_sends_more_than_there_is_room_for() {
    let mut test = Test::open();
    test.end.borrow_mut().room = 0;
    let data = vec![1; CAPACITY as usize];
    assert_eq!(test.send_data(&data), Verdict::Alive);
    assert_eq!(test.send_data(&[]), Verdict::Alive);
    assert_eq!(test.send_data(&[1]), RESET);
    // Nor at once, even if the host would take it.
    let mut test = Test::open();
    let data = vec![1; CAPACITY as usize + 1];
    assert_eq!(test.send_data(&data), RESET);
}

#[test]
fn tells_the_guest_of_room() {
    let mut test = Test::open();
    let piece = vec![1; CAPACITY as usize / 4];
    for _ in 0..2 {
        assert_eq!(test.send_data(&piece), Verdict::Alive);
        assert_eq!(test.control(), None, "half is left");
    }
    assert_eq!(test.send_data(&piece), Verdict::Alive);
    let update = test.control().unwrap();
    assert_eq!(update.op, op::CREDIT_UPDATE);
    assert_eq!(update.fwd_cnt, CAPACITY / 4 * 3);
    assert_eq!(test.control(), None);
    // When it asks, it is told in any case.
    assert_eq!(test.send_op(op::CREDIT_REQUEST), Verdict::Alive);
    assert_eq!(test.send_op(op::CREDIT_REQUEST), Verdict::Alive);
    assert_eq!(test.control().unwrap().op, op::CREDIT_UPDATE);
    assert_eq!(test.control(), None, "two questions, one answer");
    // What waits here has not left.
    test.end.borrow_mut().room = 0;
    assert_eq!(test.send_data(&piece), Verdict::Alive);
    assert_eq!(test.send_op(op::CREDIT_REQUEST), Verdict::Alive);
    assert_eq!(test.control().unwrap().fwd_cnt, CAPACITY / 4 * 3);
}

#[test]
fn sends_what_the_guest_has_room_for() {
    let mut test = Test::open();
    let data = pattern(3, 2500);
    test.end.borrow_mut().input.extend(&data);
    assert_eq!(test.connection.credit(), 1000);
    let mut got = test.read(5000);
    assert_eq!(got.len(), 1000);
    assert!(!test.connection.may_read());
    assert_eq!(test.control().unwrap().op, op::CREDIT_REQUEST);
    assert_eq!(test.control(), None, "it asks once");
    let update = Header {
        fwd_cnt: 600,
        ..packet(op::CREDIT_UPDATE)
    };
    assert_eq!(test.send(update, &[]), Verdict::Alive);
    assert!(test.connection.may_read());
    got.extend(test.read(5000));
    assert_eq!(got.len(), 1600);
    assert_eq!(test.control().unwrap().op, op::CREDIT_REQUEST);
    let update = Header {
        fwd_cnt: 1600,
        ..packet(op::CREDIT_UPDATE)
    };
    assert_eq!(test.send(update, &[]), Verdict::Alive);
    got.extend(test.read(5000));
    assert_eq!(got, data);
    // Until it finds nothing, it takes it that there may be more.
    assert!(test.connection.has_packet());
    assert_eq!(test.read(10), [0; 0]);
    assert!(!test.connection.has_packet());
    test.connection.readable();
    assert!(test.connection.has_packet());
}

#[test]
fn each_way_ends_by_itself() {
    // The host's first.
    let mut test = Test::open();
    test.end.borrow_mut().input.extend(b"last words");
    test.end.borrow_mut().eof = true;
    assert_eq!(test.read(100), b"last words");
    assert_eq!(test.control(), None);
    assert_eq!(test.read(100), b"");
    let end = test.control().unwrap();
    assert_eq!((end.op, end.flags), (op::SHUTDOWN, shutdown::SEND));
    assert!(!test.connection.has_packet());
    assert_eq!(test.send_data(b"an answer"), Verdict::Alive);
    assert_eq!(test.output(), b"an answer");
    assert_eq!(test.send_shutdown(shutdown::SEND), Verdict::Alive);
    assert_eq!(test.shutdowns(), [Shutdown::Write]);
    let end = test.control().unwrap();
    assert_eq!((end.op, end.flags), (op::SHUTDOWN, shutdown::BOTH));
    assert_eq!(test.send_op(op::RST), OVER);

    // The guest's first.
    let mut test = Test::open();
    test.end.borrow_mut().room = 3;
    assert_eq!(test.send_data(b"question"), Verdict::Alive);
    assert_eq!(test.send_shutdown(shutdown::SEND), Verdict::Alive);
    assert_eq!(test.shutdowns(), [], "not before all of it is written");
    test.end.borrow_mut().room = 100;
    test.connection.writable(test.now);
    assert_eq!(test.output(), b"question");
    assert_eq!(test.shutdowns(), [Shutdown::Write]);
    test.end.borrow_mut().input.extend(b"an answer");
    test.connection.readable();
    assert_eq!(test.read(100), b"an answer");
    test.end.borrow_mut().eof = true;
    assert_eq!(test.read(100), b"");
    let end = test.control().unwrap();
    assert_eq!((end.op, end.flags), (op::SHUTDOWN, shutdown::BOTH));
}

#[test]
fn a_guest_that_receives_no_more_gets_no_more() {
    let mut test = Test::open();
    test.end.borrow_mut().input.extend(b"unwanted");
    assert_eq!(test.send_shutdown(shutdown::RECEIVE), Verdict::Alive);
    assert_eq!(test.shutdowns(), [Shutdown::Read]);
    assert!(!test.connection.has_packet());
    assert_eq!(test.send_data(b"but sends"), Verdict::Alive);
    assert_eq!(test.output(), b"but sends");
    // Flags add up, and others mean nothing.
    assert_eq!(test.send_shutdown(!shutdown::BOTH), Verdict::Alive);
    assert_eq!(test.send_shutdown(shutdown::SEND), RESET);
}

#[test]
fn what_the_guest_has_sent_outlives_it() {
    for end in [op::SHUTDOWN, op::RST] {
        let mut test = Test::open();
        test.end.borrow_mut().room = 4;
        assert_eq!(test.send_data(b"last words"), Verdict::Alive);
        let header = Header {
            flags: shutdown::BOTH,
            ..packet(end)
        };
        let reset = end == op::SHUTDOWN;
        assert_eq!(test.send(header, &[]), Verdict::Over { reset });
        assert!(test.connection.drain(test.now));
        assert!(test.connection.is_draining());
        assert!(!test.connection.has_packet());
        test.end.borrow_mut().room = 2;
        let later = test.now + DRAIN_TIMEOUT / 2;
        test.connection.writable(later);
        assert!(test.connection.wants_writable());
        // As long as the host takes something, it goes on.
        let verdict = test.connection.expire(test.now + DRAIN_TIMEOUT);
        assert_eq!(verdict, Verdict::Alive);
        test.end.borrow_mut().room = 100;
        test.connection.writable(later);
        assert_eq!(test.output(), b"last words");
        assert!(!test.connection.wants_writable());
    }
}

#[test]
fn what_the_guest_has_sent_does_not_outlive_it_for_ever() {
    let mut test = Test::open();
    test.end.borrow_mut().room = 0;
    assert_eq!(test.send_data(b"last words"), Verdict::Alive);
    assert_eq!(test.send_op(op::RST), OVER);
    assert!(test.connection.drain(test.now));
    let late = test.now + DRAIN_TIMEOUT;
    assert_eq!(test.connection.expire(late), OVER);
    assert!(!test.connection.wants_writable());
}

#[test]
fn a_host_that_takes_no_more_does_not_hold_the_guest_up() {
    let mut test = Test::open();
    test.end.borrow_mut().room = 10;
    assert_eq!(test.send_data(&[1; 100]), Verdict::Alive);
    test.end.borrow_mut().broken = true;
    test.connection.writable(test.now);
    let end = test.control().unwrap();
    assert_eq!((end.op, end.flags), (op::SHUTDOWN, shutdown::RECEIVE));
    assert_eq!(end.fwd_cnt, 100);
    // What was under way is thrown away.
    for _ in 0..10 {
        assert_eq!(test.send_data(&[1; CAPACITY as usize]), Verdict::Alive);
        assert_eq!(test.connection.buffer.len(), 0);
    }
    // The other way goes on.
    test.end.borrow_mut().input.extend(b"still here");
    assert_eq!(test.read(100), b"still here");
}

#[test]
fn a_host_that_has_gone_is_still_heard() {
    let mut test = Test::open();
    test.end.borrow_mut().input.extend(b"last words");
    test.end.borrow_mut().eof = true;
    test.end.borrow_mut().broken = true;
    assert_eq!(test.connection.hang_up(test.now), Verdict::Alive);
    assert_eq!(test.control().unwrap().flags, shutdown::RECEIVE);
    assert_eq!(test.read(4), b"last");
    assert_eq!(test.read(100), b" words");
    assert_eq!(test.read(100), b"");
    assert_eq!(test.control().unwrap().flags, shutdown::BOTH);
    // The guest did not know yet.
    assert_eq!(test.send_data(b"hello?"), Verdict::Alive);
    let late = test.now + SHUTDOWN_TIMEOUT;
    assert_eq!(test.connection.expire(late), RESET);
}

/// Any packets and events in any order: it holds no more than its capacity, sends no more than the
/// guest has room for, and ends when it says so.
#[test]
fn survives_anything() {
    let mut state = 1u32;
    let mut random = move |below: u32| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state % below
    };
    for round in 0..400 {
        let mut test = if round % 2 == 0 {
            Test::requested()
        } else {
            Test::open()
        };
        for _ in 0..200 {
            let verdict = match random(12) {
                0..5 => {
                    let len = random(20_000);
                    let data = vec![0; len as usize];
                    let header = Header {
                        kind: 1 + u16::from(random(50) == 0),
                        len: len + u32::from(random(50) == 0),
                        flags: random(4) * u32::from(random(8) == 0),
                        fwd_cnt: random(3) * 500,
                        ..packet(if random(4) == 0 {
                            random(9) as u16
                        } else {
                            op::RW
                        })
                    };
                    test.send(header, &data)
                }
                5 => {
                    test.connection.readable();
                    Verdict::Alive
                }
                6 => {
                    let mut end = test.end.borrow_mut();
                    end.input.extend(vec![1; random(3000) as usize]);
                    end.eof |= random(20) == 0;
                    end.broken |= random(50) == 0;
                    Verdict::Alive
                }
                7 => {
                    test.end.borrow_mut().room = random(30_000) as usize;
                    test.connection.writable(test.now);
                    Verdict::Alive
                }
                8 if random(20) == 0 => test.connection.hang_up(test.now),
                9 if random(20) == 0 => {
                    test.now += REQUEST_TIMEOUT;
                    test.connection.expire(test.now)
                }
                _ => {
                    if test.control().is_none() && test.connection.may_read() {
                        test.read(2000);
                    }
                    Verdict::Alive
                }
            };
            assert!(test.connection.buffer.len() <= CAPACITY as usize);
            assert!(test.connection.buffer.capacity() <= CAPACITY as usize);
            assert!(test.connection.credit() <= 1000);
            if verdict != Verdict::Alive {
                test.connection.drain(test.now);
                assert!(!test.connection.has_packet());
                break;
            }
        }
    }
}
