//! The control queue (section 5.1.6.5): one command a request.

use vm_memory::GuestMemoryMmap;

use crate::virtio::chain::Chain;

/// The queues in use (section 5.1.6.5.5).
const CLASS_MQ: u8 = 4;
const MQ_VQ_PAIRS_SET: u8 = 0;
/// Offloads (section 5.1.6.5.6).
const CLASS_GUEST_OFFLOADS: u8 = 5;
const GUEST_OFFLOADS_SET: u8 = 0;
/// Class and command.
const COMMAND_HEADER: u32 = 2;

/// Answer: done.
pub(super) const OK: u8 = 0;
/// Answer: not done.
pub(super) const ERR: u8 = 1;

/// A command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// Use the first so many pairs of queues.
    SetPairs(u16),
    /// Leave this to the driver: bits as in the features.
    SetOffloads(u64),
}

impl Command {
    /// The command in a request, if it is one that the device knows.
    pub(super) fn read(chain: &Chain, memory: &GuestMemoryMmap) -> Option<Self> {
        let mut header = [0; COMMAND_HEADER as usize];
        let from = &chain.readable;
        from.read(memory, 0, &mut header).ok()?;
        match header {
            [CLASS_MQ, MQ_VQ_PAIRS_SET] => {
                let mut pairs = [0; 2];
                from.read(memory, COMMAND_HEADER, &mut pairs).ok()?;
                Some(Self::SetPairs(u16::from_le_bytes(pairs)))
            }
            [CLASS_GUEST_OFFLOADS, GUEST_OFFLOADS_SET] => {
                let mut offloads = [0; 8];
                from.read(memory, COMMAND_HEADER, &mut offloads).ok()?;
                Some(Self::SetOffloads(u64::from_le_bytes(offloads)))
            }
            _ => None,
        }
    }
}
