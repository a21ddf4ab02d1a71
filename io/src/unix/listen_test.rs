use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

use super::*;
use crate::engine::EngineKind;
use crate::testing::*;

on_both_engines!(connections_are_accepted_as_they_come, a_descriptor_is_listened_on_as_a_path_is);

fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v.sock");
    (folder, path)
}

/// What is in a folder.
fn names(folder: &tempfile::TempDir) -> Vec<String> {
    let entries = fs::read_dir(folder.path()).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Accepts two connections, each of which says a word.
fn accept_two(engine: EngineKind, listener: Listener, path: PathBuf) {
    let words = on_shard(engine, move |_| async move {
        let acceptor = listener.attach().unwrap();
        let mut words = Vec::new();
        for word in ["one", "two"] {
            let mut client = UnixStream::connect(&path).unwrap();
            client.write_all(word.as_bytes()).unwrap();
            let mut accepted = UnixStream::from(acceptor.accept().await.unwrap());
            let mut bytes = [0; 3];
            accepted.read_exact(&mut bytes).unwrap();
            words.push(String::from_utf8(bytes.into()).unwrap());
        }
        words
    });
    assert_eq!(words, ["one", "two"]);
}

fn connections_are_accepted_as_they_come(engine: EngineKind) {
    let (folder, path) = folder();
    let (listener, file) = Listener::bind(&path).unwrap();
    accept_two(engine, listener, path.clone());
    assert_eq!((file.path(), names(&folder)), (&*path, vec!["v.sock".to_owned()]));
    drop(file);
    assert_eq!(names(&folder), [""; 0], "nothing is left behind");
}

fn a_descriptor_is_listened_on_as_a_path_is(engine: EngineKind) {
    let (folder, path) = folder();
    let listener = Listener::from_fd(UnixListener::bind(&path).unwrap().into()).unwrap();
    accept_two(engine, listener, path);
    assert_eq!(names(&folder), ["v.sock"], "it is who made it that removes it");
}

#[test]
fn what_is_no_listening_stream_socket_is_refused() {
    let refused = |fd: OwnedFd| Listener::from_fd(fd).unwrap_err().to_string();
    assert!(refused(fs::File::open("/dev/null").unwrap().into()).contains("no socket"));
    assert!(refused(UnixDatagram::unbound().unwrap().into()).contains("no stream"));
    assert!(refused(UnixStream::pair().unwrap().0.into()).contains("does not listen"));
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    assert!(refused(tcp.into()).contains("no Unix socket"));
}

#[test]
fn a_socket_that_was_left_behind_is_replaced() {
    let (folder, path) = folder();
    drop(UnixListener::bind(&path).unwrap());
    assert!(path.exists() && UnixStream::connect(&path).is_err());
    let (_listener, file) = Listener::bind(&path).unwrap();
    UnixStream::connect(&path).unwrap();
    assert_eq!(names(&folder), ["v.sock"]);
    drop(file);
    assert_eq!(names(&folder), [""; 0]);
}

#[test]
fn a_path_that_cannot_be_is_told_with_a_remedy() {
    let error = Listener::bind("/nonexistent/v.sock").unwrap_err().to_string();
    assert!(error.contains("its folder is not there"), "{error}");
    let error = Listener::bind(format!("/tmp/{}", "x".repeat(108))).unwrap_err().to_string();
    assert!(error.contains("at most 107 bytes"), "{error}");
}

#[test]
fn a_socket_at_which_somebody_listens_is_refused_and_left_alone() {
    let (folder, path) = folder();
    let (listener, _file) = Listener::bind(&path).unwrap();
    let error = Listener::bind(&path).unwrap_err();
    assert!(matches!(error, ListenError::InUse { .. }), "{error}");
    assert!(error.to_string().contains("somebody listens there already"));
    UnixStream::connect(&path).unwrap();
    drop(listener);
    let other = UnixDatagram::bind(folder.path().join("d.sock")).unwrap();
    assert!(Listener::bind(folder.path().join("d.sock")).is_err(), "a socket of another type");
    drop(other);
}

#[test]
fn what_is_no_socket_is_never_removed() {
    let (folder, path) = folder();
    fs::write(&path, "precious").unwrap();
    assert!(matches!(Listener::bind(&path), Err(ListenError::NotASocket { .. })));
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert!(matches!(Listener::bind(&link), Err(ListenError::NotASocket { .. })));
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

/// Somebody replaces a socket that was left behind, after it was looked at: connecting to a file is refused like connecting
/// to a socket without a listener.
#[test]
fn sec_07_what_took_the_place_of_a_socket_is_never_removed() {
    let (folder, path) = folder();
    let aside = folder.path().join("aside");
    fs::write(&path, "precious").unwrap();
    assert!(matches!(put_aside(&path, &aside), Err(ListenError::NotASocket { path: told }) if told == path));
    assert_eq!((fs::read_to_string(&path).unwrap(), names(&folder).len()), ("precious".to_owned(), 1));
    fs::remove_file(&path).unwrap();
    drop(UnixListener::bind(&path).unwrap());
    fs::write(&aside, "precious").unwrap();
    assert!(matches!(put_aside(&path, &aside), Err(ListenError::Path { call: "rename", .. })));
    assert_eq!(fs::read_to_string(&aside).unwrap(), "precious", "a name that somebody has is not taken");
    fs::remove_file(&aside).unwrap();
    put_aside(&path, &aside).unwrap();
    assert_eq!(names(&folder), [""; 0]);
}

#[test]
fn a_file_that_somebody_else_put_there_is_not_removed() {
    let (folder, path) = folder();
    let (_listener, file) = Listener::bind(&path).unwrap();
    // A name for the old one, so that its number is not given again.
    fs::rename(&path, folder.path().join("old")).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    drop(file);
    UnixStream::connect(&path).unwrap();
}

#[test]
fn what_cannot_be_bound_says_where() {
    let error = Listener::bind("/nowhere/at/all.sock").unwrap_err().to_string();
    assert!(error.starts_with("socket /nowhere/at/all.sock: "), "{error}");
    let long = format!("/tmp/{}", "x".repeat(200));
    assert!(Listener::bind(&long).unwrap_err().to_string().contains("as an address"));
}
