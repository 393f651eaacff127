use super::*;

const CONFIG: &str = r#"{"machine-config": {}}"#;
type State = (u32, Vec<u64>, String);

fn state() -> State {
    (7, vec![1, 2, 3], "state".into())
}

fn file() -> Vec<u8> {
    encode(CONFIG, &state()).unwrap()
}

fn read(bytes: &[u8]) -> Result<State, Error> {
    StateFile::read(&mut &*bytes)?.state()
}

/// With another value in the header, and its checksum made right.
fn forged(at: usize, value: &[u8]) -> Vec<u8> {
    let mut bytes = file();
    bytes[at..at + value.len()].copy_from_slice(value);
    let checksum = crc32fast::hash(&bytes[..HEADER_CHECKSUM]);
    bytes[HEADER_CHECKSUM..HEADER_SIZE].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

#[test]
fn what_was_written_is_read() {
    let bytes = file();
    let read = StateFile::read(&mut &*bytes).unwrap();
    assert_eq!(read.config, CONFIG);
    assert_eq!(read.header.writer, env!("CARGO_PKG_VERSION"));
    assert_eq!(read.state::<State>().unwrap(), state());
    let alone = Header::read(&mut &bytes[..HEADER_SIZE]).unwrap();
    assert_eq!(alone, read.header);
}

#[test]
fn a_file_that_was_cut_is_refused_wherever_it_was() {
    let bytes = file();
    for len in 0..bytes.len() {
        let cut = read(&bytes[..len]);
        assert!(matches!(cut, Err(Error::Cut { .. })), "{len}: {cut:?}");
    }
    let mut longer = bytes;
    longer.push(0);
    assert!(matches!(read(&longer), Err(Error::TooLong)));
}

#[test]
fn every_bit_counts() {
    let bytes = file();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << bit;
            assert!(read(&flipped).is_err(), "bit {bit} of byte {at}");
        }
    }
}

#[test]
fn files_of_others_are_named() {
    assert!(matches!(read(&[b'x'; 200]), Err(Error::Magic)));
    let other = read(&forged(8, &99u32.to_le_bytes())).unwrap_err();
    let text = other.to_string();
    assert!(text.contains("version 99"), "{text}");
    assert!(text.contains("version 1 only"), "{text}");
    let other = read(&forged(12, &2u32.to_le_bytes())).unwrap_err();
    assert!(matches!(other, Error::Architecture { found: 2 }), "{other}");
}

#[test]
fn sizes_are_not_believed() {
    for (at, size) in [(16, u64::MAX), (24, u64::MAX), (24, MAX_BODY)] {
        let refused = read(&forged(at, &size.to_le_bytes())).unwrap_err();
        assert!(matches!(refused, Error::TooLarge { .. }), "{refused}");
    }
    // Large, but not too large: nothing of that size is allocated before it is there.
    let refused = read(&forged(24, &(MAX_BODY - 100).to_le_bytes())).unwrap_err();
    assert!(matches!(refused, Error::Cut { .. }), "{refused}");
    // The whole of it, split elsewhere.
    let moved = forged(16, &(CONFIG.len() as u64 + 1).to_le_bytes());
    assert!(read(&moved).is_err());
}

#[test]
fn a_state_with_something_behind_it_is_refused() {
    let bytes = encode(CONFIG, &(state(), 5u8)).unwrap();
    assert!(matches!(read(&bytes), Err(Error::State(_))));
}
