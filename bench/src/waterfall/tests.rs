use super::build::{Mark, Report, Watched};
use super::compare::Comparison;
use super::console::Console;
use super::step::Step;
use super::text::WIDTH;
use super::*;

/// Nanoseconds of a clock that has run for a while.
const BEGAN: u64 = 5_000_000_000;

fn watched(exited: u64, gone: Option<u64>) -> Watched {
    Watched {
        command: ["mote", "run", "--", "true"].map(str::to_owned).to_vec(),
        began: BEGAN,
        exited: BEGAN + exited,
        gone: gone.map(|gone| BEGAN + gone),
        status: 0,
        emulated: None,
    }
}

fn marks(all: &[(Step, u64)]) -> Vec<Mark> {
    let mark = |(step, at): &(Step, u64)| Mark {
        step: step.clone(),
        at: BEGAN + at,
    };
    all.iter().map(mark).collect()
}

/// A boot as it was seen, with the times scaled.
fn boot(scale: u64) -> Waterfall {
    let all = [
        (Step::Exec, 500_000),
        (Step::Arguments, 600_000),
        (Step::Entry, 2_000_000),
        (Step::Output, 40_000_000),
        (Step::Place("serial port".into()), 20_000_000),
        (Step::Init, 30_000_000),
        (Step::Driver("entropy".into()), 22_000_000),
        (Step::Driver("disk".into()), 24_000_000),
        (Step::Command, 35_000_000),
        (Step::Mark(7), 36_000_000),
        (Step::Ended, 41_000_000),
        (Step::TakenDown, 41_500_000),
        // A kernel that looks again, and its init running.
        (Step::Place("IOAPIC".into()), 31_000_000),
    ];
    let all: Vec<_> = all
        .iter()
        .map(|(step, at)| (step.clone(), at * scale))
        .collect();
    let facts = Facts {
        kernel: Some(Kernel {
            path: "/vmlinuz".into(),
            kind: KernelKind::Packaged,
            unpacked: false,
            unpacks_itself: false,
        }),
        initrd: Some(Initrd {
            bytes: 3 << 20,
            default: true,
            made: false,
        }),
        memory: 64 << 20,
        cpus: 1,
        printed: Printed {
            bytes: 3000,
            kernel_bytes: 2900,
        },
        places: vec![Place {
            name: "serial port".into(),
            accesses: 6000,
            span: 21.0,
            busy: 9.0,
        }],
        ..Facts::default()
    };
    Waterfall::new(
        "1.2.3",
        watched(42_000_000 * scale, Some(44_000_000 * scale)),
        Report {
            marks: marks(&all),
            origin: Origin::Boot,
            facts,
        },
    )
}

/// Without a gap, and in order.
fn check(waterfall: &Waterfall) {
    let mut end = 0.0_f64;
    for phase in &waterfall.phases {
        assert!((phase.start - end).abs() < 1e-9, "{phase:?}");
        assert!(phase.ms >= 0.0, "{phase:?}");
        end = phase.start + phase.ms;
    }
    let sum: f64 = waterfall.phases.iter().map(|phase| phase.ms).sum();
    assert!((sum - waterfall.total).abs() < 1e-6, "{sum}");
    let slowest = waterfall.phases.iter().filter(|phase| phase.slowest);
    assert_eq!(slowest.count(), 1);
    let mut ids: Vec<_> = waterfall.phases.iter().map(|phase| &phase.id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), waterfall.phases.len());
    for line in waterfall.text().lines() {
        assert!(line.chars().count() <= WIDTH, "{line}");
    }
}

#[test]
fn phases_follow_each_other_and_add_up() {
    let waterfall = boot(1);
    check(&waterfall);
    let ids: Vec<_> = waterfall.phases.iter().map(|phase| &phase.id[..]).collect();
    assert_eq!(
        ids,
        [
            "exec",
            "arguments",
            "entry",
            "place-serial-port",
            "driver-entropy",
            "driver-disk",
            "init",
            "place-ioapic",
            "command",
            "mark-7",
            "output",
            "ended",
            "taken-down",
            "exit",
            "gone"
        ]
    );
    let part = |id: &str| waterfall.phase(id).unwrap().part;
    assert_eq!(part("init"), Part::Kernel);
    assert_eq!(part("place-ioapic"), Part::Init);
    assert_eq!(part("mark-7"), Part::Program);
    assert_eq!(
        (part("ended"), part("taken-down")),
        (Part::Program, Part::End)
    );
    assert_eq!(waterfall.total, 44.0);
    assert!((waterfall.part(Part::Kernel) - 28.0).abs() < 1e-9);
    assert!(waterfall.phase("place-serial-port").unwrap().slowest);
    assert_eq!(waterfall.unseen, [""; 0]);
}

#[test]
fn a_start_of_which_little_is_known_is_shown_all_the_same() {
    let report = Report {
        marks: marks(&[(Step::Exec, 1000)]),
        ..Report::default()
    };
    let waterfall = Waterfall::new("1", watched(2000, None), report);
    check(&waterfall);
    assert!(
        waterfall.unseen[0].contains("no vCPU"),
        "{:?}",
        waterfall.unseen
    );
    assert_eq!(waterfall.advice, []);
    // Whoever watches may be late, and clocks may be wrong.
    let report = Report {
        marks: marks(&[(Step::Entry, 5000), (Step::Exec, 0)]),
        ..Report::default()
    };
    let early = Watched {
        began: BEGAN + 3000,
        ..watched(1000, Some(500))
    };
    check(&Waterfall::new("1", early, report));
    let all = Waterfall::new("1", watched(0, Some(0)), Report::default());
    check(&all);
    assert_eq!(all.total, 0.0);
}

#[test]
fn who_was_not_seen_to_begin_gets_no_time() {
    let all = [(Step::Entry, 10), (Step::Output, 50), (Step::Ended, 70)];
    let report = Report {
        marks: marks(&all),
        ..Report::default()
    };
    let waterfall = Waterfall::new("1", watched(80, Some(90)), report);
    let part = |id: &str| waterfall.phase(id).unwrap().part;
    assert_eq!(
        (part("output"), part("ended")),
        (Part::Kernel, Part::Program)
    );
    assert!(waterfall.unseen[0].contains("when init began"));
}

#[test]
fn advice_is_about_what_was_measured() {
    let options = |waterfall: &Waterfall| -> Vec<String> {
        let advice = waterfall.advice.iter();
        advice.map(|advice| advice.option.clone()).collect()
    };
    let waterfall = boot(1);
    let all = options(&waterfall);
    for option in [
        "template",
        "build.sh",
        "--console virtio",
        "quiet",
        "--initrd",
        "fewer devices",
    ] {
        assert!(all.iter().any(|known| known.contains(option)), "{all:?}");
    }
    assert!(
        !all.iter()
            .any(|option| option.contains("--pci") || option.contains("memory")),
        "{all:?}"
    );
    let template = &waterfall.advice[0];
    assert!((template.ms - 33.0).abs() < 1e-9, "{template:?}");
    for advice in &waterfall.advice {
        assert!(
            advice.ms > 0.0 && advice.ms <= waterfall.total,
            "{advice:?}"
        );
    }
    // Of a guest without all that, none of it is said.
    let plain = Waterfall {
        facts: Facts::default(),
        phases: waterfall
            .phases
            .iter()
            .filter(|phase| !phase.id.starts_with("driver-"))
            .cloned()
            .collect(),
        ..waterfall
    };
    assert_eq!(advice::of(&plain), []);
}

#[test]
fn text_is_as_wide_as_a_terminal() {
    let mut waterfall = boot(1_000_000);
    waterfall.emulated = Some("the CPU says TCG".into());
    waterfall.unseen = vec!["word ".repeat(60)];
    let text = waterfall.text();
    for line in text.lines() {
        assert!(line.chars().count() <= WIDTH, "{line}");
    }
    assert!(text.contains("EMULATED HOST (the CPU says TCG)"), "{text}");
    let slowest = text
        .lines()
        .filter(|line| line.starts_with("* ") && line.contains("kernel"));
    assert_eq!(slowest.count(), 1, "{text}");
}

#[test]
fn output_is_told_from_messages_of_the_kernel() {
    let mut console = Console::default();
    let line = b"[    0.001000] Memory: 100K\r\n[    0.00";
    console.printed(line, 2_000_000);
    console.printed(b"2000] Run /init as init process\r\n", 2_500_000);
    assert_eq!(console.heard(0).output, None);
    console.printed(b"[", 3_000_000);
    console.printed(b"   ", 3_100_000);
    console.printed(b" x", 3_200_000);
    console.printed(b"y\n", 3_300_000);
    console.printed(b"$ ", 9_000_000);
    let heard = console.heard(0);
    assert!(!heard.is_first);
    assert_eq!(heard.printed.bytes, 29 + 42 + 10);
    assert_eq!(heard.printed.kernel_bytes, 29 + 42);
    assert_eq!(
        (heard.output, heard.last_output),
        (Some(3_000_000), Some(9_000_000))
    );
    // The first message was made a millisecond before the second one, which had begun by then.
    assert_eq!(
        heard.lines,
        [("line-memory", 1_000_000), ("line-init", 2_000_000)]
    );
    // None is made before the guest runs.
    assert_eq!(console.heard(1_700_000).lines[0].1, 1_700_000);
}

#[test]
fn messages_from_before_the_console_are_put_where_they_were_made() {
    let mut console = Console::default();
    let clock = [
        (0.0, "Linux"),
        (0.02, "Memory: 9"),
        (0.08, "smp: Brought up 1"),
        (0.1, "console"),
    ];
    for (seconds, text) in clock {
        // A byte at a time.
        for byte in format!("[    {seconds:.6}] {text}\n").bytes() {
            console.printed(&[byte], 1_100_000_000);
        }
    }
    // A clock that is slow by a tenth.
    console.printed(b"[    1.000000] Run /init as init process\n", 2_100_000_000);
    let heard = console.heard(1_000_000_000);
    assert_eq!(heard.output, None);
    assert_eq!(
        heard.lines,
        [
            ("line-memory", 1_020_000_000),
            ("line-smp", 1_080_000_000),
            ("line-init", 2_100_000_000)
        ]
    );
}

#[test]
fn a_console_takes_anything() {
    let mut console = Console::default();
    console.printed(b"", 1);
    console.printed(b"\r\n", 2);
    assert_eq!(console.heard(0).output, None);
    console.printed(&[b'['; 5000], 3);
    console.printed(&[0xff; 5000], 4);
    for text in [
        "[1] done\n",
        "[99999999999999999999.9] x\n",
        "[.] y\n",
        "[ 1.2",
        "] z",
    ] {
        console.printed(text.as_bytes(), 5);
    }
    assert_eq!(console.heard(0).output, Some(3));
    let many = "[    1.000000] Memory: 1\n".repeat(1000);
    console.printed(many.as_bytes(), 9);
    assert_eq!(console.heard(0).lines.len(), 64);
    console.printed(many.repeat(10).as_bytes(), 9);
    assert_eq!(console.heard(0).lines.len(), 64);
    let mut prompt = Console::default();
    prompt.printed(b"[", 7);
    assert_eq!(
        (prompt.heard(0).output, prompt.heard(0).is_first),
        (Some(7), true)
    );
}

#[test]
fn sides_are_compared_phase_by_phase() {
    let one: Vec<_> = [10, 11, 12].map(boot).into();
    let mut other: Vec<_> = [20, 21, 22].map(boot).into();
    for run in &mut other {
        run.phases.retain(|phase| phase.id != "driver-disk");
        run.phases[1].id = "other".into();
    }
    other[0].phases[2].ms = one[0].phases[2].ms;
    let comparison = Comparison::new(["--pci", "x.json"], &one, &other);
    let row = |id: &str| comparison.phases.iter().find(|row| row.id == id).unwrap();
    let exec = row("exec");
    assert_eq!(exec.a.unwrap().median, 5.5);
    assert_eq!((exec.difference, exec.real), (Some(5.0), Some(true)));
    assert_eq!(row("entry").real, Some(false));
    assert_eq!(
        (row("driver-disk").b, row("driver-disk").real),
        (None, None)
    );
    assert_eq!(row("other").a, None);
    let place = |id: &str| comparison.phases.iter().position(|row| row.id == id);
    assert!(place("exec") < place("other") && place("other") < place("entry"));
    assert_eq!(comparison.total.real, Some(true));
    let text = comparison.text();
    assert!(
        text.lines().all(|line| line.chars().count() <= WIDTH),
        "{text}"
    );
    // One run says nothing of the spread.
    let few = Comparison::new(["a", "b"], &one[..1], &other[..1]);
    assert_eq!(
        (few.total.real, few.total.difference.is_some()),
        (None, true)
    );
}

/// `UPDATE=1 cargo test -p bench` writes it.
#[test]
fn the_schema_is_published() {
    let published = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../docs/bench-waterfall.schema.json"
    );
    let schema = schemars::schema_for!(Waterfall);
    let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(published, &text).unwrap();
    }
    assert_eq!(std::fs::read_to_string(published).unwrap(), text);
    let known = serde_json::to_value(boot(1)).unwrap();
    assert_eq!(serde_json::from_value::<Waterfall>(known).unwrap(), boot(1));
}
