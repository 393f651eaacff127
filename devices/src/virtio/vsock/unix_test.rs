use std::io::{Read, Write};

use super::*;
use crate::virtio::vsock::test_support::{TempDir, is_free};

#[test]
fn a_path_is_one_that_fits() {
    let dir = TempDir::new();
    let too_long = dir.join(&"x".repeat(PATH_MAX));
    let with_zero = dir.join("a\0b");
    for path in [too_long, with_zero, PathBuf::new()] {
        let error = Listening::new(&path).unwrap_err();
        assert!(matches!(error, Error::Path { .. }), "{error}");
    }
    let error = Listening::new(&dir.join("not/there")).unwrap_err();
    assert!(matches!(error, Error::Listen { .. }), "{error}");
    // The longest one is fine.
    let base = dir.join("").as_os_str().len();
    let longest = dir.join(&"x".repeat(PATH_MAX - base));
    let listening = Listening::new(&longest).unwrap();
    UnixStream::connect(&longest).unwrap();
    drop(listening);
    assert!(is_free(&longest));
}

#[test]
fn a_socket_in_use_stays_whose_it_is() {
    let dir = TempDir::new();
    let path = dir.join("s");
    let first = Listening::new(&path).unwrap();
    let error = Listening::new(&path).unwrap_err();
    assert!(matches!(error, Error::InUse { .. }), "{error}");
    assert_eq!(
        error.to_string(),
        format!("{} is already in use", path.display())
    );
    UnixStream::connect(&path).unwrap();
    drop(first);
    assert!(is_free(&path));
    Listening::new(&path).unwrap();
}

#[test]
fn what_a_dead_process_left_is_replaced() {
    let dir = TempDir::new();
    let path = dir.join("s");
    drop(UnixListener::bind(&path).unwrap());
    assert!(!is_free(&path));
    let listening = Listening::new(&path).unwrap();
    UnixStream::connect(&path).unwrap();
    drop(listening);
    assert!(is_free(&path));
}

#[test]
fn other_files_are_left_alone() {
    let dir = TempDir::new();
    let file = dir.join("file");
    fs::write(&file, "precious").unwrap();
    let link = dir.join("link");
    std::os::unix::fs::symlink(dir.join("nowhere"), &link).unwrap();
    for path in [&file, &link, &dir.join("")] {
        let error = Listening::new(path).unwrap_err();
        assert!(
            matches!(error, Error::InUse { .. } | Error::Listen { .. }),
            "{error}"
        );
        assert!(!is_free(path));
    }
    assert_eq!(fs::read(&file).unwrap(), b"precious");
}

#[test]
fn the_file_is_removed_by_its_owner_only() {
    let dir = TempDir::new();
    let path = dir.join("s");
    let first = Listening::new(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let second = Listening::new(&path).unwrap();
    drop(first);
    UnixStream::connect(&path).unwrap();
    drop(second);
    assert!(is_free(&path));
}

#[test]
fn takes_a_line_and_leaves_the_rest() {
    let (mut client, server) = UnixStream::pair().unwrap();
    server.set_nonblocking(true).unwrap();
    let socket = UnixSocket(server);
    let mut line = Line::default();
    assert_eq!(socket.read_line(&mut line), Progress::Incomplete);
    client.write_all(b"CONN").unwrap();
    assert_eq!(socket.read_line(&mut line), Progress::Incomplete);
    client.write_all(b"ECT 5\nCONNECT 6\n").unwrap();
    assert_eq!(socket.read_line(&mut line), Progress::Connect(5));
    let mut rest = [0; 32];
    let count = (&socket.0).read(&mut rest).unwrap();
    assert_eq!(&rest[..count], b"CONNECT 6\n");
    drop(client);
    let mut line = Line::default();
    assert_eq!(socket.read_line(&mut line), Progress::Wrong);
}

#[test]
fn moves_pieces() {
    let (client, server) = UnixStream::pair().unwrap();
    let (client, server) = (UnixSocket(client), UnixSocket(server));
    let (mut a, mut b) = (*b"hel", *b"lo");
    let slices = [a.as_mut_slice(), b.as_mut_slice()].map(VolatileSlice::from);
    assert_eq!(client.write(&slices).unwrap(), 5);
    let (mut c, mut d) = ([0; 1], [0; 8]);
    let slices = [c.as_mut_slice(), d.as_mut_slice()].map(VolatileSlice::from);
    assert_eq!(server.read(&slices).unwrap(), 5);
    assert_eq!((c, &d[..4]), (*b"h", &b"ello"[..]));
    let slices = [VolatileSlice::from(d.as_mut_slice())];
    let error = server.read(&slices).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    // What there is no room for does not wait, and who is gone does not kill.
    let mut large = vec![0; 1 << 20];
    let slices = [VolatileSlice::from(large.as_mut_slice())];
    assert!(client.write(&slices).unwrap() < 1 << 20);
    let error = client.write(&slices).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    drop(server);
    let error = client.write(&slices).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
}
