//! A client library of Firecracker, as it is on PyPI, has mote do what it has Firecracker do.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tests::disk::{FileSystem, root, run, tool};
use tests::guest::tuned_kernel;
use tests::network::{in_namespace, ip};
use tests::{monitor, python};
use vmm_sys_util::tempdir::TempDir;

use crate::Case;

pub(crate) const CASES: &[Case] = &[("a_library_of_pypi_makes_and_deletes_a_guest", microheart)];

/// The guest that microheart expects: it takes its address from the kernel's command line, lets root in by a key,
/// and restarts when it is told so.
const INIT: &str = r#"
    mount -t proc proc /proc; mount -t sysfs sys /sys
    [ -c /dev/null ] || mount -t devtmpfs dev /dev
    for word in $(cat /proc/cmdline); do case $word in
        microheart.ip=*) address=${word#*=} ;;
        microheart.gw=*) gateway=${word#*=} ;;
        microheart.name=*) hostname "${word#*=}" ;;
    esac; done
    busybox ip link set lo up
    busybox ip link set eth0 up
    busybox ip addr add "$address" dev eth0
    busybox ip route add default via "$gateway"
    # What busybox's reboot asks of the first process.
    trap 'reboot -f' TERM
    echo "up as $address"
    /usr/sbin/dropbear -F -E -s -r /etc/dropbear_key &
    wait"#;

/// microheart 0.3.0: makes a tap and rules for it, starts the binary with a configuration file, waits until the guest
/// answers to ssh, asks the API, and ends the guest by ssh.
fn microheart() {
    in_namespace(make_and_delete);
}

fn make_and_delete() {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    // It wants a way out to the world; nothing is sent there.
    ip("link add uplink type dummy");
    ip("addr add 192.0.2.2/24 dev uplink");
    ip("link set uplink up");
    ip("route add default via 192.0.2.1");

    let key = directory.join("key");
    let mut keygen = tool("ssh-keygen");
    keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]);
    keygen.arg(&key);
    run(keygen);
    let image = root_file_system(directory, &key.with_extension("pub"));
    // Where it looks for what it would fetch.
    let home = directory.join("home");
    fs::create_dir(&home).unwrap();
    symlink(monitor::path(), home.join("firecracker")).unwrap();
    symlink(tuned_kernel().join("vmlinux"), home.join("vmlinux-1")).unwrap();

    let mut session = tool("python3");
    let path = session.get_envs().find(|(name, _)| *name == "PATH");
    let path = path.unwrap().1.unwrap().to_str().unwrap().to_owned();
    session
        .arg("-c")
        .arg(include_str!("../python/microheart_session.py"))
        .arg(&image)
        .arg(&key)
        .env("PATH", format!("{}:{path}", firewall(directory).display()))
        .env("PYTHONPATH", python::tools().join("clients"))
        .env("MICROHEART_HOME", &home)
        .env("XDG_RUNTIME_DIR", directory);
    let said = run(session);
    let mut lines = said
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut next = |name: &str| {
        let line = lines.next().unwrap_or_else(|| panic!("no {name}: {said}"));
        line.get(name)
            .unwrap_or_else(|| panic!("no {name}: {said}"))
            .clone()
    };
    let started = next("started");
    let config = next("machine_config");
    assert_eq!(config["vcpu_count"], 2);
    assert_eq!(config["mem_size_mib"], 128);
    assert_eq!(next("guest")["stdout"], "guest-1\n2\n");
    assert_eq!(next("refused")["status"], 1);
    assert_eq!(next("state"), "Running");
    assert_eq!(next("state"), "Paused");
    assert_eq!(next("state"), "Running");
    let again = next("again");
    let again = again.as_str().unwrap();
    assert!(
        again.contains("not supported after starting the microVM"),
        "{again}"
    );
    assert_eq!(next("guest")["stdout"], "it's still there\n");
    let console = next("console");
    let console = console.as_str().unwrap();
    for part in ["up as 172.16.0.2/30", "Restarting system"] {
        assert!(console.contains(part), "no {part:?}: {console}");
    }
    assert_eq!(next("running"), json!(false));

    // Nothing is left of it.
    let path = |name: &str| PathBuf::from(started[name].as_str().unwrap());
    assert!(!path("socket").exists(), "{said}");
    assert!(!path("directory").exists(), "{said}");
    // Nobody may have waited for it yet; then it has no program any more.
    let program = format!("/proc/{}/exe", started["pid"]);
    assert!(fs::read_link(program).is_err(), "{said}");
    let links = ip("-br link");
    assert!(!links.contains(started["tap"].as_str().unwrap()), "{links}");
    assert!(monitor::files(directory.join("mote")).is_empty());
}

/// A disk of [`INIT`], with a server for ssh that takes this key.
fn root_file_system(directory: &Path, key: &Path) -> PathBuf {
    let root = root(directory, INIT);
    for name in ["usr/sbin", "lib64", "lib/x86_64-linux-gnu", "root/.ssh"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    let server = "/usr/sbin/dropbear";
    fs::copy(server, root.join("usr/sbin/dropbear")).unwrap();
    // The loader says what it would load: NAME => PATH (ADDRESS), and itself by its path.
    const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";
    let mut list = Command::new(LOADER);
    list.arg("--list").arg(server);
    let list = run(list);
    for library in list.lines().filter_map(|line| line.split("=> ").nth(1)) {
        let library = Path::new(library.split(" (").next().unwrap());
        let place = root.join("lib/x86_64-linux-gnu");
        fs::copy(library, place.join(library.file_name().unwrap())).unwrap();
    }
    fs::copy(LOADER, root.join(&LOADER[1..])).unwrap();
    let mut keygen = tool("dropbearkey");
    keygen.args(["-t", "ed25519", "-f"]);
    keygen.arg(root.join("etc/dropbear_key"));
    run(keygen);
    fs::copy(key, root.join("root/.ssh/authorized_keys")).unwrap();
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
    FileSystem::Ext4(64 << 20).image(directory, "root.img", &root)
}

/// A directory with `iptables`: where Debian's package was only unpacked, nobody has chosen one.
fn firewall(directory: &Path) -> PathBuf {
    let programs = directory.join("bin");
    fs::create_dir(&programs).unwrap();
    symlink("/usr/sbin/iptables-nft", programs.join("iptables")).unwrap();
    programs
}
