//! The same devices behind PCI, and everything at once behind either transport.

use tests::disk::sparse;
use tests::guest::{run, run_probing};
use tests::network::{in_namespace, serve_tcp, tap};
use tests::vsock::serve;
use vmm_sys_util::tempdir::TempDir;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("what_the_guest_sees", what_the_guest_sees),
    ("no_kernel_complaints", no_kernel_complaints),
];

/// Cases that make networks.
pub(crate) const NETWORK_CASES: &[Case] = &[
    ("everything_at_once", || {
        in_namespace(|| everything_at_once(true));
    }),
    ("everything_at_once_without_pci", || {
        in_namespace(|| everything_at_once(false));
    }),
];

const MIB: u64 = 1 << 20;
const DISKS: usize = 16;
const NETWORKS: usize = 8;

/// Vendor, class, capabilities, interrupts: one a queue, and one for changes.
fn what_the_guest_sees() {
    let directory = TempDir::new().unwrap();
    let disk = sparse(directory.as_path(), "disk", MIB);
    let disk = disk.to_str().unwrap();
    let output = run_probing(
        &["--pci", "--cpus", "2", "--entropy", "on", "--disk", disk],
        "cd /sys/bus/pci/devices
        for device in *; do echo $device $(cat $device/vendor) $(cat $device/device) $(cat $device/class); done
        must dd if=/dev/vda of=/dev/null bs=64k 2>/dev/null
        must guest-probe random /dev/hwrng
        echo platform $(ls /sys/bus/platform/devices | grep -ci 'lnro0005\\|virtio-mmio')
        echo interrupts $(grep -c 'PCI-MSIX.*virtio' /proc/interrupts)",
    );
    // Disk and entropy, modern only: 0x1040 and the device's number.
    for id in ["0x1af4 0x1042 ", "0x1af4 0x1044 "] {
        assert!(output.contains(id), "no {id} in {output}");
    }
    let first = output.lines().next().unwrap();
    assert!(
        first.starts_with("0000:00:00.0 ") && first.ends_with(" 0x060000"),
        "{output}"
    );
}

/// Nothing at the level of warnings or worse.
fn no_kernel_complaints() {
    let script = "dmesg -r | grep '^<[0-4]>' | grep -v 'reboot:'; true";
    for options in [&["--pci"][..], &["--pci", "--cpus", "2"]] {
        assert_eq!(run(options, script), "", "{options:?}");
    }
}

/// 16 disks, 8 networks, console, entropy, vsock and balloon, all of them busy.
fn everything_at_once(pci: bool) {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let mut options: Vec<String> = ["--cpus", "2", "--memory", "512m", "--balloon", "64m"]
        .map(str::to_owned)
        .into();
    let mut add = |option: &str, value: String| options.extend([option.to_owned(), value]);
    let mut script = String::new();
    for number in 0..DISKS {
        let image = sparse(directory, &format!("disk{number}"), MIB);
        let iothread = if number % 4 == 3 { ",iothread=on" } else { "" };
        add("--disk", format!("{}{iothread}", image.display()));
        let letter = char::from(b'a' + number as u8);
        script.push_str(&format!(
            "(guest-probe block verify /dev/vd{letter} --direct --operations 100 >/dev/null && echo disk {number} fine) &\n"
        ));
    }
    let mut servers = Vec::new();
    for number in 0..NETWORKS {
        let name = format!("tap{number}");
        tap(&name, 1500, false, &[&format!("10.9.{number}.1/24")]);
        add("--net", format!("tap={name}"));
        servers.push(serve_tcp(&format!("10.9.{number}.1:5000"), 1));
        script.push_str(&format!(
            "ip addr add 10.9.{number}.2/24 dev eth{number}; ip link set eth{number} up
            (guest-probe tcp client 10.9.{number}.1:5000 --bytes 500k --mode both >/dev/null && echo net {number} fine) &\n"
        ));
    }
    let vsock = directory.join("vsock");
    servers.push(serve(&vsock, 2000, 4));
    add("--vsock", format!("3:{}", vsock.display()));
    add("--entropy", "on".into());
    script.push_str(
        "(guest-probe vsock client 2:2000 --bytes 500k --mode both --connections 4 >/dev/null && echo vsock fine) &
        (guest-probe random /dev/hwrng >/dev/null && echo entropy fine) &
        wait
        echo devices $(guest-probe features | wc -l)",
    );
    if pci {
        options.push("--pci".into());
    }
    let output = run_probing(&options, &script);
    let fine = output.lines().filter(|line| line.ends_with(" fine"));
    assert_eq!(fine.count(), DISKS + NETWORKS + 2, "{output}");
    // And entropy, vsock, balloon.
    let devices = format!("devices {}\n", DISKS + NETWORKS + 3);
    assert!(output.contains(&devices), "{output}");
    for server in servers {
        server.join().unwrap().unwrap();
    }
}
