//! Noise of which every sector says where it belongs and which write it is from.

use std::ops::Range;

/// What is written or lost as a whole, in bytes.
pub const SECTOR: usize = 512;
/// Place and generation, at the start of each sector.
const HEADER: usize = 16;
/// Different noise for so many sectors in a row.
const SECTORS: usize = 128;

/// A sector that is not what was written there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// Its number.
    pub sector: u64,
    /// The first wrong byte in it.
    pub byte: usize,
    /// What is there.
    pub found: u8,
}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            sector,
            byte,
            found,
        } = self;
        write!(f, "sector {sector} is wrong: byte {byte} is {found:#04x}")
    }
}

impl std::error::Error for Mismatch {}

/// The contents of one disk or stream.
pub struct Pattern {
    key: u64,
    noise: Vec<u8>,
}

impl Pattern {
    /// Different seeds make different contents.
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let key = random.next();
        let words = SECTORS * SECTOR / 8;
        let noise = (0..words).flat_map(|_| random.next().to_le_bytes());
        Self {
            key,
            noise: noise.collect(),
        }
    }

    fn noise(&self, sector: u64) -> &[u8] {
        let start = (sector % SECTORS as u64) as usize * SECTOR;
        &self.noise[start + HEADER..start + SECTOR]
    }

    /// Writes whole sectors, the first of which has this number.
    pub fn write(&self, first: u64, generation: u64, sectors: &mut [u8]) {
        for (number, sector) in (first..).zip(sectors.chunks_exact_mut(SECTOR)) {
            sector[..8].copy_from_slice(&(number ^ self.key).to_le_bytes());
            sector[8..HEADER].copy_from_slice(&generation.to_le_bytes());
            sector[HEADER..].copy_from_slice(self.noise(number));
        }
    }

    /// The generation of one sector; none if it is all zeroes.
    pub fn generation(&self, number: u64, sector: &[u8]) -> Result<Option<u64>, Mismatch> {
        if sector.iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        let wrong = |range: Range<usize>, right: &[u8]| {
            let differs = sector[range.clone()].iter().zip(right);
            let at = differs.take_while(|(found, right)| found == right).count();
            (at < right.len()).then(|| Mismatch {
                sector: number,
                byte: range.start + at,
                found: sector[range.start + at],
            })
        };
        let place = (number ^ self.key).to_le_bytes();
        if sector[..8] != place || sector[HEADER..] != *self.noise(number) {
            let found = wrong(0..8, &place).or_else(|| wrong(HEADER..SECTOR, self.noise(number)));
            return Err(found.unwrap_or(Mismatch {
                sector: number,
                byte: 0,
                found: 0,
            }));
        }
        let mut generation = [0; 8];
        generation.copy_from_slice(&sector[8..HEADER]);
        Ok(Some(u64::from_le_bytes(generation)))
    }

    /// Checks whole sectors that were written in one generation.
    pub fn check(&self, first: u64, generation: u64, sectors: &[u8]) -> Result<(), Mismatch> {
        for (number, sector) in (first..).zip(sectors.chunks_exact(SECTOR)) {
            if self.generation(number, sector)? != Some(generation) {
                return Err(Mismatch {
                    sector: number,
                    byte: 8,
                    found: sector[8],
                });
            }
        }
        Ok(())
    }

    /// The oldest and the newest generation of whole sectors; zeroes count as generation 0.
    pub fn generations(&self, first: u64, sectors: &[u8]) -> Result<(u64, u64), Mismatch> {
        let mut range = (u64::MAX, 0);
        for (number, sector) in (first..).zip(sectors.chunks_exact(SECTOR)) {
            let generation = self.generation(number, sector)?.unwrap_or(0);
            range = (range.0.min(generation), range.1.max(generation));
        }
        Ok(range)
    }

    /// Writes a part of a stream.
    pub fn fill(&self, offset: u64, buffer: &mut [u8]) {
        each_sector(offset, buffer.len(), |sector, within, range| {
            let whole = &mut buffer[range];
            if whole.len() == SECTOR {
                self.write(sector, 0, whole);
            } else {
                let mut copy = [0; SECTOR];
                self.write(sector, 0, &mut copy);
                whole.copy_from_slice(&copy[within]);
            }
        });
    }

    /// Checks a part of a stream.
    pub fn compare(&self, offset: u64, buffer: &[u8]) -> Result<(), Mismatch> {
        let mut result = Ok(());
        each_sector(offset, buffer.len(), |sector, within, range| {
            let mut right = [0; SECTOR];
            self.write(sector, 0, &mut right);
            let (found, right) = (&buffer[range], &right[within.clone()]);
            if result.is_ok() && found != right {
                let same = found.iter().zip(right).take_while(|(a, b)| a == b);
                let at = same.count();
                result = Err(Mismatch {
                    sector,
                    byte: within.start + at,
                    found: found[at],
                });
            }
        });
        result
    }
}

/// Cuts a part of a stream into its sectors: number, part of the sector, part of the buffer.
fn each_sector(offset: u64, length: usize, mut visit: impl FnMut(u64, Range<usize>, Range<usize>)) {
    let mut done = 0;
    while done < length {
        let at = offset + done as u64;
        let start = (at % SECTOR as u64) as usize;
        let size = (SECTOR - start).min(length - done);
        visit(at / SECTOR as u64, start..start + size, done..done + size);
        done += size;
    }
}

/// Numbers that look random and are the same for the same seed (SplitMix64).
pub struct Random(u64);

impl Random {
    /// Starts a sequence.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    #[expect(clippy::should_implement_trait, reason = "it has no end")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below this one, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_found_again() {
        let pattern = Pattern::new(7);
        let mut sectors = [0; 4 * SECTOR];
        pattern.write(1000, 3, &mut sectors);
        assert_eq!(pattern.check(1000, 3, &sectors), Ok(()));
        let wrong = |result: Result<(), Mismatch>| result.unwrap_err();
        // Another place, generation, disk; one byte.
        assert_eq!(wrong(pattern.check(1001, 3, &sectors)).sector, 1001);
        assert_eq!(wrong(pattern.check(1000, 4, &sectors)).byte, 8);
        assert_eq!(wrong(Pattern::new(8).check(1000, 3, &sectors)).byte, 0);
        sectors[SECTOR + 100] ^= 1;
        let found = wrong(pattern.check(1000, 3, &sectors));
        assert_eq!((found.sector, found.byte), (1001, 100));
        assert_eq!(pattern.generation(5, &[0; SECTOR]), Ok(None));
        pattern.write(1001, 9, &mut sectors[SECTOR..2 * SECTOR]);
        assert_eq!(pattern.generations(1000, &sectors), Ok((3, 9)));
    }

    #[test]
    fn a_stream_can_be_cut_anywhere() {
        let pattern = Pattern::new(9);
        let mut whole = vec![0; 3000];
        pattern.fill(70, &mut whole);
        let mut parts = vec![0; 3000];
        for (number, part) in parts.chunks_mut(77).enumerate() {
            pattern.fill(70 + 77 * number as u64, part);
        }
        assert_eq!(whole, parts);
        for (number, part) in whole.chunks(613).enumerate() {
            assert_eq!(pattern.compare(70 + 613 * number as u64, part), Ok(()));
        }
        whole[2999] ^= 0x80;
        let found = pattern.compare(70, &whole).unwrap_err();
        assert_eq!(found.sector as usize * SECTOR + found.byte, 70 + 2999);
    }
}
