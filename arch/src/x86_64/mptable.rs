//! The table by which kernels without ACPI find CPUs and the IOAPIC (Intel MultiProcessor
//! Specification 1.4, chapter 4).

use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::layout::{IOAPIC_START, LAPIC_START, MP_POINTER, MPTABLE_START};

const SPEC_REVISION: u8 = 4;
const FLOATING_POINTER_SIZE: usize = 16;
const HEADER_SIZE: usize = 44;
const PROCESSOR_SIZE: usize = 20;

const ENTRY_PROCESSOR: u8 = 0;
const ENTRY_BUS: u8 = 1;
const ENTRY_IOAPIC: u8 = 2;
const ENTRY_IO_INTERRUPT: u8 = 3;
const ENTRY_LOCAL_INTERRUPT: u8 = 4;

const CPU_ENABLED: u8 = 1 << 0;
const CPU_BOOT: u8 = 1 << 1;
/// Version register of an integrated local APIC.
const LAPIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = 0x11;
const IOAPIC_ENABLED: u8 = 1;
const ISA_BUS: u8 = 0;
/// Polarity and trigger mode as the bus has them: active high, edge.
const CONFORMS: [u8; 2] = [0, 0];
const TYPE_INT: u8 = 0;
const TYPE_NMI: u8 = 1;
const TYPE_EXTINT: u8 = 3;
const ALL_LAPICS: u8 = 0xff;
/// CPUID leaf 1 as the table wants it: FPU, and the local APIC, on some 686.
const CPU_SIGNATURE: u32 = 0x600;
const CPU_FEATURES: u32 = 0x201;

/// Why the table could not be written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// No room before the end of conventional memory.
    #[error("An MP table for {cpus} CPUs takes {size} bytes, {available} are free")]
    TooManyCpus {
        /// CPUs asked for.
        cpus: u32,
        /// Bytes needed.
        size: usize,
        /// Bytes there are.
        available: u64,
    },
    /// Guest memory refused it.
    #[error("Cannot write the MP table into guest memory")]
    Write(#[source] vm_memory::GuestMemoryError),
}

/// Writes the table for `cpus` CPUs with the APIC ids 0, 1, … and an IOAPIC with `pins` inputs.
pub fn write(memory: &GuestMemoryMmap, cpus: u32, pins: u32) -> Result<(), Error> {
    let table = table(cpus, pins);
    let available = MP_POINTER - MPTABLE_START;
    if table.len() as u64 > available || cpus > u32::from(u8::MAX) - 1 {
        return Err(Error::TooManyCpus {
            cpus,
            size: table.len(),
            available,
        });
    }
    memory
        .write_slice(&table, GuestAddress(MPTABLE_START))
        .and_then(|()| memory.write_slice(&floating_pointer(), GuestAddress(MP_POINTER)))
        .map_err(Error::Write)
}

/// Makes the bytes sum up to zero.
fn seal(table: &mut [u8], checksum_at: usize) {
    table[checksum_at] = 0;
    let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    table[checksum_at] = sum.wrapping_neg();
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "addresses below 4 GiB, ids below 255"
)]
fn table(cpus: u32, pins: u32) -> Vec<u8> {
    let ioapic_id = cpus as u8;
    let mut table = Vec::with_capacity(HEADER_SIZE + cpus as usize * PROCESSOR_SIZE + 300);
    table.extend([0; HEADER_SIZE]);
    let mut entries = 0u16;

    for cpu in 0..cpus {
        let boot = if cpu == 0 { CPU_BOOT } else { 0 };
        table.extend([
            ENTRY_PROCESSOR,
            cpu as u8,
            LAPIC_VERSION,
            CPU_ENABLED | boot,
        ]);
        table.extend(CPU_SIGNATURE.to_le_bytes());
        table.extend(CPU_FEATURES.to_le_bytes());
        table.extend([0; 8]);
        entries += 1;
    }
    table.extend([ENTRY_BUS, ISA_BUS]);
    table.extend(b"ISA   ");
    table.extend([ENTRY_IOAPIC, ioapic_id, IOAPIC_VERSION, IOAPIC_ENABLED]);
    table.extend((IOAPIC_START as u32).to_le_bytes());
    entries += 2;
    // An ISA bus has 16 interrupt lines; Linux takes the entries of higher ones too, which is how
    // devices on the command line reach the upper half of the IOAPIC.
    for line in 0..pins {
        table.extend([ENTRY_IO_INTERRUPT, TYPE_INT]);
        table.extend(CONFORMS);
        table.extend([ISA_BUS, line as u8, ioapic_id, line as u8]);
        entries += 1;
    }
    for (kind, pin, apic) in [(TYPE_EXTINT, 0, 0), (TYPE_NMI, 1, ALL_LAPICS)] {
        table.extend([ENTRY_LOCAL_INTERRUPT, kind]);
        table.extend(CONFORMS);
        table.extend([ISA_BUS, 0, apic, pin]);
        entries += 1;
    }

    table[0..4].copy_from_slice(b"PCMP");
    let length = table.len() as u16;
    table[4..6].copy_from_slice(&length.to_le_bytes());
    table[6] = SPEC_REVISION;
    table[8..16].copy_from_slice(b"MOTE    ");
    table[16..28].copy_from_slice(b"MICROVM     ");
    table[34..36].copy_from_slice(&entries.to_le_bytes());
    table[36..40].copy_from_slice(&(LAPIC_START as u32).to_le_bytes());
    seal(&mut table, 7);
    table
}

#[expect(clippy::cast_possible_truncation, reason = "an address below 1 MiB")]
fn floating_pointer() -> [u8; FLOATING_POINTER_SIZE] {
    let mut pointer = [0; FLOATING_POINTER_SIZE];
    pointer[0..4].copy_from_slice(b"_MP_");
    pointer[4..8].copy_from_slice(&(MPTABLE_START as u32).to_le_bytes());
    // Its own length, in units of 16 bytes.
    pointer[8] = 1;
    pointer[9] = SPEC_REVISION;
    seal(&mut pointer, 10);
    pointer
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::IOAPIC_MAX_PINS;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()
    }

    #[test]
    fn checksums_lengths_and_counts_are_what_a_guest_expects() {
        for cpus in [1, 2, 8, 64] {
            let memory = memory();
            write(&memory, cpus, IOAPIC_MAX_PINS).unwrap();
            let mut pointer = [0; 16];
            memory
                .read_slice(&mut pointer, GuestAddress(MP_POINTER))
                .unwrap();
            assert_eq!(&pointer[..4], b"_MP_");
            assert_eq!(pointer.iter().fold(0u8, |a, b| a.wrapping_add(*b)), 0);
            let gpa = u32::from_le_bytes(pointer[4..8].try_into().unwrap());
            let mut length = [0; 2];
            memory
                .read_slice(&mut length, GuestAddress(u64::from(gpa) + 4))
                .unwrap();
            let mut table = vec![0; usize::from(u16::from_le_bytes(length))];
            memory
                .read_slice(&mut table, GuestAddress(gpa.into()))
                .unwrap();
            assert_eq!(&table[..4], b"PCMP");
            assert_eq!(table.iter().fold(0u8, |a, b| a.wrapping_add(*b)), 0);

            let mut rest = &table[HEADER_SIZE..];
            let (mut entries, mut processors) = (0, 0);
            while let Some(kind) = rest.first() {
                processors += u32::from(*kind == ENTRY_PROCESSOR);
                rest = &rest[if *kind == ENTRY_PROCESSOR { 20 } else { 8 }..];
                entries += 1;
            }
            assert_eq!(processors, cpus);
            assert_eq!(u16::from_le_bytes([table[34], table[35]]), entries);
            assert!(u64::from(gpa) + table.len() as u64 <= MP_POINTER);
        }
    }

    #[test]
    fn too_many_cpus_are_refused() {
        assert!(matches!(
            write(&memory(), 255, 9),
            Err(Error::TooManyCpus { .. })
        ));
    }
}
