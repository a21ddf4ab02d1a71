//! Link settings for guests built on `ringlet-guest`.
//!
//! A guest's `build.rs` calls [`link`] and nothing else. Link arguments reach only the package whose build script
//! prints them, so this cannot be done once and for all in the kit.

/// Where the linker script lies.
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/link.ld");

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
pub fn link() {
    for argument in ARGUMENTS {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
    println!("cargo:rustc-link-arg-bins=-Wl,-T,{SCRIPT}");
    println!("cargo:rerun-if-changed={SCRIPT}");
}
