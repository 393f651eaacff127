use std::sync::{Arc, Mutex};

use indicatif::InMemoryTerm;

use super::*;
use crate::sample;

const NAMES: [&str; 3] = ["process", "crun", "ク\u{1b}[31mラン"];

fn names() -> Vec<String> {
    NAMES.map(String::from).to_vec()
}

fn on(terminal: &InMemoryTerm, emulated: Option<&str>) -> Live {
    let target = ProgressDrawTarget::term_like_with_hz(Box::new(terminal.clone()), 255);
    Live::on_terminal(&names(), 30, emulated, target)
}

#[test]
fn a_terminal_shows_what_is_going_on() {
    let terminal = InMemoryTerm::new(20, 80);
    let mut live = on(&terminal, Some("QEMU"));
    for purpose in [Purpose::Warmup, Purpose::Sample, Purpose::Sample] {
        for row in 0..3 {
            live.begins(row, purpose);
            let mut run = sample::run(10.0 * (row + 1) as f64);
            run.purpose = purpose;
            run.failure = (row == 2).then(|| "it hangs".into());
            live.ran(row, &run);
        }
    }
    live.begins(1, Purpose::Sample);
    let shown = terminal.contents();
    let lines: Vec<&str> = shown.lines().collect();
    assert_eq!(lines[0], "EMULATED HOST: QEMU");
    assert!(lines[1].contains("9/30 runs, 0s so far"), "{shown}");
    assert_eq!(lines[2], "now: crun, round 4");
    assert_eq!(
        lines[3..],
        [
            "process          3 runs  exit p50    10.00 ms",
            "crun             3 runs  exit p50    20.00 ms",
            "ク?[31mラン      3 runs, 3 FAILED",
        ],
        "{shown}"
    );
    live.say("left behind: nothing");
    live.begins(1, Purpose::Traced);
    let shown = terminal.contents();
    assert!(
        shown.starts_with("left behind: nothing\nEMULATED HOST"),
        "{shown}"
    );
    assert!(shown.contains("now: crun, round 4, traced"), "{shown}");
    live.finish();
    assert_eq!(terminal.contents(), "left behind: nothing");
}

#[test]
fn a_small_terminal_is_enough() {
    let terminal = InMemoryTerm::new(3, 12);
    let mut live = on(&terminal, None);
    for _ in 0..10 {
        live.begins(0, Purpose::Sample);
        live.ran(0, &sample::run(1.0));
    }
    // Nor does a row that there is not do harm.
    live.begins(7, Purpose::Sample);
    live.ran(7, &sample::run(1.0));
    drop(live);
    assert_eq!(terminal.contents(), "");
}

/// What was written.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn without_a_terminal_there_are_ten_lines() {
    let written = Written::default();
    let mut live = Live::in_lines(&names(), 30, Some("QEMU"), Box::new(written.clone()));
    for count in 0..30 {
        live.begins(count % 3, Purpose::Sample);
        let mut run = sample::run(1.0);
        run.failure = (count == 20).then(|| "it hangs".into());
        live.ran(count % 3, &run);
    }
    live.say("left behind: a\u{7}");
    live.finish();
    let written = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
    let lines: Vec<&str> = written.lines().collect();
    assert_eq!(lines.len(), 12, "{written}");
    assert_eq!(lines[0], "EMULATED HOST: QEMU");
    assert!(lines[1].starts_with("3 of 30 runs, 0 seconds"), "{written}");
    assert!(
        lines[10].starts_with("30 of 30 runs, 1 FAILED, "),
        "{written}"
    );
    assert_eq!(lines[11], "left behind: a?");
}
