//! What a start has to itself: a directory, a control group, its names. It is removed when it is dropped, with whatever is still in it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{Mode, Session, mounts};
use crate::adapter::Places;
use crate::run::cgroup::Group;
use crate::run::marked;

/// It.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) id: String,
    pub(super) token: String,
    pub(super) places: Places,
    pub(super) directory: PathBuf,
    /// Of all that it starts.
    pub(super) group: Option<Group>,
    /// Where its own processes are.
    pub(super) main: Option<Group>,
    /// Where the runtime may put its container: a path from the root of control groups on.
    pub(super) inner: String,
}

impl Room {
    /// Makes one for an adapter, in its directory.
    pub(super) fn make(
        session: &Session,
        adapter: &Path,
        places: &Places,
        mode: Mode,
    ) -> io::Result<Self> {
        let id = format!("bench-{}-{}", std::process::id(), session.number());
        let token = token();
        let directory = adapter.join(&id);
        let group = session
            .base
            .as_ref()
            .map(|base| base.group(&id))
            .transpose()?;
        let mut room = Self {
            places: places.clone(),
            inner: format!("/{id}"),
            main: None,
            id,
            token,
            directory,
            group,
        };
        if let (Some(base), Some(group)) = (&session.base, &room.group) {
            group.delegate();
            room.main = Some(group.inner("main")?);
            room.inner = format!("{}/box", base.path_of(group));
            let inner = group.directory().join("box");
            room.places.set("cgroup_dir", inner.display().to_string());
        } else {
            room.places.set("cgroup_dir", "");
        }
        fs::create_dir(&room.directory)?;
        let path = |path: &Path| path.display().to_string();
        room.places.set("cgroup", room.inner.clone());
        room.places.set("run_dir", path(&room.directory));
        room.places.set("bundle", path(&room.bundle()));
        room.places.set("id", room.id.clone());
        room.places.set("token", room.token.clone());
        room.places.set("mode", mode.word());
        Ok(room)
    }

    /// Where its OCI bundle is.
    pub(super) fn bundle(&self) -> PathBuf {
        self.directory.join("bundle")
    }

    /// The processes in its group, and those that carry its mark where there is none.
    pub(super) fn processes(&self) -> Vec<u32> {
        match &self.group {
            Some(group) => group.processes(),
            None => marked::processes(&self.id),
        }
    }

    /// Ends all of its processes, wherever they are.
    pub(super) fn end_all(&self) {
        if let Some(group) = &self.group {
            group.end();
        }
        marked::end(&self.id);
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Some(group) = &self.group {
            group.end();
            group.remove();
        }
        mounts::unmount_below(&self.directory);
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Another one for each start, so that no output of an earlier one can be taken for it.
fn token() -> String {
    let mut bytes = [0; 8];
    // Fails only before the kernel has any randomness.
    let _ = rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty());
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
