//! virtio devices: from flags to configuration.

use vmm::config::{Device, DeviceKind};

use crate::args::RunArgs;

/// All that were asked for, in the order in which the guest finds them.
pub(crate) fn devices(args: &RunArgs) -> Result<Vec<Device>, String> {
    let mut devices = Vec::new();
    if args.entropy {
        devices.push(Device {
            kind: DeviceKind::Entropy,
            iothread: false,
        });
    }
    Ok(devices)
}
