use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use vmm_sys_util::tempfile::TempFile;

use super::*;

#[test]
fn it_writes_what_was_there_when_it_was_made() {
    let value = AtomicU64::new(7);
    let file = TempFile::new().unwrap().into_file();
    let child = Child::fork(&file, &[], |file| {
        // So that this is later than what its parent does.
        thread::sleep(Duration::from_millis(20));
        let bytes = value.load(Ordering::Relaxed).to_le_bytes();
        file.write_all_at(&bytes, 0).map_err(Error::Write)?;
        Ok(8)
    });
    value.store(9, Ordering::Relaxed);
    assert_eq!(child.unwrap().wait().unwrap(), 8);
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(u64::from_le_bytes(bytes), 7);
}

#[test]
fn what_goes_wrong_in_it_is_said() {
    let file = TempFile::new().unwrap().into_file();
    let fails = |error: fn() -> Error| {
        let child = Child::fork(&file, &[], |_| Err(error())).unwrap();
        child.wait().unwrap_err()
    };
    let full = || Error::Write(io::Error::from_raw_os_error(libc::ENOSPC));
    let Error::Write(error) = fails(full) else {
        panic!("another error");
    };
    assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
    let not_ram = fails(|| Error::NotRam { gpa: 1, bytes: 2 });
    assert!(matches!(not_ram, Error::NotRam { gpa: 1, bytes: 2 }));
}

#[test]
fn it_has_nothing_that_others_could_want() {
    let (reader, writer) = pipe().unwrap();
    let file = TempFile::new().unwrap().into_file();
    let child = Child::fork(&file, &[], |_| {
        thread::sleep(Duration::from_secs(600));
        Ok(0)
    })
    .unwrap();
    drop(writer);
    // It would wait for as long as somebody has the other end.
    assert_eq!((&reader).read(&mut [0]).unwrap(), 0);
    let began = Instant::now();
    let killer = child.killer().unwrap();
    let waiter = thread::spawn(move || child.wait());
    killer.kill();
    let killed = waiter.join().unwrap();
    assert!(
        matches!(
            killed,
            Err(Error::Killed {
                signal: libc::SIGKILL
            })
        ),
        "{killed:?}"
    );
    assert!(began.elapsed() < Duration::from_secs(600));
}
