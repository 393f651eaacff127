//! What follows from a state about the machine that it is of: which device is where, and which memory there is.
//! None of it is believed: devices are those of the configuration, and memory is where these have it.

use arch::boot::ram_ranges;
use devices::pci::root::Slot;
use devices::state::BadState;
use devices::virtio::mem::MemConfig;
use devices::virtio::state::{CoreState, DeviceState};

use super::memory;
use super::state::{VirtioState, VmState};
use crate::config::ConsoleKind;
use crate::controls::Registered;
use crate::hardware::{self, check_names};

impl VirtioState {
    /// All devices, with what they have in common whatever transport they are behind.
    pub(crate) fn cores(&self) -> Vec<(&String, &CoreState)> {
        match self {
            Self::Mmio(devices) => devices
                .iter()
                .map(|(name, device)| (name, &device.core))
                .collect(),
            Self::Pci { functions, .. } => functions
                .iter()
                .map(|(name, _, device)| (name, device.core()))
                .collect(),
        }
    }

    /// Where the machine's console is.
    pub(crate) fn console(&self) -> ConsoleKind {
        let is_console =
            |(_, core): &(&String, &CoreState)| matches!(core.device, DeviceState::Console(_));
        if self.cores().iter().any(is_console) {
            ConsoleKind::Virtio
        } else {
            ConsoleKind::Serial
        }
    }

    /// Puts devices into the order of this, each with the slot that it has to be in on a PCI bus. They have to be the
    /// same ones.
    pub(crate) fn place(
        &self,
        mut devices: Vec<Registered>,
    ) -> Result<Vec<(Registered, Option<Slot>)>, hardware::Error> {
        let saved: Vec<&String> = self.cores().into_iter().map(|(name, _)| name).collect();
        let mut names: Vec<String> = devices.iter().map(|made| made.id().to_string()).collect();
        let rank = |name: &String| saved.iter().position(|other| *other == name);
        names.sort_by_key(rank);
        check_names(saved.iter().copied(), names.iter())?;
        devices.sort_by_cached_key(|made| rank(&made.id().to_string()));
        let slots: Vec<Option<Slot>> = match self {
            Self::Mmio(devices) => devices.iter().map(|_| None).collect(),
            Self::Pci { functions, .. } => {
                let slot = |(name, slot, _): &(String, u8, _)| match Slot::new(*slot) {
                    Some(slot) => Ok(Some(slot)),
                    None => Err(hardware::Error::of(name.as_str())(BadState::Value {
                        what: "a PCI slot",
                        value: u64::from(*slot),
                    })),
                };
                functions.iter().map(slot).collect::<Result<_, _>>()?
            }
        };
        Ok(devices.into_iter().zip(slots).collect())
    }
}

impl VmState {
    /// First GPA and size of all memory that is in the memory file, for a machine with so much RAM and so much to be
    /// plugged: RAM, and what the guest can access of the region that memory is plugged into.
    pub(crate) fn memory_ranges(
        &self,
        ram: u64,
        plugging: Option<MemConfig>,
    ) -> Result<Vec<(u64, u64)>, memory::Error> {
        let mut ranges: Vec<_> = ram_ranges(ram).collect();
        let mut cores = self.virtio.cores().into_iter();
        let saved = cores.find_map(|(_, core)| match &core.device {
            DeviceState::Mem(state) => Some(state),
            _ => None,
        });
        if let Some(state) = saved {
            let config = plugging.ok_or(memory::Error::Regions)?;
            let plugged = state.accessible(&config).ok_or(memory::Error::Regions)?;
            let start = self.above_ram.hotplug.ok_or(memory::Error::Regions)?;
            for range in plugged {
                let gpa = start.checked_add(range.start);
                let gpa = gpa.ok_or(memory::Error::Regions)?;
                ranges.push((gpa, range.end - range.start));
            }
        }
        Ok(ranges)
    }
}

#[cfg(test)]
mod tests {
    use devices::rate_limiter::RateLimit;
    use devices::virtio::balloon;
    use devices::virtio::state::MmioState;

    use super::*;
    use crate::config::{Device, DeviceKind};
    use crate::stage::{Made, Stage};

    /// Devices of these names, each in the state of one that nobody has driven.
    fn mmio(names: &[&str]) -> VirtioState {
        let state = MmioState {
            core: CoreState {
                status: 0,
                accepted: 0,
                generation: 0,
                needs_reset: false,
                active: false,
                queues: Vec::new(),
                device: DeviceState::Stateless,
            },
            device_features_select: 0,
            driver_features_select: 0,
            queue_select: 0,
            interrupt_status: 0,
        };
        let named = names.iter().map(|name| ((*name).to_owned(), state.clone()));
        VirtioState::Mmio(named.collect())
    }

    #[test]
    fn devices_are_put_where_they_were_if_they_are_the_same() {
        let stage = Stage::new().unwrap();
        let make = || -> Vec<Registered> {
            let kinds = [
                DeviceKind::Entropy(RateLimit::default()),
                DeviceKind::Balloon(balloon::Config::default()),
            ];
            kinds
                .map(|kind| {
                    let device = Device {
                        kind,
                        iothread: false,
                    };
                    let Made(made) = stage.maker.make(&device).unwrap();
                    made
                })
                .into()
        };
        for order in [["entropy device", "balloon"], ["balloon", "entropy device"]] {
            let placed = mmio(&order).place(make()).unwrap();
            let names: Vec<_> = placed
                .iter()
                .map(|(device, _)| device.id().to_string())
                .collect();
            assert_eq!(names, order);
            assert!(placed.iter().all(|(_, slot)| slot.is_none()));
        }
        for wrong in [
            &["balloon"][..],
            &["balloon", "balloon"],
            &["balloon", "vsock device"],
            &["balloon", "entropy device", "balloon"],
            &[],
        ] {
            let refused = mmio(wrong).place(make());
            assert!(
                matches!(refused, Err(hardware::Error::Devices { .. })),
                "{wrong:?}"
            );
        }
    }
}
