use std::fs::File;
use std::os::fd::AsRawFd;

use super::*;

#[test]
fn a_descriptor_that_does_not_listen_is_called_by_the_number_that_was_given() {
    let file = File::open("/dev/null").unwrap();
    let error = listener(&Vsock::new().fd(file.as_raw_fd())).unwrap_err().to_string();
    let told = format!("descriptor {}: it is no socket", file.as_raw_fd());
    assert!(error.contains(&told), "{error}");
}
