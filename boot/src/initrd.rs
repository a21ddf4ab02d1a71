//! The initial RAM disk: bytes that a guest finds in its memory. Never looked into.

use std::path::Path;
use std::sync::Arc;

use crate::file::{self, printable};
use crate::kernel::ImageError;

/// Largest initrd in bytes.
pub const INITRD_MAX: u64 = 1 << 30;

/// An initrd, read once and copied into many VMs. Cloning shares its bytes.
#[derive(Debug, Clone)]
pub struct Initrd {
    name: Arc<str>,
    bytes: Arc<Vec<u8>>,
}

impl Initrd {
    /// Reads the regular file at `path`, at most [`INITRD_MAX`] bytes.
    pub fn open(path: &Path) -> Result<Self, ImageError> {
        let bytes =
            file::read(path, INITRD_MAX).map_err(|error| ImageError::file(path, INITRD_MAX, error))?;
        Ok(Self::from_bytes(&path.to_string_lossy(), bytes))
    }

    /// An initrd in memory. `name` is what messages call it.
    pub fn from_bytes(name: &str, bytes: Vec<u8>) -> Self {
        Self { name: printable(name).into(), bytes: Arc::new(bytes) }
    }

    /// Name or path, with control characters escaped.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The content.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}
