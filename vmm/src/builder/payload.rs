//! What a machine boots, from files to guest memory.

use std::time::Instant;

use arch::boot::BootInfo;
use arch::kernel::{KernelImage, Protocol};
use arch::regs::{CpuMode, Entry};
use arch::{acpi, boot, layout, mptable};
use vm_memory::GuestMemoryMmap;

use super::{Error, complete_cmdline, is_acpi_off};
use crate::config::{Config, Payload};
use crate::insight::BootTimes;
use crate::{generation, memory};

/// Puts the payload into guest memory, with all that it will look for there, and notes when what was.
pub(super) fn load(
    config: &Config,
    payload: Payload,
    image: Option<(KernelImage, u64)>,
    memory: &GuestMemoryMmap,
    serial: bool,
    times: &mut BootTimes,
) -> Result<Entry, Error> {
    let (
        Payload::Kernel {
            kernel,
            initrd,
            cmdline,
            ..
        },
        Some((image, initrd_size)),
    ) = (&payload, image)
    else {
        let Payload::Code { bytes, gpa, mode } = payload else {
            unreachable!("check_payload gives an image for every kernel");
        };
        memory::load_code(memory, &bytes, gpa)?;
        return Ok(Entry {
            mode,
            instruction: gpa,
            boot_info: 0,
        });
    };
    memory::load_kernel(memory, config.huge_pages(), kernel, &image.segments)?;
    times.kernel = Instant::now();
    let initrd = match initrd {
        Some(file) if initrd_size > 0 => {
            let gpa = boot::place_initrd(&image, initrd_size, config.memory())?;
            memory::load_initrd(memory, config.huge_pages(), file, gpa, initrd_size)?;
            Some((gpa, initrd_size))
        }
        _ => None,
    };
    times.initrd = Instant::now();
    mptable::write(
        memory,
        config.cpus(),
        layout::ioapic_pins(config.virtio_slots()),
    )?;
    let rsdp = if is_acpi_off(cmdline) {
        None
    } else {
        let tables = acpi::Config {
            cpus: config.cpus(),
            virtio_slots: config.virtio_slots(),
            pci_slots: config.pci_slots(),
            serial,
            keyboard: config.keyboard(),
        };
        generation::renew(memory)?;
        Some(acpi::write_tables(memory, &tables)?)
    };
    let info = BootInfo {
        kernel: &image,
        cmdline: &complete_cmdline(config, cmdline),
        initrd,
        ram_size: config.memory(),
        rsdp,
    };
    let boot_info = boot::write(memory, &info)?;
    let mode = match image.protocol {
        Protocol::Linux64 => CpuMode::Long,
        Protocol::Pvh => CpuMode::Protected,
    };
    Ok(Entry {
        mode,
        instruction: image.entry,
        boot_info: boot_info.0,
    })
}
