//! What of a machine's memory is in files already: what a differential snapshot is relative to.
//!
//! | since | a differential snapshot is |
//! | --- | --- |
//! | a file was loaded | of what is not that file's any more: the mapping is private, and the host knows |
//! | a file was written, and writes are tracked | of what was written to since |
//! | anything else | of all of memory: it is relative to nothing |
//!
//! A file that was begun and did not come to be changes nothing: what was to be in it is in the next one.

use std::ops::Range;

use super::memory::Id;
use super::pages::Map;
use super::tracking::{Tracker, union};
use super::writer::{Changed, What};

/// A file that memory has changed since.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Since {
    /// There is none, or it is not known what changed.
    Nothing,
    /// It was loaded, and is mapped.
    Loaded(Id),
    /// It was written. What the tracker does not know any more has changed too.
    Written(Id, Vec<Range<u64>>),
}

/// See the module.
pub(crate) struct History {
    since: Since,
    /// Writes are to be tracked from the next snapshot on.
    tracks: bool,
    tracker: Option<Tracker>,
    /// A file is being written: this was before.
    before: Option<Since>,
}

impl History {
    /// Of a machine that was built, from a file or from nothing.
    pub(crate) fn new(tracks: bool, loaded: Option<Id>) -> Self {
        Self {
            since: loaded.map_or(Since::Nothing, Since::Loaded),
            tracks,
            tracker: None,
            before: None,
        }
    }

    /// Makes what tracks writes, if they are to be tracked. Fails with a word about the host; then they are not.
    pub(super) fn prepare(&mut self, map: &Map) -> std::io::Result<()> {
        if !self.tracks || self.tracker.is_some() {
            return Ok(());
        }
        let made = Tracker::new().and_then(|tracker| tracker.watch(map).map(|()| tracker));
        match made {
            Ok(tracker) => self.tracker = Some(tracker),
            Err(error) => {
                self.tracks = false;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Does what it can of [`History::turn`] while the machine runs: there is little left then.
    pub(super) fn approach(&mut self, map: &Map) {
        let Some(tracker) = &mut self.tracker else {
            return;
        };
        let mut written = Vec::new();
        let taken = tracker.take_small(map, &mut written);
        if let Since::Written(_, more) = &mut self.since {
            if taken.is_ok() {
                *more = union(&written, more);
            } else {
                self.since = Since::Nothing;
            }
        }
    }

    /// Turns to a new file, which has all of memory, or what changed. To be called while nothing changes it: what does
    /// later is for the file after this one. Returns what is to be written. [`History::settle`] is to be called when it is known what became of it.
    pub(super) fn turn(&mut self, map: &Map, id: Id, differential: bool) -> What {
        let mut written = Vec::new();
        let tracked = self.tracker.as_mut().is_some_and(|tracker| {
            let done = match self.since {
                Since::Written(..) => tracker.take(map, &mut written),
                Since::Nothing | Since::Loaded(_) => tracker.start_over(map),
            };
            done.is_ok()
        });
        let before = match std::mem::replace(&mut self.since, Since::Nothing) {
            Since::Written(base, more) if tracked => Since::Written(base, union(&written, &more)),
            // It is not known what was written to.
            Since::Written(..) => Since::Nothing,
            before => before,
        };
        let what = match &before {
            _ if !differential => What::All,
            Since::Nothing => What::All,
            Since::Loaded(base) => What::Diff {
                base: *base,
                changed: Changed::SinceLoad,
            },
            Since::Written(base, ranges) => What::Diff {
                base: *base,
                changed: Changed::Written(ranges.clone()),
            },
        };
        self.since = match (&before, tracked) {
            (_, true) => Since::Written(id, Vec::new()),
            // What was loaded is still what is mapped.
            (Since::Loaded(loaded), false) => Since::Loaded(*loaded),
            _ => Since::Nothing,
        };
        self.before = Some(before);
        what
    }

    /// The file is there, or it never will be.
    pub(super) fn settle(&mut self, is_there: bool) {
        if let Some(before) = self.before.take()
            && !is_there
        {
            self.since = before;
        }
    }
}

#[cfg(test)]
#[path = "history_test.rs"]
mod tests;
