//! `--pmem`.

use devices::virtio::pmem::PmemConfig;
use vmm::config::{Device, DeviceKind};

use super::net::rate;
use crate::args::RunArgs;
use crate::options::OptionList;

const FLAG: &str = "--pmem";

/// `PATH[,ro][,root][,id=][,rate=][,iops=][,iothread=on]`.
pub(super) fn parse(default_id: &str, text: &str) -> Result<Device, String> {
    let mut options = OptionList::new(FLAG, text);
    let path = match (options.take_first(), options.take("path")?) {
        (Some(path), None) | (None, Some(path)) => path,
        _ => return Err(options.error("it needs the path of a file, once")),
    };
    let id = options.take("id")?.unwrap_or_else(|| default_id.into());
    let read_only = options.take_flag("ro");
    if options.take_flag("rw") && read_only {
        return Err(options.error("it is either ro or rw"));
    }
    // Only the kernel command line is about that.
    options.take_flag("root");
    let rate = rate(&mut options)?;
    let iothread = options.take_switch("iothread")?.unwrap_or(false);
    options.finish()?;
    Ok(Device {
        kind: DeviceKind::Pmem(PmemConfig {
            id,
            path: path.into(),
            read_only,
            rate,
        }),
        iothread,
    })
}

/// Which of them has the root file system, and whether it is read-only.
pub(crate) fn root(args: &RunArgs) -> Option<(usize, bool)> {
    args.pmem.iter().enumerate().find_map(|(index, text)| {
        let mut options = OptionList::new(FLAG, text);
        options
            .take_flag("root")
            .then(|| (index, options.take_flag("ro")))
    })
}

/// A guest has one root file system.
pub(super) fn check_roots(args: &RunArgs) -> Result<(), String> {
    let is_root = |text: &&String| OptionList::new(FLAG, text).take_flag("root");
    let roots = args.pmem.iter().filter(is_root).count();
    if roots > 1 {
        return Err(format!("{FLAG}: root is there more than once"));
    }
    if roots > 0 && args.rootfs.is_some() {
        return Err(format!("{FLAG}: root, and there is a --rootfs: choose one"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn arguments(flags: &[&str]) -> RunArgs {
        let all = ["mote", "run"].iter().chain(flags);
        match Cli::try_parse_from(all).unwrap().command {
            Command::Run(args) => args.run,
            _ => panic!("another command"),
        }
    }

    fn config(text: &str) -> Result<PmemConfig, String> {
        match parse("pmem0", text)?.kind {
            DeviceKind::Pmem(config) => Ok(config),
            _ => Err("another device".into()),
        }
    }

    #[test]
    fn options_are_read() {
        let plain = config("/a/file").unwrap();
        assert_eq!((plain.id.as_str(), plain.read_only), ("pmem0", false));
        assert_eq!(plain.path.to_str(), Some("/a/file"));
        assert!(plain.rate.is_unlimited());
        let all = config("/a/file,ro,root,id=data,rate=1m,iops=10").unwrap();
        assert_eq!((all.id.as_str(), all.read_only), ("data", true));
        assert!(all.rate.ops.is_some() && all.rate.bandwidth.is_some());
        for (text, part) in [
            ("ro=1,path=x", "ro is there more than once, or has a value"),
            ("x,path=y", "once"),
            ("", "path of a file"),
            ("x,ro,rw", "either ro or rw"),
            ("x,queues=2", "unknown option 'queues'"),
        ] {
            let error = config(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn there_is_one_root() {
        let root_of = |flags: &[&str]| {
            let args = arguments(flags);
            check_roots(&args).map(|()| root(&args))
        };
        assert_eq!(root_of(&["--pmem", "a"]), Ok(None));
        assert_eq!(
            root_of(&["--pmem", "a", "--pmem", "b,root"]),
            Ok(Some((1, false)))
        );
        assert_eq!(root_of(&["--pmem", "a,root,ro"]), Ok(Some((0, true))));
        assert_eq!(root_of(&["--pmem", "a", "--rootfs", "c"]), Ok(None));
        root_of(&["--pmem", "a,root", "--pmem", "b,root"]).unwrap_err();
        root_of(&["--pmem", "a,root", "--rootfs", "c"]).unwrap_err();
    }
}
