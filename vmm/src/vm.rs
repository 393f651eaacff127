//! A machine: what it owns, and how it is started, served and stopped.

use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{self, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use devices::legacy::job_port::JobTooLong;
use devices::legacy::serial_worker::SerialWorker;
use devices::virtio::console::ConsoleControl;
use devices::virtio::worker::EventLoop;
use event_manager::{MutEventSubscriber, SubscriberOps};
use kvm_ioctls::VmFd;
use thiserror::Error;
use vm_memory::GuestMemoryMmap;

use crate::builder::{self, Console, Parts};
use crate::config::{Config, Payload};
use crate::controls::Controls;
use crate::event_loop::{EndOnDrop, Manager};
use crate::events::{Events, StopReason, Stopper};
use crate::first_reply::{self, EndFirstReplyOnDrop, FirstReply, Subject};
use crate::handles::{Keyboard, PowerButton, SerialPort};
use crate::hardware::{Hardware, Virtio};
use crate::insight::{BootTimes, Insight};
use crate::pci::HotplugHandle;
use crate::snapshot::history::History;
use crate::snapshot::load::MemoryFile;
use crate::snapshot::save::{PAUSE_TIMEOUT, Source};
use crate::snapshot::working_set::Populating;
use crate::snapshot::{Ending, Served};
use crate::stage::{Maker, Orders, Stage};
use crate::teardown::Remains;
use crate::vcpu::{Buses, Exits, Vcpus};
use crate::witness::{self, Place, Witness};

/// How long a reader of the console may keep a stopped machine from ending.
const CONSOLE_FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a running machine could not be served.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The event loop failed.
    #[error("The event loop failed")]
    EventLoop(#[source] event_manager::Error),
}

/// A point of the guest's boot, as `--boot-timer` prints it.
#[derive(Clone, Copy, Debug)]
pub struct BootMark {
    /// The byte that the guest wrote.
    pub value: u8,
    /// When it did.
    pub at: Instant,
    /// Time since the boot vCPU first entered the guest.
    pub since_first_run: Duration,
}

/// The console's worker, shared between the event loop and the end of the machine.
pub(crate) type SharedSerialWorker = Arc<Mutex<SerialWorker>>;

/// A machine. Dropping it stops the vCPUs and frees everything.
// The order of the fields is the order in which they are dropped: vCPUs before the devices they
// talk to, guest memory last.
pub struct Vm {
    /// Before all else: it looks at devices and vCPUs.
    first_reply: EndFirstReplyOnDrop,
    /// Then: a vCPU or a device that waits for the event loop waits for nothing then.
    _event_loop_ends: EndOnDrop,
    vcpus: EndVcpusOnDrop,
    exits: Exits,
    times: BootTimes,
    /// Its vCPUs have them.
    buses: Weak<Buses>,
    event_manager: Manager,
    console: Option<SharedSerialWorker>,
    /// Where its worker is, if it has a thread of its own.
    _console_thread: Option<Arc<dyn EventLoop>>,
    serial_port: Option<SerialPort>,
    virtio_console: Option<ConsoleControl>,
    keyboard: Option<Keyboard>,
    power_button: PowerButton,
    hardware: Arc<Hardware>,
    history: Arc<Mutex<History>>,
    kvm_device: PathBuf,
    /// What its memory is mapped from, if it comes from a snapshot.
    memory_file: Option<Arc<MemoryFile>>,
    controls: Controls,
    event_loop: Arc<dyn EventLoop>,
    events: Arc<Events>,
    vm: Arc<VmFd>,
    _populating: Populating,
    memory: Arc<GuestMemoryMmap>,
    /// If another process serves its memory. Last: until then somebody may wait for a page.
    served: Option<Served>,
}

/// A [`MachineHandle`] may live longer than the machine; its vCPUs may not.
struct EndVcpusOnDrop {
    vcpus: Arc<Vcpus>,
    /// If another process serves its memory: then one of them may wait for a page.
    ending: Option<Ending>,
}

impl Drop for EndVcpusOnDrop {
    fn drop(&mut self) {
        if let Some(ending) = &self.ending {
            ending.begin();
        }
        self.vcpus.end();
    }
}

/// What other threads may do to a machine. After its end all of it does nothing, or fails.
#[derive(Clone)]
pub struct MachineHandle {
    vcpus: Arc<Vcpus>,
    controls: Controls,
    hotplug: HotplugHandle,
    stopper: Stopper,
    power_button: PowerButton,
    keyboard: Option<Keyboard>,
    exits: Exits,
    serial_port: Option<SerialPort>,
    first_reply: Option<Arc<FirstReply>>,
    snapshots: Source,
}

impl MachineHandle {
    /// What writes snapshots of it.
    pub fn snapshots(&self) -> &Source {
        &self.snapshots
    }

    /// Lets the virtio devices of a machine that was restored go on; not to be called on the thread of an
    /// event loop.
    pub fn resume_devices(&self) {
        if let Some(hardware) = self.snapshots.hardware.upgrade() {
            hardware.resume();
        }
    }

    /// Pauses the vCPUs, and returns when none of them is in the guest any more or in the midst of an
    /// access to a device; false if that cannot be brought about, and then they run on. Devices go on
    /// with what they have been told to do, and what comes from outside still gets into the guest's memory.
    pub fn pause(&self) -> bool {
        self.vcpus.pause(PAUSE_TIMEOUT)
    }

    /// Lets the vCPUs run on.
    pub fn resume(&self) {
        self.vcpus.run();
        if let Some(first_reply) = &self.first_reply {
            first_reply.running();
            first_reply.look();
        }
    }

    /// Has a thread look for the first reply of a guest that was restored and runs, if it is to be noted. The thread that
    /// lets a guest go on has something better to do.
    pub fn look_for_first_reply(&self) {
        if let Some(first_reply) = &self.first_reply {
            first_reply.look();
        }
    }

    /// A machine that was restored is to stand still until it is resumed.
    pub(crate) fn stand_still(&self) {
        if let Some(first_reply) = &self.first_reply {
            first_reply.stand_still();
        }
    }

    /// How its devices are changed.
    pub fn controls(&self) -> &Controls {
        &self.controls
    }

    /// How devices come and go.
    pub fn hotplug(&self) -> &HotplugHandle {
        &self.hotplug
    }

    /// What stops it.
    pub fn stopper(&self) -> &Stopper {
        &self.stopper
    }

    /// Its power button.
    pub fn power_button(&self) -> &PowerButton {
        &self.power_button
    }

    /// Its keyboard, if it has one.
    pub fn keyboard(&self) -> Option<&Keyboard> {
        self.keyboard.as_ref()
    }

    /// Its vCPUs' exits.
    pub fn exits(&self) -> &Exits {
        &self.exits
    }

    /// Its serial port, if it has one.
    pub fn serial_port(&self) -> Option<&SerialPort> {
        self.serial_port.as_ref()
    }
}

/// Wakes the event loop, however its thread ends.
struct NotifyOnDrop(Arc<Events>);

impl Drop for NotifyOnDrop {
    fn drop(&mut self) {
        self.0.notify();
    }
}

/// Serves an event loop until something has happened on it, or a signal has arrived.
pub(crate) fn turn(event_manager: &mut Manager) -> Result<(), Error> {
    match event_manager.run() {
        Ok(_) => Ok(()),
        Err(event_manager::Error::Epoll(error))
            if io::Error::from(error).kind() == io::ErrorKind::Interrupted =>
        {
            Ok(())
        }
        Err(error) => Err(Error::EventLoop(error)),
    }
}

impl Vm {
    /// A machine on its stage.
    pub(crate) fn new(stage: Stage, parts: Parts) -> Self {
        let Stage {
            manager,
            ended,
            maker: Maker {
                event_loop,
                controls,
            },
            events,
        } = stage;
        let Parts {
            vcpus,
            exits,
            times,
            buses,
            console,
            console_thread,
            serial_port,
            virtio_console,
            keyboard,
            power_button,
            hardware,
            history,
            kvm_device,
            memory_file,
            meters,
            vm,
            memory,
            served,
            populating,
        } = parts;
        let memory_file = memory_file.map(Arc::new);
        let awaited = memory_file.as_ref().and_then(|file| file.awaited());
        let first_reply = awaited.zip(memory_file.as_ref()).map(|(awaited, file)| {
            let (start, awaited) = awaited;
            Arc::new(FirstReply::new(Subject {
                start,
                awaited,
                insight: Insight {
                    controls: controls.clone(),
                    exits: exits.clone(),
                    times,
                    events: Arc::clone(&events),
                    serial: serial_port.clone(),
                    keyboard: keyboard.clone(),
                },
                memory: Arc::downgrade(&memory),
                file: Arc::clone(file),
                meters,
                unawaited: populating.faults(),
            }))
        });
        Self {
            first_reply: EndFirstReplyOnDrop(first_reply),
            _event_loop_ends: EndOnDrop::new(ended),
            vcpus: EndVcpusOnDrop {
                vcpus: Arc::new(vcpus),
                ending: served.as_ref().map(Served::ending),
            },
            exits,
            times,
            buses,
            event_manager: manager,
            console,
            _console_thread: console_thread,
            serial_port,
            virtio_console,
            keyboard,
            power_button,
            hardware,
            history: Arc::new(Mutex::new(history)),
            kvm_device,
            memory_file,
            controls,
            event_loop,
            events,
            vm,
            _populating: populating,
            memory,
            served,
        }
    }

    /// Builds a machine; its vCPUs are paused at the first instruction.
    pub fn build(
        config: &Config,
        payload: Payload,
        console: Option<Console>,
    ) -> Result<Self, builder::Error> {
        builder::build(config, payload, console)
    }

    /// Lets a machine that was restored go on: its devices first, then its vCPUs if `running`.
    pub fn go_on(&mut self, running: bool) -> Result<(), Error> {
        if self.hardware.has_virtio() {
            let hardware = Arc::clone(&self.hardware);
            self.serve_while(move || hardware.resume())?;
        }
        if running {
            self.start();
        }
        if let Some(first_reply) = &self.first_reply.0 {
            if running {
                first_reply.running();
            } else {
                first_reply.stand_still();
            }
        }
        Ok(())
    }

    /// Serves the event loop until another thread has done what may have to wait for it; gives back what came of that, or
    /// nothing if it panicked.
    pub fn serve_while<T: Send + 'static>(
        &mut self,
        what: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Option<T>, Error> {
        let (sender, done) = mpsc::sync_channel(1);
        let events = Arc::clone(&self.events);
        std::thread::spawn(move || {
            let wakes = NotifyOnDrop(events);
            let _ = sender.send(what());
            drop((sender, wakes));
        });
        loop {
            match done.try_recv() {
                Ok(result) => return Ok(Some(result)),
                Err(TryRecvError::Disconnected) => return Ok(None),
                Err(TryRecvError::Empty) => turn(&mut self.event_manager)?,
            }
        }
    }

    /// The guest's first job has ended: notes, beside the memory file that the guest was restored from, what it has touched of its
    /// memory until now, for those that are restored later, and what that took.
    pub fn note_status(&self) -> Result<(), first_reply::Error> {
        match &self.first_reply.0 {
            Some(first_reply) => first_reply.note_status(),
            None => Err(first_reply::Error::Nothing),
        }
    }

    /// Connects the guest's console with its other end: of a machine that was built with one that leads nowhere. What limits
    /// its output stays as it was.
    pub fn connect_console(&self, console: Console) -> io::Result<()> {
        let Console {
            input,
            output,
            filter,
            size,
            rate_limit: _,
            iothread: _,
        } = console;
        if let Some(virtio) = &self.virtio_console {
            return virtio.connect(input, output, filter, size);
        }
        match &self.console {
            Some(serial) => serial
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .connect(input, output, filter),
            None => Ok(()),
        }
    }

    /// Gives the guest a job, if it has a port for that; false if not.
    pub fn set_job(&self, job: Vec<u8>) -> Result<bool, JobTooLong> {
        match &self.hardware.job_port {
            Some(port) => {
                let mut port = port.lock().unwrap_or_else(PoisonError::into_inner);
                port.set_job(job).map(|()| true)
            }
            None => Ok(false),
        }
    }

    /// Lets the vCPUs run.
    pub fn start(&self) {
        self.vcpus.vcpus.run();
    }

    /// Adds a subscriber to the event loop that [`Vm::run`] serves.
    pub fn add_subscriber(&mut self, subscriber: Box<dyn MutEventSubscriber + Send>) {
        self.event_manager.add_subscriber(subscriber);
    }

    /// A handle that stops the machine.
    pub fn stopper(&self) -> Stopper {
        Stopper(Arc::clone(&self.events))
    }

    /// The guest's power button.
    pub fn power_button(&self) -> PowerButton {
        self.power_button.clone()
    }

    /// The guest's keyboard, if it has one.
    pub fn keyboard(&self) -> Option<Keyboard> {
        self.keyboard.clone()
    }

    /// The guest's serial port, if the console is there.
    pub fn serial_port(&self) -> Option<SerialPort> {
        self.serial_port.clone()
    }

    /// How often the vCPUs came back from the guest, and why.
    pub fn exits(&self) -> Exits {
        self.exits.clone()
    }

    /// What it counts, and when it was built.
    pub fn insight(&self) -> Insight {
        Insight {
            controls: self.controls.clone(),
            exits: self.exits.clone(),
            times: self.times,
            events: Arc::clone(&self.events),
            serial: self.serial_port.clone(),
            keyboard: self.keyboard.clone(),
        }
    }

    /// From now on, has a witness of each device that is on a bus see the guest's accesses to it, before the device does. Each
    /// access takes longer from then on; without this call, none does.
    pub fn watch(&self, witness: impl Fn(&Place) -> Witness) {
        if let Some(buses) = self.buses.upgrade() {
            let virtio = match &self.hardware.virtio {
                Virtio::Mmio(devices) => devices.iter().map(|(name, _)| name.clone()).collect(),
                Virtio::Pci(_) => Vec::new(),
            };
            witness::watch(&buses, &virtio, &witness);
        }
    }

    /// How its devices are changed while it runs.
    pub fn controls(&self) -> &Controls {
        &self.controls
    }

    /// A handle that brings devices into the guest while it runs, and out of it again. Without a PCI
    /// bus all that it does fails.
    pub fn hotplug(&self) -> HotplugHandle {
        HotplugHandle::new(self.hardware.pci(), &self.event_loop, &self.controls)
    }

    /// What would make devices for its stage.
    pub(crate) fn maker(&self) -> Maker {
        Maker {
            event_loop: Arc::clone(&self.event_loop),
            controls: self.controls.clone(),
        }
    }

    /// What would have it built.
    pub(crate) fn orders(&self) -> Orders {
        Orders::none(Arc::clone(&self.events))
    }

    /// What other threads may do to it.
    pub fn handle(&self) -> MachineHandle {
        MachineHandle {
            vcpus: Arc::clone(&self.vcpus.vcpus),
            controls: self.controls.clone(),
            hotplug: self.hotplug(),
            stopper: self.stopper(),
            power_button: self.power_button(),
            keyboard: self.keyboard(),
            exits: self.exits(),
            serial_port: self.serial_port(),
            first_reply: self.first_reply.0.clone(),
            snapshots: Source {
                hardware: Arc::downgrade(&self.hardware),
                vcpus: Arc::clone(&self.vcpus.vcpus),
                vm: Arc::downgrade(&self.vm),
                memory: Arc::downgrade(&self.memory),
                history: Arc::clone(&self.history),
                kvm_device: self.kvm_device.clone(),
                controls: self.controls.clone(),
                is_served: self.served.is_some(),
                ram: self.controls.memory(),
            },
        }
    }

    /// Whether it comes from a snapshot, in whose file its memory is.
    pub fn is_restored(&self) -> bool {
        self.memory_file.is_some()
    }

    /// Whether some of its memory is gone, as somebody has cut the snapshot's file that it was in.
    pub fn has_lost_memory(&self) -> bool {
        self.memory_file.as_ref().is_some_and(|file| file.is_cut())
    }

    /// Guest memory.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Serves the event loop until the machine stops, and says why. What the guest has written to
    /// its console by then has been written out.
    pub fn run(&mut self, mut on_mark: impl FnMut(BootMark)) -> Result<StopReason, Error> {
        let reason = loop {
            while let Some(mark) = self.events.take_mark() {
                let first_run = self.events.first_run().unwrap_or(mark.at);
                on_mark(BootMark {
                    value: mark.value,
                    at: mark.at,
                    since_first_run: mark.at.saturating_duration_since(first_run),
                });
            }
            if let Some(reason) = self.events.take_stop() {
                break reason;
            }
            turn(&mut self.event_manager)?;
        };
        let deadline = Instant::now() + CONSOLE_FLUSH_TIMEOUT;
        if let Some(console) = &self.console {
            console
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .flush_blocking(deadline);
        }
        if let Some(console) = &self.virtio_console {
            console.flush_blocking(deadline);
        }
        Ok(reason)
    }

    /// Stops the vCPUs and closes all that the devices held, but not the VM itself: the slow part.
    pub fn take_down(self) -> Remains {
        Remains::new(self.vm, self.memory)
    }

    /// The last few KiB that the guest wrote to its console.
    pub fn console_tail(&self) -> Vec<u8> {
        if let Some(console) = &self.virtio_console {
            return console.tail();
        }
        self.console.as_ref().map_or_else(Vec::new, |console| {
            console
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .tail()
        })
    }
}
