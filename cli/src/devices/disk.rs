//! `--disk` and `--rootfs`.

use devices::backend::disk::{Cache, EngineKind, Format, Overlay};
use devices::virtio::block::{BlockConfig, MAX_QUEUES};
use vmm::config::{Device, DeviceKind};

use super::net::rate;
use crate::options::OptionList;

/// `PATH[,ro][,any-size][,id=][,format=][,engine=][,cache=][,overlay=][,serial=][,queues=][,rate=][,iops=]
/// [,iothread=on]`.
pub(super) fn parse(
    flag: &'static str,
    default_id: &str,
    text: &str,
    cpus: u32,
) -> Result<Device, String> {
    let mut options = OptionList::new(flag, text);
    let path = match (options.take_first(), options.take("path")?) {
        (Some(path), None) | (None, Some(path)) => path,
        _ => return Err(options.error("it needs the path of a disk image, once")),
    };
    let id = options.take("id")?.unwrap_or_else(|| default_id.into());
    let mut config = BlockConfig::new(id, path);
    config.read_only = options.take_flag("ro");
    if options.take_flag("rw") && config.read_only {
        return Err(options.error("it is either ro or rw"));
    }
    config.format = options
        .parse_with("format", format)?
        .unwrap_or(config.format);
    config.engine = options
        .parse_with("engine", engine)?
        .unwrap_or(config.engine);
    config.cache = options.parse_with("cache", cache)?.unwrap_or(config.cache);
    config.overlay = match options.take("overlay")?.as_deref() {
        None | Some("none") => Overlay::None,
        Some("temp") => Overlay::Temporary,
        Some(file) => Overlay::File(file.into()),
    };
    config.any_size = options.take_flag("any-size");
    config.serial = options.take("serial")?;
    config.queues = match options.parse("queues")? {
        Some(queues) => queues,
        // One a vCPU.
        None => u16::try_from(cpus).unwrap_or(MAX_QUEUES).min(MAX_QUEUES),
    };
    config.rate = rate(&mut options)?;
    let iothread = options.take_switch("iothread")?.unwrap_or(false);
    options.finish()?;
    Ok(Device {
        kind: DeviceKind::Block(config),
        iothread,
    })
}

fn format(text: &str) -> Result<Format, String> {
    match text {
        "raw" => Ok(Format::Raw),
        "qcow2" => Ok(Format::Qcow2),
        "auto" => Ok(Format::ByContent),
        _ => Err("write raw, qcow2 or auto".into()),
    }
}

fn engine(text: &str) -> Result<EngineKind, String> {
    match text {
        "io_uring" => Ok(EngineKind::IoUring),
        "sync" => Ok(EngineKind::Sync),
        _ => Err("write io_uring or sync".into()),
    }
}

fn cache(text: &str) -> Result<Cache, String> {
    match text {
        "writeback" => Ok(Cache::Writeback),
        "unsafe" => Ok(Cache::Unsafe),
        _ => Err("write writeback or unsafe".into()),
    }
}
