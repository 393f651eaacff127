//! The image that container engines load: an archive as `docker save` writes it, with one layer.

use std::io;

use serde_json::json;
use sha2::{Digest, Sha256};

use super::PROGRAM;

/// Its name.
const NAME: &str = "mote-bench:latest";

pub(super) fn archive() -> io::Result<Vec<u8>> {
    let mut layer = Tar::default();
    for name in ["dev/", "proc/", "sys/"] {
        layer.add(name, tar::EntryType::Directory, &[])?;
    }
    layer.add("program", tar::EntryType::Regular, PROGRAM)?;
    let layer = layer.finish()?;
    let config = json!({
        "architecture": "amd64",
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": { "Entrypoint": null, "Cmd": ["/program"], "WorkingDir": "/" },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", digest(&layer))] },
        "history": [{ "created": "1970-01-01T00:00:00Z", "created_by": "mote bench" }],
    })
    .to_string();
    let config_name = format!("{}.json", digest(config.as_bytes()));
    let manifest = json!([{ "Config": config_name, "RepoTags": [NAME], "Layers": ["layer.tar"] }]);
    let mut image = Tar::default();
    image.add(&config_name, tar::EntryType::Regular, config.as_bytes())?;
    image.add("layer.tar", tar::EntryType::Regular, &layer)?;
    image.add(
        "manifest.json",
        tar::EntryType::Regular,
        manifest.to_string().as_bytes(),
    )?;
    image.finish()
}

fn digest(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// An archive whose entries belong to root and are as old as the epoch.
struct Tar(tar::Builder<Vec<u8>>);

impl Default for Tar {
    fn default() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }
}

impl Tar {
    fn add(&mut self, name: &str, kind: tar::EntryType, contents: &[u8]) -> io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_size(contents.len() as u64);
        self.0.append_data(&mut header, name, contents)
    }

    fn finish(self) -> io::Result<Vec<u8>> {
        self.0.into_inner()
    }
}
