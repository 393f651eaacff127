//! A whole document at once, for whoever builds a machine without an API: what a configuration file says.

use std::sync::Arc;

use api::command::Fault;
use api::types::{CpuConfigSource, CpuTemplate, HugePages as WirePages, VmConfig};
use devices::mmds::Mmds;

use super::convert;
use super::metadata::unknown_interface;
use crate::config::{Config, Device, HugePages};

/// The machine that `document` describes, from one with its vCPUs and its memory: what they are like, and all
/// devices, in the order in which the guest finds them. `metadata` is what interfaces lead to if they are to.
pub fn configure(
    config: Config,
    document: &VmConfig,
    metadata: Option<&Arc<Mmds>>,
) -> Result<Config, Fault> {
    let mut config = machine(config, document)?;
    for device in devices(document, metadata)? {
        config = config
            .with_device(device)
            .map_err(|error| Fault::bad(error.to_string()))?;
    }
    Ok(config)
}

/// What the machine's vCPUs and its memory are like.
pub(super) fn machine(config: Config, document: &VmConfig) -> Result<Config, Fault> {
    let machine = &document.machine_config;
    if let Some(template) = machine.cpu_template
        && template != CpuTemplate::None
    {
        return Err(Fault::bad(format!(
            "mote has no static CPU template {template:?} (cpu_template): say what is to change by a CPU \
             configuration, or set it to None"
        )));
    }
    let cpu_config = match &document.cpu_config {
        Some(CpuConfigSource::Inline(changes)) => convert::cpu_config(changes),
        // Whoever read the document has read that file.
        Some(CpuConfigSource::File(_)) | None => Default::default(),
    };
    let huge_pages = match machine.huge_pages {
        WirePages::None => HugePages::None,
        WirePages::M2 => HugePages::TwoMiB,
    };
    let config = config
        .with_smt(machine.smt)
        .and_then(|config| config.with_huge_pages(huge_pages))
        .map_err(|error| Fault::bad(error.to_string()))?;
    Ok(config
        .with_dirty_page_tracking(machine.track_dirty_pages)
        .with_cpu_config(cpu_config))
}

/// All devices, in the order in which the guest finds them.
pub(super) fn devices(
    document: &VmConfig,
    metadata: Option<&Arc<Mmds>>,
) -> Result<Vec<Device>, Fault> {
    let leading = document.mmds_config.as_ref();
    let leading = leading.map_or(&[][..], |config| &config.network_interfaces);
    let is_known = |id: &String| {
        let mut interfaces = document.network_interfaces.iter();
        interfaces.any(|interface| interface.iface_id == *id)
    };
    if !leading.iter().all(is_known) {
        return Err(unknown_interface());
    }

    let mut devices = Vec::new();
    // The guest's first disk is its root.
    let (roots, others): (Vec<_>, Vec<_>) = document
        .drives
        .iter()
        .partition(|drive| drive.is_root_device);
    for drive in roots.into_iter().chain(others) {
        devices.push(convert::drive(drive)?);
    }
    for interface in &document.network_interfaces {
        let metadata = metadata.filter(|_| leading.contains(&interface.iface_id));
        devices.push(convert::interface(interface, metadata.cloned())?);
    }
    devices.extend(document.vsock.as_ref().map(convert::vsock));
    devices.extend(document.pmem.iter().map(convert::pmem));
    devices.extend(document.balloon.as_ref().map(convert::balloon));
    devices.extend(document.entropy.as_ref().map(convert::entropy));
    if let Some(memory) = &document.memory_hotplug {
        devices.push(convert::memory_hotplug(memory)?);
    }
    Ok(devices)
}

/// Words of the kernel's command line that say where the root file system is; none if no device has it.
pub fn root_words(document: &VmConfig) -> Option<String> {
    let access = |read_only| if read_only { "ro" } else { "rw" };
    if let Some(root) = document.drives.iter().find(|drive| drive.is_root_device) {
        let device = match &root.partuuid {
            Some(uuid) => format!("PARTUUID={uuid}"),
            None => "/dev/vda".into(),
        };
        return Some(format!("root={device} {}", access(root.is_read_only)));
    }
    let mut pmem = document.pmem.iter().enumerate();
    let (index, root) = pmem.find(|(_, pmem)| pmem.root_device)?;
    Some(format!("root=/dev/pmem{index} {}", access(root.read_only)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DeviceKind;

    fn read(text: &str) -> VmConfig {
        let (document, unknown) = VmConfig::read(text.as_bytes()).unwrap();
        assert_eq!(unknown, [""; 0]);
        document
    }

    #[test]
    fn a_document_is_a_machine() {
        let document = read(
            r#"{"boot-source": {"kernel_image_path": "k"},
                "machine-config": {"vcpu_count": 2, "mem_size_mib": 64, "smt": true},
                "drives": [
                    {"drive_id": "data", "is_root_device": false, "path_on_host": "a"},
                    {"drive_id": "root", "is_root_device": true, "path_on_host": "b", "is_read_only": true}],
                "network-interfaces": [{"iface_id": "e", "backend": "user"}],
                "vsock": {"guest_cid": 3, "uds_path": "v"},
                "balloon": {"amount_mib": 8, "deflate_on_oom": true},
                "pmem": [{"id": "p", "path_on_host": "c"}],
                "memory-hotplug": {"total_size_mib": 256},
                "entropy": {}}"#,
        );
        let config = configure(Config::new(2, 64 << 20).unwrap(), &document, None).unwrap();
        assert!(config.smt());
        let ids: Vec<String> = config
            .devices()
            .iter()
            .map(|device| device.id().to_string())
            .collect();
        assert_eq!(ids[..2], ["disk 'root'", "disk 'data'"]);
        assert_eq!(ids.len(), 8, "{ids:?}");
        let DeviceKind::Block(root) = &config.devices()[0].kind else {
            panic!("{ids:?}");
        };
        assert!(root.read_only);
        assert_eq!(root_words(&document).as_deref(), Some("root=/dev/vda ro"));
    }

    #[test]
    fn the_root_is_where_it_is_said_to_be() {
        let words = |sections: &str| {
            let document =
                format!(r#"{{"boot-source": {{"kernel_image_path": "k"}}, {sections}}}"#);
            root_words(&read(&document))
        };
        let drive = |more: &str| {
            format!(
                r#""drives": [{{"drive_id": "d", "is_root_device": true, "path_on_host": "a"{more}}}]"#
            )
        };
        assert_eq!(words(&drive("")).as_deref(), Some("root=/dev/vda rw"));
        let uuid = drive(r#", "partuuid": "0eaa91a0-01""#);
        assert_eq!(
            words(&uuid).as_deref(),
            Some("root=PARTUUID=0eaa91a0-01 rw")
        );
        let pmem = r#""pmem": [{"id": "a", "path_on_host": "a"},
            {"id": "b", "path_on_host": "b", "root_device": true, "read_only": true}]"#;
        assert_eq!(words(pmem).as_deref(), Some("root=/dev/pmem1 ro"));
        assert_eq!(words(r#""drives": []"#), None);
    }

    #[test]
    fn what_cannot_be_is_said() {
        let refused = |sections: &str| {
            let document =
                format!(r#"{{"boot-source": {{"kernel_image_path": "k"}}, {sections}}}"#);
            let config = Config::new(1, 64 << 20).unwrap();
            configure(config, &read(&document), None)
                .unwrap_err()
                .message
        };
        let template = refused(
            r#""machine-config": {"vcpu_count": 1, "mem_size_mib": 64, "cpu_template": "T2"}"#,
        );
        assert!(template.contains("T2"), "{template}");
        let balloon = refused(r#""balloon": {"amount_mib": 64, "deflate_on_oom": false}"#);
        assert!(balloon.contains("balloon"), "{balloon}");
    }
}
