//! Operations by preadv and pwritev: each is over when it was pushed. With a file that the page cache
//! holds this is as fast as anything; otherwise the event loop waits for the disk.

use std::os::fd::RawFd;
use std::sync::Arc;

use super::super::file::HostFile;
use super::{Done, Engine, Op, perform};

pub(in super::super) struct Sync {
    files: Vec<Arc<HostFile>>,
    done: Vec<Done>,
}

impl Sync {
    pub(in super::super) fn new(files: Vec<Arc<HostFile>>) -> Self {
        Self {
            files,
            done: Vec::new(),
        }
    }
}

impl Engine for Sync {
    fn push(&mut self, op: Op) {
        self.done.push((op.token, perform(&self.files, &op)));
    }

    fn submit(&mut self) {
        // Everything has been done already.
    }

    fn reap(&mut self, done: &mut Vec<Done>) {
        done.append(&mut self.done);
    }

    fn drain(&mut self, done: &mut Vec<Done>) {
        self.reap(done);
    }

    fn event(&self) -> Option<RawFd> {
        None
    }

    fn clear_event(&mut self) {
        // There is none.
    }
}
