//! ACPI tables (ACPI 6.5), hardware-reduced: no PM timer, no SCI, no PIC. A guest's kernel parses them at
//! every boot, so there is no more AML in them than it needs.

mod pci;

use acpi_tables::aml::{
    And, Device, EISAName, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, IO,
    If, Interrupt, Local, Memory32Fixed, Method, Name, Notify, ONE, OpRegion, OpRegionSpace,
    Package, Path, ResourceTemplate, Scope, Store, ZERO,
};
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink, aml};
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::layout::{
    ACPI_END, ACPI_RESET_PORT, ACPI_RESET_VALUE, ACPI_S5_SLEEP_TYPE, ACPI_SLEEP_CONTROL_PORT,
    ACPI_SLEEP_STATUS_PORT, ACPI_START, GED_GENERATION_ID, GED_GSI, GED_PORT, GED_POWER_BUTTON,
    GENERATION_ID_START, I8042_COMMAND_PORT, I8042_DATA_PORT, IOAPIC_START, KEYBOARD_GSI,
    LAPIC_START, PCI_MAX_SLOTS, PVPANIC_PORT, SERIAL_GSI, SERIAL_PORT, SERIAL_SIZE,
    VIRTIO_MMIO_GSI, VIRTIO_MMIO_SIZE, VIRTIO_MMIO_START,
};

const OEM_ID: [u8; 6] = *b"MOTE  ";
const OEM_TABLE_ID: [u8; 8] = *b"MICROVM ";
const OEM_REVISION: u32 = 1;
/// Revision 2 of the DSDT: integers have 64 bits.
const DSDT_REVISION: u8 = 2;
const SDT_HEADER_SIZE: u32 = 36;

/// IA-PC boot architecture flags (table 5.11): no VGA, no CMOS clock. A keyboard controller is announced
/// if there is more of it than its reset line.
const IAPC_8042: u16 = 1 << 1;
const IAPC_NO_VGA: u16 = 1 << 2;
const IAPC_NO_CMOS_RTC: u16 = 1 << 5;
/// What a power button notifies its driver with (table 5.6.6).
const POWER_BUTTON_PRESSED: u8 = 0x80;
/// What the device with the VM generation ID notifies its driver with.
const GENERATION_ID_CHANGED: u8 = 0x80;

/// What the tables describe.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// CPUs, with the APIC ids 0, 1, ….
    pub cpus: u32,
    /// virtio-mmio slots.
    pub virtio_slots: u32,
    /// PCI slots that a device is in or can come into; 0 for a machine without PCI.
    pub pci_slots: u32,
    /// Whether there is COM1.
    pub serial: bool,
    /// Whether there is a keyboard.
    pub keyboard: bool,
}

/// Why the tables could not be written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// No room.
    #[error("The tables end at {end:#x}, beyond {ACPI_END:#x}")]
    TooLarge {
        /// First GPA after them.
        end: u64,
    },
    /// More CPUs than the MADT's local APIC structure can name.
    #[error("{cpus} CPUs are more than the tables can describe (255)")]
    TooManyCpus {
        /// How many.
        cpus: u32,
    },
    /// More slots than a bus has.
    #[error("{slots} PCI slots are more than a bus has ({PCI_MAX_SLOTS})")]
    TooManyPciSlots {
        /// How many.
        slots: u32,
    },
    /// Guest memory refused it.
    #[error("Cannot write into guest memory")]
    Write(#[source] vm_memory::GuestMemoryError),
}

/// Writes all tables into guest memory; returns the address of the RSDP.
pub fn write_tables(memory: &GuestMemoryMmap, config: &Config) -> Result<GuestAddress, Error> {
    if config.cpus > u32::from(u8::MAX) {
        return Err(Error::TooManyCpus { cpus: config.cpus });
    }
    if config.pci_slots > PCI_MAX_SLOTS {
        let slots = config.pci_slots;
        return Err(Error::TooManyPciSlots { slots });
    }
    let mut writer = Writer {
        memory,
        next: ACPI_START + Rsdp::len() as u64,
    };
    let dsdt = writer.put(&dsdt(config))?;
    let fadt = writer.put(&bytes(&fadt(dsdt, config.keyboard)))?;
    let madt = writer.put(&bytes(&madt(config)))?;
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    if config.pci_slots > 0 {
        xsdt.add_entry(writer.put(&bytes(&pci::mcfg()))?);
    }
    let xsdt = writer.put(&bytes(&xsdt))?;
    let rsdp = bytes(&Rsdp::new(OEM_ID, xsdt));
    memory
        .write_slice(&rsdp, GuestAddress(ACPI_START))
        .map_err(Error::Write)?;
    Ok(GuestAddress(ACPI_START))
}

/// Puts one table after the other.
struct Writer<'a> {
    memory: &'a GuestMemoryMmap,
    next: u64,
}

impl Writer<'_> {
    fn put(&mut self, table: &[u8]) -> Result<u64, Error> {
        let start = self.next.next_multiple_of(16);
        let end = start + table.len() as u64;
        if end > ACPI_END {
            return Err(Error::TooLarge { end });
        }
        self.memory
            .write_slice(table, GuestAddress(start))
            .map_err(Error::Write)?;
        self.next = end;
        Ok(start)
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// Code that was made before.
#[derive(Default)]
struct Code(Vec<u8>);

impl Code {
    fn of(code: &dyn Aml) -> Self {
        Self(bytes(code))
    }
}

impl Aml for Code {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

fn port(port: u16) -> GAS {
    GAS::new(
        AddressSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        port.into(),
    )
}

fn fadt(dsdt: u64, keyboard: bool) -> impl Aml {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        // The power button is a device of its own, not this table's.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    let i8042 = if keyboard { IAPC_8042 } else { 0 };
    fadt.iapc_boot_arch = (IAPC_NO_VGA | IAPC_NO_CMOS_RTC | i8042).into();
    fadt.reset_reg = port(ACPI_RESET_PORT);
    fadt.reset_value = ACPI_RESET_VALUE;
    fadt.sleep_control_reg = port(ACPI_SLEEP_CONTROL_PORT);
    fadt.sleep_status_reg = port(ACPI_SLEEP_STATUS_PORT);
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(*b"MOTE\0\0\0\0").into();
    fadt.finalize()
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "addresses below 4 GiB, ids below 256"
)]
fn madt(config: &Config) -> MADT {
    let lapic = LocalInterruptController::Address(LAPIC_START as u32);
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, lapic);
    for cpu in 0..config.cpus {
        madt.add_structure(ProcessorLocalApic::new(
            cpu as u8,
            cpu as u8,
            EnabledStatus::Enabled,
        ));
    }
    madt.add_structure(IoApic::new(0, IOAPIC_START as u32, 0));
    madt
}

fn dsdt(config: &Config) -> Vec<u8> {
    let mut code = Vec::new();
    let s5 = Package::new(vec![&ACPI_S5_SLEEP_TYPE, &ZERO, &ZERO, &ZERO]);
    Name::new("_S5_".into(), &s5).to_aml_bytes(&mut code);
    let mut devices = Vec::new();
    for cpu in 0..config.cpus {
        processor(cpu, &mut devices);
    }
    if config.serial {
        serial(&mut devices);
    }
    if config.keyboard {
        keyboard(&mut devices);
    }
    for slot in 0..config.virtio_slots {
        virtio_slot(slot, &mut devices);
    }
    pvpanic(&mut devices);
    if config.pci_slots > 0 {
        pci::host_bridge(config.pci_slots, &mut devices);
    }
    power_button(&mut devices);
    generation_id(&mut devices);
    event_device(config, &mut devices);
    code.extend(Scope::raw("\\_SB_".into(), devices));

    let mut table = Sdt::new(
        *b"DSDT",
        SDT_HEADER_SIZE,
        DSDT_REVISION,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    table.append_slice(&code);
    table.as_slice().to_vec()
}

fn processor(cpu: u32, sink: &mut Vec<u8>) {
    Device::new(
        Path::new(&format!("C{cpu:03X}")),
        vec![
            &Name::new("_HID".into(), &"ACPI0007"),
            &Name::new("_UID".into(), &cpu),
        ],
    )
    .to_aml_bytes(sink);
}

fn edge(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

#[expect(clippy::cast_possible_truncation, reason = "8 ports")]
fn serial(sink: &mut Vec<u8>) {
    Device::new(
        "COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &edge(SERIAL_GSI),
                    &IO::new(SERIAL_PORT, SERIAL_PORT, 0, SERIAL_SIZE as u8),
                ]),
            ),
        ],
    )
    .to_aml_bytes(sink);
}

/// The keyboard controller's ports and the keyboard's interrupt.
fn keyboard(sink: &mut Vec<u8>) {
    Device::new(
        "KBD_".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0303")),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &edge(KEYBOARD_GSI),
                    &IO::new(I8042_DATA_PORT, I8042_DATA_PORT, 1, 1),
                    &IO::new(I8042_COMMAND_PORT, I8042_COMMAND_PORT, 1, 1),
                ]),
            ),
        ],
    )
    .to_aml_bytes(sink);
}

#[expect(clippy::cast_possible_truncation, reason = "addresses below 4 GiB")]
fn virtio_slot(slot: u32, sink: &mut Vec<u8>) {
    let start = VIRTIO_MMIO_START + u64::from(slot) * VIRTIO_MMIO_SIZE;
    Device::new(
        Path::new(&format!("V{slot:03X}")),
        vec![
            &Name::new("_HID".into(), &"LNRO0005"),
            &Name::new("_UID".into(), &slot),
            &Name::new("_CCA".into(), &ONE),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &Memory32Fixed::new(true, start as u32, VIRTIO_MMIO_SIZE as u32),
                    &edge(VIRTIO_MMIO_GSI + slot),
                ]),
            ),
        ],
    )
    .to_aml_bytes(sink);
}

fn pvpanic(sink: &mut Vec<u8>) {
    Device::new(
        "PVPN".into(),
        vec![
            &Name::new("_HID".into(), &"QEMU0001"),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&IO::new(PVPANIC_PORT, PVPANIC_PORT, 1, 1)]),
            ),
        ],
    )
    .to_aml_bytes(sink);
}

fn power_button(sink: &mut Vec<u8>) {
    Device::new(
        "PWRB".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C0C")),
            &Name::new("_UID".into(), &ZERO),
        ],
    )
    .to_aml_bytes(sink);
}

/// Where the VM generation ID is (Microsoft, "Virtual Machine Generation ID", August 2012). Drivers know it by its
/// compatible id.
#[expect(clippy::cast_possible_truncation, reason = "an address below 4 GiB")]
fn generation_id(sink: &mut Vec<u8>) {
    Device::new(
        "VGEN".into(),
        vec![
            &Name::new("_HID".into(), &"MOTE0001"),
            &Name::new("_CID".into(), &"VM_Gen_Counter"),
            &Name::new("_DDN".into(), &"VM_Gen_Counter"),
            // Its lower and its upper 32 bits.
            &Name::new(
                "ADDR".into(),
                &Package::new(vec![&(GENERATION_ID_START as u32), &ZERO]),
            ),
        ],
    )
    .to_aml_bytes(sink);
}

/// The generic event device (section 5.6.9), which tells of the power button's being pressed, of PCI functions
/// that come and go, and of a new VM generation ID.
fn event_device(config: &Config, sink: &mut Vec<u8>) {
    let pci_hotplug = if config.pci_slots > 0 {
        pci::announce(&Local(0))
    } else {
        Code::default()
    };
    Device::new(
        "GED_".into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&edge(GED_GSI)])),
            &OpRegion::new("EVTR".into(), OpRegionSpace::SystemIO, &GED_PORT, &4u8),
            &Field::new(
                "EVTR".into(),
                FieldAccessType::DWord,
                FieldLockRule::NoLock,
                FieldUpdateRule::WriteAsZeroes,
                vec![FieldEntry::Named(*b"EVTS", 32)],
            ),
            &Method::new(
                "_EVT".into(),
                1,
                true,
                vec![
                    // Reading clears the events, so that happens once.
                    &Store::new(&Local(0), &Path::new("EVTS")),
                    &And::new(&Local(1), &Local(0), &GED_POWER_BUTTON),
                    &If::new(
                        &aml::Equal::new(&Local(1), &GED_POWER_BUTTON),
                        vec![&Notify::new(&Path::new("PWRB"), &POWER_BUTTON_PRESSED)],
                    ),
                    &And::new(&Local(1), &Local(0), &GED_GENERATION_ID),
                    &If::new(
                        &aml::Equal::new(&Local(1), &GED_GENERATION_ID),
                        vec![&Notify::new(&Path::new("VGEN"), &GENERATION_ID_CHANGED)],
                    ),
                    &pci_hotplug,
                ],
            ),
        ],
    )
    .to_aml_bytes(sink);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(memory: &GuestMemoryMmap, gpa: u64, size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size];
        memory.read_slice(&mut bytes, GuestAddress(gpa)).unwrap();
        bytes
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn table(memory: &GuestMemoryMmap, gpa: u64) -> Vec<u8> {
        let length = read(memory, gpa + 4, 4);
        let bytes = read(
            memory,
            gpa,
            u32::from_le_bytes(length.try_into().unwrap()) as usize,
        );
        assert_eq!(sum(&bytes), 0, "checksum of {:?}", &bytes[..4]);
        bytes
    }

    fn pointer(table: &[u8], offset: usize) -> u64 {
        u64::from_le_bytes(table[offset..offset + 8].try_into().unwrap())
    }

    #[test]
    fn a_guest_finds_every_table_with_its_checksum_right() {
        for (cpus, virtio_slots, pci_slots, serial, keyboard) in [
            (1, 0, 0, false, false),
            (3, 4, 0, true, false),
            (2, 0, 1, false, true),
            (64, 19, 31, true, true),
        ] {
            let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
            let config = Config {
                cpus,
                virtio_slots,
                pci_slots,
                serial,
                keyboard,
            };
            let rsdp = write_tables(&memory, &config).unwrap();
            let rsdp = read(&memory, rsdp.0, 36);
            assert_eq!(&rsdp[..8], b"RSD PTR ");
            assert_eq!((sum(&rsdp[..20]), sum(&rsdp)), (0, 0));

            let xsdt = table(&memory, pointer(&rsdp, 24));
            assert_eq!(&xsdt[..4], b"XSDT");
            let pci = usize::from(pci_slots > 0);
            assert_eq!(xsdt.len(), 36 + (2 + pci) * 8);
            if pci > 0 {
                let mcfg = table(&memory, pointer(&xsdt, 52));
                assert_eq!(&mcfg[..4], b"MCFG");
                assert_eq!(mcfg.len(), 44 + 16);
                assert_eq!(pointer(&mcfg, 44), 0xe000_0000);
                // Segment 0, buses 0 to 0.
                assert_eq!(mcfg[52..], [0; 8]);
            }
            let fadt = table(&memory, pointer(&xsdt, 36));
            assert_eq!(&fadt[..4], b"FACP");
            let madt = table(&memory, pointer(&xsdt, 44));
            assert_eq!(&madt[..4], b"APIC");
            assert_eq!(madt.len(), 44 + 8 * cpus as usize + 12);
            let dsdt = table(&memory, pointer(&fadt, 140));
            assert_eq!(&dsdt[..4], b"DSDT");
            let count = |id: &[u8]| dsdt.windows(id.len()).filter(|text| *text == id).count();
            assert_eq!(count(b"ACPI0007"), cpus as usize);
            assert_eq!(count(b"LNRO0005"), virtio_slots as usize);
            assert_eq!(count(b"COM1"), usize::from(serial));
            assert_eq!(count(b"KBD_"), usize::from(keyboard));
            // The device, and the event device's use.
            assert_eq!(count(b"VGEN"), 2);
            // A package of two: the double word 0xff000, and zero.
            assert_eq!(count(b"ADDR\x12\x08\x02\x0c\x00\xf0\x0f\x00\x00"), 1);
            // 8042, in the FADT's boot architecture flags.
            assert_eq!(fadt[109] & 0x02 != 0, keyboard);
            assert_eq!(
                count(b"PCI0"),
                2 * pci,
                "the bridge, and the event device's use"
            );
            assert_eq!(count(b"_EJ0"), pci_slots as usize);
            assert_eq!(count(b"ANNC"), 2 * pci);
            for slot in 1..=31 {
                let name = format!("S{slot:03}");
                let there = usize::from(slot <= pci_slots);
                assert_eq!(count(name.as_bytes()), 2 * there, "{name}");
            }
        }
    }

    #[test]
    fn a_bus_has_so_many_slots() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let config = Config {
            cpus: 1,
            virtio_slots: 0,
            pci_slots: 32,
            serial: false,
            keyboard: false,
        };
        assert!(matches!(
            write_tables(&memory, &config),
            Err(Error::TooManyPciSlots { slots: 32 })
        ));
    }

    /// ACPICA's disassembler and interpreter read what Linux's, which is the same, will have to. Done
    /// where they are installed: `cargo test -p arch -- --ignored`.
    #[test]
    #[ignore = "needs iasl (package acpica-tools)"]
    fn acpica_can_read_it() {
        let config = Config {
            cpus: 2,
            virtio_slots: 2,
            pci_slots: 31,
            serial: true,
            keyboard: true,
        };
        let dir = std::env::temp_dir().join(format!("mote-acpi-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("dsdt.aml"), dsdt(&config)).unwrap();
        std::fs::write(dir.join("mcfg.aml"), bytes(&pci::mcfg())).unwrap();
        for table in ["dsdt.aml", "mcfg.aml"] {
            let output = std::process::Command::new("iasl")
                .args(["-d", table])
                .current_dir(&dir)
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{text}");
            for sign in ["Error", "Warning", "Could not", "external"] {
                assert!(!text.contains(sign), "{text}");
            }
        }
        let source = std::fs::read_to_string(dir.join("dsdt.dsl")).unwrap();
        assert!(source.contains("Device (S031)"));
        // Compiled again, it is the same.
        let output = std::process::Command::new("iasl")
            .args(["-p", "again", "dsdt.dsl"])
            .current_dir(&dir)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains(" 0 Errors"), "{text}");
        std::fs::remove_dir_all(dir).unwrap();
    }
}
