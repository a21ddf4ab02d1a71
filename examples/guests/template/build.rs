fn main() {
    ringlet_guest_build::link();
}
