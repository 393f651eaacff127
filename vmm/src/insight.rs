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
    /// What it is to boot had been looked at. Of one that was saved, this is not before [`Self::made`].
    pub checked: Instant,
    /// Its devices were there, and the event loop.
    pub made: Instant,
    /// Guest memory was reserved.
    pub memory: Instant,
    /// `/dev/kvm` was open, and can do what is needed.
    pub opened: Instant,
    /// KVM had made the VM.
    pub vm: Instant,
    /// KVM had the VM's memory.
    pub slots: Instant,
    /// KVM had made the VM, with its memory and the interrupt controllers in the kernel.
    pub kvm: Instant,
    /// The devices were on their buses.
    pub devices: Instant,
    /// What KVM can show a guest of the host's CPU was known.
    pub cpuid: Instant,
    /// KVM had made the vCPUs.
    pub created: Instant,
    /// The vCPUs had their features and registers.
    pub vcpus: Instant,
    /// The kernel was in guest memory. Of a machine that was saved, this and the next are not before [`Self::vcpus`].
    pub kernel: Instant,
    /// The initial RAM disk was in guest memory.
    pub initrd: Instant,
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
            checked: now,
            made: now,
            memory: now,
            opened: now,
            vm: now,
            slots: now,
            kvm: now,
            devices: now,
            cpuid: now,
            created: now,
            vcpus: now,
            kernel: now,
            initrd: now,
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

    /// When KVM had mapped what a restored guest will touch first, if it was told to.
    pub fn pre_faulted(&self) -> Option<Instant> {
        self.events.pre_faulted()
    }

    /// When the first reason to stop the machine was there.
    pub fn stopped(&self) -> Option<Instant> {
        self.events.stopped()
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
