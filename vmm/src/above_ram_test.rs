use devices::rate_limiter::RateLimit;
use devices::virtio::mem::MemConfig;
use devices::virtio::pmem::PmemConfig;
use vm_memory::GuestMemoryRegion;
use vmm_sys_util::tempdir::TempDir;

use super::*;
use crate::config::Device;
use crate::stage::{Made, Stage};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn ending_at(end: u64) -> AboveRam {
    AboveRam {
        end,
        ..AboveRam::empty(&Config::new(1, 64 << 20).unwrap())
    }
}

#[test]
fn the_cpu_has_to_reach_all_of_it() {
    let above = ending_at(1 << 36);
    above.check_room(36).unwrap();
    above.check_room(64).unwrap();
    assert!(matches!(
        above.check_room(35),
        Err(Error::Room { bits: 35, .. })
    ));
}

/// A machine with two files of 2 and 4 MiB, and memory that can be plugged.
struct Machine {
    config: Config,
    stage: Stage,
    /// The devices, which are known as long as they are there.
    _made: Vec<Made>,
    _directory: TempDir,
}

impl Machine {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let pmem = |id: &str, size: u64| {
            let path = directory.as_path().join(id);
            std::fs::write(&path, vec![1; size as usize]).unwrap();
            DeviceKind::Pmem(PmemConfig {
                id: id.into(),
                path,
                read_only: false,
                rate: RateLimit::default(),
            })
        };
        let kinds = [
            pmem("a", 2 * MIB),
            pmem("b", 4 * MIB),
            DeviceKind::Mem(MemConfig::new(GIB, 2 * MIB, 128 * MIB).unwrap()),
        ];
        let stage = Stage::new().unwrap();
        let config = Config::new(1, 64 << 20).unwrap().with_pci(true).unwrap();
        let mut made = Vec::new();
        let config = kinds.into_iter().fold(config, |config, kind| {
            let device = Device {
                kind,
                iothread: false,
            };
            made.push(stage.maker.make(&device).unwrap());
            config.with_device(device).unwrap()
        });
        Self {
            config,
            stage,
            _made: made,
            _directory: directory,
        }
    }

    /// First and last GPA of all regions.
    fn map(&self, state: &AboveRamState) -> Result<Vec<(u64, u64)>, Error> {
        let above = AboveRam::map_saved(&self.config, &self.stage.maker.controls, state)?;
        let places = above.regions.iter().map(|region| {
            let start = region.start_addr().0;
            (start, start + region.len())
        });
        Ok(places.collect())
    }
}

/// Where a machine that was not saved has them.
fn usual() -> AboveRamState {
    AboveRamState {
        pmem: vec![("a".into(), 4 * GIB), ("b".into(), 4 * GIB + 2 * MIB)],
        hotplug: Some(4 * GIB + 128 * MIB),
        window: Some(6 * GIB),
    }
}

#[test]
fn all_of_it_is_where_it_was() {
    let machine = Machine::new();
    let places = machine.map(&usual()).unwrap();
    assert_eq!(
        places,
        [
            (4 * GIB, 4 * GIB + 2 * MIB),
            (4 * GIB + 2 * MIB, 4 * GIB + 6 * MIB),
            (4 * GIB + 128 * MIB, 5 * GIB + 128 * MIB),
            (6 * GIB, 70 * GIB),
        ]
    );
    drop(machine);
    // In another order, with gaps, and with one that came while the guest ran.
    let machine = Machine::new();
    let moved = AboveRamState {
        pmem: vec![("a".into(), 9 * GIB), ("b".into(), 5 * GIB)],
        hotplug: Some(6 * GIB),
        window: Some(8 * GIB),
    };
    let places = machine.map(&moved).unwrap();
    assert_eq!(
        places,
        [
            (5 * GIB, 5 * GIB + 4 * MIB),
            (6 * GIB, 7 * GIB),
            (8 * GIB, 72 * GIB),
        ]
    );
}

#[test]
fn nothing_is_where_it_cannot_have_been() {
    let machine = Machine::new();
    let out_of_place: [fn(&mut AboveRamState); 13] = [
        // In RAM, in the hole, not aligned, beyond all addresses.
        |state| state.pmem[0].1 = 0,
        |state| state.pmem[0].1 = 3 * GIB,
        |state| state.pmem[0].1 += 4096,
        |state| state.pmem[0].1 = 0u64.wrapping_sub(2 * MIB),
        |state| state.hotplug = Some(4 * GIB + 6 * MIB),
        |state| state.hotplug = Some(0u64.wrapping_sub(128 * MIB)),
        |state| state.window = Some(6 * GIB + 2 * MIB),
        |state| state.window = Some(0u64.wrapping_sub(GIB)),
        // In each other.
        |state| state.pmem[1].1 = 4 * GIB,
        |state| state.pmem[0].1 = 4 * GIB + 4 * MIB,
        |state| state.pmem[0].1 = 4 * GIB + 256 * MIB,
        |state| state.window = Some(5 * GIB),
        |state| state.hotplug = Some(7 * GIB),
    ];
    for change in out_of_place {
        let mut state = usual();
        change(&mut state);
        let refused = machine.map(&state);
        assert!(matches!(refused, Err(Error::Place { .. })), "{refused:?}");
    }
    let without_a_place: [fn(&mut AboveRamState); 3] = [
        |state| drop(state.pmem.pop()),
        |state| state.pmem[0].0 = "c".into(),
        |state| state.hotplug = None,
    ];
    for change in without_a_place {
        let mut state = usual();
        change(&mut state);
        let refused = machine.map(&state);
        assert!(matches!(refused, Err(Error::NoPlace { .. })), "{refused:?}");
    }
}
