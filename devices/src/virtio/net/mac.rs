//! The address of a network card.

use std::fmt;
use std::io;
use std::str::FromStr;

use thiserror::Error;

use crate::random::random;

/// Bit of the first byte: a group of cards, and not one.
const GROUP: u8 = 1 << 0;
/// Bit of the first byte: given by whoever runs the network, and not by the maker of the card.
const LOCAL: u8 = 1 << 1;

/// An address of one card: neither a group's nor all zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mac([u8; 6]);

/// What is no [`Mac`].
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum MacError {
    /// Not six bytes.
    #[error("'{text}' is no MAC address: write six bytes, such as 02:00:00:12:34:56")]
    Syntax {
        /// What was given.
        text: String,
    },
    /// A group of cards.
    #[error("{mac} is the MAC address of a group: a card's has an even first byte, such as 02")]
    Group {
        /// What was given.
        mac: String,
    },
    /// 00:00:00:00:00:00.
    #[error("A card cannot have the MAC address 00:00:00:00:00:00")]
    Zero,
}

impl Mac {
    /// Checks an address.
    pub fn new(bytes: [u8; 6]) -> Result<Self, MacError> {
        let mac = Self(bytes);
        if bytes[0] & GROUP != 0 {
            let mac = mac.to_string();
            return Err(MacError::Group { mac });
        }
        if bytes == [0; 6] {
            return Err(MacError::Zero);
        }
        Ok(mac)
    }

    /// A random address that is locally administered: cards of any number of machines on one network do
    /// not get the same one.
    pub fn random() -> io::Result<Self> {
        let mut bytes: [u8; 6] = random()?;
        bytes[0] = bytes[0] & !GROUP | LOCAL;
        Ok(Self(bytes))
    }

    /// Its bytes, in the order in which they are sent.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let wrong = || MacError::Syntax {
            text: text.to_owned(),
        };
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(wrong)?;
            if part.len() != 2 || !part.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return Err(wrong());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() {
            return Err(wrong());
        }
        Self::new(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_read_and_written() {
        let mac: Mac = "02:aB:00-12:34:fF".parse().unwrap();
        assert_eq!(mac.bytes(), [2, 0xab, 0, 0x12, 0x34, 0xff]);
        assert_eq!(mac.to_string(), "02:ab:00:12:34:ff");
    }

    #[test]
    fn what_is_none_is_refused() {
        for text in [
            "",
            "x",
            "02:00:00:00:00",
            "02:00:00:00:00:01:02",
            "02:00:00:00:00:1",
            "02:00:00:00:00:+1",
            "020000000001",
            "02:00:00:00:00:0g",
            "02:00:00:00:00:é",
        ] {
            let text = text.to_owned();
            assert_eq!(text.parse::<Mac>(), Err(MacError::Syntax { text }));
        }
        assert!(matches!(
            "ff:ff:ff:ff:ff:ff".parse::<Mac>(),
            Err(MacError::Group { .. })
        ));
        assert_eq!("00:00:00:00:00:00".parse::<Mac>(), Err(MacError::Zero));
    }

    #[test]
    fn random_ones_are_a_cards_and_differ() {
        let macs = [Mac::random().unwrap(), Mac::random().unwrap()];
        assert_ne!(macs[0], macs[1]);
        for mac in macs {
            assert_eq!(Mac::new(mac.bytes()), Ok(mac));
            assert_eq!(mac.bytes()[0] & 3, 2);
        }
    }
}
