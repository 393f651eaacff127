//! What an exit costs: a tiny guest that makes many of one kind, by the marks before and after them.
//!
//! ```text
//! cargo bench -p tests --bench exits -- [--rounds N] [--exits N]
//! ```
//! The accesses go where no device is, so that all of it is KVM's, and the vCPU thread's own. The
//! least of all rounds is what the host can do; the rest is what else it did.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use arch::layout;
use arch::regs::CpuMode::Protected;
use iced_x86::IcedError;
use tests::tiny::{Machine, assemble, code_asm::*, config, out, reset};

/// A port without a device.
const PORT: u32 = 0x1234;
/// An address without a device.
const NOWHERE: u32 = 0xe800_0000;

/// What is done again and again: EDX is [`PORT`].
type Access = fn(&mut CodeAssembler) -> Result<(), IcedError>;

const KINDS: [(&str, Access); 4] = [
    ("port write", |a| a.out(dx, al)),
    ("port read", |a| a.in_(al, dx)),
    ("MMIO write", |a| a.mov(dword_ptr(NOWHERE), eax)),
    ("MMIO read", |a| a.mov(eax, dword_ptr(NOWHERE))),
];

fn main() {
    let mut rounds = 20;
    let mut exits = 100_000;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--rounds" => rounds = arguments.next().unwrap().parse().unwrap(),
            "--exits" => exits = arguments.next().unwrap().parse().unwrap(),
            "--bench" => {}
            other => panic!("there is no option {other:?}"),
        }
    }
    println!(
        "{:12} {:>8} {:>8} {:>8}   nanoseconds an exit, {rounds} rounds of {exits}",
        "", "minimum", "median", "p90"
    );
    for (name, access) in KINDS {
        let mut times: Vec<f64> = (0..rounds).map(|_| measure(exits, access)).collect();
        times.sort_by(f64::total_cmp);
        let at = |percent: usize| times[(times.len() - 1) * percent / 100];
        println!("{name:12} {:8.1} {:8.1} {:8.1}", at(0), at(50), at(90));
    }
}

/// Nanoseconds for one of them.
fn measure(exits: u32, access: Access) -> f64 {
    let code = assemble(Protected, |a| {
        let mut again = a.create_label();
        out(a, layout::BOOT_TIMER_PORT, 1)?;
        a.mov(ecx, exits)?;
        a.mov(edx, PORT)?;
        a.set_label(&mut again)?;
        access(a)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        out(a, layout::BOOT_TIMER_PORT, 2)?;
        reset(a)
    });
    let ended = Machine::build(&config(), Protected, code).run();
    let [start, end] = ended.marks[..] else {
        panic!("{ended:?}");
    };
    (end.at - start.at).as_secs_f64() * 1e9 / f64::from(exits)
}
