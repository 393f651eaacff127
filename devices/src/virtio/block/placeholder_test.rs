//! A disk that waits for its file.

use super::*;

#[test]
fn an_empty_file_holds_a_place_until_the_disk_comes() {
    let dir = TempDir::new();
    let (empty, image) = (dir.file("empty", 0), dir.file("image", 256 * KIB + 100));
    for engine in [EngineKind::IoUring, EngineKind::Sync] {
        let config = BlockConfig {
            engine,
            any_size: true,
            ..BlockConfig::new("disk", &empty)
        };
        let (mut driver, control) = started(config.clone());
        // Another guest waits in the same place.
        let (mut other, _) = started(config);
        for driver in [&mut driver, &mut other] {
            assert_eq!(config_field(driver, 0, 8), 0);
            assert_eq!(request(driver, IN, 0, &[], 512).0, IO_ERROR);
            assert_eq!(request(driver, OUT, 0, &[1; 512], 0).0, IO_ERROR);
            assert_eq!(request(driver, FLUSH, 0, &[], 0).0, OK);
        }
        assert_eq!(fs::metadata(&empty).unwrap().len(), 0);
        control.replace_file(&image).unwrap();
        assert_eq!(driver.interrupts.config(), 1);
        assert_eq!(config_field(&driver, 0, 8), 512);
        write(&mut driver, 511, &[2; 512]);
        assert_eq!(read(&mut driver, 511, 512), [2; 512]);
        assert_eq!(request(&mut driver, IN, 512, &[], 512).0, IO_ERROR);
        assert_eq!(
            fs::metadata(&image).unwrap().len(),
            (256 * KIB + 100) as u64
        );
        // And back.
        control.replace_file(&empty).unwrap();
        assert_eq!(config_field(&driver, 0, 8), 0);
        assert_eq!(request(&mut driver, IN, 0, &[], 512).0, IO_ERROR);
        assert_eq!(request(&mut other, FLUSH, 0, &[], 0).0, OK);
    }
}
