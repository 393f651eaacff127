//! Files, a guest's memory and numbers for the tests of disks.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{Buffer, Cache, Disk, EngineKind, Options};

/// A directory that disappears with the test.
pub(crate) struct TempDir(PathBuf);

impl TempDir {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path =
            std::env::temp_dir().join(format!("mote-disk-test-{}-{number}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A file of `len` bytes that differ.
    pub(crate) fn file(&self, name: &str, len: usize) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, pattern(len)).unwrap();
        path
    }

    /// A file of `len` bytes that takes no room.
    pub(crate) fn sparse(&self, name: &str, len: u64) -> PathBuf {
        let path = self.path(name);
        File::create(&path).unwrap().set_len(len).unwrap();
        path
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 512 * 7 + at * 3) as u8).collect()
}

/// Pseudo-random numbers.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// A disk, and a guest's memory to move its data to and from.
pub(crate) struct TestDisk {
    pub(crate) disk: Disk,
    pub(crate) memory: Arc<GuestMemoryMmap>,
}

impl TestDisk {
    pub(crate) const MEMORY: usize = 8 << 20;

    pub(crate) fn open(options: &Options) -> Self {
        Self::new(Disk::open(options).unwrap())
    }

    pub(crate) fn new(disk: Disk) -> Self {
        let ranges = [(GuestAddress(0), Self::MEMORY)];
        Self {
            disk,
            memory: Arc::new(GuestMemoryMmap::from_ranges(&ranges).unwrap()),
        }
    }

    pub(crate) fn buffer(&self, len: usize) -> Buffer {
        Buffer::at(&self.memory, 0, len, 3000)
    }

    /// Waits for all requests.
    pub(crate) fn finish(&mut self) -> std::io::Result<()> {
        self.disk.submit();
        self.disk.drain();
        let mut completions = Vec::new();
        self.disk.completions(&mut completions);
        completions.into_iter().try_for_each(|(_, result)| result)
    }

    pub(crate) fn read(&mut self, offset: u64, len: usize) -> std::io::Result<Vec<u8>> {
        let buffer = self.buffer(len);
        self.disk.read(0, offset, buffer.clone());
        self.finish()?;
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        Ok(bytes)
    }

    pub(crate) fn write(&mut self, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
        self.memory.write_slice(bytes, GuestAddress(0)).unwrap();
        let buffer = self.buffer(bytes.len());
        self.disk.write(0, offset, buffer.clone());
        self.finish()
    }

    pub(crate) fn flush(&mut self) -> std::io::Result<()> {
        let buffer = self.buffer(0);
        self.disk.flush(0, &buffer);
        self.finish()
    }
}

/// Every engine with every cache mode.
pub(crate) fn modes() -> impl Iterator<Item = (EngineKind, Cache)> {
    [EngineKind::IoUring, EngineKind::Sync]
        .into_iter()
        .flat_map(|engine| [Cache::Writeback, Cache::Unsafe].map(|cache| (engine, cache)))
}

/// Runs qemu-img; None, said loudly, if there is none.
pub(crate) fn qemu_img(arguments: &[&str]) -> Option<String> {
    let Ok(output) = Command::new("qemu-img").args(arguments).output() else {
        eprintln!("SKIPPED: no qemu-img here (package qemu-utils)");
        return None;
    };
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "qemu-img {arguments:?}: {text}");
    Some(text.into_owned())
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Checks a disk against a model of it with many random operations; returns the model.
pub(crate) fn compare_with_model(
    test: &mut TestDisk,
    mut model: Vec<u8>,
    operations: usize,
    seed: u64,
) -> Vec<u8> {
    let mut random = Random(seed);
    let sectors = model.len() as u64 / 512;
    assert_eq!(test.disk.info().size(), model.len() as u64);
    for number in 0..operations {
        let sector = random.below(sectors);
        let longest = if random.below(4) == 0 { 1024 } else { 24 };
        let count = (1 + random.below(longest)).min(sectors - sector);
        let (offset, len) = (sector * 512, (count * 512) as usize);
        let range = offset as usize..offset as usize + len;
        let what = random.below(16);
        match what {
            0..=6 => {
                let mark = random.below(1 << 20);
                let bytes: Vec<u8> = (0..len as u64)
                    .map(|at| (mark + at * 5 + at / 512) as u8)
                    .collect();
                test.write(offset, &bytes).unwrap();
                model[range].copy_from_slice(&bytes);
            }
            7 => {
                // Its content is not defined, but for whole blocks it is zeroes in our images.
                test.disk.discard(offset, len as u64).unwrap();
                let now = test.read(offset, len).unwrap();
                let model = &mut model[range];
                for (new, old) in now.chunks(512).zip(model.chunks(512)) {
                    assert!(new == old || new == [0; 512], "discard {number}");
                }
                model.copy_from_slice(&now);
            }
            8 | 9 => {
                let unmap = what == 8;
                test.disk.write_zeroes(offset, len as u64, unmap).unwrap();
                model[range].fill(0);
            }
            10 => test.flush().unwrap(),
            _ => assert!(
                test.read(offset, len).unwrap() == model[range],
                "read {number} at sector {sector}, {count} sectors"
            ),
        }
    }
    assert_same(test, &model);
    model
}

/// Checks every byte.
pub(crate) fn assert_same(test: &mut TestDisk, model: &[u8]) {
    for (index, chunk) in model.chunks(1 << 20).enumerate() {
        let bytes = test.read((index as u64) << 20, chunk.len()).unwrap();
        for (sector, (is, should)) in bytes.chunks(512).zip(chunk.chunks(512)).enumerate() {
            assert!(is == should, "sector {}", index * 2048 + sector);
        }
    }
}
