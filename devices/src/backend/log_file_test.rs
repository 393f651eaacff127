use std::os::unix::fs::FileTypeExt;

use vmm_sys_util::tempdir::TempDir;

use super::*;

fn open(directory: &TempDir, max_size: u64, keep: u32) -> LogFile {
    let path = directory.as_path().join("log");
    match LogFile::open(FileOutput {
        path,
        max_size,
        keep,
    }) {
        Ok(Opened::File(file)) => file,
        other => panic!("{other:?}"),
    }
}

fn write(file: &mut LogFile, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let count = file.write(bytes).unwrap();
        assert_ne!(count, 0);
        bytes = &bytes[count..];
    }
}

/// All that there is, the oldest first.
fn files(directory: &TempDir) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory.as_path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    names.sort();
    names
        .iter()
        .rev()
        .map(|path| fs::read_to_string(path).unwrap())
        .collect()
}

#[test]
fn without_a_limit_it_is_appended_to() {
    let directory = TempDir::new().unwrap();
    for _ in 0..2 {
        write(&mut open(&directory, 0, 3), b"0123456789");
    }
    assert_eq!(files(&directory), ["01234567890123456789"]);
}

#[test]
fn old_files_are_kept_and_the_oldest_goes() {
    let directory = TempDir::new().unwrap();
    let mut file = open(&directory, 10, 2);
    for number in 0..8 {
        write(&mut file, format!("line {number}\n").as_bytes());
    }
    assert_eq!(files(&directory), ["line 5\n", "line 6\n", "line 7\n"]);
}

#[test]
fn nothing_is_lost_between_two_files() {
    for chunk in [1, 3, 7, 64, 1000] {
        let directory = TempDir::new().unwrap();
        let mut file = open(&directory, 64, 100);
        let text: String = (0..100)
            .map(|number| format!("this is {number}\n"))
            .collect();
        for bytes in text.as_bytes().chunks(chunk) {
            write(&mut file, bytes);
        }
        let mut by_age: Vec<_> = (1..100)
            .rev()
            .filter_map(|number| fs::read_to_string(file.numbered(number)).ok())
            .collect();
        by_age.push(fs::read_to_string(&file.config.path).unwrap());
        assert!(by_age.iter().all(|part| part.len() <= 64));
        assert_eq!(by_age.concat(), text);
        if chunk == 1000 {
            assert!(by_age.iter().all(|part| part.ends_with('\n')));
        }
    }
}

#[test]
fn a_line_longer_than_a_file_is_split() {
    let directory = TempDir::new().unwrap();
    let mut file = open(&directory, 10, 9);
    write(&mut file, &[b'x'; 25]);
    assert_eq!(files(&directory).concat(), "x".repeat(25));
    assert_eq!(files(&directory).len(), 3);
}

#[test]
fn without_old_files_it_starts_over() {
    let directory = TempDir::new().unwrap();
    let mut file = open(&directory, 10, 0);
    for number in 0..5 {
        write(&mut file, format!("line {number}\n").as_bytes());
    }
    assert_eq!(files(&directory), ["line 4\n"]);
}

#[test]
fn a_file_that_is_too_large_already_is_put_aside() {
    let directory = TempDir::new().unwrap();
    fs::write(directory.as_path().join("log"), [b'o'; 50]).unwrap();
    write(&mut open(&directory, 10, 1), b"new");
    assert_eq!(files(&directory), ["o".repeat(50), "new".into()]);
}

#[test]
fn what_is_no_file_is_not_rotated() {
    let config = FileOutput {
        path: "/dev/null".into(),
        max_size: 1,
        keep: 1,
    };
    match LogFile::open(config).unwrap() {
        Opened::Other(fd) => assert_eq!(fd.write(&[0; 100]).unwrap(), 100),
        Opened::File(_) => panic!("/dev/null is a file"),
    }
    let kind = fs::metadata("/dev/null").unwrap().file_type();
    assert!(kind.is_char_device());
}

#[test]
fn a_directory_is_an_error() {
    let directory = TempDir::new().unwrap();
    let config = FileOutput {
        path: directory.as_path().into(),
        max_size: 0,
        keep: 0,
    };
    assert!(LogFile::open(config).is_err());
}

#[test]
fn a_directory_that_cannot_be_written_to_ends_it() {
    let directory = TempDir::new().unwrap();
    let mut file = open(&directory, 4, 1);
    write(&mut file, b"full");
    fs::remove_dir_all(directory.as_path()).unwrap();
    assert!(file.write(b"more").is_err());
}
