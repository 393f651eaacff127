//! `/boot-source`.

use serde::{Deserialize, Serialize};

use super::Validate;
use super::shape::wire;

/// What is booted. The default is the empty one that reads back before any was put.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct BootSource {
    /// Kernel file of the host: an ELF file, or a bzImage (an extension).
    pub kernel_image_path: String,
    /// Initial RAM disk, a file of the host.
    pub initrd_path: Option<String>,
    /// The kernel's complete command line.
    pub boot_args: Option<String>,
}

wire!(Object: BootSource);

impl Validate for BootSource {}
