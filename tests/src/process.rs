//! A process that ends with whoever has started it: a case that fails leaves none behind, which would take time from those that
//! run after it.

use std::ops::{Deref, DerefMut};
use std::process::Child;

/// It. Nothing happens to one that was waited for.
pub struct Process(pub Child);

impl Deref for Process {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Process {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
