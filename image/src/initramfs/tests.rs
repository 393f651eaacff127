use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::process::Command;

use cpio::newc::Reader;
use vmm_sys_util::tempdir::TempDir;

use super::*;
use crate::cache::Cache;

const BUSYBOX: &str = "/bin/busybox";

/// Reads an archive back: mode and contents by name.
fn list(mut archive: impl Read) -> BTreeMap<String, (u32, Vec<u8>)> {
    let mut entries = BTreeMap::new();
    loop {
        let mut reader = Reader::new(&mut archive).unwrap();
        if reader.entry().is_trailer() {
            return entries;
        }
        let name = reader.entry().name().to_owned();
        let mode = reader.entry().mode();
        let mut contents = Vec::new();
        reader.read_to_end(&mut contents).unwrap();
        reader.finish().unwrap();
        assert!(entries.insert(name, (mode, contents)).is_none());
    }
}

#[test]
fn an_archive_holds_what_was_put_in() {
    let mut archive = Archive::default();
    archive.directory("dev").unwrap();
    archive.character_device("dev/console", 5, 1).unwrap();
    archive.file("init", 0o755, b"hello").unwrap();
    archive.symlink("sh", "busybox").unwrap();
    let entries = list(archive.finish().unwrap().as_slice());
    assert_eq!(entries["dev"], (0o040_755, vec![]));
    assert_eq!(entries["dev/console"].0, 0o020_600);
    assert_eq!(entries["init"], (0o100_755, b"hello".to_vec()));
    assert_eq!(entries["sh"], (0o120_777, b"busybox".to_vec()));
}

#[test]
fn the_default_initramfs_is_made_once() {
    let directory = TempDir::new().unwrap();
    let modules = directory.as_path().join("modules");
    fs::create_dir(&modules).unwrap();
    fs::write(modules.join("01-b.ko"), "second").unwrap();
    fs::write(modules.join("00-a.ko"), "first").unwrap();
    fs::write(modules.join("README"), "no module").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(50));

    let cache = Cache::new(Some(directory.as_path().join("cache")));
    let busybox = Path::new(BUSYBOX);
    let made = default_initramfs(&cache, Some(&modules), busybox, Purpose::Shell).unwrap();
    let entries = list(&made.file);
    assert_eq!(entries["lib/modules/mote/00-a.ko"].1, b"first");
    assert_eq!(entries["lib/modules/mote/01-b.ko"].1, b"second");
    assert!(!entries.contains_key("lib/modules/mote/README"));
    assert_eq!(entries["bin/sh"], (0o120_777, b"busybox".to_vec()));
    assert_eq!(entries["bin/busybox"].1, fs::read(busybox).unwrap());
    assert_eq!(entries["init"].1, INIT.as_bytes());
    for path in DHCP_PATHS {
        assert_eq!(entries[path], (0o100_755, DHCP.as_bytes().to_vec()));
    }

    let again = default_initramfs(&cache, Some(&modules), busybox, Purpose::Shell).unwrap();
    assert_eq!(again.path, made.path);
    assert!(!entries.contains_key(AGENT_PATH));
    let jobs = default_initramfs(&cache, Some(&modules), busybox, Purpose::Jobs).unwrap();
    assert_eq!(list(&jobs.file)[AGENT_PATH].1, AGENT);
    fs::write(modules.join("02-c.ko"), "third").unwrap();
    let other = default_initramfs(&cache, Some(&modules), busybox, Purpose::Shell).unwrap();
    assert_ne!(other.path, made.path);
    assert!(list(&other.file).contains_key("lib/modules/mote/02-c.ko"));
}

#[test]
fn without_a_static_busybox_the_package_is_named() {
    let directory = TempDir::new().unwrap();
    let cache = Cache::new(None);
    let missing = default_initramfs(
        &cache,
        None,
        &directory.as_path().join("busybox"),
        Purpose::Shell,
    )
    .unwrap_err();
    assert!(matches!(missing, Error::NoBusybox { .. }));
    assert!(missing.to_string().contains("busybox-static"));

    let script = directory.as_path().join("script");
    symlink("/etc/passwd", &script).unwrap();
    let wrong = default_initramfs(&cache, None, &script, Purpose::Shell).unwrap_err();
    assert!(matches!(wrong, Error::Busybox { .. }));
    assert!(wrong.to_string().contains("busybox-static"));
}

/// Runs a command the way `init.sh` does, on the host.
fn decode_and_run(arguments: &[&str]) -> Vec<u8> {
    let arguments: Vec<String> = arguments.iter().map(|&text| text.to_owned()).collect();
    let encoded = encode_command(&arguments);
    assert!(!encoded.contains(|c: char| c.is_whitespace() || c == '"'));
    let decode = INIT
        .lines()
        .find(|line| line.trim_start().starts_with("line="))
        .unwrap();
    let output = Command::new(BUSYBOX)
        .args(["sh", "-c", &format!("{decode}\nexec sh -c \"$line\"")])
        .env("command", encoded)
        .output()
        .unwrap();
    output.stdout
}

#[test]
fn a_command_arrives_with_exactly_its_arguments() {
    let awkward = [
        "",
        "two words",
        "it's",
        r#"a "quoted" \n word"#,
        "$HOME `id` $(id)",
        "a%41b",
        "ÿ漢\t",
        "*",
        "line\nbreak",
    ];
    let mut arguments = vec!["printf", "[%s]"];
    arguments.extend(awkward);
    let expected: String = awkward.iter().map(|text| format!("[{text}]")).collect();
    assert_eq!(
        String::from_utf8(decode_and_run(&arguments)).unwrap(),
        expected
    );
}

/// Runs a function of `init.sh` on the host, where the programs that change anything print what they
/// would do. Returns that.
fn run_function(name: &str, arguments: &[&str]) -> Vec<String> {
    let start = INIT.find(&format!("\n{name}() {{\n")).unwrap();
    let end = INIT[start..].find("\n}\n").unwrap() + start + 3;
    let function = &INIT[start..end];
    let script = format!(
        "first_interface() {{ echo eth0; }}
        for program in ip udhcpc; do eval \"$program() {{ echo $program \\\"\\$@\\\" >&3; }}\"; done
        {}
        {name} \"$@\" 3>&1 >/dev/null",
        function.replace("/etc/resolv.conf", "/dev/fd/3")
    );
    let output = Command::new(BUSYBOX)
        .args(["sh", "-c", &script, "sh"])
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.stderr.is_empty(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn addresses_are_understood_as_the_kernel_does() {
    let configure = |address: &str| run_function("configure_network", &[address]);
    let dhcp = |device: &str| vec![format!("udhcpc -i {device} -q -n -t 5 -T 2 -A 1")];
    for word in ["dhcp", "on", "any", ":::::eth0:dhcp"] {
        assert_eq!(configure(word), dhcp("eth0"), "{word}");
    }
    assert_eq!(configure(":::::eth1:dhcp"), dhcp("eth1"));
    for method in ["", "off", "none"] {
        let address =
            format!("10.0.0.2::10.0.0.1:255.255.255.0:name:eth3:{method}:10.0.0.3:10.0.0.4");
        assert_eq!(
            configure(&address),
            [
                "ip addr add 10.0.0.2/255.255.255.0 dev eth3",
                "ip link set eth3 up",
                "ip route add default via 10.0.0.1 dev eth3 onlink",
                "nameserver 10.0.0.3",
                "nameserver 10.0.0.4",
            ],
            "{method}"
        );
    }
    assert_eq!(configure("off"), Vec::<String>::new());
}
