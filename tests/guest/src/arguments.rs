//! What is on the command line.

use std::collections::{HashMap, VecDeque};
use std::str::FromStr;

/// Why the program fails.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It was called in a wrong way.
    Usage(String),
    /// Something is not as it must be.
    Check(String),
}

/// Options that are there or not.
const FLAGS: [&str; 5] = ["direct", "sequential", "unmap", "wait", "write"];

/// Words, and options by name.
pub(crate) struct Arguments {
    words: VecDeque<String>,
    options: HashMap<String, String>,
}

impl Arguments {
    pub(crate) fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, Failure> {
        let mut words = VecDeque::new();
        let mut options = HashMap::new();
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            match argument.strip_prefix("--") {
                None => words.push_back(argument),
                Some(name) if FLAGS.contains(&name) => {
                    options.insert(name.to_owned(), String::new());
                }
                Some(name) => {
                    let value = arguments
                        .next()
                        .ok_or_else(|| Failure::Usage(format!("--{name} needs a value")))?;
                    options.insert(name.to_owned(), value);
                }
            }
        }
        Ok(Self { words, options })
    }

    /// The next word.
    pub(crate) fn next(&mut self, what: &str) -> Result<String, Failure> {
        let missing = || Failure::Usage(format!("{what} is missing"));
        self.words.pop_front().ok_or_else(missing)
    }

    /// Whether a flag is there.
    pub(crate) fn flag(&mut self, name: &str) -> bool {
        self.options.remove(name).is_some()
    }

    /// An option's text.
    pub(crate) fn text(&mut self, name: &str) -> Option<String> {
        self.options.remove(name)
    }

    /// An option that is a number or size.
    pub(crate) fn number<N: TryFrom<u64>>(&mut self, name: &str, default: N) -> Result<N, Failure> {
        match self.options.remove(name) {
            None => Ok(default),
            Some(text) => size(&text)
                .and_then(|number| N::try_from(number).ok())
                .ok_or_else(|| Failure::Usage(format!("--{name}: '{text}' is no number"))),
        }
    }

    /// Nothing else may be there.
    pub(crate) fn end(self) -> Result<(), Failure> {
        let option = self.options.keys().next().map(|name| format!("--{name}"));
        match option.or(self.words.front().cloned()) {
            None => Ok(()),
            Some(what) => Err(Failure::Usage(format!("'{what}' does not belong here"))),
        }
    }
}

/// A number with a suffix.
pub(crate) fn size(text: &str) -> Option<u64> {
    let shift = match text.as_bytes().last()? {
        b'k' => 10,
        b'm' => 20,
        b'g' => 30,
        _ => return u64::from_str(text).ok(),
    };
    let number = u64::from_str(&text[..text.len() - 1]).ok()?;
    number.checked_mul(1 << shift)
}
