//! PCI in ACPI (PCI Firmware 3.2, chapter 4): the host bridge with its windows, where configuration
//! space is, and slots whose functions come and go (ACPI 6.5, section 6.3). The registers behind the
//! last are `devices::pci::hotplug`.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, Else, Field,
    FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO, If, Local, Memory32Fixed,
    Method, MethodCall, Name, NotEqual, Notify, OpRegion, OpRegionSpace, Or, Path,
    ResourceTemplate, Return, Store, Uuid, ZERO,
};
use acpi_tables::mcfg::MCFG;
use acpi_tables::{Aml, aml};

use super::{Code, OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::layout::{
    GED_PCI_HOTPLUG, PCI_CONFIG_PORT, PCI_CONFIG_SIZE, PCI_ECAM_SIZE, PCI_ECAM_START,
    PCI_HOTPLUG_PORT, PCI_HOTPLUG_SIZE, PCI_MMIO_SIZE, PCI_MMIO_START,
};

/// What a device is notified with (ACPI 6.5, table 5.6.5): look whether it is there; it is to go.
const NOTIFY_DEVICE_CHECK: u8 = 1;
const NOTIFY_EJECT_REQUEST: u8 = 3;

/// `_OSC` for PCI host bridges, and bits of its first double word (PCI Firmware 3.2, section 4.5.1).
const OSC_UUID: &str = "33DB4D5B-1FF7-401C-9657-7441C03DD766";
const OSC_UNKNOWN_UUID: u8 = 1 << 2;
const OSC_MASKED: u8 = 1 << 4;
/// Where in `_OSC`'s buffer what the guest wants to control is, in bytes.
const OSC_CONTROL: u8 = 8;

/// Where the configuration space of the one bus is.
pub(super) fn mcfg() -> MCFG {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(PCI_ECAM_START, 0, 0, 0);
    mcfg
}

/// The host bridge, with the slots from 1 to `slots`.
#[expect(clippy::cast_possible_truncation, reason = "addresses below 4 GiB")]
pub(super) fn host_bridge(slots: u32, sink: &mut Vec<u8>) {
    // Without this a guest does not trust MCFG.
    let ecam = Memory32Fixed::new(true, PCI_ECAM_START as u32, PCI_ECAM_SIZE as u32);
    Device::new(
        "ECAM".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ecam])),
        ],
    )
    .to_aml_bytes(sink);

    let last = (PCI_MMIO_START + PCI_MMIO_SIZE - 1) as u32;
    let memory = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        PCI_MMIO_START as u32,
        last,
        None,
    );
    let bus = AddressSpace::new_bus_number(0_u16, 0);
    let ports = IO::new(PCI_CONFIG_PORT, PCI_CONFIG_PORT, 1, PCI_CONFIG_SIZE as u8);
    let region = OpRegion::new(
        "HPRG".into(),
        OpRegionSpace::SystemIO,
        &PCI_HOTPLUG_PORT,
        &PCI_HOTPLUG_SIZE,
    );
    let registers = Field::new(
        "HPRG".into(),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        [*b"INSR", *b"LEAV", *b"EJCT"]
            .map(|name| FieldEntry::Named(name, 32))
            .into(),
    );
    let children = slots_and_their_methods(slots);
    Device::new(
        "PCI0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CBA".into(), &PCI_ECAM_START),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&bus, &ports, &memory]),
            ),
            &osc(),
            &region,
            &registers,
            &children,
        ],
    )
    .to_aml_bytes(sink);
}

/// A step of the event device's method: if `events` say so, the guest's kernel is told of functions that
/// have come and are to go.
pub(super) fn announce(events: &dyn Aml) -> Code {
    Code::of(&If::new(
        &And::new(&ZERO, events, &GED_PCI_HOTPLUG),
        vec![&MethodCall::new("\\_SB_.PCI0.ANNC".into(), Vec::new())],
    ))
}

/// `_OSC`: the guest asks to control what this bridge has not: native hot-plug, error reporting and
/// power management events. It gets none of it.
fn osc() -> Code {
    let control = Path::new("CDW3");
    let errors = Path::new("CDW1");
    Code::of(&Method::new(
        "_OSC".into(),
        4,
        true,
        vec![
            &CreateDWordField::new(&errors, &Arg(3), &ZERO),
            &If::new(
                &aml::Equal::new(&Arg(0), &Uuid::new(OSC_UUID)),
                vec![
                    &CreateDWordField::new(&control, &Arg(3), &OSC_CONTROL),
                    &If::new(
                        &NotEqual::new(&control, &ZERO),
                        vec![
                            &Store::new(&control, &ZERO),
                            &Or::new(&errors, &errors, &OSC_MASKED),
                        ],
                    ),
                ],
            ),
            &Else::new(vec![&Or::new(&errors, &errors, &OSC_UNKNOWN_UUID)]),
            &Return::new(&Arg(3)),
        ],
    ))
}

fn slots_and_their_methods(slots: u32) -> Code {
    let mut sink = Vec::new();
    // If slot n is in Arg0, it is notified with Arg1.
    let mut notify = Vec::new();
    for slot in 1..=slots {
        let bit = 1_u32 << slot;
        let name = format!("S{slot:03}");
        Device::new(
            Path::new(&name),
            vec![
                &Name::new("_SUN".into(), &slot),
                &Name::new("_ADR".into(), &(slot << 16)),
                &Method::new(
                    "_EJ0".into(),
                    1,
                    false,
                    vec![&Store::new(&Path::new("EJCT"), &bit)],
                ),
            ],
        )
        .to_aml_bytes(&mut sink);
        If::new(
            &And::new(&ZERO, &Arg(0), &bit),
            vec![&Notify::new(&Path::new(&name), &Arg(1))],
        )
        .to_aml_bytes(&mut notify);
    }
    Method::new("TELL".into(), 2, true, vec![&Code(notify)]).to_aml_bytes(&mut sink);
    // Reading clears either register, so that happens once.
    let tell = |what| MethodCall::new("TELL".into(), vec![&Local(0), what]);
    Method::new(
        "ANNC".into(),
        0,
        true,
        vec![
            &Store::new(&Local(0), &Path::new("INSR")),
            &tell(&NOTIFY_DEVICE_CHECK),
            &Store::new(&Local(0), &Path::new("LEAV")),
            &tell(&NOTIFY_EJECT_REQUEST),
        ],
    )
    .to_aml_bytes(&mut sink);
    Code(sink)
}
