//! The job port: how a guest that was made to run commands is told which one, and says how it ended.
//!
//! | port | read | write |
//! | --- | --- | --- |
//! | 0 to 3 | bytes of the job that have not been read, little-endian | 1 to the first: the guest waits for its job |
//! | 4 to 255 | the next byte of the job | to the first: status with which the job ended |
//!
//! The guest's first process writes that it waits as soon as there is nothing left to be set up. That is where a template is
//! taken: what is restored from it goes on behind that write, and finds the job. Nobody polls, and
//! no interrupt is needed. Each port is a byte wide, and there are so many of them for Linux's `/dev/port`, which reads
//! one port after the other.
//!
//! What is in a job is between who writes it and the first process; 0 bytes mean that there is none.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::bus::BusDevice;
use crate::event::{EventSink, GuestEvent};
use crate::state::BadState;

/// Most bytes of a job: what Linux takes as arguments and environment of a program would fit.
pub const MAX_JOB: usize = 256 << 10;
/// Ports.
pub const SIZE: u64 = 256;

const CONTROL: u64 = 0;
const DATA: u64 = 4;
/// Written to `CONTROL`.
const WAITS: u8 = 1;

/// The port.
pub struct JobPort {
    // Runtime glue.
    sink: Arc<dyn EventSink>,
    // Guest-visible state.
    job: Vec<u8>,
    read: usize,
    has_waited: bool,
}

/// A job port, saved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobPortState {
    job: Vec<u8>,
    read: u32,
    has_waited: bool,
}

/// A job that has more than [`MAX_JOB`] bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("A job has at most {MAX_JOB} bytes of arguments and environment, this one has {bytes}")]
pub struct JobTooLong {
    /// How many it has.
    pub bytes: usize,
}

impl JobPort {
    /// A port without a job, which reports to `sink`.
    pub fn new(sink: Arc<dyn EventSink>) -> Self {
        Self {
            sink,
            job: Vec::new(),
            read: 0,
            has_waited: false,
        }
    }

    /// Gives the guest a job, in place of what it had.
    pub fn set_job(&mut self, job: Vec<u8>) -> Result<(), JobTooLong> {
        let bytes = job.len();
        if bytes > MAX_JOB {
            return Err(JobTooLong { bytes });
        }
        self.job = job;
        self.read = 0;
        Ok(())
    }

    /// What there is of it in a snapshot.
    pub fn save(&self) -> JobPortState {
        JobPortState {
            job: self.job.clone(),
            read: u32::try_from(self.read).unwrap_or(u32::MAX),
            has_waited: self.has_waited,
        }
    }

    /// Takes the place of the one that was saved.
    pub fn restore(&mut self, state: &JobPortState) -> Result<(), BadState> {
        let read = usize::try_from(state.read).unwrap_or(usize::MAX);
        if state.job.len() > MAX_JOB || read > state.job.len() {
            return Err(BadState::Value {
                what: "the position in the job",
                value: state.read.into(),
            });
        }
        self.job.clone_from(&state.job);
        self.read = read;
        self.has_waited = state.has_waited;
        Ok(())
    }

    fn left(&self) -> u32 {
        u32::try_from(self.job.len() - self.read).unwrap_or(u32::MAX)
    }

    /// 0 behind its end.
    fn next(&mut self) -> u8 {
        let next = self.job.get(self.read).copied();
        self.read += usize::from(next.is_some());
        next.unwrap_or(0)
    }
}

impl BusDevice for JobPort {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let left = self.left().to_le_bytes();
        for (port, byte) in (offset..).zip(data) {
            let index = usize::try_from(port).unwrap_or(usize::MAX);
            *byte = match left.get(index) {
                Some(byte) => *byte,
                None => self.next(),
            };
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        for (port, byte) in (offset..).zip(data) {
            match port {
                // Once: who goes on with a job is not taken for one that waits.
                CONTROL if *byte == WAITS && !self.has_waited => {
                    self.has_waited = true;
                    self.sink.event(GuestEvent::Waits);
                }
                DATA => self.sink.event(GuestEvent::Done(*byte)),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::test_support::Recorder;

    fn left(port: &mut JobPort) -> u32 {
        let mut bytes = [0; 4];
        port.read(CONTROL, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn next(port: &mut JobPort) -> u8 {
        let mut byte = [0xaa];
        port.read(DATA, &mut byte);
        byte[0]
    }

    #[test]
    fn a_job_is_read_once_from_end_to_end() {
        let events = Recorder::new();
        let mut port = JobPort::new(events.clone());
        assert_eq!((left(&mut port), next(&mut port)), (0, 0));
        port.write(CONTROL, &[WAITS]);
        port.write(CONTROL, &[WAITS]);
        port.write(CONTROL, &[2]);
        port.write(CONTROL + 1, &[WAITS]);
        assert_eq!(events.take(), [GuestEvent::Waits]);
        port.set_job(b"ab".to_vec()).unwrap();
        assert_eq!((left(&mut port), next(&mut port)), (2, b'a'));
        let mut last = [0xaa; 3];
        port.read(SIZE - 3, &mut last);
        assert_eq!((left(&mut port), last), (0, *b"b\0\0"));
        port.write(DATA, &[3]);
        port.write(DATA + 1, &[3]);
        assert_eq!(events.take(), [GuestEvent::Done(3)]);
    }

    #[test]
    fn a_job_goes_on_where_it_was() {
        let mut port = JobPort::new(Recorder::new());
        port.set_job(b"abc".to_vec()).unwrap();
        port.write(CONTROL, &[WAITS]);
        next(&mut port);
        let state = port.save();
        let events = Recorder::new();
        let mut other = JobPort::new(events.clone());
        other.restore(&state).unwrap();
        assert_eq!((left(&mut other), next(&mut other)), (2, b'b'));
        other.write(CONTROL, &[WAITS]);
        assert_eq!(events.take(), []);
        let bad = JobPortState { read: 4, ..state };
        assert!(other.restore(&bad).is_err());
        let long = vec![0; MAX_JOB + 1];
        assert!(port.set_job(long.clone()).is_err());
        let bad = JobPortState { job: long, ..bad };
        assert!(other.restore(&bad).is_err());
    }

    #[test]
    fn an_access_is_one_to_each_of_its_ports() {
        let events = Recorder::new();
        let mut port = JobPort::new(events.clone());
        port.set_job(vec![7, 8]).unwrap();
        let mut data = [0xaa; 6];
        port.read(CONTROL, &mut data);
        assert_eq!(data, [2, 0, 0, 0, 7, 8]);
        port.write(CONTROL, &[WAITS, 9, 9, 9, 4, 9]);
        assert_eq!(events.take(), [GuestEvent::Waits, GuestEvent::Done(4)]);
    }
}
