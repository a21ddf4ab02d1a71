//! A user-mode network for one interface: the program passt(1), which needs no privilege and sandboxes itself.
//!
//! Owns the process: it is started for one socket, is looked at until it serves, and ends with the socket. The network
//! is the same on every host, so that nothing has to be told to a guest that asks by DHCP: its address is [`GUEST`], the
//! gateway's [`GATEWAY`], and the resolver's 10.0.2.3. Where IPv6 leads out of the host, it has one of [`NETWORK6`]
//! too, which follows from its Ethernet address: router advertisements and DHCPv6 tell it the same. A guest reaches
//! what the user who started it reaches, but for what listens on the loopback addresses of the host; of that, it
//! reaches a resolver. Runs where a VM is assembled: starting takes some 20 ms.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use command_fds::{CommandFdExt, FdMapping};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};

use super::framing::PREFIX;
use super::host::{Host, eui64};
use super::publish::{Publish, Transport};
use super::socket::{Framing, Socket};
use super::{MAX_FRAME, MIN_FRAME};
use crate::helper::{Helper, PROCESSES};
use crate::unix::refuse_rights;

/// The guest's address, that passt's DHCP gives.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// The gateway's.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// Where a guest may ask for names if the host's first resolver is on a loopback address: passt hands it on there. DHCP tells
/// of the host's resolvers that are on none, and of this one if passt does so (2024 and later).
const RESOLVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// Bits of these that are the network's.
const NETWORK: u8 = 24;
/// The network of 64 bits that the guest's address of IPv6 is in.
pub const NETWORK6: Ipv6Addr = Ipv6Addr::new(0xFD00, 0x10, 0, 2, 0, 0, 0, 0);
/// The gateway's address of IPv6: a router is known by the one of its link.
const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xFE80, 0, 0, 0, 0, 0, 0, 2);
/// The least MTU that IPv6 works with (RFC 8200, section 5).
const MIN_MTU6: u16 = 1280;
/// The gateway's Ethernet address.
const GATEWAY_MAC: &str = "02:00:0a:00:02:02";
/// Whom the first question is from: nobody in particular, what the guest sends counts.
const ASKER_MAC: [u8; 6] = [2, 0, 10, 0, 2, 15];

const PROGRAM: &str = "passt";
/// The number of its end of the socket in the process.
const NUMBER: i32 = 3;
/// How long it may take to serve. A stop for what hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// Most bytes that are kept of what it says.
const SAID: u64 = 16 << 10;

/// Why there is no user-mode network.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PasstError {
    /// There is no such program.
    #[error(
        "passt, which a network without privileges takes, is not installed; on Debian and Ubuntu: `sudo apt install \
         passt`"
    )]
    NotInstalled,
    /// A port is to be published on an address of IPv6, which the guest does not have.
    #[error(
        "publish={0}: the guest has no IPv6; that takes a default route of IPv6 on the host (`ip -6 route`), and an MTU of \
         {MIN_MTU6} or more"
    )]
    NoIpv6(
        /// The port.
        Publish,
    ),
    /// It has ended, instead of serving.
    #[error("passt does not start ({status}): {said}{}", remedy(said))]
    Ended {
        /// How.
        status: ExitStatus,
        /// What it said.
        said: String,
    },
    /// It neither serves nor ends.
    #[error("passt has not begun to serve within {} s: {said}", PATIENCE.as_secs())]
    Silent {
        /// What it said.
        said: String,
    },
    /// A call failed that should not.
    #[error("passt: {call}: {source}")]
    Call {
        /// The call.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

fn remedy(said: &str) -> &'static str {
    let said = said.to_ascii_lowercase();
    if said.contains("bind") || said.contains("listen") {
        return "; is the port in use (`ss -lntu`), or below net.ipv4.ip_unprivileged_port_start, or the address \
                none of this host?";
    }
    if said.contains("namespace") {
        return "; it sandboxes itself, which takes user name spaces: `ringlet check` tells how to allow them";
    }
    ""
}

/// What a passt of our own is to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PasstOptions {
    /// Ports of the host that lead to the guest.
    pub publish: Vec<Publish>,
    /// Bytes of the largest packet that a guest is told of by DHCP; passt decides if absent.
    pub mtu: Option<u16>,
    /// The guest's Ethernet address.
    pub mac: [u8; 6],
}

impl PasstOptions {
    fn arguments(&self, host: &Host) -> Result<Vec<String>, PasstError> {
        let fixed = format!(
            "--foreground --quiet --fd {NUMBER} --address {GUEST} --netmask {NETWORK} --gateway {GATEWAY} \
             --mac-addr {GATEWAY_MAC} --no-map-gw"
        );
        let mut arguments: Vec<String> = fixed.split_whitespace().map(str::to_owned).collect();
        arguments.extend(self.families(host)?);
        // Elsewhere it would do harm: early versions have all answers of the host's first resolver come from this address.
        if host.resolver_is_local {
            arguments.extend(["--dns-forward".to_owned(), RESOLVER.to_string()]);
        }
        if let Some(mtu) = self.mtu {
            arguments.extend(["--mtu".to_owned(), mtu.to_string()]);
        }
        for (option, transport) in [("--tcp-ports", Transport::Tcp), ("--udp-ports", Transport::Udp)] {
            let published = self.publish.iter().filter(|port| port.transport == transport);
            let specs: Vec<String> = published.map(Publish::passt_spec).collect();
            let specs = if specs.is_empty() { vec!["none".to_owned()] } else { specs };
            arguments.extend(specs.into_iter().flat_map(|spec| [option.to_owned(), spec]));
        }
        Ok(arguments)
    }

    /// Whether there is IPv6, and by which interface of the host. IPv4 needs none of them, but passt wants one.
    fn families(&self, host: &Host) -> Result<Vec<String>, PasstError> {
        let interface = host.ipv6.as_deref().filter(|_| self.mtu.is_none_or(|mtu| mtu >= MIN_MTU6));
        if let Some(interface) = interface {
            let (guest, gateway) = (eui64(NETWORK6, self.mac).to_string(), GATEWAY6.to_string());
            let words = ["--interface", interface, "--address", &guest, "--gateway", &gateway];
            return Ok(words.map(str::to_owned).into());
        }
        // passt would leave it out without a word.
        match self.publish.iter().find(|port| port.address.is_some_and(|address| address.is_ipv6())) {
            Some(port) => Err(PasstError::NoIpv6(*port)),
            None => Ok(["--ipv4-only", "--interface", "lo"].map(str::to_owned).into()),
        }
    }
}

/// The process. Dropping it ends it, without waiting.
#[derive(Debug)]
pub(super) struct Passt {
    /// `None` once it is being ended.
    child: Option<Child>,
    helper: Arc<Helper>,
}

impl Drop for Passt {
    /// Reaped by a thread that may wait. It has nothing to finish, and would end with its socket, too.
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        self.helper.run(move || {
            // It may have ended before.
            let _ = child.kill();
            let _ = child.wait();
        });
    }
}

/// A process that does not serve yet.
struct Starting {
    passt: Passt,
    socket: OwnedFd,
    said: File,
}

impl Socket {
    /// Starts passt(1) and gives the socket to it, which ends it when it is dropped. Waits until it serves: not to be
    /// called on a shard.
    ///
    /// # Errors
    /// [`PasstError`].
    pub fn passt(options: &PasstOptions) -> Result<Self, PasstError> {
        start(PROGRAM, &options.arguments(&Host::now())?)?.served()
    }
}

fn start(program: &str, arguments: &[String]) -> Result<Starting, PasstError> {
    let (socket, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        .map_err(call("socketpair"))?;
    refuse_rights(&socket).map_err(call("SO_PASSRIGHTS"))?;
    let said = bounded_file().map_err(call("memfd_create"))?;
    let stderr = said.try_clone().map_err(call_io("dup"))?;
    let helper = Helper::get(&PROCESSES).map_err(call_io("a thread to end it"))?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
    // Keys that end a program are not meant for it: it ends with its VM.
    command.process_group(0);
    let mapping = FdMapping { parent_fd: theirs, child_fd: NUMBER };
    let mapped = command.fd_mappings(vec![mapping]);
    mapped.map_err(|error| call_io("fd_mappings")(io::Error::other(error)))?;
    let child = command.spawn().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => PasstError::NotInstalled,
        _ => call_io("starting it")(source),
    })?;
    // With the command goes our copy of the other end, so that the end of the process is the end of the stream.
    drop(command);
    Ok(Starting { passt: Passt { child: Some(child), helper }, socket, said })
}

impl Starting {
    /// Asks where the gateway is, as a guest would: whoever answers has opened all ports.
    fn served(mut self) -> Result<Socket, PasstError> {
        let deadline = Instant::now() + PATIENCE;
        let frame = question();
        let bytes = [&(frame.len() as u32).to_be_bytes()[..], &frame].concat();
        // If nobody is there, the answer says so.
        let _ = send(&self.socket, &bytes, SendFlags::NOSIGNAL);
        match self.first_frame(deadline) {
            Ok(()) => {}
            Err(Errno::AGAIN) => return Err(PasstError::Silent { said: self.said() }),
            Err(_) => return Err(self.ended()),
        }
        set_socket_timeout(&self.socket, Timeout::Recv, None).map_err(call("SO_RCVTIMEO"))?;
        Ok(Socket { fd: self.socket, framing: Framing::Length, passt: Some(self.passt) })
    }

    /// Takes one frame from the stream, whatever it says.
    fn first_frame(&self, deadline: Instant) -> rustix::io::Result<()> {
        let mut prefix = [0; PREFIX];
        self.fill(&mut prefix, deadline)?;
        let length = usize::try_from(u32::from_be_bytes(prefix)).unwrap_or(usize::MAX);
        if !(MIN_FRAME..=MAX_FRAME).contains(&length) {
            return Err(Errno::PROTO);
        }
        self.fill(&mut vec![0; length], deadline)
    }

    fn fill(&self, bytes: &mut [u8], deadline: Instant) -> rustix::io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Errno::AGAIN);
            }
            set_socket_timeout(&self.socket, Timeout::Recv, Some(left))?;
            match recv(&self.socket, &mut *rest, RecvFlags::empty()) {
                Ok((0, _)) => return Err(Errno::PIPE),
                Ok((count, _)) => rest = rest.get_mut(count..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Why there is no answer: it ended, or it is no passt, and is ended.
    fn ended(&mut self) -> PasstError {
        let Some(mut child) = self.passt.child.take() else { return PasstError::NotInstalled };
        let _ = child.kill();
        match child.wait() {
            Ok(status) => PasstError::Ended { status, said: self.said() },
            Err(source) => PasstError::Call { call: "wait", source },
        }
    }

    /// What it has said, in one line, without what says nothing about the matter.
    fn said(&mut self) -> String {
        // It writes where our file is, too.
        let end = self.said.stream_position().unwrap_or(0).min(SAID);
        let mut bytes = Vec::new();
        let read = self.said.rewind().and_then(|()| (&self.said).take(end).read_to_end(&mut bytes));
        let text = String::from_utf8_lossy(&bytes);
        let idle = |line: &&str| {
            !line.is_empty() && !line.contains("syslog") && !line.starts_with("Don't run as root")
        };
        let lines: Vec<&str> = text.lines().map(str::trim).filter(idle).collect();
        match (read, lines.is_empty()) {
            (Ok(_), false) => lines.join("; "),
            _ => "it does not say why; the system's log may".to_owned(),
        }
    }
}

/// A file in memory that cannot grow beyond [`SAID`] bytes, whatever is written.
fn bounded_file() -> rustix::io::Result<File> {
    let file = memfd_create("passt-stderr", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    ftruncate(&file, SAID)?;
    fcntl_add_seals(file.as_fd(), SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(file.into())
}

/// Who has the gateway's address? (RFC 826)
fn question() -> Vec<u8> {
    let arp =
        [&[0, 1, 8, 0, 6, 4, 0, 1], &ASKER_MAC[..], &GUEST.octets(), &[0; 6], &GATEWAY.octets()].concat();
    [&[0xFF; 6], &ASKER_MAC[..], &[8, 6], &arp].concat()
}

fn call(call: &'static str) -> impl FnOnce(Errno) -> PasstError {
    move |error| call_io(call)(error.into())
}

fn call_io(call: &'static str) -> impl FnOnce(io::Error) -> PasstError {
    move |source| PasstError::Call { call, source }
}

#[cfg(test)]
#[path = "passt_test.rs"]
mod tests;
