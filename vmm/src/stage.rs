//! What is there before the machine: the event loop that it will be served by, what it will report to, and
//! a way to make devices for it.
//!
//! Whoever knows all that a machine needs builds it at once ([`Vm::build`]). Whoever is told piece by piece
//! (the API) keeps a stage: devices are made on it when they are named, the event loop is
//! served meanwhile, and a machine that cannot be built leaves the stage as it was.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, mpsc};
use std::time::Instant;

use devices::virtio::worker::EventLoop;
use event_manager::{EventOps, EventSet, MutEventSubscriber, SubscriberOps};

use crate::builder::{self, Console, Parts, virtio};
use crate::config::{Config, Device, Payload};
use crate::controls::{Controls, Registered};
use crate::event_loop::{Manager, Remote};
use crate::events::{Events, StopReason, Stopper};
use crate::snapshot::load::Saved;
use crate::vm::{self, MachineHandle, Vm};

/// See the module.
pub struct Stage {
    // Devices refer to it, and attach themselves to the loop once they are in a machine.
    pub(crate) manager: Manager,
    /// Nobody serves the loop for devices. Until then, nobody is to wait for it: least of all a device that
    /// goes as the next one fails.
    pub(crate) ended: Arc<AtomicBool>,
    pub(crate) maker: Maker,
    pub(crate) events: Arc<Events>,
}

/// Makes devices for the machine of a stage, from any thread.
#[derive(Clone)]
pub struct Maker {
    pub(crate) event_loop: Arc<dyn EventLoop>,
    pub(crate) controls: Controls,
}

/// A device that has been made, and all that it needs of the host is open.
pub struct Made(pub(crate) Registered);

impl Maker {
    /// Makes a device. Its name is taken until it goes. If that fails, nothing of it is left.
    pub fn make(&self, device: &Device) -> Result<Made, virtio::Error> {
        virtio::make(device, &self.event_loop, &self.controls).map(Made)
    }

    pub(crate) fn make_all(&self, devices: &[Device]) -> Result<Vec<Registered>, virtio::Error> {
        devices
            .iter()
            .map(|device| self.make(device).map(|Made(device)| device))
            .collect()
    }
}

/// Where a machine comes from.
pub enum Origin {
    /// It boots this, and is started at once.
    Boot(Payload),
    /// It goes on where it stopped; not before it is told to.
    Saved(Box<Saved>),
}

/// A machine that is to be built and started.
pub struct Order {
    /// When it was asked for.
    pub asked: Instant,
    /// The machine. Its devices are those that have been made, in their order.
    pub config: Config,
    /// Where it comes from.
    pub origin: Origin,
    /// Its console.
    pub console: Option<Console>,
    /// Its devices.
    pub devices: Vec<Made>,
}

struct Envelope {
    order: Order,
    answer: mpsc::SyncSender<Result<MachineHandle, builder::Error>>,
}

/// Sends orders to the thread that has the stage.
#[derive(Clone)]
pub struct Orders {
    sender: mpsc::Sender<Envelope>,
    events: Arc<Events>,
}

/// Why an order was not carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OrderError {
    /// The machine could not be built. Its devices are gone.
    #[error(transparent)]
    Build(#[from] builder::Error),
    /// The monitor ends.
    #[error("The monitor ends")]
    Ended,
}

impl Orders {
    /// For a machine that is there: none is carried out.
    pub(crate) fn none(events: Arc<Events>) -> Self {
        let (sender, _) = mpsc::channel();
        Self { sender, events }
    }

    /// A handle that ends whatever the orders lead to.
    pub fn stopper(&self) -> Stopper {
        Stopper(Arc::clone(&self.events))
    }

    /// Has the machine built and started, and waits for that.
    pub fn start(&self, order: Order) -> Result<MachineHandle, OrderError> {
        let (answer, answered) = mpsc::sync_channel(1);
        let envelope = Envelope { order, answer };
        self.sender.send(envelope).map_err(|_| OrderError::Ended)?;
        self.events.notify();
        match answered.recv() {
            Ok(answer) => Ok(answer?),
            Err(mpsc::RecvError) => Err(OrderError::Ended),
        }
    }
}

/// What a stage was left for.
pub enum Outcome {
    /// A machine, which runs.
    Machine(Box<Vm>),
    /// Someone asked for the end before there was one.
    Stopped(StopReason),
}

/// The orders that come in.
pub struct OrderQueue(mpsc::Receiver<Envelope>);

impl Stage {
    /// An empty one.
    pub fn new() -> Result<Self, builder::Error> {
        let ended = Arc::new(AtomicBool::new(true));
        let mut manager = Manager::new().map_err(builder::Error::EventLoop)?;
        let event_loop = Arc::new(Remote::new(&manager, Arc::clone(&ended)));
        let events = Events::new().map_err(|source| builder::Error::Host {
            what: "an eventfd",
            source,
        })?;
        let events = Arc::new(events);
        manager.add_subscriber(Box::new(Wake(Arc::clone(&events))));
        Ok(Self {
            manager,
            ended,
            maker: Maker {
                event_loop,
                controls: Controls::new(),
            },
            events,
        })
    }

    /// What makes devices for its machine.
    pub fn maker(&self) -> Maker {
        self.maker.clone()
    }

    /// A handle that ends [`Stage::serve`], and later the machine.
    pub fn stopper(&self) -> Stopper {
        Stopper(Arc::clone(&self.events))
    }

    /// Adds a subscriber to the event loop, which [`Stage::serve`] serves and [`Vm::run`] later.
    pub fn add_subscriber(&mut self, subscriber: Box<dyn MutEventSubscriber + Send>) {
        self.manager.add_subscriber(subscriber);
    }

    /// A way for other threads to have the machine built, and where that arrives.
    pub fn orders(&self) -> (Orders, OrderQueue) {
        let (sender, receiver) = mpsc::channel();
        let orders = Orders {
            sender,
            events: Arc::clone(&self.events),
        };
        (orders, OrderQueue(receiver))
    }

    fn carry_out(&mut self, order: Order) -> Result<Parts, builder::Error> {
        let Order {
            asked,
            config,
            origin,
            console,
            devices,
        } = order;
        let devices = devices.into_iter().map(|Made(device)| device).collect();
        let mut parts = builder::build_on(self, &config, origin, console, devices)?;
        parts.times.asked = asked;
        Ok(parts)
    }

    /// Builds the machine of an order, which is not started.
    pub fn build(mut self, order: Order) -> Result<Vm, builder::Error> {
        let parts = self.carry_out(order)?;
        Ok(Vm::new(self, parts))
    }

    /// Serves the event loop until an order has led to a machine, which has been started by then, or until
    /// it is to stop. `meet` gets the machine before it starts.
    pub fn serve(
        mut self,
        orders: &OrderQueue,
        mut meet: impl FnMut(&mut Vm),
    ) -> Result<Outcome, vm::Error> {
        loop {
            if let Some(reason) = self.events.take_stop() {
                return Ok(Outcome::Stopped(reason));
            }
            let Ok(Envelope { order, answer }) = orders.0.try_recv() else {
                vm::turn(&mut self.manager)?;
                continue;
            };
            let starts = matches!(order.origin, Origin::Boot(_));
            match self.carry_out(order) {
                Ok(parts) => {
                    let mut vm = Vm::new(self, parts);
                    meet(&mut vm);
                    if starts {
                        vm.start();
                    }
                    // Whoever asked may have gone.
                    let _ = answer.send(Ok(vm.handle()));
                    return Ok(Outcome::Machine(Box::new(vm)));
                }
                Err(error) => _ = answer.send(Err(error)),
            }
        }
    }
}

/// Empties the eventfd that ends a wait of the event loop.
struct Wake(Arc<Events>);

impl MutEventSubscriber for Wake {
    fn process(&mut self, _: event_manager::Events, _: &mut EventOps) {
        let _ = self.0.wake.read();
    }

    fn init(&mut self, ops: &mut EventOps) {
        // Fails only for a descriptor that is already there.
        let _ = ops.add(event_manager::Events::new(&self.0.wake, EventSet::IN));
    }
}
