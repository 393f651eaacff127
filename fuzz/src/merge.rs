//! A whole snapshot and a differential one are merged: layouts of memory, tables of what changed, and contents, right
//! or almost so, are the fuzzer's. What the result has to be is worked out here once more.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::OnceLock;

use vmm::snapshot::memory::{Id, RegionState, check_file, lay_out};
use vmm::snapshot::merge::merge;
use vmm::snapshot::state::VmState;
use vmm::snapshot::{directory, format};
use vmm_sys_util::tempdir::TempDir;

use crate::Input;
use crate::seeds;

const PAGE: u64 = 4096;
/// Most pages of a region, and most regions.
const PAGES: u8 = 40;
const REGIONS: u8 = 3;
const BASE: Id = [1; 16];
const CHANGED: Id = [2; 16];

/// What is wrong with the two, by the fuzzer's choice.
mod wrong {
    pub(super) const REGIONS: u8 = 1;
    pub(super) const IDS: u8 = 1 << 1;
    pub(super) const COUNT: u8 = 1 << 2;
    pub(super) const LENGTH: u8 = 1 << 3;
    pub(super) const CHECKSUM: u8 = 1 << 4;
    pub(super) const BASE_LENGTH: u8 = 1 << 5;
    pub(super) const KIND: u8 = 1 << 6;
    /// All of them that a merge is always refused for.
    pub(super) const FATAL: u8 = IDS | COUNT | LENGTH | CHECKSUM | BASE_LENGTH | KIND;
}

/// By page of the memory file: what is in it, if that is not zero.
type Contents = BTreeMap<u64, u8>;

/// A machine that there never was, without memory.
fn template() -> &'static VmState {
    static TEMPLATE: OnceLock<VmState> = OnceLock::new();
    TEMPLATE.get_or_init(seeds::machine)
}

/// Both snapshots.
struct Case {
    regions: Vec<RegionState>,
    /// Where the memory files' own ends of the regions are, whatever the states say.
    end: u64,
    base: Contents,
    changes: Contents,
    /// Where in the file a range begins, and its bytes.
    table: Vec<(u64, u64)>,
    wrong: u8,
    /// How much is wrong.
    amount: u8,
}

impl Case {
    fn new(input: &mut Input) -> Self {
        let count = 1 + input.u8() % REGIONS;
        let sizes: Vec<_> = (0..u64::from(count))
            .map(|number| (number << 32, PAGE * u64::from(1 + input.u8() % PAGES)))
            .collect();
        let mut regions = lay_out(sizes);
        let end = regions.last().map_or(0, |last| last.offset + last.bytes);
        let pages =
            |region: &RegionState| region.offset / PAGE..(region.offset + region.bytes) / PAGE;
        let all: Vec<u64> = regions.iter().flat_map(pages).collect();
        let (wrong, amount) = match input.u8() {
            // Most are right.
            kind if kind < 128 => (0, 0),
            kind => (kind & 0x7f, input.u8().max(1)),
        };
        let contents = |input: &mut Input| -> Contents {
            let count = input.u8() % 16;
            (0..count)
                .map(|_| (all[usize::from(input.u8()) % all.len()], input.u8()))
                .filter(|(_, byte)| *byte != 0)
                .collect()
        };
        let base = contents(input);
        let changes = contents(input);
        let mut table = Vec::new();
        let mut next = 0;
        for _ in 0..input.u8() % 24 {
            let kind = input.u8();
            if kind % 8 == 0 {
                let word = |input: &mut Input| u64::from(input.u32()) << (input.u8() % 33);
                table.push((word(input), word(input)));
                continue;
            }
            // Behind the last one, within a region.
            let start = next + usize::from(kind >> 4) % all.len();
            let Some(first) = all.get(start) else {
                break;
            };
            let wanted = 1 + usize::from(input.u8() % 8);
            let run = (all[start..].iter().zip(*first..))
                .take(wanted)
                .take_while(|(page, expected)| **page == *expected)
                .count();
            table.push((first * PAGE, run as u64 * PAGE));
            next = start + run;
        }
        if wrong & wrong::REGIONS != 0 {
            let which = usize::from(input.u8()) % regions.len();
            let value = u64::from(input.u32()) << (input.u8() % 33);
            match amount % 3 {
                0 => regions[which].gpa = value,
                1 => regions[which].bytes = value,
                _ => regions[which].offset = value,
            }
        }
        Self {
            regions,
            end,
            base,
            changes,
            table,
            wrong,
            amount,
        }
    }

    fn is_wrong(&self, what: u8) -> bool {
        self.wrong & what != 0
    }

    /// The ranges of the table, if it is a right one.
    fn ranges(&self) -> Option<Vec<Range<u64>>> {
        let mut after = 0;
        let mut ranges = Vec::new();
        for &(start, bytes) in &self.table {
            let end = start.checked_add(bytes)?;
            let is_in = |region: &RegionState| {
                region.offset <= start && end <= region.offset + region.bytes
            };
            let is_right = bytes > 0
                && start % PAGE == 0
                && bytes % PAGE == 0
                && start >= after
                && self.regions.iter().any(is_in);
            if !is_right {
                return None;
            }
            after = end;
            ranges.push(start..end);
        }
        Some(ranges)
    }

    /// Whether the regions are where regions of these sizes are, in files of this length.
    fn has_right_regions(&self) -> bool {
        let is_right = |region: &RegionState| {
            region.bytes > 0 && region.bytes % PAGE == 0 && region.bytes <= 1 << 46
        };
        let sizes = self.regions.iter().map(|region| (region.gpa, region.bytes));
        self.regions.iter().all(is_right)
            && lay_out(sizes) == self.regions
            && (self.regions.last()).is_some_and(|last| last.offset + last.bytes == self.end)
    }

    /// What is to be in the result; None: there is to be none.
    fn expected(&self) -> Option<Contents> {
        if self.wrong & wrong::FATAL != 0 || !self.has_right_regions() {
            return None;
        }
        let ranges = self.ranges()?;
        let has_changed = |page: &u64| ranges.iter().any(|range| range.contains(&(page * PAGE)));
        let old = self.base.iter().filter(|(page, _)| !has_changed(page));
        let new = self.changes.iter().filter(|(page, _)| has_changed(page));
        Some(old.chain(new).map(|(page, byte)| (*page, *byte)).collect())
    }

    fn write_base(&self, folder: &Path) {
        let mut state = template().clone();
        state.memory_id = BASE;
        state.memory.clone_from(&self.regions);
        if self.is_wrong(wrong::KIND) && self.amount % 2 == 0 {
            state.memory_base = Some([3; 16]);
        }
        write_state(folder, &state);
        let file = memory_of(folder, &self.base, self.end);
        let mut id = BASE;
        if self.is_wrong(wrong::IDS) && self.amount % 3 == 0 {
            id[15] ^= self.amount;
        }
        file.write_all_at(&id, self.end).unwrap();
        if self.is_wrong(wrong::BASE_LENGTH) {
            resize(&file, self.amount);
        }
    }

    fn write_changes(&self, folder: &Path) {
        let mut state = template().clone();
        state.memory_id = CHANGED;
        state.memory.clone_from(&self.regions);
        state.memory_base = Some(BASE);
        if self.is_wrong(wrong::KIND) && self.amount % 2 == 1 {
            state.memory_base = None;
        }
        write_state(folder, &state);
        let file = memory_of(folder, &self.changes, self.end);
        let (mut own, mut base) = (CHANGED, BASE);
        if self.is_wrong(wrong::IDS) {
            match self.amount % 3 {
                1 => own[0] ^= self.amount,
                2 => base[7] ^= self.amount,
                _ => {}
            }
        }
        let mut count = self.table.len() as u64;
        let table = self.table.iter();
        let table: Vec<u8> = table
            .flat_map(|(start, bytes)| [start.to_le_bytes(), bytes.to_le_bytes()].concat())
            .collect();
        if self.is_wrong(wrong::COUNT) {
            count ^= u64::from(self.amount) << (8 * (u32::from(self.amount) % 8));
        }
        let mut checked = table.clone();
        checked.extend(base);
        checked.extend(count.to_le_bytes());
        let mut checksum = crc32fast::hash(&checked);
        if self.is_wrong(wrong::CHECKSUM) {
            checksum ^= u32::from(self.amount) << (self.amount % 24);
        }
        let mut trailer = own.to_vec();
        trailer.extend(base);
        trailer.extend(count.to_le_bytes());
        trailer.extend(checksum.to_le_bytes());
        trailer.extend([0; 4]);
        trailer.extend(table);
        file.write_all_at(&trailer, self.end).unwrap();
        if self.is_wrong(wrong::LENGTH) {
            resize(&file, self.amount);
        }
    }
}

fn write_state(folder: &Path, state: &VmState) {
    let bytes = format::encode("{}", state).unwrap();
    fs::write(directory::state(folder), bytes).unwrap();
}

/// A memory file with these pages, without what is behind them.
fn memory_of(folder: &Path, contents: &Contents, end: u64) -> File {
    let file = File::create(directory::memory(folder)).unwrap();
    file.set_len(end).unwrap();
    for (page, byte) in contents {
        file.write_all_at(&[*byte; PAGE as usize], page * PAGE)
            .unwrap();
    }
    file
}

/// Makes a file longer or shorter by some bytes.
fn resize(file: &File, amount: u8) {
    let length = file.metadata().unwrap().len();
    let by = u64::from(amount >> 1) + 1;
    let length = if amount % 2 == 0 {
        length + by
    } else {
        length - by.min(length)
    };
    file.set_len(length).unwrap();
}

/// The pages of a memory file of these regions.
fn pages_of(folder: &Path, regions: &[RegionState]) -> Contents {
    let file = File::open(directory::memory(folder)).unwrap();
    let mut contents = Contents::new();
    for region in regions {
        let mut bytes = vec![0; region.bytes as usize];
        file.read_exact_at(&mut bytes, region.offset).unwrap();
        for (page, bytes) in (region.offset / PAGE..).zip(bytes.chunks(PAGE as usize)) {
            let first = bytes[0];
            assert!(bytes.iter().all(|byte| *byte == first), "a torn page");
            if first != 0 {
                contents.insert(page, first);
            }
        }
    }
    contents
}

/// Merges two snapshots of the fuzzer's, into either of them or a third one.
pub fn run(input: &[u8]) {
    let mut input = Input(input);
    let into = input.u8() % 3;
    let case = Case::new(&mut input);
    let folder = TempDir::new_in(Path::new("/dev/shm")).unwrap();
    let [base, changed, third] =
        ["base", "changed", "third"].map(|name| folder.as_path().join(name));
    fs::create_dir(&base).unwrap();
    fs::create_dir(&changed).unwrap();
    case.write_base(&base);
    case.write_changes(&changed);
    let states = || [&base, &changed].map(|folder| fs::read(directory::state(folder)).unwrap());
    let before = states();
    let into = [&base, &changed, &third][usize::from(into)];
    let merged = merge(&base, &changed, into);
    let Some(expected) = case.expected() else {
        assert!(merged.is_err(), "what is wrong was merged");
        // Both are as they were, and there is no third one.
        assert!(states() == before);
        assert!(!directory::state(&third).exists());
        return;
    };
    merged.unwrap();
    let bytes = fs::read(directory::state(into)).unwrap();
    let state: VmState = format::StateFile::read(&mut &bytes[..])
        .and_then(|file| file.state())
        .unwrap();
    assert_eq!((state.memory_id, state.memory_base), (CHANGED, None));
    assert!(state.memory == case.regions);
    let file = File::open(directory::memory(into)).unwrap();
    check_file(&state.memory, &CHANGED, &file).unwrap();
    assert!(pages_of(into, &case.regions) == expected, "other pages");
}
