//! The `ringlet` command.
fn main() {
    println!("hi");
}
