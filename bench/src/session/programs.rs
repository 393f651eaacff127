//! Programs that adapters name, and what has to be there for them.

use std::env;
use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

use crate::adapter::{Adapter, Places};
use crate::run::{Program, Trouble, marked};

/// Where programs are looked for if nothing says where.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// All names were known when the adapter was read.
pub(super) fn fill(places: &Places, text: &str) -> String {
    places.fill(text).unwrap_or_else(|_| text.into())
}

/// The same for each of some words.
pub(super) fn fill_all(places: &Places, words: &[String]) -> Vec<String> {
    words.iter().map(|word| fill(places, word)).collect()
}

/// What an adapter needs and is not there.
pub(super) fn what_is_missing(adapter: &Adapter, places: &Places) -> Option<String> {
    let program = adapter.needs.iter().find(|program| find(program).is_none());
    if let Some(program) = program {
        return Some(format!("there is no program {program}"));
    }
    for file in &adapter.needs_files {
        let path = fill(places, file);
        if path.is_empty() {
            return Some(format!("there is nothing for {file}"));
        }
        if !Path::new(&path).exists() {
            return Some(format!("there is no {path}"));
        }
    }
    if adapter.needs_root && !rustix::process::geteuid().is_root() {
        return Some("it needs root".into());
    }
    let wanted = [
        ("kernel", "guest kernel"),
        ("jobs_initrd", "initial RAM disk of mote's own"),
    ];
    let is_missing =
        |name: &str| adapter.mentions(name) && fill(places, &format!("${{{name}}}")).is_empty();
    let (_, what) = wanted.iter().find(|(name, _)| is_missing(name))?;
    Some(format!("there is no {what}"))
}

/// Where a program is.
fn find(name: &str) -> Option<PathBuf> {
    let can_run = |path: &Path| path.is_file() && access(path, Access::EXEC_OK).is_ok();
    if name.contains('/') {
        let path = PathBuf::from(name);
        return can_run(&path).then_some(path);
    }
    let path = env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into());
    // Debian's root has the last two, others have not.
    let directories = env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    let mut paths = directories.map(|directory| directory.join(name));
    paths.find(|path| can_run(path))
}

/// What these words start, with the places and the adapter's own variables, and this mark.
pub(super) fn program(
    words: &[String],
    adapter: &Adapter,
    places: &Places,
    mark: &str,
    directory: &Path,
) -> Result<Program, Trouble> {
    let name = words.first().map(String::as_str).unwrap_or_default();
    let path = find(name).ok_or_else(|| Trouble::Exec(io::ErrorKind::NotFound.into()))?;
    let own: Vec<(&str, String)> = (places.iter().map(|(name, value)| (name, value.to_owned())))
        .chain(
            adapter
                .env
                .iter()
                .map(|(name, value)| (name.as_str(), fill(places, value))),
        )
        .chain([(marked::VARIABLE, mark.to_owned())])
        .collect();
    let mut environment = Vec::new();
    for (name, value) in env::vars_os() {
        if !own.iter().any(|(other, _)| name == *other) {
            environment.push(word(&[name.as_bytes(), b"=", value.as_bytes()].concat())?);
        }
    }
    for (name, value) in &own {
        environment.push(word(format!("{name}={value}").as_bytes())?);
    }
    Ok(Program {
        path: word(path.as_os_str().as_bytes())?,
        arguments: words
            .iter()
            .map(|it| word(it.as_bytes()))
            .collect::<Result<_, _>>()?,
        environment,
        directory: word(directory.as_os_str().as_bytes())?,
        terminal: false,
    })
}

fn word(bytes: &[u8]) -> io::Result<CString> {
    Ok(CString::new(bytes)?)
}
