//! Python programs that tests run.

use std::env;
use std::path::{Path, PathBuf};

/// Where `tests/python/install.sh` has put them: `$PYTHON_TOOLS`.
#[track_caller]
pub fn tools() -> PathBuf {
    let Some(tools) = env::var_os("PYTHON_TOOLS") else {
        panic!("PYTHON_TOOLS is not set: export PYTHON_TOOLS=$(tests/python/install.sh)");
    };
    tools.into()
}

/// A file of `tests/python`.
pub fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("python")
        .join(name)
}
