//! Who is measured: the tap loop, a guest on Ringlet, the same guest on QEMU; each serves behind a tap of its own.

use std::fs;
use std::io::{self, Read};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use ringlet::{EngineKind, VmConfig, images};
use ringlet_metrics::Escaped;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::super::qemu;
use super::super::unnamed::Unnamed;
use super::peer::READY;
use super::place::{self, UNSHARE, ip};
use crate::cli::CliResult;

/// The guest.
pub(super) const IMAGE: &str = "netbench";
/// Nobody takes longer to be ready.
const PATIENCE: Duration = Duration::from_secs(30);
/// Where the kernel's own virtio-net back end is.
const VHOST: &str = "/dev/vhost-net";

/// One of those that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Contender {
    /// The tap facade without a VM.
    Host(EngineKind),
    Ringlet(EngineKind),
    /// `true`: with vhost.
    Qemu(bool),
}

impl Contender {
    pub(super) const ALL: [Self; 6] = [
        Self::Host(EngineKind::Uring),
        Self::Ringlet(EngineKind::Uring),
        Self::Qemu(false),
        Self::Host(EngineKind::Epoll),
        Self::Ringlet(EngineKind::Epoll),
        Self::Qemu(true),
    ];
    /// Those that are not ours.
    pub(super) const PEERS: [Self; 2] = [Self::Qemu(false), Self::Qemu(true)];

    /// Part of the figures' identifiers.
    pub(super) fn id(self) -> String {
        match self {
            Self::Host(engine) => format!("host.{engine}"),
            Self::Ringlet(engine) => format!("ringlet.{engine}"),
            Self::Qemu(false) => "qemu".to_owned(),
            Self::Qemu(true) => "qemu.vhost".to_owned(),
        }
    }

    pub(super) fn name(self) -> String {
        match self {
            Self::Host(engine) => format!("tap loop, {engine}"),
            Self::Ringlet(engine) => format!("Ringlet, {engine}"),
            Self::Qemu(false) => "QEMU microvm".to_owned(),
            Self::Qemu(true) => "QEMU microvm, vhost".to_owned(),
        }
    }

    /// The tap loop on the same engine.
    pub(super) fn ceiling(self) -> Self {
        match self {
            Self::Host(engine) | Self::Ringlet(engine) => Self::Host(engine),
            Self::Qemu(_) => Self::Host(EngineKind::Uring),
        }
    }

    pub(super) fn is_qemu(self) -> bool {
        matches!(self, Self::Qemu(_))
    }

    /// Its place in [`Self::ALL`], from 1 on: its network's number.
    fn number(self) -> usize {
        Self::ALL.iter().position(|who| *who == self).map_or(0, |index| index + 1)
    }

    /// Where its server is.
    pub(super) fn address(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, u8::try_from(self.number()).unwrap_or(0), 2)
    }

    /// Its tap.
    fn tap(self) -> String {
        format!("bench{}", self.number())
    }

    /// Why it cannot be tried here.
    pub(super) fn why_not(self) -> Option<String> {
        match self {
            Self::Host(EngineKind::Uring) | Self::Ringlet(EngineKind::Uring) => {
                ringlet_io::probe_uring().err().map(|error| error.to_string())
            }
            Self::Qemu(true) => (!Path::new(VHOST).exists()).then(|| format!("there is no {VHOST}")),
            Self::Host(_) | Self::Ringlet(_) | Self::Qemu(false) => None,
        }
    }
}

/// What the contenders need.
pub(super) struct Setup {
    ringlet: PathBuf,
    image: Unnamed,
    /// What `ringlet run` gives a VM.
    memory_mib: u32,
}

impl Setup {
    pub(super) fn new() -> CliResult<Self> {
        let netbench = images::find(IMAGE).ok_or("the image `netbench` is not bundled")?;
        let image = Unnamed::new_in(&std::env::temp_dir())?;
        io::Write::write_all(&mut image.file(), netbench.bytes)?;
        let memory_mib = VmConfig::new(IMAGE).machine_config.mem_size_mib;
        Ok(Self { ringlet: std::env::current_exe()?, image, memory_mib })
    }

    /// Has `who` serve. An error is why it does not work here.
    pub(super) fn start(&self, who: Contender) -> CliResult<Served> {
        let (tap, address) = (who.tap(), who.address());
        let [a, b, c, _] = address.octets();
        place::make_tap(&tap, &format!("{a}.{b}.{c}.1/24"))?;
        match who {
            Contender::Host(engine) => self.host(engine, &tap, &format!("{address}/24")),
            Contender::Ringlet(engine) => Served::start(&mut self.ringlet(engine, &tap, address)),
            Contender::Qemu(vhost) => Served::start(&mut self.qemu(vhost, &tap, address)),
        }
    }

    /// The loop between two taps, one of which goes to a network where the peer serves.
    fn host(&self, engine: EngineKind, tap: &str, address: &str) -> CliResult<Served> {
        let far = format!("{tap}far");
        ip(&format!("tuntap add dev {far} mode tap"))?;
        let mut command = Command::new(&self.ringlet);
        command.args(["bench", "tap-loop", "--io-engine", engine.as_str(), tap, &far]);
        let mut served = Served::start(&mut command)?;
        let mut peer = Command::new(UNSHARE);
        peer.arg("--net").arg(&self.ringlet).args([
            "bench",
            "net-peer",
            "--device",
            &far,
            "--address",
            address,
        ]);
        let mut child = Served::spawn(peer.stdin(Stdio::piped()))?;
        let moved = moved(&far, &mut child);
        served.children.push(child);
        moved?;
        served.until_ready()?;
        Ok(served)
    }

    fn ringlet(&self, engine: EngineKind, tap: &str, address: Ipv4Addr) -> Command {
        let mut command = Command::new(&self.ringlet);
        command.args(["run", IMAGE, "--io-engine", engine.as_str(), "--net", &format!("tap={tap}")]);
        command.args(["--", "serve", &format!("ip={address}/24")]);
        command
    }

    fn qemu(&self, vhost: bool, tap: &str, address: Ipv4Addr) -> Command {
        let cmdline = format!("{} -- \"serve\" \"ip={address}/24\"", qemu::DEVICE_WORDS);
        qemu::command_with_net(self.image.path(), self.memory_mib, &cmdline, (tap, vhost))
    }
}

/// Gives the peer its end of the wire, as soon as it has a network of its own.
fn moved(far: &str, peer: &mut Child) -> CliResult<()> {
    let (own, begun) = (fs::read_link("/proc/self/ns/net")?, Instant::now());
    while fs::read_link(format!("/proc/{}/ns/net", peer.id()))? == own {
        if begun.elapsed() > PATIENCE {
            return Err(format!("{UNSHARE} makes no network").into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    ip(&format!("link set dev {far} netns {}", peer.id()))?;
    drop(peer.stdin.take());
    Ok(())
}

/// The processes of a contender, which end with this.
#[derive(Debug, Default)]
pub(super) struct Served {
    children: Vec<Child>,
}

impl Served {
    /// Starts a command and waits until it is ready.
    fn start(command: &mut Command) -> CliResult<Self> {
        let child = Self::spawn(command.stdin(Stdio::null()))?;
        let mut served = Self { children: vec![child] };
        served.until_ready()?;
        Ok(served)
    }

    fn spawn(command: &mut Command) -> CliResult<Child> {
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        Ok(child.map_err(|error| format!("{program} cannot be run: {error}"))?)
    }

    /// Waits until the last process has said so.
    fn until_ready(&mut self) -> CliResult<()> {
        let child = self.children.last_mut().ok_or("there is no process")?;
        let pipe = child.stdout.as_mut().ok_or("its output is not read")?;
        let patience = Timespec { tv_sec: i64::try_from(PATIENCE.as_secs())?, tv_nsec: 0 };
        let (mut said, mut block) = (Vec::new(), [0; 4096]);
        loop {
            let text = String::from_utf8_lossy(&said).into_owned();
            if text.lines().any(|line| line.contains(READY)) {
                return Ok(());
            }
            let ready = poll(&mut [PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN)], Some(&patience))?;
            let count = if ready == 0 { 0 } else { pipe.read(&mut block)? };
            if count == 0 {
                // Whether it has ended or only says nothing: it is of no use.
                child.kill()?;
                child.wait()?;
                let mut errors = String::new();
                if let Some(pipe) = &mut child.stderr {
                    pipe.read_to_string(&mut errors)?;
                }
                let last = |text: &str| text.trim().lines().last().map(|line| Escaped(line).to_string());
                let last = last(&errors).or_else(|| last(&text)).unwrap_or_default();
                return Err(format!("it does not come up: {last}").into());
            }
            said.extend_from_slice(block.get(..count).unwrap_or_default());
        }
    }

    /// CPU time of all threads of all its processes so far (proc(5), schedstat).
    pub(super) fn cpu(&self) -> io::Result<Duration> {
        let mut nanos = 0;
        for child in &self.children {
            for task in fs::read_dir(format!("/proc/{}/task", child.id()))? {
                // A thread may end between the two looks.
                let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
                let spent = text.split(' ').next().and_then(|text| text.parse::<u64>().ok());
                nanos += spent.unwrap_or(0);
            }
        }
        Ok(Duration::from_nanos(nanos))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        for child in &mut self.children {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
