//! What a runtime that was killed has left mounted.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::mount::{UnmountFlags, unmount};

/// Unmounts all that is mounted below `directory`, the last one first.
pub(super) fn unmount_below(directory: &Path) {
    let Ok(directory) = fs::canonicalize(directory) else {
        return;
    };
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for point in below(&mounts, &directory).into_iter().rev() {
        // One that is busy goes when it is not.
        let _ = unmount(&point, UnmountFlags::DETACH);
    }
}

fn below(mounts: &str, directory: &Path) -> Vec<PathBuf> {
    let points = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(unescape);
    points
        .filter(|point| point.starts_with(directory))
        .collect()
}

/// The kernel writes spaces and the like as a backslash and three octal digits.
fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let octal = after
            .get(..3)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        match (
            first,
            octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()),
        ) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_below_a_directory() {
        let text = "30 23 0:26 / /tmp/a rw - tmpfs x rw\n\
                    31 23 0:26 / /tmp/a/b\\040c rw - tmpfs x rw\n\
                    32 23 0:26 / /tmp/ab rw - tmpfs x rw\n";
        assert_eq!(
            below(text, Path::new("/tmp/a")),
            [PathBuf::from("/tmp/a"), "/tmp/a/b c".into()]
        );
        assert_eq!(unescape("a\\"), PathBuf::from("a\\"));
    }
}
