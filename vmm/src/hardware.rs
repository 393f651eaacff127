//! All devices of a machine whose state a snapshot keeps: how they stand still, and how their states are
//! taken and given.

use std::sync::{Arc, Mutex};

use devices::ioapic::{IoApic, IoApicState};
use devices::legacy::acpi_pm::AcpiPm;
use devices::legacy::ged::Ged;
use devices::legacy::i8042::I8042;
use devices::legacy::job_port::JobPort;
use devices::legacy::pci_config::PciConfig;
use devices::legacy::pic::Pic;
use devices::legacy::serial::Serial;
use devices::lock;
use devices::state::BadState;
use devices::virtio::transport::mmio::MmioDevice;
use thiserror::Error;

use crate::pci::Pci;
use crate::snapshot::state::{LegacyState, VirtioState};

/// Why a machine cannot become what a state says.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// A device's state cannot be had, or is not one that it can have.
    #[error("The {device} and a snapshot do not go together")]
    Device {
        /// Which device.
        device: String,
        /// What is wrong with it.
        #[source]
        source: BadState,
    },
    /// A device is missing, or there is one too many.
    #[error("The state has {saved}, the machine has {made}")]
    Devices {
        /// Devices in the state.
        saved: String,
        /// Devices of the machine.
        made: String,
    },
}

impl Error {
    /// Of this device.
    pub(crate) fn of(device: impl Into<String>) -> impl FnOnce(BadState) -> Self {
        let device = device.into();
        |source| Self::Device { device, source }
    }
}

/// The devices.
pub(crate) struct Hardware {
    pub(crate) ioapic: Arc<Mutex<IoApic>>,
    pub(crate) serial: Option<Arc<Mutex<Serial>>>,
    pub(crate) i8042: Option<Arc<Mutex<I8042>>>,
    pub(crate) ged: Arc<Mutex<Ged>>,
    pub(crate) acpi_pm: Arc<Mutex<AcpiPm>>,
    pub(crate) pics: [Arc<Mutex<Pic>>; 2],
    pub(crate) job_port: Option<Arc<Mutex<JobPort>>>,
    pub(crate) pci_config: Arc<Mutex<PciConfig>>,
    /// The guest has been told where its VM generation ID is.
    pub(crate) has_generation_id: bool,
    pub(crate) virtio: Virtio,
}

/// Where virtio devices are.
pub(crate) enum Virtio {
    /// In slots of virtio-mmio, by name.
    Mmio(Vec<(String, Arc<Mutex<MmioDevice>>)>),
    /// On the PCI bus.
    Pci(Arc<Pci>),
}

impl Hardware {
    /// The PCI bus, if the machine has one.
    pub(crate) fn pci(&self) -> Option<&Arc<Pci>> {
        match &self.virtio {
            Virtio::Pci(pci) => Some(pci),
            Virtio::Mmio(_) => None,
        }
    }

    /// Whether there are any virtio devices.
    pub(crate) fn has_virtio(&self) -> bool {
        match &self.virtio {
            Virtio::Mmio(devices) => !devices.is_empty(),
            // They may come.
            Virtio::Pci(_) => true,
        }
    }

    /// Has all virtio devices stand still. vCPUs do so already.
    pub(crate) fn pause(&self) {
        match &self.virtio {
            Virtio::Mmio(devices) => {
                for (_, device) in devices {
                    lock(device).pause();
                }
            }
            Virtio::Pci(pci) => pci.each(|device| device.pause()),
        }
    }

    /// Lets them go on.
    pub(crate) fn resume(&self) {
        match &self.virtio {
            Virtio::Mmio(devices) => {
                for (_, device) in devices {
                    lock(device).resume();
                }
            }
            Virtio::Pci(pci) => pci.each(|device| device.resume()),
        }
    }

    /// Takes their states; all of them stand still.
    pub(crate) fn save(&self) -> Result<(IoApicState, LegacyState, VirtioState), Error> {
        let [primary, secondary] = &self.pics;
        let legacy = LegacyState {
            serial: self.serial.as_ref().map(|serial| lock(serial).save()),
            i8042: self.i8042.as_ref().map(|i8042| lock(i8042).save()),
            ged: lock(&self.ged).save(),
            acpi_pm: lock(&self.acpi_pm).save(),
            pics: [lock(primary).save(), lock(secondary).save()],
            job_port: self.job_port.as_ref().map(|port| lock(port).save()),
            pci_address: lock(&self.pci_config).save(),
            has_generation_id: self.has_generation_id,
        };
        let virtio = match &self.virtio {
            Virtio::Mmio(devices) => {
                let save = |(name, device): &(String, Arc<Mutex<MmioDevice>>)| {
                    let state = lock(device).save();
                    Ok((name.clone(), state.map_err(Error::of(name.as_str()))?))
                };
                VirtioState::Mmio(devices.iter().map(save).collect::<Result<_, _>>()?)
            }
            Virtio::Pci(pci) => pci.save()?,
        };
        Ok((lock(&self.ioapic).save(), legacy, virtio))
    }

    /// Gives the states to the devices of a new machine, which stand still then.
    pub(crate) fn restore(
        &self,
        ioapic: &IoApicState,
        legacy: &LegacyState,
        virtio: &VirtioState,
    ) -> Result<(), Error> {
        // The lines first: devices agree with their levels.
        lock(&self.ioapic)
            .restore(ioapic)
            .map_err(Error::of("IOAPIC"))?;
        // A guest without a console here sees its output vanish, and one that had none gets a new port.
        if let (Some(serial), Some(state)) = (&self.serial, &legacy.serial) {
            lock(serial)
                .restore(state)
                .map_err(Error::of("serial port"))?;
        }
        if let Some((i8042, state)) = both(self.i8042.as_ref(), legacy.i8042.as_ref(), "keyboard")?
        {
            let restored = lock(i8042).restore(state);
            restored.map_err(Error::of("keyboard controller"))?;
        }
        if let Some((port, state)) =
            both(self.job_port.as_ref(), legacy.job_port.as_ref(), "job port")?
        {
            lock(port).restore(state).map_err(Error::of("job port"))?;
        }
        lock(&self.ged).restore(legacy.ged);
        lock(&self.acpi_pm).restore(legacy.acpi_pm);
        for (pic, state) in self.pics.iter().zip(legacy.pics) {
            lock(pic).restore(state);
        }
        lock(&self.pci_config).restore(legacy.pci_address);
        match (&self.virtio, virtio) {
            (Virtio::Mmio(devices), VirtioState::Mmio(states)) => {
                check_names(
                    states.iter().map(|(name, _)| name),
                    devices.iter().map(|(name, _)| name),
                )?;
                for ((name, device), (_, state)) in devices.iter().zip(states) {
                    lock(device)
                        .restore(state)
                        .map_err(Error::of(name.as_str()))?;
                }
                Ok(())
            }
            (Virtio::Pci(pci), VirtioState::Pci { hotplug, functions }) => {
                pci.restore(hotplug, functions)
            }
            (made, _) => {
                let (saved, made) = match made {
                    Virtio::Mmio(_) => ("a PCI bus", "none"),
                    Virtio::Pci(_) => ("no PCI bus", "one"),
                };
                Err(Error::Devices {
                    saved: saved.into(),
                    made: made.into(),
                })
            }
        }
    }
}

/// A device and its state, if there are both; none if there is neither.
fn both<'a, D, S>(
    made: Option<&'a D>,
    saved: Option<&'a S>,
    name: &str,
) -> Result<Option<(&'a D, &'a S)>, Error> {
    match (made, saved) {
        (Some(made), Some(saved)) => Ok(Some((made, saved))),
        (None, None) => Ok(None),
        (made, saved) => {
            let name = |is_there| format!("{} {name}", if is_there { "a" } else { "no" });
            Err(Error::Devices {
                saved: name(saved.is_some()),
                made: name(made.is_some()),
            })
        }
    }
}

/// Whether these are the same devices in the same order.
pub(crate) fn check_names<'a>(
    saved: impl Iterator<Item = &'a String>,
    made: impl Iterator<Item = &'a String>,
) -> Result<(), Error> {
    let list = |names: Vec<&String>| match &names[..] {
        [] => "no virtio devices".to_owned(),
        names => {
            let names: Vec<&str> = names.iter().map(|name| name.as_str()).collect();
            format!("the devices {}", names.join(", "))
        }
    };
    let (saved, made): (Vec<_>, Vec<_>) = (saved.collect(), made.collect());
    if saved == made {
        return Ok(());
    }
    Err(Error::Devices {
        saved: list(saved),
        made: list(made),
    })
}
