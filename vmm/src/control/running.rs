//! What can be changed while the guest runs, or is paused.

use std::time::Duration;

use api::command::Fault;
use api::types::{
    Balloon, BalloonPatch, BalloonStatistics, BalloonStatisticsPatch, ConsolePatch, Drive,
    DrivePatch, HintingStatus, NetworkInterface, NetworkInterfacePatch, RateLimiter,
};
use devices::virtio::balloon::{BalloonControl, BalloonStats, HintingError};
use devices::virtio::block::ReplaceError;

use super::resources::Entry;
use super::{Control, Execution, chain, convert};
use crate::controls::DeviceId;
use crate::pci;

const PAGE_SIZE: u64 = 4096;

/// What clients match, and then what it is.
pub(super) fn hotplug_error(error: &pci::Error) -> String {
    let known = match error {
        pci::Error::NoBus => "PCI is not enabled: not supported after starting the microVM",
        pci::Error::Full(_) => "Could not find an available device slot on the PCI bus",
        pci::Error::Unknown { .. } => "Device not found",
        _ => return chain(error),
    };
    format!("{known}: {}", chain(error))
}

fn no_drive(id: &str) -> Fault {
    Fault::bad(format!("Device not found: there is no drive '{id}'"))
}

fn no_interface(id: &str) -> Fault {
    Fault::bad(format!(
        "Device not found: there is no network interface '{id}'"
    ))
}

fn no_hinting(error: HintingError) -> Fault {
    Fault::bad(match error {
        HintingError::Off => format!("{error} (free_page_hinting)"),
        error => error.to_string(),
    })
}

fn no_balloon() -> Fault {
    Fault::bad("There is no balloon: PUT /balloon before the start")
}

/// The limits after a PATCH.
fn patch(limits: &mut Option<RateLimiter>, patch: Option<&RateLimiter>) -> bool {
    match patch {
        Some(patch) => {
            *limits = RateLimiter::patched(limits.take(), patch);
            true
        }
        None => false,
    }
}

impl Control {
    fn drive(&mut self, id: &str) -> Result<&mut Entry<Drive>, Fault> {
        let mut drives = self.resources.drives.iter_mut();
        drives
            .find(|entry| entry.wire.drive_id == id)
            .ok_or_else(|| no_drive(id))
    }

    fn interface(&mut self, id: &str) -> Result<&mut NetworkInterface, Fault> {
        let interfaces = self.resources.interfaces.iter_mut();
        interfaces
            .map(|entry| &mut entry.wire.wire)
            .find(|wire| wire.iface_id == id)
            .ok_or_else(|| no_interface(id))
    }

    pub(super) fn patch_drive(&mut self, change: DrivePatch) -> Result<(), Fault> {
        let DrivePatch {
            drive_id: id,
            path_on_host,
            rate_limiter,
        } = change;
        if path_on_host.is_none() && rate_limiter.is_none() {
            return Err(Fault::bad(format!(
                "Cannot change drive '{id}': neither path_on_host nor rate_limiter is there. Running method \
                 expected different backend."
            )));
        }
        let disk = self.machine()?.controls().disk(&id);
        let disk = disk.ok_or_else(|| no_drive(&id))?;
        if let Some(path) = path_on_host {
            disk.replace_file(path.as_ref())
                .map_err(|error| cannot_replace(&id, &path, &error))?;
            self.drive(&id)?.wire.path_on_host = path;
        }
        let limits = &mut self.drive(&id)?.wire.rate_limiter;
        if patch(limits, rate_limiter.as_ref()) {
            disk.set_rate_limit(convert::limits(limits.as_ref()));
        }
        Ok(())
    }

    pub(super) fn delete_drive(&mut self, id: String) -> Result<Execution, Fault> {
        if self.drive(&id)?.wire.is_root_device {
            return Err(Fault::bad(format!(
                "Cannot unplug root device: the guest runs on drive '{id}'"
            )));
        }
        self.unplug(DeviceId::Disk(id))
    }

    pub(super) fn patch_interface(&mut self, change: NetworkInterfacePatch) -> Result<(), Fault> {
        let NetworkInterfacePatch {
            iface_id: id,
            rx_rate_limiter,
            tx_rate_limiter,
        } = change;
        let card = self.machine()?.controls().card(&id);
        let card = card.ok_or_else(|| no_interface(&id))?;
        let wire = self.interface(&id)?;
        let (mut rx, mut tx) = (wire.rx_rate_limiter.clone(), wire.tx_rate_limiter.clone());
        let changes_rx = patch(&mut rx, rx_rate_limiter.as_ref());
        let changes_tx = patch(&mut tx, tx_rate_limiter.as_ref());
        if changes_rx || changes_tx {
            card.set_rate(convert::limits(rx.as_ref()), convert::limits(tx.as_ref()))
                .map_err(|error| {
                    Fault::bad(format!(
                        "Cannot change the limits of network interface '{id}': {}",
                        chain(&error)
                    ))
                })?;
        }
        let wire = self.interface(&id)?;
        wire.rx_rate_limiter = rx;
        wire.tx_rate_limiter = tx;
        Ok(())
    }

    pub(super) fn delete_interface(&mut self, id: String) -> Result<Execution, Fault> {
        self.interface(&id)?;
        self.unplug(DeviceId::Card(id))
    }

    pub(super) fn patch_console(&self, change: ConsolePatch) -> Result<(), Fault> {
        let ConsolePatch { columns, rows } = change;
        let console = self.machine()?.controls().console();
        let console = console.ok_or_else(|| {
            Fault::bad(
                "There is no virtio console: a serial port knows nothing of its terminal's size",
            )
        })?;
        console.resize(columns, rows);
        Ok(())
    }

    fn balloon_control(&self) -> Result<BalloonControl, Fault> {
        let balloon = self.machine()?.controls().balloon();
        balloon.ok_or_else(no_balloon)
    }

    pub(super) fn balloon(&self) -> Result<Balloon, Fault> {
        self.resources.balloon.clone().ok_or_else(no_balloon)
    }

    pub(super) fn patch_balloon(&mut self, change: &BalloonPatch) -> Result<(), Fault> {
        let machine = self.machine()?;
        let target = u64::from(change.amount_mib) * convert::MIB;
        match machine.controls().set_balloon(target) {
            Ok(true) => {}
            Ok(false) => return Err(no_balloon()),
            Err(error) => {
                return Err(Fault::bad(format!(
                    "Cannot change the balloon to {} MiB (amount_mib): {error}",
                    change.amount_mib
                )));
            }
        }
        if let Some(balloon) = &mut self.resources.balloon {
            balloon.amount_mib = change.amount_mib;
        }
        Ok(())
    }

    pub(super) fn start_hinting(&self, acknowledge: bool) -> Result<(), Fault> {
        let started = self.balloon_control()?.start_hinting(acknowledge);
        started.map_err(no_hinting)
    }

    pub(super) fn stop_hinting(&self) -> Result<(), Fault> {
        self.balloon_control()?.stop_hinting().map_err(no_hinting)
    }

    pub(super) fn hinting(&self) -> Result<HintingStatus, Fault> {
        let status = self.balloon_control()?.hinting().map_err(no_hinting)?;
        Ok(HintingStatus {
            host_cmd: status.host_command,
            guest_cmd: status.guest_command,
        })
    }

    pub(super) fn balloon_statistics(&self) -> Result<BalloonStatistics, Fault> {
        if self.balloon()?.stats_polling_interval_s == 0 {
            return Err(Fault::bad(
                "The balloon has no statistics: stats_polling_interval_s is 0",
            ));
        }
        let balloon = self.balloon_control()?;
        Ok(statistics(
            balloon.target(),
            balloon.actual(),
            &balloon.stats(),
        ))
    }

    pub(super) fn patch_balloon_statistics(
        &mut self,
        change: &BalloonStatisticsPatch,
    ) -> Result<(), Fault> {
        let (now, new) = (
            self.balloon()?.stats_polling_interval_s,
            change.stats_polling_interval_s,
        );
        if (now == 0) != (new == 0) {
            return Err(Fault::bad(
                "Statistics of the balloon cannot be switched on or off after the start: \
                 stats_polling_interval_s stays 0, or above it",
            ));
        }
        if now != new {
            self.balloon_control()?
                .set_stats_interval(Duration::from_secs(new.into()))
                .map_err(|error| {
                    Fault::bad(format!("Cannot change stats_polling_interval_s: {error}"))
                })?;
        }
        if let Some(balloon) = &mut self.resources.balloon {
            balloon.stats_polling_interval_s = new;
        }
        Ok(())
    }
}

fn cannot_replace(id: &str, path: &str, error: &ReplaceError) -> Fault {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    Fault::bad(format!(
        "Cannot change drive '{id}': Error manipulating the backing file: {cause} {path}"
    ))
}

fn statistics(target: u64, actual: u64, stats: &BalloonStats) -> BalloonStatistics {
    let BalloonStats {
        swap_in,
        swap_out,
        major_faults,
        minor_faults,
        free_memory,
        total_memory,
        available_memory,
        disk_caches,
        hugetlb_allocations,
        hugetlb_failures,
        oom_kills,
        alloc_stalls,
        async_scans,
        direct_scans,
        async_reclaims,
        direct_reclaims,
        updated: _,
    } = *stats;
    BalloonStatistics {
        target_pages: target / PAGE_SIZE,
        actual_pages: actual / PAGE_SIZE,
        target_mib: target / convert::MIB,
        actual_mib: actual / convert::MIB,
        swap_in,
        swap_out,
        major_faults,
        minor_faults,
        free_memory,
        total_memory,
        available_memory,
        disk_caches,
        hugetlb_allocations,
        hugetlb_failures,
        oom_kill: oom_kills,
        alloc_stall: alloc_stalls,
        async_scan: async_scans,
        direct_scan: direct_scans,
        async_reclaim: async_reclaims,
        direct_reclaim: direct_reclaims,
    }
}
