use super::super::pipe::pipe;
use super::*;

#[test]
fn what_is_discarded_is_taken_and_not_lost() {
    assert_eq!(ConsoleOutput::discard().put(b"abc"), Put { taken: 3, lost: 0 });
}

#[test]
fn a_log_takes_everything_and_what_it_drops_is_lost() {
    let log = ConsoleLog::new(2);
    assert_eq!(ConsoleOutput::log(log.clone()).put(b"abc"), Put { taken: 3, lost: 1 });
    assert_eq!(log.contents(), b"bc");
}

#[test]
fn a_stream_takes_what_fits_and_the_log_beside_it_has_the_same() {
    let (writer, reader) = pipe(4);
    let log = ConsoleLog::new(2);
    let output = ConsoleOutput::stream(writer).and_log(log.clone());
    assert_eq!(output.put(b"abcdef"), Put { taken: 4, lost: 0 });
    assert_eq!(output.put(b"ef"), Put { taken: 0, lost: 0 });
    assert_eq!(log.contents(), b"cd", "what was not taken is not in the log");
    let mut read = Vec::new();
    reader.take(&mut read);
    assert_eq!(read, b"abcd");
}

#[test]
fn without_a_reader_nothing_waits_and_the_loss_is_told() {
    let (writer, reader) = pipe(4);
    let log = ConsoleLog::new(8);
    let output = ConsoleOutput::stream(writer.clone());
    drop(reader);
    assert_eq!(output.put(b"abcdef"), Put { taken: 6, lost: 6 });
    let output = ConsoleOutput::stream(writer).and_log(log.clone());
    assert_eq!(output.put(b"abcdef"), Put { taken: 6, lost: 0 });
    assert_eq!(log.contents(), b"abcdef");
}

#[tokio::test]
async fn room_comes_with_a_read_or_with_the_end_of_the_reader() {
    let (writer, reader) = pipe(1);
    let output = ConsoleOutput::stream(writer);
    assert_eq!(output.room().await, 1);
    assert_eq!(output.put(b"a").taken, 1);
    assert_eq!(tokio::join!(output.room(), async { reader.skip(1) }).0, 1);
    assert_eq!(output.put(b"b").taken, 1);
    assert_eq!(tokio::join!(output.room(), async { drop(reader) }).0, usize::MAX);
    assert_eq!(ConsoleOutput::discard().room().await, usize::MAX);
}
