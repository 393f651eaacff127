//! The state file: a header of fixed size that can be read by itself, the configuration, and the state.
//!
//! ```text
//!  0  magic "MOTESNAP"
//!  8  version of the format                                   u32, little-endian, as all numbers here
//! 12  architecture: 1 is x86-64                               u32
//! 16  bytes of the configuration                              u64
//! 24  bytes of the state                                      u64
//! 32  CRC-32 of configuration and state                       u32
//! 36  version of mote that wrote it, padded with zeroes       24 bytes
//! 60  CRC-32 of the 60 bytes before                           u32
//! 64  configuration: what `GET /vm/config` answers with       JSON
//!     state: [`VmState`](super::state::VmState)               postcard
//! ```
//! The configuration is text, in a format that is kept stable anyway: whoever wants to know what is in
//! a snapshot, or to make its devices, need not decode the state. The file may come from anyone:
//! sizes are checked before anything is read, and what decodes the state makes no allocation that the
//! file's own length does not pay for.

use std::io::{self, Read};

use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// Version of the format. Another one is not read: a state has no meaning that could be guessed.
pub const VERSION: u32 = 1;
/// Bytes of the header.
pub const HEADER_SIZE: usize = 64;
/// Most bytes of configuration and state. A vCPU has some 20 KiB, a device some hundred bytes.
const MAX_BODY: u64 = 64 << 20;

const MAGIC: [u8; 8] = *b"MOTESNAP";
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 1;
const WRITER_SIZE: usize = 24;
/// Where the header's own checksum is.
const HEADER_CHECKSUM: usize = HEADER_SIZE - 4;

/// Why a state file cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// Reading it failed.
    #[error("Cannot read the state file")]
    Read(#[source] io::Error),
    /// Something else.
    #[error("It is not a state file of mote's")]
    Magic,
    /// It ends too early.
    #[error("The state file has been cut: there are {found} of {expected} bytes")]
    Cut {
        /// Bytes that there are.
        found: u64,
        /// Bytes that there should be.
        expected: u64,
    },
    /// There is something behind its end.
    #[error("The state file is longer than it says")]
    TooLong,
    /// Bits have changed.
    #[error("The state file is damaged: the checksum of its {what} is wrong")]
    Checksum {
        /// "header" or "body".
        what: &'static str,
    },
    /// Written by another mote.
    #[error(
        "The state file has version {found} of the format, written by mote {writer}: this is mote \
         {}, which reads version {VERSION} only",
        env!("CARGO_PKG_VERSION")
    )]
    Version {
        /// The version.
        found: u32,
        /// Who wrote it.
        writer: String,
    },
    /// Of another kind of machine.
    #[error("The state file is that of a machine of another architecture (number {found})")]
    Architecture {
        /// Its number.
        found: u32,
    },
    /// More than any machine has.
    #[error("The state file says that it has {bytes} bytes, no machine has more than {MAX_BODY}")]
    TooLarge {
        /// How many.
        bytes: u64,
    },
    /// The configuration is no text.
    #[error("The configuration in the state file is no text")]
    Text(#[source] std::string::FromUtf8Error),
    /// The state means nothing.
    #[error("The state in the state file cannot be understood")]
    State(#[source] postcard::Error),
    /// A state could not be written.
    #[error("Cannot encode the state")]
    Encode(#[source] postcard::Error),
}

/// What a header says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the configuration.
    pub config_size: u64,
    /// Bytes of the state.
    pub state_size: u64,
    /// The mote that wrote it.
    pub writer: String,
    checksum: u32,
}

impl Header {
    /// Reads and checks a header.
    pub fn read(file: &mut impl Read) -> Result<Self, Error> {
        let bytes = read_exactly(file, HEADER_SIZE as u64)?;
        let number = |at: usize| {
            let mut number = [0; 4];
            number.copy_from_slice(&bytes[at..at + 4]);
            u32::from_le_bytes(number)
        };
        let long = |at: usize| u64::from(number(at)) | u64::from(number(at + 4)) << 32;
        if bytes[..8] != MAGIC {
            return Err(Error::Magic);
        }
        if number(HEADER_CHECKSUM) != crc32fast::hash(&bytes[..HEADER_CHECKSUM]) {
            return Err(Error::Checksum { what: "header" });
        }
        let writer = &bytes[36..36 + WRITER_SIZE];
        let writer = writer.split(|byte| *byte == 0).next().unwrap_or_default();
        let writer = String::from_utf8_lossy(writer).into_owned();
        match (number(8), number(12)) {
            (VERSION, ARCHITECTURE) => {}
            (VERSION, found) => return Err(Error::Architecture { found }),
            (found, _) => return Err(Error::Version { found, writer }),
        }
        let (config_size, state_size) = (long(16), long(24));
        let bytes = config_size.saturating_add(state_size);
        if bytes > MAX_BODY {
            return Err(Error::TooLarge { bytes });
        }
        Ok(Self {
            config_size,
            state_size,
            writer,
            checksum: number(32),
        })
    }

    fn bytes(&self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(12, &ARCHITECTURE.to_le_bytes());
        put(16, &self.config_size.to_le_bytes());
        put(24, &self.state_size.to_le_bytes());
        put(32, &self.checksum.to_le_bytes());
        let writer = self.writer.as_bytes();
        put(36, &writer[..writer.len().min(WRITER_SIZE)]);
        let checksum = crc32fast::hash(&bytes[..HEADER_CHECKSUM]);
        bytes[HEADER_CHECKSUM..].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }
}

/// A whole file of this configuration and state.
pub fn encode(config: &str, state: &impl Serialize) -> Result<Vec<u8>, Error> {
    let state = postcard::to_stdvec(state).map_err(Error::Encode)?;
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(config.as_bytes());
    checksum.update(&state);
    let header = Header {
        config_size: config.len() as u64,
        state_size: state.len() as u64,
        writer: env!("CARGO_PKG_VERSION").to_owned(),
        checksum: checksum.finalize(),
    };
    let mut file = Vec::with_capacity(HEADER_SIZE + config.len() + state.len());
    file.extend(header.bytes());
    file.extend(config.as_bytes());
    file.extend(state);
    Ok(file)
}

/// A file whose sizes and checksums are right.
pub struct StateFile {
    /// Its header.
    pub header: Header,
    /// The configuration, as JSON.
    pub config: String,
    state: Vec<u8>,
}

impl StateFile {
    /// Reads a file to its end.
    pub fn read(file: &mut impl Read) -> Result<Self, Error> {
        let header = Header::read(file)?;
        let mut config = read_exactly(file, header.config_size + header.state_size)?;
        if file.read(&mut [0]).map_err(Error::Read)? != 0 {
            return Err(Error::TooLong);
        }
        if crc32fast::hash(&config) != header.checksum {
            return Err(Error::Checksum { what: "body" });
        }
        // Both sizes are below MAX_BODY.
        let state = config.split_off(usize::try_from(header.config_size).unwrap_or(usize::MAX));
        let config = String::from_utf8(config).map_err(Error::Text)?;
        Ok(Self {
            header,
            config,
            state,
        })
    }

    /// Decodes the state.
    pub fn state<S: DeserializeOwned>(&self) -> Result<S, Error> {
        match postcard::take_from_bytes(&self.state).map_err(Error::State)? {
            (state, []) => Ok(state),
            _ => Err(Error::State(postcard::Error::DeserializeBadEncoding)),
        }
    }
}

/// Reads so many bytes, of which no more are allocated than there are.
fn read_exactly(file: &mut impl Read, expected: u64) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    file.take(expected)
        .read_to_end(&mut bytes)
        .map_err(Error::Read)?;
    let found = bytes.len() as u64;
    if found == expected {
        Ok(bytes)
    } else {
        Err(Error::Cut { found, expected })
    }
}

#[cfg(test)]
#[path = "format_test.rs"]
mod tests;
