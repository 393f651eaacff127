//! Memory beside the guest's RAM: files that it has as memory, and what is plugged while it runs.

use api::command::Fault;
use api::types::{
    MemoryHotplug, MemoryHotplugPatch, MemoryHotplugStatus, Pmem, PmemPatch, RateLimiter,
};
use devices::virtio::mem::{MemControl, MemStatus};

use super::{Control, Execution, chain, convert};
use crate::controls::DeviceId;

impl Control {
    /// Files are opened at the start, or now if that was.
    pub(super) fn put_pmem(&mut self, pmem: Pmem) -> Result<(), Fault> {
        match &self.machine {
            None => self.resources.put_pmem(pmem),
            Some(machine) => self.resources.plug_pmem(pmem, machine),
        }
    }

    pub(super) fn delete_pmem(&mut self, id: String) -> Result<Execution, Fault> {
        if self.find_pmem(&id)?.root_device {
            return Err(Fault::bad(format!(
                "Cannot unplug root device: the guest runs on persistent memory '{id}'"
            )));
        }
        self.unplug(DeviceId::Pmem(id))
    }

    fn find_pmem(&self, id: &str) -> Result<&Pmem, Fault> {
        let mut all = self.resources.pmem.iter();
        all.find(|pmem| pmem.id == id).ok_or_else(|| {
            Fault::bad(format!(
                "Device not found: there is no persistent memory '{id}'"
            ))
        })
    }

    pub(super) fn patch_pmem(&mut self, change: &PmemPatch) -> Result<(), Fault> {
        let limits = self.find_pmem(&change.id)?.rate_limiter.clone();
        let Some(patch) = &change.rate_limiter else {
            return Ok(());
        };
        let limits = RateLimiter::patched(limits, patch);
        let pmem = self.machine()?.controls().pmem(&change.id);
        let pmem = pmem.ok_or_else(|| Fault::bad("The guest has ended"))?;
        pmem.set_rate_limit(convert::limits(limits.as_ref()))
            .map_err(|error| {
                Fault::bad(format!(
                    "Cannot change the limits of persistent memory '{}': {error}",
                    change.id
                ))
            })?;
        for pmem in &mut self.resources.pmem {
            if pmem.id == change.id {
                pmem.rate_limiter.clone_from(&limits);
            }
        }
        Ok(())
    }

    pub(super) fn put_memory_hotplug(&mut self, memory: MemoryHotplug) -> Result<(), Fault> {
        convert::memory_hotplug(&memory)?;
        self.resources.put_memory_hotplug(memory);
        Ok(())
    }

    fn memory_hotplug(&self) -> Result<MemControl, Fault> {
        let memory = self.machine()?.controls().memory_hotplug();
        memory.ok_or_else(|| {
            Fault::bad("There is no memory to be plugged: PUT /hotplug/memory before the start")
        })
    }

    pub(super) fn memory_hotplug_status(&self) -> Result<MemoryHotplugStatus, Fault> {
        let MemStatus {
            block,
            total,
            slot,
            plugged,
            requested,
        } = self.memory_hotplug()?.status();
        Ok(MemoryHotplugStatus {
            block_size_mib: block / convert::MIB,
            total_size_mib: total / convert::MIB,
            slot_size_mib: slot / convert::MIB,
            plugged_size_mib: plugged / convert::MIB,
            requested_size_mib: requested / convert::MIB,
        })
    }

    pub(super) fn patch_memory_hotplug(&self, change: &MemoryHotplugPatch) -> Result<(), Fault> {
        let bytes = change.requested_size_mib.saturating_mul(convert::MIB);
        self.memory_hotplug()?
            .set_requested(bytes)
            .map_err(|error| {
                Fault::bad(format!(
                    "Cannot plug {} MiB (requested_size_mib): {}",
                    change.requested_size_mib,
                    chain(&error)
                ))
            })
    }
}
