//! From what has happened to phases.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::step::Step;
use super::{FORMAT, Facts, Origin, Part, Phase, Waterfall, advice};

/// That something has happened, and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// What.
    pub step: Step,
    /// Nanoseconds of the monotonic clock.
    pub at: u64,
}

/// What a process knows of its own start.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What has happened, in any order.
    pub marks: Vec<Mark>,
    /// What the guest came from.
    pub origin: Origin,
    /// What else is known.
    pub facts: Facts,
}

/// What whoever watched a process knows of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Watched {
    /// Its command line.
    pub command: Vec<String>,
    /// Just before it was made, in nanoseconds of the monotonic clock.
    pub began: u64,
    /// When its status arrived.
    pub exited: u64,
    /// When nothing was left; none if that did not come while it was waited for.
    pub gone: Option<u64>,
    /// Its status.
    pub status: i32,
    /// What shows that the host is emulated.
    pub emulated: Option<String>,
}

impl Waterfall {
    /// That of a process that has ended, of what it said and what was seen of it.
    pub fn new(version: &str, watched: Watched, report: Report) -> Self {
        let Report {
            mut marks,
            origin,
            facts,
        } = report;
        let Watched {
            command,
            began,
            exited,
            gone,
            status,
            emulated,
        } = watched;
        let mut add = |step, at| marks.push(Mark { step, at });
        add(Step::Exit, exited);
        if let Some(gone) = gone {
            add(Step::Gone, gone);
        }
        let unseen = unseen(&marks, origin, gone.is_some());
        let phases = phases(began, marks);
        let total = phases.last().map_or(0.0, |last| last.start + last.ms);
        let mut waterfall = Self {
            format: FORMAT.to_owned(),
            mote: version.to_owned(),
            command,
            emulated,
            origin,
            status,
            total,
            phases,
            facts,
            advice: Vec::new(),
            unseen,
        };
        waterfall.advice = advice::of(&waterfall);
        waterfall
    }
}

fn milliseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e6
}

/// The phases that end with these marks. What has happened twice counts when it did first; what was before `began`, then.
fn phases(began: u64, mut marks: Vec<Mark>) -> Vec<Phase> {
    marks.sort_by(|one, other| (one.at, &one.step).cmp(&(other.at, &other.step)));
    let mut known = BTreeSet::new();
    let mut before = began;
    let mut current = Part::Monitor;
    let mut phases: Vec<Phase> = Vec::with_capacity(marks.len());
    for Mark { step, at } in marks {
        let id = step.id();
        if !known.insert(id.clone()) {
            continue;
        }
        let at = at.max(before);
        let part = step.part().unwrap_or(current);
        // Nobody goes back: a kernel may look at a device while its first process runs.
        let part = part.max(current);
        phases.push(Phase {
            id,
            name: step.name(),
            part,
            start: milliseconds(before - began),
            ms: milliseconds(at - before),
            slowest: false,
        });
        current = match step {
            Step::Entry => Part::Kernel,
            Step::Init => Part::Init,
            // What was printed before the end may be written after it.
            Step::Command | Step::Job | Step::Printed | Step::Output => part.max(Part::Program),
            Step::Ended => Part::End,
            _ => part,
        };
        before = at;
    }
    let slowest = phases.iter_mut().reduce(|slowest, phase| {
        if phase.ms > slowest.ms {
            phase
        } else {
            slowest
        }
    });
    if let Some(slowest) = slowest {
        slowest.slowest = true;
    }
    phases
}

/// What should be there and is not.
fn unseen(marks: &[Mark], origin: Origin, is_gone: bool) -> Vec<String> {
    let has = |step: &Step| marks.iter().any(|mark| mark.step == *step);
    let mut unseen = Vec::new();
    let mut say = |text: &str| unseen.push(text.to_owned());
    if origin == Origin::Pool {
        say("what was done before the guest was asked for, by its pool");
    } else if !has(&Step::Entry) {
        say("the guest: no vCPU has entered it");
        return unseen;
    }
    let init_line = Step::Line("line-init".into());
    if origin == Origin::Boot && !has(&Step::Init) && !has(&init_line) {
        say(
            "when init began: this initial RAM disk or kernel makes no mark (--append loglevel=7 shows the kernel's own times)",
        );
    }
    if !has(&Step::Output) {
        say("the first byte of output: there was none");
    }
    if !has(&Step::Ended) {
        say("the guest's end");
    }
    if !is_gone {
        say(match origin {
            Origin::Pool => "the end of the guest's process, which the pool waits for",
            Origin::Boot | Origin::Template => "the end: something is left after 10 s",
        });
    }
    unseen
}
