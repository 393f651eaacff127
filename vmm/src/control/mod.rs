//! What the API may ask of a machine: from [`Command`] to effect, one arm a command.
//!
//! Reading order: this file (states, the list of commands), `resources` (what has been configured), `convert`
//! (wire types to configuration), `start` (from all of it to a machine), `running` (what can be changed
//! then), `leaving` (devices that go), `snapshot` (to files and back), `writing` (what goes on after that), `fork` (copies), `metadata` (what the guest can read about itself), `document` (configuration to wire types, of a
//! machine that was not configured here), `whole` (a document at once, without an API).
//!
//! A [`Control`] runs on a thread of its own: it waits for event loops, which must not wait for it. It carries out
//! one command after the other, and waits for no guest: what one has to do first is answered later. A command that
//! fails changes nothing.

mod convert;
mod document;
mod fork;
mod leaving;
mod memory;
mod metadata;
mod resources;
mod running;
mod snapshot;
mod start;
mod whole;
mod writing;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use api::command::{Command, Fault, Response, State};
use api::types::{
    Action, ActionType, HintingStart, InstanceInfo, Logger, MachineConfig, Metrics, Serial,
    Version, VmConfig, VmPatch, VmState,
};
use devices::error::chain;
use devices::mmds::Mmds;

use crate::builder::Console;
use crate::events::{StopRequest, Stopper};
use crate::snapshot::save::Taken;
use crate::stage::{Maker, Orders};
use crate::vm::{MachineHandle, Vm};

pub use convert::{bucket, metadata_config};
pub use document::document;
pub use fork::{Copies, Starter};
pub use leaving::Ticket;
use resources::Resources;
pub use whole::{configure, root_words};

/// What a control needs of the program around it. An error is a sentence for whoever asked.
pub trait Face: Send {
    /// Opens a kernel; what is returned is an ELF file or a bzImage.
    fn kernel(&mut self, path: &Path) -> Result<File, String>;
    /// Opens the other end of the guest's serial port.
    fn console(&mut self, serial: Option<&Serial>) -> Result<Option<Console>, String>;
    /// Changes the log.
    fn set_logger(&mut self, logger: &Logger) -> Result<(), String>;
    /// Has metrics written, which is possible once.
    fn set_metrics(&mut self, metrics: &Metrics) -> Result<(), String>;
    /// Writes the metrics now, if they are written at all.
    fn flush_metrics(&mut self) -> Result<(), String>;
    /// The metrics in OpenMetrics' text format.
    fn metrics(&mut self) -> String;
    /// The machine is in another state.
    fn state_changed(&mut self, state: State);
    /// A snapshot has been written.
    fn snapshot_taken(&mut self, taken: &Taken);
    /// What copies of the guest are to come from.
    fn copies(&mut self) -> Result<Copies, String>;
}

/// What does not change.
#[derive(Debug)]
pub struct Settings {
    /// The instance's name.
    pub id: String,
    /// Whether the machine has a PCI bus.
    pub pci: bool,
    /// Whether it has the port by which a guest marks a point of its boot.
    pub boot_timer: bool,
    /// The KVM device.
    pub kvm_device: PathBuf,
    /// The guest's metadata.
    pub mmds: Arc<Mmds>,
}

/// What became of a command.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "there is one at a time, and it is passed on at once"
)]
pub enum Execution {
    /// This.
    Done(Response),
    /// The guest has to do something first, or something is to be written: [`Control::take_answer`] says when it has.
    Later(Ticket),
}

/// See the module.
pub struct Control {
    // Fixed configuration.
    settings: Settings,
    // Runtime glue.
    maker: Maker,
    orders: Orders,
    face: Box<dyn Face>,
    // Volatile state.
    state: State,
    resources: Resources,
    /// Once it runs.
    machine: Option<MachineHandle>,
    departures: leaving::Departures,
    writing: Option<writing::BeingWritten>,
}

impl Control {
    /// Without a machine.
    pub fn new(settings: Settings, maker: Maker, orders: Orders, face: Box<dyn Face>) -> Self {
        Self {
            settings,
            maker,
            orders,
            face,
            state: State::NotStarted,
            resources: Resources::default(),
            machine: None,
            departures: leaving::Departures::default(),
            writing: None,
        }
    }

    /// With a machine that is there already, of this configuration. It counts as running.
    pub fn of_machine(settings: Settings, config: VmConfig, vm: &Vm, face: Box<dyn Face>) -> Self {
        Self {
            state: State::Running,
            resources: Resources::of_document(config),
            machine: Some(vm.handle()),
            ..Self::new(settings, vm.maker(), vm.orders(), face)
        }
    }

    /// A handle that ends the monitor.
    pub fn stopper(&self) -> Stopper {
        self.orders.stopper()
    }

    /// Has somebody look for the first reply of a guest that was restored by whoever made this, and runs: for the thread that will
    /// carry commands out.
    pub fn look_for_first_reply(&self) {
        if let Some(machine) = &self.machine {
            machine.look_for_first_reply();
        }
    }

    /// How far the machine is.
    pub fn state(&self) -> State {
        self.state
    }

    fn set_state(&mut self, state: State) {
        if self.state != state {
            self.state = state;
            self.face.state_changed(state);
        }
    }

    /// Does what is asked, or has the guest do it.
    pub fn execute(&mut self, command: Command) -> Result<Execution, Fault> {
        command.check(self.state)?;
        self.check_departures(&command)?;
        self.forget_gone();
        let answer = |response| Ok(Execution::Done(response));
        let done = match command {
            Command::GetInstance => {
                let instance = InstanceInfo::new(&self.settings.id, self.state);
                return answer(Response::Instance(instance));
            }
            Command::GetVersion => return answer(Response::Version(Version::default())),
            Command::GetConfig => {
                return answer(Response::Config(Box::new(self.resources.document())));
            }
            Command::GetMetrics => return answer(Response::Text(self.face.metrics())),
            Command::GetMachineConfig => {
                return answer(Response::MachineConfig(self.resources.machine.clone()));
            }
            Command::PutMachineConfig(machine) => self.put_machine(machine),
            Command::PatchMachineConfig(patch) => {
                let machine = self.resources.machine.patched(&patch)?;
                self.put_machine(machine)
            }
            Command::PutBootSource(source) => self.resources.put_boot_source(source),
            Command::PutCpuConfig(config) => {
                self.resources.put_cpu_config(config);
                Ok(())
            }
            Command::PutDrive(drive) => match &self.machine {
                None => self.resources.put_drive(drive, &self.maker),
                Some(machine) => self.resources.plug_drive(drive, machine),
            },
            Command::PutInterface(interface) => match &self.machine {
                None => {
                    let mmds = &self.settings.mmds;
                    self.resources.put_interface(interface, mmds, &self.maker)
                }
                Some(machine) => self.resources.plug_interface(interface, machine),
            },
            Command::PutVsock(vsock) => self.resources.put_vsock(vsock, &self.maker),
            Command::PutBalloon(balloon) => self.resources.put_balloon(balloon),
            Command::PutEntropy(entropy) => {
                self.resources.put_entropy(entropy);
                Ok(())
            }
            Command::PutSerial(serial) => {
                self.resources.serial = Some(serial);
                Ok(())
            }
            Command::PutLogger(logger) => self.put_logger(logger),
            Command::PutMetrics(metrics) => self.put_metrics(metrics),
            Command::PatchDrive(patch) => self.patch_drive(patch),
            Command::DeleteDrive(id) => return self.delete_drive(id),
            Command::PatchInterface(patch) => self.patch_interface(patch),
            Command::DeleteInterface(id) => return self.delete_interface(id),
            Command::GetBalloon => return self.balloon().map(Response::Balloon).and_then(answer),
            Command::PatchBalloon(patch) => self.patch_balloon(&patch),
            Command::GetBalloonStatistics => {
                return self
                    .balloon_statistics()
                    .map(Response::BalloonStatistics)
                    .and_then(answer);
            }
            Command::PatchBalloonStatistics(patch) => self.patch_balloon_statistics(&patch),
            Command::PutMmdsConfig(config) => self.put_metadata_config(config),
            Command::PutMmds(document) => self.put_metadata(document),
            Command::PatchMmds(patch) => self.patch_metadata(&patch),
            Command::GetMmds => return self.get_metadata().map(Response::Mmds).and_then(answer),
            Command::PatchConsole(patch) => self.patch_console(patch),
            Command::PatchVm(VmPatch { state }) => self.change_state(state),
            Command::Act(Action { action_type }) => self.act(action_type),
            Command::CreateSnapshot(snapshot) => return self.create_snapshot(&snapshot),
            Command::LoadSnapshot(snapshot) => self.load_snapshot(&snapshot),
            Command::Fork(fork) => return self.fork(fork),
            Command::PutPmem(pmem) => self.put_pmem(pmem),
            Command::PatchPmem(patch) => self.patch_pmem(&patch),
            Command::DeletePmem(id) => return self.delete_pmem(id),
            Command::PutMemoryHotplug(memory) => self.put_memory_hotplug(memory),
            Command::GetMemoryHotplug => {
                return self
                    .memory_hotplug_status()
                    .map(Response::MemoryHotplug)
                    .and_then(answer);
            }
            Command::PatchMemoryHotplug(patch) => self.patch_memory_hotplug(&patch),
            Command::StartHinting(HintingStart {
                acknowledge_on_stop,
            }) => self.start_hinting(acknowledge_on_stop),
            Command::GetHinting => return self.hinting().map(Response::Hinting).and_then(answer),
            Command::StopHinting => self.stop_hinting(),
        };
        done.map(|()| Execution::Done(Response::Empty))
    }

    fn put_machine(&mut self, machine: MachineConfig) -> Result<(), Fault> {
        let machine = machine.in_place_of(&self.resources.machine);
        self.resources.put_machine(machine)
    }

    fn put_logger(&mut self, logger: Logger) -> Result<(), Fault> {
        self.face.set_logger(&logger).map_err(Fault::bad)?;
        self.resources.logger = Some(logger);
        Ok(())
    }

    fn put_metrics(&mut self, metrics: Metrics) -> Result<(), Fault> {
        self.face.set_metrics(&metrics).map_err(Fault::bad)?;
        self.resources.metrics = Some(metrics);
        Ok(())
    }

    fn change_state(&mut self, state: VmState) -> Result<(), Fault> {
        let machine = self.machine()?;
        match state {
            VmState::Resumed => {
                machine.resume();
                self.set_state(State::Running);
            }
            VmState::Paused => {
                if !machine.pause() {
                    return Err(Fault::bad(
                        "The guest cannot be paused: a vCPU does not come to rest. It runs on",
                    ));
                }
                self.set_state(State::Paused);
            }
        }
        Ok(())
    }

    fn act(&mut self, action: ActionType) -> Result<(), Fault> {
        match action {
            ActionType::InstanceStart => self.start(),
            ActionType::FlushMetrics => self.face.flush_metrics().map_err(Fault::bad),
            ActionType::PowerButton => {
                self.machine()?.power_button().press();
                Ok(())
            }
            ActionType::SendCtrlAltDel => {
                let keyboard = self.machine()?.keyboard();
                let keyboard = keyboard.ok_or_else(|| Fault::bad("The guest has no keyboard"))?;
                keyboard.send_ctrl_alt_del().map_err(|error| {
                    Fault::bad(format!("Cannot send Ctrl-Alt-Del: {}", chain(&error)))
                })
            }
            ActionType::Stop | ActionType::Reset => {
                self.orders.stopper().stop(StopRequest::Quit);
                Ok(())
            }
        }
    }

    /// The machine, in a state in which there is one.
    fn machine(&self) -> Result<&MachineHandle, Fault> {
        self.machine
            .as_ref()
            .ok_or_else(|| Fault::bad("There is no guest"))
    }
}
