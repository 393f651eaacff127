//! Guests of a few instructions, run through vmm's public interface.

use std::fs::File;
use std::io::{Read, Write, pipe};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use arch::layout;
use arch::regs::CpuMode;
use devices::console_io::{Input, InputFilter, Output};
use devices::rate_limiter::RateLimit;
use devices::virtio::balloon;
use devices::virtio::net::NetConfig;
use iced_x86::IcedError;
pub use iced_x86::code_asm;
use iced_x86::code_asm::{CodeAssembler, al, dx};
use vmm::config::{Config, Device, DeviceKind, NetDevice, Network, Payload};
use vmm::{BootMark, Console, StopReason, StopRequest, Vm};

use crate::DEADLINE;

/// Where the code is put: below 64 KiB, so that it can be entered in each mode, and off all tables.
pub const CODE: u64 = 0x1_0000 - 0x8000;

/// How many virtio devices the machine has.
pub const VIRTIO_DEVICES: u32 = 4;

/// Assembles code that will be at [`CODE`].
pub fn assemble(
    mode: CpuMode,
    write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Vec<u8> {
    assemble_at(CODE, mode, write)
}

/// Assembles code that will be at `gpa`.
pub fn assemble_at(
    gpa: u64,
    mode: CpuMode,
    write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Vec<u8> {
    let bits = match mode {
        CpuMode::Real => 16,
        CpuMode::Protected => 32,
        CpuMode::Long => 64,
    };
    let mut assembler = CodeAssembler::new(bits).unwrap();
    write(&mut assembler).unwrap();
    assembler.assemble(gpa).unwrap()
}

/// Adds an OUT of one byte.
pub fn out(a: &mut CodeAssembler, port: u16, value: u8) -> Result<(), IcedError> {
    a.mov(dx, u32::from(port))?;
    a.mov(al, u32::from(value))?;
    a.out(dx, al)
}

/// Adds what ends the machine with [`StopReason::Reset`].
pub fn reset(a: &mut CodeAssembler) -> Result<(), IcedError> {
    out(a, layout::I8042_COMMAND_PORT, 0xfe)?;
    // The stop takes effect at this exit; nothing after it shall be fetched.
    let mut end = a.create_label();
    a.set_label(&mut end)?;
    a.hlt()?;
    a.jmp(end)
}

/// A machine with one vCPU, 16 MiB, [`VIRTIO_DEVICES`] and a boot timer.
pub fn config() -> Config {
    config_of(1, 16 << 20)
}

/// The same with so many vCPUs and so much memory.
pub fn config_of(cpus: u32, memory: u64) -> Config {
    let config = Config::new(cpus, memory).unwrap().with_boot_timer(true);
    virtio_devices().into_iter().fold(config, |config, kind| {
        let device = Device {
            kind,
            iothread: false,
        };
        config.with_device(device).unwrap()
    })
}

/// What there can be without anything of the host.
fn virtio_devices() -> [DeviceKind; VIRTIO_DEVICES as usize] {
    let card = |id: &str| {
        DeviceKind::Net(NetDevice {
            card: NetConfig {
                id: id.to_owned(),
                ..NetConfig::default()
            },
            network: Network::User(Box::default()),
            mmds: None,
        })
    };
    [
        DeviceKind::Entropy(RateLimit::default()),
        DeviceKind::Balloon(balloon::Config::default()),
        card("first"),
        card("second"),
    ]
}

/// A machine whose serial port leads to this process.
pub struct Machine {
    /// The machine, not started.
    pub vm: Vm,
    /// What is typed.
    pub input: std::io::PipeWriter,
    output: JoinHandle<Vec<u8>>,
}

/// How a machine ended.
#[derive(Debug)]
pub struct Ended {
    /// Why.
    pub reason: StopReason,
    /// What it wrote to its serial port.
    pub output: Vec<u8>,
    /// The marks it made.
    pub marks: Vec<BootMark>,
}

impl Machine {
    /// Builds a machine around `code` at [`CODE`].
    pub fn build(config: &Config, mode: CpuMode, code: Vec<u8>) -> Self {
        let (input_reader, input) = pipe().unwrap();
        let (mut output_reader, output) = pipe().unwrap();
        let console = Console {
            input: Some(Input::new(input_reader.into())),
            output: Output::new(output.into()).unwrap(),
            filter: Box::new(Transparent),
            size: (0, 0),
            rate_limit: RateLimit::default(),
            iothread: false,
        };
        let payload = Payload::Code {
            bytes: code,
            gpa: CODE,
            mode,
        };
        let vm = Vm::build(config, payload, Some(console)).unwrap();
        let output = thread::spawn(move || {
            let mut bytes = Vec::new();
            output_reader.read_to_end(&mut bytes).unwrap();
            bytes
        });
        Self { vm, input, output }
    }

    /// Types something.
    pub fn type_in(&mut self, bytes: &[u8]) {
        self.input.write_all(bytes).unwrap();
    }

    /// Starts the machine and serves it until it ends.
    pub fn run(self) -> Ended {
        self.run_with(|_| {})
    }

    /// The same; `on_mark` sees the marks as they come.
    pub fn run_with(mut self, mut on_mark: impl FnMut(&BootMark)) -> Ended {
        let deadline = StopAfter::start(&self.vm, DEADLINE);
        self.vm.start();
        let mut marks = Vec::new();
        let reason = self.vm.run(|mark| {
            on_mark(&mark);
            marks.push(mark);
        });
        let reason = reason.unwrap();
        drop(deadline);
        assert!(
            !matches!(reason, StopReason::Requested(StopRequest::Timeout)),
            "the guest hangs"
        );
        drop(self.vm);
        drop(self.input);
        let output = self.output.join().unwrap();
        Ended {
            reason,
            output,
            marks,
        }
    }
}

/// Runs code on the machine of [`config`] until it ends.
pub fn run(
    mode: CpuMode,
    write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Ended {
    Machine::build(&config(), mode, assemble(mode, write)).run()
}

/// Stops a machine that hangs. Dropping it calls that off.
struct StopAfter(Option<(JoinHandle<()>, std::sync::mpsc::Sender<()>)>);

impl StopAfter {
    fn start(vm: &Vm, after: Duration) -> Self {
        let stopper = vm.stopper();
        let (cancel, cancelled) = std::sync::mpsc::channel();
        let thread = thread::spawn(move || {
            if cancelled.recv_timeout(after) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                stopper.stop(StopRequest::Timeout);
            }
        });
        Self(Some((thread, cancel)))
    }
}

impl Drop for StopAfter {
    fn drop(&mut self) {
        if let Some((thread, cancel)) = self.0.take() {
            drop(cancel);
            thread.join().unwrap();
        }
    }
}

/// Passes everything on.
pub struct Transparent;

impl InputFilter for Transparent {
    fn filter(&mut self, input: &[u8], to_guest: &mut Vec<u8>) {
        to_guest.extend_from_slice(input);
    }
}

/// How many file descriptors and threads this process has.
pub fn resources() -> (usize, usize) {
    let count = |path| std::fs::read_dir(path).unwrap().count();
    (count("/proc/self/fd"), count("/proc/self/task"))
}

/// `/dev/kvm`, if it can be used.
pub fn kvm() -> Option<File> {
    File::options()
        .read(true)
        .write(true)
        .open(vmm::DEFAULT_DEVICE)
        .ok()
}
