//! Files for disks, in memory: nothing that a fuzzer does is to reach a disk of the host.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Once;

use flate2::Compression;
use flate2::write::DeflateEncoder;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Resource, Rlimit, setrlimit};

/// Files do not become larger: writes beyond it fail, as on a host whose disk is full.
const MAX_FILE: u64 = 32 << 20;

extern "C" fn ignore(_: i32) {}

/// To be called before the first disk is opened.
pub fn prepare() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: nothing else runs yet that looks at the environment, and the handler does nothing.
        unsafe {
            // Where temporary overlays are.
            std::env::set_var("TMPDIR", "/dev/shm");
            libc::signal(libc::SIGXFSZ, ignore as *const () as libc::sighandler_t);
        }
        let limit = Rlimit {
            current: Some(MAX_FILE),
            maximum: Some(MAX_FILE),
        };
        setrlimit(Resource::Fsize, limit).unwrap();
    });
}

/// A file in memory.
pub struct Memory(File);

impl Memory {
    /// With these bytes, and zeroes up to `len`.
    pub fn new(bytes: &[u8], len: u64) -> Self {
        let fd: OwnedFd = memfd_create(c"mote-fuzz", MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(fd);
        file.write_all_at(bytes, 0).unwrap();
        let memory = Self(file);
        memory.set_len(len.max(bytes.len() as u64));
        memory
    }

    /// What opens it.
    pub fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.0.as_raw_fd()).into()
    }

    /// Makes it longer or shorter.
    pub fn set_len(&self, len: u64) {
        self.0.set_len(len).unwrap();
    }
}

/// What a qcow2 image is like.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Log2 of the bytes of a cluster: 9 to 21.
    pub cluster_bits: u32,
    /// 2 or 3.
    pub version: u32,
    /// Log2 of the bits of a reference count, in version 3: 0 to 6.
    pub refcount_order: u32,
    /// Compressed clusters are zstd's, in version 3.
    pub zstd: bool,
    /// Bytes of the disk.
    pub size: u64,
}

impl Layout {
    /// The L2 tables of the disk.
    fn l2_tables(&self) -> u64 {
        let entries = 1 << (self.cluster_bits - 3);
        self.size.div_ceil(entries << self.cluster_bits)
    }

    /// Whether the L1 table has room in its cluster.
    pub fn fits(&self) -> bool {
        self.l2_tables() * 8 <= 1 << self.cluster_bits
    }
}

// Where what is, in clusters. The L1 table has one, which is enough for small disks.
const REFTABLE: u64 = 1;
const REFBLOCK: u64 = 2;
const L1: u64 = 3;
const L2: u64 = 4;
const DATA: u64 = 5;
const KEPT: u64 = 6;
const SHARED: u64 = 7;
const COMPRESSED: u64 = 8;
const END: u64 = 10;

const COPIED: u64 = 1 << 63;

/// A good image, whose first clusters are: data, zeroes with a cluster behind them, data that a
/// snapshot has as well, compressed data; and nothing from there on.
pub fn qcow2(layout: Layout) -> Vec<u8> {
    let cluster = 1usize << layout.cluster_bits;
    let at = |number: u64| number << layout.cluster_bits;
    let mut image = vec![0; cluster * END as usize];
    put32(&mut image, 0, u32::from_be_bytes(*b"QFI\xfb"));
    put32(&mut image, 4, layout.version);
    put32(&mut image, 20, layout.cluster_bits);
    put64(&mut image, 24, layout.size);
    put32(&mut image, 36, layout.l2_tables() as u32);
    put64(&mut image, 40, at(L1));
    put64(&mut image, 48, at(REFTABLE));
    put32(&mut image, 56, 1);
    if layout.version == 3 {
        put32(&mut image, 96, layout.refcount_order);
        put32(&mut image, 100, 112);
        // One feature that a writer clears, and the type of compression.
        put64(&mut image, 88, 1);
        if layout.zstd {
            put64(&mut image, 72, 1 << 3);
            image[104] = 1;
        }
    }
    let order = if layout.version == 3 {
        layout.refcount_order
    } else {
        4
    };
    put64(&mut image, at(REFTABLE) as usize, at(REFBLOCK));
    for number in 0..END {
        let count = if number == SHARED && order > 0 { 2 } else { 1 };
        put_refcount(
            &mut image[at(REFBLOCK) as usize..],
            order,
            number as usize,
            count,
        );
    }
    put64(&mut image, at(L1) as usize, at(L2) | COPIED);
    let packed = pack(cluster, layout.zstd && layout.version == 3);
    let start = at(COMPRESSED) + 40;
    let last = (start + packed.len() as u64 - 1) / 512;
    let sectors = last - start / 512;
    let entries = [
        at(DATA) | COPIED,
        at(KEPT) | COPIED | 1,
        at(SHARED),
        1 << 62 | sectors << (62 - (layout.cluster_bits - 8)) | start,
    ];
    for (index, entry) in entries.into_iter().enumerate() {
        put64(&mut image, at(L2) as usize + 8 * index, entry);
    }
    image[at(DATA) as usize..][..cluster].fill(0xda);
    image[at(SHARED) as usize..][..cluster].fill(0x5a);
    image[start as usize..][..packed.len()].copy_from_slice(&packed);
    image
}

fn put32(image: &mut [u8], at: usize, value: u32) {
    image[at..at + 4].copy_from_slice(&value.to_be_bytes());
}

fn put64(image: &mut [u8], at: usize, value: u64) {
    image[at..at + 8].copy_from_slice(&value.to_be_bytes());
}

fn put_refcount(block: &mut [u8], order: u32, index: usize, count: u64) {
    if order < 3 {
        let bit = index << order;
        block[bit / 8] |= (count << (bit % 8)) as u8;
    } else {
        let bytes = 1usize << (order - 3);
        let all = count.to_be_bytes();
        block[index * bytes..][..bytes].copy_from_slice(&all[8 - bytes..]);
    }
}

/// A cluster of one byte, compressed.
fn pack(cluster: usize, zstd: bool) -> Vec<u8> {
    if !zstd {
        let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&vec![0xc0; cluster]).unwrap();
        return encoder.finish().unwrap();
    }
    // A frame that is one segment, with the size in four bytes.
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0xa0];
    frame.extend_from_slice(&(cluster as u32).to_le_bytes());
    // Blocks of up to 128 KiB that are one byte again and again.
    let mut left = cluster;
    while left > 0 {
        let now = left.min(128 << 10);
        left -= now;
        let header = u32::from(left == 0) | 1 << 1 | (now as u32) << 3;
        frame.extend_from_slice(&header.to_le_bytes()[..3]);
        frame.push(0xc0);
    }
    frame
}
