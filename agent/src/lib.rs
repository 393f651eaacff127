//! What a guest that runs commands and its monitor say to each other, by the job port (`devices::legacy::job_port`).
#![forbid(unsafe_code)]

/// First of the ports: four of them have the number of bytes of the job.
pub const PORT: u64 = 0x5800;
/// First of those that have the next byte of the job; the status with which it ended is written there.
pub const DATA_PORT: u64 = PORT + 4;
/// How many they are.
pub const DATA_PORTS: usize = 252;
/// Written to [`PORT`]: the guest waits for its job.
pub const WAITS: u8 = 1;

/// What a guest is to run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Job {
    /// The program and its arguments; a shell if there are none.
    pub arguments: Vec<Vec<u8>>,
    /// `NAME=VALUE`, besides what there is anyway.
    pub environment: Vec<Vec<u8>>,
    /// Name of the guest.
    pub hostname: Vec<u8>,
    /// Columns and rows of the terminal; 0 where there is none.
    pub window: (u16, u16),
}

const ARGUMENT: u8 = b'a';
const VARIABLE: u8 = b'e';
const HOSTNAME: u8 = b'h';
const WINDOW: u8 = b'w';

impl Job {
    /// As it goes through the port: strings that end with a zero, each with a letter before it that says what it is. None
    /// if there is a zero in one of them.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut put = |kind: u8, text: &[u8]| {
            bytes.push(kind);
            bytes.extend(text);
            bytes.push(0);
            !text.contains(&0)
        };
        let (columns, rows) = self.window;
        let is_text = put(WINDOW, format!("{columns} {rows}").as_bytes())
            & put(HOSTNAME, &self.hostname)
            & self.environment.iter().all(|text| put(VARIABLE, text))
            & self.arguments.iter().all(|text| put(ARGUMENT, text));
        is_text.then_some(bytes)
    }

    /// From what has gone through the port. What is not known is left out.
    pub fn decode(bytes: &[u8]) -> Self {
        let mut job = Self::default();
        for text in bytes.split(|byte| *byte == 0) {
            match text {
                [ARGUMENT, text @ ..] => job.arguments.push(text.into()),
                [VARIABLE, text @ ..] => job.environment.push(text.into()),
                [HOSTNAME, text @ ..] => job.hostname = text.into(),
                [WINDOW, text @ ..] => {
                    let text = String::from_utf8_lossy(text);
                    let mut numbers = text.split(' ').map(|number| number.parse().unwrap_or(0));
                    job.window = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
                }
                _ => {}
            }
        }
        job
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_arrives_as_it_was() {
        let job = Job {
            arguments: vec![b"sh".into(), b"-c".into(), b"".into(), b"a b\xff".into()],
            environment: vec![b"TERM=xterm".into()],
            hostname: b"guest".into(),
            window: (80, 25),
        };
        assert_eq!(Job::decode(&job.encode().unwrap()), job);
        let none = Job::default();
        assert_eq!(Job::decode(&none.encode().unwrap()), none);
        assert_eq!(Job::decode(b""), none);
        assert_eq!(Job::decode(b"w1 x\0?\0\0w"), none);
        let zero = Job {
            arguments: vec![b"a\0b".into()],
            ..none
        };
        assert_eq!(zero.encode(), None);
    }
}
