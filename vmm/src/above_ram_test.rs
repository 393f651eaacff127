use super::*;

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
