//! Huge pages; that kernels boot is seen by the end-to-end cases.

use super::*;

#[test]
fn what_the_host_lacks_is_said_with_how_to_get_it() {
    // More than any host sets aside, and less than it may have in all.
    let size = host_memory() / HUGE_PAGE_SIZE * HUGE_PAGE_SIZE;
    let error = allocate(size, HugePages::TwoMiB, Vec::new()).unwrap_err();
    let Error::NoHugePages {
        needed,
        free,
        total,
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!(needed, size / HUGE_PAGE_SIZE);
    assert!(free < needed);
    let text = error.to_string();
    let command = format!(
        "echo {} > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages",
        total + needed - free
    );
    assert!(text.contains(&command), "{text}");
    assert!(text.contains(&format!("{needed} huge pages")), "{text}");
}

#[test]
fn ordinary_memory_needs_none() {
    let memory = allocate(16 << 20, HugePages::None, Vec::new()).unwrap();
    assert_eq!(memory.num_regions(), 1);
}
