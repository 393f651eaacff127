use super::*;
use crate::virtio::test_support::{TestLoop, lifecycle_suite};

lifecycle_suite!(Vsock::new(config(), TestLoop::start()).unwrap());

fn config() -> VsockConfig {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("mote-vsock-{}-{number}", std::process::id());
    VsockConfig {
        cid: 3,
        path: std::env::temp_dir().join(name),
    }
}
