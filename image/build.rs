//! Compiles the first process of guests that run commands (`agent`), which goes into their initial RAM disk. Cargo has no
//! stable way to have one package's program in another; this one has no dependencies, so that the compiler
//! alone makes it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let source = Path::new("../agent/src");
    println!("cargo::rerun-if-changed={}", source.display());
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let library = out.join("libagent.rlib");
    let compile = |crate_type: &str, file: &str, to: &Path, more: &[&str]| {
        let mut rustc = Command::new(env::var_os("RUSTC").expect("cargo sets it"));
        rustc
            .args([
                "--edition=2024",
                "--crate-name=agent",
                "--crate-type",
                crate_type,
            ])
            .args(["--target", &env::var("TARGET").expect("cargo sets it")])
            .args([
                "-Copt-level=z",
                "-Cpanic=abort",
                "-Cstrip=symbols",
                "-Cembed-bitcode=yes",
            ])
            .arg(source.join(file))
            .arg("-o")
            .arg(to)
            .args(more);
        let status = rustc.status().expect("the compiler runs");
        assert!(status.success(), "the agent cannot be compiled: {status}");
    };
    compile("rlib", "lib.rs", &library, &[]);
    let external = format!("agent={}", library.display());
    // It runs where there is nothing else.
    compile(
        "bin",
        "main.rs",
        &out.join("agent"),
        &[
            "-Clto=fat",
            "-Ctarget-feature=+crt-static",
            "--extern",
            &external,
        ],
    );
}
