//! The serial port.

use std::sync::{Arc, Mutex};

use arch::layout;
use devices::bus::Bus;
use devices::ioapic::Pin;
use devices::legacy::serial::Serial;
use devices::legacy::serial_worker::SerialWorker;
use devices::virtio::worker::EventLoop;
use event_manager::SubscriberOps;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::virtio::thread_name;
use super::{Console, Error, host};
use crate::controls::DeviceId;
use crate::event_loop::{IoThread, Manager};
use crate::handles::SerialPort;
use crate::vm::SharedSerialWorker;

/// Puts it on the bus of ports, and makes what connects it with the console.
pub(super) fn add_port(
    io: &Bus,
    console: Console,
    line: Arc<Pin>,
) -> Result<(SharedSerialWorker, SerialPort), Error> {
    let ready = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(host("an eventfd"))?;
    let port = Serial::new(line, ready.try_clone().map_err(host("an eventfd"))?);
    let port = Arc::new(Mutex::new(port));
    io.insert(
        layout::SERIAL_PORT.into(),
        layout::SERIAL_SIZE.into(),
        port.clone(),
    )?;
    let Console {
        input,
        output,
        filter,
        size: _,
        rate_limit,
        iothread: _,
    } = console;
    let worker = SerialWorker::new(Arc::clone(&port), ready, input, output, filter)
        .map_err(host("the console's worker"))?
        .with_limit(rate_limit.bandwidth);
    Ok((Arc::new(Mutex::new(worker)), SerialPort(port)))
}

/// Puts its worker on the machine's event loop, or on one with a thread of its own, which ends when it is dropped.
pub(super) fn attach(
    worker: &SharedSerialWorker,
    has_thread: bool,
    manager: &mut Manager,
) -> Result<Option<Arc<dyn EventLoop>>, Error> {
    let worker = Box::new(Arc::clone(worker));
    if !has_thread {
        manager.add_subscriber(worker);
        return Ok(None);
    }
    let own = IoThread::start(thread_name(&DeviceId::Console)).map_err(host("an I/O thread"))?;
    // It does not fail: that thread serves its loop already.
    let _ = own.attach(worker);
    Ok(Some(own))
}
