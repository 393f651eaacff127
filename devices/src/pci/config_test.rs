use super::*;

fn space() -> Space {
    let mut space = Space::new(&Identity {
        vendor: 0x1234,
        device: 0x5678,
        revision: 9,
        class: 0x01_02_03,
        subsystem: (0xabcd, 0xef01),
    });
    space.add_bar(0xc000_4000, 0x4000);
    space
}

fn write(space: &mut Space, offset: u16, value: u32) {
    space.write(offset, &value.to_le_bytes());
}

#[test]
fn says_what_it_is_and_cannot_be_talked_out_of_it() {
    let mut space = space();
    for _ in 0..2 {
        assert_eq!(space.register(0x00), 0x5678_1234);
        assert_eq!(space.register(0x08), 0x0102_0309);
        assert_eq!(space.register(0x2c), 0xef01_abcd);
        // Header type 0, no interrupt pin, no ROM.
        assert_eq!(space.register(0x0c) >> 16, 0);
        assert_eq!(space.register(0x30), 0);
        assert_eq!(space.register(0x3c) >> 8, 0);
        for offset in (0..0x100).step_by(4) {
            write(&mut space, offset, u32::MAX);
        }
    }
    assert_eq!(space.register(0x04), 0x0406);
}

#[test]
fn a_bar_tells_its_size() {
    let mut space = space();
    assert_eq!(space.register(0x10), 0xc000_4000);
    write(&mut space, 0x10, u32::MAX);
    assert_eq!(space.register(0x10), !0x3fff);
    write(&mut space, 0x10, 0xc123_7fff);
    assert_eq!(space.register(0x10), 0xc123_4000);
    for bar in [0x14, 0x18, 0x1c, 0x20, 0x24] {
        write(&mut space, bar, u32::MAX);
        assert_eq!(space.register(bar), 0);
    }
}

#[test]
fn a_bar_answers_when_it_is_told_to() {
    let mut space = space();
    assert_eq!(space.bar(), None);
    space.write(0x04, &[0x06]);
    assert_eq!(space.bar(), Some(0xc000_4000));
    // Byte by byte, as well as in one.
    space.write(0x13, &[0xc8]);
    assert_eq!(space.bar(), Some(0xc800_4000));
    space.write(0x04, &[0x04]);
    assert_eq!(space.bar(), None);

    let mut without = Space::new(&Identity {
        vendor: 1,
        device: 1,
        revision: 1,
        class: 0,
        subsystem: (0, 0),
    });
    without.write(0x04, &[0xff]);
    assert_eq!(without.bar(), None);
}

#[test]
fn capabilities_are_a_list() {
    let mut space = space();
    assert_eq!(space.register(0x04) >> 16, 0);
    let first = space.add_capability(0x09, &[5, 1, 2], &[]).unwrap();
    let second = space.add_capability(0x11, &[0xff; 10], &[0, 0x80]).unwrap();
    assert_eq!(space.register(0x04) >> 16, 0x10);
    assert_eq!(space.register(0x34), u32::from(second));
    assert_eq!(space.register(second), 0xffff_0011 | u32::from(first) << 8);
    assert_eq!(space.register(first), 0x0105_0009 & 0xffff_00ff);
    write(&mut space, second, 0);
    assert_eq!(space.register(second) >> 16, 0x7fff);
    assert_eq!(first % 4, 0);
    assert_eq!(second % 4, 0);
}

#[test]
fn there_is_room_for_so_many_capabilities_only() {
    let mut space = space();
    let count = (0..100)
        .filter_map(|_| space.add_capability(9, &[0; 18], &[0xff; 30]))
        .count();
    assert_eq!(count, (SIZE - HEADER_SIZE) / 20);
    assert_eq!(space.register(0xfc), 0);
}

#[test]
fn beyond_the_end_there_is_nothing() {
    let mut space = space();
    let mut data = [0xaa; 8];
    space.read(0xfc, &mut data);
    assert_eq!(data, [0; 8]);
    for offset in [0x100, 0xffc, u16::MAX] {
        space.write(offset, &[0xff; 8]);
        assert_eq!(space.register(offset), 0);
    }
}
