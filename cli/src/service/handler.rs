//! From the API's thread to the one that carries commands out.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel as queue};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant, SystemTime};

use ::telemetry::{Event, Metrics, Submitted};
use api::command::{Command, Fault, Response, State};
use api::events::{Broadcast, Reader, Start};
use api::handler::{ConsoleStream, Handler, Reply, Seen};
use api::states::Request;
use api::types::{
    Action, ActionType, BootSource, CpuConfigSource, InstanceInfo, Version, VmConfig,
};
use devices::mmds::Mmds;
use vmm::StopRequest;
use vmm::control::{Control, Execution, Ticket};

use super::console::Attachments;
use super::telemetry::{self, Next};

/// Bytes of events that are kept for slow readers.
const EVENT_BYTES: usize = 64 << 10;
/// Stack of the thread that carries commands out, in bytes: JSON of the guest's metadata is walked
/// recursively, 128 deep at most.
const STACK_SIZE: usize = 512 << 10;

/// How often is looked whether a guest has done what it was asked for, while someone waits for that.
const LOOK_AGAIN: Duration = Duration::from_millis(2);

/// What the API's thread may know without asking.
pub(super) struct Shared {
    id: String,
    state: Mutex<State>,
    events: Broadcast,
    /// Nobody can be attached to the console without.
    console: Option<Attachments>,
}

impl Shared {
    fn state(&self) -> State {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest's name.
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// The machine is in another state.
    pub(super) fn set_state(&self, state: State) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// Who else is at the console, if anyone can be.
    pub(super) fn console(&self) -> Option<&Attachments> {
        self.console.as_ref()
    }

    /// Tells all who listen: one line of JSON.
    pub(super) fn publish(&self, event: &Event) {
        let line = event.line(SystemTime::now());
        self.events.publish(line.as_bytes());
    }
}

/// What the API's server hands commands to.
pub(super) struct Submitter {
    commands: Sender<Job>,
    shared: Arc<Shared>,
    metrics: Arc<Metrics>,
}

/// A command that was submitted.
pub(super) struct Job {
    command: Command,
    reply: Reply,
    submitted: Submitted,
}

/// A way for commands.
pub(super) fn channel(
    id: &str,
    state: State,
    console: Option<Attachments>,
    mmds: Arc<Mmds>,
    main: Instant,
) -> (Submitter, Receiver<Job>) {
    let (commands, receiver) = queue();
    let shared = Shared {
        id: id.to_owned(),
        state: Mutex::new(state),
        events: Broadcast::of_lines(EVENT_BYTES),
        console,
    };
    let shared = Arc::new(shared);
    let metrics = telemetry::start(&shared, mmds, main);
    let submitter = Submitter {
        commands,
        shared,
        metrics,
    };
    (submitter, receiver)
}

impl Submitter {
    pub(super) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    pub(super) fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.metrics)
    }
}

impl Handler for Submitter {
    fn submit(&self, command: Command, reply: Reply) {
        let submitted = self.metrics.requests().submitted(&command);
        match command {
            // Clients poll these: they do not wait for what takes its time.
            Command::GetInstance => {
                let instance = InstanceInfo::new(&self.shared.id, self.shared.state());
                reply.send(Ok(Response::Instance(instance)));
            }
            Command::GetVersion => reply.send(Ok(Response::Version(Version::default()))),
            // A reply that is dropped says that the monitor ends.
            command => {
                let job = Job {
                    command,
                    reply,
                    submitted,
                };
                let _ = self.commands.send(job);
            }
        }
    }

    fn seen(&self, request: &Seen<'_>) {
        let requests = self.metrics.requests();
        if request.is_refused {
            requests.refused(request.method, request.path);
        }
        if request.is_deprecated {
            requests.deprecated();
        }
    }

    fn events(&self) -> Reader {
        self.shared.events.subscribe(Start::Next)
    }

    fn console(&self) -> Result<ConsoleStream, Fault> {
        Request::GetConsole.check(self.shared.state())?;
        let console = self.shared.console();
        let console = console.ok_or_else(|| Fault::bad("The guest has no console"))?;
        Ok(console.attach())
    }
}

/// Starts the thread that carries commands out: first these. If one of them fails, it says why in `failed`, and
/// the monitor ends.
pub(super) fn carry_out(
    mut control: Control,
    jobs: Receiver<Job>,
    metrics: Arc<Metrics>,
    first: impl Iterator<Item = Command> + Send + 'static,
    failed: Arc<OnceLock<Fault>>,
) -> io::Result<JoinHandle<()>> {
    Builder::new()
        .name("control".into())
        .stack_size(STACK_SIZE)
        .spawn(move || {
            control.look_for_first_reply();
            for command in first {
                if let Err(fault) = execute(&mut control, &metrics, command) {
                    let _ = failed.set(fault);
                    control.stopper().stop(StopRequest::Quit);
                    return;
                }
            }
            let mut later: Vec<(Ticket, Unanswered)> = Vec::new();
            loop {
                let patience = control.has_later().then_some(LOOK_AGAIN);
                match telemetry::next(&jobs, &metrics, patience) {
                    Next::Job(job) => {
                        let Job {
                            command,
                            reply,
                            submitted,
                        } = job;
                        let began = Instant::now();
                        let unanswered = Unanswered {
                            reply,
                            submitted,
                            began,
                        };
                        match execute(&mut control, &metrics, command) {
                            Ok(Execution::Later(ticket)) => later.push((ticket, unanswered)),
                            Ok(Execution::Done(response)) => {
                                unanswered.answer(&metrics, Ok(response));
                            }
                            Err(fault) => unanswered.answer(&metrics, Err(fault)),
                        }
                    }
                    Next::Nothing => {}
                    // Who waits for something else hears that the monitor ends.
                    Next::End => return,
                }
                while let Some((ticket, result)) = control.take_answer() {
                    let is_it = |(other, _): &(Ticket, Unanswered)| *other == ticket;
                    if let Some(index) = later.iter().position(is_it) {
                        later.remove(index).1.answer(&metrics, result);
                    }
                }
            }
        })
}

/// A command that was begun.
struct Unanswered {
    reply: Reply,
    submitted: Submitted,
    began: Instant,
}

impl Unanswered {
    fn answer(self, metrics: &Metrics, result: Result<Response, Fault>) {
        let requests = metrics.requests();
        requests.done(self.submitted, self.began, result.is_ok());
        self.reply.send(result);
    }
}

fn execute(control: &mut Control, metrics: &Metrics, command: Command) -> Result<Execution, Fault> {
    if let Command::Act(Action {
        action_type: ActionType::InstanceStart,
    }) = command
    {
        metrics.starting();
    }
    control.execute(command)
}

/// What a configuration file asks for, in order.
pub(super) fn commands_of(file: VmConfig) -> Vec<Command> {
    let VmConfig {
        balloon,
        drives,
        boot_source,
        cpu_config,
        logger,
        machine_config,
        metrics,
        mmds_config,
        network_interfaces,
        vsock,
        entropy,
        pmem,
        memory_hotplug,
        serial,
    } = file;
    let cpu_config = cpu_config.and_then(|source| match source {
        CpuConfigSource::Inline(config) => Some(config),
        // It has been read by now.
        CpuConfigSource::File(_) => None,
    });
    let start = Action {
        action_type: ActionType::InstanceStart,
    };
    let mut commands = Vec::new();
    commands.extend(logger.map(Command::PutLogger));
    commands.extend(metrics.map(Command::PutMetrics));
    commands.push(Command::PutMachineConfig(machine_config));
    commands.extend(cpu_config.map(Command::PutCpuConfig));
    // Without one, the start says so.
    if boot_source != BootSource::default() {
        commands.push(Command::PutBootSource(boot_source));
    }
    commands.extend(drives.into_iter().map(Command::PutDrive));
    commands.extend(network_interfaces.into_iter().map(Command::PutInterface));
    commands.extend(vsock.map(Command::PutVsock));
    commands.extend(balloon.map(Command::PutBalloon));
    commands.extend(mmds_config.map(Command::PutMmdsConfig));
    commands.extend(entropy.map(Command::PutEntropy));
    commands.extend(pmem.into_iter().map(Command::PutPmem));
    commands.extend(memory_hotplug.map(Command::PutMemoryHotplug));
    commands.extend(serial.map(Command::PutSerial));
    commands.push(Command::Act(start));
    commands
}
