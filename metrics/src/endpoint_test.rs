use std::os::unix::net::{UnixDatagram, UnixStream};

use tempfile::TempDir;

use super::*;

fn unix(directory: &TempDir) -> Endpoint {
    Endpoint::Unix(directory.path().join("m.sock"))
}

fn path(endpoint: &Endpoint) -> &Path {
    match endpoint {
        Endpoint::Unix(path) => path,
        Endpoint::Tcp(address) => panic!("{address}"),
    }
}

#[test]
fn the_notation() {
    assert_eq!("127.0.0.1:9090".parse(), Ok(Endpoint::Tcp(([127, 0, 0, 1], 9090).into())));
    assert_eq!("localhost:1".parse(), Ok(Endpoint::Tcp(([127, 0, 0, 1], 1).into())));
    assert_eq!("[::1]:80".parse::<Endpoint>().unwrap().to_string(), "[::1]:80");
    assert_eq!("unix:a/b".parse(), Ok(Endpoint::Unix("a/b".into())));
    for text in ["", "9090", ":9090", "unix:", "unix:\0x", "example.org:80", "127.0.0.1", "127.0.0.1:65536"] {
        let error = text.parse::<Endpoint>().unwrap_err().to_string();
        assert!(error.contains("IP:PORT") && error.contains("unix:PATH"), "{error}");
    }
}

#[test]
fn sec_13_an_address_in_an_error_is_escaped() {
    let error = "\u{1b}[2J".parse::<Endpoint>().unwrap_err().to_string();
    assert!(!error.contains('\u{1b}'), "{error:?}");
    let error = Endpoint::Unix("/nonexistent/\u{1b}[2J".into()).bind().unwrap_err().to_string();
    assert!(!error.contains('\u{1b}') && error.contains("/nonexistent/"), "{error:?}");
}

#[test]
fn what_cannot_be_listened_on_is_told_with_a_remedy() {
    // An address for documentation: no host has it.
    let elsewhere = Endpoint::Tcp(([203, 0, 113, 1], 9090).into());
    assert!(elsewhere.bind().unwrap_err().to_string().contains("an address of this host"));
    let without_folder = Endpoint::Unix("/nonexistent/m.sock".into());
    assert!(without_folder.bind().unwrap_err().to_string().contains("its folder is not there"));
    let long = Endpoint::Unix(format!("/tmp/{}", "x".repeat(108)).into());
    let error = long.bind().unwrap_err().to_string();
    assert!(error.contains("at most 107 bytes"), "{error}");
}

#[test]
fn port_zero_is_resolved() {
    let listener = Endpoint::Tcp((Ipv4Addr::LOCALHOST, 0).into()).bind().unwrap();
    let Endpoint::Tcp(address) = listener.endpoint().unwrap() else { panic!("not TCP") };
    assert_ne!(address.port(), 0);
    let again = Endpoint::Tcp(address).bind();
    assert!(matches!(again, Err(BindError::InUse(_))), "{again:?}");
}

#[test]
fn the_file_goes_with_the_listener() {
    let directory = TempDir::new().unwrap();
    let endpoint = unix(&directory);
    let listener = endpoint.bind().unwrap();
    assert_eq!(listener.endpoint().unwrap(), endpoint);
    UnixStream::connect(path(&endpoint)).unwrap();
    drop(listener);
    assert!(fs::read_dir(directory.path()).unwrap().next().is_none(), "something was left behind");
}

#[test]
fn a_stale_socket_is_replaced() {
    let directory = TempDir::new().unwrap();
    let endpoint = unix(&directory);
    drop(UnixListener::bind(path(&endpoint)).unwrap());
    assert!(path(&endpoint).exists());
    let _listener = endpoint.bind().unwrap();
    UnixStream::connect(path(&endpoint)).unwrap();
}

#[test]
fn a_live_socket_is_refused_and_lives_on() {
    let directory = TempDir::new().unwrap();
    let endpoint = unix(&directory);
    let first = endpoint.bind().unwrap();
    let second = endpoint.bind();
    assert!(matches!(second, Err(BindError::InUse(_))), "{second:?}");
    UnixStream::connect(path(&endpoint)).unwrap();
    drop(first);
}

#[test]
fn a_live_socket_with_a_full_backlog_is_refused_at_once() {
    let directory = TempDir::new().unwrap();
    let endpoint = unix(&directory);
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = || rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
    let address = SocketAddrUnix::new(path(&endpoint)).unwrap();
    let listener = socket();
    rustix::net::bind(&listener, &address).unwrap();
    rustix::net::listen(&listener, 0).unwrap();
    let mut clients = Vec::new();
    loop {
        clients.push(socket());
        match rustix::net::connect(clients.last().unwrap(), &address) {
            Ok(()) => assert!(clients.len() < 100, "the backlog has no end"),
            Err(error) => break assert_eq!(error, Errno::AGAIN),
        }
    }
    assert!(matches!(endpoint.bind(), Err(BindError::InUse(_))));
}

#[test]
fn another_kind_of_file_is_left_alone() {
    let directory = TempDir::new().unwrap();
    let endpoint = unix(&directory);
    fs::write(path(&endpoint), "precious").unwrap();
    assert!(matches!(endpoint.bind(), Err(BindError::NotASocket(_))));
    assert_eq!(fs::read_to_string(path(&endpoint)).unwrap(), "precious");
    // A link is judged as a link, wherever it points.
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(path(&endpoint), &link).unwrap();
    assert!(matches!(Endpoint::Unix(link.clone()).bind(), Err(BindError::NotASocket(_))));
    assert!(link.is_symlink());
}

#[test]
fn a_live_datagram_socket_is_left_alone() {
    let directory = TempDir::new().unwrap();
    let endpoint = unix(&directory);
    let _socket = UnixDatagram::bind(path(&endpoint)).unwrap();
    assert!(matches!(endpoint.bind(), Err(BindError::InUse(_))));
    assert!(path(&endpoint).exists());
}

#[test]
fn a_successors_file_is_not_removed() {
    let directory = TempDir::new().unwrap();
    let endpoint = unix(&directory);
    let listener = endpoint.bind().unwrap();
    // The new one is made elsewhere, so that it cannot get the inode of the old.
    let elsewhere = directory.path().join("new");
    let _successor = UnixListener::bind(&elsewhere).unwrap();
    fs::rename(&elsewhere, path(&endpoint)).unwrap();
    drop(listener);
    UnixStream::connect(path(&endpoint)).unwrap();
}

#[test]
fn of_many_that_race_for_a_stale_socket_one_gets_it() {
    for _ in 0..20 {
        let directory = TempDir::new().unwrap();
        let endpoint = unix(&directory);
        drop(UnixListener::bind(path(&endpoint)).unwrap());
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let endpoint = endpoint.clone();
                std::thread::spawn(move || endpoint.bind())
            })
            .collect();
        let bound: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert_eq!(bound.iter().filter(|result| result.is_ok()).count(), 1, "{bound:?}");
        UnixStream::connect(path(&endpoint)).unwrap();
    }
}

#[test]
fn a_stale_socket_is_replaced_only_under_the_directorys_lock() {
    let directory = TempDir::new().unwrap();
    let endpoint = unix(&directory);
    drop(UnixListener::bind(path(&endpoint)).unwrap());
    let other_process = fs::File::open(directory.path()).unwrap();
    rustix::fs::flock(&other_process, FlockOperation::LockExclusive).unwrap();
    let refused = endpoint.bind();
    assert!(matches!(refused, Err(BindError::Os { .. })), "{refused:?}");
    assert!(path(&endpoint).exists(), "removed without the lock");
    drop(other_process);
    endpoint.bind().unwrap();
}

#[test]
fn a_path_that_is_too_long_is_an_error() {
    let error = Endpoint::Unix(PathBuf::from("/tmp/").join("x".repeat(200))).bind().unwrap_err();
    assert!(matches!(error, BindError::Os { .. }), "{error}");
}
