use super::*;

fn refused(errno: Errno) -> Result<(), UringUnavailable> {
    Err(UringUnavailable::from_error(io::Error::from(errno)))
}

#[test]
fn names_are_read_and_printed() {
    for choice in EngineChoice::ALL {
        assert_eq!(choice.to_string().parse(), Ok(choice));
    }
    let error = "kqueue".parse::<EngineChoice>().unwrap_err();
    assert_eq!(error.to_string(), "unknown I/O engine \"kqueue\": choose auto, uring or epoll");
    assert_eq!(EngineKind::Uring.to_string(), "uring");
    assert_eq!(EngineKind::Epoll.to_string(), "epoll");
}

#[test]
fn auto_takes_io_uring_where_there_is_one() {
    let engine = decide(EngineChoice::Auto, || Ok(())).unwrap();
    assert_eq!(engine, Engine { kind: EngineKind::Uring, why_not_uring: None });
}

#[test]
fn auto_falls_back_and_says_why() {
    for errno in [Errno::NOSYS, Errno::PERM, Errno::NOMEM, Errno::MFILE] {
        let engine = decide(EngineChoice::Auto, || refused(errno)).unwrap();
        assert_eq!(engine.kind, EngineKind::Epoll);
        assert_eq!(engine.why_not_uring, refused(errno).err().map(|reason| reason.to_string()));
    }
}

#[test]
fn explicit_io_uring_is_an_error_with_a_remedy_where_there_is_none() {
    let error = decide(EngineChoice::Uring, || refused(Errno::NOSYS)).unwrap_err().to_string();
    assert!(error.contains("ENOSYS") && error.contains("--io-engine auto"), "{error}");
}

#[test]
fn explicit_epoll_does_not_ask() {
    let engine = decide(EngineChoice::Epoll, || panic!("asked")).unwrap();
    assert_eq!(engine, Engine { kind: EngineKind::Epoll, why_not_uring: None });
}

#[test]
fn each_cause_has_its_remedy() {
    let text = |errno| refused(errno).unwrap_err().to_string();
    assert!(text(Errno::NOSYS).contains("Linux 5.6"));
    assert!(text(Errno::NOMEM).contains("ulimit -l"));
    assert!(text(Errno::MFILE).contains("io_uring_setup failed"));
    // Which of the two it is depends on the host.
    let permission = text(Errno::PERM);
    let disabled = disabled_by_sysctl().is_some();
    assert_eq!(permission.contains("kernel.io_uring_disabled = "), disabled, "{permission}");
    assert_eq!(permission.contains("seccomp"), !disabled, "{permission}");
}

#[test]
fn kernels_are_told_apart_by_their_release() {
    for release in ["5.12", "5.12.0-rc1", "5.100.1", "6.1.0-13-amd64", "10.0.0"] {
        assert!(counts_no_locked_memory(release), "{release}");
    }
    for release in ["5.11.22", "5.4.0-150-generic", "4.19", "5", "", "unknown"] {
        assert!(!counts_no_locked_memory(release), "{release}");
    }
}

#[test]
fn the_probe_agrees_with_a_shard() {
    let engine = select(EngineChoice::Auto).unwrap();
    assert_eq!(engine.kind == EngineKind::Uring, probe_uring().is_ok());
}
