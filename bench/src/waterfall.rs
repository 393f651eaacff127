//! Where the time of one start goes: the document that `mote run --explain=json` makes. Its schema is
//! docs/bench-waterfall.schema.json.
//!
//! A start is cut into phases without a gap: each begins where the one before it ends, the first where the process is made, and
//! the last ends when nothing is left. So they add up to the whole, whatever could not be seen.
//!
//! Reading order: this file (the document), `step` (what is known to happen in a start), `console` (what the guest's output
//! tells), `build` (from steps to phases), `advice`, `text`, `compare` (two configurations side by side).
#![forbid(unsafe_code)]

pub mod advice;
pub mod build;
pub mod compare;
pub mod console;
pub mod step;
pub mod text;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The version of the format that this program writes.
pub const FORMAT: &str = "mote-waterfall/1";

/// One start, from the making of its process until nothing is left of it. Times are milliseconds of the host's monotonic clock,
/// sizes are bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Waterfall {
    /// The format's version, "mote-waterfall/1".
    pub format: String,
    /// Version of mote.
    pub mote: String,
    /// The command line, word by word.
    pub command: Vec<String>,
    /// What shows that the host is itself emulated, so that its times are not those of hardware; none if nothing does.
    pub emulated: Option<String>,
    /// What the guest came from.
    pub origin: Origin,
    /// The exit status; 128 + N if signal N ended the process.
    pub status: i32,
    /// The whole, in milliseconds: what all phases add up to.
    pub total: f64,
    /// One after the other, without a gap.
    pub phases: Vec<Phase>,
    /// What is known of the start besides its times.
    pub facts: Facts,
    /// Options that would remove or shrink some of it, those about the most milliseconds first.
    pub advice: Vec<Advice>,
    /// What could not be seen, and why.
    pub unseen: Vec<String>,
}

/// What a guest comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// Its kernel was booted
    #[default]
    Boot,
    /// A template, by this process
    Template,
    /// A template, by a pool
    Pool,
}

/// Who is at work.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// mote, before the guest runs
    Monitor,
    /// The guest's kernel
    Kernel,
    /// The guest's first process, until it starts the command
    Init,
    /// The command
    Program,
    /// What comes after the guest's end
    End,
}

impl Part {
    /// All, in their order.
    pub const ALL: [Self; 5] = [
        Self::Monitor,
        Self::Kernel,
        Self::Init,
        Self::Program,
        Self::End,
    ];

    /// As it is called in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Monitor => "mote",
            Self::Kernel => "kernel",
            Self::Init => "init",
            Self::Program => "program",
            Self::End => "end",
        }
    }
}

/// A phase.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Phase {
    /// What it is called in scripts, such as "kvm-vm": the same in each start, and no two of one start have the same.
    pub id: String,
    /// What it is.
    pub name: String,
    /// Who is at work.
    pub part: Part,
    /// When it began, in milliseconds from the start.
    pub start: f64,
    /// How long it took, in milliseconds.
    pub ms: f64,
    /// Whether no other one took longer. There is one such.
    pub slowest: bool,
}

/// An option.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Advice {
    /// The option, or the command.
    pub option: String,
    /// How many milliseconds of this start it is about. It need not remove them all.
    pub ms: f64,
    /// What it does for this start.
    pub why: String,
}

/// What is known of a start besides its times.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    /// The kernel; none from a template.
    pub kernel: Option<Kernel>,
    /// The initial RAM disk; none from a template, or without one.
    pub initrd: Option<Initrd>,
    /// Memory of the guest; 0 if it is not known.
    pub memory: u64,
    /// It is of huge pages.
    pub huge_pages: bool,
    /// vCPUs; 0 if it is not known.
    pub cpus: u32,
    /// There is a PCI bus.
    pub pci: bool,
    /// The console: "serial", "virtio" or "off"; none from a template.
    pub console: Option<String>,
    /// What the guest has printed.
    pub printed: Printed,
    /// How often vCPUs came back from the guest.
    pub exits: u64,
    /// Accesses of the guest to devices that made a vCPU come back, by place.
    pub places: Vec<Place>,
    /// Page faults of the process, those that the host's kernel took for the guest included.
    pub faults: u64,
    /// Those of them since the machine was there: nearly all for memory that the guest touched first.
    pub guest_faults: u64,
}

/// A kernel that was booted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// As it was named, or found.
    pub path: String,
    /// Whose.
    pub kind: KernelKind,
    /// It was unpacked in this start; the next one finds it unpacked, if it could be kept.
    pub unpacked: bool,
    /// It unpacked itself in the guest.
    pub unpacks_itself: bool,
}

/// Whose kernel it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum KernelKind {
    /// mote's own
    Tuned,
    /// Debian's, with its modules
    Packaged,
    /// One that was named
    Named,
}

/// An initial RAM disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Initrd {
    /// Its size.
    pub bytes: u64,
    /// It is that of mote's default guest.
    pub default: bool,
    /// It was made in this start; the next one finds it, if it could be kept.
    pub made: bool,
}

/// What a guest has printed on its console.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Printed {
    /// All of it.
    pub bytes: u64,
    /// Messages of the kernel: lines with a time.
    pub kernel_bytes: u64,
}

/// A device that the guest looked at.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Place {
    /// What it is.
    pub name: String,
    /// How often.
    pub accesses: u64,
    /// From the first to the last one, in milliseconds.
    pub span: f64,
    /// What of that is between accesses that follow each other within a millisecond, in milliseconds.
    pub busy: f64,
}

impl Waterfall {
    /// The phase of this id.
    pub fn phase(&self, id: &str) -> Option<&Phase> {
        self.phases.iter().find(|phase| phase.id == id)
    }

    /// How long the phases of one part took together, in milliseconds.
    pub fn part(&self, part: Part) -> f64 {
        let phases = self.phases.iter().filter(|phase| phase.part == part);
        phases.map(|phase| phase.ms).sum()
    }
}

#[cfg(test)]
mod tests;
