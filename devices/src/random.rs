//! Randomness of the host.

use std::fs::File;
use std::io::{self, Read};

/// Where it comes from.
pub(crate) const SOURCE: &str = "/dev/urandom";

/// So many bytes of it.
pub fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open(SOURCE)?.read_exact(&mut bytes)?;
    Ok(bytes)
}
