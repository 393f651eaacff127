//! Linux guests that go on in another process.

use std::fs::{self, File};
use std::io::Read;
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use guest_probe::load::serve_streams;
use serde_json::json;
use tests::disk::filled;
use tests::driven::{SCRIPT, guest_does, until};
use tests::guest::{self, tuned_kernel};
use tests::service::{Service, snapshot_from, snapshot_to};
use tests::vsock;
use vmm::snapshot::format::StateFile;
use vmm::snapshot::restored::Restored;
use vmm::snapshot::state::VmState;
use vmm_sys_util::tempdir::TempDir;

use crate::Case;

const MIB: u64 = 1 << 20;

pub(crate) const CASES: &[Case] = &[
    ("linux_goes_on_under_load", on_mmio),
    ("linux_on_pci_goes_on_under_load", on_pci),
    ("linux_with_eight_vcpus_above_the_hole_goes_on", large),
    ("linux_is_another_guest_after_each_restore", is_another),
];

/// A machine, and how often it is moved.
struct Machine<'a> {
    options: &'a [&'a str],
    cpus: u32,
    memory_mib: u64,
    moves: u32,
}

fn on_mmio() {
    goes_on(&Machine {
        options: &[],
        cpus: 2,
        memory_mib: 128,
        moves: 3,
    });
}

fn on_pci() {
    goes_on(&Machine {
        options: &["--enable-pci"],
        cpus: 1,
        memory_mib: 128,
        moves: 2,
    });
}

/// Most of its memory is never touched.
fn large() {
    goes_on(&Machine {
        options: &["--enable-pci"],
        cpus: 8,
        memory_mib: 4096,
        moves: 1,
    });
}

fn start(directory: &Path, machine: &Machine) -> Service {
    start_with(directory, machine, false)
}

/// A guest whose writes are tracked.
pub(crate) fn start_tracked(directory: &Path, options: &[&str], cpus: u32) -> Service {
    let machine = Machine {
        options,
        cpus,
        memory_mib: 128,
        moves: 0,
    };
    start_with(directory, &machine, true)
}

fn start_with(directory: &Path, machine: &Machine, tracks: bool) -> Service {
    let disk = filled(directory, "disk", 8 * MIB, 1);
    let initrd = guest::probing(directory, SCRIPT);
    let service = Service::start(directory, machine.options);
    service.put(
        "/boot-source",
        json!({
            "kernel_image_path": tuned_kernel().join("vmlinux"), "initrd_path": initrd,
            "boot_args": "console=ttyS0 quiet reboot=k panic=-1 ip=dhcp",
        }),
    );
    service.put(
        "/machine-config",
        json!({
            "vcpu_count": machine.cpus, "mem_size_mib": machine.memory_mib, "track_dirty_pages": tracks,
        }),
    );
    service.put(
        "/drives/d",
        json!({"drive_id": "d", "is_root_device": false, "path_on_host": disk, "cache_type": "Writeback"}),
    );
    service.put(
        "/network-interfaces/e",
        json!({"iface_id": "e", "backend": "user"}),
    );
    service.put(
        "/vsock",
        json!({"guest_cid": 3, "uds_path": directory.join("v.sock")}),
    );
    service.put(
        "/balloon",
        json!({"amount_mib": 16, "deflate_on_oom": true, "stats_polling_interval_s": 1}),
    );
    service.put("/entropy", json!({}));
    service.act("InstanceStart");
    service
}

/// Disk, network, memory, processes and time of a guest that is moved from process to process while it
/// writes and reads what it has written.
fn goes_on(machine: &Machine) {
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    serve_streams(listener);
    let send = format!(
        "must guest-probe load tcp 10.0.2.2:{port} --mode send --amount 262144 | grep DONE"
    );
    let create = snapshot_to(directory);
    let mut load = snapshot_from(directory);
    load["resume_vm"] = json!(true);

    let vsock = directory.join("v.sock");
    let streams = "must guest-probe vsock client 2:2000 --bytes 100k --mode both --connections 2";
    let served = vsock::serve(&vsock, 2000, 2 * (1 + machine.moves as usize));

    let mut service = start(directory, machine);
    service.live().expect("READY");
    let has_balloon = |service: &Service| service.get("/balloon/statistics")["actual_mib"] == 16;
    until("the balloon", || has_balloon(&service).then_some(()));
    let does = |service: &mut Service, command: &str| guest_does(service.live(), command);
    does(&mut service, &send);
    does(&mut service, streams);
    let cpus = format!("must test $(nproc) = {}", machine.cpus);
    does(&mut service, &cpus);
    does(
        &mut service,
        "date +%s >/tmp/start; mkdir /tmp/kept; echo kept >/tmp/kept/file; held=here",
    );
    does(
        &mut service,
        "guest-probe block verify /dev/vda --seed 1 --threads 2 --operations 300 --direct >/tmp/log 2>&1 & true",
    );
    for _ in 0..machine.moves {
        // One that ends with the process that it goes through.
        does(
            &mut service,
            "rm -f /tmp/ended /tmp/listening; (guest-probe vsock server 1000 >/tmp/listening 2>&1; echo $? >/tmp/ended) & \
             await grep LISTENING /tmp/listening",
        );
        let mut lost = vsock::connect(&vsock, 1000).unwrap();
        service.patch("/vm", json!({"state": "Paused"}));
        service.put("/snapshot/create", create.clone());
        assert_eq!(service.terminate().status, 143);
        assert_eq!(lost.read(&mut [0]).unwrap_or(0), 0);
        service = Service::start(directory, machine.options);
        service.put("/snapshot/load", load.clone());
        assert_eq!(service.state(), "Running");
        let said = does(&mut service, "cat /tmp/kept/file; echo $held");
        assert!(said.contains("kept") && said.contains("here"), "{said}");
        assert!(has_balloon(&service));
        // A driver that knew nothing of it, and a host's end that is new.
        does(&mut service, &send);
        does(
            &mut service,
            "await test -s /tmp/ended; must_not is /tmp/ended 0",
        );
        does(&mut service, streams);
        does(
            &mut service,
            "must test $(dd if=/dev/hwrng bs=64 count=1 2>/dev/null | wc -c) = 64",
        );
        does(&mut service, "must test $(date +%s) -ge $(cat /tmp/start)");
    }
    // All that was written before, between and after was read as it was written.
    does(&mut service, "must wait $!; cat /tmp/log");
    does(
        &mut service,
        "must guest-probe block verify /dev/vda --seed 2 --threads 1 --operations 50 --direct",
    );
    service.patch("/balloon", json!({"amount_mib": 0}));
    does(
        &mut service,
        "must test $(ls /proc | grep -c '^[0-9]') -gt 3",
    );
    service.live().send("end");
    guest::expect_success(&service.wait());
    served.join().unwrap().unwrap();
    let memory = fs::metadata(directory.join("memory")).unwrap();
    assert!(memory.len() > machine.memory_mib << 20);
    assert!(memory.blocks() * 512 < 600 << 20, "{}", memory.blocks());
}

/// Restores of one snapshot: each makes new randomness of its own, and has the time of day that it was told to have.
fn is_another() {
    /// How long the guest does not run, in seconds; what everything takes here is less.
    const AWAY: u64 = 120;
    const SLACK: u64 = 60;
    let now = || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        now.unwrap().as_secs()
    };
    let directory = TempDir::new().unwrap();
    let directory = directory.as_path();
    let machine = Machine {
        options: &[],
        cpus: 2,
        memory_mib: 128,
        moves: 0,
    };
    let mut first = start(directory, &machine);
    first.live().expect("READY");
    let does = |service: &mut Service, command: &str| guest_does(service.live(), command);
    let tell = |service: &mut Service, name: &str, command: &str| -> String {
        let said = does(service, &format!("echo {name}=$({command})"));
        let (_, value) = said.split_once(&format!("{name}=")).unwrap();
        value.lines().next().unwrap().trim().to_owned()
    };
    // Without it the time of day would be none to compare with.
    let clock = now();
    does(
        &mut first,
        &format!("date -s @{clock}; dmesg -c >/dev/null"),
    );
    first.patch("/vm", json!({"state": "Paused"}));
    first.put("/snapshot/create", snapshot_to(directory));
    assert_eq!(first.terminate().status, 143);
    std::thread::sleep(Duration::from_secs(AWAY));

    let mut random = Vec::new();
    let mut restored = Vec::new();
    for realtime in [true, false] {
        let mut service = Service::start(directory, &[""; 0]);
        let mut load = snapshot_from(directory);
        load["resume_vm"] = json!(true);
        load["clock_realtime"] = json!(realtime);
        service.put("/snapshot/load", load);
        does(
            &mut service,
            "await sh -c 'dmesg | grep \"crng reseeded due to virtual machine fork\"'",
        );
        random.push(tell(
            &mut service,
            "random",
            "dd if=/dev/urandom bs=16 count=1 2>/dev/null | md5sum",
        ));
        let date: u64 = tell(&mut service, "date", "date +%s").parse().unwrap();
        let lag = now().saturating_sub(date);
        let what = format!("realtime {realtime}: it lags by {lag} s");
        if realtime {
            assert!(lag < SLACK && date <= now() + 1, "{what}");
        } else {
            assert!(lag >= AWAY, "{what}");
        }
        // Its time goes on steadily, on both CPUs, and no watchdog has bitten.
        does(
            &mut service,
            "for cpu in 1 2; do must taskset $cpu sh -c 'a=$(cut -d. -f1 /proc/uptime); sleep 2; \
             b=$(cut -d. -f1 /proc/uptime); test $((b - a)) -ge 1 && test $((b - a)) -le 60'; done",
        );
        let log = does(&mut service, "dmesg | sed 's/^.*\\] /log: /'");
        // An emulated host's clocks are not compared: it takes a millisecond from one to the next.
        for word in ["lockup", "stall"] {
            assert!(!log.contains(word), "{log}");
        }
        service.live().send("end");
        guest::expect_success(&service.wait());
        let memory = directory.join("memory");
        let file = File::open(directory.join("state")).unwrap();
        let state: VmState = StateFile::read(&mut &file).unwrap().state().unwrap();
        restored.push(Restored::find(&memory, &state.memory_id).unwrap());
    }
    assert_ne!(random[0], random[1]);
    // The second one had what the first one had to wait for. By how much fewer page faults is told apart with a guest that does
    // the same each time (ctl::snapshot_restored): until Linux is heard of first it does now this, now that.
    let [first, second] = &restored[..] else {
        panic!("{restored:?}");
    };
    assert_eq!(first.working_set, None);
    assert!(
        second.working_set.is_some_and(|pages| pages.written > 0),
        "{second:?}"
    );
}
