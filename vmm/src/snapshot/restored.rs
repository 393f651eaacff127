//! How a snapshot was restored the last time: the time and the page faults that it took until the guest went on, and until
//! its first reply.
//!
//! Each guest that goes on from the snapshot writes that beside the memory file, as JSON; the last one wins. The file may come
//! from anyone, and is only shown.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::file::NewFile;
use super::hints::{self, Pages};
use super::memory::{self, Id};
use crate::faults::{Faults, VcpuFaults};

/// Far more than there is.
const MAX_SIZE: u64 = 64 << 10;

/// By what a guest was heard of first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplyKind {
    /// It has printed something.
    Console,
    /// It has sent a frame on a network card that the host's kernel does not serve (vhost).
    Network,
    /// It has sent data to a program of the host.
    Vsock,
    /// It has said how its job has ended.
    JobStatus,
}

/// What something took that began with the restore.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Taken {
    /// Milliseconds.
    pub ms: f64,
    /// Page faults of the process, without those of the thread that brings pages in.
    pub faults: Faults,
}

/// When a guest was heard of first.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// By what.
    pub kind: ReplyKind,
    /// What it took from the beginning of the restore. It is looked for again and again, so it was up to a millisecond, or an
    /// eighth of the time, earlier.
    pub taken: Taken,
    /// Those faults that vCPUs waited for.
    pub vcpus: VcpuFaults,
}

/// A restore.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Restored {
    /// The memory file's id, in hexadecimal.
    memory_id: String,
    /// When it began, in nanoseconds since 1970.
    pub began_ns: u64,
    /// Until vCPUs ran.
    pub running: Taken,
    /// Until the guest's first reply; None: there was none while that was waited for.
    pub reply: Option<Reply>,
    /// The pages that were brought in before the guest asked for them, if there was a list of them.
    pub working_set: Option<Pages>,
}

impl Restored {
    /// A restore from the memory file with this id, of which nothing is known but the beginning.
    pub(crate) fn new(memory_id: &Id, began_ns: u64, working_set: Option<Pages>) -> Self {
        Self {
            memory_id: memory::name_of(memory_id),
            began_ns,
            running: Taken::default(),
            reply: None,
            working_set,
        }
    }

    /// What lies beside a memory file with this id, if it means anything.
    pub fn find(memory_path: &Path, id: &Id) -> Option<Self> {
        let file = File::open(hints::path(memory_path, hints::RESTORED)).ok()?;
        let mut bytes = Vec::new();
        file.take(MAX_SIZE).read_to_end(&mut bytes).ok()?;
        let found: Self = serde_json::from_slice(&bytes).ok()?;
        (found.memory_id == memory::name_of(id)).then_some(found)
    }

    /// Keeps it beside the memory file, in place of what is known of an earlier one.
    pub(crate) fn write(&self, memory_path: &Path) -> io::Result<()> {
        let text = serde_json::to_vec(self).map_err(io::Error::other)?;
        let new = NewFile::create(&hints::path(memory_path, hints::RESTORED))?;
        new.file().write_all(&text)?;
        new.commit_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use vmm_sys_util::tempdir::TempDir;

    use super::*;

    const ID: Id = *b"0123456789abcdef";

    #[test]
    fn it_is_found_beside_its_memory_file() {
        let directory = TempDir::new().unwrap();
        let memory = directory.as_path().join("memory");
        assert_eq!(Restored::find(&memory, &ID), None);
        let working_set = Some(Pages { all: 9, written: 3 });
        let mut known = Restored::new(&ID, 5, working_set);
        known.write(&memory).unwrap();
        assert_eq!(Restored::find(&memory, &ID), Some(known.clone()));
        known.running.ms = 1.25;
        known.reply = Some(Reply {
            kind: ReplyKind::JobStatus,
            taken: Taken {
                ms: 2.5,
                faults: Faults { minor: 7, major: 1 },
            },
            vcpus: VcpuFaults::default(),
        });
        known.write(&memory).unwrap();
        assert_eq!(Restored::find(&memory, &ID), Some(known));
        assert_eq!(Restored::find(&memory, &[1; 16]), None);
        let names = fs::read_dir(directory.as_path()).unwrap().count();
        assert_eq!(names, 1);
    }

    #[test]
    fn one_that_is_damaged_is_none() {
        let directory = TempDir::new().unwrap();
        let memory = directory.as_path().join("memory");
        let known = Restored::new(&ID, 5, None);
        known.write(&memory).unwrap();
        let path = hints::path(&memory, hints::RESTORED);
        let bytes = fs::read(&path).unwrap();
        for at in 0..bytes.len() {
            fs::write(&path, &bytes[..at]).unwrap();
            assert_eq!(Restored::find(&memory, &ID), None, "{at} bytes");
        }
        for bad in ["null", "{}", "[1]", "\u{0}", &" ".repeat(1 << 20)] {
            fs::write(&path, bad).unwrap();
            assert_eq!(Restored::find(&memory, &ID), None);
        }
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!(Restored::find(&memory, &ID), None);
        assert!(known.write(&memory).is_err());
    }
}
