//! Tiny guests: each exit, each mode, starting and stopping.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use arch::layout;
use arch::regs::CpuMode::{self, Long, Protected, Real};
use tests::DEADLINE;
use tests::tiny::{
    self, CODE, Machine, assemble, assemble_at, code_asm::*, config, config_of, out, reset, run,
};
use vm_memory::{Bytes, GuestAddress};
use vmm::{StopReason, StopRequest};

use crate::Case;

const MODES: [CpuMode; 3] = [Real, Protected, Long];
/// A page that nothing else uses.
const TABLE: u32 = 0x3000;
const SERIAL: u32 = layout::SERIAL_PORT as u32;

pub(crate) const CASES: &[Case] = &[
    ("port_output_in_each_mode", port_output_in_each_mode),
    ("string_output", string_output),
    ("unclaimed_ports_read_as_ones", unclaimed_ports_read_as_ones),
    ("serial_input_is_echoed", serial_input_is_echoed),
    ("mmio_reads_and_writes", mmio_reads_and_writes),
    ("ioapic_registers", ioapic_registers),
    (
        "an_interrupt_wakes_a_halted_guest",
        an_interrupt_wakes_a_halted_guest,
    ),
    (
        "a_halted_guest_can_be_stopped",
        a_halted_guest_can_be_stopped,
    ),
    (
        "a_spinning_guest_can_be_stopped",
        a_spinning_guest_can_be_stopped,
    ),
    (
        "many_spinning_vcpus_can_be_stopped",
        many_spinning_vcpus_can_be_stopped,
    ),
    ("paused_vcpus_stand_still", paused_vcpus_stand_still),
    (
        "a_machine_that_never_ran_goes_away",
        a_machine_that_never_ran_goes_away,
    ),
    ("power_off", power_off),
    ("resets", resets),
    ("panic_report", panic_report),
    ("triple_fault", triple_fault),
    (
        "code_in_no_memory_is_a_crash_with_a_report",
        code_in_no_memory,
    ),
    ("sixty_four_vcpus_start_each_other", sixty_four_vcpus),
    ("memory_above_the_hole", memory_above_the_hole),
    ("boot_marks", boot_marks),
    (
        "machines_leave_nothing_behind",
        machines_leave_nothing_behind,
    ),
    ("random_accesses_do_no_harm", random_accesses_do_no_harm),
];

fn port_output_in_each_mode() {
    for mode in MODES {
        let ended = run(mode, |a| {
            for &byte in b"hi\n" {
                out(a, layout::SERIAL_PORT, byte)?;
            }
            reset(a)
        });
        assert_eq!(ended.output, b"hi\n", "{mode:?}");
        assert!(
            matches!(ended.reason, StopReason::Reset),
            "{mode:?}: {:?}",
            ended.reason
        );
    }
}

/// KVM hands over several items of a string instruction in one exit.
fn string_output() {
    let text = b"written by one instruction";
    let mode = Protected;
    let mut code = assemble(mode, |a| {
        a.mov(esi, (CODE + 0x100) as u32)?;
        a.mov(ecx, text.len() as u32)?;
        a.mov(edx, SERIAL)?;
        a.rep().outsb()?;
        reset(a)
    });
    code.resize(0x100, 0xf4);
    code.extend(text);
    let ended = Machine::build(&config(), mode, code).run();
    assert_eq!(ended.output, text);
}

fn unclaimed_ports_read_as_ones() {
    let ended = run(Protected, |a| {
        a.mov(edx, 0x1234)?;
        a.in_(eax, dx)?;
        a.out(dx, eax)?;
        for _ in 0..4 {
            a.mov(edx, SERIAL)?;
            a.out(dx, al)?;
            a.shr(eax, 8)?;
        }
        reset(a)
    });
    assert_eq!(ended.output, [0xff; 4]);
}

fn serial_input_is_echoed() {
    let mode = Protected;
    let code = assemble(mode, |a| {
        // Receive interrupt on: the port takes input only then. FIFO on.
        out(a, layout::SERIAL_PORT + 1, 1)?;
        out(a, layout::SERIAL_PORT + 2, 1)?;
        let mut poll = a.create_label();
        a.set_label(&mut poll)?;
        a.mov(edx, SERIAL + 5)?;
        a.in_(al, dx)?;
        a.test(al, 1)?;
        a.jz(poll)?;
        a.mov(edx, SERIAL)?;
        a.in_(al, dx)?;
        a.out(dx, al)?;
        a.cmp(al, u32::from(b'q'))?;
        a.jne(poll)?;
        reset(a)
    });
    let mut machine = Machine::build(&config(), mode, code);
    let text: Vec<u8> = (0..2000)
        .map(|i| b'a' + (i % 7) as u8)
        .chain(*b"q")
        .collect();
    machine.type_in(&text);
    assert_eq!(machine.run().output, text);
}

fn mmio_reads_and_writes() {
    let start = layout::VIRTIO_MMIO_START;
    let ended = run(Protected, |a| {
        // The magic number of a virtio-mmio slot, then memory that is nobody's.
        for address in [start, start + 3 * layout::VIRTIO_MMIO_SIZE, 0xe000_0000] {
            a.mov(eax, dword_ptr(address))?;
            a.mov(dword_ptr(address + 0x70), eax)?;
            a.mov(edx, SERIAL)?;
            for _ in 0..4 {
                a.out(dx, al)?;
                a.shr(eax, 8)?;
            }
        }
        reset(a)
    });
    assert_eq!(ended.output, b"virtvirt\xff\xff\xff\xff");
}

fn ioapic_registers() {
    let ended = run(Protected, |a| {
        a.mov(dword_ptr(layout::IOAPIC_START), 1)?;
        a.mov(eax, dword_ptr(layout::IOAPIC_START + 0x10))?;
        a.mov(edx, SERIAL)?;
        a.out(dx, al)?;
        a.shr(eax, 16)?;
        a.out(dx, al)?;
        reset(a)
    });
    let last = layout::ioapic_pins(tests::tiny::VIRTIO_DEVICES) - 1;
    assert_eq!(ended.output, [0x20, last as u8], "version and last input");
}

/// The guest waits for the serial port's transmitter interrupt with HLT.
fn an_interrupt_wakes_a_halted_guest() {
    const VECTOR: u32 = 0x30;
    const HANDLER: u32 = CODE as u32 + 0x400;
    const IDT: u32 = CODE as u32 + 0x800;
    let mode = Protected;
    let mut code = assemble(mode, |a| {
        let mut wait = a.create_label();
        a.mov(esp, CODE as u32)?;
        // One gate, and the descriptor table's register.
        let gate = IDT + VECTOR * 8;
        a.mov(dword_ptr(gate), HANDLER & 0xffff)?;
        a.mov(word_ptr(gate + 2), cs)?;
        a.mov(dword_ptr(gate + 4), 0x8e00 | HANDLER & 0xffff_0000)?;
        a.mov(word_ptr(IDT - 6), 0x7ff)?;
        a.mov(dword_ptr(IDT - 4), IDT)?;
        a.lidt(ptr(IDT - 6))?;
        // Local APIC on; IOAPIC: the serial port's input to vCPU 0.
        a.mov(dword_ptr(layout::LAPIC_START + 0xf0), 0x1ff)?;
        a.mov(
            dword_ptr(layout::IOAPIC_START),
            0x10 + 2 * layout::SERIAL_GSI,
        )?;
        a.mov(dword_ptr(layout::IOAPIC_START + 0x10), VECTOR)?;
        out(a, layout::SERIAL_PORT + 1, 2)?;
        a.sti()?;
        a.set_label(&mut wait)?;
        a.hlt()?;
        a.jmp(wait)
    });
    code.resize((u64::from(HANDLER) - CODE) as usize, 0xf4);
    code.extend(assemble_at(HANDLER.into(), mode, |a| {
        out(a, layout::SERIAL_PORT, b'!')?;
        reset(a)
    }));
    let ended = Machine::build(&config(), mode, code).run();
    assert_eq!(ended.output, b"!");
    assert!(matches!(ended.reason, StopReason::Reset));
}

/// Writes a mark and then does the same for ever.
fn mark_and(write: impl Fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> Vec<u8> {
    assemble(Protected, |a| {
        out(a, layout::BOOT_TIMER_PORT, 1)?;
        let mut forever = a.create_label();
        a.set_label(&mut forever)?;
        write(a)?;
        a.jmp(forever)
    })
}

fn stop_after_mark(code: Vec<u8>, cpus: u32) {
    let machine = Machine::build(&config_of(cpus, 16 << 20), Protected, code);
    let stopper = machine.vm.stopper();
    let ended = machine.run_with(|_| stopper.stop(StopRequest::Quit));
    assert!(matches!(
        ended.reason,
        StopReason::Requested(StopRequest::Quit)
    ));
}

fn a_halted_guest_can_be_stopped() {
    stop_after_mark(mark_and(CodeAssembler::hlt), 1);
    stop_after_mark(
        mark_and(|a| {
            a.cli()?;
            a.hlt()
        }),
        2,
    );
}

fn a_spinning_guest_can_be_stopped() {
    // Stops that hit at different points of the way into the guest.
    for _ in 0..30 {
        stop_after_mark(mark_and(CodeAssembler::nop), 1);
    }
    for _ in 0..30 {
        let machine = Machine::build(&config(), Protected, mark_and(CodeAssembler::nop));
        let stopper = machine.vm.stopper();
        let started = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !started.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
                stopper.stop(StopRequest::Quit);
            });
            started.store(true, Ordering::Relaxed);
            machine.run();
        });
    }
}

/// Code for all vCPUs: the first one starts the others and all of them spin, each after it has
/// counted itself at `COUNTER`.
fn start_all(finish: impl Fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> Vec<u8> {
    let icr = layout::LAPIC_START + 0x300;
    let mut code = assemble(Protected, |a| {
        // Local APIC on; INIT and twice start-up to all but self.
        a.mov(dword_ptr(layout::LAPIC_START + 0xf0), 0x1ff)?;
        a.mov(dword_ptr(icr), 0x000c_4500)?;
        a.mov(dword_ptr(icr), 0x000c_4600 | AP_CODE >> 12)?;
        a.mov(dword_ptr(icr), 0x000c_4600 | AP_CODE >> 12)?;
        finish(a)
    });
    code.resize((u64::from(AP_CODE) - CODE) as usize, 0xf4);
    code.extend(assemble_at(0, Real, |a| {
        let mut spin = a.create_label();
        a.xor(ax, ax)?;
        a.mov(ds, ax)?;
        a.lock().inc(dword_ptr(COUNTER))?;
        a.set_label(&mut spin)?;
        a.pause()?;
        a.jmp(spin)
    }));
    code
}

const AP_CODE: u32 = CODE as u32 + 0x1000;
const COUNTER: u32 = 0x1800;

fn wait_for_others(a: &mut CodeAssembler, cpus: u32) -> Result<(), iced_x86::IcedError> {
    let mut wait = a.create_label();
    a.set_label(&mut wait)?;
    a.pause()?;
    a.cmp(dword_ptr(COUNTER), cpus - 1)?;
    a.jne(wait)
}

fn sixty_four_vcpus() {
    for cpus in [2, 64] {
        let code = start_all(|a| {
            wait_for_others(a, cpus)?;
            reset(a)
        });
        let machine = Machine::build(&config_of(cpus, 16 << 20), Protected, code);
        let ended = machine.run();
        assert!(
            matches!(ended.reason, StopReason::Reset),
            "{cpus}: {:?}",
            ended.reason
        );
    }
}

fn many_spinning_vcpus_can_be_stopped() {
    for _ in 0..5 {
        let code = start_all(|a| {
            wait_for_others(a, 8)?;
            out(a, layout::BOOT_TIMER_PORT, 1)?;
            let mut spin = a.create_label();
            a.set_label(&mut spin)?;
            a.jmp(spin)
        });
        stop_after_mark(code, 8);
    }
}

/// The guest counts in memory, with an exit each time or without any.
fn paused_vcpus_stand_still() {
    for with_exits in [false, true] {
        let mode = Protected;
        let code = assemble(mode, |a| {
            let mut again = a.create_label();
            a.mov(edx, 0x1234)?;
            a.set_label(&mut again)?;
            a.inc(dword_ptr(TABLE))?;
            if with_exits {
                a.in_(eax, dx)?;
            }
            a.jmp(again)
        });
        let machine = Machine::build(&config(), mode, code);
        let memory = machine.vm.memory().clone();
        let count = move || memory.read_obj::<u32>(GuestAddress(TABLE.into())).unwrap();
        let handle = machine.vm.handle();
        let watcher = thread::spawn(move || {
            for round in 0..50 {
                let before = count();
                let deadline = Instant::now() + DEADLINE;
                while count() == before && Instant::now() < deadline {
                    thread::yield_now();
                }
                assert_ne!(count(), before, "{round}: it does not run");
                assert!(handle.pause());
                // Once more changes nothing.
                assert!(handle.pause());
                let paused = count();
                thread::sleep(Duration::from_millis(2));
                assert_eq!(count(), paused, "{round}");
                handle.resume();
                handle.resume();
            }
            // A paused machine can be stopped.
            assert!(handle.pause());
            handle.stopper().stop(StopRequest::Quit);
            handle
        });
        let ended = machine.run();
        let handle = watcher.join().unwrap();
        assert!(matches!(
            ended.reason,
            StopReason::Requested(StopRequest::Quit)
        ));
        // It has gone: none of this waits for anyone.
        handle.resume();
        assert!(handle.pause());
        handle.power_button().press();
        assert_eq!(handle.controls().ids(), []);
    }
}

fn a_machine_that_never_ran_goes_away() {
    for cpus in [1, 8] {
        drop(Machine::build(&config_of(cpus, 16 << 20), Real, vec![0xf4]));
    }
}

fn power_off() {
    let ended = run(Long, |a| {
        out(
            a,
            layout::ACPI_SLEEP_CONTROL_PORT,
            layout::ACPI_S5_SLEEP_TYPE << 2 | 1 << 5,
        )?;
        a.hlt()
    });
    assert!(
        matches!(ended.reason, StopReason::PowerOff),
        "{:?}",
        ended.reason
    );
}

fn resets() {
    let ended = run(Long, |a| {
        out(a, layout::ACPI_RESET_PORT, layout::ACPI_RESET_VALUE)?;
        a.hlt()
    });
    assert!(
        matches!(ended.reason, StopReason::Reset),
        "{:?}",
        ended.reason
    );
}

fn panic_report() {
    let ended = run(Long, |a| {
        out(a, layout::PVPANIC_PORT, 1)?;
        a.hlt()
    });
    assert!(
        matches!(ended.reason, StopReason::Panicked),
        "{:?}",
        ended.reason
    );
}

/// A fault for which there is no gate, nor for the fault that this causes.
fn triple_fault() {
    for mode in [Protected, Long] {
        let ended = run(mode, |a| {
            a.mov(dword_ptr(TABLE), 0)?;
            a.mov(dword_ptr(TABLE + 4), 0)?;
            a.mov(dword_ptr(TABLE + 8), 0)?;
            a.lidt(ptr(TABLE))?;
            match mode {
                Long => a.mov(eax, dword_ptr(0x7fff_0000)),
                _ => {
                    a.mov(eax, 0xfff8)?;
                    a.mov(ds, eax)
                }
            }
        });
        assert!(
            matches!(ended.reason, StopReason::TripleFault { cpu: 0 }),
            "{mode:?}: {:?}",
            ended.reason
        );
    }
}

fn code_in_no_memory() {
    let nowhere = 0xe000_0000u32;
    let ended = run(Protected, |a| {
        a.mov(ebx, 0x1234_5678)?;
        a.mov(eax, nowhere)?;
        a.jmp(eax)
    });
    let StopReason::Crashed(report) = ended.reason else {
        panic!("{:?}", ended.reason);
    };
    let regs = report.regs.unwrap();
    assert_eq!(regs.rip, u64::from(nowhere));
    assert_eq!(regs.rbx, 0x1234_5678);
    let text = report.to_string();
    assert!(
        text.contains("e0000000") && text.contains("12345678"),
        "{text}"
    );
}

fn memory_above_the_hole() {
    let mode = Long;
    let ram = 5 << 30;
    let code = assemble(mode, |a| {
        // Maps the first 2 MiB above the hole at 1 GiB.
        a.mov(rcx, layout::HIGH_RAM_START | 0x83)?;
        a.mov(qword_ptr(TABLE), rcx)?;
        a.mov(rax, cr3)?;
        a.mov(rbx, qword_ptr(rax))?;
        a.and(rbx, !0xfffi32)?;
        a.mov(qword_ptr(rbx + 8), TABLE as i32 | 3)?;
        a.mov(cr3, rax)?;
        a.mov(esi, 1u32 << 30)?;
        a.mov(dword_ptr(rsi), 0x2a)?;
        a.mov(eax, dword_ptr(rsi))?;
        a.mov(edx, SERIAL)?;
        a.out(dx, al)?;
        reset(a)
    });
    let machine = Machine::build(&config_of(1, ram), mode, code);
    let memory = machine.vm.memory().clone();
    let ended = machine.run();
    assert_eq!(ended.output, [0x2a], "{:?}", ended.reason);
    let value: u32 = memory
        .read_obj(GuestAddress(layout::HIGH_RAM_START))
        .unwrap();
    assert_eq!(value, 0x2a);
    assert!(
        memory
            .read_obj::<u8>(GuestAddress(layout::LOW_RAM_END))
            .is_err()
    );
}

fn boot_marks() {
    let ended = run(Real, |a| {
        for value in [7, 123, 255] {
            out(a, layout::BOOT_TIMER_PORT, value)?;
        }
        reset(a)
    });
    let values: Vec<u8> = ended.marks.iter().map(|mark| mark.value).collect();
    assert_eq!(values, [7, 123, 255]);
    assert!(ended.marks.is_sorted_by_key(|mark| mark.since_first_run));
}

fn machines_leave_nothing_behind() {
    let once = || drop(run(Real, reset));
    once();
    let before = tiny::resources();
    for _ in 0..20 {
        once();
    }
    // KVM's own threads end a little later.
    let deadline = Instant::now() + DEADLINE;
    while tiny::resources() != before && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(tiny::resources(), before);
}

/// A guest that writes and reads at random: ports from a linear congruential generator, and the
/// pages of the virtio-mmio slots and the IOAPIC.
fn random_accesses_do_no_harm() {
    for seed in [1u32, 0xdead_beef, 0x1357_9bdf] {
        let ended = run(Protected, |a| {
            let mut next = a.create_label();
            let mut skip = a.create_label();
            a.mov(ebx, seed)?;
            a.mov(ecx, 3000)?;
            a.set_label(&mut next)?;
            for _ in 0..2 {
                a.imul_3(ebx, ebx, 1_664_525)?;
                a.add(ebx, 1_013_904_223)?;
                a.mov(eax, ebx)?;
                a.shr(eax, 12)?;
            }
            // Ports that end the machine are left to the cases for them.
            a.mov(edx, eax)?;
            a.and(edx, 0x7ff)?;
            for port in [
                layout::I8042_COMMAND_PORT,
                layout::PVPANIC_PORT,
                layout::ACPI_SLEEP_CONTROL_PORT,
                layout::ACPI_RESET_PORT,
            ] {
                for before in 0..4 {
                    a.cmp(edx, u32::from(port) - before)?;
                    a.je(skip)?;
                }
            }
            a.out(dx, eax)?;
            a.in_(eax, dx)?;
            a.out(dx, al)?;
            a.in_(ax, dx)?;
            a.set_label(&mut skip)?;
            a.mov(esi, ebx)?;
            a.shr(esi, 8)?;
            a.and(esi, 0x7ffc)?;
            a.mov(dword_ptr(esi + layout::VIRTIO_MMIO_START as i32), ebx)?;
            a.mov(eax, dword_ptr(esi + layout::VIRTIO_MMIO_START as i32))?;
            a.and(esi, 0xffc)?;
            a.mov(dword_ptr(esi + layout::IOAPIC_START as i32), ebx)?;
            a.mov(ax, word_ptr(esi + layout::IOAPIC_START as i32 + 2))?;
            a.mov(byte_ptr(esi + layout::IOAPIC_START as i32 + 1), al)?;
            a.dec(ecx)?;
            a.jnz(next)?;
            reset(a)
        });
        assert!(
            matches!(ended.reason, StopReason::Reset),
            "{:?}",
            ended.reason
        );
    }
}
