//! Why a tap cannot be used, and what to do about it.

use std::io;

/// Why a tap cannot be used. Each message names it and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TapError {
    /// No interface can be called so.
    #[error(
        "tap {name:?}: not a name of an interface: give 1 to 15 printable ASCII characters without `/`, `:` and `%`"
    )]
    Name {
        /// What was given.
        name: String,
    },
    /// A tap cannot have so many queues.
    #[error("tap {name}: {queues} pairs of queues: give 1 to 256")]
    Queues {
        /// The tap, if it is known.
        name: String,
        /// How many were asked for, or given.
        queues: usize,
    },
    /// `/dev/net/tun` cannot be opened.
    #[error("tap {name}: /dev/net/tun: {source}{}", device_remedy(source))]
    Device {
        /// The tap.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// There is none, and it may not be made.
    #[error("tap {name}: there is none, and making one takes CAP_NET_ADMIN: as root, `{}`", add(name, *multi_queue))]
    CannotMake {
        /// The tap.
        name: String,
        /// It is to have several queues.
        multi_queue: bool,
    },
    /// It belongs to another user or group.
    #[error(
        "tap {name}: it is another user's, and using it takes CAP_NET_ADMIN: as root, `ip tuntap list` tells \
         whose; `{}` makes another one",
        add("NAME", false)
    )]
    NotOurs {
        /// The tap.
        name: String,
    },
    /// There is an interface of this name, but it is no tap, or not one with as many queues.
    #[error(
        "tap {name}: the interface of this name is no tap{}: choose another name; as root, `{}` makes a tap",
        if *multi_queue { ", or one that has only one queue" } else { "" }, add("NAME", *multi_queue)
    )]
    NoSuchTap {
        /// The tap.
        name: String,
        /// It is to have several queues.
        multi_queue: bool,
    },
    /// Somebody has it open.
    #[error("tap {name}: it is in use; stop what uses it (another VM?), or give this VM a tap of its own")]
    InUse {
        /// The tap.
        name: String,
    },
    /// A descriptor is none of a tap.
    #[error(
        "tap, descriptor {number}: not attached to a tap ({source}); give one of /dev/net/tun on which TUNSETIFF \
         was called"
    )]
    NotATap {
        /// The descriptor's number.
        number: i32,
        /// What the kernel said.
        source: io::Error,
    },
    /// A descriptor was attached with other flags.
    #[error(
        "tap {name}, descriptor {number}: attached without {missing}; whoever opens it must set that flag"
    )]
    Flag {
        /// The descriptor's number.
        number: i32,
        /// The tap.
        name: String,
        /// The flag.
        missing: &'static str,
    },
    /// Descriptors belong to different taps.
    #[error("tap {name}, descriptor {number}: the one before is of {other}; give the queues of one tap")]
    TwoTaps {
        /// The descriptor's number.
        number: i32,
        /// Its tap.
        name: String,
        /// The other tap.
        other: String,
    },
    /// A call failed that should not.
    #[error("tap {name}: {call}: {source}")]
    Call {
        /// The tap.
        name: String,
        /// The call.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The command that makes it.
fn add(name: &str, multi_queue: bool) -> String {
    let queues = if multi_queue { " multi_queue" } else { "" };
    format!("ip tuntap add dev {name} mode tap{queues} user USER")
}

fn device_remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "; as root, `modprobe tun`",
        io::ErrorKind::PermissionDenied => "; as root, `chmod 0666 /dev/net/tun` (its usual mode)",
        _ if error.raw_os_error() == Some(libc::ENODEV) => "; as root, `modprobe tun`",
        _ => "",
    }
}
