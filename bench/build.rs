//! Compiles the programs that are started (guest/): what every runtime runs, and the first process of a guest. They use neither libraries nor the
//! standard one, so that the compiler alone makes them.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let source = Path::new("guest");
    println!("cargo::rerun-if-changed={}", source.display());
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    for name in ["program", "init"] {
        let status = Command::new(env::var_os("RUSTC").expect("cargo sets it"))
            .args(["--edition=2024", "--crate-type=bin", "--crate-name", name])
            .args(["--target", &env::var("TARGET").expect("cargo sets it")])
            .args(["-Copt-level=z", "-Cpanic=abort", "-Cstrip=symbols"])
            .args(["-Crelocation-model=static", "-Ctarget-feature=+crt-static"])
            .args([
                "-Clink-arg=-nostdlib",
                "-Clink-arg=-nostartfiles",
                "-Clink-arg=-static",
            ])
            // One segment, and no more than the program in it.
            .args(["-Clink-arg=-Wl,-N,--build-id=none,-z,norelro"])
            .arg(source.join(name).with_extension("rs"))
            .arg("-o")
            .arg(out.join(name))
            .status()
            .expect("the compiler runs");
        assert!(status.success(), "{name} cannot be compiled: {status}");
    }
}
