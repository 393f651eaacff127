//! MSI-X (PCI Local Bus 3.0, section 6.8.2): a table of messages in a function's memory, one for each
//! vector. Whoever interrupts writes to the vector's eventfd, to which the host's kernel listens while
//! the guest wants to be interrupted; while it does not, the eventfd remembers.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use crate::interrupt::MsiMessage;
use crate::state::BadState;

/// The most vectors of a function here; the specification allows 2048.
pub const MAX_VECTORS: usize = 128;
/// Id of the capability.
pub const CAPABILITY_ID: u8 = 0x11;
/// Bytes of a vector's entry in the table.
pub const ENTRY_SIZE: u64 = 16;
/// Bytes of the largest table.
pub const TABLE_MAX_SIZE: u64 = MAX_VECTORS as u64 * ENTRY_SIZE;
/// Bytes of the most pending bits.
pub const PENDING_MAX_SIZE: u64 = MAX_VECTORS as u64 / 8;

// Message control.
const CONTROL_ENABLE: u16 = 1 << 15;
const CONTROL_FUNCTION_MASK: u16 = 1 << 14;

// Of an entry, as offsets: two halves of the address, the data, and the mask.
const ADDRESS_LOW: u64 = 0;
const ADDRESS_HIGH: u64 = 4;
const DATA: u64 = 8;
const VECTOR_CONTROL: u64 = 12;
const VECTOR_MASKED: u32 = 1 << 0;

/// What is written there goes to local APICs (Intel SDM volume 3, "Message Signalled Interrupts").
const APICS: u64 = 0xfee0_0000;
const APICS_MASK: u64 = !0xf_ffff;

/// A function's interrupts, as the monitor delivers them.
pub trait MsiVectors: Send + Sync {
    /// From now on the eventfd of `vector` delivers `message`, or nothing: then it keeps what is
    /// written to it. What it has kept is delivered at once. Called with the function's lock held.
    fn set(&self, vector: usize, message: Option<MsiMessage>);

    /// The eventfd of `vector`; there is one for each up to the number asked for.
    fn fd(&self, vector: usize) -> Option<&Arc<EventFd>>;

    /// The function has gone: nothing is delivered any more. No other call follows.
    fn release(&self);
}

struct Vector {
    address: u64,
    data: u32,
    masked: bool,
    /// Something was written to the eventfd and read back from it, to tell that it is pending.
    pending: bool,
    delivers: bool,
}

/// The table with the pending bits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixState(Vec<EntryState>);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct EntryState {
    address: u64,
    data: u32,
    masked: bool,
    pending: bool,
}

/// The table, the pending bits, and the switches for all of it.
pub struct Msix {
    // Runtime glue.
    vectors: Arc<dyn MsiVectors>,

    // Volatile state.
    table: Vec<Vector>,
    control: u16,
}

impl Msix {
    /// Switched off, with `count` masked vectors, at most [`MAX_VECTORS`].
    pub fn new(vectors: Arc<dyn MsiVectors>, count: usize) -> Self {
        let table = (0..count.min(MAX_VECTORS)).map(|_| Vector {
            address: 0,
            data: 0,
            masked: true,
            pending: false,
            delivers: false,
        });
        Self {
            vectors,
            table: table.collect(),
            control: 0,
        }
    }

    /// How many vectors.
    pub fn count(&self) -> usize {
        self.table.len()
    }

    /// The body of the capability, and which of its bits can be written. The table is at `table` and
    /// the pending bits at `pending`, both in the memory of BAR 0 and multiples of 8.
    pub fn capability(&self, table: u32, pending: u32) -> ([u8; 10], [u8; 10]) {
        let (mut body, mut writable) = ([0; 10], [0; 10]);
        let last = u16::try_from(self.count().saturating_sub(1)).unwrap_or(0);
        body[..2].copy_from_slice(&last.to_le_bytes());
        body[2..6].copy_from_slice(&table.to_le_bytes());
        body[6..].copy_from_slice(&pending.to_le_bytes());
        let control = CONTROL_ENABLE | CONTROL_FUNCTION_MASK;
        writable[..2].copy_from_slice(&control.to_le_bytes());
        (body, writable)
    }

    /// The guest has written the message control of the capability.
    pub fn set_control(&mut self, control: u16) {
        let control = control & (CONTROL_ENABLE | CONTROL_FUNCTION_MASK);
        if control != self.control {
            self.control = control;
            self.update_all();
        }
    }

    /// Whether it is switched on.
    pub fn is_enabled(&self) -> bool {
        self.control & CONTROL_ENABLE != 0
    }

    /// All is as it was at first, but for what is pending.
    pub fn reset(&mut self) {
        self.control = 0;
        for vector in &mut self.table {
            vector.masked = true;
        }
        self.update_all();
    }

    fn update_all(&mut self) {
        for index in 0..self.count() {
            self.update(index);
        }
    }

    /// Has the vector deliver if it is to. Its message counts as of when it is unmasked: the guest must
    /// not change it otherwise (section 6.8.2.9), and each change costs the host.
    fn update(&mut self, index: usize) {
        let open = self.control == CONTROL_ENABLE;
        let vector = &mut self.table[index];
        let is_message = vector.address & APICS_MASK == APICS;
        let delivers = open && !vector.masked && is_message;
        if delivers == vector.delivers {
            return;
        }
        vector.delivers = delivers;
        let message = MsiMessage {
            address: vector.address,
            data: vector.data,
        };
        self.vectors.set(index, delivers.then_some(message));
        if delivers && std::mem::take(&mut vector.pending) {
            signal(&*self.vectors, index);
        }
    }

    /// See [`crate::state`]. What is pending is part of it.
    pub fn save(&mut self) -> MsixState {
        let count = self.count();
        let entry = |index| {
            let pending = self.is_pending(index);
            let vector = &self.table[index];
            EntryState {
                address: vector.address,
                data: vector.data,
                masked: vector.masked,
                pending,
            }
        };
        MsixState((0..count).map(entry).collect())
    }

    /// See [`crate::state`]. The message control comes from the capability.
    pub fn restore(&mut self, state: &MsixState) -> Result<(), BadState> {
        BadState::check_count("vectors", state.0.len(), self.count())?;
        for (vector, state) in self.table.iter_mut().zip(&state.0) {
            vector.address = state.address & !3;
            vector.data = state.data;
            vector.masked = state.masked;
            vector.pending = state.pending;
        }
        self.update_all();
        Ok(())
    }

    /// Reads the table, `offset` bytes from its start: 4 or 8 bytes, aligned (section 6.8.2). All else
    /// gives zeroes.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if !is_access(offset, data.len()) {
            return;
        }
        for (offset, data) in (offset..).step_by(4).zip(data.chunks_mut(4)) {
            data.copy_from_slice(&self.read_register(offset).to_le_bytes());
        }
    }

    fn read_register(&self, offset: u64) -> u32 {
        let Some(vector) = entry(offset).and_then(|index| self.table.get(index)) else {
            return 0;
        };
        #[expect(clippy::cast_possible_truncation, reason = "takes a half")]
        match offset % ENTRY_SIZE {
            ADDRESS_LOW => vector.address as u32,
            ADDRESS_HIGH => (vector.address >> 32) as u32,
            DATA => vector.data,
            _ => u32::from(vector.masked),
        }
    }

    /// Writes to it; the same is so of `offset` and `data`.
    pub fn write_table(&mut self, offset: u64, data: &[u8]) {
        if !is_access(offset, data.len()) {
            return;
        }
        for (offset, data) in (offset..).step_by(4).zip(data.chunks(4)) {
            if let Ok(bytes) = data.try_into() {
                self.write_register(offset, u32::from_le_bytes(bytes));
            }
        }
    }

    fn write_register(&mut self, offset: u64, value: u32) {
        let Some(index) = entry(offset) else {
            return;
        };
        let Some(vector) = self.table.get_mut(index) else {
            return;
        };
        match offset % ENTRY_SIZE {
            // The lowest two bits are always 0.
            ADDRESS_LOW => vector.address = vector.address >> 32 << 32 | u64::from(value & !3),
            ADDRESS_HIGH => {
                vector.address = vector.address & u64::from(u32::MAX) | u64::from(value) << 32;
            }
            DATA => vector.data = value,
            VECTOR_CONTROL => {
                vector.masked = value & VECTOR_MASKED != 0;
                self.update(index);
            }
            _ => {}
        }
    }

    /// Reads the pending bits, `offset` bytes from their start, in any way.
    pub fn read_pending(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        #[expect(clippy::cast_possible_truncation, reason = "below MAX_VECTORS / 8")]
        for (at, byte) in (offset..PENDING_MAX_SIZE).zip(data) {
            for bit in 0..8 {
                if self.is_pending(at as usize * 8 + bit) {
                    *byte |= 1 << bit;
                }
            }
        }
    }

    fn is_pending(&mut self, index: usize) -> bool {
        match self.table.get_mut(index) {
            // The host's kernel delivers it, or has.
            Some(vector) if vector.delivers => false,
            Some(vector) => {
                let written = self.vectors.fd(index).is_some_and(|fd| fd.read().is_ok());
                vector.pending |= written;
                vector.pending
            }
            None => false,
        }
    }
}

/// Interrupts by `vector`; there may be none such.
pub fn signal(vectors: &dyn MsiVectors, vector: usize) {
    if let Some(fd) = vectors.fd(vector) {
        // Fails only when the counter is at its maximum: it has been heard of then, or will be.
        let _ = fd.write(1);
    }
}

fn is_access(offset: u64, len: usize) -> bool {
    matches!(len, 4 | 8) && offset.is_multiple_of(len as u64) && offset < TABLE_MAX_SIZE
}

fn entry(offset: u64) -> Option<usize> {
    usize::try_from(offset / ENTRY_SIZE).ok()
}

#[cfg(test)]
pub(crate) mod test_support {
    use std::sync::Mutex;

    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    /// Delivers into counters.
    pub(crate) struct Vectors {
        fds: Vec<Arc<EventFd>>,
        state: Mutex<State>,
    }

    #[derive(Default)]
    struct State {
        messages: Vec<Option<MsiMessage>>,
        sets: usize,
        released: bool,
    }

    impl Vectors {
        pub(crate) fn new(count: usize) -> Arc<Self> {
            let fd = || Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
            Arc::new(Self {
                fds: (0..count).map(|_| fd()).collect(),
                state: Mutex::new(State {
                    messages: vec![None; count],
                    ..State::default()
                }),
            })
        }

        /// What the guest has got by `vector` since the last call.
        pub(crate) fn take(&self, vector: usize) -> Option<MsiMessage> {
            let message = crate::lock(&self.state).messages[vector]?;
            self.fds[vector].read().is_ok().then_some(message)
        }

        /// How often anything was set.
        pub(crate) fn sets(&self) -> usize {
            crate::lock(&self.state).sets
        }

        pub(crate) fn is_released(&self) -> bool {
            crate::lock(&self.state).released
        }
    }

    impl MsiVectors for Vectors {
        fn set(&self, vector: usize, message: Option<MsiMessage>) {
            let mut state = crate::lock(&self.state);
            assert!(!state.released);
            state.messages[vector] = message;
            state.sets += 1;
        }

        fn fd(&self, vector: usize) -> Option<&Arc<EventFd>> {
            self.fds.get(vector)
        }

        fn release(&self) {
            let mut state = crate::lock(&self.state);
            state.messages.fill(None);
            state.released = true;
        }
    }
}

#[cfg(test)]
#[path = "msix_test.rs"]
mod tests;
