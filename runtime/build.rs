//! Builds the bundled guest images with a nested cargo, and puts them where `images.rs` includes them from.
//!
//! The guests are a workspace of their own (they need another panic strategy), with their own target folder inside
//! `OUT_DIR`: no lock is shared with the cargo that runs this script. Cargo runs it again only when a file of the
//! guests changes.

use std::env;
use std::error::Error;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The images, as `runtime/src/images.rs` lists them.
const IMAGES: [&str; 17] = [
    "alloc",
    "blkbench",
    "burst",
    "echo",
    "exit",
    "fault",
    "hello",
    "hostile",
    "hostile-virtio",
    "http",
    "idle",
    "netbench",
    "rng",
    "smp",
    "spin",
    "storm",
    "vsock-echo",
];
const TARGET: &str = "x86_64-unknown-linux-gnu";
/// Replaces whatever flags the outer build uses, be they from its environment or from a `.cargo/config.toml`.
const RUSTFLAGS: &str = "-Crelocation-model=static";

fn main() -> Result<()> {
    let guests = Path::new(&env::var("CARGO_MANIFEST_DIR")?).join("examples/guests");
    watch(&guests)?;
    for file in ["runtime/build.rs", "boot/src/args.rs"] {
        println!("cargo::rerun-if-changed={file}");
    }
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let built = build(&guests, &out.join("guests"))?;
    let images = out.join("images");
    fs::create_dir_all(&images)?;
    for name in IMAGES {
        fs::copy(built.join(name), images.join(name))
            .map_err(|error| format!("guest image {name}: {error}"))?;
    }
    Ok(())
}

/// Asks cargo to run this script again when a source file of the guests changes, but not when their own builds do.
fn watch(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            if !["target", "template"].map(OsStr::new).map(Some).contains(&path.file_name()) {
                watch(&path)?;
            }
        } else if path.extension() != Some(OsStr::new("md")) {
            println!("cargo::rerun-if-changed={}", path.display());
        }
    }
    Ok(())
}

/// Builds all guests; returns the folder with the images.
fn build(guests: &Path, target: &Path) -> Result<PathBuf> {
    let mut cargo = Command::new(env::var_os("CARGO").ok_or("CARGO is not set")?);
    for (name, _) in env::vars_os() {
        if leaks(&name.to_string_lossy()) {
            cargo.env_remove(name);
        }
    }
    cargo
        .current_dir(guests)
        .env("RUSTFLAGS", RUSTFLAGS)
        .args([
            "build",
            "--release",
            "--locked",
            "--package",
            "guests",
            "--bins",
            "--target",
            TARGET,
            "--target-dir",
        ])
        .arg(target);
    let output = cargo.output().map_err(|error| format!("cargo for the guest images: {error}"))?;
    if !output.status.success() {
        return Err(format!(
            "building the guest images failed:\n{}",
            String::from_utf8_lossy(&output.stderr)
        )
        .into());
    }
    Ok(target.join(TARGET).join("release"))
}

/// Whether a variable would carry the outer build's settings (coverage, sanitizers, clippy, profiles) into the guests.
fn leaks(name: &str) -> bool {
    const KEPT: [&str; 6] =
        ["CARGO_HOME", "CARGO_MAKEFLAGS", "CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTR", "CARGO_SOURCE_"];
    let cargos = name.starts_with("CARGO") && !KEPT.iter().any(|kept| name.starts_with(kept));
    cargos
        || name.starts_with("RUSTC")
        || name.starts_with("RUSTFLAGS")
        || name == "RUSTDOCFLAGS"
        || name == "TARGET"
}
