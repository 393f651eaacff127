//! virtio-mmio slots without a device (virtio 1.2, section 4.2.2): the registers are there, the device id
//! is 0, and drivers go on without a word.

use crate::bus::BusDevice;

/// Size of one slot in bytes.
const SLOT_SIZE: u64 = 0x1000;
/// "virt".
const MAGIC: (u64, u32) = (0x00, 0x7472_6976);
const VERSION: (u64, u32) = (0x04, 2);

/// Any number of empty slots in a row.
#[derive(Debug, Default)]
pub struct VirtioSlots;

impl BusDevice for VirtioSlots {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let register = offset % SLOT_SIZE;
        if let Some((_, value)) = [MAGIC, VERSION].into_iter().find(|(at, _)| *at == register)
            && data.len() == 4
        {
            data.copy_from_slice(&value.to_le_bytes());
        }
    }

    fn write(&mut self, _: u64, _: &[u8]) {
        // There is nothing that could be set.
    }
}
