//! Where a machine comes from, and all that can be known to be wrong with that before the host is asked for anything.

use arch::boot;
use arch::kernel::{self, KernelImage};

use super::{Error, complete_cmdline, initrd_size, is_acpi_off};
use crate::config::{Config, Payload};
use crate::snapshot::load::Saved;
use crate::stage::Origin;

/// Where a machine comes from, checked.
pub(super) enum Checked {
    /// It boots.
    Boot {
        payload: Payload,
        /// With the size of the initial RAM disk. None without a kernel.
        image: Option<Box<(KernelImage, u64)>>,
    },
    /// It was there before.
    Saved(Box<Saved>),
}

impl Checked {
    pub(super) fn new(origin: Origin, config: &Config) -> Result<Self, Error> {
        match origin {
            Origin::Boot(payload) => {
                let image = check_payload(&payload, config)?.map(Box::new);
                Ok(Self::Boot { payload, image })
            }
            Origin::Saved(saved) => {
                saved.check(config)?;
                Ok(Self::Saved(saved))
            }
        }
    }

    /// Whether its guest is told where the VM generation ID is: ACPI does that.
    pub(super) fn has_generation_id(&self) -> bool {
        match self {
            Self::Boot { payload, .. } => {
                matches!(payload, Payload::Kernel { cmdline, .. } if !is_acpi_off(cmdline))
            }
            Self::Saved(saved) => saved.has_generation_id(),
        }
    }
}

/// Everything that can be known to be wrong before the host is asked for anything.
fn check_payload(payload: &Payload, config: &Config) -> Result<Option<(KernelImage, u64)>, Error> {
    let ram = config.memory();
    let Payload::Kernel {
        kernel,
        initrd,
        cmdline,
        protocol,
    } = payload
    else {
        return Ok(None);
    };
    boot::check_cmdline(&complete_cmdline(config, cmdline))?;
    let image = kernel::parse(kernel, *protocol)?;
    boot::check_kernel_fits(&image, ram)?;
    let initrd_size = match initrd {
        Some(file) => initrd_size(file)?,
        None => 0,
    };
    if initrd_size > 0 {
        boot::place_initrd(&image, initrd_size, ram)?;
    }
    Ok(Some((image, initrd_size)))
}
