//! Linux boots: kernels, protocols, CPUs, memory, what the guest is told.

use std::fs;

use tests::guest::{self, packaged_kernel, run, tuned_kernel};
use tests::monitor::mote;
use vmm_sys_util::tempdir::TempDir;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("the_default_guest", the_default_guest),
    ("elf_by_the_linux_protocol", elf_by_the_linux_protocol),
    ("elf_by_pvh", elf_by_pvh),
    ("bzimage_gzip", || bzimage("gzip")),
    ("bzimage_bzip2", || bzimage("bzip2")),
    ("bzimage_xz", || bzimage("xz")),
    ("bzimage_zstd", || bzimage("zstd")),
    ("bzimage_lz4", || bzimage("lz4")),
    ("bzimage_lzo", || bzimage("lzo")),
    ("bzimage_that_unpacks_itself", bzimage_that_unpacks_itself),
    ("debian_kernel_with_modules", debian_kernel_with_modules),
    ("initrd_of_ones_own", initrd_of_ones_own),
    ("command_line", command_line),
    ("config_file", config_file),
    ("arguments_of_the_command", arguments_of_the_command),
    ("cpus_1", || cpus(1, "")),
    ("cpus_2", || cpus(2, "")),
    ("cpus_8", || cpus(8, "")),
    ("cpus_1_mp_table", || cpus(1, "acpi=off")),
    ("cpus_2_mp_table", || cpus(2, "acpi=off")),
    ("cpus_8_mp_table", || cpus(8, "acpi=off")),
    ("virtio_slots_by_acpi", virtio_slots_by_acpi),
    ("virtio_slots_by_command_line", virtio_slots_by_command_line),
    ("memory_of_64_mib", || memory("64m", 64)),
    ("memory_up_to_the_hole", || memory("3g", 3 << 10)),
    ("memory_above_the_hole", || memory("4097m", 4097)),
    ("memory_of_8_gib", || memory("8g", 8 << 10)),
    ("clock_is_not_calibrated", clock_is_not_calibrated),
    ("no_kernel_complaints", no_kernel_complaints),
    ("boot_timer", boot_timer),
];

fn the_default_guest() {
    let output = run(
        &[],
        "uname -s; hostname; id -un; tty; ls -d -1 /proc/1 /sys/class /dev/pts/ptmx",
    );
    assert_eq!(
        output,
        "Linux\nmote\nroot\n/dev/ttyS0\n/dev/pts/ptmx\n/proc/1\n/sys/class\n"
    );
}

/// The kernel that runs, by its own word.
#[track_caller]
fn boots(options: &[&str]) {
    let output = run(options, "uname -r; cat /proc/sys/kernel/ostype");
    let (release, rest) = output.split_once('\n').unwrap();
    assert!(release.starts_with("6.12."), "{output}");
    assert_eq!(rest, "Linux\n");
}

fn elf_by_the_linux_protocol() {
    boots(&["--kernel", tuned_kernel().join("vmlinux").to_str().unwrap()]);
}

fn elf_by_pvh() {
    let kernel = tuned_kernel().join("vmlinux");
    let options = ["--kernel", kernel.to_str().unwrap(), "--boot", "pvh"];
    boots(&options);
    // Entered in 32-bit mode, the kernel finds the hypervisor's structure and no boot loader's.
    let output = run(
        &options,
        "cat /sys/kernel/boot_params/version 2>/dev/null; hexdump -s 0x210 -n 1 -e '\"%x\"' /sys/kernel/boot_params/data; dmesg | grep -c 'BIOS-e820\\|PVH\\|e820'",
    );
    assert!(!output.is_empty());
}

fn bzimage(compression: &str) {
    let kernel = tuned_kernel().join(format!("bzImage-{compression}"));
    let kernel = kernel.to_str().unwrap();
    boots(&["--kernel", kernel]);
    // The second start finds the unpacked kernel.
    let ended = mote(["run", "-v", "--kernel", kernel, "--", "true"]).expect_status(0);
    assert!(ended.stderr.contains("/kernels/"), "{ended:#?}");
    assert!(ended.stderr.contains("/vmlinux"), "{ended:#?}");
}

/// A payload that the host does not know is left to the guest.
fn bzimage_that_unpacks_itself() {
    let directory = TempDir::new().unwrap();
    let kernel = directory.as_path().join("bzImage");
    let mut image = fs::read(tuned_kernel().join("bzImage-gzip")).unwrap();
    // The header's payload_offset points at code instead: what is there is no compressed data.
    image[0x248..0x24c].fill(0);
    fs::write(&kernel, image).unwrap();
    let kernel = kernel.to_str().unwrap();
    let ended = mote(["run", "-v", "--kernel", kernel, "--", "uname", "-s"]).expect_status(0);
    assert!(
        ended.stderr.contains("unpacks itself in the guest"),
        "{ended:#?}"
    );
    assert_eq!(guest::output(&ended), "Linux\n");
}

fn debian_kernel_with_modules() {
    let directory = TempDir::new().unwrap();
    // A cache directory without the tuned kernel: the packaged one is next.
    let cache = directory.as_path().join("mote/kernel");
    fs::create_dir_all(&cache).unwrap();
    std::os::unix::fs::symlink(packaged_kernel(), cache.join("packaged")).unwrap();
    let mut command = std::process::Command::new(tests::monitor::path());
    command
        .args([
            "run",
            "-v",
            "--memory",
            "256m",
            "--",
            "sh",
            "-c",
            "uname -r; lsmod",
        ])
        .env("XDG_CACHE_HOME", directory.as_path())
        .stdin(std::process::Stdio::null());
    let ended = tests::monitor::Running::start(command)
        .wait()
        .expect_status(0);
    let output = guest::output(&ended);
    assert!(output.contains("-cloud-amd64"), "{output}");
    for module in [
        "virtio_mmio",
        "virtio_blk",
        "virtio_net",
        "vmw_vsock_virtio_transport",
    ] {
        assert!(
            output.lines().any(|line| line.starts_with(module)),
            "no {module} in {output}"
        );
    }
}

fn initrd_of_ones_own() {
    let directory = TempDir::new().unwrap();
    let init = "/bin/busybox sha256sum /payload; /bin/busybox echo from an initrd of my own; \
                /bin/busybox stty onlcr; /bin/busybox poweroff -f";
    let initrd = guest::initrd(directory.as_path(), init);
    let ended = mote(["run", "--initrd", initrd.to_str().unwrap()]).expect_status(0);
    assert!(
        ended.text().contains("from an initrd of my own\n"),
        "{ended:#?}"
    );
}

fn command_line() {
    let output = run(
        &["--append", "one=1 two", "--id", "guest-7"],
        "cat /proc/cmdline; hostname",
    );
    let (cmdline, hostname) = output.split_once('\n').unwrap();
    assert!(cmdline.starts_with("console=ttyS0 "), "{cmdline}");
    assert!(cmdline.contains(" one=1 two "), "{cmdline}");
    assert_eq!(hostname, "guest-7\n");

    let ended = mote([
        "run",
        "--cmdline",
        "console=ttyS0 panic=-1 quiet only=this rdinit=/bin/true",
    ]);
    // The first process is named on the command line, and ends.
    assert!(
        ended.text().contains("Attempted to kill init"),
        "{ended:#?}"
    );
    ended.expect_status(134);
}

fn config_file() {
    let directory = TempDir::new().unwrap();
    let file = directory.as_path().join("vm.json");
    let initrd = guest::initrd(
        directory.as_path(),
        "/bin/busybox mount -t proc proc /proc; /bin/busybox nproc; /bin/busybox head -n 1 /proc/meminfo; \
         /bin/busybox cat /proc/cmdline; /bin/busybox stty onlcr; /bin/busybox reboot -f",
    );
    let text = format!(
        r#"{{"boot-source": {{"kernel_image_path": {:?}, "initrd_path": {initrd:?},
             "boot_args": "console=ttyS0 quiet reboot=k panic=1 from=file"}},
            "machine-config": {{"vcpu_count": 2, "mem_size_mib": 200}}}}"#,
        tuned_kernel().join("vmlinux")
    );
    fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    let ended = mote(["run", "--config-file", file]).expect_status(0);
    let output = guest::output(&ended);
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[0], "2");
    assert!(lines[2].ends_with("from=file"), "{output}");
    // Flags override the file.
    let ended = mote(["run", "--config-file", file, "--cpus", "1"]).expect_status(0);
    assert!(guest::output(&ended).starts_with("1\n"), "{ended:#?}");
}

fn arguments_of_the_command() {
    let ended = mote([
        "run",
        "--",
        "printf",
        "[%s]",
        "",
        "two words",
        "it's",
        "$HOME",
        "ü",
        "%41",
    ]);
    let ended = ended.expect_status(0);
    assert!(
        ended.text().contains("[][two words][it's][$HOME][ü][%41]"),
        "{ended:#?}"
    );

    let ended = mote(["run", "--", "sh", "-c", "exit 7"]).expect_status(0);
    assert!(
        ended
            .text()
            .contains("mote: command exited with status 7\n"),
        "{ended:#?}"
    );
}

/// Every CPU is there, and they are cores of one package.
fn cpus(count: u32, append: &str) {
    let options = ["--cpus", &count.to_string(), "--append", append];
    let script = "nproc; grep -c ^processor /proc/cpuinfo
        grep -h . /sys/devices/system/cpu/cpu*/topology/core_id | sort -n | xargs
        cat /sys/devices/system/cpu/cpu*/topology/physical_package_id | sort -u
        cat /sys/devices/system/cpu/cpu*/topology/thread_siblings_list | sort -n | xargs
        awk '/^(siblings|cpu cores)/ { print $NF }' /proc/cpuinfo | sort -u
        for cpu in /sys/devices/system/cpu/cpu[0-9]*; do taskset -c ${cpu#*cpu/cpu} true || echo no $cpu; done";
    let all = (0..count)
        .map(|cpu| cpu.to_string())
        .collect::<Vec<_>>()
        .join(" ");
    assert_eq!(
        run(&options, script),
        format!("{count}\n{count}\n{all}\n0\n{all}\n{count}\n")
    );
}

fn virtio_slots_by_acpi() {
    let output = run(
        &["--entropy", "on", "--balloon", "0"],
        "ls /sys/bus/platform/devices | grep -ci lnro0005; ls /sys/bus/acpi/devices | grep -c PNP0501",
    );
    assert_eq!(output, "2\n1\n");
}

fn virtio_slots_by_command_line() {
    let output = run(
        &["--entropy", "on", "--balloon", "0", "--append", "acpi=off"],
        "ls -d /sys/firmware/acpi; ls /sys/bus/platform/devices | grep -c virtio-mmio",
    );
    assert!(output.ends_with("2\n"), "{output}");
    assert!(!output.starts_with("/sys/firmware/acpi\n"), "{output}");
}

fn memory(size: &str, mib: u64) {
    let output = run(
        &["--memory", size],
        "awk '/^MemTotal/ { print $2 }' /proc/meminfo; dd if=/dev/zero of=/tmp/fill bs=1M count=20 2>/dev/null && sha256sum </tmp/fill",
    );
    let mut lines = output.lines();
    let total: u64 = lines.next().unwrap().parse::<u64>().unwrap() >> 10;
    // The kernel keeps its own text and data, page structures and hash tables.
    let expected = mib - mib / 20 - 24..mib;
    assert!(
        expected.contains(&total),
        "{total} MiB, not in {expected:?}"
    );
    let hash = lines.next().unwrap();
    assert!(hash.starts_with("cd52d81e"), "{hash}");
}

fn clock_is_not_calibrated() {
    let output = run(
        &[],
        "cat /sys/devices/system/clocksource/clocksource0/current_clocksource; grep -o -m1 tsc_known_freq /proc/cpuinfo; dmesg | grep -vi 'command line' | grep -ic 'calibrat.*using\\|Refined TSC'; true",
    );
    assert!(
        output.starts_with("kvm-clock\n") || output.starts_with("tsc\n"),
        "{output}"
    );
    assert!(output.ends_with("tsc_known_freq\n0\n"), "{output}");
}

/// Nothing at the level of warnings or worse.
fn no_kernel_complaints() {
    for options in [
        &["--cpus", "2"][..],
        &["--cpus", "2", "--append", "acpi=off"],
    ] {
        let output = run(
            options,
            "dmesg -r | grep '^<[0-4]>' | grep -v 'reboot:'; true",
        );
        assert_eq!(output, "", "{options:?}");
    }
}

fn boot_timer() {
    let script = "printf '\\173' | dd of=/dev/port bs=1 seek=1008 2>/dev/null";
    let ended = mote(["run", "--boot-timer", "--", "sh", "-c", script]).expect_status(0);
    let mark = ended
        .stderr
        .lines()
        .find(|line| line.contains("mark 123"))
        .unwrap();
    assert!(
        mark.contains(" ms after start") && mark.contains(" ms after the first KVM_RUN"),
        "{mark}"
    );
}
