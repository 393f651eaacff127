//! virtio-mmio slots without a device. The registers that say what is there are there (virtio 1.2,
//! section 4.2.2), with device id 0: drivers then go on without a word (section 4.2.3.1.1).

use crate::bus::BusDevice;

/// Size of one slot in bytes.
const SLOT_SIZE: u64 = 0x1000;
/// MagicValue, Version, DeviceID, VendorID; every register after these reads as 0.
const IDENTITY: [u32; 4] = [
    u32::from_le_bytes(*b"virt"),
    2,
    0,
    u32::from_le_bytes(*b"mote"),
];

/// Any number of empty slots in a row.
#[derive(Debug, Default)]
pub struct VirtioSlots;

impl BusDevice for VirtioSlots {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let skip = usize::try_from(offset % SLOT_SIZE).unwrap_or(usize::MAX);
        let identity = IDENTITY.into_iter().flat_map(u32::to_le_bytes);
        for (to, from) in data.iter_mut().zip(identity.skip(skip)) {
            *to = from;
        }
    }

    fn write(&mut self, _: u64, _: &[u8]) {
        // There is nothing to set.
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(offset: u64) -> u32 {
        let mut data = [0xaa; 4];
        VirtioSlots.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn each_slot_says_that_it_is_empty() {
        for slot in [0, SLOT_SIZE, 7 * SLOT_SIZE] {
            assert_eq!(read(slot), 0x7472_6976);
            assert_eq!(read(slot + 4), 2);
            assert_eq!(read(slot + 8), 0);
            assert_eq!(read(slot + 0x70), 0);
            assert_eq!(read(slot + 0xffc), 0);
        }
    }

    #[test]
    fn odd_accesses_read_bytes_of_the_same_registers() {
        let mut data = [0xaa; 8];
        VirtioSlots.read(2, &mut data);
        assert_eq!(data, [b'r', b't', 2, 0, 0, 0, 0, 0]);
        VirtioSlots.write(0, &[0xff; 8]);
        assert_eq!(read(0), 0x7472_6976);
    }
}
