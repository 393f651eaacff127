//! virtio devices: from flags to configuration, one file a kind of flag below.

mod disk;
mod memory;
mod metadata;
pub(crate) mod net;
pub(crate) mod pmem;

use std::path::PathBuf;
use std::sync::Arc;

use api::types::VmConfig;
use devices::mmds::{DEFAULT_LIMIT, Mmds};
use devices::rate_limiter::RateLimit;
use devices::virtio::balloon;
use devices::virtio::vsock::VsockConfig;
use vmm::config::{Device, DeviceKind};

use crate::args::RunArgs;
use crate::options::OptionList;
use crate::quantity::{parse_duration, parse_size};

/// The guest's metadata: what `--metadata` names, as the configuration file has it served.
pub(crate) fn metadata(args: &RunArgs, file: &VmConfig) -> Result<Option<Arc<Mmds>>, String> {
    let id = args.id.as_deref().unwrap_or_default();
    let of_file = file.mmds_config.as_ref().map(vmm::control::metadata_config);
    match (&args.metadata, of_file) {
        (Some(text), config) => metadata::read(text, id, config).map(Some),
        (None, Some(config)) => {
            let mmds =
                Mmds::new(id, DEFAULT_LIMIT).map_err(|error| format!("mmds-config: {error}"))?;
            mmds.set_config(config);
            Ok(Some(Arc::new(mmds)))
        }
        (None, None) => Ok(None),
    }
}

/// All that were asked for, in the order in which the guest finds them.
pub(crate) fn devices(
    args: &RunArgs,
    file: &VmConfig,
    metadata: Option<Arc<Mmds>>,
    cpus: u32,
) -> Result<Vec<Device>, String> {
    let mut devices = Vec::new();
    // The guest's first disk is its root.
    if let Some(text) = &args.rootfs {
        devices.push(disk::parse("--rootfs", "rootfs", text, cpus)?);
    }
    for (index, text) in args.disk.iter().enumerate() {
        let id = format!("disk{index}");
        devices.push(disk(&id, text, cpus)?);
    }
    let cards = args.net.iter().enumerate();
    let cards = cards.map(|(index, text)| net::parse(&format!("net{index}"), text));
    let mut cards = cards.collect::<Result<Vec<_>, _>>()?;
    metadata::serve(metadata, &mut cards, file.mmds_config.is_some())?;
    devices.extend(cards.into_iter().map(net::Card::into_device));
    if let Some(text) = &args.vsock {
        devices.push(vsock(text)?);
    }
    if let Some(text) = &args.balloon {
        devices.push(balloon(text)?);
    }
    pmem::check_roots(args)?;
    for (index, text) in args.pmem.iter().enumerate() {
        devices.push(pmem::parse(&format!("pmem{index}"), text)?);
    }
    if let Some(text) = &args.memory_hotplug {
        devices.push(memory::parse(text)?);
    }
    if let Some(text) = &args.entropy {
        devices.extend(entropy(text)?);
    }
    Ok(devices)
}

/// The disk that `--disk TEXT` means, in a guest with `cpus` vCPUs; with this id if it is given none.
pub fn disk(default_id: &str, text: &str, cpus: u32) -> Result<Device, String> {
    disk::parse("--disk", default_id, text, cpus)
}

/// The network card that `--net TEXT` means; with this id if it is given none.
pub fn net(default_id: &str, text: &str) -> Result<Device, String> {
    let mut card = net::parse(default_id, text)?;
    metadata::serve(None, std::slice::from_mut(&mut card), false)?;
    Ok(card.into_device())
}

/// The persistent memory that `--pmem TEXT` means; with this id if it is given none.
pub fn pmem(default_id: &str, text: &str) -> Result<Device, String> {
    pmem::parse(default_id, text)
}

/// The limits `rate=BYTES[+BURST],iops=N[+BURST]`, as they are behind devices; none is no limit.
pub fn rate(text: &str) -> Result<RateLimit, String> {
    let mut options = OptionList::new("rate", text);
    let limit = net::rate(&mut options)?;
    options.finish()?;
    Ok(limit)
}

/// Whether `--rootfs` is to be read only.
pub(crate) fn is_root_read_only(rootfs: &str) -> bool {
    OptionList::new("--rootfs", rootfs).take_flag("ro")
}

/// `--vsock CID:PATH` or `--vsock cid=CID,path=PATH[,iothread=on]`.
fn vsock(text: &str) -> Result<Device, String> {
    let mut options = OptionList::new("--vsock", text);
    let first = options.take_first();
    let (cid, path) = match first.as_deref().and_then(|first| first.split_once(':')) {
        Some((cid, path)) => {
            let cid = cid
                .parse()
                .map_err(|_| options.error(format_args!("'{cid}' is no context id: 3 or more")))?;
            (Some(cid), Some(path.to_owned()))
        }
        None if first.is_some() => {
            return Err(options.error("write CID:PATH or cid=CID,path=PATH"));
        }
        None => (options.parse("cid")?, options.take("path")?),
    };
    let iothread = options.take_switch("iothread")?.unwrap_or(false);
    let (Some(cid), Some(path)) = (cid, path) else {
        return Err(options.error("it needs a context id and a path: CID:PATH"));
    };
    options.finish()?;
    let path = PathBuf::from(path);
    Ok(Device {
        kind: DeviceKind::Vsock(VsockConfig { cid, path }),
        iothread,
    })
}

/// `--balloon SIZE[,stats=SECONDS][,reporting=on][,hinting=on][,deflate-on-oom=on]`.
fn balloon(text: &str) -> Result<Device, String> {
    let mut options = OptionList::new("--balloon", text);
    let Some(size) = options.take_first() else {
        return Err(options.error("it needs a size, such as 64m, or 0"));
    };
    let target = parse_size(&size).map_err(|error| options.error(error))?;
    let config = balloon::Config {
        target,
        deflate_on_oom: options.take_switch("deflate-on-oom")?.unwrap_or(false),
        free_page_reporting: options.take_switch("reporting")?.unwrap_or(false),
        free_page_hinting: options.take_switch("hinting")?.unwrap_or(false),
        stats_interval: options
            .parse_with("stats", parse_duration)?
            .unwrap_or_default(),
    };
    let iothread = options.take_switch("iothread")?.unwrap_or(false);
    options.finish()?;
    Ok(Device {
        kind: DeviceKind::Balloon(config),
        iothread,
    })
}

/// `--entropy on|off[,rate=BYTES][,iops=N]`.
fn entropy(text: &str) -> Result<Option<Device>, String> {
    let mut options = OptionList::new("--entropy", text);
    let on = match options.take_first().as_deref() {
        Some("on") => true,
        Some("off") => false,
        _ => return Err(options.error("write on or off")),
    };
    let limit = net::rate(&mut options)?;
    let iothread = options.take_switch("iothread")?.unwrap_or(false);
    options.finish()?;
    Ok(on.then_some(Device {
        kind: DeviceKind::Entropy(limit),
        iothread,
    }))
}
