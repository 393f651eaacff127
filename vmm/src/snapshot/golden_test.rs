//! State files that are kept with the sources (`vmm/golden`, written by tests/cases/golden.rs).

use super::format::{self, Error, HEADER_SIZE, StateFile, VERSION};
use super::state::VmState;

const GOLDEN: [(&str, &[u8]); 2] = [
    ("mmio", include_bytes!("../../golden/v1/mmio/state")),
    ("pci", include_bytes!("../../golden/v1/pci/state")),
];
/// Checksums of the names of all fields, in their order: two that have changed places make other ones.
const SHAPE: (u32, [u32; 2]) = (1, [3_564_511_415, 3_899_020_045]);

/// The names of the fields of a value, each where it comes first.
fn fields(value: &impl std::fmt::Debug) -> Vec<String> {
    let text = format!("{value:?}");
    let mut fields: Vec<String> = Vec::new();
    for (before, _) in text.match_indices(": ").map(|(at, _)| text.split_at(at)) {
        let name = before.rsplit(['{', ' ', '(', '[']).next();
        let name = name.unwrap_or_default();
        if !fields.iter().any(|field| field == name) {
            fields.push(name.to_owned());
        }
    }
    fields
}

fn read(bytes: &[u8]) -> Result<VmState, Error> {
    StateFile::read(&mut &*bytes)?.state()
}

#[test]
fn they_are_read_as_they_were_written() {
    let mut shapes = Vec::new();
    for (name, bytes) in GOLDEN {
        let file = StateFile::read(&mut &*bytes).unwrap();
        let state: VmState = file.state().unwrap();
        let again = format::encode(&file.config, &state).unwrap();
        // But for the version of mote.
        assert!(again[HEADER_SIZE..] == bytes[HEADER_SIZE..], "{name}");
        assert_eq!(state.vcpus.len(), 2);
        assert_eq!(state.images.len(), 1);
        shapes.push(crc32fast::hash(fields(&state).join(" ").as_bytes()));
    }
    assert_eq!(
        (VERSION, &shapes[..]),
        (SHAPE.0, &SHAPE.1[..]),
        "see tripwires.rs"
    );
}

#[test]
fn none_is_read_that_was_cut() {
    for (name, bytes) in GOLDEN {
        for len in 0..bytes.len() {
            let cut = read(&bytes[..len]);
            assert!(matches!(cut, Err(Error::Cut { .. })), "{name}, {len}");
        }
    }
}

#[test]
fn no_bit_changes_unnoticed() {
    for (name, bytes) in GOLDEN {
        let mut flipped = bytes.to_vec();
        // Some of them, as each costs a checksum of all.
        for at in (0..bytes.len()).step_by(13) {
            flipped[at] ^= 1 << (at % 8);
            assert!(read(&flipped).is_err(), "{name}, byte {at}");
            flipped[at] = bytes[at];
        }
    }
}

/// With checksums that are right, as whoever means harm has them.
#[test]
fn what_is_read_of_a_forged_one_is_a_state_or_an_error() {
    for (name, bytes) in GOLDEN {
        let file = StateFile::read(&mut &*bytes).unwrap();
        let mut forged = bytes[HEADER_SIZE + file.config.len()..].to_vec();
        let (mut states, mut errors) = (0, 0);
        for at in 0..forged.len() {
            forged[at] ^= 1 << (at % 8);
            match postcard::from_bytes::<VmState>(&forged) {
                Ok(_) => states += 1,
                Err(_) => errors += 1,
            }
            forged[at] ^= 1 << (at % 8);
        }
        assert!(states > 0 && errors > 0, "{name}: {states}, {errors}");
    }
}
