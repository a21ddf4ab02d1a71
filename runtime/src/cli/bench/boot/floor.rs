//! The floor: the least program that boots a guest, built from source where the benchmark runs.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cli::CliResult;

/// One C file of raw system calls.
const SOURCE: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bench/floor.c"));

/// Compiles the floor into `folder` and returns the program's path.
pub(super) fn build(folder: &Path) -> CliResult<PathBuf> {
    let (source, program) = (folder.join("floor.c"), folder.join("floor"));
    std::fs::write(&source, SOURCE)?;
    let compiled = Command::new("cc").args(["-O2", "-static", "-o"]).arg(&program).arg(&source).output();
    let output = compiled.map_err(|error| {
        format!("the floor that Ringlet is compared with is built with `cc`, which cannot be run: {error}")
    })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("cc cannot build the floor (is the static libc installed?): {said}").into());
    }
    Ok(program)
}
