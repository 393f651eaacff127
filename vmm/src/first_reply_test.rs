use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use devices::bus::BusDevice;
use devices::interrupt::InterruptLine;
use devices::legacy::serial::Serial;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::tempdir::TempDir;

use super::*;
use crate::controls::Controls;
use crate::events::Events;
use crate::handles::SerialPort;
use crate::insight::BootTimes;
use crate::snapshot::memory::{Id, RegionState, file_size, lay_out};
use crate::snapshot::working_set::WorkingSet;
use crate::vcpu::Exits;

const ID: Id = *b"0123456789abcdef";
const BYTES: u64 = 4 << 20;

struct Nobody;

impl InterruptLine for Nobody {
    fn set(&self, _: bool) {}
}

/// A machine without vCPUs, whose memory is a file's.
struct Machine {
    directory: TempDir,
    regions: Vec<RegionState>,
    memory: Arc<GuestMemoryMmap>,
    serial: Arc<Mutex<Serial>>,
}

impl Machine {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let regions = lay_out([(0, BYTES)]);
        let file = File::create_new(directory.as_path().join("memory")).unwrap();
        let end = file_size(&regions) - ID.len() as u64;
        file.write_all_at(&ID, end).unwrap();
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), BYTES as usize)]).unwrap();
        let machine = Self {
            directory,
            regions,
            memory: Arc::new(memory),
            serial: Arc::new(Mutex::new(Serial::new(
                Arc::new(Nobody),
                EventFd::new(0).unwrap(),
            ))),
        };
        let file = File::open(machine.path()).unwrap();
        crate::memory::put_file(&machine.memory, 0, BYTES, &file, 0).unwrap();
        machine
    }

    fn path(&self) -> PathBuf {
        self.directory.as_path().join("memory")
    }

    fn first_reply(&self, awaited: Awaited) -> FirstReply {
        let start = Start::now();
        FirstReply::new(Subject {
            start,
            awaited,
            insight: Insight {
                controls: Controls::new(),
                exits: Exits(Arc::new([])),
                times: BootTimes::start(),
                events: Arc::new(Events::new().unwrap()),
                serial: Some(SerialPort(Arc::clone(&self.serial))),
                keyboard: None,
            },
            memory: Arc::downgrade(&self.memory),
            file: Arc::new(MemoryFile::noting(
                self.path(),
                ID,
                self.regions.clone(),
                (start, awaited),
            )),
            meters: Vec::new(),
            unawaited: Arc::default(),
        })
    }

    fn print(&self) {
        lock(&self.serial).write(0, b"x");
    }

    fn touch(&self) {
        self.memory
            .write_slice(b"written", GuestAddress(4096))
            .unwrap();
    }

    fn restored(&self) -> Option<Restored> {
        Restored::find(&self.path(), &ID)
    }

    fn written(&self) -> Option<u64> {
        let set = WorkingSet::find(&self.path(), &ID, &self.regions)?;
        Some(set.pages().written)
    }
}

#[test]
fn what_has_come_when_the_machine_ends_is_noted() {
    let machine = Machine::new();
    let first_reply = machine.first_reply(Awaited::Anything);
    machine.touch();
    first_reply.running();
    first_reply.look();
    first_reply.look();
    machine.print();
    first_reply.end();
    let restored = machine.restored().unwrap();
    let reply = restored.reply.unwrap();
    assert_eq!(reply.kind, ReplyKind::Console);
    assert!(reply.taken.ms >= restored.running.ms);
    assert_eq!(restored.working_set, None);
    assert_eq!(machine.written(), Some(1));
    // Once: what comes later is nothing new.
    fs::remove_file(machine.directory.as_path().join("memory.restored")).unwrap();
    first_reply.running();
    first_reply.look();
    first_reply.end();
    assert_eq!(machine.restored(), None);
    assert!(matches!(first_reply.note_status(), Err(Error::Nothing)));
}

#[test]
fn a_guest_that_says_nothing_has_no_list() {
    let machine = Machine::new();
    let first_reply = machine.first_reply(Awaited::Anything);
    machine.touch();
    first_reply.running();
    first_reply.look();
    first_reply.end();
    assert_eq!(machine.restored().unwrap().reply, None);
    assert_eq!(machine.written(), None);
}

#[test]
fn one_that_ends_before_anybody_looks_is_looked_at() {
    let machine = Machine::new();
    let first_reply = machine.first_reply(Awaited::Anything);
    first_reply.running();
    machine.touch();
    machine.print();
    first_reply.end();
    let reply = machine.restored().unwrap().reply.unwrap();
    assert_eq!(reply.kind, ReplyKind::Console);
    assert_eq!(machine.written(), Some(1));
}

#[test]
fn one_that_never_runs_leaves_nothing() {
    let machine = Machine::new();
    let first_reply = machine.first_reply(Awaited::Anything);
    first_reply.stand_still();
    machine.print();
    first_reply.end();
    assert_eq!(machine.restored(), None);
    assert_eq!(machine.written(), None);
}

#[test]
fn the_status_of_a_job_is_what_is_waited_for_and_nothing_else() {
    let machine = Machine::new();
    let first_reply = machine.first_reply(Awaited::JobStatus);
    assert!(matches!(first_reply.note_status(), Err(Error::Nothing)));
    let first_reply = machine.first_reply(Awaited::JobStatus);
    machine.touch();
    machine.print();
    first_reply.running();
    first_reply.look();
    first_reply.note_status().unwrap();
    let reply = machine.restored().unwrap().reply.unwrap();
    assert_eq!(reply.kind, ReplyKind::JobStatus);
    assert_eq!(machine.written(), Some(1));
}

#[test]
fn the_time_that_a_guest_stands_still_is_not_counted() {
    let minute = Duration::from_secs(60);
    let start = Start {
        at: Instant::now(),
        before: Faults::default(),
    };
    let mut later = start;
    let stood = Start {
        at: start.at.checked_sub(minute).unwrap(),
        before: Faults::of_process(),
    };
    later.leave_out(stood);
    assert!(later.at - start.at >= minute);
    assert!(later.before.minor <= Faults::of_process().minor);
}

#[test]
fn beside_another_memory_file_nothing_is_noted() {
    let machine = Machine::new();
    let first_reply = machine.first_reply(Awaited::JobStatus);
    first_reply.running();
    let path = machine.path();
    let bytes = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    fs::write(&path, bytes).unwrap();
    assert!(matches!(first_reply.note_status(), Err(Error::Gone)));
    assert_eq!(
        fs::read_dir(machine.directory.as_path()).unwrap().count(),
        1
    );
}
