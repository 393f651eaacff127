//! What guests are made of that are measured.

use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ::bench::session::Settings;
use image::cache::Cache;
use image::initramfs::{Purpose, default_initramfs};
use image::kernel::Kind;

use super::Error;
use crate::guest::{BUSYBOX, default_kernel};
use crate::message::{chain, say};
use crate::quantity::{parse_duration, parse_size};

/// Least memory of a guest: a kernel has room in it.
const LEAST: u64 = 32 << 20;

/// What guests are.
#[derive(Debug, clap::Args)]
pub(super) struct Guests {
    /// Memory of a guest, a multiple of 1m
    #[arg(long, value_name = "SIZE", default_value = "128m", value_parser = parse_size)]
    memory: u64,

    /// Kernel of guests [default: that of mote run]
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,

    /// How long a start may take
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    timeout: Duration,
}

impl Guests {
    /// Finds or makes what they need. Without a kernel the runtimes that need one are missing.
    pub(super) fn settings(&self) -> Result<Settings, Error> {
        if self.memory < LEAST || !self.memory.is_multiple_of(1 << 20) {
            return Err(Error::Usage(format!(
                "--memory is a multiple of 1m, and at least {}m",
                LEAST >> 20
            )));
        }
        let cache = Cache::from_env();
        let (named, modules) = match &self.kernel {
            Some(path) => (Some(path.clone()), None),
            None => default_kernel(&cache).unzip(),
        };
        let modules = modules.flatten();
        let (mut kernel, mut bzimage) = (None, None);
        if let Some(path) = &named {
            let opened = image::kernel::open(path, &cache)?;
            match opened.kind {
                Kind::BzImage => bzimage = Some(opened.path),
                Kind::Elf => {
                    // What was unpacked is there as a bzImage too.
                    bzimage = if opened.path == *path {
                        beside(path)
                    } else {
                        Some(path.clone())
                    };
                    kernel = Some(opened.path);
                }
            }
        }
        let initrd = default_initramfs(
            &cache,
            modules.as_deref(),
            Path::new(BUSYBOX),
            Purpose::Jobs,
        );
        let initrd = initrd
            .map(|made| made.path)
            .inspect_err(|error| say(&chain(error)));
        Ok(Settings {
            memory: self.memory,
            limit: self.timeout,
            kernel,
            bzimage,
            default_initrd: initrd.ok(),
            mote: env::current_exe().map_err(|source| Error::Host {
                what: "find mote itself",
                source,
            })?,
        })
    }
}

/// A bzImage that was built together with a kernel, as resources/kernel/build.sh leaves it.
fn beside(kernel: &Path) -> Option<PathBuf> {
    let names = ["bzImage", "bzImage-lz4", "bzImage-zstd", "bzImage-gzip"];
    let paths = names.map(|name| kernel.with_file_name(name));
    paths.into_iter().find(|path| path.exists())
}
