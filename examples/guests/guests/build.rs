//! Links this package's binaries as guest images.

fn main() {
    ringlet_guest_build::link();
}
