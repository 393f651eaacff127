//! `mote-live SOCKET run …` is `mote run …` whose devices can be changed meanwhile, by one line a command
//! on a Unix socket; each is answered with one line, `ok …` or `error …`.
//!
//! ```text
//! devices                                  plug disk|net|pmem OPTIONS
//! unplug disk|net|pmem ID [SECONDS]        resize ID
//! replace ID PATH                          link ID up|down
//! rate disk|net|pmem ID [LIMITS]           rate entropy|console [LIMITS]
//! balloon SIZE                             balloon-stats
//! stats-interval SECONDS                   counters disk|net|pmem ID
//! ctrl-alt-del                             counters keyboard|serial|exits
//! memory SIZE                              memory-status
//! ```

use std::error::Error;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::mem::ManuallyDrop;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use devices::error::chain;
use vmm::{Controls, DeviceId, Exits, HotplugHandle, Keyboard, SerialPort};

type Answer = Result<String, Box<dyn Error>>;

fn main() {
    let started = Instant::now();
    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    if arguments.len() < 2 {
        eprintln!("Usage: mote-live SOCKET run …");
        std::process::exit(2);
    }
    let socket = arguments.remove(1);
    let listener = UnixListener::bind(&socket).unwrap_or_else(|error| {
        eprintln!("mote-live: {}: {error}", socket.display());
        std::process::exit(2);
    });
    let status = cli::main(arguments, started, |vm| {
        let driver = Driver {
            controls: vm.controls().clone(),
            hotplug: vm.hotplug(),
            keyboard: vm.keyboard(),
            serial_port: vm.serial_port(),
            exits: vm.exits(),
        };
        thread::spawn(move || driver.serve_all(listener));
    });
    cli::status::exit(status)
}

struct Driver {
    controls: Controls,
    hotplug: HotplugHandle,
    keyboard: Option<Keyboard>,
    serial_port: Option<SerialPort>,
    exits: Exits,
}

/// The next word, and the rest.
fn word(text: &str) -> (&str, &str) {
    text.split_once(' ').unwrap_or((text, ""))
}

fn id(kind: &str, id: &str) -> Result<DeviceId, String> {
    match kind {
        "disk" => Ok(DeviceId::Disk(id.into())),
        "net" => Ok(DeviceId::Card(id.into())),
        "balloon" => Ok(DeviceId::Balloon),
        "pmem" => Ok(DeviceId::Pmem(id.into())),
        "memory" => Ok(DeviceId::MemoryHotplug),
        _ => Err(format!("'{kind}' is no kind of device")),
    }
}

impl Driver {
    fn serve_all(&self, listener: UnixListener) {
        // In the end mote closes all descriptors at once, also those of this thread: it is not to close
        // any of them again.
        let listener = ManuallyDrop::new(listener);
        while let Ok((stream, _)) = listener.accept() {
            let stream = ManuallyDrop::new(stream);
            if self.serve(&stream).is_err() {
                break;
            }
            // Who asked is gone.
            drop(ManuallyDrop::into_inner(stream));
        }
    }

    fn serve(&self, stream: &UnixStream) -> std::io::Result<()> {
        let mut answers = stream;
        for line in BufReader::new(stream).lines() {
            let answer = match self.execute(line?.trim_end()) {
                Ok(text) => format!("ok {text}\n"),
                Err(error) => format!("error {}\n", chain(&*error)),
            };
            answers.write_all(answer.as_bytes())?;
        }
        Ok(())
    }

    fn execute(&self, line: &str) -> Answer {
        let (command, rest) = word(line);
        match command {
            "devices" => Ok(self
                .controls
                .ids()
                .iter()
                .map(DeviceId::to_string)
                .collect::<Vec<_>>()
                .join(", ")),
            "plug" => self.plug(rest),
            "unplug" => self.unplug(rest),
            "resize" => Ok(self.disk(rest)?.resize()?.to_string()),
            "replace" => {
                let (id, path) = word(rest);
                let disk = self.disk(id)?;
                disk.replace_file(Path::new(path))?;
                Ok(disk.size().to_string())
            }
            "link" => {
                let (id, state) = word(rest);
                self.card(id)?.set_link(state == "up");
                Ok(state.into())
            }
            "rate" => self.rate(rest),
            "balloon" => match self
                .controls
                .set_balloon(cli::quantity::parse_size(rest)?)?
            {
                true => Ok(String::new()),
                false => Err("there is no balloon".into()),
            },
            "memory" => {
                let memory = self.memory()?;
                memory.set_requested(cli::quantity::parse_size(rest)?)?;
                Ok(String::new())
            }
            "memory-status" => {
                let status = self.memory()?.status();
                Ok(format!(
                    "block={} total={} slot={} plugged={} requested={}",
                    status.block, status.total, status.slot, status.plugged, status.requested
                ))
            }
            "balloon-stats" => self.balloon_stats(),
            "stats-interval" => {
                let seconds = Duration::from_secs(rest.parse()?);
                let balloon = self.controls.balloon().ok_or("there is no balloon")?;
                balloon.set_stats_interval(seconds)?;
                Ok(String::new())
            }
            "counters" => self.counters(rest),
            "ctrl-alt-del" => {
                self.keyboard()?.send_ctrl_alt_del()?;
                Ok(String::new())
            }
            _ => Err(format!("'{command}' is no command").into()),
        }
    }

    fn disk(&self, id: &str) -> Result<devices::virtio::block::BlockControl, String> {
        let found = self.controls.disk(id);
        found.ok_or_else(|| format!("there is no disk '{id}'"))
    }

    fn card(&self, id: &str) -> Result<devices::virtio::net::NetControl, String> {
        let found = self.controls.card(id);
        found.ok_or_else(|| format!("there is no network card '{id}'"))
    }

    fn keyboard(&self) -> Result<&Keyboard, &'static str> {
        self.keyboard.as_ref().ok_or("there is no keyboard")
    }

    fn pmem(&self, id: &str) -> Result<devices::virtio::pmem::PmemControl, String> {
        let found = self.controls.pmem(id);
        found.ok_or_else(|| format!("there is no persistent memory '{id}'"))
    }

    fn memory(&self) -> Result<devices::virtio::mem::MemControl, &'static str> {
        let found = self.controls.memory_hotplug();
        found.ok_or("there is no device that memory is plugged by")
    }

    fn plug(&self, text: &str) -> Answer {
        let device = match word(text) {
            ("disk", text) => cli::devices::disk("plugged", text, 1)?,
            ("net", text) => cli::devices::net("plugged", text)?,
            ("pmem", text) => cli::devices::pmem("plugged", text)?,
            (kind, _) => return Err(format!("'{kind}' is no kind of device").into()),
        };
        Ok(self.hotplug.add(&device)?.number().to_string())
    }

    fn unplug(&self, text: &str) -> Answer {
        let (kind, rest) = word(text);
        let (name, seconds) = word(rest);
        let patience = match seconds {
            "" => tests::DEADLINE,
            seconds => Duration::from_secs(seconds.parse()?),
        };
        let removal = self.hotplug.remove(&id(kind, name)?)?;
        match removal.wait(patience) {
            true => Ok("gone".into()),
            false => Ok("asked".into()),
        }
    }

    fn rate(&self, text: &str) -> Answer {
        let (kind, rest) = word(text);
        match kind {
            "entropy" => {
                let entropy = self.controls.entropy().ok_or("there is no such device")?;
                entropy.set_rate_limit(cli::devices::rate(rest)?)?;
            }
            "console" => {
                let console = self.controls.console().ok_or("there is no such device")?;
                console.set_rate_limit(cli::devices::rate(rest)?)?;
            }
            _ => {
                let (id, limits) = word(rest);
                let limit = cli::devices::rate(limits)?;
                match kind {
                    "disk" => self.disk(id)?.set_rate_limit(limit),
                    "net" => self.card(id)?.set_rate(limit, limit)?,
                    "pmem" => self.pmem(id)?.set_rate_limit(limit)?,
                    _ => return Err(format!("'{kind}' is no kind of device").into()),
                }
            }
        }
        Ok(String::new())
    }

    fn balloon_stats(&self) -> Answer {
        let balloon = self.controls.balloon().ok_or("there is no balloon")?;
        let stats = balloon.stats();
        let counters = balloon.counters();
        let mut line = format!("target={} actual={}", balloon.target(), balloon.actual());
        for (name, value) in [
            ("free", stats.free_memory),
            ("total", stats.total_memory),
            (
                "age",
                stats.updated.map(|at| at.elapsed().as_millis() as u64),
            ),
            ("inflated", Some(counters.inflated)),
            ("deflated", Some(counters.deflated)),
            ("reported", Some(counters.reported)),
            ("failed", Some(counters.failed)),
        ] {
            if let Some(value) = value {
                write!(line, " {name}={value}")?;
            }
        }
        Ok(line)
    }

    fn counters(&self, text: &str) -> Answer {
        let (kind, id) = word(text);
        match kind {
            "keyboard" => {
                let counters = self.keyboard()?.counters();
                Ok(format!(
                    "reads={} writes={} errors={} resets={}",
                    counters.reads, counters.writes, counters.errors, counters.resets
                ))
            }
            "serial" => {
                let port = self.serial_port.as_ref();
                let counters = port.ok_or("there is no serial port")?.counters();
                Ok(format!(
                    "reads={} writes={} flushes={}",
                    counters.reads, counters.writes, counters.flushes
                ))
            }
            "exits" => {
                let exits = self.exits.total();
                Ok(format!(
                    "total={} io-out={} mmio-read={}",
                    exits.total(),
                    exits.io_out,
                    exits.mmio_read
                ))
            }
            "disk" => {
                let counters = self.disk(id)?.counters();
                Ok(format!(
                    "reads={} writes={} throttled={} errors={} bad={}",
                    counters.reads,
                    counters.writes,
                    counters.throttled,
                    counters.host_errors,
                    counters.bad_requests
                ))
            }
            "net" => {
                let counters = self.card(id)?.counters();
                let throttled = counters.rx.throttled + counters.tx.throttled;
                Ok(format!(
                    "rx={} tx={} throttled={throttled}",
                    counters.rx.frames, counters.tx.frames
                ))
            }
            "pmem" => {
                let counters = self.pmem(id)?.counters();
                Ok(format!(
                    "flushes={} syncs={} throttled={} errors={} bad={}",
                    counters.flushes,
                    counters.syncs,
                    counters.throttled,
                    counters.host_errors,
                    counters.bad_requests
                ))
            }
            _ => Err(format!("'{kind}' is no kind of device").into()),
        }
    }
}
