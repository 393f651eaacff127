//! PCI configuration mechanism #1 (PCI Local Bus 3.0, section 3.2.2.3.2). In a machine without PCI its
//! address register can be written and read back, and no device answers at any address. A Linux that
//! is told to trust it (`pci=conf1`) looks no further; one without it probes for all mechanisms, and
//! complains.

use std::sync::Arc;

use crate::bus::BusDevice;
use crate::pci::root::Root;

// Ports, as offsets.
const CONFIG_ADDRESS: u64 = 0;
const CONFIG_DATA: u64 = 4;
/// In the address register: bits that can be written, and the one that enables access.
const ADDRESS_WRITABLE: u32 = ADDRESS_ENABLE | 0x00ff_fffc;
const ADDRESS_ENABLE: u32 = 1 << 31;

/// CONFIG_ADDRESS and CONFIG_DATA: 8 ports.
#[derive(Default)]
pub struct PciConfig {
    // Runtime glue.
    /// The bus; none in a machine without PCI.
    root: Option<Arc<Root>>,

    // Volatile state.
    address: u32,
}

impl PciConfig {
    /// The way to the functions of `root`. Without one (`default`) nobody answers.
    pub fn new(root: Arc<Root>) -> Self {
        Self {
            root: Some(root),
            address: 0,
        }
    }

    /// See [`crate::state`]: the address register.
    pub fn save(&self) -> u32 {
        self.address
    }

    /// See [`crate::state`].
    pub fn restore(&mut self, address: u32) {
        self.address = address & ADDRESS_WRITABLE;
    }

    /// The bus if the address leads there, and slot, function and offset that an access to the data
    /// port at `offset` means.
    fn target(&self, offset: u64) -> Option<(&Root, usize, usize, usize)> {
        let byte = usize::try_from(offset.checked_sub(CONFIG_DATA)?).ok()?;
        let [register, function, bus, _] = self.address.to_le_bytes();
        if self.address & ADDRESS_ENABLE == 0 || bus != 0 {
            return None;
        }
        let slot = usize::from(function >> 3);
        let function = usize::from(function & 7);
        let root = self.root.as_deref()?;
        Some((root, slot, function, usize::from(register) | byte & 3))
    }
}

impl BusDevice for PciConfig {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let Some((root, slot, function, offset)) = self.target(offset) {
            root.read_config(slot, function, offset, data);
            return;
        }
        // Only four bytes at once are an access to the address register.
        match <&mut [u8; 4]>::try_from(&mut *data) {
            Ok(data) if offset == CONFIG_ADDRESS => *data = self.address.to_le_bytes(),
            _ => data.fill(0xff),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some((root, slot, function, offset)) = self.target(offset) {
            root.write_config(slot, function, offset, data);
        } else if let (CONFIG_ADDRESS, Ok(data)) = (offset, data.try_into()) {
            self.address = u32::from_le_bytes(data) & ADDRESS_WRITABLE;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read<const SIZE: usize>(pci: &mut PciConfig, offset: u64) -> [u8; SIZE] {
        let mut data = [0xaa; SIZE];
        pci.read(offset, &mut data);
        data
    }

    #[test]
    fn linux_finds_it() {
        // pci_check_type1()
        let mut pci = PciConfig::default();
        pci.write(3, &[0x01]);
        assert_eq!(read(&mut pci, 0), [0; 4]);
        pci.write(0, &0x8000_0000_u32.to_le_bytes());
        assert_eq!(read(&mut pci, 0), 0x8000_0000_u32.to_le_bytes());
    }

    #[test]
    fn nobody_is_there() {
        let mut pci = PciConfig::default();
        for device in 0..32_u32 {
            pci.write(0, &(0x8000_0000 | device << 11).to_le_bytes());
            pci.write(4, &[0; 4]);
            assert_eq!(read(&mut pci, 4), [0xff; 4]);
            assert_eq!(read(&mut pci, 6), [0xff; 2]);
        }
    }

    #[test]
    fn odd_accesses_are_no_accesses_to_the_address() {
        let mut pci = PciConfig::default();
        pci.write(0, &0xffff_ffff_u32.to_le_bytes());
        pci.write(0, &[0; 2]);
        pci.write(1, &[0; 4]);
        pci.write(0, &[0; 8]);
        assert_eq!(read(&mut pci, 0), ADDRESS_WRITABLE.to_le_bytes());
        assert_eq!(read(&mut pci, 1), [0xff; 4]);
        assert_eq!(read(&mut pci, 0), [0xff; 8]);
    }
}
