use std::os::unix::net::UnixListener;

use super::*;
use crate::engine::EngineKind;
use crate::testing::*;

on_both_engines!(a_path_is_connected_to, what_cannot_be_connected_to_is_told);

fn a_path_is_connected_to(engine: EngineKind) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v.sock_7");
    let listener = UnixListener::bind(&path).unwrap();
    on_shard(engine, move |_| async move {
        let connector = Connector::default();
        for _ in 0..3 {
            let fd = connector.connect(path.clone()).await.unwrap();
            listener.accept().unwrap();
            drop(fd);
        }
    });
}

fn what_cannot_be_connected_to_is_told(engine: EngineKind) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v.sock_7");
    let kinds = on_shard(engine, move |_| async move {
        let connector = Connector::default();
        let nobody = connector.connect(path.clone()).await.unwrap_err().kind();
        drop(UnixListener::bind(&path).unwrap());
        let gone = connector.connect(path.clone()).await.unwrap_err().kind();
        let long = connector.connect(path.join("x".repeat(200))).await.unwrap_err().kind();
        [nobody, gone, long]
    });
    let expected =
        [io::ErrorKind::NotFound, io::ErrorKind::ConnectionRefused, io::ErrorKind::InvalidFilename];
    assert_eq!(kinds, expected);
}
