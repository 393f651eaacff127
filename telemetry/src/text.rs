//! OpenMetrics text, version 1.0.
//!
//! A hundred lines of our own: a scrape reads numbers that are kept elsewhere, so that the registry, the locks and
//! the derive macros of a library would be of no use, and the format is small.

use std::fmt::{Display, Write};

/// What a family is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Counter,
    Gauge,
    Histogram,
    Info,
    StateSet,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Info => "info",
            Self::StateSet => "stateset",
        }
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::Counter => "_total",
            Self::Info => "_info",
            Self::Gauge | Self::StateSet | Self::Histogram => "",
        }
    }
}

/// Units that a name can end in.
const UNITS: [&str; 3] = ["bytes", "seconds", "microseconds"];

/// Names and values.
pub(crate) type Labels<'a> = &'a [(&'a str, &'a str)];

/// A text that grows.
#[derive(Default)]
pub(crate) struct Text(String);

/// A family that samples are added to. One without any is not in the text.
pub(crate) struct Family<'a> {
    text: &'a mut String,
    name: &'static str,
    kind: Kind,
    help: &'static str,
    has_begun: bool,
}

impl Text {
    /// A family. Its name ends in its unit, if it has one, and `help` is a sentence.
    pub(crate) fn family(
        &mut self,
        name: &'static str,
        kind: Kind,
        help: &'static str,
    ) -> Family<'_> {
        Family {
            text: &mut self.0,
            name,
            kind,
            help,
            has_begun: false,
        }
    }

    /// The whole text.
    pub(crate) fn finish(mut self) -> String {
        self.0.push_str("# EOF\n");
        self.0
    }
}

impl Family<'_> {
    fn begin(&mut self) {
        if std::mem::replace(&mut self.has_begun, true) {
            return;
        }
        let (name, kind) = (self.name, self.kind.name());
        // Writing to a string does not fail.
        let _ = writeln!(self.text, "# TYPE {name} {kind}");
        let unit = UNITS.iter().find(|unit| {
            let stem = name.strip_suffix(**unit);
            stem.is_some_and(|stem| stem.ends_with('_'))
        });
        if let Some(unit) = unit {
            let _ = writeln!(self.text, "# UNIT {name} {unit}");
        }
        let _ = writeln!(self.text, "# HELP {name} {}", self.help);
    }

    fn line(
        &mut self,
        suffix: &str,
        labels: Labels<'_>,
        last: Option<(&str, &str)>,
        value: impl Display,
    ) {
        let name = self.name;
        let _ = write!(self.text, "{name}{suffix}");
        let mut before = '{';
        for (label, content) in labels.iter().copied().chain(last) {
            let _ = write!(self.text, "{before}{label}=\"");
            escape(self.text, content);
            self.text.push('"');
            before = ',';
        }
        if before == ',' {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }

    /// A number.
    pub(crate) fn sample(&mut self, labels: Labels<'_>, value: impl Display) {
        self.begin();
        self.line(self.kind.suffix(), labels, None, value);
    }

    /// One of some states.
    pub(crate) fn state(&mut self, state: &str, is_it: bool) {
        self.begin();
        self.line("", &[], Some((self.name, state)), u8::from(is_it));
    }

    /// A histogram: `counts` below each of `bounds`, and above the last one.
    pub(crate) fn histogram(
        &mut self,
        labels: Labels<'_>,
        bounds: &[f64],
        counts: &[u64],
        sum: f64,
    ) {
        self.begin();
        let mut below = 0u64;
        let bounds = bounds.iter().map(|bound| float(*bound));
        for (bound, count) in bounds.chain(["+Inf".into()]).zip(counts) {
            below += count;
            self.line("_bucket", labels, Some(("le", &bound)), below);
        }
        self.line("_count", labels, None, below);
        self.line("_sum", labels, None, float(sum));
    }
}

/// A number that is not taken for an integer.
pub(crate) fn float(value: f64) -> String {
    format!("{value:?}")
}

fn escape(text: &mut String, content: &str) {
    for c in content.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            c => text.push(c),
        }
    }
}

#[cfg(test)]
#[path = "text_test.rs"]
pub(crate) mod tests;
