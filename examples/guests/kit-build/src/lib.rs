//! Link settings for guests built on `ringlet-guest`.
//!
//! A guest's `build.rs` calls [`link`] and nothing else. Link arguments reach only the package whose build script
//! prints them, so this cannot be done once and for all in the kit.

use std::path::PathBuf;
use std::{env, fs};

/// The linker script. Within this library, which may be built in one place and used in another.
const SCRIPT: &str = include_str!("../link.ld");

/// What turns a host executable into a freestanding image at a fixed address. The negations undo what a toolchain or
/// a `.cargo/config.toml` higher up (`crt-static`, position independence, relro) may have asked for.
const ARGUMENTS: [&str; 8] = [
    "-nostartfiles",
    "-nostdlib",
    "-static",
    "-no-pie",
    "-Wl,--build-id=none",
    "-Wl,-z,norelro",
    "-Wl,-z,noexecstack",
    "-Wl,-z,max-page-size=4096",
];

/// Tells cargo how to link the binaries of the calling package.
///
/// # Panics
/// Outside of a build script, or if its `OUT_DIR` cannot be written to.
pub fn link() {
    let script =
        PathBuf::from(env::var_os("OUT_DIR").expect("call this from a build script")).join("link.ld");
    fs::write(&script, SCRIPT).unwrap_or_else(|error| panic!("cannot write {}: {error}", script.display()));
    for argument in ARGUMENTS {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
    println!("cargo:rustc-link-arg-bins=-Wl,-T,{}", script.display());
}
