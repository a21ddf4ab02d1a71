//! The options of `ringlet run`, and the configuration that they make.

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum, ValueHint};
use ringlet::{
    BootProtocol, Drive, EngineChoice, HugePages, MAX_BUSY_POLL, MAX_MEMORY_MIB, MAX_SHARDS, MAX_VCPUS,
    MIN_MEMORY_MIB, NetworkInterface, VmConfig, Vsock,
};
use ringlet_metrics::{Endpoint, Escaped};

use super::CliResult;
use super::disk::{self, DiskArg};
use super::limit::{self, LimitArg};
use super::log::LogLevel;
use super::net::{self, NetArg};
use super::size;
use super::tenant::{self, TenantArg};
use super::vsock;

/// Options of `ringlet run`.
#[derive(Debug, Args)]
#[command(after_long_help = EXIT_STATUS)]
pub(super) struct RunArgs {
    /// A bundled image (see `ringlet images`) or an ELF64 file
    #[arg(value_hint = ValueHint::FilePath, required_unless_present = "config_file")]
    image: Option<String>,

    /// Guest RAM with a suffix, 4M to 1T [default: 128M]
    #[arg(long, short, value_parser = parse_memory)]
    memory: Option<u32>,

    /// Number of vCPUs, 1 to 32 [default: 1]
    #[arg(long, short = 'c', value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_VCPUS)))]
    vcpus: Option<u32>,

    /// The kernel's command line
    #[arg(long)]
    cmdline: Option<String>,

    /// A file to put into guest RAM for the kernel
    #[arg(long, value_hint = ValueHint::FilePath)]
    initrd: Option<PathBuf>,

    /// Give the VM a disk (repeatable): `path=FILE`, `null[:SIZE]` or `memory:SIZE`, then options, each after a comma
    ///
    /// id=NAME (disk0, disk1 … if absent), readonly, direct (past the page cache; for a FILE), cache=writeback (a
    /// completed flush survives a crash of the host; the default) or cache=unsafe, queues=N (1 to 16), queue_size=N (a
    /// power of two, 4 to 256), serial=TEXT (20 characters).
    /// A FILE is an image or a block device; it is locked, so that no two VMs write it. A null disk forgets what is
    /// written and reads as zeroes.
    #[arg(long = "disk", value_name = "SOURCE[,OPTION]…", value_parser = disk::parse)]
    disks: Vec<DiskArg>,

    /// Give the VM a network interface (repeatable): `passt`, `tap=NAME`, `fd=N` or `socket=PATH`, then options, each after a comma
    ///
    /// passt is a user-mode network of its own, by the program passt(1): no privilege is needed. The guest's address is
    /// 10.0.2.15 by DHCP, and one in fd00:10:0:2::/64 if the host has IPv6; publish=[ADDRESS:]HOST:GUEST[/udp] (repeatable; an
    /// address of IPv6 in brackets) lets a port of the host lead to one of the guest.
    /// tap=NAME is a tap of the host; it is made if there is none, which takes CAP_NET_ADMIN, and then goes with the VM.
    /// fd=N is the open descriptor of a tap, or of a connected Unix socket; fd=N:N… one for each pair of queues.
    /// socket=PATH (or passt=PATH) is a Unix stream socket that speaks the protocol of passt and QEMU.
    /// id=NAME (net0, net1 … if absent), mac=ADDRESS (a random one if absent), mtu=N (68 to 65535), queues=N (1 to 31 pairs, of a tap by name),
    /// queue_size=N (a power of two, 4 to 256). anti_spoof: the guest sends from its own Ethernet address only;
    /// ipv4=ADDRESS, ipv6=ADDRESS (repeatable): and from these addresses only. With a tenant, anti_spoof is on unless it is off here (anti_spoof=off).
    #[arg(long = "net", value_name = "SIDE[,OPTION]…", value_parser = net::parse)]
    interfaces: Vec<NetArg>,

    /// Give the VM stream sockets to the host (vsock): `uds=PATH` or `fd=N`, then options, each after a comma
    ///
    /// uds=PATH is a Unix socket that is made and goes with the VM: whoever connects and writes `CONNECT PORT` and a newline is
    /// connected to that port of the guest, after an answer `OK PORT`. What the guest connects to goes to PATH_PORT, where
    /// others listen. fd=N is the descriptor of a Unix socket that listens; with uds=PATH that is only where the guest's
    /// connections go. cid=N is the guest's address, 3 or more, chosen if absent; connections=N the most at once (10000).
    /// With --count, the VMs have PATH-1, PATH-2 …, and the addresses N, N+1 …
    #[arg(long, value_name = "SIDE[,OPTION]…", value_parser = vsock::parse)]
    vsock: Option<Vsock>,

    /// Limit what the VM may use (repeatable): cpu.max=QUOTA[/PERIOD], cpu.weight=N, disk.{rbps,wbps,riops,wiops,bps,iops,weight}=N, net.{rx,tx}.{bps,pps}=N, net.weight=N, buffers.max=SIZE
    ///
    /// cpu.max=50ms/100ms is half a CPU, for all vCPUs and devices together; PERIOD is 100ms if absent, 1ms to 1s.
    /// cpu.weight is the share of CPUs that others want too, 1 to 10000, 100 if absent; more than that takes a privilege.
    /// disk.* is of all disks together, each second: rbps, wbps and bps are bytes read, written and both (K, M, G: 1024);
    /// riops, wiops and iops are requests (K, M, G: 1000). disk.weight is the share of what its tenant may use, 1 to 10000.
    /// net.* is of all network interfaces together: bytes of frames (K, M, G: 1024) and packets (K, M, G: 1000) a second that
    /// are received (rx) and sent (tx); net.weight is as disk.weight.
    /// buffers.max is the memory that the host holds for it besides guest RAM, such as requests in flight (K, M, G: 1024).
    /// `max` takes away what the configuration file limits. With --count, each VM has these limits for itself.
    #[arg(long = "limit", value_name = "KEY=VALUE[,KEY=VALUE]…", value_parser = limit::parse)]
    limits: Vec<LimitArg>,

    /// Whom the VM belongs to: NAME, then what all VMs of it may use together, disk.{rbps,wbps,riops,wiops,bps,iops,weight}=N, net.{rx,tx}.{bps,pps}=N, net.weight=N
    ///
    /// With --count, all VMs are of this tenant and share its limits by their own disk.weight and net.weight (see --limit). The keys
    /// are those of --limit, and win over the configuration file's where that names the same tenant.
    #[arg(long, value_name = "NAME[,KEY=VALUE]…", value_parser = tenant::parse)]
    tenant: Option<TenantArg>,

    /// When a VM has ended, say on standard error what its limits asked for, what it obtained, and how long it waited
    #[arg(long)]
    pub(super) limits_report: bool,

    /// Give the VM a source of random numbers (virtio-rng)
    #[arg(long)]
    rng: bool,

    /// Give the VM a virtio console, and the terminal or standard input to it instead of to the serial port
    ///
    /// What the guest prints on either is shown on standard output, each in its own order.
    #[arg(long)]
    pub(super) console: bool,

    /// Run this many VMs in this process; their output is shown line by line with the VM's name before it
    #[arg(long, default_value = "1", value_parser = parse_count)]
    pub(super) count: NonZero<u32>,

    /// End the VM after this time: 500ms, 10s, 2m
    #[arg(long, value_parser = parse_duration)]
    timeout: Option<Duration>,

    /// Take the VM's configuration from a JSON file in Firecracker's format; options given here win
    ///
    /// SIGHUP takes the limits in it anew (limits, rate_limiter), unless the VM has the terminal.
    #[arg(long, value_hint = ValueHint::FilePath)]
    pub(super) config_file: Option<PathBuf>,

    /// What the event loops wait with
    #[arg(long, value_enum, default_value_t = EngineArg::Auto)]
    pub(super) io_engine: EngineArg,

    /// Number of event-loop threads, 1 to 256 [default: one for every two CPUs; one without --count]
    #[arg(long, value_parser = parse_shards)]
    pub(super) shards: Option<NonZero<u32>>,

    /// How long an event loop looks for work before it sleeps, where work mostly comes soon: 0s (never) to 100us [default: 50us]
    ///
    /// Not done behind work for VMs with cpu.max, nor for a moment after others have wanted the CPU. Where the CPU time of the whole
    /// process is limited (cgroups), 0s leaves more for guests.
    #[arg(long, value_name = "DURATION", value_parser = parse_busy_poll)]
    pub(super) busy_poll: Option<Duration>,

    /// Open files that connections of all VMs' sockets (--vsock) may take together; a VM gets one more only while more are left
    /// than it has [default: half of `ulimit -n`]
    #[arg(long, value_name = "N")]
    pub(super) vsock_descriptors: Option<u32>,

    /// Serve Prometheus metrics at http://ADDR/metrics, or on a Unix socket
    #[arg(long, value_name = "ADDR|unix:PATH")]
    pub(super) metrics: Option<Endpoint>,

    /// Name of the VM; with --count, NAME-1, NAME-2 …
    #[arg(long)]
    name: Option<String>,

    /// Write how each VM ended as a line of JSON: to this file, or (`json`) to standard output
    ///
    /// What a guest prints goes to standard output too, and may look like such a line: programs should use a file.
    #[arg(long, value_name = "json|FILE", value_hint = ValueHint::FilePath)]
    pub(super) outcome: Option<PathBuf>,

    /// How the image is entered [default: as the image prefers]
    #[arg(long, value_enum)]
    boot_protocol: Option<ProtocolArg>,

    /// Back guest RAM with 2 MiB pages of the host's pool (vm.nr_hugepages)
    #[arg(long)]
    huge_pages: bool,

    /// What to log on standard error
    #[arg(long, value_enum, default_value_t = LogLevel::Warn)]
    pub(super) log_level: LogLevel,

    /// Arguments for the guest program
    #[arg(last = true)]
    args: Vec<String>,
}

const EXIT_STATUS: &str = "Exit status:
  the guest's exit code (255 if it is larger), or
  0    the guest reset the machine
  124  the time limit passed
  125  Ringlet failed
  130  stopped by Ctrl-A x or SIGINT (Ctrl-C goes to a guest that has the terminal)
  131  stopped by SIGQUIT
  134  the guest crashed (--outcome tells it from a guest's own code)
  143  stopped by another signal

With --count: the first of these, in the VMs' order, that is not 0.

A second signal ends Ringlet at once, whatever VMs or output it still waits for.

Keys while a VM has the terminal: Ctrl-A x stops it, Ctrl-A h lists the keys.";

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum EngineArg {
    /// io_uring, or epoll where io_uring is not available
    Auto,
    /// io_uring
    Uring,
    /// epoll, with threads for file I/O
    Epoll,
}

impl From<EngineArg> for EngineChoice {
    fn from(engine: EngineArg) -> Self {
        match engine {
            EngineArg::Auto => Self::Auto,
            EngineArg::Uring => Self::Uring,
            EngineArg::Epoll => Self::Epoll,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ProtocolArg {
    /// The PVH entry
    Pvh,
    /// The 64-bit Linux entry
    Linux64,
}

impl From<ProtocolArg> for BootProtocol {
    fn from(protocol: ProtocolArg) -> Self {
        match protocol {
            ProtocolArg::Pvh => Self::Pvh,
            ProtocolArg::Linux64 => Self::Linux64,
        }
    }
}

/// MiB of guest RAM.
fn parse_memory(text: &str) -> Result<u32, String> {
    let bytes = size::parse(text)?;
    if bytes % (1 << 20) != 0 {
        return Err("is not a multiple of 1M".into());
    }
    match u32::try_from(bytes >> 20) {
        Ok(mib @ MIN_MEMORY_MIB..=MAX_MEMORY_MIB) => Ok(mib),
        Ok(_) | Err(_) => Err("a VM has 4M to 1T".into()),
    }
}

fn parse_count(text: &str) -> Result<NonZero<u32>, String> {
    text.parse().map_err(|_| "must be at least 1, and in digits: how many VMs".into())
}

fn parse_shards(text: &str) -> Result<NonZero<u32>, String> {
    let shards = text.parse().ok().filter(|shards: &NonZero<u32>| shards.get() <= MAX_SHARDS);
    shards.ok_or_else(|| format!("not a number from 1 to {MAX_SHARDS}"))
}

fn parse_busy_poll(text: &str) -> Result<Duration, String> {
    let longest = humantime::parse_duration(text).ok().filter(|longest| *longest <= MAX_BUSY_POLL);
    longest.ok_or_else(|| "not a time from 0s to 100us; write 50us".to_owned())
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let limit = humantime::parse_duration(text).map_err(|e| format!("{e}; write 500ms, 10s or 2m"))?;
    if limit < Duration::from_millis(1) { Err("must be at least 1ms".into()) } else { Ok(limit) }
}

impl RunArgs {
    /// The command line says which image, and not a configuration file alone.
    pub(super) fn names_image(&self) -> bool {
        self.image.is_some()
    }

    /// The command line says which initrd.
    pub(super) fn names_initrd(&self) -> bool {
        self.initrd.is_some()
    }

    /// The configuration file, if any, and what the options say on top of it.
    pub(super) fn config(&self) -> CliResult<VmConfig> {
        let mut config = match (&self.config_file, &self.image) {
            (Some(file), _) => VmConfig::from_file(file)?,
            (None, Some(image)) => VmConfig::new(image.as_str()),
            (None, None) => return Err("say which image to run; `ringlet images` lists those at hand".into()),
        };
        if let Some(image) = &self.image {
            config.boot_source.kernel_image_path = image.as_str().into();
        }
        if let Some(mib) = self.memory {
            config = config.memory_mib(mib);
        }
        if let Some(count) = self.vcpus {
            config = config.vcpus(count);
        }
        if let Some(cmdline) = &self.cmdline {
            config = config.cmdline(cmdline);
        }
        if let Some(initrd) = &self.initrd {
            config = config.initrd(initrd);
        }
        if let Some(limit) = self.timeout {
            config = config.timeout(limit);
        }
        if let Some(name) = &self.name {
            config = config.name(name);
        }
        if let Some(protocol) = self.boot_protocol {
            config = config.boot_protocol(protocol.into());
        }
        if self.huge_pages {
            config = config.huge_pages(HugePages::TwoM);
        }
        limit::add(&mut config.ringlet.limits, &self.limits);
        if let Some(arg) = &self.tenant {
            tenant::set(&mut config, arg);
        }
        disk::add(&mut config, &self.disks);
        net::add(&mut config, &self.interfaces);
        config.vsock = self.vsock.clone().or(config.vsock);
        if self.rng {
            config = config.entropy();
        }
        if self.console {
            config = config.console();
        }
        if !self.args.is_empty() {
            config = config.args(self.args.iter().cloned());
        }
        config.validate()?;
        self.check_sharing(&config)?;
        Ok(config)
    }

    /// A file has one writer: many VMs can share it only if none of them writes. The host's side of a network interface
    /// has one VM.
    fn check_sharing(&self, config: &VmConfig) -> CliResult<()> {
        let alone = |interface: &&NetworkInterface| match &interface.ringlet.passt {
            Some(passt) => !passt.publish.is_empty(),
            None => true,
        };
        if let Some(interface) = config.network_interfaces.iter().find(alone).filter(|_| self.count.get() > 1)
        {
            let (count, id) = (self.count, &interface.iface_id);
            return Err(format!(
                "--count {count}: {count} VMs cannot have one network interface ({id}); run each with a tap or ports of its own"
            )
            .into());
        }
        vsock::check_sharing(config, self.count.get())?;
        let shared = |drive: &&Drive| drive.path_on_host.is_some() && !drive.is_read_only;
        let Some(drive) = config.drives.iter().find(shared).filter(|_| self.count.get() > 1) else {
            return Ok(());
        };
        let (count, path) = (self.count, drive.path_on_host.as_deref().unwrap_or(Path::new("")));
        let path = Escaped(&path.to_string_lossy()).to_string();
        Err(format!(
            "--count {count}: {count} VMs cannot write one file; add `,readonly` to the disk {path}, or give each VM \
             a disk of its own with `--disk memory:SIZE`"
        )
        .into())
    }
}

#[cfg(test)]
#[path = "run_test.rs"]
mod tests;
