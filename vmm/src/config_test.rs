//! What can be asked for.

use super::*;

fn config(cpus: u32, memory: u64) -> Config {
    Config::new(cpus, memory).unwrap()
}

#[test]
fn threads_come_in_pairs() {
    for cpus in [1, 2, 4, 62, 64] {
        assert!(config(cpus, 16 << 20).with_smt(true).unwrap().smt());
    }
    for cpus in [3, 63] {
        let error = config(cpus, 16 << 20).with_smt(true).unwrap_err();
        assert_eq!(error, Error::OddCpus { cpus });
        assert!(!config(cpus, 16 << 20).with_smt(false).unwrap().smt());
    }
}

#[test]
fn huge_pages_are_whole() {
    let odd = (16 << 20) + 4096;
    let error = config(1, odd)
        .with_huge_pages(HugePages::TwoMiB)
        .unwrap_err();
    assert_eq!(error, Error::MemoryNotHugePages { bytes: odd });
    assert!(config(1, odd).with_huge_pages(HugePages::None).is_ok());
    let config = config(1, 18 << 20).with_huge_pages(HugePages::TwoMiB);
    assert_eq!(config.unwrap().huge_pages(), HugePages::TwoMiB);
}

#[test]
fn nothing_of_it_is_there_unless_asked_for() {
    let config = config(1, 16 << 20);
    assert!(!config.keyboard() && !config.smt() && !config.track_dirty_pages());
    assert_eq!(config.huge_pages(), HugePages::None);
    assert_eq!(*config.cpu_config(), CpuConfig::default());
}
