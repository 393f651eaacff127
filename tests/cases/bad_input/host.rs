//! A host without KVM, and guests that KVM gives up.

use tests::executable::{program, with_symbol};
use tests::monitor::Ended;
use tests::sandbox::{KvmDevice, Sandbox};
use tests::tiny::code_asm::*;

use super::{assert_says, run};
use crate::Case;

/// Cases that change what is at `/dev/kvm`.
pub(crate) const CASES: &[Case] = &[
    ("no_kvm_device", no_kvm_device),
    ("no_permission_on_the_kvm_device", no_permission),
    ("kvm_device_is_something_else", not_kvm),
];

/// Cases that crash a guest.
pub(crate) const CRASH_CASES: &[Case] = &[
    ("code_in_no_memory", code_in_no_memory),
    ("instruction_that_kvm_cannot_emulate", no_emulation),
    ("triple_fault", triple_fault),
];

/// In the GiB that a kernel finds mapped, and no memory of a guest of the default size.
const NOWHERE: u32 = 0x3f00_0000;

fn no_kvm_device() {
    let sandbox = Sandbox::new();
    // A virtio console is on the event loop by then, which nobody serves yet.
    for options in [&[][..], &["--console", "virtio"]] {
        let command = sandbox.mote_with_kvm(&KvmDevice::Missing, run(&sandbox, options));
        let parts = ["/dev/kvm does not exist", "load the kvm-intel or kvm-amd"];
        sandbox.run(command).expect_error(125, &parts);
    }
}

fn no_permission() {
    let sandbox = Sandbox::new();
    let device = sandbox.path("device");
    std::fs::write(&device, "").unwrap();
    let command = sandbox.mote_as_nobody(Some(&KvmDevice::File(&device)), run(&sandbox, &[]));
    let parts = ["No permission to use /dev/kvm", "usermod -aG kvm"];
    sandbox.run(command).expect_error(125, &parts);
}

fn not_kvm() {
    let sandbox = Sandbox::new();
    let file = sandbox.file("file", "not a device");
    for device in ["/dev/null", "/dev/zero", &file] {
        let command = sandbox.mote_with_kvm(&KvmDevice::File(device), run(&sandbox, &[]));
        let parts = ["/dev/kvm is not KVM's device", "load the kvm-intel"];
        sandbox.run(command).expect_error(125, &parts);
    }
}

/// Runs a kernel that crashes.
fn crash(kernel: &[u8], arguments: &[&str]) -> Ended {
    let sandbox = Sandbox::new();
    let kernel = sandbox.file("crashing", kernel);
    let arguments: Vec<&str> = ["--kernel", &kernel]
        .into_iter()
        .chain(arguments.iter().copied())
        .collect();
    let command = sandbox.mote(run(&sandbox, &arguments));
    sandbox.run(command).expect_status(134)
}

fn code_in_no_memory() {
    let kernel = program(|a| {
        a.mov(ebx, 0x1234_5678)?;
        a.mov(eax, NOWHERE)?;
        a.jmp(rax)
    });
    let ended = crash(&kernel, &["--id", "one"]);
    let parts = [
        "mote: guest one crashed: KVM internal error",
        "on vCPU 0\n",
        "RIP 000000003f000000",
        "instruction: (cannot be read)",
        "RBX 0000000012345678",
        "CR3 ",
        "`mote doctor`",
        "run with -v",
    ];
    assert_says(&ended, &parts);
}

fn no_emulation() {
    // What reads a device is emulated, and nobody needs this instruction for that.
    let kernel = program(|a| {
        a.mov(ebx, NOWHERE)?;
        a.popcnt(eax, dword_ptr(rbx))?;
        a.hlt()
    });
    let kernel = with_symbol(kernel, "start_of_kernel");
    let ended = crash(&kernel, &["-v"]);
    let parts = [
        "crashed: KVM internal error 1 (it cannot emulate this instruction)",
        "RIP 000000000010007d",
        "instruction: f3 0f b8 03",
        "RBX 000000003f000000",
        "RIP is in start_of_kernel+0x5\n",
        "what to do: ",
    ];
    assert_says(&ended, &parts);
    assert!(!ended.stderr.contains("run with -v"), "{ended:#?}");
}

/// There is no interrupt descriptor table that would have an entry.
fn triple_fault() {
    let kernel = program(|a| a.ud2());
    let parts = ["mote: the guest crashed: triple fault on vCPU 0"];
    crash(&kernel, &[]).expect_error(134, &parts);
}
