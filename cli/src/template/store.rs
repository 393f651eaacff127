//! Where templates are: a folder each, by name, in `$XDG_DATA_HOME/mote/templates` or `~/.local/share/mote/templates`.
//!
//! | in `NAME/` | |
//! | --- | --- |
//! | `template.json` | what it was made from: a [`Manifest`] |
//! | `state`, `memory` … | the snapshot |
//! | `console.log`, `first-job.log` | what the guest printed until it waited, and in a first job |
//!
//! A folder gets its name when it is complete. One that begins with a dot is being made, or was when somebody
//! killed who made it: whoever makes one of the same name next removes it.

use std::env;
use std::fmt;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};
use vmm::snapshot::format;

use super::Error;
use crate::args::RunArgs;
use crate::rundir::now_ms;

const MANIFEST: &str = "template.json";
/// What a guest has printed.
pub(super) const CONSOLE_LOG: &str = "console.log";
const MAX_NAME: usize = 64;
/// Far more than flags are.
const MAX_MANIFEST: u64 = 4 << 20;

/// What is known of a template.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Manifest {
    /// The mote that made it.
    mote: String,
    /// Version of its state file.
    format: u32,
    /// When, in milliseconds since 1970.
    created_ms: u64,
    /// How long the guest took to where it waits, in milliseconds.
    ready_ms: u64,
    /// Where relative paths begin.
    pub(super) directory: PathBuf,
    /// What was asked for.
    pub(super) arguments: RunArgs,
    /// The files that all of it depends on.
    sources: Vec<Source>,
}

impl Manifest {
    /// Of one that was made by these arguments, in the working directory, from these files.
    pub(super) fn new(arguments: RunArgs, sources: Vec<Source>, ready_ms: u64) -> io::Result<Self> {
        Ok(Self {
            mote: env!("CARGO_PKG_VERSION").to_owned(),
            format: format::VERSION,
            created_ms: now_ms(),
            ready_ms,
            directory: env::current_dir()?,
            arguments,
            sources,
        })
    }
}

/// A file, as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Source {
    path: PathBuf,
    bytes: u64,
    inode: u64,
    /// Last change of its contents: seconds since 1970, and nanoseconds.
    modified: (i64, i64),
}

impl Source {
    /// As it is now.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let path = std::path::absolute(path)?;
        let metadata = fs::metadata(&path)?;
        Ok(Self {
            bytes: metadata.len(),
            inode: metadata.ino(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            path,
        })
    }
}

/// Why a template is not what it would be if it was made now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outdated {
    /// By another mote.
    Mote(String),
    /// A file has been changed or is gone.
    Source(PathBuf),
}

impl fmt::Display for Outdated {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mote(version) => write!(to, "it was made by mote {version}"),
            Self::Source(path) => write!(to, "{} has changed since", path.display()),
        }
    }
}

/// A template that is there.
#[derive(Debug)]
pub(crate) struct Template {
    name: String,
    directory: PathBuf,
    pub(super) manifest: Manifest,
}

impl Template {
    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its folder.
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Why it has to be made again, if it has.
    pub(crate) fn outdated(&self) -> Option<Outdated> {
        let manifest = &self.manifest;
        if manifest.format != format::VERSION || manifest.mote != env!("CARGO_PKG_VERSION") {
            return Some(Outdated::Mote(manifest.mote.clone()));
        }
        let mut sources = manifest.sources.iter();
        let changed = sources.find(|source| Source::of(&source.path).ok().as_ref() != Some(source));
        changed.map(|source| Outdated::Source(source.path.clone()))
    }

    /// Date and time, of UTC.
    pub(super) fn created(&self) -> String {
        let time = std::time::Duration::from_millis(self.manifest.created_ms);
        let text = telemetry::rfc3339(time);
        text.get(..19).unwrap_or(&text).replace('T', " ")
    }

    /// What its files take.
    pub(super) fn bytes_on_disk(&self) -> u64 {
        let files = fs::read_dir(&self.directory)
            .into_iter()
            .flatten()
            .flatten();
        files
            .filter_map(|file| file.metadata().ok())
            .map(|metadata| metadata.blocks() * 512)
            .sum()
    }
}

/// All templates.
#[derive(Debug)]
pub(crate) struct Store(PathBuf);

fn failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> Error {
    move |source| Error::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

impl Store {
    /// Where the environment says.
    pub(crate) fn from_env() -> Result<Self, Error> {
        // The XDG specification has relative paths ignored.
        let absolute = |name| {
            env::var_os(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        let data =
            absolute("XDG_DATA_HOME").or_else(|| Some(absolute("HOME")?.join(".local/share")));
        Ok(Self(data.ok_or(Error::NoStore)?.join("mote/templates")))
    }

    fn directory(&self, name: &str) -> Result<PathBuf, Error> {
        let is_name = (1..=MAX_NAME).contains(&name.len())
            && !name.starts_with('.')
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        if is_name {
            Ok(self.0.join(name))
        } else {
            Err(Error::Name { name: name.into() })
        }
    }

    /// The one of this name.
    pub(crate) fn find(&self, name: &str) -> Result<Template, Error> {
        let directory = self.directory(name)?;
        let path = directory.join(MANIFEST);
        let too_long = || io::Error::from(io::ErrorKind::FileTooLarge);
        let text = match fs::metadata(&path) {
            Ok(found) if found.len() > MAX_MANIFEST => Err(too_long()),
            Ok(_) => fs::read(&path),
            Err(error) => Err(error),
        };
        let text = text.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound if !directory.exists() => Error::Missing { name: name.into() },
            _ => failed("read", &path)(error),
        })?;
        let manifest = serde_json::from_slice(&text).map_err(|source| Error::Manifest {
            name: name.into(),
            source,
        })?;
        Ok(Template {
            name: name.into(),
            directory,
            manifest,
        })
    }

    /// All that can be read, by name.
    pub(super) fn list(&self) -> Result<Vec<Template>, Error> {
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed("read", &self.0))?,
        };
        let names = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok());
        let mut templates: Vec<Template> = names.filter_map(|name| self.find(&name).ok()).collect();
        templates.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(templates)
    }

    /// Removes one, readable or not.
    pub(super) fn remove(&self, name: &str) -> Result<(), Error> {
        let directory = self.directory(name)?;
        if !directory.is_dir() {
            return Err(Error::Missing { name: name.into() });
        }
        // Nobody comes across half of it.
        let gone = self.0.join(format!(".{name}.{}.gone", process::id()));
        fs::rename(&directory, &gone).map_err(failed("remove", &directory))?;
        fs::remove_dir_all(&gone).map_err(failed("remove", &gone))
    }

    /// Begins one of this name.
    pub(super) fn begin(&self, name: &str, replace: bool) -> Result<Draft, Error> {
        let target = self.directory(name)?;
        if target.exists() && !replace {
            return Err(Error::Exists { name: name.into() });
        }
        let make = |path: &Path| DirBuilder::new().recursive(true).mode(0o700).create(path);
        make(&self.0).map_err(failed("make", &self.0))?;
        self.clear(name);
        let directory = self.0.join(format!(".{name}.{}.new", process::id()));
        make(&directory).map_err(failed("make", &directory))?;
        Ok(Draft {
            directory,
            target,
            is_done: false,
        })
    }

    /// Removes what was left of others by processes that were killed.
    fn clear(&self, name: &str) {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        for entry in entries {
            let file_name = entry.file_name();
            let mut parts = file_name.to_str().unwrap_or_default().rsplitn(3, '.');
            let (kind, process, rest) = (parts.next(), parts.next(), parts.next());
            let is_ours = rest.and_then(|rest| rest.strip_prefix('.')) == Some(name)
                && matches!(kind, Some("new" | "gone"));
            let is_alive = process.is_some_and(|id| Path::new("/proc").join(id).exists());
            if is_ours && !is_alive {
                // What cannot be removed is in nobody's way.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

/// A template that is being made. Unless it is finished, nothing of it is left.
#[derive(Debug)]
pub(super) struct Draft {
    directory: PathBuf,
    target: PathBuf,
    is_done: bool,
}

impl Draft {
    /// Where its files are put.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// It is whole: it gets its name, and what had that is gone.
    pub(super) fn finish(mut self, manifest: &Manifest) -> Result<(), Error> {
        let path = self.directory.join(MANIFEST);
        let write = || {
            let file = File::create_new(&path)?;
            serde_json::to_writer_pretty(&file, manifest)?;
            file.sync_all()
        };
        write().map_err(failed("write", &path))?;
        let rename = |flags| renameat_with(CWD, &self.directory, CWD, &self.target, flags);
        let mut renamed = rename(RenameFlags::NOREPLACE);
        if renamed.is_err() && self.target.exists() {
            renamed = rename(RenameFlags::EXCHANGE);
            if renamed.is_ok() {
                // Guests that run have its memory open.
                let _ = fs::remove_dir_all(&self.directory);
            }
        }
        renamed.map_err(|errno| failed("make", &self.target)(errno.into()))?;
        self.is_done = true;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.is_done {
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, FromArgMatches as _};
    use vmm_sys_util::tempdir::TempDir;

    use super::*;

    fn arguments() -> RunArgs {
        let command = RunArgs::augment_args(clap::Command::new("run"));
        let matches = command.get_matches_from(["run", "--memory", "64m", "--", "echo"]);
        RunArgs::from_arg_matches(&matches).unwrap()
    }

    fn manifest(sources: Vec<Source>) -> Manifest {
        Manifest::new(arguments(), sources, 7).unwrap()
    }

    #[test]
    fn a_template_is_there_when_it_is_whole() {
        let directory = TempDir::new().unwrap();
        let store = Store(directory.as_path().join("templates"));
        assert!(store.list().unwrap().is_empty());
        assert!(matches!(store.find("a"), Err(Error::Missing { .. })));
        let file = directory.as_path().join("kernel");
        fs::write(&file, "one").unwrap();
        let draft = store.begin("a", false).unwrap();
        assert!(matches!(store.find("a"), Err(Error::Missing { .. })));
        assert!(store.list().unwrap().is_empty());
        draft
            .finish(&manifest(vec![Source::of(&file).unwrap()]))
            .unwrap();
        let found = store.find("a").unwrap();
        assert_eq!(found.manifest.arguments.memory, Some(64 << 20));
        assert_eq!(found.manifest.arguments.command, ["echo"]);
        assert_eq!(found.outdated(), None);
        fs::write(&file, "other").unwrap();
        assert_eq!(found.outdated(), Some(Outdated::Source(file)));

        assert!(matches!(store.begin("a", false), Err(Error::Exists { .. })));
        drop(store.begin("a", true).unwrap());
        assert!(store.find("a").unwrap().outdated().is_some());
        store
            .begin("a", true)
            .unwrap()
            .finish(&manifest(Vec::new()))
            .unwrap();
        assert_eq!(store.find("a").unwrap().outdated(), None);
        assert_eq!(store.list().unwrap().len(), 1);
        store.remove("a").unwrap();
        assert!(matches!(store.remove("a"), Err(Error::Missing { .. })));
        assert_eq!(fs::read_dir(&store.0).unwrap().count(), 0);
    }

    #[test]
    fn what_was_left_half_done_is_removed() {
        let directory = TempDir::new().unwrap();
        let store = Store(directory.as_path().to_owned());
        let (left, other) = (store.0.join(".a.0.new"), store.0.join(".b.0.new"));
        fs::create_dir(&left).unwrap();
        fs::create_dir(&other).unwrap();
        drop(store.begin("a", false).unwrap());
        assert!(!left.exists() && other.exists());
    }

    #[test]
    fn names_are_names_of_folders() {
        let store = Store("/nowhere".into());
        for name in ["", ".", "..", ".a", "a/b", "a b", &"x".repeat(65), "ä"] {
            assert!(
                matches!(store.find(name), Err(Error::Name { .. })),
                "{name}"
            );
        }
        for name in ["a", "A-1_x.y", &"x".repeat(64)] {
            assert!(
                matches!(store.find(name), Err(Error::Missing { .. })),
                "{name}"
            );
        }
    }
}
