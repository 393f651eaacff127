//! `--memory-hotplug`.

use devices::virtio::mem::{MIN_BLOCK, MIN_SLOT, MemConfig};
use vmm::config::{Device, DeviceKind};

use crate::options::OptionList;
use crate::quantity::parse_size;

/// `total=SIZE[,slot=SIZE][,block=SIZE]`.
pub(super) fn parse(text: &str) -> Result<Device, String> {
    let mut options = OptionList::new("--memory-hotplug", text);
    let total = options.parse_with("total", parse_size)?;
    let slot = options.parse_with("slot", parse_size)?;
    let block = options.parse_with("block", parse_size)?;
    let Some(total) = total else {
        return Err(options.error("it needs a total size, such as total=4g"));
    };
    let config = MemConfig::new(total, block.unwrap_or(MIN_BLOCK), slot.unwrap_or(MIN_SLOT))
        .map_err(|error| options.error(error))?;
    options.finish()?;
    Ok(Device {
        kind: DeviceKind::Mem(config),
        // It has one always.
        iothread: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Result<MemConfig, String> {
        match parse(text)?.kind {
            DeviceKind::Mem(config) => Ok(config),
            _ => Err("another device".into()),
        }
    }

    #[test]
    fn sizes_are_read() {
        let new = |total: u64, block: u64, slot: u64| {
            MemConfig::new(total << 20, block << 20, slot << 20)
        };
        assert_eq!(config("total=1g"), Ok(new(1024, 2, 128).unwrap()));
        assert_eq!(
            config("total=1g,slot=256m,block=4m"),
            Ok(new(1024, 4, 256).unwrap())
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, part) in [
            ("1g", "total=4g"),
            ("slot=128m", "total=4g"),
            ("total=much", "'much' is no size"),
            ("total=1g,block=3m", "power of two"),
            ("total=1g,slot=64m", "slot size"),
            ("total=100m", "at least the slot size"),
            ("total=1g,size=1", "unknown option 'size'"),
        ] {
            let error = config(text).unwrap_err();
            assert!(error.starts_with("--memory-hotplug: "), "{error}");
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
