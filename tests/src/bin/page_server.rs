//! `mote-page-server SOCKET FILE` serves the page faults of one guest from a memory file: see `tests::page_server`.

use std::io;
use std::path::Path;

fn main() -> io::Result<()> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let [socket, file] = &arguments[..] else {
        return Err(io::Error::other("usage: mote-page-server SOCKET FILE"));
    };
    tests::page_server::serve(Path::new(socket), Path::new(file))
}
