//! What a VM boots, and how it is entered.

use std::fmt;
use std::path::PathBuf;

use ringlet_boot::Protocol;
use serde::{Deserialize, Serialize};

/// What is booted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootSource {
    /// A bundled image's name (`ringlet images` lists them) or a file. What contains a `/` is a file.
    pub kernel_image_path: ImageRef,
    /// A file that is put into guest RAM for the kernel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd_path: Option<PathBuf>,
    /// The kernel's command line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_args: Option<String>,
}

/// How an image is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BootProtocol {
    /// The PVH entry of the image's Xen note, in 32-bit protected mode.
    Pvh,
    /// The 64-bit Linux boot protocol, at the ELF entry point.
    Linux64,
}

impl From<BootProtocol> for Protocol {
    fn from(protocol: BootProtocol) -> Self {
        match protocol {
            BootProtocol::Pvh => Self::Pvh,
            BootProtocol::Linux64 => Self::Linux64,
        }
    }
}

/// Which image: bundled with Ringlet, or a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum ImageRef {
    /// An image of [`crate::images`], by name.
    Bundled(String),
    /// An ELF64 file.
    Path(PathBuf),
}

impl From<String> for ImageRef {
    fn from(text: String) -> Self {
        if crate::images::find(&text).is_some() {
            Self::Bundled(text)
        } else {
            Self::Path(PathBuf::from(text))
        }
    }
}

impl From<&str> for ImageRef {
    fn from(text: &str) -> Self {
        Self::from(text.to_owned())
    }
}

impl From<ImageRef> for String {
    fn from(image: ImageRef) -> Self {
        image.to_string()
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bundled(name) => f.write_str(name),
            Self::Path(path) => write!(f, "{}", path.display()),
        }
    }
}
