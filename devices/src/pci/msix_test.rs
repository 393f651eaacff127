use super::test_support::Vectors;
use super::*;

const MESSAGE: MsiMessage = MsiMessage {
    address: 0xfee0_1000,
    data: 0x4041,
};

struct Guest {
    msix: Msix,
    vectors: Arc<Vectors>,
}

impl Guest {
    fn new(count: usize) -> Self {
        let vectors = Vectors::new(count);
        Self {
            msix: Msix::new(vectors.clone(), count),
            vectors,
        }
    }

    fn write(&mut self, offset: u64, value: u32) {
        self.msix.write_table(offset, &value.to_le_bytes());
    }

    fn program(&mut self, vector: u64, message: MsiMessage) {
        let entry = vector * 16;
        self.write(entry, message.address as u32);
        self.write(entry + 4, (message.address >> 32) as u32);
        self.write(entry + 8, message.data);
    }

    fn mask(&mut self, vector: u64, masked: bool) {
        self.write(vector * 16 + 12, masked.into());
    }

    fn pending(&mut self) -> u64 {
        let mut data = [0xaa; 8];
        self.msix.read_pending(0, &mut data);
        u64::from_le_bytes(data)
    }
}

#[test]
fn a_vector_delivers_when_it_is_open() {
    let mut guest = Guest::new(3);
    guest.program(1, MESSAGE);
    guest.msix.set_control(CONTROL_ENABLE);
    guest.mask(1, false);
    signal(&*guest.vectors, 1);
    assert_eq!(guest.vectors.take(1), Some(MESSAGE));
    assert_eq!(guest.vectors.take(1), None);
    assert_eq!(guest.pending(), 0);
    // Others are masked, and beyond them are none.
    signal(&*guest.vectors, 0);
    signal(&*guest.vectors, 3);
    assert_eq!(guest.vectors.take(0), None);
}

#[test]
fn what_was_masked_is_pending_and_comes_when_unmasked() {
    let mut guest = Guest::new(70);
    guest.msix.set_control(CONTROL_ENABLE);
    for vector in [2, 69] {
        guest.program(vector, MESSAGE);
        signal(&*guest.vectors, vector as usize);
    }
    assert_eq!(guest.pending(), 1 << 2);
    assert_eq!(guest.pending(), 1 << 2);
    let mut data = [0xaa; 16];
    guest.msix.read_pending(8, &mut data);
    assert_eq!(u128::from_le_bytes(data), 1 << (69 - 64));
    guest.mask(2, false);
    assert_eq!(guest.vectors.take(2), Some(MESSAGE));
    assert_eq!(guest.pending(), 0);
    // Not read while it was masked: delivered all the same, and once.
    guest.mask(2, true);
    signal(&*guest.vectors, 2);
    signal(&*guest.vectors, 2);
    guest.mask(2, false);
    assert_eq!(guest.vectors.take(2), Some(MESSAGE));
    assert_eq!(guest.vectors.take(2), None);
}

#[test]
fn the_function_mask_and_the_switch_hold_for_all() {
    let mut guest = Guest::new(2);
    guest.program(0, MESSAGE);
    guest.mask(0, false);
    signal(&*guest.vectors, 0);
    assert_eq!(guest.vectors.take(0), None);
    guest
        .msix
        .set_control(CONTROL_ENABLE | CONTROL_FUNCTION_MASK);
    assert!(guest.msix.is_enabled());
    assert_eq!(guest.vectors.take(0), None);
    assert_eq!(guest.pending(), 1);
    guest.msix.set_control(CONTROL_ENABLE);
    assert_eq!(guest.vectors.take(0), Some(MESSAGE));
    guest.msix.set_control(0);
    signal(&*guest.vectors, 0);
    assert_eq!(guest.vectors.take(0), None);
    guest.msix.set_control(CONTROL_ENABLE);
    assert_eq!(guest.vectors.take(0), Some(MESSAGE));
    guest.msix.reset();
    assert!(!guest.msix.is_enabled());
    guest.msix.set_control(CONTROL_ENABLE);
    signal(&*guest.vectors, 0);
    assert_eq!(guest.vectors.take(0), None);
}

#[test]
fn a_message_counts_as_of_its_unmasking() {
    let mut guest = Guest::new(1);
    guest.msix.set_control(CONTROL_ENABLE);
    guest.program(0, MESSAGE);
    guest.mask(0, false);
    let sets = guest.vectors.sets();
    let other = MsiMessage {
        data: 0x42,
        ..MESSAGE
    };
    for _ in 0..100 {
        guest.program(0, other);
        guest.mask(0, false);
    }
    assert_eq!(guest.vectors.sets(), sets);
    guest.mask(0, true);
    guest.mask(0, false);
    signal(&*guest.vectors, 0);
    assert_eq!(guest.vectors.take(0), Some(other));
}

#[test]
fn only_local_apics_can_be_written_to() {
    let mut guest = Guest::new(1);
    guest.msix.set_control(CONTROL_ENABLE);
    for address in [0, 0x1000, 0xfed0_0000, 0xfef0_0000, 0x1_fee0_0000, u64::MAX] {
        guest.mask(0, true);
        guest.program(0, MsiMessage { address, data: 1 });
        guest.mask(0, false);
        signal(&*guest.vectors, 0);
        assert_eq!(guest.vectors.take(0), None, "{address:#x}");
        assert_eq!(guest.pending(), 1);
    }
    assert_eq!(guest.vectors.sets(), 0);
}

#[test]
fn the_table_reads_as_it_was_written() {
    let mut guest = Guest::new(2);
    let mut data = [0xaa; 8];
    guest.msix.read_table(8, &mut data);
    assert_eq!(data, [0, 0, 0, 0, 1, 0, 0, 0]);
    guest
        .msix
        .write_table(16, &0x1122_3344_fee0_1003_u64.to_le_bytes());
    guest
        .msix
        .write_table(24, &0xffff_fffe_0000_4041_u64.to_le_bytes());
    guest.msix.read_table(16, &mut data);
    assert_eq!(u64::from_le_bytes(data), 0x1122_3344_fee0_1000);
    guest.msix.read_table(24, &mut data);
    assert_eq!(u64::from_le_bytes(data), 0x4041);
}

#[test]
fn odd_accesses_do_nothing() {
    let mut guest = Guest::new(2);
    for (offset, len) in [(0, 1), (1, 4), (4, 8), (2, 2), (0, 3), (0, 16), (32, 4)] {
        guest.msix.write_table(offset, &vec![0xff; len]);
    }
    guest.msix.write_table(u64::MAX - 7, &[0xff; 8]);
    let mut data = [0; 4];
    guest.msix.read_table(0, &mut data);
    assert_eq!(data, [0; 4]);
    let mut data = [0xaa; 3];
    for offset in [2, 15, 16, 4096, u64::MAX] {
        guest.msix.read_pending(offset, &mut data);
        assert_eq!(data, [0; 3]);
        guest.msix.read_table(offset, &mut data);
        assert_eq!(data, [0; 3]);
    }
}

#[test]
fn no_more_vectors_than_there_is_room_for() {
    let vectors = Vectors::new(1);
    assert_eq!(Msix::new(vectors, 5000).count(), MAX_VECTORS);
}
