//! What a guest's output tells of its start: when it printed something, and the times in its kernel's messages.

use super::Printed;
use super::step::LINES;

/// Bytes of a line that are looked at.
const MAX_LINE: usize = 256;
/// Messages that are remembered.
const MAX_MESSAGES: usize = 4096;
/// Well-known ones.
const MAX_LINES: usize = 64;
/// How far a guest's clock is trusted to go as the host's, in nanoseconds.
const TRUSTED: u64 = 500_000_000;

/// Listens to a console.
#[derive(Debug)]
pub struct Console {
    printed: Printed,
    output: Option<u64>,
    last_output: Option<u64>,
    /// The beginning of the line that is being printed, when that came, and how much of the line has come.
    line: Vec<u8>,
    line_at: u64,
    line_bytes: u64,
    /// Messages of the kernel: their own times, in nanoseconds, and when they came.
    messages: Vec<(u64, u64)>,
    /// Well-known ones: their ids, and which message it is.
    lines: Vec<(&'static str, usize)>,
}

/// What was heard.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Heard {
    /// How much there was.
    pub printed: Printed,
    /// When the first byte came that is no message of the kernel, in nanoseconds.
    pub output: Option<u64>,
    /// Whether no message of the kernel came before that.
    pub is_first: bool,
    /// When the last such one came.
    pub last_output: Option<u64>,
    /// Well-known lines of the kernel, by their ids, and when it printed them by its own clock, in nanoseconds of the host's.
    pub lines: Vec<(&'static str, u64)>,
}

impl Default for Console {
    /// Nothing is allocated later: that changes the memory of a process, for which vCPUs then wait.
    fn default() -> Self {
        Self {
            printed: Printed::default(),
            output: None,
            last_output: None,
            line: Vec::with_capacity(MAX_LINE),
            line_at: 0,
            line_bytes: 0,
            messages: Vec::with_capacity(MAX_MESSAGES),
            lines: Vec::with_capacity(MAX_LINES),
        }
    }
}

impl Console {
    /// The guest has printed `bytes`, and they have gone where its console leads to at `at`, in nanoseconds.
    pub fn printed(&mut self, bytes: &[u8], at: u64) {
        self.printed.bytes += bytes.len() as u64;
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.line_bytes == 0 {
                self.line_at = at;
            }
            self.line_bytes += part.len() as u64;
            let room = MAX_LINE - self.line.len();
            self.line.extend(&part[..part.len().min(room)]);
            if part.ends_with(b"\n") {
                self.end_line(at);
            } else if may_be_message(&self.line) {
                // What it is will be known later.
            } else {
                self.heard_output(self.line_at, at);
            }
        }
    }

    fn heard_output(&mut self, from: u64, to: u64) {
        self.output.get_or_insert(from);
        self.last_output = Some(to);
    }

    fn end_line(&mut self, at: u64) {
        // It keeps its room.
        let mut line = std::mem::take(&mut self.line);
        self.heard_line(&line, at);
        line.clear();
        self.line = line;
    }

    fn heard_line(&mut self, line: &[u8], at: u64) {
        let (from, bytes) = (self.line_at, std::mem::take(&mut self.line_bytes));
        let text = String::from_utf8_lossy(line);
        let Some((seconds, message)) = message(&text) else {
            // An end of a line alone is what terminals are sent when they are set up.
            if line.iter().any(|byte| !byte.is_ascii_whitespace()) || self.output.is_some() {
                self.heard_output(from, at);
            }
            return;
        };
        self.printed.kernel_bytes += bytes;
        if self.messages.len() >= MAX_MESSAGES {
            return;
        }
        let known = LINES.iter().find(|(text, _, _)| message.contains(text));
        if let Some((_, id, _)) = known
            && self.lines.len() < MAX_LINES
        {
            self.lines.push((id, self.messages.len()));
        }
        self.messages.push(((seconds * 1e9) as u64, from));
    }

    /// When a message was made: it had come when it came, and those after it came no sooner than they were made. Those from before
    /// the console come all at once.
    fn made(&self, index: usize) -> u64 {
        let (time, came) = self.messages[index];
        let later = self.messages[index..].iter();
        let trusted = later.take_while(|(later, _)| later.saturating_sub(time) < TRUSTED);
        let bounds = trusted.map(|(later, came)| came.saturating_sub(later.saturating_sub(time)));
        bounds.min().map_or(came, |bound| bound.min(came))
    }

    /// All that was heard. No message of the kernel was made before `entered`, in nanoseconds: when its CPU entered the guest.
    pub fn heard(&self, entered: u64) -> Heard {
        let is_output =
            self.line_bytes > 0 && self.line.iter().any(|byte| !byte.is_ascii_whitespace());
        let at = |(id, index): &(&'static str, usize)| (*id, self.made(*index).max(entered));
        let output = self.output.or(is_output.then_some(self.line_at));
        let message = self.messages.first().map(|(_, came)| *came);
        Heard {
            printed: self.printed,
            output,
            is_first: output.is_some() && message.is_none_or(|came| Some(came) >= output),
            last_output: self.last_output.or(is_output.then_some(self.line_at)),
            lines: self.lines.iter().map(at).collect(),
        }
    }
}

/// A message of Linux: its time in seconds, and what it says.
fn message(line: &str) -> Option<(f64, &str)> {
    let (time, message) = line.strip_prefix('[')?.split_once("] ")?;
    let (whole, part) = time.trim_start().split_once('.')?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(whole) || !is_number(part) {
        return None;
    }
    Some((time.trim_start().parse().ok()?, message))
}

/// Whether a line that begins so may become a message.
fn may_be_message(beginning: &[u8]) -> bool {
    let Some((b'[', rest)) = beginning.split_first() else {
        return beginning.is_empty();
    };
    let mut time = rest.iter().skip_while(|byte| **byte == b' ');
    match time.find(|byte| !byte.is_ascii_digit() && **byte != b'.') {
        // What is behind it is to come.
        Some(b']') if beginning.ends_with(b"]") => true,
        Some(b']') => message(&String::from_utf8_lossy(beginning)).is_some(),
        Some(_) => false,
        None => rest.len() < MAX_LINE / 2,
    }
}
