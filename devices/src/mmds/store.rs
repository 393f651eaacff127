//! The document.
//!
//! Readers get a snapshot, which costs them a reference count: no reader waits for a writer. Writers
//! wait for each other, so that no patch is lost.

use std::io;
use std::sync::{Arc, Mutex};

use arc_swap::ArcSwapOption;
use serde_json::{Map, Value};
use thiserror::Error;

use crate::lock;

/// Why the document stays as it is.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum StoreError {
    /// There is none to be patched.
    #[error("The MMDS data store is not initialized.")]
    NotInitialized,
    /// It would be too large.
    #[error("The metadata would have more than {limit} bytes of JSON")]
    TooLarge {
        /// Bytes that it may have.
        limit: usize,
    },
}

/// The document, of a bounded size.
#[derive(Debug)]
pub(super) struct Store {
    limit: usize,
    /// Held while a new value is made.
    writing: Mutex<()>,
    value: ArcSwapOption<Value>,
}

impl Store {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            writing: Mutex::default(),
            value: ArcSwapOption::empty(),
        }
    }

    /// The document as it is now.
    pub(super) fn snapshot(&self) -> Option<Arc<Value>> {
        self.value.load_full()
    }

    pub(super) fn put(&self, value: Value) -> Result<(), StoreError> {
        self.check(&value)?;
        let _writing = lock(&self.writing);
        self.value.store(Some(Arc::new(value)));
        Ok(())
    }

    pub(super) fn patch(&self, patch: &Value) -> Result<(), StoreError> {
        let _writing = lock(&self.writing);
        let old = self.value.load_full().ok_or(StoreError::NotInitialized)?;
        let mut value = (*old).clone();
        merge(&mut value, patch);
        self.check(&value)?;
        self.value.store(Some(Arc::new(value)));
        Ok(())
    }

    fn check(&self, value: &Value) -> Result<(), StoreError> {
        let mut room = Room(self.limit);
        serde_json::to_writer(&mut room, value)
            .map_err(|_| StoreError::TooLarge { limit: self.limit })
    }
}

/// Takes so many bytes, and forgets them.
struct Room(usize);

impl io::Write for Room {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self
            .0
            .checked_sub(bytes.len())
            .ok_or(io::ErrorKind::StorageFull)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// RFC 7396. As deep as the deeper of both, which the parser has bounded.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else {
        return;
    };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key.as_str()).or_insert(Value::Null), value);
        }
    }
}

#[cfg(test)]
#[path = "store_test.rs"]
mod tests;
