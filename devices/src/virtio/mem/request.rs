//! What a driver asks of the device, and what it is told (virtio 1.2 section 5.15.6).

use vm_memory::GuestMemoryMmap;

use crate::virtio::chain::Chain;

/// Bytes of a request.
pub(super) const REQUEST_LEN: usize = 24;
/// Bytes of its answer.
pub(super) const RESPONSE_LEN: usize = 10;

/// Some blocks in a row, as the driver names them: nothing of it was checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// GPA of the first.
    pub(super) gpa: u64,
    /// How many.
    pub(super) blocks: u16,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Plug(Place),
    Unplug(Place),
    UnplugAll,
    State(Place),
    /// Nothing that is known.
    Unknown,
}

impl Request {
    /// Reads a request. None: it is too short.
    pub(super) fn read(chain: &Chain, memory: &GuestMemoryMmap) -> Option<Self> {
        let mut bytes = [0; REQUEST_LEN];
        chain.readable.read(memory, 0, &mut bytes).ok()?;
        Some(Self::parse(&bytes))
    }

    /// Padding is not looked at.
    fn parse(bytes: &[u8; REQUEST_LEN]) -> Self {
        let [t0, t1, _, _, _, _, _, _, gpa @ .., n0, n1, _, _, _, _, _, _] = *bytes;
        let place = Place {
            gpa: u64::from_le_bytes(gpa),
            blocks: u16::from_le_bytes([n0, n1]),
        };
        match u16::from_le_bytes([t0, t1]) {
            0 => Self::Plug(place),
            1 => Self::Unplug(place),
            2 => Self::UnplugAll,
            3 => Self::State(place),
            _ => Self::Unknown,
        }
    }
}

/// What some blocks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum BlockState {
    Plugged = 0,
    Unplugged = 1,
    /// Some are the one, some the other.
    Mixed = 2,
}

/// What the driver is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Response {
    /// Done.
    Ack,
    /// The answer to a question.
    State(BlockState),
    /// Not now: more would be plugged than the monitor wants.
    Nack,
    /// Not now: the host cannot.
    Busy,
    /// Never: the request is wrong.
    Error,
}

impl Response {
    pub(super) fn to_bytes(self) -> [u8; RESPONSE_LEN] {
        let (kind, state): (u16, u16) = match self {
            Self::Ack => (0, 0),
            Self::State(state) => (0, state as u16),
            Self::Nack => (1, 0),
            Self::Busy => (2, 0),
            Self::Error => (3, 0),
        };
        let mut bytes = [0; RESPONSE_LEN];
        bytes[..2].copy_from_slice(&kind.to_le_bytes());
        bytes[8..].copy_from_slice(&state.to_le_bytes());
        bytes
    }

    /// Whether the driver got what it asked for.
    pub(super) fn is_good(self) -> bool {
        matches!(self, Self::Ack | Self::State(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read() {
        let mut bytes = [0xaa; REQUEST_LEN];
        bytes[8..16].copy_from_slice(&0x1_2345_6789_u64.to_le_bytes());
        bytes[16..18].copy_from_slice(&0x102_u16.to_le_bytes());
        let place = Place {
            gpa: 0x1_2345_6789,
            blocks: 0x102,
        };
        for (kind, request) in [
            (0_u16, Request::Plug(place)),
            (1, Request::Unplug(place)),
            (2, Request::UnplugAll),
            (3, Request::State(place)),
            (4, Request::Unknown),
            (0x100, Request::Unknown),
        ] {
            bytes[..2].copy_from_slice(&kind.to_le_bytes());
            assert_eq!(Request::parse(&bytes), request);
        }
    }

    #[test]
    fn answers_are_written() {
        assert_eq!(Response::Ack.to_bytes(), [0; 10]);
        assert_eq!(Response::Nack.to_bytes()[..2], [1, 0]);
        assert_eq!(Response::Busy.to_bytes()[..2], [2, 0]);
        assert_eq!(Response::Error.to_bytes()[..2], [3, 0]);
        let mixed = Response::State(BlockState::Mixed).to_bytes();
        assert_eq!(mixed, [0, 0, 0, 0, 0, 0, 0, 0, 2, 0]);
    }
}
