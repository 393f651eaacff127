//! Guest memory as the kernel of the host takes it.

#![expect(unsafe_code, reason = "guest memory is given to the kernel by address")]

use std::sync::Arc;

use smallvec::SmallVec;
use vm_memory::{Bytes, GuestMemoryMmap, VolatileSlice};

use crate::virtio::chain::Buffers;

/// Pieces of a buffer that are kept without an allocation.
const INLINE: usize = 4;

/// Pieces of guest memory, in order. It keeps the memory alive, so that whoever holds one, such as a
/// request that is in the hands of the kernel, needs to care for nothing else.
#[derive(Clone)]
pub struct Buffer {
    pieces: SmallVec<[libc::iovec; INLINE]>,
    len: u64,
    memory: Arc<GuestMemoryMmap>,
}

// SAFETY: the addresses are those of guest memory, which every thread may access and which `memory`
// keeps mapped.
unsafe impl Send for Buffer {}

impl Buffer {
    /// The memory of `buffers`. None if any of it is not guest memory.
    pub fn new(memory: &Arc<GuestMemoryMmap>, buffers: &Buffers) -> Option<Self> {
        let mut buffer = Self::empty(memory);
        let is_memory = buffers.each_slice(memory, |slice| {
            buffer.push(libc::iovec {
                iov_base: slice.ptr_guard_mut().as_ptr().cast(),
                iov_len: slice.len(),
            });
            true
        });
        is_memory.then_some(buffer)
    }

    /// No memory at all.
    pub fn empty(memory: &Arc<GuestMemoryMmap>) -> Self {
        Self {
            pieces: SmallVec::new(),
            len: 0,
            memory: Arc::clone(memory),
        }
    }

    fn push(&mut self, piece: libc::iovec) {
        self.len += piece.iov_len as u64;
        self.pieces.push(piece);
    }

    /// Bytes in all.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// For preadv and its kind. Valid as long as the buffer is.
    pub(super) fn iovecs(&self) -> &[libc::iovec] {
        &self.pieces
    }

    /// `len` bytes from `offset` on; less if there is less.
    pub(super) fn slice(&self, offset: u64, len: u64) -> Self {
        let mut slice = Self::empty(&self.memory);
        let end = offset.saturating_add(len);
        let mut start = 0;
        for piece in &self.pieces {
            let size = piece.iov_len as u64;
            let (first, last) = (offset.max(start), end.min(start + size));
            if first < last {
                slice.push(libc::iovec {
                    // Both fit, as they are within a piece.
                    iov_base: piece
                        .iov_base
                        .cast::<u8>()
                        .wrapping_add((first - start) as usize)
                        .cast(),
                    iov_len: (last - first) as usize,
                });
            }
            start += size;
        }
        slice
    }

    fn volatile(&self) -> impl Iterator<Item = VolatileSlice<'_>> {
        self.pieces.iter().map(|piece| {
            // SAFETY: a piece is guest memory, which `memory` keeps mapped for as long as `self` lives;
            // all accesses to guest memory are volatile or the kernel's.
            unsafe { VolatileSlice::new(piece.iov_base.cast(), piece.iov_len) }
        })
    }

    /// Fills it with zeroes.
    pub(super) fn zero(&self) {
        const ZEROES: [u8; 4096] = [0; 4096];
        for slice in self.volatile() {
            let mut done = 0;
            while done < slice.len() {
                let now = ZEROES.len().min(slice.len() - done);
                // Within the slice: cannot fail.
                let _ = slice.write_slice(&ZEROES[..now], done);
                done += now;
            }
        }
    }

    /// Copies `bytes` into it, as far as there is room.
    pub(super) fn copy_from(&self, mut bytes: &[u8]) {
        for slice in self.volatile() {
            let (now, later) = bytes.split_at(bytes.len().min(slice.len()));
            // Within the slice: cannot fail.
            let _ = slice.write_slice(now, 0);
            bytes = later;
        }
    }
}

#[cfg(test)]
impl Buffer {
    /// `len` bytes at `gpa`, in pieces of `piece` bytes.
    pub(crate) fn at(memory: &Arc<GuestMemoryMmap>, gpa: u64, len: usize, piece: usize) -> Self {
        use vm_memory::{GuestAddress, GuestMemoryBackend};

        let mut buffer = Self::empty(memory);
        let mut at = 0;
        while at < len {
            let now = piece.min(len - at);
            let slice = memory.get_slice(GuestAddress(gpa + at as u64), now);
            buffer.push(libc::iovec {
                iov_base: slice.unwrap().ptr_guard_mut().as_ptr().cast(),
                iov_len: now,
            });
            at += now;
        }
        buffer
    }
}
