//! What the guest prints, in frames: for clients of `GET /console` that want to know what they have missed.
//!
//! A frame is a byte that says what it is and a number of 4 bytes, least significant first; data comes
//! after its length.

use crate::events::Piece;

/// The protocol's name, for `Upgrade`.
pub const PROTOCOL: &str = "mote-console-frames";

const DATA: u8 = 0;
const LOST: u8 = 1;
const HEAD: usize = 5;

/// What is there is no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoFrame;

/// A piece, as it is sent.
pub fn encode(piece: &Piece) -> Vec<u8> {
    let head = |kind, number: u64| {
        let mut frame = vec![kind];
        frame.extend(u32::try_from(number).unwrap_or(u32::MAX).to_le_bytes());
        frame
    };
    match piece {
        // Pieces are much shorter than 4 GiB.
        Piece::Data(bytes) => [head(DATA, bytes.len() as u64), bytes.clone()].concat(),
        Piece::Lost(count) => head(LOST, *count),
    }
}

/// What was received, taken apart.
#[derive(Debug, Default)]
pub struct Decoder {
    /// The start of a frame's head.
    head: Vec<u8>,
    /// Bytes of data that are still to come.
    left: usize,
}

impl Decoder {
    /// Takes what has come, and gives what is in it. Data may come in other pieces than it was sent in.
    pub fn take(&mut self, mut bytes: &[u8]) -> Result<Vec<Piece>, NoFrame> {
        let mut pieces = Vec::new();
        while !bytes.is_empty() {
            if self.left > 0 {
                let (now, later) = bytes.split_at(self.left.min(bytes.len()));
                pieces.push(Piece::Data(now.to_vec()));
                self.left -= now.len();
                bytes = later;
                continue;
            }
            let (now, later) = bytes.split_at((HEAD - self.head.len()).min(bytes.len()));
            self.head.extend(now);
            bytes = later;
            if let [kind, a, b, c, d] = self.head[..] {
                let number = u32::from_le_bytes([a, b, c, d]);
                self.head.clear();
                match kind {
                    DATA => self.left = number as usize,
                    LOST => pieces.push(Piece::Lost(number.into())),
                    _ => return Err(NoFrame),
                }
            }
        }
        Ok(pieces)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_in_any_pieces() {
        let sent = [
            Piece::Data(b"first".to_vec()),
            Piece::Lost(7),
            Piece::Data(Vec::new()),
            Piece::Lost(1 << 40),
            Piece::Data(b"last".to_vec()),
        ];
        let bytes: Vec<u8> = sent.iter().flat_map(encode).collect();
        for size in 1..=bytes.len() {
            let mut decoder = Decoder::default();
            let (mut data, mut lost) = (Vec::new(), Vec::new());
            for chunk in bytes.chunks(size) {
                for piece in decoder.take(chunk).unwrap() {
                    match piece {
                        Piece::Data(bytes) => data.extend(bytes),
                        Piece::Lost(count) => lost.push((data.len(), count)),
                    }
                }
            }
            assert_eq!(data, b"firstlast");
            assert_eq!(lost, [(5, 7), (5, u32::MAX.into())]);
        }
    }

    #[test]
    fn other_bytes_are_none() {
        assert_eq!(Decoder::default().take(b"text."), Err(NoFrame));
    }
}
