use super::*;

#[test]
fn triggers_are_counted_until_they_are_taken() {
    let line = InterruptLine::new().unwrap();
    assert_eq!(line.take_pending(), 0);
    line.trigger();
    line.clone().trigger();
    assert_eq!(line.take_pending(), 2);
    assert_eq!(line.take_pending(), 0);
}

#[test]
fn a_line_that_nobody_takes_never_blocks() {
    let line = InterruptLine::new().unwrap();
    rustix::io::write(line.as_fd(), &(u64::MAX - 1).to_ne_bytes()).unwrap();
    line.trigger();
    assert_eq!(line.take_pending(), u64::MAX - 1);
}
