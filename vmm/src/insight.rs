//! What can be asked of a machine about itself.

use std::sync::Arc;
use std::time::Instant;

use devices::legacy::i8042::I8042Counters;
use devices::legacy::serial::SerialCounters;

use crate::controls::Controls;
use crate::events::Events;
use crate::handles::{Keyboard, SerialPort};
use crate::snapshot::restored::ReplyKind;
use crate::vcpu::Exits;

/// When each step of a boot was done. A clock is read for each, and that is all that they cost.
#[derive(Clone, Copy, Debug)]
pub struct BootTimes {
    /// The machine was asked for.
    pub asked: Instant,
    /// Guest memory was reserved.
    pub memory: Instant,
    /// KVM had made the VM, with its memory and the interrupt controllers in the kernel.
    pub kvm: Instant,
    /// The devices were on their buses.
    pub devices: Instant,
    /// The vCPUs had their features and registers.
    pub vcpus: Instant,
    /// The kernel, and what it looks for, was in guest memory.
    pub loaded: Instant,
    /// The vCPUs had their threads.
    pub built: Instant,
}

impl BootTimes {
    /// All now.
    pub(crate) fn start() -> Self {
        let now = Instant::now();
        Self {
            asked: now,
            memory: now,
            kvm: now,
            devices: now,
            vcpus: now,
            loaded: now,
            built: now,
        }
    }
}

/// A handle on what a machine counts, for any thread. It may be kept for longer than the machine; devices
/// that are gone are not found any more.
#[derive(Clone)]
pub struct Insight {
    pub(crate) controls: Controls,
    pub(crate) exits: Exits,
    pub(crate) times: BootTimes,
    pub(crate) events: Arc<Events>,
    pub(crate) serial: Option<SerialPort>,
    pub(crate) keyboard: Option<Keyboard>,
}

impl Insight {
    /// Its virtio devices.
    pub fn controls(&self) -> &Controls {
        &self.controls
    }

    /// How often its vCPUs came back from the guest, and why.
    pub fn exits(&self) -> &Exits {
        &self.exits
    }

    /// How it was built.
    pub fn boot_times(&self) -> &BootTimes {
        &self.times
    }

    /// When the boot vCPU first entered the guest.
    pub fn first_run(&self) -> Option<Instant> {
        self.events.first_run()
    }

    /// By what the guest was heard of, if anything has come from it since the machine was made.
    pub(crate) fn first_reply(&self) -> Option<ReplyKind> {
        let has_printed = (self.serial()).is_some_and(|it| it.writes + it.missed_writes > 0);
        if has_printed {
            return Some(ReplyKind::Console);
        }
        self.controls.first_reply()
    }

    /// What the serial port has done; None: there is none.
    pub fn serial(&self) -> Option<SerialCounters> {
        self.serial.as_ref().map(SerialPort::counters)
    }

    /// What the keyboard's controller has done; None: there is none.
    pub fn keyboard(&self) -> Option<I8042Counters> {
        self.keyboard.as_ref().map(Keyboard::counters)
    }
}
