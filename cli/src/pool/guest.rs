//! A guest of a pool (`mote pool guest`): the machine of a template, which stands still until `mote run --template` asks for it. Then this
//! process does what that one would have done, on its standard streams, and goes with it.
//!
//! Standard input is the pool's socket, of which all of its guests take connections; standard output leads to its [`super::keeper`].

use std::io::{self, Write, stdin, stdout};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use ::bench::waterfall::Origin;
use ::bench::waterfall::step::Step;
use devices::virtio::console::ConsoleControl;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use vmm::snapshot::directory;
use vmm::snapshot::load::Purpose;
use vmm::{Remains, StopRequest, Stopper, Vm};

use super::wire::{self, RESIZED, Received, Reply, Request};
use super::{GuestArgs, OUTDATED, READY, TAKEN};
use crate::console;
use crate::explain;
use crate::keys::Targets;
use crate::message::{self, chain, say};
use crate::run::{self, host};
use crate::status::Status;
use crate::template::run::{build, give, load};
use crate::template::store::{Source, Store};
use crate::{logger, process, terminal};

/// How long a request may take to arrive.
const PATIENCE: Duration = Duration::from_secs(2);

/// Gets ready, and waits for whoever asks.
pub(super) fn execute(args: &GuestArgs) -> Status {
    match wait(&args.name) {
        Ok(Some(guest)) => guest.serve(),
        Ok(None) => Status::Success,
        Err(error) => {
            say(&chain(&error));
            Status::MoteError
        }
    }
}

/// A guest that has been asked for.
struct Guest {
    vm: Vm,
    stream: UnixStream,
    received: Received,
}

/// None if its template is not what it was.
fn wait(name: &str) -> Result<Option<Guest>, run::Error> {
    go_with_keeper(true)?;
    logger::start(0, name);
    process::set_up();
    let socket = stdin()
        .as_fd()
        .try_clone_to_owned()
        .map_err(host("the socket"))?;
    let socket = UnixListener::from(socket);
    let template = Store::from_env()?.find(name)?;
    let state = directory::state(template.directory());
    let source = Source::of(&state).map_err(host("the template's state file"))?;
    let mut vm = build(
        name,
        &load(template.directory(), None),
        Purpose::Job,
        console::none(),
    )?;
    vm.go_on(false)?;
    tell(READY).map_err(host("the pool"))?;
    loop {
        let stream = match socket.accept() {
            Ok((stream, _)) => stream,
            // It was shut down.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Ok(None),
            Err(error) => return Err(host("the pool's socket")(error)),
        };
        // From here on this is nobody's: what was read of a request is answered.
        go_with_keeper(false)?;
        let _ = stream.set_read_timeout(Some(PATIENCE));
        // One that says nothing, or nonsense, is let go.
        let Ok(received) = wire::receive(&stream) else {
            go_with_keeper(true)?;
            continue;
        };
        if Source::of(&state).ok().as_ref() != Some(&source) {
            let _ = tell(OUTDATED);
            let _ = wire::reply(&stream, &Reply::Outdated);
            return Ok(None);
        }
        if received.request.explain {
            explain::start(Instant::now(), Origin::Pool);
            explain::mark(Step::Taken);
        }
        let _ = tell(TAKEN);
        return Ok(Some(Guest {
            vm,
            stream,
            received,
        }));
    }
}

/// Whether this process dies with the one that has begun it.
fn go_with_keeper(goes: bool) -> Result<(), run::Error> {
    let signal = goes.then_some(Signal::KILL);
    set_parent_process_death_signal(signal)
        .map_err(|errno| host("the end with the pool")(errno.into()))
}

/// Tells the pool.
fn tell(what: u8) -> io::Result<()> {
    let mut stdout = stdout();
    stdout.write_all(&[what])?;
    stdout.flush()
}

impl Guest {
    /// Does what was asked for, and says how it ended.
    fn serve(self) -> Status {
        let Self {
            vm,
            stream,
            received,
        } = self;
        let Received {
            request,
            job,
            streams,
        } = received;
        let [stdin, stdout, stderr] = streams;
        let on_streams = dup2_stdin(&stdin)
            .and_then(|()| dup2_stdout(&stdout))
            .and_then(|()| dup2_stderr(&stderr));
        drop((stdin, stdout, stderr));
        let replies = stream.try_clone();
        let ended = on_streams
            .map_err(|errno| host("standard streams")(errno.into()))
            .and_then(|()| serve(vm, stream, &request, job));
        let (status, remains) = match ended {
            Ok((status, remains)) => (status, Some(remains)),
            Err(error) => {
                say(&chain(&error));
                (Status::MoteError, None)
            }
        };
        // Whoever asked may have gone.
        let reply = match explain::take_report() {
            Some(report) => Reply::Explained(status.code(), Box::new(report)),
            None => Reply::Ended(status.code()),
        };
        let _ = replies.and_then(|stream| wire::reply(&stream, &reply));
        if let Some(remains) = remains {
            remains.leave_to_reaper();
        }
        status
    }
}

fn serve(
    mut vm: Vm,
    stream: UnixStream,
    request: &Request,
    job: Vec<u8>,
) -> Result<(Status, Remains), run::Error> {
    let targets = Targets::default();
    // Whoever asked has the terminal in raw mode, until the reply.
    message::set_raw(request.is_interactive);
    let console = console::on_streams(targets.clone(), request.is_interactive)?;
    let console = explain::listen(console);
    vm.connect_console(console)
        .map_err(host("the console's other end"))?;
    give(&vm, job)?;
    explain::mark(Step::Given);
    run::attend(&mut vm, &targets, false, request.timeout)?;
    stream
        .set_nonblocking(true)
        .map_err(host("the connection"))?;
    vm.add_subscriber(Box::new(Line {
        stopper: vm.stopper(),
        console: vm.controls().console(),
        stream,
    }));
    explain::built(&vm);
    vm.start();
    let started = Instant::now();
    let reason = vm.run(|mark| run::report_mark(&mark, started))?;
    explain::ended(&vm);
    let status = run::report_end(&reason, &vm.console_tail(), request.id.as_deref(), None);
    let remains = vm.take_down();
    explain::mark(Step::TakenDown);
    Ok((status, remains))
}

/// What whoever asked has to say while the guest runs.
struct Line {
    stream: UnixStream,
    stopper: Stopper,
    console: Option<ConsoleControl>,
}

impl MutEventSubscriber for Line {
    fn process(&mut self, _: Events, ops: &mut EventOps) {
        use std::io::Read;
        let mut bytes = [0; 64];
        match self.stream.read(&mut bytes) {
            Ok(count @ 1..) => bytes[..count].iter().for_each(|byte| self.hear(*byte)),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            // Nobody waits for the guest any more.
            Ok(_) | Err(_) => {
                self.stopper.stop(StopRequest::Quit);
                let _ = ops.remove(Events::empty(&self.stream));
            }
        }
    }

    fn init(&mut self, ops: &mut EventOps) {
        // Fails only for a descriptor that is already there.
        let _ = ops.add(Events::new(&self.stream, EventSet::IN));
    }
}

impl Line {
    fn hear(&self, byte: u8) {
        if byte != RESIZED {
            self.stopper.stop(StopRequest::Signal(byte.into()));
        } else if let (Some(console), Some((columns, rows))) = (&self.console, terminal::size()) {
            console.resize(columns, rows);
        }
    }
}
