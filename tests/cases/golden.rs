//! Snapshots that are kept with the sources (`vmm/golden`): what was written before is read, and what is damaged is
//! refused. A new version of the format begins with a copy of the last one's folder, and they are written anew there by
//! `cargo test -p tests --test cases -- golden::write --ignored`.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use tests::executable;
use tests::service::Service;
use vmm::snapshot::format::HEADER_SIZE;
use vmm_sys_util::tempdir::TempDir;

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("snapshots_of_before_are_read", are_read),
    ("damaged_ones_are_refused", damaged),
];
pub(crate) const WRITE: &[Case] = &[("write", write)];

/// Files of one snapshot.
struct Golden {
    name: &'static str,
    /// How a monitor is started that writes them.
    options: &'static [&'static str],
    state: &'static [u8],
    memory: &'static [u8],
}

const GOLDEN: [Golden; 2] = [
    Golden {
        name: "mmio",
        options: &[],
        state: include_bytes!("../../vmm/golden/v1/mmio/state"),
        memory: include_bytes!("../../vmm/golden/v1/mmio/memory.gz"),
    },
    Golden {
        name: "pci",
        options: &["--enable-pci"],
        state: include_bytes!("../../vmm/golden/v1/pci/state"),
        memory: include_bytes!("../../vmm/golden/v1/pci/memory.gz"),
    },
];
/// How many damaged files of each are tried.
const MUTANTS: usize = 200;

/// Why they are not written by each test.
pub(crate) fn written_on_demand() -> Option<String> {
    Some("writes into the sources".into())
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../vmm/golden/v1")
        .join(name)
}

/// When the disk was last written to.
fn then() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_700_000_000)
}

/// The disk that the guest has.
fn make_disk(directory: &Path) {
    let mut disk = File::create(directory.join("disk")).unwrap();
    disk.write_all(&[7; 4096]).unwrap();
    disk.set_modified(then()).unwrap();
}

/// A guest with a device of each kind. All its paths are relative.
fn write() {
    for Golden { name, options, .. } in GOLDEN {
        let directory = TempDir::new().unwrap();
        let directory = directory.as_path();
        make_disk(directory);
        fs::write(directory.join("kernel"), executable::counting_kernel()).unwrap();
        let mut service = Service::start(directory, options);
        for (path, body) in [
            ("/boot-source", json!({"kernel_image_path": "kernel"})),
            (
                "/machine-config",
                json!({"vcpu_count": 2, "mem_size_mib": 32}),
            ),
            (
                "/drives/d",
                json!({"drive_id": "d", "is_root_device": false, "path_on_host": "disk", "is_read_only": true}),
            ),
            (
                "/network-interfaces/e",
                json!({"iface_id": "e", "backend": "user", "guest_mac": "06:00:00:00:00:01"}),
            ),
            ("/vsock", json!({"guest_cid": 3, "uds_path": "v.sock"})),
            (
                "/balloon",
                json!({"amount_mib": 1, "deflate_on_oom": false, "stats_polling_interval_s": 1}),
            ),
            ("/entropy", json!({})),
            ("/hotplug/memory", json!({"total_size_mib": 1024})),
        ] {
            service.put(path, body);
        }
        service.act("InstanceStart");
        assert_eq!(service.live().count(), 1);
        service.patch("/vm", json!({"state": "Paused"}));
        service.put(
            "/snapshot/create",
            json!({"snapshot_path": "state", "mem_file_path": "memory"}),
        );
        assert_eq!(service.terminate().status, 143);
        let folder = folder(name);
        fs::create_dir_all(&folder).unwrap();
        fs::copy(directory.join("state"), folder.join("state")).unwrap();
        let memory = File::create(folder.join("memory.gz")).unwrap();
        let mut memory = GzEncoder::new(memory, Compression::best());
        memory
            .write_all(&fs::read(directory.join("memory")).unwrap())
            .unwrap();
        memory.finish().unwrap();
    }
}

/// The files as a monitor wants them; returns what is in the state file.
fn unpack(golden: &Golden, directory: &Path) -> Vec<u8> {
    make_disk(directory);
    let mut memory = Vec::new();
    GzDecoder::new(golden.memory)
        .read_to_end(&mut memory)
        .unwrap();
    fs::write(directory.join("memory"), memory).unwrap();
    golden.state.to_vec()
}

fn load() -> Value {
    json!({
        "snapshot_path": "state",
        "mem_backend": {"backend_type": "File", "backend_path": "memory"},
        "force": true,
    })
}

fn are_read() {
    for golden in GOLDEN {
        let directory = TempDir::new().unwrap();
        let directory = directory.as_path();
        let state = unpack(&golden, directory);
        fs::write(directory.join("state"), state).unwrap();
        let mut service = Service::start(directory, &[""; 0]);
        let answer = service.request("PUT", "/snapshot/load", Some(&load()));
        if answer.status == 204 {
            service.patch("/vm", json!({"state": "Resumed"}));
            assert_eq!(service.live().count(), 2);
        } else {
            // All of it was understood; the host that wrote it had another CPU.
            let message = answer.body["fault_message"].as_str().unwrap();
            let is_about_the_host = ["this host", "This host", "KVM"];
            assert!(
                is_about_the_host.iter().any(|part| message.contains(part)),
                "{message}"
            );
        }
        assert_eq!(service.terminate().status, 143);
    }
}

/// A bit of the body is another one, and both checksums are right.
fn mutant(state: &[u8], at: usize, bit: usize) -> Vec<u8> {
    let mut mutant = state.to_vec();
    mutant[at] ^= 1 << bit;
    let body = crc32fast::hash(&mutant[HEADER_SIZE..]);
    mutant[32..36].copy_from_slice(&body.to_le_bytes());
    let header = crc32fast::hash(&mutant[..HEADER_SIZE - 4]);
    mutant[HEADER_SIZE - 4..HEADER_SIZE].copy_from_slice(&header.to_le_bytes());
    mutant
}

/// A machine is made of what each says, or it is refused: the monitor lives.
fn damaged() {
    for golden in GOLDEN {
        let directory = TempDir::new().unwrap();
        let directory = directory.as_path();
        let state = unpack(&golden, directory);
        let mut service = Service::start(directory, &[""; 0]);
        let (mut refused, mut taken) = (0, 0);
        for number in 0..MUTANTS {
            // All parts of the file have their share.
            let at = HEADER_SIZE + (state.len() - HEADER_SIZE) * number / MUTANTS;
            fs::write(directory.join("state"), mutant(&state, at, number % 8)).unwrap();
            let answer = service.request("PUT", "/snapshot/load", Some(&load()));
            if answer.status == 204 {
                taken += 1;
                let ended = service.terminate();
                assert_eq!(ended.status, 143, "bit {} of {at}: {ended:?}", number % 8);
                assert!(!ended.stderr.contains("panicked"), "{at}: {ended:?}");
                service = Service::start(directory, &[""; 0]);
            } else {
                refused += 1;
                assert_eq!(answer.status, 400, "{at}: {answer:?}");
                assert_eq!(service.state(), "Not started", "{at}");
            }
        }
        assert!(
            refused > 0 && taken + refused == MUTANTS,
            "{taken} were taken"
        );
        let ended = service.terminate();
        assert!(!ended.stderr.contains("panicked"), "{ended:?}");
    }
}
