//! Seeds for the guest on a PCI bus ([`crate::pci`]).

use super::{Script, Seeds};

/// What an access is, in its shape.
const READ: u8 = 8;
const WIDTH: [u8; 9] = [0, 0, 1, 0, 2, 0, 0, 0, 3];

impl Script {
    fn access(&mut self, slot: u8, place: &[u8], shape: u8, value: u32) -> &mut Self {
        self.u8(slot).bytes(place).u8(shape);
        if shape & READ == 0 {
            self.u32(value);
        }
        self
    }

    /// Configuration space, by its own memory.
    fn config_read(&mut self, slot: u8, offset: u8, len: usize) -> &mut Self {
        self.access(slot, &[0, offset], READ | WIDTH[len], 0)
    }

    fn config_write(&mut self, slot: u8, offset: u8, value: u32, len: usize) -> &mut Self {
        self.access(slot, &[0, offset], WIDTH[len], value)
    }

    /// The two ports.
    fn port_write(&mut self, port: u8, value: u32, len: usize) -> &mut Self {
        self.access(0, &[2, port], WIDTH[len], value)
    }

    fn port_read(&mut self, port: u8, len: usize) -> &mut Self {
        self.access(0, &[2, port], READ | WIDTH[len], 0)
    }

    fn hotplug_write(&mut self, offset: u8, value: u32) -> &mut Self {
        self.access(0, &[3, offset], WIDTH[4], value)
    }

    fn hotplug_read(&mut self, offset: u8) -> &mut Self {
        self.access(0, &[3, offset], READ | WIDTH[4], 0)
    }

    /// The memory of a function.
    fn memory_write(&mut self, slot: u8, offset: u16, value: u32, len: usize) -> &mut Self {
        let [low, high] = offset.to_le_bytes();
        self.access(slot, &[6, low, high], WIDTH[len], value)
    }

    fn memory_read(&mut self, slot: u8, offset: u16, len: usize) -> &mut Self {
        let [low, high] = offset.to_le_bytes();
        self.access(slot, &[6, low, high], READ | WIDTH[len], 0)
    }

    fn start(&mut self, slot: u8) -> &mut Self {
        self.u8(slot).u8(7)
    }

    /// Another device, and `slot`'s is asked to go.
    fn exchange(&mut self, slot: u8) -> &mut Self {
        self.u8(slot).u8(8)
    }

    /// `bytes` into the rings, `offset` from their start, and a notification.
    fn ring(&mut self, slot: u8, offset: u16, bytes: &[u8]) -> &mut Self {
        self.u8(slot)
            .u8(9)
            .u16(offset)
            .u8(bytes.len() as u8)
            .bytes(bytes)
    }
}

pub(super) fn pci() -> Seeds {
    let started = || {
        let mut script = Script::default();
        script.u8(1);
        script
    };
    // One buffer of 64 bytes to be written, at the head of the descriptors.
    let mut buffer = 0x8_0000u64.to_le_bytes().to_vec();
    buffer.extend_from_slice(&[64, 0, 0, 0, 2, 0, 0, 0]);
    let mut request = started();
    request
        .ring(1, 0, &buffer)
        .ring(1, 0x1000, &[0, 0, 1, 0, 0, 0])
        .memory_read(1, 0x800, 1);
    request.ring(1, 0x1000, &[0, 0, 2, 0, 0, 0, 0, 0]);
    let mut masked = started();
    // The vector masked, then a request, the pending bits, and unmasked.
    masked.memory_write(1, 0x301c, 1, 4).ring(1, 0, &buffer);
    masked
        .ring(1, 0x1000, &[0, 0, 1, 0, 0, 0])
        .memory_read(1, 0x3800, 8);
    masked
        .memory_write(1, 0x3010, 0xfee0_1000, 4)
        .memory_write(1, 0x3018, 0x41, 4);
    masked
        .memory_write(1, 0x301c, 0, 4)
        .memory_read(1, 0x3000, 8);
    let mut registers = started();
    for offset in (0..0x3c).step_by(4) {
        registers.memory_read(1, offset, 4);
    }
    registers
        .memory_read(1, 0x1000, 4)
        .memory_read(1, 0x2000, 2);
    let mut config = started();
    for offset in (0..0xc0).step_by(4) {
        config.config_read(1, offset, 4);
    }
    // The size of BAR 0, and a new place for it.
    let mut moved = started();
    moved
        .config_write(1, 4, 0, 2)
        .config_write(1, 0x10, u32::MAX, 4)
        .config_read(1, 0x10, 4);
    moved
        .config_write(1, 0x10, 0xc000_8000, 4)
        .config_write(1, 4, 6, 2);
    moved
        .memory_read(2, 0x14, 1)
        .config_write(1, 0x10, 0xc000_4000, 4)
        .ring(1, 0, &buffer);
    // Each dword of the capabilities written to, as MSI-X's control and the window into BAR 0.
    let mut capabilities = started();
    for offset in (0x40..0xb0).step_by(4) {
        capabilities
            .config_write(1, offset, 0x8000_0004, 4)
            .config_read(1, offset, 4);
        capabilities.config_write(1, offset + 2, 0xc000, 2);
    }
    let mut ports = started();
    ports
        .port_write(0, 0x8000_0800, 4)
        .port_read(4, 4)
        .port_write(0, 0x8000_0804, 4);
    ports
        .port_write(4, 6, 2)
        .port_read(4, 2)
        .port_write(0, 0, 4)
        .port_read(4, 4);
    let mut hotplug = started();
    hotplug
        .exchange(1)
        .hotplug_read(0)
        .hotplug_read(4)
        .hotplug_write(8, 2);
    hotplug
        .exchange(2)
        .start(2)
        .hotplug_read(0)
        .start(1)
        .hotplug_write(8, 0xffff_ffff);
    hotplug.exchange(0).exchange(0).start(1).ring(1, 0, &buffer);
    let mut reset = started();
    reset
        .memory_write(1, 0x16, 0, 2)
        .memory_write(1, 0x3a, 1, 2)
        .memory_read(1, 0x3a, 2);
    reset.memory_write(1, 0x1c, 1, 2).ring(1, 0, &buffer);
    reset
        .memory_write(1, 0x14, 0, 1)
        .memory_read(1, 0x14, 1)
        .start(1)
        .ring(1, 0, &buffer);
    vec![
        ("request", request.0),
        ("masked", masked.0),
        ("registers", registers.0),
        ("config", config.0),
        ("moved", moved.0),
        ("capabilities", capabilities.0),
        ("ports", ports.0),
        ("hotplug", hotplug.0),
        ("reset", reset.0),
    ]
}
