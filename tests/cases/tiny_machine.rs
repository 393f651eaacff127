//! Tiny guests that look at what the machine is made of: keyboard, CPUs, the serial port's limit, counters.

use std::error::Error as _;

use arch::cpu_config::{CapabilityModifier, CpuConfig, CpuidModifier, CpuidRegister, MsrModifier};
use arch::layout;
use arch::regs::CpuMode::{self, Protected};
use devices::rate_limiter::{Bucket, RateLimit};
use iced_x86::IcedError;
use tests::tiny::{
    CODE, Machine, assemble, assemble_at, code_asm::*, config, config_of, out, reset,
};
use vmm::config::{Config, Payload};
use vmm::{BuildError, ExitCounts, NoRoom, StopReason};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("keys_that_are_polled_for", keys_that_are_polled_for),
    ("keys_that_interrupt", keys_that_interrupt),
    ("no_keyboard_unless_asked_for", no_keyboard),
    ("two_threads_a_core", two_threads_a_core),
    ("cpuid_and_msrs_are_changed", cpuid_and_msrs_are_changed),
    ("what_kvm_lacks_is_named", what_kvm_lacks_is_named),
    ("serial_output_beyond_the_limit", serial_limit),
    ("exits_are_counted", exits_are_counted),
];

const MODE: CpuMode = Protected;
const SERIAL: u32 = layout::SERIAL_PORT as u32;
const DATA: u32 = layout::I8042_DATA_PORT as u32;
const COMMAND: u32 = layout::I8042_COMMAND_PORT as u32;
/// Ctrl, Alt and Delete of scan code set 2, pressed and then let go.
const KEYS: [u8; 11] = [
    0x14, 0x11, 0xe0, 0x71, 0xe0, 0xf0, 0x71, 0xf0, 0x11, 0xf0, 0x14,
];

fn build(
    config: &Config,
    write: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>,
) -> Machine {
    Machine::build(config, MODE, assemble(MODE, write))
}

fn payload() -> Payload {
    Payload::Code {
        bytes: vec![0xf4],
        gpa: CODE,
        mode: MODE,
    }
}

/// Writes AL to the serial port.
fn print_al(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(edx, SERIAL)?;
    a.out(dx, al)
}

/// Writes EAX to the serial port, lowest byte first.
fn print_eax(a: &mut CodeAssembler) -> Result<(), IcedError> {
    a.mov(edx, SERIAL)?;
    for _ in 0..4 {
        a.out(dx, al)?;
        a.shr(eax, 8)?;
    }
    Ok(())
}

fn words(bytes: &[u8]) -> Vec<u32> {
    let words = bytes.chunks_exact(4);
    words
        .map(|word| u32::from_le_bytes(word.try_into().unwrap()))
        .collect()
}

fn keys_that_are_polled_for() {
    let config = config().with_keyboard(true);
    let machine = build(&config, |a| {
        // The self-test, then as many keys as there are.
        out(a, layout::I8042_COMMAND_PORT, 0xaa)?;
        a.mov(edx, DATA)?;
        a.in_(al, dx)?;
        print_al(a)?;
        out(a, layout::BOOT_TIMER_PORT, 1)?;
        a.mov(ecx, KEYS.len() as u32)?;
        let mut poll = a.create_label();
        a.set_label(&mut poll)?;
        a.mov(edx, COMMAND)?;
        a.in_(al, dx)?;
        a.test(al, 1)?;
        a.jz(poll)?;
        a.mov(edx, DATA)?;
        a.in_(al, dx)?;
        print_al(a)?;
        a.dec(ecx)?;
        a.jnz(poll)?;
        reset(a)
    });
    let keyboard = machine.vm.keyboard().unwrap();
    let pressing = keyboard.clone();
    let ended = machine.run_with(|_| pressing.send_ctrl_alt_del().unwrap());
    assert_eq!(ended.output, [&[0x55], &KEYS[..]].concat());
    assert!(matches!(ended.reason, StopReason::Reset));
    let counters = keyboard.counters();
    assert_eq!((counters.resets, counters.errors), (1, 0));
    assert!(counters.reads >= 2 * KEYS.len() as u64);
    // A guest that is gone reads nothing: after the first ones there is no room.
    let presses: Vec<_> = (0..5).map(|_| keyboard.send_ctrl_alt_del()).collect();
    assert_eq!(presses[..4], [Ok(()); 4]);
    assert_eq!(presses[4], Err(NoRoom));
}

fn keys_that_interrupt() {
    const VECTOR: u32 = 0x31;
    const HANDLER: u32 = CODE as u32 + 0x400;
    const IDT: u32 = CODE as u32 + 0x800;
    let mut code = assemble(MODE, |a| {
        let mut wait = a.create_label();
        a.mov(esp, CODE as u32)?;
        let gate = IDT + VECTOR * 8;
        a.mov(dword_ptr(gate), HANDLER & 0xffff)?;
        a.mov(word_ptr(gate + 2), cs)?;
        a.mov(dword_ptr(gate + 4), 0x8e00 | HANDLER & 0xffff_0000)?;
        a.mov(word_ptr(IDT - 6), 0x7ff)?;
        a.mov(dword_ptr(IDT - 4), IDT)?;
        a.lidt(ptr(IDT - 6))?;
        // Local APIC on; IOAPIC: the keyboard's input to vCPU 0, by edges.
        a.mov(dword_ptr(layout::LAPIC_START + 0xf0), 0x1ff)?;
        let entry = 0x10 + 2 * layout::KEYBOARD_GSI;
        a.mov(dword_ptr(layout::IOAPIC_START), entry)?;
        a.mov(dword_ptr(layout::IOAPIC_START + 0x10), VECTOR)?;
        a.xor(ecx, ecx)?;
        a.sti()?;
        out(a, layout::BOOT_TIMER_PORT, 1)?;
        a.set_label(&mut wait)?;
        a.hlt()?;
        a.jmp(wait)
    });
    code.resize((u64::from(HANDLER) - CODE) as usize, 0xf4);
    // One byte for each interrupt.
    code.extend(assemble_at(HANDLER.into(), MODE, |a| {
        let mut more = a.create_label();
        a.mov(edx, DATA)?;
        a.in_(al, dx)?;
        print_al(a)?;
        a.inc(ecx)?;
        a.cmp(ecx, KEYS.len() as u32)?;
        a.jne(more)?;
        reset(a)?;
        a.set_label(&mut more)?;
        a.mov(dword_ptr(layout::LAPIC_START + 0xb0), 0)?;
        // Not back to where it was: not every host's KVM can emulate that.
        a.mov(esp, CODE as u32)?;
        a.sti()?;
        a.hlt()
    }));
    let config = config().with_keyboard(true);
    let machine = Machine::build(&config, MODE, code);
    let keyboard = machine.vm.keyboard().unwrap();
    let ended = machine.run_with(|_| keyboard.send_ctrl_alt_del().unwrap());
    assert_eq!(ended.output, KEYS, "{:?}", ended.reason);
}

/// The reset line is all there is, and a driver is told so by a buffer that never empties.
fn no_keyboard() {
    let machine = build(&config(), |a| {
        a.mov(edx, COMMAND)?;
        a.in_(al, dx)?;
        print_al(a)?;
        reset(a)
    });
    assert!(machine.vm.keyboard().is_none());
    assert_eq!(machine.run().output, [1]);
}

/// Adds a CPUID, and the output of EAX and EBX.
fn cpuid(a: &mut CodeAssembler, leaf: u32, subleaf: u32) -> Result<(), IcedError> {
    a.mov(eax, leaf)?;
    a.mov(ecx, subleaf)?;
    a.cpuid()?;
    print_eax(a)?;
    a.mov(eax, ebx)?;
    print_eax(a)
}

fn two_threads_a_core() {
    for (smt, cpus, thread_bits, threads) in [(false, 4, 0, 1), (true, 4, 1, 2), (true, 1, 0, 1)] {
        let config = config_of(cpus, 16 << 20).with_smt(smt).unwrap();
        let ended = build(&config, |a| {
            cpuid(a, 0xb, 0)?;
            cpuid(a, 0xb, 1)?;
            reset(a)
        })
        .run();
        let [eax0, ebx0, eax1, ebx1] = words(&ended.output)[..] else {
            panic!("{:?}", ended.output);
        };
        let id_bits = cpus.next_power_of_two().trailing_zeros();
        assert_eq!((eax0, ebx0), (thread_bits, threads), "{cpus}");
        assert_eq!((eax1, ebx1), (id_bits, cpus), "{cpus}");
    }
}

/// Stepping and brand index are the host's, unless they are changed.
fn cpuid_and_msrs_are_changed() {
    const SYSENTER_CS: u32 = 0x174;
    let signature = CpuidModifier {
        leaf: 1,
        subleaf: 0,
        flags: 0,
        register: CpuidRegister::Eax,
        mask: 0x0000_000f,
        value: 0x0000_000a,
    };
    let brand = CpuidModifier {
        register: CpuidRegister::Ebx,
        mask: 0xff,
        value: 0x5a,
        ..signature
    };
    let msr = MsrModifier {
        index: SYSENTER_CS,
        mask: 0xffff,
        value: 0xdead_1234,
    };
    let config = config().with_cpu_config(CpuConfig {
        capabilities: vec![CapabilityModifier::Require(3)],
        cpuid: vec![signature, brand],
        msrs: vec![msr],
    });
    let ended = build(&config, |a| {
        cpuid(a, 1, 0)?;
        a.mov(ecx, SYSENTER_CS)?;
        a.rdmsr()?;
        print_eax(a)?;
        reset(a)
    })
    .run();
    let [signature, brand, msr] = words(&ended.output)[..] else {
        panic!("{:?}", ended.output);
    };
    assert_eq!((signature & 0xf, brand & 0xff, msr), (0xa, 0x5a, 0x1234));
}

fn what_kvm_lacks_is_named() {
    let leaf = CpuidModifier {
        leaf: 0x1234_5678,
        subleaf: 0x9a,
        flags: 0,
        register: CpuidRegister::Eax,
        mask: 1,
        value: 1,
    };
    let msr = MsrModifier {
        index: 0x1234_5678,
        mask: 1,
        value: 1,
    };
    let default = CpuConfig::default;
    for (cpu_config, parts) in [
        (
            CpuConfig {
                cpuid: vec![leaf],
                ..default()
            },
            ["0x12345678", "0x9a"],
        ),
        (
            CpuConfig {
                msrs: vec![msr],
                ..default()
            },
            ["MSR 0x12345678", "cannot read"],
        ),
        (
            CpuConfig {
                capabilities: vec![CapabilityModifier::Require(0xbeef)],
                ..default()
            },
            ["0xbeef", "lacks"],
        ),
    ] {
        let config = config().with_cpu_config(cpu_config);
        let Err(error) = Machine::try_build(&config, payload(), RateLimit::default()) else {
            panic!("it was built: {parts:?}");
        };
        assert!(matches!(error, BuildError::CpuConfig(_)), "{error}");
        let text = error.to_string();
        assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        assert!(error.source().is_none());
    }
    // What mote asks for and KVM has is not missed when it is dropped.
    let config = config().with_cpu_config(CpuConfig {
        capabilities: vec![CapabilityModifier::Drop(3)],
        ..default()
    });
    drop(Machine::try_build(&config, payload(), RateLimit::default()).unwrap());
}

fn serial_limit() {
    let code = assemble(MODE, |a| {
        let mut next = a.create_label();
        a.mov(edx, SERIAL)?;
        a.xor(eax, eax)?;
        a.set_label(&mut next)?;
        a.out(dx, al)?;
        a.inc(al)?;
        a.jnz(next)?;
        reset(a)
    });
    let payload = Payload::Code {
        bytes: code,
        gpa: CODE,
        mode: MODE,
    };
    let limit = RateLimit {
        // No refill for as long as anything lasts.
        bandwidth: Bucket::new(60, 1 << 40, 40),
        ops: None,
    };
    let machine = Machine::try_build(&config(), payload, limit).unwrap();
    let port = machine.vm.serial_port().unwrap();
    let ended = machine.run();
    assert_eq!(ended.output, (0..100).collect::<Vec<u8>>());
    let counters = port.counters();
    assert_eq!((counters.writes, counters.rate_limited), (256, 156));
    assert_eq!((counters.missed_writes, counters.errors), (0, 0));
}

fn exits_are_counted() {
    let machine = build(&config_of(2, 16 << 20), |a| {
        for _ in 0..5 {
            a.mov(eax, dword_ptr(layout::VIRTIO_MMIO_START))?;
        }
        for _ in 0..4 {
            a.mov(dword_ptr(layout::VIRTIO_MMIO_START + 0x14), eax)?;
        }
        a.mov(edx, 0x1234)?;
        for _ in 0..3 {
            a.in_(al, dx)?;
        }
        for _ in 0..2 {
            a.out(dx, al)?;
        }
        reset(a)
    });
    let exits = machine.vm.exits();
    assert_eq!(exits.total(), ExitCounts::default());
    machine.run();
    let counts: Vec<ExitCounts> = exits.per_vcpu().collect();
    let expected = ExitCounts {
        mmio_read: 5,
        mmio_write: 4,
        io_in: 3,
        // With the one that resets.
        io_out: 3,
        // However often it was kicked.
        interrupted: counts[0].interrupted,
        ..ExitCounts::default()
    };
    assert_eq!(counts[0], expected);
    assert_eq!(counts[1].total(), counts[1].interrupted);
    assert_eq!(counts.len(), 2);
    assert_eq!(exits.total().io_in, 3);
}
