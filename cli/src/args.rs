//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::bench;
use crate::ctl;
use crate::explain;
use crate::pool;
use crate::quantity::{parse_duration, parse_size};
use crate::service::args::{RestoreArgs, VmmArgs};
use crate::template;

/// A KVM microVM monitor: real virtual machines that start like containers.
#[derive(Debug, Parser)]
#[command(name = "mote", version, about, disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Parses a command line. To define the flags of all subcommands is a noticeable part of a start, so
    /// only those of the one that starts a guest are, unless the line has an error or asks for help.
    pub(crate) fn parse_line(line: &[OsString]) -> Result<Self, clap::Error> {
        let command = match line.get(1).and_then(|name| name.to_str()) {
            Some("run") => return Self::parse_run(line),
            Some("restore") => parse_alone("mote restore", line).map(Command::Restore),
            Some("vmm") => parse_alone("mote vmm", line).map(Command::Vmm),
            _ => None,
        };
        match command {
            Some(command) => Ok(Self { command }),
            None => Self::try_parse_from(line),
        }
    }

    /// The same for the one that most starts are. What is only for `--explain` is no part of others.
    fn parse_run(line: &[OsString]) -> Result<Self, clap::Error> {
        let report = explain::report_of(line);
        let without;
        let line = match report {
            Some(_) => {
                without = [&line[..2], &line[3..]].concat();
                &without[..]
            }
            None => line,
        };
        let command = match parse_alone("mote run", line) {
            Some(run) => RunCommand {
                run,
                explain: None,
                report,
            },
            None => match Self::try_parse_from(line)?.command {
                Command::Run(command) => RunCommand { report, ..*command },
                command => return Ok(Self { command }),
            },
        };
        let command = Command::Run(Box::new(command));
        Ok(Self { command })
    }
}

/// What follows a subcommand's name, if it is right.
fn parse_alone<A: Args>(name: &'static str, line: &[OsString]) -> Option<A> {
    let command = A::augment_args(clap::Command::new(name));
    let matches = command.try_get_matches_from(&line[1..]).ok()?;
    A::from_arg_matches(&matches).ok()
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Boot a guest in the foreground, its console on the terminal
    Run(Box<RunCommand>),
    /// Serve Firecracker's API on a Unix socket, and the guest that it is told to run
    Vmm(Box<VmmArgs>),
    /// Have a guest go on that was written by `mote snapshot`, its console on the terminal
    Restore(Box<RestoreArgs>),
    /// Make and remove templates: guests that have been booted and wait for a command
    Template(Box<template::Args>),
    /// Have guests of a template ready before they are asked for
    Pool(pool::Args),
    /// Measure virtual machines beside containers
    Bench(Box<bench::Args>),
    /// Check whether this host can run Linux guests, and what it lacks
    Doctor(DoctorArgs),
    /// Talk to guests that run
    #[command(flatten)]
    Ctl(ctl::Command),
}

/// `mote doctor`.
#[derive(Debug, clap::Args)]
pub(crate) struct DoctorArgs {
    /// Print JSON for scripts
    #[arg(long)]
    pub json: bool,
}

/// Flags that say what a guest is that boots.
const MACHINE_FLAGS: [&str; 22] = [
    "kernel",
    "initrd",
    "cmdline",
    "append",
    "cpus",
    "memory",
    "smt",
    "huge_pages",
    "boot_timer",
    "rootfs",
    "disk",
    "net",
    "metadata",
    "balloon",
    "pmem",
    "memory_hotplug",
    "entropy",
    "pci",
    "keyboard",
    "boot",
    "config_file",
    "api_sock",
];

/// `mote run`, and what is to be told of it.
#[derive(Debug, clap::Args)]
pub(crate) struct RunCommand {
    /// The guest.
    #[command(flatten)]
    pub run: RunArgs,

    /// Say on standard error, when all is over, where the time of this start went: as a table, or as one
    /// line of JSON there or in a FILE
    #[arg(long, value_name = "text|json|json:FILE", num_args = 0..=1, require_equals = true, default_missing_value = "text")]
    pub explain: Option<explain::Form>,

    /// Descriptor that what is known of this start is written to.
    #[arg(skip)]
    pub report: Option<i32>,
}

/// The guest of `mote run`.
#[derive(Clone, Debug, clap::Args, Serialize, Deserialize)]
#[command(after_help = "\
EXIT STATUS
  0    the guest powered off or restarted
  124  --timeout passed
  125  an error of mote or of the host
  134  the guest crashed: kernel panic, triple fault, KVM internal error
  128+N  mote got signal N

KEYS (when standard input is a terminal)
  Ctrl-A x  quit        Ctrl-A p  press the power button
  Ctrl-A h  help        Ctrl-A Ctrl-A  send Ctrl-A
  Ctrl-A c  press Ctrl-Alt-Del, with --keyboard")]
pub(crate) struct RunArgs {
    /// Go on from a template that `mote template create` has made, instead of a boot
    #[arg(long, value_name = "NAME", conflicts_with_all = MACHINE_FLAGS)]
    pub template: Option<String>,

    /// Kernel: an ELF vmlinux or a bzImage [default: the tuned kernel of resources/kernel/build.sh,
    /// else the packaged one of resources/kernel/packaged.sh]
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,

    /// Initial RAM disk [default: a shell on busybox]
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,

    /// Kernel command line, instead of mote's own
    #[arg(long, value_name = "STR", conflicts_with = "append")]
    pub cmdline: Option<String>,

    /// Words to add to mote's kernel command line
    #[arg(long, value_name = "STR")]
    pub append: Option<String>,

    /// Number of virtual CPUs, 1 to 64 [default: 1]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub cpus: Option<u32>,

    /// Memory of the guest, with a suffix b, k, m or g [default: 128m]
    #[arg(long, short, value_name = "SIZE", value_parser = parse_size, allow_negative_numbers = true)]
    pub memory: Option<u64>,

    /// Two threads a core; the number of CPUs is 1 or even then
    #[arg(long)]
    pub smt: bool,

    /// Memory of pages of 2 MiB that the host has set aside, a multiple of them
    #[arg(long)]
    pub huge_pages: bool,

    /// Name of the guest and its hostname: 1 to 64 of A-Z a-z 0-9 -
    #[arg(long, value_parser = parse_id)]
    pub id: Option<String>,

    /// Stop the guest after this time, such as 90, 1m30s or 500ms
    #[arg(long, value_name = "DURATION", value_parser = parse_duration, allow_negative_numbers = true)]
    pub timeout: Option<Duration>,

    /// Give the guest a port (0x3f0) to mark points of its boot, and print when it does
    #[arg(long)]
    pub boot_timer: bool,

    /// The guest's console: virtio (hvc0), serial (ttyS0) or off, on standard input and output unless
    /// with pty, or file=PATH[,max-size=SIZE[,keep=N]]; all take iothread=on, virtio rate=BYTES and iops=N
    /// [default: virtio on a terminal with mote's own kernel, else serial]
    #[arg(long, value_name = "virtio|serial|off[,…]")]
    pub console: Option<String>,

    /// Disk with the root file system; options as for --disk
    #[arg(long, value_name = "PATH[,…]")]
    pub rootfs: Option<String>,

    /// Disk; may be given several times. PATH is an image (raw, or qcow2 if its name ends so), with
    /// options ro, overlay=temp|FILE, cache=writeback|unsafe, engine=io_uring|sync,
    /// format=raw|qcow2|auto, any-size, serial=, queues=N, id=, rate=BYTES, iops=N, iothread=on
    #[arg(long, value_name = "PATH[,…]")]
    pub disk: Vec<String>,

    /// Network card; may be given several times: tap=NAME[,vhost=on|off][,queues=N], a tap of the
    /// host; tap[,ip=ADDRESS/PREFIX], one that mote makes, as root; or
    /// user[,forward=[ADDR:]HOSTPORT:GUESTPORT[/udp]]…[,allow=CIDR[:PORTS]]…[,deny=CIDR[:PORTS]]…, a
    /// network without root. All take mac=, mtu=, id=, rate=BYTES, iops=N, iothread=on, mmds=on|off
    #[arg(long, value_name = "NETWORK")]
    pub net: Vec<String>,

    /// JSON file that the guest reads over HTTP at 169.254.169.254 through its network cards: through
    /// those with mmds=on, or through all if none has; with options version=v1|v2 (v2: only with a
    /// token, the default), address=ADDRESS, imds-compat=on, limit=SIZE
    #[arg(long, value_name = "FILE[,…]")]
    pub metadata: Option<String>,

    /// Sockets between programs of the host and of the guest, through a Unix socket at PATH
    #[arg(long, value_name = "CID:PATH")]
    pub vsock: Option<String>,

    /// Memory that the guest is to give back, of its own; with options stats=SECONDS, reporting=on,
    /// hinting=on, deflate-on-oom=on
    #[arg(long, value_name = "SIZE")]
    pub balloon: Option<String>,

    /// File that the guest has as persistent memory, /dev/pmem0 and so on; may be given several times.
    /// Options ro, root (it is the root file system), id=, rate=BYTES, iops=N (of flushes), iothread=on
    #[arg(long, value_name = "PATH[,…]")]
    pub pmem: Vec<String>,

    /// Memory that the guest can get and give back while it runs, none of it at first:
    /// total=SIZE[,slot=SIZE][,block=SIZE]
    #[arg(long, value_name = "total=SIZE[,…]")]
    pub memory_hotplug: Option<String>,

    /// Give the guest the host's randomness through a virtio device
    #[arg(long, value_name = "on|off", num_args = 0..=1, default_missing_value = "on")]
    pub entropy: Option<String>,

    /// Put virtio devices on a PCI bus, where they can come and go while the guest runs
    #[arg(long)]
    pub pci: bool,

    /// Give the guest a keyboard, on which Ctrl-A c presses Ctrl-Alt-Del
    #[arg(long)]
    pub keyboard: bool,

    /// How the kernel is entered
    #[arg(long, value_enum, default_value_t = Boot::Linux)]
    pub boot: Boot,

    /// Settings from a JSON file in Firecracker's format; flags override it
    #[arg(long, value_name = "FILE")]
    pub config_file: Option<PathBuf>,

    /// Serve the API beside the guest, on a Unix socket at PATH or in mote's run-time directory
    #[arg(long, value_name = "PATH", num_args = 0..=1)]
    #[expect(clippy::option_option, reason = "it may be given without a path")]
    pub api_sock: Option<Option<PathBuf>>,

    /// Say more
    #[arg(long, short, action = ArgAction::Count)]
    pub verbose: u8,

    /// Shell command to run in the default guest instead of an interactive shell
    #[arg(last = true, value_name = "COMMAND", conflicts_with_all = ["initrd", "cmdline"])]
    pub command: Vec<String>,
}

/// `--boot`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub(crate) enum Boot {
    /// Linux 64-bit boot protocol
    Linux,
    /// PVH, for ELF kernels that have the entry
    Pvh,
}

fn parse_id(text: &str) -> Result<String, String> {
    let valid = (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if valid {
        Ok(text.into())
    } else {
        Err("an id is 1 to 64 of A-Z a-z 0-9 -".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(words: &str) -> Vec<OsString> {
        words.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn a_line_means_the_same_with_all_subcommands_defined() {
        for words in [
            "mote run --cpus 2 --memory 64m -vv --disk a --disk b -- echo --hello",
            "mote run --cpus 2 --explain=json -- echo",
            "mote vmm --api-sock /tmp/a.sock --id x",
            "mote restore dir --id x --net e=tap1",
            "mote doctor --json",
        ] {
            let line = line(words);
            let alone = Cli::parse_line(&line).unwrap();
            let all = Cli::try_parse_from(&line).unwrap();
            assert_eq!(format!("{alone:?}"), format!("{all:?}"), "{words}");
        }
    }

    #[test]
    fn what_is_for_another_process_of_mote_is_not_the_users() {
        let parse = |words| Cli::parse_line(&line(words));
        let Command::Run(command) = parse("mote run --explain-report=7 --cpus 2")
            .unwrap()
            .command
        else {
            panic!("another command");
        };
        assert_eq!((command.report, command.run.cpus), (Some(7), Some(2)));
        for words in [
            "mote run --cpus 2 --explain-report=7",
            "mote run --explain-report=x",
            "mote run --explain-report=7 --explain-report=8",
        ] {
            assert!(parse(words).is_err(), "{words}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_all_subcommands_defined() {
        for words in [
            "mote",
            "mote runn",
            "mote run --help",
            "mote run --cpuz 2",
            "mote run --id not_valid",
            "mote vmm --level",
        ] {
            let line = line(words);
            let alone = Cli::parse_line(&line).unwrap_err();
            let all = Cli::try_parse_from(&line).unwrap_err();
            assert_eq!(alone.to_string(), all.to_string(), "{words}");
        }
    }
}
