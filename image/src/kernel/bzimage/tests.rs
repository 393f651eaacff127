use super::super::tests::sample::{self, PAYLOAD_START, set};
use super::*;

const LENGTH: u64 = 100;

fn image() -> Vec<u8> {
    sample::bzimage(&[0x11; LENGTH as usize])
}

/// Parses the sample with a field changed.
fn parse_with(offset: usize, width: usize, value: u64) -> Result<BzImage, Error> {
    let mut image = image();
    set(&mut image, offset, width, value);
    parse(&image, image.len() as u64)
}

#[test]
fn the_payload_is_where_the_header_says() {
    let image = image();
    assert!(is_bzimage(&image));
    let start = PAYLOAD_START as u64;
    let expected = BzImage {
        payload: start..start + LENGTH,
        unpacks_itself: true,
    };
    assert_eq!(parse(&image, image.len() as u64).unwrap(), expected);
    // No more than the header is looked at.
    assert_eq!(
        parse(&image[..HEADER_END], start + LENGTH).unwrap(),
        expected
    );
}

#[test]
fn set_up_code_has_one_to_255_sectors_and_0_means_4() {
    let payload_start = |sectors| {
        let mut image = image();
        set(&mut image, SETUP_SECTS, 1, sectors);
        parse(&image, 1 << 20).unwrap().payload.start
    };
    let offset = PAYLOAD_START as u64 - 0x400;
    assert_eq!(payload_start(1), 2 * 512 + offset);
    assert_eq!(payload_start(4), 5 * 512 + offset);
    assert_eq!(payload_start(0), 5 * 512 + offset);
    assert_eq!(payload_start(255), 256 * 512 + offset);
}

#[test]
fn the_largest_fields_do_not_overflow() {
    let mut image = image();
    set(&mut image, SETUP_SECTS, 1, 0xff);
    set(&mut image, PAYLOAD_OFFSET, 4, 0xffff_ffff);
    set(&mut image, PAYLOAD_LENGTH, 4, 0xffff_ffff);
    let end = 256 * 512 + 2 * 0xffff_ffff;
    assert_eq!(parse(&image, end).unwrap().payload.end, end);
    match parse(&image, end - 1) {
        Err(Error::Truncated { end: at, size, .. }) => assert_eq!((at, size), (end, end - 1)),
        other => panic!("{other:?}"),
    }
}

#[test]
fn only_the_boot_flag_and_the_magic_number_make_a_bzimage() {
    let image = image();
    for end in 0..MAGIC + 4 {
        assert!(!is_bzimage(&image[..end]));
    }
    assert!(is_bzimage(&image[..MAGIC + 4]));
    for offset in [
        BOOT_FLAG,
        BOOT_FLAG + 1,
        MAGIC,
        MAGIC + 1,
        MAGIC + 2,
        MAGIC + 3,
    ] {
        let mut image = image.clone();
        image[offset] ^= 0x20;
        assert!(!is_bzimage(&image));
    }
}

#[test]
fn a_header_that_is_not_whole_is_truncated() {
    let image = image();
    for size in MAGIC + 4..HEADER_END {
        assert!(matches!(
            parse(&image[..size], size as u64),
            Err(Error::Truncated {
                what: "set-up header",
                ..
            })
        ));
    }
}

#[test]
fn protocols_from_2_08_on_are_known() {
    for protocol in [0, 0x0200, 0x0207] {
        let error = parse_with(VERSION, 2, protocol).unwrap_err();
        assert!(matches!(error, Error::TooOld { .. }));
    }
    // Before 2.12 nothing says whether there is a 64-bit entry point.
    for protocol in [0x0208, 0x020b] {
        assert!(!parse_with(VERSION, 2, protocol).unwrap().unpacks_itself);
    }
    for protocol in [0x020c, 0x020f, 0x0300, 0xffff] {
        assert!(parse_with(VERSION, 2, protocol).unwrap().unpacks_itself);
    }
    let error = parse_with(VERSION, 2, 0x0105).unwrap_err().to_string();
    assert!(error.contains("1.05") && error.contains("2.08"), "{error}");
}

#[test]
fn a_header_must_reach_to_the_payload_fields() {
    let enough = (PAYLOAD_LENGTH + 4 - MAGIC) as u64;
    assert!(parse_with(HEADER_LENGTH, 1, enough).is_ok());
    for length in [0, 1, enough - 1] {
        let error = parse_with(HEADER_LENGTH, 1, length).unwrap_err();
        assert!(matches!(error, Error::Corrupt { .. }));
    }
}

#[test]
fn kernels_for_other_modes_are_refused() {
    let error = parse_with(LOADFLAGS, 1, 0xfe).unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }));
    let error = parse_with(XLOADFLAGS, 2, 0xfffe).unwrap_err();
    assert!(matches!(error, Error::Not64Bit));
    // In an old header, that field is something else.
    let mut image = image();
    set(&mut image, VERSION, 2, 0x020b);
    set(&mut image, XLOADFLAGS, 2, 0);
    assert!(parse(&image, image.len() as u64).is_ok());
}
