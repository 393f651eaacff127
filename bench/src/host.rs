//! What the host is.

use std::fs;

use rustix::system::uname;

use crate::record::Host;

/// Looks. What only mote knows is handed over: its finding about KVM, and what shows that the host is itself emulated.
pub fn facts(kvm: Option<String>, emulated: Option<String>, cgroup: Option<u32>) -> Host {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let name = uname();
    let governor = fs::read_to_string("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
    Host {
        cpu: cpuinfo_value(&cpuinfo, "model name")
            .unwrap_or("unknown")
            .to_owned(),
        cpus: std::thread::available_parallelism()
            .map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX)),
        memory: meminfo_bytes(&meminfo, "MemTotal").unwrap_or(0),
        kernel: format!(
            "{} {}",
            name.sysname().to_string_lossy(),
            name.release().to_string_lossy()
        ),
        kvm,
        governor: governor.ok().map(|governor| governor.trim().to_owned()),
        cgroup,
        emulated,
    }
}

/// The host's MemAvailable, in bytes.
pub fn available_memory() -> Option<u64> {
    meminfo_bytes(&fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable")
}

fn cpuinfo_value<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let line = text
        .lines()
        .find(|line| line.split(':').next().map(str::trim) == Some(name))?;
    Some(line.split_once(':')?.1.trim())
}

fn meminfo_bytes(text: &str, name: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_their_whole_names() {
        let text = "model\t\t: 85\nmodel name\t: A CPU: fast\n";
        assert_eq!(cpuinfo_value(text, "model name"), Some("A CPU: fast"));
        let text = "MemTotalX: 1 kB\nMemTotal:       2 kB\n";
        assert_eq!(meminfo_bytes(text, "MemTotal"), Some(2048));
        assert_eq!(meminfo_bytes(text, "MemAvailable"), None);
    }

    #[test]
    fn this_host_has_all_of_them() {
        let host = facts(None, None, None);
        assert!(host.memory > 0 && host.cpus > 0 && host.kernel.starts_with("Linux "));
        assert!(available_memory().unwrap() <= host.memory);
    }
}
