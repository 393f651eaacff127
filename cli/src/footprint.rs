//! What a start has mapped and a running guest does not need, given back.
#![expect(unsafe_code, reason = "the mappings of this program's own code")]

use std::io;
use std::time::Duration;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::timerfd::TimerFd;

/// By then most guests have started, and those that only live for a moment have gone.
const DELAY: Duration = Duration::from_millis(500);

/// Once, a while after the start, takes the pages of the program out of this process's memory. They
/// stay in the host's page cache, and those that are still needed are back with their next use: most of
/// what parsed flags, files and headers and set up KVM is not.
pub(crate) struct Trim(TimerFd);

impl Trim {
    /// Begins to wait.
    pub(crate) fn new() -> io::Result<Self> {
        let mut timer = TimerFd::new()?;
        timer.reset(DELAY, None)?;
        Ok(Self(timer))
    }
}

impl MutEventSubscriber for Trim {
    fn process(&mut self, _: Events, ops: &mut EventOps) {
        // SAFETY: the callback is called during the call only, with valid structures.
        unsafe { libc::dl_iterate_phdr(Some(trim_object), std::ptr::null_mut()) };
        // SAFETY: takes a plain number.
        unsafe { libc::malloc_trim(0) };
        // Once is enough.
        let _ = ops.remove(Events::empty(&self.0));
    }

    fn init(&mut self, ops: &mut EventOps) {
        // Fails only for a descriptor that is already there.
        let _ = ops.add(Events::new(&self.0, EventSet::IN));
    }
}

/// Lets go of the segments of an object that nobody can have written to: the file has them.
///
/// # Safety
/// `info` is what `dl_iterate_phdr` passes.
unsafe extern "C" fn trim_object(
    info: *mut libc::dl_phdr_info,
    _: libc::size_t,
    _: *mut libc::c_void,
) -> libc::c_int {
    let page = 4096;
    // SAFETY: it is valid during this call, as are the headers it points to.
    let (base, headers) = unsafe {
        let info = &*info;
        let count = usize::from(info.dlpi_phnum);
        (
            info.dlpi_addr,
            std::slice::from_raw_parts(info.dlpi_phdr, count),
        )
    };
    for header in headers {
        if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
            continue;
        }
        // Whole pages of this segment only: the next one may be written to.
        let start = (base + header.p_vaddr).next_multiple_of(page);
        let end = (base + header.p_vaddr + header.p_memsz) / page * page;
        if start < end {
            let length = usize::try_from(end - start).unwrap_or(0);
            // SAFETY: a private mapping of the program's file that was never written to, as it is not
            // writable and has no relocations: the next access reads the same bytes from the file.
            unsafe { libc::madvise(start as *mut _, length, libc::MADV_DONTNEED) };
        }
    }
    0
}
