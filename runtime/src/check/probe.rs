//! Looks at the host: files below `/proc` and `/sys`, device files, limits.
//!
//! What cannot be read counts as absent; nothing here fails.

use super::facts::{
    Cpu, Facts, Identity, Landlock, Limit, Limits, Memory, OpenError, Seccomp, Tap, UserNamespaces,
};
use super::{probe_cgroup, probe_kvm};
use crate::kvm::Virtualization;
use landlock::{LandlockStatus, RestrictSelf};
use rustix::fs::{Access, Mode, OFlags};
use rustix::process::{Resource, getrlimit};
use std::io;
use std::path::PathBuf;
use std::str::FromStr;

/// CAP_NET_ADMIN, as a bit of `CapEff` in `/proc/self/status` (`capability.h`).
const CAP_NET_ADMIN: u32 = 12;

/// Files of the host, below a root that tests replace.
pub(super) struct Files {
    root: PathBuf,
}

impl Files {
    pub(super) fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    pub(super) fn exists(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// The whole file, or nothing; bytes that are no UTF-8 are replaced.
    pub(super) fn text(&self, path: &str) -> String {
        let bytes = std::fs::read(self.path(path)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The file's first line.
    pub(super) fn line(&self, path: &str) -> Option<String> {
        self.text(path).lines().next().map(|line| line.trim().to_owned())
    }

    /// The file's first line, as a number.
    pub(super) fn number<T: FromStr>(&self, path: &str) -> Option<T> {
        self.line(path)?.parse().ok()
    }
}

/// Looks at everything.
pub(super) fn probe() -> Facts {
    let files = Files::new("/");
    let status = files.text("proc/self/status");
    let cpu = cpu(&files.text("proc/cpuinfo"));
    Facts {
        cpu,
        kernel: files.line("proc/sys/kernel/osrelease").unwrap_or_default(),
        kvm: probe_kvm::probe(&files, cpu),
        io_uring: ringlet_io::probe_uring(),
        limits: limits(&files),
        memory: memory(&files.text("proc/meminfo")),
        cgroup: probe_cgroup::probe(&files),
        tap: Tap { device: open("/dev/net/tun"), net_admin: has_capability(&status, CAP_NET_ADMIN) },
        passt: program("passt"),
        landlock: landlock(),
        seccomp: seccomp(&files, &status),
        identity: identity(&files, &status),
    }
}

/// Sorts the error number of opening a device file.
pub(super) fn open_error(errno: i32) -> OpenError {
    match errno {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => OpenError::Absent,
        libc::EACCES | libc::EPERM => OpenError::Denied,
        other => OpenError::Other(io::Error::from_raw_os_error(other).to_string()),
    }
}

fn open(path: &str) -> Result<(), OpenError> {
    let opened = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    opened.map(drop).map_err(|error| open_error(error.raw_os_error()))
}

/// Where a program is that is started by its name.
fn program(name: &str) -> Option<String> {
    let folders = std::env::var_os("PATH")?;
    let may_run = |path: &PathBuf| path.is_file() && rustix::fs::access(path, Access::EXEC_OK).is_ok();
    let found = std::env::split_paths(&folders).map(|folder| folder.join(name)).find(may_run)?;
    Some(found.to_string_lossy().into_owned())
}

fn cpu(cpuinfo: &str) -> Cpu {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    let has = |flag: &str| flags.split_whitespace().any(|word| word == flag);
    let virtualization = match () {
        () if has("vmx") => Virtualization::Vmx,
        () if has("svm") => Virtualization::Svm,
        () => Virtualization::None,
    };
    Cpu { virtualization, hypervisor: has("hypervisor") }
}

fn limits(files: &Files) -> Limits {
    let open_files = getrlimit(Resource::Nofile);
    Limits {
        open_files_soft: open_files.current,
        open_files_hard: open_files.maximum,
        locked_memory: getrlimit(Resource::Memlock).current,
        user_threads: getrlimit(Resource::Nproc).current,
        threads_max: files.number("proc/sys/kernel/threads-max"),
        pid_max: files.number("proc/sys/kernel/pid_max"),
        cgroup_pids: probe_cgroup::pids_max(files),
        mappings: files.number("proc/sys/vm/max_map_count"),
        cpu_timers: crate::cpu::try_exact_timer().map_err(|error| error.to_string()),
    }
}

fn memory(meminfo: &str) -> Memory {
    let value = |name: &str| -> u64 {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    };
    Memory {
        available: value("MemAvailable").saturating_mul(1024),
        huge_pages: value("HugePages_Total"),
        huge_pages_free: value("HugePages_Free"),
        huge_page_size: value("Hugepagesize").saturating_mul(1024),
    }
}

/// Asks for the interface's version; nothing is restricted, since nothing is asked to be.
fn landlock() -> Landlock {
    match RestrictSelf::default().no_new_privs(false).apply().map(|status| status.landlock) {
        Ok(LandlockStatus::Available { effective_abi, kernel_abi }) => {
            Landlock::Abi(kernel_abi.unwrap_or(effective_abi as i32))
        }
        Ok(LandlockStatus::NotEnabled) => Landlock::Disabled,
        Ok(LandlockStatus::NotImplemented) | Err(_) => Landlock::Absent,
    }
}

fn seccomp(files: &Files, status: &str) -> Seccomp {
    let actions = files.text("proc/sys/kernel/seccomp/actions_avail");
    Seccomp {
        actions: actions.split_whitespace().map(str::to_owned).collect(),
        filtered: status_field(status, "Seccomp") == Some("2"),
    }
}

fn identity(files: &Files, status: &str) -> Identity {
    Identity {
        uid: rustix::process::geteuid().as_raw(),
        no_new_privs: status_field(status, "NoNewPrivs") == Some("1"),
        user_namespaces: user_namespaces(files),
    }
}

fn user_namespaces(files: &Files) -> UserNamespaces {
    let number = |path: &str| -> Limit { files.number(path) };
    if !files.exists("proc/sys/user/max_user_namespaces") {
        UserNamespaces::Absent
    } else if number("proc/sys/user/max_user_namespaces") == Some(0) {
        UserNamespaces::Forbidden
    } else if number("proc/sys/kernel/unprivileged_userns_clone") == Some(0) {
        UserNamespaces::PrivilegedOnly
    } else if number("proc/sys/kernel/apparmor_restrict_unprivileged_userns") == Some(1) {
        UserNamespaces::AppArmor
    } else {
        UserNamespaces::Available
    }
}

/// The value of a line `name:\tvalue` of `/proc/self/status`.
fn status_field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim()))
}

fn has_capability(status: &str, bit: u32) -> bool {
    let effective = status_field(status, "CapEff").and_then(|hex| u64::from_str_radix(hex, 16).ok());
    effective.is_some_and(|bits| bits >> bit & 1 == 1)
}

#[cfg(test)]
#[path = "probe_test.rs"]
mod tests;
