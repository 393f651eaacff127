//! Disk images, and what is in them afterwards.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use guest_probe::pattern::{Pattern, SECTOR};
use sha2::{Digest, Sha256};

/// Where Debian's administrators have their programs.
const SBIN: &str = "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin";

/// An image of zeroes that takes no room.
pub fn sparse(directory: &Path, name: &str, size: u64) -> PathBuf {
    let path = directory.join(name);
    File::create(&path).unwrap().set_len(size).unwrap();
    path
}

/// An image with generation 1 of a pattern in all of it.
pub fn filled(directory: &Path, name: &str, size: u64, seed: u64) -> PathBuf {
    let path = directory.join(name);
    let mut bytes = vec![0; usize::try_from(size).unwrap()];
    Pattern::new(seed).write(0, 1, &mut bytes);
    fs::write(&path, bytes).unwrap();
    path
}

/// The oldest and the newest generation of a pattern in the first so many bytes of an image; fails
/// where there is anything else.
#[track_caller]
pub fn generations(image: &Path, seed: u64, size: u64) -> (u64, u64) {
    let mut bytes = vec![0; usize::try_from(size).unwrap()];
    let file = File::open(image).unwrap();
    file.read_exact_at(&mut bytes, 0).unwrap();
    let found = Pattern::new(seed).generations(0, &bytes);
    found.unwrap_or_else(|mismatch| panic!("{image:?}: {mismatch}"))
}

/// Changes when one byte of the file does.
pub fn hash(path: &Path) -> Vec<u8> {
    Sha256::digest(fs::read(path).unwrap()).to_vec()
}

/// What a file takes of its file system, in bytes.
pub fn allocated(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * SECTOR as u64
}

/// A file system's compression, by its maker's name; "" is none.
#[derive(Clone, Copy, Debug)]
pub enum FileSystem {
    /// ext4 of this size.
    Ext4(u64),
    /// squashfs.
    Squashfs(&'static str),
    /// EROFS.
    Erofs(&'static str),
}

impl FileSystem {
    /// As the guest's kernel calls it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ext4(_) => "ext4",
            Self::Squashfs(_) => "squashfs",
            Self::Erofs(_) => "erofs",
        }
    }

    /// Makes an image of a directory.
    #[track_caller]
    pub fn image(&self, directory: &Path, name: &str, contents: &Path) -> PathBuf {
        let path = directory.join(name);
        let mut command;
        match self {
            Self::Ext4(size) => {
                sparse(directory, name, *size);
                command = tool("mke2fs");
                command.args(["-q", "-F", "-t", "ext4", "-d"]);
                command.arg(contents).arg(&path);
            }
            Self::Squashfs(compression) => {
                command = tool("mksquashfs");
                command.arg(contents).arg(&path);
                command.args(["-quiet", "-no-progress", "-all-root", "-comp", compression]);
            }
            Self::Erofs(compression) => {
                command = tool("mkfs.erofs");
                if !compression.is_empty() {
                    command.arg(format!("-z{compression}"));
                }
                command.arg(&path).arg(contents);
            }
        }
        run(command);
        path
    }
}

/// A command that may be where only root looks.
pub fn tool(name: &str) -> Command {
    let mut command = Command::new(name);
    command.env("PATH", SBIN);
    command
}

/// Runs a command; fails unless it does well. Returns its output.
#[track_caller]
pub fn run(mut command: Command) -> String {
    let output = command.stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{command:?}: {} {}",
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// A directory for a root file system: busybox, and this script as its init.
pub fn root(directory: &Path, init: &str) -> PathBuf {
    let root = directory.join("root");
    for name in [
        "bin", "sbin", "dev", "proc", "sys", "run", "tmp", "root", "etc",
    ] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for name in [
        "sh",
        "mount",
        "cat",
        "echo",
        "ls",
        "grep",
        "sha256sum",
        "poweroff",
        "reboot",
        "stty",
        "sync",
        "hostname",
        "umount",
    ] {
        symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    let mut noise = vec![0; 1 << 20];
    Pattern::new(77).fill(0, &mut noise);
    // Some of it can be compressed.
    noise[..512 << 10].fill(b'x');
    fs::write(root.join("noise"), noise).unwrap();
    executable(&root.join("sbin/init"), init);
    root
}

/// A script that can be run.
fn executable(path: &Path, script: &str) {
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o755)
        .open(path)
        .unwrap();
    write!(file, "#!/bin/sh\n{script}\n").unwrap();
}

/// An empty qcow2 image, version 3, with clusters of 64 KiB (QEMU, docs/interop/qcow2.txt): header, one
/// cluster of reference counts behind its table, and an L1 table.
pub fn qcow2(directory: &Path, name: &str, size: u64) -> PathBuf {
    const CLUSTER: u64 = 1 << 16;
    // 8192 entries of an L2 table, each a cluster.
    let l1_entries = size.div_ceil(CLUSTER * 8192);
    assert!(l1_entries * 8 <= CLUSTER);
    let path = directory.join(name);
    let file = File::create(&path).unwrap();
    file.set_len(4 * CLUSTER).unwrap();
    let mut header = Vec::new();
    header.extend(b"QFI\xfb");
    header.extend(3_u32.to_be_bytes());
    header.extend([0; 12]); // no backing file
    header.extend(16_u32.to_be_bytes()); // cluster bits
    header.extend(size.to_be_bytes());
    header.extend(0_u32.to_be_bytes()); // not encrypted
    header.extend(u32::try_from(l1_entries).unwrap().to_be_bytes());
    header.extend((3 * CLUSTER).to_be_bytes()); // L1 table
    header.extend(CLUSTER.to_be_bytes()); // table of reference counts
    header.extend(1_u32.to_be_bytes()); // clusters of it
    header.extend([0; 12]); // no snapshots
    header.extend([0; 24]); // feature bits
    header.extend(4_u32.to_be_bytes()); // a count has 1 << 4 bits
    header.extend(104_u32.to_be_bytes()); // header length
    assert_eq!(header.len(), 104);
    file.write_all_at(&header, 0).unwrap();
    file.write_all_at(&(2 * CLUSTER).to_be_bytes(), CLUSTER)
        .unwrap();
    let counts = [0_u8, 1].repeat(4);
    file.write_all_at(&counts, 2 * CLUSTER).unwrap();
    path
}

/// A file system that can be mounted with DAX: its blocks are pages.
pub fn dax_image(directory: &Path, size: u64) -> PathBuf {
    let image = sparse(directory, "dax", size);
    let mut command = tool("mke2fs");
    command.args(["-q", "-F", "-t", "ext4", "-b", "4096"]);
    command.arg(&image);
    run(command);
    image
}

#[cfg(test)]
mod tests {
    use super::*;
    use vmm_sys_util::tempdir::TempDir;

    #[test]
    fn images_are_made() {
        let directory = TempDir::new().unwrap();
        let directory = directory.as_path();
        let contents = root(directory, "echo hello");
        for (number, system) in (0..).zip([
            FileSystem::Ext4(32 << 20),
            FileSystem::Squashfs("zstd"),
            FileSystem::Squashfs("lz4"),
            FileSystem::Erofs(""),
            FileSystem::Erofs("lz4hc"),
        ]) {
            let image = system.image(directory, &format!("image{number}"), &contents);
            assert!(allocated(&image) > 1 << 20, "{system:?}");
        }
        let image = filled(directory, "filled", 1 << 20, 5);
        assert_eq!(generations(&image, 5, 1 << 20), (1, 1));
        let image = sparse(directory, "sparse", 1 << 20);
        assert_eq!(generations(&image, 5, 1 << 20), (0, 0));
        assert_eq!(allocated(&image), 0);
    }

    /// By QEMU's word, where it is at hand.
    #[test]
    fn a_qcow2_image_is_one() {
        let directory = TempDir::new().unwrap();
        let image = qcow2(directory.as_path(), "image", 10 << 30);
        let check = Command::new("qemu-img").arg("check").arg(&image).output();
        let Ok(output) = check else { return };
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("No errors were found"), "{output:?}");
    }
}
