use super::*;
use crate::virtio::test_support::memory;
use crate::virtio::vsock::test_support::buffers;

fn header() -> Header {
    Header {
        src_cid: 0x0102_0304_0506_0708,
        dst_cid: HOST_CID,
        src_port: 0x1111_2222,
        dst_port: 0x3333_4444,
        len: 5,
        kind: kind::STREAM,
        op: op::RW,
        flags: shutdown::BOTH,
        buf_alloc: 0x5555_6666,
        fwd_cnt: 0x7777_8888,
    }
}

#[test]
fn has_the_layout_of_the_specification() {
    let bytes = header().to_bytes();
    assert_eq!(bytes[..8], [8, 7, 6, 5, 4, 3, 2, 1]);
    assert_eq!(bytes[8..16], [2, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(bytes[16..20], [0x22, 0x22, 0x11, 0x11]);
    assert_eq!(bytes[20..24], [0x44, 0x44, 0x33, 0x33]);
    assert_eq!(bytes[24..28], [5, 0, 0, 0]);
    assert_eq!(bytes[28..32], [1, 0, 5, 0]);
    assert_eq!(bytes[32..36], [3, 0, 0, 0]);
    assert_eq!(bytes[36..40], [0x66, 0x66, 0x55, 0x55]);
    assert_eq!(bytes[40..], [0x88, 0x88, 0x77, 0x77]);
    assert_eq!(Header::from_bytes(&bytes), header());
}

#[test]
fn any_bytes_are_one() {
    let bytes = std::array::from_fn(|index| (index * 37) as u8);
    assert_eq!(Header::from_bytes(&bytes).to_bytes(), bytes);
    let bytes = [0xff; HEADER_SIZE as usize];
    assert_eq!(Header::from_bytes(&bytes).to_bytes(), bytes);
}

#[test]
fn is_found_however_the_driver_cuts_it() {
    let mut bytes = header().to_bytes().to_vec();
    bytes.extend(b"hello, and more");
    for pieces in [&[59][..], &[44, 15], &[1, 43, 15], &[20, 30, 9], &[58, 1]] {
        let memory = memory();
        let packet = buffers(&memory, &bytes, pieces);
        let (found, data) = Header::split(&memory, packet).unwrap();
        assert_eq!(found, header());
        assert_eq!(data.len(), 5, "what is behind it is not data");
        let mut hello = [0; 5];
        data.read(&memory, 0, &mut hello).unwrap();
        assert_eq!(&hello, b"hello");
    }
}

#[test]
fn may_lie_about_its_data() {
    let mut header = header();
    for (len, there) in [(0, 0), (3, 3), (4, 3), (u32::MAX, 3)] {
        header.len = len;
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend(b"abc");
        let memory = memory();
        let packet = buffers(&memory, &bytes, &[47]);
        let (found, data) = Header::split(&memory, packet).unwrap();
        assert_eq!(found.len, len);
        assert_eq!(data.len(), there);
    }
}

#[test]
fn has_to_be_whole() {
    for len in [1, 43] {
        let memory = memory();
        let packet = buffers(&memory, &[0; 64], &[len]);
        assert_eq!(
            Header::split(&memory, packet).unwrap_err(),
            TooShort { len }
        );
    }
}
