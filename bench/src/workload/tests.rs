use std::process::{Command, Stdio};

use vmm_sys_util::tempdir::TempDir;

use super::*;

fn run(words: &[&str]) -> (Option<i32>, String) {
    let directory = TempDir::new().unwrap();
    let workload = Workload::make(directory.as_path(), None).unwrap();
    let output = Command::new(&workload.program)
        .args(words)
        .output()
        .unwrap();
    (
        output.status.code(),
        String::from_utf8(output.stdout).unwrap(),
    )
}

#[test]
fn the_program_prints_its_token_and_exits_with_its_status() {
    let status = Some(i32::from(crate::adapter::PROGRAM_STATUS));
    assert_eq!(run(&["abc", "run"]), (status, "abc\n".into()));
    assert_eq!(run(&["abc", "mark"]), (status, "init\nabc\n".into()));
    assert_eq!(run(&[]), (status, "\n".into()));
    let long = "x".repeat(100);
    assert_eq!(
        run(&[&long, "run"]),
        (status, format!("{}\n", "x".repeat(64)))
    );
}

#[test]
fn a_program_that_holds_stays() {
    let directory = TempDir::new().unwrap();
    let workload = Workload::make(directory.as_path(), None).unwrap();
    let mut child = Command::new(&workload.program)
        .args(["abc", "hold"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = [0; 4];
    io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
    assert!(child.try_wait().unwrap().is_none());
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn the_archives_have_the_program() {
    let directory = TempDir::new().unwrap();
    let workload = Workload::make(directory.as_path(), None).unwrap();
    let mut image = tar::Archive::new(fs::File::open(&workload.image).unwrap());
    let names: Vec<String> = image
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().display().to_string())
        .collect();
    assert_eq!(names[1..], ["layer.tar", "manifest.json"]);
    let mut initrd = fs::File::open(&workload.initrd).unwrap();
    let mut found = Vec::new();
    loop {
        let reader = cpio::NewcReader::new(initrd).unwrap();
        if reader.entry().is_trailer() {
            break;
        }
        found.push((reader.entry().name().to_owned(), reader.entry().file_size()));
        initrd = reader.finish().unwrap();
    }
    let size = u32::try_from(PROGRAM.len()).unwrap();
    assert_eq!(found[3], ("program".to_owned(), size));
    assert_eq!(found[0].0, "dev");
}

#[test]
fn a_bundle_is_for_its_words() {
    let directory = TempDir::new().unwrap();
    write_bundle(
        directory.as_path(),
        Path::new("/x"),
        &["/program", "a"],
        Some("/group/1"),
    )
    .unwrap();
    let text = fs::read(directory.as_path().join("config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(
        config["process"]["args"],
        serde_json::json!(["/program", "a"])
    );
    assert_eq!(config["process"]["terminal"], false);
    assert_eq!(config["linux"]["cgroupsPath"], "/group/1");
    assert_eq!(config["root"]["readonly"], true);
}
