//! The header of a packet (virtio 1.2 section 5.10.6), and nothing else: pure functions over bytes.
//!
//! Any 44 bytes are a header. What is wrong with one is for the muxer to find out, as it has to answer.

use vm_memory::GuestMemoryMmap;

use crate::virtio::chain::{Buffers, TooShort};

/// Bytes of a header.
pub const HEADER_SIZE: u32 = 44;

/// The host's context id.
pub const HOST_CID: u64 = 2;

/// Socket types (section 5.10.6).
pub mod kind {
    /// A stream of bytes, the only type there is here.
    pub const STREAM: u16 = 1;
}

/// Operations (section 5.10.6).
pub mod op {
    /// Asks for a connection.
    pub const REQUEST: u16 = 1;
    /// Accepts it.
    pub const RESPONSE: u16 = 2;
    /// Refuses or ends it.
    pub const RST: u16 = 3;
    /// Says what one will do no more: see [`super::shutdown`].
    pub const SHUTDOWN: u16 = 4;
    /// Carries data.
    pub const RW: u16 = 5;
    /// Tells how much room there is for data.
    pub const CREDIT_UPDATE: u16 = 6;
    /// Asks for [`CREDIT_UPDATE`].
    pub const CREDIT_REQUEST: u16 = 7;
}

/// Flags of [`op::SHUTDOWN`] (section 5.10.6.6).
pub mod shutdown {
    /// The sender will receive no more.
    pub const RECEIVE: u32 = 1;
    /// The sender will send no more.
    pub const SEND: u32 = 2;
    /// Neither.
    pub const BOTH: u32 = RECEIVE | SEND;
}

/// A header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Context id of the sender.
    pub src_cid: u64,
    /// Context id of the receiver.
    pub dst_cid: u64,
    /// The sender's port.
    pub src_port: u32,
    /// The receiver's port.
    pub dst_port: u32,
    /// Bytes of data behind the header.
    pub len: u32,
    /// Type of the sockets: see [`kind`].
    pub kind: u16,
    /// What it is for: see [`op`].
    pub op: u16,
    /// Depends on the operation.
    pub flags: u32,
    /// Bytes that the sender of this packet can buffer for the connection.
    pub buf_alloc: u32,
    /// Bytes that have left this buffer since the connection began, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    /// From its bytes.
    pub fn from_bytes(bytes: &[u8; HEADER_SIZE as usize]) -> Self {
        let mut rest = bytes.as_slice();
        Self {
            src_cid: u64::from_le_bytes(take(&mut rest)),
            dst_cid: u64::from_le_bytes(take(&mut rest)),
            src_port: u32::from_le_bytes(take(&mut rest)),
            dst_port: u32::from_le_bytes(take(&mut rest)),
            len: u32::from_le_bytes(take(&mut rest)),
            kind: u16::from_le_bytes(take(&mut rest)),
            op: u16::from_le_bytes(take(&mut rest)),
            flags: u32::from_le_bytes(take(&mut rest)),
            buf_alloc: u32::from_le_bytes(take(&mut rest)),
            fwd_cnt: u32::from_le_bytes(take(&mut rest)),
        }
    }

    /// Its bytes.
    pub fn to_bytes(&self) -> [u8; HEADER_SIZE as usize] {
        let Self {
            src_cid,
            dst_cid,
            src_port,
            dst_port,
            len,
            kind,
            op,
            flags,
            buf_alloc,
            fwd_cnt,
        } = self;
        let fields: [&[u8]; 10] = [
            &src_cid.to_le_bytes(),
            &dst_cid.to_le_bytes(),
            &src_port.to_le_bytes(),
            &dst_port.to_le_bytes(),
            &len.to_le_bytes(),
            &kind.to_le_bytes(),
            &op.to_le_bytes(),
            &flags.to_le_bytes(),
            &buf_alloc.to_le_bytes(),
            &fwd_cnt.to_le_bytes(),
        ];
        let mut bytes = [0; HEADER_SIZE as usize];
        for (to, from) in bytes.iter_mut().zip(fields.into_iter().flatten()) {
            *to = *from;
        }
        bytes
    }

    /// Takes a packet that the driver sends apart: its header, once, as the guest may change it at any
    /// time, and its data. The data is shorter than [`Header::len`] says if the driver lies.
    pub fn split(
        memory: &GuestMemoryMmap,
        mut packet: Buffers,
    ) -> Result<(Self, Buffers), TooShort> {
        let mut bytes = [0; HEADER_SIZE as usize];
        packet.read(memory, 0, &mut bytes)?;
        let header = Self::from_bytes(&bytes);
        let mut data = packet.split_off(HEADER_SIZE);
        data.split_off(header.len);
        Ok((header, data))
    }
}

/// Takes as many bytes as its type wants off the front of `rest`; zeroes where there are none.
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    match rest.split_first_chunk() {
        Some((first, behind)) => {
            *rest = behind;
            *first
        }
        None => [0; N],
    }
}

#[cfg(test)]
#[path = "packet_test.rs"]
mod tests;
