//! What a start has printed, and whether that is what it had to print.

use std::time::Duration;

/// More than any start prints that is right.
const MOST: usize = 1 << 20;
/// How much of a line an error shows.
const SHOWN: usize = 80;
/// What the first process prints in the mode `mark`.
const INIT: &[u8] = b"init";

/// Output, with the times at which its pieces arrived.
#[derive(Debug, Default)]
pub(super) struct Output {
    bytes: Vec<u8>,
    /// Where each piece begins, and when it came.
    pieces: Vec<(usize, Duration)>,
    is_too_long: bool,
}

/// What has to be printed.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// The line of the program.
    pub token: &'a str,
    /// Other lines are not looked at.
    pub noisy: bool,
}

impl Output {
    pub(super) fn add(&mut self, bytes: &[u8], at: Duration) {
        if self.bytes.len() + bytes.len() > MOST {
            self.is_too_long = true;
            return;
        }
        self.pieces.push((self.bytes.len(), at));
        self.bytes.extend_from_slice(bytes);
    }

    pub(super) fn is_too_long(&self) -> bool {
        self.is_too_long
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }

    /// When the program's line began, if it is whole.
    pub(super) fn token_at(&self, expected: Expected) -> Option<Duration> {
        self.line_at(expected.token.as_bytes())
    }

    /// When the first process's line began.
    pub(super) fn init_at(&self) -> Option<Duration> {
        self.line_at(INIT)
    }

    fn line_at(&self, wanted: &[u8]) -> Option<Duration> {
        let (start, _) = self.lines().find(|(_, line)| *line == wanted)?;
        // The last piece that begins there or before.
        let index = self.pieces.partition_point(|(from, _)| *from <= start);
        Some(self.pieces[index.checked_sub(1)?].1)
    }

    /// The lines that have ended, as a terminal or a pipe ends them, and where they begin.
    fn lines(&self) -> impl Iterator<Item = (usize, &[u8])> {
        let mut start = 0;
        self.bytes
            .split_inclusive(|byte| *byte == b'\n')
            .filter_map(move |line| {
                let from = start;
                start += line.len();
                let line = line.strip_suffix(b"\n")?;
                Some((from, line.strip_suffix(b"\r").unwrap_or(line)))
            })
    }

    /// What is wrong with it.
    pub(super) fn fault(&self, expected: Expected) -> Option<String> {
        if self.is_too_long {
            return Some(format!("printed more than {MOST} bytes"));
        }
        let is_token = |line: &[u8]| line == expected.token.as_bytes();
        let count = self.lines().filter(|(_, line)| is_token(line)).count();
        let mut others = (self.lines().map(|(_, line)| line))
            .filter(|line| !is_token(line) && *line != INIT && !line.is_empty());
        let other = others.next();
        match (count, other) {
            (0, None) => Some("the program's output is missing".into()),
            (0, Some(line)) => Some(format!(
                "the program's output is missing; printed {}",
                shown(line)
            )),
            (2.., _) => Some(format!("the program's output came {count} times")),
            (_, Some(line)) if !expected.noisy => Some(format!("printed {} as well", shown(line))),
            _ => None,
        }
    }
}

fn shown(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let text: String = text.chars().take(SHOWN).collect();
    format!("{text:?}")
}

/// The last line of what a program has said of errors.
pub(super) fn last_line(text: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(text);
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty())?;
    Some(line.chars().take(2 * SHOWN).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Expected = Expected {
        token: "abc",
        noisy: false,
    };
    const NOISY: Expected = Expected {
        token: "abc",
        noisy: true,
    };

    fn output(pieces: &[(&str, u64)]) -> Output {
        let mut output = Output::default();
        for (text, at) in pieces {
            output.add(text.as_bytes(), Duration::from_millis(*at));
        }
        output
    }

    #[test]
    fn lines_are_found_in_whatever_pieces_they_come() {
        let output = output(&[("in", 1), ("it\r\n", 2), ("ab", 3), ("c\r", 4), ("\n", 5)]);
        assert_eq!(output.init_at(), Some(Duration::from_millis(1)));
        assert_eq!(output.token_at(QUIET), Some(Duration::from_millis(3)));
        assert_eq!(output.fault(QUIET), None);
    }

    #[test]
    fn a_line_that_has_not_ended_is_none() {
        let output = output(&[("abc", 1)]);
        assert_eq!(output.token_at(QUIET), None);
        assert!(output.fault(QUIET).unwrap().contains("missing"));
    }

    #[test]
    fn what_is_wrong_is_told() {
        assert!(output(&[]).fault(QUIET).unwrap().contains("missing"));
        assert!(
            output(&[("xyz\n", 1)])
                .fault(QUIET)
                .unwrap()
                .contains("\"xyz\"")
        );
        assert!(
            output(&[("abc\nabc\n", 1)])
                .fault(NOISY)
                .unwrap()
                .contains("2 times")
        );
        assert!(
            output(&[("abc\nmore\n", 1)])
                .fault(QUIET)
                .unwrap()
                .contains("\"more\"")
        );
        assert_eq!(output(&[("abc\nmore\n", 1)]).fault(NOISY), None);
        let mut flood = output(&[("abc\n", 1)]);
        flood.add(&vec![b'x'; MOST], Duration::ZERO);
        assert!(flood.fault(NOISY).unwrap().contains("more than"));
    }

    #[test]
    fn the_last_line_of_errors_is_short() {
        assert_eq!(last_line(b"a\nb\n\n").as_deref(), Some("b"));
        assert_eq!(last_line(b" \n"), None);
        assert_eq!(last_line(&[b'x'; 1000]).unwrap().len(), 160);
    }
}
