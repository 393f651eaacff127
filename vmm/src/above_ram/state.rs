//! Where memory above RAM is, as a state: what comes and goes while a guest runs leaves gaps, so that the addresses do
//! not follow from the devices that there are.

use devices::backend::disk::mapped;
use devices::virtio::mem;
use devices::virtio::pmem::PmemControl;
use serde::{Deserialize, Serialize};

use super::{AboveRam, Error, Window, window};
use crate::config::{Config, DeviceKind};
use crate::controls::{Controls, DeviceId};

/// Addresses of what there is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AboveRamState {
    /// Persistent memory: its name, and its first GPA.
    pub pmem: Vec<(String, u64)>,
    /// The region that memory is plugged into.
    pub hotplug: Option<u64>,
    /// The one that persistent memory comes into.
    pub window: Option<u64>,
}

impl AboveRamState {
    /// Of a machine with these devices.
    pub(crate) fn of(controls: &Controls, window: Option<&Window>) -> Self {
        let pmem = |id| match id {
            DeviceId::Pmem(id) => {
                let start = controls.pmem(&id)?.start()?;
                Some((id, start))
            }
            _ => None,
        };
        Self {
            pmem: controls.ids().into_iter().filter_map(pmem).collect(),
            hotplug: controls.memory_hotplug().and_then(|mem| mem.start()),
            window: window.map(Window::start),
        }
    }
}

/// What is at an address.
enum Part {
    Pmem(String, PmemControl),
    Hotplug(mem::MemControl),
    Window,
}

impl Part {
    fn name(&self) -> String {
        match self {
            Self::Pmem(id, _) => DeviceId::Pmem(id.clone()).to_string(),
            Self::Hotplug(_) => DeviceId::MemoryHotplug.to_string(),
            Self::Window => "region for persistent memory that comes".into(),
        }
    }

    fn size(&self) -> u64 {
        match self {
            Self::Pmem(_, control) => control.size(),
            Self::Hotplug(control) => control.config().total(),
            Self::Window => window::SIZE,
        }
    }

    fn alignment(&self) -> u64 {
        match self {
            Self::Pmem(..) => mapped::ALIGNMENT,
            Self::Hotplug(control) => mem::ALIGNMENT.max(control.config().block()),
            Self::Window => window::ALIGNMENT,
        }
    }
}

impl AboveRam {
    /// Maps what the devices of a machine have above its RAM where a state says, which is not believed: nothing is at
    /// an address that it could not have been given, and no two things are at the same.
    pub(crate) fn map_saved(
        config: &Config,
        controls: &Controls,
        state: &AboveRamState,
    ) -> Result<Self, Error> {
        let mut above = Self::empty(config);
        let window = state.window.filter(|_| config.pci());
        let (mut parts, mut came) = (Vec::new(), Vec::new());
        for device in config.devices() {
            let part = match &device.kind {
                DeviceKind::Pmem(pmem) => {
                    let control = controls.pmem(&pmem.id);
                    control.map(|control| Part::Pmem(pmem.id.clone(), control))
                }
                DeviceKind::Mem(_) => controls.memory_hotplug().map(Part::Hotplug),
                _ => None,
            };
            let Some(part) = part else { continue };
            let start = match &part {
                Part::Pmem(id, _) => {
                    let mut places = state.pmem.iter();
                    places.find(|(name, _)| name == id).map(|(_, start)| *start)
                }
                Part::Hotplug(_) | Part::Window => state.hotplug,
            };
            let start = start.ok_or_else(|| Error::NoPlace { what: part.name() })?;
            let is_in_window = window.is_some_and(|window| {
                start
                    .checked_sub(window)
                    .is_some_and(|at| at < window::SIZE)
            });
            match part {
                Part::Pmem(id, control) if is_in_window => came.push((id, control, start)),
                part => parts.push((start, part)),
            }
        }
        parts.extend(window.map(|start| (start, Part::Window)));
        parts.sort_by_key(|(start, _)| *start);
        let mut end = above.end;
        for (start, part) in &parts {
            let start = *start;
            let part_end = start.checked_add(part.size());
            let is_free = start >= end && start.is_multiple_of(part.alignment());
            end = part_end.filter(|_| is_free).ok_or_else(|| Error::Place {
                what: part.name(),
                start,
            })?;
        }
        for (start, part) in parts {
            match part {
                Part::Pmem(id, control) => above.map_pmem(&id, &control, start)?,
                Part::Hotplug(control) => above.reserve_hotplug(control, start)?,
                Part::Window => above.reserve_window(start),
            }
        }
        above.came = came;
        Ok(above)
    }

    /// Puts what came while the guest of a snapshot ran where it was.
    pub(super) fn place_what_came(&mut self) -> Result<(), Error> {
        for (id, control, start) in std::mem::take(&mut self.came) {
            let window = self.window.as_ref().ok_or_else(|| Error::WindowFull {
                bytes: control.size(),
                room: 0,
            })?;
            let placed = window.place_at(&id, &control, start)?;
            if control.is_read_only() {
                // Whatever goes on the bus does so when there is one.
                self.read_only.push((control.clone(), start));
            }
            self.end = self.end.max(start + control.size());
            self.placed.push((id, placed));
        }
        Ok(())
    }
}
