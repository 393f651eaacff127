//! What a client of the host says first: `CONNECT <port>\n`.

/// Bytes that a client may send before its line ends: more than any port needs.
pub(super) const LINE_MAX: usize = 32;

/// A line that is still coming.
#[derive(Debug, Default)]
pub(super) struct Line {
    bytes: [u8; LINE_MAX],
    len: usize,
}

/// What a piece of input made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// There has to be more.
    Incomplete,
    /// The client wants this port of the guest.
    Connect(u32),
    /// It says something else.
    Wrong,
}

impl Line {
    /// How many of the bytes that wait belong to the line: up to its end, if they have that. The rest
    /// is for the guest.
    pub(super) fn wanted(&self, waiting: &[u8]) -> usize {
        let end = waiting.iter().position(|byte| *byte == b'\n');
        end.map_or(waiting.len(), |end| end + 1)
    }

    /// Appends input, of which nothing is behind the line's end.
    pub(super) fn push(&mut self, input: &[u8]) -> Progress {
        let room = self.bytes.get_mut(self.len..self.len + input.len());
        let Some(room) = room else {
            return Progress::Wrong;
        };
        room.copy_from_slice(input);
        self.len += input.len();
        let line = &self.bytes[..self.len];
        match line.strip_suffix(b"\n") {
            Some(line) => parse(line).map_or(Progress::Wrong, Progress::Connect),
            None if self.len == LINE_MAX => Progress::Wrong,
            None => Progress::Incomplete,
        }
    }
}

/// The port in a line without its end. Case and spaces do not matter.
fn parse(line: &[u8]) -> Option<u32> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let is_connect = words.next()?.eq_ignore_ascii_case("connect");
    let port = words.next()?;
    // A sign is no part of a port.
    let is_number = port.bytes().all(|byte| byte.is_ascii_digit());
    let ends = words.next().is_none();
    (is_connect && is_number && ends).then(|| port.parse().ok())?
}

#[cfg(test)]
#[path = "handshake_test.rs"]
mod tests;
