//! How many page faults this process has taken, and its vCPUs: what a guest pays for memory that is not there yet.
#![expect(
    unsafe_code,
    reason = "asks the host for counts, and KVM for a descriptor"
)]

use std::fs::{self, File};
use std::ops::{Add, Sub};
use std::os::fd::FromRawFd;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, OnceLock};

use devices::lock;
use kvm_ioctls::VcpuFd;
use rustix::process::Pid;
use rustix::thread::gettid;
use serde::{Deserialize, Serialize};
use vmm_sys_util::ioctl::ioctl;

/// What KVM calls a page fault that a guest has taken: on memory that KVM has not mapped, or not to be written to.
const TAKEN: &[u8] = b"pf_taken";
/// Of the binary statistics' format: bytes of its header, and of a description without the name.
const HEADER: usize = 24;
const DESCRIPTION: usize = 16;
/// More than KVM has, and a longer name.
const MAX_DESCRIPTIONS: u64 = 1024;
const MAX_NAME: u64 = 256;

mod ioctls {
    use kvm_bindings::KVMIO;

    vmm_sys_util::ioctl_io_nr!(KVM_GET_STATS_FD, KVMIO, 0xce);
}

/// Page faults, as the host counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Faults {
    /// The page was in the host's memory, or had only to be made.
    pub minor: u64,
    /// It had to be read.
    pub major: u64,
}

impl Faults {
    /// Of this process, in all its threads, since it began.
    pub fn of_process() -> Self {
        Self::of(libc::RUSAGE_SELF)
    }

    /// Of the thread that asks.
    fn of_this_thread() -> Self {
        Self::of(libc::RUSAGE_THREAD)
    }

    fn of(whom: libc::c_int) -> Self {
        // SAFETY: a structure of numbers.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: fills the structure.
        unsafe { libc::getrusage(whom, &raw mut usage) };
        Self {
            minor: u64::try_from(usage.ru_minflt).unwrap_or(0),
            major: u64::try_from(usage.ru_majflt).unwrap_or(0),
        }
    }

    /// Of a thread of this process; none if it is gone.
    fn of_thread(thread: Pid) -> Option<Self> {
        let path = format!("/proc/self/task/{}/stat", thread.as_raw_nonzero());
        Self::in_stat(&fs::read_to_string(path).ok()?)
    }

    /// What a `stat` file says.
    fn in_stat(text: &str) -> Option<Self> {
        // Behind the name, which may have anything in it: fields 10 and 12 of all, the third being the first here.
        let (_, fields) = text.rsplit_once(") ")?;
        let field = |number: usize| {
            let field = fields.split_ascii_whitespace().nth(number - 3)?;
            field.parse().ok()
        };
        Some(Self {
            minor: field(10)?,
            major: field(12)?,
        })
    }
}

impl Add for Faults {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            minor: self.minor.saturating_add(other.minor),
            major: self.major.saturating_add(other.major),
        }
    }
}

impl Sub for Faults {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self {
            minor: self.minor.saturating_sub(other.minor),
            major: self.major.saturating_sub(other.major),
        }
    }
}

/// What a thread has taken that nobody waits for, as it says itself.
#[derive(Debug, Default)]
pub(crate) struct Unawaited(Mutex<Faults>);

impl Unawaited {
    /// That thread: what it has taken by now.
    pub(crate) fn tell(&self) {
        *lock(&self.0) = Faults::of_this_thread();
    }

    pub(crate) fn faults(&self) -> Faults {
        *lock(&self.0)
    }
}

/// What vCPUs have taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VcpuFaults {
    /// Their threads, in the host's page tables, also for what KVM needs itself.
    pub threads: Faults,
    /// The guest, in KVM's. None if this KVM does not tell (before Linux 5.14), or does not count.
    pub kvm: Option<u64>,
}

/// Looks at a vCPU's faults, from another thread. It keeps a descriptor of KVM open.
pub(crate) struct Meter {
    thread: Pid,
    statistics: Option<File>,
}

/// The place for one, which the vCPU's thread fills.
pub(crate) type MeterSlot = Arc<OnceLock<Meter>>;

impl Meter {
    /// Of a vCPU, to be called by its thread before it first enters the guest.
    pub(crate) fn new(vcpu: &VcpuFd) -> Self {
        // SAFETY: takes no argument, and makes a descriptor.
        let descriptor = unsafe { ioctl(vcpu, ioctls::KVM_GET_STATS_FD()) };
        let statistics = (descriptor >= 0).then(|| {
            // SAFETY: it is new, and nobody else's.
            unsafe { File::from_raw_fd(descriptor) }
        });
        Self {
            thread: gettid(),
            statistics,
        }
    }
}

/// What all vCPUs have taken that have a meter by now.
pub(crate) fn of_vcpus(meters: &[MeterSlot]) -> VcpuFaults {
    let mut all = VcpuFaults::default();
    for meter in meters.iter().filter_map(|slot| slot.get()) {
        all.threads = all.threads + Faults::of_thread(meter.thread).unwrap_or_default();
        let taken = (meter.statistics.as_ref()).and_then(|file| statistic(file, TAKEN));
        // There is no guest without any.
        if let Some(taken) = taken.filter(|&taken| taken > 0) {
            all.kvm = Some(all.kvm.unwrap_or(0).saturating_add(taken));
        }
    }
    all
}

/// The number of this name among KVM's statistics.
fn statistic(file: &File, name: &[u8]) -> Option<u64> {
    let mut header = [0; HEADER];
    file.read_exact_at(&mut header, 0).ok()?;
    let number = |bytes: &[u8], at: usize| -> Option<u64> {
        let bytes = bytes.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_ne_bytes(bytes).into())
    };
    // flags, bytes of a name, descriptions, where the id is, where they are, where the data is
    let (name_size, count) = (number(&header, 4)?, number(&header, 8)?);
    let (descriptions, data) = (number(&header, 16)?, number(&header, 20)?);
    if name_size > MAX_NAME || count > MAX_DESCRIPTIONS {
        return None;
    }
    let size = DESCRIPTION + usize::try_from(name_size).ok()?;
    let mut bytes = vec![0; size * usize::try_from(count).ok()?];
    file.read_exact_at(&mut bytes, descriptions).ok()?;
    let found = bytes.chunks_exact(size).find(|description| {
        let end = description[DESCRIPTION..].strip_prefix(name);
        end.is_some_and(|end| end.first().is_none_or(|&byte| byte == 0))
    })?;
    // flags, exponent and numbers in it (u16 each), where in the data it is
    let mut value = [0; 8];
    file.read_exact_at(&mut value, data + number(found, 8)?)
        .ok()?;
    Some(u64::from_ne_bytes(value))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use vmm_sys_util::tempfile::TempFile;

    use super::*;

    #[test]
    fn a_process_and_a_thread_that_touch_memory_take_faults() {
        const PAGES: u64 = 256;
        let touch = || {
            let before = (
                Faults::of_process(),
                Faults::of_thread(gettid()).unwrap_or_default(),
            );
            // More than the allocator keeps: each page is new.
            let mut pages = vec![0_u8; 4096 * PAGES as usize * 64];
            for page in pages.chunks_mut(4096).take(PAGES as usize) {
                std::hint::black_box(page)[0] = 1;
            }
            let (process, thread) = before;
            let now = Faults::of_thread(gettid()).unwrap();
            (Faults::of_process() - process, now - thread)
        };
        let (process, thread) = touch();
        // Where pages are huge there is one fault for many of them.
        assert!(
            process.minor >= 1 && thread.minor >= 1,
            "{process:?} {thread:?}"
        );
        assert_eq!(Faults::default() - process, Faults::default());
    }

    #[test]
    fn what_a_stat_file_says() {
        let text = "7 (a) b) c) S 1 2 3 4 5 6 70 8 90 10 11";
        let faults = Faults::in_stat(text).unwrap();
        assert_eq!((faults.minor, faults.major), (70, 90));
        assert_eq!(Faults::in_stat("7 (a) S 1 2"), None);
        assert_eq!(Faults::in_stat(""), None);
    }

    /// Statistics in KVM's format, of these names.
    fn statistics(names: &[(&str, u64)], name_size: u32) -> File {
        let size = DESCRIPTION as u32 + name_size;
        let data = HEADER as u32 + size * names.len() as u32;
        let mut bytes = Vec::new();
        for number in [0, name_size, names.len() as u32, 0, HEADER as u32, data] {
            bytes.extend(number.to_ne_bytes());
        }
        for (index, (name, _)) in (0_u32..).zip(names) {
            bytes.extend([0; 8]);
            bytes.extend((index * 8).to_ne_bytes());
            bytes.extend([0; 4]);
            let mut padded = name.as_bytes().to_vec();
            padded.resize(name_size as usize, 0);
            bytes.extend(padded);
        }
        for (_, value) in names {
            bytes.extend(value.to_ne_bytes());
        }
        let mut file = TempFile::new().unwrap().into_file();
        file.write_all(&bytes).unwrap();
        file
    }

    #[test]
    fn a_statistic_is_found_by_its_whole_name() {
        let file = statistics(&[("pf_taken_by", 1), ("pf_taken", 7), ("exits", 9)], 16);
        assert_eq!(statistic(&file, TAKEN), Some(7));
        assert_eq!(statistic(&file, b"exits"), Some(9));
        assert_eq!(statistic(&file, b"pf"), None);
        // A name without a zero behind it.
        let file = statistics(&[("pf_taken", 7)], 8);
        assert_eq!(statistic(&file, TAKEN), Some(7));
        file.set_len(file.metadata().unwrap().len() - 1).unwrap();
        assert_eq!(statistic(&file, TAKEN), None);
        let file = statistics(&[("pf_taken", 7)], MAX_NAME as u32 + 1);
        assert_eq!(statistic(&file, TAKEN), None);
        assert_eq!(
            statistic(&TempFile::new().unwrap().into_file(), TAKEN),
            None
        );
    }
}
