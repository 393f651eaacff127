//! What is on a disk, as far as that can be known: sectors that a request has written and no other one
//! was about to write meanwhile.

use std::collections::HashMap;
use std::ops::Range;

/// Sectors that are looked after; there may be more.
const SECTORS: u64 = 4096;

#[derive(Clone, Copy, Default)]
struct Sector {
    /// Changes with each request that may change what is in it.
    version: u32,
    /// All its bytes, if that is known.
    value: Option<u8>,
    /// Requests in flight that write to it.
    writers: u16,
    /// There were several at once.
    contested: bool,
}

enum Request {
    /// All bytes will be this, or nobody knows.
    Write(Vec<Range<usize>>, Option<u8>),
    /// From this sector on; what was in them.
    Read(usize, Vec<Sector>),
}

/// A disk with one queue.
pub(crate) struct Model {
    sectors: Vec<Sector>,
    /// By head.
    requests: HashMap<u16, Request>,
    written: u8,
}

impl Model {
    /// Of a disk that nothing is known of.
    pub(crate) fn new() -> Self {
        Self {
            sectors: vec![Sector::default(); SECTORS as usize],
            requests: HashMap::new(),
            written: 0,
        }
    }

    /// What the next request is to write, all over.
    pub(crate) fn next_value(&mut self) -> u8 {
        self.written = self.written.wrapping_add(1);
        self.written
    }

    fn range(&self, first: u64, count: u64) -> Range<usize> {
        let end = first.saturating_add(count).min(SECTORS);
        first.min(end) as usize..end as usize
    }

    /// A request is made that writes `value` to these sectors, from first and how many.
    pub(crate) fn write(&mut self, head: u16, places: &[(u64, u64)], value: Option<u8>) {
        let ranges: Vec<_> = places
            .iter()
            .map(|&(first, count)| self.range(first, count))
            .collect();
        for range in &ranges {
            for sector in &mut self.sectors[range.clone()] {
                sector.version += 1;
                sector.value = None;
                sector.contested |= sector.writers > 0;
                sector.writers += 1;
            }
        }
        self.requests.insert(head, Request::Write(ranges, value));
    }

    /// A request is made that reads.
    pub(crate) fn read(&mut self, head: u16, first: u64, count: u64) {
        let range = self.range(first, count);
        let sectors = self.sectors[range.clone()].to_vec();
        self.requests
            .insert(head, Request::Read(range.start, sectors));
    }

    /// A request has ended; `data` reads what it has read from an offset on. Panics if that is not what
    /// is on the disk.
    pub(crate) fn ended(&mut self, head: u16, is_ok: bool, data: impl Fn(u64, &mut [u8])) {
        match self.requests.remove(&head) {
            Some(Request::Write(ranges, value)) => {
                for sector in ranges.into_iter().flatten() {
                    let sector = &mut self.sectors[sector];
                    sector.writers -= 1;
                    if sector.writers == 0 {
                        let is_known = is_ok && !sector.contested;
                        sector.value = value.filter(|_| is_known);
                        sector.contested = false;
                    }
                }
            }
            Some(Request::Read(first, sectors)) if is_ok => {
                for (number, before) in sectors.iter().enumerate() {
                    let is_same = self.sectors[first + number].version == before.version;
                    let (Some(value), true) = (before.value, is_same) else {
                        continue;
                    };
                    let mut bytes = [!value; 512];
                    data(number as u64 * 512, &mut bytes);
                    assert!(
                        bytes == [value; 512],
                        "sector {} is not all {value:#x}, but starts with {:x?}",
                        first + number,
                        &bytes[..16],
                    );
                }
            }
            _ => {}
        }
    }

    /// Something has happened to the disk.
    pub(crate) fn forget(&mut self) {
        for sector in &mut self.sectors {
            sector.version += 1;
            sector.value = None;
            sector.contested = sector.writers > 0;
        }
    }

    /// Nothing is in flight any more, whatever has become of it.
    pub(crate) fn settle(&mut self) {
        let lost = !self.requests.is_empty();
        self.requests.clear();
        for sector in &mut self.sectors {
            if sector.writers > 0 {
                sector.value = None;
            }
            sector.writers = 0;
            sector.contested = false;
            sector.version += u32::from(lost);
        }
    }
}
