use rustix::event::PollFlags;
use rustix::io::dup;
use rustix::pipe::pipe;
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use super::super::testing::Namespace;
use super::*;
use crate::nowait::poll_now;
use crate::testing::wait_until;

fn open(namespace: &Namespace, name: &str, queue_pairs: u16) -> Result<Tap, TapError> {
    namespace.enter(|| Tap::open(name, queue_pairs))
}

/// A descriptor of `/dev/net/tun`, attached with these flags as another program would.
fn attached(namespace: &Namespace, name: &str, flags: TapFlags) -> OwnedFd {
    namespace.enter(|| {
        let fd = rustix::fs::open(TUN_DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap();
        ioctl::attach(fd.as_fd(), name, flags).unwrap();
        fd
    })
}

/// Runs `body` in the namespace, without any privilege.
fn without_privilege<T: Send>(namespace: &Namespace, body: impl FnOnce() -> T + Send) -> T {
    namespace.enter(|| {
        let mut sets = capabilities(None).unwrap();
        sets.effective = CapabilitySet::empty();
        set_capabilities(None, sets).unwrap();
        body()
    })
}

#[test]
fn a_tap_is_made_and_goes_with_its_last_descriptor() {
    let namespace = Namespace::new();
    let tap = open(&namespace, "made0", 1).unwrap();
    assert!(namespace.has("made0"));
    assert_eq!((tap.name(), tap.info().queue_pairs, tap.info().mtu), ("made0", 1, Some(1500)));
    assert_eq!(tap.info().mac, None, "a tap's own address is none for the guest");
    drop(tap);
    assert!(!namespace.has("made0"));
}

#[test]
fn a_persistent_tap_is_left_as_it_was_found() {
    let namespace = Namespace::new();
    let fd = attached(&namespace, "kept0", NEEDED);
    ioctl::set_persistent(fd.as_fd(), true).unwrap();
    drop(fd);
    namespace.ip("link set dev kept0 mtu 1400");
    let before = namespace.ip("addr show dev kept0");
    let tap = open(&namespace, "kept0", 1).unwrap();
    assert_eq!(tap.info().mtu, Some(1400));
    drop(tap);
    assert_eq!(namespace.ip("addr show dev kept0"), before);
}

#[test]
fn the_kernel_finishes_checksums_and_segments_of_tcp() {
    let namespace = Namespace::new();
    let offloads = open(&namespace, "tap0", 1).unwrap().info().offloads;
    let least = Offloads { uso4: false, uso6: false, ..Offloads::ALL };
    assert!(least.is_within(offloads), "{offloads:?}");
    assert_eq!(offloads.uso4, offloads.uso6, "{offloads:?}");
}

#[test]
fn a_tap_has_one_user() {
    let namespace = Namespace::new();
    let _tap = open(&namespace, "one0", 1).unwrap();
    assert!(matches!(open(&namespace, "one0", 1), Err(TapError::InUse { .. })));
    let _queues = open(&namespace, "many0", 2).unwrap();
    let in_use = namespace.enter(|| ioctl::queues("many0", any_socket().unwrap().as_fd()).unwrap());
    if in_use.is_none() {
        eprintln!("NOT TESTED with several queues: this kernel does not tell how many a tap has in use");
        return;
    }
    assert_eq!(in_use, Some(2));
    for queue_pairs in [1, 2] {
        let error = open(&namespace, "many0", queue_pairs).unwrap_err();
        assert!(matches!(error, TapError::InUse { .. }), "{error}");
    }
}

#[test]
fn a_tap_with_room_for_queues_may_be_used_with_one() {
    let namespace = Namespace::new();
    let fd = attached(&namespace, "kept0", NEEDED.with(TapFlags::MULTI_QUEUE));
    ioctl::set_persistent(fd.as_fd(), true).unwrap();
    drop(fd);
    assert_eq!(open(&namespace, "kept0", 1).unwrap().info().queue_pairs, 1);
    assert_eq!(open(&namespace, "kept0", 4).unwrap().info().queue_pairs, 4);
}

#[test]
fn what_is_no_tap_is_refused_with_a_remedy() {
    let namespace = Namespace::new();
    let error = open(&namespace, "lo", 1).unwrap_err().to_string();
    assert!(
        error.contains("no tap: choose another name")
            && error.contains("ip tuntap add dev NAME mode tap user"),
        "{error}"
    );
    assert!(!error.contains("delete"), "what it is may be needed: {error}");
    let fd = attached(&namespace, "one0", NEEDED);
    ioctl::set_persistent(fd.as_fd(), true).unwrap();
    drop(fd);
    let error = open(&namespace, "one0", 2).unwrap_err().to_string();
    assert!(error.contains("only one queue") && error.contains("mode tap multi_queue"), "{error}");
}

#[test]
fn names_and_numbers_are_checked_before_anything_is_done() {
    for name in ["", ".", "..", "a/b", "a b", "tap%d", "a:1", "sixteen_letters_", "tap\u{1b}[2J", "täp"] {
        let error = Tap::open(name, 1).unwrap_err();
        assert!(matches!(error, TapError::Name { .. }), "{name:?}: {error}");
        assert!(error.to_string().chars().all(|c| !c.is_control()), "{name:?}");
    }
    assert!(matches!(Tap::open("tap0", 0), Err(TapError::Queues { queues: 0, .. })));
    assert!(matches!(Tap::open("tap0", 257), Err(TapError::Queues { queues: 257, .. })));
    assert!(matches!(Tap::from_fds(Vec::new()), Err(TapError::Queues { queues: 0, .. })));
}

#[test]
fn without_privilege_a_tap_must_be_there_and_ours() {
    let namespace = Namespace::new();
    let error = without_privilege(&namespace, || Tap::open("new0", 1)).unwrap_err();
    assert!(matches!(error, TapError::CannotMake { .. }), "{error}");
    assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
    let fd = attached(&namespace, "kept0", NEEDED);
    ioctl::set_persistent(fd.as_fd(), true).unwrap();
    ioctl::set_owner(fd.as_fd(), 12345).unwrap();
    let other = attached(&namespace, "ours0", NEEDED);
    ioctl::set_persistent(other.as_fd(), true).unwrap();
    ioctl::set_owner(other.as_fd(), rustix::process::geteuid().as_raw()).unwrap();
    drop((fd, other));
    let error = without_privilege(&namespace, || Tap::open("kept0", 1)).unwrap_err();
    assert!(matches!(error, TapError::NotOurs { .. }), "{error}");
    let tap = without_privilege(&namespace, || Tap::open("ours0", 1)).unwrap();
    assert!(tap.info().offloads.checksum);
}

#[test]
fn descriptors_that_were_attached_elsewhere_are_taken_over() {
    let namespace = Namespace::new();
    let flags = NEEDED.with(TapFlags::MULTI_QUEUE);
    let fds = vec![attached(&namespace, "many0", flags), attached(&namespace, "many0", flags)];
    // In another namespace, the interface of that name is another one.
    let elsewhere = Namespace::new();
    let _other = attached(&elsewhere, "many0", flags);
    let tap = without_privilege(&elsewhere, || Tap::from_fds(fds)).unwrap();
    assert_eq!((tap.name(), tap.info().queue_pairs, tap.info().mtu), ("many0", 2, None));
    for queue in &tap.queues {
        assert!(rustix::fs::fcntl_getfl(queue).unwrap().contains(OFlags::NONBLOCK));
        assert!(rustix::io::fcntl_getfd(queue).unwrap().contains(FdFlags::CLOEXEC));
    }
    let fd = attached(&namespace, "one0", NEEDED);
    namespace.ip("addr add 10.9.0.1/24 dev one0");
    namespace.ip("link set dev one0 up");
    namespace.udp().send_to(b"early", ("10.9.0.255", 4000)).unwrap();
    wait_until("a packet", || !poll_now(&fd, PollFlags::IN).is_empty());
    namespace.ip("link set dev one0 down");
    let tap = namespace.enter(|| Tap::from_fds(vec![fd])).unwrap();
    assert_eq!((tap.name(), tap.info().mtu), ("one0", Some(1500)));
    assert!(poll_now(&tap.queues[0], PollFlags::IN).is_empty(), "what was there may be of any kind");
}

#[test]
fn descriptors_that_cannot_do_are_refused_with_a_remedy() {
    let namespace = Namespace::new();
    let flags = [
        (TapFlags::TAP.with(TapFlags::NO_PI), "IFF_VNET_HDR"),
        (TapFlags::TAP.with(TapFlags::VNET_HDR), "IFF_NO_PI"),
    ];
    for (flags, missing) in flags {
        let error = Tap::from_fds(vec![attached(&namespace, "tap0", flags)]).unwrap_err().to_string();
        assert!(error.contains(missing), "{error}");
    }
    let fd = attached(&namespace, "tap1", NEEDED);
    let twice = dup(&fd).unwrap();
    let error = Tap::from_fds(vec![fd, twice]).unwrap_err().to_string();
    assert!(error.contains("IFF_MULTI_QUEUE"), "{error}");
    let flags = NEEDED.with(TapFlags::MULTI_QUEUE);
    let fds = vec![attached(&namespace, "tap2", flags), attached(&namespace, "tap3", flags)];
    assert!(matches!(Tap::from_fds(fds), Err(TapError::TwoTaps { .. })));
    let fds = vec![attached(&namespace, "tap4", flags), attached(&namespace, "tap4", flags)];
    ioctl::use_queue(fds[1].as_fd(), false).unwrap();
    assert!(matches!(Tap::from_fds(fds), Err(TapError::Flag { missing: "IFF_ATTACH_QUEUE", .. })));
    let fds = vec![attached(&namespace, "esc\u{1b}[2J", TapFlags::TAP)];
    let error = Tap::from_fds(fds).unwrap_err().to_string();
    assert!(error.contains("tap esc?[2J,") && !error.contains('\u{1b}'), "{error:?}");
    let unattached = rustix::fs::open(TUN_DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap();
    for fd in [unattached, pipe().unwrap().0] {
        assert!(matches!(Tap::from_fds(vec![fd]), Err(TapError::NotATap { .. })));
    }
}
