use std::sync::{Arc, Condvar};

use super::*;

/// A stream whose reader takes nothing until it is let go.
#[derive(Clone, Default)]
struct Stream(Arc<(Mutex<State>, Condvar)>);

#[derive(Default)]
struct State {
    is_held: bool,
    is_reached: bool,
    text: Vec<u8>,
}

impl Stream {
    fn held() -> Self {
        let stream = Self::default();
        stream.0.0.lock().unwrap().is_held = true;
        stream
    }

    fn until_reached(&self) {
        let state = self.0.0.lock().unwrap();
        drop(self.0.1.wait_while(state, |state| !state.is_reached).unwrap());
    }

    fn let_go(&self) {
        self.0.0.lock().unwrap().is_held = false;
        self.0.1.notify_all();
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.0.lock().unwrap().text.clone()).unwrap()
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.0.0.lock().unwrap();
        state.is_reached = true;
        self.0.1.notify_all();
        let mut state = self.0.1.wait_while(state, |state| state.is_held).unwrap();
        state.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn no_thread(_: Box<dyn FnOnce() + Send>) -> io::Result<()> {
    Err(rustix::io::Errno::AGAIN.into())
}

#[test]
fn lines_are_written_in_order_until_the_end() {
    let (writer, stream) = (LogWriter::new(), Stream::default());
    for line in ["a\n", "b\n", "c\n"] {
        writer.write(line.as_bytes(), stream.clone(), spawn);
    }
    assert!(writer.finish());
    assert_eq!(stream.text(), "a\nb\nc\n");
    writer.write(b"late\n", stream.clone(), spawn);
    assert_eq!((writer.dropped(), stream.text().as_str()), (1, "a\nb\nc\n"));
    assert!(LogWriter::new().finish(), "there was nothing to write");
}

#[test]
fn lines_that_come_while_no_thread_is_to_be_had_are_counted_and_the_next_one_asks_again() {
    let (writer, stream) = (LogWriter::new(), Stream::default());
    for _ in 0..3 {
        writer.write(b"lost\n", stream.clone(), no_thread);
    }
    assert_eq!(writer.dropped(), 3);
    assert!(writer.finish());
    writer.write(b"kept\n", stream.clone(), spawn);
    assert!(writer.finish());
    assert_eq!((writer.dropped(), stream.text().as_str()), (3, "kept\n"));
}

#[test]
fn sec_02_lines_that_nobody_reads_are_bounded_and_counted() {
    let (writer, stream) = (LogWriter::new(), Stream::held());
    writer.write(b"x\n", stream.clone(), spawn);
    // The thread has this one in its hands, and the queue is empty.
    stream.until_reached();
    for _ in 0..2 * QUEUE {
        writer.write(b"x\n", stream.clone(), spawn);
    }
    assert_eq!(writer.dropped(), QUEUE as u64);
    stream.let_go();
    assert!(writer.finish());
    assert_eq!(stream.text().len(), "x\n".len() * (1 + QUEUE));
}
