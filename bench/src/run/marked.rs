//! Processes that carry a mark in their environment: found where there are no control groups, and wherever they have gone.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// The variable that all that is started has.
pub const VARIABLE: &str = "MOTE_BENCH_ID";

/// How long the kernel may take to end what was killed.
const KILL_LIMIT: Duration = Duration::from_secs(10);
const INTERVAL: Duration = Duration::from_millis(5);

/// Those whose mark is `id`.
pub fn processes(id: &str) -> Vec<u32> {
    let wanted = format!("{VARIABLE}={id}");
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let has_mark = |process: &u32| {
        // Of others, or dead.
        let environment = fs::read(format!("/proc/{process}/environ")).unwrap_or_default();
        environment
            .split(|byte| *byte == 0)
            .any(|variable| variable == wanted.as_bytes())
    };
    numbers.filter(has_mark).collect()
}

/// Kills them and waits until they are gone.
pub fn end(id: &str) {
    let deadline = Instant::now() + KILL_LIMIT;
    loop {
        let left = processes(id);
        if left.is_empty() || Instant::now() > deadline {
            return;
        }
        for process in left {
            if let Some(process) = i32::try_from(process).ok().and_then(Pid::from_raw) {
                let _ = kill_process(process, Signal::KILL);
            }
        }
        thread::sleep(INTERVAL);
    }
}

/// Their names, each once, for errors.
pub fn names(processes: &[u32]) -> String {
    let mut names: Vec<String> = (processes.iter())
        .map(|process| fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .collect();
    names.sort();
    names.dedup();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_child_of_a_child_is_found_and_ended() {
        let id = format!("test-{}", std::process::id());
        let mut shell = Command::new("sh")
            .args(["-c", "setsid sleep 100 & sleep 100"])
            .env(VARIABLE, &id)
            .spawn()
            .unwrap();
        while !names(&processes(&id)).contains("sleep") || processes(&id).len() < 3 {
            thread::sleep(INTERVAL);
        }
        let reaper = thread::spawn(move || shell.wait());
        end(&id);
        assert!(processes(&id).is_empty());
        reaper.join().unwrap().unwrap();
        assert!(processes("nobody").is_empty());
    }
}
