//! Initial RAM disks: cpio archives in the "newc" format (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use cpio::newc::{self, ModeFileType};

use super::{INIT, PROGRAM};

/// One whose first process starts the program.
pub(super) fn own() -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let directory = newc::Builder::new("dev")
        .ino(1)
        .mode(0o755)
        .set_mode_file_type(ModeFileType::Directory);
    directory.write(&mut bytes, 0).finish()?;
    // Without it the kernel gives the first process no standard streams.
    let console = newc::Builder::new("dev/console")
        .ino(2)
        .mode(0o600)
        .set_mode_file_type(ModeFileType::Char)
        .rdev_major(5)
        .rdev_minor(1);
    console.write(&mut bytes, 0).finish()?;
    executable(&mut bytes, 3, "init", INIT)?;
    executable(&mut bytes, 4, "program", PROGRAM)?;
    newc::trailer(&mut bytes)?;
    Ok(bytes)
}

/// Another one with the program in it as well: the kernel unpacks one archive behind the other.
pub(super) fn added_to(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = fs::read(path)?;
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    executable(&mut bytes, 1, "program", PROGRAM)?;
    newc::trailer(&mut bytes)?;
    Ok(bytes)
}

fn executable(bytes: &mut Vec<u8>, number: u32, name: &str, contents: &[u8]) -> io::Result<()> {
    let size = u32::try_from(contents.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
    let file = newc::Builder::new(name)
        .ino(number)
        .mode(0o755)
        .set_mode_file_type(ModeFileType::Regular);
    let mut writer = file.write(bytes, size);
    writer.write_all(contents)?;
    writer.finish()?;
    Ok(())
}
