//! `${name}` in an adapter.

use std::collections::BTreeMap;

use thiserror::Error;

/// What there is, and what it stands for.
const NAMES: [(&str, &str); 18] = [
    ("dir", "the adapter's own directory, empty at first"),
    ("run_dir", "a directory for this start, empty at first"),
    ("id", "name of the instance, another one each time"),
    ("token", "what the program prints"),
    ("mode", "the program's second argument"),
    ("program", "path of the program"),
    ("rootfs", "a directory that holds the program, as /program"),
    (
        "bundle",
        "an OCI bundle for this start, with the program and its words",
    ),
    (
        "image",
        "a docker archive with that root, named mote-bench:latest",
    ),
    ("kernel", "the guest kernel: an ELF vmlinux"),
    (
        "bzimage",
        "the same as a bzImage; empty where there is none",
    ),
    (
        "initrd",
        "an initial RAM disk whose /init starts the program with the last words of the kernel's command line",
    ),
    (
        "jobs_initrd",
        "mote's default initial RAM disk, with the program",
    ),
    ("memory", "memory of a guest, in MiB"),
    ("mote", "path of mote"),
    (
        "cgroup",
        "path of a control group for the instance, from the root of control groups on",
    ),
    ("cgroup_dir", "its directory; empty where there are none"),
    ("seconds", "most seconds that a start may take"),
];

/// What is in the place of names.
#[derive(Clone, Debug, Default)]
pub struct Places(BTreeMap<&'static str, String>);

/// A name that is not one.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("has the unknown place ${{{name}}} (there are: {})", NAMES.map(|(name, _)| name).join(", "))]
pub struct UnknownPlace {
    /// As it was written.
    pub name: String,
}

impl Places {
    /// Sets what a name stands for. `name` is one of [`NAMES`].
    pub fn set(&mut self, name: &'static str, value: impl Into<String>) {
        debug_assert!(NAMES.iter().any(|(known, _)| *known == name));
        self.0.insert(name, value.into());
    }

    /// All of them: variables for scripts.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.0.iter().map(|(name, value)| (*name, value.as_str()))
    }

    /// Whether all names in a text are known.
    pub fn check(text: &str) -> Result<(), UnknownPlace> {
        replace(text, |name| {
            let known = NAMES.iter().any(|(known, _)| *known == name);
            known.then(String::new)
        })
        .map(drop)
    }

    /// The text with the names replaced. A known name that has nothing in its place here stays as it is.
    pub fn fill(&self, text: &str) -> Result<String, UnknownPlace> {
        replace(text, |name| match self.0.get(name) {
            Some(value) => Some(value.clone()),
            None => (NAMES.iter().any(|(known, _)| *known == name)).then(|| format!("${{{name}}}")),
        })
    }
}

fn replace(text: &str, value: impl Fn(&str) -> Option<String>) -> Result<String, UnknownPlace> {
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        filled.push_str(before);
        let Some((name, after)) = after.split_once('}') else {
            filled.push_str("${");
            rest = after;
            continue;
        };
        filled.push_str(&value(name).ok_or_else(|| UnknownPlace { name: name.into() })?);
        rest = after;
    }
    filled.push_str(rest);
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_replaced_and_nothing_else() {
        let mut places = Places::default();
        places.set("token", "abc");
        places.set("id", "${token}");
        let filled = places.fill("{\"a\": \"${token}\"} ${id} $x ${memory} ${");
        assert_eq!(
            filled.as_deref(),
            Ok("{\"a\": \"abc\"} ${token} $x ${memory} ${")
        );
    }

    #[test]
    fn an_unknown_name_is_told() {
        let unknown = Places::check("--memory ${memry}").unwrap_err();
        assert_eq!(unknown.name, "memry");
        assert!(unknown.to_string().contains("memory"), "{unknown}");
    }
}
