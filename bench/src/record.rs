//! A measurement, with all raw samples, as `--json` writes it and everything that shows one reads it. The schema of the document is
//! docs/bench-record.schema.json.
//!
//! Times are milliseconds, of the monotonic clock of the host that the measurement ran on; sizes are bytes.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The version of the format that this program writes.
pub const FORMAT: &str = "mote-bench/1";

/// A whole measurement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The format's version, "mote-bench/1".
    #[schemars(extend("const" = FORMAT))]
    pub format: String,
    /// When it began: UTC, as in RFC 3339.
    pub began: String,
    /// Version of mote.
    pub mote: String,
    /// The command line.
    pub command: Vec<String>,
    /// What it ran on.
    pub host: Host,
    /// It was ended by a signal: there are fewer runs than were asked for.
    pub interrupted: bool,
    /// What was looked for and is not there.
    pub missing: Vec<Missing>,
    /// What was measured.
    pub measured: Measured,
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Measured {
    /// `mote bench startup`
    Startup(Startup),
    /// `mote bench density`
    Density(Density),
}

/// The host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// Model of the CPU.
    pub cpu: String,
    /// CPUs that are online.
    pub cpus: u32,
    /// Memory.
    pub memory: u64,
    /// Name and version of the kernel.
    pub kernel: String,
    /// KVM as `mote doctor` finds it; none without.
    pub kvm: Option<String>,
    /// The CPU frequency governor; none if the kernel does not scale frequencies.
    pub governor: Option<String>,
    /// Version of the control groups that the runs were counted by: 2, or none if they were not.
    pub cgroup: Option<u32>,
    /// What shows that the host is itself emulated, so that its times are not those of hardware; none if nothing does.
    pub emulated: Option<String>,
}

/// A runtime that was looked for in vain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Missing {
    /// Its name.
    pub name: String,
    /// What is not there.
    pub why: String,
}

/// What a runtime makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A process: the floor
    Process,
    /// A container: a process in namespaces of its own, on the kernel of the host
    Container,
    /// A virtual machine, with a kernel of its own
    Vm,
}

/// A runtime, as it was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Runtime {
    /// Its name: that of the adapter.
    pub name: String,
    /// What it is, in a few words.
    pub about: String,
    /// What it makes.
    pub kind: Kind,
    /// What it says of its version; none if it does not say.
    pub version: Option<String>,
    /// What was executed, word by word; {token} and {id} stand for what is different in each run.
    pub command: Vec<String>,
    /// What is asked of its API once it runs: method and path.
    pub requests: Vec<String>,
    /// What the figures of CPU time and memory leave out, such as a daemon; none if they are whole.
    pub uncounted: Option<String>,
}

/// Starts, one after the other.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Startup {
    /// Runs of each runtime that count.
    pub runs: u32,
    /// Runs of each before them, that do not.
    pub warmups: u32,
    /// Memory of each guest.
    pub memory: u64,
    /// Name of the row that the others are compared with.
    pub baseline: String,
    /// The runtimes, in the order in which they take turns.
    pub rows: Vec<StartupRow>,
}

/// One runtime's starts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StartupRow {
    /// Which.
    pub runtime: Runtime,
    /// Its runs, in the order in which they were made.
    pub runs: Vec<Run>,
    /// Derived from the runs that count: what a table shows, for scripts.
    pub summary: Summary,
}

/// What a run is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Purpose {
    /// It fills caches, and is not counted
    Warmup,
    /// It is counted
    Sample,
    /// The kernel's trace points were on, which takes time: it shows where the time goes, and is not counted
    Traced,
}

/// One start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// What for.
    pub purpose: Purpose,
    /// When it began, from the measurement's beginning on, in milliseconds.
    pub at: f64,
    /// Why it does not count: its output, its status or its end is not what it has to be. None if all is right.
    pub failure: Option<String>,
    /// When what happened, in milliseconds from just before the process was made.
    pub milestones: Milestones,
    /// CPU time of all its processes, user and system, in milliseconds; none if it is not known.
    pub cpu: Option<f64>,
    /// The most memory that its control group had at a time, in bytes; none if it is not known.
    pub peak_memory: Option<u64>,
}

/// When what happened, in milliseconds from just before the process was made; none for what could not be seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Milestones {
    /// The runtime's program runs: exec has succeeded.
    pub spawned: Option<f64>,
    /// What the program runs in is there: the container's control group, or the virtual machine with its first vCPU.
    pub environment: Option<f64>,
    /// A vCPU entered the guest for the first time.
    pub guest: Option<f64>,
    /// The first process in there has begun: in a guest init, in a container the program itself.
    pub init: Option<f64>,
    /// The first byte of the program's output arrived.
    pub output: Option<f64>,
    /// The runtime's exit status arrived.
    pub exit: Option<f64>,
    /// No process is left of it.
    pub gone: Option<f64>,
}

/// What the runs of one row that count come to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Summary {
    /// Runs that count.
    pub counted: u32,
    /// Runs that would, and failed.
    pub failed: u32,
    /// Why, and how often each.
    pub failures: BTreeMap<String, u32>,
    /// Of each milestone that was seen in all runs that count, by its name in `milestones`.
    pub milestones: BTreeMap<String, Distribution>,
    /// Of CPU time, in milliseconds.
    pub cpu: Option<Distribution>,
    /// Of the most memory, in bytes.
    pub peak_memory: Option<Distribution>,
    /// The ratio of medians to the baseline's, for each milestone that both have; none for the baseline itself.
    pub ratios: BTreeMap<String, Estimate>,
}

/// What a sample's values look like.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Distribution {
    /// How many there are.
    pub count: u32,
    /// The smallest.
    pub min: f64,
    /// The median.
    pub p50: f64,
    /// 90 of 100 are at most this.
    pub p90: f64,
    /// 99 of 100 are at most this.
    pub p99: f64,
    /// The largest.
    pub max: f64,
    /// Their spread: the median of their distances from the median.
    pub mad: f64,
}

/// A value that was estimated from samples, with its confidence interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Estimate {
    /// The estimate.
    pub value: f64,
    /// Where the interval begins.
    pub low: f64,
    /// Where it ends.
    pub high: f64,
    /// How sure it is that the interval holds the value, such as 0.95.
    pub confidence: f64,
}

/// Instances that run side by side, and do nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Density {
    /// The most instances of a runtime at once.
    pub limit: u32,
    /// How many were being started at a time when the rate was measured.
    pub concurrency: u32,
    /// Memory of each guest.
    pub memory: u64,
    /// The runtimes, one after the other.
    pub rows: Vec<DensityRow>,
}

/// One runtime's instances.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DensityRow {
    /// Which.
    pub runtime: Runtime,
    /// Taken as instances were added one by one, the first with none.
    pub points: Vec<DensityPoint>,
    /// Why there are no more than there are; none if the limit was reached.
    pub ended: Option<String>,
    /// How fast they start side by side; none if that was not measured.
    pub rate: Option<Rate>,
}

/// With so many instances.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DensityPoint {
    /// How many ran.
    pub count: u32,
    /// The host's MemAvailable, in bytes.
    pub available: u64,
    /// The proportional set sizes of all their processes together, in bytes; none if they cannot be read.
    pub pss: Option<u64>,
    /// From just before the last one's process was made until the first byte of its output, in milliseconds; none with no instance.
    pub start: Option<f64>,
}

/// Starts side by side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// Starts whose output was right.
    pub started: u32,
    /// Others, and why.
    pub failures: BTreeMap<String, u32>,
    /// How long all of it took, in seconds.
    pub seconds: f64,
}
