//! A waterfall as text, at most [`WIDTH`] columns wide.

use std::fmt::Write;

use super::{Origin, Part, Phase, Waterfall};

/// Columns of a terminal that all of it fits in.
pub const WIDTH: usize = 100;
const NAME: usize = 48;
const BAR: usize = 20;

impl Waterfall {
    /// All of it, for a terminal.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let origin = match self.origin {
            Origin::Boot => "from a boot",
            Origin::Template => "from a template",
            Origin::Pool => "from a pool",
        };
        let title = format!(
            "{:.3} ms from exec until nothing is left, {origin}, status {}",
            self.total, self.status
        );
        paragraph(&mut text, &title, "");
        if let Some(why) = &self.emulated {
            paragraph(
                &mut text,
                &format!("EMULATED HOST ({why}): not the times of hardware"),
                "",
            );
        }
        let _ = writeln!(text, "\n  {:>10} {:>10}  phase", "start, ms", "ms");
        let mut part = None;
        for phase in &self.phases {
            if part != Some(phase.part) {
                part = Some(phase.part);
                let _ = writeln!(
                    text,
                    "  {:>10} {:>10.3}  {}",
                    "",
                    self.part(phase.part),
                    phase.part.name().to_uppercase()
                );
            }
            self.row(&mut text, phase);
        }
        if let Some(slowest) = self.phases.iter().find(|phase| phase.slowest) {
            let share = if self.total > 0.0 {
                slowest.ms / self.total * 100.0
            } else {
                0.0
            };
            let _ = writeln!(text, "* the slowest phase: {share:.0} % of all");
        }
        self.parts(&mut text);
        if !self.advice.is_empty() {
            text.push_str(
                "\nWhat would remove or shrink some of it, and how many ms that is about:\n",
            );
        }
        for advice in &self.advice {
            let line = format!("{:>10.3}  {}: {}", advice.ms, advice.option, advice.why);
            paragraph(&mut text, &line, "            ");
        }
        if !self.unseen.is_empty() {
            text.push_str("\nNot seen:\n");
        }
        for unseen in &self.unseen {
            paragraph(&mut text, &format!("- {unseen}"), "  ");
        }
        text
    }

    fn row(&self, text: &mut String, phase: &Phase) {
        let slowest = if phase.slowest { '*' } else { ' ' };
        let name: String = phase.name.chars().take(NAME - 2).collect();
        let line = format!(
            "{slowest} {:>10.3} {:>10.3}    {name:<width$} {}",
            phase.start,
            phase.ms,
            bar(phase, self.total),
            width = NAME - 2,
        );
        let _ = writeln!(text, "{}", line.trim_end());
    }

    /// What each part took, in one line.
    fn parts(&self, text: &mut String) {
        let mut parts = Vec::new();
        for part in Part::ALL {
            let ms = self.part(part);
            if ms > 0.0 {
                parts.push(format!("{} {ms:.3}", part.name()));
            }
        }
        let printed = self.facts.printed;
        paragraph(
            text,
            &format!(
                "In all: {} ms; {} exits, {} page faults, {} bytes printed.",
                parts.join(", "),
                self.facts.exits,
                self.facts.faults,
                printed.bytes
            ),
            "",
        );
    }
}

/// Where a phase is in the whole.
fn bar(phase: &Phase, total: f64) -> String {
    if total <= 0.0 {
        return String::new();
    }
    let column = |ms: f64| (ms / total * BAR as f64).round() as usize;
    let first = column(phase.start).min(BAR - 1);
    let last = column(phase.start + phase.ms).clamp(first, BAR);
    let sign = if last > first { "#" } else { "|" };
    format!(
        "{}{}",
        " ".repeat(first),
        sign.repeat((last - first).max(1))
    )
}

/// Adds a text, broken between words, with all lines but the first behind `indent`.
pub(super) fn paragraph(text: &mut String, words: &str, indent: &str) {
    let beginning: String = words.chars().take_while(|letter| *letter == ' ').collect();
    let mut line = beginning.clone();
    let mut is_new = true;
    for word in words.split_whitespace() {
        let used = line.chars().count();
        if !is_new && used + 1 + word.chars().count() > WIDTH {
            text.push_str(&line);
            text.push('\n');
            line = indent.to_owned();
            is_new = true;
        }
        if !is_new {
            line.push(' ');
        }
        line.push_str(word);
        is_new = false;
    }
    text.push_str(&line);
    text.push('\n');
}
