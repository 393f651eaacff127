//! The seeds, without a fuzzer: they are what they are made to be, and nothing goes wrong with them.

use std::fs;
use std::path::PathBuf;

fn directory(target: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "seeds", target]
        .iter()
        .collect()
}

#[test]
fn are_those_that_the_program_makes() {
    for (target, make) in mote_fuzz::seeds::TARGETS {
        for (name, bytes) in make() {
            let path = directory(target).join(name);
            let there = fs::read(&path).unwrap_or_default();
            assert!(
                there == bytes,
                "{} is not as `cargo run --example seeds` makes it",
                path.display()
            );
        }
    }
}

#[test]
fn do_no_harm() {
    for (target, run) in mote_fuzz::targets::ALL {
        let mut count = 0;
        for file in fs::read_dir(directory(target)).unwrap() {
            run(&fs::read(file.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count > 0, "{target}");
        run(&[]);
    }
}
