//! With a KVM, but without a vCPU: the test is what touches the buses. Where there is no KVM, there is
//! nothing to test.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use devices::interrupt::{InterruptLine, MsiMessage};
use devices::rate_limiter::RateLimit;
use devices::virtio::block::BlockConfig;
use devices::virtio::pmem::PmemConfig;
use devices::virtio::queue::Queue;
use devices::virtio::vsock::VsockControl;
use devices::virtio::worker::{LoopGone, Subscriber, WorkerId};
use devices::virtio::{ActivateError, Kind, Resources, VirtioDevice};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EFD_NONBLOCK;
use vmm_sys_util::tempdir::TempDir;

use super::*;
use crate::config::DeviceKind;
use crate::controls::Control;
use crate::{kvm, memory};

/// Where persistent memory comes.
const WINDOW: u64 = 1 << 33;
const WINDOW_SIZE: u64 = 16 << 20;

/// A device that does nothing but end.
struct Idle {
    queues: Vec<u16>,
    alive: Arc<AtomicUsize>,
}

impl Drop for Idle {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, Ordering::SeqCst);
    }
}

impl VirtioDevice for Idle {
    fn kind(&self) -> Kind {
        Kind::Net
    }
    fn queue_sizes(&self) -> &[u16] {
        &self.queues
    }
    fn features(&self) -> u64 {
        0
    }
    fn read_config(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }
    fn write_config(&mut self, _: u64, _: &[u8]) {}
    fn activate(&mut self, _: Resources) -> Result<(), ActivateError> {
        Ok(())
    }
    fn deactivate(&mut self) -> Vec<Queue> {
        Vec::new()
    }
    fn save(&self) -> Result<devices::virtio::state::DeviceState, devices::state::BadState> {
        Ok(devices::virtio::state::DeviceState::Stateless)
    }
    fn restore(
        &mut self,
        state: &devices::virtio::state::DeviceState,
    ) -> Result<(), devices::state::BadState> {
        devices::virtio::restore_nothing(state)
    }
}

#[derive(Default)]
struct Line(AtomicUsize);

impl InterruptLine for Line {
    fn set(&self, asserted: bool) {
        self.0.fetch_add(usize::from(asserted), Ordering::SeqCst);
    }
}

struct Machine {
    vm: Arc<VmFd>,
    memory: Arc<GuestMemoryMmap>,
    vcpu: VcpuFd,
    io: Bus,
    mmio: Arc<Bus>,
    interrupts: Arc<Interrupts>,
    pci: Arc<Pci>,
    handle: HotplugHandle,
    line: Arc<Line>,
    controls: Controls,
    event_loop: Arc<dyn EventLoop>,
    alive: Arc<AtomicUsize>,
    made: AtomicUsize,
}

/// Nothing is ever activated here.
struct NoLoop;

impl EventLoop for NoLoop {
    fn attach(&self, _: Subscriber) -> Result<WorkerId, LoopGone> {
        Err(LoopGone)
    }
    fn detach(&self, _: WorkerId) -> Result<(), LoopGone> {
        Err(LoopGone)
    }
}

impl Machine {
    fn new() -> Option<Self> {
        let host = match kvm::open(Path::new(kvm::DEFAULT_DEVICE)) {
            Ok(host) => host,
            Err(error) => {
                eprintln!("skipped: {error}");
                return None;
            }
        };
        let vm = Arc::new(kvm::create_vm(&host).unwrap());
        kvm::split_irqchip(&vm, layout::ioapic_pins(0)).unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        // Nothing but where persistent memory comes.
        let region = memory::reserve_read_only(WINDOW, WINDOW_SIZE).unwrap();
        let memory = Arc::new(GuestMemoryMmap::from_regions(vec![region]).unwrap());
        let window = MemoryWindow::new(&vm, &memory, WINDOW, 5..8);
        window.set_end(WINDOW + WINDOW_SIZE);
        let window = Arc::new(window);
        let interrupts = Arc::new(Interrupts::new(Arc::clone(&vm)));
        let line = Arc::<Line>::default();
        let ged = Arc::new(Mutex::new(Ged::new(line.clone())));
        let (io, mmio) = (Bus::new(), Arc::new(Bus::new()));
        let pci = Pci::new(&io, &mmio, &ged, &interrupts, &vm, &memory, Some(&window)).unwrap();
        window.set_bus(&mmio);
        let pci = Arc::new(pci);
        let controls = Controls::new();
        let event_loop: Arc<dyn EventLoop> = Arc::new(NoLoop);
        Some(Self {
            vm,
            memory,
            vcpu,
            io,
            mmio,
            interrupts,
            handle: HotplugHandle::new(Some(&pci), &event_loop, &controls),
            pci,
            line,
            controls,
            event_loop,
            alive: Arc::default(),
            made: AtomicUsize::new(0),
        })
    }

    /// A card whose name is its number, from 0 on.
    fn device(&self, queues: usize) -> Registered {
        self.alive.fetch_add(1, Ordering::SeqCst);
        let device = Idle {
            queues: vec![256; queues],
            alive: Arc::clone(&self.alive),
        };
        let number = self.made.fetch_add(1, Ordering::SeqCst);
        let registration = self.controls.register(card(number)).unwrap();
        registration.set_control(Control::Vsock(VsockControl::default()));
        Registered::new(Box::new(device), registration)
    }

    fn config_address(slot: Slot, offset: u64) -> u64 {
        layout::PCI_ECAM_START + (u64::from(slot.number()) << 15) + offset
    }

    fn set_config(&self, slot: Slot, offset: u64, value: u32) {
        let address = Self::config_address(slot, offset);
        let _ = self.mmio.write(address, &value.to_le_bytes());
    }

    fn read(&self, address: u64) -> u32 {
        let mut data = [0; 4];
        let _ = self.mmio.read(address, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&self, address: u64, value: u32) {
        let _ = self.mmio.write(address, &value.to_le_bytes());
    }

    /// Whether KVM turns writes to `address` into an event: then it takes no other for it.
    fn is_kick(&self, address: u64) -> bool {
        let probe = EventFd::new(EFD_NONBLOCK).unwrap();
        let address = IoEventAddress::Mmio(address);
        match self.vm.register_ioevent(&probe, &address, NoDatamatch) {
            Ok(()) => {
                self.vm
                    .unregister_ioevent(&probe, &address, NoDatamatch)
                    .unwrap();
                false
            }
            Err(error) => {
                assert_eq!(error.errno(), libc::EEXIST);
                true
            }
        }
    }

    /// Takes a vector's request from the local APIC; whether there was one.
    fn take_request(&self, vector: u8) -> bool {
        // IRR, 32 vectors in each 16 bytes.
        let at = 0x200 + usize::from(vector / 32) * 16 + usize::from(vector % 32 / 8);
        let mut lapic = self.vcpu.get_lapic().unwrap();
        let bit = 1_i8.rotate_left(u32::from(vector % 8));
        let requested = lapic.regs[at] & bit != 0;
        lapic.regs[at] &= !bit;
        self.vcpu.set_lapic(&lapic).unwrap();
        requested
    }
}

fn card(number: usize) -> DeviceId {
    DeviceId::Card(number.to_string())
}

const BAR: u64 = layout::PCI_MMIO_START + BAR_SIZE as u64;
const ON: u32 = 6;

#[test]
fn kicks_follow_the_memory() {
    let Some(machine) = Machine::new() else {
        return;
    };
    let slot = machine.pci.insert(machine.device(3), None).unwrap();
    assert_eq!(slot.number(), 1);
    assert_eq!(machine.read(Machine::config_address(slot, 0)), 0x1041_1af4);
    let kick = u64::from(NOTIFY);
    assert!(!machine.is_kick(BAR + kick));
    machine.set_config(slot, 4, ON);
    for queue in 0..3 {
        assert!(machine.is_kick(BAR + kick + 4 * queue));
    }
    assert!(!machine.is_kick(BAR + kick + 12));
    let moved = BAR + 7 * u64::from(BAR_SIZE);
    machine.set_config(slot, 0x10, u32::try_from(moved).unwrap());
    assert!(!machine.is_kick(BAR + kick));
    assert!(machine.is_kick(moved + kick));
    assert_eq!(machine.read(BAR), u32::MAX);
    // Where functions' memory cannot be, or another's is.
    let other = machine.pci.insert(machine.device(1), None).unwrap();
    machine.set_config(other, 4, ON);
    for bad in [0x1000_0000, 0xd000_0000, 0xfee0_0000, 0xffff_c000, moved] {
        machine.set_config(other, 0x10, u32::try_from(bad).unwrap());
        assert_eq!(machine.is_kick(bad + kick), bad == moved);
    }
    assert_eq!(machine.read(moved + 0x10) >> 16, 3, "queues");
    machine.set_config(slot, 4, 0);
    assert!(!machine.is_kick(moved + kick));
}

#[test]
fn vectors_reach_the_local_apic() {
    let Some(machine) = Machine::new() else {
        return;
    };
    // Spurious interrupt vector: the APIC is on.
    let mut lapic = machine.vcpu.get_lapic().unwrap();
    lapic.regs[0xf1] |= 1;
    machine.vcpu.set_lapic(&lapic).unwrap();

    let vectors = Vectors::new(&machine.interrupts, 3).unwrap();
    let fd = Arc::clone(vectors.fd(1).unwrap());
    assert!(vectors.fd(3).is_none());
    let message = |data| MsiMessage {
        address: layout::LAPIC_START,
        data,
    };
    fd.write(1).unwrap();
    assert!(!machine.take_request(0x51));
    // What was written before is delivered then.
    vectors.set(1, Some(message(0x51)));
    assert!(wait(|| machine.take_request(0x51)));
    vectors.set(0, Some(message(0x50)));
    fd.write(1).unwrap();
    assert!(wait(|| machine.take_request(0x51)));
    assert!(!machine.take_request(0x50));
    vectors.set(1, None);
    fd.write(1).unwrap();
    assert!(!machine.take_request(0x51));
    vectors.set(1, Some(message(0x61)));
    assert!(wait(|| machine.take_request(0x61)));
    vectors.release();
    fd.write(1).unwrap();
    assert!(!machine.take_request(0x61));
}

/// KVM delivers from a thread of its own, sometimes.
fn wait(mut is_so: impl FnMut() -> bool) -> bool {
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while !is_so() {
        if std::time::Instant::now() > deadline {
            return false;
        }
        std::thread::yield_now();
    }
    true
}

#[test]
fn devices_come_and_go() {
    let Some(machine) = Machine::new() else {
        return;
    };
    let register = |offset: u64| {
        let mut data = [0; 4];
        let port = u64::from(layout::PCI_HOTPLUG_PORT) + offset;
        let _ = machine.io.read(port, &mut data);
        u32::from_le_bytes(data)
    };
    machine.pci.insert(machine.device(1), None).unwrap();
    assert_eq!(register(0), 0);
    let first_gsi = machine.interrupts.reserve(eventfd()).unwrap();
    machine.interrupts.release(first_gsi);

    let slot = machine.pci.plug(machine.device(2)).unwrap();
    assert_eq!(machine.line.0.load(Ordering::SeqCst), 1);
    assert_eq!(register(0), slot.bit());
    machine.set_config(slot, 4, ON);
    assert!(machine.is_kick(BAR + u64::from(BAR_SIZE + NOTIFY)));
    assert_eq!(machine.controls.ids(), [card(0), card(1)]);

    let removal = machine.handle.remove(&card(1)).unwrap();
    assert_eq!(register(4), slot.bit());
    assert!(!removal.wait(Duration::ZERO));
    assert_eq!(machine.controls.ids(), [card(0), card(1)]);
    let eject = u64::from(layout::PCI_HOTPLUG_PORT) + 8;
    let _ = machine.io.write(eject, &slot.bit().to_le_bytes());
    assert!(removal.wait(Duration::ZERO));
    assert_eq!(machine.controls.ids(), [card(0)]);
    assert_eq!(machine.alive.load(Ordering::SeqCst), 1);
    assert!(!machine.is_kick(BAR + u64::from(BAR_SIZE + NOTIFY)));
    assert_eq!(machine.interrupts.reserve(eventfd()), Some(first_gsi));
    let unknown = machine.handle.remove(&card(1));
    assert!(matches!(unknown, Err(Error::Unknown { .. })));
}

/// What is a disk, made from its configuration.
fn disk(id: &str, path: &Path) -> Device {
    Device {
        kind: DeviceKind::Block(BlockConfig::new(id, path)),
        iothread: false,
    }
}

#[test]
fn a_device_is_made_whole_or_not_at_all() {
    let Some(machine) = Machine::new() else {
        return;
    };
    let directory = TempDir::new().unwrap();
    let path = directory.as_path().join("disk");
    let missing = machine.handle.add(&disk("a", &path));
    assert!(matches!(missing, Err(Error::Make(_))));
    assert_eq!(machine.controls.ids(), []);
    std::fs::write(&path, [0; 512]).unwrap();
    let slot = machine.handle.add(&disk("a", &path)).unwrap();
    assert_eq!(machine.controls.disk("a").unwrap().size(), 512);
    let other = directory.as_path().join("other");
    std::fs::write(&other, [0; 512]).unwrap();
    let taken = machine.handle.add(&disk("a", &other)).unwrap_err();
    assert!(taken.to_string().contains("disk 'a'"), "{taken}");
    // What was refused holds no lock.
    machine.handle.add(&disk("b", &other)).unwrap();
    // Neither does what has gone, and its name is free with its slot.
    assert!(machine.pci.root.remove(slot));
    assert!(machine.controls.disk("a").is_none());
    assert_eq!(machine.handle.add(&disk("a", &path)).unwrap(), slot);
}

fn pmem(id: &str, path: &Path, read_only: bool) -> Device {
    let config = PmemConfig {
        id: id.into(),
        path: path.into(),
        read_only,
        rate: RateLimit::default(),
    };
    Device {
        kind: DeviceKind::Pmem(config),
        iothread: false,
    }
}

#[test]
fn persistent_memory_has_its_place_and_leaves_it() {
    const MIB: u64 = 1 << 20;
    let Some(machine) = Machine::new() else {
        return;
    };
    let directory = TempDir::new().unwrap();
    let file = |name: &str, contents: u8, size: u64| {
        let path = directory.as_path().join(name);
        std::fs::write(&path, vec![contents; usize::try_from(size).unwrap()]).unwrap();
        path
    };
    let (first, second) = (file("first", 1, MIB), file("second", 2, 3 * MIB));
    let read = |offset: u64| -> u8 {
        let gpa = GuestAddress(WINDOW + offset);
        machine.memory.read_obj(gpa).unwrap()
    };
    // Whether KVM has memory there: then it takes no other.
    let is_given = |offset: u64| {
        let taken = kvm::insert_slot(&machine.vm, &machine.memory, 9, WINDOW + offset, MIB, 0);
        let _ = kvm::remove_slot(&machine.vm, 9);
        taken.is_err()
    };
    for _ in 0..3 {
        let slot = machine.handle.add(&pmem("a", &first, false)).unwrap();
        let other = machine.handle.add(&pmem("b", &second, true)).unwrap();
        assert_eq!((read(0), read(MIB), read(2 * MIB)), (1, 0, 2));
        assert!(is_given(0) && is_given(2 * MIB) && is_given(5 * MIB) && !is_given(6 * MIB));
        // What the guest writes to what it can only read comes here.
        let ranges = format!("{:?}", machine.mmio);
        let dropped = WINDOW + 2 * MIB..=WINDOW + 6 * MIB - 1;
        assert!(ranges.contains(&format!("{dropped:?}")), "{ranges}");
        assert!(machine.pci.root.remove(slot));
        assert!(!is_given(0) && is_given(2 * MIB));
        assert_eq!((read(0), read(2 * MIB)), (0, 2));
        // The lowest that is free.
        let again = machine.handle.add(&pmem("c", &first, false)).unwrap();
        assert_eq!(read(0), 1);
        assert!(machine.pci.root.remove(other));
        assert!(machine.pci.root.remove(again));
        assert!(!is_given(0) && !is_given(2 * MIB));
        assert!(!format!("{:?}", machine.mmio).contains(&format!("{dropped:?}")));
    }
    // What does not fit, or has no slot of KVM, leaves nothing.
    let large = file("large", 3, WINDOW_SIZE + 1);
    let refused = |device: &Device| machine.handle.add(device).unwrap_err();
    let error = refused(&pmem("a", &large, false));
    assert!(matches!(
        error,
        Error::Memory(above_ram::Error::WindowFull { .. })
    ));
    for name in ["a", "b", "c"] {
        let path = file(name, 4, 1);
        machine.handle.add(&pmem(name, &path, false)).unwrap();
    }
    let error = refused(&pmem("d", &first, false));
    assert!(matches!(
        error,
        Error::Memory(above_ram::Error::WindowFull { .. })
    ));
    assert_eq!(machine.controls.ids().len(), 3);
}

#[test]
fn what_belongs_to_the_machine_stays() {
    let Some(machine) = Machine::new() else {
        return;
    };
    let entropy = Device {
        kind: DeviceKind::Entropy(RateLimit::default()),
        iothread: false,
    };
    let result = machine.handle.add(&entropy);
    assert!(matches!(result, Err(Error::Fixed { .. })));
    let result = machine.handle.remove(&DeviceId::Balloon);
    assert!(matches!(result, Err(Error::Fixed { .. })));
}

fn eventfd() -> Arc<EventFd> {
    Arc::new(EventFd::new(EFD_NONBLOCK).unwrap())
}

#[test]
fn what_does_not_fit_leaves_nothing_behind() {
    let Some(machine) = Machine::new() else {
        return;
    };
    let too_many = machine.pci.plug(machine.device(128));
    assert!(matches!(too_many, Err(Error::Device(_))));
    let mut slots = 0;
    let error = loop {
        match machine.pci.plug(machine.device(1)) {
            Ok(_) => slots += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Full(_)));
    assert_eq!(slots, layout::PCI_MAX_SLOTS);
    assert_eq!(machine.alive.load(Ordering::SeqCst), 31);
    let gsi = machine.interrupts.reserve(eventfd()).unwrap();
    assert_eq!(gsi, layout::IOAPIC_MAX_PINS + 31 * 2);
}

#[test]
fn a_machine_that_has_ended_takes_its_devices_along() {
    let Some(machine) = Machine::new() else {
        return;
    };
    let slot = machine.pci.plug(machine.device(4)).unwrap();
    machine.set_config(slot, 4, ON);
    machine.write(BAR + 0x14, 1);
    let removal = machine.handle.remove(&card(0)).unwrap();
    let (handle, alive) = (machine.handle.clone(), Arc::clone(&machine.alive));
    let without = HotplugHandle::new(None, &machine.event_loop, &machine.controls);
    assert!(matches!(without.remove(&card(0)), Err(Error::NoBus)));
    drop(machine);
    assert_eq!(alive.load(Ordering::SeqCst), 0);
    assert!(removal.wait(Duration::ZERO));
    assert!(matches!(handle.remove(&card(0)), Err(Error::Ended)));
    let disk = disk("a", Path::new("/nowhere"));
    assert!(matches!(handle.add(&disk), Err(Error::Ended)));
    assert!(matches!(without.add(&disk), Err(Error::NoBus)));
}

#[test]
fn interrupts_run_out_before_memory_does() {
    let Some(machine) = Machine::new() else {
        return;
    };
    let all = usize::try_from(4096 - layout::IOAPIC_MAX_PINS).unwrap();
    let mut held = Vec::new();
    let fd = eventfd();
    for _ in 0..all - 2 {
        held.push(machine.interrupts.reserve(Arc::clone(&fd)).unwrap());
    }
    assert!(matches!(
        Vectors::new(&machine.interrupts, 3),
        Err(msix::Error::NoInterrupts { count: 3 })
    ));
    // What it had got by then was given back.
    assert!(Vectors::new(&machine.interrupts, 2).is_ok());
    assert_eq!(machine.interrupts.reserve(fd), None);
    machine.interrupts.release(held[100]);
    assert_eq!(machine.interrupts.reserve(eventfd()), Some(held[100]));
}
