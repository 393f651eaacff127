//! A list of pages of the fuzzer's beside a memory file of a layout of the fuzzer's. Whether it means anything is worked
//! out here once more.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vmm::snapshot::memory::{Id, RegionState, lay_out};
use vmm::snapshot::working_set::WorkingSet;
use vmm_sys_util::tempdir::TempDir;

use crate::Input;

const PAGE: u64 = 4096;
const ID: Id = *b"0123456789abcdef";

/// First page of the memory file, pages, and whether they were written to.
type Run = (u32, u32, bool);

/// What is in the file.
#[derive(Serialize, Deserialize)]
pub(crate) struct Body {
    pub(crate) id: Id,
    pub(crate) runs: Vec<Run>,
}

fn beside(memory: &Path) -> PathBuf {
    let mut name = memory.as_os_str().to_owned();
    name.push(".pages");
    name.into()
}

/// A layout: one that a machine can have, with something changed in it if bit 7 says so.
fn regions(input: &mut Input) -> Vec<RegionState> {
    let shape = input.u8();
    let sizes: Vec<_> = (0..u64::from(shape % 5))
        .map(|number| (number << 32, PAGE * u64::from(input.u16())))
        .collect();
    let mut regions = lay_out(sizes);
    if shape & 0x80 != 0 && !regions.is_empty() {
        let which = usize::from(input.u8()) % regions.len();
        let value = u64::from(input.u32()) << (input.u8() % 33);
        match shape >> 5 & 3 {
            0 => regions[which].gpa = value,
            1 => regions[which].bytes = value,
            2 => regions[which].offset = value,
            _ => regions.swap(0, which),
        }
    }
    regions
}

fn runs(input: &mut Input) -> Vec<Run> {
    let mut runs = Vec::new();
    let mut next = 0u32;
    while !input.0.is_empty() && runs.len() < 1000 {
        let kind = input.u8();
        let is_written = kind & 1 != 0;
        let (page, pages) = match kind >> 1 & 7 {
            0 => (input.u32(), input.u32()),
            // At the next multiple of 2 MiB, as regions are.
            1 => (next.next_multiple_of(512), u32::from(input.u8())),
            _ => (
                next.saturating_add(u32::from(kind >> 4)),
                1 + u32::from(input.u8()),
            ),
        };
        runs.push((page, pages, is_written));
        next = page.saturating_add(pages).min(u32::MAX - 512);
    }
    runs
}

/// Whether regions are those of a memory file.
fn are_right(regions: &[RegionState]) -> bool {
    let is_right = |region: &RegionState| {
        region.bytes > 0 && region.bytes % PAGE == 0 && region.bytes <= 1 << 46
    };
    let sizes = regions.iter().map(|region| (region.gpa, region.bytes));
    regions.iter().all(is_right) && lay_out(sizes) == regions
}

/// Whether each run is in a region, behind the one before.
fn fit(runs: &[Run], regions: &[RegionState]) -> bool {
    let mut after = 0;
    runs.iter().all(|&(page, pages, _)| {
        let start = u64::from(page) * PAGE;
        let end = start + u64::from(pages) * PAGE;
        let is_in =
            |region: &RegionState| region.offset <= start && end <= region.offset + region.bytes;
        let is_right = pages > 0 && start >= after && regions.iter().any(is_in);
        after = end;
        is_right
    })
}

/// Looks for what is beside a memory file, which need not be there itself.
pub fn run(input: &[u8]) {
    let mut input = Input(input);
    let how = input.u8();
    let regions = regions(&mut input);
    // The body is made of the fuzzer's bytes, or is them.
    let body = if how & 1 == 0 {
        let mut id = ID;
        id[0] ^= u8::from(how & 2 != 0);
        let runs = runs(&mut input);
        postcard::to_stdvec(&Body { id, runs }).unwrap()
    } else {
        input.0.to_vec()
    };
    let mut bytes = b"MOTEPAGE".to_vec();
    bytes.extend(1u32.to_le_bytes());
    bytes.extend(crc32fast::hash(&body).to_le_bytes());
    let header = bytes.len();
    bytes.extend(&body);
    let is_damaged = how & 0xc == 0xc;
    if is_damaged {
        let at = usize::from(how >> 4) % header;
        bytes[at] ^= 1;
    }

    let folder = TempDir::new_in(Path::new("/dev/shm")).unwrap();
    let memory = folder.as_path().join("memory");
    fs::write(beside(&memory), &bytes).unwrap();
    let found = WorkingSet::find(&memory, &ID, &regions);
    let is_right = !is_damaged
        && are_right(&regions)
        && postcard::from_bytes::<Body>(&body)
            .is_ok_and(|body| body.id == ID && fit(&body.runs, &regions));
    assert_eq!(found.is_some(), is_right);
    let Some(found) = found else {
        return;
    };
    let all: u64 = regions.iter().map(|region| region.bytes / PAGE).sum();
    let pages = found.pages();
    assert!(pages.written <= pages.all && pages.all <= all);
    let other = folder.as_path().join("other");
    found.write(&other).unwrap();
    let again = WorkingSet::find(&other, &ID, &regions);
    assert!(again == Some(found), "it reads back as another one");
}
