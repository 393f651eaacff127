//! A file that is mapped, and moved from and to a disk without the kernel's cache: on DAX the disk's device
//! is told of the file's own memory.
#![expect(unsafe_code, reason = "maps a file")]

use std::fs::OpenOptions;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::ptr::NonNull;

use guest_probe::pattern::Pattern;
use rustix::fs::OFlags;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::arguments::{Arguments, Failure};

struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

impl Mapping {
    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is this one's, and nobody else has the file.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: nothing of it is borrowed.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.len) };
    }
}

pub(crate) fn run(mut arguments: Arguments) -> Result<(), Failure> {
    let path = arguments.next("the file")?;
    let disk = arguments.next("the disk")?;
    let len = arguments.number("size", 1 << 20)?;
    let len = usize::try_from(len).map_err(|_| Failure::Usage("too large".into()))?;
    let pattern = Pattern::new(arguments.number("seed", 1)?);
    arguments.end()?;
    let mut options = OpenOptions::new();
    options.read(true).write(true);
    let file = options.clone().create(true).truncate(true).open(path)?;
    file.set_len(len as u64)?;
    let direct = i32::from_ne_bytes(OFlags::DIRECT.bits().to_ne_bytes());
    let disk = options.custom_flags(direct).open(disk)?;
    // SAFETY: the kernel chooses a place where nothing is.
    let start = unsafe {
        mmap(
            std::ptr::null_mut(),
            len,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED,
            &file,
            0,
        )
    };
    let start = start.map_err(std::io::Error::from)?;
    let start = NonNull::new(start.cast()).ok_or_else(|| Failure::Check("no mapping".into()))?;
    let mut mapping = Mapping { start, len };
    let mut expected = vec![0; len];
    pattern.write(0, 1, &mut expected);
    mapping.bytes().copy_from_slice(&expected);
    disk.write_all_at(mapping.bytes(), 0)?;
    mapping.bytes().fill(0);
    disk.read_exact_at(mapping.bytes(), 0)?;
    if mapping.bytes() != expected {
        return Err(Failure::Check("what came back is something else".into()));
    }
    file.sync_all()?;
    Ok(())
}
