use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;

use rustix::pipe::pipe;
use rustix::pty::{OpenptFlags, openpt};

use super::*;

/// One direction of a stream: who reads, who writes.
type Stream = (OwnedFd, OwnedFd);

fn tcp() -> Stream {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let writer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (listener.accept().unwrap().0.into(), writer.into())
}

fn unix() -> Stream {
    let (reader, writer) = UnixStream::pair().unwrap();
    (reader.into(), writer.into())
}

/// All sorts of streams, in the way of this kernel and in that of one without `RWF_NOWAIT` for them.
fn on_all(check: impl Fn(NoWait, NoWait, Stream)) {
    for make in [|| pipe().unwrap(), unix, tcp] {
        check(NoWait::new(), NoWait::new(), make());
        let (reader, writer) = make();
        check(without_flag(&reader), without_flag(&writer), (reader, writer));
    }
    let (reader, writer) = pipe().unwrap();
    check(relayed(), relayed(), (reader, writer));
}

fn without_flag(fd: &OwnedFd) -> NoWait {
    let nowait = NoWait::new();
    nowait.do_without_flag(fd).unwrap();
    assert!([Way::Reopened, Way::Socket].contains(&nowait.way.get()));
    nowait
}

/// The way of pipes that cannot be opened again.
fn relayed() -> NoWait {
    let nowait = NoWait::new();
    nowait.way.set(Way::Relayed);
    nowait
}

#[test]
fn a_pipe_that_nobody_reads_takes_many_small_writes() {
    let (reader, writer) = pipe().unwrap();
    let (nowait, relay) = (without_flag(&writer), Relay::default());
    for _ in 0..1000 {
        assert_eq!(nowait.write(&writer, &relay, b"x"), Ok(1));
    }
    drop((nowait, writer));
    let mut all = Vec::new();
    std::fs::File::from(reader).read_to_end(&mut all).unwrap();
    assert_eq!(all, [b'x'; 1000]);
}

/// Waits until something is there to read: what was sent to a socket may need a moment.
fn arrive(fd: &OwnedFd) {
    poll(&mut [PollFd::new(fd, PollFlags::IN)], None).unwrap();
}

#[test]
fn a_read_takes_what_is_there_and_no_more() {
    on_all(|read, write, (reader, writer)| {
        let (relay, mut buf) = (Relay::default(), [0; 8]);
        assert_eq!(read.read(&reader, &relay, &mut buf), Err(Errno::AGAIN));
        assert_eq!(write.write(&writer, &relay, b"abc"), Ok(3));
        arrive(&reader);
        assert_eq!(read.read(&reader, &relay, &mut []), Ok(0));
        assert_eq!(read.read(&reader, &relay, &mut buf[..2]), Ok(2));
        assert_eq!(read.read(&reader, &relay, &mut buf[2..]), Ok(1));
        assert_eq!(&buf[..3], b"abc");
        assert_eq!(read.read(&reader, &relay, &mut buf), Err(Errno::AGAIN));
        drop((write, writer));
        arrive(&reader);
        assert_eq!(read.read(&reader, &relay, &mut buf), Ok(0));
    });
}

#[test]
fn a_write_to_a_full_stream_does_nothing() {
    on_all(|read, write, (reader, writer)| {
        let (relay, bytes) = (Relay::default(), (0..100_000u32).map(|n| (n % 251) as u8).collect::<Vec<_>>());
        // Filled with pieces of sizes that never fit: what a write reports is there, in order, and nothing else.
        let (mut sent, mut got) = (0, 0);
        for round in 0..20_usize {
            while let Ok(count) =
                write.write(&writer, &relay, &bytes[sent % 251..][..3000 + 7777 * round % 90_000])
            {
                assert!(count > 0);
                sent += count;
            }
            let mut buf = vec![0; 30_000 + 999 * round];
            arrive(&reader);
            let count = read.read(&reader, &relay, &mut buf).unwrap();
            assert_eq!(&buf[..count], &bytes[got % 251..][..count], "round {round}");
            got += count;
        }
        while got < sent {
            let mut buf = vec![0; 5000];
            arrive(&reader);
            let count = read.read(&reader, &relay, &mut buf).unwrap();
            assert_eq!(&buf[..count], &bytes[got % 251..][..count]);
            got += count;
        }
        assert_eq!(read.read(&reader, &relay, &mut [0]), Err(Errno::AGAIN));
    });
}

#[test]
fn a_write_that_nobody_will_read_is_an_error() {
    let (reopened, unix) = (pipe().unwrap(), unix());
    let ways =
        [(without_flag(&reopened.1), reopened), (without_flag(&unix.1), unix), (relayed(), pipe().unwrap())];
    for (nowait, (reader, writer)) in ways {
        let relay = Relay::default();
        drop(reader);
        assert_eq!(nowait.write(&writer, &relay, b"abc"), Err(Errno::PIPE));
        assert_eq!(nowait.write(&writer, &relay, b"abc"), Err(Errno::PIPE));
    }
}

/// A relay serves streams of several owners: what one of them could not get rid of must not reach another.
#[test]
fn sec_01_what_a_full_pipe_did_not_take_reaches_no_other_stream() {
    let relay = Relay::default();
    let (full_reader, full) = pipe().unwrap();
    let (other_reader, other) = pipe().unwrap();
    let (into_full, into_other) = (relayed(), relayed());
    // Half of the pipe is taken, so half of the bytes remain.
    assert_eq!(into_full.write(&full, &relay, &[1; RELAYED / 2]), Ok(RELAYED / 2));
    assert_eq!(into_full.write(&full, &relay, &[2; RELAYED]), Ok(RELAYED / 2));
    assert_eq!(into_full.write(&full, &relay, &[3; 10]), Err(Errno::AGAIN));
    assert_eq!(into_other.write(&other, &relay, &[4; 10]), Ok(10));
    let mut buf = [0; 100];
    assert_eq!(relayed().read(&other_reader, &relay, &mut buf), Ok(10));
    assert_eq!(buf[..11], [4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 0]);
    drop(full);
    let mut rest = Vec::new();
    std::fs::File::from(full_reader).read_to_end(&mut rest).unwrap();
    assert_eq!(rest, [[1; RELAYED / 2], [2; RELAYED / 2]].concat());
}

#[test]
fn what_cannot_do_it_says_so() {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    let (nowait, relay) = (NoWait::new(), Relay::default());
    assert_eq!(nowait.read(&terminal, &relay, &mut [0]), Err(Errno::OPNOTSUPP));
    assert_eq!(nowait.write(&terminal, &relay, b"x"), Err(Errno::OPNOTSUPP));
}

#[test]
fn the_flags_of_a_pipe_do_not_matter() {
    let flags = [PipeFlags::empty(), PipeFlags::NONBLOCK, PipeFlags::DIRECT];
    for (flags, relays) in flags.into_iter().flat_map(|flags| [(flags, false), (flags, true)]) {
        let (reader, writer) = pipe_with(flags).unwrap();
        let (nowait, relay) = (if relays { relayed() } else { without_flag(&reader) }, Relay::default());
        let mut file = std::fs::File::from(writer);
        file.write_all(b"one").unwrap();
        file.write_all(b"two").unwrap();
        let mut bytes = Vec::new();
        while bytes.len() < 6 {
            let mut buf = [0; 16];
            let count = nowait.read(&reader, &relay, &mut buf).unwrap();
            bytes.extend_from_slice(&buf[..count]);
        }
        assert_eq!(bytes, b"onetwo");
        assert_eq!(nowait.read(&reader, &relay, &mut [0; 16]), Err(Errno::AGAIN));
    }
}
