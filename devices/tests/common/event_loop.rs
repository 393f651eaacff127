//! An event loop on a thread of its own, for tests inside and outside of the crate.

use std::sync::Arc;
use std::thread;

use devices::virtio::worker::{EventLoop, LoopGone, Subscriber, WorkerId};
use event_manager::{EventManager, RemoteEndpoint};

/// The loop; its thread ends with the test.
pub(crate) struct TestLoop(RemoteEndpoint<Subscriber>);

impl TestLoop {
    pub(crate) fn start() -> Arc<dyn EventLoop> {
        let mut manager: EventManager<Subscriber> = EventManager::new().unwrap();
        let endpoint = manager.remote_endpoint();
        thread::spawn(move || {
            loop {
                let _ = manager.run();
            }
        });
        Arc::new(Self(endpoint))
    }
}

impl EventLoop for TestLoop {
    fn attach(&self, worker: Subscriber) -> Result<WorkerId, LoopGone> {
        self.0
            .call_blocking(move |ops| Ok::<_, event_manager::Error>(ops.add_subscriber(worker)))
            .map_err(|_| LoopGone)
    }

    fn detach(&self, id: WorkerId) -> Result<(), LoopGone> {
        self.0
            .call_blocking(move |ops| ops.remove_subscriber(id).map(drop))
            .map_err(|_: event_manager::Error| LoopGone)
    }
}
